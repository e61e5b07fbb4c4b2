//! Deliberate bugs: rules that the simulator leaves out to show that its checks detect the
//! omission.

/// A rule to leave out. One of them is switched by the simulation of the whole system too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "only tests construct them")]
pub(crate) enum Fault {
    /// Log rule 2: outgoing messages are not taken before a Promise is fed.
    PromiseWithoutTaking,
    /// Log rule 9, first half: reads are answered without asking a majority.
    ReadWithoutProbe,
    /// Log rule 9, second half (log rule 8): a new leader answers before its `LeaderStart` is
    /// decided.
    ReadBeforeStart,
    /// Log rule 8, invariant 1: every entry is effective, whatever its term.
    NoFence,
    /// Log rule 1: every message of OmniPaxos is sent before the sync.
    SendBeforeSync,
    /// Log rule 9: a lease is valid with a majority of holders, the leader included.
    LeaseOfMajority,
    /// Log rule 9: a restarted replica does not hold.
    NoRestartHold,
    /// Log rule 9: no Prepare waits for a hold to end.
    NoHold,
    /// R17: the leader gives staleness bounds without proof that it leads.
    StalenessBoundWithoutProof,
    /// R17: a staleness bound is dated by the arrival of the answer.
    StalenessBoundWhenAnswered,
    /// R28: an entry is acknowledged with a majority's memory.
    MemoryOfMajority,
    /// Log rule 11: replicas stuck above the leader's ballot stay stuck.
    LeaveStuck,
    /// Log rule 10: a replica begins the next configuration before the barrier is decided.
    ChangeBeforeDecided,
    /// Log rule 10: entries after the configuration-change barrier are effective in the old
    /// configuration.
    PassBarrier,
    /// Log rule 10: a replica votes in a newer configuration before the application has its state.
    VoteWithoutState,
    /// Log rule 10: a replica that lost its disk is accepted in the configuration in which it made
    /// promises.
    AcceptAnyDisk,
    /// Log rule 10: replicas do not tell each other the disks that they know.
    WithholdDisks,
    /// A replica that receives decided entries in pieces drops its accepted entries behind them.
    ForgetAccepted,
    /// A replica that receives decided entries in pieces accepts them in the round of its promise.
    AcceptPieces,
    /// R14: a replica uses its own wall clock, whatever those of the others show.
    OwnClock,
}
