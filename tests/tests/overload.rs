//! Overload of a shard with ten times its capacity. Admitted statements are answered soon; the
//! others are refused early with 53300 and have no effect. Memory stays within its limit,
//! throughput does not collapse, and latency recovers within seconds.
//!
//! One scenario has a rate limit, which makes the overload cheap to produce, and sends statements
//! at a fixed rate. The other has none: ten times the clients that saturate the machine send
//! statements in a closed loop.

use evenkeel_client::{Client, ClientConfig, Value};
use evenkeel_local_cluster::{ClusterOptions, ProcessId};
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The rate limit of the shard, in statements per second.
const CAPACITY_PER_S: f64 = 400.0;
/// Clients that saturate a shard.
const SATURATING: usize = 48;
/// The factor of the overload.
const TIMES: usize = 10;
/// How long the overload lasts.
const OVERLOAD: Duration = Duration::from_secs(8);
/// How long the normal load lasts.
const CALM: Duration = Duration::from_secs(4);
/// The allowed growth of the leader's memory: half of the limit of waiting statements, which these
/// small statements never reach. The retry window adds [`ANSWER_BYTES`] per answered statement.
const GROWTH_MIB: u64 = 160;
/// The memory of the retry window per answered statement, with its row (R14). It is kept for longer
/// than the overload lasts. The number of statements depends on the machine.
const ANSWER_BYTES: u64 = 512;
/// The share of a second's statements that may wait (the limit is a quarter). This number of
/// clients is too high for any machine.
const WAITING_S: f64 = 0.4;
/// The share of the throughput that remains under overload with a rate limit.
const KEPT: f64 = 0.7;
/// The same without a rate limit. The refused clients use the same processors, so the bound only
/// excludes a collapse.
const KEPT_ON_A_FULL_MACHINE: f64 = 0.25;
/// The time after the overload within which latency is as before. The printed line shows the true
/// time, which is about zero.
const RECOVERY: Duration = Duration::from_secs(5);
/// The longest time to an answer or a refusal: the client's patience of one second, a last attempt,
/// and the queue of the admitted statement (a quarter of a second), and three seconds more for a
/// busy machine.
const LONGEST_P99: Duration = Duration::from_millis(5_000);
/// The pause of a closed-loop client after a refusal.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// Separate clients, each with its own connections and routing cache.
const CLIENTS: usize = 8;
const ROWS: i64 = 2_000;

fn main() -> ExitCode {
    let limited = evenkeel_tests::run(limited, scenarios![ten_times_the_admission_limit]);
    let unlimited = evenkeel_tests::run(unlimited, scenarios![ten_times_the_clients_that_saturate_the_machine]);
    if limited == ExitCode::SUCCESS { unlimited } else { limited }
}

fn unlimited(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.shards = 1;
    options.balancer.insert("enabled".into(), false.into());
    options
}

fn limited(executable: PathBuf) -> ClusterOptions {
    ClusterOptions { shard_capacity_per_s: Some(CAPACITY_PER_S), ..unlimited(executable) }
}

/// The results of the statements of a load.
#[derive(Debug, Default)]
struct Seen {
    answered: Vec<Duration>,
    /// The number of answers before the load ended. Later answers do not count for the throughput.
    in_time: usize,
    refused: Vec<Duration>,
    unknown: u64,
    wrong: Vec<String>,
    lasted: Duration,
}

impl Seen {
    /// Records the result of a statement of a load that lasts until `until`. Returns whether the
    /// statement was refused.
    fn take(&mut self, began: Instant, until: Instant, result: Result<u64, (String, String)>) -> bool {
        let refused = self.refused.len();
        self.in_time += usize::from(result == Ok(1) && evenkeel_host::now() <= until);
        match result {
            Ok(1) => self.answered.push(evenkeel_host::elapsed(began)),
            Ok(rows) => self.wrong.push(format!("{rows} rows were changed")),
            Err((code, _)) if code == "53300" || code == "53400" => self.refused.push(evenkeel_host::elapsed(began)),
            Err((code, _)) if code == "08007" => self.unknown += 1,
            Err((code, text)) => self.wrong.push(format!("{code}: {text}")),
        }
        self.refused.len() > refused
    }

    fn merge(&mut self, other: Seen) {
        self.answered.extend(other.answered);
        self.in_time += other.in_time;
        self.refused.extend(other.refused);
        self.unknown += other.unknown;
        self.wrong.extend(other.wrong);
        self.lasted = self.lasted.max(other.lasted);
    }

