//! Chunks: allocated, committed, cut, punched, dropped.

use dfs_proto::limits::{CHUNK_SIZE, FILE_BYTES_MAX};
use dfs_proto::{ChunkIndex, FsError, InodeId, Kind, NodeId, UnixNanos};

use super::world::World;
use crate::core::key::Key;
use crate::core::op::{self, CUT_PENDING};
use crate::core::outcome::Body;
use crate::core::record::{Record, ZeroPart};
use crate::core::request::{CommitWrite, Request};

fn file() -> (World, InodeId) {
    let mut world = World::new();
    let inode = world.make("/f", Kind::File, false, false).expect("made").id;
    (world, inode)
}

fn allocate(world: &mut World, inode: InodeId, first: u32, count: u32) -> Result<Vec<u64>, FsError> {
    match world.ask(Request::AllocateChunks { inode, first: ChunkIndex(first), count })? {
        Body::Chunks { chunks, .. } => {
            Ok(chunks.iter().map(|(_, chunk)| chunk.as_ref().map_or(0, |c| c.id.0)).collect())
        }
        other => panic!("unexpected {other:?}"),
    }
}

fn commit(world: &mut World, inode: InodeId, written: &[u32], end: u64) -> Result<Body, FsError> {
    let file = world.inode(inode)?;
    world.ask(Request::CommitWrite(CommitWrite {
        inode,
        end,
        written: written.iter().map(|index| ChunkIndex(*index)).collect(),
        leave_inline: file.is_inline,
        if_data_version: file.data_version,
        ..CommitWrite::default()
    }))
}

/// A file of `chunks` whole chunks.
fn chunked(chunks: u32) -> (World, InodeId) {
    let (mut world, inode) = file();
    allocate(&mut world, inode, 0, chunks).expect("allocated");
    let all: Vec<u32> = (0..chunks).collect();
    commit(&mut world, inode, &all, u64::from(chunks) * CHUNK_SIZE).expect("committed");
    world.check_invariants();
    (world, inode)
}

/// What the only cut record says: chunks to drop, and what to zero.
type Pending = (Option<(ChunkIndex, ChunkIndex)>, Option<ZeroPart>);

fn pending(world: &World) -> Option<Pending> {
    world.records().find_map(|(_, record)| match record {
        Record::Cut(cut) => Some((cut.drops, cut.zero)),
        _ => None,
    })
}

#[test]
fn an_allocation_makes_what_is_missing_and_returns_the_rest() {
    let (mut world, inode) = file();
    assert_eq!(allocate(&mut world, inode, 1, 2), Ok(vec![1, 2]));
    assert_eq!(allocate(&mut world, inode, 0, 4), Ok(vec![3, 1, 2, 4]));
    world.check_invariants();
    let attributes = world.inode(inode).expect("there");
    assert_eq!((attributes.chunks, attributes.size, attributes.is_inline), (4, 0, true));
    let last = (FILE_BYTES_MAX / CHUNK_SIZE - 1) as u32;
    assert_eq!(allocate(&mut world, inode, last, 1), Ok(vec![5]));
    assert_eq!(get(&mut world, inode, u32::MAX, 1), Ok(vec![5]));
    let directory = world.make("/d", Kind::Directory, false, false).expect("made").id;
    assert_eq!(allocate(&mut world, directory, 0, 1), Err(FsError::IsDirectory));
}

#[test]
fn a_commit_lengthens_the_file_and_marks_its_chunks_as_written() {
    let (mut world, inode) = file();
    allocate(&mut world, inode, 0, 2).expect("allocated");
    commit(&mut world, inode, &[0], 100).expect("committed");
    let attributes = world.inode(inode).expect("there");
    assert_eq!((attributes.size, attributes.is_inline, attributes.data_version), (100, false, 2));
    commit(&mut world, inode, &[0], 50).expect("committed");
    assert_eq!(world.inode(inode).expect("there").size, 100, "a commit never shortens");
    let written: Vec<bool> = world
        .records()
        .filter_map(|(_, record)| match record {
            Record::Chunk(chunk) => Some(chunk.is_written),
            _ => None,
        })
        .collect();
    assert_eq!(written, [true, false]);
    assert!(matches!(commit(&mut world, inode, &[7], 10), Err(FsError::Stale(_))), "no such chunk");
    assert_eq!(commit(&mut world, inode, &[], FILE_BYTES_MAX + 1), Err(FsError::FileTooBig));
    world.check_invariants();
}

