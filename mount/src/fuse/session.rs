//! The FUSE session: mounts, serves with several workers, unmounts.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Config, MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::adapter::Adapter;
use super::mount_point::MountPoint;
use super::wait_pools::WaitPools;
use crate::fs::FileSystem;
use crate::metrics::Metrics;

/// How far the kernel reads ahead, in KiB: as much as one request carries. Its own default is 128.
const READ_AHEAD_KIB: u32 = 1024;

/// A mount option that the kernel's VFS understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfsOption {
    /// Set-id bits count.
    Suid,
    /// Set-id bits do not count.
    NoSuid,
    /// Device nodes are devices.
    Dev,
    /// Device nodes cannot be opened.
    NoDev,
    /// Programs can be run.
    Exec,
    /// Programs cannot be run.
    NoExec,
    /// Times of reading are kept by the kernel's rules; dfs does not change them on reads, whatever is said here.
    Atime,
    /// Times of reading are not kept.
    NoAtime,
    /// Changes of names are on stable media before the call returns.
    DirSync,
    /// Everything is.
    Sync,
    /// The contrary of `Sync`.
    Async,
    /// One of the words about times of reading that change nothing here (`relatime`, `strictatime`, `lazytime`, …).
    Idle,
}

impl VfsOption {
    /// What mount(8) calls them.
    pub const WORDS: [(&str, Self); 19] = [
        ("suid", Self::Suid),
        ("nosuid", Self::NoSuid),
        ("dev", Self::Dev),
        ("nodev", Self::NoDev),
        ("exec", Self::Exec),
        ("noexec", Self::NoExec),
        ("atime", Self::Atime),
        ("noatime", Self::NoAtime),
        ("relatime", Self::Idle),
        ("norelatime", Self::Idle),
        ("strictatime", Self::Idle),
        ("nostrictatime", Self::Idle),
        ("diratime", Self::Idle),
        ("nodiratime", Self::Idle),
        ("lazytime", Self::Idle),
        ("nolazytime", Self::Idle),
        ("dirsync", Self::DirSync),
        ("sync", Self::Sync),
        ("async", Self::Async),
    ];

    /// Returns the option that mount(8) calls `word`, if there is one.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.into_iter().find(|(known, _)| *known == word).map(|(_, option)| option)
    }

    fn option(self) -> Option<MountOption> {
        Some(match self {
            Self::Suid => MountOption::Suid,
            Self::NoSuid => MountOption::NoSuid,
            Self::Dev => MountOption::Dev,
            Self::NoDev => MountOption::NoDev,
            Self::Exec => MountOption::Exec,
            Self::NoExec => MountOption::NoExec,
            Self::Atime => MountOption::Atime,
            Self::NoAtime => MountOption::NoAtime,
            Self::DirSync => MountOption::DirSync,
            Self::Sync => MountOption::Sync,
            Self::Async => MountOption::Async,
            Self::Idle => return None,
        })
    }

    /// Returns the option that cannot stand beside this one.
    fn contrary(self) -> Option<Self> {
        Some(match self {
            Self::Suid => Self::NoSuid,
            Self::NoSuid => Self::Suid,
            Self::Dev => Self::NoDev,
            Self::NoDev => Self::Dev,
            Self::Exec => Self::NoExec,
            Self::NoExec => Self::Exec,
            Self::Atime => Self::NoAtime,
            Self::NoAtime => Self::Atime,
            Self::Sync => Self::Async,
            Self::Async => Self::Sync,
            Self::DirSync | Self::Idle => return None,
        })
    }
}

/// How the kernel is asked to mount.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The first column of /proc/mounts.
    pub source: String,
    /// Nothing can be changed.
    pub read_only: bool,
    /// Other users may enter too. Permissions are checked by the kernel in any case.
    pub allow_other: bool,
    /// The rest, a later one over an earlier one that contradicts it.
    pub vfs: Vec<VfsOption>,
    /// Threads that take requests; 3 at least.
    pub workers: usize,
}

/// A mounted file system that is being served.
#[derive(Debug)]
pub struct FuseSession {
    mount_point: MountPoint,
    device: Option<String>,
    serving: JoinHandle<io::Result<()>>,
}

impl FuseSession {
    /// Mounts `fs` and begins to serve it.
    ///
    /// # Errors
    ///
    /// Whatever the kernel or fusermount3 says.
    pub fn start(
        fs: Arc<FileSystem>,
        pools: WaitPools,
        mount_point: &MountPoint,
        options: &SessionOptions,
        metrics: &Metrics,
    ) -> io::Result<Self> {
        check_device()?;
        let workers = options.workers.max(3);
        let adapter = Adapter::new(fs, pools, workers, metrics);
        let mut config = Config::default();
        config.mount_options = mount_options(options, nix::unistd::geteuid().is_root());
        config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(workers);
        config.clone_fd = true;
        let set_notifier = adapter.notifier_slot();
        let session = Session::new(adapter, mount_point.path(), &config)?;
        set_notifier(session.notifier());
        let device = mount_point.mounted().map(|mounted| mounted.device);
        let serving = std::thread::Builder::new().name("dfs-fuse".into()).spawn(move || session.run())?;
        if let Some(device) = &device {
            raise_read_ahead(device);
        }
        Ok(Self { mount_point: mount_point.clone(), device, serving })
    }

