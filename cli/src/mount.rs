//! `dfs mount` and `mount.fuse.dfs`: mounts in the foreground, or in a background process that is left behind once
//! the mount is there.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use dfs_mount::{MountConfig, MountPoint, Policy};

use crate::exit::{refused, usage};
use crate::mount_options::MountOptions;
use crate::signals::StopSignals;
use crate::{mount_options, mount_point, source};

/// What the background process writes to its parent once the mount is there.
const READY: &str = "ready";

/// One mount to be made.
pub struct Request {
    /// `HOST[:PORT][,…][:/SUBDIR]`, shown as the first column of /proc/mounts.
    pub source: String,
    /// The mount point.
    pub directory: PathBuf,
    /// What `-o` said.
    pub options: MountOptions,
}

/// How the mount is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// In this process, log on standard error, until unmounted or told to stop.
    Foreground,
    /// As the process left behind: tells its parent, then lets go of its terminal.
    Background,
}

/// Starts the background process and waits until it has mounted.
///
/// # Errors
///
/// The background process's own error, with its exit code.
pub fn detached(request: &Request, option_list: &str, global_flags: &[String]) -> anyhow::Result<()> {
    if request.options.remount {
        return remount(request, option_list);
    }
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(global_flags).arg("mount").arg(&request.source).arg(&request.directory).arg("--background");
    if !option_list.is_empty() {
        command.arg("-o").arg(option_list);
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting the mount process")?;
    let output = child.stdout.take().context("the mount process has an output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).context("waiting for the mount process")?;
    if line.trim_end() == READY {
        return Ok(());
    }
    let status = child.wait().context("waiting for the mount process")?;
    // It has printed its own error: only the exit code is handed on.
    std::process::exit(status.code().unwrap_or(1));
}

/// Mounts and serves until it is unmounted or a stop signal arrives.
///
/// # Errors
///
/// Whatever keeps it from mounting, or went wrong while dirty data was written at the end.
pub fn serve(request: Request, ground: Ground, signals: StopSignals) -> anyhow::Result<()> {
    let source::Source { masters, subdir } = source::parse(&request.source)?;
    let options = request.options;
    if options.remount {
        return Err(usage("remount changes a mount that is there; use mount -o remount"));
    }
    if ground == Ground::Background {
        // The end of the terminal's session must not end the mount.
        nix::unistd::setsid().context("leaving the terminal's session")?;
    }
    check_mount_point(&request.directory, options.nonempty)?;
    let mounted = dfs_mount::mount(MountConfig {
        masters,
        subdir,
        mount_point: request.directory.clone(),
        source: request.source,
        read_only: options.read_only,
        vfs_options: options.vfs,
        // Who mounts as root mounts for all users of the host, as with any file system; the kernel checks permissions.
        allow_other: options.allow_other || nix::unistd::geteuid().is_root(),
        policy: options.soft_seconds.map_or(Policy::Hard, |seconds| Policy::Soft { ms: seconds * 1_000 }),
        http: options.http,
        dirty_bytes_max: options.dirty_bytes,
        read_ahead_bytes: options.read_ahead_bytes,
        workers: options.workers,
    })
    .map_err(|error| explain(&error, &request.directory))?;
    let unmounter = mounted.unmounter();
    let stop = signals.events()?;
    std::thread::Builder::new().name("unmounter".into()).spawn(move || {
        // A second signal while the first unmount is under way (dirty data being written) asks again.
        for signal in stop {
            tracing::info!(%signal, "unmounting");
            if let Err(error) = unmounter.unmount() {
                tracing::warn!(%error, "cannot unmount");
            }
        }
    })?;
    if ground == Ground::Background {
        println!("{READY}");
        std::io::stdout().flush().context("telling the parent")?;
        let_go_of_terminal(options.log.as_deref())?;
    }
    tracing::info!(mount_point = %request.directory.display(), http = %mounted.http(), "mounted");
    mounted.wait()?;
    tracing::info!("unmounted");
    Ok(())
}

fn explain(error: &dfs_mount::MountError, directory: &Path) -> anyhow::Error {
    let text = format!("cannot mount on {}: {error}", mount_point::shown(directory));
    if error.is_unreachable() { crate::exit::unreachable(text) } else { refused(text) }
}

/// Refuses a mount point that is missing, no directory, mounted already, or not empty.
///
/// # Errors
///
/// What is wrong with it and what to do.
pub fn check_mount_point(directory: &Path, nonempty: bool) -> anyhow::Result<()> {
    let shown = mount_point::shown(directory);
    // Asked of the kernel first: to look into a dead mount would fail, or hang, without saying why.
    if let Some(kind) = MountPoint::mounted_type(directory) {
        return Err(refused(format!("{shown} is mounted already ({kind}): unmount it first (umount {shown})")));
    }
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return Err(refused(format!("mount point {shown}: {error}; an empty directory is expected"))),
    };
    if !nonempty && entries.count() > 0 {
        return Err(refused(format!(
            "mount point {shown} is not empty; empty it, or hide its content with -o nonempty"
        )));
    }
    Ok(())
}

/// Points standard input, output and error at `log`, or at nothing: whoever started us may wait for their end.
fn let_go_of_terminal(log: Option<&str>) -> anyhow::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
    let target = match log {
        Some(path) => {
            OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("log file {path}"))?
        }
        None => null.try_clone().context("/dev/null")?,
    };
    nix::unistd::dup2_stdin(&null).context("letting go of standard input")?;
    nix::unistd::dup2_stdout(&target).context("letting go of standard output")?;
    nix::unistd::dup2_stderr(&target).context("letting go of standard error")?;
    Ok(())
}

