//! What is read outside of turns: one job, its history, the counts, and why it does not run.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::error::{Error, ErrorKind, Result};
use crate::model::attempt::{Attempt, AttemptOutcome, LogLine};
use crate::model::explain::{Explanation, Reason};
use crate::model::id::JobId;
use crate::model::job::{Job, Priority, Status};
use crate::model::stats::{Stats, StatusCounts};
use crate::model::time::Timestamp;
use crate::store::claim::payload_aside;
use crate::store::connect::{Readers, storage_error};
use crate::store::instance::worker_name;
use crate::store::row::{self, JOB_COLUMNS, LaneName, State, job_columns};

/// The door for reading: each call sees one snapshot, beside the writer.
#[derive(Clone)]
pub(crate) struct Reader {
    pool: Readers,
}

/// A lane as its row has it.
pub(crate) struct LaneRow {
    pub(crate) id: i64,
    pub(crate) queue: String,
    pub(crate) kind: String,
    pub(crate) priority: Priority,
    pub(crate) counts: [i64; State::COUNT],
}

/// Reads one job.
pub(crate) const PLAN_JOB: &str = concat!(
    "SELECT ",
    job_columns!(),
    ", lane.queue, lane.kind, lane.priority, progress.done, progress.total, progress.note
     FROM jobmill_job AS job
     JOIN (SELECT id AS lane_id, queue, kind, priority FROM jobmill_lane) AS lane ON lane.lane_id = job.lane
     LEFT JOIN jobmill_progress AS progress ON progress.job = job.id
     WHERE job.id = :id"
);

impl Reader {
    pub(crate) fn new(pool: Readers) -> Self {
        Self { pool }
    }

    /// Runs `work` on a snapshot.
    pub(crate) fn snapshot<R>(&self, doing: &str, work: impl FnOnce(&Connection) -> rusqlite::Result<R>) -> Result<R> {
        let conn = self
            .pool
            .get()
            .map_err(|error| Error::with_source(ErrorKind::Busy, format!("{doing}: no reader is free"), error))?;
        let result = conn.prepare_cached("BEGIN").and_then(|mut begin| begin.execute([])).and_then(|_| work(&conn));
        let ended = conn.prepare_cached("COMMIT").and_then(|mut end| end.execute([]));
        let result = result.map_err(|error| storage_error(doing, error))?;
        ended.map_err(|error| storage_error(doing, error))?;
        Ok(result)
    }

    pub(crate) fn job(&self, id: JobId) -> Result<Option<Job>> {
        self.snapshot("cannot read the job", |conn| job(conn, id))
    }

    pub(crate) fn status(&self, id: JobId) -> Result<Option<Status>> {
        self.snapshot("cannot read the job", |conn| {
            conn.prepare_cached("SELECT state FROM jobmill_job WHERE id = :id")?
                .query_row(named_params! { ":id": id }, |row| row.get::<_, State>(0).map(State::status))
                .optional()
        })
    }

    pub(crate) fn stats(&self) -> Result<Stats> {
        self.snapshot("cannot read the counts", |conn| {
            let mut stats = Stats::default();
            for lane in lanes(conn)? {
                let mut counts = StatusCounts::default();
                for state in State::ALL {
                    *counts.of_mut(state.status()) += u64::try_from(lane.counts[state as usize]).unwrap_or(0);
                }
                stats.total += counts;
                *stats.queues.entry(lane.queue).or_default() += counts;
                *stats.kinds.entry(lane.kind).or_default() += counts;
                *stats.priorities.entry(lane.priority).or_default() += counts;
            }
            stats.paused = conn
                .prepare_cached("SELECT name FROM jobmill_queue WHERE paused_at IS NOT NULL ORDER BY name")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            Ok(stats)
        })
    }

    pub(crate) fn attempts(&self, id: JobId) -> Result<Option<Vec<Attempt>>> {
        self.snapshot("cannot read the attempts", |conn| attempts(conn, id))
    }

