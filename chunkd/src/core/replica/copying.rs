//! Making all members equal, as part of an activation: doubts, pulls, pushes, one after the other. Nothing as a rule.
//!
//! A unit that is damaged is taken from whoever has the same. If nobody has, and a member has an older one that is good,
//! then its last write was never acknowledged, since a member lacks it, and cannot be completed any more. Whoever has
//! parts of it leaves the set, so that it is not taken for one that was carried out. Tables tell units that are known to be
//! damaged as lost, so this holds for damage of any age.
//!
//! Members are counted as in the plan: 0 is our own replica.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::{FsError, NodeId};

use super::super::message::{DiskAnswer, DiskJob, Event, PeerAnswer, PeerRequest, Tag, WriteKey};
use super::super::reconcile::{self, Copy, Plan, Table};
use super::super::unit::{UnitState, WriteStamp};
use super::activation::Activation;
use super::call::{Call, News, Step};
use super::dedupe::{Fate, RequestKey};
use super::{Job, ReplicaCore};

/// How the copying goes on.
pub(super) enum Copied {
    Pending,
    Done,
    /// A member was lost over it; why.
    Lost(NodeId, String),
    /// Compare again.
    Again(FsError),
    Failed(FsError),
    OwnDisk(FsError),
    /// This replica must not be the primary's; why.
    Unfit(String),
}

/// What is left to copy.
#[derive(Debug, Default)]
pub(super) struct Copying {
    tasks: VecDeque<Task>,
    doing: Option<Doing>,
    /// The highest seq in any table.
    pub highest_seq: u64,
    /// Units that were copied.
    pub copied: u64,
    /// Units that were in doubt.
    pub doubts: u64,
}

#[derive(Debug)]
enum Task {
    /// Take units from the first of `sources` that gives them.
    Fetch { sources: Vec<usize>, first: u32, count: u32, is_needed: bool },
    /// Send units of ours to a member.
    Push { member: usize, first: u32, count: u32, is_healed: bool },
    /// Equal stamps, different content: whoever's data matches its checksum is right; ours is asked first.
    Settle { unit: u32, holders: Vec<usize> },
    /// A member has a newer state of a unit than we, and it is damaged.
    Doubt { unit: u32, source: usize, error: FsError },
}

#[derive(Debug)]
enum Doing {
    Fetching {
        tag: Tag,
        sources: Vec<usize>,
        first: u32,
        count: u32,
        is_needed: bool,
    },
    Storing {
        tags: Vec<Tag>,
        count: u32,
        keys: Vec<WriteKey>,
    },
    ReadingToPush {
        tag: Tag,
        member: usize,
        first: u32,
        count: u32,
        is_healed: bool,
    },
    Pushing {
        tag: Tag,
        member: usize,
        count: u32,
    },
    ReadingToSettle {
        tag: Tag,
        unit: u32,
        holders: Vec<usize>,
    },
    ReadingToDoubt {
        tag: Tag,
        unit: u32,
        source: usize,
        error: FsError,
    },
    /// Until the member has said which of its units are damaged, as these `bad` ones of ours are.
    Verifying {
        tag: Tag,
        member: usize,
        bad: Vec<u32>,
        good: Vec<(u32, u32)>,
    },
}

impl Copying {
    /// Returns what makes the replicas with these tables equal.
    pub fn new(tables: &[Table]) -> Self {
        let Plan { doubts, lost, pulls, pushes, highest_seq } = reconcile::plan(tables);
        let doubtful = doubts.len() as u64;
        let settle = doubts.into_iter().map(|(unit, holders)| Task::Settle { unit, holders });
        let fetch = lost.into_iter().chain(pulls).map(|Copy { member, first, count }| Task::Fetch {
            sources: vec![member],
            first,
            count,
            is_needed: true,
        });
        let push = pushes.into_iter().map(|Copy { member, first, count }| Task::Push {
            member,
            first,
            count,
            is_healed: false,
        });
        let tasks: VecDeque<_> = settle.chain(fetch).chain(push).collect();
        Self { tasks, doing: None, highest_seq, copied: 0, doubts: doubtful }
    }

