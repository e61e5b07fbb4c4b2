//! Carries out the steps of a search: connect, ask, wait.

use super::protocol::{GroupProtocol, ReplyMeaning};
use super::search::{Addresses, NoAnswer, Search, SearchStep};
use crate::connection::Connection;
use crate::error::RpcError;
use crate::pool::Pool;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The time limits of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long one replica may take to answer.
    pub attempt: Duration,
    /// After this time no further replica is asked.
    pub total: Duration,
}

/// Why no replica answered: the last failure.
#[derive(Debug, Clone)]
pub enum Unanswered<Rep> {
    /// The group has no members.
    NoReplicas,
    /// A replica gave no reply.
    NoReply {
        /// Its number.
        replica: u64,
        /// Why.
        error: RpcError,
    },
    /// A replica gave a reply that is not the leader's answer.
    Refused {
        /// Its number.
        replica: u64,
        /// The reply.
        reply: Rep,
    },
}

/// A replica group as a callee.
pub struct Group<P: GroupProtocol> {
    members: Addresses,
    leader: Option<u64>,
    pool: Arc<Pool<P::Request, P::Reply>>,
}

impl<P: GroupProtocol> Group<P> {
    /// A group with these members. `leader` is the replica that is asked first; `pool` may be
    /// shared with other groups.
    pub fn new(members: Addresses, leader: Option<u64>, pool: Arc<Pool<P::Request, P::Reply>>) -> Group<P> {
        Group { members, leader, pool }
    }

    /// The known members, with those that calls have learnt.
    pub fn members(&self) -> &Addresses {
        &self.members
    }

    /// The replica that answered last, if the last call was answered.
    pub fn leader(&self) -> Option<u64> {
        self.leader
    }

    /// Has the leader answer an idempotent request.
    ///
    /// # Errors
    /// The failure of the last attempt. The request may have been executed.
    pub async fn call(&mut self, request: &P::Request, patience: Patience) -> Result<P::Reply, Unanswered<P::Reply>> {
        let began = evenkeel_host::tokio_now();
        let mut search = Search::new(self.members.clone(), self.leader.take(), patience.total);
        let mut step = search.begin();
        let mut unanswered = Unanswered::NoReplicas;
        let answer = loop {
            step = match step {
                SearchStep::GiveUp => break Err(unanswered),
                SearchStep::AskMembers { address } => search.learn(self.ask_members(address, patience.attempt).await),
                SearchStep::Ask { replica, address, after } => {
                    if !after.is_zero() {
                        evenkeel_host::sleep(after).await;
                    }
                    let failure = match self.attempt(replica, address, request, patience.attempt).await {
                        Ok(reply) => {
                            self.leader = Some(replica);
                            break Ok(reply);
                        }
                        Err((failure, reason)) => {
                            unanswered = reason;
                            failure
                        }
                    };
                    search.failed(failure, evenkeel_host::tokio_now().duration_since(began))
                }
            };
        };
        self.members = search.into_members();
        answer
    }

    /// Replaces the members by those that a replica knows. Only replicas with an open connection
    /// are asked, the last leader first. `false` if none of them answers.
    pub async fn refresh_members(&mut self, attempt: Duration) -> bool {
        let mut asked: Vec<(u64, SocketAddr)> = self.members.iter().map(|(id, at)| (*id, *at)).collect();
        asked.sort_by_key(|(replica, _)| (Some(*replica) != self.leader, *replica));
        for (_, address) in asked {
            let Some(connection) = self.pool.open(address) else { continue };
            if let Some(members) = members_by::<P>(&connection, attempt).await {
                self.members = members;
                return true;
            }
        }
        false
    }

    async fn attempt(
        &self,
        replica: u64,
        address: SocketAddr,
        request: &P::Request,
        limit: Duration,
    ) -> Result<P::Reply, (NoAnswer, Unanswered<P::Reply>)> {
        let replied = match self.pool.get(address).await {
            Ok(connection) => connection.call_within(request, limit).await,
            Err(error) => Err(error),
        };
        match replied {
            Ok(reply) => match failure_of(P::verdict(&reply)) {
                None => Ok(reply),
                Some(failure) => Err((failure, Unanswered::Refused { replica, reply })),
            },
            Err(error) => {
                tracing::debug!(%address, %error, "a replica does not answer");
                let failure = if matches!(error, RpcError::Lost(_)) { NoAnswer::Lost } else { NoAnswer::Unreachable };
                if matches!(error, RpcError::TimedOut(_)) {
                    // The peer's machine may have failed without ending the connection: the next
                    // attempt connects again.
                    self.pool.remove(address);
                }
                Err((failure, Unanswered::NoReply { replica, error }))
            }
        }
    }

    async fn ask_members(&self, address: SocketAddr, limit: Duration) -> Option<Addresses> {
        members_by::<P>(&self.pool.get(address).await.ok()?, limit).await
    }
}

async fn members_by<P: GroupProtocol>(
    connection: &Connection<P::Request, P::Reply>,
    limit: Duration,
) -> Option<Addresses> {
    let reply = connection.call_within(&P::members_request(), limit).await.ok()?;
    P::members(reply).filter(|members| !members.is_empty())
}

fn failure_of(verdict: ReplyMeaning) -> Option<NoAnswer> {
    match verdict {
        ReplyMeaning::Answered => None,
        ReplyMeaning::TryAgain { after } => Some(NoAnswer::TryAgain { after }),
        ReplyMeaning::NotLeader { leader } => Some(NoAnswer::NotLeader { leader }),
    }
}
