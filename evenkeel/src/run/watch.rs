//! What the placement driver says while a run goes on: shards, ranges and operators, asked for again and again.
//!
//! Operators are collected by number, so that the report has all of them even if the placement driver forgets old ones; an
//! interval without an answer (its leader may have been killed) is simply skipped.

use super::screen::Screen;
use crate::rest::Rest;
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::api::{OperatorBody, RangeBody, ShardBody};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often it is asked, in milliseconds. Moves take about a second each; chaos wants to see them.
const INTERVAL_MS: u64 = 100;
/// How often the answer is shown, in intervals.
const SHOW_EVERY: u64 = 5;

/// What was seen at one moment.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Counts the looks that were answered.
    pub look: u64,
    /// Shards.
    pub shards: Vec<ShardBody>,
    /// Ranges.
    pub ranges: Vec<RangeBody>,
    /// Operators under way.
    pub running: Vec<OperatorBody>,
}

/// A task that watches until it is told to end.
pub struct Watch {
    seen: watch::Receiver<Seen>,
    operators: Arc<Mutex<BTreeMap<OperatorId, OperatorBody>>>,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// All that was seen.
#[derive(Debug)]
pub struct Watched {
    /// Every operator that was ever listed, as it was listed last.
    pub operators: Vec<OperatorBody>,
    /// The last look.
    pub last: Seen,
}

impl Watch {
    /// Starts to watch.
    pub fn start(rest: Rest, screen: Screen) -> Watch {
        let (sender, seen) = watch::channel(Seen::default());
        let (end, ended) = watch::channel(false);
        let operators = Arc::default();
        let task = tokio::spawn(look_again_and_again(rest, screen, sender, Arc::clone(&operators), ended));
        Watch { seen, operators, end, task }
    }

    /// What was seen last.
    pub fn last(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits for a look that began after this call.
    pub async fn fresh(&self) -> Seen {
        let mut seen = self.seen.clone();
        let now = seen.borrow().look;
        // One look may be under way already.
        match seen.wait_for(|s| s.look > now + 1).await {
            Ok(seen) => seen.clone(),
            Err(_) => self.last(),
        }
    }

    /// Ends it, after one more look.
    pub async fn end(self) -> Watched {
        let last = self.fresh().await;
        self.end.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "watching the placement driver");
        }
        let operators = self.operators.lock().unwrap_or_else(PoisonError::into_inner);
        Watched { operators: operators.values().cloned().collect(), last }
    }
}

async fn look_again_and_again(
    rest: Rest,
    screen: Screen,
    sender: watch::Sender<Seen>,
    operators: Arc<Mutex<BTreeMap<OperatorId, OperatorBody>>>,
    mut ended: watch::Receiver<bool>,
) {
    let mut interval = tokio::time::interval(Duration::from_millis(INTERVAL_MS));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = 0;
    // Operators from before the run are none of its business.
    let mut before: Option<OperatorId> = None;
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            _ = ended.wait_for(|e| *e) => return,
        }
        let last_ranges = sender.borrow().ranges.clone();
        let Some(mut seen) = ask(&rest, look % SHOW_EVERY == 0, last_ranges).await else {
            continue;
        };
        let listed = std::mem::take(&mut seen.running);
        let newest = listed.iter().map(|o| o.id).max().unwrap_or_default();
        let before = *before.get_or_insert(newest);
        for operator in listed.into_iter().filter(|o| o.id > before) {
            let mut known = operators.lock().unwrap_or_else(PoisonError::into_inner);
            let old = known.insert(operator.id, operator.clone());
            screen.operator(old.as_ref(), &operator);
            if is_running(&operator) {
                seen.running.push(operator);
            }
        }
        look += 1;
        seen.look = look;
        if look % SHOW_EVERY == 1 {
            screen.picture(&seen);
        }
        sender.send_replace(seen);
    }
}

/// One look; `None` if the placement driver did not answer. What changes slowly is asked for only if `all`.
async fn ask(rest: &Rest, all: bool, last_ranges: Vec<RangeBody>) -> Option<Seen> {
    let shards = rest.get("/v1/shards").await.ok()?;
    let running: Vec<OperatorBody> = rest.get("/v1/operators").await.ok()?;
    let ranges = if all { rest.get("/v1/ranges").await.ok()? } else { last_ranges };
    Some(Seen { look: 0, shards, ranges, running })
}

/// Whether an operator has not ended.
pub fn is_running(operator: &OperatorBody) -> bool {
    matches!(operator.status.as_str(), "running" | "cancelling")
}
