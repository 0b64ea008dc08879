//! `dfs up`: a whole cluster on this machine, each part a supervised process.
//!
//! ```text
//! DATA/lock              held while it runs: one `up` for a directory
//! DATA/layout            what this directory is, so that no other one is taken for it
//! DATA/master            the master's data
//! DATA/chunkd1 ..        the chunk servers' data
//! ```

use std::fs::{File, TryLockError};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;

use dfs_mount::MountPoint;
use dfs_proto::wire::pb::StatusReply;

use crate::admin::Admin;
use crate::exit::{refused, unreachable, usage};
use crate::settings::Settings;
use crate::signals::StopSignals;
use crate::supervise::{Ended, Process};
use crate::{mount, mount_options, mount_point, show};

const LAYOUT: &str = "dfs up, layout 1\n";
/// As many as a chunk has replicas.
const CHUNK_SERVERS: u16 = 3;
/// Their ports lie between the master's and the mount's.
const CHUNK_SERVERS_MAX: u16 = 9;
/// Sections of settings that the parts are given.
const PASSED_ON: &[&str] = &["log", "master", "chunkd"];
/// How long each step of the start may take.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a part has to end by itself; the mount writes its dirty data first.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// What is to be started.
struct Plan {
    data: PathBuf,
    mount_point: PathBuf,
    base_port: u16,
    chunk_servers: u16,
    options: String,
    /// Settings of the parts.
    environment: Vec<(String, String)>,
}

impl Plan {
    fn master(&self) -> String {
        format!("127.0.0.1:{}", self.base_port)
    }

    fn chunk_server_port(&self, number: u16) -> u16 {
        self.base_port + 100 + 10 * (number - 1)
    }

    fn mount_http(&self) -> String {
        format!("127.0.0.1:{}", self.base_port + 200)
    }

    /// Returns every port that will be listened on.
    fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = (self.base_port..self.base_port + 3).collect();
        for number in 1..=self.chunk_servers {
            ports.extend([self.chunk_server_port(number), self.chunk_server_port(number) + 1]);
        }
        ports.push(self.base_port + 200);
        ports
    }

    /// Returns the processes, in the order in which they are started; the mount is the last one.
    fn processes(&self) -> Vec<Process> {
        let path = |part: &str| self.data.join(part).display().to_string();
        let mut list = vec![(
            "master".to_owned(),
            ["master", "--data", &path("master"), "--listen", &self.master()].map(String::from).to_vec(),
        )];
        for number in 1..=self.chunk_servers {
            let name = format!("chunkd{number}");
            let listen = format!("127.0.0.1:{}", self.chunk_server_port(number));
            let arguments = ["chunkd", "--data", &path(&name), "--master", &self.master(), "--listen", &listen];
            list.push((name, arguments.map(String::from).to_vec()));
        }
        let options = format!("http={},{}", self.mount_http(), self.options);
        let mount_point = self.mount_point.display().to_string();
        let mount = ["mount", &self.master(), &mount_point, "-f", "-o", options.trim_end_matches(',')];
        list.push(("mount".to_owned(), mount.map(String::from).to_vec()));
        let process =
            |(index, (name, arguments)): (usize, (String, _))| Process::new(index, &name, arguments, &self.environment);
        list.into_iter().enumerate().map(process).collect()
    }

    fn table(&self) -> String {
        let row = |name: &str, serves: String, http: String, data: String| vec![name.to_owned(), serves, http, data];
        let mut rows = vec![row("part", "serves".into(), "http".into(), "data".into())];
        let url = |port: u16| format!("http://127.0.0.1:{port}/metrics");
        rows.push(row(
            "master",
            self.master(),
            url(self.base_port + 2),
            self.data.join("master").display().to_string(),
        ));
        for number in 1..=self.chunk_servers {
            let port = self.chunk_server_port(number);
            let data = self.data.join(format!("chunkd{number}")).display().to_string();
            rows.push(row(&format!("chunkd{number}"), format!("127.0.0.1:{port}"), url(port + 1), data));
        }
        rows.push(row("mount", self.mount_point.display().to_string(), url(self.base_port + 200), "-".into()));
        show::table(&rows)
    }
}

