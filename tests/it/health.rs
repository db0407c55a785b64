//! What an engine tells of its health, and that it tells it whatever happens.

use std::time::Duration;

use crossbeam_channel::bounded;
use jobmill::testing::ManualClock;
use jobmill::{Clock, Context, Engine, EngineState, Failure, Health, Problem, ThreadState, Workers};

use crate::support::fake::Fake;
use crate::support::scene::Scene;
use crate::support::{Block, Echo, PATIENCE, block, echo, file, gate, idle, now, secs, until};

#[test]
fn the_health_of_a_busy_engine_counts_workers_and_queues() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).workers(Workers::new(2)).state(gate).handle(block).start()?;
    let client = engine.client();
    let health = engine.health();
    assert!(health.is_healthy(), "{health}");
    assert_eq!((health.state, health.workers.max, health.workers.busy), (EngineState::Active, 2, 0));
    assert_eq!((health.lag, health.depth(), health.batches), (None, 0, 0));
    assert_eq!((health.dispatcher.thread, health.poller.thread), (ThreadState::Running, ThreadState::Absent));
    assert!(
        health.to_string().contains("\npoller: absent, for there is no provider, 0 batches under way\n"),
        "{health}"
    );
    assert!(health.database.reachable && health.database.wal_bytes > 0, "the tables are in the WAL file");

    client.enqueue_many((0..5).map(|n| Block::job(n.to_string()).queue("mail")))?;
    client.enqueue(Block::job("later").queue("slow").delay(secs(3600)))?;
    keeper.next_of(2);
    let health = engine.health();
    let mail = &health.queues["mail"];
    assert_eq!((health.workers.busy, mail.running, mail.pending, health.depth()), (2, 2, 3, 4));
    assert!(mail.oldest_wait.is_some() && health.lag.is_some() && health.dispatcher.last_turn_at.is_some());
    assert_eq!((health.queues["slow"].pending, health.queues["slow"].oldest_wait), (1, None), "its time has not come");
    assert!(health.is_healthy(), "busy is not ill: {health}");
    assert!(health.workers.threads >= 2 && health.workers.idle <= health.workers.threads);
    (0..5).for_each(|_| keeper.release());
    until("the queue is empty", || engine.health().queues["mail"].running == 0);
    until("nobody is busy", || engine.health().workers.busy == 0);
    engine.shutdown(PATIENCE)?;
    let health = engine.health();
    assert_eq!((health.state, health.dispatcher.thread), (EngineState::Stopped, ThreadState::Ended));
    assert!(matches!(health.problems[..], [Problem::NotActive { state: EngineState::Stopped, .. }]), "{health}");
    Ok(())
}

/// It was all forgotten, and a stopped engine said that it had never taken a turn.
#[test]
fn what_was_known_of_an_engine_is_known_still_after_its_end() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    let (_directory, path) = file();
    let clock = ManualClock::default();
    let builder = Engine::builder(&path).workers(Workers::new(2)).clock(clock.clone()).provider(fake).handle(echo);
    let engine = builder.inline()?;
    let start = clock.now();
    engine.client().enqueue_many([Echo::job("now"), Echo::job("later").queue("slow").delay(secs(60))])?;
    clock.advance(secs(3));
    engine.drain()?;
    clock.advance(secs(4));
    engine.poll()?;
    let before = engine.health();
    clock.advance(secs(5));
    engine.shutdown(PATIENCE)?;
    clock.advance(secs(6));
    let after = engine.health();
    assert_eq!((after.state, after.at), (EngineState::Stopped, start.saturating_add(secs(12))));
    assert_eq!((after.workers.max, after.queues["slow"].pending, after.lag), (2, 1, Some(secs(3))));
    assert_eq!((&after.poller, &after.queues), (&before.poller, &before.queues));
    assert_eq!(after.poller.last_cycle_at, Some(start.saturating_add(secs(7))));
    assert!(
        after.poller.enabled && after.database.reachable && after.dispatcher.last_turn_at >= Some(start),
        "{after}"
    );
    let text = after.to_string();
    let begins =
        "stopped, not healthy\nproblem: the engine is stopped\nwhat was known when it stopped, at 2026-01-01T00:00:12";
    assert!(text.starts_with(begins), "{text}");
    Ok(())
}

#[test]
fn an_engine_that_has_not_started_does_not_tell_of_parts_that_it_has_not() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let builder = Engine::builder(&path).queue("mail", 0);
    let monitor = builder.monitor();
    let says = "problem: the engine is initializing\nnothing is known of its parts, for it has not started";
    assert_eq!(monitor.health().to_string(), format!("initializing, not healthy\n{says}"));
    assert!(builder.start().is_err());
    assert!(monitor.health().to_string().ends_with("it has not started"));
    Ok(())
}

#[test]
fn the_last_turn_is_told_by_the_moment_of_its_commit() -> jobmill::Result<()> {
    let t = idle()?;
    let last = || t.engine().health().dispatcher.last_turn_at;
    t.advance(secs(5));
    t.enqueue(Echo::job("a"))?;
    let at = now(&t);
    assert_eq!(last(), Some(at));
    t.advance(secs(7));
    assert_eq!(last(), Some(at), "none was taken since");
    t.enqueue(Echo::job("b"))?;
    assert_eq!(last(), Some(at.saturating_add(secs(7))));
    Ok(())
}

