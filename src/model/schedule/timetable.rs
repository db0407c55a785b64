//! The ticks of one schedule: which moment follows which, and how jitter delays them.

use std::cell::Cell;
use std::time::Duration;

use crate::error::Result;
use crate::model::id::ScheduleId;
use crate::model::schedule::calendar::Calendar;
use crate::model::schedule::{Schedule, Trigger};
use crate::model::time::Timestamp;

/// How many ticks are counted one by one.
pub(crate) const COUNT_MAX: u64 = 1000;

/// The ticks of one schedule. Its nominal ticks depend on the definition and the anchor alone: not on when the schedule
/// was looked at, nor on jitter.
#[derive(Clone, Debug)]
pub(crate) struct Timetable {
    rhythm: Rhythm,
    starts_at: Option<Timestamp>,
    ends_at: Option<Timestamp>,
    jitter_us: i64,
    /// What the jitter depends on besides the tick.
    seed: u64,
    /// How many moments were looked up in a calendar.
    reckoned: Cell<usize>,
}

#[derive(Clone, Debug)]
enum Rhythm {
    Every { anchor_us: i64, interval_us: i64 },
    Cron(Box<Calendar>),
    Once(Timestamp),
}

impl Timetable {
    /// The ticks of a definition that has been checked. `anchor` is what an interval is reckoned from if the definition
    /// does not say when it starts.
    pub(crate) fn of(schedule: &Schedule, anchor: Timestamp, id: Option<ScheduleId>) -> Result<Self> {
        let rhythm = match &schedule.trigger {
            Trigger::Every { interval_us } => Rhythm::Every {
                anchor_us: schedule.starts_at.unwrap_or(anchor).as_micros(),
                interval_us: (*interval_us).max(1),
            },
            Trigger::Cron { line, time_zone } => Rhythm::Cron(Box::new(Calendar::read(line, time_zone)?)),
            Trigger::At { at } => Rhythm::Once(*at),
        };
        Ok(Self {
            rhythm,
            starts_at: schedule.starts_at,
            ends_at: schedule.ends_at,
            jitter_us: micros(schedule.jitter),
            seed: id.map_or(0, |id| id.raw().cast_unsigned()),
            reckoned: Cell::new(0),
        })
    }

    /// How many moments were looked up in a calendar so far: the work that it was. Intervals are only reckoned.
    pub(crate) fn reckoned(&self) -> usize {
        self.reckoned.get()
    }

    /// The first tick after a moment.
    pub(crate) fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        // The first moment of all may be a tick itself.
        let after = match self.starts_at {
            Some(starts_at) if starts_at > after => starts_at.saturating_sub(Duration::from_micros(1)),
            _ => after,
        };
        let next = match &self.rhythm {
            Rhythm::Every { anchor_us, interval_us } => {
                let steps = (after.as_micros() - anchor_us).div_euclid(*interval_us) + 1;
                let micros = steps.checked_mul(*interval_us)?.checked_add(*anchor_us)?;
                (0..=Timestamp::MAX.as_micros()).contains(&micros).then(|| Timestamp::from_micros(micros))?
            }
            Rhythm::Cron(calendar) => {
                self.reckoned.set(self.reckoned.get() + 1);
                calendar.next_after(after)?
            }
            Rhythm::Once(at) => Some(*at).filter(|at| *at > after)?,
        };
        self.ends_at.is_none_or(|ends_at| next <= ends_at).then_some(next)
    }

    /// Whether this moment is a tick.
    pub(crate) fn is_tick(&self, at: Timestamp) -> bool {
        at > Timestamp::EPOCH && self.next_after(at.saturating_sub(Duration::from_micros(1))) == Some(at)
    }

    /// The first tick of a schedule that begins at `now`. A moment that is over already is a tick that was missed.
    pub(crate) fn first(&self, now: Timestamp) -> Option<Timestamp> {
        match self.rhythm {
            Rhythm::Once(_) => self.next_after(Timestamp::EPOCH),
            _ => self.next_after(now),
        }
    }

    /// The last tick before a moment, if it is not before `floor`, which is a tick.
    pub(crate) fn newest_before(&self, before: Timestamp, floor: Timestamp) -> Option<Timestamp> {
        if before <= floor {
            return None;
        }
        let before = match self.ends_at {
            Some(ends_at) => before.min(ends_at.saturating_add(Duration::from_micros(1))),
            None => before,
        };
        match &self.rhythm {
            Rhythm::Once(at) => Some(*at).filter(|at| *at < before),
            Rhythm::Every { anchor_us, interval_us } => {
                let steps = (before.as_micros() - 1 - anchor_us).div_euclid(*interval_us);
                Some(Timestamp::from_micros(anchor_us + steps * interval_us)).filter(|tick| *tick >= floor)
            }
            Rhythm::Cron(calendar) => {
                self.reckoned.set(self.reckoned.get() + 1);
                calendar.last_before(before).filter(|tick| *tick >= floor)
            }
        }
    }

    /// The last tick that is due at `now`, of those from `first` on, which is.
    pub(crate) fn newest_due(&self, first: Timestamp, now: Timestamp) -> Timestamp {
        let come = self.newest_before(now.saturating_add(Duration::from_micros(1)), first).unwrap_or(first);
        // No tick is delayed beyond the next one, so it can only be the last that has come and is not due.
        if self.due_at(come) <= now { come } else { self.newest_before(come, first).unwrap_or(first) }
    }

    /// When a tick is due: its time, and some delay if the schedule has jitter. The same for everybody who asks, and before
    /// the next tick.
    pub(crate) fn due_at(&self, tick: Timestamp) -> Timestamp {
        if self.jitter_us == 0 {
            return tick;
        }
        let room_us = self.next_after(tick).map_or(i64::MAX, |next| next.as_micros() - tick.as_micros() - 1);
        let width = self.jitter_us.min(room_us).cast_unsigned() + 1;
        let delay_us = scrambled(self.seed ^ tick.as_micros().cast_unsigned().rotate_left(32)) % width;
        tick.saturating_add(Duration::from_micros(delay_us))
    }

    /// How many ticks there are from one to another. None: more than are counted one by one.
    pub(crate) fn count(&self, from: Timestamp, to: Timestamp) -> Option<u64> {
        if let Rhythm::Every { interval_us, .. } = &self.rhythm {
            return u64::try_from((to.as_micros() - from.as_micros()) / interval_us + 1).ok();
        }
        let mut tick = from;
        for count in 1..=COUNT_MAX {
            match self.next_after(tick) {
                Some(next) if next <= to => tick = next,
                _ => return Some(count),
            }
        }
        None
    }
}

/// A number that looks like chance and is the same each time (the finalizer of SplitMix64).
fn scrambled(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
