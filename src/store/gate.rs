//! Gates: a limit at one key. What it does not let through it holds, so that no claim meets it again in vain.
//!
//! A job whose gates are open stands among the others. One that a claim meets at a closed gate, or that comes when those
//! before it will fill the gate, is *held* there: it leaves the order of its lane until the gate lets it go. A gate with room
//! lets go, in each lane, as many as it has room for, so that neither a paused queue nor a kind that nobody here handles
//! keeps its room from others.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use rusqlite::{Connection, OptionalExtension, named_params, params};

use crate::model::id::JobId;
use crate::model::limit::{Bucket, LimitUse, Rate, blocked, nanos};
use crate::model::time::Timestamp;

/// How many gates are remembered, and how many of their names.
const GATES_MAX: usize = 1 << 14;
const NAMES_MAX: usize = 1 << 16;
/// Reads the gates whose time has come.
pub(crate) const PLAN_WAKE: &str =
    "SELECT id FROM jobmill_gate INDEXED BY jobmill_gate_wake WHERE wake_at <= :now ORDER BY wake_at LIMIT :limit";

/// Reads when the next gate's time comes.
pub(crate) const PLAN_NEXT_WAKE: &str = "SELECT wake_at FROM jobmill_gate INDEXED BY jobmill_gate_wake
     WHERE wake_at IS NOT NULL ORDER BY wake_at LIMIT 1";

/// What a job takes of a gate: the gate, and the tokens.
pub(crate) type Taken = (i64, u32);

/// What the gates of a job's row are.
pub(crate) fn parse(limits: Option<&str>) -> Vec<Taken> {
    limits.and_then(|limits| serde_json::from_str(limits).ok()).unwrap_or_default()
}

/// As a job's row keeps them.
pub(crate) fn text(uses: &[Taken]) -> String {
    serde_json::to_string(uses).unwrap_or_default()
}

/// How many jobs of a lane wait for a gate.
#[derive(Clone, Debug, Default)]
pub(crate) struct InLane {
    pub(crate) lane: i64,
    /// Those that may be claimed.
    pub(crate) ready: i64,
    /// Those that it holds.
    pub(crate) held: i64,
    changed: bool,
}

/// A gate as the writer knows it.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) limit: i64,
    pub(crate) jobs: i64,
    pub(crate) running: i64,
    pub(crate) bucket: Bucket,
    wake_at: Option<i64>,
    pub(crate) lanes: Vec<InLane>,
    changed: bool,
}

impl Gate {
    /// How many of its jobs of a lane may be claimed.
    pub(crate) fn ready(&self, lane: i64) -> i64 {
        self.lanes.iter().find(|known| known.lane == lane).map_or(0, |known| known.ready)
    }

    /// Whether it holds jobs of a lane.
    pub(crate) fn holds(&self, lane: i64) -> bool {
        self.lanes.iter().any(|known| known.lane == lane && known.held > 0)
    }

    /// Whether it holds any jobs.
    pub(crate) fn holds_any(&self) -> bool {
        self.lanes.iter().any(|known| known.held > 0)
    }

    /// Counts jobs of a lane that may be claimed from now on, and jobs that it holds.
    pub(crate) fn count(&mut self, lane: i64, ready: i64, held: i64) {
        if (ready, held) == (0, 0) {
            return;
        }
        let at = self.lanes.iter().position(|known| known.lane == lane).unwrap_or_else(|| {
            self.lanes.push(InLane { lane, ..InLane::default() });
            self.lanes.len() - 1
        });
        let known = &mut self.lanes[at];
        known.ready += ready;
        known.held += held;
        known.changed = true;
    }
}

/// A held job for which a gate gathers tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dear {
    pub(crate) lane: i64,
    /// Its rank and its place: of two jobs, that with the lesser order goes first.
    pub(crate) order: (usize, i64),
    /// When the gate has its tokens, in microseconds.
    pub(crate) ready_at: i64,
}

/// Whether a gate lets a job through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    Open,
    /// As many run as may.
    Full,
    /// Not before this moment, in microseconds.
    Until(i64),
}

