//! Who asks: the identity a request carries to the master.

/// The process on whose behalf a call is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Its user, for the owner of what it makes and for the permission checks of the master.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Caller {
    /// The mount itself, for what no process asked for: write-back, renewals.
    pub const MOUNT: Self = Self { uid: 0, gid: 0 };
}
