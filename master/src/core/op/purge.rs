//! The purge of orphans that nobody has open, in bounded steps.

use dfs_proto::{ChunkIndex, FsError, InodeId, UnixNanos};

use super::{chunk_list, removal};
use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Inode, Orphan, Record};
use crate::core::view::{Stop, View};

/// Takes up to `limit` chunks from orphan `id`, and its attributes and itself once none is left. One that is open
/// again, or gone, is left alone. The caller sees from the totals what was done, and from `purgeable` that there is
/// more to do.
///
/// # Errors
///
/// [`FsError::Io`] if an orphan record has no inode; [`Stop`].
pub fn purge(view: &View<'_>, now: UnixNanos, id: InodeId, limit: usize) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    if view.opens.is_open(id) {
        return Ok(outcome);
    }
    let Some(Record::Orphan(Orphan { purge_from, .. })) = view.find(&Key::Orphan(id))? else { return Ok(outcome) };
    let Some(Record::Inode(orphan)) = view.find(&Key::Inode(id))? else {
        return Err(FsError::Io(format!("orphan {id} has no inode")).into());
    };
    if orphan.chunks > 0 {
        let range = (purge_from, ChunkIndex(u32::MAX));
        let (dropped, left) = chunk_list::drop_range(&mut outcome, view, now, id, range, limit)?;
        if dropped < orphan.chunks {
            // From the start if there was one more behind us: a mount may write to what nobody has open.
            let (purge_from, _) = left.unwrap_or(chunk_list::ALL);
            let seq = outcome.seq();
            outcome.put(Key::Orphan(id), Record::Orphan(Orphan { purge_from, seq }));
            outcome.edit(view, id, |inode| inode.chunks -= dropped)?;
            outcome.purgeable.push(id);
            return Ok(outcome);
        }
    }
    // Not `close_orphan`, which would queue one with many attributes for the purge again.
    let emptied = Inode { chunks: 0, ..Inode::clone(&orphan) };
    removal::erase_orphan(&mut outcome, view, now, &emptied)?;
    Ok(outcome)
}
