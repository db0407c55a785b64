//! The history of a job, as one list: what its own row and its attempts tell, and what the audit holds.

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use crate::model::attempt::{Attempt, AttemptOutcome};
use crate::model::history::{Action, HistoryEntry};
use crate::model::id::JobId;
use crate::model::job::Status;
use crate::model::stats::StatusCounts;
use crate::model::time::Timestamp;
use crate::store::row::State;

/// Who did what to a job, the oldest first. Empty if nothing is known of it, or if it is not the user's.
pub(crate) fn history(
    conn: &Connection,
    id: JobId,
    user: Option<&str>,
    attempts: Vec<Attempt>,
) -> rusqlite::Result<Vec<HistoryEntry>> {
    struct Own {
        tracked: bool,
        state: State,
        completed_at: Option<Timestamp>,
        attempt: u32,
        error: Option<String>,
        created_by: Option<String>,
        user: Option<String>,
    }
    let own = conn
        .prepare_cached(
            "SELECT state, completed_at, attempt, error,
                 coalesce((SELECT created_by FROM jobmill_detail WHERE jobmill_detail.job = jobmill_job.id),
                     CASE WHEN detail & 2 THEN (SELECT user_id FROM jobmill_share WHERE jobmill_share.id = share) END),
                 (SELECT user_id FROM jobmill_share WHERE jobmill_share.id = share),
                 (SELECT kind = '' FROM jobmill_lane WHERE jobmill_lane.id = lane)
             FROM jobmill_job WHERE id = :id",
        )?
        .query_row(named_params! { ":id": id }, |row| {
            Ok(Own {
                state: row.get(0)?,
                completed_at: row.get(1)?,
                attempt: row.get(2)?,
                error: row.get(3)?,
                created_by: row.get(4)?,
                user: row.get(5)?,
                tracked: row.get(6)?,
            })
        })
        .optional()?;
    let is_users = |owner: Option<&str>| user.is_none() || owner == user;
    if own.as_ref().is_some_and(|own| !is_users(own.user.as_deref())) {
        return Ok(Vec::new());
    }
    let mut statement = conn.prepare_cached(
        "SELECT at, action, job, actor, from_state, to_state, attempt, note, user_id FROM jobmill_audit
         WHERE job = :job ORDER BY id",
    )?;
    let audited: Vec<(HistoryEntry, Option<String>)> = statement
        .query_map(named_params! { ":job": id }, |row| Ok((change(row)?, row.get(8)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let changes: Vec<HistoryEntry> =
        audited.into_iter().filter(|(_, owner)| is_users(owner.as_deref())).map(|(change, _)| change).collect();
    let Some(own) = own else {
        return Ok(changes);
    };
    let told = |changes: &[HistoryEntry], to: Status, at: Option<Timestamp>| {
        changes.iter().any(|change| change.from != change.to && change.to == Some(to) && Some(change.at) == at)
    };
    let line = |at, action| HistoryEntry {
        at,
        action,
        job: Some(id),
        actor: None,
        from: None,
        to: None,
        attempt: None,
        note: None,
    };
    // Handlers' jobs come in as pending. How a tracked one came in tells its first change, or its status if there is none.
    let recorded_as_it_is = own.completed_at.is_none_or(|ended_at| ended_at <= id.created_at());
    let first = match changes.first().and_then(|change| change.from) {
        Some(from) if own.tracked || from == Status::Created => from,
        None if own.tracked && recorded_as_it_is => own.state.status(),
        None if own.tracked || own.state == State::Created => Status::Created,
        _ => Status::Pending,
    };
    let created = HistoryEntry { actor: own.created_by, to: Some(first), ..line(id.created_at(), Action::Created) };
    let mut ordinary = vec![created];
    for attempt in &attempts {
        ordinary.push(HistoryEntry {
            actor: attempt.worker.clone(),
            from: Some(Status::Pending),
            to: Some(Status::Running),
            attempt: Some(attempt.number),
            ..line(attempt.started_at, Action::Started)
        });
        let (Some(ended_at), Some(to)) = (attempt.ended_at, left_in(attempt.outcome)) else {
            continue;
        };
        // The end of one that was retried or rescued is in the audit, unless that has been pruned.
        if told(&changes, to, Some(ended_at))
            || changes.iter().any(|change| {
                change.attempt == Some(attempt.number)
                    && matches!(change.action, Action::Retried | Action::Rescued)
                    && change.at == ended_at
            })
        {
            continue;
        }
        ordinary.push(HistoryEntry {
            actor: attempt.worker.clone(),
            from: Some(Status::Running),
            to: Some(to),
            attempt: Some(attempt.number),
            note: attempt.error.clone(),
            ..line(ended_at, Action::Ended)
        });
    }
    if let Some(ended_at) = own.completed_at {
        let status = own.state.status();
        if !told(&changes, status, Some(ended_at)) && !told(&ordinary, status, Some(ended_at)) {
            // It was recorded with this status, or ended as it waited and the audit has forgotten.
            ordinary.push(HistoryEntry {
                to: Some(status),
                attempt: (own.attempt > 0).then_some(own.attempt),
                note: own.error,
                ..line(ended_at, Action::Ended)
            });
        }
    }
    Ok(merged(ordinary, changes))
}

/// Both lists as one, by their moments, each in its own order. What happened in one turn has one moment: of that comes
/// first what goes on from the status so far, and if both do, what was done from outside, which the next step would end.
fn merged(ordinary: Vec<HistoryEntry>, audited: Vec<HistoryEntry>) -> Vec<HistoryEntry> {
    let mut merged: Vec<HistoryEntry> = Vec::with_capacity(ordinary.len() + audited.len());
    let mut audited = audited.into_iter().peekable();
    for change in ordinary {
        while let Some(last) = merged.last()
            && let Some(earlier) =
                audited.next_if(|other| other.at < change.at || other.at == change.at && other.from == last.to)
        {
            merged.push(earlier);
        }
        merged.push(change);
    }
    merged.extend(audited);
    merged
}

/// The status in which an attempt left its job.
fn left_in(outcome: AttemptOutcome) -> Option<Status> {
    match outcome {
        AttemptOutcome::Running => None,
        AttemptOutcome::Completed => Some(Status::Completed),
        AttemptOutcome::Cancelled => Some(Status::Cancelled),
        AttemptOutcome::Expired => Some(Status::Expired),
        AttemptOutcome::Failed | AttemptOutcome::TimedOut | AttemptOutcome::Crashed => Some(Status::Failed),
    }
}

/// What was done out of the ordinary, the newest first: `limit` lines, and those of the same moment as the last of them,
/// for the next page begins before that.
pub(crate) fn audit(conn: &Connection, before: Option<Timestamp>, limit: usize) -> rusqlite::Result<Vec<HistoryEntry>> {
    let mut statement = conn.prepare_cached(
        "SELECT at, action, job, actor, from_state, to_state, attempt, note FROM jobmill_audit
         WHERE at < :before ORDER BY at DESC, id DESC",
    )?;
    let mut rows = statement.query(named_params! { ":before": before.map_or(i64::MAX, Timestamp::as_micros) })?;
    let mut changes: Vec<HistoryEntry> = Vec::new();
    while let Some(row) = rows.next()? {
        let next = change(row)?;
        if changes.len() >= limit && changes.last().is_some_and(|last| last.at != next.at) {
            break;
        }
        changes.push(next);
    }
    Ok(changes)
}

fn change(row: &Row<'_>) -> rusqlite::Result<HistoryEntry> {
    let word: String = row.get(1)?;
    let action = word
        .parse::<Action>()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(error)))?;
    Ok(HistoryEntry {
        at: row.get(0)?,
        action,
        job: row.get(2)?,
        actor: row.get(3)?,
        from: row.get::<_, Option<State>>(4)?.map(State::status),
        to: row.get::<_, Option<State>>(5)?.map(State::status),
        attempt: row.get(6)?,
        note: row.get(7)?,
    })
}

/// Counts the jobs of each user behind a name, from their shares.
pub(crate) fn users(conn: &Connection, after: &str, limit: usize) -> rusqlite::Result<Vec<(String, StatusCounts)>> {
    conn.prepare_cached(
        "SELECT user_id, sum(created), sum(pending) + sum(delayed), sum(running), sum(completed), sum(failed),
             sum(cancelled), sum(expired)
         FROM jobmill_share WHERE user_id > :after GROUP BY user_id
         HAVING sum(created + pending + delayed + running + completed + failed + cancelled + expired) > 0
         ORDER BY user_id LIMIT :limit",
    )?
    .query_map(named_params! { ":after": after, ":limit": limit as i64 }, |row| {
        let mut counts = StatusCounts::default();
        for (status, column) in Status::ALL.into_iter().zip(1..) {
            *counts.of_mut(status) = row.get::<_, i64>(column)?.cast_unsigned();
        }
        Ok((row.get(0)?, counts))
    })?
    .collect()
}
