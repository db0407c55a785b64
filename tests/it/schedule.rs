//! Schedules: ticks, what operators do, clocks that jump, crashes.

use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use jobmill::testing::{Fault, Harness};
use jobmill::{
    Action, Client, Clock, Context, Durability, Engine, ErrorKind, Failure, JobId, Missed, MissedBy, NewJob, Order,
    Overlap, Payload, Query, Schedule, ScheduleId, ScheduleQuery, Scheduled, Status, TickOutcome, Timestamp, Unique,
};
use serde::{Deserialize, Serialize};

use crate::support::{PATIENCE, file, refused, secs};

/// A job that a schedule enqueues.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report(String);

impl Payload for Report {
    const KIND: &'static str = "report";
}

/// Gives the tick that it runs for.
pub(crate) fn report(_: Report, ctx: &Context) -> Result<Option<Timestamp>, Failure> {
    assert_eq!(ctx.scheduled_for(), ctx.job().scheduled_for);
    Ok(ctx.scheduled_for())
}

pub(crate) fn job() -> NewJob {
    NewJob::of(&Report("sales".into()))
}

/// A job that nobody here runs, so that it stays under way until it is cancelled.
pub(crate) fn stuck() -> NewJob {
    NewJob::json("nobody's", &())
}

pub(crate) fn every(time: u64) -> Schedule {
    Schedule::every("test", secs(time), job())
}

pub(crate) fn harness() -> Harness {
    Harness::new(|builder| builder.durability(Durability::Normal).handle(report)).expect("a harness")
}

pub(crate) fn at(text: &str) -> Timestamp {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Seconds since the clock of a harness began.
pub(crate) fn since_start(at: Timestamp) -> i64 {
    (at.as_micros() - 1_767_225_600_000_000) / 1_000_000
}

pub(crate) fn moment(seconds: u64) -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000).saturating_add(secs(seconds))
}

pub(crate) fn put(t: &Harness, schedule: &Schedule) -> ScheduleId {
    t.client().schedule(schedule).expect("a schedule").id()
}

/// Lets time pass and runs what it brings.
pub(crate) fn pass(t: &Harness, time: u64) {
    t.advance(secs(time));
    t.drain().expect("a drain");
}

/// The history of a schedule in a few words, the oldest first.
pub(crate) fn history(client: &Client, id: ScheduleId) -> Vec<String> {
    let mut lines = client.ticks(id).expect("a history");
    lines.reverse();
    let line = |tick: jobmill::Tick| {
        let from = since_start(tick.tick);
        match tick.outcome {
            TickOutcome::Enqueued { .. } => format!("{from} ran"),
            TickOutcome::Manual { .. } => format!("{from} by hand"),
            TickOutcome::Backfilled { to, count } => format!("{from} to {} backfilled {count}", since_start(to)),
            TickOutcome::Duplicate { .. } => format!("{from} had run"),
            TickOutcome::Skipped { .. } => format!("{from} skipped"),
            TickOutcome::Missed { to, count, by } => {
                let count = count.map_or("many".to_owned(), |count| count.to_string());
                let by = match by {
                    MissedBy::Policy => "",
                    MissedBy::Pause => ", paused",
                    MissedBy::Change => ", changed",
                    other => panic!("{other:?}"),
                };
                format!("{from} to {} missed {count}{by}", since_start(to))
            }
            other => format!("{from} {other:?}"),
        }
    };
    lines.into_iter().map(line).collect()
}

/// The ticks whose jobs are in the file, in the order of the jobs, in seconds since the start.
pub(crate) fn ran_for(client: &Client) -> Vec<i64> {
    let query = Query::new().order(Order::Ascending).limit(1000);
    let jobs = client.list(query).expect("a page").jobs;
    jobs.iter().filter_map(|job| job.scheduled_for.map(since_start)).collect()
}

pub(crate) fn cancel_all(client: &Client) {
    for job in client.list(Query::new().statuses([Status::Pending]).limit(1000)).expect("a page").jobs {
        client.cancel(job.id).expect("a cancelled job");
    }
}

