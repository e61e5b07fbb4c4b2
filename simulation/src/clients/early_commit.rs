//! Writes that are answered before their COMMIT, at durability `memory` or `local` (R28), and how
//! their outcome is resolved.
//!
//! A client waits for the end of the COMMIT on the connection of the answer. If that does not come,
//! it asks the shard's next leader, which knows the outcome for certain.

use super::client::{SimulatedClient, Step};
use crate::history::events::{Loss, ShardReplica};
use crate::process::{self, once_in};
use evenkeel_protocol::shard::{Durability, ShardReply, ShardRequest};
use evenkeel_protocol::{Failure, TxnId};
use evenkeel_rpc::ReplyStream;
use std::time::Duration;

/// How long it waits on the same connection for the end of the COMMIT, in milliseconds.
const COMMIT_MS: u64 = 1_500;
/// How long it asks for the outcome, in milliseconds. The shard knows for 20 s (R14).
const ASK_MS: u64 = 8_000;

/// A write, as its client knows it.
pub(super) struct Write {
    pub id: TxnId,
    pub key: i64,
    pub how: &'static str,
    pub sent_ms: u64,
    pub shard: u32,
}

/// The outcome of a COMMIT at a durability below `disk`.
pub(super) enum Early {
    /// Its end is known, or cannot be known; the history has it.
    Recorded,
    /// It has not happened, and will not.
    Never,
    /// It may have happened.
    Perhaps,
    /// It was not sent.
    NotSent,
}

/// The outcome of a write.
enum WriteOutcome {
    Kept,
    /// Whether the replica that answered it has said that its leadership is over.
    Lost {
        deposed: bool,
    },
    Unknown,
}

/// A durability below `disk`.
pub(super) fn drawn_durability() -> Durability {
    if once_in(3) { Durability::Local } else { Durability::Memory }
}

/// Commits a transaction at a durability below `disk`; `value` is what it gave to the counter that
/// `write` names.
pub(super) async fn commit_early(
    client: &mut SimulatedClient,
    transaction: u64,
    write: &Write,
    value: Option<i64>,
) -> Early {
    let durability = drawn_durability();
    let request = ShardRequest::Commit { transaction, id: write.id, key: None, durability };
    let mut shard = write.shard;
    match client.ask_early(&mut shard, &request, write.key).await {
        Step::Answered((ShardReply::Early(_), rest)) => {
            resolve(client, write, durability, value, rest).await;
            Early::Recorded
        }
        Step::Answered(_) => {
            client.record(write.key, write.how, write.sent_ms, value);
            Early::Recorded
        }
        Step::Perhaps => Early::Perhaps,
        Step::Never => Early::Never,
        Step::Again => Early::NotSent,
    }
}

/// A write was answered before its COMMIT: waits for that, and records the outcome. `true` if
/// it was kept.
pub(super) async fn resolve(
    client: &mut SimulatedClient,
    write: &Write,
    durability: Durability,
    value: Option<i64>,
    rest: ReplyStream<ShardReply>,
) -> bool {
    let early = match durability {
        Durability::Local => "writes answered at local",
        _ => "writes answered at memory",
    };
    client.users.history.borrow_mut().count(early);
    let Some(by) = client.by else { return false };
    match fate(client, write, by, rest).await {
        WriteOutcome::Kept => {
            client.record(write.key, write.how, write.sent_ms, value);
            true
        }
        WriteOutcome::Lost { deposed } => {
            let (sent_ms, told_ms, told_by) = (write.sent_ms, process::now_ms(), client.by.unwrap_or(by));
            let mut history = client.users.history.borrow_mut();
            history.losses.push(Loss { durability, by, sent_ms, told_ms, told_by, deposed });
            history.count(if durability == Durability::Local { "lost from local" } else { "lost from memory" });
            false
        }
        WriteOutcome::Unknown => {
            client.record(write.key, write.how, write.sent_ms, None);
            false
        }
    }
}

async fn fate(
    client: &mut SimulatedClient,
    write: &Write,
    by: ShardReplica,
    mut rest: ReplyStream<ShardReply>,
) -> WriteOutcome {
    let mut deposed = false;
    match evenkeel_host::timeout(Duration::from_millis(COMMIT_MS), rest.next()).await {
        Ok(Some(ShardReply::Done)) => return WriteOutcome::Kept,
        Ok(Some(ShardReply::Failed(failure))) => {
            deposed = matches!(failure, Failure::NotLeader { .. });
            if deposed {
                client.denied(by, write.sent_ms);
            }
        }
        Ok(Some(other)) => {
            client.users.history.borrow_mut().wrong(format!("a write answered early was answered again: {other:?}"));
        }
        // The connection is lost, or the shard is very slow.
        Ok(None) | Err(_) => {}
    }
    let deadline_ms = process::now_ms() + ASK_MS;
    while process::now_ms() < deadline_ms {
        // Where it was answered: that shard knows, whatever has moved since.
        let mut shard = write.shard;
        let transaction = client.id().sequence;
        let request = ShardRequest::Commit { transaction, id: write.id, key: None, durability: Durability::Disk };
        match client.ask(&mut shard, &request, write.key).await {
            Step::Answered(_) => return WriteOutcome::Kept,
            Step::Never if client.refused_with("40001") => return WriteOutcome::Lost { deposed },
            Step::Never | Step::Again | Step::Perhaps => {}
        }
    }
    WriteOutcome::Unknown
}
