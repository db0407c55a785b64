//! The only place that reads the time.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::time::Timestamp;

/// Tells the time to an engine. [`SystemClock`] unless a test brings its own.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock, which may jump.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment, which never runs backwards. Timeouts are measured by it.
    fn monotonic(&self) -> Duration;
}

/// The operating system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        // A clock set before 1970 is a dead battery; ids go on from the newest row all the same.
        Timestamp::from(SystemTime::now())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn monotonic(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

/// The moment of the standard library, brought into the range from the epoch to [`Timestamp::MAX`], in whole microseconds.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        time.duration_since(UNIX_EPOCH).map_or(Self::EPOCH, |since| Self::EPOCH.saturating_add(since))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(at: Timestamp) -> Self {
        UNIX_EPOCH + at.since(Timestamp::EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_the_standard_library_become_ours_and_back() {
        let time = UNIX_EPOCH + Duration::from_nanos(1_790_000_000_123_456_789);
        let at = Timestamp::from(time);
        assert_eq!(at, Timestamp::from_micros(1_790_000_000_123_456));
        assert_eq!(SystemTime::from(at), UNIX_EPOCH + Duration::from_micros(1_790_000_000_123_456));
        assert_eq!(Timestamp::from(UNIX_EPOCH - Duration::from_secs(1)), Timestamp::EPOCH);
        assert_eq!(Timestamp::from(UNIX_EPOCH + Duration::from_secs(1 << 36)), Timestamp::MAX);
        assert_eq!(Timestamp::from(SystemTime::from(Timestamp::MAX)), Timestamp::MAX);
    }
}
