//! What is cut short: cancelled jobs, attempts that run out of time, engines that shut down.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use jobmill::testing::{Fault, FaultPlan, Harness, ManualClock};
use jobmill::{
    AttemptOutcome, Backoff, Cancelled, Client, Clock, Context, Engine, ErrorKind, Failure, JobId, NewJob, Outcome,
    Reason, Status, SystemClock, Timestamp, Workers,
};

use crate::support::{
    Block, Echo, Gate, Hands, Keeper, Other, PATIENCE, block, echo, file, gate, now, other, refused, secs, sound,
    unadmit, until, with_hands,
};

#[test]
fn a_waiting_job_is_cancelled_at_once() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let created = t.enqueue(Echo::job("created"))?;
    unadmit(t.client(), created);
    let pending = t.enqueue(Echo::job("pending"))?;
    let delayed = t.enqueue(Echo::job("delayed").delay(secs(60)))?;
    let foreign = t.enqueue(NewJob::json("unknown", &1))?;
    t.advance(secs(1));
    for id in [created, pending, delayed, foreign] {
        assert_eq!(t.client().cancel(id)?, Cancelled::Now);
        let job = t.client().get(id)?;
        assert_eq!((job.status, job.completed_at, job.started_at), (Status::Cancelled, Some(now(&t)), None));
        assert_eq!(t.client().attempts(id)?, []);
        assert_eq!(t.client().explain(id)?.reasons, [Reason::Ended { status: Status::Cancelled }]);
        t.advance(secs(1));
        assert_eq!(t.client().cancel(id)?, Cancelled::Already);
        assert_eq!(t.client().get(id)?.completed_at, job.completed_at, "once");
    }
    t.advance(secs(99));
    assert_eq!(t.drain()?, 0);
    sound(t.client());
    Ok(())
}

#[test]
fn a_job_that_has_ended_otherwise_is_not_cancelled() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Echo, _: &Context| -> Result<(), Failure> {
            if job.0 == "failed" { Err(Failure::fatal("no")) } else { Ok(()) }
        })
    })?;
    let completed = t.enqueue(Echo::job(""))?;
    let failed = t.enqueue(Echo::job("failed"))?;
    t.drain()?;
    let expired = t.enqueue(Echo::job("").expires_in(Duration::ZERO))?;
    for (id, status) in [(completed, "completed"), (failed, "failed"), (expired, "expired")] {
        let before = t.client().get(id)?;
        let says = format!("{id} is {status} already and cannot be cancelled");
        refused(t.client().cancel(id), ErrorKind::Conflict, &says);
        assert_eq!(t.client().get(id)?, before);
    }
    let unknown: JobId = "job-0000000000002".parse()?;
    refused(t.client().cancel(unknown), ErrorKind::NotFound, "there is no job job-0000000000002");
    refused(t.client().retry(unknown), ErrorKind::NotFound, "there is no job job-0000000000002");
    sound(t.client());
    Ok(())
}

#[test]
fn a_running_job_is_asked_to_stop_and_ends_as_it_will() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Echo, ctx: &Context| -> Result<Outcome<&str>, Failure> {
            assert!(!ctx.is_cancelled() && ctx.check().is_ok());
            assert_eq!(ctx.client().cancel(ctx.id())?, Cancelled::Requested);
            assert_eq!(ctx.client().cancel(ctx.id())?, Cancelled::Requested);
            assert!(ctx.is_cancelled());
            let explained = ctx.client().explain(ctx.id())?.reasons;
            assert!(matches!(explained[..], [Reason::Running { .. }, Reason::CancelRequested { .. }]), "{explained:?}");
            match job.0.as_str() {
                "value" => Ok(Outcome::Done("too late")),
                "check" => ctx.check().map(|()| Outcome::Done("never")),
                "error" => Err(Failure::retry_after(secs(1), "broke off")),
                "snooze" => Ok(Outcome::Snooze(secs(1))),
                "panic" => panic!("broke off"),
                _ => Ok(Outcome::Cancel("as asked".into())),
            }
        })
    })?;
    for (how, stands, error) in [
        ("value", "completed, attempt 1", None),
        ("check", "cancelled", Some("the job was cancelled")),
        ("error", "cancelled", Some("broke off")),
        ("snooze", "cancelled", None),
        ("outcome", "cancelled", Some("as asked")),
    ] {
        let id = t.enqueue(Echo::job(how))?;
        t.drain()?;
        t.check(id, stands);
        let job = t.client().get(id)?;
        assert_eq!((job.error.as_deref(), job.cancel_requested_at), (error, Some(now(&t))), "{how}");
        let said = error.map_or_else(String::new, |error| format!(", and its last attempt said: {error}"));
        let explained = t.client().explain(id)?.to_string();
        assert_eq!(explained, format!("{} at {}{said}", job.status, now(&t)));
        assert_eq!(job.result.is_some(), how == "value");
    }
    let id = t.enqueue(Echo::job("panic"))?;
    t.drain()?;
    t.check(id, "cancelled");
    assert_eq!(t.drain()?, 0);
    sound(t.client());
    Ok(())
}

