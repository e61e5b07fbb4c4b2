//! Tests of the durable log: recovery, torn writes, damage, compaction and configurations.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use omnipaxos::ballot_leader_election::Ballot;
use tempfile::TempDir;

use super::error::failed;
use super::index::Segment;
use super::*;
use crate::ids::{ReplicaId, Term};
use crate::item::{Fence, Item, Kind};
use crate::membership::Membership;

const ME: Identity = Identity { group: 1, me: 1 };

fn limits(segment_bytes: u64) -> WalLimits {
    WalLimits { segment_bytes, recent_bytes: 1000, sync_bytes: 1 << 20 }
}

fn open(dir: &TempDir, segment_bytes: u64) -> Result<Wal<FileDisk>, WalError> {
    let disk_bytes = segment_bytes.min(1 << 16);
    let disk = FileDisk::open(dir.path(), disk_bytes, disk_bytes).map_err(failed("open"))?;
    Wal::open(disk, ME, Membership { configuration: 1, ..Membership::default() }, 99, limits(segment_bytes))
}

fn term(n: u32) -> Term {
    Term::first_of(n, 1)
}

fn data(n: u32, payload: u64) -> Item {
    Item { kind: Kind::Data, term: term(n), payload: Bytes::copy_from_slice(&payload.to_le_bytes()) }
}

fn all(wal: &Wal<FileDisk>) -> Vec<Item> {
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
        assert!(wal.sync().unwrap().wrote());
    }
    let fences: Vec<_> = (0..=wal.end()).map(|i| wal.fence_at(i)).collect();
    assert_eq!(all(&wal), expected, "recent ones and ones from disk");
    drop(wal);
    let wal = open(&dir, 400).unwrap();
    assert_eq!(all(&wal), expected);
    assert_eq!((0..=wal.end()).map(|i| wal.fence_at(i)).collect::<Vec<_>>(), fences);
    assert_eq!(wal.index.meta.promise, Some(Ballot::with(1, 49, 0, 2)));
    assert_eq!(wal.store_id(), 99);
}

#[test]
fn a_torn_last_record_is_cut_off_at_every_length() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 1 << 20).unwrap();
    wal.append(vec![data(1, 1)]);
    let _ = wal.sync().unwrap();
    let sound = wal.log_bytes();
    // Not ending in zeros: zeros in place of zeros are no damage.
    wal.append(vec![data(1, 2), data(1, u64::MAX)]);
    let _ = wal.sync().unwrap();
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
            std::fs::remove_file(dir.path().join(format!("{:016x}.log", 2))).unwrap();
            let mut wal = open(&dir, 1 << 20).unwrap();
            assert_eq!(wal.end(), 1, "cut to {len} of {whole}");
            assert_eq!(wal.log_bytes(), sound);
            // The new records replace the remains, whatever those are.
            wal.append(vec![data(1, 3)]);
            let _ = wal.sync().unwrap();
            drop(wal);
            assert_eq!(all(&open(&dir, 1 << 20).unwrap()), [data(1, 1), data(1, 3)], "cut to {len} of {whole}");
        }
    }
}

/// A log that has filled, compacted and recycled many segments; what it holds.
fn recycled(dir: &TempDir) -> Wal<FileDisk> {
    let mut wal = open(dir, 600).unwrap();
    for i in 0..60u64 {
        wal.append(vec![data(1, i)]);
        wal.set_decided(wal.end());
        if i > 10 {
            wal.compact(wal.end() - 10);
        }
        let _ = wal.sync().unwrap();
    }
    wal
}

