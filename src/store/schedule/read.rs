//! What is read of schedules outside of turns.

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use crate::error::Result;
use crate::model::cursor::Order;
use crate::model::id::ScheduleId;
use crate::model::schedule::record::{ScheduleQuery, ScheduleRecord, Tick};
use crate::model::time::Timestamp;
use crate::store::schedule::{outcome, parse};

/// How many schedules of a kind that nobody handles are named.
const NAMED_MAX: usize = 10;

macro_rules! record_columns {
    () => {
        "SELECT schedule.id, schedule.name, anchor, tick, next_at, paused_at, waiting, last_tick, last_job, enqueued,
             missed, skipped, stored.definition, stored.job,
             EXISTS (SELECT 1 FROM jobmill_instance, json_each(jobmill_instance.kinds)
                     WHERE ended_at IS NULL AND json_each.value = schedule.kind)
         FROM jobmill_schedule AS schedule
         JOIN jobmill_schedule_definition AS stored ON stored.schedule = schedule.id "
    };
}

/// Reads a page, either way, of all schedules or of those of one kind.
pub(crate) const PLAN_PAGES: [&str; 4] = [
    concat!(
        record_columns!(),
        "WHERE schedule.id > :after AND schedule.id < :before
         AND (:paused IS NULL OR (paused_at IS NOT NULL) = :paused) ORDER BY schedule.id ASC LIMIT :limit"
    ),
    concat!(
        record_columns!(),
        "WHERE schedule.id > :after AND schedule.id < :before
         AND (:paused IS NULL OR (paused_at IS NOT NULL) = :paused) ORDER BY schedule.id DESC LIMIT :limit"
    ),
    concat!(
        record_columns!(),
        "WHERE schedule.kind = :kind AND schedule.id > :after AND schedule.id < :before
         AND (:paused IS NULL OR (paused_at IS NOT NULL) = :paused) ORDER BY schedule.id ASC LIMIT :limit"
    ),
    concat!(
        record_columns!(),
        "WHERE schedule.kind = :kind AND schedule.id > :after AND schedule.id < :before
         AND (:paused IS NULL OR (paused_at IS NOT NULL) = :paused) ORDER BY schedule.id DESC LIMIT :limit"
    ),
];

/// A schedule whose definition may be unreadable.
type Found = Result<ScheduleRecord>;

fn record(row: &Row<'_>) -> rusqlite::Result<Found> {
    let (definition, job): (String, String) = (row.get(12)?, row.get(13)?);
    let schedule = match parse(row.get(1)?, &definition, &job) {
        Ok(schedule) => schedule,
        Err(error) => return Ok(Err(error)),
    };
    let count = |column| -> rusqlite::Result<u64> { Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0)) };
    Ok(Ok(ScheduleRecord {
        id: row.get(0)?,
        schedule,
        anchor: row.get(2)?,
        next_tick: row.get(3)?,
        next_at: row.get(4)?,
        paused_at: row.get(5)?,
        waiting_tick: row.get(6)?,
        last_tick: row.get(7)?,
        last_job: row.get(8)?,
        enqueued: count(9)?,
        missed: count(10)?,
        skipped: count(11)?,
        is_handled: row.get(14)?,
    }))
}

/// A schedule by its id.
pub(crate) fn by_id(conn: &Connection, id: ScheduleId) -> rusqlite::Result<Option<Found>> {
    conn.prepare_cached(concat!(record_columns!(), "WHERE schedule.id = :id"))?
        .query_row(named_params! { ":id": id }, record)
        .optional()
}

/// A schedule by its name.
pub(crate) fn by_name(conn: &Connection, name: &str) -> rusqlite::Result<Option<Found>> {
    conn.prepare_cached(concat!(record_columns!(), "WHERE schedule.name = :name"))?
        .query_row(named_params! { ":name": name }, record)
        .optional()
}

/// At most `limit` schedules of a query.
pub(crate) fn page(conn: &Connection, query: &ScheduleQuery, limit: usize) -> rusqlite::Result<Vec<Found>> {
    let backwards = usize::from(query.cursor.order == Order::Descending);
    let after = query.cursor.after.map_or(0, ScheduleId::raw);
    let before = query.cursor.before.map_or(i64::MAX, ScheduleId::raw);
    let limit = limit as i64;
    match &query.kind {
        None => conn
            .prepare_cached(PLAN_PAGES[backwards])?
            .query_map(
                named_params! { ":after": after, ":before": before, ":paused": query.paused, ":limit": limit },
                record,
            )?
            .collect(),
        Some(kind) => conn
            .prepare_cached(PLAN_PAGES[2 + backwards])?
            .query_map(
                named_params! {
                    ":kind": kind, ":after": after, ":before": before, ":paused": query.paused, ":limit": limit,
                },
                record,
            )?
            .collect(),
    }
}

