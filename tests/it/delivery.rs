//! How callbacks are delivered: how often, to whom, signed with what, beside which other work.

use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use jobmill::testing::{Fault, Harness};
use jobmill::{
    Action, AttemptOutcome, Backoff, Callbacks, Client, Context, Deleted, Durability, Engine, ErrorKind, Failure, Job,
    JobId, JobUpdate, NewJob, Payload, Query, Retention, Status, Workers,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::http::{CLOSED_PORT, Connection, Server, answer};
use crate::support::receiver::{Mailbox, Post, body_of, here, only_delivery, own_jobs};
use crate::support::{Block, Echo, PATIENCE, block, echo, file, gate, now, query, refused, secs, sound, until};

const KEY: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW_KEY: &str = "C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A harness with these callbacks.
fn harness(callbacks: Callbacks) -> Harness {
    let describe = move |builder: jobmill::EngineBuilder| {
        builder.callbacks(callbacks.clone()).durability(Durability::Normal).handle(echo)
    };
    Harness::new(describe).expect("an engine")
}

/// Records a job that has ended and tells it to this address.
fn ended(client: &Client, url: impl Into<String>) -> jobmill::Result<JobId> {
    let new = NewJob::tracked().status(Status::Completed).metadata(&json!({ "n": 1 })).callback_url(url);
    Ok(client.enqueue(new)?.id())
}

/// The job as it would stand had nobody been told of it.
fn untold(job: Job) -> Job {
    let mut job = job;
    (job.callback_sent_at, job.callback_status_code, job.callback_error) = (None, None, None);
    job
}

fn secret(key: &str) -> String {
    format!("whsec_{key}")
}

#[test]
fn a_callback_is_tried_until_it_is_accepted_and_its_job_tells_of_the_last_try() -> jobmill::Result<()> {
    let t = harness(here().backoff(Backoff::exponential(secs(10)).jitter(0.0)));
    let answers: [(u16, Option<&str>, u64); 5] =
        [(500, Some("3"), 10), (429, Some("33"), 33), (503, None, 40), (408, None, 80), (202, Some("5"), 0)];
    let mailbox = Mailbox::start(move |number, connection| {
        let (status, retry_after, _) = answers[number];
        let headers: Vec<_> = retry_after.map(|wait| ("Retry-After", wait)).into_iter().collect();
        connection.reply(status, &headers, "a secret of the receiver's");
    });
    let id = t.enqueue(Echo::job("x").callback_url(mailbox.url("/")).metadata(&json!({ "n": 1 })))?;
    t.client().pause("system")?;
    t.drain()?;
    let (before, history) = (t.client().get(id)?, t.client().history(id)?);
    t.client().resume("system")?;
    let (mut ids, mut tries) = (Vec::new(), Vec::new());
    for (number, (status, _, wait_s)) in answers.into_iter().enumerate() {
        assert_eq!(t.drain()?, 1);
        let post = mailbox.only();
        assert_eq!(post.body, body_of(&before), "as it stood at its end");
        ids.push(post.id);
        let accepted = status == 202;
        let error = (!accepted).then(|| format!("the receiver answered {status}"));
        tries.push((number as u32 + 1, now(&t), error.clone()));

        let job = t.client().get(id)?;
        assert_eq!((job.callback_sent_at, job.callback_status_code), (Some(now(&t)), Some(status)));
        assert_eq!(job.callback_error, error);
        assert_eq!(untold(job), before, "it is not changed otherwise");
        assert_eq!(t.client().history(id)?, history);

        let delivery = only_delivery(t.client(), id);
        assert_eq!(delivery.message_id, ids[0], "repeats bear the same id");
        assert_eq!(delivery.status_code, accepted.then_some(202));
        let told = delivery.attempts.iter().map(|attempt| (attempt.number, attempt.started_at, attempt.error.clone()));
        assert_eq!(told.collect::<Vec<_>>(), tries);
        let stands = if accepted {
            format!("completed, attempt {}", number + 1)
        } else {
            format!("pending, attempt {} failed: the receiver answered {status}, due in {wait_s}s", number + 1)
        };
        t.check(delivery.id, &stands);
        t.advance(secs(wait_s).saturating_sub(Duration::from_micros(1)));
        assert_eq!(t.drain()?, 0, "its time has not come");
        t.advance(Duration::from_micros(1));
    }
    t.advance(secs(100_000));
    assert_eq!(t.drain()?, 0);
    mailbox.take(0);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    sound(t.client());
    Ok(())
}

#[test]
fn a_callback_that_nobody_takes_fails_after_its_attempts() -> jobmill::Result<()> {
    let t = harness(here().max_attempts(4).backoff(Backoff::fixed(secs(5))));
    let id = ended(t.client(), format!("http://{CLOSED_PORT}/"))?;
    let before = t.client().get(id)?;
    for attempt in 1..=4 {
        assert_eq!(t.drain()?, 1);
        let job = t.client().get(id)?;
        assert_eq!(job.callback_error.as_deref(), Some("the connection was refused"));
        assert_eq!((job.callback_sent_at, job.callback_status_code), (Some(now(&t)), None));
        assert_eq!(only_delivery(t.client(), id).attempts.len(), attempt);
        t.advance(secs(5));
    }
    let delivery = only_delivery(t.client(), id);
    t.check(delivery.id, "failed, attempt 4: the connection was refused");
    assert!(delivery.attempts.iter().all(|attempt| attempt.outcome == AttemptOutcome::Failed));
    t.advance(secs(100_000));
    assert_eq!(t.drain()?, 0);
    assert_eq!(untold(t.client().get(id)?), before);

    // An operator may try it once more.
    t.client().retry(delivery.id)?;
    assert_eq!(t.drain()?, 1);
    t.check(delivery.id, "failed, attempt 5: the connection was refused");
    sound(t.client());
    Ok(())
}

/// The waits of the documentation: 5 s, doubled each time up to an hour, with a jitter of a fifth, 16 attempts.
#[test]
fn the_defaults_are_those_of_the_documentation() -> jobmill::Result<()> {
    let t = harness(Callbacks::new().allow_private_addresses());
    let id = ended(t.client(), format!("http://{CLOSED_PORT}/"))?;
    t.drain()?;
    let delivery = only_delivery(t.client(), id).id;
    for attempt in 1..16 {
        let due = t.client().get(delivery)?.run_at.since(now(&t)).as_secs_f64();
        let plain = (5.0 * f64::from(1 << (attempt - 1))).min(3600.0);
        assert!((0.8 * plain..=(1.2 * plain).min(3600.0)).contains(&due), "{due} s after attempt {attempt}");
        t.advance(secs(3600));
        assert_eq!(t.drain()?, 1);
    }
    t.check(delivery, "failed, attempt 16: the connection was refused");
    Ok(())
}

#[test]
fn every_way_to_answer_badly_is_told_and_worth_another_try_or_not() -> jobmill::Result<()> {
    let trap = Server::answering(200);
    let elsewhere = trap.url("/trap");
    let redirect = move |_: usize, connection: &mut Connection| {
        connection.reply(307, &[("Location", elsewhere.as_str())], "");
    };
    let short = Duration::from_millis(200);
    let step = Duration::from_millis(10);
    let slow_head = move |_: usize, connection: &mut Connection| {
        connection.request();
        connection.drip(answer(200, &[("X", &"x".repeat(10_000))], "").as_bytes(), step);
    };
    let hang = |_: usize, connection: &mut Connection| {
        connection.request();
        connection.hang();
    };
    // What the client has sent is left unread, which makes the end a reset.
    let reset = |_: usize, _: &mut Connection| {};
    let close = |_: usize, connection: &mut Connection| drop(connection.request());
    let babble = |_: usize, connection: &mut Connection| {
        connection.request();
        connection.send(b"220 mail.example ESMTP\r\n\r\n");
    };
    let table: [(Server, &[&str], Option<u16>, bool); 8] = [
        (Server::start(hang), &["timed out after 200ms"], None, true),
        (Server::start(slow_head), &["timed out after 200ms"], None, true),
        (Server::start(reset), &["the connection broke", "the connection was closed before the answer"], None, true),
        (Server::start(close), &["the connection was closed before the answer", "the connection broke"], None, true),
        (Server::start(babble), &["the answer is not valid HTTP"], None, true),
        (Server::start(redirect), &["the receiver answered 307, and redirects are not followed"], Some(307), false),
        (Server::answering(404), &["the receiver answered 404"], Some(404), false),
        (Server::answering(410), &["the receiver answered 410"], Some(410), false),
    ];
    let t = harness(here().timeout(short));
    for (server, errors, status, retry) in &table {
        let id = ended(t.client(), server.url("/"))?;
        let before = t.client().get(id)?;
        assert_eq!(t.drain()?, 1);
        let job = t.client().get(id)?;
        let error = job.callback_error.clone().unwrap_or_default();
        assert!(errors.contains(&error.as_str()), "{error}");
        assert_eq!((job.callback_sent_at, job.callback_status_code), (Some(now(&t)), *status), "{error}");
        assert_eq!(untold(job), before, "{error}");
        let delivery = only_delivery(t.client(), id);
        assert_eq!(delivery.status, if *retry { Status::Pending } else { Status::Failed }, "{error}");
        assert_eq!(delivery.attempts[0].error.as_deref(), Some(error.as_str()));
        assert_eq!(server.connections(), 1, "{error}");
        // The next one has the engine to itself.
        t.client().select(Query::new().queues(["system"]).statuses([Status::Pending]))?.cancel()?;
    }
    trap.is_untouched();
    sound(t.client());
    Ok(())
}

#[test]
fn private_addresses_are_refused_unless_they_are_allowed() -> jobmill::Result<()> {
    let server = Server::answering(200);
    let port = server.address.port();
    // Nothing is said of callbacks, which is the default.
    let t = Harness::new(|builder| builder.handle(echo))?;
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1"] {
        let id = t.enqueue(Echo::job("x").callback_url(format!("http://{host}:{port}/")))?;
        t.drain()?;
        let error = "the host has an address that is not public";
        let job = t.client().get(id)?;
        assert_eq!((job.status, job.callback_error.as_deref()), (Status::Completed, Some(error)), "{host}");
        assert_eq!((job.callback_sent_at, job.callback_status_code), (Some(now(&t)), None), "{host}");
        t.check(only_delivery(t.client(), id).id, &format!("failed, attempt 1: {error}"));
    }
    server.is_untouched();
    Ok(())
}

