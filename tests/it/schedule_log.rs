//! What the log says of schedules: each thing once, when it begins, and not in each turn.

use std::time::Duration;

use jobmill::testing::{Fault, Harness, ManualClock};
use jobmill::{Durability, Engine, Missed, NewJob, Overlap, Query, Schedule, Status, Timestamp};

use crate::support::said::Said;
use crate::support::{Echo, PATIENCE, echo, file, secs, until};

/// A job that nobody here runs, so that it stays under way until it is cancelled.
fn stuck() -> NewJob {
    NewJob::json("nobody's", &())
}

fn turns(t: &Harness, count: usize) {
    for _ in 0..count {
        t.drain().expect("a drain");
        // Something else to write, so that a turn is taken.
        t.enqueue(Echo::job("a")).expect("a job");
    }
}

fn cancel_all(t: &Harness) {
    for job in t.client().list(Query::new().statuses([Status::Pending])).expect("a page").jobs {
        t.client().cancel(job.id).expect("a cancelled job");
    }
}

#[test]
fn ticks_that_are_missed_are_said_once_for_each_time() -> jobmill::Result<()> {
    let Some(said) = Said::alone("schedule_log::ticks_that_are_missed_are_said_once_for_each_time") else {
        return Ok(());
    };
    let t = Harness::new(|builder| builder.durability(Durability::Normal).handle(echo))?;
    t.client().schedule(&Schedule::every("plain", secs(10), Echo::job("a")))?;
    let strict = Schedule::every("strict", secs(10), Echo::job("a")).missed(Missed::Skip).grace(Duration::ZERO);
    t.client().schedule(&strict)?;
    turns(&t, 3);
    assert_eq!(said.count("has missed"), 0);
    t.advance(secs(10));
    turns(&t, 3);
    assert_eq!(said.count("has missed"), 0, "{}", said.lines());
    t.advance(secs(45));
    // A turn that fails has said nothing.
    t.faults().fail(1, Fault::Before);
    assert!(t.drain().is_err());
    assert_eq!(said.count("has missed"), 0, "{}", said.lines());
    t.faults().heal();
    turns(&t, 3);
    let plain = "WARN the schedule plain has missed 3 ticks, from 2026-01-01T00:00:20.000000Z to 2026-01-01T00:00:40";
    assert_eq!((said.count(plain), said.count("the schedule plain")), (1, 1), "{}", said.lines());
    assert_eq!(said.count("the schedule strict has missed 4 ticks"), 1);
    // One that misses each of its ticks is not told of each time; one that has run between is.
    for _ in 0..5 {
        t.advance(secs(10));
        turns(&t, 2);
    }
    assert_eq!((said.count("the schedule plain"), said.count("the schedule strict")), (1, 1), "{}", said.lines());
    t.advance(secs(45));
    turns(&t, 2);
    assert_eq!(said.count("the schedule plain has missed"), 2, "{}", said.lines());
    Ok(())
}

#[test]
fn ticks_that_are_skipped_are_said_once_for_the_job_that_they_would_overlap() -> jobmill::Result<()> {
    let name = "schedule_log::ticks_that_are_skipped_are_said_once_for_the_job_that_they_would_overlap";
    let Some(said) = Said::alone_down_to(log::LevelFilter::Debug, name) else { return Ok(()) };
    let t = Harness::new(|builder| builder.durability(Durability::Normal).handle(echo))?;
    t.client().schedule(&Schedule::every("a", secs(10), stuck()).overlap(Overlap::Skip))?;
    t.client().schedule(&Schedule::every("b", secs(10), stuck()).overlap(Overlap::Allow))?;
    for round in 1..=2 {
        for _ in 0..4 {
            t.advance(secs(10));
            turns(&t, 2);
        }
        // It was asked for, and is nothing to look into.
        let words = "DEBUG the schedule a skips ticks from 2026-01-01T00:00:20.000000Z on, for job-";
        assert_eq!((said.count(words), said.count("skips ticks")), (1, round), "{}", said.lines());
        cancel_all(&t);
    }
    Ok(())
}

