//! How long something took, counted in buckets whose bounds never change.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const COUNT: usize = 21;

/// The upper bounds of the buckets in microseconds. What is longer than the last one is in a bucket without a bound.
const BOUNDS_US: [u64; COUNT] = [
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
    21_600_000_000,
];

const BOUNDS: [Duration; COUNT] = {
    let mut bounds = [Duration::ZERO; COUNT];
    let mut at = 0;
    while at < COUNT {
        bounds[at] = Duration::from_micros(BOUNDS_US[at]);
        at += 1;
    }
    bounds
};

/// The word for the bucket without a bound, in JSON.
const UNBOUNDED: &str = "inf";

/// How long something took, many times: how often it took no longer than each of [`Histogram::BOUNDS`], the sum of all
/// times and the longest of them.
///
/// Times are rounded to the microsecond. In JSON a histogram reads
/// `{"count":3,"sum_us":4200,"max_us":3000,"buckets":{"500":1,"1000":1,"5000":1}}`: for each bucket that is not empty,
/// its upper bound in microseconds (`inf` for the last one) and what is in it and in no bucket before it.
///
/// ```
/// use std::time::Duration;
/// use jobmill::Histogram;
///
/// let mut times = Histogram::default();
/// for ms in [2, 3, 7, 40] {
///     times.record(Duration::from_millis(ms));
/// }
/// assert_eq!(times.count(), 4);
/// assert_eq!(times.mean(), Some(Duration::from_millis(13)));
/// assert_eq!(times.max(), Some(Duration::from_millis(40)));
/// // An estimate: no more is known than that two of the four took no longer than 5 ms.
/// assert_eq!(times.quantile(0.5), Some(Duration::from_millis(5)));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Each time is in one bucket, the first whose bound it does not pass.
    buckets: [u64; COUNT + 1],
    sum_us: u64,
    max_us: u64,
}

impl Histogram {
    /// The upper bounds of the buckets, from 0.5 ms to 6 h. A time that equals a bound is in its bucket; one that is
    /// longer than the last bound is in a bucket of its own.
    pub const BOUNDS: &'static [Duration] = &BOUNDS;

    /// Counts a time.
    pub fn record(&mut self, time: Duration) {
        let time_us =
            time.as_secs().saturating_mul(1_000_000).saturating_add((u64::from(time.subsec_nanos()) + 500) / 1_000);
        let bucket = &mut self.buckets[bucket_of(time_us)];
        *bucket = bucket.saturating_add(1);
        self.sum_us = self.sum_us.saturating_add(time_us);
        self.max_us = self.max_us.max(time_us);
    }

    /// Counts all that another histogram has counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket = bucket.saturating_add(more);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.max_us = self.max_us.max(other.max_us);
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.buckets.iter().all(|count| *count == 0)
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The sum of all times.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// The longest time, exactly. None if nothing was counted.
    pub fn max(&self) -> Option<Duration> {
        (!self.is_empty()).then(|| Duration::from_micros(self.max_us))
    }

    /// The mean of all times, exactly. None if nothing was counted.
    pub fn mean(&self) -> Option<Duration> {
        self.sum_us.checked_div(self.count()).map(Duration::from_micros)
    }

    /// An estimate of the time that this part of all times did not exceed: 0.5 for the median, 0.99 for all but one in
    /// a hundred. None if nothing was counted, or if `part` is not from 0 to 1.
    ///
    /// The times of a bucket are taken to lie evenly between its bounds, so the estimate is in the right bucket, and
    /// may be off by the bucket's width. It is never longer than [`max`](Self::max).
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 || !(0.0..=1.0).contains(&part) {
            return None;
        }
        let rank = part * count as f64;
        let mut before: u64 = 0;
        for (at, &here) in self.buckets.iter().enumerate().filter(|(_, here)| **here > 0) {
            let until = before.saturating_add(here);
            if until as f64 >= rank {
                let (low_us, high_us) = self.edges_us(at);
                let within = ((rank - before as f64) / here as f64).clamp(0.0, 1.0);
                let above_us = ((high_us - low_us) as f64 * within).round() as u64;
                return Some(Duration::from_micros(low_us.saturating_add(above_us).min(high_us)));
            }
            before = until;
        }
        self.max()
    }

    /// Each bucket's upper bound, None for the last one, which has none, and how many times are in this bucket alone.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        self.buckets.iter().enumerate().map(|(at, count)| (BOUNDS.get(at).copied(), *count))
    }

    /// Between which times those of a bucket lie. The longest time of all narrows the bucket that it is in.
    fn edges_us(&self, at: usize) -> (u64, u64) {
        let low = if at == 0 { 0 } else { BOUNDS_US[at - 1] };
        let high = BOUNDS_US.get(at).copied().unwrap_or(u64::MAX);
        match self.max_us {
            max if max >= low => (low, high.min(max)),
            // What was read from elsewhere may lack the longest time.
            _ if at < COUNT => (low, high),
            _ => (low, low),
        }
    }
}

