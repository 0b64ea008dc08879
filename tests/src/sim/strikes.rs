//! Faults as they happen: when the next one strikes, whom, and how it ends.

use std::collections::BTreeMap;

use dfs_proto::ChunkId;

use super::context::Event;
use super::faults::{Kind, Mode};
use super::network::Place;
use super::scheduler::{Time, ms, seconds};
use super::simulation::{CLIENTS, SERVERS, Simulation};
use crate::random::Random;

/// What ends a fault, or is a part of it.
#[derive(Clone, Debug)]
enum Step {
    /// The next fault.
    Strike,
    /// The network is as usual again.
    Calm,
    /// Links are whole again.
    Mend(Vec<(Place, Place)>),
    /// A link stops.
    Clog(Vec<(Place, Place)>),
    /// A chunk server starts.
    StartServer(u32),
    /// A chunk server is killed, perhaps for the last of several times.
    KillServer(u32, u32),
    /// A process goes on.
    Resume(Place),
    /// A process is as fast as usual.
    Hurry(Place),
    /// The master starts.
    StartMaster,
    /// A client starts.
    StartClient(u32),
    /// A disk is well again.
    Cure(u32),
    /// All hosts of chunk servers lose power, for so long.
    CutPower(u64),
    /// A chunk server is killed, and starts after so long.
    End(u32, u64),
    /// Links are cut, for so long.
    Cut(Vec<(Place, Place)>, u64),
}

/// The faults of a run.
#[derive(Debug)]
pub struct Strikes {
    rng: Random,
    left: u32,
    is_ended: bool,
    steps: BTreeMap<usize, Step>,
    next: usize,
    disturbed: BTreeMap<Place, Time>,
    /// Chunk servers that are to stop in the middle of something: with loss of power, and for how long.
    fuses: BTreeMap<u32, (bool, u64)>,
    /// Chunk servers that are to be started, whatever else ends.
    starts: BTreeMap<usize, u32>,
    /// How many of each kind there were.
    pub counts: BTreeMap<&'static str, u32>,
}