#[test]
fn an_inline_file_is_replaced_only_from_what_the_writer_knew() {
    let (mut world, inode) = file();
    let put = |world: &mut World, version: u64| {
        world.ask(Request::CommitWrite(CommitWrite {
            inode,
            content: Some("x".into()),
            if_data_version: version,
            ..CommitWrite::default()
        }))
    };
    put(&mut world, 1).expect("committed");
    assert!(matches!(put(&mut world, 1), Err(FsError::Stale(_))));
    put(&mut world, 2).expect("committed");
    let chunked = CommitWrite { inode, end: 10, ..CommitWrite::default() };
    assert!(matches!(world.ask(Request::CommitWrite(chunked)), Err(FsError::Stale(_))), "it is inline");
    commit(&mut world, inode, &[], 1).expect("leaves inline");
    assert!(matches!(put(&mut world, 4), Err(FsError::Stale(_))), "it is not inline any more");
    world.check_invariants();
}

#[test]
fn a_truncate_drops_whole_chunks_and_leaves_a_cut_for_the_rest() {
    let (mut world, inode) = chunked(4);
    world.set("/f", |set| set.size = Some(CHUNK_SIZE + 10)).expect("cut");
    world.check_invariants();
    assert_eq!(world.chunk_indexes(inode), [0, 1]);
    let cut = world.cut.take().expect("an intent");
    let part = ZeroPart { index: ChunkIndex(1), from: 10, to: CHUNK_SIZE as u32 };
    assert_eq!(pending(&world), Some((None, Some(part))));

    let get = |world: &mut World, first| world.ask(Request::GetChunks { inode, first: ChunkIndex(first), count: 1 });
    assert_eq!(get(&mut world, 1), Err(CUT_PENDING));
    assert!(get(&mut world, 0).is_ok());
    assert_eq!(commit(&mut world, inode, &[0], CHUNK_SIZE + 11), Err(CUT_PENDING), "it would show old bytes");
    assert!(commit(&mut world, inode, &[0], CHUNK_SIZE).is_ok());
    assert_eq!(world.set("/f", |set| set.size = Some(3)), Err(CUT_PENDING));
    assert!(world.set("/f", |set| set.mode = Some(0o600)).is_ok());

    let stale = crate::core::care::CutIntent { number: cut.number + 1, ..cut.clone() };
    world.run(|view, _| op::cut_done(view, &stale)).expect("nothing to do");
    assert_eq!(get(&mut world, 1), Err(CUT_PENDING));
    world.run(|view, _| op::cut_done(view, &cut)).expect("done");
    world.check_invariants();
    assert!(get(&mut world, 1).is_ok());
    world.run(|view, _| op::cut_done(view, &cut)).expect("a repeat is nothing to do");
}

#[test]
fn a_truncate_at_a_chunk_boundary_or_in_a_hole_needs_no_cut() {
    let (mut world, inode) = chunked(2);
    world.set("/f", |set| set.size = Some(CHUNK_SIZE)).expect("cut");
    assert!(world.cut.is_none());
    assert_eq!(world.chunk_indexes(inode), [0]);
    world.set("/f", |set| set.size = Some(CHUNK_SIZE * 3)).expect("lengthened");
    world.set("/f", |set| set.size = Some(CHUNK_SIZE * 2 + 5)).expect("cut");
    assert!(world.cut.is_none(), "a hole is zeros already");
    world.set("/f", |set| set.size = Some(0)).expect("emptied");
    world.check_invariants();
    assert_eq!(world.chunk_indexes(inode), [0; 0]);
    assert!(world.inode(inode).expect("there").is_inline);
    assert_eq!((world.counters.chunks, world.counters.reclaim_pending), (0, 6));
}

#[test]
fn a_truncate_of_an_inline_file_drops_the_chunks_of_writes_that_were_never_committed() {
    let (mut world, inode) = file();
    allocate(&mut world, inode, 0, 2).expect("allocated");
    world.set("/f", |set| set.size = Some(20_000)).expect("lengthened");
    assert_eq!(world.chunk_indexes(inode), [0; 0]);
    world.check_invariants();
}

#[test]
fn sparse_files_may_add_up_to_more_than_64_bits_hold() {
    let mut world = World::new();
    for number in 0..65 {
        let path = format!("/f{number}");
        world.make(&path, Kind::File, false, false).expect("made");
        world.set(&path, |set| set.size = Some(FILE_BYTES_MAX)).expect("lengthened");
    }
    world.check_invariants();
    assert_eq!(world.counters.logical_bytes, 65 * u128::from(FILE_BYTES_MAX));
    world.set("/f0", |set| set.size = Some(0)).expect("emptied");
    world.check_invariants();
}

