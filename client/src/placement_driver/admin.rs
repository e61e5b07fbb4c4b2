//! The placement driver's REST interface for administrators and for programs that run a cluster.
//!
//! [`AdminClient`] owns the HTTP connections, the URLs of the replicas, and the number of the
//! replica that answered last. Any replica answers reads and redirects writes to its leader; the
//! redirect is followed here. A replica that cannot be reached is passed over for the next one.
//! While there is no leader, all replicas are asked again until an election must be over.
//!
//! It promises that no request is repeated after it may have taken effect: the caller decides what
//! a lost answer means.
//!
//! Not done: it does not learn the addresses of replicas that join later. The routing client does.

use super::causes::with_causes;
use evenkeel_protocol::api::Problem;
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long one request may take. Creating a table waits for its shard.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one replica may take to answer a read before the next is asked. The last one has
/// [`REQUEST_TIMEOUT`].
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an election may take. Nothing takes effect meanwhile, so a request may be repeated.
const ELECTION: Duration = Duration::from_secs(10);
/// The pause between two rounds of requests during an election.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// The code of the refusal that says: the request had no effect, and another replica may know the
/// leader.
const NO_LEADER: &str = "no-leader";
/// How long connecting to a replica may take. Replicas are near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The placement driver refused the request.
    #[error("{} ({}, HTTP {})", .0.detail, .0.code, .0.status)]
    Problem(Problem),
    /// No replica could be reached.
    #[error("no placement driver answers at {urls}: {last}")]
    Unreachable {
        /// The URLs that were tried.
        urls: String,
        /// The last error.
        last: String,
    },
    /// The answer does not follow the protocol.
    #[error("{url} gave an answer that cannot be understood: {reason}")]
    Malformed {
        /// The URL that was asked.
        url: String,
        /// The reason.
        reason: String,
    },
}

impl AdminError {
    /// Whether the same request may succeed later: no replica was reached, or there was no leader.
    pub fn is_temporary(&self) -> bool {
        match self {
            AdminError::Unreachable { .. } => true,
            AdminError::Problem(problem) => matches!(problem.status, 429 | 502..=504),
            AdminError::Malformed { .. } => false,
        }
    }

    /// The stable code of the placement driver's refusal; empty for other errors.
    pub fn code(&self) -> &str {
        match self {
            AdminError::Problem(problem) => &problem.code,
            _ => "",
        }
    }
}

/// One request, for whichever replica takes it.
#[derive(Debug, Clone)]
pub struct AdminRequest {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
    timeout: Option<Duration>,
}

impl AdminRequest {
    /// A request without a body. `path` begins with a slash and is encoded.
    pub fn new(method: Method, path: impl Into<String>) -> AdminRequest {
        AdminRequest { method, path: path.into(), headers: Vec::new(), body: None, timeout: None }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> AdminRequest {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets the body and its media type.
    pub fn body(mut self, body: Vec<u8>, content_type: Option<&str>) -> AdminRequest {
        self.body = Some(body);
        match content_type {
            Some(content_type) => self.header("content-type", content_type),
            None => self,
        }
    }

    /// Sets how long the request may take, answer included.
    pub fn timeout(mut self, timeout: Duration) -> AdminRequest {
        self.timeout = Some(timeout);
        self
    }
}

/// A client of the placement driver. Clones are cheap and share the connections.
#[derive(Debug, Clone)]
pub struct AdminClient {
    urls: Arc<[String]>,
    http: reqwest::Client,
    /// The replica that answered last. The next request asks it first.
    preferred: Arc<AtomicUsize>,
}

impl AdminClient {
    /// A client of the replicas at these URLs (`http://ADDRESS`).
    pub fn new(urls: impl IntoIterator<Item = String>) -> AdminClient {
        let http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT).no_proxy();
        let urls: Vec<String> = urls.into_iter().map(|url| url.trim_end_matches('/').to_string()).collect();
        AdminClient { urls: urls.into(), http: http.build().unwrap_or_default(), preferred: Arc::default() }
    }

    /// The replicas' URLs.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        self.request(Method::GET, path, None).await
    }

    /// `POST path` with a JSON body.
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, AdminError> {
        let malformed =
            |e: serde_json::Error| AdminError::Malformed { url: "this process".into(), reason: e.to_string() };
        self.request(Method::POST, path, Some(serde_json::to_vec(body).map_err(malformed)?)).await
    }

