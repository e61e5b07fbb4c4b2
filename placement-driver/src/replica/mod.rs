//! One replica of the placement driver: it applies the log, passes reports and answers of shards to
//! the deciding modules (`balancer`, `operators`), and carries out their decisions. It makes no
//! decision of its own.
//!
//! ```text
//!  shards --reports--> report_service --+                      +--> log (proposals)
//!  clients --> ReplicaHandles::propose -+--> event loop -------+--> shard_calls --> shards'
//!  leaders log --decided entries----------------+ | +--> ReplicaHandles: applied state, routing
//!  view
//! ```
//!
//! One task, the event loop, changes the state and the leadership; everything else
//! sends it messages. Only the leader plans and proposes. It stops at once when it loses its
//! leadership. Requests to shards that are then under way end by themselves: each is idempotent and
//! names its operator.
//!
//! | module | contents |
//! |---|---|
//! | [`run`] | start and end of a replica |
//! | `event_loop` | the task: one turn after the other |
//! | [`handles`] | [`ReplicaHandles`], the interface of the task to REST, RPC and simulations |
//! | [`leader_state`] | what a leader has in memory beyond the replicated state |
//! | [`message`] | messages to the event loop, and the failures of proposals |
//! | `apply` | decided entries into the state machine |
//! | `proposals` | proposals: numbers, times, results; `waiters`, `deferred_proposals` |
//! | `leadership` | begin and end of a leadership; `quorum` |
//! | `planning_round` | one round of the leader |
//! | `snapshots` | when a snapshot is written |
//! | `state_transfer` | the state from another replica |
//! | [`membership`] | the replicas themselves; `disk_repair` |
//! | `report_service` | the RPC server |
//! | [`shard_calls`] | the RPC client |

mod apply;
mod clock;
mod deferred_proposals;
mod disk_repair;
mod event_loop;
pub mod handles;
pub mod leader_state;
mod leadership;
pub mod membership;
pub mod message;
mod planning_round;
mod proposals;
mod quorum;
mod report_service;
pub mod run;
pub mod run_error;
pub mod shard_calls;
mod snapshots;
mod state_transfer;
mod waiters;

pub use handles::{Applied, ReplicaHandles};
pub use leader_state::LeaderState;
pub use membership::{NewMember, next_members};
pub use message::ProposeFailure;
pub use run::serve;
pub use run_error::RunError;
pub use shard_calls::ShardCalls;
