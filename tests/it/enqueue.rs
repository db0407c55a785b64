//! Jobs come in: one, many, with options, in transactions of ours and of the application's own.

use std::collections::HashSet;
use std::time::Duration;

use jobmill::provider::{Finish, ItemOutcome, Outgoing, ResultLine};
use jobmill::rusqlite::{Connection, TransactionBehavior};
use jobmill::testing::{Fault, Harness};
use jobmill::{
    Backoff, BatchItem, Client, Context, Engine, Enqueued, ErrorKind, Failure, JobUpdate, NewJob, Payload, Priority,
    Schedule, Status, Step, Timestamp, Unique, Usage,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::{Echo, Other, PATIENCE, echo, file, now, other, query, refused, secs, sound, tamper};

fn plain() -> jobmill::Result<Harness> {
    Harness::new(|builder| builder.handle(echo).handle(other))
}

#[test]
fn every_option_is_kept() -> jobmill::Result<()> {
    let t = plain()?;
    let at = now(&t);
    let metadata = json!({ "source_id": "s-1", "nested": { "list": [1, null, "ü"] } });
    let id = t.enqueue(
        Echo::job("x")
            .queue("mail")
            .priority(Priority::High)
            .delay(secs(60))
            .expires_in(secs(90))
            .max_attempts(3)
            .backoff(Backoff::fixed(secs(1)))
            .timeout(Duration::from_micros(1))
            .user("user-1")
            .agent("agent-1")
            .tags(["b", "a"])
            .metadata(&metadata)
            .unique(Unique::key("k")),
    )?;
    let job = t.client().get(id)?;
    assert_eq!((job.kind.as_deref(), job.queue.as_str(), job.priority), (Some("echo"), "mail", Priority::High));
    assert_eq!((job.status, job.attempt, job.max_attempts), (Status::Pending, 0, 3));
    assert_eq!((job.created_at(), job.run_at), (at, at.saturating_add(secs(60))));
    assert_eq!((job.expires_at, job.timeout), (Some(at.saturating_add(secs(90))), Some(Duration::from_micros(1))));
    assert_eq!((job.user_id.as_deref(), job.agent_id.as_deref()), (Some("user-1"), Some("agent-1")));
    assert_eq!(job.tags, ["b", "a"]);
    assert_eq!(job.metadata.clone().map(serde_json::Value::Object), Some(metadata));
    assert!(job.unique_key.as_ref().is_some_and(|key| key.contains('k')));
    assert_eq!(job.payload::<Echo>()?, Echo("x".into()));
    Ok(())
}

#[test]
fn a_job_without_options_has_the_documented_ones() -> jobmill::Result<()> {
    let t = plain()?;
    let job = t.client().get(t.enqueue(&Other(1))?)?;
    assert_eq!((job.queue.as_str(), job.priority, job.max_attempts), ("default", Priority::Default, 10));
    assert_eq!((job.run_at, job.expires_at, job.timeout), (now(&t), None, None));
    assert_eq!((job.user_id, job.agent_id, job.unique_key, job.metadata), (None, None, None, None));
    assert_eq!((job.tags, job.progress, job.ttft, job.result, job.error), (vec![], None, None, None, None));
    Ok(())
}

#[test]
fn a_payload_type_sets_defaults_that_its_enqueueing_may_change() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Mail;
    impl Payload for Mail {
        const KIND: &'static str = "mail";

        fn defaults(job: NewJob) -> NewJob {
            job.queue("outbox").priority(Priority::Low).max_attempts(2).tags(["mail"])
        }
    }
    let t = plain()?;
    let by_reference = t.client().get(t.enqueue(&Mail)?)?;
    let changed = t.client().get(t.enqueue(NewJob::of(&Mail).priority(Priority::Critical))?)?;
    for (job, priority) in [(by_reference, Priority::Low), (changed, Priority::Critical)] {
        assert_eq!((job.queue.as_str(), job.max_attempts, job.priority), ("outbox", 2, priority));
        assert_eq!(job.tags, ["mail"]);
        assert_eq!(job.payload, b"null");
    }
    Ok(())
}

