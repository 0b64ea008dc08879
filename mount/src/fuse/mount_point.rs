//! The directory that is mounted on: what must be true of it before, and what the kernel says of it after.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A directory something may be mounted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    path: PathBuf,
}

/// Why a directory cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum MountPointError {
    /// It cannot be looked at.
    #[error("mount point {}: {error}; an existing directory is expected", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// It is something else.
    #[error("mount point {} is not a directory", path.display())]
    NotDirectory {
        /// What it is.
        path: PathBuf,
    },
    /// A dfs is mounted there, alive or dead.
    #[error("{} is mounted already ({kind}): unmount it first (umount {})", path.display(), path.display())]
    Mounted {
        /// The directory.
        path: PathBuf,
        /// The type of what is mounted.
        kind: String,
    },
}

impl MountPoint {
    /// The type of our mounts, as the kernel names it and df shows it.
    pub const FS_TYPE: &str = "fuse.dfs";

    /// Checks that something can be mounted on `path`. Whether it may have content is the caller's to decide.
    ///
    /// # Errors
    ///
    /// [`MountPointError`].
    pub fn check(path: &Path) -> Result<Self, MountPointError> {
        let unusable = |error| MountPointError::Unusable { path: path.to_owned(), error };
        // The kernel's table first: to look into a dead mount fails or hangs.
        let absolute = std::path::absolute(path).map_err(unusable)?;
        if let Some(mounted) = Mounted::find(&absolute).filter(|mounted| mounted.kind == Self::FS_TYPE) {
            return Err(MountPointError::Mounted { path: path.to_owned(), kind: mounted.kind });
        }
        let path = path.canonicalize().map_err(unusable)?;
        if !path.is_dir() {
            return Err(MountPointError::NotDirectory { path });
        }
        if let Some(mounted) = Mounted::find(&path).filter(|mounted| mounted.kind == Self::FS_TYPE) {
            return Err(MountPointError::Mounted { path, kind: mounted.kind });
        }
        Ok(Self { path })
    }

    /// Returns the type of the topmost mount at exactly `path`, or `None`. Does not touch the mount itself, so it cannot
    /// hang on a dead one.
    pub fn mounted_type(path: &Path) -> Option<String> {
        Mounted::find(&normalized(path)).map(|mounted| mounted.kind)
    }

    /// Returns the directory, absolute and without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what is mounted there now.
    pub fn mounted(&self) -> Option<Mounted> {
        Mounted::find(&self.path)
    }
}

/// Returns `path` as the kernel would show it: absolute, its parent's links resolved, itself not looked at.
fn normalized(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => std::fs::canonicalize(parent).map_or(absolute.clone(), |real| real.join(name)),
        _ => absolute,
    }
}

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// `major:minor` of its device.
    pub device: String,
    /// Its type.
    pub kind: String,
}

impl Mounted {
    fn find(path: &Path) -> Option<Self> {
        let table = std::fs::read("/proc/self/mountinfo").ok()?;
        Self::find_in(&table, path)
    }

    /// Returns the topmost mount on `path` in a table of proc_pid_mountinfo(5).
    fn find_in(table: &[u8], path: &Path) -> Option<Self> {
        let lines = table.split(|&byte| byte == b'\n');
        let mut on_path = lines.filter(|line| {
            line.split(|&byte| byte == b' ').nth(4).is_some_and(|at| unescape(at) == path.as_os_str().as_bytes())
        });
        let line = String::from_utf8_lossy(on_path.next_back()?).into_owned();
        let device = line.split(' ').nth(2)?.to_owned();
        let kind = line.split(" - ").nth(1)?.split(' ').next()?.to_owned();
        Some(Self { device, kind })
    }
}

/// Undoes the octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                path.push(escaped);
                rest = &after[3..];
            }
            None => {
                path.push(byte);
                rest = after;
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
40 22 0:50 / /mnt/a\\040b rw,nosuid - fuse.dfs host:7000 rw,user_id=0\n\
41 22 0:51 / /mnt/twice rw - tmpfs none rw\n\
42 41 0:52 / /mnt/twice rw master:9 - fuse.dfs x rw\n";

    #[test]
    fn the_topmost_mount_is_found_whatever_its_name() {
        let find = |path: &str| Mounted::find_in(TABLE, Path::new(path)).map(|found| (found.device, found.kind));
        assert_eq!(find("/mnt/a b"), Some(("0:50".into(), "fuse.dfs".into())));
        assert_eq!(find("/mnt/twice"), Some(("0:52".into(), "fuse.dfs".into())));
        assert_eq!(find("/mnt"), None);
    }

    #[test]
    fn the_kernels_table_is_read() {
        assert_eq!(MountPoint::mounted_type(Path::new("/proc")).as_deref(), Some("proc"));
        assert_eq!(MountPoint::mounted_type(Path::new("/proc/self")), None);
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(b"/a\\040b\\134c"), b"/a b\\c");
        assert_eq!(unescape(b"/plain\\04"), b"/plain\\04");
    }

    #[test]
    fn what_cannot_be_mounted_on_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(MountPoint::check(directory.path()).is_ok());
        let refused = |path: &Path| MountPoint::check(path).unwrap_err().to_string();
        assert!(refused(&file).contains("is not a directory"), "{}", refused(&file));
        let missing = directory.path().join("missing");
        assert!(refused(&missing).contains("an existing directory is expected"), "{}", refused(&missing));
    }
}
