//! One comparison, by a shard's leader: it names pieces in the log, asks every replica for its
//! checksums, judges, and narrows differences down.

use super::checkpoint_sums::{SUM_UP_MS, silent};
use super::judge::{PieceVerdict, judge};
use super::plan::ScrubPlan;
use super::scrubber::Scrub;
use crate::leader::Leader;
use crate::leader::leadership::EntryOutcome;
use crate::log_entry::{Control, Purpose};
use crate::migration::peers;
use crate::replica::membership;
use crate::storage::StoreError;
use evenkeel_protocol::scrub::{ComparedPiece, Comparison, Difference, Place, RangeChecksum, ReplicaSums};
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use evenkeel_protocol::value::key_text;
use evenkeel_protocol::{Failure, Key, KeyInterval, ShardId, TableId, TableSchema};
use evenkeel_replicated_log::Membership;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a replica may take to tell its sums, in milliseconds.
const TELL_MS: u64 = SUM_UP_MS + 500;
/// Pieces that differ and are looked at more closely, of one comparison.
const MAX_NARROWED: usize = 4;
/// Into how many parts each look divides what differs, and how many looks there are at most: more
/// than the rows of one comparison need.
const PARTS: u64 = 16;
const MAX_LOOKS: usize = 8;

/// The replicas' answers for the pieces of one checkpoint.
struct Told {
    index: u64,
    members: usize,
    sums: Vec<(u64, Vec<Option<RangeChecksum>>)>,
    silent: Vec<(u64, String)>,
    left_behind: Vec<(u64, TableId, Key)>,
}

impl Told {
    fn verdict(&self, piece: usize) -> PieceVerdict {
        let of_piece: Vec<(u64, Option<RangeChecksum>)> =
            self.sums.iter().map(|(replica, sums)| (*replica, sums.get(piece).copied().flatten())).collect();
        judge(self.members, &of_piece)
    }
}

/// Compares what the replicas hold of the shard's ranges, from a place on, as much as one
/// comparison takes.
///
/// # Errors
/// It was not compared: this replica does not lead any more, or is not at rest enough to be read.
pub async fn compare(scrub: &Scrub, leader: &Leader, from: &Place, purpose: Purpose) -> Result<Comparison, Failure> {
    let _alone = scrub.alone.lock().await;
    let plan = plan(leader, from).await.map_err(|error| unread(&error))?;
    if plan.pieces().is_empty() && purpose != Purpose::LeftBehind {
        return Ok(Comparison::default());
    }
    let addresses = membership::addresses(&leader.shared().log.membership().borrow());
    let told = ask(scrub, leader, plan.pieces(), purpose, &addresses).await?;
    if purpose == Purpose::Scrub && told.sums.len() < 2 {
        let reason = "no other replica can be compared".into();
        return Err(Failure::Busy { reason, retry_after_ms: 1_000 });
    }
    let mut found = Comparison {
        index: told.index,
        bytes: plan.bytes(),
        next: plan.next(),
        silent: told.silent.clone(),
        left_behind: told.left_behind.clone(),
        ..Comparison::default()
    };
    let mut compared = plan.pieces();
    for (at, piece) in plan.pieces().iter().enumerate() {
        match told.verdict(at) {
            // It was split or moved before the checkpoint was in: from here on it is planned again.
            PieceVerdict::NotOwned => {
                compared = &plan.pieces()[..at];
                found.next = Some(Place { table: piece.table, key: piece.interval.start.clone() });
                break;
            }
            PieceVerdict::Equal(sum) => found.compared.push((piece.range, sum)),
            PieceVerdict::Differ { most, replicas, detail } => {
                found.compared.push((piece.range, most));
                let (range, table, interval) = (piece.range, piece.table, piece.interval.clone());
                let wide = Difference { range, table, interval, replicas, detail };
                let narrowed = found.differences.len() < MAX_NARROWED;
                found.differences.push(if narrowed { narrow(scrub, leader, piece, wide, &told).await } else { wide });
            }
        }
    }
    for difference in &mut found.differences {
        raise_alarm(scrub.shard, leader, difference);
    }
    scrub.status().compared(compared, &found);
    count(scrub.shard, &found);
    Ok(found)
}