    fn per_s(&self) -> f64 {
        self.in_time as f64 / self.lasted.as_secs_f64()
    }
}

fn p99(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or_default()
}

/// A table of counters, and the clients that add to them.
struct Counters {
    clients: Vec<Client>,
    add: String,
    touch: String,
}

impl Counters {
    async fn new(world: &World, table: &str) -> Result<Arc<Counters>, ScenarioFailure> {
        world.create_table(&format!("CREATE TABLE {table} (id bigint PRIMARY KEY, n bigint NOT NULL)"), 1).await?;
        let rows: Vec<String> = (0..ROWS).map(|id| format!("({id}, 0)")).collect();
        world.client.execute(&format!("INSERT INTO {table} VALUES {}", rows.join(", ")), &[]).await?;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::connect(ClientConfig::new(world.admin().urls())).await?);
        }
        let add = format!("UPDATE {table} SET n = n + 1 WHERE id = $1");
        Ok(Arc::new(Counters { clients, add, touch: format!("UPDATE {table} SET n = n + 0 WHERE id = 0") }))
    }

    async fn add(&self, number: usize) -> Result<u64, (String, String)> {
        let key = (number as i64).wrapping_mul(0x9E37_79B9).rem_euclid(ROWS);
        let answer = self.clients[number % CLIENTS].execute(&self.add, &[Value::Int(key)]).await;
        answer.map(|answer| answer.affected).map_err(|error| (error.code().to_string(), error.to_string()))
    }

    /// Writes a row without adding to it.
    async fn touch(&self) -> ScenarioResult {
        self.clients[0].execute(&self.touch, &[]).await?;
        Ok(())
    }
}

/// A closed loop of `clients` clients.
async fn closed_loop(counters: &Arc<Counters>, clients: usize, lasting: Duration) -> Result<Seen, ScenarioFailure> {
    let began = evenkeel_host::now();
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let counters = counters.clone();
        tasks.spawn(async move {
            let mut seen = Seen::default();
            let mut number = client * 7919;
            while evenkeel_host::elapsed(began) < lasting {
                number += 1;
                let sent = evenkeel_host::now();
                if seen.take(sent, began + lasting, counters.add(number).await) {
                    // As the refusal's hint asks.
                    evenkeel_host::sleep(AFTER_REFUSAL).await;
                }
            }
            seen
        });
    }
    gather(tasks, lasting).await
}

/// Statements at a fixed rate, whether or not earlier ones are answered.
async fn open_loop(counters: &Arc<Counters>, per_s: f64, lasting: Duration) -> Result<Seen, ScenarioFailure> {
    let began = evenkeel_host::now();
    let mut tasks = JoinSet::new();
    let mut number = 0;
    while evenkeel_host::elapsed(began) < lasting {
        let due = (evenkeel_host::elapsed(began).as_secs_f64() * per_s) as usize;
        for number in number..due {
            let counters = counters.clone();
            tasks.spawn(async move {
                let mut seen = Seen::default();
                let sent = evenkeel_host::now();
                seen.take(sent, began + lasting, counters.add(number).await);
                seen
            });
        }
        number = number.max(due);
        // The clock above sets the rate, independent of the duration of this step.
        evenkeel_host::sleep(Duration::from_millis(2)).await;
    }
    gather(tasks, lasting).await
}

async fn gather(mut tasks: JoinSet<Seen>, lasting: Duration) -> Result<Seen, ScenarioFailure> {
    let mut all = Seen { lasted: lasting, ..Seen::default() };
    while let Some(seen) = tasks.join_next().await {
        all.merge(seen.map_err(|e| ScenarioFailure::new(e.to_string()))?);
    }
    Ok(all)
}

/// The memory of a process, in MiB.
fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// The peak memory of a process while `work` lasts, in MiB.
async fn most_resident<T>(pid: u32, work: impl Future<Output = T>) -> (T, u64) {
    let over = AtomicBool::new(false);
    let looking = async {
        let mut most = 0;
        while !over.load(Ordering::Relaxed) {
            most = most.max(resident_mib(pid));
            evenkeel_host::sleep(Duration::from_millis(50)).await;
        }
        most
    };
    let working = async {
        let done = work.await;
        over.store(true, Ordering::Relaxed);
        done
    };
    tokio::join!(working, looking)
}

async fn ten_times_the_admission_limit(world: &World) -> ScenarioResult {
    let counters = Counters::new(world, "limited").await?;
    let before = closed_loop(&counters, SATURATING, CALM).await?;
    let load = open_loop(&counters, TIMES as f64 * CAPACITY_PER_S, OVERLOAD);
    overload(world, "limited", &counters, before, load, KEPT).await
}

