//! Payments between accounts that lie far apart, in transactions over several shards (R26).

use super::client::{SimulatedClient, StatementOutcome};
use super::table::{ADD, READ};
use super::table::{DISTANT_ACCOUNTS, DISTANT_TALLY, UPDATE};
use super::users::Users;
use crate::history::events::TRANSFER;
use crate::process::{self, below, once_in};
use evenkeel_client::{Levels, TransactionOptions};
use std::time::Duration;

/// Between two payments of a client, in milliseconds, at most.
const THINK_MS: u64 = 60;
/// Between two steps of a payment, in milliseconds, at most, if there is a pause at all.
const PAUSE_MS: u64 = 30;

/// A client goes during one commit of this many.
const GONE_IN: u64 = 6;
/// After how many milliseconds of its commit at most.
const GONE_MS: u64 = 15;

/// Pays and reads under faults.
pub(super) async fn run(users: Users) {
    let mut client = SimulatedClient::connect(users.clone(), 1 + below(2) as usize).await;
    while users.history.borrow().healed_ms.is_none() {
        if once_in(4) {
            read_tally(&mut client).await
        } else {
            pay(&mut client).await
        }
        evenkeel_host::sleep(Duration::from_millis(below(THINK_MS))).await;
    }
}

/// The counter of payments, which is on another shard than most accounts.
async fn read_tally(client: &mut SimulatedClient) {
    let sent_ms = process::now_ms();
    if let StatementOutcome::Answered(answer) = client.execute(READ, &[DISTANT_TALLY.into()]).await {
        client.record(DISTANT_TALLY, "a read", sent_ms, Some(answer.rows.int(0, 0).unwrap_or(0)));
    }
}

/// Moves money from one account to another, and counts it.
async fn pay(client: &mut SimulatedClient) {
    let sent_ms = process::now_ms();
    let from = below(DISTANT_ACCOUNTS.len() as u64) as usize;
    let to = (from + 1 + below(DISTANT_ACCOUNTS.len() as u64 - 1) as usize) % DISTANT_ACCOUNTS.len();
    let amount = 1 + below(9) as i64;
    let mut steps = [
        (UPDATE, vec![DISTANT_ACCOUNTS[from].into(), (-amount).into()]),
        (UPDATE, vec![DISTANT_ACCOUNTS[to].into(), amount.into()]),
        (ADD, vec![DISTANT_TALLY.into()]),
    ];
    // Mostly in one order, so that transactions seldom wait for each other.
    if !once_in(4) {
        steps[..2].sort_by_key(|(_, parameters)| format!("{:?}", parameters[0]));
    }
    client.begin();
    let mut tally = None;
    if once_in(2) {
        let begun = client.client.begin(TransactionOptions::default()).await;
        let StatementOutcome::Answered(mut transaction) = client.judge(begun).await else { return };
        for (sql, parameters) in steps {
            let result = transaction.execute(sql, &parameters).await;
            let StatementOutcome::Answered(answer) = client.judge(result).await else { return };
            expect_one(client, answer.affected);
            tally = answer.rows.int(0, 0);
            pause().await;
        }
        let commit = transaction.commit();
        let committed = if once_in(GONE_IN) {
            // A client that goes in the middle: its shards are left to themselves.
            match evenkeel_host::timeout(Duration::from_millis(below(GONE_MS)), commit).await {
                Ok(committed) => committed,
                Err(_) => {
                    client.record_by(None, DISTANT_TALLY, TRANSFER, sent_ms, None);
                    return client.restart().await;
                }
            }
        } else {
            commit.await
        };
        let committed = client.judge(committed).await;
        return ended(client, sent_ms, tally, &committed);
    }
    let mut session = client.client.begin_session(Levels::default());
    let all = std::iter::once(("BEGIN", Vec::new())).chain(steps);
    for (n, (sql, parameters)) in all.enumerate() {
        let result = session.execute(sql, &parameters).await;
        let StatementOutcome::Answered(answer) = client.judge(result).await else { return };
        if n > 0 {
            expect_one(client, answer.affected);
            tally = answer.rows.int(0, 0);
        }
    }
    let committed = session.execute("COMMIT", &[]).await;
    let committed = client.judge(committed).await;
    ended(client, sent_ms, tally, &committed);
}

async fn pause() {
    if once_in(3) {
        evenkeel_host::sleep(Duration::from_millis(below(PAUSE_MS))).await;
    }
}

fn expect_one(client: &SimulatedClient, affected: u64) {
    if affected != 1 {
        client.users.history.borrow_mut().wrong(format!("a payment changed {affected} rows of an account"));
    }
}

/// Records a payment that may have been made.
fn ended<T>(client: &SimulatedClient, sent_ms: u64, tally: Option<i64>, outcome: &StatementOutcome<T>) {
    match outcome {
        StatementOutcome::Answered(_) => {
            client.users.history.borrow_mut().count("payments between shards");
            client.record_by(None, DISTANT_TALLY, TRANSFER, sent_ms, tally);
        }
        StatementOutcome::Unknown => client.record_by(None, DISTANT_TALLY, TRANSFER, sent_ms, None),
        StatementOutcome::Refused => {}
    }
}
