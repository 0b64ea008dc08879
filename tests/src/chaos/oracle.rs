//! What a file may hold, by what was acknowledged.
//!
//! One writer at a time has a file, through one mount. For each cell, and for the size, three lists of values are kept,
//! oldest first:
//!
//! ```text
//! stable ── base ── unflushed        write: to unflushed        read where it was written: the last
//!   ▲         ▲                      close: unflushed ▶ base     read elsewhere: one of base
//!   │         └ close                fsync: unflushed ▶ base, stable
//!   └ fsync                          mount killed: base or unflushed      power of all cut: any of all
//! ```
//!
//! An fsync covers what was written through its own mount, while that lives: those who wrote are kept, and the values
//! are stable once each of them has synced. One that succeeds after a cut of all power says too that what its handle wrote
//! before the cut is there: it would have failed if any of that were lost.
//!
//! After a kill or a cut of the power several values are possible; [`File::settle`] takes what was found as what is there
//! from then on. A kill of servers changes nothing here: what was closed is where it was.

use std::collections::{BTreeMap, BTreeSet};

use super::stamp::Content;

/// A value that changes, and what may become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Register<T> {
    /// What whoever opens the file now may find.
    base: Vec<T>,
    /// What was written since the last close, and not taken back.
    unflushed: Vec<T>,
    /// What may be there after all power was cut: the value at the last fsync, and all since.
    stable: Vec<T>,
    /// What was written last before all power was cut, and not closed yet: it may be lost, and an fsync that succeeds says
    /// that it is not.
    doubtful: Option<T>,
}

impl<T: Copy + PartialEq> Register<T> {
    fn new(value: T) -> Self {
        Self { base: vec![value], unflushed: Vec::new(), stable: vec![value], doubtful: None }
    }

    fn write(&mut self, value: T) {
        self.unflushed.push(value);
        self.stable.push(value);
        self.doubtful = None;
    }

    /// The value as who writes it sees it, if that is known.
    fn current(&self) -> Option<T> {
        match (&self.unflushed[..], &self.base[..]) {
            ([.., last], _) => Some(*last),
            ([], [only]) => Some(*only),
            _ => None,
        }
    }

    fn flush(&mut self) {
        if let Some(last) = self.unflushed.pop() {
            self.base = vec![last];
            self.unflushed.clear();
        }
    }

    fn close(&mut self) {
        self.flush();
        self.doubtful = None;
    }

    /// What is written is where a close brings it, and there whatever happened before.
    fn confirm(&mut self) {
        self.unflushed.extend(self.doubtful.take());
        self.flush();
    }

    fn sync(&mut self) {
        self.confirm();
        if let [only] = self.base[..] {
            self.stable = vec![only];
        }
    }

    fn lose_mount(&mut self) {
        self.base.append(&mut self.unflushed);
        self.doubtful = None;
    }

    fn lose_power(&mut self) {
        self.doubtful = self.unflushed.pop().or(self.doubtful);
        self.unflushed.clear();
        self.base.extend(&self.stable);
    }

    fn settle(&mut self, found: T) {
        self.base = vec![found];
        self.unflushed.clear();
        self.doubtful = None;
        self.stable.push(found);
    }

    fn is_certain(&self) -> bool {
        self.unflushed.is_empty() && self.base.len() == 1
    }
}

/// What was found where something else should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch(pub String);

/// A mount, and which of its lives.
pub type Writer = (usize, u64);

/// What is known of a file.
#[derive(Clone, Debug)]
pub struct File {
    size: Register<u64>,
    /// Cells that were ever written.
    cells: BTreeMap<u32, Register<Content>>,
    next_number: u32,
    /// Those who wrote since their last fsync. One that was killed stays: nobody syncs what it wrote.
    unsynced: BTreeSet<Writer>,
    /// Those of them who have yet to be told, by their next fsync, of what all power took.
    untold: BTreeSet<Writer>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            size: Register::new(0),
            cells: BTreeMap::new(),
            next_number: 1,
            unsynced: BTreeSet::new(),
            untold: BTreeSet::new(),
        }
    }
}

/// Cells that were read: the first, how many, and what all of them hold.
pub type Run = (u32, u32, Content);

impl File {
    /// Returns the number for the next write.
    pub fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Returns the size in bytes as the writer sees it, if that is known.
    pub fn size(&self) -> Option<u64> {
        self.size.current()
    }

    /// Returns whether every reader finds the same, and nothing else.
    pub fn is_certain(&self) -> bool {
        let end = (self.size.base[0] / super::stamp::CELL) as u32;
        self.size.is_certain() && self.cells.range(..end).all(|(_, cell)| cell.is_certain())
    }

