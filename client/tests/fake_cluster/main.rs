//! The client against a scripted cluster: shards that redirect, drop connections after executing,
//! fall silent or lose their leader when a test says so, and a placement driver that knows only
//! what a test publishes. All of it runs in this process on its own sockets; nothing is left
//! running.

#![allow(clippy::unwrap_used)]

mod overhead;
mod placement;
mod routes;
mod shards;
mod soak;
mod statements;
mod streams;
mod transactions;
mod world;

use evenkeel_client::{Client, ClientConfig};
use std::time::Duration;
use world::Cluster;

/// Short limits, so that tests that wait for them are short.
fn config(cluster: &Cluster) -> ClientConfig {
    ClientConfig {
        silence_ms: 50,
        connect_timeout_ms: 500,
        statement_timeout_ms: 5_000,
        rest_timeout_ms: 1_000,
        ..ClientConfig::new(cluster.endpoints())
    }
}

async fn connect(cluster: &Cluster) -> Client {
    Client::connect(config(cluster)).await.unwrap()
}

/// Waits until a condition holds; fails after 60 s.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = evenkeel_host::tokio_now() + Duration::from_secs(60);
    while !is_so() {
        assert!(evenkeel_host::tokio_now() < deadline, "not within a minute: {what}");
        evenkeel_host::sleep(Duration::from_millis(5)).await;
    }
}

const INSERT: &str = "INSERT INTO t (id, n) VALUES ($1, 1)";
const BUMP: &str = "UPDATE t SET n = n + 1 WHERE id = $1";
const READ: &str = "SELECT id, n FROM t WHERE id = $1";
