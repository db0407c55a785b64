//! One run of a handler, as the history keeps it.

use std::fmt;

use serde::Serialize;

use crate::model::time::Timestamp;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AttemptOutcome {
    /// It has not ended.
    Running,
    /// The handler gave a value.
    Completed,
    /// The handler gave an error or panicked.
    Failed,
    /// The handler ran out of time.
    TimedOut,
    /// The process died while the handler ran.
    Crashed,
    /// The job was cancelled.
    Cancelled,
    /// The job's `expires_at` passed.
    Expired,
}

impl AttemptOutcome {
    pub(crate) const ALL: [Self; 7] =
        [Self::Running, Self::Completed, Self::Failed, Self::TimedOut, Self::Crashed, Self::Cancelled, Self::Expired];

    /// The outcome as a word, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Crashed => "crashed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for AttemptOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One run of a handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// The error with which it ended, if it did.
    pub error: Option<String>,
    /// Where it ran: the process and the number of the worker in it.
    pub worker: Option<String>,
}

/// A line that a handler wrote while it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LogLine {
    /// When.
    pub at: Timestamp,
    /// In which attempt, from 1.
    pub attempt: u32,
    /// What.
    pub line: String,
}
