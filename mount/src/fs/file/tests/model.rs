//! Random calls over two handles, against a vector of bytes.

use proptest::prelude::*;

use super::cluster::{CHUNK, Cluster, Faults};
use super::*;

const SPAN: u64 = 5 * CHUNK;

#[derive(Clone, Debug)]
enum Op {
    Write { second: bool, offset: u64, length: usize, seed: u8 },
    Read { second: bool, offset: u64, length: u32 },
    Truncate { size: u64 },
    Fsync { second: bool },
    Flush { second: bool },
    Reopen { second: bool },
    Punch { offset: u64, length: u64 },
    Zero { offset: u64, length: u64 },
    Extend { size: u64 },
    Copy { from: u64, to: u64, length: u64 },
    Seek { offset: u64 },
    Push,
    Stat,
}

/// Small offsets and lengths too: inline files, and the way out of them.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![0..20_000u64, 0..SPAN, (0..10u64).prop_map(|at| at * 4096), (0..5u64).prop_map(|at| at * CHUNK)]
}

fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![1..300usize, 1..20_000usize, Just(4096), Just(CHUNK as usize), 1..150_000usize]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (any::<bool>(), place(), extent(), any::<u8>())
            .prop_map(|(second, offset, length, seed)| Op::Write { second, offset, length, seed }),
        6 => (any::<bool>(), place(), extent())
            .prop_map(|(second, offset, length)| Op::Read { second, offset, length: length as u32 }),
        2 => prop_oneof![Just(0), place()].prop_map(|size| Op::Truncate { size }),
        1 => any::<bool>().prop_map(|second| Op::Fsync { second }),
        1 => any::<bool>().prop_map(|second| Op::Flush { second }),
        1 => any::<bool>().prop_map(|second| Op::Reopen { second }),
        1 => (place(), extent()).prop_map(|(offset, length)| Op::Punch { offset, length: length as u64 }),
        1 => (place(), extent()).prop_map(|(offset, length)| Op::Zero { offset, length: length as u64 }),
        1 => place().prop_map(|size| Op::Extend { size: size.max(1) }),
        1 => (place(), place(), extent()).prop_map(|(from, to, length)| Op::Copy { from, to, length: length as u64 }),
        1 => place().prop_map(|offset| Op::Seek { offset }),
        3 => Just(Op::Push),
        1 => Just(Op::Stat),
    ]
}

fn grow(model: &mut Vec<u8>, end: u64) {
    if model.len() < end as usize {
        model.resize(end as usize, 0);
    }
}

fn expected(model: &[u8], offset: u64, length: u32) -> &[u8] {
    let from = (offset as usize).min(model.len());
    let to = (from + length as usize).min(model.len());
    &model[from..to]
}

fn run(ops: Vec<Op>, seed: u64, faults: Faults) {
    let cluster = Cluster::new(seed);
    cluster.set_faults(faults);
    let inode = cluster.make().inode;
    let mount = Mount::new(&cluster, FileSettings { push_age_ms: 5, ..settings() });
    let mut handles = [mount.open(inode), mount.open(inode)];
    let mut model: Vec<u8> = Vec::new();
    for op in ops {
        match op {
            Op::Write { second, offset, length, seed } => {
                let data = pattern(length, seed);
                mount.write(handles[usize::from(second)], offset, &data);
                grow(&mut model, offset + length as u64);
                model[offset as usize..offset as usize + length].copy_from_slice(&data);
            }
            Op::Read { second, offset, length } => {
                let seen = mount.read(handles[usize::from(second)], offset, length);
                assert!(seen == expected(&model, offset, length), "read of {length} at {offset}");
            }
            Op::Truncate { size } => {
                assert_eq!(mount.truncate(inode, size).size, size);
                model.resize(size as usize, 0);
            }
            Op::Fsync { second } => mount.table.fsync(handles[usize::from(second)]).unwrap(),
            Op::Flush { second } => mount.table.flush(handles[usize::from(second)]).unwrap(),
            Op::Reopen { second } => {
                mount.table.release(handles[usize::from(second)]);
                handles[usize::from(second)] = mount.open(inode);
            }
            Op::Punch { offset, length } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                mount.table.fallocate(handles[0], mode, offset, length).unwrap();
                let from = (offset as usize).min(model.len());
                let to = ((offset + length) as usize).min(model.len());
                model[from..to].fill(0);
            }
            Op::Zero { offset, length } => {
                mount.table.fallocate(handles[1], libc::FALLOC_FL_ZERO_RANGE, offset, length).unwrap();
                grow(&mut model, offset + length);
                model[offset as usize..(offset + length) as usize].fill(0);
            }
            Op::Extend { size } => {
                mount.table.fallocate(handles[0], 0, 0, size).unwrap();
                grow(&mut model, size);
            }
            Op::Copy { from, to, length } => {
                let outcome = mount.table.copy_range((handles[0], from), (handles[1], to), length);
                if from + length > to && to + length > from {
                    assert_eq!(outcome.unwrap_err().errno(), libc::EINVAL);
                } else {
                    let data = expected(&model, from, length as u32).to_vec();
                    assert_eq!(outcome, Ok(data.len() as u64));
                    if !data.is_empty() {
                        grow(&mut model, to + data.len() as u64);
                        model[to as usize..to as usize + data.len()].copy_from_slice(&data);
                    }
                }
            }
            Op::Seek { offset } => {
                let size = model.len() as u64;
                match mount.table.lseek(handles[0], offset, Whence::Data) {
                    Ok(at) => assert!(
                        at >= offset && at < size && model[offset as usize..at as usize].iter().all(|b| *b == 0)
                    ),
                    Err(error) => {
                        assert_eq!(error, FsError::PastEnd);
                        assert!(model.iter().skip(offset as usize).all(|byte| *byte == 0));
                    }
                }
                if let Ok(at) = mount.table.lseek(handles[1], offset, Whence::Hole) {
                    assert!(at >= offset && at <= size);
                }
            }
            Op::Push => mount.table.press(),
            Op::Stat => assert_eq!(mount.stat(inode).size, model.len() as u64),
        }
    }
    assert_eq!(mount.stat(inode).size, model.len() as u64);
    for handle in handles {
        mount.table.flush(handle).unwrap();
        mount.table.release(handle);
    }
    assert_eq!(mount.table.dirty_bytes(), 0);
    assert_eq!(mount.table.open_files(), 0);
    assert_eq!(cluster.attr(inode).size, model.len() as u64);
    let other = Mount::new(&cluster, settings());
    let handle = other.open(inode);
    let mut at = 0;
    while at < model.len() as u64 {
        let seen = other.read(handle, at, 100_000);
        assert!(seen == expected(&model, at, 100_000), "another mount at {at}");
        at += 100_000;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn files_are_what_was_written(ops in prop::collection::vec(op(), 1..60), seed in any::<u64>()) {
        run(ops, seed, Faults::default());
    }

    #[test]
    fn files_are_what_was_written_while_servers_fail(ops in prop::collection::vec(op(), 1..40), seed in any::<u64>()) {
        run(ops, seed, Faults { stale: 20, no_replica: 10, lost_answer: 20 });
    }
}
