//! Accepts connections of the hot plane, a thread each, up to a bound; ends them all on request.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Connection;

/// A listening socket and the connections it accepted.
///
/// Dropping it does not stop it; [`Listener::stop`] does.
pub struct Listener {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    stopping: AtomicBool,
    open: Mutex<BTreeMap<u64, TcpStream>>,
    connections_max: usize,
}

impl Listener {
    /// Listens on `address` (`host:port`; port 0 takes a free one) and runs `handler` on a thread of its own for each
    /// connection, until [`Listener::stop`]. Above `connections_max` a new connection is closed at once.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound or no thread can be made.
    pub fn start<H>(address: &str, connections_max: usize, thread_name: &str, handler: H) -> io::Result<Self>
    where
        H: Fn(Connection) + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        let shared =
            Arc::new(Shared { stopping: AtomicBool::new(false), open: Mutex::new(BTreeMap::new()), connections_max });
        let accepting = Arc::clone(&shared);
        let name = thread_name.to_owned();
        std::thread::Builder::new()
            .name(format!("{thread_name}-accept"))
            .spawn(move || accept_loop(&listener, &accepting, &name, &Arc::new(handler)))?;
        Ok(Self { address: bound, shared })
    }

    /// Returns the address that is listened on, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.shared.lock().len()
    }

    /// Ends the accept loop and shuts every connection down. Handlers see the end of their stream and return.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // The accept call only returns for a connection: make one.
        drop(TcpStream::connect_timeout(&self.address, Duration::from_secs(1)));
        for stream in self.shared.lock().values() {
            // One that is closed already is what we want.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept_loop<H>(listener: &TcpListener, shared: &Arc<Shared>, name: &str, handler: &Arc<H>)
where
    H: Fn(Connection) + Send + Sync + 'static,
{
    let mut next_id = 0u64;
    loop {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, or a connection that died in the queue: the loop must outlive both.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let Ok(registered) = stream.try_clone() else { continue };
        let id = next_id;
        next_id += 1;
        {
            let mut open = shared.lock();
            if open.len() >= shared.connections_max {
                continue;
            }
            open.insert(id, registered);
        }
        let (held, run) = (Arc::clone(shared), Arc::clone(handler));
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _close = Registered { shared: held, id };
            if let Ok(connection) = Connection::new(stream) {
                run(connection);
            }
        });
        if spawned.is_err() {
            shared.lock().remove(&id);
        }
    }
}

/// Takes a connection off the list when its handler ends, however it ends.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::connect;
    use super::*;

    #[test]
    fn the_bound_holds_and_stop_ends_everyone() {
        let listener =
            Listener::start("127.0.0.1:0", 2, "test", |mut connection| while connection.recv(None).is_ok() {})
                .expect("listens");
        let address = listener.address().to_string();
        let dial = || connect(&address, Duration::from_secs(5)).expect("connects");
        let (mut first, mut second) = (dial(), dial());
        wait_until(|| listener.connections() == 2);
        let mut third = dial();
        let deadline = || Some(Instant::now() + Duration::from_secs(5));
        assert!(third.recv(deadline()).is_err(), "above the bound the connection is closed");
        listener.stop();
        assert!(first.recv(deadline()).is_err());
        assert!(second.recv(deadline()).is_err());
        wait_until(|| listener.connections() == 0);
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !condition() {
            assert!(Instant::now() < deadline, "the condition did not come true");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
