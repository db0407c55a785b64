//! The delivery of a callback: what its job carries.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::model::attempt::Attempt;
use crate::model::contents::debug_with_sizes;
use crate::model::id::JobId;
use crate::model::job::Status;
use crate::model::new_job::{NewJob, Payload};
use crate::model::rules::SYSTEM_QUEUE;
use crate::model::time::Timestamp;

/// The input of the job that delivers a callback.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Delivery {
    /// The job that it tells of.
    pub(crate) job_id: JobId,
    /// By what the receiver knows a repeat. None: the id of the delivering job itself.
    pub(crate) message_id: Option<String>,
    pub(crate) url: String,
    /// What is sent, as it stood when the job ended.
    pub(crate) body: Box<RawValue>,
}

debug_with_sizes!(Delivery { job_id, message_id, url; body });

impl Payload for Delivery {
    const KIND: &'static str = "jobmill.callback";

    fn defaults(job: NewJob) -> NewJob {
        job.queue(SYSTEM_QUEUE).max_attempts(Self::ATTEMPTS_MAX)
    }
}

impl Delivery {
    /// How often a delivery may be tried at the very most. The engine's settings say how often it is.
    pub(crate) const ATTEMPTS_MAX: u32 = 100;

    /// The tag by which the deliveries of a job are found.
    pub(crate) fn tag(job: JobId) -> String {
        format!("callback:{job}")
    }

    /// By what the receiver knows a repeat, if this job delivers it.
    pub(crate) fn message_id(&self, delivering: JobId) -> String {
        self.message_id.clone().unwrap_or_else(|| delivering.to_string())
    }

    /// Of which end of its job it tells.
    pub(crate) fn end(&self) -> Option<End> {
        serde_json::from_str(self.body.get()).ok()
    }

    /// The job that delivers this.
    pub(crate) fn new_job(&self) -> NewJob {
        NewJob::of(self).tags([Self::tag(self.job_id)])
    }
}

/// An end of a job, of which there may have been others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct End {
    pub(crate) status: Status,
    pub(crate) completed_at: Timestamp,
}

/// What one try of a callback came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Try {
    /// The job that the callback tells of.
    pub(crate) job_id: JobId,
    pub(crate) sent_at: Timestamp,
    /// What the receiver answered, if it answered.
    pub(crate) status_code: Option<u16>,
    /// Why it counts for nothing, if it does.
    pub(crate) error: Option<String>,
}

/// One delivery of a job's callback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CallbackDelivery {
    /// The id of the delivering job, which can be cancelled and retried like any other.
    pub id: JobId,
    /// Where that job stands: completed once the receiver has accepted it.
    pub status: Status,
    /// Where it goes.
    pub url: String,
    /// The `webhook-id` that the receiver sees.
    pub message_id: String,
    /// What the receiver answered when it accepted it.
    pub status_code: Option<u16>,
    /// Every try, with its error.
    pub attempts: Vec<Attempt>,
}
