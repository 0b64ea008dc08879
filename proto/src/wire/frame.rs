//! One message on the hot plane: a fixed header, a protobuf head, raw payload bytes.
//!
//! ```text
//! offset (bytes)  size (bytes)   field, little endian
//! 0               4              magic, b"DFS1"
//! 4               2              kind, a `FrameKind`
//! 6               2              flags, now zero
//! 8               8              request id; a reply repeats the request's
//! 16              4              head length in bytes, at most 1 MiB
//! 20              4              payload length in bytes, at most 1 MiB + 64 KiB
//! 24              4              crc32c of the payload, or zero if the head has checksums for it (data plane)
//! 28              4              crc32c of bytes 0..28 and the head
//! 32              head length    head, a protobuf message that the kind names
//! ..              payload len    payload
//! ```
//!
//! The lengths stand before the checksum that covers them, so they are held against their limits before a byte is
//! allocated; a header with wrong magic, an unknown kind, or a checksum that does not match closes the connection.

use bytes::Bytes;
use prost::Message;

use super::WireError;
use crate::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 32;
const MAGIC: [u8; 4] = *b"DFS1";

/// What a frame's head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// `Hello`, the first frame of whoever connects.
    Hello = 1,
    /// `HelloReply`, its answer.
    HelloReply = 2,
    /// `MetaRequest`, mount to master.
    MetaRequest = 3,
    /// `MetaReply`.
    MetaReply = 4,
    /// `DataRequest`, to a chunk server.
    DataRequest = 5,
    /// `DataReply`.
    DataReply = 6,
}

impl FrameKind {
    fn from_u16(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::HelloReply,
            3 => Self::MetaRequest,
            4 => Self::MetaReply,
            5 => Self::DataRequest,
            6 => Self::DataReply,
            _ => return None,
        })
    }

    /// Returns whether the payload's checksums are in the head, so that the header has none.
    fn has_own_payload_checksums(self) -> bool {
        matches!(self, Self::DataRequest | Self::DataReply)
    }
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the head is.
    pub kind: FrameKind,
    /// The same in a request and its reply.
    pub request_id: u64,
    /// The encoded protobuf message.
    pub head: Bytes,
    /// Raw bytes after it; may be empty.
    pub payload: Bytes,
}

impl Frame {
    /// Returns the head, decoded, and the payload of a frame that must be of this kind.
    ///
    /// # Errors
    ///
    /// [`WireError::Malformed`] if it is of another, or its head is not a message of type `M`.
    pub fn decode<M: Message + Default>(self, kind: FrameKind) -> Result<(M, Bytes), WireError> {
        if self.kind != kind {
            return Err(WireError::Malformed(format!("{:?} where {kind:?} was expected", self.kind)));
        }
        let head = M::decode(self.head).map_err(|error| WireError::Malformed(error.to_string()))?;
        Ok((head, self.payload))
    }
}

/// The fixed header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the head is.
    pub kind: FrameKind,
    /// The same in a request and its reply.
    pub request_id: u64,
    /// Bytes of the head.
    pub head_length: u32,
    /// Bytes of the payload.
    pub payload_length: u32,
    payload_crc: u32,
    crc: u32,
}

