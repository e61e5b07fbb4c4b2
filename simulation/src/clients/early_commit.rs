//! Writes that are acknowledged before their COMMIT, at durability `memory` or `local` (R28), and
//! what the session says of their outcome.

use super::client::SimulatedClient;
use crate::history::events::Loss;
use crate::process::{self, once_in};
use evenkeel_client::{ClientError, Session};
use evenkeel_protocol::Durability;

/// A write, as its client knows it.
pub(super) struct Write {
    pub key: i64,
    pub how: &'static str,
    pub sent_ms: u64,
    pub durability: Durability,
}

/// A durability below `disk`.
pub(super) fn drawn_durability() -> Durability {
    if once_in(3) { Durability::Local } else { Durability::Memory }
}

/// A write was answered: waits until its outcome is known, and records it. `value` is what it gave
/// to its counter.
pub(super) async fn resolve(client: &SimulatedClient, session: &mut Session, write: &Write, value: Option<i64>) {
    let early = client.seen().early;
    // Without an early acknowledgement it was committed before it could be answered.
    let Some(by) = early else { return client.record(write.key, write.how, write.sent_ms, value) };
    let local = write.durability == Durability::Local;
    client.users.history.borrow_mut().count(if local {
        "writes answered at local"
    } else {
        "writes answered at memory"
    });
    let outcome = loop {
        match session.resolved().await {
            // It is not known yet.
            Err(ClientError::Unavailable(_)) => {}
            outcome => break outcome,
        }
    };
    client.note_denials();
    match outcome {
        Ok(()) => {
            // The COMMIT was confirmed by the replica that has spoken last.
            let last = client.seen().last;
            client.record_by(last, write.key, write.how, write.sent_ms, value);
        }
        Err(ClientError::WriteLost(_)) => {
            let (durability, sent_ms, told_ms) = (write.durability, write.sent_ms, process::now_ms());
            let told_by = client.seen().last.unwrap_or(by);
            let mut history = client.users.history.borrow_mut();
            history.losses.push(Loss { durability, by, sent_ms, told_ms, told_by });
            history.count(if local { "lost from local" } else { "lost from memory" });
        }
        Err(ClientError::OutcomeUnknown(_)) => client.record(write.key, write.how, write.sent_ms, None),
        Err(other) => {
            let sentence = format!("a session says of a write that was acknowledged early: {other}");
            client.users.history.borrow_mut().wrong(sentence);
        }
    }
}
