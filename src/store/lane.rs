//! Lanes: all jobs that are alike, named and counted in one row.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params, params};

use crate::model::job::Priority;
use crate::model::job_type::JobType;
use crate::model::new_batch::BATCH_KIND;
use crate::model::preference::Preference;
use crate::model::time::Timestamp;
use crate::store::place::LaneKey;
use crate::store::queue::Bounded;
use crate::store::row::State;

/// The earliest `run_at` among the delayed jobs of a lane, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NextDelayed {
    /// It must be looked up.
    Unknown,
    /// No job of the lane is due before this, in microseconds. `i64::MAX` if it has no delayed job.
    NotBefore(i64),
}

/// A lane as the writer knows it.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub(crate) id: i64,
    pub(crate) queue: Arc<str>,
    pub(crate) kind: Arc<str>,
    pub(crate) priority: Priority,
    pub(crate) job_type: JobType,
    pub(crate) background: bool,
    pub(crate) owned: bool,
    /// Jobs by state, this turn's changes included.
    pub(crate) counts: [i64; State::COUNT],
    /// What this turn has changed and not written yet.
    change: [i64; State::COUNT],
    pub(crate) next_delayed: NextDelayed,
    /// Whether this process has a handler for the kind.
    pub(crate) served: bool,
    pub(crate) paused: bool,
}

impl Lane {
    pub(crate) fn key(&self) -> LaneKey<'_> {
        LaneKey {
            queue: &self.queue,
            kind: &self.kind,
            priority: self.priority,
            job_type: self.job_type,
            background: self.background,
            owned: self.owned,
        }
    }

    pub(crate) fn count(&self, state: State) -> i64 {
        self.counts[state as usize]
    }

    /// Whether workers run its jobs: those that are tracked are run elsewhere, and batches by others of their jobs.
    fn is_run(&self) -> bool {
        !self.kind.is_empty() && &*self.kind != BATCH_KIND
    }

    fn changed(&self) -> bool {
        self.change != [0; State::COUNT]
    }

    /// Notes that a delayed job with this `run_at` has come.
    pub(crate) fn note_delayed(&mut self, run_at: i64) {
        if let NextDelayed::NotBefore(next) = &mut self.next_delayed {
            *next = (*next).min(run_at);
        }
    }
}

/// What the workers want.
pub(crate) trait Demand {
    /// How many more jobs of this sort are wanted now.
    fn room(&self, lane: &Lane) -> usize;
    /// Whether a job of this sort waits for nothing but a free worker, so that none is claimed ahead that comes after it.
    fn bars(&self, lane: &Lane) -> bool;
    /// Whether jobs of this sort have workers of their own, so that they keep no others waiting and wait for no others.
    fn is_apart(&self, lane: &Lane) -> bool;
    /// Takes note of a job of this sort that was claimed.
    fn took(&mut self, lane: &Lane, weight: u32);
    /// Whether the capacity has room for a job of this rank and weight. If not, nothing that shares it and comes after the
    /// job is wanted until it has.
    fn bears(&mut self, lane: &Lane, rank: usize, weight: u32) -> bool;
    /// A job that has waited this long counts one priority higher.
    fn ageing(&self) -> Option<Duration>;
    /// What goes first among jobs of one priority.
    fn preference(&self) -> Preference;
    /// How long a job of this sort is expected to run.
    fn takes(&self, lane: &Lane) -> Duration;
    /// Whether users take turns.
    fn is_fair_by_user(&self) -> bool;
}

/// Every lane of the file, as the writer knows them. They are few: queues times kinds times four.
#[derive(Default)]
pub(crate) struct Lanes {
    /// By id.
    lanes: Vec<Lane>,
    by_name: HashMap<u64, Vec<usize>>,
    hasher: RandomState,
    kinds: HashSet<String>,
    paused: HashSet<String>,
    /// Queues that are bounded in all processes together.
    bounded: HashMap<Box<str>, Bounded>,
}

impl Lanes {
    /// Sets the kinds that this process has handlers for.
    pub(crate) fn serve(&mut self, kinds: HashSet<String>) {
        self.kinds = kinds;
        for lane in &mut self.lanes {
            lane.served = self.kinds.contains(&*lane.kind);
        }
    }

