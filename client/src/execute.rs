//! One autocommit statement, from its text to its answer.
//!
//! It owns no state. It promises: a write is sent under one id however often it is sent (invariant 7); a scan over several
//! ranges answers in key order (or in its reverse, if that is asked for), each key's row at most once, as of one moment per range (not one for all of them); no
//! answer is gathered beyond `max_answer_bytes`.

use crate::error::ClientError;
use crate::exchange::{Answered, Delivered, Destination, Detour, Payload, rows};
use crate::levels::Levels;
use crate::retry::{Attempts, Outcome, Repeat};
use crate::router::{self, Across, Piece};
use crate::session::Session;
use crate::settle::Unsettled;
use crate::statements::Statement;
use bytes::BytesMut;
use evenkeel_protocol::api::CreateTableBody;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{Durability, ReadLevel, ShardRequest, StatementReply, StatementRequest};
use evenkeel_protocol::{Column, RowBatch, ShardId, SqlError, TableSchema, Value};
use evenkeel_sql::{self as sql, Command};
use futures::{StreamExt, TryStreamExt};
use std::collections::VecDeque;
use std::sync::Arc;

/// A statement's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The result's columns; empty if the statement returns none.
    pub columns: Arc<[Column]>,
    /// The result's rows, values in PostgreSQL's binary format.
    pub rows: RowBatch,
    /// Rows inserted, updated, deleted or returned.
    pub affected: u64,
    /// The shard that answered; of a scan over several, the first.
    pub shard: ShardId,
    /// Attempts after the first.
    pub retries: u32,
    /// What a session has done itself: `BEGIN`, `COMMIT`, `ROLLBACK`, `SET`, `RESET` or `SHOW`. A `COMMIT` of a transaction in which a statement has
    /// failed is answered with `ROLLBACK`, as PostgreSQL does.
    pub command: Option<&'static str>,
    /// Of a `local` read, in milliseconds: everything acknowledged longer ago than this, when the answer left the replica, is in it. Of a
    /// scan over several ranges, the largest.
    pub staleness_ms: Option<u64>,
}

impl Answer {
    pub(crate) fn new(reply: StatementReply, shard: ShardId, retries: u32) -> Answer {
        let StatementReply { columns, rows, affected, staleness_ms } = reply;
        Answer { columns, rows, affected, shard, retries, command: None, staleness_ms }
    }
}

/// What a text asks for, as far as it can be executed by itself.
pub(crate) enum Prepared {
    /// A statement on rows.
    Statement(Arc<Statement>),
    /// A table to be created.
    CreateTable(CreateTableBody),
}

/// What a statement may be sent again as.
fn repeat(statement: &Statement) -> Repeat {
    if statement.plan.writes() { Repeat::SameId } else { Repeat::Free }
}

impl Session {
    /// Executes one statement in a transaction of its own.
    pub(crate) async fn execute(
        &self,
        text: &str,
        params: &[Value],
        levels: Levels,
        started_ms: u64,
    ) -> Result<(Answer, Option<Unsettled>), ClientError> {
        match self.prepare(text, started_ms + self.config.statement_timeout_ms).await? {
            Prepared::Statement(statement) => self.run(&statement, params, levels, started_ms).await,
            Prepared::CreateTable(body) => Ok((self.create_table(body, started_ms).await?, None)),
        }
    }

