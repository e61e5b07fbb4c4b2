//! Row capture: what the statements of an entry wrote, as PostgreSQL returned it.

use super::plan_cache::BoundPlan;
use super::postgres_session::{check_value_size, raw};
use crate::log_entry::image::{Columns, Image, PartialRow};
use crate::log_entry::{Change, Changes, Malformed};
use bytes::{BufMut, BytesMut};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::put_value;
use evenkeel_protocol::{Key, KeyCodec, SqlError, TableId, TableSchema};
use evenkeel_sql::{Capture, Plan, RowEffect};
use std::ops::Range;
use tokio_postgres::Row;

/// The captured changes. The images of all rows share one buffer.
#[derive(Default)]
pub struct Capturer {
    buffer: BytesMut,
    marks: Vec<Mark>,
}

/// A captured change: table, key, and what it says of the row.
type Mark = (TableId, Key, Written);

/// An [`Image`] whose values are a part of the buffer.
enum Written {
    New(Range<usize>),
    Whole(Range<usize>),
    Part(Columns, Range<usize>),
    Gone,
}

impl Capturer {
    /// Captures the rows that a statement returned. Returns a key that it wrote, if it wrote any.
    pub fn take(
        &mut self,
        plan: &Plan,
        schema: &TableSchema,
        codec: &KeyCodec,
        rows: &[Row],
    ) -> Result<Option<Key>, SqlError> {
        let (mut first, mut columns) = (None, None);
        for row in rows {
            let offset = plan.returned();
            let (key, image) = match plan.capture() {
                Capture::None => return Ok(None),
                Capture::Keys => {
                    let values = (0..schema.key.len()).map(|i| raw(row, offset + i)).collect::<Result<Vec<_>, _>>()?;
                    (codec.encode_binary(values), Written::Gone)
                }
                Capture::Assigned => {
                    let width = schema.key.len();
                    let values = (0..width).map(|i| raw(row, offset + i)).collect::<Result<Vec<_>, _>>()?;
                    let place = self.pack(row, offset + width..offset + width + plan.assigned().len())?;
                    let columns = columns.get_or_insert_with(|| Columns::new(plan.assigned().iter().copied()));
                    (codec.encode_binary(values), Written::Part(columns.clone(), place))
                }
                Capture::Rows => {
                    let width = schema.columns.len();
                    let place = self.pack(row, offset..offset + width)?;
                    let values = schema.key.iter().map(|&i| raw(row, offset + i)).collect::<Result<Vec<_>, _>>()?;
                    let new = match plan.effect() {
                        RowEffect::Inserts => true,
                        RowEffect::Upserts => raw(row, offset + width)?.is_some_and(|xid| xid.iter().all(|b| *b == 0)),
                        RowEffect::None | RowEffect::Updates | RowEffect::Deletes => false,
                    };
                    (codec.encode_binary(values), if new { Written::New(place) } else { Written::Whole(place) })
                }
            };
            let key = key.map_err(|error| SqlError::new("XX000", format!("a row's key cannot be encoded: {error}")))?;
            first.get_or_insert_with(|| key.clone());
            self.marks.push((schema.id, key, image));
        }
        Ok(first)
    }

    /// Copies values of a row into the buffer.
    fn pack(&mut self, row: &Row, columns: Range<usize>) -> Result<Range<usize>, SqlError> {
        let start = self.buffer.len();
        for column in columns {
            let value = raw(row, column)?;
            check_value_size(value.map_or(0, <[u8]>::len))?;
            put_value(&mut self.buffer, value);
        }
        Ok(start..self.buffer.len())
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// The size of the changes, approximately, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.buffer.len() + self.marks.iter().map(|(_, key, _)| key.0.len() + 10).sum::<usize>()
    }

    /// The size of the images, in bytes.
    pub fn image_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The keys of the last `count` changes, as changes without images.
    pub fn last_keys(&self, count: usize) -> Vec<Change> {
        let from = self.marks.len().saturating_sub(count);
        let change = |(table, key, _): &Mark| Change { table: *table, key: key.clone(), image: Image::Gone };
        self.marks[from..].iter().map(change).collect()
    }

    /// The number of changes.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// The changes, in the order of the statements.
    ///
    /// # Errors
    /// A captured row differs from its plan: a fault of this program.
    pub fn finish(mut self, stamp_ms: u64) -> Result<Changes, SqlError> {
        // So that the last image does not end where the buffer ends.
        self.buffer.put_u8(0);
        let buffer = self.buffer.freeze();
        let image = |written| {
            Ok(match written {
                Written::New(place) => Image::New(buffer.slice(place)),
                Written::Whole(place) => Image::Whole(buffer.slice(place)),
                Written::Part(columns, place) => Image::Part(PartialRow::new(columns, buffer.slice(place))?),
                Written::Gone => Image::Gone,
            })
        };
        let change = |(table, key, written)| Ok(Change { table, key, image: image(written)? });
        let changes: Result<Vec<Change>, Malformed> = self.marks.into_iter().map(change).collect();
        let changes = changes.map_err(|error| SqlError::new(codes::INTERNAL, error.to_string()))?;
        Ok(Changes { stamp_ms, answered: Vec::new(), changes })
    }
}

/// Captures the rows that a statement of this plan returned. Returns a key that it wrote, if it
/// wrote any.
pub(super) fn capture(captured: &mut Capturer, plan: &BoundPlan, rows: &[Row]) -> Result<Option<Key>, SqlError> {
    match &plan.schema {
        Some(schema) if plan.plan.capture() != Capture::None => captured.take(&plan.plan, schema, &plan.codec, rows),
        _ => Ok(None),
    }
}
