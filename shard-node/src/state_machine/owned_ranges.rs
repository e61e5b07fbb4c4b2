//! The ranges that a shard owns: by key, by id, and which keys the last control entry gave or took.

use super::refusal::{EntryRefusal, refuse};
use super::shared_map::SharedMap;
use evenkeel_protocol::{Epoch, Key, KeyInterval, RangeId, TableId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A range that this shard owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedRange {
    /// Its id.
    pub id: RangeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub interval: KeyInterval,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnedRanges {
    tables: SharedMap<TableId, SharedMap<Key, OwnedRange>>,
    /// Where each range is.
    places: SharedMap<RangeId, (TableId, Key)>,
    /// What the last control entry gave or took: belongs to the entry, so that it is neither
    /// compared nor stored.
    changed: Vec<(TableId, KeyInterval)>,
}

impl OwnedRanges {
    /// All of them, by table and key.
    pub(super) fn iter(&self) -> impl Iterator<Item = &OwnedRange> {
        self.tables.values().flat_map(SharedMap::values)
    }

    /// The one that holds the key.
    pub(super) fn at(&self, table: TableId, key: &Key) -> Option<&OwnedRange> {
        let (_, range) = self.tables.get(&table)?.last_up_to(key)?;
        range.interval.contains(key).then_some(range)
    }

    /// One by its id.
    pub(super) fn get(&self, id: RangeId) -> Option<&OwnedRange> {
        let (table, start) = self.places.get(&id)?;
        self.tables.get(table)?.get(start)
    }

    /// The range, if it is owned at this epoch.
    pub(super) fn expect(&self, id: RangeId, epoch: Epoch) -> Result<OwnedRange, EntryRefusal> {
        match self.get(id) {
            None => refuse("no-such-range", format!("range {id} is not owned here")),
            Some(range) if range.epoch != epoch => {
                refuse("wrong-epoch", format!("range {id} is at epoch {}, not {epoch}", range.epoch))
            }
            Some(range) => Ok(range.clone()),
        }
    }

    /// Those that share keys with `interval`, by key.
    pub(super) fn overlapping<'a>(
        &'a self,
        table: TableId,
        interval: &'a KeyInterval,
    ) -> impl Iterator<Item = &'a OwnedRange> {
        // The first one may begin before the interval does.
        let first = self.at(table, &interval.start).map_or(&interval.start, |range| &range.interval.start);
        let ranges = self.tables.get(&table).map(|ranges| ranges.iter_from(first));
        let before_end = |range: &&OwnedRange| interval.end.as_ref().is_none_or(|end| range.interval.start < *end);
        ranges
            .into_iter()
            .flatten()
            .map(|(_, range)| range)
            .take_while(before_end)
            .filter(|range| range.interval.overlaps(interval))
    }

    /// Another control entry is about to be applied.
    pub(super) fn begin(&mut self) {
        self.changed.clear();
    }

    /// What has been given or taken since.
    pub(super) fn changed(&self) -> &[(TableId, KeyInterval)] {
        &self.changed
    }

    pub(super) fn add(&mut self, range: OwnedRange) {
        debug_assert!(self.overlapping(range.table, &range.interval).next().is_none(), "one owner per key");
        self.changed.push((range.table, range.interval.clone()));
        self.places.insert(range.id, (range.table, range.interval.start.clone()));
        if !self.tables.contains_key(&range.table) {
            self.tables.insert(range.table, SharedMap::default());
        }
        if let Some(ranges) = self.tables.get_mut(&range.table) {
            ranges.insert(range.interval.start.clone(), range);
        }
    }

    pub(super) fn remove(&mut self, range: &OwnedRange) {
        self.changed.push((range.table, range.interval.clone()));
        self.places.remove(&range.id);
        if let Some(ranges) = self.tables.get_mut(&range.table) {
            ranges.remove(&range.interval.start);
        }
    }
}

impl PartialEq for OwnedRanges {
    fn eq(&self, other: &OwnedRanges) -> bool {
        self.tables == other.tables
    }
}

impl Serialize for OwnedRanges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.tables.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for OwnedRanges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OwnedRanges, D::Error> {
        let tables = SharedMap::<TableId, SharedMap<Key, OwnedRange>>::deserialize(deserializer)?;
        let mut owned = OwnedRanges { tables, ..OwnedRanges::default() };
        owned.places = owned.iter().map(|range| (range.id, (range.table, range.interval.start.clone()))).collect();
        Ok(owned)
    }
}
