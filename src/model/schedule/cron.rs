//! Cron lines: how they are read, and when they match on a calendar without time zones. The only file that knows the
//! library that does it.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;

use crate::error::{Error, Result};

/// The longest cron line, in bytes.
pub(super) const MAX_BYTES: usize = 256;
/// What the fields are called, of a line with seconds.
const FIELDS: [&str; 6] = ["second", "minute", "hour", "day of month", "month", "day of week"];

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
            return Err(Error::invalid("cron", format_args!("must be ASCII text of at most {MAX_BYTES} bytes")));
        }
        // The library takes a list of nothing for a field, and then looks for a match where there is none.
        if text.split_whitespace().any(|field| field.split(',').any(str::is_empty)) {
            return Err(Error::invalid("cron", "must name something before and after each comma"));
        }
        let cron = parse(text).map_err(|problem| match faulty_field(text) {
            Some((field, problem)) => Error::invalid("cron", format_args!("the {field} cannot be read: {problem}")),
            None => {
                let rule = "must have five fields, minute to day of week, or six with seconds first";
                Error::invalid("cron", format_args!("{rule}: {problem}"))
            }
        })?;
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
            return Err(Error::invalid("cron", "never comes: no such day exists"));
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

fn parse(text: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
    parser.parse(text).map_err(|error| error.to_string().trim_end_matches('.').to_owned())
}

/// Which field makes a line unreadable, if it is one of them alone, and why.
fn faulty_field(text: &str) -> Option<(&'static str, String)> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let names = match fields.len() {
        5 => &FIELDS[1..],
        6 => &FIELDS[..],
        _ => return None,
    };
    fields.iter().zip(names).enumerate().find_map(|(at, (field, name))| {
        let mut alone = vec!["*"; fields.len()];
        alone[at] = field;
        parse(&alone.join(" ")).err().map(|problem| (*name, problem))
    })
}
