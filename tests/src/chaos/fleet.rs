//! The cluster of a chaos run: each server and each mount on a node of its own, chunk servers on disks that fail.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::enter;
use super::ledger::Ledger;
use super::network::{Network, NodeIndex};
use crate::cluster::is_mounted;
use crate::daemon::Daemon;
use crate::faultfs::control;
use crate::{binary, program, wait};

const PORT: u16 = 7000;
const READY: Duration = Duration::from_secs(60);
/// What `dfs status` may take on a loaded machine, while servers are away.
const ASK: Duration = Duration::from_secs(20);

/// A process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The master.
    Master,
    /// A chunk server, from 0.
    Chunk(usize),
    /// A mount, from 0.
    Mount(usize),
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Master => write!(f, "master"),
            Self::Chunk(index) => write!(f, "chunk server {index}"),
            Self::Mount(index) => write!(f, "mount {index}"),
        }
    }
}

/// How large.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Chunk servers.
    pub chunk_servers: usize,
    /// Mounts.
    pub mounts: usize,
    /// Settings of all processes, as environment variables.
    pub settings: Vec<(String, String)>,
    /// Options of the mounts.
    pub mount_options: String,
}

/// The cluster.
#[derive(Debug)]
pub struct Fleet {
    shape: Shape,
    directory: PathBuf,
    ledger: Arc<Ledger>,
    network: Network,
    master: Daemon,
    chunk_servers: Vec<Daemon>,
    mounts: Vec<Daemon>,
    disks: Vec<Child>,
}

impl Fleet {
    /// Makes the network and the disks, and starts all servers and mounts.
    ///
    /// # Errors
    ///
    /// What kept it from that.
    pub fn start(directory: &Path, ledger: &Arc<Ledger>, shape: Shape) -> Result<Self> {
        let nodes = 2 + shape.chunk_servers + shape.mounts;
        let prefix = format!("dfsc{}", std::process::id());
        let network = Network::new(&prefix, nodes, ledger)?;
        let points: Vec<PathBuf> = (0..shape.mounts).map(|index| directory.join(format!("mnt{index}"))).collect();
        for point in &points {
            std::fs::create_dir(point)?;
        }
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let master_at = format!("{}:{PORT}", network.address(node_of(&shape, Role::Master)));
        let daemon = |name: &str, role: Role, boot_id: Option<&Path>, words: Vec<String>| -> Result<Daemon> {
            let prefix = enter::prefix(&network.namespace(node_of(&shape, role)), boot_id, &points)?;
            Ok(Daemon::new(name, directory, words, &shape.settings).within(prefix))
        };
        std::fs::create_dir(directory.join("master"))?;
        let words = strings(&["master", "--data", &text(directory.join("master")), "--listen", &master_at]);
        let master = daemon("master", Role::Master, None, words)?;
        let (mut chunk_servers, mut disks, mut mounts) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..shape.chunk_servers {
            disks.push(start_disk(directory, index, ledger)?);
            let boot_id = directory.join(format!("boot{index}"));
            write_boot_id(&boot_id, index, 0)?;
            let listen = format!("{}:{PORT}", network.address(node_of(&shape, Role::Chunk(index))));
            let data = text(disk_path(directory, index).join("data"));
            let words = strings(&["chunkd", "--data", &data, "--master", &master_at, "--listen", &listen]);
            chunk_servers.push(daemon(&format!("chunkd{index}"), Role::Chunk(index), Some(&boot_id), words)?);
        }
        for (index, point) in points.iter().enumerate() {
            let mut words = strings(&["mount", &master_at, &text(point.clone()), "-f"]);
            if !shape.mount_options.is_empty() {
                words.extend(strings(&["-o", &shape.mount_options]));
            }
            mounts.push(daemon(&format!("mount{index}"), Role::Mount(index), None, words)?);
        }
        let (directory, ledger) = (directory.to_owned(), Arc::clone(ledger));
        let mut fleet = Self { shape, directory, ledger, network, master, chunk_servers, mounts, disks };
        fleet.start_role(Role::Master)?;
        for index in 0..fleet.shape.chunk_servers {
            std::fs::create_dir(disk_path(&fleet.directory, index).join("data"))?;
            fleet.start_role(Role::Chunk(index))?;
        }
        fleet.wait_online(READY)?;
        for index in 0..fleet.shape.mounts {
            fleet.start_mount(index)?;
        }
        Ok(fleet)
    }

    /// Returns how large it is.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Returns the network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Returns where logs and data lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the node that a process runs on.
    pub fn node(&self, role: Role) -> NodeIndex {
        node_of(&self.shape, role)
    }

    /// Returns a mount's mount point.
    pub fn point(&self, mount: usize) -> PathBuf {
        self.directory.join(format!("mnt{mount}"))
    }

