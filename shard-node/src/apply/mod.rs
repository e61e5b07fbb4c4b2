//! The applier: takes what the log has decided, folds it, and sees to it that PostgreSQL follows (invariant 3).
//!
//! On a follower, and on a leader before its own `LeaderStart`, changes are gathered and applied as row images, many entries to
//! a PostgreSQL transaction; the position goes in with them. On a leader, an entry of its own reign is held by the session that proposed
//! it: the applier only says what became of it, and the session commits. What a leader applies itself (rows coming in, purges,
//! new tables) is recorded entry by entry, because its sessions commit in any order (R5).
//!
//! Every `LeaderStart` ends the reign before it: what had not come out of the log by then never will (invariant 4), and all of its
//! sessions are gone before anything later is applied (R3).

pub mod batch;
pub mod keeper;
pub mod tap;

mod reigns;
mod upkeep;

use crate::checks::Checks;
use crate::config::Config;
use crate::entry::{Body, Changes, Control, Entry};
use crate::fold::{Effect, InPhase, Refusal, ShardState};
use crate::leader::reign::Outcome;
use crate::leader::spares::Spares;
use crate::leader::{Leader, Shared};
use crate::postgres::is_damage;
use crate::store::{ApplyBatch, StoreError};
use batch::Gathered;
use bytes::Bytes;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::{OperatorId, RangeId};
use evenkeel_replicated_log::{self as log, Delivery, LogIndex, ReplicaId, Subscription, Term};
use keeper::{Command, Keeper};
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tap::{TapItem, TapReader, Taps};
use tokio::sync::{mpsc, oneshot, watch};

/// Bytes taken from the log at a time.
const TAKE_BYTES: usize = 1 << 20;
/// Bytes gathered before they are applied at once.
const GATHER_BYTES: usize = 1 << 20;
/// How long a follower gathers, in milliseconds: fewer, larger applies cost less.
const GATHER_MS: u64 = 20;
/// How often positions are recorded and old records deleted, in milliseconds.
const UPKEEP_MS: u64 = 500;

/// Why the applier ended.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// PostgreSQL must be opened anew.
    #[error("PostgreSQL must be opened anew: {0}")]
    Reopen(String),
    /// PostgreSQL's data is damaged: it must be made anew from a peer's.
    #[error("PostgreSQL's data is damaged: {0}")]
    Damaged(String),
    /// The log has stopped.
    #[error("the log has stopped")]
    LogStopped,
    /// The replica would diverge: it must stop.
    #[error("the replica would diverge: {0}")]
    Diverged(String),
    /// The log no longer holds what this replica needs: it must take another replica's state.
    #[error("entries up to {trimmed} are no longer in the log")]
    NeedState {
        /// The last position that is gone.
        trimmed: LogIndex,
    },
}

impl From<keeper::KeeperStopped> for ApplyError {
    fn from(_: keeper::KeeperStopped) -> ApplyError {
        ApplyError::Reopen("the keeper has stopped".into())
    }
}

impl From<StoreError> for ApplyError {
    fn from(error: StoreError) -> ApplyError {
        match error {
            StoreError::Diverged(reason) => ApplyError::Diverged(reason),
            StoreError::Damaged(reason) => ApplyError::Damaged(reason),
            StoreError::Refused(error) if is_damage(&error.code) => ApplyError::Damaged(error.to_string()),
            StoreError::SessionLost | StoreError::Refused(_) => ApplyError::Reopen(error.to_string()),
        }
    }
}

/// A state transfer's beginning: the state machine, the retry window, and a snapshot of PostgreSQL at exactly the same
/// place.
pub struct Export {
    /// The position.
    pub index: u64,
    /// The term in force there.
    pub term: u64,
    /// The encoded [`SavedState`].
    pub state: Bytes,
    /// The state machine.
    pub tables: Arc<ShardState>,
    /// The snapshot.
    pub snapshot: crate::store::PinnedSnapshot,
}

/// What is asked of the applier between two deliveries.
pub enum Request {
    /// Set a tap on a move out.
    Tap(OperatorId, oneshot::Sender<Option<TapReader>>),
    /// Export everything.
    Export(oneshot::Sender<Export>),
}

