//! Hard links, renames of all kinds, and files that are used after their last name has gone.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{Workload, pattern};

/// Links, renames and unlinks, with content that is larger than what is kept inline.
pub struct Links;

const LARGE: usize = 300_000;

fn fails_with<T>(result: std::io::Result<T>, errno: i32, what: &str) -> Result<()> {
    match result {
        Ok(_) => anyhow::bail!("{what}: succeeded, errno {errno} was expected"),
        Err(error) => {
            ensure!(error.raw_os_error() == Some(errno), "{what}: {error}, errno {errno} was expected");
            Ok(())
        }
    }
}

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> std::io::Result<()> {
    renameat2(AT_FDCWD, from, AT_FDCWD, to, flags).map_err(std::io::Error::from)
}

impl Workload for Links {
    fn name(&self) -> &'static str {
        "links"
    }

    fn write(&mut self, directory: &Path) -> Result<()> {
        let path = |name: &str| directory.join(name);
        let content = pattern(1, LARGE);
        std::fs::write(path("first"), &content)?;
        for number in 0..20 {
            std::fs::hard_link(path("first"), path(&format!("link{number}")))
                .with_context(|| format!("link {number}"))?;
        }
        std::fs::remove_file(path("first"))?;
        OpenOptions::new().append(true).open(path("link3"))?.write_all(b"appended")?;
        symlink("link3", path("symlink"))?;

        std::fs::create_dir(path("a"))?;
        std::fs::create_dir(path("b"))?;
        std::fs::write(path("a/one"), "one")?;
        std::fs::write(path("b/two"), "two")?;
        std::fs::rename(path("a/one"), path("b/one"))?;
        std::fs::rename(path("b/two"), path("b/one"))?;
        fails_with(
            rename_with(&path("b/one"), &path("symlink"), RenameFlags::RENAME_NOREPLACE),
            libc::EEXIST,
            "noreplace",
        )?;
        std::fs::write(path("left"), "left")?;
        std::fs::create_dir(path("right"))?;
        std::fs::write(path("right/inside"), "inside")?;
        rename_with(&path("left"), &path("right"), RenameFlags::RENAME_EXCHANGE).context("exchange")?;
        fails_with(std::fs::rename(path("a"), path("a/below")), libc::EINVAL, "into itself")?;
        fails_with(std::fs::rename(path("a"), path("b")), libc::ENOTEMPTY, "over a full directory")?;
        fails_with(std::fs::rename(path("a"), path("link1")), libc::ENOTDIR, "directory over file")?;
        fails_with(std::fs::rename(path("link1"), path("a")), libc::EISDIR, "file over directory")?;
        fails_with(std::fs::remove_dir(path("b")), libc::ENOTEMPTY, "rmdir of a full directory")?;
        fails_with(std::fs::hard_link(path("a"), path("hard")), libc::EPERM, "link of a directory")?;
        // Two names of one file: rename does nothing and succeeds.
        std::fs::rename(path("link1"), path("link2"))?;
        ensure!(path("link1").exists() && path("link2").exists(), "rename between two links removed one");

        for (name, length) in [("small", 100), ("large", LARGE)] {
            let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(path(name))?;
            file.write_all(&pattern(7, length))?;
            std::fs::remove_file(path(name))?;
            ensure!(file.metadata()?.nlink() == 0, "{name}: nlink {} after unlink", file.metadata()?.nlink());
            file.write_all(b"more")?;
            file.rewind()?;
            let mut read = Vec::new();
            file.read_to_end(&mut read)?;
            ensure!(read == [&pattern(7, length)[..], b"more"].concat(), "{name}: content after unlink differs");
        }
        // The same by a rename over it.
        std::fs::write(path("victim"), &content)?;
        let mut victim = File::open(path("victim"))?;
        std::fs::write(path("winner"), "winner")?;
        std::fs::rename(path("winner"), path("victim"))?;
        let mut read = Vec::new();
        victim.read_to_end(&mut read)?;
        ensure!(read == content, "a file that was renamed over reads differently");
        Ok(())
    }

    fn verify(&self, directory: &Path) -> Result<()> {
        let path = |name: &str| directory.join(name);
        let expected = [&pattern(1, LARGE)[..], b"appended"].concat();
        let inode = std::fs::metadata(path("link0"))?.ino();
        for number in 0..20 {
            let name = format!("link{number}");
            let metadata = std::fs::metadata(path(&name)).with_context(|| name.clone())?;
            ensure!(metadata.ino() == inode, "{name} is another inode");
            ensure!(metadata.nlink() == 20, "{name}: nlink {}", metadata.nlink());
        }
        ensure!(std::fs::read(path("link19"))? == expected, "content through link19");
        ensure!(std::fs::read(path("symlink"))? == expected, "content through the symlink");
        ensure!(std::fs::read_link(path("symlink"))? == Path::new("link3"), "target of the symlink");
        ensure!(
            std::fs::read(path("b/one"))? == b"two" && !path("b/two").exists() && !path("a/one").exists(),
            "renames"
        );
        ensure!(
            std::fs::read(path("right"))? == b"left" && std::fs::read(path("left/inside"))? == b"inside",
            "exchange"
        );
        ensure!(std::fs::read(path("victim"))? == b"winner" && !path("winner").exists(), "rename over an open file");
        ensure!(
            !path("small").exists() && !path("large").exists() && !path("first").exists(),
            "an unlinked name is there"
        );
        for (name, links) in [(".", 5), ("a", 2), ("left", 2)] {
            ensure!(
                std::fs::metadata(path(name))?.nlink() == links,
                "{name}: nlink {}",
                std::fs::metadata(path(name))?.nlink()
            );
        }
        Ok(())
    }
}
