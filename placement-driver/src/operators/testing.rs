//! Reports, shared by tests.
#![allow(clippy::unwrap_used)]

use evenkeel_protocol::report::{HighestNumbers, OperatorReport, RangeLoad, RangeReport, RangeState, ShardReport};
use evenkeel_protocol::{Epoch, KeyInterval, RangeId, ShardId, TableId};

/// A report without ranges.
pub fn report(shard: u32, sequence: u64, operators: Vec<OperatorReport>) -> ShardReport {
    ShardReport {
        shard: ShardId(shard),
        leader: 1,
        term: 1,
        sequence,
        applied: 0,
        clock_ms: 0,
        replicas: Vec::new(),
        members: None,
        capacity_per_s: None,
        ranges: Vec::new(),
        operators,
        highest: HighestNumbers::default(),
        tables: None,
        scrub: Default::default(),
        schema: Default::default(),
    }
}

/// A report that names one owned range of table 1.
pub fn owned_report(shard: u32, sequence: u64, id: RangeId, epoch: u64, interval: KeyInterval) -> ShardReport {
    let range = RangeReport {
        id,
        epoch: Epoch(epoch),
        table: TableId(1),
        interval,
        state: RangeState::Owned,
        load: RangeLoad::default(),
    };
    ShardReport { ranges: vec![range], ..report(shard, sequence, Vec::new()) }
}
