//! Clients that write, swap and read registers concurrently until they are stopped, and record the
//! history for [`crate::linear`].
//!
//! Every value is written once, so that a value that is read identifies its write.

use crate::failure::{ScenarioFailure, ScenarioResult};
use crate::linear::{Operation, What, check};
use crate::world::{World, grown};
use evenkeel_client::{Client, ClientConfig, ClientError, Value};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The interval between two operations of a client, in milliseconds. It makes the registers
/// contended, and keeps the search for an order shorter than the test.
const PACE_MS: u64 = 4;
/// The number of findings that are shown.
const SHOWN: usize = 8;

/// A table of registers, and the clients that use it.
pub struct Registers {
    table: String,
    keys: i64,
    client: Client,
    epoch: Instant,
    tasks: JoinSet<Vec<Operation>>,
    shared: Arc<RegisterProgress>,
}

#[derive(Default)]
struct RegisterProgress {
    stop: AtomicBool,
    next_value: AtomicI64,
    answered: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Registers {
    /// Creates the table on `shard`, with `keys` registers of 0.
    pub async fn make(world: &World, table: &str, shard: u32, keys: i64) -> Result<Registers, ScenarioFailure> {
        world.create_table(&format!("CREATE TABLE {table} (id bigint PRIMARY KEY, v bigint NOT NULL)"), shard).await?;
        let values: Vec<String> = (0..keys).map(|id| format!("({id}, 0)")).collect();
        let client = world.client.clone();
        client.execute(&format!("INSERT INTO {table} (id, v) VALUES {}", values.join(", ")), &[]).await?;
        let (tasks, shared) = (JoinSet::new(), Arc::new(RegisterProgress::default()));
        Ok(Registers { table: table.to_string(), keys, client, epoch: evenkeel_host::now(), tasks, shared })
    }

    /// Starts `clients` clients, each with a routing cache of its own.
    pub async fn start(&mut self, world: &World, clients: u64) -> ScenarioResult {
        for number in 0..clients {
            let user = User {
                client: Client::connect(ClientConfig::new(world.admin().urls())).await?,
                write: format!("UPDATE {} SET v = $2 WHERE id = $1", self.table),
                swap: format!("UPDATE {} SET v = $2 WHERE id = $1 AND v = $3", self.table),
                read: format!("SELECT v FROM {} WHERE id = $1", self.table),
                keys: self.keys,
                random: number,
                last_seen: 0,
                epoch: self.epoch,
                shared: self.shared.clone(),
            };
            self.tasks.spawn(user.run());
        }
        self.wait_for_answers(clients * 5).await
    }

    /// Waits until this number of further operations has been answered.
    pub async fn wait_for_answers(&self, more: u64) -> ScenarioResult {
        grown(&self.shared.answered, more, "the registers' clients have come to a halt for 30 s").await
    }

    /// Stops the clients, reads every register once more, and checks the history. Returns its
    /// number of operations.
    pub async fn finish(mut self) -> Result<usize, ScenarioFailure> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut history = Vec::new();
        while let Some(operations) = self.tasks.join_next().await {
            history.extend(operations.map_err(|e| ScenarioFailure::new(e.to_string()))?);
        }
        for key in 0..self.keys {
            let sent_us = evenkeel_host::elapsed(self.epoch).as_micros() as u64;
            let answer =
                self.client.execute(&format!("SELECT v FROM {} WHERE id = $1", self.table), &[Value::Int(key)]).await?;
            let answered_us = Some(evenkeel_host::elapsed(self.epoch).as_micros() as u64);
            let what = What::Read(answer.rows.int(0, 0).unwrap_or(-1));
            history.push(Operation { key, what, sent_us, answered_us });
        }
        let count = history.len();
        let judged = tokio::task::spawn_blocking(move || check(&history, 0)).await;
        let mut wrong = judged.map_err(|e| ScenarioFailure::new(e.to_string()))?;
        wrong.extend(self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        if wrong.is_empty() {
            return Ok(count);
        }
        let shown: Vec<String> = wrong.iter().take(SHOWN).cloned().collect();
        Err(ScenarioFailure::new(format!("{count} operations; {} findings:\n{}", wrong.len(), shown.join("\n"))))
    }
}

/// One client.
struct User {
    client: Client,
    write: String,
    swap: String,
    read: String,
    keys: i64,
    random: u64,
    /// The value seen last, which a swap expects.
    last_seen: i64,
    epoch: Instant,
    shared: Arc<RegisterProgress>,
}

impl User {
    async fn run(mut self) -> Vec<Operation> {
        let mut operations = Vec::new();
        let mut pace = evenkeel_host::interval(Duration::from_millis(PACE_MS));
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.shared.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            operations.extend(self.one((self.random >> 33) as i64 % self.keys, (self.random >> 20) % 10).await);
        }
        operations
    }

    async fn one(&mut self, key: i64, dice: u64) -> Option<Operation> {
        let to = self.shared.next_value.fetch_add(1, Ordering::Relaxed) + 1;
        let from = self.last_seen;
        let (text, params) = match dice {
            0..=4 => (&self.read, vec![Value::Int(key)]),
            5..=7 => (&self.write, vec![Value::Int(key), Value::Int(to)]),
            _ => (&self.swap, vec![Value::Int(key), Value::Int(to), Value::Int(from)]),
        };
        let sent_us = evenkeel_host::elapsed(self.epoch).as_micros() as u64;
        let answer = self.client.execute(text, &params).await;
        let answered_us = Some(evenkeel_host::elapsed(self.epoch).as_micros() as u64);
        let (what, answered_us) = match answer {
            Ok(answer) => {
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
                let what = match dice {
                    0..=4 => {
                        // A missing register is a lost row: no order explains -1.
                        self.last_seen = answer.rows.int(0, 0).unwrap_or(-1);
                        What::Read(self.last_seen)
                    }
                    5..=7 if answer.affected == 1 => What::Write(to),
                    5..=7 => What::Read(-1),
                    _ => What::Swap { from, to, done: Some(answer.affected == 1) },
                };
                (what, answered_us)
            }
            Err(error) => {
                let failure = format!("register {key}: {text} sent at {sent_us} µs failed: {error}");
                self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                match (dice, error) {
                    (5..=7, ClientError::OutcomeUnknown(_)) => (What::Write(to), None),
                    (8.., ClientError::OutcomeUnknown(_)) => (What::Swap { from, to, done: None }, None),
                    _ => return None,
                }
            }
        };
        Some(Operation { key, what, sent_us, answered_us })
    }
}
