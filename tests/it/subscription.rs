//! Subscriptions: when they end, how much room they have, and what they hear of what others do.

use std::collections::BTreeMap;

use crossbeam_channel::{Receiver, bounded};
use jobmill::testing::Harness;
use jobmill::{
    Cause, Change, Client, Context, Deleted, Durability, Engine, ErrorKind, Event, Failure, JobUpdate, NewJob,
    Priority, Threshold, Workers,
};

use crate::events::{changed, changes, changes_here, harness, lines, lines_of, steady_lines_of};
use crate::mirror::{Act, USERS, act};
use crate::support::{Dice, Echo, Other, PATIENCE, echo, file, other, refused, secs, until};

#[test]
fn a_subscription_ends_with_its_engine_or_its_last_client_whatever_way_that_goes() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let dropped = {
        let engine = Engine::builder(&path).handle(echo).start()?;
        engine.client().subscribe(10)?
    };
    assert!(dropped.iter().all(|event| matches!(event, Event::Elsewhere)) && dropped.recv().is_err());
    let without_an_engine = {
        let client = Client::open(&path)?;
        let events = client.clone().subscribe(10)?;
        client.enqueue(Echo::job("x"))?;
        events
    };
    assert_eq!(without_an_engine.iter().count(), 1, "what was told is there, and then the end");
    let mut t = harness()?;
    let crashed = t.client().subscribe(10)?;
    t.enqueue(Echo::job("x"))?;
    t.crash()?;
    assert_eq!(crashed.iter().count(), 1);
    Ok(())
}

#[test]
fn a_subscriber_asks_for_room_for_1_to_65536_events() -> jobmill::Result<()> {
    let t = harness()?;
    for capacity in [0, 65_537, usize::MAX] {
        refused(t.client().subscribe(capacity), ErrorKind::Invalid, "capacity: must be from 1 to 65536");
    }
    t.client().subscribe(1)?;
    t.client().subscribe(65_536)?;
    Ok(())
}

#[test]
fn a_slow_subscriber_is_told_where_it_missed_how_much() -> jobmill::Result<()> {
    let t = harness()?;
    let client = t.client();
    let all = client.subscribe(65_536)?;
    let slow: Vec<Receiver<Event>> =
        [1, 3, 16, 100].map(|capacity| client.subscribe(capacity).expect("a subscription")).into();
    let mut received: Vec<Vec<Event>> = vec![Vec::new(); slow.len()];
    let mut dice = Dice(5);
    for n in 0..100 {
        client.enqueue(NewJob::of(&Other(n)).delay(secs(60)))?;
        if n % 3 == 0 {
            client.enqueue_many((0..dice.below(20)).map(|_| Echo::job("x")))?;
            t.drain()?;
        }
        for (reader, received) in slow.iter().zip(&mut received) {
            received.extend(reader.try_iter().take(dice.below(10)));
        }
    }
    for (reader, received) in slow.iter().zip(&mut received) {
        received.extend(reader.try_iter());
    }
    // One more, in front of which the last markers stand.
    client.enqueue(Echo::job("last"))?;
    for (reader, received) in slow.iter().zip(&mut received) {
        received.extend(reader.try_iter());
    }
    let published = changes(&all);
    for received in received {
        let (mut at, mut missed) = (0, 0);
        for event in &received {
            match event {
                Event::Changed(change) => {
                    at += missed;
                    assert_eq!(*change, published[at], "what is missing before it is counted");
                    (at, missed) = (at + 1, 0);
                }
                Event::Lagged { missed: more } => missed += *more as usize,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((at, missed), (published.len(), 0), "all is received or counted");
        assert!(received.iter().any(|event| matches!(event, Event::Lagged { .. })), "they were slow");
    }
    Ok(())
}

#[test]
fn a_subscriber_who_does_not_read_keeps_nobody_waiting() {
    const JOBS: u64 = 10_000;
    let (sender, done) = bounded(1);
    // If anybody did wait, it would be for ever.
    let run = std::thread::Builder::new().spawn(move || -> jobmill::Result<()> {
        let (_directory, path) = file();
        let engine = Engine::builder(&path).durability(Durability::Normal).handle(other).start()?;
        let client = engine.client();
        let never_reads = client.subscribe(1)?;
        let dropped: Vec<_> = (0..100).map(|_| client.subscribe(1)).collect::<jobmill::Result<_>>()?;
        drop(dropped);
        let all = client.subscribe(65_536)?;
        for from in (0..JOBS).step_by(1000) {
            client.enqueue_many((from..from + 1000).map(|n| NewJob::of(&Other(n))))?;
        }
        until("all complete", || client.stats().expect("the counts").total.completed == JOBS);
        engine.shutdown(PATIENCE)?;
        let ended = changes_here(&all).iter().filter(|change| change.cause == Cause::Ended).count();
        let _ = sender.send((ended as u64, never_reads.iter().count()));
        Ok(())
    });
    let (ended, waiting) = done.recv_timeout(PATIENCE).expect("nobody waits");
    assert_eq!(ended, JOBS);
    assert!(waiting <= 3, "{waiting} events wait");
    run.expect("a thread").join().expect("no panic").expect("no error");
}

#[test]
fn what_others_change_is_told_as_elsewhere_and_not_as_what() -> jobmill::Result<()> {
    let t = harness()?;
    let client = t.client();
    let stranger = Client::open(t.path())?;
    let events = client.subscribe(100)?;
    t.drain()?;
    t.engine().maintain()?;
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [], "nobody else has changed anything");

    let id = stranger.enqueue(Echo::job("x"))?.id();
    t.drain()?;
    let told: Vec<Event> = events.try_iter().collect();
    assert_eq!(told.iter().filter(|event| **event == Event::Elsewhere).count(), 1);
    let told: Vec<Change> = told.into_iter().filter_map(changed).collect();
    assert_eq!(lines_of(&told, id), ["pending > running: claimed 1", "running > completed: ended 1"]);

    let mut conn = client.connection()?;
    let tx = conn.transaction().expect("a transaction");
    client.enqueue_in(&tx, NewJob::tracked())?;
    tx.rollback().expect("a rollback");
    t.drain()?;
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [], "what was rolled back has changed nothing");

    let tx = conn.transaction().expect("a transaction");
    client.enqueue_in(&tx, NewJob::tracked())?;
    tx.commit().expect("a commit");
    t.drain()?;
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [Event::Elsewhere]);

    let id = t.enqueue(&Act::CompletesInOwnTransaction)?;
    t.drain()?;
    t.drain()?;
    let told: Vec<Event> = events.try_iter().collect();
    assert!(told.contains(&Event::Elsewhere), "its end");
    let told: Vec<Change> = told.into_iter().filter_map(changed).collect();
    assert_eq!(lines_of(&told, id), ["- > pending: enqueued 0", "pending > running: claimed 1"]);
    Ok(())
}

