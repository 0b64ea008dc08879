//! A whole run: cluster, load, rounds of faults, and the comparison at the end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;

use super::faults::{self, Fault, Round};
use super::fleet::{Fleet, Role, Shape};
use super::hands::{Hands, Mounts};
use super::ledger::Ledger;
use super::load::Load;
use super::network::{LinkFault, NodeIndex};
use super::registers::Registers;
use super::settle::{self, Looked};

/// Replication must be whole again so long after a round.
const HEALTH: Duration = Duration::from_secs(60);
/// Calls that waited must be done so long after that.
const CALLS: Duration = Duration::from_secs(30);
const FSCK: Duration = Duration::from_secs(300);
/// The verdict of a run, in milliseconds; and how long a node is away to be past it.
const OFFLINE_MS: u64 = 10_000;
const AWAY: Duration = Duration::from_secs(16);
const LOAD_THREADS: usize = 6;

/// What a run is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of everything random.
    pub seed: u64,
    /// How long faults go on.
    pub time: Duration,
    /// The fixed short schedule instead.
    pub short: bool,
    /// Only faults whose kind has one of these texts; empty: any.
    pub only: Vec<String>,
    /// All disks lie about syncs of chunk files.
    pub lie: bool,
    /// Files are changed behind the oracle's back at the end: a run that does not find that finds nothing.
    pub tamper: bool,
}

/// Settings of the cluster of a run.
pub fn shape() -> Shape {
    let settings = [
        ("DFS_MASTER_OFFLINE_MS", OFFLINE_MS.to_string()),
        ("DFS_MASTER_REPORT_MS", "2000".into()),
        ("DFS_LOG_LEVEL", "info".into()),
    ];
    Shape {
        chunk_servers: 4,
        mounts: 2,
        settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
        mount_options: "hard".into(),
    }
}

/// Runs in `directory`. Returns the report's text, and whether all was as it must be. `stop` ends it early, in order.
///
/// # Errors
///
/// What kept it from being run, which is no verdict on the cluster.
pub fn run(directory: &Path, ledger: &Arc<Ledger>, plan: &Plan, stop: &AtomicBool) -> Result<(String, bool)> {
    let fleet = Fleet::start(directory, ledger, shape())?;
    let mounts = Arc::new(Mounts::new(fleet.shape().mounts, Arc::clone(ledger)));
    let points = (0..fleet.shape().mounts).map(|mount| fleet.point(mount)).collect();
    let load = Load::new(Arc::clone(&mounts), points, plan.seed, LOAD_THREADS);
    let mut threads = load.start().map_err(|errno| anyhow!("making the directories: errno {errno}"))?;
    let (registers, more) = Registers::start(&load, &mounts, plan.seed).map_err(|text| anyhow!(text))?;
    threads.extend(more);
    let mut thrasher = Thrasher {
        hands: Hands::new(Arc::clone(&mounts)),
        fleet,
        load,
        registers,
        mounts,
        seed: plan.seed,
        lie: plan.lie,
    };
    let outcome = thrasher.thrash(plan, stop);
    let report = &thrasher.mounts.report;
    if let Err(error) = &outcome {
        report.violation(format!("{error:#}"));
    }
    thrasher.load.stop();
    thrasher.registers.stop();
    let text = report.text();
    let well = report.violations() == 0;
    // Threads that hang in a call end when the workers are killed.
    (0..thrasher.mounts.count()).for_each(|mount| thrasher.mounts.going_down(mount));
    drop(thrasher);
    ledger.clear();
    for thread in threads {
        let _ = thread.join();
    }
    Ok((text, well))
}

struct Thrasher {
    hands: Hands,
    fleet: Fleet,
    load: Arc<Load>,
    registers: Arc<Registers>,
    mounts: Arc<Mounts>,
    seed: u64,
    lie: bool,
}