// Old records lie behind the new ones, sound but for the segment that they were written for.
#[test]
fn the_remains_in_a_recycled_segment_are_not_taken_for_records_wherever_a_write_is_torn() {
    let dir = TempDir::new().unwrap();
    let mut wal = recycled(&dir);
    while wal.index.segments.back().unwrap().bytes < 300 {
        wal.append(vec![data(1, u64::MAX - 70)]);
        let _ = wal.sync().unwrap();
    }
    let (before, segment) = (all(&wal), *wal.index.segments.back().unwrap());
    let file = dir.path().join(format!("{:016x}.log", segment.number));
    // Before the last record, with the remains behind it.
    let remains = std::fs::read(&file).unwrap();
    assert!(remains[segment.bytes as usize..].iter().any(|byte| *byte != 0), "nothing was recycled");
    wal.append(vec![data(1, u64::MAX - 71)]);
    let _ = wal.sync().unwrap();
    let (after, whole) = (all(&wal), wal.index.segments.back().unwrap().bytes as usize);
    assert_eq!(wal.index.segments.back().unwrap().number, segment.number, "in the same segment");
    drop(wal);
    let written = std::fs::read(&file).unwrap();
    assert_eq!(all(&open(&dir, 600).unwrap()), after);
    for cut in segment.bytes as usize..whole {
        let mut torn = remains.clone();
        torn[segment.bytes as usize..cut].copy_from_slice(&written[segment.bytes as usize..cut]);
        std::fs::write(&file, &torn).unwrap();
        assert_eq!(all(&open(&dir, 600).unwrap()), before, "cut at {cut}");
    }
}

// Also where the torn write is the first one of a recycled segment.
#[test]
fn a_segment_whose_first_record_is_torn_has_not_been_begun() {
    let dir = TempDir::new().unwrap();
    let mut wal = recycled(&dir);
    let before_number = wal.index.segments.back().unwrap().number;
    let next = dir.path().join(format!("{:016x}.log", before_number + 1));
    let mut before = all(&wal);
    // It is prepared by a thread, and recycled.
    while !next.exists() {
        std::thread::yield_now();
    }
    let remains = std::fs::read(&next).unwrap();
    while wal.index.segments.back().unwrap().number == before_number {
        before = all(&wal);
        wal.append(vec![data(1, u64::MAX - 80)]);
        let _ = wal.sync().unwrap();
    }
    let whole = wal.index.segments.back().unwrap().bytes as usize;
    drop(wal);
    let written = std::fs::read(&next).unwrap();
    for cut in (0..whole).step_by(3) {
        let mut torn = remains.clone();
        torn[..cut].copy_from_slice(&written[..cut]);
        let mut beheaded = written.clone();
        beheaded[..=cut].copy_from_slice(&remains[..=cut]);
        for torn in [torn, beheaded] {
            std::fs::write(&next, &torn).unwrap();
            let mut wal = open(&dir, 600).unwrap();
            assert_eq!(all(&wal), before, "cut at {cut} of {whole}");
            wal.append(vec![data(1, 90)]);
            let _ = wal.sync().unwrap();
            drop(wal);
            let wal = open(&dir, 600).unwrap();
            assert_eq!(all(&wal).last(), Some(&data(1, 90)));
            drop(wal);
        }
    }
}

// Where a footer was lost in a crash, or is damaged, the records are replayed; where one is there
// they are not even read.
#[test]
fn a_log_opens_the_same_with_and_without_its_footers() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 600).unwrap();
    for i in 0..40u64 {
        wal.append(vec![data(1, i), Item::leader_start(term(i as u32 + 1))]);
        if i % 7 == 0 {
            wal.replace_suffix(wal.end() - 2, vec![data(2, i)]);
        }
        wal.set_promise(Ballot::with(1, i as u32, 0, 2));
        let _ = wal.sync().unwrap();
    }
    let (meta, items, chunks) = (wal.index.meta.clone(), all(&wal), wal.index.chunks.clone());
    let fences: Vec<_> = (0..=wal.end()).map(|at| wal.fence_at(at)).collect();
    let segments: Vec<Segment> = wal.index.segments.iter().copied().collect();
    drop(wal);
    let file = |number: u64| dir.path().join(format!("{number:016x}.log"));
    let check = |what: &str| {
        let wal = open(&dir, 600).unwrap();
        assert_eq!((&wal.index.meta, &wal.index.chunks), (&meta, &chunks), "{what}");
        assert_eq!((0..=wal.end()).map(|at| wal.fence_at(at)).collect::<Vec<_>>(), fences, "{what}");
        wal
    };
    assert_eq!(all(&check("whole")), items);
    // Damage in a record that no replay has to look at shows when it is read.
    let first = std::fs::read(file(1)).unwrap();
    let mut bad = first.clone();
    bad[100] ^= 1;
    std::fs::write(file(1), &bad).unwrap();
    let wal = check("records are not read");
    assert!(matches!(wal.read(0, 5, usize::MAX), Err(WalError::Damaged(_))));
    drop(wal);
    std::fs::write(file(1), &first).unwrap();
    for segment in &segments[..segments.len() - 1] {
        let mut bytes = std::fs::read(file(segment.number)).unwrap();
        bytes.truncate(segment.bytes as usize + 10);
        std::fs::write(file(segment.number), &bytes).unwrap();
    }
    assert_eq!(all(&check("without footers")), items);
    bad.truncate(segments[0].bytes as usize);
    std::fs::write(file(1), &bad).unwrap();
    assert!(matches!(open(&dir, 600), Err(WalError::Damaged(_))));
}

