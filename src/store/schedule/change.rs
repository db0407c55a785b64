//! What is done to schedules from outside: store, pause, resume, run, backfill, delete; and what a clock that was set back
//! calls for.

use std::time::Duration;

use rusqlite::{OptionalExtension, Row, named_params};

use crate::error::{Error, ErrorKind, Result};
use crate::model::event::Fate;
use crate::model::history::{Action, Caller};
use crate::model::id::{JobId, ScheduleId, row_after};
use crate::model::schedule::policy::Overlap;
use crate::model::schedule::record::{Backfilled, MissedBy, Scheduled, TickOutcome};
use crate::model::schedule::timetable::{COUNT_MAX, Timetable};
use crate::model::schedule::{Definition, Ready, Schedule, template};
use crate::model::time::Timestamp;
use crate::model::unique::TickKey;
use crate::store::Turn;
use crate::store::audit::Line;
use crate::store::connect::storage_error;
use crate::store::enqueue::Enqueued;
use crate::store::schedule::tick::{AHEAD, RECKONED_EVERY};
use crate::store::schedule::{Standing, is_under_way, ready, standing_columns};

fn storage(error: rusqlite::Error) -> Error {
    storage_error("cannot change the schedule", error)
}

fn not_found(id: ScheduleId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no schedule {id}"))
}

/// A schedule's definition as it is stored, and its job.
#[derive(PartialEq, Eq)]
pub(crate) struct Texts {
    definition: String,
    job: String,
}

impl Texts {
    pub(crate) fn of(schedule: &Schedule) -> Result<Self> {
        let definition = serde_json::to_string(&schedule.definition())
            .map_err(|error| Error::with_source(ErrorKind::Invalid, "the schedule does not serialize", error))?;
        Ok(Self { definition, job: template::store(&schedule.job)? })
    }

    /// The definition. One that cannot be read any more is as good as none.
    fn read(&self) -> Option<Definition> {
        serde_json::from_str(&self.definition).ok()
    }
}

