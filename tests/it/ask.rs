//! Asking: one job, pages of jobs, counts, reasons, histories.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{
    Cancelled, Client, Clock, Context, Engine, ErrorKind, Failure, Job, JobId, Limit, Missed, NewJob, NewWorkflow,
    Order, Outcome, Overlap, Priority, Query, Reason, Retention, Schedule, Stats, Status, StepStatus, Unique, Workers,
};
use serde_json::json;

use crate::support::another::{Another, CHILD};
use crate::support::{
    Block, Dice, Echo, Other, PATIENCE, block, echo, file, gate, now, other, refused, secs, sound, unadmit, until,
};

fn id(text: &str) -> JobId {
    text.parse().expect("an id")
}

#[test]
fn what_is_not_there_is_not_found() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let unknown = id("job-0000000000002");
    let says = "there is no job job-0000000000002";
    refused(t.client().get(unknown), ErrorKind::NotFound, says);
    refused(t.client().wait(unknown, Duration::ZERO), ErrorKind::NotFound, says);
    refused(t.client().explain(unknown), ErrorKind::NotFound, says);
    refused(t.client().attempts(unknown), ErrorKind::NotFound, says);
    refused(t.client().log(unknown), ErrorKind::NotFound, "there is no job ");
    assert_eq!(t.client().list(Query::new())?.jobs, []);
    assert_eq!(t.client().stats()?, Stats::default());
    Ok(())
}

#[test]
fn who_waits_gets_the_job_once_it_has_ended_or_an_error_in_time() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).state(gate).handle(block).start()?;
    let stranger = Client::open(&path)?;
    let id = engine.client().enqueue(Block::job("x"))?.id();
    keeper.next();
    for client in [engine.client(), &stranger] {
        let says = format!("{id} has not ended in time");
        refused(client.wait(id, Duration::ZERO), ErrorKind::Timeout, &says);
        refused(client.wait(id, Duration::from_millis(20)), ErrorKind::Timeout, &says);
    }
    keeper.release();
    assert_eq!(stranger.wait(id, PATIENCE)?.result::<String>()?, "x");
    assert_eq!(engine.client().wait(id, Duration::ZERO)?.status, Status::Completed, "what has ended needs no wait");
    assert_eq!(engine.client().wait(id, Duration::MAX)?.status, Status::Completed);
    Ok(())
}

#[test]
fn who_waits_hears_of_ends_that_others_bring_about() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).start()?;
    let stranger = Client::open(&path)?;
    for (waits, cancels) in [(engine.client(), &stranger), (&stranger, engine.client()), (&stranger, &stranger)] {
        let id = engine.client().enqueue(NewJob::json("nobody's", &1))?.id();
        let job = std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..3).map(|_| scope.spawn(|| waits.wait(id, PATIENCE))).collect();
            assert_eq!(cancels.cancel(id).ok(), Some(Cancelled::Now));
            waiters
                .into_iter()
                .map(|waiter| waiter.join().expect("no panic").map(|job| job.status).ok())
                .collect::<Vec<_>>()
        });
        assert_eq!(job, [Some(Status::Cancelled); 3]);
    }
    Ok(())
}

#[test]
fn who_waits_without_threads_hears_of_the_drain() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let id = t.enqueue(Echo::job("x"))?;
    std::thread::scope(|scope| {
        let client = t.client().clone();
        let waiter = scope.spawn(move || client.wait(id, PATIENCE));
        t.drain().expect("a drain");
        assert_eq!(waiter.join().expect("no panic").map(|job| job.status).ok(), Some(Status::Completed));
    });
    Ok(())
}

const QUEUES: [&str; 3] = ["default", "mail", "ü"];
const KINDS: [&str; 3] = ["echo", "other", "unknown"];
const TAGS: [&str; 4] = ["a", "b", "c", "rare"];

