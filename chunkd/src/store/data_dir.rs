//! A data directory: whose it is, that nobody else uses it, and how its last use ended.
//!
//! ```text
//! DIR/IDENTITY        text, a word and its value a line: dfs-chunkd 2 (format), cluster, server, disk (hex), crc
//! DIR/LOCK            flock'ed while a process uses the directory
//! DIR/BOOT            the host's boot id when the directory was last taken into use
//! DIR/CLEAN           exists after an orderly stop, until the next start; what is in it does not matter
//! DIR/SUSPECT         exists if writes that were acknowledged may be gone, until the master was told; says why
//! DIR/journal/        see `journal`
//! DIR/replicas/xx/    one file per replica, named by the chunk id in 16 hex digits; xx are the two before the last two
//! ```
//!
//! 256 chunks that were made one after the other share a directory: ext4 gives each directory a block group of its own, and
//! one file in each of many was measured to cost 0.6 ms to make.
//!
//! Small files are replaced whole: written beside, synced, renamed, and the directory synced. `IDENTITY` comes last when
//! a directory is made: where it is, there is a journal.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use dfs_proto::{ChunkId, ClusterId};

use super::journal::log::DIRECTORY as JOURNAL;
use super::volume::{NameKind, Volume, read_small, remove_if_there, replace_small};

/// The format of data directories that is written.
pub const FORMAT: u32 = 2;
/// Where the replicas are.
const REPLICAS: &str = "replicas";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The operating system refused something.
    #[error("data directory {path}: {what}: {error}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// Another process uses it.
    #[error("data directory {0} is in use by another process")]
    InUse(PathBuf),
    /// What it says of itself does not fit.
    #[error("data directory {path}: {reason}")]
    Mismatch {
        /// The directory.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// Whose a data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirIdentity {
    /// The cluster, `None` before the first registration.
    pub cluster: Option<ClusterId>,
    /// The server, the same in all its directories.
    pub server: [u8; 16],
    /// This directory.
    pub disk: [u8; 16],
}

/// A data directory in our use.
#[derive(Debug)]
pub struct DataDir {
    /// What is in it.
    pub volume: Arc<dyn Volume>,
    /// Whose it is.
    pub identity: DirIdentity,
    /// It was empty. Its identity is not written yet.
    pub is_new: bool,
    /// The last use was ended in order.
    pub was_clean: bool,
    /// The host restarted since the last use.
    pub host_rebooted: bool,
    /// It has a mark that says that acknowledged writes may be gone.
    pub is_marked: bool,
}

impl DataDir {
    /// Looks at the directory; if it is empty, makes an identity, for `server` if given. Nothing of what it says of its
    /// last use is changed until [`Self::take`].
    ///
    /// # Errors
    ///
    /// [`DataDirError`], which names the directory.
    pub fn open(
        volume: Arc<dyn Volume>,
        server: Option<[u8; 16]>,
        boot_id: &str,
        fresh_id: fn() -> [u8; 16],
    ) -> Result<Self, DataDirError> {
        let failed = |what: &'static str| {
            let path = PathBuf::from(volume.label());
            move |error: io::Error| DataDirError::Io { path, what, error }
        };
        let text = |path: &str| {
            read_small(&*volume, path).map(|bytes| bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
        };
        let written = text("IDENTITY").map_err(failed("cannot read IDENTITY"))?;
        let is_new = written.is_none();
        let identity = match written {
            Some(written) => decode(&written)
                .map_err(|reason| DataDirError::Mismatch { path: PathBuf::from(volume.label()), reason })?,
            None => {
                volume.create_directory(JOURNAL).map_err(failed("cannot be filled"))?;
                for fan in 0..=255u8 {
                    volume.create_directory(&format!("{REPLICAS}/{fan:02x}")).map_err(failed("cannot be filled"))?;
                }
                volume.sync_directory(REPLICAS).map_err(failed("cannot be synced"))?;
                DirIdentity { cluster: None, server: server.unwrap_or_else(fresh_id), disk: fresh_id() }
            }
        };
        let boot_before = text("BOOT").map_err(failed("cannot read BOOT"))?;
        let names = volume.list("").map_err(failed("cannot be listed"))?;
        let exists = |wanted: &str| names.iter().any(|name| name.name == wanted);
        let was_clean = is_new || boot_before.is_none() || exists("CLEAN");
        let host_rebooted = boot_before.is_some_and(|before| before.trim() != boot_id);
        let mut dir = Self { is_marked: exists("SUSPECT"), volume, identity, is_new, was_clean, host_rebooted };
        if !was_clean && host_rebooted && !dir.is_marked {
            // Before BOOT forgets it: this start may be the next one that is killed.
            let path = PathBuf::from(dir.volume.label());
            mark_suspect(&*dir.volume, "the host restarted without an orderly stop")
                .map_err(|error| DataDirError::Io { path, what: "cannot write SUSPECT", error })?;
            dir.is_marked = true;
        }
        Ok(dir)
    }

