//! Changes to a job from outside: field by field, and by status.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::callback::check_url;
use crate::model::contents::{Contents, debug_with_sizes};
use crate::model::job::{Progress, Status};
use crate::model::new_job::{NewJob, check_metadata, check_request_config, object};
use crate::model::rules::{check_duration, check_name, check_size};
use crate::model::stop_reason::StopReason;

/// What becomes of a field.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Set<T> {
    #[default]
    Keep,
    Clear,
    To(T),
}

impl<T> Set<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Clear, Self::To)
    }

    /// The value that is set, if one is.
    pub(crate) fn value(&self) -> Option<&T> {
        match self {
            Self::To(value) => Some(value),
            Self::Keep | Self::Clear => None,
        }
    }

    pub(crate) fn is_kept(&self) -> bool {
        matches!(self, Self::Keep)
    }
}

impl<C: Contents> Contents for Set<C> {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("Keep"),
            Self::Clear => f.write_str("Clear"),
            Self::To(contents) => contents.tell(f),
        }
    }
}

/// What becomes of a job's metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum SetMetadata {
    #[default]
    Keep,
    Clear,
    Replace(Map<String, Value>),
    /// Its top level takes these values over; a null among them removes its key.
    Merge(Map<String, Value>),
}

/// Changes to a job. A field that is not named stays as it is; `None` clears one.
///
/// ```
/// use jobmill::{JobUpdate, Status, StopReason};
///
/// let update = JobUpdate::new()
///     .status(Status::Completed)
///     .stop_reason(StopReason::END_TURN)
///     .merge_metadata(&serde_json::json!({"pages": 12}))
///     .agent(None);
/// # let _ = update;
/// ```
#[derive(Clone, Default, PartialEq)]
#[must_use = "an update does nothing until it is handed to a client"]
pub struct JobUpdate {
    pub(crate) status: Option<Status>,
    pub(crate) stop_reason: Set<StopReason>,
    pub(crate) background: Option<bool>,
    pub(crate) agent_id: Set<String>,
    pub(crate) organization_id: Set<String>,
    pub(crate) callback_url: Set<String>,
    pub(crate) metadata: SetMetadata,
    pub(crate) request_config: Set<Value>,
    pub(crate) ttft: Set<Duration>,
    pub(crate) total_duration: Set<Duration>,
    pub(crate) error: Set<String>,
    pub(crate) result: Set<Vec<u8>>,
    pub(crate) progress: Set<Progress>,
    /// The first rule that a setter saw broken.
    problem: Option<(&'static str, String)>,
}

debug_with_sizes!(JobUpdate {
    status, stop_reason, background, agent_id, organization_id, callback_url, metadata, request_config, ttft,
    total_duration, error, progress, problem;
    result
});

impl JobUpdate {
    /// Changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the status of a tracked job, by the rule for statuses: forward only, and a terminal one is final. The same
    /// terminal status once more changes nothing.
    pub fn status(mut self, status: Status) -> Self {
        self.status = Some(status);
        self
    }

    /// Sets or clears why an agent's run stopped.
    pub fn stop_reason(mut self, reason: impl Into<Option<StopReason>>) -> Self {
        self.stop_reason = Set::from(reason.into());
        self
    }

    /// Sets whether the job's caller does not wait for it.
    pub fn background(mut self, background: bool) -> Self {
        self.background = Some(background);
        self
    }

    /// Sets or clears the agent.
    pub fn agent<'a>(mut self, agent: impl Into<Option<&'a str>>) -> Self {
        self.agent_id = Set::from(agent.into().map(str::to_owned));
        self
    }

