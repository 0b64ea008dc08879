//! Replica sets as mounts and chunk servers see them change.

#![allow(clippy::disallowed_methods, reason = "a shell: the time of leases")]

mod cluster;

use std::time::{Duration, Instant};

use cluster::{Cluster, GUARD_MS, LEASE_MS, config};
use dfs_master::{EngineKind, MasterConfig};
use dfs_proto::replica_set::ChangeKind;
use dfs_proto::wire::pb::{self, meta_request::Body};
use dfs_proto::{BootSession, FsError, NodeId, Version};

fn started(servers: u8) -> (Cluster, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    (Cluster::start(config(directory.path(), EngineKind::Memory), servers), directory)
}

#[test]
fn a_lost_primary_is_replaced_once_its_lease_is_certainly_over() {
    let (mut cluster, _directory) = started(3);
    let inode = cluster.file_with_a_chunk();
    let first = cluster.locate(inode).unwrap();
    let lost = first.grant.primary.0;
    assert_eq!((first.replicas.len(), first.is_primary_alive, first.grant.min_in_sync), (3, true, 2));
    assert!(cluster.pulse(lost, 1).known);
    let (last_pulse, mut moved) = (Instant::now(), None);
    let others: Vec<(u32, u64)> = (1..=3).filter(|node| *node != lost).map(|node| (node, 1)).collect();
    cluster.live(&others, LEASE_MS + GUARD_MS + 200, |cluster| {
        let asked = last_pulse.elapsed();
        let now = cluster.locate(inode).unwrap();
        if now.grant.primary.0 == lost {
            assert!(moved.is_none(), "it came back");
            assert!(asked < Duration::from_millis(LEASE_MS + GUARD_MS), "too late: {asked:?}");
            assert_eq!(now.grant.version, Version(1));
        } else if moved.is_none() {
            moved = Some(last_pulse.elapsed());
        }
    });
    let moved = moved.expect("it was replaced");
    assert!(moved >= Duration::from_millis(LEASE_MS + GUARD_MS), "too early: {moved:?}");
    let second = cluster.locate(inode).unwrap();
    assert_eq!((second.grant.version, second.is_primary_alive), (Version(2), true));
    assert!(!second.replicas.contains(&lost), "it cannot be asked to take the version");

    // Its run has ended: it is believed again only under another name, and is granted nothing that it had.
    assert!(!cluster.pulse(lost, 1).known);
    let (result, grant) = cluster.change(lost, 1, &first.grant, ChangeKind::Refresh);
    assert!(matches!(result, Err(FsError::Stale(_))) && grant.is_none());
    let again = cluster.register(lost as u8, 1, false);
    assert_eq!((again.node, again.boot_session), (lost, 2));
    assert!(!cluster.pulse(lost, 1).known && cluster.pulse(lost, 2).known);
    assert_eq!(cluster.locate(inode).unwrap().grant.version, Version(2));
}

#[test]
fn a_restarted_primary_is_granted_its_chunk_again() {
    let (mut cluster, _directory) = started(3);
    let inode = cluster.file_with_a_chunk();
    let first = cluster.locate(inode).unwrap();
    let primary = first.grant.primary.0;
    assert_eq!(first.grant.primary_boot, BootSession(1));
    cluster.register(primary as u8, 77, false);
    let second = cluster.locate(inode).unwrap();
    assert_eq!((second.grant.primary.0, second.grant.version), (primary, Version(1)));
    assert_eq!(second.grant.primary_boot, BootSession(77));

    let (result, grant) = cluster.change(primary, 1, &first.grant, ChangeKind::Leave);
    assert!(matches!(result, Err(FsError::Stale(_))), "of a run that has ended: {result:?}");
    assert!(grant.is_none());
}

#[test]
fn a_change_is_answered_the_same_however_often_it_is_asked_for() {
    let (mut cluster, _directory) = started(3);
    let inode = cluster.file_with_a_chunk();
    let first = cluster.locate(inode).unwrap().grant;
    let primary = first.primary.0;
    let others = first.others(first.primary);
    let drop = ChangeKind::Drop { node: others[0].node };
    let (result, grant) = cluster.change(primary, 1, &first, drop.clone());
    assert_eq!(result, Ok(()));
    let granted = grant.expect("the primary learns of the set");
    assert_eq!((granted.version, granted.members.len()), (Version(2), 2));
    assert_eq!(cluster.change(primary, 1, &first, drop), (Ok(()), Some(granted.clone())));
    assert_eq!(cluster.locate(inode).unwrap().grant, granted, "the mount is told the same");

    let (result, grant) = cluster.change(primary, 1, &first, ChangeKind::Drop { node: others[1].node });
    assert!(matches!(result, Err(FsError::Stale(_))));
    assert_eq!(grant, Some(granted.clone()), "with how it stands now");
    let (result, grant) = cluster.change(others[1].node.0, 1, &granted, ChangeKind::Drop { node: NodeId(primary) });
    assert!(matches!(result, Err(FsError::Stale(_))) && grant.is_none(), "a secondary drops nobody");
    let absent = dfs_proto::replica_set::Grant { chunk: dfs_proto::ChunkId(u64::MAX), ..granted };
    let (result, _) = cluster.change(primary, 1, &absent, ChangeKind::Refresh);
    assert!(matches!(result, Err(FsError::Stale(_))), "no such chunk");
}

