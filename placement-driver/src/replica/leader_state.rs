//! What a leader has in memory beyond the replicated state. It begins empty with each leadership
//! and ends with it.

use crate::balancer::{Balancer, Rejection};
use crate::operators::OperatorController;
use evenkeel_protocol::ShardId;
use evenkeel_replicated_log::Term;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// The memory of one leadership.
#[derive(Debug)]
pub struct LeaderState {
    /// The term of the leadership.
    pub term: Term,
    /// The shards that were registered when the leadership began.
    pub shards_at_start: BTreeSet<ShardId>,
    /// The load model.
    pub balancer: Balancer,
    /// The operator controller.
    pub controller: OperatorController,
    /// The reasons for which the balancer did no more in its last round. Shared with readers: there
    /// can be one for each range.
    pub rejections: Arc<Vec<Rejection>>,
    /// What shards report and the state lacks, and what a restoration waits for (R30): one sentence
    /// each.
    pub missing: Vec<String>,
    /// The shards whose clocks are off, as last logged.
    pub clocks_off: BTreeSet<ShardId>,
    /// Nonces of proposals that are no operator's step and are not applied yet. The balancer plans
    /// again once there are none.
    pub pending: Vec<u64>,
    /// Time of the last proposal that was no operator's step, in milliseconds of the state
    /// machine's time.
    pub maintained_ms: u64,
    /// Time when a shard was last asked for schema changes that the state lacks.
    pub schema_asked_ms: Option<u64>,
    /// Number of successive rejections of proposals that are no operator's step. Each one doubles
    /// the pause before the next.
    pub rejected_in_a_row: u32,
    /// The state machine's time at the last round, in milliseconds, and the instant of that round.
    pub round: (u64, Instant),
}

impl LeaderState {
    /// The memory of a leadership that begins now. `now_ms` is the state machine's time.
    pub(super) fn new(term: Term, shards_at_start: BTreeSet<ShardId>, now_ms: u64) -> LeaderState {
        LeaderState {
            term,
            shards_at_start,
            balancer: Balancer::default(),
            controller: OperatorController::default(),
            rejections: Arc::default(),
            missing: Vec::new(),
            clocks_off: BTreeSet::new(),
            pending: Vec::new(),
            maintained_ms: 0,
            schema_asked_ms: None,
            rejected_in_a_row: 0,
            round: (now_ms, evenkeel_host::now()),
        }
    }

    /// The state machine's time now, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        let (round_ms, at) = self.round;
        round_ms + evenkeel_host::elapsed(at).as_millis() as u64
    }

    /// Notes that the proposal `nonce` is applied.
    pub(super) fn applied(&mut self, nonce: u64, effective: bool) {
        if let Some(at) = self.pending.iter().position(|pending| *pending == nonce) {
            self.pending.swap_remove(at);
            self.rejected_in_a_row = if effective { 0 } else { self.rejected_in_a_row.saturating_add(1) };
        }
    }
}
