//! Where moved jobs run, and when.

use std::sync::{Arc, Mutex};

use jobmill::testing::Harness;
use jobmill::{
    Backoff, Client, Context, Durability, Engine, ErrorKind, Failure, JobId, NewJob, Priority, Query, Status, Unique,
    UniqueScope,
};

use crate::support::{Block, Echo, Other, PATIENCE, block, echo, file, gate, idle, refused, secs, sound};

/// The order in which handlers ran.
#[derive(Clone, Default)]
struct Ran(Arc<Mutex<Vec<String>>>);

impl Ran {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("nobody panics with the lock"))
    }
}

fn noting() -> jobmill::Result<(Harness, Ran)> {
    let ran = Ran::default();
    let on = ran.clone();
    let t = Harness::new(move |builder| {
        builder.durability(Durability::Normal).backoff(Backoff::fixed(secs(10))).state(on.clone()).handle(
            |job: Echo, ctx: &Context| -> Result<(), Failure> {
                ctx.state::<Ran>()?.0.lock().expect("nobody panics with the lock").push(job.0);
                Ok(())
            },
        )
    })?;
    Ok((t, ran))
}

#[test]
fn moved_jobs_run_in_their_new_place_in_the_order_of_their_coming() -> jobmill::Result<()> {
    let (t, ran) = noting()?;
    let mut ids = Vec::new();
    for n in 0..8 {
        let queue = if n % 2 == 0 { "left" } else { "right" };
        ids.push(t.enqueue(Echo::job(n.to_string()).queue(queue).user(if n % 3 == 0 { "u" } else { "v" }))?);
        t.advance(secs(1));
    }
    t.client().pause("left")?;
    t.client().pause("right")?;
    // From one paused queue into another, and from there into one that has not been before.
    assert_eq!(t.client().select(Query::new().queues(["left"]))?.set_queue("right")?.changed, 4);
    assert_eq!(t.drain()?, 0);
    assert_eq!(t.client().select(Query::new().queues(["right"]))?.set_queue("new")?.changed, 8);
    t.client().set_priority(ids[5], Priority::High)?;
    t.client().set_priority(ids[1], Priority::Low)?;
    sound(t.client());
    t.drain()?;
    assert_eq!(ran.take(), ["5", "0", "2", "3", "4", "6", "7", "1"]);
    let stats = t.client().stats()?;
    assert_eq!((stats.queues["new"].completed, stats.queues["left"].total(), stats.queues["right"].total()), (8, 0, 0));
    for id in &ids {
        refused(t.client().set_queue(*id, "left"), ErrorKind::Conflict, &format!("{id} is completed already"));
    }
    sound(t.client());
    Ok(())
}

#[test]
fn moved_jobs_keep_their_time() -> jobmill::Result<()> {
    let (t, ran) = noting()?;
    let delayed = |name: &str, wait: u64| t.enqueue(Echo::job(name).queue("left").delay(secs(wait)));
    let (late, soon, sooner) = (delayed("late", 30)?, delayed("soon", 20)?, delayed("sooner", 10)?);
    let native = t.enqueue(Echo::job("native").queue("right").delay(secs(25)))?;
    t.drain()?;
    // A lane that is known to have nothing to do for long gets a job that is due before.
    t.client().select(Query::new().queues(["left"]))?.set_queue("right")?;
    t.client().set_priority(late, Priority::Critical)?;
    sound(t.client());
    for (seconds, expected) in
        [(9, vec![]), (1, vec!["sooner"]), (10, vec!["soon"]), (5, vec!["native"]), (5, vec!["late"])]
    {
        t.advance(secs(seconds));
        t.drain()?;
        assert_eq!(ran.take(), expected);
    }
    // All due at once: by priority, then by their times.
    let ids = [delayed("a", 30)?, delayed("b", 20)?, delayed("c", 10)?];
    let plain = t.enqueue(Echo::job("plain").queue("left"))?;
    t.client().pause("left")?;
    t.advance(secs(60));
    assert_eq!(t.drain()?, 0);
    t.client().set_priority(ids[0], Priority::High)?;
    t.client().select(Query::new().queues(["left"]))?.set_queue("elsewhere")?;
    t.drain()?;
    assert_eq!(ran.take(), ["a", "plain", "c", "b"]);
    // One that waits for its next attempt is moved as any other.
    for id in [late, soon, sooner, native, plain] {
        assert_eq!(t.client().get(id)?.status, Status::Completed);
    }
    Ok(())
}

