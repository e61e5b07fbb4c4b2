//! Frames on a connection: encoding and writing of batches, reading and decoding of messages.
//!
//! This runs outside the event loop's thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use evenkeel_host::{ReadHalf, WriteHalf};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::sync::{Semaphore, mpsc};

use crate::command::{Command, Commands};
use crate::wire::{FRAME_HEADER_BYTES, Tag, decode_frame, encode_frame};

use super::config::TransportConfig;
use super::greeting::invalid;
use super::session::{Batch, BatchContents, SessionEvent};

/// Writes the batches of a session in order, one frame each.
pub(super) async fn write_frames(
    socket: &WriteHalf,
    mut batches: mpsc::UnboundedReceiver<Batch>,
    queued_bytes: &AtomicUsize,
    tag: Tag,
) -> io::Result<()> {
    /// The size up to which waiting batches are combined into one write.
    const WRITE_BYTES: usize = 256 << 10;
    let mut out = Vec::new();
    while let Some(first) = batches.recv().await {
        let mut taken_bytes = 0;
        let mut next = Some(first);
        while let Some(batch) = next {
            taken_bytes += batch.charged_bytes;
            match batch.contents {
                BatchContents::Messages(messages) => encode_frame(&mut out, tag, messages).map_err(io::Error::other)?,
                BatchContents::Rest(rest) => out.extend(rest),
            }
            next = match out.len() < WRITE_BYTES {
                true => batches.try_recv().ok(),
                false => None,
            };
        }
        write_all(socket, &out).await?;
        queued_bytes.fetch_sub(taken_bytes, Ordering::AcqRel);
        out.clear();
        out.shrink_to(WRITE_BYTES * 4);
    }
    Ok(())
}

async fn write_all(socket: &WriteHalf, mut out: &[u8]) -> io::Result<()> {
    while !out.is_empty() {
        socket.writable().await?;
        match socket.try_write(out) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => out = &out[bytes..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads frames and sends their messages to `events`, in order.
pub(super) async fn read_frames(
    config: &TransportConfig,
    events: &Commands,
    socket: ReadHalf,
    peer: u64,
    session: u64,
) -> io::Result<()> {
    const SOCKET_BUFFER_BYTES: usize = 64 << 10;
    /// The semaphore counts units of this size, so that large frames fit its range.
    const UNIT_BYTES: usize = 1 << 10;
    /// Below the limit of tokio's semaphore, `usize::MAX >> 3`.
    const MAX_UNITS: usize = usize::MAX >> 7;
    let limits = &config.limits;
    let idle = Duration::from_millis(config.timing.session_idle_ms);
    let units = (limits.inbound_bytes / UNIT_BYTES).clamp(1, MAX_UNITS);
    let unprocessed = Arc::new(Semaphore::new(units));
    let mut socket = BufReader::with_capacity(SOCKET_BUFFER_BYTES, socket);
    loop {
        let mut header = [0; FRAME_HEADER_BYTES];
        evenkeel_host::timeout(idle, socket.read_exact(&mut header)).await??;
        let mut header = &header[..];
        let body_bytes = header.get_u32_le() as usize;
        let crc = header.get_u32_le();
        if body_bytes > limits.max_frame_bytes {
            return Err(invalid("a frame above the limit"));
        }
        // Exactly the frame's size: its items keep this memory alive while they are cached.
        let mut body = vec![0; body_bytes];
        read_body(&mut socket, &mut body, idle).await?;
        let messages = decode_frame(Bytes::from(body), crc, config.tag).map_err(io::Error::other)?;
        let wanted = (body_bytes / UNIT_BYTES + 1).min(units) as u32;
        let reservation = unprocessed.clone().acquire_many_owned(wanted).await;
        let event = SessionEvent::Messages {
            peer,
            session,
            messages,
            _reservation: reservation.map_err(io::Error::other)?,
            frame_bytes: body_bytes,
        };
        // Without an event loop the process is shutting down.
        events.send(Command::Session(event)).ok();
    }
}

/// Reads a whole body. The timeout applies to each read, not to the whole frame.
async fn read_body(socket: &mut BufReader<ReadHalf>, mut body: &mut [u8], idle: Duration) -> io::Result<()> {
    while !body.is_empty() {
        let read = evenkeel_host::timeout(idle, socket.read(body)).await??;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        body = &mut body[read..];
    }
    Ok(())
}
