//! Scheduler: chooses the next statement and interprets answers. It has no clock, no task and no
//! target.
//!
//! Operations are drawn in the source's order. Each gets the time it is due; the workload is asked
//! for it with that time and not with the clock's, so that at a given rate the sequence of
//! operations does not depend on how fast the store is. A write waits for the write of its key that
//! is under way. The kind of its statement depends on whether the row is there, so that a trace
//! which updates a deleted row or inserts a row twice still replays.

use std::time::Duration;

use super::config::{LoadPace, ReplayConfig};
use super::error::ReplayError;
use super::key_order::{KeyOrder, WriteStart};
use super::ledger::{Issued, Ledger, LedgerFull, Presence, ReadFloor, WriteEffect};
use super::target::{Statement, StoredRow, TargetAnswer, TargetFailure, TargetStatementKind};
use super::value::{make_value, value_matches};
use crate::operation::{Operation, OperationKind, OperationSource};

/// An operation on its way through the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) operation: Operation,
    /// When it is due, since the start of the run; `None` if it is due when there is a worker for
    /// it.
    pub(super) due: Option<Duration>,
}

/// The next statement of a write that has started.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WriteStep {
    /// The row's presence is unknown: read it first, and report to [`Scheduler::resolved`].
    ReadFirst,
    /// Send this write, then report to [`Scheduler::written`].
    Write { kind: TargetStatementKind, issued: Issued },
}

/// The error of an answer, if there is one.
pub(super) type Check = Result<(), String>;

pub(super) struct Scheduler {
    source: Box<dyn OperationSource>,
    pace: LoadPace,
    duration: Duration,
    max_operations: u64,
    drawn: u64,
    /// Due time of the operation drawn last.
    last_due: Duration,
    /// When the last operation was due, once no more are drawn.
    ended_at: Option<Duration>,
    source_ended: bool,
    key_order: KeyOrder<Ticket>,
    ledger: Ledger,
}

impl Scheduler {
    pub(super) fn new(config: &ReplayConfig, source: Box<dyn OperationSource>, ledger: Ledger) -> Self {
        Self {
            source,
            pace: config.pace,
            duration: config.duration,
            max_operations: config.max_operations.unwrap_or(u64::MAX),
            drawn: 0,
            last_due: Duration::ZERO,
            ended_at: None,
            source_ended: false,
            key_order: KeyOrder::new(config.max_parked_operations),
            ledger,
        }
    }

    /// No operation is drawn any more.
    pub(super) fn stop(&mut self, now: Duration) {
        self.end(now.min(self.duration));
    }

    fn end(&mut self, at: Duration) {
        self.ended_at.get_or_insert(at);
    }

    /// When the run ended, since its start; `None` while it goes on. Workers draw ahead of time, so
    /// it may lie ahead.
    pub(super) fn ended_at(&self) -> Option<Duration> {
        self.ended_at
    }

    /// The next operation, or `None` once the run is over at `now`.
    pub(super) fn draw(&mut self, now: Duration) -> Result<Option<Ticket>, ReplayError> {
        if self.ended_at.is_some() {
            return Ok(None);
        }
        let due_by_rate = match self.pace {
            LoadPace::Rate { operations_per_s, .. } => {
                Some(Duration::from_secs_f64(self.drawn as f64 / operations_per_s))
            }
            _ => None,
        };
        if now >= self.duration || due_by_rate.is_some_and(|due| due >= self.duration) {
            self.end(self.duration);
            return Ok(None);
        }
        if self.drawn >= self.max_operations {
            self.source_ended = true;
            self.end(now.max(self.last_due));
            return Ok(None);
        }
        let Some(timed) = self.source.next(due_by_rate.unwrap_or(now))? else {
            self.source_ended = true;
            self.end(now.max(self.last_due));
            return Ok(None);
        };
        let due = match self.pace {
            LoadPace::Recorded { speed, .. } => {
                Some(timed.at.map_or(self.last_due, |at| self.last_due.max(at.div_f64(speed))))
            }
            _ => due_by_rate,
        };
        if due.is_some_and(|due| due >= self.duration) {
            self.end(self.duration);
            return Ok(None);
        }
        self.last_due = due.unwrap_or(now);
        self.drawn += 1;
        self.ledger.touch(timed.operation.key);
        Ok(Some(Ticket { operation: timed.operation, due }))
    }

