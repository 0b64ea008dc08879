//! Reads: from the buffer, from what was read ahead, or from the primary of the chunk.
//!
//! Cost of a read that nothing is known of: one round trip, on the thread that asks, and the location once a chunk.
//! What is one piece is handed on without a copy.

use std::sync::{Arc, LazyLock};

use bytes::{Bytes, BytesMut};
use dfs_proto::FsError;
use dfs_proto::limits::DATA_BYTES_MAX;

use super::state::{FileState, Layout};
use super::table::HandleId;
use crate::cache::{Fetch, Found};
use crate::core::Policy;

/// What is read ahead is not worth more patience: whoever needs it asks for it again, with all of the policy's.
const AHEAD_POLICY: Policy = Policy::Soft { ms: 500 };

static ZEROS: LazyLock<Bytes> = LazyLock::new(|| vec![0; DATA_BYTES_MAX as usize].into());

/// Returns `length` zeros, at most 1 MiB.
fn zeros(length: u64) -> Bytes {
    ZEROS.slice(..length as usize)
}

impl FileState {
    pub(super) fn read(self: &Arc<Self>, handle: HandleId, offset: u64, size: u32) -> Result<Bytes, FsError> {
        let mut state = self.state.lock();
        let (length, parts) = loop {
            let file_size = state.size();
            if offset >= file_size || size == 0 {
                return Ok(Bytes::new());
            }
            let length = u64::from(size).min(file_size - offset);
            match &state.layout {
                Layout::Inline { base: Some(base), .. } => {
                    if state.dirty.is_empty() && offset + length <= base.len() as u64 {
                        return Ok(base.slice(offset as usize..(offset + length) as usize));
                    }
                    let content = super::commit::inline_content(&state, base);
                    return Ok(content.slice(offset as usize..(offset + length) as usize));
                }
                Layout::Inline { base: None, .. } => self.wait_for_inline(&mut state)?,
                Layout::Leaving { .. } | Layout::Chunked => {
                    self.note_read(&mut state, handle, offset, length, file_size);
                    break (length, state.dirty.read_over(offset, length));
                }
            }
        };
        drop(state);

        let mut pieces: Vec<Bytes> = Vec::with_capacity(parts.len());
        for part in parts {
            match part.data {
                Some(data) => pieces.push(data),
                None => self.fetch(handle, part.offset, part.length, &mut pieces)?,
            }
        }
        Ok(joined(pieces, length))
    }

    fn note_read(
        self: &Arc<Self>,
        state: &mut super::state::State,
        handle_id: HandleId,
        offset: u64,
        length: u64,
        file_size: u64,
    ) {
        let shared = &self.shared;
        let Some(handle) = state.handles.get_mut(&handle_id) else { return };
        let wanted = handle.ahead.note(offset, length, file_size, shared.ahead_allowed());
        handle.recount(shared);
        if wanted > handle.ahead_queued {
            let more = wanted - handle.ahead_queued;
            handle.ahead_queued = wanted;
            shared.readers.kick(self, handle_id, more);
        }
    }

    /// Fetches `[offset, offset + length)`, from what was read ahead as far as it goes.
    fn fetch(
        self: &Arc<Self>,
        handle_id: HandleId,
        mut offset: u64,
        length: u64,
        pieces: &mut Vec<Bytes>,
    ) -> Result<(), FsError> {
        let end = offset + length;
        while offset < end {
            let mut state = self.state.lock();
            let found = match state.handles.get_mut(&handle_id) {
                Some(handle) if !handle.ahead.is_empty() => {
                    let found = handle.ahead.find(offset, end - offset);
                    handle.recount(&self.shared);
                    found
                }
                _ => Found::Miss(end - offset),
            };
            match found {
                Found::Ready(bytes) => {
                    self.shared.metrics.read_ahead_hits.inc();
                    offset += bytes.len() as u64;
                    pieces.push(bytes);
                }
                Found::Fetching => self.changed.wait(&mut state),
                Found::Take(fetch) => {
                    drop(state);
                    self.fetch_piece(handle_id, fetch);
                }
                Found::Miss(length) => {
                    drop(state);
                    self.read_through(offset, length, self.shared.settings.policy, pieces)?;
                    offset += length;
                }
            }
        }
        Ok(())
    }

    /// A reader's turn: fetches one piece that is wanted ahead.
    pub(super) fn fetch_ahead(self: &Arc<Self>, handle_id: HandleId) {
        let mut state = self.state.lock();
        let Some(handle) = state.handles.get_mut(&handle_id) else { return };
        handle.ahead_queued -= 1;
        let Some(fetch) = handle.ahead.start() else { return };
        drop(state);
        self.fetch_piece(handle_id, fetch);
    }

    fn fetch_piece(self: &Arc<Self>, handle_id: HandleId, fetch: Fetch) {
        let mut pieces = Vec::new();
        // A failure is found again, with its retries and its error, by whoever reads there.
        let outcome = self.read_through(fetch.offset, fetch.length, AHEAD_POLICY, &mut pieces);
        let bytes = outcome.ok().map(|()| joined(pieces, fetch.length));
        let mut state = self.state.lock();
        if let Some(handle) = state.handles.get_mut(&handle_id) {
            handle.ahead.arrived(&fetch, bytes);
            handle.recount(&self.shared);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Reads from the chunks, whatever is buffered above them.
    fn read_through(&self, offset: u64, length: u64, policy: Policy, pieces: &mut Vec<Bytes>) -> Result<(), FsError> {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let (index, within) = self.place(at);
            let chunk_end = at - u64::from(within) + self.chunk_size;
            let part = (end.min(chunk_end) - at).min(u64::from(DATA_BYTES_MAX));
            let data =
                self.at_chunk_for(policy, "read", index, |ask| self.shared.backend.read(ask, within, part as u32))?;
            pieces.push(match data {
                Some(data) if !data.all_zero => data.bytes,
                _ => zeros(part),
            });
            at += part;
        }
        Ok(())
    }
}

/// Returns the pieces as one; `length` is their sum.
fn joined(mut pieces: Vec<Bytes>, length: u64) -> Bytes {
    if pieces.len() == 1 {
        return pieces.swap_remove(0);
    }
    let mut bytes = BytesMut::with_capacity(length as usize);
    for piece in pieces {
        bytes.extend_from_slice(&piece);
    }
    bytes.freeze()
}
