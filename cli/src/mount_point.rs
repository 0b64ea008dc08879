//! The directory that a file system is mounted on: how it is shown, and how it is got free.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
