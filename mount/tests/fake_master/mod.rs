//! A master in this process: names and inline files in maps, with sessions, recorded replies, and a "disk" that a
//! restart falls back to. Just enough protocol to test a mount against.

#![allow(dead_code, clippy::disallowed_methods, reason = "each test uses a part; a test may use sockets")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::env::random_u64;
use dfs_proto::wire::pb::{self, meta_reply, meta_request};
use dfs_proto::wire::{Connection, FrameKind, Identity, Listener, accept_hello};
use dfs_proto::{BootSession, ClusterId, FsError, Kind, NodeId, SessionId};
use parking_lot::{Mutex, MutexGuard};
use prost::Message;

pub const CLUSTER: ClusterId = ClusterId([7; 16]);

pub struct FakeMaster {
    listener: Mutex<Option<Listener>>,
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    boot: Mutex<BootSession>,
    state: Mutex<State>,
    /// What a restart finds.
    disk: Mutex<State>,
    /// Requests are read and never answered.
    is_silent: AtomicBool,
    /// Every change is on the disk before it is answered.
    is_durable: AtomicBool,
    /// Requests as they came, by name.
    log: Mutex<Vec<String>>,
    /// The next request of this name is carried out, and its connection closed instead of an answer.
    swallow: Mutex<Option<String>>,
    /// The next request of this name is carried out, and not answered.
    withhold: Mutex<Option<String>>,
}

#[derive(Clone, Default)]
struct State {
    seq: u64,
    durable_seq: u64,
    next_inode: u64,
    next_session: u64,
    sessions: BTreeMap<u64, Session>,
    /// Where all chunks are.
    chunk_server: String,
    inodes: BTreeMap<u64, Inode>,
    dentries: BTreeMap<(u64, Bytes), (u64, u64)>,
    next_cookie: u64,
}

#[derive(Clone, Default)]
struct Session {
    opens: BTreeMap<u64, i64>,
    replies: BTreeMap<u64, pb::MetaReply>,
    /// Replies of an earlier process that were not asked for since.
    from_before: BTreeSet<u64>,
}

#[derive(Clone, Default)]
struct Inode {
    attr: pb::Attr,
    content: Bytes,
    xattrs: BTreeMap<Bytes, Bytes>,
    chunks: BTreeSet<u32>,
}

impl FakeMaster {
    pub fn start() -> Self {
        let mut state = State { next_inode: 2, next_session: 1, next_cookie: 1, ..State::default() };
        let root = attr(1, Kind::Directory, 0o755, 0, 0);
        state.inodes.insert(1, Inode { attr: pb::Attr { parent: 1, nlink: 2, ..root }, ..Inode::default() });
        let shared = Arc::new(Shared {
            boot: Mutex::new(BootSession(random_u64())),
            disk: Mutex::new(state.clone()),
            state: Mutex::new(state),
            is_silent: AtomicBool::new(false),
            is_durable: AtomicBool::new(true),
            log: Mutex::default(),
            swallow: Mutex::default(),
            withhold: Mutex::default(),
        });
        let listener = listen("127.0.0.1:0", &shared);
        let address = listener.address().to_string();
        Self { listener: Mutex::new(Some(listener)), address, shared }
    }

    /// The process dies, and what was not on the disk with it.
    pub fn kill(&self) {
        if let Some(listener) = self.listener.lock().take() {
            listener.stop();
        }
    }

