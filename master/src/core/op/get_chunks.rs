//! Where the content of a file is.

use dfs_proto::{ChunkIndex, FsError, InodeId};

use super::{CUT_PENDING, open};
use crate::core::key::Key;
use crate::core::outcome::{Body, Outcome};
use crate::core::record::Record;
use crate::core::view::{Stop, View};

/// Reads which chunks stand at `count` places from `first` on; a hole has none.
///
/// # Errors
///
/// [`CUT_PENDING`] if a truncate or punch has yet to zero or drop one of them: until then it shows bytes that are gone.
/// [`FsError::NoEntry`], [`FsError::IsDirectory`], [`FsError::Invalid`]; [`Stop`].
pub(super) fn get_chunks(view: &View<'_>, inode: InodeId, first: ChunkIndex, count: u32) -> Result<Outcome, Stop> {
    let file = view.inode(inode)?;
    open::check_file(file.kind)?;
    check_no_cut(view, inode, file.is_cut_pending, first, count)?;
    let chunks = if file.chunks == 0 {
        (0..count).map_while(|at| first.0.checked_add(at)).map(|index| (ChunkIndex(index), None)).collect()
    } else {
        let found = view.chunks(inode, first, count)?;
        found.into_iter().zip(first.0..=u32::MAX).map(|(chunk, index)| (ChunkIndex(index), chunk)).collect()
    };
    Ok(Outcome::read(view, Body::Chunks { inode: file, chunks }))
}

/// Reads the content of an inline file; of any other, that it is not inline.
///
/// # Errors
///
/// [`FsError::NoEntry`], [`FsError::IsDirectory`], [`FsError::Invalid`]; [`Stop`].
pub(super) fn get_inline(view: &View<'_>, inode: InodeId) -> Result<Outcome, Stop> {
    let file = view.inode(inode)?;
    open::check_file(file.kind)?;
    let content = open::inline_content(view, &file)?;
    Ok(Outcome::read(view, Body::Inline { inode: file, content }))
}

/// Refuses a range with a chunk that is yet to be cut or dropped.
///
/// # Errors
///
/// [`CUT_PENDING`]; [`Stop::Read`].
pub(super) fn check_no_cut(
    view: &View<'_>,
    inode: InodeId,
    is_cut_pending: bool,
    first: ChunkIndex,
    count: u32,
) -> Result<(), Stop> {
    if !is_cut_pending {
        return Ok(());
    }
    match view.find(&Key::Cut(inode))? {
        Some(Record::Cut(cut)) if cut.hides(first, count) => Err(CUT_PENDING.into()),
        Some(_) => Ok(()),
        None => Err(FsError::Io(format!("inode {inode} has a cut pending but no record of it")).into()),
    }
}
