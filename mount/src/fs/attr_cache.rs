//! Attributes the master gave less than a second ago, and which of them this mount has changed since.
//!
//! The kernel has such a cache of its own; this one answers what the kernel asks again although we know it: a
//! directory's attributes after each change in it, a file's after each write. It also tells whether something that was
//! fetched a while ago (a page of a directory) is still what it was, as far as this mount is concerned.
//!
//! # Invariants
//!
//! - Nothing is shown for longer than [`TTL_MS`] after the master was asked, whoever caches it: the time that is left is
//!   handed to the kernel with the attributes.
//! - Attributes that were asked for before a change of this mount and arrive after it are not kept.
//!
//! All maps are bounded; what falls out of them counts as changed.

use std::num::NonZeroUsize;

use dfs_proto::{InodeId, MonoMs, Name, UnixNanos};
use lru::LruCache;
use parking_lot::Mutex;

use super::attr::Attr;

/// How long names and attributes are shown without asking the master again, in milliseconds.
pub const TTL_MS: u64 = 1_000;

const ENTRIES_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
const REMOVED_MAX: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

/// A moment in the order of this mount's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// Attributes and for how much longer they may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The attributes.
    pub attr: Attr,
    /// Milliseconds.
    pub ttl_ms: u64,
}

/// A change of a directory by this mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryChange {
    /// A name of anything but a directory came or went.
    Name,
    /// A directory came: the parent has one more link.
    DirectoryAdded,
    /// A directory went.
    DirectoryRemoved,
}

/// The cache. All threads share it.
#[derive(Debug)]
pub struct AttrCache {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    known: LruCache<InodeId, Known>,
    /// What names referred to when they were last seen: only to find the inode a change by name touches.
    targets: LruCache<(InodeId, Name), InodeId>,
    /// What this mount removed by name, as it was then: a program may still hold it (as its working directory, by an
    /// O_PATH descriptor), and the master knows it no longer.
    removed: LruCache<InodeId, Attr>,
    changed_inodes: LruCache<InodeId, u64>,
    changed_names: LruCache<(InodeId, Name), u64>,
    mark: u64,
    /// The newest change that is remembered no longer.
    floor: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    attr: Attr,
    until: MonoMs,
}

impl Default for AttrCache {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                known: LruCache::new(ENTRIES_MAX),
                targets: LruCache::new(ENTRIES_MAX),
                removed: LruCache::new(REMOVED_MAX),
                changed_inodes: LruCache::new(ENTRIES_MAX),
                changed_names: LruCache::new(ENTRIES_MAX),
                mark: 1,
                floor: 0,
            }),
        }
    }
}

impl AttrCache {
    /// Returns the present moment: take it before asking the master.
    pub fn mark(&self) -> Mark {
        Mark(self.inner.lock().mark)
    }

    /// Returns what is known of `inode` and may still be shown.
    pub fn get(&self, inode: InodeId, now: MonoMs) -> Option<Shown> {
        let mut inner = self.inner.lock();
        let known = *inner.known.get(&inode)?;
        let ttl_ms = known.until.since(now);
        if ttl_ms == 0 {
            inner.known.pop(&inode);
            return None;
        }
        Some(Shown { attr: known.attr, ttl_ms })
    }

    /// Keeps attributes the master was asked for at `asked`, after `mark` was taken, unless this mount has changed the
    /// inode since.
    pub fn learn(&self, attr: &Attr, mark: Mark, asked: MonoMs) {
        let mut inner = self.inner.lock();
        if inner.is_inode_changed(attr.inode, mark)
            || inner.known.peek(&attr.inode).is_some_and(|k| k.attr.seq > attr.seq)
        {
            return;
        }
        inner.known.put(attr.inode, Known { attr: *attr, until: asked.plus(TTL_MS) });
    }

    /// Returns the last attributes of what this mount has removed, if it is remembered: for an inode that the master does
    /// not know.
    pub fn removed(&self, inode: InodeId) -> Option<Attr> {
        self.inner.lock().removed.get(&inode).copied()
    }

    /// Remembers what a name referred to.
    pub fn learn_name(&self, parent: InodeId, name: &Name, inode: InodeId) {
        self.inner.lock().targets.put((parent, name.clone()), inode);
    }

