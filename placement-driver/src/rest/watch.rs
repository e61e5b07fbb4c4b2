//! `GET /v1/routes/watch`: changes of the routing table as server-sent events.
//!
//! A watcher has no queue: it remembers the version it has been sent, and when it is ready for more it is sent everything since in one event.
//! So a slow watcher costs nothing, and one that is too far behind gets the whole table. Who the placement driver's replicas are is told
//! first, and whenever that changes, by an event `members` that has no id of its own.

use super::{Api, Error, Failure, members, parameters};
use crate::server::Shared;
use evenkeel_protocol::routing::RouteVersion;
use evenkeel_replicated_log::Membership;
use futures::stream;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch::Receiver;
use warp::Reply;
use warp::reply::Response;
use warp::sse::Event;

/// The most watches open at once on one replica.
const MAX_WATCHERS: usize = 10_000;
/// A comment is sent when nothing else is, this often, in milliseconds: so both ends notice a dead connection.
pub(super) const KEEP_ALIVE_MS: u64 = 5_000;

/// Counts watches.
#[derive(Debug, Default, Clone)]
pub(super) struct Watchers(Arc<AtomicUsize>);

impl Watchers {
    /// Opens a watch.
    pub(super) fn enter(&self) -> Result<Watching, Error> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let watching = Watching(self.clone());
        metrics::gauge!("evenkeel_placement_watchers").set(count as f64);
        if count <= MAX_WATCHERS {
            return Ok(watching);
        }
        let detail = format!("{MAX_WATCHERS} watches are open");
        Err(Error::new(503, "too-many-watchers", "Too many watches are open", detail))
    }
}

/// An open watch; dropping it ends it.
pub(super) struct Watching(Watchers);

impl Drop for Watching {
    fn drop(&mut self) {
        let count = self.0.0.fetch_sub(1, Ordering::Relaxed) - 1;
        metrics::gauge!("evenkeel_placement_watchers").set(count as f64);
    }
}

struct Watcher {
    shared: Arc<Shared>,
    changes: Receiver<()>,
    members: Receiver<Membership>,
    stopped: Receiver<bool>,
    sent: Option<RouteVersion>,
    _open: Watching,
}

/// Opens a watch after the version in `Last-Event-ID`; without one it begins with the whole table.
pub(super) fn watch(api: &Api, query: &str, last: Option<&str>) -> Result<Response, Failure> {
    parameters(query, &[])?;
    let sent = match last {
        Some(last) => Some(last.parse::<RouteVersion>().map_err(Error::bad_request)?),
        None => None,
    };
    let open = api.watchers.enter()?;
    let shared = api.shared.clone();
    let mut members = shared.log.membership();
    members.mark_changed();
    let watcher =
        Watcher { changes: shared.routes_changes(), members, stopped: shared.stopped(), shared, sent, _open: open };
    let events = stream::unfold(watcher, |watcher| async { next(watcher).await });
    let keep_alive = warp::sse::keep_alive().interval(Duration::from_millis(KEEP_ALIVE_MS));
    Ok(warp::sse::reply(keep_alive.stream(events)).into_response())
}

/// The next event, once there is one; `None` when the replica shuts down.
async fn next(mut watcher: Watcher) -> Option<(Result<Event, Infallible>, Watcher)> {
    loop {
        if *watcher.stopped.borrow() {
            return None;
        }
        // An error means that the log has stopped, which shows elsewhere.
        if watcher.members.has_changed().unwrap_or(false) {
            let json = super::view::to_json(&members::body(&watcher.members.borrow_and_update()));
            let data = String::from_utf8_lossy(&json).into_owned();
            return Some((Ok(Event::default().event("members").data(data)), watcher));
        }
        watcher.changes.borrow_and_update();
        let view = watcher.shared.view();
        if watcher.sent != Some(view.version) {
            let json = match watcher.sent {
                // A version from the future is another replica's, which was ahead: it will be reached.
                Some(sent) if sent.incarnation == view.version.incarnation && sent > view.version => None,
                Some(sent) => Some(view.since_json(sent)),
                None => Some(view.complete_json()),
            };
            if let Some(json) = json {
                watcher.sent = Some(view.version);
                let data = String::from_utf8_lossy(&json).into_owned();
                return Some((Ok(Event::default().id(view.version_text.clone()).data(data)), watcher));
            }
        }
        tokio::select! {
            changed = watcher.changes.changed() => changed.ok()?,
            changed = watcher.members.changed() => {
                changed.ok()?;
                watcher.members.mark_changed();
            }
            // An error means that the replica is gone.
            stopped = watcher.stopped.changed() => stopped.ok()?,
        }
    }
}
