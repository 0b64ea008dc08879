//! `dfs status`: the cluster at a glance.

use dfs_proto::wire::pb;
use serde_json::json;

use crate::admin::Admin;
use crate::show;

/// Asks the master and prints its answer.
///
/// # Errors
///
/// If the master cannot be reached or refuses.
pub fn run(mut admin: Admin, as_json: bool) -> anyhow::Result<()> {
    let status = admin.status()?;
    if as_json {
        println!("{:#}", to_json(&status));
    } else {
        print!("{}", to_text(&status));
    }
    Ok(())
}

fn state(node: &pb::NodeStatus) -> &'static str {
    match (node.online, node.lease_valid) {
        (true, true) => "online",
        (true, false) => "lease expired",
        (false, _) => "offline",
    }
}

/// Returns what else there is to say of a server.
fn remarks(node: &pb::NodeStatus) -> String {
    let words = [(node.draining, "draining"), (node.suspect, "suspect")];
    words.iter().filter(|(is_so, _)| *is_so).map(|(_, word)| format!(", {word}")).collect()
}

/// Returns what is not as it should be with the replicas of chunks.
fn health(status: &pb::StatusReply) -> String {
    let counts = [
        (status.unavailable_chunks, "UNAVAILABLE"),
        (status.under_replicated_chunks, "with too few replicas"),
        (status.syncing_chunks, "with a replica being filled"),
    ];
    let wrong = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let text = wrong.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "all have their replicas".into() } else { text }
}

fn to_text(status: &pb::StatusReply) -> String {
    let online = status.nodes.iter().filter(|node| node.online && node.lease_valid).count();
    let mut text = format!(
        "cluster   {}\nmaster    dfs {}, engine {}, up {}\nspace     {} free of {} (of user data, replicas counted off)\n\
         content   {} inodes, {} chunks, {} in files; {} orphans, {} replicas to be reclaimed\n\
         chunks    {}\nlog       seq {}, durable {}\n\nchunk servers: {online} of {} online\n",
        show::hex(&status.cluster_id),
        status.software,
        status.engine,
        show::age(status.uptime_ms),
        show::bytes(status.free_bytes),
        show::bytes(status.total_bytes),
        status.inodes,
        status.chunks,
        show::bytes(status.logical_bytes),
        status.orphans,
        status.reclaim_pending,
        health(status),
        status.seq,
        status.durable_seq,
        status.nodes.len(),
    );
    let mut rows = vec![
        ["node", "state", "address", "rack", "free", "of", "replicas", "disks", "seen"].map(String::from).to_vec(),
    ];
    for node in &status.nodes {
        let failed = node.disks.iter().filter(|disk| disk.failed).count();
        rows.push(vec![
            node.node.to_string(),
            format!("{}{}", state(node), remarks(node)),
            node.data_address.clone(),
            if node.rack.is_empty() { "-".into() } else { node.rack.clone() },
            show::bytes(node.disks.iter().map(|disk| disk.free_bytes).sum()),
            show::bytes(node.disks.iter().map(|disk| disk.capacity_bytes).sum()),
            node.disks.iter().map(|disk| disk.replicas).sum::<u64>().to_string(),
            if failed == 0 { node.disks.len().to_string() } else { format!("{} ({failed} FAILED)", node.disks.len()) },
            format!("{} ago", show::age(node.last_seen_ms)),
        ]);
    }
    text.push_str(&show::table(&rows));
    text.push_str(&format!("\nmounts: {}\n", status.sessions.len()));
    if !status.sessions.is_empty() {
        let mut rows = vec![["session", "host", "mount point", "open files", "seen"].map(String::from).to_vec()];
        for session in &status.sessions {
            rows.push(vec![
                session.session.to_string(),
                session.host.clone(),
                session.mount_point.clone(),
                session.open_files.to_string(),
                format!("{} ago", show::age(session.last_seen_ms)),
            ]);
        }
        text.push_str(&show::table(&rows));
    }
    text
}

fn to_json(status: &pb::StatusReply) -> serde_json::Value {
    let nodes: Vec<_> = status
        .nodes
        .iter()
        .map(|node| {
            let disks: Vec<_> = node
                .disks
                .iter()
                .map(|disk| {
                    json!({"disk_id": show::hex(&disk.disk_id), "path": disk.path, "capacity_bytes": disk.capacity_bytes,
                        "free_bytes": disk.free_bytes, "replicas": disk.replicas, "failed": disk.failed})
                })
                .collect();
            json!({"node": node.node, "state": state(node), "online": node.online, "lease_valid": node.lease_valid,
                "host": node.host, "data_address": node.data_address, "http_address": node.http_address,
                "rack": node.rack, "last_seen_ms": node.last_seen_ms, "software": node.software,
                "replicas": node.replicas, "draining": node.draining, "suspect": node.suspect, "disks": disks})
        })
        .collect();
    let sessions: Vec<_> = status
        .sessions
        .iter()
        .map(|session| {
            json!({"session": session.session, "host": session.host, "mount_point": session.mount_point,
                "software": session.software, "last_seen_ms": session.last_seen_ms,
                "open_files": session.open_files, "metrics_address": session.metrics_address})
        })
        .collect();
    json!({"cluster_id": show::hex(&status.cluster_id), "software": status.software, "uptime_ms": status.uptime_ms,
        "engine": status.engine, "inodes": status.inodes, "chunks": status.chunks, "orphans": status.orphans,
        "reclaim_pending": status.reclaim_pending, "logical_bytes": status.logical_bytes, "seq": status.seq,
        "durable_seq": status.durable_seq, "total_bytes": status.total_bytes, "free_bytes": status.free_bytes,
        "under_replicated_chunks": status.under_replicated_chunks, "syncing_chunks": status.syncing_chunks,
        "unavailable_chunks": status.unavailable_chunks, "nodes": nodes, "sessions": sessions})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_disk_and_a_lost_lease_are_seen_at_a_glance() {
        let disk = pb::Disk { failed: true, ..Default::default() };
        let node =
            pb::NodeStatus { node: 3, online: true, lease_valid: false, disks: vec![disk], ..Default::default() };
        let status = pb::StatusReply { nodes: vec![node], ..Default::default() };
        let text = to_text(&status);
        assert!(
            text.contains("0 of 1 online") && text.contains("lease expired") && text.contains("1 FAILED"),
            "{text}"
        );
        assert_eq!(to_json(&status)["nodes"][0]["disks"][0]["failed"], true);
        assert!(text.contains("all have their replicas"), "{text}");
    }

    #[test]
    fn chunks_in_danger_and_servers_that_are_emptied_are_seen_at_a_glance() {
        let node =
            pb::NodeStatus { online: true, lease_valid: true, draining: true, suspect: true, ..Default::default() };
        let status = pb::StatusReply {
            nodes: vec![node],
            unavailable_chunks: 1,
            under_replicated_chunks: 7,
            ..Default::default()
        };
        let text = to_text(&status);
        assert!(text.contains("1 UNAVAILABLE, 7 with too few replicas\n"), "{text}");
        assert!(text.contains("online, draining, suspect"), "{text}");
        let json = to_json(&status);
        assert_eq!((&json["under_replicated_chunks"], &json["nodes"][0]["draining"]), (&json!(7), &json!(true)));
    }
}
