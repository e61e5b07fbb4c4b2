//! Statements that the gateway's own PostgreSQL executes, because they touch no table of users.

use super::planner::Plan;
use super::prepared::Progress;
use super::run::{Run, RunEnd};
use super::trouble::Trouble;
use crate::front::sessions::{FrontSession, sql_error};
use crate::wire::outgoing::Outgoing;
use bytes::Bytes;
use evenkeel_client::TransactionOptions;
use evenkeel_postgres_session::{Named, Requests, Values as FrontValues, error_response, tags};
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use std::collections::VecDeque;

/// Rows of the gateway's own PostgreSQL that a suspended portal keeps, in bytes.
const MAX_LEFT_BYTES: usize = 64 << 20;

/// Whether a statement may leave something in its session, such as a setting or a lock.
pub fn leaves_something(plan: &Plan) -> bool {
    let code = plan.shape.analysis.calls_user_code || plan.rows().is_some_and(|rows| rows.runs_code);
    code || plan.statement.functions.iter().any(|name| name == "set_config" || name.contains("advisory"))
}

/// The first rows of a portal, and how it ends with them.
pub fn give(rows: &mut VecDeque<Bytes>, tag: &str, max_rows: u32) -> (Vec<Bytes>, RunEnd) {
    let count = if max_rows == 0 { rows.len() } else { rows.len().min(max_rows as usize) };
    // As in PostgreSQL, a portal is suspended also if exactly as many rows were left.
    let suspended = max_rows > 0 && count == max_rows as usize;
    let given = rows.drain(..count).collect();
    (given, if suspended { RunEnd::Suspended } else { RunEnd::Complete(tag.to_string()) })
}

/// Begins a transaction with these savepoints.
///
/// # Errors
/// PostgreSQL's own.
pub async fn begin_at_front(
    session: &mut FrontSession,
    options: TransactionOptions,
    savepoints: &[String],
) -> Result<(), SqlError> {
    let isolation = if options.repeatable_read { "REPEATABLE READ" } else { "READ COMMITTED" };
    let mut sql = format!("BEGIN ISOLATION LEVEL {isolation}");
    for name in savepoints {
        sql.push_str(&format!("; SAVEPOINT \"{}\"", name.replace('"', "\"\"")));
    }
    session.session.simple(&sql).await.map_err(sql_error).map(drop)
}

/// Executes a statement and writes its rows.
///
/// # Errors
/// PostgreSQL's own; the client is gone.
pub async fn execute_at_front(
    session: &mut FrontSession,
    run: &Run<'_>,
    progress: &mut Progress,
    out: &mut Outgoing,
) -> Result<RunEnd, Trouble> {
    let mut requests = Requests::default();
    requests.parse("", &run.plan.statement.text, &run.plan.shape.analysis.parameter_types)?;
    let values = FrontValues {
        formats: &run.values.formats,
        parameters: &run.values.parameters,
        result_formats: &run.values.result_formats,
    };
    requests.bind("", "", values)?;
    if run.describe {
        requests.describe(Named::Portal(""))?;
    }
    requests.execute("", 0)?;
    requests.sync();
    session.session.send(requests);
    let (mut end, mut failed, mut left, mut left_bytes) = (RunEnd::Empty, None, VecDeque::new(), 0);
    while !session.session.is_ready() {
        let message = session.session.next().await.map_err(sql_error)?;
        match message.tag() {
            tags::DATA_ROW if run.max_rows > 0 => {
                left_bytes += message.whole().len();
                if left_bytes > MAX_LEFT_BYTES {
                    return Err(SqlError::new(codes::PROGRAM_LIMIT, "a portal with too many rows").into());
                }
                left.push_back(message.whole().clone());
            }
            tags::DATA_ROW
            | tags::ROW_DESCRIPTION
            | tags::NOTICE_RESPONSE
            | tags::COPY_OUT_RESPONSE
            | tags::COPY_DATA
            | tags::COPY_DONE => {
                out.buffer.extend_from_slice(message.whole());
                out.send_if_full().await?;
            }
            tags::COMMAND_COMPLETE => end = RunEnd::Complete(message.text()),
            tags::ERROR_RESPONSE => {
                failed.get_or_insert_with(|| error_response::parse(&message.body()));
            }
            _ => {}
        }
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    if let (true, RunEnd::Complete(tag)) = (run.max_rows > 0, &end) {
        let (given, ended) = give(&mut left, tag, run.max_rows);
        given.iter().for_each(|row| out.buffer.extend_from_slice(row));
        *progress = Progress::Left(left, tag.clone());
        return Ok(ended);
    }
    Ok(end)
}