fn bucket_of(time_us: u64) -> usize {
    // Counting all bounds that are passed has no branch to mispredict.
    BOUNDS_US.iter().map(|bound| usize::from(time_us > *bound)).sum()
}

/// The upper bound of a bucket, as the key of a JSON object.
struct Bound(usize);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BOUNDS_US.get(self.0) {
            Some(bound_us) => write!(f, "{bound_us}"),
            None => f.write_str(UNBOUNDED),
        }
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The buckets that are not empty.
struct Filled<'h>(&'h [u64; COUNT + 1]);

impl Serialize for Filled<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let filled = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        serializer.collect_map(filled.map(|(at, count)| (Bound(at), count)))
    }
}

#[derive(Serialize)]
struct Written<'h> {
    count: u64,
    sum_us: u64,
    max_us: u64,
    buckets: Filled<'h>,
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { buckets, sum_us, max_us } = self;
        let buckets = Filled(buckets);
        Written { count: self.count(), sum_us: *sum_us, max_us: *max_us, buckets }.serialize(serializer)
    }
}

/// The count is that of the buckets, so it is not read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Read {
    sum_us: u64,
    max_us: u64,
    buckets: BTreeMap<String, u64>,
}

impl<'de> Deserialize<'de> for Histogram {
    /// Reads a histogram. A bucket with an unknown bound, as another version may have, counts in the first one that
    /// reaches as far.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Read::deserialize(deserializer)?;
        let mut histogram = Self { sum_us: read.sum_us, max_us: read.max_us, ..Self::default() };
        for (bound, count) in read.buckets {
            let at = match bound.as_str() {
                UNBOUNDED => COUNT,
                bound => bucket_of(bound.parse().map_err(de::Error::custom)?),
            };
            histogram.buckets[at] = histogram.buckets[at].saturating_add(count);
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(times: &[Duration]) -> Histogram {
        let mut histogram = Histogram::default();
        for time in times {
            histogram.record(*time);
        }
        histogram
    }

    #[test]
    fn a_time_that_equals_a_bound_is_in_its_bucket_and_a_longer_one_in_the_next() {
        let us = Duration::from_micros(1);
        for (at, bound) in Histogram::BOUNDS.iter().enumerate() {
            let filled = |time| of(&[time]).buckets.iter().position(|count| *count == 1);
            assert_eq!(filled(*bound), Some(at), "{bound:?}");
            assert_eq!(filled(*bound + us), Some(at + 1), "above {bound:?}");
        }
        assert!(Histogram::BOUNDS.is_sorted());
        assert_eq!(Histogram::BOUNDS.first(), Some(&Duration::from_micros(500)));
        assert_eq!(Histogram::BOUNDS.last(), Some(&Duration::from_secs(6 * 3600)));
    }

    #[test]
    fn sums_and_the_longest_are_exact_to_the_microsecond() {
        let histogram = of(&[Duration::from_nanos(1_499), Duration::from_nanos(1_500), Duration::from_secs(30_000)]);
        assert_eq!(histogram.count(), 3);
        assert_eq!(histogram.sum(), Duration::from_micros(30_000_000_003));
        assert_eq!(histogram.mean(), Some(Duration::from_micros(10_000_000_001)));
        assert_eq!(histogram.max(), Some(Duration::from_secs(30_000)));
        assert_eq!(histogram.buckets().next(), Some((Some(Duration::from_micros(500)), 2)));
        assert_eq!(histogram.buckets().last(), Some((None, 1)));
    }

    #[test]
    fn quantiles_of_an_even_spread() {
        // A hundred times, 10 ms apart, from 10 ms to 1 s.
        let times: Vec<Duration> = (1..=100).map(|n| Duration::from_millis(10 * n)).collect();
        let histogram = of(&times);
        for (part, ms) in
            [(0.0, 5), (0.01, 10), (0.1, 100), (0.25, 250), (0.5, 500), (0.75, 750), (0.99, 990), (1.0, 1000)]
        {
            let estimate = histogram.quantile(part).unwrap();
            assert_eq!(estimate, Duration::from_millis(ms), "{part}");
        }
        for part in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(histogram.quantile(part), None, "{part}");
        }
    }

