//! How engines start and stop: what they are at, what a shutdown waits for, what a broken file and broken threads leave.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use jobmill::testing::{Fault, Harness};
use jobmill::{
    Batches, Callbacks, Client, Clock, Context, Engine, EngineState, ErrorKind, Failure, NewBatch, Problem,
    RequestStatus, Shutdown, Status, SystemClock, ThreadState, Timestamp, Workers,
};
use parking_lot::Mutex;

use crate::support::fake::{Fake, succeeded};
use crate::support::said::Said;
use crate::support::scene::items;
use crate::support::{
    Block, Echo, PATIENCE, block, echo, file, gate, idle, query, refused, secs, sound, tamper, until,
};

/// Another writer that keeps the file locked, until it is dropped.
fn locker(path: &Path) -> jobmill::rusqlite::Connection {
    let conn = jobmill::rusqlite::Connection::open(path).expect("a connection");
    conn.execute_batch("PRAGMA journal_mode = WAL; BEGIN IMMEDIATE").expect("the lock");
    conn
}

#[test]
fn an_engine_its_builder_and_its_client_tell_in_a_debug_line_what_they_are_and_no_secret() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let builder = Engine::builder(&path).callbacks(Callbacks::new().secret(secret));
    let told = format!("{builder:?} {:?}", builder.monitor());
    assert!(told.contains("jobs.db") && told.contains("Initializing") && !told.contains("MfKQ"), "{told}");
    let engine = builder.inline()?;
    let told = format!("{engine:?} {:?}", engine.client().for_user("ada")?);
    assert!(told.contains("Active") && told.contains("ada") && !told.contains("MfKQ"), "{told}");
    // It takes one on either side of a result.
    drop(engine);
    let error = Engine::builder(&path).queue("", 1).start().expect_err("a name is needed");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    Ok(())
}

#[test]
fn an_engine_is_initializing_then_active_then_shutting_down_then_stopped() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let lock = locker(&path);
    let builder = Engine::builder(&path).state(gate).handle(block);
    let monitor = builder.monitor();
    assert_eq!(monitor.state(), EngineState::Initializing);
    let engine = std::thread::scope(|scope| {
        let started = scope.spawn(|| builder.start());
        assert!(!monitor.wait_for(EngineState::Active, Duration::from_millis(20)), "the file is locked");
        let health = monitor.health();
        assert!(
            matches!(health.problems[..], [Problem::NotActive { state: EngineState::Initializing, .. }]),
            "{health}"
        );
        drop(lock);
        assert!(monitor.wait_for(EngineState::Active, PATIENCE));
        started.join().expect("no panic")
    })?;
    std::thread::scope(|scope| {
        assert_eq!((engine.state(), engine.health().is_healthy()), (EngineState::Active, true));

        engine.client().enqueue(Block::job("a"))?;
        keeper.next();
        let ended = scope.spawn(|| engine.shutdown(PATIENCE));
        assert!(monitor.wait_for(EngineState::ShuttingDown, PATIENCE));
        assert_eq!(engine.state(), EngineState::ShuttingDown, "a handler runs");
        keeper.release();
        assert_eq!(ended.join().expect("no panic")?, Shutdown::default());
        assert_eq!((engine.state(), monitor.state()), (EngineState::Stopped, EngineState::Stopped));
        assert!(!monitor.health().is_healthy());
        Ok(())
    })
}

#[test]
fn an_engine_without_threads_has_the_same_states_and_a_start_that_fails_has_stopped() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let builder = Engine::builder(&path);
    let monitor = builder.monitor();
    let engine = builder.inline()?;
    assert_eq!((monitor.state(), monitor.health().dispatcher.thread), (EngineState::Active, ThreadState::Absent));
    assert!(engine.health().is_healthy(), "{}", engine.health());

    let second = Engine::builder(&path);
    let of_second = second.monitor();
    refused(second.start().map(drop), ErrorKind::Conflict, "an engine runs on");
    assert_eq!((of_second.state(), monitor.state()), (EngineState::Stopped, EngineState::Active));
    let bad = Engine::builder(&path).queue("mail", 0);
    let of_bad = bad.monitor();
    refused(bad.start().map(drop), ErrorKind::Invalid, "queue");
    assert_eq!(of_bad.state(), EngineState::Stopped);

    drop(engine);
    assert_eq!(monitor.state(), EngineState::Stopped);
    Ok(())
}

