//! What to read before it is asked for, for one handle.
//!
//! ```text
//!                     next                    next + window
//!   ……read already……│ ready │ fetching │ fetching │ wanted │……………
//!                     └──────── pieces, cut at multiples of 1 MiB ───┘
//! ```
//!
//! Reads that go on where the last one ended (or nearly: the kernel sends several at once, and threads take them in
//! any order) make a *run*. The window is four times what the run has read, up to its maximum; a jump ends the run
//! and drops what was fetched. A piece is dropped when all of it was handed out or the run has left it behind.
//!
//! # Invariants
//!
//! - Pieces never overlap, never cross a multiple of the piece size, and hold at most the window and one piece more.
//! - What was invalidated while it was being fetched never gets in: its id is gone.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A run shorter than this fetches nothing ahead: most small reads are not the beginning of a long one.
const RUN_BYTES_MIN: u64 = 64 * 1024;
/// The window in relation to what the run has read.
const WINDOW_FACTOR: u64 = 4;

/// A piece to be fetched; to be given back with [`ReadAhead::arrived`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Names the piece. Never used twice by one handle.
    pub id: u64,
    /// Its place in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// What is known of the beginning of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its first bytes, at least one.
    Ready(Bytes),
    /// Somebody fetches them: wait.
    Fetching,
    /// They were to be fetched, and nobody has begun: the caller does it now.
    Take(Fetch),
    /// Nothing, for as many bytes from the start of the range.
    Miss(u64),
}

#[derive(Debug)]
enum State {
    Wanted,
    Fetching,
    Ready(Bytes),
}

#[derive(Debug)]
struct Piece {
    id: u64,
    length: u64,
    handed_out: u64,
    state: State,
}

/// The read-ahead of one handle.
#[derive(Debug)]
pub struct ReadAhead {
    piece_bytes: u64,
    window_max: u64,
    next: u64,
    last_length: u64,
    run_bytes: u64,
    pieces: BTreeMap<u64, Piece>,
    next_id: u64,
}

impl ReadAhead {
    /// Returns the state of a handle that has read nothing. `piece_bytes` is a power of two; a `window_max` of 0
    /// turns read-ahead off.
    pub fn new(piece_bytes: u64, window_max: u64) -> Self {
        assert!(piece_bytes.is_power_of_two(), "pieces are cut with a mask");
        Self { piece_bytes, window_max, next: 0, last_length: 0, run_bytes: 0, pieces: BTreeMap::new(), next_id: 1 }
    }

    /// Returns the bytes of all pieces: fetched, being fetched and wanted.
    pub fn bytes(&self) -> u64 {
        self.pieces.values().map(|piece| piece.length).sum()
    }

    /// Returns whether nothing is fetched, being fetched or wanted.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Notes a read of `[offset, offset + length)` of a file of `size` bytes, and plans what to fetch ahead, at most
    /// `allowed` bytes of it. Returns the number of pieces now wanted.
    pub fn note(&mut self, offset: u64, length: u64, size: u64, allowed: u64) -> usize {
        if self.window_max == 0 || length == 0 {
            return 0;
        }
        let slack = 2 * length.max(self.last_length);
        let goes_on = offset <= self.next + slack && offset + slack >= self.next;
        self.last_length = length;
        if goes_on {
            self.next = self.next.max(offset + length);
            self.run_bytes += length;
        } else {
            self.pieces.clear();
            self.next = offset + length;
            // The first read of a run, unless at the start of the file, may as well be one of many random ones.
            self.run_bytes = 0;
        }
        self.drop_behind(self.next.saturating_sub(slack));
        if self.run_bytes < RUN_BYTES_MIN {
            return 0;
        }
        self.plan(size, allowed);
        self.pieces.values().filter(|piece| matches!(piece.state, State::Wanted)).count()
    }

    fn drop_behind(&mut self, offset: u64) {
        while let Some((&start, piece)) = self.pieces.first_key_value() {
            if start + piece.length > offset {
                break;
            }
            self.pieces.pop_first();
        }
    }

