//! The state of a replica that is stored beside its rows.

use crate::error::ApplyError;
use crate::log_entry::parts::FirstParts;
use crate::state_machine::{RangeSize, ShardState};
use bytes::Bytes;
use evenkeel_protocol::RangeId;

/// What a replica keeps of itself beside the rows.
#[derive(Default, serde::Serialize, serde::Deserialize)]
pub struct SavedState {
    /// The state machine.
    pub state: ShardState,
    /// How large its ranges are, about.
    pub sizes: Vec<(RangeId, RangeSize)>,
    /// The transactions over several shards, if it is sent to another replica. Otherwise they are
    /// recorded with each position.
    pub transactions: Option<Bytes>,
    /// The parts of unfinished entries, if it came from another replica.
    pub unfinished: Vec<FirstParts>,
}

impl SavedState {
    /// The encoded state.
    ///
    /// # Errors
    /// [`ApplyError::Diverged`] if it cannot be encoded.
    pub fn encode(&self) -> Result<Bytes, ApplyError> {
        let encoded = postcard::to_stdvec(self);
        encoded.map(Bytes::from).map_err(|error| ApplyError::Diverged(format!("the state cannot be encoded: {error}")))
    }
}
