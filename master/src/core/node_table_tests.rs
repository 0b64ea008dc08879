//! Chunk servers by script, and what is placed on them.

use super::*;

const GIB: u64 = 1 << 30;
const ONE: NodeId = NodeId(1);
const BOOT: BootSession = BootSession(11);

fn facts(id: u8) -> NodeFacts {
    NodeFacts {
        server_id: [id; 16],
        data_address: format!("127.0.0.1:{}", 7100 + u16::from(id)),
        host: format!("host{id}"),
        ..Default::default()
    }
}

fn disks(free_gib: u64) -> Vec<Disk> {
    vec![Disk { capacity_bytes: 100 * GIB, free_bytes: free_gib * GIB, replicas: 5, ..Default::default() }]
}

fn table() -> NodeTable {
    let mut table = NodeTable::new(5_000, 90_000);
    table.register(ONE, facts(1), BOOT, disks(50), MonoMs(1_000));
    table
}

/// Runs a script against a table with lease 5 s and offline after 90 s, and compares each line's result.
#[track_caller]
fn check(script: &str) {
    let mut table = NodeTable::new(5_000, 90_000);
    table.restore([(NodeId(1), facts(1)), (NodeId(2), facts(2))]);
    for line in script.lines().filter(|line| !line.trim().is_empty()) {
        let (left, expected) = line.split_once("->").expect("has an arrow");
        let words: Vec<&str> = left.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let (now, id) = (MonoMs(number(0)), NodeId(number(1) as u32));
        let boot = BootSession(words.get(3).map_or(0, |_| number(3)));
        let result = match words[2] {
            "register" => {
                table.register(id, facts(number(1) as u8), boot, disks(50), now);
                "done"
            }
            "pulse" => table.pulse(id, boot, &[], Seq(0), now).map_or("unknown", |_| "known"),
            "report" => {
                if table.report(id, boot, disks(40), now) {
                    "known"
                } else {
                    "unknown"
                }
            }
            "state" => table.state(id, now).word(),
            other => panic!("{other}"),
        };
        assert_eq!(result, expected.trim(), "{line}");
    }
}

#[test]
fn a_node_on_record_is_offline_until_it_registers() {
    check(
        "
        0       1 state        -> offline
        0       1 pulse 11     -> unknown
        0       1 report 11    -> unknown
        10      1 register 11  -> done
        10      1 state        -> online
        10      2 state        -> offline
        ",
    );
}

#[test]
fn a_lease_runs_from_the_last_pulse() {
    check(
        "
        1000    1 register 11  -> done
        5999    1 state        -> online
        6000    1 state        -> lease_expired
        7000    1 pulse 11     -> known
        11999   1 state        -> online
        12000   1 state        -> lease_expired
        ",
    );
}

#[test]
fn a_report_is_a_sign_of_life_but_no_lease() {
    check(
        "
        0       1 register 11  -> done
        50000   1 report 11    -> known
        50000   1 state        -> lease_expired
        139999  1 state        -> lease_expired
        140000  1 state        -> offline
        140000  1 pulse 11     -> known
        140000  1 state        -> online
        ",
    );
}

#[test]
fn only_the_last_boot_session_holds_the_id() {
    check(
        "
        0       1 register 11  -> done
        1       1 register 12  -> done
        2       1 pulse 11     -> unknown
        2       1 report 11    -> unknown
        2       1 pulse 12     -> known
        2       3 pulse 12     -> unknown
        ",
    );
}

#[test]
fn deletions_are_repeated_until_reported_as_done() {
    let mut table = table();
    table.order_deletions(ONE, [ChunkId(7), ChunkId(5), ChunkId(7)]);
    assert_eq!(table.node(ONE).unwrap().pending_deletions(), 2);
    table.order_deletions(NodeId(9), [ChunkId(7)]);
    assert!(table.node(NodeId(9)).is_none(), "nobody is node 9");
    let pulse = |table: &mut NodeTable, deleted: &[u64]| {
        let deleted: Vec<ChunkId> = deleted.iter().copied().map(ChunkId).collect();
        let to_delete = table.pulse(ONE, BOOT, &deleted, Seq(0), MonoMs(2_000)).expect("known").delete;
        to_delete.into_iter().map(|chunk| chunk.0).collect::<Vec<_>>()
    };
    assert_eq!(pulse(&mut table, &[]), [5, 7]);
    assert_eq!(pulse(&mut table, &[5, 99]), [7]);
    assert_eq!(pulse(&mut table, &[7]), Vec::<u64>::new());
    assert_eq!(table.take_deleted(), [(ONE, vec![ChunkId(5), ChunkId(7), ChunkId(99)])]);
    assert_eq!(table.take_deleted(), []);
}

