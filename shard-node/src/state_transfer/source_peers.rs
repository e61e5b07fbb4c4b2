//! The peers that can give their state or their rows.

use crate::config::Config;
use crate::migration::peers;
use crate::replica::membership;
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use evenkeel_replicated_log::LogHandle;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a peer may send nothing, in milliseconds.
pub(super) const SILENCE_MS: u64 = 15_000;
/// How long a peer may take to say how far it is, in milliseconds.
pub(super) const ASK_MS: u64 = 2_000;

/// Peers that hold everything up to `position`, those that do not lead first: a follower has more
/// time than the leader.
pub(super) async fn peers_at(config: &Config, log: &LogHandle, position: u64) -> Vec<SocketAddr> {
    // Of the newest epoch that is known: it may be the one that this replica is about to enter.
    let replicas = membership::addresses(&log.membership().borrow());
    let others = replicas.into_iter().filter(|(replica, _)| *replica != config.replica);
    let asked = others.map(|(_, address)| async move {
        match peers::ask(address, &ShardRequest::Inspect, Duration::from_millis(ASK_MS)).await {
            Ok(ShardReply::Inspect(peer)) if !peer.seeding && peer.applied >= position => Some((peer.leads, address)),
            _ => None,
        }
    });
    let mut found: Vec<_> = futures::future::join_all(asked).await.into_iter().flatten().collect();
    found.sort();
    found.into_iter().map(|(_, address)| address).collect()
}
