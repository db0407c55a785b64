//! Schedules: store, ask, pause, run, backfill.

use std::ops::Range;

use crate::client::{Client, knows_limits};
use crate::error::{Error, ErrorKind, Result};
use crate::model::history::Caller;
use crate::model::id::{JobId, ScheduleId};
use crate::model::schedule::Schedule;
use crate::model::schedule::record::{Backfilled, SchedulePage, ScheduleQuery, ScheduleRecord, Scheduled, Tick};
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::schedule::change::Texts;
use crate::store::schedule::read;

/// How many ticks of a backfill are enqueued in one transaction.
const SLICE_TICKS: usize = 200;

impl Client {
    /// Stores a schedule, in the place of the one that has its name if there is one, and tells what that came to. Its next
    /// tick is found out anew if it ticks otherwise than before, an interval being reckoned from the same moment as ever
    /// ([`Schedule::every`]); a paused one stays paused. A tick that had come and has no job yet is dealt with all the same
    /// if the new definition has it too, and counts as missed if not. Engines on the file tick it, whichever comes first,
    /// whether or not they have a handler for its job.
    ///
    /// ```
    /// use std::time::Duration;
    /// use jobmill::{NewJob, Schedule, Scheduled};
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
    /// let poll = Schedule::every("poll", Duration::from_secs(300), NewJob::json("poll", &"feeds"));
    /// assert!(matches!(client.schedule(&poll)?, Scheduled::Created(_)));
    /// assert!(matches!(client.schedule(&poll)?, Scheduled::Unchanged(_)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Invalid` if a rule is broken, with the field and the rule ([`Schedule::check`]); `Forbidden` if the client is bound
    /// to a user.
    pub fn schedule(&self, schedule: &Schedule) -> Result<Scheduled> {
        schedule.check()?;
        let (schedule, texts) = (schedule.clone(), Texts::of(schedule)?);
        self.on_schedules(move |turn, caller| {
            knows_limits(turn, &schedule.job).map_err(|error| schedule.told_of(error))?;
            turn.put_schedule(&schedule, &texts, caller)
        })
    }

    /// Schedules in pages, the newest first unless the query says otherwise.
    ///
    /// # Errors
    /// `Invalid` if the query breaks a rule; `Forbidden` if the client is bound to a user; `Storage` if the definition of
    /// one cannot be read.
    pub fn schedules(&self, query: ScheduleQuery) -> Result<SchedulePage> {
        self.administer("read schedules")?;
        query.cursor.check()?;
        let limit = query.cursor.limit + 1;
        let found = self.reader().snapshot("cannot list the schedules", |conn| read::page(conn, &query, limit))?;
        let mut schedules = found.into_iter().collect::<Result<Vec<ScheduleRecord>>>()?;
        let next = query.cursor.cut(&mut schedules, |schedule| schedule.id);
        let next = next.map(|cursor| ScheduleQuery { cursor, ..query });
        Ok(SchedulePage { schedules, next })
    }

    /// A schedule by its id.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Forbidden` if the client is bound to a user.
    pub fn schedule_by_id(&self, id: ScheduleId) -> Result<ScheduleRecord> {
        self.administer("read schedules")?;
        let found = self.reader().snapshot("cannot read the schedule", |conn| read::by_id(conn, id))?;
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no schedule {id}")))?
    }

    /// A schedule by its name.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Forbidden` if the client is bound to a user.
    pub fn schedule_by_name(&self, name: &str) -> Result<ScheduleRecord> {
        self.administer("read schedules")?;
        let found = self.reader().snapshot("cannot read the schedule", |conn| read::by_name(conn, name))?;
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no schedule named {name:?}")))?
    }

    /// What became of the last ticks of a schedule, the newest first. The newest [`Schedule::HISTORY`] lines are kept.
    ///
    /// # Errors
    /// `NotFound` if there is no such schedule; `Forbidden` if the client is bound to a user.
    pub fn ticks(&self, id: ScheduleId) -> Result<Vec<Tick>> {
        self.administer("read schedules")?;
        let found = self.reader().snapshot("cannot read the ticks", |conn| read::history(conn, id))?;
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no schedule {id}")))
    }

    /// Lets a schedule tick no more until it is resumed. A tick that waits for the end of the last job is skipped, and one
    /// that has come and has no job yet is missed; the history tells of both. A schedule that is paused already stays so.
    ///
    /// # Errors
    /// `NotFound` if there is no such schedule; `Forbidden` if the client is bound to a user.
    pub fn pause_schedule(&self, id: ScheduleId) -> Result<()> {
        self.on_schedules(move |turn, caller| turn.pause_schedule(id, caller))
    }

    /// Lets a paused schedule go on, with its first tick from now on: those that fell into the pause are not made up for.
    ///
    /// # Errors
    /// `NotFound` if there is no such schedule; `Forbidden` if the client is bound to a user.
    pub fn resume_schedule(&self, id: ScheduleId) -> Result<()> {
        self.on_schedules(move |turn, caller| turn.resume_schedule(id, caller))
    }

    /// Enqueues the job of a schedule at once, besides its ticks and even if it is paused, and gives the job's id.
    ///
    /// # Errors
    /// `NotFound` if there is no such schedule; `Conflict` if its jobs must not overlap and the last one has not ended;
    /// `Forbidden` if the client is bound to a user.
    pub fn run_schedule_now(&self, id: ScheduleId) -> Result<JobId> {
        self.on_schedules(move |turn, caller| turn.run_schedule_now(id, caller))
    }

    /// Enqueues the jobs of all ticks of a schedule from one moment to before another that have had none, and tells how
    /// many these were. Doing it again adds a line to the history and no job, as long as those jobs are kept. Overlaps are
    /// allowed, and what is enqueued is written in slices: if the process dies in between, doing it again does the rest.
    ///
    /// # Errors
    /// `NotFound` if there is no such schedule; `Invalid` if the range is empty, ends in the future or holds more than
    /// [`Schedule::MAX_BACKFILL`] ticks; `Forbidden` if the client is bound to a user.
    pub fn backfill(&self, id: ScheduleId, range: Range<Timestamp>) -> Result<Backfilled> {
        let record = self.schedule_by_id(id)?;
        if range.start >= range.end {
            return Err(Error::invalid("range", "must not be empty"));
        }
        if range.end > self.desk().clock().now() {
            return Err(Error::invalid("range", "must not end in the future"));
        }
        let ticks = record.schedule.ticks_between(record.anchor, &range)?;
        self.on_schedules(move |turn, caller| turn.audit_backfill(id, caller))?;
        let mut done = Backfilled::default();
        for slice in ticks.chunks(SLICE_TICKS) {
            let slice = slice.to_vec();
            let slice_done = self.on_schedules(move |turn, _| turn.backfill_schedule(id, &slice))?;
            done.enqueued += slice_done.enqueued;
            done.existing += slice_done.existing;
        }
        Ok(done)
    }

    /// Deletes a schedule and its history. Ticks that have come and have no job yet get none. Jobs that it has enqueued
    /// stay, and are listed by [`Query::schedule`](crate::Query::schedule) as before.
    ///
    /// # Errors
    /// `NotFound` if there is no such schedule; `Forbidden` if the client is bound to a user.
    pub fn delete_schedule(&self, id: ScheduleId) -> Result<()> {
        self.on_schedules(move |turn, caller| turn.delete_schedule(id, caller))
    }

    fn on_schedules<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Turn<'_>, &Caller) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.administer("change schedules")?;
        let caller = self.caller().clone();
        self.desk().call(move |turn| work(turn, &caller))
    }
}
