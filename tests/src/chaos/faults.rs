//! What goes wrong, and when: rounds of faults from a seed, within what a cluster must survive.
//!
//! # Invariants
//!
//! - At most two chunk servers are away or slow at one time: each chunk has a third replica.
//! - A mount is not started while the master is away: it would say that there is none, and end.
//! - A fault that damages what a chunk server stores comes alone among chunk servers; the next round begins only after
//!   everything was replicated again.

use std::collections::BTreeSet;

use super::fleet::{Role, Shape};
use crate::random::Random;

/// A fault. Those with a duration last until the round is healed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9, started again when the round is healed.
    Kill(Role),
    /// kill -9 and started again at once.
    Restart(Role),
    /// A few times in a row.
    RestartLoop(Role),
    /// kill -9 of all servers, started again at once.
    RestartAll,
    /// kill -9 of all servers and mounts, started again at once.
    RestartEverything,
    /// SIGSTOP for so many milliseconds.
    Pause(Role, u64),
    /// Cut off from all others, both ways.
    Isolate(Role),
    /// It hears nobody.
    Deaf(Role),
    /// Nobody hears it.
    Mute(Role),
    /// Two cannot reach each other.
    Split(Role, Role),
    /// So many of 100 packets are lost.
    Loss(Role, u8),
    /// 10 Mbit/s.
    SlowLink(Role),
    /// Connections are reset, for a second.
    Reset(Role),
    /// The disk of a chunk server does this: a rule of faultfs.
    Disk(usize, &'static str),
    /// Power of one chunk server.
    PowerCut(usize),
    /// Power of all chunk servers at the same moment.
    PowerCutAll,
    /// Bits of chunk files, this many, while it runs.
    FlipChunks(usize, u64),
    /// Bits of a journal, while it is killed.
    FlipJournal(usize),
    /// A chunk file is removed, while it runs.
    DeleteChunk(usize),
    /// A new, empty disk.
    Wipe(usize),
    /// Away until well after the verdict.
    Away(usize),
}

impl Fault {
    /// Returns what is counted as one kind.
    pub fn kind(&self) -> String {
        let role = |role: &Role| match role {
            Role::Master => "master",
            Role::Chunk(_) => "chunk server",
            Role::Mount(_) => "mount",
        };
        match self {
            Self::Kill(who) => format!("kill -9 {}", role(who)),
            Self::Restart(who) => format!("kill -9 and restart {}", role(who)),
            Self::RestartLoop(who) => format!("restart loop {}", role(who)),
            Self::RestartAll => "kill -9 all servers".into(),
            Self::RestartEverything => "kill -9 all servers and mounts".into(),
            Self::Pause(who, ms) => format!("SIGSTOP {} {ms} ms", role(who)),
            Self::Isolate(who) => format!("isolated {}", role(who)),
            Self::Deaf(who) => format!("one-way in {}", role(who)),
            Self::Mute(who) => format!("one-way out {}", role(who)),
            Self::Split(a, b) => format!("partial partition {} / {}", role(a), role(b)),
            Self::Loss(_, percent) => format!("loss {percent} %"),
            Self::SlowLink(_) => "slow link".into(),
            Self::Reset(who) => format!("RST {}", role(who)),
            Self::Disk(_, rule) => format!("disk {}", rule.split(' ').take(2).collect::<Vec<_>>().join(" ")),
            Self::PowerCut(_) => "power cut one".into(),
            Self::PowerCutAll => "power cut all".into(),
            Self::FlipChunks(..) => "bit flips in chunk files".into(),
            Self::FlipJournal(_) => "bit flip in a journal".into(),
            Self::DeleteChunk(_) => "chunk file removed".into(),
            Self::Wipe(_) => "node wiped".into(),
            Self::Away(_) => "node away for long".into(),
        }
    }

    /// Returns which processes do not work as they should while it lasts.
    fn strikes(&self) -> Vec<Role> {
        match self {
            Self::Kill(who)
            | Self::Restart(who)
            | Self::RestartLoop(who)
            | Self::Pause(who, _)
            | Self::Isolate(who)
            | Self::Deaf(who)
            | Self::Mute(who)
            | Self::Loss(who, _)
            | Self::SlowLink(who)
            | Self::Reset(who) => vec![*who],
            Self::Split(a, b) => vec![*a, *b],
            Self::Disk(index, _)
            | Self::PowerCut(index)
            | Self::FlipChunks(index, _)
            | Self::FlipJournal(index)
            | Self::DeleteChunk(index)
            | Self::Wipe(index)
            | Self::Away(index) => vec![Role::Chunk(*index)],
            Self::RestartAll | Self::RestartEverything | Self::PowerCutAll => Vec::new(),
        }
    }

