//! Sessions whose writes are answered before their COMMIT: durability `memory` and `local` (R28).
//!
//! A session waits for the COMMIT of its write before it goes on. A write that was kept is an
//! addition like any other, answered when that was known. A lost write is no addition, and a
//! checker asks whether it could be lost.

use super::client::{SimulatedClient, StatementOutcome};
use super::early_commit::{Write, drawn_durability, resolve};
use super::table::{ADD, READ, wanted};
use super::users::Users;
use crate::history::events::{ADDITION, LEADER};
use crate::process::{self, below};
use evenkeel_client::{Levels, ReadLevel, Session, StatementLevels};
use std::time::Duration;

/// Between two writes of a session, in milliseconds, at most.
const THINK_MS: u64 = 25;

/// A session's work under faults.
pub(super) async fn run(users: Users) {
    let mut client = SimulatedClient::connect(users.clone(), 1 + below(2) as usize).await;
    let mut session = client.client.begin_session(Levels::default());
    while users.history.borrow().healed_ms.is_none() {
        let key = wanted();
        add_early(&mut client, &mut session, key).await;
        // Its next statement sees its write.
        match below(4) {
            0 => read(&mut client, &mut session, key, ReadLevel::Linearizable).await,
            1 => read(&mut client, &mut session, key, ReadLevel::Leader).await,
            _ => {}
        }
        evenkeel_host::sleep(Duration::from_millis(below(THINK_MS))).await;
    }
}

/// Adds one at a durability below `disk`.
async fn add_early(client: &mut SimulatedClient, session: &mut Session, key: i64) {
    let write = Write { key, how: ADDITION, sent_ms: process::now_ms(), durability: drawn_durability() };
    let levels = StatementLevels { durability: Some(write.durability), ..StatementLevels::default() };
    client.begin();
    let result = session.execute_with(ADD, &[key.into()], levels).await;
    match client.judge(result).await {
        StatementOutcome::Answered(answer) => resolve(client, session, &write, answer.rows.int(0, 0)).await,
        StatementOutcome::Unknown => client.record(key, ADDITION, write.sent_ms, None),
        StatementOutcome::Refused => {}
    }
}

async fn read(client: &mut SimulatedClient, session: &mut Session, key: i64, level: ReadLevel) {
    let sent_ms = process::now_ms();
    let levels = StatementLevels { read: Some(level), ..StatementLevels::default() };
    client.begin();
    let result = session.execute_with(READ, &[key.into()], levels).await;
    if let StatementOutcome::Answered(answer) = client.judge(result).await {
        let how = if level == ReadLevel::Leader { LEADER } else { "a read in a session" };
        client.record(key, how, sent_ms, Some(answer.rows.int(0, 0).unwrap_or(0)));
    }
}