/// The second caller was told that all was done while the first one was at it still.
#[test]
fn a_shutdown_by_many_threads_at_once_is_one_and_each_hears_of_its_end() -> jobmill::Result<()> {
    let (_directory, path) = file();
    for _ in 0..5 {
        let (gate, keeper) = gate();
        let engine = Engine::builder(&path).workers(Workers::new(2)).state(gate).handle(block).start()?;
        engine.client().enqueue_many([Block::job("a"), Block::job("b")])?;
        keeper.next_of(2);
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let report = engine.shutdown(PATIENCE);
                        (report, engine.state())
                    })
                })
                .collect();
            assert!(engine.monitor().wait_for(EngineState::ShuttingDown, PATIENCE));
            keeper.release();
            keeper.release();
            for one in all {
                let (report, state) = one.join().expect("no panic");
                assert_eq!((report?.returned, state), (0, EngineState::Stopped));
            }
            Ok::<(), jobmill::Error>(())
        })?;
        sound(engine.client());
    }
    Ok(())
}

#[test]
fn a_second_shutdown_ends_the_waiting_of_the_first_when_its_own_time_is_up() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).state(gate).handle(block).start()?;
    let id = engine.client().enqueue(Block::job("a"))?.id();
    keeper.next();
    std::thread::scope(|scope| {
        let polite = scope.spawn(|| engine.shutdown(secs(86_400)));
        assert!(engine.monitor().wait_for(EngineState::ShuttingDown, PATIENCE));
        assert_eq!(engine.shutdown(Duration::ZERO)?, Shutdown::default());
        assert_eq!(engine.state(), EngineState::Stopped);
        assert_eq!(polite.join().expect("no panic")?.returned, 1);
        Ok::<(), jobmill::Error>(())
    })?;
    let job = engine.client().get(id)?;
    assert_eq!((job.status, job.attempt), (Status::Pending, 0));
    drop(keeper);
    Ok(())
}

#[test]
fn engines_start_and_stop_on_one_file_from_many_threads_as_often_as_they_like() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let client = Client::open(&path)?;
    let ids: Vec<_> = client.enqueue_many((0..60).map(|n| Echo::job(n.to_string())))?;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for round in 0..10 {
                    match Engine::builder(&path).handle(echo).start() {
                        Ok(engine) if round % 2 == 0 => drop(engine.shutdown(Duration::ZERO).expect("a shutdown")),
                        Ok(engine) => drop(engine),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                    }
                }
            });
        }
    });
    let engine = Engine::builder(&path).handle(echo).start()?;
    for id in ids {
        let job = client.wait(id.id(), PATIENCE)?;
        assert_eq!((job.status, job.attempt), (Status::Completed, 1), "no attempt was spent by a shutdown");
    }
    engine.shutdown(PATIENCE)?;
    sound(&client);
    Ok(())
}

/// An engine whose provider is asked how a batch does, and has not answered.
struct Asked {
    engine: Engine,
    fake: Fake,
    batch: jobmill::JobId,
    answer: Sender<()>,
}

fn polls(path: &Path, fake: &Fake) -> jobmill::EngineBuilder {
    Engine::builder(path).provider(fake.clone()).batches(Batches::new().poll_interval(secs(1)))
}

fn asked(path: &Path) -> jobmill::Result<Asked> {
    let fake = Fake::new("fake");
    let ((begins, begun), (answer, answered)) = (bounded::<()>(1), bounded::<()>(1));
    {
        let mut inside = fake.inside();
        inside.limits.poll_min = secs(0);
        inside.on_poll = Some(Box::new(move || {
            let _ = begins.send(());
            let _ = answered.recv();
        }));
    }
    let engine = polls(path, &fake).start()?;
    let batch = engine.client().submit(NewBatch::new("fake"), items(2))?.id();
    begun.recv_timeout(PATIENCE).expect("a poll");
    until("the handler returns that has sent it", || engine.health().workers.busy == 0);
    Ok(Asked { engine, fake, batch, answer })
}

