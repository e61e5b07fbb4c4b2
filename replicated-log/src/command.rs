//! What can arrive at the event loop: calls of the owner, reads of subscribers, and what the sessions bring.

use std::sync::Arc;
use std::sync::mpsc::{self, SendError};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::item::Kind;
use crate::membership::Membership;
use crate::transport::SessionEvent;
use crate::types::{BarrierError, Entry, LogIndex, Term};
use crate::wal::ReadPlan;

/// The answer to a subscriber that asked for entries which the ring no longer holds.
#[derive(Debug)]
pub(crate) enum OldEntries {
    /// Consecutive from the asked position; empty only if that is not decided.
    Entries(Vec<Entry>),
    /// Gone; the log begins behind this.
    Trimmed(LogIndex),
    /// On disk, to be read by who asked.
    OnDisk(ReadPlan),
}

/// One input of the event loop.
#[derive(Debug)]
pub(crate) enum Command {
    Propose {
        kind: Kind,
        term: Term,
        payload: Bytes,
        /// What was charged to the queue, given back when the event loop takes the proposal.
        charged_bytes: usize,
        /// Told when it is held in a quorum's memory (R28); dropped if that will not be known.
        held: Option<oneshot::Sender<()>>,
    },
    NewLeadership {
        current: Term,
    },
    Barrier(oneshot::Sender<Result<LogIndex, BarrierError>>),
    Read {
        from: LogIndex,
        max_bytes: usize,
        reply: oneshot::Sender<OldEntries>,
    },
    AskFresh,
    Compact(LogIndex),
    RetainFrom(Option<LogIndex>),
    Installed {
        index: LogIndex,
        term: Term,
    },
    TryLead,
    YieldLeadership,
    StandAside(bool),
    Session(SessionEvent),
    /// A replica of an older epoch, or of none, has greeted.
    Seen {
        replica: u64,
        store_id: u64,
    },
    /// A peer is in a newer epoch.
    NewerEpoch(Membership),
    Shutdown(oneshot::Sender<()>),
}

/// The way to the event loop. A loop that is a thread blocks on the channel; one that is a task, in a simulation, is woken.
#[derive(Clone, Debug)]
pub(crate) struct Commands {
    queue: mpsc::Sender<Command>,
    wake: Option<Arc<Notify>>,
}

impl Commands {
    pub(crate) fn new(queue: mpsc::Sender<Command>, wake: Option<Arc<Notify>>) -> Commands {
        Commands { queue, wake }
    }

    /// Queues a command, without blocking; an error if the event loop has ended.
    pub(crate) fn send(&self, command: Command) -> Result<(), SendError<Command>> {
        self.queue.send(command)?;
        if let Some(wake) = &self.wake {
            wake.notify_one();
        }
        Ok(())
    }
}
