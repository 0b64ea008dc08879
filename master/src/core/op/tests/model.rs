//! Random operations on the namespace and on a simple tree, results and whole trees compared after each step.

use std::collections::BTreeMap;

use dfs_proto::{FsError, InodeId, Kind};
use proptest::prelude::*;

use super::world::{World, name_of};
use crate::core::request::{CommitWrite, Make, Rename, Request, SetAttr, SetTime, SetXattr};

/// A simple tree: what the namespace should be.
#[derive(Default)]
struct Tree {
    nodes: BTreeMap<usize, Node>,
    next: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    kind: Kind,
    mode: u32,
    content: Vec<u8>,
    names: BTreeMap<&'static str, usize>,
    xattrs: BTreeMap<&'static str, u8>,
    atime: i64,
    mtime: i64,
    ctime: i64,
}

const ROOT: usize = 0;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// One step. Paths are up to three names; what is missing on the way is an error of both.
#[derive(Clone, Debug)]
enum Step {
    Make(Vec<usize>, Kind),
    Unlink(Vec<usize>),
    Rmdir(Vec<usize>),
    Rename(Vec<usize>, Vec<usize>, u32),
    Link(Vec<usize>, Vec<usize>),
    Chmod(Vec<usize>, u32),
    Touch(Vec<usize>, i64),
    Truncate(Vec<usize>, usize),
    Write(Vec<usize>, usize),
    SetXattr(Vec<usize>, usize, u8),
    RemoveXattr(Vec<usize>, usize),
}

fn paths() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0..NAMES.len(), 1..4)
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![4 => Just(Kind::Directory), 3 => Just(Kind::File), 1 => Just(Kind::Symlink), 1 => Just(Kind::Fifo)]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (paths(), kinds()).prop_map(|(path, kind)| Step::Make(path, kind)),
        2 => paths().prop_map(Step::Unlink),
        2 => paths().prop_map(Step::Rmdir),
        6 => (paths(), paths(), prop_oneof![4 => Just(0), 1 => Just(1), 2 => Just(2)])
            .prop_map(|(from, to, flags)| Step::Rename(from, to, flags)),
        2 => (paths(), paths()).prop_map(|(from, to)| Step::Link(from, to)),
        1 => (paths(), 0..0o10000u32).prop_map(|(path, mode)| Step::Chmod(path, mode)),
        1 => (paths(), -5..5i64).prop_map(|(path, at)| Step::Touch(path, at)),
        2 => (paths(), 0..40usize).prop_map(|(path, size)| Step::Truncate(path, size)),
        2 => (paths(), 0..40usize).prop_map(|(path, size)| Step::Write(path, size)),
        1 => (paths(), 0..2usize, any::<u8>()).prop_map(|(path, name, value)| Step::SetXattr(path, name, value)),
        1 => (paths(), 0..2usize).prop_map(|(path, name)| Step::RemoveXattr(path, name)),
    ]
}

impl Tree {
    fn new() -> Self {
        let mut tree = Self::default();
        tree.add(Kind::Directory, 0o755, 1);
        tree
    }

    fn add(&mut self, kind: Kind, mode: u32, now: i64) -> usize {
        let node = Node {
            kind,
            mode: if kind == Kind::Symlink { 0o777 } else { mode },
            content: if kind == Kind::Symlink { b"target".to_vec() } else { Vec::new() },
            names: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            atime: now,
            mtime: now,
            ctime: now,
        };
        self.nodes.insert(self.next, node);
        self.next += 1;
        self.next - 1
    }

