//! What was used lately, by a statement's text: of bounded size, without a list to maintain on every use.
//!
//! New entries go into the young generation. When that is full it becomes the old one, and what was old is forgotten; what is found in the
//! old one is young again. So what is in use stays, however many texts come once.

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
    /// It is to be [put](Recent::put) again if it is used, or else it goes with its generation.
    Old(V),
}

impl<V: Clone> Recent<V> {
    /// Nothing yet, and at most so many entries, of which there are at least two.
    pub fn new(entries: usize) -> Recent<V> {
        Recent { young: HashMap::new(), old: HashMap::new(), generation: (entries / 2).max(1) }
    }

    /// What is kept for a text.
    pub fn get(&self, text: &str) -> Option<Found<V>> {
        match self.young.get(text) {
            Some(found) => Some(Found::Young(found.clone())),
            None => self.old.get(text).cloned().map(Found::Old),
        }
    }

    /// The same, and it is young from now on.
    pub fn take_up(&mut self, text: &Arc<str>) -> Option<V> {
        match self.get(text)? {
            Found::Young(found) => Some(found),
            Found::Old(found) => {
                self.put(text.clone(), found.clone());
                Some(found)
            }
        }
    }

    /// Keeps something for a text.
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

    // E18: texts that come once do not make those forgotten that come again and again.
    #[test]
    fn what_is_in_use_stays_and_the_rest_is_bounded() {
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
