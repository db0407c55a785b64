//! What a queue bears in all processes together: how many of its jobs run, and how fast they start.

use rusqlite::{Connection, named_params, params};

use crate::model::job::Priority;
use crate::model::limit::{Bucket, Limit, Rate, blocked, nanos};
use crate::model::time::Timestamp;
use crate::store::gate::{bucket, columns, micros, rate};

/// The bounds of a queue, and how much of them is used.
#[derive(Clone, Debug)]
pub(crate) struct Bounded {
    concurrency: Option<u32>,
    rate: Option<Rate>,
    bucket: Bucket,
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
            "SELECT name, concurrency, rate, period_us, burst, full_at, blocked_until, as_of FROM jobmill_queue
             WHERE concurrency IS NOT NULL OR rate IS NOT NULL",
        )?
        .query_map([], |row| {
            let queue = Self {
                concurrency: row.get(1)?,
                rate: rate(row, 2)?,
                bucket: bucket(row, 5)?,
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
        let blocked_until = self.rate.and(blocked(self.bucket.blocked_until, now)).unwrap_or(0);
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
            let ready_at = micros(rate.ready_at(self.bucket.full_at, cost, nanos(now)));
            if ready_at > now.as_micros() {
                self.closed_until[rank] = self.closed_until[rank].max(ready_at);
            }
        }
        self.closed_until(rank, now) <= now.as_micros()
    }

    /// Takes what a job costs, or gives it back if that is less than nothing.
    pub(crate) fn take(&mut self, cost: i64, now: Timestamp) {
        let Some(rate) = &self.rate else { return };
        self.bucket.take(rate, cost, now);
        self.changed = true;
        self.reopen();
    }

    /// Has the time go on from a moment at which the clock was set back, when it showed `seen` at least.
    pub(crate) fn set_back(&mut self, seen: Timestamp, now: Timestamp) {
        self.bucket.set_back(seen, now);
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
        self.bucket.throttle(until, now);
        self.changed = true;
    }

    /// Writes what has changed since the last time.
    pub(crate) fn flush(&mut self, conn: &Connection, name: &str) -> rusqlite::Result<()> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        write_bucket(conn, name, &self.bucket)
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

/// Lets a queue go on with the tokens that it has.
pub(crate) fn take_over_tokens(
    conn: &Connection,
    limit: &Limit,
    before: Option<&Bounded>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let mut bucket = before.map(|before| before.bucket).unwrap_or_default();
    bucket.take_over(before.and_then(|before| before.rate).zip(limit.rate), now);
    write_bucket(conn, &limit.name, &bucket)
}

fn write_bucket(conn: &Connection, name: &str, bucket: &Bucket) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE jobmill_queue SET full_at = ?2, blocked_until = ?3, as_of = ?4 WHERE name = ?1")?
        .execute(params![name, bucket.full_at, bucket.blocked_until, bucket.as_of])
        .map(drop)
}
