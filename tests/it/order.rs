//! Which job is next: priorities, ageing, reserved workers, queues and their limits, the threads that come and go.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{Client, Context, Engine, EngineBuilder, Failure, NewJob, Priority, Query, Reason, Status, Workers};

use crate::support::{Block, Echo, Other, PATIENCE, block, echo, file, gate, now, secs, sound, until};

/// What has run, in its order.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

fn write_down(job: Echo, ctx: &Context) -> Result<(), Failure> {
    ctx.state::<Diary>()?.0.lock().expect("no panic").push(job.0);
    Ok(())
}

fn with_diary(describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static) -> jobmill::Result<(Harness, Diary)> {
    let diary = Diary::default();
    let state = diary.clone();
    let t = Harness::new(move |builder| describe(builder.state(state.clone()).handle(write_down)))?;
    Ok((t, diary))
}

#[test]
fn the_best_priority_goes_first_then_the_earliest_then_the_oldest() -> jobmill::Result<()> {
    for workers in [1, 3, 16] {
        let (t, diary) = with_diary(move |builder| builder.workers(Workers::new(workers)))?;
        // The first job of a kind tells the engine how long it takes, from when on it claims ahead.
        for _ in 0..2 {
            let start = now(&t);
            let mut expected = Vec::new();
            for n in 0..40_u64 {
                let priority = Priority::ALL[(n * 7 % 4) as usize];
                let ahead_s = n * 11 % 5;
                let job = Echo::job(n.to_string()).priority(priority).queue(["a", "b"][(n % 2) as usize]);
                let run_at = start.saturating_sub(secs(ahead_s));
                t.enqueue(if ahead_s == 0 { job } else { job.run_at(run_at) })?;
                expected.push((priority, run_at, n));
            }
            t.drain()?;
            expected.sort();
            let expected: Vec<String> = expected.into_iter().map(|(_, _, n)| n.to_string()).collect();
            assert_eq!(diary.take(), expected, "{workers} workers");
            t.advance(secs(100));
        }
        sound(t.client());
    }
    Ok(())
}

/// Jobs of a kind that was known to be short were claimed ahead of urgent ones of a kind that nobody had measured, which
/// waited for a free worker.
#[test]
fn nothing_is_claimed_ahead_of_an_urgent_job_that_waits_for_a_worker() -> jobmill::Result<()> {
    let (t, diary) = with_diary(|builder| {
        builder.workers(Workers::new(1)).handle(|job: Other, ctx: &Context| write_down(Echo(job.0.to_string()), ctx))
    })?;
    t.enqueue(Echo::job("short"))?;
    t.drain()?;
    diary.take();
    t.client().enqueue_many((0..3).map(|_| Echo::job("short").priority(Priority::Low)))?;
    t.client().enqueue_many((0..3).map(|n| NewJob::of(&Other(n)).priority(Priority::Critical)))?;
    t.drain()?;
    assert_eq!(diary.take(), ["0", "1", "2", "short", "short", "short"]);
    Ok(())
}

#[test]
fn an_urgent_job_goes_before_those_that_wait_already() -> jobmill::Result<()> {
    let diary = Diary::default();
    let state = diary.clone();
    let t = Harness::new(move |builder| {
        builder.workers(Workers::new(1)).state(state.clone()).handle(|job: Echo, ctx: &Context| {
            if job.0 == "3" {
                ctx.client().enqueue(Echo::job("urgent").priority(Priority::Critical))?;
                ctx.client().enqueue(Echo::job("idle").priority(Priority::Low))?;
            }
            write_down(job, ctx)
        })
    })?;
    t.client().enqueue_many((0..8).map(|n| Echo::job(n.to_string())))?;
    t.drain()?;
    assert_eq!(diary.take(), ["0", "1", "2", "3", "urgent", "4", "5", "6", "7", "idle"]);
    Ok(())
}

