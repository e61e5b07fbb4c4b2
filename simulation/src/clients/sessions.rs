//! Sessions whose writes are answered before their COMMIT: durability `memory` and `local` (R28).
//!
//! As the product's client does, a session waits for its write's COMMIT before it goes on, and asks the shard's next leader if it is not told:
//! that one knows for certain. A write that was kept is an addition like any other, from when that was known; one that was lost is none at
//! all, and the oracle asks whether it could be lost.

use super::asking::{Client, Step};
use super::counters::ADD;
use super::{ADDITION, Loss, Replica, Users, wanted};
use crate::process::{self, below, once_in};
use evenkeel_protocol::shard::{Durability, ShardReply, ShardRequest};
use evenkeel_protocol::{Failure, TxnId};
use evenkeel_rpc::ReplyStream;
use std::time::Duration;

/// Between two writes of a session, in milliseconds, at most.
const THINK_MS: u64 = 25;
/// How long a session tries to get a write answered, in milliseconds.
const TRY_MS: u64 = 2_000;
/// How long it waits on the same connection for the end of the COMMIT, in milliseconds.
const COMMIT_MS: u64 = 1_500;
/// How long it asks what became of the write, in milliseconds. The shard knows for 20 s (R14).
const ASK_MS: u64 = 8_000;

/// A write and what its client knows of it.
pub(super) struct Write {
    pub id: TxnId,
    pub key: i64,
    pub how: &'static str,
    pub sent_ms: u64,
    pub shard: u32,
}

/// What came of a COMMIT at a durability below `disk`.
pub(super) enum Early {
    /// Its end is known, or that it cannot be known, and has been told.
    Told,
    /// It has not happened, and will not.
    Never,
    /// It may have happened.
    Perhaps,
    /// It was not sent.
    NotSent,
}

/// What became of a write.
enum Fate {
    Kept,
    /// Whether who answered it has said that its leadership was over.
    Lost {
        deposed: bool,
    },
    Unknown,
}

/// A session's work while it hurts.
pub(super) async fn run(users: Users, number: u64) {
    let mut client = Client::new(users.clone(), number);
    while users.told.borrow().healed_ms.is_none() {
        let key = wanted();
        client.add_early(key).await;
        // Its next statement sees its write.
        match below(4) {
            0 => client.read(key).await,
            1 => client.leader(key).await,
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(below(THINK_MS))).await;
    }
}

fn drawn() -> Durability {
    if once_in(3) { Durability::Local } else { Durability::Memory }
}

impl Client {
    /// Adds one at a durability below `disk`.
    async fn add_early(&mut self, key: i64) {
        let (id, durability, sent_ms) = (self.id(), drawn(), process::now_ms());
        let mut statement = Client::request(id, ADD, vec![key.into()]);
        statement.durability = durability;
        let request = ShardRequest::Statement(statement);
        let mut shard = self.route(key);
        let mut perhaps = false;
        while process::now_ms() < sent_ms + TRY_MS {
            match self.ask_early(&mut shard, &request, key).await {
                Step::Answered((ShardReply::Early(reply), rest)) => {
                    let value = reply.rows.int(0, 0).unwrap_or(-1);
                    let write = Write { id, key, how: ADDITION, sent_ms, shard };
                    let kept = self.settle(&write, durability, Some(value), rest).await;
                    if kept && once_in(4) {
                        self.again(id, key, value).await;
                    }
                    return;
                }
                // Answered before, or committed before it could be answered early.
                Step::Answered((ShardReply::Rows(reply), _)) => {
                    return self.tell(key, ADDITION, sent_ms, reply.rows.int(0, 0));
                }
                Step::Answered(_) | Step::Perhaps => perhaps = true,
                Step::Never if !perhaps => return,
                Step::Never | Step::Again => {}
            }
        }
        if perhaps {
            self.tell(key, ADDITION, sent_ms, None);
        }
    }

    /// Commits a transaction at a durability below `disk`; `value` is what it gave to the counter that `write` names.
    pub(super) async fn commit_early(&mut self, transaction: u64, write: &Write, value: Option<i64>) -> Early {
        let durability = drawn();
        let request = ShardRequest::Commit { transaction, id: write.id, key: None, durability };
        let mut shard = write.shard;
        match self.ask_early(&mut shard, &request, write.key).await {
            Step::Answered((ShardReply::Early(_), rest)) => {
                self.settle(write, durability, value, rest).await;
                Early::Told
            }
            Step::Answered(_) => {
                self.tell(write.key, write.how, write.sent_ms, value);
                Early::Told
            }
            Step::Perhaps => Early::Perhaps,
            Step::Never => Early::Never,
            Step::Again => Early::NotSent,
        }
    }

    /// A write was answered before its COMMIT: waits for that, and tells what became of it. `true` if it was kept.
    async fn settle(
        &mut self,
        write: &Write,
        durability: Durability,
        value: Option<i64>,
        rest: ReplyStream<ShardReply>,
    ) -> bool {
        let early = match durability {
            Durability::Local => "writes answered at local",
            _ => "writes answered at memory",
        };
        self.users.told.borrow_mut().count(early);
        let Some(by) = self.by else { return false };
        match self.fate(write, by, rest).await {
            Fate::Kept => {
                self.tell(write.key, write.how, write.sent_ms, value);
                true
            }
            Fate::Lost { deposed } => {
                let (sent_ms, told_ms, told_by) = (write.sent_ms, process::now_ms(), self.by.unwrap_or(by));
                let mut told = self.users.told.borrow_mut();
                told.losses.push(Loss { durability, by, sent_ms, told_ms, told_by, deposed });
                told.count(if durability == Durability::Local { "lost from local" } else { "lost from memory" });
                false
            }
            Fate::Unknown => {
                self.tell(write.key, write.how, write.sent_ms, None);
                false
            }
        }
    }

    async fn fate(&mut self, write: &Write, by: Replica, mut rest: ReplyStream<ShardReply>) -> Fate {
        let mut deposed = false;
        match tokio::time::timeout(Duration::from_millis(COMMIT_MS), rest.next()).await {
            Ok(Some(ShardReply::Done)) => return Fate::Kept,
            Ok(Some(ShardReply::Failed(failure))) => {
                deposed = matches!(failure, Failure::NotLeader { .. });
                if deposed {
                    self.denied(by, write.sent_ms);
                }
            }
            Ok(Some(other)) => {
                self.users.told.borrow_mut().wrong(format!("a write answered early was answered again: {other:?}"));
            }
            // The connection is lost, or somebody is very slow.
            Ok(None) | Err(_) => {}
        }
        let deadline_ms = process::now_ms() + ASK_MS;
        while process::now_ms() < deadline_ms {
            // Where it was answered: that shard knows, whatever has moved since.
            let mut shard = write.shard;
            let transaction = self.id().sequence;
            let request = ShardRequest::Commit { transaction, id: write.id, key: None, durability: Durability::Disk };
            match self.ask(&mut shard, &request, write.key).await {
                Step::Answered(_) => return Fate::Kept,
                Step::Never if self.refused_with("40001") => return Fate::Lost { deposed },
                Step::Never | Step::Again | Step::Perhaps => {}
            }
        }
        Fate::Unknown
    }
}
