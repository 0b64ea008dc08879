//! A cluster in memory: the master's and the chunk servers' rules as far as a mount sees them, with faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::INLINE_BYTES_MAX;
use dfs_proto::mode::without_set_id;
use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, NodeId, Seq, UnixNanos, Version, unit};
use parking_lot::{Condvar, Mutex};

use crate::core::{Ask, Damage, Location, Policy, Replica, Trouble};
use crate::fs::Attr;
use crate::fs::attr::tests::attr as empty_file;
use crate::fs::file::Backend;
use crate::remote::{Chunks, CommitWrite, InlineData, ReadData, WriteId};

pub(super) const CHUNK_LOG2: u32 = 16;
pub(super) const CHUNK: u64 = 1 << CHUNK_LOG2;

/// How often, of 256, a data call fails, and how.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// The chunk moves to another version: the location is stale.
    pub(super) stale: u32,
    /// Nothing is done.
    pub(super) no_replica: u32,
    /// It is done, but the answer is lost.
    pub(super) lost_answer: u32,
}

#[derive(Clone, Default)]
struct File {
    attr: Option<Attr>,
    content: Vec<u8>,
    chunks: BTreeMap<u32, (ChunkId, u64)>,
    written: BTreeSet<u32>,
}

#[derive(Clone, Default)]
struct Replicas {
    data: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<InodeId, File>,
    durable_files: BTreeMap<InodeId, File>,
    chunks: BTreeMap<ChunkId, Replicas>,
    seen: BTreeSet<(ChunkId, u64)>,
    next_chunk: u64,
    next_inode: u64,
    seq: u64,
    number: u64,
    generation: u64,
    lost: Vec<NodeId>,
    damage: Vec<Damage>,
    random: u64,
    faults: Faults,
    refusal: Option<FsError>,
    is_silent: bool,
    reads: u64,
    writes: u64,
    commits: u64,
    get_chunks: u64,
    reads_now: usize,
    reads_now_max: usize,
    reads_wait_for: usize,
    barriers: u64,
    barrier_error: Option<FsError>,
    holds_barriers: bool,
    barriers_held: usize,
    losses: BTreeMap<ChunkId, Version>,
}

/// The cluster.
#[derive(Default)]
pub(super) struct Cluster {
    inner: Mutex<Inner>,
    changed: Condvar,
}

enum Fate {
    Done,
    Fails(Trouble),
    AnswerLost,
}

impl Inner {
    fn file(&mut self, inode: InodeId) -> Result<&mut File, FsError> {
        self.files.get_mut(&inode).ok_or(FsError::NoEntry)
    }

    fn touch(&mut self, inode: InodeId, is_content: bool) -> Attr {
        self.seq += 1;
        let seq = Seq(self.seq);
        let file = self.files.get_mut(&inode).expect("exists");
        let chunks = file.chunks.len() as u64;
        let attr = file.attr.as_mut().expect("has attributes");
        attr.seq = seq;
        attr.chunks = chunks;
        attr.data_version += u64::from(is_content);
        *attr
    }

    fn roll(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) as u32 % 256
    }

    fn fate(&mut self, location: &Location) -> Fate {
        if let Some(error) = &self.refusal {
            return Fate::Fails(error.clone().into());
        }
        if self.is_silent {
            return Fate::Fails(Trouble::Unanswered("silence".into()));
        }
        let current = self.files.values().flat_map(|file| file.chunks.values()).find(|chunk| chunk.0 == location.chunk);
        match current {
            Some((_, version)) if *version == location.version.0 => {}
            _ => return Fate::Fails(FsError::Stale("another version").into()),
        }
        let roll = self.roll();
        let faults = self.faults;
        if roll < faults.stale {
            for file in self.files.values_mut() {
                for chunk in file.chunks.values_mut().filter(|chunk| chunk.0 == location.chunk) {
                    chunk.1 += 1;
                }
            }
            Fate::Fails(FsError::Stale("moved just now").into())
        } else if roll < faults.stale + faults.no_replica {
            Fate::Fails(FsError::NoReplica("for now".into()).into())
        } else if roll < faults.stale + faults.no_replica + faults.lost_answer {
            Fate::AnswerLost
        } else {
            Fate::Done
        }
    }

    fn locations(&self, inode: InodeId, first: u32, count: u32) -> Vec<Location> {
        let file = &self.files[&inode];
        (first..first.saturating_add(count))
            .map(|index| {
                let (chunk, version) = file.chunks.get(&index).copied().unwrap_or_default();
                Location {
                    index: ChunkIndex(index),
                    chunk,
                    version: Version(version),
                    replicas: vec![Replica { node: NodeId(1), address: "fake:1".into(), is_alive: true }],
                    grant: Bytes::new(),
                }
            })
            .collect()
    }

    fn drop_chunks(&mut self, inode: InodeId, first: u32, last: u32) {
        let file = self.files.get_mut(&inode).expect("exists");
        let gone: Vec<u32> = file.chunks.range(first..=last).map(|(&index, _)| index).collect();
        for index in gone {
            let (chunk, _) = file.chunks.remove(&index).expect("just seen");
            file.written.remove(&index);
            self.chunks.remove(&chunk);
        }
    }
}

