//! `bench`: measurements of Evenkeel beside a reference on the same machine and in the same run.
//!
//! Measurements alternate between the two systems, both running and the other one idle, so that a
//! drift of the machine affects both. The median of the rounds counts. A measurement whose goal is
//! missed is reported, and `bench failover` and `bench size` then fail.
//!
//! | module | what it holds |
//! |---|---|
//! | [`single_rows`] | `bench`: single-row statements beside PostgreSQL, and route lookups beside nginx |
//! | [`failover`] | `bench failover`: for how long the failure of a leader stops writes |
//! | [`size`] | `bench size`: gigabytes loaded, moved, read and recovered |
//! | [`row_tables`] | the same table on both systems |
//! | [`closed_loop`] | clients with one operation in flight each |
//! | [`plain`] | PostgreSQL with two streaming standbys, of which one must confirm |
//! | [`routes`] | nginx and wrk |
//! | [`comparison`] | measurements and their ratios (pure) |

pub mod closed_loop;
pub mod comparison;
pub mod failover;
pub mod plain;
pub mod routes;
pub mod row_tables;
pub mod single_rows;
pub mod size;

pub use single_rows::{bench, settings};
