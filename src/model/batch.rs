//! LLM batches as they stand: their items, the batches at providers that hold them, what came of all that.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::model::contents::{Told, debug_with_sizes};
use crate::model::id::{BatchItemId, BatchRequestId, JobId};
use crate::model::job::{Job, Status};
use crate::model::time::Timestamp;
use crate::model::usage::Usage;
use crate::model::words::words;

/// How many items of a batch stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ItemCounts {
    /// Wait to be sent, or to be sent again.
    pub waiting: u64,
    /// Are at a provider, or about to be.
    pub sent: u64,
    /// Have a reply that the step is at.
    pub stepping: u64,
    /// Are done.
    pub completed: u64,
    /// Failed for good.
    pub failed: u64,
    /// Were cancelled.
    pub cancelled: u64,
    /// Were never run, for the time was up, as often as they were sent.
    pub expired: u64,
}

impl ItemCounts {
    /// All items.
    pub fn total(&self) -> u64 {
        self.open() + self.ended()
    }

    /// Those that have not come to their end.
    pub fn open(&self) -> u64 {
        self.waiting + self.sent + self.stepping
    }

    /// Those that have.
    pub fn ended(&self) -> u64 {
        self.completed + self.failed + self.cancelled + self.expired
    }
}

/// What was spent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Spent {
    /// Tokens.
    pub usage: Usage,
    /// What is known to have been paid, in billionths of the currency's unit.
    pub cost_nanos: i64,
    /// Results whose cost is not known, for the price table lacks their model, the provider did not count, or it does not
    /// know any more what it has run.
    pub unpriced: u64,
    /// The currency, if anything has a price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// The version of the price table that was last reckoned with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<String>,
}

/// An LLM batch: its job, and what became of its items.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Batch {
    /// Its job, whose status is the batch's.
    pub job: Job,
    /// The provider of the items that name none.
    pub provider: String,
    /// The step that is given each reply.
    pub step: Option<String>,
    /// How many requests an item may make one after the other.
    pub max_steps: u32,
    /// How often each request may be sent.
    pub max_attempts: u32,
    /// The most that it may cost, in billionths of the currency's unit.
    pub budget_nanos: Option<i64>,
    /// How many items stand where.
    pub items: ItemCounts,
    /// What was spent on it so far, also on results that came twice or for nothing.
    pub spent: Spent,
    /// Results that belong to no item, or came when it had one already.
    pub strays: u64,
}

/// What the step of an item is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StepStatus {
    /// It waits for a reply.
    Paused,
    /// It has a reply and is at it.
    Running,
    /// It has come to its end.
    Completed,
}

impl StepStatus {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Paused, Self::Running, Self::Completed];

    /// The status as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Running => "running",
            Self::Completed => "completed",
        }
    }
}

words!(StepStatus, "step_status");

/// One item of a batch.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BatchItemRecord {
    /// Its id, and its place in the order of the batch.
    pub id: BatchItemId,
    /// The batch.
    pub batch: JobId,
    /// The caller's own key.
    pub key: String,
    /// How its request is doing: created while it waits, pending while its provider batch is made, running while that is
    /// at the provider and while the step is at it.
    pub status: Status,
    /// How its step is doing.
    pub step_status: StepStatus,
    /// How many requests came before this one.
    pub step_number: u32,
    /// How often this request has been sent.
    pub attempt: u32,
    /// The provider batch that holds it, or held it last.
    pub request: Option<BatchRequestId>,
    /// To whom it goes.
    pub provider: String,
    /// The model.
    pub model: String,
    /// The agent.
    pub agent_id: Option<String>,
    /// Why the model stopped, as a word, once it has replied at this step.
    pub finish: Option<String>,
    /// What kind of failure the last one is, as a word.
    pub error_class: Option<String>,
    /// What went wrong the last time.
    pub error: Option<String>,
    /// Tokens of all its requests.
    pub usage: Usage,
    /// What they cost, in billionths of the currency's unit. `None` if that is not known of each.
    pub cost_nanos: Option<i64>,
}

/// What an item came to.
#[derive(Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ItemResult {
    /// The caller's own key.
    pub key: String,
    /// Its status.
    pub status: Status,
    /// The last reply, or what the step made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Box<RawValue>>,
    /// What kind of failure it is, as a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_class: Option<String>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why the model stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// How many requests it made.
    pub steps: u32,
    /// How often the last of them was sent.
    pub attempts: u32,
    /// Tokens of all its requests.
    #[serde(default)]
    pub usage: Usage,
    /// What they cost, in billionths of the currency's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_nanos: Option<i64>,
}

debug_with_sizes!(ItemResult { key, status, error_class, error, finish, steps, attempts, usage, cost_nanos; output });

/// Where a batch at a provider stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RequestStatus {
    /// Its items are being gathered.
    Planning,
    /// It is about to be sent.
    Submitting,
    /// It was sent, and nobody knows yet whether it arrived. It is looked for, never sent again blindly.
    Unknown,
    /// The provider has it.
    Running,
    /// It has ended at the provider, and its results are being read.
    Ended,
    /// All its results are in the file.
    Harvested,
    /// Nothing of it was run, or nobody can tell what. Its items have gone elsewhere, or have failed.
    Refused,
}

impl RequestStatus {
    /// Every status, in the order of a life.
    pub const ALL: [Self; 7] =
        [Self::Planning, Self::Submitting, Self::Unknown, Self::Running, Self::Ended, Self::Harvested, Self::Refused];

