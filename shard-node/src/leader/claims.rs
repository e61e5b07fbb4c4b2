//! Claims: the rows that entries have written, between their proposal and the confirmation of their
//! COMMIT (R4).
//!
//! PostgreSQL releases the row locks of a transaction at COMMIT, before it confirms it. A statement
//! that gets such a lock may have seen a state that is lost with the COMMIT. It therefore waits
//! until the claim is released.
//!
//! Every write claims its rows, so claims must be cheap: one copy of each key, no copy for checks
//! and releases, and no notification if nobody waits.

use crate::log_entry::Change;
use crate::log_entry::image::Image;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::{Key, TableId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// See the module.
#[derive(Debug)]
pub struct Claims {
    claimed: Mutex<Claimed>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Claimed {
    /// Each key with the entry's serial.
    keys: HashMap<TableId, HashMap<Key, u64>>,
    /// The same of truncated tables: all of their keys.
    tables: HashMap<TableId, u64>,
    /// The leadership has ended, and nobody waits any more.
    closed: bool,
}

impl Claimed {
    fn are_free_for(&self, serial: u64, changes: &[Change]) -> bool {
        changes.iter().all(|change| {
            let keys = self.keys.get(&change.table);
            let free = match change.image {
                Image::Truncated => keys.is_none_or(|keys| keys.values().all(|owner| *owner == serial)),
                _ => keys.and_then(|keys| keys.get(&change.key)).is_none_or(|owner| *owner == serial),
            };
            free && (self.tables.is_empty() || self.tables.get(&change.table).is_none_or(|owner| *owner == serial))
        })
    }

    fn take(&mut self, serial: u64, changes: &[Change]) {
        for change in changes {
            match change.image {
                Image::Truncated => _ = self.tables.insert(change.table, serial),
                _ => _ = self.keys.entry(change.table).or_default().insert(change.key.clone(), serial),
            }
        }
    }

    fn release(&mut self, changes: &[Change]) {
        for change in changes {
            if change.image == Image::Truncated {
                self.tables.remove(&change.table);
            } else if let Some(keys) = self.keys.get_mut(&change.table) {
                keys.remove(&change.key);
            }
        }
    }
}

/// The leadership of the claims has ended.
#[derive(Debug)]
pub struct Closed;

impl Default for Claims {
    fn default() -> Claims {
        Claims { claimed: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Claims {
    fn claimed(&self) -> MutexGuard<'_, Claimed> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other entry has claimed one of these keys, then claims them for `serial`.
    ///
    /// # Errors
    /// The leadership has ended.
    pub async fn claim<'a>(&'a self, serial: u64, changes: &'a [Change]) -> Result<Claim<'a>, Closed> {
        self.once_free(serial, changes, |claimed| claimed.take(serial, changes)).await?;
        Ok(Claim { claims: self, changes })
    }

    /// The same for a transaction whose COMMIT is not awaited here.
    ///
    /// # Errors
    /// The leadership has ended.
    pub async fn claim_owned(self: &Arc<Self>, serial: u64, changes: Vec<Change>) -> Result<OwnedClaim, Closed> {
        self.once_free(serial, &changes, |claimed| claimed.take(serial, &changes)).await?;
        Ok(OwnedClaim { claims: self.clone(), changes })
    }

    fn release(&self, changes: &[Change]) {
        self.claimed().release(changes);
        if self.changed.receiver_count() > 0 {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Waits until no entry has claimed one of these keys.
    ///
    /// # Errors
    /// The leadership has ended.
    pub async fn confirmed(&self, changes: &[Change]) -> Result<(), Closed> {
        self.once_free(0, changes, |_| {}).await
    }

    async fn once_free(&self, serial: u64, changes: &[Change], then: impl Fn(&mut Claimed)) -> Result<(), Closed> {
        let mut changed: Option<watch::Receiver<u64>> = None;
        loop {
            {
                let mut claimed = self.claimed();
                if deliberate(Bug::NoClaim) || claimed.are_free_for(serial, changes) {
                    then(&mut claimed);
                    return Ok(());
                }
                if claimed.closed {
                    return Err(Closed);
                }
                // Under the lock, so that a later release notifies this waiter.
                changed.get_or_insert_with(|| self.changed.subscribe());
            }
            if let Some(changed) = &mut changed
                && changed.changed().await.is_err()
            {
                return Err(Closed);
            }
        }
    }

    /// The leadership has ended: releases all claims, and nobody waits any more.
    pub fn close(&self) {
        let mut claimed = self.claimed();
        claimed.closed = true;
        claimed.keys.clear();
        claimed.tables.clear();
        drop(claimed);
        self.changed.send_modify(|n| *n += 1);
    }
}

/// Claimed keys. Dropped when the COMMIT that wrote them is confirmed or rolled back.
#[derive(Debug)]
pub struct Claim<'a> {
    claims: &'a Claims,
    changes: &'a [Change],
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.release(self.changes);
    }
}

/// As [`Claim`], without a borrow.
#[derive(Debug)]
pub struct OwnedClaim {
    claims: Arc<Claims>,
    changes: Vec<Change>,
}

impl Drop for OwnedClaim {
    fn drop(&mut self) {
        self.claims.release(&self.changes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use futures::FutureExt;

    fn writes(keys: &[u8]) -> Vec<Change> {
        let change = |n: &u8| Change { table: TableId(1), key: Key(vec![*n].into()), image: Image::New(Bytes::new()) };
        keys.iter().map(change).collect()
    }

    /// Breaks if a statement can use a row before the COMMIT that wrote it is confirmed (R4), or if
    /// a claim outlives that.
    #[tokio::test]
    async fn rows_are_claimed_until_they_are_released() {
        let claims = Claims::default();
        let (first, second, other) = (writes(&[1, 2]), writes(&[2, 3]), writes(&[4]));
        let claim = claims.claim(1, &first).await.unwrap();
        let mut waiting = Box::pin(claims.claim(2, &second));
        assert!(waiting.as_mut().now_or_never().is_none(), "one of the two is claimed");
        assert!(claims.confirmed(&second).now_or_never().is_none());
        assert!(claims.claim(3, &other).now_or_never().is_some(), "another row");
        assert!(claims.confirmed(&other).now_or_never().is_some(), "that one was released");
        drop(claim);
        let claim = waiting.await.unwrap();
        assert!(claims.claim(1, &first).now_or_never().is_none());
        drop(claim);
        assert!(claims.claimed().keys.values().all(HashMap::is_empty), "nothing is left");
    }

    /// Breaks if a statement can use a row of a table whose truncation is not confirmed.
    #[tokio::test]
    async fn a_truncated_table_is_claimed_whole() {
        let claims = Claims::default();
        let (row, mut whole) = (writes(&[1]), writes(&[0]));
        whole[0].image = Image::Truncated;
        let claim = claims.claim(1, &row).await.unwrap();
        assert!(claims.claim(2, &whole).now_or_never().is_none());
        drop(claim);
        let claim = claims.claim(2, &whole).await.unwrap();
        assert!(claims.claim(1, &row).now_or_never().is_none());
        assert!(claims.claim(2, &row).now_or_never().is_some(), "its own");
        drop(claim);
        assert!(claims.claim(1, &row).now_or_never().is_some());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_leadership_that_has_ended() {
        let claims = Claims::default();
        let rows = writes(&[1]);
        std::mem::forget(claims.claim(1, &rows).await.unwrap());
        let mut waiting = Box::pin(claims.claim(2, &rows));
        assert!(waiting.as_mut().now_or_never().is_none());
        claims.close();
        // The log rejects its proposals.
        assert!(waiting.await.is_ok());
    }
}
