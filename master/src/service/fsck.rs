//! `dfs fsck`: the whole file system checked while it is in use.
//!
//! ```text
//! C5  names and inodes fit together, totals are right     all records as of one moment (core::check)
//! R7  each chunk has the replicas that its file wants     records and servers as they are now
//! R6  servers hold what they have in sync, and nothing    their last lists
//!     that nobody knows
//! R5  all replicas of a chunk are equal                   a scrub by each primary, ordered and waited for
//! ```
//!
//! A finding about what changes while it is looked at is looked at again before it is told. With `repair` numbers are
//! corrected and lost replicas remade; scrubs repair in any case. Ends by itself when nobody listens any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dfs_proto::replica_set::{Home, OrderKind, OrderReport};
use dfs_proto::wire::pb;
use dfs_proto::{ChunkIndex, FsError, InodeId, NodeId};
use tokio::sync::mpsc;
use tonic::Status;

use super::Shared;
use super::care_world::ServiceWorld;
use crate::core::care::ChunkFacts;
use crate::core::care_loop::World;
use crate::core::check::Check;
use crate::core::fleet::{Fleet, FleetNode, Redundancy};
use crate::core::key::{Key, Range};
use crate::core::node_table::NodeState;
use crate::core::record::Record;
use crate::core::scrub_plan;

/// Records read at once.
const PAGE: usize = 512;
/// Scrubs under way at once.
const SCRUBS_MAX: usize = 32;
/// Tries for one chunk whose set changes while it is compared.
const TRIES: u32 = 5;
/// How often waiting looks again.
const PAUSE: Duration = Duration::from_millis(100);
/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// Repair that gets nowhere for so long is given up.
const STUCK: Duration = Duration::from_secs(60);
/// A comparison that takes longer is given up.
const COMPARISON_MAX: Duration = Duration::from_secs(120);
/// One that reads all the data takes longer: the servers have a budget for that.
const DEEP_MAX: Duration = Duration::from_secs(1_800);
const NO_ANSWER: FsError = FsError::TimedOut("the primary did not report in time");
/// Most chunks that are looked at again, or waited for.
const SUSPECTS_MAX: usize = 100_000;

/// Where progress goes.
pub(super) type Progress = mpsc::Sender<Result<pb::FsckProgress, Status>>;

/// Why a check ends early.
enum End {
    /// Nobody listens.
    Unheard,
    /// The master cannot go on.
    Failed(FsError),
}

impl From<FsError> for End {
    fn from(error: FsError) -> Self {
        Self::Failed(error)
    }
}

/// Checks everything, and tells `out` as it goes. Blocks for as long as that takes.
pub(super) fn run(shared: &Arc<Shared>, deep: bool, repair: bool, out: Progress) {
    let summary = pb::FsckSummary::default();
    let mut fsck = Fsck { shared, deep, repair, out, summary, told: Instant::now() };
    match fsck.check() {
        Ok(()) => {
            let summary = Some(fsck.summary);
            let _ = fsck.out.blocking_send(Ok(pb::FsckProgress { end: true, summary, ..Default::default() }));
        }
        Err(End::Unheard) => tracing::info!("a check was given up: nobody listens any more"),
        Err(End::Failed(error)) => {
            let _ = fsck.out.blocking_send(Err(Status::unavailable(error.to_string())));
        }
    }
}

struct Fsck<'a> {
    shared: &'a Arc<Shared>,
    deep: bool,
    repair: bool,
    out: Progress,
    summary: pb::FsckSummary,
    told: Instant,
}

/// A comparison that was ordered.
struct Compared {
    facts: ChunkFacts,
    until: Instant,
    tries: u32,
}

