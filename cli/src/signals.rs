//! Signals that ask a process to stop, as events.

use std::sync::mpsc::{Receiver, channel};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

/// SIGINT, SIGTERM and SIGHUP, blocked in this thread and all it starts later, and waited for.
pub struct StopSignals(SigSet);

impl StopSignals {
    /// Blocks the signals. To be called before any thread is started, so that none of them takes one instead.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn block() -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().context("blocking signals")?;
        Ok(Self(set))
    }

    /// Returns where each of them will be announced from now on.
    ///
    /// # Errors
    ///
    /// If no thread can be made.
    pub fn events(self) -> anyhow::Result<Receiver<Signal>> {
        let (announce, events) = channel();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            // Ends when nobody listens any more, or the kernel refuses to wait.
            while self.0.wait().is_ok_and(|signal| announce.send(signal).is_ok()) {}
        })?;
        Ok(events)
    }
}

/// Makes this process get SIGTERM when `parent`, which started it, ends in whatever way.
///
/// # Errors
///
/// If the parent has ended already, or the kernel refuses.
pub fn end_with_parent(parent: i32) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).context("asking to be told of the parent's end")?;
    // The parent may have ended before the kernel knew: then we were handed to another one.
    anyhow::ensure!(nix::unistd::getppid().as_raw() == parent, "the process that started this one has ended");
    Ok(())
}
