//! Limits: how many jobs of one key run at a time, and how fast they start.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::health::as_micros;
use crate::model::rules::{MAX_KEY_BYTES, check_duration, check_name};
use crate::model::time::Timestamp;

/// A limit by name, that jobs of any queue and kind may share: how many run at a time and how fast they start, in all
/// processes on the file together, for each key by itself. A job counts against it if it [says so](crate::NewJob::limit).
///
/// A job over its limit costs nothing while it waits, and holds up no other: those of the same key go on in their order as
/// soon as one ends, or as tokens come.
///
/// ```
/// use std::time::Duration;
/// use jobmill::{Limit, LimitUse, NewJob};
///
/// // For each account 20 requests at a time, and 90 000 tokens of text a minute.
/// let requests = Limit::new("requests").concurrency(20);
/// let tokens = Limit::new("tokens").rate(90_000, Duration::from_secs(60));
///
/// let ask = NewJob::json("ask", &"What is a job?")
///     .limit(LimitUse::of("requests").key("account-1"))
///     .limit(LimitUse::of("tokens").key("account-1").cost(1200));
/// # let _ = (requests, tokens, ask);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    pub(crate) name: String,
    pub(crate) concurrency: Option<u32>,
    pub(crate) rate: Option<Rate>,
    /// A burst that was set before there was a rate.
    #[serde(skip)]
    pub(crate) lone_burst: Option<u32>,
}

impl Limit {
    /// The highest concurrency, and the most tokens that a period may bring.
    pub const MAX: u32 = 1_000_000_000;

    /// A limit of this name, which bounds nothing yet. A name is 1 to 128 bytes without control characters.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), concurrency: None, rate: None, lone_burst: None }
    }

    /// Sets how many jobs of one key run at a time, from 1 to [`Limit::MAX`]. Defaults to no bound.
    pub fn concurrency(mut self, jobs: u32) -> Self {
        self.concurrency = Some(jobs);
        self
    }

    /// Sets how many tokens come to a key in a period, evenly: a job starts when what it [costs](LimitUse::cost) is there.
    /// From 1 to [`Limit::MAX`] tokens; a period is a millisecond at least. What a job takes is reckoned in whole
    /// nanoseconds, rounded down: of a rate above 10⁹ tokens a second one token by itself is free. A key that has rested
    /// has those of a whole period, unless [`burst`](Limit::burst) says otherwise. Defaults to no bound.
    ///
    /// For a job that costs much, tokens are kept from those that come after it, so that cheap ones do not starve it. They
    /// are kept at one key at a time: one that costs much at two keys, which other jobs drain each for itself, may wait for
    /// a lull.
    pub fn rate(mut self, tokens: u32, period: Duration) -> Self {
        let burst = self.lone_burst.take().or(self.rate.map(|rate| rate.burst)).unwrap_or(tokens);
        self.rate = Some(Rate { tokens, period, burst });
        self
    }

    /// Sets how many tokens a key can gather, from 1 to [`Limit::MAX`]. Only for a limit that has a [`rate`](Limit::rate).
    pub fn burst(mut self, tokens: u32) -> Self {
        match &mut self.rate {
            Some(rate) => rate.burst = tokens,
            None => self.lone_burst = Some(tokens),
        }
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many jobs of one key run at a time.
    pub fn get_concurrency(&self) -> Option<u32> {
        self.concurrency
    }

    /// How many tokens come to a key in which period, and how many it can gather.
    pub fn get_rate(&self) -> Option<(u32, Duration, u32)> {
        self.rate.map(|rate| (rate.tokens, rate.period, rate.burst))
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_name("limit.name", &self.name)?;
        let within = |field: &str, value: u32| match value {
            1..=Self::MAX => Ok(()),
            _ => Err(Error::invalid(field, format_args!("must be from 1 to {}", Self::MAX))),
        };
        if let Some(concurrency) = self.concurrency {
            within("limit.concurrency", concurrency)?;
        }
        if self.lone_burst.is_some() {
            return Err(Error::invalid("limit.burst", "needs a rate"));
        }
        let Some(rate) = self.rate else { return Ok(()) };
        within("limit.rate", rate.tokens)?;
        within("limit.burst", rate.burst)?;
        check_duration("limit.rate", rate.period)?;
        if rate.period < Duration::from_millis(1) {
            return Err(Error::invalid("limit.rate", "the period must be a millisecond at least"));
        }
        Ok(())
    }
}

/// What a job takes of a [`Limit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitUse {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) cost: u32,
}

