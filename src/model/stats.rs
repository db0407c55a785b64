//! How many jobs stand where.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::Serialize;

use crate::model::job::{Priority, Status};
use crate::model::job_type::JobType;
use crate::model::time::Timestamp;

/// How many jobs are in each status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StatusCounts {
    /// Recorded, not admitted.
    pub created: u64,
    /// Waiting for their time or a worker.
    pub pending: u64,
    /// With a worker.
    pub running: u64,
    /// Ended with a value.
    pub completed: u64,
    /// Ended with an error.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Expired.
    pub expired: u64,
}

impl StatusCounts {
    /// How many jobs are in one status.
    pub fn of(&self, status: Status) -> u64 {
        match status {
            Status::Created => self.created,
            Status::Pending => self.pending,
            Status::Running => self.running,
            Status::Completed => self.completed,
            Status::Failed => self.failed,
            Status::Cancelled => self.cancelled,
            Status::Expired => self.expired,
        }
    }

    pub(crate) fn of_mut(&mut self, status: Status) -> &mut u64 {
        match status {
            Status::Created => &mut self.created,
            Status::Pending => &mut self.pending,
            Status::Running => &mut self.running,
            Status::Completed => &mut self.completed,
            Status::Failed => &mut self.failed,
            Status::Cancelled => &mut self.cancelled,
            Status::Expired => &mut self.expired,
        }
    }

    /// How many jobs there are.
    pub fn total(&self) -> u64 {
        Status::ALL.into_iter().map(|status| self.of(status)).sum()
    }
}

impl AddAssign for StatusCounts {
    fn add_assign(&mut self, other: Self) {
        for status in Status::ALL {
            *self.of_mut(status) += other.of(status);
        }
    }
}

/// How many jobs stand where, read from counters that every change keeps, not by counting rows.
///
/// What the documentation calls active are the running jobs, and the depth of a queue its pending ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// All jobs.
    pub total: StatusCounts,
    /// By queue.
    pub queues: BTreeMap<String, StatusCounts>,
    /// By kind. Tracked jobs are under the empty name.
    pub kinds: BTreeMap<String, StatusCounts>,
    /// By priority.
    pub priorities: BTreeMap<Priority, StatusCounts>,
    /// By type.
    pub job_types: BTreeMap<JobType, StatusCounts>,
    /// Since when the job has been waiting that has waited longest of each queue's pending ones: those whose time has
    /// come. Queues in which nothing waits are left out.
    pub oldest_waiting: BTreeMap<String, Timestamp>,
    /// The queues that are paused.
    pub paused: Vec<String>,
}

impl Stats {
    /// How many jobs are running.
    pub fn active(&self) -> u64 {
        self.total.running
    }

    /// How many jobs are pending, those whose time has not come included.
    pub fn depth(&self) -> u64 {
        self.total.pending
    }

    /// Since when the job has been waiting that has waited longest of all.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.oldest_waiting.values().min().copied()
    }
}