impl Cluster {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let cluster = Self::default();
        cluster.inner.lock().random = seed | 1 << 40;
        Arc::new(cluster)
    }

    /// Makes an empty file.
    pub(super) fn make(&self) -> Attr {
        let mut inner = self.inner.lock();
        inner.next_inode += 1;
        inner.seq += 1;
        let inode = InodeId(inner.next_inode + 1);
        let time = UnixNanos(1_000);
        let attr = Attr {
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            chunk_size_log2: CHUNK_LOG2,
            seq: Seq(inner.seq),
            ..empty_file(inode.0)
        };
        inner.files.insert(inode, File { attr: Some(attr), ..File::default() });
        attr
    }

    /// As `SetAttr` with a size.
    pub(super) fn set_size(&self, inode: InodeId, size: u64) -> Result<Attr, FsError> {
        let mut inner = self.inner.lock();
        let before = inner.file(inode)?.attr.expect("has attributes");
        let mut is_inline = before.is_inline;
        if size != before.size {
            if before.is_inline {
                if size > INLINE_BYTES_MAX && before.size > 0 {
                    return Err(FsError::Stale("must leave inline"));
                }
                is_inline = size <= INLINE_BYTES_MAX;
                let file = inner.file(inode)?;
                file.content.resize(if is_inline { size as usize } else { 0 }, 0);
                inner.drop_chunks(inode, 0, u32::MAX);
            } else if size < before.size {
                is_inline = size == 0;
                inner.drop_chunks(inode, size.div_ceil(CHUNK) as u32, u32::MAX);
                let (index, from) = ((size / CHUNK) as u32, (size % CHUNK) as usize);
                if let Some((chunk, _)) = inner.file(inode)?.chunks.get(&index).copied() {
                    // Only what the master knows to exist is zeroed, as the real one would up to the chunk's end: the
                    // stricter rule finds a mount that relies on more.
                    let to = before.size.saturating_sub(u64::from(index) * CHUNK).min(CHUNK) as usize;
                    let replicas = inner.chunks.get_mut(&chunk).expect("has replicas");
                    replicas.data[from..to].fill(0);
                    replicas.durable[from..to].fill(0);
                }
            }
        }
        let attr = inner.file(inode)?.attr.as_mut().expect("has attributes");
        attr.size = size;
        attr.is_inline = is_inline;
        attr.mtime = UnixNanos(attr.mtime.0 + 1);
        Ok(inner.touch(inode, size != before.size))
    }

    pub(super) fn attr(&self, inode: InodeId) -> Attr {
        self.inner.lock().files[&inode].attr.expect("has attributes")
    }

    pub(super) fn opened(&self, inode: InodeId) -> (Attr, Option<Bytes>) {
        let inner = self.inner.lock();
        let file = &inner.files[&inode];
        let attr = file.attr.expect("has attributes");
        (attr, attr.is_inline.then(|| file.content.clone().into()))
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        self.inner.lock().faults = faults;
    }

    /// Every data call fails with `error`, which no retry helps.
    pub(super) fn refuse(&self, error: Option<FsError>) {
        self.inner.lock().refusal = error;
    }

    pub(super) fn be_silent(&self, is_silent: bool) {
        self.inner.lock().is_silent = is_silent;
    }

    /// Power loss everywhere: only what is on stable media stays.
    pub(super) fn crash(&self) {
        let mut inner = self.inner.lock();
        inner.files = inner.durable_files.clone();
        for replicas in inner.chunks.values_mut() {
            replicas.data = replicas.durable.clone();
        }
    }

    /// Power loss of all chunk servers, which come back: only what is on stable media stays, and each chunk has another
    /// version.
    pub(super) fn lose_unsynced(&self) {
        let mut inner = self.inner.lock();
        for replicas in inner.chunks.values_mut() {
            replicas.data = replicas.durable.clone();
        }
        let moved = inner.files.values_mut().flat_map(|file| file.chunks.values_mut());
        let losses: Vec<(ChunkId, Version)> = moved
            .map(|(chunk, version)| {
                *version += 1;
                (*chunk, Version(*version))
            })
            .collect();
        inner.losses.extend(losses);
    }

    /// (reads, writes, commits, location look-ups) so far.
    pub(super) fn counts(&self) -> (u64, u64, u64, u64) {
        let inner = self.inner.lock();
        (inner.reads, inner.writes, inner.commits, inner.get_chunks)
    }

    /// Reads wait until `count` of them are there at once (for at most a second each).
    pub(super) fn hold_reads_until(&self, count: usize) {
        self.inner.lock().reads_wait_for = count;
    }

    /// Barriers fail with `error`, all else goes on.
    pub(super) fn refuse_barriers(&self, error: Option<FsError>) {
        self.inner.lock().barrier_error = error;
    }

    /// Barriers wait until this is called again.
    pub(super) fn hold_barriers(&self, holds: bool) {
        self.inner.lock().holds_barriers = holds;
        self.changed.notify_all();
    }

    /// Barriers that wait.
    pub(super) fn barriers_held(&self) -> usize {
        self.inner.lock().barriers_held
    }

    /// Writes of before are refused from now on.
    pub(super) fn begin_session(&self) {
        self.inner.lock().generation += 1;
    }

    /// Primaries that were named as lost, each time.
    pub(super) fn lost(&self) -> Vec<NodeId> {
        self.inner.lock().lost.clone()
    }

    /// Damage that was reported.
    pub(super) fn damage(&self) -> Vec<Damage> {
        self.inner.lock().damage.clone()
    }

    /// Barriers that are done.
    pub(super) fn barriers(&self) -> u64 {
        self.inner.lock().barriers
    }

    pub(super) fn reads_at_once(&self) -> usize {
        self.inner.lock().reads_now_max
    }
}