#[test]
fn punched_chunks_become_holes() {
    let (mut world, inode) = chunked(4);
    let punch = Request::PunchChunks { inode, first: ChunkIndex(1), count: 2, mtime: UnixNanos(0) };
    world.ask(punch).expect("punched");
    assert_eq!(world.chunk_indexes(inode), [0, 3]);
    let attributes = world.inode(inode).expect("there");
    assert_eq!((attributes.size, attributes.chunks, attributes.data_version), (CHUNK_SIZE * 4, 2, 3));
    world.check_invariants();
}

/// More chunks than two batches take.
const MANY: u32 = 2 * op::DROPPED_AT_ONCE as u32 + 100;

fn get(world: &mut World, inode: InodeId, first: u32, count: u32) -> Result<Vec<u64>, FsError> {
    match world.ask(Request::GetChunks { inode, first: ChunkIndex(first), count })? {
        Body::Chunks { chunks, .. } => {
            Ok(chunks.iter().map(|(_, chunk)| chunk.as_ref().map_or(0, |c| c.id.0)).collect())
        }
        other => panic!("unexpected {other:?}"),
    }
}

/// Carries on with the cut of `world` until nothing is left, and returns how many chunks each step dropped.
fn drop_the_rest(world: &mut World) -> Vec<u64> {
    let cut = world.cut.clone().expect("an intent");
    let mut steps = Vec::new();
    while pending(world).is_some_and(|(drops, _)| drops.is_some()) {
        let before = world.counters.chunks;
        world.run(|view, now| op::drop_more(view, now, &cut, op::DROPPED_AT_ONCE)).expect("dropped");
        world.check_invariants();
        steps.push(before - world.counters.chunks);
    }
    steps
}

#[test]
fn a_truncate_of_very_many_chunks_is_seen_at_once_and_done_in_bounded_steps() {
    let (mut world, inode) = chunked(MANY);
    let at_once = op::DROPPED_AT_ONCE as u64;
    let size = CHUNK_SIZE + 10;
    assert_eq!(world.set("/f", |set| set.size = Some(size)).expect("cut").size, size);
    world.check_invariants();
    assert_eq!(world.counters.chunks, u64::from(MANY) - at_once, "the first batch has its share and no more");
    assert_eq!(drop_the_rest(&mut world), [at_once, u64::from(MANY) - 2 - 2 * at_once]);
    assert_eq!(world.chunk_indexes(inode), [0, 1]);
    assert_eq!(get(&mut world, inode, 1, 1), Err(CUT_PENDING), "the rest of the last chunk is yet to be zeroed");
    let cut = world.cut.clone().expect("an intent");
    world.run(|view, _| op::cut_done(view, &cut)).expect("done");
    world.check_invariants();
    assert_eq!(get(&mut world, inode, 0, 3).expect("shown")[2], 0);
    assert_eq!(world.counters.reclaim_pending, 3 * (u64::from(MANY) - 2));
}

#[test]
fn a_chunk_that_counts_as_gone_is_never_seen_again() {
    let (mut world, inode) = chunked(MANY);
    world.set("/f", |set| set.size = Some(0)).expect("emptied");
    let (last, end) = (MANY - 1, u64::from(MANY) * CHUNK_SIZE);
    assert!(world.chunk_indexes(inode).contains(&last), "its record is there still");
    assert_eq!(get(&mut world, inode, last, 1), Err(CUT_PENDING));
    assert_eq!(allocate(&mut world, inode, last, 1), Err(CUT_PENDING));
    assert_eq!(world.set("/f", |set| set.size = Some(end)), Err(CUT_PENDING), "it may not grow back yet");
    assert!(matches!(commit(&mut world, inode, &[last], 0), Err(FsError::Stale(_))), "nor come back by a late commit");
    let cut = world.cut.clone().expect("an intent");
    world.run(|view, _| op::cut_done(view, &cut)).expect("nothing");
    assert_eq!(get(&mut world, inode, last, 1), Err(CUT_PENDING), "it is not done by saying so");
    drop_the_rest(&mut world);
    assert_eq!((pending(&world), world.counters.chunks), (None, 0));
    world.set("/f", |set| set.size = Some(end)).expect("grows");
    assert_eq!(get(&mut world, inode, last, 1), Ok(vec![0]), "a hole");
    world.check_invariants();
}

