//! The end of transactions in users' own texts: what they have changed becomes an entry (R7).
//!
//! 1. The reported keys are claimed (R4), so that nothing is decided about them until this entry
//!    is.
//! 2. One series goes to PostgreSQL: deferred constraints are checked (invariant 5), which can
//!    report further changes; the tables that were written to are asked for, the entry's record is
//!    written (R5), and the rows of the reported keys are read again.
//! 3. A table that was written to and not declared, or has no triggers that report, rolls the
//!    transaction back with 0A000. So does a truncated table that is not whole on this shard.
//! 4. If checking the constraints has reported further keys, it begins again with them.
//! 5. The entry is proposed and committed as any other ([`super::commit`]).

use super::claims::OwnedClaim;
use super::commit::{CommitError, Committer, EndingSession};
use super::context::LeaderContext;
use super::early_acknowledgement::Early;
use super::ended_transaction::{Ending, entry_body};
use super::entry_reading::{EntryReading, Preamble, not_captured};
use super::failures::{lost_in_transaction, moved_away, too_large};
use super::pass_through::without_images;
use super::raw_transaction::RawTransaction;
use super::reported_changes::OrderedChange;
use crate::log_entry::image::Image;
use crate::log_entry::{Change, Changes, ShardEntry};
use crate::storage::StoreError;
use evenkeel_postgres_session::{Requests, TransactionStatus, tags};
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::{Failure, Key, SqlError, TableId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How often the rows are read: once, and once more if checking constraints has reported keys.
const MAX_READINGS: usize = 3;
/// Whether the transaction has written anything at all, row locks included; then its end.
const END_OF_READS: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL; ROLLBACK";

/// See the module.
pub struct PassThroughCommit {
    context: Arc<LeaderContext>,
    committer: Arc<Committer>,
}

impl PassThroughCommit {
    /// Ends of a leadership's transactions.
    pub fn new(context: Arc<LeaderContext>, committer: Arc<Committer>) -> PassThroughCommit {
        PassThroughCommit { context, committer }
    }

    /// Commits a transaction that has not failed, under the client's id.
    pub(super) async fn commit(
        &self,
        raw: &mut RawTransaction,
        ending: &Ending,
        early: Early,
    ) -> Result<(), CommitError> {
        // R6: none may hit what follows the proposal.
        raw.cancellations_have_arrived().await;
        let decides = !ending.participants.is_empty();
        if raw.is_new() && !decides {
            return Ok(());
        }
        if !decides && self.only_reads(raw) {
            return self.end_reads(raw).await;
        }
        let serial = self.context.leadership.next_serial();
        let (changes, claim) = self.changes(raw, serial).await?;
        if changes.is_empty() && !decides {
            return self.end_unchanged(raw, claim).await;
        }
        let changes = Changes { stamp_ms: self.context.shared.log.unix_ms(), answered: Vec::new(), changes };
        let (size, limit) = (changes.size_bytes(), self.context.leadership.max_entry_bytes());
        if size > limit {
            drop(claim);
            return self.roll_back(raw, too_large(size, limit)).await;
        }
        let entry = ShardEntry { serial, body: entry_body(ending, changes) };
        let session = EndingSession::Raw(&mut raw.session);
        self.committer.commit_claimed(session, &entry, early, claim).await
    }

    /// The first phase of a commit that another shard decides about: what a transaction that has
    /// not failed has changed. Its session holds it under the record of `serial` (R5), and its keys
    /// are claimed.
    pub(super) async fn prepare(
        &self,
        raw: &mut RawTransaction,
        serial: u64,
    ) -> Result<(Changes, OwnedClaim), CommitError> {
        // R6, as above.
        raw.cancellations_have_arrived().await;
        let (changes, claim) = self.changes(raw, serial).await?;
        Ok((Changes { stamp_ms: self.context.shared.log.unix_ms(), answered: Vec::new(), changes }, claim))
    }

    fn only_reads(&self, raw: &RawTransaction) -> bool {
        let reads = raw.writes.is_empty() && raw.reported.is_empty() && self.sequences(raw).is_empty();
        raw.read_only || reads
    }

    /// Claims what a transaction has changed, writes the entry's record (R5), and reads the rows.
    async fn changes(&self, raw: &mut RawTransaction, serial: u64) -> Result<(Vec<Change>, OwnedClaim), CommitError> {
        for reading in 0..MAX_READINGS {
            let claimed = self.to_claim(raw);
            let claim = match self.context.leadership.claim_owned(serial, claimed).await {
                Ok(claim) => claim,
                Err(failure) => return Err(self.rolled_back(raw, moved_away(failure)).await),
            };
            let before = raw.reported.key_count() + raw.reported.ordered().len();
            let changes = match self.read(raw, serial, reading == 0).await {
                Ok(changes) => changes,
                Err(failure) => return Err(self.rolled_back(raw, failure).await),
            };
            if raw.reported.key_count() + raw.reported.ordered().len() == before {
                return Ok((changes, claim));
            }
        }
        let failure = SqlError::new("XX000", "checking the constraints goes on changing rows");
        Err(self.rolled_back(raw, failure.into()).await)
    }

    /// Ends a transaction that was to write nothing: its COMMIT is a read (R8).
    async fn end_reads(&self, raw: &mut RawTransaction) -> Result<(), CommitError> {
        let mut wrote = false;
        let mut requests = Requests::default();
        let asked = match requests.query(END_OF_READS) {
            Ok(()) => {
                let see = |message: &evenkeel_postgres_session::Message| {
                    wrote |= message.tag() == tags::DATA_ROW && message.whole().ends_with(b"t");
                };
                raw.session.run(requests, see).await
            }
            Err(error) => Err(StoreError::Refused(error)),
        };
        let led = self.context.barrier().await;
        if let Err(error) = asked {
            return Err(CommitError::Broken(lost_in_transaction(&self.context.examine(error))));
        }
        if wrote {
            return Err(CommitError::RolledBack(not_captured("a table").into()));
        }
        led.map_err(|failure| CommitError::RolledBack(moved_away(failure)))
    }

    /// The sequences whose values go into the entry.
    fn sequences(&self, raw: &RawTransaction) -> BTreeSet<TableId> {
        let state = self.context.shared.state();
        let mut sequences = BTreeSet::new();
        for table in &raw.uses {
            let Some(schema) = state.table(*table) else { continue };
            if schema.kind == RelationKind::Sequence {
                sequences.insert(*table);
            } else if raw.writes.contains(table) {
                sequences.extend(&schema.sequences);
            }
        }
        sequences
    }

    /// What must not be decided about until the entry is: the reported keys, truncated tables, and,
    /// for as long as their order matters, tables without a key and sequences.
    fn to_claim(&self, raw: &RawTransaction) -> Vec<Change> {
        let keys = raw.reported.keys().iter().flat_map(|(table, keys)| keys.keys().map(|key| (*table, key.clone())));
        let mut claimed = without_images(keys.collect());
        let mut whole = BTreeSet::new();
        for (table, change) in raw.reported.ordered() {
            match change {
                OrderedChange::Truncated(_) => _ = whole.insert((*table, true)),
                OrderedChange::Deleted(_) => _ = whole.insert((*table, false)),
                // It depends on no other row.
                OrderedChange::Inserted(_) => {}
            }
        }
        if raw.sets_sequences {
            whole.extend(self.sequences(raw).into_iter().map(|sequence| (sequence, false)));
        }
        claimed.extend(whole.into_iter().map(|(table, truncated)| Change {
            table,
            key: Key::MIN,
            image: if truncated { Image::Truncated } else { Image::Gone },
        }));
        claimed
    }

    /// Reads what the transaction has changed.
    async fn read(&self, raw: &mut RawTransaction, serial: u64, first: bool) -> Result<Vec<Change>, Failure> {
        let state = self.context.shared.state();
        let sequences = self.sequences(raw);
        if !raw.sets_sequences {
            // Not a value from before another transaction has set it: that one's entry comes first.
            let waited = without_images(sequences.iter().map(|sequence| (*sequence, Key::MIN)).collect());
            self.context.leadership.confirmed(&waited).await.map_err(moved_away)?;
        }
        let preamble = first.then_some(Preamble { term: self.context.leadership.term.0, serial });
        let reading = EntryReading::begin(&state, raw, &sequences, preamble);
        let lost = |error: StoreError| lost_in_transaction(&self.context.examine(error));
        let reading = reading.map_err(lost)?;
        let read = reading.run(&state, raw).await.map_err(lost)?;
        if raw.session.status() != TransactionStatus::Open {
            return Err(SqlError::new("XX000", "the transaction is not open at its end").into());
        }
        Ok(read?)
    }

    /// Ends a transaction that was to write, and has changed nothing.
    async fn end_unchanged(&self, raw: &mut RawTransaction, claim: OwnedClaim) -> Result<(), CommitError> {
        drop(claim);
        let ended = raw.session.roll_back().await;
        let led = self.context.barrier().await;
        if let Err(error) = ended {
            return Err(CommitError::Broken(lost_in_transaction(&self.context.examine(error))));
        }
        led.map_err(|failure| CommitError::RolledBack(moved_away(failure)))
    }

    async fn roll_back(&self, raw: &mut RawTransaction, failure: Failure) -> Result<(), CommitError> {
        self.committer.roll_back(EndingSession::Raw(&mut raw.session), failure).await
    }

    async fn rolled_back(&self, raw: &mut RawTransaction, failure: Failure) -> CommitError {
        match self.roll_back(raw, failure.clone()).await {
            Err(error) => error,
            // Never: rolling back is always an error.
            Ok(()) => CommitError::RolledBack(failure),
        }
    }
}
