//! The connections that parts of Evenkeel speak over: length-framed `postcard` messages on TCP, many requests at once on one
//! connection, each answered by one reply or by a stream of them.
//!
//! It owns sockets and frames and knows nothing of what the messages mean. It promises:
//!
//! - replies are matched to requests by number, in whatever order they come;
//! - a request whose connection ends gets [`RpcError::Lost`]: it may or may not have been executed, and only the caller
//!   knows whether sending it again is safe;
//! - what is ready to be sent is written together, so that a busy connection takes one system call for many messages;
//! - everything is bounded: frame size, requests under way per connection, their bytes per process, frames and bytes waiting to be written. A peer that exceeds a limit loses
//!   its connection; one that is merely fast is slowed down;
//! - nobody is waited for for ever: a frame that was begun and does not arrive, and a peer that takes nothing of what is written, end the
//!   connection; the machine's keepalive finds a peer that is gone while nothing is under way.
//!
//! A caller that stops waiting (it drops its future or its stream) says so to the server, whose service may ask ([`Replier::gone`]) and
//! end what nobody waits for. It is told, too, by the end of the connection.
//!
//! A stream that its receiver does not empty holds up the other replies on its connection. So long streams get a
//! connection of their own.

mod client;
mod frame;
mod server;

pub use client::{Connection, ReplyStream};
pub use server::{Gone, Replier, Service, serve};

use std::net::SocketAddr;

/// The longest frame, in bytes: a row whose largest value is 64 MiB, and what is said beside it.
pub const MAX_FRAME_BYTES: usize = 80 << 20;
/// Requests under way on one connection; a server reads no further ones until some are answered.
pub const MAX_REQUESTS_PER_CONNECTION: usize = 1024;
/// So many of them are left for urgent ones by the callers of a connection: what others wait for (a COMMIT) must not stand behind them.
pub const URGENT_REQUESTS_PER_CONNECTION: usize = 64;
/// Requests that are read and not answered yet may take so many bytes in a process, over all connections of one server; further ones are
/// left unread until some are answered.
pub const MAX_REQUEST_BYTES: usize = 256 << 20;
/// Replies that are not written yet may take so many bytes on one connection; who does not read them is not answered further. One that is
/// longer than that waits until all others are written.
pub const MAX_REPLY_BYTES_PER_CONNECTION: usize = 32 << 20;
/// Connections of one server; further ones are closed at once.
pub const MAX_CONNECTIONS: usize = 4096;
/// Frames waiting to be written on one connection.
pub(crate) const WRITE_QUEUE_FRAMES: usize = 1024;

/// Why a request got no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RpcError {
    /// It was never sent: no connection could be made.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// It was never sent: it is longer than [`MAX_FRAME_BYTES`], or cannot be encoded.
    #[error("the request cannot be sent: {0}")]
    Unsendable(String),
    /// It may have been executed: the connection ended, or the server gave it up.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// It may have been executed: no reply came in time.
    #[error("no reply within {0} ms")]
    TimedOut(u64),
}

impl RpcError {
    /// Whether the request certainly never reached the server.
    pub fn never_sent(&self) -> bool {
        matches!(self, RpcError::Connect { .. } | RpcError::Unsendable(_))
    }
}

#[cfg(test)]
mod tests;
