//! Transactions over several shards, as this shard's log knows them (R26).
//!
//! It owns the prepared changes of transactions that another shard decides about, and the decisions
//! of those that this shard has decided about.
//!
//! It promises: a prepared key is written by no other entry until its transaction is resolved; a
//! decision is kept until every participant has it in its log. Everything follows from the log, so
//! that all replicas agree. A replica records it with each position, as of that position:
//! what has been resolved is kept until a later position is recorded.
//!
//! Not done: whether to commit. A deciding shard commits as any transaction does.

use super::refusal::{EntryRefusal, refuse};
use crate::log_entry::image::Image;
use crate::log_entry::{Change, DecidedChanges, EntryBody, Malformed, PreparedChanges, Resolution, ShardEntry};
use bytes::Bytes;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::{Key, KeyInterval, TableId, TxnId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The most that the prepared changes of a shard take, in bytes. They are recorded with each
/// position for as long as they are not resolved.
pub const MAX_PREPARED_BYTES: usize = 32 << 20;

/// An id without the time at which it was sent.
type Name = (u64, u64);

/// A decision to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitDecision {
    /// The transaction.
    pub id: TxnId,
    /// The other shards.
    pub participants: Vec<ShardInfo>,
}

/// Something that has been true since a position.
#[derive(Debug, Clone)]
struct Since<T> {
    position: u64,
    what: T,
}

/// Something that was true from one position up to another.
#[derive(Debug, Clone)]
struct Past<T> {
    from: u64,
    until: u64,
    what: T,
}

/// See the module.
#[derive(Debug, Default)]
pub struct MultiShardTransactions {
    prepared: BTreeMap<Name, Since<Arc<PreparedChanges>>>,
    decided: BTreeMap<Name, Since<Arc<CommitDecision>>>,
    /// What has ended since the position that was recorded last, oldest first.
    resolved: VecDeque<Past<Arc<PreparedChanges>>>,
    forgotten: VecDeque<Past<Arc<CommitDecision>>>,
    /// The prepared keys; those of whole tables as [`Key::MIN`].
    locked: BTreeSet<(TableId, Key)>,
    bytes: usize,
}

/// As it is recorded.
#[derive(Default, Serialize, Deserialize)]
struct Recorded {
    prepared: Vec<(u64, Bytes)>,
    /// The participants of all decisions: there are few shards and many decisions.
    shards: Vec<ShardInfo>,
    decided: Vec<RecordedDecision>,
}

/// A decision, with its participants' places among the shards.
#[derive(Serialize, Deserialize)]
struct RecordedDecision {
    position: u64,
    id: TxnId,
    participants: Vec<usize>,
}

impl Recorded {
    fn add(&mut self, position: u64, decision: &CommitDecision) {
        let mut participants = Vec::with_capacity(decision.participants.len());
        for shard in &decision.participants {
            let known = self.shards.iter().position(|known| known == shard);
            participants.push(known.unwrap_or_else(|| {
                self.shards.push(shard.clone());
                self.shards.len() - 1
            }));
        }
        self.decided.push(RecordedDecision { position, id: decision.id, participants });
    }
}

fn name(id: TxnId) -> Name {
    (id.client, id.sequence)
}

/// The key that a change locks: [`Key::MIN`] for a whole table. A new row without a key, and the
/// state of a sequence, lock nothing: they depend on no other row.
fn locked(change: &Change) -> Option<Key> {
    match change.image {
        Image::Truncated | Image::Removed(_) => Some(Key::MIN),
        _ if change.key == Key::MIN => None,
        _ => Some(change.key.clone()),
    }
}

impl MultiShardTransactions {
    /// A prepared transaction.
    pub fn prepared(&self, id: TxnId) -> Option<&Arc<PreparedChanges>> {
        self.prepared.get(&name(id)).map(|since| &since.what)
    }

    /// All prepared transactions.
    pub fn all_prepared(&self) -> impl Iterator<Item = &Arc<PreparedChanges>> {
        self.prepared.values().map(|since| &since.what)
    }

