//! Tests of ticks where clocks are set forward and back, and of late ones: tables, and comparisons with a search that
//! looks at every minute.

use std::collections::HashSet;
use std::time::Duration;

use jiff::civil::DateTime;

use crate::model::id::ScheduleId;
use crate::model::new_job::NewJob;
use crate::model::schedule::Schedule;
use crate::model::schedule::calendar::{Calendar, zone};
use crate::model::schedule::cron::CronLine;
use crate::model::schedule::policy::{Lost, Missed, Plan, plan};
use crate::model::schedule::timetable::Timetable;
use crate::model::time::Timestamp;

fn at(text: &str) -> Timestamp {
    let text = if text.contains('T') { text.to_owned() } else { format!("{text}T00:00Z") };
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn job() -> NewJob {
    NewJob::json("report", &())
}

/// A line in a zone, a moment, and the ticks that follow it.
type Row = (&'static str, &'static str, &'static [&'static str]);

#[track_caller]
fn check(zone: &str, rows: &[Row]) {
    for (line, from, expected) in rows {
        let schedule = Schedule::cron("test", *line, job()).time_zone(zone);
        let ticks = schedule.preview(at(from), expected.len()).unwrap_or_else(|error| panic!("{line}: {error}"));
        let expected: Vec<Timestamp> = expected.iter().map(|tick| at(tick)).collect();
        assert_eq!(ticks, expected, "{line} in {zone}: {ticks:#?}");
    }
}

#[test]
fn a_time_that_falls_into_a_gap_comes_once_at_its_end() {
    check(
        "Europe/Berlin", // On 29 March 2026 two o'clock becomes three.
        &[
            ("30 2 * * *", "2026-03-28", &["2026-03-28T01:30Z", "2026-03-29T01:00Z", "2026-03-30T00:30Z"]),
            ("0,30 2 * * *", "2026-03-28T01:10Z", &["2026-03-28T01:30Z", "2026-03-29T01:00Z", "2026-03-30T00:00Z"]),
            ("0 3 * * *", "2026-03-29", &["2026-03-29T01:00Z", "2026-03-30T01:00Z"]),
            ("0 2,3 * * *", "2026-03-29", &["2026-03-29T01:00Z", "2026-03-30T00:00Z", "2026-03-30T01:00Z"]),
            ("*/30 2 * * *", "2026-03-28T23:30Z", &["2026-03-29T01:00Z", "2026-03-30T00:00Z", "2026-03-30T00:30Z"]),
            ("30 2 * * SUN", "2026-03-28", &["2026-03-29T01:00Z", "2026-04-05T00:30Z"]),
            ("30 15 2 * * *", "2026-03-29", &["2026-03-29T01:00Z", "2026-03-30T00:15:30Z"]),
            ("0 1 * * *", "2026-03-28", &["2026-03-29T00:00Z", "2026-03-29T23:00Z"]),
        ],
    );
    check("America/New_York", &[("30 2 * * *", "2026-03-07T12:00Z", &["2026-03-08T07:00Z", "2026-03-09T06:30Z"])]);
    check(
        "Australia/Lord_Howe", // Half an hour: on 4 October 2026 two o'clock becomes half past.
        &[
            ("15 2 * * *", "2026-10-02T15:40Z", &["2026-10-02T15:45Z", "2026-10-03T15:30Z", "2026-10-04T15:15Z"]),
            ("45 2 * * *", "2026-10-03T12:00Z", &["2026-10-03T15:45Z", "2026-10-04T15:45Z"]),
            ("0 2,3 * * *", "2026-10-03T12:00Z", &["2026-10-03T15:30Z", "2026-10-03T16:00Z"]),
        ],
    );
    check(
        "Africa/Casablanca", // Daylight saving time pauses for Ramadan.
        &[("30 2 * * *", "2026-03-21T12:00Z", &["2026-03-22T02:00Z", "2026-03-23T01:30Z"])],
    );
    check(
        "Asia/Beirut", // Midnight becomes one o'clock.
        &[
            ("0 0 * * *", "2026-03-28T12:00Z", &["2026-03-28T22:00Z", "2026-03-29T21:00Z"]),
            ("30 0 * * SUN", "2026-03-28T12:00Z", &["2026-03-28T22:00Z", "2026-04-04T21:30Z"]),
        ],
    );
    check("America/Sao_Paulo", &[("0 0 * * *", "2018-11-03T12:00Z", &["2018-11-04T03:00Z", "2018-11-05T02:00Z"])]);
    check(
        "Pacific/Apia", // There was no 30 December 2011.
        &[
            ("0 9 * * *", "2011-12-29T12:00Z", &["2011-12-29T19:00Z", "2011-12-30T10:00Z", "2011-12-30T19:00Z"]),
            ("0 9 30 12 *", "2011-12-01", &["2011-12-30T10:00Z", "2012-12-29T19:00Z"]),
        ],
    );
}

