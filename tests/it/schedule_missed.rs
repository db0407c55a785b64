//! What becomes of ticks that were missed, or whose schedule was paused or changed in between.

use std::time::Duration;

use jobmill::testing::Fault;
use jobmill::{Clock, Missed, Overlap, Schedule, Scheduled, Timestamp};

use crate::schedule::{at, cancel_all, every, harness, history, job, moment, pass, put, ran_for, since_start, stuck};
use crate::support::secs;

#[test]
fn missed_ticks_are_skipped_or_made_up_for_as_the_schedule_says() {
    for (schedule, ran, lines) in [
        (every(10).missed(Missed::Skip), vec![], vec!["10 to 50 missed 5"]),
        (every(10).missed(Missed::Skip).grace(secs(5)), vec![50], vec!["10 to 40 missed 4", "50 ran"]),
        (every(10), vec![50], vec!["10 to 40 missed 4", "50 ran"]),
        (every(10).grace(secs(4)), vec![], vec!["10 to 50 missed 5"]),
        (every(10).missed(Missed::All(2)), vec![40, 50], vec!["10 to 30 missed 3", "40 ran", "50 ran"]),
        (
            every(10).missed(Missed::All(9)),
            vec![10, 20, 30, 40, 50],
            vec!["10 ran", "20 ran", "30 ran", "40 ran", "50 ran"],
        ),
        (every(10).missed(Missed::All(9)).grace(secs(15)), vec![40, 50], vec!["10 to 30 missed 3", "40 ran", "50 ran"]),
        (every(10).ends_at(moment(25)), vec![20], vec!["10 to 10 missed 1", "20 ran"]),
        (Schedule::at("test", moment(50), job()), vec![50], vec!["50 ran"]),
        (Schedule::at("test", moment(30), job()).missed(Missed::Skip), vec![], vec!["30 to 30 missed 1"]),
    ] {
        // A grace of Skip's own is 10 s, so that the last tick, which is 5 s late, needs another one to be missed.
        let schedule = if lines == ["10 to 50 missed 5"] && schedule == every(10).missed(Missed::Skip) {
            schedule.grace(Duration::ZERO)
        } else {
            schedule
        };
        let t = harness();
        let id = put(&t, &schedule);
        pass(&t, 55);
        assert_eq!(ran_for(t.client()), ran, "{schedule:?}");
        assert_eq!(history(t.client(), id), lines, "{schedule:?}");
        let record = t.client().schedule_by_id(id).expect("a schedule");
        assert_eq!(record.enqueued, ran.len() as u64);
        pass(&t, 5);
        let goes_on = record.next_tick == Some(moment(60));
        assert_eq!(ran_for(t.client()).last() == Some(&60), goes_on, "{schedule:?}");
    }
}

#[test]
fn many_missed_ticks_are_made_up_for_in_several_turns() {
    let t = harness();
    let id = put(&t, &Schedule::every("test", secs(1), job()).missed(Missed::All(1000)));
    pass(&t, 700);
    assert_eq!(ran_for(t.client()), (1..=700).collect::<Vec<i64>>());
    let lines = history(t.client(), id);
    assert_eq!(lines.len(), Schedule::HISTORY, "the newest lines are kept");
    assert_eq!((lines[0].as_str(), lines[99].as_str()), ("601 ran", "700 ran"));
    assert_eq!(t.client().ticks(id).expect("lines")[0].number, 700);
}

