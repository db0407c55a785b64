//! What a start does to the schedules and limits in the file: which it changes, and all of them or none.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jobmill::testing::{Fault, Harness, ManualClock};
use jobmill::{
    Client, Durability, Engine, EngineBuilder, ErrorKind, Limit, LimitUse, NewJob, Overlap, Query, Schedule,
    ScheduleQuery, Timestamp,
};

use crate::support::said::Said;
use crate::support::{file, refused, secs, sound};

/// A job that nobody here runs.
fn stuck() -> NewJob {
    NewJob::json("nobody's", &())
}

fn builder(path: &Path, clock: &ManualClock) -> EngineBuilder {
    Engine::builder(path).durability(Durability::Normal).clock(clock.clone())
}

fn moment(seconds: u64) -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000).saturating_add(secs(seconds))
}

/// Two programs that meant one schedule by two intervals silenced it: each start began the interval anew.
#[test]
fn programs_that_define_a_schedule_differently_do_not_silence_it() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let clock = ManualClock::default();
    let hours = |hours: u64| Schedule::every("backup", secs(hours * 3600), stuck());
    let daily = || Schedule::cron("backup", "@daily", stuck());
    let mut starts = [hours(1), hours(2), daily(), hours(2)].into_iter().cycle();
    for _ in 0..48 {
        let engine = builder(&path, &clock).schedule(starts.next().expect("no end")).inline()?;
        engine.drain()?;
        clock.advance(secs(50 * 60));
        engine.drain()?;
        engine.shutdown(secs(0))?;
    }
    let client = Client::open(&path)?;
    let record = client.schedule_by_name("backup")?;
    assert_eq!(record.anchor, moment(0), "when it was stored first");
    let ticks: Vec<_> =
        client.list(Query::new().limit(100))?.jobs.into_iter().filter_map(|job| job.scheduled_for).collect();
    assert!(record.enqueued >= 10, "{record:?}");
    for tick in ticks {
        assert_eq!(tick.since(moment(0)).as_secs() % 3600, 0, "{tick}");
    }
    sound(&client);
    Ok(())
}

#[test]
fn a_start_that_changes_a_schedule_says_so_once() -> jobmill::Result<()> {
    let Some(said) = Said::alone("schedule_start::a_start_that_changes_a_schedule_says_so_once") else {
        return Ok(());
    };
    let (_directory, path) = file();
    let clock = ManualClock::default();
    let start = |schedule: Schedule| {
        builder(&path, &clock)
            .schedule(schedule)
            .schedule(Schedule::every("other", secs(60), stuck()))
            .inline()
            .and_then(|engine| engine.shutdown(secs(0)))
    };
    let every = |seconds| Schedule::every("backup", secs(seconds), stuck());
    let words = "INFO this start changes the stored schedule backup: ";
    for _ in 0..2 {
        start(every(3600))?;
    }
    assert_eq!(said.count("changes the stored schedule"), 0, "{}", said.lines());
    for _ in 0..2 {
        start(every(7200).overlap(Overlap::Skip))?;
    }
    assert_eq!(said.count(&format!("{words}every 3600s is every 7200s now; overlap")), 1, "{}", said.lines());
    let nightly = || Schedule::cron("backup", "0 3 * * *", NewJob::json("nobody's", &7)).time_zone("Europe/Paris");
    start(nightly().overlap(Overlap::Skip))?;
    let cron = "every 7200s is \"0 3 * * *\" in Europe/Paris now; job";
    assert_eq!(said.count(&format!("{words}{cron}")), 1, "{}", said.lines());
    assert_eq!(said.count("changes the stored schedule"), 2, "{}", said.lines());
    Ok(())
}

/// The limits and schedules before the one that was refused stood in the file, and bound other programs.
#[test]
fn a_start_that_fails_leaves_nothing_that_it_would_have_set() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let clock = ManualClock::default();
    let full = || {
        builder(&path, &clock)
            .limit(Limit::new("api").concurrency(1))
            .limit_queue(Limit::new("mail").concurrency(1))
            .schedule(Schedule::every("good", secs(60), stuck().limit(LimitUse::of("api"))))
    };
    let bad = full().schedule(Schedule::every("bad", secs(60), stuck().limit(LimitUse::of("apy"))));
    let says = "limit: there is no limit \"apy\": set it first (schedule \"bad\")";
    refused(bad.inline().map(drop), ErrorKind::Invalid, says);
    let client = Client::open(&path)?;
    let set = || {
        let schedules = client.schedules(ScheduleQuery::new()).expect("a page").schedules.len();
        let limits = client.limits().expect("the limits").len();
        let queues = client.queue_limits().expect("the limits").len();
        (limits, queues, schedules, client.audit(None, 10).expect("the audit").len())
    };
    assert_eq!(set(), (0, 0, 0, 0));
    let files = std::fs::read_dir(path.parent().expect("a directory")).expect("a directory");
    let names: Vec<String> =
        files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().all(|name| matches!(&**name, "jobs.db" | "jobs.db-wal" | "jobs.db-shm")), "{names:?}");
    sound(&client);
    full().inline()?.shutdown(secs(0))?;
    assert_eq!(set(), (1, 1, 1, 3), "a schedule may name a limit of the same start");
    Ok(())
}

#[test]
fn a_start_sets_all_or_nothing_wherever_a_commit_fails() -> jobmill::Result<()> {
    for nth in 1.. {
        let sets = Arc::new(AtomicBool::new(false));
        let says = sets.clone();
        let mut t = Harness::new(move |builder| {
            let builder = builder.durability(Durability::Normal);
            if !says.load(Ordering::Relaxed) {
                return builder;
            }
            let of_limit = Schedule::every("one", secs(60), stuck().limit(LimitUse::of("api")));
            let builder =
                builder.limit(Limit::new("api").concurrency(1)).limit_queue(Limit::new("mail").concurrency(1));
            builder.schedule(of_limit).schedule(Schedule::every("two", secs(60), stuck()))
        })?;
        sets.store(true, Ordering::Relaxed);
        t.faults().fail(nth, Fault::Before);
        let started = t.crash();
        let client = Client::open(t.path())?;
        let set = (
            client.limits()?.len(),
            client.queue_limits()?.len(),
            client.schedules(ScheduleQuery::new())?.schedules.len(),
        );
        if started.is_ok() {
            assert!(nth > 2, "a start commits more than {nth} times");
            assert_eq!(set, (1, 1, 2));
            return Ok(());
        }
        assert!([(0, 0, 0), (1, 1, 2)].contains(&set), "{set:?}, when the commit {nth} fails");
    }
    Ok(())
}
