//! [`Applier`]: applies decided entries to the state machine, in the log's order.

use super::applied_records::AppliedRecords;
use super::applied_state::AppliedState;
use super::apply_writer::{ApplyWriter, Command};
use super::change_stream::{ChangeStreams, StreamItem};
use super::checksum_checkpoint::{is_there_soon, snapshot_at};
use super::control_kinds::{hidden_ranges, moves_rows};
use super::leaderships::Leaderships;
use super::persistence::{CHECKPOINT_MS, Persistence};
use super::progress_bound::unless_still;
use super::publication::Publication;
use super::request::{ApplierRequest, Export};
use super::start::Start;
use super::write_batch::WriteBatch;
use crate::config::Config;
use crate::error::ApplyError;
use crate::leader::Leader;
use crate::leader::latches::ChangedKeys;
use crate::leader::leadership::{EntryOutcome, Holder};
use crate::log_entry::parts::{Added, Part, Payload};
use crate::log_entry::{Changes, Control, DecidedChanges, EntryBody, PreparedChanges, Purpose, Resolution, ShardEntry};
use crate::move_observations::MoveObservations;
use crate::replica::ReplicaHandles;
use crate::scrub::Scrub;
use crate::scrub::checkpoint_sums::At;
use crate::scrub::plan::Asked;
use crate::state_machine::{ControlEffect, EntryRefusal, OutPhase};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::scrub::Place;
use evenkeel_replicated_log::{self as log, Delivery, LogIndex, ReplicaId, Subscription, Term};
use futures::FutureExt;
use futures::future::ready;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Bytes taken from the log at a time.
const TAKE_BYTES: usize = 1 << 20;
/// How long PostgreSQL may apply nothing of what it is to hold before a leadership begins, in
/// milliseconds.
const STANDSTILL_MS: u64 = 10_000;

/// See the module.
pub struct Applier {
    /// First: it is dropped before everything else.
    leaderships: Leaderships,
    handles: ReplicaHandles,
    observations: Arc<MoveObservations>,
    scrub: Arc<Scrub>,
    applied: AppliedState,
    persistence: Persistence,
    publication: Publication,
    streams: ChangeStreams,
    /// Entries that have been decided and wait for rows that are under way.
    waiting: VecDeque<log::Entry>,
}

/// The position of an entry, its term and its serial.
#[derive(Clone, Copy)]
struct EntryId {
    position: u64,
    term: Term,
    serial: u64,
}

impl Applier {
    /// An applier that goes on from `start`.
    pub fn new(
        config: Arc<Config>,
        handles: ReplicaHandles,
        writer: ApplyWriter,
        (observations, scrub): (Arc<MoveObservations>, Arc<Scrub>),
        leading: watch::Sender<Option<Arc<Leader>>>,
        start: Start,
    ) -> Applier {
        let records = AppliedRecords::found(start.records, start.position, start.term);
        let at = (start.position, start.reached, start.term);
        let applier = Applier {
            leaderships: Leaderships::new(config.clone(), handles.clone(), leading, start.spent),
            observations,
            scrub,
            applied: AppliedState { state: start.state, term: start.term },
            persistence: Persistence::new(
                config,
                handles.clone(),
                writer,
                records,
                at,
                (start.seeding, start.unfinished),
            ),
            publication: Publication::new(handles.clone()),
            streams: ChangeStreams::default(),
            waiting: VecDeque::new(),
            handles,
        };
        applier.handles.latches.restore(&applier.applied.state, start.sizes);
        applier.persistence.ownership_changed(applier.handles.progress.applied());
        applier
    }

