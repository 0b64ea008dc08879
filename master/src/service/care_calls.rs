//! What the caretaker, the node service and the pages ask of the executor.

use std::sync::Arc;

use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, Kind, Name, NodeId};

use super::executor::Executor;
use crate::core::care::{ChunkFacts, CutIntent, NodeFacts, PurgeProgress, ReclaimEntry, SessionFacts};
use crate::core::key::{Key, Range};
use crate::core::op;
use crate::core::outcome::Outcome;
use crate::core::record::{Chunk, Inode, Record, ZeroPart};
use crate::state::MasterState;

/// Most chunks that are looked up among those handed out for deletion; above that the memory of them starts anew, and
/// some deletions are ordered twice.
const RECLAIMS_GIVEN_MAX: usize = 200_000;
/// Without a look at the sessions for so long, the master itself was away.
const AWAY_MS: u64 = 10_000;
/// A truncate or punch that is not finished after this is taken over by the caretaker.
const CUT_AGE_NS: i64 = 15_000_000_000;

/// What is recorded of one inode.
#[derive(Clone, Debug)]
pub struct Info {
    /// The inode.
    pub inode: Arc<Inode>,
    /// Its first chunks.
    pub chunks: Vec<ChunkFacts>,
    /// Whether it has more.
    pub more_chunks: bool,
}

/// What is next for a truncate or punch that is not finished.
#[derive(Clone, Debug)]
pub(super) enum CutStep {
    /// Nothing: it is done, or the file is gone.
    Done,
    /// The same again: some chunks were dropped, and there may be more.
    Dropped,
    /// To have the primary zero a part of a chunk, and then to say that the cut is done.
    Zero { zero: ZeroPart, chunk_size_log2: u32, chunk: Arc<Chunk> },
}

