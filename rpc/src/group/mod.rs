//! A replica group as a callee: find the replica that leads, and have it answer.
//!
//! Only the leader of a group answers most requests, the leader changes, and so do the group's
//! replicas. [`Group`] asks one replica after the other until one answers as leader. It owns the
//! members it knows, the last leader and, together with other groups, a [`crate::Pool`] of
//! connections. It promises:
//!
//! - The replica that answered last is asked first, a replica that another one names as leader
//!   next, and then the others in the order of their numbers ([`Order`]).
//! - Each replica is asked at most twice, and a second time only if another replica names it as
//!   leader, or if it asks for patience. A replica that cannot be reached is not asked again in the
//!   same search ([`Search`]).
//! - If the named leader is not a known member, the replica that named it is asked for the members:
//!   replicas that replaced others are found.
//! - A call ends within its time limits ([`Patience`]).
//!
//! The decisions are pure ([`Order`], [`Search`]): events and elapsed time in, steps out.
//! [`Group::call`] carries the steps out. Messages are described by a [`GroupProtocol`].
//!
//! Every request may be executed more than once, by different replicas: only idempotent requests
//! are called this way.
//!
//! Not done: attempts in parallel. A silent leader delays a call by one attempt's time limit.

mod callee;
mod order;
mod protocol;
mod search;

pub use callee::{Group, Patience, Unanswered};
pub use order::Order;
pub use protocol::{GroupProtocol, ReplyMeaning};
pub use search::{Addresses, NoAnswer, Search, SearchStep};
