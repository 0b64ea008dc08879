//! One replica of a chunk: the state machine that a server's threads, or a simulator, drive.
//!
//! See [`super::message`] for what goes in and comes out.

use dfs_proto::replica_set::Home;
use dfs_proto::{ChunkId, Version};

use super::message::{Context, Effect, Input, WriteKey};

/// What is known of a replica from its disk when it is opened.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Which piece of which file it is.
    pub home: Home,
    /// Writes that it has applied, by who asked, in any order.
    pub keys: Vec<WriteKey>,
    /// The highest seq of any of its units.
    pub highest_seq: u64,
}

/// The state of one replica.
#[derive(Debug)]
pub struct ReplicaCore {
    chunk: ChunkId,
    chunk_size_log2: u32,
    version: Version,
    incomplete: bool,
    recovered: Recovered,
}

impl ReplicaCore {
    /// Returns the replica whose header on disk has this version and mark. It has no role until it is told of one.
    pub fn new(
        header_version: Version,
        incomplete: bool,
        chunk: ChunkId,
        chunk_size_log2: u32,
        recovered: Recovered,
    ) -> Self {
        Self { chunk, chunk_size_log2, version: header_version, incomplete, recovered }
    }

    /// Takes `input` in, and adds to `out` what is to be done now.
    pub fn step(&mut self, context: &Context, input: Input, out: &mut Vec<Effect>) {
        let _ = (context, input, out);
    }

    /// Returns the version that this replica goes by. It only grows.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns whether this replica lacks what others have.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Returns whether nothing is under way, so that the replica may be closed. It loses its role with that.
    pub fn is_idle(&self) -> bool {
        true
    }

    /// Returns the version under which this replica is the active primary, if it is.
    pub fn active_version(&self) -> Option<Version> {
        None
    }
}
