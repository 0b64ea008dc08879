//! Becoming a program on a node: in its network, with the host that it believes in.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What tells a program whether its host was restarted.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Returns the words before a command line that make it run on a node: [`enter`] reads them.
///
/// With `boot_id`, the file of that name stands for the kernel's boot id; then `hidden` mount points are not there for
/// the program either, so that it does not keep alive what others unmount.
pub fn prefix(namespace: &Path, boot_id: Option<&Path>, hidden: &[PathBuf]) -> Result<Vec<OsString>> {
    let mut words: Vec<OsString> = vec![std::env::current_exe()?.into(), "enter".into(), namespace.into()];
    words.push(boot_id.map_or_else(|| "-".into(), Into::into));
    words.extend(hidden.iter().map(Into::into));
    words.push("--".into());
    Ok(words)
}

/// Moves this thread to a node's network.
///
/// # Errors
///
/// What the kernel says.
pub fn join_network(namespace: &Path) -> Result<()> {
    let file = File::open(namespace).with_context(|| format!("opening {}", namespace.display()))?;
    // SAFETY: it takes two integers, and the descriptor is open.
    #[allow(unsafe_code, reason = "neither std nor nix, as it is built here, has it")]
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    ensure!(result == 0, "entering {}: {}", namespace.display(), std::io::Error::last_os_error());
    Ok(())
}

/// Becomes the program that `words`, those after `enter` that [`prefix`] made, name. Returns only to say what failed.
///
/// # Errors
///
/// What failed.
pub fn enter(words: &[OsString]) -> Result<()> {
    let end = words.iter().position(|word| word == "--").context("no -- in the command line")?;
    let ([namespace, boot_id, hidden @ ..], [program, arguments @ ..]) = (&words[..end], &words[end + 1..]) else {
        bail!("enter NAMESPACE BOOT_ID HIDDEN… -- PROGRAM ARGUMENT…");
    };
    join_network(Path::new(namespace))?;
    if boot_id != "-" {
        // SAFETY: it takes an integer, and this process has one thread.
        #[allow(unsafe_code, reason = "neither std nor nix, as it is built here, has it")]
        let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        ensure!(result == 0, "leaving the mount namespace: {}", std::io::Error::last_os_error());
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
        for point in hidden {
            let _ = umount2(Path::new(point), MntFlags::MNT_DETACH);
        }
        mount(Some(Path::new(boot_id)), BOOT_ID, none, MsFlags::MS_BIND, none).context("covering the boot id")?;
    }
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("becoming {program:?}"))
}