/// Jobs that one turn had claimed began by their own priority, whatever their waiting had earned them.
#[test]
fn a_job_that_has_waited_counts_more() -> jobmill::Result<()> {
    for workers in [1, 4] {
        let (t, diary) = with_diary(move |builder| builder.workers(Workers::new(workers)).ageing(secs(60)))?;
        t.enqueue(Echo::job("first of its kind"))?;
        t.drain()?;
        diary.take();
        let late = |name: &str, priority| t.enqueue(Echo::job(name).priority(priority));
        late("low, 130 s", Priority::Low)?;
        t.advance(secs(70));
        late("low, 60 s", Priority::Low)?;
        late("default, 60 s", Priority::Default)?;
        t.advance(secs(60));
        late("default", Priority::Default)?;
        late("low", Priority::Low)?;
        late("high", Priority::High)?;
        late("critical", Priority::Critical)?;
        t.drain()?;
        assert_eq!(
            diary.take(),
            ["critical", "low, 130 s", "default, 60 s", "high", "low, 60 s", "default", "low"],
            "{workers} workers"
        );
        assert_eq!(t.client().stats()?.priorities[&Priority::Low].completed, 3, "no row is rewritten");
    }
    Ok(())
}

#[test]
fn without_ageing_a_low_job_waits() -> jobmill::Result<()> {
    let (t, diary) = with_diary(|builder| builder.workers(Workers::new(1)))?;
    t.enqueue(Echo::job("low").priority(Priority::Low))?;
    t.advance(secs(1_000_000));
    t.enqueue(Echo::job("default"))?;
    t.drain()?;
    assert_eq!(diary.take(), ["default", "low"]);
    Ok(())
}

fn running(client: &Client, priority: Priority) -> jobmill::Result<u64> {
    Ok(client.stats()?.priorities.get(&priority).map_or(0, |counts| counts.running))
}

#[test]
fn reserved_workers_never_take_work_below_their_priority() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(path).workers(Workers::tiered()).state(gate).handle(block).start()?;
    let client = engine.client();
    for (priority, count, begin) in [
        (Priority::Low, 3, 3),
        (Priority::Default, 9, 1),
        (Priority::Low, 2, 0),
        (Priority::High, 9, 2),
        (Priority::Default, 1, 0),
        (Priority::Critical, 3, 1),
    ] {
        let before = running(client, priority)?;
        client.enqueue_many((0..count).map(|_| Block::job(priority.as_str()).priority(priority)))?;
        // What is claimed may go back until it has begun.
        assert_eq!(keeper.next_of(begin as usize), vec![priority.as_str(); begin as usize]);
        assert_eq!(running(client, priority)? - before, begin, "{priority}");
    }
    drop(keeper);
    until("all have run", || client.stats().is_ok_and(|stats| stats.total.completed == 27));
    engine.shutdown(secs(5))?;
    sound(client);
    Ok(())
}

#[test]
fn the_tiers_hold_at_every_moment() -> jobmill::Result<()> {
    #[derive(Default)]
    struct AtWork(Mutex<[usize; 4]>);
    let (_directory, path) = file();
    let engine = Engine::builder(path)
        .workers(Workers::tiered())
        .state(AtWork::default())
        .handle(|_: Echo, ctx: &Context| -> Result<bool, Failure> {
            let count = |change: isize| {
                let mut at_work = ctx.state::<AtWork>()?.0.lock().expect("no panic");
                let own = &mut at_work[ctx.job().priority as usize];
                *own = own.checked_add_signed(change).expect("who goes has come");
                let [critical, high, default, low] = *at_work;
                Ok::<_, Failure>(
                    default + low <= 4 && high + default + low <= 6 && critical + high + default + low <= 7,
                )
            };
            let within = count(1)?;
            std::thread::yield_now();
            Ok(count(-1)? && within)
        })
        .start()?;
    let client = engine.client();
    let jobs = (0..2000).map(|n| Echo::job("").priority(Priority::ALL[n % 4]));
    for enqueued in client.enqueue_many(jobs)? {
        assert!(client.wait(enqueued.id(), PATIENCE)?.result::<bool>()?);
    }
    Ok(())
}

