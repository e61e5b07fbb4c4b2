//! The reasons why a request has no reply, and whether it may have been executed.

use std::net::SocketAddr;

/// Why a request has no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RpcError {
    /// The request was never sent: no connection could be made.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// The server's address.
        address: SocketAddr,
        /// Why the connection failed.
        reason: String,
    },
    /// The request was never sent: it is longer than [`crate::MAX_FRAME_BYTES`], or cannot be
    /// encoded.
    #[error("the request cannot be sent: {0}")]
    Unsendable(String),
    /// The request may have been executed: the connection ended, or the server dropped the request.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The request may have been executed: no reply arrived within this many milliseconds.
    #[error("no reply within {0} ms")]
    TimedOut(u64),
}

impl RpcError {
    /// Whether the request certainly never reached the server.
    pub fn never_sent(&self) -> bool {
        matches!(self, RpcError::Connect { .. } | RpcError::Unsendable(_))
    }
}
