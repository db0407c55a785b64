//! An ended batch goes once more: its items in slices, each with what is in the file of it.

use rusqlite::{OptionalExtension, named_params, params};

use crate::model::batch_job::RetryBatch;
use crate::model::event::Cause;
use crate::model::history::{Action, Caller};
use crate::model::id::{BatchItemId, JobId};
use crate::store::Turn;
use crate::store::batch::{Change, ItemState};
use crate::store::detail;
use crate::store::operate::Standing;
use crate::store::row::State;

/// How many items go once more in one transaction.
const SLICE: usize = 500;

/// Reads items of a batch in a state, in their order, behind one of them.
pub(crate) const PLAN_ENDED: &str = "SELECT id, step_number, finish IS NOT NULL
     FROM jobmill_batch_item INDEXED BY jobmill_batch_item_state
     WHERE batch = :batch AND state = :state AND id > :after ORDER BY id LIMIT :limit";

/// An item that goes once more.
struct Ended {
    id: BatchItemId,
    state: ItemState,
    step_number: u32,
    /// What it asks at this step is answered, and paid.
    has_reply: bool,
}

impl Turn<'_> {
    /// Lets the items of an ended batch that are not completed go once more.
    pub(crate) fn retry_batch(&mut self, ended: &Standing, caller: &Caller) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_batch SET retry_after = 0 WHERE job = :batch")?
            .execute(named_params! { ":batch": ended.id })?;
        self.conn
            .prepare_cached(
                "UPDATE jobmill_job
                 SET state = 2, started_at = :now, completed_at = NULL, cancel_requested_at = NULL, updated_at = :now,
                     result = NULL, error = NULL, stop_reason = NULL
                 WHERE id = :id AND state IN (4, 5, 6)",
            )?
            .execute(named_params! { ":id": ended.id, ":now": self.now })?;
        detail::changed_by(self.conn, ended.id, caller)?;
        self.audit(&ended.line(Action::Requeued, caller, State::Running))?;
        self.step(ended.step(State::Running, Cause::Operator))?;
        if self.retry_items(ended.id)? {
            self.retry_later(ended.id)?;
        }
        self.settle(ended.id)
    }

    /// Has the items of a batch go once more that still have to.
    pub(crate) fn retry_later(&mut self, batch: JobId) -> rusqlite::Result<()> {
        self.enqueue(&RetryBatch { batch }.new_job()).map(drop)
    }

    /// Whether items of a batch that is retried still have to go once more.
    pub(crate) fn is_retrying(&self, batch: JobId) -> rusqlite::Result<bool> {
        self.retried_to(batch).map(|after| after.is_some())
    }

    fn retried_to(&self, batch: JobId) -> rusqlite::Result<Option<BatchItemId>> {
        self.conn
            .prepare_cached("SELECT retry_after FROM jobmill_batch WHERE job = :batch")?
            .query_row(named_params! { ":batch": batch }, |row| row.get(0))
            .optional()
            .map(Option::flatten)
    }

    /// Nothing of a batch has to go once more.
    pub(crate) fn end_retry(&mut self, batch: JobId) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_batch SET retry_after = NULL WHERE job = :batch AND retry_after NOT NULL")?
            .execute(named_params! { ":batch": batch })
            .map(drop)
    }

    /// Lets a slice of a retried batch's items go once more, in their order, and tells whether any are left. One that failed
    /// again meanwhile is not taken twice, for it lies before. One whose reply is in the file goes to its step, and is not
    /// paid again; the others are sent, with their attempts anew.
    pub(crate) fn retry_items(&mut self, batch: JobId) -> rusqlite::Result<bool> {
        let Some(after) = self.retried_to(batch)? else { return Ok(false) };
        let terms = match self.is_batch_open(batch)? {
            true => self.terms(batch)?,
            false => None,
        };
        let Some(terms) = terms else {
            // It was cancelled meanwhile: what has not gone stays as it ended.
            self.end_retry(batch)?;
            return Ok(false);
        };
        let items = self.ended_items(batch, after)?;
        let mut send = self.conn.prepare_cached(
            "UPDATE jobmill_batch_item SET state = 0, attempt = 0, error = NULL, error_class = NULL WHERE id = ?1",
        )?;
        let mut step = self.conn.prepare_cached(
            "UPDATE jobmill_batch_item SET state = 2, step_job = ?2, error = NULL, error_class = NULL WHERE id = ?1",
        )?;
        let mut change = Change::default();
        for item in &items {
            let to = match &terms.step {
                Some(name) if item.has_reply => {
                    let job = self.step_later(name, &terms, item.id, item.step_number)?;
                    step.execute(params![item.id, job])?;
                    ItemState::Stepping
                }
                _ => {
                    send.execute(params![item.id])?;
                    ItemState::Waiting
                }
            };
            change.item(Some(item.state), Some(to));
        }
        change.write(self.conn, batch)?;
        match items.last().filter(|_| items.len() == SLICE) {
            None => self.end_retry(batch)?,
            Some(last) => {
                self.conn
                    .prepare_cached("UPDATE jobmill_batch SET retry_after = :after WHERE job = :batch")?
                    .execute(named_params! { ":batch": batch, ":after": last.id })?;
            }
        }
        Ok(items.len() == SLICE)
    }

    /// The next items of a batch that are not completed, in their order, whatever they came to.
    fn ended_items(&self, batch: JobId, after: BatchItemId) -> rusqlite::Result<Vec<Ended>> {
        let mut items = Vec::new();
        let mut statement = self.conn.prepare_cached(PLAN_ENDED)?;
        for state in [ItemState::Failed, ItemState::Cancelled, ItemState::Expired] {
            let of_state = statement.query_map(
                named_params! { ":batch": batch, ":state": state, ":after": after, ":limit": SLICE as i64 },
                |row| Ok(Ended { id: row.get(0)?, state, step_number: row.get(1)?, has_reply: row.get(2)? }),
            )?;
            for item in of_state {
                items.push(item?);
            }
        }
        items.sort_unstable_by_key(|item| item.id);
        items.truncate(SLICE);
        Ok(items)
    }
}
