//! What a scenario acts in: a cluster that is up, a client of it, and questions about its state.

use evenkeel::cluster::{Cluster, ClusterError, ClusterOptions, ProcessId, wait};
use evenkeel::rest::{Rest, RestError};
use evenkeel::run::checks;
use evenkeel_client::{Client, ClientConfig, ClientError};
use evenkeel_protocol::api::{CreateTableBody, MoveBody, OperatorBody, RangeBody, ShardBody, SplitBody};
use evenkeel_protocol::{OperatorId, RangeId, ShardId};
use evenkeel_sql as sql;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a condition may take to come true.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at, in milliseconds.
const POLL_MS: u64 = 10;

/// Why a scenario failed, in words; or why it could not be run here.
#[derive(Debug)]
pub struct Failure {
    why: String,
    skipped: bool,
}

impl Failure {
    /// A failure with this reason.
    pub fn new(why: impl Into<String>) -> Failure {
        Failure { why: why.into(), skipped: false }
    }

    /// Nothing failed: this machine lacks what the scenario needs. It counts as ignored.
    pub fn skipped(why: impl Into<String>) -> Failure {
        Failure { why: why.into(), skipped: true }
    }

    /// Whether that is so.
    pub fn is_skipped(&self) -> bool {
        self.skipped
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

macro_rules! failure_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::new(error.to_string())
            }
        })*
    };
}

failure_from!(ClusterError, RestError, ClientError, String, reqwest::Error);

/// How a scenario ends.
pub type Outcome = Result<(), Failure>;