/// A file with jobs of every sort in every status.
fn varied(dice: &mut Dice) -> jobmill::Result<(Harness, Vec<Job>)> {
    let t = Harness::new(|builder| {
        builder
            .handle(|job: Echo, _: &Context| -> Result<(), Failure> {
                if job.0 == "1" { Err(Failure::fatal("no")) } else { Ok(()) }
            })
            .handle(|job: Other, _: &Context| -> Result<Outcome<()>, Failure> {
                if job.0 % 2 == 1 { Ok(Outcome::Snooze(secs(3600))) } else { Ok(Outcome::Done(())) }
            })
    })?;
    let mut ids = Vec::new();
    for round in 0..4 {
        for _ in 0..60 {
            let number = dice.below(4);
            let mut job = match dice.below(3) {
                0 => Echo::job(number.to_string()),
                1 => NewJob::of(&Other(number as u64)),
                _ => NewJob::json("unknown", &number),
            };
            job = job.queue(dice.pick(&QUEUES)).priority(dice.pick(&Priority::ALL));
            let tags = if dice.below(20) == 0 { vec!["rare"] } else { dice.some(&TAGS[..3]) };
            job = job.tags(tags);
            ids.push(t.enqueue(if dice.below(5) == 0 { job.expires_in(secs(60)).delay(secs(90)) } else { job })?);
            if dice.below(3) == 0 {
                t.advance(Duration::from_micros(1));
            }
            let waits: Vec<JobId> = t
                .client()
                .list(Query::new().statuses([Status::Pending]).kinds(["unknown"]).limit(50))?
                .jobs
                .iter()
                .map(|job| job.id)
                .collect();
            match dice.below(12) {
                0 if !waits.is_empty() => drop(t.client().cancel(dice.pick(&waits))?),
                1 if !waits.is_empty() => {
                    let job = t.client().get(dice.pick(&waits))?;
                    if job.run_at <= job.created_at() {
                        unadmit(t.client(), job.id);
                    }
                }
                _ => {}
            }
        }
        if round < 3 {
            t.drain()?;
            t.advance(secs(61));
        }
    }
    let jobs = ids.into_iter().map(|id| t.client().get(id)).collect::<jobmill::Result<Vec<_>>>()?;
    Ok((t, jobs))
}

/// Walks all pages of a query.
fn walk(client: &Client, mut query: Query, limit: usize) -> jobmill::Result<Vec<Job>> {
    let mut found = Vec::new();
    query = query.limit(limit);
    loop {
        let page = client.list(query)?;
        assert_eq!(page.has_more(), page.next.is_some());
        assert!(!page.has_more() || page.jobs.len() == limit, "a page that is followed by another is full");
        found.extend(page.jobs);
        match page.next {
            Some(next) => query = next,
            None => return Ok(found),
        }
    }
}

#[test]
fn every_filter_alone_and_with_others_gives_what_a_look_at_each_job_gives() -> jobmill::Result<()> {
    let mut dice = Dice(1);
    let (t, jobs) = varied(&mut dice)?;
    let mut by_status = BTreeMap::new();
    for job in &jobs {
        *by_status.entry(job.status).or_insert(0) += 1;
    }
    assert!(by_status.len() == 6, "every status but running: {by_status:?}");
    let mut all_found = 0;
    for round in 0..160 {
        // First each filter by itself, then any of them together.
        let with = |filter: usize, dice: &mut Dice| if round < 50 { round % 5 == filter } else { dice.below(2) == 0 };
        let statuses = if with(0, &mut dice) { dice.some(&Status::ALL) } else { vec![] };
        let kinds = if with(1, &mut dice) { dice.some(&KINDS) } else { vec![] };
        let queues = if with(2, &mut dice) { dice.some(&QUEUES) } else { vec![] };
        let priorities = if with(3, &mut dice) { dice.some(&Priority::ALL) } else { vec![] };
        let tags = if with(4, &mut dice) { dice.some(&TAGS) } else { vec![] };
        let mut cursors = [dice.pick(&jobs).id, dice.pick(&jobs).id];
        cursors.sort();
        let after = (dice.below(4) == 0).then_some(cursors[0]);
        let before = (dice.below(4) == 0 && cursors[0] < cursors[1]).then_some(cursors[1]);
        let mut query = Query::new()
            .statuses(statuses.clone())
            .kinds(kinds.clone())
            .queues(queues.clone())
            .priorities(priorities.clone())
            .tags(tags.clone());
        if let Some(after) = after {
            query = query.after(after);
        }
        if let Some(before) = before {
            query = query.before(before);
        }
        let mut expected: Vec<&Job> = jobs
            .iter()
            .filter(|job| {
                (statuses.is_empty() || statuses.contains(&job.status))
                    && (kinds.is_empty() || job.kind.as_deref().is_some_and(|kind| kinds.contains(&kind)))
                    && (queues.is_empty() || queues.contains(&job.queue.as_str()))
                    && (priorities.is_empty() || priorities.contains(&job.priority))
                    && tags.iter().all(|tag| job.tags.iter().any(|own| own == tag))
                    && after.is_none_or(|after| job.id > after)
                    && before.is_none_or(|before| job.id < before)
            })
            .collect();
        all_found += expected.len();
        for order in [Order::Ascending, Order::Descending] {
            if order == Order::Descending {
                expected.reverse();
            }
            // Short pages are for short results, for the sake of time.
            let limit = if expected.len() < 40 { dice.pick(&[1, 2, 3, 7]) } else { dice.pick(&[19, 50, 1000]) };
            let found = walk(t.client(), query.clone().order(order), limit)?;
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{query:?} {order:?} by {limit}");
        }
    }
    assert!(all_found > 1000, "the filters let something through: {all_found}");
    Ok(())
}

