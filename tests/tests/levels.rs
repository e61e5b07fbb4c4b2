//! Levels of a session (R17, R28). A `local` read is no older than it states, and each level of
//! durability loses no more than it documents.

use evenkeel_client::{
    Client, ClientConfig, ClientError, Durability, Levels, ReadLevel, Session, StatementLevels, Value,
};
use evenkeel_local_cluster::{ClusterOptions, ProcessId};
use evenkeel_protocol::error::codes;
use evenkeel_tests::history::{AgedRead, check_ages};
use evenkeel_tests::leadership;
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            settings_are_the_session_s_own,
            local_reads_are_no_older_than_they_say,
            a_local_read_above_its_bound_is_refused,
            a_session_goes_on_only_after_its_previous_commit,
            memory_loses_nothing_with_one_crash,
            local_loses_what_died_with_its_leader_and_says_so,
        ],
    )
}

fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.shards = 2;
    options.balancer.insert("enabled".into(), false.into());
    options
}

const LOCAL: Levels =
    Levels { read: ReadLevel::Local, max_staleness_ms: None, durability: Durability::Disk, replica: None };

/// A client with a short statement timeout, for statements that must not be answered.
async fn impatient(world: &World, statement_timeout_ms: u64) -> Result<Client, ScenarioFailure> {
    let config = ClientConfig { statement_timeout_ms, ..ClientConfig::new(world.admin().urls()) };
    Ok(Client::connect(config).await?)
}

/// A table on shard 1 with one row of key 0.
async fn table(world: &World, name: &str) -> ScenarioResult {
    world.create_table(&format!("CREATE TABLE {name} (id bigint PRIMARY KEY, n bigint NOT NULL)"), 1).await?;
    world.client.execute(&format!("INSERT INTO {name} VALUES (0, 0)"), &[]).await?;
    Ok(())
}

fn code(result: Result<evenkeel_client::Answer, ClientError>) -> String {
    result.map_or_else(|error| error.code().to_string(), |answer| format!("answered: {answer:?}"))
}

async fn show(session: &mut Session, setting: &str) -> Result<String, ScenarioFailure> {
    let answer = session.execute(&format!("SHOW {setting}"), &[]).await?;
    let raw = answer.rows.rows().next().and_then(|mut row| row.next()).flatten().unwrap_or_default();
    Ok(String::from_utf8_lossy(raw).into_owned())
}

/// Levels by SQL: for the session, for a transaction, for a statement. A `local` session reads
/// anywhere and writes at the leader.
async fn settings_are_the_session_s_own(world: &World) -> ScenarioResult {
    table(world, "settings").await?;
    leadership::within_one_leadership(world, 1, async || settings(world).await).await?;
    by_command_line(world).await?;
    world.nothing_is_wrong().await
}

async fn settings(world: &World) -> ScenarioResult {
    let mut session = world.client.begin_session(Levels::default());
    let select = "SELECT n FROM settings WHERE id = 0";
    session.execute("SET evenkeel.read_level = 'local'", &[]).await?;
    session.execute("SET evenkeel.max_staleness = '5s'", &[]).await?;
    ensure!(show(&mut session, "evenkeel.read_level").await? == "local", "SHOW does not show what was SET");
    let age = session.execute(select, &[]).await?.staleness_ms;
    ensure!(age.is_some_and(|age| age <= 5_000), "a local read stated {age:?}");
    // The level of a statement overrides that of the session.
    let chosen = StatementLevels { read: Some(ReadLevel::Linearizable), ..StatementLevels::default() };
    ensure!(session.execute_with(select, &[], chosen).await?.staleness_ms.is_none(), "the statement's level lost");
    // R17: statements that write or lock go to the leader at every level.
    session.execute("UPDATE settings SET n = 7 WHERE id = 0", &[]).await?;
    let locked = session.execute("SELECT n FROM settings WHERE id = 0 FOR UPDATE", &[]).await?;
    ensure!(locked.rows.int(0, 0) == Some(7) && locked.staleness_ms.is_none(), "locked {locked:?}");
    session.execute("BEGIN READ ONLY", &[]).await?;
    ensure!(session.execute(select, &[]).await?.staleness_ms.is_some(), "READ ONLY transactions may read local");
    let refused = code(session.execute("UPDATE settings SET n = 8 WHERE id = 0", &[]).await);
    ensure!(refused == codes::READ_ONLY, "{refused}");
    let refused = code(session.execute(select, &[]).await);
    ensure!(refused == codes::IN_FAILED_TRANSACTION, "{refused}");
    let ended = session.execute("COMMIT", &[]).await?.command;
    ensure!(ended == Some("ROLLBACK"), "COMMIT of a transaction that failed was answered with {ended:?}");
    session.execute("BEGIN READ ONLY", &[]).await?;
    session.execute("SET LOCAL evenkeel.read_level = 'leader'", &[]).await?;
    ensure!(session.execute(select, &[]).await?.staleness_ms.is_none(), "SET LOCAL did not count");
    session.execute("COMMIT", &[]).await?;
    ensure!(show(&mut session, "evenkeel.read_level").await? == "local", "SET LOCAL outlived its transaction");
    let refused = code(session.execute("SET LOCAL evenkeel.durability = 'memory'", &[]).await);
    ensure!(refused == codes::NO_TRANSACTION, "{refused}");
    let refused = code(session.execute("SET evenkeel.durability = 'paper'", &[]).await);
    ensure!(refused == codes::INVALID_PARAMETER, "{refused}");
    // All levels of durability, in statements and in transactions, write the same rows.
    for level in ["local", "memory", "disk"] {
        session.execute(&format!("SET evenkeel.durability = '{level}'"), &[]).await?;
        session.execute("UPDATE settings SET n = n + 1 WHERE id = 0", &[]).await?;
        session.execute("BEGIN", &[]).await?;
        session.execute("UPDATE settings SET n = n + 1 WHERE id = 0", &[]).await?;
        session.execute("COMMIT", &[]).await?;
    }
    session.resolved().await?;
    let sum = world.client.execute(select, &[]).await?.rows.int(0, 0);
    ensure!(sum == Some(13), "six additions to 7 gave {sum:?}");
    Ok(())
}