#[test]
fn urgent_work_may_take_every_worker() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(path).workers(Workers::tiered()).state(gate).handle(block).start()?;
    let jobs = (0..9).map(|n| Block::job(n.to_string()).priority(Priority::Critical));
    engine.client().enqueue_many(jobs)?;
    assert_eq!(keeper.next_of(7), ["0", "1", "2", "3", "4", "5", "6"]);
    assert_eq!(running(engine.client(), Priority::Critical)?, 7);
    drop(keeper);
    Ok(())
}

#[test]
fn a_queue_with_a_limit_holds_up_no_other() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let workers = Workers::new(8);
    let engine = Engine::builder(path).workers(workers).queue("narrow", 2).state(gate).handle(block).start()?;
    let client = engine.client();
    let urgent = |n: i32| Block::job(format!("narrow {n}")).queue("narrow").priority(Priority::Critical);
    client.enqueue_many((0..6).map(urgent))?;
    client.enqueue_many((0..3).map(|n| Block::job(format!("wide {n}"))))?;
    assert_eq!(keeper.next_of(5), ["narrow 0", "narrow 1", "wide 0", "wide 1", "wide 2"]);
    let stats = client.stats()?;
    assert_eq!((stats.queues["narrow"].running, stats.queues["default"].running), (2, 3));
    for _ in 0..3 {
        keeper.release();
    }
    drop(keeper);
    until("all have run", || client.stats().is_ok_and(|stats| stats.total.completed == 9));
    engine.shutdown(secs(5))?;
    sound(client);
    Ok(())
}

#[test]
fn a_paused_queue_waits_and_says_so() -> jobmill::Result<()> {
    let (t, diary) = with_diary(|builder| builder)?;
    let since = now(&t);
    t.client().pause("a")?;
    t.advance(secs(5));
    t.client().pause("a")?;
    let paused = t.enqueue(Echo::job("paused").queue("a"))?;
    let delayed = t.enqueue(Echo::job("delayed").queue("a").delay(secs(3)))?;
    t.enqueue(Echo::job("free").queue("b"))?;
    t.advance(secs(3));
    assert_eq!(t.drain()?, 1);
    assert_eq!(diary.take(), ["free"]);
    let reason = Reason::QueuePaused { queue: "a".into(), since };
    assert_eq!(t.client().explain(paused)?.reasons, [reason], "since the first time");
    assert_eq!(t.client().stats()?.paused, ["a"]);
    t.client().resume("a")?;
    t.client().resume("never paused")?;
    assert_eq!(t.client().stats()?.paused, Vec::<String>::new());
    assert_eq!(t.drain()?, 2);
    t.check(delayed, "completed, attempt 1");
    Ok(())
}

#[test]
fn a_pause_outlives_the_engine_and_counts_for_queues_to_come() -> jobmill::Result<()> {
    let (mut t, diary) = with_diary(|builder| builder)?;
    t.client().pause("later")?;
    t.restart()?;
    t.enqueue(Echo::job("x").queue("later"))?;
    t.crash()?;
    assert_eq!(t.drain()?, 0);
    Client::open(t.path())?.resume("later")?;
    assert_eq!(t.drain()?, 1);
    assert_eq!(diary.take(), ["x"]);
    Ok(())
}

#[test]
fn another_client_pauses_and_resumes_a_running_engine() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).start()?;
    let stranger = Client::open(&path)?;
    stranger.pause("default")?;
    let id = engine.client().enqueue(&Echo("x".into()))?.id();
    // A turn of this engine's own cannot miss what was committed before it.
    assert_eq!(engine.client().get(id)?.status, Status::Pending);
    assert_eq!(engine.client().stats()?.paused, ["default"]);
    stranger.resume("default")?;
    assert_eq!(stranger.wait(id, PATIENCE)?.status, Status::Completed);
    Ok(())
}

#[test]
fn running_jobs_of_a_paused_queue_go_on() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).state(gate).handle(block).start()?;
    let id = engine.client().enqueue(Block::job("x"))?.id();
    keeper.next();
    engine.client().pause("default")?;
    drop(keeper);
    assert_eq!(engine.client().wait(id, PATIENCE)?.status, Status::Completed);
    Ok(())
}

