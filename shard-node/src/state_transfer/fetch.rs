//! The replica that is re-seeded: it asks its peers for missing rows, several pieces at a time.

use super::limit::{Held, Limit};
use super::missing::Missing;
use super::piece::SeedPiece;
use super::sizes::MAX_PIECES;
use super::source_peers::{ASK_MS, SILENCE_MS, peers_at};
use super::transfer_error::{TransferError, lost};
use crate::apply::ApplierRequest;
use crate::config::Config;
use crate::migration::peers::{self, PeerConnection};
use crate::replica::ReplicaHandles;
use bytes::BytesMut;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::shard::{ControlReply, ControlRequest, SeedItem, SeedRequest, ShardReply, ShardRequest};
use evenkeel_protocol::{Key, KeyInterval, RowBatch, TableId};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Parts that are fetched at once.
const WORKERS: usize = 4;
/// Between tries after a peer has failed, in milliseconds.
const BETWEEN_TRIES_MS: u64 = 200;

/// What the workers share.
struct Fetch {
    config: Arc<Config>,
    shared: ReplicaHandles,
    requests: mpsc::Sender<ApplierRequest>,
    limit: Arc<Limit>,
    parts: Mutex<VecDeque<(TableId, KeyInterval)>>,
    /// The position of the state that came without its rows. A peer that has not reached it, such
    /// as one that has lost its disk and is not a member yet, may never do so.
    from: u64,
    room: Arc<Semaphore>,
    /// The last position that each peer is known to have reached, whichever worker asked it.
    reached: Mutex<BTreeMap<SocketAddr, u64>>,
}

/// A peer that gives rows.
struct Peer {
    connection: PeerConnection,
    address: SocketAddr,
}

/// A piece that has been handed to the applier, which may not want it.
struct Handed {
    table: TableId,
    covered: KeyInterval,
    taken: oneshot::Receiver<bool>,
}

/// Fetches missing rows and hands them to the applier. Never returns: the applier knows when all
/// rows are in.
pub async fn fetch(
    config: Arc<Config>,
    shared: ReplicaHandles,
    requests: mpsc::Sender<ApplierRequest>,
    limit: Arc<Limit>,
    missing: Missing,
) {
    let state = shared.state();
    let mut bounds: Vec<(TableId, Key)> =
        state.owned().map(|range| (range.table, range.interval.start.clone())).collect();
    if bounds.len() < WORKERS {
        bounds.extend(cuts(&config, &shared).await);
    }
    let parts = missing.parts(bounds.iter().map(|(table, key)| (*table, key)));
    let room = Arc::new(Semaphore::new(MAX_PIECES));
    let (parts, from) = (Mutex::new(parts.into()), shared.progress.applied());
    let fetch = Fetch { config, shared, requests, limit, parts, from, room, reached: Mutex::default() };
    futures::future::join_all((0..WORKERS).map(|worker| fetch.work(worker))).await;
    std::future::pending().await
}

/// Keys between which about equally many bytes of the few ranges lie, from samples of the leader's
/// rows; none of a range of which it does not say any. They are no more than places where parts may
/// begin.
async fn cuts(config: &Config, shared: &ReplicaHandles) -> Vec<(TableId, Key)> {
    let state = shared.state();
    let peers = peers_at(config, &shared.log, 0).await;
    let Some(leader) = peers.last() else { return Vec::new() };
    let asked = state.owned().map(|range| async move {
        let (of, epoch, pieces) = (range.id, range.epoch, 2 * WORKERS as u32);
        let request = ShardRequest::Control(ControlRequest::SizeSplitKeys { range: of, epoch, pieces });
        match peers::ask(*leader, &request, Duration::from_millis(ASK_MS)).await {
            Ok(ShardReply::Control(ControlReply::SplitKeys(keys))) => {
                keys.into_iter().map(|key| (range.table, key)).collect()
            }
            _ => Vec::new(),
        }
    });
    futures::future::join_all(asked).await.concat()
}

impl Fetch {
    fn parts(&self) -> MutexGuard<'_, VecDeque<(TableId, KeyInterval)>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last position that a peer is known to have reached, now that it says `position`.
    fn reached(&self, peer: SocketAddr, position: u64) -> u64 {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let known = reached.entry(peer).or_default();
        *known = position.max(*known);
        *known
    }

