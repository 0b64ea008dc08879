//! Between our types and those of fuser.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_proto::{Kind, UnixNanos};
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::fs::Attr;
use crate::remote::TimeChange;

/// What programs are told to use as the size of their buffers at least, and the unit that sparse files are made of.
const BLOCK_BYTES: u32 = 4096;
const STAT_BLOCK_BYTES: u64 = 512;

/// Returns the kind as the kernel calls it.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// Returns the kind in a mode, if it is one that `mknod` can make.
pub fn kind_of_mode(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Some(Kind::File),
        libc::S_IFIFO => Some(Kind::Fifo),
        libc::S_IFSOCK => Some(Kind::Socket),
        libc::S_IFCHR => Some(Kind::CharDevice),
        libc::S_IFBLK => Some(Kind::BlockDevice),
        _ => None,
    }
}

/// Returns attributes as the kernel takes them, under the number `node`.
pub fn file_attr(node: INodeNo, attr: &Attr) -> FileAttr {
    let allocated = match attr.kind {
        Kind::File if attr.is_inline => attr.size,
        Kind::File => attr.size.min(attr.chunks.saturating_mul(attr.chunk_size())),
        Kind::Directory | Kind::Symlink => attr.size,
        _ => 0,
    };
    FileAttr {
        ino: node,
        size: attr.size,
        blocks: allocated.div_ceil(STAT_BLOCK_BYTES),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: kernel_device(attr.rdev),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Returns the time as fuser takes it.
pub fn system_time(time: UnixNanos) -> SystemTime {
    let distance = Duration::from_nanos(time.0.unsigned_abs());
    if time.0 >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// Returns a time that fuser read from a request.
///
/// fuser 0.18 takes the nanoseconds of a time before 1970 as counting down (`system_time_from_time`), while the kernel
/// counts them up from a second rounded down; so they are turned round here.
pub fn unix_nanos(time: SystemTime) -> UnixNanos {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => UnixNanos::from_parts(i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            UnixNanos::from_parts(-seconds, before.subsec_nanos())
        }
    }
}

/// Returns what utimensat(2) asks for.
pub fn time_change(time: Option<TimeOrNow>) -> TimeChange {
    match time {
        None => TimeChange::Keep,
        Some(TimeOrNow::Now) => TimeChange::Now,
        Some(TimeOrNow::SpecificTime(time)) => TimeChange::To(unix_nanos(time)),
    }
}

/// Returns a `dev_t` in the 32 bits the kernel uses for it (`new_encode_dev`).
fn kernel_device(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Returns the `dev_t` in the kernel's 32 bits (`new_decode_dev`).
pub fn device(kernel: u32) -> u64 {
    let major = (kernel & 0xf_ff00) >> 8;
    let minor = (kernel & 0xff) | ((kernel >> 12) & 0xf_ff00);
    libc::makedev(major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::attr::tests::attr;

    #[test]
    fn times_before_1970_reach_the_kernel_and_come_back() {
        assert_eq!(system_time(UnixNanos(-1)), UNIX_EPOCH - Duration::from_nanos(1));
        // The kernel's (-1 s, 999,999,999 ns), as fuser reads it.
        let read = UNIX_EPOCH - Duration::new(1, 999_999_999);
        assert_eq!(unix_nanos(read), UnixNanos(-1));
        assert_eq!(unix_nanos(UNIX_EPOCH - Duration::new(2, 0)), UnixNanos(-2_000_000_000));
        assert_eq!(unix_nanos(UNIX_EPOCH + Duration::new(2, 5)), UnixNanos(2_000_000_005));
    }

    #[test]
    fn devices_survive_the_kernel_s_encoding() {
        for (major, minor) in [(1, 3), (8, 0), (259, 1), (4095, 0xf_ffff)] {
            let number = libc::makedev(major, minor);
            assert_eq!(device(kernel_device(number)), number, "{major}:{minor}");
        }
    }

    #[test]
    fn blocks_count_what_is_allocated() {
        let mut file = attr(5);
        file.size = 4097;
        assert_eq!(file_attr(INodeNo(5), &file).blocks, 9);
        file.is_inline = false;
        assert_eq!(file_attr(INodeNo(5), &file).blocks, 0, "a hole");
        file.chunks = 1;
        assert_eq!(file_attr(INodeNo(5), &file).blocks, 9);
    }
}
