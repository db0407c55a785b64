//! Where a job stands among the others.

use rusqlite::Row;

use crate::model::job::Priority;
use crate::model::job_type::JobType;
use crate::model::new_job::NewJob;

/// Where a job stands: in which lane, and in whose share of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) lane: i64,
    /// None if the job has no user.
    pub(crate) share: Option<i64>,
    /// The workflow, or the stage of one, that counts it.
    pub(crate) flow: Option<i64>,
    /// Whether limits count it.
    pub(crate) limited: bool,
}

/// The columns of a job's row that tell its place.
macro_rules! place_columns {
    () => {
        "lane, share, flow, limits IS NOT NULL"
    };
}
pub(crate) use place_columns;

impl Place {
    /// The place that the `place_columns` of a row tell, from column `first` on.
    pub(crate) fn read(row: &Row<'_>, first: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            lane: row.get(first)?,
            share: row.get(first + 1)?,
            flow: row.get(first + 2)?,
            limited: row.get(first + 3)?,
        })
    }
}

/// What the jobs of a lane have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey<'a> {
    pub(crate) queue: &'a str,
    /// Empty if its jobs are tracked.
    pub(crate) kind: &'a str,
    pub(crate) priority: Priority,
    pub(crate) job_type: JobType,
    pub(crate) background: bool,
    /// Whether its jobs have users.
    pub(crate) owned: bool,
}

impl<'a> LaneKey<'a> {
    pub(crate) fn of(new: &'a NewJob) -> Self {
        Self {
            queue: &new.queue,
            kind: new.kind.as_deref().unwrap_or_default(),
            priority: new.priority,
            job_type: new.job_type,
            background: new.background,
            owned: new.user_id.is_some(),
        }
    }
}
