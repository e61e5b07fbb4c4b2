//! Faults of leaders: death, freeze, one-way and two-way partitions, flapping links, slow disks and
//! wrong clocks. Clients count, write registers and run transactions meanwhile. At the end their
//! histories are checked.

use evenkeel_client::Value;
use evenkeel_client::admin::AdminClient;
use evenkeel_local_cluster::failover::trials::{FailoverTrials, LeaderFault, LeaderOf};
use evenkeel_local_cluster::links::{LinkEnd, LinkFault};
use evenkeel_local_cluster::{ClusterOptions, ProcessId};
use evenkeel_protocol::TxnId;
use evenkeel_protocol::shard::{Durability, ReadLevel, ShardReply, ShardRequest, StatementRequest};
use evenkeel_replicated_log::fault_hook::{CLOCK_OFFSET_MS, SYNC_DELAY_MS};
use evenkeel_rpc::Connection;
use evenkeel_tests::counters::Counters;
use evenkeel_tests::registers::Registers;
use evenkeel_tests::transactions::Transactions;
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The shard whose leader fails.
const SHARD: u32 = 1;
/// A blocked link.
const BLOCKED: LinkFault = LinkFault { blocked: true, delay_ms: 0 };
/// Trials of each kind of failover. `evenkeel bench failover` makes more.
const TRIALS: usize = 3;

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            writes_resume_after_each_kind_of_failover,
            a_frozen_leader_that_wakes_answers_nothing_stale_and_commits_nothing,
            a_leader_is_cut_off_both_ways_and_each_way,
            links_flap_and_are_slow,
            transactions_survive_what_leaders_suffer,
            the_placement_driver_s_leader_suffers_while_ranges_move,
            a_placement_driver_that_lost_its_majority_lets_go_of_the_shards,
            disks_are_slow_and_clocks_are_wrong,
        ],
    )
}

fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.balancer.insert("enabled".into(), false.into());
    options.links = true;
    options
}

fn node(replica: u64) -> ProcessId {
    ProcessId::ShardNode(SHARD, replica)
}

/// A bound that a working failover meets even on a busy machine. The usual duration is measured by
/// `evenkeel bench failover` on a quiet machine.
const FAILOVER_MS: f64 = 5_000.0;

async fn writes_resume_after_each_kind_of_failover(world: &World) -> ScenarioResult {
    let trials = FailoverTrials::prepare(&world.cluster, "failover").await?;
    for (role, kind) in [
        (LeaderOf::Shard, LeaderFault::Kill),
        (LeaderOf::Shard, LeaderFault::Freeze),
        (LeaderOf::Shard, LeaderFault::Cut),
        (LeaderOf::Shard, LeaderFault::Handover),
        (LeaderOf::PlacementDriver, LeaderFault::Kill),
        (LeaderOf::PlacementDriver, LeaderFault::Freeze),
        (LeaderOf::PlacementDriver, LeaderFault::Cut),
    ] {
        let series = trials.series(role, kind, TRIALS).await?;
        ensure!(
            series.failed == 0,
            "{role:?} {kind:?}: {} statements failed, last {}",
            series.failed,
            series.last_error
        );
        for trial in &series.trials {
            let pause_ms = trial.placement_driver.unwrap_or(trial.sql).worst_ms();
            ensure!(pause_ms < FAILOVER_MS, "{role:?} {kind:?}: writes stood still for {pause_ms:.0} ms");
            // Statements need the placement driver only for changes of the routes.
            let sql_ms = trial.sql.worst_ms();
            ensure!(
                role == LeaderOf::Shard || sql_ms < FAILOVER_MS,
                "{role:?} {kind:?}: statements took {sql_ms:.0} ms"
            );
        }
    }
    drop(trials);
    world.nothing_is_wrong().await
}

