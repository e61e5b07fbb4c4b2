//! Remote procedure calls between the parts of Evenkeel: length-framed `postcard` messages on TCP.
//! A connection carries up to [`MAX_REQUESTS_PER_CONNECTION`] requests at a time; each is answered
//! by one reply or by a stream of replies.
//!
//! The crate owns sockets, frames and the search for the leader of a replica group. It does not
//! know what messages mean. It promises:
//!
//! - Replies are matched to requests by number and may arrive in any order.
//! - A request whose connection ends fails with [`RpcError::Lost`]. It may or may not have been
//!   executed; only the caller knows whether sending it again is safe.
//! - Frames that are ready to be sent are written together: a busy connection needs one system call
//!   for many messages.
//! - Everything is bounded: frame size, requests in flight per connection, their bytes per process,
//!   frames and bytes waiting to be written. A peer that exceeds a limit loses its connection; a
//!   fast peer is slowed down.
//! - No wait is endless. A frame that begins and does not arrive, and a peer that does not read,
//!   end the connection. TCP keepalive detects a peer that disappears while no request is in
//!   flight.
//! - A caller that stops waiting (it drops its future or its stream) notifies the server, whose
//!   service can observe this ([`Replier::gone`]) and stop the work. The end of the connection has
//!   the same effect.
//!
//! | module | content |
//! |---|---|
//! | `limits`, `error` | the bounds, and the reasons why a request has no reply |
//! | `frame`, `budget` | the wire format, and the memory that frames may occupy |
//! | `connection`, `pool` | the calling side: one connection, and the connections to many addresses |
//! | `server` | the answering side |
//! | [`group`] | a replica group as a callee: the leader is found and asked |
//!
//! Not done: flow control per stream. A stream that its receiver does not read delays the other
//! replies of its connection, so long streams need a connection of their own. Connections are
//! neither encrypted nor authenticated.

mod budget;
mod connection;
mod error;
mod frame;
pub mod group;
mod limits;
mod pool;
mod server;

pub use connection::{Connection, ReplyStream};
pub use error::RpcError;
pub use limits::{
    MAX_CONNECTIONS, MAX_FRAME_BYTES, MAX_REPLY_BYTES_PER_CONNECTION, MAX_REQUEST_BYTES, MAX_REQUESTS_PER_CONNECTION,
    URGENT_REQUESTS_PER_CONNECTION,
};
pub use pool::Pool;
pub use server::{Gone, Replier, Service, serve};

#[cfg(test)]
mod tests;
