//! What time brings: schedules that are due, and ticks that have waited for a job to end.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::model::event::{Fate, Ticks};
use crate::model::id::JobId;
use crate::model::new_job::NewJob;
use crate::model::schedule::Ready;
use crate::model::schedule::policy::{Lost, Overlap, plan};
use crate::model::schedule::record::{MissedBy, TickOutcome};
use crate::model::schedule::timetable::COUNT_MAX;
use crate::model::time::Timestamp;
use crate::model::unique::{TickKey, Unique};
use crate::store::enqueue::Enqueued;
use crate::store::place::LaneKey;
use crate::store::schedule::{MISSED, SKIPPED, Standing, is_under_way, place, ready, standing_columns};
use crate::store::{Book, Turn};

/// How often it is looked whether jobs have ended elsewhere for which ticks wait.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// By how much something must lie ahead of the clock to have been written under one that ran ahead.
pub(super) const AHEAD: Duration = Duration::from_secs(3);
/// How often it is noted that schedules are reckoned: often enough for one that ran ahead to be told.
pub(super) const RECKONED_EVERY: Duration = Duration::from_secs(1);
/// How many moments looked up in a calendar are as much work as a job that is enqueued.
const LOOKS_PER_JOB: usize = 10;

/// Reads the schedules that are due, the one that is due for longest first.
pub(crate) const PLAN_DUE: &str = concat!(
    "SELECT ",
    standing_columns!(),
    " FROM jobmill_schedule INDEXED BY jobmill_schedule_due WHERE next_at <= :now ORDER BY next_at LIMIT :limit"
);
/// Reads when the next schedule is due.
pub(crate) const PLAN_NEXT: &str = "SELECT min(next_at) FROM jobmill_schedule INDEXED BY jobmill_schedule_due
     WHERE next_at IS NOT NULL";
/// Reads the schedules whose ticks wait for a job.
pub(crate) const PLAN_WAITING: &str = concat!(
    "SELECT ",
    standing_columns!(),
    " FROM jobmill_schedule INDEXED BY jobmill_schedule_waiting WHERE last_job = :job AND waiting IS NOT NULL"
);
/// Reads schedules whose ticks wait for jobs that have ended or are gone.
const PLAN_RELEASED: &str = concat!(
    "SELECT ",
    standing_columns!(),
    " FROM jobmill_schedule INDEXED BY jobmill_schedule_waiting WHERE waiting IS NOT NULL AND NOT EXISTS (
         SELECT 1 FROM jobmill_job AS job WHERE job.id = last_job AND job.state IN (0, 1, 2, 7, 8))
     LIMIT :limit"
);
/// Writes what a tick has changed.
pub(crate) const PLAN_TICKED: &str = "UPDATE jobmill_schedule SET tick = :tick, next_at = :next_at,
         computed_at = :now, waiting = :waiting, last_tick = :last_tick, last_job = :last_job, lines = :lines,
         enqueued = enqueued + :enqueued, missed = missed + :missed, skipped = skipped + :skipped
     WHERE id = :id AND tick IS :was";

/// What the writer remembers of the schedules, so that it need not look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Agenda {
    /// When the next schedule is due, in microseconds. None: never.
    next_at: Option<i64>,
    /// Whether ticks may be waiting for jobs.
    any_waiting: bool,
    /// Whether such jobs may have ended without our noticing.
    unseen: bool,
    /// When that was last looked at, in microseconds.
    looked_at: i64,
    /// Until when schedules were reckoned, by whoever did it last, in microseconds; as the file has it, to the second.
    reckoned_at: i64,
}

impl Agenda {
    /// Reads it anew, after somebody else has written.
    pub(crate) fn reload(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        self.next_at = conn.prepare_cached(PLAN_NEXT)?.query_row([], |row| row.get(0))?;
        self.any_waiting = any_waiting(conn)?;
        self.unseen = self.any_waiting;
        self.reckoned_at = conn
            .prepare_cached("SELECT value FROM jobmill_meta WHERE key = 'schedules_reckoned_at'")?
            .query_row([], |row| row.get(0))
            .optional()?
            .unwrap_or(0);
        Ok(())
    }

    /// When time next gives schedules something to do.
    pub(crate) fn due_at(&self) -> Option<i64> {
        let look = self.unseen.then(|| self.looked_at.saturating_add(LOOK_EVERY.as_micros() as i64));
        self.next_at.into_iter().chain(look).min()
    }

