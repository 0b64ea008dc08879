//! The control plane: registration, pulses, reports, and the orders that come back.
//!
//! ```text
//! Register ──known──▶ Pulse every pulse_ms (renews the lease), Report every report_ms
//!    ▲                   │
//!    └── known: false ◀──┘   the master restarted; the lease ends at once
//! ```
//!
//! A master that does not answer is asked again, with a growing pause; meanwhile the lease runs out by itself. One that
//! refuses this server for what it is (another cluster's disks, another protocol) would refuse it again: that is the end, and
//! [`Shared::failure`] says why.
//!
//! Pulses wait for nothing but the master: deletions go on beside them.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::grant::GrantKey;
use dfs_proto::wire::pb::chunk_servers_client::ChunkServersClient;
use dfs_proto::wire::{PROTOCOL, pb};
use dfs_proto::{ChunkId, ClusterId, NodeId};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::shared::{Membership, Shared};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// While the same trouble lasts, it is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Deletions of one order; the master repeats the others.
const DELETIONS_MAX: usize = 1_000;

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
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint, announcement: Announcement) {
    let mut client = ChunkServersClient::new(endpoint.connect_lazy());
    let mut pause = RETRY_FIRST;
    let mut complaint = Complaint::default();
    let mut refused_since = None;
    loop {
        match register(&shared, &mut client, &announcement).await {
            Ok(registration) => {
                if let Some(since) = refused_since.take() {
                    let away: Duration = Instant::now() - since;
                    tracing::info!(seconds = away.as_secs(), "the master answers again");
                }
                let began = Instant::now();
                beat(&shared, &mut client, registration).await;
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
        measure(&shared);
        tokio::time::sleep(pause).await;
    }
}

/// Returns how the control plane of the master at `master` (`host:port` of its hot plane) is reached.
///
/// # Errors
///
/// What is wrong with the address.
pub(super) fn endpoint(master: &str) -> Result<Endpoint, String> {
    let wrong = || format!("{master:?} is not the address of a master: HOST:PORT is expected");
    let (host, port) = master.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let port = port.checked_add(1).ok_or_else(wrong)?;
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|error| error.to_string())?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT).tcp_nodelay(true))
}

async fn register(
    shared: &Shared,
    client: &mut ChunkServersClient<Channel>,
    announcement: &Announcement,
) -> Result<Registration, Refusal> {
    let request = pb::RegisterRequest {
        cluster_id: shared.store.cluster().map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.0)),
        server_id: Bytes::copy_from_slice(&shared.store.server()),
        boot_session: shared.boot.0,
        host_boot_id: announcement.host_boot_id.clone(),
        clean_stop: shared.store.was_clean(),
        data_address: announcement.data_address.clone(),
        http_address: announcement.http_address.clone(),
        rack: announcement.rack.clone(),
        host: announcement.host.clone(),
        software: env!("CARGO_PKG_VERSION").into(),
        disks: disks(shared),
        protocol: PROTOCOL,
        suspect: shared.store.is_suspect(),
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
    *shared.membership.write() = Some(Membership { cluster, node, key: GrantKey::new(key) });
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

/// Returns a status in a few words: its message, and the error at the bottom of it.
fn brief(status: &Status) -> String {
    let mut bottom: Option<&dyn Error> = status.source();
    while let Some(below) = bottom.and_then(Error::source) {
        bottom = Some(below);
    }
    let message = if status.message().is_empty() { status.code().description() } else { status.message() };
    match bottom.map(ToString::to_string) {
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        _ => message.to_owned(),
    }
}

