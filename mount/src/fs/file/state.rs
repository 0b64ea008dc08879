//! One open file: what is known of it, what is buffered, who has it open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::env::Clock;
use dfs_proto::limits::{DATA_BYTES_MAX, INLINE_BYTES_MAX};
use dfs_proto::mode::without_set_id;
use dfs_proto::{ChunkIndex, FsError, InodeId, MonoMs, UnixNanos};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::backend::Backend;
use super::budget::Budget;
use super::kept::KeptPages;
use super::locations::KnownLocations;
use super::pool::{PushPool, ReadPool};
use super::push::Attempt;
use super::table::{FileSettings, HandleId, OpenOptions, Unwritten};
use super::under_way::UnderWay;
use super::unsynced::UnsyncedFiles;
use crate::cache::{DirtyMap, Mark, RangeSet, ReadAhead, Ticket};
use crate::core::Unsynced;
use crate::fs::Attr;
use crate::metrics::Metrics;

/// Most bytes read ahead of all handles of a mount.
const AHEAD_BYTES_MAX: u64 = 128 << 20;

/// What all open files of a mount share.
pub(super) struct Shared {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: FileSettings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) budget: Budget,
    pub(super) kept: KeptPages,
    pub(super) unsynced: UnsyncedFiles,
    pub(super) pushers: PushPool,
    pub(super) readers: ReadPool,
    pub(super) ahead_bytes: AtomicU64,
}

impl Shared {
    /// Returns how many more bytes may be read ahead.
    pub(super) fn ahead_allowed(&self) -> u64 {
        AHEAD_BYTES_MAX.saturating_sub(self.ahead_bytes.load(Ordering::Relaxed))
    }
}

/// One open file, shared by its handles.
///
/// Locks, in the order in which they are taken: `sync`, `order`, `state`, then those of the pools, the budget and the
/// kept pages. `sync` and `order` are held across calls; `state` never is.
pub(super) struct FileState {
    pub(super) inode: InodeId,
    /// Of the layout it was made with, for as long as it lives.
    pub(super) chunk_size: u64,
    pub(super) shared: Arc<Shared>,
    /// Held by whoever changes the file at the master (commits, truncates, punches), so that the data version moves
    /// in known steps and a commit never overtakes a truncate.
    pub(super) order: Mutex<()>,
    /// Held by an fsync, so that one that finds nothing left to sync has waited for the one that is at it.
    pub(super) sync: Mutex<()>,
    pub(super) state: Mutex<State>,
    /// Something in `state` changed that somebody may wait for.
    pub(super) changed: Condvar,
}

/// Where the content is.
#[derive(Debug)]
pub(super) enum Layout {
    /// In the inode record. `base` is the content at data version `version`, `None` until it is needed.
    Inline { base: Option<Bytes>, version: u64 },
    /// On its way from the inode record, where it still is at `version`, into chunks: once everything up to `mark`
    /// is on replicas, a commit makes the chunks the content. `own` is what was written here of the first 16 KiB,
    /// `pushed` are the chunks that were written to. The first `moved` bytes may have been on stable media at the
    /// master: they have to be so in chunks before the master drops them.
    Leaving { version: u64, mark: Mark, own: RangeSet, pushed: BTreeSet<ChunkIndex>, moved: u64 },
    /// In chunks.
    Chunked,
}

/// One open of the file.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) options: OpenOptions,
    /// It wrote, so that its `close` has to push.
    pub(super) wrote: bool,
    /// The errors it has reported, or that were before its time.
    pub(super) errors_seen: u64,
    pub(super) ahead: ReadAhead,
    /// What `ahead` holds, as counted in `Shared::ahead_bytes`.
    ahead_counted: u64,
    /// Entries for it in the readers' queue.
    pub(super) ahead_queued: usize,
}

