//! Whether what clients saw of a register can be explained by operations that happened one after the other.
//!
//! Linearizability is local (Herlihy and Wing 1990): a history over many registers is judged register by register. Each
//! judgement is the search of Wing and Gong (1993) with the memo of Lowe (2017): operations are taken in some order
//! that keeps to real time, and no pair (what was taken, value) is tried twice.
//!
//! ```text
//! write(1) ├────────┤                          each takes effect at one moment
//! read = 1      ├──────┤                       between its start and its end
//! write(2)         ├─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ …    no answer: later, at any time, or never
//! ```
//!
//! A register survives a crash as its file promises. [`Action::Barrier`] is an `fsync`: what was written before it
//! stays. [`Action::Lose`] is the loss of all memory at once: the register has one of the values again that it had
//! since the last barrier.
//!
//! Values of writes are distinct, but 0, which is what a register holds at first and when it was zeroed.

use std::collections::BTreeSet;
use std::rc::Rc;

/// What was done to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was given this value.
    Write(u64),
    /// It had this value.
    Read(u64),
    /// Its value was brought to stable media.
    Barrier,
    /// Everything that was not on stable media may have been lost.
    Lose,
}

/// One operation on one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// When it was asked for.
    pub start: u64,
    /// When it was answered; `None`: never, or nobody knows what became of it.
    pub end: Option<u64>,
    /// What it was.
    pub action: Action,
}

/// Why a history cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The first operation, by the time of its end, that fits no order of those before it.
    pub operation: Operation,
    /// What was tried: the values the register could have had then.
    pub possible: Vec<u64>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Operation { start, end, action } = self.operation;
        let end = end.map_or_else(|| "?".to_owned(), |end| end.to_string());
        write!(f, "{action:?} of {start}..{end}, when it could be one of {:?}", self.possible)
    }
}

/// Checks the history of one register that held 0 at first.
///
/// # Errors
///
/// [`Violation`] if no order explains it.
pub fn check(history: &[Operation]) -> Result<(), Violation> {
    Search::new(prepare(history)).run()
}

/// Returns what decides, in order of start: reads and barriers without an answer say nothing, and a write without an
/// answer that nobody saw may as well not have happened.
fn prepare(history: &[Operation]) -> Vec<Operation> {
    let seen: BTreeSet<u64> = history
        .iter()
        .filter_map(|operation| match operation.action {
            Action::Read(value) if operation.end.is_some() => Some(value),
            _ => None,
        })
        .collect();
    let mut operations: Vec<Operation> = history
        .iter()
        .filter(|operation| match operation.action {
            Action::Write(value) => operation.end.is_some() || seen.contains(&value),
            _ => operation.end.is_some(),
        })
        .copied()
        .collect();
    operations.sort_by_key(|operation| operation.start);
    operations
}

/// What a register holds, and what it may hold after a loss: ascending, with the value itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    value: u64,
    survivors: Rc<[u64]>,
}

/// What has been taken: all operations below `floor`, and those in `above`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Taken {
    floor: usize,
    above: Vec<usize>,
}

impl Taken {
    fn has(&self, at: usize) -> bool {
        at < self.floor || self.above.binary_search(&at).is_ok()
    }

    fn with(&self, at: usize) -> Self {
        let mut next = self.clone();
        if let Err(place) = next.above.binary_search(&at) {
            next.above.insert(place, at);
        }
        while next.above.first() == Some(&next.floor) {
            next.above.remove(0);
            next.floor += 1;
        }
        next
    }
}

struct Search {
    operations: Vec<Operation>,
    loses: bool,
    tried: BTreeSet<(Taken, State)>,
    /// The furthest that was come, by the end of the operation that could not be passed; and the values there.
    stuck: Option<(u64, usize, BTreeSet<u64>)>,
}

impl Search {
    fn new(operations: Vec<Operation>) -> Self {
        let loses = operations.iter().any(|operation| operation.action == Action::Lose);
        Self { operations, loses, tried: BTreeSet::new(), stuck: None }
    }

