//! A session as the event loop sees it: its events, and the sender of its messages.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use evenkeel_host::WriteHalf;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};

use crate::wire::{Tag, Wire, encode_frame};

/// An event of a session, for the event loop.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    Up {
        peer: u64,
        session: u64,
        configuration: u32,
        store_id: u64,
        sender: SessionSender,
    },
    Messages {
        peer: u64,
        session: u64,
        messages: Vec<Wire>,
        /// Dropped when the messages have been processed: then the socket is read on.
        _reservation: OwnedSemaphorePermit,
        frame_bytes: usize,
    },
    Down {
        peer: u64,
        session: u64,
    },
}

/// The event loop's end of a session.
#[derive(Clone, Debug)]
pub(crate) struct SessionSender {
    pub(super) tag: Tag,
    pub(super) socket: Arc<WriteHalf>,
    pub(super) queue: mpsc::UnboundedSender<Batch>,
    /// Bytes queued or being written by the session's task. Zero means that the task does not use
    /// the socket.
    pub(super) queued_bytes: Arc<AtomicUsize>,
    pub(super) limit_bytes: usize,
    pub(super) close: Arc<Notify>,
}

/// Messages, or bytes, that the session's task writes.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) contents: BatchContents,
    pub(super) charged_bytes: usize,
}

#[derive(Debug)]
pub(super) enum BatchContents {
    Messages(Vec<Wire>),
    /// The rest of a frame whose beginning has been written.
    Rest(Vec<u8>),
}

/// The largest batch that the event loop encodes and writes itself, in bytes.
const DIRECT_BYTES: usize = 32 << 10;

impl SessionSender {
    /// Queues one turn's messages for the peer, without blocking.
    ///
    /// If too many bytes wait already, the whole session is closed: the loss of a single message
    /// would go unnoticed (log rule 3). A batch that finds the queue empty always fits and is
    /// charged at most half of the limit. Otherwise the heartbeats behind a log synchronisation
    /// above the limit would end the session, and the next session would begin with the same
    /// synchronisation.
    pub(crate) fn send(&self, messages: Vec<Wire>) {
        let bytes: usize = messages.iter().map(Wire::size_bytes).sum();
        let before = self.queued_bytes.load(Ordering::Acquire);
        // Only this thread adds, so the value can only have shrunk since it was read.
        let charged_bytes = if before == 0 { bytes.min(self.limit_bytes / 2) } else { bytes };
        if before + charged_bytes > self.limit_bytes {
            self.close();
            return;
        }
        let contents = if before == 0 && bytes <= DIRECT_BYTES {
            match self.write_now(messages) {
                Ok(None) => return,
                Ok(Some(rest)) => BatchContents::Rest(rest),
                Err(error) => {
                    tracing::debug!(%error, "a session's socket has failed");
                    self.close();
                    return;
                }
            }
        } else {
            BatchContents::Messages(messages)
        };
        self.queued_bytes.fetch_add(charged_bytes.max(1), Ordering::AcqRel);
        // A closed queue means that the session has ended; its end is reported separately.
        self.queue.send(Batch { contents, charged_bytes: charged_bytes.max(1) }).ok();
    }

    /// Writes as much as the socket takes at once and returns the rest. Only called while nothing
    /// is queued.
    fn write_now(&self, messages: Vec<Wire>) -> io::Result<Option<Vec<u8>>> {
        let mut frame = Vec::new();
        encode_frame(&mut frame, self.tag, messages).map_err(io::Error::other)?;
        let mut written = 0;
        while written < frame.len() {
            match self.socket.try_write(&frame[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Some(frame.split_off(written))),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(crate) fn close(&self) {
        self.close.notify_one();
    }
}
