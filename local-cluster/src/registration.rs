//! The body of `POST /v1/shards`, which registers a shard with the placement driver.

use evenkeel_protocol::api::ShardBody;
use evenkeel_protocol::routing::ShardInfo;

/// The body that registers a shard. The placement driver ignores all fields but `info`.
pub fn shard_body(info: ShardInfo) -> ShardBody {
    ShardBody {
        info,
        status: String::new(),
        leader: None,
        ranges: 0,
        statements_per_s: 0.0,
        capacity_per_s: None,
        report_age_ms: None,
        clock_off_ms: None,
        replicas_seen: Vec::new(),
        scrub: None,
    }
}
