//! Reads that are too large for one answer: the rows arrive in pieces, in the order of the primary
//! key.
//!
//! It owns one task per stream, which requests the next piece while the reader processes the last
//! one, and holds at most [`PIECES_AHEAD`] pieces that are not taken. A shard holds nothing for a
//! stream between two pieces: a reader may be slow, within the stream's time limit. It promises:
//!
//! - Every row that exists unchanged from the stream's beginning to its end arrives exactly once.
//!   Rows arrive in the order of their keys (or in the reverse order if the statement asks for
//!   that), while ranges split, move or change leaders.
//! - Each piece is a linearizable read (or one at the chosen level) of the keys between the
//!   previous piece and its own last key: it contains everything that was acknowledged before the
//!   piece was requested. Different pieces are of different moments: a stream is no snapshot.
//! - A stream that cannot continue ends with an error. A stream that ends without an error is
//!   complete.
//! - A stream that is dropped ends its execution at the shard.

use crate::answer::Answer;
use crate::core::ClientCore;
use crate::deliver::{Detour, ask_shard};
use crate::error::ClientError;
use crate::execute::count;
use crate::levels::Levels;
use crate::payload::Payload;
use crate::pieces::{ScanKeys, cut};
use crate::prepare::{Prepared, prepare};
use crate::reply::{ReplicaReply, unexpected};
use crate::retry::{Attempts, Repeat};
use crate::routing::Statement;
use crate::stats::add;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{Durability, PieceRequest, ShardReply, ShardRequest, StatementRequest};
use evenkeel_protocol::{Column, Key, KeyInterval, RowBatch, SqlError, TableId, Value};
use evenkeel_sql::{Scan, Touches};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Pieces that have arrived and are not taken; one more may be waiting to be queued.
const PIECES_AHEAD: usize = 1;

/// The rows of a statement, piece by piece. See [`crate::Client::stream`].
pub struct RowStream {
    /// The answer of the first piece, without its rows.
    head: Answer,
    first: Option<RowBatch>,
    rest: Option<LaterPieces>,
}

struct LaterPieces {
    pieces: mpsc::Receiver<Result<Answer, ClientError>>,
    task: AbortHandle,
}

impl Drop for LaterPieces {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RowStream {
    /// The stream of a statement that can be read piece by piece; `None` if this one cannot.
    pub(crate) async fn open(
        core: &Arc<ClientCore>,
        sql: &str,
        params: &[Value],
        levels: Levels,
    ) -> Result<Option<RowStream>, ClientError> {
        let deadline_ms = core.now_ms() + core.config.statement_timeout_ms;
        let Prepared::Statement(statement) = prepare(core, sql, deadline_ms).await? else { return Ok(None) };
        let Some(reading) = Reading::new(core.clone(), &statement, params, levels)? else { return Ok(None) };
        add(&core.counters.statements, 1);
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let task = tokio::spawn(reading.run(sender)).abort_handle();
        let mut rest = LaterPieces { pieces, task };
        let ended = || ClientError::Sql(SqlError::new(codes::INTERNAL, "a stream ended without an answer"));
        let mut head = rest.pieces.recv().await.ok_or_else(ended)??;
        let rows = std::mem::take(&mut head.rows);
        Ok(Some(RowStream { head, first: Some(rows), rest: Some(rest) }))
    }

    /// The stream of a statement that was executed as a whole.
    pub(crate) fn whole(mut answer: Answer) -> RowStream {
        let rows = std::mem::take(&mut answer.rows);
        RowStream { head: answer, first: Some(rows), rest: None }
    }

    /// The result's columns; empty if the statement returns none.
    pub fn columns(&self) -> &Arc<[Column]> {
        &self.head.columns
    }

    /// The answer without its rows. Of a stream of several pieces, `shard` is the first that
    /// answered; `retries`, `affected` and `staleness_ms` (the largest) are those of the pieces
    /// taken so far.
    pub fn answer(&self) -> &Answer {
        &self.head
    }

