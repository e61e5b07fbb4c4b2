//! `evenkeel sql`: statements through a session of the client. Answers are printed as tables or as
//! JSON while rows arrive.
//!
//! Values arrive in PostgreSQL's binary format. They are converted to PostgreSQL's text format,
//! with timestamps in UTC and unknown types as hexadecimal.

use crate::cli::admin_flags::OutputFormat;
use crate::display::TableLayout;
use crate::error::CommandError;
use clap::Args;
use evenkeel_client::{Answer, Client, ClientConfig, ClientError, Durability, Levels, ReadLevel, RowStream, SqlError};
use evenkeel_protocol::RowBatch;
use evenkeel_protocol::levels::parse_duration_ms;
use evenkeel_protocol::value::format_timestamp;

/// How long connecting may take, in milliseconds. A person waits.
const CONNECT_PATIENCE_MS: u64 = 1_500;

/// The bytes of an answer that are read before its first row is printed. They decide the width of
/// the columns.
const LOOK_AHEAD_BYTES: usize = 1 << 20;

/// The levels of the session's statements.
#[derive(Debug, Clone, Copy, Args)]
pub struct LevelFlags {
    /// How fresh reads are: linearizable, leader or local
    #[arg(long, value_name = "LEVEL", value_parser = read_level, default_value_t)]
    read_level: ReadLevel,
    /// How old the state of a local read may be (500ms, 2s); 0 takes any age
    #[arg(long, value_name = "TIME", value_parser = duration_ms, default_value = "0")]
    max_staleness: u64,
    /// What a write has reached when it is answered: disk, memory or local
    #[arg(long, value_name = "LEVEL", value_parser = durability, default_value_t)]
    durability: Durability,
}

fn read_level(text: &str) -> Result<ReadLevel, String> {
    ReadLevel::from_name(text).map_err(in_one_line)
}

fn durability(text: &str) -> Result<Durability, String> {
    Durability::from_name(text).map_err(in_one_line)
}

fn duration_ms(text: &str) -> Result<u64, String> {
    parse_duration_ms(text).map_err(in_one_line)
}

/// The reason alone: clap names the flag and the value.
fn in_one_line(error: SqlError) -> String {
    error.hint.unwrap_or(error.message)
}

/// Executes the statements in one session and prints their answers. Returns when all writes are on
/// a quorum's disks.
pub async fn execute(
    urls: &[String],
    levels: LevelFlags,
    statements: &[String],
    format: OutputFormat,
) -> Result<(), CommandError> {
    let config = ClientConfig { connect_patience_ms: CONNECT_PATIENCE_MS, ..ClientConfig::new(urls.to_vec()) };
    let client = Client::connect(config).await.map_err(CommandError::failed)?;
    let mut session = client.begin_session(Levels {
        read: levels.read_level,
        max_staleness_ms: Some(levels.max_staleness).filter(|ms| *ms > 0),
        durability: levels.durability,
        replica: None,
    });
    for statement in statements {
        let mut stream = session.stream(statement, &[]).await.map_err(|error| failed(&error))?;
        match format {
            OutputFormat::Table => print_table(&mut stream).await,
            OutputFormat::Json => print_json(&mut stream).await,
        }
        .map_err(|error| failed(&error))?;
    }
    if session.in_transaction() {
        let line = "the transaction was not committed, so nothing of it has taken effect: end it with COMMIT";
        return Err(CommandError::Failed(line.into()));
    }
    session.resolved().await.map_err(|error| failed(&error))
}

fn failed(error: &ClientError) -> CommandError {
    let sql = error.sql();
    let detail = sql.and_then(|e| e.detail.as_ref()).map_or_else(String::new, |d| format!(" ({d})"));
    let hint = sql.and_then(|e| e.hint.as_ref()).map_or_else(String::new, |h| format!(" Hint: {h}"));
    CommandError::Failed(format!("{error}{detail}{hint}"))
}

fn cells<'a>(answer: &'a Answer, rows: &'a RowBatch) -> impl Iterator<Item = Vec<Option<String>>> + 'a {
    let value = |(raw, oid): (Option<&[u8]>, u32)| raw.map(|raw| text(oid, raw));
    let oids = || answer.columns.iter().map(|column| column.type_oid);
    rows.rows().map(move |row| row.zip(oids()).map(value).collect())
}