    /// The hottest key's share (0 to 1) of the operations. The source's own figure comes first:
    /// counting over a whole run makes a hotspot that moves look colder than it ever is.
    pub(super) fn hottest_key_share(&self) -> f64 {
        self.source.hottest_key_share().unwrap_or_else(|| self.ledger.hottest_key_share())
    }

    /// Ends the run. Returns the ledger, how long the run was, and how many operations were due
    /// before its end and never drawn; only a rate says how many there should have been.
    pub(super) fn finish(&mut self, now: Duration) -> (Ledger, Duration, u64) {
        self.end(now.min(self.duration));
        let duration = self.ended_at.unwrap_or(self.duration);
        let not_started = match self.pace {
            LoadPace::Rate { operations_per_s, .. } if !self.source_ended => {
                ((duration.as_secs_f64() * operations_per_s) as u64).saturating_sub(self.drawn)
            }
            _ => 0,
        };
        let empty = Ledger::new(self.ledger.seed(), 0);
        (std::mem::replace(&mut self.ledger, empty), duration, not_started)
    }

    /// Asks whether a write may start.
    pub(super) fn enter(&mut self, ticket: Ticket) -> WriteStart<Ticket> {
        self.key_order.enter(ticket.operation.key, ticket)
    }

    /// Ends a write; the one that was parked behind it is returned and must be started.
    pub(super) fn leave(&mut self, ticket: &Ticket) -> Option<Ticket> {
        self.key_order.leave(ticket.operation.key)
    }

    /// Operations that are parked behind others.
    pub(super) fn parked(&self) -> usize {
        self.key_order.parked()
    }

    /// What a read of `key` sent now must at least return.
    pub(super) fn read_floor(&self, key: i64) -> ReadFloor {
        self.ledger.read_floor(key)
    }

    /// Judges the row that a read returned, except for its value.
    pub(super) fn check_read(&self, key: i64, floor: ReadFloor, row: Option<&StoredRow>) -> Check {
        let found = row.map(StoredRow::found);
        if self.ledger.read_allowed(key, floor, found) {
            return Ok(());
        }
        Err(format!("read of {key} returned {found:?}, acknowledged before it was {floor:?}"))
    }

    /// The first or next statement of a write that has started.
    pub(super) fn write_step(&mut self, operation: &Operation) -> Result<WriteStep, LedgerFull> {
        let present = match self.ledger.presence(operation.key) {
            Presence::Unknown => return Ok(WriteStep::ReadFirst),
            Presence::Present => true,
            Presence::Absent => false,
        };
        self.write(operation, present)
    }

    /// The row that [`WriteStep::ReadFirst`] asked for, read without failure.
    pub(super) fn resolved(&mut self, operation: &Operation, row: Option<&StoredRow>) -> Result<WriteStep, LedgerFull> {
        self.ledger.observe(operation.key, row.map(StoredRow::found));
        self.write(operation, row.is_some())
    }

    fn write(&mut self, operation: &Operation, present: bool) -> Result<WriteStep, LedgerFull> {
        let (kind, effect) = match (operation.kind, present) {
            (OperationKind::Delete, _) => (TargetStatementKind::Delete, WriteEffect::Deleted),
            (_, true) => (TargetStatementKind::Update, WriteEffect::Updated),
            (_, false) => (TargetStatementKind::Insert, WriteEffect::Inserted),
        };
        let issued = self.ledger.issue(operation.key, effect)?;
        Ok(WriteStep::Write { kind, issued })
    }

    /// The end of the write that [`WriteStep::Write`] asked for.
    pub(super) fn written(
        &mut self,
        key: i64,
        kind: TargetStatementKind,
        result: &Result<TargetAnswer, TargetFailure>,
    ) -> Check {
        let before = self.ledger.presence_before(key);
        match (result, before) {
            (Ok(TargetAnswer::Written { affected_rows: 1 }), Presence::Absent)
                if kind == TargetStatementKind::Delete =>
            {
                self.ledger.acknowledge(key);
                return Err(format!("{kind:?} of {key} deleted a row that nobody wrote"));
            }
            (Ok(TargetAnswer::Written { affected_rows: 1 }), _) => self.ledger.acknowledge(key),
            // There was nothing to delete: what was asked for holds.
            (Ok(TargetAnswer::Written { affected_rows: 0 }), Presence::Absent)
                if kind == TargetStatementKind::Delete =>
            {
                self.ledger.acknowledge(key);
            }
            // A delete of unknown outcome has come before it.
            (Ok(TargetAnswer::Written { affected_rows: 0 }), Presence::Unknown)
                if kind != TargetStatementKind::Insert =>
            {
                self.ledger.not_applied(key);
            }
            (Ok(TargetAnswer::Written { affected_rows: 0 }), _) => {
                self.ledger.not_applied(key);
                return Err(format!(
                    "{kind:?} of {key} changed no row: what was acknowledged before it is lost, or it was applied twice"
                ));
            }
            (Ok(other), _) => {
                self.ledger.unknown(key);
                return Err(format!("{kind:?} of {key} was answered with {other:?}"));
            }
            (Err(TargetFailure::NotApplied(_)), _) => self.ledger.not_applied(key),
            (Err(TargetFailure::Unknown(_)), _) => self.ledger.unknown(key),
        }
        Ok(())
    }

