//! What happened to a job.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::model::id::JobId;
use crate::model::job::Status;
use crate::model::time::Timestamp;

/// Why a job changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Cause {
    /// It was enqueued, or recorded.
    Enqueued,
    /// It was claimed for a worker.
    Claimed,
    /// Its attempt ended, and with it the job; or whoever tracks it said so.
    Ended,
    /// Its attempt failed, and another follows.
    Retried,
    /// Its handler put it off.
    Snoozed,
    /// Its attempt was given back unspent, by a shutdown.
    Returned,
    /// The process that ran it died.
    Rescued,
    /// It was cancelled.
    Cancelled,
    /// Its `expires_at` passed.
    Expired,
    /// An operator retried, moved or updated it.
    Operator,
    /// It was deleted.
    Deleted,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 11] = [
        Self::Enqueued,
        Self::Claimed,
        Self::Ended,
        Self::Retried,
        Self::Snoozed,
        Self::Returned,
        Self::Rescued,
        Self::Cancelled,
        Self::Expired,
        Self::Operator,
        Self::Deleted,
    ];

    /// The cause as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enqueued => "enqueued",
            Self::Claimed => "claimed",
            Self::Ended => "ended",
            Self::Retried => "retried",
            Self::Snoozed => "snoozed",
            Self::Returned => "returned",
            Self::Rescued => "rescued",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Operator => "operator",
            Self::Deleted => "deleted",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One change of one job, as a turn notes it for those who are told after its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) job: JobId,
    /// The lane that it is in after the change.
    pub(crate) lane: i64,
    /// None if it is new.
    pub(crate) from: Option<Status>,
    /// None if it is gone.
    pub(crate) to: Option<Status>,
    pub(crate) cause: Cause,
    pub(crate) at: Timestamp,
    pub(crate) attempt: u32,
    /// From when it could run to its start, if it has started.
    pub(crate) waited: Option<Duration>,
    /// How long the attempt ran that has ended, if one has.
    pub(crate) ran: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_one_word_each() {
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_value(cause).ok(), Some(cause.as_str().into()));
        }
    }
}
