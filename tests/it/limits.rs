//! Limits: how many jobs of a key run at a time, how fast they start, and that nobody else waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{
    Action, Client, Context, Durability, Engine, ErrorKind, Failure, Limit, LimitUse, NewJob, Preference, Priority,
    Reason, Status, Workers,
};

use crate::limits_rate::{three_a_second, timed};
use crate::support::{Block, Dice, Echo, Gate, Keeper, PATIENCE, block, echo, file, gate, refused, secs, sound, until};

fn of_key(name: &str, key: &str) -> NewJob {
    Block::job(name).limit(LimitUse::of("keyed").key(key))
}

/// An engine with eight workers whose handlers wait to be let go, and a limit of two for each key.
pub(crate) fn engine(
    describe: impl FnOnce(jobmill::EngineBuilder) -> jobmill::EngineBuilder,
) -> (Engine, Keeper, tempfile::TempDir) {
    let (directory, path) = file();
    let (gate, keeper) = gate();
    let builder = Engine::builder(path).handle(block).handle(echo).state(gate).workers(Workers::new(8));
    let engine = describe(builder.limit(Limit::new("keyed").concurrency(2))).start().expect("an engine");
    (engine, keeper, directory)
}

fn running(client: &Client, key: &str) -> u64 {
    client.limit_usage("keyed", key).expect("a usage").running
}

#[test]
fn no_more_jobs_of_a_key_run_than_its_limit_lets() -> jobmill::Result<()> {
    let (engine, keeper, _directory) = engine(|builder| builder);
    let client = engine.client();
    let ids = client.enqueue_many((0..5).map(|n| of_key(&format!("a{n}"), "a")))?;
    assert_eq!(keeper.next_of(2), ["a0", "a1"]);
    // Neither another key nor a job without a limit waits for them.
    client.enqueue_many([of_key("b0", "b"), Block::job("free")])?;
    assert_eq!(keeper.next_of(2), ["b0", "free"]);
    assert_eq!((running(client, "a"), running(client, "b")), (2, 1));
    let usage = client.limit_usage("keyed", "a")?;
    assert_eq!((usage.held, usage.tokens), (3, None));
    let why = client.explain(ids[4].id())?;
    assert_eq!(why.status, Status::Pending);
    let held =
        Reason::Limited { limit: "keyed".into(), key: "a".into(), running: 2, concurrency: Some(2), until: None };
    assert_eq!(why.reasons, [held]);
    assert_eq!(why.to_string(), "pending: the limit keyed of a holds it: 2 of 2 run");
    sound(client);
    // As each ends the next one begins.
    (0..7).for_each(|_| keeper.release());
    assert_eq!(keeper.next_of(3), ["a2", "a3", "a4"]);
    for id in ids {
        assert_eq!(client.wait(id.id(), PATIENCE)?.status, Status::Completed);
    }
    assert_eq!(running(client, "a"), 0);
    engine.shutdown(secs(5))?;
    sound(engine.client());
    Ok(())
}