    /// Returns a chunk server's files as they lie below its disk.
    pub fn lower(&self, chunk_server: usize) -> PathBuf {
        self.directory.join(format!("lower{chunk_server}/tree/data"))
    }

    /// Returns a process.
    pub fn daemon(&mut self, role: Role) -> &mut Daemon {
        match role {
            Role::Master => &mut self.master,
            Role::Chunk(index) => &mut self.chunk_servers[index],
            Role::Mount(index) => &mut self.mounts[index],
        }
    }

    /// Returns all servers.
    pub fn servers(&self) -> Vec<Role> {
        std::iter::once(Role::Master).chain((0..self.shape.chunk_servers).map(Role::Chunk)).collect()
    }

    /// Starts a server.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_role(&mut self, role: Role) -> Result<()> {
        self.daemon(role).start()?;
        let id = self.daemon(role).id().context("it was started")?;
        self.ledger.process(id)
    }

    /// Starts a mount and waits until it is mounted.
    ///
    /// # Errors
    ///
    /// What kept it from being mounted.
    pub fn start_mount(&mut self, mount: usize) -> Result<()> {
        let point = self.point(mount);
        self.ledger.mount(&point)?;
        self.start_role(Role::Mount(mount))?;
        wait::until("it is mounted", READY, || {
            self.mounts[mount].alive()?;
            ensure!(is_mounted(&point), "{} is not mounted", point.display());
            Ok(())
        })
    }

    /// Kills a mount and clears its mount point.
    ///
    /// # Errors
    ///
    /// If it was not running.
    pub fn kill_mount(&mut self, mount: usize) -> Result<()> {
        let point = self.point(mount);
        self.mounts[mount].kill9()?;
        while is_mounted(&point) {
            umount2(&point, MntFlags::MNT_DETACH)?;
        }
        Ok(())
    }

    /// Sends a signal to a process, if it runs.
    pub fn signal(&mut self, role: Role, signal: Signal) {
        let _ = self.daemon(role).signal(signal);
    }

    /// Tells a chunk server's disk something: see [`control`].
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn tell_disk(&self, chunk_server: usize, line: &str) -> Result<String> {
        control::tell(&self.directory.join(format!("disk{chunk_server}.socket")), line)
    }

    /// Cuts the power of a chunk server that was killed: its disk loses what was not synced, its host has a new boot id.
    ///
    /// # Errors
    ///
    /// If the disk cannot be told.
    pub fn cut_power(&self, chunk_server: usize, seed: u64) -> Result<String> {
        ensure!(!self.chunk_servers[chunk_server].is_started(), "chunk server {chunk_server} still runs");
        write_boot_id(&self.directory.join(format!("boot{chunk_server}")), chunk_server, seed)?;
        self.tell_disk(chunk_server, &format!("cut {seed}"))
    }

    /// Removes everything that a chunk server has, which must not be running: a new disk.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn wipe(&self, chunk_server: usize) -> Result<()> {
        ensure!(!self.chunk_servers[chunk_server].is_started(), "chunk server {chunk_server} still runs");
        let data = disk_path(&self.directory, chunk_server).join("data");
        std::fs::remove_dir_all(&data)?;
        Ok(std::fs::create_dir(&data)?)
    }

    /// Runs `dfs` with these words, from a node that has no faults.
    ///
    /// # Errors
    ///
    /// If it fails, or takes longer than `patience`.
    pub fn dfs(&self, words: &[&str], patience: Duration) -> Result<program::Ended> {
        let node = self.shape.chunk_servers + self.shape.mounts + 1;
        let prefix = enter::prefix(&self.network.namespace(node), None, &[])?;
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(binary::dfs()?).args(words);
        command.env("DFS_CLIENT_MASTER", self.master_address());
        program::run(&mut command, patience)
    }

    /// Returns `HOST:PORT` of the master.
    pub fn master_address(&self) -> String {
        format!("{}:{PORT}", self.network.address(self.node(Role::Master)))
    }

    /// Returns what `dfs status --json` says.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn status(&self) -> Result<Value> {
        let ended = self.dfs(&["status", "--json"], ASK)?;
        ensure!(ended.status.success(), "dfs status: {}", ended.text());
        serde_json::from_str(&ended.stdout).with_context(|| format!("dfs status said {}", ended.stdout))
    }

    /// Returns the page of metrics of a process, or of its health.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn page(&self, role: Role, path: &str) -> Result<(u16, String)> {
        let port = if role == Role::Master { PORT + 2 } else { PORT + 1 };
        let address = format!("{}:{port}", self.network.address(self.node(role)));
        let namespace = self.network.namespace(self.node(role));
        let path = path.to_owned();
        // A thread of its own: it cannot leave the network that it joins.
        let asking = std::thread::spawn(move || {
            enter::join_network(&namespace)?;
            crate::http::get_at(address.parse()?, &path)
        });
        asking.join().unwrap_or_else(|_| bail!("asking for a page panicked"))
    }

    /// Returns the sum of a metric over its labels, at one process; 0 if it is not there.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn metric(&self, role: Role, name: &str) -> Result<f64> {
        let (_, page) = self.page(role, "/metrics")?;
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| line.rsplit_once(' ')?.1.parse::<f64>().ok()).flatten()
        };
        Ok(page.lines().filter_map(value).sum())
    }

    /// Waits until the master says that all chunk servers are there.
    ///
    /// # Errors
    ///
    /// What is not there by then.
    pub fn wait_online(&mut self, patience: Duration) -> Result<Duration> {
        self.wait_status(patience)
    }

    /// Waits until all chunk servers are there and every chunk has all of its replicas. Returns how long that took.
    ///
    /// # Errors
    ///
    /// What is not as it should be by then.
    pub fn wait_healthy(&mut self, patience: Duration) -> Result<Duration> {
        let began = Instant::now();
        self.wait_online(patience)?;
        // The counts of a status are some seconds old: a check of all records is of now.
        wait::until_every("everything is replicated", patience, Duration::from_millis(500), || {
            let ended = self.dfs(&["fsck"], ASK)?;
            ensure!(ended.status.success(), "{}", program::tail(&ended.text(), 6));
            Ok(())
        })?;
        self.wait_online(patience)?;
        Ok(began.elapsed())
    }

    fn wait_status(&mut self, patience: Duration) -> Result<Duration> {
        let started = Instant::now();
        let expected = self.shape.chunk_servers;
        wait::until_every("the cluster is well", patience, Duration::from_millis(300), || {
            let status = self.status()?;
            let nodes = status["nodes"].as_array().context("no nodes in the status")?;
            let well = |node: &&Value| {
                let disks = node["disks"].as_array();
                let disk_failed = disks.is_some_and(|disks| disks.iter().any(|disk| disk["failed"] == true));
                node["state"] == "online" && node["lease_valid"] == true && !disk_failed
            };
            let online = nodes.iter().filter(well).count();
            ensure!(online >= expected, "{online} of {expected} chunk servers are online and well");
            Ok(())
        })?;
        Ok(started.elapsed())
    }

    /// Returns daemons that ended by themselves or panicked.
    pub fn fallen(&mut self) -> Vec<String> {
        let daemons = std::iter::once(&mut self.master).chain(&mut self.chunk_servers).chain(&mut self.mounts);
        let mut fallen = Vec::new();
        for daemon in daemons {
            if daemon.is_started()
                && let Err(error) = daemon.alive()
            {
                fallen.push(format!("{error:#}"));
            }
            let log = daemon.log();
            if let Some(at) = log.find("panicked at") {
                let lines: Vec<&str> = log[at..].lines().take(3).collect();
                fallen.push(format!("{} panicked: {}", daemon.name, lines.join(" | ")));
            }
        }
        fallen
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Mounts first: they would wait for the servers.
        for mount in 0..self.mounts.len() {
            let _ = self.mounts[mount].signal(Signal::SIGCONT);
            let _ = self.kill_mount(mount);
        }
        self.ledger.clear();
        for disk in &mut self.disks {
            let _ = disk.kill();
            let _ = disk.wait();
        }
    }
}

