//! Leaderships of this replica: their beginning and end, as the log decides them.

use crate::config::Config;
use crate::error::ApplyError;
use crate::leader::Leader;
use crate::leader::leadership::{EntryOutcome, Leadership};
use crate::leader::warm_sessions::WarmSessions;
use crate::log_entry::MAX_ENTRY_BYTES;
use crate::log_entry::parts::MAX_TRANSACTION_BYTES;
use crate::postgres::SessionRole;
use crate::replica::ReplicaHandles;
use evenkeel_replicated_log::{ReplicaId, Term};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long the sessions of an ended leadership may take to commit or roll back, in milliseconds.
/// They only wait for PostgreSQL.
const END_MS: u64 = 10_000;
/// An entry takes at most this part of the log's cap.
const LOG_PARTS: u64 = 2;
/// How long PostgreSQL may take to end the other sessions, in milliseconds.
const TERMINATE_MS: u64 = 5_000;

/// See the module.
pub(super) struct Leaderships {
    config: Arc<Config>,
    handles: ReplicaHandles,
    leading: watch::Sender<Option<Arc<Leader>>>,
    /// A term that this replica led and must not lead again (R1).
    spent: Option<Term>,
    leader: Option<Arc<Leader>>,
    warm_sessions: WarmSessions,
}

impl Leaderships {
    /// No leadership yet. `leading` shows the present one.
    pub(super) fn new(
        config: Arc<Config>,
        handles: ReplicaHandles,
        leading: watch::Sender<Option<Arc<Leader>>>,
        spent: Option<Term>,
    ) -> Leaderships {
        let warm_sessions = WarmSessions::new(handles.connector.clone(), config.clone());
        Leaderships { config, handles, leading, spent, leader: None, warm_sessions }
    }

    /// The leadership of this term, if it is this replica's.
    pub(super) fn of_term(&self, term: Term) -> Option<&Arc<Leader>> {
        self.leader.as_ref().filter(|leader| leader.leadership.term == term)
    }

    /// Whether this replica leads.
    pub(super) fn leads(&self) -> bool {
        self.leader.is_some()
    }

    /// Notifies the session that proposed an entry of its outcome.
    pub(super) fn resolve(&self, term: Term, serial: u64, outcome: EntryOutcome) {
        if let Some(leader) = self.of_term(term) {
            leader.leadership.resolve(serial, outcome);
        }
    }

    /// Whether a leadership of this replica begins with the `LeaderStart` of `leader` at `term`.
    pub(super) fn may_begin(&self, term: Term, leader: ReplicaId) -> bool {
        let current = self.handles.log.role().borrow().leading();
        leader == ReplicaId(self.config.replica) && current == Some(term) && self.spent != Some(term)
    }

    /// Another replica leads: opens sessions ahead, because this replica may be the next leader.
    pub(super) fn prepare(&self) {
        self.warm_sessions.prepare();
    }

    /// R3: a deposed leadership's transactions are rolled back unless their entries came before
    /// this place in the log.
    pub(super) async fn end(&mut self) -> Result<(), ApplyError> {
        let Some(leader) = self.leader.take() else { return Ok(()) };
        self.leading.send_replace(None);
        leader.leadership.depose();
        let bound = Duration::from_millis(END_MS);
        if evenkeel_host::timeout(bound, leader.leadership.without_doubt()).await.is_err() {
            return Err(ApplyError::Reopen("a session of the last leadership neither commits nor rolls back".into()));
        }
        self.terminate_sessions().await
    }

    /// Ends the remaining users' sessions: idle transactions, statements that wait for locks,
    /// reads.
    async fn terminate_sessions(&self) -> Result<(), ApplyError> {
        let admin = self.handles.connector.connect(SessionRole::Admin).await?;
        let end_all = async {
            loop {
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename ^@ 'evenkeel_user'";
                match admin.query(sql, &[]).await {
                    Ok(left) if left.is_empty() => return Ok(()),
                    Ok(_) => evenkeel_host::sleep(Duration::from_millis(2)).await,
                    Err(error) => return Err(crate::storage::StoreError::from(error)),
                }
            }
        };
        match evenkeel_host::timeout(Duration::from_millis(TERMINATE_MS), end_all).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(ApplyError::Reopen("sessions of the last leadership do not end".into())),
        }
    }

    /// Begins the leadership of `term`.
    pub(super) async fn begin(&mut self, term: Term) -> Result<(), ApplyError> {
        // While an entry is unfinished, the log keeps everything from its first part on; other
        // entries need most of that room.
        let most = (self.config.log_cap_bytes / LOG_PARTS) as usize;
        let leadership =
            Leadership::new(term, self.handles.log.clone(), most.clamp(MAX_ENTRY_BYTES, MAX_TRANSACTION_BYTES));
        let sessions = self.warm_sessions.take().await?;
        let leader = Leader::begin(leadership, self.handles.clone(), &self.config, sessions);
        tracing::info!(shard = %self.config.shard, replica = self.config.replica, %term, "leads");
        metrics::counter!("evenkeel_leaderships_total").increment(1);
        tokio::spawn(end_with_role(leader.clone()));
        self.leader = Some(leader.clone());
        self.leading.send_replace(Some(leader));
        Ok(())
    }
}

/// However the applier ends, no one learns the outcome of the leadership's pending proposals here
/// any more.
impl Drop for Leaderships {
    fn drop(&mut self) {
        self.leading.send_replace(None);
        if let Some(leader) = self.leader.take() {
            leader.leadership.abandon();
        }
    }
}

/// Ends a leadership as soon as the log shows another role, before the next `LeaderStart` is
/// decided.
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