    fn plan(&mut self, size: u64, allowed: u64) {
        let window = (self.run_bytes * WINDOW_FACTOR).min(self.window_max);
        let end = (self.next + window).min(size);
        let mut held = self.bytes();
        let held_max = (window + self.piece_bytes).min(held + allowed);
        let mut at = self.next;
        while at < end {
            if let Some((&start, piece)) = self.pieces.range(..=at).next_back()
                && start + piece.length > at
            {
                at = start + piece.length;
                continue;
            }
            let piece_end = (at & !(self.piece_bytes - 1)) + self.piece_bytes;
            let before_next = self.pieces.range(at..).next().map_or(u64::MAX, |(&start, _)| start);
            let length = piece_end.min(before_next).min(size) - at;
            if held + length > held_max {
                break;
            }
            held += length;
            let id = self.next_id;
            self.next_id += 1;
            self.pieces.insert(at, Piece { id, length, handed_out: 0, state: State::Wanted });
            at += length;
        }
    }

    /// Looks for `[offset, offset + length)`, or its beginning.
    pub fn find(&mut self, offset: u64, length: u64) -> Found {
        let until_next = self.pieces.range(offset..offset + length).next().map_or(length, |(&start, _)| start - offset);
        let Some((&start, piece)) = self.pieces.range_mut(..=offset).next_back() else {
            return Found::Miss(until_next);
        };
        let end = start + piece.length;
        if end <= offset {
            return Found::Miss(until_next);
        }
        match &piece.state {
            State::Fetching => Found::Fetching,
            State::Wanted => {
                piece.state = State::Fetching;
                Found::Take(Fetch { id: piece.id, offset: start, length: piece.length })
            }
            State::Ready(bytes) => {
                let to = end.min(offset + length);
                let found = bytes.slice((offset - start) as usize..(to - start) as usize);
                piece.handed_out += to - offset;
                if piece.handed_out >= piece.length {
                    self.pieces.remove(&start);
                }
                Found::Ready(found)
            }
        }
    }

    /// Hands out the next piece to fetch.
    pub fn start(&mut self) -> Option<Fetch> {
        let (&offset, piece) = self.pieces.iter_mut().find(|(_, piece)| matches!(piece.state, State::Wanted))?;
        piece.state = State::Fetching;
        Some(Fetch { id: piece.id, offset, length: piece.length })
    }

    /// Takes what was fetched; `None`: it failed, and the run begins anew. Returns whether anybody wants it.
    pub fn arrived(&mut self, fetch: &Fetch, bytes: Option<Bytes>) -> bool {
        let Some(piece) = self.pieces.get_mut(&fetch.offset).filter(|piece| piece.id == fetch.id) else {
            return false;
        };
        match bytes {
            Some(bytes) => {
                assert_eq!(bytes.len() as u64, piece.length, "a piece arrives whole");
                piece.state = State::Ready(bytes);
            }
            None => {
                self.pieces.remove(&fetch.offset);
                self.run_bytes = 0;
            }
        }
        true
    }

    /// Forgets what overlaps `[from, to)`: it has changed.
    pub fn invalidate(&mut self, from: u64, to: u64) {
        if !self.pieces.is_empty() {
            self.pieces.retain(|&start, piece| start >= to || start + piece.length <= from);
        }
    }

    /// Forgets everything: the content is another one.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1024;
    const M: u64 = 1024 * K;

