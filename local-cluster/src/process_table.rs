//! The processes of a cluster, running or not, and their addresses.
//!
//! [`ProcessTable`] owns every [`Process`] and the [`Layout`], and keeps the `--endpoints` file up
//! to date. All its methods may be called from several threads; none waits for a condition.

use crate::endpoints::{EndpointProcess, Endpoints};
use crate::error::ClusterError;
use crate::layout::Layout;
use crate::postmaster;
use crate::process::{self, Process};
use crate::process_id::ProcessId;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::routing::ShardInfo;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lines of a log that a report of a crash has.
const TAIL_LINES: usize = 20;

/// The processes of a cluster.
#[derive(Debug)]
pub struct ProcessTable {
    content: Mutex<TableContent>,
}

#[derive(Debug)]
struct TableContent {
    layout: Layout,
    processes: BTreeMap<ProcessId, Process>,
    endpoints_file: Option<PathBuf>,
}

impl ProcessTable {
    /// A table without processes.
    pub fn new(layout: Layout) -> ProcessTable {
        let content = TableContent { layout, processes: BTreeMap::new(), endpoints_file: None };
        ProcessTable { content: Mutex::new(content) }
    }

    /// Reads or changes the layout.
    pub fn with_layout<T>(&self, act: impl FnOnce(&mut Layout) -> T) -> T {
        act(&mut self.lock().layout)
    }

    /// The shards and the addresses of their replicas.
    pub fn shards(&self) -> Vec<ShardInfo> {
        self.lock().layout.shard_infos()
    }

    /// Every process.
    pub fn ids(&self) -> Vec<ProcessId> {
        self.lock().processes.keys().copied().collect()
    }

    /// The operating system's number of a running process.
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

    /// The first process found to have ended although its end was not requested, as an error.
    pub fn died(&self) -> Option<ClusterError> {
        let mut content = self.lock();
        let process = content.processes.values_mut().find_map(|p| p.died().then_some(p))?;
        Some(ClusterError::Died {
            process: process.spec().id,
            status: process.status_text(),
            log: process.spec().log_file.clone(),
            tail: process.log_tail(TAIL_LINES),
        })
    }

    /// Acts on one process.
    pub fn with<T>(
        &self,
        id: ProcessId,
        act: impl FnOnce(&mut Process) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        act(self.lock().processes.get_mut(&id).ok_or(ClusterError::NoSuchProcess(id))?)
    }

    /// Adds a process.
    pub fn insert(&self, process: Process) {
        self.lock().processes.insert(process.spec().id, process);
    }

    /// Removes a replica from the table and from the layout.
    pub fn remove(&self, id: ProcessId) -> Result<Process, ClusterError> {
        let mut content = self.lock();
        let process = content.processes.remove(&id).ok_or(ClusterError::NoSuchProcess(id))?;
        content.layout.remove_replica(id);
        Ok(process)
    }

    /// Removes a shard from the layout and its processes from the table.
    pub fn remove_shard(&self, shard: ShardId) -> Vec<Process> {
        let mut content = self.lock();
        content.layout.remove_shard(shard);
        let of_shard = |id: &ProcessId| matches!(id, ProcessId::ShardNode(s, _) if *s == shard.0);
        let ids: Vec<_> = content.processes.keys().copied().filter(of_shard).collect();
        ids.iter().filter_map(|id| content.processes.remove(id)).collect()
    }

    /// The URLs of the cluster and its processes.
    pub fn endpoints(&self) -> Endpoints {
        let content = self.lock();
        let process = |p: &Process| EndpointProcess {
            role: p.spec().id.role().to_string(),
            name: p.spec().id.to_string(),
            pid: p.pid(),
            data: p.spec().data_dir.clone(),
        };
        Endpoints {
            rest: content.layout.rest_urls(),
            gateway: content.layout.gateway_url(),
            processes: content.processes.values().map(process).collect(),
        }
    }

    /// Sets the file that [`ProcessTable::write_endpoints`] writes.
    pub fn set_endpoints_file(&self, path: &Path) {
        self.lock().endpoints_file = Some(path.to_path_buf());
    }

    /// Writes the `--endpoints` file, if one is set.
    pub fn write_endpoints(&self) -> Result<(), ClusterError> {
        let Some(path) = self.lock().endpoints_file.clone() else {
            return Ok(());
        };
        self.endpoints().write(&path).map_err(ClusterError::io(format!("writing {}", path.display())))
    }

    /// Ends every process in order, and after a timeout with SIGKILL, and then the PostgreSQL
    /// servers that are left. Blocks.
    pub fn stop_all(&self) {
        let mut content = self.lock();
        process::stop_all(&mut content.processes.values_mut().collect::<Vec<_>>(), process::STOP_TIMEOUT_MS);
    }

    /// Kills every process and every PostgreSQL server. Blocks.
    pub fn kill_all(&self) {
        let mut content = self.lock();
        for process in content.processes.values_mut() {
            if let Err(error) = process.kill() {
                tracing::warn!(%error, "killing {}", process.spec().id);
            }
        }
        let folders: Vec<_> = content.processes.values().map(|p| p.spec().data_dir.clone()).collect();
        drop(content);
        postmaster::stop_left_behind(&folders);
    }

    fn lock(&self) -> MutexGuard<'_, TableContent> {
        // A panic elsewhere must not keep the processes from being stopped.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
