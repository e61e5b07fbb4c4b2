//! The placement driver's REST interface, from the caller's side.
//!
//! Any replica answers reads, and sends writes on to its leader by a redirect that is followed here. A replica that cannot be
//! reached is passed over for the next, and while there is no leader all are asked again. Nothing is retried after it may have
//! happened: what to do about a lost answer is the caller's to decide.

use crate::roles::with_causes;
use evenkeel_protocol::api::Problem;
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long one request may take. Creating a table waits for its shard.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one replica has to answer a question before another is asked; the last of them has as long as any request.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an election may take. Nothing is done meanwhile, so asking again is safe.
const ELECTION: Duration = Duration::from_secs(10);
/// How often is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// The code of the one refusal that says that nothing was done and that another replica may know better.
const NO_LEADER: &str = "no-leader";
/// How long reaching a replica may take; they are near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The placement driver refused, and says why.
    #[error("{} ({}, HTTP {})", .0.detail, .0.code, .0.status)]
    Problem(Problem),
    /// No replica could be reached.
    #[error("no placement driver answers at {urls}: {last}")]
    Unreachable {
        /// Where it was tried.
        urls: String,
        /// The last error.
        last: String,
    },
    /// An answer came that is not as agreed.
    #[error("{url} gave an answer that cannot be understood: {reason}")]
    Malformed {
        /// Who.
        url: String,
        /// Why.
        reason: String,
    },
}

impl RestError {
    /// Whether the same may work a little later: nobody could be reached, or there was no leader.
    pub fn is_temporary(&self) -> bool {
        match self {
            RestError::Unreachable { .. } => true,
            RestError::Problem(problem) => matches!(problem.status, 429 | 502..=504),
            RestError::Malformed { .. } => false,
        }
    }

    /// The problem's stable code; empty if it is no problem of the placement driver's.
    pub fn code(&self) -> &str {
        match self {
            RestError::Problem(problem) => &problem.code,
            _ => "",
        }
    }
}

/// One request, before it is known which replica gets it.
#[derive(Debug, Clone)]
pub struct Order {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
    timeout: Option<Duration>,
}

impl Order {
    /// A request without a body. `path` begins with a slash and is encoded.
    pub fn new(method: Method, path: impl Into<String>) -> Order {
        Order { method, path: path.into(), headers: Vec::new(), body: None, timeout: None }
    }

    /// With this header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Order {
        self.headers.push((name, value.into()));
        self
    }

    /// With this body, of this media type.
    pub fn body(mut self, body: Vec<u8>, content_type: Option<&str>) -> Order {
        self.body = Some(body);
        match content_type {
            Some(content_type) => self.header("content-type", content_type),
            None => self,
        }
    }

    /// May take this long, its answer included.
    pub fn timeout(mut self, timeout: Duration) -> Order {
        self.timeout = Some(timeout);
        self
    }
}

/// A handle on the placement driver; cheap to clone.
#[derive(Debug, Clone)]
pub struct Rest {
    urls: Arc<[String]>,
    http: reqwest::Client,
    /// The replica that answered last: asked first next time.
    favourite: Arc<AtomicUsize>,
}

