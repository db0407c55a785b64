//! A job that is about to be enqueued: what it carries, its options, and the rules for them.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::callback::{MAX_URL_BYTES, check_url};
use crate::model::contents::debug_with_sizes;
use crate::model::id::JobId;
use crate::model::job::{Priority, Status};
use crate::model::job_type::JobType;
use crate::model::limit::LimitUse;
use crate::model::need::{Need, OnFailure};
use crate::model::retry::Backoff;
use crate::model::rules::{self, check_duration, check_kind, check_name, check_queue, check_size};
use crate::model::stop_reason::StopReason;
use crate::model::time::Timestamp;
use crate::model::unique::Unique;

/// The input of a job: a type that names its kind.
///
/// Jobs are stored as JSON, and may be run by a later version of the program: give new fields a `#[serde(default)]`. A
/// payload that does not deserialize is an error like others, tried again after the backoff, for another process or the next
/// version may well read it.
///
/// ```
/// use jobmill::{NewJob, Payload, Priority};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct SendInvoice {
///     customer: u64,
/// }
///
/// impl Payload for SendInvoice {
///     const KIND: &'static str = "invoice.send";
///
///     fn defaults(job: NewJob) -> NewJob {
///         job.queue("mail").priority(Priority::High).max_attempts(5)
///     }
/// }
/// ```
pub trait Payload: Serialize + DeserializeOwned {
    /// The name under which handlers of this type are registered, and which stands in the database: it must stay the
    /// same as long as jobs of it are stored. 1 to 128 bytes, no control characters.
    const KIND: &'static str;

    /// Sets what every job of this kind has, unless its enqueueing says otherwise. Defaults to nothing.
    fn defaults(job: NewJob) -> NewJob {
        job
    }
}

/// When a job may first run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Now,
    After(Duration),
    At(Timestamp),
}

impl When {
    /// The moment that is meant, or none for the moment of creation itself.
    pub(crate) fn resolve(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Now | Self::After(Duration::ZERO) => None,
            Self::After(delay) => Some(now.saturating_add(delay)),
            Self::At(at) => Some(at),
        }
    }
}

/// A job that is about to be enqueued, with its options. A reference to a [`Payload`] becomes one by itself.
///
/// Setters never fail; what is wrong is said by the enqueueing, before anything is written.
///
/// ```
/// # use jobmill::{NewJob, Payload};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Resize { path: String }
/// # impl Payload for Resize { const KIND: &'static str = "resize"; }
/// use std::time::Duration;
///
/// let later = NewJob::of(&Resize { path: "cat.jpg".into() })
///     .queue("pictures")
///     .delay(Duration::from_secs(60))
///     .tags(["nightly"]);
/// # let _ = later;
/// ```
#[derive(Clone, PartialEq)]
#[must_use = "a new job does nothing until it is enqueued"]
pub struct NewJob {
    /// None: the job is tracked.
    pub(crate) kind: Option<Cow<'static, str>>,
    pub(crate) payload: Result<Vec<u8>, String>,
    pub(crate) job_type: JobType,
    pub(crate) background: bool,
    /// The status that a tracked job begins with.
    pub(crate) status: Option<Status>,
    pub(crate) stop_reason: Option<StopReason>,
    pub(crate) queue: Cow<'static, str>,
    pub(crate) priority: Priority,
    pub(crate) run_at: When,
    pub(crate) expires_at: Option<When>,
    pub(crate) max_attempts: u32,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) user_id: Option<String>,
    pub(crate) organization_id: Option<String>,
    pub(crate) agent_id: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) metadata: Option<Result<Map<String, Value>, String>>,
    pub(crate) request_config: Option<Result<Value, String>>,
    pub(crate) callback_url: Option<String>,
    /// Who creates it. The client knows.
    pub(crate) created_by: Option<String>,
    pub(crate) unique: Option<Unique>,
    pub(crate) limits: Vec<LimitUse>,
    pub(crate) weight: u32,
    pub(crate) cost: u32,
    /// The workflow, or the stage of one, that counts it.
    pub(crate) flow: Option<i64>,
    pub(crate) needs: Vec<Need>,
    /// Its payload is the result of the job that it needs.
    pub(crate) from_previous: bool,
}

