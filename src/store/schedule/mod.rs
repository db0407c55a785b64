//! Schedules in the ledger: their rows, and the lines of their histories.

pub(crate) mod change;
pub(crate) mod read;
pub(crate) mod tick;

use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, named_params};

use crate::error::{Error, ErrorKind, Result};
use crate::model::id::{JobId, ScheduleId};
use crate::model::schedule::record::{MissedBy, TickOutcome};
use crate::model::schedule::{Definition, Ready, Schedule, template};
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::row::State;

impl ToSql for ScheduleId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.raw().into())
    }
}

impl FromSql for ScheduleId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(Self::from_raw)
    }
}

/// What a tick needs to know of a schedule.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) id: ScheduleId,
    pub(crate) anchor: Timestamp,
    pub(crate) tick: Option<Timestamp>,
    pub(crate) computed_at: Timestamp,
    pub(crate) paused_at: Option<Timestamp>,
    pub(crate) waiting: Option<Timestamp>,
    pub(crate) last_tick: Option<Timestamp>,
    pub(crate) last_job: Option<JobId>,
    /// How many lines its history has had.
    pub(crate) lines: i64,
}

/// The columns that `Standing::read` reads.
macro_rules! standing_columns {
    () => {
        "id, anchor, tick, computed_at, paused_at, waiting, last_tick, last_job, lines"
    };
}
pub(crate) use standing_columns;

impl Standing {
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            anchor: row.get(1)?,
            tick: row.get(2)?,
            computed_at: row.get(3)?,
            paused_at: row.get(4)?,
            waiting: row.get(5)?,
            last_tick: row.get(6)?,
            last_job: row.get(7)?,
            lines: row.get(8)?,
        })
    }
}

/// Makes the schedule of what is stored of it.
fn parse(name: String, definition: &str, job: &str) -> Result<Schedule> {
    let unreadable = |error| Error::with_source(ErrorKind::Storage, "a schedule cannot be read from the file", error);
    let definition: Definition = serde_json::from_str(definition).map_err(unreadable)?;
    Ok(definition.into_schedule(name, template::read(job)?))
}

/// A schedule's definition, ready to be used.
pub(crate) fn ready(conn: &Connection, standing: &Standing) -> rusqlite::Result<Result<Ready>> {
    let stored: Option<(String, String)> = conn
        .prepare_cached("SELECT definition, job FROM jobmill_schedule_definition WHERE schedule = :id")?
        .query_row(named_params! { ":id": standing.id }, |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (definition, job) = stored.unwrap_or_default();
    // What a turn does needs no name.
    let schedule = parse(String::new(), &definition, &job);
    Ok(schedule.and_then(|schedule| Ready::of(schedule, standing.anchor, standing.id)))
}

/// Whether a job is there that has not ended.
fn is_under_way(conn: &Connection, job: JobId) -> rusqlite::Result<bool> {
    let state = conn
        .prepare_cached("SELECT state FROM jobmill_job WHERE id = :id")?
        .query_row(named_params! { ":id": job }, |row| row.get::<_, State>(0))
        .optional()?;
    Ok(state.is_some_and(|state| !state.status().is_terminal()))
}

/// The numbers by which outcomes are stored.
const ENQUEUED: i64 = 0;
const MANUAL: i64 = 1;
const BACKFILLED: i64 = 2;
const DUPLICATE: i64 = 3;
const SKIPPED: i64 = 4;
const MISSED: i64 = 5;
const MISSED_BY_PAUSE: i64 = 6;
const MISSED_BY_CHANGE: i64 = 7;

impl Turn<'_> {
    /// Writes the next line of a schedule's history, in the place of the one that is too old to be kept.
    fn history_line(
        &self,
        schedule: ScheduleId,
        number: i64,
        tick: Timestamp,
        outcome: TickOutcome,
    ) -> rusqlite::Result<()> {
        let (code, until, count, job) = match outcome {
            TickOutcome::Enqueued { job } => (ENQUEUED, None, None, Some(job)),
            TickOutcome::Manual { job } => (MANUAL, None, None, Some(job)),
            TickOutcome::Backfilled { to, count } => (BACKFILLED, Some(to), Some(count), None),
            TickOutcome::Duplicate { job } => (DUPLICATE, None, None, Some(job)),
            TickOutcome::Skipped { job } => (SKIPPED, None, None, Some(job)),
            TickOutcome::Missed { to, count, by } => {
                let code = match by {
                    MissedBy::Policy => MISSED,
                    MissedBy::Pause => MISSED_BY_PAUSE,
                    MissedBy::Change => MISSED_BY_CHANGE,
                };
                (code, Some(to), count, None)
            }
        };
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO jobmill_tick (schedule, place, number, at, outcome, tick, until, count, job)
                 VALUES (:schedule, :place, :number, :at, :outcome, :tick, :until, :count, :job)",
            )?
            .execute(named_params! {
                ":schedule": schedule, ":place": place(number), ":number": number,
                ":at": self.now, ":outcome": code, ":tick": tick, ":until": until,
                ":count": count.map(u64::cast_signed), ":job": job,
            })
            .map(drop)
    }
}

/// The place of a line in the ring.
fn place(number: i64) -> i64 {
    number.rem_euclid(Schedule::HISTORY as i64)
}

/// The outcome that a line tells of.
fn outcome(code: i64, until: Option<Timestamp>, count: Option<i64>, job: Option<JobId>) -> TickOutcome {
    let (to, count) = (until.unwrap_or_default(), count.map(i64::cast_unsigned));
    let job = job.unwrap_or(JobId::from_raw(0));
    match code {
        ENQUEUED => TickOutcome::Enqueued { job },
        MANUAL => TickOutcome::Manual { job },
        BACKFILLED => TickOutcome::Backfilled { to, count: count.unwrap_or(0) },
        DUPLICATE => TickOutcome::Duplicate { job },
        SKIPPED => TickOutcome::Skipped { job },
        MISSED_BY_PAUSE => TickOutcome::Missed { to, count, by: MissedBy::Pause },
        MISSED_BY_CHANGE => TickOutcome::Missed { to, count, by: MissedBy::Change },
        _ => TickOutcome::Missed { to, count, by: MissedBy::Policy },
    }
}
