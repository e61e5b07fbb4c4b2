//! The buffer of messages to the client.
//!
//! Messages are collected and sent together: at a Sync, a Flush or an error, or when the buffer is
//! full. Sending waits for the client, so that a client that does not read slows its own statement
//! down, and nothing else.

use super::transport::Transport;
use bytes::BytesMut;
use evenkeel_host::timeout;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, WriteHalf};

/// The size at which the buffer is sent, in bytes.
const FULL_BYTES: usize = 64 << 10;
/// How long a client may take to read a full buffer, in milliseconds. It then counts as gone: it
/// holds a session of a shard, and perhaps locks.
const STALLED_MS: u64 = 120_000;
/// The same for the gateway's own PostgreSQL, in milliseconds: a client's cursor may wait for long.
const PATIENT_MS: u64 = 24 * 3_600_000;

/// See the module.
pub struct Outgoing {
    half: WriteHalf<Transport>,
    /// How long the other side may take to read a full buffer.
    stalled: Duration,
    /// How often the buffer has been sent.
    sendings: u64,
    /// The messages to be sent.
    pub buffer: BytesMut,
}

impl Outgoing {
    /// Nothing is to be sent.
    pub fn new(half: WriteHalf<Transport>) -> Outgoing {
        let stalled = Duration::from_millis(STALLED_MS);
        Outgoing { half, stalled, sendings: 0, buffer: BytesMut::new() }
    }

    /// The same for one that may read late because its own user does.
    pub fn patient(half: WriteHalf<Transport>) -> Outgoing {
        Outgoing { stalled: Duration::from_millis(PATIENT_MS), ..Outgoing::new(half) }
    }

    /// How often the buffer has been sent: what was in it before cannot be taken back.
    pub fn sendings(&self) -> u64 {
        self.sendings
    }

    /// Sends the buffer if it is full.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() < FULL_BYTES { Ok(()) } else { self.send().await }
    }

    /// Sends the buffer.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.sendings += 1;
        let sent = async {
            self.half.write_all(&self.buffer).await?;
            self.half.flush().await
        };
        timeout(self.stalled, sent).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if self.buffer.capacity() > 2 * FULL_BYTES {
            // One long row must not occupy memory for as long as the client stays.
            self.buffer = BytesMut::new();
        } else {
            self.buffer.clear();
        }
        Ok(())
    }

    /// Sends the buffer and ends the connection.
    pub async fn close(mut self) {
        // The client may be gone already.
        _ = self.send().await;
        _ = self.half.shutdown().await;
    }
}
