//! What the turns tell of themselves to whoever asks without waiting for one.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::desk::nanos;
use crate::model::time::Timestamp;

/// When turns were last taken, and how late they were.
pub(crate) struct Pulse {
    /// When the turn under way began, on the monotonic clock in nanoseconds. 0 if none is.
    began_ns: AtomicU64,
    /// When the dispatcher last looked, on the monotonic clock in nanoseconds.
    looked_ns: AtomicU64,
    /// When the last turn was committed, in microseconds since the epoch, and how long the job that it claimed last had
    /// waited since it could have run. `i64::MIN` if there was none.
    turned_at_us: AtomicI64,
    lag_us: AtomicI64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            began_ns: AtomicU64::new(0),
            looked_ns: AtomicU64::new(0),
            turned_at_us: AtomicI64::new(i64::MIN),
            lag_us: AtomicI64::new(i64::MIN),
        }
    }
}

impl Pulse {
    pub(super) fn begins(&self, now: Duration) {
        self.began_ns.store(nanos(now).max(1), Ordering::Relaxed);
    }

    pub(super) fn ends(&self) {
        self.began_ns.store(0, Ordering::Relaxed);
    }

    pub(super) fn committed(&self, now: Timestamp) {
        self.turned_at_us.store(now.as_micros(), Ordering::Relaxed);
    }

    pub(super) fn claimed(&self, run_at: Timestamp, now: Timestamp) {
        let lag_us = i64::try_from(now.since(run_at).as_micros()).unwrap_or(i64::MAX);
        self.lag_us.store(lag_us, Ordering::Relaxed);
    }

    pub(super) fn looked(&self, now: Duration) {
        self.looked_ns.store(nanos(now), Ordering::Relaxed);
    }

    /// For how long the turn under way has lasted, if one is.
    pub(crate) fn turn_for(&self, now: Duration) -> Option<Duration> {
        let began_ns = self.began_ns.load(Ordering::Relaxed);
        (began_ns > 0).then(|| now.saturating_sub(Duration::from_nanos(began_ns)))
    }

    /// For how long the dispatcher has not looked.
    pub(crate) fn silent_for(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_nanos(self.looked_ns.load(Ordering::Relaxed)))
    }

    pub(crate) fn last_turn_at(&self) -> Option<Timestamp> {
        some(&self.turned_at_us).map(Timestamp::from_micros)
    }

    pub(crate) fn lag(&self) -> Option<Duration> {
        some(&self.lag_us).map(|lag_us| Duration::from_micros(lag_us.unsigned_abs()))
    }
}

fn some(number: &AtomicI64) -> Option<i64> {
    Some(number.load(Ordering::Relaxed)).filter(|number| *number != i64::MIN)
}