#[test]
fn a_delayed_job_runs_when_its_time_has_come() -> jobmill::Result<()> {
    let t = plain()?;
    let delayed = t.enqueue(Echo::job("").delay(secs(10)))?;
    let at = t.enqueue(Echo::job("").run_at(now(&t).saturating_add(secs(20))))?;
    let at_once = t.enqueue(Echo::job("").delay(Duration::ZERO))?;
    assert_eq!(t.drain()?, 1);
    t.check(at_once, "completed, attempt 1");
    t.check(delayed, "pending, due in 10s");
    t.advance(secs(10) - Duration::from_micros(1));
    assert_eq!(t.drain()?, 0);
    t.advance(Duration::from_micros(1));
    assert_eq!(t.drain()?, 1);
    t.check(delayed, "completed, attempt 1");
    t.check(at, "pending, due in 10s");
    t.advance(secs(10));
    assert_eq!(t.drain()?, 1);
    t.check(at, "completed, attempt 1");
    Ok(())
}

#[test]
fn a_run_at_that_has_passed_goes_before_those_that_came_since() -> jobmill::Result<()> {
    let t = plain()?;
    let early = t.enqueue(Echo::job("early"))?;
    let ancient = t.enqueue(Echo::job("ancient").run_at(Timestamp::EPOCH))?;
    let before = t.enqueue(Echo::job("before").run_at(now(&t).saturating_sub(secs(1))))?;
    t.drain()?;
    assert_eq!(t.client().get(ancient)?.run_at, Timestamp::EPOCH);
    for id in [early, ancient, before] {
        t.check(id, "completed, attempt 1");
    }
    Ok(())
}

#[test]
fn a_job_that_has_not_begun_in_time_expires() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Echo, _: &Context| -> Result<(), Failure> {
            if job.0 == "fails" { Err(Failure::retry_after(secs(30), "no")) } else { Ok(()) }
        })
    })?;
    let in_time = t.enqueue(Echo::job("").expires_in(secs(10)))?;
    let fails = t.enqueue(Echo::job("fails").expires_in(secs(10)))?;
    t.drain()?;
    let late = t.enqueue(Echo::job("").expires_in(secs(10)))?;
    let later = t.enqueue(Echo::job("").delay(secs(60)).expires_at(now(&t).saturating_add(secs(10))))?;
    let foreign = t.enqueue(NewJob::json("unknown", &1).expires_in(secs(10)))?;
    let passed = t.enqueue(Echo::job("").expires_at(now(&t).saturating_sub(secs(1))))?;
    t.check(passed, "expired");
    t.advance(secs(10) - Duration::from_micros(1));
    t.client().pause("default")?;
    t.drain()?;
    t.check(late, "pending");
    t.advance(Duration::from_micros(1));
    t.client().resume("default")?;
    assert_eq!(t.drain()?, 0);
    t.check(in_time, "completed, attempt 1");
    for id in [fails, late, later, foreign] {
        t.check(id, "expired");
        assert_eq!(t.client().get(id)?.completed_at, Some(now(&t)));
    }
    assert_eq!(t.client().attempts(fails)?.len(), 1, "its failed attempt is told");
    assert_eq!(t.client().get(fails)?.error.as_deref(), Some("no"));
    sound(t.client());
    Ok(())
}

#[test]
fn many_jobs_come_in_together_and_in_order() -> jobmill::Result<()> {
    let t = plain()?;
    let before = t.faults().commits();
    let ids: Vec<_> =
        t.client().enqueue_many((0..3000).map(|n| Echo::job(n.to_string())))?.into_iter().map(Enqueued::id).collect();
    assert_eq!(t.faults().commits() - before, 1, "one transaction");
    assert!(ids.is_sorted_by(|a, b| a < b), "ids grow in the order of the call, beyond a microsecond's thousand");
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(t.client().get(*id)?.payload::<Echo>()?.0, n.to_string());
    }
    assert!(t.client().enqueue_many(Vec::<NewJob>::new())?.is_empty());
    assert_eq!(t.drain()?, 3000);
    sound(t.client());
    Ok(())
}

