//! The leader's side of a shard: executing users' statements and proposing what they changed.
//!
//! A [`Leader`] is one leadership on one start of PostgreSQL (R1). It is made when the replica has applied its own `LeaderStart`
//! (invariant 4, log rule 8) and never outlives its term.
//!
//! | module | what it does |
//! |---|---|
//! | [`latches`] | who may touch which keys now (R9), holds for fences |
//! | [`leadership`] | proposals and their outcomes, keys on their way (R4) |
//! | [`session`] | sessions with PostgreSQL, capture of what they wrote |
//! | [`spares`] | sessions that are ready before a leadership begins |
//! | [`plans`] | statements parsed and bound |
//! | `recent` | what was used lately, by a statement's text |
//! | [`group`] | one PostgreSQL transaction, one entry, in the order that is safe |
//! | `kept` | what the retry window keeps of an answer, and the answer made of it again |
//! | [`early`] | answers at a durability below `disk` (R28) |
//! | [`readers`] | the sessions that keyed reads share |
//! | [`scans`] | the sessions for reads that may take long, each used by one at a time |
//! | [`reads`] | reads, whole and piece by piece |
//! | [`clip`] | which part of a statement's rows is asked for |
//! | [`batch`] | what goes into a batch, and executing it |
//! | [`row_locks`] | which rows are known to be locked, so that no batch waits for them |
//! | [`lanes`] | batches of single-key statements (R10) |
//! | [`transactions`] | transactions of several statements |
//! | [`claims`] | rows whose COMMIT is not confirmed yet (R4) |
//! | [`control`] | what the placement driver asks |
//! | [`gate`] | how many statements may be in the house at once; the rest is refused early |
//! | [`pressure`] | writes are slowed down while a majority of replicas does not get to apply them |
//! | [`capacity`] | the admission limit that stands in for a machine of its own |
//!
//! **Reads** run beside all this: PostgreSQL's snapshot and the log's read barrier at the same time. That is linearizable because a
//! write is answered only after its local COMMIT (R10), so a snapshot taken after the read arrived holds every write answered
//! before, unless another leader answered it; and then the barrier, whose majority answered after the read arrived, would
//! have failed (log rule 9). A write that another *shard* answered, after a move, is none of these: that a read is not admitted
//! any more by then is what [`latches`]'s holds are for.

pub mod batch;
pub mod capacity;
pub mod claims;
pub mod clip;
pub mod control;
pub mod early;
pub mod gate;
pub mod group;
mod kept;
pub mod lanes;
mod latch_table;
pub mod latches;
pub mod leadership;
pub mod plans;
pub mod pressure;
mod range_latch;
pub mod readers;
pub mod reads;
mod recent;
pub mod row_locks;
pub mod scans;
pub mod session;
pub mod spares;
pub mod transactions;

pub use crate::load::now_ms;

use crate::apply::ApplyError;
use crate::config::Config;
use crate::fold::{RetryWindow, ShardState};
use crate::postgres::{Connector, is_damage, is_illness};
use crate::progress::Progress;
use crate::store::{Snapshots, StoreError};
use capacity::Capacity;
use clip::touches;
use early::EarlyReply;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{StatementReply, StatementRequest};
use evenkeel_protocol::{Failure, Key, SqlError, TableId, TxnId, Value};
use evenkeel_replicated_log::{BarrierError, LogHandle};
use evenkeel_rpc::Gone;
use evenkeel_sql::Touches;
use gate::{Gate, Kind};
use group::Job;
use latches::LatchManager;
use leadership::Leadership;
use plans::{BoundPlan, Plans};
use pressure::Pressure;
use readers::Readers;
use row_locks::RowLocks;
use scans::{SCAN_SESSIONS, Scans};
use spares::Sessions;
use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use transactions::{Buried, NoSession, RESERVED_SESSIONS, SessionPool};

/// The latest state machine, for readers beside the applier that folds it.
pub type SharedState = Arc<RwLock<Arc<ShardState>>>;

/// What a leadership shares with the rest of the replica.
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
    pub latches: Arc<LatchManager>,
    /// Ways into PostgreSQL.
    pub connector: Connector,
    /// Sessions for snapshots of it.
    pub snapshots: Snapshots,
    /// Whether PostgreSQL has all rows: not while the replica is being re-seeded.
    pub whole: Arc<watch::Sender<bool>>,
    /// Says that the leadership must end and PostgreSQL be opened again (R1), or made again, and why.
    pub broken: mpsc::UnboundedSender<ApplyError>,
}