/// What bounds the jobs of one key.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounds {
    concurrency: Option<u32>,
    pub(crate) rate: Option<Rate>,
}

impl Bounds {
    /// Whether a job of this cost may start, if `ready` more like it are let go before it.
    fn passage(&self, gate: &Gate, cost: u32, ready: i64, now: Timestamp) -> Passage {
        if let Some(until) = blocked(gate.bucket.blocked_until, now) {
            return Passage::Until(until);
        }
        if self.concurrency.is_some_and(|most| gate.running + ready >= i64::from(most)) {
            return Passage::Full;
        }
        let Some(rate) = &self.rate else { return Passage::Open };
        let now_ns = nanos(now);
        let full_at = gate.bucket.full_at;
        let spent = if ready > 0 { rate.take(full_at, ready * i64::from(cost), now_ns) } else { full_at };
        let ready_at = rate.ready_at(spent, cost, now_ns);
        if ready_at <= now_ns { Passage::Open } else { Passage::Until(micros(ready_at)) }
    }
}

/// What the writer knows of limits and gates. Those may be many, so their rows are the truth, and only some are remembered.
#[derive(Default)]
pub(crate) struct Gates {
    bounds: HashMap<i64, Bounds>,
    limit_names: HashMap<Box<str>, i64>,
    /// By limit and key.
    names: HashMap<(i64, Box<str>), i64>,
    known: HashMap<i64, Gate>,
    /// Those of them that are not written yet.
    changed: Vec<i64>,
    /// Of gates that have not changed since: the jobs for which they gather tokens at this moment.
    dear: HashMap<i64, Vec<Dear>>,
    /// Gates that may have room for those that they hold.
    loose: BTreeSet<i64>,
    /// When the first gate's time comes, in microseconds; `i64::MAX` if none waits for time. None: it must be looked up.
    next_wake: Option<i64>,
}