#[test]
fn of_many_jobs_none_comes_in_if_one_is_refused() -> jobmill::Result<()> {
    let t = plain()?;
    let jobs = || (0..9).map(|n| Echo::job(n.to_string()));
    let bad = jobs().chain([Echo::job("").max_attempts(0)]);
    refused(t.client().enqueue_many(bad), ErrorKind::Invalid, "jobs[9]: max_attempts: must be from 1 to");
    let unknown = jobs().chain([Echo::job("").limit("unset")]);
    refused(t.client().enqueue_many(unknown), ErrorKind::Invalid, "jobs[9]: limit: there is no limit \"unset\"");
    assert_eq!(t.client().stats()?.total.total(), 0);
    t.faults().fail(1, Fault::Before);
    refused(t.client().enqueue_many(jobs()), ErrorKind::Storage, "injected fault");
    assert_eq!(t.client().stats()?.total.total(), 0);
    assert_eq!(t.client().enqueue_many(jobs())?.len(), 9, "the next one goes through");
    assert_eq!(t.drain()?, 9);
    sound(t.client());
    Ok(())
}

#[test]
fn threads_enqueue_at_once_and_each_sees_its_ids_grow() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(path).handle(other).start()?;
    let client = engine.client();
    let enqueue_some = |thread: u64| {
        let ids: Vec<_> =
            (0..50).map(|n| client.enqueue(&Other(thread * 50 + n)).expect("it is enqueued").id()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        ids
    };
    let ids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || enqueue_some(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 400);
    let mut sum = 0;
    for id in ids {
        sum += client.wait(id, PATIENCE)?.result::<u64>()?;
    }
    assert_eq!(sum, (0..400).sum::<u64>(), "each ran with its own payload");
    engine.shutdown(secs(5))?;
    sound(client);
    Ok(())
}

#[test]
fn a_job_in_the_applications_own_transaction_comes_with_its_commit() -> jobmill::Result<()> {
    let t = plain()?;
    tamper(t.client(), "CREATE TABLE customer (name TEXT)");
    let mut conn = t.client().connection()?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).expect("a transaction");
    tx.execute("INSERT INTO customer VALUES ('Ada')", []).expect("a row");
    let first = t.client().enqueue_in(&tx, &Echo("first".into()))?;
    let delayed = t.client().enqueue_in(&tx, Echo::job("later").delay(secs(5)).tags(["x"]).queue("q"))?;
    let keyed = || Echo::job("unique").unique(Unique::key("k"));
    let unique = t.client().enqueue_in(&tx, keyed())?;
    assert_eq!(t.client().enqueue_in(&tx, keyed())?, Enqueued::Existing(unique.id()));
    refused(t.client().get(first.id()), ErrorKind::NotFound, "there is no job");
    assert!(first.is_new() && first.id() < delayed.id() && delayed.id() < unique.id());
    tx.commit().expect("a commit");
    assert_eq!(t.drain()?, 2);
    t.check(first.id(), "completed, attempt 1");
    t.check(delayed.id(), "pending, due in 5s");
    t.advance(secs(5));
    assert_eq!(t.drain()?, 1);
    assert!(t.enqueue(&Echo("next".into()))? > unique.id(), "our own ids go on behind");
    sound(t.client());
    Ok(())
}

#[test]
fn a_job_in_the_applications_own_transaction_goes_with_its_rollback() -> jobmill::Result<()> {
    let t = plain()?;
    let mut conn = t.client().connection()?;
    for _ in 0..2 {
        let tx = conn.transaction().expect("a transaction");
        t.client().enqueue_in(&tx, Echo::job("x").queue("never seen").unique(Unique::key("k")))?;
        tx.rollback().expect("a rollback");
    }
    assert_eq!(t.drain()?, 0);
    assert_eq!(t.client().stats()?.total.total(), 0);
    let tx = conn.transaction().expect("a transaction");
    refused(t.client().enqueue_in(&tx, Echo::job("x").queue("")), ErrorKind::Invalid, "queue: ");
    tx.commit().expect("a commit");
    assert!(t.client().enqueue(Echo::job("x").unique(Unique::key("k")))?.is_new());
    sound(t.client());
    Ok(())
}

