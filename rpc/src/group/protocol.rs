//! What a search for the leader must know about messages.

use super::search::Addresses;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// What a reply says about the search for the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyMeaning {
    /// The reply is the answer.
    Answered,
    /// The replica does not answer this request because it does not lead.
    NotLeader {
        /// The replica that leads, if the asked one knows.
        leader: Option<u64>,
    },
    /// The replica leads and cannot answer yet.
    TryAgain {
        /// The pause that the replica asks for.
        after: Duration,
    },
}

/// The messages of one kind of replica group.
pub trait GroupProtocol {
    /// The requests.
    type Request: Serialize + Send + Sync;
    /// The replies.
    type Reply: DeserializeOwned + Send + 'static;

    /// What a reply says about the search for the leader.
    fn verdict(reply: &Self::Reply) -> ReplyMeaning;

    /// The request for the group's members, which every replica answers.
    fn members_request() -> Self::Request;

    /// The members in a reply to [`GroupProtocol::members_request`].
    fn members(reply: Self::Reply) -> Option<Addresses>;
}
