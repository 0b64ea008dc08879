//! What a power cut may take back of one file: what its sectors and its size were before they were last synced.
//!
//! The file itself holds what programs see. Here lies, for each sector of 512 bytes that was written since the last sync
//! that covered it, what stable media still have. A sync forgets that; a power cut puts some of it back.
//!
//! # Invariants
//!
//! - Extents do not overlap, begin and end at sectors, and have the oldest content: a sector written twice goes back to
//!   what was synced.
//! - What a *failed* sync covered stays takeable until it is written again and then synced: the kernel marks the pages
//!   clean and never writes them, so that a second sync succeeds without having done anything.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::random::Random;

/// What a disk writes as a whole.
pub const SECTOR: u64 = 512;

/// What a range held before.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Before {
    Zeros,
    Bytes(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Extent {
    end: u64,
    before: Before,
    /// A sync of it failed, and it was not written since.
    lost: bool,
    /// When it was first written, in milliseconds of any clock.
    at_ms: u64,
}

/// One file's unsynced writes.
#[derive(Clone, Debug, Default)]
pub struct Unsynced {
    extents: BTreeMap<u64, Extent>,
    /// The size on stable media, and since when it is another one, if it is.
    size: Option<(u64, u64)>,
}

/// A part of a file to be put back. `bytes` is `None` for zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Where, in bytes.
    pub range: Range<u64>,
    /// What.
    pub bytes: Option<Vec<u8>>,
}

/// What a power cut does to one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Its size afterwards.
    pub size: u64,
    /// What goes back, within the size.
    pub restore: Vec<Restore>,
}

