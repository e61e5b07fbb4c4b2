//! Responses with a body, and entity tags.

use crate::json::to_json;
use bytes::Bytes;
use serde::Serialize;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, ETAG, HeaderValue};
use warp::reply::Response;

/// 200 with a JSON body.
pub(super) fn json(body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A status with a JSON body.
pub(super) fn json_with(status: StatusCode, body: &impl Serialize) -> Response {
    let mut response = json(to_json(body));
    *response.status_mut() = status;
    response
}

/// 200 with a plain text.
pub(super) fn text(body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// 304, without a body.
pub(super) fn not_modified() -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// The response with an entity tag. `tag` has its quotes.
pub(super) fn tagged(mut response: Response, tag: &str) -> Response {
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}
