//! Clients that run transactions of several statements, and two independent checkers.
//!
//! Transactions append to lists and read them; from what each saw, the `adya` crate infers which
//! depended on which, and looks for cycles that snapshot isolation in real time forbids (after
//! Elle). Other transactions move money between accounts, and audits add it up: the sum never
//! changes. Lists show *which* anomaly occurred; sums need no theory.
//!
//! A transaction that failed before its commit, or was refused at its commit, has no effect. A
//! commit without an answer may have taken effect. An analysis that does not finish counts as a
//! failure.

use crate::failure::{ScenarioFailure, ScenarioResult};
use crate::world::{World, grown};
use adya::{History, Opts, Valid, Workload, check};
use evenkeel_client::{Client, ClientConfig, ClientError, Transaction, TransactionOptions, Value};
use serde_json::{Value as Json, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The isolation of transactions: REPEATABLE READ on one shard, whose snapshot is never older than
/// its first statement.
const MODEL: &str = "strong-snapshot-isolation";
/// How long the search for cycles may take in each part of the graph.
const SEARCH: Duration = Duration::from_secs(20);
/// Lists in use.
const LISTS: u64 = 6;
/// Accounts, and the initial balance of each.
const ACCOUNTS: (u64, i64) = (8, 100);
/// The interval between two transactions of a client, in milliseconds.
const PACE_MS: u64 = 8;
/// The options of transactions.
const OPTIONS: TransactionOptions = TransactionOptions { repeatable_read: true, read_only: false };

/// One event of a history of lists.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When, in microseconds of one process's monotonic time.
    pub at_us: u64,
    /// `invoke`, `ok`, `fail` or `info`, as in Jepsen's histories.
    pub kind: &'static str,
    /// The process. It has one transaction at a time, and none after a transaction with an unknown
    /// outcome.
    pub process: i64,
    /// Its operations: `["append", list, value]` or `["r", list, [values]]`.
    pub value: Json,
}

/// The anomalies of this history, in words. Empty if the history is possible.
pub fn check_lists(mut events: Vec<Event>) -> Vec<String> {
    events.sort_by_key(|event| event.at_us);
    let line = |e: &Event| {
        let event =
            json!({ "type": e.kind, "f": "txn", "process": e.process, "time": e.at_us * 1_000, "value": e.value });
        event.to_string()
    };
    let text: Vec<String> = events.iter().map(line).collect();
    let history = match History::from_json(&text.join("\n")) {
        Ok(history) => history,
        Err(error) => return vec![format!("the history of lists cannot be read: {error}")],
    };
    let opts = Opts { models: vec![MODEL.into()], timeout: SEARCH, ..Opts::default() };
    let report = check(&history, Workload::ListAppend, &opts);
    if report.valid == Valid::True {
        return Vec::new();
    }
    let mut found: Vec<String> =
        report.anomalies.values().flatten().map(|a| format!("{}: {}", a.kind, a.explanation)).collect();
    found.insert(0, format!("lists: {:?}, {:?} (not {:?})", report.valid, report.anomaly_types, report.not));
    found
}

/// Lists and accounts on one shard, and the clients that use them.
pub struct Transactions {
    client: Client,
    accounts: String,
    epoch: Instant,
    tasks: JoinSet<Seen>,
    shared: Arc<TransactionProgress>,
}

#[derive(Default)]
struct TransactionProgress {
    stop: AtomicBool,
    next_value: AtomicI64,
    next_process: AtomicI64,
    committed: AtomicU64,
}

/// The observations of one client.
#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    audits: u64,
    wrong: Vec<String>,
}

/// The extent of the checks.
#[derive(Debug, Clone, Copy)]
pub struct Checked {
    /// Transactions on lists, with any outcome.
    pub transactions: usize,
    /// Of those, committed.
    pub committed: usize,
    /// Audits.
    pub audits: u64,
}

impl Transactions {
    /// Creates the tables `NAME_lists` and `NAME_accounts` on `shard`.
    pub async fn make(world: &World, name: &str, shard: u32) -> Result<Transactions, ScenarioFailure> {
        let (lists, accounts) = (format!("{name}_lists"), format!("{name}_accounts"));
        world.create_table(&format!("CREATE TABLE {lists} (id bigint PRIMARY KEY, v text NOT NULL)"), shard).await?;
        world
            .create_table(&format!("CREATE TABLE {accounts} (id bigint PRIMARY KEY, n bigint NOT NULL)"), shard)
            .await?;
        let client = world.client.clone();
        for id in 0..LISTS {
            client.execute(&format!("INSERT INTO {lists} (id, v) VALUES ({id}, '')"), &[]).await?;
        }
        for id in 0..ACCOUNTS.0 {
            client.execute(&format!("INSERT INTO {accounts} (id, n) VALUES ({id}, {})", ACCOUNTS.1), &[]).await?;
        }
        Ok(Transactions {
            client,
            accounts,
            epoch: evenkeel_host::now(),
            tasks: JoinSet::new(),
            shared: Arc::default(),
        })
    }

