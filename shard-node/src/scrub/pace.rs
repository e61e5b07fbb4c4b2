//! The pace of background comparisons: bytes per second, fewer while there is other work. Pure.
//! Times are milliseconds of any clock that does not go back.

/// The least bytes that a comparison counts for, however few its rows take: it costs a log entry
/// and a snapshot.
const LEAST_CHARGE_BYTES: u64 = 256 << 10;
/// At least this long between two comparisons.
const LEAST_PAUSE_MS: u64 = 50;
/// While there is other work, a comparison waits until this many intervals have passed. Then it is
/// made all the same, so that a round ends on a shard that is never idle.
const BUSY_INTERVALS: u64 = 8;
/// While rows of a range come in, it is put off for so long beyond that, in milliseconds: the
/// leader takes no part then (see [`crate::apply`]'s checkpoints), so that there is one replica
/// less to be compared with.
const COMING_IN_MS: u64 = 60_000;
/// How soon it is looked again whether there is other work still.
const LOOK_AGAIN_MS: u64 = 200;
/// The pause after a comparison that failed.
const AFTER_FAILURE_MS: u64 = 5_000;

/// What else there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Nothing that waits.
    Idle,
    /// Statements wait, or replicas lag.
    Busy,
    /// Rows of a range come in.
    ComingIn,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct ScrubPace {
    bytes_per_s: u64,
    pause_ms: u64,
    due_ms: u64,
    /// When it is due whatever else there is to do.
    latest_ms: u64,
}

impl ScrubPace {
    /// Compares `bytes_per_s`, which is not 0, and pauses for `pause_ms` between two rounds. The
    /// first comparison is due after such a pause, but no later than after `first_ms`.
    pub fn new(now_ms: u64, bytes_per_s: u64, pause_ms: u64, first_ms: u64) -> ScrubPace {
        let due_ms = now_ms + pause_ms.min(first_ms);
        ScrubPace { bytes_per_s: bytes_per_s.max(1), pause_ms, due_ms, latest_ms: due_ms }
    }

    /// How long to wait; 0: now.
    pub fn wait_ms(&self, now_ms: u64, load: Load) -> u64 {
        let latest_ms = match load {
            Load::Idle => self.due_ms,
            Load::Busy => self.latest_ms,
            Load::ComingIn => self.latest_ms + COMING_IN_MS,
        };
        if now_ms < self.due_ms { self.due_ms - now_ms } else { LOOK_AGAIN_MS.min(latest_ms.saturating_sub(now_ms)) }
    }

    /// Rows of this many bytes have been compared, begun at `began_ms`.
    pub fn compared(&mut self, began_ms: u64, now_ms: u64, bytes: u64) {
        let interval_ms = bytes.max(LEAST_CHARGE_BYTES).saturating_mul(1_000) / self.bytes_per_s;
        self.due_ms = (began_ms + interval_ms).max(now_ms + LEAST_PAUSE_MS);
        self.latest_ms = self.due_ms + interval_ms.saturating_mul(BUSY_INTERVALS - 1);
    }

    /// A round has come to its end.
    pub fn round_ended(&mut self, now_ms: u64) {
        self.due_ms = self.due_ms.max(now_ms + self.pause_ms);
        self.latest_ms = self.latest_ms.max(self.due_ms);
    }

    /// A comparison could not be made.
    pub fn failed(&mut self, now_ms: u64) {
        self.due_ms = self.due_ms.max(now_ms + AFTER_FAILURE_MS.min(self.pause_ms.max(LEAST_PAUSE_MS)));
        self.latest_ms = self.latest_ms.max(self.due_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Compares pieces of `bytes` for `for_ms`, each in `takes_ms`; gives how many.
    fn compared_in(for_ms: u64, bytes: u64, takes_ms: u64, load: Load) -> u64 {
        let (mut pace, mut now_ms, mut count) = (ScrubPace::new(0, 4 * MIB, 0, 0), 0, 0);
        while now_ms < for_ms {
            match pace.wait_ms(now_ms, load) {
                0 => {
                    let began_ms = now_ms;
                    now_ms += takes_ms;
                    pace.compared(began_ms, now_ms, bytes);
                    count += 1;
                }
                wait_ms => now_ms += wait_ms,
            }
        }
        count
    }

    #[test]
    fn the_configured_bytes_are_compared_in_a_second() {
        // 4 MiB a second: 400 MiB in 100 s, in whatever pieces, however long each takes below its
        // share.
        assert_eq!(compared_in(100_000, 16 * MIB, 500, Load::Idle), 25);
        assert_eq!(compared_in(100_000, MIB, 100, Load::Idle), 400);
        // Small ones count for more than they are.
        assert_eq!(compared_in(100_000, 10, 1, Load::Idle), 100_000 / 62 + 1);
        // A database that is slower than that is not asked without a pause.
        assert_eq!(compared_in(100_000, MIB, 450, Load::Idle), 200);
    }

    #[test]
    fn it_gives_way_to_other_work_and_gets_on_all_the_same() {
        let (idle, busy) = (compared_in(400_000, MIB, 10, Load::Idle), compared_in(400_000, MIB, 10, Load::Busy));
        assert_eq!((idle, busy), (1600, 200));
        let mut pace = ScrubPace::new(0, 4 * MIB, 0, 0);
        pace.compared(0, 10, 4 * MIB);
        assert_eq!(
            (pace.wait_ms(10, Load::Busy), pace.wait_ms(1_000, Load::Busy), pace.wait_ms(1_000, Load::Idle)),
            (990, 200, 0)
        );
        assert_eq!((pace.wait_ms(7_950, Load::Busy), pace.wait_ms(8_000, Load::Busy)), (50, 0));
        assert_eq!((pace.wait_ms(8_000, Load::ComingIn), pace.wait_ms(68_000, Load::ComingIn)), (200, 0));
    }

    #[test]
    fn it_rests_between_rounds_and_after_failures() {
        let mut pace = ScrubPace::new(1_000, 4 * MIB, 60_000, 10_000);
        assert_eq!(pace.wait_ms(1_000, Load::Idle), 10_000);
        pace.compared(11_000, 11_010, MIB);
        pace.round_ended(11_010);
        assert_eq!(pace.wait_ms(11_010, Load::Idle), 60_000);
        pace.compared(71_010, 71_020, MIB);
        pace.failed(72_000);
        assert_eq!(pace.wait_ms(72_000, Load::Idle), 5_000);
    }
}