impl Executor {
    /// Returns the node id of the server `facts` speak of, a new one at its first registration; durable on return.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn register_node(&self, facts: &NodeFacts) -> Result<NodeId, FsError> {
        let facts = facts.clone();
        let (id, durable_first) = self.with(move |owner| {
            let known = owner.nodes_on_record.get(&facts.server_id).copied();
            let last = owner.nodes_on_record.values().max().map_or(0, |node| node.0);
            let id = known.unwrap_or(NodeId(last + 1));
            let applied = owner.internal(|view| {
                op::register_node(view, id, &facts, dfs_proto::BootSession(1), false).map(|(outcome, _)| outcome)
            })?;
            owner.nodes_on_record.insert(facts.server_id, id);
            Ok((id, applied.durable_first))
        })?;
        self.wait_first(durable_first)?;
        Ok(id)
    }

    /// Returns up to `limit` chunks whose replicas are due for deletion now. Later calls go on after them, and begin
    /// anew at the end: servers that are away do not hold up the others.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn reclaim_due(&self, limit: usize) -> Result<Vec<ReclaimEntry>, FsError> {
        self.with(move |owner| {
            let until = owner.clock.wall();
            let found = scan(owner, Range::reclaims(owner.reclaim_cursor.as_ref(), until, limit))?;
            let is_end = found.len() < limit;
            owner.reclaim_cursor = if is_end { None } else { found.last().map(|(key, _)| key.clone()) };
            if owner.reclaims_given.len() > RECLAIMS_GIVEN_MAX {
                owner.reclaims_given.clear();
            }
            let mut entries = Vec::with_capacity(found.len());
            for (key, record) in found {
                if let (Key::Reclaim(due, chunk), Record::Reclaim(reclaim)) = (key, record) {
                    owner.reclaims_given.insert(chunk, due);
                    entries.push(ReclaimEntry { chunk, due, nodes: reclaim.nodes.clone() });
                }
            }
            Ok(entries)
        })
    }

    /// Records that `node` has deleted its replicas of `chunks`; an entry without nodes left is dropped.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn reclaim_done(&self, node: NodeId, chunks: &[ChunkId]) -> Result<(), FsError> {
        let chunks = chunks.to_vec();
        self.with(move |owner| {
            let given = |chunk: &ChunkId| owner.reclaims_given.get(chunk).map(|due| (*due, *chunk));
            let entries: Vec<_> = chunks.iter().filter_map(given).collect();
            owner.internal(|view| op::reclaim_done(view, node, &entries))?;
            Ok(())
        })
    }

    /// Purges orphans that nobody has open, at most about `limit` chunks of them. Nothing during the reclaim window.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn purge_orphans(&self, limit: usize) -> Result<PurgeProgress, FsError> {
        self.with(move |owner| {
            let mut progress = PurgeProgress::default();
            if owner.is_in_reclaim_window() {
                return Ok(progress);
            }
            let mut budget = limit.max(1);
            while budget > 0
                && let Some(id) = owner.purgeable.pop_first()
            {
                let now = owner.clock.wall();
                let applied = owner.internal(|view| op::purge(view, now, id, budget))?;
                let chunks = applied.totals.chunks.unsigned_abs();
                progress.chunks += chunks;
                progress.inodes += applied.totals.inodes.unsigned_abs();
                budget = budget.saturating_sub(chunks as usize + 1);
            }
            progress.more = !owner.purgeable.is_empty();
            Ok(progress)
        })
    }

    /// Ends sessions whose lease ran out; returns how many. Does nothing during the reclaim window.
    ///
    /// To be called every second or so. If the last call was long ago the master itself was away (stopped, or its host
    /// suspended), and what its mounts said meanwhile lies unread in the sockets: then all leases begin anew.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn expire_sessions(&self) -> Result<usize, FsError> {
        self.with(|owner| {
            if owner.is_in_reclaim_window() {
                return Ok(0);
            }
            let now = owner.clock.mono();
            let away_ms = owner.sessions_checked.replace(now).map_or(0, |last| now.since(last));
            if away_ms > AWAY_MS {
                tracing::warn!(away_ms, "the master was not running; all sessions get a new lease");
                owner.sessions.renew_all(now);
                return Ok(0);
            }
            let expired = owner.sessions.expired(now, owner.settings.session_ms);
            for session in &expired {
                tracing::warn!(session = %session, "the session's lease ran out");
                owner.close_session(*session).result?;
            }
            Ok(expired.len())
        })
    }

    /// Returns up to `limit` truncates and punches that are not finished and that nobody is at work on any more.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn pending_cuts(&self, limit: usize) -> Result<Vec<CutIntent>, FsError> {
        self.with(move |owner| {
            let before = owner.clock.wall().0 - CUT_AGE_NS;
            let cuts = scan(owner, Range { limit, ..Range::cuts() })?.into_iter();
            Ok(cuts
                .filter_map(|(key, record)| match (key, record) {
                    (Key::Cut(inode), Record::Cut(cut)) if cut.since.0 < before || cut.since > owner.clock.wall() => {
                        Some(CutIntent { inode, number: cut.seq.0 })
                    }
                    _ => None,
                })
                .collect())
        })
    }

    /// Records that the part was zeroed.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn cut_done(&self, cut: &CutIntent) -> Result<(), FsError> {
        let cut = cut.clone();
        self.with(move |owner| owner.internal(|view| op::cut_done(view, &cut)).map(|_| ()))
    }

    /// Drops some of the chunks that a truncate or punch has left, or says what else it needs.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub(super) fn cut_step(&self, cut: &CutIntent) -> Result<CutStep, FsError> {
        let cut = cut.clone();
        self.with(move |owner| {
            let now = owner.clock.wall();
            let mut step = CutStep::Done;
            owner.internal(|view| {
                let Some(pending) = op::pending(view, &cut)? else { return Ok(Outcome::new(view)) };
                if pending.drops.is_some() {
                    step = CutStep::Dropped;
                    return op::drop_more(view, now, &cut, op::DROPPED_AT_ONCE);
                }
                let Some(zero) = pending.zero else { return op::cut_done(view, &cut) };
                let Some(Record::Chunk(chunk)) = view.find(&Key::Chunk(cut.inode, zero.index))? else {
                    return op::cut_done(view, &cut);
                };
                let chunk_size_log2 = view.inode(cut.inode)?.chunk_size_log2;
                step = CutStep::Zero { zero, chunk_size_log2, chunk };
                Ok(Outcome::new(view))
            })?;
            Ok(step)
        })
    }

    /// Raises the version of a chunk, durably, and returns it as it is now; `None` if it is gone.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub(super) fn raise_version(&self, inode: InodeId, index: ChunkIndex) -> Result<Option<Arc<Chunk>>, FsError> {
        let (chunk, durable_first) = self.with(move |owner| {
            let mut chunk = None;
            let applied = owner.internal(|view| {
                let (outcome, raised) = op::raise_version(view, inode, index)?;
                chunk = raised;
                Ok(outcome)
            })?;
            Ok((chunk, applied.durable_first))
        })?;
        self.wait_first(durable_first)?;
        Ok(chunk)
    }

    /// Returns up to `limit` chunk records after `after` in order of (inode, index); `None` starts at the beginning.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn chunk_page(&self, after: Option<(InodeId, ChunkIndex)>, limit: usize) -> Result<Vec<ChunkFacts>, FsError> {
        self.with(move |owner| {
            let found = scan(owner, Range::chunks_after(after, limit))?.into_iter();
            Ok(found.filter_map(|(key, record)| chunk_facts(&key, &record, None)).collect())
        })
    }

    /// Returns the open sessions.
    pub fn sessions(&self) -> Vec<SessionFacts> {
        let facts = self.with(|owner| {
            let now = owner.clock.mono();
            let facts = owner.sessions.iter().map(|(id, session)| SessionFacts {
                session: id,
                host: session.record.host.clone(),
                mount_point: session.record.mount_point.clone(),
                software: session.record.software.clone(),
                metrics_address: session.record.metrics_address.clone(),
                last_seen_ms: now.since(session.last_seen),
                open_files: owner.opens.files(id),
            });
            Ok(facts.collect())
        });
        facts.unwrap_or_default()
    }

    /// Returns how many sessions are open.
    pub fn session_count(&self) -> usize {
        self.with(|owner| Ok(owner.sessions.iter().count())).unwrap_or_default()
    }

    /// Returns the inode at `path` (absolute from the root, symlinks not followed), or `inode` if the path is empty,
    /// with its first `chunks_max` chunks and whether there are more.
    ///
    /// # Errors
    ///
    /// [`FsError::NoEntry`], [`FsError::NotDirectory`], [`FsError::Invalid`] for what is no path, [`FsError::Io`].
    pub fn info(&self, path: &[u8], inode: InodeId, chunks_max: usize) -> Result<Info, FsError> {
        let names = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .map(|name| Name::new(name.to_vec()))
            .collect::<Result<Vec<Name>, FsError>>()?;
        let start = if path.is_empty() { inode } else { InodeId::ROOT };
        self.with(move |owner| {
            let mut found = None;
            owner.internal(|view| {
                found = Some(view.inode(view.walk(start, &names)?)?);
                Ok(Outcome::new(view))
            })?;
            let inode = found.ok_or(FsError::NoEntry)?;
            let mut chunks = Vec::new();
            if inode.kind == Kind::File && inode.chunks > 0 {
                let all = Range::chunks(inode.id, ChunkIndex(0), ChunkIndex(u32::MAX), chunks_max);
                let page = scan(owner, all)?;
                chunks = page.iter().filter_map(|(key, record)| chunk_facts(key, record, Some(&inode))).collect();
            }
            let more_chunks = (chunks.len() as u64) < inode.chunks;
            Ok(Info { inode, chunks, more_chunks })
        })
    }
}

