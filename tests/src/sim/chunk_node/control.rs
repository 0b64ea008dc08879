//! What a chunk server and the master say to each other: pulses, reports, deletions, orders, and how a failed disk is left.

use super::*;

impl ChunkNode {
    pub(super) fn registered(&mut self, context: &mut Context, registered: &Registered) {
        if self.store.join(CLUSTER).is_err() {
            return context.wake_after(self.place, ms(300), Wake::Tick(TICK_PULSE));
        }
        if !self.run().is_known && self.store.is_suspect() {
            self.store.clear_suspect();
        }
        let run = self.run();
        run.is_known = true;
        // They were those of a master that may be another one now.
        run.orders.clear();
        run.orders_known.clear();
        run.orders_running.clear();
        run.results.clear();
        run.node = Some(registered.node);
        run.key = Some(GrantKey::new(registered.key));
        run.boot = registered.boot;
        run.is_registered = true;
        context.wake_after(self.place, 0, Wake::Tick(TICK_PULSE));
    }

    pub(super) fn pulse(&mut self, context: &mut Context) {
        let sent = context.mono(self.place);
        let (server, (capacity, free), has_failed) = (self.store.server(), self.store.space(), self.store.has_failed());
        let is_suspect = self.store.is_suspect();
        let run = self.run();
        let (ask, purpose) = match run.node.filter(|_| run.is_registered) {
            Some(node) => {
                let pulse = Pulse {
                    node,
                    boot: run.boot,
                    deleted: run.deleted.clone(),
                    results: run.results.clone(),
                    fence_seq: run.fence_seq,
                };
                let results = run.results.iter().map(|outcome| outcome.id).collect();
                (Ask::Pulse(pulse), Purpose::Pulse { sent, results, deleted: run.deleted.clone() })
            }
            None => {
                let registration = Registration {
                    server,
                    boot: run.boot,
                    is_suspect: is_suspect && !run.is_known,
                    capacity,
                    free,
                    has_failed,
                };
                (Ask::Register(registration), Purpose::Register)
            }
        };
        let rpc = context.ask(self.place, Place::Master, CONTROL_TIMEOUT_US, ask);
        self.run().rpcs.insert(rpc, purpose);
    }

    pub(super) fn report(&mut self, context: &mut Context) {
        let (held, (capacity, free), has_failed) = (self.store.held(), self.store.space(), self.store.has_failed());
        let found = self.store.take_damaged();
        let run = self.run();
        run.damaged.extend(found);
        let Some(node) = run.node.filter(|_| run.is_registered) else {
            context.wake_after(self.place, ms(1_000), Wake::Tick(TICK_REPORT));
            return;
        };
        let report = Report {
            node,
            boot: run.boot,
            capacity,
            free,
            has_failed,
            damaged: held.iter().filter(|(chunk, ..)| run.damaged.contains(chunk)).copied().collect(),
            held,
        };
        let damaged = run.damaged.clone();
        let rpc = context.ask(self.place, Place::Master, CONTROL_TIMEOUT_US, Ask::Report(report));
        self.run().rpcs.insert(rpc, Purpose::Report { damaged });
    }

    pub(super) fn delete(&mut self, context: &mut Context, chunk: ChunkId) -> Result<(), FsError> {
        self.note_deletion(context, chunk);
        self.store.delete(chunk)
    }

    /// The replica is about to be deleted: whoever waits for it is told.
    pub(super) fn note_deletion(&mut self, context: &mut Context, chunk: ChunkId) {
        let version = self.store.held().iter().find(|held| held.0 == chunk).map(|held| held.2);
        if let Some(version) = version {
            context.seen.push(Seen::Deleted { server: self.at, chunk, version });
            let (now, place) = (context.now(), self.place);
            context.trace.note(now, [12, u64::from(self.at), chunk.0], || {
                format!("{place} deletes its replica of chunk {chunk}, version {version}")
            });
        }
        let run = self.run();
        run.cores.remove(&chunk);
        let gone: Vec<CallId> = run.calls.iter().filter(|(_, call)| call.chunk == chunk).map(|(id, _)| *id).collect();
        for call in gone {
            self.reply(context, call, Err(FsError::Stale("the replica was deleted")));
        }
    }