#[test]
fn an_unknown_name_finds_nothing() -> jobmill::Result<()> {
    let (t, _) = varied(&mut Dice(2))?;
    for query in [
        Query::new().kinds(["nobody's"]),
        Query::new().queues([""]),
        Query::new().tags(["a", "nobody's"]),
        Query::new().tags(["a' OR 1 = 1 --"]),
        Query::new().kinds(["echo"]).queues(["Mail"]),
    ] {
        let page = t.client().list(query.clone())?;
        assert!(page.jobs.is_empty() && !page.has_more(), "{query:?}");
    }
    Ok(())
}

fn numbers(jobs: &[Job]) -> Vec<u64> {
    jobs.iter().map(|job| job.payload::<Other>().expect("a number").0).collect()
}

#[test]
fn a_cursor_is_a_position_in_time_in_both_orders() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let ids: Vec<JobId> =
        t.client().enqueue_many((0..10).map(|n| NewJob::of(&Other(n))))?.iter().map(|enqueued| enqueued.id()).collect();
    let up = |query: Query| t.client().list(query.order(Order::Ascending)).map(|page| numbers(&page.jobs));
    let down = |query: Query| t.client().list(query.order(Order::Descending)).map(|page| numbers(&page.jobs));
    assert_eq!(numbers(&t.client().list(Query::new())?.jobs), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], "the newest first");
    assert_eq!(up(Query::new().before(ids[3]))?, [0, 1, 2]);
    assert_eq!(down(Query::new().before(ids[3]))?, [2, 1, 0]);
    assert_eq!(up(Query::new().after(ids[6]))?, [7, 8, 9]);
    assert_eq!(down(Query::new().after(ids[6]))?, [9, 8, 7]);
    assert_eq!(up(Query::new().after(ids[2]).before(ids[6]))?, [3, 4, 5]);
    assert_eq!(down(Query::new().after(ids[2]).before(ids[6]))?, [5, 4, 3]);
    assert_eq!(up(Query::new().after(ids[2]).before(ids[3]))?, [0; 0], "nothing lies between neighbours");
    assert_eq!(up(Query::new().before(ids[0]))?, [0; 0]);
    assert_eq!(down(Query::new().after(ids[9]))?, [0; 0]);
    // The limit counts from the side where the order begins.
    assert_eq!(up(Query::new().before(ids[8]).limit(2))?, [0, 1]);
    assert_eq!(down(Query::new().before(ids[8]).limit(2))?, [7, 6]);
    assert_eq!(up(Query::new().after(ids[1]).limit(2))?, [2, 3]);
    assert_eq!(down(Query::new().after(ids[1]).limit(2))?, [9, 8]);
    // The ends of time are positions like any other.
    let (first, last) = (id("job-0000000000002"), id("job-7zzzzzzzzzzzy"));
    assert_eq!(up(Query::new().after(first).before(last))?.len(), 10);
    assert_eq!(down(Query::new().after(last))?, [0; 0]);
    for (after, before) in [(ids[5], ids[5]), (ids[6], ids[5]), (last, first)] {
        let query = Query::new().after(after).before(before);
        refused(t.client().list(query), ErrorKind::Invalid, "before: must be newer than after");
    }
    Ok(())
}

