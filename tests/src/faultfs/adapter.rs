//! Serves a [`Disk`] to the kernel. The only place of the tests that sees fuser.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session,
    SessionACL, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::disk::Disk;

/// The kernel asks each time: below it, things change that it is not told of.
const TTL: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
const WRITE_BYTES_MAX: u32 = 1 << 20;
const THREADS: usize = 6;

type Listing = Vec<(Vec<u8>, u64, bool)>;

struct Adapter {
    disk: Arc<Disk>,
    listings: Mutex<(u64, BTreeMap<u64, Arc<Listing>>)>,
}

/// Mounts `disk` at `point` and serves it until it is unmounted.
///
/// # Errors
///
/// What kept it from being mounted or served.
pub fn serve(disk: Arc<Disk>, point: &Path) -> io::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("faultfs".into()),
        MountOption::CUSTOM("subtype=faultfs".into()),
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let adapter = Adapter { disk, listings: Mutex::default() };
    Session::new(adapter, point, &config)?.run()
}

impl Adapter {
    fn inode(&self, node: INodeNo) -> u64 {
        if node == INodeNo::ROOT { self.disk.root() } else { node.0 }
    }

    fn attr(&self, metadata: &Metadata) -> FileAttr {
        let time = |seconds: i64, nanos: i64| {
            SystemTime::UNIX_EPOCH + Duration::new(seconds.max(0).cast_unsigned(), nanos as u32)
        };
        FileAttr {
            ino: self.node(metadata.ino()),
            size: metadata.len(),
            blocks: metadata.blocks(),
            atime: time(metadata.atime(), metadata.atime_nsec()),
            mtime: time(metadata.mtime(), metadata.mtime_nsec()),
            ctime: time(metadata.ctime(), metadata.ctime_nsec()),
            crtime: SystemTime::UNIX_EPOCH,
            kind: kind(metadata.is_dir()),
            perm: (metadata.mode() & 0o7777) as u16,
            nlink: metadata.nlink() as u32,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn node(&self, inode: u64) -> INodeNo {
        if inode == self.disk.root() { INodeNo::ROOT } else { INodeNo(inode) }
    }

    fn entry(&self, reply: ReplyEntry, found: io::Result<Metadata>) {
        match found {
            Ok(metadata) => reply.entry(&TTL, &self.attr(&metadata), GENERATION),
            Err(error) => reply.error(error.into()),
        }
    }
}

fn kind(is_directory: bool) -> FileType {
    if is_directory { FileType::Directory } else { FileType::RegularFile }
}

fn empty(what: &str, reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => {
            // What no rule has asked for is a fault of this layer: it must not go unseen.
            eprintln!("faultfs: {what}: {error}");
            reply.error(error.into());
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "fuser's trait")]
impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [InitFlags::FUSE_ASYNC_READ, InitFlags::FUSE_BIG_WRITES, InitFlags::FUSE_MAX_PAGES] {
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, self.disk.lookup(self.inode(parent), name.as_bytes()));
    }

    fn forget(&self, _request: &Request, node: INodeNo, count: u64) {
        self.disk.forget(self.inode(node), count);
    }

    fn getattr(&self, _request: &Request, node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.disk.attributes(self.inode(node)) {
            Ok(metadata) => reply.attr(&TTL, &self.attr(&metadata)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let inode = self.inode(node);
        let changed = size
            .map_or(Ok(()), |size| self.disk.truncate(inode, size))
            .and_then(|()| self.disk.set_owner_and_mode(inode, (uid, gid), mode))
            .and_then(|()| self.disk.attributes(inode));
        match changed {
            Ok(metadata) => reply.attr(&TTL, &self.attr(&metadata)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.entry(reply, self.disk.make(self.inode(parent), name.as_bytes(), mode & !umask, true));
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.disk.make(self.inode(parent), name.as_bytes(), mode & !umask, false) {
            Ok(metadata) => {
                let attr = self.attr(&metadata);
                reply.created(&TTL, &attr, GENERATION, FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => {
                eprintln!("faultfs: create {name:?}: {error}");
                reply.error(error.into());
            }
        }
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(&format!("unlink {name:?}"), reply, self.disk.remove(self.inode(parent), name.as_bytes(), false));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(&format!("rmdir {name:?}"), reply, self.disk.remove(self.inode(parent), name.as_bytes(), true));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = (self.inode(parent), self.inode(new_parent));
        let what = format!("rename {name:?} to {new_name:?}");
        empty(&what, reply, self.disk.rename((from, name.as_bytes()), (to, new_name.as_bytes())));
    }

    fn open(&self, _request: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Nothing is cached above: every read and write comes here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk.read(self.inode(node), offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk.write(self.inode(node), offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => {
                eprintln!("faultfs: write of {} bytes at {offset}: {error}", data.len());
                reply.error(error.into());
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, node: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty("fsync", reply, self.disk.sync(self.inode(node)));
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.disk.list(self.inode(node)) {
            Ok(list) => {
                let mut listings = self.listings.lock();
                listings.0 += 1;
                let handle = listings.0;
                listings.1.insert(handle, Arc::new(list));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(&self, _: &Request, node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(list) = self.listings.lock().1.get(&handle.0).cloned() else { return reply.error(Errno::EBADF) };
        let dots = [(b".".as_slice(), node, true), (b"..".as_slice(), node, true)];
        let entries = list.iter().map(|(name, inode, is_directory)| (&name[..], self.node(*inode), *is_directory));
        for (index, (name, node, is_directory)) in dots.into_iter().chain(entries).enumerate().skip(offset as usize) {
            if reply.add(node, index as u64 + 1, kind(is_directory), OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().1.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, node: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty("fsync of a directory", reply, self.disk.sync_names(self.inode(node)));
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        match self.disk.space() {
            Ok((space, is_full)) => {
                let left = |blocks: u64| if is_full { 0 } else { blocks };
                reply.statfs(
                    space.blocks(),
                    left(space.blocks_free()),
                    left(space.blocks_available()),
                    space.files(),
                    space.files_free(),
                    space.block_size() as u32,
                    255,
                    space.fragment_size() as u32,
                );
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty("fallocate", reply, self.disk.allocate(self.inode(node), offset, length, mode));
    }

    fn lseek(&self, _: &Request, node: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        match self.disk.seek(self.inode(node), offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(error.into()),
        }
    }
}