#[test]
fn a_shutdown_waits_for_a_poll_in_flight_and_keeps_its_answer() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let Asked { engine, fake, batch, answer } = asked(&path)?;
    let health = engine.health();
    assert!(health.poller.cycle_for.is_some() && health.batches == 1, "{health}");
    fake.complete_all();
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| engine.shutdown(PATIENCE));
        assert!(engine.monitor().wait_for(EngineState::ShuttingDown, PATIENCE));
        assert!(!engine.monitor().wait_for(EngineState::Stopped, Duration::from_millis(20)), "it waits");
        answer.send(()).expect("a poll");
        assert_eq!(ended.join().expect("no panic")?, Shutdown::default());
        Ok::<(), jobmill::Error>(())
    })?;
    let request = &engine.client().batch_requests(batch, &[], None, 1)?[0];
    assert_eq!((request.status, request.polled_at.is_some()), (RequestStatus::Ended, true));
    Ok(())
}

/// The shutdown waited for the provider however long that took, and nobody asked again for two minutes.
#[test]
fn a_poll_that_outlasts_the_shutdown_is_cut_off_and_the_next_engine_asks_again() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let Asked { engine, fake, batch, answer } = asked(&path)?;
    let report = engine.shutdown(Duration::from_millis(5))?;
    assert_eq!((report.returned, report.polls_cut_off), (0, 1));
    assert_eq!(engine.state(), EngineState::Stopped);
    fake.complete_all();

    let second = polls(&path, &fake).start()?;
    assert_eq!(second.client().wait(batch, PATIENCE)?.status, Status::Completed);
    // What the first was told comes too late for anybody to hear.
    answer.send(()).expect("the poll that was left behind");
    second.shutdown(PATIENCE)?;
    assert_eq!(fake.count("create"), 1);
    sound(second.client());
    Ok(())
}

#[test]
fn a_harvest_that_outlasts_the_shutdown_goes_on_in_the_next_engine_and_counts_each_result_once() -> jobmill::Result<()>
{
    let (_directory, path) = file();
    let fake = Fake::new("fake");
    fake.inside().limits.poll_min = secs(0);
    let ((reads, read), (go_on, goes_on)) = (bounded::<()>(1), bounded::<()>(1));
    fake.answer(|_, body| Some(succeeded(body)));
    fake.inside().on_results = Some(Box::new(move || {
        let _ = reads.send(());
        let _ = goes_on.recv();
    }));
    let engine = polls(&path, &fake).start()?;
    let batch = engine.client().submit(NewBatch::new("fake"), items(2))?.id();
    until("the batch is at its provider", || fake.count("create") == 1);
    fake.complete_all();
    read.recv_timeout(PATIENCE).expect("a harvest");
    until("the poller comes to an end that has told of it", || engine.health().poller.cycle_for.is_none());
    let report = engine.shutdown(Duration::from_millis(5))?;
    assert_eq!((report.returned, report.polls_cut_off), (1, 0));

    let second = polls(&path, &fake).start()?;
    assert_eq!(second.client().wait(batch, PATIENCE)?.status, Status::Completed);
    go_on.send(()).expect("the harvest that was left behind");
    let batch = second.client().batch(batch)?;
    assert_eq!((batch.items.completed, batch.spent.usage.input), (2, Some(20)), "each is paid once");
    second.shutdown(PATIENCE)?;
    sound(second.client());
    Ok(())
}

#[test]
fn a_connection_that_goes_on_failing_is_opened_anew() -> jobmill::Result<()> {
    let t = idle()?;
    let before = t.enqueue(Echo::job("before"))?;
    t.faults().fail(1, Fault::Broken);
    for _ in 0..2 {
        refused(t.enqueue(Echo::job("lost")), ErrorKind::Storage, "cannot commit");
        let health = t.engine().health();
        assert!(!health.is_healthy() && !health.database.reachable, "{health}");
    }
    let after = t.enqueue(Echo::job("after"))?;
    // The readers are new as well. Who asks for the health does not wait for long until there is one.
    assert_eq!(t.client().stats()?.depth(), 2);
    assert!(t.engine().health().is_healthy(), "{}", t.engine().health());
    assert_eq!((t.client().get(before)?.status, t.client().get(after)?.status), (Status::Pending, Status::Pending));
    sound(t.client());

    // One that breaks again at once is left alone for longer and longer.
    t.faults().fail_from(1, Fault::Broken);
    let mut failures = 0;
    for _ in 0..40 {
        failures += u32::from(t.enqueue(Echo::job("lost")).is_err());
    }
    assert_eq!((failures, t.engine().health().database.failures), (40, 40));
    t.faults().heal();
    assert!(t.enqueue(Echo::job("too early")).is_err(), "it was opened anew a moment ago");
    t.advance(secs(60));
    t.enqueue(Echo::job("in time"))?;
    sound(t.client());
    Ok(())
}

