//! Many seeds of the simulation, each in a process of its own, so that only the seed decides and a
//! failed run ends alone.
//!
//! An ordinary run takes as many seeds as fit into its time budget, but at least [`LEAST_SEEDS`];
//! `make soak-simulation` runs more. `SEED_SECONDS` sets the budget; `SEEDS=N` asks for a number of
//! seeds instead, however long they take. `FIRST_SEED` is the first seed, and `BUG_SEEDS` the
//! number of seeds in which each deliberate bug must be noticed.

#![allow(clippy::unwrap_used)]
use evenkeel_host::Bug;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long an ordinary run goes on beginning seeds, in seconds.
const SEED_SECONDS: u64 = 150;
/// The fewest seeds of an ordinary run, however slow the machine.
const LEAST_SEEDS: u64 = 250;
/// The most: the budget ends a run long before.
const MOST_SEEDS: u64 = 1_000_000;
/// Seeds in which each deliberate bug must show.
const BUG_SEEDS: u64 = 400;
/// Seeds that are run twice: among them are changes of members, drains, and a load spike, in the
/// last of them.
const TWICE: std::ops::RangeInclusive<u64> = 1..=16;
/// How many seconds a seed may take: a hundred times what one takes.
const MOST_SECONDS: &str = "120";

fn number(variable: &str, otherwise: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given
        .map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: {text:?}; a number is accepted")))
}

/// One run; one that does not end is ended, with a status of its own.
fn run(seed: u64, more: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args([MOST_SECONDS, env!("CARGO_BIN_EXE_evenkeel-simulation"), "--brief", "--seed", &seed.to_string()]);
    command.args(more).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `work` on each number, as many at once as there are processors, until it says that it is
/// enough.
fn each(numbers: std::ops::Range<u64>, work: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(numbers.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end || !work(number) {
                        next.store(numbers.end, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
}

/// Invariants 1 to 7 under faults, and recovery after them.
#[test]
fn every_seed_holds() {
    let first = number("FIRST_SEED", 1);
    let asked = std::env::var_os("SEEDS").map(|_| number("SEEDS", MOST_SEEDS));
    let budget = Duration::from_secs(number("SEED_SECONDS", SEED_SECONDS));
    let begun = evenkeel_host::now();
    let done = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let counts: Mutex<BTreeMap<String, u64>> = Mutex::default();
    each(first..first + asked.unwrap_or(MOST_SEEDS), |seed| {
        if asked.is_none() && evenkeel_host::elapsed(begun) >= budget && seed >= first + LEAST_SEEDS {
            return false;
        }
        done.fetch_add(1, Ordering::Relaxed);
        let output = run(seed, &[]);
        let text = text(&output);
        if !output.status.success() {
            let why = format!("{} ({})\n{text}", command(seed), output.status);
            // At once, and past what the test runner holds back: the others may take hours.
            drop(writeln!(std::io::stderr(), "{why}"));
            failed.lock().unwrap().push(why);
        }
        let mut counts = counts.lock().unwrap();
        for (kind, n) in text
            .lines()
            .filter_map(|line| line.strip_prefix("counts "))
            .flat_map(|line| line.split(';'))
            .filter_map(|c| c.split_once('='))
        {
            *counts.entry(kind.to_string()).or_default() += n.parse::<u64>().unwrap_or(0);
        }
        let operations = text.split(", ").find_map(|part| part.strip_suffix(" operations")?.parse::<u64>().ok());
        *counts.entry("operations in histories".to_string()).or_default() += operations.unwrap_or(0);
        true
    });
    let count = done.into_inner();
    println!("{count} seeds in {:.0} s", evenkeel_host::elapsed(begun).as_secs_f64());
    counts.into_inner().unwrap().iter().for_each(|(kind, count)| println!("{count:>10} {kind}"));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {count} seeds failed:\n{}", failed.len(), failed.join("\n"));
}

fn command(seed: u64) -> String {
    format!("cargo run --release -p evenkeel-simulation -- --seed {seed}")
}

/// The seed decides everything: two runs of it do not differ in one byte sent nor in one number
/// drawn.
#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in TWICE {
        assert_eq!(text(&run(seed, &[])), text(&run(seed, &[])), "{}", command(seed));
    }
}

/// The simulation notices these bugs. Run `BUG_SEEDS=…` for a wider look.
#[test]
fn each_deliberate_bug_is_noticed() {
    let bound = number("BUG_SEEDS", BUG_SEEDS);
    let mut unnoticed = Vec::new();
    for bug in Bug::ALL {
        let name = format!("{bug:?}");
        let noticed = Mutex::new(None);
        each(1..bound + 1, |seed| {
            let output = run(seed, &["--bug", &name]);
            if output.status.success() {
                return noticed.lock().unwrap().is_none();
            }
            let text = text(&output);
            // What a run does not say itself has not been noticed by it.
            let Some(why) = text.lines().find(|line| line.starts_with("wrong: ")) else {
                panic!(
                    "{} --bug {name}: {} without a sentence that begins with \"wrong: \"\n{text}",
                    command(seed),
                    output.status
                );
            };
            let why = why.to_string();
            noticed.lock().unwrap().get_or_insert((seed, why));
            false
        });
        match noticed.into_inner().unwrap() {
            Some((seed, why)) => println!("{name}: seed {seed}: {why}"),
            None => {
                println!("{name}: not noticed in {bound} seeds");
                unnoticed.push(name);
            }
        }
    }
    assert!(unnoticed.is_empty(), "not noticed within {bound} seeds: {unnoticed:?}");
}
