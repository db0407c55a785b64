//! Reading how limits stand, and why they hold a job.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::model::explain::Reason;
use crate::model::id::JobId;
use crate::model::job::Job;
use crate::model::limit::{Limit, LimitUsage, Rate, blocked, nanos};
use crate::model::new_batch::BATCH_KIND;
use crate::model::time::Timestamp;
use crate::store::gate::{micros, rate};
use crate::store::row::whole;

macro_rules! usage_columns {
    () => {
        "SELECT key, running, full_at, blocked_until,
             (SELECT coalesce(sum(held), 0) FROM jobmill_gate_lane WHERE gate = jobmill_gate.id)
         FROM jobmill_gate"
    };
}

/// Reads keys of a limit in their order, from the first on or behind one.
pub(crate) const PLAN_USAGES: [&str; 2] = [
    concat!(usage_columns!(), " WHERE limit_id = ?1 AND key >= ?2 ORDER BY key LIMIT ?3"),
    concat!(usage_columns!(), " WHERE limit_id = ?1 AND key > ?2 ORDER BY key LIMIT ?3"),
];

/// Reads what the first jobs cost that go before one in its queue.
pub(crate) const PLAN_AHEAD: &str = "SELECT coalesce(max(cost), 0) FROM (
         SELECT (SELECT coalesce(cost, 1) FROM jobmill_job INDEXED BY jobmill_job_place
                 WHERE lane = lane.id AND state = 1 AND (lane.priority < ?2 OR id < ?3) ORDER BY id LIMIT 1) AS cost
         FROM jobmill_lane AS lane WHERE queue = ?1 AND priority <= ?2 AND pending > 0)";

/// Every limit, by name.
pub(crate) fn limits(conn: &Connection) -> rusqlite::Result<Vec<Limit>> {
    read_limits(conn, "SELECT name, concurrency, rate, period_us, burst FROM jobmill_limit ORDER BY name")
}

/// Every queue that is bounded, by name.
pub(crate) fn queue_limits(conn: &Connection) -> rusqlite::Result<Vec<Limit>> {
    read_limits(
        conn,
        "SELECT name, concurrency, rate, period_us, burst FROM jobmill_queue
         WHERE concurrency IS NOT NULL OR rate IS NOT NULL ORDER BY name",
    )
}

fn read_limits(conn: &Connection, sql: &'static str) -> rusqlite::Result<Vec<Limit>> {
    conn.prepare_cached(sql)?
        .query_map([], |row| {
            Ok(Limit { name: row.get(0)?, concurrency: row.get(1)?, rate: rate(row, 2)?, lone_burst: None })
        })?
        .collect()
}

/// How one key of a limit stands. None if there is no limit of this name.
pub(crate) fn usage(conn: &Connection, name: &str, key: &str, now: Timestamp) -> rusqlite::Result<Option<LimitUsage>> {
    let Some((limit, rate)) = rate_of(conn, name)? else { return Ok(None) };
    let usage = conn
        .prepare_cached(concat!(usage_columns!(), " WHERE limit_id = ?1 AND key = ?2"))?
        .query_row(params![limit, key], |row| read_usage(row, name, rate, now))
        .optional()?;
    Ok(Some(usage.unwrap_or_else(|| LimitUsage {
        limit: name.to_owned(),
        key: key.to_owned(),
        running: 0,
        held: 0,
        tokens: rate.map(|rate| rate.level(0, nanos(now))),
        blocked_until: None,
    })))
}

/// How the keys of a limit stand that jobs have named, in their order behind one. None if there is no limit of this name.
pub(crate) fn usages(
    conn: &Connection,
    name: &str,
    after: Option<&str>,
    limit: usize,
    now: Timestamp,
) -> rusqlite::Result<Option<Vec<LimitUsage>>> {
    let Some((id, rate)) = rate_of(conn, name)? else { return Ok(None) };
    conn.prepare_cached(PLAN_USAGES[usize::from(after.is_some())])?
        .query_map(params![id, after.unwrap_or_default(), limit as i64], |row| read_usage(row, name, rate, now))?
        .collect::<rusqlite::Result<_>>()
        .map(Some)
}

/// The id of a limit, and its rate.
fn rate_of(conn: &Connection, name: &str) -> rusqlite::Result<Option<(i64, Option<Rate>)>> {
    conn.prepare_cached("SELECT id, rate, period_us, burst FROM jobmill_limit WHERE name = ?1")?
        .query_row([name], |row| Ok((row.get(0)?, rate(row, 1)?)))
        .optional()
}