#[test]
fn the_last_cycle_of_polls_is_told_and_the_last_one_that_asked() -> jobmill::Result<()> {
    let t = Scene::new();
    assert_eq!((t.engine().health().poller.last_cycle_at, t.engine().health().poller.last_cycle), (None, None));
    t.send(2);
    t.advance(secs(10));
    t.client().poll_now()?;
    let cycle = t.engine().poll()?;
    let told = (cycle.total, cycle.calls, cycle.running, cycle.completed, cycle.failed);
    assert_eq!((cycle.started_at, told), (now(&t), (1, 1, 1, 0, 0)));
    assert_eq!((cycle.providers.get("fake"), cycle.items_updated), (Some(&1), 0));
    let poller = t.engine().health().poller;
    assert_eq!((poller.last_cycle_at, poller.last_cycle, poller.providers), (Some(now(&t)), Some(cycle.clone()), 1));
    t.advance(secs(1));
    assert_eq!(t.engine().poll()?.total, 0);
    let poller = t.engine().health().poller;
    assert_eq!((poller.last_cycle_at, poller.last_cycle), (Some(now(&t)), Some(cycle)), "it asked about nothing");
    assert_eq!((poller.error, poller.cycle_for), (None, None));
    Ok(())
}

#[test]
fn lag_is_how_long_a_job_could_have_run_before_it_was_claimed() -> jobmill::Result<()> {
    let t = idle()?;
    let engine = Engine::builder(t.path().as_ref().with_file_name("lag.db")).clock(t.clock().clone()).handle(echo);
    let engine = engine.inline()?;
    engine.client().enqueue(Echo::job("due in a minute").delay(secs(60)))?;
    t.advance(secs(90));
    engine.drain()?;
    assert_eq!(engine.health().lag, Some(secs(30)));
    Ok(())
}

/// Whatever the writer is at: the health is told beside it.
#[test]
fn a_writer_that_hangs_does_not_keep_the_health_waiting() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).start()?;
    let ((begins, begun), (end, ends)) = (bounded::<()>(1), bounded::<()>(1));
    std::thread::scope(|scope| {
        // It goes with this thread's part, whatever becomes of that, so that the writer is let go.
        let end = end;
        let writes = scope.spawn(|| {
            engine.client().write(move |_| -> jobmill::Result<()> {
                let _ = begins.send(());
                let _ = ends.recv();
                Ok(())
            })
        });
        begun.recv_timeout(PATIENCE).expect("a turn");
        let health = engine.health();
        assert!(health.dispatcher.turn_for.is_some() && health.database.reachable, "{health}");
        until("it shows that the dispatcher cannot look", || engine.health().dispatcher.silent_for > secs(1));
        assert!(engine.health().to_string().contains("a turn under way"));
        end.send(()).expect("a turn");
        writes.join().expect("no panic")
    })?;
    until("it looks again", || engine.health().dispatcher.silent_for < secs(1));
    assert!(engine.health().dispatcher.turn_for.is_none());
    engine.shutdown(PATIENCE)?;
    Ok(())
}

#[test]
fn handlers_that_ignore_their_timeouts_are_counted_and_are_a_problem_when_they_are_too_many() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let ((begins, begun), (end, ends)) = (bounded::<()>(8), bounded::<()>(8));
    let stubborn = move |_: Echo, _: &Context| -> Result<(), Failure> {
        let _ = begins.send(());
        let _ = ends.recv();
        Ok(())
    };
    let engine = Engine::builder(&path)
        .workers(Workers::new(1))
        .timeout_grace(Duration::ZERO)
        .max_abandoned(1)
        .handle(stubborn)
        .start()?;
    let job = |name: &str| Echo::job(name).timeout(Duration::from_millis(1)).max_attempts(1);
    engine.client().enqueue_many([job("a"), job("b")])?;
    for _ in 0..2 {
        begun.recv_timeout(PATIENCE).expect("a handler");
    }
    until("one is abandoned and one holds its worker", || {
        let workers = engine.health().workers;
        (workers.abandoned, workers.overdue) == (1, 1)
    });
    let health = engine.health();
    let said: Vec<String> = health.problems.iter().map(Problem::to_string).collect();
    assert!(said[0].starts_with("all workers are held by 1") && said[1].starts_with("1 handlers ignored"), "{said:?}");
    drop(end);
    until("all is well again", || engine.health().is_healthy());
    engine.shutdown(PATIENCE)?;
    Ok(())
}

#[test]
fn health_is_written_for_people_and_for_machines() -> jobmill::Result<()> {
    let t = idle()?;
    t.enqueue(Echo::job("a").queue("mail"))?;
    let health: Health = t.engine().health();
    let json = serde_json::to_value(&health).expect("JSON");
    assert_eq!((&json["state"], &json["queues"]["mail"]["pending"]), (&"active".into(), &1.into()));
    assert_eq!((&json["problems"], &json["dispatcher"]["thread"]), (&serde_json::json!([]), &"absent".into()));
    let text = health.to_string();
    assert!(text.starts_with("active, healthy\ndispatcher: absent, last turn at "), "{text}");
    assert!(text.contains("\nqueue mail: 1 pending, 0 running, the oldest for "), "{text}");
    Ok(())
}