#[test]
fn a_time_that_is_shown_twice_comes_the_first_time() {
    check(
        "Europe/Berlin", // On 25 October 2026 three o'clock becomes two.
        &[
            ("30 2 * * *", "2026-10-24T12:00Z", &["2026-10-25T00:30Z", "2026-10-26T01:30Z"]),
            ("0,30 2 * * *", "2026-10-24T12:00Z", &["2026-10-25T00:00Z", "2026-10-25T00:30Z", "2026-10-26T01:00Z"]),
            ("0 2,3 * * *", "2026-10-24T12:00Z", &["2026-10-25T00:00Z", "2026-10-25T02:00Z", "2026-10-26T01:00Z"]),
            ("30 2 * * *", "2026-10-25T00:30Z", &["2026-10-26T01:30Z"]),
            ("30 2 * * *", "2026-10-25T01:10Z", &["2026-10-26T01:30Z"]),
            ("30 2 * * *", "2026-10-25T01:00Z", &["2026-10-26T01:30Z"]),
            ("30 2 * * *", "2026-10-25T00:59:59.5Z", &["2026-10-26T01:30Z"]),
            (
                "*/20 30 2 * * *",
                "2026-10-25",
                &["2026-10-25T00:30Z", "2026-10-25T00:30:20Z", "2026-10-25T00:30:40Z", "2026-10-26T01:30Z"],
            ),
        ],
    );
    check("America/New_York", &[("30 1 * * *", "2026-10-31T12:00Z", &["2026-11-01T05:30Z", "2026-11-02T06:30Z"])]);
    check("Australia/Lord_Howe", &[("45 1 * * *", "2026-04-04T12:00Z", &["2026-04-04T14:45Z", "2026-04-05T15:15Z"])]);
    check("Africa/Casablanca", &[("30 2 * * *", "2026-02-14T12:00Z", &["2026-02-15T01:30Z", "2026-02-16T02:30Z"])]);
    check(
        "Asia/Beirut", // Midnight becomes eleven of the day before.
        &[
            ("30 23 * * *", "2026-10-24T12:00Z", &["2026-10-24T20:30Z", "2026-10-25T21:30Z"]),
            ("0 0 * * *", "2026-10-24T12:00Z", &["2026-10-24T22:00Z", "2026-10-25T22:00Z"]),
        ],
    );
}

#[test]
fn what_runs_all_the_time_runs_through_both() {
    check(
        "Europe/Berlin",
        &[
            ("*/30 * * * *", "2026-03-29T00:10Z", &["2026-03-29T00:30Z", "2026-03-29T01:00Z", "2026-03-29T01:30Z"]),
            ("30 * * * *", "2026-03-29", &["2026-03-29T00:30Z", "2026-03-29T01:30Z", "2026-03-29T02:30Z"]),
            ("30 * * * *", "2026-10-25", &["2026-10-25T00:30Z", "2026-10-25T01:30Z", "2026-10-25T02:30Z"]),
            ("30 0-23 * * *", "2026-10-25", &["2026-10-25T00:30Z", "2026-10-25T01:30Z", "2026-10-25T02:30Z"]),
            ("@hourly", "2026-10-25", &["2026-10-25T01:00Z", "2026-10-25T02:00Z"]),
            ("@hourly", "2026-03-29", &["2026-03-29T01:00Z", "2026-03-29T02:00Z"]),
            (
                "*/30 2 * * *",
                "2026-10-24T22:00Z",
                &[
                    "2026-10-25T00:00Z",
                    "2026-10-25T00:30Z",
                    "2026-10-25T01:00Z",
                    "2026-10-25T01:30Z",
                    "2026-10-26T01:00Z",
                ],
            ),
            (
                "* * * * * *",
                "2026-03-29T00:59:58Z",
                &["2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z", "2026-03-29T01:00:01Z"],
            ),
            (
                "* * * * * *",
                "2026-10-25T00:59:58Z",
                &["2026-10-25T00:59:59Z", "2026-10-25T01:00:00Z", "2026-10-25T01:00:01Z"],
            ),
        ],
    );
    check(
        "Australia/Lord_Howe",
        &[
            ("0 * * * *", "2026-10-03T14:00Z", &["2026-10-03T14:30Z", "2026-10-03T16:00Z"]),
            (
                "*/15 * * * *",
                "2026-04-04T14:31Z",
                &["2026-04-04T14:45Z", "2026-04-04T15:00Z", "2026-04-04T15:15Z", "2026-04-04T15:30Z"],
            ),
        ],
    );
    check(
        "Pacific/Apia",
        &[("0 * * * *", "2011-12-30T08:30Z", &["2011-12-30T09:00Z", "2011-12-30T10:00Z", "2011-12-30T11:00Z"])],
    );
}

