//! How far a replica that is re-seeded may apply its log while pieces are under way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// See the module. A request for a piece holds the position that the piece will reach at least;
/// nothing behind the lowest one held is applied.
#[derive(Debug)]
pub struct Limit {
    /// How many hold each position.
    held: Mutex<BTreeMap<u64, usize>>,
    lowest: watch::Sender<u64>,
}

impl Default for Limit {
    fn default() -> Limit {
        Limit { held: Mutex::default(), lowest: watch::Sender::new(u64::MAX) }
    }
}

/// Holds a position until it is dropped.
#[derive(Debug)]
pub struct Held {
    limit: Arc<Limit>,
    position: u64,
}

impl Limit {
    /// From now on nothing behind `position` is applied.
    pub fn hold(self: &Arc<Self>, position: u64) -> Held {
        self.change(|held| *held.entry(position).or_default() += 1);
        Held { limit: self.clone(), position }
    }

    /// The last position that may be applied, as it changes; `u64::MAX` while nothing is held.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.lowest.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, usize>)) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut held);
        let lowest = held.keys().next().copied().unwrap_or(u64::MAX);
        self.lowest.send_if_modified(|known| std::mem::replace(known, lowest) != lowest);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.limit.change(|held| {
            if let Some(count) = held.get_mut(&self.position) {
                *count -= 1;
                if *count == 0 {
                    held.remove(&self.position);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_position_that_anybody_holds_is_the_limit() {
        let limit = Arc::new(Limit::default());
        let watch = limit.watch();
        assert_eq!(*watch.borrow(), u64::MAX);
        let (first, second, third) = (limit.hold(7), limit.hold(5), limit.hold(5));
        assert_eq!(*watch.borrow(), 5);
        drop(second);
        assert_eq!(*watch.borrow(), 5);
        drop(third);
        assert_eq!(*watch.borrow(), 7);
        drop(first);
        assert_eq!(*watch.borrow(), u64::MAX);
    }
}