impl Gates {
    /// Reads the limits anew, and forgets all gates: somebody else has written.
    pub(crate) fn reload(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        self.forget();
        let mut statement =
            conn.prepare_cached("SELECT id, name, concurrency, rate, period_us, burst FROM jobmill_limit")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            self.limit_names.insert(row.get::<_, String>(1)?.into(), id);
            self.bounds.insert(id, Bounds { concurrency: row.get(2)?, rate: rate(row, 3)? });
        }
        Ok(())
    }

    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether a gate may have something to do at `now`.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        !self.loose.is_empty() || self.next_wake.is_none_or(|next| next <= now.as_micros())
    }

    /// When time alone gives a gate something to do, if that is known.
    pub(crate) fn next_wake(&self) -> Option<i64> {
        self.next_wake
    }

    pub(crate) fn bounds(&self, limit: i64) -> Bounds {
        self.bounds.get(&limit).copied().unwrap_or_default()
    }

    /// Whether a limit has a rate.
    pub(crate) fn has_rate(&self, limit: i64) -> bool {
        self.bounds(limit).rate.is_some()
    }

    /// Whether there is a limit of this name.
    pub(crate) fn is_defined(&self, name: &str) -> bool {
        self.limit_names.contains_key(name)
    }

    pub(crate) fn get(&mut self, conn: &Connection, id: i64) -> rusqlite::Result<&Gate> {
        self.known(conn, id).map(|gate| &*gate)
    }

    /// A gate that is about to be changed.
    pub(crate) fn change(&mut self, conn: &Connection, id: i64) -> rusqlite::Result<&mut Gate> {
        if !self.known(conn, id)?.changed {
            self.changed.push(id);
        }
        self.dear.remove(&id);
        let gate = self.known(conn, id)?;
        gate.changed = true;
        Ok(gate)
    }

    /// The jobs for which a gate gathers tokens, if they are known.
    pub(crate) fn dear(&self, id: i64) -> Option<&[Dear]> {
        self.dear.get(&id).map(Vec::as_slice)
    }

    pub(crate) fn note_dear(&mut self, id: i64, dear: Vec<Dear>) {
        self.dear.insert(id, dear);
    }

    fn known(&mut self, conn: &Connection, id: i64) -> rusqlite::Result<&mut Gate> {
        match self.known.entry(id) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(read(conn, id)?)),
        }
    }

    /// Whether a job of this cost may start, if `ready` more like it are let go before it.
    pub(crate) fn passage(
        &mut self,
        conn: &Connection,
        id: i64,
        cost: u32,
        ready: i64,
        now: Timestamp,
    ) -> rusqlite::Result<Passage> {
        let limit = self.get(conn, id)?.limit;
        let bounds = self.bounds(limit);
        Ok(bounds.passage(self.get(conn, id)?, cost, ready, now))
    }

    pub(crate) fn find_or_create(&mut self, conn: &Connection, used: &LimitUse) -> rusqlite::Result<i64> {
        let limit = match self.limit_names.get(&*used.name) {
            Some(limit) => *limit,
            None => {
                let limit = limit_named(conn, &used.name)?;
                self.limit_names.insert(used.name.as_str().into(), limit);
                limit
            }
        };
        let name = (limit, Box::from(used.key.as_str()));
        if let Some(id) = self.names.get(&name) {
            return Ok(*id);
        }
        let id = gate_named(conn, limit, &used.key)?;
        if self.names.len() == NAMES_MAX {
            self.names.clear();
        }
        self.names.insert(name, id);
        Ok(id)
    }

    pub(crate) fn loosen(&mut self, id: i64) {
        self.loose.insert(id);
    }

    /// Notes when a gate is to be looked at. None: when one of its jobs that run ends.
    pub(crate) fn wake(&mut self, conn: &Connection, id: i64, at: Option<i64>) -> rusqlite::Result<()> {
        if self.get(conn, id)?.wake_at != at {
            self.change(conn, id)?.wake_at = at;
        }
        if let (Some(at), Some(next)) = (at, &mut self.next_wake) {
            *next = at.min(*next);
        }
        Ok(())
    }

    /// Writes what has changed since the last time. What this turn had no time for, another one finds.
    pub(crate) fn flush(&mut self, conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        self.dear.clear();
        for id in std::mem::take(&mut self.loose) {
            self.wake(conn, id, Some(now.as_micros()))?;
        }
        self.write(conn)
    }

    /// Takes the gates whose time has come, at most `limit`, among those that may have room.
    pub(crate) fn loosen_due(&mut self, conn: &Connection, now: Timestamp, limit: i64) -> rusqlite::Result<()> {
        if self.next_wake.is_some_and(|next| next > now.as_micros()) {
            return Ok(());
        }
        self.write(conn)?;
        let due: Vec<i64> = conn
            .prepare_cached(PLAN_WAKE)?
            .query_map(named_params! { ":now": now, ":limit": limit }, |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        due.into_iter().for_each(|id| self.loosen(id));
        self.next_wake = None;
        Ok(())
    }

    /// Has the time go on for every gate from a moment at which the clock was set back, when it showed `seen` at least, and
    /// every gate looked at that waits for time.
    pub(crate) fn set_back(&mut self, conn: &Connection, seen: Timestamp, now: Timestamp) -> rusqlite::Result<()> {
        self.write(conn)?;
        self.known.clear();
        self.dear.clear();
        self.next_wake = None;
        let ahead: Vec<(i64, Bucket)> = conn
            .prepare_cached("SELECT id, full_at, blocked_until, as_of FROM jobmill_gate WHERE as_of > ?1")?
            .query_map([now], |row| Ok((row.get(0)?, bucket(row, 1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (id, mut bucket) in ahead {
            bucket.set_back(seen, now);
            write_bucket(conn, id, &bucket)?;
        }
        conn.prepare_cached("UPDATE jobmill_gate SET wake_at = ?1 WHERE wake_at > ?1")?.execute([now]).map(drop)
    }

    /// Learns when the next gate's time comes, if that is not known.
    pub(crate) fn note_next_wake(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        if self.next_wake.is_none() {
            self.write(conn)?;
            let next: Option<i64> = conn.prepare_cached(PLAN_NEXT_WAKE)?.query_row([], |row| row.get(0)).optional()?;
            self.next_wake = Some(next.unwrap_or(i64::MAX));
        }
        Ok(())
    }

    /// A gate that may have room for those that it holds.
    pub(crate) fn take_loose(&mut self) -> Option<i64> {
        self.loose.pop_first()
    }

    /// The limit of this name.
    pub(crate) fn limit(&self, name: &str) -> Option<i64> {
        self.limit_names.get(name).copied()
    }

    fn write(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        for id in changed {
            let Some(gate) = self.known.get_mut(&id) else { continue };
            gate.changed = false;
            conn.prepare_cached(
                "UPDATE jobmill_gate SET jobs = ?2, running = ?3, full_at = ?4, blocked_until = ?5, as_of = ?6, wake_at = ?7
                 WHERE id = ?1",
            )?
            .execute(params![
                id,
                gate.jobs,
                gate.running,
                gate.bucket.full_at,
                gate.bucket.blocked_until,
                gate.bucket.as_of,
                gate.wake_at
            ])?;
            for in_lane in gate.lanes.iter_mut().filter(|in_lane| in_lane.changed) {
                in_lane.changed = false;
                write_in_lane(conn, id, in_lane)?;
            }
            gate.lanes.retain(|in_lane| in_lane.ready != 0 || in_lane.held != 0);
        }
        if self.known.len() > GATES_MAX {
            self.known.clear();
        }
        Ok(())
    }
}

/// Holds a new job of an application's own transaction at the first of its gates, for the next turn to look at, and counts
/// it at all of them.
pub(crate) fn enter_in(
    conn: &Connection,
    lane: i64,
    uses: &[Taken],
    held: Option<i64>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    for (gate, _) in uses {
        conn.prepare_cached("UPDATE jobmill_gate SET jobs = jobs + 1 WHERE id = ?1")?.execute([gate])?;
    }
    let Some(gate) = held else { return Ok(()) };
    conn.prepare_cached(
        "INSERT INTO jobmill_gate_lane (gate, lane, ready, held) VALUES (?1, ?2, 0, 1)
         ON CONFLICT (gate, lane) DO UPDATE SET held = held + 1",
    )?
    .execute(params![gate, lane])?;
    conn.prepare_cached("UPDATE jobmill_gate SET wake_at = ?2 WHERE id = ?1")?.execute(params![gate, now]).map(drop)
}

/// The gates of a new job of an application's own transaction, made if there are none.
pub(crate) fn gates_in(conn: &Connection, uses: &[LimitUse]) -> rusqlite::Result<Vec<Taken>> {
    uses.iter().map(|used| Ok((gate_named(conn, limit_named(conn, &used.name)?, &used.key)?, used.cost))).collect()
}

/// Takes a job that an application's own transaction has ended off the books of its gates.
pub(crate) fn leave_in(conn: &Connection, job: JobId, now: Timestamp) -> rusqlite::Result<()> {
    for (gate, _) in uses_of(conn, job)?.0 {
        conn.prepare_cached("UPDATE jobmill_gate SET running = running - 1, wake_at = ?2 WHERE id = ?1")?
            .execute(params![gate, now])?;
    }
    Ok(())
}

/// Whether there is a limit of this name.
pub(crate) fn is_defined_in(conn: &Connection, name: &str) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM jobmill_limit WHERE name = ?1")?.exists([name])
}

/// The gates of a job with what it takes of each, and the line in which it stands if it is held.
pub(crate) fn uses_of(conn: &Connection, job: JobId) -> rusqlite::Result<(Vec<Taken>, Option<i64>)> {
    let found = conn
        .prepare_cached("SELECT limits, line FROM jobmill_job WHERE id = ?1")?
        .query_row([job], |row| Ok((parse(row.get_ref(0)?.as_str_or_null()?), row.get(1)?)))
        .optional()?;
    Ok(found.unwrap_or_default())
}

fn read(conn: &Connection, id: i64) -> rusqlite::Result<Gate> {
    let mut gate = conn
        .prepare_cached(
            "SELECT limit_id, jobs, running, full_at, blocked_until, as_of, wake_at FROM jobmill_gate WHERE id = ?1",
        )?
        .query_row([id], |row| {
            Ok(Gate {
                limit: row.get(0)?,
                jobs: row.get(1)?,
                running: row.get(2)?,
                bucket: bucket(row, 3)?,
                wake_at: row.get(6)?,
                lanes: Vec::new(),
                changed: false,
            })
        })?;
    let mut statement = conn.prepare_cached("SELECT lane, ready, held FROM jobmill_gate_lane WHERE gate = ?1")?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        gate.lanes.push(InLane { lane: row.get(0)?, ready: row.get(1)?, held: row.get(2)?, changed: false });
    }
    Ok(gate)
}

/// Writes how the bucket of a gate stands that nobody remembers.
pub(crate) fn write_bucket(conn: &Connection, gate: i64, bucket: &Bucket) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE jobmill_gate SET full_at = ?2, blocked_until = ?3, as_of = ?4 WHERE id = ?1")?
        .execute(params![gate, bucket.full_at, bucket.blocked_until, bucket.as_of])
        .map(drop)
}

fn write_in_lane(conn: &Connection, gate: i64, in_lane: &InLane) -> rusqlite::Result<()> {
    if in_lane.ready == 0 && in_lane.held == 0 {
        return conn
            .prepare_cached("DELETE FROM jobmill_gate_lane WHERE gate = ?1 AND lane = ?2")?
            .execute(params![gate, in_lane.lane])
            .map(drop);
    }
    conn.prepare_cached(
        "INSERT INTO jobmill_gate_lane (gate, lane, ready, held) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (gate, lane) DO UPDATE SET ready = excluded.ready, held = excluded.held",
    )?
    .execute(params![gate, in_lane.lane, in_lane.ready, in_lane.held])
    .map(drop)
}

fn limit_named(conn: &Connection, name: &str) -> rusqlite::Result<i64> {
    let found = conn
        .prepare_cached("SELECT id FROM jobmill_limit WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    match found {
        Some(id) => Ok(id),
        // It bounds nothing until it is set.
        None => conn
            .prepare_cached("INSERT INTO jobmill_limit (name) VALUES (?1) RETURNING id")?
            .query_row([name], |row| row.get(0)),
    }
}

fn gate_named(conn: &Connection, limit: i64, key: &str) -> rusqlite::Result<i64> {
    let found = conn
        .prepare_cached("SELECT id FROM jobmill_gate WHERE limit_id = ?1 AND key = ?2")?
        .query_row(params![limit, key], |row| row.get(0))
        .optional()?;
    match found {
        Some(id) => Ok(id),
        None => conn
            .prepare_cached("INSERT INTO jobmill_gate (limit_id, key) VALUES (?1, ?2) RETURNING id")?
            .query_row(params![limit, key], |row| row.get(0)),
    }
}

/// The rate that three columns of a row tell, from column `first` on.
pub(crate) fn rate(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Option<Rate>> {
    let (tokens, period, burst) = (row.get(first)?, crate::store::row::whole(row, first + 1)?, row.get(first + 2)?);
    Ok(match (tokens, period, burst) {
        (Some(tokens), Some(period_us), Some(burst)) => {
            Some(Rate { tokens, period: std::time::Duration::from_micros(period_us), burst })
        }
        _ => None,
    })
}

/// The three columns of a rate.
pub(crate) fn columns(rate: Option<Rate>) -> (Option<u32>, Option<i64>, Option<u32>) {
    let period_us = rate.map(|rate| i64::try_from(rate.period.as_micros()).unwrap_or(i64::MAX));
    (rate.map(|rate| rate.tokens), period_us, rate.map(|rate| rate.burst))
}

/// How a bucket stands that three columns of a row tell, from column `first` on.
pub(crate) fn bucket(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Bucket> {
    Ok(Bucket { full_at: row.get(first)?, blocked_until: row.get(first + 1)?, as_of: row.get(first + 2)? })
}

/// A moment in microseconds, rounded up.
pub(crate) fn micros(at_ns: i64) -> i64 {
    at_ns.saturating_add(999).div_euclid(1000)
}