    /// Notes that the directory is in use from now on, by a host with `boot_id`. Its journal has been brought in order.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`].
    pub fn take(&self, boot_id: &str) -> Result<(), DataDirError> {
        let failed = |what: &'static str| {
            let path = PathBuf::from(self.volume.label());
            move |error: io::Error| DataDirError::Io { path, what, error }
        };
        let volume = &*self.volume;
        if self.is_new {
            replace_small(volume, "IDENTITY", encode(&self.identity).as_bytes())
                .map_err(failed("cannot write IDENTITY"))?;
        }
        let boot = read_small(volume, "BOOT").map_err(failed("cannot read BOOT"))?;
        if boot.is_none_or(|boot| boot.trim_ascii() != boot_id.as_bytes()) {
            replace_small(volume, "BOOT", boot_id.as_bytes()).map_err(failed("cannot write BOOT"))?;
        }
        remove_if_there(volume, "CLEAN").map_err(failed("cannot remove CLEAN"))?;
        // Even if there was nothing to change: a start that was killed right here may have left its changes unsynced, and
        // a CLEAN that comes back after a power loss would be believed.
        volume.sync_directory("").map_err(failed("cannot be synced"))
    }

    /// Returns the chunks that have a replica here, in no order. Whatever is not a plain file in the place that its name
    /// gives it is left alone; symbolic links are not followed.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`].
    pub fn chunks(&self) -> Result<Vec<ChunkId>, DataDirError> {
        list_chunks(&*self.volume).map_err(|error| DataDirError::Io {
            path: PathBuf::from(self.volume.label()),
            what: "cannot list replicas",
            error,
        })
    }
}

fn list_chunks(volume: &dyn Volume) -> io::Result<Vec<ChunkId>> {
    let mut chunks = Vec::new();
    for fan in volume.list(REPLICAS)?.into_iter().filter(|fan| fan.kind == NameKind::Directory) {
        let directory = format!("{REPLICAS}/{}", fan.name);
        for entry in volume.list(&directory)?.into_iter().filter(|entry| entry.kind == NameKind::File) {
            let id = Some(&entry.name).filter(|name| name.len() == 16).map(|name| u64::from_str_radix(name, 16));
            if let Some(Ok(id)) = id
                && replica_path(ChunkId(id)).1 == format!("{directory}/{}", entry.name)
            {
                chunks.push(ChunkId(id));
            }
        }
    }
    Ok(chunks)
}

/// Notes in a directory which cluster it belongs to.
///
/// # Errors
///
/// The volume's.
pub fn write_identity(volume: &dyn Volume, identity: &DirIdentity) -> io::Result<()> {
    replace_small(volume, "IDENTITY", encode(identity).as_bytes())
}

/// Notes in a directory that its use ends in order: all replicas have been synced.
///
/// # Errors
///
/// The volume's.
pub fn write_clean(volume: &dyn Volume) -> io::Result<()> {
    replace_small(volume, "CLEAN", b"")
}

/// Notes in a directory that writes which were acknowledged may be gone.
///
/// # Errors
///
/// The volume's.
pub fn mark_suspect(volume: &dyn Volume, reason: &str) -> io::Result<()> {
    replace_small(volume, "SUSPECT", reason.as_bytes())
}

/// Takes the mark of [`mark_suspect`] away: the master knows.
///
/// # Errors
///
/// The volume's.
pub fn clear_suspect(volume: &dyn Volume) -> io::Result<()> {
    remove_if_there(volume, "SUSPECT")?;
    volume.sync_directory("")
}

/// Returns where a replica's file at `path` goes that cannot be used: nothing is deleted that may be readable one day.
pub fn aside_path(path: &str) -> String {
    format!("{path}.bad")
}

/// Returns the directory and the file of the replica of `chunk` in its volume.
pub fn replica_path(chunk: ChunkId) -> (String, String) {
    let directory = format!("{REPLICAS}/{:02x}", chunk.0 >> 8 & 0xff);
    let file = format!("{directory}/{:016x}", chunk.0);
    (directory, file)
}

fn hex(bytes: &[u8; 16]) -> String {
    ClusterId(*bytes).to_string()
}

fn encode(identity: &DirIdentity) -> String {
    let cluster = identity.cluster.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let body = format!(
        "dfs-chunkd {FORMAT}\ncluster {cluster}\nserver {}\ndisk {}\n",
        hex(&identity.server),
        hex(&identity.disk)
    );
    let crc = crc32c::crc32c(body.as_bytes());
    format!("{body}crc {crc:08x}\n")
}

