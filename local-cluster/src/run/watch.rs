//! Observes the placement driver while a run goes on: shards, ranges and operators, asked for every
//! 100 ms.
//!
//! [`Watch`] owns the observing task. Operators are collected by number, so that the report has all
//! of them even if the placement driver forgets old ones. An interval without an answer is skipped:
//! its leader may have been killed.

use crate::operator_text::is_running;
use crate::run::observation::Observation;
use crate::run::progress::ProgressListener;
use evenkeel_client::admin::AdminClient;
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::api::{OperatorBody, RangeBody};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The interval between two observations, in milliseconds. A move takes about a second and must be
/// observed by chaos.
const INTERVAL_MS: u64 = 100;
/// The number of observations per observation that is shown.
const SHOW_EVERY: u64 = 5;

/// A task that observes until [`Watch::end`].
pub struct Watch {
    seen: watch::Receiver<Observation>,
    operators: Arc<Mutex<BTreeMap<OperatorId, OperatorBody>>>,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Everything that was observed.
#[derive(Debug)]
pub struct WatchResult {
    /// Every operator that was ever listed, in its last listed state.
    pub operators: Vec<OperatorBody>,
    /// The last observation.
    pub last: Observation,
}

impl Watch {
    /// Starts to observe.
    pub fn start(admin: AdminClient, progress: Arc<dyn ProgressListener>) -> Watch {
        let (sender, seen) = watch::channel(Observation::default());
        let (end, ended) = watch::channel(false);
        let operators = Arc::default();
        let task = tokio::spawn(observe_repeatedly(admin, progress, sender, Arc::clone(&operators), ended));
        Watch { seen, operators, end, task }
    }

    /// The last observation.
    pub fn last(&self) -> Observation {
        self.seen.borrow().clone()
    }

    /// Waits for an observation that began after this call.
    pub async fn fresh(&self) -> Observation {
        let mut seen = self.seen.clone();
        let now = seen.borrow().number;
        // One observation may be under way already.
        match seen.wait_for(|s| s.number > now + 1).await {
            Ok(seen) => seen.clone(),
            Err(_) => self.last(),
        }
    }

    /// Ends the task after one more observation.
    pub async fn end(self) -> WatchResult {
        let last = self.fresh().await;
        self.end.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "watching the placement driver");
        }
        let operators = self.operators.lock().unwrap_or_else(PoisonError::into_inner);
        WatchResult { operators: operators.values().cloned().collect(), last }
    }
}

async fn observe_repeatedly(
    admin: AdminClient,
    progress: Arc<dyn ProgressListener>,
    sender: watch::Sender<Observation>,
    operators: Arc<Mutex<BTreeMap<OperatorId, OperatorBody>>>,
    mut ended: watch::Receiver<bool>,
) {
    let mut interval = evenkeel_host::interval(Duration::from_millis(INTERVAL_MS));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut number = 0;
    // Operators from before the run do not belong to it.
    let mut before: Option<OperatorId> = None;
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            _ = ended.wait_for(|e| *e) => return,
        }
        let last_ranges = sender.borrow().ranges.clone();
        let Some(mut seen) = observe(&admin, number % SHOW_EVERY == 0, last_ranges).await else {
            continue;
        };
        let listed = std::mem::take(&mut seen.running);
        let newest = listed.iter().map(|o| o.id).max().unwrap_or_default();
        let before = *before.get_or_insert(newest);
        for operator in listed.into_iter().filter(|o| o.id > before) {
            let mut known = operators.lock().unwrap_or_else(PoisonError::into_inner);
            let old = known.insert(operator.id, operator.clone());
            progress.operator(old.as_ref(), &operator);
            if is_running(&operator) {
                seen.running.push(operator);
            }
        }
        number += 1;
        seen.number = number;
        if number % SHOW_EVERY == 1 {
            progress.observed(&seen);
        }
        sender.send_replace(seen);
    }
}

/// One observation; `None` if the placement driver did not answer. Ranges, which change slowly, are
/// asked for only if `all`.
async fn observe(admin: &AdminClient, all: bool, last_ranges: Vec<RangeBody>) -> Option<Observation> {
    let shards = admin.get("/v1/shards").await.ok()?;
    let running: Vec<OperatorBody> = admin.get("/v1/operators").await.ok()?;
    let ranges = if all { admin.get("/v1/ranges").await.ok()? } else { last_ranges };
    Some(Observation { number: 0, shards, ranges, running })
}
