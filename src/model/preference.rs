//! What goes first among jobs of one priority.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::Result;
use crate::model::rules::{check_count, check_duration};

/// What goes first among jobs of one priority. Whichever is chosen, each job has a place in one order that does not move
/// while it waits, and those that come later come in further behind, so that none waits for ever.
///
/// The run time that is expected of a job is the mean of its kind, learnt as jobs run, and at the start from what the file
/// tells of the last day. A kind that has never run is expected to take no time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preference {
    /// The job that could run first.
    #[default]
    Arrival,
    /// Short jobs before long ones: a job stands where it would if it had come later by `weight` times the run time that
    /// is expected of it. With a weight of 10, a job of a minute lets pass what takes no time and comes within ten minutes
    /// after it.
    ShortestFirst {
        /// How many times its run time a job is put back, from 1 to 1000.
        weight: u32,
    },
    /// The job that must start first if it is to be done by its [`expires_at`](crate::NewJob::expires_at). A job without one
    /// stands where it would if it had to be done within `patience` of its coming. Of the jobs that had to wait for their
    /// [`run_at`](crate::NewJob::run_at), such as retries, the 256 that could run first are compared. Users who
    /// [take turns](crate::EngineBuilder::fair_by_user) have their jobs in the order of their coming all the same.
    EarliestDeadline {
        /// By when a job without a deadline should be done, at most 100 years.
        patience: Duration,
    },
}

impl Preference {
    /// How many times its run time a job may be put back.
    pub(crate) const WEIGHT_BOUNDS: RangeInclusive<u64> = 1..=1000;

    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Arrival => Ok(()),
            Self::ShortestFirst { weight } => check_count("prefer.weight", weight.into(), &Self::WEIGHT_BOUNDS),
            Self::EarliestDeadline { patience } => check_duration("prefer.patience", patience),
        }
    }

    /// The place in the order, in microseconds, of a job that could run from `run_at` on and is expected to take `takes`.
    pub(crate) fn place(self, run_at: i64, takes: Duration) -> i64 {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX >> 12);
        match self {
            Self::Arrival => run_at,
            Self::ShortestFirst { weight } => run_at.saturating_add(micros(takes).saturating_mul(weight.into())),
            Self::EarliestDeadline { patience } => self.place_due(run_at.saturating_add(micros(patience)), takes),
        }
    }

    /// The place of a job that is to be done by `due`.
    pub(crate) fn place_due(self, due: i64, takes: Duration) -> i64 {
        due.saturating_sub(i64::try_from(takes.as_micros()).unwrap_or(i64::MAX >> 12))
    }

    /// Whether the jobs' own deadlines count.
    pub(crate) fn by_deadline(self) -> bool {
        matches!(self, Self::EarliestDeadline { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_job_is_put_back_by_its_weight_and_no_further() {
        let short_first = Preference::ShortestFirst { weight: 10 };
        let minute = Duration::from_secs(60);
        assert_eq!(short_first.place(1_000, Duration::ZERO), 1_000);
        assert_eq!(short_first.place(1_000, minute), 600_001_000);
        assert_eq!(Preference::Arrival.place(1_000, minute), 1_000);
    }

    #[test]
    fn what_must_start_first_goes_first() {
        let deadline = Preference::EarliestDeadline { patience: Duration::from_secs(10) };
        assert_eq!(deadline.place(5_000_000, Duration::from_secs(3)), 12_000_000);
        assert_eq!(deadline.place_due(9_000_000, Duration::from_secs(3)), 6_000_000);
        assert_eq!(deadline.place(i64::MAX - 1, Duration::MAX), i64::MAX - (i64::MAX >> 12));
    }

    #[test]
    fn a_weight_and_a_patience_have_bounds() {
        for (preference, field) in [
            (Preference::ShortestFirst { weight: 0 }, "prefer.weight"),
            (Preference::ShortestFirst { weight: 1001 }, "prefer.weight"),
            (Preference::EarliestDeadline { patience: Duration::MAX }, "prefer.patience"),
        ] {
            assert!(preference.check().expect_err("a rule is broken").to_string().starts_with(field));
        }
        assert!(Preference::default().check().is_ok());
    }
}
