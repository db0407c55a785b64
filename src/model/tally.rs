//! What happened to the jobs of a lane in a span of time, in the form in which the file keeps it.

#[cfg(test)]
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::histogram::Histogram;
use crate::model::job::Status;
use crate::model::time::Timestamp;

/// What happened to the jobs of a lane in a span of time. Its JSON leaves out what is zero, and reads with what other
/// versions have left out or added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Tally {
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) enqueued: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) started: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) completed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) failed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) cancelled: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) expired: u64,
    /// Attempts that failed and are followed by another.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) retried: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) snoozed: u64,
    /// Attempts given back unspent, by a shutdown.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) returned: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) rescued: u64,
    /// Ticks of schedules whose jobs were enqueued.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) ticked: u64,
    /// Ticks that were missed and not made up for.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) ticks_missed: u64,
    /// Ticks that were skipped, for the last job had not ended.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) ticks_skipped: u64,
    /// From when a job could run to its start.
    #[serde(skip_serializing_if = "Histogram::is_empty")]
    pub(crate) waited: Histogram,
    /// How long attempts ran.
    #[serde(skip_serializing_if = "Histogram::is_empty")]
    pub(crate) ran: Histogram,
    /// From when a tick was due to the enqueueing of its job.
    #[serde(skip_serializing_if = "Histogram::is_empty")]
    pub(crate) tick_lateness: Histogram,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Tally {
    pub(crate) fn merge(&mut self, other: &Self) {
        // Taken apart, so that a new field cannot be forgotten here.
        let Self {
            enqueued,
            started,
            completed,
            failed,
            cancelled,
            expired,
            retried,
            snoozed,
            returned,
            rescued,
            ticked,
            ticks_missed,
            ticks_skipped,
            waited,
            ran,
            tick_lateness,
        } = other;
        for (sum, more) in [
            (&mut self.enqueued, enqueued),
            (&mut self.started, started),
            (&mut self.completed, completed),
            (&mut self.failed, failed),
            (&mut self.cancelled, cancelled),
            (&mut self.expired, expired),
            (&mut self.retried, retried),
            (&mut self.snoozed, snoozed),
            (&mut self.returned, returned),
            (&mut self.rescued, rescued),
            (&mut self.ticked, ticked),
            (&mut self.ticks_missed, ticks_missed),
            (&mut self.ticks_skipped, ticks_skipped),
        ] {
            *sum = sum.saturating_add(*more);
        }
        self.waited.merge(waited);
        self.ran.merge(ran);
        self.tick_lateness.merge(tick_lateness);
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Counts a job that has come to a status.
    pub(crate) fn count(&mut self, status: Status) {
        match status {
            Status::Running => self.started += 1,
            Status::Completed => self.completed += 1,
            Status::Failed => self.failed += 1,
            Status::Cancelled => self.cancelled += 1,
            Status::Expired => self.expired += 1,
            Status::Created | Status::Pending => {}
        }
    }
}

/// How long a span one kept tally is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Resolution {
    FiveSeconds,
    Minute,
    QuarterHour,
    /// One tally for all time.
    Ever,
}

impl Resolution {
    pub(crate) const ALL: [Self; 4] = [Self::FiveSeconds, Self::Minute, Self::QuarterHour, Self::Ever];

    /// The length of a span in seconds, 0 for all time. It names the resolution in the file.
    pub(crate) const fn as_seconds(self) -> u32 {
        match self {
            Self::FiveSeconds => 5,
            Self::Minute => 60,
            Self::QuarterHour => 900,
            Self::Ever => 0,
        }
    }

    /// How long a span is. None for all time.
    #[cfg(test)]
    pub(crate) fn length(self) -> Option<Duration> {
        match self.as_seconds() {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        }
    }

    /// When the span begins in which a moment lies. Spans are counted from the epoch, so that all processes on a file
    /// have the same ones.
    pub(crate) fn bucket_start(self, at: Timestamp) -> Timestamp {
        match i64::from(self.as_seconds()) * 1_000_000 {
            0 => Timestamp::EPOCH,
            length_us => Timestamp::from_micros(at.as_micros() - at.as_micros() % length_us),
        }
    }
}

