//! Settings: a flag, else the environment, else the TOML file, else the default. One table lists them all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::exit::usage;

/// The settings file that is read if none is named; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/dfs/dfs.toml";

/// One setting. Its environment variable is `DFS_` and the key in capitals with `_` for `.`.
pub struct Setting {
    /// `section.name`, as in the TOML file.
    pub key: &'static str,
    /// The value if nobody says otherwise, as text; empty: none.
    pub default: &'static str,
    /// What it does, with its unit.
    pub help: &'static str,
}

/// Every setting there is.
pub const SETTINGS: &[Setting] = &[
    Setting { key: "log.level", default: "info", help: "error, warn, info, debug, trace, or module=level pairs" },
    Setting {
        key: "client.master",
        default: "127.0.0.1:7000",
        help: "HOST:PORT of the master, for status, info and other commands that ask it",
    },
    Setting { key: "client.timeout_ms", default: "10000", help: "how long such a command waits for the master, ms" },
    Setting { key: "master.data", default: "", help: "directory of the master's data" },
    Setting {
        key: "master.listen",
        default: "127.0.0.1:7000",
        help: "HOST:PORT of the hot plane; the control plane (gRPC) is at PORT+1, HTTP at PORT+2",
    },
    Setting { key: "master.meta", default: "embedded", help: "metadata engine: embedded, or memory (lost at exit)" },
    Setting {
        key: "master.sync_interval_ms",
        default: "5",
        help: "longest time a change waits to be made durable, ms",
    },
    Setting { key: "master.reclaim_delay_ms", default: "10000", help: "how long a freed chunk is kept, ms" },
    Setting { key: "master.lease_ms", default: "5000", help: "node lease of chunk servers, ms" },
    Setting { key: "master.pulse_ms", default: "1000", help: "how often chunk servers renew it, ms" },
    Setting { key: "master.report_ms", default: "30000", help: "how often chunk servers report capacity, ms" },
    Setting { key: "master.offline_ms", default: "90000", help: "silence after which a chunk server is offline, ms" },
    Setting { key: "master.session_ms", default: "60000", help: "lease of a mount's session, ms" },
    Setting {
        key: "master.reclaim_window_ms",
        default: "3000",
        help: "how long a restarted master waits for the mounts it knew, ms",
    },
    Setting {
        key: "master.unknown_grace_ms",
        default: "60000",
        help: "how long a replica of a chunk that the master does not know is kept, ms",
    },
    Setting {
        key: "master.repair_bytes_per_second",
        default: "104857600",
        help: "what each chunk server may copy to fill and repair replicas, bytes a second",
    },
    Setting {
        key: "master.scrub_bytes_per_second",
        default: "20971520",
        help: "what each chunk server may read to check replicas, bytes a second",
    },
    Setting {
        key: "master.scrub_period_ms",
        default: "1209600000",
        help: "in what time each chunk is checked and its replicas compared, ms; 0: never",
    },
    Setting { key: "chunkd.data", default: "", help: "directories of a chunk server, one a disk, with commas between" },
    Setting { key: "chunkd.master", default: "127.0.0.1:7000", help: "HOST:PORT of the master" },
    Setting { key: "chunkd.listen", default: "127.0.0.1:7100", help: "HOST:PORT of the data plane; HTTP is at PORT+1" },
    Setting { key: "chunkd.advertise", default: "", help: "HOST:PORT that others reach it at, if not the one above" },
    Setting { key: "chunkd.rack", default: "", help: "rack label, for placement" },
    Setting { key: "chunkd.reserve_bytes", default: "1073741824", help: "kept free on each disk, bytes (at most 5 %)" },
    Setting { key: "chunkd.op_timeout_ms", default: "10000", help: "deadline of one operation on all replicas, ms" },
    Setting { key: "chunkd.open_files", default: "4096", help: "most replica files held open" },
    Setting { key: "up.data", default: "", help: "directory of a one-machine cluster" },
    Setting { key: "up.mount", default: "", help: "where it is mounted" },
    Setting {
        key: "up.base_port",
        default: "7000",
        help: "its ports: master PORT.., chunk servers PORT+100.., mount PORT+200",
    },
    Setting {
        key: "up.chunk_servers",
        default: "",
        help: "how many chunk servers it has, 1 to 9 (if not said: those that have data there, 3 at least)",
    },
];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The table above.
    Default,
    /// The settings file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// The command line.
    Flag,
}