#[test]
fn lines_mean_what_cron_means() {
    check(
        "UTC",
        &[
            ("@daily", "2026-01-01T12:00Z", &["2026-01-02", "2026-01-03"]),
            ("@weekly", "2026-01-01", &["2026-01-04", "2026-01-11"]),
            ("0 9 * * mon-fri", "2026-01-02", &["2026-01-02T09:00Z", "2026-01-05T09:00Z"]),
            ("0 0 * * 7", "2026-01-01", &["2026-01-04"]),
            ("0 0 L * *", "2026-01-01", &["2026-01-31", "2026-02-28", "2026-03-31"]),
            ("0 0 * * FRI#2", "2026-01-01", &["2026-01-09", "2026-02-13"]),
            ("0 0 * * FRIL", "2026-01-01", &["2026-01-30"]),
            ("0 0 15W * *", "2026-02-01", &["2026-02-16"]),
            // Either day is enough, or both are demanded.
            ("0 0 13 * FRI", "2026-02-01", &["2026-02-06", "2026-02-13", "2026-02-20"]),
            ("0 0 13 * +FRI", "2026-02-01", &["2026-02-13", "2026-03-13", "2026-11-13"]),
            ("0 0 29 2 *", "2026-01-01", &["2028-02-29", "2032-02-29"]),
            ("0 0 29 2 *", "2097-01-01", &["2104-02-29"]),
            ("0 0 29 2 +MON", "2026-01-01", &["2044-02-29", "2072-02-29"]),
            ("0 0 31 2 MON", "2026-01-01", &["2026-02-02", "2026-02-09"]),
            ("0 0 LW * *", "2026-01-01", &["2026-01-30", "2026-02-27"]),
            ("0 0 1W * *", "2026-08-01", &["2026-08-03", "2026-09-01"]),
            ("0 0 * * MON#5", "2026-01-01", &["2026-03-30", "2026-06-29"]),
            ("  0   0\t* * MON ", "2026-01-01", &["2026-01-05"]),
            ("@DAILY", "2026-01-01", &["2026-01-02"]),
            ("@annually", "2026-01-01", &["2027-01-01"]),
            ("59 59 23 31 12 *", "2026-01-01", &["2026-12-31T23:59:59Z"]),
            ("30 0 0 * * *", "2026-01-01T00:00:30Z", &["2026-01-02T00:00:30Z"]),
            ("0 0 1 1 *", "2254-06-01", &["2255-01-01"]),
        ],
    );
}

#[test]
fn nothing_comes_after_the_end_of_time() -> crate::error::Result<()> {
    let ticks = Schedule::cron("last", "@yearly", job()).preview(at("2253-06-01"), 5)?;
    assert_eq!(ticks, [at("2254-01-01"), at("2255-01-01")]);
    let ticks = Schedule::every("last", Duration::from_secs(1), job()).preview(Timestamp::MAX, 5)?;
    assert_eq!(ticks, []);
    Ok(())
}

/// Zones, with the year from which on their changes are looked at.
const ZONES: [(&str, &str); 20] = [
    ("Europe/Berlin", "2010-01-01"),
    ("America/New_York", "2010-01-01"),
    ("Australia/Lord_Howe", "2010-01-01"),
    ("Africa/Casablanca", "2010-01-01"),
    ("Asia/Beirut", "2010-01-01"),
    ("America/Sao_Paulo", "2010-01-01"),
    ("Pacific/Apia", "2010-01-01"),
    ("Asia/Kathmandu", "1980-01-01"), // a quarter of an hour, once
    ("Europe/Dublin", "2010-01-01"),
    ("Antarctica/Troll", "2010-01-01"), // two hours
    ("Asia/Pyongyang", "2010-01-01"),   // half an hour, once
    ("Africa/Cairo", "2010-01-01"),
    ("Pacific/Kwajalein", "1990-01-01"), // a day, once
    ("Antarctica/Casey", "2009-01-01"),  // three hours
    ("America/Caracas", "2000-01-01"),   // half an hour, there and back
    ("Europe/Moscow", "2010-06-01"),     // a change that stays
    ("America/Nuuk", "2022-06-01"),      // two changes that make one
    ("Asia/Gaza", "2010-01-01"),
    ("Europe/London", "1970-01-01"),
    ("Asia/Colombo", "1995-01-01"),
];

