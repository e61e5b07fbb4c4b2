//! Maintenance: the work that a leader does without being asked.
//!
//! | module | does |
//! |---|---|
//! | `leadership_tasks` | runs the tasks below for as long as a leadership lasts |
//! | `move_driver` | drives moves that come in, asks for the outcome of fenced moves, starts deletions |
//! | `purge` | begins the deletion of an orphaned copy |
//! | `range_sizes` | corrects the sizes of ranges from samples |
//! | `repair` | repairs replicas that have lost their disks |
//! | `report`, `reporting` | builds reports, and delivers them to the placement driver |
//! | `transactions_in_doubt` | ends transactions over several shards whose clients do not (R26) |
//!
//! Maintenance owns no state that outlives a leadership. Everything follows from the state machine:
//! a new leader reads it and continues. Every entry that maintenance proposes is idempotent,
//! because an earlier leader may have proposed it too.
//!
//! Not done: the decision what to move, split or merge; the placement driver makes it.

mod leadership_tasks;
mod move_driver;
mod purge;
mod range_sizes;
mod repair;
mod report;
mod reporting;
mod transactions_in_doubt;

pub use leadership_tasks::leadership_tasks;
pub use move_driver::resolve_move;
pub use purge::purge;
pub use report::build_report;
