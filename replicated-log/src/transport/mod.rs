//! Sessions between replicas (log rule 3).
//!
//! Each pair of replicas has at most one session: a TCP connection, dialled by the replica with the
//! lower number, with ordered messages in both directions. A session is lost as a whole or not at
//! all. If a socket fails, a peer is silent for too long, the send queue exceeds its bound, or a
//! frame is damaged, the connection is closed and a session with a new number replaces it. The
//! event loop receives each new session before any message of it, and drops late messages of
//! earlier sessions.
//!
//! Both ends begin with a greeting: version, group, configuration, the two replicas and the
//! sender's disk. A mismatch closes the connection (log rule 4). If one end is in a newer
//! configuration, it sends the membership first, so that a replica that missed a change, or waits
//! to join, learns it. The replica with the higher number does not dial; while there is no session
//! it *inquires* periodically: it greets, and closes.
//!
//! Decoding, and encoding of large batches, run outside the event loop's thread. The event loop
//! itself writes small batches to an idle socket, because waking a task costs more than the write.
//!
//! | file | contents |
//! |---|---|
//! | `session` | [`SessionEvent`] and [`SessionSender`], the event loop's side |
//! | `connections` | [`Transport`]: listening, dialling, one task per session |
//! | `factory` | [`TransportFactory`]: a transport per configuration of the group |
//! | `greeting`, `frames` | the protocol on a connection |
//!
//! Not done: connections are neither encrypted nor authenticated.

mod config;
mod connections;
mod factory;
mod frames;
mod greeting;
mod session;

pub(crate) use connections::Transport;
pub(crate) use factory::TransportFactory;
pub(crate) use session::{SessionEvent, SessionSender};
