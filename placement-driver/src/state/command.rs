//! What the log carries, and what comes of it.

use super::operator::{Step, Transition};
use super::restoration::Found;
use crate::coordination;
use evenkeel_protocol::report::ShardMembers;
use evenkeel_protocol::routing::{Route, ShardInfo};
use evenkeel_protocol::{Epoch, Key, OperatorId, RangeId, ShardId, TableId, TableSchema};
use serde::{Deserialize, Serialize};

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// When it was proposed, by the leader's clock, in milliseconds since the Unix epoch: for people, who read it.
    pub at_ms: u64,
    /// How long before that the same leadership had proposed something last, or had begun, in milliseconds. The state machine's own time is the
    /// sum of these: no leader whose clock is set wrong can make it jump.
    pub since_ms: u64,
    /// Drawn by the proposer, who recognises by it what became of its proposal.
    pub nonce: u64,
    /// What is to be done.
    pub command: Command,
}

/// One change of the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Adds a shard, or changes the addresses of its replicas. One that is being emptied goes on being emptied.
    AddShard(ShardInfo),
    /// Begins to empty a shard.
    DrainShard(ShardId),
    /// Removes an emptied shard.
    RemoveShard(ShardId),
    /// Begins to create a table.
    CreateTable {
        /// The table; its id is ignored.
        schema: TableSchema,
        /// Its shard; absent for the active one with the fewest ranges.
        shard: Option<ShardId>,
        /// Whether an equal name is a success.
        if_not_exists: bool,
    },
    /// Begins an operator on a range or two, asked for by a person.
    Begin(Action),
    /// Begins the operators of a decision of the balancer. Those that are no longer possible are left out.
    Decide(Box<NewDecision>),
    /// Takes an operator further.
    Advance {
        /// The operator.
        operator: OperatorId,
        /// The step it is expected to be at; if it is not, nothing happens.
        from: Step,
        /// The transition.
        transition: Transition,
    },
    /// Asks to cancel an operator.
    Cancel(OperatorId),
    /// The destination of a move is lost for good after the fence: the source is to take the range back (R23).
    TakeBack(OperatorId),
    /// Takes in what shards own according to their own logs (invariant 6): later than what is known, and without a gap.
    TakeRoutes(Vec<Route>),
    /// Switches the balancer on or off.
    SetBalancer {
        /// On.
        enabled: bool,
    },
    /// The state comes from an old copy; it is restored for this many-th time, counting from 2 (R30).
    BeginIncarnation(u32),
    /// The shards have told what they hold; numbers grow past theirs (R30).
    Reconciled(Box<Found>),
    /// Takes in who a shard's replicas are by its own log, if that is later than what is known.
    TakeMembers {
        /// The shard.
        shard: ShardId,
        /// Its replicas and their epoch.
        members: ShardMembers,
    },
    /// Changes a key of the coordination store.
    Kv(Box<coordination::Request>),
    /// Takes a shard that is being emptied back into service.
    UndrainShard(ShardId),
    /// Takes this random number for the cluster's, if it has none: by it versions of the routing table are told from those of other clusters.
    NameCluster(u32),
    /// Takes in tables that shards hold and that are not known here, with everything that is owned of them (R30).
    TakeTables {
        /// The tables.
        tables: Vec<TableSchema>,
        /// All of their ranges.
        routes: Vec<Route>,
    },
}

/// A split, merge or move, before it has ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Split a range.
    Split {
        /// The range.
        range: RangeId,
        /// Its epoch when this was decided; absent: whatever it is.
        epoch: Option<Epoch>,
        /// The first keys of the further pieces, growing strictly.
        at: Vec<Key>,
    },
    /// Merge two neighbours on one shard.
    Merge {
        /// The range on the left and its epoch when this was decided.
        left: (RangeId, Epoch),
        /// The range on the right and its epoch when this was decided.
        right: (RangeId, Epoch),
    },
    /// Move a range.
    Move {
        /// The range.
        range: RangeId,
        /// Its epoch when this was decided; absent: whatever it is.
        epoch: Option<Epoch>,
        /// Where to.
        to: ShardId,
    },
}

/// What the balancer decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewDecision {
    /// One sentence with its figures.
    pub why: String,
    /// The imbalance before.
    pub imbalance_before: f64,
    /// The imbalance it expects after.
    pub imbalance_expected: f64,
    /// What else was considered, and why it was not done.
    pub alternatives: Vec<String>,
    /// What to do.
    pub actions: Vec<Action>,
}

