//! A whole cluster on this machine, as child processes of one executable.
//!
//! `demo`, `bench` and the integration tests stand on it. It owns the processes it starts, their folders and their addresses, and
//! promises to leave nothing behind: [`Cluster::stop`] ends everything in good order, dropping a [`Cluster`] ends everything
//! at once, and if this process itself is killed, the children see their standard input close and end by themselves. That
//! includes PostgreSQL servers orphaned by a `kill -9` of their shard node: they are found by the `postmaster.pid` in
//! their data folder (see [`postgres`]).
//!
//! Nothing here waits for time; everything waits for a condition with a deadline, and a deadline that passes is reported with
//! the end of the log of the process that is to blame (see [`wait`]).
//!
//! | module | what it holds |
//! |---|---|
//! | [`layout`] | which processes there are, their addresses and configurations (pure) |
//! | `members` | replicas that come, go, and lose their disks |
//! | [`process`] | one child process: start, signals, end |
//! | [`postgres`] | the PostgreSQL server in a data folder: its pid, its end |
//! | [`links`] | the network between them, which can be cut |
//! | [`wait`] | waiting for conditions |
//! | [`endpoints`] | the `--endpoints` file |
//! | `kept` | what a folder needs for its cluster to be started again |

pub mod endpoints;
mod kept;
pub mod layout;
pub mod links;
mod members;
pub mod postgres;
pub mod process;
pub mod wait;

use crate::config::ConfigError;
use crate::rest::{Rest, RestError};
use endpoints::{EndpointProcess, Endpoints};
use evenkeel_host::ports;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::ShardBody;
use evenkeel_protocol::routing::ShardInfo;
use layout::{Layout, ProcessSpec};
use links::{Links, Party, Weather};
use process::Process;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a process is. Ordered as they are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProcessId {
    /// A replica of the placement driver, by number.
    PlacementDriver(u64),
    /// A replica of a shard: shard, and number.
    ShardNode(u32, u64),
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessId::PlacementDriver(replica) => write!(f, "placement-driver-{replica}"),
            ProcessId::ShardNode(shard, replica) => write!(f, "shard-{shard}-{replica}"),
        }
    }
}

impl ProcessId {
    /// The subcommand that runs it.
    pub fn role(self) -> &'static str {
        match self {
            ProcessId::PlacementDriver(_) => "placement-driver",
            ProcessId::ShardNode(..) => "shard-node",
        }
    }
}

/// What cluster to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The executable that has the subcommands.
    pub executable: PathBuf,
    /// Shards, numbered from 1.
    pub shards: u32,
    /// Replicas of each shard.
    pub replicas: u64,
    /// Replicas of the placement driver.
    pub placement_drivers: u64,
    /// Where everything is kept, and a cluster that was here before is started again; absent: a temporary folder, removed in the end.
    pub data_dir: Option<PathBuf>,
    /// Statements a second that each shard's leader admits at most.
    pub shard_capacity_per_s: Option<f64>,
    /// The folder with PostgreSQL's programs; absent: found.
    pub postgres_bin: Option<PathBuf>,
    /// The placement driver's `[balancer]` section; what is absent has its default.
    pub balancer: toml::Table,
    /// Further settings of every shard node.
    pub shard_node: toml::Table,
    /// Whether the cluster is there to be hurt: all traffic goes through [`links`], and processes can be hindered
    /// ([`Cluster::hinder`]).
    pub links: bool,
    /// What the processes log (`RUST_LOG` syntax).
    pub log: String,
    /// How long to wait for the cluster to be up, in milliseconds.
    pub start_timeout_ms: u64,
}

impl ClusterOptions {
    /// Three placement drivers and three shards of three replicas each, run by `executable`.
    pub fn new(executable: impl Into<PathBuf>) -> ClusterOptions {
        ClusterOptions {
            executable: executable.into(),
            shards: 3,
            replicas: 3,
            placement_drivers: 3,
            data_dir: None,
            shard_capacity_per_s: None,
            postgres_bin: None,
            balancer: toml::Table::new(),
            shard_node: toml::Table::new(),
            links: false,
            log: "info".into(),
            start_timeout_ms: 120_000,
        }
    }
}

