//! A job as it stands in the ledger, and the words for where it stands.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::contents::debug_with_sizes;
use crate::model::failure_reason::FailureReason;
use crate::model::id::{JobId, ScheduleId, WorkflowId};
use crate::model::job_type::JobType;
use crate::model::stop_reason::StopReason;
use crate::model::time::Timestamp;
use crate::model::words::words;

/// Where a job stands.
///
/// The way is forward only: created, pending, running, then one of the four terminal ones. A retry, a snooze and a
/// rescue lead back to pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// Recorded, but not admitted yet.
    Created,
    /// Admitted: it runs when its time has come and a worker is free.
    Pending,
    /// A worker has it.
    Running,
    /// Ended with a value. Terminal.
    Completed,
    /// Ended with an error: its attempts are spent, or the handler refused it for good. Terminal.
    Failed,
    /// Cancelled. Terminal.
    Cancelled,
    /// Its `expires_at` passed before it could run. Terminal.
    Expired,
}

impl Status {
    /// Every status, in the order of a job's life.
    pub const ALL: [Self; 7] =
        [Self::Created, Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled, Self::Expired];

    /// Whether the job has ended. A terminal status never changes, unless an operator retries the job.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled | Self::Expired)
    }

    /// Whether a job may go from this status to `next`. The same terminal status once more is no step. Back to pending
    /// leads the engine alone: a retry, a snooze, a rescue.
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Created => !matches!(next, Self::Created),
            Self::Pending => matches!(next, Self::Running) || next.is_terminal(),
            Self::Running => matches!(next, Self::Pending) || next.is_terminal(),
            Self::Completed => false,
            // The explicit retry of a job that ended otherwise than well.
            Self::Failed | Self::Cancelled | Self::Expired => matches!(next, Self::Pending),
        }
    }

    /// The status as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

words!(Status, "status");

impl StopReason {
    /// The terminal status of a run that stops for this reason, as Letta documents it. None for words that it does not
    /// document.
    pub fn implied_status(&self) -> Option<Status> {
        match self.as_str() {
            "end_turn" | "max_steps" | "tool_rule" | "requires_approval" => Some(Status::Completed),
            "error"
            | "llm_api_error"
            | "invalid_llm_response"
            | "invalid_tool_call"
            | "no_tool_call"
            | "max_tokens_exceeded"
            | "insufficient_credits"
            | "context_window_overflow_in_system_prompt" => Some(Status::Failed),
            "cancelled" => Some(Status::Cancelled),
            _ => None,
        }
    }
}

/// How urgent a job is. A more urgent one is taken first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Priority {
    /// Before everything else.
    Critical,
    /// Before the ordinary.
    High,
    /// The ordinary.
    #[default]
    Default,
    /// When nothing else is to be done.
    Low,
}

impl Priority {
    /// Every priority, the most urgent first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Default, Self::Low];

    /// The priority as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Default => "default",
            Self::Low => "low",
        }
    }

    /// 0 for the most urgent, 3 for the least.
    pub(crate) const fn rank(self) -> usize {
        self as usize
    }
}

words!(Priority, "priority");

/// How far a running job says it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all, where that is known.
    pub total: Option<u64>,
    /// A word about what is being done.
    pub note: Option<String>,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.done)?;
        if let Some(total) = self.total {
            write!(f, " of {total}")?;
        }
        match &self.note {
            Some(note) => write!(f, ", {note}"),
            None => Ok(()),
        }
    }
}

