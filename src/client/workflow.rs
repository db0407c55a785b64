//! Workflows: start, ask, cancel, retry, wait.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{after, select};

use crate::client::{Client, admit_any, knows_limits};
use crate::error::{Error, ErrorKind, Result};
use crate::model::history::Caller;
use crate::model::id::{JobId, WorkflowId};
use crate::model::job::Status;
use crate::model::new_job::NewJob;
use crate::model::new_workflow::{NewWorkflow, Plan, Work, callback_name};
use crate::model::rules::quoted;
use crate::model::unique::Unique;
use crate::model::workflow::{Workflow, WorkflowPage, WorkflowQuery};
use crate::store::Turn;
use crate::store::connect::storage_error;
use crate::store::enqueue::Enqueued;
use crate::store::operate::Cancelled;
use crate::store::read as jobs;
use crate::store::workflow::create::{Draft, Spot};
use crate::store::workflow::operate::WorkflowRefused;
use crate::store::workflow::read;

/// Up to how many jobs, and bytes of their payloads, are written in one transaction.
const SLICE_JOBS: usize = 1000;
const SLICE_BYTES: usize = 8 << 20;
/// How many jobs one transaction takes back.
const DISCARD_JOBS: usize = 500;
/// How often a client without a dispatcher looks for what others have written, while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A job that is about to be written.
struct Member {
    spot: Spot,
    /// Which one of its stage it is, if it is of one.
    at: Option<usize>,
    job: NewJob,
}

/// Jobs that are written together.
type Slice = Vec<Member>;

