//! Failures of PostgreSQL (R1 to R6): the server killed, one backend killed, statements cancelled
//! during their commit, a full disk, missing data, damaged data, no start, no connections. Clients
//! count meanwhile. No write may be lost or applied twice, no read may be stale, no statement may
//! fail, and in the end all replicas are equal. A replica whose PostgreSQL cannot serve becomes
//! ineligible to lead and repairs itself.

mod disks;

use disks::SmallDisk;
use evenkeel_client::{ClientError, TransactionOptions, Value};
use evenkeel_local_cluster::ClusterOptions;
use evenkeel_tests::counters::Counters;
use evenkeel_tests::leadership;
use evenkeel_tests::replica::{backends, kill_process_9};
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{ReplicaName, ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Users' sessions that are between their statements and their COMMIT.
const IN_TRANSACTION: &str = "usename = 'evenkeel_user' AND state = 'idle in transaction'";
/// A disk on which a replica's PostgreSQL has room until it is filled, in bytes.
const DATA_DISK_BYTES: u64 = 256 << 20;
/// The size of a disk for a replica's log, in bytes.
const LOG_DISK_BYTES: u64 = 192 << 20;

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            a_killed_postgresql_costs_nothing,
            one_killed_backend_costs_nothing,
            a_session_that_ends_between_proposal_and_commit_ends_the_leadership,
            cancelled_statements_are_executed_once,
            a_leader_without_room_becomes_ineligible_and_recovers,
            a_follower_without_room_catches_up_later,
            a_log_without_room_ends_its_process_with_one_line,
            data_deleted_under_a_running_leader_is_made_again,
            data_deleted_while_stopped_is_made_again_from_a_peer,
            a_refused_start_leaves_a_replica_that_votes,
            damaged_data_is_made_again,
            exhausted_connections_move_the_leadership,
            transactions_given_up_as_they_begin_hold_nothing,
            answers_are_bounded,
        ],
    )
}

/// One shard: failures of PostgreSQL concern a replica and its peers only. The log is small, so
/// that it is compacted.
fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.shards = 1;
    options.balancer.insert("enabled".into(), false.into());
    options.shard_node.insert("log_cap_bytes".into(), (8 << 20).into());
    options
}

async fn counting(world: &World, table: &str) -> Result<Counters, ScenarioFailure> {
    counting_rows(world, table, 200, 200).await
}

async fn counting_rows(
    world: &World,
    table: &str,
    rows: i64,
    padding_bytes: usize,
) -> Result<Counters, ScenarioFailure> {
    let mut counters = Counters::make(world, table, 1, rows, padding_bytes).await?;
    counters.start(world, 8, 40).await?;
    Ok(counters)
}

/// The leader, then a follower.
async fn each_role(world: &World, hurt: impl AsyncFn(ReplicaName) -> ScenarioResult) -> ScenarioResult {
    hurt(leadership::serving(world, 1).await?).await?;
    hurt(leadership::follower(world, 1).await?).await
}

