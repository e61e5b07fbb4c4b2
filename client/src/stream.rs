//! Reads that are too large for one answer: their rows come in pieces, in the order of the primary key.
//!
//! It owns a task per stream, which asks for the next piece while the one before is being looked at, and holds no more than
//! [`PIECES_AHEAD`] pieces that nobody has taken. A shard keeps nothing for a stream between two pieces, so a reader may be as slow as it
//! likes, within the stream's time limit. It promises:
//!
//! - every row that is there from the stream's beginning to its end, unchanged, comes exactly once; rows come in the order of their keys (or
//!   in its reverse, if that is asked for), whether ranges split, move or change their leader meanwhile or not;
//! - each piece is a linearizable read (or one of the level asked for) of the keys between the one before it and its own last: it holds
//!   what was acknowledged before the piece was asked for. Different pieces are of different moments: a stream is no snapshot;
//! - what cannot go on where it has stopped ends the stream with an error. A stream that has ended without one was whole;
//! - dropped, it ends what is being executed for it.

use crate::error::ClientError;
use crate::exchange::{Answered, Detour, Payload, unexpected};
use crate::execute::{Answer, Prepared, scan_payload};
use crate::levels::Levels;
use crate::retry::{Attempts, Outcome, Repeat};
use crate::router::{self, Piece};
use crate::session::Session;
use crate::statements::Statement;
use crate::{Client, stats};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{Durability, PieceRequest, ShardReply, ShardRequest, StatementRequest};
use evenkeel_protocol::{Column, Key, KeyInterval, RowBatch, SqlError, TableId, Value};
use evenkeel_sql::{Scan, Touches};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Pieces that have come and wait to be taken; one more may have come meanwhile.
const PIECES_AHEAD: usize = 1;

/// The rows of a statement, piece by piece. See [`Client::stream`].
pub struct RowStream {
    /// Of the first piece; its rows have been taken out.
    head: Answer,
    first: Option<RowBatch>,
    rest: Option<Rest>,
}

struct Rest {
    pieces: mpsc::Receiver<Result<Answer, ClientError>>,
    task: AbortHandle,
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RowStream {
    /// Of a statement that was executed as a whole.
    pub(crate) fn whole(mut answer: Answer) -> RowStream {
        let rows = std::mem::take(&mut answer.rows);
        RowStream { head: answer, first: Some(rows), rest: None }
    }

    /// The result's columns; empty if the statement returns none.
    pub fn columns(&self) -> &Arc<[Column]> {
        &self.head.columns
    }

    /// What is known of the answer beside its rows. Of a stream of several pieces: `shard` is the first that answered, `retries`,
    /// `affected` and `staleness_ms` (the largest) are of the pieces taken so far.
    pub fn answer(&self) -> &Answer {
        &self.head
    }

    /// The next rows; `None` when all have come.
    ///
    /// # Errors
    /// As [`Client::execute`]; the stream has ended then, and is not whole. Nothing comes after an error.
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

impl Client {
    /// Reads as [`Client::execute`] does, for answers of any size: the rows come in pieces of about 256 KiB (or of one row, if that is larger),
    /// in the order of the primary key, and no more than a few pieces are held at a time, here or at the shards.
    ///
    /// Each row that is there all the time comes exactly once, whatever the cluster does meanwhile. Pieces are of different moments: each
    /// shows everything that was acknowledged before it was asked for, and the stream as a whole is no snapshot. A piece takes no longer than a
    /// statement may; the stream no longer than `stream_timeout_ms`. Dropped, it ends what is being executed for it.
    ///
    /// What cannot be read so (another order, aggregates, `DISTINCT`, a statement that writes or locks) is executed as a whole, and comes as
    /// one piece with the limits that [`Client::execute`] has.
    ///
    /// ```no_run
    /// # async fn example(client: evenkeel_client::Client) -> Result<(), evenkeel_client::ClientError> {
    /// let mut all = client.stream("SELECT id, balance FROM accounts", &[]).await?;
    /// let mut sum = 0;
    /// while let Some(rows) = all.next().await? {
    ///     sum += (0..rows.count as usize).filter_map(|row| rows.int(row, 1)).sum::<i64>();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stream(&self, sql: &str, params: &[Value]) -> Result<RowStream, ClientError> {
        self.stream_with(sql, params, Levels::default()).await
    }

    /// The same with levels chosen, as for [`Client::execute_with`].
    pub async fn stream_with(&self, sql: &str, params: &[Value], levels: Levels) -> Result<RowStream, ClientError> {
        match self.streaming(sql, params, levels).await? {
            Some(stream) => Ok(stream),
            None => Ok(RowStream::whole(self.execute_with(sql, params, levels).await?)),
        }
    }

    /// The stream of a statement that can be read piece by piece.
    pub(crate) async fn streaming(
        &self,
        sql: &str,
        params: &[Value],
        levels: Levels,
    ) -> Result<Option<RowStream>, ClientError> {
        let session = self.session().clone();
        let deadline_ms = session.now_ms() + session.config.statement_timeout_ms;
        let Prepared::Statement(statement) = session.prepare(sql, deadline_ms).await? else { return Ok(None) };
        let Some(reading) = Reading::new(session.clone(), &statement, params, levels)? else { return Ok(None) };
        stats::add(&session.counters.statements, 1);
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let task = tokio::spawn(reading.run(sender)).abort_handle();
        let mut rest = Rest { pieces, task };
        let ended = || ClientError::Sql(SqlError::new(codes::INTERNAL, "a stream ended without an answer"));
        let mut head = rest.pieces.recv().await.ok_or_else(ended)??;
        let rows = std::mem::take(&mut head.rows);
        Ok(Some(RowStream { head, first: Some(rows), rest: Some(rest) }))
    }
}

/// A statement that is read piece by piece.
struct Reading {
    session: Arc<Session>,
    request: StatementRequest,
    touches: Touches,
    table: TableId,
    /// Whether it goes from the last key to the first.
    descending: bool,
    /// Rows that are still wanted.
    left: Option<u64>,
    /// The last row's key, once a piece has come with more behind it.
    after: Option<Key>,
    /// The replica that a `local` read begins with.
    prefer: u64,
}

impl Reading {
    /// `None` if the statement is not read so.
    fn new(
        session: Arc<Session>,
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
            id: session.new_id(),
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
        Ok(Some(Reading { session, request, touches, table, descending, left, after: None, prefer }))
    }

