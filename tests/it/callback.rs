//! Which ends of jobs are told to their callbacks, and what of them.

use std::collections::BTreeMap;
use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Backoff, Cancelled, Client, Context, Durability, Engine, EngineBuilder, ErrorKind, Failure, Job, JobId, JobType,
    JobUpdate, NewJob, Outcome, Payload, Query, Retention, Status, StatusChange, Unique,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::receiver::{Mailbox, body_of, here, only_delivery, own_jobs};
use crate::support::{Block, Hands, Keeper, PATIENCE, block, file, gate, now, secs, sound, until, with_hands};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A job that ends, or does not, as it says.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Act {
    Fine,
    FailsForGood,
    FailsEachTime,
    FailsFirst,
    PanicsEachTime,
    RunsOutOfTime,
    SnoozesFirst,
    CancelsItself,
    IsCancelled,
    Completes,
    CompletesAtTheSecondTry,
    CompletesInOwnTransaction,
    SetsUrl(Option<String>),
    HasUrlSetElsewhere(Option<String>),
}

impl Payload for Act {
    const KIND: &'static str = "act";

    fn defaults(job: NewJob) -> NewJob {
        job.backoff(Backoff::fixed(secs(1))).max_attempts(2).timeout(secs(3600))
    }
}

fn act(act: Act, ctx: &Context) -> Result<Outcome<String>, Failure> {
    let first = ctx.attempt() == 1;
    match act {
        Act::FailsForGood => return Err(Failure::fatal("never")),
        Act::FailsEachTime => return Err(Failure::retry("not so")),
        Act::FailsFirst if first => return Err(Failure::retry("not yet")),
        Act::PanicsEachTime => panic!("not so"),
        Act::RunsOutOfTime => {
            ctx.state::<Hands>()?.pass(secs(3600));
            ctx.check()?;
        }
        Act::SnoozesFirst if ctx.saved::<bool>()?.is_none() => {
            ctx.save(&true)?;
            return Ok(Outcome::Snooze(secs(1)));
        }
        Act::CancelsItself => return Ok(Outcome::Cancel("of no use".into())),
        Act::IsCancelled => {
            assert_eq!(ctx.client().cancel(ctx.id())?, Cancelled::Requested);
            ctx.check()?;
        }
        Act::CompletesAtTheSecondTry => {
            let refused = ctx.complete(|_| -> Result<String, BoxError> { Err("no effect".into()) });
            assert!(refused.is_err());
            complete(ctx)?;
        }
        Act::Completes => complete(ctx)?,
        Act::CompletesInOwnTransaction => {
            let mut conn = ctx.client().connection()?;
            let tx = conn.transaction()?;
            ctx.complete_in(&tx, &"with its effect")?;
            tx.rollback()?;
            let tx = conn.transaction()?;
            ctx.complete_in(&tx, &"with its effect")?;
            tx.commit()?;
        }
        Act::SetsUrl(url) => drop(ctx.client().update(ctx.id(), JobUpdate::new().callback_url(url.as_deref()))?),
        Act::HasUrlSetElsewhere(url) => {
            // As another process has it: by a connection and a memory of its own.
            let elsewhere = Client::open(ctx.client().path())?;
            elsewhere.update(ctx.id(), JobUpdate::new().callback_url(url.as_deref()))?;
        }
        Act::Fine | Act::FailsFirst | Act::SnoozesFirst => {}
    }
    Ok(Outcome::Done("done".into()))
}

fn complete(ctx: &Context) -> Result<(), Failure> {
    let completed = ctx.complete(|_| -> Result<String, BoxError> { Ok("with its effect".into()) });
    completed.map(drop).map_err(Failure::retry)
}

fn describe(builder: EngineBuilder) -> EngineBuilder {
    builder.durability(Durability::Normal).callbacks(here()).handle(act)
}

fn harness() -> Harness {
    with_hands(describe).expect("an engine")
}

/// A job with a callback to this address, and metadata that name it.
fn job(act: Act, url: impl Into<String>) -> NewJob {
    let url = url.into();
    NewJob::of(&act).metadata(&json!({ "to": url })).callback_url(url)
}

/// The jobs of a test by the paths to which they tell their ends, and how they stood then.
struct Told {
    t: Harness,
    mailbox: Mailbox,
    ends: BTreeMap<String, Job>,
}