    /// Sets or clears the organization.
    pub fn organization<'a>(mut self, organization: impl Into<Option<&'a str>>) -> Self {
        self.organization_id = Set::from(organization.into().map(str::to_owned));
        self
    }

    /// Sets or clears where to tell that the job has ended. After that it counts for a redelivery.
    pub fn callback_url<'a>(mut self, url: impl Into<Option<&'a str>>) -> Self {
        self.callback_url = Set::from(url.into().map(str::to_owned));
        self
    }

    /// Replaces the metadata by anything that serializes to a JSON object.
    pub fn metadata(mut self, metadata: &impl Serialize) -> Self {
        match object(metadata) {
            Ok(object) => self.metadata = SetMetadata::Replace(object),
            Err(problem) => self.fail("metadata", problem),
        }
        self
    }

    /// Takes the values of a JSON object over into the metadata, key by key of its top level. A null removes its key.
    pub fn merge_metadata(mut self, metadata: &impl Serialize) -> Self {
        match object(metadata) {
            Ok(object) => self.metadata = SetMetadata::Merge(object),
            Err(problem) => self.fail("metadata", problem),
        }
        self
    }

    /// Removes the metadata.
    pub fn clear_metadata(mut self) -> Self {
        self.metadata = SetMetadata::Clear;
        self
    }

    /// Sets with which settings an agent's run was asked for.
    pub fn request_config(mut self, config: &impl Serialize) -> Self {
        match serde_json::to_value(config) {
            Ok(config) => self.request_config = Set::To(config),
            Err(error) => self.fail("request_config", format!("does not serialize: {error}")),
        }
        self
    }

    /// Removes the settings with which an agent's run was asked for.
    pub fn clear_request_config(mut self) -> Self {
        self.request_config = Set::Clear;
        self
    }

    /// Sets or clears the time to the first token.
    pub fn ttft(mut self, ttft: impl Into<Option<Duration>>) -> Self {
        self.ttft = Set::from(ttft.into());
        self
    }

    /// Sets or clears how long it took in all.
    pub fn total_duration(mut self, duration: impl Into<Option<Duration>>) -> Self {
        self.total_duration = Set::from(duration.into());
        self
    }

    /// Sets or clears the error of a tracked job.
    pub fn error<'a>(mut self, error: impl Into<Option<&'a str>>) -> Self {
        self.error = Set::from(error.into().map(str::to_owned));
        self
    }

    /// Sets the result of a tracked job.
    pub fn result(mut self, result: &impl Serialize) -> Self {
        match serde_json::to_vec(result) {
            Ok(result) => self.result = Set::To(result),
            Err(error) => self.fail("result", format!("does not serialize: {error}")),
        }
        self
    }

    /// Removes the result of a tracked job.
    pub fn clear_result(mut self) -> Self {
        self.result = Set::Clear;
        self
    }

    /// Removes how far a tracked job is.
    pub fn clear_progress(mut self) -> Self {
        self.progress = Set::Clear;
        self
    }

    /// Sets how far a tracked job is.
    pub fn progress(mut self, done: u64, total: Option<u64>) -> Self {
        self.progress = Set::To(Progress { done, total, note: None });
        self
    }

    fn fail(&mut self, field: &'static str, problem: String) {
        self.problem.get_or_insert((field, problem));
    }

    /// Whether it changes what the engine alone may change in a job that it runs.
    pub(crate) fn field_of_the_engine(&self) -> Option<&'static str> {
        [
            ("status", self.status.is_some()),
            ("error", !self.error.is_kept()),
            ("result", !self.result.is_kept()),
            ("progress", !self.progress.is_kept()),
        ]
        .into_iter()
        .find_map(|(field, changed)| changed.then_some(field))
    }

    /// The fields that it names, for the history. None if it names none but times and progress, which change often.
    pub(crate) fn names(&self) -> Option<String> {
        let names: Vec<&str> = [
            ("stop_reason", !self.stop_reason.is_kept()),
            ("background", self.background.is_some()),
            ("agent", !self.agent_id.is_kept()),
            ("organization", !self.organization_id.is_kept()),
            ("callback_url", !self.callback_url.is_kept()),
            ("metadata", self.metadata != SetMetadata::Keep),
            ("request_config", !self.request_config.is_kept()),
            ("error", !self.error.is_kept()),
            ("result", !self.result.is_kept()),
        ]
        .into_iter()
        .filter_map(|(name, named)| named.then_some(name))
        .collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Checks every rule. The error names the first field that breaks one.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some((field, problem)) = &self.problem {
            return Err(Error::invalid(field, problem));
        }
        if let Some(reason) = self.stop_reason.value() {
            check_name("stop_reason", reason.as_str())?;
        }
        for (field, name) in [("agent", &self.agent_id), ("organization", &self.organization_id)] {
            if let Some(name) = name.value() {
                check_name(field, name)?;
            }
        }
        if let Some(url) = self.callback_url.value() {
            check_url(url)?;
        }
        if let SetMetadata::Replace(metadata) | SetMetadata::Merge(metadata) = &self.metadata {
            check_metadata(metadata)?;
        }
        if let Some(config) = self.request_config.value() {
            check_request_config(config)?;
        }
        for (field, duration) in [("ttft", &self.ttft), ("total_duration", &self.total_duration)] {
            check_duration(field, duration.value().copied().unwrap_or_default())?;
        }
        if let Some(error) = self.error.value() {
            check_size("error", error.len(), NewJob::MAX_METADATA_BYTES)?;
        }
        if let Some(result) = self.result.value() {
            check_size("result", result.len(), NewJob::MAX_PAYLOAD_BYTES)?;
        }
        Ok(())
    }
}

/// What a change of status came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatusChange {
    /// The job has the status now.
    Applied,
    /// It had this terminal status already, and nothing was changed.
    Already,
    /// Nothing was changed.
    Refused {
        /// The status that it has.
        status: Status,
        /// Why that forbids the change.
        why: Refusal,
    },
}

/// Why a change of status was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The job has ended, and a terminal status is final.
    Terminal,
    /// Statuses go forward only.
    Backward,
    /// The engine runs the job, and it alone sets its status. There is cancel and retry.
    RunByEngine,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Terminal => "a terminal status is final",
            Self::Backward => "statuses go forward only",
            Self::RunByEngine => "the engine alone sets the status of a job that it runs",
        })
    }
}

impl Status {
    /// What a tracker's wish to bring a job from this status to `next` comes to, by the rules alone.
    pub(crate) fn tracked_change(self, next: Self) -> StatusChange {
        let refused = |why| StatusChange::Refused { status: self, why };
        match (self, next) {
            _ if self.is_terminal() && self == next => StatusChange::Already,
            _ if self.is_terminal() => refused(Refusal::Terminal),
            (Self::Running, Self::Pending) => refused(Refusal::Backward),
            _ if self.may_become(next) => StatusChange::Applied,
            _ => refused(Refusal::Backward),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_statuses_for_a_tracker() {
        // The table of Letta's guard, but for the repeat of a terminal status, which is no error here.
        let table = [
            // to:              C P R c f x e
            (Status::Created, "b y y y y y y"),
            (Status::Pending, "b b y y y y y"),
            (Status::Running, "b b b y y y y"),
            (Status::Completed, "t t t = t t t"),
            (Status::Failed, "t t t t = t t"),
            (Status::Cancelled, "t t t t t = t"),
            (Status::Expired, "t t t t t t ="),
        ];
        for (from, row) in table {
            for (to, cell) in Status::ALL.into_iter().zip(row.split(' ')) {
                let expected = match cell {
                    "y" => StatusChange::Applied,
                    "=" => StatusChange::Already,
                    "t" => StatusChange::Refused { status: from, why: Refusal::Terminal },
                    _ => StatusChange::Refused { status: from, why: Refusal::Backward },
                };
                assert_eq!(from.tracked_change(to), expected, "{from} to {to}");
            }
        }
    }
}
