//! Requests to the applier, which it serves between two deliveries of the log.

use super::change_stream::ChangeStream;
use crate::state_transfer::SeedPiece;
use bytes::Bytes;
use evenkeel_protocol::OperatorId;
use tokio::sync::oneshot;

/// The first step of a state transfer: the state beside the rows, at one position.
pub struct Export {
    /// The position.
    pub index: u64,
    /// The term in force there.
    pub term: u64,
    /// The encoded [`SavedState`](super::SavedState).
    pub machine: Bytes,
    /// The retry window.
    pub window: Bytes,
}

/// A request to the applier, served between two deliveries.
pub enum ApplierRequest {
    /// Open a change stream of a move out.
    OpenStream(OperatorId, oneshot::Sender<Option<ChangeStream>>),
    /// Export everything but the rows.
    Export(oneshot::Sender<Export>),
    /// Take rows that are missing here. The answer is `false` if the rows are too old.
    Seeded(Box<SeedPiece>, oneshot::Sender<bool>),
}
