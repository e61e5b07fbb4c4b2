//! A generated pattern of block accesses: runs of neighbouring blocks, a part of the device that is
//! hot for a while, blocks of 0.5 to 64 KiB. It replaces a recorded trace if none is given, and
//! generates data of any size.

use evenkeel_workloads::generators::{Endless, Generator};
use evenkeel_workloads::seed::SeededRandom;
use evenkeel_workloads::{Operation, OperationKind, OperationSource};
use std::time::Duration;

/// Block sizes in bytes, each with its share in percent. The mean is 13.6 KB.
const SIZES: [(u32, u64); 6] = [(512, 8), (4_096, 40), (8_192, 22), (16_384, 14), (32_768, 8), (65_536, 8)];
/// The length of the longest run, in blocks.
const RUN_BLOCKS: u64 = 64;
/// The percentage of runs in the hot part.
const HOT_RUNS: u64 = 60;
/// The number of parts, of which one is hot.
const HOT_PARTS: u64 = 20;
/// The time for which a part is hot.
const HOT_FOR: Duration = Duration::from_secs(10);
/// The percentage of writes.
const WRITES: u64 = 70;

/// The pattern's state.
struct Blocks {
    random: SeededRandom,
    blocks: u64,
    next: u64,
    left: u64,
    write: bool,
}

/// The mean size of a block, in bytes.
pub fn mean_block_bytes() -> u64 {
    SIZES.iter().map(|(bytes, share)| u64::from(*bytes) * share).sum::<u64>() / 100
}

/// A source of operations on `blocks` blocks, and the initial rows: key, and size in bytes.
pub fn blocks(blocks: u64, seed: u64) -> (Box<dyn OperationSource>, Vec<(i64, u32)>) {
    let blocks = blocks.max(1);
    let pattern = Blocks { random: SeededRandom::new(seed, 0), blocks, next: 0, left: 0, write: false };
    let rows = (0..blocks as i64).map(|key| (key, pattern.initial_value_bytes(key))).collect();
    (Box::new(Endless(Box::new(pattern))), rows)
}

fn size(draw: u64) -> u32 {
    let mut below = 0;
    for (bytes, share) in SIZES {
        below += share;
        if draw < below {
            return bytes;
        }
    }
    SIZES[SIZES.len() - 1].0
}

impl Generator for Blocks {
    fn next(&mut self, now: Duration) -> Operation {
        if self.left == 0 {
            let part = (self.blocks / HOT_PARTS).max(1);
            let hot = (now.as_secs() / HOT_FOR.as_secs()) * 7 % HOT_PARTS * part;
            self.next = match self.random.below(100) < HOT_RUNS {
                true => hot + self.random.below(part),
                false => self.random.below(self.blocks),
            };
            self.left = 1 + self.random.below(RUN_BLOCKS);
            self.write = self.random.below(100) < WRITES;
        }
        let key = (self.next % self.blocks) as i64;
        (self.next, self.left) = (self.next + 1, self.left - 1);
        match self.write {
            true => Operation { kind: OperationKind::Update, key, value_bytes: size(self.random.below(100)) },
            false => Operation { kind: OperationKind::Read, key, value_bytes: 0 },
        }
    }

    fn initial_rows(&self) -> u64 {
        self.blocks
    }

    fn initial_value_bytes(&self, key: i64) -> u32 {
        size(SeededRandom::new(key.unsigned_abs(), 1).below(100))
    }

    fn hottest_key_share(&self) -> f64 {
        0.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_are_blocks_of_the_device_and_sizes_have_the_documented_mean() {
        let (mut source, rows) = blocks(20_000, 1);
        let bytes: u64 = rows.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        let mean = bytes / rows.len() as u64;
        assert!(mean.abs_diff(mean_block_bytes()) < mean_block_bytes() / 20, "{mean}");
        let mut writes = 0;
        for second in 0..10_000 {
            let operation = source.next(Duration::from_secs(second / 100)).unwrap().unwrap().operation;
            assert!((0..20_000).contains(&operation.key));
            writes += u64::from(operation.kind == OperationKind::Update);
        }
        assert!((6_000..8_000).contains(&writes), "{writes}");
    }
}
