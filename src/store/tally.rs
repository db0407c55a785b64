//! Tallies: what happened in each lane, kept by spans of time, so that rates outlive the process.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::model::job::Status;
use crate::model::metrics::{Metrics, Window};
use crate::model::prometheus::{Exposition, LaneReading};
use crate::model::tally::{Resolution, Tally};
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::read::{LaneRow, lanes, stats, status_counts};
use crate::store::row::json;

/// The resolution under which transactions of the application's own leave what they did: one tally for each lane, which
/// the next engine to write takes over.
const LEFT: i64 = -1;

impl Turn<'_> {
    /// Adds what happened up to now, with what transactions of the application's own have left.
    pub(crate) fn add_tallies(&mut self, tallies: &HashMap<i64, Tally>) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_meta (key, value) VALUES ('counted_since', :now)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE value > excluded.value",
            )?
            .execute(named_params! { ":now": self.now })?;
        let mut statement =
            self.conn.prepare_cached("DELETE FROM jobmill_tally WHERE resolution = :left RETURNING lane, tally")?;
        let left: Vec<(i64, Option<Tally>)> = statement
            .query_map(named_params! { ":left": LEFT }, |row| Ok((row.get(0)?, json(row, 1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let left = left.iter().filter_map(|(lane, tally)| Some((lane, tally.as_ref()?)));
        for (lane, tally) in tallies.iter().chain(left) {
            for resolution in Resolution::ALL {
                let bucket = resolution.bucket_start(self.now);
                add(self.conn, resolution.as_seconds().into(), bucket, *lane, tally)?;
            }
        }
        Ok(())
    }

    /// Deletes tallies that no window reaches any more, and those that a clock which was set back has left far ahead.
    pub(crate) fn forget_old_tallies(&self) -> rusqlite::Result<()> {
        for window in Window::ALL {
            self.conn
                .prepare_cached(
                    "DELETE FROM jobmill_tally
                     WHERE resolution = :resolution AND bucket NOT BETWEEN :first AND :last",
                )?
                .execute(named_params! {
                    ":resolution": window.resolution().as_seconds(), ":first": window.first_wanted(self.now),
                    ":last": self.now.saturating_add(window.length()),
                })?;
        }
        Ok(())
    }
}

/// Leaves a tally in a transaction of the application's own.
pub(crate) fn leave(conn: &Connection, lane: i64, tally: &Tally) -> rusqlite::Result<()> {
    add(conn, LEFT, Timestamp::EPOCH, lane, tally)
}

/// A job was enqueued, or recorded with another status than the first.
pub(crate) fn enqueued(status: Status) -> Tally {
    let mut tally = Tally { enqueued: 1, ..Tally::default() };
    tally.count(status);
    tally
}

/// A job was completed, in so much time.
pub(crate) fn completed(ran: Option<Duration>) -> Tally {
    let mut tally = Tally { completed: 1, ..Tally::default() };
    if let Some(ran) = ran {
        tally.ran.record(ran);
    }
    tally
}

fn add(conn: &Connection, resolution: i64, bucket: Timestamp, lane: i64, tally: &Tally) -> rusqlite::Result<()> {
    let known: Option<Option<Tally>> = conn
        .prepare_cached(
            "SELECT tally FROM jobmill_tally WHERE resolution = :resolution AND bucket = :bucket AND lane = :lane",
        )?
        .query_row(named_params! { ":resolution": resolution, ":bucket": bucket, ":lane": lane }, |row| json(row, 0))
        .optional()?;
    let mut sum = known.flatten().unwrap_or_default();
    sum.merge(tally);
    conn.prepare_cached(
        "INSERT OR REPLACE INTO jobmill_tally (resolution, bucket, lane, tally)
         VALUES (:resolution, :bucket, :lane, :tally)",
    )?
    .execute(named_params! {
        ":resolution": resolution, ":bucket": bucket, ":lane": lane,
        ":tally": serde_json::to_string(&sum).unwrap_or_default(),
    })
    .map(drop)
}

/// What happened since the beginning of a window, by queue, kind and priority.
pub(crate) fn metrics(conn: &Connection, window: Window, now: Timestamp) -> rusqlite::Result<Metrics> {
    let since: Option<Timestamp> = conn
        .prepare_cached("SELECT value FROM jobmill_meta WHERE key = 'counted_since'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let lanes: HashMap<i64, LaneRow> = lanes(conn)?.into_iter().map(|lane| (lane.id, lane)).collect();
    let tallies = read(conn, window.resolution(), window.first_wanted(now), now)?;
    let named = tallies.iter().filter_map(|(lane, tally)| {
        let lane = lanes.get(lane)?;
        Some((&*lane.queue, &*lane.kind, lane.priority, tally))
    });
    Ok(Metrics::new(window, now, since.unwrap_or(now), named))
}

/// What the file tells Prometheus.
pub(crate) fn exposition(conn: &Connection, now: Timestamp) -> rusqlite::Result<String> {
    let stats = stats(conn, None, now)?;
    let mut ever: HashMap<i64, Tally> = HashMap::new();
    for (lane, tally) in read(conn, Resolution::Ever, Timestamp::EPOCH, now)? {
        ever.entry(lane).or_default().merge(&tally);
    }
    let lanes = lanes(conn)?;
    let nothing = Tally::default();
    let readings: Vec<LaneReading<'_>> = lanes
        .iter()
        .map(|lane| LaneReading {
            queue: &lane.queue,
            kind: &lane.kind,
            priority: lane.priority,
            counts: status_counts(&lane.counts),
            ever: ever.get(&lane.id).unwrap_or(&nothing),
        })
        .collect();
    let waiting = stats.oldest_waiting.iter().map(|(queue, since)| (queue.clone(), now.since(*since)));
    let text = Exposition { lanes: &readings, oldest_waiting: &waiting.collect(), paused: &stats.paused }.to_text();
    Ok(text)
}

/// The tallies of a resolution from a moment to another, each with its lane, and those that no engine has taken over yet. What lies ahead, a clock that was set back
/// has left there.
fn read(
    conn: &Connection,
    resolution: Resolution,
    from: Timestamp,
    to: Timestamp,
) -> rusqlite::Result<Vec<(i64, Tally)>> {
    conn.prepare_cached(
        "SELECT lane, tally FROM jobmill_tally
         WHERE resolution = :resolution AND bucket BETWEEN :from AND :to
         UNION ALL SELECT lane, tally FROM jobmill_tally WHERE resolution = :left",
    )?
    .query_map(
        named_params! { ":resolution": resolution.as_seconds(), ":from": from, ":to": to, ":left": LEFT },
        |row| Ok((row.get(0)?, json(row, 1)?.unwrap_or_default())),
    )?
    .collect()
}