fn read_usage(row: &Row<'_>, name: &str, rate: Option<Rate>, now: Timestamp) -> rusqlite::Result<LimitUsage> {
    let (full_at, blocked_until): (i64, i64) = (row.get(2)?, row.get(3)?);
    Ok(LimitUsage {
        limit: name.to_owned(),
        key: row.get(0)?,
        running: whole(row, 1)?.unwrap_or(0),
        held: whole(row, 4)?.unwrap_or(0),
        tokens: rate.map(|rate| rate.level(full_at, nanos(now))),
        blocked_until: blocked(blocked_until, now).map(Timestamp::from_micros),
    })
}

/// Why a gate holds a job.
pub(crate) fn explain(conn: &Connection, job: JobId, now: Timestamp) -> rusqlite::Result<Option<Reason>> {
    conn.prepare_cached(
        "SELECT name, key, running, concurrency, blocked_until, wake_at
         FROM jobmill_job AS job JOIN jobmill_line_lane AS line ON line.line = job.line AND line.lane = job.lane
         JOIN jobmill_gate AS gate ON gate.id = line.gate
         JOIN jobmill_limit AS bounds ON bounds.id = gate.limit_id
         WHERE job.id = ?1 AND job.state = 8",
    )?
    .query_row([job], |row| {
        let (blocked_until, wake_at): (Timestamp, Option<Timestamp>) = (row.get(4)?, row.get(5)?);
        Ok(Reason::Limited {
            limit: row.get(0)?,
            key: row.get(1)?,
            running: row.get(2)?,
            concurrency: row.get(3)?,
            until: wake_at
                .filter(|at| *at > now)
                .max(blocked(blocked_until.as_micros(), now).map(Timestamp::from_micros)),
        })
    })
    .optional()
}

/// How a queue stands. None if it has no bounds.
pub(crate) fn queue_usage(conn: &Connection, queue: &str, now: Timestamp) -> rusqlite::Result<Option<LimitUsage>> {
    Ok(queue_bounds(conn, queue)?.map(|bounds| LimitUsage {
        limit: queue.to_owned(),
        key: String::new(),
        running: bounds.running.into(),
        held: bounds.pending,
        tokens: bounds.rate.map(|rate| rate.level(bounds.full_at, nanos(now))),
        blocked_until: bounds.blocked_until(now),
    }))
}

/// Why a queue does not let a job of this cost start, if it does not.
pub(crate) fn explain_queue(
    conn: &Connection,
    job: &Job,
    cost: u32,
    now: Timestamp,
) -> rusqlite::Result<Option<Reason>> {
    let queue = &job.queue;
    let Some(bounds) = queue_bounds(conn, queue)? else { return Ok(None) };
    // A dear job is not overtaken by what comes after it.
    let token_at = match bounds.rate {
        Some(rate) => Some(rate.ready_at(bounds.full_at, cost.max(dearest_ahead(conn, job)?), nanos(now))),
        None => None,
    };
    let token_at = token_at.map(|at| Timestamp::from_micros(micros(at)));
    let until = token_at.filter(|at| *at > now).max(bounds.blocked_until(now));
    let (running, concurrency) = (bounds.running, bounds.concurrency);
    let full = concurrency.is_some_and(|most| running >= most);
    Ok((full || until.is_some()).then(|| Reason::QueueLimited { queue: queue.clone(), running, concurrency, until }))
}

/// What bounds a queue, and how much of it is used.
struct QueueBounds {
    concurrency: Option<u32>,
    rate: Option<Rate>,
    full_at: i64,
    blocked_until: i64,
    running: u32,
    pending: u64,
}

impl QueueBounds {
    fn blocked_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.rate.and(blocked(self.blocked_until, now)).map(Timestamp::from_micros)
    }
}

fn queue_bounds(conn: &Connection, queue: &str) -> rusqlite::Result<Option<QueueBounds>> {
    conn.prepare_cached(
        "SELECT concurrency, rate, period_us, burst, full_at, blocked_until,
             coalesce(sum(running), 0), coalesce(sum(pending + delayed + held), 0)
         FROM jobmill_queue LEFT JOIN jobmill_lane
             ON jobmill_lane.queue = jobmill_queue.name AND kind NOT IN ('', ?2)
         WHERE name = ?1 AND (concurrency IS NOT NULL OR rate IS NOT NULL)
         GROUP BY jobmill_queue.name",
    )?
    .query_row([queue, BATCH_KIND], |row| {
        Ok(QueueBounds {
            concurrency: row.get(0)?,
            rate: rate(row, 1)?,
            full_at: row.get(4)?,
            blocked_until: row.get(5)?,
            running: row.get(6)?,
            pending: whole(row, 7)?.unwrap_or(0),
        })
    })
    .optional()
}

/// The most that one of the first jobs costs which go before a job in its queue.
fn dearest_ahead(conn: &Connection, job: &Job) -> rusqlite::Result<u32> {
    conn.prepare_cached(PLAN_AHEAD)?.query_row(params![job.queue, job.priority.rank() as i64, job.id], |row| row.get(0))
}

