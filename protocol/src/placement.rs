//! Requests to the placement driver over RPC: reports of shard leaders, state transfers and
//! members. Administrators and clients use REST (see [`crate::api`]).

use crate::report::ShardReport;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// A request to a placement-driver replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PlacementRequest {
    /// A shard leader's report.
    Report(Box<ShardReport>),
    /// From a replica that fell behind the log to another: a copy of its state.
    State,
    /// Where the replicas listen for reports.
    Members,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementReply {
    /// The report was accepted.
    Accepted,
    /// Not the leader; report to that replica (its number), if known.
    NotLeader {
        /// The leader's replica number.
        leader: Option<u64>,
    },
    /// To [`PlacementRequest::State`].
    State {
        /// Position in the log.
        index: u64,
        /// The term in force there.
        term: u64,
        /// The encoded state machine.
        state: Bytes,
    },
    /// To [`PlacementRequest::Members`]: RPC addresses by replica number.
    Members(BTreeMap<u64, SocketAddr>),
}
