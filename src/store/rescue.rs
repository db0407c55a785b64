//! Taking back the jobs of an engine that died, and those that it has claimed and does not know of.

use std::collections::HashSet;
use std::time::Duration;

use rusqlite::{OptionalExtension, named_params};

use crate::model::attempt::AttemptOutcome;
use crate::model::event::Cause;
use crate::model::failure_reason::FailureReason;
use crate::model::history::Action;
use crate::model::id::JobId;
use crate::model::retry::spread;
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::audit::Line;
use crate::store::finish::{PastAttempt, record_attempt};
use crate::store::instance::open_instances;
use crate::store::place::{Place, place_columns};
use crate::store::row::{Claim, State};
use crate::store::step::Step;
use crate::store::unheard::Unheard;

/// The error that a job bears whose process died while its handler ran.
const CRASHED: &str = "the process died while the handler ran";

/// Jobs whose process died twice over them come back within this time.
const SPREAD: Duration = Duration::from_millis(500);

/// Reads the running jobs of a lane.
pub(crate) const PLAN_RUNNING: &str = concat!(
    "SELECT id, claim, attempt, max_attempts, started_at, cancel_requested_at, run_at, cost,
         claim > 1 OR run_at IS updated_at, ",
    place_columns!(),
    "
     FROM jobmill_job INDEXED BY jobmill_job_place WHERE lane = :lane AND state = 2 AND owner = :owner ORDER BY id"
);

/// A job that its engine left running.
struct Orphan {
    id: JobId,
    place: Place,
    fence: i64,
    attempt: u32,
    max_attempts: u32,
    started_at: Option<Timestamp>,
    cancel_requested: bool,
    run_at: Option<Timestamp>,
    /// It is not meant for a moment.
    is_due: bool,
    /// What it took of the rate of its queue.
    cost: u32,
}

/// What became of the jobs of a dead engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rescued {
    /// Pending again, an attempt spent.
    pub(crate) retried: usize,
    /// Pending again, for they had not begun.
    pub(crate) returned: usize,
    /// Failed or cancelled.
    pub(crate) ended: usize,
}