debug_with_sizes!(NewJob {
    kind, job_type, background, status, stop_reason, queue, priority, run_at, expires_at, max_attempts, backoff,
    timeout, user_id, organization_id, agent_id, tags, metadata, request_config, callback_url, created_by, unique,
    limits, weight, cost, flow, needs, from_previous;
    payload
});

impl<P: Payload> From<&P> for NewJob {
    fn from(payload: &P) -> Self {
        Self::of(payload)
    }
}

impl NewJob {
    /// The longest payload, in bytes of JSON.
    pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;
    /// The longest metadata, in bytes of JSON.
    pub const MAX_METADATA_BYTES: usize = 1 << 20;
    /// The longest `source_id` in the metadata, by which jobs can be listed. In bytes.
    pub const MAX_SOURCE_ID_BYTES: usize = 1024;
    /// The longest callback URL, in bytes.
    pub const MAX_URL_BYTES: usize = MAX_URL_BYTES;
    /// The longest name: kind, queue, tag, user, agent. In bytes.
    pub const MAX_NAME_BYTES: usize = rules::MAX_NAME_BYTES;
    /// The longest unique key, in bytes.
    pub const MAX_KEY_BYTES: usize = rules::MAX_KEY_BYTES;
    /// How many tags a job may bear.
    pub const MAX_TAGS: usize = 32;
    /// How many jobs a job may wait for.
    pub const MAX_NEEDS: usize = 1000;
    /// How many limits a job may count against.
    pub const MAX_LIMITS: usize = 8;
    /// The greatest weight and cost of a job.
    pub const MAX_WEIGHT: u32 = 1_000_000_000;
    /// How many attempts a job may be given.
    pub const MAX_ATTEMPTS: u32 = 1_000_000;
    /// The longest delay, timeout, period and time to expiry: a hundred years.
    pub const MAX_DURATION: Duration = rules::MAX_DURATION;

    /// A job with this payload and the defaults of its type.
    pub fn of<P: Payload>(payload: &P) -> Self {
        P::defaults(Self::json(P::KIND, payload))
    }

    /// A job of any kind with any payload, for callers that know no type.
    pub fn json(kind: impl Into<Cow<'static, str>>, payload: &impl Serialize) -> Self {
        Self {
            kind: Some(kind.into()),
            payload: serde_json::to_vec(payload).map_err(|error| error.to_string()),
            ..Self::tracked()
        }
    }

    /// A job whose work happens elsewhere: no handler runs it, and whoever does the work sets its status by
    /// [`Client::update_status`](crate::Client::update_status). It begins as [`Status::Created`].
    ///
    /// ```
    /// use jobmill::{JobType, NewJob, Status};
    ///
    /// let run = NewJob::tracked().job_type(JobType::Run).agent("agent-7").status(Status::Running);
    /// # let _ = run;
    /// ```
    pub fn tracked() -> Self {
        Self {
            kind: None,
            payload: Ok(Vec::new()),
            job_type: JobType::Job,
            background: false,
            status: None,
            stop_reason: None,
            queue: Cow::Borrowed("default"),
            priority: Priority::Default,
            run_at: When::Now,
            expires_at: None,
            max_attempts: 10,
            backoff: None,
            timeout: None,
            user_id: None,
            organization_id: None,
            agent_id: None,
            tags: Vec::new(),
            metadata: None,
            request_config: None,
            callback_url: None,
            created_by: None,
            unique: None,
            limits: Vec::new(),
            weight: 1,
            cost: 1,
            flow: None,
            needs: Vec::new(),
            from_previous: false,
        }
    }

