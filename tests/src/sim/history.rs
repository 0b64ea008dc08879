//! What clients did and saw, and what the bytes say of themselves.
//!
//! Data is written in *slots* of 2 KiB, half a unit, so that there are writes of parts of units. Each write stamps all
//! its slots with a number that no other write has, and each slot with its own place. So a slot that was read says which
//! write it comes from, whether it belongs there, and whether it is whole (C1). A slot is a register; what is known of
//! its operations is kept until the end and judged by [`crate::linearizability`] (C2, D1, D2).

use std::collections::BTreeMap;

use super::scheduler::Time;
use crate::linearizability::{Action, Operation, Violation, check};

/// Bytes in a slot.
pub const SLOT_BYTES: u32 = 2048;

/// A file of the simulation, in the order of their making. Not reused, as inodes are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// Slots `[first, first + count)` of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Which file.
    pub file: FileId,
    /// The first slot, counted from the file's begin.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Span {
    /// Returns its slots.
    pub fn slots(self) -> impl Iterator<Item = u32> {
        self.first..self.first + self.count
    }
}

fn word(value: u64, file: FileId, slot: u32, at: u64) -> u64 {
    let place = (u64::from(file.0) << 32 | u64::from(slot)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (value.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ place).wrapping_add(at.wrapping_mul(0xff51_afd7_ed55_8ccd)) | 1
}

/// Returns the bytes of the slots of `span` as write `value` makes them.
pub fn stamp(span: Span, value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((span.count * SLOT_BYTES) as usize);
    for slot in span.slots() {
        bytes.extend_from_slice(&value.to_le_bytes());
        for at in 1..u64::from(SLOT_BYTES) / 8 {
            bytes.extend_from_slice(&word(value, span.file, slot, at).to_le_bytes());
        }
    }
    bytes
}

/// Returns which write left `bytes` in a slot, 0 if it reads as zeros.
///
/// # Errors
///
/// If no write can have left them there.
pub fn read_stamp(file: FileId, slot: u32, bytes: &[u8]) -> Result<u64, String> {
    let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
    let value = words.next().unwrap_or(0);
    if value == 0 {
        return match words.position(|word| word != 0) {
            None => Ok(0),
            Some(at) => Err(format!("file {} slot {slot}: zeros, and something at word {}", file.0, at + 1)),
        };
    }
    match words.zip(1..).position(|(found, at)| found != word(value, file, slot, at)) {
        None => Ok(value),
        Some(at) => Err(format!("file {} slot {slot}: write {value} up to word {at}, then something else", file.0)),
    }
}

/// An operation that has begun, to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    span: Span,
    /// Its place in [`History::records`].
    at: usize,
}

#[derive(Clone, Debug)]
struct Recorded {
    span: Span,
    start: Time,
    end: Option<Time>,
    what: What,
    /// A write that a barrier answered for.
    is_covered: bool,
}

#[derive(Clone, Debug)]
enum What {
    /// 0: zeroed.
    Write(u64),
    Read(Vec<u64>),
    Barrier,
    Lose,
}

/// Everything that clients did.
#[derive(Debug, Default)]
pub struct History {
    records: Vec<Recorded>,
    /// Slots that were last seen with a value, by whom it was written: for `is_known`.
    written: BTreeMap<u64, Span>,
    next_value: u64,
}

impl History {
    /// Begins a write with a stamp of its own, which is returned too.
    pub fn begin_write(&mut self, span: Span, now: Time) -> (Begun, u64) {
        self.next_value += 1;
        let value = self.next_value;
        self.written.insert(value, span);
        (self.begin(span, now, What::Write(value)), value)
    }

    /// Begins to zero a range.
    pub fn begin_zero(&mut self, span: Span, now: Time) -> Begun {
        self.begin(span, now, What::Write(0))
    }

    /// Begins a barrier.
    pub fn begin_barrier(&mut self, span: Span, now: Time) -> Begun {
        self.begin(span, now, What::Barrier)
    }

    /// Notes that all copies of a range were in danger at once: what was not brought to stable media may be gone.
    pub fn lose(&mut self, span: Span, now: Time) {
        let begun = self.begin(span, now, What::Lose);
        self.end(begun, now);
    }

    fn begin(&mut self, span: Span, start: Time, what: What) -> Begun {
        self.records.push(Recorded { span, start, end: None, what, is_covered: false });
        Begun { span, at: self.records.len() - 1 }
    }

    /// Notes that a write, zero or barrier was answered.
    pub fn end(&mut self, begun: Begun, now: Time) {
        self.records[begun.at].end = Some(now);
    }

    /// Notes that a barrier answered for writes that had been acknowledged: from then until now nothing can have been lost of
    /// them.
    pub fn cover(&mut self, writes: &[Begun]) {
        for write in writes {
            self.records[write.at].is_covered = true;
        }
    }

    /// Notes a read that was answered with `bytes`; empty: all zeros. Returns the stamps.
    ///
    /// # Errors
    ///
    /// C1: if the bytes are not what writes leave.
    pub fn read(&mut self, span: Span, start: Time, now: Time, bytes: &[u8]) -> Result<Vec<u64>, String> {
        let mut values = Vec::with_capacity(span.count as usize);
        for (at, slot) in span.slots().enumerate() {
            let value = if bytes.is_empty() {
                0
            } else {
                let from = at * SLOT_BYTES as usize;
                let content = bytes.get(from..from + SLOT_BYTES as usize).ok_or("a read is short")?;
                read_stamp(span.file, slot, content)?
            };
            self.check_known(span.file, slot, value)?;
            values.push(value);
        }
        let what = What::Read(values.clone());
        self.records.push(Recorded { span, start, end: Some(now), what, is_covered: false });
        Ok(values)
    }

