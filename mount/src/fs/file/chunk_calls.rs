//! Carries out what [`ChunkCall`] decides: asks the primaries of chunks, looks their locations up, waits.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::{ChunkIndex, FsError};

use super::state::{FileState, Layout};
use crate::core::{Ask, ChunkCall, Input, Location, LookUp, Outcome, Policy, Step, Trouble};
use crate::remote::Patience;

/// Locations that are asked for together: 1 GiB of the default layout.
const LOCATIONS_AT_ONCE: u32 = 16;
/// How long a report of damage may hold a call up.
const REPORT_POLICY: Policy = Policy::Soft { ms: 500 };

/// What becomes of a place without a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is a hole.
    Hole,
    /// One is made.
    Allocate,
}

impl FileState {
    /// Makes a call to the primary of a chunk until it succeeds or the mount's policy gives up. `None`: there is no chunk.
    pub(super) fn at_chunk<T>(
        &self,
        what: &str,
        index: ChunkIndex,
        ask: impl Fn(&Ask) -> Result<T, Trouble>,
    ) -> Result<Option<T>, FsError> {
        self.at_chunk_for(self.shared.settings.policy, what, index, ask)
    }

    /// As [`Self::at_chunk`], until `policy` gives up.
    pub(super) fn at_chunk_for<T>(
        &self,
        policy: Policy,
        what: &str,
        index: ChunkIndex,
        ask: impl Fn(&Ask) -> Result<T, Trouble>,
    ) -> Result<Option<T>, FsError> {
        let clock = &self.shared.clock;
        let mut call = ChunkCall::new(policy, clock.mono());
        let mut patience = Patience::new(&self.shared.metrics.waiting_requests);
        let what = format_args!("{what} of chunk {index} of inode {}", self.inode);
        let mut input = Input::Begin(self.known(index));
        let mut value = None;
        loop {
            let now = clock.mono();
            input = match call.step(now, input) {
                Step::Ask(step) => match ask(&step) {
                    Ok(answer) => {
                        value = Some(answer);
                        Input::Answered(Ok(()))
                    }
                    Err(trouble) => Input::Answered(Err(self.note_trouble(&step, trouble))),
                },
                Step::LookUp(look) => Input::Found(self.look_up(index, &look, Missing::Hole)),
                Step::Wait { until } => {
                    if let Some(trouble) = call.trouble() {
                        patience.wait(&what, call.elapsed_ms(now), trouble);
                    }
                    std::thread::sleep(Duration::from_millis(until.since(now)));
                    Input::Passed
                }
                Step::Done(Ok(outcome)) => {
                    patience.goes_on(&what, call.elapsed_ms(now));
                    return Ok(if outcome == Outcome::NoChunk { None } else { value });
                }
                Step::Done(Err(error)) => {
                    patience.gives_up(&what, call.elapsed_ms(now), &error);
                    return Err(error);
                }
            };
        }
    }

    /// Returns where a chunk is, if that is kept.
    pub(super) fn known(&self, index: ChunkIndex) -> Option<Arc<Location>> {
        self.state.lock().locations.get(index)
    }

    /// Counts an attempt that failed. A location that did not do is not given to others.
    pub(super) fn note_trouble(&self, ask: &Ask, trouble: Trouble) -> Trouble {
        self.shared.metrics.count_trouble(&trouble);
        if !matches!(trouble, Trouble::Refused(FsError::TryAgain(_))) {
            self.state.lock().locations.forget(&ask.location);
        }
        trouble
    }

    /// Returns where a chunk is, other than the one that did not do.
    pub(super) fn look_up(
        &self,
        index: ChunkIndex,
        look: &LookUp,
        missing: Missing,
    ) -> Result<Option<Arc<Location>>, FsError> {
        let (backend, clock) = (&self.shared.backend, &self.shared.clock);
        if let Some(damage) = &look.damage {
            tracing::error!(inode = %self.inode, %index, chunk = %damage.chunk, version = %damage.version,
                node = %damage.node, reason = %damage.detail, "a chunk server has no good copy");
            // To read on matters more than to complain: it is said again if it happens again.
            let _ = backend.report_damage(REPORT_POLICY, damage);
        }
        loop {
            let (epoch, is_leaving) = {
                let state = self.state.lock();
                if let Some(location) =
                    state.locations.get(index).filter(|known| Some(known) != look.instead_of.as_ref())
                {
                    return Ok(Some(location));
                }
                let is_leaving = match &state.layout {
                    Layout::Leaving { pushed, .. } if missing == Missing::Hole && !pushed.contains(&index) => {
                        return Ok(None);
                    }
                    Layout::Leaving { .. } => true,
                    _ => false,
                };
                (state.locations.epoch(), is_leaving)
            };
            let within = Policy::until(look.until, clock.mono());
            // To the master the chunks of a file that leaves its inode are no content yet: the way to them is the writer's.
            let allocates = is_leaving || missing == Missing::Allocate;
            let found = match &look.instead_of {
                // It was there: the master finds another primary for it, or knows that it is gone.
                Some(_) => Some(backend.get_chunks(within, self.inode, index, 1, look.lost)?),
                None if allocates => None,
                None => {
                    let first = ChunkIndex(index.0 - index.0 % LOCATIONS_AT_ONCE);
                    Some(backend.get_chunks(within, self.inode, first, LOCATIONS_AT_ONCE, None)?)
                }
            };
            let chunks = match found {
                Some(chunks) if !allocates || chunks.has(index) => chunks,
                _ => {
                    let within = Policy::until(look.until, clock.mono());
                    let chunks = backend.allocate_chunks(within, self.inode, index, 1)?;
                    if !chunks.has(index) {
                        return Err(FsError::Protocol(format!("chunk {index} was asked for and not allocated")));
                    }
                    chunks
                }
            };
            let mut state = self.state.lock();
            self.note_attr_locked(&mut state, &chunks.attr);
            if state.locations.epoch() == epoch {
                // The answer is what the reply says of the chunk: what is kept may have made room already.
                let mut answer = None;
                // Holes are not kept: they fill up any moment.
                for location in chunks.locations.into_iter().filter(|location| !location.is_hole()) {
                    let location = state.locations.remember(location);
                    if location.index == index {
                        answer = Some(location);
                    }
                }
                return Ok(answer);
            }
        }
    }
}