#[cfg(test)]
impl Executor {
    /// Counts all records anew, and returns the totals that the counters should show.
    pub(super) fn recount(&self) -> Result<crate::core::care::Counters, FsError> {
        self.with(|owner| {
            let mut counters = crate::core::care::Counters::default();
            for (_, record) in scan(owner, Range::everything())? {
                match record {
                    Record::Inode(inode) => {
                        counters.inodes += 1;
                        counters.logical_bytes += u128::from(inode.logical_bytes());
                    }
                    Record::Chunk(_) => counters.chunks += 1,
                    Record::Orphan(_) => counters.orphans += 1,
                    Record::Reclaim(reclaim) => counters.reclaim_pending += reclaim.nodes.len() as u64,
                    _ => {}
                }
            }
            Ok(counters)
        })
    }

    /// Returns all records as the store has them.
    pub(super) fn all_records(&self) -> Result<Vec<(Key, Record)>, FsError> {
        self.with(|owner| scan(owner, Range::everything()))
    }
}

/// Reads a range as of all that was done so far.
fn scan(owner: &mut MasterState, range: Range) -> Result<Vec<(Key, Record)>, FsError> {
    owner.commit().and_then(|()| owner.records.read_range(&range)).map_err(|error| owner.stop_serving(&error))
}

fn chunk_facts(key: &Key, record: &Record, inode: Option<&Inode>) -> Option<ChunkFacts> {
    let (Key::Chunk(of, index), Record::Chunk(chunk)) = (key, record) else { return None };
    Some(ChunkFacts {
        inode: *of,
        index: *index,
        chunk: chunk.id,
        version: chunk.version,
        primary: chunk.primary,
        in_sync: chunk.in_sync.clone(),
        syncing: chunk.syncing.clone(),
        stale: chunk.stale.clone(),
        is_written: chunk.is_written,
        set_seq: chunk.set_seq,
        seq: chunk.seq,
        wanted: inode.map_or(dfs_proto::limits::REPLICAS, |inode| inode.replicas),
        chunk_size_log2: inode.map_or(dfs_proto::limits::CHUNK_SIZE_LOG2, |inode| inode.chunk_size_log2),
    })
}
