//! The network: connections that keep order, take time, and stop where a fault is.
//!
//! A machine's address is `10.0.0.N`. Each direction of a connection is a pipe of chunks, each with
//! its time of arrival. A cut link keeps the data under way, as TCP does, until it is restored. A
//! machine that dies breaks its connections, or leaves its peers waiting. A connection may fall
//! silent in one direction and break some time later: what was executed meanwhile is not answered.

use crate::process;
use bytes::{Buf, Bytes};
use evenkeel_host::{Accept, Connecting, Duplex};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes on their way in one direction; a writer waits beyond it.
const WINDOW_BYTES: usize = 256 << 10;
/// Connections that wait to be accepted.
const BACKLOG: usize = 64;
/// With [`Net::lose_answers_to`], one write in this many is the first of its connection that is
/// lost.
const LOST_IN: u64 = 50;
/// How long such a connection stays silent before it breaks, in milliseconds, at most.
const SILENT_MS: u64 = 1_500;

/// A machine's address.
pub fn address(machine: u32, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, machine as u8)), port)
}

fn machine_of(address: SocketAddr) -> u32 {
    match address.ip() {
        IpAddr::V4(ip) => ip.octets()[3].into(),
        IpAddr::V6(_) => 0,
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    from: u32,
    to: u32,
    chunks: VecDeque<(u64, Bytes)>,
    bytes: usize,
    /// When the last chunk arrives: none overtakes another.
    last_ms: u64,
    ends_ms: Option<u64>,
    /// The other machine has died, and says so.
    broken: bool,
    /// It has died and cannot say so, or does not live to hear it.
    dead: bool,
    /// Written data gets lost.
    silent: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

#[derive(Default)]
struct Listening {
    waiting: VecDeque<(End, SocketAddr)>,
    /// The tasks that accept: two for a moment, when one takes the other's place.
    wakers: Vec<Waker>,
}

#[derive(Default)]
struct NetState {
    listeners: BTreeMap<SocketAddr, Listening>,
    pipes: BTreeMap<u64, Pipe>,
    next_pipe: u64,
    cut: BTreeSet<(u32, u32)>,
    slow_ms: BTreeMap<(u32, u32), u64>,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    /// See [`Net::lose_answers_to`].
    losing: Option<u32>,
    /// When connections break that have fallen silent, and their two pipes.
    breaking: BinaryHeap<Reverse<(u64, [u64; 2])>>,
    /// The tasks that wait for a time, or for a link to be restored.
    connecting: Vec<(u64, Waker)>,
    /// See [`Net::carried`].
    carried: u64,
}

/// FNV-1a, eight bytes at a time; the input is not adversarial.
fn digest(of: u64, data: &[u8]) -> u64 {
    data.chunks(8).fold(of, |digest, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (digest ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The network of a simulation. Clones are the same one.
#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<NetState>>);

impl Net {
    fn state(&self) -> MutexGuard<'_, NetState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers the data that has arrived by now.
    pub fn deliver(&self) {
        let now_ms = process::now_ms();
        let mut state = self.state();
        while let Some(Reverse((at_ms, pipe))) = state.due.peek().copied()
            && at_ms <= now_ms
        {
            state.due.pop();
            if let Some(reader) = state.pipes.get_mut(&pipe).and_then(|pipe| pipe.reader.take()) {
                reader.wake();
            }
        }
        while let Some(Reverse((at_ms, pipes))) = state.breaking.peek().copied()
            && at_ms <= now_ms
        {
            state.breaking.pop();
            for pipe in pipes {
                if let Some(pipe) = state.pipes.get_mut(&pipe) {
                    pipe.broken = true;
                    pipe.wake();
                }
            }
        }
        for (at_ms, waker) in std::mem::take(&mut state.connecting) {
            if at_ms <= now_ms {
                waker.wake();
            } else {
                state.connecting.push((at_ms, waker));
            }
        }
    }

    /// Nothing gets from `from` to `to` until [`Net::restore`].
    pub fn cut(&self, from: u32, to: u32) {
        self.state().cut.insert((from, to));
    }

    /// Data from `from` to `to` takes up to `by_ms` milliseconds longer.
    pub fn slow(&self, from: u32, to: u32, by_ms: u64) {
        self.state().slow_ms.insert((from, to), by_ms);
    }

    /// From now on connections fall silent, now and then, in the direction to this machine, and
    /// break some time later. `None`: no further ones.
    pub fn lose_answers_to(&self, machine: Option<u32>) {
        self.state().losing = machine;
    }

    /// This direction works again.
    pub fn restore(&self, from: u32, to: u32) {
        let mut state = self.state();
        state.slow_ms.remove(&(from, to));
        if state.cut.remove(&(from, to)) {
            state.pipes.values_mut().filter(|pipe| (pipe.from, pipe.to) == (from, to)).for_each(Pipe::wake);
        }
    }

    /// All links work again.
    pub fn restore_all(&self) {
        let mut state = self.state();
        state.slow_ms.clear();
        state.cut.clear();
        state.pipes.values_mut().for_each(Pipe::wake);
    }

    /// A machine dies. Its peers learn of it at once, or, with `silently`, not at all.
    pub fn dies(&self, machine: u32, silently: bool) {
        let mut state = self.state();
        let all = std::mem::take(&mut state.listeners);
        let (gone, kept): (BTreeMap<_, _>, _) = all.into_iter().partition(|(at, _)| machine_of(*at) == machine);
        state.listeners = kept;
        for pipe in state.pipes.values_mut().filter(|pipe| pipe.from == machine || pipe.to == machine) {
            pipe.dead = true;
            pipe.broken |= !silently;
            pipe.wake();
        }
        drop(state);
        // Connections that were not accepted yet take the lock when they are dropped.
        drop(gone);
    }

    /// A digest of all data carried so far, and of its pipes.
    pub fn carried(&self) -> u64 {
        self.state().carried
    }

    /// As [`evenkeel_host::Simulation::listen`].
    pub fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Accept>> {
        let mut state = self.state();
        if machine_of(at) != process::machine() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        if state.listeners.insert(at, Listening::default()).is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(Box::new(Port { net: self.clone(), at }))
    }

    /// As [`evenkeel_host::Simulation::connect`].
    pub fn connect(&self, to: SocketAddr) -> Connecting {
        let net = self.clone();
        let me = process::machine();
        Box::pin(async move {
            let peer = machine_of(to);
            let round_trip = {
                let mut state = net.state();
                state.latency_ms(me, peer) + state.latency_ms(peer, me)
            };
            net.at(process::now_ms() + round_trip, me, peer).await;
            let mut state = net.state();
            if state.listeners.get(&to).is_none_or(|listening| listening.waiting.len() >= BACKLOG) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (there, back) = (state.pipe(me, peer), state.pipe(peer, me));
            let ours = End { net: net.clone(), out: there, back };
            let theirs = End { net: net.clone(), out: back, back: there };
            let Some(listening) = state.listeners.get_mut(&to) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            listening.waiting.push_back((theirs, address(me, 0)));
            listening.wakers.drain(..).for_each(Waker::wake);
            drop(state);
            Ok(Box::new(ours) as Box<dyn Duplex>)
        })
    }

    /// Waits until a moment, and then until both directions between two machines work.
    async fn at(&self, at_ms: u64, a: u32, b: u32) {
        std::future::poll_fn(|context| {
            let mut state = self.state();
            let now_ms = process::now_ms();
            if now_ms >= at_ms && !state.cut.contains(&(a, b)) && !state.cut.contains(&(b, a)) {
                return Poll::Ready(());
            }
            let again_ms = at_ms.max(now_ms + 1);
            state.connecting.push((again_ms, context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

impl NetState {
    fn latency_ms(&mut self, from: u32, to: u32) -> u64 {
        let usual = if from == to { 0 } else { 1 + u64::from(process::once_in(4)) };
        match self.slow_ms.get(&(from, to)) {
            Some(by_ms) => usual + process::below(*by_ms),
            None => usual,
        }
    }

    fn pipe(&mut self, from: u32, to: u32) -> u64 {
        self.next_pipe += 1;
        self.pipes.insert(self.next_pipe, Pipe { from, to, ..Pipe::default() });
        self.next_pipe
    }
}

struct Port {
    net: Net,
    at: SocketAddr,
}

impl Accept for Port {
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Duplex>, SocketAddr)>> {
        let mut state = self.net.state();
        let Some(listening) = state.listeners.get_mut(&self.at) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match listening.waiting.pop_front() {
            Some((end, peer)) => Poll::Ready(Ok((Box::new(end), peer))),
            None => {
                if !listening.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    listening.wakers.push(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Waiting connections take the lock when they are dropped, so they are dropped outside of
        // it.
        let listening = self.net.state().listeners.remove(&self.at);
        drop(listening);
    }
}

/// One end of a connection.
struct End {
    net: Net,
    out: u64,
    back: u64,
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.net.state();
        let NetState { pipes, cut, .. } = &mut *state;
        let Some(pipe) = pipes.get_mut(&self.back) else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        if pipe.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let now_ms = process::now_ms();
        let open = !pipe.dead && !cut.contains(&(pipe.from, pipe.to));
        if open {
            let mut read = false;
            while let Some((_, chunk)) = pipe.chunks.front_mut().filter(|(at_ms, _)| *at_ms <= now_ms)
                && buffer.remaining() > 0
            {
                let some = chunk.len().min(buffer.remaining());
                buffer.put_slice(&chunk[..some]);
                chunk.advance(some);
                pipe.bytes -= some;
                read = true;
                if chunk.is_empty() {
                    pipe.chunks.pop_front();
                }
            }
            if read {
                if let Some(writer) = pipe.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Ok(()));
            }
            if pipe.chunks.is_empty() && pipe.ends_ms.is_some_and(|ends_ms| ends_ms <= now_ms) {
                return Poll::Ready(Ok(()));
            }
        }
        pipe.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.net.state();
        let Some((from, to)) = state.pipes.get(&self.out).map(|pipe| (pipe.from, pipe.to)) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let arrives_ms = process::now_ms() + state.latency_ms(from, to);
        if state.losing == Some(to) && process::once_in(LOST_IN) {
            state.fall_silent([self.out, self.back]);
        }
        let NetState { pipes, due, carried, .. } = &mut *state;
        let Some(pipe) = pipes.get_mut(&self.out) else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        if pipe.broken || pipe.reader_gone {
            // Data for an end that is gone is answered by a reset, which ends both directions.
            if let Some(back) = pipes.get_mut(&self.back) {
                back.broken = true;
                back.wake();
            }
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.bytes >= WINDOW_BYTES {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        if pipe.silent {
            return Poll::Ready(Ok(data.len()));
        }
        pipe.last_ms = pipe.last_ms.max(arrives_ms);
        pipe.chunks.push_back((pipe.last_ms, Bytes::copy_from_slice(data)));
        pipe.bytes += data.len();
        *carried = digest(*carried ^ self.out, data);
        due.push(Reverse((pipe.last_ms, self.out)));
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.net.state().end(self.out);
        Poll::Ready(Ok(()))
    }
}

impl NetState {
    /// Data written to the first of these pipes gets lost, until their connection breaks.
    fn fall_silent(&mut self, [out, back]: [u64; 2]) {
        if let Some(pipe) = self.pipes.get_mut(&out).filter(|pipe| !pipe.silent) {
            pipe.silent = true;
            let breaks_ms = process::now_ms() + 1 + process::below(SILENT_MS);
            self.breaking.push(Reverse((breaks_ms, [out, back])));
        }
    }

    /// The writer has no more.
    fn end(&mut self, out: u64) {
        let Some((from, to)) = self.pipes.get(&out).map(|pipe| (pipe.from, pipe.to)) else { return };
        let latency_ms = self.latency_ms(from, to);
        if let Some(pipe) = self.pipes.get_mut(&out).filter(|pipe| pipe.ends_ms.is_none()) {
            pipe.last_ms = pipe.last_ms.max(process::now_ms() + latency_ms);
            pipe.ends_ms = Some(pipe.last_ms);
            self.due.push(Reverse((pipe.last_ms, out)));
        }
    }

    /// One of the two ends of a pipe has gone; with the second the pipe goes.
    fn reader_gone(&mut self, back: u64) {
        if let Some(pipe) = self.pipes.get_mut(&back) {
            pipe.reader_gone = true;
            if let Some(writer) = pipe.writer.take() {
                writer.wake();
            }
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.net.state();
        state.end(self.out);
        state.reader_gone(self.back);
        let over = |state: &NetState, pipe: u64| {
            state.pipes.get(&pipe).is_none_or(|pipe| pipe.reader_gone && pipe.ends_ms.is_some())
        };
        // Both ends are gone only once both pipes have neither a writer nor a reader.
        if over(&state, self.out) && over(&state, self.back) {
            let removed = (state.pipes.remove(&self.out), state.pipes.remove(&self.back));
            drop(state);
            drop(removed);
        }
    }
}