impl LimitUse {
    /// A use of the limit of this name, at its common key, for one token.
    pub fn of(name: impl Into<String>) -> Self {
        Self { name: name.into(), key: String::new(), cost: 1 }
    }

    /// Sets the key, up to 1024 bytes: jobs of different keys do not count against each other. Defaults to one common key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// Sets how many tokens the job takes of the rate, from 0 to [`Limit::MAX`]. One that takes more than a key can gather
    /// starts when the key has all that it can, and the next one waits the longer. What it really took can be
    /// [told](crate::Context::spent) afterwards. Defaults to 1.
    pub fn cost(mut self, tokens: u32) -> Self {
        self.cost = tokens;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_name("limit", &self.name)?;
        if self.key.len() > MAX_KEY_BYTES {
            let rule = format_args!("must be no longer than {} bytes", MAX_KEY_BYTES);
            return Err(Error::invalid("limit.key", rule));
        }
        if self.cost > Limit::MAX {
            return Err(Error::invalid("limit.cost", format_args!("must be no more than {}", Limit::MAX)));
        }
        Ok(())
    }
}

/// The use of a limit at its common key, for one token.
impl From<&str> for LimitUse {
    fn from(name: &str) -> Self {
        Self::of(name)
    }
}

/// How one key of a limit stands, as [`Client::limit_usage`](crate::Client::limit_usage) tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LimitUsage {
    /// The limit.
    pub limit: String,
    /// The key, empty for the common one.
    pub key: String,
    /// How many of its jobs run.
    pub running: u64,
    /// How many of its jobs it holds.
    pub held: u64,
    /// How many tokens it has, rounded down; negative if more was taken than there was. None if it has no rate.
    pub tokens: Option<i64>,
    /// Until when a service has asked to be left alone.
    pub blocked_until: Option<Timestamp>,
}

/// A token bucket: tokens come evenly, up to as many as it can hold. One moment tells how many it has: that at which it is
/// full again. So tokens that come need no write, and a bucket that was never used needs no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Rate {
    pub(crate) tokens: u32,
    #[serde(rename = "period_us", serialize_with = "as_micros")]
    pub(crate) period: Duration,
    pub(crate) burst: u32,
}

/// No correction puts a bucket further into debt than this, so that a slip of the pen is forgotten some time.
const DEBT_MAX_NS: i64 = 86_400_000_000_000;

/// The longest time for which a service is left alone.
pub(crate) const THROTTLE_MAX: Duration = Duration::from_secs(86_400);

/// Until when something is left alone, if it is, in microseconds. What goes beyond the longest time is of a clock that was
/// set back since, and would never come nearer.
pub(crate) fn blocked(until: i64, now: Timestamp) -> Option<i64> {
    let longest = now.saturating_add(THROTTLE_MAX).as_micros();
    (now.as_micros() < until && until <= longest).then_some(until)
}

/// No number of tokens takes longer to come than this, so that a sum of moments and times stays a number.
const TIME_MAX_NS: i128 = (i64::MAX >> 2) as i128;

/// Moments are in nanoseconds since the epoch here, for many a rate brings several tokens in a microsecond.
impl Rate {
    /// How long so many tokens take to come, rounded down: three thirds of a second are no more than a second.
    fn time_for(&self, tokens: i64) -> i64 {
        let time_ns = i128::from(tokens) * self.period.as_nanos() as i128 / i128::from(self.tokens.max(1));
        time_ns.clamp(-TIME_MAX_NS, TIME_MAX_NS) as i64
    }

    /// How far from full a bucket can be.
    fn poorest(&self) -> i64 {
        self.time_for(self.burst.into()).saturating_add(DEBT_MAX_NS)
    }

    /// The moment at which a bucket is full, as seen at `now`. One that is poorer than any can be is of a clock that was
    /// set back since. Nothing is known of it but that time would never bring it nearer, so it is taken to be full.
    fn full_at(&self, full_at: i64, now: i64) -> i64 {
        if full_at > now.saturating_add(self.poorest()) { now } else { full_at.max(now) }
    }

    /// When so many tokens are there, of a bucket that is full at `full_at`. No later than `now`: they are.
    pub(crate) fn ready_at(&self, full_at: i64, cost: u32, now: i64) -> i64 {
        // What costs more than the bucket holds goes when it is full.
        let cost = cost.min(self.burst);
        self.full_at(full_at, now) - self.time_for(self.burst.into()) + self.time_for(cost.into())
    }

    /// When the bucket is full after so many tokens are taken, or given back if there are fewer than none.
    pub(crate) fn take(&self, full_at: i64, cost: i64, now: i64) -> i64 {
        let taken = self.full_at(full_at, now).saturating_add(self.time_for(cost));
        taken.clamp(now, now.saturating_add(self.poorest()))
    }