impl Handle {
    pub(super) fn recount(&mut self, shared: &Shared) {
        let bytes = self.ahead.bytes();
        if bytes != self.ahead_counted {
            shared.ahead_bytes.fetch_add(bytes.wrapping_sub(self.ahead_counted), Ordering::Relaxed);
            self.ahead_counted = bytes;
        }
    }
}

/// The changing part of a [`FileState`].
pub(super) struct State {
    /// The newest attributes the master sent.
    pub(super) attr: Attr,
    pub(super) layout: Layout,
    pub(super) dirty: DirtyMap,
    /// Pushers take what was written before this, and full slots.
    pub(super) push_to: Mark,
    /// Pieces that failed and wait for their next attempt.
    pub(super) parked: Vec<Attempt>,
    /// Writes at chunk servers that have not ended. Its lock is taken last.
    pub(super) under_way: UnderWay,
    /// Pieces that a thread is pushing.
    pub(super) active: usize,
    /// The end of what is on replicas, or of what the file was extended to, and not committed; else 0.
    pub(super) acked_end: u64,
    /// Chunks with bytes on replicas that are not committed.
    pub(super) acked: BTreeSet<ChunkIndex>,
    /// Since when there is something to commit.
    pub(super) acked_since: Option<MonoMs>,
    /// A large file got its first bytes in a further chunk: to be committed soon.
    pub(super) commit_wanted: bool,
    /// Commits that were refused since the last one that was not.
    pub(super) stale_commits: u32,
    /// When the newest write was made that is not committed.
    pub(super) mtime: Option<UnixNanos>,
    /// A write that is not committed drops the set-id bits.
    pub(super) kill_suid_sgid: bool,
    /// Counts writes.
    pub(super) writes: u64,
    /// Chunks that changed since the last fsync.
    pub(super) unsynced: Unsynced,
    pub(super) locations: KnownLocations,
    /// The last failure of a push or commit, and how many there were.
    pub(super) error: Option<FsError>,
    pub(super) errors: u64,
    pub(super) handles: BTreeMap<HandleId, Handle>,
    /// Writers wait: a truncate or its like is under way.
    pub(super) is_gated: bool,
    /// A change is on its way to the master: attributes that come meanwhile may or may not include it.
    pub(super) is_changing: bool,
    /// The newest attributes that came meanwhile.
    pub(super) deferred: Option<Attr>,
    /// It is in the pushers' list of files with something to do.
    pub(super) is_listed: bool,
}

