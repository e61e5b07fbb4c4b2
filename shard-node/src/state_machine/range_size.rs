//! The size of a range, counted from the log. Pure.
//!
//! Every replica counts the rows of its log: new rows, deleted rows, and the bytes of new rows.
//! Nothing is read to know a size. A new leader, or a replica that starts, continues from the sizes
//! stored beside its state machine. The log does not contain the size of the row that an update
//! replaced, nor the rows that each part of a split range got. Such a size is *doubtful*. It is
//! corrected from a sample of the table's pages, which costs the same at any size of the table.

use crate::log_entry::image::Image;
use evenkeel_protocol::RowBatch;
use evenkeel_protocol::rows::take_value;
use serde::{Deserialize, Serialize};

/// PostgreSQL's overhead for a row beside its values, in bytes.
pub const ROW_OVERHEAD_BYTES: u64 = 28;
/// Less than this is not worth a correction, in bytes: it is small beside what ranges are split and
/// merged by.
const DOUBTFUL_BYTES: u64 = 8 << 20;
/// Which part of a range's bytes may be doubtful.
const DOUBTFUL_PART: u64 = 8;

/// Rows and bytes of a range: the values as they are, not compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeSize {
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// Bytes that were written over others.
    rewritten: u64,
    /// It is not known which rows it has: their number is a guess.
    guessed: bool,
}

/// What a sample says of a range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Rows of the sample in it.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Sampled {
    /// One row more.
    pub fn add(&mut self, bytes: u64) {
        self.rows += 1;
        self.bytes += bytes;
    }
}

impl RangeSize {
    /// Of a range of which nothing is known.
    pub const UNKNOWN: RangeSize = RangeSize { rows: 0, bytes: 0, rewritten: 0, guessed: true };

    /// A row is changed.
    pub fn change(&mut self, image: &Image) {
        match image {
            Image::New(row) => {
                self.rows += 1;
                self.bytes += row_bytes(row);
            }
            // For all that is known the row that was there weighed the same.
            Image::Whole(row) => self.rewritten += row_bytes(row),
            Image::Part(part) => self.rewritten += row_bytes(part.packed()),
            Image::Gone => {
                let average = self.bytes.checked_div(self.rows).unwrap_or(0);
                self.rows = self.rows.saturating_sub(1);
                self.bytes = if self.rows == 0 { 0 } else { self.bytes.saturating_sub(average) };
            }
            Image::Removed(row) => {
                self.rows = self.rows.saturating_sub(1);
                self.bytes = if self.rows == 0 { 0 } else { self.bytes.saturating_sub(row_bytes(row)) };
            }
            Image::Truncated => *self = RangeSize::default(),
        }
    }

    /// All of these rows have come.
    pub fn add_rows(&mut self, rows: &RowBatch) {
        let values = (rows.data.len() as u64).saturating_sub(4 * u64::from(rows.width) * u64::from(rows.count));
        self.rows += u64::from(rows.count);
        self.bytes += values + ROW_OVERHEAD_BYTES * u64::from(rows.count);
    }

    /// One of this many parts. An even part is the best guess, and their sum stays what it was.
    pub fn part(self, parts: u64) -> RangeSize {
        if parts <= 1 {
            return self;
        }
        let guessed = self.guessed || self.bytes > DOUBTFUL_BYTES;
        RangeSize { rows: self.rows / parts, bytes: self.bytes / parts, rewritten: self.rewritten / parts, guessed }
    }

    /// Two neighbours as one.
    pub fn join(self, other: RangeSize) -> RangeSize {
        RangeSize {
            rows: self.rows + other.rows,
            bytes: self.bytes + other.bytes,
            rewritten: self.rewritten + other.rewritten,
            guessed: self.guessed || other.guessed,
        }
    }

    /// Whether it may be so wrong that it should be corrected.
    pub fn is_doubtful(&self) -> bool {
        self.guessed || (self.rewritten > DOUBTFUL_BYTES && self.rewritten > self.bytes / DOUBTFUL_PART)
    }

    /// Whether the number of its rows is a guess.
    pub fn is_guessed(&self) -> bool {
        self.guessed
    }

    /// Corrects a doubtful size by a sample of one in `scale` rows, in which `all` are this
    /// table's, wherever they lie. Says whether that made much of a difference. The number of rows
    /// stays if it is exact: then a few rows say what all weigh.
    pub fn correct(&mut self, sampled: Sampled, all: Sampled, scale: f64) -> bool {
        let before = self.bytes;
        if self.guessed {
            (self.rows, self.bytes) = ((sampled.rows as f64 * scale) as u64, (sampled.bytes as f64 * scale) as u64);
        } else {
            let known = if sampled.rows > 0 { sampled } else { all };
            let average = known.bytes as f64 / known.rows.max(1) as f64;
            self.bytes = if known.rows == 0 { self.bytes } else { (self.rows as f64 * average) as u64 };
        }
        (self.guessed, self.rewritten) = (false, 0);
        self.bytes.abs_diff(before) > DOUBTFUL_BYTES.max(before / DOUBTFUL_PART)
    }
}