    /// Analyses a text, or finds it analysed. A table that is not known is looked for at the placement driver once.
    pub(crate) async fn prepare(&self, text: &str, deadline_ms: u64) -> Result<Prepared, ClientError> {
        let mut routes = self.routes.current();
        if let Some(statement) = self.statements.get(text, &routes) {
            return Ok(Prepared::Statement(statement));
        }
        let parsed = match sql::parse(text)? {
            Command::Statement(parsed) => parsed,
            Command::CreateTable { schema, if_not_exists } => {
                return Ok(Prepared::CreateTable(CreateTableBody { schema, shard: None, if_not_exists }));
            }
            Command::Begin(_) => return Err(transaction_command("BEGIN", "begin()")),
            Command::Commit => return Err(transaction_command("COMMIT", "commit() of the transaction")),
            Command::Rollback => return Err(transaction_command("ROLLBACK", "rollback() of the transaction")),
            Command::Setting(_) => return Err(setting_command()),
        };
        let name = parsed.table_name().map(str::to_string);
        if let Some(name) = &name
            && routes.table(name).is_none()
        {
            self.refresh_until(deadline_ms).await;
            routes = self.routes.current();
        }
        let schema: Option<Arc<TableSchema>> = match &name {
            None => None,
            Some(name) => Some(routes.table(name).cloned().ok_or_else(|| undefined_table(name))?),
        };
        let plan = parsed.bind(schema.as_deref())?;
        let table = name.zip(schema.map(|schema| schema.id));
        let statement = Arc::new(Statement { sql: text.into(), plan, table });
        self.statements.put(statement.clone());
        Ok(Prepared::Statement(statement))
    }

    /// Executes one statement that must not write or lock.
    pub(crate) async fn read_only(
        &self,
        text: &str,
        params: &[Value],
        levels: Levels,
        started_ms: u64,
    ) -> Result<Answer, ClientError> {
        match self.prepare(text, started_ms + self.config.statement_timeout_ms).await? {
            Prepared::Statement(statement) if !statement.plan.writes() && !statement.plan.locks() => {
                Ok(self.run(&statement, params, levels, started_ms).await?.0)
            }
            _ => {
                let error = SqlError::new(codes::READ_ONLY, "this transaction is READ ONLY");
                Err(ClientError::Sql(error.hint("Begin it without READ ONLY to change or lock rows.")))
            }
        }
    }

    /// Executes an analysed statement. If it was answered before its COMMIT (R28), what becomes of that is known later.
    pub(crate) async fn run(
        &self,
        statement: &Statement,
        params: &[Value],
        levels: Levels,
        started_ms: u64,
    ) -> Result<(Answer, Option<Unsettled>), ClientError> {
        let writes = statement.plan.writes();
        // What writes or locks is the leader's; what reads is answered as soon as it can be.
        let read = if writes || statement.plan.locks() { ReadLevel::Linearizable } else { levels.read };
        let durability = if writes { levels.durability } else { Durability::Disk };
        let touches = statement.plan.touches(params)?;
        let table = statement.plan.table();
        let to = Destination { across: Across::of(&statement.plan), touches: &touches, table };
        let mut attempts = Attempts::new(repeat(statement), started_ms, self.config.statement_timeout_ms)
            .patient_for(started_ms, self.config.overload_patience_ms);
        let request = StatementRequest {
            id: self.new_id(),
            sql: statement.sql.clone(),
            params: params.to_vec(),
            clip: None,
            limit: None,
            read,
            max_staleness_ms: levels.max_staleness_ms,
            durability,
        };
        let id = request.id;
        let prefer = levels.replica.unwrap_or(id.sequence);
        let request = ShardRequest::Statement(request);
        let delivered = self.deliver(to, &payload(&request, prefer), &mut attempts).await;
        self.count(&attempts);
        match delivered? {
            Delivered::One(answered) => {
                let Answered { shard, replica, reply, rest, .. } = answered;
                let unsettled = rest.map(|rest| Unsettled { rest, shard, replica, id, durability });
                Ok((Answer::new(rows(reply)?, shard, attempts.retries()), unsettled))
            }
            Delivered::RangeByRange(mut pieces) => {
                let descending = statement.plan.descending();
                if descending {
                    pieces.reverse();
                }
                let ShardRequest::Statement(request) = request else { return Err(internal("not a statement")) };
                let limit = statement.plan.row_limit(params)?;
                Ok((self.scan(Scanning { request, to, limit, prefer, descending }, pieces, attempts).await?, None))
            }
        }
    }

