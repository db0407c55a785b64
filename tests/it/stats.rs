//! Counts of what stands where, without counting rows: equal to a look at each job, for everybody and for each user.

use std::collections::BTreeMap;

use jobmill::testing::Harness;
use jobmill::{
    Client, ErrorKind, JobType, JobUpdate, NewJob, Priority, Query, Retention, Stats, Status, StatusCounts, Timestamp,
    Workers,
};

use crate::mirror::{Program, USERS};
use crate::support::{Block, Echo, PATIENCE, block, echo, file, gate, now, refused, secs, sound};

fn count(counts: &mut StatusCounts, status: Status) {
    *match status {
        Status::Created => &mut counts.created,
        Status::Pending => &mut counts.pending,
        Status::Running => &mut counts.running,
        Status::Completed => &mut counts.completed,
        Status::Failed => &mut counts.failed,
        Status::Cancelled => &mut counts.cancelled,
        _ => &mut counts.expired,
    } += 1;
}

/// What the counts should be, by a look at each job that the client sees. Whatever holds none is left out.
fn recount(client: &Client, at: Timestamp) -> jobmill::Result<Stats> {
    let mut stats = Stats::default();
    stats.paused = client.stats()?.paused;
    for job in client.jobs(Query::new().limit(1000))? {
        let job = job?;
        count(&mut stats.total, job.status);
        count(stats.queues.entry(job.queue.clone()).or_default(), job.status);
        count(stats.kinds.entry(job.kind.clone().unwrap_or_default()).or_default(), job.status);
        count(stats.priorities.entry(job.priority).or_default(), job.status);
        count(stats.job_types.entry(job.job_type).or_default(), job.status);
        if job.status == Status::Pending && job.run_at <= at {
            let oldest = stats.oldest_waiting.entry(job.queue).or_insert(job.run_at);
            *oldest = job.run_at.min(*oldest);
        }
    }
    Ok(stats)
}

/// The counts as they are told, without what holds no job.
fn told(client: &Client) -> jobmill::Result<Stats> {
    let mut stats = client.stats()?;
    let some = |counts: &StatusCounts| counts.total() > 0;
    stats.queues.retain(|_, counts| some(counts));
    stats.kinds.retain(|_, counts| some(counts));
    stats.priorities.retain(|_, counts| some(counts));
    stats.job_types.retain(|_, counts| some(counts));
    Ok(stats)
}

#[test]
fn the_counts_equal_a_look_at_each_job_for_everybody_and_for_each_user() -> jobmill::Result<()> {
    for seed in 40..42 {
        let mut program = Program::new(seed)?;
        for step in 0..160 {
            program.step()?;
            if step % 8 > 0 {
                continue;
            }
            let (client, at) = (program.t.client(), now(&program.t));
            assert_eq!(told(client)?, recount(client, at)?, "seed {seed}, step {step}");
            let mut users = BTreeMap::new();
            for user in USERS {
                let bound = client.for_user(user)?;
                let stats = told(&bound)?;
                assert_eq!(stats, recount(&bound, at)?, "seed {seed}, step {step}, {user}");
                if stats.total.total() > 0 {
                    users.insert(user.to_owned(), stats.total);
                }
            }
            assert_eq!(client.users(None, 1000)?.into_iter().collect::<BTreeMap<_, _>>(), users);
        }
        sound(program.t.client());
    }
    Ok(())
}

#[test]
fn jobs_are_counted_by_all_that_they_are() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let client = t.client();
    client.enqueue(Echo::job("a").queue("mail").priority(Priority::High))?;
    client.enqueue(NewJob::tracked().job_type(JobType::Run).status(Status::Running))?;
    client.enqueue(NewJob::tracked().job_type(JobType::Batch).priority(Priority::Low).background(true))?;
    let of = |counts: StatusCounts| (counts.created, counts.pending, counts.running, counts.completed);
    let stats = client.stats()?;
    assert_eq!((of(stats.total), stats.active(), stats.depth()), ((1, 1, 1, 0), 1, 1));
    assert_eq!((of(stats.queues["mail"]), of(stats.queues["default"])), ((0, 1, 0, 0), (1, 0, 1, 0)));
    assert_eq!((of(stats.kinds["echo"]), of(stats.kinds[""])), ((0, 1, 0, 0), (1, 0, 1, 0)));
    assert_eq!(of(stats.priorities[&Priority::High]), (0, 1, 0, 0));
    assert_eq!(of(stats.priorities[&Priority::Default]), (0, 0, 1, 0));
    assert_eq!(of(stats.priorities[&Priority::Low]), (1, 0, 0, 0));
    assert_eq!(of(stats.job_types[&JobType::Job]), (0, 1, 0, 0));
    assert_eq!(of(stats.job_types[&JobType::Run]), (0, 0, 1, 0));
    assert_eq!(of(stats.job_types[&JobType::Batch]), (1, 0, 0, 0));
    t.drain()?;
    assert_eq!(of(client.stats()?.total), (1, 0, 1, 1));
    assert_eq!(Stats::default().total.total(), 0);
    Ok(())
}