impl Told {
    /// Keeps the deliveries back, so that what is written can be seen before it is sent.
    fn new() -> jobmill::Result<Self> {
        let t = harness();
        t.client().pause("system")?;
        Ok(Self { t, mailbox: Mailbox::answering(204), ends: BTreeMap::new() })
    }

    fn url(&self, name: &str) -> String {
        self.mailbox.url(&format!("/{name}"))
    }

    /// Looks at a job that is to have ended like this. One delivery is written with that, and nothing is sent yet.
    #[track_caller]
    fn ended(&mut self, name: &str, id: JobId, status: Status) {
        let job = self.t.client().get(id).expect("a job");
        assert_eq!(job.status, status, "{name}: {:?}", job.error);
        assert!(job.completed_at.is_some(), "{name}");
        let delivery = only_delivery(self.t.client(), id);
        assert_eq!((delivery.status, delivery.url, delivery.attempts), (Status::Pending, self.url(name), vec![]));
        assert_eq!((job.callback_sent_at, job.callback_status_code), (None, None), "{name}");
        let before = self.ends.insert(format!("/{name}"), job);
        assert_eq!(before, None, "{name} is one job");
    }

    /// Lets the deliveries go. Each end is told once, as it stood then.
    fn deliver(self) -> jobmill::Result<()> {
        let client = self.t.client();
        for job in self.ends.values() {
            client.update(job.id, JobUpdate::new().clear_metadata().callback_url(self.url("late").as_str()))?;
        }
        self.t.advance(secs(60));
        self.mailbox.take(0);
        client.resume("system")?;
        self.t.drain()?;
        let posts = self.mailbox.take_all();
        assert_eq!(posts.keys().collect::<Vec<_>>(), self.ends.keys().collect::<Vec<_>>());
        for (path, job) in &self.ends {
            assert_eq!(posts[path].len(), 1, "{path}");
            let post = &posts[path][0];
            assert_eq!(post.body, body_of(job), "{path}");
            let delivery = only_delivery(client, job.id);
            assert_eq!((delivery.status, &delivery.message_id), (Status::Completed, &post.id), "{path}");
        }
        self.t.advance(secs(86_400));
        self.t.drain()?;
        self.mailbox.take(0);
        assert_eq!(own_jobs(client).len(), self.ends.len(), "a callback about a callback has no end");
        sound(client);
        Ok(())
    }
}

#[test]
fn each_end_of_a_job_that_the_engine_runs_is_told_once() -> jobmill::Result<()> {
    let mut told = Told::new()?;
    // Those that die come first: what runs beside them would die with them.
    for (name, cancels, status) in [("crashed", false, Status::Failed), ("cancelled, crashed", true, Status::Cancelled)]
    {
        let name = name.replace(", ", "-");
        let act = if cancels { Act::IsCancelled } else { Act::Fine };
        let id = told.t.enqueue(job(act, told.url(&name)).max_attempts(1))?;
        // The claim is written, the request to cancel too, and the end is not.
        told.t.faults().fail(2 + u64::from(cancels), Fault::Before);
        assert!(told.t.drain().is_err());
        told.t.check(id, "running, attempt 1");
        assert_eq!(told.t.client().deliveries(id)?, []);
        told.t.crash()?;
        told.ended(&name, id, status);
    }

    let acts = [
        ("fine", Act::Fine, Status::Completed),
        ("fails-for-good", Act::FailsForGood, Status::Failed),
        ("fails-each-time", Act::FailsEachTime, Status::Failed),
        ("fails-first", Act::FailsFirst, Status::Completed),
        ("panics", Act::PanicsEachTime, Status::Failed),
        ("snoozes", Act::SnoozesFirst, Status::Completed),
        ("cancels-itself", Act::CancelsItself, Status::Cancelled),
        ("is-cancelled", Act::IsCancelled, Status::Cancelled),
        ("completes", Act::Completes, Status::Completed),
        ("completes-at-the-second-try", Act::CompletesAtTheSecondTry, Status::Completed),
        ("completes-in-own-transaction", Act::CompletesInOwnTransaction, Status::Completed),
    ];
    let jobs = acts.clone().map(|(name, act, _)| job(act, told.url(name)).job_type(JobType::Run));
    let ids = told.t.client().enqueue_many(jobs)?;
    told.t.drain()?;
    for ((name, ..), id) in acts.iter().zip(&ids) {
        let ended = told.t.client().get(id.id())?.status.is_terminal();
        let deliveries = told.t.client().deliveries(id.id())?.len();
        assert_eq!(deliveries, usize::from(ended), "no attempt but the last is told: {name}");
    }
    told.t.advance(secs(1));
    told.t.drain()?;
    for ((name, _, status), id) in acts.into_iter().zip(ids) {
        told.ended(name, id.id(), status);
    }

    let slow = told.t.enqueue(job(Act::RunsOutOfTime, told.url("out-of-time")).max_attempts(1))?;
    told.t.drain()?;
    told.ended("out-of-time", slow, Status::Failed);

    let later = |name| job(Act::Fine, told.url(name)).delay(secs(100));
    let cancelled = told.t.enqueue(later("cancelled"))?;
    let expired = told.t.enqueue(later("expired").expires_in(secs(5)))?;
    let selected = told.t.enqueue(later("selected").tags(["selected"]))?;
    told.t.client().cancel(cancelled)?;
    told.t.client().select(Query::new().tags(["selected"]))?.cancel()?;
    told.t.advance(secs(6));
    told.t.drain()?;
    told.ended("cancelled", cancelled, Status::Cancelled);
    told.ended("selected", selected, Status::Cancelled);
    told.ended("expired", expired, Status::Expired);
    assert_eq!(told.t.client().cancel(cancelled)?, Cancelled::Already);
    told.deliver()
}

