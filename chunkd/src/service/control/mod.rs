//! The control plane: registration, pulses, reports, and the orders that come back.
//!
//! ```text
//! Register ──known──▶ Pulse every pulse_ms (renews the lease), Report every report_ms, see `beat`
//!    ▲                   │
//!    └── known: false ◀──┘   the master restarted; the lease ends at once
//! ```
//!
//! A master that does not answer is asked again, with a growing pause; meanwhile the lease runs out by itself. One that
//! refuses this server for what it is (another cluster's disks, another protocol) would refuse it again: that is the end, and
//! [`Shared::failure`] says why.
//!
//! Pulses wait for nothing but the master: whatever needs a disk goes on beside them.

mod beat;
mod reports;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::grant::GrantKey;
use dfs_proto::wire::pb::chunk_servers_client::ChunkServersClient;
use dfs_proto::wire::{PROTOCOL, pb};
use dfs_proto::{BootSession, ClusterId, NodeId};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::master_link::brief;
use super::shared::{Membership, Shared};
use crate::store::disk::Disk;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// While the same trouble lasts, it is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What a server tells of itself.
#[derive(Clone, Debug)]
pub(super) struct Announcement {
    pub data_address: String,
    pub http_address: String,
    pub rack: String,
    pub host: String,
    pub host_boot_id: String,
}

/// What the master says to a registration that this server goes by from then on.
#[derive(Clone, Copy, Debug)]
struct Registration {
    node: NodeId,
    pulse: Duration,
    report: Duration,
}

/// Why a registration did not come about.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It may next time.
    ForNow(String),
    /// It never will.
    ForGood(String),
}

/// Log lines about one trouble that lasts: the first one, then one now and then.
#[derive(Debug, Default)]
struct Complaint {
    logged: Option<Instant>,
}

impl Complaint {
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.logged.is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_EVERY);
        if is_due {
            self.logged = Some(now);
        }
        is_due
    }
}

