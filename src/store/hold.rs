//! Holding jobs at closed gates and letting them go, within a turn.

use rusqlite::{OptionalExtension, named_params, params};

use crate::model::event::Cause;
use crate::model::history::{Action, Caller};
use crate::model::id::JobId;
use crate::model::limit::{Limit, LimitUse, blocked};
use crate::model::time::Timestamp;
use crate::store::audit::Line;
use crate::store::gate::{Passage, Taken, columns, nanos, parse, text, uses_of};
use crate::store::line::First;
use crate::store::place::{Place, place_columns};
use crate::store::row::State;
use crate::store::step::Step;
use crate::store::{Turn, line, queue};

/// How many gates one turn opens because their time has come.
const WAKE_MAX: i64 = 100;
/// How many held jobs one turn moves.
const MOVES_MAX: usize = 500;

/// Reads the first job of a line in a lane.
pub(crate) const PLAN_HELD: &str = concat!(
    "SELECT id, limits, coalesce(run_at, id >> 10), ",
    place_columns!(),
    " FROM jobmill_job INDEXED BY jobmill_job_held
     WHERE line = ?1 AND lane = ?2 AND state = 8 ORDER BY coalesce(run_at, id >> 10), id LIMIT 1"
);

/// Removes gates that no job names and of which nothing need be remembered.
const PLAN_IDLE: &str = "DELETE FROM jobmill_gate WHERE id IN (
         SELECT id FROM jobmill_gate INDEXED BY jobmill_gate_idle
         WHERE jobs = 0 AND running = 0 AND full_at <= :now_ns AND blocked_until <= :now LIMIT :limit)";

/// The first job of a line.
struct Held {
    job: JobId,
    uses: Vec<Taken>,
    /// Its place in the order.
    at: i64,
    place: Place,
}

