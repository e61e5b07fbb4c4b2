//! Values as PostgreSQL's binary format has them, in and out, without decoding.
//!
//! A row image holds each value as PostgreSQL sent it. To apply a batch of images by one statement, each column becomes
//! one array parameter; the binary format of an array's element, a length and the bytes, is that of a packed value, so
//! that building the array is copying slices, straight into the message that goes out.

use super::errors::StoreError;
use bytes::{BufMut, Bytes, BytesMut};
use evenkeel_protocol::RowBatch;
use evenkeel_protocol::rows::take_value;
use postgres_types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};
use std::error::Error;

/// A value of any type as it comes from PostgreSQL, in its binary format. Nulls need an `Option` around it.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a>(pub &'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Raw<'a>, Box<dyn Error + Sync + Send>> {
        Ok(Raw(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A parameter of any type, given in the type's binary format; `None` is null. Whoever makes it vouches that the bytes
/// are of that type; PostgreSQL checks them.
#[derive(Debug, Clone, Copy)]
pub struct RawParameter<'a>(pub Option<&'a [u8]>);

impl ToSql for RawParameter<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        Ok(match self.0 {
            Some(raw) => {
                out.put_slice(raw);
                IsNull::No
            }
            None => IsNull::Yes,
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// The values of many rows, found once: for each, its packed form, the length included.
#[derive(Debug)]
pub(super) struct Packed<'a> {
    width: usize,
    values: Vec<&'a [u8]>,
}

impl<'a> Packed<'a> {
    /// Of row images, each of `width` values.
    pub fn of_rows(rows: &'a [Bytes], width: usize) -> Result<Packed<'a>, StoreError> {
        let mut values = Vec::with_capacity(rows.len() * width);
        for row in rows {
            let rest = split(row, width, &mut values).ok_or_else(malformed)?;
            if !rest.is_empty() {
                return Err(malformed());
            }
        }
        Ok(Packed { width, values })
    }

    /// Of rows that follow one another in one buffer.
    pub fn of_buffer(buffer: &'a [u8], width: usize, rows: usize) -> Result<Packed<'a>, StoreError> {
        let mut values = Vec::with_capacity(rows * width);
        let rest = split(buffer, width * rows, &mut values).ok_or_else(malformed)?;
        if rest.is_empty() { Ok(Packed { width, values }) } else { Err(malformed()) }
    }

    /// Of a batch, each of whose rows must have `width` values.
    pub fn of_batch(batch: &'a RowBatch, width: usize) -> Result<Packed<'a>, StoreError> {
        if batch.count > 0 && batch.width as usize != width {
            return Err(malformed());
        }
        Packed::of_buffer(&batch.data, width, batch.count as usize)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }

    /// The same rows, at most `rows` in each piece.
    pub fn into_pieces(self, rows: usize) -> Vec<Packed<'a>> {
        if self.rows() <= rows {
            return vec![self];
        }
        let pieces = self.values.chunks((rows * self.width).max(1));
        pieces.map(|values| Packed { width: self.width, values: values.to_vec() }).collect()
    }

    /// A column, as an array parameter.
    pub fn column(&self, column: usize) -> ColumnArray<'_> {
        ColumnArray { packed: self, column }
    }

    /// The values of a single row, as parameters.
    pub fn single(&self) -> impl ExactSizeIterator<Item = RawParameter<'a>> {
        self.values.iter().map(|packed| RawParameter(if is_null(packed) { None } else { Some(&packed[4..]) }))
    }
}

fn malformed() -> StoreError {
    StoreError::Diverged("a row image does not have the table's columns".into())
}

fn is_null(packed: &[u8]) -> bool {
    packed.len() == 4 && packed[0] & 0x80 != 0
}

/// Finds `count` values; returns what follows them, or `None` if there are not so many.
fn split<'a>(mut rest: &'a [u8], count: usize, values: &mut Vec<&'a [u8]>) -> Option<&'a [u8]> {
    for _ in 0..count {
        let from = rest;
        take_value(&mut rest)?;
        values.push(&from[..from.len() - rest.len()]);
    }
    Some(rest)
}

/// One column of many rows as an array parameter.
#[derive(Debug, Clone, Copy)]
pub(super) struct ColumnArray<'a> {
    packed: &'a Packed<'a>,
    column: usize,
}

impl<'a> ColumnArray<'a> {
    fn values(&self) -> impl Iterator<Item = &'a [u8]> {
        self.packed.values.iter().skip(self.column).step_by(self.packed.width.max(1)).copied()
    }
}

impl ToSql for ColumnArray<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Kind::Array(element) = ty.kind() else { return Err(format!("{ty} is no array type").into()) };
        let (bytes, nulls) = self.values().fold((0, false), |(bytes, nulls), v| (bytes + v.len(), nulls || is_null(v)));
        out.reserve(20 + bytes);
        // One dimension; whether there are nulls; the elements' type; the dimension's length and first index.
        out.put_i32(1);
        out.put_i32(nulls.into());
        out.put_u32(element.oid());
        out.put_i32(self.packed.rows().try_into()?);
        out.put_i32(1);
        self.values().for_each(|value| out.put_slice(value));
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::rows::RowBuilder;

    fn batch() -> RowBatch {
        let mut builder = RowBuilder::new(2);
        builder.push([Some(&7i64.to_be_bytes()[..]), Some(&b"ab"[..])]);
        builder.push([Some(&8i64.to_be_bytes()[..]), None]);
        builder.push([Some(&9i64.to_be_bytes()[..]), Some(&b""[..])]);
        builder.finish()
    }

    /// The driver's own array encoding is the reference.
    #[test]
    fn columns_become_the_arrays_that_the_driver_would_make() {
        let batch = batch();
        let packed = Packed::of_batch(&batch, 2).unwrap();
        let encode = |value: &dyn ToSql, ty| {
            let mut out = BytesMut::new();
            value.to_sql_checked(ty, &mut out).unwrap();
            out
        };
        let texts = vec![Some("ab"), None, Some("")];
        assert_eq!(encode(&packed.column(0), &Type::INT8_ARRAY), encode(&vec![7i64, 8, 9], &Type::INT8_ARRAY));
        assert_eq!(encode(&packed.column(1), &Type::TEXT_ARRAY), encode(&texts, &Type::TEXT_ARRAY));
        let pieces: Vec<usize> = packed.into_pieces(2).iter().map(Packed::rows).collect();
        assert_eq!(pieces, [2, 1]);
    }

    #[test]
    fn what_is_not_a_row_of_the_table_is_refused() {
        let whole = batch().data;
        assert!(Packed::of_rows(std::slice::from_ref(&whole), 6).is_ok());
        assert!(Packed::of_rows(std::slice::from_ref(&whole), 5).is_err(), "too many values");
        assert!(Packed::of_rows(std::slice::from_ref(&whole), 7).is_err(), "too few");
        assert!(Packed::of_rows(&[whole.slice(..whole.len() - 1)], 6).is_err(), "cut off");
        assert!(Packed::of_batch(&batch(), 3).is_err(), "of another width");
    }
}