    /// A new process on the same address, with what is on the disk.
    pub fn start_again(&self) {
        *self.shared.boot.lock() = BootSession(random_u64());
        let mut state = self.shared.disk.lock().clone();
        for session in state.sessions.values_mut() {
            session.opens.clear();
            session.from_before = session.replies.keys().copied().collect();
        }
        *self.shared.state.lock() = state;
        // The port may be held for a moment by what the old process left behind.
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        loop {
            let shared = Arc::clone(&self.shared);
            match Listener::start(&self.address, 64, "fake-master", move |connection| serve(connection, &shared)) {
                Ok(listener) => {
                    *self.listener.lock() = Some(listener);
                    return;
                }
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
        }
    }

    pub fn set_durable(&self, is_durable: bool) {
        self.shared.is_durable.store(is_durable, Ordering::SeqCst);
    }

    pub fn set_silent(&self, is_silent: bool) {
        self.shared.is_silent.store(is_silent, Ordering::SeqCst);
    }

    pub fn swallow_next(&self, op: &str) {
        *self.shared.swallow.lock() = Some(op.to_owned());
    }

    pub fn withhold_next(&self, op: &str) {
        *self.shared.withhold.lock() = Some(op.to_owned());
    }

    pub fn is_withheld(&self) -> bool {
        self.shared.withhold.lock().is_none()
    }

    pub fn end_all_sessions(&self) {
        self.state().sessions.clear();
    }

    /// From now on files may have chunks: on this server.
    pub fn set_chunk_server(&self, address: String) {
        self.state().chunk_server = address;
    }

    pub fn names(&self) -> Vec<String> {
        let state = self.state();
        state.dentries.keys().map(|(_, name)| String::from_utf8_lossy(name).into_owned()).collect()
    }

    pub fn opens(&self) -> BTreeMap<u64, i64> {
        self.state().sessions.values().flat_map(|session| session.opens.clone()).collect()
    }

    pub fn sessions(&self) -> usize {
        self.state().sessions.len()
    }

    /// Takes the names of the requests that came since it was last asked, pings apart.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.log.lock())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }
}

impl Drop for FakeMaster {
    fn drop(&mut self) {
        self.kill();
    }
}

fn listen(address: &str, shared: &Arc<Shared>) -> Listener {
    let shared = Arc::clone(shared);
    Listener::start(address, 64, "fake-master", move |connection| serve(connection, &shared)).expect("listens")
}

fn serve(mut connection: Connection, shared: &Shared) {
    let boot = *shared.boot.lock();
    let own = Identity { cluster: Some(CLUSTER), role: pb::Role::Master, node: NodeId(0), boot, session: SessionId(0) };
    let Ok(peer) = accept_hello(&mut connection, &own, &[pb::Role::Mount], Duration::from_secs(5)) else { return };
    while let Ok(frame) = connection.recv(None) {
        let request = pb::MetaRequest::decode(frame.head).expect("decodes");
        if shared.is_silent.load(Ordering::SeqCst) {
            continue;
        }
        let body = request.body.clone().expect("has a body");
        let op = name_of(&body);
        if op != "Ping" {
            shared.log.lock().push(op.clone());
        }
        let reply = {
            let mut state = shared.state.lock();
            if *shared.boot.lock() != boot {
                return;
            }
            let reply = state.answer(peer.session.0, &request);
            let syncs = matches!(body, meta_request::Body::Sync(_)) || shared.is_durable.load(Ordering::SeqCst);
            if syncs {
                state.durable_seq = state.seq;
                *shared.disk.lock() = state.clone();
            }
            pb::MetaReply { durable_seq: state.durable_seq, ..reply }
        };
        if shared.swallow.lock().take_if(|swallowed| *swallowed == op).is_some() {
            return;
        }
        if shared.withhold.lock().take_if(|withheld| *withheld == op).is_some() {
            continue;
        }
        if connection.send(FrameKind::MetaReply, frame.request_id, &reply, &[]).is_err() {
            return;
        }
    }
}

fn name_of(body: &meta_request::Body) -> String {
    let text = format!("{body:?}");
    text.split('(').next().unwrap_or_default().to_owned()
}

fn attr(inode: u64, kind: Kind, mode: u32, uid: u32, gid: u32) -> pb::Attr {
    pb::Attr {
        inode,
        kind: kind as u32,
        mode,
        nlink: if kind == Kind::Directory { 2 } else { 1 },
        uid,
        gid,
        data_version: 1,
        is_inline: kind == Kind::File,
        chunk_size_log2: 26,
        replicas: 3,
        ..Default::default()
    }
}

type Answer = Result<(meta_reply::Body, bool), FsError>;

impl State {
    fn answer(&mut self, session: u64, request: &pb::MetaRequest) -> pb::MetaReply {
        let body = request.body.clone().expect("has a body");
        if !matches!(body, meta_request::Body::SessionOpen(_)) && !self.sessions.contains_key(&session) {
            return pb::MetaReply { failure: Some((&FsError::UnknownSession).into()), ..Default::default() };
        }
        if request.number > 0
            && let Some(reply) = self.sessions[&session].replies.get(&request.number).cloned()
        {
            let is_from_before = self.session(session).from_before.remove(&request.number);
            if is_from_before && request.replay.is_none() {
                self.count_open(session, &reply);
            }
            return reply;
        }
        let time = request.replay.as_ref().map_or(1_000 + self.seq as i64, |replay| replay.time);
        let inode = request.replay.as_ref().map_or(0, |replay| replay.inode);
        let mut reply = pb::MetaReply { time, ..Default::default() };
        match self.apply(session, request, body, time, inode) {
            Ok((body, changed)) => {
                if changed {
                    self.seq += 1;
                    reply.seq = self.seq;
                }
                reply.body = Some(body);
            }
            Err(error) => reply.failure = Some((&error).into()),
        }
        // What replays open is among what is reclaimed.
        if request.replay.is_none() {
            self.count_open(session, &reply);
        }
        if let Some(session) = self.sessions.get_mut(&session) {
            session.replies.retain(|&number, _| number >= request.acked_below);
            if request.number > 0 {
                session.replies.insert(request.number, reply.clone());
            }
        }
        reply
    }

