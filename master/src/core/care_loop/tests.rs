//! The care for replicas on a cluster of plain data, second by second.

use bytes::Bytes;
use dfs_proto::replica_set::{OrderOutcome, OrderReport};
use dfs_proto::{BootSession, ChunkId, ChunkIndex, InodeId, Seq, Version};

use super::super::care::ChunkFacts;
use super::super::fleet::script::{chunk, fleet};
use super::super::inventory::Held;
use super::super::orders::Orders;
use super::*;

/// Records, orders, and servers that carry orders out at once.
struct Cluster {
    records: BTreeMap<Home, ChunkFacts>,
    orders: Orders,
    care: Care,
    inbox: Inbox,
    servers: String,
    now: MonoMs,
    reclaimed: Vec<(NodeId, ChunkId)>,
    /// What servers fail with instead of carrying out fills of these.
    failing: BTreeMap<NodeId, FsError>,
    done: Vec<(NodeId, ChunkId, OrderKind)>,
    seq: u64,
    /// Up to where the log is on stable media.
    durable: u64,
}

struct Lent<'a> {
    records: &'a mut BTreeMap<Home, ChunkFacts>,
    orders: &'a mut Orders,
    reclaimed: &'a mut Vec<(NodeId, ChunkId)>,
    servers: Fleet,
    seq: &'a mut u64,
    durable: u64,
}

impl Lent<'_> {
    fn put(&mut self, facts: ChunkFacts) -> ChunkFacts {
        *self.seq += 1;
        let facts =
            ChunkFacts { version: Version(facts.version.0 + 1), set_seq: Seq(*self.seq), seq: Seq(*self.seq), ..facts };
        self.records.insert(facts.home(), facts.clone());
        facts
    }
}

impl World for Lent<'_> {
    fn chunk_page(&mut self, after: Option<(InodeId, ChunkIndex)>, limit: usize) -> Result<Vec<ChunkFacts>, FsError> {
        let is_after = |home: &Home| after.is_none_or(|(inode, index)| *home > Home { inode, index });
        Ok(self.records.values().filter(|facts| is_after(&facts.home())).take(limit).cloned().collect())
    }

    fn chunks(&mut self, homes: &[Home]) -> Result<Vec<Option<ChunkFacts>>, FsError> {
        Ok(homes.iter().map(|home| self.records.get(home).cloned()).collect())
    }

    fn change(&mut self, chunk: &ChunkFacts, change: SetChange) -> Result<Option<ChunkFacts>, FsError> {
        let mut facts = self
            .records
            .get(&chunk.home())
            .filter(|facts| facts.version == chunk.version)
            .cloned()
            .ok_or(FsError::Stale("changed"))?;
        match change {
            SetChange::Add(node) => {
                facts.stale.retain(|stale| *stale != node);
                facts.syncing.push(node);
            }
            SetChange::Remove(node) => {
                assert_ne!(node, facts.primary);
                facts.in_sync.retain(|member| *member != node);
                facts.syncing.retain(|member| *member != node);
                facts.stale.push(node);
            }
            SetChange::NoteStale(node) => facts.stale.push(node),
            SetChange::ForgetStale(node) => facts.stale.retain(|stale| *stale != node),
        }
        if matches!(change, SetChange::Add(_) | SetChange::Remove(_)) {
            return Ok(Some(self.put(facts)));
        }
        self.records.insert(facts.home(), facts.clone());
        Ok(Some(facts))
    }

    fn make_usable(&mut self, home: Home) -> Result<Option<ChunkFacts>, FsError> {
        let Some(mut facts) = self.records.get(&home).cloned() else { return Ok(None) };
        let lost = facts.primary;
        let next = facts.in_sync.iter().copied().find(|node| self.servers.is_online(*node));
        if self.servers.is_online(lost) || next.is_none() {
            return Ok(Some(facts));
        }
        facts.in_sync.retain(|node| *node != lost);
        facts.stale.push(lost);
        facts.primary = next.unwrap();
        Ok(Some(self.put(facts)))
    }

    fn grant(&mut self, _chunk: &ChunkFacts) -> Result<Option<Bytes>, FsError> {
        Ok(Some(Bytes::from_static(b"grant")))
    }

    fn reclaim(&mut self, node: NodeId, chunk: ChunkId) -> Result<(), FsError> {
        self.reclaimed.push((node, chunk));
        Ok(())
    }

    fn may_delete(&mut self) -> bool {
        true
    }

    fn seq(&mut self) -> Seq {
        Seq(*self.seq)
    }

    fn durable(&mut self) -> Seq {
        Seq(self.durable)
    }

    fn orders<T>(&mut self, work: impl FnOnce(&mut Orders) -> T) -> T {
        work(self.orders)
    }
}

