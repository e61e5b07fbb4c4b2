//! Replicas that come and go, and lose their disks: what a cluster's owner does about machines, not what the cluster does about it.

use super::{Cluster, ClusterError, ProcessId, postgres};
use evenkeel_host::ports;
use evenkeel_placement_driver::NewMember;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::NewReplica;

impl Cluster {
    /// Starts a further replica of a shard, which waits to be let in (`POST /v1/shards/{id}/replicas`).
    pub fn start_replica(&self, shard: ShardId) -> Result<NewReplica, ClusterError> {
        let ports = ports::reserve(2).map_err(ClusterError::io("finding free ports"))?;
        let (new, spec) = self.lock().layout.add_replica(&self.options, shard, &ports)?;
        self.launch_process(spec)?;
        self.write_endpoints()?;
        Ok(new)
    }

    /// Starts a further replica of the placement driver, which waits to be let in (`POST /v1/members`).
    pub fn start_driver(&self) -> Result<NewMember, ClusterError> {
        let ports = ports::reserve(3).map_err(ClusterError::io("finding free ports"))?;
        let (new, spec) = self.lock().layout.add_driver(&self.options, &ports)?;
        self.launch_process(spec)?;
        self.write_endpoints()?;
        Ok(new)
    }

    /// A machine is gone, with its process and its disk, and is no longer counted on.
    pub fn lose(&self, id: ProcessId) -> Result<(), ClusterError> {
        let mut state = self.lock();
        let mut process = state.processes.remove(&id).ok_or(ClusterError::NoSuchProcess(id))?;
        state.layout.forget(id);
        drop(state);
        process.kill()?;
        let folder = process.spec().data_dir.clone();
        empty(&folder)?;
        self.write_endpoints()
    }

    /// A process ends and comes back with an empty disk.
    pub fn wipe(&self, id: ProcessId) -> Result<(), ClusterError> {
        self.with(id, |process| {
            process.kill()?;
            let folder = process.spec().data_dir.clone();
            empty(&folder)?;
            std::fs::create_dir_all(&folder).map_err(ClusterError::io(format!("making {}", folder.display())))?;
            process.start()
        })?;
        self.write_endpoints()
    }
}

fn empty(folder: &std::path::Path) -> Result<(), ClusterError> {
    postgres::stop_left_behind(&[folder.to_path_buf()]);
    std::fs::remove_dir_all(folder).map_err(ClusterError::io(format!("removing {}", folder.display())))
}
