//! A shard's replica: stock PostgreSQL, kept identical with its peers through a replicated log.
//!
//! The leader executes users' statements in its own PostgreSQL and proposes the rows they changed; once the log has decided an entry the leader
//! commits and answers, and the followers apply the row images. Ranges come and go by entries of the same log.
//!
//! | module | what it holds | decides or does |
//! |---|---|---|
//! | [`entry`] | what the log carries | values |
//! | [`image`] | what a change says of its row, and what several come to | decides, purely |
//! | [`parts`] | entries larger than the log takes at once | decides, purely |
//! | [`fold`] | what a prefix of the log means: ownership, moves, the retry window | decides, purely |
//! | [`load`] | load and where in a range it falls | decides, purely |
//! | [`progress`] | how far PostgreSQL has followed | values |
//! | [`leader`] | executing statements | does |
//! | [`apply`] | following the log | does |
//! | [`migration`] | moving ranges | does |
//! | [`housekeeping`] | what a leadership does by itself | does |
//! | [`scrub`] | comparing what the replicas hold | decides, and does |
//! | [`checks`], [`report`] | what was checked of moves, reports | does |
//! | [`engine`], [`postgres`], [`store`] | the server, and what a replica keeps in it | does |
//! | [`transfer`] | getting whole again from a peer | does |
//! | [`members`] | who the replicas are, and how that changes | does |
//! | [`supervision`] | getting PostgreSQL up again, and when the replica may lead | does |
//! | [`connection`] | a client connection's transactions | decides, purely |
//! | [`service`], [`node`] | the RPC service and the process | does |

pub mod apply;
pub mod checks;
pub mod config;
pub mod connection;
pub mod engine;
pub mod entry;
pub mod fold;
pub mod housekeeping;
pub mod image;
pub mod leader;
pub mod load;
pub mod local;
pub mod members;
pub mod migration;
pub mod node;
pub mod parts;
pub mod postgres;
pub mod progress;
pub mod report;
pub mod scrub;
pub mod service;
pub mod sizes;
pub mod store;
pub mod supervision;
mod table_definition;
pub mod transfer;

pub use config::Config;
pub use node::{RunError, run};