fn thread_name(_: Echo, _: &Context) -> Result<Option<String>, Failure> {
    Ok(std::thread::current().name().map(str::to_owned))
}

#[test]
fn threads_come_with_the_work_and_stay_for_the_next() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let workers = Workers::new(4).keep_alive(secs(3600));
    let engine = Engine::builder(path).workers(workers).state(gate).handle(block).handle(thread_name).start()?;
    let client = engine.client();
    client.enqueue_many((0..9).map(|n| Block::job(n.to_string())))?;
    assert_eq!(keeper.next_of(4), ["0", "1", "2", "3"], "no more than the workers in all");
    drop(keeper);
    let mut names = BTreeSet::new();
    for n in 0..50 {
        let id = client.enqueue(&Echo(n.to_string()))?.id();
        names.extend(client.wait(id, PATIENCE)?.result::<Option<String>>()?);
    }
    let all: BTreeSet<String> = (0..4).map(|n| format!("jobmill-worker-{n}")).collect();
    assert!(names.is_subset(&all), "{names:?}");
    Ok(())
}

#[test]
fn threads_without_work_go_and_others_come() -> jobmill::Result<()> {
    let (_directory, path) = file();
    for _ in 0..30 {
        let workers = Workers::new(2).keep_alive(Duration::from_micros(50));
        let engine = Engine::builder(&path).workers(workers).handle(thread_name).start()?;
        let client = engine.client();
        let run_by = || -> jobmill::Result<String> {
            let id = client.enqueue(&Echo(String::new()))?.id();
            client.wait(id, PATIENCE)?.result()
        };
        // Some come just as a thread goes.
        let mut names = (0..3).map(|_| run_by()).collect::<jobmill::Result<BTreeSet<_>>>()?;
        while names.len() < 3 {
            until("the threads go", || engine.health().workers.threads == 0);
            assert!(names.insert(run_by()?), "a new thread has a new name");
        }
        engine.shutdown(secs(5))?;
    }
    Ok(())
}

#[test]
fn some_threads_may_stay_without_work() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let workers = Workers::new(2).min(2).keep_alive(Duration::ZERO);
    let engine = Engine::builder(&path).workers(workers).handle(thread_name).start()?;
    for _ in 0..50 {
        let id = engine.client().enqueue(&Echo(String::new()))?.id();
        let name = engine.client().wait(id, PATIENCE)?.result::<String>()?;
        assert!(["jobmill-worker-0", "jobmill-worker-1"].contains(&name.as_str()), "{name}");
    }
    engine.shutdown(secs(5))?;
    Ok(())
}

#[test]
fn a_job_that_nobody_here_can_run_is_left_to_others_and_holds_up_nobody() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).workers(Workers::new(1)).inline()?;
    let client = engine.client().clone();
    let foreign = (0..500).map(|n| NewJob::json("echo", &n.to_string()).priority(Priority::Critical));
    let foreign = client.enqueue_many(foreign)?[0].id();
    assert_eq!(engine.drain()?, 0);
    let explanation = client.explain(foreign)?;
    assert_eq!(explanation.reasons, [Reason::NoHandler { kind: "echo".into() }]);
    assert_eq!(explanation.to_string(), "pending: no engine on this file has a handler for the kind echo");
    engine.shutdown(secs(1))?;

    let engine = Engine::builder(&path).workers(Workers::new(1)).handle(block).inline()?;
    let (kind, text) = ("block", "a handler without its state fails");
    let own = engine.client().enqueue(NewJob::json(kind, &text).priority(Priority::Low).max_attempts(1))?.id();
    assert_eq!(engine.drain()?, 1);
    assert_eq!(engine.client().get(own)?.status, Status::Failed);
    engine.shutdown(secs(1))?;

    let engine = Engine::builder(&path).handle(echo).inline()?;
    assert_eq!(engine.client().explain(foreign)?.reasons, [Reason::NoFreeWorker]);
    assert_eq!(engine.drain()?, 500);
    let page = engine.client().list(Query::new().statuses([Status::Completed]).limit(1000))?;
    assert_eq!(page.jobs.len(), 500);
    sound(engine.client());
    Ok(())
}
