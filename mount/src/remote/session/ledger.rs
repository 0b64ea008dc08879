//! The requests of a session that change something: under way, or answered and not yet durable at the master.
//!
//! ```text
//!   begin ─▶ under way ── reply seen ─▶ kept ── durable_seq ≥ its seq ─▶ forgotten
//! ```
//!
//! # What a master that lost its last moments is told, and in which order
//!
//! A kept request has its place in the order of changes: the `seq` of its reply. One whose reply was not seen may have
//! been carried out all the same, and others may rest on it: a thread saw the directory that another thread's `mkdir`,
//! not answered yet, had made, and put a file into it. So it is replayed too, at the only place that is right for all
//! that can be known:
//!
//! - *behind* everything the mount had seen when it was begun (its *floor*): the master carried that out before;
//! - *before* the first change above its floor with a greater number: what rests on it was begun after it.
//!
//! # Invariants
//!
//! - A number names one request for as long as the session lives; no number that can still be asked about (under way or
//!   kept) is below an `acked_below` that was sent.
//! - Floors rise with numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use dfs_proto::wire::pb::{self, meta_reply, meta_request};

/// Replies that are kept for a replay. Above it, calls first wait until the master has synced.
const KEPT_MAX: usize = 4_096;

/// A request whose reply was not seen yet.
#[derive(Debug)]
struct UnderWay {
    request: Arc<pb::MetaRequest>,
    /// Everything up to this position was carried out before it.
    floor: u64,
    /// A master may have it.
    is_sent: bool,
    /// A recovery has sent it.
    is_replayed: bool,
    /// What is known of the outcome by other ways than the reply; `seq` 0: nothing.
    replay: pb::Replay,
}

/// A request whose reply was seen, and what the reply said.
#[derive(Debug)]
struct Kept {
    request: Arc<pb::MetaRequest>,
    replay: pb::Replay,
}

/// The requests of one session.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    last_number: u64,
    under_way: BTreeMap<u64, UnderWay>,
    kept: BTreeMap<u64, Kept>,
    durable_seq: u64,
    seen_seq: u64,
    /// The last position of what was replayed. A change of before may stand at another position now, up to this one.
    replayed_seq: u64,
}

impl Ledger {
    /// Gives `request` its number, and the number below which no reply will be asked for again. Returns the number;
    /// `None` if too many replies are kept: sync first.
    pub(super) fn begin(&mut self, request: &mut pb::MetaRequest) -> Option<u64> {
        if self.kept.len() >= KEPT_MAX {
            return None;
        }
        self.last_number += 1;
        let number = self.last_number;
        let oldest = [self.kept.keys().next(), self.under_way.keys().next()].into_iter().flatten().min();
        (request.number, request.acked_below) = (number, oldest.map_or(number, |&oldest| oldest));
        let under_way = UnderWay {
            request: Arc::new(request.clone()),
            floor: self.seen_seq,
            is_sent: false,
            is_replayed: false,
            replay: pb::Replay::default(),
        };
        self.under_way.insert(number, under_way);
        Some(number)
    }

    /// Notes that a master may get to see the request from now on.
    pub(super) fn sent(&mut self, number: u64) {
        if let Some(under_way) = self.under_way.get_mut(&number) {
            under_way.is_sent = true;
        }
    }

    /// Ends a request, however it ended.
    pub(super) fn end(&mut self, number: u64) {
        self.under_way.remove(&number);
    }

    /// Takes a reply that counts. Returns whether the request was replayed before it was answered.
    pub(super) fn answered(&mut self, number: u64, reply: &pb::MetaReply) -> bool {
        self.note(reply.seq, reply.durable_seq);
        let Some(under_way) = self.under_way.get(&number) else { return false };
        if reply.seq > self.durable_seq {
            let kept = Kept { request: Arc::clone(&under_way.request), replay: replay_of(reply) };
            self.kept.insert(number, kept);
        }
        under_way.is_replayed
    }

    /// Takes the reply of a master that is gone: if the request is replayed, then with what this one said.
    pub(super) fn answered_too_late(&mut self, number: u64, reply: &pb::MetaReply) {
        if let Some(under_way) = self.under_way.get_mut(&number) {
            under_way.replay = replay_of(reply);
        }
    }

    /// Takes note of what a reply says of the master's log.
    pub(super) fn note(&mut self, seq: u64, durable_seq: u64) {
        self.seen_seq = self.seen_seq.max(seq);
        self.durable_seq = self.durable_seq.max(durable_seq);
        let durable = self.durable_seq;
        if self.kept.first_key_value().is_some_and(|(_, kept)| kept.replay.seq <= durable) {
            self.kept.retain(|_, kept| kept.replay.seq > durable);
        }
    }