#[test]
fn each_end_of_a_tracked_job_is_told_once() -> jobmill::Result<()> {
    let mut told = Told::new()?;
    let ends = [Status::Completed, Status::Failed, Status::Cancelled, Status::Expired];
    let tracked = |told: &Told, name: &str| {
        let url = told.url(name);
        NewJob::tracked().metadata(&json!({ "to": url })).callback_url(url)
    };
    for status in ends {
        let name = format!("status-{status}");
        let id = told.t.enqueue(tracked(&told, &name))?;
        for passing in [Status::Pending, Status::Running] {
            assert_eq!(told.t.client().update_status(id, passing)?, StatusChange::Applied);
        }
        assert_eq!(told.t.client().deliveries(id)?, []);
        assert_eq!(told.t.client().update_status(id, status)?, StatusChange::Applied);
        assert_ne!(told.t.client().update_status(id, status)?, StatusChange::Applied, "it stands there already");
        told.ended(&name, id, status);

        // All of an update counts for the end that it brings.
        let name = format!("update-{status}");
        let id = told.t.enqueue(NewJob::tracked().metadata(&json!({ "old": 1 })).status(Status::Running))?;
        let url = told.url(&name);
        let update = || JobUpdate::new().metadata(&json!({ "new": 2 })).callback_url(url.as_str()).status(status);
        told.t.client().update(id, update())?;
        told.t.client().update(id, update())?;
        told.ended(&name, id, status);
        assert_eq!(told.ends[&format!("/{name}")].metadata, json!({ "new": 2 }).as_object().cloned());

        let name = format!("begun-{status}");
        let id = told.t.enqueue(tracked(&told, &name).status(status))?;
        told.ended(&name, id, status);
    }

    let client = told.t.client().clone();
    let running = told.t.enqueue(tracked(&told, "cancelled").status(Status::Running))?;
    client.cancel(running)?;
    told.ended("cancelled", running, Status::Cancelled);

    let many = ["many-1", "many-2"].map(|name| tracked(&told, name).status(Status::Failed));
    for (name, enqueued) in ["many-1", "many-2"].into_iter().zip(client.enqueue_many(many)?) {
        told.ended(name, enqueued.id(), Status::Failed);
    }
    let new = tracked(&told, "written").status(Status::Completed);
    let written = client.write(move |tx| -> jobmill::Result<JobId> { Ok(tx.enqueue(new)?.id()) })?;
    told.ended("written", written, Status::Completed);

    let mut conn = client.connection()?;
    let tx = conn.transaction().expect("a transaction");
    client.enqueue_in(&tx, tracked(&told, "undone").status(Status::Completed))?;
    drop(tx);
    let tx = conn.transaction().expect("a transaction");
    let own = client.enqueue_in(&tx, tracked(&told, "own").status(Status::Completed))?.id();
    tx.commit().expect("a commit");
    told.ended("own", own, Status::Completed);

    // From another process, which runs no jobs.
    let elsewhere = Client::open(client.path())?;
    let id = elsewhere.enqueue(tracked(&told, "elsewhere"))?.id();
    elsewhere.update_status(id, Status::Completed)?;
    told.ended("elsewhere", id, Status::Completed);
    told.deliver()
}

