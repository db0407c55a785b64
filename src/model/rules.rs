//! Rules that many fields share.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::{Error, Result};

/// The longest name: kind, queue, tag, user, agent. In bytes.
pub(crate) const MAX_NAME_BYTES: usize = 128;
/// The longest key, in bytes.
pub(crate) const MAX_KEY_BYTES: usize = 1024;
/// The longest length of time: a hundred years.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Every length of time that is not too long.
pub(crate) const ANY_TIME: RangeInclusive<Duration> = Duration::ZERO..=MAX_DURATION;

/// The queue of the engine's own jobs.
pub(crate) const SYSTEM_QUEUE: &str = "system";
/// What the names of the engine's own kinds begin with.
pub(crate) const OWN_KINDS: &str = "jobmill.";

/// How many characters of a text are shown in a message.
const SHOWN_MAX: usize = 60;

/// What a caller gave, for a message that tells what is wrong with it: shortened if it is long.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() {
        shown.push('\u{2026}');
    }
    format!("{shown:?}")
}

/// The rule for every name: 1 to 128 bytes, no control characters.
pub(crate) fn check_name(field: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let rule = format!("must be 1 to {} bytes without control characters", MAX_NAME_BYTES);
        return Err(Error::invalid(field, rule));
    }
    Ok(())
}

/// The rule for the kinds that an application may name: those that begin with `jobmill.` are the engine's own.
pub(crate) fn check_kind(kind: &str) -> Result<()> {
    check_name("kind", kind)?;
    if kind.starts_with(OWN_KINDS) {
        return Err(Error::invalid("kind", format_args!("must not begin with {OWN_KINDS}, which is the engine's own")));
    }
    Ok(())
}

/// The rule for the queues that an application may name: `system` is the engine's own.
pub(crate) fn check_queue(queue: &str) -> Result<()> {
    check_name("queue", queue)?;
    if queue == SYSTEM_QUEUE {
        return Err(Error::invalid("queue", format_args!("must not be {SYSTEM_QUEUE}, which is the engine's own")));
    }
    Ok(())
}

pub(crate) fn check_size(field: &str, bytes: usize, max: usize) -> Result<()> {
    if bytes > max {
        return Err(Error::invalid(field, format_args!("must be no longer than {max} bytes, is {bytes}")));
    }
    Ok(())
}

/// Checks a number that a setting may be within.
pub(crate) fn check_count(field: &str, count: u64, bounds: &RangeInclusive<u64>) -> Result<()> {
    if bounds.contains(&count) {
        return Ok(());
    }
    Err(Error::invalid(field, format_args!("must be from {} to {}", bounds.start(), bounds.end())))
}

/// Checks a time that a setting may be within.
pub(crate) fn check_time(field: &str, time: Duration, bounds: &RangeInclusive<Duration>) -> Result<()> {
    if bounds.contains(&time) {
        return Ok(());
    }
    Err(Error::invalid(field, format_args!("must be from {} to {}", length(*bounds.start()), length(*bounds.end()))))
}

/// A length of time as a person says it, long ones in days.
fn length(time: Duration) -> String {
    const DAY_S: u64 = 86_400;
    match (time, time.as_secs() / DAY_S) {
        (MAX_DURATION, _) => "100 years".to_owned(),
        (_, 0) => format!("{time:?}"),
        (_, 1) => "a day".to_owned(),
        (_, days) => format!("{days} days"),
    }
}

pub(crate) fn check_duration(field: &str, duration: Duration) -> Result<()> {
    if !ANY_TIME.contains(&duration) {
        return Err(Error::invalid(field, "must be no longer than 100 years"));
    }
    Ok(())
}
