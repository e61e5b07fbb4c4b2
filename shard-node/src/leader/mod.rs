//! The leader's side of a shard: executing users' statements and proposing what they changed.
//!
//! A [`Leader`] is one reign on one start of PostgreSQL (R1). It is made when the replica has applied its own `LeaderStart`
//! (invariant 4, log rule 8) and never outlives its term.
//!
//! | module | what it does |
//! |---|---|
//! | [`admission`] | who may touch which keys now (R9), holds for fences |
//! | [`reign`] | proposals and their outcomes, keys on their way (R4) |
//! | [`session`] | sessions with PostgreSQL, capture of what they wrote |
//! | [`spares`] | sessions that are ready before a reign begins |
//! | [`plans`] | statements parsed and bound |
//! | [`group`] | one PostgreSQL transaction, one entry, in the order that is safe |
//! | [`early`] | answers at a durability below `disk` (R28) |
//! | [`readers`] | the sessions that reads share |
//! | [`lanes`] | batches of single-key statements (R10) |
//! | [`transactions`] | transactions of several statements |
//! | [`control`] | what the placement driver asks |
//! | [`gate`] | how many statements may be in the house at once; the rest is refused early |
//! | [`capacity`] | the admission limit that stands in for a machine of its own |
//!
//! **Reads** run beside all this: PostgreSQL's snapshot and the log's read barrier at the same time. That is linearizable because a
//! write is answered only after its local COMMIT (R10), so a snapshot taken after the read arrived holds every write answered
//! before, unless another leader answered it; and then the barrier, whose majority answered after the read arrived, would
//! have failed (log rule 9).

pub mod admission;
pub mod capacity;
pub mod control;
pub mod early;
pub mod gate;
pub mod group;
pub mod lanes;
pub mod plans;
pub mod readers;
pub mod reign;
pub mod session;
pub mod spares;
pub mod transactions;

use crate::apply::ApplyError;
use crate::config::Config;
use crate::entry::Answered;
use crate::fold::{RetryWindow, ShardState};
use crate::postgres::{Connector, is_damage, is_illness};
use crate::progress::Progress;
use crate::store::{Snapshots, StoreError};
use admission::{Admission, Permit};
use bytes::Bytes;
use capacity::Capacity;
use early::EarlyReply;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{ReadLevel, StatementReply, StatementRequest};
use evenkeel_protocol::sql::{RowEffect, Touches};
use evenkeel_protocol::{Failure, Key, KeyInterval, SqlError, TableId, TxnId, Value};
use evenkeel_replicated_log::{BarrierError, LogHandle};
use gate::Gate;
use group::{Ended, Job};
use plans::{BoundPlan, Plans};
use readers::Readers;
use reign::Reign;
use session::Parameters;
use spares::Sessions;
use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use transactions::{NoSession, SessionPool};

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    evenkeel_replicated_log::unix_ms()
}

/// The latest state machine, for readers beside the applier that folds it.
pub type SharedState = Arc<RwLock<Arc<ShardState>>>;

/// What a reign shares with the rest of the replica.
#[derive(Clone)]
pub struct Shared {
    /// The log.
    pub log: LogHandle,
    /// What this replica knows of its log's meaning, as of what it has folded.
    pub state: SharedState,
    /// The retry window.
    pub window: Arc<Mutex<RetryWindow>>,
    /// The last position at which what is owned changed; set before the state machine shows it.
    pub owned_changed: Arc<AtomicU64>,
    /// How far PostgreSQL has followed.
    pub progress: Arc<Progress>,
    /// Who may touch which keys.
    pub admission: Arc<Admission>,
    /// Ways into PostgreSQL.
    pub connector: Connector,
    /// Sessions for snapshots of it.
    pub snapshots: Snapshots,
    /// Says that the reign must end and PostgreSQL be opened anew (R1), or made anew, and why.
    pub broken: mpsc::UnboundedSender<ApplyError>,
}

