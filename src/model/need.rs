//! What a job waits for, and what becomes of it if that does not end well.

use serde::{Deserialize, Serialize};

use crate::model::id::JobId;
use crate::model::words::words;

/// What becomes of a job that follows another, if that one fails, is cancelled, expires or is deleted. Of a stage that is
/// followed: if any of its jobs does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnFailure {
    /// It is cancelled.
    #[default]
    Cancel,
    /// It fails.
    Fail,
    /// It runs all the same.
    Continue,
}

impl OnFailure {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Cancel, Self::Fail, Self::Continue];

    /// The choice as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Fail => "fail",
            Self::Continue => "continue",
        }
    }
}

words!(OnFailure, "on_failure");

/// A job that must end before another begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) job: JobId,
    pub(crate) on_failure: OnFailure,
}

/// On what condition one follows another. The first three are the choices of `OnFailure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It ended well; otherwise the follower is cancelled.
    SuccessOrCancel = 0,
    /// It ended well; otherwise the follower fails.
    SuccessOrFail = 1,
    /// It ended.
    End = 2,
    /// It ended otherwise than well; otherwise the follower is cancelled.
    Failure = 3,
}

impl Condition {
    pub(crate) const ALL: [Self; 4] = [Self::SuccessOrCancel, Self::SuccessOrFail, Self::End, Self::Failure];

    /// Whether one that follows on this condition may run.
    pub(crate) fn is_met(self, succeeded: bool) -> bool {
        match self {
            Self::SuccessOrCancel | Self::SuccessOrFail => succeeded,
            Self::End => true,
            Self::Failure => !succeeded,
        }
    }
}

impl From<OnFailure> for Condition {
    fn from(on_failure: OnFailure) -> Self {
        match on_failure {
            OnFailure::Cancel => Self::SuccessOrCancel,
            OnFailure::Fail => Self::SuccessOrFail,
            OnFailure::Continue => Self::End,
        }
    }
}

impl From<Condition> for OnFailure {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::SuccessOrFail => Self::Fail,
            Condition::End => Self::Continue,
            Condition::SuccessOrCancel | Condition::Failure => Self::Cancel,
        }
    }
}