    /// Follows the log until the replica must do something else.
    pub async fn run(
        mut self,
        mut subscription: Subscription,
        mut requests: mpsc::Receiver<ApplierRequest>,
    ) -> ApplyError {
        let mut checkpoint = evenkeel_host::interval(Duration::from_millis(CHECKPOINT_MS));
        checkpoint.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Perhaps no row is missing: there is no table, or the process ended just before it
        // recorded that. No entry or piece need come then.
        if let Err(error) = self.persistence.end_seeding(&self.applied).await {
            return error;
        }
        loop {
            let due = self.persistence.due();
            let waits = !self.waiting.is_empty();
            let result = tokio::select! {
                delivery = subscription.next(TAKE_BYTES), if !waits => match delivery {
                    Ok(Delivery::Entries(entries)) => self.entries(entries).await,
                    Ok(Delivery::NeedState { trimmed, .. }) => Err(ApplyError::NeedState { trimmed }),
                    Err(_) => Err(ApplyError::LogStopped),
                },
                () = self.may_go_on(), if waits => self.entries(Vec::new()).await,
                Some(request) = requests.recv() => self.request(request).await,
                _ = checkpoint.tick() => self.persistence.checkpoint(&self.applied).await,
                () = evenkeel_host::sleep_until(due.unwrap_or_else(far).into()), if due.is_some() => {
                    self.persistence.flush(&self.applied, None).await
                }
            };
            if let Err(error) = result {
                return error;
            }
        }
    }

    /// Waits until the first of the waiting entries may be applied.
    async fn may_go_on(&self) {
        if let (Some(seeding), Some(first)) = (&self.persistence.seeding, self.waiting.front()) {
            seeding.may_apply(first.index.0).await;
        }
    }

    /// The next entry to apply, unless a piece that is under way might lack it (R32).
    fn next_entry(&mut self) -> Option<log::Entry> {
        let limit = self.persistence.seeding.as_ref().map_or(u64::MAX, |seeding| seeding.limit());
        let next = self.waiting.front()?.index.0 <= limit;
        if next { self.waiting.pop_front() } else { None }
    }

    async fn entries(&mut self, entries: Vec<log::Entry>) -> Result<(), ApplyError> {
        self.waiting.extend(entries);
        while let Some(entry) = self.next_entry() {
            let position = entry.index.0;
            match entry.body {
                log::Body::LeaderStart { leader } => self.leader_start(position, entry.term, leader).await?,
                // The barrier of a membership change: entries after it in this log have no effect.
                log::Body::ConfigChange(_) => {
                    self.persistence.unfinished.forget();
                    self.handles.progress.pass(position);
                }
                log::Body::Data(payload) => {
                    self.handles.progress.weigh(position, payload.len() as u64);
                    let decoded = Payload::decode(payload).map_err(|error| ApplyError::Diverged(error.to_string()))?;
                    match decoded {
                        // Invariant 1. The entry may be one that this replica proposed before it
                        // was deposed.
                        decoded if !entry.effective => {
                            self.leaderships.resolve(entry.term, decoded.serial(), EntryOutcome::Deposed);
                            self.handles.progress.pass(position);
                        }
                        Payload::Whole(whole) => self.effective(position, entry.term, whole).await?,
                        Payload::Part(part) => self.part(position, entry.term, &part).await?,
                    }
                }
            }
            self.persistence.applied(position);
        }
        self.streams.reached(self.handles.progress.applied());
        self.handles.log.applied(LogIndex(self.handles.progress.watermark()));
        if self.persistence.is_full() {
            self.persistence.flush(&self.applied, None).await?;
        }
        self.persistence.end_seeding(&self.applied).await
    }

    async fn leader_start(&mut self, position: u64, term: Term, leader: ReplicaId) -> Result<(), ApplyError> {
        self.persistence.flush(&self.applied, None).await?;
        self.leaderships.end().await?;
        self.applied.term = term;
        // R12: no further part of an earlier leadership's entries comes.
        self.persistence.unfinished.forget();
        self.persistence.begin_term(position, term);
        self.handles.progress.pass(position);
        // Everything before, and every session's end, is in PostgreSQL before anything after is
        // (R3).
        if !deliberate(Bug::LeaderNotWhole) {
            self.stored_up_to(position).await?;
        }
        // A replica that lacks rows is ineligible to lead, so that it is not elected; it must not
        // serve in any case.
        if self.leaderships.may_begin(term, leader) && self.persistence.seeding.is_none() {
            // AppliedRecords of this leadership are judged against this position.
            self.persistence.flush(&self.applied, Some(position)).await?;
            self.publication.hide_nothing();
            self.publication.hold_prepared();
            self.publication.publish(&self.applied.state, ChangedKeys::All);
            self.handles.latches.reset_meters();
            self.leaderships.begin(term).await?;
        } else {
            self.leaderships.prepare();
        }
        Ok(())
    }

