//! Changed rows and the answers that belong to them.
//!
//! [`Changes`] is the hot kind of entry. It has a layout of its own, so that decoding a row image
//! or a key copies no bytes: both are slices of the entry's memory.

use super::decode::{Malformed, short, take, take_u32, take_u64};
use super::image::Image;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use evenkeel_protocol::{Key, TableId, TxnId};

/// The changes of one transaction, or of a batch of single statements.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// The leader's clock when it was made, in milliseconds since the Unix epoch. The retry window
    /// is measured by it.
    pub stamp_ms: u64,
    /// The statements it answers, for the retry window (R14).
    pub answered: Vec<Answered>,
    /// The rows.
    pub changes: Vec<Change>,
}

/// One row's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The table.
    pub table: TableId,
    /// The row's key.
    pub key: Key,
    /// What the row is from here on.
    pub image: Image,
}

/// A statement or transaction that has been executed, and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The client's id.
    pub id: TxnId,
    /// A key it wrote and that key's table: its answer travels with the range that holds it.
    pub table: TableId,
    /// The key.
    pub key: Key,
    /// Rows affected.
    pub affected: u64,
    /// The rows it was answered with.
    pub reply: KeptReply,
}

/// The part of a statement's reply that is kept, for a repetition of the statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptReply {
    /// It returns none.
    Nothing,
    /// It returned rows that were too large to be kept. A repetition is answered with an error, not
    /// with no rows.
    Omitted,
    /// The encoded reply.
    Rows(Bytes),
}

impl KeptReply {
    /// Bytes of kept rows.
    pub fn len(&self) -> usize {
        match self {
            KeptReply::Rows(rows) => rows.len(),
            KeptReply::Nothing | KeptReply::Omitted => 0,
        }
    }

    /// Whether no rows are kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// In the place of the length of rows that are not kept.
const OMITTED: u32 = u32::MAX;

/// What one entry of the source's log did in a moving range; at position 0, a piece of the source's
/// retry window, whose stamp says up to when answers have gone from it.
#[derive(Debug, Clone, PartialEq)]
pub struct TailEntry {
    /// Its position in the source's log.
    pub position: u64,
    /// What it did there.
    pub changes: Changes,
}

impl TailEntry {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(8 + self.changes.size_bytes());
        out.put_u64(self.position);
        self.changes.encode_into(&mut out);
        out.freeze()
    }

    /// The reverse of [`TailEntry::encode`].
    pub fn decode(mut bytes: Bytes) -> Result<TailEntry, Malformed> {
        let position = take_u64(&mut bytes)?;
        Ok(TailEntry { position, changes: Changes::decode(&mut bytes)? })
    }
}

impl Change {
    /// Its encoded size, in bytes.
    pub fn size_bytes(&self) -> usize {
        6 + self.key.0.len() + self.image.size_bytes()
    }
}

impl Answered {
    /// Its encoded size, in bytes.
    pub fn size_bytes(&self) -> usize {
        42 + self.key.0.len() + self.reply.len()
    }

    /// Appends its encoding.
    pub fn encode_into(&self, out: &mut BytesMut) {
        out.put_u64(self.id.client);
        out.put_u64(self.id.sequence);
        out.put_u64(self.id.first_sent_ms);
        out.put_u64(self.affected);
        put_key(out, self.table, &self.key);
        match &self.reply {
            KeptReply::Nothing => out.put_u32(0),
            KeptReply::Omitted => out.put_u32(OMITTED),
            KeptReply::Rows(rows) => {
                out.put_u32(rows.len() as u32);
                out.put_slice(rows);
            }
        }
    }

    /// Takes one off the front.
    pub fn decode(bytes: &mut Bytes) -> Result<Answered, Malformed> {
        let id = TxnId { client: take_u64(bytes)?, sequence: take_u64(bytes)?, first_sent_ms: take_u64(bytes)? };
        let affected = take_u64(bytes)?;
        let (table, key) = take_key(bytes)?;
        let reply = match take_u32(bytes)? {
            0 => KeptReply::Nothing,
            OMITTED => KeptReply::Omitted,
            length => KeptReply::Rows(take(bytes, length as usize)?),
        };
        Ok(Answered { id, table, key, affected, reply })
    }
}

impl Changes {
    /// Its encoded size, in bytes.
    pub fn size_bytes(&self) -> usize {
        16 + self.answered.iter().map(Answered::size_bytes).sum::<usize>()
            + self.changes.iter().map(Change::size_bytes).sum::<usize>()
    }

    pub(super) fn encode_into(&self, out: &mut BytesMut) {
        out.put_u64(self.stamp_ms);
        out.put_u32(self.answered.len() as u32);
        out.put_u32(self.changes.len() as u32);
        for answered in &self.answered {
            answered.encode_into(out);
        }
        for change in &self.changes {
            put_key(out, change.table, &change.key);
            change.image.encode_into(out);
        }
    }

    pub(super) fn decode(bytes: &mut Bytes) -> Result<Changes, Malformed> {
        let stamp_ms = take_u64(bytes)?;
        let (answered_count, change_count) = (take_u32(bytes)? as usize, take_u32(bytes)? as usize);
        // Counts come from the entry: what they claim must at least fit into it.
        if answered_count > bytes.len() || change_count > bytes.len() {
            return Err(Malformed("it counts more than it holds".into()));
        }
        let answered = (0..answered_count).map(|_| Answered::decode(bytes)).collect::<Result<_, _>>()?;
        let mut changes = Vec::with_capacity(change_count);
        for _ in 0..change_count {
            let (table, key) = take_key(bytes)?;
            changes.push(Change { table, key, image: Image::decode(bytes)? });
        }
        Ok(Changes { stamp_ms, answered, changes })
    }
}

fn put_key(out: &mut BytesMut, table: TableId, key: &Key) {
    out.put_u32(table.0);
    out.put_u16(key.0.len() as u16);
    out.put_slice(&key.0);
}

fn take_key(bytes: &mut Bytes) -> Result<(TableId, Key), Malformed> {
    if bytes.len() < 6 {
        return Err(short());
    }
    let table = TableId(bytes.get_u32());
    let length = usize::from(bytes.get_u16());
    Ok((table, Key(take(bytes, length)?)))
}
