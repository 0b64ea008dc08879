//! The end of a run: everything is read, and the replicas of each chunk are held against each other.

use dfs_chunkd::core::unit::UnitState;
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::replica_set::Home;
use dfs_proto::{ChunkId, ChunkIndex};

use super::faults::Mode;
use super::files::{CHUNK_SIZE_LOG2, chunk_span};
use super::history::FileId;
use super::network::Place;
use super::scheduler::{ms, seconds};
use super::simulation::{Phase, Simulation};

/// Everything that is there is read within this.
const COMPARE_US: u64 = seconds(240);
/// Everything is scrubbed within this, in the end.
const SCRUB_US: u64 = seconds(60);

impl Simulation {
    pub(super) fn compare(&mut self, phase: Phase) {
        let usable = self.context.files.usable();
        self.reads = usable
            .iter()
            .flat_map(|file| (0..self.context.files.get(*file).chunks).map(|index| (*file, ChunkIndex(index))))
            .filter(|(file, index)| self.swarm.mode == Mode::Unlimited || !self.may_be_lost(*file, Some(*index)))
            .collect();
        self.reads_failed = self.clients[0].done.1;
        self.reader = self.clients[0].session();
        self.losses = self.checks.losses();
        self.go_to(phase);
    }

    pub(super) fn comparing(&mut self, elapsed: u64) {
        let client = &mut self.clients[0];
        if client.is_ready() {
            while let (Some(lane), Some((file, index))) = (client.free_lane(), self.reads.last().copied()) {
                self.reads.pop();
                client.begin_read(&mut self.context, lane, chunk_span(file, index));
            }
        }
        if self.phase == Phase::CompareAgain && elapsed < SCRUB_US {
            return;
        }
        let failed = client.done.1 - self.reads_failed;
        let limit = match self.swarm.mode {
            Mode::Atlas | Mode::Power => COMPARE_US,
            // What is gone for good is waited for as long as a client is patient, one chunk after the other.
            Mode::Unlimited => COMPARE_US + u64::from(failed) * ms(client.patience_ms()),
        };
        if elapsed > limit {
            return self.checks.violated("F3", "what is there cannot be read in the end".into());
        }
        if !self.reads.is_empty() || !client.is_idle() {
            return;
        }
        if failed > 0 && (self.reader != client.session() || self.losses < self.checks.losses()) {
            // A client that was away for long finds that out only now; or the master has left a server with the last good
            // copy, which is silent for as long as what it has planned when it was slow.
            return self.compare(self.phase);
        }
        if failed > 0 && self.swarm.mode != Mode::Unlimited {
            return self.checks.violated("D1", format!("{failed} chunks cannot be read in the end"));
        }
        self.compare_replicas();
        match self.phase {
            Phase::Compare => self.go_to(Phase::Restart),
            _ => self.go_to(Phase::Over),
        }
    }

    /// R5: the replicas of a quiet chunk that are in sync hold the same.
    fn compare_replicas(&mut self) {
        // Damage that nobody has come across yet is found by a scrub, at the latest.
        let is_scrubbed = self.phase == Phase::CompareAgain && self.swarm.mode != Mode::Unlimited;
        let units = (1 << CHUNK_SIZE_LOG2) / UNIT_SIZE;
        let sets: Vec<(ChunkId, Vec<u32>)> = self
            .checks
            .sets
            .iter()
            .map(|(chunk, (_, set))| {
                (*chunk, set.in_sync.iter().filter_map(|node| self.checks.server(*node)).collect())
            })
            .collect();
        for (chunk, members) in sets {
            // One that nobody reads any more, or that no mount has committed, may be as the last fault left it.
            if (self.swarm.mode == Mode::Unlimited || self.is_exempt(chunk) || !self.is_read(chunk))
                && !members
                    .iter()
                    .any(|at| self.servers[*at as usize - 1].is_primary(chunk, self.context.mono(Place::Chunk(*at))))
            {
                continue;
            }
            let mut first: Option<(u32, Vec<_>, Vec<u8>)> = None;
            // What no mount has committed is not scrubbed.
            let is_scrubbed = is_scrubbed && self.is_written(chunk);
            let is_doubtful = |at: u32| self.checks.may_be_damaged(chunk, at);
            for at in members {
                match self.servers[at as usize - 1].store.inspect(chunk, units) {
                    Ok((states, bytes)) => match &first {
                        None => first = Some((at, states, bytes)),
                        // Lost writes may leave an older state that looks whole, until it is compared.
                        Some((other, _, _)) if !is_scrubbed && [*other, at].iter().any(|at| is_doubtful(*at)) => {}
                        Some((other, theirs, _)) if differ(theirs, &states, is_scrubbed).is_some() => {
                            let unit = differ(theirs, &states, is_scrubbed);
                            let (one, two) = (unit.map(|unit| theirs[unit]), unit.map(|unit| states[unit]));
                            let what = format!(
                                "chunk {chunk}: chunk{other} and chunk{at} are in sync and differ at unit {unit:?}: {one:?} and {two:?}"
                            );
                            return self.checks.violated("R5", what);
                        }
                        Some(_) => {}
                    },
                    Err(error)
                        if self.swarm.mode != Mode::Unlimited
                            && self.is_written(chunk)
                            && !self.is_exempt(chunk)
                            && (is_scrubbed || !self.checks.may_be_damaged(chunk, at)) =>
                    {
                        return self
                            .checks
                            .violated("R5", format!("chunk {chunk}: chunk{at} is in sync and says: {error}"));
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// Returns whether nothing is asked of a chunk in the end: it once had no good copy, or nothing of it was ever promised
    /// to be on stable media and all hosts lost power.
    pub(super) fn is_exempt(&self, chunk: ChunkId) -> bool {
        let Some((home, _)) = self.checks.sets.get(&chunk) else { return true };
        let is_synced = || {
            let file = self.context.files.of_inode(home.inode);
            file.is_some_and(|file| self.context.files.synced.contains(&(file.id, home.index)))
        };
        match self.swarm.mode {
            Mode::Unlimited => true,
            Mode::Atlas => self.checks.was_bereft(chunk),
            Mode::Power => self.checks.was_bereft(chunk) && !is_synced(),
        }
    }

    /// Returns whether a file has a chunk (that one, if named) of which nothing is asked.
    pub(super) fn may_be_lost(&self, file: FileId, index: Option<ChunkIndex>) -> bool {
        let inode = self.context.files.get(file).inode;
        let is_of_file = |home: &Home| Some(home.inode) == inode && index.is_none_or(|index| index == home.index);
        self.checks.sets.iter().any(|(chunk, (home, _))| is_of_file(home) && self.is_exempt(*chunk))
    }

    /// Returns whether a mount has committed the chunk, and its file is read in the end.
    fn is_read(&self, chunk: ChunkId) -> bool {
        let home = self.checks.sets.get(&chunk).map(|(home, _)| *home);
        let file = home.and_then(|home| self.context.files.of_inode(home.inode));
        self.is_written(chunk) && file.is_some_and(|file| !file.is_removed)
    }

    pub(super) fn is_written(&self, chunk: ChunkId) -> bool {
        self.checks.sets.get(&chunk).is_some_and(|(_, set)| set.is_written)
    }
}

/// Returns the first unit in which two replicas differ. One that is damaged, and so holds nothing, is none unless
/// `counts_damage`.
fn differ(one: &[Option<UnitState>], two: &[Option<UnitState>], counts_damage: bool) -> Option<usize> {
    one.iter().zip(two).position(|(one, two)| one != two && (counts_damage || (one.is_some() && two.is_some())))
}
