//! Eligibility to lead. A replica whose application cannot serve votes and accepts entries, but
//! does not lead.
//!
//! A leader needs more than its log: a shard's leader executes statements in its PostgreSQL. While
//! that is down, the replica's log works as before, so the replica promises and accepts, and its
//! group keeps its majority. It begins no leadership. Elections do not consider eligibility; an
//! ineligible replica that is elected asks another one to lead, at once and again with each status
//! message. Until another one has taken over, or this replica is eligible again, the group has no
//! leadership.
//!
//! A leadership that is given up stays ended: its lease is released, so its ballot must not lead
//! again ([`super::leader_lease`]). A replica that becomes eligible while it still holds that
//! ballot takes a new one.

use omnipaxos::ballot_leader_election::Ballot;

/// What to do with a ballot that this replica holds and under which no leadership has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BallotUse {
    /// Begin a leadership.
    Lead,
    /// Take a higher ballot.
    Renew,
    /// Ask another replica to lead.
    PassOn,
    /// Another replica has been asked already.
    Wait,
}

/// Whether this replica may lead, and what became of its ballots.
#[derive(Debug, Default)]
pub(super) struct Eligibility {
    ineligible: bool,
    /// The ballot of the leadership given up last.
    given_up: Option<Ballot>,
    /// The ballot for which another replica was last asked to lead.
    passed_on: Option<Ballot>,
}

impl Eligibility {
    /// Whether this replica's application cannot serve.
    pub(super) fn is_ineligible(&self) -> bool {
        self.ineligible
    }

    /// Records whether the application cannot serve. Returns whether that has changed.
    pub(super) fn set_ineligible(&mut self, ineligible: bool) -> bool {
        std::mem::replace(&mut self.ineligible, ineligible) != ineligible
    }

    /// The leadership with `ballot` has been given up.
    pub(super) fn give_up(&mut self, ballot: Ballot) {
        self.given_up = Some(ballot);
    }

    /// A new configuration begins, and its ballots start over.
    pub(super) fn forget_ballots(&mut self) {
        *self = Eligibility { ineligible: self.ineligible, ..Eligibility::default() };
    }

    /// Decides what to do with `ballot`. `needs_state`: the replica waits for a state transfer, so
    /// it must not lead (log rule 10).
    pub(super) fn use_of(&mut self, ballot: Ballot, needs_state: bool) -> BallotUse {
        if self.ineligible || needs_state {
            match self.passed_on.replace(ballot) == Some(ballot) {
                true => BallotUse::Wait,
                false => BallotUse::PassOn,
            }
        } else if self.given_up == Some(ballot) {
            self.passed_on = None;
            BallotUse::Renew
        } else {
            BallotUse::Lead
        }
    }
}
