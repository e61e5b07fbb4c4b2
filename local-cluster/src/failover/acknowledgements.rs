//! Acknowledged writes around a fault, and the pause that the fault caused. Pure.

use serde::Serialize;

/// One acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Acknowledgement {
    /// The writer's number.
    pub writer: usize,
    /// The time of sending, in milliseconds of one process's monotonic clock.
    pub sent_ms: f64,
    /// The time of the acknowledgement, on the same clock.
    pub acked_ms: f64,
}

/// How long writes were interrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct WritePause {
    /// The longest time without an acknowledgement to any writer, in milliseconds.
    pub gap_ms: f64,
    /// The time of the slowest write, in milliseconds.
    pub slowest_ms: f64,
}

impl WritePause {
    /// The longer of both: no client was interrupted for longer.
    pub fn worst_ms(&self) -> f64 {
        self.gap_ms.max(self.slowest_ms)
    }
}

/// The pause around `fault_ms`, from the writes acknowledged after it and the gaps that ended after
/// it.
pub fn pause(acks: &[Acknowledgement], fault_ms: f64) -> WritePause {
    let mut at: Vec<f64> = acks.iter().map(|ack| ack.acked_ms).collect();
    at.sort_by(f64::total_cmp);
    let gaps = at.windows(2).filter(|pair| pair[1] > fault_ms).map(|pair| pair[1] - pair[0]);
    let after = acks.iter().filter(|ack| ack.acked_ms > fault_ms).map(|ack| ack.acked_ms - ack.sent_ms);
    WritePause { gap_ms: gaps.fold(0.0, f64::max), slowest_ms: after.fold(0.0, f64::max) }
}

/// Whether each of `writers` writers has `wanted` acknowledged writes that it sent after
/// `fault_ms`.
pub fn all_resumed(acks: &[Acknowledgement], writers: usize, fault_ms: f64, wanted: usize) -> bool {
    let after = |writer| acks.iter().filter(|a| a.writer == writer && a.sent_ms > fault_ms).count();
    (0..writers).all(|writer| after(writer) >= wanted)
}

/// The smallest value that at least `share` (0 to 1) of the values do not exceed; 0 without values.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).or(sorted.last()).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(writer: usize, sent_ms: f64, acked_ms: f64) -> Acknowledgement {
        Acknowledgement { writer, sent_ms, acked_ms }
    }

    #[test]
    fn a_pause_is_the_longest_interruption_of_a_client() {
        // The fault is at 100. Writer 0 is back at 500; writer 1's statement was under way, and
        // came through at 700.
        let acks = [
            ack(0, 10.0, 20.0),
            ack(1, 10.0, 30.0),
            ack(0, 90.0, 95.0),
            ack(0, 110.0, 500.0),
            ack(1, 90.0, 700.0),
            ack(0, 510.0, 520.0),
            ack(1, 710.0, 720.0),
        ];
        assert_eq!(pause(&acks, 100.0), WritePause { gap_ms: 405.0, slowest_ms: 610.0 });
        assert_eq!(pause(&acks, 100.0).worst_ms(), 610.0);
        // Writes acknowledged before the fault do not count.
        assert_eq!(pause(&acks, 705.0), WritePause { gap_ms: 20.0, slowest_ms: 10.0 });
        assert!(all_resumed(&acks, 2, 100.0, 1));
        assert!(!all_resumed(&acks, 2, 100.0, 2));
        assert!(!all_resumed(&acks, 3, 100.0, 1));
    }

    #[test]
    fn percentiles_are_measured_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (percentile(&values, 0.5), percentile(&values, 0.99), percentile(&values, 1.0)),
            (50.0, 99.0, 100.0)
        );
        assert_eq!((percentile(&[7.0], 0.99), percentile(&[], 0.5)), (7.0, 0.0));
    }
}
