//! PostgreSQL's protocol, as its server speaks it: what comes from a client, and what goes to it.
//!
//! Messages are coded here. Outgoing ones are mostly relayed as a shard's PostgreSQL sent them.
//! Incoming ones are a stranger's bytes: pgwire's codec panics at some malformed messages, and a
//! panic ends the process.
//!
//! | module | content |
//! |---|---|
//! | `backend` | messages to the client, encoded |
//! | `incoming` | messages from the client, bounded, read ahead of their execution |
//! | `message` | messages from the client, decoded |
//! | `outgoing` | the buffer of messages to the client |
//! | `transport` | TCP, with or without TLS |

pub mod backend;
pub mod incoming;
pub mod message;
pub mod outgoing;
pub mod transport;
