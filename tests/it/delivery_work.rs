//! Deliveries as work: whose jobs they are, which workers make them, and in which of several engines on a file.

use std::io::Read;
use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use jobmill::testing::Harness;
use jobmill::{
    Client, Context, Durability, Engine, ErrorKind, Failure, JobId, JobUpdate, NewJob, Payload, Query, Status, Workers,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::delivery::{ended, harness};
use crate::support::another::{Another, CHILD};
use crate::support::http::Server;
use crate::support::receiver::{Mailbox, Post, body_of, here, only_delivery, own_jobs};
use crate::support::{Block, Echo, PATIENCE, block, echo, file, gate, query, refused, secs, sound, until};

/// A kind of the engine's own.
#[derive(Serialize, Deserialize)]
struct Forged;

impl Payload for Forged {
    const KIND: &'static str = "jobmill.callback";
}

/// A kind that the engine might have one day.
#[derive(Serialize, Deserialize)]
struct Future;

impl Payload for Future {
    const KIND: &'static str = "jobmill.";
}

#[test]
fn nobody_else_runs_or_enqueues_the_engines_own_jobs() -> jobmill::Result<()> {
    let kind = "kind: must not begin with jobmill., which is the engine's own";
    let queue = "queue: must not be system, which is the engine's own";
    let (_directory, path) = file();
    let forge = |_: Forged, _: &Context| Ok(());
    let future = |_: Future, _: &Context| Ok(());
    refused(Engine::builder(&path).handle(forge).inline().map(drop), ErrorKind::Invalid, kind);
    refused(Engine::builder(&path).without_callbacks().handle(forge).inline().map(drop), ErrorKind::Invalid, kind);
    refused(Engine::builder(&path).handle(future).inline().map(drop), ErrorKind::Invalid, kind);
    refused(Engine::builder(&path).queue("system", 1).inline().map(drop), ErrorKind::Invalid, queue);

    let (t, mailbox) = (harness(here()), Mailbox::answering(200));
    let client = t.client();
    let waiting = t.enqueue(Echo::job("x").delay(secs(1)))?;
    for (new, error) in [
        (NewJob::of(&Forged), kind),
        (NewJob::json("jobmill.anything", &1).delay(secs(1)), kind),
        (Echo::job("x").queue("system"), queue),
        (NewJob::tracked().queue("system"), queue),
    ] {
        refused(client.enqueue(new.clone()), ErrorKind::Invalid, error);
        let of_many = format!("jobs[1]: {error}");
        refused(client.enqueue_many([Echo::job("y"), new.clone()]), ErrorKind::Invalid, &of_many);
        let mut conn = client.connection()?;
        let tx = conn.transaction().expect("a transaction");
        refused(client.enqueue_in(&tx, new.clone()), ErrorKind::Invalid, error);
        refused(client.write(move |tx| tx.enqueue(new)), ErrorKind::Invalid, error);
    }
    refused(client.set_queue(waiting, "system"), ErrorKind::Invalid, queue);
    let all = client.select(Query::new())?;
    refused(all.set_queue("system"), ErrorKind::Invalid, queue);
    assert_eq!(client.stats()?.total.total(), 1);

    // A word that looks like ours is nobody's delivery.
    let id = ended(client, mailbox.url("/"))?;
    t.enqueue(Echo::job("x").tags([format!("callback:{id}")]))?;
    t.drain()?;
    assert_eq!(mailbox.only().id, only_delivery(client, id).message_id);
    Ok(())
}

/// A delivery could be moved to a queue of the application's, where it took its workers, and be given a callback of its
/// own, so that its end raised another delivery.
#[test]
fn a_delivery_stays_where_it_belongs_and_raises_no_callback() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(here()), Mailbox::answering(200));
    let client = t.client();
    client.pause("system")?;
    let id = ended(client, mailbox.url("/"))?;
    let delivery = only_delivery(client, id).id;
    let own = format!("queue: the engine runs {delivery}, and sets this itself");
    refused(client.set_queue(delivery, "default"), ErrorKind::Conflict, &own);
    let waiting = t.enqueue(Echo::job("x").delay(secs(1000)))?;
    let moved = client.select(Query::new().statuses([Status::Pending]))?.set_queue("elsewhere")?;
    assert_eq!((moved.changed, moved.refused), (1, 1));
    assert_eq!((client.get(delivery)?.queue, client.get(waiting)?.queue), ("system".into(), "elsewhere".into()));
    client.set_priority(delivery, jobmill::Priority::Low)?;

    let tell = JobUpdate::new().callback_url(mailbox.url("/again").as_str());
    let own = format!("callback_url: the engine runs {delivery}, and sets this itself");
    refused(client.update(delivery, tell), ErrorKind::Conflict, &own);
    client.update(delivery, JobUpdate::new().metadata(&json!({ "a note": 1 })))?;
    client.resume("system")?;
    t.drain()?;
    assert_eq!(mailbox.only().path, "/");
    assert_eq!(own_jobs(client).len(), 1);
    sound(client);
    Ok(())
}

