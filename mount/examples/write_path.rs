//! Measures what a mount does with each byte before it is sent: the copy into the buffer, the cut into pieces, and the
//! checksums. `cargo run --release -p dfs-mount --example write_path`

#![allow(clippy::disallowed_methods, reason = "a measurement: it reads the clock")]

use dfs_mount::cache::{DirtyMap, Mark};
use dfs_proto::{MonoMs, unit};

const TOTAL_BYTES: u64 = 1 << 30;

fn main() {
    for piece in [4096usize, 128 * 1024, 1 << 20] {
        let mut map = DirtyMap::new(1 << 20);
        let data: Vec<u8> = (0..piece).map(|at| at as u8).collect();
        let begun = std::time::Instant::now();
        let mut at = 0;
        let mut sum = 0u64;
        while at < TOTAL_BYTES {
            map.write(at, &data, MonoMs(1));
            at += piece as u64;
            while let Some(sealed) = map.seal(Mark::default()) {
                sum += u64::from(unit::checksums(0, &sealed.data)[0]);
                map.done(sealed.ticket);
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        println!("{piece} byte writes: {:.0} MB/s (checksums {sum:x})", TOTAL_BYTES as f64 / 1e6 / seconds);
    }
}
