//! The files of a simulation: what all clients know of each other without asking.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::{ChunkIndex, InodeId, Name};

use super::history::{FileId, SLOT_BYTES, Span};

/// log2 of the bytes in a chunk of the simulation: 16 units.
pub const CHUNK_SIZE_LOG2: u32 = 16;
/// Slots in a chunk.
pub const CHUNK_SLOTS: u32 = (1 << CHUNK_SIZE_LOG2) / SLOT_BYTES;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// All clients write anywhere.
    Shared,
    /// This client adds at the end: below its size there are no zeros.
    Log(u32),
}

/// A file.
#[derive(Clone, Debug)]
pub struct FileInfo {
    /// Its number here.
    pub id: FileId,
    /// What it is for.
    pub purpose: Purpose,
    /// Its inode, once it was made and has left the master's own keeping.
    pub inode: Option<InodeId>,
    /// Chunks that are used of it.
    pub chunks: u32,
    /// Somebody has begun to remove it.
    pub is_removed: bool,
    /// Of a log: slots up to here were handed to writes.
    pub log_end: u32,
    /// Bytes that a completed sync has promised.
    pub synced_size: u64,
}

impl FileInfo {
    /// Returns its name in the root directory.
    pub fn name(&self) -> Name {
        Name::new(format!("f{}", self.id.0).into_bytes()).expect("a short name")
    }
}

/// All files.
#[derive(Debug, Default)]
pub struct Files {
    /// Chunks of which something was brought to stable media, by promise.
    pub synced: BTreeSet<(FileId, ChunkIndex)>,
    all: BTreeMap<FileId, FileInfo>,
}

impl Files {
    /// Plans another file.
    pub fn plan(&mut self, purpose: Purpose, chunks: u32) -> FileId {
        let id = FileId(self.all.len() as u32 + 1);
        let info = FileInfo { id, purpose, inode: None, chunks, is_removed: false, log_end: 0, synced_size: 0 };
        self.all.insert(id, info);
        id
    }

    /// Returns a file.
    pub fn get(&self, id: FileId) -> &FileInfo {
        &self.all[&id]
    }

    /// Returns a file.
    pub fn get_mut(&mut self, id: FileId) -> &mut FileInfo {
        self.all.get_mut(&id).expect("files are never forgotten")
    }

    /// Has nobody use files any more of which it is not known whether they are there.
    pub fn give_up(&mut self, names: &[Name]) {
        for info in self.all.values_mut().filter(|info| info.inode.is_some() && names.contains(&info.name())) {
            info.is_removed = true;
        }
    }

    /// Returns all files.
    pub fn iter(&self) -> impl Iterator<Item = &FileInfo> {
        self.all.values()
    }

    /// Returns those that can be used.
    pub fn usable(&self) -> Vec<FileId> {
        self.all.values().filter(|file| file.inode.is_some() && !file.is_removed).map(|file| file.id).collect()
    }

    /// Returns the file with this inode.
    pub fn of_inode(&self, inode: InodeId) -> Option<&FileInfo> {
        self.all.values().find(|file| file.inode == Some(inode))
    }
}

/// Returns the slots of a chunk of a file.
pub fn chunk_span(file: FileId, index: ChunkIndex) -> Span {
    Span { file, first: index.0 * CHUNK_SLOTS, count: CHUNK_SLOTS }
}

/// Returns which chunk a span lies in, and its offset and length in bytes there.
pub fn place(span: Span) -> (ChunkIndex, u32, u32) {
    let index = span.first / CHUNK_SLOTS;
    (ChunkIndex(index), (span.first % CHUNK_SLOTS) * SLOT_BYTES, span.count * SLOT_BYTES)
}