    /// `DELETE path`.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        self.request(Method::DELETE, path, None).await
    }

    /// Asks the replica at `url` whether it is ready. The error is its answer.
    pub async fn is_ready(&self, url: &str) -> Result<(), String> {
        let response = self.http.get(format!("{url}/readyz")).send().await.map_err(|e| with_causes(&e))?;
        if response.status().is_success() { Ok(()) } else { Err(format!("/readyz says {}", response.status())) }
    }

    /// Makes the next request begin at another replica.
    pub fn pass_over(&self) {
        self.preferred.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends a request and returns the successful answer with its body unread.
    pub async fn send(&self, request: &AdminRequest) -> Result<Response, AdminError> {
        let (url, response) = self.exchange(request).await?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(url, response).await) }
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, AdminError> {
        let mut request = AdminRequest::new(method, path);
        if let Some(body) = body {
            request = request.body(body, Some("application/json"));
        }
        let (url, response) = self.exchange(&request).await?;
        decode(url, response).await
    }

    async fn exchange(&self, request: &AdminRequest) -> Result<(String, Response), AdminError> {
        let deadline = evenkeel_host::now() + request.timeout.unwrap_or(ELECTION).min(ELECTION);
        loop {
            match self.round(request).await {
                Err(error) if error.code() == NO_LEADER && evenkeel_host::now() < deadline => {
                    evenkeel_host::sleep(ASK_AGAIN).await;
                }
                other => return other,
            }
        }
    }

    /// Asks the replicas in turn until one answers, with success or refusal.
    async fn round(&self, request: &AdminRequest) -> Result<(String, Response), AdminError> {
        let (mut last, mut leaderless) = (None, None);
        let first = self.preferred.load(Ordering::Relaxed);
        for step in 0..self.urls.len() {
            let index = (first + step) % self.urls.len();
            let url = format!("{}{}", self.urls[index], request.path);
            let mut builder = self.http.request(request.method.clone(), &url);
            builder = request.headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, value));
            if let Some(body) = &request.body {
                builder = builder.body(body.clone());
            }
            if let Some(timeout) = request.timeout {
                builder = builder.timeout(timeout);
            } else if request.method == Method::GET && step + 1 < self.urls.len() {
                builder = builder.timeout(PATIENCE);
            }
            match builder.send().await {
                Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    let refused = refusal(url, response).await;
                    if refused.code() != NO_LEADER {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Err(refused);
                    }
                    leaderless = Some(refused);
                }
                Ok(response) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((url, response));
                }
                // The request may have arrived, and only reads may be repeated.
                Err(error) if request.method != Method::GET && !error.is_connect() => {
                    return Err(AdminError::Unreachable { urls: url, last: with_causes(&error) });
                }
                Err(error) => last = Some(with_causes(&error)),
            }
        }
        if let Some(refused) = leaderless {
            return Err(refused);
        }
        let last = last.unwrap_or_else(|| "no URL is given".into());
        Err(AdminError::Unreachable { urls: self.urls.join(", "), last })
    }
}

async fn decode<T: DeserializeOwned>(url: String, response: Response) -> Result<T, AdminError> {
    let status = response.status();
    let body = match response.bytes().await {
        Ok(body) => body,
        Err(error) => return Err(AdminError::Unreachable { urls: url, last: with_causes(&error) }),
    };
    if status.is_success() {
        // An empty body stands for JSON's null.
        let json: &[u8] = if body.is_empty() { b"null" } else { &body };
        return serde_json::from_slice(json).map_err(|e| AdminError::Malformed { url, reason: e.to_string() });
    }
    Err(problem(url, status, &body))
}

async fn refusal(url: String, response: Response) -> AdminError {
    let status = response.status();
    match response.bytes().await {
        Ok(body) => problem(url, status, &body),
        Err(error) => AdminError::Unreachable { urls: url, last: with_causes(&error) },
    }
}

fn problem(url: String, status: StatusCode, body: &[u8]) -> AdminError {
    match serde_json::from_slice(body) {
        Ok(problem) => AdminError::Problem(problem),
        Err(_) => {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            AdminError::Malformed { url, reason: format!("{status}: {text}") }
        }
    }
}

/// Encodes a text for use in a URL.
pub fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

/// Checks and trims a URL of the placement driver's REST interface. The error says which URLs are
/// accepted.
pub fn parse_url(text: &str) -> Result<String, String> {
    let text = text.trim();
    let good = reqwest::Url::parse(text).is_ok_and(|url| url.scheme() == "http" && url.has_host());
    // The parser repairs a scheme without slashes; the HTTP client would not.
    let whole = good && text.starts_with("http://") && !text.contains(['?', '#']);
    if whole { Ok(text.to_string()) } else { Err("expected http://HOST:PORT".into()) }
}

#[cfg(test)]
mod tests {
    use super::parse_url;

    #[test]
    fn a_url_is_accepted_if_it_can_be_asked() {
        for good in ["http://127.0.0.1:7101", " http://[::1]:7101/ ", "http://driver.example:80/evenkeel"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in [
            "localhost:7101",
            "127.0.0.1:7101",
            "https://127.0.0.1:7101",
            "http://",
            "http:/a",
            "http://a:99999",
            "http://a/?b",
            "",
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }
}