// After a crash names may be back that had been given up; they are no part of the log.
#[test]
fn a_removed_segment_that_a_crash_brings_back_is_left_out() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 600).unwrap();
    wal.append(vec![data(1, 0)]);
    let _ = wal.sync().unwrap();
    let file = |number: u64| dir.path().join(format!("{number:016x}.log"));
    let old = std::fs::read(file(1)).unwrap();
    for i in 1..60u64 {
        wal.append(vec![data(1, i)]);
        wal.set_decided(wal.end());
        wal.compact(wal.end() - 1);
        let _ = wal.sync().unwrap();
    }
    let items = all(&wal);
    let newest = wal.index.segments.back().unwrap().number;
    drop(wal);
    std::fs::write(file(1), old).unwrap();
    std::fs::copy(file(newest), file(3)).unwrap();
    assert_eq!(all(&open(&dir, 600).unwrap()), items);
    assert!(!file(1).exists() && !file(3).exists());
}

// Log rule 13: a lost durable tail is disk loss, so damage in front of sound records stops the
// replica.
#[test]
fn damage_to_synced_records_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 1 << 20).unwrap();
    wal.append(vec![data(1, 1)]);
    let _ = wal.sync().unwrap();
    let at = wal.log_bytes() as usize - 1;
    wal.append(vec![data(1, 2)]);
    let _ = wal.sync().unwrap();
    drop(wal);
    let file = dir.path().join(format!("{:016x}.log", 1));
    let mut bytes = std::fs::read(&file).unwrap();
    let begin = bytes.clone();
    // Anywhere in front of a sound record, its header included, and the segment's.
    for at in (0..=at).step_by(3) {
        bytes.clone_from(&begin);
        bytes[at] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert!(matches!(open(&dir, 1 << 20), Err(WalError::Damaged(_))), "byte {at}");
    }
}

#[test]
fn an_overwritten_suffix_stays_overwritten() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 300).unwrap();
    for i in 0..20 {
        wal.append(vec![data(1, i), Item::leader_start(term(i as u32 + 1))]);
        let _ = wal.sync().unwrap();
    }
    wal.replace_suffix(5, vec![data(9, 100)]);
    let _ = wal.sync().unwrap();
    wal.append(vec![data(9, 101)]);
    wal.replace_suffix(4, Vec::new()); // cut without new items, in one turn with an append
    wal.append(vec![data(9, 102)]);
    let _ = wal.sync().unwrap();
    let expected = all(&wal);
    assert_eq!(expected.len(), 5);
    assert_eq!(expected[4], data(9, 102));
    let fence = wal.fence_at(5);
    drop(wal);
    let mut wal = open(&dir, 300).unwrap();
    assert_eq!(all(&wal), expected);
    assert_eq!(wal.fence_at(5), fence);
    wal.replace_suffix(0, Vec::new());
    let _ = wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(&dir, 300).unwrap().end(), 0, "an emptied log stays empty");
}

