//! What clients asked for and were told, and whether one register of that can be explained (Wing & Gong, with a memo).

use std::collections::BTreeSet;

/// One operation on one register.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub start: u64,
    /// `u64::MAX`: nobody knows whether it was done.
    pub end: u64,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write(u64),
    Read(u64),
}

/// Returns whether there is an order of the operations on a register that began with 0 in which each takes effect between
/// its start and its end.
pub fn is_linearizable(operations: &[Operation]) -> bool {
    assert!(operations.len() <= 128, "too long a history");
    let must: u128 = operations.iter().enumerate().filter(|(_, one)| one.end != u64::MAX).map(|(at, _)| 1 << at).sum();
    let mut seen = BTreeSet::new();
    let mut stack = vec![(0u128, 0u64)];
    while let Some((done, value)) = stack.pop() {
        if done & must == must {
            return true;
        }
        if !seen.insert((done, value)) {
            continue;
        }
        let left = || operations.iter().enumerate().filter(|(at, _)| done & (1 << at) == 0);
        // Whatever starts after another one has ended cannot come before it.
        let first_end = left().map(|(_, one)| one.end).min().unwrap_or(u64::MAX);
        for (at, one) in left().filter(|(_, one)| one.start <= first_end) {
            match one.kind {
                Kind::Write(written) => stack.push((done | 1 << at, written)),
                Kind::Read(read) if read == value => stack.push((done | 1 << at, value)),
                Kind::Read(_) => {}
            }
        }
    }
    false
}

#[test]
fn histories_are_judged() {
    let one = |start, end, kind| Operation { start, end, kind };
    let (write, read) = (Kind::Write, Kind::Read);
    assert!(is_linearizable(&[one(0, 10, write(1)), one(2, 3, read(0)), one(4, 5, read(1))]));
    assert!(!is_linearizable(&[one(0, 10, write(1)), one(2, 3, read(1)), one(4, 5, read(0))]), "it flipped back");
    assert!(!is_linearizable(&[one(0, 1, write(1)), one(2, 3, read(0))]), "it was lost");
    assert!(is_linearizable(&[one(0, u64::MAX, write(1)), one(2, 3, read(0)), one(90, 91, read(1))]), "it came late");
}