#[test]
fn a_retry_forgets_that_the_job_was_cancelled() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
            if ctx.attempt() == 1 {
                ctx.client().cancel(ctx.id())?;
            }
            ctx.check()
        })
    })?;
    let id = t.enqueue(Echo::job(""))?;
    t.drain()?;
    t.check(id, "cancelled");
    t.client().retry(id)?;
    assert_eq!(t.client().get(id)?.cancel_requested_at, None);
    t.drain()?;
    t.check(id, "completed, attempt 2");
    let outcomes: Vec<_> = t.client().attempts(id)?.into_iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [AttemptOutcome::Cancelled, AttemptOutcome::Completed]);
    Ok(())
}

#[test]
fn a_job_that_is_claimed_and_has_not_begun_never_begins() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder
            .workers(Workers::new(2))
            .handle(|job: Other, ctx: &Context| -> Result<(), Failure> {
                // Its neighbour was claimed in the same turn.
                let neighbour = ctx.client().list(jobmill::Query::new().kinds(["echo"]))?.jobs.remove(0);
                assert_eq!((job.0, neighbour.status), (1, Status::Running));
                assert_eq!(ctx.client().cancel(neighbour.id)?, Cancelled::Requested);
                Ok(())
            })
            .handle(|_: Echo, _: &Context| -> Result<(), Failure> { panic!("it must not begin") })
    })?;
    let first = t.enqueue(&Other(1))?;
    let neighbour = t.enqueue(Echo::job(""))?;
    t.drain()?;
    t.check(first, "completed, attempt 1");
    t.check(neighbour, "cancelled");
    sound(t.client());
    Ok(())
}

/// Handlers that tell what they do, and do not stop before they are let go.
#[derive(Clone)]
struct Stubborn {
    tells: Sender<String>,
    go: Receiver<()>,
}

fn stubborn() -> (Stubborn, Receiver<String>, Sender<()>) {
    let (tells, told) = unbounded();
    let (let_go, go) = unbounded();
    (Stubborn { tells, go }, told, let_go)
}

/// Begins, tells when it is asked to stop, and goes on until it is let go, or stops if its name is "good".
fn tells_and_goes_on(job: Block, ctx: &Context) -> Result<String, Failure> {
    let stubborn = ctx.state::<Stubborn>()?;
    let tell = |what: &str| {
        let _ = stubborn.tells.send(format!("{} {what}", job.0));
    };
    tell("begins");
    let mut asked = false;
    while stubborn.go.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
        if job.0 == "good" {
            ctx.check()?;
        } else if !asked && ctx.check().is_err() {
            asked = true;
            tell("is asked to stop");
        }
    }
    tell("ends");
    Ok(job.0)
}

#[track_caller]
fn hear(told: &Receiver<String>, what: &str) {
    assert_eq!(told.recv_timeout(PATIENCE).as_deref(), Ok(what));
}

