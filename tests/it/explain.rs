//! Why a job that is pending does not start: what its queue, its engine and those before it leave it.

use std::io::Read;

use jobmill::testing::Harness;
use jobmill::{Client, Engine, Limit, Order, Priority, Query, Reason, Workers};

use crate::support::another::{Another, CHILD};
use crate::support::{Block, Echo, block, echo, file, gate, now, secs, until};

/// An engine with room for two jobs of a queue, a capacity of ten and many workers, whose handlers wait to be let go.
#[test]
fn what_an_engine_has_no_room_for_is_told_as_that() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let builder = Engine::builder(&path).handle(block).state(gate).workers(Workers::new(8));
    let engine = builder.queue("narrow", 2).capacity(10).start()?;
    let client = engine.client();
    for name in ["a", "b"] {
        client.enqueue(Block::job(name).queue("narrow"))?;
        keeper.next();
    }
    let third = client.enqueue(Block::job("c").queue("narrow"))?.id();
    let full = Reason::QueueFull { queue: "narrow".into(), running: 2, most: 2 };
    assert_eq!(client.explain(third)?.reasons, [full]);
    assert_eq!(client.explain(third)?.to_string(), "pending: 2 of 2 jobs of the queue narrow run in this process");

    let heavy = client.enqueue(Block::job("heavy").weight(9))?.id();
    let behind = client.enqueue(Block::job("behind").priority(Priority::Low))?.id();
    for (id, weight) in [(heavy, 9), (behind, 1)] {
        assert_eq!(client.explain(id)?.reasons, [Reason::NoCapacity { weight, taken: 2, capacity: 10 }]);
    }
    let says = "pending: it weighs 9, and 2 of the capacity of 10 are taken";
    assert_eq!(client.explain(heavy)?.to_string(), says);
    // It would fit, and its line said no more than that 2 of 10 are taken.
    let says = "pending: it weighs 1, and what is left of the capacity of 10 is kept for a heavier job";
    assert_eq!(client.explain(behind)?.to_string(), says);
    // Who is not of that engine cannot know it.
    assert_eq!(jobmill::Client::open(&path)?.explain(heavy)?.reasons, [Reason::NoFreeWorker]);
    keeper.release();
    engine.shutdown(secs(10))?;
    Ok(())
}

#[test]
fn a_queue_without_the_tokens_for_a_job_or_for_one_before_it_is_told_with_the_moment() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo).limit_queue(Limit::new("mail").rate(1, secs(1)).burst(10)))?;
    let mail = |cost| Echo::job("").queue("mail").cost(cost);
    t.enqueue(mail(8))?;
    t.drain()?;
    let until = |wait: u64| Reason::QueueLimited {
        queue: "mail".into(),
        running: 0,
        concurrency: None,
        until: Some(now(&t).saturating_add(secs(wait))),
    };
    let dear = t.enqueue(mail(5))?;
    let behind = t.enqueue(mail(1))?;
    let urgent = t.enqueue(mail(2).priority(Priority::Critical))?;
    t.client().pause("other")?;
    assert_eq!(t.client().explain(dear)?.reasons, [until(3)]);
    assert_eq!(t.client().explain(behind)?.reasons, [until(3)]);
    assert_eq!(t.client().explain(urgent)?.reasons, [Reason::NoFreeWorker]);
    Ok(())
}

#[test]
fn how_a_bounded_queue_stands_can_be_asked() -> jobmill::Result<()> {
    let t =
        Harness::new(|builder| builder.handle(echo).limit_queue(Limit::new("mail").concurrency(3).rate(5, secs(1))))?;
    t.client().enqueue_many([
        Echo::job("now").queue("mail").cost(4),
        Echo::job("dear").queue("mail").cost(2),
        Echo::job("later").queue("mail").delay(secs(60)),
    ])?;
    t.drain()?;
    let usage = t.client().queue_usage("mail")?;
    assert_eq!((&*usage.limit, &*usage.key, usage.running, usage.held), ("mail", "", 0, 2));
    assert_eq!((usage.tokens, usage.blocked_until), (Some(1), None));
    let error = t.client().queue_usage("default").expect_err("it has no bounds");
    assert_eq!(
        (error.kind(), &*error.to_string()),
        (jobmill::ErrorKind::NotFound, r#"the queue "default" has no bounds"#)
    );
    Ok(())
}

#[test]
fn what_a_process_runs_is_told_with_its_name_and_that_it_has_died_if_it_has() -> jobmill::Result<()> {
    if let Some(path) = std::env::var_os(CHILD) {
        let (gate, keeper) = gate();
        let engine = Engine::builder(&path).handle(block).state(gate).workers(Workers::new(1)).start()?;
        engine.client().enqueue(Block::job("runs"))?;
        // What is claimed and has not begun would be given back.
        keeper.next();
        engine.client().enqueue(Block::job("waits"))?;
        let _ = std::io::stdin().read(&mut [0]);
        return Ok(());
    }
    let (_directory, path) = file();
    let client = Client::open(&path)?;
    let name = "explain::what_a_process_runs_is_told_with_its_name_and_that_it_has_died_if_it_has";
    let other = Another::start(name, &path);
    let jobs = || client.list(Query::new().order(Order::Ascending)).expect("a page").jobs;
    until("the job runs", || jobs().len() == 2);
    let (runs, waits) = (jobs()[0].clone(), jobs()[1].id);
    let reasons = |id| client.explain(id).map(|why| why.reasons);
    let since = runs.started_at.expect("it runs");
    let [Reason::Running { process, since: told }] = &reasons(runs.id)?[..] else { panic!("{:?}", reasons(runs.id)) };
    assert!(process.ends_with(&format!("/{}", other.id())) && *told == since, "{process} {told}");
    assert_eq!(reasons(waits)?, [Reason::NoFreeWorker]);
    drop(other);
    assert_eq!(reasons(runs.id)?, [Reason::ProcessDied { process: process.clone(), since }]);
    assert_eq!(reasons(waits)?, [Reason::NoHandler { kind: "block".into() }]);
    Ok(())
}