    /// Waits until PostgreSQL holds everything up to `position` and pending snapshots are taken
    /// (R24): nobody may write before. There is no limit as long as PostgreSQL makes progress; at a
    /// standstill PostgreSQL is opened again.
    async fn stored_up_to(&self, position: u64) -> Result<(), ApplyError> {
        let stored = async {
            self.handles.progress.reached(position).await;
            self.persistence.writer.idle().await
        };
        match unless_still(stored, self.handles.progress.watch(), Duration::from_millis(STANDSTILL_MS)).await {
            Some(idle) => Ok(idle?),
            None => Err(ApplyError::Reopen(format!("PostgreSQL does not get to position {position}"))),
        }
    }

    /// R12: parts mean nothing until the last one, with which their entry takes effect.
    async fn part(&mut self, position: u64, term: Term, part: &Part) -> Result<(), ApplyError> {
        if let Some(leader) = self.leaderships.of_term(term) {
            leader.leadership.part_decided(part.serial);
        }
        let added = self.persistence.unfinished.add(position, part);
        match added.map_err(|error| ApplyError::Diverged(error.to_string()))? {
            Added::Waits => self.handles.progress.pass(position),
            Added::Complete(entry) => self.effective(position, term, *entry).await?,
            Added::Rejected => {
                let reason = "the entry's other parts are not in the log".into();
                let refusal = EntryRefusal { code: "parts-missing", reason };
                self.reject(EntryId { position, term, serial: part.serial }, refusal);
            }
        }
        Ok(())
    }

    async fn effective(&mut self, position: u64, term: Term, entry: ShardEntry) -> Result<(), ApplyError> {
        let id = EntryId { position, term, serial: entry.serial };
        match entry.body {
            EntryBody::Changes(changes) => match self.judge(&changes) {
                Ok(()) => self.changes(id, changes),
                Err(refusal) => {
                    self.reject(id, refusal);
                    Ok(())
                }
            },
            EntryBody::Prepared(prepared) => self.prepared(id, prepared),
            EntryBody::Decided(decided) => self.decided(id, decided),
            EntryBody::Resolved(resolution) => self.resolved(id, resolution).await,
            EntryBody::Forgotten(forgotten) => {
                self.handles.transactions().forget(position, &forgotten.ids);
                self.without_rows(id);
                Ok(())
            }
            EntryBody::Control(control @ Control::Checkpoint { .. }) => self.checksum_checkpoint(id, &control).await,
            EntryBody::Control(control) => match self.controlled(position, &control).await? {
                Ok(effects) => self.control(id, &control, effects).await,
                Err(refusal) => {
                    self.reject(id, refusal);
                    Ok(())
                }
            },
        }
    }

    /// Whether all that is changed is owned here, and belongs to no prepared transaction.
    fn judge(&self, changes: &Changes) -> Result<(), EntryRefusal> {
        match self.applied.state.judge(changes) {
            Err(_) if deliberate(Bug::NoOwnershipFence) => Ok(()),
            Ok(()) => self.handles.transactions().judge(&changes.changes),
            refused => refused,
        }
    }

    /// An entry took effect that changes no row.
    fn without_rows(&mut self, EntryId { position, term, serial }: EntryId) {
        self.handles.progress.pass(position);
        self.leaderships.resolve(term, serial, EntryOutcome::Effective(position));
    }

    /// R26: a part of a transaction that another shard decides about.
    fn prepared(&mut self, id: EntryId, prepared: PreparedChanges) -> Result<(), ApplyError> {
        let judged = self.judge(&prepared.changes);
        let judged = judged.and_then(|()| self.handles.transactions().prepare(id.position, prepared));
        match judged {
            Ok(()) if self.leaderships.of_term(id.term).is_some_and(|l| !l.leadership.is_awaited(id.serial)) => {
                // Its locks have gone with its session.
                let reason = format!("no session holds the transaction that is prepared at {}", id.position);
                Err(ApplyError::Reopen(reason))
            }
            Ok(()) => {
                self.without_rows(id);
                Ok(())
            }
            Err(refusal) => {
                self.reject(id, refusal);
                Ok(())
            }
        }
    }

    /// R26: this shard's part of a transaction that it decides about. It is committed if the
    /// changes take effect.
    fn decided(&mut self, id: EntryId, decided: DecidedChanges) -> Result<(), ApplyError> {
        match self.judge(&decided.changes) {
            Ok(()) => {
                self.handles.transactions().decide(id.position, &decided);
                self.changes(id, decided.changes)
            }
            Err(refusal) => {
                self.reject(id, refusal);
                Ok(())
            }
        }
    }