    /// When a bucket with the tokens of one that was filled at the rate `before` is full at this rate. What has come of
    /// the next token counts, or none would ever come of a rate that is changed again and again.
    pub(crate) fn takes_over(&self, before: &Rate, full_at: i64, now: i64) -> i64 {
        let missing_ns = i128::from(before.full_at(full_at, now) - now);
        let (period_ns, own_ns) = (before.period.as_nanos().max(1) as i128, self.period.as_nanos() as i128);
        // So many tokens are missing, times the period in which those of the old rate came.
        let missing = missing_ns * i128::from(before.tokens);
        let richer = i128::from(self.burst) - i128::from(before.burst);
        let time_ns = missing / period_ns * own_ns + missing % period_ns * own_ns / period_ns + richer.min(0) * own_ns;
        let time_ns = (time_ns / i128::from(self.tokens.max(1))).clamp(0, i128::from(self.poorest()));
        now.saturating_add(time_ns as i64)
    }

    /// How many tokens are there, rounded down.
    pub(crate) fn level(&self, full_at: i64, now: i64) -> i64 {
        let missing_ns = i128::from(self.full_at(full_at, now) - now);
        let period_ns = self.period.as_nanos().max(1) as i128;
        let missing = (missing_ns * i128::from(self.tokens) + period_ns - 1) / period_ns;
        let level = i64::from(self.burst) - i64::try_from(missing).unwrap_or(i64::MAX);
        // A token that lacks a nanosecond by rounding is there for those who take it.
        let more = u32::try_from(level + 1).ok().filter(|more| *more <= self.burst);
        level + i64::from(more.is_some_and(|more| self.ready_at(full_at, more, now) <= now))
    }
}

/// How a bucket stands, and until when a service has asked to be left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// When it is full again, in nanoseconds since the epoch.
    pub(crate) full_at: i64,
    /// In microseconds, as the next.
    pub(crate) blocked_until: i64,
    /// What the clock showed by which these were reckoned; of several, that which was ahead. By another clock they say nothing
    /// of how much is missing.
    pub(crate) as_of: i64,
}

impl Bucket {
    /// Takes so many tokens, or gives them back if there are fewer than none.
    pub(crate) fn take(&mut self, rate: &Rate, tokens: i64, now: Timestamp) {
        self.reckon(now);
        self.full_at = rate.take(self.full_at, tokens, nanos(now));
    }

    /// Shuts it until a moment.
    pub(crate) fn throttle(&mut self, until: Timestamp, now: Timestamp) {
        self.reckon(now);
        self.blocked_until = blocked(self.blocked_until, now).unwrap_or(0).max(until.as_micros());
    }

    /// Goes on at another rate with the tokens that it has. Nothing is remembered of a rate that is lifted, nor of a service
    /// that asked to be left alone.
    pub(crate) fn take_over(&mut self, rates: Option<(Rate, Rate)>, now: Timestamp) {
        let Some((before, rate)) = rates else {
            *self = Self::default();
            return;
        };
        // The tokens are counted when the last one was taken if the clock of whoever did that is ahead of ours: the time
        // between the clocks brings none, and none are missing for it.
        self.reckon(now);
        self.full_at = rate.takes_over(&before, self.full_at, self.as_of.saturating_mul(1000));
    }

    /// Has the time go on from a moment at which the clock was set back, when it showed `seen` at least.
    pub(crate) fn set_back(&mut self, seen: Timestamp, now: Timestamp) {
        if self.as_of > now.as_micros() {
            let by = self.as_of.max(seen.as_micros()) - now.as_micros();
            self.full_at = self.full_at.saturating_sub(by.saturating_mul(1000));
            self.blocked_until = self.blocked_until.saturating_sub(by);
            self.as_of = now.as_micros();
        }
    }

    fn reckon(&mut self, now: Timestamp) {
        let rests = self.full_at <= nanos(now) && self.blocked_until <= now.as_micros();
        self.as_of = if rests { now.as_micros() } else { self.as_of.max(now.as_micros()) };
    }
}

