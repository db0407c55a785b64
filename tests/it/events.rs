//! Events: what is told of each change, to whom, in which order, and what a subscriber may rely on.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crossbeam_channel::Receiver;
use jobmill::rusqlite::{Connection, OpenFlags, OptionalExtension};
use jobmill::testing::Harness;
use jobmill::{
    Callbacks, Cause, Change, Context, Durability, Engine, ErrorKind, Event, Failure, JobId, JobUpdate, NewJob,
    Outcome, Priority, Query, Retention, Status, Workers,
};

use crate::mirror::{Act, Mirror, act};
use crate::support::http::Server;
use crate::support::{
    Block, Echo, Other, PATIENCE, block, echo, file, gate, other, query, raw, refused, secs, sound, tamper,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A change in a line: from where to where, why, in which attempt.
fn line(change: &Change) -> String {
    let word = |status: Option<Status>| status.map_or("-".to_owned(), |status| status.to_string());
    format!("{} > {}: {} {}", word(change.from), word(change.to), change.cause, change.attempt)
}

/// The changes that wait for a subscriber, who is told nothing else.
#[track_caller]
pub(crate) fn changes(events: &Receiver<Event>) -> Vec<Change> {
    events
        .try_iter()
        .map(|event| match event {
            Event::Changed(change) => change,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// The same, where others change the file as well.
pub(crate) fn changes_here(events: &Receiver<Event>) -> Vec<Change> {
    let changed = |event| match event {
        Event::Changed(change) => Some(change),
        Event::Elsewhere => None,
        other => panic!("{other:?}"),
    };
    events.try_iter().filter_map(changed).collect()
}

pub(crate) fn lines(changes: &[Change]) -> Vec<String> {
    changes.iter().map(line).collect()
}

pub(crate) fn lines_of(changes: &[Change], id: JobId) -> Vec<String> {
    changes.iter().filter(|change| change.id == id).map(line).collect()
}

/// Waits for the next change.
#[track_caller]
fn next_change(events: &Receiver<Event>) -> Change {
    loop {
        match events.recv_timeout(PATIENCE).expect("an event that comes") {
            Event::Changed(change) => return change,
            Event::Elsewhere => {}
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn harness() -> jobmill::Result<Harness> {
    Harness::new(|builder| {
        builder
            .durability(Durability::Normal)
            .handle(act)
            .handle(echo)
            .handle(other)
            .retention(Retention::FOREVER)
            .without_callbacks()
    })
}

#[test]
fn the_life_of_a_job_is_told_step_by_step_however_it_ends() -> jobmill::Result<()> {
    let t = harness()?;
    let events = t.client().subscribe(1000)?;
    let begins = ["- > pending: enqueued 0", "pending > running: claimed 1"];
    for (act, rest) in [
        (Act::Fine, vec!["running > completed: ended 1"]),
        (Act::Refuses, vec!["running > failed: ended 1"]),
        (Act::Fails, vec!["running > pending: retried 1", "pending > running: claimed 2", "running > failed: ended 2"]),
        (
            Act::Panics,
            vec!["running > pending: retried 1", "pending > running: claimed 2", "running > failed: ended 2"],
        ),
        (
            Act::FailsOnce,
            vec!["running > pending: retried 1", "pending > running: claimed 2", "running > completed: ended 2"],
        ),
        (
            Act::SnoozesOnce,
            vec!["running > pending: snoozed 1", "pending > running: claimed 1", "running > completed: ended 1"],
        ),
        (Act::CancelsItself, vec!["running > cancelled: cancelled 1"]),
        (Act::StopsItself, vec!["running > cancelled: cancelled 1"]),
        (Act::DeletesItself, vec!["running > cancelled: cancelled 1", "cancelled > -: deleted 1"]),
        (Act::Completes, vec!["running > completed: ended 1"]),
        (Act::Enqueues, vec!["running > completed: ended 1"]),
    ] {
        let id = t.enqueue(&act)?;
        for _ in 0..3 {
            t.drain()?;
            t.advance(secs(1));
        }
        let told = changes(&events);
        let expected: Vec<&str> = begins.into_iter().chain(rest).collect();
        assert_eq!(lines_of(&told, id), expected, "{act:?}");
        let child: Vec<String> = told.iter().filter(|change| change.id != id).map(line).collect();
        let has_child = matches!(act, Act::Completes | Act::Enqueues);
        let life = ["- > pending: enqueued 0", "pending > running: claimed 1", "running > completed: ended 1"];
        assert_eq!(child, if has_child { &life[..] } else { &[] }, "{act:?}");
    }
    Ok(())
}

#[test]
fn a_change_says_all_that_a_subscriber_must_know_of_the_job() -> jobmill::Result<()> {
    let t = harness()?;
    let events = t.client().subscribe(10)?;
    let job = Echo::job("x").queue("mail").priority(Priority::High).user("ann");
    let id = t.enqueue(job)?;
    t.advance(secs(5));
    t.drain()?;
    let told = changes(&events);
    assert_eq!(told.len(), 3);
    for change in &told {
        assert_eq!((change.id, &*change.kind, &*change.queue), (id, "echo", "mail"));
        assert_eq!((change.priority, change.user.as_deref()), (Priority::High, Some("ann")));
    }
    let job = t.client().get(id)?;
    let moments = [Some(id.created_at()), job.started_at, job.completed_at];
    assert_eq!(told.iter().map(|change| Some(change.at)).collect::<Vec<_>>(), moments);
    t.client().enqueue(NewJob::tracked())?;
    let [tracked] = &changes(&events)[..] else { panic!("one change") };
    assert_eq!((&*tracked.kind, &*tracked.queue, tracked.user.as_deref()), ("", "default", None));
    Ok(())
}

#[test]
fn what_does_not_run_is_told_when_it_is_cancelled_expires_or_is_deleted() -> jobmill::Result<()> {
    let t = harness()?;
    let events = t.client().subscribe(1000)?;
    let delayed = |act| NewJob::of(&act).delay(secs(60));
    let cancelled = t.enqueue(delayed(Act::Fine))?;
    let deleted = t.enqueue(delayed(Act::Fine))?;
    let expires = t.enqueue(delayed(Act::Fine).expires_in(secs(2)))?;
    // It expires after an attempt, and in the very turn that would claim it again.
    let fails_first = t.enqueue(NewJob::of(&Act::FailsOnce).expires_in(secs(1)))?;
    t.drain()?;
    t.client().cancel(cancelled)?;
    t.client().cancel(cancelled)?;
    t.client().delete(deleted)?;
    t.advance(secs(1));
    t.drain()?;
    t.advance(secs(1));
    t.drain()?;
    t.client().delete(fails_first)?;
    t.client().delete(cancelled)?;
    let told = changes(&events);
    assert_eq!(
        lines_of(&told, cancelled),
        ["- > pending: enqueued 0", "pending > cancelled: cancelled 0", "cancelled > -: deleted 0"]
    );
    assert_eq!(lines_of(&told, deleted), ["- > pending: enqueued 0", "pending > -: deleted 0"]);
    assert_eq!(lines_of(&told, expires), ["- > pending: enqueued 0", "pending > expired: expired 0"]);
    assert_eq!(
        lines_of(&told, fails_first),
        [
            "- > pending: enqueued 0",
            "pending > running: claimed 1",
            "running > pending: retried 1",
            "pending > expired: expired 1",
            "expired > -: deleted 1",
        ],
        "with the attempt that it has had"
    );
    Ok(())
}

#[test]
fn what_an_operator_does_is_told() -> jobmill::Result<()> {
    let t = harness()?;
    let events = t.client().subscribe(1000)?;
    let id = t.enqueue(NewJob::of(&Act::Refuses).user("ann"))?;
    t.client().set_priority(id, Priority::Low)?;
    t.client().set_queue(id, "slow")?;
    t.client().update(id, JobUpdate::new().background(true))?;
    t.client().update(id, JobUpdate::new().agent("agent-7").stop_reason(None))?;
    t.drain()?;
    t.client().retry(id)?;
    let told = changes(&events);
    assert_eq!(
        lines(&told),
        [
            "- > pending: enqueued 0",
            "pending > pending: operator 0",
            "pending > pending: operator 0",
            "pending > pending: operator 0",
            "pending > pending: operator 0",
            "pending > running: claimed 1",
            "running > failed: ended 1",
            "failed > pending: operator 1",
        ]
    );
    let places: Vec<_> = told.iter().map(|change| (&*change.queue, change.priority)).collect();
    assert_eq!(places[..3], [("default", Priority::Default), ("default", Priority::Low), ("slow", Priority::Low)]);
    assert!(places[3..].iter().all(|place| *place == ("slow", Priority::Low)));
    assert!(told.iter().all(|change| change.user.as_deref() == Some("ann")), "wherever it is moved");

    // What is refused, and what asks only, changes nothing.
    refused(t.client().retry(id), ErrorKind::Conflict, &id.to_string());
    refused(t.client().update(id, JobUpdate::new().status(Status::Completed)), ErrorKind::Conflict, "status");
    t.client().record_ttft(id, secs(1))?;
    t.client().pause("slow")?;
    t.client().resume("slow")?;
    t.client().stats()?;
    t.client().metrics(jobmill::Window::Minute)?;
    t.engine().maintain()?;
    assert_eq!(lines(&changes(&events)), [""; 0]);
    Ok(())
}

#[test]
fn what_the_retention_removes_is_not_told() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(echo).retention(Retention { completed: Some(secs(60)), ..Retention::FOREVER })
    })?;
    let events = t.client().subscribe(10)?;
    t.enqueue(Echo::job("x"))?;
    t.drain()?;
    assert_eq!(changes(&events).len(), 3);
    t.advance(secs(61));
    t.engine().maintain()?;
    assert_eq!(t.client().stats()?.total.total(), 0);
    assert_eq!(events.try_iter().collect::<Vec<_>>(), []);
    Ok(())
}

#[test]
fn each_step_of_a_tracked_job_is_told() -> jobmill::Result<()> {
    let t = harness()?;
    let client = t.client();
    let events = client.subscribe(1000)?;
    for status in Status::ALL {
        client.enqueue(NewJob::tracked().status(status))?;
        assert_eq!(lines(&changes(&events)), [format!("- > {status}: enqueued 0")]);
    }
    let id = client.enqueue(NewJob::tracked())?.id();
    client.update_status(id, Status::Pending)?;
    client.update_status(id, Status::Running)?;
    client.update_status(id, Status::Created)?;
    client.update(id, JobUpdate::new().progress(1, None))?;
    client.update(id, JobUpdate::new().merge_metadata(&serde_json::json!({"page": 1})))?;
    client.update(id, JobUpdate::new().status(Status::Failed).error("no"))?;
    client.update_status(id, Status::Failed)?;
    client.update_status(id, Status::Completed)?;
    client.delete(id)?;
    let steps = [
        "- > created: enqueued 0",
        "created > pending: operator 0",
        "pending > running: operator 0",
        "running > running: operator 0",
        "running > failed: ended 0",
        "failed > -: deleted 0",
    ];
    assert_eq!(lines(&changes(&events)), steps);
    let id = client.enqueue(NewJob::tracked().status(Status::Running))?.id();
    client.cancel(id)?;
    assert_eq!(lines(&changes(&events)), ["- > running: enqueued 0", "running > cancelled: cancelled 0"]);
    let id = client.enqueue(NewJob::tracked().expires_in(secs(1)))?.id();
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(lines_of(&changes(&events), id), ["- > created: enqueued 0", "created > expired: expired 0"]);
    Ok(())
}

#[test]
fn a_selection_tells_of_each_job_that_it_changes() -> jobmill::Result<()> {
    let t = harness()?;
    let client = t.client();
    let events = client.subscribe(10_000)?;
    let ids: Vec<JobId> = client
        .enqueue_many((0..450).map(|n| NewJob::of(&Other(n)).delay(secs(60))))?
        .iter()
        .map(|enqueued| enqueued.id())
        .collect();
    client.delete(ids[7])?;
    changes(&events);
    let all = || client.select(Query::new());
    let told_of = |bulk: jobmill::Bulk, step: &str| {
        let told = changes(&events);
        assert_eq!(told.len(), bulk.changed, "{step}");
        assert!(told.iter().all(|change| line(change) == step), "{step}: {:?}", told.first());
        assert!(told.iter().map(|change| change.id).is_sorted(), "the oldest first");
        told.into_iter().map(|change| change.id).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(told_of(all()?.set_priority(Priority::High)?, "pending > pending: operator 0"), 449);
    assert_eq!(told_of(all()?.set_queue("q")?, "pending > pending: operator 0"), 449);
    assert_eq!(told_of(all()?.cancel()?, "pending > cancelled: cancelled 0"), 449);
    assert_eq!(told_of(all()?.retry()?, "cancelled > pending: operator 0"), 449);
    assert_eq!(told_of(all()?.delete()?, "pending > -: deleted 0"), 449);
    Ok(())
}

#[test]
fn the_delivery_of_a_callback_is_a_job_that_is_told_of_too() -> jobmill::Result<()> {
    let server = Server::answering(204);
    let t = Harness::new(|builder| builder.handle(act).callbacks(Callbacks::new().allow_private_addresses()))?;
    let events = t.client().subscribe(100)?;
    let bound = t.client().for_user("ann")?.subscribe(100)?;
    let ended = t.enqueue(NewJob::of(&Act::Fine).callback_url(server.url("/fine")).user("ann"))?;
    t.drain()?;
    let recorded = t.enqueue(NewJob::tracked().status(Status::Failed).callback_url(server.url("/failed")))?;
    let cancelled = t.enqueue(NewJob::of(&Act::Fine).delay(secs(9)).callback_url(server.url("/cancelled")))?;
    t.client().cancel(cancelled)?;
    t.drain()?;
    let told = changes(&events);
    for (id, end) in [
        (ended, "running > completed: ended 1"),
        (recorded, "- > failed: enqueued 0"),
        (cancelled, "pending > cancelled: cancelled 0"),
    ] {
        let at = told.iter().position(|change| change.id == id && line(change) == end).expect("the end");
        let delivery = &told[at + 1];
        assert_eq!((&*delivery.kind, &*delivery.queue), ("jobmill.callback", "system"));
        assert_eq!(delivery.at, told[at].at, "it comes with the end that it tells of");
        assert_eq!(
            lines_of(&told, delivery.id),
            ["- > pending: enqueued 0", "pending > running: claimed 1", "running > completed: ended 1"]
        );
    }
    assert!(changes(&bound).iter().all(|change| change.id == ended), "the engine's own jobs are no user's");
    Ok(())
}

/// Makes a job that waits one that an engine has left running which died since, and which had `begun` it or not.
fn orphan(t: &Harness, id: JobId, begun: bool) {
    let (job, client) = (raw(id), t.client());
    let name = format!("jobs.db-jobmill-{job}");
    let fence = 1 + query::<i64>(client, &format!("SELECT claim FROM jobmill_job WHERE id = {job}"));
    let slot = if begun { [job.to_le_bytes(), fence.to_le_bytes()].concat() } else { Vec::new() };
    std::fs::write(t.path().as_ref().with_file_name(&name), slot).expect("a file of the dead engine");
    tamper(
        client,
        &format!(
            "BEGIN;
             INSERT INTO jobmill_instance (lock_file, host, process, kinds, started_at)
             VALUES ('{name}', 'elsewhere', 1, '[]', 0);
             UPDATE jobmill_lane SET pending = pending - 1, running = running + 1
             WHERE id = (SELECT lane FROM jobmill_job WHERE id = {job});
             UPDATE jobmill_job SET state = 2, attempt = attempt + 1, claim = claim + 1, started_at = {job} >> 10,
                 owner = (SELECT max(id) FROM jobmill_instance)
             WHERE id = {job};
             COMMIT"
        ),
    );
}

#[test]
fn the_rescue_of_a_dead_engines_jobs_is_told() -> jobmill::Result<()> {
    let t = harness()?;
    let had_begun = t.enqueue(&Act::Fine)?;
    let last_attempt = t.enqueue(NewJob::of(&Act::Fine).max_attempts(1))?;
    let had_not_begun = t.enqueue(&Act::Fine)?;
    let to_be_cancelled = t.enqueue(&Act::Fine)?;
    let to_be_deleted = t.enqueue(&Act::Fine)?;
    for id in [had_begun, last_attempt, to_be_cancelled, to_be_deleted] {
        orphan(&t, id, true);
    }
    orphan(&t, had_not_begun, false);
    let events = t.client().subscribe(100)?;
    t.client().cancel(to_be_cancelled)?;
    t.client().delete(to_be_deleted)?;
    t.drain()?;
    let told = changes_here(&events);
    assert_eq!(
        lines_of(&told, had_begun),
        ["running > pending: rescued 1", "pending > running: claimed 2", "running > completed: ended 2"]
    );
    assert_eq!(lines_of(&told, last_attempt), ["running > failed: rescued 1"]);
    assert_eq!(
        lines_of(&told, had_not_begun),
        ["running > pending: returned 1", "pending > running: claimed 1", "running > completed: ended 1"]
    );
    assert_eq!(lines_of(&told, to_be_cancelled), ["running > cancelled: cancelled 1"]);
    assert_eq!(lines_of(&told, to_be_deleted), ["running > cancelled: cancelled 1", "cancelled > -: deleted 1"]);
    sound(t.client());
    Ok(())
}

/// The lines of a job without those of claims that were given back because no worker came in time.
pub(crate) fn steady_lines_of(changes: &[Change], id: JobId) -> Vec<String> {
    let mut steady: Vec<String> = Vec::new();
    for line in lines_of(changes, id) {
        if line.starts_with("pending > running") && steady.last().is_some_and(|last| last.contains("returned")) {
            steady.pop();
        } else {
            steady.push(line);
        }
    }
    steady
}

#[test]
fn threads_tell_of_a_claim_at_once_of_a_return_and_then_of_the_end() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).workers(Workers::new(1)).state(gate).handle(block).start()?;
    let client = engine.client().clone();
    let events = client.subscribe(100)?;
    let id = client.enqueue(Block::job("a"))?.id();
    // Its claim rides in the turn that wrote it, so both are told before the call returns.
    let mut told: Vec<Change> = events.try_iter().filter_map(changed).collect();
    assert_eq!(lines(&told)[..2], ["- > pending: enqueued 0", "pending > running: claimed 1"]);
    keeper.next();
    let waits = client.enqueue(Block::job("b"))?.id();
    engine.shutdown(Duration::ZERO)?;
    told.extend(events.iter().filter_map(changed));
    assert_eq!(
        steady_lines_of(&told, id),
        ["- > pending: enqueued 0", "pending > running: claimed 1", "running > pending: returned 1"]
    );
    assert_eq!(lines_of(&told, waits).first().map(String::as_str), Some("- > pending: enqueued 0"));
    assert_eq!(client.get(waits)?.status, Status::Pending);
    assert!(events.recv().is_err(), "the shutdown ends the subscription after what waits");
    refused(client.subscribe(1), ErrorKind::Shutdown, "");
    drop(keeper);
    Ok(())
}

pub(crate) fn changed(event: Event) -> Option<Change> {
    match event {
        Event::Changed(change) => Some(change),
        _ => None,
    }
}

#[test]
fn a_closure_that_is_undone_is_not_told_and_what_rode_with_it_is() -> jobmill::Result<()> {
    let t = harness()?;
    let client = t.client();
    // Their lanes are there already, so that it is not for want of a name that nothing is told.
    client.enqueue(Echo::job("x"))?;
    client.enqueue(NewJob::tracked())?;
    let events = client.subscribe(100)?;
    let undone = client.write(|tx| -> Result<(), BoxError> {
        tx.enqueue(Echo::job("never"))?;
        tx.enqueue(Echo::job("never").user("new").queue("new"))?;
        tx.enqueue(NewJob::tracked().status(Status::Completed))?;
        Err("no".into())
    });
    assert!(undone.is_err());
    let panics = AssertUnwindSafe(|| {
        client.write(|tx| -> jobmill::Result<()> {
            tx.enqueue(Echo::job("never"))?;
            panic!("in the closure")
        })
    });
    assert!(catch_unwind(panics).is_err());
    assert_eq!(lines(&changes(&events)), [""; 0]);
    let written = client.write(|tx| tx.enqueue(Echo::job("x").user("new").queue("new")))?.id();
    let [change] = &changes(&events)[..] else { panic!("one change") };
    assert_eq!((change.id, &*change.queue, change.user.as_deref()), (written, "new", Some("new")));
    // A handler's own closure that fails is undone too, and its attempt is told.
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
            let undone = ctx.complete(|tx| -> Result<(), BoxError> {
                tx.enqueue(&Other(1))?;
                Err("no".into())
            });
            undone.map_err(Failure::fatal)
        })
    })?;
    let events = t.client().subscribe(100)?;
    t.enqueue(Echo::job("x"))?;
    t.drain()?;
    assert_eq!(
        lines(&changes(&events)),
        ["- > pending: enqueued 0", "pending > running: claimed 1", "running > failed: ended 1"]
    );
    Ok(())
}