async fn by_command_line(world: &World) -> ScenarioResult {
    let (urls, program) = (world.admin().urls().to_vec(), world.cluster.options().executable.clone());
    let run = move || {
        let mut command = std::process::Command::new(program);
        command.arg("sql");
        for url in &urls {
            command.args(["--url", url]);
        }
        let levels = ["--read-level", "local", "--max-staleness", "10s", "--durability", "memory", "--format", "json"];
        let statements = ["UPDATE settings SET n = 20 WHERE id = 0", "SELECT n FROM settings WHERE id = 0"];
        command.args(levels).args(statements).output()
    };
    let output = tokio::task::spawn_blocking(run).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let last = out.lines().last().unwrap_or_default();
    let answer: serde_json::Value = serde_json::from_str(last).map_err(|e| format!("{e}: {out} {error}"))?;
    ensure!(output.status.success() && answer["staleness_ms"].is_u64(), "{out} {error}");
    Ok(())
}

/// R17, R9: readers at every replica, while the range moves and leaders freeze. Each answer is as
/// fresh as it states, and no row is ever missing.
async fn local_reads_are_no_older_than_they_say(world: &World) -> ScenarioResult {
    table(world, "aged").await?;
    let (epoch, stop) = (evenkeel_host::now(), Arc::new(AtomicBool::new(false)));
    let reads = Arc::new(AtomicU64::new(0));
    let mut readers = tokio::task::JoinSet::new();
    for replica in 1..=3 {
        let client = Client::connect(ClientConfig::new(world.admin().urls())).await?;
        readers.spawn(read_on(client, replica, epoch, stop.clone(), reads.clone()));
    }
    let writer = {
        let (client, stop) = (Client::connect(ClientConfig::new(world.admin().urls())).await?, stop.clone());
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                if let Ok(answer) = client.execute("UPDATE aged SET n = n + 1 WHERE id = 0 RETURNING n", &[]).await {
                    let at_us = evenkeel_host::elapsed(epoch).as_micros() as u64;
                    acknowledged.push((at_us, answer.rows.int(0, 0).unwrap_or(i64::MAX)));
                }
            }
            acknowledged
        })
    };
    let more_reads = async |count: u64| {
        let wanted = reads.load(Ordering::Relaxed) + count;
        world
            .until("local reads to be answered", PATIENCE, async || {
                let now = reads.load(Ordering::Relaxed);
                if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted}")) }
            })
            .await
    };
    more_reads(300).await?;
    let range = world.only_range("aged").await?.route.range;
    let mut owner = 1;
    for _ in 0..2 {
        // The leader freezes, loses its leadership, and continues.
        let leader = ProcessId::ShardNode(owner, world.leader(owner).await?);
        world.cluster.pause(leader)?;
        more_reads(200).await?;
        world.cluster.resume(leader)?;
        more_reads(200).await?;
        let follower = ProcessId::ShardNode(owner, world.leader(owner).await? % 3 + 1);
        world.cluster.pause(follower)?;
        more_reads(200).await?;
        world.cluster.resume(follower)?;
        owner = 3 - owner;
        world.done(world.move_range(range, owner).await?.id).await?;
        more_reads(200).await?;
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.await.map_err(|e| e.to_string())?;
    let mut history = Vec::new();
    while let Some(events) = readers.join_next().await {
        history.extend(events.map_err(|e| ScenarioFailure::new(e.to_string()))?);
    }
    let wrong = check_ages(&acknowledged, &history);
    let (writes, count) = (acknowledged.len(), history.len());
    let ages: Vec<u64> = history.iter().map(|read| read.age_ms).collect();
    let oldest = ages.iter().max().copied().unwrap_or_default();
    println!("    {writes} writes, {count} local reads, the oldest at most {oldest} ms old");
    ensure!(wrong.is_empty(), "{} of {count} reads: {}", wrong.len(), wrong[..wrong.len().min(5)].join("\n"));
    world.whole().await?;
    world.nothing_is_wrong().await
}

