//! The verdict on the replicas' checksums of one piece: which replicas differ, by majority. Pure.

use evenkeel_protocol::scrub::RangeChecksum;

/// The verdict on a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceVerdict {
    /// At that place in the log no replica owned it so.
    NotOwned,
    /// All replicas that told hold the same; or one alone told, so that there is nothing to
    /// compare.
    Equal(RangeChecksum),
    /// They do not.
    Differ {
        /// What most replicas hold; of several as many, the lowest.
        most: RangeChecksum,
        /// The replicas that hold something else than a majority of the members. Empty if no
        /// majority holds the same: of two replicas that differ, either may be right.
        replicas: Vec<u64>,
        /// Which replica holds what, in one sentence.
        detail: String,
    },
}

/// Judges a piece by the checksums of the replicas that answered, of `members` members. A replica
/// that did not answer is not blamed. `None` as a sum says that the piece was not owned there.
pub fn judge(members: usize, told: &[(u64, Option<RangeChecksum>)]) -> PieceVerdict {
    let mut groups: Vec<(Option<RangeChecksum>, Vec<u64>)> = Vec::new();
    for (replica, sum) in told {
        match groups.iter_mut().find(|(known, _)| known == sum) {
            Some((_, replicas)) => replicas.push(*replica),
            None => groups.push((*sum, vec![*replica])),
        }
    }
    // The largest first; of equally large ones always the same.
    groups.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then(a.0.cmp(&b.0)));
    match &groups[..] {
        [] => PieceVerdict::NotOwned,
        [(None, _)] => PieceVerdict::NotOwned,
        [(Some(sum), _)] => PieceVerdict::Equal(*sum),
        [(most, holders), others @ ..] => {
            let is_majority = holders.len() > members / 2;
            let mut replicas: Vec<u64> =
                if is_majority { others.iter().flat_map(|(_, replicas)| replicas).copied().collect() } else { vec![] };
            replicas.sort_unstable();
            let detail: Vec<String> = groups.iter().map(|(sum, replicas)| held(replicas, *sum)).collect();
            PieceVerdict::Differ { most: most.unwrap_or_default(), replicas, detail: detail.join("; ") }
        }
    }
}

fn held(replicas: &[u64], sum: Option<RangeChecksum>) -> String {
    let numbers: Vec<String> = replicas.iter().map(u64::to_string).collect();
    let (who, verb) = if replicas.len() == 1 { ("replica", "holds") } else { ("replicas", "hold") };
    let what = match sum {
        Some(RangeChecksum { rows: 0, .. }) => "no row".to_string(),
        Some(RangeChecksum { rows: 1, sum }) => format!("1 row, sum {sum:016x}"),
        Some(RangeChecksum { rows, sum }) => format!("{rows} rows, sum {sum:016x}"),
        None => "no such range".to_string(),
    };
    format!("{who} {} {verb} {what}", numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(sum: u64) -> Option<RangeChecksum> {
        Some(RangeChecksum { rows: 2, sum })
    }

    fn blamed(members: usize, told: &[(u64, Option<RangeChecksum>)]) -> Option<Vec<u64>> {
        match judge(members, told) {
            PieceVerdict::Differ { replicas, .. } => Some(replicas),
            _ => None,
        }
    }

    // Finding F5: not those are named that differ from whoever was asked first.
    #[test]
    fn a_majority_blames_whoever_holds_something_else() {
        assert_eq!(blamed(3, &[(1, sum(6)), (2, sum(5)), (3, sum(5))]), Some(vec![1]));
        assert_eq!(blamed(3, &[(1, sum(5)), (2, sum(5)), (3, sum(6))]), Some(vec![3]));
        assert_eq!(blamed(5, &[(1, sum(7)), (2, sum(5)), (3, sum(5)), (4, sum(6)), (5, sum(5))]), Some(vec![1, 4]));
        let PieceVerdict::Differ { most, detail, .. } = judge(3, &[(1, sum(6)), (2, sum(5)), (3, sum(5))]) else {
            panic!()
        };
        assert_eq!(Some(most), sum(5));
        assert_eq!(
            detail,
            "replicas 2, 3 hold 2 rows, sum 0000000000000005; replica 1 holds 2 rows, sum 0000000000000006"
        );
    }

    #[test]
    fn without_a_majority_nobody_is_blamed() {
        assert_eq!(blamed(2, &[(1, sum(6)), (2, sum(5))]), Some(vec![]));
        assert_eq!(blamed(3, &[(1, sum(6)), (3, sum(5))]), Some(vec![]), "the third did not tell");
        assert_eq!(blamed(3, &[(1, sum(6)), (2, sum(7)), (3, sum(5))]), Some(vec![]));
        assert_eq!(blamed(5, &[(1, sum(5)), (2, sum(5)), (3, sum(6))]), Some(vec![]), "two of five are no majority");
    }

    #[test]
    fn equal_and_absent_pieces_are_no_difference() {
        assert_eq!(judge(3, &[(1, sum(5)), (2, sum(5)), (3, sum(5))]), PieceVerdict::Equal(sum(5).unwrap_or_default()));
        assert_eq!(judge(3, &[(1, sum(5)), (3, sum(5))]), PieceVerdict::Equal(sum(5).unwrap_or_default()));
        assert_eq!(judge(3, &[(1, None), (2, None), (3, None)]), PieceVerdict::NotOwned);
        assert_eq!(judge(3, &[]), PieceVerdict::NotOwned);
        assert_eq!(blamed(3, &[(1, sum(5)), (2, None), (3, sum(5))]), Some(vec![2]), "all apply the same log");
    }
}
