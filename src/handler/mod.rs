//! All that a job's author sees: handlers, how they end, and their context.

pub(crate) mod context;
pub(crate) mod flow;
pub(crate) mod registry;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::error::in_full;
use crate::handler::context::Context;
use crate::model::new_job::Payload;
use crate::store::finish::Retry;

/// Runs jobs of one kind. Closures and functions of the shape of [`run`](Handler::run) need no implementation: see
/// [`EngineBuilder::handle`](crate::EngineBuilder::handle).
///
/// ```
/// use jobmill::{Context, Failure, Handler, Outcome, Payload};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Resize { path: String }
/// # impl Payload for Resize { const KIND: &'static str = "resize"; }
///
/// struct Resizer {
///     max_pixels: u32,
/// }
///
/// impl Handler for Resizer {
///     type Payload = Resize;
///     type Output = u32;
///
///     fn run(&self, job: Resize, ctx: &Context) -> Result<Outcome<u32>, Failure> {
///         ctx.progress(0, Some(1));
///         println!("resizing {} to {}", job.path, self.max_pixels);
///         Ok(Outcome::Done(self.max_pixels))
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// What it takes. Its type names the kind.
    type Payload: Payload;
    /// What it gives, stored as the job's result.
    type Output: Serialize;

    /// Runs one attempt of one job.
    ///
    /// # Errors
    /// A [`Failure`] is a failed attempt. A panic is one too.
    fn run(&self, payload: Self::Payload, ctx: &Context) -> Result<Outcome<Self::Output>, Failure>;
}

/// How a handler ends as it planned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome<T> {
    /// The job is completed, with this result.
    Done(T),
    /// The job runs again after this time, and this attempt does not count.
    Snooze(Duration),
    /// The job is cancelled, for this reason.
    Cancel(String),
}

/// What a closure may return as its value: anything that serializes, or an [`Outcome`] of it.
pub trait IntoOutcome {
    /// The result that is stored.
    type Output: Serialize;

    /// The outcome that is meant.
    fn into_outcome(self) -> Outcome<Self::Output>;
}

impl<T: Serialize> IntoOutcome for T {
    type Output = T;

    fn into_outcome(self) -> Outcome<T> {
        Outcome::Done(self)
    }
}

impl<T: Serialize> IntoOutcome for Outcome<T> {
    type Output = T;

    fn into_outcome(self) -> Self {
        self
    }
}

/// A failed attempt: what went wrong, and whether to try again. Every error becomes one by `?`, and is tried again unless it
/// is one of ours that [is permanent](crate::Error::is_permanent), or has such a source.
///
/// ```
/// use std::time::Duration;
/// use jobmill::Failure;
///
/// fn fetch(url: &str) -> Result<String, Failure> {
///     if url.is_empty() {
///         return Err(Failure::fatal("no address"));      // never tried again
///     }
///     let port: u16 = "80".parse()?;                     // tried again after the backoff
///     if port == 81 {
///         return Err(Failure::retry_after(Duration::from_secs(30), "too many requests"));
///     }
///     Ok(format!("{url}:{port}"))
/// }
/// # assert!(fetch("").is_err() && fetch("x").is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub(crate) message: String,
    pub(crate) retry: Retry,
}

impl Failure {
    /// How much of a message is kept, in bytes. What is longer is cut; so is the reason of a cancel.
    pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

    /// Tries again after the job's backoff, while attempts are left.
    pub fn retry(error: impl fmt::Display) -> Self {
        Self { message: error.to_string(), retry: Retry::Backoff }
    }

    /// Tries again after this time, while attempts are left. Nobody else waits; if a service has asked for it, let all wait
    /// who share a limit with this job: [`Context::throttled`].
    pub fn retry_after(wait: Duration, error: impl fmt::Display) -> Self {
        Self { message: error.to_string(), retry: Retry::After(wait) }
    }

    /// Fails the job for good, whatever attempts are left.
    pub fn fatal(error: impl fmt::Display) -> Self {
        Self { message: error.to_string(), retry: Retry::Never }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The message is the error and each of its sources.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let (message, permanent) = in_full(&error);
        if permanent { Self::fatal(message) } else { Self::retry(message) }
    }
}