impl FrameHeader {
    /// Returns the header of a frame with these parts, encoded.
    ///
    /// # Panics
    ///
    /// If a part is above its limit: whoever makes a frame keeps to them.
    pub fn encode(kind: FrameKind, request_id: u64, head: &[u8], payload: &[u8]) -> [u8; HEADER_BYTES] {
        assert!(head.len() <= HEAD_BYTES_MAX as usize, "head of {} bytes", head.len());
        assert!(payload.len() <= PAYLOAD_BYTES_MAX as usize, "payload of {} bytes", payload.len());
        let payload_crc = if kind.has_own_payload_checksums() { 0 } else { crc32c::crc32c(payload) };
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&(kind as u16).to_le_bytes());
        bytes[8..16].copy_from_slice(&request_id.to_le_bytes());
        bytes[16..20].copy_from_slice(&(head.len() as u32).to_le_bytes());
        bytes[20..24].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes[24..28].copy_from_slice(&payload_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..28]), head);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Returns the header in `bytes`, its lengths within their limits.
    ///
    /// # Errors
    ///
    /// [`WireError::Malformed`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[0..4] != MAGIC {
            return Err(WireError::Malformed("not a dfs peer: wrong magic number".into()));
        }
        let number = u16::from_le_bytes([bytes[4], bytes[5]]);
        let Some(kind) = FrameKind::from_u16(number) else {
            return Err(WireError::Malformed(format!("unknown frame kind {number}")));
        };
        let header = Self {
            kind,
            request_id: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
            head_length: u32_at(16),
            payload_length: u32_at(20),
            payload_crc: u32_at(24),
            crc: u32_at(28),
        };
        if header.head_length > HEAD_BYTES_MAX || header.payload_length > PAYLOAD_BYTES_MAX {
            return Err(WireError::Malformed(format!(
                "head of {} bytes, payload of {} bytes: above the limits",
                header.head_length, header.payload_length
            )));
        }
        Ok(header)
    }

    /// Checks the rest of the frame against the header's checksums. `bytes` are the header's own.
    ///
    /// # Errors
    ///
    /// [`WireError::Malformed`].
    pub fn check(&self, bytes: &[u8; HEADER_BYTES], head: &[u8], payload: &[u8]) -> Result<(), WireError> {
        if crc32c::crc32c_append(crc32c::crc32c(&bytes[..28]), head) != self.crc {
            return Err(WireError::Malformed("checksum of the frame's head does not match".into()));
        }
        if !self.kind.has_own_payload_checksums() && crc32c::crc32c(payload) != self.payload_crc {
            return Err(WireError::Malformed("checksum of the frame's payload does not match".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8]) -> Result<(Bytes, Bytes), WireError> {
        let short = || WireError::Malformed("short".into());
        let (header_bytes, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(short)?;
        let header = FrameHeader::decode(header_bytes)?;
        let (head, payload) = rest.split_at_checked(header.head_length as usize).ok_or_else(short)?;
        if payload.len() != header.payload_length as usize {
            return Err(short());
        }
        header.check(header_bytes, head, payload)?;
        Ok((Bytes::copy_from_slice(head), Bytes::copy_from_slice(payload)))
    }

    #[test]
    fn the_stored_sample_of_version_1_still_decodes() {
        let sample = [
            0x44, 0x46, 0x53, 0x31, 0x03, 0x00, 0x00, 0x00, 0x2a, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00,
            0x00, 0x00, 0x01, 0x00, 0x00, 0x00,
        ];
        let encoded = FrameHeader::encode(FrameKind::MetaRequest, 42, b"hd", b"p");
        assert_eq!(encoded[..24], sample);
        let mut whole = encoded.to_vec();
        whole.extend_from_slice(b"hdp");
        assert_eq!(decode(&whole).expect("decodes"), (Bytes::from("hd"), Bytes::from("p")));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut whole = FrameHeader::encode(FrameKind::MetaReply, 7, b"some head", b"some payload").to_vec();
        whole.extend_from_slice(b"some headsome payload");
        for bit in 0..whole.len() * 8 {
            let mut torn = whole.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&torn).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_above_the_limits_are_refused_before_anything_is_allocated() {
        let mut header = FrameHeader::encode(FrameKind::MetaRequest, 1, b"", b"");
        for (at, limit) in [(16, HEAD_BYTES_MAX), (20, PAYLOAD_BYTES_MAX)] {
            header[at..at + 4].copy_from_slice(&limit.to_le_bytes());
            assert!(FrameHeader::decode(&header).is_ok());
            header[at..at + 4].copy_from_slice(&(limit + 1).to_le_bytes());
            assert!(FrameHeader::decode(&header).is_err());
            header[at..at + 4].copy_from_slice(&0u32.to_le_bytes());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
