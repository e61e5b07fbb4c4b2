//! Batches under load that used to throw them away (E2): large values, and statements that
//! PostgreSQL refuses. A program of its own, because it counts what the whole process does.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "shards/harness.rs"]
#[allow(dead_code)]
mod harness;

use evenkeel_protocol::shard::*;
use evenkeel_protocol::*;
use harness::{Shard, statement};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::time::Duration;

const TABLE: &str = "CREATE TABLE items (id bigint PRIMARY KEY, n integer NOT NULL CHECK (n < 100), t text)";
const INSERT: &str = "INSERT INTO items VALUES ($1, $2, $3)";

/// The sum of a counter over its labels.
fn counted(metrics: &PrometheusHandle, name: &str) -> f64 {
    let text = metrics.render();
    let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Sends the statements together, as the clients of a busy shard do, and gives the SQLSTATE of each
/// answer.
async fn together(shard: &Shard, statements: Vec<(&str, Vec<Value>)>) -> Vec<String> {
    let ask = async |(sql, params): (&str, Vec<Value>)| {
        let request = ShardRequest::Statement(statement(sql, &params));
        loop {
            match shard.ask(&request).await {
                ShardReply::Rows(_) => return "00000".to_string(),
                ShardReply::Failed(Failure::Sql(error)) => return error.code.to_string(),
                // As clients do: nothing has happened.
                ShardReply::Failed(Failure::Overloaded { retry_after_ms }) => {
                    evenkeel_host::sleep(Duration::from_millis(retry_after_ms.into())).await;
                }
                other => return format!("{other:?}"),
            }
        }
    };
    futures::future::join_all(statements.into_iter().map(ask)).await
}

/// The answers that are not as they should be: each `nth` refused with `refusal`, the others
/// executed.
fn unexpected<'a>(codes: &'a [String], nth: usize, refusal: &str) -> Vec<(usize, &'a String)> {
    let right = |n: usize, code: &String| code == if n.is_multiple_of(nth) { refusal } else { "00000" };
    codes.iter().enumerate().filter(|(n, code)| !right(*n, code)).collect()
}

/// R10: one statement never makes others be executed twice. Breaks if a batch ends by count alone,
/// if an INSERT that finds its row there fails in it, or if a plan that PostgreSQL has refused goes
/// on without a savepoint.
#[tokio::test(flavor = "multi_thread")]
async fn large_values_and_refusals_do_not_make_others_be_executed_twice() {
    let metrics = PrometheusBuilder::new().install_recorder().unwrap();
    let split = || counted(&metrics, "evenkeel_batches_split_total");
    let shard = Shard::start(1, 3).await;
    shard.create_table(TABLE, 1, 1).await;

    // Values of 64 KiB: 16 of them are more than an entry holds. An UPDATE of another column has
    // images as large.
    let large: Value = "x".repeat(64 << 10).as_str().into();
    let inserts = (0..64i64).map(|n| (INSERT, vec![n.into(), 0i64.into(), large.clone()])).collect();
    assert_eq!(together(&shard, inserts).await, ["00000"; 64]);
    let update = "UPDATE items SET n = n + 1 WHERE id = $1";
    let updates = || (0..64i64).map(|n| (update, vec![n.into()])).collect();
    assert_eq!(together(&shard, updates()).await, ["00000"; 64]);
    assert_eq!(together(&shard, updates()).await, ["00000"; 64]);
    assert_eq!(split(), 0.0, "{}", metrics.render());

    // One in a hundred is there already.
    let small = |n: i64| (INSERT, vec![n.into(), 0i64.into(), "x".into()]);
    let inserts = (0..500i64).map(|n| small(if n % 100 == 0 { n / 100 } else { 1_000 + n })).collect();
    let codes = together(&shard, inserts).await;
    assert_eq!(unexpected(&codes, 100, "23505"), [] as [(usize, &String); 0]);
    assert_eq!(split(), 0.0, "{}", metrics.render());
    // More if they had to be sent again.
    assert!(counted(&metrics, "evenkeel_statements_apart_total{why=\"conflict\"}") >= 5.0);

    // What violates a check is not known beforehand, but only once.
    let check = |n: i64| if n % 10 == 0 { 100i64 } else { 0 };
    let inserts =
        |from: i64| (0..300i64).map(move |n| (INSERT, vec![(from + n).into(), check(n).into(), "x".into()])).collect();
    for from in [10_000, 20_000] {
        let codes = together(&shard, inserts(from)).await;
        assert_eq!(unexpected(&codes, 10, "23514"), [] as [(usize, &String); 0]);
    }
    assert!(split() <= 1.0, "{}", metrics.render());

    let rows = shard.sql("SELECT count(*) FROM items", &[]).await.unwrap();
    assert_eq!(rows.rows.int(0, 0), Some(64 + 495 + 2 * 270));
    let updated = shard.sql("SELECT id FROM items WHERE n = 2", &[]).await.unwrap();
    assert_eq!(updated.affected, 64);
    shard.checked_sums().await;
    shard.stop().await;
}