    fn run(mut self) -> Result<(), Violation> {
        let first = State { value: 0, survivors: Rc::from([0]) };
        let mut todo = vec![(Taken::default(), first)];
        while let Some((taken, state)) = todo.pop() {
            let mut horizon: Option<(u64, usize)> = None;
            for at in taken.floor..self.operations.len() {
                if let Some(end) = self.operations[at].end
                    && !taken.has(at)
                    && horizon.is_none_or(|(earliest, _)| end < earliest)
                {
                    horizon = Some((end, at));
                }
            }
            let Some((horizon, next)) = horizon else { return Ok(()) };
            let before = todo.len();
            for at in taken.floor..self.operations.len() {
                let operation = self.operations[at];
                // What starts after another has ended comes after it.
                if operation.start > horizon {
                    break;
                }
                if taken.has(at) {
                    continue;
                }
                for state in self.after(&state, operation.action) {
                    let step = (taken.with(at), state);
                    if self.tried.insert(step.clone()) {
                        todo.push(step);
                    }
                }
            }
            // The likeliest order is that of the starts: try it first.
            todo[before..].reverse();
            self.note(horizon, next, state.value);
        }
        let (_, at, values) = self.stuck.expect("the search began somewhere");
        Err(Violation { operation: self.operations[at], possible: values.into_iter().collect() })
    }

    fn note(&mut self, horizon: u64, at: usize, value: u64) {
        match &mut self.stuck {
            Some((furthest, ..)) if *furthest > horizon => {}
            Some((furthest, _, values)) if *furthest == horizon => {
                values.insert(value);
            }
            stuck => *stuck = Some((horizon, at, BTreeSet::from([value]))),
        }
    }

    /// Returns the states after `action`, none if it cannot happen in `state`.
    fn after(&self, state: &State, action: Action) -> Vec<State> {
        match action {
            Action::Read(value) if value == state.value => vec![state.clone()],
            Action::Read(_) => Vec::new(),
            Action::Write(value) => {
                let survivors = if self.loses { with(&state.survivors, value) } else { Rc::clone(&state.survivors) };
                vec![State { value, survivors }]
            }
            Action::Barrier if self.loses => {
                vec![State { value: state.value, survivors: Rc::from([state.value]) }]
            }
            Action::Barrier => vec![state.clone()],
            Action::Lose => state
                .survivors
                .iter()
                .map(|value| State { value: *value, survivors: Rc::clone(&state.survivors) })
                .collect(),
        }
    }
}

