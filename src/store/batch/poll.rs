//! Which requests are to be asked about, by whom, and what the answers change.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::model::batch::PollCycle;
use crate::model::id::{BatchRequestId, JobId};
use crate::model::time::Timestamp;
use crate::provider::{RemoteBatch, RemoteState};
use crate::store::Turn;
use crate::store::batch::RequestState;
use crate::store::batch::request::{RequestRow, request_columns, request_row};

/// How many cycles are kept.
const CYCLES_MAX: i64 = 1000;

/// Reads the requests that are due, the longest unasked first.
pub(crate) const PLAN_DUE: &str = concat!(
    "SELECT ",
    request_columns!(),
    " FROM jobmill_batch_request INDEXED BY jobmill_batch_request_due
     WHERE state = 3 AND next_poll_at <= :now AND (poll_until IS NULL OR poll_until <= :now)
         AND account IN (SELECT value FROM json_each(:accounts))
     ORDER BY next_poll_at LIMIT :limit"
);

/// Reads the batches that are under way: of the few batches, not of all jobs, in whichever order SQLite would rather go.
pub(crate) const PLAN_BATCHES: &str = "SELECT batch.job FROM jobmill_batch AS batch
     CROSS JOIN jobmill_job AS job ON job.id = batch.job WHERE job.state = 2";

