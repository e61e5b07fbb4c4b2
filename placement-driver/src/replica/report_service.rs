//! The RPC server of a replica: reports of shards, the members, and the state for replicas that
//! fell behind the log.

use super::handles::ReplicaHandles;
use super::message::LoopMessage;
use crate::snapshot;
use evenkeel_protocol::placement::{PlacementReply, PlacementRequest};
use evenkeel_rpc::{Replier, Service};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Serves [`PlacementRequest`]s.
pub(super) struct ReportService(pub Arc<ReplicaHandles>);

impl Service for ReportService {
    type Request = PlacementRequest;
    type Reply = PlacementReply;
    type Session = ();

    fn opened(&self, _: SocketAddr) {}

    async fn call(self: Arc<Self>, _: Arc<()>, request: PlacementRequest, replier: Replier<PlacementReply>) {
        match request {
            PlacementRequest::Report(report) => {
                let (reply, answer) = oneshot::channel();
                let sent = self.0.messages.send(LoopMessage::Report(report, reply)).await.is_ok();
                let reply = if sent && answer.await.unwrap_or(false) {
                    PlacementReply::Accepted
                } else {
                    let leader = self.0.leader().filter(|leader| *leader != self.0.config.replica);
                    PlacementReply::NotLeader { leader }
                };
                replier.reply(&reply).await;
            }
            PlacementRequest::Members => replier.reply(&PlacementReply::Members(self.0.rpc_addresses())).await,
            PlacementRequest::State => {
                let reply = {
                    let applied = self.0.applied();
                    snapshot::encode(&applied.state).map(|state| PlacementReply::State {
                        index: applied.index.0,
                        term: applied.term.0,
                        state: state.into(),
                    })
                };
                match reply {
                    Ok(reply) => replier.reply(&reply).await,
                    // The dropped replier tells the caller that there is no answer.
                    Err(reason) => tracing::error!(reason, "the state cannot be encoded"),
                }
            }
        }
    }
}