#[test]
fn the_job_of_a_cursor_need_not_exist_any_more() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.retention(Retention { cancelled: Some(secs(60)), ..Retention::FOREVER }))?;
    let ids: Vec<JobId> =
        t.client().enqueue_many((0..10).map(|n| NewJob::of(&Other(n))))?.iter().map(|enqueued| enqueued.id()).collect();
    let page = t.client().list(Query::new().limit(4))?;
    assert_eq!(numbers(&page.jobs), [9, 8, 7, 6]);
    for n in [3, 5, 6] {
        t.client().cancel(ids[n])?;
    }
    t.advance(secs(61));
    t.engine().maintain()?;
    refused(t.client().get(ids[6]), ErrorKind::NotFound, "there is no job");
    assert_eq!(numbers(&t.client().list(page.next.expect("more"))?.jobs), [4, 2, 1, 0]);
    let between = Query::new().after(ids[3]).before(ids[6]).order(Order::Ascending);
    assert_eq!(numbers(&t.client().list(between)?.jobs), [4]);
    Ok(())
}

#[test]
fn a_page_holds_from_one_to_a_thousand() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    t.client().enqueue_many((0..1001).map(|n| NewJob::of(&Other(n))))?;
    for filter in [Query::new(), Query::new().statuses([Status::Pending])] {
        for (limit, next) in [(1, true), (2, true), (3, true), (50, true), (999, true), (1000, true)] {
            let page = t.client().list(filter.clone().limit(limit))?;
            assert_eq!((page.jobs.len(), page.has_more()), (limit, next));
        }
        assert_eq!(t.client().list(filter.clone())?.jobs.len(), Query::DEFAULT_LIMIT);
        for limit in [0, 1001, usize::MAX] {
            refused(t.client().list(filter.clone().limit(limit)), ErrorKind::Invalid, "limit: must be from 1 to 1000");
        }
        // A page that is just full is followed by none.
        let rest = t.client().list(filter.clone().limit(1000))?.next.expect("more");
        let rest = t.client().list(rest)?;
        assert_eq!((rest.jobs.len(), rest.has_more()), (1, false));
    }
    Ok(())
}

#[test]
fn pages_hang_together_while_jobs_come_and_go() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let enqueue = |n: u64| t.enqueue(NewJob::of(&Other(n)).queue(QUEUES[n as usize % 3]));
    for n in 0..50 {
        enqueue(n)?;
    }
    for (order, filter) in [
        (Order::Ascending, Query::new()),
        (Order::Descending, Query::new()),
        (Order::Ascending, Query::new().statuses([Status::Pending, Status::Cancelled])),
        (Order::Descending, Query::new().queues(QUEUES)),
    ] {
        let there: Vec<JobId> =
            walk(t.client(), Query::new().order(Order::Ascending), 1000)?.iter().map(|j| j.id).collect();
        let mut next = Some(filter.order(order).limit(7));
        let mut found = Vec::new();
        let mut added = 0;
        while let Some(query) = next {
            let page = t.client().list(query)?;
            found.extend(page.jobs.into_iter().map(|job| job.id));
            next = page.next;
            if next.is_some() && added < 20 {
                added += 1;
                enqueue(added)?;
                // One that was seen and one that was not change their status.
                t.client().cancel(there[there.len() - 1 - added as usize])?;
                t.client().cancel(there[added as usize])?;
            }
        }
        let ascending = order == Order::Ascending;
        assert!(found.is_sorted_by(|a, b| if ascending { a < b } else { a > b }), "no repeat");
        found.sort();
        assert!(there.iter().all(|id| found.binary_search(id).is_ok()), "no gap");
        assert_eq!(found.len() - there.len(), if ascending { added as usize } else { 0 }, "new ones at their own end");
    }
    Ok(())
}