async fn a_frozen_leader_that_wakes_answers_nothing_stale_and_commits_nothing(world: &World) -> ScenarioResult {
    let (counters, registers) = clients(world, "frozen").await?;
    world.create_table("CREATE TABLE witness (id bigint PRIMARY KEY, v bigint NOT NULL)", SHARD).await?;
    world.client.execute("INSERT INTO witness (id, v) VALUES (1, 0)", &[]).await?;
    for round in 1..=4_i64 {
        let leader = world.leader(SHARD).await?;
        let direct = Direct::to(world, leader).await?;
        let before = direct.value(direct.read(ReadLevel::Linearizable).await?);
        ensure!(before == Some(round - 1), "the leader says {before:?} in round {round}");
        world.cluster.pause(node(leader))?;
        counters.wait_for_answers(100).await?;
        let written = world.client.execute("UPDATE witness SET v = $1 WHERE id = 1", &[Value::Int(round)]).await?;
        ensure!(written.affected == 1, "the new leader wrote {} rows", written.affected);
        // These requests wait in the frozen leader's socket and are the first that it reads when it
        // continues.
        let (read, poison) = tokio::join!(direct.read(ReadLevel::Linearizable), async {
            let poison = tokio::spawn(direct.clone().write(-round));
            // Both requests are in the socket before the leader continues. A longer freeze does no
            // harm.
            evenkeel_host::sleep(Duration::from_millis(50)).await;
            world.cluster.resume(node(leader))?;
            poison.await.map_err(|e| ScenarioFailure::new(e.to_string()))?
        });
        let (read, poison) = (read?, poison?);
        let seen = direct.value(read.clone());
        ensure!(
            seen.is_none_or(|v| v == round),
            "a woken leader answered a linearizable read with {seen:?} after {round}"
        );
        ensure!(matches!(poison, ShardReply::Failed(_)), "a deposed leader acknowledged a write: {poison:?}");
        counters.wait_for_answers(100).await?;
        world.whole().await?;
        let now = world.client.execute("SELECT v FROM witness WHERE id = 1", &[]).await?.rows.int(0, 0);
        ensure!(now == Some(round), "after round {round} the row holds {now:?}");
    }
    registers.wait_for_answers(50).await?;
    finish(world, counters, registers).await
}

async fn a_leader_is_cut_off_both_ways_and_each_way(world: &World) -> ScenarioResult {
    let (counters, registers) = clients(world, "cut").await?;
    // The blocked directions between the leader and the other replicas: outgoing, incoming, or
    // both. Clients still reach the leader, and their writes are not acknowledged.
    for (says, hears) in [(true, true), (true, false), (false, true)] {
        for with_clients in [false, true] {
            let leader = world.leader(SHARD).await?;
            let me = LinkEnd::Process(node(leader));
            let mut others: Vec<LinkEnd> =
                (1..=3).filter(|other| *other != leader).map(|other| LinkEnd::Process(node(other))).collect();
            if with_clients {
                others.push(LinkEnd::Outside);
            }
            for other in others {
                if says {
                    world.cluster.links().set(me, other, BLOCKED);
                }
                if hears {
                    world.cluster.links().set(other, me, BLOCKED);
                }
            }
            let at = |e: ScenarioFailure| {
                ScenarioFailure::new(format!(
                    "says blocked {says}, hears blocked {hears}, clients too {with_clients}: {e}"
                ))
            };
            counters.wait_for_answers(150).await.map_err(at)?;
            registers.wait_for_answers(50).await.map_err(at)?;
            world.cluster.links().heal();
            counters.wait_for_answers(50).await.map_err(at)?;
            world.whole().await.map_err(at)?;
        }
    }
    finish(world, counters, registers).await
}

async fn links_flap_and_are_slow(world: &World) -> ScenarioResult {
    let (counters, registers) = clients(world, "flapping").await?;
    let links = world.cluster.links();
    let parties = [1, 2, 3].map(|replica| LinkEnd::Process(node(replica)));
    // Each link in turn is blocked and opened, in one direction or both, for less and for more than
    // an election timeout.
    for (turn, period_ms) in [30_u64, 100, 250, 400].into_iter().enumerate() {
        for pair in 0..3 {
            let (a, b) = (parties[pair], parties[(pair + 1) % 3]);
            for flap in 0..4 {
                match (flap + turn) % 3 {
                    0 => links.set_both(a, b, BLOCKED),
                    1 => links.set(a, b, BLOCKED),
                    _ => links.set(b, a, BLOCKED),
                }
                // The duration of a fault, not a wait for a condition.
                evenkeel_host::sleep(Duration::from_millis(period_ms)).await;
                links.heal();
                evenkeel_host::sleep(Duration::from_millis(period_ms / 2)).await;
            }
        }
        counters.wait_for_answers(50).await?;
    }
    // A slow network, and a leader that is further away than the others.
    let leader = world.leader(SHARD).await?;
    for other in parties.into_iter().filter(|party| *party != LinkEnd::Process(node(leader))) {
        links.set_both(LinkEnd::Process(node(leader)), other, LinkFault { blocked: false, delay_ms: 20 });
    }
    counters.wait_for_answers(100).await?;
    registers.wait_for_answers(50).await?;
    links.heal();
    world.whole().await?;
    finish(world, counters, registers).await
}

