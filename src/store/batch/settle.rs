//! What a batch comes to: it starts, goes on while items are open, and ends when none is.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params};
use serde::Serialize;

use crate::model::batch::{ItemCounts, Spent};
use crate::model::batch_job::{CancelBatch, EndBatch, PlanBatch};
use crate::model::event::Cause;
use crate::model::history::{Action, Caller};
use crate::model::id::JobId;
use crate::model::job::Progress;
use crate::model::new_batch::BATCH_KIND;
use crate::store::Turn;
use crate::store::batch::read::{self, FailureCount};
use crate::store::batch::{Change, ItemState};
use crate::store::operate::{Cancelled, Standing};
use crate::store::row::State;
use crate::store::{audit, detail};

/// What an ended batch came to, as its job's result.
#[derive(Serialize)]
struct Summary<'a> {
    batch_id: JobId,
    total: u64,
    successful: u64,
    failed: u64,
    items: ItemCounts,
    duration_s: f64,
    items_per_second: f64,
    spent: &'a Spent,
    strays: u64,
    /// The most frequent failures, each with how many items had it.
    errors: Vec<FailureCount>,
}

/// How long items that go on wait for others to go with. A batch at a provider takes minutes at least, and the fewer there
/// are, the more each of them holds; but one long step must not keep the others for ever.
const GATHER: Duration = Duration::from_secs(60);
/// Of how many failures a summary is made in the turn that ends the batch. Those of more are read beside the writer.
const SUMMED_AT_ONCE: u64 = 1000;

/// Whether a batch is under way and nobody has asked for its cancellation.
pub(crate) fn is_batch_open(conn: &Connection, batch: JobId) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM jobmill_job WHERE id = :id AND state = 2 AND cancel_requested_at IS NULL")?
        .exists(named_params! { ":id": batch })
}

