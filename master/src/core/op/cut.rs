//! The rest of a truncate or punch, after the change that programs see.
//!
//! ```text
//! truncate, punch ──▶ size and times, the first chunks dropped, a cut record    what the record names is hidden
//!   drop_more, …  ──▶ more chunks dropped, a bounded number a batch
//!   (zeroed by the primary)
//!   cut_done      ──▶ the record goes
//! ```
//!
//! Meanwhile nothing is allocated, read or committed where the record stands, and the size neither grows nor shrinks, so
//! a chunk that counts as gone is never seen again, even if the file grows back.

use dfs_proto::{InodeId, UnixNanos};

use super::chunk_list;
use crate::core::care::CutIntent;
use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Cut, Record};
use crate::core::view::{Stop, View};

/// Notes what is left to do of a change of `inode`. The caller sets `is_cut_pending`.
pub(super) fn leave(outcome: &mut Outcome, inode: InodeId, cut: Cut) {
    outcome.put(Key::Cut(inode), Record::Cut(cut));
    outcome.cut = Some(CutIntent { inode, number: cut.seq.0 });
}

/// Returns what is left to do of `cut`; `None` if that is done, or the file is gone.
///
/// # Errors
///
/// [`Stop`].
pub fn pending(view: &View<'_>, cut: &CutIntent) -> Result<Option<Cut>, Stop> {
    Ok(match view.find(&Key::Cut(cut.inode))? {
        Some(Record::Cut(pending)) if pending.seq.0 == cut.number => Some(pending),
        _ => None,
    })
}

/// Drops up to `limit` more of the chunks that count as gone. With the last of them the cut is done, unless something is
/// to be zeroed too.
///
/// # Errors
///
/// [`Stop`].
pub fn drop_more(view: &View<'_>, now: UnixNanos, cut: &CutIntent, limit: usize) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    let Some(Cut { drops: Some(range), zero, since, seq }) = pending(view, cut)? else { return Ok(outcome) };
    let (dropped, left) = chunk_list::drop_range(&mut outcome, view, now, cut.inode, range, limit)?;
    let is_done = left.is_none() && zero.is_none();
    if is_done {
        outcome.delete(Key::Cut(cut.inode));
    } else {
        outcome.put(Key::Cut(cut.inode), Record::Cut(Cut { drops: left, zero, since, seq }));
    }
    outcome.edit(view, cut.inode, |inode| {
        inode.chunks -= dropped;
        inode.is_cut_pending = !is_done;
    })?;
    Ok(outcome)
}

/// Forgets the cut. One that is gone already (the file is, or somebody else finished it) changes nothing.
///
/// # Errors
///
/// [`Stop`].
pub fn cut_done(view: &View<'_>, cut: &CutIntent) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    if pending(view, cut)?.is_some_and(|pending| pending.drops.is_none()) {
        outcome.delete(Key::Cut(cut.inode));
        outcome.edit(view, cut.inode, |inode| inode.is_cut_pending = false)?;
    }
    Ok(outcome)
}