impl Cluster {
    fn new(servers: &str, chunks: &[&str]) -> Self {
        let settings = CareSettings { scrub_period_ms: 0, ..CareSettings::default() };
        let records = chunks.iter().map(|text| (chunk(text).home(), chunk(text))).collect();
        Self {
            records,
            orders: Orders::new(0),
            care: Care::new(settings),
            inbox: Inbox::default(),
            servers: servers.into(),
            now: MonoMs(1_000),
            reclaimed: Vec::new(),
            failing: BTreeMap::new(),
            done: Vec::new(),
            seq: 200,
            durable: u64::MAX,
        }
    }

    /// One second: the care's tick, then the servers carry out what they were told.
    fn second(&mut self) {
        let Self { records, orders, care, inbox, servers, now, reclaimed, seq, durable, .. } = self;
        let nodes: BTreeMap<NodeId, FleetNode> = fleet(servers).iter().map(|(id, node)| (id, node.clone())).collect();
        let mut world = Lent { records, orders, reclaimed, servers: fleet(servers), seq, durable: *durable };
        care.tick(*now, nodes, std::mem::take(inbox), &mut world).expect("the records can be read");
        self.now = self.now.plus(1_000);
        let servers = fleet(&self.servers);
        for (node, found) in servers.iter().filter(|(_, found)| found.state == NodeState::Online) {
            for order in self.orders.of_node(node, found.boot) {
                let result = self.carry_out(node, order.chunk, order.kind);
                self.done.push((node, order.chunk, order.kind));
                self.orders.report(node, found.boot, vec![OrderOutcome { id: order.id, result }]);
            }
        }
    }

    fn carry_out(&mut self, node: NodeId, chunk: ChunkId, kind: OrderKind) -> Result<OrderReport, FsError> {
        let facts = self.records.values_mut().find(|facts| facts.chunk == chunk).ok_or(FsError::Stale("gone"))?;
        match kind {
            OrderKind::Fill { node: target } => {
                if let Some(error) = self.failing.get(&target) {
                    return Err(error.clone());
                }
                assert_eq!(node, facts.primary);
                facts.syncing.retain(|member| *member != target);
                facts.in_sync.push(target);
                facts.version.0 += 1;
            }
            OrderKind::HandOver => {
                assert_eq!(node, facts.primary);
                facts.in_sync.retain(|member| *member != node);
                facts.stale.push(node);
                facts.primary = facts.in_sync[0];
                facts.version.0 += 1;
            }
            OrderKind::Scrub { .. } | OrderKind::Discard { .. } => {}
        }
        Ok(OrderReport::default())
    }

    fn set(&self, id: u64) -> String {
        let facts = self.records.values().find(|facts| facts.chunk == ChunkId(id)).expect("there");
        let mut in_sync = facts.in_sync.clone();
        in_sync.sort_unstable();
        let star = |node: &NodeId| format!("{node}{}", if *node == facts.primary { "*" } else { "" });
        let words = in_sync.iter().map(star);
        let words = words.chain(facts.syncing.iter().map(|node| format!("+{node}")));
        words.chain(facts.stale.iter().map(|node| format!("-{node}"))).collect::<Vec<_>>().join(" ")
    }

    fn seconds(&mut self, count: u32) {
        (0..count).for_each(|_| self.second());
    }
}

const ALL_THERE: &str = "1 a - 5%\n2 b - 5%\n3 c - 5%\n4 d - 5%";

