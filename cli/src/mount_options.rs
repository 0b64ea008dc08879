//! `-o` of `dfs mount` and mount(8): one comma-separated list, each word known or refused by name.

use dfs_mount::VfsOption;

use crate::exit::usage;

/// What one option list asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// What the kernel's VFS understands, in the order given (`nosuid`, `noatime`, …); `ro` and `rw` are apart.
    pub vfs: Vec<VfsOption>,
    /// The mount may not change anything.
    pub read_only: bool,
    /// Other users than the mounting one may enter.
    pub allow_other: bool,
    /// How long a call waits for servers before EIO, in seconds; `None`: without end (`hard`).
    pub soft_seconds: Option<u64>,
    /// Most bytes written but not yet on the servers.
    pub dirty_bytes: u64,
    /// Most bytes fetched ahead for one open file.
    pub read_ahead_bytes: u64,
    /// Threads that serve the kernel.
    pub workers: usize,
    /// `HOST:PORT` of the mount's metrics; `None`: a free port of 127.0.0.1.
    pub http: Option<String>,
    /// Where the log goes once the mount runs in the background.
    pub log: Option<String>,
    /// Level of the log, as in the settings.
    pub log_level: Option<String>,
    /// The mount point may have content, which is hidden.
    pub nonempty: bool,
    /// mount(8) wants the flags of an existing mount changed.
    pub remount: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            vfs: Vec::new(),
            read_only: false,
            allow_other: false,
            soft_seconds: Some(120),
            dirty_bytes: 256 << 20,
            read_ahead_bytes: 8 << 20,
            workers: 8,
            http: None,
            log: None,
            log_level: None,
            nonempty: false,
            remount: false,
        }
    }
}

/// Words of fstab that concern mount(8) alone.
const IGNORED_WORDS: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "nofail",
    "fail",
    "_netdev",
    "default_permissions",
    "silent",
    "loud",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
];

/// Returns the words of `list` that a change of an existing mount may carry: those the kernel's VFS keeps.
pub fn for_remount(list: &str) -> String {
    let is_kept = |word: &&str| VfsOption::from_word(word).is_some() || matches!(*word, "remount" | "ro" | "rw");
    let words = list.split(',').filter(is_kept);
    words.collect::<Vec<_>>().join(",")
}

/// Reads a list such as `ro,noatime,soft=30`.
///
/// # Errors
///
/// The first word that is not known or whose value is wrong, as an error of use.
pub fn parse(list: &str) -> anyhow::Result<MountOptions> {
    let mut options = MountOptions::default();
    for word in list.split(',').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        if let (Some(option), None) = (VfsOption::from_word(name), value) {
            options.vfs.push(option);
            continue;
        }
        match (name, value) {
            ("ro", None) => options.read_only = true,
            ("rw", None) => options.read_only = false,
            ("allow_other", None) => options.allow_other = true,
            ("nonempty", None) => options.nonempty = true,
            ("remount", None) => options.remount = true,
            ("hard", None) => options.soft_seconds = None,
            ("soft", Some(seconds)) => {
                options.soft_seconds = Some(in_range(word, seconds, 1..=86_400, "seconds, 1 to 86400")?);
            }
            ("dirty", Some(bytes)) => options.dirty_bytes = size(word, bytes, 4 << 20..=64 << 30)?,
            ("read_ahead", Some(bytes)) => options.read_ahead_bytes = size(word, bytes, 0..=1 << 30)?,
            ("workers", Some(count)) => options.workers = in_range(word, count, 3..=64, "threads, 3 to 64")? as usize,
            ("http", Some(address)) if address.contains(':') => options.http = Some(address.to_owned()),
            ("log", Some(path)) if !path.is_empty() => options.log = Some(path.to_owned()),
            ("log_level", Some(level)) if !level.is_empty() => options.log_level = Some(level.to_owned()),
            // `x-…` and `comment=` are notes to other programs; libmount keeps `user=` and `uhelper=` for itself.
            (name, _) if name.starts_with("x-") || name.starts_with("X-") || name.starts_with("user.") => {}
            // mount(8) hands a remount what /proc/mounts shows of the mount.
            (
                "comment" | "user" | "uhelper" | "helper" | "fsname" | "subtype" | "user_id" | "group_id" | "max_read",
                Some(_),
            ) => {}
            (name, None) if IGNORED_WORDS.contains(&name) => {}
            (name, None)
                if matches!(name, "soft" | "dirty" | "read_ahead" | "workers" | "http" | "log" | "log_level") =>
            {
                return Err(usage(format!("mount option {name:?} needs a value: {name}=VALUE")));
            }
            _ => {
                return Err(usage(format!(
                    "unknown mount option {word:?}; known are ro, rw, {}, allow_other, nonempty, hard, soft=SECONDS, \
                     dirty=BYTES, read_ahead=BYTES, workers=N, http=HOST:PORT, log=FILE, log_level=LEVEL",
                    VfsOption::WORDS.map(|(word, _)| word).join(", ")
                )));
            }
        }
    }
    Ok(options)
}

fn in_range(word: &str, text: &str, range: std::ops::RangeInclusive<u64>, expected: &str) -> anyhow::Result<u64> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| usage(format!("mount option {word:?}: {expected} expected")))
}

/// Reads a number of bytes with an optional K, M or G (powers of 1024) behind it.
fn size(word: &str, text: &str, range: std::ops::RangeInclusive<u64>) -> anyhow::Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| range.contains(bytes)).ok_or_else(|| {
        usage(format!(
            "mount option {word:?}: bytes from {} to {} expected, K, M or G allowed",
            range.start(),
            range.end()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_line_of_fstab_is_taken() {
        let options =
            parse("defaults,ro,noatime,_netdev,nofail,x-systemd.automount,user.name=x,comment=hi").expect("taken");
        assert_eq!(options, MountOptions { read_only: true, vfs: vec![VfsOption::NoAtime], ..MountOptions::default() });
    }

    #[test]
    fn own_options_have_values_within_limits() {
        let options = parse("soft=30,dirty=8M,read_ahead=0,workers=3,http=127.0.0.1:0,allow_other").expect("taken");
        assert_eq!((options.soft_seconds, options.dirty_bytes, options.workers), (Some(30), 8 << 20, 3));
        assert_eq!(parse("soft=5,hard").expect("taken").soft_seconds, None);
        for wrong in ["soft=0", "soft=x", "soft", "dirty=1K", "dirty=99999999999G", "workers=2", "http=x", "log="] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_remount_is_reduced_to_what_the_kernel_keeps() {
        let list = "remount,ro,nosuid,user_id=0,group_id=0,default_permissions,allow_other,soft=5";
        assert!(parse(list).expect("taken").remount);
        assert_eq!(for_remount(list), "remount,ro,nosuid");
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let error = parse("ro,nosuchthing=1").expect_err("refused").to_string();
        assert!(error.contains("\"nosuchthing=1\"") && error.contains("soft=SECONDS"), "{error}");
    }
}