/// Has every replica sum up these pieces at one place in the log.
async fn ask(
    scrub: &Scrub,
    leader: &Leader,
    pieces: &[ComparedPiece],
    purpose: Purpose,
    addresses: &BTreeMap<u64, SocketAddr>,
) -> Result<Told, Failure> {
    let leadership = &leader.leadership;
    let nonce = number(leadership.term.0, leadership.next_serial());
    let entry = Control::Checkpoint { nonce, pieces: pieces.to_vec(), purpose };
    let EntryOutcome::Effective(index) = leader.control(entry).await? else {
        return Err(Failure::NotLeader { leader: None });
    };
    let bound = Duration::from_millis(TELL_MS);
    let asked = addresses.iter().map(|(replica, address)| async move {
        if *replica == leader.shared().log.me().0 {
            return scrub.sums.sums_of(nonce, bound).await;
        }
        match peers::ask(*address, &ShardRequest::Checkpoint { nonce }, bound).await {
            Ok(ShardReply::Sums(sums)) => *sums,
            Ok(other) => silent(*replica, format!("{other:?}")),
            Err(error) => silent(*replica, error.to_string()),
        }
    });
    let answers = futures::future::join_all(asked).await;
    Ok(sorted(index, membership::addresses(&leadership_members(leader)).len(), pieces.len(), answers))
}

/// Looks more closely at a piece that differs, part by part, as long as its first part that differs
/// can be divided. Each look is a comparison of its own, of fewer rows than the one before.
async fn narrow(
    scrub: &Scrub,
    leader: &Leader,
    piece: &ComparedPiece,
    mut wide: Difference,
    told: &Told,
) -> Difference {
    let mut addresses = membership::addresses(&leadership_members(leader));
    addresses.retain(|replica, _| told.sums.iter().any(|(known, _)| known == replica));
    let mut piece = piece.clone();
    for _ in 0..MAX_LOOKS {
        let parts = match divide(leader, &piece).await {
            Ok(parts) if parts.len() > 1 => parts,
            _ => break,
        };
        let Ok(told) = ask(scrub, leader, &parts, Purpose::Look, &addresses).await else { break };
        let differs = parts.iter().enumerate().find_map(|(at, part)| match told.verdict(at) {
            PieceVerdict::Differ { replicas, detail, .. } => Some((part, replicas, detail)),
            _ => None,
        });
        let Some((part, replicas, detail)) = differs else { break };
        wide.interval = part.interval.clone();
        wide.detail = detail;
        if !replicas.is_empty() {
            wide.replicas = replicas;
        }
        piece = part.clone();
    }
    wide
}

/// Says that replicas differ, and what can be done.
fn raise_alarm(shard: ShardId, leader: &Leader, difference: &mut Difference) {
    let state = leader.shared().state();
    let table = state.table(difference.table);
    let name = table.map_or_else(|| difference.table.to_string(), |table| table.name.clone());
    let from = shown(table.map(|t| &**t), &difference.interval.start);
    let to = difference.interval.end.as_ref().map(|end| shown(table.map(|t| &**t), end));
    let to = to.map_or_else(String::new, |to| format!(" to before {to}"));
    difference.detail = format!("table {name}, keys from {from}{to}: {}", difference.detail);
    let (shard, range, detail) = (shard, difference.range, &difference.detail);
    let advice = match &difference.replicas[..] {
        [] => "no majority holds the same, so nobody can say which is right".to_string(),
        differing => {
            let numbers: Vec<String> = differing.iter().map(u64::to_string).collect();
            let who = numbers.join(", ");
            format!("re-seed replica {who}: stop it, delete its data folder, and start it again")
        }
    };
    tracing::error!(%shard, %range, replicas = ?difference.replicas, detail, advice, "REPLICAS DIFFER");
    let shard = shard.to_string();
    let blamed = difference.replicas.iter().map(u64::to_string);
    let nobody = difference.replicas.is_empty().then(|| "unknown".to_string());
    for replica in blamed.chain(nobody) {
        metrics::counter!("evenkeel_scrub_differences_total", "shard" => shard.clone(), "replica" => replica)
            .increment(1);
    }
}

fn count(shard: ShardId, found: &Comparison) {
    let shard = shard.to_string();
    metrics::counter!("evenkeel_scrub_pieces_total", "shard" => shard.clone()).increment(found.compared.len() as u64);
    metrics::counter!("evenkeel_scrub_bytes_total", "shard" => shard).increment(found.bytes);
}

