//! Addresses of processes on this machine.

use std::net::SocketAddr;

/// The address of a port on the loopback interface, which other machines cannot reach.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
