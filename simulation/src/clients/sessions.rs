//! Sessions whose writes are answered before their COMMIT: durability `memory` and `local` (R28).
//!
//! As the product's client does, a session waits for the COMMIT of its write before it goes on, or
//! asks the shard's next leader, which knows the outcome. A write that was kept is an addition like
//! any other, answered when that was known. A lost write is no addition, and a checker asks whether
//! it could be lost.

use super::client::{SimulatedClient, Step};
use super::counters::{again, leader, read};
use super::early_commit::{Write, drawn_durability, resolve};
use super::table::{ADD, wanted};
use super::users::Users;
use crate::history::events::ADDITION;
use crate::process::{self, below, once_in};
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use std::time::Duration;

/// Between two writes of a session, in milliseconds, at most.
const THINK_MS: u64 = 25;
/// How long a session tries to get a write answered, in milliseconds.
const TRY_MS: u64 = 2_000;
/// A session's work under faults.
pub(super) async fn run(users: Users, number: u64) {
    let mut client = SimulatedClient::new(users.clone(), number);
    while users.history.borrow().healed_ms.is_none() {
        let key = wanted();
        add_early(&mut client, key).await;
        // Its next statement sees its write.
        match below(4) {
            0 => read(&mut client, key).await,
            1 => leader(&mut client, key).await,
            _ => {}
        }
        evenkeel_host::sleep(Duration::from_millis(below(THINK_MS))).await;
    }
}

/// Adds one at a durability below `disk`.
async fn add_early(client: &mut SimulatedClient, key: i64) {
    let (id, durability, sent_ms) = (client.id(), drawn_durability(), process::now_ms());
    let mut statement = SimulatedClient::request(id, ADD, vec![key.into()]);
    statement.durability = durability;
    let request = ShardRequest::Statement(statement);
    let mut shard = client.route(key);
    let mut perhaps = false;
    while process::now_ms() < sent_ms + TRY_MS {
        match client.ask_early(&mut shard, &request, key).await {
            Step::Answered((ShardReply::Early(reply), rest)) => {
                let value = reply.rows.int(0, 0).unwrap_or(-1);
                let write = Write { id, key, how: ADDITION, sent_ms, shard };
                let kept = resolve(client, &write, durability, Some(value), rest).await;
                if kept && once_in(4) {
                    again(client, id, key, value).await;
                }
                return;
            }
            // Answered before, or committed before it could be answered early.
            Step::Answered((ShardReply::Rows(reply), _)) => {
                return client.record(key, ADDITION, sent_ms, reply.rows.int(0, 0));
            }
            Step::Answered(_) | Step::Perhaps => perhaps = true,
            Step::Never if !perhaps => return,
            Step::Never | Step::Again => {}
        }
    }
    if perhaps {
        client.record(key, ADDITION, sent_ms, None);
    }
}
