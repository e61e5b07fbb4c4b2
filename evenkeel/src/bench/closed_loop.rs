//! A closed loop: clients with one operation in flight each, for a fixed time after a warm-up that
//! does not count.

use crate::bench::comparison::Measurement;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The longest latency that is recorded exactly, in microseconds.
const MAX_LATENCY_US: u64 = 60_000_000;
/// The duration of the warm-up, as a share of the measured time.
const WARM_UP: f64 = 0.25;

/// An operation on one row.
pub trait Operate: Clone + Send + 'static {
    /// Executes the operation on row `key` (0 .. rows), as client number `client`.
    fn operate(&self, client: usize, key: i64) -> impl Future<Output = Result<(), String>> + Send;
}

/// Measures `clients` clients over `rows` rows for `duration`.
pub async fn measure(
    target: &impl Operate,
    clients: usize,
    rows: i64,
    duration: Duration,
    seed: u64,
) -> Result<Measurement, String> {
    let start = evenkeel_host::now() + duration.mul_f64(WARM_UP);
    let end = start + duration;
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        tasks.spawn(one_client(target.clone(), client, rows, start, end, seed));
    }
    let mut all = histogram()?;
    let mut failed = 0;
    let mut first_failure = None;
    while let Some(joined) = tasks.join_next().await {
        let (latencies, failures, message) = joined.map_err(|e| e.to_string())??;
        all.add(&latencies).map_err(|e| e.to_string())?;
        failed += failures;
        first_failure = first_failure.or(message);
    }
    if all.is_empty() {
        return Err(format!("nothing was answered: {}", first_failure.unwrap_or_default()));
    }
    if let Some(message) = first_failure {
        tracing::warn!(failed, "some operations failed: {message}");
    }
    let ms = |quantile| all.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Measurement { per_s: all.len() as f64 / duration.as_secs_f64(), p50_ms: ms(0.5), p99_ms: ms(0.99), failed })
}

type ClientResult = (Histogram<u64>, u64, Option<String>);

async fn one_client(
    target: impl Operate,
    client: usize,
    rows: i64,
    start: Instant,
    end: Instant,
    seed: u64,
) -> Result<ClientResult, String> {
    let mut latencies = histogram()?;
    let (mut failed, mut message) = (0, None);
    // Splitmix64: the same keys for both systems.
    let mut state = seed.wrapping_add((client as u64) << 32);
    loop {
        let began = evenkeel_host::now();
        if began >= end {
            return Ok((latencies, failed, message));
        }
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        let key = (bits % rows.unsigned_abs().max(1)) as i64;
        match target.operate(client, key).await {
            Ok(()) if began >= start => {
                latencies.saturating_record(evenkeel_host::elapsed(began).as_micros() as u64);
            }
            Ok(()) => {}
            Err(error) => {
                failed += 1;
                message.get_or_insert(error);
            }
        }
    }
}

fn histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Clone)]
    struct Sleeper;

    impl Operate for Sleeper {
        async fn operate(&self, client: usize, key: i64) -> Result<(), String> {
            evenkeel_host::sleep(Duration::from_millis(2)).await;
            if client == 1 && key % 2 == 0 { Err("no".into()) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn failures_are_counted_apart_and_latency_is_measured() {
        let figure = measure(&Sleeper, 2, 100, Duration::from_millis(200), 1).await.unwrap();
        assert!(figure.failed > 0);
        assert!(figure.p50_ms >= 2.0, "{figure:?}");
        assert!(figure.per_s > 10.0 && figure.per_s < 1000.0, "{figure:?}");
    }
}