#[test]
fn another_client_cancels_a_running_job() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (state, told, let_go) = stubborn();
    let engine = Engine::builder(&path).state(state).handle(tells_and_goes_on).start()?;
    let stranger = Client::open(&path)?;
    let id = stranger.enqueue(Block::job("good"))?.id();
    hear(&told, "good begins");
    assert_eq!(stranger.cancel(id)?, Cancelled::Requested);
    assert_eq!(stranger.wait(id, PATIENCE)?.status, Status::Cancelled);

    let id = stranger.enqueue(Block::job("bad"))?.id();
    hear(&told, "bad begins");
    assert_eq!(stranger.cancel(id)?, Cancelled::Requested);
    hear(&told, "bad is asked to stop");
    drop(let_go);
    assert_eq!(engine.client().wait(id, PATIENCE)?.status, Status::Completed, "it went on, and its value counts");
    engine.shutdown(secs(5))?;
    sound(&stranger);
    Ok(())
}

/// An engine with one worker that is busy, and with short jobs that are claimed ahead: for how long, says the clock.
fn busy(path: &Path, gate: &Gate, keeper: &Keeper, clock: &ManualClock) -> jobmill::Result<Engine> {
    let builder = Engine::builder(path).clock(clock.clone()).workers(Workers::new(1)).state(gate.clone());
    let engine = builder.handle(block).handle(echo).start()?;
    // Jobs are claimed ahead once it is known that those of their kind are short.
    let short = engine.client().enqueue(Echo::job("short"))?.id();
    engine.client().wait(short, PATIENCE)?;
    engine.client().enqueue(Block::job("x"))?;
    keeper.next();
    Ok(engine)
}

/// A job that was claimed ahead, cancelled and then put back, for its workers were busy, ran all the same.
#[test]
fn a_job_that_was_claimed_ahead_and_cancelled_never_runs() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let ((gate, keeper), clock) = (gate(), ManualClock::default());
    let engine = busy(&path, &gate, &keeper, &clock)?;
    let client = engine.client();
    let ids = client.enqueue_many((0..5).map(|n| Echo::job(n.to_string())))?;
    for id in &ids {
        assert_eq!(client.get(id.id())?.status, Status::Running, "claimed ahead");
        assert_eq!(client.cancel(id.id())?, Cancelled::Requested);
    }
    clock.advance(secs(1));
    for id in &ids {
        assert_eq!(client.wait(id.id(), PATIENCE)?.status, Status::Cancelled);
        assert_eq!(client.attempts(id.id())?, []);
    }
    drop(keeper);
    engine.shutdown(secs(5))?;
    sound(client);
    Ok(())
}

#[test]
fn a_cancel_that_races_a_completion_leaves_one_of_the_two() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).start()?;
    let stranger = Client::open(&path)?;
    for n in 0..300 {
        let client = if n % 3 == 0 { &stranger } else { engine.client() };
        let id = engine.client().enqueue(Echo::job("x"))?.id();
        let answer = client.cancel(id);
        let job = client.wait(id, PATIENCE)?;
        match (answer.map_err(|error| error.kind()), job.status) {
            (Ok(Cancelled::Now), Status::Cancelled) => assert_eq!(job.attempt, 0),
            (Ok(Cancelled::Requested), Status::Cancelled | Status::Completed) => {}
            (Err(ErrorKind::Conflict), Status::Completed) => assert_eq!(job.cancel_requested_at, None),
            mixture => panic!("{mixture:?}"),
        }
        assert_eq!(job.result.is_some(), job.status == Status::Completed);
        assert_eq!(stranger.get(id)?, job, "what has ended stays");
    }
    engine.shutdown(secs(5))?;
    sound(&stranger);
    Ok(())
}

/// An engine with threads whose timeouts are measured by hand.
struct Timed {
    engine: Engine,
    clock: ManualClock,
    told: Receiver<String>,
    let_go: Sender<()>,
    _directory: tempfile::TempDir,
}

fn timed(workers: usize, max_abandoned: usize) -> jobmill::Result<Timed> {
    let (directory, path) = file();
    let clock = ManualClock::default();
    let (state, told, let_go) = stubborn();
    let engine = Engine::builder(&path)
        .clock(clock.clone())
        .workers(Workers::new(workers))
        .timeout_grace(secs(5))
        .max_abandoned(max_abandoned)
        .backoff(Backoff::fixed(secs(1000)))
        .state(state)
        .handle(tells_and_goes_on)
        .start()?;
    Ok(Timed { engine, clock, told, let_go, _directory: directory })
}

