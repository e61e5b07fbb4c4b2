//! Many clients increment rows while ranges split and move, leaders change and answers are lost. At
//! the end every acknowledged change is there exactly once.

use crate::world::{Cluster, Fault};
use crate::{BUMP, READ, config, until};
use evenkeel_client::{Client, ClientConfig, TransactionOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const ROWS: i64 = 40;

/// A pseudo-random sequence, so that a failing seed fails again (as far as the threads allow).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Injects every fault that leaves a majority alive, until it is stopped.
async fn trouble(cluster: Arc<Cluster>, mut random: Random, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let mut next_range = 100;
    while !stop.load(Ordering::Relaxed) {
        let shard = 1 + random.below(3) as u32;
        match random.below(8) {
            0 => {
                let mut world = cluster.world();
                let at = 1 + random.below(ROWS as u64 - 1) as i64;
                let key = crate::world::key(at);
                let truth = world.truth();
                let route = truth.iter().find(|route| route.interval.contains(&key)).unwrap();
                if truth.len() < 12 && route.interval.splits_at(&key) {
                    world.split(route.range.0, at, next_range);
                    next_range += 1;
                }
            }
            1 | 2 => {
                let mut world = cluster.world();
                let truth = world.truth();
                let route = &truth[random.below(truth.len() as u64) as usize];
                if route.shard.0 != shard {
                    world.move_range(route.range.0, shard);
                }
            }
            3 => cluster.elect(shard, Some(1 + random.below(3))),
            4 => cluster.publish(),
            5 => cluster.script(shard, [Fault::ForgetAnswer]),
            6 => cluster.script(shard, [Fault::Unsure, Fault::ForgetRequest]),
            _ => cluster.script(shard, [Fault::Busy(3), Fault::Slow(2)]),
        }
        done.fetch_add(1, Ordering::Relaxed);
        evenkeel_host::sleep(Duration::from_millis(1)).await;
    }
}

/// Increments rows, by statements and by transactions; returns how often each row was acknowledged.
async fn work(client: Client, mut random: Random, stop: Arc<AtomicBool>) -> Vec<i64> {
    let mut acknowledged = vec![0; ROWS as usize];
    while !stop.load(Ordering::Relaxed) {
        let id = random.below(ROWS as u64) as i64;
        if random.below(4) > 0 {
            assert_eq!(client.execute(BUMP, &[id.into()]).await.unwrap().affected, 1);
            acknowledged[id as usize] += 1;
            continue;
        }
        let mut transaction = client.begin(TransactionOptions::default()).await.unwrap();
        let done = async {
            transaction.execute(BUMP, &[id.into()]).await?;
            transaction.execute(BUMP, &[id.into()]).await?;
            transaction.commit().await
        };
        match done.await {
            Ok(()) => acknowledged[id as usize] += 2,
            Err(error) => assert_eq!(error.code(), "40001", "{error}"),
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_lost_and_none_is_made_twice() {
    for seed in 1..=3 {
        let cluster = Arc::new(Cluster::start(&[(1, 10), (2, 20), (3, 0)]).await);
        cluster.put(0..ROWS);
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for n in 0..12 {
            let settings = ClientConfig { statement_timeout_ms: 20_000, ..config(&cluster) };
            let client = Client::connect(settings).await.unwrap();
            tasks.push(tokio::spawn(work(client, Random(seed * 1000 + n), stop.clone())));
        }
        let done = Arc::new(AtomicU64::new(0));
        let trouble = tokio::spawn(trouble(cluster.clone(), Random(seed), stop.clone(), done.clone()));
        let changes = || cluster.world().shards.values().flat_map(|s| s.rows.values()).map(|row| row.1).sum::<i64>();
        until("enough has happened", || done.load(Ordering::Relaxed) > 300 && changes() > 1_000).await;
        stop.store(true, Ordering::Relaxed);
        trouble.await.unwrap();
        let mut expected = vec![1; ROWS as usize];
        for task in tasks {
            for (total, n) in expected.iter_mut().zip(task.await.unwrap()) {
                *total += n;
            }
        }
        // The scripted shards have no isolation: changes are visible until their rollback ends.
        until("what was given up is rolled back", || cluster.open_transactions() == 0).await;
        let found: Vec<i64> = (0..ROWS).map(|id| cluster.value(id).unwrap()).collect();
        assert_eq!(found, expected, "seed {seed}");
        let client = Client::connect(config(&cluster)).await.unwrap();
        for id in 0..ROWS {
            let answer = client.execute(READ, &[id.into()]).await.unwrap();
            assert_eq!(answer.rows.int(0, 1), Some(expected[id as usize]));
        }
    }
}