    fn count_open(&mut self, session: u64, reply: &pb::MetaReply) {
        if let Some(meta_reply::Body::Opened(pb::Opened { attr: Some(attr), .. })) = &reply.body {
            *self.session(session).opens.entry(attr.inode).or_default() += 1;
        }
    }

    fn apply(
        &mut self,
        session: u64,
        request: &pb::MetaRequest,
        body: meta_request::Body,
        time: i64,
        replayed_inode: u64,
    ) -> Answer {
        use meta_request::Body;
        let done = |changed| Ok((meta_reply::Body::Done(pb::Done {}), changed));
        match body {
            Body::SessionOpen(_) => {
                let session = self.next_session;
                self.next_session += 1;
                self.sessions.insert(session, Session::default());
                self.seq += 1;
                let opened = pb::SessionOpened {
                    session,
                    lease_ms: 60_000,
                    root: Some(self.inodes[&1].attr),
                    cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
                };
                Ok((meta_reply::Body::SessionOpened(opened), false))
            }
            Body::SessionReclaim(reclaim) => {
                for open in reclaim.opens {
                    self.session(session).opens.insert(open.inode, i64::from(open.count));
                }
                done(false)
            }
            Body::SessionClose(_) => {
                self.sessions.remove(&session);
                done(false)
            }
            Body::Ping(_) | Body::Sync(_) | Body::ReportBadReplica(_) => done(false),
            Body::Lookup(lookup) => {
                let inode = self.target(lookup.parent, &lookup.name)?;
                Ok((self.entry(inode, false), false))
            }
            Body::GetAttr(get) => {
                self.inode(get.inode)?;
                Ok((self.entry(get.inode, false), false))
            }
            Body::SetAttr(set) => {
                let inode = self.inode(set.inode)?;
                let attr = &mut inode.attr;
                attr.mode = set.mode.unwrap_or(attr.mode);
                attr.uid = set.uid.unwrap_or(attr.uid);
                attr.gid = set.gid.unwrap_or(attr.gid);
                attr.atime = set.atime.unwrap_or(if set.atime_now { time } else { attr.atime });
                attr.mtime = set.mtime.unwrap_or(if set.mtime_now { time } else { attr.mtime });
                attr.ctime = time;
                if let Some(size) = set.size {
                    let mut content = inode.content.to_vec();
                    content.resize(size as usize, 0);
                    inode.content = content.into();
                    inode.attr.size = size;
                    inode.attr.data_version += 1;
                }
                Ok((self.entry(set.inode, false), true))
            }
            Body::Make(make) => {
                if let Ok(inode) = self.target(make.parent, &make.name) {
                    if make.exclusive || !make.open {
                        return Err(FsError::Exists);
                    }
                    return Ok((self.opened(inode, false), false));
                }
                let inode = if replayed_inode > 0 { replayed_inode } else { self.next_inode };
                self.next_inode = self.next_inode.max(inode + 1);
                let kind = Kind::from_u32(make.kind).expect("a kind");
                let mut attr = attr(inode, kind, make.mode, request.uid, request.gid);
                (attr.atime, attr.mtime, attr.ctime, attr.btime) = (time, time, time, time);
                attr.rdev = make.rdev;
                attr.size = make.target.len() as u64;
                if kind == Kind::Directory {
                    attr.parent = make.parent;
                    self.inode(make.parent)?.attr.nlink += 1;
                }
                self.inodes.insert(inode, Inode { attr, content: make.target, ..Inode::default() });
                self.link(make.parent, make.name, inode, time);
                if make.open {
                    return Ok((self.opened(inode, true), true));
                }
                Ok((self.entry(inode, true), true))
            }
            Body::Unlink(unlink) => {
                self.unlink(unlink.parent, &unlink.name, time)?;
                done(true)
            }
            Body::Rmdir(rmdir) => {
                let inode = self.target(rmdir.parent, &rmdir.name)?;
                if self.dentries.keys().any(|(parent, _)| *parent == inode) {
                    return Err(FsError::NotEmpty);
                }
                self.unlink(rmdir.parent, &rmdir.name, time)?;
                self.inodes.remove(&inode);
                self.inode(rmdir.parent)?.attr.nlink -= 1;
                done(true)
            }
            Body::Rename(rename) => {
                let inode = self.target(rename.parent, &rename.name)?;
                if self.target(rename.new_parent, &rename.new_name).is_ok() {
                    self.unlink(rename.new_parent, &rename.new_name, time)?;
                }
                self.dentries.remove(&(rename.parent, rename.name));
                self.link(rename.new_parent, rename.new_name, inode, time);
                done(true)
            }
            Body::Link(link) => {
                self.inode(link.inode)?.attr.nlink += 1;
                self.link(link.parent, link.name, link.inode, time);
                Ok((self.entry(link.inode, false), true))
            }
            Body::ReadLink(read) => {
                let target = self.inode(read.inode)?.content.clone();
                Ok((meta_reply::Body::Target(pb::Target { target }), false))
            }
            Body::Open(open) => {
                self.inode(open.inode)?;
                Ok((self.opened(open.inode, false), false))
            }
            Body::Release(release) => {
                for open in release.opens {
                    let opens = &mut self.session(session).opens;
                    let count = opens.entry(open.inode).or_default();
                    *count -= i64::from(open.count);
                    if *count == 0 {
                        opens.remove(&open.inode);
                    }
                }
                done(false)
            }
            Body::ReadDir(read) => {
                let mut entries: Vec<pb::Dirent> = self
                    .dentries
                    .iter()
                    .filter(|((parent, _), (_, cookie))| *parent == read.inode && *cookie > read.after)
                    .map(|((_, name), (inode, cookie))| pb::Dirent {
                        cookie: *cookie,
                        name: name.clone(),
                        inode: *inode,
                        kind: self.inodes[inode].attr.kind,
                        attr: read.plus.then(|| self.inodes[inode].attr),
                    })
                    .collect();
                entries.sort_by_key(|entry| entry.cookie);
                let end = entries.len() <= read.limit as usize;
                entries.truncate(read.limit as usize);
                let parent = self.inode(read.inode)?.attr.parent;
                Ok((meta_reply::Body::Listing(pb::Listing { entries, end, parent }), false))
            }
            Body::StatFs(_) => {
                let reply = pb::StatFsReply {
                    total_bytes: 1 << 40,
                    free_bytes: 1 << 39,
                    inodes: self.inodes.len() as u64,
                    inodes_free: 1 << 30,
                };
                Ok((meta_reply::Body::StatFs(reply), false))
            }
            Body::SetXattr(set) => {
                self.inode(set.inode)?.xattrs.insert(set.name, set.value);
                done(true)
            }
            Body::GetXattr(get) => {
                let value = self.inode(get.inode)?.xattrs.get(&get.name).cloned().ok_or(FsError::NoAttribute)?;
                Ok((meta_reply::Body::XattrValue(pb::XattrValue { value }), false))
            }
            Body::ListXattr(list) => {
                let names = self.inode(list.inode)?.xattrs.keys().cloned().collect();
                Ok((meta_reply::Body::XattrNames(pb::XattrNames { names }), false))
            }
            Body::RemoveXattr(remove) => {
                self.inode(remove.inode)?.xattrs.remove(&remove.name).ok_or(FsError::NoAttribute)?;
                done(true)
            }
            Body::CommitWrite(commit) => {
                let inode = self.inode(commit.inode)?;
                let of_version = commit.content.is_some() || commit.leave_inline;
                if of_version && commit.if_data_version != inode.attr.data_version {
                    return Err(FsError::Stale("another data version"));
                }
                inode.attr.is_inline &= !commit.leave_inline;
                inode.attr.size = match &commit.content {
                    Some(content) => content.len() as u64,
                    None => inode.attr.size.max(commit.end),
                };
                inode.attr.mtime = commit.mtime;
                inode.attr.data_version += 1;
                inode.content = commit.content.unwrap_or_default();
                Ok((self.entry(commit.inode, false), true))
            }
            Body::GetInline(get) => {
                let inode = self.inode(get.inode)?;
                let data = pb::InlineData { attr: Some(inode.attr), content: inode.content.clone() };
                Ok((meta_reply::Body::InlineData(data), false))
            }
            Body::GetChunks(get) => Ok((self.chunks(get.inode, get.first, get.count)?, false)),
            Body::AllocateChunks(allocate) if !self.chunk_server.is_empty() => {
                let (first, count) = (allocate.first, allocate.count);
                self.inode(allocate.inode)?.chunks.extend(first..first + count);
                Ok((self.chunks(allocate.inode, first, count)?, true))
            }
            Body::AllocateChunks(_) | Body::PunchChunks(_) => Err(FsError::NotSupported),
        }
    }

