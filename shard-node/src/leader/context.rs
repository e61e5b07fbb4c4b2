//! What every part of a leader shares: its leadership, the replica's handles, and how a failure of
//! PostgreSQL ends the leadership.

use super::failures::busy;
use super::leadership::Leadership;
use super::plan_cache::BoundPlan;
use super::session_pool::NoSession;
use crate::error::ApplyError;
use crate::postgres::{is_damage, is_illness};
use crate::replica::ReplicaHandles;
use crate::storage::StoreError;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::Failure;
use evenkeel_replicated_log::BarrierError;
use std::sync::Arc;

/// When a statement comes back that is ahead of the shard's schema, in milliseconds.
const SCHEMA_AGAIN_MS: u32 = 50;

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

    /// Whether a plan still fits the tables. Asked when the statement has its handle: from then on
    /// a schema change waits for it (R34).
    pub fn check_plan(&self, bound: &BoundPlan) -> Result<(), Failure> {
        if bound.schema_version == self.shared.schema_version() {
            return Ok(());
        }
        Err(Failure::Busy { reason: "the schema has changed".into(), retry_after_ms: 0 })
    }

    /// Whether a statement that a gateway has planned at a version of the schema fits. Asked when
    /// the statement has its handle.
    pub fn check_schema_version(&self, planned: u64) -> Result<(), Failure> {
        let version = self.shared.schema_version();
        match planned.cmp(&version) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(Failure::SchemaChanged { version }),
            std::cmp::Ordering::Greater => Err(Failure::Busy {
                reason: format!("the shard has version {version} of the schema, not yet {planned}"),
                retry_after_ms: SCHEMA_AGAIN_MS,
            }),
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