/// Starts a cluster, keeps it running, and stops it cleanly on a stop signal.
///
/// # Errors
///
/// What keeps it from starting; nothing is left running then.
pub fn run(settings: &Settings, option_list: &str, signals: StopSignals) -> anyhow::Result<()> {
    let data = absolute(settings.required("up.data", "--data")?)?;
    let plan = Plan {
        chunk_servers: count_chunk_servers(settings, &data)?,
        data,
        mount_point: absolute(settings.required("up.mount", "--mount")?)?,
        base_port: settings.parse("up.base_port", "a port from 1024 to 65000")?,
        options: option_list.to_owned(),
        environment: settings.variables(PASSED_ON),
    };
    if !(1024..=65_000).contains(&plan.base_port) {
        return Err(usage(format!("up.base_port = {}: a port from 1024 to 65000 is expected", plan.base_port)));
    }
    let options = mount_options::parse(option_list)?;
    check_fuse()?;
    let _lock = take_data_directory(&plan.data)?;
    take_mount_point(&plan, options.nonempty)?;
    check_ports(&plan.ports())?;

    let (ended_sender, ended) = channel();
    let stop = signals.events()?;
    let mut cluster =
        Cluster { processes: plan.processes(), ended_sender, ended, stop, mount_point: plan.mount_point.clone() };
    let started = cluster.start(&plan);
    let outcome = match started {
        Ok(true) => {
            println!("{}", plan.table());
            println!("ready: {} is mounted; Ctrl-C stops the cluster", mount_point::shown(&plan.mount_point));
            std::io::stdout().flush().context("writing to standard output")?;
            cluster.keep()
        }
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    cluster.shut_down();
    if outcome.is_ok() {
        println!("stopped; the data is in {}", mount_point::shown(&plan.data));
    }
    outcome
}

/// Returns how many chunk servers there are to be: as many as is said, else those that have data, three at least.
fn count_chunk_servers(settings: &Settings, data: &Path) -> anyhow::Result<u16> {
    let has_data = |number: &u16| data.join(format!("chunkd{number}")).is_dir();
    let found = (1..=CHUNK_SERVERS_MAX).rev().find(has_data).unwrap_or(0);
    if settings.text("up.chunk_servers").is_empty() {
        return Ok(found.max(CHUNK_SERVERS));
    }
    let count: u16 = settings.parse("up.chunk_servers", "a number from 1 to 9")?;
    if !(1..=CHUNK_SERVERS_MAX).contains(&count) {
        return Err(usage(format!("up.chunk_servers = {count}: a number from 1 to {CHUNK_SERVERS_MAX} is expected")));
    }
    if count < found {
        let shown = mount_point::shown(data);
        return Err(refused(format!(
            "{shown} has the data of {found} chunk servers: {count} of them would not be all"
        )));
    }
    Ok(count)
}

fn absolute(path: &str) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("path {path:?}"))
}

fn check_fuse() -> anyhow::Result<()> {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(()),
        Err(error) => Err(refused(format!(
            "/dev/fuse cannot be opened ({error}): mounting needs the kernel's fuse module (modprobe fuse) and the right \
             to use it (root, or the fuse3 package for fusermount3)"
        ))),
    }
}

/// Makes or takes the data directory and locks it.
fn take_data_directory(data: &Path) -> anyhow::Result<File> {
    let shown = mount_point::shown(data);
    std::fs::create_dir_all(data).map_err(|error| refused(format!("data directory {shown}: {error}")))?;
    let layout = data.join("layout");
    match std::fs::read_to_string(&layout) {
        Ok(text) if text == LAYOUT => {}
        Ok(text) => {
            return Err(refused(format!(
                "{}: {text:?} is not a layout this version knows ({LAYOUT:?})",
                layout.display()
            )));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let others: Vec<String> = std::fs::read_dir(data)
                .with_context(|| format!("reading {shown}"))?
                .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
                .filter(|name| name != "lock" && name != "lost+found")
                .collect();
            if !others.is_empty() {
                return Err(refused(format!(
                    "{shown} is not a data directory of `dfs up`, and not empty (it holds {}): name another directory",
                    others[..others.len().min(3)].join(", ")
                )));
            }
        }
        Err(error) => return Err(refused(format!("{}: {error}", layout.display()))),
    }
    let lock = File::options().create(true).truncate(false).write(true).open(data.join("lock"));
    let lock = lock.map_err(|error| refused(format!("data directory {shown}: {error}")))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(refused(format!("data directory {shown} is in use by another `dfs up`: stop that one first")));
        }
        Err(TryLockError::Error(error)) => return Err(refused(format!("locking {shown}: {error}"))),
    }
    std::fs::write(&layout, LAYOUT).with_context(|| format!("writing {}", layout.display()))?;
    Ok(lock)
}

