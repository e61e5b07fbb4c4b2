//! The placement driver's coordination store under faults: processes are killed with SIGKILL while
//! clients read, write, compare and watch. No acknowledged write is lost, histories are
//! linearizable, and a watch has no gap.

use evenkeel_local_cluster::{ClusterOptions, ProcessId};
use evenkeel_protocol::coordination::{KvEventBody, KvListBody};
use evenkeel_tests::linear::{Operation, What, check};
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use reqwest::{Client, Method, StatusCode};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The number of times that the leader is killed during a history.
const KILLS: usize = 5;
/// The number of operations with a known outcome between two kills.
const OPERATIONS_PER_KILL: usize = 200;
/// Clients of one history.
const CLIENTS: u64 = 6;
/// Keys of one history.
const KEYS: u64 = 3;
/// The value of a key that does not exist, in a history.
const ABSENT: i64 = 0;
/// How long a client waits for an answer before it counts the outcome as unknown.
const ANSWER: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            what_was_acknowledged_survives_the_death_of_every_replica,
            histories_are_linearizable_while_leaders_die,
            a_watch_has_no_gap_while_leaders_die,
            the_command_line_reads_writes_lists_and_watches,
        ],
    )
}

/// A cluster of placement drivers without shards.
fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.shards = 0;
    options
}

/// The result of one request, as its client knows it.
#[derive(Debug)]
enum Answered {
    /// The answer: status, the key's revision, the body.
    Known(StatusCode, Option<u64>, Vec<u8>),
    /// The request had no effect.
    Not,
    /// The request may have taken effect.
    Unknown,
}

/// A client that asks one replica after another and follows redirects.
struct Store {
    http: Client,
    urls: Vec<String>,
    turn: AtomicUsize,
}

impl Store {
    fn new(world: &World) -> Result<Store, ScenarioFailure> {
        let http = Client::builder().no_proxy().timeout(ANSWER).build()?;
        Ok(Store { http, urls: world.admin().urls().to_vec(), turn: AtomicUsize::new(0) })
    }

    /// One attempt, at the next replica.
    async fn ask(&self, method: Method, key: &str, condition: Option<(&str, String)>, body: Vec<u8>) -> Answered {
        let url = &self.urls[self.turn.fetch_add(1, Ordering::Relaxed) % self.urls.len()];
        let mut request = self.http.request(method, format!("{url}/v1/kv/{key}")).body(body);
        if let Some((name, value)) = condition {
            request = request.header(name, value);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Answered::Not,
            Err(_) => return Answered::Unknown,
        };
        let status = response.status();
        let revision = response.headers().get("etag").and_then(|tag| tag.to_str().ok()?.trim_matches('"').parse().ok());
        match status.as_u16() {
            // The placement driver promises that these requests had no effect.
            429 | 503 => Answered::Not,
            504 => Answered::Unknown,
            _ => match response.bytes().await {
                Ok(body) => Answered::Known(status, revision, body.to_vec()),
                Err(_) => Answered::Unknown,
            },
        }
    }

    /// Repeats a put until it is known to have taken effect.
    async fn put(&self, key: &str, value: &str) -> Result<u64, ScenarioFailure> {
        let deadline = evenkeel_host::now() + PATIENCE;
        while evenkeel_host::now() < deadline {
            match self.ask(Method::PUT, key, None, value.as_bytes().to_vec()).await {
                Answered::Known(status, Some(revision), _) if status.is_success() => return Ok(revision),
                Answered::Known(status, _, body) => {
                    return Err(ScenarioFailure::new(format!(
                        "PUT {key}: {status}: {}",
                        String::from_utf8_lossy(&body)
                    )));
                }
                Answered::Not | Answered::Unknown => evenkeel_host::sleep(Duration::from_millis(20)).await,
            }
        }
        Err(ScenarioFailure::new(format!("PUT {key} had no answer in {} s", PATIENCE.as_secs())))
    }
}

