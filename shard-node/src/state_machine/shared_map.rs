//! An ordered map whose copies share memory.
//!
//! The state machine is published with every control entry, and stored while it changes. Copying it
//! must therefore cost nothing, and changing one entry must cost only that entry, at any size. A
//! copy is one reference. A change copies the nodes above it, about as many as the number of
//! entries has binary digits.
//!
//! The map is a tree balanced by weight: no side holds more than [`HEAVIER`] times as much as the
//! other. It is encoded as any ordered map is.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// How many times as heavy as the other a side may be, and from which ratio inside of the heavier
/// side on it is turned twice. These two are known to keep the balance with one repair on each
/// level.
const HEAVIER: usize = 3;
const TWICE: usize = 2;

type Link<K, V> = Option<Arc<Node<K, V>>>;

struct Node<K, V> {
    key: K,
    value: V,
    size: usize,
    left: Link<K, V>,
    right: Link<K, V>,
}

impl<K: Clone, V: Clone> Clone for Node<K, V> {
    fn clone(&self) -> Node<K, V> {
        #[cfg(test)]
        tests::COPIED.with(|copied| copied.set(copied.get() + 1));
        Node {
            key: self.key.clone(),
            value: self.value.clone(),
            size: self.size,
            left: self.left.clone(),
            right: self.right.clone(),
        }
    }
}

impl<K, V> Node<K, V> {
    fn measure(&mut self) {
        self.size = size(&self.left) + size(&self.right) + 1;
    }
}

/// See the module.
pub struct SharedMap<K, V> {
    root: Link<K, V>,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> SharedMap<K, V> {
        SharedMap { root: self.root.clone() }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> SharedMap<K, V> {
        SharedMap { root: None }
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        size(&self.root)
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let mut link = &self.root;
        while let Some(node) = link {
            link = match key.cmp(&node.key) {
                Ordering::Less => &node.left,
                Ordering::Greater => &node.right,
                Ordering::Equal => return Some(&node.value),
            };
        }
        None
    }

    /// Whether there is a value for the key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// The entry with the greatest key that is not above `key`.
    pub fn last_up_to(&self, key: &K) -> Option<(&K, &V)> {
        let (mut link, mut found) = (&self.root, None);
        while let Some(node) = link {
            if node.key <= *key {
                found = Some((&node.key, &node.value));
                link = &node.right;
            } else {
                link = &node.left;
            }
        }
        found
    }

    /// All entries, by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        let mut iter = Iter { above: Vec::new() };
        iter.descend(&self.root);
        iter
    }

    /// The entries from `key` on.
    pub fn iter_from(&self, key: &K) -> Iter<'_, K, V> {
        let mut iter = Iter { above: Vec::new() };
        let mut link = &self.root;
        while let Some(node) = link {
            if node.key < *key {
                link = &node.right;
            } else {
                iter.above.push(node);
                link = &node.left;
            }
        }
        iter
    }

    /// All values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.contains_key(key) {
            return None;
        }
        let mut link = &mut self.root;
        while let Some(node) = link {
            let node = Arc::make_mut(node);
            link = match key.cmp(&node.key) {
                Ordering::Less => &mut node.left,
                Ordering::Greater => &mut node.right,
                Ordering::Equal => return Some(&mut node.value),
            };
        }
        None
    }

    /// Sets a key's value.
    pub fn insert(&mut self, key: K, value: V) {
        insert(&mut self.root, key, value);
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &K) {
        if self.contains_key(key) {
            remove(&mut self.root, key);
        }
    }
}

fn size<K, V>(link: &Link<K, V>) -> usize {
    link.as_ref().map_or(0, |node| node.size)
}

fn weight<K, V>(link: &Link<K, V>) -> usize {
    size(link) + 1
}

fn insert<K: Ord + Clone, V: Clone>(link: &mut Link<K, V>, key: K, value: V) {
    let Some(top) = link else {
        *link = Some(Arc::new(Node { key, value, size: 1, left: None, right: None }));
        return;
    };
    let node = Arc::make_mut(top);
    match key.cmp(&node.key) {
        Ordering::Less => insert(&mut node.left, key, value),
        Ordering::Greater => insert(&mut node.right, key, value),
        Ordering::Equal => node.value = value,
    }
    balance(top);
}

fn remove<K: Ord + Clone, V: Clone>(link: &mut Link<K, V>, key: &K) {
    let Some(top) = link else { return };
    let node = Arc::make_mut(top);
    match key.cmp(&node.key) {
        Ordering::Less => remove(&mut node.left, key),
        Ordering::Greater => remove(&mut node.right, key),
        Ordering::Equal => {
            let (left, mut right) = (node.left.take(), node.right.take());
            *link = match take_first(&mut right) {
                None => left,
                Some((key, value)) => Some(Arc::new(Node { key, value, size: 1, left, right })),
            };
        }
    }
    if let Some(top) = link {
        balance(top);
    }
}

fn take_first<K: Ord + Clone, V: Clone>(link: &mut Link<K, V>) -> Option<(K, V)> {
    let top = link.as_mut()?;
    let node = Arc::make_mut(top);
    match take_first(&mut node.left) {
        Some(first) => {
            balance(top);
            Some(first)
        }
        None => {
            let first = (node.key.clone(), node.value.clone());
            *link = node.right.take();
            Some(first)
        }
    }
}

