//! The first step of a state transfer: a peer's state machine and retry window, without rows.

use super::missing::Missing;
use super::source_peers::{SILENCE_MS, peers_at};
use super::transfer_error::{TransferError, lost};
use crate::apply::SavedState;
use crate::config::Config;
use crate::migration::peers;
use crate::state_machine::ShardState;
use crate::storage::{ApplyBatch, Store, StoreOperation};
use bytes::{Bytes, BytesMut};
use evenkeel_protocol::shard::{ShardReply, ShardRequest, StateItem};
use evenkeel_replicated_log::{LogHandle, LogIndex, Term};
use std::net::SocketAddr;
use std::time::Duration;

/// What a peer has beside its rows, at one position of the log.
struct Beginning {
    index: u64,
    term: u64,
    machine: Bytes,
    window: Bytes,
}

/// Drops what this replica has, and puts a peer's state machine and retry window in its place. All
/// rows are missing then.
///
/// # Errors
/// See [`TransferError`]. Nothing was changed, or everything was dropped: then the position is 0,
/// and this is done again.
pub async fn begin(
    config: &Config,
    log: &LogHandle,
    store: &mut Store,
    trimmed: LogIndex,
) -> Result<(), TransferError> {
    let peers = peers_at(config, log, trimmed.0).await;
    let address = *peers.first().ok_or(TransferError::NoPeer)?;
    let Beginning { index, term, machine, window } = ask_for_beginning(address).await?;
    let saved: SavedState = postcard::from_bytes(&machine).map_err(lost)?;
    let missing = Missing::all(saved.state.tables().map(|table| table.id));
    store.clear().await?;
    let batch = ApplyBatch {
        operations: definitions(&saved.state),
        position: index,
        term,
        state: Some(machine),
        seeding: Some(missing.encode()),
        transactions: saved.transactions,
        answers: window,
        sync: true,
        ..ApplyBatch::default()
    };
    store.apply(&batch).await?;
    log.installed(LogIndex(index), Term(term)).map_err(lost)?;
    metrics::counter!("evenkeel_seedings_total").increment(1);
    tracing::info!(shard = %config.shard, replica = config.replica, index, from = %address, "is being re-seeded");
    Ok(())
}

/// What makes the definitions of all tables, on an empty database: the schema changes from the
/// first on, and then the tables that were made one by one. Neither depends on the other, and the
/// latter have names that no schema change has left taken.
fn definitions(state: &ShardState) -> Vec<StoreOperation> {
    let changes = state.schema_after(0).iter().map(|delta| StoreOperation::ChangeSchema(delta.clone()));
    let tables = state.tables().filter(|table| !table.create_sql.is_empty());
    changes.chain(tables.map(|table| StoreOperation::CreateTable(table.clone()))).collect()
}

async fn ask_for_beginning(address: SocketAddr) -> Result<Beginning, TransferError> {
    let connection = peers::connect(address).await.map_err(lost)?;
    let mut stream = connection.stream(&ShardRequest::State).await.map_err(lost)?;
    let (mut start, mut machine, mut window) = (None, BytesMut::new(), BytesMut::new());
    loop {
        let item = evenkeel_host::timeout(Duration::from_millis(SILENCE_MS), stream.next()).await;
        let Ok(Some(ShardReply::State(item))) = item else {
            return Err(TransferError::Lost("the stream ended early".into()));
        };
        match (item, start) {
            (StateItem::Start { index, term }, None) => start = Some((index, term)),
            (StateItem::Machine(piece), Some(_)) => machine.extend_from_slice(&piece),
            (StateItem::Window(piece), Some(_)) => window.extend_from_slice(&piece),
            (StateItem::End, Some((index, term))) => {
                return Ok(Beginning { index, term, machine: machine.freeze(), window: window.freeze() });
            }
            _ => return Err(TransferError::Lost("items in the wrong order".into())),
        }
    }
}