#[test]
fn a_limit_is_never_passed_however_fast_jobs_come_and_go() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, seen) = (now.clone(), most.clone());
    // Three jobs take a turn or two, so that these are hundreds, which a slow disk would take a minute for.
    let engine = Engine::builder(path)
        .durability(Durability::Normal)
        .handle(move |_: Echo, _: &Context| -> Result<(), Failure> {
            let running = inside.fetch_add(1, Ordering::SeqCst) + 1;
            seen.fetch_max(running, Ordering::SeqCst);
            std::thread::yield_now();
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
        .limit(Limit::new("three").concurrency(3))
        .workers(Workers::new(8))
        .start()?;
    let mut last = None;
    for _ in 0..40 {
        last = engine.client().enqueue_many((0..25).map(|_| Echo::job("").limit("three")))?.pop();
    }
    engine.client().wait(last.expect("a job").id(), PATIENCE)?;
    until("all have ended", || engine.client().stats().is_ok_and(|stats| stats.total.completed == 1000));
    assert_eq!((now.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (0, 3));
    engine.shutdown(secs(5))?;
    sound(engine.client());
    Ok(())
}

#[test]
fn a_full_key_holds_up_nobody_however_many_wait_for_it() -> jobmill::Result<()> {
    let (engine, keeper, _directory) = engine(|builder| builder);
    let client = engine.client();
    client.enqueue_many((0..3000).map(|n| of_key(&format!("a{n}"), "a").priority(Priority::Critical)))?;
    keeper.next_of(2);
    let echoed = client.enqueue(Echo::job("hi").priority(Priority::Low))?.id();
    assert_eq!(client.wait(echoed, PATIENCE)?.status, Status::Completed);
    client.enqueue(of_key("b", "b").priority(Priority::Low))?;
    assert_eq!(keeper.next(), "b");
    engine.shutdown(Duration::ZERO)?;
    sound(engine.client());
    Ok(())
}

#[test]
fn among_those_of_a_key_the_more_urgent_goes_first() -> jobmill::Result<()> {
    let (engine, keeper, _directory) = engine(|builder| builder);
    let client = engine.client();
    client.enqueue_many((0..4).map(|n| of_key(&format!("low{n}"), "a").priority(Priority::Low)))?;
    keeper.next_of(2);
    client.enqueue(of_key("urgent", "a").priority(Priority::Critical))?;
    keeper.release();
    assert_eq!(keeper.next(), "urgent");
    engine.shutdown(Duration::ZERO)?;
    Ok(())
}

#[test]
fn what_a_paused_queue_or_a_strange_kind_holds_back_takes_no_room_from_others() -> jobmill::Result<()> {
    let (engine, keeper, _directory) = engine(|builder| builder);
    let client = engine.client();
    client.pause("resting")?;
    client.enqueue_many((0..3).map(|n| of_key(&format!("resting{n}"), "a").queue("resting")))?;
    client.enqueue_many((0..3).map(|n| NewJob::json("strange", &n).limit(LimitUse::of("keyed").key("a"))))?;
    client.enqueue_many((0..3).map(|n| of_key(&format!("a{n}"), "a")))?;
    assert_eq!(keeper.next_of(2), ["a0", "a1"]);
    keeper.release();
    assert_eq!(keeper.next(), "a2");
    client.resume("resting")?;
    keeper.release();
    assert_eq!(keeper.next(), "resting0");
    engine.shutdown(Duration::ZERO)?;
    sound(engine.client());
    Ok(())
}

#[test]
fn a_job_waits_for_each_of_its_limits() -> jobmill::Result<()> {
    let (engine, keeper, _directory) = engine(|builder| builder.limit(Limit::new("site").concurrency(1)));
    let client = engine.client();
    let both = |name: &str, key: &str| of_key(name, key).limit("site");
    client.enqueue(both("first", "a"))?;
    assert_eq!(keeper.next(), "first");
    // The second waits for the site; the keyed limit has room, which a job takes that needs nothing else.
    let second = client.enqueue(both("second", "a"))?.id();
    client.enqueue(of_key("keyed", "a"))?;
    assert_eq!(keeper.next(), "keyed");
    assert!(matches!(&client.explain(second)?.reasons[..], [Reason::Limited { limit, .. }] if limit == "site"));
    // When the site is free, the key is full still.
    client.enqueue(of_key("keyed too", "a"))?;
    // One for each of the four: who begins may be quicker through the gate than who has waited at it.
    (0..4).for_each(|_| keeper.release());
    let names = keeper.next_of(2);
    assert_eq!(names, ["keyed too", "second"]);
    engine.shutdown(Duration::ZERO)?;
    sound(engine.client());
    Ok(())
}

#[test]
fn jobs_of_a_client_that_has_opened_the_file_for_itself_keep_the_limits_of_the_engine() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let start = |gate: &Gate| {
        let builder = Engine::builder(&path).handle(block).state(gate.clone()).workers(Workers::new(8));
        builder.limit(Limit::new("keyed").concurrency(3)).limit_queue(Limit::new("narrow").concurrency(2)).start()
    };
    let engine = start(&gate)?;
    refused(start(&gate).map(drop), ErrorKind::Conflict, "an engine runs on ");
    let client = Client::open(&path)?;
    client.enqueue_many((0..5).map(|n| of_key(&format!("a{n}"), "a")))?;
    client.enqueue_many((0..5).map(|n| Block::job(format!("q{n}")).queue("narrow")))?;
    assert_eq!(keeper.next_of(5), ["a0", "a1", "a2", "q0", "q1"]);
    engine.shutdown(Duration::ZERO)?;
    sound(&client);
    Ok(())
}

#[test]
fn jobs_of_an_applications_own_transaction_are_held_and_let_go_like_others() -> jobmill::Result<()> {
    let (engine, keeper, _directory) = engine(|builder| builder);
    let client = engine.client();
    let mut own = client.connection()?;
    let tx = own.transaction().expect("a transaction");
    for n in 0..4 {
        client.enqueue_in(&tx, of_key(&format!("a{n}"), "a"))?;
    }
    refused(client.enqueue_in(&tx, Echo::job("").limit("unheard of")), ErrorKind::Invalid, "limit: ");
    tx.commit().expect("a commit");
    assert_eq!(keeper.next_of(2), ["a0", "a1"]);
    keeper.release();
    assert_eq!(keeper.next(), "a2");
    engine.shutdown(Duration::ZERO)?;
    sound(engine.client());
    Ok(())
}

#[test]
fn a_job_that_ends_in_an_applications_own_transaction_makes_room() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path)
        .handle(|job: Echo, ctx: &Context| -> Result<String, Failure> {
            let mut own = rusqlite_connection(ctx)?;
            let tx = own.transaction()?;
            ctx.complete_in(&tx, &job.0)?;
            tx.commit()?;
            Ok(job.0)
        })
        .state(path.clone())
        .limit(Limit::new("one").concurrency(1))
        .workers(Workers::new(4))
        .start()?;
    let ids = engine.client().enqueue_many((0..20).map(|n| Echo::job(n.to_string()).limit("one")))?;
    for id in ids {
        assert_eq!(engine.client().wait(id.id(), PATIENCE)?.status, Status::Completed);
    }
    engine.shutdown(secs(5))?;
    sound(engine.client());
    Ok(())
}

