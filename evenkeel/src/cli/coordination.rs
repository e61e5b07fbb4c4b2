//! `evenkeel kv get|put|delete|list|watch`: the coordination store from the command line.

use crate::cli::admin_flags::{AdminFlags, OutputFormat};
use crate::display::table;
use crate::error::CommandError;
use clap::Subcommand;
use evenkeel_client::admin::{AdminClient, AdminRequest, percent_encode};
use evenkeel_protocol::coordination::{
    KvEntryBody, KvEventBody, KvListBody, KvValue, KvWrittenBody, MAX_LIST, MAX_VALUE_BYTES,
};
use reqwest::{Method, Response};
use serde::Serialize;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

/// The pause before a watch that ended is opened again, in milliseconds.
const WATCH_AGAIN_MS: u64 = 200;
/// A watch has no deadline of its own: one year.
const WATCH_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);
/// The longest accepted event of a watch, in bytes: a value in JSON with every byte escaped.
const MAX_EVENT_BYTES: usize = 8 * MAX_VALUE_BYTES;

/// Commands of the coordination store.
#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Print a key's value as it is; with --format json: with its type and its revision
    Get {
        /// The key
        key: String,
        /// Ask any replica for what it has, which may be a little old
        #[arg(long)]
        sequential: bool,
    },
    /// Give a key a value
    Put {
        /// The key
        key: String,
        /// The value; absent: what standard input has
        value: Option<String>,
        /// The value is this file's content
        #[arg(long, value_name = "FILE", conflicts_with = "value")]
        file: Option<PathBuf>,
        /// Its media type
        #[arg(long, value_name = "TYPE")]
        content_type: Option<String>,
        /// Only if the key was last written by this revision
        #[arg(long, value_name = "REVISION", conflicts_with = "create")]
        if_match: Option<u64>,
        /// Only if the key does not exist
        #[arg(long)]
        create: bool,
        /// Repeating the command with the same text here takes effect once
        #[arg(long, value_name = "TEXT")]
        idempotency_key: Option<String>,
    },
    /// Remove a key
    Delete {
        /// The key
        key: String,
        /// Only if the key was last written by this revision
        #[arg(long, value_name = "REVISION")]
        if_match: Option<u64>,
    },
    /// List the keys that begin with a prefix
    List {
        /// The prefix [default: every key]
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
    },
    /// Print changes as they happen, until Ctrl-C
    Watch {
        /// Only of keys that begin so [default: every key]
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// Begin after this revision [default: from now on]
        #[arg(long, value_name = "REVISION")]
        since: Option<u64>,
    },
}

/// Runs one command.
pub async fn run(flags: &AdminFlags, command: KvCommand) -> Result<(), CommandError> {
    let admin = flags.admin();
    match command {
        KvCommand::Get { key, sequential } => {
            let query = if sequential { "?consistency=sequential" } else { "" };
            let request = AdminRequest::new(Method::GET, format!("{}{query}", path(&key)));
            let response = admin.send(&request).await.map_err(CommandError::failed)?;
            got(flags, key, response).await
        }
        KvCommand::Put { key, value, file, content_type, if_match, create, idempotency_key } => {
            let value = read_value(value, file)?;
            let mut request = AdminRequest::new(Method::PUT, path(&key)).body(value, content_type.as_deref());
            request = if_match.map(tag).into_iter().fold(request, |request, tag| request.header("if-match", tag));
            if create {
                request = request.header("if-none-match", "*");
            }
            if let Some(id) = idempotency_key {
                request = request.header("idempotency-key", id);
            }
            written(flags, &admin, &request).await
        }
        KvCommand::Delete { key, if_match } => {
            let request = AdminRequest::new(Method::DELETE, path(&key));
            let request = if_match.map(tag).into_iter().fold(request, |request, tag| request.header("if-match", tag));
            written(flags, &admin, &request).await
        }
        KvCommand::List { prefix } => list(flags, &admin, &prefix).await,
        KvCommand::Watch { prefix, since } => watch(flags, &admin, &prefix, since).await,
    }
}

fn path(key: &str) -> String {
    format!("/v1/kv/{}", percent_encode(key))
}

fn tag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// The value to put. One byte more than the limit is read at most, so that the store itself refuses
/// a longer value.
fn read_value(value: Option<String>, file: Option<PathBuf>) -> Result<Vec<u8>, CommandError> {
    let most = MAX_VALUE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    match (value, file) {
        (Some(value), _) => return Ok(value.into_bytes()),
        (None, Some(file)) => std::fs::File::open(&file)
            .and_then(|open| open.take(most).read_to_end(&mut bytes))
            .map_err(|e| CommandError::Failed(format!("{}: {e}", file.display())))?,
        (None, None) => std::io::stdin()
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(|e| CommandError::Failed(format!("standard input: {e}")))?,
    };
    Ok(bytes)
}

/// Prints the value of a key.
async fn got(flags: &AdminFlags, key: String, response: Response) -> Result<(), CommandError> {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(String::from);
    let (content_type, tag) = (header("content-type"), header("etag"));
    let value = response.bytes().await.map_err(CommandError::failed)?;
    match flags.format() {
        OutputFormat::Table => std::io::stdout().write_all(&value).map_err(CommandError::failed),
        OutputFormat::Json => {
            let got = Got {
                key,
                bytes: value.len(),
                value: KvValue::new(&value),
                content_type: content_type.unwrap_or_default(),
                modified: tag.and_then(|tag| tag.trim_matches('"').parse().ok()).unwrap_or_default(),
            };
            println!("{}", serde_json::to_string_pretty(&got).map_err(CommandError::failed)?);
            Ok(())
        }
    }
}

