//! The durable log by itself: what survives, what is cut off, what is refused.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::item::Kind;
use crate::types::Term;
use tempfile::TempDir;

const ME: Identity = Identity { group: 1, me: 1 };

fn limits(segment_bytes: u64) -> WalLimits {
    WalLimits { segment_bytes, recent_bytes: 1000 }
}

fn open(dir: &TempDir, segment_bytes: u64) -> Result<Wal<FsDisk>, WalError> {
    let disk = FsDisk::open(dir.path(), segment_bytes.min(1 << 16)).map_err(failed("open"))?;
    Wal::open(disk, ME, Membership { epoch: 1, ..Membership::default() }, 99, limits(segment_bytes))
}

fn term(n: u32) -> Term {
    Term::first_of(n, 1)
}

fn data(n: u32, payload: u64) -> Item {
    Item { kind: Kind::Data, term: term(n), payload: Bytes::copy_from_slice(&payload.to_le_bytes()) }
}

fn all(wal: &Wal<FsDisk>) -> Vec<Item> {
    wal.read(wal.compacted(), wal.end(), usize::MAX).unwrap()
}

#[test]
fn what_was_synced_survives_with_its_fences() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 400).unwrap();
    let mut expected = Vec::new();
    for turn in 0..50u64 {
        let mut items = vec![data(1, turn), data(2, turn)];
        if turn % 10 == 3 {
            items.push(Item::leader_start(term(turn as u32)));
        }
        expected.extend(items.clone());
        wal.append(items);
        wal.set_promise(Ballot::with(1, turn as u32, 0, 2));
        assert!(wal.sync().unwrap());
    }
    let fences: Vec<_> = (0..=wal.end()).map(|i| wal.fence_at(i)).collect();
    assert_eq!(all(&wal), expected, "recent ones and ones from disk");
    drop(wal);
    let wal = open(&dir, 400).unwrap();
    assert_eq!(all(&wal), expected);
    assert_eq!((0..=wal.end()).map(|i| wal.fence_at(i)).collect::<Vec<_>>(), fences);
    assert_eq!(wal.meta.promise, Some(Ballot::with(1, 49, 0, 2)));
    assert_eq!(wal.store_id(), 99);
}

#[test]
fn a_torn_last_record_is_cut_off_at_every_length() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 1 << 20).unwrap();
    wal.append(vec![data(1, 1)]);
    wal.sync().unwrap();
    let sound = wal.log_bytes();
    // Not ending in zeros: zeros in place of zeros are no damage.
    wal.append(vec![data(1, 2), data(1, u64::MAX)]);
    wal.sync().unwrap();
    let whole = wal.log_bytes();
    drop(wal);
    let file = dir.path().join(format!("{:016x}.log", 1));
    let bytes = std::fs::read(&file).unwrap();
    for len in sound as usize..whole as usize {
        let mut zeroed = bytes.clone();
        zeroed[len..].fill(0);
        // Out of order: the beginning is missing, the rest is there.
        let mut beheaded = bytes.clone();
        beheaded[sound as usize..=len].fill(0);
        for torn in [&bytes[..len], &zeroed, &beheaded] {
            std::fs::write(&file, torn).unwrap();
            let wal = open(&dir, 1 << 20).unwrap();
            assert_eq!(wal.end(), 1, "cut to {len} of {whole}");
            assert_eq!(wal.log_bytes(), sound);
            drop(wal);
            let rest = std::fs::read(&file).unwrap().split_off(sound as usize);
            assert!(rest.iter().all(|byte| *byte == 0), "remains could be taken for a record one day");
        }
    }
}

// Log rule 13: a lost durable tail is disk loss, so damage in front of sound records stops the replica.
#[test]
fn damage_to_synced_records_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 1 << 20).unwrap();
    wal.append(vec![data(1, 1)]);
    wal.sync().unwrap();
    let at = wal.log_bytes() as usize - 1;
    wal.append(vec![data(1, 2)]);
    wal.sync().unwrap();
    drop(wal);
    let file = dir.path().join(format!("{:016x}.log", 1));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    assert!(matches!(open(&dir, 1 << 20), Err(WalError::Damaged(_))));
}

