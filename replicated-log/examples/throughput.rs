//! Three replicas on loopback, each with its own durable log: how many small proposals a second
//! they decide, and how long one takes, alone and with others waiting. A read barrier is timed the
//! same way.
//!
//! `cargo run --release -p evenkeel-replicated-log --example throughput [folder]`

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use evenkeel_replicated_log::{
    Body, Delivery, GroupConfig, Limits, LogHandle, LogIndex, ProposeError, ReplicaId, Role, Subscription, Term,
    Timing, start,
};

const PAYLOAD_BYTES: usize = 128;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

fn report(what: &str, mut took: Vec<Duration>, elapsed: Duration) {
    took.sort_unstable();
    println!(
        "{what}: {:.0}/s, p50 {:.3} ms, p99 {:.3} ms",
        took.len() as f64 / elapsed.as_secs_f64(),
        percentile(&took, 0.5).as_secs_f64() * 1e3,
        percentile(&took, 0.99).as_secs_f64() * 1e3,
    );
}

async fn leader(nodes: &[LogHandle]) -> (LogHandle, Term, LogIndex) {
    loop {
        for node in nodes {
            let role = node.role().borrow().clone();
            if let Role::Leader { term, start } = role
                && node.read_barrier().await.is_ok()
            {
                return (node.clone(), term, start);
            }
        }
        evenkeel_host::sleep(Duration::from_millis(1)).await;
    }
}

/// As [`leader`], once it has led for a second: replicas that start one after the other change
/// places at first.
async fn stable_leader(nodes: &[LogHandle]) -> (LogHandle, Term, LogIndex) {
    loop {
        let (node, term, start) = leader(nodes).await;
        evenkeel_host::sleep(Duration::from_secs(1)).await;
        if node.role().borrow().leading() == Some(term) {
            return (node, term, start);
        }
    }
}

fn payload(number: usize) -> Bytes {
    let mut payload = vec![0; PAYLOAD_BYTES];
    payload[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Bytes::from(payload)
}

/// Keeps `window` proposals under way until `count` are decided.
async fn proposals(node: &LogHandle, term: Term, log: &mut Subscription, count: usize, window: usize) -> Outcome<()> {
    let mut sent = Vec::with_capacity(count);
    let mut took = Vec::with_capacity(count);
    let begun = evenkeel_host::now();
    while took.len() < count {
        while sent.len() < count && sent.len() - took.len() < window {
            match node.propose(term, payload(sent.len())) {
                Ok(()) => sent.push(evenkeel_host::now()),
                Err(ProposeError::Overloaded) => break,
                Err(other) => return Err(other.into()),
            }
        }
        let Delivery::Entries(entries) = log.next(1 << 20).await? else {
            return Err("the log was trimmed under a reader".into());
        };
        let data = entries.iter().filter(|e| matches!(e.body, Body::Data(_)));
        for _ in data {
            took.push(evenkeel_host::elapsed(sent[took.len()]));
        }
    }
    report(&format!("proposals, {window} under way"), took, evenkeel_host::elapsed(begun));
    Ok(())
}

async fn barriers(node: &LogHandle, count: usize, window: usize) -> Outcome<()> {
    let begun = evenkeel_host::now();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..window {
        let node = node.clone();
        readers.spawn(async move {
            let mut took = Vec::new();
            for _ in 0..count / window {
                let asked = evenkeel_host::now();
                node.read_barrier().await?;
                took.push(evenkeel_host::elapsed(asked));
            }
            Ok::<_, evenkeel_replicated_log::BarrierError>(took)
        });
    }
    let mut took = Vec::new();
    while let Some(reader) = readers.join_next().await {
        took.extend(reader??);
    }
    report(&format!("read barriers, {window} waiting"), took, evenkeel_host::elapsed(begun));
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let root = match std::env::args().nth(1) {
        Some(folder) => PathBuf::from(folder),
        None => std::env::temp_dir().join(format!("evenkeel-throughput-{}", std::process::id())),
    };
    let mut peers: BTreeMap<ReplicaId, SocketAddr> = BTreeMap::new();
    for id in 1..=3 {
        let free = TcpListener::bind("127.0.0.1:0")?;
        peers.insert(ReplicaId(id), free.local_addr()?);
    }
    let mut nodes = Vec::new();
    for (me, listen) in &peers {
        nodes.push(start(GroupConfig {
            group: 1,
            join: false,
            me: *me,
            listen: *listen,
            peers: peers.iter().map(|(id, at)| (*id, (*at).into())).collect(),
            dir: root.join(me.to_string()),
            timing: Timing::default(),
            limits: Limits::default(),
        })?);
    }
    let (node, term, start) = stable_leader(&nodes).await;
    let mut log = node.subscribe(start.next());
    println!("payloads of {PAYLOAD_BYTES} bytes, three replicas in one process, logs in {}", root.display());
    for (count, window) in [(3_000, 1), (30_000, 16), (60_000, 64), (500_000, 4_096)] {
        proposals(&node, term, &mut log, count, window).await?;
    }
    for (count, window) in [(3_000, 1), (30_000, 64)] {
        barriers(&node, count, window).await?;
    }
    let first = node.me();
    node.shutdown().await;
    nodes.retain(|n| n.me() != first);
    let stopped = evenkeel_host::now();
    leader(&nodes).await;
    println!("a new leader serves {} ms after the old one stopped", evenkeel_host::elapsed(stopped).as_millis());
    for node in &nodes {
        node.shutdown().await;
    }
    std::fs::remove_dir_all(&root)?;
    Ok(())
}