#[test]
fn the_body_is_the_documented_one_to_the_letter() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(), Mailbox::answering(200));
    let metadata = json!({ "source_id": "s\u{fc}d", "deep": [1, { "b": null, "a": 0.5 }], "text": "\"\n" });
    let full = t.enqueue(NewJob::of(&Act::Fine).metadata(&metadata).callback_url(mailbox.url("/full")))?;
    let bare = t.enqueue(NewJob::of(&Act::FailsForGood).callback_url(mailbox.url("/bare")))?;
    t.advance(Duration::from_micros(1_500_001));
    t.drain()?;
    let posts = mailbox.take(2);
    for (post, id, status, metadata) in
        [(&posts[0], full, "completed", metadata.to_string()), (&posts[1], bare, "failed", "null".to_owned())]
    {
        let expected = format!(
            r#"{{"job_id":"{id}","status":"{status}","completed_at":"2026-01-01T00:00:01.500001Z","metadata":{metadata}}}"#
        );
        assert_eq!(String::from_utf8_lossy(&post.request.body), expected);
        assert_eq!(post.request.header("content-type"), Some("application/json"));
        assert_eq!(post.id, only_delivery(t.client(), id).id.to_string());
    }
    let long = json!({ "text": "x".repeat(NewJob::MAX_METADATA_BYTES - 11) });
    t.enqueue(NewJob::of(&Act::Fine).metadata(&long).callback_url(mailbox.url("/long")))?;
    t.drain()?;
    assert_eq!(mailbox.only().body["metadata"], long);
    sound(t.client());
    Ok(())
}

#[test]
fn a_job_without_an_address_is_not_told_of() -> jobmill::Result<()> {
    let t = harness();
    let acts = [Act::Fine, Act::FailsForGood, Act::CancelsItself, Act::Completes, Act::CompletesInOwnTransaction];
    t.client().enqueue_many(&acts)?;
    let waiting = t.enqueue(NewJob::of(&Act::Fine).delay(secs(5)).expires_in(secs(1)))?;
    let tracked = t.enqueue(NewJob::tracked())?;
    t.enqueue(NewJob::tracked().status(Status::Failed))?;
    t.client().update_status(tracked, Status::Completed)?;
    t.drain()?;
    t.advance(secs(10));
    t.drain()?;
    t.check(waiting, "expired");
    assert_eq!(own_jobs(t.client()), []);
    assert_eq!(t.client().deliveries(waiting)?, []);
    Ok(())
}

/// Deletion is no end: there is nothing left to tell of, but for what had ended before.
#[test]
fn a_job_that_is_deleted_before_its_end_is_not_told_of() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(), Mailbox::answering(200));
    let waiting = t.enqueue(job(Act::Fine, mailbox.url("/waiting")).delay(secs(5)))?;
    let tracked = t.enqueue(NewJob::tracked().status(Status::Running).callback_url(mailbox.url("/tracked")))?;
    t.client().delete(waiting)?;
    t.client().delete(tracked)?;
    t.drain()?;
    assert_eq!(own_jobs(t.client()), []);
    mailbox.take(0);
    Ok(())
}