#[test]
fn a_tick_enqueues_its_job_once_and_tells_it_which_tick_it_is() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &every(10));
    assert_eq!(t.drain()?, 0);
    t.advance(secs(13));
    assert_eq!(t.drain()?, 1);
    assert_eq!(t.drain()?, 0);
    let job = &t.client().list(Query::new())?.jobs[0];
    assert_eq!((job.status, job.schedule, job.scheduled_for), (Status::Completed, Some(id), Some(moment(10))));
    assert_eq!(job.unique_key, None, "the key is ours");
    assert_eq!(job.result::<Option<Timestamp>>()?, Some(moment(10)));
    let record = t.client().schedule_by_id(id)?;
    assert_eq!((record.next_tick, record.next_at), (Some(moment(20)), Some(moment(20))), "ticks do not drift");
    assert_eq!((record.last_tick, record.last_job), (Some(moment(10)), Some(job.id)));
    assert_eq!((record.enqueued, record.missed, record.skipped, record.is_handled), (1, 0, 0, true));
    let line = t.client().ticks(id)?[0];
    assert_eq!((line.number, line.tick, line.at), (1, moment(10), moment(13)));
    assert_eq!(line.outcome, TickOutcome::Enqueued { job: job.id });
    assert_eq!(t.client().get(job.id)?, *job);
    Ok(())
}

#[test]
fn a_job_of_a_schedule_carries_all_that_its_template_says() -> jobmill::Result<()> {
    let t = harness();
    let template =
        job().queue("mail").tags(["nightly"]).user("ada").delay(secs(5)).expires_in(secs(60)).max_attempts(3);
    put(&t, &Schedule::cron("test", "* * * * *", template));
    pass(&t, 60);
    let job = &t.client().list(Query::new())?.jobs[0];
    assert_eq!((job.queue.as_str(), job.user_id.as_deref(), job.max_attempts), ("mail", Some("ada"), 3));
    assert_eq!((job.run_at, job.expires_at), (moment(65), Some(moment(120))));
    assert_eq!(job.tags, ["nightly"]);
    assert_eq!(t.client().for_user("ada")?.get(job.id)?.id, job.id);
    t.check(job.id, "pending, due in 5s");
    Ok(())
}

#[test]
fn a_running_engine_ticks_by_itself() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (told, ticks) = unbounded::<Timestamp>();
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .state(told)
        .handle(|_: Report, ctx: &Context| -> Result<(), Failure> {
            let _ = ctx.state::<Sender<Timestamp>>()?.send(ctx.scheduled_for().expect("a tick"));
            Ok(())
        })
        .start()?;
    // Another client of the file stores it, and the engine notices.
    let client = Client::open(&path)?;
    let id = client.schedule(&Schedule::every("test", Duration::from_millis(30), job()))?.id();
    let anchor = client.schedule_by_id(id)?.anchor;
    for _ in 0..5 {
        let tick = ticks.recv_timeout(PATIENCE).expect("a tick");
        assert_eq!(tick.since(anchor).as_micros() % 30_000, 0, "ticks do not drift");
    }
    engine.shutdown(PATIENCE)?;
    Ok(())
}

#[test]
fn an_operator_runs_a_schedule_by_hand() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &Schedule::every("test", secs(10), stuck()).overlap(Overlap::Skip));
    t.advance(secs(3));
    let client = t.client().acting_as("ada")?;
    let first = client.run_schedule_now(id)?;
    let job = client.get(first)?;
    assert_eq!((job.schedule, job.scheduled_for, job.created_by.as_deref()), (Some(id), Some(moment(3)), Some("ada")));
    refused(client.run_schedule_now(id), ErrorKind::Conflict, &format!("{first}, the last job of {id}, has not ended"));
    client.cancel(first)?;
    let second = client.run_schedule_now(id)?;
    assert_ne!(first, second);
    client.cancel(second)?;
    t.client().pause_schedule(id)?;
    assert!(client.run_schedule_now(id).is_ok(), "even while it is paused");
    assert_eq!(history(t.client(), id), ["3 by hand", "3 by hand", "3 by hand"]);
    Ok(())
}

