//! How an attempt ends in the ledger, and what a handler writes while it runs.

use std::fmt;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Statement, named_params, params};

use crate::model::attempt::AttemptOutcome;
use crate::model::event::Cause;
use crate::model::failure_reason::FailureReason;
use crate::model::history::Action;
use crate::model::id::JobId;
use crate::model::job::Progress;
use crate::model::retry::Backoff;
use crate::model::time::Timestamp;
use crate::store::audit::Line;
use crate::store::enqueue::{count_in, enqueue_in};
use crate::store::row::{Claim, State};
use crate::store::step::Step;
use crate::store::{Turn, at_hand, callback, detail, edge, gate, tally};

/// How many lines of a job's log are kept, of all its attempts together.
const LOG_LINES_KEPT: i64 = 10_000;

/// How an attempt came out, before the rules of retry are applied.
#[derive(Clone, PartialEq)]
pub(crate) enum Verdict {
    /// It gave a value.
    Completed { result: Option<Vec<u8>> },
    /// It gave an error, panicked or ran out of time.
    Failed { error: String, outcome: AttemptOutcome, retry: Retry },
    /// The job is to run again later, and the attempt does not count.
    Snoozed { wait: Duration },
    /// The handler cancelled its own job, or followed a request to do so.
    Cancelled { reason: Option<String> },
    /// It never began, or was cut off by the shutdown: the attempt does not count.
    Returned,
}

/// In words for a log, which does not hold what a handler gave.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed { .. } => f.write_str("completed"),
            Self::Failed { error, outcome, .. } => write!(f, "{}: {error}", outcome.as_str()),
            Self::Snoozed { wait } => write!(f, "snoozed for {wait:?}"),
            Self::Cancelled { reason: Some(reason) } => write!(f, "cancelled: {reason}"),
            Self::Cancelled { reason: None } => f.write_str("cancelled"),
            Self::Returned => f.write_str("returned"),
        }
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Whether a failed attempt is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// After the job's backoff, while attempts are left.
    Backoff,
    /// After this wait, while attempts are left.
    After(Duration),
    /// Never.
    Never,
}

/// What the end of an attempt made of its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    /// The job has ended, or waits for its next attempt.
    Now(State),
    /// The claim was no longer valid, and nothing was changed.
    Fenced,
}

/// Ends a claim with a terminal state, of a job that wants no callback and for which no other waits. Its parameters go by number, for it is run once
/// for each job.
pub(crate) const PLAN_END: &str = "UPDATE jobmill_job
     SET state = ?1, completed_at = ?2, worker = ?3, result = ?4, error = coalesce(?5, error)
     WHERE id = ?6 AND claim = ?7 AND state = 2 AND callback_url IS NULL AND followers IS NULL";

/// The same of any job.
const PLAN_END_ALL: &str = "UPDATE jobmill_job
     SET state = ?1, completed_at = ?2, worker = ?3, result = ?4, error = coalesce(?5, error)
     WHERE id = ?6 AND claim = ?7 AND state = 2";

/// Ends a claim so that the job waits for another. A job that waits has no owner: its own row tells of no attempt.
pub(crate) const PLAN_WAIT: &str = "UPDATE jobmill_job SET state = 7, run_at = :run_at, owner = NULL, worker = :worker,
         attempt = attempt - :unspent, error = coalesce(:error, error), updated_at = :now
     WHERE id = :id AND claim = :fence AND state = 2";

/// Puts a job back where its claim took it from, unless somebody has asked for its cancellation meanwhile. It was due, so if
/// the clock was set back since, it does not wait for it, unless it may be meant for a moment: see `delays`.
pub(crate) const PLAN_RETURN: &str = "UPDATE jobmill_job SET owner = NULL, attempt = attempt - 1, updated_at = :now,
         run_at = CASE WHEN :own OR claim > 1 OR run_at = updated_at THEN min(run_at, :now) ELSE run_at END,
         state = CASE WHEN cancel_requested_at IS NOT NULL THEN 5 WHEN run_at IS NULL THEN 1 ELSE 7 END,
         completed_at = CASE WHEN cancel_requested_at IS NOT NULL THEN :now END
     WHERE id = :id AND claim = :fence AND state = 2
     RETURNING state, run_at";