    /// A job of this type whose payload is the result of the one job that it follows, set when that one has completed; `null`
    /// if it has none.
    ///
    /// ```
    /// # use jobmill::{NewJob, Payload};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct Draft { text: String }
    /// # impl Payload for Draft { const KIND: &'static str = "draft.send"; }
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
    /// // The handler of `draft.write` gives a `Draft`, which that of `draft.send` takes.
    /// let write = client.enqueue(NewJob::json("draft.write", &"a letter"))?.id();
    /// client.enqueue(NewJob::from_previous::<Draft>().after(write))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_previous<P: Payload>() -> Self {
        let job = Self { kind: Some(Cow::Borrowed(P::KIND)), from_previous: true, ..Self::tracked() };
        P::defaults(job)
    }

    /// Has the job wait for the end of another, and be cancelled if that does not end well. It is
    /// [`Created`](Status::Created) meanwhile. May be called for up to [`NewJob::MAX_NEEDS`] of them.
    pub fn after(self, job: JobId) -> Self {
        self.after_with(job, OnFailure::Cancel)
    }

    /// Has the job wait for the end of another, and says what becomes of it if that does not end well. One that has ended
    /// already is judged at once.
    pub fn after_with(mut self, job: JobId, on_failure: OnFailure) -> Self {
        self.needs.push(Need { job, on_failure });
        self
    }

    /// Sets what sort of thing the job is. Defaults to [`JobType::Job`].
    pub fn job_type(mut self, job_type: JobType) -> Self {
        self.job_type = job_type;
        self
    }

    /// Sets whether the job's caller does not wait for it. Defaults to false.
    pub fn background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// Sets the status that a tracked job begins with, any of the seven. Defaults to [`Status::Created`].
    pub fn status(mut self, status: Status) -> Self {
        self.status = Some(status);
        self
    }

    /// Sets why an agent's run stopped that is recorded afterwards. Defaults to none.
    pub fn stop_reason(mut self, reason: impl Into<StopReason>) -> Self {
        self.stop_reason = Some(reason.into());
        self
    }

    /// Sets the queue. Defaults to `default`.
    pub fn queue(mut self, queue: impl Into<Cow<'static, str>>) -> Self {
        self.queue = queue.into();
        self
    }

    /// Sets the priority. Defaults to [`Priority::Default`].
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Lets the job wait this long first; one that follows others, from their end on. Defaults to no wait.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.run_at = When::After(delay);
        self
    }

    /// Lets the job wait until this moment. One that has passed puts the job before those that came since. Defaults to
    /// the moment of enqueueing.
    pub fn run_at(mut self, at: Timestamp) -> Self {
        self.run_at = When::At(at);
        self
    }

    /// Sets the moment after which the job starts no more, but ends as expired. Defaults to none.
    pub fn expires_at(mut self, at: Timestamp) -> Self {
        self.expires_at = Some(When::At(at));
        self
    }

    /// Sets the time after which the job starts no more, but ends as expired. Defaults to none.
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires_at = Some(When::After(time));
        self
    }

    /// Sets how many attempts the job may have. Defaults to 10.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets the waits between attempts. Defaults to the engine's.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// Sets how long one attempt may take. Defaults to no limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the user whose job it is. Defaults to none.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user_id = Some(user.into());
        self
    }

    /// Sets the organization of its user. Stored, and never used for access. Defaults to none.
    pub fn organization(mut self, organization: impl Into<String>) -> Self {
        self.organization_id = Some(organization.into());
        self
    }

    /// Sets the agent that it belongs to. Defaults to none.
    pub fn agent(mut self, agent: impl Into<String>) -> Self {
        self.agent_id = Some(agent.into());
        self
    }

    /// Sets the words to find it by. Defaults to none.
    pub fn tags<S: Into<String>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Sets what the application wants to know about it: anything that serializes to a JSON object. Jobs can be listed by
    /// its `source_id`. Defaults to none.
    pub fn metadata(mut self, metadata: &impl Serialize) -> Self {
        self.metadata = Some(object(metadata));
        self
    }

    /// Sets with which settings an agent's run was asked for: anything that serializes. Defaults to none.
    pub fn request_config(mut self, config: &impl Serialize) -> Self {
        self.request_config =
            Some(serde_json::to_value(config).map_err(|error| format!("does not serialize: {error}")));
        self
    }

    /// Sets where to tell that the job has ended: an `http` or `https` URL. Defaults to nowhere.
    pub fn callback_url(mut self, url: impl Into<String>) -> Self {
        self.callback_url = Some(url.into());
        self
    }

    /// Keeps a second job like this one away. Defaults to none.
    pub fn unique(mut self, unique: Unique) -> Self {
        self.unique = Some(unique);
        self
    }

    /// Lets the job count against a limit, by name alone or with a key and a cost: it runs when each of its limits lets it.
    /// May be called for up to [`NewJob::MAX_LIMITS`] of them. Defaults to none.
    pub fn limit(mut self, used: impl Into<LimitUse>) -> Self {
        self.limits.push(used.into());
        self
    }

    /// Sets what the job takes of the [capacity](crate::EngineBuilder::capacity) of the engine that runs it, from 1 to
    /// [`NewJob::MAX_WEIGHT`]: memory, cores, whatever the application counts. Defaults to 1.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets what the job takes of the rate of its queue, in tokens, from 0 to [`NewJob::MAX_WEIGHT`]. Defaults to 1.
    pub fn cost(mut self, tokens: u32) -> Self {
        self.cost = tokens;
        self
    }

    /// Checks every rule. The error names the first field that breaks one.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(kind) = &self.kind {
            check_kind(kind)?;
            if self.status.is_some() {
                return Err(Error::invalid("status", "must not be set for a job that a handler runs"));
            }
        }
        check_queue(&self.queue)?;
        match &self.payload {
            Err(error) => {
                return Err(Error::invalid("payload", format_args!("does not serialize: {error}")));
            }
            Ok(payload) => check_size("payload", payload.len(), Self::MAX_PAYLOAD_BYTES)?,
        }
        if !(1..=Self::MAX_ATTEMPTS).contains(&self.max_attempts) {
            return Err(Error::invalid("max_attempts", format_args!("must be from 1 to {}", Self::MAX_ATTEMPTS)));
        }
        if let When::After(delay) = self.run_at {
            check_duration("delay", delay)?;
        }
        if let Some(When::After(time)) = self.expires_at {
            check_duration("expires_in", time)?;
        }
        if let Some(timeout) = self.timeout {
            check_duration("timeout", timeout)?;
            if timeout < Duration::from_micros(1) {
                return Err(Error::invalid("timeout", "must be longer than nothing"));
            }
        }
        if let Some(backoff) = &self.backoff {
            backoff.check()?;
        }
        for (field, name) in
            [("user", &self.user_id), ("agent", &self.agent_id), ("organization", &self.organization_id)]
        {
            if let Some(name) = name {
                check_name(field, name)?;
            }
        }
        if let Some(reason) = &self.stop_reason {
            check_name("stop_reason", reason.as_str())?;
        }
        if let Some(url) = &self.callback_url {
            check_url(url)?;
        }
        if self.tags.len() > Self::MAX_TAGS {
            return Err(Error::invalid("tags", format_args!("must be no more than {}", Self::MAX_TAGS)));
        }
        for tag in &self.tags {
            check_name("tags", tag)?;
        }
        match &self.metadata {
            Some(Err(problem)) => return Err(Error::invalid("metadata", problem)),
            Some(Ok(object)) => check_metadata(object)?,
            None => {}
        }
        match &self.request_config {
            Some(Err(problem)) => return Err(Error::invalid("request_config", problem)),
            Some(Ok(config)) => check_request_config(config)?,
            None => {}
        }
        self.check_limits()?;
        self.check_needs()?;
        if let Some(unique) = &self.unique {
            if unique.key.is_empty() || unique.key.len() > Self::MAX_KEY_BYTES {
                return Err(Error::invalid("unique.key", format_args!("must be 1 to {} bytes", Self::MAX_KEY_BYTES)));
            }
            if unique.statuses == 0 {
                return Err(Error::invalid("unique.while_in", "must name at least one status"));
            }
            if let Some(period) = unique.period {
                check_duration("unique.period", period)?;
            }
        }
        Ok(())
    }
}