/// Pulses and reports until the master does not know us.
async fn beat(shared: &Arc<Shared>, client: &mut ChunkServersClient<Channel>, registration: Registration) {
    let Registration { node, pulse, report } = registration;
    let mut deleted: Vec<u64> = Vec::new();
    let mut deleting: Option<JoinHandle<Vec<u64>>> = None;
    let mut silence = Complaint::default();
    let mut failed_reported = 0;
    let mut next_report = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval(pulse);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let request = pb::PulseRequest {
            node: node.0,
            boot_session: shared.boot.0,
            deleted: deleted.clone(),
            ..Default::default()
        };
        // Before it is sent: the lease must never outlast the master's idea of it.
        let sent = shared.now();
        match client.pulse(request).await.map(tonic::Response::into_inner) {
            Ok(reply) if reply.known => {
                shared.lease.lock().renew(sent, reply.lease_ms);
                deleted.clear();
                if deleting.is_none() && !reply.delete.is_empty() {
                    deleting = Some(delete(shared, reply.delete));
                }
            }
            Ok(_) => return,
            Err(status) => {
                if silence.is_due(Instant::now()) {
                    tracing::warn!(reason = %brief(&status), "the master does not answer a pulse");
                }
            }
        }
        if let Some(done) = deleting.take_if(|task| task.is_finished()) {
            deleted = done.await.unwrap_or_default();
        }
        measure(shared);
        let failed = shared.store.disks().iter().filter(|disk| disk.has_failed()).count();
        // The master must not place chunks on a disk that has just failed.
        if failed != failed_reported || tokio::time::Instant::now() >= next_report {
            let request = pb::ReportRequest {
                node: node.0,
                boot_session: shared.boot.0,
                disks: disks(shared),
                ..Default::default()
            };
            match client.report(request).await.map(tonic::Response::into_inner) {
                Ok(reply) if reply.known => {
                    next_report = tokio::time::Instant::now() + report;
                    failed_reported = failed;
                }
                Ok(_) => return,
                Err(status) => tracing::debug!(reason = %brief(&status), "no answer to a report"),
            }
        }
    }
}

/// Deletes replicas on order; the task's outcome are those that are gone.
fn delete(shared: &Arc<Shared>, mut orders: Vec<u64>) -> JoinHandle<Vec<u64>> {
    orders.truncate(DELETIONS_MAX);
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || {
        orders.retain(|chunk| {
            let result = shared.replicas.delete(&shared.store, ChunkId(*chunk));
            if let Err(error) = &result {
                tracing::warn!(chunk, %error, "cannot delete a replica");
            }
            result.is_ok()
        });
        orders
    })
}

fn disks(shared: &Shared) -> Vec<pb::Disk> {
    let disk = |disk: &Arc<crate::store::disk::Disk>| {
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

/// Looks at the disks and sets the metrics that follow from it.
fn measure(shared: &Shared) {
    let metrics = &shared.metrics;
    for disk in shared.store.disks() {
        // What is wrong is noted, and logged once, by the disk itself.
        let _ = disk.measure();
        let path = disk.path().display().to_string();
        let (capacity, free) = disk.space();
        metrics.disk_capacity.with_label_values(&[&path]).set(capacity as i64);
        metrics.disk_free.with_label_values(&[&path]).set(free as i64);
        metrics.disk_failed.with_label_values(&[&path]).set(i64::from(disk.has_failed()));
    }
    metrics.replicas.set(shared.store.replicas() as i64);
    metrics.lease_valid.set(i64::from(shared.has_lease()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_plane_is_at_the_next_port() {
        assert_eq!(endpoint("host:7000").expect("valid").uri().to_string(), "http://host:7001/");
        assert!(endpoint("host").is_err());
        assert!(endpoint("host:65535").is_err());
    }

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
    fn the_reason_is_the_message_and_the_error_at_the_bottom() {
        let error = std::io::Error::other(std::io::Error::from_raw_os_error(111));
        let status = Status::from_error(Box::new(error));
        assert!(brief(&status).contains("Connection refused"), "{}", brief(&status));
        assert!(!brief(&status).contains("Custom"), "{}", brief(&status));
    }

    #[test]
    fn a_lasting_trouble_is_logged_first_and_then_every_ten_seconds() {
        let mut complaint = Complaint::default();
        let began = Instant::now();
        let due: Vec<u64> = (0..25).filter(|second| complaint.is_due(began + Duration::from_secs(*second))).collect();
        assert_eq!(due, [0, 10, 20]);
    }
}
