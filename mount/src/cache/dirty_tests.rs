use proptest::prelude::*;

use super::*;

const SLOT: u64 = 64;
const NOW: MonoMs = MonoMs(1);

fn map() -> DirtyMap {
    DirtyMap::new(SLOT)
}

fn check(map: &DirtyMap) {
    let segments: u64 = map.segments.values().map(|segment| segment.data.len() as u64).sum();
    let pieces: u64 = map.pieces.values().map(|piece| piece.data.len() as u64).sum();
    assert_eq!(map.bytes, segments + pieces);
    assert_eq!(map.order.len(), map.segments.len());
    assert_eq!(map.tickets.len(), map.pieces.len());
    let mut end = 0;
    for (&start, segment) in &map.segments {
        assert!(start >= end && !segment.data.is_empty());
        end = start + segment.data.len() as u64;
        assert_eq!(start / SLOT, (end - 1) / SLOT, "inside one slot");
        assert_eq!(map.full.contains(&start), segment.data.len() as u64 == SLOT);
        assert!(map.order.contains(&(segment.mark, start)));
    }
    let mut end = 0;
    for (&start, piece) in &map.pieces {
        assert!(start >= end && !piece.data.is_empty());
        end = start + piece.data.len() as u64;
    }
}

#[test]
fn small_sequential_writes_grow_one_segment() {
    let mut map = map();
    for at in 0..16 {
        map.write(at * 4, &[at as u8; 4], NOW);
    }
    assert_eq!(map.segments.len(), 1);
    let sealed = map.seal(Mark(0)).expect("a full slot goes at once");
    assert_eq!((sealed.offset, sealed.data.len()), (0, 64));
    assert!(map.seal(Mark(0)).is_none());
}

#[test]
fn a_part_of_a_slot_waits_for_its_mark() {
    let mut map = map();
    map.write(10, b"abc", NOW);
    assert!(map.seal(Mark(0)).is_none());
    let mark = map.mark();
    map.write(100, b"later", NOW);
    assert!(!map.is_clean_to(mark));
    let sealed = map.seal(mark).expect("older than the mark");
    assert_eq!((sealed.offset, &sealed.data[..]), (10, &b"abc"[..]));
    assert!(map.seal(mark).is_none());
    assert!(!map.is_clean_to(mark), "in flight");
    assert_eq!(map.done(sealed.ticket), Some((10, 3)));
    assert!(map.is_clean_to(mark));
    assert_eq!(map.bytes(), 5);
}

#[test]
fn a_newer_write_waits_for_the_piece_below_it() {
    let mut map = map();
    map.write(0, b"aaaa", NOW);
    let mark = map.mark();
    let first = map.seal(mark).expect("sealed");
    map.write(2, b"bb", NOW);
    let mark = map.mark();
    assert!(map.seal(mark).is_none());
    assert_eq!(map.read_over(0, 4).iter().filter_map(|part| part.data.clone()).collect::<Vec<_>>().concat(), b"aabb");
    map.done(first.ticket);
    assert_eq!(map.seal(mark).map(|sealed| sealed.offset), Some(2));
}

#[test]
fn neighbours_are_sealed_together_but_not_across_slots() {
    let mut map = map();
    map.write(4, b"bbbb", NOW);
    map.write(0, b"aaaa", NOW);
    map.write(60, &[7; 8], NOW);
    let mark = map.mark();
    let mut sealed: Vec<_> = std::iter::from_fn(|| map.seal(mark)).map(|piece| (piece.offset, piece.data)).collect();
    sealed.sort();
    assert_eq!(sealed.len(), 3);
    assert_eq!(sealed[0], (0, Bytes::from_static(b"aaaabbbb")));
    assert_eq!(sealed[1], (60, Bytes::from_static(&[7; 4])));
    assert_eq!(sealed[2], (64, Bytes::from_static(&[7; 4])));
}

#[test]
fn a_dropped_piece_is_forgotten() {
    let mut map = map();
    map.write(0, b"x", NOW);
    let mark = map.mark();
    let sealed = map.seal(mark).expect("sealed");
    map.drop_all();
    assert_eq!(map.done(sealed.ticket), None);
    assert!(map.is_empty() && map.bytes() == 0);
}

#[test]
fn the_first_held_byte_is_found() {
    let mut map = map();
    map.write(10, b"abcd", NOW);
    let mark = map.mark();
    let _ = map.seal(mark);
    map.write(30, b"e", NOW);
    for (from, expected) in [(0, Some(10)), (12, Some(12)), (14, Some(30)), (30, Some(30)), (31, None)] {
        assert_eq!(map.first_from(from), expected, "from {from}");
    }
    assert_eq!(map.end(), 31);
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u8, usize),
    Under(u64, u8, usize),
    Mark,
    Seal,
    Done(usize),
    Truncate(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..300u64, 1..200u8, 1..100usize).prop_map(|(at, byte, length)| Op::Write(at, byte, length)),
        1 => (0..300u64, 1..200u8, 1..100usize).prop_map(|(at, byte, length)| Op::Under(at, byte, length)),
        1 => Just(Op::Mark),
        3 => Just(Op::Seal),
        2 => (0..8usize).prop_map(Op::Done),
        1 => (0..300u64).prop_map(Op::Truncate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Below the map a "disk" takes the pieces as they are done; map over disk is always what was written.
    #[test]
    fn the_map_over_the_disk_is_what_was_written(ops in prop::collection::vec(op(), 1..80)) {
        let mut map = map();
        let mut disk = vec![0u8; 512];
        let mut model = vec![0u8; 512];
        let mut flying: Vec<Sealed> = Vec::new();
        let mut mark = Mark(0);
        for op in ops {
            match op {
                Op::Write(at, byte, length) => {
                    let data: Vec<u8> = (0..length).map(|i| byte.wrapping_add(i as u8)).collect();
                    map.write(at, &data, NOW);
                    model[at as usize..at as usize + length].copy_from_slice(&data);
                }
                Op::Under(at, byte, length) => {
                    let held = map.read_over(at, length as u64);
                    map.write_under(at, &vec![byte; length], NOW);
                    for part in held.iter().filter(|part| part.data.is_none()) {
                        model[part.offset as usize..(part.offset + part.length) as usize].fill(byte);
                    }
                }
                Op::Mark => mark = map.mark(),
                Op::Seal => flying.extend(map.seal(mark)),
                Op::Done(which) if which < flying.len() => {
                    let piece = flying.remove(which);
                    let at = piece.offset as usize;
                    disk[at..at + piece.data.len()].copy_from_slice(&piece.data);
                    prop_assert_eq!(map.done(piece.ticket), Some((piece.offset, piece.data.len() as u64)));
                }
                Op::Done(_) => {}
                Op::Truncate(size) => {
                    if !map.is_in_flight_past(size) {
                        map.truncate(size);
                        disk[size as usize..].fill(0);
                        model[size as usize..].fill(0);
                    }
                }
            }
            check(&map);
            let mut seen = disk.clone();
            let mut at = 0;
            for part in map.read_over(0, 512) {
                prop_assert_eq!(part.offset, at);
                at += part.length;
                if let Some(data) = part.data {
                    prop_assert_eq!(data.len() as u64, part.length);
                    seen[part.offset as usize..at as usize].copy_from_slice(&data);
                }
            }
            prop_assert_eq!(at, 512);
            prop_assert_eq!(&seen, &model);
        }
    }
}