impl NewJob {
    fn check_needs(&self) -> Result<()> {
        if self.needs.len() > Self::MAX_NEEDS {
            return Err(Error::invalid("after", format_args!("must be no more than {} jobs", Self::MAX_NEEDS)));
        }
        for (at, need) in self.needs.iter().enumerate() {
            if self.needs[..at].iter().any(|other| other.job == need.job) {
                return Err(Error::invalid("after", format_args!("must name {} once", need.job)));
            }
        }
        if self.kind.is_none() && !self.needs.is_empty() {
            return Err(Error::invalid("after", "must not be set for a job whose work happens elsewhere"));
        }
        Ok(())
    }

    /// Checks what must hold of a job that is enqueued by itself.
    pub(crate) fn check_alone(&self) -> Result<()> {
        if self.from_previous && self.needs.len() != 1 {
            return Err(Error::invalid("from_previous", "must follow one job, whose result it takes"));
        }
        Ok(())
    }

    /// Checks what must hold of a job within a workflow.
    pub(crate) fn check_within(&self) -> Result<()> {
        if !self.needs.is_empty() {
            return Err(Error::invalid("after", "must be said of the names of the workflow, not of its jobs"));
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<()> {
        if self.limits.len() > Self::MAX_LIMITS {
            return Err(Error::invalid("limit", format_args!("must be no more than {}", Self::MAX_LIMITS)));
        }
        for (at, used) in self.limits.iter().enumerate() {
            used.check()?;
            if self.limits[..at].iter().any(|other| other.name == used.name && other.key == used.key) {
                return Err(Error::invalid("limit", format_args!("{} must be named once for one key", used.name)));
            }
        }
        if !(1..=Self::MAX_WEIGHT).contains(&self.weight) {
            return Err(Error::invalid("weight", format_args!("must be from 1 to {}", Self::MAX_WEIGHT)));
        }
        if self.cost > Self::MAX_WEIGHT {
            return Err(Error::invalid("cost", format_args!("must be no more than {}", Self::MAX_WEIGHT)));
        }
        if self.kind.is_none() && (!self.limits.is_empty() || self.weight != 1 || self.cost != 1) {
            return Err(Error::invalid("limit", "must not be set for a job whose work happens elsewhere"));
        }
        Ok(())
    }
}

/// The JSON object that a value serializes to.
pub(crate) fn object(value: &impl Serialize) -> Result<Map<String, Value>, String> {
    match serde_json::to_value(value) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("must be a JSON object".to_owned()),
        Err(error) => Err(format!("does not serialize: {error}")),
    }
}

/// By what jobs with this metadata are found: its `source_id` as text.
pub(crate) fn source_id(metadata: &Map<String, Value>) -> Option<String> {
    match metadata.get("source_id")? {
        Value::String(id) if !id.is_empty() => Some(id.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
        _ => None,
    }
}

pub(crate) fn check_metadata(metadata: &Map<String, Value>) -> Result<()> {
    let bytes = serde_json::to_vec(metadata).map_or(usize::MAX, |text| text.len());
    check_size("metadata", bytes, NewJob::MAX_METADATA_BYTES)?;
    let source_bytes = source_id(metadata).map_or(0, |id| id.len());
    check_size("metadata.source_id", source_bytes, NewJob::MAX_SOURCE_ID_BYTES)
}

pub(crate) fn check_request_config(config: &Value) -> Result<()> {
    let bytes = serde_json::to_vec(config).map_or(usize::MAX, |text| text.len());
    check_size("request_config", bytes, NewJob::MAX_METADATA_BYTES)
}