#[test]
fn the_job_that_has_waited_longest_is_told_for_each_queue() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo).retention(Retention::FOREVER))?;
    let client = t.client();
    let start = now(&t);
    let at = |s: u64| start.saturating_add(secs(s));
    let oldest = || client.stats().map(|stats| stats.oldest_waiting.into_iter().collect::<Vec<_>>());
    let waits = |queue: &str, s: u64| (queue.to_owned(), at(s));
    assert_eq!((oldest()?, client.stats()?.oldest()), (vec![], None));

    t.enqueue(Echo::job("delayed").queue("later").delay(secs(10)))?;
    let created = t.enqueue(NewJob::tracked().queue("created"))?;
    assert_eq!(oldest()?, [], "neither could run");
    t.advance(secs(1));
    let first = t.enqueue(NewJob::json("nobody's", &1).queue("mail"))?;
    t.advance(secs(1));
    t.enqueue(Echo::job("better, and later").queue("mail").priority(Priority::Critical))?;
    t.enqueue(Echo::job("of a user").queue("mail").user("ann"))?;
    assert_eq!(oldest()?, [waits("mail", 1)], "whatever its priority, and whether anybody has a handler for it");
    let ann = client.for_user("ann")?;
    assert_eq!(ann.stats()?.oldest_waiting.into_iter().collect::<Vec<_>>(), [waits("mail", 2)], "her own");

    t.advance(secs(7));
    assert_eq!(oldest()?, [waits("mail", 1)], "the delayed one is due in a second");
    t.advance(secs(1));
    assert_eq!(oldest()?, [waits("later", 10), waits("mail", 1)]);
    assert_eq!(client.stats()?.oldest(), Some(at(1)), "of all");

    client.pause("later")?;
    client.pause("mail")?;
    assert_eq!(oldest()?, [waits("later", 10), waits("mail", 1)], "a paused queue keeps its jobs waiting");
    client.resume("mail")?;
    t.drain()?;
    assert_eq!(oldest()?, [waits("later", 10), waits("mail", 1)], "what nobody has a handler for");
    client.cancel(first)?;
    assert_eq!(oldest()?, [waits("later", 10)]);
    assert_eq!(ann.stats()?.oldest(), None);
    client.resume("later")?;
    t.drain()?;
    assert_eq!(oldest()?, [], "all is claimed");

    t.advance(secs(10));
    client.update_status(created, Status::Pending)?;
    assert_eq!(oldest()?, [waits("created", 0)], "a tracked job waits since it was recorded");
    client.update(created, JobUpdate::new().status(Status::Running))?;
    client.retry(first)?;
    assert_eq!(oldest()?, [waits("mail", 20)], "a job that is tried again waits from then on");
    Ok(())
}

#[test]
fn what_runs_is_active_and_what_waits_is_the_depth() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine =
        jobmill::Engine::builder(&path).workers(Workers::new(2)).queue("slow", 1).state(gate).handle(block).start()?;
    let client = engine.client();
    for name in ["a", "b", "c"] {
        client.enqueue(Block::job(name).queue("slow"))?;
    }
    client.enqueue(Block::job("later").queue("slow").delay(secs(600)))?;
    keeper.next();
    let stats = client.stats()?;
    assert_eq!((stats.active(), stats.depth()), (1, 3), "by the limit of the queue");
    assert_eq!(stats.oldest_waiting.len(), 1);
    drop(keeper);
    engine.shutdown(PATIENCE)?;
    Ok(())
}

#[test]
fn users_come_in_pages_and_those_who_have_no_job_left_do_not() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let client = t.client();
    let mut names: Vec<String> = (0..25).map(|n| format!("user {n}")).collect();
    names.extend(USERS.map(str::to_owned));
    for (n, name) in names.iter().enumerate() {
        for queue in ["a", "b"].into_iter().take(1 + n % 2) {
            client.enqueue(Echo::job("x").queue(queue).user(name.clone()))?;
        }
    }
    client.enqueue(Echo::job("nobody's"))?;
    client.select(Query::new().user(names[3].clone()))?.delete()?;
    client.select(Query::new().user(names[4].clone()))?.cancel()?;
    names.remove(3);
    names.sort();
    for limit in [1, 2, 7, 27, 28, 29, 1000] {
        let mut found: Vec<(String, StatusCounts)> = Vec::new();
        loop {
            let page = client.users(found.last().map(|(name, _)| name.as_str()), limit)?;
            found.extend(page.iter().cloned());
            if page.len() < limit {
                break;
            }
        }
        assert_eq!(found.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), names, "by {limit}");
        for (name, counts) in found {
            assert_eq!(counts, client.for_user(name)?.stats()?.total);
        }
    }
    for limit in [0, 1001] {
        refused(client.users(None, limit), ErrorKind::Invalid, "limit: must be from 1 to 1000");
    }
    Ok(())
}
