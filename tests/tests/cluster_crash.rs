//! kill -9: of each server in turn, of all at once, in the middle of work. What was acknowledged is there afterwards.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns threads and files")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfs_tests::cluster::{Cluster, Server, with_cluster};
use dfs_tests::workload::{self, Scale, Workload, pattern};
use dfs_tests::{program, wait};

/// Does all kinds of work in `directory`.
fn write_all(directory: &Path) -> Result<Vec<Box<dyn Workload>>> {
    let mut works = workload::all(Scale::Small);
    works.iter_mut().try_for_each(|work| workload::write(&mut **work, directory))?;
    Ok(works)
}

#[test]
fn all_work_survives_kill_9_of_each_server_in_turn_and_of_all_at_once() {
    with_cluster(|cluster| {
        let mount = cluster.mount()?;
        let directory = cluster.dir(mount);
        let works = write_all(&directory)?;
        let servers = cluster.servers();
        let mut rounds: Vec<Vec<Server>> = servers.iter().map(|server| vec![*server]).collect();
        rounds.push(servers);
        for killed in rounds {
            cluster.kill_and_restart(&killed)?;
            for work in &works {
                workload::verify(&**work, &directory).with_context(|| format!("after kill -9 of {killed:?}"))?;
            }
        }
        // A mount that saw none of it.
        let fresh = cluster.mount()?;
        works.iter().try_for_each(|work| workload::verify(&**work, &cluster.dir(fresh)))
    });
}

#[test]
fn what_was_synced_survives_kill_9_of_everything_with_the_mount() {
    with_cluster(|cluster| {
        let mount = cluster.mount()?;
        let directory = cluster.dir(mount);
        let works = write_all(&directory)?;
        program::ok(Path::new("/"), "sync", ["-f".as_ref(), directory.as_os_str()], Duration::from_secs(60))?;
        cluster.kill_mount(mount)?;
        let servers = cluster.servers();
        cluster.kill_and_restart(&servers)?;
        cluster.start_mount(mount)?;
        works.iter().try_for_each(|work| workload::verify(&**work, &directory))
    });
}

#[test]
fn closed_files_survive_kill_9_of_the_mount() {
    with_cluster(|cluster| {
        let mount = cluster.mount()?;
        let directory = cluster.dir(mount);
        for index in 0..200 {
            std::fs::write(directory.join(index.to_string()), pattern(index, index as usize * 397))?;
        }
        cluster.kill_mount(mount)?;
        cluster.start_mount(mount)?;
        for index in 0..200 {
            let found = std::fs::read(directory.join(index.to_string())).with_context(|| format!("file {index}"))?;
            ensure!(found == pattern(index, index as usize * 397), "file {index} differs: {} bytes", found.len());
        }
        Ok(())
    });
}

/// What the threads of a storm were told is done.
#[derive(Default)]
struct Storm {
    stop: AtomicBool,
    count: AtomicUsize,
    /// Names that must be there, with the seed of their content; and names that must not.
    present: Mutex<Vec<(String, u64)>>,
    absent: Mutex<Vec<String>>,
}