#[test]
fn receivers_verify_signatures_while_keys_change() -> jobmill::Result<()> {
    let mailbox = Mailbox::start(|number, connection| connection.reply(if number == 0 { 500 } else { 200 }, &[], ""));
    let (path, url) = (|name: &str| format!("/{name}"), mailbox.url(""));
    let deliver = |t: &Harness, name: &str| -> jobmill::Result<Post> {
        ended(t.client(), format!("{url}{}", path(name)))?;
        t.drain()?;
        Ok(mailbox.only())
    };
    let t = harness(here().secret(secret(KEY)).backoff(Backoff::fixed(secs(7))));
    let first = deliver(&t, "one")?;
    assert!(first.is_signed_with(KEY) && !first.is_signed_with(NEW_KEY));
    t.advance(secs(7));
    t.drain()?;
    let second = mailbox.only();
    assert!(second.is_signed_with(KEY), "each try is signed anew");
    let stamp =
        |post: &Post| post.request.header("webhook-timestamp").expect("a time").parse::<i64>().expect("seconds");
    assert_eq!((stamp(&second) - stamp(&first), &second.id), (7, &first.id));
    assert_eq!(stamp(&second), now(&t).as_micros() / 1_000_000);

    let t = harness(here().secret(secret(NEW_KEY)).secret(secret(KEY)));
    let both = deliver(&t, "both")?;
    assert!(both.is_signed_with(KEY) && both.is_signed_with(NEW_KEY), "old and new receivers accept it");

    let own = |url: &str| if url.ends_with("/own") { vec![secret(NEW_KEY)] } else { Vec::new() };
    let t = harness(here().secret(secret(KEY)).secret_for(own));
    let (own, other) = (deliver(&t, "own")?, deliver(&t, "other")?);
    assert!(own.is_signed_with(NEW_KEY) && !own.is_signed_with(KEY));
    assert!(other.is_signed_with(KEY) && !other.is_signed_with(NEW_KEY));

    let t = harness(here());
    assert_eq!(deliver(&t, "unsigned")?.request.header("webhook-signature"), None);
    Ok(())
}