#[test]
fn the_address_counts_that_a_job_has_when_it_ends() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(), Mailbox::answering(200));
    let (old, new) = (|| Some(mailbox.url("/old")), || Some(mailbox.url("/new")));
    for elsewhere in [false, true] {
        for (from, to) in [(None, new()), (old(), new()), (old(), None), (old(), old())] {
            let context = format!("from {from:?} to {to:?}, in another process: {elsewhere}");
            let act = if elsewhere { Act::HasUrlSetElsewhere(to.clone()) } else { Act::SetsUrl(to.clone()) };
            let mut running = NewJob::of(&act);
            if let Some(from) = from {
                running = running.callback_url(from);
            }
            let id = t.enqueue(running)?;
            t.drain()?;
            t.check(id, "completed, attempt 1");
            let posts = mailbox.take(usize::from(to.is_some()));
            assert_eq!(posts.first().map(|post| mailbox.url(&post.path)), to, "{context}");
            let told = t.client().deliveries(id)?;
            assert_eq!(told.first().map(|delivery| delivery.url.clone()), to, "{context}");
            assert_eq!(t.client().get(id)?.callback_url, to, "{context}");
        }
    }

    let id = t.enqueue(job(Act::FailsFirst, mailbox.url("/old")))?;
    t.drain()?;
    t.client().update(id, JobUpdate::new().callback_url(mailbox.url("/between").as_str()))?;
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(mailbox.only().path, "/between", "changed between two attempts");
    Ok(())
}

#[test]
fn a_job_that_is_retried_and_ends_again_is_told_of_again() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(), Mailbox::answering(200));
    let id = t.enqueue(job(Act::FailsForGood, mailbox.url("/")))?;
    t.drain()?;
    let first = mailbox.only();
    assert_eq!(first.body, body_of(&t.client().get(id)?));
    for round in 1..=2 {
        t.advance(secs(10));
        t.client().retry(id)?;
        let waiting = t.client().get(id)?;
        assert_eq!(waiting.callback_status_code, Some(200), "what the last callback came to is kept");
        assert_eq!(t.client().deliveries(id)?.len(), round);
        t.drain()?;
        let again = mailbox.only();
        assert_eq!(again.body, body_of(&t.client().get(id)?));
        assert_ne!(again.id, first.id, "it tells something new");
        assert_ne!(again.body["completed_at"], first.body["completed_at"]);
    }
    let ids: Vec<String> = t.client().deliveries(id)?.into_iter().map(|delivery| delivery.message_id).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.is_sorted() && ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
    sound(t.client());
    Ok(())
}

/// An engine with threads, whose deliveries wait.
fn threaded(path: &std::path::Path) -> jobmill::Result<(Engine, Keeper, Mailbox)> {
    let (gate, keeper) = gate();
    let engine = Engine::builder(path).without_callbacks().state(gate).handle(block).start()?;
    Ok((engine, keeper, Mailbox::answering(200)))
}

#[test]
fn a_cancelled_job_that_a_shutdown_cannot_wait_for_is_told_of() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (engine, keeper, mailbox) = threaded(&path)?;
    let enqueue = |name: &str| engine.client().enqueue(Block::job(name).callback_url(mailbox.url("/")));
    let (cancelled, returned) = (enqueue("cancelled")?.id(), enqueue("returned")?.id());
    keeper.next_of(2);
    engine.client().cancel(cancelled)?;
    assert_eq!(engine.shutdown(Duration::ZERO)?.returned, 2);
    let client = Client::open(&path)?;
    assert_eq!(client.get(cancelled)?.status, Status::Cancelled);
    assert_eq!(client.get(returned)?.status, Status::Pending);
    assert_eq!(only_delivery(&client, cancelled).status, Status::Pending);
    assert_eq!(client.deliveries(returned)?, []);
    client.cancel(returned)?;

    let engine = Engine::builder(&path).callbacks(here()).inline()?;
    engine.drain()?;
    let posts: Vec<Value> = mailbox.take(2).into_iter().map(|post| post.body).collect();
    assert_eq!(posts, [body_of(&client.get(cancelled)?), body_of(&client.get(returned)?)]);
    drop(keeper);
    sound(&client);
    Ok(())
}

#[test]
fn a_job_whose_handler_was_abandoned_is_told_of() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let clock = jobmill::testing::ManualClock::default();
    let builder = Engine::builder(&path).clock(clock.clone()).timeout_grace(secs(5)).callbacks(here());
    let engine = builder.state(gate).handle(block).start()?;
    let server = crate::support::http::Server::answering(200);
    let new = Block::job("deaf").timeout(secs(10)).max_attempts(1).callback_url(server.url("/"));
    let id = engine.client().enqueue(new)?.id();
    assert_eq!(keeper.next(), "deaf");
    clock.advance(secs(15));
    let job = engine.client().wait(id, PATIENCE)?;
    assert_eq!(job.status, Status::Failed);
    let post = crate::support::receiver::Post::new(server.next());
    assert_eq!(post.body, body_of(&job));
    // What the handler says now counts no more, for its callback either.
    drop(keeper);
    engine.client().wait(only_delivery(engine.client(), id).id, PATIENCE)?;
    engine.shutdown(PATIENCE)?;
    assert_eq!((server.connections(), own_jobs(engine.client()).len()), (1, 1));
    Ok(())
}