impl Thrasher {
    fn thrash(&mut self, plan: &Plan, stop: &AtomicBool) -> Result<()> {
        let began = Instant::now();
        // Something to break.
        std::thread::sleep(Duration::from_secs(3));
        self.lie = plan.lie;
        self.clear_disks()?;
        let short = faults::short();
        for number in 0.. {
            let round = match (plan.short, short.get(number as usize)) {
                (true, Some(round)) => round.clone(),
                (true, None) => break,
                (false, _) => faults::plan(self.fleet.shape(), plan.seed, number, &plan.only),
            };
            if stop.load(Ordering::SeqCst) || (!plan.short && began.elapsed() > plan.time) {
                break;
            }
            self.round(number, &round).with_context(|| format!("round {number}"))?;
            if self.mounts.report.violations() > 20 {
                bail!("that is enough");
            }
        }
        self.finish(plan.tamper)
    }

    fn say(&self, text: &str) {
        self.mounts.report.say(text);
    }

    fn round(&mut self, number: u64, round: &Round) -> Result<()> {
        self.say(&format!("round {number}: {:?} for {} ms", round.faults, round.hold_ms));
        let began = Instant::now();
        for (nth, fault) in round.faults.iter().enumerate() {
            self.mounts.report.fault(fault.kind());
            let seed = self.seed.wrapping_mul(1_000_003) ^ (number << 8 | nth as u64);
            self.strike(fault, seed).with_context(|| format!("{fault:?}"))?;
        }
        let mut hold = Duration::from_millis(round.hold_ms);
        for fault in &round.faults {
            match fault {
                Fault::Pause(_, ms) => hold = hold.max(Duration::from_millis(*ms)),
                Fault::Away(_) => hold = hold.max(AWAY),
                _ => {}
            }
        }
        self.hold(&round.faults, began, hold)?;
        let powerless = round.faults.contains(&Fault::PowerCutAll);
        self.heal(&round.faults)?;
        let healing = Instant::now();
        if powerless {
            // A chunk that was never synced may have no replica left: its file is in the way of health until it is removed.
            self.fleet.wait_online(HEALTH)?;
            self.settle(true)?;
        }
        let took = self.well(&round.faults)?;
        if round.faults.iter().any(Fault::is_silent) {
            // Nobody may have come across it yet, and the next round may take the good copies away.
            let ended = self.fleet.dfs(&["fsck", "--deep", "--repair"], FSCK)?;
            self.say(&format!("fsck --deep --repair: {}", crate::program::tail(&ended.text(), 1).trim()));
            self.fleet.wait_healthy(HEALTH)?;
        }
        self.mounts.report.healed(took);
        self.say(&format!("well again after {:.1} s", took.as_secs_f64()));
        self.calls_end(healing)?;
        let remounted = |fault: &Fault| matches!(fault, Fault::Restart(Role::Mount(_)) | Fault::RestartEverything);
        if round.faults.iter().any(remounted) {
            self.settle(false)?;
        }
        for fallen in self.fleet.fallen() {
            self.mounts.report.violation(fallen);
        }
        Ok(())
    }

    /// Lets the time pass, with what ends before the round does.
    fn hold(&mut self, faults: &[Fault], began: Instant, hold: Duration) -> Result<()> {
        let mut stopped: Vec<(Role, u64)> = Vec::new();
        for fault in faults {
            if let Fault::Pause(role, ms) = fault {
                stopped.push((*role, *ms));
            }
        }
        stopped.sort_by_key(|(_, ms)| *ms);
        for (role, ms) in stopped {
            std::thread::sleep(Duration::from_millis(ms).saturating_sub(began.elapsed()));
            self.fleet.signal(role, Signal::SIGCONT);
        }
        for fault in faults {
            if let Fault::Reset(role) = fault {
                std::thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
                self.fleet.network().set_faults(self.fleet.node(*role), &[])?;
            }
        }
        std::thread::sleep(hold.saturating_sub(began.elapsed()));
        Ok(())
    }