    pub(crate) fn log(&self, id: JobId) -> Result<Option<Vec<LogLine>>> {
        self.snapshot("cannot read the log", |conn| {
            let mut known = conn.prepare_cached("SELECT 1 FROM jobmill_job WHERE id = :id")?;
            if !known.exists(named_params! { ":id": id })? {
                return Ok(None);
            }
            conn.prepare_cached("SELECT at, attempt, line FROM jobmill_log WHERE job = :job ORDER BY line_no")?
                .query_map(named_params! { ":job": id }, |row| {
                    Ok(LogLine { at: row.get(0)?, attempt: row.get(1)?, line: row.get(2)? })
                })?
                .collect::<rusqlite::Result<_>>()
                .map(Some)
        })
    }

    pub(crate) fn saved(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        self.snapshot("cannot read the saved state", |conn| {
            conn.prepare_cached("SELECT value FROM jobmill_saved WHERE job = :job")?
                .query_row(named_params! { ":job": id }, |row| row.get(0))
                .optional()
        })
    }

    pub(crate) fn explain(&self, id: JobId, now: Timestamp) -> Result<Option<Explanation>> {
        self.snapshot("cannot explain the job", |conn| explain(conn, id, now))
    }
}

/// Reads every lane. They are few.
pub(crate) fn lanes(conn: &Connection) -> rusqlite::Result<Vec<LaneRow>> {
    conn.prepare_cached(
        "SELECT id, queue, kind, priority, created, pending, running, completed, failed, cancelled, expired, delayed
         FROM jobmill_lane",
    )?
    .query_map([], |row| {
        let mut counts = [0; State::COUNT];
        for (column, count) in counts.iter_mut().enumerate() {
            *count = row.get(column + 4)?;
        }
        Ok(LaneRow { id: row.get(0)?, queue: row.get(1)?, kind: row.get(2)?, priority: row.get(3)?, counts })
    })?
    .collect()
}

pub(crate) fn job(conn: &Connection, id: JobId) -> rusqlite::Result<Option<Job>> {
    let found = conn
        .prepare_cached(PLAN_JOB)?
        .query_row(named_params! { ":id": id }, |row| {
            let queue: String = row.get(JOB_COLUMNS)?;
            let kind: String = row.get(JOB_COLUMNS + 1)?;
            let name = LaneName { queue: &queue, kind: &kind, priority: row.get(JOB_COLUMNS + 2)? };
            let (mut job, aside) = row::job(row, name)?;
            job.progress = row::progress(row, JOB_COLUMNS + 3)?;
            Ok((job, aside))
        })
        .optional()?;
    let Some((mut job, aside)) = found else {
        return Ok(None);
    };
    if aside {
        job.payload = payload_aside(conn, id)?;
    }
    Ok(Some(job))
}

/// Every attempt of a job: the earlier ones from their table, the newest from the job's own row.
fn attempts(conn: &Connection, id: JobId) -> rusqlite::Result<Option<Vec<Attempt>>> {
    struct Newest {
        state: State,
        fence: i64,
        number: u32,
        started_at: Option<Timestamp>,
        ended_at: Option<Timestamp>,
        error: Option<String>,
        owner: Option<i64>,
        worker: Option<u32>,
    }
    let newest = conn
        .prepare_cached(
            "SELECT state, claim, attempt, started_at, completed_at, error, owner, worker
             FROM jobmill_job WHERE id = :id",
        )?
        .query_row(named_params! { ":id": id }, |row| {
            Ok(Newest {
                state: row.get(0)?,
                fence: row.get(1)?,
                number: row.get(2)?,
                started_at: row.get(3)?,
                ended_at: row.get(4)?,
                error: row.get(5)?,
                owner: row.get(6)?,
                worker: row.get(7)?,
            })
        })
        .optional()?;
    let Some(newest) = newest else {
        return Ok(None);
    };
    let mut statement = conn.prepare_cached(
        "SELECT claim, number, started_at, ended_at, outcome, error, owner, worker
         FROM jobmill_attempt WHERE job = :job ORDER BY claim",
    )?;
    let mut rows = statement.query(named_params! { ":job": id })?;
    let mut attempts = Vec::new();
    let mut told = 0;
    while let Some(row) = rows.next()? {
        told = row.get(0)?;
        attempts.push(Attempt {
            number: row.get(1)?,
            started_at: row.get(2)?,
            ended_at: row.get(3)?,
            outcome: row.get(4)?,
            error: row.get(5)?,
            worker: worker_name(conn, row.get(6)?, row.get(7)?)?,
        });
    }
    let outcome = match newest.state {
        State::Running => AttemptOutcome::Running,
        State::Completed => AttemptOutcome::Completed,
        State::Failed => AttemptOutcome::Failed,
        State::Cancelled => AttemptOutcome::Cancelled,
        State::Expired | State::Created | State::Pending | State::Delayed => {
            return Ok(Some(attempts));
        }
    };
    if let Some(started_at) = newest.started_at
        && newest.owner.is_some()
        && newest.fence > told
    {
        let failed = outcome == AttemptOutcome::Failed || outcome == AttemptOutcome::Cancelled;
        attempts.push(Attempt {
            number: newest.number,
            started_at,
            ended_at: newest.ended_at,
            outcome,
            error: newest.error.filter(|_| failed),
            worker: worker_name(conn, newest.owner, newest.worker)?,
        });
    }
    Ok(Some(attempts))
}

