//! LLM batches on their way: planned, sent, harvested, continued, cancelled.

pub(crate) mod body;
pub(crate) mod cancel;
pub(crate) mod clean;
pub(crate) mod end;
pub(crate) mod harvest;
pub(crate) mod plan;
pub(crate) mod retry;
pub(crate) mod send;
pub(crate) mod step;

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::desk::Desk;
use crate::error::{Error, ErrorKind, Result};
use crate::handler::Failure;
use crate::model::limit::Limit;
use crate::model::rules::{MAX_DURATION, check_count, check_name, check_time};
use crate::model::time::Timestamp;
use crate::model::usage::PriceTable;
use crate::provider::{Account, Provider};
use crate::store::Turn;
use crate::store::connect::storage_error;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
const WEEK_S: u64 = 7 * DAY.as_secs();
/// How far the clocks of a provider and of this machine may lie apart.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// The longest that a batch is left alone between two polls, whoever asks for more.
pub(crate) const POLL_WAIT_MAX: Duration = Duration::from_secs(86_400);
/// How many rows are changed in one transaction where many must be.
pub(crate) const SLICE: usize = 1000;

/// What is done about a batch that may be at a provider which cannot tell: one that was sent without an answer, when batches
/// are there that might be it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenUnknown {
    /// Waits until its results prove which one it is, as long as a batch may run there: a day with most. When that is over
    /// and nothing is proved, its items fail as `missing`. Nothing is ever paid twice.
    #[default]
    WaitForProof,
    /// Sends it again after this time, from 1 s to 100 years. That may be paid twice, though each item is completed once.
    ResubmitAfter(Duration),
    /// Waits until somebody says by [`Client::adopt_request`](crate::Client::adopt_request) or
    /// [`Client::abandon_request`](crate::Client::abandon_request) what it is.
    Ask,
}

/// How LLM batches are submitted, polled and reckoned.
///
/// ```
/// use std::time::Duration;
/// use jobmill::{Batches, Price, PriceTable};
///
/// let batches = Batches::new()
///     .poll_interval(Duration::from_secs(120))
///     .prices(PriceTable::new("2026-11", "USD").model("small-*", Price::new(1.0, 5.0)));
/// # let _ = batches;
/// ```
#[derive(Clone, Debug)]
#[must_use = "settings do nothing until an engine has them"]
pub struct Batches {
    pub(crate) polling: bool,
    pub(crate) poll_interval: Duration,
    pub(crate) lookback: Duration,
    pub(crate) poll_batch_size: usize,
    pub(crate) polls_in_flight: usize,
    pub(crate) in_flight: usize,
    pub(crate) local_in_flight: usize,
    pub(crate) prices: Option<PriceTable>,
    pub(crate) when_unknown: WhenUnknown,
    pub(crate) unknown_grace: Duration,
    pub(crate) lost_after: Duration,
    pub(crate) items_in_flight: Option<u64>,
    pub(crate) tokens_in_flight: Option<u64>,
    pub(crate) delete_after_harvest: bool,
    /// Fingerprints of old keys, each with the name of the provider that has the new one.
    pub(crate) renewed: Vec<(String, String)>,
}

impl Default for Batches {
    fn default() -> Self {
        Self::new()
    }
}

impl Batches {
    pub(crate) const POLL_INTERVAL_BOUNDS: RangeInclusive<Duration> = SECOND..=DAY;
    pub(crate) const UNKNOWN_GRACE_BOUNDS: RangeInclusive<Duration> = SECOND..=DAY;
    pub(crate) const LOST_AFTER_BOUNDS: RangeInclusive<Duration> = SECOND..=Duration::from_secs(366 * DAY.as_secs());
    pub(crate) const RESUBMIT_AFTER_BOUNDS: RangeInclusive<Duration> = SECOND..=MAX_DURATION;
    pub(crate) const LOOKBACK_WEEKS_BOUNDS: RangeInclusive<u64> = 1..=520;
    pub(crate) const POLL_BATCH_SIZE_BOUNDS: RangeInclusive<u64> = 1..=100_000;
    /// Of requests, of jobs and of batches at once.
    pub(crate) const IN_FLIGHT_BOUNDS: RangeInclusive<u64> = 1..=64;
    pub(crate) const ITEMS_BOUNDS: RangeInclusive<u64> = 1..=Limit::MAX as u64;
    pub(crate) const TOKENS_BOUNDS: RangeInclusive<u64> = 1..=1_000_000_000_000;

    /// The defaults that each setter names.
    pub fn new() -> Self {
        Self {
            polling: true,
            poll_interval: Duration::from_secs(300),
            lookback: Duration::from_secs(2 * WEEK_S),
            poll_batch_size: 1000,
            polls_in_flight: 8,
            in_flight: 4,
            local_in_flight: 4,
            prices: None,
            when_unknown: WhenUnknown::WaitForProof,
            unknown_grace: Duration::from_secs(300),
            lost_after: Duration::from_secs(86_400),
            items_in_flight: None,
            tokens_in_flight: None,
            delete_after_harvest: false,
            renewed: Vec::new(),
        }
    }

