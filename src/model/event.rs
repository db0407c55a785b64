//! What happens to jobs.

use std::time::Duration;

use crate::model::id::JobId;
use crate::model::job::Status;
use crate::model::time::Timestamp;

/// Why a job changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Enqueued,
    Claimed,
    Ended,
    Retried,
    Snoozed,
    Returned,
    Rescued,
    Cancelled,
    Expired,
    Operator,
    Deleted,
}

/// One change of a job, as it was committed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Transition {
    pub(crate) job: JobId,
    pub(crate) lane: i64,
    pub(crate) from: Option<Status>,
    pub(crate) to: Option<Status>,
    pub(crate) cause: Cause,
    pub(crate) at: Timestamp,
    pub(crate) attempt: u32,
    pub(crate) waited: Option<Duration>,
    pub(crate) ran: Option<Duration>,
}