/// What a replica keeps of itself beside the rows.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct SavedState {
    /// The state machine.
    pub state: ShardState,
    /// The whole retry window; only in state transfers, else empty.
    pub window: Bytes,
}

/// What an applier starts from.
pub struct Start {
    /// The state machine at `position`.
    pub state: ShardState,
    /// What PostgreSQL holds entirely.
    pub position: u64,
    /// The term in force there.
    pub term: Term,
    /// Later entries that PostgreSQL holds too, by (term, serial).
    pub records: HashSet<(u64, u64)>,
    /// A term that this replica led and must not lead again (R1).
    pub spent: Option<Term>,
}

/// See the module.
pub struct Applier {
    me: ReplicaId,
    config: Arc<Config>,
    shared: Shared,
    keeper: Keeper,
    checks: Arc<Checks>,
    leading: watch::Sender<Option<Arc<Leader>>>,
    state: ShardState,
    term: Term,
    spent: Option<Term>,
    leader: Option<Arc<Leader>>,
    spares: Spares,
    records: HashSet<(u64, u64)>,
    gathered: Gathered,
    /// The first and last position gathered.
    span: Option<(u64, u64)>,
    gathering_since: Option<Instant>,
    taps: Taps,
    /// Ranges owned in the log whose rows or table the keeper has not stored yet.
    not_yet: Arc<Mutex<HashSet<RangeId>>>,
    kept: upkeep::Kept,
    own_records: VecDeque<(u64, (u64, u64))>,
}

impl Applier {
    /// An applier that goes on from `start`.
    pub fn new(
        config: Arc<Config>,
        shared: Shared,
        keeper: Keeper,
        checks: Arc<Checks>,
        leading: watch::Sender<Option<Arc<Leader>>>,
        start: Start,
    ) -> Applier {
        let spares = Spares::new(shared.connector.clone(), config.clone());
        let own_records = start.records.iter().map(|record| (start.position, *record)).collect();
        let mut records = start.records;
        // Those of earlier terms have not been pruned yet: their entries lie before the position.
        records.retain(|(term, _)| *term >= start.term.0);
        let applier = Applier {
            me: ReplicaId(config.replica),
            config,
            shared,
            keeper,
            checks,
            leading,
            state: start.state,
            term: start.term,
            spent: start.spent,
            leader: None,
            spares,
            records,
            gathered: Gathered::default(),
            span: None,
            gathering_since: None,
            taps: Taps::default(),
            not_yet: Arc::default(),
            kept: upkeep::Kept::at(start.position),
            own_records,
        };
        applier.ownership_changed(applier.shared.progress.folded());
        applier
    }

