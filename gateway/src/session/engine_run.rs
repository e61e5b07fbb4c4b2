//! A user's transaction in the engine database, which executes what reads several shards.
//!
//! The statement's text is the user's own, and so are its parameters, formats and portals. Only
//! where its rows come from differs: see [`crate::remote`].

use super::front_run::leaves_something;
use super::planner::Plan;
use super::run::{Run, RunEnd};
use super::trouble::Trouble;
use crate::front::server::FrontPostgres;
use crate::front::sessions::{FrontSession, sql_error};
use crate::front::settings::Settings;
use crate::remote::reads::{ReadFailure, StatementReads};
use crate::wire::outgoing::Outgoing;
use bytes::Bytes;
use evenkeel_client::TransactionOptions;
use evenkeel_postgres_session::{CancelKey, Named, Requests, Values, error_response, tags};
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::schema::RelationKind;
use std::sync::Arc;

/// The context that postgres_fdw adds to an error begins with this.
const REMOTE_CONTEXT: &str = "remote SQL command:";

/// See the module. Dropped, its session is closed.
pub struct EngineTransaction {
    front: Arc<FrontPostgres>,
    session: FrontSession,
    key: CancelKey,
}

impl EngineTransaction {
    /// Begins one with these savepoints.
    ///
    /// # Errors
    /// As for a session. PostgreSQL's own about a setting.
    pub async fn begin(
        front: &Arc<FrontPostgres>,
        settings: &Settings,
        options: TransactionOptions,
        savepoints: &[String],
    ) -> Result<EngineTransaction, SqlError> {
        let mut session = front.engine_sessions().take(settings).await?;
        let isolation = if options.repeatable_read { "REPEATABLE READ" } else { "READ COMMITTED" };
        let mut sql = format!("BEGIN ISOLATION LEVEL {isolation} READ ONLY");
        for name in savepoints {
            sql.push_str(&format!("; SAVEPOINT \"{}\"", name.replace('"', "\"\"")));
        }
        session.session.simple(&sql).await.map_err(sql_error)?;
        let key = session.session.cancel_key();
        let key = key.ok_or_else(|| SqlError::new(codes::INTERNAL, "a session that names no process"))?;
        Ok(EngineTransaction { front: front.clone(), session, key })
    }

    /// For cancelling its statement.
    pub fn cancel_key(&self) -> CancelKey {
        self.key
    }

    /// Whether it has ended with its session.
    pub fn is_broken(&self) -> bool {
        self.session.session.is_broken()
    }

    /// Executes a statement by this text and writes its rows. `portal`: the number of a portal that
    /// may be suspended. `changes`: the count of changes of the schema when what it reads was
    /// opened.
    ///
    /// # Errors
    /// PostgreSQL's own; the client is gone.
    pub async fn execute(
        &mut self,
        run: &Run<'_>,
        (text, settings): (&str, &Settings),
        portal: Option<u64>,
        (reads, changes): (&Arc<StatementReads>, u64),
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        self.session.adopt(settings).await?;
        self.session.spent |= leaves_something(run.plan);
        let types = &run.plan.shape.analysis.parameter_types;
        let types: Vec<u32> = types.iter().map(|oid| if *oid < FIRST_USER_OID { *oid } else { 0 }).collect();
        let name = portal.map(portal_name).unwrap_or_default();
        let values = Values {
            formats: &run.values.formats,
            parameters: &run.values.parameters,
            result_formats: &run.values.result_formats,
        };
        let mut requests = Requests::default();
        requests.parse("", text, &types)?;
        requests.bind(&name, "", values)?;
        if run.describe {
            requests.describe(Named::Portal(&name))?;
        }
        requests.execute(&name, run.max_rows)?;
        requests.sync();
        self.relay(requests, (reads, changes), out).await
    }

    /// Writes further rows of a suspended portal.
    ///
    /// # Errors
    /// As [`EngineTransaction::execute`].
    pub async fn fetch(
        &mut self,
        portal: u64,
        max_rows: u32,
        reads: &Arc<StatementReads>,
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        let mut requests = Requests::default();
        requests.execute(&portal_name(portal), max_rows)?;
        requests.sync();
        let changes = self.front.engine_changes();
        self.relay(requests, (reads, changes), out).await
    }

