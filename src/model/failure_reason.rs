//! Why a job failed for good.

use serde::{Deserialize, Serialize};

use crate::model::words::words;

/// Why a job that a handler runs failed for good, and is kept as a dead letter: listed by
/// [`Query::failed_by`](crate::Query::failed_by), tried again by [`Client::retry`](crate::Client::retry) one by one or by
/// [`Selection::retry`](crate::Selection::retry) for a whole query, and removed after
/// [`Retention::failed`](crate::Retention::failed).
///
/// ```
/// # fn main() -> jobmill::Result<()> {
/// # let directory = tempfile::tempdir().expect("a temporary directory");
/// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
/// use jobmill::{FailureReason, Query};
///
/// // What killed its process again and again is for somebody to look at. The rest may go once more.
/// for job in client.list(Query::new().failed_by([FailureReason::CrashLoop]))?.jobs {
///     println!("{} {}: {}", job.id, job.kind.unwrap_or_default(), job.error.unwrap_or_default());
/// }
/// let rest = Query::new().failed_by([FailureReason::AttemptsSpent, FailureReason::TimedOut]);
/// client.select(rest)?.retry()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureReason {
    /// Its last attempt failed, and it had no other left.
    AttemptsSpent,
    /// Its handler refused it for good, by [`Failure::fatal`](crate::Failure::fatal).
    Refused,
    /// Its last attempt ran out of time, and it had no other left.
    TimedOut,
    /// Its process died during its last attempt, and it had no other left: it may well be what kills it.
    CrashLoop,
    /// A job that it needs did not complete.
    Dependency,
}

impl FailureReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::AttemptsSpent, Self::Refused, Self::TimedOut, Self::CrashLoop, Self::Dependency];

    /// The reason as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsSpent => "attempts_spent",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::CrashLoop => "crash_loop",
            Self::Dependency => "dependency",
        }
    }
}

words!(FailureReason, "failure_reason");
