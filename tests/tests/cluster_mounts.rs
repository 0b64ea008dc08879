//! Two mounts of one cluster: what one does, as the other sees it.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns threads and files")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfs_tests::cluster::{Cluster, with_cluster};
use dfs_tests::wait;
use dfs_tests::workload::pattern;

/// docs/semantics.md: names and attributes are at most this old on another mount. A little more for the look itself.
const NAMES_AGE: Duration = Duration::from_millis(1_200);

fn with_two_mounts(body: impl FnOnce(&mut Cluster, &Path, &Path) -> Result<()>) {
    with_cluster(|cluster| {
        let (first, second) = (cluster.mount()?, cluster.mount()?);
        let (first, second) = (cluster.dir(first), cluster.dir(second));
        body(cluster, &first, &second)
    });
}

/// Waits for a change of names or attributes made on another mount.
fn seen(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait::until(what, NAMES_AGE, || {
        ensure!(condition(), "not seen");
        Ok(())
    })
}

#[test]
fn what_was_closed_on_one_mount_is_read_whole_by_the_next_open_on_the_other() {
    with_two_mounts(|_, first, second| {
        // The name is known to both before, so that only content is under test; sizes go up and down, inline and not.
        std::fs::write(first.join("file"), "")?;
        seen("the file", || second.join("file").exists())?;
        for round in 0..60u64 {
            let (writer, reader) = if round % 2 == 0 { (first, second) } else { (second, first) };
            let length = [10, 20_000, 5_000, 300_000, 0, 16_384, 16_385, 1_000_000][round as usize % 8];
            let content = pattern(round, length);
            std::fs::write(writer.join("file"), &content)?;
            let found = std::fs::read(reader.join("file"))?;
            ensure!(
                found == content,
                "round {round}: {} bytes were written, {} read, or other ones",
                length,
                found.len()
            );
        }
        Ok(())
    });
}

#[test]
fn an_overwrite_in_place_is_seen_by_the_next_open() {
    with_two_mounts(|_, first, second| {
        let mut content = pattern(1, 500_000);
        std::fs::write(first.join("file"), &content)?;
        seen("the file", || std::fs::read(second.join("file")).is_ok_and(|found| found == content))?;
        for round in 0..30u64 {
            let (writer, reader) = if round % 2 == 0 { (first, second) } else { (second, first) };
            // The size stays: nothing but the data version tells the reader.
            let (offset, piece) = (round as usize * 16_001, pattern(100 + round, 9_000));
            content[offset..offset + piece.len()].copy_from_slice(&piece);
            let file = OpenOptions::new().write(true).open(writer.join("file"))?;
            file.write_all_at(&piece, offset as u64)?;
            drop(file);
            ensure!(std::fs::read(reader.join("file"))? == content, "round {round}: an old page was read");
        }
        Ok(())
    });
}

#[test]
fn an_append_is_read_where_it_is_by_the_handle_that_made_it() {
    with_two_mounts(|_, first, second| {
        let rounds = [(12_000, 1_500, 20_000), (300_000, 70_000, 300_000), (70_000, 300_000, 20_000)];
        for (round, (before, now, more)) in (0u64..).zip(rounds) {
            let name = format!("file{round}");
            let mut content = pattern(round, before);
            std::fs::write(first.join(&name), &content)?;
            seen("the file", || std::fs::read(second.join(&name)).is_ok_and(|found| found == content))?;
            // Until a second has passed, the kernel of the second mount takes the end to be where it was.
            OpenOptions::new().write(true).open(first.join(&name))?.set_len(now as u64)?;
            content.resize(now, 0);
            let mut file = OpenOptions::new().read(true).append(true).open(second.join(&name))?;
            let piece = pattern(50 + round, more);
            file.write_all(&piece)?;
            content.extend_from_slice(&piece);
            // Page by page: a read past what the kernel takes for the end would make it ask for the size.
            for (page, expected) in content.chunks(4096).enumerate() {
                let mut found = vec![0; expected.len()];
                file.read_exact_at(&mut found, page as u64 * 4096)?;
                ensure!(found == expected, "round {round}: page {page} is not what was appended");
            }
            drop(file);
            ensure!(
                std::fs::read(first.join(&name))? == content,
                "round {round}: the other mount reads something else"
            );
        }
        Ok(())
    });
}

