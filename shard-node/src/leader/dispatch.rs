//! [`Leader`]: the entry point of statements, transactions and control requests, and the owner of a
//! leadership's parts.
//!
//! A statement passes admission control, is bound to its plan, waits for the rate limiter and, if
//! it writes, for backpressure. Then it goes to [`Reads`] or [`Writes`]. The methods here only
//! dispatch; the parts hold the state.

use super::admission_control::{AdmissionControl, StatementKind};
use super::backpressure::{self, Backpressure};
use super::clip::touches;
use super::commit::Committer;
use super::context::LeaderContext;
use super::early_acknowledgement::EarlyReply;
use super::ended_transaction::Ending;
use super::group_commit::GroupCommit;
use super::item_stream::ItemStream;
use super::latches::RangeLatch;
use super::leadership::{EntryOutcome, Leadership};
use super::open_transaction::{OpenTransaction, TransactionHandle};
use super::pass_through::StepError;
use super::range_control::RangeControl;
use super::read_sessions::ReadSessions;
use super::reads::Reads;
use super::row_locks::RowLocks;
use super::schema_changes::SchemaChanges;
use super::session_pool::{RESERVED_SESSIONS, SessionPool};
use super::standalone::StandaloneStatements;
use super::statement::{StatementIntake, weight};
use super::statement_ids::StatementIds;
use super::transactions::{Transactions, WrittenKey};
use super::warm_sessions::LeaderSessions;
use super::write_queue::{WriteQueueWorkers, WriteQueues};
use super::writes::Writes;
use crate::config::Config;
use crate::log_entry::{Control, Resolution};
use crate::replica::ReplicaHandles;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::pass_through::{PassThroughBegin, PassThroughEnd, PassThroughRequest};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{
    ControlReply, ControlRequest, Piece, PieceRequest, StatementReply, StatementRequest, TransactionOptions,
};
use evenkeel_protocol::{Durability, Epoch, Failure, OperatorId, RangeId, SchemaDelta, TableId, TxnId};
use evenkeel_rpc::Gone;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// One leadership on one server start (R1). See the module.
pub struct Leader {
    /// The leadership.
    pub leadership: Arc<Leadership>,
    context: Arc<LeaderContext>,
    admission: Arc<AdmissionControl>,
    backpressure: Arc<Backpressure>,
    intake: Arc<StatementIntake>,
    reads: Reads,
    writes: Writes,
    transactions: Arc<Transactions>,
    control: RangeControl,
    schema: Arc<SchemaChanges>,
}

impl Leader {
    /// Begins a leadership on these sessions, and starts its write queues.
    pub fn begin(
        leadership: Leadership,
        shared: ReplicaHandles,
        config: &Config,
        sessions: LeaderSessions,
    ) -> Arc<Leader> {
        let leadership = Arc::new(leadership);
        let by_key = ReadSessions::new(&shared.connector, sessions.readers);
        let pool = Arc::new(SessionPool::new(shared.connector.clone(), config.max_transactions));
        let ids = Arc::new(StatementIds::new(shared.clone()));
        let context = Arc::new(LeaderContext { leadership: leadership.clone(), shared });
        let intake = Arc::new(StatementIntake::new(context.clone(), config.capacity_per_s));
        let row_locks: Arc<RowLocks> = Arc::default();
        let committer = Arc::new(Committer::new(context.clone()));
        let group = Arc::new(GroupCommit::new(context.clone(), committer.clone()));
        let standalone = Arc::new(StandaloneStatements::new(context.clone(), pool.clone(), group.clone()));
        let (queues, receivers) = WriteQueues::new(sessions.writers.len());
        let queues = Arc::new(queues);
        let transactions = Arc::new(Transactions::new(
            context.clone(),
            intake.clone(),
            ids.clone(),
            pool,
            committer,
            row_locks.clone(),
        ));
        let backpressure: Arc<Backpressure> = Arc::default();
        let workers = sessions.writers.into_iter().zip(receivers).collect();
        let (queue_context, queue_locks) = (context.clone(), row_locks.clone());
        WriteQueueWorkers::start(queue_context, queues.clone(), group, standalone.clone(), queue_locks, workers);
        tokio::spawn(transactions.clone().reap());
        tokio::spawn(watch_replicas(context.clone(), backpressure.clone()));
        Arc::new(Leader {
            leadership,
            admission: AdmissionControl::new(config.max_transactions + RESERVED_SESSIONS),
            backpressure,
            reads: Reads::new(context.clone(), intake.clone(), by_key),
            writes: Writes { context: context.clone(), ids, queues, standalone, row_locks },
            control: RangeControl::new(context.clone()),
            schema: Arc::new(SchemaChanges::new(context.clone(), transactions.clone())),
            intake,
            transactions,
            context,
        })
    }

