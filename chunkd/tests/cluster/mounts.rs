//! Small file systems that only this test sees, and that go with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// A mounted file system, unmounted when dropped.
pub struct Mounted {
    pub path: PathBuf,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Gives this thread, and those it starts, mounts of their own: whatever becomes of the test, nothing stays behind.
fn unshare_mounts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[allow(unsafe_code, reason = "nix has it only with another feature")]
        // SAFETY: the call takes no pointers.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        assert_eq!(result, 0, "these tests need root");
        run("mount", &["--make-rprivate", "/"]);
    });
}

/// A tmpfs of `bytes`.
pub fn tmpfs(path: &Path, bytes: u64) -> Mounted {
    unshare_mounts();
    std::fs::create_dir_all(path).unwrap();
    let path_text = path.to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "dfs-test", path_text]);
    Mounted { path: path.to_owned() }
}

/// An ext4 of `bytes` in the file `image`, which is made.
pub fn ext4(image: &Path, bytes: u64, path: &Path) -> Mounted {
    unshare_mounts();
    std::fs::create_dir_all(path).unwrap();
    std::fs::File::create(image).unwrap().set_len(bytes).unwrap();
    let image = image.to_str().unwrap();
    run("mkfs.ext4", &["-q", "-m", "0", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1", image]);
    run("mount", &["-o", "loop,errors=continue", image, path.to_str().unwrap()]);
    Mounted { path: path.to_owned() }
}
