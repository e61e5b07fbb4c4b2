//! Connections: the machine's TCP, or a simulation's.
//!
//! The choice is made once per connection or listener; each read and write then costs one branch.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::duplex::{Accept, Duplex};
use crate::simulation::simulation;

/// Opens a connection.
///
/// # Errors
/// The system's.
pub async fn connect(to: SocketAddr) -> io::Result<Stream> {
    match simulation() {
        Some(simulation) => simulation.connect(to).await.map(Stream::Simulated),
        None => {
            let stream = TcpStream::connect(to).await?;
            keep_alive(&stream);
            Ok(Stream::Tcp(stream))
        }
    }
}

/// A keep-alive probe is sent after this time without data, in seconds.
const KEEPALIVE_IDLE_S: u64 = 30;
/// The time between two keep-alive probes, in seconds.
const KEEPALIVE_INTERVAL_S: u64 = 10;
/// A connection ends after this number of unanswered probes.
const KEEPALIVE_PROBES: u32 = 3;

/// Turns on keep-alive probes. Without them a connection whose other end lost its power lives for
/// ever. A machine that does not support them may still connect.
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, Duration::from_secs(KEEPALIVE_IDLE_S)))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, Duration::from_secs(KEEPALIVE_INTERVAL_S)))
        .and_then(|()| sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES));
}

/// Listens at an address. Must be called within a tokio runtime.
///
/// # Errors
/// The system's.
pub fn bind(at: SocketAddr) -> io::Result<Listener> {
    if let Some(simulation) = simulation() {
        return simulation.listen(at).map(Listener::Simulated);
    }
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(Listener::Tcp)
}

/// A listener.
pub enum Listener {
    /// The machine's.
    Tcp(TcpListener),
    /// A simulation's.
    Simulated(Box<dyn Accept>),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Listener {
        Listener::Tcp(listener)
    }
}

impl Listener {
    /// The next connection, and the address of its peer.
    ///
    /// # Errors
    /// The system's; the listener stays usable.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                keep_alive(&stream);
                Ok((Stream::Tcp(stream), peer))
            }
            Listener::Simulated(listener) => {
                let (stream, peer) = std::future::poll_fn(|context| listener.poll_accept(context)).await?;
                Ok((Stream::Simulated(stream), peer))
            }
        }
    }
}

/// A connection.
pub enum Stream {
    /// The machine's.
    Tcp(TcpStream),
    /// A simulation's.
    Simulated(Box<dyn Duplex>),
}

/// The half of a connection that reads.
pub enum ReadHalf {
    /// The machine's.
    Tcp(OwnedReadHalf),
    /// A simulation's.
    Simulated(tokio::io::ReadHalf<Box<dyn Duplex>>),
}

/// The half of a connection that writes.
pub enum WriteHalf {
    /// The machine's.
    Tcp(OwnedWriteHalf),
    /// A simulation's.
    Simulated(Mutex<tokio::io::WriteHalf<Box<dyn Duplex>>>),
}

impl Stream {
    /// Sets whether small messages are sent at once.
    ///
    /// # Errors
    /// The system's.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_nodelay(nodelay),
            Stream::Simulated(_) => Ok(()),
        }
    }

    /// The two directions, for two tasks.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Stream::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Stream::Simulated(stream) => {
                let (read, write) = tokio::io::split(stream);
                (ReadHalf::Simulated(read), WriteHalf::Simulated(Mutex::new(write)))
            }
        }
    }
}

impl WriteHalf {
    /// Writes as much as the connection takes at once; [`io::ErrorKind::WouldBlock`] if that is
    /// nothing.
    ///
    /// # Errors
    /// The system's.
    pub fn try_write(&self, data: &[u8]) -> io::Result<usize> {
        match self {
            WriteHalf::Tcp(half) => half.try_write(data),
            WriteHalf::Simulated(half) => {
                let mut half = half.lock().unwrap_or_else(PoisonError::into_inner);
                let written = Pin::new(&mut *half).poll_write(&mut Context::from_waker(Waker::noop()), data);
                match written {
                    Poll::Ready(written) => written,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// Waits until the connection may take bytes again.
    ///
    /// # Errors
    /// The system's.
    pub async fn writable(&self) -> io::Result<()> {
        match self {
            WriteHalf::Tcp(half) => half.writable().await,
            WriteHalf::Simulated(_) => {
                crate::sleep(Duration::from_millis(1)).await;
                Ok(())
            }
        }
    }
}

impl std::fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriteHalf")
    }
}

macro_rules! read {
    ($name:ident) => {
        impl AsyncRead for $name {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $name::Tcp(inner) => Pin::new(inner).poll_read(context, buffer),
                    $name::Simulated(inner) => Pin::new(inner).poll_read(context, buffer),
                }
            }
        }
    };
}

macro_rules! write {
    ($name:ident, $of:expr) => {
        impl AsyncWrite for $name {
            fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $name::Tcp(inner) => Pin::new(inner).poll_write(context, data),
                    $name::Simulated(inner) => Pin::new($of(inner)).poll_write(context, data),
                }
            }
            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $name::Tcp(inner) => Pin::new(inner).poll_flush(context),
                    $name::Simulated(inner) => Pin::new($of(inner)).poll_flush(context),
                }
            }
            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $name::Tcp(inner) => Pin::new(inner).poll_shutdown(context),
                    $name::Simulated(inner) => Pin::new($of(inner)).poll_shutdown(context),
                }
            }
        }
    };
}

read!(Stream);
write!(Stream, std::convert::identity);
read!(ReadHalf);
write!(WriteHalf, |half| Mutex::get_mut(half).unwrap_or_else(PoisonError::into_inner));