/// A job as it stands in the ledger.
#[derive(Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Job {
    /// Its id, which also tells when it was created. In JSON `id` and `created_at`.
    #[serde(flatten, serialize_with = "with_creation")]
    pub id: JobId,
    /// What sort of thing it is.
    pub job_type: JobType,
    /// The name under which its handler is registered. None if it is tracked: its work happens elsewhere.
    pub kind: Option<String>,
    /// The lane that it runs in.
    pub queue: String,
    /// How urgent it is.
    pub priority: Priority,
    /// Where it stands.
    pub status: Status,
    /// Why it failed for good, if it did and a handler runs it.
    pub failure_reason: Option<FailureReason>,
    /// Why the agent's run stopped, if somebody has told.
    pub stop_reason: Option<StopReason>,
    /// Whether its caller does not wait for it.
    pub background: bool,
    /// How many attempts have begun and count. A snooze or a shutdown gives its attempt back.
    pub attempt: u32,
    /// How many attempts it may have.
    pub max_attempts: u32,
    /// The earliest moment of its next attempt, or of its last one if it has ended.
    pub run_at: Timestamp,
    /// When its newest attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended, whichever way.
    pub completed_at: Option<Timestamp>,
    /// It does not start after this moment.
    pub expires_at: Option<Timestamp>,
    /// How long one attempt may take.
    pub timeout: Option<Duration>,
    /// When somebody asked for its cancellation.
    pub cancel_requested_at: Option<Timestamp>,
    /// When it last changed: by an update from outside, or by a step of its life.
    pub updated_at: Timestamp,
    /// Who created it: the user or the name of the client, if it has one.
    pub created_by: Option<String>,
    /// Who last changed it from outside, if the client had a user or a name.
    pub updated_by: Option<String>,
    /// The user whose job it is.
    pub user_id: Option<String>,
    /// The organization of that user.
    pub organization_id: Option<String>,
    /// The agent that it belongs to.
    pub agent_id: Option<String>,
    /// The key that keeps a second one like it away.
    pub unique_key: Option<String>,
    /// The schedule that enqueued it, if one did.
    pub schedule: Option<ScheduleId>,
    /// The tick of the schedule that it is the job of, whenever it was enqueued; of one that was run by hand, when that was.
    pub scheduled_for: Option<Timestamp>,
    /// The workflow that it is of, as one of its jobs or as a callback.
    pub workflow_id: Option<WorkflowId>,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// What the application knows about it.
    pub metadata: Option<Map<String, Value>>,
    /// With which settings an agent's run was asked for.
    pub request_config: Option<Value>,
    /// Where to tell that it has ended.
    pub callback_url: Option<String>,
    /// When that was last tried.
    pub callback_sent_at: Option<Timestamp>,
    /// What the receiver answered the last time, if it answered.
    pub callback_status_code: Option<u16>,
    /// Why the last try did not succeed.
    pub callback_error: Option<String>,
    /// The error of its newest attempt that failed.
    pub error: Option<String>,
    /// How far its handler says it is.
    pub progress: Option<Progress>,
    /// Time to the first token, as it was marked or recorded. In JSON `ttft_ns`, in nanoseconds.
    #[serde(rename = "ttft_ns", serialize_with = "as_nanos")]
    pub ttft: Option<Duration>,
    /// How long it took in all: as it was recorded or else, once it has ended, from the start of its last attempt to its
    /// end. In JSON `total_duration_ns`, in nanoseconds.
    #[serde(rename = "total_duration_ns", serialize_with = "as_nanos")]
    pub total_duration: Option<Duration>,
    /// The handler's input, as JSON text. Empty if the job is tracked.
    #[serde(skip)]
    pub payload: Vec<u8>,
    /// The handler's output, as JSON text, once it has completed.
    #[serde(skip)]
    pub result: Option<Vec<u8>>,
}

debug_with_sizes!(Job {
    id, job_type, kind, queue, priority, status, failure_reason, stop_reason, background, attempt, max_attempts,
    run_at, started_at, completed_at, expires_at, timeout, cancel_requested_at, updated_at, created_by, updated_by,
    user_id, organization_id, agent_id, unique_key, schedule, scheduled_for, workflow_id, tags, metadata,
    request_config, callback_url, callback_sent_at, callback_status_code, callback_error, error, progress, ttft,
    total_duration;
    payload, result
});

fn with_creation<S: Serializer>(id: &JobId, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Head {
        id: JobId,
        created_at: Timestamp,
    }
    Head { id: *id, created_at: id.created_at() }.serialize(serializer)
}

fn as_nanos<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)).serialize(serializer)
}

impl Job {
    /// The name of its kind, empty if it is tracked.
    pub(crate) fn kind_name(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }

    /// Whether its work happens elsewhere, so that no handler runs it.
    pub fn is_tracked(&self) -> bool {
        self.kind.is_none()
    }

    /// When it was enqueued.
    pub fn created_at(&self) -> Timestamp {
        self.id.created_at()
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// `Invalid` if the payload is not a `T`.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| Error::invalid("payload", format_args!("is no {}: {error}", std::any::type_name::<T>())))
    }

    /// Reads the result of a completed job.
    ///
    /// # Errors
    /// `Conflict` if the job has no result, and `Invalid` if the result is not a `T`.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T> {
        let Some(result) = &self.result else {
            return Err(Error::new(
                crate::error::ErrorKind::Conflict,
                format!("{} is {} and has no result", self.id, self.status),
            ));
        };
        serde_json::from_slice(result)
            .map_err(|error| Error::invalid("result", format_args!("is no {}: {error}", std::any::type_name::<T>())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of DESIGN §5, a row for each status, a column for each next one.
    const TABLE: [(Status, &str); 7] = [
        // to:              C P R c f x e
        (Status::Created, "- y y y y y y"),
        (Status::Pending, "- - y y y y y"),
        (Status::Running, "- y - y y y y"),
        (Status::Completed, "- - - - - - -"),
        (Status::Failed, "- y - - - - -"),
        (Status::Cancelled, "- y - - - - -"),
        (Status::Expired, "- y - - - - -"),
    ];

    #[test]
    fn every_pair_of_statuses() {
        for (from, row) in TABLE {
            for (to, cell) in Status::ALL.into_iter().zip(row.split(' ')) {
                assert_eq!(from.may_become(to), cell == "y", "{from} to {to}");
            }
        }
    }

    #[test]
    fn words_read_back() -> Result<()> {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse::<Status>()?, status);
            assert_eq!(serde_json::to_value(status).ok(), Some(status.as_str().into()));
        }
        for priority in Priority::ALL {
            assert_eq!(priority.as_str().parse::<Priority>()?, priority);
            assert_eq!(Priority::ALL[priority.rank()], priority);
        }
        assert!("Pending".parse::<Status>().is_err());
        assert!("urgent".parse::<Priority>().is_err());
        Ok(())
    }
}