impl Turn<'_> {
    /// Ends an attempt. A claim that is no longer valid changes nothing.
    pub(crate) fn finish(
        &mut self,
        claim: &Claim,
        verdict: &Verdict,
        worker: Option<u32>,
        backoff: &Backoff,
    ) -> rusqlite::Result<Finished> {
        let job = &claim.job;
        match verdict {
            Verdict::Completed { result } => self.end(claim, State::Completed, worker, result.as_deref(), None),
            Verdict::Cancelled { reason } => self.end(claim, State::Cancelled, worker, None, reason.as_deref()),
            Verdict::Snoozed { wait } => {
                let run_at = self.now.saturating_add(*wait);
                if self.cancel_requested(claim)? {
                    return self.end(claim, State::Cancelled, worker, None, None);
                }
                self.wait(claim, worker, run_at, None, true)
            }
            // Whoever asked for the cancellation was told that it would be heeded. An attempt that had begun stays in
            // the history.
            Verdict::Returned if worker.is_some() && self.cancel_requested(claim)? => {
                self.end(claim, State::Cancelled, worker, None, None)
            }
            Verdict::Returned => self.put_back(claim, worker.is_some()),
            Verdict::Failed { error, outcome, retry } => {
                if self.cancel_requested(claim)? {
                    return self.end(claim, State::Cancelled, worker, None, Some(error));
                }
                let wait = match retry {
                    Retry::Never => None,
                    _ if job.attempt >= job.max_attempts => None,
                    Retry::After(wait) => Some(*wait),
                    Retry::Backoff => Some(claim.backoff.as_ref().unwrap_or(backoff).wait(job.id, job.attempt)),
                };
                let Some(wait) = wait else {
                    let reason = match (retry, outcome) {
                        (Retry::Never, _) => FailureReason::Refused,
                        (_, AttemptOutcome::TimedOut) => FailureReason::TimedOut,
                        _ => FailureReason::AttemptsSpent,
                    };
                    return self.fail(claim, worker, error, reason);
                };
                let finished = self.wait(claim, worker, self.now.saturating_add(wait), Some(error), false)?;
                if finished != Finished::Fenced {
                    let started_at = job.started_at.unwrap_or(self.now);
                    self.audit(
                        &Line::of(job.id, Action::Retried)
                            .share(claim.place.share)
                            .states(State::Running, State::Delayed)
                            .attempt(job.attempt)
                            .note(Some(error)),
                    )?;
                    record_attempt(
                        self.conn,
                        &PastAttempt {
                            job: job.id,
                            fence: claim.fence,
                            number: job.attempt,
                            started_at,
                            ended_at: self.now,
                            outcome: *outcome,
                            error: Some(error),
                            owner: self.book.owner,
                            worker,
                        },
                    )?;
                }
                Ok(finished)
            }
        }
    }

    /// Ends a claim whose job is not tried again.
    fn fail(
        &mut self,
        claim: &Claim,
        worker: Option<u32>,
        error: &str,
        reason: FailureReason,
    ) -> rusqlite::Result<Finished> {
        // The row tells the reason before it tells of the end, for that may take it away.
        self.conn
            .prepare_cached("UPDATE jobmill_job SET end_reason = ?3 WHERE id = ?1 AND claim = ?2 AND state = 2")?
            .execute(params![claim.job.id, claim.fence, reason])?;
        self.end(claim, State::Failed, worker, None, Some(error))
    }

    fn end(
        &mut self,
        claim: &Claim,
        state: State,
        worker: Option<u32>,
        result: Option<&[u8]>,
        error: Option<&str>,
    ) -> rusqlite::Result<Finished> {
        let statement = at_hand(&mut self.hot.end, self.conn, PLAN_END)?;
        let plain = end(statement, claim, state, worker, result, error, self.now)?;
        if !plain {
            let mut statement = self.conn.prepare_cached(PLAN_END_ALL)?;
            if !end(&mut statement, claim, state, worker, result, error, self.now)? {
                return Ok(Finished::Fenced);
            }
        }
        let cause = if state == State::Cancelled { Cause::Cancelled } else { Cause::Ended };
        let step = self.step_of(claim, state, cause);
        if cause == Cause::Cancelled {
            self.audit_cancelled(claim, error)?;
        }
        if plain && self.book.doomed.is_empty() {
            self.step(step)?;
            self.ended(claim.job.id);
        } else {
            self.last_step(step)?;
        }
        Ok(Finished::Now(state))
    }

    fn audit_cancelled(&self, claim: &Claim, reason: Option<&str>) -> rusqlite::Result<()> {
        self.audit(
            &Line::of(claim.job.id, Action::Cancelled)
                .share(claim.place.share)
                .states(State::Running, State::Cancelled)
                .attempt(claim.job.attempt)
                .note(reason),
        )
    }

    fn step_of(&self, claim: &Claim, to: State, cause: Cause) -> Step {
        Step {
            job: claim.job.id,
            place: claim.place,
            from: Some(State::Running),
            to: Some(to),
            cause,
            attempt: claim.job.attempt,
            waited: None,
            ran: claim.job.started_at.map(|started_at| self.now.since(started_at)),
        }
    }

    fn wait(
        &mut self,
        claim: &Claim,
        worker: Option<u32>,
        run_at: Timestamp,
        error: Option<&str>,
        unspent: bool,
    ) -> rusqlite::Result<Finished> {
        let changed = self.conn.prepare_cached(PLAN_WAIT)?.execute(named_params! {
            ":run_at": run_at, ":worker": worker, ":unspent": unspent, ":error": error,
            ":id": claim.job.id, ":fence": claim.fence, ":now": self.now,
        })?;
        if changed == 0 {
            return Ok(Finished::Fenced);
        }
        let cause = if unspent { Cause::Snoozed } else { Cause::Retried };
        self.waits(self.step_of(claim, State::Delayed, cause), run_at)?;
        Ok(Finished::Now(State::Delayed))
    }

    /// Has a job wait where its claim took it from. `begun`: its handler has, and may have used what it was let go for.
    pub(crate) fn put_back(&mut self, claim: &Claim, begun: bool) -> rusqlite::Result<Finished> {
        let own = self.is_own(claim.place.lane);
        let back: Option<(State, Option<i64>)> = self
            .conn
            .prepare_cached(PLAN_RETURN)?
            .query_row(
                named_params! { ":id": claim.job.id, ":fence": claim.fence, ":now": self.now, ":own": own },
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let Some((state, run_at)) = back else {
            return Ok(Finished::Fenced);
        };
        if state == State::Cancelled {
            self.audit_cancelled(claim, None)?;
            self.last_step(self.step_of(claim, state, Cause::Cancelled))?;
            return Ok(Finished::Now(state));
        }
        if !begun {
            self.give_tokens_back(claim.job.id, claim.place, claim.cost)?;
        }
        let mut step = self.step_of(claim, state, Cause::Returned);
        step.ran = None;
        self.waits(step, Timestamp::from_micros(run_at.unwrap_or(0)))?;
        Ok(Finished::Now(state))
    }

    /// Takes the step of a job that waits again.
    pub(crate) fn waits(&mut self, step: Step, run_at: Timestamp) -> rusqlite::Result<()> {
        self.step(step)?;
        if step.to == Some(State::Delayed)
            && let Some(lane) = self.book.lanes.get_mut(step.place.lane)
        {
            lane.note_delayed(run_at.as_micros());
        }
        // It may have an `expires_at`, which its claim took out of the index.
        self.book.next_expiry = None;
        Ok(())
    }

    fn cancel_requested(&self, claim: &Claim) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT cancel_requested_at IS NOT NULL FROM jobmill_job WHERE id = :id")?
            .query_row(named_params! { ":id": claim.job.id }, |row| row.get(0))
            .optional()
            .map(|requested| requested.unwrap_or(false))
    }

    /// Whether the claim is still the valid one.
    pub(crate) fn holds(&self, id: JobId, fence: i64) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM jobmill_job WHERE id = :id AND claim = :fence AND state = 2")?
            .exists(named_params! { ":id": id, ":fence": fence })
    }

    /// Whether what an attempt tells is written still: it runs, or has completed its job in a transaction, which may
    /// overtake its last words.
    pub(crate) fn may_tell(&self, id: JobId, fence: i64) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM jobmill_job WHERE id = :id AND claim = :fence AND state IN (2, 3)")?
            .exists(named_params! { ":id": id, ":fence": fence })
    }

    /// Keeps how far a handler says it is.
    pub(crate) fn progress(&mut self, id: JobId, progress: &Progress) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_progress (job, done, total, note) VALUES (:job, :done, :total, :note)
                 ON CONFLICT (job) DO UPDATE SET done = excluded.done, total = excluded.total, note = excluded.note",
            )?
            .execute(named_params! {
                ":job": id,
                ":done": progress.done.cast_signed(),
                ":total": progress.total.map(u64::cast_signed),
                ":note": progress.note,
            })
            .map(drop)
    }

    /// Forgets how far a job is.
    pub(crate) fn clear_progress(&mut self, id: JobId) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("DELETE FROM jobmill_progress WHERE job = :job")?
            .execute(named_params! { ":job": id })
            .map(drop)
    }

    /// Keeps the state that the next attempt gets back.
    pub(crate) fn save(&mut self, id: JobId, value: &[u8]) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_saved (job, value) VALUES (:job, :value)
                 ON CONFLICT (job) DO UPDATE SET value = excluded.value",
            )?
            .execute(named_params! { ":job": id, ":value": value })
            .map(drop)
    }

    /// Keeps a line of a handler's log, and lets go of the oldest if there are too many.
    pub(crate) fn log_line(&mut self, id: JobId, attempt: u32, at: Timestamp, line: &str) -> rusqlite::Result<()> {
        let line_no: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(max(line_no), 0) + 1 FROM jobmill_log WHERE job = :job")?
            .query_row(named_params! { ":job": id }, |row| row.get(0))?;
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_log (job, line_no, attempt, at, line)
                 VALUES (:job, :line_no, :attempt, :at, :line)",
            )?
            .execute(named_params! {
                ":job": id, ":line_no": line_no, ":attempt": attempt, ":at": at, ":line": line,
            })?;
        if line_no > LOG_LINES_KEPT {
            // A job that snoozes or is retried for ever would fill the file.
            self.conn
                .prepare_cached("DELETE FROM jobmill_log WHERE job = :job AND line_no <= :gone")?
                .execute(named_params! { ":job": id, ":gone": line_no - LOG_LINES_KEPT })?;
        }
        Ok(())
    }

    /// Keeps what a handler tells of its times, and why its run stops.
    pub(crate) fn measured(
        &mut self,
        id: JobId,
        ttft: Option<Duration>,
        total_duration: Option<Duration>,
        stop_reason: Option<&str>,
    ) -> rusqlite::Result<()> {
        if ttft.is_some() || total_duration.is_some() {
            detail::measured(self.conn, id, ttft, total_duration)?;
        }
        let Some(stop_reason) = stop_reason else { return Ok(()) };
        self.conn
            .prepare_cached("UPDATE jobmill_job SET stop_reason = :stop_reason WHERE id = :id")?
            .execute(named_params! { ":id": id, ":stop_reason": stop_reason })
            .map(drop)
    }
}

