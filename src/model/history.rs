//! Who did what to a job, and when.

use serde::Serialize;

use crate::model::id::JobId;
use crate::model::job::Status;
use crate::model::time::Timestamp;
use crate::model::words::words;

/// On whose behalf something is asked of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Only this user's jobs exist for it. None: it is the administrator.
    pub(crate) user: Option<String>,
    /// The name that the history keeps.
    pub(crate) name: Option<String>,
}

impl Caller {
    /// The name that the history keeps: its own, or the user's.
    pub(crate) fn actor(&self) -> Option<&str> {
        self.name.as_deref().or(self.user.as_deref())
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// The job was enqueued or recorded.
    Created,
    /// An attempt began.
    Started,
    /// The job came to its end, or an attempt of it that no other followed.
    Ended,
    /// An attempt failed, and another will follow.
    Retried,
    /// Its process died, and the job was taken back.
    Rescued,
    /// Somebody asked for its cancellation.
    CancelRequested,
    /// It was cancelled.
    Cancelled,
    /// Its deadline passed.
    Expired,
    /// An operator made an ended job pending once more.
    Requeued,
    /// An operator changed its priority or its queue.
    Moved,
    /// Somebody changed its fields, or the status of a tracked job.
    Updated,
    /// Somebody asked for its deletion, which waits for its end.
    DeleteRequested,
    /// An operator deleted it.
    Deleted,
    /// An operator had its callback delivered once more.
    Redelivered,
    /// A queue was paused.
    Paused,
    /// A queue was resumed.
    Resumed,
    /// A limit was set, or the bounds of a queue.
    Limited,
    /// A schedule was stored.
    ScheduleCreated,
    /// A schedule was replaced by another of its name.
    ScheduleChanged,
    /// A schedule was paused.
    SchedulePaused,
    /// A schedule was resumed.
    ScheduleResumed,
    /// An operator had the job of a schedule enqueued.
    ScheduleRun,
    /// An operator had the jobs of past ticks enqueued.
    ScheduleBackfilled,
    /// A schedule was deleted.
    ScheduleDeleted,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 24] = [
        Self::Created,
        Self::Started,
        Self::Ended,
        Self::Retried,
        Self::Rescued,
        Self::CancelRequested,
        Self::Cancelled,
        Self::Expired,
        Self::Requeued,
        Self::Moved,
        Self::Updated,
        Self::DeleteRequested,
        Self::Deleted,
        Self::Redelivered,
        Self::Paused,
        Self::Resumed,
        Self::Limited,
        Self::ScheduleCreated,
        Self::ScheduleChanged,
        Self::SchedulePaused,
        Self::ScheduleResumed,
        Self::ScheduleRun,
        Self::ScheduleBackfilled,
        Self::ScheduleDeleted,
    ];

    /// The action as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::Ended => "ended",
            Self::Retried => "retried",
            Self::Rescued => "rescued",
            Self::CancelRequested => "cancel_requested",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Requeued => "requeued",
            Self::Moved => "moved",
            Self::Updated => "updated",
            Self::DeleteRequested => "delete_requested",
            Self::Deleted => "deleted",
            Self::Redelivered => "redelivered",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Limited => "limited",
            Self::ScheduleCreated => "schedule_created",
            Self::ScheduleChanged => "schedule_changed",
            Self::SchedulePaused => "schedule_paused",
            Self::ScheduleResumed => "schedule_resumed",
            Self::ScheduleRun => "schedule_run",
            Self::ScheduleBackfilled => "schedule_backfilled",
            Self::ScheduleDeleted => "schedule_deleted",
        }
    }
}

words!(Action, "action");

/// One line of a job's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HistoryEntry {
    /// When.
    pub at: Timestamp,
    /// What was done.
    pub action: Action,
    /// The job. None if it was done to a queue or a schedule, which the note names.
    pub job: Option<JobId>,
    /// Who: the worker that ran an attempt, or the user or the name of the client. None: the program or the engine.
    pub actor: Option<String>,
    /// The status before, if there was one.
    pub from: Option<Status>,
    /// The status after, if there is one. The same as before if something else was changed.
    pub to: Option<Status>,
    /// In which attempt, from 1, where it has to do with one.
    pub attempt: Option<u32>,
    /// An error, a reason, or what was changed.
    pub note: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;

    #[test]
    fn words_read_back() -> Result<()> {
        for action in Action::ALL {
            assert_eq!(action.as_str().parse::<Action>()?, action);
            assert_eq!(serde_json::to_value(action).ok(), Some(action.as_str().into()));
        }
        assert!("Created".parse::<Action>().is_err());
        Ok(())
    }
}
