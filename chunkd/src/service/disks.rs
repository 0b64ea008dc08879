//! What each disk needs now and then, on a thread of its own: a disk that hangs holds nobody up but itself.
//!
//! Once a second its space is measured and its journal flushed. When it has failed, its replicas leave their replica sets,
//! one after the other: the other members have what they had.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::replica_set::{ChangeKind, ChangeRequest};
use dfs_proto::{ChunkId, FsError};
use parking_lot::{Condvar, Mutex};

use super::call::Call;
use super::shared::Shared;
use crate::core::message::Request;
use crate::store::StoreError;
use crate::store::disk::Disk;
use crate::store::replica_store::ReplicaNote;

const EVERY: Duration = Duration::from_secs(1);
/// How often is looked whether something is due before that.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// One change of a replica set that is asked for by a disk that has failed.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Ends the threads of all disks.
#[derive(Default)]
pub(super) struct DiskCare {
    is_stopping: Mutex<bool>,
    changed: Condvar,
}

impl DiskCare {
    /// Starts a thread for each disk.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn start(self: &Arc<Self>, shared: &Arc<Shared>) -> std::io::Result<()> {
        for disk in shared.store.disks() {
            let (care, shared, disk) = (Arc::clone(self), Arc::clone(shared), Arc::clone(disk));
            std::thread::Builder::new().name("dfs-chunkd-disk".into()).spawn(move || care.run(&shared, &disk))?;
        }
        Ok(())
    }

    /// Has the threads end.
    pub fn stop(&self) {
        *self.is_stopping.lock() = true;
        self.changed.notify_all();
    }

    /// Waits for the time to look again; false: it is the end.
    fn pause(&self) -> bool {
        let mut is_stopping = self.is_stopping.lock();
        if !*is_stopping {
            self.changed.wait_for(&mut is_stopping, LOOK_EVERY);
        }
        !*is_stopping
    }

    fn run(&self, shared: &Arc<Shared>, disk: &Arc<Disk>) {
        let mut gone = BTreeSet::new();
        let mut next = Instant::now();
        loop {
            let is_time = Instant::now() >= next;
            if let Err(error) = tend(disk, is_time, shared.replicas.open_max()) {
                tracing::debug!(disk = %disk.path().display(), %error, "cannot tend the journal");
            }
            if is_time {
                // What is wrong is noted, and logged once, by the disk itself.
                let _ = disk.measure();
                shared.metrics.show(disk);
                shared.metrics.replicas.set(shared.store.replicas() as i64);
                if disk.has_failed() && shared.has_lease() {
                    self.leave(shared, disk, &mut gone);
                }
                next = Instant::now() + EVERY;
            }
            if !self.pause() {
                return;
            }
        }
    }

    /// Has the replicas of failed disks leave that have not, and notes those whose word was heard.
    fn leave(&self, shared: &Arc<Shared>, disk: &Disk, gone: &mut BTreeSet<ChunkId>) {
        let reason = format!("the disk {} has failed", disk.path().display());
        let before = gone.len();
        for (chunk, note) in shared.store.stranded() {
            if *self.is_stopping.lock() {
                return;
            }
            if gone.contains(&chunk) {
                continue;
            }
            match leave_one(shared, chunk, note, &reason) {
                // Another version: the set was changed meanwhile. Who is in it now is told by the inventory.
                Ok(()) | Err(FsError::Stale(_)) => _ = gone.insert(chunk),
                Err(error) => tracing::debug!(%chunk, %error, "cannot leave yet"),
            }
        }
        if gone.len() > before {
            tracing::warn!(
                disk = %disk.path().display(),
                replicas = gone.len() - before,
                "left the replica sets of a failed disk"
            );
        }
    }
}

/// Does what the journal needs: a flush each second, and what is due. What is in the journal keeps files open: at most half
/// as many as may be open otherwise.
fn tend(disk: &Disk, is_time: bool, open_max: usize) -> Result<(), StoreError> {
    let due = disk.due();
    let is_crowded = disk.journal_figures().dirty_replicas > open_max as u64 / 2;
    if due.checkpoint || (is_crowded && !disk.has_failed()) {
        disk.checkpoint()
    } else if (due.flush || is_time) && !disk.has_failed() {
        disk.flush()
    } else {
        Ok(())
    }
}

fn leave_one(shared: &Arc<Shared>, chunk: ChunkId, note: Option<ReplicaNote>, reason: &str) -> Result<(), FsError> {
    if let Some(replica) = shared.replicas.find_open(chunk) {
        let request = Request::Leave { reason: reason.to_owned() };
        return Call::run(shared, &replica, request, shared.deadline(), None).map(|_| ());
    }
    // Without its header nobody can tell which version it has; the inventory shows that it is gone.
    let Some(note) = note else { return Ok(()) };
    let request = ChangeRequest {
        node: shared.node(),
        boot: shared.boot(),
        chunk,
        home: note.home,
        version: note.version,
        kind: ChangeKind::Leave,
        reason: reason.to_owned(),
    };
    let until = shared.now().plus(LEAVE_TIMEOUT.as_millis() as u64);
    shared.ask_master(&request, until)?.result
}
