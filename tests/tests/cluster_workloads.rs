//! Ordinary programs on a real mount; each kind of work checked at once, through a second mount, and after a remount.

use anyhow::Result;
use dfs_tests::cluster::{Cluster, with_cluster};
use dfs_tests::workload::{self, Scale, Workload};

fn check(mut work: impl Workload) {
    with_cluster(|cluster: &mut Cluster| -> Result<()> {
        let first = cluster.mount()?;
        workload::write(&mut work, &cluster.dir(first))?;
        // Nothing of this was cached there.
        let second = cluster.mount()?;
        workload::verify(&work, &cluster.dir(second))?;
        cluster.unmount(first)?;
        cluster.start_mount(first)?;
        workload::verify(&work, &cluster.dir(first))
    });
}

#[test]
fn a_tree_of_thousands_of_files_is_unpacked_unchanged() {
    check(workload::Tree::new(Scale::from_environment()));
}

#[test]
fn git_keeps_its_history() {
    check(workload::Repository::new(Scale::from_environment()));
}

#[test]
fn sqlite_keeps_its_rows_in_both_journal_modes() {
    check(workload::Database::new(Scale::from_environment()));
}

#[test]
fn fio_finds_every_block_as_it_wrote_it() {
    check(workload::Fio::new(Scale::from_environment()));
}

#[test]
fn a_sparse_file_of_5_gib_is_small_and_its_holes_are_found() {
    check(workload::Sparse);
}

#[test]
fn names_are_bytes() {
    check(workload::Names);
}

#[test]
fn a_directory_of_100_000_names_lists_each_once() {
    check(workload::LargeDirectory::new(Scale::from_environment()));
}

#[test]
fn links_renames_and_unlinked_files_behave() {
    check(workload::Links);
}

#[test]
fn a_program_is_compiled_and_run() {
    check(workload::Compiler);
}
