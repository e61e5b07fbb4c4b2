//! Trials of failovers.

use crate::cluster::Cluster;
use crate::failover::acknowledgements::{WritePause, all_resumed, pause};
use crate::failover::writers::{WriteRecord, Writers, of_placement_driver, of_sql};
use crate::process_id::ProcessId;
use crate::shard_calls::inspect_all;
use evenkeel_client::admin::AdminClient;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::CreateTableBody;
use evenkeel_sql as sql;
use serde::Serialize;
use std::time::Duration;

/// The shard whose leader fails.
const SHARD: u32 = 1;
/// Writers, each with connections of its own.
const WRITERS: usize = 8;
/// Writes per second of each writer.
const WRITES_PER_S: f64 = 25.0;
/// Writes per second to the placement driver.
const PLACEMENT_DRIVER_WRITES_PER_S: f64 = 50.0;
/// Acknowledged writes per writer that end a trial.
const RESUMED: usize = 3;
/// How long before the fault acknowledgements are kept, in milliseconds. The last one before the
/// fault must be among them.
const BEFORE_MS: f64 = 2_000.0;
/// How long a placement driver may take to say whether it leads. It may be stopped.
const ASK: Duration = Duration::from_millis(250);
/// How long a trial may take, and the recovery after it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The fault of a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaderFault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Freeze,
    /// All of its links are blocked.
    Cut,
    /// A planned hand-over of the leadership: no fault.
    Handover,
}

/// The replica group whose leader fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaderOf {
    /// A shard.
    Shard,
    /// The placement driver.
    PlacementDriver,
}

/// One trial.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// The pause of writes to rows of the shard.
    pub sql: WritePause,
    /// The pause of writes to the placement driver; absent if a shard's leader failed.
    pub placement_driver: Option<WritePause>,
}

/// The trials of one kind of fault.
#[derive(Debug, Clone, PartialEq)]
pub struct TrialSeries {
    /// The trials.
    pub trials: Vec<Trial>,
    /// Statements that failed.
    pub failed: u64,
    /// The last failure's text.
    pub last_error: String,
}

/// A cluster with writers at work.
pub struct FailoverTrials<'a> {
    cluster: &'a Cluster,
    sql: Writers,
    placement_driver: Writers,
}

