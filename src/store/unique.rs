//! Unique keys: one row a key, replaced only when its holder has let go.

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::model::id::JobId;
use crate::model::time::Timestamp;
use crate::model::unique::Unique;

/// The condition under which the row of a key still binds: its job is in one of its statuses, and its period runs.
/// States 7 and 8 are status 1 (see `store::row::State`), and an id holds its time above ten bits.
macro_rules! held {
    () => {
        "EXISTS (SELECT 1 FROM jobmill_job AS holder WHERE holder.id = jobmill_unique.job
             AND (jobmill_unique.statuses >> (CASE WHEN holder.state > 6 THEN 1 ELSE holder.state END)) & 1
             AND (jobmill_unique.period_us IS NULL OR (holder.id >> 10) + jobmill_unique.period_us > :now))"
    };
}

/// Takes the key for `job`, or tells who holds it.
pub(crate) fn take(
    conn: &Connection,
    unique: &Unique,
    scoped_key: &str,
    job: JobId,
    now: Timestamp,
) -> rusqlite::Result<Option<JobId>> {
    let period_us = unique.period.map(|period| i64::try_from(period.as_micros()).unwrap_or(i64::MAX >> 1));
    let taken = conn
        .prepare_cached(concat!(
            "INSERT INTO jobmill_unique (key, job, statuses, period_us) VALUES (:key, :job, :statuses, :period_us)
             ON CONFLICT (key) DO UPDATE
             SET job = excluded.job, statuses = excluded.statuses, period_us = excluded.period_us
             WHERE NOT ",
            held!()
        ))?
        .execute(named_params! {
            ":key": scoped_key, ":job": job, ":statuses": unique.statuses, ":period_us": period_us, ":now": now,
        })?;
    if taken == 1 {
        return Ok(None);
    }
    conn.prepare_cached("SELECT job FROM jobmill_unique WHERE key = :key")?
        .query_row(named_params! { ":key": scoped_key }, |row| row.get(0))
        .map(Some)
}

/// The job that took a key last, whether or not it holds it still.
pub(crate) fn holder(conn: &Connection, scoped_key: &str) -> rusqlite::Result<Option<JobId>> {
    conn.prepare_cached("SELECT job FROM jobmill_unique WHERE key = :key")?
        .query_row(named_params! { ":key": scoped_key }, |row| row.get(0))
        .optional()
}

/// Which other job the key binds to by now, if any.
pub(crate) fn bound_to(
    conn: &Connection,
    scoped_key: &str,
    job: JobId,
    now: Timestamp,
) -> rusqlite::Result<Option<JobId>> {
    conn.prepare_cached(concat!("SELECT job FROM jobmill_unique WHERE key = :key AND job <> :job AND ", held!()))?
        .query_row(named_params! { ":key": scoped_key, ":job": job, ":now": now }, |row| row.get(0))
        .optional()
}

/// Takes the key back for a job that is retried, or tells who holds it now.
pub(crate) fn retake(
    conn: &Connection,
    scoped_key: &str,
    job: JobId,
    now: Timestamp,
) -> rusqlite::Result<Option<JobId>> {
    let holder = bound_to(conn, scoped_key, job, now)?;
    if holder.is_none() {
        // The row went with the last holder if that has been pruned. What the job was given for it then is not known
        // any more: it holds the key while it waits and runs.
        conn.prepare_cached(
            "INSERT INTO jobmill_unique (key, job, statuses) VALUES (:key, :job, :statuses)
             ON CONFLICT (key) DO UPDATE SET job = excluded.job",
        )?
        .execute(named_params! { ":key": scoped_key, ":job": job, ":statuses": Unique::key("").statuses })?;
    }
    Ok(holder)
}
