//! What writers saw around a fault, and how long it kept them from writing. Pure.

use serde::Serialize;

/// One acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ack {
    /// Which writer.
    pub writer: usize,
    /// When it was sent, in milliseconds of one process's monotonic time.
    pub sent_ms: f64,
    /// When it was acknowledged.
    pub acked_ms: f64,
}

/// How long writes stood still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Pause {
    /// The longest time in which no writer got an acknowledgement, in milliseconds.
    pub gap_ms: f64,
    /// The longest that one write took, in milliseconds.
    pub slowest_ms: f64,
}

impl Pause {
    /// The longer of both: no client had to do without for longer than this.
    pub fn worst_ms(&self) -> f64 {
        self.gap_ms.max(self.slowest_ms)
    }
}

/// The pause around `fault_ms`: what was acknowledged after it, and the gaps that ended after it.
pub fn pause(acks: &[Ack], fault_ms: f64) -> Pause {
    let mut at: Vec<f64> = acks.iter().map(|ack| ack.acked_ms).collect();
    at.sort_by(f64::total_cmp);
    let gaps = at.windows(2).filter(|pair| pair[1] > fault_ms).map(|pair| pair[1] - pair[0]);
    let after = acks.iter().filter(|ack| ack.acked_ms > fault_ms).map(|ack| ack.acked_ms - ack.sent_ms);
    Pause { gap_ms: gaps.fold(0.0, f64::max), slowest_ms: after.fold(0.0, f64::max) }
}

/// Whether each of `writers` writers has had `wanted` writes acknowledged that it sent after `fault_ms`.
pub fn all_resumed(acks: &[Ack], writers: usize, fault_ms: f64, wanted: usize) -> bool {
    let after = |writer| acks.iter().filter(|a| a.writer == writer && a.sent_ms > fault_ms).count();
    (0..writers).all(|writer| after(writer) >= wanted)
}

/// The value that `share` of these are not above; 0 of none.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).or(sorted.last()).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(writer: usize, sent_ms: f64, acked_ms: f64) -> Ack {
        Ack { writer, sent_ms, acked_ms }
    }

    #[test]
    fn a_pause_is_what_a_client_has_to_do_without() {
        // The fault is at 100. Writer 0 is back at 500; writer 1's statement was under way, and came through at 700.
        let acks = [
            ack(0, 10.0, 20.0),
            ack(1, 10.0, 30.0),
            ack(0, 90.0, 95.0),
            ack(0, 110.0, 500.0),
            ack(1, 90.0, 700.0),
            ack(0, 510.0, 520.0),
            ack(1, 710.0, 720.0),
        ];
        assert_eq!(pause(&acks, 100.0), Pause { gap_ms: 405.0, slowest_ms: 610.0 });
        assert_eq!(pause(&acks, 100.0).worst_ms(), 610.0);
        // What was over before the fault is not its doing.
        assert_eq!(pause(&acks, 705.0), Pause { gap_ms: 20.0, slowest_ms: 10.0 });
        assert!(all_resumed(&acks, 2, 100.0, 1));
        assert!(!all_resumed(&acks, 2, 100.0, 2));
        assert!(!all_resumed(&acks, 3, 100.0, 1));
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (percentile(&values, 0.5), percentile(&values, 0.99), percentile(&values, 1.0)),
            (50.0, 99.0, 100.0)
        );
        assert_eq!((percentile(&[7.0], 0.99), percentile(&[], 0.5)), (7.0, 0.0));
    }
}
