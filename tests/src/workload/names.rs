//! Names as POSIX allows them: 1 to 255 bytes, every byte but `/` and NUL, no encoding.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::Workload;

/// Makes files of all sorts of names, and a path of many levels.
pub struct Names;

const LEVELS: usize = 60;

impl Names {
    fn all() -> BTreeSet<Vec<u8>> {
        let mut names: BTreeSet<Vec<u8>> =
            (1..=255u8).filter(|byte| !matches!(byte, b'/' | b'.')).map(|byte| vec![byte]).collect();
        names.extend((1..=255u8).filter(|byte| *byte != b'/').map(|byte| vec![b'x', byte, byte]));
        names.extend((250..=255).map(|length| vec![b'n'; length]));
        names.insert(vec![0xff; 255]);
        names.insert("ä".repeat(127).into_bytes());
        names.insert(b"\xc3".to_vec());
        names.insert(b"...".to_vec());
        names.insert(b"-rf *\n\t\\\"'$(x)".to_vec());
        // Cases, and two ways to write one letter, are names apart.
        names.extend(["A", "a", "\u{e9}", "e\u{301}"].map(|name| name.as_bytes().to_vec()));
        names
    }
}

impl Workload for Names {
    fn name(&self) -> &'static str {
        "names"
    }

    fn write(&mut self, directory: &Path) -> Result<()> {
        for name in Self::all() {
            let path = directory.join(OsStr::from_bytes(&name));
            std::fs::write(&path, &name).with_context(|| format!("creating {:?}", String::from_utf8_lossy(&name)))?;
        }
        let error = std::fs::write(directory.join("m".repeat(256)), "").expect_err("a name of 256 bytes was taken");
        ensure!(error.raw_os_error() == Some(libc::ENAMETOOLONG), "256 bytes: {error}");
        let mut deep = directory.join("deep");
        for level in 0..LEVELS {
            deep.push(format!("level-{level}-{}", "d".repeat(40)));
        }
        std::fs::create_dir_all(&deep)?;
        std::fs::write(deep.join("end"), "found")?;
        Ok(())
    }

    fn verify(&self, directory: &Path) -> Result<()> {
        let mut expected = Self::all();
        for entry in std::fs::read_dir(directory)? {
            let name = entry?.file_name();
            if name == "deep" {
                continue;
            }
            let path = directory.join(&name);
            let name = OsString::into_vec(name);
            if !expected.remove(&name) {
                bail!("{:?} is listed but was not made, or twice", String::from_utf8_lossy(&name));
            }
            ensure!(std::fs::read(path)? == name, "{:?} has another content", String::from_utf8_lossy(&name));
        }
        ensure!(expected.is_empty(), "not listed: {expected:?}");
        let mut deep = directory.join("deep");
        for _ in 0..LEVELS {
            let names: Vec<_> = std::fs::read_dir(&deep)?.collect::<std::io::Result<_>>()?;
            ensure!(names.len() == 1, "{} names in {}", names.len(), deep.display());
            deep.push(names[0].file_name());
        }
        ensure!(std::fs::read(deep.join("end"))? == b"found", "the end of the deep path");
        Ok(())
    }
}
