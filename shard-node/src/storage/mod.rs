//! What a replica keeps in its PostgreSQL, and how the decided changes get in.
//!
//! Users' tables lie in schema `public`. Beside them the schema `evenkeel` holds the record of what is in them, so that
//! invariant 3 can be kept: whatever was applied is recorded in the same transaction.
//!
//! | table | a row says | written by |
//! |---|---|---|
//! | `evenkeel.applied` | the entry (term, serial) is in | the leader, in the user's own transaction, before it is proposed (R5) |
//! | `evenkeel.position` | all effective entries up to `index` are in | [`Store::apply`], in the batch's transaction |
//!
//! The leader's transactions commit concurrently and so out of order, which is why they need a record each; applied
//! batches come one after another, and a position says all. Both tables are insert-only and pruned behind (R5: a
//! snapshot that is held open makes updated rows slow and leaves inserts fast). A position's row can carry the
//! replica's other state, as bytes that mean nothing here, answers to be remembered (R14), and which rows are still missing (R32).
//!
//! **Applying.** [`Store::apply`] runs a batch as one transaction whose statements are all sent before the first answer
//! is read. The changes of one table are one multi-row statement; the caller has coalesced them per key (R15), since
//! one statement cannot touch a row twice. The session is a replica session (no triggers, no foreign keys). Tables with
//! further unique constraints are not made (SQL refuses them), so that rows can be upserted in any order.
//!
//! **Failing.** An error that the data causes would come again on every try: that is [`StoreError::Diverged`], and the
//! replica stops (invariant 5). Everything else leaves the transaction undone, and the batch can be given again.
//!
//! | module | what it holds |
//! |---|---|
//! | `apply` | batches |
//! | [`snapshot`] | reading a range as of one moment: chunks, checksums |
//! | `sample` | how large ranges are, and where one can be split by size, from a sample of pages |
//! | [`snapshots`] | sessions for that, kept ready |
//! | `statements` | SQL text made from schemas (pure) |
//! | [`raw`] | values in binary format, in and out, undecoded |
//! | `keys` | encoded keys as column values |
//! | [`bind`] | users' parameters |

mod apply_batch;
mod batch;
mod packed_keys;
mod parameters;
mod pipeline;
mod prepared;
mod raw_values;
mod recovered;
mod sample;
mod schema;
mod snapshot;
mod snapshots;
mod statements;
mod store;
mod try_table;
mod vacuum;

pub use crate::postgres::StoreError;
pub use batch::{ApplyBatch, Differing, StoreOperation};
pub use parameters::{Parameter, parameter};
pub use raw_values::{Raw, RawParameter};
pub use recovered::{AppliedRecord, Recovered};
pub use sample::{Sample, sample, size_split_keys};
pub use schema::RECORD_SQL;
pub use snapshot::{Chunk, Extent, PinnedSnapshot, RowsOf};
pub use snapshots::Snapshots;
pub use store::Store;
pub use try_table::try_table;
pub use vacuum::keep_vacuumed;

#[cfg(test)]
mod tests;
