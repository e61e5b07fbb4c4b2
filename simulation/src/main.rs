//! Runs one seed in this process and prints the result. The exit status is 0 without violations, 1
//! with violations.

use clap::Parser;
use evenkeel_host::Bug;
use evenkeel_simulation::process;
use evenkeel_simulation::world::{Options, RunReport, World};
use std::process::ExitCode;

/// One run of the deterministic simulation.
#[derive(Debug, Parser)]
struct Flags {
    /// The seed: the same one gives the same run.
    #[arg(long)]
    seed: u64,
    /// A deliberate bug to activate, by its name.
    #[arg(long)]
    bug: Option<String>,
    /// How many shards there are; without it the seed says.
    #[arg(long)]
    shards: Option<u32>,
    /// For how long faults come, in milliseconds of simulated time.
    #[arg(long, default_value_t = 5_000)]
    hurt_ms: u64,
    /// Without faults.
    #[arg(long)]
    calm: bool,
    /// Prints one line that a test can read, and nothing else.
    #[arg(long)]
    brief: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let bug = match &flags.bug {
        None => None,
        Some(name) => match Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == *name) {
            Some(bug) => Some(bug),
            None => {
                eprintln!("--bug: {name:?}; accepted are {:?}", Bug::ALL);
                return ExitCode::from(2);
            }
        },
    };
    let Ok(folder) = tempfile::tempdir() else {
        eprintln!("no temporary folder");
        return ExitCode::from(2);
    };
    // Before the simulation begins, so that logging does not influence the run.
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    }
    let options = Options { seed: flags.seed, bug, shards: flags.shards, hurt_ms: flags.hurt_ms, faults: !flags.calm };
    let path = folder.path().to_owned();
    // A new thread has not asked for randomness yet.
    let run = std::thread::Builder::new().stack_size(16 << 20).spawn(move || simulate(options, path));
    match run.map(std::thread::JoinHandle::join) {
        Ok(Ok(report)) => show(&flags, &report),
        _ => ExitCode::from(3),
    }
}

fn simulate(options: Options, folder: std::path::PathBuf) -> RunReport {
    process::begin(options.seed);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        println!("wrong: a task panicked: {info}");
        std::process::exit(1);
    }));
    let world = World::new(options, folder);
    evenkeel_host::install(Box::new(world.hardware().clone()));
    world.run()
}

fn show(flags: &Flags, report: &RunReport) -> ExitCode {
    let faults: u64 = report.faults.values().sum();
    let moves: u64 = report.operators.iter().filter(|(kind, _)| *kind == "Move Done").map(|(_, n)| n).sum();
    println!(
        "seed {} fingerprint {:016x} simulated {} ms, {} operations, {faults} faults, {moves} moves done",
        flags.seed, report.fingerprint, report.simulated_ms, report.operations
    );
    if !flags.brief {
        report.faults.iter().for_each(|(kind, count)| println!("  {count} {kind}"));
        report.operators.iter().for_each(|(kind, count)| println!("  {count} {kind}"));
        report.counts.iter().for_each(|(kind, count)| println!("  {count} {kind}"));
    } else {
        let all = report
            .faults
            .iter()
            .map(|(k, n)| format!("{k}={n}"))
            .chain(report.operators.iter().map(|(k, n)| format!("{k}={n}")))
            .chain(report.counts.iter().map(|(k, n)| format!("{k}={n}")));
        println!("counts {}", all.collect::<Vec<_>>().join(";"));
    }
    report.wrong.iter().for_each(|sentence| println!("wrong: {sentence}"));
    if report.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
