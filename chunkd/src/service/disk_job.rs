//! What the core wants done to the files of a replica.

use bytes::Bytes;
use dfs_proto::FsError;
use parking_lot::Mutex;

use super::shared::{Shared, store_failure};
use crate::core::message::{DiskAnswer, DiskJob};
use crate::core::unit::UnitState;
use crate::store::StoreError;
use crate::store::chunk_file::UnitRead;
use crate::store::header::Header;
use crate::store::layout::UNIT_BYTES;
use crate::store::replica_store::OpenReplica;

/// Read buffers that are kept, each of up to 1 MiB and a unit at both ends.
const SPARE_BUFFERS_MAX: usize = 64;

/// Read buffers that nobody uses. Kept from read to read: a fresh one of 1 MiB costs as much in page faults as the read
/// itself.
static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A read buffer, among the spare ones again when the last of its bytes is dropped.
struct ReadBuffer {
    bytes: Vec<u8>,
    length: usize,
}

impl ReadBuffer {
    fn take(length: usize) -> Self {
        let mut bytes = SPARE.lock().pop().unwrap_or_default();
        if bytes.len() < length {
            bytes.resize(length, 0);
        }
        Self { bytes, length }
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        let mut spare = SPARE.lock();
        if spare.len() < SPARE_BUFFERS_MAX {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// Carries `job` out on `open`.
///
/// # Errors
///
/// [`FsError::NoSpace`]; [`FsError::NoReplica`] if the disk has failed.
pub(super) fn carry_out(shared: &Shared, open: &OpenReplica, job: DiskJob) -> Result<DiskAnswer, FsError> {
    let done = match job {
        DiskJob::Table => return checked(open, Ok(open.file.told())).map(DiskAnswer::Table),
        DiskJob::Extents { first, count } => {
            return checked(open, Ok(open.file.extents(first, count))).map(DiskAnswer::Extents);
        }
        DiskJob::Entries { first, count } => {
            return checked(open, Ok(open.file.entries(first, count))).map(DiskAnswer::Table);
        }
        DiskJob::Read { first, count } => return read(shared, open, first, count),
        DiskJob::Put { first, states, payload, key, needs_room } => {
            let put = || -> Result<(), StoreError> {
                if needs_room {
                    open.take_room(first, states.len() as u32)?;
                }
                open.file.put(first, &states, &payload, key)
            };
            change(open, put)
        }
        DiskJob::Zero { first, count, stamp, key } => change(open, || open.file.zero(first, count, stamp, key)),
        DiskJob::SetHeader { version, incomplete } => {
            let header = Header { version, incomplete, ..open.header };
            change(open, || open.file.set_header(&header)).and_then(|()| open.sync())
        }
        DiskJob::Sync => {
            let timer = shared.metrics.sync_seconds.start_timer();
            let synced = open.sync();
            timer.observe_duration();
            synced
        }
    };
    done.map(|()| DiskAnswer::Done).map_err(store_failure)
}

/// Changes the files of a disk that has not failed; a failed write is its end.
fn change(open: &OpenReplica, work: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
    open.disk.judge(open.disk.check().and_then(|()| work()))
}

/// Passes on what was read, unless the disk has failed meanwhile: what it could not write it may show as it was before,
/// entry and data alike.
fn checked<T>(open: &OpenReplica, read: Result<T, StoreError>) -> Result<T, FsError> {
    let found = read.map_err(store_failure)?;
    open.disk.check().map_err(store_failure)?;
    Ok(found)
}

fn read(shared: &Shared, open: &OpenReplica, first: u32, count: u32) -> Result<DiskAnswer, FsError> {
    let mut buffer = ReadBuffer::take(count as usize * UNIT_BYTES);
    let length = buffer.length;
    let reads = checked(open, open.file.read(first, count, &mut buffer.bytes[..length]))?;
    let states: Vec<Option<UnitState>> = reads
        .iter()
        .map(|read| match read {
            UnitRead::Good(state) => Some(*state),
            UnitRead::Bad => None,
        })
        .collect();
    let bad: Vec<u32> = (first..).zip(&states).filter(|(_, state)| state.is_none()).map(|(unit, _)| unit).collect();
    if !bad.is_empty() {
        bad.iter().for_each(|unit| open.file.note_damage(*unit));
        shared.note_damaged(open.file.chunk());
    }
    Ok(DiskAnswer::Units(states, Bytes::from_owner(buffer)))
}