    /// Reads all lanes and pauses anew: somebody else has written.
    pub(crate) fn reload(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let mut statement = conn.prepare_cached("SELECT name FROM jobmill_queue WHERE paused_at IS NOT NULL")?;
        self.paused = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut statement = conn.prepare_cached(
            "SELECT id, created, pending, running, completed, failed, cancelled, expired, delayed, held,
                 queue, kind, priority, job_type, background, owned
             FROM jobmill_lane ORDER BY id",
        )?;
        let mut rows = statement.query([])?;
        self.bounded = Bounded::read_all(conn)?.into_iter().collect();
        let mut seen = 0;
        let mut same = true;
        while let Some(row) = rows.next()? {
            seen += 1;
            let id: i64 = row.get(0)?;
            let key = LaneKey {
                queue: row.get_ref(10)?.as_str()?,
                kind: row.get_ref(11)?.as_str()?,
                priority: row.get(12)?,
                job_type: row.get(13)?,
                background: row.get(14)?,
                owned: row.get(15)?,
            };
            let at = self.at(id).unwrap_or_else(|| self.add(id, key));
            let lane = &mut self.lanes[at];
            same &= lane.key() == key;
            for (column, count) in lane.counts.iter_mut().enumerate() {
                *count = row.get(column + 1)?;
            }
            lane.change = [0; State::COUNT];
            lane.next_delayed = NextDelayed::Unknown;
            lane.paused = self.paused.contains(&*lane.queue);
            if let Some(queue) = self.bounded.get_mut(&*lane.queue) {
                queue.running += if lane.is_run() { lane.count(State::Running) } else { 0 };
            }
        }
        if seen != self.lanes.len() || !same {
            // Lanes that a failed turn had made are gone again, and others may have got their numbers since.
            drop(rows);
            self.forget();
            return self.reload(conn);
        }
        Ok(())
    }

    /// Forgets all lanes until they are read anew. Those that a failed turn had made are gone, and their ids may come
    /// to name lanes of somebody else's.
    pub(crate) fn forget(&mut self) {
        self.lanes.clear();
        self.by_name.clear();
    }

    /// Lanes from which this process may claim.
    pub(crate) fn open(&self, now: Timestamp) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().filter(move |lane| lane.served && !lane.paused && self.room_in_queue(lane, now) > 0)
    }

    /// Whether jobs of a lane may run here: it is one of those.
    pub(crate) fn is_open(&self, lane: i64, now: Timestamp) -> bool {
        self.get(lane).is_some_and(|lane| lane.served && !lane.paused && self.room_in_queue(lane, now) > 0)
    }

    /// How many more jobs of a lane the bounds of its queue let run.
    pub(crate) fn room_in_queue(&self, lane: &Lane, now: Timestamp) -> usize {
        if self.bounded.is_empty() {
            return usize::MAX;
        }
        self.bounded.get(&*lane.queue).map_or(usize::MAX, |queue| queue.room(lane.priority.rank(), now))
    }

    /// The bounds of a lane's queue, if it has any.
    pub(crate) fn bounded(&mut self, lane: i64) -> Option<&mut Bounded> {
        if self.bounded.is_empty() {
            return None;
        }
        let at = self.at(lane)?;
        self.bounded.get_mut(&*self.lanes[at].queue)
    }

    /// The bounds of a queue, if it has any.
    pub(crate) fn bounds_of(&self, queue: &str) -> Option<&Bounded> {
        self.bounded.get(queue)
    }

    /// When time alone opens a queue to a job that waits there.
    pub(crate) fn next_opening(&self, now: Timestamp) -> Option<i64> {
        if self.bounded.is_empty() {
            return None;
        }
        let waits =
            |lane: &&Lane| lane.served && !lane.paused && lane.count(State::Pending) + lane.count(State::Delayed) > 0;
        let opens_at = |lane: &Lane| self.bounded.get(&*lane.queue)?.opens_at(lane.priority.rank(), now);
        self.lanes.iter().filter(waits).filter_map(opens_at).min()
    }

    /// Has the time go on for every bounded queue from a moment at which the clock was set back, when it showed `seen` at
    /// least.
    pub(crate) fn set_back(&mut self, seen: Timestamp, now: Timestamp) {
        self.bounded.values_mut().for_each(|queue| queue.set_back(seen, now));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.lanes.iter_mut()
    }

    fn at(&self, id: i64) -> Option<usize> {
        self.lanes.binary_search_by_key(&id, |lane| lane.id).ok()
    }

    /// The lane with this id. Rows and lanes are written together, so each lane that a row names is known.
    pub(crate) fn get(&self, id: i64) -> Option<&Lane> {
        self.at(id).map(|at| &self.lanes[at])
    }

    pub(crate) fn get_mut(&mut self, id: i64) -> Option<&mut Lane> {
        self.at(id).map(|at| &mut self.lanes[at])
    }

    /// The lane of this name, made if there is none.
    pub(crate) fn find_or_create(&mut self, conn: &Connection, key: LaneKey<'_>) -> rusqlite::Result<i64> {
        if let Some(candidates) = self.by_name.get(&self.hasher.hash_one(key)) {
            for &at in candidates {
                let lane = &self.lanes[at];
                if lane.key() == key {
                    return Ok(lane.id);
                }
            }
        }
        let id = find_or_create(conn, key)?;
        let at = self.add(id, key);
        self.lanes[at].paused = self.paused.contains(key.queue);
        Ok(id)
    }

    fn add(&mut self, id: i64, key: LaneKey<'_>) -> usize {
        let at = self.lanes.partition_point(|lane| lane.id < id);
        if at < self.lanes.len() {
            // An id that was given up by a failed turn comes to name a lane after all: those behind it move.
            for places in self.by_name.values_mut() {
                places.iter_mut().filter(|place| **place >= at).for_each(|place| *place += 1);
            }
        }
        self.by_name.entry(self.hasher.hash_one(key)).or_default().push(at);
        let lane = Lane {
            id,
            queue: key.queue.into(),
            kind: key.kind.into(),
            priority: key.priority,
            job_type: key.job_type,
            background: key.background,
            owned: key.owned,
            counts: [0; State::COUNT],
            change: [0; State::COUNT],
            next_delayed: NextDelayed::NotBefore(i64::MAX),
            served: self.kinds.contains(key.kind),
            paused: false,
        };
        self.lanes.insert(at, lane);
        at
    }

    /// Counts a job that came into a state, and out of another if it is not new.
    pub(crate) fn count(&mut self, lane: i64, from: Option<State>, to: Option<State>) {
        if !self.bounded.is_empty()
            && self.get(lane).is_some_and(Lane::is_run)
            && let Some(queue) = self.bounded(lane)
        {
            queue.running += i64::from(to == Some(State::Running)) - i64::from(from == Some(State::Running));
        }
        if let Some(lane) = self.get_mut(lane) {
            if let Some(from) = from {
                lane.counts[from as usize] -= 1;
                lane.change[from as usize] -= 1;
            }
            if let Some(to) = to {
                lane.counts[to as usize] += 1;
                lane.change[to as usize] += 1;
            }
        }
    }

    pub(crate) fn pause(&mut self, queue: &str, paused: bool) {
        if paused {
            self.paused.insert(queue.to_owned());
        } else {
            self.paused.remove(queue);
        }
        for lane in self.lanes.iter_mut().filter(|lane| &*lane.queue == queue) {
            lane.paused = paused;
        }
    }

    /// Writes what has been counted since the last time.
    pub(crate) fn flush(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        for lane in self.lanes.iter_mut().filter(|lane| lane.changed()) {
            add(conn, lane.id, &lane.change)?;
            lane.change = [0; State::COUNT];
        }
        self.bounded.iter_mut().try_for_each(|(name, queue)| queue.flush(conn, name))
    }
}

