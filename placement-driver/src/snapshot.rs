//! The state on disk: one file with the state as of a position in the log.
//!
//! The file is written beside its place, synced, and renamed into it, so that a crash leaves the
//! old or the new file. A restart reads it and applies the log from there on. The log may be
//! compacted up to the file's position once the file is durable (R16). A replica writes snapshots
//! of its own state and of states that it has fetched. [`SnapshotFile`] admits one writer at a
//! time, and never replaces a newer file by an older one.

use crate::state::PlacementState;
use evenkeel_replicated_log::{LogIndex, Term};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const MAGIC: &[u8; 8] = b"EVKLPD04";
const HEADER_BYTES: usize = 40;
/// The maximum size of a snapshot, in bytes.
pub const MAX_SNAPSHOT_BYTES: u64 = 256 << 20;

/// A state and its position in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The last position applied.
    pub index: LogIndex,
    /// The term in force there.
    pub term: Term,
    /// The state.
    pub state: PlacementState,
}

/// The reason for which a snapshot cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a snapshot, or not a whole one. The administrator must restore or empty this
    /// replica's folder.
    #[error("{path} is not a whole snapshot: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
}

/// The path of the file in a replica's folder.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("state.snapshot")
}

/// Encodes a state for the file or for another replica.
pub fn encode(state: &PlacementState) -> Result<Vec<u8>, String> {
    postcard::to_stdvec(state).map_err(|e| e.to_string())
}

/// The reverse of [`encode`].
pub fn decode(bytes: &[u8]) -> Result<PlacementState, String> {
    postcard::from_bytes(bytes).map_err(|e| e.to_string())
}

/// Reads the snapshot in `dir`; `None` if there is none.
pub fn read(dir: &Path) -> Result<Option<Snapshot>, SnapshotError> {
    let path = path(dir);
    let io = |source| SnapshotError::Io { path: path.clone(), source };
    let damaged = |reason: &str| SnapshotError::Damaged { path: path.clone(), reason: reason.to_string() };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_SNAPSHOT_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_SNAPSHOT_BYTES {
        return Err(damaged("it is too large"));
    }
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(damaged("it is too short"));
    };
    let number = |at: usize| header[at..at + 8].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    if !header.starts_with(MAGIC) {
        return Err(damaged("it begins with something else"));
    }
    if number(24) != body.len() as u64 || number(32) != checksum(body) {
        return Err(damaged("its length or checksum is wrong"));
    }
    let state = decode(body).map_err(|reason| damaged(&reason))?;
    Ok(Some(Snapshot { index: LogIndex(number(8)), term: Term(number(16)), state }))
}

/// The only writer of a replica's snapshots. Its methods block.
#[derive(Debug)]
pub struct SnapshotFile {
    dir: PathBuf,
    /// The position of the durable snapshot; `None` after [`SnapshotFile::close`].
    durable: Mutex<Option<LogIndex>>,
}

impl SnapshotFile {
    /// The writer in `dir`, which has a snapshot as of `durable` (0 if it has none).
    pub fn new(dir: PathBuf, durable: LogIndex) -> SnapshotFile {
        SnapshotFile { dir, durable: Mutex::new(Some(durable)) }
    }

    /// Writes a state encoded by [`encode`], unless the durable one is as new. The result is the
    /// position of the durable snapshot; `None` if the replica has ended.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn write(&self, index: LogIndex, term: Term, body: &[u8]) -> Result<Option<LogIndex>, SnapshotError> {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable.is_some_and(|durable| durable < index) {
            write(&self.dir, index, term, body)?;
            *durable = Some(index);
        }
        Ok(*durable)
    }

    /// Waits for a write that is under way, and prevents further ones: another process may use the
    /// folder from now on.
    pub fn close(&self) {
        *self.durable.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Writes a state encoded by [`encode`]. It is durable when the function returns.
fn write(dir: &Path, index: LogIndex, term: Term, body: &[u8]) -> Result<(), SnapshotError> {
    let path = path(dir);
    let beside = path.with_extension("new");
    let io = |source| SnapshotError::Io { path: path.clone(), source };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    for number in [index.0, term.0, body.len() as u64, checksum(body)] {
        header.extend_from_slice(&number.to_be_bytes());
    }
    let mut file = File::create(&beside).map_err(io)?;
    file.write_all(&header).and_then(|()| file.write_all(body)).and_then(|()| file.sync_all()).map_err(io)?;
    std::fs::rename(&beside, &path).map_err(io)?;
    // The rename must be durable too: it is an entry of the folder.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

/// FNV-1a with 64 bits. It detects damage, not malice.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::field_reassign_with_default)]
    use super::*;

    #[test]
    fn an_older_one_never_replaces_a_newer_and_nothing_is_written_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(dir.path().to_path_buf(), LogIndex(0));
        let body = encode(&PlacementState::default()).unwrap();
        let at = || read(dir.path()).unwrap().unwrap().index;
        assert_eq!(file.write(LogIndex(7), Term(1), &body).unwrap(), Some(LogIndex(7)));
        assert_eq!(file.write(LogIndex(5), Term(1), &body).unwrap(), Some(LogIndex(7)));
        assert_eq!(at(), LogIndex(7));
        // Several writers, as when a fetched state arrives while the own state is being written.
        std::thread::scope(|scope| {
            for index in 8..40 {
                let (file, body) = (&file, &body);
                scope.spawn(move || file.write(LogIndex(index), Term(1), body).unwrap());
            }
        });
        assert_eq!(at(), LogIndex(39));
        file.close();
        assert_eq!(file.write(LogIndex(50), Term(1), &body).unwrap(), None);
        assert_eq!(at(), LogIndex(39));
    }

    #[test]
    fn a_written_snapshot_is_read_and_damage_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        let mut state = PlacementState::default();
        state.restoring = true;
        write(dir.path(), LogIndex(7), Term(9), &encode(&state).unwrap()).unwrap();
        let found = read(dir.path()).unwrap().unwrap();
        assert_eq!(found, Snapshot { index: LogIndex(7), term: Term(9), state });
        let whole = std::fs::read(path(dir.path())).unwrap();
        for cut in [0, 5, HEADER_BYTES, whole.len() - 1] {
            std::fs::write(path(dir.path()), &whole[..cut]).unwrap();
            assert!(matches!(read(dir.path()), Err(SnapshotError::Damaged { .. })), "cut at {cut}");
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        std::fs::write(path(dir.path()), &flipped).unwrap();
        assert!(matches!(read(dir.path()), Err(SnapshotError::Damaged { .. })));
    }
}