fn decode(text: &str) -> Result<DirIdentity, String> {
    let mut words = std::collections::BTreeMap::new();
    for line in text.lines() {
        let (word, value) = line.split_once(' ').ok_or_else(|| format!("IDENTITY has the line {line:?}"))?;
        words.insert(word, value);
    }
    let get = |word: &str| words.get(word).copied().ok_or_else(|| format!("IDENTITY has no {word:?}"));
    let format: u32 = get("dfs-chunkd")?.parse().map_err(|_| "IDENTITY has no format number".to_owned())?;
    if format != FORMAT {
        return Err(format!("it has format {format}, this build knows only format {FORMAT}"));
    }
    let body = text.rfind("crc ").map_or("", |at| &text[..at]);
    if get("crc")? != format!("{:08x}", crc32c::crc32c(body.as_bytes())) {
        return Err("IDENTITY is damaged: its checksum does not match".into());
    }
    let id = |word: &str| get(word)?.parse::<ClusterId>();
    let cluster = if get("cluster")? == "-" { None } else { Some(id("cluster")?) };
    Ok(DirIdentity { cluster, server: id("server")?.0, disk: id("disk")?.0 })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::super::volume::OsVolume;
    use super::*;

    #[test]
    fn the_stored_sample_of_format_2_still_decodes() {
        let identity = DirIdentity { cluster: Some(ClusterId([0xc1; 16])), server: [0x5e; 16], disk: [0xd1; 16] };
        let sample = "dfs-chunkd 2\ncluster c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1\nserver \
                      5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e\ndisk d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1\ncrc 61b264cd\n";
        assert_eq!(encode(&identity), sample);
        assert_eq!(decode(sample), Ok(identity));
        let damaged = sample.replace("d1d1d1d1", "d1d1d1d2");
        assert!(decode(&damaged).expect_err("refused").contains("damaged"));
        for other in [1, 3] {
            let other_format = sample.replace("dfs-chunkd 2", &format!("dfs-chunkd {other}"));
            assert!(decode(&other_format).expect_err("refused").contains(&format!("format {other}")));
        }
    }

    /// As a start does.
    fn start(path: &Path, boot_id: &str) -> Option<DataDir> {
        let volume = OsVolume::take(path).expect("can be made")?;
        let dir = DataDir::open(Arc::new(volume), None, boot_id, || [7; 16]).expect("opens");
        dir.take(boot_id).expect("is taken");
        Some(dir)
    }

    #[test]
    fn a_directory_has_one_user_and_remembers_how_its_last_use_ended() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("disk");
        let first = start(&path, "boot-1").expect("free");
        assert!(first.is_new && first.was_clean && !first.host_rebooted, "new");
        assert!(start(&path, "boot-1").is_none(), "in use");
        let identity = first.identity;
        drop(first);

        let second = start(&path, "boot-1").expect("free");
        assert!(!second.is_new && !second.was_clean && !second.host_rebooted && !second.is_marked, "killed");
        assert_eq!(second.identity, identity);
        write_clean(&*second.volume).expect("writes");
        drop(second);

        let third = start(&path, "boot-2").expect("free");
        assert!(
            third.was_clean && third.host_rebooted && !third.is_marked,
            "stopped in order, then the host restarted"
        );
        drop(third);
        let fourth = start(&path, "boot-3").expect("free");
        assert!(!fourth.was_clean && fourth.host_rebooted && fourth.is_marked, "power loss");
        drop(fourth);
        let fifth = start(&path, "boot-3").expect("free");
        assert!(fifth.is_marked, "nobody was told of the power loss yet");
        clear_suspect(&*fifth.volume).expect("clears");
        drop(fifth);
        assert!(!start(&path, "boot-3").expect("free").is_marked);
    }

    #[test]
    fn replicas_are_found_by_their_names_only() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = start(parent.path(), "boot").expect("free");
        for chunk in [1, 0x1ff, u64::MAX] {
            dir.volume.create(&replica_path(ChunkId(chunk)).1).expect("creates");
        }
        File::create(parent.path().join("replicas/00/junk")).expect("creates");
        File::create(parent.path().join("replicas/stray")).expect("creates");
        File::create(parent.path().join("replicas/07/0000000000000002")).expect("creates, but 2 belongs to 00");
        File::create(parent.path().join("replicas/00/00000000000000FF"))
            .expect("creates, but names are in small letters");
        fs::create_dir(parent.path().join("replicas/00/0000000000000003")).expect("creates");
        std::os::unix::fs::symlink("0000000000000001", parent.path().join("replicas/00/0000000000000004"))
            .expect("links");
        std::os::unix::fs::symlink("/etc", parent.path().join("replicas/zz")).expect("links");
        let mut chunks = dir.chunks().expect("lists");
        chunks.sort();
        assert_eq!(chunks, [ChunkId(1), ChunkId(0x1ff), ChunkId(u64::MAX)]);
    }
}
