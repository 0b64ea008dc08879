//! What a power cut may take back of directories: names made, moved and removed since the last sync of their directory.
//!
//! Changes of one directory are lost from some point on, as a journal's end is; those of different directories
//! independently, unless a rename ties them together. A sync of a directory makes its changes stable, and with a rename
//! also what was done to the other directory before. Nothing else does: not the sync of a file in it.

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Random;

/// A change of names. `D` stands for a directory, `K` for a removed file that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<D, K> {
    /// A name came to be, of a new file or a link.
    Made {
        /// Where.
        directory: D,
        /// The name.
        name: Vec<u8>,
    },
    /// A name went.
    Removed {
        /// Where.
        directory: D,
        /// The name.
        name: Vec<u8>,
        /// What it was the name of.
        kept: K,
    },
    /// A name moved.
    Renamed {
        /// From where.
        from: (D, Vec<u8>),
        /// To where.
        to: (D, Vec<u8>),
        /// What had that name before.
        replaced: Option<K>,
    },
}

#[derive(Debug)]
struct Noted<D, K> {
    directories: Vec<u64>,
    at_ms: u64,
    change: Change<D, K>,
}

/// The changes that are not stable yet, oldest first.
#[derive(Debug)]
pub struct Names<D, K> {
    changes: Vec<Noted<D, K>>,
}

impl<D, K> Default for Names<D, K> {
    fn default() -> Self {
        Self { changes: Vec::new() }
    }
}

impl<D, K> Names<D, K> {
    /// Notes a change of the directories with these inode numbers.
    pub fn note(&mut self, directories: Vec<u64>, change: Change<D, K>, now_ms: u64) {
        self.changes.push(Noted { directories, at_ms: now_ms, change });
    }

    /// Returns how many changes are not stable.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Returns whether all are.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Notes the sync of a directory. Returns what need not be kept any more.
    pub fn synced(&mut self, directory: u64) -> Vec<K> {
        let mut stable = BTreeSet::from([directory]);
        let mut left = Vec::new();
        let mut freed = Vec::new();
        for noted in std::mem::take(&mut self.changes).into_iter().rev() {
            if noted.directories.iter().any(|one| stable.contains(one)) {
                stable.extend(&noted.directories);
                freed.extend(kept_of(noted.change));
            } else {
                left.push(noted);
            }
        }
        left.reverse();
        self.changes = left;
        freed
    }

    /// Notes what the kernel made stable by itself: what was done before `before_ms`.
    pub fn settle(&mut self, before_ms: u64) -> Vec<K> {
        let old = self.changes.partition_point(|noted| noted.at_ms < before_ms);
        self.changes.drain(..old).filter_map(|noted| kept_of(noted.change)).collect()
    }

    /// Cuts the power: returns the changes to be taken back, in this order, and what need not be kept any more.
    pub fn cut(&mut self, random: &mut Random) -> (Vec<Change<D, K>>, Vec<K>) {
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for directory in self.changes.iter().flat_map(|noted| &noted.directories) {
            *counts.entry(*directory).or_default() += 1;
        }
        // How many of each directory's changes reached the disk.
        let mut reached: BTreeMap<u64, u64> = counts
            .into_iter()
            .map(|(directory, count)| {
                let some = random.below(count + 1);
                (directory, *random.pick(&[0, some, count]))
            })
            .collect();
        let (mut lost, mut freed) = (Vec::new(), Vec::new());
        for noted in self.changes.drain(..) {
            let keeps = noted.directories.iter().all(|directory| reached[directory] > 0);
            for directory in &noted.directories {
                let left = reached.get_mut(directory).expect("each directory was counted");
                *left = if keeps { *left - 1 } else { 0 };
            }
            if keeps { freed.extend(kept_of(noted.change)) } else { lost.push(noted.change) }
        }
        lost.reverse();
        (lost, freed)
    }
}

fn kept_of<D, K>(change: Change<D, K>) -> Option<K> {
    match change {
        Change::Made { .. } => None,
        Change::Removed { kept, .. } => Some(kept),
        Change::Renamed { replaced, .. } => replaced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Small = Names<u64, u32>;

    fn made(names: &mut Small, directory: u64, name: &str) {
        names.note(vec![directory], Change::Made { directory, name: name.into() }, 0);
    }

    /// Returns the names that are lost, over many seeds, each outcome once.
    fn lost(make: impl Fn() -> Small) -> BTreeSet<Vec<String>> {
        let outcome = |seed| {
            let mut names = make();
            let (lost, _) = names.cut(&mut Random::new(seed));
            assert!(names.is_empty());
            let text = |change| match change {
                Change::Made { name, .. } => String::from_utf8(name).unwrap(),
                Change::Removed { name, .. } => format!("-{}", String::from_utf8(name).unwrap()),
                Change::Renamed { to, .. } => format!(">{}", String::from_utf8(to.1).unwrap()),
            };
            lost.into_iter().map(text).collect()
        };
        (0..500).map(outcome).collect()
    }

    fn sets(text: &[&str]) -> BTreeSet<Vec<String>> {
        text.iter().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }

    #[test]
    fn one_directory_loses_its_last_changes_the_newest_first() {
        let make = || {
            let mut names = Small::default();
            ["a", "b", "c"].iter().for_each(|name| made(&mut names, 1, name));
            names
        };
        assert_eq!(lost(make), sets(&["", "c", "c b", "c b a"]));
    }

    #[test]
    fn directories_lose_independently_unless_a_rename_ties_them() {
        let apart = || {
            let mut names = Small::default();
            made(&mut names, 1, "a");
            made(&mut names, 2, "b");
            names
        };
        assert_eq!(lost(apart), sets(&["", "a", "b", "b a"]));
        let tied = || {
            let mut names = apart();
            names.note(
                vec![1, 2],
                Change::Renamed { from: (1, b"a".to_vec()), to: (2, b"c".to_vec()), replaced: None },
                0,
            );
            names
        };
        assert_eq!(lost(tied), sets(&["", ">c", ">c a", ">c b", ">c b a"]));
    }

    #[test]
    fn a_sync_keeps_its_directory_and_what_renames_tie_to_it() {
        let make = || {
            let mut names = Small::default();
            made(&mut names, 1, "a");
            names.note(
                vec![1, 2],
                Change::Renamed { from: (1, b"a".to_vec()), to: (2, b"c".to_vec()), replaced: Some(9) },
                0,
            );
            made(&mut names, 1, "later");
            made(&mut names, 3, "elsewhere");
            assert_eq!(names.synced(2), [9]);
            names
        };
        assert_eq!(lost(make), sets(&["", "later", "elsewhere", "elsewhere later"]));
    }

    #[test]
    fn what_settled_is_not_lost_and_its_files_go() {
        let mut names = Small::default();
        names.note(vec![1], Change::Removed { directory: 1, name: b"x".to_vec(), kept: 4 }, 10);
        names.note(vec![1], Change::Made { directory: 1, name: b"y".to_vec() }, 20);
        assert_eq!((names.settle(15), names.len()), (vec![4], 1));
    }
}
