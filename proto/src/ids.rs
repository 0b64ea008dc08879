//! Identities: each its own type, so that two cannot be swapped.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A file itself, whatever its names. Never reused. 0 is no inode, 1 is the root.
    InodeId(u64)
);
id!(
    /// A fixed-size piece of a file's data. Never reused. 0 is no chunk.
    ChunkId(u64)
);
id!(
    /// The place of a chunk in its file, counted from 0.
    ChunkIndex(u32)
);
id!(
    /// A chunk server, for as long as the cluster lives. 0 is no node.
    NodeId(u32)
);
id!(
    /// One mount's session with the master. Never reused. 0 is no session.
    SessionId(u64)
);
id!(
    /// How fresh a replica is: raised at every change of its chunk's replica set or primary.
    Version(u64)
);
id!(
    /// A position in the master's log of changes.
    Seq(u64)
);
id!(
    /// One run of one process: random, new at each start.
    BootSession(u64)
);

impl InodeId {
    /// The root directory of the file system.
    pub const ROOT: Self = Self(1);
}

/// The cluster a disk, a server or a mount belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// Returns the id in `bytes`, or `None` unless there are exactly 16.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for ClusterId {
    type Err = String;

    /// Reads 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a cluster id: 32 hexadecimal digits are expected");
        let text_bytes = text.as_bytes();
        if text_bytes.len() != 32 || !text_bytes.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let mut id = [0; 16];
        for (at, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_survives_its_text() {
        let id = ClusterId([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("a5".parse::<ClusterId>().is_err());
        assert!("zz".repeat(16).parse::<ClusterId>().is_err());
    }
}