    /// Returns whether units of our own replica may change.
    pub fn changes_us(&self) -> bool {
        self.tasks.iter().any(|task| !matches!(task, Task::Push { .. }))
    }
}

impl ReplicaCore {
    /// Goes on with the copying of `activation`.
    pub(super) fn copy(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        activation: &mut Activation,
        copying: &mut Copying,
        news: News,
    ) -> Copied {
        if let Some(doing) = copying.doing.take() {
            let copied = self.copied(step, call, activation, copying, doing, news);
            if let Some(copied) = copied {
                return copied;
            }
        }
        let Some(task) = copying.tasks.pop_front() else { return Copied::Done };
        let doing = match task {
            Task::Fetch { sources, first, count, is_needed } => {
                let request = PeerRequest::Fetch { first, count };
                let tag = activation.send(step, call, sources[0] - 1, request, Bytes::new());
                Doing::Fetching { tag, sources, first, count, is_needed }
            }
            Task::Push { member, first, count, is_healed } => {
                let tag = self.start(step, call, DiskJob::Read { first, count }, Job::Compare);
                Doing::ReadingToPush { tag: activation.owns(tag), member, first, count, is_healed }
            }
            Task::Settle { unit, holders } => {
                let tag = self.start(step, call, DiskJob::Read { first: unit, count: 1 }, Job::Compare);
                Doing::ReadingToSettle { tag: activation.owns(tag), unit, holders }
            }
            Task::Doubt { unit, source, error } => {
                let tag = self.start(step, call, DiskJob::Read { first: unit, count: 1 }, Job::Compare);
                Doing::ReadingToDoubt { tag: activation.owns(tag), unit, source, error }
            }
        };
        copying.doing = Some(doing);
        Copied::Pending
    }

