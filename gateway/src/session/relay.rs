//! What a shard's PostgreSQL sends, written for the client or kept for it.

use super::run::RunEnd;
use super::trouble::Trouble;
use crate::wire::outgoing::Outgoing;
use bytes::Bytes;
use evenkeel_client::PassThroughReplies;
use evenkeel_postgres_session::tags;
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{PassThroughEnd, PassThroughItem};

/// Writes what a shard's PostgreSQL sends.
///
/// # Errors
/// The statement's own; the client is gone.
pub async fn relay(mut replies: PassThroughReplies, out: &mut Outgoing) -> Result<RunEnd, Trouble> {
    while let Some(item) = replies.next().await? {
        match item {
            PassThroughItem::Messages(messages) => {
                out.buffer.extend_from_slice(&messages);
                out.send_if_full().await?;
            }
            PassThroughItem::Parameters(_) => {}
            PassThroughItem::End(PassThroughEnd::Complete(tag)) => return Ok(RunEnd::Complete(tag)),
            PassThroughItem::End(PassThroughEnd::Suspended) => return Ok(RunEnd::Suspended),
            PassThroughItem::End(PassThroughEnd::Empty | PassThroughEnd::Done) => return Ok(RunEnd::Empty),
        }
    }
    Err(Trouble::Ended(SqlError::new(codes::INTERNAL, "a shard's answer has no end")))
}

/// Cuts messages of PostgreSQL's protocol apart: the rows, and everything else in one piece.
pub fn rows_and_others(mut messages: Bytes) -> (Vec<Bytes>, Vec<Bytes>) {
    let (mut rows, mut others) = (Vec::new(), Vec::new());
    while let Some(length) = messages.get(1..5) {
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let message = messages.split_to(messages.len().min(length.max(4) + 1));
        if message.first() == Some(&tags::DATA_ROW) { rows.push(message) } else { others.push(message) }
    }
    (rows, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_apart() {
        let (row, notice) = (&b"D\0\0\0\x06\0\0"[..], &b"N\0\0\0\x05x"[..]);
        let messages = Bytes::from([row, notice, row].concat());
        let (rows, others) = rows_and_others(messages);
        assert_eq!((rows.len(), others), (2, vec![Bytes::from_static(notice)]));
        assert!(rows.iter().all(|found| found == row));
    }
}
