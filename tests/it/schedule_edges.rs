//! Schedules at the edge of what may be said of them, and beyond it.

use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{
    Context, Durability, Engine, ErrorKind, Failure, LimitUse, Missed, MissedBy, NewJob, Order, Overlap, Payload,
    Query, Schedule, ScheduleId, Status, TickOutcome, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::support::{file, refused, secs};

const YEAR: u64 = 365 * 86_400;

#[derive(Serialize, Deserialize)]
struct Count(u64);

impl Payload for Count {
    const KIND: &'static str = "count";
}

fn count(_: Count, _: &Context) -> Result<(), Failure> {
    Ok(())
}

/// A job that nobody here runs.
fn stuck() -> NewJob {
    NewJob::json("nobody's", &())
}

fn harness() -> Harness {
    Harness::new(|builder| builder.durability(Durability::Normal).handle(count)).expect("a harness")
}

fn put(t: &Harness, schedule: &Schedule) -> ScheduleId {
    t.client().schedule(schedule).expect("a schedule").id()
}

fn start() -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000)
}

fn moment(seconds: u64) -> Timestamp {
    start().saturating_add(secs(seconds))
}

fn ran_for(t: &Harness) -> Vec<Timestamp> {
    let jobs = t.client().list(Query::new().order(Order::Ascending).limit(1000)).expect("a page").jobs;
    jobs.into_iter().filter_map(|job| job.scheduled_for).collect()
}

#[test]
fn names_are_any_text_of_some_length() -> jobmill::Result<()> {
    let t = harness();
    let longest = "🦀".repeat(32);
    for name in ["🕘 nine", "'; DROP TABLE jobmill_schedule; --", "%", " ", &longest] {
        let id = put(&t, &Schedule::every(name, secs(10), stuck()));
        let record = t.client().schedule_by_name(name)?;
        assert_eq!((record.id, record.schedule.name()), (id, name));
    }
    let too_long = "n".repeat(10_000);
    for name in ["", "a\nb", "\0", &too_long, &format!("{longest}x")] {
        let schedule = Schedule::every(name, secs(10), stuck());
        refused(t.client().schedule(&schedule), ErrorKind::Invalid, "schedule.name: must be 1 to 128 bytes");
        assert_eq!(t.client().schedule_by_name(name).map(drop).map_err(|error| error.kind()), Err(ErrorKind::NotFound));
    }
    Ok(())
}

#[test]
fn a_payload_that_its_handler_cannot_read_fails_its_jobs_and_not_the_schedule() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &Schedule::every("wrong", secs(10), NewJob::json("count", &"seven").max_attempts(1)));
    put(&t, &Schedule::every("right", secs(10), NewJob::of(&Count(7))));
    for _ in 0..3 {
        t.advance(secs(10));
        t.drain()?;
    }
    let jobs = t.client().list(Query::new().schedule(id))?.jobs;
    assert!(jobs.iter().all(|job| job.status == Status::Failed), "{jobs:?}");
    assert_eq!(jobs.len(), 3);
    assert_eq!(t.client().list(Query::new().statuses([Status::Completed]))?.jobs.len(), 3);
    Ok(())
}

