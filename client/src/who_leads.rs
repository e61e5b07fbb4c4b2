//! Detects that another replica leads while one is silent.
//!
//! The inquiry changes nothing. Sending the request itself to another replica, while the first may
//! only be slow, could execute it twice.

use crate::core::ClientCore;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::net::SocketAddr;
use std::time::Duration;

/// Completes with the number of another replica than `replica` that says that it leads. The
/// replicas are asked after each `silence_ms`.
pub(crate) async fn another_leads(core: &ClientCore, shard: ShardId, replica: u64) -> u64 {
    let silence = Duration::from_millis(core.config.silence_ms);
    loop {
        evenkeel_host::sleep(silence).await;
        let ask = who_else_leads(core, shard, replica, silence);
        // Half of the silence, so that a caller that asks regularly does not get its previous
        // answer again.
        if let Some(leader) = core.inquiries.share(shard, replica, silence / 2, ask).await {
            return leader;
        }
    }
}

/// Asks all replicas but `replica` at the same time; the first that says that it leads is the
/// result.
async fn who_else_leads(core: &ClientCore, shard: ShardId, replica: u64, patience: Duration) -> Option<u64> {
    let info = core.routes().shard(shard)?.clone();
    let others = info.replicas.into_iter().filter(|(other, _)| *other != replica);
    let mut asked: FuturesUnordered<_> =
        others.map(|(other, address)| async move { leads(core, address).await.then_some(other) }).collect();
    let first = async {
        while let Some(leader) = asked.next().await {
            if leader.is_some() {
                return leader;
            }
        }
        None
    };
    evenkeel_host::timeout(patience, first).await.ok().flatten()
}

async fn leads(core: &ClientCore, address: SocketAddr) -> bool {
    let Ok(link) = core.link(address).await else { return false };
    matches!(link.call(&ShardRequest::WhoLeads).await, Ok(ShardReply::Leads(said)) if said.itself)
}
