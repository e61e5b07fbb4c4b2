//! Commit protocol of one entry: propose, wait for the decision, then COMMIT or ROLLBACK.
//!
//! The session has executed the statements and written the entry's record (R5). From the proposal
//! on, only COMMIT or ROLLBACK is sent on it (R6). Between the proposal and PostgreSQL's
//! confirmation of COMMIT, the entry claims its rows (R4). If COMMIT fails although the log has
//! decided the entry, the leadership ends (R1).

use super::context::LeaderContext;
use super::early_acknowledgement::Early;
use super::failures::{not_executed, unknown};
use super::leadership::EntryOutcome;
use super::postgres_session::UserSession;
use crate::log_entry::{EntryBody, ShardEntry};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::{Failure, SqlError};
use std::sync::Arc;

/// See the module.
pub struct Committer {
    context: Arc<LeaderContext>,
}

/// Why a transaction was not committed, or is not known to be.
pub(super) enum CommitError {
    /// It was rolled back. The session can be used again.
    RolledBack(Failure),
    /// The session cannot be used any more.
    Broken(Failure),
}

impl Committer {
    /// The committer of a leadership.
    pub fn new(context: Arc<LeaderContext>) -> Committer {
        Committer { context }
    }

    /// Proposes the entry whose changes `session` holds in its open transaction, and commits or
    /// rolls back as the log decides. Early acknowledgements are sent meanwhile; the COMMIT does
    /// not depend on them (R28).
    pub(super) async fn commit(
        &self,
        session: &UserSession,
        entry: ShardEntry,
        early: Early,
    ) -> Result<(), CommitError> {
        let leadership = &self.context.leadership;
        let EntryBody::Changes(changes) = &entry.body else {
            return Err(CommitError::RolledBack(SqlError::new("XX000", "not a change").into()));
        };
        let _doubt = leadership.doubt();
        let proposed = async {
            let claim = leadership.claim(entry.serial, &changes.changes).await?;
            let (outcome, in_memory) = leadership.propose_observed(&entry, early.wants_memory()).await?;
            Ok::<_, Failure>((claim, outcome, in_memory))
        };
        let (claim, outcome, in_memory) = match proposed.await {
            Ok(proposed) => proposed,
            Err(failure) => return self.roll_back(session, failure).await,
        };
        if deliberate(Bug::AnswerBeforeDecided) {
            let committed = session.simple("COMMIT").await;
            std::mem::forget((claim, outcome));
            return committed.map_err(|error| CommitError::Broken(not_executed(&error)));
        }
        if deliberate(Bug::EarlyVisible) && early.is_wanted() {
            _ = session.simple("COMMIT").await;
        }
        let proposed = evenkeel_host::now();
        let decided = early.until_decided(outcome, in_memory).await;
        metrics::histogram!("evenkeel_batch_log_seconds").record(evenkeel_host::elapsed(proposed).as_secs_f64());
        let logged = evenkeel_host::now();
        match decided {
            Ok(EntryOutcome::Effective(position)) => match session.simple("COMMIT").await {
                Ok(()) => {
                    metrics::histogram!("evenkeel_batch_commit_seconds")
                        .record(evenkeel_host::elapsed(logged).as_secs_f64());
                    drop(claim);
                    self.context.shared.progress.confirm(position);
                    Ok(())
                }
                Err(error) => {
                    // R1: the log has the entry, and this PostgreSQL may not. The claim stays, so
                    // that no later entry builds on these rows.
                    std::mem::forget(claim);
                    self.context.break_down(&format!("a COMMIT failed: {error}"));
                    Err(CommitError::Broken(unknown("the leader's PostgreSQL failed at COMMIT")))
                }
            },
            Ok(EntryOutcome::Rejected(refusal)) => {
                drop(claim);
                tracing::warn!(%refusal, "entry rejected by the state machine");
                self.roll_back(session, Failure::Moved { to: None, range: None }).await
            }
            Ok(EntryOutcome::Deposed) => self.roll_back(session, Failure::NotLeader { leader: None }).await,
            Err(_) => {
                std::mem::forget(claim);
                Err(CommitError::Broken(unknown("the replica restarts its PostgreSQL")))
            }
        }
    }

    /// Rolls back. Always an error: `failure`, and whether the session can be used again.
    pub(super) async fn roll_back(&self, session: &UserSession, failure: Failure) -> Result<(), CommitError> {
        match session.simple("ROLLBACK").await {
            Ok(()) => Err(CommitError::RolledBack(failure)),
            Err(_) => Err(CommitError::Broken(failure)),
        }
    }
}