fn rusqlite_connection(ctx: &Context) -> Result<jobmill::rusqlite::Connection, Failure> {
    let own = jobmill::rusqlite::Connection::open(ctx.state::<std::path::PathBuf>()?)?;
    own.busy_timeout(PATIENCE)?;
    Ok(own)
}

#[test]
fn a_limit_is_changed_and_lifted_while_jobs_wait_for_it() -> jobmill::Result<()> {
    let (engine, keeper, _directory) = engine(|builder| builder);
    let client = engine.client();
    client.enqueue_many((0..7).map(|n| of_key(&format!("a{n}"), "a")))?;
    keeper.next_of(2);
    client.set_limit(&Limit::new("keyed").concurrency(4))?;
    assert_eq!(keeper.next_of(2), ["a2", "a3"]);
    client.set_limit(&Limit::new("keyed").concurrency(4))?;
    client.set_limit(&Limit::new("keyed"))?;
    assert_eq!(keeper.next_of(3), ["a4", "a5", "a6"]);
    assert_eq!(client.limits()?, [Limit::new("keyed")]);
    let audited = client.audit(None, 10)?.into_iter().filter(|line| line.action == Action::Limited).count();
    assert_eq!(audited, 3, "what changes nothing is not told");
    client.limit_queue(&Limit::new("mail").concurrency(1))?;
    assert_eq!(client.queue_limits()?, [Limit::new("mail").concurrency(1)]);
    client.limit_queue(&Limit::new("mail"))?;
    assert_eq!(client.queue_limits()?, []);
    engine.shutdown(Duration::ZERO)?;
    Ok(())
}

/// Tracked jobs and batches, which no worker runs, took the room of those that workers run.
#[test]
fn a_queues_bound_counts_what_workers_run() -> jobmill::Result<()> {
    let (t, starts) = timed(&[], Some(|| Limit::new("mail").concurrency(1)))?;
    t.enqueue(NewJob::tracked().status(Status::Running).queue("mail"))?;
    let job = t.enqueue(Echo::job("runs").queue("mail"))?;
    let why = t.client().explain(job)?;
    assert!(!why.reasons.iter().any(|reason| matches!(reason, Reason::QueueLimited { .. })), "{why}");
    t.drain()?;
    assert_eq!(starts.take(), ["runs"]);
    sound(t.client());
    Ok(())
}

/// One turn moves some hundred held jobs. What it left, nobody looked at before time or others gave them cause.
#[test]
fn what_one_turn_has_no_time_to_move_the_next_one_moves() -> jobmill::Result<()> {
    let (t, starts) = timed(&[|| Limit::new("a").rate(1, secs(1)), || Limit::new("b").rate(1, secs(3600))], None)?;
    t.client().enqueue_many([Echo::job("").limit("a"), Echo::job("").limit("b")])?;
    t.drain()?;
    t.client().enqueue_many((0..1200).map(|n| Echo::job(n.to_string()).limit("a").limit("b")))?;
    t.client().enqueue(Echo::job("last").limit("a"))?;
    t.drain()?;
    starts.take();
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(starts.take(), ["last"]);
    sound(t.client());
    Ok(())
}