/// What a packed row takes.
fn row_bytes(packed: &[u8]) -> u64 {
    let (mut rest, mut bytes) = (packed, ROW_OVERHEAD_BYTES);
    while let Some(value) = take_value(&mut rest) {
        bytes += value.map_or(0, <[u8]>::len) as u64;
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_entry::image::{Columns, PartialRow};
    use bytes::{Bytes, BytesMut};
    use evenkeel_protocol::rows::{RowBuilder, put_value};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::collections::BTreeMap;

    fn packed(values: &[&[u8]]) -> Bytes {
        let mut out = BytesMut::new();
        values.iter().for_each(|value| put_value(&mut out, Some(value)));
        out.freeze()
    }

    /// A table (id, version, value) whose rows are 150 bytes at first and 10,000 in the end, by
    /// updates alone; some are hot.
    #[test]
    fn sizes_stay_within_a_fifth_whatever_is_written() {
        let mut random = StdRng::seed_from_u64(7);
        let (mut size, mut table) = (RangeSize::default(), BTreeMap::<u32, u64>::new());
        let mut corrections = 0;
        for step in 0..200_000_u64 {
            let n: u32 = random.random_range(0..20_000);
            let n = if n.is_multiple_of(2) { n % 100 } else { n };
            let value = vec![b'x'; random.random_range(100..200 + step as usize / 10)];
            let row = packed(&[&[0; 4], &[0; 8], &value]);
            let weight = 28 + 12 + value.len() as u64;
            let image = match (random.random_range(0..20), table.contains_key(&n)) {
                (0, true) => Image::Gone,
                (1..=9, true) => {
                    Image::Part(PartialRow::new(Columns::new([1, 2]), packed(&[&[0; 8], &value])).unwrap())
                }
                (_, true) => Image::Whole(row),
                (_, false) => Image::New(row),
            };
            if image == Image::Gone {
                table.remove(&n)
            } else {
                table.insert(n, weight)
            };
            size.change(&image);
            if size.is_doubtful() {
                // Every 50th row is in the sample.
                let rows = table.iter().filter(|_| random.random_range(0..50) == 0);
                let sampled = rows.fold(Sampled::default(), |sum, (_, bytes)| Sampled {
                    rows: sum.rows + 1,
                    bytes: sum.bytes + bytes,
                });
                size.correct(sampled, sampled, 50.0);
                corrections += 1;
            }
            let bytes: u64 = if step % 1_000 == 999 { table.values().sum() } else { continue };
            assert_eq!(size.rows, table.len() as u64, "rows are exact");
            // Smaller differences decide nothing.
            assert!(
                size.bytes.abs_diff(bytes) < (bytes / 5).max(8 << 20),
                "{} bytes, not {bytes} at {step}",
                size.bytes
            );
        }
        assert!((1..200).contains(&corrections), "{corrections}");
    }

    #[test]
    fn sizes_of_pieces_are_guessed_until_a_sample() {
        let whole = RangeSize { rows: 1_000, bytes: 64 << 20, ..RangeSize::default() };
        let mut left = whole.part(2);
        assert!(left.is_doubtful() && left.bytes == 32 << 20 && left.join(left).bytes == whole.bytes);
        let (sampled, all) = (Sampled { rows: 1, bytes: 4_000 }, Sampled { rows: 10, bytes: 600_000 });
        assert!(left.correct(sampled, all, 100.0), "that is news");
        assert_eq!(left, RangeSize { rows: 100, bytes: 400_000, ..RangeSize::default() });
        assert!(
            !RangeSize { rows: 10, bytes: 1 << 20, ..RangeSize::default() }.part(4).is_doubtful(),
            "too small to matter"
        );
        assert!(RangeSize::UNKNOWN.is_doubtful());
        // A hot row of unusual size, written over and over, is no growth.
        let mut hot = RangeSize { rows: 1_000, bytes: 100_000, ..RangeSize::default() };
        let row = packed(&[&[0; 4], &vec![b'x'; 64 << 10]]);
        (0..1_000).for_each(|_| hot.change(&Image::Whole(row.clone())));
        assert_eq!(hot.bytes, 100_000);
        assert!(hot.is_doubtful() && !hot.correct(Sampled { rows: 20, bytes: 2_200 }, all, 50.0));
        assert_eq!((hot.rows, hot.bytes, hot.is_doubtful()), (1_000, 110_000, false));
    }

    #[test]
    fn rows_that_come_weigh_what_they_weigh_one_by_one() {
        let mut builder = RowBuilder::new(2);
        let mut one_by_one = RangeSize::default();
        for n in 0..10_u8 {
            let value = vec![b'x'; usize::from(n) * 100];
            builder.push([Some(&[n][..]), Some(&value[..])]);
            one_by_one.change(&Image::New(packed(&[&[n], &value])));
        }
        let mut together = RangeSize::default();
        together.add_rows(&builder.finish());
        assert_eq!(together, one_by_one);
    }
}