    /// Returns whether it leaves damage that only a look at everything finds.
    pub fn is_silent(&self) -> bool {
        match self {
            Self::Disk(_, rule) => ["torn", "misdirect", "flip"].iter().any(|action| rule.starts_with(action)),
            Self::FlipChunks(..) | Self::DeleteChunk(_) => true,
            _ => false,
        }
    }

    /// Returns whether the master cannot be reached for a while.
    fn takes_master(&self) -> bool {
        let is_away =
            matches!(self, Self::Kill(_) | Self::Pause(..) | Self::Isolate(_) | Self::Deaf(_) | Self::Mute(_));
        is_away && self.strikes().contains(&Role::Master)
    }

    fn starts_mount(&self) -> bool {
        matches!(self, Self::Restart(Role::Mount(_)))
    }

    /// Returns whether it comes alone.
    fn is_alone(&self) -> bool {
        matches!(self, Self::RestartAll | Self::RestartEverything | Self::PowerCutAll)
    }

    /// Returns whether what a chunk server stores is less than it was.
    fn damages(&self) -> bool {
        match self {
            Self::Disk(_, rule) => !rule.starts_with("delay"),
            Self::PowerCut(_)
            | Self::FlipChunks(..)
            | Self::FlipJournal(_)
            | Self::DeleteChunk(_)
            | Self::Wipe(_)
            | Self::Away(_) => true,
            _ => false,
        }
    }
}

/// Faults that begin together, and how long they last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Until they are healed, in milliseconds.
    pub hold_ms: u64,
}

/// What disks do.
pub const DISK_RULES: [&str; 9] = [
    "eio read * skip=20 count=30",
    "eio write * skip=50",
    "eio sync * count=1",
    "enospc write,space *",
    "delay=50 read,write *",
    "delay=300 sync *",
    "torn write * skip=30 count=3",
    "misdirect=8192 write * skip=30 count=2",
    "flip write * skip=30 count=4",
];

/// Returns a round, of faults whose kind has one of the texts in `only`; of any if there are none.
pub fn plan(shape: &Shape, seed: u64, number: u64, only: &[String]) -> Round {
    let mut random = Random::of(seed, number);
    let mut round = Round { faults: Vec::new(), hold_ms: *random.pick(&[500, 2000, 4000, 8000, 15_000]) };
    let wanted = 1 + random.below(3) as usize;
    for _ in 0..wanted * 3 {
        let mut fault = any(shape, &mut random);
        let is_wanted = |fault: &Fault| only.is_empty() || only.iter().any(|text| fault.kind().contains(text));
        for _ in 0..1000 {
            if is_wanted(&fault) {
                break;
            }
            fault = any(shape, &mut random);
        }
        if fits(&round.faults, &fault) {
            round.faults.push(fault);
        }
        if round.faults.len() == wanted || round.faults.iter().any(Fault::is_alone) {
            break;
        }
    }
    round
}

fn fits(others: &[Fault], fault: &Fault) -> bool {
    let struck: BTreeSet<Role> = others.iter().flat_map(Fault::strikes).collect();
    let chunk_servers =
        |roles: &mut dyn Iterator<Item = Role>| roles.filter(|role| matches!(role, Role::Chunk(_))).count();
    let (before, more) = (chunk_servers(&mut struck.iter().copied()), chunk_servers(&mut fault.strikes().into_iter()));
    if fault.is_alone() {
        return others.is_empty();
    }
    if fault.strikes().iter().any(|role| struck.contains(role)) {
        return false;
    }
    let needs_master = |of: &Fault, from: &Fault| of.starts_mount() && from.takes_master();
    if others.iter().any(|other| needs_master(other, fault) || needs_master(fault, other)) {
        return false;
    }
    let damaged = others.iter().any(Fault::damages);
    more == 0 || if fault.damages() { before == 0 } else { !damaged && before + more <= 2 }
}