#[test]
fn a_pause_of_the_queue_system_holds_deliveries_and_nothing_else() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(here()), Mailbox::answering(200));
    t.client().pause("system")?;
    let id = t.enqueue(Echo::job("x").callback_url(mailbox.url("/")))?;
    assert_eq!(t.drain()?, 1);
    t.check(id, "completed, attempt 1");
    let delivery = only_delivery(t.client(), id).id;
    t.advance(secs(86_400));
    assert_eq!(t.drain()?, 0);
    t.check(delivery, "pending");
    assert!(t.client().explain(delivery)?.to_string().contains("paused"));
    mailbox.take(0);
    t.client().resume("system")?;
    assert_eq!(t.drain()?, 1);
    mailbox.take(1);
    Ok(())
}

/// A receiver that answers when it is let.
struct Slow {
    server: Server,
    go: Sender<()>,
}

impl Slow {
    fn new() -> Self {
        let (go, let_go): (_, Receiver<()>) = bounded(1000);
        let server = Server::start(move |_, connection| {
            if connection.request().is_some() {
                // Whoever has gone has let everybody go.
                let _ = let_go.recv();
                connection.answer(200, &[], "");
            }
        });
        Self { server, go }
    }

    fn release(&self, count: usize) {
        (0..count).for_each(|_| self.go.send(()).expect("a server"));
    }
}

/// While a worker was busy, deliveries waited for the application's jobs that waited for it.
#[test]
fn deliveries_do_not_wait_for_the_applications_workers() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let server = Server::answering(200);
    let builder = Engine::builder(&path).workers(Workers::new(1)).callbacks(here().in_flight(1));
    let engine = builder.state(gate).handle(block).start()?;
    let client = engine.client();
    client.enqueue(Block::job("busy"))?;
    assert_eq!(keeper.next(), "busy");
    // These stand before the delivery in every respect.
    client.enqueue_many((0..5).map(|n| Block::job(n.to_string()).priority(jobmill::Priority::Critical)))?;
    for round in 1..=3 {
        let id = ended(client, server.url("/"))?;
        let delivery = client.wait(only_delivery(client, id).id, PATIENCE)?;
        assert_eq!(delivery.status, Status::Completed);
        assert_eq!((server.connections(), client.stats()?.kinds["block"].pending), (round, 5));
    }
    drop(keeper);
    engine.shutdown(PATIENCE)?;
    Ok(())
}

/// A delivery counted as the turn of the jobs that have no user, so that these waited for everybody else.
#[test]
fn a_delivery_is_nobodys_turn() -> jobmill::Result<()> {
    let (served, order) = unbounded();
    let t = Harness::new(move |builder| {
        let served = served.clone();
        builder.fair_by_user().callbacks(here()).handle(move |job: Echo, _: &Context| -> Result<(), Failure> {
            served.send(job.0).expect("a listener");
            Ok(())
        })
    })?;
    let mailbox = Mailbox::answering(200);
    for name in ["nobody's", "ada's"] {
        ended(t.client(), mailbox.url("/"))?;
        let job = Echo::job(name);
        t.enqueue(if name == "ada's" { job.user("ada") } else { job })?;
    }
    t.drain()?;
    mailbox.take(2);
    assert_eq!(order.try_iter().collect::<Vec<_>>(), ["nobody's", "ada's"], "in their order, for neither was served");
    Ok(())
}

