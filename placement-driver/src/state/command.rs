//! Commands: the entries of the placement driver's log.
//!
//! The order of variants and fields is the format of the log (postcard): new variants go to the
//! end.

use super::decision::{Action, NewDecision};
use super::found::Found;
use super::operator_status::{Step, Transition};
use crate::coordination;
use evenkeel_protocol::api::SchemaChangeBody;
use evenkeel_protocol::report::ShardMembers;
use evenkeel_protocol::routing::{Route, ShardInfo};
use evenkeel_protocol::{OperatorId, SchemaDelta, ShardId, TableSchema};
use serde::{Deserialize, Serialize};

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// When it was proposed, by the leader's wall clock, in milliseconds since the Unix epoch. It
    /// is shown to people and decides nothing.
    pub at_ms: u64,
    /// The time since the previous proposal of the same leadership, or since its beginning, in
    /// milliseconds. The state machine's own time is the sum of these, so that a leader whose clock
    /// is set wrong cannot make it jump.
    pub since_ms: u64,
    /// A number by which the proposer recognises the result of its proposal.
    pub nonce: u64,
    /// The command.
    pub command: Command,
}

/// One change of the placement state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Adds a shard, or changes the addresses of its replicas. A draining shard stays draining.
    AddShard(ShardInfo),
    /// Begins to empty a shard.
    DrainShard(ShardId),
    /// Removes an emptied shard.
    RemoveShard(ShardId),
    /// Begins to create a table.
    CreateTable {
        /// The table; its id is ignored.
        schema: TableSchema,
        /// Its shard; absent for the active shard with the fewest ranges.
        shard: Option<ShardId>,
        /// Whether the command succeeds if a table of that name exists.
        if_not_exists: bool,
    },
    /// Begins an operator that an administrator asks for.
    Begin(Action),
    /// Begins the operators of a decision of the balancer. Actions that are no longer possible are
    /// left out.
    Decide(Box<NewDecision>),
    /// Takes an operator to its next step.
    Advance {
        /// The operator.
        operator: OperatorId,
        /// The step at which it is expected; the command is rejected if it is at another.
        from: Step,
        /// The transition.
        transition: Transition,
    },
    /// Cancels an operator, if it is still possible (R20).
    Cancel(OperatorId),
    /// Declares the destination of a fenced move lost for good: the source takes the range back
    /// (R23).
    TakeBack(OperatorId),
    /// Takes in the routes that shards own by their own logs (invariant 6). They are later than the
    /// known ones and leave no gap.
    TakeRoutes(Vec<Route>),
    /// Switches the balancer on or off.
    SetBalancer {
        /// Whether it is on.
        enabled: bool,
    },
    /// Begins this restore generation: the state comes from an old copy (R30). The first generation
    /// is 1.
    BeginIncarnation(u32),
    /// Ends a restoration: takes in what the shards have reported, and continues above their
    /// numbers (R30).
    Reconciled(Box<Found>),
    /// Takes in a shard's replicas by its own log, if its configuration is later than the known
    /// one.
    TakeMembers {
        /// The shard.
        shard: ShardId,
        /// Its replicas and the number of their configuration.
        members: ShardMembers,
    },
    /// Changes a key of the coordination store.
    Kv(Box<coordination::Request>),
    /// Takes a draining shard back into service.
    UndrainShard(ShardId),
    /// Gives the cluster this random number, if it has none. It distinguishes versions of the
    /// routing table from those of other clusters.
    NameCluster(u32),
    /// Takes in tables that shards hold and the state lacks, with all of their ranges (R30).
    TakeTables {
        /// The tables.
        tables: Vec<TableSchema>,
        /// All of their ranges.
        routes: Vec<Route>,
    },
    /// Begins a schema change.
    ChangeSchema {
        /// The change.
        body: Box<SchemaChangeBody>,
        /// The shard for new tables and sequences, if none is known yet.
        home: Option<ShardId>,
    },
    /// Takes in schema changes that shards have made and the state lacks (R30).
    TakeSchema(Vec<SchemaDelta>),
}
