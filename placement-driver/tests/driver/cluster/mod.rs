//! Three real placement-driver replicas in this process, and fake shards: RPC servers that answer
//! and report as a shard's leader does, without PostgreSQL.
#![allow(clippy::unwrap_used, dead_code)]

pub mod shards;

use evenkeel_placement_driver::{Config, run};
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{TableId, TableSchema};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use shards::Shards;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longer than any step takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

struct Replica {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

pub struct Cluster {
    configs: BTreeMap<u64, Config>,
    replicas: BTreeMap<u64, Replica>,
    pub shards: Shards,
    pub http: Client,
    _dir: tempfile::TempDir,
}

/// A table with a definition as a client may write it, not in canonical form.
pub fn schema(name: &str, columns: &[(&str, &str, u32)], key: Vec<usize>) -> TableSchema {
    let mut lines: Vec<String> = columns.iter().map(|(name, type_name, _)| format!("{name} {type_name}")).collect();
    let names: Vec<&str> = key.iter().map(|at| columns[*at].0).collect();
    if !names.is_empty() {
        lines.push(format!("PRIMARY KEY ({})", names.join(", ")));
    }
    let create_sql = format!("CREATE TABLE {name} ({})", lines.join(", "));
    let columns = columns
        .iter()
        .map(|(name, type_name, type_oid)| ColumnSchema {
            name: (*name).into(),
            type_name: (*type_name).into(),
            type_oid: *type_oid,
        })
        .collect();
    TableSchema { id: TableId(0), name: name.into(), columns, key, create_sql, ..TableSchema::default() }
}

pub fn bigint_table(name: &str) -> TableSchema {
    schema(name, &[("id", "bigint", 20), ("v", "text", 25)], vec![0])
}

impl Cluster {
    /// Starts three replicas and `shards` fake shards, and registers the shards.
    pub async fn start(shards: u32) -> Cluster {
        Cluster::start_with(shards, |_| {}).await
    }

    pub async fn start_with(shards: u32, change: impl Fn(&mut Config)) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let addresses: Vec<SocketAddr> = (0..9).map(|_| evenkeel_host::ports::address().unwrap()).collect();
        let map = |at: usize| (1..=3).map(|n| (n, addresses[at * 3 + n as usize - 1])).collect::<BTreeMap<_, _>>();
        let (rest, rpc, log) = (map(0), map(1), map(2));
        let mut configs = BTreeMap::new();
        for replica in 1..=3 {
            let data_dir = dir.path().join(format!("pd{replica}"));
            let text = json!({ "replica": replica, "data_dir": data_dir, "rest": rest, "rpc": rpc, "log": log });
            let mut config: Config = serde_json::from_value(text).unwrap();
            change(&mut config);
            configs.insert(replica, config);
        }
        let fake = Shards::start(shards, rpc.values().copied().collect()).await;
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let mut cluster = Cluster { configs, replicas: BTreeMap::new(), shards: fake, http, _dir: dir };
        for replica in 1..=3 {
            cluster.revive(replica);
        }
        cluster.leader().await;
        for info in cluster.shards.infos() {
            let (status, body) = cluster.post("/v1/shards", &json!({ "id": info.id, "replicas": info.replicas })).await;
            assert!(status.is_success(), "{body}");
        }
        cluster
    }

    /// Adds and registers a fake shard.
    pub async fn add_shard(&mut self, id: u32) {
        let report_to = self.configs[&1].rpc.values().copied().collect();
        self.shards.add(id, report_to).await;
        let info = self.shards.infos().into_iter().find(|info| info.id.0 == id).unwrap();
        let (status, body) = self.post("/v1/shards", &json!({ "id": info.id, "replicas": info.replicas })).await;
        assert!(status.is_success(), "{body}");
    }