#[test]
fn a_transaction_on_another_file_is_an_error() -> jobmill::Result<()> {
    let t = plain()?;
    let mut elsewhere = Connection::open_in_memory().expect("a database");
    let tx = elsewhere.transaction().expect("a transaction");
    refused(t.client().enqueue_in(&tx, Echo::job("x")), ErrorKind::Storage, "cannot enqueue: no such table");
    Ok(())
}

#[test]
fn the_engine_notices_a_commit_of_the_applications_by_itself() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).start()?;
    for n in 0..20 {
        // By the engine's own client, and by one that knows of no engine.
        let client = if n % 2 == 0 { engine.client().clone() } else { Client::open(&path)? };
        let mut conn = client.connection()?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).expect("a transaction");
        let id = client.enqueue_in(&tx, Echo::job(n.to_string()))?.id();
        tx.commit().expect("a commit");
        assert_eq!(client.wait(id, PATIENCE)?.result::<String>()?, n.to_string());
    }
    Ok(())
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

fn customers(client: &Client) -> i64 {
    query(client, "SELECT count(*) FROM customer")
}

#[test]
fn a_closure_writes_together_with_its_jobs() -> jobmill::Result<()> {
    let t = plain()?;
    let ids = t.client().write(|tx| -> Result<_, Boxed> {
        tx.execute("CREATE TABLE customer (name TEXT)", [])?;
        tx.execute("INSERT INTO customer VALUES (?1)", ["Ada"])?;
        let ids = [tx.enqueue(&Echo("Ada".into()))?.id(), tx.enqueue(&Other(1))?.id()];
        let seen: i64 = tx.query_row("SELECT count(*) FROM customer", [], |row| row.get(0))?;
        assert_eq!(seen, 1);
        assert!(tx.enqueue(NewJob::json("", &1)).is_err(), "a refused one spoils nothing");
        Ok(ids)
    });
    let ids = ids.map_err(|error| error.to_string()).expect("it is written");
    assert_eq!(customers(t.client()), 1);
    assert_eq!(t.drain()?, 2);
    for id in ids {
        t.check(id, "completed, attempt 1");
    }
    sound(t.client());
    Ok(())
}

#[test]
fn an_error_of_a_closure_undoes_all_that_it_wrote() -> jobmill::Result<()> {
    let t = plain()?;
    tamper(t.client(), "CREATE TABLE customer (name TEXT)");
    let kept = t.enqueue(Echo::job("kept").unique(Unique::key("kept")))?;
    let result = t.client().write(|tx| -> Result<(), Boxed> {
        tx.execute("INSERT INTO customer VALUES ('Ada')", [])?;
        tx.enqueue(Echo::job("lost").queue("never seen").tags(["lost"]).unique(Unique::key("lost")))?;
        tx.enqueue(Echo::job("lost").expires_in(secs(1)).delay(secs(1)))?;
        Err("no".into())
    });
    assert_eq!(result.map_err(|error| error.to_string()), Err("no".to_owned()));
    assert_eq!(customers(t.client()), 0);
    let stats = t.client().stats()?;
    assert_eq!((stats.total.total(), stats.queues.len()), (1, 1));
    assert!(t.client().enqueue(Echo::job("x").unique(Unique::key("lost")))?.is_new(), "the key is free");
    assert!(!t.client().enqueue(Echo::job("x").unique(Unique::key("kept")))?.is_new());
    assert_eq!(t.drain()?, 2);
    t.check(kept, "completed, attempt 1");
    sound(t.client());
    Ok(())
}

