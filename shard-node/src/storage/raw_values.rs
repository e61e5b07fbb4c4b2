//! Values as PostgreSQL's binary format has them, in and out, without decoding.
//!
//! A row image holds each value as PostgreSQL sent it. To apply a batch of images by one statement,
//! each column becomes one array parameter; the binary format of an array's element, a length and
//! the bytes, is that of a packed value, so that building the array is copying slices, straight
//! into the message that goes out.

use super::StoreError;
use bytes::{BufMut, Bytes, BytesMut};
use evenkeel_protocol::RowBatch;
use evenkeel_protocol::rows::take_value;
use postgres_types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};
use std::error::Error;

/// A value of any type as it comes from PostgreSQL, in its binary format. Nulls need an `Option`
/// around it.
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

/// A parameter of any type, given in the type's binary format; `None` is null. The caller
/// vouches that the bytes are of that type; PostgreSQL checks them.
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

/// What data in COPY's binary format begin with: the signature, no flags, nothing more to the
/// header.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// A null, packed.
const NULL: [u8; 4] = (-1i32).to_be_bytes();

/// The values of many rows, found once: for each, its packed form, the length included.
#[derive(Debug)]
pub(super) struct Packed<'a> {
    width: usize,
    values: Vec<&'a [u8]>,
}

impl<'a> Packed<'a> {
    /// Of row images, each of `width` values.
    pub fn of_rows(rows: &'a [Bytes], width: usize) -> Result<Packed<'a>, StoreError> {
        Packed::of_slices(rows.iter().map(|row| &row[..]), width)
    }

    /// The same, wherever they lie.
    pub fn of_slices(rows: impl ExactSizeIterator<Item = &'a [u8]>, width: usize) -> Result<Packed<'a>, StoreError> {
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

    /// Of rows whose first `left` values follow one another in one buffer and whose other `right`
    /// ones lie in a piece for each row.
    pub fn joined<'r>(
        buffer: &'a [u8],
        left: usize,
        rows: impl ExactSizeIterator<Item = &'a Bytes> + 'r,
        right: usize,
    ) -> Result<Packed<'a>, StoreError> {
        let mut values = Vec::with_capacity(rows.len() * (left + right));
        let mut rest = buffer;
        for row in rows {
            rest = split(rest, left, &mut values).ok_or_else(malformed)?;
            if !split(row, right, &mut values).ok_or_else(malformed)?.is_empty() {
                return Err(malformed());
            }
        }
        if rest.is_empty() { Ok(Packed { width: left + right, values }) } else { Err(malformed()) }
    }

    /// The rows of up to `bytes` each, and those that are larger; both in the order they were in.
    pub fn by_size(self, bytes: usize) -> (Packed<'a>, Packed<'a>) {
        let width = self.width.max(1);
        let size = |row: &[&[u8]]| row.iter().map(|value| value.len()).sum::<usize>();
        let empty = |width| Packed { width, values: Vec::new() };
        if self.values.chunks(width).all(|row| size(row) <= bytes) {
            let none = empty(self.width);
            return (self, none);
        }
        let (mut small, mut large) = (empty(self.width), empty(self.width));
        for row in self.values.chunks(width) {
            let side = if size(row) <= bytes { &mut small } else { &mut large };
            side.values.extend_from_slice(row);
        }
        (small, large)
    }

    /// Those that are to travel in arrays, if the table's types have any, and those that are to
    /// travel one by one.
    pub fn in_arrays(self, arrays: bool, max_row_bytes: usize, max_single: usize) -> (Packed<'a>, Packed<'a>) {
        let none = Packed { width: self.width, values: Vec::new() };
        if !arrays || self.rows() <= max_single {
            return (none, self);
        }
        self.by_size(max_row_bytes)
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

    /// The rows as COPY's binary format has them: each value is packed as it is here, behind the
    /// number of a row's values.
    pub fn copied(&self) -> Bytes {
        let bytes: usize = self.values.iter().map(|value| value.len()).sum();
        let mut out = BytesMut::with_capacity(COPY_HEADER.len() + bytes + 2 * self.rows() + 2);
        out.put_slice(COPY_HEADER);
        for row in self.values.chunks(self.width.max(1)) {
            // A table has at most 1,600 columns.
            out.put_i16(self.width as i16);
            for value in row {
                out.put_slice(if is_null(value) { &NULL } else { value });
            }
        }
        // The end.
        out.put_i16(-1);
        out.freeze()
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

/// Finds `count` values; returns what follows them, or `None` if there are fewer.
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
        // One dimension; whether there are nulls; the elements' type; the dimension's length and
        // first index.
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

    // E19: large values do not travel in arrays.
    #[test]
    fn rows_are_separated_by_their_size() {
        let rows: Vec<Bytes> = [10, 5000, 20]
            .map(|n| {
                let mut out = BytesMut::new();
                evenkeel_protocol::rows::put_value(&mut out, Some(&vec![b'x'; n]));
                out.freeze()
            })
            .into();
        let (small, large) = Packed::of_rows(&rows, 1).unwrap().by_size(2048);
        assert_eq!((small.rows(), large.rows()), (2, 1));
        assert_eq!(large.values[0].len(), 5004);
        let (all, none) = Packed::of_rows(&rows, 1).unwrap().by_size(8192);
        assert_eq!((all.rows(), none.rows()), (3, 0));
        let joined = Packed::joined(&rows[0], 1, rows[1..2].iter(), 1).unwrap();
        assert_eq!((joined.rows(), joined.values[0].len(), joined.values[1].len()), (1, 14, 5004));
        assert!(Packed::joined(&rows[0], 1, rows[1..].iter(), 1).is_err(), "more rows than keys");
    }

    #[test]
    fn rows_as_copy_takes_them() {
        let batch = batch();
        let copied = Packed::of_batch(&batch, 2).unwrap().copied();
        let rows = [
            &b"\0\x02\0\0\0\x08\0\0\0\0\0\0\0\x07\0\0\0\x02ab"[..],
            b"\0\x02\0\0\0\x08\0\0\0\0\0\0\0\x08\xff\xff\xff\xff",
            b"\0\x02\0\0\0\x08\0\0\0\0\0\0\0\x09\0\0\0\0",
            b"\xff\xff",
        ];
        assert_eq!(copied, [COPY_HEADER, &rows.concat()].concat());
        assert_eq!(COPY_HEADER.len(), 19);
    }

    #[test]
    fn malformed_rows_are_refused() {
        let whole = batch().data;
        assert!(Packed::of_rows(std::slice::from_ref(&whole), 6).is_ok());
        assert!(Packed::of_rows(std::slice::from_ref(&whole), 5).is_err(), "too many values");
        assert!(Packed::of_rows(std::slice::from_ref(&whole), 7).is_err(), "too few");
        assert!(Packed::of_rows(&[whole.slice(..whole.len() - 1)], 6).is_err(), "cut off");
        assert!(Packed::of_batch(&batch(), 3).is_err(), "of another width");
    }
}
