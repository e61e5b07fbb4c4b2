//! Calls to the leaders of shards.
//!
//! It owns the connections to shards' replicas. Each call searches for the leader as
//! [`evenkeel_rpc::group`] describes, beginning with the replica that is expected to lead; replicas
//! that replaced others are found. Every request sent here is idempotent.

use evenkeel_protocol::Failure;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, ShardReply, ShardRequest};
use evenkeel_rpc::Pool;
use evenkeel_rpc::group::{Addresses, Group, GroupProtocol, Patience, ReplyMeaning, Unanswered};
use std::sync::Arc;
use std::time::Duration;

/// How long connecting to a replica may take, in milliseconds.
const CONNECT_MS: u64 = 500;
/// Addresses above this number are forgotten when they have no open connection.
const MAX_ADDRESSES: usize = 4096;

/// The messages of control requests. Only a control reply is an answer; a replica that refuses need
/// not lead.
struct Control;

impl GroupProtocol for Control {
    type Request = ShardRequest;
    type Reply = ShardReply;

    fn verdict(reply: &ShardReply) -> ReplyMeaning {
        match reply {
            ShardReply::Control(_) => ReplyMeaning::Answered,
            ShardReply::Failed(Failure::NotLeader { leader }) => ReplyMeaning::NotLeader { leader: *leader },
            _ => ReplyMeaning::NotLeader { leader: None },
        }
    }

    fn members_request() -> ShardRequest {
        ShardRequest::Inspect
    }

    fn members(reply: ShardReply) -> Option<Addresses> {
        match reply {
            ShardReply::Inspect(inspection) => Some(inspection.replicas),
            _ => None,
        }
    }
}

/// The connections to shards' replicas.
pub struct ShardCalls {
    pool: Arc<Pool<ShardRequest, ShardReply>>,
}

impl Default for ShardCalls {
    fn default() -> ShardCalls {
        ShardCalls { pool: Arc::new(Pool::new(1, Duration::from_millis(CONNECT_MS))) }
    }
}

impl ShardCalls {
    /// Has the shard's leader answer a request. Each replica is asked at most twice, for at most
    /// `bound` each time.
    ///
    /// # Errors
    /// One sentence. The request may have been executed.
    pub async fn ask(
        &self,
        shard: &ShardInfo,
        leader: Option<u64>,
        request: &ControlRequest,
        bound: Duration,
    ) -> Result<ControlReply, String> {
        let id = shard.id;
        self.pool.trim(MAX_ADDRESSES);
        let total = bound.saturating_mul(2 * shard.replicas.len() as u32);
        let mut group = Group::<Control>::new(shard.replicas.clone(), leader, self.pool.clone());
        let patience = Patience { attempt: bound, total };
        match group.call(&ShardRequest::Control(request.clone()), patience).await {
            Ok(ShardReply::Control(reply)) => Ok(reply),
            Ok(_) => Err(format!("shard {id} gave an answer to another question")),
            Err(unanswered) => Err(format!("shard {id}{}", reason(unanswered))),
        }
    }
}

fn reason(unanswered: Unanswered<ShardReply>) -> String {
    match unanswered {
        Unanswered::NoReplicas => " has no replicas".to_string(),
        Unanswered::NoReply { replica, error } => format!(", replica {replica}: {error}"),
        Unanswered::Refused { replica, reply } => match reply {
            ShardReply::Failed(Failure::NotLeader { leader: Some(leader) }) if leader != replica => {
                format!(": replica {replica} does not lead, {leader} does")
            }
            ShardReply::Failed(failure) => format!(", replica {replica}: {failure}"),
            _ => format!(", replica {replica} gave an answer to another question"),
        },
    }
}
