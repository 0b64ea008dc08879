//! The program under test.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Returns the project's root directory.
///
/// # Panics
///
/// Never: this crate lies one directory below it.
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate lies below the root").to_owned()
}

/// Returns the path of the `dfs` to test: `DFS_BIN`, else the release build of this project.
///
/// # Errors
///
/// If it is not there; the text says how to make it.
pub fn dfs() -> Result<PathBuf> {
    let (path, origin) = match std::env::var_os("DFS_BIN") {
        Some(path) => (PathBuf::from(path), "DFS_BIN"),
        None => (project().join("target/release/dfs"), "the release build"),
    };
    if !path.is_file() {
        bail!("{} ({origin}) is not there: cargo build --release -p dfs", path.display());
    }
    path.canonicalize().with_context(|| format!("resolving {}", path.display()))
}
