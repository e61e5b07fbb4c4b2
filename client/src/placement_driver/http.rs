//! The placement driver's API over HTTP.

use super::api::{Api, ApiError, Events};
use super::endpoints::Endpoints;
use super::sse::{Event, EventParser};
use crate::config::ClientConfig;
use bytes::Bytes;
use evenkeel_protocol::api::{CreateTableBody, MembersBody, Problem, RoutesBody, SchemaChangeBody, SchemaChangesBody};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The largest body that is read, in bytes.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The placement driver's API over HTTP, at several endpoints.
#[derive(Debug)]
pub struct HttpApi {
    http: reqwest::Client,
    endpoints: Endpoints,
    timeout: Duration,
    watch_silence: Duration,
}

/// The result at one endpoint.
enum EndpointResult {
    Success(Response),
    Refused(Problem),
    Failed { reason: String, maybe_done: bool },
}

impl HttpApi {
    /// An API at the endpoints of `config`. Number `first` is asked first, so that clients spread
    /// over them.
    ///
    /// # Errors
    /// One sentence, if the HTTP library cannot be initialised.
    pub fn new(config: &ClientConfig, first: usize) -> Result<HttpApi, String> {
        let http = reqwest::Client::builder()
            // Endpoints are addresses of the cluster, to which the environment's proxy settings do
            // not apply.
            .no_proxy()
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .build()
            .map_err(|e| format!("no HTTP client can be made: {e}"))?;
        let endpoints = Endpoints::new(&config.endpoints, first);
        let timeout = Duration::from_millis(config.rest_timeout_ms);
        let watch_silence = Duration::from_millis(config.watch_silence_ms);
        Ok(HttpApi { http, endpoints, timeout, watch_silence })
    }

    /// Sends a request to one endpoint after the other until one answers it.
    async fn send(&self, request: impl Fn(&reqwest::Client, &str) -> RequestBuilder) -> Result<Response, ApiError> {
        let endpoints = self.endpoints.all();
        let first = self.endpoints.first();
        let mut reasons = Vec::new();
        let mut maybe_done = false;
        for turn in 0..endpoints.len() {
            let place = (first + turn) % endpoints.len();
            let base = &endpoints[place];
            match attempt(request(&self.http, base)).await {
                EndpointResult::Success(response) => {
                    if turn > 0 {
                        self.endpoints.prefer(place);
                    }
                    return Ok(response);
                }
                EndpointResult::Refused(problem) => return Err(ApiError::Refused(problem)),
                EndpointResult::Failed { reason, maybe_done: maybe } => {
                    maybe_done |= maybe;
                    reasons.push(format!("{base}: {reason}"));
                }
            }
        }
        Err(ApiError::Unreachable { reason: reasons.join("; "), maybe_done })
    }

    async fn fetch_routes(&self) -> Result<RoutesBody, ApiError> {
        let response = self.send(|http, base| http.get(format!("{base}/v1/routes")).timeout(self.timeout)).await?;
        decode(response).await
    }

    async fn open_watch(&self, last_event_id: &str) -> Result<Box<dyn Events>, ApiError> {
        let request = |http: &reqwest::Client, base: &str| {
            http.get(format!("{base}/v1/routes/watch"))
                .header("accept", "text/event-stream")
                .header("last-event-id", last_event_id)
        };
        match tokio::time::timeout(self.timeout, self.send(request)).await {
            Ok(response) => Ok(Box::new(Watch::new(response?, self.watch_silence))),
            Err(_) => Err(ApiError::Unreachable { reason: "no watch was opened in time".into(), maybe_done: false }),
        }
    }
}

impl Api for HttpApi {
    fn routes(&self) -> BoxFuture<'_, Result<RoutesBody, ApiError>> {
        self.fetch_routes().boxed()
    }

    fn watch<'a>(&'a self, last_event_id: &'a str) -> BoxFuture<'a, Result<Box<dyn Events>, ApiError>> {
        self.open_watch(last_event_id).boxed()
    }

    /// Followers redirect to the leader; the HTTP library follows.
    fn create_table<'a>(&'a self, body: &'a CreateTableBody, timeout: Duration) -> BoxFuture<'a, Result<(), ApiError>> {
        let request = move |http: &reqwest::Client, base: &str| {
            http.post(format!("{base}/v1/tables")).json(body).timeout(timeout)
        };
        async move { self.send(request).await.map(drop) }.boxed()
    }

    fn schema_after(&self, version: u64) -> BoxFuture<'_, Result<SchemaChangesBody, ApiError>> {
        let request = move |http: &reqwest::Client, base: &str| {
            http.get(format!("{base}/v1/schema?after={version}")).timeout(self.timeout)
        };
        async move { decode(self.send(request).await?).await }.boxed()
    }

    /// Followers redirect to the leader; the HTTP library follows.
    fn change_schema<'a>(
        &'a self,
        body: &'a SchemaChangeBody,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<SchemaChangesBody, ApiError>> {
        let request = move |http: &reqwest::Client, base: &str| {
            http.post(format!("{base}/v1/schema")).json(body).timeout(timeout)
        };
        async move { decode(self.send(request).await?).await }.boxed()
    }

    fn learn(&self, members: &MembersBody) {
        self.endpoints.learn(members);
    }

    fn pass_over(&self) {
        self.endpoints.pass_over();
    }

    fn endpoints(&self) -> Arc<[String]> {
        self.endpoints.all()
    }
}

/// A watch that is being read.
struct Watch {
    chunks: BoxStream<'static, reqwest::Result<Bytes>>,
    parser: EventParser,
    /// Complete events that are not yet taken.
    events: VecDeque<Event>,
    silence: Duration,
}

impl Watch {
    fn new(response: Response, silence: Duration) -> Watch {
        let chunks = response.bytes_stream().boxed();
        Watch { chunks, parser: EventParser::default(), events: VecDeque::new(), silence }
    }

    async fn next_event(&mut self) -> Result<Event, String> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let chunk = match tokio::time::timeout(self.silence, self.chunks.next()).await {
                Err(_) => return Err(format!("nothing came for {} ms", self.silence.as_millis())),
                Ok(None) => return Err("the placement driver closed it".to_string()),
                Ok(Some(Err(error))) => return Err(error.to_string()),
                Ok(Some(Ok(chunk))) => chunk,
            };
            self.events.extend(self.parser.push(&chunk).map_err(|error| error.to_string())?);
        }
    }
}

impl Events for Watch {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, String>> {
        self.next_event().boxed()
    }
}

async fn attempt(request: RequestBuilder) -> EndpointResult {
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return EndpointResult::Failed { maybe_done: !error.is_connect(), reason: chain(&error) },
    };
    let status = response.status();
    if status.is_success() {
        return EndpointResult::Success(response);
    }
    let problem: Option<Problem> = decode(response).await.ok();
    // The replica has failed or knows no leader: another replica may answer. 503 promises that
    // nothing was done.
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status.is_redirection() {
        let reason = problem.map_or_else(|| status.to_string(), |p| p.detail);
        return EndpointResult::Failed { reason, maybe_done: status != StatusCode::SERVICE_UNAVAILABLE };
    }
    EndpointResult::Refused(problem.unwrap_or_else(|| Problem {
        kind: "about:blank".into(),
        code: String::new(),
        title: status.to_string(),
        status: status.as_u16(),
        detail: format!("the placement driver answered {status}"),
    }))
}

/// An error with its causes, in which reqwest keeps the details.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn decode<T: DeserializeOwned>(response: Response) -> Result<T, ApiError> {
    let failed = |reason: String| ApiError::Unreachable { reason, maybe_done: true };
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