impl Turn<'_> {
    /// Stores a schedule whose rules have been checked, in the place of the one that has its name.
    pub(crate) fn put_schedule(&mut self, schedule: &Schedule, texts: &Texts, caller: &Caller) -> Result<Scheduled> {
        match self.stored_schedule(&schedule.name)? {
            None => self.add_schedule(schedule, texts, caller).map(Scheduled::Created),
            Some((id, stored)) if stored == *texts => Ok(Scheduled::Unchanged(id)),
            Some((id, stored)) => {
                self.replace_schedule(id, schedule, texts, stored.read(), caller)?;
                Ok(Scheduled::Changed(id))
            }
        }
    }

    /// Does the same for a start, and says in the log what it changes: its schedules may be those of another program too,
    /// which means something else by them.
    pub(crate) fn put_schedule_of_start(
        &mut self,
        schedule: &Schedule,
        texts: &Texts,
        caller: &Caller,
    ) -> Result<Scheduled> {
        let before = self.stored_schedule(&schedule.name)?;
        let done = self.put_schedule(schedule, texts, caller)?;
        if let (Scheduled::Changed(_), Some((_, stored))) = (done, before) {
            let mut changes = stored.read().map_or_else(
                || vec!["what could not be read".to_owned()],
                |stored| stored.changes_to(&schedule.definition()),
            );
            if stored.job != texts.job {
                changes.push("job".to_owned());
            }
            let line = format!("this start changes the stored schedule {}: {}", schedule.name, changes.join("; "));
            self.out.said.push((log::Level::Info, line));
        }
        Ok(done)
    }

    /// What is stored under a name.
    fn stored_schedule(&self, name: &str) -> Result<Option<(ScheduleId, Texts)>> {
        self.conn
            .prepare_cached(
                "SELECT schedule.id, definition, job FROM jobmill_schedule AS schedule
                 JOIN jobmill_schedule_definition AS stored ON stored.schedule = schedule.id WHERE name = :name",
            )
            .and_then(|mut statement| {
                let read = |row: &Row<'_>| Ok((row.get(0)?, Texts { definition: row.get(1)?, job: row.get(2)? }));
                statement.query_row(named_params! { ":name": name }, read).optional()
            })
            .map_err(storage)
    }

    fn add_schedule(&mut self, schedule: &Schedule, texts: &Texts, caller: &Caller) -> Result<ScheduleId> {
        let newest: Option<i64> = self
            .conn
            .prepare_cached("SELECT max(id) FROM jobmill_schedule")
            .and_then(|mut newest| newest.query_row([], |row| row.get(0)))
            .map_err(storage)?;
        // An id is not given twice, for jobs tell of the schedule that they are of.
        let id = ScheduleId::from_raw(row_after(newest.unwrap_or(0).max(self.book.last_id), self.now));
        let timetable = Timetable::of(schedule, self.now, Some(id))?;
        let tick = timetable.first(self.now);
        let next_at = tick.map(|tick| timetable.due_at(tick));
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_schedule (id, name, kind, anchor, tick, next_at, computed_at)
                 VALUES (:id, :name, :kind, :now, :tick, :next_at, :now)",
            )
            .and_then(|mut statement| {
                statement.execute(named_params! {
                    ":id": id, ":name": schedule.name, ":kind": schedule.job.kind, ":now": self.now, ":tick": tick,
                    ":next_at": next_at,
                })
            })
            .map_err(storage)?;
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_schedule_definition (schedule, definition, job) VALUES (:id, :definition, :job)",
            )
            .and_then(|mut statement| {
                statement.execute(named_params! { ":id": id, ":definition": texts.definition, ":job": texts.job })
            })
            .map_err(storage)?;
        self.book.agenda.note(next_at);
        self.reckon(RECKONED_EVERY).map_err(storage)?;
        self.audit_schedule(Action::ScheduleCreated, &schedule.name, caller)?;
        Ok(id)
    }

    fn replace_schedule(
        &mut self,
        id: ScheduleId,
        schedule: &Schedule,
        texts: &Texts,
        old: Option<Definition>,
        caller: &Caller,
    ) -> Result<()> {
        let standing = self.schedule_standing(id)?;
        self.conn
            .prepare_cached(
                "UPDATE jobmill_schedule_definition SET definition = :definition, job = :job WHERE schedule = :id",
            )
            .and_then(|mut statement| {
                statement.execute(named_params! { ":id": id, ":definition": texts.definition, ":job": texts.job })
            })
            .map_err(storage)?;
        self.conn
            .prepare_cached("UPDATE jobmill_schedule SET kind = :kind WHERE id = :id")
            .and_then(|mut statement| statement.execute(named_params! { ":id": id, ":kind": schedule.job.kind }))
            .map_err(storage)?;
        let new = schedule.definition();
        if !old.as_ref().is_some_and(|old| old.ticks_like(&new)) {
            // The anchor stays: two programs that define an interval differently would else begin it anew in turn, and it
            // would never be over.
            let timetable = Timetable::of(schedule, standing.anchor, Some(id))?;
            let mut tick = if standing.paused_at.is_some() { None } else { timetable.first(self.now) };
            if let Some(come) = standing.tick.filter(|tick| *tick <= self.now) {
                if timetable.is_tick(come) {
                    tick = Some(come);
                } else {
                    let before = old.map(|old| old.into_schedule(String::new(), schedule.job.clone()));
                    let before = before.and_then(|old| Ready::of(old, standing.anchor, id).ok());
                    self.drop_come(&standing, before.as_ref(), MissedBy::Change).map_err(storage)?;
                }
            }
            self.set_next(&standing, tick, tick.map(|tick| timetable.due_at(tick))).map_err(storage)?;
        }
        self.audit_schedule(Action::ScheduleChanged, &schedule.name, caller)
    }

    /// Writes that the ticks of a schedule are missed that have come and have no job yet. What it does was read before, if
    /// it could be.
    fn drop_come(&mut self, standing: &Standing, ready: Option<&Ready>, by: MissedBy) -> rusqlite::Result<()> {
        let Some(come) = standing.tick.filter(|tick| *tick <= self.now) else { return Ok(()) };
        let past = self.now.saturating_add(Duration::from_micros(1));
        let to = ready.and_then(|ready| ready.timetable.newest_before(past, come)).unwrap_or(come);
        let count = ready.map_or(Some(1), |ready| ready.timetable.count(come, to));
        if let Some(ready) = ready {
            self.count_ticks(&ready.job, Fate::Missed(count.unwrap_or(COUNT_MAX)))?;
        }
        self.miss(standing, come, to, count, by)
    }

    /// Writes that ticks are missed.
    pub(super) fn miss(
        &mut self,
        standing: &Standing,
        from: Timestamp,
        to: Timestamp,
        count: Option<u64>,
        by: MissedBy,
    ) -> rusqlite::Result<()> {
        self.add_line(standing.id, from, TickOutcome::Missed { to, count, by })?;
        self.conn
            .prepare_cached("UPDATE jobmill_schedule SET missed = missed + :count WHERE id = :id")?
            .execute(named_params! { ":id": standing.id, ":count": count.unwrap_or(COUNT_MAX).cast_signed() })
            .map(drop)
    }

    /// Writes a line behind the last one of a schedule's history.
    fn add_line(&mut self, id: ScheduleId, tick: Timestamp, outcome: TickOutcome) -> rusqlite::Result<()> {
        let number = self
            .conn
            .prepare_cached("UPDATE jobmill_schedule SET lines = lines + 1 WHERE id = :id RETURNING lines")?
            .query_row(named_params! { ":id": id }, |row| row.get(0))?;
        self.history_line(id, number, tick, outcome)
    }

    /// Writes which tick comes next.
    fn set_next(
        &mut self,
        standing: &Standing,
        tick: Option<Timestamp>,
        next_at: Option<Timestamp>,
    ) -> rusqlite::Result<()> {
        self.book.agenda.note(next_at);
        self.reckon(RECKONED_EVERY)?;
        self.conn
            .prepare_cached(
                "UPDATE jobmill_schedule SET anchor = :anchor, tick = :tick, next_at = :next_at, computed_at = :now,
                     paused_at = :paused_at
                 WHERE id = :id",
            )?
            .execute(named_params! {
                ":id": standing.id, ":anchor": standing.anchor, ":tick": tick, ":next_at": next_at, ":now": self.now,
                ":paused_at": standing.paused_at,
            })
            .map(drop)
    }

    fn audit_schedule(&self, action: Action, name: &str, caller: &Caller) -> Result<()> {
        self.audit(&Line::of_queue(action).by(caller).note(Some(name))).map_err(storage)
    }

    fn schedule_standing(&self, id: ScheduleId) -> Result<Standing> {
        let sql = concat!("SELECT ", standing_columns!(), " FROM jobmill_schedule WHERE id = :id");
        self.conn
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(named_params! { ":id": id }, Standing::read).optional())
            .map_err(storage)?
            .ok_or_else(|| not_found(id))
    }

    /// What a schedule does. If that cannot be read, it concerns the caller alone.
    fn ready(&self, standing: &Standing) -> Result<Ready> {
        ready(self.conn, standing).map_err(storage)?.map_err(|error| {
            Error::with_source(ErrorKind::Conflict, format!("{} must be stored anew", standing.id), error)
        })
    }

    pub(super) fn schedule_name(&self, id: ScheduleId) -> rusqlite::Result<Option<String>> {
        self.conn
            .prepare_cached("SELECT name FROM jobmill_schedule WHERE id = :id")?
            .query_row(named_params! { ":id": id }, |row| row.get(0))
            .optional()
    }

    /// Notes what an operator does to the schedule of this id.
    fn audit_by_id(&self, action: Action, id: ScheduleId, caller: &Caller) -> Result<()> {
        let name = self.schedule_name(id).map_err(storage)?.ok_or_else(|| not_found(id))?;
        self.audit_schedule(action, &name, caller)
    }

    /// Pauses a schedule. Ticks that have come are missed, and the one that waits for a job is skipped.
    pub(crate) fn pause_schedule(&mut self, id: ScheduleId, caller: &Caller) -> Result<()> {
        let standing = self.schedule_standing(id)?;
        if standing.paused_at.is_some() {
            return Ok(());
        }
        let ready = ready(self.conn, &standing).map_err(storage)?.ok();
        if let (Some(tick), Some(job)) = (standing.waiting, standing.last_job) {
            self.add_line(id, tick, TickOutcome::Skipped { job }).map_err(storage)?;
            self.conn
                .prepare_cached("UPDATE jobmill_schedule SET waiting = NULL, skipped = skipped + 1 WHERE id = :id")
                .and_then(|mut statement| statement.execute(named_params! { ":id": id }))
                .map_err(storage)?;
            if let Some(ready) = &ready {
                self.count_ticks(&ready.job, Fate::Skipped).map_err(storage)?;
            }
        }
        self.drop_come(&standing, ready.as_ref(), MissedBy::Pause).map_err(storage)?;
        self.set_next(&Standing { paused_at: Some(self.now), ..standing }, None, None).map_err(storage)?;
        self.audit_by_id(Action::SchedulePaused, id, caller)
    }

    /// Lets a paused schedule go on with the first tick from now on.
    pub(crate) fn resume_schedule(&mut self, id: ScheduleId, caller: &Caller) -> Result<()> {
        let standing = self.schedule_standing(id)?;
        if standing.paused_at.is_none() {
            return Ok(());
        }
        let ready = self.ready(&standing)?;
        let tick = ready.timetable.next_after(self.now);
        let next_at = tick.map(|tick| ready.timetable.due_at(tick));
        self.set_next(&Standing { paused_at: None, ..standing }, tick, next_at).map_err(storage)?;
        self.audit_by_id(Action::ScheduleResumed, id, caller)
    }

    /// Enqueues the job of a schedule now.
    pub(crate) fn run_schedule_now(&mut self, id: ScheduleId, caller: &Caller) -> Result<JobId> {
        let standing = self.schedule_standing(id)?;
        let mut ready = self.ready(&standing)?;
        if ready.overlap != Overlap::Allow
            && let Some(job) = standing.last_job
            && is_under_way(self.conn, job).map_err(storage)?
        {
            return Err(Error::new(ErrorKind::Conflict, format!("{job}, the last job of {id}, has not ended")));
        }
        let number = standing.lines + 1;
        ready.job.created_by = caller.actor().map(str::to_owned);
        let key = TickKey { schedule: id, at: self.now, by_hand: Some(number) };
        let job = self.enqueue_for(&mut ready, key).map_err(storage)?.id();
        self.history_line(id, number, self.now, TickOutcome::Manual { job }).map_err(storage)?;
        self.conn
            .prepare_cached(
                "UPDATE jobmill_schedule SET lines = :lines, last_job = :job, enqueued = enqueued + 1 WHERE id = :id",
            )
            .and_then(|mut statement| statement.execute(named_params! { ":id": id, ":lines": number, ":job": job }))
            .map_err(storage)?;
        self.audit_by_id(Action::ScheduleRun, id, caller)?;
        Ok(job)
    }

    /// Enqueues the jobs of ticks that have none.
    pub(crate) fn backfill_schedule(&mut self, id: ScheduleId, ticks: &[Timestamp]) -> Result<Backfilled> {
        let standing = self.schedule_standing(id)?;
        let mut ready = self.ready(&standing)?;
        let mut done = Backfilled::default();
        for tick in ticks {
            let key = TickKey { schedule: id, at: *tick, by_hand: None };
            match self.enqueue_for(&mut ready, key).map_err(storage)? {
                Enqueued::New(_) => done.enqueued += 1,
                Enqueued::Existing(_) => done.existing += 1,
            }
        }
        if let (Some(first), Some(to)) = (ticks.first(), ticks.last()) {
            let number = standing.lines + 1;
            let outcome = TickOutcome::Backfilled { to: *to, count: done.enqueued as u64 };
            self.history_line(id, number, *first, outcome).map_err(storage)?;
            self.conn
                .prepare_cached(
                    "UPDATE jobmill_schedule SET lines = :lines, enqueued = enqueued + :count WHERE id = :id",
                )
                .and_then(|mut statement| {
                    statement.execute(named_params! { ":id": id, ":lines": number, ":count": done.enqueued as i64 })
                })
                .map_err(storage)?;
        }
        Ok(done)
    }

    /// Notes that somebody has asked for a backfill.
    pub(crate) fn audit_backfill(&self, id: ScheduleId, caller: &Caller) -> Result<()> {
        self.audit_by_id(Action::ScheduleBackfilled, id, caller)
    }

    /// Deletes a schedule and its history. Its jobs stay.
    pub(crate) fn delete_schedule(&mut self, id: ScheduleId, caller: &Caller) -> Result<()> {
        let name = self.schedule_name(id).map_err(storage)?.ok_or_else(|| not_found(id))?;
        let standing = self.schedule_standing(id)?;
        // Its history goes with it, and the counters stay.
        let ready = ready(self.conn, &standing).map_err(storage)?.ok();
        self.drop_come(&standing, ready.as_ref(), MissedBy::Change).map_err(storage)?;
        for statement in [
            "DELETE FROM jobmill_schedule WHERE id = :id",
            "DELETE FROM jobmill_schedule_definition WHERE schedule = :id",
            "DELETE FROM jobmill_tick WHERE schedule = :id",
        ] {
            self.conn
                .prepare_cached(statement)
                .and_then(|mut statement| statement.execute(named_params! { ":id": id }))
                .map_err(storage)?;
        }
        self.audit_schedule(Action::ScheduleDeleted, &name, caller)
    }

    /// Finds out anew when schedules tick next that were reckoned under a clock that ran ahead, looking at `limit` of those
    /// behind `after`. Gives the last that was looked at, if more may follow, and how many were put right. Ticks that have
    /// had their jobs under that clock have them still, and get no second one.
    pub(crate) fn put_schedules_right(
        &mut self,
        after: ScheduleId,
        limit: usize,
    ) -> rusqlite::Result<(Option<ScheduleId>, usize)> {
        self.book.agenda.look_again();
        let sql = concat!(
            "SELECT ",
            standing_columns!(),
            " FROM jobmill_schedule WHERE id > :after ORDER BY id LIMIT :limit"
        );
        let seen: Vec<Standing> = self
            .conn
            .prepare_cached(sql)?
            .query_map(named_params! { ":after": after, ":limit": limit as i64 }, Standing::read)?
            .collect::<rusqlite::Result<_>>()?;
        let ahead = self.now.saturating_add(AHEAD);
        let mut count = 0;
        for standing in seen.iter().filter(|standing| standing.computed_at > ahead && standing.paused_at.is_none()) {
            let Ok(ready) = ready(self.conn, standing)? else { continue };
            let next = ready.timetable.next_after(self.now);
            // One that is to come once, and has not come, is not put off.
            let next = standing.tick.into_iter().chain(next).min();
            self.set_next(standing, next, next.map(|next| ready.timetable.due_at(next)))?;
            count += 1;
        }
        let left = seen.last().filter(|_| seen.len() == limit).map(|last| last.id);
        if left.is_none() {
            // All are right now, and nobody need look at them again.
            self.reckon(Duration::ZERO)?;
        }
        Ok((left, count))
    }
}
