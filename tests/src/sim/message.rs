//! What the processes of a simulated cluster say to each other: what the wire would carry, without its encoding.

use bytes::Bytes;
use dfs_chunkd::core::message::{ClientRequest, PeerAnswer, PeerRequest, Reply};
use dfs_master::core::request::Call;
use dfs_master::core::session;
use dfs_mount::core::Location;
use dfs_proto::replica_set::{ChangeAnswer, ChangeRequest, Home, Order, OrderOutcome};
use dfs_proto::{BootSession, ChunkId, FsError, NodeId, Seq, SessionId, Version};

use super::network::Place;

/// Names a question and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RpcId(pub u64);

/// A question on its way.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its name.
    pub rpc: RpcId,
    /// Who asks.
    pub from: Place,
    /// In which run of its process.
    pub from_run: u64,
    /// Who is asked.
    pub to: Place,
    /// What.
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A chunk server, at its start.
    Register(Registration),
    /// A chunk server, once a second.
    Pulse(Pulse),
    /// A chunk server: what it holds.
    Report(Report),
    /// A chunk server: a change of a replica set.
    Change(ChangeRequest),
    /// A client, of the master.
    Meta {
        /// The run of the master that the connection is to; a restarted one says so before it hears anything.
        boot: BootSession,
        /// The chunk server that a look-up found dead.
        lost: Option<NodeId>,
        /// What.
        call: Call,
    },
    /// A client, of a primary.
    Data {
        /// Of which chunk.
        chunk: ChunkId,
        /// At which version, by its location.
        version: Version,
        /// Sealed.
        grant: Bytes,
        /// Of whom.
        session: SessionId,
        /// What.
        request: ClientRequest,
    },
    /// A chunk server, of another.
    Peer {
        /// Who is meant: another server may have the address by now.
        whom: NodeId,
        /// About which chunk.
        chunk: ChunkId,
        /// Who asks.
        node: NodeId,
        /// In which run.
        boot: BootSession,
        /// The version it goes by.
        version: Version,
        /// What.
        request: PeerRequest,
        /// Units.
        payload: Bytes,
    },
}

impl Ask {
    /// Returns words for a trace.
    pub fn words(&self) -> String {
        match self {
            Self::Register(registration) => format!(
                "register boot {:x}{}",
                registration.boot.0,
                if registration.is_suspect { " suspect" } else { "" }
            ),
            Self::Pulse(pulse) => format!("pulse boot {:x}", pulse.boot.0),
            Self::Report(report) => format!("report of {} replicas", report.held.len()),
            Self::Change(change) => {
                format!("chunk {} v{}: {:?} ({})", change.chunk, change.version, change.kind, change.reason)
            }
            Self::Meta { lost, call, .. } => {
                let lost = lost.map(|node| format!(", node {node} is lost")).unwrap_or_default();
                format!("#{} {:?}{lost}", call.number, call.request)
            }
            Self::Data { chunk, version, request, .. } => {
                format!("chunk {chunk} v{version}: {}", request_words(request))
            }
            Self::Peer { chunk, version, request, .. } => format!("chunk {chunk} v{version}: {}", peer_words(request)),
        }
    }
}

/// Returns words for a trace.
pub fn request_words(request: &ClientRequest) -> String {
    match request {
        ClientRequest::Write { offset, data, client, number, .. } => {
            format!("write {offset}+{} {client:x}#{number}", data.len())
        }
        ClientRequest::Zero { offset, length, client, number } => format!("zero {offset}+{length} {client:x}#{number}"),
        ClientRequest::Read { offset, length } => format!("read {offset}+{length}"),
        ClientRequest::Barrier { since } => format!("barrier since version {since}"),
        ClientRequest::Extents { offset, length } => format!("extents {offset}+{length}"),
    }
}