impl Client {
    /// Starts a workflow: it is in the file when this returns. Its jobs are taken from their iterators and written in slices
    /// of a thousand, so that a stage of any size takes little memory, and none runs before all are written. One that fits
    /// into a slice is written in one transaction. If the process dies before the last slice, the workflow stays
    /// [`Created`](Status::Created) and never runs: start it again. An engine cancels one to which nothing has been added
    /// for an hour.
    ///
    /// # Errors
    /// `Invalid` if a rule is broken, with the name, the field and the rule; `Conflict` if a job's unique key is held,
    /// with the name, the key and the job that holds it. Nothing of the workflow is there then.
    pub fn start_workflow(&self, workflow: NewWorkflow<'_>) -> Result<WorkflowId> {
        let mut plan = workflow.plan()?;
        if let Some(user) = self.user() {
            if plan.user.as_ref().is_some_and(|asked| asked != user) {
                return Err(Error::invalid("user", "must be the one to whom the client is bound"));
            }
            plan.user = Some(user.to_owned());
        }
        let caller = self.caller();
        let (user, callbacks) = (plan.user.clone(), workflow.callbacks);
        let nodes = workflow.nodes.into_iter().enumerate().flat_map(|(place, node)| {
            let jobs: Box<dyn Iterator<Item = NewJob>> = match node.work {
                Work::Job(job) => Box::new(std::iter::once(*job)),
                Work::Stage(jobs) => jobs,
            };
            let is_stage = plan.nodes[place].is_stage;
            jobs.enumerate().map(move |(at, job)| (Spot::Node(place), is_stage.then_some(at), job))
        });
        let callbacks = callbacks.into_iter().enumerate().map(|(at, (_, job))| (Spot::Callback(at), None, job));
        let mut members = nodes.chain(callbacks).map(|(spot, at, job)| {
            let admitted = admit_member(job, user.as_deref(), at.is_some(), caller);
            let name = || name_of(&plan, spot, at);
            admitted.map(|job| Member { spot, at, job }).map_err(|error| said_of(&name(), &error))
        });
        // The first slice is checked before anything is written, and most workflows have no other.
        let slice = next_slice(&mut members)?.unwrap_or_default();
        let mut next = next_slice(&mut members)?;
        let plan_for_turns = Arc::new(plan.clone());
        let (shared, at_once, of) = (plan_for_turns.clone(), next.is_none(), caller.clone());
        let mut draft = self.desk().call(move |turn| {
            let written = turn.guarded(|mut turn| -> Result<Draft> {
                let mut draft = turn.draft_workflow(&shared).map_err(cannot_start)?;
                write(&mut turn, &shared, &mut draft, slice, at_once, &of)?;
                if at_once {
                    turn.release_workflow(&shared, &draft, true).map_err(cannot_start)?;
                }
                Ok(draft)
            })?;
            written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let id = draft.id;
        if at_once {
            return Ok(id);
        }
        // The iterators are the caller's, and may panic.
        let mut unfinished = Unfinished { client: self, id: Some(id) };
        let mut written = Ok(());
        while let Some(slice) = next.take() {
            let (shared, mut drafted, of) = (plan_for_turns.clone(), draft.clone(), caller.clone());
            // Whatever is refused here is taken back with all the rest.
            let result =
                self.desk().call(move |turn| write(turn, &shared, &mut drafted, slice, false, &of).map(|()| drafted));
            match result {
                Ok(drafted) => draft = drafted,
                Err(error) => {
                    written = Err(error);
                    break;
                }
            }
            match next_slice(&mut members) {
                Ok(slice) => next = slice,
                Err(error) => written = Err(error),
            }
        }
        let written = written.and_then(|()| {
            let shared = plan_for_turns.clone();
            let released =
                self.desk().call(move |turn| turn.release_workflow(&shared, &draft, false).map_err(cannot_start))?;
            let cancelled = || Error::new(ErrorKind::Conflict, format!("{id} was cancelled before it was written"));
            if released { Ok(()) } else { Err(cancelled()) }
        });
        unfinished.id = None;
        if let Err(error) = written {
            self.discard(id)?;
            return Err(error);
        }
        Ok(id)
    }

    /// Takes back what was written of a workflow that never began.
    fn discard(&self, id: WorkflowId) -> Result<()> {
        while self.desk().call(move |turn| turn.discard_workflow(id, DISCARD_JOBS).map_err(cannot_start))? {}
        Ok(())
    }

    /// A workflow: where it stands, its jobs by status, what bears a name in it, the first of its failures.
    ///
    /// # Errors
    /// `NotFound` if no workflow has this id.
    pub fn workflow(&self, id: WorkflowId) -> Result<Workflow> {
        let found = self.reader().snapshot("cannot read the workflow", |conn| read::workflow(conn, id, self.user()))?;
        found.ok_or_else(|| no_workflow(id))
    }

    /// Lists workflows, a page at a time.
    ///
    /// # Errors
    /// `Invalid` if the limit or the cursors break a rule.
    pub fn workflows(&self, mut query: WorkflowQuery) -> Result<WorkflowPage> {
        query.check()?;
        if let Some(user) = self.user() {
            if query.user.as_ref().is_some_and(|asked| asked != user) {
                return Err(Error::invalid("user", "must be the one to whom the client is bound"));
            }
            query.user = Some(user.to_owned());
        }
        self.reader().snapshot("cannot list workflows", |conn| read::workflows(conn, &query))
    }

    /// Cancels a workflow. From now on nothing of it begins, in no process, even if this one dies before all is done; what
    /// waits is cancelled when this returns, what runs has been asked to stop. It ends when the last of its jobs has. Its
    /// callbacks are judged then, and run.
    ///
    /// # Errors
    /// `NotFound` if no workflow has this id; `Conflict` if it has ended otherwise.
    pub fn cancel_workflow(&self, id: WorkflowId) -> Result<Cancelled> {
        let cancelled = self.operate_on(id, "cancelled", |turn, id, caller| turn.cancel_workflow(id, caller))?;
        self.finish_operating(id)?;
        let ended = self.reader().snapshot("cannot read the workflow", |conn| read::status(conn, id, self.user()))?;
        Ok(match cancelled {
            Cancelled::Requested if ended == Some(Status::Cancelled) => Cancelled::Now,
            other => other,
        })
    }

    /// Sends the jobs of an ended workflow again that failed, expired or were cancelled, each as [`Client::retry`] does.
    /// Those that follow others of these wait for them once more. What has completed is not run again, a callback neither.
    ///
    /// A single job that is [retried](Client::retry) opens its workflow again, too, and the callbacks that have not run are
    /// judged at its next end. The jobs that were cancelled because of it stay so until they are retried, too: by this, once
    /// the workflow has ended again, or one by one.
    ///
    /// A running workflow is refused, even if some of its jobs have failed: others may still be about to end, and what
    /// follows them is judged by that. [Wait](Client::wait_workflow) for its end, or [cancel](Client::cancel_workflow) it to
    /// come to that sooner, and wait all the same, for what runs may take a while to stop. A failed job need not wait for the
    /// others: [`Client::retry`] sends it again while they run.
    ///
    /// # Errors
    /// `NotFound` if no workflow has this id; `Conflict` if it has not ended, or if all of it has completed.
    pub fn retry_workflow(&self, id: WorkflowId) -> Result<()> {
        self.operate_on(id, "retried", |turn, id, caller| turn.retry_workflow(id, caller))?;
        self.finish_operating(id)
    }

    /// Waits until what was asked for is done to the jobs of a workflow that wait. Each turn does a slice of it.
    fn finish_operating(&self, id: WorkflowId) -> Result<()> {
        let is_operating = move |turn: &mut Turn<'_>| turn.is_operating(id).map_err(cannot_operate);
        while self.desk().call(is_operating)? {}
        Ok(())
    }

    fn operate_on<T: Send + 'static>(
        &self,
        id: WorkflowId,
        done: &'static str,
        work: impl FnOnce(&mut Turn<'_>, WorkflowId, &Caller) -> rusqlite::Result<Result<T, WorkflowRefused>>
        + Send
        + 'static,
    ) -> Result<T> {
        let caller = self.caller().clone();
        self.desk().call(move |turn| {
            let result = work(turn, id, &caller).map_err(cannot_operate)?;
            result.map_err(|refused| match refused {
                WorkflowRefused::NotFound => no_workflow(id),
                WorkflowRefused::Status(status) => {
                    Error::new(ErrorKind::Conflict, format!("{id} is {status} and cannot be {done}"))
                }
            })
        })
    }

    /// Waits until all jobs of a workflow have ended, and gives it. Its callbacks begin then.
    ///
    /// # Errors
    /// `NotFound` if no workflow has this id; `Timeout` if it has not ended in time; `Shutdown` if the engine shut down
    /// meanwhile.
    pub fn wait_workflow(&self, id: WorkflowId, timeout: Duration) -> Result<Workflow> {
        // Its number is none that a job has.
        let watch = self.desk().watch(JobId::from_raw(id.raw()));
        let patience = after(timeout);
        loop {
            let status =
                self.reader().snapshot("cannot read the workflow", |conn| read::status(conn, id, self.user()))?;
            match status {
                None => return Err(no_workflow(id)),
                Some(status) if status.is_terminal() => return self.workflow(id),
                Some(_) if self.desk().is_closed() => return Err(Error::shutdown()),
                Some(_) => {}
            }
            let look = if self.desk().is_attended() { crossbeam_channel::never() } else { after(LOOK_EVERY) };
            select! {
                recv(watch.receiver()) -> _ => {}
                recv(look) -> _ => {}
                recv(patience) -> _ => {
                    return Err(Error::new(ErrorKind::Timeout, format!("{id} has not ended in time")));
                }
            }
        }
    }
}

/// A workflow that is being written, and is taken back if that is not brought to its end.
struct Unfinished<'c> {
    client: &'c Client,
    id: Option<WorkflowId>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id
            && let Err(error) = self.client.discard(id)
        {
            log::warn!("{id} was not written to its end, and cannot be taken back: {error}");
        }
    }
}

