//! Autocommit reads on the leader: by key, whole scans, and piece by piece.
//!
//! A read takes PostgreSQL's snapshot and passes the log's read barrier at the same time. This is
//! linearizable. A write is answered only after its local COMMIT (R10), so a snapshot taken after
//! the read's arrival contains every write that this leader has answered before. If another leader
//! had answered a write, the barrier would fail, because a majority responds to it after the read's
//! arrival (log rule 9). If another shard has answered a write after a move, the read's handle is
//! no longer current, and the read is not answered ([`super::latches`]).
//!
//! A piece is a read of the rows after a key, with a latch handle and a read barrier of its own.
//! Nothing is held between two pieces: no snapshot, no session, no memory. A slow reader, or one
//! that has gone, costs nothing. The price is that pieces are as of different moments, each after
//! the request for its piece.

use super::clip::{Narrowed, clipped, first_key, touches};
use super::context::LeaderContext;
use super::failures::{busy, not_executed};
use super::plan_cache::BoundPlan;
use super::postgres_session::{Parameters, reply};
use super::read_sessions::ReadSessions;
use super::scan_sessions::{SCAN_SESSIONS, ScanSessions};
use super::statement::StatementIntake;
use crate::postgres::Connector;
use crate::storage::StoreError;
use evenkeel_protocol::shard::{Piece, PieceRequest, ReadLevel, StatementReply, StatementRequest};
use evenkeel_protocol::{Failure, SqlError};
use evenkeel_rpc::Gone;
use evenkeel_sql::{Scan, Touches};
use std::future::Future;
use std::sync::Arc;

/// See the module.
pub struct Reads {
    context: Arc<LeaderContext>,
    intake: Arc<StatementIntake>,
    by_key: ReadSessions,
    scans: ScanSessions,
    pieces: ScanSessions,
}

impl Reads {
    /// Reads on these sessions; sessions of scans are opened when they are needed.
    pub fn new(context: Arc<LeaderContext>, intake: Arc<StatementIntake>, by_key: ReadSessions) -> Reads {
        let connector: &Connector = &context.shared.connector;
        let scans = ScanSessions::new(connector, SCAN_SESSIONS);
        let pieces = ScanSessions::for_pieces(connector, SCAN_SESSIONS);
        Reads { context, intake, by_key, scans, pieces }
    }

    /// Reads all rows that a statement asks for. A scan is cancelled when `gone` says that its
    /// client has gone.
    pub(super) async fn read(
        &self,
        request: &StatementRequest,
        bound: &BoundPlan,
        touches: &Touches,
        gone: Option<Gone>,
    ) -> Result<StatementReply, Failure> {
        let (sql, added) = clipped(bound, request)?;
        let mut params = Parameters::new(&request.params);
        params.extend(&added);
        let returned = bound.plan.returned();
        let lost = |error: StoreError| not_executed(&self.context.examine(error));
        if matches!(touches, Touches::Intervals(_)) {
            let scan = async {
                let read = self.scans.read(&sql, returned, &params).await;
                let (prepared, rows) = self.context.took(read)?.map_err(lost)?;
                reply(&prepared.columns, &rows, rows.len()).map_err(Failure::from)
            };
            return unless_gone(gone, self.current(request.read, bound, touches, scan)).await;
        }
        let keyed = async {
            let session = self.by_key.next().await.map_err(|error| self.context.no_session(&error))?;
            let prepared = session.prepare(&sql, returned).await.map_err(lost)?;
            let rows = session.run(&prepared, &params.refs()).await.map_err(lost)?;
            reply(&prepared.columns, &rows, rows.len()).map_err(Failure::from)
        };
        self.current(request.read, bound, touches, keyed).await
    }

    /// Reads a piece of the rows that a statement asks for. It is cancelled when `gone` says that
    /// its client has gone.
    pub(super) async fn piece(&self, request: PieceRequest, gone: Gone) -> Result<Piece, Failure> {
        let bound = self.intake.bind(&request.statement)?;
        check_piecewise(&bound)?;
        self.intake.limit_rate().await?;
        let narrowed = Narrowed::new(request, bound.plan.descending());
        let touches = touches(&bound, &narrowed.request)?;
        let (sql, added) = narrowed.clipped(&bound)?;
        let mut params = Parameters::new(&narrowed.request.params);
        params.extend(&added);
        let piece = async {
            let read = self.pieces.read_piece(&sql, bound.plan.returned(), &params).await;
            let read = self.context.took(read)?;
            let (prepared, piece) = read.map_err(|error| not_executed(&self.context.examine(error)))?;
            Ok(piece.to_piece(&prepared, &bound.codec)?)
        };
        unless_gone(Some(gone), self.current(narrowed.request.read, &bound, &touches, piece)).await
    }

    /// Executes a read with a latch handle. The read is answered only if this replica led until
    /// then, and still owns the ranges.
    async fn current<T>(
        &self,
        level: ReadLevel,
        bound: &BoundPlan,
        touches: &Touches,
        executed: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let latches = &self.context.shared.latches;
        let table = bound.schema.as_ref().map(|s| s.id).unwrap_or_default();
        let ranges = latches.acquire_read(table, touches).await?;
        self.context.check_plan(bound)?;
        let started = evenkeel_host::now();
        let led = async {
            match level {
                ReadLevel::Linearizable => self.context.barrier().await,
                // `crate::local_reads` serves `local` reads. A leader's answer is at least as
                // recent.
                ReadLevel::Leader | ReadLevel::Local => self.context.check_open(),
            }
        };
        let (answer, led) = tokio::join!(executed, led);
        led?;
        if answer.is_err() {
            // A schema change does not wait for reads: it may be why this one has failed.
            self.context.check_plan(bound)?;
        }
        if !ranges.is_current() {
            // A range has departed meanwhile, and its rows may have been half deleted when they
            // were read. The read had no effect, and is repeated where the range is now.
            latches.acquire_read(table, touches).await?;
            return Err(Failure::Busy { reason: "the range has left and come back".into(), retry_after_ms: 1 });
        }
        if let Some(latch) = ranges.latches().first() {
            let spent_us = evenkeel_host::elapsed(started).as_micros() as f64;
            let key = first_key(touches).unwrap_or(&latch.range.interval.start);
            latch.statistics.meter().record(key, false, spent_us);
        }
        answer
    }
}

/// Whether a statement can be read piece by piece.
///
/// # Errors
/// 0A000.
pub fn check_piecewise(bound: &BoundPlan) -> Result<(), Failure> {
    let piecewise = matches!(bound.plan.scan(), Scan::RangeByRange { .. }) && !bound.plan.locks();
    if piecewise && !bound.plan.writes() {
        return Ok(());
    }
    let instead = "Read it as a whole.";
    Err(SqlError::unsupported("only a SELECT in the order of the primary key is read piece by piece", instead).into())
}

/// Executes a read, and drops it when its client has gone.
pub async fn unless_gone<T>(gone: Option<Gone>, read: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let Some(gone) = gone else { return read.await };
    tokio::select! {
        biased;
        read = read => read,
        () = gone.gone() => Err(busy("nobody waits for the answer any more")),
    }
}
