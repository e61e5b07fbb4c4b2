//! The parts of a request: query parameters, numbers in paths, headers and bodies.

use super::problem::{self, ApiProblem};
use bytes::{Buf, Bytes, BytesMut};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::key::hex_byte;
use futures::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use std::pin::pin;
use std::time::Duration;
use warp::http::header::HeaderMap;

/// The maximum size of a rejected body that is read before the connection is closed, in bytes.
const DISCARDED_BYTES: usize = 16 << 20;
/// The time limit for a body to arrive, in milliseconds.
const BODY_MS: u64 = 10_000;

/// The parameters of a query, decoded. A parameter that is not `accepted` is a problem.
pub(super) fn parameters(query: &str, accepted: &[&str]) -> Result<Vec<(String, String)>, ApiProblem> {
    let mut found = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if !accepted.contains(&name) {
            let list = if accepted.is_empty() { "none".to_string() } else { accepted.join(", ") };
            return Err(ApiProblem::bad_request(format!("unknown parameter {name:?}; accepted: {list}")));
        }
        found.push((name.to_string(), percent_decode(value)?));
    }
    Ok(found)
}

/// Whether `If-None-Match` has this entity tag. The comparison is weak, as RFC 9110 requires there:
/// `W/"1"` equals `"1"`, and `*` matches every tag.
pub(super) fn matches_tag(known: &str, tag: &str) -> bool {
    known.split(',').map(str::trim).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// Decodes percent-encoding. `+` is a plus, as in RFC 3986.
pub(super) fn percent_decode(text: &str) -> Result<String, ApiProblem> {
    let wrong = || ApiProblem::bad_request(format!("{text:?} is not percent-encoded UTF-8"));
    if !text.contains('%') {
        return Ok(text.to_string());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let (digits, tail) = tail.split_first_chunk::<2>().ok_or_else(wrong)?;
            bytes.push(hex_byte(*digits).ok_or_else(wrong)?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// The number of `what` in a path.
pub(super) fn number(text: &str, what: &str) -> Result<u64, ApiProblem> {
    text.parse().map_err(|_| ApiProblem::bad_request(format!("{text:?} is not the number of a {what}")))
}

/// The number of a shard in a path.
pub(super) fn shard_number(text: &str) -> Result<ShardId, ApiProblem> {
    text.parse().map_err(|_| ApiProblem::bad_request(format!("{text:?} is not the number of a shard")))
}

/// Parses a JSON body.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiProblem> {
    serde_json::from_slice(body).map_err(|error| ApiProblem::bad_request(format!("the body: {error}")))
}

/// Parses a JSON body. A blank body is an empty object.
pub(super) fn parse_or_empty<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiProblem> {
    parse(if body.iter().all(u8::is_ascii_whitespace) { b"{}" } else { body })
}

/// Parses an object with these fields and no others. For types that ignore unknown fields, so that
/// other programs can read newer answers.
pub(super) fn parse_strictly<T: DeserializeOwned>(body: &[u8], fields: &[&str]) -> Result<T, ApiProblem> {
    let object: serde_json::Map<String, serde_json::Value> = parse(body)?;
    if let Some(unknown) = object.keys().find(|key| !fields.contains(&key.as_str())) {
        let list = fields.join(", ");
        return Err(ApiProblem::bad_request(format!("the body: unknown field {unknown:?}; accepted: {list}")));
    }
    serde_json::from_value(object.into()).map_err(|error| ApiProblem::bad_request(format!("the body: {error}")))
}

/// The text of a header, if the request has it. A header that occurs twice is a problem.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiProblem> {
    let mut found = headers.get_all(name).iter();
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let wrong = |_| ApiProblem::bad_request(format!("the header {name} is not printable ASCII"));
            value.to_str().map(|text| Some(text.trim())).map_err(wrong)
        }
        _ => Err(ApiProblem::bad_request(format!("the header {name} is there more than once"))),
    }
}

/// Reads a body of at most `limit_bytes`.
pub(super) async fn read_body<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit_bytes: usize,
) -> Result<Bytes, ApiProblem> {
    let too_large = || problem::BODY_TOO_LARGE.because(format!("at most {limit_bytes} bytes are taken"));
    let announced = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut too_long = announced.is_some_and(|bytes| bytes > limit_bytes as u64);
    let read = async {
        let mut body = pin!(body);
        let mut whole = BytesMut::new();
        let mut discarded_bytes = 0;
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(|error| ApiProblem::bad_request(format!("the body broke off: {error}")))?;
            too_long |= whole.len() + chunk.remaining() > limit_bytes;
            if too_long {
                // A connection that is closed with unread bytes is reset, and the reset can
                // overtake the answer: a client that still sends would see a broken connection, not
                // the problem.
                discarded_bytes += chunk.remaining();
                if discarded_bytes > DISCARDED_BYTES {
                    return Err(too_large());
                }
                continue;
            }
            while chunk.has_remaining() {
                let length = chunk.chunk().len();
                whole.extend_from_slice(chunk.chunk());
                chunk.advance(length);
            }
        }
        if too_long { Err(too_large()) } else { Ok(whole.freeze()) }
    };
    match evenkeel_host::timeout(Duration::from_millis(BODY_MS), read).await {
        Ok(result) => result,
        Err(_) => Err(problem::BODY_TOO_SLOW.because("the body did not come in time")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn percent_encoding_is_decoded_or_refused() {
        assert_eq!(percent_decode("%22a%20b%22").unwrap(), "\"a b\"");
        assert_eq!(percent_decode("a+b").unwrap(), "a+b");
        for wrong in ["%", "%2", "%zz", "%ff", "%+1", "%-1"] {
            assert!(percent_decode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tags_are_compared_weakly_where_nothing_is_changed() {
        for same in ["\"1.5\"", "W/\"1.5\"", "*", "\"1.4\", W/\"1.5\""] {
            assert!(matches_tag(same, "\"1.5\""), "{same}");
        }
        for other in ["\"1.4\"", "1.5", "W/1.5", "w/\"1.5\"", ""] {
            assert!(!matches_tag(other, "\"1.5\""), "{other}");
        }
    }

    #[test]
    fn unknown_parameters_are_refused() {
        assert_eq!(parameters("key=1", &["key"]).unwrap(), [("key".to_string(), "1".to_string())]);
        assert!(parameters("kye=1", &["key"]).is_err());
    }
}
