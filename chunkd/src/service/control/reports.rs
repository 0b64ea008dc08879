//! Reports: capacity, and page by page which replicas this server has.
//!
//! A complete pass over all replicas begins with each registration and then every few minutes; the master compares it with
//! its records. A page that was not answered is sent again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::ChunkId;
use dfs_proto::wire::pb;
use tokio::time::Instant;

use super::{Registration, disks};
use crate::service::master_link::brief;
use crate::service::shared::Shared;
use crate::store::replica_store::ReplicaNote;

/// Replicas in one report.
const PAGE_MAX: usize = 1_000;
/// Between two pages: the master has other things to do.
const PAGE_PAUSE: Duration = Duration::from_millis(100);
/// Between the beginnings of two passes.
const PASS_EVERY: Duration = Duration::from_secs(300);

/// A pass over all replicas.
struct Pass {
    began: Instant,
    /// The chunk behind which the next page begins.
    after: Option<ChunkId>,
    is_over: bool,
}

impl Pass {
    fn begin(now: Instant) -> Self {
        Self { began: now, after: None, is_over: false }
    }
}

pub(super) async fn report(shared: &Arc<Shared>, registration: Registration) {
    let mut client = shared.master.client();
    let mut next_report = Instant::now();
    let mut failed_reported = 0;
    let mut pass = Pass::begin(Instant::now());
    let mut damaged = BTreeSet::new();
    loop {
        let now = Instant::now();
        if now >= pass.began + PASS_EVERY {
            pass = Pass::begin(now);
        }
        damaged.append(&mut shared.take_damaged());
        let failed = shared.store.disks().iter().filter(|disk| disk.has_failed()).count();
        // The master must not place chunks on a disk that has just failed.
        let is_due = now >= next_report || failed != failed_reported || !pass.is_over || !damaged.is_empty();
        if !is_due {
            tokio::time::sleep(registration.pulse).await;
            continue;
        }
        let page = page(shared, &pass, damaged.clone()).await;
        let request = pb::ReportRequest {
            node: registration.node.0,
            boot_session: shared.boot().0,
            disks: disks(shared),
            held: page.held.iter().map(message).collect(),
            after: pass.after.map_or(0, |after| after.0),
            end: !pass.is_over && page.next.is_none(),
            damaged: page.damaged.iter().map(message).collect(),
        };
        match client.report(request).await.map(tonic::Response::into_inner) {
            Ok(reply) if reply.known => {
                next_report = Instant::now() + registration.report;
                failed_reported = failed;
                damaged.clear();
                if !pass.is_over {
                    (pass.after, pass.is_over) = (page.next, page.next.is_none());
                }
                tokio::time::sleep(PAGE_PAUSE).await;
            }
            Ok(_) => return,
            Err(status) => {
                tracing::debug!(reason = %brief(&status), "no answer to a report");
                tokio::time::sleep(registration.pulse).await;
            }
        }
    }
}

#[derive(Default)]
struct Page {
    held: Vec<ReplicaNote>,
    /// The chunk behind which the next page begins, if there is one.
    next: Option<ChunkId>,
    damaged: Vec<ReplicaNote>,
}

async fn page(shared: &Arc<Shared>, pass: &Pass, damaged: BTreeSet<ChunkId>) -> Page {
    let (shared, after, is_over) = (Arc::clone(shared), pass.after, pass.is_over);
    // A replica that has not been opened since the start is described by its file: that is no work for this thread.
    let collected = tokio::task::spawn_blocking(move || {
        let (held, next) = if is_over { (Vec::new(), None) } else { shared.store.inventory(after, PAGE_MAX) };
        let note = |chunk: ChunkId| {
            let before = chunk.0.checked_sub(1).map(ChunkId);
            shared.store.inventory(before, 1).0.into_iter().find(|note| note.chunk == chunk)
        };
        Page { held, next, damaged: damaged.into_iter().filter_map(note).collect() }
    });
    collected.await.unwrap_or_default()
}

fn message(note: &ReplicaNote) -> pb::Held {
    pb::Held { chunk: note.chunk.0, inode: note.home.inode.0, index: note.home.index.0, version: note.version.0 }
}
