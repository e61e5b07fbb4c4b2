//! Invariants 3 and 7, R26: transactions are atomic, also over several shards, so transfers and
//! payments keep the sum of the accounts.

use crate::clients::table::{ACCOUNTS, DISTANT_ACCOUNTS};
use crate::history::events::Last;

/// Violations, in words.
pub fn check(last: Option<&Last>) -> Vec<String> {
    let Some(last) = last else { return Vec::new() };
    let sum = |accounts: &mut dyn Iterator<Item = i64>| -> i64 {
        accounts.map(|account| last.get(&account).copied().unwrap_or(0)).sum()
    };
    let (near, far) = (sum(&mut { ACCOUNTS }), sum(&mut DISTANT_ACCOUNTS.into_iter()));
    let mut wrong = Vec::new();
    if near != 0 {
        wrong.push(format!("the accounts' sum is {near} after transfers between them"));
    }
    if far != 0 {
        wrong.push(format!("the distant accounts' sum is {far} after payments between shards"));
    }
    wrong
}