    /// Returns what unmounts it, from any thread.
    pub fn unmounter(&self) -> FuseUnmounter {
        FuseUnmounter { mount_point: self.mount_point.clone(), device: self.device.clone() }
    }

    /// Waits until it is unmounted, by whomever.
    ///
    /// # Errors
    ///
    /// If serving ended in another way.
    pub fn wait(self) -> io::Result<()> {
        self.serving.join().unwrap_or_else(|_| Err(io::Error::other("a thread that serves the kernel panicked")))
    }
}

/// Unmounts a session's mount point, and no other mount that may be there by then.
#[derive(Clone, Debug)]
pub struct FuseUnmounter {
    mount_point: MountPoint,
    device: Option<String>,
}

impl FuseUnmounter {
    /// Unmounts. Does nothing if that has happened.
    ///
    /// # Errors
    ///
    /// EBUSY while a program uses it; what fusermount3 says.
    pub fn unmount(&self) -> io::Result<()> {
        match (self.mount_point.mounted(), &self.device) {
            (Some(mounted), Some(device)) if mounted.device == *device && mounted.kind == MountPoint::FS_TYPE => {}
            (Some(mounted), None) if mounted.kind == MountPoint::FS_TYPE => {}
            _ => return Ok(()),
        }
        let path = self.mount_point.path();
        match umount2(path, MntFlags::empty()) {
            Ok(()) => Ok(()),
            // Not root: the helper that mounted unmounts too.
            Err(Errno::EPERM) => fusermount_unmount(path),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn fusermount_unmount(path: &Path) -> io::Result<()> {
    let output = Command::new("fusermount3").arg("-u").arg("--").arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn mount_options(options: &SessionOptions, is_root: bool) -> Vec<MountOption> {
    let mut list = vec![
        MountOption::FSName(if is_root { options.source.clone() } else { escaped(&options.source) }),
        // fuser's own `Subtype` reaches fusermount3 but not mount(2).
        MountOption::CUSTOM("subtype=dfs".into()),
        // The master does not check permissions: the kernel must.
        MountOption::DefaultPermissions,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    let mut vfs: Vec<VfsOption> = Vec::new();
    for &option in &options.vfs {
        vfs.retain(|&earlier| Some(earlier) != option.contrary() && earlier != option);
        vfs.push(option);
    }
    list.extend(vfs.into_iter().filter_map(VfsOption::option));
    list
}

/// Opens /dev/fuse for a moment, because the error of an attempt to mount does not say that this is what went wrong.
fn check_device() -> io::Result<()> {
    let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/fuse") else { return Ok(()) };
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "load the fuse module (modprobe fuse), or give the container --device /dev/fuse",
        io::ErrorKind::PermissionDenied => "users who mount must be able to read and write it (chmod 666 /dev/fuse)",
        _ => "the fuse module may be missing (modprobe fuse)",
    };
    Err(io::Error::new(error.kind(), format!("/dev/fuse: {error}; {hint}")))
}

/// fusermount3 takes options as one list: a comma in a value has a backslash before it.
fn escaped(source: &str) -> String {
    source.replace('\\', "\\\\").replace(',', "\\,")
}

/// Lets the kernel read ahead as far as one request carries. Only root may; without it, it stays as it is.
fn raise_read_ahead(device: &str) {
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%file, %error, "the kernel's read-ahead stays at its default");
    }
}

/// Returns the path as text for a message to the master.
pub fn path_text(path: &Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_option_overrules_its_contrary() {
        let options = SessionOptions {
            source: "a,b:7000".into(),
            read_only: true,
            allow_other: true,
            vfs: vec![VfsOption::Suid, VfsOption::NoSuid, VfsOption::NoSuid, VfsOption::Idle, VfsOption::Dev],
            workers: 8,
        };
        let expected = [
            MountOption::FSName("a,b:7000".into()),
            MountOption::CUSTOM("subtype=dfs".into()),
            MountOption::DefaultPermissions,
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::Dev,
        ];
        assert_eq!(mount_options(&options, true), expected);
        assert_eq!(mount_options(&options, false)[0], MountOption::FSName("a\\,b:7000".into()));
    }

    #[test]
    fn unknown_words_are_no_options() {
        assert_eq!(VfsOption::from_word("noatime"), Some(VfsOption::NoAtime));
        assert_eq!(VfsOption::from_word("relatime"), Some(VfsOption::Idle));
        assert_eq!(VfsOption::from_word("uid=0"), None);
    }
}