#[test]
fn a_lost_replica_is_remade_within_seconds_of_the_verdict_and_the_old_one_is_discarded_when_it_is_back() {
    let mut cluster = Cluster::new("1 a - 5%\n2 b - 5%\n3 c - 5% expired\n4 d - 5%", &["9: 1* 2 3"]);
    cluster.seconds(20);
    assert_eq!(cluster.set(9), "1* 2 3", "it may come back");
    assert_eq!(cluster.care.counts().under_replicated, 1);
    cluster.servers = "1 a - 5%\n2 b - 5%\n3 c - 5% offline\n4 d - 5%".into();
    cluster.seconds(2);
    assert_eq!(cluster.set(9), "1* 2 4 -3");
    cluster.seconds(30);
    assert_eq!((cluster.care.repair_queue(), cluster.care.counts().under_replicated), (0, 0));
    assert_eq!(cluster.set(9), "1* 2 4 -3", "who is away cannot be told to discard");
    cluster.servers = ALL_THERE.into();
    cluster.seconds(3);
    assert_eq!(cluster.set(9), "1* 2 4");
    assert!(cluster.done.iter().any(|(node, _, kind)| *node == NodeId(3) && matches!(kind, OrderKind::Discard { .. })));
}

#[test]
fn what_left_a_set_is_not_discarded_before_that_is_on_stable_media() {
    let mut cluster = Cluster::new(ALL_THERE, &["9: 1* 2 3 4"]);
    cluster.durable = 200;
    cluster.seconds(20);
    assert!(cluster.set(9).contains('-'), "one too many: {}", cluster.set(9));
    assert!(!cluster.done.iter().any(|(_, _, kind)| matches!(kind, OrderKind::Discard { .. })), "{:?}", cluster.done);
    cluster.durable = u64::MAX;
    cluster.seconds(3);
    assert!(cluster.done.iter().any(|(_, _, kind)| matches!(kind, OrderKind::Discard { .. })));
    assert!(!cluster.set(9).contains('-'));
}

#[test]
fn a_dropped_member_that_is_back_is_filled_again_at_once() {
    let mut cluster = Cluster::new(ALL_THERE, &["9: 1* 2 3", "8: 1* 2 3"]);
    cluster.seconds(2);
    let home = chunk("9: 1*").home();
    let facts = chunk("9: 1* 2 -3");
    cluster.records.insert(home, ChunkFacts { version: Version(6), ..facts });
    cluster.inbox.changed(home);
    cluster.second();
    assert_eq!(cluster.set(9), "1* 2 3");
}

#[test]
fn a_lost_primary_is_replaced_before_its_chunk_is_filled() {
    let mut cluster = Cluster::new("1 a - 5% offline\n2 b - 5%\n3 c - 5%\n4 d - 5%", &["9: 1* 2 3", "8: 1*"]);
    cluster.seconds(3);
    assert_eq!(cluster.set(9), "2* 3 4 -1");
    assert_eq!(cluster.set(8), "1*", "nobody else has it");
    assert_eq!(cluster.care.counts().unavailable, 1);
}

#[test]
fn a_draining_server_is_emptied_and_its_primaries_hand_over() {
    let mut cluster = Cluster::new("1 a - 5% draining\n2 b - 5%\n3 c - 5%\n4 d - 5%", &["9: 1* 2 3", "8: 2* 1 4"]);
    cluster.seconds(6);
    assert_eq!((cluster.set(9).as_str(), cluster.set(8).as_str()), ("2* 3 4", "2* 3 4"));
}

#[test]
fn a_server_that_cannot_take_a_replica_is_given_up_for_another() {
    let mut cluster = Cluster::new("1 a - 5%\n2 b - 5%\n3 c - 5% offline\n4 d - 5%\n5 e - 5%", &["9: 1* 2 3"]);
    cluster.failing = [(NodeId(4), FsError::NoSpace), (NodeId(5), FsError::NoSpace)].into();
    cluster.seconds(10);
    assert_eq!(cluster.care.counts().under_replicated, 1);
    cluster.failing.clear();
    // The one that failed is asked again when some time has passed.
    cluster.seconds(400);
    assert_eq!((cluster.care.repair_queue(), cluster.care.counts().under_replicated), (0, 0));
}

