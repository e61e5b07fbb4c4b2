//! The answer to a pass-through step, on its way to the client.
//!
//! Promises: items end at about [`ITEM_BYTES`]; no more than one is collected at a time, and the
//! next is not begun before the connection has taken the last, so that a slow client slows its
//! statement down and costs no memory.

use bytes::{Bytes, BytesMut};
use evenkeel_protocol::pass_through::{ITEM_BYTES, PassThroughItem};
use evenkeel_protocol::shard::ShardReply;
use evenkeel_rpc::Replier;

/// See the module.
pub struct ItemStream<'a> {
    replier: &'a mut Replier<ShardReply>,
    messages: BytesMut,
}

/// The client's connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientGone;

impl<'a> ItemStream<'a> {
    /// An answer of which nothing has been sent.
    pub fn new(replier: &'a mut Replier<ShardReply>) -> ItemStream<'a> {
        ItemStream { replier, messages: BytesMut::new() }
    }

    /// Whether a message of this size begins another item.
    pub fn is_full_for(&self, message: &Bytes) -> bool {
        !self.messages.is_empty() && self.messages.len() + message.len() > ITEM_BYTES
    }

    /// Adds a whole message.
    pub fn push(&mut self, message: &Bytes) {
        self.messages.extend_from_slice(message);
    }

    /// Sends the collected messages, if there are any.
    pub async fn send(&mut self) -> Result<(), ClientGone> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let messages = self.messages.split().freeze();
        self.item(PassThroughItem::Messages(messages)).await
    }

    /// Sends an item of another kind.
    pub async fn item(&mut self, item: PassThroughItem) -> Result<(), ClientGone> {
        if self.replier.item(&ShardReply::PassThrough(item)).await { Ok(()) } else { Err(ClientGone) }
    }
}