/// Set for a process that a test starts, to what it is to work on.
const CHILD: &str = "JOBMILL_TEST_DELIVERY";

/// Everything that this process logs.
struct Lines(Mutex<String>);

static LINES: Lines = Lines(Mutex::new(String::new()));

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        *self.0.lock().expect("no panic") += &format!("{} {}\n", record.target(), record.args());
    }

    fn flush(&self) {}
}

/// In a process of its own, for it listens to all that is logged there.
#[test]
fn no_secret_stands_in_the_file_or_the_log_or_an_error() -> jobmill::Result<()> {
    if std::env::var_os(CHILD).is_none() {
        let name = "delivery::no_secret_stands_in_the_file_or_the_log_or_an_error";
        Another::start(name, Path::new("anywhere")).end();
        return Ok(());
    }
    log::set_logger(&LINES).map(|()| log::set_max_level(log::LevelFilter::Trace)).expect("the first logger");
    let wrong = "whsec_hunter2hunter2";
    let callbacks = here().secret(secret(KEY)).secret_for(move |url| match url.rsplit('/').next() {
        Some("own") => vec![secret(NEW_KEY)],
        Some("wrong") => vec![wrong.to_owned()],
        _ => Vec::new(),
    });
    let shown = format!("{callbacks:?}");
    let mailbox = Mailbox::start(|number, connection| connection.reply(if number == 0 { 500 } else { 200 }, &[], ""));
    let t = harness(callbacks);
    let ids = ["all", "own", "wrong"].map(|name| ended(t.client(), mailbox.url(&format!("/{name}"))));
    t.drain()?;
    t.advance(secs(100));
    t.drain()?;
    assert!(mailbox.take(3).iter().all(|post| post.is_signed_with(KEY) || post.is_signed_with(NEW_KEY)));
    let mut texts = vec![("the settings", shown.into_bytes())];
    for id in ids {
        let id = id?;
        let told = (t.client().get(id)?, t.client().deliveries(id)?, t.client().history(id)?);
        texts.push(("a job", format!("{told:?}").into_bytes()));
    }
    let job = t.client().get(own_jobs(t.client())[2].id)?;
    assert_eq!(
        job.error.as_deref(),
        Some("callbacks.secret_for: must be `whsec_` and then 24 to 64 bytes in base64"),
        "it says what is wrong"
    );
    let bad = Engine::builder(t.path()).callbacks(here().secret(wrong)).inline().err().expect("a bad secret");
    texts.push(("an error", format!("{bad} {bad:?}").into_bytes()));
    let log = LINES.0.lock().expect("no panic").clone();
    assert!(log.contains("the receiver answered 500"), "the log is listened to");
    texts.push(("the log", log.into_bytes()));
    let directory = t.path().as_ref().parent().expect("a directory").to_owned();
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let content = std::fs::read(entry.expect("a file").path()).expect("a file");
        bytes += content.len();
        texts.push(("the file", content));
    }
    assert!(bytes > 50_000, "the database is read");
    let raw = |key: &str| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key).expect("base64");
    for secret in [KEY.into(), NEW_KEY.into(), raw(KEY), raw(NEW_KEY), b"whsec_".to_vec(), b"hunter2".to_vec()] {
        for (place, text) in &texts {
            // The rule for secrets names what they begin with.
            let rule =
                secret == b"whsec_" && (*place != "the file" || text.windows(7).all(|found| found != b"whsec_h"));
            assert!(rule || !text.windows(secret.len()).any(|found| found == secret), "{place}");
        }
    }
    Ok(())
}

