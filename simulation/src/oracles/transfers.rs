//! Transactions are whole: what was taken from one account is on the other (invariants 3 and 7).

use crate::clients::{ACCOUNTS, Last};

/// What is wrong with the accounts in the end, in words: transfers keep their sum.
pub fn check(last: Option<&Last>) -> Vec<String> {
    let Some(last) = last else { return Vec::new() };
    let sum: i64 = ACCOUNTS.map(|account| last.get(&account).copied().unwrap_or(0)).sum();
    if sum == 0 { Vec::new() } else { vec![format!("the accounts' sum is {sum} after transfers between them")] }
}
