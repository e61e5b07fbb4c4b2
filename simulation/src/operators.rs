//! Orders to the placement driver: setting up, and splits, merges, moves, cancellations and changes of leadership meanwhile.

use crate::clients::{CREATE, Users};
use crate::process::{below, once_in};
use crate::world::{REPLICAS, Registry, shard_info};
use evenkeel_placement_driver::server::Shared;
use evenkeel_placement_driver::state::{Action, Command, Effect};
use evenkeel_protocol::shard::{ControlRequest, ShardReply, ShardRequest};
use evenkeel_protocol::{KeyValue, OperatorId, ShardId, TableSchema, sql};
use evenkeel_rpc::Connection;
use std::sync::Arc;
use std::time::Duration;

/// Between two orders, in milliseconds, at most.
const BETWEEN_MS: u64 = 500;
/// How long an order's outcome is waited for, in milliseconds.
const ORDER_MS: u64 = 2_000;
/// Ranges are split at multiples of this key.
const SPLIT_EVERY: i64 = 10;
/// The largest key at which is split; accounts lie above it.
const SPLIT_BELOW: u64 = 5;

/// A placement driver that leads, as far as is known.
fn leader(registry: &Registry) -> Option<Arc<Shared>> {
    registry.borrow().values().find(|shared| shared.leading().is_some()).cloned()
}

/// Gives an order; `None` if it was not carried out, or nobody knows.
async fn order(registry: &Registry, command: Command) -> Option<Effect> {
    let shared = leader(registry)?;
    tokio::time::timeout(Duration::from_millis(ORDER_MS), shared.propose(command)).await.ok()?.ok()
}

/// Adds the shards and makes the table.
///
/// # Errors
/// One sentence, if the table is none.
pub async fn set_up(registry: &Registry, shards: u32) -> Result<Arc<TableSchema>, String> {
    let pause = || tokio::time::sleep(Duration::from_millis(50));
    for shard in 1..=shards {
        while order(registry, Command::AddShard(shard_info(shard))).await.is_none() {
            pause().await;
        }
    }
    let Ok(sql::Command::CreateTable { schema, .. }) = sql::parse(CREATE) else {
        return Err(format!("no table: {CREATE}"));
    };
    let command = Command::CreateTable { schema, shard: Some(ShardId(1)), if_not_exists: true };
    loop {
        _ = order(registry, command.clone()).await;
        if let Some(shared) = leader(registry)
            && let Some(table) = shared.applied().state.tables.values().find(|table| table.creating.is_none())
        {
            return Ok(table.schema.clone());
        }
        pause().await;
    }
}

/// Gives orders until everything is healed.
pub async fn give_orders(users: Users) {
    while users.told.borrow().healed_ms.is_none() {
        if once_in(6) {
            transfer_leadership(&users).await;
        } else if let Some(command) = leader(&users.registry).and_then(|shared| draw(&users, &shared)) {
            _ = order(&users.registry, command).await;
        }
        tokio::time::sleep(Duration::from_millis(below(BETWEEN_MS))).await;
    }
}

/// Something that could be done now.
fn draw(users: &Users, shared: &Shared) -> Option<Command> {
    let applied = shared.applied();
    let state = &applied.state;
    let ranges = state.ranges_of(users.schema.id);
    let at = below(ranges.len() as u64) as usize;
    let range = ranges.get(at)?;
    Some(match below(10) {
        0..=2 => {
            let key = KeyValue::Int(SPLIT_EVERY * (1 + below(SPLIT_BELOW) as i64));
            let key = users.schema.codec().encode(&[key]).ok()?;
            let range = ranges.iter().find(|range| range.route.interval.splits_at(&key))?;
            Command::Begin(Action::Split { range: range.route.range, epoch: None, at: vec![key] })
        }
        3 => {
            let right = ranges.get(at + 1)?;
            let of = |range: &evenkeel_placement_driver::state::Range| (range.route.range, range.route.epoch);
            Command::Begin(Action::Merge { left: of(range), right: of(right) })
        }
        4 => Command::Cancel(OperatorId(state.next_operator().0.saturating_sub(1 + below(2)))),
        _ => {
            let to = ShardId(1 + below(users.shards.into()) as u32);
            Command::Begin(Action::Move { range: range.route.range, epoch: None, to })
        }
    })
}

/// Asks a replica to lead its shard (log rule 15).
async fn transfer_leadership(users: &Users) {
    let shard = 1 + below(users.shards.into()) as u32;
    let replica = 1 + below(REPLICAS);
    let Some(address) = shard_info(shard).replicas.get(&replica).copied() else { return };
    let bound = Duration::from_millis(ORDER_MS);
    if let Ok(connection) = Connection::<ShardRequest, ShardReply>::connect(address, bound).await {
        let request = ShardRequest::Control(ControlRequest::TransferLeadership { to: Some(replica) });
        // Whether it came about does not matter here.
        let _ = connection.call_within(&request, bound).await;
    }
}
