//! A client's session with the master: requests by number, a restarted master, another session after a lost one.
//!
//! As a mount does, it keeps the requests whose effect is not known to be durable, and repeats them to a master that
//! lost its last moments, in the order in which they were carried out.

use std::collections::BTreeMap;

use dfs_master::core::outcome::Body;
use dfs_master::core::request::{Call, Replay, Request, SessionOpen};
use dfs_master::core::session;
use dfs_proto::{BootSession, FsError, InodeId, Name, NodeId, Seq, SessionId};

use super::client_node::{ALL_LANES, TICK_SESSION};
use super::context::{Context, Failure, Wake};
use super::message::{Answer, Ask, MetaAnswer, RpcId};
use super::network::Place;
use super::scheduler::ms;

/// An attempt at the master gets so long.
const ATTEMPT_US: u64 = ms(2_000);

/// A request that changes something, until its effect is durable.
#[derive(Clone, Debug)]
struct Kept {
    request: Request,
    /// Everything up to here was carried out before it.
    floor: Seq,
    /// What the reply said, if it was seen.
    reply: Option<(Seq, Replay)>,
    /// Somebody waits for the reply.
    is_awaited: bool,
}

/// Where the session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// There is none; one is being opened.
    Opening,
    /// It is in use.
    Open,
    /// The master restarted: what is still to be repeated to it.
    Recovering(Vec<Recovery>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Recovery {
    Begin,
    Replay(u64),
    End,
}

/// Who asked: an operation, or the session itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Operation { lane: u32, number: u64 },
    Ping,
    Session,
}

/// What a client's operation learns.
#[derive(Debug)]
pub enum Outcome {
    /// The answer.
    Answered(Box<MetaAnswer>),
    /// Ask again later.
    Again,
    /// The session is over: so is everything that was under way.
    Lost,
}

/// The session of one client.
pub struct ClientSession {
    place: Place,
    client_id: [u8; 16],
    /// The session, 0 if there is none.
    pub id: SessionId,
    boot: BootSession,
    phase: Phase,
    next_number: u64,
    kept: BTreeMap<u64, Kept>,
    seen: Seq,
    durable: Seq,
    rpcs: BTreeMap<RpcId, Asker>,
    is_busy: bool,
}

impl ClientSession {
    /// Returns a client without a session.
    pub fn new(place: Place, context: &mut Context) -> Self {
        let mut client_id = [0; 16];
        client_id[..8].copy_from_slice(&context.rng.next().to_le_bytes());
        Self {
            place,
            client_id,
            id: SessionId(0),
            boot: BootSession(0),
            phase: Phase::Opening,
            next_number: 1,
            kept: BTreeMap::new(),
            seen: Seq(0),
            durable: Seq(0),
            rpcs: BTreeMap::new(),
            is_busy: false,
        }
    }

