//! Letting go what gates hold and have room for, within a turn.

use rusqlite::params;

use crate::model::id::JobId;
use crate::model::limit::blocked;
use crate::store::Turn;
use crate::store::gate::{Passage, Taken, parse};
use crate::store::line::{self, First};
use crate::store::place::{Place, place_columns};
use crate::store::row::State;

/// How many gates one turn opens because their time has come.
const WAKE_MAX: i64 = 100;
/// How many held jobs one turn moves.
const MOVES_MAX: usize = 500;
/// The most held jobs that are read at a time.
const CHUNK_MAX: usize = 64;

/// Reads the first jobs of a line in a lane.
pub(crate) const PLAN_HELD: &str = concat!(
    "SELECT id, limits, coalesce(run_at << 10, id), ",
    place_columns!(),
    " FROM jobmill_job INDEXED BY jobmill_job_held
     WHERE line = ?1 AND lane = ?2 AND state = 8 ORDER BY coalesce(run_at << 10, id), id LIMIT ?3"
);

/// A held job.
pub(crate) struct Held {
    job: JobId,
    uses: Vec<Taken>,
    /// Its place in the order.
    pub(crate) at: i64,
    place: Place,
}

impl Held {
    /// Whether each of its gates is among these.
    pub(crate) fn goes_by_none_but(&self, uses: &[Taken]) -> bool {
        self.uses.iter().all(|(gate, _)| uses.iter().any(|(other, _)| other == gate))
    }

    /// What it takes of a gate.
    pub(crate) fn cost_at(&self, gate: i64) -> u32 {
        self.uses.iter().find(|(id, _)| *id == gate).map_or(0, |(_, cost)| *cost)
    }
}

/// Why no more jobs of a line are let go for now.
enum Stop {
    /// All that were read have gone.
    Spent,
    /// Another line has its turn: the first job has this place in the order.
    Overtaken(i64),
    /// The gate does not let the first job through.
    Shut(Passage),
    /// Another gate does not, or lets others go before it.
    ShutAt(i64),
}