    /// The next rows; `None` after the last.
    ///
    /// # Errors
    /// As [`crate::Client::execute`]. The stream then ends and is not complete.
    pub async fn next(&mut self) -> Result<Option<RowBatch>, ClientError> {
        if let Some(rows) = self.first.take().filter(|rows| rows.count > 0) {
            return Ok(Some(rows));
        }
        while let Some(rest) = &mut self.rest {
            match rest.pieces.recv().await {
                Some(Ok(piece)) => {
                    self.head.affected += piece.affected;
                    self.head.retries += piece.retries;
                    self.head.staleness_ms = self.head.staleness_ms.max(piece.staleness_ms);
                    if piece.rows.count > 0 {
                        return Ok(Some(piece.rows));
                    }
                }
                Some(Err(error)) => {
                    self.rest = None;
                    return Err(error);
                }
                None => self.rest = None,
            }
        }
        Ok(None)
    }
}

/// A statement that is read piece by piece.
struct Reading {
    core: Arc<ClientCore>,
    request: StatementRequest,
    touches: Touches,
    table: TableId,
    /// Whether the stream reads from the last key to the first.
    descending: bool,
    /// Rows that are still to be read.
    left: Option<u64>,
    /// The key of the last row, once a piece has arrived that is not the last of its range.
    after: Option<Key>,
    /// The place of the replica that a `local` read asks first.
    prefer: u64,
}

impl Reading {
    /// `None` if the statement cannot be read piece by piece.
    fn new(
        core: Arc<ClientCore>,
        statement: &Statement,
        params: &[Value],
        levels: Levels,
    ) -> Result<Option<Reading>, ClientError> {
        let plan = &statement.plan;
        let (piecewise, touches) = (matches!(plan.scan(), Scan::RangeByRange { .. }), plan.touches(params)?);
        let (Some(table), true) = (plan.table(), piecewise && touches != Touches::Nothing) else { return Ok(None) };
        if plan.writes() || plan.locks() {
            return Ok(None);
        }
        let left = plan.row_limit(params)?;
        let request = StatementRequest {
            id: core.new_id(),
            sql: statement.sql.clone(),
            params: params.to_vec(),
            clip: None,
            limit: left,
            read: levels.read,
            max_staleness_ms: levels.max_staleness_ms,
            durability: Durability::Disk,
        };
        let prefer = levels.replica.unwrap_or(request.id.sequence);
        let descending = plan.descending();
        Ok(Some(Reading { core, request, touches, table, descending, left, after: None, prefer }))
    }

    /// Sends the pieces, and the error if they end early.
    async fn run(mut self, pieces: mpsc::Sender<Result<Answer, ClientError>>) {
        let core = self.core.clone();
        let limit_ms = core.config.stream_timeout_ms;
        let read = evenkeel_host::timeout(Duration::from_millis(limit_ms), self.read(&pieces)).await;
        if let Err(error) = read.unwrap_or_else(|_| Err(too_slow(limit_ms))) {
            add(&core.counters.failures, 1);
            // Fails if the reader is gone.
            let _ = pieces.send(Err(error)).await;
        }
    }

    async fn read(&mut self, out: &mpsc::Sender<Result<Answer, ClientError>>) -> Result<(), ClientError> {
        let core = self.core.clone();
        let mut pending = VecDeque::new();
        let mut attempts = self.attempts();
        cut(&core, self.keys(), &KeyInterval::ALL, &mut pending, &mut attempts).await?;
        while let Some(piece) = pending.pop_front() {
            let statement =
                StatementRequest { clip: Some(piece.clip.clone()), limit: self.left, ..self.request.clone() };
            let request = ShardRequest::Piece(PieceRequest { statement, after: self.after.clone() });
            let payload = Payload::of_read(&request, self.request.read, self.prefer);
            match ask_shard(&core, piece.shard, &payload, &mut attempts).await {
                Ok(answered) => {
                    let (answer, more) = self.advance(answered, &attempts)?;
                    count(&core, &attempts);
                    if out.send(Ok(answer)).await.is_err() || self.left == Some(0) {
                        return Ok(());
                    }
                    if more {
                        pending.push_front(piece);
                    }
                    // Each piece has the time of a statement.
                    attempts = self.attempts();
                }
                Err(Detour::GiveUp(error)) => {
                    count(&core, &attempts);
                    return Err(error);
                }
                Err(Detour::Reroute(hint)) => {
                    if hint.is_some() {
                        core.refresh_until(attempts.deadline_ms()).await;
                    }
                    cut(&core, self.keys(), &self.unread(&piece.clip), &mut pending, &mut attempts).await?;
                }
            }
        }
        Ok(())
    }

    fn keys(&self) -> ScanKeys<'_> {
        ScanKeys { touches: &self.touches, table: Some(self.table), descending: self.descending }
    }

    fn attempts(&self) -> Attempts {
        let (now_ms, config) = (self.core.now_ms(), &self.core.config);
        Attempts::new(Repeat::Free, now_ms, config.statement_timeout_ms)
            .patient_for(now_ms, config.overload_patience_ms)
    }

    /// Advances past a piece; also returns whether more rows follow in the same interval.
    fn advance(&mut self, answered: ReplicaReply, attempts: &Attempts) -> Result<(Answer, bool), ClientError> {
        let (reply, more_after) = match answered.reply {
            ShardReply::Piece(piece) => (piece.reply, piece.more_after),
            other => return Err(unexpected(&other)),
        };
        let more = more_after.is_some();
        self.after = more_after.or(self.after.take());
        self.left = self.left.map(|left| left.saturating_sub(reply.rows.count.into()));
        Ok((Answer::new(reply, answered.shard, attempts.retries()), more))
    }

    /// The part of an interval that is not read. It contains the key of the last row, which does
    /// not arrive again.
    fn unread(&self, clip: &KeyInterval) -> KeyInterval {
        match &self.after {
            None => clip.clone(),
            Some(after) if self.descending => clip.intersection(&KeyInterval::new(Key::MIN, Some(after.clone()))),
            Some(after) => clip.intersection(&KeyInterval::new(after.clone(), None)),
        }
    }
}

fn too_slow(limit_ms: u64) -> ClientError {
    let error = SqlError::new(codes::QUERY_CANCELED, format!("the stream has not ended within {limit_ms} ms"));
    ClientError::Sql(error.hint("Read a smaller interval of keys, or raise stream_timeout_ms."))
}
