//! The ends and beginnings of leaderships, as the log tells them.

use super::{Applier, ApplyError};
use crate::entry::MAX_ENTRY_BYTES;
use crate::leader::Leader;
use crate::leader::latches::ChangedKeys;
use crate::leader::leadership::Leadership;
use crate::parts::MAX_TRANSACTION_BYTES;
use crate::postgres::Role as SessionRole;
use evenkeel_host::{Bug, deliberate};
use evenkeel_replicated_log::{ReplicaId, Term};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long the sessions of an ended leadership may take to commit or roll back, in milliseconds. They only wait for PostgreSQL.
const END_MS: u64 = 10_000;
/// How long PostgreSQL may apply nothing of what it is to hold before a leadership begins, in milliseconds.
const STANDSTILL_MS: u64 = 10_000;
/// An entry takes at most this part of the log's cap.
const LOG_PARTS: u64 = 2;
/// How long PostgreSQL may take to end the other sessions, in milliseconds.
const TERMINATE_MS: u64 = 5_000;

impl Applier {
    pub(super) async fn leader_start(
        &mut self,
        position: u64,
        term: Term,
        leader: ReplicaId,
    ) -> Result<(), ApplyError> {
        self.flush(None).await?;
        self.end_leadership().await?;
        self.term = term;
        // R12: no further part of an earlier leadership's entries comes.
        self.unfinished.forget();
        self.export_waiting().await?;
        self.forget_earlier_records(position, term);
        self.shared.progress.pass(position);
        // Everything before, and every session's end, is in PostgreSQL before anything after is (R3).
        if !deliberate(Bug::LeaderNotWhole) {
            self.whole(position).await?;
        }
        let current = self.shared.log.role().borrow().leading();
        // One that lacks rows stands aside, so that it is not elected; it must not serve whatever happens.
        if leader == self.me && current == Some(term) && self.spent != Some(term) && self.seeding.is_none() {
            // Records of this leadership are judged against this position.
            self.flush(Some(position)).await?;
            self.begin_leadership(term).await?;
        } else {
            // This replica may be the next to lead.
            self.spares.prepare();
        }
        Ok(())
    }

    /// Waits until PostgreSQL holds everything up to `position`, and the snapshots that were asked for are taken (R24): nobody may
    /// write before. However long that takes: only a PostgreSQL that stands still is opened again.
    async fn whole(&self, position: u64) -> Result<(), ApplyError> {
        let whole = async {
            self.shared.progress.reached(position).await;
            self.keeper.idle().await
        };
        match unless_still(whole, self.shared.progress.watch(), Duration::from_millis(STANDSTILL_MS)).await {
            Some(idle) => Ok(idle?),
            None => Err(ApplyError::Reopen(format!("PostgreSQL does not get to position {position}"))),
        }
    }

    /// R3: a deposed leadership's transactions are rolled back unless their entries came before this place in the log.
    async fn end_leadership(&mut self) -> Result<(), ApplyError> {
        let Some(leader) = self.leader.take() else { return Ok(()) };
        self.leading.send_replace(None);
        leader.leadership.depose();
        let bound = Duration::from_millis(END_MS);
        if tokio::time::timeout(bound, leader.leadership.without_doubt()).await.is_err() {
            return Err(ApplyError::Reopen("a session of the last leadership neither commits nor rolls back".into()));
        }
        self.terminate_sessions().await
    }

    /// Ends what is left of users' sessions: idle transactions, statements that wait for locks, reads.
    async fn terminate_sessions(&self) -> Result<(), ApplyError> {
        let admin = self.shared.connector.connect(SessionRole::Admin).await?;
        let end_all = async {
            loop {
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'evenkeel_user'";
                match admin.query(sql, &[]).await {
                    Ok(left) if left.is_empty() => return Ok(()),
                    Ok(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                    Err(error) => return Err(crate::store::StoreError::from(error)),
                }
            }
        };
        match tokio::time::timeout(Duration::from_millis(TERMINATE_MS), end_all).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(ApplyError::Reopen("sessions of the last leadership do not end".into())),
        }
    }

    async fn begin_leadership(&mut self, term: Term) -> Result<(), ApplyError> {
        self.not_yet.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.publish(ChangedKeys::All);
        self.shared.latches.reset_meters();
        // As long as an entry is unfinished the log keeps all from its first part on; most of it is others' to write meanwhile.
        let most = (self.config.log_cap_bytes / LOG_PARTS) as usize;
        let leadership =
            Leadership::new(term, self.shared.log.clone(), most.clamp(MAX_ENTRY_BYTES, MAX_TRANSACTION_BYTES));
        let leader = Leader::begin(leadership, self.shared.clone(), &self.config, self.spares.take().await?);
        tracing::info!(shard = %self.config.shard, replica = self.config.replica, %term, "leads");
        metrics::counter!("evenkeel_leaderships_total").increment(1);
        tokio::spawn(end_with_role(leader.clone()));
        self.leader = Some(leader.clone());
        self.leading.send_replace(Some(leader));
        Ok(())
    }
}

/// Waits for `done`, as long as `progress` changes within `patience` each time.
async fn unless_still<T>(
    done: impl Future<Output = T>,
    mut progress: watch::Receiver<u64>,
    patience: Duration,
) -> Option<T> {
    tokio::pin!(done);
    loop {
        tokio::select! {
            biased;
            result = &mut done => return Some(result),
            moved = tokio::time::timeout(patience, progress.changed()) => match moved {
                Ok(Ok(())) => {}
                // Whoever shows progress is gone, or there is none.
                Ok(Err(_)) | Err(_) => return None,
            },
        }
    }
}

/// Stops a leadership as soon as the log knows better, before the next `LeaderStart` says so.
async fn end_with_role(leader: Arc<Leader>) {
    let mut role = leader.shared().log.role();
    let mut ended = leader.leadership.ended();
    let mut stuck = leader.leadership.stuck();
    let term = leader.leadership.term;
    tokio::select! {
        _ = role.wait_for(|role| role.leading() != Some(term)) => {
            tracing::info!(%term, "no longer leads");
            leader.leadership.end();
        }
        _ = ended.wait_for(|ended| *ended) => {}
        _ = stuck.wait_for(|stuck| *stuck) => leader.break_down("an entry will not get its last part"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A backlog of any length is applied; only a standstill is a reason to give up.
    #[tokio::test]
    async fn as_long_as_there_is_progress_there_is_no_limit() {
        let patience = Duration::from_secs(1);
        let (moves, progress) = watch::channel(0);
        let begun = tokio::time::Instant::now();
        let applying = async {
            while begun.elapsed() < patience * 2 {
                tokio::time::sleep(patience / 20).await;
                moves.send_modify(|step| *step += 1);
            }
        };
        assert_eq!(unless_still(applying, progress.clone(), patience).await, Some(()));
        assert_eq!(unless_still(std::future::pending::<()>(), progress, patience).await, None);
    }
}
