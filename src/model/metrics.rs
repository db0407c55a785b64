//! What the jobs of a file did of late: sums and rates over a window of time.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::histogram::Histogram;
use crate::model::job::Priority;
use crate::model::tally::{Resolution, Tally};
use crate::model::time::Timestamp;
use crate::model::words::words;

/// How far back to look.
///
/// A window is made of whole buckets, so it reaches back a little further than its name says, by less than one bucket:
/// the last minute is from 60 s to 65 s long. [`Rates::covered`] tells how long it was, and rates are reckoned by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Window {
    /// The last minute, in buckets of 5 s.
    Minute,
    /// The last hour, in buckets of 1 min.
    Hour,
    /// The last day, in buckets of 15 min.
    Day,
}

impl Window {
    /// Every window, the shortest first.
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// How long the window is.
    pub const fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        })
    }

    /// The window as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// Of which tallies the window is made.
    pub(crate) const fn resolution(self) -> Resolution {
        match self {
            Self::Minute => Resolution::FiveSeconds,
            Self::Hour => Resolution::Minute,
            Self::Day => Resolution::QuarterHour,
        }
    }

    /// The beginning of the oldest bucket that overlaps the window. Older ones are never wanted again.
    pub(crate) fn first_wanted(self, now: Timestamp) -> Timestamp {
        self.resolution().bucket_start(now.saturating_sub(self.length()))
    }
}

words!(Window, "window");

/// What some jobs did in a window of time, and how fast.
///
/// ```
/// use jobmill::Rates;
///
/// fn line(rates: &Rates) -> String {
///     let slow = rates.waited.quantile(0.99).unwrap_or_default();
///     let errors = rates.error_rate().unwrap_or_default() * 100.0;
///     format!("{:.1} jobs/s, {errors:.0} % errors, 99 % wait less than {slow:?}", rates.completion_rate())
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Rates {
    /// The time that was covered: the length of the window, rounded up to whole buckets, or less if counting began
    /// later than that.
    pub covered: Duration,
    /// Jobs enqueued.
    pub enqueued: u64,
    /// Attempts begun.
    pub started: u64,
    /// Jobs completed.
    pub completed: u64,
    /// Jobs failed: no further attempt follows.
    pub failed: u64,
    /// Jobs cancelled.
    pub cancelled: u64,
    /// Jobs expired.
    pub expired: u64,
    /// Attempts that failed and are followed by another.
    pub retried: u64,
    /// Attempts put off by their handler.
    pub snoozed: u64,
    /// Attempts given back unspent, by a shutdown.
    pub returned: u64,
    /// Attempts whose process died.
    pub rescued: u64,
    /// Ticks of schedules whose jobs were enqueued.
    pub ticked: u64,
    /// Ticks of schedules that were missed and not made up for.
    pub ticks_missed: u64,
    /// Ticks of schedules that were skipped, for the last job had not ended.
    pub ticks_skipped: u64,
    /// How long jobs waited from when they could run to their start, once for each attempt.
    pub waited: Histogram,
    /// How long attempts ran.
    pub ran: Histogram,
    /// How late ticks of schedules were: from when each was due, its jitter included, to the enqueueing of its job. Those
    /// that waited for the end of another job are left out.
    pub tick_lateness: Histogram,
}

impl Rates {
    fn new(tally: Tally, covered: Duration) -> Self {
        let Tally {
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
        } = tally;
        Self {
            covered,
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
        }
    }

    /// Jobs enqueued per second.
    pub fn enqueue_rate(&self) -> f64 {
        self.per_second(self.enqueued)
    }

    /// Attempts begun per second: the processing rate.
    pub fn start_rate(&self) -> f64 {
        self.per_second(self.started)
    }

    /// Jobs completed per second.
    pub fn completion_rate(&self) -> f64 {
        self.per_second(self.completed)
    }

    /// Attempts that came to a value or an error: completed, failed and retried. One that was cancelled, put off, given
    /// back or rescued from a dead process came to neither.
    pub fn attempts_ended(&self) -> u64 {
        self.completed.saturating_add(self.failed).saturating_add(self.retried)
    }

    /// Which part of the [ended attempts](Self::attempts_ended) failed, those that are tried again among them: from 0
    /// to 1. None if none ended.
    pub fn error_rate(&self) -> Option<f64> {
        let ended = self.attempts_ended();
        (ended > 0).then(|| self.failed.saturating_add(self.retried) as f64 / ended as f64)
    }

    /// A count per second of the time covered; 0 if no time was.
    fn per_second(&self, count: u64) -> f64 {
        if self.covered.is_zero() { 0.0 } else { count as f64 / self.covered.as_secs_f64() }
    }
}

/// What the jobs of a file did in a window of time, all together and by queue, kind and priority. Whatever saw no change
/// in that time is not in the maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Metrics {
    /// Which window.
    pub window: Window,
    /// From when on was counted: the beginning of the window's oldest bucket, or when counting began if that is later.
    pub since: Timestamp,
    /// All jobs.
    pub total: Rates,
    /// By queue.
    pub queues: BTreeMap<String, Rates>,
    /// By kind.
    pub kinds: BTreeMap<String, Rates>,
    /// By priority.
    pub priorities: BTreeMap<Priority, Rates>,
}

