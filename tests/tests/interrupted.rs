//! Moves that are interrupted at every step: each process with a part in the move is killed with
//! SIGKILL, while clients write and read. The move must end as done. No write may be lost or
//! applied twice, no read may be stale, and no key may have two owners.
//!
//! A step may last milliseconds. The test therefore holds the move at the step by freezing the
//! process that would end it, confirms the step, and then kills the victim. If the move has passed
//! the step, the test waits for its end and starts another move.

use evenkeel_client::{Transaction, TransactionOptions};
use evenkeel_local_cluster::{ClusterOptions, ProcessId};
use evenkeel_protocol::api::OperatorBody;
use evenkeel_protocol::report::OperatorPhase;
use evenkeel_protocol::{OperatorId, RangeId};
use evenkeel_tests::counters::Counters;
use evenkeel_tests::leadership;
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{ReplicaName, ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The number of moves that may pass a step before the test gives up. Most are held at the first or
/// second attempt.
const MOVES: usize = 40;
/// The interval between two checks of a move, in milliseconds.
const LOOK_MS: u64 = 1;
/// How long the test waits for a step, in milliseconds, before the move counts as past it.
const COMES_MS: u64 = 20_000;

/// The steps of a move, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The source has not logged the move's opening.
    Open,
    /// The destination has some rows, and not all.
    Copy,
    /// The destination has caught up, and an open transaction keeps the source from logging the
    /// fence.
    Fence,
    /// The source has logged the fence, and no other replica of the destination than its leader can
    /// know of an adoption.
    Adopt,
    /// The destination has adopted the range, and the placement driver does not know.
    Publish,
    /// The source's copy is being deleted.
    Purge,
}

const STEPS: [Step; 6] = [Step::Open, Step::Copy, Step::Fence, Step::Adopt, Step::Publish, Step::Purge];
/// A move's steps as the placement driver names them, in order.
const NAMES: [&str; 5] = ["open", "copy", "switch", "purge", "forget"];

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

async fn by_the_death_of_the_source_s_leader(world: &World) -> ScenarioResult {
    at_every_step(world, "source_leader", 1, async |source, _, _| Ok(source.id())).await
}

async fn by_the_death_of_the_destination_s_leader(world: &World) -> ScenarioResult {
    at_every_step(world, "destination_leader", 1, async |_, destination, _| Ok(destination.id())).await
}

/// The source chooses the follower that copies, so each follower is a victim in turn.
async fn by_the_death_of_the_copying_follower(world: &World) -> ScenarioResult {
    at_every_step(world, "follower", 2, async |source, _, turn| {
        let followers: Vec<u64> = (1..=3).filter(|replica| *replica != source.number).collect();
        Ok(ProcessId::ShardNode(source.shard, followers[turn % 2]))
    })
    .await
}

async fn by_the_death_of_the_placement_driver_s_leader(world: &World) -> ScenarioResult {
    at_every_step(world, "driver_leader", 1, async |_, _, _| {
        Ok(ProcessId::PlacementDriver(world.placement_driver_leader().await?))
    })
    .await
}

