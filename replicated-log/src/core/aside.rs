//! Standing aside: a replica whose application cannot serve votes and accepts, and leaves leading to others.
//!
//! Leading takes more than a log: a shard's leader executes in its PostgreSQL. While that is down the replica's log is as good as
//! ever, so it promises and accepts as before, and its group keeps its majority. It begins no leadership. If it is elected all the
//! same (elections know nothing of this) it asks another one to lead, at once and again with each upkeep; until one has
//! taken over, or it has come back itself, nobody leaderships.
//!
//! A leadership that is given up is over for good: its lease is released, so its ballot must not rule again ([`super::lease`]).
//! Coming back while still holding that ballot, the replica takes a new one.

use omnipaxos::ballot_leader_election::Ballot;

use crate::types::Term;
use crate::wal::Disk;

use super::Core;

/// What a replica remembers of standing aside.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// Whether it does now.
    stands: bool,
    /// The ballot of the leadership given up last.
    given_up: Option<Ballot>,
    /// The ballot that another one was last asked to follow on.
    passed_on: Option<Ballot>,
}

impl<D: Disk> Core<D> {
    /// Whether this replica's application cannot serve.
    pub(crate) fn stands_aside(&self) -> bool {
        self.aside.stands
    }

    /// Whether a leadership of this replica could serve: log rule 10 forbids it while it waits for a state transfer.
    pub(super) fn may_lead(&self) -> bool {
        !self.aside.stands && self.wal.borrow().needs_state().is_none()
    }

    /// A new epoch begins, and its ballots start over.
    pub(super) fn forget_ballots(&mut self) {
        self.aside = Aside { stands: self.aside.stands, ..Aside::default() };
    }

    pub(super) fn stand_aside(&mut self, stands: bool) {
        if std::mem::replace(&mut self.aside.stands, stands) == stands {
            return;
        }
        if stands && let Some(ended) = self.leadership.take() {
            self.aside.given_up = Some(ended.ballot);
            self.release_lease(ended.ballot);
            self.forget_holdings();
            self.fail_barriers();
        }
        // Whoever looks for somebody to lead should know now, not with the next upkeep.
        self.tell_standing();
        self.observe();
    }

    /// This replica holds `ballot`, undisputed, and no leadership has begun in it.
    pub(super) fn enter_office(&mut self, ballot: Ballot) {
        if !self.may_lead() {
            if self.aside.passed_on.replace(ballot) != Some(ballot) {
                self.ask_other_to_lead();
            }
        } else if self.aside.given_up == Some(ballot) {
            self.aside.passed_on = None;
            self.omni.try_become_leader();
        } else {
            // log rule 12: an epoch's terms are above those of the epochs before, although its ballots start over.
            let number = self.membership.term.ballot().saturating_add(ballot.n);
            self.begin_leadership(ballot, Term::first_of(number, self.config.me));
        }
    }
}
