//! The updates of the routing table: fetches on demand and the placement driver's watch.
//!
//! It owns the table, the state of the current fetch, and the two background tasks' loops. It
//! promises that fetches are shared: a caller that asks while a fetch is in progress waits for one
//! that begins after its call, and two fetches begin at least `refresh_interval_ms` apart.

use super::cache::RouteCache;
use super::redirect::Learning;
use crate::config::ClientConfig;
use crate::link::ShardPool;
use crate::placement_driver::{Api, ApiError, Events};
use crate::stats::{Counters, add};
use evenkeel_protocol::api::{MembersBody, RoutesBody};
use evenkeel_protocol::routing::RoutingTable;
use evenkeel_protocol::{Epoch, RangeId, ShardId};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The first and the longest wait before the watch is opened again, in milliseconds.
const WATCH_WAIT_MS: (u64, u64) = (50, 2_000);

/// The last fetch of the routing table.
struct LastFetch {
    began_at: Option<Instant>,
    result: Result<(), String>,
}

/// The routing table and its updates.
pub(crate) struct RouteUpdates {
    cache: RouteCache,
    api: Arc<dyn Api>,
    pool: Arc<ShardPool>,
    counters: Arc<Counters>,
    interval: Duration,
    /// Locked during a fetch, so that callers wait for its end; it protects nothing else.
    last_fetch: tokio::sync::Mutex<LastFetch>,
    fetches_begun: AtomicU64,
    wanted: Notify,
}

impl RouteUpdates {
    /// An empty table that is fetched from `api`. Connections in `pool` to replicas that left the
    /// cluster are closed.
    pub(crate) fn new(
        config: &ClientConfig,
        api: Arc<dyn Api>,
        pool: Arc<ShardPool>,
        counters: Arc<Counters>,
    ) -> RouteUpdates {
        RouteUpdates {
            cache: RouteCache::default(),
            api,
            pool,
            counters,
            interval: Duration::from_millis(config.refresh_interval_ms),
            last_fetch: tokio::sync::Mutex::new(LastFetch { began_at: None, result: Ok(()) }),
            fetches_begun: AtomicU64::new(0),
            wanted: Notify::new(),
        }
    }

    /// The current table.
    pub(crate) fn table(&self) -> Arc<RoutingTable> {
        self.cache.current()
    }

    /// Merges a redirect of the shard `from` into the table.
    pub(crate) fn redirected(&self, from: ShardId, to: Option<ShardId>, range: Option<(RangeId, Epoch)>) -> Learning {
        self.cache.redirected(from, to, range)
    }

    /// Fetches the routing table, or waits for a fetch that another caller has begun since this
    /// call.
    ///
    /// # Errors
    /// One sentence.
    pub(crate) async fn refresh(&self) -> Result<(), String> {
        let seen = self.fetches_begun.load(Ordering::Acquire);
        let mut last = self.last_fetch.lock().await;
        if self.fetches_begun.load(Ordering::Acquire) > seen {
            return last.result.clone();
        }
        if let Some(began_at) = last.began_at {
            evenkeel_host::sleep(self.interval.saturating_sub(evenkeel_host::elapsed(began_at))).await;
        }
        last.began_at = Some(evenkeel_host::now());
        // If this future is dropped before the fetch ends, its waiters must not take the previous
        // result for theirs.
        last.result = Err("the fetch of the routing table was given up".to_string());
        self.fetches_begun.fetch_add(1, Ordering::AcqRel);
        add(&self.counters.refreshes, 1);
        let result = match self.api.routes().await {
            Ok(news) => self.cache.merge_news(&news),
            Err(error) => Err(error.to_string()),
        };
        match &result {
            Ok(()) => self.close_unused_connections(),
            Err(reason) => tracing::debug!(reason, "the routing table could not be fetched"),
        }
        last.result = result.clone();
        result
    }

    /// Has the table fetched in the background.
    pub(crate) fn want_refresh(&self) {
        self.wanted.notify_one();
    }

    fn close_unused_connections(&self) {
        let routes = self.cache.current();
        let in_use: HashSet<_> = routes.shards().flat_map(|shard| shard.replicas.values()).collect();
        self.pool.retain(|address| in_use.contains(address));
    }

    /// Fetches the table whenever [`RouteUpdates::want_refresh`] asks for it; runs until aborted.
    pub(crate) async fn refresh_when_wanted(self: Arc<Self>) {
        loop {
            self.wanted.notified().await;
            let _ = self.refresh().await;
        }
    }

    /// Keeps the table fresh by the placement driver's watch; runs until aborted. When the watch
    /// ends or falls silent, it is opened again at another endpoint, after the last event.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut last_id = self.cache.current().version.to_string();
        let mut wait_ms = WATCH_WAIT_MS.0;
        loop {
            match self.api.watch(&last_id).await {
                Ok(events) => {
                    let before = last_id.clone();
                    let ended = self.follow(events, &mut last_id).await;
                    tracing::debug!(ended, last_id, "the watch of the routing table ended");
                    if last_id != before {
                        wait_ms = WATCH_WAIT_MS.0;
                    }
                }
                Err(ApiError::Refused(problem)) => {
                    tracing::warn!(problem.detail, "the placement driver refuses the watch");
                    last_id = self.cache.current().version.to_string();
                }
                Err(error) => tracing::debug!(%error, "the watch of the routing table cannot be opened"),
            }
            self.api.pass_over();
            let jitter: f64 = evenkeel_host::random();
            evenkeel_host::sleep(Duration::from_millis((wait_ms as f64 * (0.5 + jitter / 2.0)) as u64)).await;
            wait_ms = (wait_ms * 2).min(WATCH_WAIT_MS.1);
        }
    }

    /// Merges events until the watch ends; returns why it ended.
    async fn follow(&self, mut events: Box<dyn Events>, last_id: &mut String) -> String {
        loop {
            let event = match events.next().await {
                Ok(event) => event,
                Err(reason) => return reason,
            };
            if event.name == "members" {
                match serde_json::from_str::<MembersBody>(&event.data) {
                    Ok(members) => self.api.learn(&members),
                    Err(error) => return format!("an event is not understood: {error}"),
                }
                continue;
            }
            let merged = serde_json::from_str(&event.data)
                .map_err(|error| error.to_string())
                .and_then(|news: RoutesBody| self.cache.merge_news(&news).map(|()| news.routes.len()));
            match merged {
                Ok(routes) => add(&self.counters.watched, routes as u64),
                Err(reason) => {
                    self.want_refresh();
                    return format!("an event is not understood: {reason}");
                }
            }
            if let Some(id) = event.id {
                *last_id = id;
            }
        }
    }
}
