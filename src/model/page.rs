//! Which jobs to list, and in which pages.

use crate::error::{Error, Result};
use crate::model::id::JobId;
use crate::model::job::{Job, Priority, Status};

/// Which of two neighbours comes first in a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// The oldest first.
    Ascending,
    /// The newest first.
    #[default]
    Descending,
}

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub(crate) statuses: Vec<Status>,
    pub(crate) kinds: Vec<String>,
    pub(crate) queues: Vec<String>,
    pub(crate) priorities: Vec<Priority>,
    pub(crate) tags: Vec<String>,
    pub(crate) before: Option<JobId>,
    pub(crate) after: Option<JobId>,
    pub(crate) order: Order,
    pub(crate) limit: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            statuses: Vec::new(),
            kinds: Vec::new(),
            queues: Vec::new(),
            priorities: Vec::new(),
            tags: Vec::new(),
            before: None,
            after: None,
            order: Order::default(),
            limit: Self::DEFAULT_LIMIT,
        }
    }
}

impl Query {
    /// How many jobs a page holds unless the query says otherwise.
    pub const DEFAULT_LIMIT: usize = 50;
    /// How many jobs a page may hold.
    pub const MAX_LIMIT: usize = 1000;

    /// Every job, the newest first, 50 a page.
    pub fn new() -> Self {
        Self::default()
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

    /// Keeps jobs created before the one with this id.
    pub fn before(mut self, id: JobId) -> Self {
        self.before = Some(id);
        self
    }

    /// Keeps jobs created after the one with this id.
    pub fn after(mut self, id: JobId) -> Self {
        self.after = Some(id);
        self
    }

    /// Sets the order. Defaults to [`Order::Descending`].
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Sets how many jobs a page holds, from 1 to 1000. Defaults to 50.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        if !(1..=Self::MAX_LIMIT).contains(&self.limit) {
            return Err(Error::invalid("limit", format_args!("must be from 1 to {}", Self::MAX_LIMIT)));
        }
        if let (Some(before), Some(after)) = (self.before, self.after)
            && before <= after
        {
            return Err(Error::invalid("before", "must be newer than after"));
        }
        Ok(())
    }

    /// The page that follows one that ended with `last`.
    pub(crate) fn following(mut self, last: JobId) -> Self {
        match self.order {
            Order::Ascending => self.after = Some(last),
            Order::Descending => self.before = Some(last),
        }
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