/// Counts the jobs that gates count, and gives each whose counts are wrong.
pub(crate) fn miscounted(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut wrong: Vec<String> = conn
        .prepare(
            "WITH used AS (SELECT job.id, job.lane, job.state, value ->> '$[0]' AS gate
                 FROM jobmill_job AS job, json_each(job.limits) WHERE job.limits IS NOT NULL)
             SELECT gate.id, jobs, running, count(used.id), coalesce(sum(used.state = 2), 0)
             FROM jobmill_gate AS gate LEFT JOIN used ON used.gate = gate.id
             GROUP BY gate.id HAVING jobs <> count(used.id) OR running <> coalesce(sum(used.state = 2), 0)",
        )?
        .query_map([], |row| {
            let counts: [i64; 5] = [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?];
            let [gate, jobs, running, rows, rows_running] = counts;
            Ok(format!(
                "gate {gate} counts {jobs} jobs, {running} running; its rows are {rows}, {rows_running} running"
            ))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let in_lanes: Vec<String> = conn
        .prepare(
            "WITH used AS (SELECT job.lane AS lane, value ->> '$[0]' AS gate, job.state = 1 AS ready,
                     job.state = 8 AND line.gate = value ->> '$[0]' AS held
                 FROM jobmill_job AS job JOIN json_each(job.limits)
                 LEFT JOIN jobmill_line_lane AS line ON line.line = job.line AND line.lane = job.lane WHERE job.limits IS NOT NULL),
             counted AS (SELECT gate, lane, sum(ready) AS ready, sum(held) AS held FROM used GROUP BY gate, lane
                 HAVING sum(ready) > 0 OR sum(held) > 0)
             SELECT gate, lane, ready, held, 'counted' FROM (
                 SELECT gate, lane, ready, held FROM counted
                 EXCEPT SELECT gate, lane, ready, held FROM jobmill_gate_lane)
             UNION ALL SELECT gate, lane, ready, held, 'written' FROM (
                 SELECT gate, lane, ready, held FROM jobmill_gate_lane
                 EXCEPT SELECT gate, lane, ready, held FROM counted)",
        )?
        .query_map([], |row| {
            let counts: [i64; 4] = [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?];
            let [gate, lane, ready, held] = counts;
            let source: String = row.get(4)?;
            Ok(format!("gate {gate} in lane {lane}: {ready} ready and {held} held are {source}"))
        })?
        .collect::<rusqlite::Result<_>>()?;
    wrong.extend(in_lanes);
    wrong.extend(lost(conn)?);
    Ok(wrong)
}

/// Looks for jobs that nobody would ever let go, for their gate has room and no time at which to look at it, and for those
/// whose gates are not theirs.
fn lost(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut lost: Vec<String> = conn
        .prepare(
            "SELECT gate, lane, held FROM jobmill_gate_lane AS waiting
             JOIN jobmill_gate AS gate ON gate.id = waiting.gate
             JOIN jobmill_limit AS bounds ON bounds.id = gate.limit_id
             WHERE held > 0 AND ready = 0 AND wake_at IS NULL AND (concurrency IS NULL OR running < concurrency)",
        )?
        .query_map([], |row| {
            let [gate, lane, held]: [i64; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
            Ok(format!("gate {gate} has room and holds {held} jobs of lane {lane}"))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let strange: i64 = conn.query_row(
        "SELECT count(*) FROM jobmill_job AS job WHERE limits IS NOT NULL AND EXISTS (
                 SELECT 1 FROM json_each(limits) WHERE value ->> '$[0]' NOT IN (SELECT id FROM jobmill_gate))
             OR state = 8 AND (limits IS NULL OR NOT EXISTS (
                 SELECT 1 FROM jobmill_line_lane AS standing JOIN jobmill_line AS line ON line.id = standing.line
                 WHERE standing.line = job.line AND standing.lane = job.lane
                     AND gates = (SELECT json_group_array(gate) FROM (
                         SELECT value ->> '$[0]' AS gate FROM json_each(limits) ORDER BY 1))))",
        [],
        |row| row.get(0),
    )?;
    if strange > 0 {
        lost.push(format!("{strange} jobs name gates that are not there, or are held by one that is not theirs"));
    }
    let lines: i64 = conn.query_row(
        "SELECT count(*) FROM (
             SELECT line, lane, held FROM jobmill_line_lane
             EXCEPT SELECT line, lane, count(*) FROM jobmill_job WHERE state = 8 GROUP BY line, lane)",
        [],
        |row| row.get(0),
    )?;
    if lines > 0 {
        lost.push(format!("{lines} lines count other jobs than stand in them"));
    }
    Ok(lost)
}
