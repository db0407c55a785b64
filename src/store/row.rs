//! How a job's row reads: its columns, its states, and the record made of them.

use std::time::Duration;

use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, named_params};

use crate::model::attempt::AttemptOutcome;
use crate::model::failure_reason::FailureReason;
use crate::model::id::{JobId, WorkflowId};
use crate::model::job::{Job, Priority, Progress, Status};
use crate::model::job_type::JobType;
use crate::model::retry::Backoff;
use crate::model::stop_reason::StopReason;
use crate::model::time::Timestamp;
use crate::model::unique::{TickKey, Unique};
use crate::store::detail;
use crate::store::place::{LaneKey, Place};

/// The status of a job as its row has it. Pending falls apart in three: jobs that may run since they were created, whose
/// order is that of their ids, and jobs with a `run_at` of their own, so that the common job needs one index only; and
/// jobs that a limit holds, which no claim meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Created = 0,
    Pending = 1,
    Running = 2,
    Completed = 3,
    Failed = 4,
    Cancelled = 5,
    Expired = 6,
    Delayed = 7,
    Held = 8,
}

impl State {
    pub(crate) const COUNT: usize = 9;
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::Created,
        Self::Pending,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
        Self::Delayed,
        Self::Held,
    ];

    pub(crate) const fn status(self) -> Status {
        match self {
            Self::Created => Status::Created,
            Self::Pending | Self::Delayed | Self::Held => Status::Pending,
            Self::Running => Status::Running,
            Self::Completed => Status::Completed,
            Self::Failed => Status::Failed,
            Self::Cancelled => Status::Cancelled,
            Self::Expired => Status::Expired,
        }
    }
}

/// When a job may run, as its row has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RunAt {
    /// As soon as it is admitted.
    #[default]
    AtOnce,
    /// Not before this moment.
    At(Timestamp),
    /// So long after it is admitted: of jobs that wait for others. It stands in the row as a negative number.
    After(Duration),
}

impl RunAt {
    pub(crate) fn read(row: &Row<'_>, column: usize) -> rusqlite::Result<Self> {
        Ok(match row.get::<_, Option<i64>>(column)? {
            None => Self::AtOnce,
            Some(us) if us < 0 => Self::After(Duration::from_micros(us.unsigned_abs())),
            Some(us) => Self::At(Timestamp::from_micros(us)),
        })
    }

    /// The moment for a job that is admitted at this one. None: it does not wait for time.
    pub(crate) fn since(self, admitted: Timestamp) -> Option<Timestamp> {
        match self {
            Self::AtOnce => None,
            Self::At(at) => Some(at),
            Self::After(delay) => Some(admitted.saturating_add(delay)),
        }
    }
}

impl ToSql for RunAt {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let micros = |delay: Duration| i64::try_from(delay.as_micros()).unwrap_or(i64::MAX);
        Ok(match *self {
            Self::AtOnce => ToSqlOutput::Owned(Value::Null),
            Self::At(at) => at.as_micros().into(),
            Self::After(delay) => (-micros(delay)).into(),
        })
    }
}

/// Stores a choice by its number, which is its place among `ALL`.
macro_rules! by_number {
    ($($choice:ident),*) => {$(
        impl rusqlite::types::ToSql for $choice {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                Ok((*self as i64).into())
            }
        }

        impl rusqlite::types::FromSql for $choice {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                let number = value.as_i64()?;
                let choice = usize::try_from(number).ok().and_then(|number| Self::ALL.get(number).copied());
                choice.ok_or(rusqlite::types::FromSqlError::OutOfRange(number))
            }
        }
    )*};
}
pub(crate) use by_number;
by_number!(State, Priority, JobType, AttemptOutcome, FailureReason);

impl ToSql for JobId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.raw().into())
    }
}

impl FromSql for JobId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(Self::from_raw)
    }
}

impl ToSql for Timestamp {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_micros().into())
    }
}

impl FromSql for Timestamp {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(Self::from_micros)
    }
}

/// The columns of a job's own row that `job` reads, in its order.
macro_rules! job_columns {
    () => {
        "id, state, attempt, max_attempts, run_at, started_at, completed_at, expires_at, timeout_us, \
         cancel_requested_at, share, detail, agent_id, stop_reason, callback_url, unique_key, tags, metadata, error, \
         payload, result, updated_at, end_reason, \
         (SELECT owner_share.user_id FROM jobmill_share AS owner_share WHERE owner_share.id = share), \
         (SELECT coalesce(whole.parent, whole.id) FROM jobmill_flow AS whole WHERE whole.id = flow)"
    };
}
pub(crate) use job_columns;

/// The number of columns in `job_columns`.
pub(crate) const JOB_COLUMNS: usize = 25;

/// Which of them tells the state.
pub(crate) const STATE: usize = 1;

/// What of a job stands in tables of its own, and is still to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aside {
    payload: bool,
    detail: bool,
}

