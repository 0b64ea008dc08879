//! The end of a truncate whose last chunk had to be zeroed from the new end on.

use crate::core::care::CutIntent;
use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::Record;
use crate::core::view::{Stop, View};

/// Forgets the intent. One that is gone already (the file is, or somebody else finished it) changes nothing.
///
/// # Errors
///
/// [`Stop`].
pub fn cut_done(view: &View<'_>, cut: &CutIntent) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    if let Some(Record::Cut(pending)) = view.find(&Key::Cut(cut.inode))?
        && pending.seq.0 == cut.number
    {
        outcome.delete(Key::Cut(cut.inode));
        outcome.edit(view, cut.inode, |inode| inode.is_cut_pending = false)?;
    }
    Ok(outcome)
}
