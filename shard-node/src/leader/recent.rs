//! A cache by statement text, of bounded size, that approximates least-recently-used replacement
//! with two generations.
//!
//! New entries go into the young generation. When it is full it becomes the old generation, and the
//! previous old generation is dropped. An entry that is found in the old generation becomes young
//! again. So entries in use stay in the cache, however many texts are used once.

use std::collections::HashMap;
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub struct Recent<V> {
    young: HashMap<Arc<str>, V>,
    old: HashMap<Arc<str>, V>,
    generation: usize,
}

/// Where an entry was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<V> {
    /// It stays.
    Young(V),
    /// It has to be [put](Recent::put) again if it is used. Otherwise it is dropped with its
    /// generation.
    Old(V),
}

impl<V: Clone> Recent<V> {
    /// An empty cache of at most `entries` entries, at least two.
    pub fn new(entries: usize) -> Recent<V> {
        Recent { young: HashMap::new(), old: HashMap::new(), generation: (entries / 2).max(1) }
    }

    /// The entry of a text.
    pub fn get(&self, text: &str) -> Option<Found<V>> {
        match self.young.get(text) {
            Some(found) => Some(Found::Young(found.clone())),
            None => self.old.get(text).cloned().map(Found::Old),
        }
    }

    /// The same; the entry becomes young.
    pub fn take_up(&mut self, text: &Arc<str>) -> Option<V> {
        match self.get(text)? {
            Found::Young(found) => Some(found),
            Found::Old(found) => {
                self.put(text.clone(), found.clone());
                Some(found)
            }
        }
    }

    /// Adds the entry of a text.
    pub fn put(&mut self, text: Arc<str>, value: V) {
        self.old.remove(&text);
        self.young.insert(text, value);
        if self.young.len() >= self.generation {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // E18: texts that are used once do not displace those that are used again and again.
    #[test]
    fn entries_in_use_stay_and_the_size_is_bounded() {
        let mut recent = Recent::new(8);
        let text = |n: usize| -> Arc<str> { format!("SELECT {n}").into() };
        recent.put(text(0), 0);
        for n in 1..1_000 {
            recent.put(text(n), n);
            assert_eq!(recent.take_up(&text(0)), Some(0), "after {n} others");
            assert!(recent.young.len() + recent.old.len() <= 8);
        }
        assert_eq!(recent.get(&text(1)), None);
    }
}
