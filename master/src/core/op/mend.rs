//! Numbers that only repeat what records say, corrected after a check.

use dfs_proto::FsError;

use crate::core::check::Mend;
use crate::core::outcome::Outcome;
use crate::core::view::{Stop, View};

/// Applies the differences that a check found. An inode that is gone meanwhile changes nothing.
///
/// # Errors
///
/// [`FsError::Stale`] if a number would fall below zero: then it is not what it was when it was checked. [`Stop`].
pub fn mend(view: &View<'_>, mend: &Mend) -> Result<Outcome, Stop> {
    const CHANGED: FsError = FsError::Stale("it is not what it was when it was checked");
    let mut outcome = Outcome::new(view);
    match mend {
        Mend::Totals(delta) => {
            let mut totals = view.counters;
            delta.try_apply(&mut totals).ok_or(CHANGED)?;
            outcome.totals = *delta;
        }
        Mend::Inode { inode, nlink, entries, chunks, xattrs, xattr_name_bytes } => {
            let found = match view.inode(*inode) {
                Ok(found) => found,
                Err(Stop::Fail(FsError::NoEntry)) => return Ok(outcome),
                Err(stop) => return Err(stop),
            };
            let small = |number: u32, difference: i64| {
                u64::from(number).checked_add_signed(difference).and_then(|sum| u32::try_from(sum).ok()).ok_or(CHANGED)
            };
            let large = |number: u64, difference: i64| number.checked_add_signed(difference).ok_or(CHANGED);
            let mended = (
                small(found.nlink, *nlink)?,
                large(found.entries, *entries)?,
                large(found.chunks, *chunks)?,
                small(found.xattrs, *xattrs)?,
                small(found.xattr_name_bytes, *xattr_name_bytes)?,
            );
            outcome.edit(view, *inode, |inode| {
                (inode.nlink, inode.entries, inode.chunks, inode.xattrs, inode.xattr_name_bytes) = mended;
            })?;
        }
    }
    Ok(outcome)
}
