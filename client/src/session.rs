//! What all handles of one client share, and the two background tasks that keep its routing table fresh.
//!
//! It owns the session's identity (the `client` part of every [`TxnId`]), its clock, the caches and the connections. It promises
//! that fetches of the routing table are shared: whoever asks while one is under way waits for one that begins after the
//! question, and two never begin within `refresh_interval_ms` of one another.

use crate::cache::RouteCache;
use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::inquiry::Inquiries;
use crate::leaders::{Leaders, Silent};
use crate::pool::Pool;
use crate::rest::{Rest, RestError};
use crate::sse::EventParser;
use crate::statements::StatementCache;
use crate::stats::{Counters, add};
use evenkeel_protocol::api::{MembersBody, RoutesBody};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{SqlError, TxnId};
use futures::StreamExt;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// The first and the longest wait before the watch is opened again, in milliseconds.
const WATCH_WAIT_MS: (u64, u64) = (50, 2_000);

/// The last fetch of the routing table.
struct Fetched {
    began_at: Option<Instant>,
    result: Result<(), String>,
}

/// One client session.
pub(crate) struct Session {
    pub(crate) config: ClientConfig,
    pub(crate) routes: RouteCache,
    pub(crate) statements: StatementCache,
    pub(crate) leaders: Leaders,
    pub(crate) silent: Silent,
    pub(crate) inquiries: Inquiries,
    pub(crate) pool: Pool,
    pub(crate) rest: Rest,
    pub(crate) counters: Counters,
    /// Drawn at random, so that no two clients' ids meet.
    id: u64,
    sequence: AtomicU64,
    started: Instant,
    started_unix_ms: u64,
    /// An asynchronous lock, since who finds a fetch under way waits for it; nothing else is guarded by it.
    fetched: tokio::sync::Mutex<Fetched>,
    fetches_begun: AtomicU64,
    refresh_wanted: Notify,
}

impl Session {
    /// A session that knows nothing yet.
    pub(crate) fn new(config: ClientConfig) -> Result<Session, ClientError> {
        config.check().map_err(ClientError::Config)?;
        let id: u64 = rand::random();
        Ok(Session {
            routes: RouteCache::default(),
            statements: StatementCache::new(config.statement_cache_entries),
            leaders: Leaders::default(),
            silent: Silent::default(),
            inquiries: Inquiries::default(),
            pool: Pool::new(config.connections_per_replica, config.connect_timeout_ms),
            rest: Rest::new(&config, id as usize).map_err(ClientError::Config)?,
            counters: Counters::default(),
            id,
            sequence: AtomicU64::new(1),
            started: Instant::now(),
            started_unix_ms: unix_ms(),
            fetched: tokio::sync::Mutex::new(Fetched { began_at: None, result: Ok(()) }),
            fetches_begun: AtomicU64::new(0),
            refresh_wanted: Notify::new(),
            config,
        })
    }

    /// Milliseconds of this session's clock.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Milliseconds since the Unix epoch: the machine's clock as it was when the session began, so that setting it changes no id's age.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.started_unix_ms + self.now_ms()
    }

    /// A new id: it names one statement or transaction and is kept through all of its attempts (R14).
    pub(crate) fn new_id(&self) -> TxnId {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        TxnId { client: self.id, sequence, first_sent_ms: self.unix_ms() }
    }

    /// Fetches the routing table, or waits for the fetch that another has begun since the call. An error is one sentence.
    pub(crate) async fn refresh(&self) -> Result<(), String> {
        let seen = self.fetches_begun.load(Ordering::Acquire);
        let mut fetched = self.fetched.lock().await;
        if self.fetches_begun.load(Ordering::Acquire) > seen {
            return fetched.result.clone();
        }
        let interval = Duration::from_millis(self.config.refresh_interval_ms);
        if let Some(began_at) = fetched.began_at {
            tokio::time::sleep(interval.saturating_sub(began_at.elapsed())).await;
        }
        fetched.began_at = Some(Instant::now());
        // If this future is dropped before it has a result, those who wait must not take the one before for theirs.
        fetched.result = Err("the fetch of the routing table was given up".to_string());
        self.fetches_begun.fetch_add(1, Ordering::AcqRel);
        add(&self.counters.refreshes, 1);
        let result = match self.rest.routes().await {
            Ok(news) => self.routes.take_in(&news),
            Err(error) => Err(error.to_string()),
        };
        match &result {
            Ok(()) => self.forget_replicas(),
            Err(reason) => tracing::debug!(reason, "the routing table could not be fetched"),
        }
        fetched.result = result.clone();
        result
    }

    /// The same, but not longer than until `deadline_ms`. Whether it brought anything shows in the table.
    pub(crate) async fn refresh_until(&self, deadline_ms: u64) {
        let left = Duration::from_millis(deadline_ms.saturating_sub(self.now_ms()));
        let _ = tokio::time::timeout(left, self.refresh()).await;
    }

    /// Has the table fetched in the background.
    pub(crate) fn want_refresh(&self) {
        self.refresh_wanted.notify_one();
    }

    fn forget_replicas(&self) {
        let routes = self.routes.current();
        let in_use: HashSet<_> = routes.shards().flat_map(|shard| shard.replicas.values()).collect();
        self.pool.retain(|address| in_use.contains(address));
    }

    /// Fetches the routing table for the first time; tries again until `connect_patience_ms` have passed.
    pub(crate) async fn first_fetch(&self) -> Result<(), ClientError> {
        let mut wait_ms = 10;
        loop {
            let Err(reason) = self.refresh().await else { return Ok(()) };
            if self.now_ms() + wait_ms >= self.config.connect_patience_ms {
                let error = SqlError::new(codes::CONNECTION_FAILURE, reason);
                return Err(ClientError::Unavailable(
                    error.hint(format!("Is one of these a placement driver? {}", self.config.endpoints.join(", "))),
                ));
            }
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            wait_ms = (wait_ms * 2).min(500);
        }
    }
}