/// What is late is made up for in several turns, and where they stopped stands in the file.
#[test]
fn a_backlog_that_is_cut_off_goes_on_where_it_stopped() -> jobmill::Result<()> {
    let mut failures = 0;
    for (n, fault) in [(1, Fault::After), (2, Fault::Before), (3, Fault::After), (4, Fault::Before), (5, Fault::After)]
    {
        let mut t = harness();
        let weekdays = Schedule::cron("test", "0 9 * * MON-FRI", stuck()).missed(Missed::All(1000));
        let id = put(&t, &weekdays);
        let first = t.client().schedule_by_id(id)?.next_tick.expect("a tick");
        t.clock().jump(at("2031-01-01T00:00:00Z"));
        t.faults().fail_from(n, fault);
        failures += usize::from(t.drain().is_err());
        t.faults().heal();
        t.crash()?;
        t.drain()?;
        let all = weekdays.preview(moment(0), 1000)?;
        let mut all: Vec<Timestamp> = all.iter().copied().chain(weekdays.preview(all[999], 1000)?).collect();
        all.retain(|tick| *tick <= t.clock().now());
        let expected: Vec<i64> = all[all.len() - 1000..].iter().map(|tick| since_start(*tick)).collect();
        assert_eq!(ran_for(t.client()), expected, "{fault:?} {n}");
        let record = t.client().schedule_by_id(id)?;
        assert_eq!((record.enqueued, record.missed), (1000, all.len() as u64 - 1000), "{fault:?} {n}");
        assert_eq!((all[0], record.next_tick), (first, Some(at("2031-01-01T09:00:00Z"))));
        assert_eq!(t.client().verify()?, Vec::<String>::new());
    }
    assert!(failures >= 4, "{failures}");
    Ok(())
}

/// All that a turn looked at was how many jobs it enqueued, and each of these schedules enqueues one.
#[test]
fn a_turn_reckons_no_more_than_it_may_of_what_many_schedules_have_missed() -> jobmill::Result<()> {
    let t = harness();
    for number in 0..40 {
        put(&t, &Schedule::cron(format!("test {number}"), "* * * * * *", stuck()));
    }
    t.clock().jump(at("2036-01-01T00:00:00Z"));
    let before = t.faults().commits();
    t.drain()?;
    assert_eq!(ran_for(t.client()).len(), 40);
    let turns = t.faults().commits() - before;
    // Each of them counts a thousand missed ticks.
    assert!(turns >= 40 / 2, "{turns} turns");
    Ok(())
}

#[test]
fn more_schedules_than_a_turn_ticks_are_all_ticked() -> jobmill::Result<()> {
    let t = harness();
    for number in 0..450 {
        put(&t, &Schedule::every(format!("test {number}"), secs(10), job()));
    }
    t.advance(secs(10));
    assert_eq!(t.drain()?, 450);
    assert_eq!(t.drain()?, 0);
    Ok(())
}

#[test]
fn a_moment_that_is_over_when_it_is_stored_was_missed() {
    for (schedule, ran) in [
        (Schedule::at("test", moment(0), job()), vec![0]),
        (Schedule::at("test", moment(0), job()).missed(Missed::Skip), vec![]),
        (Schedule::at("test", moment(15), job()).missed(Missed::Skip), vec![15]),
    ] {
        let t = harness();
        t.advance(secs(20));
        put(&t, &schedule);
        t.drain().expect("a drain");
        assert_eq!(ran_for(t.client()), ran, "{schedule:?}");
        // It is over: to store it again changes nothing.
        assert!(matches!(t.client().schedule(&schedule), Ok(Scheduled::Unchanged(_))));
        pass(&t, 100);
        assert_eq!(ran_for(t.client()), ran, "{schedule:?}");
    }
}

#[test]
fn a_paused_schedule_goes_on_with_the_next_tick() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &Schedule::every("test", secs(10), stuck()).overlap(Overlap::Queue));
    pass(&t, 10);
    pass(&t, 10);
    t.client().pause_schedule(id)?;
    t.client().pause_schedule(id)?;
    let record = t.client().schedule_by_id(id)?;
    assert_eq!((record.paused_at, record.next_tick, record.waiting_tick), (Some(moment(20)), None, None));
    cancel_all(t.client());
    pass(&t, 45);
    // Another definition does not wake it.
    put(&t, &Schedule::every("test", secs(20), job()));
    pass(&t, 45);
    assert_eq!(ran_for(t.client()), [10]);
    put(&t, &every(10));
    t.client().resume_schedule(id)?;
    t.client().resume_schedule(id)?;
    pass(&t, 10);
    assert_eq!(ran_for(t.client()), [10, 120], "what fell into the pause is not made up for");
    assert_eq!(history(t.client(), id), ["10 ran", "20 skipped", "120 ran"]);
    Ok(())
}

