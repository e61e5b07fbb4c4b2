//! Early acknowledgement: answers before the COMMIT, at durability levels below `disk` (R28).
//!
//! The level changes only when the client is answered. The entry itself is handled like any other.
//! Its range handle, its claim on the rows (R4) and its id are held until the COMMIT has ended, so
//! other sessions see its rows only when they are on a quorum's disks. The outcome follows in a
//! second reply, and the client's session waits for it before its next statement.
//!
//! | level | answered when | lost if, before a quorum has it on disk, |
//! |---|---|---|
//! | `local` | the statement is executed, captured and proposed here | this leader fails or is deposed |
//! | `memory` | a quorum has the entry in memory (memory acknowledgement) | two replicas fail |

use super::leadership::EntryOutcome;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::Durability;
use evenkeel_protocol::shard::StatementReply;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;

/// Where an early acknowledgement goes.
pub type EarlyReply = oneshot::Sender<StatementReply>;

/// The early acknowledgements of one entry.
#[derive(Default)]
pub struct Early {
    waiting: Vec<(Durability, EarlyReply, StatementReply)>,
}

impl Early {
    /// Adds a statement, if it is to be acknowledged early.
    pub fn add(&mut self, durability: Durability, to: Option<EarlyReply>, reply: &StatementReply) {
        if let (Durability::Local | Durability::Memory, Some(to)) = (durability, to) {
            self.waiting.push((durability, to, reply.clone()));
        }
    }

    /// Whether a statement waits for a memory acknowledgement.
    pub fn wants_memory(&self) -> bool {
        self.waiting.iter().any(|(durability, ..)| *durability == Durability::Memory)
    }

    /// Whether any statement is acknowledged early.
    pub fn is_wanted(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Answers the statements whose level has been reached.
    fn answer(&mut self, reached: Durability) {
        for (_, to, reply) in self.waiting.extract_if(.., |(wanted, ..)| *wanted <= reached) {
            // A client that has gone does not receive the answer. The statement's effect remains.
            let _ = to.send(reply);
        }
    }

    /// Follows a proposed entry to its outcome, and acknowledges each statement when its level is
    /// reached. `in_memory` completes when a quorum has the entry in memory.
    pub async fn until_decided(
        mut self,
        mut outcome: oneshot::Receiver<EntryOutcome>,
        in_memory: Option<oneshot::Receiver<()>>,
    ) -> Result<EntryOutcome, RecvError> {
        let too_early = deliberate(Bug::MemoryUnacknowledged);
        self.answer(if too_early { Durability::Memory } else { Durability::Local });
        if let Some(in_memory) = in_memory {
            tokio::select! {
                biased;
                outcome = &mut outcome => return outcome,
                acknowledged = in_memory => {
                    // After an error it will not be known. Then the outcome is the answer.
                    if acknowledged.is_ok() {
                        self.answer(Durability::Memory);
                    }
                }
            }
        }
        outcome.await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// An entry with one statement of each level, and what each of them hears.
    fn entry() -> (Early, Vec<oneshot::Receiver<StatementReply>>) {
        let mut early = Early::default();
        let hear = [Durability::Local, Durability::Memory, Durability::Disk].map(|durability| {
            let (to, hears) = oneshot::channel();
            early.add(durability, Some(to), &StatementReply { affected: 1, ..StatementReply::default() });
            hears
        });
        (early, hear.into())
    }

    // R28: each level answers at its point, and not earlier.
    #[tokio::test]
    async fn each_level_is_answered_when_it_is_reached() {
        let (early, mut hears) = entry();
        assert!(early.wants_memory());
        let (decide, outcome) = oneshot::channel();
        let (hold, held) = oneshot::channel();
        let task = tokio::spawn(early.until_decided(outcome, Some(held)));
        assert_eq!((&mut hears[0]).await.unwrap().affected, 1);
        assert!(hears[1].try_recv().is_err(), "not in a quorum's memory yet");
        hold.send(()).unwrap();
        assert_eq!((&mut hears[1]).await.unwrap().affected, 1);
        assert!(!task.is_finished(), "the COMMIT waits for the decision at every level");
        decide.send(EntryOutcome::Effective(7)).unwrap();
        assert_eq!(task.await.unwrap().unwrap(), EntryOutcome::Effective(7));
        assert!(hears[2].try_recv().is_err(), "`disk` is answered after the COMMIT, by others");
    }

    #[tokio::test]
    async fn an_entry_that_is_not_in_memory_is_not_answered_before_its_outcome() {
        let (early, mut hears) = entry();
        let (decide, outcome) = oneshot::channel();
        let (hold, held) = oneshot::channel::<()>();
        let task = tokio::spawn(early.until_decided(outcome, Some(held)));
        drop(hold);
        decide.send(EntryOutcome::Deposed).unwrap();
        assert_eq!(task.await.unwrap().unwrap(), EntryOutcome::Deposed);
        assert!(hears[1].try_recv().is_err(), "lost, and never acknowledged");
    }
}