    /// Takes in the news of what is being done. Returns `None` if it is done.
    fn copied(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        activation: &mut Activation,
        copying: &mut Copying,
        doing: Doing,
        news: News,
    ) -> Option<Copied> {
        match (doing, news) {
            (Doing::Fetching { tag, first, count, sources, is_needed }, News::Peer(known, result)) if known == tag => {
                match result.and_then(|answer| units_of(answer, count)) {
                    Ok((states, payload)) => {
                        let keys = whole_writes(activation, copying, 0, &states, &self.window.keys());
                        self.has_noted |= !keys.is_empty();
                        let mut tags = Vec::new();
                        for put in keyed_puts(first, &states, &payload, &keys) {
                            let tag = self.start(step, call, put, Job::Copy);
                            tags.push(activation.owns(tag));
                        }
                        copying.doing = Some(Doing::Storing { tags, count, keys });
                        Some(Copied::Pending)
                    }
                    Err(error) => {
                        let is_silent = step.now() >= activation.until;
                        fetch_elsewhere(activation, copying, (first, count), sources, is_needed, is_silent, error)
                    }
                }
            }
            (Doing::Storing { mut tags, count, keys }, News::Disk(known, result)) if tags.contains(&known) => {
                match result {
                    Ok(_) => tags.retain(|tag| *tag != known),
                    Err(FsError::NoSpace) => return Some(Copied::Failed(FsError::NoSpace)),
                    Err(error) => return Some(Copied::OwnDisk(error)),
                }
                if !tags.is_empty() {
                    copying.doing = Some(Doing::Storing { tags, count, keys });
                    return Some(Copied::Pending);
                }
                copying.copied += u64::from(count);
                for key in keys {
                    // The others may lack it: it is committed once this activation, or a later one, is through.
                    self.window.set(RequestKey::of(&key), Fate::Applied { activation: 0, stamp: key.stamp });
                }
                None
            }
            (Doing::ReadingToPush { tag, member, first, count, is_healed }, News::Disk(known, result))
                if known == tag =>
            {
                match result {
                    Ok(DiskAnswer::Units(states, content)) => {
                        let own = self.window.keys();
                        let read = Read { member, first, is_healed, states: &states, content: &content };
                        push_read(step, call, activation, copying, &read, &own);
                        copying.doing.is_some().then_some(Copied::Pending)
                    }
                    Ok(_) => Some(Copied::Failed(FsError::Protocol(format!("{count} units were to be read")))),
                    Err(error) => Some(Copied::OwnDisk(error)),
                }
            }
            (Doing::Pushing { tag, member, count }, News::Peer(known, result)) if known == tag => {
                let node = activation.others[member - 1].node;
                match result {
                    Ok(PeerAnswer::Done) => {
                        copying.copied += u64::from(count);
                        None
                    }
                    Ok(_) => Some(Copied::Lost(node, "it answered something else to a push".into())),
                    Err(error) => Some(refused_push(activation, member, step.now() < activation.until, error)),
                }
            }
            (Doing::ReadingToSettle { tag, unit, holders }, News::Disk(known, result)) if known == tag => {
                match result {
                    Ok(DiskAnswer::Units(states, _)) => {
                        let is_own_good = holders.contains(&0) && states.first().is_some_and(Option::is_some);
                        for member in (1..=activation.others.len()).rev() {
                            copying.tasks.push_front(Task::Push { member, first: unit, count: 1, is_healed: true });
                        }
                        if !is_own_good {
                            let sources: Vec<_> = holders.into_iter().filter(|member| *member > 0).collect();
                            copying.tasks.push_front(Task::Fetch { sources, first: unit, count: 1, is_needed: true });
                        }
                        None
                    }
                    Ok(_) => Some(Copied::Failed(FsError::Protocol("a unit was to be read".into()))),
                    Err(error) => Some(Copied::OwnDisk(error)),
                }
            }
            (Doing::ReadingToDoubt { tag, unit, source, error }, News::Disk(known, result)) if known == tag => {
                match result {
                    // As we are a member, what was written there last was never acknowledged, and cannot be had any more.
                    // No part of that write may come from whoever has the rest of it.
                    Ok(DiskAnswer::Units(states, _))
                        if states.first().is_some_and(Option::is_some)
                            || is_older_somewhere(activation, source, unit) =>
                    {
                        let wanted = state_at(&activation.tables[source], unit);
                        let has_it = |table: &Table| state_at(table, unit) == wanted;
                        for (member, table) in activation.others.iter().zip(&activation.tables[1..]) {
                            if has_it(table) {
                                self.lost.insert(member.node, "it has a part of a write only".to_owned());
                            }
                        }
                        let node = activation.others[source - 1].node;
                        Some(Copied::Lost(node, "it has a part of a write only".to_owned()))
                    }
                    // It is damaged on all, and is lost in their next tables.
                    Ok(_) => Some(Copied::Again(error)),
                    Err(error) => Some(Copied::OwnDisk(error)),
                }
            }
            (Doing::Verifying { tag, member, bad, good }, News::Peer(known, result)) if known == tag => match result {
                // They stay as they are everywhere: reads of them go on to say so.
                Ok(PeerAnswer::Verified { bad: theirs, .. }) if bad.iter().all(|unit| theirs.contains(unit)) => {
                    let push = |(first, count)| Task::Push { member, first, count, is_healed: true };
                    good.into_iter().rev().for_each(|run| copying.tasks.push_front(push(run)));
                    None
                }
                // The member's older state is good. As it is a member, what was written there last was never acknowledged:
                // it must be nowhere, or be written again as a whole.
                Ok(_) => Some(Copied::Unfit("a write that no other replica has is damaged".to_owned())),
                Err(error) => Some(refused_push(activation, member, step.now() < activation.until, error)),
            },
            (doing, _) => {
                copying.doing = Some(doing);
                Some(Copied::Pending)
            }
        }
    }
}

/// Returns what is made of a member that did not take units.
fn refused_push(activation: &Activation, member: usize, is_early: bool, error: FsError) -> Copied {
    match error {
        // It may be restarting, or follow another activation: the next attempt will tell.
        FsError::TryAgain(_) | FsError::Stale(_) | FsError::NoReplica(_) if is_early => Copied::Again(error),
        _ => Copied::Lost(activation.others[member - 1].node, error.to_string()),
    }
}

