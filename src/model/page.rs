//! Which jobs to list, and in which pages.

use crate::error::{Error, Result};
use crate::model::cursor::{self, Cursor, Order, cursor_setters};
use crate::model::failure_reason::FailureReason;
use crate::model::id::{JobId, ScheduleId, WorkflowId};
use crate::model::job::{Job, Priority, Status};
use crate::model::job_type::JobType;
use crate::model::stop_reason::StopReason;
use crate::model::time::Timestamp;

/// Which jobs to list. Every filter that is set must hold; an empty list is no filter.
///
/// Cursors are ids, which are positions in creation order, and absolute in time: `before` means older than, `after`
/// newer than, in both orders; both together mean between. The job of a cursor need not exist any more.
///
/// ```
/// use jobmill::{Order, Query, Status};
///
/// let query = Query::new().statuses([Status::Failed]).kinds(["invoice"]).order(Order::Ascending).limit(100);
/// # let _ = query;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub(crate) user: Option<String>,
    pub(crate) statuses: Vec<Status>,
    pub(crate) job_types: Vec<JobType>,
    pub(crate) kinds: Vec<String>,
    pub(crate) tracked: Option<bool>,
    pub(crate) queues: Vec<String>,
    pub(crate) priorities: Vec<Priority>,
    pub(crate) background: Option<bool>,
    pub(crate) agents: Vec<String>,
    pub(crate) stop_reason: Option<StopReason>,
    pub(crate) failure_reasons: Vec<FailureReason>,
    pub(crate) source_id: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) workflow: Option<WorkflowId>,
    pub(crate) schedule: Option<ScheduleId>,
    pub(crate) created_from: Option<Timestamp>,
    pub(crate) created_until: Option<Timestamp>,
    pub(crate) cursor: Cursor<JobId>,
}

impl Query {
    /// How many jobs a page holds unless the query says otherwise.
    pub const DEFAULT_LIMIT: usize = cursor::DEFAULT_LIMIT;
    /// How many jobs a page may hold.
    pub const MAX_LIMIT: usize = cursor::MAX_LIMIT;
    /// How many values one filter may list.
    pub const MAX_VALUES: usize = 100;

    /// Every job, the newest first, 50 a page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps jobs of this user.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Keeps jobs of one of these types.
    pub fn job_types(mut self, job_types: impl IntoIterator<Item = JobType>) -> Self {
        self.job_types = job_types.into_iter().collect();
        self
    }

    /// Keeps jobs that are tracked, or those that handlers run.
    pub fn tracked(mut self, tracked: bool) -> Self {
        self.tracked = Some(tracked);
        self
    }

    /// Keeps jobs whose callers do not wait for them, or those whose callers do.
    pub fn background(mut self, background: bool) -> Self {
        self.background = Some(background);
        self
    }

    /// Keeps jobs of one of these agents.
    pub fn agents<S: Into<String>>(mut self, agents: impl IntoIterator<Item = S>) -> Self {
        self.agents = agents.into_iter().map(Into::into).collect();
        self
    }

    /// Keeps jobs that stopped for this reason.
    pub fn stop_reason(mut self, reason: impl Into<StopReason>) -> Self {
        self.stop_reason = Some(reason.into());
        self
    }

    /// Keeps jobs that failed for good for one of these reasons. An empty list keeps all jobs.
    pub fn failed_by(mut self, reasons: impl IntoIterator<Item = FailureReason>) -> Self {
        self.failure_reasons = reasons.into_iter().collect();
        self
    }

    /// Keeps jobs whose metadata have this `source_id`. A number or a truth value there is compared as its JSON text.
    pub fn source_id(mut self, source_id: impl Into<String>) -> Self {
        self.source_id = Some(source_id.into());
        self
    }

    /// Keeps jobs created at this moment or later.
    pub fn created_from(mut self, from: Timestamp) -> Self {
        self.created_from = Some(from);
        self
    }