impl FileState {
    pub(super) fn new(shared: Arc<Shared>, attr: &Attr, content: Option<Bytes>) -> Self {
        let slot_bytes = u64::from(DATA_BYTES_MAX).min(attr.chunk_size());
        let state = State {
            attr: *attr,
            layout: Layout::of(attr, content),
            dirty: DirtyMap::new(slot_bytes),
            push_to: Mark::default(),
            parked: Vec::new(),
            under_way: UnderWay::default(),
            active: 0,
            acked_end: 0,
            acked: BTreeSet::new(),
            acked_since: None,
            commit_wanted: false,
            stale_commits: 0,
            mtime: None,
            kill_suid_sgid: false,
            writes: 0,
            unsynced: shared.unsynced.take(attr.inode),
            locations: KnownLocations::default(),
            error: None,
            errors: 0,
            handles: BTreeMap::new(),
            is_gated: false,
            is_changing: false,
            deferred: None,
            is_listed: false,
        };
        Self {
            inode: attr.inode,
            chunk_size: attr.chunk_size(),
            shared,
            order: Mutex::new(()),
            sync: Mutex::new(()),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Locks `order`, as [`Self::lock_within`].
    pub(super) fn lock_order(&self) -> Result<MutexGuard<'_, ()>, FsError> {
        self.lock_within(&self.order)
    }

    /// Takes a lock that is held across calls, unless those before us need all the time that the policy grants: many
    /// who wait for a dead server fail together, not one after the other.
    ///
    /// # Errors
    ///
    /// `TimedOut`.
    pub(super) fn lock_within<'a>(&self, lock: &'a Mutex<()>) -> Result<MutexGuard<'a, ()>, FsError> {
        match self.shared.settings.policy.left_ms(0) {
            None => Ok(lock.lock()),
            Some(ms) => lock
                .try_lock_for(Duration::from_millis(ms))
                .ok_or(FsError::TimedOut("another call on the file does not come to an end")),
        }
    }

    pub(super) fn add_handle(&self, id: HandleId, options: OpenOptions) {
        let mut state = self.state.lock();
        let settings = &self.shared.settings;
        let window = if options.direct { 0 } else { settings.read_ahead_bytes };
        let piece_bytes = u64::from(DATA_BYTES_MAX).min(self.chunk_size);
        let handle = Handle {
            options,
            wrote: false,
            errors_seen: state.errors,
            ahead: ReadAhead::new(piece_bytes, window),
            ahead_counted: 0,
            ahead_queued: 0,
        };
        state.handles.insert(id, handle);
    }

    pub(super) fn remove_handle(&self, id: HandleId) {
        let mut state = self.state.lock();
        if let Some(mut handle) = state.handles.remove(&id) {
            handle.ahead.clear();
            handle.recount(&self.shared);
        }
    }

    pub(super) fn unwritten(&self) -> Unwritten {
        let state = self.state.lock();
        match state.is_clean() {
            true => Unwritten::Nothing,
            false if state.layout.is_inline() => Unwritten::Inline,
            false => Unwritten::Chunks,
        }
    }

    /// Corrects attributes the master sent for what it does not know yet.
    pub(super) fn overlay(&self, attr: &mut Attr) {
        let state = self.state.lock();
        state.overlay(attr);
    }

    /// Takes note of attributes the master sent, with the content if the answer carried that too.
    pub(super) fn note_attr(&self, attr: &Attr, content: Option<Bytes>) {
        let mut state = self.state.lock();
        self.note_attr_locked(&mut state, attr);
        let version_now = state.attr.data_version;
        if let Layout::Inline { base, version } = &mut state.layout
            && let Some(content) = content
            && attr.is_inline
            && base.is_none()
            && attr.data_version == version_now
        {
            *base = Some(content);
            *version = attr.data_version;
        }
    }

    pub(super) fn note_attr_locked(&self, state: &mut State, attr: &Attr) {
        if state.is_changing {
            if state.deferred.is_none_or(|deferred| deferred.seq < attr.seq) {
                state.deferred = Some(*attr);
            }
            return;
        }
        if attr.seq <= state.attr.seq {
            return;
        }
        let is_other_content = attr.data_version != state.attr.data_version;
        state.attr = *attr;
        if is_other_content {
            self.content_changed(state);
        }
    }

    /// Somebody else changed the content: drops what is cached of the old one. What is dirty here stays, on top.
    pub(super) fn content_changed(&self, state: &mut State) {
        state.locations.forget_from(ChunkIndex(0));
        self.invalidate_ahead(state, 0, u64::MAX);
        let attr = state.attr;
        match &mut state.layout {
            Layout::Inline { base, version } if attr.is_inline => {
                *base = None;
                *version = attr.data_version;
            }
            // The commit finds out, and merges.
            Layout::Leaving { .. } => {}
            Layout::Inline { .. } => state.layout = Layout::Chunked,
            Layout::Chunked if !attr.is_inline => {}
            Layout::Chunked if state.dirty.is_empty() && state.acked.is_empty() => self.become_inline(state),
            // Truncated to nothing by another mount while writes are buffered here: they go into chunks all the same.
            // Version 0 never matches, so that the commit looks at what is there by then and merges.
            Layout::Chunked => {
                let (own, pushed) = (state.own_ranges(), state.acked.clone());
                let mark = state.dirty.mark();
                state.layout = Layout::Leaving { version: 0, mark, own, pushed, moved: 0 };
            }
        }
        state.forget_acked_if_covered();
    }

    /// Takes the file for inline, as the master says, with nothing of it known here.
    pub(super) fn become_inline(&self, state: &mut State) {
        state.acked.clear();
        state.acked_end = 0;
        state.acked_since = None;
        if state.dirty.is_empty() {
            state.mtime = None;
            state.kill_suid_sgid = false;
        }
        state.layout = Layout::Inline { base: None, version: state.attr.data_version };
    }

    /// Begins a change at the master; returns the data version before it. Ends with [`Self::change_done`].
    pub(super) fn change_begins(&self, state: &mut State) -> u64 {
        state.is_changing = true;
        state.attr.data_version
    }

    /// Takes the master's answer to a change that began at data version `before`.
    pub(super) fn change_done(&self, state: &mut State, before: u64, attr: Option<&Attr>) {
        state.is_changing = false;
        if let Some(attr) = attr {
            if attr.data_version > before + 1 {
                // Not ours alone.
                state.attr = *attr;
                self.content_changed(state);
            } else {
                self.shared.kept.own_change(self.inode, before, attr.data_version);
                state.attr = *attr;
            }
            state.forget_acked_if_covered();
        }
        if let Some(deferred) = state.deferred.take() {
            self.note_attr_locked(state, &deferred);
        }
        self.changed.notify_all();
    }

    pub(super) fn invalidate_ahead(&self, state: &mut State, from: u64, to: u64) {
        for handle in state.handles.values_mut().filter(|handle| !handle.ahead.is_empty()) {
            handle.ahead.invalidate(from, to);
            handle.recount(&self.shared);
        }
    }

    /// Keeps a failure for the next fsync or close of every handle that is open now.
    pub(super) fn record_error(&self, state: &mut State, error: &FsError) {
        state.errors += 1;
        state.error = Some(error.clone());
        self.shared.metrics.write_errors.inc();
        // The kernel's pages hold what did not get through.
        self.shared.kept.forget(self.inode);
        tracing::error!(inode = %self.inode, %error, "a buffered write failed");
        self.changed.notify_all();
    }

    /// Returns the failure that `handle` has not reported yet, once.
    pub(super) fn take_error(&self, handle: HandleId) -> Result<(), FsError> {
        let mut state = self.state.lock();
        let errors = state.errors;
        let Some(entry) = state.handles.get_mut(&handle) else { return Ok(()) };
        if entry.errors_seen == errors {
            return Ok(());
        }
        entry.errors_seen = errors;
        Err(state.error.clone().expect("errors are counted when one is kept"))
    }

    /// Puts the file into the pushers' list.
    pub(super) fn list(self: &Arc<Self>, state: &mut State) {
        if !state.is_listed {
            state.is_listed = true;
            self.shared.pushers.list(self);
        }
    }

    /// Drops everything buffered: it can never be written. What is on replicas has still to be synced by the next fsync.
    pub(super) fn abandon(&self, state: &mut State, error: &FsError) {
        if !state.is_clean() {
            self.record_error(state, error);
        }
        self.drop_buffered(state);
    }

    pub(super) fn drop_buffered(&self, state: &mut State) {
        let bytes = state.dirty.bytes();
        state.dirty.drop_all();
        self.shared.budget.release(bytes);
        state.parked.clear();
        state.acked.clear();
        state.acked_end = 0;
        state.acked_since = None;
        state.commit_wanted = false;
        state.mtime = None;
        state.kill_suid_sgid = false;
        state.locations.forget_from(ChunkIndex(0));
        self.invalidate_ahead(state, 0, u64::MAX);
        state.layout = match state.layout {
            Layout::Chunked => Layout::Chunked,
            _ => Layout::of(&state.attr, None),
        };
        self.changed.notify_all();
    }

    /// Ends the flight of a piece and gives its room back. Returns its range.
    pub(super) fn piece_ends(&self, state: &mut State, ticket: Ticket) -> Option<(u64, u64)> {
        let range = state.dirty.done(ticket);
        if let Some((_, length)) = range {
            self.shared.budget.release(length);
        }
        range
    }

    /// Changes what is buffered in another way than by a write, which has its room reserved, and has the budget follow.
    pub(super) fn rebuffer(&self, state: &mut State, change: impl FnOnce(&mut DirtyMap)) {
        let before = state.dirty.bytes();
        change(&mut state.dirty);
        let after = state.dirty.bytes();
        match after.checked_sub(before) {
            Some(more) => self.shared.budget.force(more),
            None => self.shared.budget.release(before - after),
        }
    }

    /// Returns the chunk that `offset` of the file is in, and the offset in that.
    pub(super) fn place(&self, offset: u64) -> (ChunkIndex, u32) {
        (ChunkIndex((offset / self.chunk_size) as u32), (offset % self.chunk_size) as u32)
    }

    /// Waits until no other change that gates writers is under way, and gates them.
    pub(super) fn gate<'a>(&'a self, _order: &MutexGuard<'_, ()>) -> Gate<'a> {
        let mut state = self.state.lock();
        debug_assert!(!state.is_gated, "the holder of `order` is the only one who gates");
        state.is_gated = true;
        Gate { file: self }
    }
}