/// The shard that answered, and the age of its answer. Commands of the session itself have no
/// shard.
fn origin(answer: &Answer) -> String {
    match (answer.shard.0, answer.staleness_ms) {
        (0, _) => String::new(),
        (shard, None) => format!("shard {shard}"),
        (shard, Some(age)) => format!("shard {shard}, at most {age} ms old"),
    }
}

async fn print_table(stream: &mut RowStream) -> Result<(), ClientError> {
    let shown = |row: Vec<Option<String>>| row.into_iter().map(|c| c.unwrap_or_else(|| "∅".into())).collect();
    let (mut rows, mut bytes): (Vec<Vec<String>>, usize) = (Vec::new(), 0);
    while bytes < LOOK_AHEAD_BYTES
        && let Some(batch) = stream.next().await?
    {
        bytes += batch.data.len();
        rows.extend(cells(stream.answer(), &batch).map(shown));
    }
    let answer = stream.answer();
    if answer.columns.is_empty() {
        let from = origin(answer);
        let done = answer.command.unwrap_or("done").to_string();
        println!("{}", if from.is_empty() { done } else { format!("{} rows ({from})", answer.affected) });
        return Ok(());
    }
    let numeric = |oid: u32| matches!(oid, 20 | 21 | 23 | 700 | 701 | 1700);
    let heading: Vec<String> =
        answer.columns.iter().map(|c| format!("{}{}", if numeric(c.type_oid) { ">" } else { "" }, c.name)).collect();
    let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
    let layout = TableLayout::new(&heading, &rows);
    println!("{}", layout.heading());
    let mut count = rows.len();
    rows.iter().for_each(|row| println!("{}", layout.line(row)));
    drop(rows);
    while let Some(batch) = stream.next().await? {
        count += batch.count as usize;
        cells(stream.answer(), &batch).map(shown).for_each(|row: Vec<String>| println!("{}", layout.line(&row)));
    }
    let from = origin(stream.answer());
    let count = format!("{count} rows");
    println!("({})", if from.is_empty() { count } else { format!("{count}, {from}") });
    Ok(())
}