#[test]
fn a_handler_that_stops_in_time_keeps_its_thread() -> jobmill::Result<()> {
    let t = timed(1, 8)?;
    let client = t.engine.client();
    let id = client.enqueue(Block::job("good").timeout(secs(10)).max_attempts(1))?.id();
    hear(&t.told, "good begins");
    t.clock.advance(secs(10));
    let job = client.wait(id, PATIENCE)?;
    assert_eq!((job.status, job.error.as_deref()), (Status::Failed, Some("the time of the attempt is up")));
    let worker = client.attempts(id)?.remove(0).worker;
    let id = client.enqueue(Block::job("good").timeout(secs(10)).max_attempts(1))?.id();
    hear(&t.told, "good begins");
    t.clock.advance(secs(10));
    client.wait(id, PATIENCE)?;
    assert_eq!(client.attempts(id)?.remove(0).worker, worker);
    Ok(())
}

#[test]
fn a_handler_that_ignores_its_timeout_loses_its_attempt_and_its_place() -> jobmill::Result<()> {
    let t = timed(1, 8)?;
    let client = t.engine.client();
    let bad = client.enqueue(Block::job("bad").timeout(secs(10)).max_attempts(2))?.id();
    hear(&t.told, "bad begins");
    let next = client.enqueue(Block::job("next"))?.id();
    t.clock.advance(secs(14));
    hear(&t.told, "bad is asked to stop");
    assert_eq!(client.get(bad)?.status, Status::Running, "within the grace");
    t.clock.advance(secs(1));
    hear(&t.told, "next begins");
    let job = client.get(bad)?;
    assert_eq!(job.status, Status::Pending);
    assert_eq!(job.error.as_deref(), Some("the time of the attempt is up, and its handler ignores it"));
    let attempt = client.attempts(bad)?.remove(0);
    assert_eq!(attempt.outcome, AttemptOutcome::TimedOut);

    // Both handlers give a value now. That of the abandoned one counts no more.
    drop(t.let_go);
    let job = client.wait(next, PATIENCE)?;
    assert_eq!(job.status, Status::Completed);
    assert_ne!(client.attempts(next)?.remove(0).worker, attempt.worker, "a fresh thread");
    t.clock.advance(secs(1000));
    let job = client.wait(bad, PATIENCE)?;
    assert_eq!((job.status, job.attempt), (Status::Completed, 2), "by its own second attempt");
    assert_eq!(client.attempts(bad)?[0], attempt);
    t.engine.shutdown(secs(5))?;
    sound(client);
    Ok(())
}

#[test]
fn abandoned_handlers_are_bounded() -> jobmill::Result<()> {
    let t = timed(2, 1)?;
    let client = t.engine.client();
    let job = |name: &str| Block::job(name).timeout(secs(10)).max_attempts(1);
    client.enqueue_many([job("bad"), job("bad")])?;
    hear(&t.told, "bad begins");
    hear(&t.told, "bad begins");
    client.enqueue_many([Block::job("next"), Block::job("last")])?;
    t.clock.advance(secs(15));
    // Both are overdue at the same moment, and one turn ends those that are abandoned.
    until("one is abandoned", || client.stats().is_ok_and(|stats| stats.total.failed > 0));
    until("the next begins", || t.told.try_recv().as_deref() == Ok("next begins"));
    let total = client.stats()?.total;
    assert_eq!((total.failed, total.running, total.pending), (1, 2, 1), "the other keeps its worker");

    drop(t.let_go);
    until("all have ended", || {
        t.clock.advance(Duration::from_millis(10));
        client.stats().is_ok_and(|stats| stats.total.running + stats.total.pending == 0)
    });
    assert_eq!(client.stats()?.kinds["block"].completed + client.stats()?.kinds["block"].failed, 4);
    t.engine.shutdown(secs(5))?;
    sound(client);
    Ok(())
}