#[test]
fn compaction_deletes_segments_and_keeps_the_fence() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 300).unwrap();
    for i in 0..40 {
        wal.append(vec![Item::leader_start(term(i as u32 + 1)), data(i as u32 + 1, i)]);
        let _ = wal.sync().unwrap();
    }
    let before = wal.log_bytes();
    let fences: Vec<_> = (0..=80).map(|i| wal.fence_at(i)).collect();
    let kept = all(&wal)[61..].to_vec();
    wal.set_decided(70);
    wal.compact(61);
    let _ = wal.sync().unwrap();
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

// Breaks if a record larger than the retention stays: then no entry is proposed, so no record
// follows it.
#[test]
fn a_synchronisation_as_large_as_the_log_is_compacted_away() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 300).unwrap();
    wal.append(vec![data(1, 1)]);
    let _ = wal.sync().unwrap();
    wal.replace_suffix(1, (2..100).map(|i| data(1, i)).collect());
    let _ = wal.sync().unwrap();
    wal.append(vec![data(1, 100)]);
    let _ = wal.sync().unwrap();
    wal.set_decided(wal.end());
    let before = wal.log_bytes();
    let point = wal.compaction_point(before / 10);
    assert_eq!(point, 99, "what lies behind the large record stays");
    wal.compact(point);
    let _ = wal.sync().unwrap();
    assert!(wal.log_bytes() < before / 10, "{} of {before}", wal.log_bytes());
    assert_eq!(wal.compaction_point(before), point, "there is no more than may stay");
}

#[test]
fn a_reset_replaces_everything() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 300).unwrap();
    for i in 0..10 {
        wal.append(vec![data(1, i)]);
        let _ = wal.sync().unwrap();
    }
    let fence = Fence { term: term(7), ended: false };
    // Both above and below the end of what was there.
    for at in [500, 300] {
        wal.reset(at, fence);
        wal.set_decided(at);
        wal.append(vec![data(7, 1)]);
        let _ = wal.sync().unwrap();
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
        let _ = wal.sync().unwrap();
    }
    assert!(wal.recent.first() > 50, "most are on disk only");
    let one = data(1, 0).encoded_bytes();
    assert_eq!(wal.read(0, 100, 0).unwrap().len(), 1);
    assert_eq!(wal.read(0, 100, one * 3).unwrap().len(), 3);
    assert_eq!(wal.read(40, 45, usize::MAX).unwrap().len(), 5);
    assert_eq!(wal.read(100, 120, usize::MAX).unwrap().len(), 0);
}

// The event loop only says where entries are. What it says stays true while the log goes on without
// them.
#[test]
fn entries_are_read_and_judged_away_from_the_event_loop() {
    let dir = TempDir::new().unwrap();
    let mut wal = open(&dir, 600).unwrap();
    for i in 0..100u64 {
        wal.append(vec![data(i as u32 / 7, i), Item::leader_start(term(i as u32 / 5 + 1))]);
        let _ = wal.sync().unwrap();
    }
    let items = all(&wal);
    let expected = |from: u64, to: u64| -> Vec<crate::Entry> {
        (from..to).map(|at| items[at as usize].deliver(crate::LogIndex(at + 1), wal.fence_at(at))).collect()
    };
    for (from, to) in [(0, 1), (0, 150), (13, 100), (60, 61)] {
        let plan = wal.plan(from, to, usize::MAX).unwrap().unwrap();
        assert_eq!(plan.read().unwrap(), expected(from, to));
    }
    assert!(wal.plan(wal.recent.first(), 200, usize::MAX).unwrap().is_none(), "in memory");
    // Each record is read once: what does not fit into one call is not planned again.
    let plan = wal.plan(0, 150, 1).unwrap().unwrap();
    let (first, wanted) = (plan.read().unwrap(), expected(0, 20));
    assert!(!first.is_empty() && wanted.starts_with(&first));
    let segments = wal.index.segments.len();
    wal.set_decided(190);
    wal.compact(180);
    let _ = wal.sync().unwrap();
    for i in 0..100u64 {
        wal.append(vec![data(99, i)]);
        let _ = wal.sync().unwrap();
    }
    assert!(segments > 10, "{segments}");
    assert_eq!(plan.read().unwrap(), first);
}