    pub fn revive(&mut self, replica: u64) {
        let config = self.configs[&replica].clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            run(config, async { drop(stopped.await) }).await.unwrap();
        });
        self.replicas.insert(replica, Replica { stop: Some(stop), task });
    }

    pub async fn kill(&mut self, replica: u64) {
        let mut killed = self.replicas.remove(&replica).unwrap();
        drop(killed.stop.take());
        evenkeel_host::timeout(PATIENCE, killed.task).await.unwrap().unwrap();
    }

    pub fn url(&self, replica: u64) -> String {
        format!("http://{}", self.configs[&replica].rest[&replica])
    }

    pub fn config(&self, replica: u64) -> &Config {
        &self.configs[&replica]
    }

    pub fn alive(&self) -> Vec<u64> {
        self.replicas.keys().copied().collect()
    }

    /// The leader, once one serves.
    pub async fn leader(&self) -> u64 {
        eventually("a leader", || async {
            for replica in self.alive() {
                let status = self.get_at(replica, "/v1/status").await;
                if let Some((_, status)) = status
                    && status["leads"] == true
                {
                    return Some(replica);
                }
            }
            None
        })
        .await
    }

    pub async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        self.alive().into_iter().find(|replica| *replica != leader).unwrap()
    }

    /// Asks one replica, leader or not; `None` if it does not answer.
    pub async fn get_at(&self, replica: u64, path: &str) -> Option<(StatusCode, Value)> {
        let response = self.http.get(format!("{}{path}", self.url(replica))).send().await.ok()?;
        let status = response.status();
        Some((status, response.json().await.unwrap_or(Value::Null)))
    }

    /// Sends a request to any replica, follows redirects and waits while there is no leader.
    pub async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> (StatusCode, Value) {
        eventually(path, || async {
            for replica in self.alive() {
                let mut url = format!("{}{path}", self.url(replica));
                for _ in 0..4 {
                    let mut request = self.http.request(method.clone(), &url);
                    if let Some(body) = &body {
                        request = request.body(body.clone());
                    }
                    let Ok(response) = request.send().await else { break };
                    if response.status() == StatusCode::TEMPORARY_REDIRECT {
                        url = response.headers()["location"].to_str().unwrap().to_string();
                        continue;
                    }
                    let status = response.status();
                    let body: Value = response.json().await.unwrap_or(Value::Null);
                    if status == StatusCode::SERVICE_UNAVAILABLE && body["code"] == "no-leader" {
                        break;
                    }
                    return Some((status, body));
                }
            }
            None
        })
        .await
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, Some(body.to_string().into_bytes())).await
    }

    pub async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::DELETE, path, None).await
    }

    pub async fn create_table(&self, schema: &TableSchema) {
        let (status, body) = self.post("/v1/tables", &json!({ "schema": schema, "shard": 1 })).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    }

    /// Waits until the operator is over. The result is the operator.
    pub async fn ended(&self, operator: &Value) -> Value {
        let path = format!("/v1/operators/{}", operator["id"]);
        eventually(&path, || async {
            let (_, body) = self.get(&path).await;
            let over = !["running", "cancelling"].contains(&body["status"].as_str()?);
            over.then_some(body)
        })
        .await
    }

    /// Waits until the operator is at a step.
    pub async fn at_step(&self, operator: &Value, step: &str) {
        let path = format!("/v1/operators/{}", operator["id"]);
        eventually(&format!("{path} at {step}"), || async {
            let (_, body) = self.get(&path).await;
            (body["step"] == step).then_some(())
        })
        .await;
    }

    pub async fn stop(mut self) {
        for replica in self.alive() {
            self.kill(replica).await;
        }
    }
}

/// Tries until there is a result; panics after [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let all = async {
        loop {
            if let Some(result) = attempt().await {
                return result;
            }
            evenkeel_host::sleep(Duration::from_millis(10)).await;
        }
    };
    match evenkeel_host::timeout(PATIENCE, all).await {
        Ok(result) => result,
        Err(_) => panic!("waited in vain for {what}"),
    }
}
