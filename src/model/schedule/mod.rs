//! Schedules: what an application says of one, and the rules for it.

mod calendar;
mod cron;
pub(crate) mod policy;
pub(crate) mod record;
pub(crate) mod template;
pub(crate) mod timetable;

#[cfg(test)]
mod clocks;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::id::ScheduleId;
use crate::model::new_job::NewJob;
use crate::model::rules::{check_duration, check_name, quoted};
use crate::model::schedule::policy::{Missed, Overlap};
use crate::model::schedule::timetable::{Timetable, micros};
use crate::model::time::Timestamp;

/// When a schedule ticks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "when")]
#[non_exhaustive]
pub enum Trigger {
    /// Again and again after the same time.
    Every {
        /// That time, in microseconds.
        interval_us: i64,
    },
    /// When a wall clock shows what a cron line names.
    Cron {
        /// The line.
        line: String,
        /// The IANA name of the zone whose clock it is.
        time_zone: String,
    },
    /// Once.
    At {
        /// When.
        at: Timestamp,
    },
}

/// For people to read: `every 3600s`, `"0 9 * * *" in Europe/Paris`, `at 2026-01-01T00:00:00.000000Z`.
impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every { interval_us } => write!(f, "every {:?}", Duration::from_micros(interval_us.unsigned_abs())),
            Self::Cron { line, time_zone } => write!(f, "{} in {time_zone}", quoted(line)),
            Self::At { at } => write!(f, "at {at}"),
        }
    }
}

/// A job that is enqueued again and again, or once at a moment: when, and what becomes of late ticks. It is stored by
/// [`Client::schedule`](crate::Client::schedule), under its name.
///
/// Setters never fail; what is wrong is said when it is stored, or by [`check`](Schedule::check).
///
/// ```
/// use std::time::Duration;
/// use jobmill::{Missed, NewJob, Overlap, Schedule, Timestamp};
///
/// # fn main() -> jobmill::Result<()> {
/// let report = Schedule::cron("daily report", "0 9 * * MON-FRI", NewJob::json("report", &"sales"))
///     .time_zone("Europe/Paris")
///     .missed(Missed::One)
///     .grace(Duration::from_secs(2 * 3600))
///     .overlap(Overlap::Skip)
///     .jitter(Duration::from_secs(30));
///
/// // Nine o'clock stays nine o'clock when the clocks are set forward, on Sunday 29 March 2026.
/// let friday: Timestamp = "2026-03-27T00:00:00Z".parse()?;
/// let next: Vec<String> = report.preview(friday, 2)?.iter().map(ToString::to_string).collect();
/// assert_eq!(next, ["2026-03-27T08:00:00.000000Z", "2026-03-30T07:00:00.000000Z"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a schedule does nothing until it is stored"]
pub struct Schedule {
    pub(crate) name: String,
    pub(crate) trigger: Trigger,
    pub(crate) job: NewJob,
    pub(crate) starts_at: Option<Timestamp>,
    pub(crate) ends_at: Option<Timestamp>,
    pub(crate) missed: Missed,
    pub(crate) grace: Option<Duration>,
    pub(crate) overlap: Overlap,
    pub(crate) jitter: Duration,
    /// A zone was set for what has none.
    stray_zone: bool,
}

impl Schedule {
    /// The shortest interval: 10 ms.
    pub const MIN_INTERVAL: Duration = Duration::from_millis(10);
    /// The longest cron line, in bytes.
    pub const MAX_CRON_BYTES: usize = cron::MAX_BYTES;
    /// How many missed ticks may be made up for.
    pub const MAX_MISSED: u32 = 1000;
    /// How many ticks one preview gives.
    pub const MAX_PREVIEW: usize = 1000;
    /// How many ticks one backfill runs.
    pub const MAX_BACKFILL: usize = 10_000;
    /// How many lines of its history a schedule keeps.
    pub const HISTORY: usize = 100;