    /// Starts `clients` clients.
    pub async fn start(&mut self, world: &World, name: &str, clients: u64) -> ScenarioResult {
        for number in 0..clients {
            let user = User {
                client: Client::connect(ClientConfig::new(world.admin().urls())).await?,
                read: format!("SELECT v FROM {name}_lists WHERE id = $1"),
                append: format!("UPDATE {name}_lists SET v = v || $2 WHERE id = $1"),
                take: format!("UPDATE {name}_accounts SET n = n - $2 WHERE id = $1"),
                give: format!("UPDATE {name}_accounts SET n = n + $2 WHERE id = $1"),
                audit: format!("SELECT n FROM {name}_accounts"),
                random: number,
                process: self.shared.next_process.fetch_add(1, Ordering::Relaxed),
                epoch: self.epoch,
                shared: self.shared.clone(),
                seen: Seen::default(),
            };
            self.tasks.spawn(user.run());
        }
        self.wait_for_commits(clients).await
    }

    /// Waits until this number of further transactions has been committed.
    pub async fn wait_for_commits(&self, more: u64) -> ScenarioResult {
        grown(&self.shared.committed, more, "no transaction has been committed for 30 s").await
    }

    /// Stops the clients and runs both checkers.
    pub async fn finish(mut self) -> Result<Checked, ScenarioFailure> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        while let Some(seen) = self.tasks.join_next().await {
            let seen = seen.map_err(|e| ScenarioFailure::new(e.to_string()))?;
            all.events.extend(seen.events);
            all.wrong.extend(seen.wrong);
            all.audits += seen.audits;
        }
        let answer = self.client.execute(&format!("SELECT n FROM {}", self.accounts), &[]).await?;
        all.wrong.extend(wrong_sum(&answer));
        let of_kind = |kind: &str| all.events.iter().filter(|e| e.kind == kind).count();
        let checked = Checked { transactions: of_kind("invoke"), committed: of_kind("ok"), audits: all.audits };
        let judged = tokio::task::spawn_blocking(move || check_lists(all.events)).await;
        all.wrong.extend(judged.map_err(|e| ScenarioFailure::new(e.to_string()))?);
        if all.wrong.is_empty() {
            return Ok(checked);
        }
        Err(ScenarioFailure::new(format!("{checked:?}: {} findings:\n{}", all.wrong.len(), all.wrong.join("\n"))))
    }
}

/// The violation in an audit's answer, in words.
fn wrong_sum(answer: &evenkeel_client::Answer) -> Option<String> {
    let values: Vec<Option<i64>> = (0..answer.rows.count as usize).map(|row| answer.rows.int(row, 0)).collect();
    let sum: i64 = values.iter().flatten().sum();
    let wanted = ACCOUNTS.0 as i64 * ACCOUNTS.1;
    (sum != wanted || values.len() as u64 != ACCOUNTS.0)
        .then(|| format!("an audit saw {values:?}, which is {sum} instead of {wanted}"))
}

/// One client.
struct User {
    client: Client,
    read: String,
    append: String,
    take: String,
    give: String,
    audit: String,
    random: u64,
    process: i64,
    epoch: Instant,
    shared: Arc<TransactionProgress>,
    seen: Seen,
}