#[test]
fn small_content_can_be_written_while_the_old_chunks_go() {
    let (mut world, inode) = chunked(MANY);
    let version = world.set("/f", |set| set.size = Some(0)).expect("emptied").data_version;
    let content = CommitWrite { inode, content: Some("new".into()), if_data_version: version, ..Default::default() };
    world.ask(Request::CommitWrite(content)).expect("written");
    drop_the_rest(&mut world);
    assert_eq!(&world.content("/f").expect("read")[..], b"new");
}

#[test]
fn very_many_chunks_are_punched_in_bounded_steps() {
    let (mut world, inode) = chunked(MANY);
    let punch = Request::PunchChunks { inode, first: ChunkIndex(1), count: u32::MAX, mtime: UnixNanos(0) };
    world.ask(punch.clone()).expect("punched");
    world.check_invariants();
    assert_eq!(get(&mut world, inode, MANY - 1, 1), Err(CUT_PENDING));
    assert_eq!(get(&mut world, inode, 0, 1).expect("kept").len(), 1);
    assert_eq!(world.ask(punch), Err(CUT_PENDING));
    assert!(matches!(commit(&mut world, inode, &[MANY - 1], 1), Err(FsError::Stale(_))), "a hole it stays");
    drop_the_rest(&mut world);
    assert_eq!(world.chunk_indexes(inode), [0]);
    assert_eq!(world.inode(inode).expect("there").size, u64::from(MANY) * CHUNK_SIZE);
}

#[test]
fn a_file_that_is_removed_while_its_chunks_go_leaves_nothing() {
    let (mut world, inode) = chunked(MANY);
    world.set("/f", |set| set.size = Some(CHUNK_SIZE)).expect("cut");
    let (parent, name) = world.place("/f").expect("a place");
    world.ask(Request::Unlink { parent, name }).expect("unlinked");
    let cut = world.cut.clone().expect("an intent");
    while world.purgeable.pop_first().is_some() {
        world.run(|view, now| op::purge(view, now, inode, 200)).expect("purged");
        world.check_invariants();
        world.run(|view, now| op::drop_more(view, now, &cut, 100)).expect("dropped");
        world.check_invariants();
    }
    assert_eq!((world.counters.inodes, world.counters.chunks, pending(&world)), (1, 0, None));
}

#[test]
fn a_large_file_is_purged_in_steps() {
    let (mut world, inode) = chunked(100);
    let (parent, name) = world.place("/f").expect("a place");
    world.ask(Request::Unlink { parent, name }).expect("unlinked");
    world.check_invariants();
    assert_eq!((world.counters.orphans, world.counters.chunks), (1, 100));
    for left in [60, 20, 0] {
        assert_eq!(world.purgeable.pop_first(), Some(inode));
        world.run(|view, now| op::purge(view, now, inode, 40)).expect("purged");
        world.check_invariants();
        assert_eq!(world.counters.chunks, left);
    }
    assert_eq!((world.counters.orphans, world.counters.inodes, world.counters.reclaim_pending), (0, 1, 300));
    assert!(world.purgeable.is_empty());
}

#[test]
fn a_chunk_that_is_made_behind_the_purge_goes_too() {
    let (mut world, inode) = chunked(100);
    let (parent, name) = world.place("/f").expect("a place");
    world.ask(Request::Unlink { parent, name }).expect("unlinked");
    world.run(|view, now| op::purge(view, now, inode, 40)).expect("purged");
    allocate(&mut world, inode, 3, 1).expect("a mount that came late");
    for _ in 0..4 {
        world.run(|view, now| op::purge(view, now, inode, 40)).expect("purged");
        world.check_invariants();
    }
    assert_eq!((world.counters.orphans, world.counters.chunks), (0, 0));
}

#[test]
fn a_replica_is_forgotten_once_each_server_has_deleted_its_own() {
    let (mut world, inode) = chunked(1);
    world.set("/f", |set| set.size = Some(0)).expect("emptied");
    let due = world
        .records()
        .find_map(|(key, _)| match key {
            Key::Reclaim(due, chunk) => Some((*due, *chunk)),
            _ => None,
        })
        .expect("a reclaim record");
    assert_eq!(due.0, UnixNanos(world.now + 10), "not before the delay");
    for (node, left) in [(1, 2), (1, 2), (9, 2), (2, 1), (3, 0)] {
        world.run(|view, _| op::reclaim_done(view, NodeId(node), &[due])).expect("noted");
        assert_eq!(world.counters.reclaim_pending, left);
        world.check_invariants();
    }
    assert_eq!(world.chunk_indexes(inode), [0; 0]);
}
