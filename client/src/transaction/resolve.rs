//! The outcome of a write that was acknowledged early, before its COMMIT (R28).
//!
//! The shard that acknowledged the write reports on the same connection how its COMMIT ended. If
//! the connection is lost, or another replica leads, the shard is asked about the write's id, as
//! after a lost commit (R14): its next leader has the whole log and knows for certain (invariant
//! 4). A loss is therefore never silent. The session's next statement, or
//! [`crate::Session::resolved`], reports it.

use super::recommit::{FirstChange, recommit};
use crate::core::ClientCore;
use crate::error::ClientError;
use crate::reply::ReplicaReply;
use crate::retry::{Attempts, Repeat};
use crate::who_leads::another_leads;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::ShardReply;
use evenkeel_protocol::{Durability, ShardId, SqlError, TxnId};
use evenkeel_rpc::ReplyStream;
use std::sync::Arc;
use tokio::sync::watch;

/// How long a shard is asked for the outcome of a write, in milliseconds. It knows the outcome for
/// certain for about this long after the write was sent (R14).
const ASK_MS: u64 = 20_000;

/// A write that was acknowledged and is not yet committed.
pub(crate) struct EarlyWrite {
    outcome: ReplyStream<ShardReply>,
    sent_ms: u64,
    shard: ShardId,
    replica: u64,
    id: TxnId,
    durability: Durability,
}

/// The outcome of an early write: `None` until its COMMIT has ended.
pub(crate) type Resolution = watch::Receiver<Option<Result<(), ClientError>>>;

impl EarlyWrite {
    /// The reply, and the early write that it acknowledges, if it does.
    pub(crate) fn split(reply: ReplicaReply, id: TxnId, durability: Durability) -> (ShardReply, Option<EarlyWrite>) {
        let ReplicaReply { reply, shard, replica, sent_ms, outcome, .. } = reply;
        let early = outcome.map(|outcome| EarlyWrite { outcome, sent_ms, shard, replica, id, durability });
        (reply, early)
    }

    /// Finds out the outcome, in the background.
    pub(crate) fn resolve(self, core: Arc<ClientCore>) -> Resolution {
        let (report, resolution) = watch::channel(None);
        tokio::spawn(async move {
            let outcome = self.find_out(&core).await;
            // Fails if the session is gone.
            let _ = report.send(Some(outcome));
        });
        resolution
    }

    async fn find_out(mut self, core: &ClientCore) -> Result<(), ClientError> {
        tokio::select! {
            biased;
            reply = self.outcome.next() => {
                if let Some(reply) = &reply {
                    core.observe((self.shard, self.replica), self.sent_ms, reply);
                }
                if let Some(ShardReply::Done) = reply {
                    return Ok(());
                }
            }
            // The replica may be frozen or partitioned; the new leader knows the outcome.
            _ = another_leads(core, self.shard, self.replica) => {}
        }
        let mut attempts = Attempts::new(Repeat::Commit, core.now_ms(), ASK_MS).after_unknown();
        let asked = recommit(core, self.shard, &FirstChange::None, self.id, &mut attempts).await;
        asked.map_err(|error| match error {
            ClientError::Rerun(_) => lost(self.durability),
            other => unknown(self.durability, &other),
        })
    }
}

fn lost(durability: Durability) -> ClientError {
    let message = format!("an earlier write of this session, answered at durability {durability}, has been lost");
    ClientError::WriteLost(
        SqlError::new(codes::WRITE_LOST, message)
            .hint("It has not happened, and this statement was not executed. Durability disk does not lose writes."),
    )
}

fn unknown(durability: Durability, error: &ClientError) -> ClientError {
    let message =
        format!("what became of an earlier write, answered at durability {durability}, is not known: {error}");
    ClientError::OutcomeUnknown(
        SqlError::new(codes::OUTCOME_UNKNOWN, message)
            .hint("This statement was not executed. Read the rows to find out."),
    )
}