#[test]
fn a_shutdown_lets_running_jobs_end() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (tells, told) = unbounded();
    let (let_go, go) = unbounded::<()>();
    let engine = Engine::builder(&path)
        .workers(Workers::new(1))
        .handle(move |job: Echo, ctx: &Context| -> Result<bool, Failure> {
            let _ = tells.send(job.0);
            while !ctx.is_shutting_down() {
                let _ = go.recv_timeout(Duration::from_millis(1));
            }
            let _ = tells.send("it shuts down".to_owned());
            let _ = go.recv();
            Ok(ctx.check().is_ok())
        })
        .start()?;
    let client = engine.client();
    let running = client.enqueue(Echo::job("it runs"))?.id();
    let waiting = client.enqueue(Echo::job("it waits"))?.id();
    hear(&told, "it runs");
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| engine.shutdown(PATIENCE));
        hear(&told, "it shuts down");
        let_go.send(()).expect("a handler");
        let report = shutdown.join().expect("no panic");
        assert_eq!(report.map(|report| report.returned).ok(), Some(0));
    });
    let job = client.get(running)?;
    assert!(job.result::<bool>()?, "it had all the time it needed");
    let job = client.get(waiting)?;
    assert_eq!((job.status, job.attempt, job.started_at), (Status::Pending, 0, None));
    sound(client);
    Ok(())
}

#[test]
fn a_shutdown_that_cannot_wait_returns_jobs_unspent() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (state, told, let_go) = stubborn();
    let start = || Engine::builder(&path).state(state.clone()).handle(tells_and_goes_on);
    let engine = start().start()?;
    let bad = engine.client().enqueue(Block::job("bad").max_attempts(1))?.id();
    hear(&told, "bad begins");
    assert_eq!(engine.shutdown(Duration::ZERO)?.returned, 1);
    let job = engine.client().get(bad)?;
    assert_eq!((job.status, job.attempt, job.error), (Status::Pending, 0, None));
    assert_eq!(engine.client().attempts(bad)?, []);
    hear(&told, "bad is asked to stop");

    // The next engine runs it while the old handler is at it still, whose value counts no more.
    let engine = start().start()?;
    hear(&told, "bad begins");
    let_go.send(()).expect("handlers");
    let_go.send(()).expect("handlers");
    let job = engine.client().wait(bad, PATIENCE)?;
    assert_eq!((job.status, job.attempt), (Status::Completed, 1));
    assert_eq!(engine.client().attempts(bad)?.len(), 1);
    engine.shutdown(secs(5))?;
    sound(engine.client());
    Ok(())
}

/// A job whose cancellation had been asked for ran again after a shutdown that could not wait for it.
#[test]
fn a_shutdown_that_cannot_wait_ends_cancelled_jobs() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (state, told, let_go) = stubborn();
    let engine = Engine::builder(&path).state(state).handle(tells_and_goes_on).start()?;
    let bad = engine.client().enqueue(Block::job("bad"))?.id();
    hear(&told, "bad begins");
    assert_eq!(engine.client().cancel(bad)?, Cancelled::Requested);
    engine.shutdown(Duration::ZERO)?;
    assert_eq!(engine.client().get(bad)?.status, Status::Cancelled);
    sound(engine.client());
    drop(let_go);
    Ok(())
}

#[test]
fn jobs_that_were_claimed_ahead_go_back_unspent() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let ((gate, keeper), clock) = (gate(), ManualClock::default());
    let engine = busy(&path, &gate, &keeper, &clock)?;
    let client = engine.client();
    let ids: Vec<_> = client.enqueue_many((0..50).map(|n| Echo::job(n.to_string())))?;
    assert_eq!(client.stats()?.kinds["echo"].running, 50, "claimed ahead");
    engine.shutdown(Duration::ZERO)?;
    let stats = client.stats()?;
    assert_eq!((stats.total.running, stats.total.pending), (0, 51));
    for id in &ids {
        let job = client.get(id.id())?;
        assert_eq!((job.status, job.attempt), (Status::Pending, 0));
        assert_eq!(client.attempts(job.id)?, []);
    }
    sound(client);
    drop(keeper);
    let engine = Engine::builder(&path).state(gate.clone()).handle(block).handle(echo).inline()?;
    assert_eq!(engine.drain()?, 51);
    for id in &ids {
        let attempts = engine.client().attempts(id.id())?;
        assert_eq!(attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [1]);
    }
    sound(engine.client());
    Ok(())
}

