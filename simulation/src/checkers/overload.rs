//! Behaviour under overload: admitted statements complete within 1 s; all others are rejected
//! within 50 ms; throughput stays above 80 % of the throughput before; latency recovers when the
//! load drops.

use crate::history::load_spike::{Answer, Overload};

/// How long an admitted statement may take, in milliseconds. Admission control aims at 250 ms.
/// Statements of one group commit end together, so its measurement is off by up to a factor of two,
/// and a new statement waits for the group under way and for the next.
const ANSWERED_MS: u64 = 1_000;
/// How long a rejection may take, in milliseconds: one round trip.
const REFUSED_MS: u64 = 50;
/// Time from the beginning of a load spike until answers are judged, in milliseconds: the first
/// statements are admitted by measurements from before.
const WARM_UP_MS: u64 = 1_000;
/// The least throughput under overload, in percent of the throughput before.
const KEPT_PERCENT: u64 = 80;

/// Violations, in words.
pub fn check(overload: &Overload) -> Vec<String> {
    let mut wrong = Vec::new();
    let Overload { before, during, after } = overload;
    let longest = |answers: &[Answer], refused: bool| {
        let of = answers.iter().filter(|answer| answer.refused == refused);
        of.map(|answer| answer.answered_ms - answer.asked_ms).max()
    };
    for (name, period) in [("before", before), ("after", after)] {
        if period.answers.iter().any(|answer| answer.refused) {
            wrong.push(format!("{name} the overload a statement was refused"));
        }
    }
    let warm = during.since(WARM_UP_MS);
    match longest(&warm, false) {
        Some(ms) if ms > ANSWERED_MS => wrong.push(format!("under overload an admitted statement took {ms} ms")),
        Some(_) => {}
        None => wrong.push("under overload no statement was answered".into()),
    }
    match longest(&during.answers, true) {
        Some(ms) if ms > REFUSED_MS => wrong.push(format!("under overload a refusal took {ms} ms")),
        Some(_) => {}
        None => wrong.push("under overload no statement was refused".into()),
    }
    let (carried, kept) = (before.done_per_s(0), during.done_per_s(WARM_UP_MS));
    if kept * 100 < carried * KEPT_PERCENT {
        wrong.push(format!("under overload {kept} statements were done per second, {carried} before"));
    }
    if let (Some(now), Some(was)) = (longest(&after.answers, false), longest(&before.answers, false))
        && now > 2 * was
    {
        wrong.push(format!("after the overload a statement took {now} ms, before it {was} ms"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::load_spike::Period;

    fn period(began_ms: u64, for_ms: u64, each: &[(u64, bool)]) -> Period {
        let answer = |(asked_ms, took, refused)| Answer { asked_ms, answered_ms: asked_ms + took, refused };
        let times = (0..for_ms / 10).flat_map(|n| each.iter().map(move |(took, no)| (began_ms + n * 10, *took, *no)));
        Period { began_ms, for_ms, answers: times.map(answer).collect() }
    }

    #[test]
    fn each_violation_under_overload_is_found() {
        let few = [(40, false)];
        let judge = |during: &[(u64, bool)], after: &[(u64, bool)]| {
            let before = period(0, 1_000, &few);
            check(&Overload { before, during: period(1_000, 3_000, during), after: period(4_500, 1_000, after) }).len()
        };
        let borne = [(250, false), (3, true), (3, true)];
        assert_eq!(judge(&borne, &few), 0);
        assert_eq!(judge(&[(1_100, false), (3, true)], &few), 1, "too long inside");
        assert_eq!(judge(&[(250, false), (90, true)], &few), 1, "told late");
        assert_eq!(judge(&[(250, false)], &few), 1, "no overload");
        assert_eq!(judge(&[(3, true)], &few), 2, "nobody, and so nothing is done");
        assert_eq!(judge(&borne, &[(90, false)]), 1, "not over");
        assert_eq!(judge(&borne, &[(40, false), (3, true)]), 1, "refused though it could be done");
    }
}
