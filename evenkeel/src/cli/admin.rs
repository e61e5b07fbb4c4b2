//! The administrator's commands: requests to the placement driver over REST, the coordination
//! store, and SQL statements through the client.
//!
//! Not done: nothing is confirmed interactively. A command either runs or is refused.

use crate::cli::admin_flags::{AdminFlags, OutputFormat};
use crate::cli::coordination::{self, KvCommand};
use crate::cli::{show, sql};
use crate::config::{ConfigError, Kind};
use crate::error::CommandError;
use clap::{Subcommand, ValueEnum};
use evenkeel_client::admin::percent_encode;
use evenkeel_local_cluster::operator_text::is_running;
use evenkeel_local_cluster::registration::shard_body;
use evenkeel_local_cluster::run::capacity;
use evenkeel_protocol::api::{
    DecisionsBody, MoveBody, OperatorBody, RangeBody, RouteLookupBody, RoutesBody, ShardBody, SplitBody,
};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::NewReplica;
use evenkeel_protocol::{OperatorId, RangeId, ShardId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// The interval between two requests of `--wait`, in milliseconds.
const WAIT_POLL_MS: u64 = 100;

/// An administrator's commands.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Show which shard owns which range
    Routes {
        #[command(flatten)]
        flags: AdminFlags,
        /// Only this table
        #[arg(long, value_name = "NAME")]
        table: Option<String>,
        /// Only the range that holds this key: JSON, an array for keys of several columns; needs
        /// --table
        #[arg(long, value_name = "JSON", requires = "table")]
        key: Option<String>,
    },
    /// Show ranges and their load
    Ranges {
        #[command(flatten)]
        flags: AdminFlags,
    },
    /// Show shards, add one, drain one, hand over its leadership
    Shards {
        #[command(flatten)]
        flags: AdminFlags,
        #[command(subcommand)]
        command: Option<ShardsCommand>,
    },
    /// Show the placement driver's replicas, let one in, take one out
    Members {
        #[command(flatten)]
        flags: AdminFlags,
        #[command(subcommand)]
        command: Option<MembersCommand>,
    },
    /// Split a range
    Split {
        #[command(flatten)]
        flags: AdminFlags,
        /// The range
        range: RangeId,
        /// Where: JSON, an array for keys of several columns; may be repeated [default: the median
        /// of its load]
        #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
        at: Vec<String>,
        /// Wait until it is done
        #[arg(long)]
        wait: bool,
    },
    /// Move a range to another shard
    Move {
        #[command(flatten)]
        flags: AdminFlags,
        /// The range
        range: RangeId,
        /// The shard it goes to
        shard: ShardId,
        /// Wait until it is done
        #[arg(long)]
        wait: bool,
    },
    /// Show splits, merges and moves, cancel one, or delete what one left
    Operators {
        #[command(flatten)]
        flags: AdminFlags,
        /// Only those under way
        #[arg(long)]
        running: bool,
        #[command(subcommand)]
        command: Option<OperatorsCommand>,
    },
    /// Show what the balancer decided and why, and why it does nothing now
    Decisions {
        #[command(flatten)]
        flags: AdminFlags,
        /// How many
        #[arg(long, default_value_t = 10)]
        last: usize,
    },
    /// Turn the balancer on or off
    Balancer {
        #[command(flatten)]
        flags: AdminFlags,
        /// What to do with it; without it the state is shown
        state: Option<Switch>,
    },
    /// Read and write the coordination store of the placement driver
    Kv {
        #[command(flatten)]
        flags: AdminFlags,
        #[command(subcommand)]
        command: KvCommand,
    },
    /// Execute SQL statements, one after the other, in one session
    Sql {
        #[command(flatten)]
        flags: AdminFlags,
        #[command(flatten)]
        levels: sql::LevelFlags,
        /// The statements, one per argument, without parameters
        #[arg(required = true, value_name = "STATEMENT")]
        statements: Vec<String>,
    },
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It plans.
    On,
    /// It leaves everything where it is.
    Off,
}

