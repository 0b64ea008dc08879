//! Files of more chunks than locations are kept of.

use super::*;
use crate::fs::file::locations::LOCATIONS_KEPT_MAX;

const CHUNKS: u64 = 2 * LOCATIONS_KEPT_MAX as u64 + 16;

/// A file of [`CHUNKS`] chunks, synced, and its content.
fn large_file() -> (Mount, InodeId, HandleId, Vec<u8>) {
    let (mount, inode, handle) = mount();
    let content: Vec<u8> = (0..CHUNKS).flat_map(|at| pattern(CHUNK as usize, at as u8)).collect();
    mount.write(handle, 0, &content);
    mount.table.fsync(handle).unwrap();
    (mount, inode, handle, content)
}

fn chunk(content: &[u8], index: u64) -> &[u8] {
    &content[(index * CHUNK) as usize..][..CHUNK as usize]
}

/// Looks up so much at the end of the file that nothing else is kept.
fn look_at_the_end(mount: &Mount, handle: HandleId) {
    for index in (CHUNKS - LOCATIONS_KEPT_MAX as u64..CHUNKS).rev() {
        mount.read(handle, index * CHUNK, 1);
    }
}

#[test]
fn all_of_it_is_read_forwards_and_again_from_the_front() {
    let (mount, _, handle, content) = large_file();
    for index in (0..CHUNKS).chain([0, CHUNKS - 1, 0]) {
        assert!(mount.read(handle, index * CHUNK, CHUNK as u32) == chunk(&content, index), "chunk {index}");
    }
}

#[test]
fn all_of_it_is_read_backwards() {
    let (mount, _, handle, content) = large_file();
    for index in (0..CHUNKS).rev() {
        assert!(mount.read(handle, index * CHUNK, CHUNK as u32) == chunk(&content, index), "chunk {index}");
    }
}

#[test]
fn an_fsync_reaches_a_chunk_whose_location_fell_out() {
    let (mount, inode, handle, _) = large_file();
    mount.write(handle, 5, b"front");
    mount.table.flush(handle).unwrap();
    look_at_the_end(&mount, handle);
    let before = mount.cluster.barriers();
    mount.table.fsync(handle).unwrap();
    assert_eq!(mount.cluster.barriers() - before, 1);
    mount.cluster.crash();
    let other = Mount::new(&mount.cluster, settings());
    assert_eq!(other.read(other.open(inode), 5, 5), &b"front"[..]);
}

#[test]
fn a_hole_is_made_in_a_chunk_whose_location_fell_out() {
    let (mount, inode, handle, content) = large_file();
    look_at_the_end(&mount, handle);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    mount.table.fallocate(handle, punch, 4096, 4096).unwrap();
    let other = Mount::new(&mount.cluster, settings());
    let seen = other.read(other.open(inode), 0, 16_384);
    assert_eq!(seen[..4096], content[..4096]);
    assert!(seen[4096..8192].iter().all(|byte| *byte == 0));
    assert_eq!(seen[8192..], content[8192..16_384]);
}

#[test]
fn a_write_between_chunks_that_are_kept_finds_its_own() {
    let (mount, inode, handle, _) = large_file();
    for index in [0, CHUNKS - 1, CHUNKS / 2, 1, CHUNKS / 2 + 1, 0] {
        mount.write(handle, index * CHUNK + 9, &[b'!', index as u8]);
        mount.table.flush(handle).unwrap();
    }
    let other = Mount::new(&mount.cluster, settings());
    let there = other.open(inode);
    for index in [0, CHUNKS - 1, CHUNKS / 2, 1, CHUNKS / 2 + 1] {
        assert_eq!(other.read(there, index * CHUNK + 9, 2), &[b'!', index as u8][..], "chunk {index}");
    }
}
