//! Requests to a shard before a connection is known.

use crate::link::Link;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::pass_through::PassThroughRequest;
use evenkeel_protocol::shard::{Durability, ReadLevel, ShardRequest, StatementRequest, TransactionOptions};
use evenkeel_protocol::{Key, TableId, TxnId};
use std::borrow::Cow;

/// A request that can be sent on any connection.
pub(crate) enum Payload<'a> {
    /// The same on each connection.
    Fixed(&'a ShardRequest),
    /// The first statement of a transaction, which takes its number from the connection.
    Begin { options: TransactionOptions, statement: &'a StatementRequest },
    /// The first step of a pass-through transaction, likewise.
    BeginPassThrough(&'a PassThroughRequest),
    /// A read at level `local`. The replicas are asked in turn, beginning with the `prefer`th, from
    /// 1.
    Local { request: &'a ShardRequest, prefer: u64 },
    /// A commit whose connection was lost.
    Recommit { id: TxnId, key: Option<(TableId, Key)> },
}

impl<'a> Payload<'a> {
    /// The payload of a read at this level.
    pub(crate) fn of_read(request: &'a ShardRequest, read: ReadLevel, prefer: u64) -> Payload<'a> {
        if read == ReadLevel::Local { Payload::Local { request, prefer } } else { Payload::Fixed(request) }
    }

    /// The request on this connection, and its transaction's number there; 0 if it has none.
    pub(crate) fn on(&self, link: &Link) -> (Cow<'_, ShardRequest>, u64) {
        match self {
            Payload::Fixed(ShardRequest::Statement(statement)) if deliberate(Bug::NewIdPerAttempt) => {
                let id = TxnId { sequence: evenkeel_host::random(), ..statement.id };
                (Cow::Owned(ShardRequest::Statement(StatementRequest { id, ..statement.clone() })), 0)
            }
            Payload::Fixed(request) | Payload::Local { request, .. } => (Cow::Borrowed(request), 0),
            Payload::Begin { options, statement } => {
                let transaction = link.new_transaction();
                let statement = StatementRequest::clone(statement);
                (Cow::Owned(ShardRequest::InTransaction { transaction, begin: Some(*options), statement }), transaction)
            }
            Payload::BeginPassThrough(request) => {
                let transaction = link.new_transaction();
                let request = PassThroughRequest { transaction, ..PassThroughRequest::clone(request) };
                (Cow::Owned(ShardRequest::PassThrough(Box::new(request))), transaction)
            }
            Payload::Recommit { id, key } => {
                let transaction = link.new_transaction();
                let durability = Durability::Disk;
                let (id, key, participants) = (*id, key.clone(), Vec::new());
                (Cow::Owned(ShardRequest::Commit { transaction, id, key, durability, participants }), transaction)
            }
        }
    }
}

/// A write that is to be acknowledged early, as it is repeated after an attempt whose outcome is
/// not known: at `disk`. An early answer of one attempt says nothing of what another has done
/// (R28).
pub(crate) fn repeated(payload: &Payload<'_>) -> Option<ShardRequest> {
    match payload {
        Payload::Fixed(ShardRequest::Statement(statement)) if statement.durability < Durability::Disk => {
            Some(ShardRequest::Statement(StatementRequest { durability: Durability::Disk, ..statement.clone() }))
        }
        _ => None,
    }
}

/// Whether any replica may answer this request.
pub(crate) fn is_local(request: &ShardRequest) -> bool {
    match request {
        ShardRequest::Statement(statement) => statement.read == ReadLevel::Local,
        ShardRequest::Piece(piece) => piece.statement.read == ReadLevel::Local,
        _ => false,
    }
}

/// Whether this request is answered by a stream: its answer has several items, or may be an early
/// acknowledgement.
pub(crate) fn is_streamed(request: &ShardRequest) -> bool {
    matches!(request, ShardRequest::PassThrough(_)) || allows_early_acknowledgement(request)
}

/// Whether this request may be acknowledged early, and is therefore answered by a stream (R28).
fn allows_early_acknowledgement(request: &ShardRequest) -> bool {
    let (ShardRequest::Statement(StatementRequest { durability, .. }) | ShardRequest::Commit { durability, .. }) =
        request
    else {
        return false;
    };
    *durability < Durability::Disk
}