#[test]
fn an_overwritten_suffix_stays_overwritten() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 300).unwrap();
    for i in 0..20 {
        wal.append(vec![data(1, i), Item::leader_start(term(i as u32 + 1))]);
        wal.sync().unwrap();
    }
    wal.replace_suffix(5, vec![data(9, 100)]);
    wal.sync().unwrap();
    wal.append(vec![data(9, 101)]);
    wal.replace_suffix(4, Vec::new()); // cut without new items, in one turn with an append
    wal.append(vec![data(9, 102)]);
    wal.sync().unwrap();
    let expected = all(&wal);
    assert_eq!(expected.len(), 5);
    assert_eq!(expected[4], data(9, 102));
    let fence = wal.fence_at(5);
    drop(wal);
    let mut wal = open(&dir, 300).unwrap();
    assert_eq!(all(&wal), expected);
    assert_eq!(wal.fence_at(5), fence);
    wal.replace_suffix(0, Vec::new());
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(&dir, 300).unwrap().end(), 0, "an emptied log stays empty");
}

#[test]
fn compaction_deletes_segments_and_keeps_the_fence() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 300).unwrap();
    for i in 0..40 {
        wal.append(vec![Item::leader_start(term(i as u32 + 1)), data(i as u32 + 1, i)]);
        wal.sync().unwrap();
    }
    let before = wal.log_bytes();
    let fences: Vec<_> = (0..=80).map(|i| wal.fence_at(i)).collect();
    let kept = all(&wal)[61..].to_vec();
    wal.set_decided(70);
    wal.compact(61);
    wal.sync().unwrap();
    assert!(wal.log_bytes() < before / 2);
    let error = wal.read(60, 80, usize::MAX).unwrap_err();
    assert!(matches!(error, WalError::Trimmed { from: 60, compacted: 61 }));
    drop(wal);
    let wal = open(&dir, 300).unwrap();
    assert_eq!((wal.compacted(), wal.decided(), wal.end()), (61, 70, 80));
    assert_eq!(all(&wal), kept);
    for at in 61..=80 {
        assert_eq!(wal.fence_at(at), fences[at as usize], "fence at {at}");
    }
}

#[test]
fn a_reset_replaces_everything() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 300).unwrap();
    for i in 0..10 {
        wal.append(vec![data(1, i)]);
        wal.sync().unwrap();
    }
    let fence = Fence { term: term(7), ended: false };
    // Both above and below the end of what was there.
    for at in [500, 300] {
        wal.reset(at, fence);
        wal.set_decided(at);
        wal.append(vec![data(7, 1)]);
        wal.sync().unwrap();
        drop(wal);
        wal = open(&dir, 300).unwrap();
        assert_eq!((wal.compacted(), wal.end()), (at, at + 1));
        assert_eq!(wal.needs_state(), Some(at));
        assert_eq!(wal.fence_at(at), fence);
        assert_eq!(all(&wal), [data(7, 1)]);
    }
}

#[test]
fn reads_are_bounded_and_bring_at_least_one_item() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 300).unwrap();
    for i in 0..100 {
        wal.append(vec![data(1, i)]);
        wal.sync().unwrap();
    }
    assert!(wal.recent_first > 50, "most are on disk only");
    let one = data(1, 0).encoded_bytes();
    assert_eq!(wal.read(0, 100, 0).unwrap().len(), 1);
    assert_eq!(wal.read(0, 100, one * 3).unwrap().len(), 3);
    assert_eq!(wal.read(40, 45, usize::MAX).unwrap().len(), 5);
    assert_eq!(wal.read(100, 120, usize::MAX).unwrap().len(), 0);
}

