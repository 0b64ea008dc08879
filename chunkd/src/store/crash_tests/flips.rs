//! Flipped bits: found, told, never returned.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::history::{Crash, Findings, History};
use super::memory::{Image, MemoryVolume};
use super::random::Random;
use super::{check, in_parallel};
use crate::store::chunk_file::UnitRead;
use crate::store::journal::scan::{ScanError, scan};
use crate::store::volume::Volume;

/// All places of an image that are not in holes, by file.
fn places(image: &Image, of: impl Fn(&str) -> bool) -> Vec<(u64, u64)> {
    let files = image.names.iter().filter(|(path, _)| of(path)).map(|(_, number)| *number);
    files.flat_map(|number| image.files[&number].places().map(move |place| (number, place))).collect()
}

#[test]
fn a_flipped_bit_anywhere_on_a_disk_is_never_returned() {
    let total = Mutex::new(Findings::default());
    let images = AtomicU64::new(0);
    let seeds: Vec<u64> = (0..40).collect();
    in_parallel(&seeds, |seed| {
        let history = History::record(9_000 + seed, 60);
        let mut random = Random(*seed);
        let at = history.events.len();
        let image = Image::after(&history.start, &history.events);
        let all = places(&image, |path| path.starts_with("replicas/") || path.starts_with("journal/"));
        for _ in 0..300 {
            let (file, place) = all[random.below(all.len() as u64) as usize];
            let mut flipped = image.clone();
            flipped.files.get_mut(&file).unwrap().flip(place, random.below(8) as u32);
            let found = check(&history, flipped, at, Crash::Flip);
            let mut total = total.lock().unwrap();
            total.is_fenced |= found.is_fenced;
            total.bad_units += found.bad_units;
            total.missing += found.missing;
            images.fetch_add(1, Ordering::Relaxed);
        }
    });
    let total = total.into_inner().unwrap();
    println!("{} images with a flipped bit: {total:?}", images.into_inner());
    assert!(total.is_fenced && total.bad_units > 100, "{total:?}");
}

#[test]
fn every_flipped_bit_of_a_journal_is_noticed_or_cuts_off_what_was_never_promised() {
    const BYTES: usize = 64 << 10;
    let history = History::record(77, 60);
    let image = Image::after(&history.start, &history.events);
    let volume = MemoryVolume::new(image.clone(), false);
    let whole = scan(&volume, false).unwrap();
    let (first, last) = (whole.records.first().unwrap().position, whole.records.last().unwrap().position);
    // The segments that count, up to the end of the last record.
    let mut places: Vec<(u64, u64)> = Vec::new();
    for path in &whole.segments {
        let base = u64::from_str_radix(&path[8..24], 16).unwrap();
        let number = image.names[path.as_str()];
        let length = volume.open(path).unwrap().length().unwrap();
        places.extend((0..length).filter(|at| (first..last).contains(&(base + at))).map(|at| (number, at)));
    }
    assert!(places.len() >= BYTES, "{} bytes", places.len());
    let (noticed, cut) = (AtomicU64::new(0), AtomicU64::new(0));
    in_parallel(&places[places.len() - BYTES..], |(file, place)| {
        for bit in 0..8 {
            let mut flipped = image.clone();
            flipped.files.get_mut(file).unwrap().flip(*place, bit);
            match scan(&MemoryVolume::new(flipped, false), false) {
                Err(ScanError::Corrupt(_)) => noticed.fetch_add(1, Ordering::Relaxed),
                // What is left of a segment after its end is not looked at.
                Ok(found) => {
                    assert_eq!(found.records.len(), whole.records.len(), "at {place}, bit {bit}");
                    cut.fetch_add(1, Ordering::Relaxed)
                }
                Err(error) => panic!("{error}"),
            };
        }
    });
    let (noticed, cut) = (noticed.into_inner(), cut.into_inner());
    println!("{} flipped bits of a journal: {noticed} noticed, {cut} of no consequence", noticed + cut);
    assert!(noticed > cut * 4);
}

#[test]
fn a_thousand_flipped_bits_in_the_units_of_open_replicas_are_all_found_by_reading() {
    let history = History::record(4, 80);
    let volume = MemoryVolume::new(Image::after(&history.start, &history.events), false);
    let store = super::history::open(&volume, "boot").unwrap();
    let mut random = Random(8);
    let mut found = 0;
    while found < 1_000 {
        let (chunk, note) = {
            let (notes, _) = store.inventory(None, 10);
            let note = notes[random.below(notes.len() as u64) as usize];
            (note.chunk, note)
        };
        assert_eq!(note.home.inode.0, chunk.0);
        let open = store.open_replica(chunk).unwrap().unwrap();
        let table = open.file.table();
        let data: Vec<u32> = table.iter().filter(|(_, state)| !state.hole).map(|(unit, _)| *unit).collect();
        let Some(unit) = data.get(random.below(data.len().max(1) as u64) as usize) else { continue };
        let (_, path) = crate::store::data_dir::replica_path(chunk);
        let place = crate::store::layout::data_offset(*unit) + random.below(4096);
        let bit = random.below(8) as u32;
        let flip = || {
            volume.change_image(|image| {
                let number = image.names[&path];
                image.files.get_mut(&number).unwrap().flip(place, bit);
            });
        };
        flip();
        let mut buffer = vec![0; 4096];
        assert_eq!(open.file.read(*unit, 1, &mut buffer).unwrap(), [UnitRead::Bad]);
        open.file.note_damage(*unit);
        assert!(open.file.table().iter().all(|(known, _)| known != unit));
        flip();
        // Whole again, as after a repair.
        let state = open.file.slots(*unit, 1)[0].state().unwrap();
        assert_eq!(open.file.read(*unit, 1, &mut buffer).unwrap(), [UnitRead::Good(state)]);
        open.file.put(*unit, &[state], &buffer.into(), None).unwrap();
        store.disks()[0].flush().unwrap();
        found += 1;
    }
}
