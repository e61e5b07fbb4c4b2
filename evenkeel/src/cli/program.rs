//! The program: it parses the arguments, starts logging, runs one command, and reports its end.

use crate::cli::admin::{self, AdminCommand};
use crate::cli::flags::{
    BenchCommand, BenchFlags, DemoFlags, GatewayFlags, PlacementDriverFlags, ReplayFlags, ShardNodeFlags,
};
use crate::cli::layers::{check_environment, layers};
use crate::config::ConfigError;
use crate::error::CommandError;
use crate::{bench, demo, replay, roles};
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// PostgreSQL servers, cut into ranges that split and move by themselves until the load is even.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, propagate_version = true)]
struct Cli {
    /// The log on standard error, for example `info` or `evenkeel_shard_node=debug`
    /// [default: RUST_LOG, or warn; for the roles info]
    // Not called `log`: a role's `--log-addresses` has that name, and clap would confuse the two.
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
    /// Run a gateway, to which any PostgreSQL client connects
    Gateway(GatewayFlags),
    /// Start a cluster on this machine, load one shard, and watch the load level itself
    Demo(DemoFlags),
    /// Run a workload against a cluster that is up, with the same checks and report as `demo`
    Replay(ReplayFlags),
    /// Measure beside plain PostgreSQL with synchronous standbys, and beside nginx
    Bench(BenchFlags),
    #[command(flatten)]
    Admin(AdminCommand),
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
    // Tasks that read standard input or wait for a peer must not delay the end.
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
            Ok(roles::run_placement_driver(&layers, flags.end_with_stdin).await?)
        }
        Command::ShardNode(flags) => {
            let layers = layers(flags.config.as_deref(), flags.given())?;
            Ok(roles::run_shard_node(&layers, flags.end_with_stdin).await?)
        }
        Command::Gateway(flags) => {
            let layers = layers(flags.config.as_deref(), flags.given())?;
            Ok(roles::run_gateway(&layers, flags.end_with_stdin).await?)
        }
        Command::Demo(flags) => demo::demo(&layers(flags.config.as_deref(), flags.given())?).await,
        Command::Replay(flags) => replay::replay(&layers(flags.config.as_deref(), flags.given())?).await,
        Command::Bench(BenchFlags { only_this: Some(BenchCommand::Failover(flags)), .. }) => {
            bench::failover::failover(&layers(flags.config.as_deref(), flags.given())?).await
        }
        Command::Bench(BenchFlags { only_this: Some(BenchCommand::Size(flags)), .. }) => {
            bench::size::size(&layers(flags.config.as_deref(), flags.given())?).await
        }
        Command::Bench(flags) => bench::bench(&layers(flags.config.as_deref(), flags.given())?).await,
        Command::Admin(command) => {
            check_environment()?;
            admin::run(command).await
        }
    }
}

/// Reports clap's message in one line, without the usage that follows it. Help and version are no
/// mistakes.
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
    // warp logs a client's disconnection as an error, and nothing else.
    let default = match cli.command {
        Command::PlacementDriver(_) | Command::ShardNode(_) | Command::Gateway(_) => "info,warp::server=off",
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