    fn new(name: impl Into<String>, trigger: Trigger, job: NewJob) -> Self {
        Self {
            name: name.into(),
            trigger,
            job,
            starts_at: None,
            ends_at: None,
            missed: Missed::default(),
            grace: None,
            overlap: Overlap::default(),
            jitter: Duration::ZERO,
            stray_zone: false,
        }
    }

    /// Enqueues the job after each such time, [`MIN_INTERVAL`](Schedule::MIN_INTERVAL) to 100 years. The ticks are those
    /// of a clock that never drifts: reckoned from when a schedule of this name was stored first (it then ticks first one
    /// interval later), whatever was changed of it since, or from [`starts_at`](Schedule::starts_at). Another interval thus
    /// goes on from that moment too, with the first of its ticks that is still to come.
    pub fn every(name: impl Into<String>, interval: Duration, job: impl Into<NewJob>) -> Self {
        Self::new(name, Trigger::Every { interval_us: micros(interval) }, job.into())
    }

    /// Enqueues the job when a wall clock shows what a cron line names: minute, hour, day of month, month and day of week,
    /// or with seconds as a sixth field in front; `@daily` and its like; `L`, `W` and `#` as in Quartz. If both the day of
    /// month and the day of week are named, either is enough, as in cron; a `+` before the day of week demands both.
    ///
    /// Where clocks are set forward, a time of day that is left out comes at the first moment after the gap, once; where
    /// they are set back, one that is shown twice comes the first time. A line with a `*` for its hour comes in each hour
    /// as it is shown, whatever the clock does; one with a `*` for its minute goes on while the clock shows an hour again.
    pub fn cron(name: impl Into<String>, line: impl Into<String>, job: impl Into<NewJob>) -> Self {
        Self::new(name, Trigger::Cron { line: line.into(), time_zone: "UTC".to_owned() }, job.into())
    }

    /// Enqueues the job once. A moment that is over when the schedule is stored counts as missed.
    pub fn at(name: impl Into<String>, at: Timestamp, job: impl Into<NewJob>) -> Self {
        Self::new(name, Trigger::At { at }, job.into())
    }

    /// Sets the time zone of a cron line, by its IANA name. The zones come with jobmill. Defaults to `UTC`.
    pub fn time_zone(mut self, name: impl Into<String>) -> Self {
        match &mut self.trigger {
            Trigger::Cron { time_zone, .. } => *time_zone = name.into(),
            _ => self.stray_zone = true,
        }
        self
    }

    /// Lets no tick come before this moment; it may itself be one. Defaults to none.
    pub fn starts_at(mut self, at: Timestamp) -> Self {
        self.starts_at = Some(at);
        self
    }

    /// Lets no tick come after this moment; it may itself be one. Defaults to none.
    pub fn ends_at(mut self, at: Timestamp) -> Self {
        self.ends_at = Some(at);
        self
    }

    /// Sets what becomes of ticks whose time came while no engine ran. Defaults to [`Missed::One`].
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// Sets how late a tick may run, up to 100 years, for whatever reason. Defaults to 10 s with [`Missed::Skip`], and to no limit otherwise.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Sets what becomes of a tick while the job of the last one has not ended. Defaults to [`Overlap::Allow`].
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// Delays each tick by some time up to this, up to 100 years, so that not all schedules of nine o'clock run at nine.
    /// Each tick has a delay of its own, always the same, that ends before the next tick; the ticks themselves do not move.
    /// Defaults to none.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it ticks.
    pub fn trigger(&self) -> &Trigger {
        &self.trigger
    }

    /// The kind of its job.
    pub fn kind(&self) -> &str {
        self.job.kind.as_deref().unwrap_or_default()
    }