    /// Fetches one part after the other, and of a part the next piece while the last is stored.
    async fn work(&self, worker: usize) {
        let mut peer = None;
        let mut tries = worker;
        let mut before: Option<Handed> = None;
        loop {
            let part = self.parts().pop_front();
            let Some((table, mut rest)) = part else {
                // The last piece may have to be fetched again.
                match before.take() {
                    Some(handed) => self.resolve(handed).await,
                    None => return,
                }
                continue;
            };
            loop {
                match self.piece(&mut peer, tries, table, &rest).await {
                    Ok((handed, left)) => {
                        if let Some(handed) = before.replace(handed) {
                            self.resolve(handed).await;
                        }
                        match left {
                            Some(left) => rest = left,
                            None => break,
                        }
                    }
                    Err(error) => {
                        tracing::info!(shard = %self.config.shard, replica = self.config.replica, %error, "no rows yet");
                        (peer, tries) = (None, tries + 1);
                        evenkeel_host::sleep(Duration::from_millis(BETWEEN_TRIES_MS)).await;
                    }
                }
            }
        }
    }

    /// Waits for the applier's answer on a piece. A piece that was not taken is older than the
    /// applied log: it is fetched again.
    async fn resolve(&self, handed: Handed) {
        // The applier that is gone takes this whole fetch with it.
        if !handed.taken.await.unwrap_or(true) {
            self.parts().push_back((handed.table, handed.covered));
        }
    }

    /// Fetches the first piece of `rest` and hands it to the applier; returns the remainder of
    /// `rest`.
    async fn piece(
        &self,
        peer: &mut Option<Peer>,
        tries: usize,
        table: TableId,
        rest: &KeyInterval,
    ) -> Result<(Handed, Option<KeyInterval>), TransferError> {
        let room = self.room.clone().acquire_owned().await.map_err(lost)?;
        let peer = match peer {
            Some(peer) => peer,
            None => peer.insert(self.find(tries).await?),
        };
        let at_least = match deliberate(Bug::StalePiece) {
            false => self.reached(peer.address, 0).max(self.shared.progress.applied()),
            true => 0,
        };
        let held = self.limit.hold(if deliberate(Bug::StalePiece) { u64::MAX } else { at_least });
        let request = SeedRequest { table, interval: rest.clone(), at_least };
        let asked = evenkeel_host::now();
        let (piece, last) = self.ask(&peer.connection, request, held, room).await?;
        metrics::histogram!("evenkeel_seed_fetch_seconds").record(evenkeel_host::elapsed(asked).as_secs_f64());
        self.reached(peer.address, piece.position);
        let covered = piece.covered.clone();
        let left = covered.end.clone().filter(|_| !last).map(|start| KeyInterval::new(start, rest.end.clone()));
        let (reply, taken) = oneshot::channel();
        self.requests.send(ApplierRequest::Seeded(Box::new(piece), reply)).await.map_err(lost)?;
        Ok((Handed { table, covered, taken }, left))
    }

    /// Followers take turns; the leader gives rows only if there is no follower that could.
    async fn find(&self, tries: usize) -> Result<Peer, TransferError> {
        let found = peers_at(&self.config, &self.shared.log, self.from).await;
        // The last one is the leader, or one of the others if the leader is silent.
        let from: &[SocketAddr] =
            if found.len() > 1 && tries < 2 * WORKERS { &found[..found.len() - 1] } else { &found };
        let address = *from.get(tries % from.len().max(1)).ok_or(TransferError::NoPeer)?;
        let connection = peers::connect(address).await.map_err(lost)?;
        Ok(Peer { connection, address })
    }

    async fn ask(
        &self,
        connection: &PeerConnection,
        request: SeedRequest,
        held: Held,
        room: OwnedSemaphorePermit,
    ) -> Result<(SeedPiece, bool), TransferError> {
        let table = request.table;
        let (start, mut data) = (request.interval.start.clone(), BytesMut::new());
        let mut stream = connection.stream(&ShardRequest::SeedRows(request)).await.map_err(lost)?;
        loop {
            let item = evenkeel_host::timeout(Duration::from_millis(SILENCE_MS), stream.next()).await;
            match item {
                Ok(Some(ShardReply::Seed(SeedItem::Piece(piece)))) => data.extend_from_slice(&piece),
                Ok(Some(ShardReply::Seed(SeedItem::End {
                    covered,
                    width,
                    count,
                    last,
                    position,
                    holds_to,
                    schema,
                }))) => {
                    if covered.start != start {
                        return Err(lost("rows of another interval"));
                    }
                    let rows = RowBatch { width, count, data: data.freeze() };
                    return Ok((SeedPiece { table, covered, rows, position, holds_to, schema, held, room }, last));
                }
                Ok(Some(ShardReply::Failed(failure))) => return Err(lost(format!("{failure:?}"))),
                Ok(_) => return Err(lost("the stream ended early")),
                Err(_) => return Err(lost("the peer is silent")),
            }
        }
    }
}
