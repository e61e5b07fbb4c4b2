//! Log rule 9 over real sockets: while a lease holds, reads send nothing; without one they probe.
//!
//! In a file of its own because the recorder of metrics is one per process.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use evenkeel_replicated_log::{GroupConfig, Limits, LogHandle, ReplicaId, Timing, start};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tempfile::TempDir;

/// Far longer than anything here takes, even on a busy machine: a hang fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// A counter's name and group.
type Name = (String, String);

/// All counters of the process.
#[derive(Clone, Default)]
struct Counters(Arc<Mutex<BTreeMap<Name, Arc<AtomicU64>>>>);

impl Counters {
    fn get(&self, name: &str, group: u64) -> u64 {
        let counters = self.0.lock().unwrap();
        counters.get(&(name.to_owned(), group.to_string())).map_or(0, |c| c.load(Ordering::SeqCst))
    }

    /// The process's, installed at the first call.
    fn installed() -> &'static Counters {
        static COUNTERS: OnceLock<Counters> = OnceLock::new();
        COUNTERS.get_or_init(|| {
            let counters = Counters::default();
            metrics::set_global_recorder(counters.clone()).ok();
            counters
        })
    }
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let group = key.labels().find(|l| l.key() == "group").map_or("", |l| l.value());
        let name = (key.name().to_owned(), group.to_owned());
        Counter::from_arc(self.0.lock().unwrap().entry(name).or_default().clone())
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

struct Group {
    number: u64,
    _dirs: Vec<TempDir>,
    nodes: Vec<LogHandle>,
}

impl Group {
    fn new(number: u64, lease_ms: u64) -> Group {
        let peers: BTreeMap<ReplicaId, SocketAddr> =
            (1..=3).map(|id| (ReplicaId(id), evenkeel_host::ports::address().unwrap())).collect();
        let dirs: Vec<_> = peers.iter().map(|_| TempDir::new().unwrap()).collect();
        let nodes = peers.iter().zip(&dirs).map(|((me, listen), dir)| {
            start(GroupConfig {
                group: number,
                join: false,
                me: *me,
                listen: *listen,
                peers: peers.iter().map(|(id, at)| (*id, (*at).into())).collect(),
                dir: dir.path().join("log"),
                timing: Timing { lease_ms, ..Timing::default() },
                limits: Limits::default(),
            })
            .unwrap()
        });
        Group { number, nodes: nodes.collect(), _dirs: dirs }
    }

    fn lease_reads(&self) -> u64 {
        Counters::installed().get("evenkeel_log_lease_reads_total", self.number)
    }

    fn probes(&self) -> u64 {
        Counters::installed().get("evenkeel_log_probes_total", self.number)
    }

    /// Reads at whoever leads until `done`.
    async fn read_until(&self, done: impl Fn() -> bool) {
        let reading = async {
            while !done() {
                for node in &self.nodes {
                    if node.role().borrow().leading().is_some() {
                        node.read_barrier().await.ok();
                    }
                }
                evenkeel_host::sleep(Duration::from_millis(1)).await;
            }
        };
        evenkeel_host::timeout(PATIENCE, reading).await.unwrap();
    }

    async fn shutdown(self) {
        for node in &self.nodes {
            evenkeel_host::timeout(PATIENCE, node.shutdown()).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_under_a_lease_send_nothing() {
    Counters::installed();
    let group = Group::new(1, 300);
    group.read_until(|| group.lease_reads() > 0).await;
    // A lease on a busy machine may run out between two rounds of requests; then once more.
    let mut quiet = false;
    while !quiet {
        let (probes, reads) = (group.probes(), group.lease_reads());
        group.read_until(|| group.lease_reads() >= reads + 50 || group.probes() > probes).await;
        quiet = group.probes() == probes;
    }
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_follower_less_and_reads_probe_again() {
    Counters::installed();
    let group = Group::new(2, 300);
    group.read_until(|| group.lease_reads() > 0).await;
    let follower = group.nodes.iter().find(|n| n.role().borrow().leading().is_none()).unwrap();
    follower.shutdown().await;
    let probes = group.probes();
    group.read_until(|| group.probes() > probes + 10).await;
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_leases_every_read_probes() {
    Counters::installed();
    let group = Group::new(3, 0);
    group.read_until(|| group.probes() > 20).await;
    assert_eq!(group.lease_reads(), 0);
    group.shutdown().await;
}
