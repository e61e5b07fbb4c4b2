//! Operations on counters and accounts.

use super::client::{SimulatedClient, StatementOutcome};
use super::early_commit::{Write, drawn_durability, resolve};
use super::table::{ACCOUNTS, ADD, READ, SCAN, TALLY, UPDATE, wanted};
use crate::history::events::{ADDITION, LEADER, LOCAL, TRANSFER};
use crate::process::{self, below, once_in};
use evenkeel_client::{Levels, ReadLevel, StatementLevels, TransactionOptions};
use evenkeel_protocol::{Durability, RowBatch};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a transaction that looks twice pauses between the two, in milliseconds, at most.
const LOOK_MS: u64 = 250;
/// A client is started again before one read at level `leader` in this many: it asks without
/// knowing who leads.
const RESTARTS_IN: u64 = 8;

/// Adds one to a counter; `false` if it was not answered.
pub(super) async fn add(client: &mut SimulatedClient, key: i64) -> bool {
    let sent_ms = process::now_ms();
    match client.execute(ADD, &[key.into()]).await {
        StatementOutcome::Answered(answer) => {
            client.record(key, ADDITION, sent_ms, Some(answer.rows.int(0, 0).unwrap_or(-1)));
            true
        }
        StatementOutcome::Unknown => {
            client.record(key, ADDITION, sent_ms, None);
            false
        }
        StatementOutcome::Refused => false,
    }
}

pub(super) async fn operate(client: &mut SimulatedClient) {
    let key = wanted();
    match below(20) {
        0..=7 => _ = add(client, key).await,
        8..=9 => _ = add(client, TALLY).await,
        10..=11 => read(client, key).await,
        12 => scan(client, key / 10 * 10).await,
        13 => stream(client, key / 10 * 10).await,
        14..=15 => look_twice(client, key).await,
        _ => transfer(client).await,
    }
}

pub(super) async fn read(client: &mut SimulatedClient, key: i64) {
    let sent_ms = process::now_ms();
    if let StatementOutcome::Answered(answer) = client.execute(READ, &[key.into()]).await {
        client.record(key, "a read", sent_ms, Some(answer.rows.int(0, 0).unwrap_or(0)));
    }
}

/// Reads at any replica. It may be as old as it says (R17), by a clock that may drift by a
/// twentieth.
pub(super) async fn local(client: &mut SimulatedClient, key: i64) {
    let sent_ms = process::now_ms();
    let levels = Levels { read: ReadLevel::Local, max_staleness_ms: once_in(2).then_some(100), ..Levels::default() };
    if let StatementOutcome::Answered(answer) = client.execute_with(READ, &[key.into()], levels).await
        && let Some(age_ms) = answer.staleness_ms
    {
        let since_ms = sent_ms.saturating_sub(age_ms + age_ms / 20 + 1);
        client.record(key, LOCAL, since_ms, Some(answer.rows.int(0, 0).unwrap_or(0)));
    }
}

/// Reads at level `leader`: at the replica that the client takes for the leader, which must not
/// answer if it knows that its leadership is over.
pub(super) async fn leader(client: &mut SimulatedClient, key: i64) {
    if once_in(RESTARTS_IN) {
        client.restart().await;
    }
    let sent_ms = process::now_ms();
    let levels = Levels { read: ReadLevel::Leader, ..Levels::default() };
    if let StatementOutcome::Answered(answer) = client.execute_with(READ, &[key.into()], levels).await {
        client.record(key, LEADER, sent_ms, Some(answer.rows.int(0, 0).unwrap_or(0)));
    }
}

/// Reads a counter twice in one transaction, with a pause: the second read is no older than its
/// statement, whatever happens in the pause (R9, R22).
async fn look_twice(client: &mut SimulatedClient, key: i64) {
    client.begin();
    let begun = client.client.begin(TransactionOptions::default()).await;
    let StatementOutcome::Answered(mut transaction) = client.judge(begun).await else { return };
    let mut looks = Vec::new();
    for _ in 0..2 {
        let sent_ms = process::now_ms();
        let result = transaction.execute(READ, &[key.into()]).await;
        let StatementOutcome::Answered(answer) = client.judge(result).await else {
            return broken_off(client, !looks.is_empty());
        };
        looks.push((sent_ms, answer.rows.int(0, 0).unwrap_or(0)));
        evenkeel_host::sleep(Duration::from_millis(below(LOOK_MS))).await;
    }
    let committed = transaction.commit().await;
    match client.judge(committed).await {
        StatementOutcome::Answered(()) => {
            for (sent_ms, seen) in looks {
                client.record(key, "a look in a transaction", sent_ms, Some(seen));
            }
        }
        _ => broken_off(client, true),
    }
}

