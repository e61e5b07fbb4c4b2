//! `GET /v1/watch/kv`: changes of the coordination store as server-sent events. No key of the store
//! has this path.

use super::context::ApiContext;
use super::coordination::revision;
use super::failure::ApiFailure;
use super::problem;
use super::request::parameters;
use super::watch_limit::KEEP_ALIVE_MS;
use crate::coordination::{self, WatchEvent, Watcher};
use crate::json::to_json;
use evenkeel_protocol::coordination::{KvEventBody, KvMarkBody};
use futures::stream;
use std::convert::Infallible;
use std::time::Duration;
use warp::Reply;
use warp::reply::Response;
use warp::sse::Event;

/// `GET /v1/watch/kv`: the changes after `Last-Event-ID`, or `?since=`, or from now on.
pub(super) fn watch(api: &ApiContext, query: &str, last: Option<&str>) -> Result<Response, ApiFailure> {
    let (mut prefix, mut since) = (String::new(), None);
    for (name, value) in parameters(query, &["prefix", "since"])? {
        match name.as_str() {
            "prefix" => prefix = value,
            _ => since = Some(revision(&value)?),
        }
    }
    // An EventSource that reconnects repeats its first URL. The header has the last event that it
    // saw.
    if let Some(last) = last {
        since = Some(revision(last)?);
    }
    let watcher = Watcher::open(api.handles.clone(), prefix, since).map_err(|compacted| {
        let detail = format!("{compacted}; list the keys, and watch from the revision of the list");
        problem::COMPACTED.because(detail)
    })?;
    let open = api.watches.enter()?;
    let events = stream::unfold((watcher, open), |(mut watcher, open)| async {
        let event = event(watcher.next().await?);
        Some((Ok::<_, Infallible>(event), (watcher, open)))
    });
    let keep_alive = warp::sse::keep_alive().interval(Duration::from_millis(KEEP_ALIVE_MS));
    Ok(warp::sse::reply(keep_alive.stream(events)).into_response())
}

fn event(event: WatchEvent) -> Event {
    match event {
        WatchEvent::Begin(revision) => mark("begin", revision),
        WatchEvent::Change(event) => change(&event),
        WatchEvent::Progress(revision) => mark("progress", revision),
        // Without an id: an EventSource reconnects with the id of an event before the gap, and is
        // rejected instead of continuing behind the gap.
        WatchEvent::Compacted(oldest) => unnumbered("compacted", oldest),
    }
}

fn mark(name: &'static str, revision: u64) -> Event {
    unnumbered(name, revision).id(revision.to_string())
}

fn unnumbered(name: &'static str, revision: u64) -> Event {
    let data = to_json(&KvMarkBody { revision });
    Event::default().event(name).data(String::from_utf8_lossy(&data))
}

fn change(event: &coordination::Event) -> Event {
    let entry = event.entry.as_ref().map(|entry| entry.body(&event.key, true));
    let name = if entry.is_some() { "put" } else { "delete" };
    let data = to_json(&KvEventBody { revision: event.revision, key: event.key.to_string(), entry });
    Event::default().event(name).id(event.revision.to_string()).data(String::from_utf8_lossy(&data))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A browser's `EventSource` reconnects with the last id that it has received. After a gap that
    /// id must be rejected.
    #[test]
    fn an_event_about_a_gap_has_no_id() {
        let text = |watch_event| event(watch_event).to_string();
        assert!(!text(WatchEvent::Compacted(12)).contains("id:"), "{}", text(WatchEvent::Compacted(12)));
        assert!(text(WatchEvent::Compacted(12)).contains(r#"{"revision":12}"#));
        assert!(text(WatchEvent::Progress(12)).contains("id:12"));
    }
}
