//! Deterministic simulation of the whole system.
//!
//! The code of the shards, the placement driver, the log and their connections runs here as it runs for users, as tasks on machines that
//! a seed drives: a network that delays, cuts and breaks, disks that forget what was not synced, clocks that drift, database servers that
//! lose what they had not flushed, processes that die, freeze and come back. Clients work, ranges split, merge and move meanwhile. First
//! everything is hurt, and safety is checked; then everything is healed, and it must recover. A seed gives the same run every time.
//!
//! | module | what it holds |
//! |---|---|
//! | [`process`] | the process's clocks and randomness |
//! | [`machine`] | a process on a machine, stepped |
//! | [`net`] | connections |
//! | [`engine`] | a database server in memory |
//! | [`world`] | the cluster and the passing of time |
//! | [`weather`] | faults |
//! | [`clients`] | what users do, and what they saw |
//! | [`operators`] | splits, merges, moves and drains asked for |
//! | [`changes`] | changes of membership asked for |
//! | [`site`] | who is a member, who comes and goes |
//! | [`oracles`] | what must hold, one per file |

pub mod changes;
pub mod clients;
pub mod engine;
pub mod machine;
pub mod net;
pub mod operators;
pub mod oracles;
pub mod process;
pub mod site;
pub mod weather;
pub mod world;