    /// The status as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Submitting => "submitting",
            Self::Unknown => "unknown",
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Harvested => "harvested",
            Self::Refused => "refused",
        }
    }

    /// Whether nothing will happen to it any more.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Harvested | Self::Refused)
    }
}

crate::model::words::words!(RequestStatus, "status");

/// One batch at a provider.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BatchRequest {
    /// Its id.
    pub id: BatchRequestId,
    /// The batch whose items it holds.
    pub batch: JobId,
    /// Where it stands.
    pub status: RequestStatus,
    /// The provider's name.
    pub provider: String,
    /// The account, told by its fingerprint.
    pub account: String,
    /// The model, if all its items are for one.
    pub model: Option<String>,
    /// How many items it was made of.
    pub items: u64,
    /// How many bytes its body has.
    pub bytes: u64,
    /// The estimated tokens of its input.
    pub tokens: u64,
    /// The provider's id of it.
    pub remote_id: Option<String>,
    /// The provider's own word for where it stands.
    pub remote_status: Option<String>,
    /// How often its creation was sent.
    pub attempt: u32,
    /// When its creation was last sent.
    pub sent_at: Option<Timestamp>,
    /// When the provider was last asked about it.
    pub polled_at: Option<Timestamp>,
    /// When it will be asked next.
    pub next_poll_at: Option<Timestamp>,
    /// When it was seen to have ended.
    pub ended_at: Option<Timestamp>,
    /// When all its results were in the file.
    pub harvested_at: Option<Timestamp>,
    /// When somebody asked for its cancellation.
    pub cancel_requested_at: Option<Timestamp>,
    /// How many of its requests had succeeded and failed when the provider was last asked, if it tells.
    pub progress: Option<(u64, u64)>,
    /// What went wrong last.
    pub error: Option<String>,
    /// The provider's last answer about it, JSON.
    pub latest: Option<String>,
}

/// A reply that a step is to decide about.
#[derive(Clone)]
#[non_exhaustive]
pub struct BatchReply {
    /// The item.
    pub item: BatchItemId,
    /// The batch.
    pub batch: JobId,
    /// The caller's own key.
    pub key: String,
    /// The agent.
    pub agent_id: Option<String>,
    /// How many requests came before this one.
    pub step_number: u32,
    /// The request, JSON.
    pub request: Box<RawValue>,
    /// The model's reply, JSON in the shape of its provider.
    pub reply: Box<RawValue>,
    /// What the caller or the step before gave.
    pub state: Option<Box<RawValue>>,
}

debug_with_sizes!(BatchReply { item, batch, key, agent_id, step_number; request, reply, state });

impl BatchReply {
    /// The reply as a value.
    ///
    /// # Errors
    /// `Invalid` if it does not fit the type.
    pub fn reply<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(self.reply.get()).map_err(|error| Error::invalid("reply", error))
    }

    /// The request as a value.
    ///
    /// # Errors
    /// `Invalid` if it does not fit the type.
    pub fn request<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(self.request.get()).map_err(|error| Error::invalid("request", error))
    }

    /// The state as a value. `None` if there is none.
    ///
    /// # Errors
    /// `Invalid` if it does not fit the type.
    pub fn state<T: serde::de::DeserializeOwned>(&self) -> Result<Option<T>> {
        let state = self.state.as_ref().map(|state| serde_json::from_str(state.get()));
        state.transpose().map_err(|error| Error::invalid("state", error))
    }
}

/// What a step decides.
#[derive(Clone)]
#[non_exhaustive]
pub enum Step {
    /// The item is done, with the reply as its output.
    Done,
    /// The item is done, with this as its output.
    DoneWith(Value),
    /// The item goes on with another request, and the next step is given the state.
    Continue {
        /// The next request's body, a JSON object. It goes where the first went; if it names another model, it is reckoned
        /// and put together with others by that, unless the item's was set by [`BatchItem::model`](crate::BatchItem::model).
        /// One that breaks a rule for [items](crate::BatchItem) fails its item.
        request: Value,
        /// What the next step is given, up to 16 MiB of JSON.
        state: Option<Value>,
    },
    /// The item failed, for this reason.
    Fail(String),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("Done"),
            Self::DoneWith(output) => f.debug_tuple("DoneWith").field(&Told(output)).finish(),
            Self::Continue { request, state } => {
                f.debug_struct("Continue").field("request", &Told(request)).field("state", &Told(state)).finish()
            }
            Self::Fail(reason) => f.debug_tuple("Fail").field(reason).finish(),
        }
    }
}

impl Step {
    /// The item goes on with another request.
    pub fn request(request: Value) -> Self {
        Self::Continue { request, state: None }
    }
}

/// What one cycle of polls came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PollCycle {
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took, in microseconds.
    pub elapsed_us: u64,
    /// Provider batches that were asked about.
    pub total: u64,
    /// The same by provider.
    pub providers: std::collections::BTreeMap<String, u64>,
    /// Calls that were made for it.
    pub calls: u64,
    /// Of the batches, those that run still.
    pub running: u64,
    /// Those that were seen to have ended.
    pub completed: u64,
    /// Those that could not be asked about, and are asked again later.
    pub failed: u64,
    /// Items that results were written for since the cycle before.
    pub items_updated: u64,
}