/// A moment in nanoseconds since the epoch.
pub(crate) fn nanos(at: Timestamp) -> i64 {
    at.as_micros().saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { tokens: 3, period: Duration::from_secs(1), burst: 3 };
    const NOW: i64 = 1_790_000_000_000_000_000;

    #[test]
    fn tokens_come_evenly_up_to_what_the_bucket_holds() {
        let mut full_at = 0;
        for _ in 0..3 {
            assert!(RATE.ready_at(full_at, 1, NOW) <= NOW);
            full_at = RATE.take(full_at, 1, NOW);
        }
        assert_eq!(RATE.level(full_at, NOW), 0);
        let next = RATE.ready_at(full_at, 1, NOW);
        assert!((333_333_332..=333_333_334).contains(&(next - NOW)), "{}", next - NOW);
        assert_eq!(RATE.level(full_at, NOW + 3_600_000_000_000), 3);
        assert_eq!(RATE.level(full_at, next + 1), 1);
    }

    #[test]
    fn what_costs_more_than_the_bucket_holds_goes_when_it_is_full_and_leaves_a_debt() {
        let full_at = RATE.take(0, 1, NOW);
        assert!(RATE.ready_at(full_at, 10, NOW) > NOW);
        assert!(RATE.ready_at(0, 10, NOW) <= NOW);
        let full_at = RATE.take(0, 10, NOW);
        assert_eq!(RATE.level(full_at, NOW), -7);
        assert_eq!(RATE.ready_at(full_at, 1, NOW), NOW + 2_666_666_666);
    }

    #[test]
    fn tokens_given_back_fill_the_bucket_and_no_more() {
        let full_at = RATE.take(RATE.take(0, 2, NOW), -10, NOW);
        assert_eq!(RATE.level(full_at, NOW), 3);
    }

    #[test]
    fn a_clock_that_is_set_back_for_a_year_holds_nobody_for_longer_than_the_longest_debt() {
        let full_at = RATE.take(0, 3, NOW + 365 * DEBT_MAX_NS);
        assert!(RATE.ready_at(full_at, 1, NOW) <= NOW + DEBT_MAX_NS + 1_000_000_000);
    }

    #[test]
    fn a_full_bucket_lets_a_token_go_however_long_another_takes_to_come() {
        let period = crate::model::rules::MAX_DURATION;
        for burst in [1, 2, 3, 1000, Limit::MAX] {
            let slow = Rate { tokens: 1, period, burst };
            assert!(slow.ready_at(0, 1, NOW) <= NOW, "{burst}");
            assert!(slow.ready_at(slow.take(0, burst.into(), NOW), 1, NOW) > NOW, "{burst}");
            let full_at = slow.take(0, 1, NOW);
            assert_eq!(slow.take(full_at, -i64::from(Limit::MAX), NOW), NOW, "{burst}: what was given back was taken");
        }
    }

    #[test]
    fn the_fastest_rate_lets_no_job_start_more_than_a_nanosecond_early() {
        let fastest = Rate { tokens: Limit::MAX, period: Duration::from_millis(1), burst: Limit::MAX };
        // A token takes a thousandth of a nanosecond to come.
        for cost in [1, 999, 1000, 1500, 1_000_000, Limit::MAX] {
            let jobs = 1000;
            let full_at = (0..jobs).fold(NOW, |full_at, _| fastest.take(full_at, cost.into(), NOW));
            let exact = i64::from(cost) * jobs / 1000;
            assert!((0..jobs).contains(&(exact - (full_at - NOW))), "{cost}: {}", full_at - NOW);
        }
        let full_at = fastest.take(NOW, Limit::MAX.into(), NOW);
        // A token that lacks less than a nanosecond is there.
        assert_eq!((full_at - NOW, fastest.level(full_at, NOW)), (1_000_000, 1));
        assert_eq!(fastest.ready_at(full_at, 1000, NOW), NOW + 1);
    }

    #[test]
    fn a_bucket_goes_on_at_another_rate_with_the_tokens_that_it_has() {
        let faster = Rate { tokens: 300, period: Duration::from_secs(1), burst: 3 };
        for spent in 0..5 {
            let full_at = faster.takes_over(&RATE, RATE.take(0, spent, NOW), NOW);
            assert_eq!(faster.level(full_at, NOW), 3 - spent);
        }
        let smaller = Rate { burst: 1, ..RATE };
        let levels =
            [0, 1, 2, 3, 9].map(|spent| smaller.level(smaller.takes_over(&RATE, RATE.take(0, spent, NOW), NOW), NOW));
        assert_eq!(levels, [1, 1, 1, 0, -6]);
    }

    #[test]
    fn a_rate_that_is_changed_again_and_again_brings_its_tokens_nevertheless() {
        const SECOND: i64 = 1_000_000_000;
        let slow = Rate { tokens: 1, period: Duration::from_secs(60), burst: 1 };
        let slower = Rate { period: Duration::from_secs(120), ..slow };
        let (mut full_at, mut now) = (slow.take(0, 1, NOW), NOW);
        for (before, rate) in [(slow, slower), (slower, slow), (slow, slower), (slower, slow)] {
            assert!(before.ready_at(full_at, 1, now) > now);
            now += 20 * SECOND;
            full_at = rate.takes_over(&before, full_at, now);
        }
        // A third of a token came at the one rate and a sixth at the other, twice.
        assert_eq!(slow.ready_at(full_at, 1, now), now);
        for spent in 0..3_000_000 {
            let spent = spent * 7919;
            assert_eq!(RATE.takes_over(&RATE, NOW + spent, NOW), NOW + spent.min(RATE.poorest()));
        }
    }

    #[test]
    fn a_rate_takes_over_from_any_other_without_an_overflow() {
        let periods = [Duration::from_millis(1), Duration::from_secs(1), crate::model::rules::MAX_DURATION];
        let rates = periods.into_iter().flat_map(|period| {
            let counts = [(1, 1), (1, Limit::MAX), (Limit::MAX, 1), (Limit::MAX, Limit::MAX)];
            counts.map(|(tokens, burst)| Rate { tokens, period, burst })
        });
        let rates: Vec<Rate> = rates.collect();
        for (before, rate) in rates.iter().flat_map(|before| rates.iter().map(move |rate| (before, rate))) {
            for spent in [0, 1, i64::from(Limit::MAX), 100 * i64::from(Limit::MAX)] {
                let full_at = rate.takes_over(before, before.take(0, spent, NOW), NOW);
                assert!((NOW..=NOW + rate.poorest()).contains(&full_at), "{before:?} {rate:?} {spent}");
            }
        }
    }

    fn at(ns: i64) -> Timestamp {
        Timestamp::from_micros(ns / 1000)
    }

    #[test]
    fn a_bucket_has_the_same_tokens_after_its_clock_was_set_back() {
        const SECOND: i64 = 1_000_000_000;
        for back in [2, 3600, 86_400, 1_000_000] {
            let mut bucket = Bucket::default();
            bucket.take(&RATE, 5, at(NOW));
            bucket.throttle(at(NOW + 60 * SECOND), at(NOW));
            // A second went by before anybody noticed.
            let now = NOW + SECOND - back * SECOND;
            bucket.set_back(at(NOW + SECOND), at(now));
            assert_eq!(RATE.level(bucket.full_at, now), 1, "{back}");
            assert_eq!(blocked(bucket.blocked_until, at(now)), Some(at(now + 59 * SECOND).as_micros()), "{back}");
            let known = bucket;
            bucket.set_back(at(NOW), at(now));
            assert_eq!(bucket, known, "it is put right once");
        }
    }

    #[test]
    fn a_bucket_that_a_clock_ahead_has_reckoned_goes_on_at_another_rate_with_the_tokens_that_it_had_there() {
        let slower = Rate { tokens: 1, period: Duration::from_secs(60), burst: 3 };
        for (behind, taken) in [(0, 2), (5_000_000_000, 2), (3_600_000_000_000, 2), (3_600_000_000_000, 7)] {
            let mut bucket = Bucket::default();
            bucket.take(&RATE, taken, at(NOW));
            // One whose clock is behind gives back what he had taken, which is not reckoned by his clock.
            bucket.take(&RATE, 1, at(NOW - behind));
            bucket.take(&RATE, -1, at(NOW - behind));
            bucket.take_over(Some((RATE, slower)), at(NOW - behind));
            assert_eq!(slower.level(bucket.full_at, NOW), 3 - taken, "{behind} ns behind");
        }
        let mut rested = Bucket::default();
        rested.take(&RATE, 2, at(NOW));
        rested.take(&RATE, 2, at(NOW + 5_000_000_000));
        assert_eq!(rested.as_of, at(NOW + 5_000_000_000).as_micros());
    }

    #[test]
    fn a_limit_names_the_field_and_the_rule() {
        for (limit, field) in [
            (Limit::new(""), "limit.name"),
            (Limit::new("a").concurrency(0), "limit.concurrency"),
            (Limit::new("a").rate(0, Duration::from_secs(1)), "limit.rate"),
            (Limit::new("a").rate(1, Duration::ZERO), "limit.rate"),
            (Limit::new("a").rate(1, Duration::from_secs(1)).burst(0), "limit.burst"),
            (Limit::new("a").rate(1, Duration::MAX), "limit.rate"),
        ] {
            let error = limit.check().expect_err("a rule is broken");
            assert!(error.to_string().starts_with(field), "{error}");
        }
        assert!(Limit::new("a").rate(Limit::MAX, crate::model::rules::MAX_DURATION).burst(Limit::MAX).check().is_ok());
    }
}
