//! Large values: in some runs clients also write values to a column of the counters whose sizes
//! range from a few bytes to more than the limit of a batch, of a chunk of a copy and of a log
//! entry.
//!
//! Only one client writes the values of a key, one statement at a time, and each part of a value
//! names its statement. The final value must be complete, and from the last statement that was
//! answered or from one whose outcome is unknown.

use super::client::{SimulatedClient, StatementOutcome};
use super::table::{CLIENTS, COUNTERS};
use super::users::Users;
use crate::history::large_values::Filled;
use crate::process::below;
use evenkeel_protocol::rows::RowBatch;
use std::collections::BTreeMap;

/// One run in this many has large values.
pub const LARGE_IN: u64 = 4;
/// Sizes of values, in bytes. A simulated entry goes in parts from half a KiB on, and the log's cap
/// is 8 MiB in such runs, so these are to a simulated log what 64 MiB are to a real one.
const SIZES: [usize; 4] = [10, 3_000, 20_000, 70_000];
const FILL: &str = "UPDATE counters SET kept = $2 WHERE id = $1";
const LOOK: &str = "SELECT kept FROM counters WHERE id = $1";

/// The value of a statement: its number, again and again.
fn value(statement: u64, bytes: usize) -> String {
    let part = format!("{statement}.");
    part.repeat(bytes.div_ceil(part.len()))
}

/// Which statement a value is from; an error says that it is not whole.
fn statement_of(text: &str) -> Result<u64, String> {
    let first = text.split('.').next().unwrap_or_default();
    match first.parse() {
        Ok(statement) if text == value(statement, text.len()) => Ok(statement),
        _ => Err(format!("a value of {} bytes that begins with {first:?} is not whole", text.len())),
    }
}

/// Fills one of client `number`'s keys.
pub(super) async fn fill(client: &mut SimulatedClient, number: u64) {
    let mine: Vec<i64> = COUNTERS.filter(|key| *key as u64 % CLIENTS + 1 == number).collect();
    let Some(key) = mine.get(below(mine.len() as u64) as usize).copied() else { return };
    let statement = client.next_statement();
    let bytes = SIZES[below(SIZES.len() as u64) as usize];
    let history = client.users.history.clone();
    match client.execute(FILL, &[key.into(), value(statement, bytes).into()]).await {
        // The row was not there yet.
        StatementOutcome::Answered(answer) if answer.affected == 0 => {}
        StatementOutcome::Answered(_) => {
            let mut history = history.borrow_mut();
            history.count("large values written");
            history.filled.entry(key).or_default().answered = statement;
        }
        StatementOutcome::Unknown => history.borrow_mut().filled.entry(key).or_default().unknown.push(statement),
        StatementOutcome::Refused => {}
    }
}

/// Compares the final values of the column with the possible ones.
pub(super) async fn last_look(users: &Users, client: &mut SimulatedClient) {
    let filled: BTreeMap<i64, Filled> = users.history.borrow().filled.clone();
    for (key, filled) in filled.into_iter().filter(|(_, filled)| filled.answered > 0) {
        loop {
            if let StatementOutcome::Answered(answer) = client.execute(LOOK, &[key.into()]).await {
                if let Err(why) = judge(&answer.rows, &filled) {
                    users.history.borrow_mut().wrong(format!("counter {key}: {why}"));
                }
                break;
            }
            users.history.borrow_mut().waiting_for = format!("(a large value of {key}: {})", client.trouble());
        }
    }
}

fn judge(rows: &RowBatch, filled: &Filled) -> Result<(), String> {
    let value = rows.rows().next().and_then(|mut row| row.next().flatten());
    let text = value.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
    match statement_of(&text)? {
        statement if filled.allows(statement) => Ok(()),
        statement => Err(format!("it holds the value of statement {statement}, and may hold {filled:?}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_torn_value_is_not_whole() {
        let whole = value(17, 1_000);
        assert_eq!(statement_of(&whole), Ok(17));
        assert!(statement_of(&whole[..whole.len() - 1]).is_err());
        assert!(statement_of(&format!("{}{}", value(17, 30), value(18, 30))).is_err());
        assert!(statement_of("").is_err());
        let filled = Filled { answered: 5, unknown: vec![3] };
        assert!(filled.allows(5) && filled.allows(3) && !filled.allows(4));
    }
}
