//! Bugs on purpose, to show that the simulator finds them.
//!
//! Each is one rule of a protocol taken away. Without the feature `planted`, which only the tests turn on, [`is`] is
//! `false` at compile time and nothing of it is in a program. With it, a bug is planted in one thread at a time.

/// A rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Bug {
    /// A secondary takes writes of any version.
    NoVersionCheck,
    /// A write is answered before every member has it.
    AcknowledgedEarly,
    /// A replica answers for a version before it is on its disk.
    VersionNotPersisted,
    /// The master moves a primary although its lease may still run.
    TakeOverTooEarly,
    /// A read does not look at the lease after the data was read.
    NoLeaseCheckOnRead,
    /// A read does not wait for writes to the same units.
    DirtyRead,
    /// A repeated write is applied again.
    NoDuplicateCheck,
    /// A new primary does not compare the members.
    NoReconcile,
    /// A new primary compares tables before the others have taken the version.
    TableBeforeVersion,
    /// A replica that left the set is made primary.
    ElectRemoved,
    /// A server whose host lost its page cache is trusted.
    TrustAmnesiac,
    /// A grant or request of an ended run of a server is honoured.
    NoSessionBinding,
    /// An older write of a unit replaces a newer one.
    NoStampOrder,
    /// The torn end of a journal is taken for corruption.
    TornTailIsCorruption,
    /// Corruption in the middle of a journal is taken for a torn end.
    CorruptionIsTornTail,
    /// A replica of a chunk that the master does not know is deleted at once.
    DeleteUnknown,
    /// A sync that failed is tried again and then believed.
    RetriedSync,
    /// The size is committed before the data is.
    SizeBeforeData,
    /// An overwrite touches the chunk file before its journal record is durable.
    OverwriteInPlace,
    /// A barrier does not sync the other members.
    BarrierOnlyHere,
    /// A syncing replica is taken into the set before it has everything.
    FinishSyncEarly,
    /// Checksums are not checked on a read.
    NoChecksum,
    /// An answer of the master that was lost is taken for a refusal.
    UnknownIsRefused,
    /// The master changes a set without comparing its version.
    NoCompareAndSet,
    /// A restarted master takes over primaries before one lease has passed.
    NoWaitAfterRestart,
    /// A reply that was lost is not remembered: the request is carried out again.
    NoReplyCache,
    /// A journal record is freed before its chunk file is on stable media.
    FreedTooEarly,
    /// A barrier does not look whether what it is to cover was lost.
    ForgottenLoss,
}

impl Bug {
    /// All bugs.
    pub const ALL: [Self; 28] = [
        Self::NoVersionCheck,
        Self::AcknowledgedEarly,
        Self::VersionNotPersisted,
        Self::TakeOverTooEarly,
        Self::NoLeaseCheckOnRead,
        Self::DirtyRead,
        Self::NoDuplicateCheck,
        Self::NoReconcile,
        Self::TableBeforeVersion,
        Self::ElectRemoved,
        Self::TrustAmnesiac,
        Self::NoSessionBinding,
        Self::NoStampOrder,
        Self::TornTailIsCorruption,
        Self::CorruptionIsTornTail,
        Self::DeleteUnknown,
        Self::RetriedSync,
        Self::SizeBeforeData,
        Self::OverwriteInPlace,
        Self::BarrierOnlyHere,
        Self::FinishSyncEarly,
        Self::NoChecksum,
        Self::UnknownIsRefused,
        Self::NoCompareAndSet,
        Self::NoWaitAfterRestart,
        Self::NoReplyCache,
        Self::FreedTooEarly,
        Self::ForgottenLoss,
    ];
}

/// Returns whether `bug` is planted in this thread.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
mod planting {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Returns whether `bug` is planted in this thread.
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants `bug` in this thread, instead of any other.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}

#[cfg(feature = "planted")]
pub use planting::{is, plant};