/// What was written to a file that had been deleted or replaced was acknowledged and lost.
#[cfg(unix)]
mod lost {
    use super::*;

    fn away(path: &Path) -> std::path::PathBuf {
        path.with_file_name("elsewhere.db")
    }

    fn in_trouble(engine: &Engine, says: &str) {
        until("the health says so", || {
            let health = engine.health();
            health.database.error.as_ref().is_some_and(|error| error.contains(says)) && !health.is_healthy()
        });
    }

    #[test]
    fn a_file_that_is_moved_is_written_no_more_and_works_again_when_it_is_put_back() -> jobmill::Result<()> {
        let (_directory, path) = file();
        let engine = Engine::builder(&path).handle(echo).start()?;
        let client = engine.client();
        let id = client.enqueue(Echo::job("before"))?.id();
        client.wait(id, PATIENCE)?;
        std::fs::rename(&path, away(&path)).expect("a move");
        // An engine that is asked for nothing notices too.
        in_trouble(&engine, "is gone");
        refused(client.enqueue(Echo::job("meanwhile")), ErrorKind::Storage, "the database file");
        refused(client.get(id), ErrorKind::Storage, "the database file");
        assert!(!path.exists(), "none is made in its place");
        std::fs::rename(away(&path), &path).expect("a move");
        until("all is well again", || engine.health().is_healthy());
        let after = client.enqueue(Echo::job("after"))?.id();
        assert_eq!(client.wait(after, PATIENCE)?.status, Status::Completed);
        assert_eq!(client.stats()?.total.total(), 2);
        engine.shutdown(PATIENCE)?;
        sound(client);
        Ok(())
    }

    #[test]
    fn a_file_that_is_replaced_is_never_written_and_the_other_is_left_as_it_is() -> jobmill::Result<()> {
        let (_directory, path) = file();
        let (gate, keeper) = gate();
        let engine = Engine::builder(&path).state(gate).handle(block).start()?;
        let client = engine.client();
        let id = client.enqueue(Block::job("runs"))?.id();
        keeper.next();
        std::fs::rename(&path, away(&path)).expect("a move");
        // A database of somebody else's, in use.
        let wal = path.with_file_name("jobs.db-wal");
        std::fs::rename(&wal, path.with_file_name("elsewhere.db-wal")).expect("a move");
        std::fs::rename(path.with_file_name("jobs.db-shm"), path.with_file_name("elsewhere.db-shm")).expect("a move");
        let other = jobmill::rusqlite::Connection::open(&path).expect("another file");
        other
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE theirs (n); INSERT INTO theirs VALUES (7)")
            .expect("rows");
        in_trouble(&engine, "another file has taken the place");
        refused(client.enqueue(Block::job("meanwhile")), ErrorKind::Storage, "another file has taken the place");
        refused(client.get(id), ErrorKind::Storage, "another file has taken the place");
        keeper.release();
        refused(engine.shutdown(secs(1)).map(drop), ErrorKind::Storage, "");
        assert_eq!(engine.state(), EngineState::Stopped);
        drop(engine);
        assert!(wal.exists(), "the WAL file of the other is not removed");
        let theirs: i64 = other.query_row("SELECT sum(n) FROM theirs", [], |row| row.get(0)).expect("their rows");
        let tables: i64 = other.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).expect("tables");
        assert_eq!((theirs, tables), (7, 1));
        drop(other);