    /// Notes who is about to write or cut.
    pub fn written_by(&mut self, writer: Writer) {
        self.unsynced.insert(writer);
    }

    /// Notes that cells were, or may have been, written.
    pub fn write(&mut self, first: u32, count: u32, number: u32) {
        for index in first..first + count {
            self.cell(index).write(Content::Stamp(number));
        }
        let end = u64::from(first + count) * super::stamp::CELL;
        // Of an uncertain size, none is known to be exceeded.
        if self.size.current().is_none_or(|size| size < end) {
            self.size.write(end);
        }
    }

    /// Notes that the size was, or may have been, set.
    pub fn truncate(&mut self, size: u64) {
        let first = (size / super::stamp::CELL) as u32;
        for (_, cell) in self.cells.range_mut(first..) {
            cell.write(Content::Zeros);
        }
        self.size.write(size);
    }

    /// Notes a close that succeeded.
    pub fn closed(&mut self) {
        self.cells.values_mut().for_each(Register::close);
        self.size.close();
    }

    /// Notes an fsync that succeeded.
    pub fn synced(&mut self, writer: Writer) {
        self.unsynced.remove(&writer);
        self.untold.remove(&writer);
        if !self.unsynced.is_empty() {
            self.cells.values_mut().for_each(Register::confirm);
            return self.size.confirm();
        }
        self.cells.values_mut().for_each(Register::sync);
        self.size.sync();
    }

    /// Returns whether an fsync or close of `writer` may fail because of what all power took, once.
    pub fn may_tell_of_loss(&mut self, writer: Writer) -> bool {
        self.untold.remove(&writer)
    }

    /// Notes the death of the mount through which it was written, or an operation of which nobody knows what it did.
    pub fn mount_lost(&mut self) {
        self.cells.values_mut().for_each(Register::lose_mount);
        self.size.lose_mount();
    }

    /// Notes that all chunk servers lost their power at the same time. The size is the master's.
    pub fn power_lost(&mut self) {
        self.untold.extend(&self.unsynced);
        for cell in self.cells.values_mut() {
            cell.lose_power();
            // What was cut off is zeroed by the master: an fsync of the mount does not know of it.
            cell.doubtful = cell.doubtful.filter(|content| *content != Content::Zeros);
        }
    }