/// What becomes of a call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GoOn {
    /// It is made again.
    Again,
    /// The process dies, and another one calls again.
    Crash,
}

/// A run through the ends that are told, in which one commit fails.
struct Script {
    t: Harness,
    mailbox: Mailbox,
    go_on: GoOn,
    jobs: BTreeMap<&'static str, JobId>,
}

impl Script {
    fn new(go_on: GoOn) -> Self {
        let t = with_hands(|builder| describe(builder).retention(Retention::FOREVER)).expect("an engine");
        // The first try of each callback is refused, by its id.
        let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
        let mailbox = Mailbox::start(move |_, connection| {
            let Some(request) = connection.request() else { return };
            let id = request.header("webhook-id").expect("an id").to_owned();
            let first = seen.lock().expect("no panic").insert(id);
            connection.answer(if first { 503 } else { 200 }, &[], "");
        });
        Self { t, mailbox, go_on, jobs: BTreeMap::new() }
    }

    /// Calls until it succeeds. Whatever fails: an end and its callback are there together or not at all.
    #[track_caller]
    fn insist<R>(&mut self, call: impl Fn(&mut Harness) -> jobmill::Result<R>) -> R {
        for _ in 0..5 {
            match call(&mut self.t) {
                Ok(done) => return done,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
                    self.each_end_has_its_delivery();
                    if self.go_on == GoOn::Crash {
                        while self.t.crash().is_err() {}
                        self.each_end_has_its_delivery();
                    }
                }
            }
        }
        panic!("one fault fails call after call");
    }

    #[track_caller]
    fn each_end_has_its_delivery(&self) {
        let client = Client::open(self.t.path()).expect("a client");
        for job in client.jobs(Query::new()).expect("a query") {
            let job = job.expect("a job");
            let told = client.deliveries(job.id).expect("a job").len();
            let tells = job.callback_url.is_some() && job.status.is_terminal();
            assert_eq!(told, usize::from(tells), "{job:?}");
        }
    }

    fn run(&mut self) {
        let url = |name: &str| self.mailbox.url(&format!("/{name}"));
        let acts = [
            ("fine", job(Act::Fine, url("fine"))),
            ("fails", job(Act::FailsEachTime, url("fails"))),
            ("is-cancelled", job(Act::IsCancelled, url("is-cancelled"))),
            ("completes", job(Act::Completes, url("completes"))),
            ("in-own-transaction", job(Act::CompletesInOwnTransaction, url("in-own-transaction"))),
            ("expires", job(Act::Fine, url("expires")).delay(secs(9)).expires_in(secs(5))),
            ("tracked", NewJob::tracked().callback_url(url("tracked"))),
            ("begun", NewJob::tracked().status(Status::Failed).callback_url(url("begun"))),
        ];
        for (name, new) in acts {
            // What was enqueued unheard is found again.
            let new = new.unique(Unique::key(name).while_in(Status::ALL));
            let id = self.insist(|t| t.enqueue(new.clone()));
            self.jobs.insert(name, id);
        }
        self.insist(|t| t.drain());
        let tracked = self.jobs["tracked"];
        self.insist(|t| t.client().update_status(tracked, Status::Completed));
        for _ in 0..20 {
            self.t.advance(secs(10));
            self.insist(|t| t.drain());
        }
        if self.t.client().stats().expect("the counts").total.running > 0 {
            // A claim that went unheard is taken back when the engine ends.
            self.insist(Harness::restart);
            for _ in 0..20 {
                self.t.advance(secs(10));
                self.insist(|t| t.drain());
            }
        }
    }

    /// Each end was accepted once at least, and every repeat bore the same id and body.
    fn check(&self, context: &str) -> usize {
        sound(self.t.client());
        self.each_end_has_its_delivery();
        let posts = self.mailbox.take_all();
        assert_eq!(posts.len(), self.jobs.len(), "{context}: {:?}", posts.keys());
        let mut tries = 0;
        for (name, id) in &self.jobs {
            let job = self.t.client().get(*id).expect("a job");
            assert!(job.status.is_terminal(), "{context}: {name} is {}", job.status);
            assert_eq!((job.callback_status_code, &job.callback_error), (Some(200), &None), "{context}: {name}");
            let delivery = only_delivery(self.t.client(), *id);
            assert_eq!((delivery.status, delivery.status_code), (Status::Completed, Some(200)), "{context}: {name}");
            let came = &posts[&format!("/{name}")];
            assert!(came.len() >= 2, "{context}: {name} came {} times", came.len());
            for post in came {
                assert_eq!((&post.id, &post.body), (&delivery.message_id, &body_of(&job)), "{context}: {name}");
            }
            tries += came.len();
        }
        assert_eq!(own_jobs(self.t.client()).len(), self.jobs.len(), "{context}");
        tries
    }
}