/// Master, chunk servers, mounts, and one for commands.
fn node_of(shape: &Shape, role: Role) -> NodeIndex {
    match role {
        Role::Master => 0,
        Role::Chunk(index) => 1 + index,
        Role::Mount(index) => 1 + shape.chunk_servers + index,
    }
}

fn disk_path(directory: &Path, index: usize) -> PathBuf {
    directory.join(format!("disk{index}"))
}

fn start_disk(directory: &Path, index: usize, ledger: &Arc<Ledger>) -> Result<Child> {
    let (lower, point) = (directory.join(format!("lower{index}")), disk_path(directory, index));
    std::fs::create_dir(&lower)?;
    std::fs::create_dir(&point)?;
    let program = std::env::current_exe()?.with_file_name("faultfs");
    ensure!(program.is_file(), "{} is not there: build both programs of the tests", program.display());
    ledger.mount(&point)?;
    let log = std::fs::File::create(directory.join(format!("disk{index}.log")))?;
    let mut command = Command::new(program);
    command.args([&lower, &point, &directory.join(format!("disk{index}.socket"))]).stderr(log);
    let child = command.spawn().context("starting a faultfs")?;
    ledger.process(child.id())?;
    wait::until("the disk is mounted", READY, || {
        ensure!(is_mounted(&point), "{} is not mounted", point.display());
        Ok(())
    })?;
    Ok(child)
}

fn write_boot_id(path: &Path, index: usize, seed: u64) -> Result<()> {
    Ok(std::fs::write(
        path,
        format!("{:08x}-{:04x}-4000-8000-{:012x}\n", 0xc4a0_5000u32 + index as u32, 0, seed & 0xffff_ffff_ffff),
    )?)
}
