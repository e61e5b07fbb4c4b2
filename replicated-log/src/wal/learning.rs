//! Decided items that come from elsewhere than OmniPaxos: see `core::catch_up`, which says why this is safe.

use crate::item::Item;

use super::{Disk, Wal, WalError};

impl<D: Disk> Wal<D> {
    /// Takes in decided items from `first` on. Accepted items that agree with them stay, and with them what lies behind (unless `keep`
    /// is false, for a test); from the first that does not the log is given up. Says whether more is decided than before: not
    /// if all of them were, nor if there is a gap.
    ///
    /// # Errors
    /// A failing or damaged disk: fatal.
    pub(crate) fn learn(&mut self, first: u64, mut items: Vec<Item>, keep: bool) -> Result<bool, WalError> {
        let decided = self.meta.decided;
        let Some(known) = decided.checked_sub(first).filter(|known| *known < items.len() as u64) else {
            return Ok(false);
        };
        items.drain(..known as usize);
        let learned = decided + items.len() as u64;
        let accepted = self.read(decided, learned, usize::MAX)?;
        let agreed = accepted.iter().zip(&items).take_while(|(accepted, item)| accepted == item).count();
        if agreed < items.len() {
            self.replace_suffix(decided + agreed as u64, items.split_off(agreed));
        } else if !keep {
            self.cut(learned);
        }
        self.set_decided(learned);
        Ok(true)
    }
}
