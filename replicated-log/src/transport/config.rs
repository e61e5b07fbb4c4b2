//! Configuration of the transport in one configuration of the group.

use crate::config::{Limits, Timing};
use crate::membership::Membership;
use crate::wire::Tag;

/// The identity of this replica, and the limits of its sessions.
#[derive(Clone, Debug)]
pub(crate) struct TransportConfig {
    pub(crate) tag: Tag,
    pub(crate) me: u64,
    pub(crate) store_id: u64,
    pub(crate) membership: Membership,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
}
