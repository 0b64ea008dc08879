//! `chaos --seed N --minutes M [--only KIND,…] [--lie] [--tamper] [--keep] | --short [--seed N]`: see `scripts/chaos.sh`. Exit 1: something was not as it
//! must be; the run's directory with all logs is kept then.
//!
//! `chaos sweep` clears away what killed runs have left. `chaos enter …` and `chaos worker` are its own helpers.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns threads and files")]

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dfs_tests::chaos::ledger::{self, Ledger};
use dfs_tests::chaos::run::{self, Plan};
use dfs_tests::chaos::{enter, worker};
use nix::sys::signal::{SigSet, Signal};

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> Result<ExitCode> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match words.first().and_then(|word| word.to_str()) {
        Some("enter") => enter::enter(&words[1..])?,
        Some("worker") => worker::run()?,
        Some("sweep") => ledger::sweep(),
        _ => return chaos(&words),
    }
    Ok(ExitCode::SUCCESS)
}

fn chaos(words: &[OsString]) -> Result<ExitCode> {
    let mut plan =
        Plan { seed: 1, time: Duration::from_secs(600), short: false, only: Vec::new(), lie: false, tamper: false };
    let mut keep = false;
    let mut words = words.iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse::<u64>().ok()).with_context(|| format!("{word} N"));
        match &*word {
            "--seed" => plan.seed = number()?,
            "--minutes" => plan.time = Duration::from_secs(60 * number()?),
            "--short" => plan.short = true,
            "--keep" => keep = true,
            "--lie" => plan.lie = true,
            "--tamper" => plan.tamper = true,
            "--only" => plan.only = words.next().context("--only KIND,…")?.split(',').map(str::to_owned).collect(),
            _ => bail!("chaos --seed N --minutes M [--only KIND,…] [--lie] [--tamper] [--keep] | --short [--seed N]"),
        }
    }
    // Whoever started it may be killed: then it ends in order. Programs that it starts get their signals back.
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
    let mut ends = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].iter().for_each(|signal| ends.add(*signal));
    ends.thread_block()?;

    ledger::sweep();
    let directory = ledger::new_run(&format!("seed{}", plan.seed))?;
    println!("seed {}, {plan:?}, in {}", plan.seed, directory.display());
    let ledger = Arc::new(Ledger::begin(&directory)?);
    let ending = Arc::clone(&ledger);
    std::thread::spawn(move || {
        if ends.wait().is_ok() {
            STOP.store(true, Ordering::SeqCst);
            println!("told to end: clearing away");
            ending.clear();
            std::process::exit(130);
        }
    });
    let outcome = run::run(&directory, &ledger, &plan, &STOP);
    ledger.clear();
    let well = match &outcome {
        Ok((text, well)) => {
            println!("\n{text}");
            std::fs::write(directory.join("report"), text)?;
            *well
        }
        Err(error) => {
            println!("\nit could not be run: {error:#}");
            false
        }
    };
    if well && !keep {
        std::fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    } else {
        println!("logs and data are in {}", directory.display());
    }
    println!("seed {}: {}", plan.seed, if well { "all as it must be" } else { "FAILED" });
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