impl Shared {
    /// The latest state machine.
    pub fn state(&self) -> Arc<ShardState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether PostgreSQL has all rows.
    pub fn is_whole(&self) -> bool {
        *self.whole.borrow()
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
    /// The leadership.
    pub leadership: Arc<Leadership>,
    shared: Shared,
    progress: Arc<Progress>,
    plans: Plans,
    lanes: Vec<mpsc::Sender<Job>>,
    readers: Readers,
    scans: Scans,
    pieces: Scans,
    pool: SessionPool,
    under_way: Mutex<HashSet<(u64, u64)>>,
    /// Ids whose COMMIT was said to be lost: it must not take effect when it comes after all.
    buried: Mutex<Buried>,
    capacity: Option<Capacity>,
    gate: Arc<Gate>,
    pressure: Pressure,
    texts: Texts,
    row_locks: Arc<RowLocks>,
    /// Places for statements of lanes that run alone.
    alone: Semaphore,
    open_transactions: Arc<transactions::Registry>,
    /// Held while a table is tried and made.
    making_tables: tokio::sync::Mutex<()>,
}

/// Looks, for as long as the leadership lasts, at how far the replicas are.
async fn watch_replicas(leader: Arc<Leader>) {
    let mut ended = leader.leadership.ended();
    let mut look = tokio::time::interval(Duration::from_millis(pressure::LOOK_MS));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => leader.pressure.look(&leader.shared.log.status()),
            _ = ended.wait_for(|ended| *ended) => return,
        }
    }
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
    /// Begins a leadership on these sessions: starts its lanes.
    pub fn begin(leadership: Leadership, shared: Shared, config: &Config, sessions: Sessions) -> Arc<Leader> {
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
            leadership: Arc::new(leadership),
            progress: shared.progress.clone(),
            plans: Plans::default(),
            lanes,
            readers,
            scans: Scans::new(&shared.connector, SCAN_SESSIONS),
            pieces: Scans::for_pieces(&shared.connector, SCAN_SESSIONS),
            pool: SessionPool::new(shared.connector.clone(), config.max_transactions),
            under_way: Mutex::default(),
            buried: Mutex::default(),
            capacity: config.capacity_per_s.map(Capacity::new),
            gate: Gate::new(config.max_transactions + RESERVED_SESSIONS),
            pressure: Pressure::default(),
            texts: Texts { begin: "BEGIN READ WRITE".into(), record: crate::store::RECORD_SQL.into() },
            row_locks: Arc::default(),
            alone: Semaphore::new(config.write_lanes.max(1) * lanes::ALONE_PER_LANE),
            open_transactions: Arc::default(),
            making_tables: tokio::sync::Mutex::default(),
            shared,
        });
        for (session, queue) in queues {
            tokio::spawn(lanes::run(leader.clone(), session, queue));
        }
        tokio::spawn(transactions::reap(leader.clone()));
        tokio::spawn(watch_replicas(leader.clone()));
        leader
    }

    /// What it shares with the replica.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Whether work that can wait should: statements wait for their turn, or writes for replicas that lag.
    pub fn is_busy(&self) -> bool {
        self.gate.is_busy() || self.pressure.is_on()
    }

    /// Executes one statement in a transaction of its own. A read that may take long is ended when `gone` says that nobody waits for it.
    pub async fn statement(
        self: &Arc<Self>,
        request: StatementRequest,
        gone: Option<Gone>,
    ) -> Result<StatementReply, Failure> {
        self.let_in(request, None, gone).await
    }

    /// The same; a write at a durability below `disk` is answered through `early` when it has reached that (R28), and the
    /// result comes after its COMMIT.
    pub async fn statement_early(
        self: &Arc<Self>,
        request: StatementRequest,
        early: Option<EarlyReply>,
    ) -> Result<StatementReply, Failure> {
        self.let_in(request, early, None).await
    }

    async fn let_in(
        self: &Arc<Self>,
        request: StatementRequest,
        early: Option<EarlyReply>,
        gone: Option<Gone>,
    ) -> Result<StatementReply, Failure> {
        // Before anything is spent on it.
        let bytes = weight(&request);
        let inside = self.gate.enter(Kind::of(&request.sql, bytes), bytes);
        if inside.is_err() && deliberate(Bug::RefusedAndDone) {
            _ = self.serve(request.clone(), None, None).await;
        }
        let _inside = inside?;
        self.serve(request, early, gone).await
    }

    async fn serve(
        self: &Arc<Self>,
        request: StatementRequest,
        early: Option<EarlyReply>,
        gone: Option<Gone>,
    ) -> Result<StatementReply, Failure> {
        let bound = self.bind(&request)?;
        if let Some(capacity) = &self.capacity {
            capacity.acquire().await?;
        }
        let touches = touches(&bound, &request)?;
        if bound.plan.writes() {
            self.pressure.enter().await?;
        }
        if bound.plan.writes() || bound.plan.locks() {
            self.write(request, bound, touches, early).await
        } else {
            self.read(&request, &bound, &touches, gone).await
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
        // Before PostgreSQL has anything to do with it.
        request.params.iter().try_for_each(|value| session::check_value_size(long_bytes(value)))?;
        Ok(bound)
    }

    fn check_open(&self) -> Result<(), Failure> {
        if self.leadership.has_ended() { Err(Failure::NotLeader { leader: None }) } else { Ok(()) }
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
        let handle = self.shared.latches.acquire(table, &touches, &[]).await?;
        // Only now: the answers of an adopted range came with it.
        if let Some(reply) = self.answered_before(request.id)? {
            return Ok(reply);
        }
        let (answer, answered) = oneshot::channel();
        let (key, single) = match &touches {
            Touches::Keys(keys) => (keys.first().cloned(), keys.len() == 1),
            _ => (None, false),
        };
        let job = Job { request, plan: bound, handle, table, key, arrived: Instant::now(), early, answer };
        if single {
            self.to_lane(job);
        } else {
            // It may lock any of them: who wants one of these rows meanwhile does not wait for it in a batch.
            let mut rows = self.row_locks.holder();
            rows.may_hold(table, &touches);
            self.run_alone(job).await;
        }
        answered.await.unwrap_or_else(|_| Err(group::unknown("the leadership ended")))
    }

    /// Hands a job to the lane of its row: statements on the same row go through the same lane, so that they never wait for each other's
    /// lock.
    fn to_lane(&self, job: Job) {
        let lane = job.key.as_ref().map_or(0, |key| lanes::lane_of(job.table, key, self.lanes.len()));
        match self.lanes[lane].try_send(job) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(job)) => {
                let reason = "too many statements are waiting".into();
                job.answer(Err(Failure::Busy { reason, retry_after_ms: 20 }));
            }
            Err(mpsc::error::TrySendError::Closed(job)) => job.answer(Err(Failure::NotLeader { leader: None })),
        }
    }

    /// Runs a job as a group of its own, on a session that may wait for locks.
    pub(crate) async fn run_alone(&self, job: Job) {
        let session = match self.took(self.pool.take().await) {
            Ok(session) => session,
            Err(failure) => return job.answer(Err(failure)),
        };
        let ran = self.run_group(&session, vec![job], true).await;
        if !ran.session_lost {
            self.pool.put_back(session);
        }
        // A job that runs alone is always answered.
        for job in ran.apart.into_iter().chain(ran.again) {
            job.answer(Err(group::unknown("a single statement was split")));
        }
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
        if !self.shared.window().can_tell(id.first_sent_ms, self.shared.log.unix_ms()) {
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
        kept.map(|kept| kept::reply_again(&kept)).transpose()
    }

    /// Ends the leadership and has PostgreSQL opened again (R1).
    pub(crate) fn break_down(&self, reason: &str) {
        self.give_up(ApplyError::Reopen(reason.to_string()));
    }

    /// A session that is not to be had although it was counted in when PostgreSQL was configured: somebody else has taken its place, or the
    /// server is going. There is no leadership without sessions.
    pub(crate) fn no_session(&self, error: &StoreError) -> Failure {
        self.break_down(&format!("a session cannot be opened: {error}"));
        group::busy("the leader's PostgreSQL takes no more sessions")
    }

    fn took<T>(&self, taken: Result<T, NoSession>) -> Result<T, Failure> {
        taken.map_err(|error| match error {
            NoSession::Full(failure) => failure,
            NoSession::Failed(error) => self.no_session(&error),
        })
    }

    fn give_up(&self, error: ApplyError) {
        self.leadership.end();
        // Nobody listens any more if the leadership's PostgreSQL has been given up already.
        let _ = self.shared.broken.send(error);
    }

    /// What a session's error means beyond its statement. If it says that this PostgreSQL is unwell, the leadership ends, so that a
    /// replica whose PostgreSQL is well leads; the statement, of which nothing has happened, is sent again there.
    pub(crate) fn examine(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Refused(error) if is_illness(&error.code) => {
                tracing::error!(%error, "PostgreSQL is unwell; the leadership ends");
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
    let each = |value: &Value| std::mem::size_of::<Value>() + long_bytes(value);
    request.sql.len() + request.params.iter().map(each).sum::<usize>()
}

/// What a value takes beside its place, in bytes.
fn long_bytes(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    }
}

/// The answer for a table and key: what the retry window is asked about after a lost connection.
pub(crate) type WrittenKey = Option<(TableId, Key)>;