/// Waits until `count` has grown by `more`; `halted` says what is wrong if it has not grown at all for half of [`PATIENCE`].
pub async fn grown(count: &AtomicU64, more: u64, halted: &str) -> Outcome {
    let mut last = count.load(Ordering::Relaxed);
    let (wanted, mut since) = (last + more, Instant::now());
    loop {
        let now = count.load(Ordering::Relaxed);
        if now >= wanted {
            return Ok(());
        }
        if now > last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() >= PATIENCE / 2 {
            return Err(Failure::new(halted));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A cluster that is up, and a client of it.
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    /// A client.
    pub client: Client,
}

impl World {
    /// Starts a cluster.
    pub async fn start(options: ClusterOptions) -> Result<World, Failure> {
        let cluster = Cluster::start(options).await?;
        let client = Client::connect(ClientConfig::new(cluster.rest().urls())).await?;
        Ok(World { cluster, client })
    }

    /// Ends it.
    pub async fn stop(self) {
        self.cluster.stop().await;
    }

    /// The placement driver.
    pub fn rest(&self) -> &Rest {
        self.cluster.rest()
    }

    /// The ends of the logs: what a person would look at first after a failure.
    pub fn evidence(&self) -> String {
        let tails = self
            .cluster
            .process_ids()
            .into_iter()
            .map(|id| format!("-- log of {id}:\n{}", self.cluster.log_tail(id, 8)));
        tails.collect::<Vec<_>>().join("\n")
    }

    /// Creates a table whose first range is on `shard`.
    pub async fn create_table(&self, create: &str, shard: u32) -> Outcome {
        let parsed = sql::parse(create).map_err(|e| e.to_string())?;
        let sql::Command::CreateTable { schema, .. } = parsed else {
            return Err(Failure::new(format!("{create} is no CREATE TABLE")));
        };
        let name = schema.name.clone();
        let body = CreateTableBody { schema, shard: Some(ShardId(shard)), if_not_exists: false };
        let _: serde_json::Value = self.rest().post("/v1/tables", &body).await?;
        // Any replica may serve a client its first table: all that answer have to know it.
        self.until("every placement driver to know the table", PATIENCE, async || {
            for url in self.rest().urls() {
                match Rest::new([url.clone()]).get::<Vec<serde_json::Value>>("/v1/tables").await {
                    Ok(tables) if !tables.iter().any(|table| table["name"] == name.as_str()) => return Err(url.clone()),
                    // One that is away serves nobody.
                    _ => {}
                }
            }
            self.client.refresh().await.map_err(|e| e.to_string())?;
            self.client.routes().table(&name).map(drop).ok_or_else(|| "the client does not".to_string())
        })
        .await
    }

    /// Turns the balancer on or off.
    pub async fn set_balancer(&self, enabled: bool) -> Outcome {
        let _: serde_json::Value = self.rest().post("/v1/balancer", &serde_json::json!({ "enabled": enabled })).await?;
        Ok(())
    }

    /// Waits until `look` gives a value; its error says what it saw instead.
    pub async fn until<T>(
        &self,
        condition: &str,
        patience: Duration,
        mut look: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            match look().await {
                Ok(value) => return Ok(value),
                Err(seen) if Instant::now() >= deadline => {
                    let seconds = patience.as_secs();
                    return Err(Failure::new(format!("waited {seconds} s for {condition}; last seen: {seen}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(POLL_MS)).await,
            }
        }
    }

    /// The ranges of a table, in key order.
    pub async fn ranges(&self, table: &str) -> Result<Vec<RangeBody>, Failure> {
        let mut ranges: Vec<RangeBody> = self.rest().get("/v1/ranges").await?;
        ranges.retain(|r| r.route.table_name == table);
        ranges.sort_by(|a, b| a.route.start_hex.cmp(&b.route.start_hex));
        Ok(ranges)
    }

    /// The only range of a table.
    pub async fn only_range(&self, table: &str) -> Result<RangeBody, Failure> {
        let mut ranges = self.ranges(table).await?;
        match (ranges.pop(), ranges.len()) {
            (Some(range), 0) => Ok(range),
            (_, more) => Err(Failure::new(format!("{table} has {more} further ranges"))),
        }
    }

    /// The shards.
    pub async fn shards(&self) -> Result<Vec<ShardBody>, Failure> {
        Ok(self.rest().get("/v1/shards").await?)
    }

    /// The replica that leads a shard.
    pub async fn leader(&self, shard: u32) -> Result<u64, Failure> {
        self.until(&format!("shard {shard} to have a leader"), PATIENCE, async || {
            let shards: Vec<ShardBody> = self.rest().get("/v1/shards").await.map_err(|e| e.to_string())?;
            let found = shards.iter().find(|s| s.info.id.0 == shard);
            found.and_then(|s| s.leader).ok_or_else(|| format!("{found:?}"))
        })
        .await
    }

    /// Has a replica lead its shard, and waits until it does.
    pub async fn transfer_leadership(&self, shard: u32, to: u64) -> Outcome {
        let path = format!("/v1/shards/{shard}/transfer-leader");
        self.until(&format!("replica {to} of shard {shard} to lead"), PATIENCE, async || {
            if self.leader(shard).await.map_err(|e| e.to_string())? == to {
                return Ok(());
            }
            let asked = self.rest().post::<_, serde_json::Value>(&path, &serde_json::json!({ "to": to })).await;
            Err(format!("asked: {asked:?}"))
        })
        .await
    }

    /// The placement driver's leader.
    pub async fn driver_leader(&self) -> Result<u64, Failure> {
        self.until("the placement driver to have a leader", PATIENCE, async || {
            let status: serde_json::Value = self.rest().get("/v1/status").await.map_err(|e| e.to_string())?;
            status["leader"].as_u64().ok_or_else(|| {
                // This one may be cut off from the others.
                self.rest().pass_over();
                status.to_string()
            })
        })
        .await
    }

    /// Asks for a split.
    pub async fn split(&self, range: RangeId, at: &[i64]) -> Result<OperatorBody, Failure> {
        let body = SplitBody { at: at.iter().map(|key| vec![(*key).into()]).collect() };
        Ok(self.rest().post(&format!("/v1/ranges/{range}/split"), &body).await?)
    }

    /// Asks for a move.
    pub async fn move_range(&self, range: RangeId, to: u32) -> Result<OperatorBody, Failure> {
        Ok(self.rest().post(&format!("/v1/ranges/{range}/move"), &MoveBody { to: ShardId(to) }).await?)
    }

    /// An operator as it is now.
    pub async fn operator(&self, id: OperatorId) -> Result<OperatorBody, Failure> {
        self.until(&format!("operator {id} to be told of"), PATIENCE, async || {
            self.rest().get(&format!("/v1/operators/{id}")).await.map_err(|e| e.to_string())
        })
        .await
    }

    /// Waits until an operator has ended, and says how.
    pub async fn ended(&self, id: OperatorId) -> Result<OperatorBody, Failure> {
        self.until(&format!("operator {id} to end"), PATIENCE, async || {
            let operator: OperatorBody =
                self.rest().get(&format!("/v1/operators/{id}")).await.map_err(|e| e.to_string())?;
            match operator.status.as_str() {
                "running" | "cancelling" => Err(format!("{operator:?}")),
                _ => Ok(operator),
            }
        })
        .await
    }

    /// Waits until an operator is done; any other end is a failure.
    pub async fn done(&self, id: OperatorId) -> Result<OperatorBody, Failure> {
        let operator = self.ended(id).await?;
        if operator.status == "done" {
            Ok(operator)
        } else {
            Err(Failure::new(format!("operator {id} ended as {operator:?}")))
        }
    }

    /// Waits until no operator runs.
    pub async fn quiet(&self) -> Outcome {
        self.until("all operators to end", PATIENCE, async || {
            // The leader's word first: one that is behind may not know yet of an operator that has begun.
            let ranges: Vec<RangeBody> = self.rest().get("/v1/ranges").await.map_err(|e| e.to_string())?;
            if let Some(busy) = ranges.iter().find(|range| range.operator.is_some()) {
                return Err(format!("{busy:?}"));
            }
            let operators: Vec<OperatorBody> = self.rest().get("/v1/operators").await.map_err(|e| e.to_string())?;
            let running = operators.iter().find(|o| evenkeel::run::watch::is_running(o));
            running.map_or(Ok(()), |o| Err(format!("{o:?}")))
        })
        .await
    }

    /// Waits until every replica of every shard is up and heard of.
    pub async fn whole(&self) -> Outcome {
        Ok(wait::shards_ready(&self.cluster, Instant::now() + PATIENCE).await?)
    }

    /// Kills a process, and says so if there is none.
    pub fn kill(&self, id: ProcessId) -> Outcome {
        Ok(self.cluster.kill(id)?)
    }

    /// Checks that all replicas are equal and every key has one owner; nothing may be moving.
    pub async fn nothing_is_wrong(&self) -> Outcome {
        self.quiet().await?;
        self.whole().await?;
        let checked = checks::check(self.rest()).await?;
        if checked.findings.is_empty() { Ok(()) } else { Err(Failure::new(checked.findings.join("\n"))) }
    }
}
