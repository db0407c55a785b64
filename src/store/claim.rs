//! Choosing the next jobs and marking them as ours.

use rusqlite::{CachedStatement, Connection, OptionalExtension, named_params, params};

use crate::model::event::Cause;
use crate::model::history::Action;
use crate::model::id::JobId;
use crate::model::job::{Job, Status};
use crate::model::new_job::NewJob;
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::audit::Line;
use crate::store::detail;
use crate::store::fair::Rotation;
use crate::store::gate;
use crate::store::hold::Queues;
use crate::store::lane::{Demand, NextDelayed};
use crate::store::place::{Place, place_columns};
use crate::store::row::{self, Claim, JOB_COLUMNS, State, job_columns};
use crate::store::source::{Head, Order, Scene, Source, Stream};
use crate::store::step::Step;

/// How many heads of a lane are read at a time when several lanes compete.
const HEADS: usize = 16;
/// The most jobs that one turn meets and does not claim.
const PASSED_MAX: usize = 1000;
/// The most jobs that one turn claims.
pub(crate) const CLAIM_MAX: usize = 512;

/// What came of a job that was to be claimed.
enum Met {
    Claimed(Box<Claim>),
    /// It has expired, its workflow is being cancelled, or a limit does not let it through.
    Passed,
    /// The capacity has no room for it.
    TooHeavy,
}

/// Reads when the first delayed job of a lane is due.
pub(crate) const PLAN_NEXT_DELAYED: &str = "SELECT run_at FROM jobmill_job INDEXED BY jobmill_job_delayed
     WHERE lane = :lane AND state = 7 ORDER BY run_at LIMIT 1";

/// Reads one job that is to be claimed.
pub(crate) const PLAN_READ: &str = concat!(
    "SELECT ",
    job_columns!(),
    ", claim, backoff, ",
    place_columns!(),
    ", limits, weight, cost
     FROM jobmill_job WHERE id = ?1"
);

/// Marks one job as ours.
pub(crate) const PLAN_CLAIM: &str = "UPDATE jobmill_job
     SET state = 2, attempt = attempt + 1, claim = claim + 1, owner = ?2, started_at = ?3
     WHERE id = ?1 AND state IN (1, 7)";

/// Reads the jobs that time has overtaken.
pub(crate) const PLAN_EXPIRED: &str = concat!(
    "SELECT id, state, attempt, ",
    place_columns!(),
    " FROM jobmill_job INDEXED BY jobmill_job_expiry
     WHERE expires_at <= :now AND expires_at IS NOT NULL AND state IN (0, 1, 7, 8) ORDER BY expires_at LIMIT :limit"
);

/// The statements that are run once for each claimed job.
struct Statements<'c> {
    read: CachedStatement<'c>,
    mark: CachedStatement<'c>,
}

