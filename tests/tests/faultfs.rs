//! The fault layer itself, mounted: it must neither lose what was synced nor keep what it says is lost.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns processes and files")]

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfs_tests::cluster::{detach, is_mounted};
use dfs_tests::faultfs::control;
use dfs_tests::random::Random;
use dfs_tests::wait;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use tempfile::TempDir;

/// A mounted faultfs.
struct Mounted {
    child: Child,
    root: TempDir,
}

impl Mounted {
    fn new() -> Result<Self> {
        let root = tempfile::tempdir()?;
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir(path("lower"))?;
        std::fs::create_dir(path("mnt"))?;
        let child = Command::new(env!("CARGO_BIN_EXE_faultfs"))
            .args([path("lower"), path("mnt"), path("socket")])
            .arg("3600000")
            .spawn()?;
        wait::until("it is mounted", Duration::from_secs(20), || {
            ensure!(is_mounted(&path("mnt")), "it is not");
            Ok(())
        })?;
        Ok(Self { child, root })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("mnt").join(name)
    }

    fn tell(&self, line: &str) -> Result<String> {
        control::tell(&self.root.path().join("socket"), line)
    }

    fn make(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        options.open(&path).with_context(|| format!("making {}", path.display()))
    }

    fn sync_directory(&self, name: &str) -> Result<()> {
        Ok(File::open(self.path(name))?.sync_all()?)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = detach(&self.root.path().join("mnt"));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mounted(body: impl FnOnce(&Mounted) -> Result<()>) {
    let outcome = Mounted::new().and_then(|mounted| body(&mounted));
    if let Err(error) = outcome {
        panic!("{error:?}");
    }
}

fn read_all(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[test]
fn it_is_an_ordinary_file_system_to_who_syncs() {
    mounted(|disk| {
        std::fs::create_dir(disk.path("d"))?;
        let file = disk.make("d/a")?;
        file.write_all_at(&[1; 10_000], 1 << 20)?;
        assert_eq!(file.metadata()?.len(), (1 << 20) + 10_000);
        fallocate(&file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, 1 << 20, 4096)?;
        assert_eq!(lseek64(&file, 0, Whence::SeekData)?, (1 << 20) + 4096);
        fallocate(&file, FallocateFlags::empty(), 0, 2 << 20)?;
        assert_eq!(file.metadata()?.len(), 2 << 20);
        file.set_len(5)?;
        file.sync_all()?;
        std::fs::rename(disk.path("d/a"), disk.path("d/b"))?;
        disk.sync_directory("d")?;
        disk.sync_directory("")?;
        assert_eq!(std::fs::read_dir(disk.path("d"))?.count(), 1);
        // A lock is the kernel's own.
        file.try_lock()?;
        assert!(File::open(disk.path("d/b"))?.try_lock().is_err());
        // An open file outlives its name.
        std::fs::remove_file(disk.path("d/b"))?;
        disk.sync_directory("d")?;
        assert_eq!(file.read_at(&mut [0; 10], 0)?, 5);
        let _ = file.as_raw_fd();
        drop(file);
        std::fs::remove_dir(disk.path("d"))?;
        assert_eq!(std::fs::read_dir(disk.path(""))?.count(), 0);
        Ok(())
    });
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_loses_only_what_was_not() {
    mounted(|disk| {
        let (mut kept, mut lost) = (0, 0);
        for seed in 0..40u64 {
            let name = format!("f{seed}");
            let file = disk.make(&name)?;
            file.write_all_at(&[1; 64 * 512], 0)?;
            file.sync_data()?;
            disk.sync_directory("")?;
            file.write_all_at(&[2; 32 * 512], 0)?;
            file.write_all_at(&[3; 16 * 512], 64 * 512)?;
            drop(file);
            disk.tell(&format!("cut {seed}"))?;
            let content = read_all(&disk.path(&name))?;
            ensure!((64 * 512..=80 * 512).contains(&content.len()), "size {}", content.len());
            for (index, sector) in content.chunks(512).enumerate() {
                let value = sector[0];
                ensure!(sector.iter().all(|byte| *byte == value), "sector {index} is torn");
                let allowed: &[u8] = match index {
                    0..32 => &[1, 2],
                    32..64 => &[1],
                    _ => &[0, 3],
                };
                ensure!(allowed.contains(&value), "sector {index} has {value}");
                if index < 32 {
                    if value == 2 { kept += 1 } else { lost += 1 }
                }
            }
        }
        ensure!(kept > 100 && lost > 100, "{kept} sectors kept and {lost} lost are no random choice");
        Ok(())
    });
}

#[test]
fn names_that_no_directory_sync_covered_may_go_back_and_others_do_not() {
    mounted(|disk| {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..40 {
            std::fs::write(disk.path("old"), "old")?;
            disk.make("old")?.write_all_at(b"old", 0)?;
            File::open(disk.path("old"))?.sync_all()?;
            disk.sync_directory("")?;
            std::fs::write(disk.path("new"), "new")?;
            File::open(disk.path("new"))?.sync_all()?;
            std::fs::rename(disk.path("new"), disk.path("old"))?;
            std::fs::write(disk.path("later"), "")?;
            disk.tell(&format!("cut {seed}"))?;
            let content = String::from_utf8(read_all(&disk.path("old"))?)?;
            let new = disk.path("new").exists();
            let later = disk.path("later").exists();
            outcomes.insert((content, new, later));
            for name in ["old", "new", "later"] {
                let _ = std::fs::remove_file(disk.path(name));
            }
            disk.sync_directory("")?;
        }
        let allowed = [("old", false, false), ("old", true, false), ("new", false, false), ("new", false, true)];
        let allowed = allowed.map(|(content, new, later)| (content.to_owned(), new, later));
        assert_eq!(outcomes, allowed.into_iter().collect());
        Ok(())
    });
}

#[test]
fn a_directory_is_listed_and_synced_while_its_names_come_and_go() {
    mounted(|disk| {
        std::fs::create_dir(disk.path("d"))?;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let comes_and_goes = |number: usize| {
                let mut round = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let names = [format!("d/{number}-{round}"), format!("d/{number}-{round}-new")];
                    disk.make(&names[0])?;
                    std::fs::rename(disk.path(&names[0]), disk.path(&names[1]))?;
                    std::fs::remove_file(disk.path(&names[1]))?;
                    round += 1;
                }
                Ok(())
            };
            let busy: Vec<_> = (0..3).map(|number| scope.spawn(move || comes_and_goes(number))).collect();
            let listed = (0..1500).try_for_each(|_| {
                disk.sync_directory("d")?;
                std::fs::read_dir(disk.path("d"))?.try_for_each(|entry| entry.map(drop))?;
                Ok(())
            });
            is_over.store(true, Ordering::Relaxed);
            let mut ended = busy.into_iter().map(|thread| thread.join().expect("it does not panic"));
            listed.and(ended.try_for_each(|outcome: Result<()>| outcome))
        })
    });
}

#[test]
fn a_failed_sync_loses_though_it_is_tried_again() {
    mounted(|disk| {
        let file = disk.make("f")?;
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_data()?;
        disk.sync_directory("")?;
        file.write_all_at(&[2; 4096], 0)?;
        disk.tell("rule eio sync f count=1")?;
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
        file.sync_data()?;
        disk.tell("cut 5")?;
        assert_eq!(read_all(&disk.path("f"))?, [1; 4096]);
        Ok(())
    });
}

#[test]
fn a_sync_that_lies_keeps_nothing() {
    mounted(|disk| {
        let file = disk.make("f")?;
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_data()?;
        disk.sync_directory("")?;
        disk.tell("rule lie sync f")?;
        let mut lost = 0;
        for seed in 2..12 {
            file.write_all_at(&[seed; 4096], 0)?;
            file.sync_data()?;
            disk.tell(&format!("cut {seed}"))?;
            lost += usize::from(read_all(&disk.path("f"))? != [seed; 4096]);
        }
        ensure!(lost > 3, "{lost} of 10 power cuts took what a lying sync covered");
        Ok(())
    });
}

#[test]
fn rules_strike_what_they_name_and_nothing_else() {
    mounted(|disk| {
        let (hit, spared) = (disk.make("hit")?, disk.make("spared")?);
        disk.tell("rule eio read hit skip=1 count=1")?;
        hit.write_all_at(&[7; 8192], 0)?;
        let read = |file: &File| file.read_exact_at(&mut [0; 512], 0).map_err(|error| error.raw_os_error());
        assert_eq!((read(&hit), read(&spared).is_err()), (Ok(()), true));
        assert_eq!((read(&hit), read(&hit)), (Err(Some(libc::EIO)), Ok(())));
        disk.tell("clear")?;

        disk.tell("rule enospc write,space hit")?;
        assert_eq!(hit.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(nix::sys::statvfs::statvfs(&disk.path(""))?.blocks_available(), 0);
        spared.write_all_at(&[1], 0)?;
        disk.tell("clear")?;
        assert!(nix::sys::statvfs::statvfs(&disk.path(""))?.blocks_available() > 0);

        disk.tell("rule torn write hit count=1")?;
        hit.write_all_at(&[8; 8192], 0)?;
        disk.tell("rule misdirect=8192 write spared count=1")?;
        spared.write_all_at(&[9; 4096], 0)?;
        let content = read_all(&disk.path("hit"))?;
        assert!(content[..8192 - 512].iter().all(|byte| *byte == 8) && content[8192 - 512..] == [7; 512]);
        let content = read_all(&disk.path("spared"))?;
        assert_eq!((content.len(), content[0], content[8192]), (8192 + 4096, 1, 9));
        assert!(disk.tell("rule boil write *").is_err() && disk.tell("dance").is_err());
        Ok(())
    });
}

#[test]
fn flips_change_one_bit_each_and_say_which() {
    mounted(|disk| {
        let file = disk.make("f")?;
        let mut random = Random::new(1);
        let before: Vec<u8> = (0..100_000).map(|_| random.next() as u8).collect();
        file.write_all_at(&before, 0)?;
        let flips = disk.tell("flip f 20 9")?;
        let mut expected = before.clone();
        for flip in flips.split(", ") {
            let words: Vec<&str> = flip.split(' ').collect();
            assert_eq!(words[0], "f");
            // Data ends at a block's end, the file before it.
            if let Some(byte) = expected.get_mut(words[1].parse::<usize>()?) {
                *byte ^= 1 << words[2].parse::<u32>()?;
            }
        }
        let after = read_all(&disk.path("f"))?;
        assert!(after == expected && after != before);
        assert!(disk.tell("flip nothing* 1 1").is_err());
        Ok(())
    });
}

#[test]
fn random_work_is_as_on_any_file_system_and_survives_a_cut_once_synced() {
    mounted(|disk| {
        let local = tempfile::tempdir()?;
        let mut random = Random::new(42);
        let names = ["a", "b", "c"];
        for round in 0..30 {
            for _ in 0..40 {
                let name = *random.pick(&names);
                let (offset, length, value) = (random.below(200_000), 1 + random.below(9000) as usize, round as u8);
                let (kind, other) = (random.below(5), *random.pick(&names));
                for root in [disk.path(""), local.path().to_owned()] {
                    let path = root.join(name);
                    let mut options = OpenOptions::new();
                    let file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
                    match kind {
                        0 | 1 => file.write_all_at(&vec![value; length], offset)?,
                        2 => file.set_len(offset)?,
                        3 => fallocate(
                            &file,
                            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                            offset as i64,
                            length as i64,
                        )?,
                        _ => std::fs::rename(&path, root.join(other))?,
                    }
                }
            }
            for name in names {
                if disk.path(name).exists() {
                    File::open(disk.path(name))?.sync_all()?;
                }
            }
            disk.sync_directory("")?;
            disk.tell(&format!("cut {round}"))?;
            for name in names {
                let (found, expected) =
                    (std::fs::read(disk.path(name)).ok(), std::fs::read(local.path().join(name)).ok());
                ensure!(found == expected, "round {round}: {name} differs");
            }
        }
        assert_eq!(disk.tell("stats")?, "0 0 0");
        Ok(())
    });
}
