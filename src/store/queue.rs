//! What a queue bears in all processes together: how many of its jobs run, and how fast they start.

use rusqlite::{Connection, named_params, params};

use crate::model::limit::{Limit, Rate};
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
    /// Nothing of it starts before this, in microseconds.
    closed_until: i64,
    changed: bool,
}

impl Bounded {
    /// Reads the queues that are bounded.
    pub(crate) fn read_all(conn: &Connection) -> rusqlite::Result<Vec<(Box<str>, Self)>> {
        conn.prepare_cached(
            "SELECT name, concurrency, rate, period_us, burst, full_at, blocked_until FROM jobmill_queue
             WHERE concurrency IS NOT NULL OR rate IS NOT NULL",
        )?
        .query_map([], |row| {
            let blocked_until = row.get(6)?;
            let queue = Self {
                concurrency: row.get(1)?,
                rate: rate(row, 2)?,
                full_at: row.get(5)?,
                blocked_until,
                running: 0,
                closed_until: blocked_until,
                changed: false,
            };
            Ok((row.get::<_, String>(0)?.into(), queue))
        })?
        .collect()
    }

    /// How many more of its jobs may run.
    pub(crate) fn room(&self, now: Timestamp) -> usize {
        if self.closed_until > now.as_micros() {
            return 0;
        }
        self.concurrency.map_or(usize::MAX, |most| usize::try_from(i64::from(most) - self.running).unwrap_or(0))
    }

    /// When time alone lets more of its jobs start, if it is time that they wait for.
    pub(crate) fn opens_at(&self, now: Timestamp) -> Option<i64> {
        (self.closed_until > now.as_micros()).then_some(self.closed_until)
    }

    /// Whether a job of this cost may start now. If not, the queue is closed until it may.
    pub(crate) fn admits(&mut self, cost: u32, now: Timestamp) -> bool {
        if let Some(rate) = &self.rate {
            let ready_at = micros(rate.ready_at(self.full_at, cost, nanos(now)));
            if ready_at > now.as_micros() {
                self.closed_until = self.closed_until.max(ready_at);
            }
        }
        self.closed_until <= now.as_micros()
    }

    /// Takes what a job costs, or gives it back if that is less than nothing.
    pub(crate) fn take(&mut self, cost: i64, now: Timestamp) {
        let Some(rate) = &self.rate else { return };
        self.full_at = rate.take(self.full_at, cost, nanos(now));
        self.closed_until = self.blocked_until;
        self.changed = true;
    }

    /// Lets nothing start until a moment, if there is a rate.
    pub(crate) fn throttle(&mut self, until: Timestamp) {
        if self.rate.is_some() {
            self.blocked_until = self.blocked_until.max(until.as_micros());
            self.closed_until = self.closed_until.max(self.blocked_until);
            self.changed = true;
        }
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
