//! The output of a turn, in phases.
//!
//! A [`Ready`] (the term of raft-rs) has two parts. [`BeforeSync`] says nothing that needs this
//! turn's disk write: the caller carries it out at once. [`AfterSync`] is inaccessible until the
//! caller gives [`Synced`], which only the sync of the durable log makes (log rule 1). A message or
//! an answer that needs the disk can therefore not leave before the sync.

use crate::error::BarrierError;
use crate::ids::LogIndex;
use crate::membership::Membership;
use crate::role::Role;
use crate::status::StalenessBound;
use crate::wal::Synced;
use crate::wire::Wire;

use super::lease::Lease;

/// A message to send.
#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) peer: u64,
    /// The session to which it belongs; it is lost with the session.
    pub(crate) session: u64,
    pub(crate) wire: Wire,
}

/// The answer to a read barrier, with the number of the call.
pub(crate) type BarrierAnswer = (u64, Result<LogIndex, BarrierError>);

/// The output of one turn.
#[derive(Debug)]
pub(crate) struct Ready {
    /// To be carried out at once.
    pub(crate) before_sync: BeforeSync,
    after_sync: AfterSync,
}

impl Ready {
    pub(super) fn new(before_sync: BeforeSync, after_sync: AfterSync) -> Ready {
        Ready { before_sync, after_sync }
    }

    /// The part that waits for the sync, in exchange for the proof of the sync.
    pub(crate) fn synced(self, _proof: Synced) -> AfterSync {
        self.after_sync
    }

    /// Whether the turn neither changes the role nor begins a configuration.
    #[cfg(test)]
    pub(crate) fn is_ordinary(&self) -> bool {
        self.before_sync.role.is_none() && self.after_sync.role.is_none() && !self.after_sync.entered
    }
}

/// Output that does not depend on this turn's disk write. The fields are in the order of execution.
#[derive(Debug, Default)]
pub(crate) struct BeforeSync {
    /// To be published to readers before any message of this turn is sent (log rule 9).
    pub(crate) lease: Lease,
    /// In order; per peer the order must be kept.
    pub(crate) sends: Vec<Send>,
    /// Tracked proposals that are acknowledged in memory (R28).
    pub(crate) acknowledged: Vec<u64>,
    /// Tracked proposals without a memory acknowledgement: not appended, or their leadership has
    /// ended.
    pub(crate) unacknowledged: Vec<u64>,
    /// The role, if the leadership is lost.
    pub(crate) role: Option<Role>,
    /// Answers at durable positions.
    pub(crate) barriers: Vec<BarrierAnswer>,
}

/// Output that depends on this turn's disk write.
#[derive(Debug, Default)]
pub(crate) struct AfterSync {
    /// In order; per peer the order must be kept.
    pub(crate) sends: Vec<Send>,
    /// Sessions to close: the peer has another disk than before in this configuration.
    pub(crate) refused: Vec<(u64, u64)>,
    /// Sessions to close: too many messages wait (log rule 3).
    pub(crate) overflowed: Vec<(u64, u64)>,
    /// The role, if it has changed otherwise.
    pub(crate) role: Option<Role>,
    pub(crate) barriers: Vec<BarrierAnswer>,
    /// The newest known membership, if it has changed.
    pub(crate) membership: Option<Membership>,
    /// Another configuration has begun: every session has ended, and new ones are opened under its
    /// number.
    pub(crate) entered: bool,
    /// Staleness bounds of this replica (R17).
    pub(crate) staleness_bounds: Vec<StalenessBound>,
    pub(crate) counts: TurnCounts,
}

/// Events of a turn, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TurnCounts {
    /// Entries appended on this replica's initiative.
    pub(crate) proposed: u64,
    /// Proposals that came after the end of their leadership.
    pub(crate) dropped: u64,
    /// Probes sent for reads that no lease could serve.
    pub(crate) probes: u64,
    /// Leaderships begun.
    pub(crate) leaderships: u64,
    /// Pieces of decided entries received.
    pub(crate) learned: u64,
    /// Candidates not promised because they are far behind.
    pub(crate) refusals: u64,
}