    fn chunks(&mut self, inode: u64, first: u32, count: u32) -> Result<meta_reply::Body, FsError> {
        let address = self.chunk_server.clone();
        let file = self.inode(inode)?;
        file.attr.chunks = file.chunks.len() as u64;
        let locations = file.chunks.range(first..first.saturating_add(count)).map(|&index| pb::ChunkLocation {
            index,
            chunk: (inode << 32) + u64::from(index) + 1,
            version: 1,
            replicas: vec![pb::Replica { node: 1, address: address.clone(), alive: true }],
            grant: Bytes::new(),
        });
        let chunks = pb::Chunks { locations: locations.collect(), attr: Some(file.attr) };
        Ok(meta_reply::Body::Chunks(chunks))
    }

    fn session(&mut self, session: u64) -> &mut Session {
        self.sessions.get_mut(&session).expect("checked before")
    }

    fn inode(&mut self, inode: u64) -> Result<&mut Inode, FsError> {
        self.inodes.get_mut(&inode).ok_or(FsError::NoEntry)
    }

    fn target(&self, parent: u64, name: &Bytes) -> Result<u64, FsError> {
        self.dentries.get(&(parent, name.clone())).map(|(inode, _)| *inode).ok_or(FsError::NoEntry)
    }

    fn link(&mut self, parent: u64, name: Bytes, inode: u64, time: i64) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.dentries.insert((parent, name), (inode, cookie));
        if let Some(parent) = self.inodes.get_mut(&parent) {
            (parent.attr.mtime, parent.attr.ctime) = (time, time);
        }
    }

    fn unlink(&mut self, parent: u64, name: &Bytes, time: i64) -> Result<(), FsError> {
        let inode = self.target(parent, name)?;
        self.dentries.remove(&(parent, name.clone()));
        let inode = self.inode(inode)?;
        inode.attr.nlink = inode.attr.nlink.saturating_sub(1);
        inode.attr.ctime = time;
        let directory = self.inode(parent)?;
        (directory.attr.mtime, directory.attr.ctime) = (time, time);
        Ok(())
    }

    fn entry(&self, inode: u64, created: bool) -> meta_reply::Body {
        meta_reply::Body::Entry(pb::Entry { attr: Some(self.inodes[&inode].attr), created })
    }

    fn opened(&self, inode: u64, created: bool) -> meta_reply::Body {
        let inode = &self.inodes[&inode];
        let content = if inode.attr.is_inline { inode.content.clone() } else { Bytes::new() };
        meta_reply::Body::Opened(pb::Opened { attr: Some(inode.attr), content, created })
    }
}
