//! What becomes of a write that was answered before its COMMIT (R28).
//!
//! The shard that answered says on the same connection how the COMMIT ended. If the connection is lost, or another replica leads,
//! the write is asked about under its id, as a lost commit is (R14): the shard's next leader is whole, and knows for certain
//! (invariant 4). So a loss is never silent: the session's next statement, or [`crate::ClientSession::settled`], tells it.

use crate::error::ClientError;
use crate::retry::{Attempts, Repeat};
use crate::session::Session;
use crate::transaction::{Written, ask_again};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::ShardReply;
use evenkeel_protocol::{Durability, ShardId, SqlError, TxnId};
use evenkeel_rpc::ReplyStream;
use std::sync::Arc;
use tokio::sync::watch;

/// How long a shard is asked what became of a write, in milliseconds. It knows for certain for about this long after the write was sent (R14).
const ASK_MS: u64 = 20_000;

/// A write that has been answered and not yet committed.
pub(crate) struct Unsettled {
    pub rest: ReplyStream<ShardReply>,
    pub shard: ShardId,
    pub replica: u64,
    pub id: TxnId,
    pub durability: Durability,
}

/// What is known of it: `None` until its COMMIT has ended.
pub(crate) type Settling = watch::Receiver<Option<Result<(), ClientError>>>;

impl Unsettled {
    /// Finds out what becomes of it, in the background.
    pub(crate) fn settle(self, session: Arc<Session>) -> Settling {
        let (tell, settling) = watch::channel(None);
        tokio::spawn(async move {
            let settled = self.outcome(&session).await;
            // A session that has gone does not want to know.
            let _ = tell.send(Some(settled));
        });
        settling
    }

    async fn outcome(mut self, session: &Session) -> Result<(), ClientError> {
        tokio::select! {
            biased;
            reply = self.rest.next() => if let Some(ShardReply::Done) = reply { return Ok(()) },
            // It may be frozen, or cut off from the rest: whoever leads now knows.
            _ = session.another_leads(self.shard, self.replica) => {}
        }
        let mut attempts = Attempts::new(Repeat::Commit, session.now_ms(), ASK_MS).after_unknown();
        let asked = ask_again(session, self.shard, &Written::Nothing, self.id, &mut attempts).await;
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