    /// Sets whether this engine asks providers how their batches do (the documentation's `enable_batch_job_polling`).
    /// Another engine on the file may. Defaults to true.
    pub fn polling(mut self, polling: bool) -> Self {
        self.polling = polling;
        self
    }

    /// Sets the longest time between two polls of one batch (`poll_running_llm_batches_interval_seconds`), from 1 s to a
    /// day. A new batch is asked about after 30 s, or what its provider asks for, then less and less often. Defaults to
    /// 300 s.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// Sets after how many weeks a batch that still runs is asked about four times a day only
    /// (`batch_job_polling_lookback_weeks`), from 1 to 520. It is never forgotten. Defaults to 2.
    pub fn lookback_weeks(mut self, weeks: u32) -> Self {
        self.lookback = Duration::from_secs(u64::from(weeks) * WEEK_S);
        self
    }

    /// Sets how many batches one cycle asks about (`batch_job_polling_batch_size`), from 1 to 100 000: those that were
    /// not asked about for the longest. Defaults to 1000.
    pub fn poll_batch_size(mut self, batches: usize) -> Self {
        self.poll_batch_size = batches;
        self
    }

    /// Sets how many polls are under way at once, from 1 to 64. Defaults to 8.
    pub fn polls_in_flight(mut self, requests: usize) -> Self {
        self.polls_in_flight = requests;
        self
    }

    /// Sets how many submissions and harvests run at once, on workers of their own, from 1 to 64. Defaults to 4.
    pub fn in_flight(mut self, jobs: usize) -> Self {
        self.in_flight = jobs;
        self
    }

    /// Sets how many batches of local providers run at once, on workers of their own, from 1 to 64: each for as long as its
    /// requests take, and together as many requests at a time as their provider allows. Defaults to 4.
    pub fn local_in_flight(mut self, batches: usize) -> Self {
        self.local_in_flight = batches;
        self
    }

    /// Sets what models cost. Defaults to nothing known, so that every cost is unknown.
    pub fn prices(mut self, prices: PriceTable) -> Self {
        self.prices = Some(prices);
        self
    }

    /// Sets what is done about a batch of which nobody knows whether its provider has it. Defaults to
    /// [`WhenUnknown::WaitForProof`].
    pub fn when_unknown(mut self, policy: WhenUnknown) -> Self {
        self.when_unknown = policy;
        self
    }

    /// Sets how long a batch whose creation had no answer is looked for before it counts as not created, and is sent again:
    /// from 1 s to a day, and never shorter than twice [`Limits::create_timeout`](crate::provider::Limits::create_timeout).
    /// Lists of providers may lag; one that tells late of a batch that was sent again makes it be paid twice. Defaults to
    /// 5 min.
    pub fn unknown_grace(mut self, time: Duration) -> Self {
        self.unknown_grace = time;
        self
    }

    /// Sets for how long a provider must say that it does not know a batch, or that it keeps its results no more, until that
    /// is believed: from 1 s to 366 days, and never before it has said so three times. A key of another workspace is
    /// answered the same way. The items then fail as `missing`, and are not sent again by themselves, for they may have been
    /// paid: [`Client::retry`](crate::Client::retry) sends them. One that is being cancelled is given up as soon as it was
    /// asked about three times. Defaults to a day.
    pub fn lost_after(mut self, time: Duration) -> Self {
        self.lost_after = time;
        self
    }

    /// Sets the most items that may be at one account at a time, from 1 to 10⁹. Defaults to what the provider says.
    pub fn items_in_flight(mut self, items: u64) -> Self {
        self.items_in_flight = Some(items);
        self
    }

    /// Sets the most estimated input tokens that may be at one account at a time, from 1 to 10¹². Defaults to what the provider says.
    pub fn tokens_in_flight(mut self, tokens: u64) -> Self {
        self.tokens_in_flight = Some(tokens);
        self
    }

    /// Sets whether bodies and results are deleted at the provider once they are in the file. Defaults to false: the
    /// provider deletes them when it does.
    pub fn delete_after_harvest(mut self, delete: bool) -> Self {
        self.delete_after_harvest = delete;
        self
    }

