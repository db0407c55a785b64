//! What a start does to the schedules and limits in the file: which it changes, and all of them or none.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jobmill::testing::{Fault, Harness, ManualClock};
use jobmill::{Client, Durability, Engine, EngineBuilder, ErrorKind, Limit, LimitUse, NewJob, Schedule, ScheduleQuery};

use crate::support::{file, refused, secs, sound};

/// A job that nobody here runs.
fn stuck() -> NewJob {
    NewJob::json("nobody's", &())
}

fn builder(path: &Path, clock: &ManualClock) -> EngineBuilder {
    Engine::builder(path).durability(Durability::Normal).clock(clock.clone())
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
