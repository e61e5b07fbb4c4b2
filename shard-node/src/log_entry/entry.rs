//! One entry of a shard's log, and its encoding.

use super::changes::Changes;
use super::control::Control;
use super::decode::{Malformed, short};
use super::transactions::{DecidedChanges, Forgotten, PreparedChanges, Resolution};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest entry, in bytes (R12).
pub const MAX_ENTRY_BYTES: usize = 1 << 20;

/// One entry of a shard's log.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardEntry {
    /// Unique within its term.
    pub serial: u64,
    /// What it does.
    pub body: EntryBody,
}

/// What an entry does.
#[derive(Debug, Clone, PartialEq)]
pub enum EntryBody {
    /// Rows of users' statements.
    Changes(Changes),
    /// A participant's part of a transaction over several shards.
    Prepared(PreparedChanges),
    /// The deciding shard's part of one.
    Decided(DecidedChanges),
    /// The outcome of prepared changes.
    Resolved(Resolution),
    /// Decisions that are no longer needed.
    Forgotten(Forgotten),
    /// Anything else.
    Control(Control),
}

const KIND_CHANGES: u8 = 1;
const KIND_CONTROL: u8 = 2;
// 3 is a part of an entry (see `parts`).
const KIND_PREPARED: u8 = 4;
const KIND_DECIDED: u8 = 5;
const KIND_RESOLVED: u8 = 6;
const KIND_FORGOTTEN: u8 = 7;

impl ShardEntry {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        match &self.body {
            EntryBody::Changes(changes) => {
                let mut out = self.begin(KIND_CHANGES, changes.size_bytes());
                changes.encode_into(&mut out);
                out.freeze()
            }
            EntryBody::Prepared(prepared) => {
                let mut out = self.begin(KIND_PREPARED, prepared.changes.size_bytes());
                prepared.encode_into(&mut out);
                out.freeze()
            }
            EntryBody::Decided(decided) => {
                let mut out = self.begin(KIND_DECIDED, decided.changes.size_bytes());
                decided.encode_into(&mut out);
                out.freeze()
            }
            EntryBody::Resolved(resolution) => self.encode_serde(KIND_RESOLVED, resolution),
            EntryBody::Forgotten(forgotten) => self.encode_serde(KIND_FORGOTTEN, forgotten),
            EntryBody::Control(control) => self.encode_serde(KIND_CONTROL, control),
        }
    }

    fn begin(&self, kind: u8, body_bytes: usize) -> BytesMut {
        let mut out = BytesMut::with_capacity(9 + body_bytes);
        out.put_u8(kind);
        out.put_u64(self.serial);
        out
    }

    fn encode_serde(&self, kind: u8, body: &impl serde::Serialize) -> Bytes {
        let mut out = vec![kind];
        out.extend_from_slice(&self.serial.to_be_bytes());
        // Encoding our own values into memory cannot fail; an empty body would be seen as
        // malformed.
        postcard::to_extend(body, out).map(Bytes::from).unwrap_or_default()
    }

    /// The entry in these bytes. Row images are slices of them.
    pub fn decode(mut bytes: Bytes) -> Result<ShardEntry, Malformed> {
        if bytes.len() < 9 {
            return Err(short());
        }
        let kind = bytes.get_u8();
        let serial = bytes.get_u64();
        let body = match kind {
            KIND_CHANGES => EntryBody::Changes(Changes::decode(&mut bytes)?),
            KIND_PREPARED => EntryBody::Prepared(PreparedChanges::decode(&mut bytes)?),
            KIND_DECIDED => EntryBody::Decided(DecidedChanges::decode(&mut bytes)?),
            KIND_RESOLVED => EntryBody::Resolved(decode_serde(&bytes)?),
            KIND_FORGOTTEN => EntryBody::Forgotten(decode_serde(&bytes)?),
            KIND_CONTROL => EntryBody::Control(decode_serde(&bytes)?),
            other => return Err(Malformed(format!("unknown kind {other}"))),
        };
        Ok(ShardEntry { serial, body })
    }
}

fn decode_serde<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    postcard::from_bytes(bytes).map_err(|error| Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_entry::image::Image;
    use crate::log_entry::{Answered, Change, KeptReply, Purpose, TailEntry};
    use evenkeel_protocol::routing::ShardInfo;
    use evenkeel_protocol::scrub::ComparedPiece;
    use evenkeel_protocol::{Epoch, Key, KeyInterval, RangeId, ShardId, TableId, TxnId};

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
        let pieces = vec![ComparedPiece { range: RangeId(1), epoch: Epoch(2), table: TableId(3), interval }];
        let checkpoint = Control::Checkpoint { nonce: 9, pieces, purpose: Purpose::Scrub };
        let id = TxnId { client: 7, sequence: 8, first_sent_ms: 9 };
        let shard = |n| ShardInfo { id: ShardId(n), replicas: [(1, ([127, 0, 0, 1], 5).into())].into() };
        for body in [
            EntryBody::Changes(changes()),
            EntryBody::Control(checkpoint),
            EntryBody::Prepared(PreparedChanges { id, decider: shard(2), changes: changes() }),
            EntryBody::Decided(DecidedChanges { id, participants: vec![shard(2), shard(3)], changes: changes() }),
            EntryBody::Resolved(Resolution { id, committed: true }),
            EntryBody::Forgotten(Forgotten { ids: vec![id, id] }),
        ] {
            let entry = ShardEntry { serial: 11, body };
            assert_eq!(ShardEntry::decode(entry.encode()).unwrap(), entry);
        }
        let tail = TailEntry { position: 3, changes: changes() };
        assert_eq!(TailEntry::decode(tail.encode()).unwrap(), tail);
    }

    #[test]
    fn an_entry_cut_anywhere_is_malformed() {
        let whole = ShardEntry { serial: 11, body: EntryBody::Changes(changes()) }.encode();
        assert_eq!(whole.len(), 9 + changes().size_bytes());
        for length in 0..whole.len() {
            assert!(ShardEntry::decode(whole.slice(..length)).is_err(), "{length}");
        }
    }
}
