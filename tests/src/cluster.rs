//! A cluster of real processes on loopback, its data in a temporary directory, and its mounts.
//!
//! Whatever happens to the test, nothing stays behind: dropping a [`Cluster`] unmounts and ends its own children, and
//! removes their data only once nothing is mounted there any more.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{self, Daemon};
use crate::ports::Ports;
use crate::{http, program, wait};

/// Until servers serve, after any start; a master waits 3 s for mounts it knew.
const READY: Duration = Duration::from_secs(40);
/// An orderly end: a mount writes its dirty data first.
const STOP: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 40;

/// One server of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The master.
    Master,
    /// A chunk server, from 0.
    Chunk(usize),
}

/// One mount of the cluster, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountIndex(pub usize);

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    master: Daemon,
    chunk_servers: Vec<Daemon>,
    mounts: Vec<(Daemon, PathBuf)>,
    environment: Vec<(String, String)>,
    logs_shown: bool,
    ports: Ports,
    // Last: its files are removed after everything above has ended.
    root: Option<TempDir>,
}

impl Cluster {
    /// Starts a master and `chunk_servers` chunk servers, and waits until all of them serve. `environment` has
    /// settings for each of its processes, such as `("DFS_MASTER_LEASE_MS", "1000")`.
    ///
    /// # Errors
    ///
    /// What kept it from starting; the end of each log was printed.
    pub fn start(chunk_servers: usize, environment: &[(&str, &str)]) -> Result<Self> {
        let ports = Ports::take()?;
        let root = tempfile::Builder::new().prefix("dfs-cluster-").tempdir()?;
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let address = |port: u16| format!("127.0.0.1:{port}");
        let data = |name: &str| -> Result<String> {
            let path = root.path().join(name);
            std::fs::create_dir(&path)?;
            Ok(path.to_str().context("the temporary directory is not UTF-8")?.to_owned())
        };
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let master = strings(&["master", "--data", &data("master")?, "--listen", &address(ports.at(0))]);
        let mut servers = Vec::new();
        for index in 0..chunk_servers {
            let name = format!("chunkd{index}");
            let listen = address(ports.at(10 + 2 * index as u16));
            let arguments = ["chunkd", "--data", &data(&name)?, "--master", &address(ports.at(0)), "--listen", &listen];
            servers.push(Daemon::new(&name, root.path(), strings(&arguments), &environment));
        }
        let mut cluster = Self {
            master: Daemon::new("master", root.path(), master, &environment),
            chunk_servers: servers,
            mounts: Vec::new(),
            environment,
            logs_shown: false,
            ports,
            root: Some(root),
        };
        let started = cluster.start_all();
        started.inspect_err(|_| cluster.print_logs())?;
        Ok(cluster)
    }

    fn start_all(&mut self) -> Result<()> {
        self.master.start()?;
        for server in &mut self.chunk_servers {
            server.start()?;
        }
        self.wait_ready()
    }

    /// Returns the cluster's temporary directory.
    ///
    /// # Panics
    ///
    /// Never: it is there until the cluster is dropped.
    pub fn root(&self) -> &Path {
        self.root.as_ref().expect("there until the drop").path()
    }

