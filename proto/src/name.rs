//! One name in a directory: bytes in any encoding.

use std::fmt;

use bytes::Bytes;

use crate::error::FsError;
use crate::limits::NAME_BYTES_MAX;

/// A directory entry's name: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Bytes);

impl Name {
    /// Returns `bytes` as a name.
    ///
    /// # Errors
    ///
    /// [`FsError::NameTooLong`] above 255 bytes; [`FsError::Invalid`] for what cannot be a name.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, FsError> {
        let bytes = bytes.into();
        if bytes.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        if bytes.is_empty() || bytes == b"."[..] || bytes == b".."[..] || bytes.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(FsError::Invalid("not a name for a directory entry"));
        }
        Ok(Self(bytes))
    }

    /// Returns the bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes of the name, shared.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_every_limit() {
        assert!(Name::new(vec![b'x'; 255]).is_ok());
        assert_eq!(Name::new(vec![b'x'; 256]), Err(FsError::NameTooLong));
        assert!(Name::new(&b"\xff\xfe"[..]).is_ok());
        assert!(Name::new(&b"..."[..]).is_ok());
        for wrong in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert!(matches!(Name::new(wrong), Err(FsError::Invalid(_))), "{wrong:?}");
        }
    }
}
