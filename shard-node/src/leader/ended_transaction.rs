//! How a transaction ends: under which id, and for which other shards it decides.

use super::kept_replies::answered;
use crate::log_entry::{Changes, DecidedChanges, EntryBody};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::{Key, TableId, TxnId};

/// The commit that a client asks for.
#[derive(Debug, Clone)]
pub struct Ending {
    /// The transaction's id.
    pub id: TxnId,
    /// The other shards that have prepared it (R26); none if this is its only one.
    pub participants: Vec<ShardInfo>,
}

impl Ending {
    /// The end of a transaction of one shard.
    pub fn alone(id: TxnId) -> Ending {
        Ending { id, participants: Vec::new() }
    }
}

/// The entry of changes that end with a transaction. If no answer is in them yet, its id's is added
/// (R14), with the first key that was changed.
pub(super) fn entry_body(ending: &Ending, mut changes: Changes) -> EntryBody {
    if let (true, Some(first)) = (changes.answered.is_empty(), changes.changes.first()) {
        let (table, key): (TableId, Key) = (first.table, first.key.clone());
        changes.answered.push(answered(ending.id, table, key, &StatementReply::default()));
    }
    if ending.participants.is_empty() {
        return EntryBody::Changes(changes);
    }
    EntryBody::Decided(DecidedChanges { id: ending.id, participants: ending.participants.clone(), changes })
}
