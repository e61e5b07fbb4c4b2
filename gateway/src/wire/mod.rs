//! PostgreSQL's protocol, as its server speaks it: what comes from a client, and what goes to it.
//!
//! The codec of incoming messages is pgwire's. Outgoing messages are written here, because most of
//! them are relayed as a shard's PostgreSQL sent them.
//!
//! | module | content |
//! |---|---|
//! | `backend` | messages to the client, encoded |
//! | `incoming` | messages from the client, bounded, read ahead of their execution |
//! | `outgoing` | the buffer of messages to the client |
//! | `transport` | TCP, with or without TLS |

pub mod backend;
pub mod incoming;
pub mod outgoing;
pub mod transport;