async fn transactions_survive_what_leaders_suffer(world: &World) -> ScenarioResult {
    let mut transactions = Transactions::make(world, "txn", SHARD).await?;
    transactions.start(world, "txn", 6).await?;
    for kind in [LeaderFault::Kill, LeaderFault::Freeze, LeaderFault::Cut] {
        for _ in 0..2 {
            let leader = node(world.leader(SHARD).await?);
            match kind {
                LeaderFault::Kill => world.kill(leader)?,
                LeaderFault::Freeze => world.cluster.pause(leader)?,
                LeaderFault::Cut | LeaderFault::Handover => world.cluster.cut_off(leader, true),
            }
            transactions.wait_for_commits(100).await?;
            match kind {
                LeaderFault::Kill => world.cluster.restart(leader)?,
                LeaderFault::Freeze => world.cluster.resume(leader)?,
                LeaderFault::Cut | LeaderFault::Handover => world.cluster.cut_off(leader, false),
            }
            transactions.wait_for_commits(100).await?;
            world.whole().await?;
        }
    }
    let checked = transactions.finish().await?;
    println!("  {checked:?}");
    ensure!(checked.committed > 500 && checked.audits > 50, "too little to judge: {checked:?}");
    world.nothing_is_wrong().await
}

async fn the_placement_driver_s_leader_suffers_while_ranges_move(world: &World) -> ScenarioResult {
    let mut counters = Counters::make(world, "moving", 1, 4_000, 100).await?;
    counters.start(world, 8, 50).await?;
    let range = world.only_range("moving").await?.route.range;
    let mut from = 1;
    for kind in [LeaderFault::Freeze, LeaderFault::Cut, LeaderFault::Kill] {
        let to = from % 3 + 1;
        let leader = ProcessId::PlacementDriver(world.placement_driver_leader().await?);
        let operator = world.move_range(range, to).await?.id;
        match kind {
            LeaderFault::Freeze => world.cluster.pause(leader)?,
            LeaderFault::Kill => world.kill(leader)?,
            LeaderFault::Cut | LeaderFault::Handover => world.cluster.cut_off(leader, true),
        }
        let at = |e: ScenarioFailure| ScenarioFailure::new(format!("{kind:?} of {leader}: {e}"));
        counters.wait_for_answers(100).await.map_err(at)?;
        // The other replicas finish the move.
        world.done(operator).await.map_err(at)?;
        match kind {
            LeaderFault::Freeze => world.cluster.resume(leader)?,
            LeaderFault::Kill => world.cluster.restart(leader)?,
            LeaderFault::Cut | LeaderFault::Handover => world.cluster.cut_off(leader, false),
        }
        world.whole().await.map_err(at)?;
        from = to;
    }
    counters.finish().await?;
    world
        .until("all placement drivers to be ready", PATIENCE, async || {
            for url in world.admin().urls() {
                world.admin().is_ready(url).await?;
            }
            Ok(())
        })
        .await?;
    world.nothing_is_wrong().await
}

/// The leader is partitioned from the other replicas; shards and clients still reach it. If it
/// accepted their reports for ever, its successor would receive none.
async fn a_placement_driver_that_lost_its_majority_lets_go_of_the_shards(world: &World) -> ScenarioResult {
    let counters = {
        let mut counters = Counters::make(world, "let_go", 1, 400, 20).await?;
        counters.start(world, 4, 20).await?;
        counters
    };
    let range = world.only_range("let_go").await?.route.range;
    let driver = |replica| LinkEnd::Process(ProcessId::PlacementDriver(replica));
    let (deposed, itself) = loop {
        let leader = world.placement_driver_leader().await?;
        for other in (1..=3).filter(|other| *other != leader) {
            world.cluster.links().set_both(driver(leader), driver(other), BLOCKED);
        }
        // The leader itself is asked, after the cut: another replica may be behind, and leadership
        // may have moved.
        let itself = AdminClient::new([world.admin().urls()[leader as usize - 1].clone()]);
        let said: serde_json::Value = itself.get("/v1/status").await?;
        if said["leads"] == true {
            break (leader, itself);
        }
        world.cluster.links().heal();
    };
    world
        .until("the deposed leader to say that it does not lead", PATIENCE, async || {
            let said: serde_json::Value = itself.get("/v1/status").await.map_err(|e| e.to_string())?;
            if said["leads"] == false { Ok(()) } else { Err(format!("replica {deposed}: {said}")) }
        })
        .await?;
    // Any replica may be asked: there is a successor by then, or soon.
    let operator = world
        .until("a move to be taken on", PATIENCE, async || world.move_range(range, 2).await.map_err(|e| e.to_string()))
        .await?;
    world.done(operator.id).await?;
    counters.wait_for_answers(50).await?;
    world.cluster.links().heal();
    counters.finish().await?;
    world.nothing_is_wrong().await
}

