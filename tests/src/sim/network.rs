//! Packets on their way: late, lost, twice, out of order, held back, cut off, refused.
//!
//! A question and its answer belong to one connection, so a question that cannot be answered (its process died, the
//! connection was cut) is *reset*, as TCP does it, if the asker's host can be told. Between hosts that are cut off from
//! each other nothing arrives, not even that.
//!
//! ```text
//! ask ──▶ deliver ──▶ answer ──▶ deliver      lost anywhere: the asker's own deadline
//!              │ nobody there     │ cut
//!              └────▶ reset ◀─────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Random;

/// A host of the cluster with its one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The master.
    Master,
    /// A chunk server, from 1.
    Chunk(u32),
    /// A client, from 1.
    Client(u32),
}

impl Place {
    /// Returns a number that stands for it in traces.
    pub fn number(self) -> u64 {
        match self {
            Self::Master => 0,
            Self::Chunk(at) => 100 + u64::from(at),
            Self::Client(at) => 200 + u64::from(at),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Chunk(at) => write!(f, "chunk{at}"),
            Self::Client(at) => write!(f, "client{at}"),
        }
    }
}

/// How bad the network is, in millionths and microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// A packet takes at least this long.
    pub delay_min_us: u64,
    /// And as a rule at most this long.
    pub delay_max_us: u64,
    /// How often it takes up to [`Self::late_max_us`].
    pub late_ppm: u64,
    /// The longest it takes.
    pub late_max_us: u64,
    /// How often it is lost.
    pub lost_ppm: u64,
    /// How often a question arrives twice.
    pub twice_ppm: u64,
    /// The second time may be so much later.
    pub echo_max_us: u64,
    /// How often what the master answers a chunk server is lost.
    pub unheard_ppm: u64,
    /// How often the connection is cut: before the question arrives, or before the answer does.
    pub reset_ppm: u64,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives after so many microseconds.
    Arrives(u64),
    /// It arrives twice.
    Twice(u64, u64),
    /// It does not arrive, and the asker is told after so many microseconds.
    Reset(u64),
    /// It does not arrive, and nobody is told.
    Lost,
    /// It waits until the link is let go.
    Held,
}

/// What is wrong with a link in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Cut,
    Clogged,
    Deaf,
}

/// How much a deaf host misses.
const DEAF_PPM: u64 = 500_000;

/// The links between all places.
#[derive(Debug)]
pub struct Network {
    /// How bad it is at the moment.
    pub weather: Weather,
    faults: BTreeMap<(Place, Place), Fault>,
    rng: Random,
}

impl Network {
    /// Returns a network without faults.
    pub fn new(weather: Weather, rng: Random) -> Self {
        Self { weather, faults: BTreeMap::new(), rng }
    }

    /// Decides what becomes of a packet.
    pub fn fate(&mut self, from: Place, to: Place, is_question: bool) -> Fate {
        match self.faults.get(&(from, to)) {
            Some(Fault::Cut) => return Fate::Lost,
            Some(Fault::Clogged) => return Fate::Held,
            Some(Fault::Deaf) if self.rng.in_a_million(DEAF_PPM) => return Fate::Lost,
            Some(Fault::Deaf) | None => {}
        }
        let weather = self.weather;
        if self.rng.in_a_million(weather.reset_ppm) {
            return if self.is_cut(to, from) { Fate::Lost } else { Fate::Reset(self.delay()) };
        }
        let is_of_master = from == Place::Master && matches!(to, Place::Chunk(_));
        if is_of_master && weather.unheard_ppm > 0 && self.rng.in_a_million(weather.unheard_ppm) {
            return Fate::Lost;
        }
        if self.rng.in_a_million(weather.lost_ppm) {
            return Fate::Lost;
        }
        let delay = self.delay();
        if is_question && self.rng.in_a_million(weather.twice_ppm) {
            let echo = if weather.echo_max_us > 0 { self.rng.below(weather.echo_max_us) } else { 0 };
            return Fate::Twice(delay, self.delay() + self.delay() + echo);
        }
        Fate::Arrives(delay)
    }

    /// Returns how long a packet takes.
    pub fn delay(&mut self) -> u64 {
        let weather = self.weather;
        let most = if self.rng.in_a_million(weather.late_ppm) { weather.late_max_us } else { weather.delay_max_us };
        self.rng.between(weather.delay_min_us, most.max(weather.delay_min_us))
    }

    /// Returns whether nothing gets from one place to another.
    pub fn is_cut(&self, from: Place, to: Place) -> bool {
        self.faults.get(&(from, to)).is_some_and(|fault| *fault != Fault::Deaf)
    }

    /// Cuts one direction of a link.
    pub fn cut(&mut self, from: Place, to: Place) {
        self.faults.insert((from, to), Fault::Cut);
    }

    /// Holds back what goes in one direction of a link.
    pub fn clog(&mut self, from: Place, to: Place) {
        self.faults.entry((from, to)).or_insert(Fault::Clogged);
    }

    /// Loses much of what goes in one direction of a link.
    pub fn deafen(&mut self, from: Place, to: Place) {
        self.faults.entry((from, to)).or_insert(Fault::Deaf);
    }

    /// Makes one direction of a link whole.
    pub fn mend(&mut self, from: Place, to: Place) {
        self.faults.remove(&(from, to));
    }

    /// Makes all links whole.
    pub fn mend_all(&mut self) {
        self.faults.clear();
    }

    /// Returns the links that have a fault.
    pub fn broken(&self) -> BTreeSet<(Place, Place)> {
        self.faults.keys().copied().collect()
    }
}