/// A job that this caller may add to a workflow of this user's.
pub(crate) fn admit_member(mut job: NewJob, user: Option<&str>, is_of_stage: bool, caller: &Caller) -> Result<NewJob> {
    job.check_within()?;
    if is_of_stage && job.from_previous {
        return Err(Error::invalid("from_previous", "must not be set for a job of a stage"));
    }
    if let Some(user) = user {
        if job.user_id.as_ref().is_some_and(|asked| asked != user) {
            return Err(Error::invalid("user", "must be that of the workflow"));
        }
        job.user_id = Some(user.to_owned());
    }
    admit_any(job, caller)
}

fn next_slice(members: &mut impl Iterator<Item = Result<Member>>) -> Result<Option<Slice>> {
    let (mut slice, mut bytes) = (Slice::new(), 0);
    while slice.len() < SLICE_JOBS && bytes < SLICE_BYTES {
        let Some(member) = members.next().transpose()? else { break };
        bytes += member.job.payload.as_ref().map_or(0, Vec::len);
        slice.push(member);
    }
    Ok((!slice.is_empty()).then_some(slice))
}

/// Writes a slice. `at_once`: the workflow is let go in the same transaction, and what waits for nothing need not wait for
/// that.
fn write(
    turn: &mut Turn<'_>,
    plan: &Plan,
    draft: &mut Draft,
    slice: Slice,
    at_once: bool,
    caller: &Caller,
) -> Result<()> {
    for Member { spot, at, job } in slice {
        knows_limits(turn, &job).map_err(|error| said_of(&name_of(plan, spot, at), &error))?;
        let waits = match spot {
            Spot::Node(place) => !at_once || !plan.nodes[place].needs.is_empty(),
            Spot::Callback(_) => true,
        };
        let key = job.unique.as_ref().and_then(Unique::own_key).map(quoted).unwrap_or_default();
        if let Enqueued::Existing(holder) = turn.draft_job(plan, draft, spot, job, waits).map_err(cannot_start)? {
            let holder = if turn.is_drafted(draft, holder).map_err(cannot_start)? {
                // Its id dies with the workflow that is refused.
                "another job of the workflow".to_owned()
            } else if let Some(user) = &caller.user
                && jobs::is_foreign(turn.conn, holder, user).map_err(cannot_start)?
            {
                "a job of another user".to_owned()
            } else {
                holder.to_string()
            };
            let name = name_of(plan, spot, at);
            return Err(Error::new(ErrorKind::Conflict, format!("{name}: unique: {holder} holds the key {key}")));
        }
    }
    Ok(())
}

/// The name of a job in its workflow: the one that it bears, or that of its stage and which one of it it is.
fn name_of(plan: &Plan, spot: Spot, at: Option<usize>) -> String {
    let name = match spot {
        Spot::Node(place) => &plan.nodes[place].name,
        Spot::Callback(callback) => callback_name(plan.callbacks[callback]),
    };
    at.map_or_else(|| name.to_owned(), |at| format!("{name}[{at}]"))
}

/// An error with the name of what it is about.
fn said_of(name: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("{name}: {error}"))
}

fn no_workflow(id: WorkflowId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no workflow {id}"))
}

fn cannot_start(error: rusqlite::Error) -> Error {
    storage_error("cannot start the workflow", error)
}

fn cannot_operate(error: rusqlite::Error) -> Error {
    storage_error("cannot change the workflow", error)
}
