//! Which operation fails, and how: rules by kind of operation, path and number.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// An operation that rules know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// read(2).
    Read,
    /// write(2).
    Write,
    /// fsync(2) and fdatasync(2), of files.
    Sync,
    /// Making, removing and renaming, and the sync of a directory.
    Names,
    /// fallocate(2) and truncate(2).
    Space,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It fails with this errno and does nothing.
    Fail(i32),
    /// It takes this much longer.
    Delay(Duration),
    /// A write: some of its sectors do not get there, and it succeeds.
    Torn,
    /// A write: it goes to a place this many bytes further on, and succeeds.
    Misdirected(u64),
    /// A write: one bit of it is another one, and it succeeds.
    Flip,
    /// A sync: nothing gets to stable media, and it succeeds.
    Lie,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    ops: Vec<Op>,
    /// `*` stands for anything.
    pattern: String,
    /// How many that match go through first.
    skip: u64,
    /// How many it holds for then; `None`: all.
    count: Option<u64>,
    action: Action,
}

impl Rule {
    /// Returns the rule that a line names:
    ///
    /// `ACTION OP[,OP…] PATTERN [skip=N] [count=N]` where an action is `eio`, `enospc`, `delay=MS`, `torn`,
    /// `misdirect=BYTES`, `flip` or `lie`, and an op `read`, `write`, `sync`, `names` or `space`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let (action, ops, pattern) = (|| Some((words.next()?, words.next()?, words.next()?)))()
            .with_context(|| format!("{line:?} is not ACTION OP PATTERN"))?;
        let action = match action.split_once('=').unwrap_or((action, "")) {
            ("eio", "") => Action::Fail(libc::EIO),
            ("enospc", "") => Action::Fail(libc::ENOSPC),
            ("delay", ms) => Action::Delay(Duration::from_millis(ms.parse()?)),
            ("torn", "") => Action::Torn,
            ("misdirect", bytes) => Action::Misdirected(bytes.parse()?),
            ("flip", "") => Action::Flip,
            ("lie", "") => Action::Lie,
            _ => bail!("there is no action {action:?}"),
        };
        let op = |word: &str| {
            Ok(match word {
                "read" => Op::Read,
                "write" => Op::Write,
                "sync" => Op::Sync,
                "names" => Op::Names,
                "space" => Op::Space,
                _ => bail!("there is no operation {word:?}"),
            })
        };
        let ops: Vec<Op> = ops.split(',').map(op).collect::<Result<_>>()?;
        let bends = matches!(action, Action::Torn | Action::Misdirected(_) | Action::Flip);
        ensure!(!bends || ops == [Op::Write], "{line:?}: that can happen to a write only");
        ensure!(action != Action::Lie || ops == [Op::Sync], "{line:?}: that can happen to a sync only");
        let mut rule = Self { ops, pattern: pattern.to_owned(), skip: 0, count: None, action };
        for word in words {
            match word.split_once('=') {
                Some(("skip", number)) => rule.skip = number.parse()?,
                Some(("count", number)) => rule.count = Some(number.parse()?),
                _ => bail!("{word:?} is neither skip=N nor count=N"),
            }
        }
        Ok(rule)
    }
}

/// The rules that hold, and how often each one struck.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    struck: u64,
}

impl Rules {
    /// Adds a rule.
    pub fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// Takes all rules away.
    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// Returns how many operations were struck so far.
    pub fn struck(&self) -> u64 {
        self.struck
    }

    /// Returns whether there is no space, by a rule on all writes that does not end.
    pub fn is_full(&self) -> bool {
        let full = |rule: &Rule| {
            rule.action == Action::Fail(libc::ENOSPC) && rule.ops.contains(&Op::Write) && rule.count.is_none()
        };
        self.rules.iter().any(full)
    }

    /// Returns what happens to an operation on `path`: what the first rule says that matches.
    pub fn strike(&mut self, op: Op, path: &str) -> Option<Action> {
        for rule in &mut self.rules {
            if !rule.ops.contains(&op) || !matches(&rule.pattern, path) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            match &mut rule.count {
                Some(0) => continue,
                Some(count) => *count -= 1,
                None => {}
            }
            self.struck += 1;
            return Some(rule.action);
        }
        None
    }
}

/// Returns whether `path` is of `pattern`, where `*` stands for any characters.
pub fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, rest)) => {
            let Some(path) = path.strip_prefix(start) else { return false };
            (0..=path.len()).any(|at| path.is_char_boundary(at) && matches(rest, &path[at..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let table = [
            ("*", "a/b", true),
            ("a/b", "a/b", true),
            ("a/b", "a/bc", false),
            ("a*", "a/b", true),
            ("*b", "a/b", true),
            ("*b", "a/bc", false),
            ("*/chunks/*.rep", "d/chunks/0/1.rep", true),
            ("*/chunks/*.rep", "d/journal/1", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyyd", false),
            ("journal*", "chunks/1", false),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_rule_strikes_from_the_nth_on_as_often_as_it_says() {
        let mut rules = Rules::default();
        rules.add(Rule::parse("eio sync,read j* skip=2 count=2").unwrap());
        let mut outcomes = Vec::new();
        for _ in 0..6 {
            assert_eq!(rules.strike(Op::Write, "j1"), None);
            assert_eq!(rules.strike(Op::Sync, "k"), None);
            outcomes.push(rules.strike(Op::Sync, "j1").is_some());
        }
        assert_eq!((outcomes, rules.struck()), (vec![false, false, true, true, false, false], 2));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_refused() {
        for line in [
            "",
            "eio",
            "eio read",
            "eio reed *",
            "torn read *",
            "lie write *",
            "boil read *",
            "eio read * twice",
            "delay=x read *",
        ] {
            assert!(Rule::parse(line).is_err(), "{line}");
        }
        for line in ["delay=100 read,write *", "torn write * count=1", "misdirect=4096 write *", "enospc write,space *"]
        {
            Rule::parse(line).unwrap();
        }
    }
}
