//! `dfs admin force-primary`: the last resort for a chunk whose replicas in sync are all lost.

use std::path::Path;

use dfs_proto::wire::pb;
use serde_json::json;

use crate::admin::Admin;
use crate::exit::usage;
use crate::{drain, info};

/// Which replica is to become the only one in sync.
pub struct Force<'a> {
    /// The file, on a mounted dfs or from the root of the file system.
    pub path: &'a Path,
    /// The chunk's place in it.
    pub index: u32,
    /// The server that holds the replica.
    pub node: &'a str,
    /// The administrator knows that writes may be lost.
    pub accepts_loss: bool,
}

/// Has the master make the replica the primary, and says which version the chunk has now.
///
/// # Errors
///
/// Without the word that loss is accepted; if a replica in sync is there; if the master cannot be reached.
pub fn run(mut admin: Admin, force: &Force<'_>, as_json: bool) -> anyhow::Result<()> {
    if !force.accepts_loss {
        return Err(usage(
            "acknowledged writes may be missing on the replica, and are gone for good then: say --accept-data-loss",
        ));
    }
    let node = drain::node_of(&mut admin, force.node)?;
    let reply = info::ask(&mut admin, force.path, 1)?;
    let Some(inode) = reply.inode.filter(|_| reply.found) else {
        anyhow::bail!("{}: {}", force.path.display(), if reply.error.is_empty() { "not found" } else { &reply.error });
    };
    let request = pb::ForcePrimaryRequest { inode: inode.inode, index: force.index, node };
    let version = admin.force_primary(request)?.version;
    if as_json {
        println!("{:#}", json!({"inode": inode.inode, "index": force.index, "node": node, "version": version}));
    } else {
        println!("chunk {} of inode {}: node {node} is the primary of version {version}", force.index, inode.inode);
    }
    Ok(())
}