#[test]
fn what_was_fsynced_is_seen_by_the_next_open_though_the_writer_has_it_open() {
    with_two_mounts(|_, first, second| {
        let mut file = File::create(first.join("log"))?;
        let mut content = Vec::new();
        for round in 0..20 {
            let piece = pattern(round, 3_000);
            file.write_all(&piece)?;
            file.sync_data()?;
            content.extend_from_slice(&piece);
            if round == 0 {
                seen("the file", || second.join("log").exists())?;
            }
            let found = std::fs::read(second.join("log"))?;
            ensure!(found == content, "round {round}: {} bytes were synced, {} read", content.len(), found.len());
        }
        Ok(())
    });
}

#[test]
fn names_and_attributes_of_the_other_mount_are_at_most_a_second_old() {
    with_two_mounts(|_, first, second| {
        for round in 0..5 {
            let (here, there) = if round % 2 == 0 { (first, second) } else { (second, first) };
            let name = |name: &str| (here.join(name), there.join(name));
            let (made, sees) = name("directory");
            ensure!(!sees.exists(), "it is there before it was made");
            std::fs::create_dir(&made)?;
            seen("a new directory", || sees.is_dir())?;
            let (made, sees) = name("directory/file");
            ensure!(!sees.exists(), "it is there before it was made");
            std::fs::write(&made, "x")?;
            seen("a new file", || sees.is_file())?;
            std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o640))?;
            seen("a chmod", || std::fs::metadata(&sees).is_ok_and(|found| found.mode() & 0o777 == 0o640))?;
            let (renamed, sees_renamed) = name("directory/renamed");
            std::fs::rename(&made, &renamed)?;
            seen("a rename", || !sees.exists() && sees_renamed.exists())?;
            std::fs::remove_file(&renamed)?;
            seen("an unlink", || !sees_renamed.exists())?;
            std::fs::remove_dir(here.join("directory"))?;
            seen("an rmdir", || !there.join("directory").exists())?;
        }
        Ok(())
    });
}

#[test]
fn a_rename_back_and_forth_never_makes_both_names_vanish() {
    with_two_mounts(|_, first, second| {
        std::fs::create_dir(first.join("a"))?;
        std::fs::create_dir(first.join("b"))?;
        std::fs::write(first.join("a/file"), "content")?;
        seen("the file", || second.join("a/file").exists())?;
        for round in 0..40 {
            let (from, to) = if round % 2 == 0 { ("a/file", "b/file") } else { ("b/file", "a/file") };
            std::fs::rename(first.join(from), first.join(to))?;
            seen("the new name, with its content", || {
                std::fs::read(second.join(to)).is_ok_and(|found| found == b"content") && !second.join(from).exists()
            })?;
        }
        Ok(())
    });
}