impl Shared {
    /// The latest state machine.
    pub fn state(&self) -> Arc<ShardState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The retry window.
    pub fn window(&self) -> MutexGuard<'_, RetryWindow> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Texts {
    begin: Arc<str>,
    record: Arc<str>,
}

/// See the module.
pub struct Leader {
    /// The reign.
    pub reign: Arc<Reign>,
    shared: Shared,
    progress: Arc<Progress>,
    plans: Plans,
    lanes: Vec<mpsc::Sender<Job>>,
    readers: Readers,
    pool: SessionPool,
    under_way: Mutex<HashSet<(u64, u64)>>,
    capacity: Option<Capacity>,
    gate: Arc<Gate>,
    texts: Texts,
    open_transactions: Arc<transactions::Registry>,
    /// Held while a table is tried and made.
    making_tables: tokio::sync::Mutex<()>,
}

/// An id whose statement is being executed; a second attempt under the same id must not start beside it (invariant 7).
struct UnderWay<'a> {
    leader: &'a Leader,
    id: (u64, u64),
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.leader.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Leader {
    /// Begins a reign on these sessions: starts its lanes.
    pub fn begin(reign: Reign, shared: Shared, config: &Config, sessions: Sessions) -> Arc<Leader> {
        let Sessions { writers, readers } = sessions;
        let readers = Readers::new(&shared.connector, readers);
        let mut lanes = Vec::new();
        let mut queues = Vec::new();
        for session in writers {
            let (sender, queue) = mpsc::channel(lanes::QUEUE_JOBS);
            lanes.push(sender);
            queues.push((session, queue));
        }
        let leader = Arc::new(Leader {
            reign: Arc::new(reign),
            progress: shared.progress.clone(),
            plans: Plans::default(),
            lanes,
            readers,
            pool: SessionPool::new(shared.connector.clone(), config.max_transactions),
            under_way: Mutex::default(),
            capacity: config.capacity_per_s.map(Capacity::new),
            gate: Gate::new(config.max_transactions),
            texts: Texts { begin: "BEGIN READ WRITE".into(), record: crate::store::RECORD_SQL.into() },
            open_transactions: Arc::default(),
            making_tables: tokio::sync::Mutex::default(),
            shared,
        });
        for (session, queue) in queues {
            tokio::spawn(lanes::run(leader.clone(), session, queue));
        }
        tokio::spawn(transactions::reap(leader.clone()));
        leader
    }

    /// What it shares with the replica.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Executes one statement in a transaction of its own.
    pub async fn statement(self: &Arc<Self>, request: StatementRequest) -> Result<StatementReply, Failure> {
        self.statement_early(request, None).await
    }

    /// The same; a write at a durability below `disk` is answered through `early` when it has reached that (R28), and the
    /// result comes after its COMMIT.
    pub async fn statement_early(
        self: &Arc<Self>,
        request: StatementRequest,
        early: Option<EarlyReply>,
    ) -> Result<StatementReply, Failure> {
        // Before anything is spent on it.
        let inside = self.gate.enter(weight(&request));
        if inside.is_err() && deliberate(Bug::RefusedAndDone) {
            _ = self.serve(request.clone(), None).await;
        }
        let _inside = inside?;
        self.serve(request, early).await
    }

    async fn serve(
        self: &Arc<Self>,
        request: StatementRequest,
        early: Option<EarlyReply>,
    ) -> Result<StatementReply, Failure> {
        let bound = self.bind(&request)?;
        if let Some(capacity) = &self.capacity {
            capacity.acquire().await?;
        }
        let touches = touches(&bound, &request)?;
        if bound.plan.writes() || bound.plan.locks() {
            self.write(request, bound, touches, early).await
        } else {
            self.read(&request, &bound, &touches).await
        }
    }

    fn bind(&self, request: &StatementRequest) -> Result<Arc<BoundPlan>, Failure> {
        self.check_open()?;
        let bound = self.plans.get(&request.sql, &self.shared.state())?;
        if bound.plan.parameters() != request.params.len() {
            return Err(SqlError::new(
                codes::UNDEFINED_PARAMETER,
                format!("the statement has {} parameter(s), {} given", bound.plan.parameters(), request.params.len()),
            )
            .into());
        }
        Ok(bound)
    }

    fn check_open(&self) -> Result<(), Failure> {
        if self.reign.has_ended() { Err(Failure::NotLeader { leader: None }) } else { Ok(()) }
    }

    async fn write(
        self: &Arc<Self>,
        request: StatementRequest,
        bound: Arc<BoundPlan>,
        touches: Touches,
        early: Option<EarlyReply>,
    ) -> Result<StatementReply, Failure> {
        if request.clip.is_some() {
            return Err(SqlError::unsupported("a write cannot be clipped", "Name the rows by key.").into());
        }
        let _under_way = self.enter(request.id)?;
        let table = bound.schema.as_ref().map(|s| s.id).unwrap_or_default();
        let permit = self.shared.admission.admit(table, &touches, &[]).await?;
        // Only now: the answers of an adopted range came with it.
        if let Some(reply) = self.answered_before(request.id)? {
            return Ok(reply);
        }
        let (answer, answered) = oneshot::channel();
        let (key, single) = match &touches {
            Touches::Keys(keys) => (keys.first().cloned(), keys.len() == 1),
            _ => (None, false),
        };
        let job = Job { request, plan: bound, permit, key, early, answer };
        match (&job.key, single) {
            (Some(key), true) => {
                // Statements on the same row go through the same lane, so that they never wait for each other's lock.
                let lane = lanes::lane_of(table, key, self.lanes.len());
                if let Err(refused) = self.lanes[lane].try_send(job) {
                    return Err(match refused {
                        mpsc::error::TrySendError::Full(_) => {
                            Failure::Busy { reason: "too many statements are waiting".into(), retry_after_ms: 20 }
                        }
                        mpsc::error::TrySendError::Closed(_) => Failure::NotLeader { leader: None },
                    });
                }
            }
            _ => self.run_alone(job).await,
        }
        answered.await.unwrap_or_else(|_| Err(group::unknown("the reign ended")))
    }

    /// Runs a job as a group of its own, on a session that may wait for locks.
    pub(crate) async fn run_alone(&self, job: Job) {
        let session = match self.take_session().await {
            Ok(session) => session,
            Err(failure) => {
                let _ = job.answer.send(Err(failure));
                return;
            }
        };
        match self.run_group(&session, vec![job], true).await {
            Ended::Answered => self.pool.put_back(session),
            Ended::SessionLost => {}
            Ended::Split(jobs) => {
                // A group of one is never split.
                for job in jobs {
                    let _ = job.answer.send(Err(group::unknown("a single statement was split")));
                }
            }
        }
    }

    async fn read(
        &self,
        request: &StatementRequest,
        bound: &BoundPlan,
        touches: &Touches,
    ) -> Result<StatementReply, Failure> {
        let table = bound.schema.as_ref().map(|s| s.id).unwrap_or_default();
        let permit = self.shared.admission.admit(table, touches, &[]).await?;
        let session = self.readers.next().await.map_err(|error| self.no_session(&error))?;
        let (sql, added) = clipped(bound, request)?;
        let started = Instant::now();
        let executed = async {
            let lost = |error: StoreError| group::lost(&self.examine(error));
            let prepared = session.prepare(&sql, bound.plan.returned()).await.map_err(lost)?;
            let mut params = Parameters::new(&request.params);
            params.extend(&added);
            let rows = session.run(&prepared, &params.refs()).await.map_err(lost)?;
            session::reply(&prepared.columns, &rows, rows.len()).map_err(Failure::from)
        };
        let fresh = async {
            match request.read {
                ReadLevel::Linearizable => self.barrier().await,
                // `local` is served beside the reign (see `crate::local`); here it is at least as fresh.
                ReadLevel::Leader | ReadLevel::Local => self.check_open(),
            }
        };
        let (reply, fresh) = tokio::join!(executed, fresh);
        fresh?;
        if let Some(slot) = permit.slots().first() {
            let spent_us = started.elapsed().as_micros() as f64;
            let key = first_key(touches).unwrap_or(&slot.range.interval.start);
            slot.meter().record(key, false, spent_us);
        }
        reply
    }

    /// Makes sure, after the call, that this replica led until now (log rule 9).
    pub(crate) async fn barrier(&self) -> Result<(), Failure> {
        if deliberate(Bug::NoReadBarrier) {
            return Ok(());
        }
        match self.shared.log.read_barrier().await {
            Ok(_) => self.check_open(),
            Err(BarrierError::NotLeader { leader }) => Err(Failure::NotLeader { leader: leader.map(|l| l.0) }),
            Err(BarrierError::TimedOut | BarrierError::Stopped) => Err(Failure::NotLeader { leader: None }),
        }
    }

    fn enter(&self, id: TxnId) -> Result<UnderWay<'_>, Failure> {
        if !self.shared.window().can_tell(id.first_sent_ms, now_ms()) {
            return Err(SqlError::new(
                codes::OUTCOME_UNKNOWN,
                "the statement was first sent too long ago to know whether it has been executed, or the clocks differ too much",
            )
            .hint("Read the rows to find out. The clocks of clients and shards may differ by ten seconds.")
            .into());
        }
        let id = (id.client, id.sequence);
        if !self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            return Err(Failure::Busy { reason: "an earlier attempt is still under way".into(), retry_after_ms: 10 });
        }
        Ok(UnderWay { leader: self, id })
    }

    /// The answer given to this id before, if any (R14).
    fn answered_before(&self, id: TxnId) -> Result<Option<StatementReply>, Failure> {
        let kept = self.shared.window().get(id).cloned().filter(|_| !deliberate(Bug::NoRetryWindow));
        kept.map(|kept| reply_again(&kept)).transpose()
    }

    /// Ends the reign and has PostgreSQL opened anew (R1).
    pub(crate) fn break_down(&self, reason: &str) {
        self.give_up(ApplyError::Reopen(reason.to_string()));
    }

    /// A session that is not to be had although it was counted in when PostgreSQL was configured: somebody else has taken its place, or the
    /// server is going. There is no reign without sessions.
    pub(crate) fn no_session(&self, error: &StoreError) -> Failure {
        self.break_down(&format!("a session cannot be opened: {error}"));
        group::busy("the leader's PostgreSQL takes no more sessions")
    }

    async fn take_session(&self) -> Result<transactions::PooledSession, Failure> {
        self.pool.take().await.map_err(|error| match error {
            NoSession::Full(failure) => failure,
            NoSession::Failed(error) => self.no_session(&error),
        })
    }

    fn give_up(&self, error: ApplyError) {
        self.reign.end();
        // Nobody listens any more if the reign's PostgreSQL has been given up already.
        let _ = self.shared.broken.send(error);
    }

    /// What a session's error means beyond its statement. If it says that this PostgreSQL is unwell, the reign ends, so that a
    /// replica whose PostgreSQL is well leads; the statement, of which nothing has happened, is sent again there.
    pub(crate) fn examine(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Refused(error) if is_illness(&error.code) => {
                tracing::error!(%error, "PostgreSQL is unwell; the reign ends");
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
}

/// What a statement takes while it waits, in bytes.
pub fn weight(request: &StatementRequest) -> usize {
    let long = |value: &Value| match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    };
    request.sql.len() + request.params.iter().map(|value| std::mem::size_of::<Value>() + long(value)).sum::<usize>()
}

