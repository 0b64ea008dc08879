//! Replica sets by script: `command -> result : set`. A set reads `v3 2* 1 +4 -3`: version 3, primary 2 and 1 in sync, 4
//! is being filled, 3 may hold an older replica.

use std::cell::RefCell;
use std::sync::Arc;

use dfs_proto::replica_set::{ChangeKind, ChangeRequest, Home};
use dfs_proto::{BootSession, ChunkId, ChunkIndex, FsError, InodeId, NodeId, Seq, Version};

use super::world::World;
use crate::core::care::{NodeFacts, SetChange};
use crate::core::key::Key;
use crate::core::op::{
    self,
    replica_set::{self, AWAY_MS},
};
use crate::core::outcome::Outcome;
use crate::core::record::{Chunk, Node, Record};
use crate::core::standing::Standing;
use crate::core::view::Cluster;

const HOME: Home = Home { inode: InodeId::ROOT, index: ChunkIndex(0) };
const CHUNK: ChunkId = ChunkId(77);

/// Starts with nodes 1, 2 and 3 in sync, all of them online in run 1, runs the script, and compares each line's result.
#[track_caller]
fn check(script: &str) -> World {
    let mut world = World::new();
    put_chunk(&mut world);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (command, expected) = line.split_once("->").unwrap_or((line, ""));
        let words: Vec<&str> = command.split_whitespace().collect();
        let before = chunk(&world);
        let got = step(&mut world, &words);
        let after = chunk(&world);
        if !expected.is_empty() {
            assert_eq!(format!("{got} : {}", text(&after)), expected.trim(), "{line}");
        }
        assert!(after.in_sync.contains(&after.primary), "{line}");
        assert!(after.version >= before.version, "{line}");
        let set = |chunk: &Chunk| (chunk.primary, chunk.in_sync.clone(), chunk.syncing.clone());
        let is_changed = set(&before) != set(&after);
        assert!(!is_changed || before.version != after.version, "a set has a version: {line}");
        let is_believed = before.set_seq != after.set_seq;
        assert!(before.version == after.version || is_changed || is_believed, "for nothing: {line}");
        let all: Vec<NodeId> = after.holders().collect();
        assert!(all.iter().all(|node| all.iter().filter(|other| *other == node).count() == 1), "{line}: {all:?}");
    }
    world
}

fn put_chunk(world: &mut World) {
    let in_sync: Vec<NodeId> = (1..=3).map(NodeId).collect();
    world
        .run(|view, _| {
            let mut outcome = Outcome::new(view);
            let seq = outcome.seq();
            let chunk = Chunk {
                id: CHUNK,
                version: Version(1),
                primary: NodeId(1),
                in_sync: in_sync.clone(),
                syncing: vec![],
                stale: vec![],
                is_written: true,
                set_seq: seq,
                version_seq: seq,
                loss_version: Version(0),
                seq,
            };
            outcome.put(Key::Chunk(HOME.inode, HOME.index), Record::Chunk(Arc::new(chunk)));
            for node in &in_sync {
                let record = Node { boot: BootSession(1), seq, ..Node::default() };
                outcome.put(Key::Node(*node), Record::Node(Arc::new(record)));
            }
            Ok(outcome)
        })
        .expect("put");
}

fn chunk(world: &World) -> Arc<Chunk> {
    let mut found = world.records().filter_map(|(_, record)| match record {
        Record::Chunk(chunk) => Some(Arc::clone(chunk)),
        _ => None,
    });
    found.next().expect("the chunk")
}

fn text(chunk: &Chunk) -> String {
    let others = chunk.in_sync.iter().filter(|node| **node != chunk.primary).map(|node| format!(" {node}"));
    let syncing = chunk.syncing.iter().map(|node| format!(" +{node}"));
    let stale = chunk.stale.iter().map(|node| format!(" -{node}"));
    let rest: String = others.chain(syncing).chain(stale).collect();
    format!("v{} {}*{rest}", chunk.version, chunk.primary)
}