#[test]
fn of_two_mounts_that_create_one_name_exclusively_exactly_one_succeeds() {
    with_two_mounts(|_, first, second| {
        for round in 0..100 {
            let name = format!("lock{round}");
            let won = std::thread::scope(|scope| {
                let threads = [first, second].map(|mount| {
                    let path = mount.join(&name);
                    scope.spawn(move || File::create_new(path))
                });
                threads.map(|thread| thread.join().expect("no panic"))
            });
            let winners = won.iter().filter(|result| result.is_ok()).count();
            ensure!(winners == 1, "{name}: {winners} mounts made it: {won:?}");
            for error in won.iter().filter_map(|result| result.as_ref().err()) {
                ensure!(error.kind() == std::io::ErrorKind::AlreadyExists, "{name}: {error}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_file_removed_on_one_mount_is_read_to_the_end_by_who_has_it_open_on_the_other() {
    with_two_mounts(|_, first, second| {
        for (name, length) in [("small", 5_000), ("large", 3_000_000)] {
            let content = pattern(3, length);
            std::fs::write(first.join(name), &content)?;
            seen("the file", || second.join(name).exists())?;
            let mut removed = File::open(second.join(name))?;
            std::fs::remove_file(first.join(name))?;
            std::fs::write(first.join("other"), "other")?;
            let mut renamed_over = File::open(second.join("other")).or_else(|_| {
                seen("the other file", || second.join("other").exists()).map_err(std::io::Error::other)?;
                File::open(second.join("other"))
            })?;
            std::fs::write(first.join("new"), "new")?;
            std::fs::rename(first.join("new"), first.join("other"))?;

            let mut found = Vec::new();
            removed.read_to_end(&mut found).with_context(|| format!("reading {name}, which was removed"))?;
            ensure!(found == content, "{name}: {} bytes of {length}, or other ones", found.len());
            let mut found = Vec::new();
            renamed_over.read_to_end(&mut found)?;
            ensure!(found == b"other", "a file that was renamed over reads as {found:?}");
            std::fs::remove_file(first.join("other"))?;
        }
        Ok(())
    });
}

#[test]
fn mounts_that_write_ranges_of_one_file_keep_each_others_bytes() {
    with_two_mounts(|_, first, second| {
        let piece = 64 << 10;
        std::fs::write(first.join("file"), vec![0; 64 * piece])?;
        seen("the file", || second.join("file").metadata().is_ok_and(|found| found.len() == 64 * piece as u64))?;
        std::thread::scope(|scope| {
            let threads = [(first, 0), (second, 1)].map(|(mount, parity)| {
                scope.spawn(move || -> Result<()> {
                    let file = OpenOptions::new().write(true).open(mount.join("file"))?;
                    for index in (0..64u64).filter(|index| index % 2 == parity) {
                        file.write_all_at(&pattern(index, piece), index * piece as u64)?;
                    }
                    Ok(file.sync_all()?)
                })
            });
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        for mount in [first, second] {
            let found = std::fs::read(mount.join("file"))?;
            for index in 0..64 {
                ensure!(
                    found[index * piece..][..piece] == pattern(index as u64, piece),
                    "{}: piece {index}",
                    mount.display()
                );
            }
        }
        Ok(())
    });
}

#[test]
fn a_subdirectory_can_be_mounted_and_a_read_only_mount_changes_nothing() {
    with_cluster(|cluster| {
        let whole = cluster.mount()?;
        let whole = cluster.dir(whole);
        std::fs::create_dir_all(whole.join("sub/inner"))?;
        std::fs::write(whole.join("sub/inner/file"), "content")?;
        let part = cluster.mount_with("/sub", "ro")?;
        let part: PathBuf = cluster.dir(part);
        ensure!(std::fs::read(part.join("inner/file"))? == b"content", "content through the subdirectory");
        for result in [std::fs::write(part.join("new"), ""), std::fs::remove_file(part.join("inner/file"))] {
            let error = result.expect_err("a read-only mount was changed");
            ensure!(error.raw_os_error() == Some(libc::EROFS), "{error}");
        }
        Ok(())
    });
}

#[test]
fn an_unmount_writes_everything_that_was_not_yet_written() {
    with_cluster(|cluster| {
        let (first, second) = (cluster.mount()?, cluster.mount()?);
        let directory = cluster.dir(first);
        // Open until just before, never synced.
        let mut files: Vec<File> =
            (0..50).map(|index| File::create(directory.join(index.to_string()))).collect::<std::io::Result<_>>()?;
        for (index, file) in files.iter_mut().enumerate() {
            file.write_all(&pattern(index as u64, index * 10_007))?;
        }
        drop(files);
        cluster.unmount(first)?;
        for index in 0..50u64 {
            let found = std::fs::read(cluster.dir(second).join(index.to_string()))?;
            ensure!(
                found == pattern(index, index as usize * 10_007),
                "file {index}: {} bytes, or other ones",
                found.len()
            );
        }
        Ok(())
    });
}
