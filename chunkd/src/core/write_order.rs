//! The order of reads and writes at the primary of one chunk.
//!
//! Whoever wants to touch units takes a ticket. Where two ranges overlap and one of them is a write, the later ticket
//! waits until the earlier is gone; so writes to a unit are strictly ordered, and a read sees none that is not
//! committed. Writes get their seq when they are sent out, without gaps, and are committed in that order.
//!
//! # Invariants
//!
//! - No two tickets that may go on touch the same unit, unless both only read.
//! - A seq is given once in the life of this object, whatever became of its write.
//! - At most [`WRITES_MAX`] writes and [`WRITE_BYTES_MAX`] bytes are under way; a single larger write goes alone.

use dfs_proto::FsError;

/// Writes under way per chunk.
pub const WRITES_MAX: usize = 32;
/// Bytes of writes under way per chunk.
pub const WRITE_BYTES_MAX: u64 = 8 << 20;
/// Tickets per chunk, those that wait included; above, callers are asked to come again.
pub const TICKETS_MAX: usize = 1024;

/// What a ticket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reads.
    Read,
    /// Writes this many bytes.
    Write(u64),
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    first: u32,
    end: u32,
    access: Access,
    seq: Option<u64>,
}

impl Waiting {
    fn conflicts(&self, other: &Self) -> bool {
        let both_read = self.access == Access::Read && other.access == Access::Read;
        !both_read && self.first < other.end && other.first < self.end
    }
}

/// The queue of one chunk.
#[derive(Debug, Default)]
pub struct WriteOrder {
    queue: Vec<Waiting>,
    next_ticket: u64,
    last_seq: u64,
}

impl WriteOrder {
    /// Takes a ticket for units `[first, end)`.
    ///
    /// # Errors
    ///
    /// [`FsError::TryAgain`] if the queue is full.
    pub fn enter(&mut self, first: u32, end: u32, access: Access) -> Result<Ticket, FsError> {
        if self.queue.len() >= TICKETS_MAX {
            return Err(FsError::TryAgain("too many requests for one chunk"));
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.queue.push(Waiting { ticket, first, end, access, seq: None });
        Ok(ticket)
    }

    /// Returns whether nothing that came earlier stands in the way of `ticket`.
    pub fn may_start(&self, ticket: Ticket) -> bool {
        let Some(own) = self.queue.iter().position(|waiting| waiting.ticket == ticket) else { return false };
        let (earlier, own) = (&self.queue[..own], &self.queue[own]);
        if earlier.iter().any(|other| other.conflicts(own)) {
            return false;
        }
        let Access::Write(bytes) = own.access else { return true };
        let mut writes = 0;
        let mut total = bytes;
        for other in earlier {
            if let Access::Write(bytes) = other.access {
                writes += 1;
                total += bytes;
            }
        }
        writes < WRITES_MAX && (writes == 0 || total <= WRITE_BYTES_MAX)
    }

    /// Gives the write of `ticket` its seq. It is sent out next, whatever happens.
    pub fn assign(&mut self, ticket: Ticket) -> u64 {
        self.last_seq += 1;
        let seq = self.last_seq;
        let waiting = self.queue.iter_mut().find(|waiting| waiting.ticket == ticket).expect("the ticket is held");
        assert!(waiting.seq.is_none(), "a ticket is for one write");
        waiting.seq = Some(seq);
        seq
    }

    /// Returns whether no write with a lower seq is under way.
    pub fn may_commit(&self, seq: u64) -> bool {
        !self.queue.iter().any(|waiting| waiting.seq.is_some_and(|other| other < seq))
    }

    /// Gives `ticket` back. Those behind it may be able to go on.
    pub fn leave(&mut self, ticket: Ticket) {
        self.queue.retain(|waiting| waiting.ticket != ticket);
    }

    /// Returns whether no read has a ticket.
    pub fn has_no_reads(&self) -> bool {
        self.queue.iter().all(|waiting| waiting.access != Access::Read)
    }

    /// Returns the highest seq that was given or seen.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Goes on above `seq`, which was seen at some replica.
    pub fn raise(&mut self, seq: u64) {
        self.last_seq = self.last_seq.max(seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 4096;

    #[test]
    fn overlapping_writes_go_one_after_the_other_and_others_at_once() {
        let mut order = WriteOrder::default();
        let first = order.enter(0, 4, Access::Write(4 * UNIT)).expect("room");
        let overlaps = order.enter(3, 5, Access::Write(2 * UNIT)).expect("room");
        let apart = order.enter(5, 6, Access::Write(UNIT)).expect("room");
        assert!(order.may_start(first) && !order.may_start(overlaps) && order.may_start(apart));
        order.leave(first);
        assert!(order.may_start(overlaps));
    }

    #[test]
    fn reads_wait_for_writes_and_writes_for_reads_in_order_of_arrival() {
        let mut order = WriteOrder::default();
        let read = order.enter(0, 4, Access::Read).expect("room");
        let write = order.enter(0, 1, Access::Write(UNIT)).expect("room");
        let second_read = order.enter(1, 4, Access::Read).expect("room");
        let late_read = order.enter(0, 1, Access::Read).expect("room");
        assert!(order.may_start(read) && order.may_start(second_read));
        assert!(!order.may_start(write) && !order.may_start(late_read));
        order.leave(read);
        assert!(order.may_start(write) && !order.may_start(late_read));
        order.leave(write);
        assert!(order.may_start(late_read));
    }

    #[test]
    fn seqs_have_no_gaps_and_commit_in_order() {
        let mut order = WriteOrder::default();
        order.raise(7);
        let tickets = [0, 1, 2].map(|unit| order.enter(unit, unit + 1, Access::Write(UNIT)).expect("room"));
        assert_eq!(tickets.map(|ticket| order.assign(ticket)), [8, 9, 10]);
        assert!(order.may_commit(8) && !order.may_commit(9));
        order.leave(tickets[0]);
        assert!(order.may_commit(9) && !order.may_commit(10));
        order.raise(3);
        assert_eq!(order.last_seq(), 10);
    }

    #[test]
    fn thirty_two_writes_or_eight_mebibytes_are_under_way() {
        let mut order = WriteOrder::default();
        let small: Vec<_> =
            (0..33).map(|unit| order.enter(unit, unit + 1, Access::Write(UNIT)).expect("room")).collect();
        assert!(order.may_start(small[31]) && !order.may_start(small[32]));
        order.leave(small[0]);
        assert!(order.may_start(small[32]));

        let mut order = WriteOrder::default();
        let large: Vec<_> =
            (0..9).map(|at| order.enter(at * 256, (at + 1) * 256, Access::Write(1 << 20)).expect("room")).collect();
        assert!(order.may_start(large[7]) && !order.may_start(large[8]));

        let mut order = WriteOrder::default();
        let huge = order.enter(0, 16_384, Access::Write(64 << 20)).expect("room");
        assert!(order.may_start(huge), "alone, even the largest may go");
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut order = WriteOrder::default();
        for _ in 0..TICKETS_MAX {
            order.enter(0, 1, Access::Read).expect("room");
        }
        assert!(matches!(order.enter(0, 1, Access::Read), Err(FsError::TryAgain(_))));
    }
}