impl Turn<'_> {
    /// The gates of a new job with what it takes of each, made if there are none.
    pub(crate) fn gates_of(&mut self, uses: &[LimitUse]) -> rusqlite::Result<Vec<Taken>> {
        uses.iter().map(|used| Ok((self.book.gates.find_or_create(self.conn, used)?, used.cost))).collect()
    }

    /// The gate at which a new job of this lane must wait: behind those that it holds, and those that it has let go already.
    pub(crate) fn gate_ahead(&mut self, uses: &[Taken], lane: i64) -> rusqlite::Result<Option<i64>> {
        for (id, _) in uses {
            if self.book.gates.get(self.conn, *id)?.in_lane(lane).held > 0 {
                return Ok(Some(*id));
            }
        }
        self.closed_gate(uses, lane)
    }

    /// The gate that has no room for one more job of this lane, behind those that it has let go already. What it holds does
    /// not count: of two gates that hold jobs of each other's, neither would let one go.
    fn closed_gate(&mut self, uses: &[Taken], lane: i64) -> rusqlite::Result<Option<i64>> {
        for (id, cost) in uses {
            let now = self.now;
            let ready = self.book.gates.get(self.conn, *id)?.in_lane(lane).ready;
            if self.book.gates.passage(self.conn, *id, *cost, ready, now)? != Passage::Open {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    /// The gate that does not let a job through that is about to be claimed.
    pub(crate) fn shut_gate(&mut self, uses: &[Taken]) -> rusqlite::Result<Option<i64>> {
        for (id, cost) in uses {
            if self.book.gates.passage(self.conn, *id, *cost, 0, self.now)? != Passage::Open {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    /// Holds a waiting job at a gate.
    pub(crate) fn hold(&mut self, id: JobId, place: Place, from: State, gate: i64) -> rusqlite::Result<()> {
        let (uses, at): (Vec<Taken>, i64) = self
            .conn
            .prepare_cached("SELECT limits, coalesce(run_at, id >> 10) FROM jobmill_job WHERE id = ?1")?
            .query_row([id], |row| Ok((parse(row.get_ref(0)?.as_str_or_null()?), row.get(1)?)))?;
        let (line, _) = line::join(self.conn, &uses, place.lane, gate, at)?;
        self.conn
            .prepare_cached("UPDATE jobmill_job SET state = 8, line = ?2 WHERE id = ?1 AND state IN (1, 7)")?
            .execute(params![id, line])?;
        self.shift(id, place, from, State::Held)
    }

    /// Counts a job that a gate holds or lets go. To everybody outside it is pending before and after.
    fn shift(&mut self, id: JobId, place: Place, from: State, to: State) -> rusqlite::Result<()> {
        self.book.count(place, Some(from), Some(to));
        self.pass_gates(id, place.lane, Some(from), Some(to), Cause::Operator)
    }

    /// Counts a step at the gates of its job.
    pub(crate) fn step_through_gates(&mut self, step: &Step) -> rusqlite::Result<()> {
        self.pass_gates(step.job, step.place.lane, step.from, step.to, step.cause)
    }

    fn pass_gates(
        &mut self,
        job: JobId,
        lane: i64,
        from: Option<State>,
        to: Option<State>,
        cause: Cause,
    ) -> rusqlite::Result<()> {
        if from == to {
            // It was moved, or a field of it was changed.
            return Ok(());
        }
        let (uses, line) = uses_of(self.conn, job)?;
        let (now, conn) = (self.now, self.conn);
        let holder = match line {
            Some(line) if from == Some(State::Held) => line::leave(conn, line, lane)?,
            Some(line) if to == Some(State::Held) => line::gate_of(conn, line, lane)?,
            _ => None,
        };
        for (id, cost) in uses {
            let gates = &mut self.book.gates;
            let limit = gates.get(conn, id)?.limit;
            let rate = gates.bounds(limit).rate;
            let gate = gates.get(conn, id)?;
            let held = |state| i64::from(state == Some(State::Held) && holder == Some(id));
            let is = |state, wanted| i64::from(state == Some(wanted));
            gate.changed = true;
            gate.jobs += i64::from(from.is_none()) - i64::from(to.is_none());
            gate.running += is(to, State::Running) - is(from, State::Running);
            let (ready, held) = (is(to, State::Pending) - is(from, State::Pending), held(to) - held(from));
            if ready != 0 || held != 0 {
                gate.change(lane, ready, held);
            }
            let taken = match (from, to) {
                (_, Some(State::Running)) => i64::from(cost),
                // What never began took nothing.
                (Some(State::Running), _) if cause == Cause::Returned => -i64::from(cost),
                _ => 0,
            };
            if let Some(rate) = rate
                && taken != 0
            {
                gate.full_at = rate.take(gate.full_at, taken, nanos(now));
            }
            let waiting = gate.lanes.iter().any(|in_lane| in_lane.held > 0);
            let left = matches!(from, Some(State::Running | State::Pending)) && to != Some(State::Running);
            if waiting && (left || taken != 0 && rate.is_some() || to == Some(State::Held)) {
                gates.loosen(id);
            }
        }
        Ok(())
    }

    /// Moves a waiting job from one lane's books to another's.
    pub(crate) fn change_lane_at_gates(
        &mut self,
        job: JobId,
        from: i64,
        to: i64,
        state: State,
    ) -> rusqlite::Result<()> {
        let (uses, line) = uses_of(self.conn, job)?;
        let left = match line {
            Some(line) if state == State::Held => line::leave(self.conn, line, from)?,
            _ => None,
        };
        let joined = match left {
            Some(gate) => Some(self.join_again(job, &uses, to, gate)?),
            None => None,
        };
        for (id, _) in uses {
            let ready = i64::from(state == State::Pending);
            let gate = self.book.gates.get(self.conn, id)?;
            gate.change(from, -ready, -i64::from(left == Some(id)));
            gate.change(to, ready, i64::from(joined == Some(id)));
            gate.changed = true;
            self.book.gates.loosen(id);
        }
        Ok(())
    }

    /// Lets a held job stand in the line of its gates in another lane, and gives the gate at which that stands.
    fn join_again(&mut self, job: JobId, uses: &[Taken], lane: i64, gate: i64) -> rusqlite::Result<i64> {
        let at = self
            .conn
            .prepare_cached("SELECT coalesce(run_at, id >> 10) FROM jobmill_job WHERE id = ?1")?
            .query_row([job], |row| row.get(0))?;
        let (line, gate) = line::join(self.conn, uses, lane, gate, at)?;
        self.conn.prepare_cached("UPDATE jobmill_job SET line = ?2 WHERE id = ?1")?.execute(params![job, line])?;
        Ok(gate)
    }

    /// Lets go of the gates of a job whose row is about to be deleted, of which nobody is told.
    pub(crate) fn leave_gates(&mut self, job: JobId) -> rusqlite::Result<()> {
        let (uses, _) = uses_of(self.conn, job)?;
        for (id, _) in uses {
            let gate = self.book.gates.get(self.conn, id)?;
            gate.jobs -= 1;
            gate.changed = true;
        }
        Ok(())
    }

    /// Lets go what gates hold and have room for: those whose time has come, and those that this turn has made room in.
    pub(crate) fn open_gates(&mut self) -> rusqlite::Result<()> {
        if !self.book.gates.is_due(self.now) {
            return Ok(());
        }
        self.book.gates.loosen_due(self.conn, self.now, WAKE_MAX)?;
        let mut moves = 0;
        while moves < MOVES_MAX
            && let Some(id) = self.book.gates.take_loose()
        {
            moves += self.open(id, MOVES_MAX - moves)?.max(1);
        }
        self.book.gates.note_next_wake(self.conn)
    }

    /// Lets go what one gate holds and has room for, moving at most `limit` jobs and lines, and tells how many it moved.
    fn open(&mut self, id: i64, limit: usize) -> rusqlite::Result<usize> {
        let mut moves = 0;
        let mut wake_at: Option<i64> = None;
        let gate = self.book.gates.get(self.conn, id)?;
        let lanes: Vec<i64> =
            gate.lanes.iter().filter(|in_lane| in_lane.held > 0).map(|in_lane| in_lane.lane).collect();
        'lanes: for lane in lanes {
            while let Some(First { line, head, next_head }) = line::first(self.conn, id, lane)? {
                if moves >= limit {
                    self.book.gates.loosen(id);
                    break 'lanes;
                }
                let Some(Held { job, uses, at, place }) = self.first_in(line, lane)? else { break };
                // Where a line begins is an entry of an index, and is written only if that gives another line its turn.
                if at > head && next_head.is_some_and(|next| next < at) {
                    line::set_head(self.conn, line, lane, at)?;
                    moves += 1;
                    continue;
                }
                let cost = uses.iter().find(|(gate, _)| *gate == id).map_or(0, |(_, cost)| *cost);
                let gate = self.book.gates.get(self.conn, id)?;
                let (ready, blocked) = (gate.in_lane(lane).ready, blocked(gate.blocked_until, self.now).is_some());
                match self.book.gates.passage(self.conn, id, cost, ready, self.now)? {
                    Passage::Open => {}
                    // The end of one that runs, or the claim of one that is ready, brings us back here.
                    Passage::Full => continue 'lanes,
                    Passage::Until(_) if ready > 0 && !blocked => continue 'lanes,
                    Passage::Until(at) => {
                        wake_at = Some(wake_at.map_or(at, |earlier| earlier.min(at)));
                        continue 'lanes;
                    }
                }
                let others: Vec<Taken> = uses.into_iter().filter(|(gate, _)| *gate != id).collect();
                match self.closed_gate(&others, lane)? {
                    Some(to) => self.move_line(line, lane, id, to)?,
                    None => self.let_go(job, place, line)?,
                }
                moves += 1;
            }
        }
        self.book.gates.wake(id, wake_at);
        Ok(moves)
    }

    /// The first job of a line, with its place in the order.
    fn first_in(&self, line: i64, lane: i64) -> rusqlite::Result<Option<Held>> {
        self.conn
            .prepare_cached(PLAN_HELD)?
            .query_row([line, lane], |row| {
                let uses = parse(row.get_ref(1)?.as_str_or_null()?);
                Ok(Held { job: row.get(0)?, uses, at: row.get(2)?, place: Place::read(row, 3)? })
            })
            .optional()
    }

    /// Moves a line to another gate, which does not let it through.
    fn move_line(&mut self, line: i64, lane: i64, from: i64, to: i64) -> rusqlite::Result<()> {
        let held = line::move_to(self.conn, line, lane, to)?;
        for (gate, held) in [(from, -held), (to, held)] {
            let gate = self.book.gates.get(self.conn, gate)?;
            gate.change(lane, 0, held);
            gate.changed = true;
        }
        // It may wait there for time alone.
        self.book.gates.loosen(to);
        Ok(())
    }

    /// Lets a held job go among the others of its lane. It keeps its `run_at`, and stands by its id again: whoever waited
    /// for longest goes first.
    fn let_go(&mut self, job: JobId, place: Place, line: i64) -> rusqlite::Result<()> {
        self.shift(job, place, State::Held, State::Pending)?;
        self.conn
            .prepare_cached("UPDATE jobmill_job SET state = 1, line = NULL WHERE id = ?1 AND line = ?2 AND state = 8")?
            .execute(params![job, line])
            .map(drop)
    }

    /// Corrects what a running job takes of a limit, and tells whether it counts against one of that name.
    pub(crate) fn spent(&mut self, job: JobId, limit: &str, tokens: u32) -> rusqlite::Result<bool> {
        let Some(limit) = self.book.gates.limit(limit) else { return Ok(false) };
        let (mut uses, _) = uses_of(self.conn, job)?;
        let mut found = false;
        for (id, cost) in &mut uses {
            let gate = self.book.gates.get(self.conn, *id)?;
            if gate.limit != limit {
                continue;
            }
            found = true;
            let more = i64::from(tokens) - i64::from(std::mem::replace(cost, tokens));
            gate.changed = true;
            if let Some(rate) = self.book.gates.bounds(limit).rate {
                let gate = self.book.gates.get(self.conn, *id)?;
                gate.full_at = rate.take(gate.full_at, more, nanos(self.now));
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

    /// Shuts every gate with a rate that a job goes by until a moment, and its queue if that has a rate.
    pub(crate) fn throttle(&mut self, job: JobId, until: Timestamp) -> rusqlite::Result<()> {
        for (id, _) in uses_of(self.conn, job)?.0 {
            let limit = self.book.gates.get(self.conn, id)?.limit;
            if self.book.gates.bounds(limit).rate.is_none() {
                continue;
            }
            let gate = self.book.gates.get(self.conn, id)?;
            gate.blocked_until = blocked(gate.blocked_until, self.now).unwrap_or(0).max(until.as_micros());
            gate.changed = true;
            self.book.gates.loosen(id);
        }
        let lane: Option<i64> = self
            .conn
            .prepare_cached("SELECT lane FROM jobmill_job WHERE id = ?1")?
            .query_row([job], |row| row.get(0))
            .optional()?;
        if let Some(queue) = lane.and_then(|lane| self.book.lanes.bounded(lane)) {
            queue.throttle(until, self.now);
        }
        Ok(())
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
    /// Nothing is remembered of a rate that is lifted, nor of a service that asked to be left alone.
    fn take_over_tokens(&mut self, limit: &Limit) -> rusqlite::Result<()> {
        let Some(id) = self.book.gates.limit(&limit.name) else { return Ok(()) };
        let before = self.book.gates.bounds(id).rate;
        if before == limit.rate {
            return Ok(());
        }
        let spent: Vec<(i64, i64)> = self
            .conn
            .prepare_cached(
                "SELECT id, full_at FROM jobmill_gate WHERE limit_id = ?1 AND (full_at > ?2 OR blocked_until > 0)",
            )?
            .query_map(params![id, nanos(self.now)], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (gate, full_at) in spent {
            let full_at =
                limit.rate.zip(before).map(|(rate, before)| rate.takes_over(&before, full_at, nanos(self.now)));
            self.conn
                .prepare_cached(
                    "UPDATE jobmill_gate SET full_at = coalesce(?2, 0),
                         blocked_until = CASE WHEN ?2 IS NULL THEN 0 ELSE blocked_until END WHERE id = ?1",
                )?
                .execute(params![gate, full_at])?;
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