    /// Returns the `HOST:PORT` that mounts and `dfs status` use.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.at(0))
    }

    /// Returns the HTTP port of a server.
    pub fn http_port(&self, server: Server) -> u16 {
        match server {
            Server::Master => self.ports.at(2),
            Server::Chunk(index) => self.ports.at(11 + 2 * index as u16),
        }
    }

    /// Returns a port of the cluster's block that no server uses, by a number from 0.
    pub fn spare_port(&self, number: u16) -> u16 {
        self.ports.at(100 + number)
    }

    /// Returns all servers.
    pub fn servers(&self) -> Vec<Server> {
        let chunk_servers = (0..self.chunk_servers.len()).map(Server::Chunk);
        std::iter::once(Server::Master).chain(chunk_servers).collect()
    }

    /// Returns a server's process.
    pub fn daemon(&mut self, server: Server) -> &mut Daemon {
        match server {
            Server::Master => &mut self.master,
            Server::Chunk(index) => &mut self.chunk_servers[index],
        }
    }

    /// Waits until each server that is started says that it is well, and the master sees every chunk server online.
    ///
    /// # Errors
    ///
    /// What is not well by the deadline.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait::until("all servers are well", READY, || {
            // A dead process will not become healthy, but `until` asks again: cheap, and the text is the same.
            for server in self.servers() {
                if self.daemon(server).is_started() {
                    self.daemon(server).alive()?;
                    http::healthy(self.http_port(server))?;
                }
            }
            let started = self.chunk_servers.iter().filter(|server| server.is_started()).count();
            let status = self.status()?;
            let nodes = status["nodes"].as_array().context("status --json: no nodes")?;
            let online = nodes.iter().filter(|node| node["state"] == "online").count();
            ensure!(online >= started, "{online} of {started} chunk servers are online");
            Ok(())
        })
    }

    /// Returns what `dfs status --json` says.
    ///
    /// # Errors
    ///
    /// If it fails or says something else than JSON.
    pub fn status(&self) -> Result<Value> {
        let mut command = daemon::command()?;
        command.args(["status", "--json", "--master", &self.address()]);
        let text = program::command_ok(&mut command, Duration::from_secs(15))?;
        serde_json::from_str(&text).with_context(|| format!("status --json said {text}"))
    }

    /// Mounts the root of the file system once more. Returns which mount it is.
    ///
    /// # Errors
    ///
    /// What kept it from being mounted.
    pub fn mount(&mut self) -> Result<MountIndex> {
        self.mount_with("", "")
    }

    /// Mounts `subdir` (absolute, or empty for the root) with `-o options` (may be empty).
    ///
    /// # Errors
    ///
    /// What kept it from being mounted.
    pub fn mount_with(&mut self, subdir: &str, options: &str) -> Result<MountIndex> {
        let index = self.mounts.len();
        let point = self.root().join(format!("mnt{index}"));
        std::fs::create_dir(&point)?;
        let source = if subdir.is_empty() { self.address() } else { format!("{}:{subdir}", self.address()) };
        let point_text = point.to_str().context("the temporary directory is not UTF-8")?;
        let mut arguments: Vec<String> = ["mount", &source, point_text, "-f"].map(str::to_owned).into();
        if !options.is_empty() {
            arguments.extend(["-o".to_owned(), options.to_owned()]);
        }
        let daemon = Daemon::new(&format!("mount{index}"), self.root(), arguments, &self.environment);
        self.mounts.push((daemon, point));
        self.start_mount(MountIndex(index))?;
        Ok(MountIndex(index))
    }

    /// Returns where a mount is mounted.
    pub fn dir(&self, mount: MountIndex) -> PathBuf {
        self.mounts[mount.0].1.clone()
    }

    /// Mounts again what was unmounted or killed.
    ///
    /// # Errors
    ///
    /// What kept it from being mounted.
    pub fn start_mount(&mut self, mount: MountIndex) -> Result<()> {
        let (daemon, point) = &mut self.mounts[mount.0];
        daemon.start()?;
        let mounted = wait::until("it is mounted", READY, || {
            daemon.alive()?;
            ensure!(is_mounted(point), "{} is not in /proc/mounts", point.display());
            Ok(())
        });
        mounted.inspect_err(|_| self.print_logs())
    }

    /// Unmounts in the ordinary way and waits until the process has ended, successfully.
    ///
    /// # Errors
    ///
    /// If it does not go that way.
    pub fn unmount(&mut self, mount: MountIndex) -> Result<()> {
        let (daemon, point) = &mut self.mounts[mount.0];
        program::ok(Path::new("/"), "umount", [&*point], STOP)?;
        let status = daemon.ended(STOP).with_context(|| format!("{} was unmounted", daemon.name))?;
        ensure!(status.success(), "{} ended with {status} after umount", daemon.name);
        Ok(())
    }

    /// Kills a mount's process with SIGKILL, and clears the mount point.
    ///
    /// # Errors
    ///
    /// If it was not running, or the mount point cannot be cleared.
    pub fn kill_mount(&mut self, mount: MountIndex) -> Result<()> {
        let (daemon, point) = &mut self.mounts[mount.0];
        daemon.kill9()?;
        detach(point)
    }

    /// Kills servers with SIGKILL, all before any is started again, then starts them and waits until all are well.
    ///
    /// # Errors
    ///
    /// If one was not running, or does not come back.
    pub fn kill_and_restart(&mut self, servers: &[Server]) -> Result<()> {
        for server in servers {
            self.daemon(*server).prepare()?;
        }
        for server in servers {
            self.daemon(*server).kill9()?;
        }
        for server in servers {
            self.daemon(*server).start()?;
        }
        self.wait_ready().with_context(|| format!("{servers:?} were killed and started again"))
    }

    /// Stops everything in the orderly way: each process must end with success, and none may have panicked.
    ///
    /// # Errors
    ///
    /// What did not end as it should.
    pub fn stop(&mut self) -> Result<()> {
        for index in 0..self.mounts.len() {
            if self.mounts[index].0.is_started() {
                self.unmount(MountIndex(index))?;
            }
        }
        for server in self.servers().into_iter().rev() {
            if self.daemon(server).is_started() {
                self.daemon(server).stop(STOP)?;
            }
        }
        for daemon in self.daemons() {
            if daemon.log().contains("panicked at") {
                bail!("{} panicked", daemon.name);
            }
        }
        Ok(())
    }

    fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        std::iter::once(&self.master).chain(&self.chunk_servers).chain(self.mounts.iter().map(|(daemon, _)| daemon))
    }

    /// Prints the end of each log, once.
    pub fn print_logs(&mut self) {
        if std::mem::replace(&mut self.logs_shown, true) {
            return;
        }
        for daemon in self.daemons() {
            let log = daemon.log();
            eprintln!(
                "---- {}: the last of {} lines\n{}",
                daemon.name,
                log.lines().count(),
                program::tail(&log, LOG_LINES)
            );
            if let Some(at) = log.find("panicked at") {
                let panic: Vec<_> = log[at..].lines().take(15).collect();
                eprintln!("---- {}: a panic\n{}", daemon.name, panic.join("\n"));
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        for (daemon, point) in &mut self.mounts {
            if daemon.signal(Signal::SIGTERM).is_ok() {
                let _ = daemon.ended(Duration::from_secs(10));
            }
            if is_mounted(point) {
                let _ = daemon.kill9();
                let _ = detach(point);
            }
        }
        if self.mounts.iter().any(|(_, point)| is_mounted(point)) {
            // Removing it would remove through the mount.
            if let Some(root) = self.root.take() {
                eprintln!("still mounted below {}: left as it is", root.keep().display());
            }
        }
    }
}

/// Returns whether something is mounted at `point`, without asking the file system there.
pub fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read("/proc/self/mounts").unwrap_or_default();
    // Our own paths have no byte that the table escapes.
    table
        .split(|byte| *byte == b'\n')
        .any(|line| line.split(|byte| *byte == b' ').nth(1) == Some(point.as_os_str().as_bytes()))
}

/// Clears a mount point whose process may be dead or hang: programs that are inside keep what they have open.
///
/// # Errors
///
/// If nothing is mounted there.
pub fn detach(point: &Path) -> Result<()> {
    program::ok(Path::new("/"), "umount", ["-l".as_ref(), point.as_os_str()], Duration::from_secs(20)).map(drop)
}

/// Runs `body` on a fresh cluster of three chunk servers and stops it in the orderly way.
///
/// # Panics
///
/// If anything fails; the end of each log was printed.
pub fn with_cluster(body: impl FnOnce(&mut Cluster) -> Result<()>) {
    let mut cluster = match Cluster::start(3, &[]) {
        Ok(cluster) => cluster,
        Err(error) => panic!("{error:?}"),
    };
    let outcome = body(&mut cluster).and_then(|()| cluster.stop().context("stopping the cluster"));
    if let Err(error) = outcome {
        cluster.print_logs();
        panic!("{error:?}");
    }
}