#[test]
fn jumps_of_the_clock_are_said_once_each() -> jobmill::Result<()> {
    let Some(said) = Said::alone("schedule_log::jumps_of_the_clock_are_said_once_each") else { return Ok(()) };
    let t = Harness::new(|builder| builder.durability(Durability::Normal).handle(echo))?;
    t.client().schedule(&Schedule::every("a", secs(10), Echo::job("a")))?;
    turns(&t, 3);
    let to = |t: &Harness, seconds: u64| {
        t.clock().jump(Timestamp::from_micros(1_767_225_600_000_000).saturating_add(secs(seconds)));
        turns(t, 3);
    };
    to(&t, 86_400);
    assert_eq!(
        (said.count("WARN the clock went forward by 86400s"), said.count("forward")),
        (1, 1),
        "{}",
        said.lines()
    );
    to(&t, 86_400 - 3600);
    assert_eq!((said.count("WARN the clock was set back by 3600s"), said.count("set back by")), (1, 1));
    assert_eq!(said.count("INFO 1 schedules were reckoned under a clock that ran ahead"), 1, "{}", said.lines());
    turns(&t, 3);
    to(&t, 86_400 - 3599);
    assert_eq!((said.count("forward"), said.count("set back by"), said.count("ran ahead")), (1, 1, 1));
    Ok(())
}

#[test]
fn a_sleep_that_both_clocks_have_seen_is_said_once() -> jobmill::Result<()> {
    let Some(said) = Said::alone("schedule_log::a_sleep_that_both_clocks_have_seen_is_said_once") else {
        return Ok(());
    };
    let (_directory, path) = file();
    let clock = ManualClock::default();
    let engine = Engine::builder(&path).durability(Durability::Normal).clock(clock.clone()).handle(echo).start()?;
    let schedule = Schedule::every("a", secs(10), Echo::job("a"));
    let id = engine.client().schedule(&schedule)?.id();
    let runs = |count: u64| until("a tick", || engine.client().schedule_by_id(id).is_ok_and(|it| it.enqueued == count));
    for count in 1..=2 {
        clock.advance(secs(10));
        runs(count);
    }
    assert_eq!(said.count("slept"), 0, "{}", said.lines());
    clock.advance(secs(3600));
    until("the sleep is noticed", || said.count("slept") > 0);
    runs(3);
    clock.advance(secs(10));
    runs(4);
    // It may not have looked since the last ticks, 10 s and 20 s before: a worker takes a turn for the end of its job.
    let words = ["3600s", "3610s", "3620s"].map(|time| format!("WARN nothing was looked at for {time}: the machine"));
    assert_eq!(words.iter().map(|words| said.count(words)).sum::<usize>(), 1, "{}", said.lines());
    assert_eq!((said.count("slept"), said.count("the schedule a has missed 359 ticks")), (1, 1), "{}", said.lines());
    engine.shutdown(PATIENCE)?;
    Ok(())
}

#[test]
fn schedules_that_nobody_can_run_are_said_at_the_start() -> jobmill::Result<()> {
    let Some(said) = Said::alone("schedule_log::schedules_that_nobody_can_run_are_said_at_the_start") else {
        return Ok(());
    };
    let mut t = Harness::new(|builder| {
        let builder = builder.durability(Durability::Normal).handle(echo);
        let builder = builder.schedule(Schedule::every("one", secs(10), stuck()));
        builder.schedule(Schedule::every("two", secs(10), stuck())).schedule(Schedule::every(
            "a",
            secs(10),
            Echo::job("a"),
        ))
    })?;
    let words = "WARN no open engine has a handler for the kind nobody's, of the schedules one, two";
    for start in 1..=2 {
        for _ in 0..3 {
            t.advance(secs(10));
            turns(&t, 2);
        }
        assert_eq!((said.count(words), said.count("has a handler")), (start, start), "{}", said.lines());
        t.restart()?;
    }
    assert_eq!(said.count("WARN"), 3, "and nothing else: {}", said.lines());
    Ok(())
}
