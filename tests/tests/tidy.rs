//! The rules of the code that no compiler checks: which module may know which, and what must not be left behind.

#![allow(clippy::disallowed_methods, reason = "a shell: it reads the project's files")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dfs_tests::binary::project;

/// Most lines in a file: a longer one holds a second noun.
const LINES_MAX: usize = 700;

/// A text file of the project.
struct Source {
    /// From the project's root, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// Returns its lines with their numbers, without line comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| {
            // `://` is part of a URL in a string.
            let end = line.match_indices("//").map(|(at, _)| at).find(|at| !line[..*at].ends_with(':'));
            (index + 1, &line[..end.unwrap_or(line.len())])
        })
    }

    /// Returns the crate's directory, and the module below its `src/` that the file belongs to.
    fn module(&self) -> Option<(&str, &str)> {
        let (name, rest) = self.path.split_once("/src/")?;
        Some((name, rest.split('/').next()?.trim_end_matches(".rs")))
    }
}

/// Returns all text files of the project with one of these extensions.
fn sources(extensions: &[&str]) -> Vec<Source> {
    let root = project();
    let (mut found, mut directories) = (Vec::new(), vec![root.clone()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("the project can be read").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() && !path.is_symlink() {
                if name != "target" && name != ".git" {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|extension| extensions.contains(&&*extension.to_string_lossy())) {
                let Ok(text) = std::fs::read_to_string(&path) else { continue };
                let path = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no files with {extensions:?} below {}", root.display());
    found
}

fn none(what: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{what}:\n  {}", violations.join("\n  "));
}

/// Returns `FILE:LINE: word` for each line of code of the selected files that has one of the words.
fn uses(files: &[Source], selected: impl Fn(&Source) -> bool, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| selected(file)) {
        for (number, line) in file.code() {
            found.extend(
                words.iter().filter(|word| has_word(line, word)).map(|word| format!("{}:{number}: {word}", file.path)),
            );
        }
    }
    found
}

/// Returns whether `line` has `word` where no longer word begins or ends.
fn has_word(line: &str, word: &str) -> bool {
    let part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(at, _)| {
        let opens = word.starts_with(part) && line[..at].ends_with(part);
        let goes_on = word.ends_with(part) && line[at + word.len()..].starts_with(part);
        !opens && !goes_on
    })
}

fn is_below(file: &Source, directories: &[&str]) -> bool {
    directories.iter().any(|directory| file.path.starts_with(directory))
}

#[test]
fn words_are_found_whole() {
    assert!(has_word("use fuser::X", "fuser") && has_word("(pb::Y)", "pb::") && !has_word("refuser", "fuser"));
    assert!(!has_word("let fuser_count", "fuser") && has_word("#[ignore]", "#[ignore"));
}

#[test]
fn cores_have_no_clock_no_io_and_no_runtime() {
    let words = [
        "async",
        "await",
        "tokio",
        "std::fs",
        "std::net",
        "std::thread",
        "Instant",
        "SystemTime",
        "fuser",
        "pb::",
        "fjall",
        "tonic",
        "axum",
        "HashMap",
        "HashSet",
    ];
    let cores =
        |file: &Source| matches!(file.module(), Some(("master" | "chunkd" | "mount", "core") | ("mount", "cache")));
    none("a core decides and does nothing else", uses(&sources(&["rs"]), cores, &words));
}

#[test]
fn each_outside_crate_is_known_in_one_place() {
    let files = sources(&["rs"]);
    let here = |file: &Source| file.path == "tests/tests/tidy.rs";
    let not_below = |places: &'static [&'static str]| move |file: &Source| !is_below(file, places) && !here(file);
    none(
        "fuser is known to the adapters alone",
        uses(
            &files,
            not_below(&["mount/src/fuse/", "mount/src/fuse.rs", "tests/src/faultfs/adapter.rs"]),
            &["fuser::", "use fuser"],
        ),
    );
    none(
        "fjall is known to its engine alone",
        uses(&files, not_below(&["master/src/store/embedded"]), &["fjall::", "use fjall"]),
    );
    // The tests of a crate from outside (`tests/`) and its examples play its peers.
    let wire_shells = &[
        "proto/",
        "master/src/service/",
        "chunkd/src/service/",
        "mount/src/remote/",
        "cli/src/",
        "master/tests/",
        "chunkd/tests/",
        "mount/tests/",
        "master/examples/",
    ];
    none(
        "generated types stop at the shells that speak to the wire",
        uses(&files, not_below(wire_shells), &["pb::", "wire::pb"]),
    );
}

#[test]
fn arrows_between_modules_go_down() {
    let level = |module: &str| match module {
        "service" | "fuse" => Some(3),
        "store" | "remote" | "fs" => Some(2),
        "core" | "cache" => Some(1),
        _ => None,
    };
    let mut violations = Vec::new();
    for file in sources(&["rs"]) {
        let Some((crate_name, module)) = file.module() else { continue };
        let (true, Some(own)) = (matches!(crate_name, "master" | "chunkd" | "mount"), level(module)) else { continue };
        for (number, line) in file.code() {
            for (at, _) in line.match_indices("crate::") {
                let target: String =
                    line[at + 7..].chars().take_while(|next| next.is_alphanumeric() || *next == '_').collect();
                if level(&target).is_some_and(|other| other > own) {
                    violations.push(format!("{}:{number}: {module} uses {target}", file.path));
                }
            }
        }
    }
    none("service | fuse may use store | remote | fs, these core | cache, never the other way", violations);
}

#[test]
fn roles_never_depend_on_each_other() {
    let roles = ["master", "chunkd", "mount"];
    let mut violations = Vec::new();
    for file in sources(&["toml", "rs"]) {
        let Some(own) = roles.iter().find(|role| file.path.starts_with(&format!("{role}/"))) else { continue };
        for other in roles.iter().filter(|role| *role != own) {
            for name in [format!("dfs-{other}"), format!("dfs_{other}::")] {
                if file.code().any(|(_, line)| has_word(line, &name)) {
                    violations.push(format!("{}: {name}", file.path));
                }
            }
        }
    }
    none("master, chunkd and mount share proto and telemetry only", violations);
}

#[test]
fn versions_of_dependencies_stand_in_the_root_manifest_alone() {
    let mut violations = Vec::new();
    for file in sources(&["toml"]).iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let mut in_dependencies = false;
        for (number, line) in file.text.lines().enumerate() {
            if let Some(section) = line.strip_prefix('[') {
                in_dependencies = section.contains("dependencies");
            } else if in_dependencies
                && line.contains('=')
                && !line.trim_start().starts_with('#')
                && !line.contains("workspace = true")
            {
                violations.push(format!("{}:{}: {line}", file.path, number + 1));
            }
        }
    }
    none("write `NAME.workspace = true`", violations);
}

