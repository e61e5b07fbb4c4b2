//! `GET /v1/routes/watch`: changes of the routing table as server-sent events.
//!
//! A watch has no queue: it remembers the version that it has sent, and sends all changes since in
//! one event when the client is ready for more. So a slow watch costs nothing, and one that is too
//! far behind receives the whole table. The replicas of the placement driver itself come first, and
//! again whenever they change, in an event `members` without an id.

use super::context::ApiContext;
use super::failure::ApiFailure;
use super::placement_members;
use super::problem::ApiProblem;
use super::request::parameters;
use super::watch_limit::{KEEP_ALIVE_MS, OpenWatch};
use crate::json::to_json;
use crate::replica::ReplicaHandles;
use evenkeel_protocol::routing::RouteVersion;
use evenkeel_replicated_log::Membership;
use futures::stream;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use warp::Reply;
use warp::reply::Response;
use warp::sse::Event;

struct RoutesWatch {
    handles: Arc<ReplicaHandles>,
    changes: Receiver<()>,
    members: Receiver<Membership>,
    stopped: Receiver<bool>,
    sent: Option<RouteVersion>,
    _open: OpenWatch,
}

/// Opens a watch after the version in `Last-Event-ID`. Without one it begins with the whole table.
pub(super) fn watch(api: &ApiContext, query: &str, last: Option<&str>) -> Result<Response, ApiFailure> {
    parameters(query, &[])?;
    let sent = match last {
        Some(last) => Some(last.parse::<RouteVersion>().map_err(ApiProblem::bad_request)?),
        None => None,
    };
    let open = api.watches.enter()?;
    let handles = api.handles.clone();
    let mut members = handles.log.membership();
    members.mark_changed();
    let (changes, stopped) = (handles.routes_changes(), handles.stopped());
    let watch = RoutesWatch { handles, changes, members, stopped, sent, _open: open };
    let events = stream::unfold(watch, |watch| async { next(watch).await });
    let keep_alive = warp::sse::keep_alive().interval(Duration::from_millis(KEEP_ALIVE_MS));
    Ok(warp::sse::reply(keep_alive.stream(events)).into_response())
}

/// The next event, once there is one; `None` when the replica shuts down.
async fn next(mut watch: RoutesWatch) -> Option<(Result<Event, Infallible>, RoutesWatch)> {
    loop {
        if *watch.stopped.borrow() {
            return None;
        }
        // An error means that the log has stopped; the event loop notices that too.
        if watch.members.has_changed().unwrap_or(false) {
            let json = to_json(&placement_members::body(&watch.members.borrow_and_update()));
            let data = String::from_utf8_lossy(&json).into_owned();
            return Some((Ok(Event::default().event("members").data(data)), watch));
        }
        watch.changes.borrow_and_update();
        let view = watch.handles.view();
        if watch.sent != Some(view.version) {
            let json = match watch.sent {
                // A version above the present one comes from a replica that was ahead. This
                // replica will reach it.
                Some(sent) if sent.incarnation == view.version.incarnation && sent > view.version => None,
                Some(sent) => Some(view.since_json(sent)),
                None => Some(view.complete_json()),
            };
            if let Some(json) = json {
                watch.sent = Some(view.version);
                let data = String::from_utf8_lossy(&json).into_owned();
                return Some((Ok(Event::default().id(view.version_text.clone()).data(data)), watch));
            }
        }
        tokio::select! {
            changed = watch.changes.changed() => changed.ok()?,
            changed = watch.members.changed() => {
                changed.ok()?;
                watch.members.mark_changed();
            }
            // An error means that the replica is gone.
            stopped = watch.stopped.changed() => stopped.ok()?,
        }
    }
}