/// Makes or checks the mount point. A dead mount that a killed `up` of the same directory left there is taken away.
fn take_mount_point(plan: &Plan, nonempty: bool) -> anyhow::Result<()> {
    let directory = &plan.mount_point;
    if plan.data.starts_with(directory) || directory.starts_with(&plan.data) {
        return Err(refused(format!(
            "the data directory {} and the mount point {} must not lie inside one another",
            mount_point::shown(&plan.data),
            mount_point::shown(directory)
        )));
    }
    let is_dead =
        |path: &Path| std::fs::symlink_metadata(path).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN));
    if MountPoint::mounted_type(directory).as_deref() == Some(MountPoint::FS_TYPE) && is_dead(directory) {
        mount_point::detach(directory);
    }
    if MountPoint::mounted_type(directory).is_none() {
        std::fs::create_dir_all(directory)
            .map_err(|error| refused(format!("mount point {}: {error}", mount_point::shown(directory))))?;
    }
    mount::check_mount_point(directory, nonempty)
}

fn check_ports(ports: &[u16]) -> anyhow::Result<()> {
    for port in ports {
        if let Err(error) = TcpListener::bind(("127.0.0.1", *port)) {
            return Err(refused(format!("port {port} of 127.0.0.1: {error}; choose others with --base-port")));
        }
    }
    Ok(())
}

/// The processes of a running cluster.
struct Cluster {
    processes: Vec<Process>,
    ended_sender: Sender<Ended>,
    ended: Receiver<Ended>,
    stop: Receiver<Signal>,
    mount_point: PathBuf,
}

impl Cluster {
    /// Starts one part after the other, each once those before it serve. Returns false if it was told to stop.
    fn start(&mut self, plan: &Plan) -> anyhow::Result<bool> {
        let mut admin = Admin::new(&plan.master(), Duration::from_secs(2))?;
        let mount = self.processes.len() - 1;
        self.processes[0].start(&self.ended_sender)?;
        if !self.wait_until("the master to serve", || admin.status().is_ok())? {
            return Ok(false);
        }
        for process in &mut self.processes[1..mount] {
            process.start(&self.ended_sender)?;
        }
        let all = usize::from(plan.chunk_servers);
        let have_leases = |status: &StatusReply| status.nodes.iter().filter(|node| node.lease_valid).count() >= all;
        if !self
            .wait_until("the chunk servers to register", || admin.status().is_ok_and(|status| have_leases(&status)))?
        {
            return Ok(false);
        }
        self.processes[mount].start(&self.ended_sender)?;
        let point = self.mount_point.clone();
        self.wait_until("the mount", || {
            // Mounted, and answering: the first call has been to the master and back.
            MountPoint::mounted_type(&point).as_deref() == Some(MountPoint::FS_TYPE)
                && nix::sys::statvfs::statvfs(&point).is_ok()
        })
    }

