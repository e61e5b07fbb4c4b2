//! Messages between replicas, and their encoding.
//!
//! ```text
//! frame = length u32 | crc32 u32 | group u64 | configuration u32 | message… (length counts what
//! follows the crc) message = shell length u32 | shell (postcard) | item count u32 | items
//! ```
//!
//! A frame holds one turn's messages for one peer. A message's log items travel beside its shell:
//! they are already encoded, and the receiver's items share the frame's memory instead of being
//! copied one by one (log rule 14). Every frame carries its group and configuration (log rule 4).
//!
//! The order of variants and fields is the format.

use bytes::{Buf, BufMut, Bytes};
use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::PaxosMsg;
use serde::{Deserialize, Serialize};

use crate::item::{ITEM_OVERHEAD_BYTES, Item};
use crate::status::Lag;

/// A message between two replicas of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Wire {
    /// A message of OmniPaxos.
    Paxos(Message<Item>),
    /// Asks for the receiver's promise (log rule 9).
    Probe { id: u64 },
    /// The answer: the sender's promise when the probe reached it.
    ProbeReply { id: u64, promise: Ballot },
    /// Asks the leader for a staleness bound; `asked_ms` is the sender's clock (R17).
    StalenessAsk { asked_ms: u64 },
    /// The answer: every write acknowledged before `asked_ms` lies at or before `index`.
    StalenessAnswer { asked_ms: u64, index: u64 },
    /// Asks for a reply as soon as `length` items of this ballot's log are in the receiver's memory
    /// (R28).
    MemoryAsk { ballot: Ballot, length: u64 },
    /// The answer: they are. It says nothing about the disk.
    MemoryAnswer { ballot: Ballot, length: u64 },
    /// The sender's promise and positions (log rules 10 and 11).
    Status(Standing),
    /// Asks the receiver to become the leader (log rule 15).
    TryLead,
    /// Asks the receiver to promise nothing to other candidates for one period (log rule 9).
    /// `sent_ms` is the leader's clock.
    LeaseRequest { ballot: Ballot, sent_ms: u64 },
    /// The answer: the sender does so from now on; `sent_ms` is the request's.
    LeaseAck { ballot: Ballot, sent_ms: u64 },
    /// The sender's leadership with this ballot has ended, and with it the lease.
    LeaseRelease { ballot: Ballot },
    /// Decided items from the position `first` on, for a replica that is far behind.
    Decided { first: u64, items: Vec<Item> },
    /// The members' disks in this configuration as far as the sender knows them, by replica (log
    /// rule 10).
    Disks(Vec<(u64, u64)>),
}

/// A replica's promise, positions and condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) promise: Ballot,
    pub(crate) decided: u64,
    pub(crate) accepted: u64,
    /// The size of its log's segments, in bytes.
    pub(crate) log_bytes: u64,
    /// Its applied position, and the distance to its decided position.
    pub(crate) applied: u64,
    pub(crate) lag: Lag,
    /// Whether it waits for a state transfer and must not lead.
    pub(crate) needs_state: bool,
    /// Whether its application cannot serve, so that it must not lead.
    pub(crate) ineligible: bool,
    /// Its wall clock, in milliseconds since the Unix epoch.
    pub(crate) clock_ms: u64,
}

impl Wire {
    /// The approximate size of the message on the wire, in bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Wire::Paxos(message) => size_of_message(message),
            Wire::Decided { items, .. } => SHELL_BYTES + size_of(items),
            _ => SHELL_BYTES,
        }
    }
}

const SHELL_BYTES: usize = 64;

/// As [`Wire::size_bytes`].
pub(crate) fn size_of_message(message: &Message<Item>) -> usize {
    SHELL_BYTES + items_of(message).map_or(0, |items| size_of(items))
}

fn size_of(items: &[Item]) -> usize {
    items.iter().map(Item::encoded_bytes).sum()
}

fn items_of(message: &Message<Item>) -> Option<&Vec<Item>> {
    let Message::SequencePaxos(paxos) = message else {
        return None;
    };
    match &paxos.msg {
        PaxosMsg::AcceptDecide(m) => Some(&m.entries),
        PaxosMsg::AcceptSync(m) => Some(&m.log_sync.suffix),
        PaxosMsg::Promise(m) => m.log_sync.as_ref().map(|sync| &sync.suffix),
        _ => None,
    }
}

fn items_of_mut(wire: &mut Wire) -> Option<&mut Vec<Item>> {
    let paxos = match wire {
        Wire::Paxos(Message::SequencePaxos(paxos)) => paxos,
        Wire::Decided { items, .. } => return Some(items),
        _ => return None,
    };
    match &mut paxos.msg {
        PaxosMsg::AcceptDecide(m) => Some(&mut m.entries),
        PaxosMsg::AcceptSync(m) => Some(&mut m.log_sync.suffix),
        PaxosMsg::Promise(m) => m.log_sync.as_mut().map(|sync| &mut sync.suffix),
        _ => None,
    }
}

/// Group and configuration of a session (log rule 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tag {
    pub(crate) group: u64,
    pub(crate) configuration: u32,
}

/// Length and checksum.
pub(crate) const FRAME_HEADER_BYTES: usize = 8;

/// Why a frame is not accepted. The session must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFrame {
    #[error("its checksum does not match")]
    Damaged,
    #[error("it belongs to another group or configuration")]
    Foreign,
    #[error("it is malformed")]
    Malformed,
}

