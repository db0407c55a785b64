//! What is done to jobs and queues from outside: cancel, retry, delete, move, pause, resume.

use rusqlite::{OptionalExtension, named_params};
use serde::Serialize;

use crate::model::attempt::AttemptOutcome;
use crate::model::event::Cause;
use crate::model::history::{Action, Caller};
use crate::model::id::JobId;
use crate::model::job::{Priority, Status};
use crate::model::rules::SYSTEM_QUEUE;
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::audit::Line;
use crate::store::finish::{PastAttempt, record_attempt};
use crate::store::place::{LaneKey, Place, place_columns};
use crate::store::row::{RunAt, State};
use crate::store::step::Step;
use crate::store::{callback, detail, edge, unique};

/// What a request to cancel came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cancelled {
    /// The job is cancelled.
    Now,
    /// The job runs, and its handler has been asked to stop.
    Requested,
    /// The job was cancelled before.
    Already,
}

/// What a request to delete came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Deleted {
    /// The job is gone.
    Now,
    /// The job runs. Its handler has been asked to stop, and the job goes as soon as it has.
    Requested,
}

/// Why a job was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    NotFound,
    /// Its status forbids it.
    Status(Status),
    /// Another job holds its unique key. None: one that does not exist for the caller.
    KeyHeldBy(Option<JobId>),
    /// It asks for no callback.
    NoCallback,
    /// The engine runs it, and changes this itself.
    FieldOfTheEngine(&'static str),
}

/// What becomes of a job's place among the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) priority: Option<Priority>,
    pub(crate) queue: Option<String>,
}

/// Where a job stands, as one who wants to change it must know.
pub(crate) struct Standing {
    pub(crate) id: JobId,
    pub(crate) place: Place,
    pub(crate) state: State,
    pub(crate) user: Option<String>,
    pub(crate) attempt: u32,
    pub(crate) run_at: RunAt,
    fence: i64,
    owner: Option<i64>,
    worker: Option<u32>,
    started_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    error: Option<String>,
    unique_key: Option<String>,
}

impl Standing {
    pub(crate) fn started_at(&self) -> Option<Timestamp> {
        self.started_at
    }

    /// A step from here.
    pub(crate) fn step(&self, to: State, cause: Cause) -> Step {
        Step {
            job: self.id,
            place: self.place,
            from: Some(self.state),
            to: Some(to),
            cause,
            attempt: self.attempt,
            waited: None,
            ran: None,
        }
    }

    /// A line of the history that tells of this job.
    pub(crate) fn line<'a>(&self, action: Action, caller: &'a Caller, to: State) -> Line<'a> {
        Line::of(self.id, action).share(self.place.share).states(self.state, to).by(caller)
    }
}