    /// Takes note of a schedule that is due then.
    pub(super) fn note(&mut self, next_at: Option<Timestamp>) {
        let next_at = next_at.map(Timestamp::as_micros);
        self.next_at = self.next_at.into_iter().chain(next_at).min();
    }

    /// Has the clock set back, so that what was looked at last lies ahead.
    pub(super) fn look_again(&mut self) {
        self.looked_at = 0;
    }
}

/// Whether a tick waits for a job.
fn any_waiting(conn: &Connection) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM jobmill_schedule INDEXED BY jobmill_schedule_waiting WHERE waiting IS NOT NULL")?
        .exists([])
}

impl Book {
    /// Whether schedules were reckoned under a clock that ran ahead of `now`, by whomever, and have not been put right.
    pub(crate) fn ran_ahead(&self, now: Timestamp) -> bool {
        self.agenda.reckoned_at > now.saturating_add(AHEAD).as_micros()
    }

    /// Whether a schedule is due at `now`, as far as memory tells.
    pub(crate) fn is_tick_due(&self, now: Timestamp) -> bool {
        self.agenda.due_at().is_some_and(|at| at <= now.as_micros())
    }
}

/// A schedule while its ticks are dealt with.
struct Ticking {
    standing: Standing,
    ready: Ready,
    enqueued: i64,
    missed: i64,
    skipped: i64,
}

