//! A shard's replica as an RPC server: it answers from the world and fails as the script says.

use crate::world::{Fault, OpenId, Seen, World};
use evenkeel_protocol::shard::{Leads, ShardReply, ShardRequest};
use evenkeel_protocol::{Failure, SqlError};
use evenkeel_rpc::{Replier, Service, serve};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

pub struct ReplicaServer {
    pub address: SocketAddr,
    paused: watch::Sender<bool>,
    dead: Arc<watch::Sender<bool>>,
    stopped: watch::Receiver<bool>,
    _port: TcpSocket,
}

/// A listener, and a guard that keeps its port from the servers of other tests after it has
/// stopped: a client would connect to them.
pub fn listen() -> (TcpListener, TcpSocket) {
    let socket = || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket
    };
    let (port, listening) = (socket(), socket());
    port.bind(([127, 0, 0, 1], 0).into()).unwrap();
    listening.bind(port.local_addr().unwrap()).unwrap();
    (listening.listen(128).unwrap(), port)
}

impl ReplicaServer {
    pub fn start(world: Arc<Mutex<World>>, shard: u32, number: u64) -> ReplicaServer {
        let (listener, _port) = listen();
        let address = listener.local_addr().unwrap();
        let (paused, pausing) = watch::channel(false);
        let (dead, mut dying) = watch::channel(false);
        let dead = Arc::new(dead);
        let replica = Arc::new(Replica { world, shard, number, pausing, dead: dead.clone() });
        let (stopping, stopped) = watch::channel(false);
        tokio::spawn(async move {
            let dying = async move { drop(dying.wait_for(|dead| *dead).await) };
            serve(listener, replica, dying).await;
            stopping.send_replace(true);
        });
        ReplicaServer { address, paused, dead, stopped, _port }
    }

    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Returns once connections are refused.
    pub async fn kill(&self) {
        self.dead.send_replace(true);
        self.stopped.clone().wait_for(|stopped| *stopped).await.unwrap();
    }
}

impl Drop for ReplicaServer {
    fn drop(&mut self) {
        self.dead.send_replace(true);
    }
}

struct Replica {
    world: Arc<Mutex<World>>,
    shard: u32,
    number: u64,
    pausing: watch::Receiver<bool>,
    dead: Arc<watch::Sender<bool>>,
}

impl Service for Replica {
    type Request = ShardRequest;
    type Reply = ShardReply;
    type Session = u64;

    fn opened(&self, _: SocketAddr) -> u64 {
        NEXT_SESSION.fetch_add(1, Ordering::Relaxed)
    }

    fn closed(&self, session: Arc<u64>) {
        let mut world = self.world.lock().unwrap();
        let shard = world.shards.get_mut(&self.shard).unwrap();
        let open: Vec<OpenId> = shard.open.keys().filter(|(owner, _)| *owner == *session).copied().collect();
        open.into_iter().for_each(|id| shard.undo(id));
    }

    async fn call(self: Arc<Self>, session: Arc<u64>, request: ShardRequest, mut replier: Replier<ShardReply>) {
        let _ = self.pausing.clone().wait_for(|paused| !paused).await;
        // The cost of other requests, while a replica is silent, grows with the number of ranges.
        if request == ShardRequest::WhoLeads {
            return replier.reply(&ShardReply::Leads(self.leads())).await;
        }
        let fault = match self.admit(&request) {
            Ok(fault) => fault,
            Err(failure) => return replier.reply(&ShardReply::Failed(failure)).await,
        };
        if let Fault::Slow(ms) = fault {
            evenkeel_host::sleep(Duration::from_millis(ms)).await;
        }
        if fault == Fault::UntilGone {
            replier.gone().gone().await;
            self.world.lock().unwrap().gone += 1;
            return;
        }
        match fault {
            Fault::ForgetRequest => return,
            Fault::DieBefore => return self.die(),
            Fault::Busy(retry_after_ms) => {
                let failure = Failure::Busy { reason: "as the script says".into(), retry_after_ms };
                return replier.reply(&ShardReply::Failed(failure)).await;
            }
            Fault::Error(error) => return replier.reply(&error.into()).await,
            _ => {}
        }
        let reply = self.execute(*session, &request);
        match fault {
            Fault::ForgetAnswer => {}
            Fault::DieAfter => self.die(),
            Fault::Unsure => {
                let failure = Failure::OutcomeUnknown { reason: "as the script says".into() };
                replier.reply(&ShardReply::Failed(failure)).await;
            }
            _ => replier.reply(&reply).await,
        }
    }
}