    /// Says that a provider's key has been renewed: batches of the account with this fingerprint
    /// ([`BatchRequest::account`](crate::BatchRequest::account)) are the account's that the provider of this name has now.
    /// Without it they wait for their own key, for another account would not find them. Defaults to none.
    pub fn renewed_key(mut self, old_fingerprint: impl Into<String>, provider: impl Into<String>) -> Self {
        self.renewed.push((old_fingerprint.into(), provider.into()));
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_time("batches.poll_interval", self.poll_interval, &Self::POLL_INTERVAL_BOUNDS)?;
        check_time("batches.unknown_grace", self.unknown_grace, &Self::UNKNOWN_GRACE_BOUNDS)?;
        check_time("batches.lost_after", self.lost_after, &Self::LOST_AFTER_BOUNDS)?;
        check_count("batches.lookback_weeks", self.lookback.as_secs() / WEEK_S, &Self::LOOKBACK_WEEKS_BOUNDS)?;
        for (field, value, bounds) in [
            ("batches.poll_batch_size", self.poll_batch_size, Self::POLL_BATCH_SIZE_BOUNDS),
            ("batches.polls_in_flight", self.polls_in_flight, Self::IN_FLIGHT_BOUNDS),
            ("batches.in_flight", self.in_flight, Self::IN_FLIGHT_BOUNDS),
            ("batches.local_in_flight", self.local_in_flight, Self::IN_FLIGHT_BOUNDS),
        ] {
            check_count(field, value as u64, &bounds)?;
        }
        if let WhenUnknown::ResubmitAfter(time) = self.when_unknown {
            check_time("batches.when_unknown", time, &Self::RESUBMIT_AFTER_BOUNDS)?;
        }
        if let Some(items) = self.items_in_flight {
            check_count("batches.items_in_flight", items, &Self::ITEMS_BOUNDS)?;
        }
        if let Some(tokens) = self.tokens_in_flight {
            check_count("batches.tokens_in_flight", tokens, &Self::TOKENS_BOUNDS)?;
        }
        self.prices.as_ref().map_or(Ok(()), PriceTable::check)
    }
}

/// The providers of an engine, and how it deals with them.
pub(crate) struct Agency {
    pub(crate) providers: HashMap<String, Arc<dyn Provider>>,
    pub(crate) settings: Batches,
    /// Items that results were written for since the last cycle of polls.
    pub(crate) items_updated: AtomicU64,
}

impl fmt::Debug for Agency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agency").field("providers", &self.providers.keys()).finish_non_exhaustive()
    }
}

impl Agency {
    pub(crate) fn new(settings: Batches) -> Self {
        Self { providers: HashMap::new(), settings, items_updated: AtomicU64::new(0) }
    }

    pub(crate) fn add(&mut self, provider: Arc<dyn Provider>) -> Result<()> {
        let name = provider.account().provider;
        check_name("provider", &name)?;
        match self.providers.insert(name.clone(), provider) {
            None => Ok(()),
            Some(_) => Err(Error::invalid("provider", format_args!("there is one named {name} already"))),
        }
    }

    pub(crate) fn provider(&self, name: &str) -> Option<(&Arc<dyn Provider>, Account)> {
        self.providers.get(name).map(|provider| (provider, provider.account()))
    }

    /// Every account that is here, as a JSON array.
    pub(crate) fn accounts(&self) -> String {
        let own = self.providers.values().map(|provider| provider.account().fingerprint);
        let renewed = self.settings.renewed.iter().map(|(old, _)| old.clone());
        serde_json::to_string(&own.chain(renewed).collect::<Vec<String>>()).unwrap_or_default()
    }

    /// The provider of this name, if it is for this account: another key would not find what was sent by the first.
    pub(crate) fn for_account(&self, name: &str, fingerprint: &str) -> Option<&Arc<dyn Provider>> {
        let renewed = || self.settings.renewed.iter().any(|(old, now)| old == fingerprint && now == name);
        let fits = |account: &Account| account.fingerprint == fingerprint || renewed();
        self.provider(name).filter(|(_, account)| fits(account)).map(|(provider, _)| provider)
    }
}

/// Runs `work` in a turn.
pub(crate) fn call<T: Send + 'static>(
    desk: &Desk,
    work: impl FnOnce(&mut Turn<'_>) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T> {
    desk.call(move |turn| work(turn).map_err(|error| storage_error("cannot write the batch", error)))
}

/// Runs `work` in one turn after the other, until nothing is left to do.
pub(crate) fn in_slices(
    desk: &Desk,
    work: impl Fn(&mut Turn<'_>) -> rusqlite::Result<bool> + Clone + Send + 'static,
) -> Result<()> {
    while call(desk, work.clone())? {}
    Ok(())
}

/// How long to wait after so many failures in a row: two seconds doubled each time, ten minutes at most.
pub(crate) fn backoff(failures: u32) -> Duration {
    Duration::from_secs(2).saturating_mul(2_u32.saturating_pow(failures.min(12))).min(Duration::from_secs(600))
}

/// How long until a moment, a tenth of a second at least.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    at.since(now).max(Duration::from_millis(100))
}

/// A failure of ours as one of the job, which is tried again.
pub(crate) fn failed(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::Shutdown => Failure::retry("the engine shuts down"),
        _ => Failure::from(error),
    }
}
