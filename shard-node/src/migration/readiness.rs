//! Whether a destination is ready for the fence (R22): its PostgreSQL servers, and not only its
//! log, contain the copy as it was sent.
//!
//! Decided entries have to be applied before the range is served, also by the next leader if this
//! one fails right after the fence. So the PostgreSQL of a majority must contain the copy and
//! nearly the whole log: any election then finds a replica that does. Each of these replicas has
//! compared the stored rows with the source's checksums (R24).

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

/// Positions of this shard's log that a replica's PostgreSQL may lack. Under load followers apply
/// write batches of 20 ms, and always lag by a few hundred entries. PostgreSQL applies these in
/// about ten milliseconds.
const MAX_LAG_POSITIONS: u64 = 1_000;
/// The same in bytes.
const MAX_LAG_BYTES: u64 = 2 << 20;
/// How long a replica may take to answer, in milliseconds.
const ASK_MS: u64 = 500;

/// The answer of the replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// A majority has stored the copy as it was sent, and nearly all decided entries.
    Ready,
    /// Not yet.
    NotYet,
    /// A replica has stored rows that differ from the copy. The difference, in one sentence.
    Differs(String),
}

/// Whether the PostgreSQL of a majority of this shard's replicas contains everything up to
/// `copied`, equal to the copy, and nearly all decided entries.
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

/// Whether a replica that has applied up to `applied`, and lacks `lacks_bytes`, is close enough to
/// the decided position.
fn near(applied: u64, copied: u64, decided: u64, lacks_bytes: u64) -> bool {
    applied >= copied && applied.saturating_add(MAX_LAG_POSITIONS) >= decided && lacks_bytes <= MAX_LAG_BYTES
}

/// The position that a replica has applied, and how its rows differ from the copy; `None` if it
/// does not answer.
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
    fn the_whole_copy_and_nearly_the_whole_log_must_be_stored() {
        assert!(near(70, 70, 80, 100), "the copy is stored, and little of the log is missing");
        assert!(!near(69, 70, 80, 100), "the copy must be stored, however little is missing");
        assert!(near(4_000, 70, 5_000, 100) && !near(3_999, 70, 5_000, 100));
        assert!(!near(4_990, 70, 5_000, 10 << 20), "ten rows of 1 MiB are more than a thousand of 1 KiB");
    }
}
