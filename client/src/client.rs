//! The public handle of a client.
//!
//! The body of an `async fn` is compiled by every crate that awaits it. The futures that most of
//! this crate hangs on are boxed, so that they are compiled only here; beside a round trip to a
//! shard, the allocation costs nothing.

use crate::answer::Answer;
use crate::config::ClientConfig;
use crate::core::ClientCore;
use crate::error::ClientError;
use crate::execute::execute;
use crate::levels::Levels;
use crate::observer::ReplyObserver;
use crate::placement_driver::{Api, HttpApi};
use crate::routing::ShardPart;
use crate::session::Session;
use crate::stats::ClientStats;
use crate::stream::RowStream;
use crate::transaction::{PassThroughTransaction, ShardedTransaction, Transaction, parts_of, spread};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{PassThroughBegin, TableUse};
use evenkeel_protocol::routing::RoutingTable;
use evenkeel_protocol::shard::{Durability, TransactionOptions};
use evenkeel_protocol::{ShardId, SqlError, Value};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;

/// A client of one cluster. Clones are cheap and share everything. The background tasks end with
/// the last handle: client, session or transaction.
///
/// The caller limits the number of statements in flight: each occupies the memory of its parameters
/// and its answer.
#[derive(Clone)]
pub struct Client {
    core: Arc<ClientCore>,
}