/// An entry that was read by its key, in the form of a list's entries.
#[derive(Debug, Serialize)]
struct Got {
    key: String,
    #[serde(flatten)]
    value: KvValue,
    content_type: String,
    bytes: usize,
    modified: u64,
}

async fn written(flags: &AdminFlags, admin: &AdminClient, request: &AdminRequest) -> Result<(), CommandError> {
    let response = admin.send(request).await.map_err(CommandError::failed)?;
    let body: KvWrittenBody = response.json().await.map_err(CommandError::failed)?;
    match flags.format() {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&body).map_err(CommandError::failed)?),
        OutputFormat::Table => println!("revision {}", body.revision),
    }
    Ok(())
}

/// Prints all pages as one list. A change between two pages may be in it or not.
async fn list(flags: &AdminFlags, admin: &AdminClient, prefix: &str) -> Result<(), CommandError> {
    let mut whole: Option<KvListBody> = None;
    loop {
        let after = whole.as_ref().and_then(|whole| whole.next.as_deref());
        let after = after.map(|after| format!("&after={}", percent_encode(after))).unwrap_or_default();
        let path = format!("/v1/kv?prefix={}&limit={MAX_LIST}{after}", percent_encode(prefix));
        let page: KvListBody = admin.get(&path).await.map_err(CommandError::failed)?;
        let list = whole.get_or_insert_with(|| KvListBody { revision: page.revision, entries: Vec::new(), next: None });
        list.entries.extend(page.entries);
        list.next = page.next;
        if list.next.is_none() {
            break;
        }
    }
    let Some(list) = whole else { return Ok(()) };
    match flags.format() {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&list).map_err(CommandError::failed)?),
        OutputFormat::Table => {
            let rows: Vec<_> = list.entries.iter().map(row).collect();
            let heading = ["key", ">revision", ">version", ">bytes", "type", "value"];
            println!("{}\nrevision {}", table(&heading, &rows), list.revision);
        }
    }
    Ok(())
}

fn row(entry: &KvEntryBody) -> Vec<String> {
    vec![
        entry.key.escape_debug().to_string(),
        entry.modified.to_string(),
        entry.version.to_string(),
        entry.bytes.to_string(),
        entry.content_type.clone(),
        short(entry),
    ]
}

/// The beginning of a text value. Binary values are not shown.
fn short(entry: &KvEntryBody) -> String {
    let Some(text) = &entry.value.text else { return "(binary)".into() };
    let mut shown: String = text.chars().take(60).collect::<String>().escape_debug().to_string();
    if text.chars().count() > 60 {
        shown.push('…');
    }
    shown
}

/// Prints changes, and continues at the next replica where a stream ended. No change is missed or
/// repeated.
async fn watch(flags: &AdminFlags, admin: &AdminClient, prefix: &str, since: Option<u64>) -> Result<(), CommandError> {
    let mut seen = since;
    loop {
        let mut request = AdminRequest::new(Method::GET, format!("/v1/watch/kv?prefix={}", percent_encode(prefix)));
        request = request.timeout(WATCH_TIMEOUT);
        if let Some(seen) = seen {
            request = request.header("last-event-id", seen.to_string());
        }
        match admin.send(&request).await {
            Ok(response) => follow(flags, response, &mut seen).await?,
            // A temporary failure: the placement driver has answered before.
            Err(error) if error.is_temporary() && seen.is_some() => {}
            Err(error) => return Err(CommandError::failed(error)),
        }
        admin.pass_over();
        evenkeel_host::sleep(Duration::from_millis(WATCH_AGAIN_MS)).await;
    }
}

/// Prints the events of one stream until it ends.
async fn follow(flags: &AdminFlags, mut response: Response, seen: &mut Option<u64>) -> Result<(), CommandError> {
    let mut buffer = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        buffer.extend_from_slice(&chunk);
        while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
            let block = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end + 2);
            print_event(flags, &block, seen)?;
        }
        if buffer.len() > MAX_EVENT_BYTES {
            return Err(CommandError::Failed(format!("an event is longer than {MAX_EVENT_BYTES} bytes")));
        }
    }
    Ok(())
}

fn print_event(flags: &AdminFlags, block: &str, seen: &mut Option<u64>) -> Result<(), CommandError> {
    let field = |name: &str| {
        let mut lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        lines.next().map(|value| value.strip_prefix(' ').unwrap_or(value))
    };
    let (Some(name), Some(id), Some(data)) = (field("event"), field("id"), field("data")) else { return Ok(()) };
    if name == "compacted" {
        return Err(CommandError::Failed("too slow: changes were forgotten before they were read".into()));
    }
    *seen = id.parse().ok();
    if !matches!(name, "put" | "delete") {
        return Ok(());
    }
    let event: KvEventBody =
        serde_json::from_str(data).map_err(|e| CommandError::Failed(format!("an event cannot be understood: {e}")))?;
    match flags.format() {
        OutputFormat::Json => println!("{data}"),
        OutputFormat::Table => {
            let value = event.entry.as_ref().map(short).unwrap_or_default();
            println!("{:>8}  {name:<6}  {}  {value}", event.revision, event.key.escape_debug());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shortened_and_escaped() {
        let entry = |bytes: &[u8]| KvEntryBody {
            key: "k".into(),
            value: KvValue::new(bytes),
            content_type: "text/plain".into(),
            bytes: bytes.len(),
            created: 1,
            modified: 1,
            version: 1,
        };
        assert_eq!(short(&entry(b"plain")), "plain");
        // A stored value must not control the terminal.
        assert_eq!(short(&entry(b"\x1b[2Ja\nb")), "\\u{1b}[2Ja\\nb");
        assert_eq!(short(&entry(&[0xFF])), "(binary)");
        assert_eq!(short(&entry("ä".repeat(61).as_bytes())), format!("{}…", "ä".repeat(60)));
    }
}