/// The settings of this run.
pub struct Settings {
    values: BTreeMap<&'static str, (String, Origin)>,
}

/// Returns the environment variable of a setting.
pub fn variable(key: &str) -> String {
    format!("DFS_{}", key.replace('.', "_").to_uppercase())
}

impl Settings {
    /// Reads the defaults, then `file` (or the default file, if there is one), then the environment.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or holds what is not a setting; the text names it.
    pub fn load(file: Option<&Path>, environment: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let mut values: BTreeMap<_, _> =
            SETTINGS.iter().map(|setting| (setting.key, (setting.default.to_owned(), Origin::Default))).collect();
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => {
                for (key, value) in
                    parse_file(&text).map_err(|reason| usage(format!("{}: {reason}", path.display())))?
                {
                    values.insert(key, (value, Origin::File(path.to_owned())));
                }
            }
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(usage(format!("settings file {}: {error}", path.display()))),
        }
        for setting in SETTINGS {
            let name = variable(setting.key);
            if let Some(value) = environment(&name) {
                values.insert(setting.key, (value, Origin::Environment(name)));
            }
        }
        Ok(Self { values })
    }

    /// Puts a flag's value, if it was given, above everything else.
    pub fn set_flag(&mut self, key: &'static str, value: Option<String>) {
        if let Some(value) = value {
            self.values.insert(key, (value, Origin::Flag));
        }
    }

    /// Puts a value that was given as `KEY=VALUE` above everything else but the flag for that very setting.
    ///
    /// # Errors
    ///
    /// If there is no such setting.
    pub fn set(&mut self, assignment: &str) -> anyhow::Result<()> {
        let (key, value) =
            assignment.split_once('=').ok_or_else(|| usage(format!("--set {assignment:?}: KEY=VALUE is expected")))?;
        let setting = SETTINGS
            .iter()
            .find(|setting| setting.key == key)
            .ok_or_else(|| usage(format!("--set {assignment:?}: {key} is not a setting; `dfs config` lists them")))?;
        self.set_flag(setting.key, Some(value.to_owned()));
        Ok(())
    }

    /// Returns, as variables of the environment, what was set of these sections by whatever means: for processes that
    /// are to run with the same settings.
    pub fn variables(&self, sections: &[&str]) -> Vec<(String, String)> {
        let is_of = |key: &str| key.split_once('.').is_some_and(|(section, _)| sections.contains(&section));
        let set = self.values.iter().filter(|(key, (_, origin))| is_of(key) && *origin != Origin::Default);
        set.map(|(key, (value, _))| (variable(key), value.clone())).collect()
    }

    /// Returns a setting's text; empty if it has none.
    ///
    /// # Panics
    ///
    /// If the key is not in the table.
    pub fn text(&self, key: &str) -> &str {
        &self.values.get(key).unwrap_or_else(|| panic!("{key} is not in the table of settings")).0
    }

    /// Returns where a setting's value came from.
    ///
    /// # Panics
    ///
    /// If the key is not in the table.
    pub fn origin(&self, key: &str) -> &Origin {
        &self.values.get(key).unwrap_or_else(|| panic!("{key} is not in the table of settings")).1
    }

    /// Returns a setting's text.
    ///
    /// # Errors
    ///
    /// If it has none: the text says how to give one.
    pub fn required(&self, key: &str, flag: &str) -> anyhow::Result<&str> {
        match self.text(key) {
            "" => Err(usage(format!(
                "{flag} is missing: give the flag, set {}, or {key} in the settings file",
                variable(key)
            ))),
            text => Ok(text),
        }
    }

    /// Returns a setting as a number or another type that can be read from text.
    ///
    /// # Errors
    ///
    /// If the text is no such value; the message says which setting, what it holds and where that came from.
    pub fn parse<T: FromStr>(&self, key: &str, expected: &str) -> anyhow::Result<T> {
        let text = self.text(key);
        text.parse().map_err(|_| {
            let origin = match self.origin(key) {
                Origin::Default => "the default".to_owned(),
                Origin::File(path) => path.display().to_string(),
                Origin::Environment(name) => name.clone(),
                Origin::Flag => "the command line".to_owned(),
            };
            usage(format!("{key} = {text:?} (from {origin}): {expected} is expected"))
        })
    }
}