/// One turn meets a thousand jobs that may not start. Those behind them, nobody looked at before time or others gave
/// them cause.
#[test]
fn what_stands_behind_more_than_one_turn_may_meet_is_met_by_the_next() -> jobmill::Result<()> {
    let (t, starts) = timed(&[|| Limit::new("tokens").rate(2500, secs(365 * 86_400))], None)?;
    t.client().pause("later")?;
    let later = |name: &str| Echo::job(name).queue("later");
    t.client().enqueue_many((0..2100).map(|n| later(&n.to_string()).limit("tokens")))?;
    t.enqueue(later("free"))?;
    // It empties the bucket while they stand ready.
    t.enqueue(Echo::job("all").limit(LimitUse::of("tokens").cost(2500)))?;
    t.drain()?;
    assert_eq!(starts.take(), ["all"]);
    t.client().resume("later")?;
    t.drain()?;
    assert_eq!(starts.take(), ["free"]);
    sound(t.client());
    Ok(())
}

#[test]
fn held_jobs_are_cancelled_expire_are_moved_and_deleted_like_others() -> jobmill::Result<()> {
    let (t, starts) = timed(&[three_a_second], None)?;
    let ids: Vec<_> = t
        .client()
        .enqueue_many((0..12).map(|n| {
            let job = Echo::job(n.to_string()).limit("tokens");
            if n == 7 { job.expires_in(secs(1)) } else { job }
        }))?
        .into_iter()
        .map(|enqueued| enqueued.id())
        .collect();
    t.drain()?;
    assert_eq!(starts.take(), ["0", "1", "2"]);
    t.client().cancel(ids[3])?;
    t.client().delete(ids[4])?;
    t.client().set_priority(ids[10], Priority::High)?;
    t.client().set_queue(ids[11], "aside")?;
    sound(t.client());
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(starts.take(), ["10", "5", "6"]);
    assert_eq!(t.client().get(ids[7])?.status, Status::Expired);
    t.client().retry(ids[3])?;
    t.advance(secs(1));
    t.drain()?;
    t.advance(secs(1));
    t.drain()?;
    let mut rest = starts.take();
    rest.sort();
    assert_eq!(rest, ["11", "3", "8", "9"]);
    assert_eq!(t.client().limit_usage("tokens", "")?.held, 0);
    sound(t.client());
    Ok(())
}

#[test]
fn a_job_that_is_tried_again_stands_in_line_once_more() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder
            .handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
                if ctx.attempt() == 1 { Err(Failure::retry_after(secs(1), "no")) } else { Ok(()) }
            })
            .limit(Limit::new("slow").rate(1, secs(10)))
    })?;
    let ids = t.client().enqueue_many((0..2).map(|_| Echo::job("").limit("slow")))?;
    let statuses =
        || ids.iter().map(|id| t.client().get(id.id()).map(|job| job.attempt)).collect::<Result<Vec<_>, _>>();
    t.drain()?;
    assert_eq!(statuses()?, [1, 0]);
    t.advance(secs(9));
    t.drain()?;
    assert_eq!(statuses()?, [1, 0], "its second attempt takes a token too");
    for _ in 0..3 {
        t.advance(secs(10));
        t.drain()?;
    }
    assert_eq!(statuses()?, [2, 2]);
    sound(t.client());
    Ok(())
}

/// A job that its deadline and its turn brought forward in one turn was held twice over, and the books were wrong.
#[test]
fn a_job_that_is_met_by_two_ways_is_held_once() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let builder = builder.handle(echo).prefer(Preference::EarliestDeadline { patience: secs(60) });
        builder.limit(Limit::new("one").concurrency(1)).workers(Workers::new(4))
    })?;
    t.client().set_limit(&Limit::new("one"))?;
    t.client().pause("default")?;
    t.client().enqueue_many((0..9).map(|n| Echo::job(n.to_string()).limit("one").expires_in(secs(100))))?;
    t.client().set_limit(&Limit::new("one").concurrency(1))?;
    t.client().resume("default")?;
    sound(t.client());
    assert_eq!(t.drain()?, 9);
    sound(t.client());
    Ok(())
}

