//! Figures, not claims: `cargo nextest run -p dfs-chunkd --run-ignored only --no-capture`.

use std::time::Instant;

use dfs_proto::wire::pb::{self, data_request};

use crate::harness::{Cluster, pattern};

#[test]
#[ignore = "prints figures of this machine"]
fn figures_of_one_client_on_one_chunk() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(1);
    let mut connection = chunk.connect();
    let mut number = 0;
    for (name, size, rounds) in [("4 KiB", 4096u32, 3_000u32), ("1 MiB", 1 << 20, 200)] {
        let data = pattern(1, size as usize);
        let request = |number| chunk.write_request((number as u32 * size) % (1 << 20), &data, number);
        chunk.ask_on(&mut connection, request(1 << 40), &data).unwrap();
        let started = Instant::now();
        for _ in 0..rounds {
            number += 1;
            chunk.ask_on(&mut connection, request(number), &data).unwrap();
        }
        let each = started.elapsed() / rounds;
        println!("write {name}: {each:?} each, {:.1} MB/s", f64::from(size) / each.as_secs_f64() / 1e6);
        let started = Instant::now();
        for round in 0..rounds {
            let read = pb::Read { offset: (round * size) % (1 << 20), length: size };
            chunk.ask_on(&mut connection, data_request::Body::Read(read), &[]).unwrap();
        }
        let each = started.elapsed() / rounds;
        println!("read {name}: {each:?} each, {:.1} MB/s", f64::from(size) / each.as_secs_f64() / 1e6);
    }
    let started = Instant::now();
    for round in 0..100u32 {
        number += 1;
        let data = [round as u8; 4096];
        chunk.ask_on(&mut connection, chunk.write_request(0, &data, number), &data).unwrap();
        chunk.ask_on(&mut connection, data_request::Body::Barrier(pb::Barrier {}), &[]).unwrap();
    }
    println!("write 4 KiB and barrier: {:?} each", started.elapsed() / 100);
    let started = Instant::now();
    for fresh in 100..400u64 {
        let chunk = cluster.chunk(fresh);
        let data = [1; 4096];
        chunk.ask_on(&mut connection, chunk.write_request(0, &data, 1), &data).unwrap();
    }
    println!("first write of a new chunk: {:?} each", started.elapsed() / 300);
}
