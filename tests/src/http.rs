//! One GET: all that the pages of the daemons need.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Returns status and body of `http://127.0.0.1:PORT/PATH`.
///
/// # Errors
///
/// If nobody answers in time, or the answer is not HTTP.
pub fn get(port: u16, path: &str) -> Result<(u16, String)> {
    get_at(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), path)
}

/// As [`get`], at any address.
///
/// # Errors
///
/// As [`get`].
pub fn get_at(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| format!("reading from {address}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}

/// Fails unless `/healthz` at `port` says 200; the error has the reason that it gives.
///
/// # Errors
///
/// See above.
pub fn healthy(port: u16) -> Result<()> {
    let (status, body) = get(port, "/healthz")?;
    ensure!(status == 200, "/healthz at {port}: {status}: {}", body.trim());
    Ok(())
}
