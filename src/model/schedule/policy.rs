//! What becomes of ticks that come late or while the job of the last one is still under way.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::schedule::timetable::Timetable;
use crate::model::time::Timestamp;
use crate::model::words::words;

/// How late a tick may be unless the schedule says otherwise, if late ones are skipped.
const SKIP_GRACE: Duration = Duration::from_secs(10);

/// What becomes of ticks whose time came while no engine ran, or while the machine slept. Those that are not run are
/// recorded ([`TickOutcome::Missed`](crate::TickOutcome::Missed)). A tick that is later than the schedule's
/// [grace](crate::Schedule::grace) is not run in any case, be it that it has waited for another job
/// ([`Overlap::Queue`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Missed {
    /// None is made up for. The newest runs all the same if it is hardly late: by no more than the grace, 10 s unless the
    /// schedule says otherwise.
    Skip,
    /// The newest runs, however many were missed.
    #[default]
    One,
    /// The newest ones run, so many of them, from 1 to [`Schedule::MAX_MISSED`](crate::Schedule::MAX_MISSED); the oldest
    /// of them first.
    All(u32),
}

/// What becomes of a tick while the job of the last one has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Overlap {
    /// Its job is enqueued all the same.
    #[default]
    Allow,
    /// It is skipped, and recorded.
    Skip,
    /// It waits for the end of that job. One tick waits at most; those that come meanwhile are skipped, and recorded. One
    /// that has waited for longer than the schedule's [grace](crate::Schedule::grace) is missed, and the next that comes
    /// waits in its place.
    Queue,
}

impl Overlap {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Skip, Self::Queue];

    /// The choice as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Skip => "skip",
            Self::Queue => "queue",
        }
    }
}

words!(Overlap, "overlap");

/// As `skip`, `one` or, with how many run, `all 3`.
impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip => f.write_str("skip"),
            Self::One => f.write_str("one"),
            Self::All(count) => write!(f, "all {count}"),
        }
    }
}

impl FromStr for Missed {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = || text.strip_prefix("all ")?.parse().ok().map(Self::All);
        match text {
            "skip" => Ok(Self::Skip),
            "one" => Ok(Self::One),
            _ => all().ok_or_else(|| Error::invalid("missed", "must be skip, one, or all and a number")),
        }
    }
}

impl Missed {
    /// How late a tick may be, of a schedule that says this of it. None: however late.
    pub(crate) fn grace(self, said: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Skip => Some(said.unwrap_or(SKIP_GRACE)),
            Self::One | Self::All(_) => said,
        }
    }
}

/// Ticks that are not run: all from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// How many these are. None: more than were counted.
    pub(crate) count: Option<u64>,
}

/// What is to be done about a schedule that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Comes before those that run.
    pub(crate) lost: Option<Lost>,
    /// The ticks that run, the oldest first.
    pub(crate) run: Vec<Timestamp>,
    /// The tick that is due next, which may have come as well if there were more than were asked for.
    pub(crate) next: Option<Timestamp>,
}

/// Decides about all ticks from `first`, which is due, to now. At most `limit` of them run, the others with the next plan.
pub(crate) fn plan(
    timetable: &Timetable,
    missed: Missed,
    grace: Option<Duration>,
    first: Timestamp,
    now: Timestamp,
    limit: usize,
) -> Plan {
    let newest = timetable.newest_due(first, now);
    let most = match missed {
        Missed::Skip | Missed::One => 1,
        Missed::All(most) => most,
    };
    let grace = missed.grace(grace);
    let is_in_time = |tick: Timestamp| grace.is_none_or(|grace| now.since(timetable.due_at(tick)) <= grace);
    let mut run = Vec::new();
    let mut older = Some(newest);
    while let Some(tick) = older.filter(|tick| run.len() < most as usize && is_in_time(*tick)) {
        run.push(tick);
        older = timetable.newest_before(tick, first);
    }
    run.reverse();
    let lost = older.map(|to| Lost { from: first, to, count: timetable.count(first, to) });
    let next = match run.get(limit) {
        Some(next) => Some(*next),
        None => timetable.next_after(newest),
    };
    run.truncate(limit);
    Plan { lost, run, next }
}