impl Turn<'_> {
    /// Lets go what gates hold and have room for: those whose time has come, and those that this turn has made room in.
    /// Tells whether anything was moved.
    pub(crate) fn open_gates(&mut self) -> rusqlite::Result<bool> {
        if !self.book.gates.is_due(self.now) {
            return Ok(false);
        }
        self.book.gates.loosen_due(self.conn, self.now, WAKE_MAX)?;
        let (mut moves, mut any) = (0, false);
        while moves < MOVES_MAX
            && let Some(id) = self.book.gates.take_loose()
        {
            let moved = self.open(id, MOVES_MAX - moves)?;
            any |= moved > 0;
            moves += moved.max(1);
        }
        self.book.gates.note_next_wake(self.conn)?;
        Ok(any)
    }

    /// Lets go what one gate holds and has room for, moving at most `limit` jobs and lines, and tells how many it moved.
    fn open(&mut self, id: i64, limit: usize) -> rusqlite::Result<usize> {
        let mut moves = 0;
        let mut wake_at: Option<i64> = None;
        let gate = self.book.gates.get(self.conn, id)?;
        let mut lanes: Vec<i64> =
            gate.lanes.iter().filter(|in_lane| in_lane.held > 0).map(|in_lane| in_lane.lane).collect();
        // If there is no time for all, the more urgent ones have been let go.
        lanes.sort_by_key(|lane| self.book.lanes.get(*lane).map(|lane| lane.priority.rank()));
        for lane in lanes {
            let (moved, wakes) = self.open_lane(id, lane, limit - moves)?;
            moves += moved;
            wake_at = [wake_at, wakes].into_iter().flatten().min();
            if moves >= limit {
                self.book.gates.loosen(id);
                break;
            }
        }
        self.book.gates.wake(self.conn, id, wake_at)?;
        Ok(moves)
    }

    /// The same for one lane. Tells, too, when time alone lets the next one go, if it is time that it waits for.
    fn open_lane(&mut self, id: i64, lane: i64, limit: usize) -> rusqlite::Result<(usize, Option<i64>)> {
        let mut moves = 0;
        // A gate has room for one more or for many. Who was read in vain must be read again.
        let mut chunk = 1;
        while moves < limit
            && let Some(first) = line::first(self.conn, id, lane)?
        {
            let heads = self.heads(first.line, lane, chunk.min(limit - moves))?;
            if heads.is_empty() {
                break;
            }
            let (gone, stop) = self.let_go_in_turn(id, lane, &first, heads)?;
            if gone > 0 {
                line::leave(self.conn, first.line, lane, gone as i64)?;
            }
            moves += gone;
            match stop {
                Stop::Spent => chunk = (2 * chunk).min(CHUNK_MAX),
                // Where a line begins is an entry of an index, and is written only now.
                Stop::Overtaken(at) => {
                    line::set_head(self.conn, first.line, lane, at)?;
                    moves += 1;
                }
                Stop::ShutAt(to) => {
                    self.move_line(first.line, lane, id, to)?;
                    moves += 1;
                }
                Stop::Shut(passage) => return Ok((moves, self.opens_at(id, lane, passage)?)),
            }
        }
        Ok((moves, None))
    }

    /// Lets jobs go that stand first in a line at a gate, as long as they may. They are not taken out of the line yet.
    fn let_go_in_turn(
        &mut self,
        id: i64,
        lane: i64,
        first: &First,
        heads: Vec<Held>,
    ) -> rusqlite::Result<(usize, Stop)> {
        let mut gone = 0;
        for held in heads {
            let (cost, Held { job, uses, at, place }) = (held.cost_at(id), held);
            if first.is_overtaken_at(at) {
                return Ok((gone, Stop::Overtaken(at)));
            }
            let ready = self.book.gates.get(self.conn, id)?.ready(lane);
            let passage = self.book.gates.passage(self.conn, id, cost, ready, self.now)?;
            if passage != Passage::Open {
                return Ok((gone, Stop::Shut(passage)));
            }
            if let Some(kept_until) = self.kept_until(id, lane, at)? {
                return Ok((gone, Stop::Shut(Passage::Until(kept_until))));
            }
            let others: Vec<Taken> = uses.iter().filter(|(gate, _)| *gate != id).copied().collect();
            let behind = match self.closed_gate(&others, lane)? {
                None => self.gate_ahead_of(&others, lane, at)?,
                shut => shut,
            };
            if let Some(to) = behind {
                return Ok((gone, Stop::ShutAt(to)));
            }
            self.let_go(job, place, &uses, id)?;
            gone += 1;
        }
        Ok((gone, Stop::Spent))
    }

    /// Lets a held job go among the others of its lane. It keeps its `run_at`, and stands by its id again: whoever waited
    /// for longest goes first.
    fn let_go(&mut self, job: JobId, place: Place, uses: &[Taken], holder: i64) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_job SET state = 1, line = NULL WHERE id = ?1 AND state = 8")?
            .execute([job])?;
        self.shift(place, State::Held, State::Pending, uses, holder)
    }

    /// When time alone opens a gate that did not let a job of this lane through.
    fn opens_at(&mut self, id: i64, lane: i64, passage: Passage) -> rusqlite::Result<Option<i64>> {
        let gate = self.book.gates.get(self.conn, id)?;
        let blocked = blocked(gate.bucket.blocked_until, self.now).is_some();
        Ok(match passage {
            Passage::Until(at) if blocked || gate.ready(lane) == 0 => Some(at),
            // The end of one that runs, or the claim of one that is ready, brings us back here.
            _ => None,
        })
    }

    /// The first job of a lane that a gate holds.
    pub(crate) fn first_held(&mut self, gate: i64, lane: i64) -> rusqlite::Result<Option<Held>> {
        while let Some(first) = line::first(self.conn, gate, lane)? {
            let Some(held) = self.heads(first.line, lane, 1)?.pop() else { break };
            if !first.is_overtaken_at(held.at) {
                return Ok(Some(held));
            }
            line::set_head(self.conn, first.line, lane, held.at)?;
        }
        Ok(None)
    }

    /// The first jobs of a line.
    fn heads(&self, line: i64, lane: i64, limit: usize) -> rusqlite::Result<Vec<Held>> {
        self.conn
            .prepare_cached(PLAN_HELD)?
            .query_map(params![line, lane, limit as i64], |row| {
                let uses = parse(row.get_ref(1)?.as_str_or_null()?);
                Ok(Held { job: row.get(0)?, uses, at: row.get(2)?, place: Place::read(row, 3)? })
            })?
            .collect()
    }

    /// Moves a line to another gate, at which it must wait.
    fn move_line(&mut self, line: i64, lane: i64, from: i64, to: i64) -> rusqlite::Result<()> {
        let held = line::move_to(self.conn, line, lane, to)?;
        for (gate, held) in [(from, -held), (to, held)] {
            self.book.gates.change(self.conn, gate)?.count(lane, 0, held);
        }
        // It may wait there for time alone.
        self.book.gates.loosen(to);
        Ok(())
    }
}