/// Moves a range of the table `name` from shard to shard, and kills the process that `victim`
/// returns at each step in turn.
async fn at_every_step(
    world: &World,
    name: &str,
    turns: usize,
    victim: impl AsyncFn(ReplicaName, ReplicaName, usize) -> Result<ProcessId, ScenarioFailure>,
) -> ScenarioResult {
    let mut counters = Counters::make(world, name, 1, 5_000, 300).await?;
    counters.start(world, 8, 50).await?;
    let range = world.only_range(name).await?.route.range;
    let mut from = 1;
    for step in STEPS {
        for turn in 0..turns {
            let mut hit = false;
            for moves in 1..=MOVES {
                let (source, destination) =
                    (leadership::serving(world, from).await?, leadership::serving(world, from % 3 + 1).await?);
                // The victim is determined before the move: a request may take longer than the
                // step.
                let victim = victim(source, destination, turn).await?;
                let mut movement = Movement::begin(world, name, range, source, destination, step).await?;
                hit = movement.kill_at(step, victim).await?;
                let at =
                    |e: ScenarioFailure| ScenarioFailure::new(format!("{victim} at {step:?} (killed: {hit}): {e}"));
                world.done(movement.operator).await.map_err(at)?;
                counters.wait_for_answers(100).await.map_err(at)?;
                from = destination.shard;
                if hit {
                    world.cluster.restart(victim)?;
                    world.whole().await.map_err(at)?;
                    eprintln!("({name}: {victim} killed at {step:?} of move {moves})");
                    break;
                }
            }
            ensure!(hit, "none of {MOVES} moves was caught at {step:?}");
        }
    }
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// Whether a step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    NotYet,
    Now,
    Past,
}

/// A move that is held at a step.
struct Movement<'a> {
    world: &'a World,
    range: RangeId,
    source: ReplicaName,
    destination: ReplicaName,
    operator: OperatorId,
    frozen: Vec<ProcessId>,
    /// An open transaction that delays the fence, and its statement.
    transaction: Option<(Transaction, String)>,
    /// The source's last answer.
    phase: Option<OperatorPhase>,
}

impl Drop for Movement<'_> {
    fn drop(&mut self) {
        self.thaw();
    }
}

