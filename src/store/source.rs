//! Where ready jobs come from, and in which order they should start.

use std::collections::VecDeque;
use std::time::Duration;

use rusqlite::{Connection, named_params};

use crate::model::id::JobId;
use crate::model::job::Priority;
use crate::model::preference::Preference;
use crate::model::time::Timestamp;
use crate::store::fair::{Candidate, Rotation, Turns};
use crate::store::row::State;

/// How many jobs whose time has come are compared by their deadlines, for no index has them in that order.
const COMPARED: usize = 256;

/// Reads the next jobs of a lane that may run since they were created. Here and below the index is named, for SQLite
/// would choose others once the application has had it gather statistics.
pub(crate) const PLAN_PENDING: &str = "SELECT id FROM jobmill_job INDEXED BY jobmill_job_place
     WHERE lane = :lane AND state = 1 AND id > :id ORDER BY id LIMIT :chunk";

/// Reads the next jobs of a lane whose own time has come.
pub(crate) const PLAN_DELAYED: &str = "SELECT id, run_at FROM jobmill_job INDEXED BY jobmill_job_delayed
     WHERE lane = :lane AND state = 7 AND run_at <= :now AND (run_at, id) > (:run_at, :id)
     ORDER BY run_at, id LIMIT :chunk";

/// The same with their deadlines, which are in their rows.
pub(crate) const PLAN_DELAYED_DUE: &str =
    "SELECT id, run_at, expires_at FROM jobmill_job INDEXED BY jobmill_job_delayed
     WHERE lane = :lane AND state = 7 AND run_at <= :now AND (run_at, id) > (:run_at, :id)
     ORDER BY run_at, id LIMIT :chunk";

/// Reads the next jobs of a lane that have a deadline.
pub(crate) const PLAN_DEADLINE: &str = "SELECT id, expires_at FROM jobmill_job INDEXED BY jobmill_job_deadline
     WHERE lane = :lane AND state = 1 AND expires_at IS NOT NULL AND (expires_at, id) > (:due, :id)
     ORDER BY expires_at, id LIMIT :chunk";

/// What stays the same while jobs are chosen.
pub(crate) struct Scene<'c> {
    pub(crate) conn: &'c Connection,
    pub(crate) now: Timestamp,
    pub(crate) ageing: Option<Duration>,
    pub(crate) preference: Preference,
    /// Whether users take turns.
    pub(crate) fair: bool,
}

impl Scene<'_> {
    fn rank(&self, priority: Priority, run_at: i64) -> usize {
        aged_rank(priority, run_at, self.now, self.ageing)
    }
}

/// In which order a stream reads the jobs of a lane, and which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Those that may run since they were created, by id.
    Created,
    /// Those with a `run_at` of their own, by that.
    RunAt,
    /// Those of the first sort that have an `expires_at`, by that.
    Deadline,
}

/// A ready job.
struct Ready {
    id: JobId,
    /// Since when it could run, in microseconds.
    run_at: i64,
    /// Its place in the order of the preference.
    place: i64,
}

/// The jobs of one lane that are ready, in their order.
pub(crate) struct Stream {
    lane: i64,
    order: Order,
    /// How long each is expected to run.
    takes: Duration,
    heads: VecDeque<Ready>,
    /// The position behind which the next heads are read.
    read_to: (i64, JobId),
    exhausted: bool,
    /// Whether only jobs count whose waiting has bettered their rank: the others come by their users' turns.
    aged_only: bool,
}

impl Stream {
    pub(crate) fn new(lane: i64, order: Order, takes: Duration, aged_only: bool) -> Self {
        let (heads, read_to) = (VecDeque::new(), (0, JobId::from_raw(0)));
        Self { lane, order, takes, heads, read_to, exhausted: false, aged_only }
    }