#[test]
fn a_backfill_runs_what_has_not_run_and_nothing_twice() -> jobmill::Result<()> {
    let t = harness();
    t.advance(secs(1000));
    let id = put(&t, &every(10).overlap(Overlap::Skip));
    pass(&t, 10);
    pass(&t, 10);
    assert_eq!(ran_for(t.client()), [1010, 1020]);
    let done = t.client().backfill(id, moment(980)..moment(1011))?;
    assert_eq!((done.enqueued, done.existing), (3, 1), "the end is not part of the range");
    let again = t.client().backfill(id, moment(980)..moment(1011))?;
    assert_eq!((again.enqueued, again.existing), (0, 4));
    assert_eq!(ran_for(t.client()), [1010, 1020, 980, 990, 1000]);
    assert_eq!(history(t.client(), id)[2..], ["980 to 1010 backfilled 3", "980 to 1010 backfilled 0"]);
    t.drain()?;
    let many = t.client().backfill(id, moment(1)..moment(990))?;
    assert_eq!((many.enqueued, many.existing), (97, 1));

    refused(t.client().backfill(id, moment(5)..moment(5)), ErrorKind::Invalid, "range: must not be empty");
    refused(t.client().backfill(id, moment(5)..moment(1021)), ErrorKind::Invalid, "range: must not end in the future");
    let long = Timestamp::EPOCH..moment(0);
    refused(t.client().backfill(id, long), ErrorKind::Invalid, "range: must hold no more than 10000 ticks");
    Ok(())
}

#[test]
fn a_backfill_of_many_ticks_goes_in_slices() -> jobmill::Result<()> {
    let t = harness();
    t.advance(secs(6000));
    let id = put(&t, &every(10));
    t.faults().fail_from(4, Fault::Before);
    assert!(t.client().backfill(id, moment(0)..moment(5000)).is_err());
    t.faults().heal();
    let done = t.client().backfill(id, moment(0)..moment(5000))?;
    assert_eq!(done.enqueued + done.existing, 500);
    assert!(done.existing > 0, "what was written stays");
    assert_eq!(ran_for(t.client()).len(), 500);
    Ok(())
}

#[test]
fn a_schedule_is_replaced_by_its_name() -> jobmill::Result<()> {
    let t = harness();
    let client = t.client();
    let id = put(&t, &every(100));
    t.advance(secs(30));
    assert_eq!(client.schedule(&every(100))?, Scheduled::Unchanged(id));
    // Another job or policy leaves the ticks where they are.
    let other = Schedule::every("test", secs(100), stuck()).missed(Missed::Skip);
    assert_eq!(client.schedule(&other)?, Scheduled::Changed(id));
    let record = client.schedule_by_name("test")?;
    assert_eq!((&record.schedule, record.next_tick, record.is_handled), (&other, Some(moment(100)), false));
    // So does a jitter, but for the delay.
    client.schedule(&other.clone().jitter(secs(50)))?;
    let record = client.schedule_by_name("test")?;
    assert_eq!((record.next_tick, record.anchor), (Some(moment(100)), moment(0)));
    let delay = record.next_at.expect("a tick").since(moment(100));
    assert!(delay <= secs(50) && delay > Duration::ZERO, "{delay:?}");
    // Another interval is reckoned from when the first was stored.
    client.schedule(&every(7))?;
    assert_eq!(client.schedule_by_id(id)?.next_tick, Some(moment(35)));
    client.schedule(&Schedule::cron("test", "@hourly", job()))?;
    assert_eq!(client.schedule_by_id(id)?.next_tick, Some(moment(3600)));
    client.delete_schedule(id)?;
    refused(client.schedule_by_id(id), ErrorKind::NotFound, &format!("there is no schedule {id}"));
    let new = client.schedule(&every(100))?;
    assert!(matches!(new, Scheduled::Created(new) if new > id), "{new:?}");
    let actions: Vec<Action> = client.audit(None, 10)?.into_iter().map(|line| line.action).collect();
    let changed = Action::ScheduleChanged;
    let expected =
        [Action::ScheduleCreated, Action::ScheduleDeleted, changed, changed, changed, changed, Action::ScheduleCreated];
    assert_eq!(actions, expected);
    Ok(())
}

