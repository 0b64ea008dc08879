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
