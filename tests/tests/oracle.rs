//! The workloads on a local directory: what fails here is wrong in the test, not in dfs.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns a directory")]

use anyhow::Result;
use dfs_tests::workload::{self, Scale};

#[test]
fn every_workload_passes_on_a_local_file_system() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for mut workload in workload::all(Scale::Small) {
        workload::write(&mut *workload, directory.path())?;
        workload::verify(&*workload, directory.path())?;
    }
    Ok(())
}

#[test]
fn a_lost_file_or_a_changed_byte_is_found() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut tree = workload::Tree::new(Scale::Small);
    workload::write(&mut tree, directory.path())?;
    std::fs::remove_dir_all(directory.path().join("tree/usr"))?;
    assert!(workload::verify(&tree, directory.path()).is_err());

    let mut fio = workload::Fio::new(Scale::Small);
    workload::write(&mut fio, directory.path())?;
    let file = directory.path().join("fio/random-direct");
    let mut bytes = std::fs::read(&file)?;
    bytes[300_000] ^= 1;
    std::fs::write(&file, bytes)?;
    assert!(workload::verify(&fio, directory.path()).is_err());
    Ok(())
}
