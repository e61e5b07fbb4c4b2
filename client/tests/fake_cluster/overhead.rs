//! The cost of a statement in client, connection and scripted shard together: a figure to watch,
//! not a check.
//! `cargo test --release -p evenkeel-client --test fake_cluster overhead -- --ignored --nocapture`

use crate::world::Cluster;
use crate::{BUMP, READ, connect};

const STATEMENTS: i64 = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn overhead() {
    let cluster = Cluster::start(&[(1, 100), (2, 200), (3, 0)]).await;
    cluster.put(0..300);
    let client = connect(&cluster).await;
    for (name, sql) in [("read", READ), ("write", BUMP)] {
        for concurrency in [1, 16, 64] {
            let began = evenkeel_host::now();
            let tasks = (0..concurrency).map(|n| {
                let client = client.clone();
                tokio::spawn(async move {
                    for i in 0..STATEMENTS / concurrency {
                        client.execute(sql, &[((n * 31 + i) % 300).into()]).await.unwrap();
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
            let each = evenkeel_host::elapsed(began).as_secs_f64() / STATEMENTS as f64;
            println!("{name}, {concurrency} at a time: {:.1} µs each, {:.0}/s", each * 1e6, 1.0 / each);
        }
    }
}
