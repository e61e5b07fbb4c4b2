//! What replicas have replied to one client: the part of a history that the answers of statements
//! do not show.

use crate::history::events::{Denial, ShardReplica};
use crate::history::load_spike::Answer;
use crate::process;
use evenkeel_client::ReplyObserver;
use evenkeel_protocol::shard::ShardReply;
use evenkeel_protocol::{Failure, ShardId};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Replies in one place. It is shared with the client, which is one of a single thread.
#[derive(Debug, Default)]
pub(super) struct Replies(Mutex<Seen>);

/// The replies since an operation began.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The replicas that have answered, one after the other.
    pub answered_by: Vec<ShardReplica>,
    /// The replica that has acknowledged a write early.
    pub early: Option<ShardReplica>,
    /// The replica that has said anything last, even that it refuses.
    pub last: Option<ShardReplica>,
    /// When each piece of a stream that has rows was asked for, and by whom it was answered.
    pub pieces: VecDeque<(u64, ShardReplica)>,
    /// Who has said that it does not lead.
    pub denials: Vec<Denial>,
    /// Answers to statements, and refusals for overload.
    pub statements: Vec<Answer>,
}

impl Replies {
    /// The replies since the operation began.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// The replica that has answered, if all answers were its.
    pub fn only(&self) -> Option<ShardReplica> {
        let (first, rest) = self.answered_by.split_first()?;
        rest.iter().all(|other| other == first).then_some(*first)
    }
}

impl ReplyObserver for Replies {
    fn replied(&self, shard: ShardId, replica: u64, after_ms: u64, reply: &ShardReply) {
        let (by, answered_ms) = ((shard.0, replica), process::now_ms());
        let asked_ms = answered_ms.saturating_sub(after_ms);
        let mut seen = self.seen();
        seen.last = Some(by);
        let refused = match reply {
            ShardReply::Failed(Failure::NotLeader { .. }) => {
                seen.denials.push(Denial { by, asked_ms, answered_ms });
                return;
            }
            ShardReply::Failed(Failure::Overloaded { .. }) => true,
            ShardReply::Failed(_) => return,
            ShardReply::Piece(piece) => {
                if piece.reply.rows.count > 0 {
                    seen.pieces.push_back((asked_ms, by));
                }
                false
            }
            ShardReply::Early(_) => {
                seen.early = Some(by);
                false
            }
            _ => false,
        };
        if !refused {
            seen.answered_by.push(by);
        }
        if refused || matches!(reply, ShardReply::Rows(_)) {
            seen.statements.push(Answer { asked_ms, answered_ms, refused });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_protocol::shard::StatementReply;

    #[test]
    fn an_answer_by_several_replicas_is_nobodys() {
        let replies = Replies::default();
        let answer = |shard, replica| {
            let reply = ShardReply::Rows(StatementReply::default());
            replies.replied(ShardId(shard), replica, 0, &reply);
        };
        assert_eq!(replies.seen().only(), None);
        answer(1, 2);
        answer(1, 2);
        assert_eq!(replies.seen().only(), Some((1, 2)));
        answer(2, 2);
        assert_eq!(replies.seen().only(), None);
        let denial = ShardReply::Failed(Failure::NotLeader { leader: None });
        replies.replied(ShardId(1), 3, 0, &denial);
        assert_eq!(replies.seen().denials.len(), 1);
        assert_eq!(replies.seen().last, Some((1, 3)));
    }
}
