//! Bytes that are nearly good, for the tests of what reads bytes of others.
//!
//! Deterministic, so that a failure is one for everybody; `INFRANETES_FUZZ_ROUNDS` and `INFRANETES_FUZZ_SEED` make it a search.

/// Numbers that are the same in each run.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new() -> Self {
        Self(from_env("INFRANETES_FUZZ_SEED").unwrap_or(1))
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }

    /// `good` with a few cuts, insertions, repetitions and flipped bits.
    pub(crate) fn mutate(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(5) {
            let place = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => bytes.truncate(place),
                1 => bytes.insert(place, self.below(256) as u8),
                2 => bytes.extend_from_within(place..),
                _ => {
                    let bit = 1 << self.below(8);
                    bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= bit);
                }
            }
            bytes.truncate(BYTES_MAX);
        }
        bytes
    }
}

/// How often to try, usually.
pub(crate) fn rounds(usual: u64) -> u64 {
    from_env("INFRANETES_FUZZ_ROUNDS").unwrap_or(usual)
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

const BYTES_MAX: usize = 4096;