/// A job that this process has claimed, with what its end needs.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) job: Job,
    pub(crate) place: Place,
    /// The rank of its priority, bettered by its waiting.
    pub(crate) rank: usize,
    /// The fencing token: how often the job had been claimed, this claim included.
    pub(crate) fence: i64,
    pub(crate) backoff: Option<Backoff>,
    /// What it takes of the capacity of its engine, and of the rate of its queue.
    pub(crate) weight: u32,
    pub(crate) cost: u32,
}

/// Makes a job of `job_columns`, as far as they go: what stands aside is told.
pub(crate) fn job(row: &Row<'_>, lane: LaneKey<'_>) -> rusqlite::Result<(Job, Aside)> {
    let id: JobId = row.get(0)?;
    let state: State = row.get(STATE)?;
    let payload: Option<Vec<u8>> = row.get(19)?;
    let detail = row.get::<_, Option<i64>>(11)?.unwrap_or(0);
    let aside = Aside { payload: payload.is_none(), detail: detail & detail::HAS_ROW > 0 };
    let started_at: Option<Timestamp> = row.get(5)?;
    let completed_at: Option<Timestamp> = row.get(6)?;
    let cancel_requested_at: Option<Timestamp> = row.get(9)?;
    let touched = [started_at, completed_at, cancel_requested_at, row.get(21)?].into_iter().flatten().max();
    let user_id: Option<String> = row.get(23)?;
    let unique_key = row.get_ref(15)?.as_str_or_null()?;
    let tick = unique_key.and_then(TickKey::of_stored);
    let job = Job {
        id,
        job_type: lane.job_type,
        kind: (!lane.kind.is_empty()).then(|| lane.kind.to_owned()),
        queue: lane.queue.to_owned(),
        priority: lane.priority,
        status: state.status(),
        failure_reason: row.get(22)?,
        stop_reason: row.get::<_, Option<String>>(13)?.map(StopReason::from),
        background: lane.background,
        attempt: row.get(2)?,
        max_attempts: row.get(3)?,
        run_at: RunAt::read(row, 4)?.since(id.created_at()).unwrap_or(id.created_at()),
        started_at,
        completed_at,
        expires_at: row.get(7)?,
        timeout: whole(row, 8)?.map(Duration::from_micros),
        cancel_requested_at,
        updated_at: touched.unwrap_or(id.created_at()).max(id.created_at()),
        created_by: if detail & detail::BY_USER > 0 { user_id.clone() } else { None },
        updated_by: None,
        user_id,
        organization_id: None,
        agent_id: row.get(12)?,
        unique_key: unique_key.filter(|_| tick.is_none()).map(|key| Unique::bare_key(key).to_owned()),
        workflow_id: row.get::<_, Option<i64>>(24)?.map(WorkflowId::from_raw),
        schedule: tick.map(|tick| tick.schedule),
        scheduled_for: tick.map(|tick| tick.at),
        tags: json(row, 16)?.unwrap_or_default(),
        metadata: json(row, 17)?,
        request_config: None,
        callback_url: row.get(14)?,
        callback_sent_at: None,
        callback_status_code: None,
        callback_error: None,
        error: row.get(18)?,
        progress: None,
        ttft: None,
        total_duration: completed_at.zip(started_at).map(|(end, start)| end.since(start)),
        payload: payload.unwrap_or_default(),
        result: row.get(20)?,
    };
    Ok((job, aside))
}

impl Aside {
    /// Reads what stands aside.
    pub(crate) fn fetch(self, conn: &Connection, job: &mut Job) -> rusqlite::Result<()> {
        if self.payload {
            job.payload = payload_aside(conn, job.id)?;
        }
        if self.detail {
            detail::fetch(conn, job)?;
        }
        Ok(())
    }
}

/// A payload that was too long for its job's row.
fn payload_aside(conn: &Connection, id: JobId) -> rusqlite::Result<Vec<u8>> {
    let found = conn
        .prepare_cached("SELECT payload FROM jobmill_payload WHERE job = :job")?
        .query_row(named_params! { ":job": id }, |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// Makes a job's progress of three columns, the first of which is null if there is none.
pub(crate) fn progress(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Progress>> {
    let Some(done) = row.get::<_, Option<i64>>(first)? else {
        return Ok(None);
    };
    Ok(Some(Progress {
        done: done.cast_unsigned(),
        total: row.get::<_, Option<i64>>(first + 1)?.map(i64::cast_unsigned),
        note: row.get(first + 2)?,
    }))
}

/// A length of time in whole units, which is never negative in a row that we wrote.
pub(crate) fn whole(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|value| u64::try_from(value).unwrap_or(0)))
}

/// A column of JSON text.
pub(crate) fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        value => serde_json::from_slice(value.as_bytes().map_err(|error| conversion(column, error))?)
            .map(Some)
            .map_err(|error| conversion(column, error)),
    }
}

fn conversion(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}
