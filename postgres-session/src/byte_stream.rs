//! What a session runs over.

use tokio::io::{AsyncRead, AsyncWrite};

/// What a session runs over.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}