/// Counts what `stats` tells by a look at each job.
fn recount(client: &Client) -> jobmill::Result<Stats> {
    let mut stats = Stats::default();
    let known = client.stats()?;
    for name in known.queues.keys() {
        stats.queues.insert(name.clone(), Default::default());
    }
    for name in known.kinds.keys() {
        stats.kinds.insert(name.clone(), Default::default());
    }
    for priority in known.priorities.keys() {
        stats.priorities.insert(*priority, Default::default());
    }
    for job_type in known.job_types.keys() {
        stats.job_types.insert(*job_type, Default::default());
    }
    stats.paused = known.paused;
    stats.oldest_waiting = known.oldest_waiting;
    for job in walk(client, Query::new(), 1000)? {
        for counts in [
            Some(&mut stats.total),
            stats.queues.get_mut(&job.queue),
            stats.kinds.get_mut(job.kind.as_deref().unwrap_or_default()),
            stats.priorities.get_mut(&job.priority),
            stats.job_types.get_mut(&job.job_type),
        ] {
            let counts = counts.expect("stats know of it");
            let count = match job.status {
                Status::Created => &mut counts.created,
                Status::Pending => &mut counts.pending,
                Status::Running => &mut counts.running,
                Status::Completed => &mut counts.completed,
                Status::Failed => &mut counts.failed,
                Status::Cancelled => &mut counts.cancelled,
                _ => &mut counts.expired,
            };
            *count += 1;
        }
    }
    Ok(stats)
}

/// Ends as the number in its payload says, and changes other jobs meanwhile.
fn anything(job: Other, ctx: &Context) -> Result<Outcome<()>, Failure> {
    match job.0 % 8 {
        0 => Err(Failure::retry("again")),
        1 => Err(Failure::fatal("never")),
        2 => Ok(Outcome::Snooze(secs(job.0))),
        3 => Ok(Outcome::Cancel("no".into())),
        4 => {
            ctx.client().enqueue(NewJob::of(&Other(job.0 / 8)).delay(secs(5)))?;
            ctx.complete(|tx| tx.enqueue(Echo::job("child")).map(drop))?;
            Ok(Outcome::Done(()))
        }
        5 => {
            ctx.client().cancel(ctx.id())?;
            ctx.check()?;
            Ok(Outcome::Done(()))
        }
        6 => panic!("anything"),
        _ => Ok(Outcome::Done(())),
    }
}

#[test]
fn the_counts_equal_a_recount_whatever_has_been_done() -> jobmill::Result<()> {
    for seed in 0..4 {
        let mut dice = Dice(seed);
        let mut t = Harness::new(|builder| {
            let retention = Retention {
                completed: Some(secs(50)),
                failed: Some(secs(90)),
                cancelled: Some(secs(9)),
                expired: None,
                ..Retention::default()
            };
            builder.retention(retention).workers(Workers::new(3)).handle(anything).handle(echo)
        })?;
        let stranger = Client::open(t.path())?;
        let mut ids = Vec::new();
        for step in 0..250 {
            let number = dice.below(1000) as u64;
            let mut job = NewJob::of(&Other(number))
                .queue(dice.pick(&QUEUES))
                .priority(dice.pick(&Priority::ALL))
                .max_attempts(3);
            if dice.below(3) == 0 {
                job = job.delay(secs(dice.below(30) as u64)).expires_in(secs(20));
            }
            if dice.below(4) == 0 {
                job = job.unique(Unique::key(dice.below(5).to_string()));
            }
            let id = ids.get(dice.below(ids.len() + 1)).copied();
            let client = if dice.below(3) == 0 { &stranger } else { t.client() };
            match dice.below(16) {
                0..=3 => ids.push(client.enqueue(job)?.id()),
                4 => {
                    let jobs = vec![job; dice.below(5)];
                    ids.extend(client.enqueue_many(jobs)?.iter().map(|enqueued| enqueued.id()));
                }
                5 | 6 => {
                    let mut conn = client.connection()?;
                    let tx = conn.transaction().expect("a transaction");
                    let id = client.enqueue_in(&tx, job)?.id();
                    if dice.below(2) == 0 {
                        tx.commit().expect("a commit");
                        ids.push(id);
                    }
                }
                7 => {
                    let fails = dice.below(2) == 0;
                    let written = client.write(move |tx| {
                        let id = tx.enqueue(job)?.id();
                        if fails { "no id".parse() } else { Ok(id) }
                    });
                    ids.extend(written.ok());
                }
                8 | 9 => drop(id.map(|id| client.cancel(id))),
                10 => drop(id.map(|id| client.retry(id))),
                11 => client.pause(dice.pick(&QUEUES))?,
                12 => client.resume(dice.pick(&QUEUES))?,
                13 => drop(t.drain()?),
                14 => t.advance(secs(dice.below(20) as u64)),
                _ => match dice.below(4) {
                    0 => t.restart()?,
                    1 => t.crash()?,
                    _ => t.engine().maintain()?,
                },
            }
            if step % 10 == 0 {
                sound(&stranger);
                assert_eq!(stranger.stats()?, recount(&stranger)?, "seed {seed}, step {step}");
                // The stranger's clock tells another time.
                let mut theirs = stranger.stats()?;
                theirs.oldest_waiting = t.client().stats()?.oldest_waiting;
                assert_eq!(t.client().stats()?, theirs);
            }
        }
        t.drain()?;
        sound(t.client());
        let total = t.client().stats()?.total;
        assert!(total.total() > 20 && total.completed + total.failed + total.cancelled > 3, "{total:?}");
    }
    Ok(())
}