#[test]
fn nothing_refers_to_what_is_outside_of_the_project() {
    // Put together here, or this file would refer to them.
    let outside = ["work", "farm", "root"].map(|name| format!("/{name}/"));
    let mut violations = Vec::new();
    for file in sources(&["rs", "sh", "md", "toml", "yml", "proto", "json", "py"]) {
        for (number, line) in file.text.lines().enumerate() {
            for name in &outside {
                let starts = line.match_indices(name.as_str()).any(|(at, _)| {
                    !line[..at].ends_with(|before: char| {
                        before.is_alphanumeric() || matches!(before, '_' | '.' | '-' | '}' | '/')
                    })
                });
                if starts {
                    violations.push(format!("{}:{}: {name}", file.path, number + 1));
                }
            }
            // Out of the project, whatever file it stands in.
            if line.contains(&format!("..{}", "/shared")) {
                violations.push(format!("{}:{}: a directory beside the project", file.path, number + 1));
            }
        }
    }
    none("a checkout elsewhere does not have this", violations);
}

#[test]
fn nothing_is_left_undone() {
    let words = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
    none(
        "finish it, or return an error and document it",
        uses(&sources(&["rs"]), |file| file.path != "tests/tests/tidy.rs", &words),
    );
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let long = sources(&["rs"])
        .into_iter()
        .map(|file| (file.text.lines().count(), file.path))
        .filter(|(lines, _)| *lines > LINES_MAX);
    none(&format!("more than {LINES_MAX} lines"), long.map(|(lines, path)| format!("{path}: {lines}")).collect());
}

/// Returns every name that starts with `dfs_master_`, `dfs_chunkd_` or `dfs_mount_` in `text`.
fn metric_names(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for role in ["master", "chunkd", "mount"] {
        let prefix = format!("dfs_{role}_");
        for (at, _) in text.match_indices(&prefix) {
            let name: String =
                text[at..].chars().take_while(|next| next.is_ascii_alphanumeric() || *next == '_').collect();
            found.insert(name);
        }
    }
    found
}

#[test]
fn each_metric_that_is_shown_or_alerted_on_exists_and_each_that_exists_is_described() {
    let metrics: Vec<Source> = sources(&["rs"])
        .into_iter()
        .filter(|file| Path::new(&file.path).file_name().is_some_and(|name| name == "metrics.rs"))
        .collect();
    let mut existing: BTreeMap<String, String> = BTreeMap::new();
    for file in &metrics {
        // Only whole string literals are names of metrics.
        for literal in file.text.split('"').skip(1).step_by(2) {
            existing.extend(
                metric_names(literal).into_iter().filter(|name| name == literal).map(|name| (name, file.path.clone())),
            );
        }
    }
    let base = |name: &str| {
        let plain = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        plain.filter(|plain| existing.contains_key(*plain)).unwrap_or(name).to_owned()
    };
    let (mut unknown, mut described) = (Vec::new(), BTreeSet::new());
    for file in sources(&["yml", "json", "md"]) {
        if is_below(&file, &["monitoring/", "docs/"]) || file.path == "README.md" {
            for name in metric_names(&file.text) {
                described.insert(base(&name));
                if file.path.starts_with("monitoring/") && !existing.contains_key(&base(&name)) {
                    unknown.push(format!("{}: {name}", file.path));
                }
            }
        }
    }
    none("shown or alerted on, but in no metrics.rs", unknown);
    let silent = existing.iter().filter(|(name, _)| !described.contains(*name));
    none("in no dashboard, alert or page of docs/", silent.map(|(name, path)| format!("{path}: {name}")).collect());
}

#[test]
fn each_alert_is_proven_to_fire_and_to_be_silent() {
    let directory = project().join("monitoring/prometheus");
    let read =
        |path: PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (rules, tests) = (read(directory.join("rules/dfs.yml")), read(directory.join("tests/dfs.yml")));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    let unproven = alerts.iter().flat_map(|alert| ["fires", "is silent"].map(|what| format!("{alert} {what}:")));
    none("no case in tests/dfs.yml", unproven.filter(|name| !tests.contains(&format!("- name: \"{name} "))).collect());
}

#[test]
fn every_script_says_how_it_is_used() {
    let mut violations = Vec::new();
    for file in sources(&["sh"]).iter().filter(|file| is_below(file, &["scripts/", "fstests/"])) {
        let second = file.text.lines().find(|line| !line.starts_with("#!"));
        if !second.is_some_and(|line| line.starts_with("# ")) {
            violations.push(file.path.clone());
        }
    }
    none("a script begins with what it does", violations);
}