/// What to do with a shard.
#[derive(Debug, Subcommand)]
pub enum ShardsCommand {
    /// Add a shard whose replicas are up
    Add {
        /// Its number
        shard: ShardId,
        /// Where its replicas listen for clients: 1=IP:PORT,2=IP:PORT,3=IP:PORT
        replicas: String,
    },
    /// Move everything off a shard, then remove it
    Drain {
        /// The shard
        shard: ShardId,
    },
    /// Take a shard back that is being drained; what has left it stays where it is
    Undrain {
        /// The shard
        shard: ShardId,
    },
    /// Hand the shard's leadership to another replica
    TransferLeader {
        /// The shard
        shard: ShardId,
        /// To this replica [default: any that is up to date]
        #[arg(long)]
        to: Option<u64>,
    },
    /// Take a replica out of a shard, let a new one in, or both at once; it waits until that is
    /// done
    Replicas {
        /// The shard
        shard: ShardId,
        /// The replica that leaves
        #[arg(long, value_name = "NUMBER")]
        remove: Option<u64>,
        /// The replica that comes: its process runs, with `join = true` and an empty folder
        #[arg(long, value_name = "NUMBER", requires = "rpc", requires = "log_address")]
        add: Option<u64>,
        /// Where the new one listens for clients
        #[arg(long, value_name = "IP:PORT", requires = "add")]
        rpc: Option<SocketAddr>,
        /// Where the new one listens for the shard's replicas
        #[arg(long, value_name = "IP:PORT", requires = "add")]
        log_address: Option<SocketAddr>,
    },
}

/// What to do with the placement driver's own replicas.
#[derive(Debug, Subcommand)]
pub enum MembersCommand {
    /// Let a replica in: its process runs, with `join = true` and an empty folder
    Add {
        /// Its number
        replica: u64,
        /// Where it listens for REST
        #[arg(long, value_name = "IP:PORT")]
        rest: SocketAddr,
        /// Where it listens for shards
        #[arg(long, value_name = "IP:PORT")]
        rpc: SocketAddr,
        /// Where it listens for the other replicas
        #[arg(long, value_name = "IP:PORT")]
        log_address: SocketAddr,
    },
    /// Take a replica out
    Remove {
        /// Its number
        replica: u64,
    },
}

/// What to do with an operator.
#[derive(Debug, Subcommand)]
pub enum OperatorsCommand {
    /// Cancel a move that is not fenced yet
    Cancel {
        /// The operator
        operator: OperatorId,
    },
    /// Show one
    Show {
        /// The operator
        operator: OperatorId,
    },
    /// Have a move's source take its range back, because the destination is lost for good after the
    /// fence
    TakeBack {
        /// The operator
        operator: OperatorId,
        /// Confirms that the destination's disks are gone, or will be emptied before any of its
        /// machines starts again: whatever it has acknowledged is lost, and its shard number is
        /// never used again
        #[arg(long, required = true)]
        destination_is_lost_for_good: bool,
    },
    /// Delete the copy that a move has left at its source because the two copies could not be
    /// compared, or differ
    Purge {
        /// The operator
        operator: OperatorId,
    },
}

/// Runs one command.
pub async fn run(command: AdminCommand) -> Result<(), CommandError> {
    match command {
        AdminCommand::Routes { flags, table, key: Some(key) } => {
            let table = percent_encode(&table.unwrap_or_default());
            let path = format!("/v1/routes/{table}?key={}", percent_encode(&key));
            ask::<RouteLookupBody>(&flags, &path, show::route).await
        }
        AdminCommand::Routes { flags, table, key: None } => {
            let query = table.map(|t| format!("?table={}", percent_encode(&t))).unwrap_or_default();
            ask::<RoutesBody>(&flags, &format!("/v1/routes{query}"), show::routes).await
        }
        AdminCommand::Ranges { flags } => ranges(&flags).await,
        AdminCommand::Shards { flags, command } => shards(&flags, command).await,
        AdminCommand::Members { flags, command } => members(&flags, command).await,
        AdminCommand::Split { flags, range, at, wait } => {
            let at = at.iter().map(|text| key_columns(text)).collect::<Result<_, _>>()?;
            create_operator(&flags, &format!("/v1/ranges/{range}/split"), &SplitBody { at }, wait).await
        }
        AdminCommand::Move { flags, range, shard, wait } => {
            create_operator(&flags, &format!("/v1/ranges/{range}/move"), &MoveBody { to: shard }, wait).await
        }
        AdminCommand::Operators { flags, running, command } => operators(&flags, running, command).await,
        AdminCommand::Decisions { flags, last } => {
            let mut answer: Json = flags.admin().get("/v1/decisions").await.map_err(CommandError::failed)?;
            // The newest come first.
            if let Some(decisions) = answer["decisions"].as_array_mut() {
                decisions.truncate(last);
            }
            present::<DecisionsBody>(&flags, answer, show::decisions)
        }
        AdminCommand::Balancer { flags, state: None } => ask::<Json>(&flags, "/v1/balancer", show::balancer).await,
        AdminCommand::Balancer { flags, state: Some(state) } => {
            let body = serde_json::json!({ "enabled": state == Switch::On });
            let answer = flags.admin().post::<_, Json>("/v1/balancer", &body).await.map_err(CommandError::failed)?;
            done(&flags, &answer, if state == Switch::On { "the balancer is on" } else { "the balancer is off" })
        }
        AdminCommand::Kv { flags, command } => coordination::run(&flags, command).await,
        AdminCommand::Sql { flags, levels, statements } => {
            sql::execute(flags.urls(), levels, &statements, flags.format()).await
        }
    }
}

