//! The records of a journal.
//!
//! ```text
//! offset (bytes)  size (bytes)   field, little endian
//! 0               4              magic, b"DFSJ"
//! 4               4              crc32c of the segment's salt, bytes 8..64 and the body
//! 8               8              position of this record in the journal
//! 16              8              everything before this position was on stable media when the record was written
//! 24              4              crc32c (bytes 4..8) of the record before
//! 28              4              type, below
//! 32              8              chunk id, or 0
//! 40              4              length of the body, a multiple of 8
//! 44              4              length of the payload, a multiple of 4096
//! 48              8              version of the newest stamp in it, or 0
//! 56              8              seq of the newest stamp in it, or 0
//! 64              ..             body, below
//! ..              ..             payload: the content of journaled units, covered by their checksums in the body
//!
//! type            body
//! 1 create        the replica's header as in its file (512); the replica is new and empty
//! 2 header        the replica's header (512)
//! 3 write         client (8), number (8), part (8); runs (4), units with a checksum (4); for each run: first unit (4),
//!                 units (4), kind (4: 1 in the chunk file, 2 in the payload, 3 zeroed, 4 lost), 0 (4), version (8),
//!                 seq (8); then a checksum for each unit that is not zeroed, filled up to 8 bytes. client 0: nobody's.
//! 4 durable       position (8): first writes of the chunk before it are on stable media
//! 5 delete        nothing
//! 6 keys          for each: chunk (8), client (8), number (8), part (8), version (8), seq (8)
//! 7 checkpoint    position (8): what is before it is in the chunk files, on stable media
//! 8 synced        nothing: it is written after a sync, to say so
//! 9 end           nothing: the segment ends here, and was synced; the next one goes on
//! ```
//!
//! Salt and position see to it that nothing that an earlier use left in a segment, and no data of a user, passes for a
//! record.

use dfs_proto::{ChunkId, Version};

use super::super::header::{Header, read_u32, read_u64};
use super::super::layout::{HEADER_BYTES, UNIT_BYTES};
use crate::core::message::WriteKey;
use crate::core::unit::{UnitState, WriteStamp};

const MAGIC: [u8; 4] = *b"DFSJ";
/// Bytes of a record before its body.
pub const HEAD_BYTES: usize = 64;
/// Records begin at multiples of this.
pub const ALIGNMENT: usize = 8;
const RUN_BYTES: usize = 32;
const KEY_BYTES: usize = 48;
/// No record has a longer body: a zeroed chunk whose every other unit was never written has the most runs.
pub const BODY_MAX: usize = 1 << 20;
/// No record has a longer payload: that of the largest write.
pub const PAYLOAD_MAX: usize = 2 << 20;

/// Where the content of a run of units is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RunKind {
    /// In the chunk file already: it was never written before.
    Direct = 1,
    /// In the record's payload.
    Journaled = 2,
    /// They are holes.
    Zeroed = 3,
    /// Nowhere: they are damaged.
    Lost = 4,
}

/// Units that were written alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first unit.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Where their content is.
    pub kind: RunKind,
    /// Of all of them.
    pub stamp: WriteStamp,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A replica was made.
    Create(Header),
    /// A replica's header changed.
    Header(Header),
    /// Units of a replica were written.
    Write {
        /// Of which chunk.
        chunk: ChunkId,
        /// By whose request.
        key: Option<WriteKey>,
        /// Which units.
        runs: Vec<Run>,
        /// The checksums of those that hold data, in the order of the runs.
        crcs: Vec<u32>,
    },
    /// First writes of a chunk were synced.
    Durable {
        /// Which chunk.
        chunk: ChunkId,
        /// Those in records before this position.
        before: u64,
    },
    /// A replica was deleted.
    Delete(ChunkId),
    /// Requests that were carried out before the journal begins.
    Keys(Vec<(ChunkId, WriteKey)>),
    /// Records before this position are not needed any more.
    Checkpoint(u64),
    /// A sync succeeded.
    Synced,
    /// The next segment goes on.
    End,
}

/// A record's place in the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Where it begins.
    pub position: u64,
    /// Where everything before was on stable media.
    pub synced: u64,
    /// The checksum of the record before.
    pub previous: u32,
}

/// A record's head, its checksum checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its place.
    pub place: Place,
    /// Its checksum.
    pub crc: u32,
    /// The lengths of what follows.
    pub body: usize,
    /// As `body`.
    pub payload: usize,
    kind: u32,
    chunk: ChunkId,
    stamp: WriteStamp,
}

impl Head {
    /// Returns the bytes of the whole record.
    pub fn length(&self) -> u64 {
        (HEAD_BYTES + self.body + self.payload) as u64
    }
}

