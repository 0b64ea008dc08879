//! The simulator: a whole cluster in one thread, from one seed.
//!
//! The real cores of master, chunk server and client run here; what is simulated is time, the network, disks, and the
//! shells around the cores.
//!
//! ```text
//! simulation   one run: phases, dispatch        strikes, faults   what goes wrong, and when (swarm)
//!   master_node chunk_node client_node          checks            what must hold at each step
//!     context   time, questions, answers        history           what clients saw; judged at the end
//!       scheduler network disk trace        catalogue         bugs on purpose, each to be found
//! ```
//!
//! The same seed gives the same run, always: nothing here asks the machine for the time, for random numbers, or for the
//! order of a hash map. `scripts/sim.sh --seed N` tells the story of one.

pub mod campaign;
pub mod catalogue;
pub mod checks;
pub mod chunk_node;
pub mod client_node;
pub mod client_session;
pub mod comparison;
pub mod context;
pub mod disk;
pub mod faults;
pub mod files;
pub mod history;
pub mod master_node;
pub mod message;
pub mod network;
pub mod scheduler;
pub mod seen;
pub mod simulation;
pub mod store;
pub mod strikes;
pub mod trace;
pub mod volume;