    /// Whether this shard has decided to commit a transaction, and remembers it.
    pub fn is_committed(&self, id: TxnId) -> bool {
        self.decided.contains_key(&name(id))
    }

    /// All decisions that are remembered.
    pub fn decisions(&self) -> impl Iterator<Item = &Arc<CommitDecision>> {
        self.decided.values().map(|since| &since.what)
    }

    /// Whether changes write no key of a prepared transaction.
    ///
    /// # Errors
    /// They do: the leader that executed them did not know of it.
    pub fn judge(&self, changes: &[Change]) -> Result<(), EntryRefusal> {
        if self.locked.is_empty() {
            return Ok(());
        }
        match changes.iter().find(|change| self.is_locked(change)) {
            None => Ok(()),
            Some(Change { table, key, .. }) => {
                let key = key.to_hex();
                refuse("locked", format!("key {key} of table {table} belongs to a prepared transaction"))
            }
        }
    }

    fn is_locked(&self, change: &Change) -> bool {
        let Some(key) = locked(change) else { return self.locked.contains(&(change.table, Key::MIN)) };
        let all = key == Key::MIN && self.locks_within(change.table, &KeyInterval::ALL);
        all || self.locked.contains(&(change.table, Key::MIN)) || self.locked.contains(&(change.table, key))
    }

    /// Whether a prepared transaction has keys in an interval.
    pub fn locks_within(&self, table: TableId, interval: &KeyInterval) -> bool {
        let from = (table, interval.start.clone());
        let first = self.locked.range(from..).next().is_some_and(|(of, key)| *of == table && interval.contains(key));
        first || self.locked.contains(&(table, Key::MIN))
    }

    /// Whether a prepared transaction changes one of these tables.
    pub fn touches(&self, tables: &BTreeSet<TableId>) -> bool {
        let mut changes = self.all_prepared().flat_map(|prepared| &prepared.changes.changes);
        changes.any(|change| tables.contains(&change.table))
    }

    /// Prepares changes that have been judged.
    ///
    /// # Errors
    /// Too much is prepared; or the id is.
    pub fn prepare(&mut self, position: u64, changes: PreparedChanges) -> Result<(), EntryRefusal> {
        let (id, bytes) = (changes.id, changes.changes.size_bytes());
        if self.prepared.contains_key(&name(id)) {
            return refuse("prepared-already", format!("transaction {id} is prepared already"));
        }
        if self.bytes + bytes > MAX_PREPARED_BYTES {
            return refuse("too-much-prepared", format!("more than {MAX_PREPARED_BYTES} bytes would be prepared"));
        }
        self.add(position, Arc::new(changes));
        Ok(())
    }

    fn add(&mut self, position: u64, what: Arc<PreparedChanges>) {
        self.bytes += what.changes.size_bytes();
        let keys = what.changes.changes.iter().filter_map(|change| Some((change.table, locked(change)?)));
        self.locked.extend(keys);
        self.prepared.insert(name(what.id), Since { position, what });
    }

    /// Takes the changes of a transaction that is resolved at this position; `None` if it is not
    /// prepared, so that it has been resolved before.
    pub fn resolve(&mut self, position: u64, resolution: Resolution) -> Option<Arc<PreparedChanges>> {
        let Since { position: from, what } = self.prepared.remove(&name(resolution.id))?;
        self.bytes -= what.changes.size_bytes();
        for change in &what.changes.changes {
            // No two transactions lock the same: the second was rejected.
            if let Some(key) = locked(change) {
                self.locked.remove(&(change.table, key));
            }
        }
        self.resolved.push_back(Past { from, until: position, what: what.clone() });
        Some(what)
    }

    /// Remembers a decision.
    pub fn decide(&mut self, position: u64, decided: &DecidedChanges) {
        if deliberate(Bug::ForgottenDecision) {
            return;
        }
        let what = Arc::new(CommitDecision { id: decided.id, participants: decided.participants.clone() });
        self.decided.insert(name(decided.id), Since { position, what });
    }

