//! Cancelling a session's statement, over a connection of its own.

use crate::byte_stream::ByteStream;
use crate::session_error::SessionError;
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The most bytes that are read of what the server says to a cancel request: it says nothing.
const MAX_ANSWER_BYTES: u64 = 1_024;

/// Names a session to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CancelKey {
    process: i32,
    secret: i32,
}

impl CancelKey {
    /// From the body of a BackendKeyData.
    pub(crate) fn of(body: &[u8]) -> Option<CancelKey> {
        let (process, rest) = body.split_first_chunk::<4>()?;
        let (secret, _) = rest.split_first_chunk::<4>()?;
        Some(CancelKey { process: i32::from_be_bytes(*process), secret: i32::from_be_bytes(*secret) })
    }

    /// The number of the server's process that serves the session.
    pub fn process(&self) -> i32 {
        self.process
    }

    /// Has the statement cancelled that the session executes, over a new connection with its
    /// server. Best effort: it may have ended and be followed by another.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn cancel(self, mut stream: impl ByteStream) -> Result<(), SessionError> {
        let mut out = BytesMut::new();
        frontend::cancel_request(self.process, self.secret, &mut out);
        stream.write_all(&out).await?;
        stream.flush().await?;
        // The server closes the connection once it has passed the request on.
        let mut rest = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut rest).await?;
        Ok(())
    }
}