impl Record {
    fn kind(&self) -> u32 {
        match self {
            Self::Create(_) => 1,
            Self::Header(_) => 2,
            Self::Write { .. } => 3,
            Self::Durable { .. } => 4,
            Self::Delete(_) => 5,
            Self::Keys(_) => 6,
            Self::Checkpoint(_) => 7,
            Self::Synced => 8,
            Self::End => 9,
        }
    }

    fn chunk(&self) -> ChunkId {
        match self {
            Self::Create(header) | Self::Header(header) => header.chunk,
            Self::Write { chunk, .. } | Self::Durable { chunk, .. } | Self::Delete(chunk) => *chunk,
            Self::Keys(_) | Self::Checkpoint(_) | Self::Synced | Self::End => ChunkId(0),
        }
    }

    fn newest_stamp(&self) -> WriteStamp {
        match self {
            Self::Write { runs, key, .. } => {
                let stamps = runs.iter().map(|run| run.stamp);
                stamps.chain(key.map(|key| key.stamp)).max().unwrap_or_default()
            }
            _ => WriteStamp::default(),
        }
    }

    /// Returns head and body with a room of [`HEAD_BYTES`] for the head, which [`seal`] fills in.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES];
        match self {
            Self::Create(header) | Self::Header(header) => bytes.extend_from_slice(&header.encode()),
            Self::Write { key, runs, crcs, .. } => encode_write(&mut bytes, key.as_ref(), runs, crcs),
            Self::Durable { before, .. } => bytes.extend_from_slice(&before.to_le_bytes()),
            Self::Keys(keys) => {
                for (chunk, key) in keys {
                    put_words(&mut bytes, &[chunk.0]);
                    put_words(&mut bytes, &[key.client, key.number, u64::from(key.part)]);
                    put_words(&mut bytes, &[key.stamp.version.0, key.stamp.seq]);
                }
            }
            Self::Checkpoint(position) => bytes.extend_from_slice(&position.to_le_bytes()),
            Self::Delete(_) | Self::Synced | Self::End => {}
        }
        let body = (bytes.len() - HEAD_BYTES) as u32;
        let stamp = self.newest_stamp();
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[28..32].copy_from_slice(&self.kind().to_le_bytes());
        bytes[32..40].copy_from_slice(&self.chunk().0.to_le_bytes());
        bytes[40..44].copy_from_slice(&body.to_le_bytes());
        bytes[48..56].copy_from_slice(&stamp.version.0.to_le_bytes());
        bytes[56..64].copy_from_slice(&stamp.seq.to_le_bytes());
        bytes
    }

    /// Returns the record with `head` and `body`; `None` if no build writes such a one.
    pub fn decode(head: &Head, body: &[u8]) -> Option<Self> {
        let record = match head.kind {
            1 | 2 => {
                let header = Header::decode(body.try_into().ok()?).ok()?;
                if head.kind == 1 { Self::Create(header) } else { Self::Header(header) }
            }
            3 => decode_write(head, body)?,
            4 if body.len() == 8 => Self::Durable { chunk: head.chunk, before: read_u64(body, 0) },
            5 if body.is_empty() => Self::Delete(head.chunk),
            6 => Self::Keys(
                body.chunks_exact(KEY_BYTES).map(|bytes| (ChunkId(read_u64(bytes, 0)), key(bytes))).collect(),
            ),
            7 if body.len() == 8 => Self::Checkpoint(read_u64(body, 0)),
            8 if body.is_empty() => Self::Synced,
            9 if body.is_empty() => Self::End,
            _ => return None,
        };
        (record.chunk() == head.chunk).then_some(record)
    }
}

