//! What a shard's log carries.
//!
//! The leader executes and the log carries what came of it: row images, never statements. An [`Entry`] is encoded once, by
//! the leader, and decoded on every replica. Changes, the hot kind, have a layout of their own whose images are decoded as slices
//! of the entry's memory; everything else is rare and goes through `postcard`.
//!
//! Every entry has a serial, unique within its term: (term, serial) is how PostgreSQL records that it holds the entry (R5)
//! and how a leader finds who waits for it.

use crate::image::Image;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::scrub::Piece;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId, RowBatch, TableId, TableSchema, TxnId};
use serde::{Deserialize, Serialize};

/// The longest entry, in bytes (R12).
pub const MAX_ENTRY_BYTES: usize = 1 << 20;

/// One entry of a shard's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Unique within its term.
    pub serial: u64,
    /// What it does.
    pub body: Body,
}

/// What an entry does.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Rows of users' statements.
    Changes(Changes),
    /// Anything else.
    Control(Control),
}

/// The changes of one transaction, or of a batch of single statements.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// The leader's clock when it was made, in milliseconds since the Unix epoch. The retry window is measured by it.
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

/// A statement or transaction that has been executed, and what it was answered.
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

/// What is kept of a statement's rows, for its repetition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptReply {
    /// It returns none.
    Nothing,
    /// It returned some, and they are not kept: they were too many bytes. Who asks again is told so, and not that there were none.
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

/// Entries other than changes. Each carries what it needs to be judged alike on every replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Control {
    /// A new table, all of whose keys are one range of this shard, with epoch 1.
    CreateTable {
        /// The table.
        schema: TableSchema,
        /// Its first range.
        range: RangeId,
    },
    /// See `ControlRequest::DropTable`.
    DropTable {
        /// The table.
        table: TableId,
    },
    /// See `ControlRequest::Split`.
    Split {
        /// The operator.
        operator: OperatorId,
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
        /// Where, and what the piece that starts there is called.
        at: Vec<(Key, RangeId)>,
    },
    /// See `ControlRequest::Merge`.
    Merge {
        /// The operator.
        operator: OperatorId,
        /// The range on the left and its epoch.
        left: (RangeId, Epoch),
        /// The range on the right and its epoch.
        right: (RangeId, Epoch),
    },
    /// Source: a move begins (R20).
    MoveOpen {
        /// The operator.
        operator: OperatorId,
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
        /// Where it goes.
        to: ShardInfo,
    },
    /// Source: the move ends before its fence, without trace (R20).
    MoveCancel {
        /// The operator.
        operator: OperatorId,
    },
    /// Source: ownership ends here (invariant 6).
    Fence {
        /// The operator.
        operator: OperatorId,
        /// When the leader began to hold statements, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// Source: the destination has adopted the range.
    HandedOver {
        /// The operator.
        operator: OperatorId,
    },
    /// Source: the destination has declined; the range is owned here again, at a higher epoch (R23).
    TakeBack {
        /// The operator.
        operator: OperatorId,
    },
    /// Source: delete what was left behind, a bounded piece at a time (R24).
    Purge {
        /// The operator.
        operator: OperatorId,
        /// The piece.
        interval: KeyInterval,
        /// Whether it is the last.
        last: bool,
    },
    /// Destination: a range will come in.
    IngestOpen {
        /// The operator.
        operator: OperatorId,
        /// Its table.
        schema: TableSchema,
        /// The range.
        range: RangeId,
        /// Its keys.
        interval: KeyInterval,
        /// Its epoch before the move.
        epoch: Epoch,
        /// Where it comes from.
        from: ShardInfo,
    },
    /// Destination: a copy starts afresh; what earlier attempts send counts for nothing (R21).
    IngestAttempt {
        /// The operator.
        operator: OperatorId,
        /// The attempt, larger than all before.
        attempt: u64,
        /// The source's position that the copy starts from.
        position: u64,
    },
    /// Destination: all rows of a piece of the range.
    IngestChunk {
        /// The operator.
        operator: OperatorId,
        /// The attempt.
        attempt: u64,
        /// The piece; it starts where the one before ended.
        interval: KeyInterval,
        /// The source's position that the copy had reached before.
        from: u64,
        /// The source's position that the copy has reached with this chunk.
        position: u64,
        /// The rows.
        rows: RowBatch,
        /// Their checksum by the source's PostgreSQL.
        checksum: RangeChecksum,
    },
    /// Destination: what has happened to the keys copied so far.
    IngestTail {
        /// The operator.
        operator: OperatorId,
        /// The attempt.
        attempt: u64,
        /// The source's position that the copy had reached before.
        from: u64,
        /// The source's position that this one reaches.
        to: u64,
        /// This leader's clock, in milliseconds since the Unix epoch: the answers that come are kept from then on.
        stamp_ms: u64,
        /// Encoded [`TailEntry`]s.
        entries: Vec<Bytes>,
    },
    /// Destination: ownership begins here (invariant 6). Carries the fence's proof.
    Adopt {
        /// The operator.
        operator: OperatorId,
        /// The attempt.
        attempt: u64,
        /// The fence's position in the source's log.
        fence: u64,
        /// The range's epoch from here on.
        epoch: Epoch,
        /// When the source began to hold statements, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// Destination: it will never adopt this range (R23).
    Decline {
        /// The operator.
        operator: OperatorId,
    },
    /// Destination: the move was cancelled at the source.
    IngestCancel {
        /// The operator.
        operator: OperatorId,
    },
    /// Destination: delete what had come in of a move that came to nothing, a bounded piece at a time.
    Discard {
        /// The operator.
        operator: OperatorId,
        /// The piece.
        interval: KeyInterval,
        /// Whether it is the last.
        last: bool,
    },
    /// Destination: nothing more will be asked about this move.
    Forget {
        /// The operator.
        operator: OperatorId,
    },
    /// Every replica sums up these pieces as they are at this place (R31).
    Checkpoint {
        /// Tells checkpoints apart.
        nonce: u64,
        /// The pieces.
        pieces: Vec<Piece>,
        /// What it is for.
        purpose: Purpose,
    },
}

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// The scrubber's round, which a later leader goes on with from here.
    Scrub,
    /// Somebody has asked, or pieces that differ are looked at more closely.
    Look,
    /// The same, and what replicas hold without a reason is looked for, too.
    LeftBehind,
}