/// Hands a change of an existing mount's flags to the kernel, which keeps them itself.
fn remount(request: &Request, option_list: &str) -> anyhow::Result<()> {
    let status = Command::new("mount")
        .args(["-i", "-o", &mount_options::for_remount(option_list)])
        .arg(&request.directory)
        .status()
        .context("running mount(8), which remounts")?;
    if status.success() {
        return Ok(());
    }
    Err(refused(format!("remounting {} failed", mount_point::shown(&request.directory))))
}

/// What mount(8) gives to `mount.fuse.dfs`: `SRC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`.
pub struct HelperArguments {
    /// The request.
    pub request: Request,
    /// The option list as it was given.
    pub option_list: String,
    /// `-f`: check everything, mount nothing.
    pub fake: bool,
}

/// Reads the arguments of mount(8)'s helper.
///
/// # Errors
///
/// What is wrong with them, as an error of use.
pub fn helper_arguments(arguments: impl IntoIterator<Item = String>) -> anyhow::Result<HelperArguments> {
    let mut words = Vec::new();
    let (mut lists, mut fake) = (Vec::new(), false);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = |flag: &str| arguments.next().ok_or_else(|| usage(format!("{flag} needs a value")));
        match argument.as_str() {
            "-o" => lists.push(value("-o")?),
            "-t" | "-N" => drop(value(&argument)?),
            flags
                if flags.starts_with('-')
                    && flags.len() > 1
                    && flags[1..].chars().all(|flag| "sfnv".contains(flag)) =>
            {
                fake |= flags.contains('f');
            }
            flag if flag.starts_with('-') => return Err(usage(format!("unknown flag {flag:?} of a mount helper"))),
            _ => words.push(argument),
        }
    }
    let option_list = lists.join(",");
    let options = mount_options::parse(&option_list)?;
    let [source, directory] = <[String; 2]>::try_from(words)
        .map_err(|words| usage(format!("SRC DIR [-o OPTIONS] is expected, got {} words: {words:?}", words.len())))?;
    source::parse(&source)?;
    let request = Request { source, directory: PathBuf::from(directory), options };
    Ok(HelperArguments { request, option_list, fake })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> anyhow::Result<HelperArguments> {
        helper_arguments(line.split_whitespace().map(String::from))
    }

    #[test]
    fn mount_8_is_understood() {
        let arguments = read("m:7000:/a /mnt -v -o rw,noatime -t fuse.dfs").expect("understood");
        assert_eq!(arguments.request.source, "m:7000:/a");
        assert_eq!(arguments.request.options.vfs, [dfs_mount::VfsOption::NoAtime]);
        assert!(!arguments.fake);
        assert!(read("m /mnt -nf").expect("understood").fake);
        assert!(read("m /mnt -o remount,ro").expect("understood").request.options.remount);
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in ["m", "m /mnt extra", "m /mnt -o", "m /mnt -x", "m /mnt -o bogus", "m:x /mnt"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
