//! Invariant 3: the replicas of a shard that are members in the end hold the same rows once all of
//! them have applied the whole log.

use crate::hardware::Hardware;
use crate::membership_model::MembershipModel;
use crate::topology::{Group, Part};
use std::collections::{BTreeMap, BTreeSet};

/// Differences, in words.
pub fn check(hardware: &Hardware, membership: &MembershipModel) -> Vec<String> {
    let mut shards: BTreeMap<Group, Vec<Part>> = BTreeMap::new();
    for part in membership.members().filter(|part| part.group() != Group::PlacementDriver) {
        shards.entry(part.group()).or_default().push(part);
    }
    let rows = |part: &Part| {
        let tables = hardware.postgres(part.machine()).tables();
        let users = tables.iter().filter(|(name, _)| !name.starts_with("evenkeel."));
        users.map(|(name, table)| (name.clone(), table.rows.clone())).collect::<Vec<_>>()
    };
    let mut wrong = Vec::new();
    for members in shards.values() {
        let Some((one, others)) = members.split_first() else { continue };
        let first = rows(one);
        for part in others {
            let other = rows(part);
            if other != first {
                let differs = first.iter().zip(&other).flat_map(|((name, a), (_, b))| {
                    let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
                    let differ = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
                    differ.map(move |key| format!("{name} {key:02x?}: {:?} and {:?}", a.get(key), b.get(key)))
                });
                let example = differs.take(2).collect::<Vec<_>>().join("; ");
                wrong.push(format!("{one:?} and {part:?} differ: {example}"));
            }
        }
    }
    wrong
}
