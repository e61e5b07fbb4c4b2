//! The network between the processes of a local cluster, with faults: blocked and delayed links.
//!
//! With [`crate::ClusterOptions::links`] every address that processes and clients know is that of a
//! proxy in this process, the process's own address included. A proxy identifies the process that
//! connects by looking up the owner of the socket in `/proc`. Each *direction* of each pair of
//! processes, and of each process and the clients, therefore has a fault of its own.
//!
//! It promises what TCP does on a network that loses packets: on a blocked direction, bytes and the
//! end of the stream are held back, in order, and arrive when the direction is open again. A fault
//! applies to open connections too, because it is looked up for each piece of data.
//!
//! Not done: connection requests are not lost. A connection over a blocked link is accepted and
//! then silent.

use crate::process_id::ProcessId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The bytes that are read at once, and held back per direction of a connection.
const PIECE_BYTES: usize = 64 << 10;
/// The pause after a failure to accept, in milliseconds. A descriptor may become free.
const ACCEPT_PAUSE_MS: u64 = 20;

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkEnd {
    /// A process of the cluster.
    Process(ProcessId),
    /// A client, or any other program.
    Outside,
}

/// The fault of one direction of a link. The default is no fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkFault {
    /// No data arrives.
    pub blocked: bool,
    /// The delay of each piece of data, in milliseconds.
    pub delay_ms: u64,
}

/// The faults by direction: from, to.
type Faults = BTreeMap<(LinkEnd, LinkEnd), LinkFault>;

/// The proxies of one cluster. Dropping it ends the proxies and their connections.
#[derive(Debug)]
pub struct Links {
    network: Arc<Network>,
    tasks: Mutex<Vec<AbortHandle>>,
}

#[derive(Debug)]
struct Network {
    faults: watch::Sender<Faults>,
    /// The operating system's number of each process.
    pids: Mutex<BTreeMap<ProcessId, u32>>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(AbortHandle::abort);
    }
}

impl Default for Links {
    fn default() -> Links {
        let network = Network { faults: watch::Sender::new(Faults::new()), pids: Mutex::default() };
        Links { network: Arc::new(network), tasks: Mutex::default() }
    }
}

impl Links {
    /// Opens a proxy at `front` that forwards to the address `real` of `owner`. Must be called
    /// within a tokio runtime.
    pub fn open(&self, owner: ProcessId, front: SocketAddr, real: SocketAddr) -> io::Result<()> {
        let listener = std::net::TcpListener::bind(front)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let task = tokio::spawn(accept(self.network.clone(), listener, front, real, owner)).abort_handle();
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        Ok(())
    }

    /// Records the operating system's number of a process that was started.
    pub fn started(&self, id: ProcessId, pid: u32) {
        self.network.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(id, pid);
    }

    /// Sets the fault of the direction from `from` to `to`.
    pub fn set(&self, from: LinkEnd, to: LinkEnd, fault: LinkFault) {
        self.network.faults.send_modify(|faults| {
            if fault == LinkFault::default() {
                faults.remove(&(from, to));
            } else {
                faults.insert((from, to), fault);
            }
        });
    }

    /// Sets the fault of both directions between `a` and `b`.
    pub fn set_both(&self, a: LinkEnd, b: LinkEnd, fault: LinkFault) {
        self.set(a, b, fault);
        self.set(b, a, fault);
    }

    /// Removes every fault.
    pub fn heal(&self) {
        self.network.faults.send_modify(Faults::clear);
    }
}