#[test]
fn a_panic_of_a_closure_reaches_its_caller_and_undoes_all() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).start()?;
    let inline = plain()?;
    for client in [engine.client(), inline.client()] {
        tamper(client, "CREATE TABLE customer (name TEXT)");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            client.write(|tx| -> Result<(), Boxed> {
                tx.execute("INSERT INTO customer VALUES ('Ada')", [])?;
                tx.enqueue(&Echo("lost".into()))?;
                std::panic::resume_unwind(Box::new("oh no"))
            })
        }));
        let message = panicked.err().and_then(|panic| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        assert_eq!(message.as_deref(), Some("oh no"));
        assert_eq!(customers(client), 0);
        assert_eq!(client.stats()?.total.total(), 0);
        assert!(client.enqueue(&Echo("next".into()))?.is_new(), "the engine goes on");
        sound(client);
    }
    Ok(())
}

#[test]
fn payloads_of_every_length_come_back_as_they_were() -> jobmill::Result<()> {
    let t = plain()?;
    let client = t.client();
    // Two quotes are part of the text, and 3000 bytes is the longest that stays in the job's own row.
    let around = (2990..3010).chain([4090, 4096, 65_536, 1 << 20, NewJob::MAX_PAYLOAD_BYTES - 2]);
    for length in [0, 1, 2, 255].into_iter().chain(around) {
        let text = "ß".repeat(length / 2) + &"x".repeat(length % 2);
        let id = client.enqueue(&Echo(text.clone()))?.id();
        let mut conn = client.connection()?;
        let tx = conn.transaction().expect("a transaction");
        let own = client.enqueue_in(&tx, &Echo(text.clone()))?.id();
        tx.commit().expect("a commit");
        for id in [id, own] {
            assert_eq!(client.get(id)?.payload.len(), length + 2);
            assert!(client.get(id)?.payload::<Echo>()?.0 == text, "{length}");
            assert!(
                client.list(jobmill::Query::new().limit(2))?.jobs.iter().all(|job| job.payload.len() == length + 2)
            );
        }
        t.drain()?;
        for id in [id, own] {
            assert!(client.get(id)?.result::<String>()? == text, "the handler got it whole: {length}");
        }
    }
    let too_long = Echo("x".repeat(NewJob::MAX_PAYLOAD_BYTES - 1));
    refused(client.enqueue(&too_long), ErrorKind::Invalid, "payload: must be no longer than 16777216 bytes");
    sound(client);
    Ok(())
}

/// A job that expires at the moment of its enqueueing was forgotten while its queue was paused.
#[test]
fn a_job_may_expire_at_once() -> jobmill::Result<()> {
    let t = plain()?;
    t.client().pause("default")?;
    t.drain()?;
    let id = t.enqueue(Echo::job("").expires_in(Duration::ZERO))?;
    t.drain()?;
    t.check(id, "expired");
    Ok(())
}

/// A drain expired 200 jobs and left the others pending.
#[test]
fn any_number_of_jobs_may_expire_at_the_same_time() -> jobmill::Result<()> {
    let t = plain()?;
    t.client().enqueue_many((0..501).map(|n| NewJob::json("unknown", &n).expires_in(secs(1))))?;
    t.advance(secs(1));
    assert_eq!(t.drain()?, 0);
    let total = t.client().stats()?.total;
    assert_eq!((total.expired, total.pending), (501, 0));
    sound(t.client());
    Ok(())
}

/// A turn that failed had made a lane, whose number another process then gave to a lane of its own: its jobs ran under
/// the wrong kind.
#[test]
fn a_lane_of_a_failed_turn_is_forgotten() -> jobmill::Result<()> {
    let t = plain()?;
    t.faults().fail(1, Fault::Before);
    refused(t.client().enqueue(Echo::job("lost").queue("mine")), ErrorKind::Storage, "injected fault");
    let id = Client::open(t.path())?.enqueue(NewJob::of(&Other(7)).queue("theirs").priority(Priority::Low))?.id();
    t.drain()?;
    t.check(id, "completed, attempt 1");
    let id = t.enqueue(Echo::job("again").queue("mine"))?;
    t.drain()?;
    let job = t.client().get(id)?;
    assert_eq!((job.kind.as_deref(), job.queue.as_str(), job.status), (Some("echo"), "mine", Status::Completed));
    sound(t.client());
    Ok(())
}

