//! Waking a thread that waits for answers on sockets.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes one thread, which polls it beside its sockets.
#[derive(Debug)]
pub(super) struct Waker {
    event: EventFd,
    is_set: AtomicBool,
}

thread_local! {
    static OWN: Option<Arc<Waker>> = Waker::new().map(Arc::new);
}

impl Waker {
    fn new() -> Option<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).ok()?;
        Some(Self { event, is_set: AtomicBool::new(false) })
    }

    /// Returns this thread's waker; `None` if the process is out of descriptors.
    pub fn of_this_thread() -> Option<Arc<Self>> {
        OWN.with(Clone::clone)
    }

    /// Wakes the thread, now or when it waits next.
    pub fn wake(&self) {
        if !self.is_set.swap(true, Ordering::AcqRel) {
            // Fails only if it is set already.
            let _ = self.event.write(1);
        }
    }

    /// Notes that the thread is awake.
    pub fn reset(&self) {
        let _ = self.event.read();
        self.is_set.store(false, Ordering::Release);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