    /// Returns whether requests can be made.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Gives a request that changes something its number.
    pub fn number(&mut self, request: &Request) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.kept.insert(number, Kept { request: request.clone(), floor: self.seen, reply: None, is_awaited: true });
        number
    }

    /// Nobody waits for the reply to `number` any more.
    pub fn give_up(&mut self, number: u64) {
        if let Some(kept) = self.kept.get_mut(&number) {
            kept.is_awaited = false;
            if kept.reply.is_none() {
                self.kept.remove(&number);
            }
        }
    }

    /// Asks the master on behalf of `lane`; `number` 0: it changes nothing.
    pub fn ask(
        &mut self,
        context: &mut Context,
        lane: u32,
        number: u64,
        request: Request,
        lost: Option<NodeId>,
    ) -> RpcId {
        self.send(context, Asker::Operation { lane, number }, number, request, lost, None)
    }

    fn send(
        &mut self,
        context: &mut Context,
        asker: Asker,
        number: u64,
        request: Request,
        lost: Option<NodeId>,
        replay: Option<Replay>,
    ) -> RpcId {
        let acked_below = self.kept.keys().next().copied().unwrap_or(self.next_number);
        let call = Call { session: self.id, number, acked_below, uid: 0, gid: 0, replay, request };
        let rpc = context.ask(self.place, Place::Master, ATTEMPT_US, Ask::Meta { boot: self.boot, lost, call });
        self.rpcs.insert(rpc, asker);
        rpc
    }

    /// A regular look: opens a session, goes on with a recovery, or says that this client lives.
    pub fn tick(&mut self, context: &mut Context) {
        match &self.phase {
            _ if self.is_busy => {}
            Phase::Opening => {
                self.is_busy = true;
                let open = SessionOpen {
                    client_id: self.client_id.to_vec().into(),
                    host: self.place.to_string(),
                    ..Default::default()
                };
                self.send(context, Asker::Session, 0, Request::SessionOpen(open), None, None);
            }
            Phase::Open => {
                self.send(context, Asker::Ping, 0, Request::Ping, None, None);
            }
            Phase::Recovering(_) => self.recover(context),
        }
    }

    /// Returns whether `rpc` is one of this session, and for which operation it is: (lane, what it learns).
    pub fn answered(
        &mut self,
        context: &mut Context,
        rpc: RpcId,
        result: Result<Answer, Failure>,
    ) -> Option<Option<(u32, Outcome)>> {
        let asker = self.rpcs.remove(&rpc)?;
        if asker == Asker::Session {
            self.is_busy = false;
        }
        let answer = match result {
            Ok(Answer::Meta(answer)) => answer,
            Ok(Answer::AnotherRun(boot)) => {
                self.restarted(context, boot);
                return Some(again(asker));
            }
            Ok(_) | Err(_) => {
                if asker == Asker::Session {
                    context.wake_after(self.place, ms(200), Wake::Tick(TICK_SESSION));
                }
                return Some(again(asker));
            }
        };
        if matches!(answer.result, Err(FsError::UnknownSession)) {
            self.lose(context);
            return Some(match asker {
                Asker::Operation { lane, .. } => Some((lane, Outcome::Lost)),
                _ => Some((ALL_LANES, Outcome::Lost)),
            });
        }
        self.note(&answer);
        Some(match asker {
            Asker::Ping => None,
            Asker::Session => {
                self.session_answered(context, &answer);
                None
            }
            Asker::Operation { lane, .. } if matches!(answer.result, Err(FsError::TryAgain(_))) => {
                Some((lane, Outcome::Again))
            }
            Asker::Operation { lane, number } => {
                if number > 0 {
                    self.reply_seen(number, &answer);
                }
                Some((lane, Outcome::Answered(Box::new(answer))))
            }
        })
    }

    fn note(&mut self, answer: &MetaAnswer) {
        self.durable = self.durable.max(answer.durable);
        if let Ok(reply) = &answer.result {
            self.seen = self.seen.max(reply.seq);
            let shown = match &reply.body {
                Body::Entry { inode, .. } | Body::Chunks { inode, .. } => inode.seq,
                _ => Seq(0),
            };
            self.seen = self.seen.max(shown);
        }
        let durable = self.durable;
        self.kept.retain(|_, kept| kept.reply.as_ref().is_none_or(|(seq, _)| *seq > durable));
    }

    /// Returns the names of files that it made and that may be gone with it: a loss of power of the master takes what was
    /// not durable, and nobody else makes them again.
    pub fn unsettled(&self) -> Vec<Name> {
        let name = |kept: &Kept| match &kept.request {
            Request::Make(make) => Some(make.name.clone()),
            _ => None,
        };
        self.kept.values().filter_map(name).collect()
    }

    fn reply_seen(&mut self, number: u64, answer: &MetaAnswer) {
        let Some(kept) = self.kept.get_mut(&number) else { return };
        match &answer.result {
            Ok(reply) if reply.seq > self.durable => {
                kept.is_awaited = false;
                kept.reply = Some((reply.seq, replay_of(reply)));
            }
            _ => {
                self.kept.remove(&number);
            }
        }
    }

    fn restarted(&mut self, context: &mut Context, boot: BootSession) {
        if boot == self.boot {
            return;
        }
        self.boot = boot;
        if self.id == SessionId(0) {
            context.wake_after(self.place, 0, Wake::Tick(TICK_SESSION));
            return;
        }
        let mut order: Vec<(Seq, u64)> =
            self.kept.iter().filter_map(|(number, kept)| Some((kept.reply.as_ref()?.0, *number))).collect();
        order.sort_unstable();
        for (&number, kept) in self.kept.iter().filter(|(_, kept)| kept.reply.is_none()) {
            let rests_on_it = |&(seq, other): &(Seq, u64)| seq > kept.floor && other > number;
            let at = order.iter().position(rests_on_it).unwrap_or(order.len());
            order.insert(at, (kept.floor, number));
        }
        // Taken from the end.
        let mut left = vec![Recovery::End];
        left.extend(order.into_iter().rev().map(|(_, number)| Recovery::Replay(number)));
        left.push(Recovery::Begin);
        self.phase = Phase::Recovering(left);
        self.is_busy = false;
        self.recover(context);
    }

    fn recover(&mut self, context: &mut Context) {
        let Phase::Recovering(left) = &mut self.phase else { return };
        let wall = context.wall(self.place);
        let (number, request, replay) = loop {
            match left.last() {
                Some(Recovery::Begin) => break (0, reclaim(false), None),
                Some(Recovery::Replay(number)) => match self.kept.get(number) {
                    Some(kept) => {
                        let replay = kept.reply.as_ref().map(|(_, replay)| replay.clone());
                        break (
                            *number,
                            kept.request.clone(),
                            Some(replay.unwrap_or(Replay { time: wall, inode: InodeId(0) })),
                        );
                    }
                    None => {
                        left.pop();
                    }
                },
                Some(Recovery::End) => break (0, reclaim(true), None),
                None => {
                    self.phase = Phase::Open;
                    return;
                }
            }
        };
        self.is_busy = true;
        self.send(context, Asker::Session, number, request, None, replay);
    }

    fn session_answered(&mut self, context: &mut Context, answer: &MetaAnswer) {
        let pause = match (&mut self.phase, &answer.result) {
            (Phase::Opening, Ok(session::Reply { body: Body::Session { session, .. }, .. })) => {
                self.id = *session;
                self.phase = Phase::Open;
                return;
            }
            (Phase::Recovering(_), Err(FsError::TryAgain(_))) | (Phase::Opening, _) => ms(100),
            (Phase::Recovering(left), result) => {
                if let (Some(Recovery::Replay(number)), Ok(reply)) = (left.pop(), result)
                    && let Some(kept) = self.kept.get_mut(&number)
                {
                    // A reply that nobody has seen yet is asked for again.
                    if !kept.is_awaited {
                        kept.reply = Some((reply.seq, replay_of(reply)));
                    }
                }
                0
            }
            (Phase::Open, _) => return,
        };
        context.wake_after(self.place, pause, Wake::Tick(TICK_SESSION));
    }

    fn lose(&mut self, context: &mut Context) {
        let place = self.place;
        let now = context.now();
        let id = self.id;
        context.trace.note(now, [20, place.number(), id.0], || format!("{place} lost its session {id}"));
        let boot = self.boot;
        context.files.give_up(&self.unsettled());
        *self = Self::new(place, context);
        self.boot = boot;
        context.wake_after(place, ms(50), Wake::Tick(TICK_SESSION));
    }
}

fn again(asker: Asker) -> Option<(u32, Outcome)> {
    match asker {
        Asker::Operation { lane, .. } => Some((lane, Outcome::Again)),
        _ => None,
    }
}

fn reclaim(is_last: bool) -> Request {
    Request::SessionReclaim { opens: Vec::new(), is_last }
}

fn replay_of(reply: &session::Reply) -> Replay {
    let inode = match &reply.body {
        Body::Entry { inode, is_created: true } => inode.id,
        _ => InodeId(0),
    };
    Replay { time: reply.time, inode }
}
