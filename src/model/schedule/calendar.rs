//! When a cron line comes in a time zone: how wall clock times become moments where clocks are set forward or back.
//!
//! A time of day that the clock leaves out comes at the first moment after the gap, once; one that the clock shows twice
//! comes the first time. What runs in every hour, or in every so many, is not bound to a time of day: it comes whenever
//! the clock shows a time that it names, and nothing makes up for those that the clock leaves out. What runs in every
//! minute of certain hours goes on while the clock shows them again.

use std::fmt;
use std::sync::LazyLock;

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone, TimeZoneDatabase};

use crate::error::{Error, Result};
use crate::model::rules::quoted;
use crate::model::schedule::cron::CronLine;
use crate::model::time::Timestamp;

/// The zones that come with the program: the same for every process on a file, whatever the machine has installed.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The longest name of a zone, in bytes.
const MAX_ZONE_BYTES: usize = 64;

/// A cron line in a time zone.
#[derive(Clone)]
pub(super) struct Calendar {
    line: CronLine,
    zone: TimeZone,
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calendar").field("line", &self.line).finish_non_exhaustive()
    }
}

/// Finds a zone by its IANA name.
pub(super) fn zone(name: &str) -> Result<TimeZone> {
    let unknown = || {
        let rule = "must be an IANA name, as Europe/Paris or UTC";
        Error::invalid("time_zone", format_args!("{rule}, not {}", quoted(name)))
    };
    if name.len() > MAX_ZONE_BYTES {
        return Err(unknown());
    }
    // The library knows a name for no zone at all, whose clock shows UTC.
    ZONES.get(name).ok().filter(|zone| !zone.is_unknown()).ok_or_else(unknown)
}

impl Calendar {
    pub(super) fn read(line: &str, zone_name: &str) -> Result<Self> {
        Ok(Self { line: CronLine::read(line)?, zone: zone(zone_name)? })
    }

    /// The first tick after a moment. None if there is none as far as time reaches.
    pub(super) fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let mut here = jiff::Timestamp::from_second(after.as_micros().div_euclid(1_000_000)).ok()?;
        let mut offset = self.zone.to_offset(here);
        let (mut from, mut inclusive) = (offset.to_datetime(here), false);
        let repeats = self.line.is_hour_open || self.line.is_minute_open;
        if !repeats && let Some(shown_until) = self.shown_before(here, offset).filter(|until| *until > from) {
            (from, inclusive) = (shown_until, true);
        }
        // Time goes on in stretches of one offset each. Within one, wall clock and time run alike.
        let mut next = self.line.next(from, inclusive)?;
        loop {
            let Some(change) = self.zone.following(here).next() else {
                return moment(next, offset);
            };
            here = change.timestamp();
            let end = offset.to_datetime(here);
            if next < end {
                return moment(next, offset);
            }
            offset = change.offset();
            let start = offset.to_datetime(here);
            if start > end && next < start && !self.line.is_hour_open {
                return micros(here);
            }
            let goes_on_at = if repeats { start } else { start.max(end) };
            if goes_on_at < end || goes_on_at > next {
                next = self.line.next(goes_on_at, true)?;
            }
        }
    }

    /// The last tick before a moment: what `next_after` gives, the other way round. None if there is none since 1970.
    pub(super) fn last_before(&self, before: Timestamp) -> Option<Timestamp> {
        let second = before.as_micros().saturating_add(999_999).div_euclid(1_000_000);
        let mut until = jiff::Timestamp::from_second(second).ok()?;
        let just_before = |at: jiff::Timestamp| at.as_second().checked_sub(1).map(jiff::Timestamp::from_second);
        let mut offset = self.zone.to_offset(just_before(until)?.ok()?);
        let repeats = self.line.is_hour_open || self.line.is_minute_open;
        let mut last = self.line.last(offset.to_datetime(until))?;
        loop {
            let Some(change) = self.zone.preceding(until).next() else {
                return moment(last, offset);
            };
            // The stretch of this offset began then; what the clock showed before it came to an end.
            until = change.timestamp();
            let offset_before = self.zone.to_offset(just_before(until)?.ok()?);
            let (start, end) = (offset.to_datetime(until), offset_before.to_datetime(until));
            if last >= if repeats { start } else { start.max(end) } {
                return moment(last, offset);
            }
            if start > end && last >= end && !self.line.is_hour_open {
                return micros(until);
            }
            if start < end || last >= end {
                last = self.line.last(end)?;
            }
            offset = offset_before;
        }
    }

    /// Until when the clock has shown before what it shows now, if it has been set back at the beginning of the stretch
    /// that `here` lies in.
    fn shown_before(&self, here: jiff::Timestamp, offset: Offset) -> Option<DateTime> {
        let soon = here.as_second().checked_add(1)?;
        let change = self.zone.preceding(jiff::Timestamp::from_second(soon).ok()?).next()?.timestamp();
        let before = jiff::Timestamp::from_second(change.as_second().checked_sub(1)?).ok()?;
        let (before, now) = (self.zone.to_offset(before), offset);
        (before.seconds() > now.seconds()).then(|| before.to_datetime(change))
    }
}

/// The moment at which a clock with this offset shows a time.
fn moment(shown: DateTime, offset: Offset) -> Option<Timestamp> {
    micros(offset.to_timestamp(shown).ok()?)
}

fn micros(at: jiff::Timestamp) -> Option<Timestamp> {
    let micros = at.as_microsecond();
    (0..=Timestamp::MAX.as_micros()).contains(&micros).then(|| Timestamp::from_micros(micros))
}
