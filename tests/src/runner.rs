//! Runs scenarios one after another on one cluster, and reports like `cargo test`: one line per
//! scenario, then the counts.
//!
//! Arguments are those of `cargo test`: a part of a name, `--exact`, `--skip PART`, `--list`.
//! Others are accepted and ignored. The cluster is started for the first scenario, and again after
//! a failed one.
//!
//! With `EVENKEEL_TEST_DATA_DIR` the clusters' folders, logs included, are kept there, each under
//! the name of its first scenario; `EVENKEEL_TEST_LOG` says what the processes log (as `RUST_LOG`).

use crate::failure::ScenarioResult;
use crate::world::World;
use evenkeel_local_cluster::ClusterOptions;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long a scenario may take, its cluster's start included.
const TIMEOUT: Duration = Duration::from_secs(600);

/// One scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Its steps.
    pub run: for<'a> fn(&'a World) -> LocalBoxFuture<'a, ScenarioResult>,
}

#[derive(Debug, Default)]
struct Arguments {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
}

impl Arguments {
    fn parse(mut given: impl Iterator<Item = String>) -> Arguments {
        let mut arguments = Arguments::default();
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--exact" => arguments.exact = true,
                "--list" => arguments.list = true,
                "--ignored" => arguments.ignored = true,
                "--skip" => arguments.skip.extend(given.next()),
                "--test-threads" | "--format" | "--color" | "-Z" | "--logfile" => drop(given.next()),
                other if other.starts_with('-') => {}
                filter => arguments.filters.push(filter.to_string()),
            }
        }
        arguments
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |part: &String| if self.exact { name == part } else { name.contains(part.as_str()) };
        let wanted = self.filters.is_empty() || self.filters.iter().any(matches);
        wanted && !self.skip.iter().any(matches) && !self.ignored
    }
}

/// The `main` of a file of scenarios. `options` makes the cluster that they share.
pub fn run(options: fn(PathBuf) -> ClusterOptions, scenarios: &[Scenario]) -> ExitCode {
    let arguments = Arguments::parse(std::env::args().skip(1));
    let wanted: Vec<&Scenario> = scenarios.iter().filter(|s| arguments.wants(s.name)).collect();
    if arguments.list {
        wanted.iter().for_each(|s| println!("{}: test", s.name));
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("\nrunning {} test{}", wanted.len(), if wanted.len() == 1 { "" } else { "s" });
    let started = evenkeel_host::now();
    let Results { failures, skipped } = runtime.block_on(run_all(options, &wanted));
    runtime.shutdown_background();
    if !failures.is_empty() {
        println!("\nfailures:\n");
        for (name, why) in &failures {
            println!("---- {name} ----\n{why}\n");
        }
    }
    if !skipped.is_empty() {
        println!("\nNOT TESTED HERE: {}", skipped.join(", "));
    }
    let (failed, ignored) = (failures.len(), skipped.len());
    let passed = wanted.len() - failed - ignored;
    println!(
        "\ntest result: {}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        scenarios.len() - wanted.len(),
        evenkeel_host::elapsed(started).as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

async fn run_all(options: fn(PathBuf) -> ClusterOptions, wanted: &[&Scenario]) -> Results {
    let (mut failures, mut skipped) = (Vec::new(), Vec::new());
    let mut world: Option<World> = None;
    for scenario in wanted {
        print!("test {} ... ", scenario.name);
        // The line is completed at the end of the scenario. A failure to show it earlier is
        // ignored.
        drop(std::io::stdout().flush());
        let started = evenkeel_host::now();
        let outcome = run_one(options, scenario, &mut world).await;
        let seconds = evenkeel_host::elapsed(started).as_secs_f64();
        match outcome {
            Ok(Ended::Well) => println!("ok <{seconds:.1}s>"),
            Ok(Ended::Skipped(why)) => {
                println!("ignored, SKIPPED: {why}");
                skipped.push(scenario.name);
            }
            Err(why) => {
                println!("FAILED <{seconds:.1}s>");
                failures.push((scenario.name, why));
                if let Some(broken) = world.take() {
                    broken.stop().await;
                }
            }
        }
    }
    if let Some(world) = world {
        world.stop().await;
    }
    Results { failures, skipped }
}

/// The failed and the skipped scenarios.
struct Results {
    failures: Vec<(&'static str, String)>,
    skipped: Vec<&'static str>,
}

/// The end of a scenario that did not fail.
enum Ended {
    Well,
    /// It was skipped on this machine, for this reason.
    Skipped(String),
}

async fn run_one(
    options: fn(PathBuf) -> ClusterOptions,
    scenario: &Scenario,
    world: &mut Option<World>,
) -> Result<Ended, String> {
    if world.is_none() {
        let executable = executable()?;
        eprintln!("(the program under test is {})", executable.display());
        let mut options = options(executable);
        if let Some(root) = std::env::var_os("EVENKEEL_TEST_DATA_DIR") {
            options.data_dir = Some(PathBuf::from(root).join(scenario.name));
        }
        if let Ok(filter) = std::env::var("EVENKEEL_TEST_LOG") {
            options.log = filter;
        }
        *world = Some(World::start(options).await.map_err(|e| e.to_string())?);
    }
    let Some(world) = world else { return Err("there is no cluster".into()) };
    let running = AssertUnwindSafe((scenario.run)(world)).catch_unwind();
    let outcome = match evenkeel_host::timeout(TIMEOUT, running).await {
        Err(_) => Err(format!("it did not end within {} s", TIMEOUT.as_secs())),
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
            Err(format!("panicked: {}", text.unwrap_or_default()))
        }
        Ok(Ok(Ok(()))) => Ok(Ended::Well),
        Ok(Ok(Err(failure))) if failure.is_skipped() => Ok(Ended::Skipped(failure.to_string())),
        Ok(Ok(Err(failure))) => Err(failure.to_string()),
    };
    outcome.map_err(|why| format!("{why}\n\n{}", world.evidence()))
}

/// The program under test: `EVENKEEL_BIN`, or the one built beside this test.
fn executable() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("EVENKEEL_BIN") {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(format!("EVENKEEL_BIN = {}: no such file", path.display())) };
    }
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let beside = own.parent().and_then(|deps| deps.parent()).map(|profile| profile.join("evenkeel"));
    beside.filter(|path| path.is_file()).ok_or_else(|| {
        "the program under test is not built: cargo build -p evenkeel with the same profile, or make test".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Arguments {
        Arguments::parse(text.split_whitespace().map(str::to_string))
    }

    #[test]
    fn arguments_are_those_of_cargo_test() {
        assert!(parsed("").wants("a_move"));
        assert!(parsed("move --nocapture --test-threads 1").wants("a_move"));
        assert!(!parsed("move --exact").wants("a_move"));
        assert!(!parsed("--skip move").wants("a_move"));
        assert!(parsed("x move").wants("a_move"));
        assert!(!parsed("--ignored").wants("a_move"));
        assert!(parsed("--list").list);
    }
}