/// Completes a claim in a transaction of the application's own, and tells whether the claim was still valid.
/// `counts`: for the rates, too.
pub(crate) fn complete_in(
    conn: &Connection,
    claim: &Claim,
    worker: Option<u32>,
    result: Option<&[u8]>,
    now: Timestamp,
    counts: bool,
) -> rusqlite::Result<bool> {
    let mut statement = conn.prepare_cached(PLAN_END_ALL)?;
    if !end(&mut statement, claim, State::Completed, worker, result, None, now)? {
        return Ok(false);
    }
    count_in(conn, claim.place, Some(State::Running), State::Completed, now)?;
    edge::tell(conn, claim.job.id, claim.place, State::Completed as i64)?;
    if claim.place.limited {
        gate::leave_in(conn, claim.job.id, now)?;
    }
    if counts {
        let ran = claim.job.started_at.map(|started_at| now.since(started_at));
        tally::leave(conn, claim.place.lane, &tally::completed(ran))?;
    }
    if let Some(delivery) = callback::due(conn, claim.job.id)? {
        enqueue_in(conn, &delivery.new_job(), now, counts)?;
    }
    Ok(true)
}

fn end(
    statement: &mut Statement<'_>,
    claim: &Claim,
    state: State,
    worker: Option<u32>,
    result: Option<&[u8]>,
    error: Option<&str>,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    let parameters = params![state, now, worker, result, error, claim.job.id, claim.fence];
    statement.execute(parameters).map(|changed| changed == 1)
}

