//! What is left when an engine ends, well or badly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use jobmill::testing::{Fault, Harness};
use jobmill::{
    Cancelled, Client, Context, Durability, Engine, Failure, NewJob, Payload, Query, Retention, Status, Unique, Workers,
};
use serde::{Deserialize, Serialize};

use crate::support::{Echo, echo, query, secs, sound, tamper};

#[derive(Serialize, Deserialize)]
struct Task;

impl Payload for Task {
    const KIND: &'static str = "task";
}

/// A job that waits to be released, or does not.
#[derive(Serialize, Deserialize)]
struct Wait(bool);

impl Payload for Wait {
    const KIND: &'static str = "wait";
}

/// A job that fails for good, or does not.
#[derive(Serialize, Deserialize)]
struct Fails(bool);

impl Payload for Fails {
    const KIND: &'static str = "fails";
}

/// A worker overwrote the mark that a job had begun while the job's end was not committed yet.
#[test]
fn an_attempt_that_ended_unwritten_is_spent_by_a_crash() -> jobmill::Result<()> {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let mut t = Harness::new(move |builder| {
        let runs = counted.clone();
        builder.handle(move |_: Task, _: &Context| -> Result<(), Failure> {
            runs.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    })?;
    let once = t.enqueue(NewJob::of(&Task).max_attempts(1))?;
    let twice = t.enqueue(NewJob::of(&Task).max_attempts(2))?;
    t.faults().fail(2, Fault::Before);
    assert!(t.drain().is_err(), "the claim is committed, and the ends are not");
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    t.crash()?;
    t.drain()?;
    t.check(once, "failed, attempt 1: the process died while the handler ran");
    t.check(twice, "completed, attempt 2");
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    assert!(t.client().verify()?.is_empty());
    Ok(())
}

/// The ends that workers handed in after the dispatcher's last turn were lost, and so were claims of a turn that was
/// under way when the claiming stopped: these jobs were running for ever, under an engine that had signed off.
#[test]
fn a_shutdown_under_load_leaves_no_job_running() -> jobmill::Result<()> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("jobs.db");
    let ask = Client::open(&path)?;
    for round in 0..50 {
        let (began, begun) = bounded(2);
        let (release, released): (Sender<()>, _) = bounded(0);
        let engine = Engine::builder(&path)
            .workers(Workers::new(2))
            .durability(Durability::Normal)
            .handle(move |wait: Wait, _: &Context| -> Result<(), Failure> {
                if wait.0 {
                    let _ = began.send(());
                    let _ = released.recv();
                }
                Ok(())
            })
            .start()?;
        // Jobs of a kind that takes no time are claimed ahead.
        for id in engine.client().enqueue_many((0..20).map(|_| &Wait(false)))? {
            engine.client().wait(id.id(), Duration::from_secs(20))?;
        }
        let waiting = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| while engine.client().enqueue(&Wait(false)).is_ok() {});
            }
            let waiting = engine.client().enqueue_many([&Wait(true), &Wait(true)])?;
            let _ = (begun.recv(), begun.recv());
            assert_eq!(engine.shutdown(Duration::from_millis(5))?.returned, 2);
            jobmill::Result::Ok(waiting)
        })?;
        drop(release);
        assert_eq!(ask.stats()?.total.running, 0, "round {round}");
        assert_eq!(ask.verify()?, Vec::<String>::new(), "round {round}");
        for id in waiting {
            assert_eq!(ask.cancel(id.id())?, Cancelled::Now);
        }
        // The next round does not wait for what is left of this one.
        ask.select(Query::new().statuses([Status::Pending]))?.cancel()?;
    }
    Ok(())
}

/// A running job that was asked to stop went back to pending with the shutdown, and ran again.
#[test]
fn a_request_to_cancel_outlives_the_shutdown() -> jobmill::Result<()> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("jobs.db");
    let (began, begun) = bounded(1);
    let (_keep, never): (_, Receiver<()>) = bounded(0);
    let deaf = move |_: Task, _: &Context| -> Result<(), Failure> {
        let _ = began.send(());
        let _ = never.recv();
        Ok(())
    };
    let engine = Engine::builder(&path).handle(deaf).start()?;
    let id = engine.client().enqueue(&Task)?.id();
    let _ = begun.recv();
    assert_eq!(engine.client().cancel(id)?, Cancelled::Requested);
    assert_eq!(engine.shutdown(Duration::ZERO)?.returned, 1);
    let client = Client::open(&path)?;
    assert_eq!(client.get(id)?.status, Status::Cancelled);
    assert!(client.verify()?.is_empty());
    Ok(())
}

