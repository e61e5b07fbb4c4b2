//! The placement driver's REST API, as the client uses it: fetch the routing table, watch it, create tables.
//!
//! It owns the HTTP connections and remembers which endpoint answered last; any replica serves these requests, so a failing one is
//! passed over for the next. To the endpoints that it was configured with it adds those that the placement driver tells of, so that it
//! finds a placement driver all of whose replicas have been replaced. It promises to say whether a request that failed may have been carried out.

use crate::config::ClientConfig;
use evenkeel_protocol::api::{CreateTableBody, MembersBody, Problem, RoutesBody};
use futures::StreamExt;
use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The largest body read, in bytes.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The most endpoints that are learned.
const MAX_LEARNED: usize = 32;

/// Why a REST request brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestError {
    /// No endpoint took it. `maybe_done`: one may have, and its answer was lost.
    #[error("the placement driver cannot be reached: {reason}")]
    Unreachable { reason: String, maybe_done: bool },
    /// The placement driver refuses it, and would again.
    #[error("{}", .0.detail)]
    Refused(Problem),
}

/// The placement driver, at several endpoints.
#[derive(Debug)]
pub(crate) struct Rest {
    http: reqwest::Client,
    /// How many of the endpoints were configured: these come first, because a client may reach the placement driver by other addresses
    /// than it knows itself by.
    configured: usize,
    endpoints: RwLock<Known>,
    preferred: AtomicUsize,
    timeout: Duration,
}

/// The endpoints, and as of which epoch of the placement driver's members. An earlier epoch's word comes from a replica that is behind.
#[derive(Debug)]
struct Known {
    epoch: u32,
    urls: Arc<[String]>,
}

/// What one endpoint said.
enum Attempt {
    Good(Response),
    Refused(Problem),
    Failed { reason: String, maybe_done: bool },
}

impl Rest {
    /// For the endpoints of `config`, beginning with number `first`, so that clients spread over them.
    pub(crate) fn new(config: &ClientConfig, first: usize) -> Result<Rest, String> {
        let http = reqwest::Client::builder()
            // These are addresses of the cluster; what the environment says about proxies is for the world outside.
            .no_proxy()
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .build()
            .map_err(|e| format!("no HTTP client can be made: {e}"))?;
        let endpoints: Vec<String> = config.endpoints.iter().map(|e| e.trim_end_matches('/').to_string()).collect();
        let preferred = AtomicUsize::new(first % endpoints.len().max(1));
        let timeout = Duration::from_millis(config.rest_timeout_ms);
        let configured = endpoints.len();
        let endpoints = RwLock::new(Known { epoch: 0, urls: endpoints.into() });
        Ok(Rest { http, configured, endpoints, preferred, timeout })
    }

    /// The endpoints known, those that were configured first.
    pub(crate) fn endpoints(&self) -> Arc<[String]> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).urls.clone()
    }

    /// Takes in who the placement driver's replicas are.
    pub(crate) fn learn(&self, members: &MembersBody) {
        let mut known = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        if members.epoch < known.epoch {
            return;
        }
        known.epoch = members.epoch;
        let mut next = known.urls[..self.configured].to_vec();
        // An address on its own machine says nothing to a client on another.
        let near =
            next.iter().any(|url| url.contains("//127.") || url.contains("//localhost") || url.contains("//[::1]"));
        let reachable = |address: &SocketAddr| !address.ip().is_unspecified() && (near || !address.ip().is_loopback());
        let told = members.members.iter().filter_map(|member| member.rest.filter(reachable));
        for url in told.take(MAX_LEARNED).map(|address| format!("http://{address}")) {
            if !next.contains(&url) {
                next.push(url);
            }
        }
        if next[..] != known.urls[..] {
            tracing::debug!(?next, "the placement driver's replicas have changed");
            // Which one is preferred is a place in the list: the one that answered last keeps it if it is still there.
            let count = known.urls.len().max(1);
            let preferred = known.urls.get(self.preferred.load(Ordering::Relaxed) % count);
            let place = preferred.and_then(|url| next.iter().position(|other| other == url));
            self.preferred.store(place.unwrap_or(0), Ordering::Relaxed);
            known.urls = next.into();
        }
    }

    /// `GET /v1/routes`: the whole table.
    pub(crate) async fn routes(&self) -> Result<RoutesBody, RestError> {
        let response = self.send(|http, base| http.get(format!("{base}/v1/routes")).timeout(self.timeout)).await?;
        decode(response).await
    }

    /// `GET /v1/routes/watch`: the stream of changes after the version `last_event_id`.
    pub(crate) async fn watch(&self, last_event_id: &str) -> Result<Response, RestError> {
        let request = |http: &reqwest::Client, base: &str| {
            http.get(format!("{base}/v1/routes/watch"))
                .header("accept", "text/event-stream")
                .header("last-event-id", last_event_id)
        };
        match tokio::time::timeout(self.timeout, self.send(request)).await {
            Ok(result) => result,
            Err(_) => Err(RestError::Unreachable { reason: "no watch was opened in time".into(), maybe_done: false }),
        }
    }

    /// The next watch begins at another endpoint.
    pub(crate) fn pass_over(&self) {
        self.preferred.fetch_add(1, Ordering::Relaxed);
    }

    /// `POST /v1/tables`. Followers answer with a redirect to the leader, which is followed here.
    pub(crate) async fn create_table(&self, body: &CreateTableBody, timeout: Duration) -> Result<(), RestError> {
        self.send(|http, base| http.post(format!("{base}/v1/tables")).json(body).timeout(timeout)).await.map(drop)
    }

    /// Sends a request to one endpoint after the other until one answers it.
    async fn send(
        &self,
        request: impl Fn(&reqwest::Client, &str) -> reqwest::RequestBuilder,
    ) -> Result<Response, RestError> {
        let endpoints = self.endpoints();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut reasons = Vec::new();
        let mut maybe_done = false;
        for turn in 0..endpoints.len() {
            let base = &endpoints[(first + turn) % endpoints.len()];
            match attempt(request(&self.http, base)).await {
                Attempt::Good(response) => {
                    if turn > 0 {
                        self.preferred.store((first + turn) % endpoints.len(), Ordering::Relaxed);
                    }
                    return Ok(response);
                }
                Attempt::Refused(problem) => return Err(RestError::Refused(problem)),
                Attempt::Failed { reason, maybe_done: maybe } => {
                    maybe_done |= maybe;
                    reasons.push(format!("{base}: {reason}"));
                }
            }
        }
        Err(RestError::Unreachable { reason: reasons.join("; "), maybe_done })
    }
}

