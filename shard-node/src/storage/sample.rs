//! Sizes of ranges, and keys that split a range by size, from a sample.
//!
//! The key that has half of a range's bytes before it can be found exactly only by reading half of
//! the range. A sample of the table's pages finds it closely enough, at a cost that does not grow
//! with the table: about [`SAMPLE_BLOCKS`] pages are read, and of large values only the pointers in
//! these pages.

use super::StoreError;
use super::raw_values::RawParameter;
use super::snapshot::{PinnedSnapshot, value};
use super::statements::{self, Bounds};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{Key, KeyInterval, SqlError, TableSchema};
use futures::{TryStreamExt, pin_mut};
use postgres_types::Type;

/// Pages read, about.
const SAMPLE_BLOCKS: u64 = 1024;
/// The size of a page of PostgreSQL's, in bytes.
const BLOCK_BYTES: u64 = 8192;
/// Of fewer rows nothing is concluded.
const MIN_ROWS: usize = 16;
/// The most pieces.
const MAX_PIECES: usize = 64;

/// A sample of a table's rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Keys, and what the rows take, in no order.
    pub rows: Vec<(Key, u64)>,
    /// One row in `scale` is in it.
    pub scale: f64,
}

/// A sample of the rows in an interval.
///
/// # Errors
/// As for [`PinnedSnapshot::chunk`].
pub async fn sample(
    snapshot: &PinnedSnapshot,
    schema: &TableSchema,
    interval: &KeyInterval,
) -> Result<Sample, StoreError> {
    if !schema.is_ordered() {
        // It is one range for ever: nothing is decided by its size.
        return Ok(Sample { rows: Vec::new(), scale: 1.0 });
    }
    let table = statements::table_name(schema);
    let bounds = Bounds::of(schema, interval)?;
    let size = snapshot.client().query_one("SELECT pg_relation_size($1::text::regclass)", &[&table]).await?;
    let blocks = size.try_get::<_, i64>(0)? as u64 / BLOCK_BYTES;
    let scale = blocks.max(SAMPLE_BLOCKS) as f64 / SAMPLE_BLOCKS as f64;
    let sql = format!(
        "SELECT {}, ({})::bigint FROM {table} TABLESAMPLE SYSTEM ({:.6}){}",
        statements::key_columns(schema),
        statements::row_bytes(schema),
        100.0 / scale,
        statements::where_in(schema, bounds.shape)
    );
    let types: Option<Vec<Type>> = statements::where_types(schema, bounds.shape).map(Type::from_oid).collect();
    let types = types.ok_or_else(|| {
        let reason = format!("table {} has a key of an unknown type", schema.name);
        StoreError::Refused(SqlError::new(codes::INTERNAL, reason))
    })?;
    let statement = snapshot.client().prepare_typed(&sql, &types).await?;
    let parameters: Vec<RawParameter<'_>> = bounds.values().map(RawParameter).collect();
    let stream = snapshot.client().query_raw(&statement, parameters).await?;
    pin_mut!(stream);
    let (codec, columns) = (schema.codec(), schema.key.len());
    let mut rows: Vec<(Key, u64)> = Vec::new();
    while let Some(row) = stream.try_next().await? {
        let key = codec.encode_binary((0..columns).map(|column| value(&row, column)));
        let key = key.map_err(|e| StoreError::Diverged(format!("table {}: {e}", schema.name)))?;
        rows.push((key, row.try_get::<_, i64>(columns)?.max(1) as u64));
    }
    Ok(Sample { rows, scale })
}

/// The first keys of the further ones of `pieces` pieces of about the same number of bytes.
///
/// # Errors
/// As for [`PinnedSnapshot::chunk`].
pub async fn size_split_keys(
    snapshot: &PinnedSnapshot,
    schema: &TableSchema,
    interval: &KeyInterval,
    pieces: usize,
) -> Result<Vec<Key>, StoreError> {
    let sample = sample(snapshot, schema, interval).await?;
    Ok(quantiles(sample.rows, interval, pieces.min(MAX_PIECES)))
}

/// The keys that cut a sample of rows into pieces of about the same number of bytes.
fn quantiles(mut rows: Vec<(Key, u64)>, interval: &KeyInterval, pieces: usize) -> Vec<Key> {
    if rows.len() < MIN_ROWS {
        return Vec::new();
    }
    rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let total: u128 = rows.iter().map(|(_, bytes)| u128::from(*bytes)).sum();
    let mut cuts: Vec<Key> = Vec::new();
    let (mut before, mut next) = (0u128, 1);
    for (key, bytes) in rows {
        let due = total * next / pieces as u128;
        if (next as usize) < pieces && before >= due && interval.splits_at(&key) && cuts.last() != Some(&key) {
            cuts.push(key);
            // A row larger than a piece takes the place of several.
            next = before * pieces as u128 / total + 1;
        }
        before += u128::from(bytes);
    }
    cuts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(n: u8) -> Key {
        Key(vec![n].into())
    }

    #[test]
    fn pieces_have_about_equally_many_bytes() {
        let rows = |bytes: fn(u8) -> u64| (0..100).rev().map(|n| (key(n), bytes(n))).collect::<Vec<_>>();
        assert_eq!(quantiles(rows(|_| 10), &KeyInterval::ALL, 4), [key(25), key(50), key(75)]);
        // The upper half of the keys has nine tenths of the bytes.
        assert_eq!(quantiles(rows(|n| if n < 50 { 10 } else { 90 }), &KeyInterval::ALL, 2), [key(73)]);
        // One row larger than all others together.
        assert_eq!(quantiles(rows(|n| if n == 40 { 10_000 } else { 1 }), &KeyInterval::ALL, 4), [key(41)]);
        assert!(quantiles(vec![(key(1), 5), (key(2), 5)], &KeyInterval::ALL, 2).is_empty(), "too few to conclude from");
        let narrow = KeyInterval::new(key(50), Some(key(99)));
        assert!(quantiles(rows(|_| 10), &narrow, 4).iter().all(|cut| narrow.splits_at(cut)));
    }
}