async fn what_was_acknowledged_survives_the_death_of_every_replica(world: &World) -> ScenarioResult {
    let store = Store::new(world)?;
    let mut expected = BTreeMap::new();
    for round in 0..3 {
        for n in 0..150 {
            let (key, value) = (format!("survive/{}", n % 40), format!("{round}.{n}"));
            store.put(&key, &value).await?;
            expected.insert(key, value);
        }
        let replicas: Vec<u64> = if round == 0 { vec![world.placement_driver_leader().await?] } else { vec![1, 2, 3] };
        for replica in &replicas {
            world.kill(ProcessId::PlacementDriver(*replica))?;
        }
        for replica in replicas {
            world.cluster.restart(ProcessId::PlacementDriver(replica))?;
        }
        world.cluster.wait_ready().await?;
        let list: KvListBody = world.admin().get("/v1/kv?prefix=survive/&limit=1000").await?;
        let found = list.entries.into_iter().map(|e| (e.key, e.value.text.unwrap_or_default()));
        let found: BTreeMap<String, String> = found.collect();
        ensure!(found == expected, "after round {round} there is {found:?} instead of {expected:?}");
    }
    Ok(())
}

/// The state that the clients of a history share.
struct History {
    begun: Instant,
    operations: Mutex<Vec<Operation>>,
    next_value: AtomicI64,
    answered: AtomicUsize,
    unknown: AtomicUsize,
    over: AtomicBool,
}

impl History {
    fn now_us(&self) -> u64 {
        evenkeel_host::elapsed(self.begun).as_micros() as u64
    }

    /// Records one operation; `None` if it had no effect.
    fn keep(&self, key: i64, sent_us: u64, answer: &Answered, what: Option<What>) {
        let Some(what) = what else { return };
        let known = matches!(answer, Answered::Known(..));
        (if known { &self.answered } else { &self.unknown }).fetch_add(1, Ordering::Relaxed);
        let operation = Operation { key, what, sent_us, answered_us: known.then(|| self.now_us()) };
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }
}

/// A value as the store returned it.
fn parse(body: &[u8]) -> Result<i64, ScenarioFailure> {
    let text = String::from_utf8_lossy(body);
    text.parse().map_err(|_| ScenarioFailure::new(format!("a value that nobody wrote: {text:?}")))
}

/// One client: reads, then writes, compares and sets, or deletes, at keys in turn.
async fn client(number: u64, store: &Store, history: &History) -> ScenarioResult {
    let mut turn = number;
    while !history.over.load(Ordering::Relaxed) {
        turn = turn.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (choice, number) = ((turn >> 33) % 8, ((turn >> 45) % KEYS) as i64);
        let key = format!("history/{number}");
        let sent_us = history.now_us();
        let read = store.ask(Method::GET, &key, None, Vec::new()).await;
        let held: Option<(i64, Option<u64>)> = match &read {
            Answered::Known(StatusCode::NOT_FOUND, ..) => Some((ABSENT, None)),
            Answered::Known(StatusCode::OK, revision, body) => Some((parse(body)?, *revision)),
            Answered::Known(status, ..) => return Err(ScenarioFailure::new(format!("GET {key}: {status}"))),
            _ => None,
        };
        let Some((from, revision)) = held else { continue };
        history.keep(number, sent_us, &read, Some(What::Read(from)));
        let to = history.next_value.fetch_add(1, Ordering::Relaxed);
        let (body, sent_us) = (to.to_string().into_bytes(), history.now_us());
        let condition = match revision {
            Some(revision) => ("if-match", format!("\"{revision}\"")),
            None => ("if-none-match", "*".to_string()),
        };
        let (answer, done) = match choice {
            0..=2 => (store.ask(Method::PUT, &key, None, body).await, What::Write(to)),
            3 => (store.ask(Method::DELETE, &key, None, Vec::new()).await, What::Write(ABSENT)),
            _ => {
                let answer = store.ask(Method::PUT, &key, Some(condition), body).await;
                let done = match &answer {
                    Answered::Known(status, ..) => Some(status.is_success()),
                    _ => None,
                };
                (answer, What::Swap { from, to, done })
            }
        };
        let what = match &answer {
            Answered::Not => None,
            Answered::Unknown => Some(done),
            Answered::Known(status, ..) if status.is_success() => Some(done),
            Answered::Known(StatusCode::PRECONDITION_FAILED, ..) => Some(done),
            // A delete without effect has observed that the key does not exist.
            Answered::Known(StatusCode::NOT_FOUND, ..) => Some(What::Read(ABSENT)),
            Answered::Known(status, ..) => return Err(ScenarioFailure::new(format!("{key}: {status}"))),
        };
        history.keep(number, sent_us, &answer, what);
    }
    Ok(())
}

