//! The delivery of one callback: settings, signature, the rules for addresses, and the request.

mod address;
pub(crate) mod courier;
pub(crate) mod doorman;
pub(crate) mod job;
mod signature;
mod verdict;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::builtin::callback::signature::Secret;
use crate::error::{Error, Result};
use crate::model::delivery::Delivery;
use crate::model::retry::Backoff;
use crate::model::rules::{check_count, check_time};

/// Gives the secrets of the receiver at an address.
type SecretsOf = dyn Fn(&str) -> Vec<String> + Send + Sync;

/// How callbacks are delivered: to whom, signed with what, how often.
///
/// Each is one POST, which any status from 200 to 299 answers. Connection errors, timeouts and the statuses 408, 429 and
/// 5xx are tried again, all else is final. Redirects are not followed, and proxies that the environment names are not
/// used.
///
/// The body is JSON of the job's `job_id`, `status`, `completed_at` and `metadata`, as they stood when it ended. It is kept
/// in the file with that end, so that it is sent at least once whatever happens, and `webhook-id` is the same each time,
/// by which a receiver can drop repeats. What came of it stands in the job's own `callback_sent_at`,
/// `callback_status_code` and `callback_error`, and each try in [`Client::deliveries`](crate::Client::deliveries).
///
/// Every engine on a file delivers what is due, so all of them should have the same settings; see
/// [`EngineBuilder::without_callbacks`](crate::EngineBuilder::without_callbacks).
///
/// With a secret, each request is signed after [Standard Webhooks](https://www.standardwebhooks.com).
///
/// ```
/// use std::time::Duration;
/// use jobmill::{Backoff, Callbacks};
///
/// let callbacks = Callbacks::new()
///     .secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
///     .timeout(Duration::from_secs(10))
///     .backoff(Backoff::exponential(Duration::from_secs(30)));
/// # let _ = callbacks;
/// ```
#[derive(Clone)]
pub struct Callbacks {
    secrets: Vec<String>,
    secrets_of: Option<Arc<SecretsOf>>,
    pub(crate) private_addresses: bool,
    pub(crate) in_flight: usize,
    pub(crate) timeout: Duration,
    pub(crate) max_attempts: u32,
    pub(crate) backoff: Backoff,
}

impl Default for Callbacks {
    fn default() -> Self {
        Self::new()
    }
}

impl Callbacks {
    /// The most deliveries that may run at once.
    pub const MAX_IN_FLIGHT: usize = 64;
    /// The longest that one delivery may take.
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(600);

    pub(crate) const IN_FLIGHT_BOUNDS: RangeInclusive<u64> = 1..=Self::MAX_IN_FLIGHT as u64;
    pub(crate) const TIMEOUT_BOUNDS: RangeInclusive<Duration> = Duration::from_millis(10)..=Self::MAX_TIMEOUT;
    pub(crate) const ATTEMPTS_BOUNDS: RangeInclusive<u64> = 1..=Delivery::ATTEMPTS_MAX as u64;

    /// What a secret must be.
    pub(crate) const SECRET_FORM: &'static str = Secret::FORM;

    /// Unsigned, to public addresses only, with the defaults that each setter names.
    pub fn new() -> Self {
        Self {
            secrets: Vec::new(),
            secrets_of: None,
            private_addresses: false,
            in_flight: 4,
            timeout: Duration::from_secs(5),
            max_attempts: 16,
            backoff: Backoff::exponential(Duration::from_secs(5)).jitter(0.2),
        }
    }