/// A transaction has failed. If it has touched its range (`touched`: all keys of it lie in one),
/// the range cannot have been fenced under it: the fence waits for it, or ends it first (R22).
fn broken_off(client: &SimulatedClient, touched: bool) {
    if touched && client.trouble().contains("a range that the transaction uses has moved") {
        let sentence = format!("a range was fenced under a transaction that had touched it: {}", client.trouble());
        client.users.history.borrow_mut().wrong(sentence);
    }
}

/// The counters in rows of their keys and values.
fn values(rows: &RowBatch) -> Vec<(i64, i64)> {
    (0..rows.count as usize).filter_map(|row| Some((rows.int(row, 0)?, rows.int(row, 1)?))).collect()
}

/// Reads ten counters at once.
async fn scan(client: &mut SimulatedClient, from: i64) {
    let sent_ms = process::now_ms();
    let StatementOutcome::Answered(answer) = client.execute(SCAN, &[from.into(), (from + 10).into()]).await else {
        return;
    };
    let rows: BTreeMap<i64, i64> = values(&answer.rows).into_iter().collect();
    for key in from..from + 10 {
        client.record(key, "a scan", sent_ms, Some(rows.get(&key).copied().unwrap_or(0)));
    }
}

/// Reads ten counters as a stream, whose pieces are of different moments.
async fn stream(client: &mut SimulatedClient, from: i64) {
    client.begin();
    let (began_ms, end) = (process::now_ms(), from + 10);
    let opened = client.client.stream(SCAN, &[from.into(), end.into()]).await;
    let StatementOutcome::Answered(mut stream) = client.judge(opened).await else { return };
    // A key without a row was looked for by the piece of the row before it or by a later one.
    let (mut next, mut absent_since_ms) = (from, began_ms);
    loop {
        let piece = stream.next().await;
        let StatementOutcome::Answered(piece) = client.judge(piece).await else { return };
        let Some(rows) = piece.map(|rows| values(&rows)) else { break };
        let asked = client.seen().pieces.pop_front();
        let in_order = rows.is_sorted() && rows.iter().all(|(key, _)| (next..end).contains(key));
        let (Some((sent_ms, by)), Some((last, _)), true) = (asked, rows.last().copied(), in_order) else {
            let sentence = format!("a piece of a stream from {next} up to {end} has the rows {rows:?}");
            return client.users.history.borrow_mut().wrong(sentence);
        };
        client.users.history.borrow_mut().count("pieces of streams");
        let found: BTreeMap<i64, i64> = rows.into_iter().collect();
        for key in next..=last {
            match found.get(&key) {
                Some(value) => client.record_by(Some(by), key, "a stream", sent_ms, Some(*value)),
                None => client.record_by(None, key, "a stream", absent_since_ms, Some(0)),
            }
        }
        (next, absent_since_ms) = (last + 1, sent_ms);
    }
    for key in next..end {
        client.record_by(None, key, "a stream", absent_since_ms, Some(0));
    }
}

/// Moves money from one account to another and counts it, in one transaction of a session.
async fn transfer(client: &mut SimulatedClient) {
    let from = ACCOUNTS.start + below(4) as i64;
    let to = ACCOUNTS.start + (from - ACCOUNTS.start + 1 + below(3) as i64) % 4;
    let durability = if once_in(3) { drawn_durability() } else { Durability::Disk };
    let write = Write { key: TALLY, how: TRANSFER, sent_ms: process::now_ms(), durability };
    let mut tally = None;
    // The balancer may split between accounts.
    let together = !client.users.membership.borrow().balanced;
    let mut session = client.client.begin_session(Levels::default());
    client.begin();
    let steps = [
        ("BEGIN", vec![]),
        (UPDATE, vec![from.into(), (-1).into()]),
        (UPDATE, vec![to.into(), 1.into()]),
        (ADD, vec![TALLY.into()]),
    ];
    for (n, (sql, params)) in steps.into_iter().enumerate() {
        let result = session.execute(sql, &params).await;
        let StatementOutcome::Answered(answer) = client.judge(result).await else {
            return broken_off(client, n > 1 && together);
        };
        if n > 0 && answer.affected != 1 {
            let sentence = format!("a transfer changed {} rows of an account", answer.affected);
            return client.users.history.borrow_mut().wrong(sentence);
        }
        tally = answer.rows.int(0, 0);
    }
    let levels = StatementLevels { durability: Some(durability), ..StatementLevels::default() };
    let committed = session.execute_with("COMMIT", &[], levels).await;
    match client.judge(committed).await {
        StatementOutcome::Answered(answer) if answer.command == Some("COMMIT") => {
            resolve(client, &mut session, &write, tally).await;
        }
        StatementOutcome::Answered(answer) => {
            let sentence = format!("the COMMIT of a transfer was answered by {:?}", answer.command);
            client.users.history.borrow_mut().wrong(sentence);
        }
        StatementOutcome::Unknown => client.record(TALLY, TRANSFER, write.sent_ms, None),
        StatementOutcome::Refused => broken_off(client, together),
    }
}
