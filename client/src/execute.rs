//! Execution of one autocommit statement, from its text to its answer.
//!
//! It owns nothing. It promises that all attempts of a write carry the same id (invariant 7).

use crate::answer::Answer;
use crate::core::ClientCore;
use crate::create_table::create_table;
use crate::deliver::{Delivery, Destination, deliver};
use crate::error::ClientError;
use crate::levels::Levels;
use crate::payload::Payload;
use crate::pieces::ScanKeys;
use crate::prepare::{Prepared, prepare};
use crate::reply::rows;
use crate::retry::{Attempts, Repeat};
use crate::routing::{Across, Statement};
use crate::scan::{self, Scan};
use crate::stats::add;
use crate::transaction::EarlyWrite;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{Durability, ReadLevel, ShardRequest, StatementRequest};
use evenkeel_protocol::{SqlError, Value};
use futures::FutureExt;
use futures::future::BoxFuture;

/// The answer to a statement. If it acknowledges a write early (R28), the outcome of that write is
/// known later.
pub(crate) struct Acknowledged {
    pub answer: Answer,
    pub early: Option<EarlyWrite>,
}

impl From<Answer> for Acknowledged {
    fn from(answer: Answer) -> Acknowledged {
        Acknowledged { answer, early: None }
    }
}

/// Executes one statement in a transaction of its own, and counts it. Boxed: see [`crate::client`].
#[inline(never)]
pub(crate) fn execute<'a>(
    core: &'a ClientCore,
    text: &'a str,
    params: &'a [Value],
    levels: Levels,
) -> BoxFuture<'a, Result<Acknowledged, ClientError>> {
    let executed = async move {
        add(&core.counters.statements, 1);
        let started_ms = core.now_ms();
        let result = match prepare(core, text, started_ms + core.config.statement_timeout_ms).await {
            Ok(Prepared::Statement(statement)) => run(core, &statement, params, levels, started_ms).await,
            Ok(Prepared::CreateTable(body)) => create_table(core, body, started_ms).await.map(Acknowledged::from),
            Err(error) => Err(error),
        };
        add(&core.counters.failures, result.is_err().into());
        result
    };
    executed.boxed()
}

/// Executes one statement that must neither write nor lock, and counts it.
pub(crate) async fn execute_read_only(
    core: &ClientCore,
    text: &str,
    params: &[Value],
    levels: Levels,
) -> Result<Answer, ClientError> {
    add(&core.counters.statements, 1);
    let started_ms = core.now_ms();
    let result = match prepare(core, text, started_ms + core.config.statement_timeout_ms).await {
        Ok(Prepared::Statement(statement)) if !statement.plan.writes() && !statement.plan.locks() => {
            run(core, &statement, params, levels, started_ms).await.map(|acknowledged| acknowledged.answer)
        }
        Ok(_) => {
            let error = SqlError::new(codes::READ_ONLY, "this transaction is READ ONLY");
            Err(ClientError::Sql(error.hint("Begin it without READ ONLY to change or lock rows.")))
        }
        Err(error) => Err(error),
    };
    add(&core.counters.failures, result.is_err().into());
    result
}

/// Executes an analysed statement.
pub(crate) async fn run(
    core: &ClientCore,
    statement: &Statement,
    params: &[Value],
    levels: Levels,
    started_ms: u64,
) -> Result<Acknowledged, ClientError> {
    let plan = &statement.plan;
    let writes = plan.writes();
    // Only the leader executes statements that write or lock.
    let read = if writes || plan.locks() { ReadLevel::Linearizable } else { levels.read };
    let durability = if writes { levels.durability } else { Durability::Disk };
    let touches = plan.touches(params)?;
    let to = Destination { across: Across::of(plan), touches: &touches, table: plan.table() };
    let repeat = if writes { Repeat::SameId } else { Repeat::Free };
    let mut attempts = Attempts::new(repeat, started_ms, core.config.statement_timeout_ms)
        .patient_for(started_ms, core.config.overload_patience_ms);
    let id = core.new_id();
    let request = StatementRequest {
        id,
        sql: statement.sql.clone(),
        params: params.to_vec(),
        clip: None,
        limit: None,
        read,
        max_staleness_ms: levels.max_staleness_ms,
        durability,
    };
    let prefer = levels.replica.unwrap_or(id.sequence);
    let request = ShardRequest::Statement(request);
    let delivered = deliver(core, to, &Payload::of_read(&request, read, prefer), &mut attempts).await;
    count(core, &attempts);
    match delivered? {
        Delivery::Reply(reply) => {
            let shard = reply.shard;
            let (reply, early) = EarlyWrite::split(reply, id, durability);
            Ok(Acknowledged { answer: Answer::new(rows(reply)?, shard, attempts.retries()), early })
        }
        Delivery::Pieces(mut pieces) => {
            let descending = plan.descending();
            if descending {
                pieces.reverse();
            }
            let ShardRequest::Statement(request) = request else { return Err(internal("not a statement")) };
            let keys = ScanKeys { touches: &touches, table: plan.table(), descending };
            let scan = Scan { request, keys, limit: plan.row_limit(params)?, prefer };
            scan::read(core, scan, pieces, attempts).await.map(Acknowledged::from)
        }
    }
}

/// Counts the retries of a statement that has ended.
pub(crate) fn count(core: &ClientCore, attempts: &Attempts) {
    add(&core.counters.retries, attempts.retries().into());
    add(&core.counters.retried, (attempts.retries() > 0).into());
}

fn internal(message: &str) -> ClientError {
    ClientError::Sql(SqlError::new(codes::INTERNAL, message))
}
