//! Result rows and row images, packed in one buffer.
//!
//! A value is packed as PostgreSQL's own `DataRow` message packs it: a big-endian 32-bit length (−1
//! for null) and that many bytes in PostgreSQL's binary format. Rows follow one another; a batch
//! shares one allocation, and a row taken out of it is a slice of the same memory.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// A result column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The object id of its PostgreSQL type.
    pub type_oid: u32,
}

/// Rows with the same number of columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowBatch {
    /// Values per row.
    pub width: u32,
    /// Rows.
    pub count: u32,
    /// The packed values of all rows.
    pub data: Bytes,
}

impl RowBatch {
    /// The rows, each an iterator over its values. Ends early on malformed data.
    pub fn rows(&self) -> impl Iterator<Item = RowValues<'_>> {
        let mut rest: &[u8] = &self.data;
        (0..self.count).map_while(move |_| {
            let row = RowValues { rest, left: self.width };
            for _ in 0..self.width {
                take_value(&mut rest)?;
            }
            Some(row)
        })
    }

    /// The value at (`row`, `column`), both from 0: `None` outside, `Some(None)` for null. For
    /// tests and single-row answers; walks the rows before it.
    pub fn value(&self, row: usize, column: usize) -> Option<Option<&[u8]>> {
        self.rows().nth(row)?.nth(column)
    }

    /// The value at (`row`, `column`) as an integer, if it is one of PostgreSQL's three binary
    /// integer widths.
    pub fn int(&self, row: usize, column: usize) -> Option<i64> {
        let raw = self.value(row, column)??;
        Some(match raw.len() {
            2 => i16::from_be_bytes(raw.try_into().ok()?).into(),
            4 => i32::from_be_bytes(raw.try_into().ok()?).into(),
            8 => i64::from_be_bytes(raw.try_into().ok()?),
            _ => return None,
        })
    }

    /// Appends the rows of `other`, which has the same width.
    pub fn append(&mut self, other: &RowBatch) {
        if self.count == 0 {
            *self = other.clone();
        } else if other.count > 0 {
            let mut data = BytesMut::with_capacity(self.data.len() + other.data.len());
            data.extend_from_slice(&self.data);
            data.extend_from_slice(&other.data);
            self.data = data.freeze();
            self.count += other.count;
        }
    }
}

/// Packs rows into a batch.
#[derive(Debug)]
pub struct RowBuilder {
    width: u32,
    count: u32,
    data: BytesMut,
}

impl RowBuilder {
    /// An empty builder for rows of `width` values.
    pub fn new(width: usize) -> RowBuilder {
        RowBuilder { width: width as u32, count: 0, data: BytesMut::new() }
    }

    /// Appends a row of exactly `width` values.
    pub fn push<'a>(&mut self, values: impl IntoIterator<Item = Option<&'a [u8]>>) {
        let mut pushed = 0;
        for value in values {
            put_value(&mut self.data, value);
            pushed += 1;
        }
        debug_assert_eq!(pushed, self.width, "a row has as many values as the batch is wide");
        self.count += 1;
    }

    /// Rows so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes so far.
    pub fn size_bytes(&self) -> usize {
        self.data.len()
    }

    /// The batch.
    pub fn finish(self) -> RowBatch {
        RowBatch { width: self.width, count: self.count, data: self.data.freeze() }
    }
}

/// Appends one packed value.
pub fn put_value(out: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        None => out.put_i32(-1),
        Some(raw) => {
            out.put_i32(raw.len() as i32);
            out.put_slice(raw);
        }
    }
}

/// Takes one packed value off the front: `None` if there is no whole one, `Some(None)` for null.
pub fn take_value<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    let length = i32::from_be_bytes(*head);
    if length < 0 {
        *rest = tail;
        return Some(None);
    }
    let (value, tail) = tail.split_at_checked(length as usize)?;
    *rest = tail;
    Some(Some(value))
}

/// The values of one row.
#[derive(Debug, Clone)]
pub struct RowValues<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> RowValues<'a> {
    /// The values of a packed row of `width` columns.
    pub fn new(packed: &'a [u8], width: usize) -> RowValues<'a> {
        RowValues { rest: packed, left: width as u32 }
    }
}

impl<'a> Iterator for RowValues<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        take_value(&mut self.rest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_come_back_as_they_were_packed() {
        let mut builder = RowBuilder::new(2);
        builder.push([Some(&b"ab"[..]), None]);
        builder.push([Some(&b""[..]), Some(&7i64.to_be_bytes()[..])]);
        let mut batch = builder.finish();
        batch.append(&batch.clone());
        assert_eq!(batch.count, 4);
        let rows: Vec<Vec<_>> = batch.rows().map(Iterator::collect).collect();
        assert_eq!(rows[0], vec![Some(&b"ab"[..]), None]);
        assert_eq!(rows[3][0], Some(&b""[..]));
        assert_eq!(batch.int(3, 1), Some(7));
        assert_eq!(batch.value(4, 0), None);
    }

    #[test]
    fn truncated_data_ends_early() {
        let batch = RowBatch { width: 1, count: 2, data: Bytes::from_static(&[0, 0, 0, 1, 9, 0, 0, 0, 5, 1]) };
        assert_eq!(batch.rows().count(), 1);
    }
}