/// Returns words for a trace.
pub fn peer_words(request: &PeerRequest) -> String {
    match request {
        PeerRequest::Activate { activation, .. } => format!("activate {activation:x}"),
        PeerRequest::Prepare(prepare) => {
            let what = if prepare.zero { "zero" } else { "write" };
            format!(
                "prepare {what} seq {} units {}+{} (activation {:x})",
                prepare.seq, prepare.first, prepare.count, prepare.activation
            )
        }
        PeerRequest::Barrier { seq, activation, .. } => format!("barrier up to {seq} (activation {activation:x})"),
        PeerRequest::Fetch { first, count } => format!("fetch {first}+{count}"),
        PeerRequest::Push { first, states, activation, .. } => {
            format!("push {first}+{} (activation {activation:x})", states.len())
        }
        PeerRequest::Verify { first, count } => format!("verify {first}+{count}"),
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To Register.
    Registered(Result<Registered, FsError>),
    /// To Pulse; `None`: register again.
    Pulsed(Option<Pulsed>),
    /// To Report: whether the node is known.
    Reported(bool),
    /// To Change.
    Changed(ChangeAnswer),
    /// To Meta.
    Meta(MetaAnswer),
    /// To Meta, of a connection to an earlier run: this is the present one.
    AnotherRun(BootSession),
    /// To Data.
    Data(Result<Reply, FsError>),
    /// To Peer.
    Peer(Result<PeerAnswer, FsError>),
}

impl Answer {
    /// Returns words for a trace.
    pub fn words(&self) -> String {
        let failure = |error: &FsError| format!("{}: {error}", error.word());
        match self {
            Self::Registered(Ok(registered)) => format!("registered as node {}", registered.node),
            Self::Registered(Err(error)) => failure(error),
            Self::Pulsed(Some(pulsed)) => {
                format!(
                    "pulsed: {} deletions, orders {:?}",
                    pulsed.delete.len(),
                    pulsed.orders.iter().map(|order| (order.id, order.chunk.0, order.kind)).collect::<Vec<_>>()
                )
            }
            Self::Pulsed(None) => "unknown: register".into(),
            Self::Reported(known) => format!("reported, known {known}"),
            Self::Changed(changed) => match &changed.result {
                Ok(()) => "changed".into(),
                Err(error) => failure(error),
            },
            Self::Meta(answer) => match &answer.result {
                Ok(reply) => format!("{:?} (seq {}, durable {})", reply.body, reply.seq, answer.durable),
                Err(error) => failure(error),
            },
            Self::AnotherRun(boot) => format!("another run: {:x}", boot.0),
            Self::Data(Ok(Reply::Data { data, .. })) => format!("{} bytes", data.len()),
            Self::Data(Ok(reply)) => format!("{reply:?}"),
            Self::Peer(Ok(PeerAnswer::Table { present, seq, table, .. })) => {
                let units: Vec<String> = table
                    .iter()
                    .map(|(unit, state)| {
                        format!(
                            "{unit}:{}.{}{}",
                            state.stamp.version,
                            state.stamp.seq,
                            if state.hole { "-" } else { "" }
                        )
                    })
                    .collect();
                format!("table present {present} seq {seq} [{}]", units.join(" "))
            }
            Self::Peer(Ok(PeerAnswer::Units { states, .. })) => format!("{} units", states.len()),
            Self::Peer(Ok(answer)) => format!("{answer:?}"),
            Self::Data(Err(error)) | Self::Peer(Err(error)) => failure(error),
        }
    }
}

/// What a chunk server says of itself at its start.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Kept on its disks.
    pub server: [u8; 16],
    /// This run.
    pub boot: BootSession,
    /// Acknowledged writes may be missing.
    pub is_suspect: bool,
    /// Bytes of its disk, and those free.
    pub capacity: u64,
    /// Bytes left for replicas.
    pub free: u64,
    /// The disk was given up.
    pub has_failed: bool,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Registered {
    /// Its id.
    pub node: NodeId,
    /// The run that it goes by.
    pub boot: BootSession,
    /// Its lease, from when it asked.
    pub lease_ms: u64,
    /// The key of grants.
    pub key: [u8; 32],
}

/// What a chunk server says once a second.
#[derive(Clone, Debug)]
pub struct Pulse {
    /// Who.
    pub node: NodeId,
    /// In which run.
    pub boot: BootSession,
    /// Replicas that were deleted by order.
    pub deleted: Vec<ChunkId>,
    /// What became of orders.
    pub results: Vec<OrderOutcome>,
    /// Fences up to here are in force.
    pub fence_seq: u64,
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct Pulsed {
    /// The lease, from when it asked.
    pub lease_ms: u64,
    /// Replicas to be deleted.
    pub delete: Vec<ChunkId>,
    /// What is to be done.
    pub orders: Vec<Order>,
    /// Sessions whose requests are refused.
    pub fenced: Vec<SessionId>,
    /// Up to here.
    pub fence_seq: u64,
}

/// What a chunk server holds.
#[derive(Clone, Debug)]
pub struct Report {
    /// Who.
    pub node: NodeId,
    /// In which run.
    pub boot: BootSession,
    /// Bytes of its disk.
    pub capacity: u64,
    /// Bytes left for replicas.
    pub free: u64,
    /// The disk was given up.
    pub has_failed: bool,
    /// All replicas, by rising id.
    pub held: Vec<(ChunkId, Home, Version)>,
    /// Those with damaged units.
    pub damaged: Vec<(ChunkId, Home, Version)>,
}

/// The master's answer to a client.
#[derive(Clone, Debug)]
pub struct MetaAnswer {
    /// What it said.
    pub result: Result<session::Reply, FsError>,
    /// What the session may take for durable.
    pub durable: Seq,
    /// Where the chunks are that were asked for.
    pub locations: Vec<Location>,
}
