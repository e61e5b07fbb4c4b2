//! A move is interrupted at every step by the death (SIGKILL) of each process that has a part in it, while clients write and
//! read. It must end as done, and nothing may be lost, applied twice, read stale or owned by two.
//!
//! A step can be over within milliseconds. So the move is held at it, by freezing who would end it; then it is made sure that it stands
//! there, and only then is somebody killed. A move that was quicker is let end, and another one is made.

use evenkeel::cluster::{ClusterOptions, ProcessId};
use evenkeel_client::{Transaction, TransactionOptions};
use evenkeel_protocol::api::OperatorBody;
use evenkeel_protocol::report::OperatorPhase;
use evenkeel_protocol::{OperatorId, RangeId};
use evenkeel_tests::counters::Counters;
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{Failure, Outcome, Replica, World, ensure, scenarios};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How many moves may pass a step before it is given up: most are caught at the first or second.
const MOVES: usize = 40;
/// How often a move is looked at, in milliseconds.
const LOOK_MS: u64 = 1;
/// How long a step is waited for, in milliseconds, before the move counts as past it.
const COMES_MS: u64 = 20_000;

/// The steps of a move, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The source has not logged the move's opening.
    Open,
    /// The destination has some rows, and not all.
    Copy,
    /// The destination has caught up, and an open transaction keeps the source from logging the fence.
    Fence,
    /// The source has logged the fence, and no other replica of the destination than its leader can know of an adoption.
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

async fn by_the_death_of_the_source_s_leader(world: &World) -> Outcome {
    at_every_step(world, "source_leader", 1, async |source, _, _| Ok(source.id())).await
}

async fn by_the_death_of_the_destination_s_leader(world: &World) -> Outcome {
    at_every_step(world, "destination_leader", 1, async |_, destination, _| Ok(destination.id())).await
}

/// Which follower copies is the source's affair, so each gets its turn.
async fn by_the_death_of_the_copying_follower(world: &World) -> Outcome {
    at_every_step(world, "follower", 2, async |source, _, turn| {
        let followers: Vec<u64> = (1..=3).filter(|replica| *replica != source.number).collect();
        Ok(ProcessId::ShardNode(source.shard, followers[turn % 2]))
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
    victim: impl AsyncFn(Replica, Replica, usize) -> Result<ProcessId, Failure>,
) -> Outcome {
    let mut counters = Counters::make(world, name, 1, 5_000, 300).await?;
    counters.start(world, 8, 50).await?;
    let range = world.only_range(name).await?.route.range;
    let mut from = 1;
    for step in STEPS {
        for turn in 0..turns {
            let mut hit = false;
            for moves in 1..=MOVES {
                let (source, destination) = (world.serving(from).await?, world.serving(from % 3 + 1).await?);
                // Found before the move begins: asking takes time that the step may not last.
                let victim = victim(source, destination, turn).await?;
                let mut movement = Movement::begin(world, name, range, source, destination, step).await?;
                hit = movement.kill_at(step, victim).await?;
                let at = |e: Failure| Failure::new(format!("{victim} at {step:?} (killed: {hit}): {e}"));
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

/// A move, as it is held at a step.
struct Movement<'a> {
    world: &'a World,
    range: RangeId,
    source: Replica,
    destination: Replica,
    operator: OperatorId,
    frozen: Vec<ProcessId>,
    /// One that keeps the range from being fenced, and a statement for it.
    transaction: Option<(Transaction, String)>,
    /// What the source said last.
    phase: Option<OperatorPhase>,
}

impl Drop for Movement<'_> {
    fn drop(&mut self) {
        self.thaw();
    }
}

impl<'a> Movement<'a> {
    /// Orders the move, with what must be arranged before.
    async fn begin(
        world: &'a World,
        name: &str,
        range: RangeId,
        source: Replica,
        destination: Replica,
        step: Step,
    ) -> Result<Movement<'a>, Failure> {
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
    async fn kill_at(&mut self, step: Step, victim: ProcessId) -> Result<bool, Failure> {
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

    fn freeze(&mut self, ids: impl IntoIterator<Item = ProcessId>) -> Outcome {
        for id in ids {
            self.frozen.push(id);
            self.world.cluster.pause(id)?;
        }
        Ok(())
    }

    fn thaw(&mut self) {
        for id in self.frozen.drain(..) {
            // One of them may have been killed.
            drop(self.world.cluster.resume(id));
        }
    }

    /// Waits for the step, if it has not passed.
    async fn comes_to(&mut self, step: Step) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(COMES_MS) {
            match self.look_for(step).await {
                Seen::NotYet => tokio::time::sleep(Duration::from_millis(LOOK_MS)).await,
                seen => return seen == Seen::Now,
            }
        }
        false
    }

    async fn look_for(&mut self, step: Step) -> Seen {
        match step {
            Step::Open => self.driver_is_at("open").await,
            Step::Purge => self.driver_is_at("purge").await,
            // From here on the shards finish without the placement driver.
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

    /// Whether the move is still at the step, now that it cannot leave it.
    async fn stands_at(&mut self, step: Step) -> bool {
        match step {
            Step::Open | Step::Purge => self.look_for(step).await == Seen::Now,
            Step::Copy => self.phase_at(self.source).await == Some(OperatorPhase::Open),
            // It can still read there: the range is not fenced.
            Step::Fence => match &mut self.transaction {
                Some((transaction, read)) => transaction.execute(read, &[]).await.is_ok(),
                None => false,
            },
            Step::Adopt => {
                self.phase_at(self.source).await == Some(OperatorPhase::Fenced)
                    && self.adopted_at().await == Some(false)
            }
            // What is not adopted now cannot be known to the placement driver.
            Step::Publish => self.adopted_at().await == Some(false),
        }
    }

    /// Where the placement driver is, compared with the step of this name.
    async fn driver_is_at(&self, wanted: &str) -> Seen {
        let path = format!("/v1/operators/{}", self.operator);
        let Ok(operator) = self.world.rest().get::<OperatorBody>(&path).await else { return Seen::NotYet };
        let place = |name: &str| NAMES.iter().position(|n| *n == name).unwrap_or(NAMES.len());
        match place(&operator.step).cmp(&place(wanted)) {
            std::cmp::Ordering::Less => Seen::NotYet,
            std::cmp::Ordering::Equal => Seen::Now,
            std::cmp::Ordering::Greater => Seen::Past,
        }
    }

    /// The move's phase, as the leader of one of its shards says.
    async fn phase_at(&self, leader: Replica) -> Option<OperatorPhase> {
        let report = leader.report(self.world).await.ok()?;
        report.operators.into_iter().find(|o| o.operator == self.operator).map(|o| o.phase)
    }

    /// Whether a replica of the destination, of those that are not frozen, has adopted the range; `None` if none answers.
    async fn adopted_at(&self) -> Option<bool> {
        let mut known = None;
        for number in 1..=self.world.cluster.options().replicas {
            let replica = Replica { number, ..self.destination };
            if self.frozen.contains(&replica.id()) {
                continue;
            }
            if let Ok(inspection) = replica.inspect(self.world).await {
                known = Some(known == Some(true) || inspection.ranges.iter().any(|(range, ..)| *range == self.range));
            }
        }
        known
    }

    async fn adopted(&self) -> Outcome {
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