    /// Forgets decisions.
    pub fn forget(&mut self, position: u64, ids: &[TxnId]) {
        for id in ids {
            if let Some(Since { position: from, what }) = self.decided.remove(&name(*id)) {
                self.forgotten.push_back(Past { from, until: position, what });
            }
        }
    }

    /// The record that goes with a position, as of that position. `None` if it is empty.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn recorded_at(&self, position: u64) -> Result<Option<Bytes>, postcard::Error> {
        let mut recorded = Recorded::default();
        let entry = |what: &Arc<PreparedChanges>| {
            ShardEntry { serial: 0, body: EntryBody::Prepared(PreparedChanges::clone(what)) }.encode()
        };
        let present = self.prepared.values().filter(|since| since.position <= position);
        recorded.prepared.extend(present.map(|since| (since.position, entry(&since.what))));
        let past = self.resolved.iter().filter(|past| past.from <= position && position < past.until);
        recorded.prepared.extend(past.map(|past| (past.from, entry(&past.what))));
        for since in self.decided.values().filter(|since| since.position <= position) {
            recorded.add(since.position, &since.what);
        }
        for past in self.forgotten.iter().filter(|past| past.from <= position && position < past.until) {
            recorded.add(past.from, &past.what);
        }
        if recorded.prepared.is_empty() && recorded.decided.is_empty() {
            return Ok(None);
        }
        postcard::to_stdvec(&recorded).map(|bytes| Some(bytes.into()))
    }

    /// A position is recorded: nothing will be recorded as of one before it.
    pub fn recorded(&mut self, position: u64) {
        while self.resolved.front().is_some_and(|past| past.until <= position) {
            self.resolved.pop_front();
        }
        while self.forgotten.front().is_some_and(|past| past.until <= position) {
            self.forgotten.pop_front();
        }
    }

    /// What was recorded with a position.
    ///
    /// # Errors
    /// The bytes were not recorded by [`MultiShardTransactions::recorded_at`].
    pub fn restore(bytes: &[u8]) -> Result<MultiShardTransactions, Malformed> {
        let recorded: Recorded = postcard::from_bytes(bytes).map_err(|error| Malformed(error.to_string()))?;
        let mut restored = MultiShardTransactions::default();
        for (position, entry) in recorded.prepared {
            match ShardEntry::decode(entry)?.body {
                EntryBody::Prepared(prepared) => restored.add(position, Arc::new(prepared)),
                _ => return Err(Malformed("it is no prepared transaction".into())),
            }
        }
        for RecordedDecision { position, id, participants } in recorded.decided {
            let of = |at: usize| recorded.shards.get(at).cloned();
            let Some(participants) = participants.into_iter().map(of).collect() else {
                return Err(Malformed("a decision has an unknown participant".into()));
            };
            restored.decided.insert(name(id), Since { position, what: Arc::new(CommitDecision { id, participants }) });
        }
        Ok(restored)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_entry::Changes;
    use evenkeel_protocol::ShardId;

    fn id(n: u64) -> TxnId {
        TxnId { client: 1, sequence: n, first_sent_ms: 9 }
    }

    fn shard(n: u32) -> ShardInfo {
        ShardInfo { id: ShardId(n), replicas: Default::default() }
    }

    fn change(table: u32, key: &'static [u8], image: Image) -> Change {
        Change { table: TableId(table), key: Key(Bytes::from_static(key)), image }
    }

    fn prepared(n: u64, changes: Vec<Change>) -> PreparedChanges {
        PreparedChanges { id: id(n), decider: shard(2), changes: Changes { changes, ..Changes::default() } }
    }

    fn row(key: &'static [u8]) -> Change {
        change(1, key, Image::New(Bytes::from_static(b"row")))
    }

    /// R26: nobody else writes prepared keys, until the transaction is resolved.
    #[test]
    fn prepared_keys_are_locked_until_they_are_resolved() {
        let mut transactions = MultiShardTransactions::default();
        transactions.prepare(5, prepared(1, vec![row(b"a"), row(b"b")])).unwrap();
        assert_eq!(transactions.judge(&[row(b"b")]).unwrap_err().code, "locked");
        assert_eq!(transactions.judge(&[change(1, b"", Image::Truncated)]).unwrap_err().code, "locked");
        assert!(transactions.judge(&[row(b"c"), change(2, b"a", Image::Gone)]).is_ok());
        let interval = |from: &'static [u8]| KeyInterval::new(Key(Bytes::from_static(from)), None);
        assert!(transactions.locks_within(TableId(1), &interval(b"b")));
        assert!(!transactions.locks_within(TableId(1), &interval(b"c")));
        assert!(!transactions.locks_within(TableId(0), &interval(b"")));
        assert_eq!(transactions.prepare(6, prepared(1, vec![])).unwrap_err().code, "prepared-already");
        let resolution = Resolution { id: id(1), committed: true };
        assert!(transactions.resolve(7, resolution).is_some() && transactions.resolve(8, resolution).is_none());
        assert!(transactions.judge(&[row(b"b")]).is_ok());
        assert_eq!((transactions.bytes, transactions.locked.len()), (0, 0));
    }

    #[test]
    fn rows_without_a_key_lock_their_table_when_they_are_removed() {
        let mut transactions = MultiShardTransactions::default();
        let inserted = || change(3, b"", Image::New(Bytes::new()));
        for n in [1, 2] {
            transactions.prepare(n, prepared(n, vec![inserted()])).unwrap();
        }
        assert!(transactions.judge(&[inserted()]).is_ok(), "it depends on no other row");
        transactions.prepare(3, prepared(3, vec![change(3, b"", Image::Removed(Bytes::new()))])).unwrap();
        assert_eq!(transactions.judge(&[inserted()]).unwrap_err().code, "locked");
        transactions.resolve(4, Resolution { id: id(3), committed: false });
        assert!(transactions.judge(&[inserted()]).is_ok());
    }

    #[test]
    fn prepared_changes_are_bounded() {
        let mut transactions = MultiShardTransactions::default();
        let large = |n| prepared(n, vec![change(1, b"k", Image::New(vec![0; MAX_PREPARED_BYTES / 2].into()))]);
        transactions.prepare(1, large(1)).unwrap();
        assert_eq!(transactions.prepare(2, large(2)).unwrap_err().code, "too-much-prepared");
    }

    /// Invariant 3: a replica that starts again finds what was prepared and decided at the position
    /// that it continues from, whatever has happened behind it.
    #[test]
    fn each_position_is_recorded_with_what_was_true_there() {
        let mut transactions = MultiShardTransactions::default();
        transactions.prepare(5, prepared(1, vec![row(b"a")])).unwrap();
        let decided = DecidedChanges { id: id(2), participants: vec![shard(3)], changes: Changes::default() };
        transactions.decide(6, &decided);
        transactions.resolve(8, Resolution { id: id(1), committed: true });
        transactions.forget(9, &[id(2)]);
        let at = |position| {
            let bytes = transactions.recorded_at(position).unwrap()?;
            let restored = MultiShardTransactions::restore(&bytes).unwrap();
            Some((restored.prepared(id(1)).is_some(), restored.is_committed(id(2)), restored.locked.len()))
        };
        let seen: Vec<_> = (4..=9).map(at).collect();
        let expected =
            [None, Some((true, false, 1)), Some((true, true, 1)), Some((true, true, 1)), Some((false, true, 0)), None];
        assert_eq!(seen, expected);
        transactions.recorded(7);
        assert_eq!((transactions.resolved.len(), transactions.forgotten.len()), (1, 1));
        transactions.recorded(8);
        assert_eq!((transactions.resolved.len(), transactions.forgotten.len()), (0, 1));
        assert!(MultiShardTransactions::restore(b"\x05").is_err());
    }
}
