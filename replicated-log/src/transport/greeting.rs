//! The greeting that opens a connection between replicas (log rule 4).

use std::io;

use bytes::Buf;
use evenkeel_host::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ids::ReplicaId;
use crate::wire::Tag;

use super::config::TransportConfig;

/// The first message of both ends of a connection (log rule 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) tag: Tag,
    pub(super) from: u64,
    to: u64,
    pub(super) store_id: u64,
}

const MAGIC: u64 = u64::from_le_bytes(*b"evenkeel");
/// Incremented when the encoding of frames or messages changes.
const VERSION: u32 = 4;
/// The largest encoded membership, in bytes: 255 members with their addresses are far below.
pub(super) const MAX_MEMBERSHIP_BYTES: usize = 64 << 10;
const GREETING_BYTES: usize = 8 + 4 + 8 + 4 + 8 + 8 + 8;

impl Greeting {
    pub(super) fn to(config: &TransportConfig, to: u64) -> Greeting {
        Greeting { tag: config.tag, from: config.me, to, store_id: config.store_id }
    }

    pub(super) async fn write(&self, stream: &mut Stream) -> io::Result<()> {
        let mut out = Vec::with_capacity(GREETING_BYTES);
        out.extend(MAGIC.to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend(self.tag.group.to_le_bytes());
        out.extend(self.tag.configuration.to_le_bytes());
        out.extend(self.from.to_le_bytes());
        out.extend(self.to.to_le_bytes());
        out.extend(self.store_id.to_le_bytes());
        stream.write_all(&out).await
    }

    pub(super) async fn read(stream: &mut Stream) -> io::Result<Greeting> {
        let mut raw = [0; GREETING_BYTES];
        stream.read_exact(&mut raw).await?;
        let mut raw = &raw[..];
        if raw.get_u64_le() != MAGIC || raw.get_u32_le() != VERSION {
            return Err(invalid("not a replica of this version"));
        }
        Ok(Greeting {
            tag: Tag { group: raw.get_u64_le(), configuration: raw.get_u32_le() },
            from: raw.get_u64_le(),
            to: raw.get_u64_le(),
            store_id: raw.get_u64_le(),
        })
    }

    pub(super) fn check_group(&self, config: &TransportConfig) -> io::Result<()> {
        if self.tag.group != config.tag.group || self.to != config.me {
            tracing::warn!(greeting = ?self, "refusing a session: another group or replica");
            return Err(invalid("another group or replica"));
        }
        Ok(())
    }

    /// Accepts a session with the sender in this configuration. `dialled` is the peer if this end
    /// opened the connection.
    pub(super) fn check(&self, config: &TransportConfig, dialled: Option<u64>) -> io::Result<()> {
        let expected_side = match dialled {
            Some(peer) => self.from == peer,
            // The replica with the higher number only inquires.
            None => self.from < config.me,
        };
        // Configuration 0 is no membership: there are no sessions in it.
        if self.tag != config.tag || !expected_side || !config.membership.has(ReplicaId(self.from)) {
            return Err(invalid("no session with this one"));
        }
        Ok(())
    }
}

/// The error of a peer that breaks the protocol.
pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