// Log rules 4 and 10: a folder is one replica's, and one process's.
#[test]
fn somebody_elses_folder_is_refused() {
    let dir = TempDir::new().unwrap();
    let wal = open(&dir, 300).unwrap();
    assert!(FileDisk::open(dir.path(), 300, 300).is_err(), "locked by its process");
    drop(wal);
    let disk = FileDisk::open(dir.path(), 300, 300).unwrap();
    let other = Identity { me: 2, ..ME };
    let refused = Wal::open(disk, other, Membership::default(), 1, limits(300));
    assert!(matches!(refused, Err(WalError::WrongOwner(_))));
}

fn second_configuration(began: u64) -> Membership {
    let members = [1u64, 2, 7].map(|id| (ReplicaId(id), std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into()));
    Membership { configuration: 2, began: crate::LogIndex(began), term: term(3), members: members.into() }
}

/// A log with a barrier at 12 at the end of its first configuration.
fn at_its_end(dir: &TempDir) -> Wal<FileDisk> {
    let mut wal = open(dir, 1 << 20).unwrap();
    wal.append(vec![Item::leader_start(term(3))]);
    wal.append((0..10).map(|i| data(3, i)).collect());
    wal.append(vec![Item { kind: Kind::ConfigChange, ..data(3, 0) }, data(3, 99)]);
    wal.set_promise(Ballot::with(1, 3, 0, 1));
    wal.set_accepted_round(Ballot::with(1, 3, 0, 1));
    wal.peer_store_or_insert(2, 22);
    wal.set_decided(12);
    let _ = wal.sync().unwrap();
    assert_eq!(wal.barrier(), Some(12));
    wal
}

// Log rule 10: a configuration begins as a whole or not at all, with the memory of a new instance.
#[test]
fn a_configuration_begins_with_one_record() {
    let dir = TempDir::new().unwrap();
    let mut wal = at_its_end(&dir);
    let before = wal.index.segments.back().unwrap().bytes;
    wal.begin_configuration(second_configuration(12), false);
    assert!(wal.sync().unwrap().wrote());
    let after = wal.index.segments.back().unwrap().bytes;
    wal.append(vec![Item::leader_start(term(4)), data(4, 1)]);
    let _ = wal.sync().unwrap();
    let fences: Vec<_> = (0..=wal.end()).map(|i| wal.fence_at(i)).collect();
    assert!(!fences[12].ended && !fences[14].ended, "items count again: {fences:?}");
    drop(wal);
    let wal = open(&dir, 1 << 20).unwrap();
    assert_eq!((wal.membership(), wal.barrier(), wal.decided(), wal.end()), (&second_configuration(12), None, 12, 14));
    assert_eq!((wal.index.meta.promise, wal.index.meta.accepted_round, wal.peer_store(2)), (None, None, None));
    assert_eq!((0..=wal.end()).map(|i| wal.fence_at(i)).collect::<Vec<_>>(), fences);
    drop(wal);
    // A crash at any byte of the record leaves the first configuration as it was.
    let file = dir.path().join(format!("{:016x}.log", 1));
    let whole = std::fs::read(&file).unwrap();
    for cut in (before..after).step_by(7) {
        std::fs::write(&file, &whole[..cut as usize]).unwrap();
        let wal = open(&dir, 1 << 20).unwrap();
        assert_eq!((wal.membership().configuration, wal.barrier(), wal.end()), (1, Some(12), 13), "cut at {cut}");
        assert_eq!(wal.index.meta.promise, Some(Ballot::with(1, 3, 0, 1)));
    }
}

// Log rule 10: who fetched the state has a log that begins there.
#[test]
fn a_configuration_entered_with_a_copy_of_the_state_begins_behind_it() {
    let dir = TempDir::new().unwrap();
    let mut wal = at_its_end(&dir);
    wal.begin_configuration(second_configuration(40), true);
    let _ = wal.sync().unwrap();
    drop(wal);
    let wal = open(&dir, 1 << 20).unwrap();
    assert_eq!((wal.compacted(), wal.end(), wal.decided(), wal.needs_state()), (40, 40, 40, None));
    assert_eq!(wal.fence_at(40), Fence { term: term(3), ended: false });
}
