//! Free ports that stay free.
//!
//! A port from `bind(0)` comes from the kernel's ephemeral range. Once its process has been killed,
//! any outgoing connection may take the port before the process is started again. [`reserve`]
//! therefore takes ports from below that range and tests them by binding. It starts at a random
//! port, so that processes that search at the same time do not meet, and then continues behind the
//! last port found.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The first port: above the well-known ones. The last is below Linux's ephemeral ones (32768 and
/// up).
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// Returns `wanted` free ports of the loopback interface.
///
/// # Errors
/// Fewer ports are free.
pub fn reserve(wanted: usize) -> io::Result<Vec<u16>> {
    static NEXT: OnceLock<AtomicUsize> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        let seed = u64::from(crate::wall_time().subsec_nanos()) ^ (u64::from(std::process::id()) << 20);
        AtomicUsize::new((seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48) as usize)
    });
    // All stay bound until all are found, so that none is found twice.
    let mut held = Vec::with_capacity(wanted);
    let mut ports = BTreeSet::new();
    for _ in 0..COUNT {
        if ports.len() == wanted {
            break;
        }
        let port = FIRST + (next.fetch_add(1, Ordering::Relaxed) % usize::from(COUNT)) as u16;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            ports.insert(port);
            held.push(listener);
        }
    }
    if ports.len() < wanted {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("only {} of {wanted} ports are free", ports.len()),
        ));
    }
    Ok(ports.into_iter().collect())
}

/// An address of the loopback interface with a free port.
///
/// # Errors
/// No port is free.
pub fn address() -> io::Result<SocketAddr> {
    Ok(SocketAddr::from(([127, 0, 0, 1], reserve(1)?.first().copied().unwrap_or(0))))
}

/// The first of these ports of the loopback interface that is in use.
pub fn taken(ports: &[u16]) -> Option<u16> {
    ports.iter().copied().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_err())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ports_are_different_and_can_be_bound() {
        let ports = reserve(40).unwrap();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 40);
        assert!(ports.iter().all(|p| *p < 32_768));
        // Another process may have been quicker with one of them, but not with all.
        let taken = ports.iter().find_map(|p| TcpListener::bind(("127.0.0.1", *p)).ok()).unwrap();
        assert!(!reserve(40).unwrap().contains(&taken.local_addr().unwrap().port()));
    }
}
