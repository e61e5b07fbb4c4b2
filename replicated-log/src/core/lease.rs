//! The lease as the leader's readers see it (log rule 9).

/// The guarantee to the leader's readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The end of the lease on this replica's clock; 0 is no lease.
    pub(crate) until_ms: u64,
    /// The decided position, at or after the leadership's `LeaderStart`. No read is answered at an
    /// earlier position. Peers may learn it from this turn's messages before subscribers here do.
    pub(crate) floor: u64,
}
