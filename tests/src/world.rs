//! The world of a scenario: a running cluster, a client of it, and questions about its state.
//!
//! Its methods that wait have a deadline, and an error that says what was seen instead of the
//! condition.

use crate::failure::{ScenarioFailure, ScenarioResult};
use evenkeel_client::admin::AdminClient;
use evenkeel_client::{Client, ClientConfig};
use evenkeel_local_cluster::operator_text::is_running;
use evenkeel_local_cluster::run::verification::verify_cluster;
use evenkeel_local_cluster::{Cluster, ClusterOptions, ProcessId};
use evenkeel_protocol::api::{CreateTableBody, MoveBody, OperatorBody, RangeBody, ShardBody, SplitBody};
use evenkeel_protocol::{OperatorId, RangeId, ShardId};
use evenkeel_sql as sql;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a condition may take to come true.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The interval between two checks of a condition, in milliseconds.
const POLL_MS: u64 = 10;

/// Waits until `count` has grown by `more`. If it has not grown for half of [`PATIENCE`], the
/// failure is `halted`.
pub async fn grown(count: &AtomicU64, more: u64, halted: &str) -> ScenarioResult {
    let mut last = count.load(Ordering::Relaxed);
    let (wanted, mut since) = (last + more, evenkeel_host::now());
    loop {
        let now = count.load(Ordering::Relaxed);
        if now >= wanted {
            return Ok(());
        }
        if now > last {
            (last, since) = (now, evenkeel_host::now());
        }
        if evenkeel_host::elapsed(since) >= PATIENCE / 2 {
            return Err(ScenarioFailure::new(halted));
        }
        evenkeel_host::sleep(Duration::from_millis(5)).await;
    }
}

/// A running cluster and a client of it.
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    /// A client.
    pub client: Client,
}

impl World {
    /// Starts a cluster.
    pub async fn start(options: ClusterOptions) -> Result<World, ScenarioFailure> {
        let cluster = Cluster::start(options).await?;
        let client = Client::connect(ClientConfig::new(cluster.admin().urls())).await?;
        Ok(World { cluster, client })
    }

    /// Stops the cluster.
    pub async fn stop(self) {
        self.cluster.stop().await;
    }

    /// A client of the placement driver.
    pub fn admin(&self) -> &AdminClient {
        self.cluster.admin()
    }

    /// The ends of all logs, for the report of a failure.
    pub fn evidence(&self) -> String {
        let tails = self
            .cluster
            .process_ids()
            .into_iter()
            .map(|id| format!("-- log of {id}:\n{}", self.cluster.log_tail(id, 8)));
        tails.collect::<Vec<_>>().join("\n")
    }

    /// Creates a table whose first range is on `shard`.
    pub async fn create_table(&self, create: &str, shard: u32) -> ScenarioResult {
        let parsed = sql::parse(create).map_err(|e| e.to_string())?;
        let sql::Command::CreateTable { schema, .. } = parsed else {
            return Err(ScenarioFailure::new(format!("{create} is no CREATE TABLE")));
        };
        let name = schema.name.clone();
        let body = CreateTableBody { schema, shard: Some(ShardId(shard)), if_not_exists: false };
        // Replicas that have just started elect more than once; the refusal says to try again.
        let deadline = evenkeel_host::now() + PATIENCE;
        loop {
            match self.admin().post::<_, serde_json::Value>("/v1/tables", &body).await {
                Err(error) if error.is_temporary() && evenkeel_host::now() < deadline => {
                    evenkeel_host::sleep(Duration::from_millis(20)).await;
                }
                answer => break answer.map(drop)?,
            }
        }
        // Any replica may send a client its first routing table, so all replicas that answer must
        // know the new table.
        self.until("every placement driver to know the table", PATIENCE, async || {
            for url in self.admin().urls() {
                match AdminClient::new([url.clone()]).get::<Vec<serde_json::Value>>("/v1/tables").await {
                    Ok(tables) if !tables.iter().any(|table| table["name"] == name.as_str()) => return Err(url.clone()),
                    // A replica that does not answer serves no client.
                    _ => {}
                }
            }
            self.client.refresh().await.map_err(|e| e.to_string())?;
            self.client.routes().table(&name).map(drop).ok_or_else(|| "the client does not".to_string())
        })
        .await
    }

    /// Turns the balancer on or off.
    pub async fn set_balancer(&self, enabled: bool) -> ScenarioResult {
        let _: serde_json::Value =
            self.admin().post("/v1/balancer", &serde_json::json!({ "enabled": enabled })).await?;
        Ok(())
    }

