//! Randomness, and numbers that differ.
//!
//! Code that decides gets a random number as an argument. Code that draws one draws it here:
//! `clippy.toml` refuses every other source that a seed does not determine. The simulation replaces
//! the C function that seeds all of them.

#![allow(clippy::disallowed_methods, reason = "the one place that draws random numbers")]

use std::hash::{BuildHasher, Hasher, RandomState};

use rand::distr::{Distribution, StandardUniform};
use rand::rngs::ThreadRng;

/// A random value: of an integer any, of a float one in `0.0..1.0`.
pub fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    rand::random()
}

/// This thread's generator, seeded by the operating system, for many numbers or other
/// distributions.
pub fn rng() -> ThreadRng {
    rand::rng()
}

/// A number for an identity. The standard library's hash maps have random keys, each pair another
/// one; the number is a hash under such keys. Two calls return the same number by chance only,
/// whatever their threads, processes and machines.
pub fn unique_number() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::unique_number;

    #[test]
    fn identities_differ() {
        let other_thread = std::thread::spawn(unique_number).join().ok();
        let mut seen = std::collections::BTreeSet::from_iter(other_thread);
        seen.extend((0..100).map(|_| unique_number()));
        assert_eq!(seen.len(), 101);
    }
}
