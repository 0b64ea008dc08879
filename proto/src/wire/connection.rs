//! A blocking connection of the hot plane: whole frames, each way, with deadlines.
//!
//! The thread that asks also reads the answer: on loopback a blocking round trip is a third cheaper than one that
//! wakes a reader thread or a reactor on the way. After any error the connection is in an unknown state between two
//! frames and must be dropped.

use std::io::{BufReader, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use socket2::{SockRef, TcpKeepalive};

use super::{Frame, FrameHeader, FrameKind, HEADER_BYTES, WireError};

/// Small frames, header to payload, come in with one system call.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// A receive timeout at least this long is left armed for calls that may wait longer.
const KEPT_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// One TCP connection that carries frames.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    peer: SocketAddr,
    next_request_id: u64,
    read_timeout: Option<Duration>,
}

impl Connection {
    /// Takes over `stream`.
    ///
    /// # Errors
    ///
    /// [`WireError::Io`] if the socket's options cannot be set.
    pub fn new(stream: TcpStream) -> Result<Self, WireError> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        // A peer whose host is gone never answers: found within 10 + 3 x 5 s even if nothing is sent.
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        socket.set_tcp_keepalive(&keepalive)?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        let peer = stream.peer_addr()?;
        Ok(Self {
            reader: BufReader::with_capacity(READ_BUFFER_BYTES, stream),
            peer,
            next_request_id: 1,
            read_timeout: None,
        })
    }

    /// Returns the address of the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Returns the socket, for `shutdown` from another thread.
    ///
    /// # Errors
    ///
    /// [`WireError::Io`] if the process is out of file descriptors.
    pub fn socket(&self) -> Result<TcpStream, WireError> {
        Ok(self.reader.get_ref().try_clone()?)
    }

    /// Sends one frame, in one system call as a rule.
    ///
    /// # Errors
    ///
    /// [`WireError::Io`], or [`WireError::TimedOut`] if the peer takes nothing for 30 s.
    pub fn send(
        &mut self,
        kind: FrameKind,
        request_id: u64,
        head: &impl Message,
        payload: &[u8],
    ) -> Result<(), WireError> {
        let head_bytes = head.encode_to_vec();
        let header = FrameHeader::encode(kind, request_id, &head_bytes, payload);
        let mut stream = self.reader.get_ref();
        let mut slices = [IoSlice::new(&header), IoSlice::new(&head_bytes), IoSlice::new(payload)];
        let mut rest = &mut slices[..];
        let mut left = HEADER_BYTES + head_bytes.len() + payload.len();
        while left > 0 {
            match stream.write_vectored(rest) {
                Ok(0) => return Err(WireError::Closed),
                Ok(written) => {
                    left -= written;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for the next frame, without end if `deadline` is `None`.
    ///
    /// # Errors
    ///
    /// [`WireError::Closed`] if the peer ended the connection between frames; [`WireError::TimedOut`] past the
    /// deadline; [`WireError::Malformed`] and [`WireError::Io`].
    pub fn recv(&mut self, deadline: Option<Instant>) -> Result<Frame, WireError> {
        let mut header_bytes = [0; HEADER_BYTES];
        self.read_exact(&mut header_bytes, deadline)?;
        let header = FrameHeader::decode(&header_bytes)?;
        let head = self.read_bytes(header.head_length as usize, deadline)?;
        let payload = self.read_bytes(header.payload_length as usize, deadline)?;
        header.check(&header_bytes, &head, &payload)?;
        Ok(Frame { kind: header.kind, request_id: header.request_id, head, payload })
    }

    /// Sends a request and waits for its reply, decoded.
    ///
    /// # Errors
    ///
    /// As [`Self::request`] and [`Self::reply`].
    pub fn call<R: Message + Default>(
        &mut self,
        kind: FrameKind,
        reply_kind: FrameKind,
        head: &impl Message,
        payload: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(R, Bytes), WireError> {
        let id = self.request(kind, head, payload)?;
        self.reply(reply_kind, id, deadline)
    }

    /// Sends a request and returns its id, which this connection has not used before. For those who ask several peers at
    /// once; [`Self::reply`] is the other half.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn request(&mut self, kind: FrameKind, head: &impl Message, payload: &[u8]) -> Result<u64, WireError> {
        let id = self.next_request_id;
        self.next_request_id += 1;
        self.send(kind, id, head, payload)?;
        Ok(id)
    }

    /// Waits for the reply to the request with this id, decoded.
    ///
    /// # Errors
    ///
    /// As [`Self::recv`]; [`WireError::Malformed`] if the next frame is not that reply.
    pub fn reply<R: Message + Default>(
        &mut self,
        kind: FrameKind,
        request_id: u64,
        deadline: Option<Instant>,
    ) -> Result<(R, Bytes), WireError> {
        let frame = self.recv(deadline)?;
        if frame.request_id != request_id {
            return Err(WireError::Malformed(format!("an answer to {} in place of {request_id}", frame.request_id)));
        }
        frame.decode(kind)
    }

    fn arm(&mut self, deadline: Option<Instant>) -> Result<(), WireError> {
        let timeout = match deadline {
            None => None,
            Some(at) => match at.checked_duration_since(now()) {
                Some(left) if !left.is_zero() => Some(left),
                _ => return Err(WireError::TimedOut),
            },
        };
        // Setting the option is a system call. A timeout that is armed already may be shorter than what is asked for: the
        // readers wait again until the deadline. Only one so short that it would wake them all the time is replaced.
        let same = match (timeout, self.read_timeout) {
            (None, None) => true,
            (Some(new), Some(set)) => set <= new && (set >= KEPT_TIMEOUT_MIN || new - set < new / 4),
            (None, Some(set)) => set >= KEPT_TIMEOUT_MIN,
            (Some(_), None) => false,
        };
        if !same {
            self.reader.get_ref().set_read_timeout(timeout)?;
            self.read_timeout = timeout;
        }
        Ok(())
    }

    fn read_exact(&mut self, buffer: &mut [u8], deadline: Option<Instant>) -> Result<(), WireError> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.reader.buffer().is_empty() {
                self.arm(deadline)?;
            }
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Err(WireError::Closed),
                Ok(0) => return Err(WireError::Malformed("connection closed inside a frame".into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // The armed timeout may be shorter than the deadline.
                Err(error) if is_timeout(&error) && deadline.is_none_or(|at| at > now()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read_bytes(&mut self, length: usize, deadline: Option<Instant>) -> Result<Bytes, WireError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        // `read_to_end` fills the spare capacity without zeroing it first, which would cost a pass over each payload.
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            self.arm(deadline)?;
            let before = bytes.len();
            match self.reader.by_ref().take((length - before) as u64).read_to_end(&mut bytes) {
                Ok(_) if bytes.len() < length => {
                    return Err(WireError::Malformed("connection closed inside a frame".into()));
                }
                Ok(_) => {}
                Err(error) if is_timeout(&error) && deadline.is_none_or(|at| at > now()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes.into())
    }
}

/// For those who wait for answers on several connections at once: between frames, an answer has come when it is readable.
impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.get_ref().as_fd()
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

fn now() -> Instant {
    Instant::now()
}

/// Connects to `address` (`host:port`), trying each of its addresses until `timeout` has passed.
///
/// # Errors
///
/// [`WireError::Io`] or [`WireError::TimedOut`].
pub fn connect(address: &str, timeout: Duration) -> Result<Connection, WireError> {
    let deadline = now() + timeout;
    let mut last = None;
    for socket_address in address.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(WireError::TimedOut);
        }
        match TcpStream::connect_timeout(&socket_address, left) {
            Ok(stream) => return Connection::new(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| WireError::Malformed(format!("{address}: the name has no address")), WireError::from))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::wire::pb;

    fn pair() -> (Connection, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("bound").to_string();
        let client = connect(&address, Duration::from_secs(5)).expect("connects");
        let server = Connection::new(listener.accept().expect("accepts").0).expect("takes over");
        (client, server)
    }

    #[test]
    fn frames_of_all_sizes_arrive_whole() {
        let (mut client, mut server) = pair();
        let echo = std::thread::spawn(move || {
            while let Ok(frame) = server.recv(None) {
                let head = pb::MetaReply { seq: frame.payload.len() as u64, ..Default::default() };
                server.send(FrameKind::MetaReply, frame.request_id, &head, &frame.payload).expect("sends");
            }
        });
        for size in [0, 1, 4096, 16_384, 16_385, 1 << 20] {
            let payload = vec![size as u8; size];
            let head = pb::MetaRequest::default();
            let deadline = Some(now() + Duration::from_secs(10));
            let (reply, back): (pb::MetaReply, _) =
                client.call(FrameKind::MetaRequest, FrameKind::MetaReply, &head, &payload, deadline).expect("answered");
            assert_eq!((reply.seq as usize, back.len()), (size, size));
            assert_eq!(back, payload);
        }
        drop(client);
        echo.join().expect("ends with the connection");
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let (mut client, _server) = pair();
        let deadline = now() + Duration::from_millis(50);
        assert!(matches!(client.recv(Some(deadline)), Err(WireError::TimedOut)));
        assert!(now() >= deadline);
    }

    #[test]
    fn garbage_closes_the_connection() {
        let (client, mut server) = pair();
        client.socket().expect("cloned").write_all(&[b'x'; 64]).expect("writes");
        assert!(matches!(server.recv(None), Err(WireError::Malformed(_))));
    }
}
