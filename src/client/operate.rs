//! Operating: cancel, retry, delete, move, update, redeliver, pause.

use std::time::Duration;

use crate::client::{Client, not_found};
use crate::error::{Error, ErrorKind, Result};
use crate::model::history::Caller;
use crate::model::id::JobId;
use crate::model::job::{Job, Priority, Status};
use crate::model::rules::{check_name, check_queue};
use crate::model::update::{JobUpdate, StatusChange};
use crate::store::Turn;
use crate::store::connect::storage_error;
use crate::store::operate::{Cancelled, Deleted, Move, Refused};
use crate::store::read;
use crate::store::update::NotUpdated;

impl Client {
    /// Cancels a job. A waiting one is cancelled at once; a running one is asked to stop, and holds its worker until it
    /// does; a tracked one, which nobody here runs, is cancelled at once. One that is cancelled already stays so.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it has ended otherwise.
    pub fn cancel(&self, id: JobId) -> Result<Cancelled> {
        self.operate(id, "cancelled", |turn, id, caller| turn.cancel(id, caller))
    }

    /// Makes a job that failed, was cancelled or expired pending once more, with at least one attempt. Of an LLM batch, those
    /// items go once more that are not completed: one whose reply is in the file goes to its step, and is not paid again; the
    /// others are sent, with their attempts anew.
    ///
    /// What was cancelled or failed because this job did stays so, whatever comes of it now. Retry that as well, each after
    /// the one that it follows: a job waits once more for those that it follows and that are under way again.
    /// [`Selection::retry`](crate::Selection::retry) goes in the order in which jobs were enqueued. Of a workflow that has
    /// ended, [`retry_workflow`](Client::retry_workflow) sends all of this again, stages too, in the workflow's order.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it has not ended or is completed, or if another job holds its
    /// unique key by now.
    pub fn retry(&self, id: JobId) -> Result<()> {
        self.operate(id, "retried", |turn, id, caller| turn.retry(id, caller))
    }

