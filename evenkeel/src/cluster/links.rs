//! The network between the processes of a cluster on one machine, so that it can be cut, slowed down and mended.
//!
//! With [`super::ClusterOptions::links`] every address that a process is told of leads to a proxy here, its own too, so that it tells
//! others the same; so do the addresses that clients get. A proxy knows who has connected to it by looking up the socket's owner in `/proc`, so each
//! *direction* of each pair of processes (and of each process and the world outside) can be blocked by itself.
//!
//! What it promises is what TCP does on a network that loses packets: bytes on a blocked direction, and the news that an end has
//! closed, are held, in order, and arrive when it is open again. What it cannot do is lose a connection request: a
//! connection over a blocked link is accepted, and then silent. No rule is kept for a connection: rules are looked up for each
//! piece that passes, so they take hold of connections that are open.

use super::ProcessId;
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

/// The most that is read at once and held per direction of a connection, in bytes.
const PIECE_BYTES: usize = 64 << 10;
/// How long to wait after a failure to accept, in milliseconds; somebody may give back a descriptor.
const ACCEPT_PAUSE_MS: u64 = 20;

/// An end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A process of the cluster.
    Process(ProcessId),
    /// Anybody else: clients.
    Outside,
}

/// What befalls the bytes on one direction of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Nothing arrives.
    pub blocked: bool,
    /// Each piece arrives this much later, in milliseconds.
    pub delay_ms: u64,
}

/// By direction: from, to. What is absent is clear.
type Rules = BTreeMap<(Party, Party), Weather>;

/// The proxies of one cluster. Dropping it ends them.
#[derive(Debug)]
pub struct Links {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<AbortHandle>>,
}

#[derive(Debug)]
struct Shared {
    rules: watch::Sender<Rules>,
    /// Who has which process id.
    pids: Mutex<BTreeMap<ProcessId, u32>>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(AbortHandle::abort);
    }
}

impl Default for Links {
    fn default() -> Links {
        let shared = Shared { rules: watch::Sender::new(Rules::new()), pids: Mutex::default() };
        Links { shared: Arc::new(shared), tasks: Mutex::default() }
    }
}

impl Links {
    /// Opens a proxy at `front` before the address `real` of `owner`. Must be called within a tokio runtime.
    pub fn open(&self, owner: ProcessId, front: SocketAddr, real: SocketAddr) -> io::Result<()> {
        let listener = std::net::TcpListener::bind(front)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let task = tokio::spawn(accept(self.shared.clone(), listener, front, real, owner)).abort_handle();
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        Ok(())
    }

    /// A process has been started under this process id.
    pub fn started(&self, id: ProcessId, pid: u32) {
        self.shared.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(id, pid);
    }

    /// Sets the weather from `from` to `to`, in that direction only.
    pub fn set(&self, from: Party, to: Party, weather: Weather) {
        self.shared.rules.send_modify(|rules| {
            if weather == Weather::default() {
                rules.remove(&(from, to));
            } else {
                rules.insert((from, to), weather);
            }
        });
    }

    /// Sets the weather between `a` and `b`, both ways.
    pub fn set_both(&self, a: Party, b: Party, weather: Weather) {
        self.set(a, b, weather);
        self.set(b, a, weather);
    }

