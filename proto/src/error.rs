//! What can go wrong with a file-system call, and the one table that gives each its errno.

/// Why a call failed, in the terms of the file system.
///
/// The wire carries [`FsError::code`]; the numbers there never change. A code that is not known (a newer peer) is
/// taken as [`FsError::Io`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// No such name, or no such inode.
    #[error("no such file or directory")]
    NoEntry,
    /// The name is taken.
    #[error("the name exists already")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory where none may be.
    #[error("is a directory")]
    IsDirectory,
    /// A directory that still has names in it.
    #[error("directory not empty")]
    NotEmpty,
    /// A directory would be moved below itself.
    #[error("a directory cannot be moved into itself")]
    IntoItself,
    /// An argument that makes no sense; the text says which.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// A name, target or path above its limit.
    #[error("name too long")]
    NameTooLong,
    /// The link count is at its limit.
    #[error("too many links")]
    TooManyLinks,
    /// No room for data on any permitted set of chunk servers, or for metadata.
    #[error("no space left")]
    NoSpace,
    /// The extended attribute does not exist.
    #[error("no such attribute")]
    NoAttribute,
    /// An extended attribute's value or the list of names is above its limit.
    #[error("attribute too big")]
    AttributeTooBig,
    /// The file system (or this mount of it) may not be changed.
    #[error("read-only")]
    ReadOnly,
    /// Not permitted, whatever the permission bits.
    #[error("operation not permitted")]
    NotPermitted,
    /// The permission bits forbid it.
    #[error("permission denied")]
    Denied,
    /// What the caller refers to has changed or gone: look it up again and retry.
    #[error("stale: {0}")]
    Stale(&'static str),
    /// An offset above the largest file size.
    #[error("file too big")]
    FileTooBig,
    /// dfs does not do this.
    #[error("not supported")]
    NotSupported,
    /// In use.
    #[error("busy")]
    Busy,
    /// Not now; the same call can succeed later.
    #[error("try again: {0}")]
    TryAgain(&'static str),
    /// The session is not known (it ended, or its lease ran out): open a new one.
    #[error("unknown session")]
    UnknownSession,
    /// The mount lost its session while it held dirty data.
    #[error("the session was lost")]
    SessionLost,
    /// No answer within the deadline.
    #[error("timed out: {0}")]
    TimedOut(&'static str),
    /// No replica could serve, or not all could take a write.
    #[error("replicas unavailable: {0}")]
    NoReplica(String),
    /// A checksum did not match, and no good copy was found.
    #[error("checksum mismatch: {0}")]
    Corrupt(String),
    /// Anything else that went wrong below.
    #[error("I/O error: {0}")]
    Io(String),
    /// No data, or no hole, at or after the offset: it is past the end of the file.
    #[error("past the end of the file")]
    PastEnd,
    /// A peer sent what the protocol does not allow.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// What was acknowledged and not yet synced may be gone: all servers that had it lost their power.
    #[error("what was written and not synced was lost with the power of all its servers")]
    UnsyncedLost,
}

impl FsError {
    /// Returns the errno that the kernel is given. No other place chooses one.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NoEntry => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            // rename(2) asks for EINVAL here; ELOOP is for symlink chains.
            Self::IntoItself | Self::Invalid(_) => libc::EINVAL,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::TooManyLinks => libc::EMLINK,
            Self::NoSpace => libc::ENOSPC,
            Self::NoAttribute => libc::ENODATA,
            Self::AttributeTooBig => libc::E2BIG,
            Self::ReadOnly => libc::EROFS,
            Self::NotPermitted => libc::EPERM,
            Self::Denied => libc::EACCES,
            Self::Stale(_) => libc::ESTALE,
            Self::FileTooBig => libc::EFBIG,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::Busy => libc::EBUSY,
            Self::TryAgain(_) => libc::EAGAIN,
            // lseek(2) with SEEK_DATA and SEEK_HOLE.
            Self::PastEnd => libc::ENXIO,
            Self::UnknownSession
            | Self::SessionLost
            | Self::TimedOut(_)
            | Self::NoReplica(_)
            | Self::Corrupt(_)
            | Self::Io(_)
            | Self::Protocol(_)
            | Self::UnsyncedLost => libc::EIO,
        }
    }

    /// Returns the word for this kind of error, as metrics label it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NoEntry => "no_entry",
            Self::Exists => "exists",
            Self::NotDirectory => "not_directory",
            Self::IsDirectory => "is_directory",
            Self::NotEmpty => "not_empty",
            Self::IntoItself => "into_itself",
            Self::Invalid(_) => "invalid",
            Self::NameTooLong => "name_too_long",
            Self::TooManyLinks => "too_many_links",
            Self::NoSpace => "no_space",
            Self::NoAttribute => "no_attribute",
            Self::AttributeTooBig => "attribute_too_big",
            Self::ReadOnly => "read_only",
            Self::NotPermitted => "not_permitted",
            Self::Denied => "denied",
            Self::Stale(_) => "stale",
            Self::FileTooBig => "file_too_big",
            Self::NotSupported => "not_supported",
            Self::Busy => "busy",
            Self::TryAgain(_) => "try_again",
            Self::UnknownSession => "unknown_session",
            Self::SessionLost => "session_lost",
            Self::TimedOut(_) => "timed_out",
            Self::NoReplica(_) => "no_replica",
            Self::Corrupt(_) => "corrupt",
            Self::Io(_) => "io",
            Self::Protocol(_) => "protocol",
            Self::PastEnd => "past_end",
            Self::UnsyncedLost => "unsynced_lost",
        }
    }

    /// Returns the number that stands for this kind of error on the wire.
    pub fn code(&self) -> u32 {
        match self {
            Self::NoEntry => 1,
            Self::Exists => 2,
            Self::NotDirectory => 3,
            Self::IsDirectory => 4,
            Self::NotEmpty => 5,
            Self::IntoItself => 6,
            Self::Invalid(_) => 7,
            Self::NameTooLong => 8,
            Self::TooManyLinks => 9,
            Self::NoSpace => 10,
            Self::NoAttribute => 11,
            Self::AttributeTooBig => 12,
            Self::ReadOnly => 13,
            Self::NotPermitted => 14,
            Self::Denied => 15,
            Self::Stale(_) => 16,
            Self::FileTooBig => 17,
            Self::NotSupported => 18,
            Self::Busy => 19,
            Self::TryAgain(_) => 20,
            Self::UnknownSession => 21,
            Self::SessionLost => 22,
            Self::TimedOut(_) => 23,
            Self::NoReplica(_) => 24,
            Self::Corrupt(_) => 25,
            Self::Io(_) => 26,
            Self::Protocol(_) => 27,
            Self::PastEnd => 28,
            Self::UnsyncedLost => 29,
        }
    }

    /// Returns what the wire says beside the code: the bare reason where [`Self::from_wire`] keeps it, for it gets the
    /// words for its kind back there; else the whole text, for a peer that does not know the code.
    pub fn detail(&self) -> String {
        match self {
            Self::NoReplica(reason) | Self::Corrupt(reason) | Self::Io(reason) | Self::Protocol(reason) => {
                reason.clone()
            }
            other => other.to_string(),
        }
    }

    /// Returns the error a peer sent as `code` and `detail`.
    pub fn from_wire(code: u32, detail: &str) -> Self {
        match code {
            1 => Self::NoEntry,
            2 => Self::Exists,
            3 => Self::NotDirectory,
            4 => Self::IsDirectory,
            5 => Self::NotEmpty,
            6 => Self::IntoItself,
            7 => Self::Invalid("refused by the server"),
            8 => Self::NameTooLong,
            9 => Self::TooManyLinks,
            10 => Self::NoSpace,
            11 => Self::NoAttribute,
            12 => Self::AttributeTooBig,
            13 => Self::ReadOnly,
            14 => Self::NotPermitted,
            15 => Self::Denied,
            16 => Self::Stale("refused by the server"),
            17 => Self::FileTooBig,
            18 => Self::NotSupported,
            19 => Self::Busy,
            20 => Self::TryAgain("the server asked for it"),
            21 => Self::UnknownSession,
            22 => Self::SessionLost,
            23 => Self::TimedOut("at the server"),
            24 => Self::NoReplica(detail.to_owned()),
            25 => Self::Corrupt(detail.to_owned()),
            27 => Self::Protocol(detail.to_owned()),
            28 => Self::PastEnd,
            29 => Self::UnsyncedLost,
            _ => Self::Io(detail.to_owned()),
        }
    }

    /// Returns whether the same call may succeed if it is made again, perhaps after a fresh look-up of its target.
    /// The others are final: to repeat the call would give the same answer.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Stale(_) | Self::TryAgain(_) | Self::TimedOut(_) | Self::NoReplica(_))
    }
}

impl From<crate::wire::WireError> for FsError {
    fn from(error: crate::wire::WireError) -> Self {
        match error {
            crate::wire::WireError::TimedOut => Self::TimedOut("no answer from the peer"),
            crate::wire::WireError::Malformed(what) => Self::Protocol(what),
            other => Self::Io(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_are_distinct() {
        let known: Vec<FsError> = (1..=29).map(|code| FsError::from_wire(code, "x")).collect();
        for (at, error) in known.iter().enumerate() {
            assert_eq!(error.code() as usize, at + 1, "{error}");
        }
        assert_eq!(FsError::from_wire(9_999, "new").errno(), libc::EIO);
    }

    #[test]
    fn an_error_passes_the_wire_unchanged_however_often() {
        for sent in (1..=29).map(|code| FsError::from_wire(code, "node 2: its disk")) {
            let received = FsError::from(crate::wire::pb::Failure::from(&sent));
            assert_eq!(received, sent);
            assert_eq!(received.to_string(), sent.to_string());
        }
    }

    #[test]
    fn every_error_has_a_word_of_its_own() {
        let words: std::collections::BTreeSet<_> = (1..=29).map(|code| FsError::from_wire(code, "x").word()).collect();
        assert_eq!(words.len(), 29);
    }
}
