//! One replica of a shard, looked at closely: what it says of itself, and its PostgreSQL as somebody who gets into it sees it.

use crate::world::{Failure, Outcome, PATIENCE, World};
use evenkeel::cluster::ProcessId;
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
/// In so many leaderships, one after the other, something that takes a few seconds should find one that lasts.
const MOST_REIGNS: usize = 5;

/// A replica of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    /// The shard.
    pub shard: u32,
    /// Its number there.
    pub number: u64,
}

impl Replica {
    /// Its process.
    pub fn id(self) -> ProcessId {
        ProcessId::ShardNode(self.shard, self.number)
    }

    /// Its data folder.
    pub fn data_dir(self, world: &World) -> Result<PathBuf, Failure> {
        world.cluster.data_dir(self.id()).ok_or_else(|| Failure::new(format!("no process {}", self.id())))
    }

    /// What its process logs from now on.
    pub fn log(self, world: &World) -> Result<Log, Failure> {
        let path = world.cluster.root().join(format!("{}.log", self.id()));
        let from = std::fs::metadata(&path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?.len();
        Ok(Log { path, from })
    }

    /// What it says of itself.
    pub async fn inspect(self, world: &World) -> Result<Inspection, String> {
        match self.ask(world, &ShardRequest::Inspect).await? {
            ShardReply::Inspect(inspection) => Ok(*inspection),
            other => Err(format!("{other:?}")),
        }
    }

    /// What it reports to the placement driver, if it leads.
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
    pub fn pgdata(self, world: &World) -> Result<PathBuf, Failure> {
        Ok(self.data_dir(world)?.join("postgres"))
    }

    /// A superuser's session in its PostgreSQL, as whoever owns the machine can open it.
    pub async fn intrude(self, world: &World) -> Result<Client, Failure> {
        // The server says itself where its socket is: in its data folder, unless that has too long a name.
        let text = std::fs::read_to_string(self.pgdata(world)?.join("postmaster.pid"));
        let text = text.map_err(|e| Failure::new(e.to_string()))?;
        let socket = text.lines().nth(4).ok_or_else(|| Failure::new("the server is starting"))?;
        let mut config = Config::new();
        config.host_path(socket).port(5432).user("evenkeel").dbname("postgres").application_name("intruder");
        let (client, connection) = config.connect(NoTls).await.map_err(|e| Failure::new(e.to_string()))?;
        // It ends with the client, or with the server; the client hears of that.
        tokio::spawn(connection);
        Ok(client)
    }
}

/// The processes of sessions, among those that `condition` (SQL over `pg_stat_activity`) picks.
pub async fn backends(intruder: &Client, condition: &str) -> Result<Vec<i32>, String> {
    let sql = format!("SELECT pid FROM pg_stat_activity WHERE application_name <> 'intruder' AND {condition}");
    let rows = intruder.query(&sql, &[]).await.map_err(|e| e.to_string())?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Kills a process with SIGKILL.
pub fn kill_process_9(pid: i32) -> Outcome {
    let pid = Pid::from_raw(pid).ok_or_else(|| Failure::new("no process id"))?;
    kill_process(pid, Signal::KILL).map_err(|e| Failure::new(e.to_string()))
}

impl World {
    /// Pauses all replicas of a shard but its leader. It is asked afterwards whether it still is: leadership may have moved meanwhile.
    pub async fn alone(&self, shard: u32) -> Result<(Replica, Vec<ProcessId>), Failure> {
        self.until(&format!("a leader of shard {shard} that others leave alone"), PATIENCE, async || {
            let leader = self.serving(shard).await.map_err(|e| e.to_string())?;
            let numbers = (1..=self.cluster.options().replicas).filter(|number| *number != leader.number);
            let others: Vec<ProcessId> = numbers.map(|number| ProcessId::ShardNode(shard, number)).collect();
            others.iter().try_for_each(|id| self.cluster.pause(*id)).map_err(|e| e.to_string())?;
            if leader.inspect(self).await.is_ok_and(|inspection| inspection.leads) {
                return Ok((leader, others));
            }
            others.iter().try_for_each(|id| self.cluster.resume(*id)).map_err(|e| e.to_string())?;
            Err(format!("{leader:?} led"))
        })
        .await
    }

    /// The replica that leads a shard and serves, as the replicas themselves say.
    pub async fn serving(&self, shard: u32) -> Result<Replica, Failure> {
        self.serving_other_than(shard, None).await
    }

    /// The same; waits until it is another one than this.
    pub async fn serving_other_than(&self, shard: u32, not: Option<Replica>) -> Result<Replica, Failure> {
        self.until(&format!("another replica than {not:?} to serve shard {shard}"), PATIENCE, async || {
            let mut seen = Vec::new();
            for number in 1..=self.cluster.options().replicas {
                let replica = Replica { shard, number };
                let found = replica.inspect(self).await;
                if found.as_ref().is_ok_and(|i| i.leads) && Some(replica) != not {
                    return Ok(replica);
                }
                seen.push(found.map(|i| (i.leads, i.applied, i.postgres_pid)));
            }
            Err(format!("{seen:?}"))
        })
        .await
    }

    /// The replica that leads a shard, and the term of its leadership.
    pub async fn leadership(&self, shard: u32) -> Result<(Replica, u64), Failure> {
        self.until(&format!("shard {shard} to report"), PATIENCE, async || {
            let leader = self.serving(shard).await.map_err(|e| e.to_string())?;
            Ok((leader, leader.report(self).await?.term))
        })
        .await
    }

    /// Does something that sessions are not spared if leadership changes under them, which on a busy machine it may unasked: what failed is
    /// done again if the leadership has changed meanwhile. What fails within one leadership has failed.
    pub async fn within_one_leadership(&self, shard: u32, mut act: impl AsyncFnMut() -> Outcome) -> Outcome {
        let mut outcome = Ok(());
        for _ in 0..MOST_REIGNS {
            let before = self.leadership(shard).await?;
            outcome = act().await;
            if outcome.is_ok() || self.leadership(shard).await? == before {
                return outcome;
            }
            println!("    (leadership has changed: again)");
        }
        outcome
    }

    /// A replica of the shard that does not lead.
    pub async fn follower(&self, shard: u32) -> Result<Replica, Failure> {
        let leader = self.serving(shard).await?;
        Ok(Replica { shard, number: leader.number % self.cluster.options().replicas + 1 })
    }

    /// Waits until a replica's PostgreSQL runs, as another process than `not`, and holds all that it knew to be decided when first asked.
    pub async fn caught_up(&self, replica: Replica, not: Option<u32>) -> Outcome {
        let mut wanted = None;
        self.until(&format!("{} to catch up", replica.id()), PATIENCE, async || {
            let now = replica.inspect(self).await?;
            if now.postgres_pid.is_none() || now.postgres_pid == not {
                return Err(format!("{now:?}"));
            }
            let wanted = *wanted.get_or_insert(now.decided);
            if now.applied >= wanted { Ok(()) } else { Err(format!("{wanted} wanted: {now:?}")) }
        })
        .await
    }
}

/// What a process has logged since somebody began to look: lines that earlier scenarios caused are none of a later one's.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    from: u64,
}

impl Log {
    /// All of it so far.
    pub fn text(&self) -> Result<String, Failure> {
        let read = || {
            let mut file = std::fs::File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(|e: std::io::Error| Failure::new(format!("{}: {e}", self.path.display())))
    }

    /// Whether it has said this.
    pub fn says(&self, words: &str) -> Result<bool, Failure> {
        Ok(self.text()?.contains(words))
    }
}