fn with(survivors: &Rc<[u64]>, value: u64) -> Rc<[u64]> {
    match survivors.binary_search(&value) {
        Ok(_) => Rc::clone(survivors),
        Err(place) => {
            let mut more = survivors.to_vec();
            more.insert(place, value);
            Rc::from(more)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads one operation a line: `write 1 at 0..5`, `read 1 at 3..4`, `write 2 at 7..?`, `barrier at 8..9`, `lose at 9..9`.
    fn history(text: &str) -> Vec<Operation> {
        let number = |word: &str| word.parse::<u64>().expect("a number");
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (what, when) = line.split_once(" at ").expect("at");
                let (start, end) = when.split_once("..").expect("..");
                let words: Vec<&str> = what.split_whitespace().collect();
                let action = match words[..] {
                    ["write", value] => Action::Write(number(value)),
                    ["read", value] => Action::Read(number(value)),
                    ["barrier"] => Action::Barrier,
                    ["lose"] => Action::Lose,
                    _ => panic!("{line}"),
                };
                Operation { start: number(start), end: (end != "?").then(|| number(end)), action }
            })
            .collect()
    }

    #[track_caller]
    fn holds(text: &str) {
        assert_eq!(check(&history(text)), Ok(()));
    }

    #[track_caller]
    fn fails(text: &str) {
        check(&history(text)).expect_err("no order explains this");
    }

    #[test]
    fn a_read_sees_the_last_write_before_it_or_one_beside_it() {
        holds("write 1 at 0..1\n read 1 at 2..3");
        holds("write 1 at 0..5\n read 0 at 1..2\n read 1 at 3..4");
        fails("write 1 at 0..1\n read 0 at 2..3");
        fails("write 1 at 0..9\n read 1 at 1..2\n read 0 at 3..4");
        fails("read 7 at 0..1");
    }

    #[test]
    fn a_write_without_an_answer_happens_late_or_never_but_only_once() {
        holds("write 1 at 0..?\n read 0 at 1..2");
        holds("write 1 at 0..?\n read 0 at 1..2\n read 1 at 5..6");
        fails("write 1 at 0..?\n read 1 at 1..2\n read 0 at 5..6");
        fails("write 1 at 0..?\n write 2 at 3..4\n read 1 at 5..6\n read 2 at 7..8\n read 1 at 9..10");
    }

    #[test]
    fn a_loss_takes_back_no_more_than_what_came_after_the_last_barrier() {
        holds("write 1 at 0..1\n barrier at 2..3\n write 2 at 4..5\n lose at 6..6\n read 1 at 7..8");
        holds("write 1 at 0..1\n barrier at 2..3\n write 2 at 4..5\n lose at 6..6\n read 2 at 7..8");
        fails("write 1 at 0..1\n barrier at 2..3\n write 2 at 4..5\n lose at 6..6\n read 0 at 7..8");
        fails("write 1 at 0..1\n barrier at 2..3\n write 2 at 4..5\n barrier at 6..7\n lose at 8..8\n read 1 at 9..10");
        fails("write 1 at 0..1\n lose at 6..6\n read 1 at 7..8\n read 0 at 9..10");
        fails("write 1 at 0..1\n read 0 at 7..8");
    }

    #[test]
    fn a_violation_names_the_operation_that_does_not_fit() {
        let violation = check(&history("write 1 at 0..1\n write 2 at 2..3\n read 1 at 4..5")).expect_err("stale");
        assert_eq!(violation.operation.action, Action::Read(1));
        assert_eq!(violation.possible, [2]);
    }

    /// Tries every order.
    fn brute_force(history: &[Operation]) -> bool {
        fn step(left: &[Operation], value: u64, survivors: &[u64]) -> bool {
            if left.iter().all(|operation| operation.end.is_none()) {
                return true;
            }
            left.iter().enumerate().any(|(at, operation)| {
                let is_late = left
                    .iter()
                    .enumerate()
                    .any(|(other, before)| other != at && before.end.is_some_and(|end| end < operation.start));
                if is_late {
                    return false;
                }
                let rest: Vec<Operation> =
                    left.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, rest)| *rest).collect();
                match operation.action {
                    Action::Read(seen) => (operation.end.is_none() || seen == value) && step(&rest, value, survivors),
                    Action::Write(new) => step(&rest, new, &[survivors, &[new]].concat()),
                    Action::Barrier => step(&rest, value, &[value]),
                    Action::Lose => survivors.iter().any(|old| step(&rest, *old, survivors)),
                }
            })
        }
        // What has no answer may also never happen: every subset of it is tried.
        let open: Vec<usize> = (0..history.len()).filter(|at| history[*at].end.is_none()).collect();
        (0..1u32 << open.len()).any(|subset| {
            let kept: Vec<Operation> = history
                .iter()
                .enumerate()
                .filter(|(at, _)| open.iter().position(|other| other == at).is_none_or(|bit| subset >> bit & 1 == 1))
                .map(|(_, operation)| *operation)
                .collect();
            step(&kept, 0, &[0])
        })
    }

    #[test]
    fn the_search_agrees_with_trying_every_order() {
        let mut rng = crate::random::Random::new(7);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..6_000 {
            let count = 2 + rng.below(5);
            let operations: Vec<Operation> = (0..count)
                .map(|at| {
                    let start = rng.below(20);
                    let action = match rng.below(10) {
                        0..=3 => Action::Write(at + 1),
                        4..=7 => Action::Read(rng.below(count + 1)),
                        8 => Action::Barrier,
                        _ => Action::Lose,
                    };
                    let is_open = action != Action::Lose && rng.below(4) == 0;
                    Operation { start, end: (!is_open).then(|| start + rng.below(8)), action }
                })
                .collect();
            let is_good = check(&operations).is_ok();
            assert_eq!(is_good, brute_force(&operations), "{operations:?}");
            *(if is_good { &mut good } else { &mut bad }) += 1;
        }
        assert!(good > 500 && bad > 500, "{good} {bad}");
    }
}