impl Replica {
    fn leads(&self) -> Leads {
        let leader = self.world.lock().unwrap().shards[&self.shard].leader;
        Leads { itself: leader == Some(self.number), leader }
    }

    /// Records a request to the leader, and takes the next line of the script.
    fn admit(&self, request: &ShardRequest) -> Result<Fault, Failure> {
        let mut world = self.world.lock().unwrap();
        let leader = world.shards[&self.shard].leader;
        if leader != Some(self.number) {
            return Err(Failure::NotLeader { leader });
        }
        let (id, what) = match request {
            ShardRequest::Statement(statement) => (statement.id, statement.sql.to_string()),
            ShardRequest::InTransaction { statement, .. } => (statement.id, statement.sql.to_string()),
            ShardRequest::Piece(piece) => (piece.statement.id, "piece".to_string()),
            ShardRequest::Commit { id, .. } => (*id, "commit".to_string()),
            // Rollbacks take no line of the script.
            _ => return Ok(Fault::Nothing),
        };
        world.seen.push(Seen { shard: self.shard, id, what });
        Ok(world.shards.get_mut(&self.shard).unwrap().faults.pop_front().unwrap_or(Fault::Nothing))
    }

    fn die(&self) {
        let mut world = self.world.lock().unwrap();
        world.shards.get_mut(&self.shard).unwrap().elect(Some(self.number % 3 + 1));
        self.dead.send_replace(true);
    }

    fn execute(&self, session: u64, request: &ShardRequest) -> ShardReply {
        let mut world = self.world.lock().unwrap();
        if world.shards[&self.shard].leader != Some(self.number) {
            return ShardReply::Failed(Failure::NotLeader { leader: world.shards[&self.shard].leader });
        }
        match request {
            ShardRequest::Statement(statement) => world.execute(self.shard, statement, None),
            ShardRequest::Piece(piece) => world.piece(self.shard, piece),
            ShardRequest::InTransaction { transaction, begin, statement } => {
                let open = (session, *transaction);
                let state = world.shards.get_mut(&self.shard).unwrap();
                match begin {
                    Some(_) => {
                        assert!(state.open.insert(open, vec![]).is_none(), "a transaction's number is used twice");
                    }
                    None if !state.open.contains_key(&open) => {
                        return SqlError::new("40001", "the transaction is gone").into();
                    }
                    None => {}
                }
                let reply = world.execute(self.shard, statement, Some(open));
                if matches!(reply, ShardReply::Failed(_)) {
                    world.shards.get_mut(&self.shard).unwrap().undo(open);
                }
                reply
            }
            ShardRequest::Commit { transaction, id, key, .. } => {
                let state = world.shards.get_mut(&self.shard).unwrap();
                if state.open.remove(&(session, *transaction)).is_some() {
                    state.window.insert(*id, ShardReply::Done);
                }
                if let Some((_, key)) = key {
                    let end = Some([key.as_bytes(), &[0]].concat());
                    let at =
                        evenkeel_protocol::KeyInterval::new(key.clone(), end.map(|e| evenkeel_protocol::Key(e.into())));
                    if let Some(elsewhere) = state.elsewhere(&at) {
                        return ShardReply::Failed(elsewhere);
                    }
                }
                match state.window.get(id) {
                    Some(reply) => reply.clone(),
                    None => SqlError::new("40001", "no such transaction is in the retry window").into(),
                }
            }
            ShardRequest::Prepare { transaction, id, .. } => {
                let (open, state) = ((session, *transaction), world.shards.get_mut(&self.shard).unwrap());
                if !state.open.contains_key(&open) {
                    return SqlError::new("40001", "the transaction is gone").into();
                }
                state.prepared.insert(*id, open);
                ShardReply::Done
            }
            ShardRequest::Resolve { id, committed } => {
                let state = world.shards.get_mut(&self.shard).unwrap();
                match state.prepared.remove(id) {
                    Some(open) if *committed => _ = state.open.remove(&open),
                    Some(open) => state.undo(open),
                    None => {}
                }
                ShardReply::Done
            }
            ShardRequest::Rollback { transaction } => {
                world.shards.get_mut(&self.shard).unwrap().undo((session, *transaction));
                ShardReply::Done
            }
            other => panic!("{other:?}"),
        }
    }
}
