//! Bounds that a user sets on what the queues do.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::metrics::Window;
use crate::model::rules::{check_duration, check_name};

/// Which jobs a threshold looks at. The name of a queue is one, too: `"mail".into()`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// All jobs of the file.
    All,
    /// The jobs of one queue.
    Queue(String),
}

impl From<&str> for Scope {
    fn from(queue: &str) -> Self {
        Self::Queue(queue.to_owned())
    }
}

impl From<String> for Scope {
    fn from(queue: String) -> Self {
        Self::Queue(queue)
    }
}

/// What a threshold measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Measure {
    /// Pending jobs.
    Depth,
    /// Running jobs.
    Active,
    /// How long the job that could have run first has waited, in seconds.
    OldestWaiting,
    /// Which part of the ended attempts failed, from 0 to 1.
    ErrorRate,
    /// Jobs completed per second.
    CompletionRate,
}

/// A bound that something should not pass. Whoever subscribes to events gets an [`Alert`](crate::Alert) when it does,
/// and one when it is well again.
///
/// An alert is raised once, when the bound is passed, and cleared once, when what is measured has come back a tenth of
/// the bound further: a depth above 1000 is cleared at 900 or less, a completion rate below 5 per second at 5.5 or more.
/// What swings about the bound itself does not raise alert upon alert. What is raised is not stored: after a restart,
/// what is still past its bound is raised anew.
///
/// ```
/// use std::time::Duration;
/// use jobmill::{Scope, Threshold, Window};
///
/// let thresholds = [
///     Threshold::depth("mail", 1000),
///     Threshold::oldest_waiting(Scope::All, Duration::from_secs(300)).name("too slow"),
///     Threshold::error_rate("mail", Window::Hour, 0.2).min_ended(50),
/// ];
/// assert_eq!(thresholds[0].to_string(), "depth of mail above 1000");
/// assert_eq!(thresholds[1].to_string(), "too slow");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub(crate) name: Option<String>,
    pub(crate) scope: Scope,
    pub(crate) rule: Rule,
    pub(crate) min_ended: Option<u64>,
}

/// What must hold, and over which time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    DepthAbove(u64),
    ActiveAbove(u64),
    OldestWaitingAbove(Duration),
    ErrorRateAbove(Window, f64),
    CompletionRateBelow(Window, f64),
}

impl Threshold {
    /// How many thresholds an engine may have.
    pub const MAX_COUNT: usize = 256;

    /// Without [`min_ended`](Self::min_ended), an error rate says nothing before this many attempts have ended.
    pub const DEFAULT_MIN_ENDED: u64 = 10;

    fn new(scope: Scope, rule: Rule) -> Self {
        Self { name: None, scope, rule, min_ended: None }
    }

    /// More than `jobs` are pending: those whose time has not come, too, as [`Stats`](crate::Stats) counts them.
    pub fn depth(scope: impl Into<Scope>, jobs: u64) -> Self {
        Self::new(scope.into(), Rule::DepthAbove(jobs))
    }

    /// More than `jobs` are running.
    pub fn active(scope: impl Into<Scope>, jobs: u64) -> Self {
        Self::new(scope.into(), Rule::ActiveAbove(jobs))
    }

    /// A job that could run has waited for longer than `time`.
    pub fn oldest_waiting(scope: impl Into<Scope>, time: Duration) -> Self {
        Self::new(scope.into(), Rule::OldestWaitingAbove(time))
    }

    /// Of the attempts that ended within the window, more than this part failed, those that are tried again among them.
    /// `part` is from 0 to less than 1: 0.25 is one in four.
    ///
    /// It is raised only if enough attempts have ended; see [`min_ended`](Self::min_ended).
    pub fn error_rate(scope: impl Into<Scope>, window: Window, part: f64) -> Self {
        Self::new(scope.into(), Rule::ErrorRateAbove(window, part))
    }

    /// Fewer than this many jobs were completed per second, in the mean of the window.
    ///
    /// It is raised only after a whole window has been counted, and only while a job could run or does: a queue with
    /// nothing to do is not slow, and clears it.
    pub fn completion_rate(scope: impl Into<Scope>, window: Window, per_second: f64) -> Self {
        Self::new(scope.into(), Rule::CompletionRateBelow(window, per_second))
    }

