//! The pages of a master: `/metrics`, `/healthz`, and `/sd`, where Prometheus learns whom else to ask.
//!
//! `/sd` answers in the form of `http_sd_config`: one group for each daemon of the cluster, those that are down too (a
//! target that vanished would raise no alert).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use dfs_proto::NodeId;
use dfs_telemetry::axum::extract::State;
use dfs_telemetry::axum::routing::get;
use dfs_telemetry::axum::{Json, Router};
use serde::Serialize;

use super::Shared;
use crate::core::care::{NodeFacts, SessionFacts};

/// Serves the pages at `address` on the current runtime, until it ends. Returns the address that was bound.
///
/// # Errors
///
/// If the address cannot be bound.
pub async fn serve(shared: Arc<Shared>, address: &str) -> std::io::Result<SocketAddr> {
    let for_health = Arc::clone(&shared);
    let health: dfs_telemetry::Health =
        Arc::new(move || is_healthy(for_health.executor.failure(), for_health.is_serving.load(Ordering::Acquire)));
    let registry = shared.metrics.registry();
    let discovery = Arc::new(Discovery { shared, own: OnceLock::new() });
    let page = Router::new().route("/sd", get(targets)).with_state(Arc::clone(&discovery));
    let bound = dfs_telemetry::serve(address, registry, health, page).await?;
    discovery.own.get_or_init(|| bound);
    Ok(bound)
}

/// Returns whether the master serves, or why not.
fn is_healthy(failure: Option<String>, is_serving: bool) -> Result<(), String> {
    match failure {
        Some(reason) => Err(reason),
        None if is_serving => Ok(()),
        None => Err("starting or stopping".into()),
    }
}

struct Discovery {
    shared: Arc<Shared>,
    /// Where these pages are: known a moment after they can be asked for.
    own: OnceLock<SocketAddr>,
}

/// Some targets that share labels.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct TargetGroup {
    targets: Vec<String>,
    labels: BTreeMap<&'static str, String>,
}

async fn targets(State(discovery): State<Arc<Discovery>>) -> Json<Vec<TargetGroup>> {
    let shared = &discovery.shared;
    let nodes: Vec<(NodeId, NodeFacts)> =
        shared.nodes.read().iter().map(|(id, node)| (id, node.facts.clone())).collect();
    let executor = Arc::clone(&shared.executor);
    // Waits for a batch; without an answer the mounts are missing until the next time.
    let sessions = tokio::task::spawn_blocking(move || executor.sessions()).await.unwrap_or_default();
    let bound = discovery.own.get().map(SocketAddr::to_string).unwrap_or_default();
    let own = own_address(shared.config.advertise.as_deref(), &bound);
    Json(groups(&own, &nodes, &sessions))
}

/// Returns where the pages are for others: at port + 2 of the advertised address of the hot plane, if there is one.
fn own_address(advertise: Option<&str>, bound: &str) -> String {
    advertise
        .and_then(|address| {
            let (host, port) = address.rsplit_once(':')?;
            Some(format!("{host}:{}", port.parse::<u16>().ok()?.checked_add(2)?))
        })
        .unwrap_or_else(|| bound.to_owned())
}

fn groups(own: &str, nodes: &[(NodeId, NodeFacts)], sessions: &[SessionFacts]) -> Vec<TargetGroup> {
    let group = |target: &str, labels: &[(&'static str, String)]| TargetGroup {
        targets: vec![target.to_owned()],
        labels: labels.iter().filter(|(_, value)| !value.is_empty()).cloned().collect(),
    };
    let host_of = |address: &str| address.rsplit_once(':').map_or("", |(host, _)| host).to_owned();
    let mut groups = vec![group(own, &[("role", "master".into()), ("host", host_of(own))])];
    groups.extend(nodes.iter().filter(|(_, facts)| !facts.http_address.is_empty()).map(|(id, facts)| {
        let labels = [
            ("role", "chunkd".into()),
            ("node", id.to_string()),
            ("host", facts.host.clone()),
            ("rack", facts.rack.clone()),
        ];
        group(&facts.http_address, &labels)
    }));
    groups.extend(sessions.iter().filter(|session| !session.metrics_address.is_empty()).map(|session| {
        let labels =
            [("role", "mount".into()), ("host", session.host.clone()), ("mount_point", session.mount_point.clone())];
        group(&session.metrics_address, &labels)
    }));
    // A chunk server that was set up anew at the same place, or a mount whose last session has not run out yet: the
    // later one is who answers there.
    let mut by_target = BTreeMap::new();
    groups.into_iter().for_each(|group| {
        by_target.insert(group.targets.clone(), group);
    });
    by_target.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_daemon_is_listed_once_with_its_role() {
        let node = |host: &str, http: &str| NodeFacts {
            host: host.into(),
            http_address: http.into(),
            rack: "r1".into(),
            ..Default::default()
        };
        let session = |mount_point: &str, metrics: &str| SessionFacts {
            session: dfs_proto::SessionId(9),
            host: "client".into(),
            mount_point: mount_point.into(),
            software: String::new(),
            metrics_address: metrics.into(),
            last_seen_ms: 0,
            open_files: 0,
        };
        let nodes = [
            (NodeId(1), node("old", "10.0.0.1:7101")),
            (NodeId(2), node("two", "10.0.0.2:7101")),
            (NodeId(3), node("three", "")),
            (NodeId(4), node("new", "10.0.0.1:7101")),
        ];
        let sessions = [session("/mnt/dfs", "10.0.0.9:4000"), session("/mnt/quiet", "")];
        let found = groups("10.0.0.5:7002", &nodes, &sessions);
        let json = serde_json::to_value(&found).unwrap();
        let expected = serde_json::json!([
            {"targets": ["10.0.0.1:7101"], "labels": {"role": "chunkd", "node": "4", "host": "new", "rack": "r1"}},
            {"targets": ["10.0.0.2:7101"], "labels": {"role": "chunkd", "node": "2", "host": "two", "rack": "r1"}},
            {"targets": ["10.0.0.5:7002"], "labels": {"role": "master", "host": "10.0.0.5"}},
            {"targets": ["10.0.0.9:4000"], "labels": {"role": "mount", "host": "client", "mount_point": "/mnt/dfs"}},
        ]);
        assert_eq!(json, expected);
    }

    #[test]
    fn healthy_is_who_serves_on_all_planes_and_has_not_failed() {
        assert_eq!(is_healthy(None, true), Ok(()));
        assert!(is_healthy(None, false).is_err(), "these pages are up before the hot plane");
        assert_eq!(is_healthy(Some("disk".into()), true), Err("disk".into()));
    }

    #[test]
    fn the_advertised_name_is_used_with_the_port_of_the_pages() {
        assert_eq!(own_address(Some("master.example:7000"), "0.0.0.0:7002"), "master.example:7002");
        assert_eq!(own_address(None, "127.0.0.1:7002"), "127.0.0.1:7002");
        assert_eq!(own_address(Some("nonsense"), "127.0.0.1:7002"), "127.0.0.1:7002");
        assert_eq!(own_address(Some("host:65535"), "127.0.0.1:7002"), "127.0.0.1:7002");
    }
}
