//! Takes the kernel's requests apart, has them carried out, and answers.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use dfs_proto::limits::{DATA_BYTES_MAX, NAME_BYTES_MAX};
use dfs_proto::{FsError, InodeId, Kind};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{device, file_attr, file_type, kind_of_mode, time_change};
use super::dispatch::Shared;
use super::gate::Gate;
use super::ops::{Op, OpMetrics, WaitsFor};
use super::wait_pools::WaitPools;
use crate::fs::file::{HandleId, Unwritten, Whence};
use crate::fs::{Caller, Entry, FileSystem, NewNode, OpenFile, Shown, may_write};
use crate::metrics::Metrics;
use crate::remote::AttrChange;

/// Inode numbers are never used twice, so that one generation does.
const GENERATION: Generation = Generation(0);
const STATFS_BLOCK_BYTES: u64 = 4096;
/// Requests that nobody waits for, read-ahead above all, that the kernel has under way at one time.
const MAX_BACKGROUND: u16 = 64;

/// The file system as fuser sees it.
pub struct Adapter {
    pub(super) shared: Arc<Shared>,
}

impl Adapter {
    /// Returns the adapter of `fs` for a session of `workers` threads.
    pub fn new(fs: Arc<FileSystem>, pools: WaitPools, workers: usize, metrics: &Metrics) -> Self {
        let shared = Shared {
            fs,
            pools,
            gate: Gate::new(workers.saturating_sub(2)),
            ops: OpMetrics::new(metrics),
            notifier: OnceLock::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns where the way to tell the kernel something is put, once there is one.
    pub fn notifier_slot(&self) -> impl FnOnce(Notifier) + use<> {
        let shared = Arc::clone(&self.shared);
        move |notifier| {
            // Only the one who mounted sets it, once.
            let _ = shared.notifier.set(notifier);
        }
    }

    /// Returns the inode behind the kernel's number for it: 1 is what is mounted, the root or not.
    fn inode(&self, node: INodeNo) -> InodeId {
        if node == INodeNo::ROOT { self.shared.fs.root() } else { InodeId(node.0) }
    }
}

impl Shared {
    /// Makes the kernel ask for the attributes of `node` before it uses them again.
    ///
    /// An open that finds new content must not read it with the size that the kernel was told up to a second ago. This
    /// may be sent by a thread that answers a request: an invalidation of attributes alone takes no lock in the kernel
    /// that a caller of this mount can hold (`fuse_reverse_inval_inode` with a negative offset).
    fn expire_attr(&self, node: INodeNo) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(node, -1, 0)
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            tracing::debug!(?node, %error, "the kernel did not take an invalidation");
        }
    }

    fn node(&self, inode: InodeId) -> INodeNo {
        if inode == self.fs.root() { INodeNo::ROOT } else { INodeNo(inode.0) }
    }

    fn ttl_and_attr(&self, shown: &Shown) -> (Duration, fuser::FileAttr) {
        (Duration::from_millis(shown.ttl_ms), file_attr(self.node(shown.attr.inode), &shown.attr))
    }

    fn attr(&self, reply: ReplyAttr, shown: Shown) {
        let (ttl, attr) = self.ttl_and_attr(&shown);
        reply.attr(&ttl, &attr);
    }

    fn entry(&self, reply: ReplyEntry, shown: Shown) {
        let (ttl, attr) = self.ttl_and_attr(&shown);
        reply.entry(&ttl, &attr, GENERATION);
    }

    fn add_plus(&self, reply: &mut ReplyDirectoryPlus, entry: &Entry<'_>) -> bool {
        let name = OsStr::from_bytes(entry.name);
        let node = self.node(entry.inode);
        let is_full = match &entry.shown {
            Some(shown) => {
                let (ttl, attr) = self.ttl_and_attr(shown);
                reply.add(node, entry.offset, name, &ttl, &attr, GENERATION)
            }
            // The kernel takes the kind and the number of `.` and `..` from it, nothing else.
            None => {
                let attr = dots_attr(node);
                reply.add(node, entry.offset, name, &Duration::ZERO, &attr, GENERATION)
            }
        };
        !is_full
    }
}