    async fn relay(
        &mut self,
        requests: Requests,
        (reads, changes): (&Arc<StatementReads>, u64),
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        let _executing = self.front.reading().executes(self.key.process(), reads.clone());
        let session = &mut self.session.session;
        session.send(requests);
        let (mut end, mut failed) = (RunEnd::Empty, None);
        let mut planned = false;
        while !session.is_ready() {
            let message = session.next().await.map_err(|_| session_ended())?;
            if !planned && PLANNED.contains(&message.tag()) {
                planned = true;
                // Another table may have the name by now, below which there is nothing yet. From
                // here on the statement holds its tables.
                if self.front.engine_changes() != changes {
                    let message = "the schema was changed while the statement began";
                    failed = Some(SqlError::new(codes::SERIALIZATION_FAILURE, message));
                }
            }
            match message.tag() {
                _ if failed.is_some() => {}
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
                tags::PORTAL_SUSPENDED => end = RunEnd::Suspended,
                tags::ERROR_RESPONSE => failed = Some(error_response::parse(&message.body())),
                _ => {}
            }
        }
        failed.map_or(Ok(end), |error| Err(as_of_one_server(error).into()))
    }

    /// Executes a command on savepoints.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn command(&mut self, sql: &str) -> Result<(), SqlError> {
        self.session.session.simple(sql).await.map_err(sql_error).map(drop)
    }

    /// The RowDescription of a statement such as a FETCH, if it returns rows.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn describe(&mut self, sql: &str) -> Result<Option<Bytes>, SqlError> {
        self.session.describe(sql).await
    }

    /// Ends it. It has only read.
    pub async fn end(mut self) {
        if self.session.session.simple("ROLLBACK").await.is_ok() {
            self.front.engine_sessions().put_back(self.session);
        }
    }
}

/// The text of a statement that reads several shards.
///
/// # Errors
/// 0A000: it is not possible there.
pub fn engine_text(plan: &Plan) -> Result<&str, SqlError> {
    let Some(rows) = plan.rows() else { return Ok(&plan.statement.text) };
    if let Some(what) = rows.not_for_parents {
        let message = format!("{what} in a statement that reads several shards is not supported");
        return Err(SqlError::unsupported(message, "Use columns of the table, such as its primary key."));
    }
    if plan.shape.touched.iter().any(|touched| touched.table.kind == RelationKind::Sequence) {
        return Err(SqlError::unsupported(
            "a sequence in a statement that reads several shards is not supported",
            "Read it by a statement of its own.",
        ));
    }
    if rows.holds {
        return Err(SqlError::unsupported(
            "a cursor WITH HOLD that reads several shards is not supported",
            "Leave WITH HOLD out, and read the cursor before the transaction ends.",
        ));
    }
    Ok(rows.for_parents.as_deref().unwrap_or(&plan.statement.text))
}

/// The trouble of a statement in the engine database, given why a scan of its failed.
pub fn as_of_scan(trouble: Trouble, failure: Option<ReadFailure>) -> Trouble {
    match (trouble, failure) {
        (Trouble::Sql(error), Some(failure)) if failure.ended_user => {
            Trouble::Ended(failure.error.sql().cloned().unwrap_or(error))
        }
        (trouble, _) => trouble,
    }
}

/// 40001: a change of the schema ends sessions that hold its tables, and nothing of theirs lasts.
pub fn session_ended() -> SqlError {
    let message = "the session that reads several shards has ended, perhaps by a change of the schema";
    SqlError::new(codes::SERIALIZATION_FAILURE, message).hint("Run the transaction again from its beginning.")
}

/// What a statement sends only once it is planned.
const PLANNED: [u8; 4] = [tags::DATA_ROW, tags::COPY_OUT_RESPONSE, tags::COMMAND_COMPLETE, tags::PORTAL_SUSPENDED];

/// The object ids below this are PostgreSQL's own, and the same on every server.
pub const FIRST_USER_OID: u32 = 16_384;

fn portal_name(portal: u64) -> String {
    format!("evenkeel_{portal}")
}

/// An error without what only shows that a scan was executed elsewhere.
pub fn as_of_one_server(mut error: SqlError) -> SqlError {
    if let Some(fields) = &mut error.fields
        && fields.context.as_ref().is_some_and(|context| context.starts_with(REMOTE_CONTEXT))
    {
        fields.context = None;
    }
    error
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_error_of_a_scan_does_not_show_the_scan() {
        let body = b"SERROR\0C22012\0Mdivision by zero\0Wremote SQL command: FETCH 2000 FROM c1\0\0";
        let error = as_of_one_server(error_response::parse(body));
        assert_eq!((error.code.as_ref(), error.message.as_str()), ("22012", "division by zero"));
        assert_eq!(error.fields.unwrap().context, None);
    }
}