#[allow(clippy::too_many_arguments, reason = "the parts of one task")]
/// Goes on after a member did not give units: one of them may be damaged there, so each is taken from whoever has it.
fn fetch_elsewhere(
    activation: &Activation,
    copying: &mut Copying,
    (first, count): (u32, u32),
    mut sources: Vec<usize>,
    is_needed: bool,
    is_silent: bool,
    error: FsError,
) -> Option<Copied> {
    let source = sources.remove(0);
    if count > 1 {
        for unit in (first..first + count).rev() {
            let wanted = state_at(&activation.tables[source], unit);
            let has_it = |member: &usize| state_at(&activation.tables[*member], unit) == wanted;
            let sources: Vec<_> = (1..activation.tables.len()).filter(has_it).collect();
            copying.tasks.push_front(Task::Fetch { sources, first: unit, count: 1, is_needed });
        }
        return None;
    }
    if !sources.is_empty() {
        copying.tasks.push_front(Task::Fetch { sources, first, count, is_needed });
        return None;
    }
    if !is_needed {
        return None;
    }
    if is_silent {
        return Some(Copied::Lost(activation.others[source - 1].node, error.to_string()));
    }
    if matches!(error, FsError::Corrupt(_)) {
        copying.tasks.push_front(Task::Doubt { unit: first, source, error });
        return None;
    }
    Some(Copied::Again(error))
}

/// What was read to be pushed.
struct Read<'a> {
    member: usize,
    first: u32,
    is_healed: bool,
    states: &'a [Option<UnitState>],
    content: &'a Bytes,
}

/// Sends the good units of what was read to a member. Damaged ones are first taken from members that have the same:
/// without this a member that is behind would stay behind, and be taken for a good copy later.
fn push_read(
    step: &mut Step<'_>,
    call: &mut Call,
    activation: &mut Activation,
    copying: &mut Copying,
    read: &Read<'_>,
    own: &[WriteKey],
) {
    let Read { member, first, is_healed, states, content } = *read;
    let count = states.len() as u32;
    let bad = (first..).zip(states).filter(|(_, state)| state.is_none()).map(|(unit, _)| unit);
    let bad: Vec<u32> = bad.collect();
    if let Some(unit) = bad.first() {
        step.note(Event::Damaged { unit: *unit, count: bad.len() as u32, node: step.context.node });
    }
    if bad.is_empty() {
        let payload = data_of(states, content);
        let states: Vec<_> = states.iter().flatten().copied().collect();
        let keys = whole_writes(activation, copying, member, &states, own);
        let request = PeerRequest::Push { first, states, activation: activation.number, keys };
        let tag = activation.send(step, call, member - 1, request, payload);
        copying.doing = Some(Doing::Pushing { tag, member, count });
        return;
    }
    if !is_healed {
        copying.tasks.push_front(Task::Push { member, first, count, is_healed: true });
        for unit in bad {
            let wanted = state_at(&activation.tables[0], unit);
            let has_it = |other: &usize| wanted.is_some() && state_at(&activation.tables[*other], unit) == wanted;
            let sources: Vec<_> = (1..activation.tables.len()).filter(has_it).collect();
            if !sources.is_empty() {
                copying.tasks.push_front(Task::Fetch { sources, first: unit, count: 1, is_needed: false });
            }
        }
        return;
    }
    let mut at = first;
    let mut good = Vec::new();
    for run in states.chunk_by(|one, next| one.is_some() == next.is_some()) {
        let count = run.len() as u32;
        if run[0].is_some() {
            good.push((at, count));
        }
        at += count;
    }
    let tag = activation.send(step, call, member - 1, PeerRequest::Verify { first, count }, Bytes::new());
    copying.doing = Some(Doing::Verifying { tag, member, bad, good });
}