async fn disks_are_slow_and_clocks_are_wrong(world: &World) -> ScenarioResult {
    let (counters, registers) = clients(world, "hindered").await?;
    let replicas = [1, 2, 3].map(node);
    // One disk after another, the leader's included. Then two at once: a quorum is as slow as its
    // second fastest disk.
    for slow in [&replicas[..1], &replicas[1..2], &replicas[2..], &replicas[..2]] {
        for id in slow {
            world.cluster.set_fault_hook(*id, SYNC_DELAY_MS, 60)?;
        }
        counters.wait_for_answers(60).await?;
        registers.wait_for_answers(30).await?;
        for id in slow {
            world.cluster.set_fault_hook(*id, SYNC_DELAY_MS, 0)?;
        }
    }
    // A clock is set forward and back while the process runs, by more than the retry window. The
    // leader changes meanwhile, so that each clock is once the leader's. No client may notice.
    for (id, offset_ms) in replicas.into_iter().zip([3_600_000, -3_600_000, 45_000]) {
        world.cluster.set_fault_hook(id, CLOCK_OFFSET_MS, offset_ms)?;
        let leader = world.leader(SHARD).await?;
        world.cluster.pause(node(leader))?;
        counters.wait_for_answers(60).await?;
        world.cluster.resume(node(leader))?;
        world.whole().await?;
    }
    // A replica that starts under a wrong clock, within the ten seconds that clocks may differ by,
    // and leads.
    for offset_ms in [8_000, -8_000] {
        let leader = node(world.leader(SHARD).await?);
        world.kill(leader)?;
        world.cluster.set_fault_hook(leader, CLOCK_OFFSET_MS, offset_ms)?;
        world.cluster.restart(leader)?;
        counters.wait_for_answers(60).await?;
        world.whole().await?;
        let ProcessId::ShardNode(_, replica) = leader else { continue };
        world.transfer_leadership(SHARD, replica).await?;
        counters.wait_for_answers(60).await?;
        registers.wait_for_answers(30).await?;
    }
    finish(world, counters, registers).await?;
    for id in replicas {
        world.cluster.set_fault_hook(id, CLOCK_OFFSET_MS, 0)?;
        world.cluster.restart(id)?;
        world.whole().await?;
    }
    Ok(())
}

/// Clients that count and clients that use registers, on the shard whose leader fails.
async fn clients(world: &World, name: &str) -> Result<(Counters, Registers), ScenarioFailure> {
    let mut counters = Counters::make(world, &format!("{name}_counters"), SHARD, 400, 20).await?;
    let mut registers = Registers::make(world, &format!("{name}_registers"), SHARD, 8).await?;
    counters.start(world, 4, 20).await?;
    registers.start(world, 6).await?;
    Ok((counters, registers))
}

async fn finish(world: &World, counters: Counters, registers: Registers) -> ScenarioResult {
    counters.finish().await?;
    let operations = registers.finish().await?;
    println!("  {operations} operations on registers");
    world.nothing_is_wrong().await
}

/// A connection to one replica, without a client that would search for the leader.
#[derive(Clone)]
struct Direct {
    connection: Connection<ShardRequest, ShardReply>,
}

impl Direct {
    async fn to(world: &World, replica: u64) -> Result<Direct, ScenarioFailure> {
        let shards = world.cluster.shards();
        let address = shards.iter().find(|s| s.id.0 == SHARD).and_then(|s| s.replicas.get(&replica)).copied();
        let address = address.ok_or_else(|| ScenarioFailure::new(format!("no replica {replica}")))?;
        let connection =
            Connection::connect(address, PATIENCE).await.map_err(|e| ScenarioFailure::new(e.to_string()))?;
        Ok(Direct { connection })
    }

    async fn read(&self, read: ReadLevel) -> Result<ShardReply, ScenarioFailure> {
        self.ask("SELECT v FROM witness WHERE id = 1", Vec::new(), read).await
    }

    async fn write(self, value: i64) -> Result<ShardReply, ScenarioFailure> {
        self.ask("UPDATE witness SET v = $1 WHERE id = 1", vec![Value::Int(value)], ReadLevel::default()).await
    }

    async fn ask(&self, sql: &str, params: Vec<Value>, read: ReadLevel) -> Result<ShardReply, ScenarioFailure> {
        let first_sent_ms = evenkeel_host::wall_ms();
        let id = TxnId { client: u64::MAX - first_sent_ms, sequence: 1 + params.len() as u64, first_sent_ms };
        let (durability, max_staleness_ms) = (Durability::Disk, None);
        let sql = sql.into();
        let statement =
            StatementRequest { id, sql, params, clip: None, limit: None, read, durability, max_staleness_ms };
        let reply = self.connection.call_within(&ShardRequest::Statement(statement), PATIENCE).await;
        reply.map_err(|e| ScenarioFailure::new(format!("a woken leader does not answer: {e}")))
    }

    /// The value of an answer with one value.
    fn value(&self, reply: ShardReply) -> Option<i64> {
        match reply {
            ShardReply::Rows(reply) => reply.rows.int(0, 0),
            _ => None,
        }
    }
}