impl User {
    async fn run(mut self) -> Seen {
        let mut pace = evenkeel_host::interval(Duration::from_millis(PACE_MS));
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.shared.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            match self.dice(4) {
                0 => self.audit().await,
                1 => self.transfer().await,
                _ => self.lists().await,
            }
        }
        self.seen
    }

    fn dice(&mut self, sides: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % sides
    }

    /// Errors that no injected fault explains.
    fn unexpected(&mut self, what: &str, error: &ClientError) {
        if matches!(error, ClientError::Sql(_) | ClientError::Config(_)) {
            self.seen.wrong.push(format!("{what} failed: {error}"));
        }
    }

    async fn lists(&mut self) {
        let count = 1 + self.dice(4);
        let mut operations = Vec::new();
        for _ in 0..count {
            let list = self.dice(LISTS);
            operations.push(match self.dice(2) {
                0 => json!(["r", list, null]),
                _ => json!(["append", list, self.shared.next_value.fetch_add(1, Ordering::Relaxed) + 1]),
            });
        }
        self.event("invoke", Json::Array(operations.clone()));
        let done = async {
            let mut transaction = self.client.begin(OPTIONS).await?;
            for operation in &mut operations {
                self.operate(&mut transaction, operation).await?;
            }
            transaction.commit().await
        };
        let kind = match done.await {
            Ok(()) => "ok",
            Err(ClientError::OutcomeUnknown(_)) => "info",
            Err(error) => {
                self.unexpected("a transaction on lists", &error);
                "fail"
            }
        };
        self.event(kind, Json::Array(operations));
        match kind {
            "ok" => drop(self.shared.committed.fetch_add(1, Ordering::Relaxed)),
            // The transaction may still take effect, so later transactions belong to another
            // process.
            "info" => self.process = self.shared.next_process.fetch_add(1, Ordering::Relaxed),
            _ => {}
        }
    }

    async fn operate(&self, transaction: &mut Transaction, operation: &mut Json) -> Result<(), ClientError> {
        let list = Value::Int(operation[1].as_i64().unwrap_or_default());
        if operation[0] == "r" {
            let answer = transaction.execute(&self.read, &[list]).await?;
            let text = answer.rows.rows().next().and_then(|mut row| row.next().flatten().map(<[u8]>::to_vec));
            let text = String::from_utf8(text.unwrap_or_default()).unwrap_or_default();
            operation[2] = text.split(' ').filter_map(|value| value.parse::<i64>().ok()).map(Json::from).collect();
        } else {
            transaction.execute(&self.append, &[list, Value::Text(format!("{} ", operation[2]))]).await?;
        }
        Ok(())
    }

    fn event(&mut self, kind: &'static str, value: Json) {
        let at_us = evenkeel_host::elapsed(self.epoch).as_micros() as u64;
        self.seen.events.push(Event { at_us, kind, process: self.process, value });
    }

    async fn transfer(&mut self) {
        let from = self.dice(ACCOUNTS.0);
        let to = (from + 1 + self.dice(ACCOUNTS.0 - 1)) % ACCOUNTS.0;
        let amount = Value::Int(1 + self.dice(9) as i64);
        let done = async {
            let mut transaction = self.client.begin(OPTIONS).await?;
            transaction.execute(&self.take, &[Value::Int(from as i64), amount.clone()]).await?;
            transaction.execute(&self.give, &[Value::Int(to as i64), amount]).await?;
            transaction.commit().await
        };
        if let Err(error) = done.await {
            self.unexpected("a transfer", &error);
        }
    }

    async fn audit(&mut self) {
        let done = async {
            let mut transaction = self.client.begin(TransactionOptions { read_only: true, ..OPTIONS }).await?;
            let answer = transaction.execute(&self.audit, &[]).await?;
            transaction.commit().await?;
            Ok(answer)
        };
        match done.await {
            Ok(answer) => {
                self.seen.audits += 1;
                self.seen.wrong.extend(wrong_sum(&answer));
            }
            Err(error) => self.unexpected("an audit", &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Transactions as (process, begun, ended, kind, operations).
    fn found(transactions: &[(i64, u64, u64, &'static str, Json)]) -> String {
        let mut events = Vec::new();
        for (process, begun, ended, kind, value) in transactions {
            events.push(Event { at_us: *begun, kind: "invoke", process: *process, value: value.clone() });
            events.push(Event { at_us: *ended, kind, process: *process, value: value.clone() });
        }
        check_lists(events).join("\n")
    }

    #[test]
    fn what_can_have_happened_passes() {
        let history = [
            (0, 0, 10, "ok", json!([["append", 1, 1]])),
            (1, 5, 15, "ok", json!([["r", 1, [1]], ["append", 1, 2]])),
            (0, 20, 30, "ok", json!([["r", 1, [1, 2]], ["r", 2, []]])),
            (2, 20, 40, "info", json!([["append", 2, 3]])),
            (0, 50, 60, "ok", json!([["r", 2, [3]]])),
            (1, 50, 60, "fail", json!([["append", 2, 4]])),
        ];
        assert_eq!(found(&history), "");
    }

    #[test]
    fn each_anomaly_is_seen() {
        let lost = [
            (0, 0, 10, "ok", json!([["r", 1, []], ["append", 1, 1]])),
            (1, 0, 10, "ok", json!([["r", 1, []], ["append", 1, 2]])),
            (0, 20, 30, "ok", json!([["r", 1, [1, 2]]])),
        ];
        assert!(found(&lost).contains("lost-update"), "{}", found(&lost));
        let aborted = [(0, 0, 10, "fail", json!([["append", 1, 1]])), (1, 20, 30, "ok", json!([["r", 1, [1]]]))];
        assert!(found(&aborted).contains("G1a"), "{}", found(&aborted));
        let fractured = [
            (0, 0, 10, "ok", json!([["append", 1, 1], ["append", 2, 2]])),
            (1, 5, 30, "ok", json!([["r", 1, [1]], ["r", 2, []]])),
        ];
        assert!(found(&fractured).contains("G-single"), "{}", found(&fractured));
        let stale = [
            (0, 0, 10, "ok", json!([["append", 1, 1]])),
            (1, 20, 30, "ok", json!([["r", 1, []]])),
            (1, 40, 50, "ok", json!([["r", 1, [1]]])),
        ];
        assert!(found(&stale).contains("realtime"), "{}", found(&stale));
        let vanished = [
            (0, 0, 10, "ok", json!([["append", 1, 1]])),
            (1, 20, 30, "ok", json!([["r", 1, [1]]])),
            (1, 40, 50, "ok", json!([["r", 1, [2]]])),
            (2, 0, 60, "ok", json!([["append", 1, 2]])),
        ];
        assert!(found(&vanished).contains("incompatible-order"), "{}", found(&vanished));
    }

    /// Fails if an empty history counts as checked.
    #[test]
    fn an_undecided_history_is_a_finding() {
        assert_ne!(found(&[]), "");
    }
}