fn step(world: &mut World, words: &[&str]) -> String {
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    let node = |at: usize| NodeId(number(at) as u32);
    match words[0] {
        // node N WORDS: how it stands from now on.
        "node" => {
            let standing = standing(world, node(1), &words[2..]);
            world.servers.standings.insert(node(1), standing);
            String::new()
        }
        // 1.2@3 drop 4: node 1 in run 2, who thinks that the version is 3.
        sender if sender.contains('@') => {
            let (who, version) = sender.split_once('@').expect("a version");
            let (who, boot) = who.split_once('.').unwrap_or((who, "1"));
            let kind = match words[1] {
                "drop" => ChangeKind::Drop { node: node(2) },
                "finish" => ChangeKind::FinishSync { node: node(2) },
                "leave" => ChangeKind::Leave,
                "refresh" => ChangeKind::Refresh,
                other => panic!("{other}"),
            };
            change(
                world,
                &ChangeRequest {
                    node: NodeId(who.parse().expect("a node")),
                    boot: BootSession(boot.parse().expect("a run")),
                    chunk: CHUNK,
                    home: HOME,
                    version: Version(version.parse().expect("a version")),
                    kind,
                    reason: String::new(),
                },
            )
        }
        "usable" => {
            let ended = RefCell::new(None);
            let result = world.run(|view, _| {
                let (outcome, _) = replica_set::make_usable(view, HOME)?;
                *ended.borrow_mut() = outcome.ends_run;
                Ok(outcome)
            });
            result.expect("done");
            ended.into_inner().map_or("ok".into(), |node| format!("{node} ended"))
        }
        "add" => by_master(world, number(2), SetChange::Add(node(1))),
        "remove" => by_master(world, number(2), SetChange::Remove(node(1))),
        "note" => by_master(world, number(2), SetChange::NoteStale(node(1))),
        "forget" => by_master(world, number(2), SetChange::ForgetStale(node(1))),
        "force" => {
            let result =
                world.run(|view, _| replica_set::force_primary(view, HOME, node(1)).map(|(outcome, _)| outcome));
            said(result.map(|_| ()))
        }
        other => panic!("{other}"),
    }
}

fn standing(world: &World, node: NodeId, words: &[&str]) -> Standing {
    let mut standing = world.servers.standing(node);
    for word in words {
        match *word {
            "online" => (standing.is_online, standing.is_lease_over, standing.silent_ms) = (true, false, 0),
            "silent" => (standing.is_online, standing.silent_ms) = (false, 6_000),
            "over" => (standing.is_online, standing.is_lease_over, standing.silent_ms) = (false, true, 6_000),
            "away" => standing.silent_ms = AWAY_MS,
            "suspect" => standing.suspect_seq = Seq(world.seq().0 + 1),
            "former-runs" => standing.are_former_leases_over = false,
            "former-over" => standing.are_former_leases_over = true,
            run => standing.boot = BootSession(run.strip_prefix("run").expect("a word").parse().expect("a run")),
        }
    }
    standing
}

fn said(result: Result<(), FsError>) -> String {
    match result {
        Ok(()) => "ok".into(),
        Err(error) => {
            let text = format!("{error:?}");
            text.split('(').next().unwrap_or_default().into()
        }
    }
}

fn change(world: &mut World, request: &ChangeRequest) -> String {
    let changed = RefCell::new(None);
    let result = world.run(|view, _| {
        let (outcome, done) = replica_set::change(view, request)?;
        *changed.borrow_mut() = Some((done, outcome.durable_first));
        Ok(outcome)
    });
    result.expect("answered");
    let (changed, durable_first) = changed.into_inner().expect("answered");
    if let Some(granted) = &changed.granted {
        assert_eq!(granted.version, chunk(world).version, "the present set is granted");
        assert_eq!(durable_first, granted.version_seq, "once it is durable");
    }
    let granted = if changed.granted.is_some() { " granted" } else { "" };
    said(changed.result) + granted
}