/// Returns the settings in the text of a TOML file, or what is wrong with it.
fn parse_file(text: &str) -> Result<Vec<(&'static str, String)>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let mut found = Vec::new();
    for (section, content) in &table {
        let Some(entries) = content.as_table() else {
            return Err(format!("{section:?} stands outside a section; write it as [section] and name = value"));
        };
        for (name, value) in entries {
            let key = format!("{section}.{name}");
            let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
                return Err(format!("{key} is not a setting; `dfs config` lists them"));
            };
            let text = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(yes) => yes.to_string(),
                _ => return Err(format!("{key}: a string, a whole number or true/false is expected")),
            };
            found.push((setting.key, text));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)]) -> anyhow::Result<Settings> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("dfs.toml");
        std::fs::write(&path, file).expect("written");
        Settings::load(Some(&path), |name| {
            environment.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let file = "[master]\nlisten = \"a:1\"\nlease_ms = 7";
        let mut settings = load(file, &[("DFS_MASTER_LISTEN", "b:2")]).expect("loads");
        assert_eq!(settings.text("master.pulse_ms"), "1000");
        assert_eq!(settings.parse::<u64>("master.lease_ms", "a number").expect("a number"), 7);
        assert_eq!(settings.text("master.listen"), "b:2");
        settings.set_flag("master.listen", None);
        assert_eq!(settings.text("master.listen"), "b:2");
        settings.set_flag("master.listen", Some("c:3".into()));
        assert_eq!((settings.text("master.listen"), settings.origin("master.listen")), ("c:3", &Origin::Flag));
    }

    #[test]
    fn what_was_set_is_passed_on_and_what_was_not_is_left_to_the_defaults() {
        let mut settings =
            load("[chunkd]\nopen_files = 9\n[up]\ndata = \"d\"", &[("DFS_MASTER_LEASE_MS", "7")]).expect("loads");
        settings.set("master.offline_ms=5000").expect("a setting");
        let variables = settings.variables(&["master", "chunkd"]);
        let expected =
            [("DFS_CHUNKD_OPEN_FILES", "9"), ("DFS_MASTER_LEASE_MS", "7"), ("DFS_MASTER_OFFLINE_MS", "5000")];
        assert_eq!(variables, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(settings.set("master.offline=1").expect_err("unknown").to_string().contains("not a setting"));
        assert!(settings.set("master.offline_ms").expect_err("no value").to_string().contains("KEY=VALUE"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |file: &str| load(file, &[]).err().expect("an error").to_string();
        assert!(error("[master]\nlisten_on = 1").contains("master.listen_on is not a setting"));
        assert!(error("listen = 1").contains("outside a section"));
        assert!(error("[master]\nlisten = [1]").contains("master.listen: a string"));
        assert!(error("[[[").contains("dfs.toml"));
        let settings = load("", &[("DFS_MASTER_LEASE_MS", "soon")]).expect("loads");
        let text = settings.parse::<u64>("master.lease_ms", "milliseconds").expect_err("no number").to_string();
        assert_eq!(text, "master.lease_ms = \"soon\" (from DFS_MASTER_LEASE_MS): milliseconds is expected");
    }
}