#[test]
fn the_last_member_in_sync_never_leaves() {
    let (mut cluster, _directory) = started(3);
    let inode = cluster.file_with_a_chunk();
    let mut grant = cluster.locate(inode).unwrap().grant;
    for left in [2, 1] {
        let (result, _) = cluster.change(grant.primary.0, 1, &grant, ChangeKind::Leave);
        assert_eq!(result, Ok(()));
        let next = cluster.locate(inode).unwrap().grant;
        assert_ne!(next.primary, grant.primary, "it has stopped to serve");
        assert_eq!(next.members.len(), left);
        grant = next;
    }
    let (result, _) = cluster.change(grant.primary.0, 1, &grant, ChangeKind::Leave);
    assert!(matches!(result, Err(FsError::NoReplica(_))), "{result:?}");
    let last = cluster.locate(inode).unwrap().grant;
    assert_eq!((last.primary, last.version, last.min_in_sync), (grant.primary, grant.version, 2));
}

#[test]
fn a_restarted_master_waits_a_lease_before_it_takes_over() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(config(directory.path(), EngineKind::Embedded), 3);
    let inode = cluster.file_with_a_chunk();
    let before = cluster.locate(inode).unwrap().grant;
    let lost = before.primary.0;
    let begun = Instant::now();
    let mut cluster = cluster.restart();
    let others: Vec<(u32, u64)> = (1..=3).filter(|node| *node != lost).map(|node| (node, 1)).collect();
    for (node, boot) in &others {
        assert!(!cluster.pulse(*node, *boot).known, "it has to register");
        assert_eq!(cluster.register(*node as u8, *boot, false).boot_session, *boot, "its run goes on");
    }
    let mut moved = None;
    cluster.live(&others, LEASE_MS + GUARD_MS + 300, |cluster| {
        // Shortly after the start a mount is told to wait for the primary to register.
        if let Ok(now) = cluster.locate(inode)
            && moved.is_none()
        {
            assert_ne!(now.grant.primary.0, lost);
            moved = Some(begun.elapsed());
        }
    });
    let moved = moved.expect("it was replaced");
    assert!(moved >= Duration::from_millis(LEASE_MS + GUARD_MS), "too early: {moved:?}");
    assert_eq!(cluster.locate(inode).unwrap().grant.version, Version(before.version.0 + 1));
    // That run has ended for this master too, though it was never heard of here.
    assert_eq!(cluster.register(lost as u8, 1, false).boot_session, 2);
}

#[test]
fn suspects_leave_before_a_mount_is_told_where_a_chunk_is() {
    let (mut cluster, _directory) = started(3);
    let inode = cluster.file_with_a_chunk();
    let first = cluster.locate(inode).unwrap().grant;
    let others = first.others(first.primary);
    cluster.register(others[0].node.0 as u8, 9, true);
    let second = cluster.locate(inode).unwrap();
    assert_eq!((second.grant.version, second.grant.primary), (Version(2), first.primary));
    assert!(!second.replicas.contains(&others[0].node.0));

    // The primary too: nothing is granted to its new run, and its former one is waited for.
    let primary = first.primary.0;
    cluster.register(primary as u8, 9, true);
    assert!(!cluster.locate(inode).map(|located| located.is_primary_alive).unwrap_or(false));
    let alive = [(others[1].node.0, 1), (primary, 9)];
    cluster.live(&alive, LEASE_MS + GUARD_MS + 200, |_| {});
    let third = cluster.locate(inode).unwrap();
    assert!(third.grant.version > second.grant.version && third.is_primary_alive);
    assert_eq!((third.grant.primary, third.replicas), (others[1].node, vec![others[1].node.0]));
}

#[test]
fn all_suspect_members_are_believed_together() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(config(directory.path(), EngineKind::Embedded), 3);
    let inode = cluster.file_with_a_chunk();
    let mut cluster = cluster.restart();
    for server in 1..=3 {
        cluster.register(server, 9, true);
        if server < 3 {
            assert!(!cluster.locate(inode).is_ok_and(|now| now.is_primary_alive), "who knows what the others have");
        }
    }
    cluster.live(&[(1, 9), (2, 9), (3, 9)], LEASE_MS + GUARD_MS + 200, |_| {});
    let settled = cluster.locate(inode).unwrap();
    assert_eq!((settled.replicas.len(), settled.is_primary_alive), (3, true));
    assert_eq!((settled.grant.version, settled.grant.primary_boot), (Version(2), BootSession(9)));
}

#[test]
fn a_lost_session_is_fenced_by_pulse() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = MasterConfig { session_ms: 200, pulse_ms: 50, ..config(directory.path(), EngineKind::Memory) };
    let mut cluster = Cluster::start(config, 1);
    let until = Instant::now() + Duration::from_secs(10);
    let fenced = loop {
        let reply = cluster.pulse(1, 1);
        assert!(Instant::now() < until, "not fenced");
        if !reply.fenced.is_empty() {
            break reply;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(fenced.fenced.len(), 1);
    assert!(fenced.fence_seq > 0);
    assert!(matches!(cluster.ask(Body::Ping(pb::Ping {})), Err(FsError::UnknownSession)));
    let in_force = pb::PulseRequest { node: 1, boot_session: 1, fence_seq: fenced.fence_seq, ..Default::default() };
    assert_eq!(cluster.pulse_with(in_force).fenced, fenced.fenced, "told for an hour, to those who come later");
}