impl Turn<'_> {
    /// Claims the best jobs that the workers want, in the order in which they should start. Tells whether it has met as
    /// many as one turn may that cannot start, so that another one must go on.
    pub(crate) fn claim(&mut self) -> rusqlite::Result<bool> {
        let (Some(owner), Some(demand)) = (self.book.owner, self.demand.take()) else {
            return Ok(false);
        };
        let scene = Scene {
            conn: self.conn,
            now: self.now,
            ageing: demand.ageing(),
            preference: demand.preference(),
            fair: demand.is_fair_by_user(),
        };
        if scene.fair {
            // Whose turn it is, the rows of the shares tell.
            self.book.shares.flush(self.conn)?;
        }
        let mut sources = self.ready_sources(demand, &scene)?;
        if sources.is_empty() {
            return Ok(false);
        }
        let mut statements =
            Statements { read: self.conn.prepare_cached(PLAN_READ)?, mark: self.conn.prepare_cached(PLAN_CLAIM)? };
        let mut queues = Queues::default();
        let mut passed = 0;
        while self.out.claims.len() < CLAIM_MAX && !sources.is_empty() {
            let chunk_max = if sources.len() == 1 { CLAIM_MAX - self.out.claims.len() } else { HEADS };
            let mut best: Option<(Head, usize)> = None;
            let mut at = 0;
            while at < sources.len() {
                let source = &mut sources[at];
                let head = match self.book.lanes.get(source.lane()) {
                    Some(lane) => match (demand.room(lane), self.book.lanes.room_in_queue(lane, self.now)) {
                        (_, 0) => None,
                        (0, _) if !demand.bars(lane) => None,
                        // What is read and not wanted would be read again in the next turn.
                        (room, in_queue) => {
                            let chunk = room.min(in_queue).clamp(1, chunk_max);
                            source.head(&scene, lane.priority, &self.book.turns, chunk)?
                        }
                    },
                    None => None,
                };
                let Some(head) = head else {
                    sources.swap_remove(at);
                    continue;
                };
                if best.as_ref().is_none_or(|(best, _)| head.key() < best.key()) {
                    best = Some((head, at));
                }
                at += 1;
            }
            let Some((head, at)) = best else { break };
            let lane = sources[at].lane();
            let is_apart = |lane: i64| self.book.lanes.get(lane).is_some_and(|lane| demand.is_apart(lane));
            if self.book.lanes.get(lane).is_none_or(|lane| demand.room(lane) == 0) {
                // The best job waits for a worker, and nothing that comes after it is claimed ahead, but for those that
                // do not share its workers.
                sources.retain(|source| is_apart(source.lane()));
                continue;
            }
            let taker = sources[at].pop(scene.fair && !is_apart(lane));
            match self.claim_one(&mut statements, demand, owner, lane, &head, &mut queues)? {
                Met::Claimed(claim) => {
                    if let Some(lane) = self.book.lanes.get(lane) {
                        demand.took(lane, claim.weight);
                    }
                    // Whose job was not started keeps the turn.
                    taker.serve(lane, &mut self.book.turns);
                    self.out.claims.push(*claim);
                }
                Met::Passed => passed += 1,
                // Whatever is lighter would keep it waiting for ever.
                Met::TooHeavy => {
                    let is_apart = |lane: i64| self.book.lanes.get(lane).is_some_and(|lane| demand.is_apart(lane));
                    sources.retain(|source| is_apart(source.lane()));
                }
            }
            if passed == PASSED_MAX {
                break;
            }
        }
        self.note_next_delayed()?;
        Ok(passed == PASSED_MAX)
    }

    /// Whether a job that is about to be written to this lane may be claimed in the same breath: somebody wants it, and
    /// it overtakes nobody.
    pub(crate) fn may_claim_at_once(&mut self, lane: i64, new: &NewJob) -> Option<i64> {
        if self.out.claims.len() >= CLAIM_MAX {
            return None;
        }
        let owner = self.book.owner?;
        let lane_id = lane;
        let lane = self.book.lanes.get(lane).filter(|lane| lane.served && !lane.paused)?;
        if self.book.lanes.room_in_queue(lane, self.now) == 0 {
            return None;
        }
        let demand = self.demand.as_deref_mut()?;
        let overtakes = if demand.is_apart(lane) {
            self.book.has_ready(self.now, |lane| demand.is_apart(lane))
        } else {
            !self.nothing_waits
        };
        let rank = lane.priority.rank();
        if overtakes || demand.room(lane) == 0 || !demand.bears(lane, rank, new.weight) {
            return None;
        }
        // It closes the queue for what comes after it if the tokens are not there, so it must be the next one by now.
        if let Some(queue) = self.book.lanes.bounded(lane_id) {
            if !queue.admits(rank, new.cost, self.now) {
                return None;
            }
            queue.take(new.cost.into(), self.now);
        }
        if let Some(lane) = self.book.lanes.get(lane_id) {
            demand.took(lane, new.weight);
        }
        Some(owner)
    }

    /// The sources that may hold a job for us. What is known to be empty or in the future costs no statement.
    fn ready_sources(&mut self, demand: &dyn Demand, scene: &Scene<'_>) -> rusqlite::Result<Vec<Source>> {
        let mut sources = Vec::new();
        let mut any_room = false;
        for lane in self.book.lanes.iter_mut().filter(|lane| lane.served && !lane.paused) {
            if lane.count(State::Delayed) > 0 && lane.next_delayed == NextDelayed::Unknown {
                lane.next_delayed = next_delayed(self.conn, lane.id)?;
            }
        }
        for lane in self.book.lanes.open(self.now) {
            let room = demand.room(lane) > 0;
            if !room && !demand.bars(lane) {
                continue;
            }
            let pending = lane.count(State::Pending) > 0;
            let delayed =
                lane.count(State::Delayed) > 0 && lane.next_delayed <= NextDelayed::NotBefore(self.now.as_micros());
            any_room |= room && (pending || delayed);
            let takes = demand.takes(lane);
            let by_turns = scene.fair && lane.owned;
            if by_turns && (pending || delayed) {
                sources.push(Source::Turns(Rotation::new(lane.id, delayed), takes));
            }
            if by_turns && scene.ageing.is_none() {
                continue;
            }
            let by_deadline = pending && !by_turns && scene.preference.by_deadline();
            for (ready, order) in [(pending, Order::Created), (delayed, Order::RunAt), (by_deadline, Order::Deadline)] {
                if ready {
                    sources.push(Source::Order(Stream::new(lane.id, order, takes, by_turns)));
                }
            }
        }
        if !any_room {
            sources.clear();
        }
        Ok(sources)
    }

    /// Learns anew when the lanes that were due come due again.
    fn note_next_delayed(&mut self) -> rusqlite::Result<()> {
        for lane in self.book.lanes.iter_mut().filter(|lane| lane.served && !lane.paused) {
            let due = lane.next_delayed <= NextDelayed::NotBefore(self.now.as_micros());
            if lane.count(State::Delayed) == 0 {
                lane.next_delayed = NextDelayed::NotBefore(i64::MAX);
            } else if due {
                lane.next_delayed = next_delayed(self.conn, lane.id)?;
            }
        }
        Ok(())
    }

    /// Claims a job, if it may run.
    fn claim_one(
        &mut self,
        statements: &mut Statements<'_>,
        demand: &mut dyn Demand,
        owner: i64,
        lane: i64,
        head: &Head,
        queues: &mut Queues,
    ) -> rusqlite::Result<Met> {
        let Head { id, rank, state: from, .. } = *head;
        let Some(known) = self.book.lanes.get(lane) else { return Ok(Met::Passed) };
        // A row read and then changed costs half of one that its change gives back: RETURNING makes a table for it.
        let (mut claim, aside, uses, state) = statements.read.query_row(params![id], |row| {
            let (job, aside) = row::job(row, known.key())?;
            let place = Place::read(row, JOB_COLUMNS + 2)?;
            let fence = row.get(JOB_COLUMNS)?;
            let backoff = row::json(row, JOB_COLUMNS + 1)?;
            let uses = gate::parse(row.get_ref(JOB_COLUMNS + 6)?.as_str_or_null()?);
            let weight = row.get::<_, Option<u32>>(JOB_COLUMNS + 7)?.unwrap_or(1);
            let cost = row.get::<_, Option<u32>>(JOB_COLUMNS + 8)?.unwrap_or(1);
            let state: State = row.get(row::STATE)?;
            Ok((Claim { job, place, rank, fence, backoff, weight, cost }, aside, uses, state))
        })?;
        if state != from {
            // It came by another source in this very turn, and was claimed, held or found to have expired.
            return Ok(Met::Passed);
        }
        if claim.job.expires_at.is_some_and(|expires_at| expires_at <= self.now) {
            self.expire_one(id, claim.place, from, claim.job.attempt)?;
            return Ok(Met::Passed);
        }
        let canceller = claim.place.flow.and_then(|flow| self.book.flows.cancelled_by(flow)).cloned();
        if let Some(caller) = canceller {
            // The cascade has not come to it. None of the refusals can come: it is there and waits.
            let _ = self.cancel(id, &caller)?;
            return Ok(Met::Passed);
        }
        let own_time = claim.job.run_at != id.created_at();
        let at = if own_time { JobId::first_at(claim.job.run_at) } else { id }.raw();
        let mut holder = self.gate_at_claim(&uses, lane, at, queues)?;
        if holder.is_none() && from == State::Delayed {
            // One whose own time has come passes none that a gate holds.
            holder = self.gate_behind(&uses, lane, at)?;
        }
        if let Some(gate) = holder {
            self.hold(id, claim.place, from, gate, queues)?;
            return Ok(Met::Passed);
        }
        if self.book.lanes.get(lane).is_some_and(|lane| !demand.bears(lane, rank, claim.weight)) {
            return Ok(Met::TooHeavy);
        }
        if let Some(queue) = self.book.lanes.bounded(lane) {
            if !queue.admits(rank, claim.cost, self.now) {
                return Ok(Met::Passed);
            }
            queue.take(claim.cost.into(), self.now);
        }
        statements.mark.execute(params![id, owner, self.now])?;
        claim.job.status = Status::Running;
        claim.job.attempt += 1;
        claim.job.started_at = Some(self.now);
        claim.fence += 1;
        aside.fetch(self.conn, &mut claim.job)?;
        if claim.fence > 1 {
            self.forget_last_attempt(&mut claim.job)?;
        }
        self.claimed(id, claim.place, from, claim.job.attempt, claim.job.run_at)?;
        Ok(Met::Claimed(Box::new(claim)))
    }

    /// Clears what the last attempt told of itself, which is not true of the next one.
    fn forget_last_attempt(&self, job: &mut Job) -> rusqlite::Result<()> {
        if job.stop_reason.take().is_some() {
            self.conn
                .prepare_cached("UPDATE jobmill_job SET stop_reason = NULL WHERE id = :id")?
                .execute(named_params! { ":id": job.id })?;
        }
        let times = [job.ttft.take(), job.total_duration.take()];
        if times.iter().any(Option::is_some) { detail::forget_times(self.conn, job.id) } else { Ok(()) }
    }

    /// Counts a claim.
    pub(crate) fn claimed(
        &mut self,
        id: JobId,
        place: Place,
        from: State,
        attempt: u32,
        ready_at: Timestamp,
    ) -> rusqlite::Result<()> {
        self.step(Step {
            job: id,
            place,
            from: Some(from),
            to: Some(State::Running),
            cause: Cause::Claimed,
            attempt,
            waited: Some(self.now.since(ready_at)),
            ran: None,
        })
    }

    /// Ends jobs whose `expires_at` has passed, at most `limit`, and tells whether there may be more.
    pub(crate) fn expire(&mut self, limit: usize) -> rusqlite::Result<bool> {
        if self.book.next_expiry.is_some_and(|next| next > self.now.as_micros()) {
            return Ok(false);
        }
        let mut statement = self.conn.prepare_cached(PLAN_EXPIRED)?;
        let due: Vec<(JobId, State, u32, Place)> = statement
            .query_map(named_params! { ":now": self.now, ":limit": limit as i64 }, |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, Place::read(row, 3)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        for (id, state, attempt, place) in &due {
            self.expire_one(*id, *place, *state, *attempt)?;
        }
        let more = due.len() == limit;
        let next: Option<i64> = self
            .conn
            .prepare_cached(
                "SELECT expires_at FROM jobmill_job INDEXED BY jobmill_job_expiry
                 WHERE expires_at IS NOT NULL AND state IN (0, 1, 7, 8) ORDER BY expires_at LIMIT 1",
            )?
            .query_row([], |row| row.get(0))
            .optional()?;
        self.book.next_expiry = Some(next.unwrap_or(i64::MAX));
        Ok(more)
    }

    fn expire_one(&mut self, id: JobId, place: Place, from: State, attempt: u32) -> rusqlite::Result<()> {
        let expired = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = 6, completed_at = :now WHERE id = :id AND state IN (0, 1, 7, 8)",
            )?
            .execute(named_params! { ":id": id, ":now": self.now })?;
        if expired == 0 {
            return Ok(());
        }
        self.audit(&Line::of(id, Action::Expired).share(place.share).states(from, State::Expired))?;
        self.last_step(Step {
            job: id,
            place,
            from: Some(from),
            to: Some(State::Expired),
            cause: Cause::Expired,
            attempt,
            waited: None,
            ran: None,
        })
    }
}

fn next_delayed(conn: &Connection, lane: i64) -> rusqlite::Result<NextDelayed> {
    let next = conn
        .prepare_cached(PLAN_NEXT_DELAYED)?
        .query_row(named_params! { ":lane": lane }, |row| row.get(0))
        .optional()?;
    Ok(NextDelayed::NotBefore(next.unwrap_or(i64::MAX)))
}
