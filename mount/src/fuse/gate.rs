//! How many workers may be waiting for the network at one time.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts those inside.
#[derive(Debug)]
pub struct Gate {
    inside: AtomicUsize,
    inside_max: usize,
}

impl Gate {
    /// Returns an open gate for `inside_max` at a time, one at least.
    pub fn new(inside_max: usize) -> Self {
        Self { inside: AtomicUsize::new(0), inside_max: inside_max.max(1) }
    }

    /// Enters, until the pass is dropped; `None` if the gate is shut.
    pub fn enter(&self) -> Option<Pass<'_>> {
        let enter = |inside: usize| (inside < self.inside_max).then_some(inside + 1);
        self.inside.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).ok()?;
        Some(Pass(self))
    }
}

/// The right to be inside.
#[derive(Debug)]
pub struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_shuts_behind_the_last_that_may_enter() {
        let gate = Gate::new(2);
        let first = gate.enter().unwrap();
        let second = gate.enter().unwrap();
        assert!(gate.enter().is_none());
        drop(first);
        assert!(gate.enter().is_some());
        drop(second);
    }
}
