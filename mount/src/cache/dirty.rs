//! The buffered writes of one file: what was written and is not on replicas yet.
//!
//! ```text
//!           write                    seal                      done
//!  bytes ──────────▶ segment ──────────────────▶ in flight ─────────────▶ gone (the replicas have it)
//!                    grows, is overwritten       fixed, shared
//! ```
//!
//! A segment is a run of bytes within one *slot* (an aligned piece of the file, at most 1 MiB, that never crosses a
//! chunk boundary), so that a sealed piece is one request to one chunk server. A sequential writer appends to a
//! segment in place: small writes cost one copy each.
//!
//! A *mark* draws a line below what was written so far: the flush that drew it pushes and waits for what is older, and
//! is not held up by what a busy writer adds after it.
//!
//! # Invariants
//!
//! - Segments never overlap; pieces in flight never overlap one another.
//! - A segment may overlap pieces in flight: it is newer, and is not sealed until they are done, so that the replicas
//!   see writes of one byte in the order they were made.
//! - `bytes()` is the sum of the lengths of segments and pieces.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use dfs_proto::MonoMs;

/// A segment of this size is going to be filled: it gets the room of its whole slot at once.
const GROWS_BYTES: usize = 64 * 1024;

/// A piece in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A line between what was written before and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// A piece to be pushed.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// To be given back with [`DirtyMap::done`].
    pub ticket: Ticket,
    /// Its place in the file, in bytes.
    pub offset: u64,
    /// The bytes; never empty, never across a slot boundary.
    pub data: Bytes,
}

/// A part of a range that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its place in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub length: u64,
    /// What was written there, or `None`: look further down.
    pub data: Option<Bytes>,
}

#[derive(Debug)]
struct Segment {
    data: BytesMut,
    mark: Mark,
}

#[derive(Debug)]
struct Piece {
    ticket: Ticket,
    data: Bytes,
    mark: Mark,
}

/// The buffered writes of one file.
#[derive(Debug)]
pub struct DirtyMap {
    slot_bytes: u64,
    segments: BTreeMap<u64, Segment>,
    /// The segments by age.
    order: BTreeSet<(Mark, u64)>,
    /// The segments that fill their slot.
    full: BTreeSet<u64>,
    pieces: BTreeMap<u64, Piece>,
    tickets: BTreeMap<Ticket, u64>,
    next_ticket: u64,
    /// What is written now gets this mark.
    mark: Mark,
    /// When the first write since the last mark was made.
    begun: Option<MonoMs>,
    bytes: u64,
}

impl DirtyMap {
    /// Returns an empty map whose pieces end at multiples of `slot_bytes`, a power of two.
    pub fn new(slot_bytes: u64) -> Self {
        assert!(slot_bytes.is_power_of_two(), "slots are cut with a mask");
        Self {
            slot_bytes,
            segments: BTreeMap::new(),
            order: BTreeSet::new(),
            full: BTreeSet::new(),
            pieces: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 1,
            mark: Mark(1),
            begun: None,
            bytes: 0,
        }
    }

