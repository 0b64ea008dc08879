//! Telling a faultfs what to do: a line on a Unix socket, a line back.
//!
//! ```text
//! rule ACTION OP PATTERN …      see `Rule::parse`            ok
//! clear                         no rules any more             ok
//! cut SEED                      the power fails               ok BYTES NAMES
//! flip PATTERN COUNT SEED       bits rot                      ok PATH OFFSET BIT[, …]
//! stats                                                       ok UNSYNCED_BYTES UNSYNCED_NAMES STRUCK
//! ```

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::disk::Disk;
use super::rules::Rule;

const PATIENCE: Duration = Duration::from_secs(60);

/// Serves commands for `disk` on a thread, for as long as the process lives.
///
/// # Errors
///
/// If there can be no such socket.
pub fn serve(disk: Arc<Disk>, socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("making {}", socket.display()))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let disk = Arc::clone(&disk);
            std::thread::spawn(move || {
                let Ok(mut answers) = stream.try_clone() else { return };
                for line in BufReader::new(stream).lines() {
                    let Ok(line) = line else { return };
                    let answer = match obey(&disk, &line) {
                        Ok(text) => format!("ok {text}\n"),
                        Err(error) => format!("error {error:#}\n"),
                    };
                    if answers.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

/// Does what a line says.
///
/// # Errors
///
/// What is wrong with it, or did not work.
pub fn obey(disk: &Disk, line: &str) -> Result<String> {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    let words: Vec<&str> = rest.split_whitespace().collect();
    Ok(match (command, &words[..]) {
        ("rule", _) => {
            disk.add_rule(Rule::parse(rest)?);
            String::new()
        }
        ("clear", []) => {
            disk.clear_rules();
            String::new()
        }
        ("cut", [seed]) => {
            let (bytes, names) = disk.power_cut(seed.parse()?)?;
            format!("{bytes} {names}")
        }
        ("flip", [pattern, count, seed]) => {
            let flips = disk.flip(pattern, count.parse()?, seed.parse()?)?;
            let texts: Vec<_> = flips.iter().map(|(path, offset, bit)| format!("{path} {offset} {bit}")).collect();
            texts.join(", ")
        }
        ("stats", []) => {
            let stats = disk.stats();
            format!("{} {} {}", stats.unsynced_bytes, stats.unsynced_names, stats.struck)
        }
        _ => bail!("{line:?} is no command"),
    })
}

/// Tells the faultfs behind `socket` a line, and returns its answer.
///
/// # Errors
///
/// What it answers instead of `ok`, or that it does not.
pub fn tell(socket: &Path, line: &str) -> Result<String> {
    let ask = || -> Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        match answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), "")) {
            ("ok", text) => Ok(text.to_owned()),
            _ => bail!("{answer}"),
        }
    };
    ask().with_context(|| format!("telling {} {line:?}", socket.display()))
}