    /// R26: the decision about prepared changes. If it is to commit, they take effect here.
    async fn resolved(&mut self, id: EntryId, resolution: Resolution) -> Result<(), ApplyError> {
        let EntryId { position, term, serial } = id;
        let prepared = self.handles.transactions().resolve(position, resolution);
        let Some(prepared) = prepared.filter(|_| resolution.committed) else {
            self.without_rows(id);
            self.publication.show_resolved(resolution.id)();
            return Ok(());
        };
        let changes = prepared.changes.clone();
        let leader = self.leaderships.of_term(term).filter(|l| l.leadership.holder(serial) == Holder::Nobody).cloned();
        let Some(leader) = leader else { return self.changes(id, changes) };
        // It was prepared by an earlier leadership: no session has it.
        self.count(position, &changes);
        let mut batch = WriteBatch::default();
        batch.add_changes(changes);
        self.persistence.apply_own(&self.applied.state, position, (term.0, serial), batch).await?;
        let show = self.publication.show_resolved(resolution.id);
        let then = move || {
            show();
            leader.leadership.resolve(serial, EntryOutcome::Effective(position));
        };
        Ok(self.persistence.writer.ask(Command::Then(Box::new(then))).await?)
    }

    /// Why a control entry has to wait for prepared transactions.
    fn meets_prepared(&self, control: &Control) -> Option<EntryRefusal> {
        let transactions = self.handles.transactions();
        let meets = match control {
            Control::Fence { operator, .. } => {
                let moved = self.applied.state.move_out(*operator)?;
                transactions.locks_within(moved.table, &moved.interval)
            }
            Control::SchemaPrepare { tables, .. } => transactions.touches(tables),
            _ => false,
        };
        let reason = "a transaction over several shards is prepared here";
        meets.then(|| EntryRefusal { code: "prepared", reason: reason.into() })
    }

    /// Applies a control entry to the state machine.
    async fn controlled(
        &mut self,
        position: u64,
        control: &Control,
    ) -> Result<Result<Vec<ControlEffect>, EntryRefusal>, ApplyError> {
        if let Some(refusal) = self.meets_prepared(control) {
            return Ok(Err(refusal));
        }
        if let Control::SchemaChange { .. } = control {
            // A replica that starts again must not find a change in PostgreSQL that its state
            // lacks: so its position is recorded with it, which cannot be while parts are waiting
            // (R12). The log says so, and every replica rejects alike.
            if self.persistence.unfinished.first().is_some() {
                let reason = "an entry of several parts is unfinished".into();
                return Ok(Err(EntryRefusal { code: "entry-unfinished", reason }));
            }
            // Peers only have rows of the later version for it, and the change could not be made on
            // a part of the rows: it takes a peer's state again.
            if self.persistence.seeding.is_some() {
                return Err(ApplyError::NeedState { trimmed: LogIndex(position) });
            }
            // The collected changes are of the tables as they were.
            self.persistence.flush(&self.applied, None).await?;
        }
        Ok(self.applied.state.control(position, control))
    }

    /// The schema change is stored once everything that was asked of PostgreSQL is. Gives the step
    /// that lets readers and statements see it then.
    fn schema_stored(&self, control: &Control) -> Option<impl FnOnce() + Send + use<>> {
        let Control::SchemaChange { delta, .. } = control else { return None };
        let (handles, version) = (self.handles.clone(), delta.change.version);
        Some(move || {
            handles.snapshots.schema_changed();
            handles.connector.set_schema_version(version);
        })
    }

    fn reject(&mut self, id: EntryId, refusal: EntryRefusal) {
        self.leaderships.resolve(id.term, id.serial, EntryOutcome::Rejected(refusal));
        self.handles.progress.pass(id.position);
    }

