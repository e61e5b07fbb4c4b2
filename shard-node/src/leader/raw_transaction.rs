//! An open transaction of users' own texts, and the requests of its steps.
//!
//! BEGIN is sent with the first step, in one series with it, and a step's text is prepared, bound
//! and executed in one series, so that each step takes one round trip.

use super::begin_text::has_setting;
use super::control_text::ControlText;
use super::prepared_texts::PreparedKey;
use super::raw_session::BoundText;
use super::reported_changes::ReportedChanges;
use super::session_pool::PooledRaw;
use crate::postgres::Connector;
use evenkeel_postgres_session::{Named, Requests, Values};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{PassThroughBegin, PassThroughStatement, PassThroughStep, TableUse};
use evenkeel_protocol::{SqlError, TableId};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// The most portals that a transaction has suspended at a time.
const MAX_PORTALS: usize = 64;

/// See the module.
pub struct RawTransaction {
    /// Its session.
    pub session: PooledRaw,
    /// The text that begins it, until the first step sends it.
    begin: Option<String>,
    settings: Arc<[(String, String)]>,
    schema_version: u64,
    /// Statements of this session's settings may be kept: no text has changed a setting.
    settings_known: bool,
    /// Only this node limits how long its statements wait for locks.
    own_lock_timeout: bool,
    /// Suspended portals.
    portals: BTreeSet<u64>,
    /// Portals that have ended, to be closed with the next step.
    ended_portals: Vec<u64>,
    /// What it has changed.
    pub reported: ReportedChanges,
    /// The tables and sequences that it may write to.
    pub writes: BTreeSet<TableId>,
    /// The same and those that it may read.
    pub uses: BTreeSet<TableId>,
    /// Whether sequences may have gone back.
    pub sets_sequences: bool,
    /// `REPEATABLE READ`.
    pub repeatable_read: bool,
    /// `READ ONLY`.
    pub read_only: bool,
    /// Cancellations that may still be on their way to PostgreSQL.
    cancelling: Vec<JoinHandle<()>>,
}

/// A step as it is sent.
#[derive(Debug, Default)]
pub struct SentStep {
    /// The requests.
    pub requests: Requests,
    /// The statement that is bound.
    pub bound: BoundText,
    /// What the text does to the transaction.
    pub control: Option<ControlText>,
    /// The portal that the step executes.
    pub portal: Option<u64>,
    /// Whether the first series of answers is that of BEGIN.
    pub begins: bool,
}

impl RawTransaction {
    /// A transaction that has sent nothing yet, and that this text begins.
    pub fn new(session: PooledRaw, begin: &PassThroughBegin, text: String) -> RawTransaction {
        RawTransaction {
            session,
            begin: Some(text),
            settings: begin.settings.clone(),
            schema_version: begin.schema_version,
            settings_known: true,
            own_lock_timeout: !has_setting(&begin.settings, "lock_timeout"),
            portals: BTreeSet::new(),
            ended_portals: Vec::new(),
            reported: ReportedChanges::default(),
            writes: BTreeSet::new(),
            uses: BTreeSet::new(),
            sets_sequences: false,
            repeatable_read: begin.options.repeatable_read,
            read_only: begin.options.read_only,
            cancelling: Vec::new(),
        }
    }

    /// Whether it has sent nothing yet.
    pub fn is_new(&self) -> bool {
        self.begin.is_some()
    }

    /// Whether only this node limits how long its statements wait for locks.
    pub fn has_own_lock_timeout(&self) -> bool {
        self.own_lock_timeout
    }

    /// A step that uses these tables will be executed next.
    pub fn declare(&mut self, tables: &[TableUse]) {
        self.uses.extend(tables.iter().map(|used| used.table));
        self.writes.extend(tables.iter().filter(|used| used.writes).map(|used| used.table));
    }

    /// The requests of a step.
    ///
    /// # Errors
    /// The step is refused, and nothing changes.
    pub fn step(&mut self, step: &PassThroughStep) -> Result<SentStep, SqlError> {
        let mut sent = SentStep::default();
        match step {
            PassThroughStep::Describe { sql, parameter_types } => {
                self.start(&mut sent)?;
                sent.bound = self.prepare(sql, parameter_types, &ControlText::of(sql), &mut sent.requests)?;
                sent.requests.describe(Named::Statement(&sent.bound.name))?;
            }
            PassThroughStep::Execute(statement) => self.execute(statement, &mut sent)?,
            PassThroughStep::Fetch { portal, max_rows } => {
                self.expect_portal(*portal)?;
                self.start(&mut sent)?;
                sent.requests.execute(&portal_name(*portal), *max_rows)?;
                sent.portal = Some(*portal);
            }
            PassThroughStep::ClosePortal { portal } => {
                self.start(&mut sent)?;
                self.portals.remove(portal);
                sent.requests.close(Named::Portal(&portal_name(*portal)))?;
            }
            PassThroughStep::Cancel => return Err(SqlError::new(codes::INTERNAL, "a cancellation is no step")),
        }
        sent.requests.sync();
        Ok(sent)
    }

