//! What happens to an inode when it loses a name, and how one that nobody can reach any more goes.
//!
//! ```text
//! nlink > 0 ── name lost ──▶ nlink = 0, open ─── orphan ── last close ──┐
//!                   └──────▶ nlink = 0, not open ──────────────────────▶ gone   (in steps if it is large)
//! ```

use dfs_proto::{ChunkIndex, InodeId, UnixNanos};

use super::chunk_list;
use crate::core::key::{Key, Range};
use crate::core::outcome::Outcome;
use crate::core::record::{Inode, Orphan, Record};
use crate::core::view::{Stop, View};

/// Chunks, and extended attributes, up to which an inode goes in one step; a larger one is left to the purge.
pub(super) const PARTS_AT_ONCE: u64 = 64;

/// Takes one name from `inode` (from a directory: its only one).
///
/// # Errors
///
/// [`Stop`] of the reads.
pub(super) fn lose_name(outcome: &mut Outcome, view: &View<'_>, now: UnixNanos, inode: InodeId) -> Result<(), Stop> {
    let lost = outcome.edit(view, inode, |inode| {
        inode.nlink = if inode.is_directory() { 0 } else { inode.nlink.saturating_sub(1) };
        inode.touch_attributes(now);
    })?;
    if lost.nlink > 0 {
        return Ok(());
    }
    let is_open = view.opens.is_open(inode);
    if !is_open && is_small(&lost) {
        return erase(outcome, view, now, &lost);
    }
    let seq = outcome.seq();
    outcome.put(Key::Orphan(inode), Record::Orphan(Orphan { purge_from: ChunkIndex(0), seq }));
    outcome.totals.orphans += 1;
    if !is_open {
        outcome.purgeable.push(inode);
    }
    Ok(())
}

/// Lets an orphan go that nobody has open any more.
///
/// # Errors
///
/// [`Stop`] of the reads.
pub(super) fn close_orphan(outcome: &mut Outcome, view: &View<'_>, now: UnixNanos, orphan: &Inode) -> Result<(), Stop> {
    if is_small(orphan) {
        erase_orphan(outcome, view, now, orphan)
    } else {
        outcome.purgeable.push(orphan.id);
        Ok(())
    }
}

fn is_small(inode: &Inode) -> bool {
    inode.chunks <= PARTS_AT_ONCE && u64::from(inode.xattrs) <= PARTS_AT_ONCE
}

/// Deletes an orphan, however large, with everything that belongs to it.
///
/// # Errors
///
/// [`Stop`] of the reads.
pub(super) fn erase_orphan(outcome: &mut Outcome, view: &View<'_>, now: UnixNanos, orphan: &Inode) -> Result<(), Stop> {
    outcome.delete(Key::Orphan(orphan.id));
    outcome.totals.orphans -= 1;
    erase(outcome, view, now, orphan)
}

/// Deletes an inode and everything that belongs to it.
///
/// # Errors
///
/// [`Stop`] of the reads.
fn erase(outcome: &mut Outcome, view: &View<'_>, now: UnixNanos, inode: &Inode) -> Result<(), Stop> {
    let id = inode.id;
    chunk_list::drop_all(outcome, view, now, inode)?;
    if inode.xattrs > 0 {
        for (key, _) in view.scan(Range::xattrs(id))?.iter() {
            outcome.delete(key.clone());
        }
    }
    if inode.size > 0 && !inode.is_directory() {
        // Nothing is there unless it is inline or a symlink; a delete of nothing is harmless.
        outcome.delete(Key::Inline(id));
    }
    if inode.is_cut_pending {
        outcome.delete(Key::Cut(id));
    }
    outcome.remove(view, id)
}
