//! A write that was not acknowledged, and of which a part is damaged in the only replica that has it.

use bytes::Bytes;
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::replica_set::ChangeKind;
use dfs_proto::{BootSession, ChunkId, FsError, MonoMs, NodeId, Version};

use super::super::super::message::{
    CallId, ClientRequest, Context, DiskAnswer, DiskJob, Effect, Input, PeerAnswer, PeerRequest, Request, WriteKey,
};
use super::super::super::unit::{UnitState, WriteStamp};
use super::super::ReplicaCore;
use super::disk::Disk;
use super::owner::grant;

const VERSION: Version = Version(4);
const UNITS: u32 = 16;
const OLDER: WriteStamp = WriteStamp { version: VERSION, seq: 1 };
const NEWER: WriteStamp = WriteStamp { version: VERSION, seq: 2 };

fn content(stamp: WriteStamp) -> Vec<u8> {
    vec![stamp.seq as u8; UNIT_SIZE as usize]
}

fn key_of(stamp: WriteStamp) -> WriteKey {
    WriteKey { client: 7, number: stamp.seq, part: 0, stamp }
}

/// Returns a disk that holds these writes, each of the whole chunk.
fn disk(writes: &[WriteStamp]) -> Disk {
    let mut disk = Disk { exists: true, version: VERSION, ..Disk::default() };
    for stamp in writes {
        let unit = content(*stamp);
        let states = vec![UnitState::data(*stamp, crc32c::crc32c(&unit)); UNITS as usize];
        let payload = Bytes::from(unit.repeat(UNITS as usize));
        let put = DiskJob::Put { first: 0, states, payload, key: Some(key_of(*stamp)), needs_room: false };
        disk.carry_out(&put, None).expect("room");
    }
    disk
}

fn rot(disk: &mut Disk, unit: u32, is_noticed: bool) {
    disk.rotten.insert(unit);
    if is_noticed {
        disk.noticed.insert(unit);
    }
}

/// Has node 1 be the primary when the newer write comes once more. Returns what the master is asked for first, `None` if the
/// write is answered without.
fn asked_of_the_master(mut own: Disk, mut theirs: Disk) -> Option<ChangeKind> {
    let mut context = Context {
        now: MonoMs(100),
        node: NodeId(1),
        boot: BootSession(1),
        lease_until: MonoMs(1_000_000),
        disk_room: 1 << 30,
        random: 9,
    };
    let data = Bytes::from(content(NEWER).repeat(UNITS as usize));
    let crcs = dfs_proto::unit::checksums(0, &data);
    let request = ClientRequest::Write { offset: 0, crcs, data, client: 7, number: NEWER.seq };
    let request = Request::Client { grant: grant(VERSION.0, &[]), request };
    let mut core = ReplicaCore::new(VERSION, false, ChunkId(9), 16, own.recovered());
    let mut todo = Vec::new();
    core.step(&context, Input::Begin { call: CallId(1), deadline: MonoMs(20_000), request }, &mut todo);
    let mut timers = Vec::new();
    for _ in 0..1_000 {
        if todo.is_empty() {
            let (at, call): (MonoMs, CallId) = timers.pop().expect("it waits for something");
            context.now = context.now.max(at);
            core.step(&context, Input::Expired { call }, &mut todo);
            continue;
        }
        match todo.remove(0) {
            Effect::Disk { call, tag, job } => {
                let result = own.carry_out(&job, None);
                core.step(&context, Input::DiskDone { call, tag, result }, &mut todo);
            }
            Effect::Send { call, tag, request, payload, .. } => {
                let result = answer(&mut theirs, request, payload);
                core.step(&context, Input::Answered { call, tag, result }, &mut todo);
            }
            Effect::AskMaster { request, .. } => return Some(request.kind),
            Effect::Reply { result, .. } => {
                assert!(result.is_ok(), "{result:?}");
                let holds_all = |disk: &Disk| disk.table() == own.table() && disk.table().len() == UNITS as usize;
                assert!(
                    holds_all(&theirs),
                    "answered, and the members have {:?} and {:?}",
                    own.table(),
                    theirs.table()
                );
                return None;
            }
            Effect::Expire { call, at } => timers.push((at, call)),
            Effect::Note(_) => {}
        }
    }
    panic!("it never ends")
}

/// Answers as a secondary with this disk.
fn answer(disk: &mut Disk, request: PeerRequest, payload: Bytes) -> Result<PeerAnswer, FsError> {
    let mut read = |first, count| match disk.carry_out(&DiskJob::Read { first, count }, None) {
        Ok(DiskAnswer::Units(states, content)) => (states, content),
        other => panic!("{other:?}"),
    };
    Ok(match request {
        PeerRequest::Activate { .. } => {
            let keys = disk.keys.clone();
            let Ok(DiskAnswer::Table(table)) = disk.carry_out(&DiskJob::Table, None) else { panic!("a table") };
            PeerAnswer::Table { present: true, seq: 2, table, keys }
        }
        PeerRequest::Fetch { first, count } => {
            let (states, payload) = read(first, count);
            let states: Option<Vec<_>> = states.into_iter().collect();
            PeerAnswer::Units { states: states.ok_or_else(|| FsError::Corrupt("a unit".into()))?, payload }
        }
        PeerRequest::Verify { first, count } => {
            let (states, _) = read(first, count);
            let bad = (first..).zip(states).filter(|(_, state)| state.is_none()).map(|(unit, _)| unit).collect();
            PeerAnswer::Verified { checked: count, bad }
        }
        PeerRequest::Push { first, states, keys, .. } => {
            let put = DiskJob::Put { first, states, payload, key: keys.first().copied(), needs_room: false };
            disk.carry_out(&put, None)?;
            PeerAnswer::Done
        }
        PeerRequest::Prepare(_) | PeerRequest::Barrier { .. } => PeerAnswer::Done,
    })
}

#[test]
fn a_primary_with_a_part_of_a_write_leaves_whether_it_knows_of_the_damage_or_not() {
    for is_noticed in [true, false] {
        let mut own = disk(&[OLDER, NEWER]);
        rot(&mut own, 2, is_noticed);
        let asked = asked_of_the_master(own, disk(&[OLDER]));
        assert!(matches!(asked, Some(ChangeKind::Leave)), "{is_noticed}: {asked:?}");
    }
}

#[test]
fn a_member_with_a_part_of_a_write_is_dropped_whether_it_knows_of_the_damage_or_not() {
    for is_noticed in [true, false] {
        let mut theirs = disk(&[OLDER, NEWER]);
        rot(&mut theirs, 2, is_noticed);
        let asked = asked_of_the_master(disk(&[OLDER]), theirs);
        assert!(matches!(asked, Some(ChangeKind::Drop { node: NodeId(2) })), "{is_noticed}: {asked:?}");
    }
}

#[test]
fn a_write_that_all_have_is_answered_as_before_and_its_damaged_units_are_mended() {
    for (own_rot, their_rot) in [(Some(1), None), (None, Some(2)), (Some(1), Some(2))] {
        let (mut own, mut theirs) = (disk(&[OLDER, NEWER]), disk(&[OLDER, NEWER]));
        own_rot.into_iter().for_each(|unit| rot(&mut own, unit, true));
        their_rot.into_iter().for_each(|unit| rot(&mut theirs, unit, true));
        assert!(asked_of_the_master(own, theirs).is_none());
    }
}