    /// Checks that write `value` was one of this slot.
    ///
    /// # Errors
    ///
    /// C1.
    pub fn check_known(&self, file: FileId, slot: u32, value: u64) -> Result<(), String> {
        let belongs = value == 0
            || self
                .written
                .get(&value)
                .is_some_and(|span| span.file == file && (span.first..span.first + span.count).contains(&slot));
        if belongs {
            Ok(())
        } else {
            Err(format!("file {} slot {slot} holds write {value}, which was elsewhere", file.0))
        }
    }

    /// Returns how many operations there were.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Judges the whole history, register by register.
    ///
    /// # Errors
    ///
    /// The first slot whose history no order explains, with that history.
    pub fn check(&self) -> Result<(), String> {
        let mut slots: BTreeMap<(FileId, u32), Vec<Operation>> = BTreeMap::new();
        for record in &self.records {
            for (at, slot) in record.span.slots().enumerate() {
                let action = match &record.what {
                    What::Write(value) => Action::Write(*value),
                    What::Read(values) => Action::Read(values[at]),
                    What::Barrier => Action::Barrier,
                    What::Lose => Action::Lose,
                };
                let operation = Operation { start: record.start.0, end: record.end.map(|end| end.0), action };
                let operations = slots.entry((record.span.file, slot)).or_default();
                // Neighbours share most of their history, and a loss of what nobody touched is none.
                if !(operations.is_empty() && matches!(action, Action::Lose | Action::Barrier)) {
                    operations.push(operation);
                }
                // As if it had been on stable media as soon as it was acknowledged.
                if let (true, Some(end)) = (record.is_covered, record.end) {
                    let at = end.0 + 1;
                    operations.push(Operation { start: at, end: Some(at), action: Action::Barrier });
                }
            }
        }
        let mut judged: Option<&Vec<Operation>> = None;
        for ((file, slot), operations) in &slots {
            if judged == Some(operations) {
                continue;
            }
            check(operations).map_err(|violation| explain(*file, *slot, operations, &violation))?;
            judged = Some(operations);
        }
        Ok(())
    }
}

fn explain(file: FileId, slot: u32, operations: &[Operation], violation: &Violation) -> String {
    let mut text = format!("file {} slot {slot}: {violation}; its history:", file.0);
    for Operation { start, end, action } in operations {
        let end = end.map_or_else(|| "?".to_owned(), |end| Time(end).to_string());
        text.push_str(&format!("\n    {}..{end} {action:?}", Time(*start)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { file: FileId(3), first: 4, count: 2 };

    #[test]
    fn a_slot_says_which_write_left_it() {
        let bytes = stamp(SPAN, 77);
        let (first, second) = bytes.split_at(SLOT_BYTES as usize);
        assert_eq!(read_stamp(FileId(3), 4, first), Ok(77));
        assert_eq!(read_stamp(FileId(3), 5, second), Ok(77));
        assert_eq!(read_stamp(FileId(3), 5, &[0; SLOT_BYTES as usize]), Ok(0));
    }

    #[test]
    fn garbage_is_told_from_writes() {
        let mut bytes = stamp(SPAN, 77);
        assert!(read_stamp(FileId(3), 5, &bytes[..SLOT_BYTES as usize]).is_err(), "another slot's");
        assert!(read_stamp(FileId(4), 4, &bytes[..SLOT_BYTES as usize]).is_err(), "another file's");
        bytes[700] ^= 1;
        assert!(read_stamp(FileId(3), 4, &bytes[..SLOT_BYTES as usize]).is_err(), "a flipped bit");
        let mut torn = vec![0; SLOT_BYTES as usize];
        torn[512..].copy_from_slice(&stamp(SPAN, 78)[512..SLOT_BYTES as usize]);
        assert!(read_stamp(FileId(3), 4, &torn).is_err(), "the end of a write");
    }

    #[test]
    fn what_a_barrier_answered_for_cannot_have_been_lost_before_it() {
        for is_covered in [false, true] {
            let mut history = History::default();
            let (write, _) = history.begin_write(SPAN, Time(1));
            history.end(write, Time(2));
            history.lose(SPAN, Time(5));
            let barrier = history.begin_barrier(SPAN, Time(7));
            if is_covered {
                history.cover(&[write]);
            }
            history.end(barrier, Time(8));
            history.read(SPAN, Time(9), Time(10), &[]).expect("well formed");
            assert_eq!(history.check().is_err(), is_covered);
        }
    }

    #[test]
    fn a_stale_read_is_found() {
        let mut history = History::default();
        let (write, value) = history.begin_write(SPAN, Time(1));
        history.end(write, Time(2));
        history.read(SPAN, Time(3), Time(4), &stamp(SPAN, value)).expect("well formed");
        history.check().expect("as it should be");
        history.read(SPAN, Time(5), Time(6), &[]).expect("well formed");
        let report = history.check().expect_err("zeros after a write");
        assert!(report.contains("file 3 slot 4"), "{report}");
    }
}
