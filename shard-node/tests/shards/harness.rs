//! Shards of real replicas in this process, each with its own PostgreSQL, spoken to over RPC as
//! clients and the placement driver do.

use evenkeel_protocol::report::OperatorPhase;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::scrub::Compared;
use evenkeel_protocol::shard::*;
use evenkeel_protocol::*;
use evenkeel_rpc::Connection;
use evenkeel_shard_node::{Config, run};
use evenkeel_sql::{Command, parse};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

static SEQUENCE: AtomicU64 = AtomicU64::new(1);

/// A running replica.
struct Replica {
    config: Config,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// A shard.
pub struct Shard {
    pub info: ShardInfo,
    replicas: Vec<Replica>,
    dir: tempfile::TempDir,
}

/// Free addresses below the range from which outgoing connections take theirs, each given out once.
fn addresses(count: usize) -> BTreeMap<u64, SocketAddr> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let first = 12_000 + std::process::id() as u64 % 10_000;
    let mut free = std::iter::from_fn(|| Some(first + NEXT.fetch_add(1, Ordering::Relaxed)))
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port as u16)))
        .filter(|address| TcpListener::bind(address).is_ok());
    (1..=count as u64).map(|replica| (replica, free.next().unwrap())).collect()
}

impl Replica {
    fn start(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let config = self.config.clone();
        let task = tokio::spawn(async move {
            run(config, async move { drop(stopped.await) }).await.unwrap();
        });
        self.running = Some((stop, task));
    }

    async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            drop(stop);
            task.await.unwrap();
        }
    }
}

/// Three heartbeat rounds.
const STEADY: Duration = Duration::from_millis(450);

impl Shard {
    pub async fn start(id: u32, replicas: usize) -> Shard {
        Shard::start_with(id, replicas, "").await
    }

    /// The same with more lines of configuration.
    pub async fn start_with(id: u32, replicas: usize, more: &str) -> Shard {
        let dir = tempfile::tempdir().unwrap();
        let (rpc, log) = (addresses(replicas), addresses(replicas));
        let info = ShardInfo { id: ShardId(id), replicas: rpc.clone() };
        let config = |replica: u64| -> Config {
            let data_dir: PathBuf = Path::join(dir.path(), format!("r{replica}"));
            let text = format!("{more}{}", toml_of(id, replica, &data_dir, &rpc, &log));
            toml::from_str(&text).unwrap()
        };
        let replicas = (1..=replicas as u64).map(|r| Replica { config: config(r), running: None }).collect();
        let mut shard = Shard { info, replicas, dir };
        for replica in &mut shard.replicas {
            replica.start();
        }
        shard.wait_for_steady_leader().await;
        shard
    }

    pub async fn stop(mut self) {
        for replica in &mut self.replicas {
            replica.stop().await;
        }
    }

    pub async fn stop_replica(&mut self, replica: u64) {
        self.replicas[replica as usize - 1].stop().await;
    }

    /// Removes everything that a replica that is stopped has on its disk.
    pub fn wipe_replica(&self, replica: u64) {
        std::fs::remove_dir_all(&self.replicas[replica as usize - 1].config.data_dir).unwrap();
    }

    pub fn start_replica(&mut self, replica: u64) {
        self.replicas[replica as usize - 1].start();
    }

    pub async fn inspect(&self, replica: u64) -> Option<Inspection> {
        let address = self.info.replicas[&replica];
        let connection = Connection::<_, ShardReply>::connect(address, Duration::from_secs(1)).await.ok()?;
        match connection.call_within(&ShardRequest::Inspect, Duration::from_secs(1)).await.ok()? {
            ShardReply::Inspect(inspection) => Some(*inspection),
            _ => None,
        }
    }

