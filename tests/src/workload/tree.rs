//! A real tree of more than 5,000 files, from a tar archive; a local copy of it is the oracle.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::{Scale, Workload};
use crate::manifest::{self, Manifest};
use crate::program;

/// Where real files come from; a machine has some of these.
const SOURCES: &[&str] = &[
    "/usr/include",
    "/usr/share/zoneinfo",
    "/usr/share/perl",
    "/usr/share/doc",
    "/usr/lib/python3",
    "/usr/lib/python3.11",
    "/usr/share/man",
    "/usr/share/perl5",
    "/usr/share/locale",
    "/usr/lib/modules",
];
/// Larger ones would make the test one of throughput.
const FILE_BYTES_MAX: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(300);

/// Unpacks a tree and compares content, modes, owners, times, links.
pub struct Tree {
    files: usize,
    expected: Manifest,
}

impl Tree {
    /// Returns the work of unpacking 400, 5,500 or 20,000 files.
    pub fn new(scale: Scale) -> Self {
        Self { files: scale.pick(400, 5_500, 20_000), expected: Manifest::new() }
    }
}

impl Workload for Tree {
    fn name(&self) -> &'static str {
        "tree"
    }

    fn write(&mut self, directory: &Path) -> Result<()> {
        let local = TempDir::new()?;
        let archive = local.path().join("tree.tar");
        pack(self.files, local.path(), &archive)?;
        let oracle = local.path().join("oracle");
        std::fs::create_dir(&oracle)?;
        for place in [&*oracle, directory] {
            let arguments = [OsString::from("-xpf"), archive.clone().into()];
            program::ok(place, "tar", arguments, DEADLINE).context("unpacking")?;
        }
        self.expected = manifest::read(&oracle)?;
        let files = self.expected.values().filter(|entry| entry.kind == 'f').count();
        ensure!(files >= self.files, "the archive has {files} files, {} were wanted", self.files);
        Ok(())
    }

    fn verify(&self, directory: &Path) -> Result<()> {
        manifest::compare(&self.expected, &manifest::read(directory)?)
    }
}

/// Packs `files` regular files, the directories they are in and the symlinks beside them.
fn pack(files: usize, work: &Path, archive: &Path) -> Result<()> {
    // Sorted, so that each directory comes before what is in it.
    let mut list = BTreeSet::new();
    let mut count = 0;
    let mut directories: Vec<PathBuf> = SOURCES.iter().rev().map(PathBuf::from).filter(|path| path.is_dir()).collect();
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        list.insert(directory.clone());
        let mut names: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        names.sort();
        for path in names {
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                directories.push(path);
            } else if metadata.is_symlink() || metadata.is_file() && metadata.len() <= FILE_BYTES_MAX {
                count += usize::from(metadata.is_file());
                list.insert(path);
            }
        }
        if count >= files {
            break;
        }
    }
    // A bare machine: the rest is made.
    let made = work.join("made");
    for index in 0..files.saturating_sub(count) {
        let place = made.join((index / 100).to_string());
        std::fs::create_dir_all(&place)?;
        let path = place.join(format!("file{index}"));
        std::fs::write(&path, super::pattern(index as u64, index * 7 % 9_000))?;
        list.insert(path);
    }
    // Directories that the archive does not have would be made with the time of unpacking.
    let parents: Vec<PathBuf> = list.iter().flat_map(|path| path.ancestors().skip(1).map(Path::to_owned)).collect();
    list.extend(parents.into_iter().filter(|path| path != Path::new("/")));
    let names: Vec<u8> = list.iter().flat_map(|path| [path.as_os_str().as_encoded_bytes(), b"\0"].concat()).collect();
    let list_file = work.join("list");
    std::fs::write(&list_file, names)?;
    // --hard-dereference: names of one file that are packed apart would become links of each other.
    let mut arguments: Vec<OsString> =
        ["--format=posix", "--no-recursion", "--hard-dereference", "--null", "-cf"].map(OsString::from).into();
    arguments.extend([archive.into(), "-T".into(), list_file.into()]);
    program::ok(Path::new("/"), "tar", arguments, DEADLINE).map(|_| ()).context("packing")
}
