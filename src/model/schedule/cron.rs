//! Cron lines: how they are read, and when they match on a calendar without time zones. The only file that knows the
//! library that does it.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;

use crate::error::{Error, Result};
use crate::model::rules::quoted;

/// The longest cron line, in bytes.
pub(super) const MAX_BYTES: usize = 256;
/// What the fields are called, of a line with seconds, and what may stand there.
const FIELDS: [(&str, &str); 6] = [
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of month", "1 to 31, L for the last one, or as 15W for the weekday nearest to it"),
    ("month", "1 to 12 or JAN to DEC"),
    ("day of week", "0 to 7 or SUN to SAT, or as 5L and 5#2 for the last and the second Friday"),
];
/// What may stand in each field besides.
const MARKS: &str = "* stands for all, and lists, ranges and steps are as 1,2 and 1-5 and */5";
/// The lines that have a name.
const NICKNAMES: &str = "@yearly, @annually, @monthly, @weekly, @daily and @hourly";

/// A cron line that has been read.
#[derive(Clone, Debug)]
pub(super) struct CronLine {
    cron: Cron,
    /// It runs in every hour that comes, or in every so many.
    pub(super) is_hour_open: bool,
    /// It runs in every minute of its hours, or in every so many.
    pub(super) is_minute_open: bool,
}

impl CronLine {
    /// Reads a line of five fields, or six with seconds first.
    pub(super) fn read(text: &str) -> Result<Self> {
        if text.len() > MAX_BYTES || !text.is_ascii() {
            let rule = format_args!("must be ASCII text of at most {MAX_BYTES} bytes: {}", quoted(text));
            return Err(Error::invalid("cron", rule));
        }
        // The library takes a list of nothing for a field, and then looks for a match where there is none.
        if text.split_whitespace().any(|field| field.split(',').any(str::is_empty)) {
            let rule = format_args!("must name something before and after each comma: {}", quoted(text));
            return Err(Error::invalid("cron", rule));
        }
        let cron = parse(text).ok_or_else(|| Error::invalid("cron", problem(text)))?;
        // Nicknames such as @daily are spelled out by now.
        let fields: Vec<&str> = cron.as_str().split_whitespace().collect();
        let [minute, hour] = if fields.len() == 5 { [fields[0], fields[1]] } else { [fields[1], fields[2]] };
        let line = Self {
            is_hour_open: hour.contains('*') || hour == "0-23",
            is_minute_open: minute.contains('*') || minute == "0-59",
            cron,
        };
        // The calendar repeats itself after 400 years; whatever does not come within the years that a search goes
        // through never does.
        if line.next(DateTime::constant(1970, 1, 1, 0, 0, 0, 0), true).is_none() {
            return Err(Error::invalid("cron", format_args!("never comes: no such day exists: {}", quoted(text))));
        }
        Ok(line)
    }

    /// The first match from `from` on, or after it. `from` is a whole second.
    pub(super) fn next(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        self.cron.find_next_occurrence(&from, inclusive).ok()
    }

    /// The last match before `until`, which is a whole second.
    pub(super) fn last(&self, until: DateTime) -> Option<DateTime> {
        self.cron.find_previous_occurrence(&until, false).ok()
    }
}

/// The library's own words are about its parts and its options, so they are not passed on.
fn parse(text: &str) -> Option<Cron> {
    CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build().parse(text).ok()
}

/// What is wrong with a line that cannot be read.
fn problem(text: &str) -> String {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let line = quoted(text);
    if let Some(nickname) = fields.first().filter(|first| first.starts_with('@')) {
        return match nickname.to_ascii_lowercase().as_str() {
            "@reboot" => {
                format!("must name times, and {line} names none: enqueue a job after the engine's start instead")
            }
            "@every" => format!("must name times of a clock, not {line}: use Schedule::every instead"),
            _ => format!("must be one of {NICKNAMES}, or fields, not {line}"),
        };
    }
    let known = match fields.len() {
        5 => &FIELDS[1..],
        6 => &FIELDS[..],
        count => {
            let rule = "must have five fields, minute to day of week, or six with seconds first";
            return format!("{rule}, and has {count}: {line}");
        }
    };
    // Each field is tried alone, for it is mostly one of them that makes a line unreadable.
    let faulty = fields.iter().zip(known).enumerate().find(|(at, (field, _))| {
        let mut alone = vec!["*"; fields.len()];
        alone[*at] = field;
        parse(&alone.join(" ")).is_none()
    });
    match faulty {
        Some((_, (field, (name, allowed)))) => {
            format!("the {name} cannot be read: {} in {line}; it may be {allowed}; {MARKS}", quoted(field))
        }
        None => format!("cannot be read: {line}"),
    }
}