    pub(super) fn begin_orders(&mut self, context: &mut Context) {
        while self.run().orders_running.len() < ORDERS_MAX {
            let Some(order) = self.run().orders.pop_front() else { return };
            self.run().orders_running.insert(order.id);
            if let Err(error) = self.begin_order(context, &order) {
                self.order_done(context, order.id, Err(error));
            }
        }
    }

    pub(super) fn begin_order(&mut self, context: &mut Context, order: &Order) -> Result<(), FsError> {
        let chunk = order.chunk;
        let request = match order.kind {
            OrderKind::Discard { below } => {
                if self.open_core(chunk)? {
                    if self.run().cores[&chunk].version() >= below {
                        return Err(FsError::Stale("the replica is not that old"));
                    }
                    self.note_deletion(context, chunk);
                }
                self.store.discard(chunk, below)?;
                self.order_done(context, order.id, Ok(OrderReport::default()));
                return Ok(());
            }
            OrderKind::Fill { node } => ReplicaOrder::Fill { node },
            OrderKind::Scrub { deep } => ReplicaOrder::Scrub { deep },
            OrderKind::HandOver => ReplicaOrder::HandOver,
        };
        let run = self.run();
        let (Some(key), Some(node), boot) = (&run.key, run.node, run.boot) else {
            return Err(FsError::TryAgain("not registered yet"));
        };
        let grant = key.open(&order.grant).ok_or(FsError::Stale("the grant's seal is not ours"))?;
        admission::check_primary(&grant, chunk, grant.version, node, boot)?;
        self.ensure_core(chunk, &grant)?;
        let sealed = Sealed { grant: Arc::new(grant), bytes: order.grant.clone() };
        let call = self.call(context, chunk, Caller::Order(order.id), format!("{:?}", order.kind));
        self.begin(context, call, ORDER_TIMEOUT_MS, Request::Order { grant: sealed, order: request });
        Ok(())
    }

    pub(super) fn order_done(&mut self, context: &mut Context, id: u64, result: Result<OrderReport, FsError>) {
        let (now, place) = (context.now(), self.place);
        context.trace.say(now, || format!("{place} order {id}: {result:?}"));
        let run = self.run();
        if !run.orders_running.remove(&id) {
            // Of an earlier registration.
            return;
        }
        run.results.push(OrderOutcome { id, result });
        self.begin_orders(context);
    }

    // ------------------------------------------------------------ duties

    /// A disk that failed is left by all its replicas, one after the other.
    pub(super) fn leave_failed_disk(&mut self, context: &mut Context) {
        if !self.store.has_failed() {
            return;
        }
        if !std::mem::replace(&mut self.run().gave_up, true) {
            context.seen.push(Seen::DiskFailed { server: self.at });
            let (now, place) = (context.now(), self.place);
            context.trace.note(now, [13, u64::from(self.at)], || format!("{place} gives up its disk"));
        }
        if self.run().is_leaving || context.mono(self.place) >= self.run().lease_until {
            return;
        }
        for (chunk, note) in self.store.stranded() {
            if self.run().left.contains(&chunk) {
                continue;
            }
            let reason = "its disk has failed".to_owned();
            if self.run().cores.contains_key(&chunk) {
                self.run().is_leaving = true;
                let call = self.call(context, chunk, Caller::Leaving, "leave".into());
                return self.begin(context, call, OP_TIMEOUT_MS, Request::Leave { reason });
            }
            if let Some((home, version)) = note {
                let run = self.run();
                run.is_leaving = true;
                let (node, boot) = (run.node.unwrap_or_default(), run.boot);
                let change = ChangeRequest { node, boot, chunk, home, version, kind: ChangeKind::Leave, reason };
                let rpc = context.ask(self.place, Place::Master, ms(4_000), Ask::Change(change));
                self.run().rpcs.insert(rpc, Purpose::Leave { chunk });
                return;
            }
            self.run().left.insert(chunk);
        }
    }
}