#[test]
fn a_thousand_chunks_are_remade_within_the_limits_and_none_is_forgotten() {
    let chunks: Vec<String> = (1..=1_000).map(|id| format!("{id}: {}* {} 3", 1 + id % 2, 2 - id % 2)).collect();
    let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
    let mut cluster = Cluster::new("1 a - 5%\n2 b - 5%\n3 c - 5% offline\n4 d - 5%\n5 e - 5%", &chunks);
    let mut seconds = 0;
    while cluster.care.repair_queue() > 0 || seconds < 2 {
        cluster.second();
        seconds += 1;
        let syncing = cluster.records.values().filter(|facts| !facts.syncing.is_empty()).count();
        assert!(syncing <= 128 && seconds < 200, "{syncing} after {seconds} s");
    }
    cluster.seconds(15);
    assert_eq!(cluster.care.counts().under_replicated, 0);
}

#[test]
fn every_chunk_is_scrubbed_once_in_a_period() {
    let chunks: Vec<String> = (1..=50).map(|id| format!("{id}: 1* 2 3")).collect();
    let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
    let mut cluster = Cluster::new(ALL_THERE, &chunks);
    cluster.care = Care::new(CareSettings { scrub_period_ms: 100_000, census_period_ms: 2_000, ..Default::default() });
    cluster.seconds(115);
    let mut scrubbed: Vec<u64> = cluster.done.iter().map(|(_, chunk, _)| chunk.0).collect();
    assert!(scrubbed.len() < 65, "{}", scrubbed.len());
    scrubbed.sort_unstable();
    scrubbed.dedup();
    assert_eq!(scrubbed.len(), 50);
}

#[test]
fn a_damaged_replica_is_scrubbed_soon() {
    let mut cluster = Cluster::new(ALL_THERE, &["9: 1* 2 3"]);
    cluster.inbox.damaged(chunk("9: 1*").home());
    cluster.second();
    assert_eq!(cluster.done, [(NodeId(1), ChunkId(9), OrderKind::Scrub { deep: true })]);
}

#[test]
fn what_servers_hold_is_compared_with_the_records() {
    let mut cluster = Cluster::new(ALL_THERE, &["7: 1* 2 3", "8: 1* 2 3", "9: 1* 2 3"]);
    let held = |id: u64, version| Held {
        chunk: ChunkId(id),
        home: chunk(&format!("{id}: 1*")).home(),
        version: Version(version),
    };
    for second in 0..130 {
        if second % 10 == 0 {
            for node in [3, 4] {
                // Node 3 has lost chunk 7; node 4 has an old replica of 8, one of a chunk that is gone, one that is newer.
                let list =
                    if node == 3 { vec![held(8, 5), held(9, 5)] } else { vec![held(8, 3), held(9, 99), held(40, 1)] };
                let page =
                    Page { node: NodeId(node), boot: BootSession(7), held: list, after: ChunkId(0), is_end: true };
                assert!(cluster.inbox.listed(page));
            }
        }
        cluster.second();
        if second == 5 {
            assert_eq!(cluster.reclaimed, [], "not on one look");
            assert_eq!(cluster.set(7), "1* 2 3", "the record may be newer than the list");
        }
    }
    assert_eq!(cluster.reclaimed[0], (NodeId(4), ChunkId(40)));
    assert!(cluster.care.inventory().frozen().eq([(NodeId(4), ChunkId(9))]));
    assert!(cluster.done.contains(&(NodeId(4), ChunkId(8), OrderKind::Discard { below: Version(5) })));
    let events = cluster.care.take_events();
    assert!(events.iter().any(|event| matches!(event, Event::Lost { node: NodeId(3), chunk: ChunkId(7), .. })));
    assert_eq!(cluster.set(9), "1* 2 3");
}

#[test]
fn a_full_cluster_is_not_asked_to_take_more() {
    let mut cluster = Cluster::new("1 a - 5%\n2 b - 5%\n3 c - 5% offline\n4 d - 99% full", &["9: 1* 2 3"]);
    cluster.seconds(20);
    assert_eq!((cluster.set(9).as_str(), cluster.done.len()), ("1* 2 3", 0));
}