    /// Checks every rule.
    ///
    /// # Errors
    /// `Invalid` with the field and the rule: an interval, a cron line, a time zone or a moment that cannot be; a start
    /// after the end; a job that breaks a rule of its own, that is tracked, that names a moment (`run_at`, `expires_at`)
    /// or that has a unique key, for each tick has one of its own.
    pub fn check(&self) -> Result<()> {
        check_name("schedule.name", &self.name)?;
        self.check_rest().map_err(|error| self.told_of(error))
    }

    /// An error that says which schedule it is about.
    pub(crate) fn told_of(&self, error: Error) -> Error {
        error.about(format_args!("schedule {}", quoted(&self.name)))
    }

    fn check_rest(&self) -> Result<()> {
        match &self.trigger {
            Trigger::Every { interval_us } => {
                let interval = Duration::from_micros(interval_us.unsigned_abs());
                if interval < Self::MIN_INTERVAL {
                    return Err(Error::invalid("every", "must be 10 ms or longer"));
                }
                check_duration("every", interval)?;
            }
            Trigger::Cron { line, time_zone } => drop(calendar::Calendar::read(line, time_zone)?),
            Trigger::At { .. } => {}
        }
        if self.stray_zone {
            return Err(Error::invalid("time_zone", "must not be set but for a cron line"));
        }
        if let (Some(starts_at), Some(ends_at)) = (self.starts_at, self.ends_at)
            && ends_at < starts_at
        {
            return Err(Error::invalid("ends_at", "must not be before starts_at"));
        }
        let nothing_before = self.starts_at.unwrap_or(Timestamp::EPOCH);
        if self.timetable(nothing_before)?.first(nothing_before).is_none() {
            let field = match (&self.trigger, self.ends_at) {
                (_, Some(_)) => "ends_at",
                (Trigger::At { .. }, None) => "at",
                (_, None) => "starts_at",
            };
            return Err(Error::invalid(field, "must leave at least one tick between the start, or 1970, and the end"));
        }
        if let Missed::All(most) = self.missed
            && !(1..=Self::MAX_MISSED).contains(&most)
        {
            return Err(Error::invalid("missed", format_args!("must be from 1 to {}", Self::MAX_MISSED)));
        }
        check_duration("grace", self.grace.unwrap_or_default())?;
        check_duration("jitter", self.jitter)?;
        template::check(&self.job)
    }

    fn timetable(&self, anchor: Timestamp) -> Result<Timetable> {
        Timetable::of(self, anchor, None)
    }

    /// The next `count` ticks after a moment, without jitter; fewer if there are no more. Those of an interval that does
    /// not say when it starts are reckoned from that moment.
    ///
    /// # Errors
    /// Those of [`check`](Schedule::check); `Invalid` if the count is not from 1 to
    /// [`MAX_PREVIEW`](Schedule::MAX_PREVIEW).
    pub fn preview(&self, from: Timestamp, count: usize) -> Result<Vec<Timestamp>> {
        self.check()?;
        self.ticks_after(from, from, count)
    }

    /// The next ticks after a moment, those of an interval reckoned from `anchor`.
    pub(crate) fn ticks_after(&self, anchor: Timestamp, from: Timestamp, count: usize) -> Result<Vec<Timestamp>> {
        if !(1..=Self::MAX_PREVIEW).contains(&count) {
            return Err(Error::invalid("count", format_args!("must be from 1 to {}", Self::MAX_PREVIEW)));
        }
        let timetable = self.timetable(anchor)?;
        let ticks = std::iter::successors(timetable.next_after(from), |tick| timetable.next_after(*tick));
        Ok(ticks.take(count).collect())
    }

