//! Splits and moves of ranges while clients write and read. No write is lost or applied twice, no
//! read is stale, and no statement fails.

use evenkeel_client::{Client, ClientConfig, Value};
use evenkeel_local_cluster::ClusterOptions;
use evenkeel_tests::counters::Counters;
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            a_range_moves_while_it_is_written_and_read,
            pieces_move_at_the_same_time,
            a_move_is_cancelled_before_its_fence,
            a_client_that_missed_ten_moves_gets_there,
            a_postgresql_server_killed_in_the_middle_of_a_move_costs_nothing,
        ],
    )
}

/// The balancer is off: the scenarios move the ranges.
fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.balancer.insert("enabled".into(), false.into());
    options
}

async fn a_range_moves_while_it_is_written_and_read(world: &World) -> ScenarioResult {
    let mut counters = Counters::make(world, "moved", 1, 5_000, 100).await?;
    counters.start(world, 16, 50).await?;
    let range = world.only_range("moved").await?.route.range;
    for to in [2, 3, 1, 3] {
        let operator = world.done(world.move_range(range, to).await?.id).await?;
        ensure!(operator.rows >= 5_000 && operator.bytes > 0, "it moved {} rows: {operator:?}", operator.rows);
        ensure!(operator.pause_us.is_some(), "no pause was measured: {operator:?}");
        counters.wait_for_answers(200).await?;
        ensure!(world.only_range("moved").await?.route.shard.0 == to, "the route does not follow");
    }
    counters.finish().await?;
    world.nothing_is_wrong().await
}

async fn pieces_move_at_the_same_time(world: &World) -> ScenarioResult {
    let mut counters = Counters::make(world, "pieces", 1, 4_000, 100).await?;
    counters.start(world, 16, 40).await?;
    let range = world.only_range("pieces").await?.route.range;
    world.done(world.split(range, &[500, 1_000, 2_000, 3_000]).await?.id).await?;
    let pieces = world.ranges("pieces").await?;
    ensure!(pieces.len() == 5, "five pieces expected: {pieces:?}");
    let mut moves = Vec::new();
    for (piece, to) in pieces.iter().zip([2, 3, 2, 3, 1]).filter(|(_, to)| *to != 1) {
        moves.push(world.move_range(piece.route.range, to).await?.id);
    }
    for id in moves {
        world.done(id).await?;
    }
    counters.wait_for_answers(500).await?;
    let shards: Vec<u32> = world.ranges("pieces").await?.iter().map(|r| r.route.shard.0).collect();
    ensure!(shards == [2, 3, 2, 3, 1], "the pieces are on {shards:?}");
    counters.finish().await?;
    world.nothing_is_wrong().await
}

async fn a_move_is_cancelled_before_its_fence(world: &World) -> ScenarioResult {
    // Enough rows for a copy that takes a while.
    let mut counters = Counters::make(world, "cancelled", 1, 20_000, 400).await?;
    counters.start(world, 8, 40).await?;
    // On a busy machine a move may end before the cancellation arrives. Then another move is
    // requested.
    let (before, operator) = loop {
        let before = world.only_range("cancelled").await?.route;
        let operator = world.move_range(before.range, before.shard.0 % 3 + 1).await?;
        let asked: Result<serde_json::Value, _> = world.admin().delete(&format!("/v1/operators/{}", operator.id)).await;
        let ended = world.ended(operator.id).await?;
        match ended.status.as_str() {
            "cancelled" => break (before, operator),
            "done" => eprintln!("operator {} was done before it was cancelled: {asked:?}", operator.id),
            _ => return Err(ScenarioFailure::new(format!("it ended as {ended:?}, asked {asked:?}"))),
        }
    };
    let after = world.only_range("cancelled").await?.route;
    ensure!(after.shard == before.shard && after.epoch == before.epoch, "it left a trace: {before:?}, {after:?}");
    // The cancelled move leaves nothing that would prevent the next move.
    let next = world.done(world.move_range(before.range, before.shard.0 % 3 + 1).await?.id).await?;
    ensure!(next.id > operator.id, "operator numbers must grow (R20)");
    counters.finish().await?;
    world.nothing_is_wrong().await
}

async fn a_client_that_missed_ten_moves_gets_there(world: &World) -> ScenarioResult {
    world.create_table("CREATE TABLE stale (id bigint PRIMARY KEY, n bigint NOT NULL)", 1).await?;
    world.client.execute("INSERT INTO stale VALUES (1, 0)", &[]).await?;
    // The client's placement driver is paused while the range moves, so that the client does not
    // learn of the move.
    let urls = world.admin().urls();
    let stopped = 1 + (world.placement_driver_leader().await? % urls.len() as u64);
    let url = urls.get(stopped as usize - 1).cloned().unwrap_or_default();
    let patient = ClientConfig { watch_silence_ms: 600_000, ..ClientConfig::new([url]) };
    let stale = Client::connect(patient).await?;
    stale.execute("SELECT n FROM stale WHERE id = 1", &[]).await?;
    let id = evenkeel_local_cluster::ProcessId::PlacementDriver(stopped);
    world.cluster.pause(id)?;
    let range = world.only_range("stale").await?.route.range;
    for number in 0..10 {
        world.done(world.move_range(range, [2, 3, 1][number % 3]).await?.id).await?;
    }
    let answer = stale.execute("UPDATE stale SET n = n + 1 WHERE id = $1 RETURNING n", &[Value::Int(1)]).await;
    world.cluster.resume(id)?;
    ensure!(answer?.rows.int(0, 0) == Some(1), "it was not applied exactly once");
    ensure!(stale.stats().redirects > 0, "it followed no redirect: {:?}", stale.stats());
    world.nothing_is_wrong().await
}

async fn a_postgresql_server_killed_in_the_middle_of_a_move_costs_nothing(world: &World) -> ScenarioResult {
    let mut counters = Counters::make(world, "hurt", 1, 10_000, 200).await?;
    counters.start(world, 16, 50).await?;
    let range = world.only_range("hurt").await?.route.range;
    for (to, hurt) in [(2, 1), (3, 3)] {
        let operator = world.move_range(range, to).await?;
        let id = evenkeel_local_cluster::ProcessId::ShardNode(hurt, world.leader(hurt).await?);
        world.cluster.kill_postgres(id)?;
        world.done(operator.id).await?;
        counters.wait_for_answers(200).await?;
        world.whole().await?;
    }
    counters.finish().await?;
    world.nothing_is_wrong().await
}
