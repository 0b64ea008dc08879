//! Which faults a seed has, and how bad they are.
//!
//! Swarm testing (Groce and others, ISSTA 2012): each seed turns on a random part of all kinds, with sizes and rates of its
//! own. So there are runs with nothing but paused processes, and none of the kinds hides another one for good.

use super::disk::Sickness;
use super::network::Weather;
use super::scheduler::ms;
use crate::random::Random;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Packets are late, lost, doubled, connections break.
    Weather,
    /// Two hosts cannot reach each other, in one direction or both.
    Cut,
    /// One host can reach nobody.
    Isolate,
    /// The hosts fall into two parts.
    Split,
    /// The links of some hosts stop one by one, and go on in another order (swizzle-clog).
    Clog,
    /// A chunk server is killed and starts again.
    Kill,
    /// Some chunk servers are killed at once.
    KillSome,
    /// A chunk server is killed again and again.
    CrashLoop,
    /// A process stops and goes on, perhaps after its lease.
    Pause,
    /// A process is slow.
    Slow,
    /// All chunk servers start anew, one after the other.
    RollingRestart,
    /// A host of a chunk server loses power.
    PowerCut,
    /// All hosts of chunk servers lose power.
    PowerCutAll,
    /// The master is killed.
    MasterKill,
    /// The master is killed, and some chunk servers do not reach the one that follows at once.
    MasterOutOfReach,
    /// The master's host loses power.
    MasterPowerCut,
    /// A client dies, and another one comes.
    ClientKill,
    /// Wall time jumps.
    WallJump,
    /// Reads of a disk fail.
    ReadErrors,
    /// Writes to a disk fail, in part.
    WriteErrors,
    /// Syncs of a disk fail.
    SyncErrors,
    /// Syncs fail on all disks, and then all hosts lose power.
    BadDisks,
    /// Writes go astray, or are lost.
    StrayWrites,
    /// Bits flip on a disk.
    Rot,
    /// Sectors of a disk cannot be read.
    Latent,
    /// A disk is full.
    Full,
    /// A chunk server comes back with an empty disk.
    Wipe,
    /// A primary reaches no other chunk server, and is killed after that.
    Strand,
    /// A primary hears half of what the master says, which hears it; and does not reach a member for a part of that time.
    Deafen,
}

impl Kind {
    /// Those of ordinary seeds. [`Kind::Strand`] and [`Kind::Deafen`] are of duels alone.
    pub const ALL: [Self; 27] = [
        Self::Weather,
        Self::Cut,
        Self::Isolate,
        Self::Split,
        Self::Clog,
        Self::Kill,
        Self::KillSome,
        Self::CrashLoop,
        Self::Pause,
        Self::Slow,
        Self::RollingRestart,
        Self::PowerCut,
        Self::PowerCutAll,
        Self::MasterKill,
        Self::MasterOutOfReach,
        Self::MasterPowerCut,
        Self::ClientKill,
        Self::WallJump,
        Self::ReadErrors,
        Self::WriteErrors,
        Self::SyncErrors,
        Self::BadDisks,
        Self::StrayWrites,
        Self::Rot,
        Self::Latent,
        Self::Full,
        Self::Wipe,
    ];
}

impl Kind {
    /// Returns whether it is a disk that does what it should not.
    pub fn is_of_disks(self) -> bool {
        matches!(
            self,
            Self::ReadErrors
                | Self::WriteErrors
                | Self::SyncErrors
                | Self::BadDisks
                | Self::StrayWrites
                | Self::Rot
                | Self::Latent
                | Self::Wipe
        )
    }
}

/// Whether data may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every chunk keeps a good copy: all must be well in the end.
    Atlas,
    /// All hosts may lose power at once, and no disk does anything worse than to forget what was not synced: what was
    /// synced must be there in the end.
    Power,
    /// Anything goes: the cluster may stop, and must not lie.
    Unlimited,
}

/// What the faults of a seed are like.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// Whether data may be lost.
    pub mode: Mode,
    /// The kinds that are on, with their weights.
    pub kinds: Vec<(Kind, u64)>,
    /// How many strikes there are.
    pub strikes: u32,
    /// Mean time between two of them, in milliseconds.
    pub pause_ms: u64,
    /// Longest time that a fault lasts as a rule, in milliseconds.
    pub lasts_ms: u64,
    /// The network in good times.
    pub calm: Weather,
    /// How often the kernel writes back what was not synced.
    pub writeback_ppm: u64,
    /// All clients work on a few units of one chunk, and most faults are of those who have it: see [`is_duel`].
    pub is_duel: bool,
}

/// Returns whether a seed is a duel: two of each thirteen are.
///
/// What goes wrong only when a fault comes between two requests for the same units is rare in a cluster with many chunks.
pub fn is_duel(seed: u64) -> bool {
    matches!(seed % 13, 3 | 4)
}