    /// The next job, read from the file if need be.
    fn head(&mut self, scene: &Scene<'_>, priority: Priority, chunk: usize) -> rusqlite::Result<Option<&Ready>> {
        if self.heads.is_empty() && !self.exhausted {
            match (self.order, scene.preference.by_deadline()) {
                (Order::Created, _) => self.read_created(scene, chunk)?,
                (Order::RunAt, false) => self.read_delayed(scene, chunk)?,
                (Order::RunAt, true) => self.read_delayed_due(scene, priority)?,
                (Order::Deadline, _) => self.read_deadlines(scene, chunk)?,
            }
        }
        Ok(self.heads.front())
    }

    fn read_created(&mut self, scene: &Scene<'_>, chunk: usize) -> rusqlite::Result<()> {
        let (_, after) = self.read_to;
        let mut statement = scene.conn.prepare_cached(PLAN_PENDING)?;
        let mut rows = statement.query(named_params! { ":lane": self.lane, ":id": after, ":chunk": chunk as i64 })?;
        while let Some(row) = rows.next()? {
            let id: JobId = row.get(0)?;
            let run_at = id.created_at().as_micros();
            self.add(id, run_at, run_at, scene.preference.place(run_at, self.takes));
        }
        self.exhausted = self.heads.len() < chunk;
        Ok(())
    }

    fn read_delayed(&mut self, scene: &Scene<'_>, chunk: usize) -> rusqlite::Result<()> {
        let (run_at, id) = self.read_to;
        let mut statement = scene.conn.prepare_cached(PLAN_DELAYED)?;
        let mut rows = statement.query(named_params! {
            ":lane": self.lane, ":run_at": run_at, ":id": id, ":now": scene.now, ":chunk": chunk as i64,
        })?;
        while let Some(row) = rows.next()? {
            let run_at = row.get(1)?;
            self.add(row.get(0)?, run_at, run_at, scene.preference.place(run_at, self.takes));
        }
        self.exhausted = self.heads.len() < chunk;
        Ok(())
    }

    /// Reads more than are wanted, and puts them in the order of their deadlines.
    fn read_delayed_due(&mut self, scene: &Scene<'_>, priority: Priority) -> rusqlite::Result<()> {
        let (run_at, id) = self.read_to;
        let mut statement = scene.conn.prepare_cached(PLAN_DELAYED_DUE)?;
        let mut rows = statement.query(named_params! {
            ":lane": self.lane, ":run_at": run_at, ":id": id, ":now": scene.now, ":chunk": COMPARED as i64,
        })?;
        while let Some(row) = rows.next()? {
            let (run_at, due): (i64, Option<i64>) = (row.get(1)?, row.get(2)?);
            let by_patience = scene.preference.place(run_at, self.takes);
            let by_deadline = due.map_or(i64::MAX, |due| scene.preference.place_due(due, self.takes));
            self.add(row.get(0)?, run_at, run_at, by_patience.min(by_deadline));
        }
        self.exhausted = self.heads.len() < COMPARED;
        self.heads.make_contiguous().sort_by_key(|ready| (scene.rank(priority, ready.run_at), ready.place, ready.id));
        Ok(())
    }

    fn read_deadlines(&mut self, scene: &Scene<'_>, chunk: usize) -> rusqlite::Result<()> {
        let (due, id) = self.read_to;
        let mut statement = scene.conn.prepare_cached(PLAN_DEADLINE)?;
        let mut rows =
            statement.query(named_params! { ":lane": self.lane, ":due": due, ":id": id, ":chunk": chunk as i64 })?;
        while let Some(row) = rows.next()? {
            let (id, due): (JobId, i64) = (row.get(0)?, row.get(1)?);
            self.add(id, due, id.created_at().as_micros(), scene.preference.place_due(due, self.takes));
        }
        self.exhausted = self.heads.len() < chunk;
        Ok(())
    }

    /// Adds a job that was read at this position.
    fn add(&mut self, id: JobId, position: i64, run_at: i64, place: i64) {
        self.read_to = (position, id);
        self.heads.push_back(Ready { id, run_at, place });
    }
}

/// Where ready jobs of a lane come from.
pub(crate) enum Source {
    /// In their order.
    Order(Stream),
    /// By their users' turns. Each is expected to run for so long.
    Turns(Rotation, Duration),
}

