//! Writers that write at a constant rate while faults are injected: to a table, and to the
//! placement driver. They own the record of their acknowledgements.

use crate::failover::acknowledgements::Acknowledgement;
use evenkeel_client::{Client, ClientConfig, Value};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long one placement-driver replica may take to answer before the next is asked, in
/// milliseconds.
const REPLICA_PATIENCE_MS: u64 = 250;

/// The acknowledgements and failures of a group of writers.
#[derive(Debug)]
pub struct WriteRecord {
    epoch: Instant,
    acks: Mutex<Vec<Acknowledgement>>,
    failed: AtomicU64,
    last_error: Mutex<String>,
}

impl WriteRecord {
    /// A record without acknowledgements.
    pub fn new() -> Arc<WriteRecord> {
        Arc::new(WriteRecord {
            epoch: evenkeel_host::now(),
            acks: Mutex::default(),
            failed: AtomicU64::new(0),
            last_error: Mutex::default(),
        })
    }

    /// The current time, on the clock of acknowledgements.
    pub fn now_ms(&self) -> f64 {
        evenkeel_host::elapsed(self.epoch).as_secs_f64() * 1_000.0
    }

    /// Removes acknowledgements before `from_ms`.
    pub fn forget_before(&self, from_ms: f64) {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).retain(|ack| ack.acked_ms >= from_ms);
    }

    /// The acknowledgements.
    pub fn acks(&self) -> Vec<Acknowledgement> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of failed statements.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The text of the last failure.
    pub fn last_error(&self) -> String {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds an acknowledgement of now.
    pub fn acked(&self, writer: usize, sent_ms: f64) {
        let ack = Acknowledgement { writer, sent_ms, acked_ms: self.now_ms() };
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
    }

    /// Adds a failure.
    pub fn fail(&self, error: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// A group of writers. They end when this is dropped.
pub struct Writers {
    /// Their acknowledgements and failures.
    pub record: Arc<WriteRecord>,
    /// The number of writers.
    pub count: usize,
    _tasks: JoinSet<()>,
}

impl Writers {
    /// `count` writers that run as these tasks and write to this record.
    pub fn new(record: Arc<WriteRecord>, count: usize, tasks: JoinSet<()>) -> Writers {
        Writers { record, count, _tasks: tasks }
    }
}

/// Writers that execute `sql`, whose `$1` is the key, `per_s` times a second each. Each has a
/// client and a key of its own.
pub async fn of_sql(urls: &[String], sql: &str, count: usize, per_s: f64) -> Result<Writers, String> {
    let record = WriteRecord::new();
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

/// One writer to the placement driver's state: it switches the balancer off repeatedly, which
/// passes through the log like every change. It asks one replica after another, and so finds the
/// leader by itself.
pub fn of_placement_driver(urls: &[String], per_s: f64) -> Result<Writers, String> {
    let record = WriteRecord::new();
    let patience = Duration::from_millis(REPLICA_PATIENCE_MS);
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
            while !switches_off(&http, &urls[turn % urls.len()]).await {
                turn += 1;
                // A replica without a leader refuses at once.
                evenkeel_host::sleep(Duration::from_millis(5)).await;
            }
            seen.acked(0, sent_ms);
        }
    });
    Ok(Writers { record, count: 1, _tasks: tasks })
}

async fn switches_off(http: &reqwest::Client, url: &str) -> bool {
    let body = serde_json::json!({ "enabled": false }).to_string();
    let asked = http.post(url).header("content-type", "application/json").body(body).send().await;
    asked.is_ok_and(|response| response.status().is_success())
}

fn pace(per_s: f64) -> tokio::time::Interval {
    let mut pace = evenkeel_host::interval(Duration::from_secs_f64(1.0 / per_s));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    pace
}
