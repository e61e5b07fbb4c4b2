//! A raw session with PostgreSQL that runs users' own texts.
//!
//! A session belongs to one leadership (R1) and is used by one transaction at a time. After each
//! everything is taken back that it may have left beside its rows: settings, locks of the session,
//! current values of sequences.

use super::prepared_texts::{PreparedKey, PreparedTexts};
use crate::postgres::Connector;
use crate::storage::StoreError;
use evenkeel_postgres_session::{CancelKey, Message, Named, Requests, Session, TransactionStatus};
use evenkeel_protocol::SqlError;
use std::sync::Arc;

/// Takes back what a transaction has left in its session.
const CLEAN: &str = "RESET ALL; DISCARD SEQUENCES; SELECT pg_catalog.pg_advisory_unlock_all()";

/// What the transaction has counted must not count for the next one.
const ROLL_BACK: &str = "ROLLBACK; SELECT pg_catalog.pg_stat_force_next_flush()";

/// See the module.
pub struct RawSession {
    session: Session,
    prepared: PreparedTexts,
    /// Prepared statements to be closed.
    closing: Vec<String>,
    /// The version of the schema that the prepared statements were parsed with.
    schema_version: u64,
    reusable: bool,
}

/// The statement that a series of requests binds.
#[derive(Debug, Default)]
pub struct BoundText {
    /// Its name; empty for the unnamed statement.
    pub name: String,
    /// The same series parses it, and it is to be kept then.
    pub new: Option<PreparedKey>,
}

impl RawSession {
    /// Opens a session.
    ///
    /// # Errors
    /// As [`Connector::connect_raw`].
    pub async fn open(connector: &Connector) -> Result<RawSession, StoreError> {
        let session = connector.connect_raw().await?;
        Ok(RawSession {
            session,
            prepared: PreparedTexts::default(),
            closing: Vec::new(),
            schema_version: 0,
            reusable: true,
        })
    }

    /// Whether another transaction may use it.
    pub fn is_reusable(&self) -> bool {
        self.reusable && !self.session.is_broken()
    }

    /// No other transaction may use it.
    pub fn spoil(&mut self) {
        self.reusable = false;
    }

    /// Begins to take back what the last transaction has left. [`RawSession::cleaned`] waits for
    /// the end of that.
    pub async fn clean(&mut self) {
        let mut requests = Requests::default();
        let sent = requests.query(CLEAN);
        self.session.send(requests);
        // The next transaction finds out.
        let _ = self.session.flush().await;
        self.reusable &= sent.is_ok();
    }

    /// Waits until everything that was sent is done.
    ///
    /// # Errors
    /// The session is of no use.
    pub async fn cleaned(&mut self) -> Result<(), StoreError> {
        self.run(Requests::default(), |_| {}).await
    }

    /// The schema has this version: statements that were parsed with another are not used again.
    pub fn expect_schema(&mut self, version: u64) {
        if self.schema_version != version {
            self.schema_version = version;
            self.closing.extend(self.prepared.take_all());
        }
    }

    /// Adds a Parse of a text unless it is prepared already. `may_keep`: it means the same whenever
    /// it is executed with these settings.
    ///
    /// # Errors
    /// The text cannot be sent.
    pub fn prepare(
        &mut self,
        key: PreparedKey,
        may_keep: bool,
        requests: &mut Requests,
    ) -> Result<BoundText, SqlError> {
        for name in std::mem::take(&mut self.closing) {
            requests.close(Named::Statement(&name))?;
        }
        if may_keep && let Some(name) = self.prepared.find(&key) {
            return Ok(BoundText { name, new: None });
        }
        let name = if may_keep { self.prepared.new_name(&key) } else { None };
        requests.parse(name.as_deref().unwrap_or_default(), &key.sql, &key.types)?;
        Ok(match name {
            Some(name) => BoundText { name, new: Some(key) },
            None => BoundText::default(),
        })
    }

    /// The same of this node's own texts: the name of the statement. If the series fails, the
    /// session must not be used again.
    ///
    /// # Errors
    /// The text cannot be sent.
    pub fn prepare_own(&mut self, sql: &str, types: &[u32], requests: &mut Requests) -> Result<String, SqlError> {
        let key = PreparedKey { sql: sql.into(), types: types.to_vec(), settings: Arc::default() };
        let mut bound = self.prepare(key, true, requests)?;
        self.parsed(&mut bound);
        Ok(bound.name)
    }

    /// The statement has been parsed.
    pub fn parsed(&mut self, bound: &mut BoundText) {
        if let Some(key) = bound.new.take() {
            self.closing.extend(self.prepared.keep(key, bound.name.clone()));
        }
    }

    /// Sends requests, of which the next messages are the answers.
    pub fn send(&mut self, requests: Requests) {
        self.session.send(requests);
    }

    /// The next message. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// The session is lost.
    pub async fn next(&mut self) -> Result<Message, StoreError> {
        Ok(self.session.next().await?)
    }

    /// Sends requests and waits for the end of their answers, each of which is given to `see`.
    ///
    /// # Errors
    /// The first error that PostgreSQL reports.
    pub async fn run(&mut self, requests: Requests, see: impl FnMut(&Message)) -> Result<(), StoreError> {
        self.session.send(requests);
        Ok(self.session.until_ready(see).await?)
    }

    /// Runs SQL without parameters and without a result.
    ///
    /// # Errors
    /// The error that PostgreSQL reports.
    pub async fn simple(&mut self, sql: &str) -> Result<(), StoreError> {
        self.session.simple(sql).await?;
        Ok(())
    }

    /// Ends the transaction.
    ///
    /// # Errors
    /// It has not been committed.
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        // PostgreSQL rolls a failed transaction back, and says so by the tag alone.
        match self.session.simple("COMMIT").await?.first().map(String::as_str) {
            Some("COMMIT") => Ok(()),
            _ => Err(StoreError::SessionLost),
        }
    }

    /// Rolls the transaction back.
    ///
    /// # Errors
    /// The session is of no use.
    pub async fn roll_back(&mut self) -> Result<(), StoreError> {
        self.simple(ROLL_BACK).await
    }

    /// Whether everything that was sent has been answered.
    pub fn is_ready(&self) -> bool {
        self.session.is_ready()
    }

    /// The status of its transaction.
    pub fn status(&self) -> TransactionStatus {
        self.session.status()
    }

    /// For cancelling its statement.
    pub fn cancel_key(&self) -> Option<CancelKey> {
        self.session.cancel_key()
    }
}