    /// Sends the pieces, and why they end if that is not the end of the rows.
    async fn run(mut self, pieces: mpsc::Sender<Result<Answer, ClientError>>) {
        let session = self.session.clone();
        let limit_ms = session.config.stream_timeout_ms;
        let read = tokio::time::timeout(Duration::from_millis(limit_ms), self.read(&pieces)).await;
        if let Err(error) = read.unwrap_or_else(|_| Err(too_slow(limit_ms))) {
            stats::add(&session.counters.failures, 1);
            // Nobody may be left who wants to know.
            let _ = pieces.send(Err(error)).await;
        }
    }

    async fn read(&mut self, out: &mpsc::Sender<Result<Answer, ClientError>>) -> Result<(), ClientError> {
        let mut pending = VecDeque::new();
        let mut attempts = self.attempts();
        self.cut(&KeyInterval::ALL, &mut pending, &mut attempts).await?;
        while let Some(piece) = pending.pop_front() {
            let statement =
                StatementRequest { clip: Some(piece.clip.clone()), limit: self.left, ..self.request.clone() };
            let request = ShardRequest::Piece(PieceRequest { statement, after: self.after.clone() });
            let answered = self.session.at_shard(piece.shard, &self.payload(&request), &mut attempts).await;
            match answered {
                Ok(answered) => {
                    let (answer, more) = self.take(answered, &attempts)?;
                    self.session.count(&attempts);
                    if out.send(Ok(answer)).await.is_err() || self.left == Some(0) {
                        return Ok(());
                    }
                    if more {
                        pending.push_front(piece);
                    }
                    // Each piece has a statement's time.
                    attempts = self.attempts();
                }
                Err(Detour::GiveUp(error)) => {
                    self.session.count(&attempts);
                    return Err(error);
                }
                Err(Detour::Reroute(hint)) => {
                    if hint.is_some() {
                        self.session.refresh_until(attempts.deadline_ms()).await;
                    }
                    self.cut(&self.rest_of(&piece.clip), &mut pending, &mut attempts).await?;
                }
            }
        }
        Ok(())
    }

    fn attempts(&self) -> Attempts {
        let (now_ms, config) = (self.session.now_ms(), &self.session.config);
        Attempts::new(Repeat::Free, now_ms, config.statement_timeout_ms)
            .patient_for(now_ms, config.overload_patience_ms)
    }

    fn payload<'a>(&self, request: &'a ShardRequest) -> Payload<'a> {
        scan_payload(request, self.request.read, self.prefer)
    }

    /// Takes a piece in; whether more follows in the same clip.
    fn take(&mut self, answered: Answered, attempts: &Attempts) -> Result<(Answer, bool), ClientError> {
        let (reply, more_after) = match answered.reply {
            ShardReply::Piece(piece) => (piece.reply, piece.more_after),
            other => return Err(unexpected(&other)),
        };
        let more = more_after.is_some();
        self.after = more_after.or(self.after.take());
        self.left = self.left.map(|left| left.saturating_sub(reply.rows.count.into()));
        Ok((Answer::new(reply, answered.shard, attempts.retries()), more))
    }

    /// What of a clip has not come yet. The last row's key is a part of it, and does not come again.
    fn rest_of(&self, clip: &KeyInterval) -> KeyInterval {
        match &self.after {
            None => clip.clone(),
            Some(after) if self.descending => clip.intersection(&KeyInterval::new(Key::MIN, Some(after.clone()))),
            Some(after) => clip.intersection(&KeyInterval::new(after.clone(), None)),
        }
    }

    /// Puts an interval in front, cut by the routes as they are now.
    async fn cut(
        &self,
        interval: &KeyInterval,
        pending: &mut VecDeque<Piece>,
        attempts: &mut Attempts,
    ) -> Result<(), ClientError> {
        loop {
            let routes = self.session.routes.current();
            let cut = router::pieces(&self.touches, interval, self.table, &routes);
            drop(routes);
            if let Some(pieces) = cut {
                // The first of them comes to lie in front.
                let put_back = |piece| pending.push_front(piece);
                match self.descending {
                    true => pieces.into_iter().for_each(put_back),
                    false => pieces.into_iter().rev().for_each(put_back),
                }
                return Ok(());
            }
            if let Detour::GiveUp(error) = self.session.take(attempts, Outcome::NoRoute).await {
                return Err(error);
            }
        }
    }
}

fn too_slow(limit_ms: u64) -> ClientError {
    let error = SqlError::new(codes::QUERY_CANCELED, format!("the stream has not ended within {limit_ms} ms"));
    ClientError::Sql(error.hint("Read a smaller interval of keys, or raise stream_timeout_ms."))
}