/// Counts the schedules that tick, and tells when the next one is due.
const OUTLOOK: &str = "SELECT count(*), min(next_at) FROM jobmill_schedule
     INDEXED BY jobmill_schedule_due WHERE next_at IS NOT NULL";

/// How many schedules tick, and when the next one is due.
pub(crate) fn outlook(conn: &Connection) -> rusqlite::Result<(u64, Option<Timestamp>)> {
    conn.prepare_cached(OUTLOOK)?.query_row([], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?)))
}

/// The lines that are kept of a schedule's history, the newest first. None if there is no such schedule.
pub(crate) fn history(conn: &Connection, id: ScheduleId) -> rusqlite::Result<Option<Vec<Tick>>> {
    if !conn.prepare_cached("SELECT 1 FROM jobmill_schedule WHERE id = :id")?.exists(named_params! { ":id": id })? {
        return Ok(None);
    }
    let mut lines: Vec<Tick> = conn
        .prepare_cached("SELECT number, tick, at, outcome, until, count, job FROM jobmill_tick WHERE schedule = :id")?
        .query_map(named_params! { ":id": id }, |row| {
            Ok(Tick {
                number: row.get::<_, i64>(0)?.cast_unsigned(),
                tick: row.get(1)?,
                at: row.get(2)?,
                outcome: outcome(row.get(3)?, row.get::<_, Option<Timestamp>>(4)?, row.get(5)?, row.get(6)?),
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    lines.sort_by_key(|line| std::cmp::Reverse(line.number));
    Ok(Some(lines))
}

/// Looks at the schedules, and gives each that cannot be read or that stands where none can.
pub(crate) fn unsound(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut statement = conn.prepare(
        "SELECT schedule.id, name, kind, definition, job,
             (tick IS NULL) <> (next_at IS NULL) OR coalesce(next_at < tick, FALSE) OR (paused_at IS NOT NULL AND tick IS NOT NULL)
                 OR (waiting IS NOT NULL AND (last_job IS NULL OR paused_at IS NOT NULL))
         FROM jobmill_schedule AS schedule
         LEFT JOIN jobmill_schedule_definition AS stored ON stored.schedule = schedule.id ORDER BY schedule.id",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, name, kind): (ScheduleId, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let definition = row.get::<_, Option<String>>(3)?.unwrap_or_default();
        let job = row.get::<_, Option<String>>(4)?.unwrap_or_default();
        match parse(name.clone(), &definition, &job).and_then(|schedule| schedule.check().map(|()| schedule)) {
            Err(error) => wrong.push(format!("the schedule {name} ({id}) cannot be read: {error}")),
            Ok(schedule) if schedule.kind() != kind => {
                wrong.push(format!("the schedule {name} ({id}) is not listed by the kind of its job"));
            }
            Ok(_) => {}
        }
        if row.get(5)? {
            wrong.push(format!("the schedule {name} ({id}) waits for no moment that it has"));
        }
    }
    let stray: i64 = conn.query_row(
        "SELECT (SELECT count(*) FROM jobmill_schedule_definition WHERE schedule NOT IN (SELECT id FROM jobmill_schedule))
              + (SELECT count(*) FROM jobmill_tick WHERE schedule NOT IN (SELECT id FROM jobmill_schedule))",
        [],
        |row| row.get(0),
    )?;
    if stray > 0 {
        wrong.push(format!("{stray} definitions and ticks are of schedules that do not exist"));
    }
    Ok(wrong)
}

/// Kinds of schedules' jobs for which no open engine has a handler, each with the names of some of its schedules.
pub(crate) fn unhandled(conn: &Connection) -> rusqlite::Result<Vec<(String, Vec<String>)>> {
    let mut kinds = conn.prepare_cached(
        "SELECT DISTINCT kind FROM jobmill_schedule AS schedule
         WHERE NOT EXISTS (SELECT 1 FROM jobmill_instance, json_each(jobmill_instance.kinds)
                           WHERE ended_at IS NULL AND json_each.value = schedule.kind)",
    )?;
    let kinds: Vec<String> = kinds.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut names = conn.prepare_cached("SELECT name FROM jobmill_schedule WHERE kind = :kind LIMIT :limit")?;
    kinds
        .into_iter()
        .map(|kind| {
            let some = named_params! { ":kind": kind, ":limit": NAMED_MAX as i64 };
            let named = names.query_map(some, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            Ok((kind, named))
        })
        .collect()
}
