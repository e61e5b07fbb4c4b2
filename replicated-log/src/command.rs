//! Inputs of the event loop: calls of the owner, reads of subscribers, and events of sessions.

use std::sync::Arc;
use std::sync::mpsc::{self, SendError};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::error::BarrierError;
use crate::ids::{LogIndex, Term};
use crate::item::Kind;
use crate::membership::Membership;
use crate::old_entries::OldEntries;
use crate::transport::SessionEvent;

/// One input of the event loop.
#[derive(Debug)]
pub(crate) enum Command {
    Propose {
        kind: Kind,
        term: Term,
        payload: Bytes,
        /// Bytes charged to the queue until the event loop takes the proposal.
        charged_bytes: usize,
        /// Notified by the memory acknowledgement (R28); dropped if there will be none.
        acknowledged: Option<oneshot::Sender<()>>,
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
    AskStalenessBound,
    Compact(LogIndex),
    RetainFrom(Option<LogIndex>),
    Installed {
        index: LogIndex,
        term: Term,
    },
    TryLead,
    YieldLeadership,
    SetIneligible(bool),
    Session(SessionEvent),
    /// A replica of an older configuration, or of none, has greeted.
    Seen {
        replica: u64,
        store_id: u64,
    },
    /// A peer is in a newer configuration.
    NewerConfiguration(Membership),
    Shutdown(oneshot::Sender<()>),
}

/// The sender of commands. An event loop on a thread blocks on the channel; in a simulation it is a
/// task and is woken.
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
