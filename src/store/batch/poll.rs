//! Which requests are to be asked about, by whom, and what the answers change.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params, params};

use crate::model::batch::PollCycle;
use crate::model::id::{BatchRequestId, JobId};
use crate::model::time::Timestamp;
use crate::provider::{RemoteBatch, RemoteState};
use crate::store::Turn;
use crate::store::batch::RequestState;
use crate::store::batch::request::{RequestRow, request, request_columns, request_row};

/// How many cycles are kept.
const CYCLES_MAX: i64 = 1000;

/// How long a claim of polls lasts, and how long a batch is left alone at most. What is claimed for longer, or due later,
/// was so before the clock was set back, and is due now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollLimits {
    pub(crate) lease: Duration,
    pub(crate) wait_max: Duration,
}

/// Reads the requests that are due, the longest unasked first.
pub(crate) const PLAN_DUE: &str = "SELECT id FROM jobmill_batch_request INDEXED BY jobmill_batch_request_due
     WHERE state = 3 AND next_poll_at <= :now
         AND (poll_until IS NULL OR poll_until <= :now OR poll_until > :lease_max)
         AND account IN (SELECT value FROM json_each(:accounts))
     ORDER BY next_poll_at LIMIT :limit";

/// Reads the requests that are due later than any wait lasts.
pub(crate) const PLAN_OVERDUE: &str = "SELECT id FROM jobmill_batch_request INDEXED BY jobmill_batch_request_due
     WHERE state = 3 AND next_poll_at > :latest AND account IN (SELECT value FROM json_each(:accounts)) LIMIT :limit";

/// Reads the batches that are under way: of the few batches, not of all jobs, in whichever order SQLite would rather go.
pub(crate) const PLAN_BATCHES: &str = "SELECT batch.job FROM jobmill_batch AS batch
     CROSS JOIN jobmill_job AS job ON job.id = batch.job WHERE job.state = 2";