impl Turn<'_> {
    /// Takes the requests of these accounts that are due for the caller to ask about, about which nobody else asks
    /// meanwhile. The accounts are a JSON array.
    pub(crate) fn claim_polls(
        &mut self,
        accounts: &str,
        limit: usize,
        lease: Duration,
    ) -> rusqlite::Result<Vec<RequestRow>> {
        let due: Vec<RequestRow> = self
            .conn
            .prepare_cached(PLAN_DUE)?
            .query_map(named_params! { ":now": self.now, ":accounts": accounts, ":limit": limit as i64 }, request_row)?
            .collect::<rusqlite::Result<_>>()?;
        let mut claim = self.conn.prepare_cached(
            "UPDATE jobmill_batch_request SET poll_owner = :owner, poll_until = :until WHERE id = :id",
        )?;
        for row in &due {
            claim.execute(named_params! {
                ":id": row.id, ":owner": self.book.owner, ":until": self.now.saturating_add(lease),
            })?;
        }
        Ok(due)
    }

    /// Keeps what a provider told of a request. What has ended meanwhile, or is not awaited any more, stays as it is.
    pub(crate) fn polled(&mut self, row: &RequestRow, remote: &RemoteBatch, wait: Duration) -> rusqlite::Result<bool> {
        let polled = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET latest = :latest, remote_status = :raw_status, polled_at = :now, next_poll_at = :next,
                     poll_wait_us = :wait_us, poll_owner = NULL, poll_until = NULL, failures = 0, error = NULL,
                     succeeded = :succeeded, failed = :failed, expires_at = coalesce(:expires_at, expires_at)
                 WHERE id = :id AND state = 3",
            )?
            .execute(named_params! {
                ":id": row.id, ":now": self.now, ":next": self.now.saturating_add(wait),
                ":wait_us": wait.as_micros() as i64, ":latest": serde_json::to_string(remote).unwrap_or_default(),
                ":raw_status": remote.raw_status, ":succeeded": remote.counts.succeeded.map(u64::cast_signed),
                ":failed": remote.counts.failed.map(u64::cast_signed), ":expires_at": remote.expires_at,
            })?;
        if polled == 1
            && let RemoteState::Ended(end) = &remote.state
        {
            self.remote_ended(row.id, end)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The provider was asked to cancel a request, and told where it stands.
    pub(crate) fn cancelled_remotely(
        &mut self,
        row: &RequestRow,
        remote: &RemoteBatch,
        wait: Duration,
    ) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_batch_request SET cancel_requested_at = :now WHERE id = :id AND state = 3")?
            .execute(named_params! { ":id": row.id, ":now": self.now })?;
        self.polled(row, remote, wait).map(drop)
    }

    /// What of a batch has not come to its end.
    pub(crate) fn open_requests(&mut self, batch: JobId) -> rusqlite::Result<Vec<RequestRow>> {
        self.conn
            .prepare_cached(concat!(
                "SELECT ",
                request_columns!(),
                " FROM jobmill_batch_request WHERE batch = :batch AND state < 5"
            ))?
            .query_map(named_params! { ":batch": batch }, request_row)?
            .collect()
    }

    /// A request could not be asked about. What was known of it stays.
    pub(crate) fn poll_failed(&mut self, row: &RequestRow, error: &str, wait: Duration) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET polled_at = :now, next_poll_at = :next, poll_wait_us = :wait_us, poll_owner = NULL,
                     poll_until = NULL, failures = failures + 1, error = :error
                 WHERE id = :id AND state = 3",
            )?
            .execute(named_params! {
                ":id": row.id, ":now": self.now, ":next": self.now.saturating_add(wait),
                ":wait_us": wait.as_micros() as i64, ":error": error,
            })
            .map(drop)
    }

    /// Lets go of requests that were not asked about after all.
    pub(crate) fn unclaim_polls(&mut self, rows: &[RequestRow]) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(
            "UPDATE jobmill_batch_request SET poll_owner = NULL, poll_until = NULL WHERE id = :id AND state = 3",
        )?;
        rows.iter().try_for_each(|row| statement.execute(named_params! { ":id": row.id }).map(drop))
    }

    /// Says of requests that have been due for long that nobody here may ask about them. The accounts are a JSON array.
    pub(crate) fn note_strange(&mut self, accounts: &str, overdue: Duration) -> rusqlite::Result<Vec<String>> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request SET error = 'the account ' || account || ' is not here'
                 WHERE state = 3 AND next_poll_at < :before
                     AND account NOT IN (SELECT value FROM json_each(:accounts))
                 RETURNING account",
            )?
            .query_map(named_params! { ":accounts": accounts, ":before": self.now.saturating_sub(overdue) }, |row| {
                row.get(0)
            })?
            .collect()
    }

    /// Makes every request due at once.
    pub(crate) fn poll_all_now(&mut self) -> rusqlite::Result<usize> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request SET next_poll_at = :now WHERE state = 3 AND next_poll_at > :now",
            )?
            .execute(named_params! { ":now": self.now })
    }

    /// Keeps what a cycle came to.
    pub(crate) fn keep_cycle(&mut self, cycle: &PollCycle) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("INSERT INTO jobmill_batch_cycle (cycle) VALUES (:cycle)")?
            .execute(named_params! { ":cycle": serde_json::to_string(cycle).unwrap_or_default() })?;
        let gone = self.conn.last_insert_rowid() - CYCLES_MAX;
        self.conn
            .prepare_cached("DELETE FROM jobmill_batch_cycle WHERE id <= :gone")?
            .execute(named_params! { ":gone": gone })
            .map(drop)
    }

    /// Has everything taken up again that ought to be under way and of which no job is at work: after a crash between
    /// two steps, or when somebody has removed such a job.
    pub(crate) fn resume_batches(&mut self) -> rusqlite::Result<()> {
        let open: Vec<(BatchRequestId, JobId, RequestState, bool)> = self
            .conn
            .prepare_cached(
                "SELECT id, batch, state, cancel_requested_at IS NOT NULL
                 FROM jobmill_batch_request INDEXED BY jobmill_batch_request_open WHERE state < 5",
            )?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (id, batch, state, cancel_requested) in open {
            match state {
                RequestState::Planning | RequestState::Submitting if self.is_being_cancelled(batch)? => {
                    self.cancel_later(batch)?;
                }
                RequestState::Running if !cancel_requested => self.cancel_later_if_asked(batch)?,
                // A planner that is still at it is not disturbed by another.
                RequestState::Planning if self.is_batch_open(batch)? => self.plan_later(batch)?,
                RequestState::Submitting | RequestState::Sent => self.send_later(id)?,
                RequestState::Ended => self.harvest_later(id)?,
                _ => {}
            }
        }
        let running: Vec<JobId> = self
            .conn
            .prepare_cached(PLAN_BATCHES)?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for batch in running {
            if self.is_retrying(batch)? {
                self.retry_later(batch)?;
            }
            // A planner that waits for something need not look for it each time.
            if self.settle_without_plan(batch)?.is_some() {
                self.plan_later(batch)?;
            }
        }
        Ok(())
    }

    /// Deletes up to `limit` rows of batches whose job is gone, and tells whether any are left.
    pub(crate) fn purge_batches(&mut self, limit: usize) -> rusqlite::Result<bool> {
        let gone: Option<JobId> = self
            .conn
            .prepare_cached(
                "SELECT job FROM jobmill_batch WHERE NOT EXISTS (SELECT 1 FROM jobmill_job WHERE id = job) LIMIT 1",
            )?
            .query_row([], |row| row.get(0))
            .optional()?;
        let Some(batch) = gone else { return Ok(false) };
        let items: Vec<i64> = self
            .conn
            .prepare_cached("SELECT id FROM jobmill_batch_item WHERE batch = :batch LIMIT :limit")?
            .query_map(named_params! { ":batch": batch, ":limit": limit as i64 }, |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for table in ["body WHERE item", "output WHERE item", "item WHERE id"] {
            let mut delete = self.conn.prepare_cached(&format!("DELETE FROM jobmill_batch_{table} = ?1"))?;
            for item in &items {
                delete.execute([item])?;
            }
        }
        if items.len() < limit {
            let requests = "request IN (SELECT id FROM jobmill_batch_request WHERE batch = ?1)";
            self.conn.prepare_cached(&format!("DELETE FROM jobmill_batch_stray WHERE {requests}"))?.execute([batch])?;
            for table in ["request WHERE batch", "route WHERE batch"] {
                self.conn.prepare_cached(&format!("DELETE FROM jobmill_batch_{table} = ?1"))?.execute([batch])?;
            }
            self.conn.prepare_cached("DELETE FROM jobmill_batch WHERE job = ?1")?.execute([batch])?;
        }
        Ok(true)
    }
}

