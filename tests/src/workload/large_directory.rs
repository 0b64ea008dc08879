//! One directory with very many names: each listed exactly once, also while others come and go.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{Scale, Workload};

/// Threads that make the names.
const WRITERS: usize = 4;

/// Makes 3,000, 100,000 or 300,000 empty files in one directory, and removes every tenth.
pub struct LargeDirectory {
    entries: usize,
}

impl LargeDirectory {
    /// Returns the work.
    pub fn new(scale: Scale) -> Self {
        Self { entries: scale.pick(3_000, 100_000, 300_000) }
    }
}

fn name(index: usize) -> String {
    format!("entry-{index:07}")
}

fn is_removed(index: usize) -> bool {
    index % 10 == 3
}

/// Lists `directory`; an error if a name comes twice.
fn list(directory: &Path) -> Result<BTreeSet<OsString>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        if !found.insert(name.clone()) {
            bail!("{name:?} is listed twice");
        }
    }
    Ok(found)
}

impl Workload for LargeDirectory {
    fn name(&self) -> &'static str {
        "large-directory"
    }

    fn write(&mut self, directory: &Path) -> Result<()> {
        let entries = self.entries;
        let each = |work: &(dyn Fn(usize) -> Result<()> + Sync)| -> Result<()> {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..WRITERS)
                    .map(|first| scope.spawn(move || (first..entries).step_by(WRITERS).try_for_each(work)))
                    .collect();
                threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in a writer"))
            })
        };
        each(&|index| {
            std::fs::File::create_new(directory.join(name(index))).with_context(|| name(index))?;
            Ok(())
        })?;
        // Entries that are there all along are listed once, whatever happens to the others meanwhile.
        std::thread::scope(|scope| {
            let listing = scope.spawn(|| list(directory));
            each(&|index| {
                if is_removed(index) {
                    std::fs::remove_file(directory.join(name(index))).with_context(|| name(index))?;
                }
                Ok(())
            })?;
            let found = listing.join().expect("no panic in the listing").context("listing while names go")?;
            let lost = (0..entries)
                .filter(|index| !is_removed(*index))
                .find(|index| !found.contains(&OsString::from(name(*index))));
            ensure!(lost.is_none(), "{lost:?} was there all along and is not listed while others go");
            Ok(())
        })
    }

    fn verify(&self, directory: &Path) -> Result<()> {
        let found = list(directory)?;
        let expected: BTreeSet<OsString> =
            (0..self.entries).filter(|index| !is_removed(*index)).map(|index| name(index).into()).collect();
        ensure!(
            found == expected,
            "{} names are listed, {} expected; the first that differs is {:?}",
            found.len(),
            expected.len(),
            found.symmetric_difference(&expected).next()
        );
        let metadata = std::fs::metadata(directory.join(name(self.entries - 1)))?;
        ensure!(metadata.is_file() && metadata.len() == 0, "the last entry is no empty file");
        Ok(())
    }
}