impl Swarm {
    /// Draws the swarm of a seed.
    pub fn draw(rng: &mut Random) -> Self {
        let mode = match rng.below(10) {
            0..=4 => Mode::Atlas,
            5 | 6 => Mode::Power,
            _ => Mode::Unlimited,
        };
        let share = *rng.pick(&[80_000, 150_000, 300_000, 600_000]);
        let mut kinds: Vec<(Kind, u64)> =
            Kind::ALL.iter().filter(|_| rng.in_a_million(share)).map(|kind| (*kind, 0)).collect();
        if mode == Mode::Power {
            kinds.retain(|(kind, _)| !kind.is_of_disks());
            kinds.push((Kind::PowerCutAll, 0));
        }
        if kinds.len() < 2 {
            kinds.extend([(Kind::Kill, 0), (Kind::Cut, 0)]);
        }
        for (_, weight) in &mut kinds {
            *weight = rng.between(1, 10);
        }
        let delay_min_us = rng.between(20, 400);
        Self {
            mode,
            kinds,
            strikes: rng.between(40, 55) as u32,
            pause_ms: rng.between(200, 2_200),
            lasts_ms: *rng.pick(&[800, 3_000, 7_000, 15_000]),
            calm: Weather {
                delay_min_us,
                delay_max_us: delay_min_us + rng.between(50, 3_000),
                late_ppm: if rng.in_a_million(500_000) { 0 } else { rng.below(30_000) },
                late_max_us: ms(rng.between(5, 400)),
                lost_ppm: if rng.in_a_million(500_000) { 0 } else { rng.below(3_000) },
                twice_ppm: if rng.in_a_million(500_000) { 0 } else { rng.below(50_000) },
                reset_ppm: if rng.in_a_million(500_000) { 0 } else { rng.below(5_000) },
                echo_max_us: 0,
                unheard_ppm: 0,
            },
            writeback_ppm: *rng.pick(&[0, 50_000, 400_000]),
            is_duel: false,
        }
    }

    /// Makes it that of a duel.
    pub fn make_duel(&mut self, rng: &mut Random) {
        self.is_duel = true;
        let most = self.kinds.iter().map(|(_, weight)| weight).sum::<u64>();
        for kind in [Kind::Strand, Kind::Deafen, Kind::Kill, Kind::Cut] {
            self.kinds.push((kind, rng.between(0, most)));
        }
        if self.mode == Mode::Power {
            self.kinds.push((Kind::PowerCutAll, most));
        }
        if rng.in_a_million(500_000) {
            self.calm.unheard_ppm = rng.below(400_000);
        }
        // What arrived is sent once more, long after it was answered.
        if rng.in_a_million(700_000) {
            self.calm.twice_ppm = rng.between(50_000, 400_000);
            self.calm.echo_max_us = ms(rng.between(20, 9_000));
        }
    }

    /// Draws the kind of the next strike.
    pub fn kind(&self, rng: &mut Random) -> Kind {
        let mut draw = rng.below(self.kinds.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in &self.kinds {
            if draw < *weight {
                return *kind;
            }
            draw -= weight;
        }
        self.kinds[0].0
    }

    /// Draws how long a fault lasts, in microseconds.
    pub fn lasts(&self, rng: &mut Random) -> u64 {
        let most = if rng.in_a_million(80_000) { 40_000 } else { self.lasts_ms };
        ms(rng.between(50, most))
    }

    /// Draws a bad network.
    pub fn storm(&self, rng: &mut Random) -> Weather {
        let some = |rng: &mut Random, most: u64| if rng.in_a_million(500_000) { rng.below(most) } else { 0 };
        Weather {
            delay_min_us: self.calm.delay_min_us,
            delay_max_us: self.calm.delay_max_us + some(rng, ms(60)),
            late_ppm: some(rng, 300_000),
            late_max_us: ms(rng.between(20, 3_000)),
            lost_ppm: some(rng, 250_000),
            twice_ppm: some(rng, 300_000),
            reset_ppm: some(rng, 150_000),
            echo_max_us: self.calm.echo_max_us,
            unheard_ppm: self.calm.unheard_ppm,
        }
    }

    /// Draws what is wrong with a disk.
    pub fn sickness(&self, rng: &mut Random, kind: Kind) -> Sickness {
        let mut sickness = Sickness { writeback_ppm: self.writeback_ppm, ..Sickness::default() };
        let rate = *rng.pick(&[5_000, 50_000, 300_000]);
        match kind {
            Kind::ReadErrors => sickness.read_error_ppm = rate,
            Kind::WriteErrors => sickness.write_error_ppm = rate,
            Kind::SyncErrors | Kind::BadDisks => sickness.sync_error_ppm = rate * 3,
            Kind::StrayWrites => {
                sickness.misdirected_ppm = rng.below(rate);
                sickness.lost_write_ppm = rng.below(rate);
            }
            _ => {}
        }
        sickness
    }
}