    /// Takes note of what a reply shows of changes by whomever: requests that begin now may rest on it.
    pub(super) fn note_shown(&mut self, request: Option<&meta_request::Body>, reply: Option<&meta_reply::Body>) {
        use meta_reply::Body;
        let attr = match reply {
            Some(Body::Entry(entry)) => entry.attr,
            Some(Body::Opened(opened)) => opened.attr,
            Some(Body::Chunks(chunks)) => chunks.attr,
            Some(Body::InlineData(data)) => data.attr,
            Some(Body::Listing(listing)) => {
                let seqs = listing.entries.iter().filter_map(|entry| entry.attr.map(|attr| attr.seq));
                self.seen_seq = seqs.fold(self.seen_seq, u64::max);
                None
            }
            _ => None,
        };
        let Some(attr) = attr else { return };
        self.seen_seq = self.seen_seq.max(attr.seq);
        if let Some(meta_request::Body::Lookup(lookup)) = request {
            self.learn_made(lookup, &attr);
        }
    }

    /// A name was looked up that a request under way is making: then this is what it made.
    fn learn_made(&mut self, lookup: &pb::Lookup, attr: &pb::Attr) {
        for under_way in self.under_way.values_mut() {
            if let Some(meta_request::Body::Make(make)) = &under_way.request.body
                && make.parent == lookup.parent
                && make.name == lookup.name
                && under_way.replay.seq == 0
            {
                under_way.replay.inode = attr.inode;
                under_way.replay.time = attr.btime;
            }
        }
    }

    /// Returns the last position that was seen.
    pub(super) fn seen_seq(&self) -> u64 {
        self.seen_seq
    }

    /// Returns whether the change at `seq` is known to be on the master's stable media.
    pub(super) fn is_durable(&self, seq: u64) -> bool {
        self.durable_seq >= seq.max(self.replayed_seq)
    }

    /// Returns the number of changes that are not known to be durable.
    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Returns the numbers of the requests to be replayed, in this order.
    pub(super) fn to_replay(&self) -> Vec<u64> {
        let mut order: Vec<(u64, u64)> = self.kept.iter().map(|(&number, kept)| (kept.replay.seq, number)).collect();
        let sent = self.under_way.iter().filter(|(number, of)| of.is_sent && !self.kept.contains_key(number));
        let (known, unknown): (Vec<_>, Vec<_>) = sent.partition(|(_, under_way)| under_way.replay.seq > 0);
        order.extend(known.iter().map(|(number, under_way)| (under_way.replay.seq, **number)));
        order.sort_unstable();
        for (&number, under_way) in unknown {
            let rests_on_it = |&(seq, other): &(u64, u64)| seq > under_way.floor && other > number;
            let at = order.iter().position(rests_on_it).unwrap_or(order.len());
            order.insert(at, (under_way.floor, number));
        }
        order.into_iter().map(|(_, number)| number).collect()
    }

    /// Returns a request as it is replayed, `now` being the time of one that has none yet.
    pub(super) fn replay(&mut self, number: u64, now: i64) -> Option<pb::MetaRequest> {
        if let Some(kept) = self.kept.get(&number) {
            let mut request = pb::MetaRequest::clone(&kept.request);
            request.replay = Some(kept.replay.clone());
            // What is open was reclaimed already: a second open would never be released.
            if let Some(meta_request::Body::Make(make)) = &mut request.body {
                make.open = false;
            }
            return Some(request);
        }
        let under_way = self.under_way.get_mut(&number)?;
        under_way.is_replayed = true;
        let mut request = pb::MetaRequest::clone(&under_way.request);
        let replay = &under_way.replay;
        request.replay = Some(pb::Replay { time: if replay.time == 0 { now } else { replay.time }, ..replay.clone() });
        Some(request)
    }

    /// Takes the answer to a replay.
    pub(super) fn replayed(&mut self, number: u64, seq: u64) {
        self.seen_seq = self.seen_seq.max(seq);
        self.replayed_seq = self.replayed_seq.max(seq);
        if let Some(kept) = self.kept.get_mut(&number)
            && seq > 0
        {
            kept.replay.seq = seq;
        }
    }

    /// Forgets a kept request that cannot be replayed. Returns whether it was one: its change is lost.
    pub(super) fn lose(&mut self, number: u64) -> bool {
        self.kept.remove(&number).is_some()
    }

    /// Another master process answers, which has so much on its stable media.
    pub(super) fn restarted(&mut self, durable_seq: u64) {
        self.durable_seq = durable_seq;
        self.note(0, durable_seq);
    }

    /// Another session begins: nothing that is kept can be replayed in it.
    pub(super) fn new_session(&mut self, durable_seq: u64) {
        self.kept.clear();
        (self.durable_seq, self.seen_seq, self.replayed_seq) = (durable_seq, 0, 0);
    }
}