    fn node(&mut self, id: usize) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node")
    }

    fn find(&self, path: &[usize]) -> Result<usize, FsError> {
        let mut at = ROOT;
        for name in path {
            at = self.child(at, NAMES[*name])?.ok_or(FsError::NoEntry)?;
        }
        Ok(at)
    }

    fn child(&self, at: usize, name: &str) -> Result<Option<usize>, FsError> {
        let node = &self.nodes[&at];
        if node.kind != Kind::Directory { Err(FsError::NotDirectory) } else { Ok(node.names.get(name).copied()) }
    }

    fn place(&self, path: &[usize]) -> Result<(usize, &'static str), FsError> {
        let (name, parents) = path.split_last().expect("a name");
        Ok((self.find(parents)?, NAMES[*name]))
    }

    fn is_below(&self, node: usize, above: usize) -> bool {
        node == above || self.nodes[&above].names.values().any(|child| self.is_below(node, *child))
    }

    fn nlink(&self, id: usize) -> usize {
        if self.nodes[&id].kind == Kind::Directory {
            let children = self.nodes[&id].names.values();
            return 2 + children.filter(|child| self.nodes[child].kind == Kind::Directory).count();
        }
        self.nodes.values().flat_map(|node| node.names.values()).filter(|child| **child == id).count()
    }

    fn touch_directory(&mut self, id: usize, now: i64) {
        let node = self.node(id);
        (node.mtime, node.ctime) = (now, now);
    }

    fn drop_if_unnamed(&mut self, id: usize, now: i64) {
        self.node(id).ctime = now;
        if !self.nodes.values().any(|node| node.names.values().any(|child| *child == id)) {
            self.nodes.remove(&id);
        }
    }

    fn apply(&mut self, step: &Step, now: i64) -> Result<(), FsError> {
        match step {
            Step::Make(path, kind) => {
                let (parent, name) = self.place(path)?;
                if self.child(parent, name)?.is_some() {
                    return Err(FsError::Exists);
                }
                let node = self.add(*kind, 0o750, now);
                let mode = self.nodes[&parent].mode & 0o2000;
                if *kind == Kind::Directory {
                    self.node(node).mode |= mode;
                }
                self.node(parent).names.insert(name, node);
                self.touch_directory(parent, now);
            }
            Step::Unlink(path) => {
                let (parent, name) = self.place(path)?;
                let child = self.child(parent, name)?.ok_or(FsError::NoEntry)?;
                if self.nodes[&child].kind == Kind::Directory {
                    return Err(FsError::IsDirectory);
                }
                self.node(parent).names.remove(name);
                self.touch_directory(parent, now);
                self.drop_if_unnamed(child, now);
            }
            Step::Rmdir(path) => {
                let (parent, name) = self.place(path)?;
                let child = self.child(parent, name)?.ok_or(FsError::NoEntry)?;
                if self.nodes[&child].kind != Kind::Directory {
                    return Err(FsError::NotDirectory);
                }
                if !self.nodes[&child].names.is_empty() {
                    return Err(FsError::NotEmpty);
                }
                self.node(parent).names.remove(name);
                self.touch_directory(parent, now);
                self.drop_if_unnamed(child, now);
            }
            Step::Rename(from, to, flags) => self.rename(from, to, *flags, now)?,
            Step::Link(from, to) => {
                let linked = self.find(from)?;
                let (parent, name) = self.place(to)?;
                let taken = self.child(parent, name)?;
                if taken.is_some() {
                    return Err(FsError::Exists);
                }
                if self.nodes[&linked].kind == Kind::Directory {
                    return Err(FsError::NotPermitted);
                }
                self.node(parent).names.insert(name, linked);
                self.touch_directory(parent, now);
                self.node(linked).ctime = now;
            }
            Step::Chmod(path, mode) => {
                let id = self.find(path)?;
                (self.node(id).mode, self.node(id).ctime) = (*mode, now);
            }
            Step::Touch(path, at) => {
                let id = self.find(path)?;
                let node = self.node(id);
                (node.atime, node.mtime, node.ctime) = (now, *at, now);
            }
            Step::Truncate(path, size) => {
                let id = self.find(path)?;
                self.check_file(id)?;
                let node = self.node(id);
                node.content.resize(*size, 0);
                (node.mtime, node.ctime) = (now, now);
            }
            Step::Write(path, size) => {
                let id = self.find(path)?;
                self.check_file(id)?;
                let node = self.node(id);
                node.content = vec![*size as u8; *size];
                (node.mtime, node.ctime) = (now, now);
            }
            Step::SetXattr(path, name, value) => {
                let id = self.find(path)?;
                self.node(id).xattrs.insert(NAMES[*name], *value);
                self.node(id).ctime = now;
            }
            Step::RemoveXattr(path, name) => {
                let id = self.find(path)?;
                self.node(id).xattrs.remove(NAMES[*name]).ok_or(FsError::NoAttribute)?;
                self.node(id).ctime = now;
            }
        }
        Ok(())
    }

    fn check_file(&self, id: usize) -> Result<(), FsError> {
        match self.nodes[&id].kind {
            Kind::File => Ok(()),
            Kind::Directory => Err(FsError::IsDirectory),
            _ => Err(FsError::Invalid("")),
        }
    }

    fn rename(&mut self, from: &[usize], to: &[usize], flags: u32, now: i64) -> Result<(), FsError> {
        let (parent, name) = self.place(from)?;
        let (new_parent, new_name) = self.place(to)?;
        self.child(new_parent, new_name)?;
        let moved = self.child(parent, name)?.ok_or(FsError::NoEntry)?;
        let target = self.child(new_parent, new_name)?;
        if flags == 1 && target.is_some() {
            return Err(FsError::Exists);
        }
        let is_directory = |tree: &Self, id: usize| tree.nodes[&id].kind == Kind::Directory;
        if flags == 2 && target.is_none() {
            return Err(FsError::NoEntry);
        }
        if is_directory(self, moved) && self.is_below(new_parent, moved) {
            return Err(FsError::IntoItself);
        }
        if target == Some(moved) {
            return Ok(());
        }
        if flags == 2 {
            let target = target.expect("looked at above");
            if is_directory(self, target) && self.is_below(parent, target) {
                return Err(FsError::IntoItself);
            }
            self.node(parent).names.insert(name, target);
            self.node(new_parent).names.insert(new_name, moved);
            self.node(target).ctime = now;
        } else {
            if let Some(target) = target {
                match (is_directory(self, moved), is_directory(self, target)) {
                    (true, false) => return Err(FsError::NotDirectory),
                    (false, true) if self.is_below(parent, target) => return Err(FsError::NotEmpty),
                    (false, true) => return Err(FsError::IsDirectory),
                    (true, true) if !self.nodes[&target].names.is_empty() => return Err(FsError::NotEmpty),
                    _ => {}
                }
            }
            self.node(parent).names.remove(name);
            self.node(new_parent).names.insert(new_name, moved);
            if let Some(target) = target {
                self.drop_if_unnamed(target, now);
            }
        }
        self.touch_directory(parent, now);
        self.touch_directory(new_parent, now);
        self.node(moved).ctime = now;
        Ok(())
    }
}

