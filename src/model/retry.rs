//! When a failed attempt is tried again.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::id::JobId;

/// How long to wait before the next attempt: growing from `base` by `factor` to no more than `max`, each wait moved by
/// up to `jitter` of itself, up or down, so that jobs which failed together do not come back together.
///
/// ```
/// use std::time::Duration;
/// use jobmill::Backoff;
///
/// let gentle = Backoff::exponential(Duration::from_secs(5)).max(Duration::from_secs(600)).jitter(0.0);
/// assert_eq!(gentle, Backoff { base: Duration::from_secs(5), factor: 2.0, max: Duration::from_secs(600), jitter: 0.0 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backoff {
    /// The wait after the first attempt.
    pub base: Duration,
    /// What each wait is multiplied by for the next one. At least 1.
    pub factor: f64,
    /// No wait is longer than this, jitter included.
    pub max: Duration,
    /// The part of a wait by which chance may move it, from 0 to 1.
    pub jitter: f64,
}

impl Default for Backoff {
    /// 2 s, doubled each time up to an hour, with a jitter of a tenth.
    fn default() -> Self {
        Self { base: Duration::from_secs(2), factor: 2.0, max: Duration::from_secs(3600), jitter: 0.1 }
    }
}

impl Backoff {
    /// Waits `base`, then twice as long each time, up to an hour, with a jitter of a tenth.
    pub fn exponential(base: Duration) -> Self {
        Self { base, max: base.max(Duration::from_secs(3600)), ..Self::default() }
    }

    /// Waits the same time after each attempt, without jitter.
    pub fn fixed(wait: Duration) -> Self {
        Self { base: wait, factor: 1.0, max: wait, jitter: 0.0 }
    }

    /// Sets the longest wait.
    pub fn max(mut self, max: Duration) -> Self {
        self.max = max;
        self
    }

    /// Sets the jitter, from 0 to 1.
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    pub(crate) const JITTER_BOUNDS: RangeInclusive<f64> = 0.0..=1.0;

    pub(crate) fn check(&self) -> Result<()> {
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            return Err(Error::invalid("backoff.factor", "must be a number of at least 1"));
        }
        if !Self::JITTER_BOUNDS.contains(&self.jitter) {
            return Err(Error::invalid("backoff.jitter", "must be a number from 0 to 1"));
        }
        if self.base > self.max {
            return Err(Error::invalid("backoff.base", "must not be longer than backoff.max"));
        }
        Ok(())
    }

    /// The wait after attempt number `attempt`. Chance is drawn from the job and the attempt alone, so that the same
    /// history always has the same times.
    pub(crate) fn wait(&self, id: JobId, attempt: u32) -> Duration {
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let max_s = self.max.as_secs_f64();
        let wait_s = (self.base.as_secs_f64() * self.factor.powi(exponent)).min(max_s);
        let chance = unit_interval(id.raw().cast_unsigned() ^ u64::from(attempt).rotate_left(32));
        let moved_s = wait_s * (1.0 + self.jitter * (2.0 * chance - 1.0));
        Duration::try_from_secs_f64(moved_s.clamp(0.0, max_s)).unwrap_or(self.max)
    }
}

/// A wait of less than `longest`, drawn from the job and the attempt alone.
pub(crate) fn spread(id: JobId, attempt: u32, longest: Duration) -> Duration {
    longest.mul_f64(unit_interval(id.raw().cast_unsigned() ^ u64::from(attempt).rotate_left(32)))
}

/// Spreads a seed evenly over 0..1 (the finalizer of SplitMix64, Steele et al. 2014).
fn unit_interval(seed: u64) -> f64 {
    let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: JobId = JobId::from_raw(1 << 50);

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff::default().jitter(0.0);
        let seconds: Vec<u64> = (1..=13).map(|attempt| backoff.wait(ID, attempt).as_secs()).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600]);
        assert_eq!(backoff.wait(ID, u32::MAX).as_secs(), 3600);
        assert_eq!(Backoff::fixed(Duration::from_secs(7)).wait(ID, 30).as_secs(), 7);
    }

    #[test]
    fn jitter_stays_within_its_part_and_spreads() {
        let backoff = Backoff::exponential(Duration::from_secs(100)).jitter(0.5);
        let waits: Vec<f64> = (0..1000).map(|n| backoff.wait(JobId::from_raw(n), 1).as_secs_f64()).collect();
        assert!(waits.iter().all(|wait| (50.0..=150.0).contains(wait)));
        assert!(waits.iter().any(|wait| *wait < 60.0) && waits.iter().any(|wait| *wait > 140.0));
        assert_eq!(backoff.wait(ID, 3), backoff.wait(ID, 3));
    }

    #[test]
    fn bad_settings_are_named() {
        let bad = [
            (Backoff { factor: 0.5, ..Backoff::default() }, "backoff.factor"),
            (Backoff { factor: f64::NAN, ..Backoff::default() }, "backoff.factor"),
            (Backoff { jitter: -0.1, ..Backoff::default() }, "backoff.jitter"),
            (Backoff { jitter: f64::NAN, ..Backoff::default() }, "backoff.jitter"),
            (Backoff { base: Duration::MAX, ..Backoff::default() }, "backoff.base"),
        ];
        for (backoff, field) in bad {
            let error = backoff.check().expect_err(field);
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }
}
