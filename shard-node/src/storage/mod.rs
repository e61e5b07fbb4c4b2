//! The rows and records of a replica in its PostgreSQL, and how decided changes get there.
//!
//! Users' tables lie in schema `public`. The schema `evenkeel` records which entries the rows
//! contain, so that invariant 3 holds: the record of an entry is written in the transaction that
//! applies the entry.
//!
//! | table | meaning of a row | written by |
//! |---|---|---|
//! | `evenkeel.applied` | the entry (term, serial) is applied | the leader, in the user's transaction, before the proposal (R5) |
//! | `evenkeel.position` | all effective entries up to `index` are applied | [`Store::apply`], in the batch's transaction |
//!
//! The leader's transactions commit concurrently and so out of order; each needs a record of its
//! own. Batches are applied one after another; a position is enough for them. Both tables are
//! insert-only and pruned later (R5: a snapshot that is held open makes updated rows slow and
//! leaves inserts fast). A row of positions can carry the replica's other state as opaque bytes,
//! answers to be remembered (R14), and the missing rows of a re-seed (R32).
//!
//! **Applying.** [`Store::apply`] runs a batch as one transaction whose statements are all sent
//! before the first answer is read. The changes of one table are one multi-row statement; the
//! caller has merged them per key (R15), since one statement cannot change a row twice. The session
//! is a replica session (no triggers, no foreign keys). Tables with further unique constraints do
//! not exist (SQL refuses them), so that rows can be upserted in any order.
//!
//! **Failing.** An error that the data causes would come again on every attempt: it is
//! [`StoreError::Diverged`], and the replica stops (invariant 5). After any other error the
//! transaction is undone, and the batch can be given again.
//!
//! | module | holds |
//! |---|---|
//! | `store`, `apply_batch`, `batch` | the apply session, and batches |
//! | `recovered`, `schema` | the record of applied entries |
//! | `prepared`, `pipeline` | prepared statements; statements under way |
//! | `snapshot`, `snapshots` | reading a range as of one moment: chunks, checksums; sessions for that |
//! | `sample` | sizes of ranges, and keys that split by size, from a sample of pages |
//! | `statements` | SQL text made from schemas (pure) |
//! | `capture_triggers`, `read_back` | triggers that report changed keys; queries for their rows (pure) |
//! | `raw_values`, `packed_keys` | values and keys in PostgreSQL's binary format |
//! | `parameters` | users' parameters |
//! | `try_table` | trial of a table's definition |
//! | `schema_change`, `capture_stub` | schema changes: their trial and their execution (R34) |
//! | `vacuum` | vacuum of the record tables |

mod apply_batch;
mod batch;
mod capture_triggers;
mod packed_keys;
mod parameters;
mod pipeline;
mod prepared;
mod raw_values;
mod read_back;
mod recovered;
mod sample;
mod schema;
mod schema_change;
mod snapshot;
mod snapshots;
mod statements;
mod store;
mod try_table;
mod vacuum;

pub use crate::postgres::StoreError;
pub use batch::{ApplyBatch, Differing, OrderedRow, StoreOperation};
pub use capture_triggers::{
    REPORT_CODE, RESET_COUNTS, ReportKind, TEXT_SETTINGS, WRITTEN_TABLES, capture_triggers, drop_capture,
    is_report_context,
};
pub use parameters::{Parameter, parameter};
pub use raw_values::{Raw, RawParameter};
pub use read_back::{ReadBack, ReadBackQuery};
pub use recovered::{AppliedRecord, Recovered};
pub use sample::{Sample, sample, size_split_keys};
pub use schema::RECORD_SQL;
pub use schema_change::try_schema_change;
pub use snapshot::{Chunk, Extent, MAX_CHUNK_BYTES, PinnedSnapshot, RowsOf};
pub use snapshots::Snapshots;
pub use statements::{sequence_image, sequence_state, table_file};
pub use store::Store;
pub use try_table::try_table;
pub use vacuum::keep_vacuumed;

#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