#[cfg(test)]
impl Tally {
    /// A tally with a different number in each field.
    pub(crate) fn sample() -> Self {
        let mut tally = Self {
            enqueued: 100,
            started: 90,
            completed: 70,
            failed: 5,
            cancelled: 4,
            expired: 3,
            retried: 15,
            snoozed: 2,
            returned: 6,
            rescued: 1,
            ticked: 40,
            ticks_missed: 9,
            ticks_skipped: 8,
            ..Self::default()
        };
        tally.waited.record(Duration::from_millis(2));
        tally.ran.record(Duration::from_millis(30));
        tally.ran.record(Duration::from_secs(2));
        tally.tick_lateness.record(Duration::from_millis(7));
        tally
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn merging_adds_every_field() -> serde_json::Result<()> {
        let mut twice = Tally::sample();
        twice.merge(&Tally::sample());
        let once = serde_json::to_value(Tally::sample())?;
        let twice = serde_json::to_value(twice)?;
        let once = once.as_object().unwrap();
        assert_eq!(once.len(), 16, "the sample fills each field");
        for (field, value) in once {
            match value.as_u64() {
                Some(count) => assert_eq!(twice[field], 2 * count, "{field}"),
                None => assert_eq!(twice[field]["count"], 2 * value["count"].as_u64().unwrap(), "{field}"),
            }
        }
        Ok(())
    }

    #[test]
    fn json_is_small_and_reads_back() -> serde_json::Result<()> {
        assert_eq!(serde_json::to_string(&Tally::default())?, "{}");
        let text = serde_json::to_string(&Tally::sample())?;
        assert_eq!(serde_json::from_str::<Tally>(&text)?, Tally::sample());
        let mut one = Tally { enqueued: 1, started: 1, completed: 1, ..Tally::default() };
        one.waited.record(Duration::from_micros(80));
        let text = serde_json::to_string(&one)?;
        assert_eq!(
            text,
            r#"{"enqueued":1,"started":1,"completed":1,"waited":{"count":1,"sum_us":80,"max_us":80,"buckets":{"500":1}}}"#
        );
        Ok(())
    }

    #[test]
    fn json_of_another_version_is_read() -> serde_json::Result<()> {
        let later: Tally = serde_json::from_str(r#"{"completed":2,"first_token":{"count":1},"dreamt":7}"#)?;
        assert_eq!(later, Tally { completed: 2, ..Tally::default() });
        assert!(serde_json::from_str::<Tally>("{}")?.is_empty());
        assert!(!later.is_empty());
        Ok(())
    }

    #[test]
    fn spans_begin_at_multiples_of_their_length() {
        let at: Timestamp = "2026-03-01T10:44:59.999999Z".parse().unwrap();
        for (resolution, start) in [
            (Resolution::FiveSeconds, "2026-03-01T10:44:55Z"),
            (Resolution::Minute, "2026-03-01T10:44:00Z"),
            (Resolution::QuarterHour, "2026-03-01T10:30:00Z"),
            (Resolution::Ever, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(resolution.bucket_start(at), start.parse().unwrap(), "{resolution:?}");
        }
        let names: Vec<u32> = Resolution::ALL.into_iter().map(Resolution::as_seconds).collect();
        assert_eq!(names, [5, 60, 900, 0], "they stand in files");
    }

    proptest! {
        #[test]
        fn a_moment_lies_in_the_span_that_begins_for_it(micros in 0..=Timestamp::MAX.as_micros()) {
            let at = Timestamp::from_micros(micros);
            for resolution in Resolution::ALL {
                let start = resolution.bucket_start(at);
                prop_assert!(start <= at);
                prop_assert!(resolution.length().is_none_or(|length| at.since(start) < length));
                prop_assert_eq!(resolution.bucket_start(start), start);
            }
        }
    }
}