#[test]
fn a_redelivery_has_the_same_id_and_body_and_goes_where_the_job_says_now() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(here()), Mailbox::answering(200));
    let id = ended(t.client(), mailbox.url("/first"))?;
    t.drain()?;
    let first = mailbox.only();
    t.advance(secs(60));
    let update = JobUpdate::new().callback_url(mailbox.url("/second").as_str()).metadata(&json!({ "n": 2 }));
    t.client().update(id, update)?;
    assert_eq!(t.drain()?, 0, "a change of the address tells nobody");
    for round in 1..=2 {
        let delivering = t.client().acting_as("ada")?.redeliver(id)?;
        t.drain()?;
        let again = mailbox.only();
        assert_eq!(again.path, "/second");
        assert_eq!((&again.id, &again.body), (&first.id, &first.body), "it tells the same");
        let deliveries = t.client().deliveries(id)?;
        assert_eq!(deliveries.len(), round + 1);
        assert_eq!((deliveries[round].id, &deliveries[round].message_id), (delivering, &first.id));
        assert_eq!(t.client().get(id)?.callback_sent_at, Some(now(&t)));
        t.advance(secs(60));
    }
    let told = t.client().history(id)?;
    let told: Vec<_> = told.iter().filter(|line| line.action == Action::Redelivered).collect();
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|line| line.actor.as_deref() == Some("ada") && line.from == line.to), "{told:?}");

    // One that had no address when it ended is told of for the first time.
    let id = t.enqueue(NewJob::tracked().status(Status::Failed))?;
    refused(t.client().redeliver(id), ErrorKind::Conflict, &format!("{id} has no callback_url"));
    t.client().update(id, JobUpdate::new().callback_url(mailbox.url("/late").as_str()))?;
    let delivering = t.client().redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, delivering.to_string());
    sound(t.client());
    Ok(())
}

