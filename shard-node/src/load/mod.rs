//! Load and size of ranges, as the leader measures them and reports them to the placement driver.
//!
//! | module | contents |
//! |---|---|
//! | [`clock`] | the clock of measurements |
//! | [`meter`] | rates, load sketch and hot keys of one range; pure |
//! | [`size`] | sizes of ranges that a shard has handed over and may take back |
//! | [`range_statistics`] | meter and size of one range, through splits and merges |
//!
//! The module promises that splits and merges preserve the totals: the pieces of a range report the
//! load and the size of the whole, divided.
//!
//! Not done: corrections of inexact sizes by sampling (`crate::sizes`), and the report itself
//! (`crate::report`).

pub mod clock;
pub mod meter;
pub mod range_statistics;
pub mod size;

pub use clock::now_ms;
pub use meter::{COMPRESSED_POINTS, HALF_LIFE_MS, MAX_POINTS, RangeMeter};
pub use range_statistics::RangeStatistics;
