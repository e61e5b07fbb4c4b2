//! Shared inquiries about the leader of a shard one of whose replicas is silent.
//!
//! It owns the last answer per shard and silent replica. One of the statements that wait for the
//! same replica asks, and all share the answer: a shard that is only slow is asked at most once per
//! `silence_ms`.

use evenkeel_protocol::ShardId;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The last answer and the time of the question.
type LastAnswer = Option<(Instant, Option<u64>)>;
/// By shard and silent replica.
type Answers = HashMap<(ShardId, u64), Arc<tokio::sync::Mutex<LastAnswer>>>;

/// The inquiries about silent replicas.
#[derive(Debug, Default)]
pub(crate) struct Inquiries {
    /// Each answer has an asynchronous lock: a caller that finds an inquiry in progress waits for
    /// it.
    by_silent: Mutex<Answers>,
}

impl Inquiries {
    /// The result of `ask`, or its result for the same silent replica of the same shard less than
    /// `fresh` ago.
    pub(crate) async fn share(
        &self,
        shard: ShardId,
        silent: u64,
        fresh: Duration,
        ask: impl Future<Output = Option<u64>>,
    ) -> Option<u64> {
        let answer = {
            let mut all = self.by_silent.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry((shard, silent)).or_default().clone()
        };
        let mut last = answer.lock().await;
        if let Some((at, leader)) = *last
            && evenkeel_host::elapsed(at) < fresh
        {
            return leader;
        }
        let leader = ask.await;
        *last = Some((evenkeel_host::now(), leader));
        leader
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Breaks if every statement that waits for a silent replica asks by itself.
    #[tokio::test]
    async fn one_asks_for_all_who_wait() {
        let (inquiries, asked) = (Inquiries::default(), AtomicU64::new(0));
        let ask = || async {
            tokio::task::yield_now().await;
            asked.fetch_add(1, Ordering::Relaxed);
            Some(2)
        };
        let hour = Duration::from_secs(3_600);
        let all = (0..50).map(|_| inquiries.share(ShardId(1), 1, hour, ask()));
        assert!(futures::future::join_all(all).await.iter().all(|leader| *leader == Some(2)));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        inquiries.share(ShardId(1), 3, hour, ask()).await;
        inquiries.share(ShardId(1), 1, Duration::ZERO, ask()).await;
        assert_eq!(asked.load(Ordering::Relaxed), 3, "about another replica, and when it is no longer fresh");
    }
}