    fn changes(&mut self, id: EntryId, changes: Changes) -> Result<(), ApplyError> {
        let EntryId { position, term, serial } = id;
        self.count(position, &changes);
        if let Some(leader) = self.leaderships.of_term(term) {
            if !leader.leadership.is_awaited(serial) {
                // R1: its session has ended other than by COMMIT.
                let reason = format!("no session holds entry {position} of the current leadership");
                return Err(ApplyError::Reopen(reason));
            }
            self.persistence.record_own(position, (term.0, serial));
            leader.leadership.resolve(serial, EntryOutcome::Effective(position));
        } else if self.persistence.meet(position, term, serial) {
            self.handles.progress.pass(position);
        } else {
            self.persistence.add_changes(position, changes, &self.applied.state);
        }
        Ok(())
    }

    /// What changes mean beside their rows.
    fn count(&mut self, position: u64, changes: &Changes) {
        self.handles.window().extend(changes.stamp_ms, position, changes.answered.iter().cloned());
        self.streams.changes(position, changes);
        self.persistence.recorded.written(self.handles.latches.count(&changes.changes));
    }

    async fn control(&mut self, id: EntryId, control: &Control, effects: Vec<ControlEffect>) -> Result<(), ApplyError> {
        let EntryId { position, term, serial } = id;
        self.persistence.recorded.state_changed_at = position;
        if !self.applied.state.changed_hands().is_empty() {
            // Before the state shows it: a `local` read that sees either, sees that it must look
            // again (R9).
            self.persistence.ownership_changed(position);
        }
        // Before anything that waits for ranges: a range must not be admitted before its rows are
        // in.
        let leading = self.leaderships.leads();
        hidden_ranges(control, &self.applied.state)
            .into_iter()
            .filter(|_| leading)
            .for_each(|r| self.publication.hide(r));
        let admit = match control {
            Control::SchemaChange { delta, .. } if leading => Some(self.publication.change(delta)),
            _ => None,
        };
        self.publication.publish(&self.applied.state, ChangedKeys::Only(self.applied.state.changed_hands()));
        let leads = self.leaderships.of_term(term).is_some();
        let stored = self.persistence.meet(position, term, serial);
        if leads {
            return self.control_as_leader(id, control, effects, admit).await;
        }
        if !stored {
            self.persistence.add_effects(&effects, &self.applied.state);
        }
        self.persistence.collect_or_pass(position);
        if let Some(shown) = self.schema_stored(control) {
            // A `local` read that sees the change waits for PostgreSQL.
            self.persistence.ownership_changed(position);
            self.persistence.flush(&self.applied, Some(position)).await?;
            let then = move || {
                shown();
                if let Some(admit) = admit {
                    admit();
                }
            };
            self.persistence.writer.ask(Command::Then(Box::new(then))).await?;
        }
        for effect in &effects {
            self.notice(position, effect).await?;
        }
        Ok(())
    }

    async fn control_as_leader(
        &mut self,
        id: EntryId,
        control: &Control,
        effects: Vec<ControlEffect>,
        admit: Option<impl FnOnce() + Send + 'static>,
    ) -> Result<(), ApplyError> {
        let EntryId { position, term, serial } = id;
        let mut batch = WriteBatch::default();
        for effect in effects {
            self.notice(position, &effect).await?;
            batch.add_effect(effect, &self.applied.state);
        }
        if batch.is_empty() {
            self.handles.progress.pass(position);
        } else {
            self.persistence.apply_own(&self.applied.state, position, (term.0, serial), batch).await?;
        }
        // The proposer learns the outcome once the entry, and everything before it, is stored; and
        // only then is a new range admitted.
        let hidden = hidden_ranges(control, &self.applied.state);
        let show: Vec<_> = hidden.iter().map(|range| self.publication.show(*range)).collect();
        let shown = self.schema_stored(control);
        let leader = self.leaderships.of_term(term).cloned();
        let then = move || {
            if let Some(shown) = shown {
                shown();
            }
            show.into_iter().for_each(|show| show());
            if let Some(admit) = admit {
                admit();
            }
            if let Some(leader) = leader {
                leader.leadership.resolve(serial, EntryOutcome::Effective(position));
            }
        };
        // An entry that moves no rows and no tables need not wait for those of other entries.
        if hidden.is_empty() && !moves_rows(control) {
            then();
            return Ok(());
        }
        Ok(self.persistence.writer.ask(Command::Then(Box::new(then))).await?)
    }