impl Unsynced {
    /// Returns whether a power cut could change nothing.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty() && self.size.is_none()
    }

    /// Returns how many bytes could be taken back.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|(start, extent)| extent.end - start).sum()
    }

    /// Returns how many bytes of memory that needs.
    pub fn memory(&self) -> u64 {
        let held = |extent: &Extent| match &extent.before {
            Before::Zeros => 0,
            Before::Bytes(bytes) => bytes.len() as u64,
        };
        self.extents.values().map(held).sum()
    }

    /// Notes that `range` is about to be written, and returns which parts of it, in whole sectors, must be told by
    /// [`Unsynced::keep`] first.
    pub fn touch(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let (start, end) = (range.start / SECTOR * SECTOR, range.end.div_ceil(SECTOR) * SECTOR);
        self.split(start);
        self.split(end);
        let (mut gaps, mut at) = (Vec::new(), start);
        for (from, extent) in self.extents.range_mut(start..end) {
            if *from > at {
                gaps.push(at..*from);
            }
            extent.lost = false;
            at = extent.end;
        }
        if at < end {
            gaps.push(at..end);
        }
        gaps
    }

    /// Keeps what a gap that [`Unsynced::touch`] returned held; shorter `bytes` end in zeros.
    pub fn keep(&mut self, gap: Range<u64>, mut bytes: Vec<u8>, now_ms: u64) {
        let before = if bytes.iter().all(|byte| *byte == 0) {
            Before::Zeros
        } else {
            bytes.resize((gap.end - gap.start) as usize, 0);
            Before::Bytes(bytes)
        };
        self.extents.insert(gap.start, Extent { end: gap.end, before, lost: false, at_ms: now_ms });
    }

    /// Notes that the size is about to change from `before`.
    pub fn resize(&mut self, before: u64, now_ms: u64) {
        self.size.get_or_insert((before, now_ms));
    }

    /// Notes a sync that succeeded.
    pub fn synced(&mut self) {
        self.extents.retain(|_, extent| extent.lost);
        self.size = None;
    }

    /// Notes a sync that failed.
    pub fn sync_failed(&mut self) {
        self.extents.values_mut().for_each(|extent| extent.lost = true);
    }

    /// Notes what the kernel wrote by itself in the meantime: all that was written before `before_ms`.
    pub fn settle(&mut self, before_ms: u64) {
        self.extents.retain(|_, extent| extent.lost || extent.at_ms >= before_ms);
        self.size = self.size.filter(|(_, at_ms)| *at_ms >= before_ms);
    }

    /// Cuts the power: decides what is lost of a file whose size is `now`. Nothing is unsynced afterwards.
    pub fn cut(&mut self, now: u64, random: &mut Random) -> Cut {
        let size = match self.size {
            None => now,
            // An inode's size is written as one; what lies between is what was there at some time.
            Some((before, _)) if before > now => *random.pick(&[before, now]),
            Some((before, _)) => match random.below(3) {
                0 => before,
                1 => now,
                _ => (before + random.below(now - before + 1)).div_ceil(SECTOR) * SECTOR,
            }
            .min(now),
        };
        // A disk that is nearly done, one that has not begun, and all between.
        let lost_percent = *random.pick(&[0, 10, 50, 90, 100]);
        let mut restore: Vec<Restore> = Vec::new();
        for (start, extent) in std::mem::take(&mut self.extents) {
            for at in (start..extent.end.min(size)).step_by(SECTOR as usize) {
                // What was cut off and came back is there as it was, or it would not be there at all.
                if !(at >= now || extent.lost || random.chance(lost_percent)) {
                    continue;
                }
                let range = at..(at + SECTOR).min(size);
                let bytes = match &extent.before {
                    Before::Zeros => None,
                    Before::Bytes(bytes) => {
                        let from = (at - start) as usize;
                        Some(bytes[from..from + (range.end - at) as usize].to_vec())
                    }
                };
                match restore.last_mut() {
                    Some(last) if last.range.end == at && last.bytes.is_some() == bytes.is_some() => {
                        last.range.end = range.end;
                        if let (Some(all), Some(more)) = (&mut last.bytes, bytes) {
                            all.extend(more);
                        }
                    }
                    _ => restore.push(Restore { range, bytes }),
                }
            }
        }
        self.size = None;
        Cut { size, restore }
    }

    fn split(&mut self, at: u64) {
        let Some((&start, extent)) = self.extents.range_mut(..at).next_back() else { return };
        if extent.end <= at {
            return;
        }
        let mut tail = extent.clone();
        extent.end = at;
        if let (Before::Bytes(head), Before::Bytes(bytes)) = (&mut extent.before, &mut tail.before) {
            *bytes = head.split_off((at - start) as usize);
        }
        self.extents.insert(at, tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory that is written as a disk would be.
    #[derive(Default)]
    struct File {
        content: Vec<u8>,
        unsynced: Unsynced,
    }

    impl File {
        fn write(&mut self, at: usize, bytes: &[u8]) {
            for gap in self.unsynced.touch(at as u64..(at + bytes.len()) as u64) {
                let held = |at: u64| self.content.get(at as usize).copied().unwrap_or(0);
                let before = (gap.start..gap.end).map(held).collect();
                self.unsynced.keep(gap, before, 0);
            }
            let end = at + bytes.len();
            if end > self.content.len() {
                self.unsynced.resize(self.content.len() as u64, 0);
                self.content.resize(end, 0);
            }
            self.content[at..end].copy_from_slice(bytes);
        }

        fn truncate(&mut self, size: usize) {
            for gap in self.unsynced.touch(size as u64..self.content.len() as u64) {
                let before =
                    (gap.start..gap.end).map(|at| self.content.get(at as usize).copied().unwrap_or(0)).collect();
                self.unsynced.keep(gap, before, 0);
            }
            self.unsynced.resize(self.content.len() as u64, 0);
            self.content.truncate(size);
        }

        fn cut(&mut self, seed: u64) -> &[u8] {
            let cut = self.unsynced.cut(self.content.len() as u64, &mut Random::new(seed));
            self.content.resize(cut.size as usize, 0);
            for restore in cut.restore {
                let range = restore.range.start as usize..restore.range.end as usize;
                let zeros = vec![0; range.len()];
                self.content[range].copy_from_slice(restore.bytes.as_ref().unwrap_or(&zeros));
            }
            &self.content
        }
    }

    /// Returns, over many seeds, the sets of values that each sector of the file was found to hold, and its sizes.
    fn outcomes(make: impl Fn() -> File) -> (Vec<Vec<u8>>, Vec<usize>) {
        let (mut sectors, mut sizes): (Vec<Vec<u8>>, Vec<usize>) = Default::default();
        for seed in 0..300 {
            let mut file = make();
            let content = file.cut(seed).to_vec();
            assert!(file.unsynced.is_empty());
            sizes.push(content.len());
            for (index, sector) in content.chunks(SECTOR as usize).enumerate() {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is torn");
                if sectors.len() <= index {
                    sectors.push(Vec::new());
                }
                sectors[index].push(sector[0]);
            }
        }
        for list in &mut sectors {
            list.sort_unstable();
            list.dedup();
        }
        sizes.sort_unstable();
        sizes.dedup();
        (sectors, sizes)
    }

    fn filled(value: u8, sectors: usize) -> Vec<u8> {
        vec![value; sectors * SECTOR as usize]
    }

    #[test]
    fn what_was_synced_stays_and_each_sector_since_is_there_or_not() {
        let (sectors, sizes) = outcomes(|| {
            let mut file = File::default();
            file.write(0, &filled(1, 4));
            file.unsynced.synced();
            file.write(SECTOR as usize, &filled(2, 2));
            file.write(SECTOR as usize, &filled(3, 1));
            file
        });
        assert_eq!((sectors, sizes), (vec![vec![1], vec![1, 3], vec![1, 2], vec![1]], vec![2048]));
    }

    #[test]
    fn a_file_that_grew_may_have_any_size_between_and_holes() {
        let (sectors, sizes) = outcomes(|| {
            let mut file = File::default();
            file.write(0, &filled(1, 1));
            file.unsynced.synced();
            file.write(SECTOR as usize, &filled(2, 2));
            file
        });
        assert_eq!((sectors, sizes), (vec![vec![1], vec![0, 2], vec![0, 2]], vec![512, 1024, 1536]));
    }

    #[test]
    fn what_was_cut_off_comes_back_whole_or_not_at_all() {
        let (sectors, sizes) = outcomes(|| {
            let mut file = File::default();
            file.write(0, &filled(1, 3));
            file.unsynced.synced();
            file.truncate(SECTOR as usize);
            file
        });
        assert_eq!((sectors, sizes), (vec![vec![1], vec![1], vec![1]], vec![512, 1536]));
    }

    #[test]
    fn what_a_failed_sync_covered_is_lost_though_a_later_one_succeeds_unless_it_is_written_again() {
        let (sectors, _) = outcomes(|| {
            let mut file = File::default();
            file.write(0, &filled(1, 3));
            file.unsynced.synced();
            file.write(0, &filled(2, 3));
            file.unsynced.sync_failed();
            file.write(SECTOR as usize, &filled(4, 1));
            file.unsynced.synced();
            file
        });
        assert_eq!(sectors, vec![vec![1], vec![4], vec![1]]);
    }

    #[test]
    fn what_is_old_enough_has_settled() {
        let mut unsynced = Unsynced::default();
        for (at, now) in [(0, 10), (8192, 20)] {
            for gap in unsynced.touch(at..at + 4096) {
                unsynced.keep(gap, vec![7; 4096], now);
            }
        }
        assert_eq!((unsynced.bytes(), unsynced.memory()), (8192, 8192));
        unsynced.settle(15);
        assert_eq!(unsynced.bytes(), 4096);
        unsynced.settle(21);
        assert!(unsynced.is_empty());
    }
}
