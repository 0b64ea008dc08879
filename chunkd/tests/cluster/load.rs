//! More replicas than may be open.

use crate::harness::{Cluster, UNIT, wait_until};

#[test]
fn more_chunks_than_may_be_open_are_served_under_load() {
    // 64 is the least that a server keeps open.
    let cluster = Cluster::start_with(|_, _, config| config.open_files_max = 1);
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut connection = cluster.chunk(1).connect();
                for round in 0..3u8 {
                    for at in 0..40u64 {
                        let chunk = cluster.chunk(writer * 100 + at + 1);
                        let data = [round + 1; UNIT as usize];
                        let offset = u32::from(round) * UNIT;
                        chunk.write_on(&mut connection, offset, &data, u64::from(round) + 1);
                        // The replica may have been closed and opened since.
                        let payload = chunk.read_on(&mut connection, offset, UNIT);
                        assert_eq!(payload, data[..]);
                    }
                }
            });
        }
    });
    for writer in 0..4u64 {
        for at in 0..40u64 {
            let chunk = cluster.chunk(writer * 100 + at + 1);
            for round in 0..3u8 {
                assert_eq!(chunk.read(u32::from(round) * UNIT, UNIT), [round + 1; UNIT as usize]);
            }
            chunk.assert_replicas_are_equal();
        }
    }
    for at in 0..3 {
        let data = cluster.data(at).join("replicas");
        let open = || {
            let files = std::fs::read_dir("/proc/self/fd").unwrap();
            let paths = files.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
            paths.filter(|path| path.starts_with(&data)).count()
        };
        // Those that have something in the journal stay open a moment longer.
        wait_until("an end of files", || open() <= 64 + 32 + 4);
    }
}