#[test]
fn a_job_that_waits_for_its_next_attempt_is_moved_with_its_attempts() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.durability(Durability::Normal).handle(|job: Other, ctx: &Context| -> Result<u64, Failure> {
            if ctx.attempt() == 1 { Err(Failure::retry_after(secs(10), "again")) } else { Ok(job.0) }
        })
    })?;
    let id = t.enqueue(NewJob::of(&Other(1)))?;
    t.drain()?;
    t.client().set_queue(id, "mail")?;
    t.client().set_priority(id, Priority::Low)?;
    t.check(id, "pending, attempt 1 failed: again, due in 10s");
    t.advance(secs(10));
    t.drain()?;
    t.check(id, "completed, attempt 2");
    assert_eq!(t.client().attempts(id)?.len(), 2);
    Ok(())
}

#[test]
fn another_programs_move_is_noticed_by_an_engine_that_rests() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).durability(Durability::Normal).handle(echo).start()?;
    let stranger = Client::open_with(&path, Durability::Normal)?;
    stranger.pause("held")?;
    let jobs = (0..5).map(|n| Echo::job(n.to_string()).queue("held"));
    let ids: Vec<JobId> = stranger.enqueue_many(jobs)?.iter().map(|enqueued| enqueued.id()).collect();
    let tracked = stranger.enqueue(NewJob::tracked().queue("held"))?.id();
    assert_eq!(stranger.select(Query::new().queues(["held"]))?.set_queue("open")?.changed, 6);
    for id in &ids {
        assert_eq!(engine.client().wait(*id, PATIENCE)?.queue, "open");
    }
    assert_eq!(stranger.get(tracked)?.status, Status::Created);
    sound(&stranger);
    Ok(())
}

#[test]
fn a_running_job_is_not_moved() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).durability(Durability::Normal).state(gate).handle(block).start()?;
    let id = engine.client().enqueue(Block::job("x"))?.id();
    keeper.next();
    let says = format!("{id} is running and cannot be moved");
    refused(engine.client().set_queue(id, "mail"), ErrorKind::Conflict, &says);
    refused(engine.client().set_priority(id, Priority::High), ErrorKind::Conflict, &says);
    let bulk = engine.client().select(Query::new())?.set_queue("mail")?;
    assert_eq!((bulk.changed, bulk.refused), (0, 1));
    keeper.release();
    assert_eq!(engine.client().wait(id, PATIENCE)?.queue, "default");
    Ok(())
}

/// A key is compared within the queue into which its job was enqueued, wherever the job is moved.
#[test]
fn a_moved_job_keeps_its_key_as_it_was_given() -> jobmill::Result<()> {
    let t = idle()?;
    let keyed = |queue: &'static str| {
        Echo::job("x").queue(queue).delay(secs(60)).unique(Unique::key("k").scope(UniqueScope::Queue))
    };
    let first = t.enqueue(keyed("left"))?;
    t.client().set_queue(first, "right")?;
    assert_eq!(t.enqueue(keyed("left"))?, first);
    let second = t.client().enqueue(keyed("right"))?;
    assert!(second.is_new());
    // Moves never fail for a key, and each is freed when its own job ends.
    t.client().set_queue(second.id(), "left")?;
    t.client().cancel(first)?;
    assert_eq!(t.enqueue(keyed("right"))?, second.id());
    let third = t.client().enqueue(keyed("left"))?;
    assert!(third.is_new());
    refused(t.client().retry(first), ErrorKind::Conflict, &format!("{first} cannot be retried, for {}", third.id()));
    sound(t.client());
    Ok(())
}
