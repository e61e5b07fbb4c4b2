//! The placement drivers of a run, as the clients and the checkers reach them.

use evenkeel_placement_driver::replica::ReplicaHandles;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// The placement-driver replicas that run and have not left, by number. REST does not go through
/// the simulated network: clients read a replica's routing table as a hint and give orders to it
/// directly.
pub type Registry = Rc<RefCell<BTreeMap<u64, Arc<ReplicaHandles>>>>;