impl<'a> FailoverTrials<'a> {
    /// Creates the table `name` on the shard whose leader will fail, and starts the writers.
    pub async fn prepare(cluster: &'a Cluster, name: &str) -> Result<FailoverTrials<'a>, String> {
        let create = format!("CREATE TABLE {name} (id bigint PRIMARY KEY, n bigint NOT NULL)");
        let sql::Command::CreateTable { schema, .. } = sql::parse(&create).map_err(|e| e.to_string())? else {
            return Err(format!("{create} is no CREATE TABLE"));
        };
        let body = CreateTableBody { schema, shard: Some(ShardId(SHARD)), if_not_exists: false };
        let _: serde_json::Value = cluster.admin().post("/v1/tables", &body).await.map_err(|e| e.to_string())?;
        let urls = cluster.admin().urls();
        let upsert =
            format!("INSERT INTO {name} (id, n) VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET n = {name}.n + 1");
        let sql = of_sql(urls, &upsert, WRITERS, WRITES_PER_S).await?;
        let placement_driver = of_placement_driver(urls, PLACEMENT_DRIVER_WRITES_PER_S)?;
        Ok(FailoverTrials { cluster, sql, placement_driver })
    }

    /// `count` trials of one kind.
    pub async fn series(&self, of: LeaderOf, fault: LeaderFault, count: usize) -> Result<TrialSeries, String> {
        let failed_before = self.sql.record.failed();
        let mut trials = Vec::with_capacity(count);
        for _ in 0..count {
            trials.push(self.trial(of, fault).await?);
        }
        let failed = self.sql.record.failed() - failed_before;
        Ok(TrialSeries { trials, failed, last_error: self.sql.record.last_error() })
    }

    /// Injects the fault, waits until all writers write again, removes the fault, and waits until
    /// the cluster is whole.
    pub async fn trial(&self, of: LeaderOf, fault: LeaderFault) -> Result<Trial, String> {
        let victim = self.leader(of, None).await?;
        let record = &self.sql.record;
        // All writers work before the fault, so that it has something to interrupt.
        for writers in [&self.sql, &self.placement_driver] {
            let from_ms = writers.record.now_ms() - BEFORE_MS;
            writers.record.forget_before(from_ms);
            resumed(writers, writers.record.now_ms()).await?;
        }
        let (fault_ms, placement_driver_fault_ms) = (record.now_ms(), self.placement_driver.record.now_ms());
        self.inject(victim, fault).await?;
        self.resumed(of, fault_ms, placement_driver_fault_ms).await?;
        // A failover ends with another leader, and with writes under that leader. No replica is
        // asked for the leader while writes are interrupted: the requests would distort the
        // measurement.
        let next = self.leader(of, Some(victim)).await?;
        self.resumed(of, record.now_ms(), self.placement_driver.record.now_ms()).await?;
        let trial = Trial {
            sql: pause(&record.acks(), fault_ms),
            placement_driver: (of == LeaderOf::PlacementDriver)
                .then(|| pause(&self.placement_driver.record.acks(), placement_driver_fault_ms)),
        };
        tracing::info!(%victim, %next, ?fault, ?trial, "a trial");
        self.recover(victim, fault).await?;
        Ok(trial)
    }

    /// Waits until the writers that depend on this group write again, each after a time of its own
    /// clock.
    async fn resumed(&self, of: LeaderOf, from_ms: f64, placement_driver_from_ms: f64) -> Result<(), String> {
        resumed(&self.sql, from_ms).await?;
        if of == LeaderOf::PlacementDriver {
            resumed(&self.placement_driver, placement_driver_from_ms).await?;
        }
        Ok(())
    }

    /// Waits until a process other than `not` leads by its own account. `not` itself is not asked.
    async fn leader(&self, of: LeaderOf, not: Option<ProcessId>) -> Result<ProcessId, String> {
        let deadline = evenkeel_host::now() + PATIENCE;
        let what = not.map_or("a leader".to_string(), |not| format!("another leader than {not}"));
        let found = self.cluster.wait_until(&what, deadline, async || match of {
            LeaderOf::Shard => self.shard_leader(not).await,
            LeaderOf::PlacementDriver => self.placement_driver_leader(not).await,
        });
        found.await.map_err(|e| e.to_string())
    }

    async fn shard_leader(&self, not: Option<ProcessId>) -> Result<ProcessId, String> {
        let mut shard = self.cluster.shards().into_iter().find(|s| s.id == ShardId(SHARD)).ok_or("no such shard")?;
        shard.replicas.retain(|number, _| Some(ProcessId::ShardNode(SHARD, *number)) != not);
        let answers = inspect_all(&shard).await;
        let leads = answers.values().find(|answer| answer.leads).map(|answer| answer.replica);
        leads.map(|number| ProcessId::ShardNode(SHARD, number)).ok_or_else(|| format!("{answers:?}"))
    }

    async fn placement_driver_leader(&self, not: Option<ProcessId>) -> Result<ProcessId, String> {
        let mut seen = Vec::new();
        for url in self.cluster.admin().urls() {
            let asked = AdminClient::new([url.clone()]);
            let status = evenkeel_host::timeout(ASK, asked.get::<serde_json::Value>("/v1/status")).await;
            let Ok(Ok(status)) = status else { continue };
            let leader = status["replica"].as_u64().filter(|_| status["leads"] == true).map(ProcessId::PlacementDriver);
            match leader.filter(|leader| Some(*leader) != not) {
                Some(leader) => return Ok(leader),
                None => seen.push(status),
            }
        }
        Err(format!("{seen:?}"))
    }

    async fn inject(&self, victim: ProcessId, fault: LeaderFault) -> Result<(), String> {
        let done = match fault {
            LeaderFault::Kill => self.cluster.kill(victim),
            LeaderFault::Freeze => self.cluster.pause(victim),
            LeaderFault::Cut => {
                self.cluster.cut_off(victim, true);
                Ok(())
            }
            LeaderFault::Handover => {
                let path = format!("/v1/shards/{SHARD}/transfer-leader");
                let asked = self.cluster.admin().post(&path, &serde_json::json!({ "to": null })).await;
                asked.map(|_: serde_json::Value| ()).map_err(Into::into)
            }
        };
        done.map_err(|e| format!("{victim}: {e}"))
    }

    async fn recover(&self, victim: ProcessId, fault: LeaderFault) -> Result<(), String> {
        let done = match fault {
            LeaderFault::Kill => self.cluster.restart(victim),
            LeaderFault::Freeze => self.cluster.resume(victim),
            LeaderFault::Cut => {
                self.cluster.cut_off(victim, false);
                Ok(())
            }
            LeaderFault::Handover => Ok(()),
        };
        done.map_err(|e| format!("{victim}: {e}"))?;
        let deadline = evenkeel_host::now() + PATIENCE;
        self.cluster.wait_placement_drivers_ready(deadline).await.map_err(|e| e.to_string())?;
        self.cluster.wait_shards_whole(deadline).await.map_err(|e| e.to_string())
    }
}

/// Waits until all of these writers write after `from_ms`.
async fn resumed(writers: &Writers, from_ms: f64) -> Result<(), String> {
    let record: &WriteRecord = &writers.record;
    let deadline = evenkeel_host::now() + PATIENCE;
    while !all_resumed(&record.acks(), writers.count, from_ms, RESUMED) {
        if evenkeel_host::now() >= deadline {
            let (seconds, error) = (PATIENCE.as_secs(), record.last_error());
            return Err(format!("not all writers could write within {seconds} s; the last error: {error}"));
        }
        evenkeel_host::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