impl Backend for Cluster {
    fn get_attr(&self, inode: InodeId) -> Result<Attr, FsError> {
        self.inner.lock().file(inode).map(|file| file.attr.expect("has attributes"))
    }

    fn get_inline(&self, inode: InodeId) -> Result<InlineData, FsError> {
        let mut inner = self.inner.lock();
        let file = inner.file(inode)?;
        Ok(InlineData { attr: file.attr.expect("has attributes"), content: file.content.clone().into() })
    }

    fn get_chunks(
        &self,
        _within: Policy,
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
        lost: Option<NodeId>,
    ) -> Result<Chunks, FsError> {
        let mut inner = self.inner.lock();
        inner.get_chunks += 1;
        inner.lost.extend(lost);
        let attr = inner.file(inode)?.attr.expect("has attributes");
        Ok(Chunks { locations: inner.locations(inode, first.0, count), attr })
    }

    fn allocate_chunks(
        &self,
        _within: Policy,
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
    ) -> Result<Chunks, FsError> {
        let mut inner = self.inner.lock();
        let mut made = false;
        for index in first.0..first.0 + count {
            if !inner.file(inode)?.chunks.contains_key(&index) {
                inner.next_chunk += 1;
                let chunk = ChunkId(inner.next_chunk);
                let empty = vec![0; CHUNK as usize];
                inner.chunks.insert(chunk, Replicas { data: empty.clone(), durable: empty });
                inner.file(inode)?.chunks.insert(index, (chunk, 1));
                made = true;
            }
        }
        let attr = if made { inner.touch(inode, false) } else { inner.file(inode)?.attr.expect("has attributes") };
        Ok(Chunks { locations: inner.locations(inode, first.0, count), attr })
    }

    fn commit_write(&self, commit: CommitWrite) -> Result<Attr, FsError> {
        let mut inner = self.inner.lock();
        inner.commits += 1;
        let file = inner.file(commit.inode)?;
        let attr = file.attr.as_mut().expect("has attributes");
        let changes_inline = commit.content.is_some() || commit.leave_inline;
        if changes_inline && (!attr.is_inline || commit.if_data_version != attr.data_version) {
            return Err(FsError::Stale("the content changed meanwhile"));
        }
        if !changes_inline && attr.is_inline {
            return Err(FsError::Stale("the file is inline"));
        }
        if commit.written.iter().any(|index| !file.chunks.contains_key(&index.0)) {
            return Err(FsError::Stale("a chunk that was written is gone"));
        }
        match commit.content {
            Some(content) => {
                assert!(content.len() as u64 <= INLINE_BYTES_MAX && commit.written.is_empty());
                attr.size = content.len() as u64;
                file.content = content.to_vec();
            }
            None => attr.size = attr.size.max(commit.end),
        }
        if commit.leave_inline {
            attr.is_inline = false;
            file.content.clear();
        }
        attr.mtime = commit.mtime;
        if commit.clear_suid_sgid {
            attr.mode = without_set_id(attr.mode);
        }
        file.written.extend(commit.written.iter().map(|index| index.0));
        Ok(inner.touch(commit.inode, true))
    }

    fn punch_chunks(&self, inode: InodeId, first: ChunkIndex, count: u32, mtime: UnixNanos) -> Result<Attr, FsError> {
        let mut inner = self.inner.lock();
        inner.file(inode)?.attr.as_mut().expect("has attributes").mtime = mtime;
        inner.drop_chunks(inode, first.0, first.0.saturating_add(count - 1));
        Ok(inner.touch(inode, true))
    }

