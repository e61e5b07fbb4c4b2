//! The question about a commit whose answer was lost (R14).

use crate::core::ClientCore;
use crate::deliver::{Delivery, Destination, Detour, ask_shard, deliver};
use crate::error::ClientError;
use crate::payload::Payload;
use crate::reply::unexpected;
use crate::retry::Attempts;
use crate::routing::Across;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::ShardReply;
use evenkeel_protocol::{Key, ShardId, TableId, TxnId};
use evenkeel_sql::Touches;

/// The first key that a transaction has changed, as far as the client knows. The answer to the
/// transaction's commit moves with the range of this key.
pub(crate) enum FirstChange {
    /// No key was changed.
    None,
    /// This key.
    Key(TableId, Key),
    /// One of several keys.
    Unclear,
}

/// Sends a commit again, on a new connection. The shard where the transaction ran has the answer in
/// its retry window. Only if that shard was removed, after all of its ranges and their answers
/// moved away, is the owner of the first changed key asked.
pub(crate) async fn recommit(
    core: &ClientCore,
    shard: ShardId,
    changed: &FirstChange,
    id: TxnId,
    attempts: &mut Attempts,
) -> Result<(), ClientError> {
    let reply = loop {
        let exists = core.routes().shard(shard).is_some();
        let asked = match changed {
            FirstChange::Key(table, key) if !exists => {
                let touches = Touches::Keys(vec![key.clone()]);
                let to = Destination { across: Across::Whole, touches: &touches, table: Some(*table) };
                let payload = Payload::Recommit { id, key: Some((*table, key.clone())) };
                deliver(core, to, &payload, attempts).await.map_err(Detour::GiveUp)
            }
            _ => {
                let payload = Payload::Recommit { id, key: None };
                ask_shard(core, shard, &payload, attempts).await.map(Delivery::Reply)
            }
        };
        match asked {
            Ok(Delivery::Reply(answered)) => break Ok(answered.reply),
            Ok(Delivery::Pieces(_)) | Err(Detour::Reroute(_)) => {}
            Err(Detour::GiveUp(error)) => break Err(error),
        }
    };
    match reply {
        Ok(ShardReply::Done) => Ok(()),
        Ok(other) => Err(unexpected(&other)),
        // The shard knows no such transaction, neither open nor committed.
        Err(ClientError::Sql(error)) if error.code == codes::NO_TRANSACTION => {
            Err(ClientError::rerun("the transaction was rolled back when its connection was lost"))
        }
        Err(error) => Err(error),
    }
}