fn by_master(world: &mut World, version: u64, change: SetChange) -> String {
    let done = |view: &crate::core::view::View<'_>, _| {
        replica_set::change_by_master(view, HOME, Version(version), change).map(|(outcome, _)| outcome)
    };
    said(world.run(done).map(|_| ()))
}

#[test]
fn the_primary_drops_a_member_and_a_lost_answer_is_given_again() {
    check(
        "
        1@1 drop 3      -> ok granted : v2 1* 2 -3
        1@1 drop 3      -> ok granted : v2 1* 2 -3
        1@1 drop 2      -> Stale granted : v2 1* 2 -3
        1@2 drop 2      -> ok granted : v3 1* -3 -2
        1@1 drop 3      -> Stale granted : v3 1* -3 -2
        1@3 refresh     -> ok granted : v3 1* -3 -2
        1@1 refresh     -> ok granted : v3 1* -3 -2
        ",
    );
}

#[test]
fn only_the_primary_in_its_present_run_is_heard() {
    check(
        "
        2@1 drop 3      -> Stale : v1 1* 2 3
        2@1 refresh     -> Stale : v1 1* 2 3
        2@1 finish 3    -> Stale : v1 1* 2 3
        1.9@1 drop 3    -> Stale : v1 1* 2 3
        node 1 run2
        1.1@1 drop 3    -> Stale : v1 1* 2 3
        1.1@1 leave     -> Stale : v1 1* 2 3
        1.2@1 drop 3    -> ok granted : v2 1* 2 -3
        node 1 run0
        1.0@2 drop 2    -> Stale : v2 1* 2 -3
        ",
    );
}

#[test]
fn the_last_member_in_sync_never_leaves() {
    check(
        "
        1@1 drop 1      -> Invalid granted : v1 1* 2 3
        3@1 leave       -> ok : v2 1* 2 -3
        2@1 leave       -> ok : v3 1* -3 -2
        1@3 leave       -> NoReplica granted : v3 1* -3 -2
        remove 1 3      -> Invalid : v3 1* -3 -2
        add 3 3         -> ok : v4 1* +3 -2
        1@4 leave       -> NoReplica granted : v4 1* +3 -2
        ",
    );
}

#[test]
fn a_primary_that_leaves_is_followed_by_who_can_serve() {
    check(
        "
        node 2 silent
        1@1 leave       -> ok : v2 3* 2 -1
        1@1 leave       -> ok : v2 3* 2 -1
        3@1 leave       -> Stale granted : v2 3* 2 -1
        3@2 leave       -> ok : v3 2* -1 -3
        ",
    );
}

#[test]
fn a_secondary_leaves_whatever_version_it_knows() {
    check(
        "
        1@1 drop 3      -> ok granted : v2 1* 2 -3
        2@1 leave       -> ok : v3 1* -3 -2
        ",
    );
}

#[test]
fn a_replica_enters_only_when_the_set_is_what_its_primary_thinks() {
    check(
        "
        1@1 drop 3      -> ok granted : v2 1* 2 -3
        add 3 2         -> ok : v3 1* 2 +3
        add 3 2         -> Stale : v3 1* 2 +3
        1@2 finish 3    -> Stale granted : v3 1* 2 +3
        1@3 finish 4    -> Stale granted : v3 1* 2 +3
        1@3 finish 3    -> ok granted : v4 1* 2 3
        1@3 finish 3    -> ok granted : v4 1* 2 3
        1@4 drop 3      -> ok granted : v5 1* 2 -3
        1@3 finish 3    -> Stale granted : v5 1* 2 -3
        add 4 5         -> ok : v6 1* 2 +4 -3
        1@6 drop 4      -> ok granted : v7 1* 2 -3 -4
        ",
    );
}