/// Prints one object. Of a stream that fails only the beginning is printed.
async fn print_json(stream: &mut RowStream) -> Result<(), ClientError> {
    let columns: Vec<&str> = stream.answer().columns.iter().map(|c| c.name.as_str()).collect();
    print!(r#"{{"columns":{},"rows":["#, serde_json::json!(columns));
    let mut comma = "";
    while let Some(batch) = stream.next().await? {
        let answer = stream.answer();
        for row in cells(answer, &batch) {
            // Numbers are copied as text: a JSON library would lose digits of `numeric`.
            let cells: Vec<String> =
                row.into_iter().zip(answer.columns.iter()).map(|(cell, c)| json_cell(c.type_oid, cell)).collect();
            print!("{comma}[{}]", cells.join(","));
            comma = ",";
        }
    }
    let answer = stream.answer();
    println!(
        r#"],"affected":{},"shard":{},"command":{},"staleness_ms":{}}}"#,
        answer.affected,
        answer.shard,
        serde_json::json!(answer.command),
        serde_json::json!(answer.staleness_ms),
    );
    Ok(())
}

/// A value as JSON, as by PostgreSQL's `to_json`: numbers and booleans as such, except infinity and
/// NaN.
fn json_cell(oid: u32, text: Option<String>) -> String {
    let Some(text) = text else { return "null".to_string() };
    let finite = text.bytes().any(|b| b.is_ascii_digit());
    match oid {
        16 => text,
        20 | 21 | 23 | 700 | 701 | 1700 if finite && !text.starts_with('\\') => text,
        _ => serde_json::Value::from(text).to_string(),
    }
}

/// A value in PostgreSQL's binary format, as text.
pub fn text(oid: u32, raw: &[u8]) -> String {
    known(oid, raw).unwrap_or_else(|| format!("\\x{}", hex(raw)))
}

fn known(oid: u32, raw: &[u8]) -> Option<String> {
    Some(match oid {
        16 => (*raw.first()? != 0).to_string(),
        20 => i64::from_be_bytes(raw.try_into().ok()?).to_string(),
        21 => i16::from_be_bytes(raw.try_into().ok()?).to_string(),
        23 => i32::from_be_bytes(raw.try_into().ok()?).to_string(),
        700 => f32::from_be_bytes(raw.try_into().ok()?).to_string(),
        701 => f64::from_be_bytes(raw.try_into().ok()?).to_string(),
        25 | 19 | 114 | 1042 | 1043 | 705 => String::from_utf8(raw.to_vec()).ok()?,
        3802 => String::from_utf8(raw.get(1..)?.to_vec()).ok()?,
        1184 => format_timestamp(i64::from_be_bytes(raw.try_into().ok()?)),
        1114 => format_timestamp(i64::from_be_bytes(raw.try_into().ok()?)).trim_end_matches('Z').to_string(),
        1082 => {
            let days = i64::from(i32::from_be_bytes(raw.try_into().ok()?));
            format_timestamp(days.checked_mul(86_400_000_000)?).split('T').next()?.to_string()
        }
        2950 if raw.len() == 16 => {
            let h = hex(raw);
            format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
        }
        1700 => numeric(raw)?,
        _ => return None,
    })
}

/// `numeric`: four 16-bit words (digits, weight, sign, scale), then base-10000 digits.
fn numeric(raw: &[u8]) -> Option<String> {
    let word = |i: usize| Some(i16::from_be_bytes(raw.get(2 * i..2 * i + 2)?.try_into().ok()?));
    let (count, weight, scale) = (word(0)?, i32::from(word(1)?), usize::try_from(word(3)?).ok()?);
    match word(2)? as u16 {
        0xC000 => return Some("NaN".into()),
        0xD000 => return Some("Infinity".into()),
        0xF000 => return Some("-Infinity".into()),
        _ => {}
    }
    let digit = |place: i32| -> Option<i16> {
        let index = weight - place;
        if (0..i32::from(count)).contains(&index) { word(4 + index as usize) } else { Some(0) }
    };
    let mut whole = String::new();
    for place in (0..=weight.max(0)).rev() {
        whole.push_str(&format!("{:04}", digit(place)?));
    }
    let whole = whole.trim_start_matches('0');
    let mut fraction = String::new();
    for place in 1..=scale.div_ceil(4) as i32 {
        fraction.push_str(&format!("{:04}", digit(-place)?));
    }
    fraction.truncate(scale);
    let sign = if word(2)? as u16 == 0x4000 { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

fn hex(raw: &[u8]) -> String {
    raw.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn json_has_numbers_as_numbers() {
        for (oid, text, expected) in [
            (20, "9223372036854775807", "9223372036854775807"),
            (1700, "-0.050", "-0.050"),
            (701, "1.5", "1.5"),
            (701, "inf", "\"inf\""),
            (1700, "NaN", "\"NaN\""),
            (16, "true", "true"),
            (25, "7\"", "\"7\\\"\""),
            (20, "\\x01", "\"\\\\x01\""),
        ] {
            assert_eq!(json_cell(oid, Some(text.into())), expected);
        }
        assert_eq!(json_cell(20, None), "null");
    }

    #[test]
    fn values_read_as_postgresql_shows_them() {
        // The bytes are those of PostgreSQL's *send functions.
        for (oid, raw, expected) in [
            (20, vec![0, 0, 0, 0, 0, 0, 0, 7], "7"),
            (16, vec![1], "true"),
            (25, b"hi".to_vec(), "hi"),
            (17, vec![0xde, 0xad], "\\xdead"),
            (3802, b"\x01{}".to_vec(), "{}"),
            (1082, vec![0, 0, 0, 1], "2000-01-02"),
            // 12345.678: digits 1, 2345, 6780
            (1700, vec![0, 3, 0, 1, 0, 0, 0, 3, 0, 1, 0x09, 0x29, 0x1a, 0x7c], "12345.678"),
            // -0.05: digit 500, weight -1
            (1700, vec![0, 1, 0xff, 0xff, 0x40, 0, 0, 2, 0x01, 0xf4], "-0.05"),
            (1700, vec![0, 0, 0, 0, 0, 0, 0, 0], "0"),
            // 10000: digit 1, weight 1
            (1700, vec![0, 1, 0, 1, 0, 0, 0, 0, 0, 1], "10000"),
            (20, vec![1], "\\x01"),
        ] {
            assert_eq!(text(oid, &raw), expected);
        }
    }
}
