//! The end of a write: the data is where it belongs, now the inode says so.

use std::sync::Arc;

use dfs_proto::{FsError, UnixNanos, limits};

use super::{CUT_PENDING, open};
use crate::core::key::Key;
use crate::core::outcome::{Body, Outcome};
use crate::core::record::{Chunk, Inline, Inode, Record};
use crate::core::request::CommitWrite;
use crate::core::view::{Stop, View};

/// Takes note of written chunks and the size they reach; or replaces the content of an inline file; or lets a file
/// leave its inline content, which was copied into chunks.
///
/// # Errors
///
/// [`FsError::Stale`] if the file is not what the writer thought: its content changed meanwhile, it is (not) inline,
/// or a chunk is gone. [`FsError::FileTooBig`], [`FsError::Invalid`], [`CUT_PENDING`]; [`Stop`].
pub(super) fn commit_write(view: &View<'_>, now: UnixNanos, request: &CommitWrite) -> Result<Outcome, Stop> {
    let file = view.inode(request.inode)?;
    open::check_file(file.kind)?;
    check(&file, request)?;
    let mut outcome = Outcome::new(view);
    mark_written(&mut outcome, view, &file, request)?;
    let size = match &request.content {
        Some(content) => {
            let seq = outcome.seq();
            let record = Record::Inline(Inline { content: content.clone(), seq });
            outcome.put(Key::Inline(request.inode), record);
            content.len() as u64
        }
        None => file.size.max(request.end),
    };
    if request.leave_inline && file.size > 0 {
        outcome.delete(Key::Inline(request.inode));
    }
    let inode = outcome.edit(view, request.inode, |inode| {
        inode.size = size;
        inode.is_inline &= !request.leave_inline;
        inode.data_version += 1;
        inode.touch_content(now);
        if let Some(mtime) = request.mtime {
            inode.mtime = mtime;
        }
        if request.clear_suid_sgid {
            inode.clear_suid_sgid();
        }
    })?;
    Ok(outcome.reply(Body::Entry { inode, is_created: false }))
}

fn check(file: &Inode, request: &CommitWrite) -> Result<(), FsError> {
    let changes_inline = request.content.is_some() || request.leave_inline;
    if changes_inline && (!file.is_inline || request.if_data_version != file.data_version) {
        return Err(FsError::Stale("the content changed meanwhile"));
    }
    if !changes_inline && file.is_inline {
        return Err(FsError::Stale("the file is inline"));
    }
    if let Some(content) = &request.content {
        if request.leave_inline || !request.written.is_empty() {
            return Err(FsError::Invalid("content that is inline and not"));
        }
        if content.len() as u64 > limits::INLINE_BYTES_MAX {
            return Err(FsError::Invalid("inline content too long"));
        }
    }
    if request.end > limits::FILE_BYTES_MAX {
        return Err(FsError::FileTooBig);
    }
    if file.is_cut_pending && request.end > file.size {
        return Err(CUT_PENDING);
    }
    Ok(())
}

/// From here on an absent replica of these chunks is a lost one.
fn mark_written(outcome: &mut Outcome, view: &View<'_>, file: &Inode, request: &CommitWrite) -> Result<(), Stop> {
    let gone = || FsError::Stale("a chunk that was written is gone");
    if file.is_cut_pending
        && !request.written.is_empty()
        && let Some(Record::Cut(cut)) = view.find(&Key::Cut(file.id))?
        && request.written.iter().any(|index| cut.drops(*index))
    {
        return Err(gone().into());
    }
    let keys: Vec<Key> = request.written.iter().map(|index| Key::Chunk(request.inode, *index)).collect();
    for (key, record) in keys.iter().zip(view.find_all(&keys)?) {
        let Some(Record::Chunk(chunk)) = record else {
            return Err(gone().into());
        };
        if !chunk.is_written {
            let written = Chunk { is_written: true, seq: outcome.seq(), ..Chunk::clone(&chunk) };
            outcome.put(key.clone(), Record::Chunk(Arc::new(written)));
        }
    }
    Ok(())
}
