//! Ordinary work in a directory that can be checked again later: after a crash, on another mount, years from now.

mod compiler;
mod database;
mod fio;
mod large_directory;
mod links;
mod names;
mod repository;
mod sparse;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use compiler::Compiler;
pub use database::Database;
pub use fio::Fio;
pub use large_directory::LargeDirectory;
pub use links::Links;
pub use names::Names;
pub use repository::Repository;
pub use sparse::Sparse;
pub use tree::Tree;

/// How much work it is to be.
#[derive(Clone, Copy)]
pub enum Scale {
    /// Seconds, for tests that are about something else.
    Small,
    /// What every change must pass.
    Full,
    /// For before a release.
    Soak,
}

impl Scale {
    /// Returns `Full`, or `Soak` if `DFS_TEST_SOAK` is set.
    pub fn from_environment() -> Self {
        if std::env::var_os("DFS_TEST_SOAK").is_some() { Self::Soak } else { Self::Full }
    }

    /// Returns the value for this scale.
    pub fn pick<T>(self, small: T, full: T, soak: T) -> T {
        match self {
            Self::Small => small,
            Self::Full => full,
            Self::Soak => soak,
        }
    }
}

/// One kind of work.
pub trait Workload {
    /// Its name, also that of its directory.
    fn name(&self) -> &'static str;

    /// Does the work in `directory`, which exists and is empty, and checks what can be seen at once.
    ///
    /// # Errors
    ///
    /// What failed, or was not as it should be.
    fn write(&mut self, directory: &Path) -> Result<()>;

    /// Checks that everything [`Workload::write`] left in `directory` is there, unchanged. Changes nothing itself, so
    /// that it can be called any number of times.
    ///
    /// # Errors
    ///
    /// What is missing or different.
    fn verify(&self, directory: &Path) -> Result<()>;
}

/// Returns one of each kind.
pub fn all(scale: Scale) -> Vec<Box<dyn Workload>> {
    vec![
        Box::new(Tree::new(scale)),
        Box::new(Repository::new(scale)),
        Box::new(Database::new(scale)),
        Box::new(Fio::new(scale)),
        Box::new(Sparse),
        Box::new(Names),
        Box::new(LargeDirectory::new(scale)),
        Box::new(Links),
        Box::new(Compiler),
    ]
}

/// Does the work in a new directory of its own below `parent`, and checks it.
///
/// # Errors
///
/// See [`Workload`].
pub fn write(workload: &mut dyn Workload, parent: &Path) -> Result<()> {
    let directory = directory(workload, parent);
    std::fs::create_dir(&directory).with_context(|| format!("mkdir {}", directory.display()))?;
    workload.write(&directory).with_context(|| format!("workload {}", workload.name()))?;
    workload.verify(&directory).with_context(|| format!("workload {}, right afterwards", workload.name()))
}

/// Checks the work done below `parent`.
///
/// # Errors
///
/// See [`Workload`].
pub fn verify(workload: &dyn Workload, parent: &Path) -> Result<()> {
    workload.verify(&directory(workload, parent)).with_context(|| format!("workload {}", workload.name()))
}

fn directory(workload: &dyn Workload, parent: &Path) -> PathBuf {
    parent.join(workload.name())
}

/// Returns `length` bytes that differ from those of every other `seed`, and at every offset.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    // splitmix64: good enough to make every misplaced byte visible.
    let mut bytes = Vec::with_capacity(length + 8);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    while bytes.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