fn explain(conn: &Connection, id: JobId, now: Timestamp) -> rusqlite::Result<Option<Explanation>> {
    let Some(job) = job(conn, id)? else {
        return Ok(None);
    };
    let mut reasons = Vec::new();
    match job.status {
        Status::Created => reasons.push(Reason::NotAdmitted),
        Status::Pending => {
            let state: State = conn
                .prepare_cached("SELECT state FROM jobmill_job WHERE id = :id")?
                .query_row(named_params! { ":id": id }, |row| row.get(0))?;
            // A job without a time of its own may run at once, even if the clock has been set back since.
            if state == State::Delayed && job.run_at > now {
                reasons.push(Reason::Scheduled { until: job.run_at, attempt: job.attempt + 1 });
            }
            let paused: Option<Option<Timestamp>> = conn
                .prepare_cached("SELECT paused_at FROM jobmill_queue WHERE name = :name")?
                .query_row(named_params! { ":name": job.queue }, |row| row.get(0))
                .optional()?;
            if let Some(Some(since)) = paused {
                reasons.push(Reason::QueuePaused { queue: job.queue.clone(), since });
            }
            let served = conn
                .prepare_cached(
                    "SELECT 1 FROM jobmill_instance, json_each(jobmill_instance.kinds)
                     WHERE ended_at IS NULL AND json_each.value = :kind",
                )?
                .exists(named_params! { ":kind": job.kind })?;
            if !served {
                reasons.push(Reason::NoHandler { kind: job.kind.clone() });
            }
            if reasons.is_empty() {
                reasons.push(Reason::NoFreeWorker);
            }
            if let Some(expires_at) = job.expires_at {
                reasons.push(Reason::Deadline { expires_at });
            }
        }
        Status::Running => {
            let owner = conn
                .prepare_cached("SELECT owner FROM jobmill_job WHERE id = :id")?
                .query_row(named_params! { ":id": id }, |row| row.get(0))?;
            reasons.push(Reason::Running {
                process: worker_name(conn, owner, None)?.unwrap_or_default(),
                since: job.started_at.unwrap_or(now),
            });
            if let Some(at) = job.cancel_requested_at {
                reasons.push(Reason::CancelRequested { at });
            }
        }
        Status::Failed if job.attempt >= job.max_attempts => {
            reasons.push(Reason::AttemptsSpent { attempts: job.attempt });
        }
        ended => reasons.push(Reason::Ended { status: ended }),
    }
    Ok(Some(Explanation { status: job.status, reasons }))
}

/// Counts the rows that the lanes count, and gives each lane whose counts are wrong.
pub(crate) fn miscounted(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut counted: BTreeMap<i64, [i64; State::COUNT]> = BTreeMap::new();
    let mut statement = conn.prepare("SELECT lane, state, count(*) FROM jobmill_job GROUP BY lane, state")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let state: State = row.get(1)?;
        counted.entry(row.get(0)?).or_default()[state as usize] = row.get(2)?;
    }
    let mut wrong = Vec::new();
    for lane in lanes(conn)? {
        let rows = counted.remove(&lane.id).unwrap_or_default();
        if rows != lane.counts {
            let LaneRow { queue, kind, priority, counts, .. } = &lane;
            wrong.push(format!("lane {queue}/{kind}/{priority} counts {counts:?}, its rows are {rows:?}"));
        }
    }
    wrong.extend(counted.into_keys().map(|lane| format!("jobs are in lane {lane}, which does not exist")));
    Ok(wrong)
}
