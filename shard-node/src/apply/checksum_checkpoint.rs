//! Snapshots at a position of the log, for comparing replicas (R31).
//!
//! At a checkpoint every replica computes checksums of the same pieces of its rows. The applier
//! only takes the snapshot at exactly that position; other tasks read the rows. On a follower the
//! snapshot is queued with the apply writer: it shows everything that was queued before and nothing
//! that is queued later. A leader waits until everything before the checkpoint is in PostgreSQL,
//! and lets no session commit a later entry before the snapshot is taken. For a background
//! comparison the leader waits [`BACKGROUND_WAIT_MS`] and then takes no part: a leader that is
//! always busy is compared rarely, its replicas are compared with each other all the same.

use super::applied_state::AppliedState;
use super::persistence::Persistence;
use crate::error::ApplyError;
use crate::replica::ReplicaHandles;
use crate::scrub::checkpoint_sums::AwaitedSnapshot;
use evenkeel_host::{Bug, deliberate};
use futures::FutureExt;
use futures::future::ready;
use std::time::Duration;

/// How long a leader waits for its own entries before a background comparison, in milliseconds.
const BACKGROUND_WAIT_MS: u64 = 10;

/// Whether PostgreSQL holds everything before `position` at once, or almost. A leader applies
/// nothing while it waits for that: no statement ends, no move proceeds and the log is not
/// compacted. A background comparison does without it then.
pub(super) async fn is_there_soon(
    persistence: &Persistence,
    handles: &ReplicaHandles,
    leads: bool,
    position: u64,
) -> bool {
    if !leads {
        return true;
    }
    let soon = Duration::from_millis(BACKGROUND_WAIT_MS);
    persistence.writer.waiting_bytes() == 0
        && evenkeel_host::timeout(soon, handles.progress.reached(position)).await.is_ok()
}

/// A snapshot of PostgreSQL at exactly this position of the log, as soon as it is there.
pub(super) async fn snapshot_at(
    persistence: &mut Persistence,
    handles: &ReplicaHandles,
    applied: &AppliedState,
    leads: bool,
    position: u64,
) -> Result<AwaitedSnapshot, ApplyError> {
    if deliberate(Bug::ComparedAnywhere) {
        let snapshots = handles.snapshots.clone();
        return Ok(async move { snapshots.take().await.map_err(|error| error.to_string()) }.boxed());
    }
    persistence.flush(applied, None).await?;
    if leads {
        handles.progress.reached(position).await;
    }
    let taken = persistence.writer.snapshot().await?;
    let snapshot = async move {
        let taken = taken.await.map_err(|_| "the replica stops".to_string())?;
        taken.map_err(|error| error.to_string())
    };
    if leads { Ok(ready(snapshot.await).boxed()) } else { Ok(snapshot.boxed()) }
}
