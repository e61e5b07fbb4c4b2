//! One entry of a shard's log, and its encoding.

use super::changes::Changes;
use super::control::Control;
use super::decode::{Malformed, short};
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
    /// Anything else.
    Control(Control),
}

const KIND_CHANGES: u8 = 1;
const KIND_CONTROL: u8 = 2;

impl ShardEntry {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        match &self.body {
            EntryBody::Changes(changes) => {
                let mut out = BytesMut::with_capacity(9 + changes.size_bytes());
                out.put_u8(KIND_CHANGES);
                out.put_u64(self.serial);
                changes.encode_into(&mut out);
                out.freeze()
            }
            EntryBody::Control(control) => {
                let mut out = vec![KIND_CONTROL];
                out.extend_from_slice(&self.serial.to_be_bytes());
                // Encoding our own values into memory cannot fail; an empty body would be seen as
                // malformed.
                postcard::to_extend(control, out).map(Bytes::from).unwrap_or_default()
            }
        }
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
            KIND_CONTROL => {
                EntryBody::Control(postcard::from_bytes(&bytes).map_err(|error| Malformed(error.to_string()))?)
            }
            other => return Err(Malformed(format!("unknown kind {other}"))),
        };
        Ok(ShardEntry { serial, body })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_entry::image::Image;
    use crate::log_entry::{Answered, Change, KeptReply, Purpose, TailEntry};
    use evenkeel_protocol::scrub::ComparedPiece;
    use evenkeel_protocol::{Epoch, Key, KeyInterval, RangeId, TableId, TxnId};

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
        for body in [EntryBody::Changes(changes()), EntryBody::Control(checkpoint)] {
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
