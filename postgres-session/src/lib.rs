//! A raw session with a PostgreSQL server: its messages as it sends them.
//!
//! tokio-postgres parses rows and asks for binary values only. What passes a user's statement on
//! needs formats, command tags, notices and rows exactly as PostgreSQL sent them. This crate frames
//! the messages of protocol 3.0, encodes requests, and parses only what decides how a session goes
//! on: errors, and the transaction's status.
//!
//! | module | holds |
//! |---|---|
//! | [`session`] | start-up, sending and receiving, simple queries |
//! | [`requests`] | requests, encoded |
//! | [`message`] | a message of the server, and its tags |
//! | [`row`] | the values of a row |
//! | [`framing`] | messages cut out of a stream of bytes |
//! | [`error_response`] | errors and notices with all their fields |
//! | [`byte_stream`] | what a session runs over |
//! | [`cancel_key`] | cancelling a session's statement |
//! | [`session_error`] | why a session did not do what it was asked for |
//!
//! Promises: a message is bounded ([`framing::MAX_MESSAGE_BYTES`]); sending never blocks receiving,
//! so that neither side waits for the other's full buffers.
//!
//! Not done: passwords and TLS. The servers are the program's own, on sockets that only it can
//! open.

pub mod byte_stream;
pub mod cancel_key;
pub mod error_response;
pub mod framing;
pub mod message;
pub mod requests;
pub mod row;
pub mod session;
pub mod session_error;

pub use byte_stream::ByteStream;
pub use cancel_key::CancelKey;
pub use message::{Message, TransactionStatus, tags};
pub use requests::{Named, Requests, Values};
pub use row::TextRow;
pub use session::Session;
pub use session_error::SessionError;
