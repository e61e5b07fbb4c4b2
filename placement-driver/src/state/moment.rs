//! The two clocks at a proposal.

/// When a proposal is applied, by two clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// The proposer's wall clock, in milliseconds since the Unix epoch. It is shown to people. It
    /// can be set wrong, so nothing is decided by it.
    pub(super) at_ms: u64,
    /// The state machine's own time, in milliseconds ([`PlacementState::time_ms`]). Everything that
    /// depends on time is decided by it.
    ///
    /// [`PlacementState::time_ms`]: super::PlacementState::time_ms
    pub(super) time_ms: u64,
}
