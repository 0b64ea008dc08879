//! The control plane: registration, pulses, reports, and the orders that come back.
//!
//! ```text
//! Register ──known──▶ Pulse every pulse_ms (renews the lease), Report every report_ms
//!    ▲                   │
//!    └── known: false ◀──┘   the master restarted; the lease ends at once
//! ```
//!
//! A master that does not answer is asked again, with a growing pause; meanwhile the lease runs out by itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::grant::GrantKey;
use dfs_proto::wire::pb::chunk_servers_client::ChunkServersClient;
use dfs_proto::wire::{PROTOCOL, pb};
use dfs_proto::{ChunkId, ClusterId, NodeId};
use tonic::transport::{Channel, Endpoint};

use super::shared::{Membership, Shared};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Deletions that are carried out between two pulses.
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

#[derive(Clone, Copy, Debug)]
struct Rhythm {
    pulse: Duration,
    report: Duration,
}

/// Keeps this server known to the master whose hot address is `master`, until the task is dropped.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint, announcement: Announcement) {
    let mut client = ChunkServersClient::new(endpoint.connect_lazy());
    let mut pause = RETRY_FIRST;
    loop {
        match register(&shared, &mut client, &announcement).await {
            Ok(rhythm) => {
                pause = RETRY_FIRST;
                beat(&shared, &mut client, rhythm).await;
                shared.lease.lock().revoke();
                tracing::warn!("the master does not know this server any more: registering again");
            }
            Err(reason) => {
                tracing::warn!(%reason, "cannot register with the master, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
        measure(&shared);
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
) -> Result<Rhythm, String> {
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
    };
    let reply = client.register(request).await.map_err(|status| status.to_string())?.into_inner();
    let cluster = ClusterId::from_slice(&reply.cluster_id).ok_or("the master named no cluster")?;
    if let Some(ours) = shared.store.cluster()
        && ours != cluster
    {
        return Err(format!("the disks belong to cluster {ours}, the master to cluster {cluster}"));
    }
    let key: [u8; 32] = reply.grant_key.as_ref().try_into().map_err(|_| "the grant key does not have 32 bytes")?;
    if reply.node == 0 {
        return Err("the master gave no node id".into());
    }
    shared.store.join(cluster).map_err(|error| format!("cannot note the cluster on the disks: {error}"))?;
    let node = NodeId(reply.node);
    *shared.membership.write() = Some(Membership { cluster, node, key: GrantKey::new(key) });
    tracing::info!(%node, %cluster, "registered");
    let ms = |ms: u64, default: u64| Duration::from_millis(if ms == 0 { default } else { ms });
    Ok(Rhythm { pulse: ms(reply.pulse_ms, 1_000), report: ms(reply.report_ms, 30_000) })
}

/// Pulses and reports until the master does not know us.
async fn beat(shared: &Arc<Shared>, client: &mut ChunkServersClient<Channel>, rhythm: Rhythm) {
    let mut deleted: Vec<u64> = Vec::new();
    let mut next_report = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval(rhythm.pulse);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(node) = shared.membership.read().as_ref().map(|known| known.node) else { return };
        let request = pb::PulseRequest { node: node.0, boot_session: shared.boot.0, deleted: deleted.clone() };
        // Before it is sent: the lease must never outlast the master's idea of it.
        let sent = shared.now();
        match client.pulse(request).await.map(tonic::Response::into_inner) {
            Ok(reply) if reply.known => {
                shared.lease.lock().renew(sent, reply.lease_ms);
                deleted = delete(shared, reply.delete).await;
            }
            Ok(_) => return,
            Err(status) => tracing::debug!(%status, "no answer to a pulse"),
        }
        measure(shared);
        if tokio::time::Instant::now() >= next_report {
            let request = pb::ReportRequest { node: node.0, boot_session: shared.boot.0, disks: disks(shared) };
            match client.report(request).await.map(tonic::Response::into_inner) {
                Ok(reply) if reply.known => next_report = tokio::time::Instant::now() + rhythm.report,
                Ok(_) => return,
                Err(status) => tracing::debug!(%status, "no answer to a report"),
            }
        }
    }
}

/// Deletes replicas on order, and returns those that are gone now.
async fn delete(shared: &Arc<Shared>, mut orders: Vec<u64>) -> Vec<u64> {
    if orders.is_empty() {
        return orders;
    }
    orders.truncate(DELETIONS_MAX);
    let shared = Arc::clone(shared);
    let deleting = tokio::task::spawn_blocking(move || {
        orders.retain(|chunk| {
            let result = shared.replicas.delete(&shared.store, ChunkId(*chunk));
            if let Err(error) = &result {
                tracing::warn!(chunk, %error, "cannot delete a replica");
            }
            result.is_ok()
        });
        orders
    });
    deleting.await.unwrap_or_default()
}

fn disks(shared: &Shared) -> Vec<pb::Disk> {
    let disk = |disk: &Arc<crate::store::disk::Disk>| {
        let (capacity_bytes, free_bytes) = disk.space();
        pb::Disk {
            disk_id: Bytes::copy_from_slice(&disk.id),
            path: disk.path().display().to_string(),
            capacity_bytes,
            free_bytes,
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
        if let Err(error) = disk.measure() {
            tracing::warn!(disk = %disk.path().display(), %error, "cannot ask for the disk's space");
        }
        let path = disk.path().display().to_string();
        let (capacity, free) = disk.space();
        metrics.disk_capacity.with_label_values(&[&path]).set(capacity as i64);
        metrics.disk_free.with_label_values(&[&path]).set(free as i64);
        metrics.disk_failed.with_label_values(&[&path]).set(i64::from(disk.has_failed()));
    }
    metrics.replicas.set(shared.store.len() as i64);
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
}