impl Turn<'_> {
    /// Does what was left undone of a turn that was written though its commit failed: what it claimed waits again, for
    /// nobody has begun it, and those that it was to stop are told.
    pub(crate) fn hear(&mut self, unheard: &mut Unheard) -> rusqlite::Result<()> {
        let mut left = Vec::new();
        for (place, claim) in unheard.claims.iter().enumerate() {
            if self.is_past(claim)? {
                continue;
            }
            left.push(place);
            if self.is_ours(claim.job.id, Some(claim.fence))?.is_some() {
                self.put_back(claim, false)?;
                self.nothing_waits = false;
            }
        }
        unheard.keep(&left);
        for id in &unheard.stop {
            if self.is_ours(*id, None)? == Some(true) {
                self.out.stop.push(*id);
            }
        }
        Ok(())
    }

    /// Whether the file has gone beyond a claim, so that it need not be heard again though this turn may fail, too. What is
    /// not in the file yet may still come to be there: a failed commit may have been written.
    fn is_past(&self, claim: &Claim) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached(
                "SELECT 1 FROM jobmill_job
                 WHERE id = :id AND (claim > :fence OR claim = :fence AND (state <> 2 OR owner IS NOT :owner))",
            )?
            .exists(named_params! { ":id": claim.job.id, ":fence": claim.fence, ":owner": self.book.owner })
    }

    /// Whether somebody has asked for the cancellation of a job. None unless this engine runs it, under this claim.
    fn is_ours(&self, id: JobId, fence: Option<i64>) -> rusqlite::Result<Option<bool>> {
        self.conn
            .prepare_cached(
                "SELECT cancel_requested_at IS NOT NULL FROM jobmill_job
                 WHERE id = :id AND state = 2 AND owner = :owner AND claim = coalesce(:fence, claim)",
            )?
            .query_row(named_params! { ":id": id, ":owner": self.book.owner, ":fence": fence }, |row| row.get(0))
            .optional()
    }

    /// Takes back the jobs of a dead engine and closes its row. Those that it had `begun`, by id and fencing token,
    /// have spent an attempt; those that it had only claimed have not.
    pub(crate) fn rescue(&mut self, owner: i64, begun: &HashSet<(i64, i64)>) -> rusqlite::Result<Rescued> {
        let mut rescued = Rescued::default();
        for orphan in self.orphans(owner)? {
            if !begun.contains(&(orphan.id.raw(), orphan.fence)) && !orphan.cancel_requested {
                let state = if orphan.run_at.is_some() { State::Delayed } else { State::Pending };
                // It does not wait for a clock that was set back since its claim.
                let is_due = orphan.is_due || self.is_own(orphan.place.lane);
                let run_at = orphan.run_at.map(|at| if is_due { at.min(self.now) } else { at });
                self.set_orphan(&orphan, state, run_at, 1, None)?;
                rescued.returned += 1;
            } else if orphan.cancel_requested {
                self.set_orphan(&orphan, State::Cancelled, orphan.run_at, 0, None)?;
                rescued.ended += 1;
            } else if orphan.attempt >= orphan.max_attempts {
                self.set_orphan(&orphan, State::Failed, orphan.run_at, 0, Some(CRASHED))?;
                rescued.ended += 1;
            } else {
                // One of those that ran may have killed the process. When they come back for the second time they come
                // one after the other, so that the others get done before it spends their attempts too.
                let wait = if orphan.attempt > 1 { spread(orphan.id, orphan.attempt, SPREAD) } else { Duration::ZERO };
                let run_at = self.now.saturating_add(wait);
                self.set_orphan(&orphan, State::Delayed, Some(run_at), 0, Some(CRASHED))?;
                record_attempt(
                    self.conn,
                    &PastAttempt {
                        job: orphan.id,
                        fence: orphan.fence,
                        number: orphan.attempt,
                        started_at: orphan.started_at.unwrap_or(self.now),
                        ended_at: self.now,
                        outcome: AttemptOutcome::Crashed,
                        error: Some(CRASHED),
                        owner: Some(owner),
                        worker: None,
                    },
                )?;
                rescued.retried += 1;
            }
        }
        self.conn
            .prepare_cached("DELETE FROM jobmill_signal WHERE owner = :owner")?
            .execute(named_params! { ":owner": owner })?;
        self.unregister(owner)?;
        Ok(rescued)
    }

    /// Takes back the jobs of every engine, as of one that had begun none of them.
    pub(crate) fn disown_all(&mut self) -> rusqlite::Result<()> {
        for instance in open_instances(self.conn, None)? {
            self.rescue(instance.id, &HashSet::new())?;
        }
        Ok(())
    }

    fn orphans(&self, owner: i64) -> rusqlite::Result<Vec<Orphan>> {
        let mut orphans = Vec::new();
        for lane in self.book.lanes.iter().filter(|lane| lane.count(State::Running) > 0) {
            let mut statement = self.conn.prepare_cached(PLAN_RUNNING)?;
            let mut rows = statement.query(named_params! { ":lane": lane.id, ":owner": owner })?;
            while let Some(row) = rows.next()? {
                orphans.push(Orphan {
                    id: row.get(0)?,
                    place: Place::read(row, 9)?,
                    fence: row.get(1)?,
                    attempt: row.get(2)?,
                    max_attempts: row.get(3)?,
                    started_at: row.get(4)?,
                    cancel_requested: row.get::<_, Option<i64>>(5)?.is_some(),
                    run_at: row.get(6)?,
                    is_due: row.get(8)?,
                    cost: row.get::<_, Option<u32>>(7)?.unwrap_or(1),
                });
            }
        }
        Ok(orphans)
    }

    fn set_orphan(
        &mut self,
        orphan: &Orphan,
        state: State,
        run_at: Option<Timestamp>,
        unspent: u32,
        error: Option<&str>,
    ) -> rusqlite::Result<()> {
        let ended = state.status().is_terminal();
        self.conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = :state, run_at = :run_at, attempt = attempt - :unspent,
                     owner = CASE WHEN :completed_at IS NULL THEN NULL ELSE owner END, completed_at = :completed_at,
                     error = coalesce(:error, error), updated_at = :now, end_reason = :reason
                 WHERE id = :id AND claim = :fence AND state = 2",
            )?
            .execute(named_params! {
                ":state": state, ":run_at": run_at, ":unspent": unspent, ":error": error,
                ":completed_at": ended.then_some(self.now), ":id": orphan.id, ":fence": orphan.fence,
                ":now": self.now,
                ":reason": (state == State::Failed).then_some(FailureReason::CrashLoop),
            })?;
        let cause = match (state, unspent) {
            (State::Cancelled, _) => Cause::Cancelled,
            (_, 1) => Cause::Returned,
            _ => Cause::Rescued,
        };
        if cause != Cause::Returned {
            let action = if cause == Cause::Cancelled { Action::Cancelled } else { Action::Rescued };
            self.audit(
                &Line::of(orphan.id, action)
                    .share(orphan.place.share)
                    .states(State::Running, state)
                    .attempt(orphan.attempt)
                    .note(error),
            )?;
        }
        let step = Step {
            job: orphan.id,
            place: orphan.place,
            from: Some(State::Running),
            to: Some(state),
            cause,
            attempt: orphan.attempt,
            waited: None,
            ran: None,
        };
        if ended {
            return self.last_step(step);
        }
        if cause == Cause::Returned {
            self.give_tokens_back(orphan.id, orphan.place, orphan.cost)?;
        }
        self.waits(step, run_at.unwrap_or(Timestamp::EPOCH))
    }
}