    /// The consequences of an effect beside its rows.
    async fn notice(&mut self, position: u64, effect: &ControlEffect) -> Result<(), ApplyError> {
        match effect {
            ControlEffect::Fenced(operator) => {
                if let Some(movement) = self.applied.state.move_out(*operator)
                    && let OutPhase::Fenced { held_since_us, .. } = movement.phase
                {
                    let epoch = movement.epoch.next();
                    self.streams.resolved(*operator, || StreamItem::Fenced { position, epoch, held_since_us });
                }
            }
            ControlEffect::MoveCancelled(operator) => self.streams.resolved(*operator, || StreamItem::Cancelled),
            ControlEffect::Tail { stamp_ms, entries } => {
                let mut window = self.handles.window();
                for entry in entries {
                    window.extend_by_tail(*stamp_ms, position, entry);
                }
            }
            ControlEffect::Adopted { operator, held_since_us } => {
                self.persistence.flush(&self.applied, None).await?;
                if let Some(movement) = self.applied.state.move_in(*operator) {
                    let verify = Command::Verify { operator: *operator, attempt: movement.attempt };
                    self.persistence.writer.ask(verify).await?;
                }
                let (observations, operator, held_since_us) = (self.observations.clone(), *operator, *held_since_us);
                observations.adopting(operator);
                let stored = move || observations.adopted(operator, held_since_us);
                self.persistence.writer.ask(Command::Then(Box::new(stored))).await?;
            }
            ControlEffect::IngestOpened(_)
            | ControlEffect::CreateTable(_)
            | ControlEffect::DropTable(_)
            | ControlEffect::ChangeSchema(_)
            | ControlEffect::Replace { .. }
            | ControlEffect::Delete { .. }
            | ControlEffect::OwnershipChanged => {}
        }
        Ok(())
    }

    /// Takes part in a checkpoint for comparing replicas. It changes nothing, so that nothing is
    /// stored or published for it.
    async fn checksum_checkpoint(&mut self, id: EntryId, control: &Control) -> Result<(), ApplyError> {
        let Control::Checkpoint { nonce, pieces, purpose } = control else { return Ok(()) };
        let position = id.position;
        self.persistence.collect_or_pass(position);
        self.leaderships.resolve(id.term, id.serial, EntryOutcome::Effective(position));
        if *purpose == Purpose::Scrub
            && let Some(last) = pieces.last()
        {
            self.scrub.status().place = Place::behind(last);
        }
        let (leads, handles) = (self.leaderships.leads(), &self.handles);
        let snapshot = match *purpose {
            Purpose::Scrub if !is_there_soon(&self.persistence, handles, leads, position).await => {
                ready(Err("it is busy".to_string())).boxed()
            }
            _ => snapshot_at(&mut self.persistence, handles, &self.applied, leads, position).await?,
        };
        let at = At { nonce: *nonce, index: position, holds_later: self.persistence.holds_later() };
        let asked = Asked::of(&self.applied.state, pieces, *purpose == Purpose::LeftBehind);
        self.scrub.sums.sum_up(at, asked, snapshot, self.handles.snapshots.clone());
        Ok(())
    }

    async fn request(&mut self, request: ApplierRequest) -> Result<(), ApplyError> {
        match request {
            ApplierRequest::OpenStream(operator, reply) => {
                let at = (self.handles.progress.applied(), self.handles.log.unix_ms());
                let stream = self.streams.open(operator, &self.applied.state, &self.handles.window(), at);
                let _ = reply.send(stream);
            }
            ApplierRequest::Export(reply) => {
                let _ = reply.send(self.export()?);
            }
            ApplierRequest::Seeded(piece, reply) => {
                let taken = self.persistence.take_piece(&self.applied, *piece).await?;
                let _ = reply.send(taken);
                self.persistence.end_seeding(&self.applied).await?;
            }
        }
        Ok(())
    }

    /// The state between two entries, with the parts of unfinished ones.
    fn export(&self) -> Result<Export, ApplyError> {
        let index = self.handles.progress.applied();
        let window = self.handles.window().all();
        let mut saved = self.persistence.saved_state(&self.applied);
        saved.transactions = self.handles.transactions().recorded_at(index).unwrap_or_default();
        saved.unfinished = self.persistence.unfinished.first_parts();
        Ok(Export { index, term: self.applied.term.0, machine: saved.encode()?, window })
    }
}

fn far() -> Instant {
    evenkeel_host::now() + Duration::from_secs(3600)
}