/// Milliseconds since the Unix epoch by the machine's clock.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Fetches the table whenever a statement has found it wanting; runs until aborted.
pub(crate) async fn refresh_when_wanted(session: Arc<Session>) {
    loop {
        session.refresh_wanted.notified().await;
        let _ = session.refresh().await;
    }
}

/// Keeps the table fresh by the placement driver's watch; runs until aborted. Each end of the stream, and each silence, is followed
/// by another try, at another endpoint, from where it ended.
pub(crate) async fn watch(session: Arc<Session>) {
    let mut last_id = session.routes.current().version.to_string();
    let mut wait_ms = WATCH_WAIT_MS.0;
    loop {
        match session.rest.watch(&last_id).await {
            Ok(response) => {
                let before = last_id.clone();
                let ended = follow(&session, response, &mut last_id).await;
                tracing::debug!(ended, last_id, "the watch of the routing table ended");
                if last_id != before {
                    wait_ms = WATCH_WAIT_MS.0;
                }
            }
            Err(RestError::Refused(problem)) => {
                tracing::warn!(problem.detail, "the placement driver refuses the watch");
                last_id = session.routes.current().version.to_string();
            }
            Err(error) => tracing::debug!(%error, "the watch of the routing table cannot be opened"),
        }
        session.rest.pass_over();
        let jitter: f64 = rand::random();
        tokio::time::sleep(Duration::from_millis((wait_ms as f64 * (0.5 + jitter / 2.0)) as u64)).await;
        wait_ms = (wait_ms * 2).min(WATCH_WAIT_MS.1);
    }
}

/// Takes in events until the stream ends; says why it did.
async fn follow(session: &Session, response: reqwest::Response, last_id: &mut String) -> String {
    let silence = Duration::from_millis(session.config.watch_silence_ms);
    let mut parser = EventParser::default();
    let mut chunks = response.bytes_stream();
    loop {
        let chunk = match tokio::time::timeout(silence, chunks.next()).await {
            Err(_) => return format!("nothing came for {} ms", silence.as_millis()),
            Ok(None) => return "the placement driver closed it".to_string(),
            Ok(Some(Err(error))) => return error.to_string(),
            Ok(Some(Ok(chunk))) => chunk,
        };
        let events = match parser.push(&chunk) {
            Ok(events) => events,
            Err(error) => return error.to_string(),
        };
        for event in events {
            if event.name == "members" {
                match serde_json::from_str::<MembersBody>(&event.data) {
                    Ok(members) => session.rest.learn(&members),
                    Err(error) => return format!("an event is not understood: {error}"),
                }
                continue;
            }
            let taken = serde_json::from_str(&event.data)
                .map_err(|error| error.to_string())
                .and_then(|news: RoutesBody| session.routes.take_in(&news).map(|()| news.routes.len()));
            match taken {
                Ok(routes) => add(&session.counters.watched, routes as u64),
                Err(reason) => {
                    session.want_refresh();
                    return format!("an event is not understood: {reason}");
                }
            }
            if let Some(id) = event.id {
                *last_id = id;
            }
        }
    }
}
