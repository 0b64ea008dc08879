//! Whatever a peer or a mount sends, the server answers or hangs up.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::wire::pb::{self, data_request};
use dfs_proto::wire::{Connection, FrameKind};
use proptest::prelude::*;

use crate::harness::{Chunk, Cluster, UNIT, pattern, wait_for_ok};
use crate::master::seal;

const ACTIVATION: u64 = 7;

fn number() -> impl Strategy<Value = u32> + Clone {
    let edges =
        [0, 1, 255, 256, 257, 4095, 4096, 1 << 20, (1 << 20) - 1, 1 << 26, u32::MAX - 4095, u32::MAX - 1, u32::MAX];
    prop_oneof![any::<u32>(), 0u32..300, proptest::sample::select(edges.to_vec())]
}

/// Numbers at both sides of the highest seq, 2^62. Not that one itself: a peer may claim it, and no write could follow.
fn large() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![any::<u64>(), 0u64..40, Just(u64::MAX), Just(u64::MAX - 1), Just((1 << 62) + 1), Just(ACTIVATION)]
}

fn list<T: std::fmt::Debug + Clone>(of: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => proptest::collection::vec(of.clone(), 0..4), 1 => proptest::collection::vec(of, 0..400)]
}

fn body() -> impl Strategy<Value = data_request::Body> {
    use data_request::Body;
    let crcs = || list(prop_oneof![any::<u32>(), Just(crc32c::crc32c(&[0; UNIT as usize]))]);
    let seqs = || list(large());
    let activation = || prop_oneof![4 => Just(ACTIVATION), 1 => large()];
    prop_oneof![
        (number(), crcs(), large(), large()).prop_map(|(offset, crcs, client, number)| Body::Write(pb::Write {
            offset,
            crcs,
            client,
            number
        })),
        (number(), number()).prop_map(|(offset, length)| Body::Read(pb::Read { offset, length })),
        (number(), number(), large(), large()).prop_map(|(offset, length, client, number)| Body::Zero(pb::Zero {
            offset,
            length,
            client,
            number
        })),
        (number(), number()).prop_map(|(offset, length)| Body::Extents(pb::Extents { offset, length })),
        Just(Body::Barrier(pb::Barrier { since: 0 })),
        large().prop_map(|activation| Body::Activate(pb::Activate { activation })),
        (large(), number(), number(), any::<bool>(), crcs(), activation(), large()).prop_map(
            |(seq, first_unit, units, zero, crcs, activation, base)| {
                Body::Prepare(pb::Prepare {
                    seq,
                    first_unit,
                    units,
                    zero,
                    crcs,
                    client: 1,
                    number: 1,
                    part: 0,
                    activation,
                    base,
                })
            }
        ),
        (large(), activation()).prop_map(|(seq, activation)| Body::PeerBarrier(pb::PeerBarrier {
            seq,
            activation,
            writes: Vec::new()
        })),
        (number(), number()).prop_map(|(first_unit, units)| Body::FetchUnits(pb::FetchUnits { first_unit, units })),
        (number(), crcs(), seqs(), seqs(), list(any::<bool>()), activation()).prop_map(
            |(first_unit, crcs, mut versions, mut seqs, mut holes, activation)| {
                // Mostly lists of one length, or nothing would come through.
                versions.resize(crcs.len(), 1);
                seqs.resize(crcs.len(), 9);
                holes.resize(crcs.len(), true);
                let writes = Vec::new();
                Body::PushUnits(pb::PushUnits { first_unit, crcs, versions, seqs, holes, activation, writes })
            }
        ),
    ]
}

/// Sends anything; the answer does not matter, that there is one or an end does.
fn send(
    chunk: &Chunk<'_>,
    connection: &mut Option<Connection>,
    dial: &dyn Fn() -> Connection,
    request: &pb::DataRequest,
    payload: &[u8],
) {
    let open = connection.get_or_insert_with(dial);
    let deadline = Instant::now() + Duration::from_secs(10);
    let answer: Result<(pb::DataReply, Bytes), _> =
        open.call(FrameKind::DataRequest, FrameKind::DataReply, request, payload, Some(deadline));
    if answer.is_err() {
        *connection = None;
    }
    assert!(Instant::now() < deadline, "chunk {}: no answer to {request:?}", chunk.chunk);
}

#[test]
fn arbitrary_requests_of_mounts_and_peers_panic_nobody_and_the_chunk_is_served_afterwards() {
    let panics = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&panics);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name().is_some_and(|name| name.starts_with("dfs-chunkd")) {
            counting.fetch_add(1, Ordering::SeqCst);
        }
        print(panic);
    }));
    let cluster = Cluster::start_with(|_, _, config| config.op_timeout_ms = 60);
    let chunk = cluster.chunk(1);
    let boot = cluster.master.state.lock().unwrap().nodes[&1].boot;
    let as_mount = || chunk.connect();
    // Node 1 as node 2 knows it.
    let as_peer = || chunk.connect_to(1, pb::Role::ChunkServer, 1, boot).unwrap();
    let (mount, peer) = (RefCell::new(None), RefCell::new(None));
    let grant = seal(&chunk.grant());
    let request = |version, grant, body| pb::DataRequest { chunk: 1, version, grant, body: Some(body) };
    let config = ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() };
    let payload = (0usize..40, 0usize..3, any::<u8>())
        .prop_map(|(units, rest, byte)| vec![byte % 3; units * UNIT as usize + rest]);
    let version = prop_oneof![9 => Just(1u64), 1 => large()];
    proptest!(config, |(bodies in proptest::collection::vec(body(), 1..4), payload in payload, version in version)| {
        let activate = data_request::Body::Activate(pb::Activate { activation: ACTIVATION });
        send(&chunk, &mut peer.borrow_mut(), &as_peer, &request(1, grant.clone(), activate), &[]);
        for body in bodies {
            let request = request(version, grant.clone(), body);
            send(&chunk, &mut mount.borrow_mut(), &as_mount, &request, &payload);
            send(&chunk, &mut peer.borrow_mut(), &as_peer, &request, &payload);
        }
    });
    assert_eq!(panics.load(Ordering::SeqCst), 0);
    let data = pattern(1, 3 * UNIT as usize);
    let write = |chunk: &Chunk<'_>, number| wait_for_ok("service", || chunk.try_write(0, &data, number));
    let read = |chunk: &Chunk<'_>| wait_for_ok("service", || chunk.try_read(0, 3 * UNIT));
    // Chunk servers trust each other: a unit that was stamped as newer than all that the primary has written wins the
    // next comparison, over a write that is under way at that moment too. The first write brings that comparison.
    write(&chunk, 1 << 50);
    write(&chunk, (1 << 50) + 1);
    assert_eq!(read(&chunk).as_deref(), Some(&data[..]));
    let other = cluster.chunk(2);
    write(&other, 1);
    assert_eq!(read(&other).as_deref(), Some(&data[..]));
}

#[test]
fn many_connections_that_say_nothing_keep_nobody_out() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(1);
    chunk.write(0, &[1; 10], 1);
    let idle: Vec<_> = (0..300).map(|_| chunk.connect()).collect();
    let address = cluster.master.state.lock().unwrap().nodes[&1].address.clone();
    let mute: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    chunk.write(0, &[2; 10], 2);
    assert_eq!(chunk.read(0, 10), [2; 10]);
    drop((idle, mute));
}