/// What the clock of a zone shows in each minute of a stretch.
struct Minute {
    at: Timestamp,
    shows: DateTime,
    /// It has shown that before.
    again: bool,
    /// The minutes that it leaves out before.
    leaves_out: Vec<DateTime>,
}

/// Looks at a clock in each minute of a stretch.
fn watch(zone_name: &str, from: Timestamp, until: Timestamp) -> Vec<Minute> {
    let zone = zone(zone_name).expect("a zone");
    let second = |at: Timestamp| at.as_micros() / 1_000_000;
    let shown = |second: i64| zone.to_datetime(jiff::Timestamp::from_second(second).expect("a moment"));
    let mut seen: HashSet<DateTime> = (1..=24 * 60).map(|minutes| shown(second(from) - 60 * minutes)).collect();
    let minutes = (second(from)..=second(until)).step_by(60).map(|now| {
        let minute = jiff::SignedDuration::from_mins(1);
        let shows = shown(now);
        let left_out = std::iter::successors(Some(shown(now - 60) + minute), |time| Some(*time + minute));
        Minute {
            at: Timestamp::from_micros(now * 1_000_000),
            shows,
            again: !seen.insert(shows),
            leaves_out: left_out.take_while(|time| *time < shows).collect(),
        }
    });
    minutes.skip(1).collect()
}

/// Every tick of a line, found by looking at each minute.
fn every_tick(line: &CronLine, minutes: &[Minute]) -> Vec<Timestamp> {
    let matches = |time: &DateTime| line.next(*time, true) == Some(*time);
    let is_open = line.is_hour_open || line.is_minute_open;
    let comes = |minute: &&Minute| {
        matches(&minute.shows) && (is_open || !minute.again)
            || !line.is_hour_open && minute.leaves_out.iter().any(matches)
    };
    minutes.iter().filter(comes).map(|minute| minute.at).collect()
}