    /// Sets how many attempts must have ended within the window before an error rate is raised, so that one failure of
    /// one attempt is no alarm. Defaults to [`DEFAULT_MIN_ENDED`](Self::DEFAULT_MIN_ENDED).
    pub fn min_ended(mut self, attempts: u64) -> Self {
        self.min_ended = Some(attempts);
        self
    }

    /// Sets the name that its alerts bear. Defaults to a description, as in `depth of mail above 1000`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    pub(crate) fn measure(&self) -> Measure {
        match self.rule {
            Rule::DepthAbove(_) => Measure::Depth,
            Rule::ActiveAbove(_) => Measure::Active,
            Rule::OldestWaitingAbove(_) => Measure::OldestWaiting,
            Rule::ErrorRateAbove(..) => Measure::ErrorRate,
            Rule::CompletionRateBelow(..) => Measure::CompletionRate,
        }
    }

    /// The bound, in the unit of the measure.
    pub(crate) fn bound(&self) -> f64 {
        match self.rule {
            Rule::DepthAbove(jobs) | Rule::ActiveAbove(jobs) => jobs as f64,
            Rule::OldestWaitingAbove(time) => time.as_secs_f64(),
            Rule::ErrorRateAbove(_, bound) | Rule::CompletionRateBelow(_, bound) => bound,
        }
    }

    /// The window that it looks at, if it looks at one.
    pub(crate) fn window(&self) -> Option<Window> {
        match self.rule {
            Rule::ErrorRateAbove(window, _) | Rule::CompletionRateBelow(window, _) => Some(window),
            Rule::DepthAbove(_) | Rule::ActiveAbove(_) | Rule::OldestWaitingAbove(_) => None,
        }
    }

    pub(crate) fn queue(&self) -> Option<&str> {
        match &self.scope {
            Scope::All => None,
            Scope::Queue(queue) => Some(queue),
        }
    }

    /// The name that its alerts bear.
    pub(crate) fn shown_name(&self) -> Arc<str> {
        self.to_string().into()
    }

    fn check(&self) -> Result<()> {
        if let Some(queue) = self.queue() {
            check_name("threshold.queue", queue)?;
        }
        if let Some(name) = &self.name {
            check_name("threshold.name", name)?;
        }
        match self.rule {
            Rule::DepthAbove(_) | Rule::ActiveAbove(_) => {}
            Rule::OldestWaitingAbove(time) => check_duration("threshold.bound", time)?,
            Rule::ErrorRateAbove(_, part) => {
                if !(0.0..1.0).contains(&part) {
                    return Err(Error::invalid("threshold.bound", "must be a number from 0 to less than 1"));
                }
            }
            Rule::CompletionRateBelow(_, per_second) => {
                if !(per_second.is_finite() && per_second > 0.0) {
                    return Err(Error::invalid("threshold.bound", "must be a number greater than 0"));
                }
            }
        }
        match (self.min_ended, self.measure()) {
            (None, _) | (Some(1..), Measure::ErrorRate) => Ok(()),
            (Some(0), Measure::ErrorRate) => Err(Error::invalid("threshold.min_ended", "must be at least 1")),
            _ => Err(Error::invalid("threshold.min_ended", "may be set for an error rate only")),
        }
    }

    /// Checks every rule for all thresholds of an engine.
    pub(crate) fn check_all(thresholds: &[Self]) -> Result<()> {
        if thresholds.len() > Self::MAX_COUNT {
            return Err(Error::invalid("thresholds", format_args!("must be no more than {}", Self::MAX_COUNT)));
        }
        let mut names = HashSet::new();
        for threshold in thresholds {
            threshold.check()?;
            if let Some(twice) = names.replace(threshold.shown_name()) {
                return Err(Error::invalid("threshold.name", format_args!("must not be used twice: {twice}")));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Threshold {
    /// The name, or the description that stands for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            return f.write_str(name);
        }
        let of = self.queue().unwrap_or("all queues");
        match self.rule {
            Rule::DepthAbove(jobs) => write!(f, "depth of {of} above {jobs}"),
            Rule::ActiveAbove(jobs) => write!(f, "active jobs of {of} above {jobs}"),
            Rule::OldestWaitingAbove(time) => write!(f, "oldest waiting of {of} above {time:?}"),
            Rule::ErrorRateAbove(window, part) => write!(f, "error rate of {of} above {part} in the last {window}"),
            Rule::CompletionRateBelow(window, per_second) => {
                write!(f, "completion rate of {of} below {per_second}/s in the last {window}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_thresholds_pass() -> Result<()> {
        Threshold::check_all(&[
            Threshold::depth("mail", 0),
            Threshold::depth("mail", u64::MAX),
            Threshold::depth(Scope::All, 0),
            Threshold::active(String::from("mail"), 10),
            Threshold::oldest_waiting(Scope::All, Duration::ZERO),
            Threshold::error_rate(Scope::All, Window::Minute, 0.0).min_ended(1),
            Threshold::error_rate(Scope::All, Window::Hour, 0.999),
            Threshold::completion_rate("mail", Window::Day, 0.001).name("x".repeat(128)),
            // What it is called by itself may be longer than a name that is given.
            Threshold::depth("q".repeat(128), 1),
        ])
    }

    #[test]
    fn bad_thresholds_are_named() {
        let error_rate = |part| Threshold::error_rate("mail", Window::Hour, part);
        let completion_rate = |per_second| Threshold::completion_rate("mail", Window::Hour, per_second);
        let long = Duration::MAX;
        for (threshold, field) in [
            (Threshold::depth("", 1), "threshold.queue"),
            (Threshold::depth("q".repeat(129), 1), "threshold.queue"),
            (Threshold::depth("a\nb", 1), "threshold.queue"),
            (Threshold::depth("mail", 1).name(""), "threshold.name"),
            (Threshold::oldest_waiting("mail", long), "threshold.bound"),
            (error_rate(1.0), "threshold.bound"),
            (error_rate(-0.1), "threshold.bound"),
            (error_rate(f64::NAN), "threshold.bound"),
            (error_rate(0.5).min_ended(0), "threshold.min_ended"),
            (Threshold::depth("mail", 1).min_ended(5), "threshold.min_ended"),
            (completion_rate(1.0).min_ended(0), "threshold.min_ended"),
            (completion_rate(0.0), "threshold.bound"),
            (completion_rate(f64::INFINITY), "threshold.bound"),
            (completion_rate(f64::NAN), "threshold.bound"),
        ] {
            let error = Threshold::check_all(std::slice::from_ref(&threshold)).expect_err(field);
            assert!(error.to_string().starts_with(&format!("{field}: ")), "{threshold:?}: {error}");
        }
        let twice = [Threshold::depth("mail", 1), Threshold::active("mail", 1).name("depth of mail above 1")];
        let error = Threshold::check_all(&twice).expect_err("one name for two");
        assert_eq!(error.to_string(), "threshold.name: must not be used twice: depth of mail above 1");
        let many: Vec<_> = (0..=Threshold::MAX_COUNT as u64).map(|jobs| Threshold::depth("mail", jobs)).collect();
        assert!(Threshold::check_all(&many).is_err());
        assert!(Threshold::check_all(&many[1..]).is_ok());
    }

    #[test]
    fn a_threshold_without_a_name_is_called_by_what_it_says() {
        for (threshold, name) in [
            (Threshold::depth(Scope::All, 7), "depth of all queues above 7"),
            (Threshold::active("mail", 7), "active jobs of mail above 7"),
            (Threshold::oldest_waiting("mail", Duration::from_secs(90)), "oldest waiting of mail above 90s"),
            (Threshold::error_rate("mail", Window::Hour, 0.25), "error rate of mail above 0.25 in the last hour"),
            (
                Threshold::completion_rate("mail", Window::Day, 2.5),
                "completion rate of mail below 2.5/s in the last day",
            ),
            (Threshold::depth("mail", 7).name("full"), "full"),
        ] {
            assert_eq!(&*threshold.shown_name(), name);
        }
    }
}
