//! SQLite: many small transactions, each with several syncs; in WAL mode also shared memory by mmap.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Scale, Workload};
use crate::program;

const DEADLINE: Duration = Duration::from_secs(300);
const MODES: &[&str] = &["delete", "wal"];

/// Fills two databases by transactions of three rows.
pub struct Database {
    transactions: usize,
}

impl Database {
    /// Returns the work of 40, 250 or 3,000 transactions in each journal mode.
    pub fn new(scale: Scale) -> Self {
        Self { transactions: scale.pick(40, 250, 3_000) }
    }
}

fn sqlite(directory: &Path, file: &str, script: &str) -> Result<String> {
    program::need("sqlite3")?;
    program::ok(directory, "sqlite3", ["-bail", "-batch", file, script], DEADLINE)
}

impl Workload for Database {
    fn name(&self) -> &'static str {
        "database"
    }

    fn write(&mut self, directory: &Path) -> Result<()> {
        for mode in MODES {
            let file = format!("{mode}.db");
            let setup = format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, n INT, s TEXT); CREATE INDEX i ON t(n);"
            );
            let said = sqlite(directory, &file, &setup)?;
            ensure!(said.trim() == *mode, "journal mode {mode} was asked for, {said:?} is used");
            let mut script = String::from("PRAGMA synchronous=FULL;");
            for number in 0..self.transactions {
                script.push_str("BEGIN;");
                for row in 0..3 {
                    script.push_str(&format!(
                        "INSERT INTO t(n, s) VALUES({number}, hex(zeroblob({})));",
                        20 + number * (row + 1) % 700
                    ));
                }
                script.push_str("COMMIT;");
            }
            // Some updates, and a transaction that is taken back.
            script.push_str("BEGIN; UPDATE t SET n = n + 1 WHERE id % 5 = 0; COMMIT; BEGIN; DELETE FROM t; ROLLBACK;");
            sqlite(directory, &file, &script).with_context(|| format!("journal mode {mode}"))?;
        }
        Ok(())
    }

    fn verify(&self, directory: &Path) -> Result<()> {
        let n = self.transactions;
        // Rows 5, 10, … have one more.
        let sum = 3 * n * (n - 1) / 2 + 3 * n / 5;
        for mode in MODES {
            let said =
                sqlite(directory, &format!("{mode}.db"), "PRAGMA integrity_check; SELECT count(*), sum(n) FROM t;")?;
            ensure!(said == format!("ok\n{}|{sum}\n", 3 * n), "journal mode {mode}: {said:?}");
        }
        Ok(())
    }
}