    /// The ledger's time, for [`Scheduler::check_scan`].
    pub(super) fn scan_begins(&self) -> u64 {
        self.ledger.time()
    }

    /// Checks the rows of a scan from `from` of at most `limit_rows` rows that was sent at `began`
    /// by the ledger's time, except for their values: in order, each once, and none left out that
    /// was there before the scan and after it. Their versions may be any.
    pub(super) fn check_scan(&self, began: u64, from: i64, limit_rows: u32, rows: &[StoredRow]) -> Check {
        let mut keys = rows.iter().map(|row| row.key);
        check_keys(&self.ledger, began, from, limit_rows, &mut keys).map(drop)
    }

    /// The seed that values are made from.
    pub(super) fn seed(&self) -> u64 {
        self.ledger.seed()
    }
}

/// Checks that a row's value belongs to its key and version. Takes time in proportion to the
/// value's size.
pub(super) fn check_row(seed: u64, key: i64, row: &StoredRow) -> Check {
    if row.key != key {
        Err(format!("read of {key} returned the row of {}", row.key))
    } else if !value_matches(seed, key, row.version, &row.value) {
        Err(format!("read of {key} returned a value that was never written as version {}", row.version))
    } else {
        Ok(())
    }
}

/// Checks the keys that a scan from `from` of at most `limit_rows` rows returned; `began` is the
/// ledger's time before it. Fewer rows than asked for mean that there are no more. Returns how many
/// there were.
pub(super) fn check_keys(
    ledger: &Ledger,
    began: u64,
    from: i64,
    limit_rows: u32,
    keys: &mut dyn Iterator<Item = i64>,
) -> Result<u64, String> {
    let (mut next, mut count) = (Some(from), 0);
    let left_out = |between, count: u64| match ledger.surely_present(between, began) {
        Some(key) => Err(format!("scan from {from} of {limit_rows} rows left out {key}, after {count} rows")),
        None => Ok(()),
    };
    for key in keys {
        let Some(least) = next.filter(|least| *least <= key) else {
            return Err(format!("scan from {from} returned {key} where {next:?} was the least that it could be"));
        };
        if let Some(before) = key.checked_sub(1) {
            left_out(least..=before, count)?;
        }
        count += 1;
        next = key.checked_add(1);
    }
    if count > u64::from(limit_rows) {
        return Err(format!("scan from {from} of {limit_rows} rows returned {count}"));
    }
    if let Some(next) = next.filter(|_| count < u64::from(limit_rows)) {
        left_out(next..=i64::MAX, count)?;
    }
    Ok(count)
}

/// A statement without a value.
pub(super) fn plain(kind: TargetStatementKind, key: i64, limit_rows: u32) -> Statement {
    Statement { kind, key, version: 0, over: 0, value: None, limit_rows }
}

