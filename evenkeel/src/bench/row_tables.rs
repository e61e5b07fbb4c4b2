//! The same table of small rows on Evenkeel and on plain PostgreSQL.

use crate::bench::closed_loop::Operate;
use crate::bench::plain::PlainPostgres;
use bytes::Bytes;
use evenkeel_client::{Client, ClientConfig, Value};
use evenkeel_local_cluster::Cluster;
use std::sync::Arc;

/// Bytes of each row's value.
const VALUE_BYTES: usize = 100;
/// Rows per INSERT while loading.
const LOAD_ROWS: i64 = 500;
const CREATE: &str = "CREATE TABLE bench (id bigint PRIMARY KEY, value bytea NOT NULL)";
const UPDATE: &str = "UPDATE bench SET value = $2 WHERE id = $1";
const READ: &str = "SELECT value FROM bench WHERE id = $1";

/// One INSERT of the rows `from..to`.
fn insert(from: i64, to: i64) -> String {
    let value = "ab".repeat(VALUE_BYTES);
    let rows: Vec<String> = (from..to).map(|id| format!("({id}, '\\x{value}')")).collect();
    format!("INSERT INTO bench (id, value) VALUES {}", rows.join(", "))
}

/// The table on Evenkeel, for reads or for writes.
#[derive(Clone)]
pub struct EvenkeelRows {
    client: Client,
    value: Bytes,
    write: bool,
}

impl EvenkeelRows {
    /// Creates and loads the table.
    pub async fn load(cluster: &Cluster, rows: i64) -> Result<EvenkeelRows, String> {
        let client = Client::connect(ClientConfig::new(cluster.admin().urls())).await.map_err(|e| e.to_string())?;
        client.execute(CREATE, &[]).await.map_err(|e| e.to_string())?;
        for from in (0..rows).step_by(LOAD_ROWS as usize) {
            let text = insert(from, rows.min(from + LOAD_ROWS));
            client.execute(&text, &[]).await.map_err(|e| e.to_string())?;
        }
        Ok(EvenkeelRows { client, value: Bytes::from(vec![0xCD; VALUE_BYTES]), write: false })
    }

    /// The same table, for writes or for reads.
    pub fn for_writes(&self, write: bool) -> EvenkeelRows {
        EvenkeelRows { write, ..self.clone() }
    }
}

impl Operate for EvenkeelRows {
    async fn operate(&self, _client: usize, key: i64) -> Result<(), String> {
        let done = if self.write {
            self.client.execute(UPDATE, &[Value::Int(key), Value::Bytes(self.value.clone())]).await.map(|a| a.affected)
        } else {
            self.client.execute(READ, &[Value::Int(key)]).await.map(|a| u64::from(a.rows.count))
        };
        exactly_one(done.map_err(|e| e.to_string())?)
    }
}

/// The table on plain PostgreSQL, with one connection per client, for reads or for writes.
#[derive(Clone)]
pub struct PlainRows {
    connections: Arc<Vec<PreparedConnection>>,
    value: Arc<[u8]>,
    write: bool,
}

struct PreparedConnection {
    client: tokio_postgres::Client,
    update: tokio_postgres::Statement,
    read: tokio_postgres::Statement,
}

impl PlainRows {
    /// Creates and loads the table, and opens `connections` connections.
    pub async fn load(plain: &PlainPostgres, rows: i64, connections: usize) -> Result<PlainRows, String> {
        let first = plain.connect().await?;
        first.batch_execute(CREATE).await.map_err(|e| e.to_string())?;
        for from in (0..rows).step_by(LOAD_ROWS as usize) {
            first.batch_execute(&insert(from, rows.min(from + LOAD_ROWS))).await.map_err(|e| e.to_string())?;
        }
        first.batch_execute("VACUUM ANALYZE bench").await.map_err(|e| e.to_string())?;
        let mut prepared = Vec::new();
        for _ in 0..connections {
            let client = plain.connect().await?;
            let update = client.prepare(UPDATE).await.map_err(|e| e.to_string())?;
            let read = client.prepare(READ).await.map_err(|e| e.to_string())?;
            prepared.push(PreparedConnection { client, update, read });
        }
        Ok(PlainRows { connections: Arc::new(prepared), value: vec![0xCD; VALUE_BYTES].into(), write: false })
    }

    /// The same table, for writes or for reads.
    pub fn for_writes(&self, write: bool) -> PlainRows {
        PlainRows { write, ..self.clone() }
    }
}

impl Operate for PlainRows {
    async fn operate(&self, client: usize, key: i64) -> Result<(), String> {
        let connection = self.connections.get(client).ok_or("no connection for this client")?;
        let done = if self.write {
            connection.client.execute(&connection.update, &[&key, &&self.value[..]]).await
        } else {
            connection.client.query(&connection.read, &[&key]).await.map(|rows| rows.len() as u64)
        };
        exactly_one(done.map_err(|e| e.to_string())?)
    }
}

fn exactly_one(rows: u64) -> Result<(), String> {
    if rows == 1 { Ok(()) } else { Err(format!("{rows} rows instead of one")) }
}