        let found = Client::open(away(&path))?;
        assert_eq!(found.get(id)?.status, Status::Running, "the end could not be written");
        sound(&found);
        Ok(())
    }

    #[test]
    fn a_wal_file_that_is_deleted_takes_nothing_with_it() -> jobmill::Result<()> {
        let (_directory, path) = file();
        // With a clock that stands still every turn looks, and not only one in a millisecond.
        let engine = Engine::builder(&path).clock(jobmill::testing::ManualClock::default()).inline()?;
        let client = engine.client();
        let before: Vec<_> = client.enqueue_many((0..20).map(|n| Echo::job(n.to_string())))?;
        std::fs::remove_file(path.with_file_name("jobs.db-wal")).expect("the WAL file");
        refused(client.enqueue(Echo::job("noticed")), ErrorKind::Storage, "the WAL file of the database");
        let after = client.enqueue(Echo::job("mended"))?.id();
        for id in before.iter().map(|id| id.id()).chain([after]) {
            assert_eq!(client.get(id)?.status, Status::Pending);
        }
        sound(client);
        drop(engine);
        assert_eq!(Client::open(&path)?.stats()?.depth(), 21);
        Ok(())
    }

    #[test]
    fn a_database_that_cannot_be_opened_again_says_why_and_goes_on_when_it_can() -> jobmill::Result<()> {
        let (_directory, path) = file();
        let clock = jobmill::testing::ManualClock::default();
        let engine = Engine::builder(&path).clock(clock.clone()).inline()?;
        let client = engine.client();
        let before = client.enqueue(Echo::job("before"))?.id();
        let wal = path.with_file_name("jobs.db-wal");
        std::fs::remove_file(&wal).expect("the WAL file");
        std::fs::create_dir(&wal).expect("something in its place that SQLite cannot open");
        for _ in 0..5 {
            refused(client.enqueue(Echo::job("lost")), ErrorKind::Storage, "");
        }
        let error = client.enqueue(Echo::job("lost")).expect_err("it cannot be opened").to_string();
        assert_eq!(error.matches("opened again yet").count(), 1, "{error}");
        assert!(error.contains("jobs.db"), "{error}");
        std::fs::remove_dir(&wal).expect("the way is free");
        clock.advance(secs(60));
        let after = client.enqueue(Echo::job("after"))?.id();
        for id in [before, after] {
            assert_eq!(client.get(id)?.status, Status::Pending);
        }
        assert_eq!(client.stats()?.depth(), 2);
        sound(client);
        Ok(())
    }

    #[test]
    fn a_file_that_is_deleted_is_not_made_again() -> jobmill::Result<()> {
        let (_directory, path) = file();
        let engine = Engine::builder(&path).handle(echo).start()?;
        engine.client().enqueue(Echo::job("later").delay(secs(3600)))?;
        for name in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
            let _ = std::fs::remove_file(path.with_file_name(name));
        }
        in_trouble(&engine, "is gone");
        refused(engine.client().enqueue(Echo::job("lost")), ErrorKind::Storage, "the database file");
        refused(engine.shutdown(Duration::ZERO).map(drop), ErrorKind::Storage, "");
        drop(engine);
        assert!(!path.exists());
        // Whoever starts anew starts with nothing, and knows it.
        let engine = Engine::builder(&path).handle(echo).start()?;
        assert_eq!(engine.client().stats()?.total.total(), 0);
        engine.shutdown(PATIENCE)?;
        Ok(())
    }
}

#[test]
fn a_file_that_stays_locked_is_trouble_until_it_is_not_and_nothing_is_lost() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path)
        .busy_timeout(Duration::from_millis(10))
        .state(gate)
        .handle(block)
        .handle(echo)
        .start()?;
    let client = engine.client();
    let id = client.enqueue(Block::job("a"))?.id();
    keeper.next();
    let lock = locker(&path);
    keeper.release();
    until("the end of the job cannot be written", || {
        let health = engine.health();
        !health.database.reachable && health.database.failures > 2 && health.database.since.is_some()
    });
    refused(client.enqueue(Echo::job("b")), ErrorKind::Busy, "cannot begin to write");
    assert_eq!(client.get(id)?.status, Status::Running, "it can be read");
    drop(lock);
    assert_eq!(client.wait(id, PATIENCE)?.status, Status::Completed);
    until("all is well again", || engine.health().is_healthy());
    engine.shutdown(PATIENCE)?;
    sound(client);
    Ok(())
}