impl<'a> Movement<'a> {
    /// Prepares and requests the move.
    async fn begin(
        world: &'a World,
        name: &str,
        range: RangeId,
        source: ReplicaName,
        destination: ReplicaName,
        step: Step,
    ) -> Result<Movement<'a>, ScenarioFailure> {
        let (frozen, transaction, operator) = (Vec::new(), None, OperatorId(0));
        let mut movement = Movement { world, range, source, destination, operator, frozen, transaction, phase: None };
        if step == Step::Fence {
            let read = format!("SELECT n FROM {name} WHERE id = 0");
            let mut transaction = world.client.begin(TransactionOptions::default()).await?;
            transaction.execute(&read, &[]).await?;
            movement.transaction = Some((transaction, read));
        }
        if step == Step::Open {
            movement.freeze([source.id()])?;
        }
        movement.operator = world.move_range(range, destination.shard).await?.id;
        Ok(movement)
    }

    /// Kills the victim at the step; `false` if the move has passed it.
    async fn kill_at(&mut self, step: Step, victim: ProcessId) -> Result<bool, ScenarioFailure> {
        if !self.comes_to(step).await {
            return Ok(false);
        }
        match step {
            Step::Open | Step::Fence => {}
            Step::Copy | Step::Adopt => self.freeze([self.destination.id()])?,
            Step::Purge => self.freeze([self.source.id()])?,
            Step::Publish => {
                let drivers = self.world.cluster.process_ids();
                self.freeze(drivers.into_iter().filter(|id| matches!(id, ProcessId::PlacementDriver(_))))?;
            }
        }
        let stands = self.stands_at(step).await;
        if stands {
            if step == Step::Publish {
                self.adopted().await?;
            }
            self.world.kill(victim)?;
        }
        self.thaw();
        self.transaction = None;
        Ok(stands)
    }

    fn freeze(&mut self, ids: impl IntoIterator<Item = ProcessId>) -> ScenarioResult {
        for id in ids {
            self.frozen.push(id);
            self.world.cluster.pause(id)?;
        }
        Ok(())
    }

    fn thaw(&mut self) {
        for id in self.frozen.drain(..) {
            // One of the processes may have been killed.
            drop(self.world.cluster.resume(id));
        }
    }

    /// Waits for the step, if it has not passed.
    async fn comes_to(&mut self, step: Step) -> bool {
        let begun = evenkeel_host::now();
        while evenkeel_host::elapsed(begun) < Duration::from_millis(COMES_MS) {
            match self.look_for(step).await {
                Seen::NotYet => evenkeel_host::sleep(Duration::from_millis(LOOK_MS)).await,
                seen => return seen == Seen::Now,
            }
        }
        false
    }

    async fn look_for(&mut self, step: Step) -> Seen {
        match step {
            Step::Open => self.driver_is_at("open").await,
            Step::Purge => self.driver_is_at("purge").await,
            // From this step on the shards finish without the placement driver.
            Step::Copy | Step::Publish => match self.phase_at(self.destination).await {
                Some(OperatorPhase::Copying { rows, .. }) if rows > 0 => Seen::Now,
                Some(OperatorPhase::Copying { .. }) | None => Seen::NotYet,
                Some(_) => Seen::Past,
            },
            Step::Fence => match self.phase_at(self.destination).await {
                Some(OperatorPhase::CatchingUp { .. }) => Seen::Now,
                Some(OperatorPhase::Copying { .. }) | None => Seen::NotYet,
                Some(_) => Seen::Past,
            },
            Step::Adopt => {
                let before = self.phase.take();
                self.phase = self.phase_at(self.source).await;
                match (&self.phase, before) {
                    (Some(OperatorPhase::Fenced), _) => Seen::Now,
                    (Some(OperatorPhase::Open), _) | (None, None) => Seen::NotYet,
                    _ => Seen::Past,
                }
            }
        }
    }

    /// Whether the move is still at the step. It cannot leave the step any more.
    async fn stands_at(&mut self, step: Step) -> bool {
        match step {
            Step::Open | Step::Purge => self.look_for(step).await == Seen::Now,
            Step::Copy => self.phase_at(self.source).await == Some(OperatorPhase::Open),
            // The transaction can still read, so the range is not fenced.
            Step::Fence => match &mut self.transaction {
                Some((transaction, read)) => transaction.execute(read, &[]).await.is_ok(),
                None => false,
            },
            Step::Adopt => {
                self.phase_at(self.source).await == Some(OperatorPhase::Fenced)
                    && self.adopted_at().await == Some(false)
            }
            // The placement driver cannot know of an adoption that has not happened.
            Step::Publish => self.adopted_at().await == Some(false),
        }
    }

    /// The placement driver's step, compared with the step of this name.
    async fn driver_is_at(&self, wanted: &str) -> Seen {
        let path = format!("/v1/operators/{}", self.operator);
        let Ok(operator) = self.world.admin().get::<OperatorBody>(&path).await else { return Seen::NotYet };
        let place = |name: &str| NAMES.iter().position(|n| *n == name).unwrap_or(NAMES.len());
        match place(&operator.step).cmp(&place(wanted)) {
            std::cmp::Ordering::Less => Seen::NotYet,
            std::cmp::Ordering::Equal => Seen::Now,
            std::cmp::Ordering::Greater => Seen::Past,
        }
    }

    /// The move's phase by the account of a leader of its shards.
    async fn phase_at(&self, leader: ReplicaName) -> Option<OperatorPhase> {
        let report = leader.report(self.world).await.ok()?;
        report.operators.into_iter().find(|o| o.operator == self.operator).map(|o| o.phase)
    }

    /// Whether a running replica of the destination has adopted the range; `None` if none answers.
    async fn adopted_at(&self) -> Option<bool> {
        let mut known = None;
        for number in 1..=self.world.cluster.options().replicas {
            let replica = ReplicaName { number, ..self.destination };
            if self.frozen.contains(&replica.id()) {
                continue;
            }
            if let Ok(inspection) = replica.inspect(self.world).await {
                known = Some(known == Some(true) || inspection.ranges.iter().any(|(range, ..)| *range == self.range));
            }
        }
        known
    }

    async fn adopted(&self) -> ScenarioResult {
        self.world
            .until("the shards to finish without the placement driver", PATIENCE, async || {
                match self.adopted_at().await {
                    Some(true) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await
    }
}