impl Client {
    /// Connects: fetches the routing table, trying again for up to `connect_patience_ms`, and
    /// begins to watch it.
    ///
    /// # Errors
    /// [`ClientError::Config`] for settings that cannot be used, [`ClientError::Unavailable`] if no
    /// placement driver answers.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        connect_over_http(config).await
    }

    /// As [`Client::connect`], with another way to reach the placement driver. The observer sees
    /// the replies of replicas; `()` sees nothing.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_through(
        config: ClientConfig,
        api: Arc<dyn Api>,
        observer: Arc<dyn ReplyObserver>,
    ) -> Result<Client, ClientError> {
        config.check().map_err(ClientError::Config)?;
        connect_boxed(config, evenkeel_host::random(), api, observer).await
    }

    /// Executes one statement in a transaction of its own, with `$n` in `sql` standing for the
    /// `n`th of `params`. Reads see everything that was acknowledged before. The placement driver
    /// executes `CREATE TABLE`.
    pub async fn execute(&self, sql: &str, params: &[Value]) -> Result<Answer, ClientError> {
        self.execute_with(sql, params, Levels::default()).await
    }

    /// As [`Client::execute`], with levels. A durability below `disk` needs a [`Session`], whose
    /// later statements wait for the write.
    pub async fn execute_with(&self, sql: &str, params: &[Value], levels: Levels) -> Result<Answer, ClientError> {
        if levels.durability < Durability::Disk {
            let message = format!("durability {} needs a session", levels.durability);
            let instead = "Call begin_session() and execute the statement there.";
            return Err(ClientError::Sql(SqlError::unsupported(message, instead)));
        }
        Ok(execute(&self.core, sql, params, levels).await?.answer)
    }

    /// Reads as [`Client::execute`], for answers of any size. The rows arrive in the order of the
    /// primary key, in pieces of about 256 KiB (or of one row, if that is larger). Only a few
    /// pieces are in memory at a time, here and at the shards.
    ///
    /// Each row that exists all the time arrives exactly once, whatever the cluster does meanwhile.
    /// Pieces are of different moments: each shows everything that was acknowledged before it was
    /// requested, and the stream as a whole is no snapshot. A piece takes no longer than a
    /// statement may, the stream no longer than `stream_timeout_ms`. Dropped, the stream ends its
    /// execution at the shards.
    ///
    /// Statements that cannot be read piece by piece (another order, aggregates, `DISTINCT`,
    /// writes, locks) are executed as a whole, arrive as one piece, and have the limits of
    /// [`Client::execute`].
    ///
    /// ```no_run
    /// # async fn example(client: evenkeel_client::Client) -> Result<(),
    /// evenkeel_client::ClientError> { let mut all = client.stream("SELECT id, balance FROM
    /// accounts", &[]).await?; let mut sum = 0; while let Some(rows) = all.next().await? { sum +=
    /// (0..rows.count as usize).filter_map(|row| rows.int(row, 1)).sum::<i64>(); }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stream(&self, sql: &str, params: &[Value]) -> Result<RowStream, ClientError> {
        self.stream_with(sql, params, Levels::default()).await
    }

    /// As [`Client::stream`], with levels as for [`Client::execute_with`].
    pub async fn stream_with(&self, sql: &str, params: &[Value], levels: Levels) -> Result<RowStream, ClientError> {
        match RowStream::open(&self.core, sql, params, levels).await? {
            Some(stream) => Ok(stream),
            None => Ok(RowStream::whole(self.execute_with(sql, params, levels).await?)),
        }
    }

    /// Begins a session: statements in order, with settings and transactions of their own.
    pub fn begin_session(&self, levels: Levels) -> Session {
        Session::new(self.core.clone(), levels)
    }

    /// Begins a transaction. Nothing is sent before its first statement, which chooses the shard.
    pub async fn begin(&self, options: TransactionOptions) -> Result<Transaction, ClientError> {
        Ok(Transaction::new(self.core.clone(), options))
    }

    /// Begins a transaction of pass-through statements. Nothing is sent before its first step.
    pub fn pass_through(&self, begin: PassThroughBegin) -> PassThroughTransaction {
        PassThroughTransaction::new(self.core.clone(), begin)
    }

    /// The same at a shard that the caller has chosen.
    pub fn pass_through_at(&self, begin: PassThroughBegin, shard: ShardId) -> PassThroughTransaction {
        PassThroughTransaction::at(self.core.clone(), begin, shard)
    }

    /// Begins a transaction of pass-through statements at whichever shards its steps touch. Nothing
    /// is sent before its first step.
    pub fn sharded(&self) -> ShardedTransaction {
        ShardedTransaction::new(self.core.clone())
    }

    /// Whether these keys lie on several shards, as far as this client knows.
    pub fn is_spread(&self, tables: &[TableUse]) -> bool {
        spread(&self.core, tables)
    }

    /// These keys by the shards that own them. Waits until all of them have a route.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] if some have none in time.
    pub async fn parts_of(&self, tables: &[TableUse]) -> Result<Vec<ShardPart>, ClientError> {
        parts_of(&self.core, tables).await
    }

    /// The placement driver, by its REST interface.
    pub fn placement_driver(&self) -> Arc<dyn Api> {
        self.core.placement_driver.clone()
    }

    /// The routing table as this client knows it.
    pub fn routes(&self) -> Arc<RoutingTable> {
        self.core.routes()
    }

    /// The known REST endpoints of the placement driver: the configured ones, and those of replicas
    /// that were added later.
    pub fn endpoints(&self) -> Vec<String> {
        self.core.placement_driver.endpoints().to_vec()
    }

    /// Fetches the whole routing table. A client does this by itself whenever it needs to.
    pub async fn refresh(&self) -> Result<(), ClientError> {
        let unavailable = |reason| ClientError::Unavailable(SqlError::new(codes::CONNECTION_FAILURE, reason));
        self.core.routing.refresh().await.map_err(unavailable)
    }

    /// The counters since the client connected.
    pub fn stats(&self) -> ClientStats {
        self.core.counters.read()
    }
}

#[inline(never)]
fn connect_over_http(config: ClientConfig) -> BoxFuture<'static, Result<Client, ClientError>> {
    let connected = async move {
        config.check().map_err(ClientError::Config)?;
        let id: u64 = evenkeel_host::random();
        let api = HttpApi::new(&config, id as usize).map_err(ClientError::Config)?;
        connect_boxed(config, id, Arc::new(api), Arc::new(())).await
    };
    connected.boxed()
}

#[inline(never)]
fn connect_boxed(
    config: ClientConfig,
    id: u64,
    api: Arc<dyn Api>,
    observer: Arc<dyn ReplyObserver>,
) -> BoxFuture<'static, Result<Client, ClientError>> {
    let connected = async move {
        let core = Arc::new(ClientCore::new(config, id, api, observer));
        core.start().await?;
        Ok(Client { core })
    };
    connected.boxed()
}
