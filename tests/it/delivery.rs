//! How callbacks are delivered: how often, to whom, signed with what.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{
    AttemptOutcome, Backoff, Callbacks, Client, Context, Deleted, Durability, Engine, ErrorKind, Failure, Job, JobId,
    NewJob, Retention, Status,
};
use serde_json::json;

use crate::support::another::{Another, CHILD};
use crate::support::http::{CLOSED_PORT, Connection, Server, answer};
use crate::support::receiver::{Mailbox, Post, body_of, here, only_delivery, own_jobs};
use crate::support::{Echo, PATIENCE, echo, now, refused, secs, sound, until};

pub(crate) const KEY: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

pub(crate) const NEW_KEY: &str = "C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A harness with these callbacks.
pub(crate) fn harness(callbacks: Callbacks) -> Harness {
    let describe = move |builder: jobmill::EngineBuilder| {
        builder.callbacks(callbacks.clone()).durability(Durability::Normal).handle(echo)
    };
    Harness::new(describe).expect("an engine")
}

/// Records a job that has ended and tells it to this address.
pub(crate) fn ended(client: &Client, url: impl Into<String>) -> jobmill::Result<JobId> {
    let new = NewJob::tracked().status(Status::Completed).metadata(&json!({ "n": 1 })).callback_url(url);
    Ok(client.enqueue(new)?.id())
}

/// The job as it would stand had nobody been told of it.
pub(crate) fn untold(job: Job) -> Job {
    let mut job = job;
    (job.callback_sent_at, job.callback_status_code, job.callback_error) = (None, None, None);
    job
}

pub(crate) fn secret(key: &str) -> String {
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
    let ends = ["the connection broke", "the connection was closed before the answer"];
    let late = ["timed out after 200ms"];
    let redirected = ["the receiver answered 307, and redirects are not followed"];
    let table: [(Server, Duration, &[&str], Option<u16>); 8] = [
        (Server::start(hang), short, &late, None),
        (Server::start(slow_head), short, &late, None),
        (Server::start(reset), PATIENCE, &ends, None),
        (Server::start(close), PATIENCE, &ends, None),
        (Server::start(babble), PATIENCE, &["the answer is not valid HTTP"], None),
        (Server::start(redirect), PATIENCE, &redirected, Some(307)),
        (Server::answering(404), PATIENCE, &["the receiver answered 404"], Some(404)),
        (Server::answering(410), PATIENCE, &["the receiver answered 410"], Some(410)),
    ];
    for (server, time, errors, status) in &table {
        let t = harness(here().timeout(*time));
        let id = ended(t.client(), server.url("/"))?;
        let before = t.client().get(id)?;
        assert_eq!(t.drain()?, 1);
        let job = t.client().get(id)?;
        let error = job.callback_error.clone().unwrap_or_default();
        assert!(errors.contains(&error.as_str()), "{error}");
        assert_eq!((job.callback_sent_at, job.callback_status_code), (Some(now(&t)), *status), "{error}");
        assert_eq!(untold(job), before, "{error}");
        let delivery = only_delivery(t.client(), id);
        assert_eq!(delivery.status, if status.is_none() { Status::Pending } else { Status::Failed }, "{error}");
        assert_eq!(delivery.attempts[0].error.as_deref(), Some(error.as_str()));
        // One whose time is up has been called when its server says so.
        until("it is called", || server.connections() > 0);
        assert_eq!(server.connections(), 1, "{error}");
        sound(t.client());
    }
    trap.is_untouched();
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
    let bad = Engine::builder(t.path()).callbacks(here().secret(wrong)).inline().expect_err("a bad secret");
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