impl Strikes {
    /// Returns the faults of a run that has none yet.
    pub fn new(rng: Random) -> Self {
        Self {
            rng,
            left: 0,
            is_ended: false,
            steps: BTreeMap::new(),
            next: 0,
            disturbed: BTreeMap::new(),
            fuses: BTreeMap::new(),
            starts: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Returns whether none is to come.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Lets none happen any more, not even the end of one.
    pub fn end(&mut self) {
        self.left = 0;
        self.is_ended = true;
    }

    /// Returns whether a process was held up so lately that it may be late.
    pub fn was_disturbed(&self, place: Place, now: Time) -> bool {
        self.disturbed.get(&place).is_some_and(|until| now < until.plus(seconds(3)))
    }
}

impl Simulation {
    /// Begins with the faults.
    pub(super) fn begin_strikes(&mut self) {
        self.strikes.left = self.swarm.strikes;
        self.plan(ms(self.swarm.pause_ms), Step::Strike);
    }

    fn plan(&mut self, us: u64, step: Step) {
        let number = self.strikes.next;
        self.strikes.next += 1;
        self.strikes.steps.insert(number, step);
        self.context.scheduler.after(us, Event::Fault(number));
    }

    /// A step of a fault is due.
    pub(super) fn strike(&mut self, number: usize) {
        if let Some(at) = self.strikes.starts.remove(&number) {
            return self.start_server(at);
        }
        let Some(step) = self.strikes.steps.remove(&number) else { return };
        if self.strikes.is_ended {
            return;
        }
        match step {
            Step::Strike => self.next_strike(),
            Step::Calm => {
                self.say(|| "the network is calm".into());
                self.context.network.weather = self.swarm.calm;
            }
            Step::Mend(links) => {
                self.say(|| format!("links are whole: {}", links_words(&links)));
                for (from, to) in links {
                    self.context.mend(from, to);
                }
            }
            Step::Clog(links) => {
                self.say(|| format!("links stop: {}", links_words(&links)));
                for (from, to) in links {
                    self.context.network.clog(from, to);
                }
            }
            Step::StartServer(at) => self.start_server(at),
            Step::KillServer(at, more) => {
                self.kill_server(at, false);
                let down = self.strikes.rng.between(ms(20), ms(900));
                self.plan(down, Step::StartServer(at));
                if more > 0 {
                    let pause = self.strikes.rng.between(ms(100), ms(4_000));
                    self.plan(down + pause, Step::KillServer(at, more - 1));
                }
            }
            Step::Resume(place) => {
                if self.context.process(place).is_paused {
                    self.say(|| format!("{place} goes on"));
                    self.disturb(place, 0);
                    self.context.resume(place);
                }
            }
            Step::Hurry(place) => {
                self.context.process_mut(place).slowness = 1;
                self.disturb(place, 0);
            }
            Step::StartMaster => {
                if !self.context.is_up(Place::Master) {
                    self.master.start(&mut self.context);
                }
            }
            Step::StartClient(at) => {
                if !self.context.is_up(Place::Client(at)) {
                    self.clients[at as usize - 1].start(&mut self.context);
                }
            }
            Step::CutPower(lasts) => self.cut_all_power(lasts),
            Step::End(at, lasts) => self.end_server(at, false, lasts),
            Step::Cut(links, lasts) => self.cut_for(links, lasts),
            Step::Cure(at) => {
                self.say(|| format!("the disk of chunk{at} is well"));
                self.cure_disk(at);
                // Its server has given it up until it starts anew.
                if self.servers[at as usize - 1].store.has_failed() && self.strikes.rng.in_a_million(600_000) {
                    self.kill_server(at, false);
                    self.start_server(at);
                }
            }
        }
    }

    fn disturb(&mut self, place: Place, us: u64) {
        let until = self.context.now().plus(us);
        let known = self.strikes.disturbed.entry(place).or_default();
        *known = until.max(*known);
    }

    fn say(&mut self, words: impl FnOnce() -> String) {
        let (now, number) = (self.context.now(), self.strikes.next as u64);
        self.context.trace.note(now, [50, number], || format!("** {}", words()));
    }

    fn next_strike(&mut self) {
        for _ in 0..6 {
            let kind = self.swarm.kind(&mut self.strikes.rng);
            if self.try_strike(kind) {
                *self.strikes.counts.entry(name(kind)).or_default() += 1;
                break;
            }
        }
        self.strikes.left -= 1;
        if self.strikes.left > 0 {
            let most = 2 * ms(self.swarm.pause_ms);
            // Now and then several at once.
            let pause = if self.strikes.rng.in_a_million(150_000) { ms(1) } else { self.strikes.rng.below(most) };
            self.plan(pause, Step::Strike);
        }
    }

    fn any_server(&mut self) -> u32 {
        if self.swarm.is_duel
            && self.strikes.rng.in_a_million(800_000)
            && let Some((primary, member)) = self.any_pair()
        {
            return if self.strikes.rng.in_a_million(550_000) { primary } else { member };
        }
        self.strikes.rng.between(1, u64::from(SERVERS)) as u32
    }

    /// Returns the primary of a chunk, and another one that has it or is to have it.
    fn any_pair(&mut self) -> Option<(u32, u32)> {
        let mut pairs = Vec::new();
        for chunk in self.master.chunks().values() {
            let Some(primary) = self.checks.server(chunk.primary) else { continue };
            let members = chunk.in_sync.iter().chain(&chunk.syncing).filter_map(|node| self.checks.server(*node));
            pairs.extend(members.filter(|member| *member != primary).map(|member| (primary, member)));
        }
        (!pairs.is_empty()).then(|| *self.strikes.rng.pick(&pairs))
    }

    fn any_place(&mut self) -> Place {
        match self.strikes.rng.below(10) {
            0..=6 => Place::Chunk(self.any_server()),
            7 => Place::Master,
            _ => Place::Client(self.strikes.rng.between(1, u64::from(CLIENTS)) as u32),
        }
    }

    /// Lets a fault of this kind happen, if it may. Returns whether it did.
    fn try_strike(&mut self, kind: Kind) -> bool {
        let lasts = self.swarm.lasts(&mut self.strikes.rng);
        let at = self.any_server();
        let is_up = self.context.is_up(Place::Chunk(at));
        match kind {
            Kind::Weather => {
                let storm = self.swarm.storm(&mut self.strikes.rng);
                self.say(|| format!("weather: {storm:?}"));
                self.context.network.weather = storm;
                self.plan(lasts, Step::Calm);
            }
            Kind::Cut | Kind::Isolate | Kind::Split | Kind::Clog => self.strike_links(kind, lasts),
            Kind::Kill if is_up => self.end_server(at, false, lasts),
            Kind::Strand | Kind::Deafen => return self.strike_primary(kind, lasts),
            Kind::CrashLoop if is_up => {
                let more = self.strikes.rng.between(1, 5) as u32;
                self.plan(0, Step::KillServer(at, more));
            }
            Kind::Pause => {
                let place = self.any_place();
                if !self.context.is_up(place) || self.context.process(place).is_paused {
                    return false;
                }
                self.say(|| format!("{place} is paused for {} ms", lasts / 1_000));
                self.context.pause(place);
                self.plan(lasts, Step::Resume(place));
            }
            Kind::Slow => {
                let place = self.any_place();
                let slowness = self.strikes.rng.between(2, 60);
                self.say(|| format!("{place} is {slowness} times slower"));
                self.context.process_mut(place).slowness = slowness;
                self.disturb(place, lasts + seconds(30));
                self.plan(lasts, Step::Hurry(place));
            }
            Kind::RollingRestart => {
                let pause = self.strikes.rng.between(ms(200), ms(3_000));
                for at in 1..=SERVERS {
                    self.plan(u64::from(at) * pause, Step::KillServer(at, 0));
                }
            }
            Kind::PowerCut => {
                if !self.may_rob(&[at]) {
                    return false;
                }
                self.end_server(at, true, lasts);
            }
            Kind::PowerCutAll => {
                let all: Vec<u32> = (1..=SERVERS).collect();
                if !self.may_rob(&all) {
                    return false;
                }
                self.cut_all_power(lasts);
            }
            Kind::BadDisks => {
                if self.swarm.mode != Mode::Unlimited {
                    return false;
                }
                for at in 1..=SERVERS {
                    self.strike_disk(kind, at, lasts);
                }
                if self.strikes.rng.in_a_million(700_000) {
                    self.plan(lasts + 1, Step::CutPower(ms(2_000)));
                }
            }
            Kind::KillSome => {
                for at in 1..=SERVERS {
                    if self.context.is_up(Place::Chunk(at)) && self.strikes.rng.in_a_million(500_000) {
                        self.end_server(at, false, lasts);
                    }
                }
            }
            Kind::MasterOutOfReach if self.context.is_up(Place::Master) => {
                let mut links = Vec::new();
                for server in (1..=SERVERS).map(Place::Chunk) {
                    if self.strikes.rng.in_a_million(400_000) {
                        links.extend([(server, Place::Master), (Place::Master, server)]);
                    }
                }
                self.say(|| format!("the master is killed; links are cut: {}", links_words(&links)));
                self.context.stop(Place::Master, false);
                self.master.kill(&mut self.context, false);
                for (from, to) in &links {
                    self.context.network.cut(*from, *to);
                }
                let away = self.strikes.rng.between(ms(20), ms(1_500));
                self.plan(away, Step::StartMaster);
                let apart = self.strikes.rng.between(ms(1_000), ms(9_000));
                self.plan(apart, Step::Mend(links));
            }
            Kind::MasterKill | Kind::MasterPowerCut if self.context.is_up(Place::Master) => {
                let loses_power = kind == Kind::MasterPowerCut;
                self.say(|| if loses_power { "the master loses power".into() } else { "the master is killed".into() });
                self.context.stop(Place::Master, loses_power);
                self.master.kill(&mut self.context, loses_power);
                self.plan(lasts, Step::StartMaster);
            }
            Kind::ClientKill => {
                let client = self.strikes.rng.between(1, u64::from(CLIENTS)) as u32;
                let place = Place::Client(client);
                if !self.context.is_up(place) {
                    return false;
                }
                self.say(|| format!("{place} is killed"));
                self.context.stop(place, false);
                self.plan(lasts, Step::StartClient(client));
            }
            Kind::WallJump => {
                let place = self.any_place();
                let by = self.strikes.rng.between(0, 7_200_000) as i64 - 3_600_000;
                self.say(|| format!("wall time of {place} jumps by {by} ms"));
                self.context.process_mut(place).clock.jump(by);
            }
            Kind::Wipe => {
                if !self.may_wipe(at) {
                    return false;
                }
                self.wipe_server(at);
                self.plan(lasts, Step::StartServer(at));
            }
            Kind::ReadErrors
            | Kind::WriteErrors
            | Kind::SyncErrors
            | Kind::StrayWrites
            | Kind::Rot
            | Kind::Latent
            | Kind::Full => {
                return self.strike_disk(kind, at, lasts);
            }
            _ => return false,
        }
        true
    }

    fn cut_all_power(&mut self, lasts: u64) {
        for at in 1..=SERVERS {
            self.kill_server(at, true);
            let delay = self.strikes.rng.below(lasts + 1);
            self.plan(delay, Step::StartServer(at));
        }
    }

    fn may_rob(&self, servers: &[u32]) -> bool {
        self.swarm.mode != Mode::Atlas || self.checks.may_rob(servers, 1)
    }

    /// Returns whether what a server has may be gone for good: not the last but one good copy, for the server of the last
    /// may be cut off, and left by the master before it is back.
    pub(super) fn may_wipe(&self, at: u32) -> bool {
        self.swarm.mode == Mode::Unlimited || self.checks.may_rob(&[at], 2)
    }

    fn strike_links(&mut self, kind: Kind, lasts: u64) {
        let all: Vec<Place> = std::iter::once(Place::Master)
            .chain((1..=SERVERS).map(Place::Chunk))
            .chain((1..=CLIENTS).map(Place::Client))
            .collect();
        let one = self.any_place();
        let mut links = Vec::new();
        match kind {
            Kind::Cut => {
                let pair = if self.swarm.is_duel { self.any_pair() } else { None };
                let pair = pair.map(|(primary, member)| (Place::Chunk(primary), Place::Chunk(member)));
                let (one, other) = pair.unwrap_or_else(|| (one, self.any_place()));
                links.push((one, other));
                if self.strikes.rng.in_a_million(500_000) {
                    links.push((other, one));
                }
            }
            Kind::Split => {
                let part: Vec<bool> = all.iter().map(|_| self.strikes.rng.in_a_million(500_000)).collect();
                for (from, left) in all.iter().zip(&part) {
                    for (to, right) in all.iter().zip(&part) {
                        if left != right {
                            links.push((*from, *to));
                        }
                    }
                }
            }
            Kind::Clog => {
                let hosts: Vec<Place> =
                    all.iter().copied().filter(|_| self.strikes.rng.in_a_million(400_000)).collect();
                let step = self.strikes.rng.between(ms(50), ms(1_000));
                for (at, host) in hosts.iter().enumerate() {
                    let both: Vec<(Place, Place)> = all
                        .iter()
                        .filter(|other| *other != host)
                        .flat_map(|other| [(*host, *other), (*other, *host)])
                        .collect();
                    self.plan(at as u64 * step, Step::Clog(both.clone()));
                    let extra = self.strikes.rng.below(lasts + 1);
                    self.plan(hosts.len() as u64 * step + extra, Step::Mend(both));
                }
                return;
            }
            _ => {
                let direction = self.strikes.rng.below(4);
                for other in all.iter().filter(|other| **other != one) {
                    if direction != 1 {
                        links.push((one, *other));
                    }
                    if direction != 2 {
                        links.push((*other, one));
                    }
                }
            }
        }
        links.retain(|(from, to)| from != to);
        self.cut_for(links, lasts);
    }

    /// Cuts a primary off from the other chunk servers, or from much of what the master says and a member.
    fn strike_primary(&mut self, kind: Kind, lasts: u64) -> bool {
        let Some((at, member)) = self.any_pair() else { return false };
        let (primary, member) = (Place::Chunk(at), Place::Chunk(member));
        let mut links = Vec::new();
        if kind == Kind::Strand {
            for other in (1..=SERVERS).map(Place::Chunk).filter(|other| *other != primary) {
                links.extend([(primary, other), (other, primary)]);
            }
            if self.strikes.rng.in_a_million(600_000) {
                self.plan(lasts / 2, Step::End(at, lasts));
            }
        } else {
            self.say(|| format!("{primary} is deaf to the master"));
            self.context.network.deafen(Place::Master, primary);
            self.plan(lasts, Step::Mend(vec![(Place::Master, primary)]));
            links.extend([(primary, member), (member, primary)]);
        }
        if kind == Kind::Strand || self.strikes.rng.in_a_million(300_000) {
            self.cut_for(links, lasts);
        } else {
            let (before, after) = (self.strikes.rng.below(lasts), self.strikes.rng.below(lasts));
            self.plan(before, Step::Cut(links, after));
        }
        true
    }

    fn cut_for(&mut self, links: Vec<(Place, Place)>, lasts: u64) {
        self.say(|| format!("links are cut: {}", links_words(&links)));
        for (from, to) in &links {
            self.context.network.cut(*from, *to);
        }
        self.plan(lasts, Step::Mend(links));
    }

    /// Ends a chunk server: now, or in the middle of one of the next things that it does to its disk.
    fn end_server(&mut self, at: u32, loses_power: bool, lasts: u64) {
        if self.context.is_up(Place::Chunk(at)) && self.strikes.rng.in_a_million(500_000) {
            let operations = self.strikes.rng.below(12);
            self.say(|| format!("chunk{at} is to stop after {operations} more writes and syncs"));
            self.servers[at as usize - 1].store.disk.lock().set_fuse(operations);
            self.strikes.fuses.insert(at, (loses_power, lasts));
        } else {
            self.kill_server(at, loses_power);
            self.plan(lasts, Step::StartServer(at));
        }
    }

    /// A host has stopped in the middle of what it did, as was planned.
    pub(super) fn stopped(&mut self, at: u32) {
        let (loses_power, lasts) = self.strikes.fuses.remove(&at).unwrap_or((false, ms(500)));
        let loses_power = loses_power && self.may_rob(&[at]);
        self.kill_server(at, loses_power);
        self.start_later(at, lasts);
    }

    /// A chunk server could not be started.
    pub(super) fn start_server_later(&mut self, at: u32) {
        self.start_later(at, ms(1_000));
    }

    fn start_later(&mut self, at: u32, us: u64) {
        let number = self.strikes.next;
        self.strikes.next += 1;
        self.strikes.starts.insert(number, at);
        self.context.scheduler.after(us, Event::Fault(number));
    }

    fn strike_disk(&mut self, kind: Kind, at: u32, lasts: u64) -> bool {
        if self.checks.sick.contains(&at) {
            return false;
        }
        match kind {
            Kind::Full => {
                let left = self.strikes.rng.below(300_000);
                let mut disk = self.servers[at as usize - 1].store.disk.lock();
                if disk.taken > 0 {
                    return false;
                }
                disk.taken = (disk.capacity - disk.used()).saturating_sub(left);
                drop(disk);
                self.say(|| format!("the disk of chunk{at} has {left} bytes left"));
            }
            Kind::Rot | Kind::Latent => return self.damage(kind, at),
            _ => {
                if !self.may_rob(&[at]) {
                    return false;
                }
                let sickness = self.swarm.sickness(&mut self.strikes.rng, kind);
                self.say(|| format!("the disk of chunk{at} is sick: {sickness:?}"));
                self.servers[at as usize - 1].store.disk.lock().sickness = sickness;
                self.checks.robbed(&mut self.context, at);
                self.checks.forget_versions(at);
                self.checks.sick.insert(at);
                self.checks.unreliable.insert(at);
            }
        }
        self.plan(lasts, Step::Cure(at));
        true
    }

    /// Damages what is on a disk: replicas that are in sync, or the journal.
    fn damage(&mut self, kind: Kind, at: u32) -> bool {
        let content = self.servers[at as usize - 1].store.disk.lock().content();
        let mut hits = 0;
        for _ in 0..self.strikes.rng.between(1, 12) {
            if content.is_empty() {
                break;
            }
            let (path, page) = self.strikes.rng.pick(&content).clone();
            let is_allowed = match chunk_of(&path) {
                Some(chunk) => {
                    self.checks.is_member(chunk, at)
                        && (self.swarm.mode == Mode::Unlimited
                            || self.checks.good(chunk).iter().any(|other| *other != at))
                }
                None => path.starts_with("journal/") && self.may_rob(&[at]),
            };
            if !is_allowed {
                continue;
            }
            hits += 1;
            self.checks.unreliable.insert(at);
            self.say(|| format!("chunk{at}: {kind:?} of {path}, page {page}"));
            self.checks.forget_versions(at);
            match chunk_of(&path) {
                Some(chunk) => self.checks.rot(&mut self.context, chunk, at),
                None => self.checks.hurt(&mut self.context, at),
            }
            let mut disk = self.servers[at as usize - 1].store.disk.lock();
            if kind == Kind::Rot {
                disk.rot(&path, page);
            } else {
                disk.make_latent(&path, page);
            }
        }
        hits > 0
    }
}

/// Returns the chunk whose replica is in a file.
fn chunk_of(path: &str) -> Option<ChunkId> {
    let name = path.strip_prefix("replicas/")?.rsplit('/').next()?;
    u64::from_str_radix(name, 16).ok().map(ChunkId)
}

fn links_words(links: &[(Place, Place)]) -> String {
    links.iter().map(|(from, to)| format!("{from}>{to}")).collect::<Vec<_>>().join(" ")
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Weather => "weather",
        Kind::Cut => "cut",
        Kind::Isolate => "isolate",
        Kind::Split => "split",
        Kind::Clog => "clog",
        Kind::Kill => "kill",
        Kind::KillSome => "kill_some",
        Kind::CrashLoop => "crash_loop",
        Kind::Pause => "pause",
        Kind::Slow => "slow",
        Kind::RollingRestart => "rolling_restart",
        Kind::PowerCut => "power_cut",
        Kind::PowerCutAll => "power_cut_all",
        Kind::MasterKill => "master_kill",
        Kind::MasterOutOfReach => "master_out_of_reach",
        Kind::MasterPowerCut => "master_power_cut",
        Kind::ClientKill => "client_kill",
        Kind::WallJump => "wall_jump",
        Kind::ReadErrors => "read_errors",
        Kind::WriteErrors => "write_errors",
        Kind::SyncErrors => "sync_errors",
        Kind::BadDisks => "bad_disks",
        Kind::StrayWrites => "stray_writes",
        Kind::Rot => "bit_rot",
        Kind::Latent => "latent_error",
        Kind::Full => "disk_full",
        Kind::Wipe => "wipe",
        Kind::Strand => "strand",
        Kind::Deafen => "deafen",
    }
}
