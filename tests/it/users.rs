//! Clients that are bound to a user: what is another's does not exist for them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{
    Backoff, Cancelled, Client, Context, Deleted, Durability, ErrorKind, Failure, Job, JobId, JobType, JobUpdate,
    NewJob, Order, Outcome, Priority, Query, Retention, Status, StatusChange, StatusCounts, Unique, UniqueScope,
};

use crate::support::{Dice, Echo, Other, echo, idle, refused, secs, sound};

/// What a bound client may try with a job, by name. Each gives what it answers in words.
type Try = (&'static str, fn(&Client, JobId) -> jobmill::Result<String>);

fn words(answer: impl Debug) -> String {
    format!("{answer:?}")
}

/// Every method of a client that names a job. Those that change most come last.
const TRIES: [Try; 15] = [
    ("get", |client, id| client.get(id).map(words)),
    ("wait", |client, id| client.wait(id, Duration::ZERO).map(words)),
    ("attempts", |client, id| client.attempts(id).map(words)),
    ("log", |client, id| client.log(id).map(words)),
    ("explain", |client, id| client.explain(id).map(words)),
    ("history", |client, id| client.history(id).map(words)),
    ("record_ttft", |client, id| client.record_ttft(id, secs(1)).map(words)),
    ("record_total_duration", |client, id| client.record_total_duration(id, secs(1)).map(words)),
    ("update", |client, id| client.update(id, JobUpdate::new().agent("mine")).map(words)),
    ("update_status", |client, id| client.update_status(id, Status::Running).map(words)),
    ("set_priority", |client, id| client.set_priority(id, Priority::Low).map(words)),
    ("set_queue", |client, id| client.set_queue(id, "mine").map(words)),
    ("cancel", |client, id| client.cancel(id).map(words)),
    ("retry", |client, id| client.retry(id).map(words)),
    ("delete", |client, id| client.delete(id).map(words)),
];

/// A job in each status, tracked and run by handlers, of one user or of nobody.
fn jobs_of(t: &Harness, user: Option<&str>) -> jobmill::Result<Vec<JobId>> {
    let mut ids = Vec::new();
    let mut add = |job: NewJob| -> jobmill::Result<JobId> {
        let job = job.tags(["secret tag"]).agent("secret agent").metadata(&serde_json::json!({"source_id": "secret"}));
        let job = match user {
            Some(user) => job.user(user),
            None => job,
        };
        ids.push(t.enqueue(job)?);
        Ok(ids[ids.len() - 1])
    };
    for status in Status::ALL {
        add(NewJob::tracked().status(status).stop_reason("secret reason"))?;
    }
    add(Echo::job("secret payload"))?;
    add(NewJob::of(&Other(1)))?;
    t.drain()?;
    add(NewJob::json("nobody's", &"secret payload").queue("secret queue").delay(secs(60)))?;
    let cancelled = add(NewJob::json("nobody's", &"secret payload"))?;
    t.client().cancel(cancelled)?;
    Ok(ids)
}

/// A harness in which echo completes, and other fails for good.
fn world() -> jobmill::Result<Harness> {
    Harness::new(|builder| {
        builder
            .durability(Durability::Normal)
            .handle(echo)
            .handle(|_: Other, _: &Context| -> Result<(), Failure> { Err(Failure::fatal("secret error")) })
    })
}

/// Letta let another user's job serve as a cursor, and told one that exists from one that does not.
#[test]
fn anothers_job_and_nobodys_are_to_a_bound_client_what_never_existed() -> jobmill::Result<()> {
    let t = world()?;
    let ann = t.client().for_user("ann")?;
    let own = jobs_of(&t, Some("ann"))?;
    let mut foreign = jobs_of(&t, Some("bob"))?;
    foreign.extend(jobs_of(&t, None)?);
    // A name that only begins alike is another's.
    foreign.extend(jobs_of(&t, Some("anna"))?);
    let all = || -> jobmill::Result<Vec<Job>> { t.client().jobs(Query::new())?.collect() };
    let before = all()?;
    let counts = t.client().stats()?;
    let audit = t.client().audit(None, 1000)?;
    let unknown = ["job-0000000000002".parse()?, "run-0000000000003".parse()?, "job-7zzzzzzzzzzzy".parse()?];
    for id in foreign.iter().chain(&unknown) {
        for (name, attempt) in TRIES {
            match attempt(&ann, *id) {
                Ok(answer) => panic!("{name} of {id} answers {answer}"),
                Err(error) => {
                    let told = (error.kind(), error.to_string());
                    assert_eq!(told, (ErrorKind::NotFound, format!("there is no job {id}")), "{name}");
                }
            }
        }
    }
    assert_eq!(all()?, before, "and nothing has changed");
    assert_eq!((t.client().stats()?, t.client().audit(None, 1000)?), (counts, audit));
    // Of its own jobs it learns all, and the administrator of everybody's.
    for id in &own {
        for (name, attempt) in &TRIES[..6] {
            let told = attempt(&ann, *id).map_err(|error| error.kind());
            assert_eq!(told, attempt(t.client(), *id).map_err(|error| error.kind()), "{name}");
            assert!(told.is_ok() || (*name, told) == ("wait", Err(ErrorKind::Timeout)), "{name}");
        }
    }
    for id in &foreign {
        assert_eq!(t.client().get(*id)?.id, *id);
        assert!(!t.client().history(*id)?.is_empty());
    }
    Ok(())
}

#[test]
fn a_bound_client_does_with_its_own_jobs_all_that_there_is() -> jobmill::Result<()> {
    let t = world()?;
    let ann = t.client().for_user("ann")?;
    let id = ann.enqueue(Echo::job("x").delay(secs(60)))?.id();
    assert_eq!(ann.get(id)?.user_id.as_deref(), Some("ann"));
    ann.set_priority(id, Priority::High)?;
    ann.set_queue(id, "mail")?;
    ann.record_ttft(id, secs(1))?;
    ann.record_total_duration(id, secs(2))?;
    assert_eq!(ann.update(id, JobUpdate::new().agent("a"))?.agent_id.as_deref(), Some("a"));
    assert_eq!(ann.cancel(id)?, Cancelled::Now);
    ann.retry(id)?;
    t.drain()?;
    let job = ann.wait(id, Duration::ZERO)?;
    assert_eq!((job.status, job.queue.as_str(), job.priority), (Status::Completed, "mail", Priority::High));
    assert_eq!(ann.attempts(id)?.len(), 1);
    let done_by_ann = ann.history(id)?.iter().filter(|change| change.actor.as_deref() == Some("ann")).count();
    assert_eq!(done_by_ann, 6, "created, moved twice, updated, cancelled, requeued");
    let tracked = ann.enqueue(NewJob::tracked())?.id();
    assert_eq!(ann.update_status(tracked, Status::Completed)?, StatusChange::Applied);
    assert_eq!(ann.delete(tracked)?, Deleted::Now);
    assert_eq!(ann.delete(id)?, Deleted::Now);
    // What was done out of the ordinary to its jobs is its user's to read when they are gone, and nobody else's.
    let bob = t.client().for_user("bob")?;
    for id in [id, tracked] {
        assert!(ann.history(id)?.iter().all(|change| change.actor.as_deref() == Some("ann")));
        assert_eq!(t.client().history(id)?, ann.history(id)?);
        refused(bob.history(id), ErrorKind::NotFound, &format!("there is no job {id}"));
    }
    sound(t.client());
    Ok(())
}

#[test]
fn the_history_of_a_deleted_job_is_its_users_alone() -> jobmill::Result<()> {
    let t = world()?;
    let ann = t.client().for_user("ann")?;
    for user in [Some("bob"), None, Some("ann")] {
        for id in jobs_of(&t, user)? {
            t.client().delete(id)?;
            let told = ann.history(id).map_err(|error| (error.kind(), error.to_string()));
            match user {
                Some("ann") => assert!(told.is_ok_and(|history| !history.is_empty())),
                _ => assert_eq!(told, Err((ErrorKind::NotFound, format!("there is no job {id}")))),
            }
        }
    }
    Ok(())
}

#[test]
fn a_bound_client_lists_and_selects_its_own_jobs_only() -> jobmill::Result<()> {
    let t = world()?;
    let (ann, bob) = (t.client().for_user("ann")?, t.client().for_user("bob")?);
    let own = jobs_of(&t, Some("ann"))?;
    let foreign: Vec<JobId> = [jobs_of(&t, Some("bob"))?, jobs_of(&t, None)?].concat();
    let ids = |jobs: Vec<Job>| jobs.into_iter().map(|job| job.id).collect::<Vec<_>>();
    let queries = || {
        [
            Query::new(),
            Query::new().user("ann"),
            Query::new().agents(["secret agent"]),
            Query::new().tags(["secret tag"]),
            Query::new().source_id("secret"),
            Query::new().agents(["secret agent"]).tags(["secret tag"]).source_id("secret"),
            Query::new().statuses(Status::ALL),
            Query::new().after("job-0000000000002".parse().expect("an id")),
        ]
    };
    for query in queries() {
        assert_eq!(ids(ann.list(query.clone().order(Order::Ascending))?.jobs), own, "{query:?}");
        let all: Vec<Job> =
            ann.jobs(query.clone().order(Order::Ascending).limit(2))?.collect::<jobmill::Result<_>>()?;
        assert_eq!(ids(all), own, "{query:?}");
        assert_eq!(ann.list(query.clone().tags(["rare"]))?.jobs, []);
    }
    // Another's jobs are refused before anything is read, whether there are any or not.
    for user in ["bob", "nobody", "Ann", "anna"] {
        let says = "user: must be the one to whom the client is bound";
        refused(ann.list(Query::new().user(user)), ErrorKind::Invalid, says);
        refused(ann.jobs(Query::new().user(user)).map(drop), ErrorKind::Invalid, says);
        refused(ann.select(Query::new().user(user)).map(drop), ErrorKind::Invalid, says);
    }
    // The query of a next page is its user's too.
    let next = ann.list(Query::new().limit(2))?.next.expect("more");
    refused(bob.list(next.clone()), ErrorKind::Invalid, "user: ");
    assert!(t.client().list(next)?.jobs.iter().all(|job| job.user_id.as_deref() == Some("ann")));

    let before: Vec<Job> = foreign.iter().map(|id| t.client().get(*id)).collect::<jobmill::Result<_>>()?;
    let mut changed = 0;
    for query in queries() {
        let selection = ann.select(query)?;
        changed += selection.set_priority(Priority::High)?.changed;
        changed += selection.set_queue("mine")?.changed;
        changed += selection.cancel()?.changed;
        changed += selection.retry()?.changed;
    }
    assert!(changed > 50, "{changed}");
    assert_eq!(ann.select(Query::new())?.delete()?.changed, own.len());
    assert_eq!(foreign.iter().map(|id| t.client().get(*id)).collect::<jobmill::Result<Vec<_>>>()?, before);
    assert_eq!(t.client().stats()?.total.total(), foreign.len() as u64);
    sound(t.client());
    Ok(())
}

/// A walk over pages must go on though its last job is deleted; and a position that is another's must tell nothing.
#[test]
fn a_cursor_of_a_bound_client_is_its_own_or_nobodys_or_not_found() -> jobmill::Result<()> {
    let t = idle()?;
    let (ann, bob) = (t.client().for_user("ann")?, t.client().for_user("bob")?);
    let mut own = Vec::new();
    let mut foreign = Vec::new();
    for _ in 0..5 {
        own.push(ann.enqueue(NewJob::tracked())?.id());
        foreign.push(bob.enqueue(NewJob::tracked())?.id());
        foreign.push(t.enqueue(NewJob::tracked().job_type(JobType::Run))?);
    }
    let found = |query: Query| -> jobmill::Result<Vec<JobId>> {
        Ok(ann.list(query.order(Order::Ascending))?.jobs.iter().map(|job| job.id).collect())
    };
    assert_eq!(found(Query::new().after(own[1]).before(own[4]))?, own[2..4]);
    for cursor in &foreign {
        let says = format!("there is no job {cursor}");
        let cursor = *cursor;
        let ends = ["job-0000000000002".parse::<JobId>()?, "job-7zzzzzzzzzzzy".parse()?];
        for query in [
            Query::new().before(cursor),
            Query::new().after(cursor),
            Query::new().after(ends[0]).before(cursor),
            Query::new().after(cursor).before(ends[1]),
            Query::new().after(cursor).tags(["rare"]),
        ] {
            refused(ann.list(query.clone()), ErrorKind::NotFound, &says);
            let walked = ann.jobs(query.clone()).and_then(|jobs| jobs.collect::<jobmill::Result<Vec<_>>>());
            refused(walked, ErrorKind::NotFound, &says);
            assert!(t.client().list(query).is_ok(), "to the administrator it is a position");
        }
    }
    // Deleted ones are positions, whosever they were, and so is what never existed.
    for id in own[1..3].iter().chain(&foreign[..6]) {
        t.client().delete(*id)?;
    }
    assert_eq!(found(Query::new().after(own[1]))?, own[3..]);
    assert_eq!(found(Query::new().after(own[2]).before(own[4]))?, own[3..4]);
    for cursor in &foreign[..6] {
        assert_eq!(found(Query::new().after(*cursor))?.len() + found(Query::new().before(*cursor))?.len(), 3);
    }
    assert_eq!(found(Query::new().after("job-0000000000002".parse()?))?.len(), 3);
    // A walk that has begun goes on.
    let page = ann.list(Query::new().limit(1))?;
    ann.delete(own[4])?;
    assert_eq!(ann.list(page.next.expect("more"))?.jobs[0].id, own[3]);
    Ok(())
}

#[test]
fn what_concerns_everybody_is_forbidden_to_a_bound_client() -> jobmill::Result<()> {
    let t = idle()?;
    let ann = t.client().for_user("ann")?;
    let copy = t.path().as_ref().with_file_name("copy.db");
    let may_not = "a client that is bound to a user may not ";
    refused(ann.users(None, 10), ErrorKind::Forbidden, may_not);
    refused(ann.audit(None, 10), ErrorKind::Forbidden, may_not);
    refused(ann.pause("default"), ErrorKind::Forbidden, may_not);
    refused(ann.resume("default"), ErrorKind::Forbidden, may_not);
    refused(ann.write(|tx| tx.enqueue(Echo::job("x"))), ErrorKind::Forbidden, may_not);
    refused(ann.connection().map(drop), ErrorKind::Forbidden, may_not);
    refused(ann.backup(&copy), ErrorKind::Forbidden, may_not);
    refused(ann.verify(), ErrorKind::Forbidden, may_not);
    assert!(!copy.exists());
    // It stays so for the same client by another name.
    refused(ann.acting_as("root")?.audit(None, 10), ErrorKind::Forbidden, may_not);
    assert_eq!(t.client().stats()?.paused, Vec::<String>::new());
    t.client().pause("default")?;
    assert_eq!(t.client().audit(None, 10)?.len(), 1);
    Ok(())
}

#[test]
fn a_client_is_bound_once_and_for_all() -> jobmill::Result<()> {
    let t = idle()?;
    let ann = t.client().for_user("ann")?;
    assert_eq!((t.client().user(), ann.user()), (None, Some("ann")));
    assert_eq!(ann.for_user("ann")?.user(), Some("ann"));
    for user in ["bob", "Ann", "anna"] {
        refused(ann.for_user(user).map(drop), ErrorKind::Forbidden, "a client that is bound to a user may not act for");
    }
    for client in [t.client(), &ann] {
        for name in ["", "a\nb", &"x".repeat(129)] {
            refused(client.for_user(name).map(drop), ErrorKind::Invalid, "user: ");
            refused(client.acting_as(name).map(drop), ErrorKind::Invalid, "name: ");
        }
    }
    let named = t.client().acting_as("agent 7")?.for_user("ann")?;
    let job = named.get(named.enqueue(NewJob::tracked())?.id())?;
    assert_eq!((job.user_id.as_deref(), job.created_by.as_deref()), (Some("ann"), Some("agent 7")));
    assert_eq!(ann.acting_as("agent 7")?.user(), Some("ann"));
    assert_eq!(t.client().list(Query::new())?.jobs.len(), 1, "the first client is as it was");
    Ok(())
}

#[test]
fn what_a_bound_client_enqueues_is_its_users() -> jobmill::Result<()> {
    let t = idle()?;
    let ann = t.client().for_user("ann")?;
    let says = "user: must be the one to whom the client is bound";
    for user in ["bob", "Ann"] {
        let foreign = || Echo::job("x").user(user);
        refused(ann.enqueue(foreign()), ErrorKind::Invalid, says);
        refused(ann.enqueue_many([Echo::job("mine"), foreign()]), ErrorKind::Invalid, &format!("jobs[1]: {says}"));
        let mut conn = t.client().connection()?;
        let tx = conn.transaction().expect("a transaction");
        refused(ann.enqueue_in(&tx, foreign()), ErrorKind::Invalid, says);
        tx.commit().expect("a commit");
    }
    assert_eq!(t.client().stats()?.total.total(), 0, "nothing is written");
    let mut ids = vec![ann.enqueue(Echo::job("x"))?.id(), ann.enqueue(Echo::job("x").user("ann"))?.id()];
    ids.extend(ann.enqueue_many([NewJob::tracked(), Echo::job("x")])?.iter().map(|enqueued| enqueued.id()));
    let mut conn = t.client().connection()?;
    let tx = conn.transaction().expect("a transaction");
    ids.push(ann.enqueue_in(&tx, Echo::job("x"))?.id());
    tx.commit().expect("a commit");
    for id in ids {
        let job = ann.get(id)?;
        assert_eq!((job.user_id.as_deref(), job.created_by.as_deref()), (Some("ann"), Some("ann")));
    }
    assert_eq!(ann.stats()?.total.total(), 5);
    sound(t.client());
    Ok(())
}

/// What the counters say of each user, and what a look at each job says.
fn recount(admin: &Client) -> jobmill::Result<BTreeMap<Option<String>, BTreeMap<String, u64>>> {
    let mut counted: BTreeMap<Option<String>, BTreeMap<String, u64>> = BTreeMap::new();
    for job in admin.jobs(Query::new().limit(1000))? {
        let job = job?;
        let counts = counted.entry(job.user_id.clone()).or_default();
        let kind = job.kind.clone().unwrap_or_default();
        for name in [
            job.status.to_string(),
            format!("queue {} {}", job.queue, job.status),
            format!("kind {kind} {}", job.status),
            format!("priority {} {}", job.priority, job.status),
            format!("type {} {}", job.job_type, job.status),
        ] {
            *counts.entry(name).or_default() += 1;
        }
    }
    Ok(counted)
}

fn counters(client: &Client) -> jobmill::Result<BTreeMap<String, u64>> {
    let stats = client.stats()?;
    let mut all: Vec<(String, StatusCounts)> = vec![(String::new(), stats.total)];
    all.extend(stats.queues.iter().map(|(name, counts)| (format!("queue {name} "), *counts)));
    all.extend(stats.kinds.iter().map(|(name, counts)| (format!("kind {name} "), *counts)));
    all.extend(stats.priorities.iter().map(|(name, counts)| (format!("priority {name} "), *counts)));
    all.extend(stats.job_types.iter().map(|(name, counts)| (format!("type {name} "), *counts)));
    let mut counters = BTreeMap::new();
    for (name, counts) in all {
        for status in Status::ALL.into_iter().filter(|status| counts.of(*status) > 0) {
            counters.insert(format!("{name}{status}"), counts.of(status));
        }
    }
    Ok(counters)
}

/// Ends as the dice of its number say.
fn anyhow(job: Other, _: &Context) -> Result<Outcome<()>, Failure> {
    match job.0 % 5 {
        0 => Err(Failure::retry("again")),
        1 => Err(Failure::fatal("never")),
        2 => Ok(Outcome::Snooze(secs(30))),
        3 => Ok(Outcome::Cancel("no".to_owned())),
        _ => Ok(Outcome::Done(())),
    }
}

#[test]
fn the_counts_of_each_user_equal_a_recount_whatever_was_done() -> jobmill::Result<()> {
    const USERS: [&str; 4] = ["ann", "anna", "bob", "ü"];
    let mut t = Harness::new(|builder| {
        builder
            .durability(Durability::Normal)
            .backoff(Backoff::fixed(secs(10)))
            .retention(Retention { completed: Some(secs(300)), cancelled: Some(secs(120)), ..Retention::FOREVER })
            .handle(echo)
            .handle(anyhow)
    })?;
    let mut dice = Dice(7);
    let mut deleted = 0;
    for round in 0..200 {
        let admin = t.client().clone();
        let client = if dice.percent(70) { admin.for_user(dice.pick(&USERS))? } else { admin.clone() };
        let seen: Vec<Job> = client.list(Query::new().limit(40))?.jobs;
        let one = |dice: &mut Dice| if seen.is_empty() { None } else { Some(dice.pick(&seen)) };
        let statuses = dice.some(&Status::ALL);
        let queue = dice.pick(&["default", "mail"]);
        // What the status of a job forbids is answered by a conflict, which is as good as any answer here.
        match dice.below(18) {
            0..=5 => {
                for _ in 0..dice.below(5) {
                    let job = match dice.below(4) {
                        0 => Echo::job("x"),
                        1 | 2 => NewJob::of(&Other(dice.below(100) as u64)),
                        _ => NewJob::tracked().status(dice.pick(&Status::ALL)),
                    };
                    let job = job
                        .queue(queue)
                        .priority(dice.pick(&Priority::ALL))
                        .job_type(dice.pick(&JobType::ALL))
                        .background(dice.percent(30));
                    let job = if dice.percent(30) { job.delay(secs(20)) } else { job };
                    let job = if dice.percent(20) { job.expires_in(secs(25)) } else { job };
                    if dice.percent(20) {
                        let mut conn = admin.connection()?;
                        let tx = conn.transaction().expect("a transaction");
                        client.enqueue_in(&tx, job)?;
                        if dice.percent(70) { tx.commit() } else { tx.rollback() }.expect("an end");
                    } else {
                        client.enqueue(job)?;
                    }
                }
            }
            6 | 7 => drop(t.drain()?),
            8 => t.advance(secs(dice.below(40) as u64)),
            9 => drop(one(&mut dice).map(|job| client.cancel(job.id))),
            10 => drop(one(&mut dice).map(|job| client.retry(job.id))),
            11 => {
                deleted += usize::from(one(&mut dice).is_some_and(|job| client.delete(job.id).is_ok()));
            }
            12 => drop(one(&mut dice).map(|job| client.set_queue(job.id, queue))),
            13 => drop(one(&mut dice).map(|job| client.set_priority(job.id, dice.pick(&Priority::ALL)))),
            14 => {
                let background = dice.percent(50);
                drop(one(&mut dice).map(|job| client.update(job.id, JobUpdate::new().background(background))));
            }
            15 => drop(one(&mut dice).map(|job| client.update_status(job.id, dice.pick(&Status::ALL)))),
            16 => {
                let selection = client.select(Query::new().statuses(statuses))?;
                match dice.below(5) {
                    0 => selection.cancel()?,
                    1 => selection.retry()?,
                    2 => selection.set_queue(queue)?,
                    3 => selection.set_priority(dice.pick(&Priority::ALL))?,
                    _ if dice.percent(50) => selection.delete()?,
                    _ => selection.retry()?,
                };
            }
            _ => match dice.below(4) {
                0 => t.crash()?,
                1 => t.restart()?,
                2 => {
                    t.faults().fail(1, jobmill::testing::Fault::Before);
                    let _ = client.enqueue_many([NewJob::tracked(), Echo::job("x").queue("new")]);
                    t.faults().heal();
                }
                _ => t.engine().maintain()?,
            },
        }
        let recounted = recount(t.client())?;
        for user in USERS {
            let expected = recounted.get(&Some(user.to_owned())).cloned().unwrap_or_default();
            assert_eq!(counters(&t.client().for_user(user)?)?, expected, "{user} in round {round}");
        }
        let by_user: BTreeMap<String, u64> =
            t.client().users(None, 1000)?.into_iter().map(|(user, counts)| (user, counts.total())).collect();
        let expected = recounted.iter().filter_map(|(user, counts)| {
            let total = Status::ALL.iter().filter_map(|status| counts.get(status.as_str())).sum();
            Some((user.clone()?, total))
        });
        assert_eq!(by_user, expected.collect(), "in round {round}");
        let mut total: BTreeMap<String, u64> = BTreeMap::new();
        for (name, count) in recounted.values().flatten() {
            *total.entry(name.clone()).or_default() += count;
        }
        assert_eq!(counters(t.client())?, total, "in round {round}");
    }
    assert!(deleted > 3, "{deleted}");
    sound(t.client());
    Ok(())
}

#[test]
fn users_are_counted_in_pages_by_name() -> jobmill::Result<()> {
    let t = idle()?;
    for (user, count) in [("b", 2), ("a", 1), ("c", 3), ("ü", 1)] {
        for n in 0..count {
            t.enqueue(NewJob::tracked().user(user).status(Status::ALL[n]))?;
        }
    }
    t.enqueue(NewJob::tracked())?;
    let gone = t.enqueue(NewJob::tracked().user("bb"))?;
    t.client().delete(gone)?;
    let names = |after, limit| -> jobmill::Result<Vec<(String, u64)>> {
        let users = t.client().users(after, limit)?;
        Ok(users.into_iter().map(|(user, counts)| (user, counts.total())).collect())
    };
    let all: Vec<(String, u64)> =
        [("a", 1), ("b", 2), ("c", 3), ("ü", 1)].map(|(user, total)| (user.to_owned(), total)).to_vec();
    assert_eq!(names(None, 1000)?, all);
    assert_eq!(names(None, 2)?, all[..2]);
    assert_eq!(names(Some("b"), 2)?, all[2..]);
    assert_eq!(names(Some("ü"), 1)?, []);
    assert_eq!(t.client().users(Some("b"), 1)?[0].1.running, 1);
    for limit in [0, 1001] {
        refused(t.client().users(None, limit), ErrorKind::Invalid, "limit: must be from 1 to 1000");
    }
    Ok(())
}

/// A job of somebody else's that holds a key on which both agree.
fn foreign_holder(t: &Harness, key: &str) -> jobmill::Result<JobId> {
    t.enqueue(Echo::job("x").user("bob").delay(secs(60)).unique(Unique::key(key)))
}

#[test]
fn who_of_others_holds_a_key_is_not_told() -> jobmill::Result<()> {
    let t = idle()?;
    let ann = t.client().for_user("ann")?;
    let keyed = || Echo::job("x").unique(Unique::key("k"));
    let holder = foreign_holder(&t, "k")?;
    let says = "unique: a job of another user holds the key";
    refused(ann.enqueue(keyed()), ErrorKind::Conflict, says);
    assert_eq!(t.client().enqueue(keyed())?.id(), holder, "the administrator is told");
    // Keys of one's own are shared with nobody.
    for scope in [UniqueScope::User, UniqueScope::KindAndUser] {
        let own = || Echo::job("x").unique(Unique::key("k").scope(scope));
        t.enqueue(own().user("bob"))?;
        let first = ann.enqueue(own())?;
        assert!(first.is_new());
        assert_eq!(ann.enqueue(own())?.id(), first.id());
    }
    Ok(())
}

/// What came before the refused job was written, though the call failed.
#[test]
fn of_many_jobs_none_comes_in_if_another_user_holds_a_key() -> jobmill::Result<()> {
    let t = idle()?;
    let ann = t.client().for_user("ann")?;
    foreign_holder(&t, "k")?;
    let jobs = || [Echo::job("a").queue("new"), Echo::job("b").unique(Unique::key("k")), Echo::job("c")];
    let says = "unique: a job of another user holds the key";
    refused(ann.enqueue_many(jobs()), ErrorKind::Conflict, says);
    assert_eq!(t.client().stats()?.total.total(), 1);
    assert_eq!(ann.stats()?.total.total(), 0);
    sound(t.client());
    let ids = ann.enqueue_many([Echo::job("a"), Echo::job("b").unique(Unique::key("own"))])?;
    assert_eq!(ann.enqueue_many([Echo::job("c"), Echo::job("b").unique(Unique::key("own"))])?[1].id(), ids[1].id());
    assert_eq!(ann.stats()?.total.pending, 3);
    sound(t.client());
    Ok(())
}

/// Inside the application's own transaction the id of the other user's job was given.
#[test]
fn a_transaction_of_the_applications_tells_nothing_of_who_holds_a_key() -> jobmill::Result<()> {
    let t = idle()?;
    let ann = t.client().for_user("ann")?;
    foreign_holder(&t, "k")?;
    let mut conn = t.client().connection()?;
    let tx = conn.transaction().expect("a transaction");
    let says = "unique: a job of another user holds the key";
    refused(ann.enqueue_in(&tx, Echo::job("x").unique(Unique::key("k"))), ErrorKind::Conflict, says);
    let own = ann.enqueue_in(&tx, Echo::job("x").unique(Unique::key("own")))?;
    assert_eq!(ann.enqueue_in(&tx, Echo::job("x").unique(Unique::key("own")))?.id(), own.id());
    tx.commit().expect("a commit");
    assert_eq!(t.client().stats()?.total.pending, 2);
    sound(t.client());
    Ok(())
}

/// The refusal named the other user's job.
#[test]
fn the_refusal_of_a_retry_names_no_job_of_another_user() -> jobmill::Result<()> {
    let t = idle()?;
    let ann = t.client().for_user("ann")?;
    let keyed = || Echo::job("x").unique(Unique::key("k"));
    let id = ann.enqueue(keyed())?.id();
    ann.cancel(id)?;
    let holder = foreign_holder(&t, "k")?;
    let told = |client: &Client| client.retry(id).map_err(|error| (error.kind(), error.to_string()));
    let begins = format!("{id} cannot be retried, for ");
    assert_eq!(told(&ann), Err((ErrorKind::Conflict, begins.clone() + "a job of another user holds its unique key")));
    assert_eq!(
        told(t.client()),
        Err((ErrorKind::Conflict, begins.clone() + &format!("{holder} holds its unique key")))
    );
    t.client().delete(holder)?;
    let own = ann.enqueue(keyed())?.id();
    assert_eq!(told(&ann), Err((ErrorKind::Conflict, begins + &format!("{own} holds its unique key"))));
    Ok(())
}

/// A selection took another's job for a position, where a list says that there is none.
#[test]
fn a_selection_knows_no_cursor_of_another_user() -> jobmill::Result<()> {
    let t = idle()?;
    let ann = t.client().for_user("ann")?;
    let own = ann.enqueue(NewJob::tracked())?.id();
    let foreign = t.enqueue(NewJob::tracked().user("bob"))?;
    let says = format!("there is no job {foreign}");
    refused(ann.select(Query::new().before(foreign)).map(drop), ErrorKind::NotFound, &says);
    refused(ann.select(Query::new().after(foreign)).map(drop), ErrorKind::NotFound, &says);
    refused(ann.jobs(Query::new().after(foreign)).map(drop), ErrorKind::NotFound, &says);
    assert_eq!(t.client().select(Query::new().before(foreign))?.cancel()?.changed, 1);
    t.client().delete(foreign)?;
    ann.retry(own)?;
    assert_eq!(ann.select(Query::new().before(foreign))?.cancel()?.changed, 1, "a deleted one is a position");
    Ok(())
}
