//! Why a job stands where it stands.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use crate::model::explain::{Explanation, Reason};
use crate::model::failure_reason::FailureReason;
use crate::model::id::JobId;
use crate::model::job::{Job, Status};
use crate::model::new_batch::BATCH_KIND;
use crate::model::time::Timestamp;
use crate::store::instance::{Instance, open_instances, worker_name};
use crate::store::read::{exists_for, job};
use crate::store::row::State;
use crate::store::{batch, limits, unique, waiting};

/// What the file does not tell.
pub(crate) struct Outside<'a> {
    /// What an engine of this process lacks to run a job, by its weight, if it is anything but a worker.
    pub(crate) lacks: &'a dyn Fn(&Job, u32) -> Option<Reason>,
    /// Whether an engine whose row is open has died.
    pub(crate) has_died: &'a dyn Fn(&Instance) -> bool,
}

/// Why a job stands where it stands, as one may know who is bound to `user`. None if there is no such job.
pub(crate) fn explain(
    conn: &Connection,
    id: JobId,
    user: Option<&str>,
    now: Timestamp,
    outside: &Outside<'_>,
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
        (Some(kind), Status::Pending) => why_pending(conn, &job, kind, now, outside)?,
        (Some(kind), Status::Running) => why_running(conn, &job, kind, now, outside)?,
        (Some(_), _) => why_ended(conn, &job, user, now)?,
    };
    let ended_at = job.completed_at.filter(|_| job.status.is_terminal());
    // What its attempts have said of an end that is theirs.
    let said = job.status == Status::Failed || job.status == Status::Cancelled && job.attempt > 0;
    let error = job.error.filter(|_| said);
    Ok(Some(Explanation { status: job.status, reasons, ended_at, error }))
}

fn why_pending(
    conn: &Connection,
    job: &Job,
    kind: &str,
    now: Timestamp,
    outside: &Outside<'_>,
) -> rusqlite::Result<Vec<Reason>> {
    let mut reasons = Vec::new();
    let (state, weight, cost): (State, u32, u32) = conn
        .prepare_cached("SELECT state, coalesce(weight, 1), coalesce(cost, 1) FROM jobmill_job WHERE id = :id")?
        .query_row(named_params! { ":id": job.id }, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
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
    if !is_served(conn, kind, outside)? {
        reasons.push(Reason::NoHandler { kind: kind.to_owned() });
    }
    reasons.extend(limits::explain(conn, job.id, now)?);
    reasons.extend(limits::explain_queue(conn, job, cost, now)?);
    if reasons.is_empty() {
        reasons.push((outside.lacks)(job, weight).unwrap_or(Reason::NoFreeWorker));
    }
    reasons.extend(job.expires_at.map(|expires_at| Reason::Deadline { expires_at }));
    Ok(reasons)
}

/// Whether an engine that lives has a handler for a kind.
fn is_served(conn: &Connection, kind: &str, outside: &Outside<'_>) -> rusqlite::Result<bool> {
    let mut serves = conn.prepare_cached(
        "SELECT 1 FROM jobmill_instance, json_each(kinds) WHERE jobmill_instance.id = :id AND json_each.value = :kind",
    )?;
    for instance in open_instances(conn, None)? {
        if serves.exists(named_params! { ":id": instance.id, ":kind": kind })? && !(outside.has_died)(&instance) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn why_running(
    conn: &Connection,
    job: &Job,
    kind: &str,
    now: Timestamp,
    outside: &Outside<'_>,
) -> rusqlite::Result<Vec<Reason>> {
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
        let (process, since) = (worker_name(conn, owner, None)?.unwrap_or_default(), job.started_at.unwrap_or(now));
        let open = open_instances(conn, None)?.into_iter().find(|instance| Some(instance.id) == owner);
        let has_died = open.is_some_and(|instance| (outside.has_died)(&instance));
        reasons.push(if has_died {
            Reason::ProcessDied { process, since }
        } else {
            Reason::Running { process, since }
        });
    }
    reasons.extend(job.cancel_requested_at.map(|at| Reason::CancelRequested { at }));
    Ok(reasons)
}

fn why_ended(conn: &Connection, job: &Job, user: Option<&str>, now: Timestamp) -> rusqlite::Result<Vec<Reason>> {
    let mut reasons = vec![match (job.failure_reason, job.expires_at) {
        (Some(FailureReason::Refused), _) => Reason::Refused,
        (Some(FailureReason::CrashLoop), _) => Reason::CrashLoop { attempts: job.attempt },
        (Some(FailureReason::AttemptsSpent | FailureReason::TimedOut), _) => {
            Reason::AttemptsSpent { attempts: job.attempt }
        }
        (None, Some(expires_at)) if job.status == Status::Expired => Reason::Expired { expires_at },
        (Some(FailureReason::Dependency) | None, _) => Reason::Ended { status: job.status },
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
