//! Whether a destination is ready for the fence (R22): its PostgreSQL servers, and not only its log, hold what has come in, as it was sent.
//!
//! What is decided here and not yet applied has to be applied before the range is served, by the next leader too if this one dies right
//! behind the fence. So a majority's PostgreSQL must hold the copy and nearly all of the log: any election then finds one that does.
//! And each of them has compared what it stored with what the source says of it (R24).

use super::peers;
use crate::leader::Leader;
use crate::move_observations::MoveObservations;
use crate::replica::membership;
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::net::SocketAddr;
use std::time::Duration;

/// Positions of this shard's log that may be on their way into a replica's PostgreSQL, and bytes. Under load followers apply what 20 ms
/// have gathered at a time, and are always a few hundred entries behind; so much is applied in some ten milliseconds.
const MAX_LAG_POSITIONS: u64 = 1_000;
const MAX_LAG_BYTES: u64 = 2 << 20;
/// How long a replica may take to say how far it is, in milliseconds.
const ASK_MS: u64 = 500;

/// What the replicas say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// A majority has stored the copy as it was sent, and nearly all that is decided.
    Ready,
    /// Not yet.
    NotYet,
    /// A replica has stored something else than what was sent; what, in one sentence.
    Differs(String),
}

/// Whether the PostgreSQL of a majority of this shard's replicas holds everything up to `copied`, as the copy brought it, and nearly all
/// that is decided.
pub async fn stored_by_majority(
    leader: &Leader,
    checks: &MoveObservations,
    of: (OperatorId, u64),
    copied: u64,
) -> Stored {
    let (log, progress) = (&leader.shared().log, &leader.shared().progress);
    if let Some(detail) = checks.differing(of.0, of.1) {
        return Stored::Differs(detail);
    }
    let decided = log.status().decided.0;
    let is_ready = |applied: u64| near(applied, copied, decided, progress.bytes_after(applied));
    let replicas = membership::addresses(&log.membership().borrow());
    let others = replicas.iter().filter(|(replica, _)| **replica != log.me().0);
    let mut asked: FuturesUnordered<_> = others.map(|(_, address)| stored(*address, of)).collect();
    let majority = replicas.len() / 2 + 1;
    let mut ready = usize::from(is_ready(progress.watermark()));
    while ready < majority {
        match asked.next().await {
            Some(Some((_, Some(detail)))) => return Stored::Differs(detail),
            Some(Some((applied, None))) => ready += usize::from(is_ready(applied)),
            Some(None) => {}
            None => return Stored::NotYet,
        }
    }
    Stored::Ready
}

/// Whether a replica that has applied so much, and lacks so many bytes, is near enough to what is decided.
fn near(applied: u64, copied: u64, decided: u64, lacks_bytes: u64) -> bool {
    applied >= copied && applied.saturating_add(MAX_LAG_POSITIONS) >= decided && lacks_bytes <= MAX_LAG_BYTES
}

/// How far a replica has applied its log, and how what it has stored of the copy differs; `None` if it does not say.
async fn stored(address: SocketAddr, (operator, attempt): (OperatorId, u64)) -> Option<(u64, Option<String>)> {
    let request = ShardRequest::CopyStored { operator, attempt };
    match peers::ask(address, &request, Duration::from_millis(ASK_MS)).await {
        Ok(ShardReply::CopyStored { applied, differs }) => Some((applied, differs)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_must_be_in_and_the_log_nearly() {
        assert!(near(70, 70, 80, 100), "the copy is in, and little of the log is missing");
        assert!(!near(69, 70, 80, 100), "the copy must be in, however little is missing");
        assert!(near(4_000, 70, 5_000, 100) && !near(3_999, 70, 5_000, 100));
        assert!(!near(4_990, 70, 5_000, 10 << 20), "ten rows of 1 MiB are more than a thousand of 1 KiB");
    }
}
