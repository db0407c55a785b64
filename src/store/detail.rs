//! What few jobs have and no step of a life changes, in a row beside the job's own.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params};
use serde_json::Value;

use crate::model::delivery::Try;
use crate::model::history::Caller;
use crate::model::id::JobId;
use crate::model::job::Job;
use crate::model::new_job::NewJob;
use crate::model::update::JobUpdate;

/// Reads it into the job's record.
pub(crate) fn fetch(conn: &Connection, job: &mut Job) -> rusqlite::Result<()> {
    let nanos = |value: Option<i64>| value.map(|value| Duration::from_nanos(u64::try_from(value).unwrap_or(0)));
    conn.prepare_cached(
        "SELECT organization_id, request_config, ttft_ns, total_duration_ns, created_by, updated_by,
             callback_sent_at, callback_status_code, callback_error
         FROM jobmill_detail WHERE job = :job",
    )?
    .query_row(named_params! { ":job": job.id }, |row| {
        job.organization_id = row.get(0)?;
        let config: Option<String> = row.get(1)?;
        job.request_config = config.and_then(|config| serde_json::from_str(&config).ok());
        job.ttft = nanos(row.get(2)?);
        job.total_duration = nanos(row.get(3)?).or(job.total_duration);
        job.created_by = row.get::<_, Option<String>>(4)?.or(job.created_by.take());
        job.updated_by = row.get(5)?;
        job.callback_sent_at = row.get(6)?;
        job.callback_status_code = row.get(7)?;
        job.callback_error = row.get(8)?;
        Ok(())
    })
    .optional()
    .map(drop)
}

/// Who created a job, if that is not its user.
fn creator(new: &NewJob) -> Option<&str> {
    new.created_by.as_deref().filter(|creator| new.user_id.as_deref() != Some(creator))
}

/// There is such a row.
pub(crate) const HAS_ROW: i64 = 1;
/// The job was created by its user, which needs no row.
pub(crate) const BY_USER: i64 = 2;

/// What a new job's own row tells of this: whether there is such a row, and whether its user has created it.
pub(crate) fn bits(new: &NewJob) -> i64 {
    let row = new.organization_id.is_some() || new.request_config.is_some() || creator(new).is_some();
    let by_user = new.created_by.is_some() && new.created_by == new.user_id;
    (i64::from(row) * HAS_ROW) | (i64::from(by_user) * BY_USER)
}

/// Writes that of a new job.
pub(crate) fn insert(conn: &Connection, id: JobId, new: &NewJob) -> rusqlite::Result<()> {
    let config = new.request_config.as_ref().and_then(|config| config.as_ref().ok());
    conn.prepare_cached(
        "INSERT INTO jobmill_detail (job, organization_id, request_config, created_by)
         VALUES (:job, :organization_id, :request_config, :created_by)",
    )?
    .execute(named_params! {
        ":job": id, ":organization_id": new.organization_id, ":request_config": config.map(Value::to_string),
        ":created_by": creator(new),
    })
    .map(drop)
}

/// Sees to it that a job has such a row.
fn ensure(conn: &Connection, id: JobId) -> rusqlite::Result<()> {
    let made = conn
        .prepare_cached(
            "INSERT INTO jobmill_detail (job) SELECT id FROM jobmill_job WHERE id = :job ON CONFLICT DO NOTHING",
        )?
        .execute(named_params! { ":job": id })?;
    if made == 1 {
        conn.prepare_cached("UPDATE jobmill_job SET detail = coalesce(detail, 0) | 1 WHERE id = :job")?
            .execute(named_params! { ":job": id })?;
    }
    Ok(())
}

/// Changes the fields that an update sets here, and keeps who did it.
pub(crate) fn update(conn: &Connection, id: JobId, update: &JobUpdate, caller: &Caller) -> rusqlite::Result<()> {
    changed_by(conn, id, caller)?;
    if update.organization_id.is_kept()
        && update.request_config.is_kept()
        && update.ttft.is_kept()
        && update.total_duration.is_kept()
    {
        return Ok(());
    }
    ensure(conn, id)?;
    conn.prepare_cached(
        "UPDATE jobmill_detail
         SET organization_id = CASE WHEN :set_organization THEN :organization ELSE organization_id END,
             request_config = CASE WHEN :set_request_config THEN :request_config ELSE request_config END,
             ttft_ns = CASE WHEN :set_ttft THEN :ttft ELSE ttft_ns END,
             total_duration_ns = CASE WHEN :set_total_duration THEN :total_duration ELSE total_duration_ns END
         WHERE job = :job",
    )?
    .execute(named_params! {
        ":job": id,
        ":set_organization": !update.organization_id.is_kept(),
        ":organization": update.organization_id.value(),
        ":set_request_config": !update.request_config.is_kept(),
        ":request_config": update.request_config.value().map(Value::to_string),
        ":set_ttft": !update.ttft.is_kept(),
        ":ttft": update.ttft.value().copied().map(nanos),
        ":set_total_duration": !update.total_duration.is_kept(),
        ":total_duration": update.total_duration.value().copied().map(nanos),
    })
    .map(drop)
}

/// Keeps who has just changed a job from outside, or that nobody said so.
pub(crate) fn changed_by(conn: &Connection, id: JobId, caller: &Caller) -> rusqlite::Result<()> {
    if caller.actor().is_some() {
        ensure(conn, id)?;
    }
    conn.prepare_cached("UPDATE jobmill_detail SET updated_by = :actor WHERE job = :job")?
        .execute(named_params! { ":job": id, ":actor": caller.actor() })
        .map(drop)
}

/// Keeps the times that a handler tells of.
pub(crate) fn measured(
    conn: &Connection,
    id: JobId,
    ttft: Option<Duration>,
    total_duration: Option<Duration>,
) -> rusqlite::Result<()> {
    ensure(conn, id)?;
    conn.prepare_cached(
        "UPDATE jobmill_detail SET ttft_ns = coalesce(:ttft, ttft_ns),
             total_duration_ns = coalesce(:total_duration, total_duration_ns)
         WHERE job = :job",
    )?
    .execute(named_params! { ":job": id, ":ttft": ttft.map(nanos), ":total_duration": total_duration.map(nanos) })
    .map(drop)
}

/// Clears the times that an attempt told of.
pub(crate) fn forget_times(conn: &Connection, id: JobId) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE jobmill_detail SET ttft_ns = NULL, total_duration_ns = NULL WHERE job = :job")?
        .execute(named_params! { ":job": id })
        .map(drop)
}

/// Keeps what the last try of a callback came to.
pub(crate) fn callback_tried(conn: &Connection, tried: &Try) -> rusqlite::Result<()> {
    ensure(conn, tried.job_id)?;
    conn.prepare_cached(
        "UPDATE jobmill_detail SET callback_sent_at = :sent_at, callback_status_code = :status_code,
             callback_error = :error
         WHERE job = :job",
    )?
    .execute(named_params! {
        ":job": tried.job_id, ":sent_at": tried.sent_at, ":status_code": tried.status_code, ":error": tried.error,
    })
    .map(drop)
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
