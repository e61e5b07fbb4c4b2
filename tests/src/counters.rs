//! Clients that count: they add to counters and read them concurrently until they are stopped, and
//! record the history.

use crate::failure::{ScenarioFailure, ScenarioResult};
use crate::history::{Asked, Event, check};
use crate::world::{World, grown};
use evenkeel_client::{Client, ClientConfig, ClientError, Value};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::task::JoinSet;

/// Rows per INSERT.
const LOAD_ROWS: i64 = 500;
/// The number of findings that are shown.
const SHOWN: usize = 12;

/// A table of counters, and the clients that count in it.
pub struct Counters {
    table: String,
    rows: i64,
    client: Client,
    tasks: JoinSet<Vec<Event>>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failures: Failures,
}

/// The failures, in words.
type Failures = Arc<Mutex<Vec<String>>>;

impl Counters {
    /// Creates the table on `shard` with `rows` counters of 0 (keys `0..rows`) and `padding_bytes`
    /// beside each.
    pub async fn make(
        world: &World,
        table: &str,
        shard: u32,
        rows: i64,
        padding_bytes: usize,
    ) -> Result<Counters, ScenarioFailure> {
        let columns = "(id bigint PRIMARY KEY, n bigint NOT NULL, padding text NOT NULL)";
        world.create_table(&format!("CREATE TABLE {table} {columns}"), shard).await?;
        let client = world.client.clone();
        let padding = "p".repeat(padding_bytes);
        for from in (0..rows).step_by(LOAD_ROWS as usize) {
            let values: Vec<String> =
                (from..rows.min(from + LOAD_ROWS)).map(|id| format!("({id}, 0, '{padding}')")).collect();
            client.execute(&format!("INSERT INTO {table} (id, n, padding) VALUES {}", values.join(", ")), &[]).await?;
        }
        Ok(Counters {
            table: table.to_string(),
            rows,
            client,
            tasks: JoinSet::new(),
            stop: Arc::default(),
            answered: Arc::default(),
            failures: Arc::default(),
        })
    }

    /// Starts `clients` clients that count, each through a client of its own with its own routing
    /// cache; every fourth operation is a read. `keys` of the counters are in use, spread over the
    /// table, so that each is contended.
    pub async fn start(&mut self, world: &World, clients: u64, keys: i64) -> Result<(), ScenarioFailure> {
        let epoch = evenkeel_host::now();
        for number in 0..clients {
            let counting = Counting {
                client: Client::connect(ClientConfig::new(world.admin().urls())).await?,
                add: format!("UPDATE {} SET n = n + 1 WHERE id = $1 RETURNING n", self.table),
                read: format!("SELECT n FROM {} WHERE id = $1", self.table),
                step: (self.rows / keys).max(1),
                keys,
                state: number,
                epoch,
                stop: self.stop.clone(),
                answered: self.answered.clone(),
                failures: self.failures.clone(),
            };
            self.tasks.spawn(counting.run());
        }
        self.wait_for_answers(clients).await
    }

    /// Waits until this number of further operations has been answered.
    pub async fn wait_for_answers(&self, more: u64) -> ScenarioResult {
        grown(&self.answered, more, "counting has come to a halt for 30 s").await
    }

    /// Stops counting and checks the history against the table. A failed statement that the client
    /// may retry is a failure of the store, too.
    pub async fn finish(mut self) -> ScenarioResult {
        self.stop.store(true, Ordering::Relaxed);
        let mut history = Vec::new();
        while let Some(events) = self.tasks.join_next().await {
            history.extend(events.map_err(|e| ScenarioFailure::new(e.to_string()))?);
        }
        let answer = self.client.execute(&format!("SELECT id, n FROM {}", self.table), &[]).await?;
        let rows = answer.rows.rows().map(|mut row| Some((int(row.next()??)?, int(row.next()??)?)));
        let last: BTreeMap<i64, i64> = rows.flatten().collect();
        if last.len() as i64 != self.rows {
            return Err(ScenarioFailure::new(format!("the table has {} rows instead of {}", last.len(), self.rows)));
        }
        let mut wrong = check(&history, &last);
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.extend(failures.iter().cloned());
        if wrong.is_empty() {
            return Ok(());
        }
        let shown = wrong.iter().take(SHOWN).chain(failures.iter().take(SHOWN)).cloned().collect::<Vec<_>>().join("\n");
        let (operations, failed) = (history.len(), failures.len());
        Err(ScenarioFailure::new(format!(
            "{operations} operations, {failed} failed; {} findings:\n{shown}",
            wrong.len()
        )))
    }
}

fn int(raw: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(raw.try_into().ok()?))
}

/// One client.
struct Counting {
    client: Client,
    add: String,
    read: String,
    step: i64,
    keys: i64,
    state: u64,
    epoch: Instant,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failures: Failures,
}

impl Counting {
    async fn run(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = ((self.state >> 33) as i64 % self.keys) * self.step;
            let asked = if (self.state >> 20).is_multiple_of(4) { Asked::Read } else { Asked::Add };
            let text = if asked == Asked::Add { &self.add } else { &self.read };
            let sent_us = evenkeel_host::elapsed(self.epoch).as_micros() as u64;
            let answer = self.client.execute(text, &[Value::Int(key)]).await;
            let answered_us = evenkeel_host::elapsed(self.epoch).as_micros() as u64;
            let event = |seen| Event { key, asked, sent_us, answered_us, seen };
            match answer {
                Ok(answer) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    // A missing counter is a lost row: -1 fails the check.
                    events.push(event(Some(answer.rows.int(0, 0).unwrap_or(-1))));
                }
                Err(error) => {
                    let what =
                        format!("counter {key}: {asked:?} sent at {sent_us} µs failed at {answered_us} µs: {error}");
                    self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(what);
                    if matches!(error, ClientError::OutcomeUnknown(_)) {
                        events.push(event(None));
                    }
                }
            }
        }
        events
    }
}
