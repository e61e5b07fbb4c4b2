//! Overload: who is let in is answered soon, the rest is told at once, the shard does not do less for it, and it ends with its cause.

/// How long somebody who was let in may wait for the answer, in milliseconds. The gate aims at 250; but statements that are committed together
/// leave together, so what it measures is off by as much as a factor of two, and whoever comes waits for the group that is under way and for
/// the next.
const ANSWERED_MS: u64 = 1_000;
/// How long a refusal may take, in milliseconds: the way there and back.
const REFUSED_MS: u64 = 50;
/// How long the crowd is there before it is judged, in milliseconds: the first ones are let in by what was measured before.
const SETTLES_MS: u64 = 1_000;
/// What is to be done of what could be done before, in hundredths.
const KEPT_PERCENT: u64 = 80;

/// What came of asking once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When it was asked, in milliseconds.
    pub asked_ms: u64,
    /// When it was answered.
    pub answered_ms: u64,
    /// Whether it was refused because there was too much.
    pub refused: bool,
}

/// What was answered while some clients were there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Period {
    /// When they came, in milliseconds.
    pub began_ms: u64,
    /// For how long they asked.
    pub for_ms: u64,
    /// The answers.
    pub answers: Vec<Answer>,
}

/// A load that can be carried, one that cannot, and the first again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overload {
    /// Before.
    pub before: Period,
    /// The overload.
    pub during: Period,
    /// After.
    pub after: Period,
}

impl Period {
    /// What was asked at least so many milliseconds after the beginning.
    fn settled(&self, after_ms: u64) -> Vec<Answer> {
        let from_ms = self.began_ms + after_ms;
        self.answers.iter().copied().filter(|answer| answer.asked_ms >= from_ms).collect()
    }

    /// Statements done per second, from so many milliseconds after the beginning until they ceased to ask.
    fn done_per_s(&self, after_ms: u64) -> u64 {
        let window = self.began_ms + after_ms..self.began_ms + self.for_ms;
        let done = self.answers.iter().filter(|answer| !answer.refused && window.contains(&answer.answered_ms)).count();
        done as u64 * 1_000 / (self.for_ms - after_ms).max(1)
    }
}

/// What of it must not be, in words.
pub fn check(overload: &Overload) -> Vec<String> {
    let mut wrong = Vec::new();
    let Overload { before, during, after } = overload;
    let longest = |answers: &[Answer], refused: bool| {
        let of = answers.iter().filter(|answer| answer.refused == refused);
        of.map(|answer| answer.answered_ms - answer.asked_ms).max()
    };
    for (name, period) in [("before", before), ("after", after)] {
        if period.answers.iter().any(|answer| answer.refused) {
            wrong.push(format!("{name} the overload somebody was refused"));
        }
    }
    let settled = during.settled(SETTLES_MS);
    match longest(&settled, false) {
        Some(ms) if ms > ANSWERED_MS => wrong.push(format!("under overload somebody let in waited for {ms} ms")),
        Some(_) => {}
        None => wrong.push("under overload nobody was answered".into()),
    }
    match longest(&during.answers, true) {
        Some(ms) if ms > REFUSED_MS => wrong.push(format!("under overload a refusal took {ms} ms")),
        Some(_) => {}
        None => wrong.push("under overload nobody was refused".into()),
    }
    let (carried, kept) = (before.done_per_s(0), during.done_per_s(SETTLES_MS));
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

    fn period(began_ms: u64, for_ms: u64, each: &[(u64, bool)]) -> Period {
        let answer = |(asked_ms, took, refused)| Answer { asked_ms, answered_ms: asked_ms + took, refused };
        let times = (0..for_ms / 10).flat_map(|n| each.iter().map(move |(took, no)| (began_ms + n * 10, *took, *no)));
        Period { began_ms, for_ms, answers: times.map(answer).collect() }
    }

    #[test]
    fn what_is_no_overload_well_borne_is_said() {
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
