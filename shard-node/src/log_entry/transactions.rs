//! Entries of transactions over several shards (R26).
//!
//! | entry | in the log of | meaning |
//! |---|---|---|
//! | [`PreparedChanges`] | a participant | these changes take effect if the deciding shard commits |
//! | [`DecidedChanges`] | the deciding shard | its own changes take effect, and with them the decision to commit |
//! | [`Resolution`] | a participant | the decision, as it was learnt: the prepared changes take effect here, or never |
//! | [`Forgotten`] | the deciding shard | all participants have the decision in their logs |

use super::changes::Changes;
use super::decode::{Malformed, take, take_u32};
use bytes::{BufMut, Bytes, BytesMut};
use evenkeel_protocol::TxnId;
use evenkeel_protocol::routing::ShardInfo;
use serde::{Deserialize, Serialize};

/// A participant's changes, durable and not committed.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedChanges {
    /// The transaction.
    pub id: TxnId,
    /// The shard that decides.
    pub decider: ShardInfo,
    /// The changes.
    pub changes: Changes,
}

/// The deciding shard's changes. They are judged as any others; if they take effect, the
/// transaction is committed.
#[derive(Debug, Clone, PartialEq)]
pub struct DecidedChanges {
    /// The transaction.
    pub id: TxnId,
    /// The other shards.
    pub participants: Vec<ShardInfo>,
    /// The changes here.
    pub changes: Changes,
}

/// What becomes of prepared changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// The transaction.
    pub id: TxnId,
    /// Whether it is committed.
    pub committed: bool,
}

/// Decisions that nobody will ask for any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The transactions.
    pub ids: Vec<TxnId>,
}

/// What precedes the changes.
#[derive(Serialize, Deserialize)]
struct Head {
    id: TxnId,
    shards: Vec<ShardInfo>,
}

impl PreparedChanges {
    pub(super) fn encode_into(&self, out: &mut BytesMut) {
        put_head(out, Head { id: self.id, shards: vec![self.decider.clone()] });
        self.changes.encode_into(out);
    }

    pub(super) fn decode(bytes: &mut Bytes) -> Result<PreparedChanges, Malformed> {
        let Head { id, shards } = take_head(bytes)?;
        let decider = shards.into_iter().next().ok_or_else(|| Malformed("nobody decides".into()))?;
        Ok(PreparedChanges { id, decider, changes: Changes::decode(bytes)? })
    }
}

impl DecidedChanges {
    pub(super) fn encode_into(&self, out: &mut BytesMut) {
        put_head(out, Head { id: self.id, shards: self.participants.clone() });
        self.changes.encode_into(out);
    }

    pub(super) fn decode(bytes: &mut Bytes) -> Result<DecidedChanges, Malformed> {
        let Head { id, shards: participants } = take_head(bytes)?;
        Ok(DecidedChanges { id, participants, changes: Changes::decode(bytes)? })
    }
}

fn put_head(out: &mut BytesMut, head: Head) {
    // Encoding our own values into memory cannot fail; an empty head would be seen as malformed.
    let head = postcard::to_stdvec(&head).unwrap_or_default();
    out.put_u32(head.len() as u32);
    out.put_slice(&head);
}

fn take_head(bytes: &mut Bytes) -> Result<Head, Malformed> {
    let length = take_u32(bytes)? as usize;
    postcard::from_bytes(&take(bytes, length)?).map_err(|error| Malformed(error.to_string()))
}
