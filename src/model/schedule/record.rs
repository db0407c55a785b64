//! Schedules as they stand in the file, and the history of their ticks.

use std::fmt;

use serde::Serialize;

use crate::error::Result;
use crate::model::cursor::{Cursor, Order, cursor_setters};
use crate::model::id::{JobId, ScheduleId};
use crate::model::schedule::Schedule;
use crate::model::time::Timestamp;

/// What became of a schedule that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "id")]
#[non_exhaustive]
pub enum Scheduled {
    /// It is new.
    Created(ScheduleId),
    /// It replaces another definition under its name.
    Changed(ScheduleId),
    /// It stood there already, and nothing was written.
    Unchanged(ScheduleId),
}

impl Scheduled {
    /// The id of the schedule.
    pub fn id(self) -> ScheduleId {
        match self {
            Self::Created(id) | Self::Changed(id) | Self::Unchanged(id) => id,
        }
    }
}

/// A schedule as it stands in the file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ScheduleRecord {
    /// Its id, which also tells when it was created.
    pub id: ScheduleId,
    /// What was said of it.
    pub schedule: Schedule,
    /// From when an interval is reckoned that does not say when it starts.
    pub anchor: Timestamp,
    /// Its next tick. None if no more will come, or while it is paused.
    pub next_tick: Option<Timestamp>,
    /// When that will run: later than the tick itself by its jitter.
    pub next_at: Option<Timestamp>,
    /// Since when it is paused.
    pub paused_at: Option<Timestamp>,
    /// The tick that waits for the end of the last job ([`Overlap::Queue`](crate::Overlap::Queue)).
    pub waiting_tick: Option<Timestamp>,
    /// The last tick whose job was enqueued.
    pub last_tick: Option<Timestamp>,
    /// The last job that was enqueued, which may be pruned by now.
    pub last_job: Option<JobId>,
    /// How many jobs were enqueued.
    pub enqueued: u64,
    /// How many ticks were missed and not made up for. Of a run of more than 1000 ticks by the calendar, 1000 are counted.
    pub missed: u64,
    /// How many ticks were skipped, for the last job had not ended.
    pub skipped: u64,
    /// Whether an engine that is open on the file has a handler for its job's kind.
    pub is_handled: bool,
}

impl ScheduleRecord {
    /// The next `count` ticks after a moment, without jitter; fewer if there are no more. The pause of a paused schedule is
    /// left out of account.
    ///
    /// # Errors
    /// `Invalid` if the count is not from 1 to [`Schedule::MAX_PREVIEW`].
    pub fn preview(&self, from: Timestamp, count: usize) -> Result<Vec<Timestamp>> {
        self.schedule.ticks_after(self.anchor, from, count)
    }
}

/// Why ticks were missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MissedBy {
    /// They came late, and the schedule says what becomes of such ticks ([`Missed`](crate::Missed)).
    Policy,
    /// They had come, and the schedule was paused before their jobs were enqueued.
    Pause,
    /// They had come, and the schedule was replaced by one that has no such tick.
    Change,
}

impl fmt::Display for MissedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "late",
            Self::Pause => "paused",
            Self::Change => "changed",
        })
    }
}

/// What became of a tick, or of a run of ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
#[non_exhaustive]
pub enum TickOutcome {
    /// Its job was enqueued.
    Enqueued {
        /// The job.
        job: JobId,
    },
    /// An operator had the job enqueued.
    Manual {
        /// The job.
        job: JobId,
    },
    /// A backfill enqueued the jobs of all ticks from this one to another, as far as they had none.
    Backfilled {
        /// The last tick.
        to: Timestamp,
        /// How many jobs were enqueued.
        count: u64,
    },
    /// It had its job already.
    Duplicate {
        /// The job.
        job: JobId,
    },
    /// It was skipped, for the last job had not ended.
    Skipped {
        /// That job.
        job: JobId,
    },
    /// All ticks from this one to another were missed, and not made up for.
    Missed {
        /// The last tick.
        to: Timestamp,
        /// How many these are. None: more than 1000, by the calendar.
        count: Option<u64>,
        /// Why.
        by: MissedBy,
    },
}

impl fmt::Display for TickOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enqueued { job } => write!(f, "enqueued as {job}"),
            Self::Manual { job } => write!(f, "enqueued by hand as {job}"),
            Self::Backfilled { to, count } => write!(f, "backfilled up to {to}: {count}"),
            Self::Duplicate { job } => write!(f, "has {job} already"),
            Self::Skipped { job } => write!(f, "skipped, for {job} had not ended"),
            Self::Missed { to, count: Some(count), by } => write!(f, "missed up to {to}: {count}, {by}"),
            Self::Missed { to, count: None, by } => write!(f, "missed up to {to}: more than 1000, {by}"),
        }
    }
}

/// One line of a schedule's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tick {
    /// Its number among all lines of the schedule, from 1.
    pub number: u64,
    /// The tick: the time that the schedule names, whenever it ran.
    pub tick: Timestamp,
    /// When it was dealt with.
    pub at: Timestamp,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: TickOutcome,
}

/// What a backfill came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Backfilled {
    /// Ticks whose jobs were enqueued.
    pub enqueued: usize,
    /// Ticks that had their jobs already.
    pub existing: usize,
}

/// Which schedules to list. Every filter that is set must hold.
///
/// Cursors are ids, which are positions in creation order, and absolute in time: `before` means older than, `after` newer
/// than, in both orders. The schedule of a cursor need not exist any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a query does nothing until it is asked"]
pub struct ScheduleQuery {
    pub(crate) paused: Option<bool>,
    pub(crate) kind: Option<String>,
    pub(crate) cursor: Cursor<ScheduleId>,
}

impl ScheduleQuery {
    /// Every schedule, the newest first, 50 a page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps schedules that are paused, or those that are not.
    pub fn paused(mut self, paused: bool) -> Self {
        self.paused = Some(paused);
        self
    }

    /// Keeps schedules whose jobs are of this kind.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    cursor_setters! {
        /// Keeps schedules that are older than this one.
        before(id: ScheduleId),
        /// Keeps schedules that are newer than this one.
        after(id: ScheduleId),
        /// Sets the order. Defaults to the newest first.
        order(order: Order),
        /// Sets how many schedules a page has, from 1 to 1000. Defaults to 50.
        limit(limit: usize),
    }
}

/// A page of schedules.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SchedulePage {
    /// The schedules, in the order that the query asked for.
    pub schedules: Vec<ScheduleRecord>,
    /// The query for the next page, if more schedules follow.
    pub next: Option<ScheduleQuery>,
}

impl SchedulePage {
    /// Whether more schedules follow.
    pub fn has_more(&self) -> bool {
        self.next.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_tick_is_told_in_words() {
        let (job, to) = (JobId::from_raw(1 << 20), Timestamp::EPOCH);
        for (outcome, says) in [
            (TickOutcome::Enqueued { job }, format!("enqueued as {job}")),
            (TickOutcome::Manual { job }, format!("enqueued by hand as {job}")),
            (TickOutcome::Backfilled { to, count: 3 }, format!("backfilled up to {to}: 3")),
            (TickOutcome::Duplicate { job }, format!("has {job} already")),
            (TickOutcome::Skipped { job }, format!("skipped, for {job} had not ended")),
            (TickOutcome::Missed { to, count: Some(2), by: MissedBy::Policy }, format!("missed up to {to}: 2, late")),
            (
                TickOutcome::Missed { to, count: None, by: MissedBy::Pause },
                format!("missed up to {to}: more than 1000, paused"),
            ),
        ] {
            assert_eq!(outcome.to_string(), says);
        }
    }
}