    /// Reads the pieces: with a limit one after the other, as far as needed; else several at a time.
    async fn scan(&self, scan: Scanning<'_>, pieces: Vec<Piece>, attempts: Attempts) -> Result<Answer, ClientError> {
        let shard = pieces.first().map_or(ShardId(0), |piece| piece.shard);
        let mut gathered = Gathered { limit_bytes: self.config.max_answer_bytes, ..Gathered::default() };
        let mut retries = attempts.retries();
        match scan.limit {
            None => {
                let reads = pieces.into_iter().map(|piece| self.read_piece(&scan, piece, attempts.clone()));
                let mut reads = futures::stream::iter(reads).buffered(self.config.scan_parallelism);
                while let Some((replies, more)) = reads.try_next().await? {
                    retries += more;
                    gathered.take(replies)?;
                }
            }
            Some(limit) => {
                for piece in pieces {
                    let left = limit.saturating_sub(gathered.rows);
                    if left == 0 && gathered.answered {
                        break;
                    }
                    let part = Scanning { request: scan.request.clone(), limit: Some(left), ..scan };
                    let (replies, more) = self.read_piece(&part, piece, attempts.clone()).await?;
                    retries += more;
                    gathered.take(replies)?;
                }
            }
        }
        Ok(Answer::new(gathered.finish(), shard, retries))
    }

    /// Reads one piece, which falls into smaller ones if its ranges have split or moved meanwhile. Also returns how many
    /// attempts after the first it took.
    async fn read_piece(
        &self,
        scan: &Scanning<'_>,
        piece: Piece,
        mut attempts: Attempts,
    ) -> Result<(Vec<StatementReply>, u32), ClientError> {
        let before = attempts.retries();
        let mut left = scan.limit;
        let mut replies: Vec<StatementReply> = Vec::new();
        let mut pending = VecDeque::from([piece]);
        while let Some(piece) = pending.pop_front() {
            if left == Some(0) && !replies.is_empty() {
                break;
            }
            let clip = Some(piece.clip.clone());
            let request = ShardRequest::Statement(StatementRequest { clip, limit: left, ..scan.request.clone() });
            match self.at_shard(piece.shard, &payload(&request, scan.prefer), &mut attempts).await {
                Ok(answered) => {
                    let reply = Answered::rows(answered)?;
                    left = left.map(|left| left.saturating_sub(reply.rows.count.into()));
                    replies.push(reply);
                }
                Err(Detour::GiveUp(error)) => {
                    crate::stats::add(&self.counters.retries, (attempts.retries() - before).into());
                    return Err(error);
                }
                Err(Detour::Reroute(hint)) => {
                    if hint.is_some() {
                        self.refresh_until(attempts.deadline_ms()).await;
                    }
                    self.cut_again(scan, piece, &mut pending, &mut attempts).await?;
                }
            }
        }
        let more = attempts.retries() - before;
        crate::stats::add(&self.counters.retries, more.into());
        Ok((replies, more))
    }

    /// Puts a piece back, cut by the routes as they are now.
    async fn cut_again(
        &self,
        scan: &Scanning<'_>,
        piece: Piece,
        pending: &mut VecDeque<Piece>,
        attempts: &mut Attempts,
    ) -> Result<(), ClientError> {
        loop {
            let routes = self.routes.current();
            let cut = scan.to.table.and_then(|table| router::pieces(scan.to.touches, &piece.clip, table, &routes));
            if let Some(pieces) = cut {
                // The first of them comes to lie in front.
                let put_back = |piece| pending.push_front(piece);
                match scan.descending {
                    true => pieces.into_iter().for_each(put_back),
                    false => pieces.into_iter().rev().for_each(put_back),
                }
                return Ok(());
            }
            drop(routes);
            if let Detour::GiveUp(error) = self.take(attempts, Outcome::NoRoute).await {
                return Err(error);
            }
        }
    }