/// An end that nobody had been told of was redelivered under the id of the end before it, so that a receiver who drops
/// repeats never heard of it.
#[test]
fn an_end_is_not_redelivered_as_the_one_before_it() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(here()), Mailbox::answering(200));
    let id = t.enqueue(Echo::job("x").callback_url(mailbox.url("/")).delay(secs(1)))?;
    t.client().cancel(id)?;
    t.drain()?;
    let cancelled = mailbox.only();
    assert_eq!(cancelled.body["status"], "cancelled");
    t.client().retry(id)?;
    t.client().update(id, JobUpdate::new().callback_url(None))?;
    t.drain()?;
    mailbox.take(0);
    t.client().update(id, JobUpdate::new().callback_url(mailbox.url("/").as_str()))?;
    t.client().redeliver(id)?;
    t.drain()?;
    let completed = mailbox.only();
    assert_eq!(completed.body["status"], "completed");
    assert_ne!(completed.id, cancelled.id);
    t.client().redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, completed.id);
    Ok(())
}

#[test]
fn only_what_has_ended_and_is_ones_own_is_redelivered() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(here()), Mailbox::answering(200));
    let (ada, bob) = (t.client().for_user("ada")?, t.client().for_user("bob")?);
    let id = ada.enqueue(Echo::job("x").callback_url(mailbox.url("/")))?.id();
    let too_early = |status: &str| {
        let error = format!("{id} is {status} and cannot be redelivered");
        refused(t.client().redeliver(id), ErrorKind::Conflict, &error);
        refused(ada.redeliver(id), ErrorKind::Conflict, &error);
    };
    too_early("pending");
    // The claim is written, and the end is not.
    t.faults().fail(2, Fault::Before);
    assert!(t.drain().is_err());
    t.check(id, "running, attempt 1");
    t.client().pause("system")?;
    too_early("running");
    t.client().resume("system")?;
    t.drain()?;
    mailbox.take(1);
    let told = only_delivery(&ada, id);
    assert_eq!(ada.deliveries(id)?, t.client().deliveries(id)?);
    let again = ada.redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, told.message_id);
    assert_eq!(t.client().history(id)?.last().and_then(|line| line.actor.clone()).as_deref(), Some("ada"));

    let missing = format!("there is no job {id}");
    refused(bob.redeliver(id), ErrorKind::NotFound, &missing);
    refused(bob.deliveries(id), ErrorKind::NotFound, &missing);
    // The delivering jobs are the engine's, and nobody's who is bound to a user.
    for client in [&ada, &bob] {
        refused(client.get(again), ErrorKind::NotFound, &format!("there is no job {again}"));
        refused(client.redeliver(again), ErrorKind::NotFound, &format!("there is no job {again}"));
    }
    assert_eq!(ada.stats()?.total.total(), 1);
    refused(t.client().redeliver(again), ErrorKind::Conflict, &format!("{again} has no callback_url"));
    let unknown = "job-0000000000002".parse()?;
    refused(t.client().redeliver(unknown), ErrorKind::NotFound, "there is no job");
    refused(t.client().deliveries(unknown), ErrorKind::NotFound, "there is no job");
    t.drain()?;
    mailbox.take(0);
    Ok(())
}