/// A lane that a failed turn had made was remembered under its number, which another lane has got since: jobs went to
/// that lane's queue and kind.
#[test]
fn a_lane_of_a_failed_turn_is_forgotten() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    t.faults().fail(1, Fault::Before);
    assert!(t.enqueue(NewJob::json("first", &1).queue("one")).is_err());
    let mut conn = t.client().connection()?;
    let tx = conn.transaction().expect("a transaction");
    t.client().enqueue_in(&tx, NewJob::json("second", &2).queue("two"))?;
    tx.commit().expect("a commit");
    let id = t.enqueue(NewJob::json("first", &1).queue("one"))?;
    let job = t.client().get(id)?;
    assert_eq!((job.kind.as_deref(), job.queue.as_str()), (Some("first"), "one"));
    assert_eq!(t.client().verify()?, Vec::<String>::new());
    Ok(())
}

/// A job that was retried after the later holder of its key had been pruned held no key.
#[test]
fn a_retried_job_holds_its_key_though_a_later_holder_is_gone() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let hour = Some(Duration::from_secs(3600));
        builder.retention(Retention { completed: hour, ..Retention::FOREVER }).handle(
            |fails: Fails, _: &Context| -> Result<(), Failure> {
                if fails.0 { Err(Failure::fatal("never")) } else { Ok(()) }
            },
        )
    })?;
    let unique = |fails| NewJob::of(&Fails(fails)).unique(Unique::key("only"));
    let failed = t.enqueue(unique(true))?;
    t.drain()?;
    let completed = t.enqueue(unique(false))?;
    t.drain()?;
    t.advance(Duration::from_secs(7200));
    t.engine().maintain()?;
    assert!(t.client().get(completed).is_err(), "it is pruned");
    t.client().retry(failed)?;
    assert_eq!(t.enqueue(unique(false))?, failed, "it holds the key");
    Ok(())
}

#[test]
fn an_engine_whose_heart_has_stopped_is_dead_after_a_while() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| builder.heartbeats().handle(echo))?;
    let id = t.enqueue(Echo::job("x"))?;
    // The heartbeat and the claim are written.
    t.faults().fail(3, Fault::Before);
    assert!(t.drain().is_err(), "its end is not written");
    t.check(id, "running, attempt 1");
    t.crash()?;
    t.advance(secs(15));
    t.drain()?;
    t.check(id, "running, attempt 1");
    t.advance(secs(1));
    t.drain()?;
    t.check(id, "completed, attempt 2");
    sound(t.client());
    Ok(())
}

#[test]
fn a_request_to_cancel_outlives_a_crash() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| {
        builder.handle(|_: Task, ctx: &Context| -> Result<(), Failure> {
            ctx.client().cancel(ctx.id())?;
            ctx.check()
        })
    })?;
    let id = t.enqueue(&Task)?;
    // The claim and the request are written, and the end is not.
    t.faults().fail(3, Fault::Before);
    assert!(t.drain().is_err());
    t.check(id, "running, attempt 1");
    t.crash()?;
    t.drain()?;
    t.check(id, "cancelled");
    assert_eq!(t.client().attempts(id)?.len(), 1);
    sound(t.client());
    Ok(())
}

/// Its row stayed closed, so that nobody took back what it ran after that when it did die.
#[test]
fn an_engine_that_was_taken_for_dead_goes_on_and_its_jobs_come_back_when_it_dies() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| builder.handle(echo))?;
    let lock_file = std::path::PathBuf::from(query::<String>(t.client(), "SELECT lock_file FROM jobmill_instance"));
    std::fs::remove_file(&lock_file).expect("the lock file");
    tamper(t.client(), "UPDATE jobmill_instance SET ended_at = 1");
    t.drain()?;
    assert!(lock_file.exists(), "others see again that it lives");
    assert_eq!(query::<i64>(t.client(), "SELECT count(*) FROM jobmill_instance WHERE ended_at IS NULL"), 1);

    let id = t.enqueue(Echo::job("x"))?;
    t.faults().fail(2, Fault::Before);
    assert!(t.drain().is_err(), "its end is not written");
    t.check(id, "running, attempt 1");
    t.crash()?;
    t.drain()?;
    t.check(id, "completed, attempt 2");
    sound(t.client());
    Ok(())
}
