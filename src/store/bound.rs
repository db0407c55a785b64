//! Setting what bounds limits and queues, and correcting what is spent of them, within a turn.

use rusqlite::{OptionalExtension, named_params, params};

use crate::model::history::{Action, Caller};
use crate::model::id::JobId;
use crate::model::limit::{Bucket, Limit, nanos};
use crate::model::time::Timestamp;
use crate::store::audit::Line;
use crate::store::gate::{bucket, columns, text, uses_of, write_bucket};
use crate::store::{Turn, queue};

/// Removes gates that no job names and of which nothing need be remembered.
const PLAN_IDLE: &str = "DELETE FROM jobmill_gate WHERE id IN (
         SELECT id FROM jobmill_gate INDEXED BY jobmill_gate_idle
         WHERE jobs = 0 AND running = 0 AND full_at <= :now_ns AND blocked_until <= :now LIMIT :limit)";

impl Turn<'_> {
    /// Corrects what a running job takes of a limit, and tells whether it counts against one of that name.
    pub(crate) fn spent(&mut self, job: JobId, limit: &str, tokens: u32) -> rusqlite::Result<bool> {
        let Some(limit) = self.book.gates.limit(limit) else { return Ok(false) };
        let (mut uses, _) = uses_of(self.conn, job)?;
        let mut found = false;
        for (id, cost) in &mut uses {
            if self.book.gates.get(self.conn, *id)?.limit != limit {
                continue;
            }
            found = true;
            let more = i64::from(tokens) - i64::from(std::mem::replace(cost, tokens));
            if let Some(rate) = self.book.gates.bounds(limit).rate {
                let gate = self.book.gates.change(self.conn, *id)?;
                gate.bucket.take(&rate, more, self.now);
            }
            self.book.gates.loosen(*id);
        }
        if found {
            self.conn
                .prepare_cached("UPDATE jobmill_job SET limits = ?2 WHERE id = ?1")?
                .execute(params![job, text(&uses)])?;
        }
        Ok(found)
    }

    /// Corrects what a running job takes of the rate of its queue.
    pub(crate) fn spent_in_queue(&mut self, job: JobId, tokens: u32) -> rusqlite::Result<()> {
        let (lane, cost): (i64, i64) = self
            .conn
            .prepare_cached("SELECT lane, coalesce(cost, 1) FROM jobmill_job WHERE id = ?1")?
            .query_row([job], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if let Some(queue) = self.book.lanes.bounded(lane) {
            queue.take(i64::from(tokens) - cost, self.now);
        }
        self.conn
            .prepare_cached("UPDATE jobmill_job SET cost = ?2 WHERE id = ?1")?
            .execute(params![job, tokens])
            .map(drop)
    }

    /// Shuts every gate with a rate that a job goes by until a moment, and its queue if that has a rate. If nothing of that
    /// has one, every gate. Tells whether anything was shut.
    pub(crate) fn throttle(&mut self, job: JobId, until: Timestamp) -> rusqlite::Result<bool> {
        let (mut rated, mut others) = (Vec::new(), Vec::new());
        for (id, _) in uses_of(self.conn, job)?.0 {
            let limit = self.book.gates.get(self.conn, id)?.limit;
            if self.book.gates.has_rate(limit) { &mut rated } else { &mut others }.push(id);
        }
        let lane: Option<i64> = self
            .conn
            .prepare_cached("SELECT lane FROM jobmill_job WHERE id = ?1")?
            .query_row([job], |row| row.get(0))
            .optional()?;
        let queue = lane.and_then(|lane| self.book.lanes.bounded(lane)).filter(|queue| queue.has_rate());
        let mut any = false;
        if let Some(queue) = queue {
            queue.throttle(until, self.now);
            any = true;
        } else if rated.is_empty() {
            rated = others;
        }
        for id in rated {
            let gate = self.book.gates.change(self.conn, id)?;
            gate.bucket.throttle(until, self.now);
            self.book.gates.loosen(id);
            any = true;
        }
        Ok(any)
    }

    /// Sets what bounds the jobs of a limit.
    pub(crate) fn set_limit(&mut self, limit: &Limit, caller: &Caller) -> rusqlite::Result<()> {
        let (tokens, period_us, burst) = columns(limit.rate);
        let changed = self
            .conn
            .prepare_cached(
                "INSERT INTO jobmill_limit (name, concurrency, rate, period_us, burst)
                 VALUES (:name, :concurrency, :rate, :period_us, :burst)
                 ON CONFLICT (name) DO UPDATE
                 SET concurrency = excluded.concurrency, rate = excluded.rate, period_us = excluded.period_us,
                     burst = excluded.burst
                 WHERE (concurrency, rate, period_us, burst)
                     IS NOT (excluded.concurrency, excluded.rate, excluded.period_us, excluded.burst)",
            )?
            .execute(named_params! {
                ":name": limit.name, ":concurrency": limit.concurrency, ":rate": tokens, ":period_us": period_us,
                ":burst": burst,
            })?;
        if changed == 0 {
            return Ok(());
        }
        self.audit(&Line::of_queue(Action::Limited).by(caller).note(Some(&limit.name)))?;
        self.book.gates.flush(self.conn, self.now)?;
        self.take_over_tokens(limit)?;
        self.conn
            .prepare_cached(
                "UPDATE jobmill_gate SET wake_at = :now
                 WHERE limit_id = (SELECT id FROM jobmill_limit WHERE name = :name)
                     AND id IN (SELECT gate FROM jobmill_gate_lane WHERE held > 0)",
            )?
            .execute(named_params! { ":name": limit.name, ":now": self.now })?;
        self.book.gates.reload(self.conn)
    }

    /// Lets the keys of a limit go on with the tokens that they have, for at another rate these take another time to come.
    fn take_over_tokens(&mut self, limit: &Limit) -> rusqlite::Result<()> {
        let Some(id) = self.book.gates.limit(&limit.name) else { return Ok(()) };
        let before = self.book.gates.bounds(id).rate;
        if before == limit.rate {
            return Ok(());
        }
        let spent: Vec<(i64, Bucket)> = self
            .conn
            .prepare_cached(
                "SELECT id, full_at, blocked_until, as_of FROM jobmill_gate
                 WHERE limit_id = ?1 AND (full_at > ?2 OR blocked_until > 0)",
            )?
            .query_map(params![id, nanos(self.now)], |row| Ok((row.get(0)?, bucket(row, 1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (gate, mut bucket) in spent {
            bucket.take_over(before.zip(limit.rate), self.now);
            write_bucket(self.conn, gate, &bucket)?;
        }
        Ok(())
    }

    /// Sets what bounds a queue.
    pub(crate) fn limit_queue(&mut self, limit: &Limit, caller: &Caller) -> rusqlite::Result<()> {
        self.book.lanes.flush(self.conn)?;
        if queue::set(self.conn, limit)? {
            queue::take_over_tokens(self.conn, limit, self.book.lanes.bounds_of(&limit.name), self.now)?;
            let note = format!("queue {}", limit.name);
            self.audit(&Line::of_queue(Action::Limited).by(caller).note(Some(&note)))?;
            self.book.lanes.reload(self.conn)?;
        }
        Ok(())
    }

    /// Removes gates that no job names any more, at most `limit`, and tells how many they were.
    pub(crate) fn forget_idle_gates(&mut self, limit: usize) -> rusqlite::Result<usize> {
        self.book.gates.flush(self.conn, self.now)?;
        let gone = self.conn.prepare_cached(PLAN_IDLE)?.execute(named_params! {
            ":now": self.now, ":now_ns": nanos(self.now), ":limit": limit as i64,
        })?;
        if gone > 0 {
            self.book.gates.reload(self.conn)?;
        }
        Ok(gone)
    }
}