impl Turn<'_> {
    /// Whether the jobs of this lane are LLM batches.
    pub(crate) fn is_batch_lane(&self, lane: i64) -> bool {
        self.book.lanes.get(lane).is_some_and(|lane| &*lane.kind == BATCH_KIND)
    }

    /// Whether a batch is under way and nobody has asked for its cancellation.
    pub(crate) fn is_batch_open(&self, batch: JobId) -> rusqlite::Result<bool> {
        is_batch_open(self.conn, batch)
    }

    /// Whether somebody has asked for the cancellation of a batch, or it has ended.
    pub(crate) fn is_cancel_requested(&self, batch: JobId) -> rusqlite::Result<bool> {
        self.is_batch_open(batch).map(|open| !open)
    }

    /// Whether a batch is under way and somebody has asked for its cancellation.
    pub(crate) fn is_being_cancelled(&self, batch: JobId) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached(
                "SELECT 1 FROM jobmill_job WHERE id = :id AND state = 2 AND cancel_requested_at IS NOT NULL",
            )?
            .exists(named_params! { ":id": batch })
    }

    /// Lets a batch begin.
    pub(crate) fn start_batch(&mut self, standing: &Standing) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = 2, started_at = :now, attempt = 1 WHERE id = :id AND state = 0",
            )?
            .execute(named_params! { ":id": standing.id, ":now": self.now })?;
        self.step(standing.step(State::Running, Cause::Claimed))
    }

    /// Has items that wait put into requests, unless somebody is about to.
    pub(crate) fn plan_later(&mut self, batch: JobId) -> rusqlite::Result<()> {
        self.enqueue(&PlanBatch { batch }.new_job()).map(drop)
    }

    /// Has items that wait put into requests after this time at most, though a planner waits for longer: what it waits for
    /// may be another account than theirs.
    fn plan_within(&mut self, batch: JobId, wait: Duration) -> rusqlite::Result<()> {
        let job = PlanBatch { batch }.new_job();
        self.enqueue_no_later(&if wait.is_zero() { job } else { job.delay(wait) })
    }

    /// Leaves a batch to another planner that waits, after this time at most. False: there is no other.
    pub(crate) fn leave_plan(&mut self, batch: JobId, planner: JobId, wait: Duration) -> rusqlite::Result<bool> {
        let other: Option<JobId> = self
            .conn
            .prepare_cached(
                "SELECT job.id FROM jobmill_unique AS held JOIN jobmill_job AS job ON job.id = held.job
                 WHERE held.key = :key AND job.id <> :planner AND job.state IN (1, 7)",
            )?
            .query_row(named_params! { ":key": PlanBatch { batch }.scoped_key(), ":planner": planner }, |row| {
                row.get(0)
            })
            .optional()?;
        if let Some(other) = other {
            self.hasten(other, self.now.saturating_add(wait))?;
        }
        Ok(other.is_some())
    }

    /// Has what is open of a batch cancelled.
    pub(crate) fn cancel_later(&mut self, batch: JobId) -> rusqlite::Result<()> {
        self.enqueue(&CancelBatch { batch }.new_job()).map(drop)
    }

    /// The same, if somebody has asked for it.
    pub(crate) fn cancel_later_if_asked(&mut self, batch: JobId) -> rusqlite::Result<()> {
        if self.is_being_cancelled(batch)? { self.cancel_later(batch) } else { Ok(()) }
    }

    /// Asks for the cancellation of a batch that is under way. What is at a provider is cancelled there, and ends with
    /// what was done of it.
    pub(crate) fn cancel_batch(&mut self, standing: &Standing, caller: &Caller) -> rusqlite::Result<Cancelled> {
        let asked = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_job SET cancel_requested_at = :now, updated_at = :now
                 WHERE id = :id AND state = 2 AND cancel_requested_at IS NULL",
            )?
            .execute(named_params! { ":id": standing.id, ":now": self.now })?;
        if asked == 1 {
            detail::changed_by(self.conn, standing.id, caller)?;
            self.audit(&standing.line(Action::CancelRequested, caller, State::Running))?;
            self.cancel_later(standing.id)?;
        }
        Ok(Cancelled::Requested)
    }

    /// Cancels up to `limit` items that are not at a provider, and tells whether any are left.
    pub(crate) fn cancel_items(&mut self, batch: JobId, limit: usize) -> rusqlite::Result<bool> {
        let mut left = limit;
        let mut change = Change::default();
        for state in [ItemState::Waiting, ItemState::Stepping] {
            let cancelled = self
                .conn
                .prepare_cached(
                    "UPDATE jobmill_batch_item SET state = 5, step_job = NULL
                     WHERE id IN (SELECT id FROM jobmill_batch_item WHERE batch = :batch AND state = :state
                                  LIMIT :limit)",
                )?
                .execute(named_params! { ":batch": batch, ":state": state, ":limit": left as i64 })?;
            change.items(state, ItemState::Cancelled, cancelled);
            left -= cancelled;
        }
        change.write(self.conn, batch)?;
        Ok(left == 0)
    }

    /// Looks where a batch stands: tells how far it is, has planned what waits, and ends it when nothing is open.
    pub(crate) fn settle(&mut self, batch: JobId) -> rusqlite::Result<()> {
        match self.settle_without_plan(batch)? {
            Some(wait) => self.plan_within(batch, wait),
            None => Ok(()),
        }
    }

    /// The same, but tells whether something is to be planned, and after which time.
    pub(crate) fn settle_without_plan(&mut self, batch: JobId) -> rusqlite::Result<Option<Duration>> {
        let Some(counts) = read::item_counts(self.conn, batch)? else { return Ok(None) };
        let Some(cancelled) = self.is_cancelled_while_running(batch)? else { return Ok(None) };
        self.progress(batch, &Progress { done: counts.ended(), total: Some(counts.total()), note: None })?;
        if self.is_over(batch, &counts, cancelled)? {
            if counts.failed + counts.expired > SUMMED_AT_ONCE {
                self.enqueue(&EndBatch { batch }.new_job())?;
            } else {
                let errors = read::failures(self.conn, batch)?;
                self.end_batch(batch, counts, cancelled, errors)?;
            }
            return Ok(None);
        }
        if cancelled {
            if counts.waiting + counts.stepping > 0 {
                self.cancel_later(batch)?;
            }
            return Ok(None);
        }
        if counts.waiting == 0 {
            return Ok(None);
        }
        // What goes on goes together with what will soon.
        let more = counts.stepping > 0 || self.will_more_wait(batch)?;
        Ok(Some(if more && !self.fills_a_request(batch, counts.waiting)? { GATHER } else { Duration::ZERO }))
    }

    /// Whether somebody has asked for the cancellation of a batch that is under way. None: it is not.
    fn is_cancelled_while_running(&self, batch: JobId) -> rusqlite::Result<Option<bool>> {
        self.conn
            .prepare_cached("SELECT cancel_requested_at IS NOT NULL FROM jobmill_job WHERE id = :id AND state = 2")?
            .query_row(named_params! { ":id": batch }, |row| row.get(0))
            .optional()
    }

    /// Whether nothing is open of a batch. What is retried and has not gone yet counts as ended still.
    fn is_over(&self, batch: JobId, counts: &ItemCounts, cancelled: bool) -> rusqlite::Result<bool> {
        Ok(counts.open() == 0 && (cancelled || !self.is_retrying(batch)?))
    }

    /// Ends a batch whose failures have been read since nothing was open of it, for then they change no more.
    pub(crate) fn end_with(&mut self, batch: JobId, errors: Vec<FailureCount>) -> rusqlite::Result<()> {
        let counts = read::item_counts(self.conn, batch)?;
        if let (Some(counts), Some(cancelled)) = (counts, self.is_cancelled_while_running(batch)?)
            && self.is_over(batch, &counts, cancelled)?
        {
            self.end_batch(batch, counts, cancelled, errors)?;
        }
        Ok(())
    }

    /// Whether results of a batch are being read, or items of it let go once more.
    fn will_more_wait(&self, batch: JobId) -> rusqlite::Result<bool> {
        let is_read = self
            .conn
            .prepare_cached("SELECT 1 FROM jobmill_batch_request WHERE batch = :batch AND state = 4")?
            .exists(named_params! { ":batch": batch })?;
        Ok(is_read || self.is_retrying(batch)?)
    }

    /// Whether so many items are all that a request of this batch may hold.
    fn fills_a_request(&self, batch: JobId, items: u64) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM jobmill_batch WHERE job = :batch AND request_items <= :items")?
            .exists(named_params! { ":batch": batch, ":items": items.cast_signed() })
    }

    fn end_batch(
        &mut self,
        batch: JobId,
        counts: ItemCounts,
        cancelled: bool,
        errors: Vec<FailureCount>,
    ) -> rusqlite::Result<()> {
        let Some(standing) = self.standing(batch, &Caller::default())? else { return Ok(()) };
        let Some(facts) = read::batch_facts(self.conn, batch)? else { return Ok(()) };
        self.end_retry(batch)?;
        let (state, error) = match () {
            () if cancelled => (State::Cancelled, None),
            () if counts.completed > 0 => (State::Completed, None),
            () => {
                let most = errors.first().map(|most| format!(", mostly: {}", most.error)).unwrap_or_default();
                (State::Failed, Some(format!("none of {} items succeeded{most}", counts.total())))
            }
        };
        let took = standing.started_at().map_or(0.0, |started_at| self.now.since(started_at).as_secs_f64());
        let summary = Summary {
            batch_id: batch,
            total: counts.total(),
            successful: counts.completed,
            failed: counts.failed,
            items: counts,
            duration_s: took,
            items_per_second: if took > 0.0 { counts.total() as f64 / took } else { 0.0 },
            spent: &facts.spent,
            strays: facts.strays,
            errors,
        };
        self.conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = :state, completed_at = :now, result = :result, error = :error
                 WHERE id = :id AND state = 2",
            )?
            .execute(named_params! {
                ":id": batch, ":state": state, ":now": self.now, ":error": error,
                ":result": serde_json::to_vec(&summary).unwrap_or_default(),
            })?;
        if state == State::Cancelled {
            self.audit(
                &audit::Line::of(batch, Action::Cancelled).share(standing.place.share).states(State::Running, state),
            )?;
        }
        let mut step = standing.step(state, if cancelled { Cause::Cancelled } else { Cause::Ended });
        step.ran = standing.started_at().map(|started_at| self.now.since(started_at));
        self.last_step(step)
    }
}
