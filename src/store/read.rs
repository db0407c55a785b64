//! What is read outside of turns: one job, its attempts and its log, and the counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::error::{Error, ErrorKind, Result};
use crate::model::attempt::{Attempt, AttemptOutcome, LogLine};
use crate::model::id::JobId;
use crate::model::job::{Job, Priority, Status};
use crate::model::job_type::JobType;
use crate::model::stats::{Stats, StatusCounts};
use crate::model::time::Timestamp;
use crate::store::connect::{DEFAULT_PATIENCE, storage_error, with_patience};
use crate::store::contact::{Contact, is_of_connection};
use crate::store::instance::worker_name;
use crate::store::place::LaneKey;
use crate::store::row::{self, JOB_COLUMNS, State, job_columns};

/// The door for reading: each call sees one snapshot, beside the writer.
#[derive(Clone)]
pub(crate) struct Reader {
    contact: Arc<Contact>,
}

/// A lane as its row has it.
pub(crate) struct LaneRow {
    pub(crate) id: i64,
    pub(crate) queue: String,
    pub(crate) kind: String,
    pub(crate) priority: Priority,
    pub(crate) job_type: JobType,
    pub(crate) background: bool,
    pub(crate) owned: bool,
    pub(crate) counts: [i64; State::COUNT],
}

/// A user's share of a lane as its row has it.
pub(crate) struct ShareRow {
    pub(crate) id: i64,
    pub(crate) lane: i64,
    pub(crate) counts: [i64; State::COUNT],
}

/// Reads one job.
pub(crate) const PLAN_JOB: &str = concat!(
    "SELECT ",
    job_columns!(),
    ", lane.queue, lane.kind, lane.priority, lane.job_type, lane.background, lane.owned,
         progress.done, progress.total, progress.note
     FROM jobmill_job AS job
     JOIN (SELECT id AS lane_id, queue, kind, priority, job_type, background, owned FROM jobmill_lane) AS lane
         ON lane.lane_id = job.lane
     LEFT JOIN jobmill_progress AS progress ON progress.job = job.id
     WHERE job.id = :id"
);

impl Reader {
    pub(crate) fn new(contact: Arc<Contact>) -> Self {
        Self { contact }
    }

    /// Runs `work` on a snapshot.
    pub(crate) fn snapshot<R>(&self, doing: &str, work: impl FnOnce(&Connection) -> rusqlite::Result<R>) -> Result<R> {
        self.snapshot_within(DEFAULT_PATIENCE, doing, work)
    }

    /// The same for one who does not wait for long, neither for a reader to be free nor for a lock.
    pub(crate) fn snapshot_within<R>(
        &self,
        patience: Duration,
        doing: &str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<R>,
    ) -> Result<R> {
        let conn = self
            .contact
            .readers()?
            .get_timeout(patience)
            .map_err(|error| Error::with_source(ErrorKind::Busy, format!("{doing}: no reader is free"), error))?;
        let result = with_patience(patience, || {
            let result = conn.prepare_cached("BEGIN").and_then(|mut begin| begin.execute([])).and_then(|_| work(&conn));
            let ended = conn.prepare_cached("COMMIT").and_then(|mut end| end.execute([]));
            result.and_then(|result| ended.map(|_| result))
        });
        result.map_err(|error| storage_error(doing, error)).inspect_err(|error| {
            if is_of_connection(error) {
                self.contact.forget_readers();
            }
        })
    }

    /// Runs `work` on a snapshot in which a job must exist for the user, if one is given.
    pub(crate) fn of_job<R>(
        &self,
        doing: &str,
        id: JobId,
        user: Option<&str>,
        work: impl FnOnce(&Connection) -> rusqlite::Result<Option<R>>,
    ) -> Result<Option<R>> {
        self.snapshot(doing, |conn| match user {
            Some(user) if is_foreign(conn, id, user)? => Ok(None),
            _ => work(conn),
        })
    }

    pub(crate) fn job(&self, id: JobId, user: Option<&str>) -> Result<Option<Job>> {
        self.of_job("cannot read the job", id, user, |conn| job(conn, id))
    }

    pub(crate) fn status(&self, id: JobId, user: Option<&str>) -> Result<Option<Status>> {
        self.of_job("cannot read the job", id, user, |conn| {
            conn.prepare_cached("SELECT state FROM jobmill_job WHERE id = :id")?
                .query_row(named_params! { ":id": id }, |row| row.get::<_, State>(0).map(State::status))
                .optional()
        })
    }

    /// Counts all jobs, or those of one user.
    pub(crate) fn stats(&self, user: Option<&str>, now: Timestamp) -> Result<Stats> {
        self.snapshot("cannot read the counts", |conn| stats(conn, user, now))
    }

    /// The same for everybody's jobs, for one who does not wait for long.
    pub(crate) fn stats_within(&self, patience: Duration, now: Timestamp) -> Result<Stats> {
        self.snapshot_within(patience, "cannot read the counts", |conn| stats(conn, None, now))
    }

