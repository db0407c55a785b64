//! What a handler has of its workflow: what came of the jobs before, jobs that it adds; and its steps, each done once.

use std::collections::VecDeque;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Client, knows_limits, workflow};
use crate::error::{Error, ErrorKind, Result};
use crate::handler::Failure;
use crate::handler::context::{Context, fenced};
use crate::model::contents::debug_with_sizes;
use crate::model::id::{JobId, WorkflowId};
use crate::model::job::Status;
use crate::model::new_job::NewJob;
use crate::model::rules::{check_name, check_size};
use crate::store::connect::storage_error;
use crate::store::enqueue::Enqueued;
use crate::store::flow;
use crate::store::workflow::create::NotAdded;
use crate::store::workflow::read::{self, Came, Needed};

/// How many steps an attempt may come to.
const STEPS_MAX: usize = 10_000;
/// How many results are read at a time.
const INPUTS_CHUNK: usize = 200;
/// How many jobs are added in one transaction.
const ADD_JOBS: usize = 1000;

/// What came of a job that this one waited for.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Input {
    /// The job.
    pub id: JobId,
    /// How it ended.
    pub status: Status,
    /// Its last error, if it had one.
    pub error: Option<String>,
    result: Option<Vec<u8>>,
}

debug_with_sizes!(Input { id, status, error; result });

impl Input {
    /// Its result.
    ///
    /// # Errors
    /// `Conflict` if it has none; `Invalid` if that is not a `T`.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T> {
        let Some(result) = &self.result else {
            return Err(Error::new(ErrorKind::Conflict, format!("{} is {} and has no result", self.id, self.status)));
        };
        serde_json::from_slice(result)
            .map_err(|error| Error::with_source(ErrorKind::Invalid, format!("the result of {}", self.id), error))
    }
}

impl From<Came> for Input {
    fn from(came: Came) -> Self {
        Self { id: came.id, status: came.status, error: came.error, result: came.result }
    }
}

/// What came of the jobs that a job waited for, read a page at a time: see [`Context::inputs`]. After an error it gives the
/// same page once more.
pub struct Inputs {
    client: Client,
    needed: VecDeque<Needed>,
    page: VecDeque<Came>,
    /// Up to which job of the first stage it was read.
    after: i64,
}

impl fmt::Debug for Inputs {
    /// Without what is read ahead: it is an application's data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inputs").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Iterator for Inputs {
    type Item = Result<Input>;

    fn next(&mut self) -> Option<Result<Input>> {
        loop {
            if let Some(came) = self.page.pop_front() {
                return Some(Ok(came.into()));
            }
            let needed = *self.needed.front()?;
            let read = self.client.reader().snapshot("cannot read the inputs", |conn| match needed {
                Needed::Job(id) => read::outcome(conn, id).map(|came| came.into_iter().collect::<Vec<_>>()),
                Needed::Stage(stage) => read::outcomes(conn, stage, self.after, INPUTS_CHUNK),
            });
            match read {
                Err(error) => return Some(Err(error)),
                Ok(page) => {
                    match page.last() {
                        Some(last) if matches!(needed, Needed::Stage(_)) => self.after = last.id.raw(),
                        _ => {
                            self.needed.pop_front();
                            self.after = 0;
                        }
                    }
                    self.page = page.into();
                }
            }
        }
    }
}

impl Context {
    /// The workflow that the job is of.
    ///
    /// # Errors
    /// `Storage` if the file cannot be read.
    pub fn workflow(&self) -> Result<Option<WorkflowId>> {
        let Some(own) = self.claim().place.flow else { return Ok(None) };
        let whole = self.client().reader().snapshot("cannot read the workflow", |conn| flow::workflow_of(conn, own))?;
        Ok(whole.map(WorkflowId::from_raw))
    }