impl Turn<'_> {
    /// Deals with schedules that are due, and with ticks whose job has ended: as much work as it is to enqueue `limit` jobs,
    /// and that of one schedule at most beyond it. If they are not `open`, what has ended in this turn is left for later.
    pub(crate) fn tick(&mut self, limit: usize, open: bool) -> rusqlite::Result<()> {
        if self.book.agenda.any_waiting && !self.out.ended.is_empty() {
            if open {
                let mut released = false;
                for job in self.out.ended.clone() {
                    released |= self.release_after(job)?;
                }
                if released {
                    self.book.agenda.any_waiting = any_waiting(self.conn)?;
                }
            } else {
                self.book.agenda.unseen = true;
            }
        }
        if !open || !self.book.is_tick_due(self.now) {
            return Ok(());
        }
        if self.book.agenda.unseen {
            self.look_for_released(limit)?;
        }
        self.reckon(RECKONED_EVERY)?;
        let mut left = limit;
        for standing in self.due_schedules(limit)? {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(self.run_schedule(standing, left)?.max(1));
        }
        self.book.agenda.next_at = self.conn.prepare_cached(PLAN_NEXT)?.query_row([], |row| row.get(0))?;
        Ok(())
    }

    /// Notes that schedules are reckoned now, if that was noted longer ago than `lag`, or later than now.
    pub(super) fn reckon(&mut self, lag: Duration) -> rusqlite::Result<()> {
        let (now, known) = (self.now.as_micros(), self.book.agenda.reckoned_at);
        if !lag.is_zero() && now <= known.saturating_add(lag.as_micros() as i64) {
            return Ok(());
        }
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_meta (key, value) VALUES ('schedules_reckoned_at', :now)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?
            .execute(named_params! { ":now": now })?;
        self.book.agenda.reckoned_at = now;
        Ok(())
    }

    fn due_schedules(&self, limit: usize) -> rusqlite::Result<Vec<Standing>> {
        self.conn
            .prepare_cached(PLAN_DUE)?
            .query_map(named_params! { ":now": self.now, ":limit": limit as i64 }, Standing::read)?
            .collect()
    }

    /// Enqueues the ticks that have waited for a job that has just ended, and tells whether there were any.
    fn release_after(&mut self, job: JobId) -> rusqlite::Result<bool> {
        let waiting: Vec<Standing> = self
            .conn
            .prepare_cached(PLAN_WAITING)?
            .query_map(named_params! { ":job": job }, Standing::read)?
            .collect::<rusqlite::Result<_>>()?;
        let any = !waiting.is_empty();
        waiting.into_iter().try_for_each(|standing| self.release(standing))?;
        Ok(any)
    }

    /// Enqueues ticks whose jobs have ended elsewhere: in another process, or in a transaction of the application's.
    fn look_for_released(&mut self, limit: usize) -> rusqlite::Result<()> {
        let now = self.now.as_micros();
        if self.book.agenda.looked_at.saturating_add(LOOK_EVERY.as_micros() as i64) > now {
            return Ok(());
        }
        let released: Vec<Standing> = self
            .conn
            .prepare_cached(PLAN_RELEASED)?
            .query_map(named_params! { ":limit": limit as i64 }, Standing::read)?
            .collect::<rusqlite::Result<_>>()?;
        self.book.agenda.unseen = released.len() == limit;
        self.book.agenda.looked_at = now;
        released.into_iter().try_for_each(|standing| self.release(standing))
    }

    fn release(&mut self, standing: Standing) -> rusqlite::Result<()> {
        if let Some(mut ticking) = self.begin(standing)? {
            self.release_waiting(&mut ticking)?;
            let (was, next) = (ticking.standing.tick, ticking.standing.tick);
            self.ticked(&ticking, was, next)?;
        }
        Ok(())
    }

    /// Reads what a schedule does. One that cannot be read is put aside, so that it holds up nobody.
    fn begin(&mut self, standing: Standing) -> rusqlite::Result<Option<Ticking>> {
        match ready(self.conn, &standing)? {
            Ok(ready) => Ok(Some(Ticking { standing, ready, enqueued: 0, missed: 0, skipped: 0 })),
            Err(error) => {
                log::error!("{} is paused, for it cannot be read: {error}", standing.id);
                if let Some(tick) = standing.tick {
                    self.miss(&standing, tick, tick, Some(1), MissedBy::Pause)?;
                }
                self.conn
                    .prepare_cached(
                        "UPDATE jobmill_schedule SET paused_at = :now, tick = NULL, next_at = NULL, waiting = NULL
                         WHERE id = :id",
                    )?
                    .execute(named_params! { ":now": self.now, ":id": standing.id })?;
                Ok(None)
            }
        }
    }

    /// Deals with the ticks of a schedule that is due, and tells how much work it was, in jobs.
    fn run_schedule(&mut self, standing: Standing, limit: usize) -> rusqlite::Result<usize> {
        let (Some(first), Some(mut ticking)) = (standing.tick, self.begin(standing)?) else {
            return Ok(0);
        };
        let ready = &ticking.ready;
        let plan = plan(&ready.timetable, ready.missed, ready.grace, first, self.now, limit);
        self.release_waiting(&mut ticking)?;
        if let Some(lost) = plan.lost {
            self.lose_ticks(&mut ticking, lost)?;
        }
        for tick in plan.run {
            self.run_tick(&mut ticking, tick)?;
        }
        self.ticked(&ticking, Some(first), plan.next)?;
        let looks = ticking.ready.timetable.reckoned();
        Ok(usize::try_from(ticking.enqueued).unwrap_or(0) + looks / LOOKS_PER_JOB)
    }

    /// Writes that ticks are missed for good.
    fn lose_ticks(&mut self, ticking: &mut Ticking, lost: Lost) -> rusqlite::Result<()> {
        let count = lost.count.unwrap_or(COUNT_MAX);
        ticking.missed += count.cast_signed();
        self.count_ticks(&ticking.ready.job, Fate::Missed(count))?;
        if !matches!(self.newest_line(ticking)?, Some((MISSED, _))) {
            let name = self.schedule_name(ticking.standing.id)?.unwrap_or_default();
            let count = lost.count.map_or_else(|| "many".to_owned(), |count| count.to_string());
            let line = format!("the schedule {name} has missed {count} ticks, from {} to {}", lost.from, lost.to);
            self.out.said.push((log::Level::Warn, line));
        }
        let outcome = TickOutcome::Missed { to: lost.to, count: lost.count, by: MissedBy::Policy };
        self.line(ticking, lost.from, outcome)
    }

    /// Enqueues the tick that has waited, if the job that it has waited for has ended. Once it is too late for it, it is
    /// missed, and leaves its place to the next, which may be in time when that job ends.
    fn release_waiting(&mut self, ticking: &mut Ticking) -> rusqlite::Result<()> {
        let Some(tick) = ticking.standing.waiting else { return Ok(()) };
        let Ready { timetable, missed, grace, .. } = &ticking.ready;
        let late = self.now.since(timetable.due_at(tick));
        if missed.grace(*grace).is_some_and(|grace| late > grace) {
            ticking.standing.waiting = None;
            return self.lose_ticks(ticking, Lost { from: tick, to: tick, count: Some(1) });
        }
        if self.running(ticking)?.is_none() {
            ticking.standing.waiting = None;
            self.enqueue_tick(ticking, tick, None)?;
        }
        Ok(())
    }

    /// The last job of a schedule, if it has not ended.
    fn running(&self, ticking: &Ticking) -> rusqlite::Result<Option<JobId>> {
        match ticking.standing.last_job {
            Some(job) if is_under_way(self.conn, job)? => Ok(Some(job)),
            _ => Ok(None),
        }
    }

    /// Enqueues a tick, lets it wait, or skips it.
    fn run_tick(&mut self, ticking: &mut Ticking, tick: Timestamp) -> rusqlite::Result<()> {
        let running = match ticking.ready.overlap {
            Overlap::Allow => None,
            Overlap::Skip | Overlap::Queue => self.running(ticking)?,
        };
        let Some(job) = running else {
            let late = self.now.since(ticking.ready.timetable.due_at(tick));
            return self.enqueue_tick(ticking, tick, Some(late));
        };
        if ticking.ready.overlap == Overlap::Queue && ticking.standing.waiting.is_none() {
            ticking.standing.waiting = Some(tick);
            self.book.agenda.any_waiting = true;
            return Ok(());
        }
        ticking.skipped += 1;
        self.count_ticks(&ticking.ready.job, Fate::Skipped)?;
        if self.newest_line(ticking)? != Some((SKIPPED, Some(job))) {
            let name = self.schedule_name(ticking.standing.id)?.unwrap_or_default();
            // The schedule asks for it, so nobody need look into it.
            let line = format!("the schedule {name} skips ticks from {tick} on, for {job} has not ended");
            self.out.said.push((log::Level::Debug, line));
        }
        self.line(ticking, tick, TickOutcome::Skipped { job })
    }

    /// Enqueues the job of a tick that comes so late. None: it has waited for another job.
    fn enqueue_tick(&mut self, ticking: &mut Ticking, tick: Timestamp, late: Option<Duration>) -> rusqlite::Result<()> {
        let key = TickKey { schedule: ticking.standing.id, at: tick, by_hand: None };
        let outcome = match self.enqueue_for(&mut ticking.ready, key)? {
            Enqueued::New(job) => {
                ticking.enqueued += 1;
                self.count_ticks(&ticking.ready.job, Fate::Enqueued(late))?;
                ticking.standing.last_tick = Some(tick);
                ticking.standing.last_job = Some(job);
                TickOutcome::Enqueued { job }
            }
            Enqueued::Existing(job) => TickOutcome::Duplicate { job },
        };
        self.line(ticking, tick, outcome)
    }

    /// Enqueues the job of a schedule under the key of a tick.
    pub(super) fn enqueue_for(&mut self, ready: &mut Ready, key: TickKey) -> rusqlite::Result<Enqueued> {
        ready.job.unique = Some(Unique::tick(key));
        self.enqueue(&ready.job)
    }

    /// Notes what became of ticks, to be counted with the lane of their jobs.
    pub(super) fn count_ticks(&mut self, job: &NewJob, fate: Fate) -> rusqlite::Result<()> {
        let lane = self.book.lanes.find_or_create(self.conn, LaneKey::of(job))?;
        self.out.ticks.push(Ticks { lane, fate });
        Ok(())
    }

    /// The outcome that the newest line of a schedule's history tells of, by its number, and the job. What goes on as it has
    /// been is not said again.
    fn newest_line(&self, ticking: &Ticking) -> rusqlite::Result<Option<(i64, Option<JobId>)>> {
        let Standing { id, lines, .. } = ticking.standing;
        self.conn
            .prepare_cached(
                "SELECT outcome, job FROM jobmill_tick WHERE schedule = :id AND place = :place AND number = :number",
            )?
            .query_row(named_params! { ":id": id, ":place": place(lines), ":number": lines }, |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
    }

    fn line(&self, ticking: &mut Ticking, tick: Timestamp, outcome: TickOutcome) -> rusqlite::Result<()> {
        ticking.standing.lines += 1;
        self.history_line(ticking.standing.id, ticking.standing.lines, tick, outcome)
    }

    /// Writes where a schedule stands after its ticks.
    fn ticked(&mut self, ticking: &Ticking, was: Option<Timestamp>, next: Option<Timestamp>) -> rusqlite::Result<()> {
        let Ticking { standing, ready, enqueued, missed, skipped } = ticking;
        let next_at = next.map(|next| ready.timetable.due_at(next));
        self.book.agenda.note(next_at);
        let written = self.conn.prepare_cached(PLAN_TICKED)?.execute(named_params! {
            ":id": standing.id, ":was": was, ":tick": next, ":next_at": next_at, ":now": self.now,
            ":waiting": standing.waiting, ":last_tick": standing.last_tick, ":last_job": standing.last_job,
            ":lines": standing.lines, ":enqueued": enqueued, ":missed": missed, ":skipped": skipped,
        })?;
        debug_assert_eq!(written, 1, "nobody else writes within a turn");
        Ok(())
    }
}