#[test]
fn what_a_dead_engine_ran_makes_room_again() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| builder.handle(echo).limit(Limit::new("one").concurrency(1)))?;
    let ids = t.client().enqueue_many((0..3).map(|n| Echo::job(n.to_string()).limit("one")))?;
    // The first one is claimed as it is written.
    assert_eq!(t.client().limit_usage("one", "")?.held, 2);
    t.crash()?;
    t.drain()?;
    for id in ids {
        assert_eq!(t.client().get(id.id())?.status, Status::Completed);
    }
    assert_eq!(t.client().limit_usage("one", "")?.running, 0);
    sound(t.client());
    Ok(())
}

#[test]
fn of_several_limits_none_keeps_a_job_from_another_for_ever() -> jobmill::Result<()> {
    for seed in 0..8 {
        let mut dice = Dice(seed);
        let (t, starts) = timed(
            &[
                || Limit::new("a").rate(1, secs(1)),
                || Limit::new("b").rate(2, secs(3)),
                || Limit::new("c").rate(3, secs(2)).burst(1),
            ],
            None,
        )?;
        let count = 60;
        t.client().enqueue_many((0..count).map(|n| {
            let job = Echo::job(n.to_string()).priority(dice.pick(&[Priority::High, Priority::Low]));
            dice.some(&["a", "b", "c"]).into_iter().fold(job, |job, name| job.limit(name))
        }))?;
        let mut seconds = 0;
        let mut done = 0;
        while done < count {
            t.drain()?;
            done += starts.take().len();
            t.advance(secs(1));
            seconds += 1;
            assert!(seconds < 200, "{done} of {count} have run");
        }
        sound(t.client());
    }
    Ok(())
}

#[test]
fn a_fault_at_any_commit_leaves_the_books_right() -> jobmill::Result<()> {
    use jobmill::testing::Fault;
    for fault in [Fault::Before, Fault::After] {
        for n in 1..=12 {
            let t = Harness::new(|builder| {
                let limits = builder.handle(echo).limit(Limit::new("one").concurrency(1));
                limits.limit(Limit::new("tokens").rate(2, secs(1))).limit_queue(Limit::new("mail").rate(3, secs(1)))
            })?;
            t.faults().fail(n, fault);
            for n in 0..6 {
                let job = Echo::job(n.to_string()).limit("one").limit("tokens").queue("mail");
                // Whether it came in or not, the books are right.
                drop(t.client().enqueue(job));
            }
            for _ in 0..20 {
                drop(t.drain());
                t.advance(secs(1));
            }
            sound(t.client());
            let stats = t.client().stats()?;
            assert_eq!(stats.total.pending + stats.total.running, 0, "{fault:?} at {n}");
            assert_eq!(t.client().limit_usage("one", "")?.running, 0);
        }
    }
    Ok(())
}

#[test]
fn a_key_that_no_job_names_any_more_is_forgotten() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let retention = jobmill::Retention { completed: Some(secs(60)), ..Default::default() };
        builder.handle(echo).retention(retention).limit(Limit::new("keyed").concurrency(1))
    })?;
    t.client().enqueue_many((0..50).map(|n| Echo::job("").limit(LimitUse::of("keyed").key(n.to_string()))))?;
    t.drain()?;
    let keys = || -> i64 {
        let own = t.client().connection().expect("a connection");
        own.query_row("SELECT count(*) FROM jobmill_gate", [], |row| row.get(0)).expect("a count")
    };
    assert_eq!(keys(), 50);
    t.advance(secs(120));
    t.engine().maintain()?;
    t.engine().maintain()?;
    assert_eq!(keys(), 0);
    sound(t.client());
    Ok(())
}