#[test]
fn deletions_outlive_a_restart_of_the_node() {
    let mut table = table();
    table.order_deletions(ONE, [ChunkId(7)]);
    table.register(ONE, facts(1), BootSession(12), disks(50), MonoMs(3_000));
    let to_delete = table.pulse(ONE, BootSession(12), &[], Seq(0), MonoMs(3_000)).unwrap().delete;
    assert_eq!(to_delete, [ChunkId(7)]);
}

#[test]
fn the_delete_queue_and_one_answer_are_bounded() {
    let mut table = table();
    let many = DELETE_QUEUE_MAX as u64 + 5;
    let pending = |table: &NodeTable| table.node(ONE).unwrap().pending_deletions();
    table.order_deletions(ONE, (1..=many).map(ChunkId));
    assert_eq!(pending(&table), DELETE_QUEUE_MAX);
    table.order_deletions(ONE, [ChunkId(1)]);
    assert_eq!(pending(&table), DELETE_QUEUE_MAX);
    let to_delete = table.pulse(ONE, BOOT, &[], Seq(0), MonoMs(2_000)).unwrap().delete;
    assert_eq!(to_delete.len(), DELETE_ORDERS_MAX);
    assert_eq!(to_delete[0], ChunkId(1), "one that is on it already stays");
}

#[test]
fn failed_disks_count_for_nothing() {
    let mut table = table();
    let mut two = disks(50);
    two.push(Disk { failed: true, ..disks(90)[0].clone() });
    assert!(table.report(ONE, BOOT, two, MonoMs(2_000)));
    let node = table.node(ONE).unwrap();
    assert_eq!((node.capacity_bytes(), node.free_bytes(), node.replicas()), (100 * GIB, 50 * GIB, 5));
    let there = Space { total_bytes: 100 * GIB, free_bytes: 50 * GIB };
    assert_eq!(table.space(MonoMs(2_000)), there);
    assert_eq!(table.space(MonoMs(92_000)), Space::default(), "offline nodes hold nothing that can be had");
}

#[test]
fn placement_uses_nodes_with_a_lease_only() {
    let mut table = NodeTable::new(5_000, 90_000);
    for id in 1..=4 {
        let now = MonoMs(if id == 4 { 0 } else { 1_000 });
        table.register(NodeId(id), facts(id as u8), BOOT, disks(50), now);
    }
    for seed in 0..100 {
        let mut nodes = table.place(seed, 3, MonoMs(5_000)).unwrap();
        nodes.sort_unstable();
        assert_eq!(nodes, [NodeId(1), NodeId(2), NodeId(3)], "node 4's lease ended at 5000");
    }
    assert!(matches!(table.place(0, 3, MonoMs(6_000)), Err(FsError::NoReplica(_))));
    for id in 1..=4 {
        assert!(table.report(NodeId(id), BOOT, disks(0), MonoMs(5_500)));
    }
    assert_eq!(table.place(0, 3, MonoMs(5_500)), Err(FsError::NoSpace));
}

#[test]
fn one_replica_needs_one_node() {
    let table = table();
    assert_eq!(table.place(0, 1, MonoMs(1_000)), Ok(vec![ONE]));
    assert!(matches!(table.place(0, 2, MonoMs(1_000)), Err(FsError::NoReplica(_))));
}

#[test]
fn only_who_registered_in_this_run_can_be_named_in_a_grant() {
    let mut table = table();
    table.restore([(NodeId(2), facts(2)), (ONE, facts(9))]);
    // What is on record does not overwrite one that has registered.
    let location = table.location(ONE, MonoMs(1_000)).unwrap();
    assert_eq!((location.address.as_str(), location.boot), ("127.0.0.1:7101", BOOT));
    assert!(location.lease_valid && location.online);
    let silent = table.location(NodeId(2), MonoMs(1_000)).unwrap();
    assert_eq!((silent.boot, silent.lease_valid, silent.online), (BootSession(0), false, false));
    assert_eq!(table.location(NodeId(3), MonoMs(1_000)), None);
}

/// A table of a master that began at 1000: node 1 registered then, node 2 is on record.
fn begun() -> NodeTable {
    let mut table = NodeTable::new(5_000, 90_000);
    table.begin(MonoMs(1_000));
    table.restore([(ONE, facts(1)), (NodeId(2), facts(2))]);
    table.register(ONE, facts(1), BOOT, disks(50), MonoMs(1_000));
    table
}