fn encode_write(bytes: &mut Vec<u8>, key: Option<&WriteKey>, runs: &[Run], crcs: &[u32]) {
    match key {
        Some(key) => {
            put_words(bytes, &[key.client, key.number, u64::from(key.part), key.stamp.version.0, key.stamp.seq]);
        }
        None => put_words(bytes, &[0; 5]),
    }
    bytes.extend_from_slice(&(runs.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(crcs.len() as u32).to_le_bytes());
    for run in runs {
        for number in [run.first, run.count, run.kind as u32, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        put_words(bytes, &[run.stamp.version.0, run.stamp.seq]);
    }
    for crc in crcs {
        bytes.extend_from_slice(&crc.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

fn decode_write(head: &Head, body: &[u8]) -> Option<Record> {
    const FIXED: usize = 48;
    if body.len() < FIXED {
        return None;
    }
    let stamp = WriteStamp { version: Version(read_u64(body, 24)), seq: read_u64(body, 32) };
    let (client, number) = (read_u64(body, 0), read_u64(body, 8));
    let key = (client != 0).then(|| WriteKey { client, number, part: read_u64(body, 16) as u8, stamp });
    let (run_count, crc_count) = (read_u32(body, 40) as usize, read_u32(body, 44) as usize);
    if (FIXED + run_count * RUN_BYTES + crc_count * 4).next_multiple_of(ALIGNMENT) != body.len() {
        return None;
    }
    let (run_bytes, rest) = body[FIXED..].split_at(run_count * RUN_BYTES);
    let mut runs = Vec::with_capacity(run_count);
    let (mut with_data, mut journaled) = (0, 0);
    for bytes in run_bytes.chunks_exact(RUN_BYTES) {
        let count = read_u32(bytes, 4);
        let kind = match read_u32(bytes, 8) {
            1 => RunKind::Direct,
            2 => RunKind::Journaled,
            3 => RunKind::Zeroed,
            4 => RunKind::Lost,
            _ => return None,
        };
        with_data += if kind == RunKind::Zeroed { 0 } else { count as usize };
        journaled += if kind == RunKind::Journaled { count as usize } else { 0 };
        let stamp = WriteStamp { version: Version(read_u64(bytes, 16)), seq: read_u64(bytes, 24) };
        runs.push(Run { first: read_u32(bytes, 0), count, kind, stamp });
    }
    if with_data != crc_count || journaled * UNIT_BYTES != head.payload {
        return None;
    }
    let crcs = rest[..crc_count * 4].chunks_exact(4).map(|bytes| read_u32(bytes, 0)).collect();
    Some(Record::Write { chunk: head.chunk, key, runs, crcs })
}

fn put_words(bytes: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
}

fn key(bytes: &[u8]) -> WriteKey {
    WriteKey {
        client: read_u64(bytes, 8),
        number: read_u64(bytes, 16),
        part: read_u64(bytes, 24) as u8,
        stamp: WriteStamp { version: Version(read_u64(bytes, 32)), seq: read_u64(bytes, 40) },
    }
}

/// Completes what [`Record::encode`] returned for its place, and returns the record's checksum.
pub fn seal(bytes: &mut [u8], payload: usize, place: Place, salt: u64) -> u32 {
    bytes[8..16].copy_from_slice(&place.position.to_le_bytes());
    bytes[16..24].copy_from_slice(&place.synced.to_le_bytes());
    bytes[24..28].copy_from_slice(&place.previous.to_le_bytes());
    bytes[44..48].copy_from_slice(&(payload as u32).to_le_bytes());
    let crc = checksum(bytes, salt);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    crc
}

fn checksum(bytes: &[u8], salt: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &bytes[8..])
}

/// Returns whether a record may begin where `bytes` do: a cheap look before [`open`].
#[inline]
pub fn may_begin(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Returns the head of the record at the beginning of `bytes`, if there is a whole one in it (the payload aside) that
/// was written for `position`.
pub fn open(bytes: &[u8], position: u64, salt: u64) -> Option<Head> {
    if bytes.len() < HEAD_BYTES || bytes[0..4] != MAGIC || read_u64(bytes, 8) != position {
        return None;
    }
    let (body, payload) = (read_u32(bytes, 40) as usize, read_u32(bytes, 44) as usize);
    let is_sane = body <= BODY_MAX && body.is_multiple_of(ALIGNMENT);
    if !is_sane || payload > PAYLOAD_MAX || !payload.is_multiple_of(UNIT_BYTES) || bytes.len() < HEAD_BYTES + body {
        return None;
    }
    let crc = read_u32(bytes, 4);
    (crc == checksum(&bytes[..HEAD_BYTES + body], salt)).then(|| Head {
        place: Place { position, synced: read_u64(bytes, 16), previous: read_u32(bytes, 24) },
        crc,
        body,
        payload,
        kind: read_u32(bytes, 28),
        chunk: ChunkId(read_u64(bytes, 32)),
        stamp: WriteStamp { version: Version(read_u64(bytes, 48)), seq: read_u64(bytes, 56) },
    })
}

/// Returns the states of a record's units, with the place of each in the record's payload if it is there.
pub fn units<'a>(
    runs: &'a [Run],
    crcs: &'a [u32],
) -> impl Iterator<Item = (u32, UnitState, RunKind, Option<usize>)> + 'a {
    let (mut crc_at, mut payload_at) = (0, 0);
    runs.iter().flat_map(|run| (run.first..run.first + run.count).map(move |unit| (unit, run))).map(
        move |(unit, run)| {
            if run.kind == RunKind::Zeroed {
                return (unit, UnitState::tombstone(run.stamp), run.kind, None);
            }
            let state = UnitState::data(run.stamp, crcs[crc_at]);
            crc_at += 1;
            let place = (run.kind == RunKind::Journaled).then_some(payload_at);
            payload_at += if place.is_some() { UNIT_BYTES } else { 0 };
            (unit, state, run.kind, place)
        },
    )
}

const _: () = assert!(HEADER_BYTES.is_multiple_of(ALIGNMENT) && HEAD_BYTES.is_multiple_of(ALIGNMENT));

#[cfg(test)]
mod tests {
    use dfs_proto::replica_set::Home;
    use dfs_proto::{ChunkIndex, InodeId};

    use super::*;

    const SALT: u64 = 0x0123_4567_89ab_cdef;
    const CHUNK: ChunkId = ChunkId(7);

    fn stamp(seq: u64) -> WriteStamp {
        WriteStamp { version: Version(2), seq }
    }

    fn samples() -> Vec<Record> {
        let home = Home { inode: InodeId(9), index: ChunkIndex(1) };
        let header = Header { chunk: CHUNK, version: Version(3), home, chunk_size_log2: 26, incomplete: true };
        let key = WriteKey { client: 11, number: 12, part: 1, stamp: stamp(14) };
        let run = |first, count, kind| Run { first, count, kind, stamp: stamp(u64::from(first)) };
        let runs = vec![
            run(0, 2, RunKind::Direct),
            run(2, 1, RunKind::Journaled),
            run(3, 9, RunKind::Zeroed),
            run(20, 1, RunKind::Lost),
        ];
        vec![
            Record::Create(header),
            Record::Header(header),
            Record::Write { chunk: CHUNK, key: Some(key), runs: runs.clone(), crcs: vec![1, 2, 3, 4] },
            Record::Write { chunk: CHUNK, key: None, runs: vec![], crcs: vec![] },
            Record::Durable { chunk: CHUNK, before: 99 },
            Record::Delete(CHUNK),
            Record::Keys(vec![(CHUNK, key), (ChunkId(8), key)]),
            Record::Checkpoint(1 << 40),
            Record::Synced,
            Record::End,
        ]
    }

    fn sealed(record: &Record) -> Vec<u8> {
        let payload = match record {
            Record::Write { runs, .. } if !runs.is_empty() => UNIT_BYTES,
            _ => 0,
        };
        let mut bytes = record.encode();
        seal(&mut bytes, payload, Place { position: 4096, synced: 64, previous: 5 }, SALT);
        bytes
    }

    #[test]
    fn every_record_comes_back_and_every_flipped_bit_is_noticed() {
        for record in samples() {
            let good = sealed(&record);
            let head = open(&good, 4096, SALT).expect("opens");
            assert_eq!(head.body + HEAD_BYTES, good.len());
            assert_eq!(Record::decode(&head, &good[HEAD_BYTES..]).as_ref(), Some(&record));
            assert_eq!(head.place, Place { position: 4096, synced: 64, previous: 5 });
            for bit in 0..good.len() * 8 {
                let mut torn = good.clone();
                torn[bit / 8] ^= 1 << (bit % 8);
                assert!(open(&torn, 4096, SALT).is_none(), "{record:?} bit {bit}");
            }
            assert!(open(&good, 4104, SALT).is_none(), "another place");
            assert!(open(&good, 4096, SALT + 1).is_none(), "another segment");
            assert!(open(&good[..good.len() - 1], 4096, SALT).is_none());
        }
    }

    #[test]
    fn the_stored_sample_still_decodes() {
        let sample = sealed(&samples()[2]);
        let expected = crc32c::crc32c(&sample);
        assert_eq!(expected, SAMPLE_CRC, "the format has changed: it needs a new version");
    }

    const SAMPLE_CRC: u32 = 1_623_559_433;

    #[test]
    fn units_of_a_record_know_where_their_content_is() {
        let Record::Write { runs, crcs, .. } = &samples()[2] else { panic!("a write") };
        let units: Vec<_> = units(runs, crcs).collect();
        assert_eq!(units.len(), 13);
        assert_eq!(units[0], (0, UnitState::data(stamp(0), 1), RunKind::Direct, None));
        assert_eq!(units[2], (2, UnitState::data(stamp(2), 3), RunKind::Journaled, Some(0)));
        assert_eq!(units[12], (20, UnitState::data(stamp(20), 4), RunKind::Lost, None));
        assert_eq!(units[11], (11, UnitState::tombstone(stamp(3)), RunKind::Zeroed, None));
    }
}