#[test]
fn the_application_does_not_wait_for_deliveries_and_few_are_in_flight() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let slow = Slow::new();
    let builder = Engine::builder(&path).workers(Workers::new(1)).callbacks(here().in_flight(2));
    let engine = builder.handle(echo).start()?;
    let client = engine.client();
    let told: Vec<JobId> = (0..10).map(|_| ended(client, slow.server.url("/"))).collect::<jobmill::Result<_>>()?;
    until("two deliveries begin", || slow.server.connections() == 2);
    for job in client.enqueue_many((0..200).map(|n| Echo::job(n.to_string())))? {
        assert_eq!(client.wait(job.id(), PATIENCE)?.status, Status::Completed);
    }
    let own = &client.stats()?.queues["system"];
    assert_eq!((own.running, own.pending, own.completed), (2, 8, 0));
    assert_eq!(slow.server.connections(), 2);
    slow.release(10);
    for id in told {
        let delivery = client.wait(only_delivery(client, id).id, PATIENCE)?;
        assert_eq!((delivery.status, delivery.attempt), (Status::Completed, 1));
    }
    assert_eq!(slow.server.connections(), 10);
    engine.shutdown(PATIENCE)?;
    sound(client);
    Ok(())
}

#[test]
fn a_shutdown_lets_a_delivery_end() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let slow = Slow::new();
    let engine = Engine::builder(&path).callbacks(here()).start()?;
    let id = ended(engine.client(), slow.server.url("/"))?;
    slow.server.next();
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| engine.shutdown(PATIENCE));
        slow.release(1);
        assert_eq!(shutdown.join().expect("no panic")?.returned, 0);
        jobmill::Result::Ok(())
    })?;
    let client = Client::open(&path)?;
    let job = client.get(id)?;
    assert_eq!((job.callback_status_code, job.callback_error), (Some(200), None));
    assert_eq!(only_delivery(&client, id).status, Status::Completed);
    sound(&client);
    Ok(())
}

#[test]
fn a_delivery_that_a_shutdown_cannot_wait_for_is_made_again() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let slow = Slow::new();
    let engine = Engine::builder(&path).callbacks(here()).start()?;
    let id = ended(engine.client(), slow.server.url("/"))?;
    let first = Post::new(slow.server.next());
    assert_eq!(engine.shutdown(Duration::ZERO)?.returned, 1);
    let client = Client::open(&path)?;
    let delivery = only_delivery(&client, id);
    assert_eq!((delivery.status, delivery.attempts), (Status::Pending, vec![]), "its attempt is given back");
    assert_eq!(client.get(id)?.callback_sent_at, None);
    sound(&client);

    let engine = Engine::builder(&path).callbacks(here()).start()?;
    let second = Post::new(slow.server.next());
    assert_eq!((&second.id, &second.body), (&first.id, &first.body));
    slow.release(2);
    assert_eq!(engine.client().wait(delivery.id, PATIENCE)?.attempt, 1);
    engine.shutdown(PATIENCE)?;
    assert_eq!(slow.server.connections(), 2);
    sound(&client);
    Ok(())
}

#[test]
fn deliveries_are_deleted_like_other_jobs_and_their_jobs_stay() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let slow = Slow::new();
    let engine = Engine::builder(&path).callbacks(here().in_flight(1)).start()?;
    let client = engine.client();
    let told: Vec<JobId> = (0..3).map(|_| ended(client, slow.server.url("/"))).collect::<jobmill::Result<_>>()?;
    slow.release(1);
    client.wait(only_delivery(client, told[0]).id, PATIENCE)?;
    until("the second delivery begins", || slow.server.connections() == 2);
    let deleted = client.select(Query::new().queues(["system"]))?.delete()?;
    assert_eq!((deleted.changed, deleted.refused), (3, 0));
    assert_eq!(own_jobs(client).iter().map(|job| job.status).collect::<Vec<_>>(), [Status::Running]);
    slow.release(2);
    until("the running one is gone", || own_jobs(client).is_empty());
    let codes = told.iter().map(|id| client.get(*id).map(|job| job.callback_status_code));
    assert_eq!(codes.collect::<jobmill::Result<Vec<_>>>()?, [Some(200), Some(200), None]);
    for id in &told {
        assert_eq!(client.deliveries(*id)?, []);
    }
    // Their ends can be told anew.
    let again = client.redeliver(told[2])?;
    slow.release(1);
    client.wait(again, PATIENCE)?;
    assert_eq!((client.get(told[2])?.callback_status_code, slow.server.connections()), (Some(200), 3));
    engine.shutdown(PATIENCE)?;
    sound(client);
    Ok(())
}