#[test]
fn a_redelivery_after_the_first_one_was_pruned_is_a_new_message() -> jobmill::Result<()> {
    let mailbox = Mailbox::answering(200);
    let retention = Retention { completed: Some(secs(3600)), ..Retention::FOREVER };
    let t = Harness::new(move |builder| builder.callbacks(here()).retention(retention))?;
    let failed = |name: &str| t.enqueue(NewJob::tracked().status(Status::Failed).callback_url(mailbox.url(name)));
    let id = failed("/")?;
    t.drain()?;
    let first = mailbox.only();
    t.advance(secs(3000));
    t.client().redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, first.id);
    t.advance(secs(3000));
    t.engine().maintain()?;
    assert_eq!(only_delivery(t.client(), id).message_id, first.id, "the redelivery is kept still");
    t.client().redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, first.id);
    t.advance(secs(7200));
    t.engine().maintain()?;
    assert_eq!(t.client().deliveries(id)?, []);
    let delivering = t.client().redeliver(id)?;
    t.drain()?;
    let last = mailbox.only();
    assert_eq!((&last.id, &last.body), (&delivering.to_string(), &first.body));
    sound(t.client());
    Ok(())
}

#[test]
fn a_callback_is_delivered_though_its_job_is_gone() -> jobmill::Result<()> {
    let mailbox = Mailbox::answering(200);
    let retention = Retention { failed: Some(secs(3600)), ..Retention::FOREVER };
    let t = Harness::new(move |builder| {
        builder.callbacks(here()).retention(retention).handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
            assert_eq!(ctx.client().delete(ctx.id())?, Deleted::Requested);
            ctx.check()
        })
    })?;
    t.client().pause("system")?;
    let job = |name: &str| NewJob::tracked().status(Status::Failed).callback_url(mailbox.url(name));
    let (pruned, deleted) = (t.enqueue(job("/pruned"))?, t.enqueue(job("/deleted"))?);
    let running = t.enqueue(Echo::job("x").callback_url(mailbox.url("/running")))?;
    let mut bodies = [pruned, deleted].map(|id| t.client().get(id).map(|job| body_of(&job))).into_iter();
    t.drain()?;
    t.client().delete(deleted)?;
    t.advance(secs(7200));
    t.engine().maintain()?;
    for id in [pruned, deleted, running] {
        refused(t.client().get(id), ErrorKind::NotFound, "there is no job");
        refused(t.client().deliveries(id), ErrorKind::NotFound, "there is no job");
        refused(t.client().redeliver(id), ErrorKind::NotFound, "there is no job");
    }
    t.client().resume("system")?;
    assert_eq!(t.drain()?, 3);
    let posts = mailbox.take_all();
    for name in ["/pruned", "/deleted"] {
        assert_eq!(Some(&posts[name][0].body), bodies.next().transpose()?.as_ref());
    }
    assert_eq!(posts["/running"][0].body["status"], "cancelled");
    assert_eq!(posts["/running"][0].body["job_id"], running.to_string());
    sound(t.client());
    Ok(())
}

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
        refused(client.enqueue_many([Echo::job("y"), new.clone()]), ErrorKind::Invalid, error);
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

/// This test program once more, in a test that behaves otherwise there, until it is told to end.
struct Another(Child, Option<ChildStdin>);

impl Another {
    fn start(test: &str, work_on: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("the path of this executable"))
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, work_on)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("a child process");
        let stdin = child.stdin.take();
        Self(child, stdin)
    }

    /// Tells it to end, and waits until it has.
    fn end(mut self) {
        self.1.take();
        assert!(self.0.wait().expect("an end").success());
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        // Of a test that failed. It has ended otherwise.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

    let name = "delivery::an_engine_without_callbacks_leaves_them_to_another_on_the_file";
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
    let other = Another::start("delivery::two_engines_on_one_file_deliver_each_callback_once", &path);
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