fn text(path: &[usize]) -> String {
    path.iter().map(|name| format!("/{}", NAMES[*name])).collect()
}

/// Makes the same step on the namespace, at the time `now`.
fn act(world: &mut World, step: &Step) -> Result<(), FsError> {
    let now = world.now;
    let request = match step {
        Step::Make(path, kind) => {
            let (parent, name) = world.place(&text(path))?;
            let target = if *kind == Kind::Symlink { "target".into() } else { bytes::Bytes::new() };
            let (mode, kind) = (0o750, *kind);
            Request::Make(Make { parent, name, kind, mode, rdev: 0, target, open: false, exclusive: true })
        }
        Step::Unlink(path) => {
            let (parent, name) = world.place(&text(path))?;
            Request::Unlink { parent, name }
        }
        Step::Rmdir(path) => {
            let (parent, name) = world.place(&text(path))?;
            Request::Rmdir { parent, name }
        }
        Step::Rename(from, to, flags) => {
            let (parent, name) = world.place(&text(from))?;
            let (new_parent, new_name) = world.place(&text(to))?;
            Request::Rename(Rename { parent, name, new_parent, new_name, flags: *flags })
        }
        Step::Link(from, to) => {
            let inode = world.find(&text(from))?.id;
            let (parent, name) = world.place(&text(to))?;
            Request::Link { inode, parent, name }
        }
        Step::Chmod(path, mode) => {
            let inode = world.find(&text(path))?.id;
            Request::SetAttr(SetAttr { inode, mode: Some(*mode), ..SetAttr::default() })
        }
        Step::Touch(path, at) => {
            let inode = world.find(&text(path))?.id;
            let mtime = Some(SetTime::At(dfs_proto::UnixNanos(*at)));
            Request::SetAttr(SetAttr { inode, atime: Some(SetTime::Now), mtime, ..SetAttr::default() })
        }
        Step::Truncate(path, size) => {
            let inode = world.find(&text(path))?.id;
            Request::SetAttr(SetAttr { inode, size: Some(*size as u64), ..SetAttr::default() })
        }
        Step::Write(path, size) => {
            let file = world.find(&text(path))?;
            Request::CommitWrite(CommitWrite {
                inode: file.id,
                content: Some(vec![*size as u8; *size].into()),
                if_data_version: file.data_version,
                ..CommitWrite::default()
            })
        }
        Step::SetXattr(path, name, value) => {
            let (inode, name) = (world.find(&text(path))?.id, NAMES[*name].into());
            let value = vec![*value].into();
            Request::SetXattr(SetXattr { inode, name, value, create: false, replace: false })
        }
        Step::RemoveXattr(path, name) => {
            let (inode, name) = (world.find(&text(path))?.id, NAMES[*name].into());
            Request::RemoveXattr { inode, name }
        }
    };
    world.now = now;
    world.ask(request).map(|_| ())
}

