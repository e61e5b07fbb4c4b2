//! Messages from the client, read ahead of their execution.
//!
//! A task reads and decodes. It stops when a few messages wait, so that a client that sends and
//! never reads takes bounded memory. It notices the end of the connection while a statement runs.

use super::message::{self, ClientMessage, malformed};
use super::transport::Transport;
use bytes::BytesMut;
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::sync::{mpsc, watch};

/// The longest message, in bytes: a value of 64 MiB and its envelope.
pub const MAX_MESSAGE_BYTES: usize = 80 << 20;
/// Messages that wait for their execution.
const MAX_WAITING: usize = 16;
/// Bytes that are read at once, at least.
const READ_BYTES: usize = 8 << 10;

/// What the client has sent.
#[derive(Debug)]
pub enum Received {
    /// A message.
    Message(ClientMessage),
    /// Bytes that are no message: nothing that follows can be understood.
    Malformed(SqlError),
}

/// The messages of one client.
pub struct Incoming {
    messages: mpsc::Receiver<Received>,
    gone: watch::Receiver<bool>,
    reader: tokio::task::AbortHandle,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Incoming {
    /// Begins to read. `read` are bytes that have been read already.
    pub fn start(half: ReadHalf<Transport>, read: BytesMut) -> Incoming {
        let (sender, messages) = mpsc::channel(MAX_WAITING);
        let (went, gone) = watch::channel(false);
        let reader = tokio::spawn(async move {
            let ended = read_all(half, read, &sender).await;
            tracing::trace!(?ended, "a client's messages have ended");
            went.send_replace(true);
        });
        Incoming { messages, gone, reader: reader.abort_handle() }
    }

    /// The next message; `None` when the client is gone.
    pub async fn next(&mut self) -> Option<Received> {
        self.messages.recv().await
    }

    /// The next message, if it has arrived.
    pub fn next_now(&mut self) -> Option<Received> {
        self.messages.try_recv().ok()
    }

    /// Becomes true when the client is gone.
    pub fn gone(&self) -> watch::Receiver<bool> {
        self.gone.clone()
    }
}

async fn read_all(
    mut half: ReadHalf<Transport>,
    mut buffer: BytesMut,
    to: &mpsc::Sender<Received>,
) -> std::io::Result<()> {
    loop {
        match decode(&mut buffer) {
            Ok(Some(message)) => {
                let last = matches!(message, ClientMessage::Terminate);
                if to.send(Received::Message(message)).await.is_err() || last {
                    return Ok(());
                }
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                // Nobody may wait for it any more.
                _ = to.send(Received::Malformed(error)).await;
                return Ok(());
            }
        }
        if buffer.is_empty() && buffer.capacity() > 16 * READ_BYTES {
            buffer = BytesMut::new();
        }
        buffer.reserve(READ_BYTES);
        if half.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// Takes a message off the front, once all of it is there.
fn decode(buffer: &mut BytesMut) -> Result<Option<ClientMessage>, SqlError> {
    let Some(header) = buffer.first_chunk::<5>() else { return Ok(None) };
    let [tag, length @ ..] = *header;
    let length = usize::try_from(i32::from_be_bytes(length)).ok().filter(|length| *length >= 4);
    let length = length.ok_or_else(|| malformed("its length is wrong"))?;
    if length > MAX_MESSAGE_BYTES {
        let message = format!("a message of {length} bytes; at most {MAX_MESSAGE_BYTES} are possible");
        return Err(SqlError::new(codes::PROGRAM_LIMIT, message));
    }
    if buffer.len() < length + 1 {
        return Ok(None);
    }
    let body = buffer.split_to(length + 1).freeze().slice(5..);
    message::decode(tag, body).map(Some)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_message_is_taken_when_all_of_it_is_there() {
        let whole = b"Q\0\0\0\x0dSELECT 1\0S\0\0\0\x04";
        for length in 0..14 {
            let mut buffer = BytesMut::from(&whole[..length]);
            assert!(decode(&mut buffer).unwrap().is_none(), "{length}");
        }
        let mut buffer = BytesMut::from(&whole[..]);
        assert_eq!(decode(&mut buffer).unwrap(), Some(ClientMessage::Query("SELECT 1".into())));
        assert_eq!(decode(&mut buffer).unwrap(), Some(ClientMessage::Sync));
    }

    #[test]
    fn wrong_lengths_are_errors() {
        for bytes in [&b"Q\0\0\0\x03"[..], b"Q\xff\xff\xff\xff", b"Q\x7f\xff\xff\xff", b"B\0\0\0\x08\0\0\xff\xff"] {
            assert!(decode(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
        }
    }
}
