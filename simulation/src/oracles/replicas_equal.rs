//! Invariant 3: a replica is a fold of its log, so the replicas of a shard hold the same rows once all have applied all of it.

use crate::world::{Hardware, Part, REPLICAS};
use evenkeel_protocol::ShardId;

/// What differs, in words.
pub fn check(hardware: &Hardware, shards: u32) -> Vec<String> {
    let mut wrong = Vec::new();
    for shard in 1..=shards {
        let rows = |replica| {
            let tables = hardware.engine(Part::Shard(ShardId(shard), replica).machine()).tables();
            let users = tables.iter().filter(|(name, _)| !name.starts_with("evenkeel."));
            users.map(|(name, table)| (name.clone(), table.rows.clone())).collect::<Vec<_>>()
        };
        let first = rows(1);
        for replica in 2..=REPLICAS {
            let other = rows(replica);
            if other != first {
                let differs = first.iter().zip(&other).flat_map(|((name, a), (_, b))| {
                    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
                    let differ = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
                    differ.map(move |key| format!("{name} {key:02x?}: {:?} and {:?}", a.get(key), b.get(key)))
                });
                let example = differs.take(2).collect::<Vec<_>>().join("; ");
                wrong.push(format!("shard {shard}: replicas 1 and {replica} differ: {example}"));
            }
        }
    }
    wrong
}
