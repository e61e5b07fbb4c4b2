//! Why a replica's process ends by itself.

use crate::postgres::PostgresError;
use evenkeel_replicated_log::StartError;
use std::net::SocketAddr;

/// Why the process ends without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// PostgreSQL cannot be found, made or started.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The log cannot be opened.
    #[error("the log cannot be opened: {0}")]
    Log(#[from] StartError),
    /// Going on would make this replica differ from its peers.
    #[error("stopped, because going on would make this replica differ: {0}")]
    Diverged(String),
    /// The log has stopped.
    #[error("the log has stopped")]
    LogStopped,
    /// Another replica has taken its place; nothing is left to do.
    #[error(
        "replica {replica} is no longer a member of shard {shard} since its epoch {epoch}; once the shard has a leader its folder can go"
    )]
    Removed {
        /// The shard.
        shard: evenkeel_protocol::ShardId,
        /// The replica.
        replica: u64,
        /// The first epoch without it.
        epoch: u32,
    },
}