/// A tick that had come, and waited for its delay or for an engine, was lost without a trace when its schedule was paused.
#[test]
fn ticks_that_have_come_when_their_schedule_is_paused_are_told_of() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &Schedule::every("test", secs(10), stuck()).overlap(Overlap::Queue));
    let lines = || history(t.client(), id);
    t.client().pause_schedule(id)?;
    t.client().resume_schedule(id)?;
    assert_eq!(lines(), Vec::<String>::new(), "none has come");
    t.advance(secs(35));
    t.client().pause_schedule(id)?;
    assert_eq!(lines(), ["10 to 30 missed 3, paused"]);
    t.client().pause_schedule(id)?;
    t.client().resume_schedule(id)?;
    pass(&t, 5);
    pass(&t, 10);
    t.advance(secs(10));
    t.client().pause_schedule(id)?;
    let expected = ["10 to 30 missed 3, paused", "40 ran", "50 skipped", "60 to 60 missed 1, paused"];
    assert_eq!(lines(), expected);
    let record = t.client().schedule_by_id(id)?;
    assert_eq!((record.enqueued, record.missed, record.skipped, record.waiting_tick), (1, 4, 1, None));
    let total = t.client().metrics(jobmill::Window::Hour)?.total;
    assert_eq!((total.ticked, total.ticks_missed, total.ticks_skipped), (1, 4, 1));
    let json = serde_json::to_value(t.client().ticks(id)?[0]).expect("JSON");
    assert_eq!((&json["outcome"], &json["by"], &json["count"]), (&"missed".into(), &"pause".into(), &1.into()));
    assert_eq!(t.client().verify()?, Vec::<String>::new());

    let delayed = put(&t, &Schedule::cron("delayed", "* * * * *", job()).jitter(secs(59)));
    t.clock().jump(moment(120));
    assert!(t.client().schedule_by_id(delayed)?.next_at > Some(moment(120)), "it has come, and is not due");
    t.client().pause_schedule(delayed)?;
    assert_eq!(history(t.client(), delayed), ["120 to 120 missed 1, paused"]);

    // Where the history goes, the counters tell.
    let deleted = put(&t, &Schedule::every("deleted", secs(10), job()));
    t.advance(secs(25));
    t.client().delete_schedule(deleted)?;
    assert_eq!(t.client().metrics(jobmill::Window::Hour)?.kinds["report"].ticks_missed, 1 + 2);
    Ok(())
}

/// A tick that had come, and waited for its delay or for an engine, was lost without a trace when its schedule was changed.
#[test]
fn a_tick_that_has_come_is_kept_or_counted_when_its_schedule_is_changed() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &every(100).jitter(secs(60)));
    let due = t.client().schedule_by_id(id)?.next_at.expect("a tick").since(moment(100));
    assert!(due > secs(2), "{due:?}");
    t.clock().jump(moment(101));
    t.client().schedule(&every(100).jitter(secs(50)))?;
    assert_eq!(t.client().schedule_by_id(id)?.next_tick, Some(moment(100)));
    pass(&t, 60);
    assert_eq!(ran_for(t.client()), [100]);
    // It is none of the new ones.
    t.clock().jump(moment(450));
    t.client().schedule(&every(7))?;
    let record = t.client().schedule_by_id(id)?;
    assert_eq!((record.next_tick, record.missed), (Some(moment(455)), 3));
    assert_eq!(history(t.client(), id), ["100 ran", "200 to 400 missed 3, changed"]);
    pass(&t, 7);
    assert_eq!(ran_for(t.client()), [100, 455]);
    assert_eq!(t.client().verify()?, Vec::<String>::new());
    Ok(())
}