/// Appends one frame with `messages` to `out`.
pub(crate) fn encode_frame(
    out: &mut Vec<u8>,
    tag: Tag,
    messages: impl IntoIterator<Item = Wire>,
) -> Result<(), BadFrame> {
    let start = out.len();
    out.put_u64_le(0);
    out.put_u64_le(tag.group);
    out.put_u32_le(tag.configuration);
    for message in messages {
        encode_message(out, message)?;
    }
    let body = start + FRAME_HEADER_BYTES;
    let length = u32::try_from(out.len() - body).map_err(|_| BadFrame::Malformed)?;
    let crc = crc32fast::hash(&out[body..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..body].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

fn encode_message(out: &mut Vec<u8>, mut message: Wire) -> Result<(), BadFrame> {
    let items = items_of_mut(&mut message).map(std::mem::take).unwrap_or_default();
    let shell = postcard::to_stdvec(&message).map_err(|_| BadFrame::Malformed)?;
    out.reserve(8 + shell.len() + size_of(&items));
    out.put_u32_le(shell.len() as u32);
    out.put_slice(&shell);
    out.put_u32_le(items.len() as u32);
    for item in &items {
        item.encode(out);
    }
    Ok(())
}

/// Checks and decodes a frame's body; `crc` is the checksum of its header.
pub(crate) fn decode_frame(mut body: Bytes, crc: u32, tag: Tag) -> Result<Vec<Wire>, BadFrame> {
    if crc32fast::hash(&body) != crc {
        return Err(BadFrame::Damaged);
    }
    if body.len() < 12 {
        return Err(BadFrame::Malformed);
    }
    let group = body.get_u64_le();
    let configuration = body.get_u32_le();
    if (Tag { group, configuration }) != tag {
        return Err(BadFrame::Foreign);
    }
    let mut messages = Vec::new();
    while !body.is_empty() {
        messages.push(decode_message(&mut body)?);
    }
    Ok(messages)
}

fn decode_message(body: &mut Bytes) -> Result<Wire, BadFrame> {
    let shell = take_sized(body)?;
    let mut message: Wire = postcard::from_bytes(&shell).map_err(|_| BadFrame::Malformed)?;
    let count = body.try_get_u32_le().map_err(|_| BadFrame::Malformed)? as usize;
    if count > body.len() / ITEM_OVERHEAD_BYTES {
        return Err(BadFrame::Malformed);
    }
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(Item::decode(body).map_err(|_| BadFrame::Malformed)?);
    }
    if !items.is_empty() {
        *items_of_mut(&mut message).ok_or(BadFrame::Malformed)? = items;
    }
    Ok(message)
}

fn take_sized(body: &mut Bytes) -> Result<Bytes, BadFrame> {
    let length = body.try_get_u32_le().map_err(|_| BadFrame::Malformed)? as usize;
    if body.len() < length {
        return Err(BadFrame::Malformed);
    }
    Ok(body.split_to(length))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::Term;
    use omnipaxos::messages::sequence_paxos::{AcceptDecide, PaxosMessage};
    use omnipaxos::util::SequenceNumber;

    const TAG: Tag = Tag { group: 7, configuration: 2 };

    fn frame() -> Vec<u8> {
        let entries = vec![
            Item::leader_start(Term::first_of(1, 2)),
            Item { payload: Bytes::from_static(b"payload"), ..Item::leader_start(Term::first_of(1, 2)) },
        ];
        let accept = Message::SequencePaxos(PaxosMessage {
            from: 2,
            to: 1,
            msg: PaxosMsg::AcceptDecide(AcceptDecide {
                n: Ballot::with(1, 1, 0, 2),
                seq_num: SequenceNumber::default(),
                decided_idx: 5,
                entries,
            }),
        });
        let mut out = Vec::new();
        encode_frame(&mut out, TAG, [Wire::Paxos(accept), Wire::Probe { id: 3 }]).unwrap();
        out
    }

    fn decode(frame: &[u8], tag: Tag) -> Result<Vec<Wire>, BadFrame> {
        let crc = u32::from_le_bytes(frame[4..8].try_into().unwrap());
        decode_frame(Bytes::copy_from_slice(&frame[FRAME_HEADER_BYTES..]), crc, tag)
    }

    #[test]
    fn frames_survive_with_their_items() {
        let messages = decode(&frame(), TAG).unwrap();
        assert_eq!(messages.len(), 2);
        let Wire::Paxos(paxos) = &messages[0] else {
            panic!("{messages:?}");
        };
        let items = items_of(paxos).unwrap();
        assert_eq!(items.len(), 2);
        assert_eq!(&items[1].payload[..], b"payload");
        assert!(matches!(messages[1], Wire::Probe { id: 3 }));
    }

    // Log rule 4: ballots and Paxos messages do not carry their configuration, so the frame must.
    #[test]
    fn foreign_and_damaged_frames_are_refused() {
        let frame = frame();
        let other = Tag { configuration: 3, ..TAG };
        assert_eq!(decode(&frame, other).unwrap_err(), BadFrame::Foreign);
        for byte in 4..frame.len() {
            let mut bad = frame.clone();
            bad[byte] ^= 1;
            assert!(decode(&bad, TAG).is_err(), "bit flipped in byte {byte}");
        }
    }

    proptest::proptest! {
        // Any bytes, with any checksum, are refused or decoded: they never stop a replica.
        #[test]
        fn no_bytes_can_stop_a_replica(
            body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
            at in 0usize..200,
        ) {
            // Pure noise, and noise inside of a sound frame.
            decode_frame(Bytes::from(body.clone()), crc32fast::hash(&body), TAG).ok();
            let mut sound = frame().split_off(FRAME_HEADER_BYTES);
            let at = at.min(sound.len());
            let end = (at + body.len() / 8).min(sound.len());
            sound[at..end].copy_from_slice(&body[..end - at]);
            let crc = crc32fast::hash(&sound);
            decode_frame(Bytes::from(sound), crc, TAG).ok();
        }
    }
}