/// Sends a request and prints the answer; with JSON, unchanged.
async fn ask<T: DeserializeOwned>(
    flags: &AdminFlags,
    path: &str,
    text: impl FnOnce(&T) -> String,
) -> Result<(), CommandError> {
    let answer: Json = flags.admin().get(path).await.map_err(CommandError::failed)?;
    present(flags, answer, text)
}

fn present<T: DeserializeOwned>(
    flags: &AdminFlags,
    answer: Json,
    text: impl FnOnce(&T) -> String,
) -> Result<(), CommandError> {
    if flags.format() == OutputFormat::Json {
        return print_json(&answer);
    }
    let body = serde_json::from_value(answer)
        .map_err(|e| CommandError::Failed(format!("the answer cannot be understood: {e}")))?;
    println!("{}", text(&body));
    Ok(())
}

fn print_json(answer: &impl Serialize) -> Result<(), CommandError> {
    println!("{}", serde_json::to_string_pretty(answer).map_err(CommandError::failed)?);
    Ok(())
}

fn done(flags: &AdminFlags, answer: &Json, sentence: &str) -> Result<(), CommandError> {
    if flags.format() == OutputFormat::Json {
        return print_json(answer);
    }
    println!("{sentence}");
    Ok(())
}

/// Prints the ranges, and the rate limit of the shards, if they have one.
async fn ranges(flags: &AdminFlags) -> Result<(), CommandError> {
    ask::<Vec<RangeBody>>(flags, "/v1/ranges", |r| show::ranges(r)).await?;
    if flags.format() == OutputFormat::Table {
        let shards: Vec<ShardBody> = flags.admin().get("/v1/shards").await.map_err(CommandError::failed)?;
        if let Some(limit) = capacity(&shards) {
            println!("(each shard is limited to {limit} statements/s)");
        }
    }
    Ok(())
}

async fn shards(flags: &AdminFlags, command: Option<ShardsCommand>) -> Result<(), CommandError> {
    let admin = flags.admin();
    match command {
        None => ask::<Vec<ShardBody>>(flags, "/v1/shards", |s| show::shards(s)).await,
        Some(ShardsCommand::Add { shard, replicas }) => {
            let info = ShardInfo { id: shard, replicas: replica_addresses(&replicas)? };
            let body = shard_body(info);
            let answer: Json = admin.post("/v1/shards", &body).await.map_err(CommandError::failed)?;
            let sentence = match answer["status"].as_str() {
                Some("draining") => format!("shard {shard} is there, and goes on being drained: see shards undrain"),
                _ => format!("shard {shard} is added"),
            };
            done(flags, &answer, &sentence)
        }
        Some(ShardsCommand::Drain { shard }) => {
            let answer: Json = admin.delete(&format!("/v1/shards/{shard}")).await.map_err(CommandError::failed)?;
            done(flags, &answer, &format!("shard {shard} is being drained; it is removed when nothing is left on it"))
        }
        Some(ShardsCommand::Undrain { shard }) => {
            let path = format!("/v1/shards/{shard}/undrain");
            let answer: Json = admin.post(&path, &serde_json::json!({})).await.map_err(CommandError::failed)?;
            done(flags, &answer, &format!("shard {shard} is no longer being drained"))
        }
        Some(ShardsCommand::TransferLeader { shard, to }) => {
            let body = serde_json::json!({ "to": to });
            let path = format!("/v1/shards/{shard}/transfer-leader");
            let answer: Json = admin.post(&path, &body).await.map_err(CommandError::failed)?;
            done(flags, &answer, &format!("shard {shard}'s leader was asked to hand over"))
        }
        Some(ShardsCommand::Replicas { shard, remove, add, rpc, log_address }) => {
            // The parser accepts all three or none.
            let new = add.zip(rpc).zip(log_address).map(|((replica, rpc), log)| NewReplica { replica, rpc, log });
            let body = serde_json::json!({ "remove": remove, "add": new });
            let path = format!("/v1/shards/{shard}/replicas");
            let answer: Json = admin.post(&path, &body).await.map_err(CommandError::failed)?;
            done(
                flags,
                &answer,
                &format!("shard {shard} has its replicas; what left may be stopped and its folder removed"),
            )
        }
    }
}

