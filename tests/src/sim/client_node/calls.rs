//! What a client says to chunk servers and to the master, and what it makes of their answers.

use super::*;

impl ClientNode {
    // ------------------------------------------------------------ calls of chunk servers

    pub(super) fn data_event(&mut self, context: &mut Context, lane: u32, generation: u64, input: Input) {
        let now = context.mono(self.place);
        let Some(Doing::Data { call, rpc, .. }) = self.doing(lane, generation) else { return };
        if let Input::Answered(_) = input {
            *rpc = None;
        }
        let step = call.step(now, input);
        self.take_step(context, lane, generation, step);
    }

    pub(super) fn take_step(&mut self, context: &mut Context, lane: u32, generation: u64, step: Step) {
        let place = self.place;
        match step {
            Step::Ask(ask) => {
                let Some(Act::Data { request, .. }) =
                    self.operation(lane).and_then(|operation| operation.acts.front().cloned())
                else {
                    return;
                };
                let location = &ask.location;
                let Some(primary) = location.primary() else { return };
                let patience = context.process(place).clock.when(ask.until).0.saturating_sub(context.now().0);
                let to = crate::sim::chunk_node::place_of(&primary.address);
                let session = self.session.id;
                let question = Ask::Data {
                    chunk: location.chunk,
                    version: location.version,
                    grant: location.grant.clone(),
                    session,
                    request,
                };
                let asked = context.ask(place, to, patience, question);
                self.rpcs.insert(asked, (lane, generation));
                if let Some(Doing::Data { rpc, .. }) = self.doing(lane, generation) {
                    *rpc = Some(asked);
                }
                let number = self.timer(Timer::Check { lane, generation });
                context.wake_at(place, ask.check_at, Wake::Job(number));
            }
            Step::LookUp(look) => self.look_up(context, lane, generation, look),
            Step::Wait { until } => {
                let number = self.timer(Timer::Passed { lane, generation });
                context.wake_at(place, until, Wake::Job(number));
            }
            Step::Done(result) => self.data_done(context, lane, result),
        }
    }

    /// Finds out whether the primary that is silent is there at all.
    pub(super) fn check(&mut self, context: &mut Context, lane: u32, generation: u64) {
        let Some(Doing::Data { rpc: Some(rpc), .. }) = self.doing(lane, generation) else { return };
        let rpc = *rpc;
        let Some(to) = context.asked_place(rpc) else { return };
        let process = context.process(to);
        let is_there = process.is_up && !process.is_paused;
        if !is_there || context.network.is_cut(self.place, to) || context.network.is_cut(to, self.place) {
            context.close(rpc);
            self.answered(context, rpc, Err(Failure::TimedOut));
        }
    }

    pub(super) fn look_up(&mut self, context: &mut Context, lane: u32, generation: u64, look: LookUp) {
        let Some(operation) = self.operation(lane) else { return };
        let file = operation.file;
        let Some(Act::Data { index, allocates, .. }) = operation.acts.front() else { return };
        let (index, allocates) = (*index, *allocates);
        if let Some(known) = self.locations.get(&(file, index))
            && look.instead_of.as_ref().is_none_or(|old| old != known)
        {
            let known = Arc::clone(known);
            return self.data_event(context, lane, generation, Input::Found(Ok(Some(known))));
        }
        if !self.session.is_open() {
            return self.data_event(context, lane, generation, Input::Found(Err(FsError::TryAgain("no session"))));
        }
        let Some(inode) = context.files.get(file).inode else { return };
        let request = if allocates {
            Request::AllocateChunks { inode, first: index, count: 1 }
        } else {
            Request::GetChunks { inode, first: index, count: 1 }
        };
        let number = if allocates { self.session.number(&request) } else { 0 };
        self.look_ups.insert(lane);
        self.session.ask(context, lane, number, request, look.lost);
    }