impl Turn<'_> {
    /// Takes those of these requests that are due still for the caller to ask about. Nobody else asks about them meanwhile.
    pub(crate) fn claim_polls(
        &mut self,
        due: &[BatchRequestId],
        limits: PollLimits,
    ) -> rusqlite::Result<Vec<RequestRow>> {
        let mut claim = self.conn.prepare_cached(
            "UPDATE jobmill_batch_request SET poll_owner = :owner, poll_until = :until
             WHERE id = :id AND state = 3 AND (next_poll_at <= :now OR next_poll_at > :latest)
                 AND (poll_until IS NULL OR poll_until <= :now OR poll_until > :lease_max)",
        )?;
        let mut claimed = Vec::with_capacity(due.len());
        for id in due {
            let is_ours = claim.execute(named_params! {
                ":id": id, ":now": self.now, ":owner": self.book.owner, ":until": self.now.saturating_add(limits.lease),
                ":lease_max": self.now.saturating_add(limits.lease),
                ":latest": self.now.saturating_add(limits.wait_max),
            })?;
            if is_ours == 1 {
                claimed.extend(request(self.conn, *id)?);
            }
        }
        Ok(claimed)
    }

    /// Keeps what a provider told of a request. What has ended meanwhile, or is not awaited any more, stays as it is.
    pub(crate) fn polled(&mut self, row: &RequestRow, remote: &RemoteBatch, wait: Duration) -> rusqlite::Result<bool> {
        let polled = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET latest = :latest, remote_status = :raw_status, polled_at = :now, next_poll_at = :next,
                     poll_wait_us = :wait_us, poll_owner = NULL, poll_until = NULL, failures = 0, misses = 0,
                     missed_since = NULL, error = NULL, succeeded = :succeeded, failed = :failed, expires_at = coalesce(:expires_at, expires_at)
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

    /// Says of requests that nobody here may ask about them.
    pub(crate) fn note_strange(&mut self, requests: &[BatchRequestId]) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(
            "UPDATE jobmill_batch_request SET error = 'the account ' || account || ' is not here'
             WHERE id = :id AND state = 3",
        )?;
        requests.iter().try_for_each(|id| statement.execute(named_params! { ":id": id }).map(drop))
    }

    /// Makes up to `limit` requests due at once, and tells how many that were.
    pub(crate) fn poll_now(&mut self, limit: usize) -> rusqlite::Result<usize> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request SET next_poll_at = :now
                 WHERE id IN (SELECT id FROM jobmill_batch_request INDEXED BY jobmill_batch_request_due
                              WHERE state = 3 AND next_poll_at > :now LIMIT :limit)",
            )?
            .execute(named_params! { ":now": self.now, ":limit": limit as i64 })
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

    /// Has requests taken up again that ought to be under way and of which no job is at work: after a crash between two
    /// steps, or when somebody has removed such a job.
    pub(crate) fn resume_requests(&mut self, requests: &[BatchRequestId]) -> rusqlite::Result<()> {
        let mut look = self.conn.prepare_cached(
            "SELECT batch, state, cancel_requested_at IS NOT NULL FROM jobmill_batch_request WHERE id = :id",
        )?;
        for id in requests {
            let known: Option<(JobId, RequestState, bool)> = look
                .query_row(named_params! { ":id": id }, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            let Some((batch, state, cancel_requested)) = known else { continue };
            match state {
                RequestState::Planning | RequestState::Submitting if self.is_being_cancelled(batch)? => {
                    self.cancel_later(batch)?;
                }
                RequestState::Running if !cancel_requested => self.cancel_later_if_asked(batch)?,
                // A planner that is still at it is not disturbed by another.
                RequestState::Planning if self.is_batch_open(batch)? => self.plan_later(batch)?,
                RequestState::Planning => self.drop_empty(*id)?,
                RequestState::Submitting if !self.is_batch_open(batch)? => self.refuse(*id, "its batch has ended")?,
                RequestState::Submitting | RequestState::Sent => self.send_later(*id)?,
                RequestState::Ended => self.harvest_later(*id)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The same of batches.
    pub(crate) fn resume_batches(&mut self, batches: &[JobId]) -> rusqlite::Result<()> {
        for batch in batches {
            if self.is_retrying(*batch)? {
                self.retry_later(*batch)?;
            }
            // A planner that waits for something need not look for it each time.
            if self.settle_without_plan(*batch)?.is_some() {
                self.plan_later(*batch)?;
            }
        }
        Ok(())
    }

    /// Deletes up to `limit` rows of each sort of a batch whose job is gone, and tells whether any are left.
    pub(crate) fn purge_batch(&mut self, batch: JobId, limit: usize) -> rusqlite::Result<bool> {
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
        let mut left = items.len() == limit;
        // The strays are found by their requests, and these go last.
        for (table, rows) in [
            ("stray", "SELECT stray.id FROM jobmill_batch_request AS request
                       JOIN jobmill_batch_stray AS stray ON stray.request = request.id WHERE request.batch = ?1 LIMIT ?2"),
            ("request", "SELECT id FROM jobmill_batch_request WHERE batch = ?1 LIMIT ?2"),
            ("route", "SELECT id FROM jobmill_batch_route WHERE batch = ?1 LIMIT ?2"),
        ] {
            if left {
                return Ok(true);
            }
            let deleted = self
                .conn
                .prepare_cached(&format!("DELETE FROM jobmill_batch_{table} WHERE id IN ({rows})"))?
                .execute(params![batch, limit as i64])?;
            left = deleted == limit;
        }
        if !left {
            self.conn.prepare_cached("DELETE FROM jobmill_batch WHERE job = ?1")?.execute([batch])?;
        }
        Ok(left)
    }
}

/// The requests of these accounts that are due, the longest unasked first. The accounts are a JSON array.
pub(crate) fn due(
    conn: &Connection,
    accounts: &str,
    now: Timestamp,
    limit: usize,
    limits: PollLimits,
) -> rusqlite::Result<Vec<BatchRequestId>> {
    let mut due: Vec<BatchRequestId> = conn
        .prepare_cached(PLAN_DUE)?
        .query_map(
            named_params! {
                ":now": now, ":lease_max": now.saturating_add(limits.lease), ":accounts": accounts,
                ":limit": limit as i64,
            },
            |row| row.get(0),
        )?
        .collect::<rusqlite::Result<_>>()?;
    let latest = now.saturating_add(limits.wait_max);
    let mut overdue = conn.prepare_cached(PLAN_OVERDUE)?;
    let left = (limit - due.len()) as i64;
    for id in overdue
        .query_map(named_params! { ":latest": latest, ":accounts": accounts, ":limit": left }, |row| row.get(0))?
    {
        due.push(id?);
    }
    Ok(due)
}

/// The accounts whose requests have been due since before this moment and which are none of these, and up to `limit` of
/// those requests that do not say so yet. The accounts are a JSON array.
pub(crate) fn strange(
    conn: &Connection,
    accounts: &str,
    before: Timestamp,
    limit: usize,
) -> rusqlite::Result<(Vec<String>, Vec<BatchRequestId>)> {
    let others = conn
        .prepare_cached(
            "SELECT DISTINCT account FROM jobmill_batch_request INDEXED BY jobmill_batch_request_due
             WHERE state = 3 AND next_poll_at < :before AND account NOT IN (SELECT value FROM json_each(:accounts))",
        )?
        .query_map(named_params! { ":accounts": accounts, ":before": before }, |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let silent = conn
        .prepare_cached(
            "SELECT id FROM jobmill_batch_request INDEXED BY jobmill_batch_request_due
             WHERE state = 3 AND next_poll_at < :before AND account NOT IN (SELECT value FROM json_each(:accounts))
                 AND error IS NOT 'the account ' || account || ' is not here' LIMIT :limit",
        )?
        .query_map(named_params! { ":accounts": accounts, ":before": before, ":limit": limit as i64 }, |row| {
            row.get(0)
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok((others, silent))
}

/// Every request that has not come to its end.
pub(crate) fn open(conn: &Connection) -> rusqlite::Result<Vec<BatchRequestId>> {
    conn.prepare_cached("SELECT id FROM jobmill_batch_request INDEXED BY jobmill_batch_request_open WHERE state < 5")?
        .query_map([], |row| row.get(0))?
        .collect()
}

/// Every batch that is under way.
pub(crate) fn running(conn: &Connection) -> rusqlite::Result<Vec<JobId>> {
    conn.prepare_cached(PLAN_BATCHES)?.query_map([], |row| row.get(0))?.collect()
}

/// Every batch whose job is gone.
pub(crate) fn gone(conn: &Connection) -> rusqlite::Result<Vec<JobId>> {
    conn.prepare_cached(
        "SELECT job FROM jobmill_batch WHERE NOT EXISTS (SELECT 1 FROM jobmill_job WHERE jobmill_job.id = job)",
    )?
    .query_map([], |row| row.get(0))?
    .collect()
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