/// A number for a checkpoint, as good as unique: terms are spread over all bits, of which serials
/// use the lowest.
fn number(term: u64, serial: u64) -> u64 {
    term.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ serial
}

fn leadership_members(leader: &Leader) -> Membership {
    leader.shared().log.membership().borrow().clone()
}

/// Separates checksums of this checkpoint from missing and other answers.
fn sorted(index: u64, members: usize, pieces: usize, answers: Vec<ReplicaSums>) -> Told {
    let mut told = Told { index, members, sums: Vec::new(), silent: Vec::new(), left_behind: Vec::new() };
    for answer in answers {
        let replica = answer.replica;
        match answer.sums {
            Ok(sums) if answer.index == index && sums.len() == pieces => {
                told.sums.push((replica, sums));
                told.left_behind.extend(answer.left_behind.into_iter().map(|(table, key)| (replica, table, key)));
            }
            Ok(_) => told.silent.push((replica, format!("it was summed up at {}, not at {index}", answer.index))),
            Err(reason) => told.silent.push((replica, reason)),
        }
    }
    told
}

/// Plans a comparison by what this replica holds: bounds and sizes, without reading large values.
async fn plan(leader: &Leader, from: &Place) -> Result<ScrubPlan, StoreError> {
    let state = leader.shared().state();
    let mut plan = ScrubPlan::new(&state, from);
    let snapshots = &leader.shared().snapshots;
    let mut snapshot = snapshots.take().await?;
    while let Some((piece, room)) = plan.wanted() {
        let interval = piece.interval.clone();
        match state.table(piece.table) {
            Some(table) => {
                let extent = snapshot.extent(table, &interval, u64::MAX, room).await?;
                plan.measured(extent.covered, extent.rows, extent.bytes);
            }
            None => plan.measured(interval, 0, 0),
        }
    }
    snapshots.give_back(snapshot).await;
    Ok(plan)
}

/// Divides a piece into parts of about as many rows each, as this replica holds them; one, if it
/// holds at most one row there.
async fn divide(leader: &Leader, piece: &ComparedPiece) -> Result<Vec<ComparedPiece>, StoreError> {
    let state = leader.shared().state();
    let Some(table) = state.table(piece.table) else { return Ok(Vec::new()) };
    let snapshots = &leader.shared().snapshots;
    let mut snapshot = snapshots.take().await?;
    let (mut parts, mut rest) = (Vec::new(), piece.interval.clone());
    let rows = snapshot.extent(table, &rest, u64::MAX, u64::MAX).await?.rows;
    while parts.len() as u64 + 1 < PARTS && rows > 1 {
        let extent = snapshot.extent(table, &rest, rows.div_ceil(PARTS), u64::MAX).await?;
        let Some(end) = extent.covered.end.clone().filter(|_| !extent.last) else { break };
        parts.push(ComparedPiece { interval: extent.covered, ..piece.clone() });
        rest = KeyInterval::new(end, rest.end);
    }
    snapshots.give_back(snapshot).await;
    parts.push(ComparedPiece { interval: rest, ..piece.clone() });
    Ok(parts)
}

fn unread(error: &StoreError) -> Failure {
    Failure::Busy { reason: format!("the rows cannot be read: {error}"), retry_after_ms: 100 }
}

/// A key as a user knows it.
fn shown(table: Option<&TableSchema>, key: &Key) -> String {
    if key.as_bytes().is_empty() {
        return "the first".into();
    }
    table.map_or_else(|| key.to_hex(), |table| key_text(&table.codec(), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    // What a replica says of another place in the log, or not at all, is no difference.
    #[test]
    fn only_what_was_summed_up_at_the_same_place_is_compared() {
        let sum = |sum| Some(RangeChecksum { rows: 1, sum });
        let answer = |replica, index, sums| ReplicaSums { replica, index, sums, left_behind: Vec::new() };
        let told = sorted(
            9,
            3,
            1,
            vec![answer(1, 9, Ok(vec![sum(5)])), answer(2, 8, Ok(vec![sum(6)])), silent(3, "it is down".into())],
        );
        assert_eq!(told.verdict(0), PieceVerdict::Equal(RangeChecksum { rows: 1, sum: 5 }));
        assert_eq!(told.silent.iter().map(|(replica, _)| *replica).collect::<Vec<_>>(), [2, 3]);
    }
}