#[test]
fn a_shutdown_twice_is_one_and_a_drop_is_one_too() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (state, told, let_go) = stubborn();
    let start = || {
        let builder = Engine::builder(&path).state(state.clone()).handle(tells_and_goes_on);
        builder.shutdown_timeout(Duration::ZERO)
    };
    for threads in [true, false] {
        let engine = if threads { start().start()? } else { start().inline()? };
        engine.shutdown(secs(5))?;
        assert_eq!(engine.shutdown(secs(5))?, jobmill::Shutdown::default());
        drop(engine);
    }
    let engine = start().start()?;
    let client = engine.client().clone();
    let id = client.enqueue(Block::job("bad"))?.id();
    hear(&told, "bad begins");
    drop(engine);
    assert_eq!(client.get(id)?.status, Status::Pending);
    drop(let_go);
    let engine = start().start()?;
    assert_eq!(engine.client().wait(id, PATIENCE)?.status, Status::Completed);
    Ok(())
}

#[test]
fn an_engine_starts_again_in_the_same_process_but_never_twice_at_once() -> jobmill::Result<()> {
    let (directory, path) = file();
    std::fs::create_dir(directory.path().join("sub")).expect("a directory");
    let roundabout = directory.path().join("sub").join("..").join("jobs.db");
    for round in 0..3 {
        let engine = Engine::builder(&path).handle(other).start()?;
        let id = engine.client().enqueue(&Other(round))?.id();
        for twice in [&path, &roundabout] {
            for result in [Engine::builder(twice).start(), Engine::builder(twice).inline()] {
                refused(result.map(drop), ErrorKind::Conflict, "an engine runs on ");
            }
        }
        assert_eq!(engine.client().wait(id, PATIENCE)?.result::<u64>()?, round);
        engine.shutdown(secs(5))?;
    }
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .expect("a directory")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.contains("jobmill"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "no lock file is left behind");
    Ok(())
}

#[test]
fn clients_of_an_engine_that_has_shut_down_say_so() -> jobmill::Result<()> {
    for threads in [true, false] {
        let (_directory, path) = file();
        let builder = Engine::builder(&path).handle(echo);
        let engine = if threads { builder.start()? } else { builder.inline()? };
        let client = engine.client().clone();
        let id = client.enqueue(Echo::job("x").delay(secs(3600)))?.id();
        let began = AtomicBool::new(false);
        let waited = std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                began.store(true, Ordering::SeqCst);
                client.wait(id, PATIENCE)
            });
            until("somebody waits", || began.load(Ordering::SeqCst));
            engine.shutdown(secs(5)).expect("a shutdown");
            waits.join().expect("no panic")
        });
        let says = "the engine has shut down";
        refused(waited, ErrorKind::Shutdown, says);
        refused(client.wait(id, PATIENCE), ErrorKind::Shutdown, says);
        refused(client.enqueue(Echo::job("x")), ErrorKind::Shutdown, says);
        refused(client.enqueue_many([Echo::job("x")]), ErrorKind::Shutdown, says);
        refused(client.cancel(id), ErrorKind::Shutdown, says);
        refused(client.retry(id), ErrorKind::Shutdown, says);
        refused(client.pause("x"), ErrorKind::Shutdown, says);
        refused(client.resume("x"), ErrorKind::Shutdown, says);
        refused(client.write(|_| -> jobmill::Result<()> { Ok(()) }), ErrorKind::Shutdown, says);
        if !threads {
            refused(engine.drain(), ErrorKind::Shutdown, says);
        }
        assert_eq!(client.get(id)?.status, Status::Pending, "what is in the file can be read");
        assert_eq!(client.stats()?.total.pending, 1);
    }
    Ok(())
}

/// Without threads nobody flagged the end of the time, so that `check` let a handler go on for ever.
#[test]
fn a_handler_is_told_that_its_time_is_up() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder.backoff(Backoff::fixed(secs(7))).handle(|_: Echo, ctx: &Context| -> Result<u32, Failure> {
            for round in 0..100 {
                ctx.check()?;
                assert!(round < 10);
                ctx.state::<Hands>()?.pass(secs(1));
            }
            Ok(0)
        })
    })?;
    let id = t.enqueue(Echo::job("").timeout(secs(10)).max_attempts(2))?;
    t.drain()?;
    t.check(id, "pending, attempt 1 failed: the time of the attempt is up, due in 7s");
    assert_eq!(t.client().attempts(id)?[0].outcome, AttemptOutcome::TimedOut);
    t.advance(secs(7));
    t.drain()?;
    t.check(id, "failed, attempt 2: the time of the attempt is up");
    Ok(())
}