    /// Returns the bytes held, segments and pieces in flight.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether nothing is dirty and nothing in flight.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.pieces.is_empty()
    }

    /// Returns whether something is not sealed yet.
    pub fn has_segments(&self) -> bool {
        !self.segments.is_empty()
    }

    /// Returns the number of pieces in flight.
    pub fn in_flight(&self) -> usize {
        self.pieces.len()
    }

    /// Returns whether a whole slot waits to be pushed.
    pub fn has_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Returns whether a segment was written before `mark`.
    pub fn has_older(&self, mark: Mark) -> bool {
        self.order.first().is_some_and(|&(first, _)| first <= mark)
    }

    /// Returns whether the piece is in flight, not done or dropped.
    pub fn is_out(&self, ticket: Ticket) -> bool {
        self.tickets.contains_key(&ticket)
    }

    /// Returns the end of the last byte that is held, 0 if none is.
    pub fn end(&self) -> u64 {
        let segment = self.segments.last_key_value().map_or(0, |(&start, segment)| start + segment.data.len() as u64);
        let piece = self.pieces.last_key_value().map_or(0, |(&start, piece)| start + piece.data.len() as u64);
        segment.max(piece)
    }

    /// Returns the first byte at or after `offset` that is held.
    pub fn first_from(&self, offset: u64) -> Option<u64> {
        fn first<'a>(
            mut before: impl DoubleEndedIterator<Item = (u64, u64)> + 'a,
            mut after: impl Iterator<Item = (u64, u64)> + 'a,
            offset: u64,
        ) -> Option<u64> {
            match before.next_back() {
                Some((start, length)) if start + length > offset => Some(offset),
                _ => after.next().map(|(start, _)| start),
            }
        }
        let segments = |(&start, segment): (&u64, &Segment)| (start, segment.data.len() as u64);
        let pieces = |(&start, piece): (&u64, &Piece)| (start, piece.data.len() as u64);
        let in_segments =
            first(self.segments.range(..offset).map(segments), self.segments.range(offset..).map(segments), offset);
        let in_pieces = first(self.pieces.range(..offset).map(pieces), self.pieces.range(offset..).map(pieces), offset);
        in_segments.into_iter().chain(in_pieces).min()
    }

    /// Takes `data`, written at `offset` at the time `now`.
    pub fn write(&mut self, offset: u64, data: &[u8], now: MonoMs) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let slot_end = (at & !(self.slot_bytes - 1)) + self.slot_bytes;
            let (now_part, later) = rest.split_at(rest.len().min((slot_end - at) as usize));
            self.write_in_slot(at, now_part, slot_end);
            at += now_part.len() as u64;
            rest = later;
        }
        if !data.is_empty() && self.begun.is_none() {
            self.begun = Some(now);
        }
    }

    fn write_in_slot(&mut self, start: u64, data: &[u8], slot_end: u64) {
        let end = start + data.len() as u64;
        let slot = slot_end - self.slot_bytes;
        let before = self.segments.range(slot..=start).next_back().map(|(&at, segment)| (at, segment.data.len()));
        match before {
            Some((at, length)) if at + length as u64 >= start => {
                let segment_end = at + length as u64;
                if segment_end < end {
                    self.clear(segment_end, end);
                }
                let segment = self.segments.get_mut(&at).expect("it was just found, and lies before what was cleared");
                let skip = (start - at) as usize;
                let overlap = (length - skip).min(data.len());
                segment.data[skip..skip + overlap].copy_from_slice(&data[..overlap]);
                let tail = &data[overlap..];
                if !tail.is_empty() {
                    let room = (slot_end - at) as usize - length;
                    if length + tail.len() >= GROWS_BYTES && segment.data.capacity() - length < tail.len() {
                        segment.data.reserve(room);
                    }
                    segment.data.extend_from_slice(tail);
                    self.bytes += tail.len() as u64;
                    if segment.data.len() as u64 == self.slot_bytes {
                        self.full.insert(at);
                    }
                }
            }
            _ => {
                self.clear(start, end);
                self.insert(start, Segment { data: BytesMut::from(data), mark: self.mark });
            }
        }
    }

    fn insert(&mut self, start: u64, segment: Segment) {
        self.bytes += segment.data.len() as u64;
        self.order.insert((segment.mark, start));
        if segment.data.len() as u64 == self.slot_bytes {
            self.full.insert(start);
        }
        let old = self.segments.insert(start, segment);
        debug_assert!(old.is_none(), "segments never overlap");
    }

    fn remove(&mut self, start: u64) -> Segment {
        let segment = self.segments.remove(&start).expect("the caller has just seen it");
        self.bytes -= segment.data.len() as u64;
        self.order.remove(&(segment.mark, start));
        self.full.remove(&start);
        segment
    }

    /// Drops what segments hold of `[from, to)`.
    fn clear(&mut self, from: u64, to: u64) {
        let first = self.segments.range(..from).next_back().map_or(from, |(&start, _)| start);
        let hit: Vec<u64> = self.segments.range(first..to).map(|(&start, _)| start).collect();
        for start in hit {
            let end = start + self.segments[&start].data.len() as u64;
            if end <= from {
                continue;
            }
            let mut segment = self.remove(start);
            let mark = segment.mark;
            if end > to {
                let tail = segment.data.split_off((to - start) as usize);
                self.insert(to, Segment { data: tail, mark });
            }
            if start < from {
                segment.data.truncate((from - start) as usize);
                self.insert(start, segment);
            }
        }
    }

    /// Draws a line below all that was written so far.
    pub fn mark(&mut self) -> Mark {
        let drawn = self.mark;
        self.mark = Mark(drawn.0 + 1);
        self.begun = None;
        drawn
    }

    /// Returns whether nothing written before `mark` is held any more.
    pub fn is_clean_to(&self, mark: Mark) -> bool {
        self.order.first().is_none_or(|&(first, _)| first > mark) && self.pieces.values().all(|piece| piece.mark > mark)
    }

    /// Returns when the first write since the last mark was made.
    pub fn begun(&self) -> Option<MonoMs> {
        self.begun
    }

    /// Hands out the next piece to push: a full slot, or what was written before `to`. `None` if there is none, or
    /// if what there is has to wait for pieces in flight.
    pub fn seal(&mut self, to: Mark) -> Option<Sealed> {
        let full = self.full.iter().copied().find(|&start| !self.is_in_flight(start));
        let start = full.or_else(|| {
            self.order
                .iter()
                .take_while(|(mark, _)| *mark <= to)
                .map(|&(_, start)| start)
                .find(|&start| !self.is_in_flight(start))
        })?;
        let run = self.run_around(start);
        let offset = run[0];
        let mut mark = self.mark;
        let mut data: Option<BytesMut> = None;
        for &start in &run {
            let segment = self.remove(start);
            mark = mark.min(segment.mark);
            match &mut data {
                None => data = Some(segment.data),
                Some(data) => {
                    if data.capacity() - data.len() < segment.data.len() {
                        // Room for all that may follow, so that each byte moves at most twice.
                        data.reserve((self.slot_bytes as usize).saturating_sub(data.len()));
                    }
                    data.extend_from_slice(&segment.data);
                }
            }
        }
        let data = data.expect("a run has a first segment").freeze();
        self.forget_age_if_clean();
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.bytes += data.len() as u64;
        self.tickets.insert(ticket, offset);
        self.pieces.insert(offset, Piece { ticket, data: data.clone(), mark });
        Some(Sealed { ticket, offset, data })
    }

    /// Returns whether the segment at `start` overlaps a piece in flight.
    fn is_in_flight(&self, start: u64) -> bool {
        let end = start + self.segments[&start].data.len() as u64;
        self.pieces.range(..end).next_back().is_some_and(|(&at, piece)| at + piece.data.len() as u64 > start)
    }

    /// Returns the segments that touch the one at `start` within its slot and can be sealed with it, ascending.
    fn run_around(&self, start: u64) -> Vec<u64> {
        let slot = start & !(self.slot_bytes - 1);
        let mut first = start;
        while let Some((&at, segment)) = self.segments.range(slot..first).next_back() {
            if at + segment.data.len() as u64 != first || self.is_in_flight(at) {
                break;
            }
            first = at;
        }
        let mut run = Vec::new();
        let mut end = first;
        for (&at, segment) in self.segments.range(first..slot + self.slot_bytes) {
            if at != end || self.is_in_flight(at) {
                break;
            }
            run.push(at);
            end = at + segment.data.len() as u64;
        }
        run
    }

    /// Ends the flight of a piece, because the replicas have it or because it is given up, and returns its range
    /// (offset, length). `None` if the piece was dropped meanwhile ([`Self::drop_all`]).
    pub fn done(&mut self, ticket: Ticket) -> Option<(u64, u64)> {
        let offset = self.tickets.remove(&ticket)?;
        let piece = self.pieces.remove(&offset).expect("a ticket has its piece");
        debug_assert_eq!(piece.ticket, ticket);
        self.bytes -= piece.data.len() as u64;
        Some((offset, piece.data.len() as u64))
    }

    /// Takes a piece back: it is not pushed, and what no newer write covers is a segment again.
    pub fn unseal(&mut self, ticket: Ticket, now: MonoMs) {
        let Some(data) = self.tickets.get(&ticket).map(|offset| self.pieces[offset].data.clone()) else { return };
        let (offset, _) = self.done(ticket).expect("the ticket was just found");
        self.write_under(offset, &data, now);
    }

    /// Returns whether a piece in flight reaches past `offset`.
    pub fn is_in_flight_past(&self, offset: u64) -> bool {
        self.pieces.last_key_value().is_some_and(|(&start, piece)| start + piece.data.len() as u64 > offset)
    }

    /// Drops segments past `size`. Pieces in flight stay: wait for them first ([`Self::is_in_flight_past`]).
    pub fn truncate(&mut self, size: u64) {
        self.clear(size, u64::MAX);
        self.forget_age_if_clean();
    }

    fn forget_age_if_clean(&mut self) {
        if self.segments.is_empty() {
            self.begun = None;
        }
    }

    /// Drops everything. Tickets that are out are void.
    pub fn drop_all(&mut self) {
        *self = Self { next_ticket: self.next_ticket, mark: self.mark, ..Self::new(self.slot_bytes) };
    }

    /// Cuts `[offset, offset + length)` into what is held here, newest first, and what must come from elsewhere.
    /// Ascending and complete.
    pub fn read_over(&self, offset: u64, length: u64) -> Vec<Part> {
        let end = offset + length;
        let mut parts: Vec<Part> = Vec::new();
        let mut at = offset;
        while at < end {
            let (part_end, data) = self.part_at(at, end);
            parts.push(Part { offset: at, length: part_end - at, data });
            at = part_end;
        }
        parts
    }

    fn part_at(&self, at: u64, end: u64) -> (u64, Option<Bytes>) {
        if let Some((&start, segment)) = self.segments.range(..=at).next_back() {
            let segment_end = start + segment.data.len() as u64;
            if segment_end > at {
                let to = segment_end.min(end);
                let bytes = &segment.data[(at - start) as usize..(to - start) as usize];
                return (to, Some(Bytes::copy_from_slice(bytes)));
            }
        }
        let end = self.segments.range(at..end).next().map_or(end, |(&start, _)| start);
        if let Some((&start, piece)) = self.pieces.range(..=at).next_back() {
            let piece_end = start + piece.data.len() as u64;
            if piece_end > at {
                let to = piece_end.min(end);
                return (to, Some(piece.data.slice((at - start) as usize..(to - start) as usize)));
            }
        }
        (self.pieces.range(at..end).next().map_or(end, |(&start, _)| start), None)
    }

    /// Takes those bytes of `data`, at `offset`, over which nothing is held: older content that has to be pushed too.
    pub fn write_under(&mut self, offset: u64, data: &[u8], now: MonoMs) {
        for part in self.read_over(offset, data.len() as u64) {
            if part.data.is_none() {
                let from = (part.offset - offset) as usize;
                self.write(part.offset, &data[from..from + part.length as usize], now);
            }
        }
    }
}

#[cfg(test)]
#[path = "dirty_tests.rs"]
mod tests;
