//! The client: one handle through which a program reads and writes the store as if it were one PostgreSQL, while ranges split
//! and move and replicas come and go.
//!
//! It owns a routing cache, the analysis of SQL texts, connections to the shards, and the rules of retrying. It promises:
//!
//! - a statement goes to the shard that owns its keys; a redirect is followed without the caller's seeing it, and teaches the
//!   cache;
//! - a write is never applied twice: all of its attempts carry the same id, and a new id is never used while the outcome of
//!   an old one is unknown (invariant 7, R14);
//! - what cannot be done correctly is refused with SQLSTATE 0A000 and a sentence on what to do instead;
//! - an error says what must happen next ([`ClientError`]), and nothing waits longer than the statement timeout.
//!
//! | module | what it holds |
//! |---|---|
//! | `router` | where a statement goes (pure) |
//! | `retry` | what follows a failed attempt (pure) |
//! | `cache`, `statements`, `leaders`, `inquiry` | what the client remembers |
//! | `session` | the shared state, the watch |
//! | `client_session`, `levels`, `settle` | what a session chooses, and what becomes of writes answered early |
//! | `exchange`, `execute`, `stream`, `transaction`, `tables` | doing it |
//! | `pool`, `rest`, `sse` | connections |
//! | [`placement_driver`] | the placement driver's REST interface for administrators |
//!
//! ```no_run
//! # async fn example() -> Result<(), evenkeel_client::ClientError> {
//! use evenkeel_client::{Client, ClientConfig};
//!
//! let client = Client::connect(ClientConfig::new(["http://127.0.0.1:7101"])).await?;
//! client.execute("CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL)", &[]).await?;
//! client.execute("INSERT INTO accounts VALUES ($1, $2)", &[1.into(), 100.into()]).await?;
//! let answer = client.execute("SELECT balance FROM accounts WHERE id = $1", &[1.into()]).await?;
//! assert_eq!(answer.rows.int(0, 0), Some(100));
//! # Ok(())
//! # }
//! ```

mod cache;
mod client_session;
mod config;
mod error;
mod exchange;
mod execute;
mod inquiry;
mod leaders;
mod levels;
pub mod placement_driver;
mod pool;
mod rest;
mod retry;
mod router;
mod session;
mod settle;
mod sse;
mod statements;
mod stats;
mod stream;
mod tables;
mod transaction;

pub use client_session::ClientSession;
pub use config::ClientConfig;
pub use error::ClientError;
pub use evenkeel_protocol::shard::TransactionOptions;
pub use evenkeel_protocol::{Durability, ReadLevel, SqlError, Value};
pub use execute::Answer;
pub use levels::{Levels, StatementLevels};
pub use placement_driver::{admin, causes};
pub use stats::ClientStats;
pub use stream::RowStream;
pub use transaction::Transaction;

use evenkeel_protocol::error::codes;
use evenkeel_protocol::routing::RoutingTable;
use futures::FutureExt;
use futures::future::BoxFuture;
use session::Session;
use std::sync::Arc;
use tokio::task::AbortHandle;

/// A client of one store. Clones are cheap and share everything; its background tasks end with the last of them.
///
/// How many statements are under way at a time is up to the caller: each takes what its parameters and its answer take.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    session: Arc<Session>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Client {
    /// Connects: fetches the routing table, trying again for up to `connect_patience_ms`, and begins to watch it.
    ///
    /// Errors: [`ClientError::Config`] for settings that cannot be used, [`ClientError::Unavailable`] if no placement driver
    /// answers.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        connected(config).await
    }

    fn session(&self) -> &Arc<Session> {
        &self.inner.session
    }

    /// Executes one statement in a transaction of its own, with `$n` in `sql` standing for the `n`th of `params`. Reads see
    /// everything that was acknowledged before. `CREATE TABLE` goes to the placement driver.
    pub async fn execute(&self, sql: &str, params: &[Value]) -> Result<Answer, ClientError> {
        self.execute_with(sql, params, Levels::default()).await
    }

    /// The same with levels chosen. A durability below `disk` needs a [`ClientSession`]: what comes after the write must wait for it.
    pub async fn execute_with(&self, sql: &str, params: &[Value], levels: Levels) -> Result<Answer, ClientError> {
        if levels.durability < Durability::Disk {
            let message = format!("durability {} needs a session", levels.durability);
            let instead = "Call begin_session() and execute the statement there.";
            return Err(ClientError::Sql(SqlError::unsupported(message, instead)));
        }
        Ok(self.execute_early(sql, params, levels).await?.0)
    }

    /// Boxed: see [`connected`].
    #[inline(never)]
    fn execute_early<'a>(
        &'a self,
        sql: &'a str,
        params: &'a [Value],
        levels: Levels,
    ) -> BoxFuture<'a, Result<(Answer, Option<settle::Unsettled>), ClientError>> {
        let session = self.session();
        let executed = async move {
            stats::add(&session.counters.statements, 1);
            let result = session.execute(sql, params, levels, session.now_ms()).await;
            stats::add(&session.counters.failures, result.is_err().into());
            result
        };
        executed.boxed()
    }

    /// Begins a session: statements in order, with settings and transactions of their own.
    pub fn begin_session(&self, levels: Levels) -> ClientSession {
        ClientSession::new(self.clone(), levels)
    }

    /// Begins a transaction. Nothing is sent before its first statement, which chooses the shard.
    pub async fn begin(&self, options: TransactionOptions) -> Result<Transaction, ClientError> {
        Ok(Transaction::new(self.clone(), options))
    }

    /// The routing table as this client knows it now.
    pub fn routes(&self) -> Arc<RoutingTable> {
        self.session().routes.current()
    }

    /// Where the placement driver is known to serve REST: the endpoints that the client was made with, and those of replicas that came
    /// later.
    pub fn endpoints(&self) -> Vec<String> {
        self.session().rest.endpoints().to_vec()
    }

    /// Fetches the whole routing table, as a client does by itself whenever it has to.
    pub async fn refresh(&self) -> Result<(), ClientError> {
        let unavailable = |reason| ClientError::Unavailable(SqlError::new(codes::CONNECTION_FAILURE, reason));
        self.session().refresh().await.map_err(unavailable)
    }

    /// What has been counted since the client connected.
    pub fn stats(&self) -> ClientStats {
        self.session().counters.read()
    }
}

/// The body of an `async fn` is compiled by every crate that awaits it. What most of this crate hangs on is boxed, so that it is compiled here
/// and only here; beside a round trip to a shard the allocation is nothing.
#[inline(never)]
fn connected(config: ClientConfig) -> BoxFuture<'static, Result<Client, ClientError>> {
    let connecting = async move {
        let session = Arc::new(Session::new(config)?);
        session.first_fetch().await?;
        let tasks = vec![
            tokio::spawn(session::watch(session.clone())).abort_handle(),
            tokio::spawn(session::refresh_when_wanted(session.clone())).abort_handle(),
        ];
        Ok(Client { inner: Arc::new(Inner { session, tasks }) })
    };
    connecting.boxed()
}
