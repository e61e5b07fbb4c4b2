//! Invariants 3 and 7: transactions are atomic, so transfers keep the sum of the accounts.

use crate::clients::table::ACCOUNTS;
use crate::history::events::Last;

/// Violations, in words.
pub fn check(last: Option<&Last>) -> Vec<String> {
    let Some(last) = last else { return Vec::new() };
    let sum: i64 = ACCOUNTS.map(|account| last.get(&account).copied().unwrap_or(0)).sum();
    if sum == 0 { Vec::new() } else { vec![format!("the accounts' sum is {sum} after transfers between them")] }
}