impl Fsck<'_> {
    fn check(&mut self) -> Result<(), End> {
        self.check_records()?;
        self.check_redundancy()?;
        self.check_lists()?;
        self.compare_replicas()
    }

    fn find(&mut self, rule: &str, what: String, repaired: bool) -> Result<(), End> {
        tracing::warn!(rule, what, repaired, "fsck");
        self.summary.findings += 1;
        self.summary.repaired += u64::from(repaired);
        let findings = vec![pb::FsckFinding { rule: rule.into(), what, repaired }];
        self.send(pb::FsckProgress { findings, ..Default::default() })
    }

    fn tell(&mut self, stage: &str, done: u64, total: u64) -> Result<(), End> {
        if done < total && self.told.elapsed() < TOLD_EVERY {
            return Ok(());
        }
        self.told = Instant::now();
        self.send(pb::FsckProgress { stage: stage.into(), done, total, ..Default::default() })
    }

    fn send(&mut self, progress: pb::FsckProgress) -> Result<(), End> {
        if !self.shared.is_serving.load(Ordering::Acquire) {
            return Err(FsError::Io("the master stops".into()).into());
        }
        self.out.blocking_send(Ok(progress)).map_err(|_| End::Unheard)
    }

    fn fleet(&self) -> Fleet {
        let nodes = FleetNode::all(&self.shared.nodes.read(), self.shared.clock.mono());
        let mut fleet = Fleet::default();
        fleet.refresh(nodes);
        fleet
    }

    fn world(&self) -> ServiceWorld<'_> {
        ServiceWorld { shared: self.shared }
    }

    /// C5.
    fn check_records(&mut self) -> Result<(), End> {
        let executor = &self.shared.executor;
        let snapshot = executor.with(|state| state.snapshot().map_err(|error| state.stop_serving(&error)))?;
        let total = executor.counters().inodes;
        let (mut check, mut range) = (Check::new(), Range { limit: PAGE, ..Range::everything() });
        loop {
            let page = snapshot.scan(&range.start, &range.end, range.limit).map_err(|error| FsError::from(&error))?;
            for (key_bytes, bytes) in &page {
                let corrupt = |what: String| FsError::Io(format!("a record cannot be read: {what}"));
                let key = Key::decode(key_bytes).ok_or_else(|| corrupt(key_bytes.escape_ascii().to_string()))?;
                match Record::decode(&key, bytes) {
                    Ok(record) => check.look(&key, &record),
                    Err(error) => self.find("C5", format!("the record {key:?} cannot be read: {error}"), false)?,
                }
            }
            let looked = check.looked();
            (self.summary.inodes, self.summary.dentries) = (looked.inodes, looked.dentries);
            (self.summary.chunks, self.summary.replicas) = (looked.chunks, looked.replicas);
            self.tell("records", looked.inodes, total.max(looked.inodes + 1))?;
            match page.last() {
                Some((last, _)) if page.len() == PAGE => range.start = [last, &[0][..]].concat().into(),
                _ => break,
            }
        }
        drop(snapshot);
        let (findings, more) = check.end();
        for finding in findings {
            let mend = finding.mend.filter(|_| self.repair);
            let repaired = mend.is_some_and(|mend| self.shared.executor.with(move |state| state.mend(&mend)).is_ok());
            self.find("C5", finding.what, repaired)?;
        }
        if more > 0 {
            self.find("C5", format!("{more} more findings are not listed"), false)?;
        }
        Ok(())
    }

    /// Calls `visit` with all chunks as they are now, some at a time.
    fn each_page(
        &mut self,
        stage: &str,
        mut visit: impl FnMut(&mut Self, &Fleet, Vec<ChunkFacts>) -> Result<(), End>,
    ) -> Result<(), End> {
        let (mut after, mut done): (Option<(InodeId, ChunkIndex)>, u64) = (None, 0);
        let total = self.shared.executor.counters().chunks;
        loop {
            let page = self.world().chunk_page(after, PAGE)?;
            let (fleet, is_last) = (self.fleet(), page.len() < PAGE);
            after = page.last().map(|facts| (facts.inode, facts.index));
            done += page.len() as u64;
            visit(self, &fleet, page)?;
            self.tell(stage, done, total.max(done + 1))?;
            if is_last {
                return self.tell(stage, done, done);
            }
        }
    }

    /// R7.
    fn check_redundancy(&mut self) -> Result<(), End> {
        let mut lacking: Vec<Home> = Vec::new();
        self.each_page("redundancy", |_, fleet, page| {
            let is_lacking = |facts: &&ChunkFacts| Redundancy::of(facts, fleet).is_under_replicated(facts);
            let room = SUSPECTS_MAX - lacking.len();
            lacking.extend(page.iter().filter(is_lacking).take(room).map(ChunkFacts::home));
            Ok(())
        })?;
        let mut found: BTreeMap<Home, String> = BTreeMap::new();
        self.still_lacking(&lacking, &mut found)?;
        if !self.repair {
            for what in found.into_values() {
                self.find("R7", what, false)?;
            }
            return Ok(());
        }
        let (total, mut progress) = (found.len() as u64, Instant::now());
        let mut texts = found.clone();
        while !texts.is_empty() && progress.elapsed() < STUCK {
            let homes: Vec<Home> = texts.keys().copied().collect();
            {
                let mut inbox = self.shared.executor.control().inbox.lock();
                homes.iter().for_each(|home| inbox.changed(*home));
            }
            std::thread::sleep(Duration::from_secs(1));
            let mut left = BTreeMap::new();
            self.still_lacking(&homes, &mut left)?;
            if left.len() < texts.len() {
                progress = Instant::now();
            }
            texts = left;
            self.tell("repair", total - texts.len() as u64, total + 1)?;
        }
        for (home, what) in found {
            self.find("R7", what, !texts.contains_key(&home))?;
        }
        Ok(())
    }

    /// Looks again, and keeps what is still so.
    fn still_lacking(&self, homes: &[Home], found: &mut BTreeMap<Home, String>) -> Result<(), End> {
        for some in homes.chunks(PAGE) {
            let records = self.world().chunks(some)?;
            let fleet = self.fleet();
            for facts in records.into_iter().flatten() {
                let redundancy = Redundancy::of(&facts, &fleet);
                if redundancy.is_under_replicated(&facts) {
                    let what = match redundancy.online {
                        0 => "none of its replicas in sync is there".into(),
                        online => format!("{online} replicas in sync are there, {} are wanted", facts.wanted),
                    };
                    found.insert(facts.home(), format!("{}: {what}", shown(&facts)));
                }
            }
        }
        Ok(())
    }

    /// R6.
    fn check_lists(&mut self) -> Result<(), End> {
        let until = Instant::now() + Duration::from_millis(2 * self.shared.config.report_ms + 5_000);
        let online = |this: &Self| -> Vec<NodeId> {
            let fleet = this.fleet();
            fleet.iter().filter(|(_, node)| node.state == NodeState::Online).map(|(id, _)| id).collect()
        };
        let unlisted = |this: &Self| -> Vec<NodeId> {
            let board = this.shared.care.care.lock();
            let has_listed =
                |node: &NodeId| board.as_ref().is_some_and(|care| care.inventory().listed(*node).is_some());
            online(this).into_iter().filter(|node| !has_listed(node)).collect()
        };
        let mut missing = unlisted(self);
        while !missing.is_empty() && Instant::now() < until {
            std::thread::sleep(PAUSE);
            self.tell("lists of servers", 0, 1)?;
            missing = unlisted(self);
        }
        for node in missing {
            self.find("R6", format!("node {node} has not told what it holds"), false)?;
        }
        let mut lost: Vec<(ChunkFacts, NodeId)> = Vec::new();
        self.each_page("replicas held", |this, fleet, page| {
            let board = this.shared.care.care.lock();
            let Some(care) = board.as_ref() else { return Ok(()) };
            let room = SUSPECTS_MAX - lost.len();
            let found = page.into_iter().filter_map(|facts| {
                let node = care.inventory().lost_member(&facts, fleet)?;
                Some((facts, node))
            });
            lost.extend(found.take(room));
            Ok(())
        })?;
        for (facts, node) in lost {
            let now = self.world().chunks(&[facts.home()])?.pop().flatten();
            if now.is_some_and(|now| now.version == facts.version) {
                self.find("R6", format!("{}: node {node} does not hold its replica", shown(&facts)), false)?;
            }
        }
        let (frozen, overdue) = {
            let board = self.shared.care.care.lock();
            let now = self.shared.clock.mono();
            board.as_ref().map_or_else(Default::default, |care| {
                let inventory = care.inventory();
                (inventory.frozen().collect::<Vec<_>>(), inventory.overdue(now).collect::<Vec<_>>())
            })
        };
        for (node, chunk) in frozen {
            self.find("R6", format!("chunk {chunk}: the replica on node {node} is newer than its record"), false)?;
        }
        for (node, chunk) in overdue {
            self.find("R6", format!("chunk {chunk}: node {node} has a replica, but there is no such chunk"), false)?;
        }
        Ok(())
    }

    /// R5.
    fn compare_replicas(&mut self) -> Result<(), End> {
        let mut running: BTreeMap<u64, Compared> = BTreeMap::new();
        let result = self.each_page("comparison", |this, fleet, page| {
            // What is not there cannot be compared; that is a finding of its own above.
            for facts in page.into_iter().filter(|facts| facts.is_written && fleet.is_online(facts.primary)) {
                this.order_comparison(facts, 1, &mut running)?;
            }
            Ok(())
        });
        let result = result.and_then(|()| {
            while !running.is_empty() {
                self.collect_comparisons(&mut running)?;
                std::thread::sleep(PAUSE);
                let done = self.summary.chunks.saturating_sub(running.len() as u64);
                self.tell("comparison", done, self.summary.chunks + 1)?;
            }
            Ok(())
        });
        let mut orders = self.shared.executor.control().orders.lock();
        running.keys().for_each(|id| orders.forget_watched(*id));
        drop(orders);
        result
    }

    /// Orders a comparison as soon as there is room for one more.
    fn order_comparison(
        &mut self,
        mut facts: ChunkFacts,
        tries: u32,
        running: &mut BTreeMap<u64, Compared>,
    ) -> Result<(), End> {
        let kind = OrderKind::Scrub { deep: self.deep };
        let until = Instant::now() + if self.deep { DEEP_MAX } else { COMPARISON_MAX };
        loop {
            self.collect_comparisons(running)?;
            if running.len() < SCRUBS_MAX {
                if let Some(id) = self.give(&facts, kind)? {
                    running.insert(id, Compared { facts, until, tries });
                    return Ok(());
                }
                // It may have another primary or version by now, or be gone.
                match self.present(&facts)? {
                    Some(now) => facts = now,
                    None => return Ok(()),
                }
            }
            if Instant::now() > until {
                return self.find("R5", format!("{}: its primary does not take orders", shown(&facts)), false);
            }
            std::thread::sleep(PAUSE);
            self.tell("comparison", 0, 1)?;
        }
    }

    /// Returns a chunk as it is now, if it is still there.
    fn present(&self, facts: &ChunkFacts) -> Result<Option<ChunkFacts>, End> {
        let now = self.world().chunks(&[facts.home()])?.pop().flatten();
        Ok(now.filter(|now| now.chunk == facts.chunk))
    }

    fn give(&self, facts: &ChunkFacts, kind: OrderKind) -> Result<Option<u64>, End> {
        let mut world = self.world();
        let Some(grant) = world.grant(facts)? else { return Ok(None) };
        let Some(boot) = self.fleet().node(facts.primary).map(|node| node.boot) else { return Ok(None) };
        let now = self.shared.clock.mono();
        Ok(world.orders(|orders| {
            let id = orders.give(facts, facts.primary, boot, kind, grant, now)?;
            orders.watch(id);
            Some(id)
        }))
    }

    fn collect_comparisons(&mut self, running: &mut BTreeMap<u64, Compared>) -> Result<(), End> {
        let mut done: Vec<(u64, Result<OrderReport, FsError>)> = Vec::new();
        {
            let mut orders = self.shared.executor.control().orders.lock();
            for (id, compared) in running.iter() {
                let is_over = Instant::now() > compared.until;
                if let Some(result) = orders.take_watched(*id) {
                    done.push((*id, result));
                } else if is_over || !orders.is_pending(*id) {
                    orders.forget_watched(*id);
                    let error = if is_over { NO_ANSWER } else { FsError::TryAgain("the order was withdrawn") };
                    done.push((*id, Err(error)));
                }
            }
        }
        for (id, result) in done {
            let Some(compared) = running.remove(&id) else { continue };
            self.conclude_comparison(compared, result, running)?;
        }
        Ok(())
    }

    fn conclude_comparison(
        &mut self,
        compared: Compared,
        result: Result<OrderReport, FsError>,
        running: &mut BTreeMap<u64, Compared>,
    ) -> Result<(), End> {
        let Compared { facts, tries, .. } = compared;
        let error = match result {
            Ok(report) => {
                self.summary.checked_units += report.checked_units;
                self.summary.bad_units += report.bad_units;
                self.summary.repaired_units += report.repaired_units;
                if report.bad_units > 0 {
                    let what = format!("{}: {} units were damaged or differed", shown(&facts), report.bad_units);
                    self.find("R5", what, report.repaired_units >= report.bad_units)?;
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let Some(now) = self.present(&facts)? else { return Ok(()) };
        if error != NO_ANSWER && tries < TRIES {
            std::thread::sleep(PAUSE * tries);
            return self.order_comparison(now, tries + 1, running);
        }
        if scrub_plan::is_fit(&now, &self.fleet()) {
            self.find("R5", format!("{}: its replicas could not be compared: {error}", shown(&now)), false)?;
        }
        Ok(())
    }
}

fn shown(facts: &ChunkFacts) -> String {
    format!("chunk {} (inode {}, index {})", facts.chunk, facts.inode, facts.index)
}
