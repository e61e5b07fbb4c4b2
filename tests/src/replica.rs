//! One replica of a shard: its inspection, its report, its log, and its PostgreSQL as seen by an
//! intruder.

use crate::failure::{ScenarioFailure, ScenarioResult};
use crate::world::World;
use evenkeel_local_cluster::ProcessId;
use evenkeel_protocol::report::ShardReport;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, Inspection, ShardReply, ShardRequest};
use evenkeel_rpc::Connection;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls};

/// How long a replica may take to answer, in milliseconds.
const ASK_MS: u64 = 5_000;

/// A replica of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaName {
    /// The shard.
    pub shard: u32,
    /// Its number there.
    pub number: u64,
}

impl ReplicaName {
    /// Its process.
    pub fn id(self) -> ProcessId {
        ProcessId::ShardNode(self.shard, self.number)
    }

    /// Its data folder.
    pub fn data_dir(self, world: &World) -> Result<PathBuf, ScenarioFailure> {
        world.cluster.data_dir(self.id()).ok_or_else(|| ScenarioFailure::new(format!("no process {}", self.id())))
    }

    /// The log of its process from now on.
    pub fn log(self, world: &World) -> Result<LogTail, ScenarioFailure> {
        let path = world.cluster.root().join(format!("{}.log", self.id()));
        let from =
            std::fs::metadata(&path).map_err(|e| ScenarioFailure::new(format!("{}: {e}", path.display())))?.len();
        Ok(LogTail { path, from })
    }

    /// Its inspection of itself.
    pub async fn inspect(self, world: &World) -> Result<Inspection, String> {
        match self.ask(world, &ShardRequest::Inspect).await? {
            ShardReply::Inspect(inspection) => Ok(*inspection),
            other => Err(format!("{other:?}")),
        }
    }

    /// Its report to the placement driver, if it leads.
    pub async fn report(self, world: &World) -> Result<ShardReport, String> {
        match self.ask(world, &ShardRequest::Control(ControlRequest::Report)).await? {
            ShardReply::Control(ControlReply::Report(report)) => Ok(*report),
            other => Err(format!("{other:?}")),
        }
    }

    async fn ask(self, world: &World, request: &ShardRequest) -> Result<ShardReply, String> {
        let shards = world.cluster.shards();
        let shard = shards.iter().find(|s| s.id.0 == self.shard).ok_or("no such shard")?;
        let address = shard.replicas.get(&self.number).copied().ok_or("no such replica")?;
        let bound = Duration::from_millis(ASK_MS);
        let asked = Connection::<ShardRequest, ShardReply>::connect(address, bound).await;
        let connection = asked.map_err(|e| e.to_string())?;
        connection.call_within(request, bound).await.map_err(|e| e.to_string())
    }

    /// Its PostgreSQL's data.
    pub fn pgdata(self, world: &World) -> Result<PathBuf, ScenarioFailure> {
        Ok(self.data_dir(world)?.join("postgres"))
    }

    /// A superuser's session in its PostgreSQL, which the machine's owner can open.
    pub async fn intrude(self, world: &World) -> Result<Client, ScenarioFailure> {
        // The file has the socket's folder: the data folder, unless its path is too long.
        let text = std::fs::read_to_string(self.pgdata(world)?.join("postmaster.pid"));
        let text = text.map_err(|e| ScenarioFailure::new(e.to_string()))?;
        let socket = text.lines().nth(4).ok_or_else(|| ScenarioFailure::new("the server is starting"))?;
        let mut config = Config::new();
        config.host_path(socket).port(5432).user("evenkeel").dbname("postgres").application_name("intruder");
        let (client, connection) = config.connect(NoTls).await.map_err(|e| ScenarioFailure::new(e.to_string()))?;
        // The task ends with the client or with the server, and the client notices.
        tokio::spawn(connection);
        Ok(client)
    }
}

/// The processes of the sessions that meet `condition` (SQL over `pg_stat_activity`).
pub async fn backends(intruder: &Client, condition: &str) -> Result<Vec<i32>, String> {
    let sql = format!("SELECT pid FROM pg_stat_activity WHERE application_name <> 'intruder' AND {condition}");
    let rows = intruder.query(&sql, &[]).await.map_err(|e| e.to_string())?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Kills a process with SIGKILL.
pub fn kill_process_9(pid: i32) -> ScenarioResult {
    let pid = Pid::from_raw(pid).ok_or_else(|| ScenarioFailure::new("no process id"))?;
    kill_process(pid, Signal::KILL).map_err(|e| ScenarioFailure::new(e.to_string()))
}

/// The log of a process from a certain position. Lines of earlier scenarios are before it.
#[derive(Debug)]
pub struct LogTail {
    path: PathBuf,
    from: u64,
}

impl LogTail {
    /// The text so far.
    pub fn text(&self) -> Result<String, ScenarioFailure> {
        let read = || {
            let mut file = std::fs::File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(|e: std::io::Error| ScenarioFailure::new(format!("{}: {e}", self.path.display())))
    }

    /// Whether the text contains these words.
    pub fn says(&self, words: &str) -> Result<bool, ScenarioFailure> {
        Ok(self.text()?.contains(words))
    }
}
