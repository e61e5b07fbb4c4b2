//! Answers that do not wait for the COMMIT: durability below `disk` (R28).
//!
//! Only the answer is moved. The entry goes the same way as any other, its permit, its claim on the rows (R4) and its id stay taken until
//! the COMMIT has ended, and so nobody else sees what it wrote before it is on a quorum's disks. What becomes of it is told
//! in a second reply; a session does not go on before that.
//!
//! | level | answered when | lost if, before a majority has it on disk, |
//! |---|---|---|
//! | `local` | it is executed, captured and proposed here | this leader dies or is deposed |
//! | `memory` | a quorum has it in memory, so that any one crash is survived | two replicas crash |

use super::leadership::Outcome;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::Durability;
use evenkeel_protocol::shard::StatementReply;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;

/// Who is answered early.
pub type EarlyReply = oneshot::Sender<StatementReply>;

/// The early answers of one entry.
#[derive(Default)]
pub struct Early {
    waiting: Vec<(Durability, EarlyReply, StatementReply)>,
}

impl Early {
    /// One more, if it is to be answered early.
    pub fn add(&mut self, durability: Durability, to: Option<EarlyReply>, reply: &StatementReply) {
        if let (Durability::Local | Durability::Memory, Some(to)) = (durability, to) {
            self.waiting.push((durability, to, reply.clone()));
        }
    }

    /// Whether anybody waits for a quorum's memory.
    pub fn wants_memory(&self) -> bool {
        self.waiting.iter().any(|(durability, ..)| *durability == Durability::Memory)
    }

    /// Whether anybody is answered early at all.
    pub fn is_wanted(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What has reached `reached` is answered.
    fn answer(&mut self, reached: Durability) {
        for (_, to, reply) in self.waiting.extract_if(.., |(wanted, ..)| *wanted <= reached) {
            // A client that has gone does not hear it; what happened, happened.
            let _ = to.send(reply);
        }
    }

    /// The entry is proposed: answers what may be answered now, and the rest as it gets further. Gives the entry's outcome.
    pub async fn until_decided(
        mut self,
        mut outcome: oneshot::Receiver<Outcome>,
        held: Option<oneshot::Receiver<()>>,
    ) -> Result<Outcome, RecvError> {
        let unheld = deliberate(Bug::MemoryUnacknowledged);
        self.answer(if unheld { Durability::Memory } else { Durability::Local });
        if let Some(held) = held {
            tokio::select! {
                biased;
                outcome = &mut outcome => return outcome,
                told = held => {
                    // An error says that it will not be known; then the outcome is the answer.
                    if told.is_ok() {
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

    // R28: a level moves the answer to where it says, and no further.
    #[tokio::test]
    async fn each_level_is_answered_when_it_is_reached() {
        let (early, mut hears) = entry();
        assert!(early.wants_memory());
        let (decide, outcome) = oneshot::channel();
        let (hold, held) = oneshot::channel();
        let task = tokio::spawn(early.until_decided(outcome, Some(held)));
        assert_eq!((&mut hears[0]).await.unwrap().affected, 1);
        assert!(hears[1].try_recv().is_err(), "not held yet");
        hold.send(()).unwrap();
        assert_eq!((&mut hears[1]).await.unwrap().affected, 1);
        assert!(!task.is_finished(), "the COMMIT waits for the decision at every level");
        decide.send(Outcome::Effective(7)).unwrap();
        assert_eq!(task.await.unwrap().unwrap(), Outcome::Effective(7));
        assert!(hears[2].try_recv().is_err(), "`disk` is answered after the COMMIT, by others");
    }

    #[tokio::test]
    async fn what_is_not_held_is_not_answered_before_its_outcome() {
        let (early, mut hears) = entry();
        let (decide, outcome) = oneshot::channel();
        let (hold, held) = oneshot::channel::<()>();
        let task = tokio::spawn(early.until_decided(outcome, Some(held)));
        drop(hold);
        decide.send(Outcome::Deposed).unwrap();
        assert_eq!(task.await.unwrap().unwrap(), Outcome::Deposed);
        assert!(hears[1].try_recv().is_err(), "lost, and never acknowledged");
    }
}
