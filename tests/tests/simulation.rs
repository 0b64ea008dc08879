//! The simulator within the ordinary tests: seeds that once showed something, a few hundred others, the same run twice, and
//! a bug on purpose. `scripts/sim.sh` runs thousands.

use dfs_proto::planted::Bug;
use dfs_tests::sim::campaign::{self, Campaign, kept_directory, kept_seeds, run_seed, tell_seed};
use dfs_tests::sim::catalogue;
use dfs_tests::sim::simulation::Outcome;

fn check(campaign: &Campaign, kept: &[u64]) {
    let summary = campaign::run(campaign, kept, 1, |_| {});
    assert!(summary.seeds > 0 && summary.operations.0 > 100 * summary.seeds, "{summary:?}");
    if let Some((seed, violation)) = summary.found.iter().next() {
        let (_, story) = tell_seed(*seed, None);
        let last = story[story.len().saturating_sub(40)..].join("\n");
        panic!("{last}\nseed {seed} violates {}: {}\nscripts/sim.sh --seed {seed}", violation.rule, violation.what);
    }
}

#[test]
fn seeds_that_once_showed_something_show_nothing() {
    let kept = kept_seeds(&kept_directory());
    assert!(!kept.is_empty(), "{}", kept_directory().display());
    check(&Campaign { from: 0, seeds: 0, time: None, threads: 2 }, &kept);
}

#[test]
fn a_few_hundred_clusters_keep_every_rule() {
    check(&Campaign { from: 1, seeds: 200, time: None, threads: 2 }, &[]);
}

#[test]
fn a_seed_runs_the_same_way_each_time_whether_its_story_is_kept_or_not() {
    for seed in [3, 14, 15, 92, 65] {
        let first = run_seed(seed, None);
        let (second, story) = tell_seed(seed, None);
        assert_eq!(
            (first.hash, first.events, first.lasted),
            (second.hash, second.events, second.lasted),
            "seed {seed}"
        );
        assert!(story.len() as u64 >= second.events);
    }
    assert_ne!(run_seed(3, None).hash, run_seed(4, None).hash);
}

#[test]
fn every_seed_has_its_share_of_operations_and_faults() {
    let outcomes: Vec<_> = (1..=20).map(|seed| run_seed(seed, None)).collect();
    let operations = |outcome: &Outcome| outcome.operations.0 + outcome.operations.1;
    for outcome in &outcomes {
        // Where data may be lost, clients wait for what is gone for as long as they are patient.
        assert!(operations(outcome) >= 100, "{outcome:?}");
    }
    let all: u32 = outcomes.iter().map(operations).sum();
    assert!(all >= 20 * 300, "{all} operations in 20 seeds");
    let faults: u32 = outcomes.iter().flat_map(|outcome| outcome.strikes.values()).sum();
    assert!(faults >= 20 * 40, "{faults} faults in 20 seeds");
}

#[test]
fn a_bug_on_purpose_is_found() {
    for bug in [Bug::AcknowledgedEarly, Bug::NoDuplicateCheck, Bug::NoChecksum] {
        let entry = catalogue::find(bug, 1);
        assert!(entry.found.is_some(), "{entry:?}");
    }
}