    /// The ticks from one moment to before another.
    pub(crate) fn ticks_between(
        &self,
        anchor: Timestamp,
        range: &std::ops::Range<Timestamp>,
    ) -> Result<Vec<Timestamp>> {
        let timetable = self.timetable(anchor)?;
        // The first moment of the range may be a tick itself, even if it is the first of all.
        let first = if range.start == Timestamp::EPOCH {
            timetable.next_after(range.start)
        } else {
            timetable.next_after(range.start.saturating_sub(Duration::from_micros(1)))
        };
        let ticks = std::iter::successors(first, |tick| timetable.next_after(*tick));
        let ticks: Vec<Timestamp> = ticks.take_while(|tick| *tick < range.end).take(Self::MAX_BACKFILL + 1).collect();
        if ticks.len() > Self::MAX_BACKFILL {
            let rule = format!("must hold no more than {} ticks", Self::MAX_BACKFILL);
            return Err(Error::invalid("range", rule));
        }
        Ok(ticks)
    }

    /// What is stored of it, but for its name and its job.
    pub(crate) fn definition(&self) -> Definition {
        Definition {
            trigger: self.trigger.clone(),
            starts_at: self.starts_at,
            ends_at: self.ends_at,
            missed: self.missed,
            grace_us: self.grace.map(micros),
            overlap: self.overlap,
            jitter_us: micros(self.jitter),
        }
    }
}

/// Its name, the kind of its job, and what is said of its ticks; not the job's payload.
impl Serialize for Schedule {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Head<'a> {
            name: &'a str,
            kind: &'a str,
            #[serde(flatten)]
            definition: Definition,
        }
        Head { name: &self.name, kind: self.kind(), definition: self.definition() }.serialize(serializer)
    }
}

/// A schedule as it is stored, but for its name and its job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definition {
    #[serde(flatten)]
    trigger: Trigger,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    starts_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends_at: Option<Timestamp>,
    #[serde(default)]
    missed: Missed,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grace_us: Option<i64>,
    #[serde(default)]
    overlap: Overlap,
    #[serde(default)]
    jitter_us: i64,
}

impl Definition {
    /// The schedule that this defines.
    pub(crate) fn into_schedule(self, name: String, job: NewJob) -> Schedule {
        let duration = |us: i64| Duration::from_micros(us.unsigned_abs());
        Schedule {
            name,
            trigger: self.trigger,
            job,
            starts_at: self.starts_at,
            ends_at: self.ends_at,
            missed: self.missed,
            grace: self.grace_us.map(duration),
            overlap: self.overlap,
            jitter: duration(self.jitter_us),
            stray_zone: false,
        }
    }

    /// Whether both tick at the same moments, reckoned from the same anchor.
    pub(crate) fn ticks_like(&self, other: &Self) -> bool {
        let of = |it: &Self| (it.trigger.clone(), it.starts_at, it.ends_at, it.jitter_us);
        of(self) == of(other)
    }

    /// In what another definition differs from this one, for people to read.
    pub(crate) fn changes_to(&self, new: &Self) -> Vec<String> {
        let trigger = (self.trigger != new.trigger).then(|| format!("{} is {} now", self.trigger, new.trigger));
        let others = [
            ("starts_at", self.starts_at != new.starts_at),
            ("ends_at", self.ends_at != new.ends_at),
            ("missed", self.missed != new.missed),
            ("grace", self.grace_us != new.grace_us),
            ("overlap", self.overlap != new.overlap),
            ("jitter", self.jitter_us != new.jitter_us),
        ];
        let others = others.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned());
        trigger.into_iter().chain(others).collect()
    }
}

/// A stored schedule's timetable and the rest of its definition, ready to be used in a turn.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) timetable: Timetable,
    pub(crate) missed: Missed,
    pub(crate) grace: Option<Duration>,
    pub(crate) overlap: Overlap,
    pub(crate) job: NewJob,
}

impl Ready {
    pub(crate) fn of(schedule: Schedule, anchor: Timestamp, id: ScheduleId) -> Result<Self> {
        Ok(Self {
            timetable: Timetable::of(&schedule, anchor, Some(id))?,
            missed: schedule.missed,
            grace: schedule.grace,
            overlap: schedule.overlap,
            job: schedule.job,
        })
    }
}