    /// The replica's handles.
    pub fn shared(&self) -> &ReplicaHandles {
        &self.context.shared
    }

    /// Whether background work should wait: statements wait for others, or writes wait for replicas
    /// that lag.
    pub fn is_busy(&self) -> bool {
        self.admission.is_busy() || self.backpressure.is_on()
    }

    /// Read barrier: succeeds only if this replica led until after the call (log rule 9).
    pub(crate) async fn barrier(&self) -> Result<(), Failure> {
        self.context.barrier().await
    }

    /// Ends the leadership and has PostgreSQL opened again (R1).
    pub(crate) fn break_down(&self, reason: &str) {
        self.context.break_down(reason);
    }

    /// Executes one statement in a transaction of its own. A scan is cancelled when `gone` says
    /// that its client has gone.
    pub async fn statement(&self, request: StatementRequest, gone: Option<Gone>) -> Result<StatementReply, Failure> {
        self.admit(request, None, gone).await
    }

    /// The same. A write at a durability below `disk` is also answered through `early` as soon as
    /// it has reached its durability (R28); the result comes after its COMMIT.
    pub async fn statement_early(
        &self,
        request: StatementRequest,
        early: Option<EarlyReply>,
    ) -> Result<StatementReply, Failure> {
        self.admit(request, early, None).await
    }

    async fn admit(
        &self,
        request: StatementRequest,
        early: Option<EarlyReply>,
        gone: Option<Gone>,
    ) -> Result<StatementReply, Failure> {
        // Before any work on the statement.
        let bytes = weight(&request);
        let admitted = self.admission.admit(StatementKind::of(&request.sql, bytes), bytes);
        if admitted.is_err() && deliberate(Bug::RefusedAndDone) {
            _ = self.execute(request.clone(), None, None).await;
        }
        let _admitted = admitted?;
        self.execute(request, early, gone).await
    }

    async fn execute(
        &self,
        request: StatementRequest,
        early: Option<EarlyReply>,
        gone: Option<Gone>,
    ) -> Result<StatementReply, Failure> {
        let bound = self.intake.bind(&request)?;
        self.intake.limit_rate().await?;
        let touches = touches(&bound, &request)?;
        if bound.plan.writes() {
            self.backpressure.admit().await?;
        }
        if bound.plan.writes() || bound.plan.locks() {
            self.writes.execute(request, bound, touches, early).await
        } else {
            self.reads.read(&request, &bound, &touches, gone).await
        }
    }

    /// Reads a piece of the rows that a statement asks for. It is cancelled when `gone` says that
    /// its client has gone.
    pub async fn piece(&self, request: PieceRequest, gone: Gone) -> Result<Piece, Failure> {
        let _admitted = self.admission.admit(StatementKind::Large, weight(&request.statement))?;
        self.reads.piece(request, gone).await
    }

    /// Begins a transaction.
    pub async fn begin_transaction(&self, options: TransactionOptions) -> Result<Arc<TransactionHandle>, Failure> {
        self.context.check_open()?;
        // Only while it waits for a session. An open transaction holds locks, so its statements are
        // always admitted.
        let _admitted = self.admission.admit(StatementKind::Write, std::mem::size_of::<OpenTransaction>())?;
        self.transactions.begin(options).await
    }

    /// Runs a statement in a transaction.
    pub async fn in_transaction(
        &self,
        handle: &TransactionHandle,
        request: StatementRequest,
    ) -> Result<StatementReply, Failure> {
        self.transactions.execute(handle, request).await
    }

    /// Begins a transaction in users' own texts.
    pub async fn begin_pass_through(&self, begin: &PassThroughBegin) -> Result<Arc<TransactionHandle>, Failure> {
        self.context.check_open()?;
        // Only while it waits for a session, as above.
        let _admitted = self.admission.admit(StatementKind::Write, std::mem::size_of::<OpenTransaction>())?;
        self.transactions.begin_pass_through(begin).await
    }

    /// Executes a step of such a transaction, and sends its items but for the last.
    pub async fn step(
        &self,
        handle: &TransactionHandle,
        request: &PassThroughRequest,
        out: &mut ItemStream<'_>,
        gone: Gone,
    ) -> Result<PassThroughEnd, StepError> {
        if request.begin.is_some() && request.tables.iter().any(|used| used.writes) {
            self.backpressure.admit().await.map_err(StepError::NotExecuted)?;
        }
        self.transactions.step(handle, request, out, gone).await
    }

    /// Commits a transaction under the client's id.
    pub async fn commit_transaction(&self, handle: &TransactionHandle, end: &Ending) -> Result<(), Failure> {
        self.transactions.commit(handle, end, Durability::Disk, None).await
    }

