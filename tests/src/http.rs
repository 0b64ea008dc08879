//! One GET over loopback: all that the pages of the daemons need.

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
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
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

/// Returns the sum of a metric over all its series on the page at `port`; 0 if it has none.
///
/// # Errors
///
/// If the page cannot be read.
pub fn metric(port: u16, name: &str) -> Result<f64> {
    let (status, body) = get(port, "/metrics")?;
    ensure!(status == 200, "/metrics at {port}: {status}");
    Ok(sum(&body, name))
}

fn sum(page: &str, name: &str) -> f64 {
    page.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_one_metric_are_added_up_and_no_others() {
        let page = "# HELP a x\na{op=\"x y\"} 2\na{op=\"z\"} 3.5\na_total 7\n";
        assert_eq!((sum(page, "a"), sum(page, "a_total"), sum(page, "b")), (5.5, 7.0, 0.0));
    }
}