fn every_commit_fails_once(fault: Fault, go_on: GoOn) {
    let mut undisturbed = Script::new(go_on);
    undisturbed.run();
    assert_eq!(undisturbed.check("undisturbed"), 2 * undisturbed.jobs.len());
    for n in 1.. {
        let mut script = Script::new(go_on);
        let before = script.t.faults().commits();
        script.t.faults().fail(n, fault);
        script.run();
        let context = format!("{fault:?} the commit {n}, then {go_on:?}");
        if script.t.faults().commits() < before + n {
            assert!(n > 15, "the script commits far more often than {n} times");
            return;
        }
        let tries = script.check(&context);
        if (fault, go_on) == (Fault::Before, GoOn::Again) {
            // What came of a callback waits in memory until it can be written.
            assert_eq!(tries, 2 * script.jobs.len(), "{context}: none is sent more often for it");
        }
    }
}

/// A callback that had been accepted was sent again if what came of it could not be written at once.
#[test]
fn callbacks_survive_every_commit_that_fails_once_and_is_tried_again() {
    every_commit_fails_once(Fault::Before, GoOn::Again);
}

#[test]
fn callbacks_survive_every_commit_at_which_the_process_dies() {
    every_commit_fails_once(Fault::Before, GoOn::Crash);
}

#[test]
fn callbacks_survive_every_commit_that_goes_unheard_and_is_tried_again() {
    every_commit_fails_once(Fault::After, GoOn::Again);
}

#[test]
fn callbacks_survive_every_commit_that_goes_unheard_as_the_process_dies() {
    every_commit_fails_once(Fault::After, GoOn::Crash);
}

#[test]
fn a_process_that_dies_between_an_end_and_its_callback_leaves_it_to_the_next() -> jobmill::Result<()> {
    let (mut t, mailbox) = (harness(), Mailbox::answering(200));
    t.client().pause("system")?;
    let id = t.enqueue(job(Act::Fine, mailbox.url("/")))?;
    t.drain()?;
    let ended = t.client().get(id)?;
    t.crash()?;
    mailbox.take(0);
    t.client().resume("system")?;
    t.advance(secs(100));
    t.drain()?;
    let post = mailbox.only();
    assert_eq!(post.body, body_of(&ended), "as it stood then");
    assert_eq!(t.client().get(id)?.callback_sent_at, Some(now(&t)));
    sound(t.client());
    Ok(())
}

#[test]
fn a_process_that_dies_before_it_knows_of_the_answer_sends_it_again() -> jobmill::Result<()> {
    let (mut t, mailbox) = (harness(), Mailbox::answering(200));
    let id = t.enqueue(job(Act::Fine, mailbox.url("/")))?;
    // The claims of the job and of its delivery are written, and nothing after that.
    t.faults().fail_from(3, Fault::Before);
    assert!(t.drain().is_err());
    t.faults().heal();
    let first = mailbox.only();
    assert_eq!(t.client().get(id)?.callback_sent_at, None);
    t.crash()?;
    t.drain()?;
    let second = mailbox.only();
    assert_eq!((&second.id, &second.body), (&first.id, &first.body));
    let delivery = only_delivery(t.client(), id);
    assert_eq!((delivery.status, delivery.attempts.len()), (Status::Completed, 2));
    until("the books are right", || t.client().verify().is_ok_and(|wrong| wrong.is_empty()));
    Ok(())
}