/// The reply to a statement that was executed under the same id before.
fn reply_again(kept: &Answered) -> Result<StatementReply, Failure> {
    if kept.reply.is_empty() {
        return Ok(StatementReply { affected: kept.affected, ..StatementReply::default() });
    }
    postcard::from_bytes(&kept.reply)
        .map_err(|error| SqlError::new(codes::INTERNAL, format!("a kept reply cannot be decoded: {error}")).into())
}

/// The keys a statement touches, within its clip.
pub(crate) fn touches(bound: &BoundPlan, request: &StatementRequest) -> Result<Touches, Failure> {
    let touches = bound.plan.touches(&request.params)?;
    let Some(clip) = &request.clip else { return Ok(touches) };
    Ok(match touches {
        Touches::Nothing => Touches::Nothing,
        Touches::Keys(keys) => match keys.into_iter().filter(|key| clip.contains(key)).collect::<Vec<_>>() {
            keys if keys.is_empty() => Touches::Nothing,
            keys => Touches::Keys(keys),
        },
        Touches::Intervals(intervals) => {
            let parts: Vec<KeyInterval> =
                intervals.iter().map(|i| i.intersection(clip)).filter(|part| !part.is_empty()).collect();
            if parts.is_empty() { Touches::Nothing } else { Touches::Intervals(parts) }
        }
    })
}