/// Returns whose writes the units are that are copied to `target`, of those writes of which nothing is left to be copied
/// there. Noted earlier, a key would stand for a write that is there in part only; noted later, for one that is there and
/// may be asked for again.
fn whole_writes(
    activation: &Activation,
    copying: &Copying,
    target: usize,
    states: &[UnitState],
    own: &[WriteKey],
) -> Vec<WriteKey> {
    let newest =
        |unit: u32| activation.tables.iter().filter_map(|table| state_at(table, unit)).map(|state| state.stamp).max();
    let is_left = |stamp: WriteStamp| {
        copying.tasks.iter().any(|task| {
            let (first, count) = match task {
                Task::Fetch { first, count, .. } if target == 0 => (*first, *count),
                Task::Push { member, first, count, .. } if *member == target => (*first, *count),
                Task::Settle { unit, .. } | Task::Doubt { unit, .. } => (*unit, 1),
                Task::Fetch { .. } | Task::Push { .. } => return false,
            };
            (first..first + count).any(|unit| newest(unit) == Some(stamp))
        })
    };
    let mut keys: Vec<WriteKey> = Vec::new();
    for run in states.chunk_by(|one, next| one.stamp == next.stamp) {
        let stamp = run[0].stamp;
        let known = own.iter().chain(activation.keys.iter().flatten()).find(|key| key.stamp == stamp);
        keys.extend(known.filter(|key| !keys.contains(key) && !is_left(stamp)));
    }
    keys
}

/// Returns the jobs that write units from `first` on, each of `keys` with the last unit of its write.
pub(super) fn keyed_puts(first: u32, states: &[UnitState], payload: &Bytes, keys: &[WriteKey]) -> Vec<DiskJob> {
    let mut jobs = Vec::new();
    let mut from = 0;
    for at in 1..=states.len() {
        let stamp = states[at - 1].stamp;
        let is_last = || !states[at..].iter().any(|state| state.stamp == stamp);
        let key = keys.iter().find(|key| key.stamp == stamp).filter(|_| is_last()).copied();
        if key.is_some() || at == states.len() {
            let (states, payload) = cut(states, payload, from, at);
            jobs.push(DiskJob::Put { first: first + from as u32, states, payload, key, needs_room: false });
            from = at;
        }
    }
    jobs
}

/// Returns the units `[from, to)` of a message.
pub(super) fn cut(states: &[UnitState], payload: &Bytes, from: usize, to: usize) -> (Vec<UnitState>, Bytes) {
    let bytes = |states: &[UnitState]| states.iter().filter(|state| !state.hole).count() * UNIT_SIZE as usize;
    let start = bytes(&states[..from]);
    let end = start + bytes(&states[from..to]);
    (states[from..to].to_vec(), payload.slice(start..end))
}

/// Returns the units in the answer to Fetch.
pub(super) fn units_of(answer: PeerAnswer, count: u32) -> Result<(Vec<UnitState>, Bytes), FsError> {
    match answer {
        PeerAnswer::Units { states, payload } if states.len() == count as usize => Ok((states, payload)),
        PeerAnswer::Units { .. } => Err(FsError::Protocol("another number of units than was asked for".into())),
        _ => Err(FsError::Protocol("the answer to fetch has no units".into())),
    }
}

/// Returns the content of those units that hold data, of what a disk has read.
pub(super) fn data_of(states: &[Option<UnitState>], content: &Bytes) -> Bytes {
    let is_data = |state: &Option<UnitState>| state.is_some_and(|state| !state.hole);
    if states.iter().all(is_data) {
        return content.clone();
    }
    let unit = UNIT_SIZE as usize;
    let mut payload = BytesMut::with_capacity(states.iter().filter(|state| is_data(state)).count() * unit);
    for (_, bytes) in states.iter().zip(content.chunks_exact(unit)).filter(|(state, _)| is_data(state)) {
        payload.extend_from_slice(bytes);
    }
    payload.freeze()
}

/// Returns whether a member has an older state of a unit than `source`, which is good as far as is known.
fn is_older_somewhere(activation: &Activation, source: usize, unit: u32) -> bool {
    let newest = state_at(&activation.tables[source], unit).map(|state| state.stamp);
    let is_older = |state: UnitState| !state.is_lost() && Some(state.stamp) < newest;
    activation.tables[1..].iter().any(|table| state_at(table, unit).is_none_or(is_older))
}

fn state_at(table: &Table, unit: u32) -> Option<UnitState> {
    table.binary_search_by_key(&unit, |(number, _)| *number).ok().map(|at| table[at].1)
}