/// The lane of this name, made if there is none.
pub(crate) fn find_or_create(conn: &Connection, key: LaneKey<'_>) -> rusqlite::Result<i64> {
    let names = named_params! {
        ":queue": key.queue, ":kind": key.kind, ":priority": key.priority, ":job_type": key.job_type,
        ":background": key.background, ":owned": key.owned,
    };
    let found = conn
        .prepare_cached(
            "SELECT id FROM jobmill_lane WHERE queue = :queue AND kind = :kind AND priority = :priority
                 AND job_type = :job_type AND background = :background AND owned = :owned",
        )?
        .query_row(names, |row| row.get(0))
        .optional()?;
    if let Some(id) = found {
        return Ok(id);
    }
    conn.prepare_cached(
        "INSERT INTO jobmill_lane (queue, kind, priority, job_type, background, owned)
         VALUES (:queue, :kind, :priority, :job_type, :background, :owned) RETURNING id",
    )?
    .query_row(names, |row| row.get(0))
}

/// The statement that adds to the counts of a row. Its parameters go by number, for it is run in every turn.
macro_rules! add_counts {
    ($table:literal) => {
        concat!(
            "UPDATE ",
            $table,
            " SET created = created + ?1, pending = pending + ?2, running = running + ?3, completed = completed + ?4,
                 failed = failed + ?5, cancelled = cancelled + ?6, expired = expired + ?7, delayed = delayed + ?8,
                 held = held + ?9
             WHERE id = ?10"
        )
    };
}

/// Adds to the counts of a lane.
pub(crate) fn add(conn: &Connection, lane: i64, change: &[i64; State::COUNT]) -> rusqlite::Result<()> {
    add_to(conn, add_counts!("jobmill_lane"), lane, change)
}

/// Adds to the counts of a share.
pub(crate) fn add_to_share(conn: &Connection, share: i64, change: &[i64; State::COUNT]) -> rusqlite::Result<()> {
    add_to(conn, add_counts!("jobmill_share"), share, change)
}

/// Adds to the counts of a flow.
pub(crate) fn add_to_flow(conn: &Connection, flow: i64, change: &[i64; State::COUNT]) -> rusqlite::Result<()> {
    add_to(conn, add_counts!("jobmill_flow"), flow, change)
}

fn add_to(conn: &Connection, sql: &'static str, id: i64, change: &[i64; State::COUNT]) -> rusqlite::Result<()> {
    let [created, pending, running, completed, failed, cancelled, expired, delayed, held] = change;
    conn.prepare_cached(sql)?
        .execute(params![created, pending, running, completed, failed, cancelled, expired, delayed, held, id])
        .map(drop)
}