    #[test]
    fn an_empty_histogram_tells_nothing() {
        let empty = Histogram::default();
        assert!(empty.is_empty());
        assert_eq!((empty.count(), empty.sum()), (0, Duration::ZERO));
        assert_eq!((empty.mean(), empty.max(), empty.quantile(0.5)), (None, None, None));
    }

    #[test]
    fn times_beyond_the_last_bound_are_estimated_up_to_the_longest() {
        let day = Duration::from_secs(86_400);
        assert_eq!(of(&[day]).quantile(1.0), Some(day));
        assert_eq!(of(&[Duration::MAX]).quantile(1.0), Some(Duration::from_micros(u64::MAX)));
        assert_eq!(of(&[Duration::MAX, day]).sum(), Duration::from_micros(u64::MAX), "a sum stops at its end");
    }

    #[test]
    fn json_holds_what_is_filled_and_reads_back() -> serde_json::Result<()> {
        let histogram = of(&[Duration::from_micros(400), Duration::from_micros(800), Duration::from_secs(86_400)]);
        let text = serde_json::to_string(&histogram)?;
        assert_eq!(
            text,
            r#"{"count":3,"sum_us":86400001200,"max_us":86400000000,"buckets":{"500":1,"1000":1,"inf":1}}"#
        );
        assert_eq!(serde_json::from_str::<Histogram>(&text)?, histogram);
        assert_eq!(serde_json::from_str::<Histogram>("{}")?, Histogram::default());
        Ok(())
    }

    #[test]
    fn json_of_another_version_is_read_as_well_as_it_can_be() -> serde_json::Result<()> {
        let other = r#"{"buckets":{"700":2,"1000":1,"99999999999999":1},"sum_us":5,"of":"a later version"}"#;
        let histogram: Histogram = serde_json::from_str(other)?;
        let filled: Vec<_> = histogram.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(Some(Duration::from_millis(1)), 3), (None, 1)]);
        // The longest time is not known, so the bounds stand for it.
        assert_eq!(histogram.quantile(0.75), Some(Duration::from_millis(1)));
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_secs(6 * 3600)));
        for bad in [r#"{"buckets":{"soon":1}}"#, r#"{"buckets":{"500":-1}}"#, r#"{"sum_us":"much"}"#, "[]x"] {
            assert!(serde_json::from_str::<Histogram>(bad).is_err(), "{bad}");
        }
        let full = format!(r#"{{"buckets":{{"500":{max},"400":{max},"inf":{max}}}}}"#, max = u64::MAX);
        let mut full: Histogram = serde_json::from_str(&full)?;
        full.merge(&full.clone());
        assert_eq!(full.count(), u64::MAX, "counts stop at their end");
        assert!(full.quantile(1.0).is_some());
        Ok(())
    }

    proptest! {
        #[test]
        fn an_estimate_is_in_the_bucket_of_the_true_quantile(
            times_us in prop::collection::vec(0u64..40_000_000_000, 1..60),
            part in 0.0..=1.0f64,
        ) {
            let mut times_us = times_us;
            times_us.sort_unstable();
            let histogram = of(&times_us.iter().copied().map(Duration::from_micros).collect::<Vec<_>>());
            let rank = (part * times_us.len() as f64).ceil() as usize;
            let truth = times_us[rank.saturating_sub(1)];
            let estimate = histogram.quantile(part).unwrap().as_micros() as u64;
            let (low, high) = histogram.edges_us(bucket_of(truth));
            prop_assert!((low..=high).contains(&estimate), "{} in {}..={}", estimate, low, high);
            prop_assert!(estimate <= *times_us.last().unwrap());
        }

        #[test]
        fn merging_is_counting_all(
            left in prop::collection::vec(0u64..u64::MAX, 0..20),
            right in prop::collection::vec(0u64..100_000_000, 0..20),
        ) {
            let times = |us: &[u64]| us.iter().copied().map(Duration::from_micros).collect::<Vec<_>>();
            let mut merged = of(&times(&left));
            merged.merge(&of(&times(&right)));
            let all = of(&times(&[left, right].concat()));
            prop_assert_eq!(&merged, &all);
            let text = serde_json::to_string(&all).unwrap();
            prop_assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), all);
        }

        #[test]
        fn quantiles_grow(times_us in prop::collection::vec(0u64..40_000_000_000, 1..30)) {
            let histogram = of(&times_us.into_iter().map(Duration::from_micros).collect::<Vec<_>>());
            let estimates: Vec<_> = (0..=50).map(|n| histogram.quantile(f64::from(n) / 50.0)).collect();
            prop_assert!(estimates.is_sorted());
        }
    }
}
