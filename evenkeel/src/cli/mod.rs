//! The command line: what can be asked for, and how a run of the program ends.
//!
//! Exit statuses: 0 done; 1 it failed, with one line on standard error that says why; 2 the command line or the configuration is
//! wrong, with one line that names the key, the value and what is accepted; 130 ended by a signal.

mod flags;
mod kv;
mod operator;
pub(crate) mod show;
mod sql;

use crate::cluster::ClusterError;
use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::roles::RoleError;
use clap::{Parser, Subcommand};
use flags::{BenchCommand, BenchFlags, DemoFlags, PlacementDriverFlags, ReplayFlags, ShardNodeFlags};
use operator::OperatorCommand;
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// PostgreSQL servers, cut into ranges that split and move by themselves until the load is even.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, propagate_version = true)]
struct Cli {
    /// What is logged to standard error, for example `info` or `evenkeel_shard_node=debug` [default: RUST_LOG, or warn; for
    /// the roles info]
    // Not called `log`: a role's `--log-addresses` is, and clap would take the one for the other.
    #[arg(long = "log", global = true, value_name = "FILTER")]
    log_filter: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a replica of the placement driver
    PlacementDriver(PlacementDriverFlags),
    /// Run a replica of a shard, with its own PostgreSQL
    ShardNode(ShardNodeFlags),
    /// Start a cluster on this machine, load one shard, and watch the load level itself
    Demo(DemoFlags),
    /// Run a workload against a cluster that is up, with the same checks and report as `demo`
    Replay(ReplayFlags),
    /// Measure beside plain PostgreSQL with synchronous standbys, and beside nginx
    Bench(BenchFlags),
    #[command(flatten)]
    Operator(OperatorCommand),
}

/// How a command failed.
#[derive(Debug)]
pub enum CommandError {
    /// A wrong configuration: status 2.
    Config(ConfigError),
    /// Anything else, in one line: status 1.
    Failed(String),
    /// A signal came: status 130.
    Interrupted,
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> CommandError {
        CommandError::Config(error)
    }
}

impl From<RoleError> for CommandError {
    fn from(error: RoleError) -> CommandError {
        match error {
            RoleError::Config(error) => CommandError::Config(error),
            RoleError::Run(line) => CommandError::Failed(line),
        }
    }
}

impl From<ClusterError> for CommandError {
    fn from(error: ClusterError) -> CommandError {
        match error {
            ClusterError::Config(error) => CommandError::Config(error),
            error => CommandError::failed(error),
        }
    }
}

impl CommandError {
    /// A failure with this error's text and causes.
    pub fn failed(error: impl std::error::Error) -> CommandError {
        CommandError::Failed(crate::roles::with_causes(&error))
    }
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    if let Err(error) = start_logging(&cli) {
        return report(&error.into());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&CommandError::Failed(format!("starting: {error}"))),
    };
    let done = runtime.block_on(run(cli.command));
    // What still reads standard input or waits for a peer must not hold up the end.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

async fn run(command: Command) -> Result<(), CommandError> {
    match command {
        Command::PlacementDriver(flags) => {
            let layers = layers(flags.config.as_deref(), flags.given())?;
            Ok(crate::roles::run_placement_driver(&layers, flags.end_with_stdin).await?)
        }
        Command::ShardNode(flags) => {
            let layers = layers(flags.config.as_deref(), flags.given())?;
            Ok(crate::roles::run_shard_node(&layers, flags.end_with_stdin).await?)
        }
        Command::Demo(flags) => crate::demo::demo(&layers(flags.config.as_deref(), flags.given())?).await,
        Command::Replay(flags) => crate::replay::replay(&layers(flags.config.as_deref(), flags.given())?).await,
        Command::Bench(BenchFlags { only_this: Some(BenchCommand::Failover(flags)), .. }) => {
            crate::bench::failover::failover(&layers(flags.config.as_deref(), flags.given())?).await
        }
        Command::Bench(BenchFlags { only_this: Some(BenchCommand::Size(flags)), .. }) => {
            crate::bench::size::size(&layers(flags.config.as_deref(), flags.given())?).await
        }
        Command::Bench(flags) => crate::bench::bench(&layers(flags.config.as_deref(), flags.given())?).await,
        Command::Operator(command) => {
            check_environment()?;
            operator::run(command).await
        }
    }
}

/// The layers of a command's configuration: this file, the process's environment, these flags.
fn layers(file: Option<&Path>, flags: Vec<(&'static str, String)>) -> Result<Layers, ConfigError> {
    let file = match file {
        None => None,
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|e| {
                ConfigError::value("config", &name, "flag --config", format!("a TOML file; this one: {e}"))
            })?;
            Some((name, text))
        }
    };
    Ok(Layers { file, environment: environment(), flags })
}

/// An operator's commands read no file, and know two variables. A mistyped one must not send an order to another cluster than was meant.
fn check_environment() -> Result<(), ConfigError> {
    let settings = [Setting::optional("url", Kind::Urls), Setting::optional("format", Kind::Text)];
    let layers = Layers { environment: environment(), ..Layers::default() };
    resolve::<serde_json::Value>(&settings, &crate::roles::all_keys(), &layers).map(drop)
}

fn environment() -> Vec<(String, String)> {
    let lossy = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    std::env::vars_os().map(lossy).collect()
}

/// clap's message in one line, without the usage that follows it. Help and version are no mistakes.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        error.exit();
    }
    let text = error.to_string();
    let message = text.split("\nUsage:").next().unwrap_or_default();
    let message = message.split("\n\nFor more information").next().unwrap_or_default();
    let line = ConfigError::new(message.trim_start_matches("error: "));
    eprintln!("evenkeel: {line} (see evenkeel --help)");
    ExitCode::from(2)
}

fn report(error: &CommandError) -> ExitCode {
    match error {
        CommandError::Config(error) => {
            eprintln!("evenkeel: {error}");
            ExitCode::from(2)
        }
        CommandError::Failed(line) => {
            eprintln!("evenkeel: {line}");
            ExitCode::FAILURE
        }
        CommandError::Interrupted => ExitCode::from(130),
    }
}

fn start_logging(cli: &Cli) -> Result<(), ConfigError> {
    use std::io::IsTerminal;
    // That a client goes away is no fault of the server: warp tells it as an error, and it has nothing else to tell.
    let default = match cli.command {
        Command::PlacementDriver(_) | Command::ShardNode(_) => "info,warp::server=off",
        _ => "warn,warp::server=off",
    };
    let flag = cli.log_filter.clone().map(|text| (text, "flag --log"));
    let given = flag.or_else(|| Some((std::env::var("RUST_LOG").ok()?, "environment RUST_LOG")));
    let (text, origin) = given.unwrap_or_else(|| (default.into(), "default"));
    let accepted = "levels and modules with commas between: info, evenkeel_shard_node=debug";
    let filter = EnvFilter::try_new(&text).map_err(|_| ConfigError::value("log", &text, origin, accepted))?;
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    Ok(())
}
