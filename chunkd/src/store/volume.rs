//! Where a disk's files are: the few operations on names that the store needs.
//!
//! Everything that a running store does to a disk goes through [`Volume`] and [`RawFile`], so that tests put disks of their
//! own below it, which lose and tear what was not synced. Paths are relative to the volume, in ASCII, with `/` between
//! their parts, and never come from outside.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::raw_file::{OsFile, RawFile};

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The last part of the path.
    pub name: String,
    /// What it stands for.
    pub kind: NameKind,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameKind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// Anything else: links are not followed.
    Other,
}

/// The space of a volume, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub capacity: u64,
    /// What is free.
    pub free: u64,
}

/// A directory that is this server's alone, with everything below it.
pub trait Volume: fmt::Debug + Send + Sync {
    /// Returns what to call it in messages.
    fn label(&self) -> String;

    /// Opens the plain file at `path` for reading and writing.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`]; [`io::ErrorKind::InvalidInput`] if the name stands for something else; or the
    /// operating system's.
    fn open(&self, path: &str) -> io::Result<Box<dyn RawFile>>;

    /// Makes an empty file. Its name is durable after [`Self::sync_directory`].
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`]; [`io::ErrorKind::NotFound`] without its directory; or the operating system's.
    fn create(&self, path: &str) -> io::Result<Box<dyn RawFile>>;

    /// Removes the file at `path`. Who has it open can go on.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`], or the operating system's.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Gives what is at `from` the name `to`, in place of what may be there.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Returns the names in a directory, in no order; `""` is the volume itself.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`], or the operating system's.
    fn list(&self, directory: &str) -> io::Result<Vec<Name>>;

    /// Makes a directory, and those above it, unless it is there.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn create_directory(&self, directory: &str) -> io::Result<()>;

    /// Brings the names in a directory to stable media; `""` is the volume itself.
    ///
    /// # Errors
    ///
    /// The operating system's. The volume is suspect then.
    fn sync_directory(&self, directory: &str) -> io::Result<()>;

    /// Returns its space.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn space(&self) -> io::Result<Space>;

    /// Returns whether it is still where it was found. A disk that was unmounted leaves an empty directory, on the root
    /// disk, where nothing may be written.
    ///
    /// # Errors
    ///
    /// The operating system's, except that there is nothing.
    fn is_in_place(&self) -> io::Result<bool>;
}

/// Returns the whole of the small file at `path`; `None` if there is none.
///
/// # Errors
///
/// The volume's.
pub fn read_small(volume: &dyn Volume, path: &str) -> io::Result<Option<Vec<u8>>> {
    /// Nobody writes small files that are larger.
    const SMALL_MAX: u64 = 64 << 10;
    let file = match volume.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = vec![0; file.length()?.min(SMALL_MAX) as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Puts a small file in the place of another: written beside, synced, renamed, and the directory synced.
///
/// # Errors
///
/// The volume's.
pub fn replace_small(volume: &dyn Volume, path: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = format!("{path}.new");
    remove_if_there(volume, &beside)?;
    let file = volume.create(&beside)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    volume.rename(&beside, path)?;
    volume.sync_directory(path.rsplit_once('/').map_or("", |(directory, _)| directory))
}

/// Removes the file at `path` if there is one.
///
/// # Errors
///
/// The volume's.
pub fn remove_if_there(volume: &dyn Volume, path: &str) -> io::Result<()> {
    match volume.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// A directory of the operating system, locked for this process.
#[derive(Debug)]
pub struct OsVolume {
    path: PathBuf,
    /// None: it is only looked at.
    lock: Option<Flock<File>>,
}

/// Brings the name of a directory to stable media.
fn sync_name(directory: &Path) -> io::Result<()> {
    let directory = directory.canonicalize()?;
    let Some(parent) = directory.parent() else { return Ok(()) };
    match File::open(parent) {
        // Then somebody else has made it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        parent => parent?.sync_all(),
    }
}

impl OsVolume {
    /// Takes the directory at `path` into use, made if need be. `None` if another process uses it.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let made: Vec<&Path> = path.ancestors().take_while(|path| *path != Path::new("") && !path.exists()).collect();
        fs::create_dir_all(path)?;
        // Or a loss of power takes the directory with all that was ever synced in it. Its own name also if it was there: the
        // start that made it may have been killed right here.
        for directory in made.into_iter().skip(1).chain([path]) {
            sync_name(directory)?;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("LOCK"))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok();
        Ok(lock.map(|lock| Self { path: path.to_owned(), lock: Some(lock) }))
    }

    /// Returns the directory at `path` to look at, whoever uses it.
    pub fn peek(path: &Path) -> Self {
        Self { path: path.to_owned(), lock: None }
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.path.clone() } else { self.path.join(path) }
    }
}

impl Volume for OsVolume {
    fn label(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn RawFile>> {
        let no_plain_file = || io::Error::new(io::ErrorKind::InvalidInput, "no plain file");
        let file = match options().open(self.at(path)) {
            // A symbolic link, which is not followed, a directory, a socket.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EISDIR | libc::ENXIO)) => {
                return Err(no_plain_file());
            }
            opened => opened?,
        };
        if !file.metadata()?.is_file() {
            return Err(no_plain_file());
        }
        Ok(Box::new(OsFile(file)))
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn RawFile>> {
        Ok(Box::new(OsFile(options().create_new(true).open(self.at(path))?)))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.at(path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from), self.at(to))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.at(directory))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let kind = match (kind.is_file(), kind.is_dir()) {
                (true, _) => NameKind::File,
                (_, true) => NameKind::Directory,
                _ => NameKind::Other,
            };
            // None of ours has a name that is no text.
            if let Ok(name) = entry.file_name().into_string() {
                names.push(Name { name, kind });
            }
        }
        Ok(names)
    }

    fn create_directory(&self, directory: &str) -> io::Result<()> {
        fs::create_dir_all(self.at(directory))
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        File::open(self.at(directory))?.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let stat = nix::sys::statvfs::statvfs(&self.path)?;
        let fragment = stat.fragment_size();
        Ok(Space { capacity: stat.blocks() * fragment, free: stat.blocks_available() * fragment })
    }

    fn is_in_place(&self) -> io::Result<bool> {
        let Some(lock) = &self.lock else { return Ok(true) };
        let ours = lock.metadata()?;
        match fs::symlink_metadata(self.path.join("LOCK")) {
            Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    options
}