#[test]
fn a_schedule_that_is_replaced_repeats_no_tick() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &Schedule::at("test", moment(10), job()));
    pass(&t, 10);
    put(&t, &Schedule::at("test", moment(10), job()).jitter(secs(1)));
    pass(&t, 10);
    assert_eq!(ran_for(t.client()), [10]);
    assert_eq!(history(t.client(), id), ["10 ran", "10 had run"]);
    Ok(())
}

#[test]
fn an_engine_stores_its_schedules_at_the_start() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| {
        builder.durability(Durability::Normal).handle(report).schedule(every(10)).schedule(Schedule::cron(
            "hourly",
            "@hourly",
            stuck(),
        ))
    })?;
    t.advance(secs(5));
    t.restart()?;
    pass(&t, 5);
    assert_eq!(ran_for(t.client()), [10], "a start does not reckon it anew");
    assert_eq!(t.client().schedules(ScheduleQuery::new())?.schedules.len(), 2);
    let bad = Harness::new(|builder| builder.schedule(Schedule::cron("bad", "61 * * * *", job())));
    refused(bad.map(drop), ErrorKind::Invalid, "cron: the minute cannot be read");
    Ok(())
}

#[test]
fn rules_are_told_before_anything_is_written() -> jobmill::Result<()> {
    let t = harness();
    let unique = Schedule::every("test", secs(1), job().unique(Unique::key("a")));
    refused(t.client().schedule(&unique), ErrorKind::Invalid, "job.unique: must not be set");
    refused(t.client().schedule(&every(1).time_zone("UTC")), ErrorKind::Invalid, "time_zone: must not be set");
    refused(t.client().schedules(ScheduleQuery::new().limit(0)), ErrorKind::Invalid, "limit: must be from 1 to 1000");
    let id = put(&t, &every(1));
    let empty = ScheduleQuery::new().before(id).after(id);
    refused(t.client().schedules(empty), ErrorKind::Invalid, "before: must be newer than after");
    refused(t.client().schedule_by_name("other"), ErrorKind::NotFound, "there is no schedule named \"other\"");
    t.client().delete_schedule(id)?;
    let gone = format!("there is no schedule {id}");
    refused(t.client().pause_schedule(id), ErrorKind::NotFound, &gone);
    refused(t.client().resume_schedule(id), ErrorKind::NotFound, &gone);
    refused(t.client().run_schedule_now(id), ErrorKind::NotFound, &gone);
    refused(t.client().delete_schedule(id), ErrorKind::NotFound, &gone);
    refused(t.client().ticks(id), ErrorKind::NotFound, &gone);
    refused(t.client().backfill(id, moment(0)..moment(1)), ErrorKind::NotFound, &gone);
    assert_eq!(t.client().schedules(ScheduleQuery::new())?.schedules, []);
    Ok(())
}

#[test]
fn schedules_are_the_administrators() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &every(1));
    let ada = t.client().for_user("ada")?;
    let (read, change) =
        ("a client that is bound to a user may not read", "a client that is bound to a user may not change");
    refused(ada.schedules(ScheduleQuery::new()), ErrorKind::Forbidden, read);
    refused(ada.schedule_by_id(id), ErrorKind::Forbidden, read);
    refused(ada.schedule_by_name("test"), ErrorKind::Forbidden, read);
    refused(ada.ticks(id), ErrorKind::Forbidden, read);
    refused(ada.schedule(&every(2)), ErrorKind::Forbidden, change);
    refused(ada.pause_schedule(id), ErrorKind::Forbidden, change);
    refused(ada.resume_schedule(id), ErrorKind::Forbidden, change);
    refused(ada.run_schedule_now(id), ErrorKind::Forbidden, change);
    refused(ada.delete_schedule(id), ErrorKind::Forbidden, change);
    refused(ada.backfill(id, moment(0)..moment(0)), ErrorKind::Forbidden, read);
    Ok(())
}