    /// Counts the retries of a statement that has ended.
    pub(crate) fn count(&self, attempts: &Attempts) {
        crate::stats::add(&self.counters.retries, attempts.retries().into());
        crate::stats::add(&self.counters.retried, (attempts.retries() > 0).into());
    }
}

/// A scan over several ranges.
struct Scanning<'a> {
    request: StatementRequest,
    to: Destination<'a>,
    /// Rows that are still wanted.
    limit: Option<u64>,
    /// The replica that a `local` read begins with.
    prefer: u64,
    /// Whether it goes from the last range to the first.
    descending: bool,
}

/// A statement's request, for any replica if it is a `local` read.
fn payload(request: &ShardRequest, prefer: u64) -> Payload<'_> {
    match request {
        ShardRequest::Statement(statement) => scan_payload(request, statement.read, prefer),
        _ => Payload::Fixed(request),
    }
}

/// The request of a read at this level.
pub(crate) fn scan_payload(request: &ShardRequest, read: ReadLevel, prefer: u64) -> Payload<'_> {
    if read == ReadLevel::Local { Payload::Local { request, prefer } } else { Payload::Fixed(request) }
}

/// The answers of a scan's pieces, in key order.
#[derive(Default)]
struct Gathered {
    columns: Arc<[Column]>,
    batches: Vec<RowBatch>,
    rows: u64,
    bytes: usize,
    limit_bytes: usize,
    answered: bool,
    staleness_ms: Option<u64>,
}

impl Gathered {
    fn take(&mut self, replies: Vec<StatementReply>) -> Result<(), ClientError> {
        for reply in replies {
            if !self.answered {
                self.columns = reply.columns;
                self.answered = true;
            }
            self.staleness_ms = self.staleness_ms.max(reply.staleness_ms);
            self.rows += u64::from(reply.rows.count);
            self.bytes += reply.rows.data.len();
            if self.bytes > self.limit_bytes {
                let message = format!("the answer is larger than {} bytes", self.limit_bytes);
                return Err(ClientError::Sql(
                    SqlError::new(codes::LIMIT_EXCEEDED, message)
                        .hint("Read it as a stream, add a LIMIT, or read a smaller interval of keys."),
                ));
            }
            if reply.rows.count > 0 {
                self.batches.push(reply.rows);
            }
        }
        Ok(())
    }

    /// All rows in one batch: one allocation, whatever the number of pieces.
    fn finish(self) -> StatementReply {
        let rows = match self.batches.as_slice() {
            [] => RowBatch { width: self.columns.len() as u32, ..RowBatch::default() },
            [one] => one.clone(),
            batches => {
                let mut data = BytesMut::with_capacity(self.bytes);
                batches.iter().for_each(|batch| data.extend_from_slice(&batch.data));
                RowBatch { width: batches[0].width, count: self.rows as u32, data: data.freeze() }
            }
        };
        StatementReply { columns: self.columns, rows, affected: self.rows, staleness_ms: self.staleness_ms }
    }
}

fn transaction_command(command: &str, instead: &str) -> ClientError {
    ClientError::Sql(SqlError::unsupported(
        format!("{command} cannot be sent as a statement of its own"),
        format!("Call {instead}: a transaction belongs to one handle, not to the client that all share."),
    ))
}

fn setting_command() -> ClientError {
    ClientError::Sql(SqlError::unsupported(
        "settings belong to a session, and the client is shared by all",
        "Call begin_session() and execute it there, or give the levels with the statement.",
    ))
}

fn undefined_table(name: &str) -> ClientError {
    ClientError::Sql(SqlError::new(
        codes::UNDEFINED_TABLE,
        format!("table {} does not exist", TableSchema::quote(name)),
    ))
}

fn internal(message: &str) -> ClientError {
    ClientError::Sql(SqlError::new(codes::INTERNAL, message))
}