    /// Keeps jobs created before this moment.
    pub fn created_until(mut self, until: Timestamp) -> Self {
        self.created_until = Some(until);
        self
    }

    /// Keeps jobs in one of these statuses.
    pub fn statuses(mut self, statuses: impl IntoIterator<Item = Status>) -> Self {
        self.statuses = statuses.into_iter().collect();
        self
    }

    /// Keeps jobs of one of these kinds.
    pub fn kinds<S: Into<String>>(mut self, kinds: impl IntoIterator<Item = S>) -> Self {
        self.kinds = kinds.into_iter().map(Into::into).collect();
        self
    }

    /// Keeps jobs in one of these queues.
    pub fn queues<S: Into<String>>(mut self, queues: impl IntoIterator<Item = S>) -> Self {
        self.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// Keeps jobs of one of these priorities.
    pub fn priorities(mut self, priorities: impl IntoIterator<Item = Priority>) -> Self {
        self.priorities = priorities.into_iter().collect();
        self
    }

    /// Keeps jobs that bear all of these tags.
    pub fn tags<S: Into<String>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Keeps jobs of this workflow: its own, those of its stages, and its callbacks.
    pub fn workflow(mut self, id: WorkflowId) -> Self {
        self.workflow = Some(id);
        self
    }

    /// Keeps jobs that this schedule has made: at its ticks, by a backfill and by hand. They tell which one it was even if
    /// it has been deleted since.
    pub fn schedule(mut self, id: ScheduleId) -> Self {
        self.schedule = Some(id);
        self
    }

    cursor_setters! {
        /// Keeps jobs created before the one with this id.
        before(id: JobId),
        /// Keeps jobs created after the one with this id.
        after(id: JobId),
        /// Sets the order. Defaults to [`Order::Descending`].
        order(order: Order),
        /// Sets how many jobs a page holds, from 1 to 1000. Defaults to 50.
        limit(limit: usize),
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.cursor.check()?;
        if let (Some(from), Some(until)) = (self.created_from, self.created_until)
            && until <= from
        {
            return Err(Error::invalid("created_until", "must be later than created_from"));
        }
        for (field, values) in [
            ("kinds", self.kinds.len()),
            ("queues", self.queues.len()),
            ("agents", self.agents.len()),
            ("tags", self.tags.len()),
        ] {
            if values > Self::MAX_VALUES {
                return Err(Error::invalid(field, format_args!("must be no more than {} values", Self::MAX_VALUES)));
            }
        }
        for (field, value) in [
            ("source_id", self.source_id.as_deref()),
            ("stop_reason", self.stop_reason.as_ref().map(StopReason::as_str)),
            ("user", self.user.as_deref()),
        ] {
            if value == Some("") {
                return Err(Error::invalid(field, "must not be empty: without a filter, leave it out"));
            }
        }
        Ok(())
    }

    /// The range of ids in which the jobs lie, both ends excluded.
    pub(crate) fn bounds(&self) -> (i64, i64) {
        let from = self.created_from.map_or(0, |from| JobId::first_at(from).raw().saturating_sub(1).max(0));
        let until = self.created_until.map_or(i64::MAX, |until| JobId::first_at(until).raw());
        let Cursor { before, after, .. } = self.cursor;
        (after.map_or(0, JobId::raw).max(from), before.map_or(i64::MAX, JobId::raw).min(until))
    }

    /// The page that follows one that ended with `last`.
    pub(crate) fn following(mut self, last: JobId) -> Self {
        self.cursor = self.cursor.following(last);
        self
    }
}

/// A page of jobs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Page {
    /// The jobs, in the order that the query asked for.
    pub jobs: Vec<Job>,
    /// The query for the next page, if more jobs follow.
    pub next: Option<Query>,
}

impl Page {
    /// Whether more jobs follow.
    pub fn has_more(&self) -> bool {
        self.next.is_some()
    }
}
