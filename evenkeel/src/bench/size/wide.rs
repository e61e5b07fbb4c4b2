//! A table of 2 KiB rows on one shard, and clients that write to it.

use crate::error::CommandError;
use bytes::Bytes;
use evenkeel_client::{Client, ClientConfig, ClientError, Value};
use evenkeel_local_cluster::Cluster;
use evenkeel_local_cluster::failover::writers::{WriteRecord, Writers};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::{CreateTableBody, RangeBody};
use evenkeel_sql as sql;
use evenkeel_workloads::seed::SeededRandom;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// Bytes of a row's body.
pub const BODY_BYTES: u64 = 2_048;
/// Rows of one INSERT while loading.
const LOAD_ROWS: u64 = 100;
/// Inserts under way at once while loading.
const LOADERS: u64 = 8;

/// The table and a client.
#[derive(Clone)]
pub struct Wide {
    /// The client.
    pub client: Client,
    /// The table's name.
    pub table: String,
    body: Bytes,
}

impl Wide {
    /// Creates the table on `shard`, empty.
    pub async fn create(cluster: &Cluster, table: &str, shard: u32) -> Result<Wide, CommandError> {
        let text = format!("CREATE TABLE {table} (id bigint PRIMARY KEY, n bigint NOT NULL, body bytea NOT NULL)");
        let parsed = sql::parse(&text).map_err(CommandError::failed)?;
        let sql::Command::CreateTable { schema, .. } = parsed else {
            return Err(CommandError::Failed(format!("{text} is no CREATE TABLE")));
        };
        let body = CreateTableBody { schema, shard: Some(ShardId(shard)), if_not_exists: false };
        let made = cluster.admin().post::<_, serde_json::Value>("/v1/tables", &body).await;
        made.map_err(CommandError::failed)?;
        let client = Client::connect(ClientConfig::new(cluster.admin().urls())).await.map_err(CommandError::failed)?;
        let mut random = SeededRandom::new(1, 0);
        // Random bytes, which PostgreSQL cannot compress.
        let body: Vec<u8> = (0..BODY_BYTES / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        Ok(Wide { client, table: table.into(), body: body.into() })
    }

    /// Inserts the rows `from..to`.
    pub async fn load(&self, from: u64, to: u64) -> Result<(), CommandError> {
        let next = Arc::new(AtomicU64::new(from));
        let mut loaders = JoinSet::new();
        for _ in 0..LOADERS {
            let (wide, next) = (self.clone(), next.clone());
            loaders.spawn(async move {
                loop {
                    let first = next.fetch_add(LOAD_ROWS, Ordering::Relaxed);
                    if first >= to {
                        return Ok(());
                    }
                    wide.insert(first, to.min(first + LOAD_ROWS)).await?;
                }
            });
        }
        while let Some(loaded) = loaders.join_next().await {
            loaded.map_err(CommandError::failed)?.map_err(CommandError::Failed)?;
        }
        Ok(())
    }

    async fn insert(&self, from: u64, to: u64) -> Result<(), String> {
        let rows: Vec<String> = (0..to - from).map(|row| format!("(${}, 0, ${})", 2 * row + 1, 2 * row + 2)).collect();
        let text = format!("INSERT INTO {} (id, n, body) VALUES {}", self.table, rows.join(", "));
        let values: Vec<Value> =
            (from..to).flat_map(|id| [Value::Int(id as i64), Value::Bytes(self.body.clone())]).collect();
        self.client.execute(&text, &values).await.map(drop).map_err(|e| e.to_string())
    }

    /// The one range of the table.
    pub async fn range(&self, cluster: &Cluster) -> Result<RangeBody, CommandError> {
        let ranges: Vec<RangeBody> = cluster.admin().get("/v1/ranges").await.map_err(CommandError::failed)?;
        let found = ranges.into_iter().find(|range| range.route.table_name == self.table);
        found.ok_or_else(|| CommandError::Failed(format!("{} has no range", self.table)))
    }

    /// Reads all rows in one statement and returns their number.
    pub async fn scan(&self) -> Result<u64, String> {
        let read = async {
            let (mut stream, mut rows) = (self.client.stream(&format!("SELECT * FROM {}", self.table), &[]).await?, 0);
            while let Some(piece) = stream.next().await? {
                rows += u64::from(piece.count);
            }
            Ok(rows)
        };
        read.await.map_err(|error: ClientError| error.to_string())
    }

    /// Starts clients that update random rows among the first `rows`, with their body, `per_s`
    /// times per second together; 0: as fast as possible.
    pub fn writers(&self, clients: usize, rows: u64, per_s: f64) -> Writers {
        let record = WriteRecord::new();
        let mut tasks = JoinSet::new();
        for writer in 0..clients {
            let (wide, record) = (self.clone(), record.clone());
            tasks.spawn(async move {
                let text = format!("UPDATE {} SET n = n + 1, body = $2 WHERE id = $1", wide.table);
                let mut random = SeededRandom::new(writer as u64, 1);
                let mut pace = (per_s > 0.0).then(|| {
                    let mut pace = evenkeel_host::interval(Duration::from_secs_f64(clients as f64 / per_s));
                    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
                    pace
                });
                loop {
                    if let Some(pace) = &mut pace {
                        pace.tick().await;
                    }
                    let sent_ms = record.now_ms();
                    let key = Value::Int(random.below(rows) as i64);
                    match wide.client.execute(&text, &[key, Value::Bytes(wide.body.clone())]).await {
                        Ok(_) => record.acked(writer, sent_ms),
                        Err(error) => record.fail(error.to_string()),
                    }
                }
            });
        }
        Writers::new(record, clients, tasks)
    }
}