    /// Makes everything clear.
    pub fn mend(&self) {
        self.shared.rules.send_modify(Rules::clear);
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, front: SocketAddr, real: SocketAddr, owner: ProcessId) {
    // Ends with this task: connections do not outlive the proxy.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let shared = shared.clone();
                connections.spawn(async move {
                    if let Err(error) = carry(&shared, stream, peer, front, real, owner).await {
                        tracing::trace!(%error, %peer, %owner, "a link's connection has ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, %owner, "a link cannot accept");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn carry(
    shared: &Arc<Shared>,
    near: TcpStream,
    peer: SocketAddr,
    front: SocketAddr,
    real: SocketAddr,
    owner: ProcessId,
) -> io::Result<()> {
    let pids = shared.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let who = tokio::task::spawn_blocking(move || owner_of(peer, front, &pids)).await.map_err(io::Error::other)?;
    let from = who?.map_or(Party::Outside, Party::Process);
    let to = Party::Process(owner);
    near.set_nodelay(true)?;
    // Even the request to connect goes over the link.
    let (mut there, mut back) = (Way::new(shared, from, to), Way::new(shared, to, from));
    there.pass().await;
    let far = TcpStream::connect(real).await?;
    far.set_nodelay(true)?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::join!(there.pump(near_read, far_write), back.pump(far_read, near_write));
    Ok(())
}

/// One direction of one connection.
struct Way {
    rules: watch::Receiver<Rules>,
    direction: (Party, Party),
}

impl Way {
    fn new(shared: &Shared, from: Party, to: Party) -> Way {
        Way { rules: shared.rules.subscribe(), direction: (from, to) }
    }

    /// Waits until something may pass, and for as long as it takes to pass.
    async fn pass(&mut self) {
        let weather = |rules: &Rules| rules.get(&self.direction).copied().unwrap_or_default();
        let delay_ms = match self.rules.wait_for(|rules| !weather(rules).blocked).await {
            Ok(rules) => weather(&rules).delay_ms,
            // The links are gone, and this connection with them.
            Err(_) => 0,
        };
        if delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        }
    }

    /// Carries bytes, and in the end the news of the end.
    async fn pump(&mut self, mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            // Whatever is wrong with this end, the other hears that nothing more comes.
            let count = read.read(&mut piece).await.unwrap_or(0);
            self.pass().await;
            if count == 0 || write.write_all(&piece[..count]).await.is_err() {
                break;
            }
        }
        // If the other end is gone it need not hear of it.
        let _ = write.shutdown().await;
    }
}

/// Which of these processes has the connection from `near` to `far` (both on the loopback interface) open at `near`.
fn owner_of(near: SocketAddr, far: SocketAddr, pids: &BTreeMap<ProcessId, u32>) -> io::Result<Option<ProcessId>> {
    let Some(inode) = inode_of(&std::fs::read_to_string("/proc/net/tcp")?, near, far) else {
        return Ok(None);
    };
    let wanted = format!("socket:[{inode}]");
    let has = |pid: &u32| {
        // A process that has ended has no sockets.
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|target| target.as_os_str() == wanted.as_str())
    };
    let mut seen = BTreeSet::new();
    Ok(pids.iter().find(|(_, pid)| seen.insert(**pid) && has(pid)).map(|(id, _)| *id))
}

/// The socket's number in the kernel's table of connections.
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
    /// Nothing may come; how long to look whether it does. A slow machine only makes the look longer.
    const LOOK: Duration = Duration::from_millis(50);

    /// A link to a server that sends everything back; and a connection over it by this process, which is `OWNER` number 2.
    async fn linked(as_process: bool) -> (Links, Party, TcpStream) {
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
        let front = super::super::loopback(ports[0]);
        links.open(OWNER, front, real).unwrap();
        let stream = TcpStream::connect(front).await.unwrap();
        (links, if as_process { Party::Process(client) } else { Party::Outside }, stream)
    }

    async fn echoed(stream: &mut TcpStream, text: &[u8]) {
        stream.write_all(text).await.unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, text);
    }

    #[tokio::test]
    async fn who_connects_is_recognised_and_each_direction_is_cut_by_itself() {
        for as_process in [true, false] {
            let (links, client, mut stream) = linked(as_process).await;
            echoed(&mut stream, b"clear").await;
            let owner = Party::Process(OWNER);
            for (from, to) in [(client, owner), (owner, client)] {
                links.set(from, to, Weather { blocked: true, delay_ms: 0 });
                stream.write_all(b"held").await.unwrap();
                let mut back = [0; 4];
                assert!(tokio::time::timeout(LOOK, stream.read_exact(&mut back)).await.is_err());
                links.mend();
                stream.read_exact(&mut back).await.unwrap();
                assert_eq!(&back, b"held", "nothing is lost, and nothing overtakes");
            }
            // A link between others is none of this connection's business.
            links.set_both(Party::Process(ProcessId::ShardNode(7, 7)), owner, Weather { blocked: true, delay_ms: 0 });
            echoed(&mut stream, b"clear").await;
        }
    }

    #[tokio::test]
    async fn the_news_of_an_end_is_held_too() {
        let (links, client, mut stream) = linked(true).await;
        echoed(&mut stream, b"clear").await;
        links.set(client, Party::Process(OWNER), Weather { blocked: true, delay_ms: 0 });
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        assert!(tokio::time::timeout(LOOK, stream.read_to_end(&mut rest)).await.is_err());
        links.mend();
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_delay_delays() {
        let (links, client, mut stream) = linked(true).await;
        echoed(&mut stream, b"clear").await;
        links.set_both(client, Party::Process(OWNER), Weather { blocked: false, delay_ms: 30 });
        let began = std::time::Instant::now();
        echoed(&mut stream, b"late").await;
        assert!(began.elapsed() >= Duration::from_millis(60));
    }

    #[test]
    fn the_kernel_s_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:2EE0 0100007F:8235 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0\n   \
                     1: 0100007F:8235 0100007F:2EE0 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0\n";
        let at = |port| super::super::loopback(port);
        assert_eq!(inode_of(table, at(0x8235), at(0x2EE0)), Some(222));
        assert_eq!(inode_of(table, at(0x8235), at(0x2EE1)), None);
    }
}