#[test]
fn a_lease_is_certainly_over_a_guard_after_its_end() {
    let mut table = begun();
    table.pulse(ONE, BOOT, &[], Seq(0), MonoMs(3_000)).expect("known");
    let over = |table: &NodeTable, node, at| table.lease_certainly_over(node, MonoMs(at));
    assert_eq!(table.state(ONE, MonoMs(8_000)), NodeState::LeaseExpired);
    assert!(!over(&table, ONE, 8_149) && over(&table, ONE, 8_150), "1 % and 100 ms");
    assert!(!over(&table, NodeId(2), 6_149) && over(&table, NodeId(2), 6_150), "a lease that an earlier run gave");
    assert!(!over(&table, NodeId(9), 6_149) && over(&table, NodeId(9), 6_150), "nor is it known of whom");
}

#[test]
fn the_lease_of_a_run_before_the_present_one_counts() {
    let mut table = begun();
    table.pulse(ONE, BOOT, &[], Seq(0), MonoMs(9_000)).expect("known");
    table.register(ONE, facts(1), BootSession(12), disks(50), MonoMs(9_100));
    let former = |table: &NodeTable, at| table.standing(ONE, MonoMs(at)).are_former_leases_over;
    assert!(!former(&table, 14_149) && former(&table, 14_150));
    table.register(ONE, facts(1), BootSession(12), disks(50), MonoMs(20_000));
    assert!(former(&table, 20_000), "the same run again");
}

#[test]
fn a_run_that_has_ended_is_not_believed_again() {
    let mut table = begun();
    assert!(!table.end_run(ONE, MonoMs(6_149)));
    assert!(table.pulse(ONE, BOOT, &[], Seq(0), MonoMs(6_149)).is_some(), "it turned up just in time");
    assert!(table.end_run(ONE, MonoMs(12_000)));
    assert!(table.pulse(ONE, BOOT, &[], Seq(0), MonoMs(12_000)).is_none());
    assert!(!table.report(ONE, BOOT, disks(50), MonoMs(12_000)));
    let standing = table.standing(ONE, MonoMs(12_000));
    assert_eq!((standing.boot, standing.is_online, standing.is_lease_over), (BootSession(0), false, true));
    table.register(ONE, facts(1), BootSession(12), disks(50), MonoMs(12_000));
    let standing = table.standing(ONE, MonoMs(12_000));
    assert_eq!((standing.boot, standing.is_online, standing.is_lease_over), (BootSession(12), true, false));
}

#[test]
fn a_fence_is_complete_when_every_server_has_it_or_no_lease() {
    let mut table = begun();
    let session = SessionId(7);
    assert!(table.is_fence_complete(session, MonoMs(7_000)), "it is not fenced");
    table.register(NodeId(2), facts(2), BootSession(22), disks(50), MonoMs(7_000));
    table.pulse(ONE, BOOT, &[], Seq(0), MonoMs(7_000)).expect("known");
    table.fences_mut().add(session, Seq(40), MonoMs(7_000));
    let answer = table.pulse(ONE, BOOT, &[], Seq(0), MonoMs(8_000)).expect("known");
    assert_eq!((answer.fenced, answer.fence_seq), (vec![session], Seq(40)));
    assert!(!table.is_fence_complete(session, MonoMs(8_000)));
    table.pulse(ONE, BOOT, &[], Seq(40), MonoMs(9_000)).expect("known");
    assert!(!table.is_fence_complete(session, MonoMs(9_000)), "node 2 may not know");
    assert!(table.is_fence_complete(session, MonoMs(12_150)), "it holds no lease");
    table.register(ONE, facts(1), BootSession(12), disks(50), MonoMs(12_200));
    assert!(!table.is_fence_complete(session, MonoMs(12_200)), "a new run has yet to be told");
}

#[test]
fn nothing_is_placed_on_a_server_that_is_to_be_emptied() {
    let mut table = begun();
    let record = record::Node { is_draining: true, suspect_seq: Seq(3), ..record::Node::default() };
    table.note_record(ONE, &record);
    assert!(matches!(table.place(0, 1, MonoMs(1_000)), Err(FsError::NoReplica(_))));
    assert_eq!(table.standing(ONE, MonoMs(1_000)).suspect_seq, Seq(3));
    table.register(ONE, facts(1), BootSession(12), disks(50), MonoMs(2_000));
    assert!(table.node(ONE).unwrap().is_draining, "also after its restart");
    table.remove(ONE);
    assert!(table.node(ONE).is_none());
}
