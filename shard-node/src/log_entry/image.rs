//! Row images: all columns of a row, the assigned columns, or the fact that the row is gone.
//!
//! An UPDATE's image carries the assigned columns only. A large value that the UPDATE leaves alone
//! is neither read by the leader's PostgreSQL nor logged nor written again by the followers. Such
//! an image changes an existing row and creates none: it has no effect on a row that is already
//! gone or has not come yet.

use super::decode::{Malformed, short, take};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use evenkeel_protocol::rows::take_value;
use std::collections::BTreeMap;

const GONE: u8 = 0;
const NEW: u8 = 1;
const WHOLE: u8 = 2;
const PART: u8 = 3;
const REMOVED: u8 = 4;
const TRUNCATED: u8 = 5;

/// A row's image in a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// There was no such row before. All columns, packed.
    New(Bytes),
    /// The row may have been there before. All columns, packed.
    Whole(Bytes),
    /// The row was there, and these of its columns were assigned.
    Part(PartialRow),
    /// The row was deleted.
    Gone,
    /// One row with these values was deleted from a table without a key. All columns, packed.
    Removed(Bytes),
    /// All rows of the table were deleted. The change has the empty key.
    Truncated,
}

/// Some columns of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialRow {
    columns: Columns,
    values: Bytes,
}

/// A set of a table's columns, by their positions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Columns(Bytes);

impl Columns {
    /// Of these positions.
    pub fn new(positions: impl IntoIterator<Item = usize>) -> Columns {
        let mut bits = BytesMut::new();
        for position in positions {
            if bits.len() <= position / 8 {
                bits.resize(position / 8 + 1, 0);
            }
            bits[position / 8] |= 1 << (position % 8);
        }
        Columns(bits.freeze())
    }

    /// The positions, ascending.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len() * 8).filter(|position| self.0[position / 8] & (1 << (position % 8)) != 0)
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }
}

impl PartialRow {
    /// The values of these columns, packed in the order of their positions.
    ///
    /// # Errors
    /// There are not as many whole values as columns.
    pub fn new(columns: Columns, values: Bytes) -> Result<PartialRow, Malformed> {
        let mut rest = &values[..];
        for _ in 0..columns.count() {
            take_value(&mut rest).ok_or_else(mismatch)?;
        }
        if rest.is_empty() { Ok(PartialRow { columns, values }) } else { Err(mismatch()) }
    }

    /// Which columns.
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Their values, packed.
    pub fn packed(&self) -> &Bytes {
        &self.values
    }
}

fn mismatch() -> Malformed {
    Malformed("an image does not have as many values as columns".into())
}

impl Image {
    /// The same in memory of its own: it keeps nothing else of the log's.
    pub fn copied(&self) -> Image {
        let copied = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        match self {
            Image::New(row) => Image::New(copied(row)),
            Image::Whole(row) => Image::Whole(copied(row)),
            Image::Part(PartialRow { columns, values }) => {
                Image::Part(PartialRow { columns: Columns(copied(&columns.0)), values: copied(values) })
            }
            Image::Gone => Image::Gone,
            Image::Removed(row) => Image::Removed(copied(row)),
            Image::Truncated => Image::Truncated,
        }
    }

    /// Whether nothing is left of an earlier image of the same row once this one is applied.
    pub fn supersedes(&self, earlier: &Image) -> bool {
        match (self, earlier) {
            (Image::Part(later), Image::Part(earlier)) => later.columns == earlier.columns,
            (Image::Part(_), _) => false,
            (Image::New(_) | Image::Whole(_) | Image::Gone, _) => true,
            // These are never of the same row.
            (Image::Removed(_) | Image::Truncated, _) => false,
        }
    }