/// Repairs a node, one of whose sides has changed by one entry.
fn balance<K: Ord + Clone, V: Clone>(top: &mut Arc<Node<K, V>>) {
    let node = Arc::make_mut(top);
    node.measure();
    if weight(&node.right) > HEAVIER * weight(&node.left) {
        if let Some(right) = &mut node.right
            && weight(&right.left) >= TWICE * weight(&right.right)
        {
            turn_right(right);
        }
        turn_left(top);
    } else if weight(&node.left) > HEAVIER * weight(&node.right) {
        if let Some(left) = &mut node.left
            && weight(&left.right) >= TWICE * weight(&left.left)
        {
            turn_left(left);
        }
        turn_right(top);
    }
}

/// The right side comes to the top.
fn turn_left<K: Ord + Clone, V: Clone>(top: &mut Arc<Node<K, V>>) {
    let node = Arc::make_mut(top);
    let Some(mut right) = node.right.take() else { return };
    node.right = Arc::make_mut(&mut right).left.take();
    node.measure();
    let left = std::mem::replace(top, right);
    let node = Arc::make_mut(top);
    node.left = Some(left);
    node.measure();
}

/// The left side comes to the top.
fn turn_right<K: Ord + Clone, V: Clone>(top: &mut Arc<Node<K, V>>) {
    let node = Arc::make_mut(top);
    let Some(mut left) = node.left.take() else { return };
    node.left = Arc::make_mut(&mut left).right.take();
    node.measure();
    let right = std::mem::replace(top, left);
    let node = Arc::make_mut(top);
    node.right = Some(right);
    node.measure();
}

/// Entries by key.
pub struct Iter<'a, K, V> {
    /// Nodes that come with everything to the right of them, the next one last.
    above: Vec<&'a Node<K, V>>,
}

impl<'a, K, V> Iter<'a, K, V> {
    fn descend(&mut self, mut link: &'a Link<K, V>) {
        while let Some(node) = link {
            self.above.push(node);
            link = &node.left;
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<(&'a K, &'a V)> {
        let node = self.above.pop()?;
        self.descend(&node.right);
        Some((&node.key, &node.value))
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> SharedMap<K, V> {
        let mut map = SharedMap::default();
        entries.into_iter().for_each(|(key, value)| map.insert(key, value));
        map
    }
}

impl<K: Ord + PartialEq, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &SharedMap<K, V>) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Serialize, V: Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Counted(self.iter(), self.len()))
    }
}

/// Entries whose number is known, as some encodings want it first.
struct Counted<'a, K, V>(Iter<'a, K, V>, usize);

impl<'a, K, V> Iterator for Counted<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<(&'a K, &'a V)> {
        self.1 = self.1.saturating_sub(1);
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.1, Some(self.1))
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, V: Clone + Deserialize<'de>> Deserialize<'de> for SharedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SharedMap<K, V>, D::Error> {
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

struct Entries<K, V>(PhantomData<(K, V)>);

impl<'de, K: Ord + Clone + Deserialize<'de>, V: Clone + Deserialize<'de>> Visitor<'de> for Entries<K, V> {
    type Value = SharedMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<SharedMap<K, V>, A::Error> {
        let mut map = SharedMap::default();
        while let Some((key, value)) = access.next_entry()? {
            map.insert(key, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::collections::BTreeMap;

    thread_local! {
        /// Nodes that this thread has copied.
        pub static COPIED: Cell<u64> = const { Cell::new(0) };
    }

    /// The levels below a link; fails where it is out of balance or order.
    fn levels(link: &Link<u16, u16>) -> usize {
        let Some(node) = link else { return 0 };
        let (left, right) = (&node.left, &node.right);
        assert_eq!(node.size, size(left) + size(right) + 1);
        assert!(weight(left) <= HEAVIER * weight(right) && weight(right) <= HEAVIER * weight(left), "out of balance");
        assert!(left.as_ref().is_none_or(|left| left.key < node.key));
        assert!(right.as_ref().is_none_or(|right| right.key > node.key));
        1 + levels(left).max(levels(right))
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map_whose_copies_stay_as_they_were(steps in prop::collection::vec((any::<bool>(), 0..200_u16), 0..600)) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for (n, (insert, key)) in steps.into_iter().enumerate() {
                if n % 50 == 0 {
                    copies.push((map.clone(), model.clone()));
                }
                if insert {
                    map.insert(key, n as u16);
                    model.insert(key, n as u16);
                } else {
                    map.remove(&key);
                    model.remove(&key);
                }
                levels(&map.root);
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(map.last_up_to(&key), model.range(..=key).next_back());
            }
            copies.push((map, model));
            for (map, model) in copies {
                prop_assert_eq!(map.len(), model.len());
                prop_assert!(map.iter().eq(model.iter()));
                prop_assert!(map.iter_from(&77).eq(model.range(77..)));
                let encoded = postcard::to_stdvec(&map).unwrap();
                prop_assert_eq!(&encoded, &postcard::to_stdvec(&model).unwrap());
                prop_assert_eq!(postcard::from_bytes::<SharedMap<u16, u16>>(&encoded).unwrap(), map);
            }
        }
    }

    #[test]
    fn a_change_copies_few_nodes_however_many_there_are() {
        let mut map: SharedMap<u16, u16> = (0..50_000).map(|n| (n, n)).collect();
        assert!(levels(&map.root) <= 2 * 16);
        for n in 0..1_000_u16 {
            let before = (map.clone(), COPIED.get());
            match n % 3 {
                0 => map.remove(&(n * 37)),
                1 => map.insert(n * 37, 0),
                _ => *map.get_mut(&(n * 37)).unwrap() += 1,
            }
            assert!(COPIED.get() - before.1 <= 2 * 16 + 8, "{} nodes for one change", COPIED.get() - before.1);
        }
    }
}