/// Kills the leader repeatedly, each time after enough operations since the last kill.
async fn killer(world: &World, history: &History) -> ScenarioResult {
    for kill in 0..=KILLS {
        let wanted = history.answered.load(Ordering::Relaxed) + OPERATIONS_PER_KILL;
        world
            .until("operations to be answered", PATIENCE, async || {
                let answered = history.answered.load(Ordering::Relaxed);
                if answered >= wanted { Ok(()) } else { Err(format!("{answered} of {wanted}")) }
            })
            .await?;
        if kill == KILLS {
            break;
        }
        let id = ProcessId::PlacementDriver(world.placement_driver_leader().await?);
        world.kill(id)?;
        // In half of the cases the killed leader stays down until another replica leads.
        if kill % 2 == 0 {
            world.placement_driver_leader().await?;
        }
        world.cluster.restart(id)?;
        world.cluster.wait_ready().await?;
    }
    Ok(())
}

async fn histories_are_linearizable_while_leaders_die(world: &World) -> ScenarioResult {
    let store = Store::new(world)?;
    let history = History {
        begun: evenkeel_host::now(),
        operations: Mutex::default(),
        next_value: AtomicI64::new(ABSENT + 1),
        answered: AtomicUsize::new(0),
        unknown: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    };
    let clients = futures::future::try_join_all((1..=CLIENTS).map(|n| client(n, &store, &history)));
    let killing = async {
        let outcome = killer(world, &history).await;
        history.over.store(true, Ordering::Relaxed);
        outcome
    };
    futures::try_join!(clients, killing)?;
    let operations = history.operations.lock().unwrap_or_else(PoisonError::into_inner);
    let (answered, unknown) = (history.answered.load(Ordering::Relaxed), history.unknown.load(Ordering::Relaxed));
    eprintln!("({answered} operations answered, {unknown} with an unknown outcome, {KILLS} leaders killed)");
    let findings = check(&operations, ABSENT);
    ensure!(findings.is_empty(), "{}", findings.join("\n"));
    Ok(())
}

/// Watches `prefix` from `since` on, going to the next replica whenever a stream ends, until it has
/// seen `last`.
async fn watch(
    urls: &[String],
    prefix: &str,
    since: u64,
    last: &AtomicU64,
) -> Result<Vec<KvEventBody>, ScenarioFailure> {
    let http = Client::builder().no_proxy().build()?;
    let (mut seen, mut events, mut turn) = (since, Vec::new(), 0);
    loop {
        let url = &urls[turn % urls.len()];
        turn += 1;
        let request = http.get(format!("{url}/v1/watch/kv?prefix={prefix}")).header("last-event-id", seen.to_string());
        let Ok(mut response) = request.send().await else {
            evenkeel_host::sleep(Duration::from_millis(20)).await;
            continue;
        };
        ensure!(response.status() == StatusCode::OK, "a watch from {seen} at {url}: {}", response.status());
        let mut buffer = String::new();
        // A stream without events for a second is closed, so that every replica is used.
        while let Ok(Ok(Some(chunk))) = evenkeel_host::timeout(Duration::from_secs(1), response.chunk()).await {
            buffer.push_str(&String::from_utf8_lossy(&chunk));
            while let Some((block, rest)) = buffer.split_once("\n\n") {
                let data = block.lines().find_map(|line| line.strip_prefix("data:"));
                let change = block.lines().any(|line| line == "event:put" || line == "event: put");
                if let (true, Some(data)) = (change, data) {
                    let event: KvEventBody = serde_json::from_str(data).map_err(|e| format!("{e}: {data}"))?;
                    ensure!(event.revision > seen, "revision {} after {seen}", event.revision);
                    seen = event.revision;
                    events.push(event);
                }
                buffer = rest.to_string();
            }
            let last = last.load(Ordering::Relaxed);
            if last != 0 && seen >= last {
                return Ok(events);
            }
        }
    }
}