    /// Waits for a condition while minding the processes. Returns false if it was told to stop.
    fn wait_until(&mut self, what: &str, mut condition: impl FnMut() -> bool) -> anyhow::Result<bool> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !condition() {
            if self.stop.try_recv().is_ok() {
                return Ok(false);
            }
            if Instant::now() > deadline {
                return Err(unreachable(format!("gave up waiting for {what} after {} s", START_TIMEOUT.as_secs())));
            }
            self.mind(Duration::from_millis(20))?;
        }
        Ok(true)
    }

    /// Restarts what dies, until told to stop.
    fn keep(&mut self) -> anyhow::Result<()> {
        loop {
            if self.stop.try_recv().is_ok() {
                return Ok(());
            }
            self.mind(Duration::from_millis(100))?;
        }
    }

    /// Waits up to `pause` for a process to end; starts again those whose time has come.
    ///
    /// # Errors
    ///
    /// If a process ended because it is not allowed to run: to start it again would change nothing.
    fn mind(&mut self, pause: Duration) -> anyhow::Result<()> {
        match self.ended.recv_timeout(pause) {
            Ok(Ended { index, status }) => {
                let is_mount = index + 1 == self.processes.len();
                let unmounted = is_mount && status.success();
                let process = &mut self.processes[index];
                if !process.note_end(status) {
                    return Err(refused(format!(
                        "{} cannot run ({status}); its last lines above say why",
                        process.name
                    )));
                }
                let what = if unmounted { "was unmounted from outside" } else { "ended" };
                eprintln!("[up] {} {what} ({status}); starting it again", process.name);
                if is_mount && MountPoint::mounted_type(&self.mount_point).is_some() {
                    // A dead mount answers every call with ENOTCONN and keeps the new one out.
                    mount_point::detach(&self.mount_point);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::unreachable!("this struct holds a sender itself"),
        }
        let now = Instant::now();
        for process in &mut self.processes {
            if process.restart_at.is_some_and(|at| at <= now) {
                process.start(&self.ended_sender)?;
            }
        }
        Ok(())
    }

    /// Stops everything: the mount first, so that what it holds reaches the chunk servers, the master last.
    fn shut_down(&mut self) {
        for at in (0..self.processes.len()).rev() {
            self.processes[at].restart_at = None;
            self.processes[at].signal(Signal::SIGTERM);
            // Chunk servers do not need each other to stop: they end side by side.
            let is_chunk_server = at > 0 && at + 1 < self.processes.len();
            if !is_chunk_server || at == 1 {
                self.await_ends(at);
            }
        }
        if MountPoint::mounted_type(&self.mount_point).as_deref() == Some(MountPoint::FS_TYPE) {
            eprintln!(
                "[up] {} is still mounted (a program is inside?): detaching it",
                mount_point::shown(&self.mount_point)
            );
            mount_point::detach(&self.mount_point);
        }
    }

    /// Waits until all processes from `first` on have ended; those that do not are killed.
    fn await_ends(&mut self, first: usize) {
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut killed = false;
        while self.processes[first..].iter().any(|process| process.pid().is_some()) {
            if let Ok(Ended { index, status }) = self.ended.recv_timeout(Duration::from_millis(100)) {
                let _ = self.processes[index].note_end(status);
                self.processes[index].restart_at = None;
            }
            if Instant::now() > deadline && !killed {
                killed = true;
                for process in self.processes[first..].iter().filter(|process| process.pid().is_some()) {
                    eprintln!("[up] {} does not end within {} s: killing it", process.name, STOP_TIMEOUT.as_secs());
                    process.signal(Signal::SIGKILL);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_something_else_is_left_alone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("thesis.txt"), "years of work").expect("written");
        let error = take_data_directory(directory.path()).expect_err("refused").to_string();
        assert!(error.contains("thesis.txt"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_directory_is_used_by_one_at_a_time() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let held = take_data_directory(directory.path()).expect("new");
        let error = take_data_directory(directory.path()).expect_err("refused").to_string();
        assert!(error.contains("in use"), "{error}");
        drop(held);
        take_data_directory(directory.path()).expect("free again, and known");
    }

    #[test]
    fn no_server_s_data_is_left_out() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let count = |said: Option<&str>| {
            let mut settings = Settings::load(None, |_| None).expect("the defaults");
            settings.set_flag("up.chunk_servers", said.map(str::to_owned));
            count_chunk_servers(&settings, directory.path())
        };
        assert_eq!((count(None).expect("new"), count(Some("9")).expect("new")), (3, 9));
        std::fs::create_dir(directory.path().join("chunkd5")).expect("made");
        assert_eq!((count(None).expect("as found"), count(Some("6")).expect("one more")), (5, 6));
        assert!(count(Some("4")).expect_err("too few").to_string().contains("5 chunk servers"));
        for wrong in ["0", "10", "x"] {
            assert!(count(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_busy_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = taken.local_addr().expect("bound").port();
        assert!(check_ports(&[port]).expect_err("busy").to_string().contains(&port.to_string()));
    }
}