async fn read_on(
    client: Client,
    replica: u64,
    epoch: Instant,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> Vec<AgedRead> {
    let levels = Levels { replica: Some(replica), ..LOCAL };
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent_us = evenkeel_host::elapsed(epoch).as_micros() as u64;
        let Ok(answer) = client.execute_with("SELECT n FROM aged WHERE id = $1", &[Value::Int(0)], levels).await else {
            continue;
        };
        // A missing row, or an answer without an age, fails the check.
        let age_ms = answer.staleness_ms.unwrap_or(0);
        seen.push(AgedRead { sent_us, seen: answer.rows.int(0, 0).unwrap_or(-1), age_ms });
        count.fetch_add(1, Ordering::Relaxed);
    }
    seen
}

/// R17: a replica without a leader states a growing age, and refuses reads above the requested
/// bound.
async fn a_local_read_above_its_bound_is_refused(world: &World) -> ScenarioResult {
    table(world, "bounded").await?;
    world.client.execute("UPDATE bounded SET n = 5 WHERE id = 0", &[]).await?;
    let select = "SELECT n FROM bounded WHERE id = 0";
    let leader = world.leader(1).await?;
    let alone = leader % 3 + 1;
    let levels = Levels { replica: Some(alone), max_staleness_ms: Some(2_000), ..LOCAL };
    // The replica is up to date before it is cut off.
    world
        .until("the follower to have what was written", PATIENCE, async || {
            match world.client.execute_with(select, &[], levels).await.map(|answer| answer.rows.int(0, 0)) {
                Ok(Some(5)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
    let others: Vec<ProcessId> = (1..=3).filter(|r| *r != alone).map(|r| ProcessId::ShardNode(1, r)).collect();
    others.iter().try_for_each(|id| world.cluster.pause(*id))?;
    let unbounded = Levels { max_staleness_ms: None, ..levels };
    world
        .until("the age to grow", PATIENCE, async || match world.client.execute_with(select, &[], unbounded).await {
            Ok(answer) if answer.rows.int(0, 0) != Some(5) => Err(format!("saw {answer:?}")),
            Ok(answer) if answer.staleness_ms.is_some_and(|age| age > 2_500) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await?;
    let refused = code(world.client.execute_with(select, &[], levels).await);
    ensure!(refused == codes::TOO_STALE, "above its bound a read was not refused but {refused}");
    others.iter().try_for_each(|id| world.cluster.resume(*id))?;
    world
        .until("the read to be fresh again", PATIENCE, async || {
            match world.client.execute_with(select, &[], levels).await {
                Ok(answer) if answer.staleness_ms.is_some_and(|age| age <= 2_000) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
    world.whole().await?;
    world.nothing_is_wrong().await
}

/// R28: a write at `local` is answered while no follower is connected. No other session sees it,
/// its session waits, and in the end it is durable.
async fn a_session_goes_on_only_after_its_previous_commit(world: &World) -> ScenarioResult {
    table(world, "waiting").await?;
    // The session waits this long for its own write.
    let patient = impatient(world, 5_000).await?;
    let mut session = patient.begin_session(Levels { durability: Durability::Local, ..Levels::default() });
    let begin = async || {
        session.execute("UPDATE waiting SET n = 1 WHERE id = 0", &[]).await?;
        Ok(session.resolved().await?)
    };
    leadership::within_one_leadership(world, 1, begin).await?;
    let (_, followers) = leadership::alone(world, 1).await?;
    session.execute("UPDATE waiting SET n = 2 WHERE id = 0", &[]).await?;
    let select = "SELECT n FROM waiting WHERE id = 0";
    // Another session, at the level that needs least of the leader, sees only writes that are on a
    // quorum's disks.
    let read = Levels { read: ReadLevel::Leader, ..Levels::default() };
    let seen = patient.execute_with(select, &[], read).await?.rows.int(0, 0);
    ensure!(seen == Some(1), "another session saw {seen:?}, which was on one disk");
    let refused = code(session.execute(select, &[]).await);
    ensure!(refused == codes::CANNOT_CONNECT_NOW, "the session went on before its COMMIT: {refused}");
    followers.iter().try_for_each(|id| world.cluster.resume(*id))?;
    world
        .until("the session to go on", PATIENCE, async || {
            match session.execute(select, &[]).await.map(|answer| answer.rows.int(0, 0)) {
                Ok(Some(2)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
    world.whole().await?;
    world.nothing_is_wrong().await
}

/// R28: a write answered at `memory` survives the death of the leader that answered it.
async fn memory_loses_nothing_with_one_crash(world: &World) -> ScenarioResult {
    table(world, "remembered").await?;
    for round in 0..3_i64 {
        let mut session = world.client.begin_session(Levels { durability: Durability::Memory, ..Levels::default() });
        let leader = ProcessId::ShardNode(1, world.leader(1).await?);
        let mut answered = Vec::new();
        for id in 1..=100 {
            let id = round * 1_000 + id;
            session.execute("INSERT INTO remembered VALUES ($1, 1)", &[Value::Int(id)]).await?;
            answered.push(id);
        }
        world.kill(leader)?;
        // The last writes may have been in memory only.
        session.resolved().await?;
        for id in answered {
            let answer = world.client.execute("SELECT n FROM remembered WHERE id = $1", &[Value::Int(id)]).await?;
            ensure!(answer.rows.int(0, 0) == Some(1), "row {id} was answered and is gone");
        }
        world.cluster.restart(leader)?;
        world.whole().await?;
    }
    world.nothing_is_wrong().await
}

/// R28: `local` loses writes that its leader has not replicated, the session is notified, and
/// nothing else is lost. `disk` does not answer meanwhile.
async fn local_loses_what_died_with_its_leader_and_says_so(world: &World) -> ScenarioResult {
    table(world, "lost").await?;
    let client = impatient(world, 5_000).await?;
    let insert = "INSERT INTO lost VALUES ($1, 1)";
    let mut session = client.begin_session(Levels { durability: Durability::Local, ..Levels::default() });
    let begin = async || {
        client.execute("DELETE FROM lost WHERE id BETWEEN 1 AND 20", &[]).await?;
        for id in 1..=20 {
            session.execute(insert, &[Value::Int(id)]).await?;
        }
        Ok(session.resolved().await?)
    };
    leadership::within_one_leadership(world, 1, begin).await?;
    let (leader, followers) = leadership::alone(world, 1).await?;
    let leader = leader.id();
    followers.iter().try_for_each(|id| world.kill(*id))?;
    session.execute(insert, &[Value::Int(100)]).await?;
    match client.execute(insert, &[Value::Int(101)]).await {
        Err(ClientError::OutcomeUnknown(_)) => {}
        other => return Err(ScenarioFailure::new(format!("`disk` without a quorum: {other:?}"))),
    }
    world.kill(leader)?;
    followers.iter().try_for_each(|id| world.cluster.restart(*id))?;
    world
        .until("the session to learn of its loss", PATIENCE, async || match session.resolved().await {
            Err(ClientError::WriteLost(error)) if error.code == codes::WRITE_LOST => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await?;
    world.cluster.restart(leader)?;
    world.whole().await?;
    let answer = world.client.execute("SELECT id FROM lost WHERE id BETWEEN 1 AND 200 ORDER BY id", &[]).await?;
    let ids: Vec<Option<i64>> = (0..answer.rows.count as usize).map(|row| answer.rows.int(row, 0)).collect();
    ensure!(ids == (1..=20).map(Some).collect::<Vec<_>>(), "after the loss there are {ids:?}");
    // The session continues and can write again.
    session.execute(insert, &[Value::Int(100)]).await?;
    session.resolved().await?;
    world.nothing_is_wrong().await
}