/// The clock of an engine one of whose threads panics when it reads it.
#[derive(Clone)]
struct Trap(Arc<Mutex<Option<&'static str>>>);

impl Trap {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn set(&self, thread: &'static str) {
        *self.0.lock() = Some(thread);
    }

    fn spring(&self) {
        let mut thread = self.0.lock();
        let here = std::thread::current();
        if let (Some(name), Some(begins)) = (here.name(), *thread)
            && name.starts_with(begins)
        {
            *thread = None;
            drop(thread);
            panic!("as the test wants");
        }
    }
}

impl Clock for Trap {
    fn now(&self) -> Timestamp {
        self.spring();
        SystemClock.now()
    }

    fn monotonic(&self) -> Duration {
        self.spring();
        SystemClock.monotonic()
    }
}

#[test]
fn a_dispatcher_that_panics_closes_the_engine_and_everybody_hears_of_it() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (trap, (gate, keeper)) = (Trap::new(), gate());
    let builder = Engine::builder(&path).clock(trap.clone()).state(gate.clone()).handle(block);
    let engine = builder.workers(Workers::new(1)).start()?;
    let client = engine.client();
    let (running, waiting) = (client.enqueue(Block::job("a"))?.id(), client.enqueue(Block::job("b"))?.id());
    keeper.next();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| client.wait(waiting, Duration::from_secs(86_400)));
        trap.set("jobmill-dispatcher");
        assert!(engine.monitor().wait_for(EngineState::ShuttingDown, PATIENCE));
        refused(waits.join().expect("no panic").map(drop), ErrorKind::Shutdown, "the engine");
    });
    let health = engine.health();
    assert_eq!((health.state, health.dispatcher.thread), (EngineState::ShuttingDown, ThreadState::Panicked));
    assert!(health.problems.contains(&Problem::DispatcherEnded), "{health}");
    refused(client.enqueue(Block::job("c")), ErrorKind::Shutdown, "the engine");
    keeper.release();
    engine.shutdown(PATIENCE)?;
    assert_eq!(engine.state(), EngineState::Stopped);

    let engine = Engine::builder(&path).state(gate).handle(block).start()?;
    keeper.release();
    keeper.release();
    for id in [running, waiting] {
        assert_eq!(engine.client().wait(id, PATIENCE)?.status, Status::Completed);
    }
    engine.shutdown(PATIENCE)?;
    sound(client);
    Ok(())
}

/// A panic in the midst of a cycle ended all polling until the next start.
#[test]
fn a_poller_that_panics_goes_on() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (fake, trap) = (Fake::new("fake"), Trap::new());
    fake.inside().limits.poll_min = secs(0);
    let engine = polls(&path, &fake).clock(trap.clone()).start()?;
    let client = engine.client();
    let batch = client.submit(NewBatch::new("fake"), items(2))?.id();
    until("the batch is at its provider", || fake.count("create") == 1);
    fake.inside().on_poll = Some(Box::new(move || trap.set("jobmill-poller")));
    until("the health tells of the panic", || {
        client.poll_now().expect("a wish");
        engine.health().poller.error.is_some_and(|error| error.contains("panicked"))
    });
    assert_eq!(engine.health().poller.thread, ThreadState::Running);
    fake.complete_all();
    assert_eq!(client.wait(batch, PATIENCE)?.status, Status::Completed);
    until("polls work again", || engine.health().is_healthy());
    engine.shutdown(PATIENCE)?;
    assert_eq!(engine.monitor().health().poller.thread, ThreadState::Ended);
    Ok(())
}

#[test]
fn a_listener_that_panics_costs_nothing_but_more_looks() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let trap = Trap::new();
    let engine = Engine::builder(&path).clock(trap.clone()).handle(echo).start()?;
    assert_eq!(engine.health().listener, ThreadState::Running);
    trap.set("jobmill-listener");
    let other = Client::open(&path)?;
    until("the listener panics", || {
        other.enqueue(Echo::job("ring")).expect("a job");
        engine.health().listener == ThreadState::Panicked
    });
    assert!(engine.health().is_healthy(), "{}", engine.health());
    let id = other.enqueue(Echo::job("heard"))?.id();
    assert_eq!(other.wait(id, PATIENCE)?.status, Status::Completed);
    engine.shutdown(PATIENCE)?;
    Ok(())
}

/// Its job was running for ever, and the shutdown waited for the thread for ever.
#[test]
fn a_worker_that_panics_outside_of_a_handler_fails_its_attempt_and_is_not_waited_for() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (trap, trapped) = (Trap::new(), Arc::new(AtomicBool::new(false)));
    let sets = trap.clone();
    let handler = move |_: Echo, _: &Context| -> Result<(), Failure> {
        if !trapped.swap(true, Ordering::SeqCst) {
            sets.set("jobmill-worker");
        }
        Ok(())
    };
    let backoff = jobmill::Backoff::fixed(Duration::ZERO);
    let engine =
        Engine::builder(&path).workers(Workers::new(1)).backoff(backoff).clock(trap).handle(handler).start()?;
    let id = engine.client().enqueue(Echo::job("a"))?.id();
    let job = engine.client().wait(id, PATIENCE)?;
    assert_eq!((job.status, job.attempt), (Status::Completed, 2));
    let first = &engine.client().attempts(id)?[0];
    assert_eq!(first.error.as_deref(), Some("the worker panicked outside of the handler"));
    assert_eq!(engine.shutdown(PATIENCE)?, Shutdown::default());
    sound(engine.client());
    Ok(())
}

