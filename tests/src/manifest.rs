//! A tree as a list: what a program can see of each file, so that two trees can be compared.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// What is compared of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `f`, `d`, `l`, `p`, `s`, `c` or `b`.
    pub kind: char,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, i64),
    /// Size, and links, of regular files.
    pub size: Option<(u64, u64)>,
    /// SHA-256 of a regular file, target of a symlink.
    pub content: Vec<u8>,
}

/// All files below a directory, by their path from it.
pub type Manifest = BTreeMap<PathBuf, Entry>;

/// Reads every file below `root`, whole.
///
/// # Errors
///
/// If anything cannot be read.
pub fn read(root: &Path) -> Result<Manifest> {
    let mut found = Manifest::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let path = root.join(&directory);
        for entry in std::fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))? {
            let relative = directory.join(entry?.file_name());
            let entry = entry_of(&root.join(&relative))?;
            if entry.kind == 'd' {
                directories.push(relative.clone());
            }
            if found.insert(relative.clone(), entry).is_some() {
                bail!("{} is listed twice", relative.display());
            }
        }
    }
    Ok(found)
}

fn entry_of(path: &Path) -> Result<Entry> {
    let metadata = std::fs::symlink_metadata(path).with_context(|| format!("stat of {}", path.display()))?;
    let kind = metadata.file_type();
    let (letter, content) = if kind.is_file() {
        let (size, digest) = digest(path)?;
        if size != metadata.len() {
            bail!("{}: stat says {} bytes, reading gives {size}", path.display(), metadata.len());
        }
        ('f', digest)
    } else if kind.is_dir() {
        ('d', Vec::new())
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path).with_context(|| format!("readlink of {}", path.display()))?;
        ('l', std::os::unix::ffi::OsStringExt::into_vec(target.into_os_string()))
    } else if kind.is_fifo() {
        ('p', Vec::new())
    } else if kind.is_socket() {
        ('s', Vec::new())
    } else {
        (if kind.is_block_device() { 'b' } else { 'c' }, metadata.rdev().to_le_bytes().to_vec())
    };
    Ok(Entry {
        kind: letter,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        size: kind.is_file().then(|| (metadata.len(), metadata.nlink())),
        content,
    })
}

/// Returns length and SHA-256 of a file's content.
fn digest(path: &Path) -> Result<(u64, Vec<u8>)> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    loop {
        let count = file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))?;
        if count == 0 {
            return Ok((size, hash.finalize().to_vec()));
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
}

/// Fails if two trees differ.
///
/// # Errors
///
/// Names the first differences.
pub fn compare(expected: &Manifest, found: &Manifest) -> Result<()> {
    let mut differences = Vec::new();
    for (path, entry) in expected {
        match found.get(path) {
            None => differences.push(format!("{}: missing", path.display())),
            Some(other) if other != entry => {
                differences.push(format!("{}: expected {entry:?}\n      found {other:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|path| !expected.contains_key(*path));
    differences.extend(extra.map(|path| format!("{}: not expected", path.display())));
    if !differences.is_empty() {
        differences.truncate(10);
        bail!("trees of {} and {} files differ:\n  {}", expected.len(), found.len(), differences.join("\n  "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_or_a_missing_or_extra_file_is_found() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("d"))?;
        std::fs::write(path("d/a"), "one")?;
        std::os::unix::fs::symlink("a", path("d/l"))?;
        let before = read(directory.path())?;
        compare(&before, &read(directory.path())?)?;
        assert_eq!(before.len(), 3);

        std::fs::write(path("d/a"), "two")?;
        let text = format!("{}", compare(&before, &read(directory.path())?).unwrap_err());
        assert!(text.contains("d/a: expected"), "{text}");
        std::fs::rename(path("d/a"), path("b"))?;
        let text = format!("{}", compare(&before, &read(directory.path())?).unwrap_err());
        assert!(text.contains("d/a: missing") && text.contains("b: not expected"), "{text}");
        Ok(())
    }
}