    /// Follows the log until something must be done about this replica.
    pub async fn run(mut self, mut subscription: Subscription, mut requests: mpsc::Receiver<Request>) -> ApplyError {
        let mut upkeep = tokio::time::interval(Duration::from_millis(UPKEEP_MS));
        upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = self.gathering_since.map(|since| since + Duration::from_millis(GATHER_MS));
            let result = tokio::select! {
                delivery = subscription.next(TAKE_BYTES) => match delivery {
                    Ok(Delivery::Entries(entries)) => self.entries(entries).await,
                    Ok(Delivery::NeedState { trimmed, .. }) => Err(ApplyError::NeedState { trimmed }),
                    Err(_) => Err(ApplyError::LogStopped),
                },
                Some(request) = requests.recv() => self.request(request).await,
                _ = upkeep.tick() => self.upkeep().await,
                () = tokio::time::sleep_until(due.unwrap_or_else(far).into()), if due.is_some() => self.flush(None).await,
            };
            if let Err(error) = result {
                return error;
            }
        }
    }

    async fn entries(&mut self, entries: Vec<log::Entry>) -> Result<(), ApplyError> {
        for entry in entries {
            let position = entry.index.0;
            match entry.body {
                log::Body::LeaderStart { leader } => self.leader_start(position, entry.term, leader).await?,
                // The barrier of a membership change: what follows it in this log counts for nothing.
                log::Body::ConfigChange(_) => self.shared.progress.pass(position),
                log::Body::Data(payload) => {
                    let decoded = Entry::decode(payload).map_err(|error| ApplyError::Diverged(error.to_string()))?;
                    if entry.effective {
                        self.effective(position, entry.term, decoded).await?;
                    } else {
                        // Invariant 1. It may be one of ours from before we were deposed.
                        self.settle(entry.term, decoded.serial, Outcome::Deposed);
                        self.shared.progress.pass(position);
                    }
                }
            }
        }
        let folded = self.shared.progress.folded();
        self.taps.reached(folded);
        if self.gathered.size_bytes() >= GATHER_BYTES {
            self.flush(None).await?;
        }
        Ok(())
    }

    async fn effective(&mut self, position: u64, term: Term, entry: Entry) -> Result<(), ApplyError> {
        let serial = entry.serial;
        match entry.body {
            Body::Changes(changes) => match self.state.judge(&changes) {
                Err(_) if deliberate(Bug::NoOwnershipFence) => self.changes(position, term, serial, changes),
                Ok(()) => self.changes(position, term, serial, changes),
                Err(refusal) => {
                    self.void(position, term, serial, refusal);
                    Ok(())
                }
            },
            Body::Control(control) => match self.state.control(position, &control) {
                Ok(effects) => self.control(position, term, serial, &control, effects).await,
                Err(refusal) => {
                    self.void(position, term, serial, refusal);
                    Ok(())
                }
            },
        }
    }

    fn void(&mut self, position: u64, term: Term, serial: u64, refusal: Refusal) {
        self.settle(term, serial, Outcome::Refused(refusal));
        self.shared.progress.pass(position);
    }

    fn settle(&self, term: Term, serial: u64, outcome: Outcome) {
        if let Some(leader) = self.leader.as_ref().filter(|leader| leader.reign.term == term) {
            leader.reign.settle(serial, outcome);
        }
    }

    fn changes(&mut self, position: u64, term: Term, serial: u64, changes: Changes) -> Result<(), ApplyError> {
        self.shared.window().extend(changes.stamp_ms, position, changes.answered.iter().cloned());
        self.taps.changes(position, &changes);
        if let Some(leader) = self.leader.as_ref().filter(|leader| leader.reign.term == term) {
            if !leader.reign.is_awaited(serial) {
                // R1: its session has ended other than by COMMIT.
                return Err(ApplyError::Reopen(format!("nobody holds entry {position} of this reign")));
            }
            self.own_records.push_back((position, (term.0, serial)));
            self.shared.progress.expect(position);
            leader.reign.settle(serial, Outcome::Effective(position));
        } else if self.meet(position, term, serial) {
            self.shared.progress.pass(position);
        } else {
            self.gathered.add_changes(changes);
            self.gather(position);
        }
        Ok(())
    }

    /// PostgreSQL lacks the entry at `position` until what is gathered has been applied.
    fn gather(&mut self, position: u64) {
        self.gathering_since.get_or_insert_with(Instant::now);
        match &mut self.span {
            Some((_, last)) => {
                *last = position;
                self.shared.progress.pass(position);
            }
            None => {
                self.span = Some((position, position));
                self.shared.progress.expect(position);
            }
        }
    }

    async fn control(
        &mut self,
        position: u64,
        term: Term,
        serial: u64,
        control: &Control,
        effects: Vec<Effect>,
    ) -> Result<(), ApplyError> {
        self.kept.state_changed_at = position;
        if !self.state.owned().eq(self.shared.state().owned()) {
            // Before the state shows it: a `local` read that sees either, sees that it must look again (R9).
            self.ownership_changed(position);
        }
        // Before anything that waits for ranges: a range must not be admitted before its rows are in.
        self.hide_until_stored(control);
        self.publish();
        // Each adoption will want a snapshot while statements wait.
        let copying = self.state.moves_in().filter(|movement| movement.phase == InPhase::Copying);
        self.shared.snapshots.reserve(copying.count());
        let leads = self.leader.as_ref().is_some_and(|leader| leader.reign.term == term);
        let stored = self.meet(position, term, serial);
        if leads {
            self.control_as_leader(position, term, serial, control, effects).await?;
        } else {
            if !stored {
                effects.iter().for_each(|effect| self.gathered.add_effect(effect.clone(), &self.state));
            }
            if self.gathered.is_empty() {
                self.shared.progress.pass(position)
            } else {
                self.gather(position)
            }
            for effect in &effects {
                self.notice(position, effect).await?;
            }
        }
        self.checkpoint(position, control).await
    }

    async fn control_as_leader(
        &mut self,
        position: u64,
        term: Term,
        serial: u64,
        control: &Control,
        effects: Vec<Effect>,
    ) -> Result<(), ApplyError> {
        let mut batch = Gathered::default();
        for effect in effects {
            self.notice(position, &effect).await?;
            batch.add_effect(effect, &self.state);
        }
        if batch.is_empty() {
            self.shared.progress.pass(position);
        } else {
            self.shared.progress.expect(position);
            self.own_records.push_back((position, (term.0, serial)));
            let records = vec![(term.0, serial)];
            let batch = ApplyBatch { operations: batch.take(&self.state), records, ..ApplyBatch::default() };
            self.keeper.ask(Command::Apply { batch: Box::new(batch), confirms: vec![position] }).await?;
        }
        // Whoever asked for it is told once it, and all before it, is stored; and only then is a new range admitted.
        let hidden = hidden_range(control, &self.state);
        let (leader, shared, not_yet) = (self.leader.clone(), self.shared.clone(), self.not_yet.clone());
        let then = move || {
            if let Some(range) = hidden {
                let mut not_yet = not_yet.lock().unwrap_or_else(PoisonError::into_inner);
                not_yet.remove(&range);
                shared.admission.follow(&shared.state(), &not_yet);
            }
            if let Some(leader) = leader {
                leader.reign.settle(serial, Outcome::Effective(position));
            }
        };
        // An entry that moves no rows and no tables need not wait for those of other entries.
        if hidden.is_none() && !moves_rows(control) {
            then();
            return Ok(());
        }
        Ok(self.keeper.ask(Command::Then(Box::new(then))).await?)
    }

    /// What an effect means beside its rows.
    async fn notice(&mut self, position: u64, effect: &Effect) -> Result<(), ApplyError> {
        match effect {
            Effect::Fenced(operator) => {
                if let Some(movement) = self.state.move_out(*operator)
                    && let crate::fold::OutPhase::Fenced { held_since_us, .. } = movement.phase
                {
                    let epoch = movement.epoch.next();
                    self.taps.settled(*operator, || TapItem::Fenced { position, epoch, held_since_us });
                }
            }
            Effect::MoveCancelled(operator) => self.taps.settled(*operator, || TapItem::Cancelled),
            Effect::Tail(entries) => {
                let mut window = self.shared.window();
                for entry in entries {
                    window.extend(entry.changes.stamp_ms, position, entry.changes.answered.iter().cloned());
                }
            }
            Effect::Adopted { operator, held_since_us } => {
                // The rows as they were adopted, before anybody changes them: to be verified against the source's (R24).
                self.flush(None).await?;
                let snapshot = self.keeper.snapshot().await?;
                if let Some(movement) = self.state.move_in(*operator)
                    && let Some(table) = self.state.table(movement.table)
                {
                    let rows = (table.clone(), movement.interval.clone());
                    let sessions = self.shared.snapshots.clone();
                    self.checks.adopted(*operator, *held_since_us, rows, (snapshot, sessions), self.holds_later());
                }
            }
            Effect::IngestOpened(_)
            | Effect::CreateTable(_)
            | Effect::Replace { .. }
            | Effect::Delete { .. }
            | Effect::OwnershipChanged
            | Effect::Checkpoint(_) => {}
        }
        Ok(())
    }

    /// R31: every replica takes checksums at the same place in the log.
    async fn checkpoint(&mut self, position: u64, control: &Control) -> Result<(), ApplyError> {
        let Control::Checkpoint { nonce } = control else { return Ok(()) };
        self.flush(None).await?;
        // On a leader, what came before is on its way to COMMIT, and nothing later is told to commit while this waits.
        self.shared.progress.reached(position).await;
        let snapshot = self.keeper.snapshot().await?;
        self.checks.checkpoint(*nonce, position, &self.state, snapshot.await, self.holds_later()).await;
        Ok(())
    }

    /// Whether PostgreSQL holds this entry already, by its record.
    fn meet(&mut self, position: u64, term: Term, serial: u64) -> bool {
        let stored = self.records.remove(&(term.0, serial));
        if stored && !self.holds_later() {
            self.ownership_changed(position);
        }
        stored
    }

    /// From this position on, what PostgreSQL holds and what the state machine says of ownership belong together (R9). Not while
    /// PostgreSQL is ahead: rows that are owned here may be purged in it already.
    fn ownership_changed(&self, position: u64) {
        let together = if self.holds_later() { u64::MAX } else { position };
        self.shared.owned_changed.store(together, Ordering::SeqCst);
    }

    /// Whether PostgreSQL may hold entries behind the one that is being folded: those of a reign on this replica before PostgreSQL was
    /// opened anew, whose records have not been met yet. Over at the latest with the next reign's beginning, which comes, because the
    /// one before has ended.
    fn holds_later(&self) -> bool {
        !self.records.is_empty()
    }

    /// A reign begins: no entry of an earlier one comes any more (invariant 1), so their records are of entries before this position.
    fn forget_earlier_records(&mut self, position: u64, term: Term) {
        if self.holds_later() {
            self.records.retain(|(recorded, _)| *recorded >= term.0);
            if !self.holds_later() {
                self.ownership_changed(position);
            }
        }
    }

    fn hide_until_stored(&mut self, control: &Control) {
        if let (Some(range), true) = (hidden_range(control, &self.state), self.leader.is_some()) {
            self.not_yet.lock().unwrap_or_else(PoisonError::into_inner).insert(range);
        }
    }

    /// Makes the state machine known to everyone else in this replica.
    fn publish(&self) {
        let state = Arc::new(self.state.clone());
        *self.shared.state.write().unwrap_or_else(PoisonError::into_inner) = state.clone();
        let not_yet = self.not_yet.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.admission.follow(&state, &not_yet);
    }

    /// Applies what was gathered. With `at`, the position is recorded up to there even if nothing was.
    async fn flush(&mut self, at: Option<u64>) -> Result<(), ApplyError> {
        self.gathering_since = None;
        let span = self.span.take();
        let Some(last) = at.or(span.map(|(_, last)| last)) else { return Ok(()) };
        let operations = self.gathered.take(&self.state);
        let batch = self.positioned(last, operations, false);
        let confirms = span.map(|(first, _)| first).into_iter().collect();
        self.keeper.ask(Command::Apply { batch: Box::new(batch), confirms }).await?;
        Ok(())
    }

    async fn request(&mut self, request: Request) -> Result<(), ApplyError> {
        match request {
            Request::Tap(operator, reply) => {
                let folded = self.shared.progress.folded();
                let reader = self.taps.set(operator, &self.state, &self.shared.window(), folded);
                let _ = reply.send(reader);
            }
            Request::Export(reply) => {
                let index = self.shared.progress.folded();
                self.flush(None).await?;
                self.shared.progress.reached(index).await;
                let snapshot = self.keeper.snapshot().await?.await.map_err(|_| keeper::KeeperStopped)??;
                let window = self.shared.window().all();
                let saved = SavedState { state: self.state.clone(), window };
                let state = encode(&saved)?;
                let tables = Arc::new(saved.state);
                let _ = reply.send(Export { index, term: self.term.0, state, tables, snapshot });
            }
        }
        Ok(())
    }
}

/// However it ends: nobody will tell the outcome of what its reign has proposed any more.
impl Drop for Applier {
    fn drop(&mut self) {
        self.leading.send_replace(None);
        if let Some(leader) = self.leader.take() {
            leader.reign.abandon();
        }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// The range that an entry brings under this shard's ownership with rows or a table that must be stored first.
fn hidden_range(control: &Control, state: &ShardState) -> Option<RangeId> {
    match control {
        Control::CreateTable { range, .. } => Some(*range),
        Control::Adopt { operator, .. } => state.move_in(*operator).map(|m| m.range),
        _ => None,
    }
}

fn moves_rows(control: &Control) -> bool {
    matches!(
        control,
        Control::IngestOpen { .. }
            | Control::IngestChunk { .. }
            | Control::IngestTail { .. }
            | Control::Adopt { .. }
            | Control::Purge { .. }
            | Control::Discard { .. }
    )
}

fn encode(saved: &SavedState) -> Result<Bytes, ApplyError> {
    let encoded = postcard::to_stdvec(saved);
    encoded.map(Bytes::from).map_err(|error| ApplyError::Diverged(format!("the state cannot be encoded: {error}")))
}