/// A failure for good that came after the timeout was tried again.
#[test]
fn a_failure_for_good_is_one_however_late_it_comes() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder.handle(|job: Echo, ctx: &Context| -> Result<(), Failure> {
            ctx.state::<Hands>()?.pass(secs(2));
            if job.0 == "fatal" { Err(Failure::fatal("never")) } else { Err(Failure::retry_after(secs(70), "busy")) }
        })
    })?;
    let fatal = t.enqueue(Echo::job("fatal").timeout(secs(1)))?;
    let busy = t.enqueue(Echo::job("busy").timeout(secs(1)))?;
    t.drain()?;
    t.check(fatal, "failed, attempt 1: never");
    t.check(busy, "pending, attempt 1 failed: busy, due in 70s");
    Ok(())
}

/// Tells the time until it is made to fail in the dispatcher's hands.
#[derive(Clone, Default)]
struct Brittle(Arc<AtomicBool>);

impl Clock for Brittle {
    fn now(&self) -> Timestamp {
        if self.0.load(Ordering::SeqCst) && std::thread::current().name() == Some("jobmill-dispatcher") {
            std::panic::resume_unwind(Box::new("the clock is broken"));
        }
        SystemClock.now()
    }

    fn monotonic(&self) -> Duration {
        SystemClock.monotonic()
    }
}

/// Whoever waited for a dispatcher that had panicked waited for good.
#[test]
fn a_panic_of_the_dispatcher_closes_the_engine() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let clock = Brittle::default();
    let engine = Engine::builder(&path).clock(clock.clone()).handle(echo).start()?;
    let client = engine.client();
    let id = client.enqueue(NewJob::json("nobody's", &1))?.id();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..3).map(|_| scope.spawn(|| client.wait(id, Duration::MAX))).collect();
        let writers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let failed = |_: &i32| client.enqueue(Echo::job("x")).err();
                    (0..i32::MAX).find_map(|n| failed(&n)).map(|error| error.kind())
                })
            })
            .collect();
        clock.0.store(true, Ordering::SeqCst);
        for waiter in waiters {
            refused(waiter.join().expect("no panic"), ErrorKind::Shutdown, "the engine ");
        }
        for writer in writers {
            assert_eq!(writer.join().expect("no panic"), Some(ErrorKind::Shutdown));
        }
    });
    refused(client.enqueue(Echo::job("x")), ErrorKind::Shutdown, "the engine ");
    engine.shutdown(Duration::ZERO)?;
    let engine = Engine::builder(&path).handle(echo).inline()?;
    engine.drain()?;
    assert_eq!(engine.client().stats()?.total.running, 0, "the next engine takes everything back");
    sound(engine.client());
    Ok(())
}

/// A cancellation whose commit was written and failed all the same stood in the file, and the handler was told of nothing.
#[test]
fn a_handler_is_told_of_a_cancellation_of_which_nobody_heard() -> jobmill::Result<()> {
    let faults = Arc::new(OnceLock::<FaultPlan>::new());
    let state = faults.clone();
    let t = Harness::new(move |builder| {
        builder.state(state.clone()).handle(other).handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
            let faults = ctx.state::<Arc<OnceLock<FaultPlan>>>()?.get().expect("a plan");
            faults.fail(1, Fault::After);
            ctx.client().cancel(ctx.id()).expect_err("the commit fails");
            let heard_of_nothing = !ctx.is_cancelled();
            ctx.client().enqueue(&Other(1))?;
            match (heard_of_nothing, ctx.is_cancelled()) {
                (true, true) => Err(Failure::retry("told")),
                told => Err(Failure::fatal(format!("{told:?}"))),
            }
        })
    })?;
    assert!(faults.set(t.faults().clone()).is_ok());
    let id = t.enqueue(Echo::job(""))?;
    t.drain()?;
    let job = t.client().get(id)?;
    assert_eq!((job.status, job.error.as_deref()), (Status::Cancelled, Some("told")));
    sound(t.client());
    Ok(())
}
