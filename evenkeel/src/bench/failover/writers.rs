//! Writers that keep writing while the cluster is hurt: to a table, and to the placement driver. They own the record of what was
//! acknowledged.

use super::acks::Ack;
use evenkeel_client::{Client, ClientConfig, Value};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long the placement driver has for one answer before its next replica is asked, in milliseconds.
const DRIVER_PATIENCE_MS: u64 = 250;

/// What writers have seen so far.
#[derive(Debug)]
pub struct Record {
    epoch: Instant,
    acks: Mutex<Vec<Ack>>,
    failed: AtomicU64,
    last_error: Mutex<String>,
}

impl Record {
    pub(crate) fn new() -> Arc<Record> {
        Arc::new(Record {
            epoch: Instant::now(),
            acks: Mutex::default(),
            failed: AtomicU64::new(0),
            last_error: Mutex::default(),
        })
    }

    /// Now, as acknowledgements tell it.
    pub fn now_ms(&self) -> f64 {
        self.epoch.elapsed().as_secs_f64() * 1_000.0
    }

    /// Forgets what was acknowledged before `from_ms`.
    pub fn forget_before(&self, from_ms: f64) {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).retain(|ack| ack.acked_ms >= from_ms);
    }

    /// What was acknowledged.
    pub fn acks(&self) -> Vec<Ack> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many statements have failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The last failure.
    pub fn last_error(&self) -> String {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn acked(&self, writer: usize, sent_ms: f64) {
        let ack = Ack { writer, sent_ms, acked_ms: self.now_ms() };
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
    }

    pub(crate) fn fail(&self, error: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// Writers at work; they end when this is dropped.
pub struct Writers {
    /// What they see.
    pub record: Arc<Record>,
    /// How many there are.
    pub count: usize,
    _tasks: JoinSet<()>,
}

impl Writers {
    /// `count` writers, which are these tasks and tell this record.
    pub(crate) fn new(record: Arc<Record>, count: usize, tasks: JoinSet<()>) -> Writers {
        Writers { record, count, _tasks: tasks }
    }
}

/// Writers of `sql` (whose `$1` is the key), each through a client of its own on a key of its own, each `per_s` times a second.
pub async fn of_sql(urls: &[String], sql: &str, count: usize, per_s: f64) -> Result<Writers, String> {
    let record = Record::new();
    let mut tasks = JoinSet::new();
    for writer in 0..count {
        let client = Client::connect(ClientConfig::new(urls)).await.map_err(|e| e.to_string())?;
        let (record, sql) = (record.clone(), sql.to_string());
        tasks.spawn(async move {
            let mut pace = pace(per_s);
            loop {
                pace.tick().await;
                let sent_ms = record.now_ms();
                match client.execute(&sql, &[Value::Int(writer as i64)]).await {
                    Ok(_) => record.acked(writer, sent_ms),
                    Err(error) => record.fail(error.to_string()),
                }
            }
        });
    }
    Ok(Writers { record, count, _tasks: tasks })
}

/// One writer to the placement driver's own state: it says again and again that the balancer is off, which goes through its log like
/// every change. It asks one replica after the other, and so finds the leader by itself.
pub fn of_placement_driver(urls: &[String], per_s: f64) -> Result<Writers, String> {
    let record = Record::new();
    let patience = Duration::from_millis(DRIVER_PATIENCE_MS);
    let http = reqwest::Client::builder().timeout(patience).no_proxy().build().map_err(|e| e.to_string())?;
    let urls: Vec<String> = urls.iter().map(|url| format!("{url}/v1/balancer")).collect();
    let mut tasks = JoinSet::new();
    let seen = record.clone();
    tasks.spawn(async move {
        let mut pace = pace(per_s);
        let mut turn = 0;
        loop {
            pace.tick().await;
            let sent_ms = seen.now_ms();
            while !says_off(&http, &urls[turn % urls.len()]).await {
                turn += 1;
                // Who has no leader to send on to says so at once.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            seen.acked(0, sent_ms);
        }
    });
    Ok(Writers { record, count: 1, _tasks: tasks })
}

async fn says_off(http: &reqwest::Client, url: &str) -> bool {
    let body = serde_json::json!({ "enabled": false }).to_string();
    let asked = http.post(url).header("content-type", "application/json").body(body).send().await;
    asked.is_ok_and(|response| response.status().is_success())
}

fn pace(per_s: f64) -> tokio::time::Interval {
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / per_s));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    pace
}