    fn sync_to(&self, seq: Seq) -> Result<(), FsError> {
        let mut inner = self.inner.lock();
        assert!(seq.0 <= inner.seq);
        inner.durable_files = inner.files.clone();
        Ok(())
    }

    fn report_damage(&self, _within: Policy, damage: &Damage) -> Result<(), FsError> {
        self.inner.lock().damage.push(damage.clone());
        Ok(())
    }

    fn new_write(&self) -> WriteId {
        let mut inner = self.inner.lock();
        inner.number += 1;
        WriteId { number: inner.number, generation: inner.generation }
    }

    fn read(&self, ask: &Ask, offset: u32, length: u32) -> Result<ReadData, Trouble> {
        let mut inner = self.inner.lock();
        inner.reads += 1;
        inner.reads_now += 1;
        inner.reads_now_max = inner.reads_now_max.max(inner.reads_now);
        self.changed.notify_all();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(1);
        while inner.reads_now_max < inner.reads_wait_for {
            if self.changed.wait_until(&mut inner, deadline).timed_out() {
                break;
            }
        }
        inner.reads_now -= 1;
        match inner.fate(&ask.location) {
            Fate::Fails(error) => Err(error),
            Fate::AnswerLost => Err(Trouble::Unanswered("the answer was lost".into())),
            Fate::Done => {
                let data = &inner.chunks[&ask.location.chunk].data[offset as usize..(offset + length) as usize];
                let all_zero = data.iter().all(|&byte| byte == 0);
                Ok(ReadData { bytes: if all_zero { Bytes::new() } else { Bytes::copy_from_slice(data) }, all_zero })
            }
        }
    }

    fn write(&self, ask: &Ask, offset: u32, data: &Bytes, crcs: &[u32], id: WriteId) -> Result<Version, Trouble> {
        assert_eq!(unit::verify(offset, data, crcs), Ok(()));
        let mut inner = self.inner.lock();
        inner.writes += 1;
        if id.generation != inner.generation {
            return Err(FsError::SessionLost.into());
        }
        let fate = inner.fate(&ask.location);
        if let Fate::Fails(error) = fate {
            return Err(error);
        }
        // The window of numbers: a write that is repeated is not applied again.
        if inner.seen.insert((ask.location.chunk, id.number)) {
            let replicas = inner.chunks.get_mut(&ask.location.chunk).expect("the location is good");
            replicas.data[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        }
        match fate {
            Fate::AnswerLost => Err(Trouble::Unanswered("the answer was lost".into())),
            _ => Ok(ask.location.version),
        }
    }

    fn barrier(&self, ask: &Ask, since: Version) -> Result<(), Trouble> {
        let mut inner = self.inner.lock();
        inner.barriers_held += 1;
        while inner.holds_barriers {
            self.changed.wait(&mut inner);
        }
        inner.barriers_held -= 1;
        if let Some(error) = &inner.barrier_error {
            return Err(error.clone().into());
        }
        if let Fate::Fails(error) = inner.fate(&ask.location) {
            return Err(error);
        }
        if since != Version(0) && inner.losses.get(&ask.location.chunk).is_some_and(|loss| since < *loss) {
            return Err(FsError::UnsyncedLost.into());
        }
        inner.barriers += 1;
        let replicas = inner.chunks.get_mut(&ask.location.chunk).expect("the location is good");
        replicas.durable = replicas.data.clone();
        Ok(())
    }

    fn zero(&self, ask: &Ask, offset: u32, length: u32, _id: WriteId) -> Result<Version, Trouble> {
        let mut inner = self.inner.lock();
        if let Fate::Fails(error) = inner.fate(&ask.location) {
            return Err(error);
        }
        let replicas = inner.chunks.get_mut(&ask.location.chunk).expect("the location is good");
        replicas.data[offset as usize..(offset + length) as usize].fill(0);
        Ok(ask.location.version)
    }

    fn extents(&self, ask: &Ask, offset: u32, length: u32) -> Result<Vec<(u32, u32)>, Trouble> {
        let mut inner = self.inner.lock();
        if let Fate::Fails(error) = inner.fate(&ask.location) {
            return Err(error);
        }
        let data = &inner.chunks[&ask.location.chunk].data;
        let mut extents: Vec<(u32, u32)> = Vec::new();
        for unit in offset / 4096..(offset + length).div_ceil(4096) {
            let at = (unit * 4096) as usize;
            if data[at..at + 4096].iter().any(|&byte| byte != 0) {
                match extents.last_mut() {
                    Some((start, length)) if *start + *length == unit * 4096 => *length += 4096,
                    _ => extents.push((unit * 4096, 4096)),
                }
            }
        }
        Ok(extents)
    }
}