#[test]
fn each_reason_is_told_in_words() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(other).handle(|job: Echo, ctx: &Context| -> Result<(), Failure> {
            if job.0 == "look" {
                let explanation = ctx.client().explain(ctx.id())?;
                let [Reason::Running { process, since }] = &explanation.reasons[..] else {
                    return Err(Failure::fatal(explanation));
                };
                assert!(process.ends_with(&format!("/{}", std::process::id())), "{process}");
                assert_eq!((explanation.status, Some(*since)), (Status::Running, ctx.job().started_at));
                return Ok(());
            }
            Err(Failure::retry_after(secs(30), "no"))
        })
    })?;
    let client = t.client();
    let start = now(&t);
    let at = |s| start.saturating_add(secs(s));
    let reasons = |id| Ok::<_, jobmill::Error>(client.explain(id)?.reasons);

    let created = t.enqueue(&Other(1))?;
    unadmit(client, created);
    assert_eq!(reasons(created)?, [Reason::NotAdmitted]);
    assert_eq!(client.explain(created)?.to_string(), "created: it is not admitted yet");

    let looks = t.enqueue(Echo::job("look"))?;
    let fails = t.enqueue(Echo::job("fail").max_attempts(2))?;
    let delayed = t.enqueue(NewJob::of(&Other(2)).delay(secs(60)).expires_in(secs(90)))?;
    assert_eq!(
        reasons(delayed)?,
        [Reason::Scheduled { until: at(60), attempt: 1 }, Reason::Deadline { expires_at: at(90) }]
    );
    assert_eq!(reasons(fails)?, [Reason::NoFreeWorker]);
    t.drain()?;
    t.check(looks, "completed, attempt 1");
    assert_eq!(reasons(looks)?, [Reason::Ended { status: Status::Completed }]);
    assert_eq!(client.explain(looks)?.to_string(), "completed at 2026-01-01T00:00:00.000000Z");
    assert_eq!(reasons(fails)?, [Reason::Scheduled { until: at(30), attempt: 2 }]);
    t.advance(secs(30));
    t.drain()?;
    assert_eq!(reasons(fails)?, [Reason::AttemptsSpent { attempts: 2 }]);
    assert_eq!(
        client.explain(fails)?.to_string(),
        "failed at 2026-01-01T00:00:30.000000Z: its 2 attempts are spent, with the error: no"
    );

    client.pause("q")?;
    let stuck = t.enqueue(NewJob::json("nobody's", &1).queue("q").delay(secs(1)))?;
    assert_eq!(
        reasons(stuck)?,
        [
            Reason::Scheduled { until: at(31), attempt: 1 },
            Reason::QueuePaused { queue: "q".into(), since: at(30) },
            Reason::NoHandler { kind: "nobody's".into() },
        ],
        "all of them"
    );
    assert_eq!(
        client.explain(stuck)?.to_string(),
        "pending: its attempt 1 is scheduled for 2026-01-01T00:00:31.000000Z, the queue q is paused since \
         2026-01-01T00:00:30.000000Z, no engine on this file has a handler for the kind nobody's"
    );
    t.advance(secs(60));
    t.drain()?;
    assert_eq!(reasons(delayed)?, [Reason::Expired { expires_at: at(90) }]);
    assert_eq!(
        client.explain(delayed)?.to_string(),
        "expired at 2026-01-01T00:01:30.000000Z: its deadline, 2026-01-01T00:01:30.000000Z, came while it waited"
    );
    Ok(())
}

