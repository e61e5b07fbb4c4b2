//! The durable log as OmniPaxos's storage.
//!
//! OmniPaxos owns its storage, and the core must sync it and read from it, so both share the log.
//! They run on one thread, one after the other; the log is therefore in a `RefCell`, and no borrow
//! is held across a call of the library.
//!
//! Writes only change memory and cannot fail. A failing read makes the library panic, which ends
//! the process (log rule 13).

use std::cell::RefCell;
use std::rc::Rc;

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::storage::{StopSign, Storage, StorageOp, StorageResult};

use crate::item::{Item, Trimmed};

use super::error::WalError;
use super::write_ahead_log::Wal;
use evenkeel_host::Disk;

/// The durable log, shared between OmniPaxos and the core on one thread.
pub(crate) type SharedWal<D> = Rc<RefCell<Wal<D>>>;

/// The storage that OmniPaxos gets.
#[derive(Debug)]
pub(crate) struct WalStorage<D>(pub(crate) SharedWal<D>);

impl<D: Disk> WalStorage<D> {
    fn read(&self, from: usize, to: u64) -> StorageResult<Vec<Item>> {
        Ok(self.0.borrow().read(from as u64, to, usize::MAX)?)
    }

    fn apply(&mut self, op: StorageOp<Item>) -> StorageResult<()> {
        let mut wal = self.0.borrow_mut();
        match op {
            StorageOp::AppendEntry(item) => wal.append(vec![item]),
            StorageOp::AppendEntries(items) => wal.append(items),
            StorageOp::AppendOnPrefix(from, items) => wal.replace_suffix(from as u64, items),
            StorageOp::SetPromise(ballot) => wal.set_promise(ballot),
            StorageOp::SetDecidedIndex(decided) => wal.set_decided(decided as u64),
            StorageOp::SetAcceptedRound(ballot) => wal.set_accepted_round(ballot),
            StorageOp::Trim(to) => wal.compact(to as u64),
            // Both come with every Trim, which has their effect.
            StorageOp::SetCompactedIdx(_) | StorageOp::SetSnapshot(_) => {}
            // log rule 10: never reconfigured, so there is never one to store.
            StorageOp::SetStopsign(_) => {}
        }
        Ok(())
    }
}

impl<D: Disk> Storage<Item> for WalStorage<D> {
    fn write_atomically(&mut self, ops: Vec<StorageOp<Item>>) -> StorageResult<()> {
        // A turn is one record, so all changes within it are atomic.
        let transferred = ops.iter().find_map(|op| match op {
            StorageOp::SetSnapshot(Some(marker)) => marker.transferred,
            _ => None,
        });
        for op in ops {
            match (op, transferred) {
                (StorageOp::Trim(at), Some(fence)) => self.0.borrow_mut().reset(at as u64, fence),
                (op, _) => self.apply(op)?,
            }
        }
        Ok(())
    }

    fn append_entry(&mut self, entry: Item) -> StorageResult<()> {
        self.apply(StorageOp::AppendEntry(entry))
    }

    fn append_entries(&mut self, entries: Vec<Item>) -> StorageResult<()> {
        self.apply(StorageOp::AppendEntries(entries))
    }

    fn append_on_prefix(&mut self, from_idx: usize, entries: Vec<Item>) -> StorageResult<()> {
        self.apply(StorageOp::AppendOnPrefix(from_idx, entries))
    }

    fn set_promise(&mut self, n_prom: Ballot) -> StorageResult<()> {
        self.apply(StorageOp::SetPromise(n_prom))
    }

    fn set_decided_idx(&mut self, ld: usize) -> StorageResult<()> {
        self.apply(StorageOp::SetDecidedIndex(ld))
    }

    fn get_decided_idx(&self) -> StorageResult<usize> {
        Ok(self.0.borrow().decided() as usize)
    }

    fn set_accepted_round(&mut self, na: Ballot) -> StorageResult<()> {
        self.apply(StorageOp::SetAcceptedRound(na))
    }

    fn get_accepted_round(&self) -> StorageResult<Option<Ballot>> {
        Ok(self.0.borrow().accepted_round())
    }

    fn get_entries(&self, from: usize, to: usize) -> StorageResult<Vec<Item>> {
        if self.0.borrow().compacting {
            // The library wants to summarise the items that compaction drops. The marker needs none
            // of them, and reading megabytes back would stall the event loop.
            return Ok(Vec::new());
        }
        self.read(from, to as u64)
    }

    fn get_log_len(&self) -> StorageResult<usize> {
        let wal = self.0.borrow();
        Ok((wal.end() - wal.compacted()) as usize)
    }

    fn get_suffix(&self, from: usize) -> StorageResult<Vec<Item>> {
        let wal = self.0.borrow();
        let compacted = wal.compacted();
        if (from as u64) < compacted && !wal.patching {
            // log rule 13: an error, never silently nothing.
            let from = from as u64;
            return Err(Box::new(WalError::Trimmed { from, compacted }));
        }
        // While `core::paxos` patches synchronisation messages (log rule 10) it gets the retained
        // items, or the last of them: the receiver needs a copy of the state anyway, and with it no
        // item that is decided before.
        let begin = match (from as u64) < compacted {
            true => wal.compaction_point(wal.sync_bytes()).min(wal.decided()).max(compacted),
            false => from as u64,
        };
        Ok(wal.read(begin, u64::MAX, usize::MAX)?)
    }

    fn get_promise(&self) -> StorageResult<Option<Ballot>> {
        // The library stores a default ballot when it starts on an empty log; recovery means a real
        // one.
        let promise = self.0.borrow().promise();
        Ok(promise.filter(|b| *b != Ballot::default()))
    }

    fn set_stopsign(&mut self, _s: Option<StopSign>) -> StorageResult<()> {
        Ok(())
    }

    fn get_stopsign(&self) -> StorageResult<Option<StopSign>> {
        Ok(None)
    }

    fn trim(&mut self, idx: usize) -> StorageResult<()> {
        self.apply(StorageOp::Trim(idx))
    }

    fn set_compacted_idx(&mut self, _idx: usize) -> StorageResult<()> {
        Ok(())
    }

    fn get_compacted_idx(&self) -> StorageResult<usize> {
        Ok(self.0.borrow().compacted() as usize)
    }

    fn set_snapshot(&mut self, _snapshot: Option<Trimmed>) -> StorageResult<()> {
        Ok(())
    }

    fn get_snapshot(&self) -> StorageResult<Option<Trimmed>> {
        Ok(None)
    }
}
