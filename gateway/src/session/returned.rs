//! The rows that a statement on several shards returns. Pure but for the client's buffer.

use super::trouble::Trouble;
use crate::wire::outgoing::Outgoing;
use bytes::Bytes;
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use std::collections::VecDeque;

/// Rows that are kept, in bytes.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// See the module.
#[derive(Default)]
pub struct Returned {
    rows: VecDeque<Bytes>,
    bytes: usize,
    /// Whether all rows are kept, for a portal that gives them in steps.
    keeps: bool,
}

impl Returned {
    /// No rows. `keeps`: all are kept.
    pub fn new(keeps: bool) -> Returned {
        Returned { keeps, ..Returned::default() }
    }

    /// Adds rows, as messages.
    ///
    /// # Errors
    /// 54000: too many are kept.
    pub fn add(&mut self, rows: Vec<Bytes>) -> Result<(), SqlError> {
        self.bytes += rows.iter().map(Bytes::len).sum::<usize>();
        self.rows.extend(rows);
        match self.bytes > MAX_KEPT_BYTES {
            true => Err(SqlError::new(codes::PROGRAM_LIMIT, "a statement on several shards that returns too much")),
            false => Ok(()),
        }
    }

    /// How many are here.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Puts the last rows in order: `places` says for each of them its place among them.
    pub fn sort_last(&mut self, places: Vec<usize>) {
        let Some(first) = self.rows.len().checked_sub(places.len()) else { return };
        let last = self.rows.split_off(first);
        let mut placed: Vec<(usize, Bytes)> = places.into_iter().zip(last).collect();
        placed.sort_unstable_by_key(|(place, _)| *place);
        self.rows.extend(placed.into_iter().map(|(_, row)| row));
    }

    /// Writes the rows, unless all are kept.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn give(&mut self, out: &mut Outgoing) -> Result<(), Trouble> {
        if self.keeps {
            return Ok(());
        }
        self.bytes = 0;
        for row in self.rows.drain(..) {
            out.buffer.extend_from_slice(&row);
            out.send_if_full().await?;
        }
        Ok(())
    }

    /// The rows that are kept.
    pub fn kept(self) -> VecDeque<Bytes> {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_come_in_the_statements_order() {
        let mut returned = Returned::new(true);
        let rows = |names: &'static [u8]| names.iter().map(|name| Bytes::copy_from_slice(&[*name])).collect();
        returned.add(rows(b"x")).unwrap();
        returned.add(rows(b"ac")).unwrap();
        returned.add(rows(b"db")).unwrap();
        returned.sort_last(vec![0, 2, 3, 1]);
        assert_eq!(returned.kept().into_iter().collect::<Vec<_>>().concat(), b"xabcd");
    }
}