async fn attempt(request: reqwest::RequestBuilder) -> Attempt {
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Attempt::Failed { maybe_done: !error.is_connect(), reason: chain(&error) },
    };
    let status = response.status();
    if status.is_success() {
        return Attempt::Good(response);
    }
    let problem: Option<Problem> = decode(response).await.ok();
    // Gone away in the middle, or without a leader: another replica may do better. 503 promises that nothing was done.
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status.is_redirection() {
        let reason = problem.map_or_else(|| status.to_string(), |p| p.detail);
        return Attempt::Failed { reason, maybe_done: status != StatusCode::SERVICE_UNAVAILABLE };
    }
    Attempt::Refused(problem.unwrap_or_else(|| Problem {
        kind: "about:blank".into(),
        code: String::new(),
        title: status.to_string(),
        status: status.as_u16(),
        detail: format!("the placement driver answered {status}"),
    }))
}

/// An error with its causes, which is where reqwest keeps what happened.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn decode<T: DeserializeOwned>(response: Response) -> Result<T, RestError> {
    let failed = |reason: String| RestError::Unreachable { reason, maybe_done: true };
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| failed(chain(&e)))?;
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(failed(format!("its answer is longer than {MAX_BODY_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|e| failed(format!("its answer is not understood: {e}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::api::MemberBody;

    fn told(epoch: u32, addresses: &[&str]) -> MembersBody {
        let member = |(replica, address): (u64, &&str)| {
            let address = address.parse().unwrap();
            MemberBody { replica, rest: Some(address), rpc: None, log: address }
        };
        MembersBody { epoch, leader: None, members: (1..).zip(addresses).map(member).collect() }
    }

    #[test]
    fn what_is_learned_is_of_the_latest_epoch_and_within_reach() {
        let rest = Rest::new(&ClientConfig::new(["http://10.0.0.1:1"]), 0).unwrap();
        rest.learn(&told(3, &["10.0.0.4:1", "127.0.0.1:1", "0.0.0.0:1", "10.0.0.1:1"]));
        assert_eq!(rest.endpoints()[..], ["http://10.0.0.1:1", "http://10.0.0.4:1"]);
        rest.pass_over();
        rest.learn(&told(2, &["10.0.0.2:1"]));
        assert_eq!(rest.endpoints()[1..], ["http://10.0.0.4:1"], "a replica that is behind says nothing new");
        rest.learn(&told(4, &["10.0.0.5:1", "10.0.0.4:1"]));
        assert_eq!(rest.endpoints()[1..], ["http://10.0.0.5:1", "http://10.0.0.4:1"]);
        assert_eq!(rest.preferred.load(Ordering::Relaxed), 2, "the one that answered last is still preferred");
        let near = Rest::new(&ClientConfig::new(["http://127.0.0.1:1"]), 0).unwrap();
        near.learn(&told(1, &["127.0.0.1:2"]));
        assert_eq!(near.endpoints().len(), 2);
    }
}