#[test]
fn what_is_paused_runs_by_hand_one_at_a_time_if_it_may_not_overlap() -> jobmill::Result<()> {
    for overlap in [Overlap::Skip, Overlap::Queue] {
        let t = harness();
        let id = put(&t, &Schedule::every("test", secs(10), stuck()).overlap(overlap));
        t.client().pause_schedule(id)?;
        let first = t.client().run_schedule_now(id)?;
        refused(t.client().run_schedule_now(id), ErrorKind::Conflict, &format!("{first}, the last job"));
        t.client().resume_schedule(id)?;
        t.advance(secs(10));
        t.drain()?;
        let record = t.client().schedule_by_id(id)?;
        let waits = (overlap == Overlap::Queue).then(|| moment(10));
        assert_eq!((record.enqueued, record.waiting_tick, record.last_job), (1, waits, Some(first)));
        t.client().cancel(first)?;
        t.drain()?;
        assert_eq!(t.client().schedule_by_id(id)?.enqueued, if waits.is_some() { 2 } else { 1 });
        assert_eq!(t.client().verify()?, Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn ranges_of_a_backfill_are_checked_before_anything_is_written() -> jobmill::Result<()> {
    let t = harness();
    t.clock().jump(moment(100_000));
    let id = put(&t, &Schedule::cron("test", "* * * * * *", stuck()));
    let lines = || t.client().ticks(id).map(|lines| lines.len());
    for (range, says) in [
        (moment(9)..moment(9), "range: must not be empty"),
        (moment(9)..moment(5), "range: must not be empty"),
        (moment(9)..moment(100_001), "range: must not end in the future"),
        (moment(200_000)..moment(300_000), "range: must not end in the future"),
        (moment(9)..Timestamp::MAX, "range: must not end in the future"),
        (Timestamp::EPOCH..moment(100_000), "range: must hold no more than 10000 ticks"),
        (moment(0)..moment(10_001), "range: must hold no more than 10000 ticks"),
    ] {
        refused(t.client().backfill(id, range), ErrorKind::Invalid, says);
    }
    assert_eq!((ran_for(&t).len(), lines()?), (0, 0));
    t.client().pause_schedule(id)?;
    let some = t.client().backfill(id, moment(5)..moment(8))?;
    assert_eq!((some.enqueued, some.existing), (3, 0), "while it is paused, too");
    let more = t.client().backfill(id, moment(6)..moment(10))?;
    assert_eq!((more.enqueued, more.existing), (2, 2));
    let none = t.client().backfill(id, moment(5)..moment(5).saturating_add(Duration::from_micros(1)))?;
    assert_eq!((none.enqueued, none.existing), (0, 1));
    let yearly = put(&t, &Schedule::cron("yearly", "@yearly", stuck()));
    assert_eq!(t.client().backfill(yearly, Timestamp::EPOCH..moment(1))?.enqueued, 56, "1971 to 2026");
    let ended = put(&t, &Schedule::every("ended", secs(10), stuck()).starts_at(moment(0)).ends_at(moment(20)));
    assert_eq!(t.client().backfill(ended, Timestamp::EPOCH..moment(100_000))?.enqueued, 3);
    Ok(())
}

#[test]
fn the_longest_and_the_latest_are_reckoned_with() -> jobmill::Result<()> {
    let t = harness();
    let century = put(&t, &Schedule::every("century", secs(100 * YEAR), stuck()).jitter(secs(100 * YEAR)));
    let record = t.client().schedule_by_id(century)?;
    assert_eq!(record.next_tick, Some(moment(100 * YEAR)));
    assert_eq!(record.preview(start(), 5)?, [moment(100 * YEAR), moment(200 * YEAR)], "and time ends");
    let last = put(&t, &Schedule::at("last", Timestamp::MAX, stuck()).jitter(secs(YEAR)));
    assert_eq!(t.client().schedule_by_id(last)?.next_at, Some(Timestamp::MAX));
    let over = put(&t, &Schedule::every("over", secs(10), stuck()).ends_at(moment(0).saturating_sub(secs(YEAR))));
    assert_eq!(t.client().schedule_by_id(over)?.next_tick, None);
    let later = put(&t, &Schedule::cron("later", "0 0 29 2 *", stuck()).starts_at("2199-01-01T00:00:00Z".parse()?));
    assert_eq!(t.client().schedule_by_id(later)?.next_tick, Some("2204-02-29T00:00:00Z".parse()?));
    assert_eq!(t.drain()?, 0);
    t.clock().jump("2250-01-01T00:00:00Z".parse()?);
    t.drain()?;
    assert_eq!(ran_for(&t).len(), 2, "the one of the century, and that of the leap day");
    assert_eq!(t.client().verify()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_delay_that_is_longer_than_the_interval_leaves_each_tick_its_job() -> jobmill::Result<()> {
    let t = harness();
    let shaky = Schedule::every("test", secs(10), stuck()).jitter(secs(YEAR)).missed(Missed::All(10));
    let id = put(&t, &shaky);
    while jobmill::Clock::now(t.clock()) < moment(500) {
        t.advance(Duration::from_millis(700));
        t.drain()?;
    }
    let expected: Vec<Timestamp> = (1..50).map(|n| moment(10 * n)).collect();
    assert_eq!(ran_for(&t)[..49], expected);
    let record = t.client().schedule_by_id(id)?;
    assert_eq!((record.missed, record.skipped), (0, 0));
    Ok(())
}

/// Each start stored one and then the other, so that an interval began anew with each.
#[test]
fn two_schedules_of_one_name_are_refused_at_the_start() {
    let (_directory, path) = file();
    let schedule = |seconds| Schedule::every("twice", secs(seconds), stuck());
    let builder = Engine::builder(&path).schedule(schedule(10)).schedule(schedule(20));
    refused(builder.inline().map(drop), ErrorKind::Invalid, "schedule: must not be two of the name \"twice\"");
}

/// A tick that had waited for a stuck job was enqueued whenever that ended, however long its grace was over.
#[test]
fn a_tick_that_waits_longer_than_its_grace_is_missed() -> jobmill::Result<()> {
    let queued = |name: &str| Schedule::every(name, secs(10), stuck()).overlap(Overlap::Queue);
    for (schedule, waits, missed, skipped, ran) in [
        // The one that has come last waits in the place of one that is too late, and may be in time.
        (queued("short").grace(secs(5)), 50, 3, 0, vec![10, 50]),
        (queued("long").grace(secs(15)), 40, 1, 2, vec![10, 40]),
        (queued("all").grace(secs(15)).missed(Missed::All(9)), 40, 1, 2, vec![10, 40]),
        (queued("skip").missed(Missed::Skip), 40, 2, 2, vec![10]),
        (queued("late").grace(secs(2)), 50, 4, 0, vec![10]),
        (queued("patient"), 20, 0, 3, vec![10, 20]),
    ] {
        let t = harness();
        let id = put(&t, &schedule);
        for _ in 0..5 {
            t.advance(secs(10));
            t.drain()?;
        }
        let name = schedule.name();
        let waiting = t.client().schedule_by_id(id)?.waiting_tick;
        t.advance(secs(3));
        for job in t.client().list(Query::new().schedule(id))?.jobs {
            t.client().cancel(job.id)?;
        }
        t.drain()?;
        let record = t.client().schedule_by_id(id)?;
        assert_eq!((waiting, record.missed, record.skipped), (Some(moment(waits)), missed, skipped), "{name}");
        let ran: Vec<Timestamp> = ran.into_iter().map(moment).collect();
        assert_eq!((ran_for(&t), record.waiting_tick), (ran, None), "{name}");
        let told = |line: &&jobmill::Tick| matches!(line.outcome, TickOutcome::Missed { to, count: Some(1), by: MissedBy::Policy } if to == line.tick);
        assert_eq!(t.client().ticks(id)?.iter().filter(told).count() as u64, missed, "{name}");
        assert_eq!(t.client().metrics(jobmill::Window::Hour)?.total.ticks_missed, missed, "{name}");
        assert_eq!(t.client().verify()?, Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn what_is_wrong_with_a_line_is_said_with_the_line_and_the_schedule() {
    let t = harness();
    let cron = |line: &str| Schedule::cron("backup", line, stuck());
    let marks = "; * stands for all, and lists, ranges and steps are as 1,2 and 1-5 and */5";
    let (five, known) =
        ("cron: must have five fields, minute to day of week, or six with seconds first", "cron: must be one of");
    let nicknames = "@yearly, @annually, @monthly, @weekly, @daily and @hourly";
    let long = format!("{} * * * *", "1,".repeat(100) + "60");
    for (schedule, says) in [
        (cron("* * *"), format!("{five}, and has 3: \"* * *\"")),
        (cron(""), format!("{five}, and has 0: \"\"")),
        (cron("0 0 0 1 1 * 2026"), format!("{five}, and has 7: \"0 0 0 1 1 * 2026\"")),
        (
            cron("0 25 * * *"),
            format!("cron: the hour cannot be read: \"25\" in \"0 25 * * *\"; it may be 0 to 23{marks}"),
        ),
        (
            cron("0 0 * FOO *"),
            format!(
                "cron: the month cannot be read: \"FOO\" in \"0 0 * FOO *\"; it may be 1 to 12 or JAN to DEC{marks}"
            ),
        ),
        (
            cron("@reboot"),
            "cron: must name times, and \"@reboot\" names none: enqueue a job after the engine's start instead".into(),
        ),
        (cron("@every 5m"), "cron: must name times of a clock, not \"@every 5m\": use Schedule::every instead".into()),
        (cron("@never"), format!("{known} {nicknames}, or fields, not \"@never\"")),
        (cron("0 0 30 2 *"), "cron: never comes: no such day exists: \"0 0 30 2 *\"".into()),
        (cron("1,, * * * *"), "cron: must name something before and after each comma: \"1,, * * * *\"".into()),
        (cron("\n\u{e9} * * * *"), "cron: must be ASCII text of at most 256 bytes: \"\\n\u{e9} * * * *\"".into()),
        (
            cron("0 9 * * *").time_zone("Europe/Z\u{fc}rich"),
            "time_zone: must be an IANA name, as Europe/Paris or UTC, not \"Europe/Z\u{fc}rich\"".into(),
        ),
        (Schedule::every("backup", Duration::ZERO, stuck()), "every: must be 10 ms or longer".into()),
    ] {
        let error = t.client().schedule(&schedule).expect_err(&says);
        assert_eq!(error.to_string(), format!("{says} (schedule \"backup\")"));
    }
    let error = t.client().schedule(&cron(&long)).expect_err("a bad line").to_string();
    assert!(error.contains("\u{2026}") && error.len() < 400, "{error}");
    let unknown = Schedule::every("backup", secs(1), stuck().limit(LimitUse::of("nothing")));
    let says = "limit: there is no limit \"nothing\": set it first (schedule \"backup\")";
    assert_eq!(t.client().schedule(&unknown).expect_err(says).to_string(), says);
}