/// The next job of a source.
pub(crate) struct Head {
    pub(crate) id: JobId,
    pub(crate) state: State,
    pub(crate) rank: usize,
    /// When its user was served last.
    served: u64,
    place: i64,
}

impl Head {
    /// What heads of several sources are compared by: the least starts first.
    pub(crate) fn key(&self) -> (usize, u64, i64, JobId) {
        (self.rank, self.served, self.place, self.id)
    }
}

/// Whose turn a job takes.
pub(crate) enum Taker {
    /// Users take no turns here.
    Nobody,
    /// All whose jobs have no user.
    Unnamed,
    User(Candidate),
}

impl Taker {
    /// Takes the turn.
    pub(crate) fn serve(self, lane: i64, turns: &mut Turns) {
        match self {
            Self::Nobody => {}
            Self::Unnamed => turns.served(""),
            Self::User(candidate) => turns.serve(lane, &candidate),
        }
    }
}

impl Source {
    pub(crate) fn lane(&self) -> i64 {
        match self {
            Self::Order(stream) => stream.lane,
            Self::Turns(rotation, _) => rotation.lane,
        }
    }

    /// The next job. None if there is none that counts.
    pub(crate) fn head(
        &mut self,
        scene: &Scene<'_>,
        priority: Priority,
        turns: &Turns,
        chunk: usize,
    ) -> rusqlite::Result<Option<Head>> {
        match self {
            Self::Order(stream) => {
                let (order, aged_only) = (stream.order, stream.aged_only);
                let Some(ready) = stream.head(scene, priority, chunk)? else { return Ok(None) };
                let rank = scene.rank(priority, ready.run_at);
                if aged_only && rank == priority.rank() {
                    return Ok(None);
                }
                // Among the aged the oldest goes first, whoever's it is.
                let served = if scene.fair && !aged_only { turns.of("") } else { 0 };
                let state = if order == Order::RunAt { State::Delayed } else { State::Pending };
                Ok(Some(Head { id: ready.id, state, rank, served, place: ready.place }))
            }
            Self::Turns(rotation, takes) => Ok(rotation.head(scene.conn, scene.now, turns)?.map(|next| Head {
                id: next.id,
                state: next.state,
                rank: scene.rank(priority, next.run_at),
                served: turns.of(&next.user),
                place: scene.preference.place(next.run_at, *takes),
            })),
        }
    }

    /// Takes the next job away, and tells whose turn it takes if it starts.
    pub(crate) fn pop(&mut self, fair: bool) -> Taker {
        match self {
            Self::Order(stream) => {
                stream.heads.pop_front();
                if fair && !stream.aged_only { Taker::Unnamed } else { Taker::Nobody }
            }
            Self::Turns(rotation, _) => rotation.pop().map_or(Taker::Nobody, Taker::User),
        }
    }
}

/// The rank of a job that has been ready since `run_at`: one better for each `ageing` that it has waited.
pub(crate) fn aged_rank(priority: Priority, run_at: i64, now: Timestamp, ageing: Option<Duration>) -> usize {
    let Some(ageing) = ageing else {
        return priority.rank();
    };
    let waited = now.since(Timestamp::from_micros(run_at));
    let steps = waited.as_micros() / ageing.as_micros().max(1);
    priority.rank().saturating_sub(usize::try_from(steps).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_counts_one_priority_higher_for_each_bound_that_it_has_waited() {
        let minute = Some(Duration::from_secs(60));
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let rank = |priority, waited: i64| aged_rank(priority, at(1000).as_micros(), at(1000 + waited), minute);
        assert_eq!([0, 59, 60, 119, 120, 180, 9999].map(|s| rank(Priority::Low, s)), [3, 3, 2, 2, 1, 0, 0]);
        assert_eq!(rank(Priority::Critical, 600), 0);
        assert_eq!(rank(Priority::High, -5), 1);
        assert_eq!(aged_rank(Priority::Low, 0, at(1_000_000), None), 3);
    }
}