    /// Everything that precedes a step.
    fn start(&mut self, sent: &mut SentStep) -> Result<(), SqlError> {
        if let Some(begin) = self.begin.take() {
            self.session.expect_schema(self.schema_version);
            sent.requests.query(&begin)?;
            sent.begins = true;
        }
        for portal in std::mem::take(&mut self.ended_portals) {
            sent.requests.close(Named::Portal(&portal_name(portal)))?;
        }
        Ok(())
    }

    fn execute(&mut self, statement: &PassThroughStatement, sent: &mut SentStep) -> Result<(), SqlError> {
        let control = ControlText::of(&statement.sql);
        if control == ControlText::Refused {
            return Err(SqlError::unsupported(
                "a statement of this kind cannot be passed to a shard",
                "End the transaction as a client does.",
            ));
        }
        // Its portal gets a name if it may be suspended.
        let portal = (statement.max_rows > 0).then_some(statement.portal);
        if portal.is_some_and(|portal| !self.portals.contains(&portal)) && self.portals.len() >= MAX_PORTALS {
            return Err(SqlError::new(codes::LIMIT_EXCEEDED, format!("more than {MAX_PORTALS} portals are open")));
        }
        self.start(sent)?;
        let requests = &mut sent.requests;
        sent.bound = self.prepare(&statement.sql, &statement.parameter_types, &control, requests)?;
        let name = portal.map(portal_name).unwrap_or_default();
        if let Some(portal) = portal {
            self.portals.remove(&portal);
            requests.close(Named::Portal(&name))?;
        }
        let values = Values {
            formats: &statement.parameter_formats,
            parameters: &statement.parameters,
            result_formats: &statement.result_formats,
        };
        requests.bind(&name, &sent.bound.name, values)?;
        if statement.describe {
            requests.describe(Named::Portal(&name))?;
        }
        requests.execute(&name, statement.max_rows)?;
        match &statement.copy_data {
            // PostgreSQL passes over these if the statement is no copy from the client, or failed.
            Some(data) => {
                requests.copy_data(data)?;
                requests.copy_done();
            }
            None if control == ControlText::Copy => requests.copy_fail("no data came with the statement")?,
            None => {}
        }
        self.sets_sequences |= statement.sets_sequences;
        if control == ControlText::Sets {
            self.settings_known = false;
            // `lock_timeout` may be among the settings.
            self.own_lock_timeout &= !statement.sql.to_ascii_lowercase().contains("lock_timeout");
        }
        (sent.control, sent.portal) = (Some(control), portal);
        Ok(())
    }

    fn prepare(
        &mut self,
        sql: &Arc<str>,
        types: &[u32],
        control: &ControlText,
        requests: &mut Requests,
    ) -> Result<BoundText, SqlError> {
        let key = PreparedKey { sql: sql.clone(), types: types.to_vec(), settings: self.settings.clone() };
        let may_keep = self.settings_known && matches!(control, ControlText::Other | ControlText::Copy);
        self.session.prepare(key, may_keep, requests)
    }

    fn expect_portal(&self, portal: u64) -> Result<(), SqlError> {
        match self.portals.contains(&portal) {
            true => Ok(()),
            false => Err(SqlError::new("34000", format!("portal {portal} does not exist"))),
        }
    }

    /// Has the statement cancelled that is being executed.
    pub fn cancel(&mut self, connector: &Connector) {
        // A late cancellation would hit the next transaction.
        self.session.spoil();
        if let Some(key) = self.session.cancel_key() {
            let connector = connector.clone();
            self.cancelling.push(tokio::spawn(async move { connector.cancel_raw(key).await }));
        }
    }

    /// Waits until no cancellation is on its way: none may hit a COMMIT (R6).
    pub async fn cancellations_have_arrived(&mut self) {
        for cancelling in self.cancelling.drain(..) {
            // One that panicked is not on its way.
            let _ = cancelling.await;
        }
    }

    /// A portal has been suspended.
    pub fn suspended(&mut self, portal: u64) {
        self.portals.insert(portal);
    }

    /// A portal has given all of its rows, or has failed.
    pub fn ended(&mut self, portal: u64) {
        self.portals.remove(&portal);
        self.ended_portals.push(portal);
    }

    /// PostgreSQL has executed a step's text.
    ///
    /// # Errors
    /// There are too many savepoints.
    pub fn executed(&mut self, control: ControlText) -> Result<(), SqlError> {
        match control {
            ControlText::Savepoint(name) => self.reported.savepoint(name)?,
            ControlText::RollbackTo(name) => self.reported.roll_back_to(&name),
            ControlText::Release(name) => self.reported.release(&name),
            ControlText::Other | ControlText::Sets | ControlText::Copy | ControlText::Refused => {}
        }
        Ok(())
    }
}

fn portal_name(portal: u64) -> String {
    format!("evenkeel_{portal}")
}