fn compare(world: &mut World, inode: InodeId, tree: &Tree, id: usize, seen: &mut BTreeMap<usize, InodeId>) {
    let (found, node) = (world.inode(inode).expect("an inode"), &tree.nodes[&id]);
    assert_eq!(*seen.entry(id).or_insert(inode), inode, "one file, one inode");
    let times = (found.atime.0, found.mtime.0, found.ctime.0);
    assert_eq!((found.kind, found.mode, times), (node.kind, node.mode, (node.atime, node.mtime, node.ctime)));
    assert_eq!(found.nlink as usize, tree.nlink(id), "nlink");
    assert_eq!(found.size as usize, node.content.len());
    match node.kind {
        Kind::Directory => {
            let listed = world.list(inode).expect("listed");
            let names: Vec<String> = listed.iter().map(|entry| entry.name.to_string()).collect();
            let mut sorted = names.clone();
            sorted.sort();
            assert_eq!(sorted, node.names.keys().map(|name| name.to_string()).collect::<Vec<_>>());
            for entry in listed {
                let child = node.names[entry.name.to_string().as_str()];
                compare(world, entry.inode, tree, child, seen);
            }
        }
        Kind::File => match world.ask(Request::GetInline { inode }).expect("read") {
            crate::core::outcome::Body::Inline { content, .. } => assert_eq!(&content[..], &node.content[..]),
            other => panic!("unexpected {other:?}"),
        },
        _ => {}
    }
    match world.ask(Request::ListXattr { inode }).expect("listed") {
        crate::core::outcome::Body::XattrNames(names) => {
            let names: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
            assert_eq!(names, node.xattrs.keys().map(|name| name.as_bytes()).collect::<Vec<_>>());
        }
        other => panic!("unexpected {other:?}"),
    }
}

fn check(steps: &[Step]) {
    let (mut world, mut tree) = (World::new(), Tree::new());
    for step in steps {
        let now = world.now;
        let expected = tree.apply(step, now + 1);
        let got = act(&mut world, step);
        let code = |result: &Result<(), FsError>| result.as_ref().map_err(FsError::code).copied();
        assert_eq!(code(&got), code(&expected), "{step:?}: {got:?}, expected {expected:?}");
        world.check_invariants();
        compare(&mut world, InodeId::ROOT, &tree, ROOT, &mut BTreeMap::new());
        assert_eq!(world.counters.inodes as usize, tree.nodes.len());
        world.now = now + 1;
    }
    // The name that tests use most must be one.
    assert_eq!(name_of("a").as_bytes(), b"a");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_namespace_is_the_simple_tree(steps in proptest::collection::vec(steps(), 1..60)) {
        check(&steps);
    }
}
