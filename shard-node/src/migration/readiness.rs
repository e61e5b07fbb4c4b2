//! Whether a destination is ready for the fence (R22): its PostgreSQL servers, and not only its log, hold what has come in.
//!
//! What is decided here and not yet applied has to be applied before the range is served, by the next leader too if this one dies right
//! behind the fence. So a majority's PostgreSQL must hold the copy and nearly all of the log: any election then finds one that does.

use super::peers;
use crate::leader::Leader;
use crate::members;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::time::Duration;

/// Positions of this shard's log that may be on their way into a replica's PostgreSQL. Under load followers apply what 20 ms have
/// gathered at a time, and are always a few hundred entries behind; a thousand are applied in some ten milliseconds.
const MAX_LAG_POSITIONS: u64 = 1_000;
/// How long a replica may take to say how far it is, in milliseconds.
const ASK_MS: u64 = 500;

/// Whether the PostgreSQL of a majority of this shard's replicas holds everything up to `copied`, and nearly all that is decided.
pub async fn applied_by_majority(leader: &Leader, copied: u64) -> bool {
    let log = &leader.shared().log;
    let wanted = wanted(copied, log.status().decided.0);
    let replicas = members::addresses(&log.membership().borrow());
    let others = replicas.iter().filter(|(replica, _)| **replica != log.me().0);
    let mut asked: FuturesUnordered<_> = others.map(|(_, address)| applied(*address)).collect();
    let majority = replicas.len() / 2 + 1;
    let mut ready = usize::from(leader.shared().progress.watermark() >= wanted);
    while ready < majority {
        match asked.next().await {
            Some(applied) => ready += usize::from(applied >= Some(wanted)),
            None => return false,
        }
    }
    true
}

/// The position up to which PostgreSQL must hold everything.
fn wanted(copied: u64, decided: u64) -> u64 {
    copied.max(decided.saturating_sub(MAX_LAG_POSITIONS))
}

/// How far a replica has applied its log; `None` if it does not say.
async fn applied(address: std::net::SocketAddr) -> Option<u64> {
    let asked = tokio::time::timeout(Duration::from_millis(ASK_MS), peers::inspect_one(address));
    asked.await.ok().flatten().map(|inspection| inspection.applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_must_be_in_and_the_log_nearly() {
        assert_eq!(wanted(70, 80), 70, "the copy, however little of the log is missing");
        assert_eq!(wanted(70, 5_000), 4_000);
        assert_eq!(wanted(4_990, 5_000), 4_990);
    }
}