    /// The same. At a durability below `disk` the commit is also answered through `early` (R28).
    pub async fn commit_early(
        &self,
        handle: &TransactionHandle,
        id: TxnId,
        durability: Durability,
        early: Option<EarlyReply>,
    ) -> Result<(), Failure> {
        self.transactions.commit(handle, &Ending::alone(id), durability, early).await
    }

    /// Prepares a transaction that another shard decides about (R26).
    pub async fn prepare_transaction(
        &self,
        handle: &TransactionHandle,
        id: TxnId,
        decider: ShardInfo,
    ) -> Result<(), Failure> {
        self.transactions.prepare(handle, id, decider).await
    }

    /// Resolves a prepared transaction. Idempotent.
    pub async fn resolve_transaction(&self, resolution: Resolution) -> Result<(), Failure> {
        self.transactions.resolve(resolution).await
    }

    /// The client of a prepared transaction has gone before it resolved it.
    pub fn abandon_transaction(&self, id: TxnId) {
        self.transactions.prepared().abandon(id);
    }

    /// Whether the client of a prepared transaction has gone.
    pub fn is_abandoned(&self, id: TxnId) -> bool {
        self.transactions.prepared().is_abandoned(id)
    }

    /// Whether a transaction that this shard decides about is committed; `None` while its commit is
    /// under way. If it is not, it never will be.
    pub async fn decision(&self, id: TxnId) -> Result<Option<bool>, Failure> {
        self.transactions.decision(id).await
    }

    /// Which of these transactions are still prepared here.
    pub async fn still_prepared(&self, ids: Vec<TxnId>) -> Result<Vec<TxnId>, Failure> {
        self.transactions.still_prepared(ids).await
    }

    /// Forgets decisions that all participants have in their logs.
    pub async fn forget_decisions(&self, ids: Vec<TxnId>) -> Result<(), Failure> {
        self.transactions.forget_decisions(ids).await
    }

    /// Answers a COMMIT whose transaction is not open here.
    pub async fn commit_again(&self, id: TxnId, key: WrittenKey) -> Result<(), Failure> {
        self.transactions.commit_again(id, key).await
    }

    /// Rolls a transaction back.
    pub async fn roll_back_transaction(&self, handle: &TransactionHandle) {
        self.transactions.roll_back(handle).await;
    }

    /// Ends the transactions that delay the fence of a range (R22).
    pub async fn doom_transactions_on(&self, latch: &Arc<RangeLatch>) {
        self.transactions.doom_on(latch).await;
    }

    /// Proposes a control entry.
    pub async fn propose_control(&self, control: Control) -> Result<oneshot::Receiver<EntryOutcome>, Failure> {
        self.control.propose(control).await
    }

    /// Proposes a control entry and waits until it is applied and stored here.
    pub async fn control(&self, control: Control) -> Result<EntryOutcome, Failure> {
        self.control.execute(control).await
    }

    /// Serves a request of the placement driver that consists of one entry.
    pub async fn serve_control(&self, request: &ControlRequest) -> Result<ControlReply, Failure> {
        self.control.serve(request).await
    }

    /// Tries a schema change, and holds its tables (R34).
    pub async fn prepare_schema(&self, operator: OperatorId, delta: SchemaDelta) -> Result<ControlReply, Failure> {
        self.schema.prepare(operator, delta).await
    }

    /// Releases the tables of a schema change that was given up.
    pub async fn abort_schema(&self, operator: OperatorId) -> Result<ControlReply, Failure> {
        self.schema.abort(operator).await
    }

    /// Makes a decided schema change.
    pub async fn apply_schema(
        &self,
        delta: SchemaDelta,
        ranges: Vec<(TableId, RangeId)>,
    ) -> Result<ControlReply, Failure> {
        self.schema.apply(delta, ranges).await
    }

    /// The schema changes after a version.
    pub async fn schema_after(&self, version: u64) -> Result<ControlReply, Failure> {
        self.schema.after(version).await
    }

    /// The keys that divide a range into pieces of about equal bytes.
    pub async fn size_split_keys(&self, range: RangeId, epoch: Epoch, pieces: u32) -> Result<ControlReply, Failure> {
        self.control.size_split_keys(range, epoch, pieces).await
    }
}

/// Adjusts backpressure to the lag of the replicas, until the leadership ends.
async fn watch_replicas(context: Arc<LeaderContext>, backpressure: Arc<Backpressure>) {
    let mut ended = context.leadership.ended();
    let mut look = evenkeel_host::interval(Duration::from_millis(backpressure::LOOK_MS));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => backpressure.observe(&context.shared.log.status()),
            _ = ended.wait_for(|ended| *ended) => return,
        }
    }
}
