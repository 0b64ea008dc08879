//! Fresh ids, out of ranges that are reserved before they are used.
//!
//! A mark is moved up by [`RANGE`] and made durable before any id below it is used: after power loss the ids of
//! changes that were lost are burnt too, so an id that somebody saw (a file handle, a replica on a disk) never names
//! something else. (Node ids need no marks: a registration is durable before the server is told.)

use dfs_proto::{ChunkId, InodeId, SessionId};

use super::record::IdMarks;

/// Ids in one reservation.
pub const RANGE: u64 = 4096;

/// The next ids to use, and how far they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreshIds {
    next: IdMarks,
    /// Below these, ids may be used now.
    usable: IdMarks,
}

impl FreshIds {
    /// Starts behind everything that may be in use according to `marks`; nothing can be used before a reservation.
    pub fn after(marks: IdMarks) -> Self {
        // Inode 1 is the root; 0 is nothing in every kind.
        let next = IdMarks {
            inode: marks.inode.max(InodeId::ROOT.0 + 1),
            chunk: marks.chunk.max(1),
            session: marks.session.max(1),
            seq: marks.seq,
        };
        Self { next, usable: next }
    }

    /// Returns marks one range above what is in use: to be made durable, then given to [`Self::reserved`].
    pub fn reservation(&self) -> IdMarks {
        IdMarks {
            inode: self.next.inode + RANGE,
            chunk: self.next.chunk + RANGE,
            session: self.next.session + RANGE,
            seq: self.next.seq,
        }
    }

    /// Allows ids below `marks`, which are durable.
    pub fn reserved(&mut self, marks: &IdMarks) {
        self.usable = *marks;
    }

    /// Returns whether a range is more than half used up, so that the next should be reserved in good time.
    pub fn is_low(&self) -> bool {
        let left = [
            self.usable.inode - self.next.inode,
            self.usable.chunk - self.next.chunk,
            self.usable.session - self.next.session,
        ];
        left.iter().any(|count| *count < RANGE / 2)
    }

    /// Takes an inode id; `None` if the range is used up.
    pub fn take_inode(&mut self) -> Option<InodeId> {
        take(&mut self.next.inode, self.usable.inode).map(InodeId)
    }

    /// Takes a chunk id; `None` if the range is used up.
    pub fn take_chunk(&mut self) -> Option<ChunkId> {
        take(&mut self.next.chunk, self.usable.chunk).map(ChunkId)
    }

    /// Takes a session id; `None` if the range is used up.
    pub fn take_session(&mut self) -> Option<SessionId> {
        take(&mut self.next.session, self.usable.session).map(SessionId)
    }

    /// Returns whether `inode` was handed out at some time: only such an id may come back in a replay.
    pub fn was_inode(&self, inode: InodeId) -> bool {
        inode > InodeId::ROOT && inode.0 < self.next.inode
    }
}

fn take(next: &mut u64, end: u64) -> Option<u64> {
    let id = *next;
    (id < end).then(|| {
        *next += 1;
        id
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_used_before_it_is_reserved_and_nothing_twice() {
        let mut ids = FreshIds::after(IdMarks::default());
        assert_eq!(ids.take_inode(), None);
        let marks = ids.reservation();
        ids.reserved(&marks);
        assert_eq!(ids.take_inode(), Some(InodeId(2)), "1 is the root");
        assert_eq!(ids.take_chunk(), Some(ChunkId(1)));
        let mut last = 2;
        while let Some(id) = ids.take_inode() {
            assert_eq!(id.0, last + 1);
            last = id.0;
        }
        assert!(ids.is_low());
        // A restart knows only the durable mark.
        let mut again = FreshIds::after(marks);
        let marks = again.reservation();
        again.reserved(&marks);
        assert_eq!(again.take_inode(), Some(InodeId(last + 1)));
        assert!(again.take_chunk().is_some_and(|id| id.0 > RANGE));
    }
}