    /// Its encoded size, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Image::Gone | Image::Truncated => 1,
            Image::New(row) | Image::Whole(row) | Image::Removed(row) => 5 + row.len(),
            Image::Part(part) => 7 + part.columns.0.len() + part.values.len(),
        }
    }

    /// Appends its encoding.
    pub fn encode_into(&self, out: &mut BytesMut) {
        match self {
            Image::Gone => out.put_u8(GONE),
            Image::Truncated => out.put_u8(TRUNCATED),
            Image::Removed(row) => put_row(out, REMOVED, row),
            Image::New(row) => put_row(out, NEW, row),
            Image::Whole(row) => put_row(out, WHOLE, row),
            Image::Part(part) => {
                out.put_u8(PART);
                out.put_u16(part.columns.0.len() as u16);
                out.put_slice(&part.columns.0);
                out.put_u32(part.values.len() as u32);
                out.put_slice(&part.values);
            }
        }
    }

    /// Takes one off the front. Its values are slices of `bytes`.
    ///
    /// # Errors
    /// The bytes are no image.
    pub fn decode(bytes: &mut Bytes) -> Result<Image, Malformed> {
        match take_number::<1>(bytes)? as u8 {
            GONE => Ok(Image::Gone),
            NEW => Ok(Image::New(take_row(bytes)?)),
            WHOLE => Ok(Image::Whole(take_row(bytes)?)),
            REMOVED => Ok(Image::Removed(take_row(bytes)?)),
            TRUNCATED => Ok(Image::Truncated),
            PART => {
                let length = take_number::<2>(bytes)?;
                let columns = Columns(take(bytes, length)?);
                Ok(Image::Part(PartialRow::new(columns, take_row(bytes)?)?))
            }
            other => Err(Malformed(format!("unknown kind of image {other}"))),
        }
    }
}

fn put_row(out: &mut BytesMut, kind: u8, row: &Bytes) {
    out.put_u8(kind);
    out.put_u32(row.len() as u32);
    out.put_slice(row);
}

fn take_row(bytes: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = take_number::<4>(bytes)?;
    take(bytes, length)
}

fn take_number<const N: usize>(bytes: &mut Bytes) -> Result<usize, Malformed> {
    if bytes.len() < N { Err(short()) } else { Ok(bytes.get_uint(N) as usize) }
}

/// The combined effect of several changes of one row, in the log's order (R15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged {
    /// It is gone.
    Gone,
    /// All columns, packed.
    Row(Bytes),
    /// Some columns of a row that is there.
    Part(PartialRow),
    /// As a row or a part, put together of values of several images: each packed, by position.
    Values {
        /// Whether it is all columns.
        whole: bool,
        /// The values.
        values: BTreeMap<usize, Bytes>,
    },
}

impl From<Image> for Merged {
    fn from(image: Image) -> Merged {
        match image {
            Image::New(row) | Image::Whole(row) => Merged::Row(row),
            Image::Part(part) => Merged::Part(part),
            // The last two are not of a row with a key.
            Image::Gone | Image::Removed(_) | Image::Truncated => Merged::Gone,
        }
    }
}

impl Merged {
    /// Takes in the row's next change.
    pub fn then(&mut self, image: Image) {
        let Image::Part(part) = image else {
            *self = image.into();
            return;
        };
        match self {
            // A part makes no row.
            Merged::Gone => {}
            Merged::Part(earlier) if earlier.columns == part.columns => *earlier = part,
            Merged::Part(earlier) => {
                let mut values = BTreeMap::new();
                put_values(&mut values, earlier);
                put_values(&mut values, &part);
                *self = Merged::Values { whole: false, values };
            }
            Merged::Row(row) => {
                // Incomplete values stay as they are, so that applying the row finds that it is
                // malformed.
                let mut values: BTreeMap<usize, Bytes> = split(row).into_iter().enumerate().collect();
                put_values(&mut values, &part);
                *self = Merged::Values { whole: true, values };
            }
            Merged::Values { values, .. } => put_values(values, &part),
        }
    }

    /// The same with its values in one piece.
    pub fn into_packed(self) -> Merged {
        let Merged::Values { whole, values } = self else { return self };
        let mut packed = BytesMut::with_capacity(values.values().map(Bytes::len).sum());
        values.values().for_each(|value| packed.put_slice(value));
        let packed = packed.freeze();
        if whole {
            return Merged::Row(packed);
        }
        Merged::Part(PartialRow { columns: Columns::new(values.keys().copied()), values: packed })
    }
}

fn put_values(values: &mut BTreeMap<usize, Bytes>, part: &PartialRow) {
    values.extend(part.columns.positions().zip(split(&part.values)));
}