/// A write of the run with `seed`.
pub(super) fn write(seed: u64, kind: TargetStatementKind, key: i64, issued: Issued, value_bytes: u32) -> Statement {
    let version = i64::from(issued.version);
    let value = (kind != TargetStatementKind::Delete).then(|| make_value(seed, key, version, value_bytes));
    Statement { kind, key, version, over: issued.over.into(), value, limit_rows: 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::operation::{SourceError, TimedOperation};

    struct Fixed(std::vec::IntoIter<TimedOperation>);

    impl OperationSource for Fixed {
        fn next(&mut self, _now: Duration) -> Result<Option<TimedOperation>, SourceError> {
            Ok(self.0.next())
        }

        fn hottest_key_share(&self) -> Option<f64> {
            None
        }
    }

    fn operation(kind: OperationKind, key: i64) -> Operation {
        Operation { kind, key, value_bytes: 8 }
    }

    fn scheduler(pace: LoadPace, times_ms: &[Option<u64>]) -> Scheduler {
        let operations: Vec<_> = times_ms
            .iter()
            .map(|at| TimedOperation {
                at: at.map(Duration::from_millis),
                operation: operation(OperationKind::Update, 1),
            })
            .collect();
        let config = ReplayConfig { pace, duration: Duration::from_secs(1), ..ReplayConfig::default() };
        Scheduler::new(&config, Box::new(Fixed(operations.into_iter())), Ledger::new(1, 100))
    }

    fn due_ms(scheduler: &mut Scheduler, now_ms: u64) -> Option<Option<u128>> {
        let ticket = scheduler.draw(Duration::from_millis(now_ms)).unwrap()?;
        Some(ticket.due.map(|due| due.as_millis()))
    }

    #[test]
    fn a_rate_sets_due_times_whatever_the_clock_says() {
        let pace = LoadPace::Rate { operations_per_s: 4.0, max_in_flight: 1 };
        let mut scheduler = scheduler(pace, &[None; 10]);
        assert_eq!(due_ms(&mut scheduler, 0), Some(Some(0)));
        assert_eq!(due_ms(&mut scheduler, 0), Some(Some(250)));
        assert_eq!(due_ms(&mut scheduler, 900), Some(Some(500)));
        // At the end of the run one of the four that were due has not been started.
        assert_eq!(due_ms(&mut scheduler, 1_000), None);
        let (_, duration, not_started) = scheduler.finish(Duration::from_secs(2));
        assert_eq!((duration, not_started), (Duration::from_secs(1), 1));
    }

    #[test]
    fn recorded_times_are_kept_and_scaled() {
        let pace = LoadPace::Recorded { speed: 2.0, max_in_flight: 1 };
        let mut scheduler = scheduler(pace, &[Some(0), Some(100), None, Some(300), Some(2_000)]);
        let due: Vec<_> = (0..4).map(|_| due_ms(&mut scheduler, 0)).collect();
        assert_eq!(due, [Some(Some(0)), Some(Some(50)), Some(Some(50)), Some(Some(150))]);
        assert_eq!(due_ms(&mut scheduler, 0), None, "past the end of the run");
    }

    #[test]
    fn a_run_ends_by_time_number_or_source() {
        let pace = LoadPace::AsFastAsPossible { workers: 1 };
        let mut by_source = scheduler(pace, &[None]);
        assert_eq!(due_ms(&mut by_source, 0), Some(None));
        assert_eq!(due_ms(&mut by_source, 0), None);
        let mut by_time = scheduler(pace, &[None; 3]);
        assert_eq!(due_ms(&mut by_time, 1_000), None);
        let mut by_number = scheduler(pace, &[None; 3]);
        by_number.max_operations = 1;
        assert_eq!(due_ms(&mut by_number, 0), Some(None));
        assert_eq!(due_ms(&mut by_number, 0), None);
    }

    #[test]
    fn a_write_becomes_what_the_row_needs() {
        let mut scheduler = scheduler(LoadPace::AsFastAsPossible { workers: 1 }, &[]);
        let step = |kind, version, over| WriteStep::Write { kind, issued: Issued { version, over } };
        let written = |affected_rows| Ok(TargetAnswer::Written { affected_rows });
        let update = operation(OperationKind::Update, 5);
        assert_eq!(scheduler.write_step(&update).unwrap(), step(TargetStatementKind::Insert, 1, 0));
        scheduler.written(5, TargetStatementKind::Insert, &written(1)).unwrap();
        let insert = operation(OperationKind::Insert, 5);
        assert_eq!(scheduler.write_step(&insert).unwrap(), step(TargetStatementKind::Update, 2, 1));
        let unknown = Err(TargetFailure::Unknown("gone".to_owned()));
        scheduler.written(5, TargetStatementKind::Update, &unknown).unwrap();
        let delete = operation(OperationKind::Delete, 5);
        assert_eq!(scheduler.write_step(&delete).unwrap(), step(TargetStatementKind::Delete, 3, 1));
        scheduler.written(5, TargetStatementKind::Delete, &unknown).unwrap();
        // Now the row may be there or not.
        assert_eq!(scheduler.write_step(&update).unwrap(), WriteStep::ReadFirst);
        assert_eq!(scheduler.resolved(&update, None).unwrap(), step(TargetStatementKind::Insert, 4, 3));
        scheduler.written(5, TargetStatementKind::Insert, &written(1)).unwrap();
        // An update that finds nothing where there is a row has found a lost one.
        scheduler.write_step(&update).unwrap();
        let found = scheduler.written(5, TargetStatementKind::Update, &written(0)).unwrap_err();
        assert!(found.starts_with("Update of 5 changed no row"), "{found}");
        // A delete alike; where nothing was, there must be nothing to delete.
        scheduler.write_step(&delete).unwrap();
        assert!(scheduler.written(5, TargetStatementKind::Delete, &written(0)).is_err());
        let elsewhere = operation(OperationKind::Delete, 6);
        scheduler.write_step(&elsewhere).unwrap();
        assert_eq!(scheduler.written(6, TargetStatementKind::Delete, &written(0)), Ok(()));
        scheduler.write_step(&elsewhere).unwrap();
        assert!(scheduler.written(6, TargetStatementKind::Delete, &written(1)).is_err());
    }

    /// A delete of unknown outcome may still come after the read that found the row.
    #[test]
    fn a_late_delete_is_no_lost_write() {
        let mut scheduler = scheduler(LoadPace::AsFastAsPossible { workers: 1 }, &[]);
        let (update, delete) = (operation(OperationKind::Update, 5), operation(OperationKind::Delete, 5));
        scheduler.write_step(&update).unwrap();
        scheduler.written(5, TargetStatementKind::Insert, &Ok(TargetAnswer::Written { affected_rows: 1 })).unwrap();
        scheduler.write_step(&delete).unwrap();
        scheduler.written(5, TargetStatementKind::Delete, &Err(TargetFailure::Unknown("gone".to_owned()))).unwrap();
        let row = StoredRow { key: 5, version: 1, count: 1, value: make_value(1, 5, 1, 8) };
        scheduler.resolved(&update, Some(&row)).unwrap();
        assert_eq!(
            scheduler.written(5, TargetStatementKind::Update, &Ok(TargetAnswer::Written { affected_rows: 0 })),
            Ok(())
        );
        assert_eq!(scheduler.write_step(&update).unwrap(), WriteStep::ReadFirst);
    }

    #[test]
    fn rows_are_checked_for_what_they_hold() {
        let mut scheduler = scheduler(LoadPace::AsFastAsPossible { workers: 1 }, &[]);
        for key in [3, 5, 8] {
            scheduler.write_step(&operation(OperationKind::Update, key)).unwrap();
            scheduler
                .written(key, TargetStatementKind::Insert, &Ok(TargetAnswer::Written { affected_rows: 1 }))
                .unwrap();
        }
        let row = |key, version, of_version| StoredRow {
            key,
            version,
            count: version,
            value: make_value(1, key, of_version, 20),
        };
        let (three, five, eight) = (row(3, 1, 1), row(5, 2, 2), row(8, 1, 1));
        let began = scheduler.scan_begins();
        let check = |from, limit, rows: &[StoredRow]| scheduler.check_scan(began, from, limit, rows);
        let (seed, other) = (scheduler.seed(), scheduler.seed() + 1);
        assert_eq!(check_row(seed, 3, &three), Ok(()));
        assert!(check_row(other, 3, &three).is_err(), "another run's value");
        assert!(check_row(seed, 5, &three).is_err(), "another row");
        let good = [three.clone(), five.clone()];
        assert_eq!(check(3, 2, &good), Ok(()));
        assert_eq!(check(3, 9, &[three.clone(), five.clone(), eight.clone()]), Ok(()));
        assert!(check(4, 2, &good).is_err(), "a row before the start");
        assert!(check(3, 1, &good).is_err(), "too many");
        assert!(check(3, 9, &[five.clone(), three.clone(), eight.clone()]).is_err(), "out of order");
        assert!(check_row(seed, 3, &row(3, 1, 2)).is_err(), "another version's value");
        assert!(check(3, 9, &good).is_err(), "it ends early");
        assert!(check(3, 2, &[three, eight]).is_err(), "one is left out");
        assert!(check(3, 2, &[]).is_err(), "all are left out");
        assert_eq!(check(9, 2, &[]), Ok(()));
    }
}