    pub(crate) fn attempts(&self, id: JobId, user: Option<&str>) -> Result<Option<Vec<Attempt>>> {
        self.of_job("cannot read the attempts", id, user, |conn| attempts(conn, id))
    }

    pub(crate) fn log(&self, id: JobId, user: Option<&str>) -> Result<Option<Vec<LogLine>>> {
        self.of_job("cannot read the log", id, user, |conn| {
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
}

/// The counters of a row, from `first` on.
fn counts(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<[i64; State::COUNT]> {
    let mut counts = [0; State::COUNT];
    for (column, count) in counts.iter_mut().enumerate() {
        *count = row.get(first + column)?;
    }
    Ok(counts)
}

/// Reads every lane. They are few.
pub(crate) fn lanes(conn: &Connection) -> rusqlite::Result<Vec<LaneRow>> {
    conn.prepare_cached(
        "SELECT id, queue, kind, priority, job_type, background, owned,
             created, pending, running, completed, failed, cancelled, expired, delayed, held
         FROM jobmill_lane",
    )?
    .query_map([], |row| Ok(LaneRow { counts: counts(row, 7)?, ..lane_row(row)? }))?
    .collect()
}

/// Makes a lane of the first seven columns of a row, its counts apart.
pub(crate) fn lane_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<LaneRow> {
    Ok(LaneRow {
        id: row.get(0)?,
        queue: row.get(1)?,
        kind: row.get(2)?,
        priority: row.get(3)?,
        job_type: row.get(4)?,
        background: row.get(5)?,
        owned: row.get(6)?,
        counts: [0; State::COUNT],
    })
}

/// Whether a job stands in the file that is not this user's.
pub(crate) fn is_foreign(conn: &Connection, id: JobId, user: &str) -> rusqlite::Result<bool> {
    Ok(owner(conn, id)?.is_some_and(|owner| owner.as_deref() != Some(user)))
}

/// Whether there is such a job for this user, or for somebody who is bound to none.
pub(crate) fn exists_for(conn: &Connection, id: JobId, user: Option<&str>) -> rusqlite::Result<bool> {
    Ok(owner(conn, id)?.is_some_and(|owner| user.is_none() || owner.as_deref() == user))
}

/// Whose a job is. The outer one is none: there is no such job.
fn owner(conn: &Connection, id: JobId) -> rusqlite::Result<Option<Option<String>>> {
    conn.prepare_cached(
        "SELECT (SELECT user_id FROM jobmill_share WHERE jobmill_share.id = share) FROM jobmill_job WHERE id = :id",
    )?
    .query_row(named_params! { ":id": id }, |row| row.get(0))
    .optional()
}

/// Reads the shares that a user has of lanes.
pub(crate) fn shares_of(conn: &Connection, user: &str) -> rusqlite::Result<Vec<ShareRow>> {
    conn.prepare_cached(
        "SELECT id, lane, created, pending, running, completed, failed, cancelled, expired, delayed, held
         FROM jobmill_share WHERE user_id = :user",
    )?
    .query_map(named_params! { ":user": user }, |row| {
        Ok(ShareRow { id: row.get(0)?, lane: row.get(1)?, counts: counts(row, 2)? })
    })?
    .collect()
}

/// Counts by status, of those by state.
pub(crate) fn status_counts(by_state: &[i64; State::COUNT]) -> StatusCounts {
    let mut counts = StatusCounts::default();
    for state in State::ALL {
        *counts.of_mut(state.status()) += u64::try_from(by_state[state as usize]).unwrap_or(0);
    }
    counts
}

/// The first job of a lane or a share that waits since it was created, and the first whose own time has come.
const OLDEST: [[&str; 2]; 2] = [
    [
        "SELECT id >> 10 FROM jobmill_job INDEXED BY jobmill_job_place WHERE lane = :of AND state = 1 ORDER BY id LIMIT 1",
        "SELECT run_at FROM jobmill_job INDEXED BY jobmill_job_delayed
         WHERE lane = :of AND state = 7 ORDER BY run_at LIMIT 1",
    ],
    [
        "SELECT id >> 10 FROM jobmill_job INDEXED BY jobmill_job_share WHERE share = :of AND state = 1 ORDER BY id LIMIT 1",
        "SELECT run_at FROM jobmill_job INDEXED BY jobmill_job_share_delayed
         WHERE share = :of AND state = 7 ORDER BY run_at LIMIT 1",
    ],
];

pub(crate) fn stats(conn: &Connection, user: Option<&str>, now: Timestamp) -> rusqlite::Result<Stats> {
    let mut stats = Stats::default();
    let mut lanes = lanes(conn)?;
    // Each lane by its own counters, or by those of the user's share of it.
    let counted: Vec<(LaneRow, i64)> = match user {
        None => lanes
            .drain(..)
            .map(|lane| {
                let id = lane.id;
                (lane, id)
            })
            .collect(),
        Some(user) => shares_of(conn, user)?
            .into_iter()
            .filter_map(|share| {
                let at = lanes.iter().position(|lane| lane.id == share.lane)?;
                Some((LaneRow { counts: share.counts, ..lanes.swap_remove(at) }, share.id))
            })
            .collect(),
    };
    for (lane, of) in counted {
        let counts = status_counts(&lane.counts);
        stats.total += counts;
        *stats.kinds.entry(lane.kind).or_default() += counts;
        *stats.priorities.entry(lane.priority).or_default() += counts;
        *stats.job_types.entry(lane.job_type).or_default() += counts;
        for (state, sql) in [State::Pending, State::Delayed].into_iter().zip(OLDEST[usize::from(user.is_some())]) {
            if lane.counts[state as usize] == 0 {
                continue;
            }
            let first: Option<Timestamp> =
                conn.prepare_cached(sql)?.query_row(named_params! { ":of": of }, |row| row.get(0)).optional()?;
            if let Some(first) = first.filter(|first| *first <= now) {
                let oldest = stats.oldest_waiting.entry(lane.queue.clone()).or_insert(first);
                *oldest = first.min(*oldest);
            }
        }
        *stats.queues.entry(lane.queue).or_default() += counts;
    }
    stats.paused = conn
        .prepare_cached("SELECT name FROM jobmill_queue WHERE paused_at IS NOT NULL ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(stats)
}

pub(crate) fn job(conn: &Connection, id: JobId) -> rusqlite::Result<Option<Job>> {
    let found = conn
        .prepare_cached(PLAN_JOB)?
        .query_row(named_params! { ":id": id }, |row| {
            let queue: String = row.get(JOB_COLUMNS)?;
            let kind: String = row.get(JOB_COLUMNS + 1)?;
            let lane = LaneKey {
                queue: &queue,
                kind: &kind,
                priority: row.get(JOB_COLUMNS + 2)?,
                job_type: row.get(JOB_COLUMNS + 3)?,
                background: row.get(JOB_COLUMNS + 4)?,
                owned: row.get(JOB_COLUMNS + 5)?,
            };
            let (mut job, aside) = row::job(row, lane)?;
            job.progress = row::progress(row, JOB_COLUMNS + 6)?;
            Ok((job, aside))
        })
        .optional()?;
    let Some((mut job, aside)) = found else {
        return Ok(None);
    };
    aside.fetch(conn, &mut job)?;
    Ok(Some(job))
}

/// Every attempt of a job: the earlier ones from their table, the newest from the job's own row.
pub(crate) fn attempts(conn: &Connection, id: JobId) -> rusqlite::Result<Option<Vec<Attempt>>> {
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
        State::Expired | State::Created | State::Pending | State::Delayed | State::Held => {
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

/// Counts the rows that lanes and shares count, and gives each whose counts are wrong.
pub(crate) fn miscounted(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let recount = |column: &str| -> rusqlite::Result<BTreeMap<i64, [i64; State::COUNT]>> {
        let mut counted: BTreeMap<i64, [i64; State::COUNT]> = BTreeMap::new();
        let sql = format!(
            "SELECT {column}, state, count(*) FROM jobmill_job WHERE {column} IS NOT NULL GROUP BY {column}, state"
        );
        let mut statement = conn.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let state: State = row.get(1)?;
            counted.entry(row.get(0)?).or_default()[state as usize] = row.get(2)?;
        }
        Ok(counted)
    };
    let mut wrong = Vec::new();
    let mut counted = recount("lane")?;
    for lane in lanes(conn)? {
        let rows = counted.remove(&lane.id).unwrap_or_default();
        if rows != lane.counts {
            let LaneRow { queue, kind, priority, counts, .. } = &lane;
            wrong.push(format!("lane {queue}/{kind}/{priority} counts {counts:?}, its rows are {rows:?}"));
        }
    }
    wrong.extend(counted.into_keys().map(|lane| format!("jobs are in lane {lane}, which does not exist")));
    let mut counted = recount("share")?;
    let mut statement = conn.prepare(
        "SELECT id, lane, user_id, created, pending, running, completed, failed, cancelled, expired, delayed, held
         FROM jobmill_share",
    )?;
    let mut shares = statement.query([])?;
    while let Some(row) = shares.next()? {
        let rows = counted.remove(&row.get(0)?).unwrap_or_default();
        let counts = counts(row, 3)?;
        if rows != counts {
            let (lane, user): (i64, String) = (row.get(1)?, row.get(2)?);
            wrong.push(format!("the share of {user} in lane {lane} counts {counts:?}, its rows are {rows:?}"));
        }
    }
    wrong.extend(counted.into_keys().map(|share| format!("jobs are of share {share}, which does not exist")));
    let misplaced: i64 = conn.query_row(
        "SELECT count(*) FROM jobmill_job JOIN jobmill_lane ON jobmill_lane.id = jobmill_job.lane
         LEFT JOIN jobmill_share ON jobmill_share.id = jobmill_job.share
         WHERE owned <> (share IS NOT NULL) OR (share IS NOT NULL AND jobmill_share.lane <> jobmill_job.lane)",
        [],
        |row| row.get(0),
    )?;
    if misplaced > 0 {
        wrong.push(format!("{misplaced} jobs have a share that is not of their lane"));
    }
    Ok(wrong)
}
