//! The bounds on what a connection and a server hold.

/// The longest frame, in bytes: a row whose largest value is 64 MiB, and the message around it.
pub const MAX_FRAME_BYTES: usize = 80 << 20;
/// Requests in flight on one connection. A server reads no further request until some are answered.
pub const MAX_REQUESTS_PER_CONNECTION: usize = 1024;
/// How many of these places callers leave to urgent requests: a COMMIT, on which other requests
/// wait, must not queue behind them.
pub const URGENT_REQUESTS_PER_CONNECTION: usize = 64;
/// Bytes of requests that are read and not yet answered, over all connections of one server.
/// Further requests stay unread until some are answered.
pub const MAX_REQUEST_BYTES: usize = 256 << 20;
/// Bytes of replies that wait to be written on one connection. While a client does not read them,
/// the server sends it no further replies. A longer reply waits until all others are written.
pub const MAX_REPLY_BYTES_PER_CONNECTION: usize = 32 << 20;
/// Connections of one server. It closes further ones at once.
pub const MAX_CONNECTIONS: usize = 4096;
/// Frames waiting to be written on one connection.
pub(crate) const WRITE_QUEUE_FRAMES: usize = 1024;
