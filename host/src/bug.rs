//! Names of the deliberate bugs, with which a simulation shows that its checks detect a broken
//! rule.
//!
//! Each bug is at the line that obeys the rule, in whichever crate that is, behind
//! [`crate::deliberate`]. This module is only the list of names: it depends on nothing. Without a
//! simulation no bug is enabled, so the program that users run does not have them.

/// A deliberate bug. `docs/testing.md` says which check detects each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// Changes take effect in ranges that the shard does not own (invariant 2), and statements run
    /// there (R9).
    NoOwnershipFence,
    /// A leadership continues after a new server start of its PostgreSQL (R1).
    LeadershipSurvivesRestart,
    /// Sessions of a killed process live on and commit later (R2).
    ZombieBackends,
    /// The disk reports a sync that it has not done (log rule 1).
    NoFsync,
    /// Reads without a barrier (log rule 9).
    NoReadBarrier,
    /// The destination adopts before the tail has reached the fence (R22).
    AdoptBeforeFence,
    /// A statement's id is not looked up in the retry window (invariant 7, R14).
    NoRetryWindow,
    /// The retry window of a moving range is not moved (R14).
    AnswersStayBehind,
    /// A follower skips a write batch now and then (invariant 3).
    SkippedBatch,
    /// A statement on a row whose COMMIT is under way does not wait for it (R4).
    NoClaim,
    /// A fence does not wait for the statements under way (R22).
    NoDrain,
    /// The source's changes after the copy do not travel (R21).
    NoTail,
    /// A new leader serves before it has applied the entries before its leadership (invariant 4).
    LeaderNotWhole,
    /// A write is acknowledged once it is proposed (invariant 7).
    AnswerBeforeDecided,
    /// A draining shard is removed though it still owns ranges.
    RemovedTooSoon,
    /// Entries behind the configuration-change barrier are effective in the old configuration (log
    /// rule 10).
    PassesBarrier,
    /// A write at durability `memory` is answered without memory acknowledgement (R28).
    MemoryUnacknowledged,
    /// A write that is acknowledged early is visible to other sessions at once (R28).
    EarlyVisible,
    /// A session gets the answer that its write was kept, although it was lost (R28).
    LossNotReported,
    /// A read at level `leader` is answered by any replica.
    LeaderReadAnywhere,
    /// A linearizable read of the coordination store does not pass the read barrier (log rule 9).
    KvNoBarrier,
    /// A sequential read of the coordination store does not wait for the revision that its client
    /// has seen.
    KvGoesBack,
    /// The coordination store's leader evaluates conditions before the log orders them.
    KvJudgedBeforeTheLog,
    /// The coordination store does not recognise repeated requests.
    KvForgetsIds,
    /// A watch of the coordination store continues from now, whatever its client has seen.
    KvWatchGap,
    /// Statements after a failed BEGIN commit by themselves (invariant 3).
    WritesWithoutBegin,
    /// A re-seeded replica accepts rows older than its applied position (R32).
    StalePiece,
    /// Admission control admits every statement.
    NoAdmissionControl,
    /// A statement is refused for overload, and executed all the same.
    RefusedAndDone,
    /// Replicas are compared at different positions of the log (R31).
    ComparedAnywhere,
    /// A restored placement driver continues the numbers of its copy (R30).
    NumbersReused,
    /// A client has a transaction committed on one shard although the others have not prepared it
    /// (R26).
    DecidedTooSoon,
    /// A shard forgets what it has decided about transactions (R26).
    ForgottenDecision,
    /// A commit over several shards is answered before all of them have committed (R26).
    AnsweredBeforeResolved,
    /// A client sends each attempt of a write under an id of its own (invariant 7, R14).
    NewIdPerAttempt,
    /// A client forgets that an attempt may have been executed, and reports that nothing happened.
    UnknownReportedAsRefused,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 36] = [
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
        Bug::MemoryUnacknowledged,
        Bug::EarlyVisible,
        Bug::LossNotReported,
        Bug::LeaderReadAnywhere,
        Bug::KvNoBarrier,
        Bug::KvGoesBack,
        Bug::KvJudgedBeforeTheLog,
        Bug::KvForgetsIds,
        Bug::KvWatchGap,
        Bug::WritesWithoutBegin,
        Bug::StalePiece,
        Bug::NoAdmissionControl,
        Bug::RefusedAndDone,
        Bug::ComparedAnywhere,
        Bug::NumbersReused,
        Bug::DecidedTooSoon,
        Bug::ForgottenDecision,
        Bug::AnsweredBeforeResolved,
        Bug::NewIdPerAttempt,
        Bug::UnknownReportedAsRefused,
    ];
}