/// Keeps this server known to its master until the task is dropped, or until the master refuses it for good.
pub(super) async fn run(shared: Arc<Shared>, announcement: Announcement) {
    let mut client = shared.master.client();
    let mut pause = RETRY_FIRST;
    let mut complaint = Complaint::default();
    let mut refused_since = None;
    let mut is_known = false;
    loop {
        match register(&shared, &mut client, &announcement, &mut is_known).await {
            Ok(registration) => {
                if let Some(since) = refused_since.take() {
                    let away: Duration = Instant::now() - since;
                    tracing::info!(seconds = away.as_secs(), "the master answers again");
                }
                let began = Instant::now();
                beat::beat(&shared, registration).await;
                shared.lease.lock().revoke();
                // Two processes with one identity take the place from each other again and again.
                pause = if began.elapsed() > LOG_EVERY { RETRY_FIRST } else { (pause * 2).min(RETRY_MAX) };
                if complaint.is_due(Instant::now()) {
                    tracing::warn!("the master does not know this server any more: registering again");
                }
            }
            Err(Refusal::ForGood(reason)) => {
                tracing::error!(%reason, "the master refuses this server");
                shared.lease.lock().revoke();
                shared.fail(reason);
                return;
            }
            Err(Refusal::ForNow(reason)) => {
                refused_since.get_or_insert_with(Instant::now);
                if complaint.is_due(Instant::now()) {
                    tracing::warn!(%reason, "cannot register with the master, trying again");
                }
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// `is_known`: the master has heard of this run, and whether it may lack what was acknowledged by an earlier one. To say so
/// again would make it doubt what was filled since.
async fn register(
    shared: &Arc<Shared>,
    client: &mut ChunkServersClient<Channel>,
    announcement: &Announcement,
    is_known: &mut bool,
) -> Result<Registration, Refusal> {
    let boot = shared.boot();
    let request = pb::RegisterRequest {
        cluster_id: shared.store.cluster().map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.0)),
        server_id: Bytes::copy_from_slice(&shared.store.server()),
        boot_session: boot.0,
        host_boot_id: announcement.host_boot_id.clone(),
        clean_stop: shared.store.was_clean(),
        data_address: announcement.data_address.clone(),
        http_address: announcement.http_address.clone(),
        rack: announcement.rack.clone(),
        host: announcement.host.clone(),
        software: env!("CARGO_PKG_VERSION").into(),
        disks: disks(shared),
        protocol: PROTOCOL,
        suspect: !*is_known && shared.store.is_suspect(),
    };
    let reply = client.register(request).await.map_err(|status| refusal(&status))?.into_inner();
    let wrong = |reason: &str| Refusal::ForNow(format!("the master's answer makes no sense: {reason}"));
    let cluster = ClusterId::from_slice(&reply.cluster_id).ok_or_else(|| wrong("no cluster"))?;
    if let Some(ours) = shared.store.cluster()
        && ours != cluster
    {
        return Err(Refusal::ForGood(format!("the disks belong to cluster {ours}, the master to cluster {cluster}")));
    }
    let key: [u8; 32] = reply.grant_key.as_ref().try_into().map_err(|_| wrong("a grant key without 32 bytes"))?;
    if reply.node == 0 {
        return Err(wrong("no node id"));
    }
    shared
        .store
        .join(cluster)
        .map_err(|error| Refusal::ForNow(format!("cannot note the cluster on the disks: {error}")))?;
    let node = NodeId(reply.node);
    let boot = if reply.boot_session == 0 { boot } else { BootSession(reply.boot_session) };
    if boot != shared.boot() {
        shared.begin_run(boot);
    }
    shared.join(Membership { cluster, node, key: GrantKey::new(key) });
    shared.orders.forget_all();
    shared.budgets.repair.set(reply.repair_bytes_per_second);
    shared.budgets.scrub.set(reply.scrub_bytes_per_second);
    if !std::mem::replace(is_known, true) && shared.store.is_suspect() {
        let shared = Arc::clone(shared);
        tokio::task::spawn_blocking(move || shared.store.clear_suspect());
    }
    tracing::info!(%node, %cluster, "registered");
    let ms = |ms: u64, default: u64| Duration::from_millis(if ms == 0 { default } else { ms });
    Ok(Registration { node, pulse: ms(reply.pulse_ms, 1_000), report: ms(reply.report_ms, 30_000) })
}

/// Sorts the master's refusals: those that are about what this server is do not change by themselves.
fn refusal(status: &Status) -> Refusal {
    match status.code() {
        Code::FailedPrecondition | Code::InvalidArgument => Refusal::ForGood(status.message().to_owned()),
        _ => Refusal::ForNow(brief(status)),
    }
}

fn disks(shared: &Shared) -> Vec<pb::Disk> {
    let disk = |disk: &Arc<Disk>| {
        let (capacity_bytes, free_bytes) = disk.space();
        pb::Disk {
            disk_id: Bytes::copy_from_slice(&disk.id),
            path: disk.path().display().to_string(),
            capacity_bytes,
            free_bytes: if disk.has_failed() { 0 } else { free_bytes },
            replicas: disk.replicas(),
            failed: disk.has_failed(),
        }
    };
    shared.store.disks().iter().map(disk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_server_is_makes_a_refusal_final() {
        let refused = |status: Status| refusal(&status);
        assert_eq!(refused(Status::failed_precondition("cluster")), Refusal::ForGood("cluster".into()));
        assert_eq!(refused(Status::invalid_argument("server id")), Refusal::ForGood("server id".into()));
        for status in [Status::unavailable("x"), Status::internal("x"), Status::deadline_exceeded("x")] {
            assert_eq!(refused(status), Refusal::ForNow("x".into()));
        }
    }

    #[test]
    fn a_lasting_trouble_is_logged_first_and_then_every_ten_seconds() {
        let mut complaint = Complaint::default();
        let began = Instant::now();
        let due: Vec<u64> = (0..25).filter(|second| complaint.is_due(began + Duration::from_secs(*second))).collect();
        assert_eq!(due, [0, 10, 20]);
    }
}
