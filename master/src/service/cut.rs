//! What a truncate or punch has left to do: chunks dropped in bounded batches, the rest of a chunk zeroed by its primary,
//! inline content copied into a chunk.

use std::sync::Arc;
use std::time::Instant;

use dfs_proto::wire::pb::{self, data_request};
use dfs_proto::{ChunkIndex, FsError, InodeId, Seq, SessionId, unit};

use super::care_calls::CutStep;
use super::data_plane::{CallFailed, retry};
use super::{Shared, grants};
use crate::core::care::CutIntent;
use crate::core::outcome::Body;
use crate::core::record::Chunk;
use crate::core::request::{Call, CommitWrite, Request};

/// Does what is left of `cut`, which nobody has worked at yet. One that is done already, or whose file is gone, is
/// nothing to do.
///
/// # Errors
///
/// [`FsError::NoReplica`], [`FsError::TryAgain`] or what the primary says: the intent stays.
pub fn finish(shared: &Shared, cut: &CutIntent) -> Result<(), FsError> {
    finish_after(shared, cut, Earlier::Nothing)
}

/// Does what is left of `cut`, at which somebody may have worked before.
///
/// # Errors
///
/// As [`finish`].
pub fn take_over(shared: &Shared, cut: &CutIntent) -> Result<(), FsError> {
    finish_after(shared, cut, Earlier::MayStillRun)
}

/// What became of a request that was sent to a chunk before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Earlier {
    /// There was none, or it was answered.
    Nothing,
    /// It was not answered: a chunk server may have it in a queue still.
    MayStillRun,
}

/// A chunk and where it is.
struct Target {
    inode: InodeId,
    index: ChunkIndex,
    chunk_size_log2: u32,
    chunk: Arc<Chunk>,
}

fn finish_after(shared: &Shared, cut: &CutIntent, earlier: Earlier) -> Result<(), FsError> {
    // A truncate that a power cut takes back must find its data.
    shared.executor.wait_durable(Seq(cut.number))?;
    let deadline = Instant::now() + shared.deadlines.cut;
    let (zero, target) = loop {
        match shared.executor.cut_step(cut)? {
            CutStep::Done => return Ok(()),
            CutStep::Dropped if Instant::now() < deadline => {}
            CutStep::Dropped => return Err(FsError::TryAgain("many chunks are being dropped")),
            CutStep::Zero { zero, chunk_size_log2, chunk } => {
                break (zero, Target { inode: cut.inode, index: zero.index, chunk_size_log2, chunk });
            }
        }
    };
    let body = pb::Zero { offset: zero.from, length: zero.to - zero.from, client: shared.boot.0, number: cut.number };
    deliver(shared, target, earlier, deadline, &data_request::Body::Zero(body), &[])?;
    shared.executor.cut_done(cut)
}

/// Has the primary of a chunk do what `body` says, once. If the chunk is gone there is nothing to do.
///
/// An earlier copy that was not answered may lie in a queue of the chunk server, to be carried out after what mounts
/// write next. So the chunk's version is raised before the request is repeated: once the repeat is answered, the chunk
/// servers refuse whatever comes with the old version.
fn deliver(
    shared: &Shared,
    mut target: Target,
    mut earlier: Earlier,
    deadline: Instant,
    body: &data_request::Body,
    payload: &[u8],
) -> Result<(), FsError> {
    retry(deadline, || {
        let address = primary(shared, &target)?;
        if earlier == Earlier::MayStillRun {
            let Some(raised) = shared.executor.raise_version(target.inode, target.index)? else { return Ok(()) };
            target.chunk = raised;
        }
        let location =
            grants::location(shared, target.inode, target.index, target.chunk_size_log2, Some(&target.chunk))?;
        let request = pb::DataRequest {
            chunk: target.chunk.id.0,
            version: target.chunk.version.0,
            grant: location.grant,
            body: Some(body.clone()),
        };
        match shared.data.call(&address, &request, payload, deadline) {
            Ok(_) => Ok(()),
            Err(CallFailed { error, may_still_run }) => {
                earlier = if may_still_run { Earlier::MayStillRun } else { Earlier::Nothing };
                Err(error)
            }
        }
    })
}

/// Returns the address of the primary.
///
/// # Errors
///
/// [`FsError::NoReplica`] if it holds no lease: it would refuse, and no version need be raised to learn that.
fn primary(shared: &Shared, target: &Target) -> Result<String, FsError> {
    let node = target.chunk.primary;
    let location = shared.nodes.read().location(node, shared.clock.mono());
    match location {
        Some(location) if location.lease_valid => Ok(location.address),
        _ => Err(FsError::NoReplica(format!("chunk {}: its primary, node {node}, is away", target.chunk.id))),
    }
}

/// Copies the inline content of a file into its first chunk and lets it leave its inline content, so that it can get
/// larger than inline files are.
///
/// # Errors
///
/// [`FsError::Stale`] if the content changed meanwhile (ask again); what the allocation or the primary says.
pub(super) fn leave_inline(shared: &Shared, session: SessionId, inode: InodeId) -> Result<(), FsError> {
    let ask = |request| shared.executor.call(Call::unnumbered(session, request)).result.map(|reply| reply.body);
    let unexpected = || FsError::Io("an unexpected reply of the executor".into());
    let Body::Inline { inode: file, content } = ask(Request::GetInline { inode })? else { return Err(unexpected()) };
    if !file.is_inline {
        return Ok(());
    }
    let (first, deadline) = (ChunkIndex(0), Instant::now() + shared.deadlines.cut);
    let chunk = retry(deadline, || match ask(Request::AllocateChunks { inode, first, count: 1 })? {
        Body::Chunks { mut chunks, .. } => chunks.pop().and_then(|(_, chunk)| chunk).ok_or_else(unexpected),
        _ => Err(unexpected()),
    })?;
    let target = Target { inode, index: first, chunk_size_log2: file.chunk_size_log2, chunk };
    let write = pb::Write { offset: 0, crcs: unit::checksums(0, &content), client: shared.boot.0, number: file.seq.0 };
    deliver(shared, target, Earlier::Nothing, deadline, &data_request::Body::Write(write), &content)?;
    let commit = CommitWrite {
        inode,
        end: content.len() as u64,
        mtime: Some(file.mtime),
        written: vec![first],
        leave_inline: true,
        if_data_version: file.data_version,
        ..CommitWrite::default()
    };
    ask(Request::CommitWrite(commit)).map(|_| ())
}