/// What applying a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It took effect.
    Applied,
    /// It was so already.
    Unchanged,
    /// These operators have begun, at least one.
    Begun(Vec<OperatorId>),
    /// The table exists and is ready.
    TableReady(TableId),
    /// The key of the coordination store was changed.
    Kv(coordination::Written),
}

/// Why a command took no effect. The proposer tells its caller; nothing is to be retried unchanged, except where it says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such table.
    #[error("there is no table {0}")]
    UnknownTable(TableId),
    /// No such range.
    #[error("there is no range {0}")]
    UnknownRange(RangeId),
    /// No such shard.
    #[error("there is no shard {0}")]
    UnknownShard(ShardId),
    /// No such operator, or it is forgotten.
    #[error("there is no operator {0}")]
    UnknownOperator(OperatorId),
    /// The name is taken.
    #[error("a table named {0:?} exists")]
    TableExists(String),
    /// The table cannot be.
    #[error("{0}")]
    InvalidTable(String),
    /// Retry later: an operator works on the range.
    #[error("operator {operator} is working on range {range}")]
    RangeBusy {
        /// The range.
        range: RangeId,
        /// The operator.
        operator: OperatorId,
    },
    /// The range has changed since the command was made.
    #[error("range {range} has epoch {found}, not {expected}")]
    WrongEpoch {
        /// The range.
        range: RangeId,
        /// The epoch it has.
        found: Epoch,
        /// The epoch the command was made for.
        expected: Epoch,
    },
    /// The points to split at are none, not strictly growing, or not strictly inside the range.
    #[error("{0}")]
    BadSplit(String),
    /// The range is there already.
    #[error("range {range} is on shard {shard} already")]
    SameShard {
        /// The range.
        range: RangeId,
        /// The shard.
        shard: ShardId,
    },
    /// The shard is being emptied.
    #[error("shard {0} is draining")]
    Draining(ShardId),
    /// The shard was declared lost for good.
    #[error("shard {0} was declared lost for good; what is on its disks must not come back, use another number")]
    Lost(ShardId),
    /// The shard is not being emptied.
    #[error("shard {0} is not draining")]
    NotDraining(ShardId),
    /// Nothing would be left to drain to.
    #[error("shard {0} is the last active one")]
    LastShard(ShardId),
    /// The shard still has ranges or operators.
    #[error("shard {0} is not empty yet")]
    NotEmpty(ShardId),
    /// The two ranges are not neighbours on one shard.
    #[error("ranges {0} and {1} are not neighbours on one shard")]
    NotNeighbours(RangeId, RangeId),
    /// The operator is past the point where it can be cancelled (R20), or is none that can be.
    #[error("operator {operator} is at step {step} and can no longer be cancelled")]
    NotCancellable {
        /// The operator.
        operator: OperatorId,
        /// Where it is.
        step: &'static str,
    },
    /// The move is not known to be between its fence and its adoption, or is none.
    #[error("operator {operator} is at step {step}: nothing of it can be taken back")]
    NotFenced {
        /// The operator.
        operator: OperatorId,
        /// Where it is.
        step: &'static str,
    },
    /// The operator is over: nothing is left to cancel.
    #[error("operator {operator} is over already: {status}")]
    AlreadyOver {
        /// The operator.
        operator: OperatorId,
        /// How it ended.
        status: &'static str,
    },
    /// The operator is elsewhere by now; nothing to do.
    #[error("operator {operator} is at step {found}")]
    OtherStep {
        /// The operator.
        operator: OperatorId,
        /// Where it is.
        found: &'static str,
    },
    /// A limit is reached.
    #[error("{0}")]
    TooMany(String),
    /// Nothing of a decision is possible any more.
    #[error("nothing of this decision is possible any more: {0}")]
    NothingLeft(String),
    /// The routes are not later than what is known, or would leave a gap.
    #[error("{0}")]
    BadRoutes(String),
    /// Retry later: the state was restored from a backup, and not all shards have reported yet (R30).
    #[error("the state was restored from a backup and not all shards have told yet what they have")]
    Restoring,
    /// The coordination store refuses.
    #[error(transparent)]
    Kv(coordination::Refusal),
}