/// Writers wait for as long as this lives.
pub(super) struct Gate<'a> {
    file: &'a FileState,
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.file.state.lock().is_gated = false;
        self.file.changed.notify_all();
    }
}

impl Layout {
    fn of(attr: &Attr, content: Option<Bytes>) -> Self {
        if attr.is_inline { Self::Inline { base: content, version: attr.data_version } } else { Self::Chunked }
    }

    pub(super) fn is_inline(&self) -> bool {
        matches!(self, Self::Inline { .. })
    }

    pub(super) fn is_chunked(&self) -> bool {
        matches!(self, Self::Chunked)
    }
}

impl State {
    /// Returns the size as this mount sees it.
    pub(super) fn size(&self) -> u64 {
        self.attr.size.max(self.acked_end).max(self.dirty.end())
    }

    /// Returns whether the master and the replicas know everything.
    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty() && !self.needs_commit()
    }

    /// Returns whether the master does not know everything that the replicas have.
    pub(super) fn needs_commit(&self) -> bool {
        self.mtime.is_some() || !self.acked.is_empty() || self.acked_end > self.attr.size || self.kill_suid_sgid
    }

    pub(super) fn overlay(&self, attr: &mut Attr) {
        if attr.seq < self.attr.seq {
            *attr = self.attr;
        }
        attr.size = attr.size.max(self.acked_end).max(self.dirty.end());
        if let Some(mtime) = self.mtime {
            attr.mtime = attr.mtime.max(mtime);
            attr.ctime = attr.ctime.max(mtime);
        }
        if self.kill_suid_sgid {
            attr.mode = without_set_id(attr.mode);
        }
    }

    pub(super) fn forget_acked_if_covered(&mut self) {
        if self.acked_end <= self.attr.size {
            self.acked_end = 0;
        }
    }

    /// Forgets what was pushed into chunks that other mounts dropped since.
    pub(super) fn drop_gone(&mut self, gone: &[ChunkIndex]) {
        if gone.is_empty() {
            return;
        }
        for index in gone {
            self.acked.remove(index);
            self.unsynced.remove(*index);
            if let Layout::Leaving { pushed, .. } = &mut self.layout {
                pushed.remove(index);
            }
        }
        let reach = self.acked.last().map_or(0, |last| (u64::from(last.0) + 1) * self.attr.chunk_size());
        self.acked_end = self.acked_end.min(reach);
        self.locations.forget_from(ChunkIndex(0));
    }

    /// Returns what is dirty of the first 16 KiB.
    pub(super) fn own_ranges(&self) -> RangeSet {
        let mut own = RangeSet::default();
        for part in self.dirty.read_over(0, INLINE_BYTES_MAX) {
            if part.data.is_some() {
                own.add(part.offset, part.offset + part.length);
            }
        }
        own
    }
}
