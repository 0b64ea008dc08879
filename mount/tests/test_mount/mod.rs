//! A real mount, over a master in this process. Needs root and /dev/fuse; without them there is nothing to test.

#![allow(dead_code, clippy::disallowed_methods, reason = "each test uses a part; a test uses files")]

use std::path::{Path, PathBuf};

use dfs_mount::{MountConfig, MountError, Mounted, Policy, Unmounter, VfsOption, mount};

use super::fake_master::FakeMaster;

/// A mount that goes with its test, passed or failed.
pub struct TestMount {
    pub master: FakeMaster,
    pub directory: tempfile::TempDir,
    unmounter: Unmounter,
    mounted: Option<Mounted>,
}

impl TestMount {
    /// `None`: this machine cannot mount.
    pub fn new(vfs_options: Vec<VfsOption>) -> Option<Self> {
        Self::with(Policy::Soft { ms: 5_000 }, vfs_options)
    }

    /// `None`: this machine cannot mount.
    pub fn with(policy: Policy, vfs_options: Vec<VfsOption>) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let master = FakeMaster::start();
        let directory = tempfile::tempdir().expect("a directory");
        let mounted = mount(MountConfig {
            masters: vec![master.address.clone()],
            subdir: Vec::new(),
            mount_point: directory.path().to_owned(),
            source: format!("{}:/", master.address),
            read_only: false,
            vfs_options,
            allow_other: true,
            policy,
            http: None,
            dirty_bytes_max: 16 << 20,
            read_ahead_bytes: 1 << 20,
            workers: 4,
        })
        .expect("mounts");
        Some(Self { master, directory, unmounter: mounted.unmounter(), mounted: Some(mounted) })
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Returns the mount's page of metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let http = self.mounted.as_ref().expect("is mounted").http();
        let page = page(http);
        let line = page.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or_else(|| panic!("{name} in {page}"));
        value.parse().expect("a number")
    }

    /// Takes the mount away as `umount` does.
    pub fn detach(&self, flags: nix::mount::MntFlags) {
        nix::mount::umount2(self.directory.path(), flags).expect("unmounts");
    }

    /// Waits until the mount's process would end.
    pub fn wait(&mut self) -> Result<(), MountError> {
        self.mounted.take().expect("was mounted").wait()
    }

    pub fn unmount(&mut self) {
        self.unmounter.unmount().expect("unmounts");
        self.wait().expect("ends cleanly");
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        if self.mounted.is_some() {
            // A test that failed may still hold something open.
            let _ = nix::mount::umount2(self.directory.path(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn page(http: std::net::SocketAddr) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(http).expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("asks");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("answers");
    page
}