/// What one entry of the source's log did in a moving range; at position 0, a piece of the source's retry window, whose stamp says up to
/// when answers have gone from it.
#[derive(Debug, Clone, PartialEq)]
pub struct TailEntry {
    /// Its position in the source's log.
    pub position: u64,
    /// What it did there.
    pub changes: Changes,
}

const KIND_CHANGES: u8 = 1;
const KIND_CONTROL: u8 = 2;

/// Why bytes are no entry. A replica that meets such an entry stops (it would diverge).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed log entry: {0}")]
pub struct Malformed(pub String);

fn short() -> Malformed {
    Malformed("it ends early".into())
}

impl Entry {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        match &self.body {
            Body::Changes(changes) => {
                let mut out = BytesMut::with_capacity(9 + changes.size_bytes());
                out.put_u8(KIND_CHANGES);
                out.put_u64(self.serial);
                changes.encode_into(&mut out);
                out.freeze()
            }
            Body::Control(control) => {
                let mut out = vec![KIND_CONTROL];
                out.extend_from_slice(&self.serial.to_be_bytes());
                // Encoding our own values into memory cannot fail; an empty body would be seen as malformed.
                postcard::to_extend(control, out).map(Bytes::from).unwrap_or_default()
            }
        }
    }

    /// The entry in these bytes. Row images are slices of them.
    pub fn decode(mut bytes: Bytes) -> Result<Entry, Malformed> {
        if bytes.len() < 9 {
            return Err(short());
        }
        let kind = bytes.get_u8();
        let serial = bytes.get_u64();
        let body = match kind {
            KIND_CHANGES => Body::Changes(Changes::decode(&mut bytes)?),
            KIND_CONTROL => Body::Control(postcard::from_bytes(&bytes).map_err(|error| Malformed(error.to_string()))?),
            other => return Err(Malformed(format!("unknown kind {other}"))),
        };
        Ok(Entry { serial, body })
    }
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

    fn encode_into(&self, out: &mut BytesMut) {
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

    fn decode(bytes: &mut Bytes) -> Result<Changes, Malformed> {
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

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, Malformed> {
    if bytes.len() < length { Err(short()) } else { Ok(bytes.split_to(length)) }
}

fn take_u64(bytes: &mut Bytes) -> Result<u64, Malformed> {
    if bytes.len() < 8 { Err(short()) } else { Ok(bytes.get_u64()) }
}

fn take_u32(bytes: &mut Bytes) -> Result<u32, Malformed> {
    if bytes.len() < 4 { Err(short()) } else { Ok(bytes.get_u32()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn changes() -> Changes {
        let key = Key(Bytes::from_static(b"k"));
        Changes {
            stamp_ms: 7,
            answered: vec![Answered {
                id: TxnId { client: 1, sequence: 2, first_sent_ms: 3 },
                table: TableId(4),
                key: key.clone(),
                affected: 5,
                reply: KeptReply::Rows(Bytes::from_static(b"reply")),
            }],
            changes: vec![
                Change { table: TableId(4), key: key.clone(), image: Image::New(Bytes::from_static(b"row")) },
                Change { table: TableId(4), key, image: Image::Gone },
            ],
        }
    }

    #[test]
    fn entries_come_back_as_they_were_encoded() {
        let interval = KeyInterval::ALL;
        let pieces = vec![Piece { range: RangeId(1), epoch: Epoch(2), table: TableId(3), interval }];
        let checkpoint = Control::Checkpoint { nonce: 9, pieces, purpose: Purpose::Scrub };
        for body in [Body::Changes(changes()), Body::Control(checkpoint)] {
            let entry = Entry { serial: 11, body };
            assert_eq!(Entry::decode(entry.encode()).unwrap(), entry);
        }
        let tail = TailEntry { position: 3, changes: changes() };
        assert_eq!(TailEntry::decode(tail.encode()).unwrap(), tail);
    }

    #[test]
    fn an_entry_cut_anywhere_is_malformed() {
        let whole = Entry { serial: 11, body: Body::Changes(changes()) }.encode();
        assert_eq!(whole.len(), 9 + changes().size_bytes());
        for length in 0..whole.len() {
            assert!(Entry::decode(whole.slice(..length)).is_err(), "{length}");
        }
    }
}