/// The packed values in this buffer, as slices; a remainder is the last.
fn split(packed: &Bytes) -> Vec<Bytes> {
    let (mut values, mut at) = (Vec::new(), 0);
    while at < packed.len() {
        let mut rest = &packed[at..];
        let end = match take_value(&mut rest) {
            Some(_) => packed.len() - rest.len(),
            None => packed.len(),
        };
        values.push(packed.slice(at..end));
        at = end;
    }
    values
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::rows::put_value;
    use proptest::prelude::*;

    /// A row of the model: a value per column.
    type Model = Vec<Option<u8>>;

    fn packed(values: impl IntoIterator<Item = Option<u8>>) -> Bytes {
        let mut out = BytesMut::new();
        values.into_iter().for_each(|value| put_value(&mut out, value.map(|byte| [byte]).as_ref().map(|b| &b[..])));
        out.freeze()
    }

    fn part(columns: &[usize], values: &[Option<u8>]) -> Image {
        Image::Part(PartialRow::new(Columns::new(columns.iter().copied()), packed(values.iter().copied())).unwrap())
    }

    #[test]
    fn images_come_back_as_they_were_encoded_and_a_cut_one_is_malformed() {
        for image in [
            Image::New(packed([Some(1), None])),
            Image::Whole(packed([Some(2)])),
            part(&[1, 9], &[None, Some(3)]),
            Image::Gone,
            Image::Removed(packed([Some(4), None])),
            Image::Truncated,
        ] {
            let mut out = BytesMut::new();
            image.encode_into(&mut out);
            assert_eq!(out.len(), image.size_bytes());
            let whole = out.freeze();
            assert_eq!(Image::decode(&mut whole.clone()).unwrap(), image);
            for length in 0..whole.len() {
                assert!(Image::decode(&mut whole.slice(..length)).is_err(), "{image:?} cut to {length}");
            }
        }
        let few = PartialRow::new(Columns::new([0, 1]), packed([Some(1)]));
        assert!(few.is_err(), "two columns, one value");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Whole(Model),
        Part(Vec<(bool, Option<u8>)>),
        Gone,
    }

    fn step(width: usize) -> impl Strategy<Value = Step> {
        let value = proptest::option::of(any::<u8>());
        prop_oneof![
            proptest::collection::vec(value.clone(), width).prop_map(Step::Whole),
            proptest::collection::vec((any::<bool>(), value), width).prop_map(Step::Part),
            Just(Step::Gone),
        ]
    }

    fn image(step: &Step) -> Image {
        match step {
            Step::Whole(row) => Image::Whole(packed(row.iter().copied())),
            Step::Part(values) => {
                let assigned: Vec<usize> = (0..values.len()).filter(|n| values[*n].0).collect();
                part(&assigned, &assigned.iter().map(|n| values[*n].1).collect::<Vec<_>>())
            }
            Step::Gone => Image::Gone,
        }
    }

    fn apply(row: &mut Option<Model>, step: &Step) {
        match step {
            Step::Whole(new) => *row = Some(new.clone()),
            Step::Gone => *row = None,
            Step::Part(values) => {
                if let Some(row) = row {
                    for (n, (assigned, value)) in values.iter().enumerate() {
                        if *assigned {
                            row[n] = *value;
                        }
                    }
                }
            }
        }
    }

    proptest! {
        // R15: a merged image does to a row what its changes do one after the other, whether the
        // row is there or not.
        #[test]
        fn merging_is_applying_one_after_the_other(
            before in proptest::option::of(proptest::collection::vec(proptest::option::of(any::<u8>()), 3)),
            steps in proptest::collection::vec(step(3), 1..6),
        ) {
            let mut expected = before.clone();
            steps.iter().for_each(|step| apply(&mut expected, step));
            let mut merged = Merged::from(image(&steps[0]));
            steps[1..].iter().for_each(|step| merged.then(image(step)));
            let found = match merged.into_packed() {
                Merged::Gone => None,
                Merged::Row(row) => Some(row),
                Merged::Part(part) => before.map(|row| {
                    let mut values: BTreeMap<usize, Bytes> = split(&packed(row)).into_iter().enumerate().collect();
                    put_values(&mut values, &part);
                    values.values().flat_map(|value| value.to_vec()).collect()
                }),
                Merged::Values { .. } => unreachable!("it was packed"),
            };
            prop_assert_eq!(found, expected.map(packed));
        }
    }
}