async fn ten_times_the_clients_that_saturate_the_machine(world: &World) -> ScenarioResult {
    let counters = Counters::new(world, "unlimited").await?;
    let before = closed_loop(&counters, SATURATING * 4, CALM).await?;
    // A closed-loop client sends no further statement while it waits, so more clients are needed
    // before any is refused.
    let clients = (SATURATING * 4 * TIMES * 3).max((before.per_s() * WAITING_S) as usize);
    let load = closed_loop(&counters, clients, OVERLOAD);
    overload(world, "unlimited", &counters, before, load, KEPT_ON_A_FULL_MACHINE).await
}

/// Checks an overload that follows a normal load, and the recovery after it.
async fn overload(
    world: &World,
    table: &str,
    counters: &Arc<Counters>,
    before: Seen,
    load: impl Future<Output = Result<Seen, ScenarioFailure>>,
    kept: f64,
) -> ScenarioResult {
    // A machine that pauses for a moment cannot serve the normal load at that moment.
    let (refused, answered) = (before.refused.len(), before.answered.len());
    ensure!(refused * 50 <= answered, "{refused} were refused of a load that can be carried, {answered} answered");
    let single = probe(counters).await?;
    let leader = ProcessId::ShardNode(1, world.leader(1).await?);
    let pid = world.cluster.pid(leader).ok_or_else(|| ScenarioFailure::new(format!("{leader} does not run")))?;
    let resident = resident_mib(pid);
    let (during, most) = most_resident(pid, load).await;
    let during = during?;
    let over = evenkeel_host::now();
    let recovered = loop {
        let now = probe(counters).await?;
        // A difference of 100 ms counts as noise of the machine.
        if now <= 2 * single + Duration::from_millis(100) {
            break evenkeel_host::elapsed(over);
        }
        ensure!(
            evenkeel_host::elapsed(over) < RECOVERY,
            "{RECOVERY:?} after the overload a statement takes {now:?}, before {single:?}"
        );
    };
    eprintln!(
        "({table}: before {:.0}/s p99 {:?}; overload {:.0}/s p99 {:?}, {} refused p99 {:?}, {} unknown; memory {resident} to {most} MiB; \
         recovered after {recovered:?})",
        before.per_s(),
        p99(&before.answered),
        during.per_s(),
        p99(&during.answered),
        during.refused.len(),
        p99(&during.refused),
        during.unknown,
    );
    for seen in [&before, &during] {
        ensure!(seen.wrong.is_empty(), "{} wrong: {:?}", seen.wrong.len(), &seen.wrong[..seen.wrong.len().min(5)]);
    }
    ensure!(!during.refused.is_empty(), "nobody was refused: this was no overload");
    ensure!(p99(&during.answered) <= LONGEST_P99, "p99 of what was answered is {:?}", p99(&during.answered));
    ensure!(p99(&during.refused) <= LONGEST_P99, "p99 of what was refused is {:?}", p99(&during.refused));
    ensure!(
        during.per_s() >= kept * before.per_s(),
        "{:.0} statements a second under overload, {:.0} before",
        during.per_s(),
        before.per_s()
    );
    let kept_mib = (during.answered.len() as u64 * ANSWER_BYTES) >> 20;
    ensure!(most <= resident + GROWTH_MIB + kept_mib, "the leader grew from {resident} to {most} MiB");
    exact(world, table, &before, &during).await
}

/// The typical latency of a few sequential statements without other load.
async fn probe(counters: &Arc<Counters>) -> Result<Duration, ScenarioFailure> {
    let mut times = Vec::new();
    for _ in 0..30 {
        let sent = evenkeel_host::now();
        counters.touch().await?;
        times.push(evenkeel_host::elapsed(sent));
    }
    times.sort_unstable();
    Ok(times[times.len() * 9 / 10])
}

/// Every answered statement has taken effect once, and every refused statement has not.
async fn exact(world: &World, table: &str, before: &Seen, during: &Seen) -> ScenarioResult {
    let answer = world.client.execute(&format!("SELECT n FROM {table}"), &[]).await?;
    let total: i64 = (0..answer.rows.count as usize).filter_map(|row| answer.rows.int(row, 0)).sum();
    let least = (before.answered.len() + during.answered.len()) as i64;
    let most = least + (before.unknown + during.unknown) as i64;
    ensure!((least..=most).contains(&total), "{total} additions happened, {least} to {most} should have");
    world.nothing_is_wrong().await
}