#[test]
fn every_change_of_every_clock_agrees_with_a_look_at_each_minute() {
    let lines = [
        "0 0 * * *",
        "30 0 * * *",
        "30 1 * * *",
        "0 2 * * *",
        "30 2 * * *",
        "59 2 * * *",
        "0 3 * * *",
        "30 23 * * *",
        "15,45 1-3 * * *",
        "0 2,3 * * *",
        "*/20 2 * * *",
        "*/7 * * * *",
        "0 */2 * * *",
        "30 */3 * * *",
        "5 0-23 * * *",
        "* 1-2 * * *",
        "0 1 * * SUN",
        "30 2 * * SAT",
        "10 0,23 * * *",
    ];
    // Far enough around each change for what it does to these.
    for (zone_name, since) in ZONES {
        let zone = zone(zone_name).expect("a zone");
        let since = jiff::Timestamp::from_second(at(since).as_micros() / 1_000_000).expect("a moment");
        let changes: Vec<i64> = zone.following(since).take(4).map(|change| change.timestamp().as_second()).collect();
        // Far in the future clocks go by a rule instead of a table.
        let far = jiff::Timestamp::from_second(at("2190-01-01").as_micros() / 1_000_000).expect("a moment");
        let rules = zone.following(far).take(2).map(|change| change.timestamp().as_second());
        for change in changes.into_iter().chain(rules) {
            let from = Timestamp::from_micros((change - 4 * 3600) * 1_000_000);
            let until = Timestamp::from_micros((change + 4 * 3600) * 1_000_000);
            let minutes = watch(zone_name, from, until);
            for text in lines {
                let calendar = Calendar::read(text, zone_name).expect("a line");
                let ticks = std::iter::successors(calendar.next_after(from), |tick| calendar.next_after(*tick));
                let ticks: Vec<Timestamp> = ticks.take_while(|tick| *tick <= until).collect();
                let expected = every_tick(&CronLine::read(text).expect("a line"), &minutes);
                assert_eq!(ticks, expected, "{text} in {zone_name} around {from}");
                // Whoever asks in between is told the same, and whoever looks back.
                for (before, tick) in ticks.iter().skip(1).zip(&ticks) {
                    assert_eq!(calendar.last_before(*before), Some(*tick), "{text} in {zone_name} before {before}");
                }
                for step in 0..8 {
                    let asked = Timestamp::from_micros(from.as_micros() + step * 3_600_000_000 + 1_234_567);
                    let next = expected.iter().find(|tick| **tick > asked);
                    if next.is_some() {
                        assert_eq!(calendar.next_after(asked).as_ref(), next, "{text} in {zone_name} after {asked}");
                    }
                    let last = expected.iter().rev().find(|tick| **tick < asked);
                    if last.is_some() {
                        assert_eq!(calendar.last_before(asked).as_ref(), last, "{text} in {zone_name} before {asked}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_interval_is_reckoned_from_its_anchor_for_ever() -> crate::error::Result<()> {
    let schedule = Schedule::every("tick", Duration::from_millis(300), job()).jitter(Duration::from_secs(9));
    let timetable = Timetable::of(&schedule, at("2026-01-01"), None)?;
    let much_later = at("2250-01-01");
    let next = timetable.next_after(much_later).expect("a tick");
    assert_eq!((next.as_micros() - at("2026-01-01").as_micros()) % 300_000, 0);
    assert!(next.since(much_later) <= Duration::from_millis(300));
    // Its anchor may lie ahead, if it was set under a clock that ran ahead.
    let early = timetable.next_after(at("2025-12-31")).expect("a tick");
    assert_eq!((at("2026-01-01").as_micros() - early.as_micros()) % 300_000, 0);
    assert!(early > at("2025-12-31") && early.since(at("2025-12-31")) <= Duration::from_millis(300));
    Ok(())
}

#[test]
fn start_and_end_may_be_ticks_themselves() -> crate::error::Result<()> {
    let (start, end) = (at("2026-01-01T00:00Z"), at("2026-01-01T00:00:20Z"));
    let ten = Duration::from_secs(10);
    let middle = at("2026-01-01T00:00:10Z");
    for schedule in [Schedule::every("a", ten, job()), Schedule::cron("a", "*/10 * * * * *", job())] {
        let ticks = schedule.starts_at(start).ends_at(end).preview(at("2025-06-01"), 9)?;
        assert_eq!(ticks, [start, middle, end]);
    }
    Ok(())
}

#[test]
fn jitter_only_delays_and_never_beyond_the_next_tick() -> crate::error::Result<()> {
    let mut delays = Vec::new();
    for schedule in [
        Schedule::every("a", Duration::from_secs(10), job()).jitter(Duration::from_secs(3600)),
        Schedule::cron("a", "*/10 * * * * *", job()).jitter(Duration::from_secs(10)),
    ] {
        for id in [None, Some(ScheduleId::from_raw(7)), Some(ScheduleId::from_raw(8))] {
            let timetable = Timetable::of(&schedule, at("2026-01-01"), id)?;
            let mut tick = at("2026-01-01");
            for _ in 0..200 {
                tick = timetable.next_after(tick).expect("a tick");
                assert_eq!(tick.as_micros() % 10_000_000, 0, "ticks stay where they are");
                let due = timetable.due_at(tick);
                assert!(due >= tick && due.since(tick) < Duration::from_secs(10));
                assert_eq!(timetable.due_at(tick), due, "everybody is told the same");
                assert_eq!(timetable.newest_due(tick, due), tick);
                assert_ne!(
                    timetable.newest_due(at("2026-01-01T00:00:00Z"), due.saturating_sub(Duration::from_micros(1))),
                    tick
                );
                delays.push(due.since(tick).as_secs());
            }
        }
    }
    // They are spread: each tenth of the time is met.
    assert!((0..10).all(|second| delays.iter().filter(|delay| **delay == second).count() > 50), "{delays:?}");
    Ok(())
}

/// All ticks from `first` to before `until`, one by one.
fn walk(timetable: &Timetable, first: Timestamp, until: Timestamp) -> Vec<Timestamp> {
    std::iter::successors(Some(first), |tick| timetable.next_after(*tick)).take_while(|tick| *tick < until).collect()
}

#[test]
fn what_came_before_is_what_a_walk_finds() -> crate::error::Result<()> {
    for line in ["*/5 * * * *", "30 2 * * *", "0 0 29 2 *", "0 9 * * MON-FRI", "7,8,59 * * * *", "0 0 1 * *"] {
        let schedule = Schedule::cron("a", line, job()).time_zone("Europe/Berlin");
        let timetable = Timetable::of(&schedule, Timestamp::EPOCH, None)?;
        let first = timetable.next_after(at("2024-02-20T10:00Z")).expect("a tick");
        let ticks = walk(&timetable, first, at("2024-04-10"));
        let hours = (0..40).map(|n| at("2024-02-20").saturating_add(Duration::from_secs(n * 100_003)));
        for before in hours.chain(ticks.iter().copied().take(30)) {
            let expected = ticks.iter().rev().find(|tick| **tick < before).copied();
            assert_eq!(timetable.newest_before(before, first), expected, "{line} before {before}");
        }
    }
    Ok(())
}

fn planned(schedule: &Schedule, first: &str, now: &str, limit: usize) -> Plan {
    let timetable = Timetable::of(schedule, at("2026-01-01"), None).expect("a timetable");
    plan(&timetable, schedule.missed, schedule.grace, at(first), at(now), limit)
}

#[test]
fn late_ticks_are_dealt_with_as_the_schedule_says() {
    let hourly = || Schedule::cron("a", "@hourly", job());
    let (first, now) = ("2026-01-01T01:00Z", "2026-01-01T05:00:30Z");
    let lost = |to: &str, count| Some(Lost { from: at(first), to: at(to), count: Some(count) });
    let next = Some(at("2026-01-01T06:00Z"));
    let five = at("2026-01-01T05:00Z");

    let skip = planned(&hourly().missed(Missed::Skip), first, now, 9);
    assert_eq!(skip, Plan { lost: lost("2026-01-01T05:00Z", 5), run: vec![], next });
    let patient = hourly().missed(Missed::Skip).grace(Duration::from_secs(30));
    assert_eq!(planned(&patient, first, now, 9), Plan { lost: lost("2026-01-01T04:00Z", 4), run: vec![five], next });
    let one = planned(&hourly(), first, now, 9);
    assert_eq!(one, Plan { lost: lost("2026-01-01T04:00Z", 4), run: vec![five], next });
    let strict = hourly().grace(Duration::from_secs(29));
    assert_eq!(planned(&strict, first, now, 9), Plan { lost: lost("2026-01-01T05:00Z", 5), run: vec![], next });
    let three = planned(&hourly().missed(Missed::All(3)), first, now, 9);
    let run = vec![at("2026-01-01T03:00Z"), at("2026-01-01T04:00Z"), five];
    assert_eq!(three, Plan { lost: lost("2026-01-01T02:00Z", 2), run, next });
    let all = planned(&hourly().missed(Missed::All(1000)), first, now, 2);
    let run = vec![at(first), at("2026-01-01T02:00Z")];
    assert_eq!(all, Plan { lost: None, run, next: Some(at("2026-01-01T03:00Z")) }, "the rest comes with the next plan");
    let recent = hourly().missed(Missed::All(1000)).grace(Duration::from_secs(3700));
    let run = vec![at("2026-01-01T04:00Z"), five];
    assert_eq!(planned(&recent, first, now, 9), Plan { lost: lost("2026-01-01T03:00Z", 3), run, next });

    let in_time = planned(&hourly().missed(Missed::Skip), first, "2026-01-01T01:00:10Z", 9);
    assert_eq!((in_time.lost, in_time.run), (None, vec![at(first)]));
    let last = hourly().ends_at(at("2026-01-01T03:30Z"));
    let (lost, run) = (lost("2026-01-01T02:00Z", 2), vec![at("2026-01-01T03:00Z")]);
    assert_eq!(planned(&last, first, now, 9), Plan { lost, run, next: None });
}

#[test]
fn thirty_million_late_ticks_take_no_longer_than_one() {
    let from = "2025-01-01";
    let every_second = planned(&Schedule::cron("a", "* * * * * *", job()), from, "2026-01-01", 9);
    assert_eq!(every_second.run, [at("2026-01-01")]);
    let lost = Lost { from: at(from), to: at("2025-12-31T23:59:59Z"), count: None };
    assert_eq!(every_second.lost, Some(lost), "a calendar is not counted to its end");
    let interval = planned(&Schedule::every("a", Duration::from_secs(1), job()), from, "2026-01-01", 9);
    assert_eq!(interval.lost.and_then(|lost| lost.count), Some(31_536_000));
}

/// Ten years were missed, and the newest thousand ticks run, a few at a time: each plan reckoned each of them from what lay
/// between two of them, which took a second.
#[test]
fn what_is_late_is_reckoned_in_few_steps_however_much_it_is() {
    const LINES: [&str; 9] = [
        "* * * * * *",
        "0 9 * * MON-FRI",
        "0 0 29 2 *",
        "* 0-3 1 * *",
        "* * * 1 1 *",
        "0 0 L * *",
        "0 0 * * FRI#2",
        "0,1,2 0 0 1 1,7 *",
        "*/7 * * * *",
    ];
    let steps_max = |most: usize| 2 * most + 1000 + 10;
    for line in LINES {
        let policies = [
            (Missed::Skip, 1),
            (Missed::One, 1),
            (Missed::All(1), 1),
            (Missed::All(100), 100),
            (Missed::All(1000), 1000),
        ];
        for (missed, most) in policies {
            for (grace, jitter) in [(None, 0), (Some(9 * 365 * 86_400), 0), (Some(0), 0), (Some(9 * 365 * 86_400), 30)]
            {
                let schedule = Schedule::cron("a", line, job()).time_zone("Europe/Paris").missed(missed);
                let schedule = schedule.jitter(Duration::from_secs(jitter));
                let schedule = match grace {
                    Some(grace) => schedule.grace(Duration::from_secs(grace)),
                    None => schedule,
                };
                let timetable = Timetable::of(&schedule, Timestamp::EPOCH, None).expect("a timetable");
                let first = timetable.next_after(at("2016-03-01")).expect("a tick");
                let before = timetable.reckoned();
                let made = plan(&timetable, schedule.missed, schedule.grace, first, at("2026-03-01"), 7);
                let steps = timetable.reckoned() - before;
                assert!(steps <= steps_max(most), "{line}, {missed:?}, {grace:?}: {steps} steps");
                assert!(made.run.len() <= most.min(7));
            }
        }
    }
}

/// Each plan goes on where the last one stopped, which the next tick alone tells, and none is run twice or left out.
#[test]
fn a_backlog_that_is_made_up_for_in_parts_is_the_same_as_one_at_once() {
    let (first, now) = (at("2020-01-01T09:00Z"), at("2026-01-01"));
    let schedule = Schedule::cron("a", "0 9 * * MON-FRI", job()).missed(Missed::All(1000));
    let timetable = Timetable::of(&schedule, Timestamp::EPOCH, None).expect("a timetable");
    let at_once = plan(&timetable, schedule.missed, None, first, now, usize::MAX);
    assert_eq!((at_once.run.len(), at_once.lost.and_then(|lost| lost.count)), (1000, Some(566)));
    let (mut run, mut next, mut lost) = (Vec::new(), Some(first), Vec::new());
    while let Some(first) = next.filter(|next| *next <= now) {
        // Time passes meanwhile, and no tick comes with it.
        let part = plan(
            &timetable,
            schedule.missed,
            None,
            first,
            now.saturating_add(Duration::from_secs(run.len() as u64)),
            7,
        );
        run.extend(part.run);
        lost.extend(part.lost);
        next = part.next;
    }
    assert_eq!(run, at_once.run);
    assert_eq!((lost, next), (at_once.lost.into_iter().collect(), at_once.next));
}

#[test]
fn what_cannot_be_read_is_refused_with_its_field() {
    let cron = |line: &str| Schedule::cron("a", line, job());
    let every = |millis| Schedule::every("a", Duration::from_millis(millis), job());
    for (schedule, begins) in [
        (cron(""), "cron: must have five fields"),
        (cron("* * * *"), "cron: must have five fields"),
        (cron("* * * * * * *"), "cron: must have five fields"),
        (cron("@never"), "cron: must be one of @yearly"),
        (cron("@reboot"), "cron: must name times, and \"@reboot\" names none"),
        (cron(", * * * *"), "cron: must name something before and after each comma"),
        (cron("0 1,,2 * * *"), "cron: must name something before and after each comma"),
        (cron("60 * * * *"), "cron: the minute cannot be read"),
        (cron("61 * * * * *"), "cron: the second cannot be read"),
        (cron("* 24 * * *"), "cron: the hour cannot be read"),
        (cron("* * 0 * *"), "cron: the day of month cannot be read"),
        (cron("* * * 13 *"), "cron: the month cannot be read"),
        (cron("* * * * 8"), "cron: the day of week cannot be read"),
        (cron("* * * * SUNDAY"), "cron: the day of week cannot be read"),
        (cron("5-1 * * * *"), "cron: the minute cannot be read"),
        (cron("*/0 * * * *"), "cron: the minute cannot be read"),
        (cron("0 0 30 2 *"), "cron: never comes"),
        (cron("0 0 31 4,6,9,11 *"), "cron: never comes"),
        (cron("ü * * * *"), "cron: must be ASCII"),
        (cron(&"1,".repeat(200)), "cron: must be ASCII"),
        (cron("@daily").time_zone("Europe/Atlantis"), "time_zone: must be an IANA name"),
        (cron("@daily").time_zone(""), "time_zone: must be an IANA name"),
        (cron("@daily").time_zone("Etc/Unknown"), "time_zone: must be an IANA name"),
        (cron("@daily").time_zone("Europe/Berlin "), "time_zone: must be an IANA name"),
        (cron("@daily").time_zone("CET-1CEST"), "time_zone: must be an IANA name"),
        (cron("@daily").time_zone("+01:00"), "time_zone: must be an IANA name"),
        (cron("0 0 31 2 +MON"), "cron: never comes"),
        (cron("0 0 29 2 +MON#1"), "cron: never comes"),
        (cron("@daily @daily"), "cron: must be one of @yearly"),
        (cron("0 0 * * MON#6"), "cron: the day of week cannot be read"),
        (cron("0 0 32 * *"), "cron: the day of month cannot be read"),
        (cron("0 0 * * * 2026"), "cron: the day of week cannot be read"),
        (cron("@every 5m"), "cron: must name times of a clock"),
        (Schedule::every("a", Duration::from_nanos(1), job()), "every: must be 10 ms or longer"),
        (Schedule::every("é".repeat(65), Duration::from_secs(1), job()), "schedule.name: must be 1 to 128 bytes"),
        (Schedule::every("n".repeat(10_000), Duration::from_secs(1), job()), "schedule.name: must be 1 to 128 bytes"),
        (cron("@daily").time_zone("../etc/passwd"), "time_zone: must be an IANA name"),
        (cron("@daily").time_zone("Z".repeat(1 << 20)), "time_zone: must be an IANA name"),
        (every(1000).time_zone("UTC"), "time_zone: must not be set"),
        (every(0), "every: must be 10 ms or longer"),
        (every(9), "every: must be 10 ms or longer"),
        (Schedule::every("a", Duration::MAX, job()), "every: must be no longer than 100 years"),
        (every(1000).grace(Duration::MAX), "grace: must be no longer than 100 years"),
        (every(1000).jitter(Duration::MAX), "jitter: must be no longer than 100 years"),
        (every(1000).missed(Missed::All(0)), "missed: must be from 1 to 1000"),
        (every(1000).missed(Missed::All(1001)), "missed: must be from 1 to 1000"),
        (every(1000).starts_at(at("2026-01-02")).ends_at(at("2026-01-01")), "ends_at: must not be before starts_at"),
        (cron("@daily").starts_at(at("2026-01-01T01:00Z")).ends_at(at("2026-01-01T02:00Z")), "ends_at: must leave"),
        (Schedule::at("a", at("2026-01-03"), job()).ends_at(at("2026-01-01")), "ends_at: must leave"),
        (Schedule::at("a", Timestamp::EPOCH, job()), "at: must leave"),
        (every(1000).starts_at(Timestamp::MAX), "starts_at: must leave"),
        (Schedule::every("", Duration::from_secs(1), job()), "schedule.name: must be 1 to 128 bytes"),
    ] {
        let error = schedule.check().expect_err(begins);
        assert_eq!(error.kind(), crate::error::ErrorKind::Invalid);
        assert!(error.to_string().starts_with(begins), "{error} does not begin with {begins}");
    }
    for count in [0, 1001] {
        assert!(every(1000).preview(Timestamp::EPOCH, count).is_err());
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_a_cron_line_panic(text in "[ -~\\n\\t]{0,40}", from in 0..Timestamp::MAX.as_micros()) {
        if let Ok(calendar) = Calendar::read(&text, "Europe/Berlin") {
            let _ = calendar.next_after(Timestamp::from_micros(from));
        }
    }

    #[test]
    fn no_fields_make_a_cron_line_panic(
        fields in proptest::collection::vec("[*0-9,/#LW?+-]{1,8}|[A-Z]{3}(-[A-Z]{3})?|\\*/[0-9]{1,5}", 5..7),
        from in 0..Timestamp::MAX.as_micros(),
    ) {
        if let Ok(calendar) = Calendar::read(&fields.join(" "), "America/New_York") {
            let from = Timestamp::from_micros(from);
            if let Some(next) = calendar.next_after(from) {
                proptest::prop_assert!(next > from);
            }
        }
    }
}