#[test]
fn a_closure_must_leave_its_transaction_to_us() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).start()?;
    let inline = plain()?;
    for client in [engine.client(), inline.client()] {
        for end in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN IMMEDIATE"] {
            let result = client.write(move |tx| -> jobmill::Result<()> {
                tx.enqueue(&Echo("x".into()))?;
                let _ = tx.execute_batch(end);
                Ok(())
            });
            assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::Storage), "{end}");
            assert!(client.enqueue(&Echo(end.into()))?.is_new(), "the engine goes on after {end}");
            sound(client);
        }
    }
    let id = engine.client().enqueue(&Echo("last".into()))?.id();
    assert_eq!(engine.client().wait(id, PATIENCE)?.status, Status::Completed);
    Ok(())
}

/// A closure that enqueued by a client, and not by its transaction, waited for the very turn in which it ran.
#[test]
fn a_closure_that_calls_the_client_is_told_so_instead_of_waiting_for_itself() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).start()?;
    let inline = plain()?;
    for client in [engine.client(), inline.client()] {
        let inner = client.clone();
        let result = client.write(move |tx| -> jobmill::Result<()> {
            tx.enqueue(&Echo("x".into()))?;
            assert_eq!(inner.stats()?.total.total(), 0, "reading is free");
            inner.enqueue(&Echo("y".into())).map(drop)
        });
        refused(result, ErrorKind::Conflict, "a closure that writes");
        assert_eq!(client.stats()?.total.total(), 0);
        // A client of another file is nobody's business.
        let (_directory, other_path) = file();
        let elsewhere = Client::open(other_path)?;
        client.write(move |_| -> jobmill::Result<()> { elsewhere.enqueue(&Echo("z".into())).map(drop) })?;
    }
    Ok(())
}

#[test]
fn debug_lines_tell_how_much_an_application_has_handed_in_and_not_what() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(|job: Echo, _: &Context| Ok(job.0)))?;
    let secret = "hunter2";
    let job = || Echo::job(secret);
    let schedule = Schedule::every("s", secs(60), job());
    let record = t.client().schedule_by_id(t.client().schedule(&schedule)?.id())?;
    let id = t.enqueue(job())?;
    t.drain()?;
    let done = t.client().get(id)?;
    assert_eq!(done.result::<String>()?, secret);
    let body = serde_json::value::to_raw_value(&secret).expect("JSON");
    let outgoing = Outgoing::new("id", "", "", &body);
    let outcome = ItemOutcome::Succeeded { reply: body.clone(), finish: Finish::Stop, usage: Usage::default() };
    let line = ResultLine::unreadable(secret, "it is no JSON");
    let lines = [
        format!("{:?}", job()),
        format!("{schedule:?}"),
        format!("{record:?}"),
        format!("{done:?}"),
        format!("{:?}", JobUpdate::new().result(&secret)),
        format!("{:?}", BatchItem::new(&secret).state(&secret)),
        format!("{:?}", Step::request(json!(secret))),
        format!("{:?}", Step::DoneWith(json!(secret))),
        format!("{outgoing:?}"),
        format!("{outcome:?}"),
        format!("{line:?}"),
    ];
    let as_numbers = format!("{:?}", secret.as_bytes());
    let as_numbers = as_numbers.trim_matches(['[', ']']);
    for line in lines {
        assert!(!line.contains(secret) && !line.contains(as_numbers), "{line}");
        assert!(line.contains(" bytes"), "{line}");
    }
    assert!(format!("{:?}", job()).contains("payload: 9 bytes"), "{:?}", job());
    assert!(format!("{done:?}").ends_with("payload: 9 bytes, result: 9 bytes }"), "{done:?}");
    Ok(())
}