#[test]
fn schedules_are_listed_in_pages() -> jobmill::Result<()> {
    let t = harness();
    let mut ids = Vec::new();
    for number in 0..7 {
        let job = if number % 2 == 0 { job() } else { stuck() };
        ids.push(put(&t, &Schedule::every(format!("test {number}"), secs(10), job)));
    }
    t.client().pause_schedule(ids[2])?;
    let list = |query: ScheduleQuery| -> Vec<usize> {
        let (mut found, mut next) = (Vec::new(), Some(query));
        while let Some(query) = next {
            let page = t.client().schedules(query).expect("a page");
            assert_eq!(page.has_more(), page.next.is_some());
            let place = |id| ids.iter().position(|known| *known == id).expect("a schedule of ours");
            found.extend(page.schedules.into_iter().map(|record| place(record.id)));
            next = page.next;
        }
        found
    };
    let query = ScheduleQuery::new;
    assert_eq!(list(query()), [6, 5, 4, 3, 2, 1, 0]);
    for limit in 1..8 {
        assert_eq!(list(query().limit(limit)), [6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(list(query().limit(limit).order(Order::Ascending)), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(list(query().limit(limit).kind("report").order(Order::Ascending)), [0, 2, 4, 6]);
        assert_eq!(list(query().limit(limit).paused(false).kind("report")), [6, 4, 0]);
    }
    assert_eq!(list(query().paused(true)), [2]);
    assert_eq!(list(query().after(ids[1]).before(ids[4])), [3, 2]);
    let record = t.client().schedule_by_id(ids[1])?;
    assert_eq!(record.preview(moment(0), 2)?, [moment(10), moment(20)]);
    let json = serde_json::to_value(&record).expect("JSON");
    for (field, value) in [
        ("/id", serde_json::json!(ids[1])),
        ("/schedule/name", "test 1".into()),
        ("/schedule/kind", "nobody's".into()),
        ("/schedule/when", "every".into()),
        ("/schedule/interval_us", 10_000_000.into()),
        ("/schedule/missed", "one".into()),
        ("/missed", 0.into()),
        ("/next_tick", serde_json::json!(moment(10))),
        ("/is_handled", false.into()),
    ] {
        assert_eq!(json.pointer(field), Some(&value), "{field} of {json}");
    }
    Ok(())
}

#[test]
fn the_jobs_of_a_schedule_are_listed_by_it() -> jobmill::Result<()> {
    let t = harness();
    let other = put(&t, &Schedule::every("other", secs(10), stuck().user("ada")));
    let id = put(&t, &every(10));
    for _ in 0..6 {
        pass(&t, 10);
        t.enqueue(job())?;
    }
    let by_hand = t.client().run_schedule_now(id)?;
    let backfilled = t.client().backfill(id, Timestamp::EPOCH..moment(0)).expect_err("too many");
    assert_eq!(backfilled.kind(), ErrorKind::Invalid);
    t.client().backfill(id, moment(0).saturating_sub(secs(20))..moment(0))?;
    let all = t.client().list(Query::new().limit(1000))?.jobs;
    let expected: Vec<JobId> = all.iter().filter(|job| job.schedule == Some(id)).map(|job| job.id).collect();
    assert_eq!(expected.len(), 6 + 1 + 2);
    assert_eq!(expected[2], by_hand, "the newest first");
    for limit in 1..10 {
        let (mut found, mut next) = (Vec::new(), Some(Query::new().schedule(id).limit(limit)));
        while let Some(query) = next {
            let page = t.client().list(query)?;
            found.extend(page.jobs.into_iter().map(|job| job.id));
            next = page.next;
        }
        assert_eq!(found, expected, "{limit} a page");
    }
    let count = |query: Query| t.client().list(query).map(|page| page.jobs.len());
    assert_eq!(count(Query::new().schedule(id).statuses([Status::Completed]))?, 6);
    assert_eq!(count(Query::new().schedule(id).statuses([Status::Pending]))?, 3);
    assert_eq!(count(Query::new().schedule(other).statuses([Status::Completed]))?, 0);
    assert_eq!(count(Query::new().schedule(other).user("ada").kinds(["nobody's"]))?, 6);
    assert_eq!(t.client().for_user("ada")?.list(Query::new().schedule(id))?.jobs, []);
    // What is done to all of them is done to these alone, and asks each again.
    assert_eq!(t.client().select(Query::new().schedule(other))?.cancel()?.changed, 6);
    assert_eq!(t.client().select(Query::new().schedule(id).statuses([Status::Completed]))?.delete()?.changed, 6);
    t.client().delete_schedule(id)?;
    assert_eq!(count(Query::new().schedule(id))?, 3, "they stay when it goes");
    assert_eq!(t.client().verify()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn ticks_are_counted_by_what_became_of_them_and_how_late_they_were() -> jobmill::Result<()> {
    let t = harness();
    let plain = put(&t, &every(10));
    put(&t, &Schedule::every("queued", secs(10), stuck().queue("q")).overlap(Overlap::Queue));
    let rates = || t.client().metrics(jobmill::Window::Hour).map(|metrics| (metrics.total, metrics.kinds));
    assert_eq!((rates()?.0.ticked, t.client().prometheus()?.contains("jobmill_schedule_ticks_total{")), (0, false));
    pass(&t, 13);
    pass(&t, 10);
    pass(&t, 10);
    pass(&t, 30);
    let (total, kinds) = rates()?;
    // Of the first, one at 10, 20, 30 and 60; of the other, one runs, one waits, and the last one that is late is skipped.
    assert_eq!((kinds["report"].ticked, kinds["report"].ticks_missed, kinds["report"].ticks_skipped), (4, 2, 0));
    let stuck = &kinds["nobody's"];
    assert_eq!((stuck.ticked, stuck.ticks_missed, stuck.ticks_skipped), (1, 2, 2));
    assert_eq!((total.ticked, total.ticks_missed, total.ticks_skipped), (5, 4, 2));
    assert_eq!((total.tick_lateness.count(), total.tick_lateness.sum()), (5, secs(5 * 3)));
    // What has waited for another job ticks when that ends, and is no later for it.
    cancel_all(t.client());
    t.drain()?;
    let stuck = &rates()?.1["nobody's"];
    assert_eq!((stuck.ticked, stuck.tick_lateness.count()), (2, 1));
    // By hand is no tick.
    t.client().run_schedule_now(plain)?;
    let record = t.client().schedule_by_id(plain)?;
    assert_eq!((rates()?.1["report"].ticked, record.enqueued), (4, 5));
    // A change that misses a tick counts it.
    t.clock().advance(secs(20));
    put(&t, &every(11));
    assert_eq!(rates()?.1["report"].ticks_missed, 2 + 2);
    let text = t.client().prometheus()?;
    let ticks =
        "jobmill_schedule_ticks_total{queue=\"default\",kind=\"report\",priority=\"default\",outcome=\"missed\"} 4";
    assert!(text.contains(ticks), "{text}");
    let late = "jobmill_schedule_tick_late_seconds_count{queue=\"q\",kind=\"nobody's\",priority=\"default\"} 1";
    assert!(text.contains(late), "{text}");
    Ok(())
}

#[test]
fn the_health_tells_when_the_next_tick_is_due_and_how_late_the_oldest_is() -> jobmill::Result<()> {
    let t = harness();
    let health = || t.engine().health().schedules;
    assert_eq!((health().active, health().next_at, health().late_by), (0, None, Duration::ZERO));
    let id = put(&t, &every(10));
    put(&t, &every(30));
    let paused = put(&t, &Schedule::every("paused", secs(1), job()));
    t.client().pause_schedule(paused)?;
    put(&t, &Schedule::at("once", moment(5), stuck()));
    assert_eq!((health().active, health().next_at, health().late_by), (2, Some(moment(5)), Duration::ZERO));
    t.advance(secs(7));
    assert_eq!((health().active, health().next_at, health().late_by), (2, Some(moment(5)), secs(2)));
    let text = t.engine().health().to_string();
    assert!(text.contains("schedules: 2 active, a tick due since 2026-01-01T00:00:05.000000Z, for 2s"), "{text}");
    t.drain()?;
    assert_eq!((health().active, health().next_at, health().late_by), (1, Some(moment(30)), Duration::ZERO));
    assert!(t.engine().health().to_string().contains("schedules: 1 active, the next tick at 2026-01-01T00:00:30"));
    t.client().delete_schedule(id)?;
    assert_eq!((health().active, health().next_at), (0, None));
    Ok(())
}

#[test]
fn a_clock_that_ran_ahead_doubles_no_tick_and_silences_none() -> jobmill::Result<()> {
    for restarts in [false, true] {
        let mut t = harness();
        let id = put(&t, &every(10));
        let once = put(&t, &Schedule::at("once", moment(500), stuck()));
        pass(&t, 10);
        t.clock().jump(moment(40));
        t.drain()?;
        assert_eq!(ran_for(t.client()), [10, 40]);
        t.clock().jump(moment(15));
        if restarts {
            t.restart()?;
        }
        t.drain()?;
        assert_eq!(t.client().schedule_by_id(id)?.next_tick, Some(moment(20)), "restarted: {restarts}");
        assert_eq!(t.client().schedule_by_id(once)?.next_tick, Some(moment(500)));
        for _ in 0..4 {
            pass(&t, 10);
        }
        assert_eq!(ran_for(t.client()), [10, 40, 20, 30, 50], "restarted: {restarts}");
        assert_eq!(
            history(t.client(), id)[1..],
            ["20 to 30 missed 2", "40 ran", "20 ran", "30 ran", "40 had run", "50 ran"]
        );
    }
    Ok(())
}

#[test]
fn a_schedule_that_cannot_be_read_is_paused_and_holds_up_nobody() -> jobmill::Result<()> {
    let t = harness();
    let broken = put(&t, &Schedule::every("broken", secs(10), job()));
    put(&t, &every(10));
    let change = "UPDATE jobmill_schedule_definition SET definition = '{\"when\": \"never\"}' WHERE schedule = ?1";
    t.client().write(move |tx| -> jobmill::Result<()> {
        let id = broken.created_at().as_micros() << 10;
        let changed = tx.execute(change, [id]).expect("an update");
        assert_eq!(changed, 1);
        Ok(())
    })?;
    pass(&t, 10);
    assert_eq!(ran_for(t.client()), [10]);
    refused(t.client().resume_schedule(broken), ErrorKind::Conflict, &format!("{broken} must be stored anew"));
    let wrong = t.client().verify()?;
    assert!(wrong.len() == 1 && wrong[0].starts_with("the schedule broken (schedule-"), "{wrong:?}");
    assert!(t.client().schedule_by_id(broken).is_err());
    assert!(matches!(t.client().schedule(&Schedule::every("broken", secs(10), job()))?, Scheduled::Changed(_)));
    t.client().resume_schedule(broken)?;
    pass(&t, 10);
    assert_eq!(ran_for(t.client()), [10, 20, 20]);
    assert_eq!(t.client().verify()?, Vec::<String>::new());
    for (damage, mends) in [
        ("next_at = NULL", "next_at = tick"),
        ("next_at = tick - 1", "next_at = tick"),
        ("paused_at = 1", "paused_at = NULL"),
        ("waiting = 1, last_job = NULL", "waiting = NULL"),
        ("kind = 'other'", "kind = 'report'"),
    ] {
        let update = |set: &str| format!("UPDATE jobmill_schedule SET {set} WHERE name = 'test'");
        t.client().connection()?.execute(&update(damage), []).expect("an update");
        assert_eq!(t.client().verify()?.len(), 1, "{damage}");
        t.client().connection()?.execute(&update(mends), []).expect("an update");
        assert_eq!(t.client().verify()?, Vec::<String>::new(), "{damage}");
    }
    Ok(())
}

#[test]
fn a_tick_has_one_job_wherever_a_commit_fails() -> jobmill::Result<()> {
    let mut failures = 0;
    for fault in [Fault::Before, Fault::After] {
        for crashes in [false, true] {
            for n in 1..8 {
                let mut t = harness();
                let id = put(&t, &every(10));
                t.advance(secs(25));
                t.faults().fail(n, fault);
                let failed = t.drain().is_err();
                t.faults().heal();
                failures += usize::from(failed);
                if crashes {
                    t.crash()?;
                }
                t.drain()?;
                let jobs = t.client().list(Query::new())?.jobs;
                let ran: Vec<(Option<Timestamp>, Status)> =
                    jobs.iter().map(|job| (job.scheduled_for, job.status)).collect();
                assert_eq!(ran, [(Some(moment(20)), Status::Completed)], "{fault:?} {n}, failed: {failed}");
                assert_eq!(history(t.client(), id), ["10 to 10 missed 1", "20 ran"], "{fault:?} {n}");
                let record = t.client().schedule_by_id(id)?;
                assert_eq!((record.next_tick, record.enqueued, record.missed), (Some(moment(30)), 1, 1));
                assert_eq!(t.client().verify()?, Vec::<String>::new());
            }
        }
    }
    assert!(failures >= 4, "{failures}");
    Ok(())
}

#[test]
fn a_schedule_of_nine_o_clock_stays_at_nine() -> jobmill::Result<()> {
    let t = harness();
    t.clock().jump(at("2026-03-27T12:00:00Z"));
    put(&t, &Schedule::cron("nine", "0 9 * * *", job()).time_zone("Europe/Paris"));
    for _ in 0..4 * 24 {
        pass(&t, 3600);
    }
    let jobs = t.client().list(Query::new().order(Order::Ascending))?.jobs;
    let ran: Vec<String> = jobs.iter().map(|job| job.scheduled_for.expect("a tick").to_string()).collect();
    let utc = |day: &str| format!("2026-03-{day}:00:00.000000Z");
    assert_eq!(ran, [utc("28T08"), utc("29T07"), utc("30T07"), utc("31T07")]);
    Ok(())
}

#[test]
fn jitter_delays_a_tick_and_moves_none() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &every(100).jitter(secs(60)));
    let mut delays = Vec::new();
    for number in 1..=10 {
        let record = t.client().schedule_by_id(id)?;
        assert_eq!(record.next_tick, Some(moment(100 * number)));
        let due = record.next_at.expect("a tick");
        t.clock().jump(Timestamp::from_micros(due.as_micros() - 1));
        assert_eq!(t.drain()?, 0, "not before");
        t.clock().jump(due);
        assert_eq!(t.drain()?, 1);
        delays.push(due.since(moment(100 * number)));
    }
    assert!(delays.iter().all(|delay| *delay <= secs(60)), "{delays:?}");
    delays.dedup();
    assert!(delays.len() > 5, "each tick has its own: {delays:?}");
    Ok(())
}

#[test]
fn an_engine_without_threads_ticks_only_when_it_drains() -> jobmill::Result<()> {
    let t = harness();
    put(&t, &every(10));
    t.advance(secs(10));
    t.enqueue(stuck())?;
    assert_eq!(ran_for(t.client()).len(), 0);
    t.drain()?;
    assert_eq!(ran_for(t.client()), [10]);
    assert_eq!(t.clock().now(), moment(10));
    Ok(())
}
