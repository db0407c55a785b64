//! What gates count of a job's life, and holding jobs at closed ones, within a turn.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use rusqlite::params;

use crate::model::id::JobId;
use crate::model::limit::LimitUse;
use crate::store::Turn;
use crate::store::gate::{Passage, Taken, parse, uses_of};
use crate::store::line::{self, Joined};
use crate::store::place::Place;
use crate::store::release::Held;
use crate::store::row::State;
use crate::store::step::Step;

/// Who waits at gates in which lanes, as one claim finds it.
#[derive(Default)]
pub(crate) struct Queues {
    /// The gates that have held a job of a lane in this claim: nobody who comes after that one is asked about again.
    shut: HashSet<(i64, i64)>,
    /// The first job of a lane that a gate holds.
    firsts: HashMap<(i64, i64), Option<Held>>,
}

impl Turn<'_> {
    /// The gates of a new job with what it takes of each, made if there are none.
    pub(crate) fn gates_of(&mut self, uses: &[LimitUse]) -> rusqlite::Result<Vec<Taken>> {
        uses.iter().map(|used| Ok((self.book.gates.find_or_create(self.conn, used)?, used.cost))).collect()
    }

    /// Lets a new job stand in the line of its gates, if it must wait there. Nothing of its row is written.
    pub(crate) fn line_up(&mut self, id: JobId, uses: &[Taken], lane: i64) -> rusqlite::Result<Option<i64>> {
        let Some(gate) = self.gate_ahead(uses, lane)? else { return Ok(None) };
        let joined = line::join(self.conn, uses, lane, gate, id.raw())?;
        if joined.leads {
            // Nobody knows yet when the gate lets it go.
            self.book.gates.loosen(joined.gate);
        }
        Ok(Some(joined.line))
    }

    /// The same for a job that is not new, before which nobody may stand whatever the line's row says.
    pub(crate) fn line_up_again(&mut self, id: JobId, uses: &[Taken], lane: i64) -> rusqlite::Result<Option<i64>> {
        let Some(gate) = self.gate_ahead(uses, lane)? else { return Ok(None) };
        Ok(Some(self.join_line(uses, lane, gate, id.raw())?.line))
    }

    fn join_line(&mut self, uses: &[Taken], lane: i64, gate: i64, place: i64) -> rusqlite::Result<Joined> {
        let joined = line::join(self.conn, uses, lane, gate, place)?;
        self.book.gates.loosen(joined.gate);
        Ok(joined)
    }

    /// Whether others wait at one of these gates, in whichever lane.
    pub(crate) fn others_wait(&mut self, uses: &[Taken]) -> rusqlite::Result<bool> {
        for (id, _) in uses {
            if self.book.gates.get(self.conn, *id)?.holds_any() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The gate at which a new job of this lane must wait: behind those that it holds, and those that it has let go already.
    fn gate_ahead(&mut self, uses: &[Taken], lane: i64) -> rusqlite::Result<Option<i64>> {
        for (id, _) in uses {
            if self.book.gates.get(self.conn, *id)?.holds(lane) {
                return Ok(Some(*id));
            }
        }
        self.closed_gate(uses, lane)
    }

    /// The gate at which others of the lane wait that come before this place in the order. Whoever does not pass them cannot
    /// keep them waiting for ever; and the first of all waits for nobody, so that not all wait for each other.
    pub(crate) fn gate_behind(&mut self, uses: &[Taken], lane: i64, place: i64) -> rusqlite::Result<Option<i64>> {
        for (id, _) in uses {
            if self.book.gates.get(self.conn, *id)?.holds(lane)
                && self.first_held(*id, lane)?.is_some_and(|first| first.at < place)
            {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    /// The gate at which others wait that go before this place in the order: others of the lane, or others for which it
    /// keeps its tokens.
    pub(crate) fn gate_ahead_of(&mut self, uses: &[Taken], lane: i64, place: i64) -> rusqlite::Result<Option<i64>> {
        if let Some(gate) = self.gate_behind(uses, lane, place)? {
            return Ok(Some(gate));
        }
        self.keeping_gate(uses, lane, place)
    }

    /// The gate that keeps its tokens for others that go before this place in the order.
    pub(crate) fn keeping_gate(&mut self, uses: &[Taken], lane: i64, place: i64) -> rusqlite::Result<Option<i64>> {
        for (id, _) in uses {
            if self.kept_until(*id, lane, place)?.is_some() {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    /// The gate that has no room for one more job of this lane, behind those that it has let go already. What it holds does
    /// not count.
    pub(crate) fn closed_gate(&mut self, uses: &[Taken], lane: i64) -> rusqlite::Result<Option<i64>> {
        for (id, cost) in uses {
            let now = self.now;
            let ready = self.book.gates.get(self.conn, *id)?.ready(lane);
            if self.book.gates.passage(self.conn, *id, *cost, ready, now)? != Passage::Open {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    /// The gate at which a job must wait that is about to be claimed: one that has no room for it, or at which others of the
    /// lane stand that come before it and gather tokens, so that nobody passes those by being cheaper, or need no more
    /// than it does.
    pub(crate) fn gate_at_claim(
        &mut self,
        uses: &[Taken],
        lane: i64,
        place: i64,
        queues: &mut Queues,
    ) -> rusqlite::Result<Option<i64>> {
        if let Some((gate, _)) = uses.iter().find(|(gate, _)| queues.shut.contains(&(*gate, lane))) {
            return Ok(Some(*gate));
        }
        for (id, cost) in uses {
            if self.book.gates.passage(self.conn, *id, *cost, 0, self.now)? != Passage::Open {
                queues.shut.insert((*id, lane));
                return Ok(Some(*id));
            }
        }
        for (id, _) in uses {
            let gate = self.book.gates.get(self.conn, *id)?;
            let (limit, holds) = (gate.limit, gate.holds(lane));
            if !holds {
                continue;
            }
            let first = match queues.firsts.entry((*id, lane)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(self.first_held(*id, lane)?),
            };
            let Some(first) = first.as_ref().filter(|first| first.at < place) else { continue };
            // One that was let go with it, and has been met later. It goes behind the other at whichever gate that
            // stands, so it is not let go before it again.
            if first.goes_by_none_but(uses) {
                return Ok(Some(*id));
            }
            // One that has the tokens waits for another gate, or for those that were let go before it, of which this is one.
            if self.book.gates.has_rate(limit)
                && self.book.gates.passage(self.conn, *id, first.cost_at(*id), 0, self.now)? != Passage::Open
            {
                return Ok(Some(*id));
            }
        }
        self.keeping_gate(uses, lane, place)
    }

    /// Holds a waiting job at a gate.
    pub(crate) fn hold(
        &mut self,
        id: JobId,
        place: Place,
        from: State,
        gate: i64,
        queues: &mut Queues,
    ) -> rusqlite::Result<()> {
        let (uses, at): (Vec<Taken>, i64) = self
            .conn
            .prepare_cached("SELECT limits, coalesce(run_at << 10, id) FROM jobmill_job WHERE id = ?1")?
            .query_row([id], |row| Ok((parse(row.get_ref(0)?.as_str_or_null()?), row.get(1)?)))?;
        let joined = self.join_line(&uses, place.lane, gate, at)?;
        self.conn
            .prepare_cached("UPDATE jobmill_job SET state = 8, line = ?2 WHERE id = ?1 AND state IN (1, 7)")?
            .execute(params![id, joined.line])?;
        // It may stand before the one that was the first.
        queues.firsts.remove(&(joined.gate, place.lane));
        self.shift(place, from, State::Held, &uses, joined.gate)
    }

    /// Counts a job that a gate holds or lets go. To everybody outside it is pending before and after.
    pub(crate) fn shift(
        &mut self,
        place: Place,
        from: State,
        to: State,
        uses: &[Taken],
        holder: i64,
    ) -> rusqlite::Result<()> {
        self.book.count(place, Some(from), Some(to));
        self.pass_gates(uses, place.lane, (Some(from), Some(to)), Some(holder))
    }

    /// Counts a step at the gates of its job.
    pub(crate) fn step_through_gates(&mut self, step: &Step) -> rusqlite::Result<()> {
        if step.from == step.to {
            // It was moved, or a field of it was changed.
            return Ok(());
        }
        let (uses, line) = uses_of(self.conn, step.job)?;
        let holder = match line {
            Some(line) if step.from == Some(State::Held) => {
                let gate = line::leave(self.conn, line, step.place.lane, 1)?;
                // The next one may cost less.
                gate.into_iter().for_each(|gate| self.book.gates.loosen(gate));
                gate
            }
            Some(line) if step.to == Some(State::Held) => line::gate_of(self.conn, line, step.place.lane)?,
            _ => None,
        };
        self.pass_gates(&uses, step.place.lane, (step.from, step.to), holder)
    }

    /// Counts a job that came out of one state into another at its gates, of which `holder` holds or held it.
    fn pass_gates(
        &mut self,
        uses: &[Taken],
        lane: i64,
        (from, to): (Option<State>, Option<State>),
        holder: Option<i64>,
    ) -> rusqlite::Result<()> {
        let is = |state, wanted| i64::from(state == Some(wanted));
        let ready = is(to, State::Pending) - is(from, State::Pending);
        let held = is(to, State::Held) - is(from, State::Held);
        for (id, cost) in uses {
            let gates = &mut self.book.gates;
            let limit = gates.get(self.conn, *id)?.limit;
            let rate = gates.bounds(limit).rate;
            let gate = gates.change(self.conn, *id)?;
            gate.jobs += i64::from(from.is_none()) - i64::from(to.is_none());
            gate.running += is(to, State::Running) - is(from, State::Running);
            gate.count(lane, ready, if holder == Some(*id) { held } else { 0 });
            if let Some(rate) = rate
                && to == Some(State::Running)
                && *cost > 0
            {
                gate.bucket.take(&rate, i64::from(*cost), self.now);
            }
            let waiting = gate.lanes.iter().any(|in_lane| in_lane.held > 0);
            let left = matches!(from, Some(State::Running | State::Pending)) && to != Some(State::Running);
            // One that takes nothing has kept room too, for those behind it are reckoned to be as dear as the next.
            if waiting && (left || rate.is_some() && to == Some(State::Running)) {
                gates.loosen(*id);
            }
        }
        Ok(())
    }

    /// Gives back what a job took of rates when it was claimed, for it never began: of those of its limits, and of that
    /// of its queue, which is `cost`.
    pub(crate) fn give_tokens_back(&mut self, job: JobId, place: Place, cost: u32) -> rusqlite::Result<()> {
        if let Some(queue) = self.book.lanes.bounded(place.lane) {
            queue.take(-i64::from(cost), self.now);
        }
        if !place.limited {
            return Ok(());
        }
        for (id, cost) in uses_of(self.conn, job)?.0 {
            let limit = self.book.gates.get(self.conn, id)?.limit;
            if let Some(rate) = self.book.gates.bounds(limit).rate {
                self.book.gates.change(self.conn, id)?.bucket.take(&rate, -i64::from(cost), self.now);
                self.book.gates.loosen(id);
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
            Some(line) if state == State::Held => line::leave(self.conn, line, from, 1)?,
            _ => None,
        };
        let joined = match left {
            Some(gate) => Some(self.join_again(job, &uses, to, gate)?),
            None => None,
        };
        for (id, _) in uses {
            let ready = i64::from(state == State::Pending);
            let gate = self.book.gates.change(self.conn, id)?;
            gate.count(from, -ready, -i64::from(left == Some(id)));
            gate.count(to, ready, i64::from(joined == Some(id)));
            self.book.gates.loosen(id);
        }
        Ok(())
    }

    /// Lets a held job stand in the line of its gates in another lane, and gives the gate at which that stands.
    fn join_again(&mut self, job: JobId, uses: &[Taken], lane: i64, gate: i64) -> rusqlite::Result<i64> {
        let at = self
            .conn
            .prepare_cached("SELECT coalesce(run_at << 10, id) FROM jobmill_job WHERE id = ?1")?
            .query_row([job], |row| row.get(0))?;
        let joined = self.join_line(uses, lane, gate, at)?;
        self.conn
            .prepare_cached("UPDATE jobmill_job SET line = ?2 WHERE id = ?1")?
            .execute(params![job, joined.line])?;
        Ok(joined.gate)
    }

    /// Lets go of the gates of a job whose row is about to be deleted, of which nobody is told.
    pub(crate) fn leave_gates(&mut self, job: JobId) -> rusqlite::Result<()> {
        let (uses, _) = uses_of(self.conn, job)?;
        for (id, _) in uses {
            self.book.gates.change(self.conn, id)?.jobs -= 1;
        }
        Ok(())
    }
}