/// Why a cluster did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file, a folder, a port or a process could not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A cluster that was here before cannot have its port again.
    #[error("port {port} is taken by another program, and the cluster in {} listens on it: end that program, or this cluster if it still runs", .root.display())]
    PortTaken {
        /// The port.
        port: u16,
        /// The cluster's folder.
        root: PathBuf,
    },
    /// A process ended by itself.
    #[error("{process} ended by itself ({status}); the end of {}:\n{tail}", .log.display())]
    Died {
        /// Which.
        process: ProcessId,
        /// How it ended.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A condition did not come true in time.
    #[error("waited {seconds:.0} s for {condition}; last seen: {seen}{blame}")]
    Timeout {
        /// For what.
        condition: String,
        /// How long, in seconds.
        seconds: f64,
        /// What was seen last.
        seen: String,
        /// The end of the most telling log, if there is one.
        blame: String,
    },
    /// There is no such process in this cluster.
    #[error("there is no process {0} in this cluster")]
    NoSuchProcess(ProcessId),
    /// The configuration could not be written.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The placement driver refused.
    #[error(transparent)]
    Rest(#[from] RestError),
}

impl ClusterError {
    /// An I/O error, with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ClusterError {
        move |source| ClusterError::Io { what: what.into(), source }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    root: PathBuf,
    /// Kept for its end: a temporary folder goes when the cluster goes.
    temporary: Option<tempfile::TempDir>,
    state: Mutex<State>,
    links: Links,
    rest: Rest,
}

#[derive(Debug)]
struct State {
    layout: Layout,
    processes: BTreeMap<ProcessId, Process>,
    endpoints_file: Option<PathBuf>,
}

impl Cluster {
    /// Starts a cluster and waits until every shard has a leader that has reported to the placement driver.
    pub async fn start(options: ClusterOptions) -> Result<Cluster, ClusterError> {
        let cluster = Cluster::launch(options)?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Starts the processes and waits for nothing. With links it must be called within a tokio runtime.
    pub fn launch(options: ClusterOptions) -> Result<Cluster, ClusterError> {
        let (root, temporary) = make_root(options.data_dir.as_deref())?;
        let wanted = options.placement_drivers as usize * 3 + options.shards as usize * options.replicas as usize * 2;
        let ports = kept::ports(&options, &root, wanted * if options.links { 2 } else { 1 })?;
        let layout = Layout::new(&options, &root, ports);
        let rest = Rest::new(layout.rest_urls());
        let specs = layout.specs(&options)?;
        let state = State { layout, processes: BTreeMap::new(), endpoints_file: None };
        let cluster = Cluster { options, root, temporary, state: Mutex::new(state), links: Links::default(), rest };
        for spec in specs {
            cluster.launch_process(spec)?;
        }
        Ok(cluster)
    }

    /// Waits until all replicas are up and every shard has a leader that has reported and hears from its followers; registers
    /// the shards with the placement driver on the way.
    pub async fn wait_ready(&self) -> Result<(), ClusterError> {
        let deadline = Instant::now() + Duration::from_millis(self.options.start_timeout_ms);
        wait::placement_drivers_ready(self, deadline).await?;
        for shard in self.shards() {
            self.register(&shard, deadline).await?;
        }
        wait::shards_ready(self, deadline).await
    }

    /// The placement driver's REST interface, through any of its replicas.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// The folder that everything is kept in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How the cluster was made.
    pub fn options(&self) -> &ClusterOptions {
        &self.options
    }

    /// Shards and where their replicas listen.
    pub fn shards(&self) -> Vec<ShardInfo> {
        self.lock().layout.shard_infos()
    }

    /// Every process, running or not.
    pub fn process_ids(&self) -> Vec<ProcessId> {
        self.lock().processes.keys().copied().collect()
    }

    /// The process id of a running process.
    pub fn pid(&self, id: ProcessId) -> Option<u32> {
        self.lock().processes.get(&id)?.pid()
    }

    /// The data folder of a process.
    pub fn data_dir(&self, id: ProcessId) -> Option<PathBuf> {
        Some(self.lock().processes.get(&id)?.spec().data_dir.clone())
    }

    /// The last lines of a process's log.
    pub fn log_tail(&self, id: ProcessId, lines: usize) -> String {
        self.lock().processes.get(&id).map(|p| p.log_tail(lines)).unwrap_or_default()
    }

    /// Kills a process with SIGKILL and waits until it is gone. Its PostgreSQL server, if it has one, lives on, as it would on a
    /// real machine.
    pub fn kill(&self, id: ProcessId) -> Result<(), ClusterError> {
        self.with(id, |process| process.kill())
    }

    /// Kills the PostgreSQL server of a shard's replica with SIGKILL. Returns its process id.
    pub fn kill_postgres(&self, id: ProcessId) -> Result<u32, ClusterError> {
        let data = self.data_dir(id).ok_or(ClusterError::NoSuchProcess(id))?;
        let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "no PostgreSQL server runs there");
        let postmaster = postgres::Postmaster::find(&data).ok_or_else(missing);
        let postmaster = postmaster.map_err(ClusterError::io(format!("PostgreSQL of {id}")))?;
        postmaster.kill().map_err(ClusterError::io(format!("killing PostgreSQL of {id}")))?;
        Ok(postmaster.pid())
    }

    /// Stops a process where it stands (SIGSTOP); all of its threads stand when this returns.
    pub fn pause(&self, id: ProcessId) -> Result<(), ClusterError> {
        self.with(id, |process| process.pause())
    }

    /// Lets a paused process go on (SIGCONT).
    pub fn resume(&self, id: ProcessId) -> Result<(), ClusterError> {
        self.with(id, |process| process.signal(rustix::process::Signal::CONT))
    }

    /// Cuts a process off from all others and from clients, or lets it back (needs [`ClusterOptions::links`]).
    pub fn cut_off(&self, id: ProcessId, blocked: bool) {
        let weather = Weather { blocked, delay_ms: 0 };
        let others = self.process_ids().into_iter().filter(|other| *other != id).map(Party::Process);
        for other in others.chain([Party::Outside]) {
            self.links.set_both(Party::Process(id), other, weather);
        }
    }

    /// Hinders a process (needs [`ClusterOptions::links`]): writes `value` to `file`, one of those in
    /// [`evenkeel_replicated_log::hindrance`].
    pub fn hinder(&self, id: ProcessId, file: &str, value: i64) -> Result<(), ClusterError> {
        let path = self.data_dir(id).ok_or(ClusterError::NoSuchProcess(id))?.join(file);
        std::fs::write(&path, value.to_string()).map_err(ClusterError::io(format!("writing {}", path.display())))
    }

    /// The network between the processes; without [`ClusterOptions::links`] nothing goes over it.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Starts a process again that has ended or was killed; one that still runs is killed first.
    pub fn restart(&self, id: ProcessId) -> Result<(), ClusterError> {
        let pid = self.with(id, |process| {
            process.kill()?;
            process.start()?;
            Ok(process.pid())
        })?;
        pid.into_iter().for_each(|pid| self.links.started(id, pid));
        self.write_endpoints()
    }

    /// Starts the replicas of a further shard and registers it. Returns once its leader has reported.
    pub async fn add_shard(&self) -> Result<ShardId, ClusterError> {
        let wanted = self.options.replicas as usize * if self.options.links { 4 } else { 2 };
        let ports = ports::reserve(wanted).map_err(ClusterError::io("finding free ports"))?;
        let (shard, specs) = self.lock().layout.add_shard(&self.options, ports)?;
        for spec in specs {
            self.launch_process(spec)?;
        }
        let deadline = Instant::now() + Duration::from_millis(self.options.start_timeout_ms);
        self.register(&shard, deadline).await?;
        wait::shards_ready(self, deadline).await?;
        self.write_endpoints()?;
        Ok(shard.id)
    }

    /// Ends the processes of a shard that the placement driver has let go, and forgets them.
    pub fn remove_shard(&self, shard: ShardId) -> Result<(), ClusterError> {
        let mut state = self.lock();
        state.layout.remove_shard(shard);
        let of_shard = |id: &ProcessId| matches!(id, ProcessId::ShardNode(s, _) if *s == shard.0);
        let ids: Vec<_> = state.processes.keys().copied().filter(of_shard).collect();
        let mut gone: Vec<Process> = ids.iter().filter_map(|id| state.processes.remove(id)).collect();
        drop(state);
        process::stop_all(&mut gone.iter_mut().collect::<Vec<_>>(), process::STOP_TIMEOUT_MS);
        self.write_endpoints()
    }

    /// How to reach the cluster, and what runs.
    pub fn endpoints(&self) -> Endpoints {
        let state = self.lock();
        let process = |p: &Process| EndpointProcess {
            role: p.spec().id.role().to_string(),
            name: p.spec().id.to_string(),
            pid: p.pid(),
            data: p.spec().data_dir.clone(),
        };
        Endpoints { rest: state.layout.rest_urls(), processes: state.processes.values().map(process).collect() }
    }

    /// Writes [`Cluster::endpoints`] as JSON to `path`, now and after every restart.
    pub fn keep_endpoints_in(&self, path: &Path) -> Result<(), ClusterError> {
        self.lock().endpoints_file = Some(path.to_path_buf());
        self.write_endpoints()
    }

    /// The first process found to have ended without having been told to.
    pub fn died(&self) -> Option<ClusterError> {
        let mut state = self.lock();
        let process = state.processes.values_mut().find_map(|p| p.died().then_some(p))?;
        Some(ClusterError::Died {
            process: process.spec().id,
            status: process.status_text(),
            log: process.spec().log_file.clone(),
            tail: process.log_tail(20),
        })
    }

    /// Ends every process in good order, what does not end in time by force, then what PostgreSQL servers are left.
    pub async fn stop(self) {
        let stopping = tokio::task::spawn_blocking(move || {
            let mut state = self.lock();
            process::stop_all(&mut state.processes.values_mut().collect::<Vec<_>>(), process::STOP_TIMEOUT_MS);
            drop(state);
            drop(self);
        });
        if let Err(error) = stopping.await {
            tracing::error!(%error, "stopping the cluster");
        }
    }

    fn launch_process(&self, spec: ProcessSpec) -> Result<(), ClusterError> {
        let id = spec.id;
        for (front, real) in self.lock().layout.fronts_of(id) {
            self.links.open(id, front, real).map_err(ClusterError::io(format!("opening a link to {id}")))?;
        }
        let mut process = Process::new(&self.options, spec)?;
        process.start()?;
        process.pid().into_iter().for_each(|pid| self.links.started(id, pid));
        self.lock().processes.insert(id, process);
        Ok(())
    }

    async fn register(&self, shard: &ShardInfo, deadline: Instant) -> Result<(), ClusterError> {
        let body = shard_body(shard.clone());
        loop {
            match self.rest.post::<_, serde_json::Value>("/v1/shards", &body).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() < deadline && error.is_temporary() => wait::pause().await,
                Err(error) => return Err(error.into()),
            }
            if let Some(died) = self.died() {
                return Err(died);
            }
        }
    }

    fn write_endpoints(&self) -> Result<(), ClusterError> {
        let Some(path) = self.lock().endpoints_file.clone() else {
            return Ok(());
        };
        self.endpoints().write(&path).map_err(ClusterError::io(format!("writing {}", path.display())))
    }

    fn with<T>(
        &self,
        id: ProcessId,
        f: impl FnOnce(&mut Process) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        f(self.lock().processes.get_mut(&id).ok_or(ClusterError::NoSuchProcess(id))?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not keep the processes from being stopped.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut state = self.lock();
        for process in state.processes.values_mut() {
            if let Err(error) = process.kill() {
                tracing::warn!(%error, "killing {}", process.spec().id);
            }
        }
        let folders: Vec<_> = state.processes.values().map(|p| p.spec().data_dir.clone()).collect();
        drop(state);
        postgres::stop_left_behind(&folders);
        if let Some(temporary) = self.temporary.take()
            && let Err(error) = temporary.close()
        {
            tracing::warn!(%error, "removing {}", self.root.display());
        }
    }
}

/// The body that registers a shard.
pub fn shard_body(info: ShardInfo) -> ShardBody {
    ShardBody {
        info,
        status: String::new(),
        leader: None,
        ranges: 0,
        statements_per_s: 0.0,
        capacity_per_s: None,
        report_age_ms: None,
        clock_off_ms: None,
        replicas_seen: Vec::new(),
        scrub: None,
    }
}

/// An address on this machine that nobody else can reach.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn make_root(wanted: Option<&Path>) -> Result<(PathBuf, Option<tempfile::TempDir>), ClusterError> {
    let (root, temporary) = match wanted {
        Some(path) => {
            let made = std::fs::create_dir_all(path).and_then(|()| path.canonicalize());
            let accepted = |e| format!("a folder that can be had; this one: {e}");
            let made =
                made.map_err(|e| ConfigError::value("data_dir", path.display(), "configuration", accepted(e)))?;
            (made, None)
        }
        None => {
            let made = tempfile::Builder::new().prefix("evenkeel-").tempdir();
            let made = made.map_err(ClusterError::io("making a temporary folder"))?;
            (made.path().to_path_buf(), Some(made))
        }
    };
    // When started as root, PostgreSQL runs as an unprivileged user, who has to get through to its data.
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755))
        .map_err(ClusterError::io(format!("opening {} to PostgreSQL's user", root.display())))?;
    Ok((root, temporary))
}
