//! What a chunk server's disk is asked to do.

use dfs_chunkd::core::message::{CallId, DiskJob, Input, Tag};
use dfs_proto::ChunkId;

use super::{ChunkNode, Job};
use crate::sim::context::{Context, Event, Wake};
use crate::sim::seen::Seen;

impl ChunkNode {
    pub(super) fn keep(&mut self, job: Job) -> u64 {
        let run = self.run();
        let number = run.next;
        run.next += 1;
        run.jobs.insert(number, job);
        number
    }

    pub(super) fn plan_disk(&mut self, context: &mut Context, chunk: ChunkId, call: CallId, tag: Tag, job: DiskJob) {
        let most = match job {
            DiskJob::Sync | DiskJob::SetHeader { .. } => self.habits.disk_us * 20,
            _ => self.habits.disk_us,
        };
        let slowness = context.process(self.place).slowness;
        let delay = context.rng.below(most.max(1)) * slowness;
        let mut at = context.now().plus(delay);
        if let Some(state) = self.run().calls.get_mut(&call) {
            at = at.max(state.disk_at);
            state.disk_at = at;
        }
        let number = self.keep(Job::Carry { chunk, call, tag, job });
        let (place, run) = (self.place, context.process(self.place).run);
        context.scheduler.at(at, Event::Wake { place, run, what: Wake::Job(number) });
    }

    pub(super) fn job(&mut self, context: &mut Context, number: u64) {
        match self.run().jobs.remove(&number) {
            Some(Job::Carry { chunk, call, tag, job }) => {
                let kept = match &job {
                    DiskJob::SetHeader { version, .. } => Some(*version),
                    _ => None,
                };
                let (now, place) = (context.now(), self.place);
                context.trace.note(now, [11, u64::from(self.at), chunk.0, call.0, u64::from(tag.0)], || {
                    format!("{place} chunk {chunk}: disk {}", job_words(&job))
                });
                let result = self.store.perform(now, chunk, job);
                if let Err(error) = &result {
                    context.trace.say(now, || format!("{place} chunk {chunk}: disk says {error}"));
                }
                for mischief in self.store.disk.lock().take_mischief() {
                    context.trace.say(now, || format!("{place} disk: {mischief:?}"));
                }
                if let (Some(version), Ok(_)) = (kept, &result) {
                    context.seen.push(Seen::VersionKept { server: self.at, chunk, version });
                }
                if self.look_at_fuse(context) {
                    return;
                }
                let delay = context.rng.below(self.habits.disk_us.max(1));
                let number = self.keep(Job::Done { chunk, call, tag, result });
                context.wake_after(self.place, delay, Wake::Job(number));
            }
            Some(Job::Done { chunk, call, tag, result }) => {
                self.step(context, chunk, Input::DiskDone { call, tag, result });
            }
            Some(Job::Expire { call, at }) => {
                let Some(state) = self.run().calls.get(&call).filter(|state| state.expires == Some(at)) else { return };
                let chunk = state.chunk;
                self.step(context, chunk, Input::Expired { call });
            }
            None => {}
        }
    }

    /// Returns whether the host has stopped in the middle of what it did.
    pub(super) fn look_at_fuse(&self, context: &mut Context) -> bool {
        let is_burnt = self.store.disk.lock().is_burnt();
        if is_burnt {
            context.seen.push(Seen::Stopped { server: self.at });
        } else if self.store.trusts_failed_sync() {
            let what = format!("{}: a sync has failed, and its disk is used on", self.place);
            context.seen.push(Seen::Wrong { rule: "D4", what });
        }
        is_burnt
    }
}

fn job_words(job: &DiskJob) -> String {
    match job {
        DiskJob::Put { first, states, key, .. } => {
            let stamp = states.first().map(|state| state.stamp).unwrap_or_default();
            format!("put {first}+{} {}.{} key {key:?}", states.len(), stamp.version, stamp.seq)
        }
        other => format!("{other:?}"),
    }
}
