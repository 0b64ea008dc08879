//! A sparse file of 5 GiB: data at both ends and in the middle, holes between.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::{Workload, pattern};

const SIZE: u64 = 5 << 30;
const PIECE: u64 = 64 << 10;
/// Where data is, ascending; the last piece ends the file.
const OFFSETS: [u64; 4] = [0, (1 << 30) - PIECE / 2, (5 << 29) + 4096 * 3, SIZE - PIECE];
/// A file system may find data in coarser steps than it was written in, but not in any.
const GRAIN: u64 = 1 << 20;

/// Writes pieces far apart and checks data, holes and space.
pub struct Sparse;

/// Returns where lseek finds data or a hole; `None` past the last data.
fn seek(file: &File, offset: u64, whence: Whence) -> Result<Option<u64>> {
    match lseek(file, offset as i64, whence) {
        Ok(found) => Ok(Some(found as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("lseek of descriptor {} at {offset}", file.as_raw_fd())),
    }
}

impl Workload for Sparse {
    fn name(&self) -> &'static str {
        "sparse"
    }

    fn write(&mut self, directory: &Path) -> Result<()> {
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(directory.join("file"))?;
        // The end first: everything before it is a hole of a file that was never inline.
        for (index, offset) in OFFSETS.iter().enumerate().rev() {
            file.write_all_at(&pattern(index as u64, PIECE as usize), *offset)?;
        }
        file.sync_all()?;
        let empty = File::create(directory.join("all-hole"))?;
        empty.set_len(SIZE)?;
        Ok(())
    }

    fn verify(&self, directory: &Path) -> Result<()> {
        let file = File::open(directory.join("file"))?;
        let metadata = file.metadata()?;
        ensure!(metadata.len() == SIZE, "size {}", metadata.len());
        // Written are 256 KiB; whole chunks of 64 MiB may be counted, 5 GiB may not.
        ensure!(metadata.blocks() * 512 < SIZE / 10, "{} bytes allocated", metadata.blocks() * 512);
        let mut bytes = vec![0; PIECE as usize];
        for (index, offset) in OFFSETS.iter().enumerate() {
            file.read_exact_at(&mut bytes, *offset)?;
            ensure!(bytes == pattern(index as u64, PIECE as usize), "the piece at {offset} differs");
        }
        for offset in [PIECE, (1 << 30) + PIECE, (5 << 29) - PIECE, SIZE - 2 * PIECE, (3 << 30) + 5] {
            file.read_exact_at(&mut bytes, offset)?;
            ensure!(bytes.iter().all(|byte| *byte == 0), "the hole at {offset} has data");
        }
        ensure!(file.read_at(&mut bytes, SIZE)? == 0, "data past the end");

        for (index, offset) in OFFSETS.iter().enumerate() {
            ensure!(seek(&file, *offset, Whence::SeekData)? == Some(*offset), "SEEK_DATA at data, {offset}");
            let hole = seek(&file, *offset, Whence::SeekHole)?.context("SEEK_HOLE found no hole")?;
            let (least, most) = (offset + PIECE, (offset + PIECE + GRAIN).min(SIZE));
            ensure!((least..=most).contains(&hole), "SEEK_HOLE from {offset}: {hole}, not in {least}..={most}");
            if let Some(next) = OFFSETS.get(index + 1) {
                let data = seek(&file, hole, Whence::SeekData)?.context("SEEK_DATA found no data")?;
                ensure!(
                    (next - GRAIN..=*next).contains(&data),
                    "SEEK_DATA from {hole}: {data}, not shortly before {next}"
                );
            }
        }
        ensure!(seek(&file, SIZE, Whence::SeekData)?.is_none(), "data at the end of the file");

        let empty = File::open(directory.join("all-hole"))?;
        ensure!(
            empty.metadata()?.len() == SIZE && empty.metadata()?.blocks() * 512 < SIZE / 10,
            "all-hole: size or blocks"
        );
        ensure!(seek(&empty, 0, Whence::SeekHole)? == Some(0), "all-hole: SEEK_HOLE at 0");
        ensure!(seek(&empty, 0, Whence::SeekData)?.is_none(), "all-hole has data");
        empty.read_exact_at(&mut bytes, SIZE - PIECE)?;
        ensure!(bytes.iter().all(|byte| *byte == 0), "all-hole reads something");
        Ok(())
    }
}
