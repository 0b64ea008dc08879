//! `lseek` for data and holes, and `copy_file_range`.

use std::sync::Arc;

use dfs_proto::limits::LOCATIONS_MAX;
use dfs_proto::{ChunkIndex, FsError};

use super::state::FileState;
use super::table::{HandleId, Whence};
use super::write::WriteFlags;

/// Look-ups of one seek: past so many holes (4 TiB of the default layout) it says "data", which lseek(2) allows.
const LOOKUPS_MAX: u32 = 256;
/// One piece of a copy.
const COPY_PIECE_BYTES: u64 = 1 << 20;
/// Most bytes of one call: the kernel calls again, and may be interrupted in between.
const COPY_BYTES_MAX: u64 = 64 << 20;

impl FileState {
    pub(super) fn lseek(self: &Arc<Self>, offset: u64, whence: Whence) -> Result<u64, FsError> {
        self.settle()?;
        let chunk_size = self.chunk_size;
        let (size, is_inline) = {
            let state = self.state.lock();
            (state.size(), state.layout.is_inline())
        };
        if offset >= size {
            return Err(FsError::PastEnd);
        }
        if is_inline {
            return Ok(if whence == Whence::Data { offset } else { size });
        }
        let mut first = offset / chunk_size;
        let end = size.div_ceil(chunk_size);
        let mut lookups = 0;
        while first < end {
            if lookups == LOOKUPS_MAX {
                return Ok(if whence == Whence::Data { first * chunk_size } else { size });
            }
            lookups += 1;
            let count = (end - first).min(u64::from(LOCATIONS_MAX));
            let chunks = self.shared.backend.get_chunks(
                self.shared.settings.policy,
                self.inode,
                ChunkIndex(first as u32),
                count as u32,
                None,
            )?;
            let present: Vec<ChunkIndex> =
                chunks.locations.iter().filter(|location| !location.is_hole()).map(|location| location.index).collect();
            let mut present = present.into_iter().peekable();
            for index in first..first + count {
                let chunk_start = index * chunk_size;
                let from = offset.max(chunk_start);
                let to = (chunk_start + chunk_size).min(size);
                let is_present = present.next_if(|next| u64::from(next.0) == index).is_some();
                let found = if is_present {
                    self.seek_in_chunk(ChunkIndex(index as u32), chunk_start, from, to, whence)?
                } else if whence == Whence::Hole {
                    Some(from)
                } else {
                    None
                };
                if let Some(at) = found {
                    return Ok(at);
                }
            }
            first += count;
        }
        // There is a hole at the end of every file, and no data past the last.
        if whence == Whence::Hole { Ok(size) } else { Err(FsError::PastEnd) }
    }

    fn seek_in_chunk(
        &self,
        index: ChunkIndex,
        chunk_start: u64,
        from: u64,
        to: u64,
        whence: Whence,
    ) -> Result<Option<u64>, FsError> {
        let (offset, length) = ((from - chunk_start) as u32, (to - from) as u32);
        let extents =
            self.at_chunk("seek", index, |ask| self.shared.backend.extents(ask, offset, length))?.unwrap_or_default();
        let mut at = from;
        for (start, length) in extents {
            let start = chunk_start + u64::from(start);
            let end = start + u64::from(length);
            if end <= at {
                continue;
            }
            match whence {
                Whence::Data if start < to => return Ok(Some(at.max(start))),
                Whence::Hole if start > at => return Ok(Some(at)),
                _ => at = end,
            }
        }
        Ok((whence == Whence::Hole && at < to).then_some(at))
    }
}

/// Copies up to `length` bytes from one open file into another, or within one; returns how many.
pub(super) fn copy(
    (source, source_handle, source_offset): (&Arc<FileState>, HandleId, u64),
    (target, target_handle, target_offset): (&Arc<FileState>, HandleId, u64),
    length: u64,
) -> Result<u64, FsError> {
    let length = length.min(COPY_BYTES_MAX);
    let is_apart =
        source_offset.saturating_add(length) <= target_offset || target_offset.saturating_add(length) <= source_offset;
    if Arc::ptr_eq(source, target) && !is_apart {
        return Err(FsError::Invalid("copy_file_range: the ranges overlap"));
    }
    // What the copy itself appends is not its source.
    let length = length.min(source.state.lock().size().saturating_sub(source_offset));
    let mut copied = 0;
    while copied < length {
        let piece = (length - copied).min(COPY_PIECE_BYTES) as u32;
        let outcome = source
            .read(source_handle, source_offset + copied, piece)
            .and_then(|bytes| target.write(target_handle, target_offset + copied, &bytes, WriteFlags::default()));
        match outcome {
            Ok(0) => break,
            Ok(count) => copied += u64::from(count),
            // What is copied is copied.
            Err(_) if copied > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(copied)
}