    /// Adds a secret to sign with: `whsec_` and then 24 to 64 bytes in base64. With several, each request bears a
    /// signature for each, so that receivers can change from one to the next. Defaults to none.
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secrets.push(secret.into());
        self
    }

    /// Sets a function that gives the secrets of the receiver at an address. Where it gives none, those of
    /// [`secret`](Callbacks::secret) sign. It is asked at each delivery, on its thread, so it should know the answer.
    /// Defaults to none.
    pub fn secret_for(mut self, secrets_of: impl Fn(&str) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.secrets_of = Some(Arc::new(secrets_of));
        self
    }

    /// Lets callbacks go to every address, those of this machine, of its private networks and of a cloud's metadata
    /// included. Whoever may name a callback's address can then reach them through this process. Defaults to public
    /// addresses only.
    pub fn allow_private_addresses(mut self) -> Self {
        self.private_addresses = true;
        self
    }

    /// Sets how many deliveries run at once, from 1 to 64. Defaults to 4.
    pub fn in_flight(mut self, deliveries: usize) -> Self {
        self.in_flight = deliveries;
        self
    }

    /// Sets how long one delivery may take, from looking up the name to the receiver's answer: 10 ms to 10 min. Defaults
    /// to 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how often a delivery is tried before it counts as failed, up to 100 times. Defaults to 16, which with the
    /// default waits takes about seven hours.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets the waits between attempts. Defaults to 5 s, doubled each time up to an hour, with a jitter of a fifth.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Whether a text may be a [`secret`](Callbacks::secret).
    pub(crate) fn is_secret(text: &str) -> bool {
        Secret::parse(text).is_some()
    }

    /// Checks every rule. The error names the first field that breaks one, and shows no secret.
    pub(crate) fn check(&self) -> Result<()> {
        parse(&self.secrets, "callbacks.secret")?;
        check_count("callbacks.in_flight", self.in_flight as u64, &Self::IN_FLIGHT_BOUNDS)?;
        check_time("callbacks.timeout", self.timeout, &Self::TIMEOUT_BOUNDS)?;
        check_count("callbacks.max_attempts", self.max_attempts.into(), &Self::ATTEMPTS_BOUNDS)?;
        self.backoff.check()
    }

    /// The secrets that sign a request to this address.
    fn secrets_for(&self, url: &str) -> Result<Vec<Secret>> {
        let own = self.secrets_of.as_ref().map(|secrets_of| secrets_of(url)).unwrap_or_default();
        if own.is_empty() { parse(&self.secrets, "callbacks.secret") } else { parse(&own, "callbacks.secret_for") }
    }
}

fn parse(secrets: &[String], field: &str) -> Result<Vec<Secret>> {
    secrets
        .iter()
        .map(|text| Secret::parse(text).ok_or_else(|| Error::invalid(field, format_args!("must be {}", Secret::FORM))))
        .collect()
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks")
            .field("secrets", &self.secrets.len())
            .field("secret_for", &self.secrets_of.is_some())
            .field("private_addresses", &self.private_addresses)
            .field("in_flight", &self.in_flight)
            .field("timeout", &self.timeout)
            .field("max_attempts", &self.max_attempts)
            .field("backoff", &self.backoff)
            .finish()
    }
}

#[cfg(test)]
#[path = "../../../tests/it/support/http.rs"]
pub(crate) mod server;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_defaults_and_the_bounds_are_good() {
        let least = Callbacks::new().in_flight(1).timeout(Duration::from_millis(10)).max_attempts(1);
        let most = Callbacks::new().in_flight(64).timeout(Callbacks::MAX_TIMEOUT).max_attempts(Delivery::ATTEMPTS_MAX);
        for good in [Callbacks::new(), Callbacks::default().secret(SECRET).secret(SECRET), least, most] {
            good.check().expect("good settings");
        }
    }

    #[test]
    fn bad_settings_are_named_and_secrets_are_not_shown() {
        let bad = [
            (Callbacks::new().secret("hunter2"), "callbacks.secret: must be `whsec_`"),
            (Callbacks::new().secret(SECRET).secret("whsec_hunter2"), "callbacks.secret: must be `whsec_`"),
            (Callbacks::new().secret(""), "callbacks.secret: must be `whsec_`"),
            (Callbacks::new().in_flight(0), "callbacks.in_flight: must be from 1 to 64"),
            (Callbacks::new().in_flight(65), "callbacks.in_flight: must be from 1 to 64"),
            (Callbacks::new().timeout(Duration::ZERO), "callbacks.timeout: must be from 10ms"),
            (Callbacks::new().timeout(Duration::MAX), "callbacks.timeout: must be from 10ms"),
            (Callbacks::new().max_attempts(0), "callbacks.max_attempts: must be from 1"),
            (Callbacks::new().max_attempts(u32::MAX), "callbacks.max_attempts: must be from 1"),
            (Callbacks::new().backoff(Backoff::default().jitter(2.0)), "backoff.jitter"),
        ];
        for (callbacks, begins) in bad {
            let error = callbacks.check().expect_err(begins);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().starts_with(begins), "{error}");
            assert!(!format!("{error} {error:?} {callbacks:?}").contains("hunter2"));
        }
        let shown = format!("{:?}", Callbacks::new().secret(SECRET).secret_for(|_| vec![SECRET.to_owned()]));
        assert!(!shown.contains("MfKQ") && shown.contains("secrets: 1"), "{shown}");
    }
}
