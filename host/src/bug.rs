//! Bugs that are put in on purpose, to see whether a test notices.
//!
//! The names are here and the bugs where they belong: at the line that obeys the rule. Without a simulation [`deliberate`] is never
//! true, so the program that users run does not have them.

/// What may be broken on purpose. `docs/testing.md` says which test notices each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// Changes take effect in ranges that the shard does not own (invariant 2), and statements run there (R9).
    NoOwnershipFence,
    /// A leadership goes on after its PostgreSQL was started again (R1).
    LeadershipSurvivesRestart,
    /// Sessions of a killed node live on and commit later (R2).
    ZombieBackends,
    /// A disk that says it has written what it has not (log rule 1).
    NoFsync,
    /// Reads without a barrier (log rule 9).
    NoReadBarrier,
    /// The destination adopts before the tail has reached the fence (R22).
    AdoptBeforeFence,
    /// A statement's id is not looked up in the retry window (invariant 7, R14).
    NoRetryWindow,
    /// The answers of a moving range stay behind (R14).
    AnswersStayBehind,
    /// A follower leaves out a batch now and then (invariant 3).
    SkippedBatch,
    /// A statement on a row whose COMMIT is under way does not wait for it (R4).
    NoClaim,
    /// A fence does not wait for the statements under way (R22).
    NoDrain,
    /// The source's changes after the copy do not travel (R21).
    NoTail,
    /// A new leader serves before it has applied what came before its leadership (invariant 4).
    LeaderNotWhole,
    /// What is acknowledged was only proposed (invariant 7).
    AnswerBeforeDecided,
    /// A draining shard is removed though it still owns ranges.
    RemovedTooSoon,
    /// Entries are appended behind the barrier, and count (log rule 10).
    PassesBarrier,
    /// A write at durability `memory` is answered without anybody else's memory (R28).
    MemoryUnheld,
    /// What is answered before it is decided is visible to others at once (R28).
    EarlyVisible,
    /// A session is told that its write was kept, whatever became of it (R28).
    LossNotTold,
    /// A read at level `leader` is answered by any replica.
    LeaderReadAnywhere,
    /// A linearizable read of the coordination store does not pass the read barrier (log rule 9).
    KvNoBarrier,
    /// A sequential read of the coordination store does not wait for the revision that its client has seen.
    KvGoesBack,
    /// The coordination store's conditions are judged by the leader, before the log.
    KvJudgedBeforeTheLog,
    /// Requests to the coordination store that are repeated are not recognised.
    KvForgetsIds,
    /// A watch of the coordination store goes on from now, whatever its client has seen.
    KvWatchGap,
    /// What follows a BEGIN that failed commits by itself (invariant 3).
    WritesWithoutBegin,
    /// A replica that is re-seeded takes rows that lack what it has applied already (R32).
    StalePiece,
    /// However much is asked for, everybody is let in.
    NoGate,
    /// A statement is refused because there is too much, and done all the same.
    RefusedAndDone,
    /// Replicas are compared as they are when each gets to it, not at one place in the log (R31).
    ComparedAnywhere,
    /// A restored placement driver numbers on from its copy (R30).
    NumbersReused,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 31] = [
        Bug::NoOwnershipFence,
        Bug::LeadershipSurvivesRestart,
        Bug::ZombieBackends,
        Bug::NoFsync,
        Bug::NoReadBarrier,
        Bug::AdoptBeforeFence,
        Bug::NoRetryWindow,
        Bug::AnswersStayBehind,
        Bug::SkippedBatch,
        Bug::NoClaim,
        Bug::NoDrain,
        Bug::NoTail,
        Bug::LeaderNotWhole,
        Bug::AnswerBeforeDecided,
        Bug::RemovedTooSoon,
        Bug::PassesBarrier,
        Bug::MemoryUnheld,
        Bug::EarlyVisible,
        Bug::LossNotTold,
        Bug::LeaderReadAnywhere,
        Bug::KvNoBarrier,
        Bug::KvGoesBack,
        Bug::KvJudgedBeforeTheLog,
        Bug::KvForgetsIds,
        Bug::KvWatchGap,
        Bug::WritesWithoutBegin,
        Bug::StalePiece,
        Bug::NoGate,
        Bug::RefusedAndDone,
        Bug::ComparedAnywhere,
        Bug::NumbersReused,
    ];
}

/// Whether this bug is in. Always false outside of a simulation.
pub fn deliberate(bug: Bug) -> bool {
    crate::simulation().is_some_and(|simulation| simulation.has(bug))
}