fn dots_attr(node: INodeNo) -> fuser::FileAttr {
    fuser::FileAttr {
        ino: node,
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(Kind::Directory),
        perm: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: STATFS_BLOCK_BYTES as u32,
        flags: 0,
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn open_reply_flags(open: &OpenFile, flags: i32) -> FopenFlags {
    let mut reply = FopenFlags::empty();
    if open.keep_cache {
        reply |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    if flags & libc::O_APPEND != 0 {
        // Where the end is we say, and the kernel may take it to be elsewhere: what it kept of an append, it would keep at
        // the wrong place.
        reply |= FopenFlags::FOPEN_DIRECT_IO;
    }
    if !may_write(flags) {
        // Nothing was written through it, so that close has nothing to wait for.
        reply |= FopenFlags::FOPEN_NOFLUSH;
    }
    reply
}

/// Gives an extended attribute's bytes, or their number if the caller only asks how many there are.
fn xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size as usize {
        0 => reply.size(value.len() as u32),
        room if room < value.len() => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

#[allow(clippy::too_many_arguments, reason = "fuser's trait")]
impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            // Not FUSE_ATOMIC_O_TRUNC: the kernel would have the file emptied before it looks whether a program runs from
            // it, and refuse (ETXTBSY) when it is too late. So O_TRUNC comes as a SETATTR of its own after OPEN.
            // `.` and `..` can be looked up, numbers are for ever: NFS servers and open_by_handle_at(2) may use them.
            InitFlags::FUSE_EXPORT_SUPPORT,
            // We drop set-id bits: by flag at writes, at truncation, at a change of owner. See `FileSystem::set_attr`.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            // A symlink's target never changes.
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_MAX_PAGES,
        ];
        for capability in wanted {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "this kernel does not have it");
            }
        }
        // An error names the nearest value that is possible, which is then taken.
        let _ = config.set_max_write(DATA_BYTES_MAX).or_else(|nearest| config.set_max_write(nearest));
        let _ = config.set_max_readahead(DATA_BYTES_MAX).or_else(|nearest| config.set_max_readahead(nearest));
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, parent, name) = (caller(request), self.inode(parent), bytes(name));
        self.serve(Op::Lookup, reply, move |fs| fs.lookup(caller, parent, name), Shared::entry);
    }

    // Node numbers are inode numbers: nothing is kept for what the kernel knows, so that nothing is to be forgotten.
    fn forget(&self, _request: &Request, _node: INodeNo, _lookups: u64) {}

    fn getattr(&self, _request: &Request, node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let inode = self.inode(node);
        match self.shared.fs.known_attr(inode) {
            Some(shown) => self.serve_at_once(Op::GetAttr, reply, |_| Ok(shown), Shared::attr),
            None => self.serve(Op::GetAttr, reply, move |fs| fs.get_attr(inode), Shared::attr),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (caller, inode) = (caller(request), self.inode(node));
        let change = AttrChange {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: time_change(atime),
            mtime: time_change(mtime),
            clear_suid_sgid: false,
        };
        // What is buffered is pushed first.
        let waits_for = match self.shared.fs.data().unwritten_of(inode) {
            Unwritten::Chunks => WaitsFor::Room,
            Unwritten::Nothing | Unwritten::Inline => WaitsFor::Master,
        };
        self.serve_waiting(Op::SetAttr, waits_for, reply, move |fs| fs.set_attr(caller, inode, change), Shared::attr);
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        let inode = self.inode(node);
        self.serve(Op::ReadLink, reply, move |fs| fs.read_link(inode), |_, reply, target| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (caller, parent, name) = (caller(request), self.inode(parent), bytes(name));
        let call = move |fs: &FileSystem| {
            let kind = kind_of_mode(mode).ok_or(FsError::Invalid("no kind of inode that mknod makes"))?;
            let node = NewNode { kind, mode: mode & 0o7777, rdev: device(rdev), target: Bytes::new() };
            fs.make(caller, parent, name, node)
        };
        self.serve(Op::Mknod, reply, call, Shared::entry);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (caller, parent, name) = (caller(request), self.inode(parent), bytes(name));
        let node = NewNode { kind: Kind::Directory, mode: mode & 0o7777, rdev: 0, target: Bytes::new() };
        self.serve(Op::Mkdir, reply, move |fs| fs.make(caller, parent, name, node), Shared::entry);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, parent, name) = (caller(request), self.inode(parent), bytes(name));
        self.serve(Op::Unlink, reply, move |fs| fs.unlink(caller, parent, name), |_, reply, ()| reply.ok());
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, parent, name) = (caller(request), self.inode(parent), bytes(name));
        self.serve(Op::Rmdir, reply, move |fs| fs.rmdir(caller, parent, name), |_, reply, ()| reply.ok());
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (caller, parent, name) = (caller(request), self.inode(parent), bytes(name));
        let node = NewNode { kind: Kind::Symlink, mode: 0o777, rdev: 0, target: bytes(target.as_os_str()) };
        self.serve(Op::Symlink, reply, move |fs| fs.make(caller, parent, name, node), Shared::entry);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (caller, parent, name) = (caller(request), self.inode(parent), bytes(name));
        let (new_parent, new_name) = (self.inode(new_parent), bytes(new_name));
        self.serve(
            Op::Rename,
            reply,
            move |fs| fs.rename(caller, (parent, name), (new_parent, new_name), flags.bits()),
            |_, reply, ()| reply.ok(),
        );
    }

    fn link(&self, request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, inode, parent, name) = (caller(request), self.inode(node), self.inode(parent), bytes(name));
        self.serve(Op::Link, reply, move |fs| fs.link(caller, inode, parent, name), Shared::entry);
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (caller, inode, flags) = (caller(request), self.inode(node), flags.0);
        self.serve(
            Op::Open,
            reply,
            move |fs| fs.open(caller, inode, flags),
            move |shared, reply, open| {
                if !open.keep_cache {
                    shared.expire_attr(node);
                }
                reply.opened(FileHandle(open.handle.0), open_reply_flags(&open, flags));
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, parent, name) = (caller(request), self.inode(parent), bytes(name));
        self.serve(
            Op::Create,
            reply,
            move |fs| fs.create(caller, parent, name, mode & 0o7777, flags),
            move |shared, reply, (shown, open)| {
                let (ttl, attr) = shared.ttl_and_attr(&shown);
                let handle = FileHandle(open.handle.0);
                reply.created(&ttl, &attr, GENERATION, handle, open_reply_flags(&open, flags));
            },
        );
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let handle = HandleId(handle.0);
        self.serve(Op::Read, reply, move |fs| fs.data().read(handle, offset, size), |_, reply, data| reply.data(&data));
    }

    fn write(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let handle = HandleId(handle.0);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // Mapped pages come on whichever handle the kernel finds; their offset counts even if that one appends.
        let is_write_back = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = move |fs: &FileSystem, data: &[u8]| match is_write_back {
            true => fs.data().write_back(handle, offset, data),
            false => fs.data().write(handle, offset, data, kill),
        };
        let answer = |_: &Shared, reply: ReplyWrite, written| reply.written(written);
        let begun = Instant::now();
        if let Some(_pass) = self.shared.gate.enter() {
            self.shared.carry_out(Op::Write, begun, reply, |shared, _| write(&shared.fs, data), answer);
        } else {
            // The request's buffer is the worker's: what leaves it is copied.
            let data = data.to_vec();
            self.serve(Op::Write, reply, move |fs| write(fs, &data), answer);
        }
    }

    fn flush(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let handle = HandleId(handle.0);
        let call = move |fs: &FileSystem| fs.data().flush(handle);
        let answer = |_: &Shared, reply: ReplyEmpty, ()| reply.ok();
        match self.shared.fs.data().unwritten(handle) {
            Unwritten::Nothing => self.serve_at_once(Op::Flush, reply, call, answer),
            Unwritten::Inline => self.serve_waiting(Op::Flush, WaitsFor::Master, reply, call, answer),
            Unwritten::Chunks => self.serve(Op::Flush, reply, call, answer),
        }
    }

    fn release(
        &self,
        _request: &Request,
        node: INodeNo,
        handle: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let (inode, handle, may_have_written) = (self.inode(node), HandleId(handle.0), may_write(flags.0));
        // Nobody is told how it ends: no reason to let anybody wait for it.
        self.serve_at_once(Op::Release, reply, |_| Ok(()), |_, reply, ()| reply.ok());
        if self.shared.fs.data().unwritten(handle) != Unwritten::Nothing {
            let shared = Arc::clone(&self.shared);
            self.shared.pools.of(WaitsFor::Room).spawn(move || shared.fs.release(inode, handle, may_have_written));
        } else {
            self.shared.fs.release(inode, handle, may_have_written);
        }
    }

    fn fsync(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let handle = HandleId(handle.0);
        // The size belongs to the data, and the times travel with it: there is nothing that fdatasync could leave out.
        self.serve(Op::Fsync, reply, move |fs| fs.data().fsync(handle), |_, reply, ()| reply.ok());
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let inode = self.inode(node);
        self.serve_at_once(
            Op::OpenDir,
            reply,
            |fs| Ok(fs.open_dir(inode)),
            |_, reply, handle| reply.opened(FileHandle(handle), FopenFlags::empty()),
        );
    }

    fn readdir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        let (handle, is_ready) = (handle.0, self.shared.fs.is_listing_ready(handle.0, offset, false));
        let fill = move |shared: &Shared, reply: &mut ReplyDirectory| {
            shared.fs.read_dir(handle, offset, false, |entry| {
                let node = shared.node(entry.inode);
                !reply.add(node, entry.offset, file_type(entry.kind), OsStr::from_bytes(entry.name))
            })
        };
        self.list(Op::ReadDir, is_ready, reply, fill, ReplyDirectory::ok);
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (handle, is_ready) = (handle.0, self.shared.fs.is_listing_ready(handle.0, offset, true));
        let fill = move |shared: &Shared, reply: &mut ReplyDirectoryPlus| {
            shared.fs.read_dir(handle, offset, true, |entry| shared.add_plus(reply, entry))
        };
        self.list(Op::ReadDirPlus, is_ready, reply, fill, ReplyDirectoryPlus::ok);
    }

    fn releasedir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.shared.fs.release_dir(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, _node: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.serve(Op::FsyncDir, reply, FileSystem::sync, |_, reply, ()| reply.ok());
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        self.serve(Op::StatFs, reply, FileSystem::stat_fs, |_, reply, room| {
            let free = room.free_bytes / STATFS_BLOCK_BYTES;
            reply.statfs(
                room.total_bytes / STATFS_BLOCK_BYTES,
                free,
                free,
                room.inodes.saturating_add(room.inodes_free),
                room.inodes_free,
                STATFS_BLOCK_BYTES as u32,
                NAME_BYTES_MAX as u32,
                STATFS_BLOCK_BYTES as u32,
            );
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (caller, inode, name) = (caller(request), self.inode(node), bytes(name));
        let (value, flags) = (Bytes::copy_from_slice(value), flags as u32);
        self.serve(
            Op::SetXattr,
            reply,
            move |fs| fs.set_xattr(caller, inode, name, value, flags),
            |_, reply, ()| reply.ok(),
        );
    }

    fn getxattr(&self, request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (caller, inode, name) = (caller(request), self.inode(node), bytes(name));
        let is_known = FileSystem::is_xattr_known(&name);
        let call = move |fs: &FileSystem| fs.get_xattr(caller, inode, name);
        let answer = move |_: &Shared, reply: ReplyXattr, value: Bytes| xattr(reply, size, &value);
        match is_known {
            true => self.serve_at_once(Op::GetXattr, reply, call, answer),
            false => self.serve(Op::GetXattr, reply, call, answer),
        }
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let (caller, inode) = (caller(request), self.inode(node));
        self.serve(
            Op::ListXattr,
            reply,
            move |fs| fs.list_xattr(caller, inode),
            move |_, reply, names| xattr(reply, size, &names),
        );
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, inode, name) = (caller(request), self.inode(node), bytes(name));
        self.serve(Op::RemoveXattr, reply, move |fs| fs.remove_xattr(caller, inode, name), |_, reply, ()| reply.ok());
    }

    // With `default_permissions` the kernel does not ask; an ENOSYS would be remembered as "anything goes".
    fn access(&self, _request: &Request, _node: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let handle = HandleId(handle.0);
        self.serve(
            Op::Fallocate,
            reply,
            move |fs| fs.data().fallocate(handle, mode, offset, length),
            |_, reply, ()| reply.ok(),
        );
    }

    fn lseek(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let handle = HandleId(handle.0);
        let call = move |fs: &FileSystem| {
            let whence = match whence {
                libc::SEEK_DATA => Whence::Data,
                libc::SEEK_HOLE => Whence::Hole,
                _ => return Err(FsError::Invalid("the kernel seeks by itself in all other ways")),
            };
            // lseek(2): ENXIO for an offset that is negative, as for one behind the end.
            let offset = u64::try_from(offset).unwrap_or(u64::MAX);
            fs.data().lseek(handle, offset, whence)
        };
        self.serve(Op::Lseek, reply, call, |_, reply, offset| reply.offset(offset as i64));
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _node_in: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        _node_out: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((HandleId(handle_in.0), offset_in), (HandleId(handle_out.0), offset_out));
        // The reply counts in 32 bits. Less than was asked for is a proper answer.
        let length = length.min(u64::from(u32::MAX) & !0xfff);
        self.serve(
            Op::CopyFileRange,
            reply,
            move |fs| fs.data().copy_range(from, to, length),
            |_, reply, copied| reply.written(copied as u32),
        );
    }

    fn ioctl(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // ioctl(2): the request does not apply to this kind of object.
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _poll_handle: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel remembers this and takes files as always ready, which is right.
        reply.error(Errno::ENOSYS);
    }
}