impl Metrics {
    /// Sums up the tallies of a window: those of its [resolution](Window::resolution) from
    /// [`first_wanted`](Window::first_wanted) to `now`, each with its lane's queue, kind and priority.
    /// `counted_since` is when this file's first tally was begun.
    pub(crate) fn new<'a>(
        window: Window,
        now: Timestamp,
        counted_since: Timestamp,
        tallies: impl IntoIterator<Item = (&'a str, &'a str, Priority, &'a Tally)>,
    ) -> Self {
        let since = window.first_wanted(now).max(counted_since).min(now);
        let covered = now.since(since);
        let mut total = Tally::default();
        let mut queues: BTreeMap<&str, Tally> = BTreeMap::new();
        let mut kinds: BTreeMap<&str, Tally> = BTreeMap::new();
        let mut priorities: BTreeMap<Priority, Tally> = BTreeMap::new();
        for (queue, kind, priority, tally) in tallies {
            total.merge(tally);
            queues.entry(queue).or_default().merge(tally);
            kinds.entry(kind).or_default().merge(tally);
            priorities.entry(priority).or_default().merge(tally);
        }
        let named = |sums: BTreeMap<&str, Tally>| {
            sums.into_iter().map(|(name, tally)| (name.to_owned(), Rates::new(tally, covered))).collect()
        };
        Self {
            window,
            since,
            total: Rates::new(total, covered),
            queues: named(queues),
            kinds: named(kinds),
            priorities: priorities.into_iter().map(|(key, tally)| (key, Rates::new(tally, covered))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Result;

    const NOON: &str = "2026-03-01T12:00:07Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn windows_begin_with_the_bucket_that_overlaps_them() {
        for (window, now, first) in [
            (Window::Minute, NOON, "2026-03-01T11:59:05Z"),
            (Window::Minute, "2026-03-01T12:00:05Z", "2026-03-01T11:59:05Z"),
            (Window::Minute, "2026-03-01T12:00:04.999999Z", "2026-03-01T11:59:00Z"),
            (Window::Hour, NOON, "2026-03-01T11:00:00Z"),
            (Window::Day, NOON, "2026-02-28T12:00:00Z"),
            (Window::Day, "2026-03-01T12:14:59Z", "2026-02-28T12:00:00Z"),
            (Window::Day, "1970-01-01T00:00:01Z", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(window.first_wanted(at(now)), at(first), "{window} at {now}");
        }
    }

    proptest! {
        #[test]
        fn a_window_is_longer_than_its_name_by_less_than_a_bucket(us in 86_400_000_000..=Timestamp::MAX.as_micros()) {
            let now = Timestamp::from_micros(us);
            for window in Window::ALL {
                let reach = now.since(window.first_wanted(now));
                let bucket = window.resolution().length().unwrap();
                prop_assert!(reach >= window.length() && reach < window.length() + bucket, "{:?}", reach);
            }
        }
    }

    #[test]
    fn words_read_back() -> Result<()> {
        for window in Window::ALL {
            assert_eq!(window.as_str().parse::<Window>()?, window);
            assert_eq!(serde_json::to_value(window).ok(), Some(window.as_str().into()));
        }
        assert!("week".parse::<Window>().is_err());
        Ok(())
    }

    #[test]
    fn each_tally_counts_in_the_total_and_in_its_groups() {
        let tally = |enqueued| Tally { enqueued, ..Tally::default() };
        let tallies = [1, 10, 100, 1000].map(tally);
        let metrics = Metrics::new(
            Window::Minute,
            at(NOON),
            Timestamp::EPOCH,
            [
                ("mail", "letter", Priority::High, &tallies[0]),
                ("mail", "parcel", Priority::High, &tallies[1]),
                ("mail", "letter", Priority::Low, &tallies[2]),
                ("web", "letter", Priority::High, &tallies[3]),
            ],
        );
        let sums = |groups: &BTreeMap<String, Rates>| {
            groups.iter().map(|(name, rates)| format!("{name} {}", rates.enqueued)).collect::<Vec<_>>()
        };
        assert_eq!(metrics.total.enqueued, 1111);
        assert_eq!(sums(&metrics.queues), ["mail 111", "web 1000"]);
        assert_eq!(sums(&metrics.kinds), ["letter 1101", "parcel 10"]);
        assert_eq!(metrics.priorities[&Priority::High].enqueued, 1011);
        assert_eq!(metrics.priorities[&Priority::Low].enqueued, 100);
        assert_eq!(metrics.since, at("2026-03-01T11:59:05Z"));
        assert_eq!(metrics.queues["mail"].covered, Duration::from_secs(62));
    }

    #[test]
    fn every_count_of_a_tally_arrives() -> serde_json::Result<()> {
        let rates = Rates::new(Tally::sample(), Duration::from_secs(1));
        let mut rates = serde_json::to_value(rates)?;
        rates.as_object_mut().unwrap().remove("covered");
        assert_eq!(rates, serde_json::to_value(Tally::sample())?);
        Ok(())
    }

    #[test]
    fn rates_are_by_the_time_that_was_covered() {
        let rates = Rates::new(Tally::sample(), Duration::from_secs(50));
        assert_eq!((rates.enqueue_rate(), rates.start_rate(), rates.completion_rate()), (2.0, 1.8, 1.4));
        assert_eq!(rates.attempts_ended(), 90);
        assert_eq!(rates.error_rate(), Some(20.0 / 90.0));
        let nothing = Rates::default();
        assert_eq!((nothing.completion_rate(), nothing.error_rate()), (0.0, None));
        assert_eq!(Rates::new(Tally::sample(), Duration::ZERO).completion_rate(), 0.0);
    }

    #[test]
    fn a_young_file_covers_less_than_the_window() {
        let metrics = |counted_since| Metrics::new(Window::Hour, at(NOON), counted_since, []);
        let young = metrics(at("2026-03-01T11:50:07Z"));
        assert_eq!((young.since, young.total.covered), (at("2026-03-01T11:50:07Z"), Duration::from_secs(600)));
        let clock_was_set_back = metrics(at("2026-03-02T00:00:00Z"));
        assert_eq!((clock_was_set_back.since, clock_was_set_back.total.covered), (at(NOON), Duration::ZERO));
    }
}
