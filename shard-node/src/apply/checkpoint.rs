//! Checkpoints: places in the log at which every replica sums up the same pieces of its rows (R31).
//!
//! The applier only sees to it that a snapshot is taken at exactly this place; the rows are read beside it. On a follower that is the store's
//! queue: what was asked for before is in the snapshot and what comes later is not, and nobody waits. On a leader it waits until what came
//! before is in PostgreSQL; what comes later is not told to commit before the snapshot is taken. In the background it waits for a moment only,
//! and is not compared if that is too short: a leader that is always busy is compared rarely, its replicas with each other all the same.

use super::{Applier, ApplyError};
use crate::entry::{Control, Purpose};
use crate::leader::leadership::EntryOutcome;
use crate::scrub::plan::Asked;
use crate::scrub::sums::{At, Snapshot};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::scrub::Place;
use evenkeel_replicated_log::Term;
use futures::FutureExt;
use futures::future::ready;
use std::time::Duration;

/// How long a leader waits for its own entries before a background comparison, in milliseconds.
const BACKGROUND_WAIT_MS: u64 = 10;

impl Applier {
    /// Takes part in a checkpoint. It changes nothing, so that nothing need be stored or made known for it.
    pub(super) async fn checkpoint(
        &mut self,
        position: u64,
        term: Term,
        serial: u64,
        control: &Control,
    ) -> Result<(), ApplyError> {
        let Control::Checkpoint { nonce, pieces, purpose } = control else { return Ok(()) };
        if self.gathered.is_empty() {
            self.shared.progress.pass(position);
        } else {
            self.gather(position);
        }
        self.settle(term, serial, EntryOutcome::Effective(position));
        if *purpose == Purpose::Scrub
            && let Some(last) = pieces.last()
        {
            self.checks.scrub.status().place = Place::behind(last);
        }
        let snapshot = match *purpose {
            Purpose::Scrub if !self.is_there_soon(position).await => ready(Err("it is busy".to_string())).boxed(),
            _ => self.snapshot_at(position).await?,
        };
        let at = At { nonce: *nonce, index: position, holds_later: self.holds_later() };
        let asked = Asked::of(&self.state, pieces, *purpose == Purpose::LeftBehind);
        self.checks.scrub.sum_up(at, asked, snapshot, self.shared.snapshots.clone());
        Ok(())
    }

    /// Whether what came before is in PostgreSQL at once, or almost. A leader folds nothing while it waits for that, so that no statement ends, no
    /// move gets on and the log forgets nothing: a background comparison does without it then.
    async fn is_there_soon(&self, position: u64) -> bool {
        if self.leader.is_none() {
            return true;
        }
        let soon = Duration::from_millis(BACKGROUND_WAIT_MS);
        self.keeper.waiting_bytes() == 0
            && tokio::time::timeout(soon, self.shared.progress.reached(position)).await.is_ok()
    }

    /// A snapshot of what PostgreSQL holds at exactly this place in the log, as soon as it is there.
    async fn snapshot_at(&mut self, position: u64) -> Result<Snapshot, ApplyError> {
        if deliberate(Bug::ComparedAnywhere) {
            let snapshots = self.shared.snapshots.clone();
            return Ok(async move { snapshots.take().await.map_err(|error| error.to_string()) }.boxed());
        }
        self.flush(None).await?;
        let leads = self.leader.is_some();
        if leads {
            self.shared.progress.reached(position).await;
        }
        let taken = self.keeper.snapshot().await?;
        let snapshot = async move {
            let taken = taken.await.map_err(|_| "the replica stops".to_string())?;
            taken.map_err(|error| error.to_string())
        };
        if leads { Ok(ready(snapshot.await).boxed()) } else { Ok(snapshot.boxed()) }
    }
}
