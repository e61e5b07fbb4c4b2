//! The applier: takes what the log has decided, folds it, and sees to it that PostgreSQL follows (invariant 3).
//!
//! On a follower, and on a leader before its own `LeaderStart`, changes are gathered and applied as row images, many entries to
//! a PostgreSQL transaction; the position goes in with them. On a leader, an entry of its own leadership is held by the session that proposed
//! it: the applier only says what became of it, and the session commits. What a leader applies itself (rows coming in, purges,
//! new tables) is recorded entry by entry, because its sessions commit in any order (R5).
//!
//! Every `LeaderStart` ends the leadership before it: what had not come out of the log by then never will (invariant 4), and all of its
//! sessions are gone before anything later is applied (R3).

pub mod batch;
pub mod keeper;
pub mod tap;

mod checkpoint;
mod leadership_changes;
mod records;
mod seeding;
mod upkeep;

use crate::checks::Checks;
use crate::config::Config;
use crate::entry::{Body, Changes, Control, Entry};
use crate::fold::{Effect, RangeSize, Refusal, ShardState};
use crate::leader::latches::ChangedKeys;
use crate::leader::leadership::EntryOutcome;
use crate::leader::warm_sessions::WarmSessions;
use crate::leader::{Leader, Shared};
use crate::parts::{Added, Part, Payload, Unfinished};
use crate::postgres::is_damage;
use crate::store::{ApplyBatch, StoreError};
use crate::transfer::Piece;
use batch::Gathered;
use bytes::Bytes;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::{OperatorId, RangeId};
use evenkeel_replicated_log::{self as log, Delivery, LogIndex, ReplicaId, Subscription, Term};
use keeper::{Command, Keeper};
use records::Records;
pub use seeding::Seeding;
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tap::{TapItem, TapReader, Taps};
use tokio::sync::{mpsc, oneshot, watch};

/// Bytes taken from the log at a time.
const TAKE_BYTES: usize = 1 << 20;
/// Bytes gathered before they are applied at once, while PostgreSQL keeps up and while it does not: who is behind needs larger
/// transactions.
const GATHER_BYTES: usize = 1 << 20;
const GATHER_BYTES_BEHIND: usize = 4 << 20;
/// Bytes that wait for PostgreSQL from which on it is behind.
const BEHIND_BYTES: usize = 8 << 20;
/// How long a follower gathers, in milliseconds: fewer, larger applies cost less.
const GATHER_MS: u64 = 20;
/// How often positions are recorded and old records deleted, in milliseconds.
const UPKEEP_MS: u64 = 500;

/// Why the applier ended.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// PostgreSQL must be opened again.
    #[error("PostgreSQL must be opened again: {0}")]
    Reopen(String),
    /// PostgreSQL's data is damaged: it must be made again from a peer's.
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

/// A state transfer's beginning: what a replica has beside its rows, at one position.
pub struct Export {
    /// The position.
    pub index: u64,
    /// The term in force there.
    pub term: u64,
    /// The encoded [`SavedState`].
    pub machine: Bytes,
    /// The retry window.
    pub window: Bytes,
}

/// What is asked of the applier between two deliveries.
pub enum Request {
    /// Set a tap on a move out.
    Tap(OperatorId, oneshot::Sender<Option<TapReader>>),
    /// Export everything but the rows.
    Export(oneshot::Sender<Export>),
    /// Take rows that are missing here. Answered with whether they were taken: if not, they are too old.
    Seeded(Box<Piece>, oneshot::Sender<bool>),
}

/// What a replica keeps of itself beside the rows.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct SavedState {
    /// The state machine.
    pub state: ShardState,
    /// How large its ranges are, about.
    pub sizes: Vec<(RangeId, RangeSize)>,
}

