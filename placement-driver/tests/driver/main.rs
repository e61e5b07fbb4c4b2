//! The placement driver over real sockets: three replicas with a real log, and fake shards. All
//! tests are one program, so that their common parts are built once.
#![allow(clippy::unwrap_used)]

mod api;
mod cluster;
mod coordination;
mod failover;
mod schema;
