//! The placement drivers of a run, as the clients and the checkers reach them.

use evenkeel_placement_driver::replica::ReplicaHandles;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The placement-driver replicas that run and have not left, by number. REST does not go through
/// the simulated network: clients read a replica's routing table and give orders to it directly.
/// Clones are the same registry.
#[derive(Clone, Default)]
pub struct Registry(Arc<RwLock<Replicas>>);

type Replicas = BTreeMap<u64, Arc<ReplicaHandles>>;

impl Registry {
    /// The replicas, for reading. Do not hold it across an `await`.
    pub fn read(&self) -> RwLockReadGuard<'_, Replicas> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replicas, for changing.
    pub fn write(&self) -> RwLockWriteGuard<'_, Replicas> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process of a replica still runs.
    pub fn runs(&self, replica: &Arc<ReplicaHandles>) -> bool {
        self.read().values().any(|other| Arc::ptr_eq(other, replica))
    }
}