    /// The result of the one job that this one has waited for.
    ///
    /// ```
    /// use jobmill::{Context, Failure, Payload};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct Sum;
    /// # impl Payload for Sum { const KIND: &'static str = "sum"; }
    ///
    /// fn sum(_: Sum, ctx: &Context) -> Result<u64, Failure> {
    ///     let numbers: Vec<u64> = ctx.input()?;
    ///     Ok(numbers.iter().sum())
    /// }
    /// ```
    ///
    /// # Errors
    /// A failure for good if it has waited for none, for several or for a stage, or if what it waited for has no such result.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        match &*self.needed()? {
            [Needed::Job(id)] => self.result_of(*id),
            _ => Err(Failure::fatal("input: the job must have waited for one other job, and for no stage")),
        }
    }

    /// The result of the job of this name in the same workflow, which has ended.
    ///
    /// # Errors
    /// A failure for good if there is no such job, or if it has no such result.
    pub fn input_of<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        match self.named(name)? {
            Needed::Job(id) => self.result_of(id),
            Needed::Stage(_) => {
                Err(Failure::fatal(format_args!("input_of: {name} is a stage, whose results inputs_of gives")))
            }
        }
    }

    /// What came of all jobs that this one has waited for, of stages each of their jobs, in the order of their ids. It holds
    /// a page in memory.
    ///
    /// ```
    /// use jobmill::{Context, Failure, Payload, Status};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct Sum;
    /// # impl Payload for Sum { const KIND: &'static str = "sum"; }
    ///
    /// fn sum(_: Sum, ctx: &Context) -> Result<u64, Failure> {
    ///     let mut sum = 0;
    ///     for part in ctx.inputs()? {
    ///         let part = part?;
    ///         if part.status == Status::Completed {
    ///             sum += part.result::<u64>()?;
    ///         }
    ///     }
    ///     Ok(sum)
    /// }
    /// ```
    ///
    /// # Errors
    /// A failure if the file cannot be read.
    pub fn inputs(&self) -> Result<Inputs, Failure> {
        Ok(self.inputs_from(self.needed()?))
    }

    /// What came of the jobs of the stage of this name in the same workflow, or of the job.
    ///
    /// # Errors
    /// A failure for good if there is no such stage or job.
    pub fn inputs_of(&self, name: &str) -> Result<Inputs, Failure> {
        Ok(self.inputs_from(vec![self.named(name)?]))
    }

    fn inputs_from(&self, needed: Vec<Needed>) -> Inputs {
        Inputs { client: self.client().clone(), needed: needed.into(), page: VecDeque::new(), after: 0 }
    }

    fn needed(&self) -> Result<Vec<Needed>> {
        let (id, own) = (self.id(), self.claim().place.flow);
        self.client().reader().snapshot("cannot read the inputs", |conn| read::needs_of(conn, id, own))
    }

    fn named(&self, name: &str) -> Result<Needed, Failure> {
        let found = match self.claim().place.flow {
            Some(own) => {
                self.client().reader().snapshot("cannot read the workflow", |conn| read::named(conn, own, name))?
            }
            None => None,
        };
        found.ok_or_else(|| Failure::fatal(format_args!("nothing in the job's workflow has the name {name:?}")))
    }

    fn result_of<T: DeserializeOwned>(&self, id: JobId) -> Result<T, Failure> {
        let came = self.client().reader().snapshot("cannot read the input", |conn| read::outcome(conn, id))?;
        let Some(came) = came else { return Err(Failure::fatal(format_args!("the job {id} was deleted"))) };
        Input::from(came).result().map_err(Failure::fatal)
    }

    /// Adds jobs to the stage that this job is of, or to its workflow if it is of none, so that what follows waits for them
    /// too. They are written in slices of a thousand. If this attempt is cut off and another one adds them again, they are
    /// there twice, unless they have [unique keys](crate::Unique).
    ///
    /// # Errors
    /// `Conflict` if the job is of no workflow, or if that was cancelled or has ended, which is
    /// [permanent](Error::is_permanent); `Conflict` if this attempt does not count any more; `Invalid` if a job breaks a rule.
    pub fn enqueue_in_workflow<J: Into<NewJob>>(&self, jobs: impl IntoIterator<Item = J>) -> Result<Vec<Enqueued>> {
        self.add(None, jobs)
    }

    /// Adds jobs to a stage of this job's workflow, by its name. It must not have ended: while a stage waits for this very
    /// job, it is open.
    ///
    /// # Errors
    /// Those of [`Context::enqueue_in_workflow`]; `NotFound` if the workflow has no such stage, which is permanent, too.
    pub fn enqueue_in_stage<J: Into<NewJob>>(
        &self,
        stage: &str,
        jobs: impl IntoIterator<Item = J>,
    ) -> Result<Vec<Enqueued>> {
        self.add(Some(stage), jobs)
    }

    fn add<J: Into<NewJob>>(&self, stage: Option<&str>, jobs: impl IntoIterator<Item = J>) -> Result<Vec<Enqueued>> {
        let mut jobs = jobs.into_iter().map(|job| {
            let job: NewJob = job.into();
            workflow::admit_member(job, None, true, self.client().caller())
        });
        let mut added = Vec::new();
        loop {
            let slice: Vec<NewJob> = jobs.by_ref().take(ADD_JOBS).collect::<Result<_>>()?;
            let is_last = slice.len() < ADD_JOBS;
            let (claim, stage) = (self.claim().clone(), stage.map(str::to_owned));
            added.extend(self.client().desk().call(move |turn| {
                slice.iter().try_for_each(|job| knows_limits(turn, job))?;
                let storage = |error| storage_error("cannot add to the workflow", error);
                let result = turn.add_to_workflow(&claim, stage.as_deref(), &slice).map_err(storage)?;
                result.map_err(|not| match not {
                    NotAdded::Fenced => fenced(&claim),
                    NotAdded::NoWorkflow => {
                        Error::permanent(ErrorKind::Conflict, format!("{} is of no workflow", claim.job.id))
                    }
                    NotAdded::NoStage => {
                        let stage = stage.unwrap_or_default();
                        Error::permanent(ErrorKind::NotFound, format!("the workflow has no stage {stage:?}"))
                    }
                    NotAdded::Closed => {
                        Error::permanent(ErrorKind::Conflict, "the stage has ended, or the workflow was cancelled")
                    }
                })
            })?);
            if is_last {
                return Ok(added);
            }
        }
    }

    /// Does a step of the work once: its value is durable when this returns, and an attempt after this one gets that value
    /// and does not do the step again, whatever cut this one off. A step that fails keeps nothing. Effects outside the file
    /// may be done twice all the same, if the process dies between the effect and the keeping.
    ///
    /// Each step of an attempt has a name of its own: in a loop, say which by `format!`. The order may change between
    /// attempts. A step does not begin if the job was cancelled or its time is up.
    ///
    /// ```
    /// use jobmill::{Context, Failure, Payload};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct Order { amount: u64 }
    /// # impl Payload for Order { const KIND: &'static str = "order"; }
    /// # fn charge(amount: u64) -> Result<String, std::io::Error> { Ok(format!("receipt for {amount}")) }
    /// # fn mail(receipt: &str) -> Result<(), std::io::Error> { let _ = receipt; Ok(()) }
    ///
    /// fn order(job: Order, ctx: &Context) -> Result<(), Failure> {
    ///     let receipt: String = ctx.step("charge", || charge(job.amount))?;
    ///     ctx.step("mail", || mail(&receipt))
    /// }
    /// ```
    ///
    /// # Errors
    /// The failure of `work`; a failure for good if the name breaks the rule for names or was used before in this attempt, if
    /// there are more than ten thousand, or if the value does not serialize or is too long; a failure if the value cannot be
    /// written, or if this attempt does not count any more.
    pub fn step<T, E>(&self, name: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, Failure>
    where
        T: Serialize + DeserializeOwned,
        E: Into<Failure>,
    {
        check_name("step", name).map_err(Failure::fatal)?;
        self.begin_step(name, STEPS_MAX).map_err(|full| {
            Failure::fatal(match full {
                Some(max) => format!("step: an attempt must have no more than {max} steps"),
                None => format!("step: {name:?} must be done once in an attempt"),
            })
        })?;
        let claim = self.claim().clone();
        // The first claim of a job has none before it that could have left anything.
        if claim.fence > 1 {
            let id = claim.job.id;
            let known = self.client().reader().snapshot("cannot read the step", |conn| read::step(conn, id, name))?;
            if let Some(value) = known {
                return serde_json::from_slice(&value).map_err(|error| {
                    Failure::fatal(format_args!("step: what {name:?} has kept is no such value: {error}"))
                });
            }
        }
        self.check()?;
        let output = work().map_err(Into::into)?;
        let value = serde_json::to_vec(&output)
            .map_err(|error| Failure::fatal(format_args!("step: the value of {name:?} does not serialize: {error}")))?;
        check_size(&format!("step: the value of {name:?}"), value.len(), NewJob::MAX_PAYLOAD_BYTES)
            .map_err(Failure::fatal)?;
        let name = name.to_owned();
        self.client().desk().call(move |turn| {
            let storage = |error| storage_error("cannot keep the step", error);
            if !turn.holds(claim.job.id, claim.fence).map_err(storage)? {
                return Err(fenced(&claim));
            }
            turn.keep_step(claim.job.id, &name, &value).map_err(storage)
        })?;
        Ok(output)
    }
}
