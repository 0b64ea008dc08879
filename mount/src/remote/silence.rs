//! Which servers were silent lately. While one is, a single call at a time finds out whether it is back, and all others
//! fail at once, to be tried again: threads are not used up by waiting for the same silence.
//!
//! ```text
//!           a call timed out, and              hello was answered
//!           so did a hello after it
//!   heard ─────────────────────────▶ silent ─ probe ─────────────▶ heard
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The silent servers, by address.
#[derive(Debug, Default)]
pub(super) struct Silences {
    /// Whether a probe is under way.
    servers: Mutex<BTreeMap<Arc<str>, bool>>,
}

/// The right to make one call.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    silences: &'a Silences,
    address: Arc<str>,
    is_probe: bool,
}

impl Silences {
    /// Returns the right to call a server, or `None` while another call is finding out whether it is back.
    pub(super) fn enter(&self, address: &Arc<str>) -> Option<Pass<'_>> {
        let mut servers = self.servers.lock();
        let is_probe = match servers.get_mut(address) {
            None => false,
            Some(true) => return None,
            Some(is_probed) => {
                *is_probed = true;
                true
            }
        };
        Some(Pass { silences: self, address: Arc::clone(address), is_probe })
    }
}

impl Pass<'_> {
    /// Returns whether this is the call that finds out.
    pub(super) fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// The server is there: it answered, or its host refused the connection.
    pub(super) fn heard(&self) {
        self.silences.servers.lock().remove(&self.address);
    }

    /// It did not answer in time.
    pub(super) fn silent(&self) {
        let mut servers = self.silences.servers.lock();
        let is_probed = servers.get(&self.address).copied().unwrap_or(false);
        servers.insert(Arc::clone(&self.address), is_probed && !self.is_probe);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe
            && let Some(is_probed) = self.silences.servers.lock().get_mut(&self.address)
        {
            *is_probed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_at_a_time_looks_after_a_silent_server() {
        let silences = Silences::default();
        let server: Arc<str> = "a:1".into();
        let (first, second) = (silences.enter(&server).unwrap(), silences.enter(&server).unwrap());
        first.silent();
        second.silent();
        let probe = silences.enter(&server).unwrap();
        assert!(silences.enter(&server).is_none());
        assert!(silences.enter(&"b:1".into()).is_some(), "others are not concerned");
        probe.silent();
        drop(probe);
        let probe = silences.enter(&server).expect("the next one tries");
        drop(first);
        assert!(silences.enter(&server).is_none(), "a call from before is no probe");
        probe.heard();
        assert!(silences.enter(&server).is_some() && silences.enter(&server).is_some());
    }
}