#[test]
fn an_engine_that_has_ended_serves_no_kind() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let client = Client::open(&path)?;
    let id = client.enqueue(Echo::job("x"))?.id();
    assert_eq!(client.explain(id)?.reasons, [Reason::NoHandler { kind: "echo".into() }]);
    let engine = Engine::builder(&path).handle(echo).inline()?;
    assert_eq!(client.explain(id)?.reasons, [Reason::NoFreeWorker]);
    engine.shutdown(secs(1))?;
    assert_eq!(client.explain(id)?.reasons, [Reason::NoHandler { kind: "echo".into() }]);
    Ok(())
}

/// A job without a time of its own was said to be scheduled for its creation once the clock had been set back.
#[test]
fn a_clock_that_is_set_back_schedules_nothing() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let id = t.enqueue(Echo::job("now"))?;
    t.clock().jump(t.clock().now().saturating_sub(secs(3600)));
    assert_eq!(t.client().explain(id)?.reasons, [Reason::NoFreeWorker]);
    assert_eq!(t.drain()?, 1);
    Ok(())
}

#[test]
fn a_record_has_a_json_form_without_what_may_be_secret_or_long() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let job = t.client().get(t.enqueue(Echo::job("secret").user("u"))?)?;
    let json = serde_json::to_value(&job).expect("it serializes");
    assert_eq!(json["id"], job.id.to_string());
    assert_eq!((&json["status"], &json["priority"]), (&"pending".into(), &"default".into()));
    assert_eq!(json["run_at"], "2026-01-01T00:00:00.000000Z");
    assert!(json.get("payload").is_none() && json.get("result").is_none());
    Ok(())
}

#[test]
fn answers_have_a_json_form() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let job = || Echo::job("x").unique(Unique::key("k")).delay(secs(9));
    let new = t.client().enqueue(job())?;
    let id = new.id();
    let scheduled = t.client().schedule(&Schedule::every("s", secs(60), Echo::job("x")))?;
    let limit = Limit::new("l").concurrency(2).rate(10, secs(60));
    for (json, says) in [
        (json!(new), json!({ "outcome": "new", "id": id })),
        (json!(t.client().enqueue(job())?), json!({ "outcome": "existing", "id": id })),
        (json!(scheduled), json!({ "outcome": "created", "id": scheduled.id() })),
        (json!(t.client().cancel(id)?), json!("now")),
        (json!(t.client().cancel(id)?), json!("already")),
        (json!(t.client().delete(id)?), json!("now")),
        (json!(t.client().get(id).expect_err("it is gone").kind()), json!("not_found")),
        (
            json!(limit),
            json!({ "name": "l", "concurrency": 2, "rate": { "tokens": 10, "period_us": 60_000_000, "burst": 10 } }),
        ),
        (json!(Limit::new("l")), json!({ "name": "l", "concurrency": null, "rate": null })),
    ] {
        assert_eq!(json, says);
    }
    Ok(())
}

#[test]
fn choices_display_and_are_read_in_the_words_of_their_json_form() {
    for choice in Overlap::ALL {
        assert_eq!(json!(choice), choice.to_string());
        assert_eq!(choice.to_string().parse().ok(), Some(choice));
    }
    for status in StepStatus::ALL {
        assert_eq!(json!(status), status.to_string());
        assert_eq!(status.to_string().parse().ok(), Some(status));
    }
    for (missed, word) in [(Missed::Skip, "skip"), (Missed::One, "one"), (Missed::All(3), "all 3")] {
        assert_eq!((missed.to_string().as_str(), word.parse().ok()), (word, Some(missed)));
    }
    assert_eq!((json!(Missed::One), json!(Missed::All(3))), (json!("one"), json!({ "all": 3 })));
    for wrong in ["", "all", "all ", "all -1", "Skip"] {
        refused(wrong.parse::<Missed>(), ErrorKind::Invalid, "missed: must be skip, one, or all and a number");
    }
    refused("Skip".parse::<Overlap>(), ErrorKind::Invalid, "overlap: must be one of allow, skip and queue");
}