#[test]
fn an_idle_engine_notices_by_itself_that_others_have_changed_the_file() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).start()?;
    let stranger = Client::open(&path)?;
    let events = engine.client().subscribe(10)?;
    let bound = engine.client().for_user("ann")?.subscribe(10)?;
    for _ in 0..3 {
        stranger.enqueue(NewJob::tracked())?;
        assert_eq!(events.recv_timeout(PATIENCE), Ok(Event::Elsewhere));
        assert_eq!(bound.recv_timeout(PATIENCE), Ok(Event::Elsewhere), "its user's jobs may be among them");
    }
    Ok(())
}

#[test]
fn a_bound_client_hears_of_its_users_jobs_alone() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(act).handle(echo).threshold(Threshold::depth("default", 0)).without_callbacks()
    })?;
    let client = t.client();
    let all = client.subscribe(1000)?;
    let bound: Vec<_> = USERS
        .iter()
        .map(|user| Ok((*user, client.for_user(*user)?, client.for_user(*user)?.subscribe(1000)?)))
        .collect::<jobmill::Result<_>>()?;
    let mut ids = BTreeMap::new();
    for (user, own, _) in &bound {
        ids.insert(*user, own.enqueue(&Act::FailsOnce)?.id());
    }
    client.enqueue(&Act::Fine)?;
    t.engine().maintain()?;
    for (user, id) in &ids {
        client.set_queue(*id, "elsewhere")?;
        client.for_user(*user)?.set_priority(*id, Priority::Critical)?;
        client.update(*id, JobUpdate::new().background(true))?;
    }
    for _ in 0..3 {
        t.drain()?;
        t.advance(secs(1));
    }
    t.engine().maintain()?;
    for id in ids.values() {
        assert_eq!(client.delete(*id)?, Deleted::Now);
    }
    let alerts = all.try_iter().filter(|event| matches!(event, Event::Alert(_))).count();
    assert_eq!(alerts, 2, "the administrator is told that the queue fills and empties");
    for (user, _, events) in &bound {
        let told = changes(events);
        assert!(told.iter().all(|change| change.user.as_deref() == Some(user) && change.id == ids[user]), "{told:?}");
        assert_eq!(
            lines(&told),
            [
                "- > pending: enqueued 0",
                "pending > pending: operator 0",
                "pending > pending: operator 0",
                "pending > pending: operator 0",
                "pending > running: claimed 1",
                "running > pending: retried 1",
                "pending > running: claimed 2",
                "running > completed: ended 2",
                "completed > -: deleted 2",
            ],
            "{user}"
        );
        let places: Vec<_> = told.iter().map(|change| (&*change.queue, change.priority)).collect();
        assert_eq!(places[0], ("default", Priority::Default));
        assert_eq!(places[1], ("elsewhere", Priority::Default));
        assert!(places[2..].iter().all(|place| *place == ("elsewhere", Priority::Critical)));
    }
    Ok(())
}

#[test]
fn a_handler_may_subscribe_too() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (sender, heard) = bounded(1);
    let engine = Engine::builder(&path)
        .workers(Workers::new(2))
        .handle(echo)
        .handle(move |_: Other, ctx: &Context| -> Result<(), Failure> {
            let events = ctx.client().subscribe(10)?;
            let id = ctx.client().enqueue(Echo::job("x"))?.id();
            let mut told = Vec::new();
            for change in events.iter().filter_map(changed).filter(|change| change.id == id) {
                told.push(change);
                if told.last().is_some_and(|change| change.cause == Cause::Ended) {
                    break;
                }
            }
            let _ = sender.send(steady_lines_of(&told, id));
            Ok(())
        })
        .start()?;
    engine.client().enqueue(&Other(1))?;
    assert_eq!(
        heard.recv_timeout(PATIENCE).expect("a handler that hears"),
        ["- > pending: enqueued 0", "pending > running: claimed 1", "running > completed: ended 1"]
    );
    Ok(())
}
