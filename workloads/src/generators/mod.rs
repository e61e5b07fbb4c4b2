//! Workload generators from published parameters.
//!
//! A generator is a [`KeyChooser`] (which key), an [`OperationMix`] (which operation), and two size
//! distributions (values and scans), driven by one seeded stream of random numbers. Everything is a
//! pure function of (parameters, seed, the times passed in): no clock, no global state.
//!
//! The table starts with the keys `0 .. rows` and inserts append the next key, as in YCSB with
//! ordered inserts. Where the *popular* keys lie in that interval is the chooser's business and is
//! what decides how hard balancing is: hot keys that lie together must be cut apart, scattered ones
//! only need the ranges to be counted right.
//!
//! Sources of the parameters:
//! - YCSB: Cooper et al., "Benchmarking cloud serving systems with YCSB", SoCC 2010, and its core
//!   workloads A to F.
//! - Zipfian draws below exponent 1: Gray et al., "Quickly generating billion-record synthetic
//!   databases", SIGMOD 1994.
//! - Zipf with any exponent: Hörmann and Derflinger, "Rejection-inversion to generate variates from
//!   monotone discrete distributions", TOMACS 1996.
//! - mixgraph: Cao et al., "Characterizing, modeling, and benchmarking RocksDB key-value workloads
//!   at Facebook", FAST 2020, with the parameters that RocksDB documents for its `mixgraph`
//!   benchmark.

mod generator;
pub mod hotspot;
mod key_chooser;
pub mod key_shares;
mod mixed;
pub mod mixgraph;
pub mod ycsb;
pub mod zipf;
pub mod zipfian;

pub use generator::{Endless, Generator};
pub use key_chooser::{KeyChooser, Uniform};
pub use mixed::{MixedGenerator, OperationMix, SizeDistribution};
