//! `dfs info PATH`: one inode, its layout, its chunks and where their replicas are.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dfs_mount::MountPoint;
use dfs_proto::wire::pb;
use serde_json::json;

use crate::admin::Admin;
use crate::exit::usage;
use crate::{mount_point, show};

/// Most chunks that one call prints.
const CHUNKS_MAX: u32 = 1_000;

/// Asks the master about `path` and prints its answer. A path on a mounted dfs is asked for by its inode number;
/// any other is taken from the root of the file system.
///
/// # Errors
///
/// If there is no such file, or the master cannot be reached.
pub fn run(mut admin: Admin, path: &Path, as_json: bool) -> anyhow::Result<()> {
    let reply = ask(&mut admin, path, CHUNKS_MAX)?;
    let Some(inode) = reply.inode.as_ref().filter(|_| reply.found) else {
        anyhow::bail!(
            "{}: {}",
            mount_point::shown(path),
            if reply.error.is_empty() { "not found" } else { &reply.error }
        );
    };
    if as_json {
        println!("{:#}", to_json(inode, &reply));
    } else {
        print!("{}", to_text(inode, &reply));
    }
    Ok(())
}

/// Asks the master about `path`, as [`run`] does, and about `chunks_max` of its chunks.
///
/// # Errors
///
/// A path that can be meant in no way; if the master cannot be reached.
pub fn ask(admin: &mut Admin, path: &Path, chunks_max: u32) -> anyhow::Result<pb::InfoReply> {
    let mut request = pb::InfoRequest { chunks_max, ..Default::default() };
    match inode_on_a_mount(path) {
        Some(inode) => request.inode = inode,
        None if path.is_absolute() => request.path = path.as_os_str().to_owned().into_vec().into(),
        None => {
            return Err(usage(format!(
                "{} is not on a mounted dfs: give a path on a mount, or an absolute path from the root of the file system",
                mount_point::shown(path)
            )));
        }
    }
    admin.info(request)
}

fn inode_on_a_mount(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    // The deepest mount above the path decides.
    let mount = absolute.ancestors().find_map(MountPoint::mounted_type)?;
    if mount != MountPoint::FS_TYPE {
        return None;
    }
    Some(std::fs::symlink_metadata(&absolute).ok()?.ino())
}

fn to_text(inode: &pb::InfoInode, reply: &pb::InfoReply) -> String {
    let content = if inode.is_inline {
        format!("inline, {} in the inode record", show::bytes(inode.inline_bytes))
    } else {
        format!("{} chunks of {}, {} replicas", inode.chunks, show::bytes(inode.chunk_size), inode.replicas)
    };
    let mut text = format!(
        "inode     {}\nkind      {}, mode {:04o}, {} links, owner {}:{}\nsize      {} bytes\ncontent   {content}\n\
         version   data {}, changed at seq {}\n",
        inode.inode,
        inode.kind,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.size,
        inode.data_version,
        inode.seq,
    );
    if !reply.chunks.is_empty() {
        let mut rows = vec![["index", "chunk", "version", "primary", "replicas"].map(String::from).to_vec()];
        for chunk in &reply.chunks {
            let replicas: Vec<String> = chunk
                .replicas
                .iter()
                .map(|replica| {
                    let online = if replica.online { "" } else { ", OFFLINE" };
                    format!("{}@{} ({}{online})", replica.node, replica.address, replica.state)
                })
                .collect();
            rows.push(vec![
                chunk.index.to_string(),
                format!("{:016x}", chunk.chunk),
                chunk.version.to_string(),
                chunk.primary.to_string(),
                replicas.join(" "),
            ]);
        }
        text.push_str(&show::table(&rows));
    }
    if reply.more_chunks {
        text.push_str(&format!("(only the first {CHUNKS_MAX} chunks are shown)\n"));
    }
    text
}

fn to_json(inode: &pb::InfoInode, reply: &pb::InfoReply) -> serde_json::Value {
    let chunks: Vec<_> = reply
        .chunks
        .iter()
        .map(|chunk| {
            let replicas: Vec<_> = chunk
                .replicas
                .iter()
                .map(|replica| {
                    json!({"node": replica.node, "address": replica.address, "state": replica.state,
                        "online": replica.online})
                })
                .collect();
            json!({"index": chunk.index, "chunk": chunk.chunk, "version": chunk.version, "primary": chunk.primary,
                "replicas": replicas})
        })
        .collect();
    json!({"inode": inode.inode, "kind": inode.kind, "mode": inode.mode, "nlink": inode.nlink, "uid": inode.uid,
        "gid": inode.gid, "size": inode.size, "atime": inode.atime, "mtime": inode.mtime, "ctime": inode.ctime,
        "btime": inode.btime, "seq": inode.seq, "data_version": inode.data_version, "is_inline": inode.is_inline,
        "inline_bytes": inode.inline_bytes, "chunk_size": inode.chunk_size, "replicas": inode.replicas,
        "chunk_count": inode.chunks, "chunks": chunks, "more_chunks": reply.more_chunks})
}
