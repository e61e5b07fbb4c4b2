//! Coordination store: a small key-value store for applications, replicated with the state of the
//! placement driver. It is to an Evenkeel cluster what etcd's key space is to its users: leases,
//! locks, configuration.
//!
//! [`CoordinationStore`] is a state machine. [`CoordinationStore::apply`] is a deterministic
//! function of the store, a [`Request`] and the time of its proposal, so that every replica has the
//! same values, revisions and history. The store promises:
//!
//! - Each effective change has a **revision** of its own, one above the last. Nothing else changes
//!   the revision, except a restoration from a backup: it adds a large step, so that no revision
//!   has two meanings (R30).
//! - A rejected request changes nothing, the revision included.
//! - Every size is bounded by a named limit ([`limits`]). Together the limits keep the state of the
//!   placement driver within one RPC frame.
//! - A request with an idempotency key is effective at most once within [`REMEMBER_MS`].
//!
//! | module | contents | I/O |
//! |---|---|---|
//! | [`limits`] | limits of sizes and times | none |
//! | [`request`] | requests, and the checks that need no store | none |
//! | [`entry`] | the entry of a key | none |
//! | [`refusal`] | reasons for which a request is rejected | none |
//! | [`store`] | the state machine | none |
//! | [`history`] | the latest changes, for watchers | none |
//! | [`idempotency`] | the idempotency keys of effective requests, for repeated requests | none |
//! | [`service`] | reads, writes and watches at one replica | the log's |
//!
//! Not done: leases, transactions over several keys, and reads at an old revision.

pub mod entry;
pub mod history;
pub mod idempotency;
pub mod limits;
pub mod refusal;
pub mod request;
pub mod service;
pub mod store;
#[cfg(test)]
mod tests;

pub use entry::StoredValue;
pub use history::{Compacted, Event, History};
pub use idempotency::RecentRequests;
pub use limits::{ENTRY_OVERHEAD_BYTES, MAX_IDS, MAX_KEYS, MAX_STORE_BYTES, MAX_VALUE_BYTES, REMEMBER_MS};
pub use refusal::RequestRefusal;
pub use request::{Expect, Request, WriteAction, Written, check, check_key};
pub use service::{Consistency, Listing, ReadFailure, WatchEvent, Watcher, WriteFailure};
pub use store::CoordinationStore;
