//! What a truncate or punch has left to do: chunks dropped in bounded batches, the rest of a chunk zeroed by its primary,
//! inline content copied into a chunk.

use std::time::Instant;

use dfs_proto::replica_set::{Grant, Home};
use dfs_proto::wire::pb::{self, data_request};
use dfs_proto::{ChunkIndex, FsError, InodeId, Seq, SessionId, unit};

use super::Shared;
use super::care_calls::CutStep;
use super::data_plane::{CallFailed, retry};
use crate::core::care::CutIntent;
use crate::core::outcome::Body;
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

fn finish_after(shared: &Shared, cut: &CutIntent, earlier: Earlier) -> Result<(), FsError> {
    // A truncate that a power cut takes back must find its data.
    shared.executor.wait_durable(Seq(cut.number))?;
    let deadline = Instant::now() + shared.deadlines.cut;
    let (zero, home) = loop {
        match shared.executor.cut_step(cut)? {
            CutStep::Done => return Ok(()),
            CutStep::Dropped if Instant::now() < deadline => {}
            CutStep::Dropped => return Err(FsError::TryAgain("many chunks are being dropped")),
            CutStep::Zero(zero) => {
                break (zero, Home { inode: cut.inode, index: zero.index });
            }
        }
    };
    let body = pb::Zero { offset: zero.from, length: zero.to - zero.from, client: shared.boot.0, number: cut.number };
    deliver(shared, home, earlier, deadline, &data_request::Body::Zero(body), &[])?;
    shared.executor.cut_done(cut)
}

/// Has the primary of a chunk do what `body` says, once. If the chunk is gone there is nothing to do.
///
/// An earlier copy that was not answered may lie in a queue of the chunk server, to be carried out after what mounts
/// write next. So the chunk's version is raised before the request is repeated: once the repeat is answered, the chunk
/// servers refuse whatever comes with the old version.
fn deliver(
    shared: &Shared,
    home: Home,
    mut earlier: Earlier,
    deadline: Instant,
    body: &data_request::Body,
    payload: &[u8],
) -> Result<(), FsError> {
    retry(deadline, || {
        let Some(mut granted) = granted(shared, home)? else { return Ok(()) };
        if earlier == Earlier::MayStillRun {
            if shared.executor.raise_version(home.inode, home.index)?.is_none() {
                return Ok(());
            }
            let Some(raised) = self::granted(shared, home)? else { return Ok(()) };
            granted = raised;
        }
        let request = pb::DataRequest {
            chunk: granted.chunk.0,
            version: granted.version.0,
            grant: shared.grant_key.seal(&granted),
            body: Some(body.clone()),
        };
        let primary = granted.members.first().map_or("", |member| &member.address);
        match shared.data.call(primary, &request, payload, deadline) {
            Ok(_) => Ok(()),
            Err(CallFailed { error, may_still_run }) => {
                earlier = if may_still_run { Earlier::MayStillRun } else { Earlier::Nothing };
                Err(error)
            }
        }
    })
}

/// Returns a grant of the chunk at `home`, whose primary is there; `None` if there is no such chunk.
///
/// # Errors
///
/// [`FsError::NoReplica`] if the primary holds no lease: it would refuse, and no version need be raised to learn that.
fn granted(shared: &Shared, home: Home) -> Result<Option<Grant>, FsError> {
    let Some(granted) = shared.executor.grant(home)? else { return Ok(None) };
    let Grant { chunk, primary, primary_boot, .. } = granted.grant;
    let standing = shared.nodes.read().standing(primary, shared.clock.mono());
    if standing.is_online && standing.boot == primary_boot {
        Ok(Some(granted.grant))
    } else {
        Err(FsError::NoReplica(format!("chunk {chunk}: its primary, node {primary}, is away")))
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
    retry(deadline, || ask(Request::AllocateChunks { inode, first, count: 1 }))?;
    let home = Home { inode, index: first };
    let write = pb::Write { offset: 0, crcs: unit::checksums(0, &content), client: shared.boot.0, number: file.seq.0 };
    deliver(shared, home, Earlier::Nothing, deadline, &data_request::Body::Write(write), &content)?;
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