fn first_key(touches: &Touches) -> Option<&Key> {
    match touches {
        Touches::Nothing => None,
        Touches::Keys(keys) => keys.first(),
        Touches::Intervals(intervals) => intervals.first().map(|i| &i.start),
    }
}

/// The SQL of a read and the parameters that its clip adds.
pub(crate) fn clipped(
    bound: &BoundPlan,
    request: &StatementRequest,
) -> Result<(Arc<str>, Vec<AddedParameter>), Failure> {
    let (Some(schema), true) = (&bound.schema, request.clip.is_some() || request.limit.is_some()) else {
        return Ok((bound.sql.clone(), Vec::new()));
    };
    let whole = KeyInterval::ALL;
    let clip = request.clip.as_ref().unwrap_or(&whole);
    let start = (clip.start != Key::MIN).then_some(&clip.start);
    let end = clip.end.as_ref();
    let mut added = Vec::new();
    for bound_key in [start, end].into_iter().flatten() {
        let values = bound
            .codec
            .decode(bound_key)
            .map_err(|_| SqlError::new(codes::INTERNAL, "a clip does not lie at a whole key of the table"))?;
        added.extend(
            values.iter().zip(schema.key_types()).map(|(value, kind)| AddedParameter::Key(value.to_binary(kind))),
        );
    }
    if let Some(limit) = request.limit {
        added.push(AddedParameter::Limit(Value::Int(limit.min(i64::MAX as u64) as i64)));
    }
    let sql = bound.clipped_sql(start.is_some(), end.is_some(), request.limit.is_some());
    Ok((sql, added))
}

/// A parameter that the shard adds to a user's.
pub enum AddedParameter {
    /// A key column, in PostgreSQL's binary format.
    Key(Bytes),
    /// A number of rows.
    Limit(Value),
}

/// Keeps the estimate of a range's rows and bytes.
pub(crate) fn count_rows(permit: &Permit, effect: RowEffect, count: usize, bytes_per_change: f64) {
    let (Some(slot), count) = (permit.slots().first(), count as i64) else { return };
    let bytes = (count as f64 * bytes_per_change) as i64;
    match effect {
        RowEffect::Inserts => slot.size.add(count, bytes),
        RowEffect::Deletes => slot.size.add(-count, -(count * slot.size.bytes_per_row())),
        RowEffect::None | RowEffect::Upserts | RowEffect::Updates => {}
    }
}

/// The answer for a table and key: what the retry window is asked about after a lost connection.
pub(crate) type WrittenKey = Option<(TableId, Key)>;
