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
use super::raw_session::RawSession;
use crate::log_entry::{EntryBody, ShardEntry};
use crate::storage::StoreError;
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

/// The session that holds an entry's changes in its open transaction.
pub(super) enum EndingSession<'a> {
    /// Of analysed statements.
    Analysed(&'a UserSession),
    /// Of users' own texts.
    Raw(&'a mut RawSession),
}

impl EndingSession<'_> {
    /// Commits, and waits for PostgreSQL's confirmation.
    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        match self {
            EndingSession::Analysed(session) => session.simple("COMMIT").await,
            EndingSession::Raw(session) => session.commit().await,
        }
    }

    /// Rolls back.
    pub(super) async fn roll_back(&mut self) -> Result<(), StoreError> {
        match self {
            EndingSession::Analysed(session) => session.simple("ROLLBACK").await,
            EndingSession::Raw(session) => session.roll_back().await,
        }
    }
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
        let session = EndingSession::Analysed(session);
        let changes = match &entry.body {
            EntryBody::Changes(changes) => changes,
            EntryBody::Decided(decided) => &decided.changes,
            _ => return Err(CommitError::RolledBack(SqlError::new("XX000", "not a change").into())),
        };
        let _doubt = leadership.doubt();
        match leadership.claim(entry.serial, &changes.changes).await {
            Ok(claim) => self.commit_claimed(session, &entry, early, claim).await,
            Err(failure) => self.roll_back(session, failure).await,
        }
    }

    /// The same of an entry whose keys are claimed, until `claim` is dropped.
    pub(super) async fn commit_claimed<C>(
        &self,
        mut session: EndingSession<'_>,
        entry: &ShardEntry,
        early: Early,
        claim: C,
    ) -> Result<(), CommitError> {
        let leadership = &self.context.leadership;
        let _doubt = leadership.doubt();
        let proposed = leadership.propose_observed(entry, early.wants_memory()).await;
        let (outcome, in_memory) = match proposed {
            Ok(proposed) => proposed,
            Err(failure) => {
                drop(claim);
                return self.roll_back(session, failure).await;
            }
        };
        if deliberate(Bug::AnswerBeforeDecided) {
            let committed = session.commit().await;
            std::mem::forget((claim, outcome));
            return committed.map_err(|error| CommitError::Broken(not_executed(&error)));
        }
        if deliberate(Bug::EarlyVisible) && early.is_wanted() {
            _ = session.commit().await;
        }
        let proposed = evenkeel_host::now();
        let decided = early.until_decided(outcome, in_memory).await;
        metrics::histogram!("evenkeel_batch_log_seconds").record(evenkeel_host::elapsed(proposed).as_secs_f64());
        let logged = evenkeel_host::now();
        match decided {
            Ok(EntryOutcome::Effective(position)) => match session.commit().await {
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
    pub(super) async fn roll_back(&self, mut session: EndingSession<'_>, failure: Failure) -> Result<(), CommitError> {
        match session.roll_back().await {
            Ok(()) => Err(CommitError::RolledBack(failure)),
            Err(_) => Err(CommitError::Broken(failure)),
        }
    }
}