async fn a_watch_has_no_gap_while_leaders_die(world: &World) -> ScenarioResult {
    let store = Store::new(world)?;
    let since = store.put("watched/begin", "0").await?;
    let last = AtomicU64::new(0);
    let writing = async {
        let mut acknowledged = Vec::new();
        for n in 0..240 {
            if n % 80 == 40 {
                let id = ProcessId::PlacementDriver(world.placement_driver_leader().await?);
                world.kill(id)?;
                acknowledged.push((store.put("watched/k", &format!("{n}")).await?, format!("{n}")));
                world.cluster.restart(id)?;
                continue;
            }
            acknowledged.push((store.put("watched/k", &format!("{n}")).await?, format!("{n}")));
        }
        last.store(acknowledged.last().map_or(1, |(revision, _)| *revision), Ordering::Relaxed);
        // One more, so that a stream that has seen everything wakes up to find that it is over.
        store.put("watched/end", "0").await?;
        Ok::<_, ScenarioFailure>(acknowledged)
    };
    let watching = async {
        let watched = watch(world.admin().urls(), "watched/", since, &last);
        evenkeel_host::timeout(2 * PATIENCE, watched)
            .await
            .map_err(|_| ScenarioFailure::new("the watch did not reach the end"))?
    };
    let (acknowledged, events) = futures::try_join!(writing, watching)?;
    // A put that was repeated after an unknown outcome may have two revisions and one
    // acknowledgement. All else is exact.
    let seen: BTreeMap<u64, String> = events
        .iter()
        .map(|e| (e.revision, e.entry.as_ref().and_then(|e| e.value.text.clone()).unwrap_or_default()))
        .collect();
    for (revision, value) in &acknowledged {
        ensure!(
            seen.get(revision) == Some(value),
            "{value} was acknowledged at {revision}; the watch saw {:?}",
            seen.get(revision)
        );
    }
    // There are no other writers, so revisions have no gap.
    let revisions: Vec<u64> = events.iter().map(|e| e.revision).collect();
    ensure!(revisions.windows(2).all(|pair| pair[1] == pair[0] + 1), "the watch saw {revisions:?}");
    ensure!(revisions.first() == Some(&(since + 1)), "it began with {:?} after {since}", revisions.first());
    world.cluster.wait_ready().await?;
    Ok(())
}

async fn the_command_line_reads_writes_lists_and_watches(world: &World) -> ScenarioResult {
    let kv = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&world.cluster.options().executable);
        command.arg("kv").args(arguments).args(["--url", &world.admin().urls().join(",")]);
        command.stdin(std::process::Stdio::null());
        command
    };
    let run = |arguments: &[&str]| {
        let output = kv(arguments).output().map_err(|e| format!("{arguments:?}: {e}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok::<_, ScenarioFailure>((output.status.code(), text(&output.stdout), text(&output.stderr)))
    };
    let (status, written, error) = run(&["put", "cli/a b", "one", "--content-type", "text/plain"])?;
    ensure!(status == Some(0), "put: {error}");
    let revision = written.trim().strip_prefix("revision ").unwrap_or_default().to_string();
    ensure!(run(&["get", "cli/a b"])?.1 == "one", "what was put is not there");
    let (status, _, error) = run(&["put", "cli/a b", "two", "--create"])?;
    ensure!(status == Some(1) && error.contains("revision-mismatch"), "a second creation: {status:?} {error}");
    ensure!(run(&["put", "cli/a b", "two", "--if-match", &revision])?.0 == Some(0), "a swap failed");
    let (_, listed, _) = run(&["list", "cli/", "--format", "json"])?;
    let list: KvListBody = serde_json::from_str(&listed).map_err(|e| format!("{e}: {listed}"))?;
    ensure!(list.entries.len() == 1 && list.entries[0].version == 2, "{listed}");
    ensure!(run(&["delete", "cli/a b"])?.0 == Some(0), "a delete failed");
    let (status, _, error) = run(&["get", "cli/a b"])?;
    ensure!(status == Some(1) && error.contains("unknown-key") && error.lines().count() == 1, "{status:?} {error}");
    // A watch from an earlier revision shows all these changes. It is ended by a signal.
    let before = (revision.parse::<u64>().unwrap_or(1) - 1).to_string();
    let mut command = kv(&["watch", "cli/", "--since", &before, "--format", "json"]);
    let mut watching = command.stdout(std::process::Stdio::piped()).spawn().map_err(|e| e.to_string())?;
    let output = watching.stdout.take();
    let reading = tokio::task::spawn_blocking(move || {
        let lines = output.map(std::io::BufReader::new).map(std::io::BufRead::lines).into_iter().flatten();
        lines.map_while(Result::ok).take(3).filter_map(|line| serde_json::from_str(&line).ok()).collect()
    });
    let read = evenkeel_host::timeout(PATIENCE, reading).await;
    watching.kill().and_then(|()| watching.wait()).map_err(|e| e.to_string())?;
    let events: Vec<KvEventBody> =
        read.map_err(|_| ScenarioFailure::new("the watch showed nothing"))?.map_err(|e| e.to_string())?;
    let kept: Vec<bool> = events.iter().map(|event| event.entry.is_some()).collect();
    ensure!(kept == [true, true, false], "{events:?}");
    Ok(())
}
