//! How many jobs may run at a time, and which.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::model::job::Priority;
use crate::model::rules::check_count;

/// How many workers an engine has, and how many of them it keeps for urgent jobs.
///
/// A worker that is reserved for a priority never takes work below it; an unreserved one takes the best there is.
/// Threads come when there is work for them and go when there has been none for `keep_alive`.
///
/// ```
/// use jobmill::{Priority, Workers};
///
/// // Eight workers, one of which is always free for critical jobs.
/// let workers = Workers::new(8).reserve(Priority::Critical, 1);
/// # let _ = workers;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    pub(crate) max: usize,
    pub(crate) min: usize,
    pub(crate) reserved: [usize; 4],
    pub(crate) keep_alive: Duration,
}

impl Default for Workers {
    /// One worker for each processor, at least two, none reserved.
    fn default() -> Self {
        Self::new(std::thread::available_parallelism().map_or(2, |count| count.get().max(2)))
    }
}

impl Workers {
    /// The most workers that one engine may have.
    pub const MAX: usize = 1024;

    /// How many there may be.
    pub(crate) const BOUNDS: RangeInclusive<u64> = 1..=Self::MAX as u64;
    /// How many of them may stay, or be kept for a priority.
    pub(crate) const PART_BOUNDS: RangeInclusive<u64> = 0..=Self::MAX as u64;

    /// At most this many workers, none reserved, started when needed and kept for 10 s without work.
    pub fn new(max: usize) -> Self {
        Self { max, min: 0, reserved: [0; 4], keep_alive: Duration::from_secs(10) }
    }

    /// Seven workers: one for critical jobs only, two for high ones and better, four for all.
    pub fn tiered() -> Self {
        Self::new(7).reserve(Priority::Critical, 1).reserve(Priority::High, 2)
    }

    /// Keeps `count` of the workers for jobs of this priority or a better one. Defaults to 0 for each.
    pub fn reserve(mut self, priority: Priority, count: usize) -> Self {
        self.reserved[priority.rank()] = count;
        self
    }

    /// Sets how many threads stay even without work. Defaults to 0.
    pub fn min(mut self, min: usize) -> Self {
        self.min = min;
        self
    }

    /// Sets how long a thread above the minimum stays without work. Defaults to 10 s.
    pub fn keep_alive(mut self, keep_alive: Duration) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// How many jobs of this priority or a worse one may run at a time.
    pub(crate) fn room_for(&self, priority: Priority) -> usize {
        self.max.saturating_sub(self.kept_above(priority))
    }

    fn kept_above(&self, priority: Priority) -> usize {
        self.reserved[..priority.rank()].iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Whether one worker at least is kept for nobody.
    pub(crate) fn leave_one_for_all(&self) -> bool {
        self.kept_above(Priority::Low) < self.max
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_count("workers", self.max as u64, &Self::BOUNDS)?;
        if self.min > self.max {
            return Err(Error::invalid("workers.min", "must not be more than the workers in all"));
        }
        if !self.leave_one_for_all() || self.reserved[Priority::Low.rank()] > self.max {
            return Err(Error::invalid("workers.reserved", "must leave at least one worker that takes any job"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiers_leave_room_by_priority() {
        let tiers = Workers::tiered();
        let room: Vec<usize> = Priority::ALL.into_iter().map(|priority| tiers.room_for(priority)).collect();
        assert_eq!(room, [7, 6, 4, 4]);
        assert!(tiers.check().is_ok());
    }

    #[test]
    fn bad_numbers_are_named() {
        for workers in [
            Workers::new(0),
            Workers::new(1025),
            Workers::new(2).min(3),
            Workers::new(3).reserve(Priority::Critical, 3),
            Workers::new(3).reserve(Priority::Critical, usize::MAX / 2),
        ] {
            assert!(workers.check().is_err(), "{workers:?}");
        }
    }
}
