//! Runs the simulator: one seed with its whole story, many seeds, or the catalogue of planted bugs.

#![allow(clippy::disallowed_methods, reason = "a shell: it reads arguments and writes to the terminal")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use dfs_proto::planted::Bug;
use dfs_tests::sim::campaign::{self, Campaign, kept_directory, kept_seeds, run_seed, tell_seed};
use dfs_tests::sim::catalogue;

const USAGE: &str = "\
usage: sim --seed N [--bug NAME] [--quiet]     one seed, with its whole story
       sim --seeds N [--from M] [--minutes M] [--threads T] [--keep-going]
       sim --catalogue [--bug NAME] [--from M] [--threads T]";

/// Lines of a story that are shown of a seed that fails among many.
const LINES_SHOWN: usize = 60;

#[derive(Debug, Default)]
struct Options {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: u64,
    minutes: Option<u64>,
    threads: usize,
    bug: Option<Bug>,
    catalogue: bool,
    quiet: bool,
    keep_going: bool,
}

fn parse() -> Result<Options, String> {
    let mut options = Options { from: 1, threads: 2, ..Options::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64, String> {
            let value = arguments.next().ok_or(format!("{argument} needs a number"))?;
            value.parse().map_err(|_| format!("{argument}: {value:?} is no number"))
        };
        match argument.as_str() {
            "--seed" => options.seed = Some(number()?),
            "--seeds" => options.seeds = Some(number()?),
            "--from" => options.from = number()?,
            "--minutes" => options.minutes = Some(number()?),
            "--threads" => options.threads = number()? as usize,
            "--catalogue" => options.catalogue = true,
            "--quiet" => options.quiet = true,
            "--keep-going" => options.keep_going = true,
            "--bug" => {
                let name = arguments.next().ok_or("--bug needs a name")?;
                let known = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
                options.bug = Some(known.ok_or(format!("{name}: no such bug; there are {:?}", Bug::ALL))?);
            }
            _ => return Err(format!("{argument}: unknown")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // A panic of a core is a finding, told as such.
    std::panic::set_hook(Box::new(|_| {}));
    let is_good = match (options.seed, options.catalogue, options.seeds.or(options.minutes.map(|_| u64::MAX / 2))) {
        (Some(seed), ..) => one(seed, &options),
        (None, true, _) => whole_catalogue(&options),
        (None, false, Some(seeds)) => many(seeds, &options),
        (None, false, None) => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, options: &Options) -> bool {
    let began = Instant::now();
    let (outcome, story) =
        if options.quiet { (run_seed(seed, options.bug), Vec::new()) } else { tell_seed(seed, options.bug) };
    let took = began.elapsed();
    for line in &story {
        println!("{line}");
    }
    println!(
        "seed {seed}: {} events, {} operations answered, {} failed, {:?}, {} simulated s in {took:.2?}, hash {:016x}",
        outcome.events, outcome.operations.0, outcome.operations.1, outcome.strikes, outcome.lasted, outcome.hash
    );
    match &outcome.violation {
        Some(violation) => println!("VIOLATION of {}: {}", violation.rule, violation.what),
        None => println!("no violation"),
    }
    outcome.violation.is_none()
}

fn many(seeds: u64, options: &Options) -> bool {
    let began = Instant::now();
    let campaign = Campaign {
        from: options.from,
        seeds,
        time: options.minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        threads: options.threads,
    };
    let kept = kept_seeds(&kept_directory());
    let found_max = if options.keep_going { usize::MAX } else { 1 };
    let summary = campaign::run(&campaign, &kept, found_max, |outcome| {
        if let Some(violation) = &outcome.violation {
            println!("seed {}: VIOLATION of {}: {}", outcome.seed, violation.rule, violation.what);
        }
    });
    if let (Some((seed, _)), false) = (summary.found.iter().next(), options.keep_going) {
        let (_, story) = tell_seed(*seed, None);
        println!("the last events of seed {seed}:");
        for line in &story[story.len().saturating_sub(LINES_SHOWN)..] {
            println!("  {line}");
        }
        println!("the whole story: scripts/sim.sh --seed {seed}");
    }
    let faults: u64 = summary.strikes.values().sum();
    println!(
        "{} seeds ({} kept ones first), {} simulated s in {:.0?}: {} operations answered, {} failed, {faults} faults, {} events",
        summary.seeds,
        kept.len(),
        summary.simulated_s,
        began.elapsed(),
        summary.operations.0,
        summary.operations.1,
        summary.events
    );
    let kinds: Vec<String> = summary.strikes.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("faults: {}", kinds.join(", "));
    println!("violations: {}", summary.found.len());
    summary.found.is_empty()
}

fn whole_catalogue(options: &Options) -> bool {
    let bugs: Vec<Bug> = options.bug.map_or_else(|| Bug::ALL.to_vec(), |bug| vec![bug]);
    let entries = catalogue::run(&bugs, options.from, options.threads);
    println!("{:24} {:>6} {:>6}  violated", "bug", "seed", "seeds");
    let mut last_seed = 0;
    for entry in &entries {
        match &entry.found {
            Some((seed, count, violation)) => {
                last_seed = last_seed.max(*seed);
                println!("{:24} {seed:>6} {count:>6}  {}", format!("{:?}", entry.bug), violation.rule);
            }
            None => println!("{:24} {:>6} {:>6}  MISSED", format!("{:?}", entry.bug), "-", catalogue::SEEDS_MAX),
        }
    }
    let campaign = Campaign {
        from: options.from,
        seeds: (last_seed + 1).saturating_sub(options.from),
        time: None,
        threads: options.threads,
    };
    let clean = campaign::run(&campaign, &[], 1, |_| {});
    let missed = entries.iter().filter(|entry| entry.found.is_none()).count();
    println!(
        "{} of {} bugs found; the same seeds without a bug: {} violations",
        entries.len() - missed,
        entries.len(),
        clean.found.len()
    );
    missed == 0 && clean.found.is_empty()
}
