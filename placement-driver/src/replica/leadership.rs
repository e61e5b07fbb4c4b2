//! Begin and end of a leadership, after the role that the log gives to this replica.

use super::handles::ReplicaHandles;
use super::leader_state::LeaderState;
use super::message::LoopMessage;
use super::proposals::Proposer;
use super::quorum::Quorum;
use crate::state::Command;
use evenkeel_replicated_log::{LogIndex, Role, Term};
use std::sync::Arc;
use tokio::sync::watch;

/// The position from which the log starts, and the leader's number. The replica needs a state at or
/// after that position.
pub(super) type StateNeeded = (LogIndex, Option<u64>);

/// The leadership of a replica.
pub(super) struct Leadership {
    handles: Arc<ReplicaHandles>,
    role: watch::Receiver<Role>,
    quorum: Quorum,
}

impl Leadership {
    pub(super) fn new(handles: Arc<ReplicaHandles>) -> Leadership {
        Leadership { role: handles.log.role(), handles, quorum: Quorum::default() }
    }

    /// Waits until the log's role changes.
    ///
    /// # Errors
    /// The log has stopped.
    pub(super) async fn role_changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.role.changed().await
    }

    /// A majority has confirmed the leadership of `term`, or has not.
    pub(super) fn confirmation(&mut self, term: Term, confirmed: bool) {
        self.quorum.answered(term, confirmed);
    }

    /// Follows the log's role. Ends a leadership at once; begins one only after the replica has
    /// applied its own `LeaderStart` (invariant 4).
    pub(super) fn follow_role(&mut self, proposer: &mut Proposer) -> Option<StateNeeded> {
        let role = self.role.borrow_and_update().clone();
        let (index, term) = {
            let applied = self.handles.applied();
            (applied.index, applied.term)
        };
        match role {
            Role::Leader { term: own, start } => {
                self.follow_own_term(own, index >= start && term == own, proposer);
                None
            }
            Role::Follower { .. } => {
                self.handles.end_leadership();
                None
            }
            Role::Behind { trimmed, leader } => {
                self.handles.end_leadership();
                if index < trimmed {
                    return Some((trimmed, leader.map(|id| id.0)));
                }
                // The state is here already: the process ended after fetching it, and before the
                // log knew.
                self.handles.log.installed(index, term).ok();
                None
            }
        }
    }

    /// The log leads in `own`; `begun` says whether the replica has applied its `LeaderStart`.
    fn follow_own_term(&mut self, own: Term, begun: bool, proposer: &mut Proposer) {
        let serving = self.handles.leading().as_ref().map(|leading| leading.term);
        let now_ms = proposer.clock_ms();
        if begun {
            self.quorum.begin(own, now_ms);
            self.ask_for_confirmation(now_ms);
        }
        match serving {
            Some(term) if term == own && self.quorum.is_confirmed(now_ms) => return,
            Some(term) if term == own => tracing::warn!(%term, "no majority confirms that this replica leads"),
            _ => {}
        }
        self.handles.end_leadership();
        if begun && self.quorum.is_confirmed(now_ms) {
            self.begin(own, proposer);
        }
    }

    /// Asks a majority whether this replica still leads, if the interval has passed.
    fn ask_for_confirmation(&mut self, now_ms: u64) {
        if self.quorum.ask(now_ms) {
            let (handles, term) = (self.handles.clone(), self.quorum.term());
            tokio::spawn(async move {
                let confirmed = handles.log.read_barrier().await.is_ok();
                // The event loop is gone only when the replica shuts down.
                handles.messages.send(LoopMessage::Confirmed(term, confirmed)).await.ok();
            });
        }
    }

    fn begin(&mut self, term: Term, proposer: &mut Proposer) {
        tracing::info!(%term, "leading the placement driver");
        proposer.begin_term(term);
        let shards = self.handles.applied().state.shards.keys().copied().collect();
        *self.handles.leading() = Some(LeaderState::new(term, shards, proposer.time_ms()));
        let version = self.handles.applied().state.version;
        let configured = self.handles.config.incarnation.filter(|configured| *configured > version.generation());
        if let Some(configured) = configured {
            proposer.propose(Command::BeginIncarnation(configured), None).ok();
        }
        if version.cluster() == 0 {
            proposer.propose(Command::NameCluster(random_number()), None).ok();
        }
    }
}

/// A random number from 1.
fn random_number() -> u32 {
    ((evenkeel_host::unique_number() >> 32) as u32).max(1)
}
