//! A cluster of local processes: its start, its faults, its growth, its end.

use crate::endpoints::Endpoints;
use crate::error::{ClusterError, InvalidSetting};
use crate::layout::{Layout, ProcessSpec};
use crate::links::{LinkEnd, LinkFault, Links};
use crate::options::ClusterOptions;
use crate::postmaster::{self, Postmaster};
use crate::process::{self, Process};
use crate::process_id::ProcessId;
use crate::process_table::ProcessTable;
use crate::registration::shard_body;
use crate::{saved_cluster, wait};
use evenkeel_client::admin::AdminClient;
use evenkeel_host::ports;
use evenkeel_placement_driver::NewMember;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::NewReplica;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    root: PathBuf,
    /// Held for its end: the folder is removed with the cluster.
    temporary: Option<tempfile::TempDir>,
    processes: ProcessTable,
    links: Links,
    admin: AdminClient,
}

impl Cluster {
    /// Starts a cluster and waits until every shard has a leader that has reported to the placement
    /// driver.
    pub async fn start(options: ClusterOptions) -> Result<Cluster, ClusterError> {
        let cluster = Cluster::launch(options)?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Starts the processes and returns at once. With links it must be called within a tokio
    /// runtime.
    pub fn launch(options: ClusterOptions) -> Result<Cluster, ClusterError> {
        let (root, temporary) = make_root(options.data_dir.as_deref())?;
        let wanted = options.placement_drivers as usize * 3 + options.shards as usize * options.replicas as usize * 2;
        let ports = saved_cluster::ports(&options, &root, wanted * if options.links { 2 } else { 1 })?;
        let layout = Layout::new(&options, &root, ports);
        let admin = AdminClient::new(layout.rest_urls());
        let specs = layout.specs(&options)?;
        let processes = ProcessTable::new(layout);
        let cluster = Cluster { options, root, temporary, processes, links: Links::default(), admin };
        for spec in specs {
            cluster.launch_process(spec)?;
        }
        Ok(cluster)
    }

    /// Registers the shards with the placement driver, and waits until every replica runs and every
    /// shard has a leader that has reported and has its followers connected. Then starts the
    /// gateway, if there is to be one, and waits until it answers.
    pub async fn wait_ready(&self) -> Result<(), ClusterError> {
        let deadline = evenkeel_host::now() + Duration::from_millis(self.options.start_timeout_ms);
        self.wait_placement_drivers_ready(deadline).await?;
        for shard in self.shards() {
            self.register(&shard, deadline).await?;
        }
        self.wait_shards_ready(deadline).await?;
        self.start_gateway(deadline).await
    }

    /// See [`wait::until`].
    pub async fn wait_until<T>(
        &self,
        condition: &str,
        deadline: Instant,
        look: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, ClusterError> {
        wait::until(&self.processes, condition, deadline, look).await
    }

    /// See [`wait::placement_drivers_ready`].
    pub async fn wait_placement_drivers_ready(&self, deadline: Instant) -> Result<(), ClusterError> {
        wait::placement_drivers_ready(&self.processes, &self.admin, deadline).await
    }

    /// See [`wait::shards_ready`].
    pub async fn wait_shards_ready(&self, deadline: Instant) -> Result<(), ClusterError> {
        wait::shards_ready(&self.processes, &self.admin, deadline).await
    }

    /// See [`wait::shards_whole`].
    pub async fn wait_shards_whole(&self, deadline: Instant) -> Result<(), ClusterError> {
        wait::shards_whole(&self.processes, &self.admin, deadline).await
    }

    /// A client of the placement driver, through any of its replicas.
    pub fn admin(&self) -> &AdminClient {
        &self.admin
    }

    /// The cluster's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The options that the cluster was started with.
    pub fn options(&self) -> &ClusterOptions {
        &self.options
    }

    /// The shards and the addresses of their replicas.
    pub fn shards(&self) -> Vec<ShardInfo> {
        self.processes.shards()
    }

    /// Every process, running or not.
    pub fn process_ids(&self) -> Vec<ProcessId> {
        self.processes.ids()
    }

    /// The operating system's number of a running process.
    pub fn pid(&self, id: ProcessId) -> Option<u32> {
        self.processes.pid(id)
    }

    /// The data folder of a process.
    pub fn data_dir(&self, id: ProcessId) -> Option<PathBuf> {
        self.processes.data_dir(id)
    }

    /// The last lines of a process's log.
    pub fn log_tail(&self, id: ProcessId, lines: usize) -> String {
        self.processes.log_tail(id, lines)
    }

    /// Kills a process with SIGKILL and waits until it has ended. Its PostgreSQL server, if it has
    /// one, keeps running, as it would on a real machine.
    pub fn kill(&self, id: ProcessId) -> Result<(), ClusterError> {
        self.processes.with(id, |process| process.kill())
    }

    /// Kills the PostgreSQL server of a shard's replica with SIGKILL. Returns the number of the
    /// killed process.
    pub fn kill_postgres(&self, id: ProcessId) -> Result<u32, ClusterError> {
        let data = self.data_dir(id).ok_or(ClusterError::NoSuchProcess(id))?;
        let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "no PostgreSQL server runs there");
        let postmaster = Postmaster::find(&data).ok_or_else(missing);
        let postmaster = postmaster.map_err(ClusterError::io(format!("PostgreSQL of {id}")))?;
        postmaster.kill().map_err(ClusterError::io(format!("killing PostgreSQL of {id}")))?;
        Ok(postmaster.pid())
    }

    /// Stops a process with SIGSTOP; all of its threads have stopped when this returns.
    pub fn pause(&self, id: ProcessId) -> Result<(), ClusterError> {
        self.processes.with(id, |process| process.pause())
    }

    /// Continues a stopped process with SIGCONT.
    pub fn resume(&self, id: ProcessId) -> Result<(), ClusterError> {
        self.processes.with(id, |process| process.signal(rustix::process::Signal::CONT))
    }

    /// Blocks or opens every link of a process, to other processes and to clients (needs
    /// [`ClusterOptions::links`]).
    pub fn cut_off(&self, id: ProcessId, blocked: bool) {
        let fault = LinkFault { blocked, delay_ms: 0 };
        let others = self.process_ids().into_iter().filter(|other| *other != id).map(LinkEnd::Process);
        for other in others.chain([LinkEnd::Outside]) {
            self.links.set_both(LinkEnd::Process(id), other, fault);
        }
    }

    /// Sets a fault hook of a process (needs [`ClusterOptions::links`]): writes `value` to `file`,
    /// one of those in [`evenkeel_replicated_log::fault_hook`].
    pub fn set_fault_hook(&self, id: ProcessId, file: &str, value: i64) -> Result<(), ClusterError> {
        let path = self.data_dir(id).ok_or(ClusterError::NoSuchProcess(id))?.join(file);
        std::fs::write(&path, value.to_string()).map_err(ClusterError::io(format!("writing {}", path.display())))
    }

    /// The network between the processes. Without [`ClusterOptions::links`] no traffic passes over
    /// it.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Starts a process again. A process that still runs is killed first.
    pub fn restart(&self, id: ProcessId) -> Result<(), ClusterError> {
        let pid = self.processes.with(id, |process| {
            process.kill()?;
            process.start()?;
            Ok(process.pid())
        })?;
        pid.into_iter().for_each(|pid| self.links.started(id, pid));
        self.processes.write_endpoints()
    }

    /// Starts the replicas of a further shard and registers it. Returns once its leader has
    /// reported.
    pub async fn add_shard(&self) -> Result<ShardId, ClusterError> {
        let wanted = self.options.replicas as usize * if self.options.links { 4 } else { 2 };
        let ports = reserve(wanted)?;
        let (shard, specs) = self.processes.with_layout(|layout| layout.add_shard(&self.options, ports))?;
        for spec in specs {
            self.launch_process(spec)?;
        }
        let deadline = evenkeel_host::now() + Duration::from_millis(self.options.start_timeout_ms);
        self.register(&shard, deadline).await?;
        self.wait_shards_ready(deadline).await?;
        self.processes.write_endpoints()?;
        Ok(shard.id)
    }

    /// Ends the processes of a shard that the placement driver has removed, and forgets them.
    pub fn remove_shard(&self, shard: ShardId) -> Result<(), ClusterError> {
        let mut removed = self.processes.remove_shard(shard);
        process::stop_all(&mut removed.iter_mut().collect::<Vec<_>>(), process::STOP_TIMEOUT_MS);
        self.processes.write_endpoints()
    }

    /// Starts a further replica of a shard, which waits to be added to the group (`POST
    /// /v1/shards/{id}/replicas`).
    pub fn start_replica(&self, shard: ShardId) -> Result<NewReplica, ClusterError> {
        let ports = reserve(2)?;
        let (new, spec) = self.processes.with_layout(|layout| layout.add_replica(&self.options, shard, &ports))?;
        self.launch_process(spec)?;
        self.processes.write_endpoints()?;
        Ok(new)
    }

    /// Starts a further replica of the placement driver, which waits to be added to the group
    /// (`POST /v1/members`).
    pub fn start_placement_driver(&self) -> Result<NewMember, ClusterError> {
        let ports = reserve(3)?;
        let (new, spec) = self.processes.with_layout(|layout| layout.add_placement_driver(&self.options, &ports))?;
        self.launch_process(spec)?;
        self.processes.write_endpoints()?;
        Ok(new)
    }

    /// Loses a machine: kills a process, deletes its data, and forgets it.
    pub fn lose(&self, id: ProcessId) -> Result<(), ClusterError> {
        let mut process = self.processes.remove(id)?;
        process.kill()?;
        delete(&process.spec().data_dir)?;
        self.processes.write_endpoints()
    }

    /// Kills a process, deletes its data, and starts it again.
    pub fn wipe(&self, id: ProcessId) -> Result<(), ClusterError> {
        self.processes.with(id, |process| {
            process.kill()?;
            let folder = process.spec().data_dir.clone();
            delete(&folder)?;
            std::fs::create_dir_all(&folder).map_err(ClusterError::io(format!("making {}", folder.display())))?;
            process.start()
        })?;
        self.processes.write_endpoints()
    }

    /// Where the gateway listens, if there is one.
    pub fn gateway(&self) -> Option<SocketAddr> {
        self.processes.with_layout(|layout| layout.gateway())
    }

    /// The URLs of the cluster and its processes.
    pub fn endpoints(&self) -> Endpoints {
        self.processes.endpoints()
    }

    /// Writes [`Cluster::endpoints`] as JSON to `path`, now and after every change of the
    /// processes.
    pub fn keep_endpoints_in(&self, path: &Path) -> Result<(), ClusterError> {
        self.processes.set_endpoints_file(path);
        self.processes.write_endpoints()
    }

    /// The first process found to have ended although its end was not requested, as an error.
    pub fn died(&self) -> Option<ClusterError> {
        self.processes.died()
    }

    /// Ends every process in order, and after a timeout with SIGKILL, and then the PostgreSQL
    /// servers that are left.
    pub async fn stop(self) {
        let stopping = tokio::task::spawn_blocking(move || {
            self.processes.stop_all();
            drop(self);
        });
        if let Err(error) = stopping.await {
            tracing::error!(%error, "stopping the cluster");
        }
    }

    fn launch_process(&self, spec: ProcessSpec) -> Result<(), ClusterError> {
        let id = spec.id;
        for (front, real) in self.processes.with_layout(|layout| layout.proxies_of(id)) {
            self.links.open(id, front, real).map_err(ClusterError::io(format!("opening a link to {id}")))?;
        }
        let mut process = Process::new(&self.options, spec)?;
        process.start()?;
        process.pid().into_iter().for_each(|pid| self.links.started(id, pid));
        self.processes.insert(process);
        Ok(())
    }

    async fn start_gateway(&self, deadline: Instant) -> Result<(), ClusterError> {
        let (spec, address) =
            self.processes.with_layout(|layout| (layout.gateway_spec(&self.options), layout.gateway()));
        let (Some(spec), Some(address)) = (spec?, address) else { return Ok(()) };
        // `wait_ready` may be called again.
        if !self.process_ids().contains(&spec.id) {
            self.launch_process(spec)?;
        }
        wait::gateway_ready(&self.processes, address, deadline).await
    }

    async fn register(&self, shard: &ShardInfo, deadline: Instant) -> Result<(), ClusterError> {
        let body = shard_body(shard.clone());
        loop {
            match self.admin.post::<_, serde_json::Value>("/v1/shards", &body).await {
                Ok(_) => return Ok(()),
                Err(error) if evenkeel_host::now() < deadline && error.is_temporary() => wait::pause().await,
                Err(error) => return Err(error.into()),
            }
            if let Some(died) = self.died() {
                return Err(died);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.processes.kill_all();
        if let Some(temporary) = self.temporary.take()
            && let Err(error) = temporary.close()
        {
            tracing::warn!(%error, "removing {}", self.root.display());
        }
    }
}

fn reserve(count: usize) -> Result<Vec<u16>, ClusterError> {
    ports::reserve(count).map_err(ClusterError::io("finding free ports"))
}

/// Deletes a replica's data, after ending a PostgreSQL server that may run there.
fn delete(folder: &Path) -> Result<(), ClusterError> {
    postmaster::stop_left_behind(&[folder.to_path_buf()]);
    std::fs::remove_dir_all(folder).map_err(ClusterError::io(format!("removing {}", folder.display())))
}

fn make_root(wanted: Option<&Path>) -> Result<(PathBuf, Option<tempfile::TempDir>), ClusterError> {
    let (root, temporary) = match wanted {
        Some(path) => {
            let made = std::fs::create_dir_all(path).and_then(|()| path.canonicalize());
            let accepted = |e| format!("a folder that can be had; this one: {e}");
            (made.map_err(|e| InvalidSetting::new("data_dir", path.display(), accepted(e)))?, None)
        }
        None => {
            let made = tempfile::Builder::new().prefix("evenkeel-").tempdir();
            let made = made.map_err(ClusterError::io("making a temporary folder"))?;
            (made.path().to_path_buf(), Some(made))
        }
    };
    // Started as root, PostgreSQL runs as an unprivileged user, who needs access to the folders
    // below.
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755))
        .map_err(ClusterError::io(format!("opening {} to PostgreSQL's user", root.display())))?;
    Ok((root, temporary))
}
