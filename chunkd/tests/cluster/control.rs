//! The master's refusals.

use crate::harness::{Cluster, wait_until};

#[test]
fn a_server_that_the_master_refuses_for_good_says_so_and_asks_no_more() {
    let mut cluster = Cluster::start();
    cluster.stop(0);
    cluster.master.state.lock().unwrap().refuses = Some("this is another cluster".into());
    cluster.start_server(0);
    let server = cluster.servers[0].as_ref().unwrap();
    wait_until("the verdict", || server.failure().is_some());
    assert_eq!(server.failure().unwrap(), "this is another cluster");
    let health = cluster.page(0, "/healthz");
    assert!(health.contains("503") && health.contains("another cluster"), "{health}");
    let asked = cluster.master.state.lock().unwrap().registrations;
    cluster.stop(0);
    assert_eq!(cluster.master.state.lock().unwrap().registrations, asked);
}

#[test]
fn a_server_that_cannot_reach_the_master_goes_on_trying() {
    let mut cluster = Cluster::start();
    cluster.stop(1);
    cluster.master.state.lock().unwrap().is_deaf = true;
    cluster.start_server(1);
    assert_eq!(cluster.servers[1].as_ref().unwrap().failure(), None);
    cluster.master.state.lock().unwrap().is_deaf = false;
    cluster.wait_registered(1);
    assert_eq!(cluster.servers[1].as_ref().unwrap().failure(), None);
}

#[test]
fn many_deletions_do_not_hold_up_the_pulses() {
    let cluster = Cluster::start();
    for chunk in 0..200 {
        cluster.chunk(chunk).write(0, &[1; 10], 1);
    }
    cluster.master.state.lock().unwrap().delete = (0..200).collect();
    wait_until("all deletions", || cluster.master.state.lock().unwrap().deleted.len() >= 600);
    for at in 0..3 {
        let left = std::fs::read_dir(cluster.data(at).join("replicas/00")).unwrap().count();
        assert_eq!(left, 0, "node {}", at + 1);
    }
}
