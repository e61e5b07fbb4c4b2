//! Decides when the replica writes a snapshot, and reports to the log which entries it may drop.

use super::handles::ReplicaHandles;
use super::message::LoopMessage;
use super::run_error::RunError;
use crate::snapshot;
use evenkeel_replicated_log::LogIndex;
use std::sync::Arc;

/// The minimum size of log between two snapshots that are written because of its size, in bytes.
const MIN_SNAPSHOT_EVERY_BYTES: u64 = 1 << 20;

/// The snapshots of a replica; at most one is being written.
pub(super) struct Snapshots {
    handles: Arc<ReplicaHandles>,
    /// The position of the last snapshot that was begun.
    at: LogIndex,
    /// The size of the log applied since, in bytes.
    since_bytes: u64,
    writing: bool,
}

impl Snapshots {
    pub(super) fn new(handles: Arc<ReplicaHandles>, at: LogIndex) -> Snapshots {
        Snapshots { handles, at, since_bytes: 0, writing: false }
    }

    /// Notes that `bytes` of log were applied, and begins a snapshot if it is due.
    pub(super) fn applied(&mut self, bytes: u64) {
        self.since_bytes += bytes;
        let due = {
            let applied = self.handles.applied();
            let config = &self.handles.config;
            // Large values fill the log with few entries, so bytes count too. A snapshot is as
            // large as the state: it is not written for less log than that.
            let worth_bytes = config.log_retention_bytes.max(applied.state.kv.bytes()).max(MIN_SNAPSHOT_EVERY_BYTES);
            let due = applied.index.0 >= self.at.0 + config.snapshot_every_entries || self.since_bytes >= worth_bytes;
            (due && !self.writing).then(|| (applied.index, applied.term, snapshot::encode(&applied.state)))
        };
        let Some((index, term, body)) = due else { return };
        self.writing = true;
        self.restart(index);
        let (file, messages) = (self.handles.snapshots.clone(), self.handles.messages.clone());
        tokio::spawn(async move {
            let write = move || file.write(index, term, &body?).map_err(|e| e.to_string());
            let written = evenkeel_host::blocking(write).await.flatten();
            // Without a position the replica has ended, and nobody waits.
            if let Some(written) = written.transpose() {
                messages.send(LoopMessage::SnapshotWritten(written)).await.ok();
            }
        });
    }

    /// Counts entries and bytes from `at` on, where a snapshot exists or is being written.
    pub(super) fn restart(&mut self, at: LogIndex) {
        self.at = at;
        self.since_bytes = 0;
    }

    /// The write has ended.
    ///
    /// # Errors
    /// [`RunError::Stopped`] if it has failed.
    pub(super) fn written(&mut self, result: Result<LogIndex, String>) -> Result<(), RunError> {
        self.writing = false;
        match result {
            // R16: the log may drop only the entries that are durable in the snapshot.
            Ok(index) => {
                self.handles.log.compact(index);
                Ok(())
            }
            Err(reason) => Err(RunError::Stopped(format!("the snapshot cannot be written: {reason}"))),
        }
    }
}