/// Returns what a repeat of the request has to make again.
pub(super) fn replay_of(reply: &pb::MetaReply) -> pb::Replay {
    let (inode, chunks) = match &reply.body {
        Some(meta_reply::Body::Entry(pb::Entry { attr: Some(attr), .. }))
        | Some(meta_reply::Body::Opened(pb::Opened { attr: Some(attr), .. })) => (attr.inode, Vec::new()),
        Some(meta_reply::Body::Chunks(chunks)) => (0, chunks.locations.iter().map(|at| at.chunk).collect()),
        _ => (0, Vec::new()),
    };
    pb::Replay { seq: reply.seq, time: reply.time, inode, chunks }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a history: `begin N` (and it is sent), `reply N SEQ`, `see SEQ` (in somebody's lookup); then says in which
    /// order the requests are replayed.
    fn check(history: &str, expected: &[u64]) {
        let mut ledger = Ledger::default();
        for event in history.split(", ") {
            let words: Vec<&str> = event.split(' ').collect();
            let numbers: Vec<u64> = words[1..].iter().map(|word| word.parse().unwrap()).collect();
            match words[0] {
                "begin" => {
                    let number = ledger.begin(&mut pb::MetaRequest::default()).unwrap();
                    assert_eq!(number, numbers[0]);
                    ledger.sent(number);
                }
                "reply" => {
                    ledger.answered(numbers[0], &pb::MetaReply { seq: numbers[1], ..Default::default() });
                    ledger.end(numbers[0]);
                }
                "see" => {
                    let attr = Some(pb::Attr { seq: numbers[0], ..Default::default() });
                    ledger.note_shown(None, Some(&meta_reply::Body::Entry(pb::Entry { attr, created: false })));
                }
                other => panic!("{other}"),
            }
        }
        assert_eq!(ledger.to_replay(), expected, "{history}");
    }

    #[test]
    fn answered_requests_are_replayed_in_the_order_of_the_log() {
        check("begin 1, begin 2, reply 2 10, reply 1 11", &[2, 1]);
    }

    #[test]
    fn one_without_a_reply_comes_before_what_may_rest_on_it() {
        check("begin 1, begin 2, reply 2 11", &[1, 2]);
        check("begin 1, see 10, begin 2, begin 3, reply 3 12, reply 2 11", &[1, 2, 3]);
    }

    #[test]
    fn and_behind_what_it_may_rest_on() {
        check("begin 1, reply 1 10, begin 2", &[1, 2]);
        // 1 is answered last, but what it did was seen before 3 began.
        check("begin 1, begin 2, see 11, begin 3, begin 4, reply 2 10, reply 1 11, reply 4 13", &[2, 1, 3, 4]);
    }

    #[test]
    fn several_without_replies_keep_the_order_in_which_they_began() {
        check("begin 1, begin 2, begin 3, reply 3 12", &[1, 2, 3]);
        check("begin 1, begin 2, begin 3, reply 1 12", &[1, 2, 3]);
    }

    #[test]
    fn what_was_never_sent_is_not_replayed() {
        let mut ledger = Ledger::default();
        ledger.begin(&mut pb::MetaRequest::default()).unwrap();
        assert_eq!(ledger.to_replay(), [0u64; 0]);
    }

    #[test]
    fn a_lookup_tells_what_an_unanswered_request_made() {
        let mut ledger = Ledger::default();
        let make = pb::Make { parent: 1, name: "a".into(), ..Default::default() };
        let body = Some(meta_request::Body::Make(make));
        let number = ledger.begin(&mut pb::MetaRequest { body, ..Default::default() }).unwrap();
        ledger.sent(number);
        let lookup = meta_request::Body::Lookup(pb::Lookup { parent: 1, name: "a".into() });
        let attr = Some(pb::Attr { inode: 57, btime: 9, seq: 3, ..Default::default() });
        ledger.note_shown(Some(&lookup), Some(&meta_reply::Body::Entry(pb::Entry { attr, created: false })));
        let replay = ledger.replay(number, 1_000).unwrap().replay.unwrap();
        assert_eq!((replay.inode, replay.time), (57, 9));
    }

    #[test]
    fn after_a_restart_old_positions_are_durable_only_once_all_that_was_replayed_is() {
        let mut ledger = Ledger::default();
        let number = ledger.begin(&mut pb::MetaRequest::default()).unwrap();
        ledger.answered(number, &pb::MetaReply { seq: 101, ..Default::default() });
        ledger.end(number);
        ledger.replayed(number, 103);
        ledger.restarted(102);
        assert!(!ledger.is_durable(101), "it stands at 103 now");
        ledger.note(0, 103);
        assert!(ledger.is_durable(101));
        assert_eq!(ledger.kept(), 0);
    }
}
