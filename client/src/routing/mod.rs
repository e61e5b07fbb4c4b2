//! Routing: the shards that a statement goes to.
//!
//! The module owns the client's copy of the routing table, the updates of that copy, and the
//! analysed statements, whose keys decide the route. It promises that a known route is never
//! replaced by an older one, and that a statement is sent to one shard only if all of its keys are
//! there, as far as the table says. The table may be stale: each shard checks every statement again
//! (R9, invariant 2).
//!
//! | module | content |
//! |---|---|
//! | `cache` | the routing table and its merging rules |
//! | `cut` | what a statement reads, cut by the shards that own it (pure) |
//! | `redirect` | the information in a redirect |
//! | `router` | the route of a statement (pure) |
//! | `statements` | analysed statements by their text |
//! | `updates` | fetches and the watch, which keep the table fresh |

mod cache;
mod cut;
mod redirect;
mod router;
mod statements;
mod updates;

pub(crate) use cache::is_served;
pub(crate) use cut::cut;
pub(crate) use redirect::{Learning, RedirectHint};
pub(crate) use router::{Across, NoTarget, Piece, Target, hinted, pieces, route, shard_of_tables};
pub(crate) use statements::{Statement, StatementCache};
pub(crate) use updates::RouteUpdates;

pub use cut::ShardPart;