#[test]
fn the_caretaker_compares_and_sets_too() {
    check(
        "
        remove 2 9      -> Stale : v1 1* 2 3
        remove 2 1      -> ok : v2 1* 3 -2
        note 2 2        -> ok : v2 1* 3 -2
        note 3 2        -> ok : v2 1* 3 -2
        note 7 2        -> ok : v2 1* 3 -2 -7
        forget 2 2      -> ok : v2 1* 3 -7
        forget 2 2      -> ok : v2 1* 3 -7
        remove 1 2      -> Invalid : v2 1* 3 -7
        ",
    );
}

#[test]
fn a_primary_is_moved_only_when_its_lease_is_certainly_over() {
    check(
        "
        node 1 silent
        usable          -> ok : v1 1* 2 3
        node 2 silent
        node 1 over
        usable          -> 1 ended : v2 3* 2 -1
        node 1 online run2
        usable          -> ok : v2 3* 2 -1
        1.2@1 drop 2    -> Stale : v2 3* 2 -1
        ",
    );
}

#[test]
fn nobody_takes_over_who_is_not_in_sync() {
    check(
        "
        1@1 drop 2      -> ok granted : v2 1* 3 -2
        1@2 drop 3      -> ok granted : v3 1* -2 -3
        add 3 3         -> ok : v4 1* +3 -2
        node 1 over
        usable          -> ok : v4 1* +3 -2
        force 3         -> ok : v5 3* -2 -1
        force 4         -> Invalid : v5 3* -2 -1
        ",
    );
}

#[test]
fn force_waits_for_the_lease_of_the_present_primary() {
    check(
        "
        1@1 drop 3      -> ok granted : v2 1* 2 -3
        force 3         -> TryAgain : v2 1* 2 -3
        node 1 over
        force 3         -> ok : v3 3* -1 -2
        ",
    );
}

#[test]
fn suspects_leave_where_somebody_trusted_is_there() {
    check(
        "
        node 2 run2 suspect
        usable          -> ok : v2 1* 3 -2
        node 1 run2 suspect former-runs
        1.2@2 refresh   -> TryAgain : v2 1* 3 -2
        usable          -> ok : v2 1* 3 -2
        node 1 former-over
        usable          -> ok : v3 3* -2 -1
        ",
    );
}

#[test]
fn a_change_of_the_set_does_not_make_a_suspect_trusted() {
    check(
        "
        node 2 run2 suspect
        1@1 drop 3      -> ok granted : v2 1* 2 -3
        add 4 2         -> ok : v3 1* 2 +4 -3
        1@3 leave       -> ok : v4 2* +4 -3 -1
        2.2@4 refresh   -> TryAgain : v4 2* +4 -3 -1
        usable          -> ok : v5 2* +4 -3 -1
        2.2@5 refresh   -> ok granted : v5 2* +4 -3 -1
        ",
    );
}

#[test]
fn when_all_are_suspect_they_are_believed_once_all_are_there() {
    check(
        "
        node 1 run2 suspect
        node 2 run2 suspect
        node 3 over
        usable          -> ok : v1 1* 2 3
        node 3 online run2 suspect
        usable          -> ok : v2 1* 2 3
        1.2@2 refresh   -> ok granted : v2 1* 2 3
        ",
    );
}

#[test]
fn who_is_away_for_ten_minutes_is_not_waited_for() {
    check(
        "
        node 1 run2 suspect
        node 2 run2 suspect
        node 3 over suspect
        usable          -> ok : v1 1* 2 3
        node 3 away
        usable          -> ok : v2 1* 2 -3
        node 1 run3 suspect
        node 2 over
        usable          -> ok : v2 1* 2 -3
        node 2 away
        usable          -> ok : v3 1* -3 -2
        ",
    );
}

