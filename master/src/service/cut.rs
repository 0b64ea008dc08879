//! What a truncate needs from a chunk server: the rest of a chunk zeroed, or inline content copied into a chunk.

use std::time::{Duration, Instant};

use dfs_proto::wire::pb::{self, data_request};
use dfs_proto::{ChunkIndex, FsError, InodeId, Seq, SessionId, unit};

use super::data_plane::retry;
use super::{Shared, grants};
use crate::core::care::CutIntent;
use crate::core::outcome::Body;
use crate::core::record::Chunk;
use crate::core::request::{Call, CommitWrite, Request};

/// How long a truncate waits for the primary. After that the caretaker goes on with it.
const DEADLINE: Duration = Duration::from_secs(10);

/// Zeroes what `cut` asks for, and records that it is done. One that is done already, or whose file is gone, is
/// nothing to do.
///
/// # Errors
///
/// [`FsError::NoReplica`], [`FsError::TryAgain`] or what the primary says: the intent stays.
pub fn finish(shared: &Shared, cut: &CutIntent) -> Result<(), FsError> {
    // A truncate that a power cut takes back must find its data.
    shared.executor.wait_durable(Seq(cut.number))?;
    retry(Instant::now() + DEADLINE, || {
        let Some(to_cut) = shared.executor.chunk_to_cut(cut)? else { return Ok(()) };
        let zero = pb::Zero { offset: cut.from, length: cut.to - cut.from, client: shared.boot.0, number: cut.number };
        to_primary(shared, cut.index, to_cut.chunk_size_log2, &to_cut.chunk, data_request::Body::Zero(zero), &[])?;
        shared.executor.cut_done(cut)
    })
}

fn to_primary(
    shared: &Shared,
    index: ChunkIndex,
    chunk_size_log2: u32,
    chunk: &Chunk,
    body: data_request::Body,
    payload: &[u8],
) -> Result<(), FsError> {
    let location = grants::location(shared, index, chunk_size_log2, Some(chunk))?;
    let Some(primary) = location.replicas.first() else {
        return Err(FsError::NoReplica(format!("chunk {} has no replica", chunk.id)));
    };
    let request = pb::DataRequest {
        chunk: chunk.id.0,
        version: chunk.version.0,
        grant: location.grant.clone(),
        body: Some(body),
    };
    shared.data.call(&primary.address, &request, payload)?;
    Ok(())
}

/// Copies the inline content of a file into its first chunk and lets it leave its inline content, so that it can get
/// larger than inline files are.
///
/// # Errors
///
/// [`FsError::Stale`] if the content changed meanwhile (ask again); what the allocation or the primary says.
pub(super) fn leave_inline(shared: &Shared, session: SessionId, inode: InodeId) -> Result<(), FsError> {
    let ask = |request| {
        let call = Call { session, number: 0, acked_below: 0, uid: 0, gid: 0, replay: None, request };
        shared.executor.call(call).result.map(|reply| reply.body)
    };
    let unexpected = || FsError::Io("an unexpected reply of the executor".into());
    let Body::Inline { inode: file, content } = ask(Request::GetInline { inode })? else { return Err(unexpected()) };
    if !file.is_inline {
        return Ok(());
    }
    let first = ChunkIndex(0);
    retry(Instant::now() + DEADLINE, || {
        let Body::Chunks { chunks, .. } = ask(Request::AllocateChunks { inode, first, count: 1 })? else {
            return Err(unexpected());
        };
        let Some((_, Some(chunk))) = chunks.first() else { return Err(unexpected()) };
        let write =
            pb::Write { offset: 0, crcs: unit::checksums(0, &content), client: shared.boot.0, number: file.seq.0 };
        to_primary(shared, first, file.chunk_size_log2, chunk, data_request::Body::Write(write), &content)
    })?;
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