/// Runs an engine that delivers, one callback at a time, until whoever has started this process tells it to end.
fn deliver_until_told(path: &Path) -> jobmill::Result<()> {
    let engine = Engine::builder(path).callbacks(here().in_flight(1)).start()?;
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    engine.shutdown(PATIENCE)?;
    Ok(())
}

fn engines(client: &Client) -> i64 {
    query(client, "SELECT count(*) FROM jobmill_instance WHERE ended_at IS NULL")
}

#[test]
fn an_engine_without_callbacks_leaves_them_to_another_on_the_file() -> jobmill::Result<()> {
    if let Some(path) = std::env::var_os(CHILD) {
        return deliver_until_told(Path::new(&path));
    }
    let (_directory, path) = file();
    let server = Server::answering(200);
    let engine = Engine::builder(&path).without_callbacks().handle(echo).start()?;
    let client = engine.client();
    let id = client.enqueue(Echo::job("x").callback_url(server.url("/")))?.id();
    let ended = client.wait(id, PATIENCE)?;
    let delivery = only_delivery(client, id);
    assert!(client.explain(delivery.id)?.to_string().contains("jobmill.callback"), "nobody is there to deliver");
    for job in client.enqueue_many((0..20).map(|n| Echo::job(n.to_string())))? {
        client.wait(job.id(), PATIENCE)?;
    }
    assert_eq!((only_delivery(client, id).status, server.connections()), (Status::Pending, 0));

    let name = "delivery_work::an_engine_without_callbacks_leaves_them_to_another_on_the_file";
    let other = Another::start(name, &path);
    assert_eq!(Post::new(server.next()).body, body_of(&ended));
    assert_eq!(client.wait(delivery.id, PATIENCE)?.status, Status::Completed);
    let next = client.enqueue(Echo::job("y").callback_url(server.url("/")))?.id();
    client.wait(next, PATIENCE)?;
    client.wait(only_delivery(client, next).id, PATIENCE)?;
    other.end();
    assert_eq!(server.connections(), 2);
    engine.shutdown(PATIENCE)?;
    sound(client);
    Ok(())
}

#[test]
fn two_engines_on_one_file_deliver_each_callback_once() -> jobmill::Result<()> {
    if let Some(path) = std::env::var_os(CHILD) {
        return deliver_until_told(Path::new(&path));
    }
    let (_directory, path) = file();
    // Each delivers one at a time, so these two meet only if both engines deliver.
    let meeting = Barrier::new(2);
    let server = Server::start(move |number, connection| {
        if number < 2 {
            meeting.wait();
        }
        connection.reply(200, &[], "");
    });
    let engine =
        Engine::builder(&path).callbacks(here().in_flight(1)).durability(Durability::Normal).handle(echo).start()?;
    let client = engine.client();
    let other = Another::start("delivery_work::two_engines_on_one_file_deliver_each_callback_once", &path);
    until("both are there", || engines(client) == 2);
    let jobs =
        client.enqueue_many((0..100).map(|n| Echo::job(n.to_string()).callback_url(server.url(&format!("/{n}")))))?;
    let mut paths = std::collections::BTreeSet::new();
    for job in &jobs {
        client.wait(job.id(), PATIENCE)?;
        let delivery = client.wait(only_delivery(client, job.id()).id, PATIENCE)?;
        assert_eq!((delivery.status, delivery.attempt), (Status::Completed, 1));
        paths.insert(Post::new(server.next()).path);
    }
    other.end();
    engine.shutdown(PATIENCE)?;
    // The first two have met. Later ones may overlap with a connection that is answered and not closed yet.
    assert_eq!((paths.len(), server.connections()), (100, 100));
    sound(client);
    Ok(())
}
