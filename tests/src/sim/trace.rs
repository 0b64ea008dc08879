//! What happened, in order: a number that stands for all of it, and the words if somebody wants to read them.
//!
//! Words are made only when the trace is kept. So a seed is run without them first, and once more with them if it
//! shows something.

use std::cell::RefCell;

use super::scheduler::Time;

thread_local! {
    /// The words of this thread's run: they outlive a panic of it.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Takes the words that were kept in this thread.
pub fn take_lines() -> Vec<String> {
    LINES.take()
}

/// The record of one run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    keeps_words: bool,
}

impl Trace {
    /// Returns an empty trace, which keeps its words if `keeps_words`: [`take_lines`].
    pub fn new(keeps_words: bool) -> Self {
        LINES.take();
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, keeps_words }
    }

    /// Notes an event: `numbers` tell it from all others, `words` are for people.
    pub fn note<const N: usize>(&mut self, at: Time, numbers: [u64; N], words: impl FnOnce() -> String) {
        self.events += 1;
        for number in std::iter::once(at.0).chain(numbers) {
            self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        self.say(at, words);
    }

    /// Adds a line for people only.
    pub fn say(&self, at: Time, words: impl FnOnce() -> String) {
        if self.keeps_words {
            let line = format!("{at} {}", words());
            LINES.with_borrow_mut(|lines| lines.push(line));
        }
    }

    /// Returns the number that stands for everything that was noted.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns how many events were noted.
    pub fn events(&self) -> u64 {
        self.events
    }
}
