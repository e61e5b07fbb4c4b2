//! Reads in a transaction of their own: by key, whole, and piece by piece.
//!
//! A piece is a read like any other, of the rows that come behind a key: it is admitted, and passes the read barrier, by itself. So nothing
//! is held from one piece to the next, neither a snapshot nor a session nor a place in memory, and a reader that is slow, or gone, costs
//! nothing. What it costs is that pieces are as of different moments, each of which is after its piece was asked for.

use super::clip::{Narrowed, clipped, first_key, touches};
use super::gate::Kind;
use super::plans::BoundPlan;
use super::session::{self, Parameters};
use super::{Leader, group, weight};
use crate::store::StoreError;
use evenkeel_protocol::shard::{Piece, PieceRequest, ReadLevel, StatementReply, StatementRequest};
use evenkeel_protocol::{Failure, SqlError};
use evenkeel_rpc::Gone;
use evenkeel_sql::{Scan, Touches};
use std::future::Future;
use std::time::Instant;

impl Leader {
    /// Reads all that a statement asks for.
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
        let lost = |error: StoreError| group::lost(&self.examine(error));
        if matches!(touches, Touches::Intervals(_)) {
            let scan = async {
                let read = self.scans.read(&sql, returned, &params).await;
                let (prepared, rows) = self.took(read)?.map_err(lost)?;
                session::reply(&prepared.columns, &rows, rows.len()).map_err(Failure::from)
            };
            return unless_gone(gone, self.current(request.read, bound, touches, scan)).await;
        }
        let keyed = async {
            let session = self.readers.next().await.map_err(|error| self.no_session(&error))?;
            let prepared = session.prepare(&sql, returned).await.map_err(lost)?;
            let rows = session.run(&prepared, &params.refs()).await.map_err(lost)?;
            session::reply(&prepared.columns, &rows, rows.len()).map_err(Failure::from)
        };
        self.current(request.read, bound, touches, keyed).await
    }

    /// Reads a piece of what a statement asks for. It is ended when `gone` says that nobody waits for it.
    pub async fn piece(&self, request: PieceRequest, gone: Gone) -> Result<Piece, Failure> {
        let _inside = self.gate.enter(Kind::Large, weight(&request.statement))?;
        let bound = self.bind(&request.statement)?;
        check_piecewise(&bound)?;
        if let Some(capacity) = &self.capacity {
            capacity.acquire().await?;
        }
        let narrowed = Narrowed::new(request, bound.plan.descending());
        let touches = touches(&bound, &narrowed.request)?;
        let (sql, added) = narrowed.clipped(&bound)?;
        let mut params = Parameters::new(&narrowed.request.params);
        params.extend(&added);
        let piece = async {
            let read = self.pieces.read_piece(&sql, bound.plan.returned(), &params).await;
            let read = self.took(read)?;
            let (prepared, piece) = read.map_err(|error| group::lost(&self.examine(error)))?;
            Ok(piece.told(&prepared, &bound.codec)?)
        };
        unless_gone(Some(gone), self.current(narrowed.request.read, &bound, &touches, piece)).await
    }

    /// Runs a read while it may see its keys. It is answered only if this replica led until then, and its ranges are still here.
    async fn current<T>(
        &self,
        level: ReadLevel,
        bound: &BoundPlan,
        touches: &Touches,
        executed: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let table = bound.schema.as_ref().map(|s| s.id).unwrap_or_default();
        let handle = self.shared.latches.acquire_read(table, touches).await?;
        let started = Instant::now();
        let fresh = async {
            match level {
                ReadLevel::Linearizable => self.barrier().await,
                // `local` is served beside the leadership (see `crate::local`); here it is at least as fresh.
                ReadLevel::Leader | ReadLevel::Local => self.check_open(),
            }
        };
        let (answer, fresh) = tokio::join!(executed, fresh);
        fresh?;
        if !handle.is_current() {
            // Its range has left meanwhile, and what was left behind may have been half deleted when it was read: nothing has
            // happened, and it is read again where the range is.
            self.shared.latches.acquire_read(table, touches).await?;
            return Err(Failure::Busy { reason: "the range has left and come back".into(), retry_after_ms: 1 });
        }
        if let Some(slot) = handle.latches().first() {
            let spent_us = started.elapsed().as_micros() as f64;
            let key = first_key(touches).unwrap_or(&slot.range.interval.start);
            slot.statistics.meter().record(key, false, spent_us);
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

/// Ends a read as soon as nobody waits for it.
pub async fn unless_gone<T>(gone: Option<Gone>, read: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let Some(gone) = gone else { return read.await };
    tokio::select! {
        biased;
        read = read => read,
        () = gone.gone() => Err(group::busy("nobody waits for the answer any more")),
    }
}
