//! Why a job stands where it stands.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use crate::model::explain::{Explanation, Reason};
use crate::model::failure_reason::FailureReason;
use crate::model::id::JobId;
use crate::model::job::{Job, Status};
use crate::model::new_batch::BATCH_KIND;
use crate::model::time::Timestamp;
use crate::store::instance::worker_name;
use crate::store::read::{exists_for, job};
use crate::store::row::State;
use crate::store::{batch, limits, unique, waiting};

/// Why a job stands where it stands, as one may know who is bound to `user`. None if there is no such job.
pub(crate) fn explain(
    conn: &Connection,
    id: JobId,
    user: Option<&str>,
    now: Timestamp,
) -> rusqlite::Result<Option<Explanation>> {
    let Some(job) = job(conn, id)? else {
        return Ok(None);
    };
    let reasons = match (&job.kind, job.status) {
        (None, status) if status.is_terminal() => vec![Reason::Ended { status }],
        (None, _) => vec![Reason::Tracked],
        (Some(_), Status::Created) => match waiting::reasons(conn, id, false)? {
            reasons if reasons.is_empty() => vec![Reason::NotAdmitted],
            reasons => reasons,
        },
        (Some(kind), Status::Pending) => why_pending(conn, &job, kind, now)?,
        (Some(kind), Status::Running) => why_running(conn, &job, kind, now)?,
        (Some(_), _) => why_ended(conn, &job, user, now)?,
    };
    let ended_at = job.completed_at.filter(|_| job.status.is_terminal());
    let error = job.error.filter(|_| job.status == Status::Failed);
    Ok(Some(Explanation { status: job.status, reasons, ended_at, error }))
}

fn why_pending(conn: &Connection, job: &Job, kind: &str, now: Timestamp) -> rusqlite::Result<Vec<Reason>> {
    let mut reasons = Vec::new();
    let state: State = conn
        .prepare_cached("SELECT state FROM jobmill_job WHERE id = :id")?
        .query_row(named_params! { ":id": job.id }, |row| row.get(0))?;
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
        .exists(named_params! { ":kind": kind })?;
    if !served {
        reasons.push(Reason::NoHandler { kind: kind.to_owned() });
    }
    reasons.extend(limits::explain(conn, job.id, now)?);
    reasons.extend(limits::explain_queue(conn, &job.queue, now)?);
    if reasons.is_empty() {
        reasons.push(Reason::NoFreeWorker);
    }
    reasons.extend(job.expires_at.map(|expires_at| Reason::Deadline { expires_at }));
    Ok(reasons)
}

fn why_running(conn: &Connection, job: &Job, kind: &str, now: Timestamp) -> rusqlite::Result<Vec<Reason>> {
    let mut reasons = Vec::new();
    if kind == BATCH_KIND {
        let items = batch::read::item_counts(conn, job.id)?.unwrap_or_default();
        reasons.push(Reason::Batch { waiting: items.waiting, sent: items.sent, stepping: items.stepping });
        let held_up = batch::read::held_up(conn, job.id, now)?;
        reasons.extend(held_up.into_iter().map(|why| Reason::BatchHeldUp { why }));
    } else {
        let owner = conn
            .prepare_cached("SELECT owner FROM jobmill_job WHERE id = :id")?
            .query_row(named_params! { ":id": job.id }, |row| row.get(0))?;
        reasons.push(Reason::Running {
            process: worker_name(conn, owner, None)?.unwrap_or_default(),
            since: job.started_at.unwrap_or(now),
        });
    }
    reasons.extend(job.cancel_requested_at.map(|at| Reason::CancelRequested { at }));
    Ok(reasons)
}

fn why_ended(conn: &Connection, job: &Job, user: Option<&str>, now: Timestamp) -> rusqlite::Result<Vec<Reason>> {
    let mut reasons = vec![match job.failure_reason {
        Some(FailureReason::Refused) => Reason::Refused,
        Some(FailureReason::CrashLoop) => Reason::CrashLoop { attempts: job.attempt },
        Some(FailureReason::AttemptsSpent | FailureReason::TimedOut) => Reason::AttemptsSpent { attempts: job.attempt },
        Some(FailureReason::Dependency) | None => Reason::Ended { status: job.status },
    }];
    if job.status == Status::Completed {
        return Ok(reasons);
    }
    if job.attempt == 0 {
        reasons.extend(waiting::reasons(conn, job.id, true)?);
    }
    let key: Option<String> = conn
        .prepare_cached("SELECT unique_key FROM jobmill_job WHERE id = ?1")?
        .query_row(params![job.id], |row| row.get(0))?;
    if let Some(key) = key
        && let Some(holder) = unique::bound_to(conn, &key, job.id, now)?
    {
        // Of somebody else's job it is not told which one it is.
        reasons.push(Reason::DuplicateOf { id: exists_for(conn, holder, user)?.then_some(holder) });
    }
    Ok(reasons)
}