#[test]
fn a_loss_is_noted_where_suspects_are_believed_and_nowhere_else() {
    let loss = |script: &str| chunk(&check(script)).loss_version;
    // Somebody trusted is there, or may still come.
    let one = "
        node 2 run2 suspect
        usable          -> ok : v2 1* 3 -2
        1@2 drop 3      -> ok granted : v3 1* -2 -3
        add 2 3
        1@4 finish 2    -> ok granted : v5 1* 2 -3
        node 1 over
        usable          -> 1 ended : v6 2* -3 -1
        ";
    assert_eq!(loss(one), Version(0));
    let all = "
        node 1 run2 suspect
        node 2 run2 suspect
        node 3 run2 suspect
        ";
    assert_eq!(loss(all), Version(0), "not before they are believed");
    let believed = format!("{all} usable -> ok : v2 1* 2 3\n");
    assert_eq!(loss(&believed), Version(2));
    assert_eq!(loss(&format!("{believed} 1.2@2 drop 3 -> ok granted : v3 1* 2 -3\n")), Version(2), "it stays");
    let twice = format!("{believed} {} usable -> ok : v3 1* 2 3\n", all.replace("run2", "run3"));
    assert_eq!(loss(&twice), Version(3));
    let away = "
        node 1 run2 suspect
        node 2 run2 suspect
        node 3 over
        node 3 away
        usable          -> ok : v2 1* 2 -3
        ";
    assert_eq!(loss(away), Version(2));
}

#[test]
fn force_notes_a_loss_unless_the_replica_has_everything() {
    let loss = |script: &str| chunk(&check(script)).loss_version;
    assert_eq!(loss("force 1 -> ok : v2 1* -2 -3"), Version(0));
    let old = "
        1@1 drop 3      -> ok granted : v2 1* 2 -3
        node 1 over
        force 3         -> ok : v3 3* -1 -2
        ";
    assert_eq!(loss(old), Version(3));
    let suspect = "
        node 2 run2 suspect
        node 1 over
        node 3 over
        force 2         -> ok : v2 2* -1 -3
        ";
    assert_eq!(loss(suspect), Version(2));
}

#[test]
fn a_run_that_has_ended_gets_another_name() {
    let mut world = World::new();
    let mut register = |boot: u64, is_suspect: bool| {
        let node = RefCell::new(None);
        let result = world.run(|view, _| {
            let (outcome, registered) =
                op::register_node(view, NodeId(1), &NodeFacts::default(), BootSession(boot), is_suspect)?;
            assert_eq!(outcome.durable_first, registered.seq);
            *node.borrow_mut() = Some(registered);
            Ok(outcome)
        });
        result.expect("registered");
        node.into_inner().expect("registered")
    };
    let first = register(5, false);
    assert_eq!((first.boot, first.suspect_seq), (BootSession(5), Seq(0)));
    assert_eq!(register(5, true), first, "what it may have lost was settled when this run began");
    let second = register(9, true);
    assert_eq!((second.boot, second.suspect_seq), (BootSession(9), second.seq));
    assert!(second.suspect_seq > Seq(0));
    assert_eq!(register(5, false).boot, BootSession(6), "a word of an ended run that was long on its way");
    assert_eq!(register(9, false).boot, BootSession(10));
    assert_eq!(register(10, false).suspect_seq, second.suspect_seq, "until the sets are settled");
}

#[test]
fn a_run_whose_roles_were_given_to_others_has_ended_for_every_later_master() {
    let mut world = check(
        "
        node 1 over
        usable          -> 1 ended : v2 2* 3 -1
        ",
    );
    let registered = RefCell::new(BootSession(0));
    let result = world.run(|view, _| {
        let (outcome, node) = op::register_node(view, NodeId(1), &NodeFacts::default(), BootSession(1), false)?;
        *registered.borrow_mut() = node.boot;
        Ok(outcome)
    });
    result.expect("registered");
    assert_eq!(registered.into_inner(), BootSession(2));
}
