//! What the caretaker has done step by step, each step bounded, and what pages show.

use std::sync::Arc;

use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, Kind, Name, NodeId, Seq};

use super::MasterState;
use crate::core::care::{ChunkFacts, CutIntent, PurgeProgress, ReclaimEntry, SessionFacts};
use crate::core::key::{Key, Range};
use crate::core::op;
use crate::core::outcome::Outcome;
use crate::core::record::{Chunk, Inode, Record, ZeroPart};

/// Most chunks that are looked up among those handed out for deletion; above that the memory of them starts anew, and
/// some deletions are ordered twice.
const RECLAIMS_GIVEN_MAX: usize = 200_000;
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
pub enum CutStep {
    /// Nothing: it is done, or the file is gone.
    Done,
    /// The same again: some chunks were dropped, and there may be more.
    Dropped,
    /// To have the primary zero a part of a chunk, and then to say that the cut is done.
    Zero(ZeroPart),
}

impl MasterState {
    /// Returns up to `limit` chunks whose replicas are due for deletion now. Later calls go on after them, and begin
    /// anew at the end: servers that are away do not hold up the others.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn reclaim_due(&mut self, limit: usize) -> Result<Vec<ReclaimEntry>, FsError> {
        let until = self.clock.wall();
        let found = self.scan(Range::reclaims(self.reclaim_cursor.as_ref(), until, limit))?;
        let is_end = found.len() < limit;
        self.reclaim_cursor = if is_end { None } else { found.last().map(|(key, _)| key.clone()) };
        if self.reclaims_given.len() > RECLAIMS_GIVEN_MAX {
            self.reclaims_given.clear();
        }
        let mut entries = Vec::with_capacity(found.len());
        for (key, record) in found {
            if let (Key::Reclaim(due, chunk), Record::Reclaim(reclaim)) = (key, record) {
                self.reclaims_given.insert(chunk, due);
                entries.push(ReclaimEntry { chunk, due, nodes: reclaim.nodes.clone() });
            }
        }
        Ok(entries)
    }

    /// Records that `node` has deleted its replicas of `chunks`; an entry without nodes left is dropped.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn reclaim_done(&mut self, node: NodeId, chunks: &[ChunkId]) -> Result<(), FsError> {
        let given = |chunk: &ChunkId| self.reclaims_given.get(chunk).map(|due| (*due, *chunk));
        let entries: Vec<_> = chunks.iter().filter_map(given).collect();
        self.internal(|view| op::reclaim_done(view, node, &entries))?;
        Ok(())
    }

    /// Purges orphans that nobody has open, at most about `limit` chunks of them. Nothing during the reclaim window.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn purge_orphans(&mut self, limit: usize) -> Result<PurgeProgress, FsError> {
        let mut progress = PurgeProgress::default();
        if self.is_in_reclaim_window() {
            return Ok(progress);
        }
        let mut budget = limit.max(1);
        while budget > 0
            && let Some(id) = self.purgeable.pop_first()
        {
            let now = self.clock.wall();
            let applied = self.internal(|view| op::purge(view, now, id, budget))?;
            let chunks = applied.totals.chunks.unsigned_abs();
            progress.chunks += chunks;
            progress.inodes += applied.totals.inodes.unsigned_abs();
            budget = budget.saturating_sub(chunks as usize + 1);
        }
        progress.more = !self.purgeable.is_empty();
        Ok(progress)
    }

    /// Returns up to `limit` truncates and punches that are not finished and that nobody is at work on any more.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn pending_cuts(&mut self, limit: usize) -> Result<Vec<CutIntent>, FsError> {
        let before = self.clock.wall().0 - CUT_AGE_NS;
        let cuts = self.scan(Range { limit, ..Range::cuts() })?.into_iter();
        Ok(cuts
            .filter_map(|(key, record)| match (key, record) {
                (Key::Cut(inode), Record::Cut(cut)) if cut.since.0 < before || cut.since > self.clock.wall() => {
                    Some(CutIntent { inode, number: cut.seq.0 })
                }
                _ => None,
            })
            .collect())
    }

    /// Records that the part was zeroed.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn cut_done(&mut self, cut: &CutIntent) -> Result<(), FsError> {
        self.internal(|view| op::cut_done(view, cut)).map(|_| ())
    }

    /// Drops some of the chunks that a truncate or punch has left, or says what else it needs.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn cut_step(&mut self, cut: &CutIntent) -> Result<CutStep, FsError> {
        let now = self.clock.wall();
        let mut step = CutStep::Done;
        self.internal(|view| {
            let Some(pending) = op::pending(view, cut)? else { return Ok(Outcome::new(view)) };
            if pending.drops.is_some() {
                step = CutStep::Dropped;
                return op::drop_more(view, now, cut, op::DROPPED_AT_ONCE);
            }
            let Some(zero) = pending.zero else { return op::cut_done(view, cut) };
            if view.find(&Key::Chunk(cut.inode, zero.index))?.is_none() {
                return op::cut_done(view, cut);
            }
            step = CutStep::Zero(zero);
            Ok(Outcome::new(view))
        })?;
        Ok(step)
    }

    /// Raises the version of a chunk, and returns it as it is now, with what must be durable before it is granted; `None` if
    /// it is gone.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn raise_version(&mut self, inode: InodeId, index: ChunkIndex) -> Result<Option<(Arc<Chunk>, Seq)>, FsError> {
        let mut chunk = None;
        let applied = self.internal(|view| {
            let (outcome, raised) = op::raise_version(view, inode, index)?;
            chunk = raised;
            Ok(outcome)
        })?;
        Ok(chunk.map(|chunk| (chunk, applied.durable_first)))
    }

    /// Returns up to `limit` chunk records after `after` in order of (inode, index); `None` starts at the beginning.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn chunk_page(
        &mut self,
        after: Option<(InodeId, ChunkIndex)>,
        limit: usize,
    ) -> Result<Vec<ChunkFacts>, FsError> {
        let found = self.scan(Range::chunks_after(after, limit))?.into_iter();
        Ok(found.filter_map(|(key, record)| chunk_facts(&key, &record, None)).collect())
    }

    /// Returns the open sessions.
    pub fn session_facts(&self) -> Vec<SessionFacts> {
        let now = self.clock.mono();
        let facts = self.sessions.iter().map(|(id, session)| SessionFacts {
            session: id,
            host: session.record.host.clone(),
            mount_point: session.record.mount_point.clone(),
            software: session.record.software.clone(),
            metrics_address: session.record.metrics_address.clone(),
            last_seen_ms: now.since(session.last_seen),
            open_files: self.opens.files(id),
        });
        facts.collect()
    }

    /// Returns how many sessions are open.
    pub fn session_count(&self) -> usize {
        self.sessions.iter().count()
    }

    /// Returns the inode at `path` (absolute from the root, symlinks not followed), or `inode` if the path is empty,
    /// with its first `chunks_max` chunks and whether there are more.
    ///
    /// # Errors
    ///
    /// [`FsError::NoEntry`], [`FsError::NotDirectory`], [`FsError::Invalid`] for what is no path, [`FsError::Io`].
    pub fn info(&mut self, path: &[u8], inode: InodeId, chunks_max: usize) -> Result<Info, FsError> {
        let names = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .map(|name| Name::new(name.to_vec()))
            .collect::<Result<Vec<Name>, FsError>>()?;
        let start = if path.is_empty() { inode } else { InodeId::ROOT };
        let mut found = None;
        self.internal(|view| {
            found = Some(view.inode(view.walk(start, &names)?)?);
            Ok(Outcome::new(view))
        })?;
        let inode = found.ok_or(FsError::NoEntry)?;
        let mut chunks = Vec::new();
        if inode.kind == Kind::File && inode.chunks > 0 {
            let all = Range::chunks(inode.id, ChunkIndex(0), ChunkIndex(u32::MAX), chunks_max);
            let page = self.scan(all)?;
            chunks = page.iter().filter_map(|(key, record)| chunk_facts(key, record, Some(&inode))).collect();
        }
        let more_chunks = (chunks.len() as u64) < inode.chunks;
        Ok(Info { inode, chunks, more_chunks })
    }

    /// Reads a range as of all that was done so far.
    pub(crate) fn scan(&mut self, range: Range) -> Result<Vec<(Key, Record)>, FsError> {
        let found = self.commit().and_then(|()| self.records.read_range(&range));
        found.map_err(|error| self.stop_serving(&error))
    }
}

/// Returns what the record of a chunk says, and its file if that is at hand.
pub(crate) fn chunk_facts(key: &Key, record: &Record, inode: Option<&Inode>) -> Option<ChunkFacts> {
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