async fn a_killed_postgresql_costs_nothing(world: &World) -> ScenarioResult {
    let counters = counting(world, "killed").await?;
    each_role(world, async |replica| {
        let pid = world.cluster.kill_postgres(replica.id())?;
        counters.wait_for_answers(200).await?;
        leadership::caught_up(world, replica, Some(pid)).await
    })
    .await?;
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// R1. The server ends with a backend that is killed with SIGKILL. It does not end with a backend
/// that is terminated.
async fn one_killed_backend_costs_nothing(world: &World) -> ScenarioResult {
    let counters = counting(world, "backend").await?;
    let picks = [
        // A session that has something to commit: a write queue's, most likely, or a transaction's.
        (true, "usename = 'evenkeel_user' AND query NOT ILIKE 'SELECT%' AND query <> ''"),
        (true, "usename = 'evenkeel_user' AND query ILIKE 'SELECT%'"),
        // The apply writer's session, and the other sessions of the replica itself.
        (false, "application_name = 'evenkeel replica' AND query NOT LIKE 'SELECT%'"),
    ];
    for (of_leader, condition) in picks {
        for orderly in [true, false] {
            let replica =
                if of_leader { leadership::serving(world, 1).await? } else { leadership::follower(world, 1).await? };
            let intruder = replica.intrude(world).await?;
            let victim = world
                .until(&format!("a backend with {condition}"), PATIENCE, async || {
                    backends(&intruder, condition).await?.first().copied().ok_or_else(|| "none".to_string())
                })
                .await?;
            let server = replica.inspect(world).await?.postgres_pid;
            if orderly {
                // The session may have ended by now. The next round finds another one.
                drop(intruder.execute("SELECT pg_terminate_backend($1)", &[&victim]).await);
            } else {
                // As above: if it has ended by itself, there is nothing to see in this round.
                drop(kill_process_9(victim));
            }
            counters.wait_for_answers(200).await?;
            // The end of one read session ends neither the server nor the leadership.
            let restarted = if orderly { None } else { server };
            leadership::caught_up(world, replica, restarted).await?;
        }
    }
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// R1, R6. The followers are paused, so that the leader's proposals stay undecided meanwhile.
async fn a_session_that_ends_between_proposal_and_commit_ends_the_leadership(world: &World) -> ScenarioResult {
    let counters = counting(world, "between").await?;
    let (leader, others) = leadership::alone(world, 1).await?;
    let server = leader.inspect(world).await?.postgres_pid;
    let intruder = leader.intrude(world).await?;
    let log = leader.log(world)?;
    let ended = async {
        let waiting = world
            .until("sessions to wait for the log", PATIENCE, async || {
                let found = backends(&intruder, IN_TRANSACTION).await?;
                if found.is_empty() { Err("none".to_string()) } else { Ok(found) }
            })
            .await?;
        for victim in waiting {
            // R6: a cancel request has no effect on a session that only waits to commit.
            let query = "SELECT pg_cancel_backend($1), pg_terminate_backend($1, 5000)";
            intruder.query_one(query, &[&victim]).await.map_err(|e| ScenarioFailure::new(e.to_string()))?;
        }
        Ok::<_, ScenarioFailure>(())
    };
    let ended = ended.await;
    for other in &others {
        world.cluster.resume(*other)?;
    }
    ended?;
    counters.wait_for_answers(200).await?;
    leadership::caught_up(world, leader, server).await?;
    ensure!(log.says("a COMMIT failed")?, "{} does not say why its leadership ended", leader.id());
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// R6. An intruder cancels the statements of the leader's sessions repeatedly.
async fn cancelled_statements_are_executed_once(world: &World) -> ScenarioResult {
    let counters = counting(world, "cancelled").await?;
    // Only active sessions count: an idle session has nothing to cancel.
    let cancel = "SELECT count(pg_cancel_backend(pid)) FILTER (WHERE state = 'active') \
                  FROM pg_stat_activity WHERE usename = 'evenkeel_user'";
    let mut cancelled = 0u64;
    let cancelling = async {
        loop {
            // A cancelled COMMIT ends the leadership, and the server that this session is with: the
            // next one is looked for.
            let Ok(replica) = leadership::serving(world, 1).await else { continue };
            let Ok(client) = replica.intrude(world).await else { continue };
            while let Ok(row) = client.query_one(cancel, &[]).await {
                cancelled += row.get::<_, i64>(0) as u64;
            }
        }
    };
    tokio::select! {
        answered = counters.wait_for_answers(1_000) => answered?,
        () = cancelling => {}
    }
    ensure!(cancelled > 0, "nothing was ever cancelled");
    counters.finish().await?;
    world.nothing_is_wrong().await
}

async fn a_leader_without_room_becomes_ineligible_and_recovers(world: &World) -> ScenarioResult {
    let counters = counting_rows(world, "leader_full", 200, 2_000).await?;
    let replica = leadership::serving(world, 1).await?;
    let disk = SmallDisk::under(world, replica, "postgres", DATA_DISK_BYTES).await?;
    let outcome = async {
        lead(world, replica).await?;
        let log = replica.log(world)?;
        disk.fill()?;
        let next = leadership::serving_other_than(world, 1, Some(replica)).await?;
        counters.wait_for_answers(500).await?;
        world
            .until("the replica to rest", PATIENCE, async || {
                let said = log.says("disk is full").map_err(|e| e.to_string())?;
                if said { Ok(()) } else { Err("it does not say so".to_string()) }
            })
            .await?;
        // The replica does not lead even if asked to, and nothing waits for it.
        world.cluster.pause(next.id())?;
        let third = leadership::serving_other_than(world, 1, Some(next)).await;
        world.cluster.resume(next.id())?;
        ensure!(third? != replica, "a replica without room serves");
        counters.wait_for_answers(200).await?;
        ensure!(replica.inspect(world).await?.postgres_pid.is_none(), "PostgreSQL does not rest");
        disk.empty()?;
        leadership::caught_up(world, replica, None).await?;
        lead(world, replica).await
    };
    let outcome = outcome.await;
    disk.remove(world, replica).await?;
    outcome?;
    counters.finish().await?;
    world.nothing_is_wrong().await
}

async fn a_follower_without_room_catches_up_later(world: &World) -> ScenarioResult {
    let counters = counting_rows(world, "follower_full", 200, 2_000).await?;
    let replica = leadership::follower(world, 1).await?;
    let disk = SmallDisk::under(world, replica, "postgres", DATA_DISK_BYTES).await?;
    let outcome = async {
        disk.fill()?;
        world
            .until("the replica to rest", PATIENCE, async || {
                let found = replica.inspect(world).await?;
                if found.postgres_pid.is_none() { Ok(()) } else { Err(format!("{found:?}")) }
            })
            .await?;
        counters.wait_for_answers(500).await?;
        disk.empty()?;
        leadership::caught_up(world, replica, None).await
    };
    let outcome = outcome.await;
    disk.remove(world, replica).await?;
    outcome?;
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// Log rule 13.
async fn a_log_without_room_ends_its_process_with_one_line(world: &World) -> ScenarioResult {
    let counters = counting_rows(world, "log_full", 200, 2_000).await?;
    let replica = leadership::follower(world, 1).await?;
    let disk = SmallDisk::under(world, replica, "log", LOG_DISK_BYTES).await?;
    let outcome = async {
        let said = "the replicated log has failed, stopping the process: ";
        let log = replica.log(world)?;
        world
            .until("the process to end", PATIENCE, async || {
                // Compaction frees space from time to time.
                disk.fill().map_err(|e| e.to_string())?;
                let log = log.text().map_err(|e| e.to_string())?;
                let line = log.lines().find_map(|line| line.strip_prefix(said)).map(str::to_string);
                line.ok_or_else(|| "it goes on".to_string())
            })
            .await?;
        counters.wait_for_answers(200).await?;
        disk.empty()?;
        world.cluster.restart(replica.id())?;
        leadership::caught_up(world, replica, None).await
    };
    let outcome = outcome.await;
    disk.remove(world, replica).await?;
    outcome?;
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// The log is intact, so the replica votes. Its PostgreSQL is rebuilt from the log, or from a
/// peer's state.
async fn data_deleted_under_a_running_leader_is_made_again(world: &World) -> ScenarioResult {
    let counters = counting(world, "deleted").await?;
    let replica = leadership::serving(world, 1).await?;
    let server = replica.inspect(world).await?.postgres_pid;
    remove_all(&replica.pgdata(world)?)?;
    leadership::serving_other_than(world, 1, Some(replica)).await?;
    counters.wait_for_answers(200).await?;
    leadership::caught_up(world, replica, server).await?;
    counters.finish().await?;
    world.nothing_is_wrong().await?;
    lead(world, replica).await
}

async fn data_deleted_while_stopped_is_made_again_from_a_peer(world: &World) -> ScenarioResult {
    // More than the log retains, so that its first entries are gone.
    let counters = counting_rows(world, "stopped", 200, 4_000).await?;
    let replica = leadership::follower(world, 1).await?;
    stop(world, replica).await?;
    remove_all(&replica.pgdata(world)?)?;
    compacted(world, &counters).await?;
    let log = replica.log(world)?;
    world.cluster.restart(replica.id())?;
    leadership::caught_up(world, replica, None).await?;
    ensure!(log.says("is being re-seeded")?, "{} was not re-seeded by a peer", replica.id());
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// A replica whose PostgreSQL cannot start still votes, and its data stays unchanged.
async fn a_refused_start_leaves_a_replica_that_votes(world: &World) -> ScenarioResult {
    let counters = counting(world, "refused").await?;
    let replica = leadership::serving(world, 1).await?;
    let pgdata = replica.pgdata(world)?;
    let owner = std::fs::metadata(&pgdata).map_err(|e| ScenarioFailure::new(e.to_string()))?;
    if owner.uid() == rustix::process::geteuid().as_raw() {
        counters.finish().await?;
        return Err(ScenarioFailure::skipped("only root can give a folder away"));
    }
    let give = |uid, gid| chown(&pgdata, Some(uid), Some(gid)).map_err(|e| ScenarioFailure::new(e.to_string()));
    let log = replica.log(world)?;
    give(0, 0)?;
    world.cluster.kill_postgres(replica.id())?;
    let outcome = async {
        let next = leadership::serving_other_than(world, 1, Some(replica)).await?;
        counters.wait_for_answers(200).await?;
        // With that replica down too, the majority needs this replica's vote. This replica must not
        // lead.
        world.kill(next.id())?;
        let third = leadership::serving_other_than(world, 1, Some(next)).await;
        counters.wait_for_answers(200).await?;
        world.cluster.restart(next.id())?;
        ensure!(third? != replica, "a replica without PostgreSQL serves");
        Ok(())
    };
    let outcome: ScenarioResult = outcome.await;
    give(owner.uid(), owner.gid())?;
    outcome?;
    leadership::caught_up(world, replica, None).await?;
    ensure!(!log.says("makes PostgreSQL's data again")?, "good data was thrown away");
    counters.finish().await?;
    world.nothing_is_wrong().await
}

async fn damaged_data_is_made_again(world: &World) -> ScenarioResult {
    let counters = counting(world, "damaged").await?;
    each_role(world, async |replica| {
        let log = replica.log(world)?;
        let control = replica.pgdata(world)?.join("global/pg_control");
        std::fs::write(control, vec![7; 8_192]).map_err(|e| ScenarioFailure::new(e.to_string()))?;
        let server = world.cluster.kill_postgres(replica.id())?;
        counters.wait_for_answers(200).await?;
        leadership::caught_up(world, replica, Some(server)).await?;
        ensure!(log.says("makes PostgreSQL's data again")?, "{} still has it", replica.id());
        let damaged = replica.pgdata(world)?.with_extension("damaged");
        world
            .until("the damaged data to be deleted", PATIENCE, async || {
                if damaged.exists() { Err(format!("{} is there", damaged.display())) } else { Ok(()) }
            })
            .await
    })
    .await?;
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// An intruder takes every connection of the leader's PostgreSQL, and then its sessions end.
async fn exhausted_connections_move_the_leadership(world: &World) -> ScenarioResult {
    let counters = counting(world, "exhausted").await?;
    let replica = leadership::serving(world, 1).await?;
    let server = replica.inspect(world).await?.postgres_pid;
    let mut taken = Vec::new();
    // As a superuser, who may use the reserved connections, too.
    while let Ok(client) = replica.intrude(world).await {
        taken.push(client);
    }
    ensure!(taken.len() > 3, "only {} connections were to be had", taken.len());
    // The leadership continues with the open connections. Without them it ends.
    counters.wait_for_answers(100).await?;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'evenkeel_user'";
    world
        .until("the leader to lose the race for its own connections", PATIENCE, async || {
            if let Some(inside) = taken.iter().find(|client| !client.is_closed()) {
                // A server that has stopped meanwhile has no sessions to end.
                drop(inside.execute(end, &[]).await);
            }
            while let Ok(client) = replica.intrude(world).await {
                taken.push(client);
            }
            let found = replica.inspect(world).await?;
            if found.postgres_pid != server { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await?;
    counters.wait_for_answers(200).await?;
    drop(taken);
    leadership::caught_up(world, replica, server).await?;
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// A rollback that overtakes the beginning of its transaction ends the transaction, too. No lock is
/// left behind.
async fn transactions_given_up_as_they_begin_hold_nothing(world: &World) -> ScenarioResult {
    world.create_table("CREATE TABLE hasty (id bigint PRIMARY KEY, n bigint NOT NULL)", 1).await?;
    world.client.execute("INSERT INTO hasty VALUES (1, 0)", &[]).await?;
    for round in 0..300u64 {
        let mut transaction = world.client.begin(TransactionOptions::default()).await?;
        let lock = transaction.execute("UPDATE hasty SET n = n + 1 WHERE id = 1", &[]);
        // The client gives up at once, or a moment later.
        let bound = Duration::from_micros(round % 30 * 40);
        drop(evenkeel_host::timeout(bound, lock).await);
        drop(transaction);
    }
    // An open transaction would lock the row until it has been idle for 30 s, which is longer than
    // a statement may take.
    world.client.execute("UPDATE hasty SET n = n + 10 WHERE id = 1", &[]).await?;
    let answer = world.client.execute("SELECT n FROM hasty WHERE id = 1", &[]).await?;
    ensure!(
        answer.rows.int(0, 0) == Some(10),
        "a transaction that was given up took effect: {:?}",
        answer.rows.int(0, 0)
    );
    Ok(())
}

/// The answer of one statement fits into a frame and is bounded in memory. A larger answer is
/// refused or streamed, without an effect on other clients.
async fn answers_are_bounded(world: &World) -> ScenarioResult {
    let counters = counting(world, "bounded").await?;
    world.create_table("CREATE TABLE large (id bigint PRIMARY KEY, body text NOT NULL)", 1).await?;
    let body = "x".repeat(500_000);
    for id in 0..40 {
        world.client.execute("INSERT INTO large VALUES ($1, $2)", &[Value::Int(id), Value::Text(body.clone())]).await?;
    }
    for sql in ["SELECT id, body FROM large", "UPDATE large SET id = id WHERE id >= 0 RETURNING body"] {
        match world.client.execute(sql, &[]).await {
            Err(ClientError::Sql(error)) if error.code == "54000" || error.code == "0A000" => {}
            other => {
                return Err(ScenarioFailure::new(format!("{sql} gives {:?}", other.map(|answer| answer.rows.count))));
            }
        }
    }
    let answer = world.client.execute("SELECT id, body FROM large WHERE id < 25", &[]).await?;
    ensure!(answer.rows.count == 25, "{} rows", answer.rows.count);
    let (mut stream, mut rows) = (world.client.stream("SELECT id, body FROM large", &[]).await?, 0);
    while let Some(piece) = stream.next().await? {
        rows += piece.count;
    }
    ensure!(rows == 40, "{rows} rows in a stream");
    counters.finish().await?;
    world.nothing_is_wrong().await
}

/// Ends a replica's process and its PostgreSQL.
async fn stop(world: &World, replica: ReplicaName) -> ScenarioResult {
    world.kill(replica.id())?;
    let data = replica.data_dir(world)?;
    evenkeel_local_cluster::postmaster::stop_left_behind(&[data]);
    Ok(())
}

/// Makes a replica the leader.
async fn lead(world: &World, replica: ReplicaName) -> ScenarioResult {
    world
        .until(&format!("{} to lead", replica.id()), PATIENCE, async || {
            let found = replica.inspect(world).await?;
            if found.leads {
                return Ok(());
            }
            let path = format!("/v1/shards/{}/transfer-leader", replica.shard);
            let body = serde_json::json!({ "to": replica.number });
            let asked: Result<serde_json::Value, _> = world.admin().post(&path, &body).await;
            Err(format!("{found:?}, {asked:?}"))
        })
        .await
}

/// Waits until the leader's log has lost its first entries to compaction.
async fn compacted(world: &World, counters: &Counters) -> ScenarioResult {
    world
        .until("the log to be compacted", PATIENCE, async || {
            counters.wait_for_answers(50).await.map_err(|e| e.to_string())?;
            let leader = leadership::serving(world, 1).await.map_err(|e| e.to_string())?;
            let found = leader.inspect(world).await?;
            if found.first > 1 { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await
}

/// Removes a folder in which a process may still be writing.
fn remove_all(folder: &std::path::Path) -> ScenarioResult {
    for _ in 0..100 {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
                return Err(ScenarioFailure::new(error.to_string()));
            }
            _ => {}
        }
    }
    Err(ScenarioFailure::new(format!("{} fills as fast as it is emptied", folder.display())))
}