    /// Waits until `look` returns a value. Its error is what it saw instead.
    pub async fn until<T>(
        &self,
        condition: &str,
        patience: Duration,
        mut look: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, ScenarioFailure> {
        let deadline = evenkeel_host::now() + patience;
        loop {
            match look().await {
                Ok(value) => return Ok(value),
                Err(seen) if evenkeel_host::now() >= deadline => {
                    let seconds = patience.as_secs();
                    return Err(ScenarioFailure::new(format!("waited {seconds} s for {condition}; last seen: {seen}")));
                }
                Err(_) => evenkeel_host::sleep(Duration::from_millis(POLL_MS)).await,
            }
        }
    }

    /// The ranges of a table, in key order.
    pub async fn ranges(&self, table: &str) -> Result<Vec<RangeBody>, ScenarioFailure> {
        let mut ranges: Vec<RangeBody> = self.admin().get("/v1/ranges").await?;
        ranges.retain(|r| r.route.table_name == table);
        ranges.sort_by(|a, b| a.route.start_hex.cmp(&b.route.start_hex));
        Ok(ranges)
    }

    /// The only range of a table.
    pub async fn only_range(&self, table: &str) -> Result<RangeBody, ScenarioFailure> {
        let mut ranges = self.ranges(table).await?;
        match (ranges.pop(), ranges.len()) {
            (Some(range), 0) => Ok(range),
            (_, more) => Err(ScenarioFailure::new(format!("{table} has {more} further ranges"))),
        }
    }

    /// The shards.
    pub async fn shards(&self) -> Result<Vec<ShardBody>, ScenarioFailure> {
        Ok(self.admin().get("/v1/shards").await?)
    }

    /// The replica that leads a shard.
    pub async fn leader(&self, shard: u32) -> Result<u64, ScenarioFailure> {
        self.until(&format!("shard {shard} to have a leader"), PATIENCE, async || {
            let shards: Vec<ShardBody> = self.admin().get("/v1/shards").await.map_err(|e| e.to_string())?;
            let found = shards.iter().find(|s| s.info.id.0 == shard);
            found.and_then(|s| s.leader).ok_or_else(|| format!("{found:?}"))
        })
        .await
    }

    /// Transfers a shard's leadership to a replica, and waits until that replica leads.
    pub async fn transfer_leadership(&self, shard: u32, to: u64) -> ScenarioResult {
        let path = format!("/v1/shards/{shard}/transfer-leader");
        self.until(&format!("replica {to} of shard {shard} to lead"), PATIENCE, async || {
            if self.leader(shard).await.map_err(|e| e.to_string())? == to {
                return Ok(());
            }
            let asked = self.admin().post::<_, serde_json::Value>(&path, &serde_json::json!({ "to": to })).await;
            Err(format!("asked: {asked:?}"))
        })
        .await
    }

    /// The placement driver's leader.
    pub async fn placement_driver_leader(&self) -> Result<u64, ScenarioFailure> {
        self.until("the placement driver to have a leader", PATIENCE, async || {
            let status: serde_json::Value = self.admin().get("/v1/status").await.map_err(|e| e.to_string())?;
            status["leader"].as_u64().ok_or_else(|| {
                // The replica that answered may be cut off from the others.
                self.admin().pass_over();
                status.to_string()
            })
        })
        .await
    }

    /// Asks for a split.
    pub async fn split(&self, range: RangeId, at: &[i64]) -> Result<OperatorBody, ScenarioFailure> {
        let body = SplitBody { at: at.iter().map(|key| vec![(*key).into()]).collect() };
        Ok(self.admin().post(&format!("/v1/ranges/{range}/split"), &body).await?)
    }

    /// Asks for a move.
    pub async fn move_range(&self, range: RangeId, to: u32) -> Result<OperatorBody, ScenarioFailure> {
        Ok(self.admin().post(&format!("/v1/ranges/{range}/move"), &MoveBody { to: ShardId(to) }).await?)
    }

    /// The current state of an operator.
    pub async fn operator(&self, id: OperatorId) -> Result<OperatorBody, ScenarioFailure> {
        self.until(&format!("operator {id} to be known"), PATIENCE, async || {
            self.admin().get(&format!("/v1/operators/{id}")).await.map_err(|e| e.to_string())
        })
        .await
    }

    /// Waits until an operator has ended, and returns its last state.
    pub async fn ended(&self, id: OperatorId) -> Result<OperatorBody, ScenarioFailure> {
        self.until(&format!("operator {id} to end"), PATIENCE, async || {
            let operator: OperatorBody =
                self.admin().get(&format!("/v1/operators/{id}")).await.map_err(|e| e.to_string())?;
            match operator.status.as_str() {
                "running" | "cancelling" => Err(format!("{operator:?}")),
                _ => Ok(operator),
            }
        })
        .await
    }

    /// Waits until an operator is done. Any other end is a failure.
    pub async fn done(&self, id: OperatorId) -> Result<OperatorBody, ScenarioFailure> {
        let operator = self.ended(id).await?;
        if operator.status == "done" {
            Ok(operator)
        } else {
            Err(ScenarioFailure::new(format!("operator {id} ended as {operator:?}")))
        }
    }

    /// Waits until no operator runs.
    pub async fn quiet(&self) -> ScenarioResult {
        self.until("all operators to end", PATIENCE, async || {
            // The leader's answer first: a replica that is behind may not know a new operator yet.
            let ranges: Vec<RangeBody> = self.admin().get("/v1/ranges").await.map_err(|e| e.to_string())?;
            if let Some(busy) = ranges.iter().find(|range| range.operator.is_some()) {
                return Err(format!("{busy:?}"));
            }
            let operators: Vec<OperatorBody> = self.admin().get("/v1/operators").await.map_err(|e| e.to_string())?;
            let running = operators.iter().find(|o| is_running(o));
            running.map_or(Ok(()), |o| Err(format!("{o:?}")))
        })
        .await
    }

    /// Waits until every replica of every shard runs and is connected to its leader.
    pub async fn whole(&self) -> ScenarioResult {
        Ok(self.cluster.wait_shards_ready(evenkeel_host::now() + PATIENCE).await?)
    }

    /// Kills a process.
    pub fn kill(&self, id: ProcessId) -> ScenarioResult {
        Ok(self.cluster.kill(id)?)
    }

    /// Waits until no operator runs, and verifies that all replicas are equal and every key has one
    /// owner.
    pub async fn nothing_is_wrong(&self) -> ScenarioResult {
        self.quiet().await?;
        self.whole().await?;
        let verified = verify_cluster(self.admin()).await?;
        if verified.findings.is_empty() { Ok(()) } else { Err(ScenarioFailure::new(verified.findings.join("\n"))) }
    }
}
