//! The directory that a file system is mounted on: what is there now, according to the kernel.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The type that `/proc/mounts` and df show.
pub const FS_TYPE: &str = "fuse.dfs";

/// Returns the file-system type of the topmost mount at exactly `path`, or `None`. Does not touch the mount itself,
/// so it cannot hang on a dead one.
pub fn mounted_type(path: &Path) -> Option<String> {
    let mounts = std::fs::read("/proc/self/mounts").ok()?;
    let wanted = normalized(path);
    let mut found = None;
    for line in mounts.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let (_, point, kind) = (fields.next(), fields.next(), fields.next());
        if let (Some(point), Some(kind)) = (point, kind)
            && unescape(point) == wanted
        {
            found = Some(String::from_utf8_lossy(kind).into_owned());
        }
    }
    found
}

/// Returns `path` as the kernel would show it: absolute, its parent's links resolved, itself not looked at.
pub fn normalized(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => std::fs::canonicalize(parent).map_or(absolute.clone(), |real| real.join(name)),
        _ => absolute,
    }
}

/// Undoes the octal escapes of /proc/mounts (`\040` for a space).
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Detaches whatever is mounted at `path`; programs that are inside keep what they have open.
pub fn detach(path: &Path) {
    if let Err(error) = nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH) {
        tracing::debug!(path = %path.display(), %error, "nothing to detach");
    }
}

/// Returns the bytes of a path as they are shown in messages.
pub fn shown(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_mounts_is_read() {
        assert_eq!(mounted_type(Path::new("/proc")).as_deref(), Some("proc"));
        assert_eq!(mounted_type(Path::new("/proc/self")), None);
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(b"/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape(b"/plain\\04"), PathBuf::from("/plain\\04"));
    }
}
