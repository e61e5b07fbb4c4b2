//! `GET /v1/routes` and `GET /v1/routes/{table}?key=`: the routing table, whole or since a version,
//! and the route of one key.

use super::problem::{self, ApiProblem};
use super::request::{matches_tag, parameters, percent_decode};
use super::response::{json, not_modified, tagged};
use crate::json::to_json;
use crate::replica::ReplicaHandles;
use crate::routing_view::{RoutingView, ServedTable};
use evenkeel_protocol::Key;
use evenkeel_protocol::value::key_from_json;
use warp::reply::Response;

/// `GET /v1/routes/{table}?key=`.
pub(super) fn lookup(handles: &ReplicaHandles, table: &str, query: &str) -> Result<Response, ApiProblem> {
    let view = handles.view();
    let table = find_table(&view, table)?;
    let mut key = None;
    for (_, found) in parameters(query, &["key"])? {
        key = Some(found);
    }
    let key = parse_key(table, &key.ok_or_else(|| ApiProblem::bad_request("the parameter key is missing"))?)?;
    let served = table
        .lookup(&key)
        .ok_or_else(|| problem::NO_ROUTE.because("no range is known for this key; try again in a second"))?;
    Ok(json(view.lookup_json(served)))
}

fn find_table<'a>(view: &'a RoutingView, name: &str) -> Result<&'a ServedTable, ApiProblem> {
    if let Some(table) = view.table(name) {
        return Ok(table);
    }
    let decoded = percent_decode(name)?;
    if decoded.contains('/') && !name.contains('%') {
        return Err(ApiProblem::unknown_path(&format!("/v1/routes/{name}")));
    }
    view.table(&decoded).map(AsRef::as_ref).ok_or_else(|| ApiProblem::unknown_table(&decoded))
}

/// Parses a key in JSON: an array of the key columns' values, or the value itself if there is one
/// column.
fn parse_key(table: &ServedTable, text: &str) -> Result<Key, ApiProblem> {
    let columns = match serde_json::from_str(text) {
        Ok(serde_json::Value::Array(columns)) => columns,
        Ok(single) => vec![single],
        Err(_) => {
            let hint = "a text, uuid, bytea or timestamptz key is a JSON string, in double quotes";
            return Err(ApiProblem::bad_key(format!("{text:?} is not JSON; {hint}: key={}", quoted(text))));
        }
    };
    key_from_json(&table.codec, &columns).map_err(|error| {
        let names: Vec<String> =
            table.schema.key_columns().map(|column| format!("{} {}", column.name, column.type_name)).collect();
        ApiProblem::bad_key(format!("{error}; the key of {} is ({})", table.schema.name, names.join(", ")))
    })
}

fn quoted(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    serde_json::Value::String(short).to_string()
}

/// `GET /v1/routes`.
pub(super) fn table(handles: &ReplicaHandles, query: &str, known: Option<&str>) -> Result<Response, ApiProblem> {
    let view = handles.view();
    let (mut since, mut only) = (None, None);
    for (name, found) in parameters(query, &["since", "table"])? {
        if name == "since" {
            since = Some(found.parse().map_err(ApiProblem::bad_request)?);
        } else {
            only = Some(view.table(&found).ok_or_else(|| ApiProblem::unknown_table(&found))?);
        }
    }
    let tag = format!("\"{}\"", view.version_text);
    let unchanged = known.is_some_and(|known| matches_tag(known, &tag));
    let response = match (unchanged, since, only) {
        (true, ..) => not_modified(),
        (_, Some(since), Some(table)) => json(to_json(&view.since_body(since, table))),
        (_, None, Some(table)) => json(to_json(&view.complete_body(Some(table)))),
        (_, Some(since), None) => json(view.since_json(since)),
        _ => json(view.complete_json()),
    };
    Ok(tagged(response, &tag))
}
