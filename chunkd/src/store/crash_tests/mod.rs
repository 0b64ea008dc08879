//! What is left of a disk after every kind of crash, and with flipped bits.
//!
//! A random load is carried out on a disk in memory that notes each write and each sync. From that, images are made of what
//! the disk may hold after a crash at any moment; a store is started on each, and everything in it is read and held against
//! what was promised until then ([`history`]).

mod failures;
mod flips;
mod history;
mod memory;
mod random;
mod threads;

use std::sync::atomic::{AtomicU64, Ordering};

use self::history::{Crash, Findings, History};
use self::memory::{Event, Image, MemoryVolume};
use self::random::Random;

/// Carries `work` out for each of `items`, on as many threads as there are processors.
fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    work(item);
                }
            });
        }
    });
}

fn check(history: &History, image: Image, at: usize, crash: Crash) -> Findings {
    history.check(&MemoryVolume::new(image, false), at, crash)
}

#[test]
fn a_process_that_died_at_any_byte_of_any_write_leaves_all_that_was_answered() {
    const BYTES: usize = 256 << 10;
    let history = History::record(1, 40);
    let lengths = history.events.iter().map(|event| match event {
        Event::Write(_, _, data) => data.len(),
        _ => 1,
    });
    let lengths: Vec<usize> = lengths.collect();
    // From the middle on: overwrites, checkpoints and deletions are under way by then.
    let from = lengths.len() / 3;
    let mut bytes = 0;
    let count = lengths[from..].iter().take_while(|length| {
        bytes += **length;
        bytes < BYTES + **length
    });
    let events: Vec<usize> = (from..from + count.count()).collect();
    assert!(bytes >= BYTES, "{bytes} bytes");
    let images = AtomicU64::new(0);
    in_parallel(&events, |at| {
        let before = Image::after(&history.start, &history.events[..*at]);
        for length in 0..lengths[*at] {
            let mut image = before.clone();
            if let Event::Write(file, offset, data) = &history.events[*at] {
                image.apply(&Event::Write(*file, *offset, data[..length].to_vec()));
            }
            images.fetch_add(1, Ordering::Relaxed);
            assert_eq!(check(&history, image, *at, Crash::Process), Findings::default());
        }
    });
    println!("{} images of a process that died", images.into_inner());
}

#[test]
fn a_host_that_lost_its_power_leaves_all_that_was_synced_and_no_garbage() {
    const SEEDS: u64 = 400;
    const IMAGES_PER_SEED: u64 = 100;
    let seeds: Vec<u64> = (0..SEEDS).collect();
    let images = AtomicU64::new(0);
    in_parallel(&seeds, |seed| {
        let history = History::record(1_000 + seed, 50);
        let mut random = Random(*seed);
        for _ in 0..IMAGES_PER_SEED {
            let at = random.below(history.events.len() as u64 + 1) as usize;
            let image = Image::after_power_loss(&history.start, &history.events[..at], &mut random);
            assert_eq!(check(&history, image, at, Crash::Power), Findings::default(), "seed {seed}");
            images.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("{} images of a host that lost its power", images.into_inner());
}

#[test]
fn a_start_that_crashes_again_and_again_comes_to_the_same() {
    let seeds: Vec<u64> = (0..150).collect();
    let images = AtomicU64::new(0);
    in_parallel(&seeds, |seed| {
        let history = History::record(5_000 + seed, 50);
        let mut random = Random(*seed);
        for crash in [Crash::Process, Crash::Power].repeat(5) {
            let at = random.below(history.events.len() as u64 + 1) as usize;
            let events = &history.events[..at];
            let mut image = match crash {
                Crash::Power => Image::after_power_loss(&history.start, events, &mut random),
                _ => Image::after(&history.start, events),
            };
            for _ in 0..3 {
                let volume = MemoryVolume::new(image.clone(), true);
                let boot_id = if crash == Crash::Power { "another boot" } else { "boot" };
                drop(history::open(&volume, boot_id));
                let events = volume.take_log();
                let until = random.below(events.len() as u64 + 1) as usize;
                image = match crash {
                    Crash::Power => Image::after_power_loss(&image, &events[..until], &mut random),
                    _ => Image::after(&image, &events[..until]),
                };
                images.fetch_add(1, Ordering::Relaxed);
            }
            assert_eq!(check(&history, image, at, crash), Findings::default(), "seed {seed}");
        }
    });
    println!("{} starts that crashed", images.into_inner());
}