/// When the next request of these accounts is due. None: nothing of theirs is at a provider. The accounts are a JSON array.
pub(crate) fn next_due(conn: &Connection, accounts: &str) -> rusqlite::Result<Option<Timestamp>> {
    conn.prepare_cached(
        "SELECT min(max(next_poll_at, coalesce(poll_until, 0)))
         FROM jobmill_batch_request INDEXED BY jobmill_batch_request_due
         WHERE state = 3 AND account IN (SELECT value FROM json_each(:accounts))",
    )?
    .query_row(named_params! { ":accounts": accounts }, |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Store;
    use crate::store::connect::Durability;

    /// The poller rests until then: what it may not ask about would never let it.
    #[test]
    fn what_others_must_ask_about_is_due_to_nobody_here() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("jobs.db");
        let store = Store::open(&path, Durability::Normal, Duration::ZERO).expect("a store");
        let conn = store.connection();
        for (id, account, at) in [(1, "strange", 10), (2, "ours", 30), (3, "ours", 20)] {
            conn.execute(
                "INSERT INTO jobmill_batch_request (id, batch, state, provider, account, base_url, endpoint, key,
                     next_poll_at)
                 VALUES (?1, 1, 3, 'p', ?2, '', '', ?1, ?3)",
                rusqlite::params![id, account, at],
            )
            .expect("a request");
        }
        let due = |accounts| next_due(conn, accounts).expect("a look").map(Timestamp::as_micros);
        assert_eq!((due("[]"), due("[\"ours\"]"), due("[\"ours\",\"strange\"]")), (None, Some(20), Some(10)));
    }
}
