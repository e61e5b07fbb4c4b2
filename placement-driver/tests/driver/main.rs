//! The placement driver over real sockets: three replicas with their real log, and shards that are played. One program: what all of them
//! need is built once.
#![allow(clippy::unwrap_used)]

mod cluster;
mod failover;
mod kv;
mod rest;