    /// Runs `script`: `read OFFSET LENGTH` shows what is newly wanted, `fetch` begins and ends the next piece.
    fn check(size: u64, script: &str) {
        let mut ahead = ReadAhead::new(M, 8 * M);
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (call, expected) = line.split_once("->").unwrap();
            let words: Vec<&str> = call.split_whitespace().collect();
            let number = |word: &str| -> u64 {
                let digits = word.trim_end_matches(['K', 'M']);
                digits.parse::<u64>().unwrap()
                    * if word.ends_with('K') {
                        K
                    } else if word.ends_with('M') {
                        M
                    } else {
                        1
                    }
            };
            let got = match words[0] {
                "read" => {
                    let (offset, length) = (number(words[1]), number(words[2]));
                    let wanted = ahead.note(offset, length, size, u64::MAX >> 1);
                    let found = match ahead.find(offset, length) {
                        Found::Ready(bytes) => format!("ready {}K", bytes.len() as u64 / K),
                        Found::Fetching => "fetching".into(),
                        Found::Take(fetch) => format!("take {}K", fetch.offset / K),
                        Found::Miss(bytes) => format!("miss {}K", bytes / K),
                    };
                    assert!(ahead.bytes() <= 9 * M);
                    format!("{found}, {wanted} wanted")
                }
                "fetch" => match ahead.start() {
                    None => "nothing".into(),
                    Some(fetch) => {
                        assert!(ahead.arrived(&fetch, Some(vec![1; fetch.length as usize].into())));
                        format!("{}K +{}K", fetch.offset / K, fetch.length / K)
                    }
                },
                "change" => {
                    ahead.invalidate(number(words[1]), number(words[2]));
                    format!("{}K held", ahead.bytes() / K)
                }
                other => panic!("{other}"),
            };
            assert_eq!(got, expected.trim(), "{line}");
        }
    }

    #[test]
    fn a_sequential_reader_gets_a_growing_window() {
        check(
            100 * M,
            "
            read 0 128K    -> miss 128K, 1 wanted
            fetch          -> 128K +896K
            read 128K 128K -> ready 128K, 1 wanted
            read 256K 768K -> ready 768K, 4 wanted
            read 1M 1M     -> take 1024K, 9 wanted
            ",
        );
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        check(
            100 * M,
            "
            read 50M 4K -> miss 4K, 0 wanted
            read 10M 4K -> miss 4K, 0 wanted
            read 70M 4K -> miss 4K, 0 wanted
            read 20M 1M -> miss 1024K, 0 wanted
            ",
        );
    }

    #[test]
    fn a_jump_drops_what_was_fetched() {
        check(
            100 * M,
            "
            read 0 1M     -> miss 1024K, 4 wanted
            fetch         -> 1024K +1024K
            read 50M 4K   -> miss 4K, 0 wanted
            fetch         -> nothing
            ",
        );
    }

    #[test]
    fn requests_out_of_order_are_one_run() {
        check(
            100 * M,
            "
            read 0 128K    -> miss 128K, 1 wanted
            read 256K 128K -> take 128K, 2 wanted
            read 128K 128K -> fetching, 1 wanted
            ",
        );
    }

    #[test]
    fn nothing_is_wanted_past_the_end() {
        check(
            1536 * K,
            "
            read 0 1M -> miss 1024K, 1 wanted
            fetch     -> 1024K +512K
            read 1M 512K -> ready 512K, 0 wanted
            fetch     -> nothing
            ",
        );
    }

    #[test]
    fn what_changed_is_not_handed_out() {
        check(
            100 * M,
            "
            read 0 1M      -> miss 1024K, 4 wanted
            fetch          -> 1024K +1024K
            fetch          -> 2048K +1024K
            change 1M 1025K -> 3072K held
            read 1M 4K     -> miss 4K, 4 wanted
            ",
        );
    }

    #[test]
    fn a_piece_that_was_invalidated_in_flight_does_not_get_in() {
        let mut ahead = ReadAhead::new(M, 8 * M);
        ahead.note(0, M, 100 * M, 100 * M);
        let fetch = ahead.start().unwrap();
        ahead.invalidate(fetch.offset, fetch.offset + 1);
        ahead.note(M, 1, 100 * M, 100 * M);
        assert!(!ahead.arrived(&fetch, Some(vec![0; M as usize].into())));
    }

    #[test]
    fn a_failed_fetch_ends_the_run() {
        let mut ahead = ReadAhead::new(M, 8 * M);
        ahead.note(0, M, 100 * M, 100 * M);
        let fetch = ahead.start().unwrap();
        assert!(ahead.arrived(&fetch, None));
        assert_eq!(ahead.find(M, 1), Found::Miss(1));
        assert_eq!(ahead.run_bytes, 0);
    }

    #[test]
    fn nothing_is_planned_beyond_what_is_allowed() {
        let mut ahead = ReadAhead::new(M, 8 * M);
        assert_eq!(ahead.note(0, M, 100 * M, 2 * M), 2);
        assert_eq!(ahead.note(M, M, 100 * M, 0), 2);
    }
}