#[test]
fn a_job_that_runs_in_another_process_is_told_with_that_process_and_since_when() -> jobmill::Result<()> {
    if let Some(path) = std::env::var_os(CHILD) {
        let (gate, keeper) = gate();
        let engine = Engine::builder(path).handle(block).state(gate).start()?;
        // What is claimed and has not begun would be given back.
        keeper.next();
        engine.client().pause("has begun")?;
        std::io::stdin().read_to_end(&mut Vec::new()).expect("the end of its input");
        keeper.release();
        engine.shutdown(PATIENCE)?;
        return Ok(());
    }
    let (_directory, path) = file();
    let client = Client::open(&path)?;
    let id = client.enqueue(Block::job("there"))?.id();
    let there = "ask::a_job_that_runs_in_another_process_is_told_with_that_process_and_since_when";
    let other = Another::start(there, &path);
    until("it runs there", || client.stats().expect("the counts").paused == ["has begun"]);
    let (explanation, process) = (client.explain(id)?, other.id());
    assert_ne!(process, std::process::id());
    let host = std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME"));
    let host = host.or_else(|_| std::fs::read_to_string("/etc/hostname")).unwrap_or_else(|_| "localhost".to_owned());
    let process = format!("{}/{process}", host.trim());
    let since = client.get(id)?.started_at.expect("it runs");
    assert_eq!(explanation.reasons, [Reason::Running { process: process.clone(), since }]);
    assert_eq!(explanation.to_string(), format!("running: it runs in {process} since {since}"));
    other.end();
    assert_eq!(client.get(id)?.status, Status::Completed);
    Ok(())
}

#[test]
fn what_was_not_met_is_told_with_how_it_ended() -> jobmill::Result<()> {
    let fails = |_: Other, _: &Context| -> Result<(), Failure> { Err(Failure::fatal("no")) };
    let t = Harness::new(move |builder| builder.handle(fails))?;
    let (failed, deleted) = (t.enqueue(&Other(1))?, t.enqueue(NewJob::of(&Other(2)).delay(secs(60)))?);
    let after = [failed, deleted].map(|id| t.enqueue(NewJob::of(&Other(3)).after(id)).expect("a job"));
    t.client().delete(deleted)?;
    t.drain()?;
    for (id, needed, status) in [(after[0], failed, Some(Status::Failed)), (after[1], deleted, None)] {
        let explanation = t.client().explain(id)?;
        let not_met = Reason::NotMet { id: Some(needed), name: None, status };
        assert_eq!(explanation.reasons, [Reason::Ended { status: Status::Cancelled }, not_met]);
        let how = status.map_or("was deleted".to_owned(), |status| format!("is {status}"));
        assert_eq!(explanation.to_string(), format!("cancelled at 2026-01-01T00:00:00.000000Z: {needed} {how}"));
    }
    // Within a workflow both have their names, and a stage has nothing else.
    let workflow = NewWorkflow::new("w").job("first", NewJob::of(&Other(4))).jobs("parts", [NewJob::of(&Other(5))]);
    let id = t.client().start_workflow(workflow.after("first").job("last", NewJob::of(&Other(6))).after("parts"))?;
    t.drain()?;
    let workflow = t.client().workflow(id)?;
    let [first, last] = ["first", "last"].map(|name| workflow.job(name).expect("a job"));
    let parts = t.client().explain(last)?.reasons;
    let cancelled = Reason::Ended { status: Status::Cancelled };
    let stage = Reason::NotMet { id: None, name: Some("parts".into()), status: Some(Status::Cancelled) };
    assert_eq!(parts, [cancelled.clone(), stage]);
    assert_eq!(t.client().get(first)?.status, Status::Failed);
    Ok(())
}
