//! The wire format. A frame is `length: u32, id: u64, kind: u8, body`, little-endian; the length
//! counts the bytes after itself. The body is a `postcard` message.
//!
//! Reading and writing have time limits: a frame that begins and does not arrive, and a peer that
//! does not read, are errors that end the connection.

use crate::budget::Share;
use crate::limits::MAX_FRAME_BYTES;
use bytes::{Buf, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

const HEADER_BYTES: usize = 13;
/// About how many bytes are collected for one write.
const WRITE_BATCH_BYTES: usize = 256 << 10;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request.
    Request,
    /// The only reply, or the last of a stream.
    Reply,
    /// A reply of a stream that is not the last.
    Item,
    /// The server drops the request without a reply.
    Dropped,
    /// The caller of a request no longer waits for its reply.
    GivenUp,
}

impl Kind {
    fn from_byte(byte: u8) -> io::Result<Kind> {
        Ok(match byte {
            0 => Kind::Request,
            1 => Kind::Reply,
            2 => Kind::Item,
            3 => Kind::Dropped,
            4 => Kind::GivenUp,
            other => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unknown frame kind {other}"))),
        })
    }
}

/// Frames a message.
///
/// # Errors
/// One sentence, if the message is too long or cannot be encoded.
pub(crate) fn encode<T: Serialize>(id: u64, kind: Kind, message: &T) -> Result<Vec<u8>, String> {
    let mut out = vec![0u8; HEADER_BYTES];
    out[4..12].copy_from_slice(&id.to_le_bytes());
    out[12] = kind as u8;
    let mut out = postcard::to_extend(message, out).map_err(|e| e.to_string())?;
    seal(&mut out)?;
    Ok(out)
}

/// A frame without a body.
pub(crate) fn empty(id: u64, kind: Kind) -> Vec<u8> {
    let mut out = vec![0u8; HEADER_BYTES];
    out[0..4].copy_from_slice(&((HEADER_BYTES - 4) as u32).to_le_bytes());
    out[4..12].copy_from_slice(&id.to_le_bytes());
    out[12] = kind as u8;
    out
}

fn seal(out: &mut [u8]) -> Result<(), String> {
    let length = out.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(format!("{length} bytes, at most {MAX_FRAME_BYTES} are possible"));
    }
    out[0..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// A frame that has begun and of which no further byte arrives for this long ends its connection,
/// in milliseconds: a peer whose machine has failed sends nothing, and its unfinished frame
/// occupies memory.
const STALL_MS: u64 = 5_000;
/// The lowest accepted rate of a frame after its first [`STALL_MS`], in bytes per millisecond: 1
/// MiB/s.
const MIN_BYTES_PER_MS: usize = 1 << 10;
/// A peer that reads no written byte for this long has ended, in milliseconds. The limit is longer
/// than for reading: a peer that is busy with earlier messages is alive.
pub(crate) const WRITE_STALL_MS: u64 = 60_000;

/// The deadline of a frame of `length` bytes that begins now.
pub(crate) fn due(length: usize) -> Instant {
    evenkeel_host::tokio_now() + Duration::from_millis(STALL_MS + (length / MIN_BYTES_PER_MS) as u64)
}

/// Reads frames from a connection.
pub(crate) struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(from: R) -> Self {
        FrameReader { from, buffer: BytesMut::with_capacity(64 << 10) }
    }

    /// Waits for the length of the next frame; `None` at the end of the connection.
    pub(crate) async fn length(&mut self) -> io::Result<Option<usize>> {
        loop {
            if let Some(length) = self.declared()? {
                return Ok(Some(length));
            }
            self.buffer.reserve(HEADER_BYTES);
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Waits until the first `bytes` bytes of a frame whose length is known have arrived, or the
    /// whole frame if it is shorter.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] at `due`, or when no byte arrives for [`STALL_MS`].
    pub(crate) async fn arrive(&mut self, bytes: usize, due: Instant) -> io::Result<()> {
        loop {
            let missing = self.missing()?.min((bytes + 4).saturating_sub(self.buffer.len()));
            if missing == 0 {
                return Ok(());
            }
            self.buffer.reserve(missing);
            let until = due.min(evenkeel_host::tokio_now() + Duration::from_millis(STALL_MS));
            match evenkeel_host::timeout_at(until, self.from.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => drop(read?),
                Err(_) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "a frame that was begun does not arrive"));
                }
            }
        }
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> io::Result<Option<(u64, Kind, BytesMut)>> {
        while self.missing()? > 0 {
            let missing = self.missing()?;
            self.buffer.reserve(missing);
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        let length = self.buffer.get_u32_le() as usize;
        let mut frame = self.buffer.split_to(length);
        let id = frame.get_u64_le();
        let kind = Kind::from_byte(frame.get_u8())?;
        Ok(Some((id, kind, frame)))
    }

    /// Bytes of the first frame that have not arrived.
    fn missing(&self) -> io::Result<usize> {
        let wanted = self.declared()?.map_or(HEADER_BYTES, |length| length + 4);
        Ok(wanted.saturating_sub(self.buffer.len()))
    }

    /// The length in the first frame's header, if that has arrived.
    fn declared(&self) -> io::Result<Option<usize>> {
        let Some(head) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if !(HEADER_BYTES - 4..=MAX_FRAME_BYTES).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        Ok(Some(length))
    }
}

/// Decodes a frame's body.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

/// A frame to be written, and its share of the memory for frames until then.
pub(crate) struct Outgoing {
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory: Option<Share>,
}

impl From<Vec<u8>> for Outgoing {
    fn from(bytes: Vec<u8>) -> Outgoing {
        Outgoing { bytes, memory: None }
    }
}

/// Writes the frames of the queue until that closes. Frames that are queued are written together.
pub(crate) async fn write_all<W: AsyncWrite + Unpin>(
    mut to: W,
    mut frames: mpsc::Receiver<Outgoing>,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut shares = Vec::new();
    while let Some(first) = frames.recv().await {
        if frames.is_empty() {
            write_out(&mut to, &first.bytes).await?;
            continue;
        }
        buffer.extend_from_slice(&first.bytes);
        shares.extend(first.memory);
        while buffer.len() < WRITE_BATCH_BYTES {
            match frames.try_recv() {
                Ok(frame) => {
                    buffer.extend_from_slice(&frame.bytes);
                    shares.extend(frame.memory);
                }
                Err(_) => break,
            }
        }
        write_out(&mut to, &buffer).await?;
        buffer.clear();
        shares.clear();
    }
    to.shutdown().await
}

/// Writes all of `bytes`.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] when the peer reads nothing for [`WRITE_STALL_MS`].
async fn write_out<W: AsyncWrite + Unpin>(to: &mut W, mut bytes: &[u8]) -> io::Result<()> {
    let stall = Duration::from_millis(WRITE_STALL_MS);
    while !bytes.is_empty() {
        match evenkeel_host::timeout(stall, to.write(bytes)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")),
        }
    }
    Ok(())
}
