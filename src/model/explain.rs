//! Why a job stands where it stands.

use std::fmt;

use serde::Serialize;

use crate::model::id::JobId;
use crate::model::job::Status;
use crate::model::time::Timestamp;

/// One reason why a job does not run, or what it does instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
#[non_exhaustive]
pub enum Reason {
    /// It is recorded, but not admitted.
    NotAdmitted,
    /// It waits for the end of another job, or of a stage of its workflow. At most twenty of these are told.
    WaitsFor {
        /// The job. None: it is a stage.
        id: Option<JobId>,
        /// The name within the workflow.
        name: Option<String>,
        /// Where it stands.
        status: Status,
    },
    /// What it waited for did not end as it should.
    NotMet {
        /// The job. None: it is a stage, or the workflow whose callback this is.
        id: Option<JobId>,
        /// The name within the workflow.
        name: Option<String>,
        /// How it ended. None: it was deleted.
        status: Option<Status>,
    },
    /// Its work happens elsewhere, and whoever does it sets its status.
    Tracked,
    /// Its time has not come.
    Scheduled {
        /// When it comes.
        until: Timestamp,
        /// Which attempt it waits for, from 1.
        attempt: u32,
    },
    /// Its queue is paused.
    QueuePaused {
        /// The queue.
        queue: String,
        /// Since when.
        since: Timestamp,
    },
    /// No engine that works on the file has a handler for its kind.
    NoHandler {
        /// The kind.
        kind: String,
    },
    /// One of its limits does not let it through.
    Limited {
        /// The limit.
        limit: String,
        /// The key, empty for the common one.
        key: String,
        /// How many jobs of the key run.
        running: u32,
        /// How many may run at a time, if that is bounded.
        concurrency: Option<u32>,
        /// When time alone will let it through, or the next one of the key before it.
        until: Option<Timestamp>,
    },
    /// Its queue does not let it through.
    QueueLimited {
        /// The queue.
        queue: String,
        /// How many of its jobs run, in all processes.
        running: u32,
        /// How many may run at a time, if that is bounded.
        concurrency: Option<u32>,
        /// When time alone will let the next one through.
        until: Option<Timestamp>,
    },
    /// Of the jobs of its queue, as many run in the engine that tells this as may there
    /// ([`EngineBuilder::queue`](crate::EngineBuilder::queue)).
    QueueFull {
        /// The queue.
        queue: String,
        /// How many of its jobs that engine has claimed.
        running: usize,
        /// How many may run there at a time.
        most: usize,
    },
    /// The engine that tells this has not enough of its [`capacity`](crate::EngineBuilder::capacity) left for it, or keeps
    /// that for a heavier job that goes before it.
    NoCapacity {
        /// What the job weighs.
        weight: u32,
        /// What the jobs weigh that the engine has claimed.
        taken: u64,
        /// What they may weigh all together.
        capacity: u32,
    },
    /// Nothing stands in its way but that no worker is free for it; or that another process, which alone has a handler for
    /// it, has no room.
    NoFreeWorker,
    /// It will not start after this moment.
    Deadline {
        /// The job's `expires_at`.
        expires_at: Timestamp,
    },
    /// It is running.
    Running {
        /// In which process, on which host.
        process: String,
        /// Since when.
        since: Timestamp,
    },
    /// It was running when its process died. The next engine on the file lets it run again, as far as its attempts reach.
    ProcessDied {
        /// Which process, on which host.
        process: String,
        /// Since when it ran there.
        since: Timestamp,
    },
    /// It is an LLM batch, whose items stand so.
    Batch {
        /// Wait to be sent.
        waiting: u64,
        /// Are at a provider, or about to be.
        sent: u64,
        /// Have a reply that the step is at.
        stepping: u64,
    },
    /// Something holds up an LLM batch.
    BatchHeldUp {
        /// What, in words.
        why: String,
    },
    /// It is running and has been asked to stop.
    CancelRequested {
        /// When.
        at: Timestamp,
    },
    /// It failed, and its attempts are spent.
    AttemptsSpent {
        /// How many it had.
        attempts: u32,
    },
    /// Its handler refused it for good.
    Refused,
    /// Its process died while it ran, until its attempts were spent.
    CrashLoop {
        /// How many it had.
        attempts: u32,
    },
    /// Another job has taken its unique key since, so that it cannot be tried again now.
    DuplicateOf {
        /// The job that holds the key. None: it is another user's.
        id: Option<JobId>,
    },
    /// Its deadline came while it waited.
    Expired {
        /// Its `expires_at`.
        expires_at: Timestamp,
    },
    /// It has ended.
    Ended {
        /// How.
        status: Status,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAdmitted => write!(f, "it is not admitted yet"),
            Self::WaitsFor { id, name, status } => {
                write!(f, "it waits for {}, which is {status}", Needed(*id, name.as_deref()))
            }
            Self::NotMet { id, name, status: Some(status) } => {
                write!(f, "{} is {status}", Needed(*id, name.as_deref()))
            }
            Self::NotMet { id, name, status: None } => write!(f, "{} was deleted", Needed(*id, name.as_deref())),
            Self::Tracked => write!(f, "its work happens elsewhere"),
            Self::Scheduled { until, attempt } => {
                write!(f, "its attempt {attempt} is scheduled for {until}")
            }
            Self::QueuePaused { queue, since } => {
                write!(f, "the queue {queue} is paused since {since}")
            }
            Self::NoHandler { kind } => write!(f, "no engine on this file has a handler for the kind {kind}"),
            Self::Limited { limit, key, running, concurrency, until } => {
                let of = if key.is_empty() { String::new() } else { format!(" of {key}") };
                write!(f, "the limit {limit}{of} holds it: ")?;
                bound(f, *running, *concurrency, *until)
            }
            Self::QueueLimited { queue, running, concurrency, until } => {
                write!(f, "the bounds of the queue {queue} hold it: ")?;
                bound(f, *running, *concurrency, *until)
            }
            Self::QueueFull { queue, running, most } => {
                write!(f, "{running} of {most} jobs of the queue {queue} run in this process")
            }
            Self::NoCapacity { weight, taken, capacity } if u64::from(*weight) + taken <= u64::from(*capacity) => {
                write!(
                    f,
                    "it weighs {weight}, and what is left of the capacity of {capacity} is kept for a heavier job"
                )
            }
            Self::NoCapacity { weight, taken, capacity } => {
                write!(f, "it weighs {weight}, and {taken} of the capacity of {capacity} are taken")
            }
            Self::NoFreeWorker => write!(f, "it waits for a free worker"),
            Self::Deadline { expires_at } => {
                write!(f, "it expires if it has not started by {expires_at}")
            }
            Self::Running { process, since } => write!(f, "it runs in {process} since {since}"),
            Self::ProcessDied { process, since } => {
                write!(f, "it ran in {process} since {since}, and that process has died: the next engine takes it back")
            }
            Self::Batch { waiting, sent, stepping } => write!(
                f,
                "{waiting} of its items wait to be sent, {sent} are at a provider, {stepping} are at their step"
            ),
            Self::BatchHeldUp { why } => write!(f, "held up: {why}"),
            Self::CancelRequested { at } => write!(f, "it was asked to stop at {at}"),
            Self::AttemptsSpent { attempts } => spent(f, *attempts),
            Self::Refused => write!(f, "its handler refused it for good"),
            Self::CrashLoop { attempts } => {
                write!(f, "its process died while it ran, and ")?;
                spent(f, *attempts)
            }
            Self::DuplicateOf { id: Some(id) } => write!(f, "{id} holds its unique key by now"),
            Self::DuplicateOf { id: None } => write!(f, "another job holds its unique key by now"),
            Self::Expired { expires_at } => write!(f, "its deadline, {expires_at}, came while it waited"),
            Self::Ended { status } => write!(f, "it is {status}"),
        }
    }
}