async fn members(flags: &AdminFlags, command: Option<MembersCommand>) -> Result<(), CommandError> {
    let body = match command {
        None => return ask::<Json>(flags, "/v1/members", show::members).await,
        Some(MembersCommand::Add { replica, rest, rpc, log_address }) => {
            serde_json::json!({ "add": [{ "replica": replica, "rest": rest, "rpc": rpc, "log": log_address }] })
        }
        Some(MembersCommand::Remove { replica }) => serde_json::json!({ "remove": [replica] }),
    };
    let answer: Json = flags.admin().post("/v1/members", &body).await.map_err(CommandError::failed)?;
    done(flags, &answer, "the placement driver has its replicas; what left may be stopped and its folder removed")
}

async fn operators(flags: &AdminFlags, running: bool, command: Option<OperatorsCommand>) -> Result<(), CommandError> {
    let admin = flags.admin();
    match command {
        None => {
            let answer: Vec<Json> = admin.get("/v1/operators").await.map_err(CommandError::failed)?;
            let wanted = |o: &Json| !running || matches!(o["status"].as_str(), Some("running" | "cancelling"));
            let answer = answer.into_iter().filter(wanted).collect();
            present::<Vec<OperatorBody>>(flags, Json::Array(answer), |o| show::operators(o))
        }
        Some(OperatorsCommand::Show { operator }) => {
            ask::<OperatorBody>(flags, &format!("/v1/operators/{operator}"), |o| {
                show::operators(std::slice::from_ref(o))
            })
            .await
        }
        Some(OperatorsCommand::Purge { operator }) => {
            let answer: Json =
                admin.delete(&format!("/v1/operators/{operator}/copy")).await.map_err(CommandError::failed)?;
            done(
                flags,
                &answer,
                &format!("nothing is left of what operator {operator} moved away from shard {}", answer["shard"]),
            )
        }
        Some(OperatorsCommand::TakeBack { operator, destination_is_lost_for_good }) => {
            let path = format!("/v1/operators/{operator}/take-back");
            let body = serde_json::json!({ "destination_is_lost_for_good": destination_is_lost_for_good });
            let answer: Json = admin.post(&path, &body).await.map_err(CommandError::failed)?;
            done(flags, &answer, &format!("the source of operator {operator} takes the range back"))
        }
        Some(OperatorsCommand::Cancel { operator }) => {
            let path = format!("/v1/operators/{operator}");
            let answer: Json = admin.delete(&path).await.map_err(CommandError::failed)?;
            done(
                flags,
                &answer,
                &format!("operator {operator} is being cancelled; after its fence it only goes forward"),
            )
        }
    }
}

/// Sends a request that creates an operator, and waits for the operator's end if asked to.
async fn create_operator(
    flags: &AdminFlags,
    path: &str,
    body: &impl Serialize,
    wait: bool,
) -> Result<(), CommandError> {
    let admin = flags.admin();
    let mut operator: OperatorBody = admin.post(path, body).await.map_err(CommandError::failed)?;
    let started = evenkeel_host::now();
    while wait && is_running(&operator) {
        evenkeel_host::sleep(Duration::from_millis(WAIT_POLL_MS)).await;
        operator = match admin.get(&format!("/v1/operators/{}", operator.id)).await {
            Ok(operator) => operator,
            Err(error) if error.is_temporary() && evenkeel_host::elapsed(started) < Duration::from_secs(600) => {
                continue;
            }
            Err(error) => return Err(CommandError::failed(error)),
        };
    }
    if flags.format() == OutputFormat::Json {
        print_json(&operator)?;
    } else {
        println!("{}", show::operators(std::slice::from_ref(&operator)));
    }
    match operator.status.as_str() {
        "done" | "running" | "cancelling" => Ok(()),
        other => Err(CommandError::Failed(format!("operator {} ended as {other}", operator.id))),
    }
}

/// The columns of a key given as JSON. A bare value is a key of one column.
fn key_columns(text: &str) -> Result<Vec<Json>, CommandError> {
    match serde_json::from_str(text) {
        Ok(Json::Array(columns)) => Ok(columns),
        Ok(column) => Ok(vec![column]),
        Err(_) => Err(CommandError::Config(ConfigError::value(
            "at",
            text,
            "flag --at",
            "JSON: 100, \"text\", or [1, \"b\"] for a key of several columns",
        ))),
    }
}

fn replica_addresses(text: &str) -> Result<BTreeMap<u64, SocketAddr>, CommandError> {
    let parse = |part: &str| -> Option<(u64, SocketAddr)> {
        let (number, address) = part.trim().split_once('=')?;
        Some((number.parse().ok()?, address.parse().ok()?))
    };
    text.split(',')
        .map(parse)
        .collect::<Option<_>>()
        .ok_or_else(|| CommandError::Config(ConfigError::value("replicas", text, "argument", Kind::Addresses)))
}
