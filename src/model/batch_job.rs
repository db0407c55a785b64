//! The jobs that take batches on their way: what each carries.

use serde::{Deserialize, Serialize};

use crate::model::id::{BatchItemId, BatchRequestId, JobId};
use crate::model::job::Status;
use crate::model::new_job::{NewJob, Payload};
use crate::model::retry::Backoff;
use crate::model::rules::SYSTEM_QUEUE;
use crate::model::unique::Unique;

/// Puts items that wait into requests.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct PlanBatch {
    pub(crate) batch: JobId,
}

/// Sends a request, or finds out whether it was sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct SendRequest {
    pub(crate) request: BatchRequestId,
}

/// Reads the results of a request that has ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct HarvestRequest {
    pub(crate) request: BatchRequestId,
}

/// Runs the items of a request at a local provider, and reads its results.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct RunRequest {
    pub(crate) request: BatchRequestId,
}

/// Deletes what a provider keeps of a request that is harvested.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct CleanRequest {
    pub(crate) request: BatchRequestId,
}

/// Cancels what is open of a batch.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct CancelBatch {
    pub(crate) batch: JobId,
}

/// Lets items of an ended batch go once more.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct RetryBatch {
    pub(crate) batch: JobId,
}

/// Ends a batch of which so much has failed that its summary takes a while.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct EndBatch {
    pub(crate) batch: JobId,
}

/// Runs the step of an item that has a reply.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct StepItem {
    pub(crate) item: BatchItemId,
    pub(crate) step_number: u32,
}

/// The kinds that batches need begin with this.
pub(crate) const BATCH_KINDS: &str = "jobmill.batch.";
/// The one that takes as long as what a local provider runs.
pub(crate) const LOCAL_KIND: &str = "jobmill.batch.run";

impl Payload for PlanBatch {
    const KIND: &'static str = "jobmill.batch.plan";

    fn defaults(job: NewJob) -> NewJob {
        untiring(job)
    }
}

impl Payload for SendRequest {
    const KIND: &'static str = "jobmill.batch.send";

    fn defaults(job: NewJob) -> NewJob {
        untiring(job)
    }
}

impl Payload for HarvestRequest {
    const KIND: &'static str = "jobmill.batch.harvest";

    fn defaults(job: NewJob) -> NewJob {
        untiring(job)
    }
}

impl Payload for RunRequest {
    const KIND: &'static str = LOCAL_KIND;

    fn defaults(job: NewJob) -> NewJob {
        untiring(job)
    }
}

impl Payload for CleanRequest {
    const KIND: &'static str = "jobmill.batch.clean";

    /// What cannot be deleted for days, the provider deletes itself in the end.
    fn defaults(job: NewJob) -> NewJob {
        untiring(job).max_attempts(100)
    }
}

impl Payload for CancelBatch {
    const KIND: &'static str = "jobmill.batch.cancel";

    fn defaults(job: NewJob) -> NewJob {
        untiring(job)
    }
}

impl Payload for RetryBatch {
    const KIND: &'static str = "jobmill.batch.retry";

    fn defaults(job: NewJob) -> NewJob {
        untiring(job)
    }
}

impl Payload for EndBatch {
    const KIND: &'static str = "jobmill.batch.end";

    fn defaults(job: NewJob) -> NewJob {
        untiring(job)
    }
}

/// A batch that was paid for is never given up, however often something fails on its way.
fn untiring(job: NewJob) -> NewJob {
    let backoff = Backoff::exponential(std::time::Duration::from_secs(2)).max(std::time::Duration::from_secs(600));
    job.queue(SYSTEM_QUEUE).max_attempts(NewJob::MAX_ATTEMPTS).backoff(backoff.jitter(0.2))
}

impl PlanBatch {
    /// The job that does it, of which no second one waits.
    pub(crate) fn new_job(&self) -> NewJob {
        waiting_once(NewJob::of(self), self.batch)
    }
}

impl PlanBatch {
    /// The key of which no second one waits.
    pub(crate) fn scoped_key(&self) -> String {
        scoped_key(&self.new_job())
    }
}

impl SendRequest {
    /// The key of which there is no second one.
    pub(crate) fn scoped_key(&self) -> String {
        scoped_key(&self.new_job())
    }

    /// The job that does it, of which there is no second one.
    pub(crate) fn new_job(&self) -> NewJob {
        NewJob::of(self).unique(Unique::key(self.request.to_string()))
    }
}

impl HarvestRequest {
    /// The job that does it, of which there is no second one.
    pub(crate) fn new_job(&self) -> NewJob {
        NewJob::of(self).unique(Unique::key(self.request.to_string()))
    }
}

impl RunRequest {
    /// The job that does it, of which there is no second one.
    pub(crate) fn new_job(&self) -> NewJob {
        NewJob::of(self).unique(Unique::key(self.request.to_string()))
    }
}

impl CleanRequest {
    /// The job that does it, of which there is no second one.
    pub(crate) fn new_job(&self) -> NewJob {
        NewJob::of(self).unique(Unique::key(self.request.to_string()))
    }
}

impl CancelBatch {
    /// The job that does it, of which no second one waits.
    pub(crate) fn new_job(&self) -> NewJob {
        waiting_once(NewJob::of(self), self.batch)
    }
}

impl EndBatch {
    /// The job that does it, of which no second one waits.
    pub(crate) fn new_job(&self) -> NewJob {
        waiting_once(NewJob::of(self), self.batch)
    }
}

impl RetryBatch {
    /// The job that does it, of which no second one waits.
    pub(crate) fn new_job(&self) -> NewJob {
        waiting_once(NewJob::of(self), self.batch)
    }
}

fn scoped_key(job: &NewJob) -> String {
    let kind = job.kind.as_deref().unwrap_or_default();
    job.unique.as_ref().map(|unique| unique.scoped_key(&job.queue, kind, None)).unwrap_or_default()
}

/// While one runs, another may wait, for it may have looked already at what has changed since.
fn waiting_once(job: NewJob, batch: JobId) -> NewJob {
    job.unique(Unique::key(batch.to_string()).while_in([Status::Created, Status::Pending]))
}
