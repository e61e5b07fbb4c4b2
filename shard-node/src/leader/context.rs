//! What every part of a leader shares: its leadership, the replica's handles, and how a failure of
//! PostgreSQL ends the leadership.

use super::failures::busy;
use super::leadership::Leadership;
use super::session_pool::NoSession;
use crate::error::ApplyError;
use crate::postgres::{is_damage, is_illness};
use crate::replica::ReplicaHandles;
use crate::storage::StoreError;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::Failure;
use evenkeel_replicated_log::BarrierError;
use std::sync::Arc;

/// See the module.
pub struct LeaderContext {
    /// The leadership.
    pub leadership: Arc<Leadership>,
    /// The replica's handles.
    pub shared: ReplicaHandles,
}

impl LeaderContext {
    /// Fails if the leadership has ended.
    pub fn check_open(&self) -> Result<(), Failure> {
        if self.leadership.has_ended() { Err(Failure::NotLeader { leader: None }) } else { Ok(()) }
    }

    /// Read barrier: succeeds only if this replica led until after the call (log rule 9).
    pub async fn barrier(&self) -> Result<(), Failure> {
        if deliberate(Bug::NoReadBarrier) {
            return Ok(());
        }
        match self.shared.log.read_barrier().await {
            Ok(_) => self.check_open(),
            Err(BarrierError::NotLeader { leader }) => Err(Failure::NotLeader { leader: leader.map(|l| l.0) }),
            Err(BarrierError::TimedOut | BarrierError::Stopped) => Err(Failure::NotLeader { leader: None }),
        }
    }

    /// Ends the leadership and has PostgreSQL opened again (R1).
    pub fn break_down(&self, reason: &str) {
        self.give_up(ApplyError::Reopen(reason.to_string()));
    }

    /// A session cannot be opened, although PostgreSQL was configured with a place for it:
    /// something else has taken the place, or the server is stopping. The leadership ends, because
    /// it cannot work without sessions.
    pub fn no_session(&self, error: &StoreError) -> Failure {
        self.break_down(&format!("a session cannot be opened: {error}"));
        busy("the leader's PostgreSQL takes no more sessions")
    }

    /// The session that was taken from a pool. If PostgreSQL opens no more sessions, the leadership
    /// ends.
    pub fn took<T>(&self, taken: Result<T, NoSession>) -> Result<T, Failure> {
        taken.map_err(|error| match error {
            NoSession::Full(failure) => failure,
            NoSession::Failed(error) => self.no_session(&error),
        })
    }

    /// Examines the error of a session. If it says that this PostgreSQL has failed, the leadership
    /// ends, so that a replica whose PostgreSQL works leads. The statement had no effect, and its
    /// client sends it again there.
    pub fn examine(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Refused(error) if is_illness(&error.code) => {
                tracing::error!(%error, "PostgreSQL failed; leadership ends");
                let reason = error.to_string();
                self.give_up(if is_damage(&error.code) {
                    ApplyError::Damaged(reason)
                } else {
                    ApplyError::Reopen(reason)
                });
                StoreError::SessionLost
            }
            other => other,
        }
    }

    fn give_up(&self, error: ApplyError) {
        self.leadership.end();
        // Nobody listens any more if the leadership's PostgreSQL has been given up already.
        let _ = self.shared.broken.send(error);
    }
}