    fn everyone(&self) -> Vec<Role> {
        let mut all = self.fleet.servers();
        all.extend((0..self.fleet.shape().mounts).map(Role::Mount));
        all
    }

    /// Returns the nodes of all processes but these.
    fn others(&self, of: Role) -> Vec<NodeIndex> {
        self.everyone().into_iter().filter(|role| *role != of).map(|role| self.fleet.node(role)).collect()
    }

    fn kill(&mut self, role: Role) -> Result<()> {
        match role {
            Role::Mount(mount) => {
                self.mounts.going_down(mount);
                self.fleet.kill_mount(mount)?;
                self.mounts.is_down(mount);
                Ok(())
            }
            server => self.fleet.daemon(server).kill9(),
        }
    }

    fn start(&mut self, role: Role) -> Result<()> {
        match role {
            Role::Mount(mount) => {
                self.fleet.start_mount(mount)?;
                self.mounts.is_up(mount);
                Ok(())
            }
            server => self.fleet.start_role(server),
        }
    }

    fn strike(&mut self, fault: &Fault, seed: u64) -> Result<()> {
        match fault {
            Fault::Kill(role) => self.kill(*role),
            Fault::Restart(role) => {
                self.kill(*role)?;
                self.start(*role)
            }
            Fault::RestartLoop(role) => {
                for _ in 0..5 {
                    self.kill(*role)?;
                    self.start(*role)?;
                    std::thread::sleep(Duration::from_millis(seed % 700));
                }
                Ok(())
            }
            Fault::RestartAll => self.restart(&self.fleet.servers()),
            Fault::RestartEverything => self.restart(&self.everyone()),
            Fault::Pause(role, _) => {
                self.fleet.signal(*role, Signal::SIGSTOP);
                Ok(())
            }
            Fault::Isolate(role) => {
                self.deaf(*role)?;
                self.mute(*role)
            }
            Fault::Deaf(role) => self.deaf(*role),
            Fault::Mute(role) => self.mute(*role),
            Fault::Split(a, b) => {
                let (a, b) = (self.fleet.node(*a), self.fleet.node(*b));
                self.fleet.network().set_faults(a, &[LinkFault::DropFrom(vec![b])])?;
                self.fleet.network().set_faults(b, &[LinkFault::DropFrom(vec![a])])
            }
            Fault::Loss(role, percent) => self.link(*role, LinkFault::Loss(*percent)),
            Fault::SlowLink(role) => self.link(*role, LinkFault::Slow(10_000_000)),
            Fault::Reset(role) => self.link(*role, LinkFault::Reset),
            Fault::Disk(index, rule) => self.fleet.tell_disk(*index, &format!("rule {rule}")).map(drop),
            Fault::PowerCut(index) => {
                self.kill(Role::Chunk(*index))?;
                let lost = self.fleet.cut_power(*index, seed)?;
                self.say(&format!("chunk server {index} lost {lost} (bytes, names)"));
                Ok(())
            }
            Fault::PowerCutAll => self.cut_all_power(seed),
            Fault::FlipChunks(index, count) => self.flip(*index, "data/replicas/*", *count, seed),
            Fault::FlipJournal(index) => {
                self.kill(Role::Chunk(*index))?;
                self.flip(*index, "data/journal/*", 1, seed)
            }
            Fault::DeleteChunk(index) => self.delete_chunk(*index, seed),
            Fault::Wipe(index) => {
                self.kill(Role::Chunk(*index))?;
                self.fleet.wipe(*index)
            }
            Fault::Away(index) => self.kill(Role::Chunk(*index)),
        }
    }

    fn link(&self, role: Role, fault: LinkFault) -> Result<()> {
        self.fleet.network().set_faults(self.fleet.node(role), &[fault])
    }

    fn deaf(&self, role: Role) -> Result<()> {
        self.link(role, LinkFault::DropFrom(self.others(role)))
    }