    /// Waits for a replica that serves as leader.
    pub async fn leader(&self) -> u64 {
        let begun = evenkeel_host::now();
        loop {
            for replica in self.info.replicas.keys() {
                if self.inspect(*replica).await.is_some_and(|i| i.leads) {
                    return *replica;
                }
            }
            assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(60), "shard {} has no leader", self.info.id);
            evenkeel_host::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for a leader that has led for three heartbeat rounds: replicas that start one after
    /// another elect more than once within these.
    async fn wait_for_steady_leader(&self) {
        let mut leader = self.leader().await;
        let mut since = evenkeel_host::now();
        while evenkeel_host::elapsed(since) < STEADY {
            evenkeel_host::sleep(Duration::from_millis(20)).await;
            let now = self.leader().await;
            if now != leader {
                (leader, since) = (now, evenkeel_host::now());
            }
        }
    }

    /// Asks the leader; follows redirects to other replicas, waits while there is none.
    pub async fn ask(&self, request: &ShardRequest) -> ShardReply {
        let begun = evenkeel_host::now();
        loop {
            let leader = self.leader().await;
            let address = self.info.replicas[&leader];
            let reply = async {
                let connection = Connection::<_, ShardReply>::connect(address, Duration::from_secs(1)).await.ok()?;
                connection.call_within(request, Duration::from_secs(20)).await.ok()
            };
            match reply.await {
                Some(ShardReply::Failed(
                    Failure::NotLeader { .. } | Failure::Busy { .. } | Failure::OutcomeUnknown { .. },
                ))
                | None => {}
                Some(reply) => return reply,
            }
            assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(30), "no answer to {request:?}");
            evenkeel_host::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A connection to the leader, which stays to one leadership.
    pub async fn connect_to_leader(&self) -> Connection<ShardRequest, ShardReply> {
        let address = self.info.replicas[&self.leader().await];
        Connection::connect(address, Duration::from_secs(5)).await.unwrap()
    }

    /// The term of the leadership that serves.
    pub async fn term(&self) -> u64 {
        let ControlReply::Report(report) = self.control(ControlRequest::Report).await else { panic!("no report") };
        report.term
    }

    /// Runs a scene that wants one leadership, and again if there was another: on a busy machine
    /// one may begin at any time.
    pub async fn in_one_leadership<T>(
        &self,
        mut scene: impl AsyncFnMut(Connection<ShardRequest, ShardReply>) -> T,
    ) -> T {
        let begun = evenkeel_host::now();
        loop {
            let term = self.term().await;
            let outcome = scene(self.connect_to_leader().await).await;
            if self.term().await == term {
                return outcome;
            }
            assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(120), "no leadership lasts");
        }
    }

    pub async fn control(&self, request: ControlRequest) -> ControlReply {
        match self.ask(&ShardRequest::Control(request)).await {
            ShardReply::Control(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    pub async fn create_table(&self, sql: &str, table: u32, range: u64) -> TableSchema {
        let schema = definition(sql, table);
        let request = ControlRequest::CreateTable { schema: schema.clone(), range: RangeId(range) };
        assert_eq!(self.control(request).await, ControlReply::Done);
        schema
    }

    pub async fn sql(&self, sql: &str, params: &[Value]) -> Result<StatementReply, Failure> {
        match self.ask(&ShardRequest::Statement(statement(sql, params))).await {
            ShardReply::Rows(reply) => Ok(reply),
            ShardReply::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// Moves a range of this shard, given with its epoch, to another; gives its epoch and rows
    /// there.
    pub async fn moved(
        &self,
        destination: &Shard,
        operator: OperatorId,
        (range, epoch): (RangeId, Epoch),
        schema: &TableSchema,
        interval: KeyInterval,
    ) -> (Epoch, u64) {
        let open = ControlRequest::MoveOpen { operator, range, epoch, to: destination.info.clone() };
        assert_eq!(self.control(open).await, ControlReply::Done);
        let (schema, from) = (schema.clone(), self.info.clone());
        let ingest = ControlRequest::IngestOpen { operator, schema, range, interval, epoch, from };
        assert_eq!(destination.control(ingest).await, ControlReply::Done);
        let begun = evenkeel_host::now();
        loop {
            let ControlReply::Report(report) = destination.control(ControlRequest::Report).await else { panic!() };
            let phase = report.operators.iter().find(|o| o.operator == operator).map(|o| o.phase.clone());
            if let Some(OperatorPhase::Adopted { epoch, rows, pause_us, .. }) = phase {
                println!("moved in {:?}, paused {pause_us} µs", evenkeel_host::elapsed(begun));
                return (epoch, rows);
            }
            assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(60), "{phase:?}");
            evenkeel_host::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Compares all of the shard's ranges on all replicas.
    pub async fn compared(&self) -> Compared {
        let mut compared = Compared::default();
        let mut left_behind = true;
        loop {
            let request = ControlRequest::Compare { from: compared.next.clone(), left_behind };
            let ControlReply::Compared(found) = self.control(request).await else { panic!("not compared") };
            compared.add(*found);
            left_behind = false;
            if compared.next.is_none() {
                return compared;
            }
        }
    }

    /// What each replica holds without a reason to: the replica, and the key of the first row of
    /// each place.
    pub async fn left_behind(&self) -> Vec<(u64, Key)> {
        let compared = self.compared().await;
        assert!(compared.silent.is_empty(), "{compared:?}");
        compared.left_behind.into_iter().map(|(replica, _, key)| (replica, key)).collect()
    }

    /// Executes SQL in one replica's PostgreSQL, behind the store's back, once it holds all that
    /// was answered so far.
    pub async fn behind_the_back(&self, replica: u64, sql: &str) {
        self.caught_up(replica).await;
        self.postgres(replica).await.batch_execute(sql).await.unwrap();
    }

    /// Waits until a replica's PostgreSQL holds all that the leader knows to be decided by now: a
    /// statement is answered before followers have executed it.
    async fn caught_up(&self, replica: u64) {
        let leader = self.leader().await;
        let decided = self.inspect(leader).await.expect("the leader answers").decided;
        let begun = evenkeel_host::now();
        while self.inspect(replica).await.is_none_or(|i| i.seeding || i.applied < decided) {
            assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(60), "replica {replica} is not at {decided}");
            evenkeel_host::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A session of one replica's PostgreSQL.
    pub async fn postgres(&self, replica: u64) -> tokio_postgres::Client {
        self.postgres_if_there(replica).await.unwrap()
    }

    /// The same, while the replica may be starting.
    pub async fn postgres_if_there(&self, replica: u64) -> Option<tokio_postgres::Client> {
        let socket = self.dir.path().join(format!("r{replica}")).join("socket");
        let config = format!("host={} user=evenkeel dbname=postgres", socket.display());
        let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// All replicas hold the same; gives (rows, sum) per range.
    pub async fn checked_sums(&self) -> Vec<(RangeId, RangeChecksum)> {
        let compared = self.compared().await;
        assert!(compared.differences.is_empty() && compared.silent.is_empty(), "{compared:?}");
        compared.ranges.into_iter().collect()
    }
}

fn toml_of(
    shard: u32,
    replica: u64,
    dir: &Path,
    rpc: &BTreeMap<u64, SocketAddr>,
    log: &BTreeMap<u64, SocketAddr>,
) -> String {
    let map = |m: &BTreeMap<u64, SocketAddr>| m.iter().map(|(k, v)| format!("{k} = \"{v}\"\n")).collect::<String>();
    format!(
        "shard = {shard}\nreplica = {replica}\ndata_dir = {dir:?}\nshared_buffers_mib = 16\n[rpc]\n{}[log]\n{}",
        map(rpc),
        map(log)
    )
}

/// A table as the placement driver hands it on.
pub fn definition(sql: &str, table: u32) -> TableSchema {
    let Command::CreateTable { mut schema, .. } = parse(sql).unwrap() else { panic!("no CREATE TABLE") };
    schema.id = TableId(table);
    schema
}

pub fn id() -> TxnId {
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    TxnId { client: 7, sequence, first_sent_ms: evenkeel_host::wall_ms() }
}

pub fn statement(sql: &str, params: &[Value]) -> StatementRequest {
    StatementRequest {
        id: id(),
        sql: sql.into(),
        params: params.to_vec(),
        clip: None,
        limit: None,
        read: ReadLevel::Linearizable,
        max_staleness_ms: None,
        durability: Durability::Disk,
    }
}
