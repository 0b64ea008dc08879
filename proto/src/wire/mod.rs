//! The wires: frames of the hot plane, the connections that carry them, and the generated messages of both planes.
//!
//! Generated types ([`pb`]) stop at the shells that talk to a wire (`service/` of the servers, `remote/` of the
//! mount); cores take and return the vocabulary of this crate and types of their own.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns sockets and their deadlines")]

mod connection;
mod frame;
mod hello;
mod listener;
mod op_name;
mod replica_set;

pub use connection::{Connection, connect};
pub use frame::{Frame, FrameHeader, FrameKind, HEADER_BYTES};
pub use hello::{Identity, PROTOCOL, PROTOCOL_MIN, Peer, accept_hello, offer_hello};
pub use listener::Listener;
pub use op_name::op_name;

/// The messages of `idl/hot.proto` and `idl/control.proto`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod pb {
    tonic::include_proto!("dfs.v1");
}

/// Why a connection cannot go on. After any of these it is closed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer closed the connection between two frames.
    #[error("connection closed by the peer")]
    Closed,
    /// No answer within the deadline.
    #[error("no answer within the deadline")]
    TimedOut,
    /// Bytes that are not what the protocol allows; the text says which.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The peer will not talk to us, and says why.
    #[error("refused: {0}")]
    Refused(String),
    /// The transport failed.
    #[error("connection failed: {0}")]
    Io(#[source] std::io::Error),
}

impl From<std::io::Error> for WireError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // A socket with a receive time-out reports either of the two.
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Self::TimedOut,
            std::io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl From<&crate::error::FsError> for pb::Failure {
    fn from(error: &crate::error::FsError) -> Self {
        Self { code: error.code(), detail: error.detail() }
    }
}

impl From<pb::Failure> for crate::error::FsError {
    fn from(failure: pb::Failure) -> Self {
        Self::from_wire(failure.code, &failure.detail)
    }
}
