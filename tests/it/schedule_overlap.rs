//! Ticks whose earlier job has not ended yet.

use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use jobmill::testing::Harness;
use jobmill::{Client, Context, Durability, Engine, Failure, JobId, Outcome, Overlap, Query, Schedule, Timestamp};

use crate::schedule::{Report, cancel_all, every, harness, history, job, moment, pass, put, ran_for, stuck};
use crate::support::{PATIENCE, file, secs};

#[test]
fn a_tick_overlaps_is_skipped_or_waits_as_the_schedule_says() {
    let of = |overlap| Schedule::every("test", secs(10), stuck()).overlap(overlap);
    for (schedule, ran, lines) in [
        (of(Overlap::Allow), vec![10, 20, 30, 40], vec!["10 ran", "20 ran", "30 ran", "40 ran"]),
        (of(Overlap::Skip), vec![10], vec!["10 ran", "20 skipped", "30 skipped", "40 skipped"]),
        (of(Overlap::Queue), vec![10], vec!["10 ran", "30 skipped", "40 skipped"]),
    ] {
        let t = harness();
        let id = put(&t, &schedule);
        for _ in 0..4 {
            pass(&t, 10);
        }
        assert_eq!(ran_for(t.client()), ran, "{schedule:?}");
        assert_eq!(history(t.client(), id), lines, "{schedule:?}");
        cancel_all(t.client());
        pass(&t, 1);
        let is_queue = schedule == of(Overlap::Queue);
        assert_eq!(ran_for(t.client()).last() == Some(&20), is_queue, "what has waited runs when the job has ended");
        pass(&t, 9);
        let record = t.client().schedule_by_id(id).expect("a schedule");
        assert_eq!(record.waiting_tick, is_queue.then(|| moment(50)), "{schedule:?}");
        assert_eq!(record.skipped, lines.iter().filter(|line| line.ends_with("skipped")).count() as u64);
    }
}

#[test]
fn a_tick_that_waits_runs_in_the_turn_in_which_the_job_ends() -> jobmill::Result<()> {
    let slow = |_: Report, ctx: &Context| -> Result<Outcome<()>, Failure> {
        let is_woken = ctx.saved::<bool>()?.is_some();
        ctx.save(&true)?;
        Ok(if is_woken { Outcome::Done(()) } else { Outcome::Snooze(secs(25)) })
    };
    let t = Harness::new(move |builder| builder.durability(Durability::Normal).handle(slow))?;
    let id = put(&t, &every(10).overlap(Overlap::Queue));
    for _ in 0..3 {
        pass(&t, 10);
    }
    assert_eq!(ran_for(t.client()), [10]);
    assert_eq!(t.client().schedule_by_id(id)?.waiting_tick, Some(moment(20)));
    pass(&t, 5);
    assert_eq!(ran_for(t.client()), [10, 20]);
    assert_eq!(history(t.client(), id), ["10 ran", "30 skipped", "20 ran"]);
    Ok(())
}

#[test]
fn a_tick_that_waits_for_a_job_that_ends_elsewhere_is_found() -> jobmill::Result<()> {
    let t = harness();
    let id = put(&t, &Schedule::every("test", secs(10), stuck()).overlap(Overlap::Queue));
    pass(&t, 10);
    pass(&t, 10);
    assert_eq!(t.client().schedule_by_id(id)?.waiting_tick, Some(moment(20)));
    // As another process would. It is looked for once a second at most.
    let other = Client::open(t.path())?;
    cancel_all(&other);
    drop(other);
    pass(&t, 1);
    assert_eq!(ran_for(t.client()), [10, 20]);
    assert_eq!(t.client().schedule_by_id(id)?.waiting_tick, None);
    Ok(())
}

#[test]
fn a_queued_tick_follows_at_once_in_a_running_engine() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (told, ticks) = unbounded::<Timestamp>();
    let (go, gate) = crossbeam_channel::bounded::<()>(0);
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .state(told)
        .state(gate)
        .handle(|_: Report, ctx: &Context| -> Result<(), Failure> {
            let told = ctx.state::<Sender<Timestamp>>()?;
            let _ = told.send(ctx.scheduled_for().expect("a tick"));
            let _ = ctx.state::<crossbeam_channel::Receiver<()>>()?.recv();
            Ok(())
        })
        .schedule(Schedule::every("test", Duration::from_millis(20), job()).overlap(Overlap::Queue))
        .start()?;
    let mut last = Timestamp::EPOCH;
    for _ in 0..4 {
        let tick = ticks.recv_timeout(PATIENCE).expect("a tick");
        assert!(tick > last);
        last = tick;
        let id = engine.client().schedule_by_name("test")?.id;
        crate::support::until("a tick that waits", || {
            engine.client().schedule_by_id(id).is_ok_and(|record| record.waiting_tick.is_some())
        });
        assert!(ticks.is_empty(), "jobs do not overlap");
        go.send(()).expect("a handler that waits");
    }
    drop(go);
    engine.shutdown(PATIENCE)?;
    Ok(())
}

#[test]
fn a_job_that_was_deleted_overlaps_nothing() -> jobmill::Result<()> {
    let t = harness();
    put(&t, &Schedule::every("test", secs(10), stuck()).overlap(Overlap::Skip));
    pass(&t, 10);
    let first: JobId = t.client().list(Query::new())?.jobs[0].id;
    t.client().delete(first)?;
    pass(&t, 10);
    assert_eq!(ran_for(t.client()), [20]);
    Ok(())
}