    /// Deletes a job and all that is kept of it but what the audit holds. A running one is asked to stop first, and goes
    /// when it has.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn delete(&self, id: JobId) -> Result<Deleted> {
        self.operate(id, "deleted", |turn, id, caller| turn.delete(id, caller))
    }

    /// Gives a job that waits another priority.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it does not wait.
    pub fn set_priority(&self, id: JobId, priority: Priority) -> Result<()> {
        let to = Move { priority: Some(priority), queue: None };
        self.operate(id, "moved", move |turn, id, caller| turn.relocate(id, &to, caller))
    }

    /// Puts a job that waits into another queue.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it does not wait; `Invalid` if the name breaks the rule for names.
    pub fn set_queue(&self, id: JobId, queue: &str) -> Result<()> {
        check_queue(queue)?;
        let to = Move { priority: None, queue: Some(queue.to_owned()) };
        self.operate(id, "moved", move |turn, id, caller| turn.relocate(id, &to, caller))
    }

    fn operate<T: Send + 'static>(
        &self,
        id: JobId,
        done: &'static str,
        work: impl FnOnce(&mut Turn<'_>, JobId, &Caller) -> rusqlite::Result<Result<T, Refused>> + Send + 'static,
    ) -> Result<T> {
        let caller = self.caller.clone();
        self.desk().call(move |turn| {
            let result = work(turn, id, &caller).map_err(|error| storage_error("cannot change the job", error))?;
            result.map_err(|refused| refusal(id, done, refused))
        })
    }

    /// Changes fields of a job, and the status of a tracked one, all or nothing. Gives the job as it stands then.
    ///
    /// ```
    /// use jobmill::{JobUpdate, NewJob, Status};
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
    /// let id = client.enqueue(NewJob::tracked().agent("agent-7"))?.id();
    /// let job = client.update(id, JobUpdate::new().status(Status::Completed).agent(None))?;
    /// assert_eq!((job.status, job.agent_id), (Status::Completed, None));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if the status may not follow, or if the engine runs the job and sets
    /// the field itself; `Invalid` if a rule is broken, with the field and the rule.
    pub fn update(&self, id: JobId, update: JobUpdate) -> Result<Job> {
        update.check()?;
        let caller = self.caller.clone();
        self.desk().call(move |turn| {
            let storage = |error| storage_error("cannot update the job", error);
            let updated = turn.update(id, &update, &caller).map_err(storage)?;
            updated.map_err(|not| match not {
                NotUpdated::Refused(refused) => refusal(id, "updated", refused),
                NotUpdated::Status(StatusChange::Refused { status, why }) => {
                    Error::new(ErrorKind::Conflict, format!("{id} is {status}, and {why}"))
                }
                NotUpdated::Status(_) => Error::new(ErrorKind::Conflict, format!("{id} cannot have that status")),
                NotUpdated::MetadataTooLong => Error::invalid("metadata", "would grow too long"),
            })?;
            read::job(turn.conn, id).map_err(storage)?.ok_or_else(|| not_found(id))
        })
    }

    /// Brings a tracked job to another status, and tells what came of it: forward only, and a terminal status is final.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn update_status(&self, id: JobId, status: Status) -> Result<StatusChange> {
        let caller = self.caller.clone();
        self.desk().call(move |turn| {
            let changed = turn.update_status(id, status, &caller);
            changed.map_err(|error| storage_error("cannot change the status", error))?.ok_or_else(|| not_found(id))
        })
    }

    /// Records the time to the first token of a job.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn record_ttft(&self, id: JobId, ttft: Duration) -> Result<()> {
        self.update(id, JobUpdate::new().ttft(ttft)).map(drop)
    }

    /// Records how long a job took in all.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn record_total_duration(&self, id: JobId, duration: Duration) -> Result<()> {
        self.update(id, JobUpdate::new().total_duration(duration)).map(drop)
    }

    /// Delivers the callback of a job that has ended once more, to its `callback_url` as it is now, and gives the id of the
    /// delivering job. The receiver sees the same `webhook-id` and body as before, if a delivery of this end is kept still.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it has not ended or has no `callback_url`.
    pub fn redeliver(&self, id: JobId) -> Result<JobId> {
        self.operate(id, "redelivered", |turn, id, caller| turn.redeliver(id, caller))
    }

    /// Stops the claiming from a queue, in every process, until it is resumed. Running jobs go on. On the queue `system`
    /// callbacks are delivered, and LLM batches submitted and harvested: paused, they wait.
    ///
    /// # Errors
    /// `Invalid` if the name breaks the rule for names.
    pub fn pause(&self, queue: &str) -> Result<()> {
        self.set_paused(queue, true)
    }

    /// Resumes a paused queue.
    ///
    /// # Errors
    /// `Invalid` if the name breaks the rule for names.
    pub fn resume(&self, queue: &str) -> Result<()> {
        self.set_paused(queue, false)
    }

    fn set_paused(&self, queue: &str, paused: bool) -> Result<()> {
        self.administer("pause or resume a queue")?;
        check_name("queue", queue)?;
        let queue = queue.to_owned();
        let caller = self.caller.clone();
        self.desk().call(move |turn| {
            turn.pause(&queue, paused, &caller).map_err(|error| storage_error("cannot change the queue", error))
        })
    }
}

fn refusal(id: JobId, what: &str, refused: Refused) -> Error {
    match refused {
        Refused::NotFound => not_found(id),
        Refused::Status(status @ (Status::Created | Status::Pending | Status::Running)) => {
            Error::new(ErrorKind::Conflict, format!("{id} is {status} and cannot be {what}"))
        }
        Refused::Status(status) => {
            Error::new(ErrorKind::Conflict, format!("{id} is {status} already and cannot be {what}"))
        }
        Refused::NoCallback => Error::new(ErrorKind::Conflict, format!("{id} has no callback_url")),
        Refused::FieldOfTheEngine(field) => {
            Error::new(ErrorKind::Conflict, format!("{field}: the engine runs {id}, and sets this itself"))
        }
        Refused::KeyHeldBy(holder) => {
            let holder = holder.map_or("a job of another user".to_owned(), |holder| holder.to_string());
            Error::new(ErrorKind::Conflict, format!("{id} cannot be {what}, for {holder} holds its unique key"))
        }
    }
}