// Log rules 4 and 10: a folder is one replica's, and one process's.
#[test]
fn somebody_elses_folder_is_refused() {
    let dir = TempDir::new().unwrap();
    let wal = open(&dir, 300).unwrap();
    assert!(FsDisk::open(dir.path(), 300).is_err(), "locked by its process");
    drop(wal);
    let disk = FsDisk::open(dir.path(), 300).unwrap();
    let other = Identity { me: 2, ..ME };
    let refused = Wal::open(disk, other, Membership::default(), 1, limits(300));
    assert!(matches!(refused, Err(WalError::WrongOwner(_))));
}

fn second_epoch(began: u64) -> Membership {
    let members = [1u64, 2, 7].map(|id| (ReplicaId(id), std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into()));
    Membership { epoch: 2, began: crate::LogIndex(began), term: term(3), members: members.into() }
}

/// A log with a barrier at 12, and with what its first epoch leaves behind.
fn at_its_end(dir: &TempDir) -> Wal<FsDisk> {
    let mut wal = open(dir, 1 << 20).unwrap();
    wal.append(vec![Item::leader_start(term(3))]);
    wal.append((0..10).map(|i| data(3, i)).collect());
    wal.append(vec![Item { kind: Kind::ConfigChange, ..data(3, 0) }, data(3, 99)]);
    wal.set_promise(Ballot::with(1, 3, 0, 1));
    wal.set_accepted_round(Ballot::with(1, 3, 0, 1));
    wal.peer_store(2, 22);
    wal.set_decided(12);
    wal.sync().unwrap();
    assert_eq!(wal.barrier(), Some(12));
    wal
}

// Log rule 10: an epoch begins as a whole or not at all, and with a fresh instance's memory.
#[test]
fn an_epoch_begins_with_one_record() {
    let dir = TempDir::new().unwrap();
    let mut wal = at_its_end(&dir);
    let before = wal.segments.back().unwrap().bytes;
    wal.begin_epoch(second_epoch(12), false);
    assert!(wal.sync().unwrap());
    let after = wal.segments.back().unwrap().bytes;
    wal.append(vec![Item::leader_start(term(4)), data(4, 1)]);
    wal.sync().unwrap();
    let fences: Vec<_> = (0..=wal.end()).map(|i| wal.fence_at(i)).collect();
    assert!(!fences[12].ended && !fences[14].ended, "items count again: {fences:?}");
    drop(wal);
    let wal = open(&dir, 1 << 20).unwrap();
    assert_eq!((wal.membership(), wal.barrier(), wal.decided(), wal.end()), (&second_epoch(12), None, 12, 14));
    assert_eq!((wal.meta.promise, wal.meta.accepted_round, wal.known_peer_store(2)), (None, None, None));
    assert_eq!((0..=wal.end()).map(|i| wal.fence_at(i)).collect::<Vec<_>>(), fences);
    drop(wal);
    // A crash at any byte of the record leaves the first epoch as it was.
    let file = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path());
    let file = file.into_iter().find(|f| f.extension().is_some_and(|e| e == "log")).unwrap();
    let whole = std::fs::read(&file).unwrap();
    for cut in (before..after).step_by(7) {
        std::fs::write(&file, &whole[..cut as usize]).unwrap();
        let wal = open(&dir, 1 << 20).unwrap();
        assert_eq!((wal.membership().epoch, wal.barrier(), wal.end()), (1, Some(12), 13), "cut at {cut}");
        assert_eq!(wal.meta.promise, Some(Ballot::with(1, 3, 0, 1)));
    }
}

// Log rule 10: who fetched the state has a log that begins there.
#[test]
fn an_epoch_entered_with_a_copy_of_the_state_begins_behind_it() {
    let dir = TempDir::new().unwrap();
    let mut wal = at_its_end(&dir);
    wal.begin_epoch(second_epoch(40), true);
    wal.sync().unwrap();
    drop(wal);
    let wal = open(&dir, 1 << 20).unwrap();
    assert_eq!((wal.compacted(), wal.end(), wal.decided(), wal.needs_state()), (40, 40, 40, None));
    assert_eq!(wal.fence_at(40), Fence { term: term(3), ended: false });
}