fn any(shape: &Shape, random: &mut Random) -> Fault {
    let chunk = random.below(shape.chunk_servers as u64) as usize;
    let other = (chunk + 1 + random.below(shape.chunk_servers as u64 - 1) as usize) % shape.chunk_servers;
    let mount = Role::Mount(random.below(shape.mounts as u64) as usize);
    let server = *random.pick(&[Role::Master, Role::Chunk(chunk), Role::Chunk(other), Role::Chunk(chunk)]);
    let anyone = *random.pick(&[Role::Master, Role::Chunk(chunk), Role::Chunk(chunk), mount]);
    match random.below(26) {
        0 | 1 => Fault::Kill(server),
        2 | 3 => Fault::Restart(anyone),
        4 => Fault::RestartLoop(server),
        5 => Fault::RestartAll,
        6 => Fault::RestartEverything,
        7 | 8 => Fault::Pause(anyone, *random.pick(&[500, 3000, 20_000])),
        9 => Fault::Isolate(anyone),
        10 => Fault::Deaf(anyone),
        11 => Fault::Mute(anyone),
        12 => Fault::Split(Role::Chunk(chunk), Role::Chunk(other)),
        13 => Fault::Split(*random.pick(&[Role::Master, mount]), Role::Chunk(chunk)),
        14 => Fault::Loss(anyone, *random.pick(&[10, 30])),
        15 => Fault::SlowLink(anyone),
        16 => Fault::Reset(anyone),
        17..=19 => Fault::Disk(chunk, random.pick::<&str>(&DISK_RULES)),
        20 => Fault::PowerCut(chunk),
        21 => Fault::PowerCutAll,
        22 => Fault::FlipChunks(chunk, random.between(1, 20)),
        23 if random.chance(50) => Fault::FlipJournal(chunk),
        23 => Fault::DeleteChunk(chunk),
        24 => Fault::Wipe(chunk),
        _ => Fault::Away(chunk),
    }
}

/// The rounds of a short run: one of each class of faults that has found something.
pub fn short() -> Vec<Round> {
    let round = |hold_ms, faults: &[Fault]| Round { faults: faults.to_vec(), hold_ms };
    vec![
        round(4000, &[Fault::Kill(Role::Chunk(0)), Fault::Restart(Role::Mount(0))]),
        round(2000, &[Fault::Restart(Role::Master), Fault::Pause(Role::Chunk(1), 3000)]),
        round(3000, &[Fault::PowerCut(2), Fault::Loss(Role::Mount(1), 10)]),
        round(3000, &[Fault::Split(Role::Chunk(0), Role::Chunk(3)), Fault::SlowLink(Role::Master)]),
        round(3000, &[Fault::Disk(3, "eio sync * count=1"), Fault::Pause(Role::Mount(0), 500)]),
        round(1000, &[Fault::RestartAll]),
        round(2000, &[Fault::FlipChunks(1, 10), Fault::Reset(Role::Mount(1))]),
        round(4000, &[Fault::Isolate(Role::Chunk(2))]),
        round(1000, &[Fault::PowerCutAll]),
        round(2000, &[Fault::Wipe(0)]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape { chunk_servers: 4, mounts: 2, settings: Vec::new(), mount_options: String::new() }
    }

    #[test]
    fn a_seed_gives_the_same_rounds_of_many_kinds_and_none_that_must_not_be_survived() {
        let rounds: Vec<Round> = (0..2000).map(|number| plan(&shape(), 7, number, &[])).collect();
        assert_eq!(rounds, (0..2000).map(|number| plan(&shape(), 7, number, &[])).collect::<Vec<_>>());
        let kinds: BTreeSet<String> = rounds.iter().flat_map(|round| &round.faults).map(Fault::kind).collect();
        assert!(kinds.len() >= 40, "{kinds:?}");
        for round in rounds.into_iter().chain(short()) {
            let struck: Vec<Role> = round.faults.iter().flat_map(Fault::strikes).collect();
            let chunk_servers = struck.iter().filter(|role| matches!(role, Role::Chunk(_))).count();
            let damaged = round.faults.iter().filter(|fault| fault.damages()).count();
            assert!(!round.faults.is_empty() && chunk_servers <= 2 && damaged <= 1, "{round:?}");
            assert!(damaged == 0 || chunk_servers == 1, "{round:?}");
            let is_there = |is: fn(&Fault) -> bool| round.faults.iter().any(is);
            assert!(!is_there(Fault::takes_master) || !is_there(Fault::starts_mount), "{round:?}");
            assert!(round.faults.len() == 1 || !round.faults.iter().any(Fault::is_alone), "{round:?}");
        }
    }
}