#[test]
fn the_log_does_not_promise_that_a_start_on_a_damaged_file_is_tried_again() -> jobmill::Result<()> {
    let name = "lifecycle::the_log_does_not_promise_that_a_start_on_a_damaged_file_is_tried_again";
    let Some(said) = Said::alone(name) else { return Ok(()) };
    let (_directory, path) = file();
    let client = Client::open(&path)?;
    let root: i64 = query(&client, "SELECT rootpage FROM sqlite_schema WHERE name = 'jobmill_instance'");
    let page_bytes: i64 = query(&client, "PRAGMA page_size");
    tamper(&client, "PRAGMA wal_checkpoint(TRUNCATE)");
    drop(client);
    let (page, page_bytes) = (usize::try_from(root - 1).expect("a page"), usize::try_from(page_bytes).expect("a size"));
    let mut bytes = std::fs::read(&path).expect("a file");
    bytes[page * page_bytes..][..page_bytes].fill(0xA5);
    std::fs::write(&path, bytes).expect("a file");

    let error = Engine::builder(&path).start().expect_err("a damaged file");
    assert!(error.to_string().contains("the database is damaged"), "{error}");
    let lines = said.lines();
    assert_eq!(said.count("ERROR the database fails: "), 1, "{lines}");
    assert!(!lines.contains("again"), "{lines}");
    Ok(())
}

#[test]
fn the_log_says_each_thing_once() -> jobmill::Result<()> {
    let Some(said) = Said::alone("lifecycle::the_log_says_each_thing_once") else { return Ok(()) };
    let (_directory, path) = file();
    let builder = Engine::builder(&path).busy_timeout(Duration::from_millis(5)).handle(echo);
    let engine = builder.provider(Fake::new("fake")).batches(Batches::new().polling(false)).start()?;
    assert_eq!(said.count("INFO polling of LLM batches is disabled"), 1);
    assert_eq!(said.count("without leader election"), 1);
    let poller = engine.health().poller;
    assert_eq!((poller.enabled, poller.thread, engine.health().is_healthy()), (false, ThreadState::Running, true));

    for round in 1..=2 {
        let lock = locker(&path);
        assert!(engine.client().enqueue(Echo::job("a")).is_err());
        until("many failures", || engine.health().database.failures > 5);
        drop(lock);
        until("all is well again", || engine.health().is_healthy());
        assert_eq!(said.count("ERROR the database fails, and is tried again and again until it does not: "), round);
        assert_eq!(said.count("INFO the database works again"), round);
    }
    let lines = said.lines();
    let bad = lines.lines().filter(|line| line.starts_with("ERROR") || line.starts_with("WARN")).count();
    assert_eq!(bad, 2, "{lines}");
    engine.shutdown(PATIENCE)?;
    Ok(())
}

/// A harness is an engine like others.
#[test]
fn a_crash_leaves_a_monitor_that_says_so() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| builder.handle(echo))?;
    let monitor = t.engine().monitor().clone();
    t.crash()?;
    assert_eq!((monitor.state(), t.engine().state()), (EngineState::Stopped, EngineState::Active));
    Ok(())
}

/// It said that they ignore their timeouts, and they had none.
#[test]
fn handlers_that_a_shutdown_leaves_behind_are_counted_in_the_log() -> jobmill::Result<()> {
    let name = "lifecycle::handlers_that_a_shutdown_leaves_behind_are_counted_in_the_log";
    let Some(said) = Said::alone(name) else { return Ok(()) };
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).workers(Workers::new(2)).state(gate).handle(block).start()?;
    engine.client().enqueue_many([Block::job("a"), Block::job("b")])?;
    keeper.next_of(2);
    assert_eq!(engine.shutdown(Duration::ZERO)?.returned, 2);
    let lines = said.lines();
    assert!(lines.contains("WARN handlers that have not ended and are left behind: 2"), "{lines}");
    assert_eq!(said.count("timeout"), 0, "{lines}");
    keeper.release();
    keeper.release();
    Ok(())
}
