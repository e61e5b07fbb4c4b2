//! Subscriptions: readers of decided entries.
//!
//! A [`Subscription`] pulls entries from the ring while it keeps up. When it has fallen behind the
//! ring it asks the event loop where the entries are and reads them itself, on another thread, each
//! record once. A slow consumer therefore costs nothing but its own delay, and memory stays bounded
//! without a queue per consumer.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::command::{Command, Commands};
use crate::entry::{Delivery, Entry};
use crate::error::LogStopped;
use crate::fatal;
use crate::ids::LogIndex;
use crate::old_entries::OldEntries;
use crate::published::{Published, Tip};
use crate::ring::entry_bytes;
use crate::wal::WalError;

/// A reader of decided entries, in order, from a chosen position on.
///
/// Several subscriptions can run side by side; each has its own position. Dropping one frees
/// everything.
#[derive(Debug)]
pub struct Subscription {
    next: LogIndex,
    published: Arc<Published>,
    tip: watch::Receiver<Tip>,
    commands: Commands,
    read_bytes: usize,
    /// Read and not delivered yet; the first one is at `next`.
    ahead: VecDeque<Entry>,
    /// Kept here, so that a caller that cancels `next` finds it again.
    asked: Option<oneshot::Receiver<OldEntries>>,
    reading: Option<JoinHandle<Result<Vec<Entry>, WalError>>>,
}

impl Subscription {
    pub(crate) fn new(
        from: LogIndex,
        published: Arc<Published>,
        commands: Commands,
        read_bytes: usize,
    ) -> Subscription {
        let tip = published.tip.subscribe();
        let next = from.max(LogIndex(1));
        let (ahead, asked, reading) = (VecDeque::new(), None, None);
        Subscription { next, published, tip, commands, read_bytes, ahead, asked, reading }
    }

    /// The position of the next entry to be delivered.
    pub fn position(&self) -> LogIndex {
        self.next
    }

    /// Waits for decided entries and takes at least one and about `max_bytes` of them.
    ///
    /// Cancel-safe: dropping the future loses nothing. After [`Delivery::NeedState`] the
    /// subscription stays where it is; make a new one behind the installed state.
    ///
    /// # Errors
    /// [`LogStopped`] once the log has shut down.
    pub async fn next(&mut self, max_bytes: usize) -> Result<Delivery, LogStopped> {
        loop {
            let tip = *self.tip.borrow_and_update();
            if tip.stopped {
                return Err(LogStopped);
            }
            if self.next > tip.decided {
                self.tip.changed().await.map_err(|_| LogStopped)?;
                continue;
            }
            if let Some(entries) = self.take_ahead(max_bytes) {
                return Ok(self.advance(entries));
            }
            if let Some(reading) = &mut self.reading {
                let read = reading.await;
                self.reading = None;
                match read {
                    Ok(Ok(entries)) => self.ahead = entries.into(),
                    // Log rule 13.
                    Ok(Err(error)) => fatal::abort_on(&error),
                    Err(_) => return Err(LogStopped),
                }
                continue;
            }
            let recent = self.published.recent(self.next, max_bytes);
            if let Some(entries) = recent {
                self.asked = None;
                return Ok(self.advance(entries));
            }
            let answer = match &mut self.asked {
                Some(asked) => asked.await,
                None => {
                    let (reply, answer) = oneshot::channel();
                    let read = Command::Read { from: self.next, max_bytes: self.read_bytes, reply };
                    self.commands.send(read).map_err(|_| LogStopped)?;
                    self.asked.insert(answer).await
                }
            };
            self.asked = None;
            match answer.map_err(|_| LogStopped)? {
                OldEntries::Entries(entries) if entries.is_empty() => {
                    return Err(LogStopped); // decided entries are always readable; only a stop explains this
                }
                OldEntries::Entries(entries) => self.ahead = entries.into(),
                OldEntries::OnDisk(plan) => self.reading = Some(tokio::task::spawn_blocking(move || plan.read())),
                OldEntries::Trimmed(trimmed) => {
                    return Ok(Delivery::NeedState { trimmed, leader: self.published.leader() });
                }
            }
        }
    }

    /// At least one and about `max_bytes` of the entries read ahead.
    fn take_ahead(&mut self, max_bytes: usize) -> Option<Vec<Entry>> {
        let mut bytes = 0;
        let fitting = self.ahead.iter().take_while(|entry| {
            bytes += entry_bytes(entry);
            bytes <= max_bytes
        });
        let count = fitting.count().max(1).min(self.ahead.len());
        (count > 0).then(|| self.ahead.drain(..count).collect())
    }

    fn advance(&mut self, entries: Vec<Entry>) -> Delivery {
        if let Some(last) = entries.last() {
            self.next = last.index.next();
        }
        Delivery::Entries(entries)
    }
}