#[test]
fn what_breaks_a_rule_is_refused_and_nothing_is_written() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo).limit(three_a_second()))?;
    let client = t.client();
    let many = (0..9).fold(Echo::job(""), |job, n| job.limit(LimitUse::of("tokens").key(n.to_string())));
    for (job, begins) in [
        (Echo::job("").limit("unset"), "limit: there is no limit \"unset\""),
        (Echo::job("").limit(""), "limit: "),
        (Echo::job("").limit("tokens").limit("tokens"), "limit: tokens must be named once"),
        (Echo::job("").limit(LimitUse::of("tokens").key("k".repeat(1025))), "limit.key: "),
        (Echo::job("").limit(LimitUse::of("tokens").cost(u32::MAX)), "limit.cost: "),
        (many, "limit: must be no more than 8"),
        (Echo::job("").weight(0), "weight: "),
        (Echo::job("").cost(u32::MAX), "cost: "),
        (NewJob::tracked().limit("tokens"), "limit: "),
    ] {
        refused(client.enqueue(job), ErrorKind::Invalid, begins);
    }
    refused(client.set_limit(&Limit::new("x").concurrency(0)), ErrorKind::Invalid, "limit.concurrency: ");
    refused(client.limit_queue(&Limit::new("system").concurrency(1)), ErrorKind::Invalid, "queue: ");
    refused(client.limit_usage("unset", ""), ErrorKind::NotFound, "there is no limit");
    let ada = client.for_user("ada")?;
    refused(ada.set_limit(&three_a_second()), ErrorKind::Forbidden, "");
    refused(ada.limit_queue(&three_a_second()), ErrorKind::Forbidden, "");
    assert_eq!(client.stats()?.total, Default::default());
    until("the books are right", || client.verify().is_ok_and(|wrong| wrong.is_empty()));
    Ok(())
}

/// Each time that one limit opened while the other was shut, all that waited moved from one to the other, one by one.
#[test]
fn those_that_wait_for_two_limits_in_turn_are_moved_together() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let run = |job: Echo, ctx: &Context| -> Result<(), Failure> {
            if job.0 == "shut" {
                // Each is shut before the other opens.
                ctx.throttled(secs(70))?;
            }
            Ok(())
        };
        let limits = ["a", "b"].map(|name| Limit::new(name).rate(1000, secs(1)));
        limits.into_iter().fold(builder.handle(run), |builder, limit| builder.limit(limit))
    })?;
    let changes = || -> jobmill::Result<i64> {
        t.client().write(|tx| -> Result<i64, jobmill::Error> {
            Ok(tx.query_row("SELECT total_changes()", [], |row| row.get(0)).expect("a count"))
        })
    };
    let shut = |name: &str| t.enqueue(Echo::job("shut").limit(name).priority(Priority::Critical)).map(drop);
    shut("a")?;
    t.drain()?;
    t.advance(secs(20));
    t.client().enqueue_many((0..2000).map(|_| Echo::job("").limit("b").limit("a")))?;
    for (opens, shuts) in [("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")] {
        t.advance(secs(30));
        shut(shuts)?;
        t.drain()?;
        let before = changes()?;
        t.advance(secs(30));
        t.drain()?;
        let moved = changes()? - before;
        assert!(moved < 100, "{moved} rows were written as {opens} opened");
        sound(t.client());
    }
    assert_eq!(t.client().limit_usage("a", "")?.held + t.client().limit_usage("b", "")?.held, 2000);
    for _ in 0..200 {
        t.advance(secs(1));
        t.drain()?;
    }
    assert_eq!(t.client().stats()?.total.pending, 0);
    sound(t.client());
    Ok(())
}

#[test]
fn the_keys_of_a_limit_are_listed_in_pages_with_what_waits_for_them() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.limit(Limit::new("few").concurrency(1).rate(9, secs(9))))?;
    for (key, jobs) in [("", 1), ("b", 3), ("c", 2), ("d", 1)] {
        t.client().enqueue_many((0..jobs).map(|_| Echo::job("").limit(LimitUse::of("few").key(key))))?;
    }
    let keys = |after, limit| -> jobmill::Result<Vec<(String, u64)>> {
        let page = t.client().limit_usages("few", after, limit)?;
        Ok(page.into_iter().map(|usage| (usage.key, usage.held)).collect())
    };
    let named = |keys: &[(&str, u64)]| keys.iter().map(|(key, held)| ((*key).to_owned(), *held)).collect::<Vec<_>>();
    assert_eq!(keys(None, 2)?, named(&[("", 0), ("b", 2)]));
    assert_eq!(keys(Some("b"), 2)?, named(&[("c", 1), ("d", 0)]));
    assert_eq!(keys(Some("d"), 2)?, []);
    assert_eq!(t.client().limit_usages("few", Some("a"), 1)?, [t.client().limit_usage("few", "b")?]);
    refused(t.client().limit_usages("none", None, 2), ErrorKind::NotFound, "there is no limit");
    refused(t.client().limit_usages("few", None, 0), ErrorKind::Invalid, "limit: must be from 1 to 1000");
    Ok(())
}
