//! What a queue bears in all processes together: how many of its jobs run, and how fast they start.

use rusqlite::{Connection, named_params, params};

use crate::model::job::Priority;
use crate::model::limit::{Limit, Rate, blocked};
use crate::model::time::Timestamp;
use crate::store::gate::{columns, micros, nanos, rate};

/// The bounds of a queue, and how much of them is used.
#[derive(Clone, Debug)]
pub(crate) struct Bounded {
    concurrency: Option<u32>,
    rate: Option<Rate>,
    full_at: i64,
    blocked_until: i64,
    /// How many of its jobs run.
    pub(crate) running: i64,
    /// Nothing of it that has this rank or a worse one starts before this, in microseconds: a job for which the tokens
    /// are not there yet is not overtaken by what comes after it, and keeps nothing waiting that goes before it.
    closed_until: [i64; RANKS],
    changed: bool,
}

const RANKS: usize = Priority::ALL.len();

impl Bounded {
    /// Reads the queues that are bounded.
    pub(crate) fn read_all(conn: &Connection) -> rusqlite::Result<Vec<(Box<str>, Self)>> {
        conn.prepare_cached(
            "SELECT name, concurrency, rate, period_us, burst, full_at, blocked_until FROM jobmill_queue
             WHERE concurrency IS NOT NULL OR rate IS NOT NULL",
        )?
        .query_map([], |row| {
            let queue = Self {
                concurrency: row.get(1)?,
                rate: rate(row, 2)?,
                full_at: row.get(5)?,
                blocked_until: row.get(6)?,
                running: 0,
                closed_until: [0; RANKS],
                changed: false,
            };
            Ok((row.get::<_, String>(0)?.into(), queue))
        })?
        .collect()
    }

    /// Until when nothing of this rank starts, in microseconds.
    fn closed_until(&self, rank: usize, now: Timestamp) -> i64 {
        let blocked_until = self.rate.and(blocked(self.blocked_until, now)).unwrap_or(0);
        self.closed_until.iter().take(rank + 1).copied().fold(blocked_until, i64::max)
    }

    /// How many more of its jobs of a rank may run.
    pub(crate) fn room(&self, rank: usize, now: Timestamp) -> usize {
        if self.closed_until(rank, now) > now.as_micros() {
            return 0;
        }
        self.concurrency.map_or(usize::MAX, |most| usize::try_from(i64::from(most) - self.running).unwrap_or(0))
    }

    /// When time alone lets more of its jobs of a rank start, if it is time that they wait for.
    pub(crate) fn opens_at(&self, rank: usize, now: Timestamp) -> Option<i64> {
        Some(self.closed_until(rank, now)).filter(|at| *at > now.as_micros())
    }

    /// Whether a job of this rank and cost may start now. If not, the queue is closed until it may, but for better ones.
    pub(crate) fn admits(&mut self, rank: usize, cost: u32, now: Timestamp) -> bool {
        if let Some(rate) = &self.rate {
            let ready_at = micros(rate.ready_at(self.full_at, cost, nanos(now)));
            if ready_at > now.as_micros() {
                self.closed_until[rank] = self.closed_until[rank].max(ready_at);
            }
        }
        self.closed_until(rank, now) <= now.as_micros()
    }

    /// Takes what a job costs, or gives it back if that is less than nothing.
    pub(crate) fn take(&mut self, cost: i64, now: Timestamp) {
        let Some(rate) = &self.rate else { return };
        self.full_at = rate.take(self.full_at, cost, nanos(now));
        self.changed = true;
        self.reopen();
    }

    /// Lets it be found out anew who must wait.
    pub(crate) fn reopen(&mut self) {
        self.closed_until = [0; RANKS];
    }

    pub(crate) fn has_rate(&self) -> bool {
        self.rate.is_some()
    }

    /// Lets nothing start until a moment. Only for one that has a rate.
    pub(crate) fn throttle(&mut self, until: Timestamp, now: Timestamp) {
        self.blocked_until = blocked(self.blocked_until, now).unwrap_or(0).max(until.as_micros());
        self.changed = true;
    }

    /// Writes what has changed since the last time.
    pub(crate) fn flush(&mut self, conn: &Connection, name: &str) -> rusqlite::Result<()> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        conn.prepare_cached("UPDATE jobmill_queue SET full_at = ?2, blocked_until = ?3 WHERE name = ?1")?
            .execute(params![name, self.full_at, self.blocked_until])
            .map(drop)
    }
}

/// Sets what bounds a queue, and tells whether that changed anything.
pub(crate) fn set(conn: &Connection, limit: &Limit) -> rusqlite::Result<bool> {
    let (tokens, period_us, burst) = columns(limit.rate);
    conn.prepare_cached(
        "INSERT INTO jobmill_queue (name, concurrency, rate, period_us, burst)
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
    })
    .map(|changed| changed > 0)
}

/// Lets a queue go on with the tokens that it has. Nothing is remembered of a rate that is lifted.
pub(crate) fn take_over_tokens(
    conn: &Connection,
    limit: &Limit,
    before: Option<&Bounded>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let rates = limit.rate.zip(before.and_then(|before| before.rate.map(|rate| (rate, before.full_at))));
    let full_at = rates.map(|(rate, (before, full_at))| rate.takes_over(&before, full_at, nanos(now)));
    conn.prepare_cached(
        "UPDATE jobmill_queue SET full_at = coalesce(?2, 0),
             blocked_until = CASE WHEN ?2 IS NULL THEN 0 ELSE blocked_until END WHERE name = ?1",
    )?
    .execute(params![limit.name, full_at])
    .map(drop)
}