    pub(super) fn found(&mut self, context: &mut Context, lane: u32, answer: &MetaAnswer) {
        let Some(operation) = self.operation(lane) else { return };
        let file = operation.file;
        let (Some(Doing::Data { generation, .. }), Some(Act::Data { index, .. })) =
            (&operation.doing, operation.acts.front())
        else {
            return;
        };
        let (generation, index) = (*generation, *index);
        let found = match &answer.result {
            Ok(_) => {
                let location = answer.locations.iter().find(|location| location.index == index && !location.is_hole());
                Ok(location.cloned().map(Arc::new))
            }
            Err(error) => Err(error.clone()),
        };
        match &found {
            Ok(Some(location)) => self.locations.insert((file, index), Arc::clone(location)),
            _ => self.locations.remove(&(file, index)),
        };
        self.data_event(context, lane, generation, Input::Found(found));
    }

    pub(super) fn data_done(&mut self, context: &mut Context, lane: u32, result: Result<CallOutcome, FsError>) {
        let now = context.now();
        let Some(operation) = self.operation(lane) else { return };
        let file = operation.file;
        let reply = match operation.doing.take() {
            Some(Doing::Data { reply, .. }) => reply,
            _ => None,
        };
        let written = match &reply {
            Some(Reply::Written { version, .. }) => *version,
            _ => Version(0),
        };
        let Some(Act::Data { index, request, begun, .. }) = operation.acts.pop_front() else { return };
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                if let (What::Sync { covers, .. }, FsError::UnsyncedLost) = (&mut operation.what, &error) {
                    // This is what it is told by; there is nothing to be tried again.
                    covers.remove(index);
                }
                return self.end(context, lane, Err(error));
            }
        };
        if let Some(begun) = begun {
            context.history.end(begun, now);
        }
        match &request {
            ClientRequest::Write { .. } => {
                self.unsynced.entry(file).or_default().note(index, written, begun);
                self.uncommitted.entry(file).or_default().insert(index);
                self.after_write(context, lane);
            }
            ClientRequest::Zero { .. } if outcome == CallOutcome::Answered => {
                self.unsynced.entry(file).or_default().note(index, written, begun);
            }
            ClientRequest::Barrier { .. } if outcome == CallOutcome::Answered => {
                if let Some(Operation { what: What::Sync { covers, .. }, .. }) = self.operation(lane) {
                    context.history.cover(covers.writes(index));
                }
                context.files.synced.insert((file, index));
            }
            ClientRequest::Read { .. } => {
                if let Err(what) = self.read_done(context, lane, reply) {
                    context.seen.push(Seen::Wrong { rule: "C1", what });
                }
            }
            _ => {}
        }
        self.go_on(context, lane);
    }

    pub(super) fn after_write(&mut self, context: &mut Context, lane: u32) {
        let commit_percent = self.mix.commit_percent;
        let Some(operation) = self.operation(lane) else { return };
        let What::Write { span } = operation.what else { return };
        let end = u64::from(span.first + span.count) * u64::from(SLOT_BYTES);
        let known = self.ends.entry(span.file).or_default();
        *known = (*known).max(end);
        if context.rng.below(100) < commit_percent
            && let Some(act) = self.commit_act(context, span.file, end)
            && let Some(operation) = self.operation(lane)
        {
            operation.acts.push_back(act);
        }
    }

    pub(super) fn commit_act(&mut self, context: &Context, file: FileId, end: u64) -> Option<Act> {
        let inode = context.files.get(file).inode?;
        let written: Vec<ChunkIndex> = self.uncommitted.get(&file).into_iter().flatten().copied().collect();
        let request = Request::CommitWrite(CommitWrite { inode, end, written, ..Default::default() });
        Some(Act::Meta { request, is_change: true })
    }

    pub(super) fn read_done(&mut self, context: &mut Context, lane: u32, reply: Option<Reply>) -> Result<(), String> {
        let now = context.now();
        let Some(operation) = self.operation(lane) else { return Ok(()) };
        let What::Read { span, is_log } = operation.what else { return Ok(()) };
        let start = operation.began;
        let bytes = match reply {
            Some(Reply::Data { data, crcs }) => {
                let (_, offset, _) = place(span);
                if !data.is_empty() {
                    unit::verify(offset, &data, &crcs)
                        .map_err(|piece| format!("piece {piece} of a read does not match its checksum"))?;
                }
                data
            }
            _ => Bytes::new(),
        };
        let place = self.place;
        let values = context.history.read(span, start, now, &bytes)?;
        context.trace.note(
            now,
            [23, place.number(), values.iter().fold(0u64, |sum, value| sum.wrapping_mul(31).wrapping_add(*value))],
            || format!("{place} read file {} slots {}+{}: {values:?}", span.file.0, span.first, span.count),
        );
        if is_log && values.contains(&0) {
            let what = format!(
                "file {} is a log; its size covers slots {}+{}, which hold {values:?}",
                span.file.0, span.first, span.count
            );
            context.seen.push(Seen::ZerosInLog { what });
        }
        Ok(())
    }

    // ------------------------------------------------------------ calls of the master

    pub(super) fn meta_event(&mut self, context: &mut Context, lane: u32, outcome: Outcome) {
        let is_look_up = self.look_ups.remove(&lane);
        let answer = match outcome {
            Outcome::Answered(answer) => *answer,
            Outcome::Again | Outcome::Lost => {
                if is_look_up {
                    let Some(Doing::Data { generation, .. }) =
                        self.operation(lane).and_then(|operation| operation.doing.as_ref())
                    else {
                        return;
                    };
                    let generation = *generation;
                    return self.data_event(
                        context,
                        lane,
                        generation,
                        Input::Found(Err(FsError::TryAgain("the master"))),
                    );
                }
                return self.again(context, lane);
            }
        };
        if is_look_up {
            return self.found(context, lane, &answer);
        }
        let Some(operation) = self.operation(lane) else { return };
        if !matches!(operation.doing, Some(Doing::Meta { .. })) {
            return;
        }
        operation.doing = None;
        let Some(Act::Meta { request, .. }) = operation.acts.pop_front() else { return };
        match answer.result {
            Ok(reply) => self.meta_done(context, lane, &request, &reply.body),
            Err(error) => return self.end(context, lane, Err(error)),
        }
        self.go_on(context, lane);
    }

    pub(super) fn meta_done(&mut self, context: &mut Context, lane: u32, request: &Request, body: &Body) {
        let Some(operation) = self.operation(lane) else { return };
        let file = operation.file;
        match (request, body) {
            (Request::CommitWrite(commit), _) => {
                if commit.leave_inline {
                    context.files.get_mut(file).inode = Some(commit.inode);
                }
                if let Some(uncommitted) = self.uncommitted.get_mut(&file) {
                    commit.written.iter().for_each(|index| {
                        uncommitted.remove(index);
                    });
                }
            }
            (Request::Make(_), Body::Entry { inode, .. }) => {
                if inode.is_inline {
                    let commit = CommitWrite {
                        inode: inode.id,
                        leave_inline: true,
                        if_data_version: inode.data_version,
                        ..Default::default()
                    };
                    operation.acts.push_back(Act::Meta { request: Request::CommitWrite(commit), is_change: true });
                } else {
                    context.files.get_mut(file).inode = Some(inode.id);
                }
            }
            (Request::GetAttr { .. }, Body::Entry { inode, .. }) => self.size_seen(context, lane, inode.size),
            _ => {}
        }
    }

    pub(super) fn size_seen(&mut self, context: &mut Context, lane: u32, size: u64) {
        let Some(operation) = self.operation(lane) else { return };
        let file = operation.file;
        let slots = (size / u64::from(SLOT_BYTES)) as u32;
        if slots == 0 {
            return;
        }
        let first = context.rng.below(u64::from(slots)) as u32;
        let most = (CHUNK_SLOTS - first % CHUNK_SLOTS).min(slots - first);
        let span = Span { file, first, count: 1 + context.rng.below(u64::from(most)) as u32 };
        operation.what = What::Read { span, is_log: true };
        operation.began = context.scheduler.now();
        operation.acts.push_back(read_act(span));
    }
}