impl Rest {
    /// A handle on the replicas at these URLs (`http://ADDRESS`).
    pub fn new(urls: impl IntoIterator<Item = String>) -> Rest {
        let http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT).no_proxy();
        let urls: Vec<String> = urls.into_iter().map(|url| url.trim_end_matches('/').to_string()).collect();
        Rest { urls: urls.into(), http: http.build().unwrap_or_default(), favourite: Arc::default() }
    }

    /// The replicas' URLs.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RestError> {
        self.request(Method::GET, path, None).await
    }

    /// `POST path` with a JSON body.
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, RestError> {
        let malformed =
            |e: serde_json::Error| RestError::Malformed { url: "this process".into(), reason: e.to_string() };
        self.request(Method::POST, path, Some(serde_json::to_vec(body).map_err(malformed)?)).await
    }

    /// `DELETE path`.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, RestError> {
        self.request(Method::DELETE, path, None).await
    }

    /// Asks one replica whether it is ready; the error says what it said.
    pub async fn is_ready(&self, url: &str) -> Result<(), String> {
        let response = self.http.get(format!("{url}/readyz")).send().await.map_err(|e| with_causes(&e))?;
        if response.status().is_success() { Ok(()) } else { Err(format!("/readyz says {}", response.status())) }
    }

    /// The next request begins at another replica.
    pub fn pass_over(&self) {
        self.favourite.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends a request and gives the answer unread, if it is a good one.
    pub async fn send(&self, order: &Order) -> Result<Response, RestError> {
        let (url, response) = self.exchange(order).await?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(url, response).await) }
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, RestError> {
        let mut order = Order::new(method, path);
        if let Some(body) = body {
            order = order.body(body, Some("application/json"));
        }
        let (url, response) = self.exchange(&order).await?;
        decode(url, response).await
    }

    async fn exchange(&self, order: &Order) -> Result<(String, Response), RestError> {
        let deadline = Instant::now() + order.timeout.unwrap_or(ELECTION).min(ELECTION);
        loop {
            match self.round(order).await {
                Err(error) if error.code() == NO_LEADER && Instant::now() < deadline => {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                other => return other,
            }
        }
    }

    /// Asks the replicas one after the other until one gives an answer, whatever it is.
    async fn round(&self, order: &Order) -> Result<(String, Response), RestError> {
        let (mut last, mut leaderless) = (None, None);
        let first = self.favourite.load(Ordering::Relaxed);
        for step in 0..self.urls.len() {
            let index = (first + step) % self.urls.len();
            let url = format!("{}{}", self.urls[index], order.path);
            let mut request = self.http.request(order.method.clone(), &url);
            request = order.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
            if let Some(body) = &order.body {
                request = request.body(body.clone());
            }
            if let Some(timeout) = order.timeout {
                request = request.timeout(timeout);
            } else if order.method == Method::GET && step + 1 < self.urls.len() {
                request = request.timeout(PATIENCE);
            }
            match request.send().await {
                Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    let refused = refusal(url, response).await;
                    if refused.code() != NO_LEADER {
                        self.favourite.store(index, Ordering::Relaxed);
                        return Err(refused);
                    }
                    leaderless = Some(refused);
                }
                Ok(response) => {
                    self.favourite.store(index, Ordering::Relaxed);
                    return Ok((url, response));
                }
                // The request may have arrived: only reading may be asked of another.
                Err(error) if order.method != Method::GET && !error.is_connect() => {
                    return Err(RestError::Unreachable { urls: url, last: with_causes(&error) });
                }
                Err(error) => last = Some(with_causes(&error)),
            }
        }
        if let Some(refused) = leaderless {
            return Err(refused);
        }
        let last = last.unwrap_or_else(|| "no URL is given".into());
        Err(RestError::Unreachable { urls: self.urls.join(", "), last })
    }
}

async fn decode<T: DeserializeOwned>(url: String, response: Response) -> Result<T, RestError> {
    let status = response.status();
    let body = match response.bytes().await {
        Ok(body) => body,
        Err(error) => return Err(RestError::Unreachable { urls: url, last: with_causes(&error) }),
    };
    if status.is_success() {
        // Nothing to say is JSON's null.
        let json: &[u8] = if body.is_empty() { b"null" } else { &body };
        return serde_json::from_slice(json).map_err(|e| RestError::Malformed { url, reason: e.to_string() });
    }
    Err(problem(url, status, &body))
}

async fn refusal(url: String, response: Response) -> RestError {
    let status = response.status();
    match response.bytes().await {
        Ok(body) => problem(url, status, &body),
        Err(error) => RestError::Unreachable { urls: url, last: with_causes(&error) },
    }
}

fn problem(url: String, status: StatusCode, body: &[u8]) -> RestError {
    match serde_json::from_slice(body) {
        Ok(problem) => RestError::Problem(problem),
        Err(_) => {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            RestError::Malformed { url, reason: format!("{status}: {text}") }
        }
    }
}

/// A text as part of a URL's query.
pub fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}