/// An attempt that the job's own row will not tell of any more.
pub(crate) struct PastAttempt<'a> {
    pub(crate) job: JobId,
    pub(crate) fence: i64,
    pub(crate) number: u32,
    pub(crate) started_at: Timestamp,
    pub(crate) ended_at: Timestamp,
    pub(crate) outcome: AttemptOutcome,
    pub(crate) error: Option<&'a str>,
    pub(crate) owner: Option<i64>,
    pub(crate) worker: Option<u32>,
}

pub(crate) fn record_attempt(conn: &Connection, past: &PastAttempt<'_>) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO jobmill_attempt (job, claim, number, started_at, ended_at, outcome, error, owner, worker)
         VALUES (:job, :claim, :number, :started_at, :ended_at, :outcome, :error, :owner, :worker)
         ON CONFLICT (job, claim) DO NOTHING",
    )?
    .execute(named_params! {
        ":job": past.job, ":claim": past.fence, ":number": past.number, ":started_at": past.started_at,
        ":ended_at": past.ended_at, ":outcome": past.outcome, ":error": past.error, ":owner": past.owner,
        ":worker": past.worker,
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_handler_gives_is_not_logged() {
        // The log of each attempt showed its result, secrets included.
        let verdict = Verdict::Completed { result: Some(b"\"secret\"".to_vec()) };
        assert_eq!(verdict.to_string(), "completed");
        let verdict =
            Verdict::Failed { error: "no".to_owned(), outcome: AttemptOutcome::TimedOut, retry: Retry::Never };
        assert_eq!(verdict.to_string(), "timed_out: no");
    }
}
