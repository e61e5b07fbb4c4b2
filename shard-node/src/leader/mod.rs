//! The leader's side of a shard: executes users' statements and proposes the rows that they
//! changed.
//!
//! A [`Leader`] is one leadership on one server start (R1). It begins when the replica has applied
//! its own `LeaderStart` (invariant 4, log rule 8), and never outlives its term. [`Leader`] only
//! dispatches; its parts hold the state.
//!
//! | module | purpose |
//! |---|---|
//! | [`dispatch`] | [`Leader`]: entry point of statements, transactions and control requests |
//! | [`context`] | what all parts share: leadership, the replica's handles, end of the leadership on failures |
//! | [`leadership`] | proposals of the term and their outcomes |
//! | [`admission_control`] | limit of statements in flight; the others are rejected early |
//! | [`rate_limiter`] | statements per second of `--shard-capacity` |
//! | [`backpressure`] | slows writes down while a majority of replicas lags |
//! | [`statement`] | binding to plans, before execution |
//! | [`plan_cache`] | parsed and bound statements, by text |
//! | [`clip`] | the part of a statement's rows that a request asks for |
//! | [`latches`] | which statements may use which ranges now (R9), write blocks for fences |
//! | [`statement_ids`], `kept_replies` | one attempt per id, answers from the retry window (R14) |
//! | [`reads`] | autocommit reads: by key, whole scans, piece by piece |
//! | [`read_sessions`], [`scan_sessions`] | PostgreSQL sessions of reads |
//! | [`writes`] | autocommit writes |
//! | [`write_queue`], [`batch_budget`] | batches of statements on single rows (R10) |
//! | [`standalone`] | statements that run alone |
//! | [`row_locks`] | rows that are known to be locked, so that batches do not wait for them |
//! | [`group_commit`], [`batch_execution`], [`capture`], [`commit`] | one PostgreSQL transaction, one entry |
//! | [`claims`] | rows whose COMMIT is not confirmed yet (R4) |
//! | [`early_acknowledgement`] | answers at durability levels below `disk` (R28) |
//! | [`transactions`], [`open_transaction`], [`lost_commits`] | transactions of several statements |
//! | [`ended_transaction`], [`prepared_transactions`] | commits, also of transactions over several shards (R26) |
//! | [`pass_through`], [`raw_transaction`], [`item_stream`] | steps of transactions in users' own texts |
//! | `control_text`, `begin_text`, `prepared_texts` | savepoints and settings of such texts; which are prepared |
//! | `change_reports`, `reported_changes` | changes that triggers report (R7) |
//! | `pass_through_commit`, `entry_reading`, `read_back` | what such a transaction has changed, as an entry |
//! | [`session_pool`] | PostgreSQL sessions of transactions and of statements that run alone |
//! | [`postgres_session`] | one session with PostgreSQL: prepare, run, pipeline |
//! | [`raw_session`] | the same for users' own texts: messages as PostgreSQL sends them |
//! | [`warm_sessions`] | sessions that a follower opens ahead for its next leadership |
//! | [`range_control`], [`control_requests`] | requests of the placement driver |
//! | [`schema_changes`] | the trial of schema changes, and decided ones (R34) |
//! | `failures` | answers to statements that were not executed |
//!
//! Not done: `local` reads (`crate::local_reads`).

pub mod admission_control;
pub mod backpressure;
pub mod batch_budget;
pub mod batch_execution;
mod begin_text;
pub mod capture;
mod change_reports;
pub mod claims;
pub mod clip;
pub mod commit;
pub mod context;
pub mod control_requests;
mod control_text;
pub mod dispatch;
pub mod early_acknowledgement;
pub mod ended_transaction;
mod entry_reading;
pub(crate) mod failures;
pub mod group_commit;
pub mod item_stream;
pub mod job;
mod kept_replies;
mod latch_table;
pub mod latches;
pub mod leadership;
pub mod lost_commits;
pub mod open_transaction;
pub mod pass_through;
mod pass_through_commit;
pub mod plan_cache;
pub mod postgres_session;
mod prepared_texts;
pub mod prepared_transactions;
pub mod range_control;
mod range_latch;
pub mod rate_limiter;
pub mod raw_session;
pub mod raw_transaction;
mod read_back;
pub mod read_sessions;
pub mod reads;
mod recent;
mod reported_changes;
pub mod row_locks;
pub mod scan_sessions;
pub mod schema_changes;
pub mod session_pool;
pub mod standalone;
pub mod statement;
pub mod statement_ids;
pub mod transactions;
pub mod warm_sessions;
pub mod write_queue;
pub mod writes;

pub use crate::load::now_ms;
pub use dispatch::Leader;
