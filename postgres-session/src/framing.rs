//! Messages cut out of a stream of bytes. Pure.

use crate::message::{HEADER_BYTES, Message};
use crate::session_error::SessionError;
use bytes::BytesMut;

/// The longest message of the server, in bytes: a row as long as a table's longest value, and some
/// space for its other columns.
pub const MAX_MESSAGE_BYTES: usize = 80 << 20;
/// Bytes that are read at once, at least.
const READ_BYTES: usize = 32 << 10;

/// Bytes that were read and not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Input(BytesMut);

impl Input {
    /// The next message, if all of it is here.
    pub(crate) fn take(&mut self) -> Result<Option<Message>, SessionError> {
        let Some((header, _)) = self.0.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [_, length @ ..] = *header;
        // The length counts itself and not the tag.
        let length = usize::try_from(i32::from_be_bytes(length)).ok().filter(|length| *length >= 4);
        let length = length.ok_or(SessionError::Malformed("a message's length is wrong"))? + 1;
        if length > MAX_MESSAGE_BYTES {
            return Err(SessionError::TooLong { bytes: length, limit: MAX_MESSAGE_BYTES });
        }
        if self.0.len() < length {
            self.0.reserve(length - self.0.len());
            return Ok(None);
        }
        Ok(Message::new(self.0.split_to(length).freeze()))
    }

    /// Where the next bytes go.
    pub(crate) fn space(&mut self) -> &mut BytesMut {
        self.0.reserve(READ_BYTES);
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn encode(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag], &(body.len() as i32 + 4).to_be_bytes()[..], body].concat()
    }

    proptest! {
        // However the bytes are cut on their way, the same messages come out.
        #[test]
        fn messages_come_out_as_they_went_in(
            messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            cuts in prop::collection::vec(1_usize..30, 1..40),
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|(tag, body)| encode(*tag, body)).collect();
            let (mut input, mut found, mut rest) = (Input::default(), Vec::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                input.space().extend_from_slice(piece);
                while let Some(message) = input.take().unwrap() {
                    found.push((message.tag(), message.body().to_vec()));
                }
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, messages);
        }
    }

    #[test]
    fn lengths_are_not_believed() {
        for length in [3, 0, -1, i32::MIN] {
            let mut input = Input::default();
            input.space().extend_from_slice(&[&b"D"[..], &i32::to_be_bytes(length)].concat());
            assert!(matches!(input.take(), Err(SessionError::Malformed(_))), "{length}");
        }
        let mut input = Input::default();
        input.space().extend_from_slice(&[&b"D"[..], &i32::MAX.to_be_bytes()].concat());
        assert!(matches!(input.take(), Err(SessionError::TooLong { .. })));
    }
}