    /// Takes the answer to a change by this mount: older attributes on their way here no longer count.
    pub fn change(&self, attr: &Attr, asked: MonoMs) {
        self.inner.lock().change(attr, asked);
    }

    /// Corrects what is known of an inode, which this mount has changed; it is shown no longer than before.
    pub fn correct(&self, inode: InodeId, correct: impl FnOnce(&mut Attr)) {
        let mut inner = self.inner.lock();
        inner.touch_inode(inode);
        if let Some(known) = inner.known.get_mut(&inode) {
            correct(&mut known.attr);
        }
    }

    /// Forgets an inode this mount changed in a way that only the master can tell.
    pub fn forget(&self, inode: InodeId) {
        let mut inner = self.inner.lock();
        inner.touch_inode(inode);
        inner.known.pop(&inode);
    }

    /// Notes that `name` in `parent` changed its meaning at `time`: what it referred to has changed, and the directory's
    /// times and links are brought up to date. Returns what it referred to, if that is remembered.
    pub fn change_name(
        &self,
        parent: InodeId,
        name: &Name,
        change: DirectoryChange,
        time: UnixNanos,
    ) -> Option<InodeId> {
        let mut inner = self.inner.lock();
        inner.touch_name(parent, name);
        let target = inner.targets.pop(&(parent, name.clone()));
        match target {
            Some(inode) => {
                inner.touch_inode(inode);
                if let Some(Known { mut attr, .. }) = inner.known.pop(&inode) {
                    attr.nlink = if attr.is_directory() { 0 } else { attr.nlink.saturating_sub(1) };
                    attr.ctime = attr.ctime.max(time);
                    inner.removed.put(inode, attr);
                }
            }
            // It may be any inode but the directory itself: nothing that is known can be trusted.
            None => {
                let directory = inner.known.pop(&parent);
                inner.known.clear();
                inner.floor = inner.mark;
                if let Some(directory) = directory {
                    inner.known.put(parent, directory);
                }
            }
        }
        inner.change_directory(parent, change, time);
        target
    }

    /// Notes that a new inode with these attributes got a name at `time`.
    pub fn add_name(&self, parent: InodeId, name: &Name, attr: &Attr, time: UnixNanos, asked: MonoMs) {
        let change = if attr.is_directory() { DirectoryChange::DirectoryAdded } else { DirectoryChange::Name };
        let mut inner = self.inner.lock();
        inner.touch_name(parent, name);
        inner.targets.put((parent, name.clone()), attr.inode);
        inner.change_directory(parent, change, time);
        inner.change(attr, asked);
    }

    /// Returns whether this mount may have changed the inode since `mark`.
    pub fn is_inode_changed(&self, inode: InodeId, mark: Mark) -> bool {
        self.inner.lock().is_inode_changed(inode, mark)
    }

    /// Returns whether this mount may have changed what `name` refers to since `mark`.
    pub fn is_name_changed(&self, parent: InodeId, name: &Name, mark: Mark) -> bool {
        let inner = self.inner.lock();
        inner.floor > mark.0 || inner.changed_names.peek(&(parent, name.clone())).is_some_and(|&at| at > mark.0)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut inner = self.inner.lock();
        inner.mark += 1;
        inner.floor = inner.mark;
        inner.known.clear();
        inner.targets.clear();
        inner.removed.clear();
    }
}

impl Inner {
    fn is_inode_changed(&self, inode: InodeId, mark: Mark) -> bool {
        self.floor > mark.0 || self.changed_inodes.peek(&inode).is_some_and(|&at| at > mark.0)
    }

    /// Takes the answer to a change of an inode.
    fn change(&mut self, attr: &Attr, asked: MonoMs) {
        self.touch_inode(attr.inode);
        self.removed.pop(&attr.inode);
        self.known.put(attr.inode, Known { attr: *attr, until: asked.plus(TTL_MS) });
    }