#[test]
fn who_is_told_of_a_change_finds_it_in_the_file_and_hears_of_all_in_the_order_of_the_commits() -> jobmill::Result<()> {
    const THREADS: u64 = 3;
    const EACH: u64 = 100;
    let (_directory, path) = file();
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .workers(Workers::new(3))
        .handle(|job: Other, _: &Context| -> Result<Outcome<u64>, Failure> {
            match job.0 % 3 {
                0 => Err(Failure::fatal("no")),
                1 => Ok(Outcome::Cancel("no".into())),
                _ => Ok(Outcome::Done(job.0)),
            }
        })
        .start()?;
    let client = engine.client();
    let mut mirror = Mirror::new(client)?;
    let events = client.subscribe(65_536)?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let conn = Connection::open_with_flags(&path, flags).expect("a reader");
            let mut statement = conn
                .prepare("SELECT claim, completed_at IS NOT NULL FROM jobmill_job WHERE id = ?1")
                .expect("a statement");
            let mut claims: BTreeMap<JobId, i64> = BTreeMap::new();
            let mut told: BTreeMap<Cause, u64> = BTreeMap::new();
            let mut ended = 0;
            while ended < THREADS * EACH {
                let change = next_change(&events);
                let is_end = change.to.expect("a status").is_terminal();
                ended += u64::from(is_end);
                *told.entry(change.cause).or_default() += 1;
                let claims = claims.entry(change.id).or_default();
                *claims += i64::from(change.cause == Cause::Claimed);
                let row = statement.query_row([raw(change.id)], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)));
                let (claims_there, is_end_there): (i64, bool) =
                    row.optional().expect("a look").expect("a row that is committed");
                assert!(claims_there >= *claims, "{change:?} was told before it was there");
                assert!(is_end_there >= is_end, "{change:?} was told before it was there");
            }
            told
        });
        for thread in 0..THREADS {
            scope.spawn(move || {
                for n in 0..EACH {
                    client.enqueue(NewJob::of(&Other(thread * EACH + n))).expect("a job");
                }
            });
        }
        let told = reader.join().expect("a reader without complaints");
        let of = |cause| told.get(&cause).copied().unwrap_or_default();
        assert_eq!(of(Cause::Enqueued), THREADS * EACH);
        assert_eq!((of(Cause::Ended), of(Cause::Cancelled)), (2 * THREADS * EACH / 3, THREADS * EACH / 3));
        // What is claimed ahead may go back.
        assert_eq!(of(Cause::Claimed), THREADS * EACH + of(Cause::Returned));
    });
    mirror.check(client, "at the end");
    engine.shutdown(PATIENCE)?;
    Ok(())
}