    fn mute(&self, role: Role) -> Result<()> {
        let node = self.fleet.node(role);
        self.others(role)
            .into_iter()
            .try_for_each(|other| self.fleet.network().set_faults(other, &[LinkFault::DropFrom(vec![node])]))
    }

    fn restart(&mut self, roles: &[Role]) -> Result<()> {
        // Mounts first, or they would see servers go for a moment.
        for role in roles.iter().rev() {
            self.kill(*role)?;
        }
        roles.iter().try_for_each(|role| self.start(*role))
    }

    fn cut_all_power(&mut self, seed: u64) -> Result<()> {
        let began = Instant::now();
        let indices = 0..self.fleet.shape().chunk_servers;
        // At the same moment, as nearly as can be: none can tell another anything once it is stopped.
        for index in indices.clone() {
            self.fleet.signal(Role::Chunk(index), Signal::SIGSTOP);
        }
        for index in indices.clone() {
            self.kill(Role::Chunk(index))?;
        }
        for index in indices.clone() {
            let lost = self.fleet.cut_power(index, seed ^ index as u64)?;
            self.say(&format!("chunk server {index} lost {lost} (bytes, names)"));
        }
        self.registers.power_lost(began, Instant::now());
        self.load.power_lost();
        indices.into_iter().try_for_each(|index| self.start(Role::Chunk(index)))
    }

    fn flip(&self, index: usize, pattern: &str, count: u64, seed: u64) -> Result<()> {
        match self.fleet.tell_disk(index, &format!("flip {pattern} {count} {seed}")) {
            Ok(flips) => self.say(&format!("chunk server {index}: flipped {flips}")),
            Err(error) => self.say(&format!("chunk server {index}: nothing to flip: {error:#}")),
        }
        Ok(())
    }

