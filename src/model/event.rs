//! What happened, for those who asked to be told.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::model::alert::Alert;
use crate::model::id::{JobId, WorkflowId};
use crate::model::job::{Priority, Status};
use crate::model::time::Timestamp;
use crate::model::words::words;

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
    /// An operator retried, moved or updated it. An update of times and progress alone, which change often, is not told.
    Operator,
    /// It was deleted.
    Deleted,
    /// What it waited for has ended, and it is pending.
    Admitted,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 12] = [
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
        Self::Admitted,
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
            Self::Admitted => "admitted",
        }
    }
}

words!(Cause, "cause");

/// One change of one job, as a turn notes it for those who are told after its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) job: JobId,
    /// The lane that it is in after the change.
    pub(crate) lane: i64,
    /// Whose share of the lane. None if it has no user.
    pub(crate) share: Option<i64>,
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

/// What became of some ticks of one schedule, as a turn notes it to be counted after its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticks {
    /// The lane of their jobs.
    pub(crate) lane: i64,
    pub(crate) fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The job of one was enqueued, so long after it was due. None: it has waited for another job.
    Enqueued(Option<Duration>),
    /// So many were missed.
    Missed(u64),
    /// One was skipped.
    Skipped,
}

/// One change of one job, as it was committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// The job.
    pub id: JobId,
    /// The kind of its payload. Empty for a tracked job, which has none.
    pub kind: Arc<str>,
    /// Its queue, after the change.
    pub queue: Arc<str>,
    /// Its priority, after the change.
    pub priority: Priority,
    /// The user whose job it is.
    pub user: Option<Arc<str>>,
    /// Where it stood before. None if it is new.
    pub from: Option<Status>,
    /// Where it stands now. None if it was deleted. The same as before if something else about it was changed.
    pub to: Option<Status>,
    /// Why.
    pub cause: Cause,
    /// Its newest attempt, from 1. 0 if it has had none.
    pub attempt: u32,
    /// When.
    pub at: Timestamp,
}

impl Change {
    /// A transition with the names of its lane and user.
    pub(crate) fn new(
        transition: &Transition,
        queue: Arc<str>,
        kind: Arc<str>,
        priority: Priority,
        user: Option<Arc<str>>,
    ) -> Self {
        let Transition { job, from, to, cause, attempt, at, .. } = *transition;
        Self { id: job, kind, queue, priority, user, from, to, cause, attempt, at }
    }
}

/// One change of where a workflow stands, as a turn notes it for those who are told after its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkflowTransition {
    pub(crate) id: WorkflowId,
    pub(crate) from: Status,
    pub(crate) to: Status,
    pub(crate) at: Timestamp,
}

/// One change of where a workflow stands, as it was committed: it begins, it ends, or it goes on after it had ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkflowChange {
    /// The workflow.
    pub id: WorkflowId,
    /// Its name, which others may bear too.
    pub name: Arc<str>,
    /// The user whose it is.
    pub user: Option<Arc<str>>,
    /// Where it stood before: [`Created`](Status::Created) when it begins, and how it had ended if it goes on because
    /// something of it is sent again.
    pub from: Status,
    /// Where it stands now: running, completed, failed or cancelled.
    pub to: Status,
    /// When.
    pub at: Timestamp,
}

/// What a subscriber is told.
///
/// ```
/// use jobmill::{Event, Status};
///
/// fn line(event: &Event) -> Option<String> {
///     match event {
///         Event::Changed(change) if change.to == Some(Status::Failed) => Some(format!("{} has failed", change.id)),
///         Event::Changed(_) => None,
///         Event::Workflow(change) => Some(format!("the workflow {} is {}", change.name, change.to)),
///         Event::Lagged { missed } => Some(format!("{missed} events were not told: what I know may be old")),
///         Event::Elsewhere => Some("what I know may be old".to_owned()),
///         Event::Alert(alert) => Some(alert.to_string()),
///         _ => None,
///     }
/// }
/// # let _ = line;
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum Event {
    /// A job was changed, and the change is committed.
    Changed(Change),
    /// A workflow has begun, has ended, or goes on after it had ended. Its end is told after that of the last of its jobs.
    Workflow(WorkflowChange),
    /// The subscriber read too slowly, and at this place in the order of events some were left out. Ask anew for what
    /// must be known.
    Lagged {
        /// How many were left out here, or, in a second one of these before the next event, how many more.
        missed: u64,
    },
    /// Somebody else has changed the file, another process or a transaction of the application's own; or a commit of ours
    /// failed, which may have been written after all. What was changed is not told. Ask anew for what must be known.
    Elsewhere,
    /// A threshold was passed, or what it watches is well again.
    Alert(Alert),
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

    #[test]
    fn events_read_well_as_json() -> serde_json::Result<()> {
        let id = JobId::from_raw(1 << 50);
        let transition = Transition {
            job: id,
            lane: 3,
            share: None,
            from: Some(Status::Running),
            to: None,
            cause: Cause::Deleted,
            at: Timestamp::EPOCH,
            attempt: 2,
            waited: None,
            ran: None,
        };
        let change = Change::new(&transition, "mail".into(), "letter".into(), Priority::High, Some("ann".into()));
        assert_eq!(
            serde_json::to_value(Event::Changed(change))?,
            serde_json::json!({
                "event": "changed", "id": id.to_string(), "kind": "letter", "queue": "mail", "priority": "high",
                "user": "ann", "from": "running", "to": null, "cause": "deleted", "attempt": 2,
                "at": "1970-01-01T00:00:00.000000Z",
            })
        );
        let workflow = WorkflowChange {
            id: WorkflowId::from_raw(1 << 50),
            name: "import".into(),
            user: None,
            from: Status::Running,
            to: Status::Failed,
            at: Timestamp::EPOCH,
        };
        assert_eq!(
            serde_json::to_value(Event::Workflow(workflow))?,
            serde_json::json!({
                "event": "workflow", "id": WorkflowId::from_raw(1 << 50).to_string(), "name": "import", "user": null,
                "from": "running", "to": "failed", "at": "1970-01-01T00:00:00.000000Z",
            })
        );
        assert_eq!(serde_json::to_string(&Event::Lagged { missed: 3 })?, r#"{"event":"lagged","missed":3}"#);
        assert_eq!(serde_json::to_string(&Event::Elsewhere)?, r#"{"event":"elsewhere"}"#);
        Ok(())
    }
}