impl Storm {
    /// Creates, writes, renames and removes small files until told to stop; notes only what was acknowledged.
    fn rage(&self, directory: &Path, thread: u64) -> Result<()> {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let seed = thread << 32 | number;
            let name = format!("t{thread}-{number}");
            let path = directory.join(&name);
            // Every fifth is too large to be inline.
            let mut file = File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
            file.write_all(&pattern(seed, length(seed)))?;
            drop(file);
            match number % 4 {
                0 => {
                    let renamed = format!("{name}.renamed");
                    std::fs::rename(&path, directory.join(&renamed))
                        .with_context(|| format!("renaming {}", path.display()))?;
                    self.present.lock().expect("no panic").push((renamed, seed));
                    self.absent.lock().expect("no panic").push(name);
                }
                1 => {
                    std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
                    self.absent.lock().expect("no panic").push(name);
                }
                _ => self.present.lock().expect("no panic").push((name, seed)),
            }
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Compares `directory`, on any mount, with what was noted.
    fn verify(&self, directory: &Path) -> Result<()> {
        let present = self.present.lock().expect("no panic");
        for (name, seed) in present.iter() {
            let found = std::fs::read(directory.join(name)).with_context(|| format!("{name} was acknowledged"))?;
            ensure!(found == pattern(*seed, length(*seed)), "{name}: {} bytes, or other ones", found.len());
        }
        let listed: BTreeSet<_> =
            std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?;
        let expected: BTreeSet<_> = present.iter().map(|(name, _)| name.into()).collect();
        let difference: Vec<_> = listed.symmetric_difference(&expected).take(5).collect();
        ensure!(difference.is_empty(), "{} names listed, {} expected: {difference:?}", listed.len(), expected.len());
        for name in self.absent.lock().expect("no panic").iter() {
            ensure!(!directory.join(name).exists(), "{name} was removed or renamed, and is back");
        }
        Ok(())
    }
}

fn length(seed: u64) -> usize {
    if seed.is_multiple_of(5) { 20_000 + seed as usize % 50_000 } else { seed as usize % 9_000 }
}

/// Runs a storm, kills and restarts `servers` `kills` times in the middle of it, and compares.
fn storm(cluster: &mut Cluster, servers: &[Server], kills: usize) -> Result<()> {
    let mount = cluster.mount()?;
    let directory = cluster.dir(mount).join("storm");
    std::fs::create_dir(&directory)?;
    let storm = Storm::default();
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (storm, directory) = (&storm, &directory);
                scope.spawn(move || storm.rage(directory, thread))
            })
            .collect();
        let outcome = (0..kills).try_for_each(|_| {
            progress(&storm, 100)?;
            cluster.kill_and_restart(servers)?;
            progress(&storm, 100).context("after the restart")
        });
        storm.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("no panic in the storm").context("a call of the storm failed")?;
        }
        outcome
    })?;
    storm.verify(&directory).context("on the mount of the storm")?;
    let fresh = cluster.mount()?;
    storm.verify(&cluster.dir(fresh).join("storm")).context("on a fresh mount")
}

/// Waits until `more` files were done from now.
fn progress(storm: &Storm, more: usize) -> Result<()> {
    let goal = storm.count.load(Ordering::Relaxed) + more;
    wait::until("the storm went on", Duration::from_secs(60), || {
        let count = storm.count.load(Ordering::Relaxed);
        ensure!(count >= goal, "{count} files are done, {goal} are waited for");
        Ok(())
    })
}

#[test]
fn nothing_acknowledged_is_lost_when_the_master_dies_in_a_storm_of_creates() {
    with_cluster(|cluster| storm(cluster, &[Server::Master], 3));
}

#[test]
fn nothing_acknowledged_is_lost_when_chunk_servers_die_in_a_storm_of_creates() {
    with_cluster(|cluster| storm(cluster, &[Server::Chunk(0), Server::Chunk(2)], 2));
}

#[test]
fn nothing_acknowledged_is_lost_when_everything_dies_in_a_storm_of_creates() {
    with_cluster(|cluster| {
        let servers = cluster.servers();
        storm(cluster, &servers, 2)
    });
}

#[test]
fn fio_goes_on_and_verifies_when_each_chunk_server_dies_in_the_middle() {
    with_cluster(|cluster| {
        program::need("fio")?;
        let mount = cluster.mount()?;
        let directory = cluster.dir(mount);
        let mut child = Command::new("fio")
            .args(["--name=job", "--rw=randwrite", "--bs=16k", "--size=24m", "--numjobs=2", "--ioengine=psync"])
            .args(["--fsync=8", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"])
            // So slow that it is still at it when the last server has come back.
            .args(["--rate=1500k", "--time_based=0", "--output=fio.out"])
            .current_dir(&directory)
            .spawn()?;
        let outcome = (0..3).try_for_each(|index| {
            wait::until("fio writes", Duration::from_secs(30), || {
                ensure!(std::fs::metadata(directory.join("job.0.0"))?.len() > 0, "nothing yet");
                Ok(())
            })?;
            cluster.kill_and_restart(&[Server::Chunk(index)])
        });
        let status = wait::until("fio ended", Duration::from_secs(180), || child.try_wait()?.context("it runs"));
        if status.is_err() {
            let _ = child.kill();
        }
        outcome?;
        let said = std::fs::read_to_string(directory.join("fio.out")).unwrap_or_default();
        ensure!(status?.success(), "fio failed:\n{}", program::tail(&said, 25));
        Ok(())
    });
}