    fn delete_chunk(&self, index: usize, seed: u64) -> Result<()> {
        let mut files = Vec::new();
        let mut directories = vec![self.fleet.lower(index)];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory)?.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.to_string_lossy().contains("replicas/") {
                    files.push(path);
                }
            }
        }
        files.sort_unstable();
        if files.is_empty() {
            return Ok(());
        }
        let path = &files[seed as usize % files.len()];
        self.say(&format!("removed {}", path.display()));
        Ok(std::fs::remove_file(path)?)
    }

    fn clear_disks(&self) -> Result<()> {
        (0..self.fleet.shape().chunk_servers).try_for_each(|index| {
            self.fleet.tell_disk(index, "clear")?;
            if self.lie { self.fleet.tell_disk(index, "rule lie sync data/replicas/*").map(drop) } else { Ok(()) }
        })
    }

    fn heal(&mut self, faults: &[Fault]) -> Result<()> {
        self.fleet.network().heal()?;
        for role in self.everyone() {
            self.fleet.signal(role, Signal::SIGCONT);
        }
        self.clear_disks()?;
        for fault in faults {
            // Before anything is started: what was killed on purpose is started below, what fell is found later.
            if let Fault::Disk(index, _) = fault {
                // A disk that failed is out of use until its process starts again.
                self.kill(Role::Chunk(*index))?;
            }
        }
        for role in self.everyone() {
            if !self.fleet.daemon(role).is_started() {
                self.start(role)?;
            }
        }
        Ok(())
    }

    /// Waits until all is well. A disk whose journal is damaged does not come back: it is replaced by an empty one.
    fn well(&mut self, faults: &[Fault]) -> Result<Duration> {
        let began = Instant::now();
        let damaged = faults.iter().find_map(|fault| match fault {
            Fault::FlipJournal(index) | Fault::Disk(index, _) => Some(*index),
            _ => None,
        });
        if let Some(index) = damaged {
            let first = self.fleet.wait_healthy(Duration::from_secs(20));
            if first.is_ok() {
                return Ok(began.elapsed());
            }
            self.mounts.report.note("disks replaced");
            self.say(&format!("replacing the disk of chunk server {index}: {:#}", first.expect_err("looked at above")));
            let _ = self.kill(Role::Chunk(index));
            // One that has ended by itself is not killed.
            let _ = self.fleet.daemon(Role::Chunk(index)).ended(Duration::from_secs(1));
            self.fleet.wipe(index)?;
            self.start(Role::Chunk(index))?;
        }
        self.fleet.wait_healthy(HEALTH)?;
        Ok(began.elapsed())
    }

    /// Waits until no call is left of those that were made before everything was healed.
    fn calls_end(&mut self, healed: Instant) -> Result<()> {
        let end = Instant::now() + CALLS;
        loop {
            let left = self.mounts.since_before(healed);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                for call in left {
                    self.mounts.report.violation(format!("{CALLS:?} after all was well it still waits: {call}"));
                }
                bail!("calls hang");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes what is found of files that may hold one of several things as what they hold.
    fn settle(&mut self, powerless: bool) -> Result<()> {
        let looked = self.look(false, powerless)?;
        self.load.looked_after_cut();
        self.say(&format!("settled {} files, {} unreadable", looked.settled, looked.unreadable));
        self.mounts.report.note_many("files settled after a lost mount or power", looked.settled);
        self.mounts.report.note_many("files of no replica, never synced", looked.unreadable);
        Ok(())
    }

    fn look(&mut self, all: bool, after_cut: bool) -> Result<Looked> {
        ensure!(self.load.pause(CALLS), "the load does not come to rest");
        // What a mount knows of names that another one changed.
        std::thread::sleep(Duration::from_millis(1500));
        let mount = (self.seed % self.mounts.count() as u64) as usize;
        let looked = settle::look(&self.load, &mut self.hands, mount, all, after_cut);
        if !all {
            // A mount shows what its kernel has kept, though it is lost with all power, or a mount that was killed had pushed
            // something else and not told the master yet: no version has told it. docs/semantics.md says so.
            std::fs::write("/proc/sys/vm/drop_caches", "1")?;
        }
        self.load.resume();
        looked.map_err(|_| anyhow!("mount {mount} went away while it was looked at"))
    }

    /// The end: all is healed, checked and compared, before and after a restart of everything.
    fn finish(&mut self, tamper: bool) -> Result<()> {
        self.say("the end: comparing");
        ensure!(self.load.pause(CALLS), "the load does not come to rest");
        self.registers.stop();
        self.fleet.wait_healthy(HEALTH)?;
        if tamper {
            settle::tamper(&self.load, &mut self.hands).map_err(|_| anyhow!("a mount went away"))?;
            self.registers.tamper();
        }
        self.check()?;
        self.restart(&self.everyone())?;
        self.fleet.wait_healthy(HEALTH).context("after kill -9 of everything")?;
        self.check().context("after kill -9 of everything")?;
        let operations = self.registers.check();
        self.mounts.report.note_many("operations on registers checked for linearizability", operations as u64);
        for fallen in self.fleet.fallen() {
            self.mounts.report.violation(fallen);
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        let ended = self.fleet.dfs(&["fsck", "--deep"], FSCK)?;
        if ended.text().contains("unrecognized subcommand") {
            self.mounts.report.note("fsck: this dfs has none");
        } else if ended.status.success() {
            self.mounts.report.note("fsck --deep clean");
        } else {
            self.mounts.report.violation(format!("fsck --deep: {}\n{}", ended.status, ended.text()));
        }
        std::thread::sleep(Duration::from_millis(1500));
        for mount in 0..self.mounts.count() {
            let looked = settle::look(&self.load, &mut self.hands, mount, true, false)
                .map_err(|_| anyhow!("mount {mount} went away while it was looked at"))?;
            self.say(&format!("mount {mount}: compared {} files, {} bytes", looked.files, looked.bytes));
            self.mounts.report.note_many("bytes compared at the end", looked.bytes);
        }
        Ok(())
    }
}