/// What a job waits for, in words.
struct Needed<'a>(Option<JobId>, Option<&'a str>);

impl fmt::Display for Needed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(Some(id), Some(name)) => write!(f, "{name} ({id})"),
            Self(Some(id), None) => write!(f, "{id}"),
            Self(None, name) => f.write_str(name.unwrap_or("a stage")),
        }
    }
}

/// What bounds jobs, in words.
fn bound(f: &mut fmt::Formatter<'_>, running: u32, concurrency: Option<u32>, until: Option<Timestamp>) -> fmt::Result {
    match (until, concurrency) {
        (Some(until), Some(most)) if running >= most => {
            write!(f, "{running} of {most} run, and none starts until {until}")
        }
        (Some(until), _) => write!(f, "until {until}"),
        (None, Some(most)) => write!(f, "{running} of {most} run"),
        (None, None) => write!(f, "{running} run"),
    }
}

fn spent(f: &mut fmt::Formatter<'_>, attempts: u32) -> fmt::Result {
    match attempts {
        1 => write!(f, "its one attempt is spent"),
        _ => write!(f, "its {attempts} attempts are spent"),
    }
}

/// Why a job stands where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// Where it stands.
    pub status: Status,
    /// Why. Never empty.
    pub reasons: Vec<Reason>,
    /// When it ended, if it has.
    pub ended_at: Option<Timestamp>,
    /// The error of its newest attempt that failed, if it is failed. If it was cancelled after it had begun: that, or the
    /// reason that its handler gave.
    pub error: Option<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if let Some(at) = self.ended_at {
            write!(f, " at {at}")?;
        }
        // Where it stands has been told.
        let told: Vec<&Reason> = self.reasons.iter().filter(|reason| !matches!(reason, Reason::Ended { .. })).collect();
        for (at, reason) in told.iter().enumerate() {
            let separator = if at == 0 { ": " } else { ", " };
            write!(f, "{separator}{reason}")?;
        }
        match &self.error {
            Some(error) if self.status == Status::Failed => write!(f, ", with the error: {error}"),
            Some(error) => write!(f, ", and its last attempt said: {error}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_tells_both_how_many_run_and_until_when_none_starts() {
        let until = Some(Timestamp::EPOCH);
        let limited = |running, concurrency, until| {
            Reason::QueueLimited { queue: "mail".into(), running, concurrency, until }.to_string()
        };
        let begins = "the bounds of the queue mail hold it: ";
        let at = Timestamp::EPOCH;
        for (reason, says) in [
            (limited(1, Some(1), None), "1 of 1 run".to_owned()),
            (limited(1, Some(2), until), format!("until {at}")),
            (limited(1, None, until), format!("until {at}")),
            // That one runs already was left out, as if it were free to start at that moment.
            (limited(1, Some(1), until), format!("1 of 1 run, and none starts until {at}")),
        ] {
            assert_eq!(reason, format!("{begins}{says}"));
        }
    }
}
