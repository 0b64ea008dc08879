//! `dfs drain NODE`, `dfs remove-node NODE`: a chunk server is emptied, and forgotten.

use std::time::Duration;

use dfs_proto::wire::pb;
use serde_json::json;

use crate::admin::Admin;
use crate::exit::usage;

/// How often `--wait` asks.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// What `dfs drain` is asked for.
pub struct Drain {
    /// The server: its number, or the address of its data plane.
    pub node: String,
    /// It is not to be emptied any more.
    pub stop: bool,
    /// Return only when it is empty.
    pub wait: bool,
}

/// Has a chunk server emptied, or no longer, and prints how much is left there.
///
/// # Errors
///
/// If there is no such server, or the master cannot be reached or refuses.
pub fn run(mut admin: Admin, drain: &Drain, as_json: bool) -> anyhow::Result<()> {
    let node = node_of(&mut admin, &drain.node)?;
    let request = pb::DrainRequest { node, stop: drain.stop };
    let mut reply = admin.drain(request)?;
    let mut told = reply.replicas_left;
    while drain.wait && reply.draining && reply.replicas_left > 0 {
        std::thread::sleep(ASKED_EVERY);
        reply = admin.drain(request)?;
        if !as_json && reply.replicas_left < told {
            told = reply.replicas_left;
            println!("{told} replicas left");
        }
    }
    let left = reply.replicas_left;
    if as_json {
        println!("{:#}", json!({"node": node, "draining": reply.draining, "replicas_left": left}));
    } else if !reply.draining {
        println!("node {node} is not emptied any more; it has {left} replicas");
    } else if left == 0 {
        println!("node {node} is empty: `dfs remove-node {node}` forgets it once it is stopped");
    } else {
        println!("node {node} is being emptied: {left} replicas left");
    }
    Ok(())
}

/// Has a chunk server forgotten that has no replicas any more.
///
/// # Errors
///
/// If there is no such server or it still has replicas, or the master cannot be reached.
pub fn remove(mut admin: Admin, node: &str, as_json: bool) -> anyhow::Result<()> {
    let node = node_of(&mut admin, node)?;
    admin.remove_node(pb::RemoveNodeRequest { node })?;
    if as_json {
        println!("{:#}", json!({"node": node, "removed": true}));
    } else {
        println!("node {node} is forgotten");
    }
    Ok(())
}

/// Returns the number of the server that is named by it or by its address.
///
/// # Errors
///
/// If there is none, or the master cannot be reached.
pub fn node_of(admin: &mut Admin, named: &str) -> anyhow::Result<u32> {
    if let Ok(number) = named.parse() {
        return Ok(number);
    }
    let nodes = admin.status()?.nodes;
    let found = nodes.iter().find(|node| node.data_address == named);
    found.map(|node| node.node).ok_or_else(|| usage(format!("{named:?} is no chunk server; `dfs status` lists them")))
}