impl Turn<'_> {
    /// Where a job stands. None if there is none that exists for the caller.
    pub(crate) fn standing(&self, id: JobId, caller: &Caller) -> rusqlite::Result<Option<Standing>> {
        let standing = self
            .conn
            .prepare_cached(concat!(
                "SELECT state, attempt, run_at, claim, owner, worker, started_at, completed_at, error,
                     unique_key, (SELECT user_id FROM jobmill_share WHERE jobmill_share.id = share), ",
                place_columns!(),
                "
                 FROM jobmill_job WHERE id = :id"
            ))?
            .query_row(named_params! { ":id": id }, |row| {
                Ok(Standing {
                    id,
                    place: Place::read(row, 11)?,
                    state: row.get(0)?,
                    attempt: row.get(1)?,
                    run_at: RunAt::read(row, 2)?,
                    fence: row.get(3)?,
                    owner: row.get(4)?,
                    worker: row.get(5)?,
                    started_at: row.get(6)?,
                    completed_at: row.get(7)?,
                    error: row.get(8)?,
                    unique_key: row.get(9)?,
                    user: row.get(10)?,
                })
            })
            .optional()?;
        Ok(standing.filter(|standing| caller.user.is_none() || caller.user == standing.user))
    }

    /// Whether no handler runs the jobs of this lane.
    pub(crate) fn is_tracked(&self, lane: i64) -> bool {
        self.book.lanes.get(lane).is_some_and(|lane| lane.kind.is_empty())
    }

    /// Whether the jobs of this lane are the engine's own.
    pub(crate) fn is_own(&self, lane: i64) -> bool {
        self.book.lanes.get(lane).is_some_and(|lane| &*lane.queue == SYSTEM_QUEUE)
    }

    /// Cancels a job that waits or is tracked, or asks a running one to stop.
    pub(crate) fn cancel(&mut self, id: JobId, caller: &Caller) -> rusqlite::Result<Result<Cancelled, Refused>> {
        let Some(standing) = self.standing(id, caller)? else {
            return Ok(Err(Refused::NotFound));
        };
        match standing.state {
            State::Running if self.is_batch_lane(standing.place.lane) => Ok(Ok(self.cancel_batch(&standing, caller)?)),
            State::Running if !self.is_tracked(standing.place.lane) => {
                self.ask_to_stop(&standing, caller)?;
                self.audit(&standing.line(Action::CancelRequested, caller, State::Running).attempt(standing.attempt))?;
                Ok(Ok(Cancelled::Requested))
            }
            State::Created | State::Pending | State::Delayed | State::Held | State::Running => {
                self.conn
                    .prepare_cached(
                        "UPDATE jobmill_job SET state = 5, completed_at = :now, cancel_requested_at = :now
                         WHERE id = :id AND state = :state",
                    )?
                    .execute(named_params! { ":id": id, ":now": self.now, ":state": standing.state })?;
                detail::changed_by(self.conn, id, caller)?;
                self.audit(&standing.line(Action::Cancelled, caller, State::Cancelled))?;
                self.last_step(standing.step(State::Cancelled, Cause::Cancelled))?;
                Ok(Ok(Cancelled::Now))
            }
            State::Cancelled => Ok(Ok(Cancelled::Already)),
            ended => Ok(Err(Refused::Status(ended.status()))),
        }
    }

    /// Asks the handler of a running job to stop, in whichever process.
    fn ask_to_stop(&mut self, standing: &Standing, caller: &Caller) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_job SET cancel_requested_at = coalesce(cancel_requested_at, :now), updated_at = :now
                 WHERE id = :id AND state = 2",
            )?
            .execute(named_params! { ":id": standing.id, ":now": self.now })?;
        detail::changed_by(self.conn, standing.id, caller)?;
        if standing.owner == self.book.owner {
            self.out.stop.push(standing.id);
            return Ok(());
        }
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO jobmill_signal (job, owner) VALUES (:job, :owner)")?
            .execute(named_params! { ":job": standing.id, ":owner": standing.owner })
            .map(drop)
    }

    /// Takes the signals that others have left for our running jobs.
    pub(crate) fn take_signals(&mut self) -> rusqlite::Result<()> {
        let Some(owner) = self.book.owner else {
            return Ok(());
        };
        if !std::mem::take(&mut self.book.look_for_signals) {
            return Ok(());
        }
        let mut statement =
            self.conn.prepare_cached("DELETE FROM jobmill_signal WHERE owner = :owner RETURNING job")?;
        let mut rows = statement.query(named_params! { ":owner": owner })?;
        while let Some(row) = rows.next()? {
            self.out.stop.push(row.get(0)?);
        }
        Ok(())
    }

    /// Makes a job that failed, was cancelled or expired pending once more, with one attempt at least; or has it wait again
    /// if something that it follows was sent again, too.
    pub(crate) fn retry(&mut self, id: JobId, caller: &Caller) -> rusqlite::Result<Result<(), Refused>> {
        let open = self.open_needs(id)?;
        let to = if open.is_empty() { State::Delayed } else { State::Created };
        let sent = self.send_again(id, to, caller)?;
        if sent.is_ok() {
            edge::arm(self.conn, id.raw(), &open)?;
        }
        Ok(sent)
    }

    /// The same, or lets it wait for others once more.
    pub(crate) fn send_again(
        &mut self,
        id: JobId,
        to: State,
        caller: &Caller,
    ) -> rusqlite::Result<Result<(), Refused>> {
        let Some(ended) = self.standing(id, caller)? else {
            return Ok(Err(Refused::NotFound));
        };
        let outcome = match ended.state {
            State::Failed => AttemptOutcome::Failed,
            State::Cancelled => AttemptOutcome::Cancelled,
            State::Expired => AttemptOutcome::Expired,
            other => return Ok(Err(Refused::Status(other.status()))),
        };
        // A batch that never began may lack items, and whoever was about to add them has gone.
        if self.is_batch_lane(ended.place.lane) && ended.started_at.is_none() {
            return Ok(Err(Refused::Status(ended.state.status())));
        }
        if let Some(key) = &ended.unique_key
            && let Some(holder) = unique::retake(self.conn, key, id, self.now)?
        {
            let known = self.standing(holder, caller)?.map(|holder| holder.id);
            return Ok(Err(Refused::KeyHeldBy(known)));
        }
        if self.is_batch_lane(ended.place.lane) {
            self.retry_batch(&ended, caller)?;
            return Ok(Ok(()));
        }
        // A job that ended while it waited has no attempt to tell of.
        if let (Some(started_at), Some(owner)) = (ended.started_at, ended.owner) {
            record_attempt(
                self.conn,
                &PastAttempt {
                    job: id,
                    fence: ended.fence,
                    number: ended.attempt,
                    started_at,
                    ended_at: ended.completed_at.unwrap_or(self.now),
                    outcome,
                    error: ended.error.as_deref(),
                    owner: Some(owner),
                    worker: ended.worker,
                },
            )?;
        }
        self.conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = :to, run_at = CASE WHEN :to = 7 THEN :now WHEN run_at < 0 THEN run_at END,
                     max_attempts = max(max_attempts, attempt + 1),
                     completed_at = NULL, cancel_requested_at = NULL, updated_at = :now, result = NULL,
                     stop_reason = NULL, end_reason = NULL, error = CASE WHEN attempt > 0 THEN error END,
                     expires_at = CASE WHEN expires_at <= :now THEN NULL ELSE expires_at END
                 WHERE id = :id AND state IN (4, 5, 6)",
            )?
            .execute(named_params! { ":id": id, ":now": self.now, ":to": to })?;
        if to == State::Delayed {
            self.feed_again(id)?;
        }
        detail::changed_by(self.conn, id, caller)?;
        self.audit(&ended.line(Action::Requeued, caller, to).attempt(ended.attempt))?;
        self.waits(ended.step(to, Cause::Operator), self.now)?;
        Ok(Ok(()))
    }

    /// Deletes a job. A running one is asked to stop first, and goes when it has.
    pub(crate) fn delete(&mut self, id: JobId, caller: &Caller) -> rusqlite::Result<Result<Deleted, Refused>> {
        let Some(standing) = self.standing(id, caller)? else {
            return Ok(Err(Refused::NotFound));
        };
        if standing.state == State::Running && !self.is_tracked(standing.place.lane) {
            if self.is_batch_lane(standing.place.lane) {
                self.cancel_batch(&standing, caller)?;
            } else {
                self.ask_to_stop(&standing, caller)?;
            }
            if self.book.doomed.insert(id) {
                self.conn
                    .prepare_cached("INSERT OR IGNORE INTO jobmill_doomed (job) VALUES (:job)")?
                    .execute(named_params! { ":job": id })?;
                let line = standing.line(Action::DeleteRequested, caller, State::Running);
                self.audit(&line.attempt(standing.attempt))?;
            }
            return Ok(Ok(Deleted::Requested));
        }
        self.audit(&standing.line(Action::Deleted, caller, standing.state).states(standing.state, None))?;
        self.remove(&standing)?;
        Ok(Ok(Deleted::Now))
    }

    /// Deletes a job that has ended, if somebody has asked for that while it ran.
    pub(crate) fn bury_doomed(&mut self, id: JobId) -> rusqlite::Result<()> {
        if !self.book.doomed.contains(&id) {
            return Ok(());
        }
        match self.standing(id, &Caller::default())? {
            Some(standing) if standing.state.status().is_terminal() => {
                self.audit(
                    &standing.line(Action::Deleted, &Caller::default(), standing.state).states(standing.state, None),
                )?;
                self.remove(&standing)
            }
            _ => Ok(()),
        }
    }

    /// Deletes every job that has ended since somebody asked for its deletion, wherever that was.
    pub(crate) fn bury_all_doomed(&mut self) -> rusqlite::Result<()> {
        let doomed: Vec<JobId> = self.book.doomed.iter().copied().collect();
        doomed.into_iter().try_for_each(|id| self.bury_doomed(id))
    }

    /// Delivers the callback of a job that has ended once more.
    pub(crate) fn redeliver(&mut self, id: JobId, caller: &Caller) -> rusqlite::Result<Result<JobId, Refused>> {
        let Some(standing) = self.standing(id, caller)? else {
            return Ok(Err(Refused::NotFound));
        };
        if !standing.state.status().is_terminal() {
            return Ok(Err(Refused::Status(standing.state.status())));
        }
        let Some(delivery) = callback::repeat(self.conn, id)? else {
            return Ok(Err(Refused::NoCallback));
        };
        self.audit(&standing.line(Action::Redelivered, caller, standing.state))?;
        Ok(Ok(self.enqueue(&delivery.new_job())?.id()))
    }

    /// Gives a job that waits another priority or another queue.
    pub(crate) fn relocate(&mut self, id: JobId, to: &Move, caller: &Caller) -> rusqlite::Result<Result<(), Refused>> {
        let Some(standing) = self.standing(id, caller)? else {
            return Ok(Err(Refused::NotFound));
        };
        if !matches!(standing.state, State::Created | State::Pending | State::Delayed | State::Held) {
            return Ok(Err(Refused::Status(standing.state.status())));
        }
        let Some(lane) = self.book.lanes.get(standing.place.lane).cloned() else {
            return Ok(Err(Refused::NotFound));
        };
        if to.queue.is_some() && self.is_own(lane.id) {
            return Ok(Err(Refused::FieldOfTheEngine("queue")));
        }
        let key = LaneKey {
            priority: to.priority.unwrap_or(lane.priority),
            queue: to.queue.as_deref().unwrap_or(&lane.queue),
            ..lane.key()
        };
        if key == lane.key() {
            return Ok(Ok(()));
        }
        let note = format!("{}/{} to {}/{}", lane.queue, lane.priority, key.queue, key.priority);
        self.audit(&standing.line(Action::Moved, caller, standing.state).note(Some(&note)))?;
        self.change_lane(&standing, key, caller)?;
        Ok(Ok(()))
    }

    /// Moves a job that nobody runs to another lane.
    pub(crate) fn change_lane(
        &mut self,
        standing: &Standing,
        key: LaneKey<'_>,
        caller: &Caller,
    ) -> rusqlite::Result<Place> {
        let lane = self.book.lanes.find_or_create(self.conn, key)?;
        let share = match &standing.user {
            Some(user) => Some(self.book.shares.find_or_create(self.conn, lane, user)?),
            None => None,
        };
        self.conn
            .prepare_cached("UPDATE jobmill_job SET lane = :lane, share = :share, updated_at = :now WHERE id = :id")?
            .execute(named_params! { ":id": standing.id, ":lane": lane, ":share": share, ":now": self.now })?;
        detail::changed_by(self.conn, standing.id, caller)?;
        let place = Place { lane, share, ..standing.place };
        self.book.count(standing.place, Some(standing.state), None);
        self.book.count(place, None, Some(standing.state));
        if place.limited {
            self.change_lane_at_gates(standing.id, standing.place.lane, lane, standing.state)?;
        }
        if let (State::Delayed, RunAt::At(run_at), Some(lane)) =
            (standing.state, standing.run_at, self.book.lanes.get_mut(lane))
        {
            lane.note_delayed(run_at.as_micros());
        }
        self.step(Step { place, ..standing.step(standing.state, Cause::Operator) })?;
        Ok(place)
    }

    /// Stops or restarts the claiming from a queue, in every process.
    pub(crate) fn pause(&mut self, queue: &str, paused: bool, caller: &Caller) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_queue (name, paused_at) VALUES (:name, :paused_at)
                 ON CONFLICT (name) DO UPDATE
                 SET paused_at = CASE WHEN excluded.paused_at IS NULL THEN NULL
                                      ELSE coalesce(paused_at, excluded.paused_at) END",
            )?
            .execute(named_params! { ":name": queue, ":paused_at": paused.then_some(self.now) })?;
        let action = if paused { Action::Paused } else { Action::Resumed };
        self.audit(&Line::of_queue(action).by(caller).note(Some(queue)))?;
        self.book.lanes.pause(queue, paused);
        Ok(())
    }
}
