//! Listings of large directories, and of directories that change meanwhile.

use std::collections::BTreeSet;

use dfs_proto::limits::LISTING_ENTRIES_MAX;
use dfs_proto::{InodeId, Kind};

use super::world::{World, name_of};
use crate::core::outcome::{Body, Listed};
use crate::core::request::{Make, Rename, Request};

const LIMIT: usize = LISTING_ENTRIES_MAX as usize;

fn make(world: &mut World, name: &str) {
    let make = Make {
        parent: InodeId::ROOT,
        name: name_of(name),
        kind: Kind::File,
        mode: 0o644,
        rdev: 0,
        target: bytes::Bytes::new(),
        open: false,
        exclusive: true,
    };
    world.ask(Request::Make(make)).expect("made");
}

fn unlink(world: &mut World, name: &str) {
    world.ask(Request::Unlink { parent: InodeId::ROOT, name: name_of(name) }).expect("unlinked");
}

fn page(world: &mut World, after: u64, plus: bool) -> (Vec<Listed>, bool) {
    match world.ask(Request::ReadDir { inode: InodeId::ROOT, after, limit: LIMIT, plus }).expect("listed") {
        Body::Listing { entries, is_end, .. } => (entries, is_end),
        other => panic!("unexpected {other:?}"),
    }
}

fn file(number: usize) -> String {
    format!("file{number:06}")
}

#[test]
fn a_page_of_a_hundred_thousand_names_costs_no_more_than_one_of_a_thousand() {
    let mut world = World::new();
    let count = 100_000;
    (0..count).for_each(|number| make(&mut world, &file(number)));
    for (plus, per_entry) in [(false, 1), (true, 2)] {
        let (mut seen, mut after) = (0, 0);
        loop {
            let (entries, is_end) = page(&mut world, after, plus);
            assert!(entries.len() <= LIMIT && world.read <= LIMIT * per_entry + 1, "{} records", world.read);
            for entry in &entries {
                assert_eq!(entry.name, name_of(&file(seen)));
                seen += 1;
            }
            after = entries.last().map_or(after, |entry| entry.cookie);
            if is_end {
                break;
            }
        }
        assert_eq!(seen, count);
    }
}

#[test]
fn names_that_stay_are_listed_once_whatever_comes_and_goes_between_the_pages() {
    let mut world = World::new();
    let count = 5 * LIMIT;
    (0..count).for_each(|number| make(&mut world, &file(number)));
    let (mut names, mut after, mut round) = (Vec::new(), 0, 0);
    loop {
        let (entries, is_end) = page(&mut world, after, false);
        names.extend(entries.iter().map(|entry| entry.name.to_string()));
        if is_end {
            break;
        }
        after = entries.last().expect("a page that is not the last has entries").cookie;
        // One goes behind the reader and one ahead of it, the one it stands at too; one comes; one gets another name.
        unlink(&mut world, &file(round * LIMIT + 7));
        unlink(&mut world, &file(count - 1 - round));
        unlink(&mut world, &entries.last().expect("one").name.to_string());
        make(&mut world, &format!("new{round}"));
        let rename = Rename {
            parent: InodeId::ROOT,
            name: name_of(&file(round * LIMIT + 9)),
            new_parent: InodeId::ROOT,
            new_name: name_of(&format!("renamed{round}")),
            flags: 0,
        };
        world.ask(Request::Rename(rename)).expect("renamed");
        round += 1;
        assert!(round < 20, "the listing ends");
    }
    let distinct: BTreeSet<&String> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "each at most once");
    assert!(
        !names.iter().any(|name| name.starts_with("renamed")),
        "a name that moved keeps its place behind the reader"
    );
    let stayed = |number: &usize| {
        let is_touched = [7, 9, LIMIT - 1].contains(&(number % LIMIT)) || *number >= count - round;
        !is_touched
    };
    for number in (0..count).filter(stayed) {
        assert!(distinct.contains(&file(number)), "{} was there all the while", file(number));
    }
    world.check_invariants();
}
