//! A move is interrupted at every step by the death (SIGKILL) of each process that has a part in it, while clients write and
//! read. It must end as done, and nothing may be lost, applied twice, read stale or owned by two.

use evenkeel::cluster::{ClusterOptions, ProcessId};
use evenkeel_protocol::rest::OperatorBody;
use evenkeel_tests::counters::Counters;
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{Failure, Outcome, World, scenarios};
use std::path::PathBuf;
use std::process::ExitCode;

/// The steps of a move, in order.
const STEPS: [&str; 5] = ["open", "copy", "switch", "verify", "purge"];

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            by_the_death_of_the_source_s_leader,
            by_the_death_of_the_destination_s_leader,
            by_the_death_of_the_copying_follower,
            by_the_death_of_the_placement_driver_s_leader,
        ],
    )
}

fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.balancer.insert("enabled".into(), false.into());
    options
}

async fn by_the_death_of_the_source_s_leader(world: &World) -> Outcome {
    at_every_step(world, "source_leader", 1, async |from, _, _| {
        Ok(ProcessId::ShardNode(from, world.leader(from).await?))
    })
    .await
}

async fn by_the_death_of_the_destination_s_leader(world: &World) -> Outcome {
    at_every_step(world, "destination_leader", 1, async |_, to, _| {
        Ok(ProcessId::ShardNode(to, world.leader(to).await?))
    })
    .await
}

/// Which follower copies is the source's affair, so each gets its turn.
async fn by_the_death_of_the_copying_follower(world: &World) -> Outcome {
    at_every_step(world, "follower", 2, async |from, _, turn| {
        let leader = world.leader(from).await?;
        let followers: Vec<u64> = (1..=3).filter(|replica| *replica != leader).collect();
        Ok(ProcessId::ShardNode(from, followers[turn % 2]))
    })
    .await
}

async fn by_the_death_of_the_placement_driver_s_leader(world: &World) -> Outcome {
    at_every_step(world, "driver_leader", 1, async |_, _, _| {
        Ok(ProcessId::PlacementDriver(world.driver_leader().await?))
    })
    .await
}

/// Moves a range of the table `name` from shard to shard, and kills what `victim` names when the move is at each step in turn.
async fn at_every_step(
    world: &World,
    name: &str,
    turns: usize,
    victim: impl AsyncFn(u32, u32, usize) -> Result<ProcessId, Failure>,
) -> Outcome {
    let mut counters = Counters::make(world, name, 1, 5_000, 300).await?;
    counters.start(world, 8, 50).await?;
    let range = world.only_range(name).await?.route.range;
    let mut from = 1;
    for (step, wanted) in STEPS.iter().enumerate() {
        for turn in 0..turns {
            let to = from % 3 + 1;
            // Found before the move begins: asking takes time that the step may not last.
            let id = victim(from, to, turn).await?;
            let operator = world.move_range(range, to).await?.id;
            let seen = world
                .until(&format!("{name}: the move to reach {wanted}"), PATIENCE, async || {
                    let operator: OperatorBody =
                        world.rest().get(&format!("/v1/operators/{operator}")).await.map_err(|e| e.to_string())?;
                    let reached = STEPS.iter().position(|s| *s == operator.step).unwrap_or(STEPS.len());
                    if reached >= step { Ok(operator.step) } else { Err(format!("{operator:?}")) }
                })
                .await?;
            world.kill(id)?;
            let at = |e: Failure| Failure::new(format!("{id} was killed at {seen} (wanted {wanted}): {e}"));
            world.done(operator).await.map_err(at)?;
            counters.wait_for_answers(100).await.map_err(at)?;
            world.cluster.restart(id)?;
            world.whole().await.map_err(at)?;
            from = to;
        }
    }
    counters.finish().await?;
    world.nothing_is_wrong().await
}