    /// Checks what the writer reads through its own mount.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn check_own(&self, runs: &[Run]) -> Result<(), Mismatch> {
        self.check(runs, |cell| match cell.current() {
            Some(current) => vec![current],
            None => [&cell.base[..], &cell.unflushed].concat(),
        })
    }

    /// Checks what is read after an open, through any mount, when the writer has closed it or is dead.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn check_fresh(&self, runs: &[Run]) -> Result<(), Mismatch> {
        self.check(runs, |cell| cell.base.clone())
    }

    /// Checks a size that was found after an open.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn check_size(&self, found: u64) -> Result<(), Mismatch> {
        let (min, max) = (self.size.base.iter().min(), self.size.base.iter().max());
        // A file that was being extended when its mount died may have any part of that.
        if (min..=max).contains(&Some(&found)) {
            return Ok(());
        }
        Err(Mismatch(format!("size {found}, expected {:?}", self.size)))
    }

    /// Takes what was found as what is there.
    pub fn settle(&mut self, size: u64, runs: &[Run]) {
        self.size.settle(size);
        let cells_end = (size / super::stamp::CELL) as u32;
        // What lies behind the end of a file whose mount was killed may show again when the file grows: see
        // docs/decisions/0006. All that it ever may have been stays possible there.
        for (index, cell) in &mut self.cells {
            if *index >= cells_end && !cell.is_certain() {
                cell.lose_mount();
                cell.base.push(Content::Zeros);
            }
        }
        for (first, count, content) in runs {
            for index in *first..first + count {
                if *content != Content::Zeros || self.cells.contains_key(&index) {
                    self.cell(index).settle(*content);
                }
            }
        }
    }

    /// Returns the ranges of cells that matter: those ever written, below the size, with a hole of at most `gap` cells
    /// between two in one range.
    pub fn ranges(&self, gap: u32) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for index in self.cells.keys() {
            match ranges.last_mut() {
                Some((first, count)) if *index <= *first + *count + gap => *count = index + 1 - *first,
                _ => ranges.push((*index, 1)),
            }
        }
        ranges
    }

    fn cell(&mut self, index: u32) -> &mut Register<Content> {
        self.cells.entry(index).or_insert_with(|| Register::new(Content::Zeros))
    }

    fn check(&self, runs: &[Run], allowed: impl Fn(&Register<Content>) -> Vec<Content>) -> Result<(), Mismatch> {
        for (first, count, content) in runs {
            for index in *first..first + count {
                let allowed = self.cells.get(&index).map_or_else(|| vec![Content::Zeros], &allowed);
                if !allowed.contains(content) {
                    let cell = self.cells.get(&index);
                    return Err(Mismatch(format!("cell {index} holds {content:?}, not one of {allowed:?} ({cell:?})")));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Content::{Stamp, Zeros};

    const ME: Writer = (0, 0);

    /// Returns which of writes 1, 2, 3 (and 0 for none) a fresh reader may find, after 1 was synced, 2 closed, and 3
    /// written and not closed.
    fn possible(then: impl Fn(&mut File)) -> Vec<u32> {
        let mut file = File::default();
        file.write(0, 1, 1);
        file.synced(ME);
        file.write(0, 1, 2);
        file.closed();
        file.write(0, 1, 3);
        then(&mut file);
        (0..4)
            .filter(|number| {
                let content = if *number == 0 { Zeros } else { Stamp(*number) };
                file.check_fresh(&[(0, 1, content)]).is_ok()
            })
            .collect()
    }

    #[test]
    fn what_may_be_found_after_what() {
        assert_eq!(possible(|_| ()), [2]);
        assert_eq!(possible(File::closed), [3]);
        assert_eq!(possible(File::mount_lost), [2, 3]);
        assert_eq!(possible(File::power_lost), [1, 2, 3]);
        assert_eq!(possible(|file| (file.synced(ME), file.power_lost()).1), [3]);
        assert_eq!(possible(|file| (file.closed(), file.power_lost()).1), [1, 2, 3]);
        // What an fsync says is true, also of what was pushed before the power went.
        assert_eq!(possible(|file| (file.power_lost(), file.synced(ME)).1), [3]);
        assert_eq!(possible(|file| (file.power_lost(), file.power_lost(), file.synced(ME)).2), [3]);
        assert_eq!(possible(|file| (file.power_lost(), file.closed(), file.synced(ME)).2), [1, 2, 3]);
        assert_eq!(possible(|file| (file.power_lost(), file.mount_lost(), file.synced(ME)).2), [1, 2, 3]);
        // An fsync of one mount, while another one has not synced what it wrote.
        let by_other = |file: &mut File| (file.written_by((1, 0)), file.synced(ME), file.power_lost()).2;
        assert_eq!(possible(by_other), [1, 2, 3]);
        let by_both =
            |file: &mut File| (file.written_by((1, 0)), file.synced(ME), file.synced((1, 0)), file.power_lost()).3;
        assert_eq!(possible(by_both), [3]);
        assert_eq!(possible(|file| (file.power_lost(), file.closed()).1), [1, 2, 3]);
        assert_eq!(possible(|file| (file.mount_lost(), file.settle(512, &[(0, 1, Stamp(2))])).1), [2]);
    }

    #[test]
    fn a_loss_is_told_once_to_who_had_not_synced() {
        let mut file = File::default();
        file.written_by(ME);
        assert!(!file.may_tell_of_loss(ME), "nothing was lost");
        file.power_lost();
        assert!(!file.may_tell_of_loss((1, 0)), "another mount has nothing to be told");
        assert!(file.may_tell_of_loss(ME) && !file.may_tell_of_loss(ME));
        file.synced(ME);
        file.power_lost();
        assert!(!file.may_tell_of_loss(ME), "it was synced");
    }

    #[test]
    fn the_writer_reads_its_own_writes() {
        let mut file = File::default();
        file.write(2, 2, 1);
        file.write(3, 1, 2);
        file.check_own(&[(0, 2, Zeros), (2, 1, Stamp(1)), (3, 1, Stamp(2))]).unwrap();
        assert!(file.check_own(&[(3, 1, Stamp(1))]).is_err() && file.check_own(&[(0, 1, Content::Foreign)]).is_err());
        assert_eq!(file.size(), Some(2048));
        file.truncate(512);
        file.check_own(&[(2, 2, Zeros)]).unwrap();
        assert_eq!(file.ranges(0), [(2, 2)]);
    }

    #[test]
    fn a_size_of_a_mount_that_died_lies_between() {
        let mut file = File::default();
        file.write(0, 2, 1);
        file.closed();
        file.write(2, 6, 2);
        assert!(file.check_size(1024).is_ok() && file.check_size(2048).is_err());
        file.mount_lost();
        assert!(file.check_size(2048).is_ok() && file.check_size(4096).is_ok() && file.check_size(512).is_err());
        assert!(!file.is_certain());
        file.settle(1024, &[(0, 2, Stamp(1))]);
        // Bytes that the dead mount pushed may lie behind the end.
        assert_eq!(file.size(), Some(1024));
        assert!(file.check_fresh(&[(2, 1, Stamp(2))]).is_ok() && file.check_fresh(&[(2, 1, Zeros)]).is_ok());
    }
}