async fn accept(network: Arc<Network>, listener: TcpListener, front: SocketAddr, real: SocketAddr, owner: ProcessId) {
    // Ends with this task: connections do not outlive the proxy.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let network = network.clone();
                connections.spawn(async move {
                    if let Err(error) = carry(&network, stream, peer, front, real, owner).await {
                        tracing::trace!(%error, %peer, %owner, "a link's connection has ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, %owner, "a link cannot accept");
                evenkeel_host::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn carry(
    network: &Arc<Network>,
    near: TcpStream,
    peer: SocketAddr,
    front: SocketAddr,
    real: SocketAddr,
    owner: ProcessId,
) -> io::Result<()> {
    let pids = network.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let who = tokio::task::spawn_blocking(move || owner_of(peer, front, &pids)).await.map_err(io::Error::other)?;
    let from = who?.map_or(LinkEnd::Outside, LinkEnd::Process);
    let to = LinkEnd::Process(owner);
    near.set_nodelay(true)?;
    // The connection request passes over the link, too.
    let (mut there, mut back) = (Direction::new(network, from, to), Direction::new(network, to, from));
    there.pass().await;
    let far = TcpStream::connect(real).await?;
    far.set_nodelay(true)?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::join!(there.pump(near_read, far_write), back.pump(far_read, near_write));
    Ok(())
}

/// One direction of one connection.
struct Direction {
    faults: watch::Receiver<Faults>,
    ends: (LinkEnd, LinkEnd),
}

impl Direction {
    fn new(network: &Network, from: LinkEnd, to: LinkEnd) -> Direction {
        Direction { faults: network.faults.subscribe(), ends: (from, to) }
    }

    /// Waits while the direction is blocked, and then for its delay.
    async fn pass(&mut self) {
        let fault = |faults: &Faults| faults.get(&self.ends).copied().unwrap_or_default();
        let delay_ms = match self.faults.wait_for(|faults| !fault(faults).blocked).await {
            Ok(faults) => fault(&faults).delay_ms,
            // The links have ended, and this connection with them.
            Err(_) => 0,
        };
        if delay_ms > 0 {
            evenkeel_host::sleep(Duration::from_millis(delay_ms)).await;
        }
    }

    /// Forwards data, and at last the end of the stream.
    async fn pump(&mut self, mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            // A failure to read is forwarded as the end of the stream.
            let count = read.read(&mut piece).await.unwrap_or(0);
            self.pass().await;
            if count == 0 || write.write_all(&piece[..count]).await.is_err() {
                break;
            }
        }
        // The other end may have closed already.
        let _ = write.shutdown().await;
    }
}

/// The process that has the connection from `near` to `far` (both on the loopback interface) open
/// at `near`.
fn owner_of(near: SocketAddr, far: SocketAddr, pids: &BTreeMap<ProcessId, u32>) -> io::Result<Option<ProcessId>> {
    let Some(inode) = inode_of(&std::fs::read_to_string("/proc/net/tcp")?, near, far) else {
        return Ok(None);
    };
    let wanted = format!("socket:[{inode}]");
    let has = |pid: &u32| {
        // A process that has ended has no open files.
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|target| target.as_os_str() == wanted.as_str())
    };
    let mut seen = BTreeSet::new();
    Ok(pids.iter().find(|(_, pid)| seen.insert(**pid) && has(pid)).map(|(id, _)| *id))
}

/// The inode of the socket in the kernel's table of connections.
fn inode_of(table: &str, near: SocketAddr, far: SocketAddr) -> Option<u64> {
    let (near, far) = (as_in_table(near)?, as_in_table(far)?);
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let ours = fields.next()? == near && fields.next()? == far;
        // State, queues, timers, retransmits, uid and timeout lie between.
        if ours { fields.nth(6)?.parse().ok() } else { None }
    })
}

/// An address as `/proc/net/tcp` writes it: the address as one number in the machine's byte order.
fn as_in_table(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(v4) = address else { return None };
    let ip: &Ipv4Addr = v4.ip();
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), v4.port()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const OWNER: ProcessId = ProcessId::PlacementDriver(1);
    /// How long a test waits for data that must not arrive. A slow machine only makes the wait
    /// longer.
    const LOOK: Duration = Duration::from_millis(50);

    /// A link to an echo server, and a connection over it by this process, which poses as a process
    /// of the cluster or a client.
    async fn linked(as_process: bool) -> (Links, LinkEnd, TcpStream) {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let real = server.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let links = Links::default();
        let client = ProcessId::ShardNode(1, 2);
        if as_process {
            links.started(client, std::process::id());
        }
        let ports = evenkeel_host::ports::reserve(1).unwrap();
        let front = crate::address::loopback(ports[0]);
        links.open(OWNER, front, real).unwrap();
        let stream = TcpStream::connect(front).await.unwrap();
        (links, if as_process { LinkEnd::Process(client) } else { LinkEnd::Outside }, stream)
    }

    async fn echoed(stream: &mut TcpStream, text: &[u8]) {
        stream.write_all(text).await.unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, text);
    }

    #[tokio::test]
    async fn each_direction_of_a_link_is_blocked_by_itself() {
        for as_process in [true, false] {
            let (links, client, mut stream) = linked(as_process).await;
            echoed(&mut stream, b"clear").await;
            let owner = LinkEnd::Process(OWNER);
            for (from, to) in [(client, owner), (owner, client)] {
                links.set(from, to, LinkFault { blocked: true, delay_ms: 0 });
                stream.write_all(b"held").await.unwrap();
                let mut back = [0; 4];
                assert!(evenkeel_host::timeout(LOOK, stream.read_exact(&mut back)).await.is_err());
                links.heal();
                stream.read_exact(&mut back).await.unwrap();
                assert_eq!(&back, b"held", "nothing is lost, and nothing overtakes");
            }
            // A fault of another link has no effect on this connection.
            links.set_both(
                LinkEnd::Process(ProcessId::ShardNode(7, 7)),
                owner,
                LinkFault { blocked: true, delay_ms: 0 },
            );
            echoed(&mut stream, b"clear").await;
        }
    }

    #[tokio::test]
    async fn the_end_of_a_stream_is_held_back_too() {
        let (links, client, mut stream) = linked(true).await;
        echoed(&mut stream, b"clear").await;
        links.set(client, LinkEnd::Process(OWNER), LinkFault { blocked: true, delay_ms: 0 });
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        assert!(evenkeel_host::timeout(LOOK, stream.read_to_end(&mut rest)).await.is_err());
        links.heal();
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_delay_delays() {
        let (links, client, mut stream) = linked(true).await;
        echoed(&mut stream, b"clear").await;
        links.set_both(client, LinkEnd::Process(OWNER), LinkFault { blocked: false, delay_ms: 30 });
        let began = evenkeel_host::now();
        echoed(&mut stream, b"late").await;
        assert!(evenkeel_host::elapsed(began) >= Duration::from_millis(60));
    }

    #[test]
    fn the_kernel_s_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:2EE0 0100007F:8235 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0\n   \
                     1: 0100007F:8235 0100007F:2EE0 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0\n";
        let at = |port| crate::address::loopback(port);
        assert_eq!(inode_of(table, at(0x8235), at(0x2EE0)), Some(222));
        assert_eq!(inode_of(table, at(0x8235), at(0x2EE1)), None);
    }
}