/// What an applier starts from.
pub struct Start {
    /// The state machine at `position`.
    pub state: ShardState,
    /// The sizes of its ranges.
    pub sizes: Vec<(RangeId, RangeSize)>,
    /// What PostgreSQL holds entirely.
    pub position: u64,
    /// PostgreSQL may hold entries up to here; at least `position`.
    pub reached: u64,
    /// The term in force there.
    pub term: Term,
    /// Later entries that PostgreSQL holds too, by (term, serial).
    pub records: HashSet<(u64, u64)>,
    /// A term that this replica led and must not lead again (R1).
    pub spent: Option<Term>,
    /// If the replica is being re-seeded.
    pub seeding: Option<Seeding>,
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
    spares: WarmSessions,
    records: Records,
    gathered: Gathered,
    /// The first and last position gathered.
    span: Option<(u64, u64)>,
    gathering_since: Option<Instant>,
    /// PostgreSQL may hold entries up to here that are still to be folded; 0 once they have been.
    ahead: u64,
    unfinished: Unfinished,
    waiting_exports: Vec<oneshot::Sender<Export>>,
    taps: Taps,
    /// Ranges owned in the log whose rows or table the keeper has not stored yet.
    not_yet: Arc<Mutex<HashSet<RangeId>>>,
    kept: upkeep::Kept,
    seeding: Option<Seeding>,
    /// Entries that have come out of the log and wait for the rows that are under way.
    waiting: VecDeque<log::Entry>,
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
        let spares = WarmSessions::new(shared.connector.clone(), config.clone());
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
            records: Records::found(start.records, start.position, start.term),
            gathered: Gathered::default(),
            span: None,
            gathering_since: None,
            ahead: if start.reached > start.position { start.reached } else { 0 },
            unfinished: Unfinished::default(),
            waiting_exports: Vec::new(),
            taps: Taps::default(),
            not_yet: Arc::default(),
            kept: upkeep::Kept::at(start.position, start.term.0, start.reached.max(start.position)),
            seeding: start.seeding,
            waiting: VecDeque::new(),
        };
        applier.shared.latches.restore(&applier.state, start.sizes);
        applier.ownership_changed(applier.shared.progress.folded());
        applier
    }

    /// Follows the log until something must be done about this replica.
    pub async fn run(mut self, mut subscription: Subscription, mut requests: mpsc::Receiver<Request>) -> ApplyError {
        let mut upkeep = tokio::time::interval(Duration::from_millis(UPKEEP_MS));
        upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Perhaps no row is missing: there is no table, or the process ended just before it could say so. No entry or piece need come then.
        if let Err(error) = self.end_seeding().await {
            return error;
        }
        loop {
            // Who is behind gathers by size: what waits in the queue takes longer than any gathering.
            let gather_ms = if self.keeper.waiting_bytes() >= BEHIND_BYTES { UPKEEP_MS } else { GATHER_MS };
            let due = self.gathering_since.map(|since| since + Duration::from_millis(gather_ms));
            let waits = !self.waiting.is_empty();
            let result = tokio::select! {
                delivery = subscription.next(TAKE_BYTES), if !waits => match delivery {
                    Ok(Delivery::Entries(entries)) => self.entries(entries).await,
                    Ok(Delivery::NeedState { trimmed, .. }) => Err(ApplyError::NeedState { trimmed }),
                    Err(_) => Err(ApplyError::LogStopped),
                },
                () = seeding::may_go_on(&self.seeding, &self.waiting), if waits => self.entries(Vec::new()).await,
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
        self.waiting.extend(entries);
        while let Some(entry) = self.next_entry() {
            let position = entry.index.0;
            match entry.body {
                log::Body::LeaderStart { leader } => self.leader_start(position, entry.term, leader).await?,
                // The barrier of a membership change: what follows it in this log counts for nothing.
                log::Body::ConfigChange(_) => {
                    self.unfinished.forget();
                    self.shared.progress.pass(position);
                    self.export_waiting().await?;
                }
                log::Body::Data(payload) => {
                    self.shared.progress.weigh(position, payload.len() as u64);
                    let decoded = Payload::decode(payload).map_err(|error| ApplyError::Diverged(error.to_string()))?;
                    match decoded {
                        // Invariant 1. It may be one of ours from before we were deposed.
                        decoded if !entry.effective => {
                            self.settle(entry.term, decoded.serial(), EntryOutcome::Deposed);
                            self.shared.progress.pass(position);
                        }
                        Payload::Whole(whole) => self.effective(position, entry.term, whole).await?,
                        Payload::Part(part) => self.part(position, entry.term, &part).await?,
                    }
                }
            }
            if self.ahead > 0 && position >= self.ahead {
                self.ahead = 0;
                if !self.holds_later() {
                    self.ownership_changed(position);
                }
            }
        }
        let folded = self.shared.progress.folded();
        self.taps.reached(folded);
        self.shared.log.applied(LogIndex(self.shared.progress.watermark()));
        if self.gathered.size_bytes() >= gather_bytes(self.keeper.waiting_bytes()) {
            self.flush(None).await?;
        }
        self.end_seeding().await
    }

    /// R12: parts mean nothing until the last one, with which their entry takes effect.
    async fn part(&mut self, position: u64, term: Term, part: &Part) -> Result<(), ApplyError> {
        if let Some(leader) = self.leader.as_ref().filter(|leader| leader.leadership.term == term) {
            leader.leadership.part_decided(part.serial);
        }
        match self.unfinished.add(position, part).map_err(|error| ApplyError::Diverged(error.to_string()))? {
            Added::Waits => self.shared.progress.pass(position),
            Added::Complete(entry) => self.effective(position, term, *entry).await?,
            Added::Void => {
                let reason = "the entry's other parts are not in the log".into();
                self.void(position, term, part.serial, Refusal { code: "parts-missing", reason });
            }
        }
        self.export_waiting().await
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
            Body::Control(control @ Control::Checkpoint { .. }) => {
                self.checkpoint(position, term, serial, &control).await
            }
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
        self.settle(term, serial, EntryOutcome::Rejected(refusal));
        self.shared.progress.pass(position);
    }

    fn settle(&self, term: Term, serial: u64, outcome: EntryOutcome) {
        if let Some(leader) = self.leader.as_ref().filter(|leader| leader.leadership.term == term) {
            leader.leadership.resolve(serial, outcome);
        }
    }

    fn changes(&mut self, position: u64, term: Term, serial: u64, changes: Changes) -> Result<(), ApplyError> {
        self.shared.window().extend(changes.stamp_ms, position, changes.answered.iter().cloned());
        self.taps.changes(position, &changes);
        self.kept.written(self.shared.latches.count(&changes.changes));
        if let Some(leader) = self.leader.as_ref().filter(|leader| leader.leadership.term == term) {
            if !leader.leadership.is_awaited(serial) {
                // R1: its session has ended other than by COMMIT.
                return Err(ApplyError::Reopen(format!("nobody holds entry {position} of this leadership")));
            }
            self.records.write(position, (term.0, serial));
            self.shared.progress.expect(position);
            leader.leadership.resolve(serial, EntryOutcome::Effective(position));
        } else if self.meet(position, term, serial) {
            self.shared.progress.pass(position);
        } else {
            self.gathered.add_changes(self.not_missing(changes));
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
        if !self.state.changed_hands().is_empty() {
            // Before the state shows it: a `local` read that sees either, sees that it must look again (R9).
            self.ownership_changed(position);
        }
        // Before anything that waits for ranges: a range must not be admitted before its rows are in.
        self.hide_until_stored(control);
        self.publish(ChangedKeys::Only(self.state.changed_hands()));
        let leads = self.leader.as_ref().is_some_and(|leader| leader.leadership.term == term);
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
        Ok(())
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
            self.records.write(position, (term.0, serial));
            let records = vec![(term.0, serial)];
            let bytes = batch.size_bytes();
            let batch = ApplyBatch { operations: batch.take(&self.state), records, ..ApplyBatch::default() };
            self.keeper.ask(Command::Apply { batch: Box::new(batch), confirms: vec![position], bytes }).await?;
        }
        // Whoever asked for it is told once it, and all before it, is stored; and only then is a new range admitted.
        let hidden = hidden_range(control, &self.state);
        let (leader, shared, not_yet) = (self.leader.clone(), self.shared.clone(), self.not_yet.clone());
        let then = move || {
            if let Some(range) = hidden {
                let mut not_yet = not_yet.lock().unwrap_or_else(PoisonError::into_inner);
                not_yet.remove(&range);
                let state = shared.state();
                let keys = state.range(range).map(|range| (range.table, range.interval.clone()));
                shared.latches.follow(&state, &not_yet, ChangedKeys::Only(keys.as_slice()));
            }
            if let Some(leader) = leader {
                leader.leadership.resolve(serial, EntryOutcome::Effective(position));
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
            Effect::Tail { stamp_ms, entries } => {
                let mut window = self.shared.window();
                for entry in entries {
                    window.extend_by_tail(*stamp_ms, position, entry);
                }
            }
            Effect::Adopted { operator, held_since_us } => {
                self.flush(None).await?;
                if let Some(movement) = self.state.move_in(*operator) {
                    self.keeper.ask(Command::Verify { operator: *operator, attempt: movement.attempt }).await?;
                }
                let (checks, operator, held_since_us) = (self.checks.clone(), *operator, *held_since_us);
                checks.adopting(operator);
                let stored = move || checks.adopted(operator, held_since_us);
                self.keeper.ask(Command::Then(Box::new(stored))).await?;
            }
            Effect::IngestOpened(_)
            | Effect::CreateTable(_)
            | Effect::DropTable(_)
            | Effect::Replace { .. }
            | Effect::Delete { .. }
            | Effect::OwnershipChanged => {}
        }
        Ok(())
    }

    /// Whether PostgreSQL holds this entry already, by its record.
    fn meet(&mut self, position: u64, term: Term, serial: u64) -> bool {
        let stored = self.records.meet(position, (term.0, serial));
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

    /// Whether PostgreSQL may hold entries behind the one that is being folded: those of a leadership on this replica before PostgreSQL was
    /// opened again, whose records have not been met yet, or those that were applied while an earlier one was unfinished (R12). Over at the latest with the next leadership's beginning, which comes, because the
    /// one before has ended.
    fn holds_later(&self) -> bool {
        self.records.are_ahead() || self.ahead > 0 || self.seeding.is_some()
    }

    /// A leadership begins: no entry of an earlier one comes any more (invariant 1), so their records are of entries before this position.
    fn forget_earlier_records(&mut self, position: u64, term: Term) {
        let ahead = self.holds_later();
        self.records.begin_term(position, term);
        if ahead && !self.holds_later() {
            self.ownership_changed(position);
        }
    }

    fn hide_until_stored(&mut self, control: &Control) {
        if let (Some(range), true) = (hidden_range(control, &self.state), self.leader.is_some()) {
            self.not_yet.lock().unwrap_or_else(PoisonError::into_inner).insert(range);
        }
    }

    /// What is kept beside the rows.
    fn saved(&self) -> SavedState {
        SavedState { state: self.state.clone(), sizes: self.shared.latches.sizes() }
    }

    /// Makes the state machine known to everyone else in this replica, with the keys that may have changed hands.
    fn publish(&self, keys: ChangedKeys<'_>) {
        let state = Arc::new(self.state.clone());
        *self.shared.state.write().unwrap_or_else(PoisonError::into_inner) = state.clone();
        let not_yet = self.not_yet.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.latches.follow(&state, &not_yet, keys);
    }

    /// Applies what was gathered. With `at`, the position is recorded up to there even if nothing was.
    async fn flush(&mut self, at: Option<u64>) -> Result<(), ApplyError> {
        self.gathering_since = None;
        let span = self.span.take();
        let Some(last) = at.or(span.map(|(_, last)| last)) else { return Ok(()) };
        let bytes = self.gathered.size_bytes();
        let operations = self.gathered.take(&self.state);
        let batch = self.positioned(last, operations, (at.is_some(), false));
        let confirms = span.map(|(first, _)| first).into_iter().collect();
        self.keeper.ask(Command::Apply { batch: Box::new(batch), confirms, bytes }).await?;
        Ok(())
    }

    async fn request(&mut self, request: Request) -> Result<(), ApplyError> {
        match request {
            Request::Tap(operator, reply) => {
                let folded = self.shared.progress.folded();
                let reader =
                    self.taps.set(operator, &self.state, &self.shared.window(), (folded, self.shared.log.unix_ms()));
                let _ = reply.send(reader);
            }
            Request::Export(reply) => {
                self.waiting_exports.push(reply);
                self.export_waiting().await?;
            }
            Request::Seeded(piece, reply) => {
                let taken = self.seeded(*piece).await?;
                let _ = reply.send(taken);
                self.end_seeding().await?;
            }
        }
        Ok(())
    }

    /// Exports to those who asked, unless an entry is unfinished: its first parts would lie before the exported position, its last one
    /// behind it.
    async fn export_waiting(&mut self) -> Result<(), ApplyError> {
        if self.unfinished.first().is_some() {
            return Ok(());
        }
        for reply in std::mem::take(&mut self.waiting_exports) {
            let index = self.shared.progress.folded();
            let window = self.shared.window().all();
            let machine = encode(&self.saved())?;
            let _ = reply.send(Export { index, term: self.term.0, machine, window });
        }
        Ok(())
    }
}

/// However it ends: nobody will tell the outcome of what its leadership has proposed any more.
impl Drop for Applier {
    fn drop(&mut self) {
        self.leading.send_replace(None);
        if let Some(leader) = self.leader.take() {
            leader.leadership.abandon();
        }
    }
}

/// How many bytes are gathered while so many wait to be stored.
fn gather_bytes(waiting_bytes: usize) -> usize {
    if waiting_bytes >= BEHIND_BYTES { GATHER_BYTES_BEHIND } else { GATHER_BYTES }
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