    /// Brings the times and links of a directory up to date.
    fn change_directory(&mut self, directory: InodeId, change: DirectoryChange, time: UnixNanos) {
        self.touch_inode(directory);
        if let Some(Known { attr, .. }) = self.known.get_mut(&directory) {
            attr.mtime = attr.mtime.max(time);
            attr.ctime = attr.ctime.max(time);
            match change {
                DirectoryChange::Name => {}
                DirectoryChange::DirectoryAdded => attr.nlink += 1,
                DirectoryChange::DirectoryRemoved => attr.nlink = attr.nlink.saturating_sub(1),
            }
        }
    }

    fn touch_inode(&mut self, inode: InodeId) {
        self.mark += 1;
        if let Some((fallen, at)) = self.changed_inodes.push(inode, self.mark)
            && fallen != inode
        {
            self.floor = self.floor.max(at);
        }
    }

    fn touch_name(&mut self, parent: InodeId, name: &Name) {
        self.mark += 1;
        let key = (parent, name.clone());
        if let Some((fallen, at)) = self.changed_names.push(key.clone(), self.mark)
            && fallen != key
        {
            self.floor = self.floor.max(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::attr::tests::attr;

    const DIR: InodeId = InodeId(1);

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn attributes_live_for_the_rest_of_a_second_from_the_question() {
        let cache = AttrCache::default();
        cache.learn(&attr(5), cache.mark(), MonoMs(1_000));
        assert_eq!(cache.get(InodeId(5), MonoMs(1_400)).map(|shown| shown.ttl_ms), Some(600));
        assert_eq!(cache.get(InodeId(5), MonoMs(2_000)), None);
    }

    #[test]
    fn an_answer_that_was_overtaken_by_a_change_is_not_kept() {
        let cache = AttrCache::default();
        let mark = cache.mark();
        cache.forget(InodeId(5));
        cache.learn(&attr(5), mark, MonoMs(0));
        assert_eq!(cache.get(InodeId(5), MonoMs(1)), None);
        cache.learn(&attr(5), cache.mark(), MonoMs(0));
        assert!(cache.get(InodeId(5), MonoMs(1)).is_some());
    }

    #[test]
    fn a_new_directory_shows_in_its_parent_at_once() {
        let cache = AttrCache::default();
        cache.learn(&attr(1), cache.mark(), MonoMs(0));
        let before = cache.get(DIR, MonoMs(1)).unwrap().attr;
        let mut made = attr(5);
        made.kind = dfs_proto::Kind::Directory;
        cache.add_name(DIR, &name("d"), &made, UnixNanos(77), MonoMs(0));
        let after = cache.get(DIR, MonoMs(1)).unwrap().attr;
        assert_eq!((after.nlink, after.mtime, after.ctime), (before.nlink + 1, UnixNanos(77), UnixNanos(77)));
        assert_eq!(cache.get(InodeId(5), MonoMs(1)).unwrap().attr, made);
    }

    #[test]
    fn what_a_removed_name_referred_to_is_forgotten_known_or_not() {
        let cache = AttrCache::default();
        for inode in [1, 5, 6] {
            cache.learn(&attr(inode), cache.mark(), MonoMs(0));
        }
        cache.learn_name(DIR, &name("five"), InodeId(5));
        cache.change_name(DIR, &name("five"), DirectoryChange::Name, UnixNanos(1));
        assert!(cache.get(InodeId(5), MonoMs(1)).is_none());
        assert_eq!(cache.removed(InodeId(5)).map(|attr| attr.nlink), Some(0));
        assert!(cache.get(InodeId(6), MonoMs(1)).is_some());
        cache.change_name(DIR, &name("who knows"), DirectoryChange::Name, UnixNanos(2));
        assert!(cache.get(InodeId(6), MonoMs(1)).is_none());
        assert!(cache.get(DIR, MonoMs(1)).is_some());
    }

    #[test]
    fn changes_that_are_remembered_no_longer_count_as_changes_of_everything() {
        let cache = AttrCache::default();
        let before = cache.mark();
        for inode in 0..=ENTRIES_MAX.get() as u64 {
            cache.forget(InodeId(1_000 + inode));
        }
        assert!(cache.is_inode_changed(InodeId(5), before));
        assert!(!cache.is_inode_changed(InodeId(5), cache.mark()));
    }
}
