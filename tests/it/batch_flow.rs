//! How batches flow: what goes once more and what does not, what goes together, and who waits for whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;
use jobmill::provider::{ItemError, Local, Outgoing, Provider, RemoteEnd, RemoteState};
use jobmill::{Batches, Engine, Failure, NewBatch, Status, Step, Window};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::fake::{Fake, errored, succeeded};
use crate::support::scene::{Scene, batch, item, items};
use crate::support::{PATIENCE, now, raw, secs, sound, tamper, until};

/// A retry sent every item that was not completed, also those whose reply was paid and in the file.
#[test]
fn a_retry_sends_what_has_no_reply_and_gives_the_rest_to_their_steps() -> jobmill::Result<()> {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let t = Scene::with_step(move |reply, _| match (is_well.load(Ordering::SeqCst), reply.key.as_str()) {
        (true, _) => Ok(Step::DoneWith(json!(reply.reply))),
        (false, "key-0") => Ok(Step::Fail("not yet".to_owned())),
        (false, _) => Err(Failure::fatal("not yet either")),
    });
    t.fake.answer(|_, body| match body["n"].as_u64() {
        Some(2) => Some(errored(ItemError::Invalid, "no")),
        _ => Some(succeeded(&json!({ "n": body["n"] }))),
    });
    let id = t.send_as(batch().step("step"), 3);
    t.complete(600);
    assert_eq!((t.status(id), t.batch(id).items.failed), (Status::Failed, 3));

    well.store(true, Ordering::SeqCst);
    t.fake.answer(|_, body| Some(succeeded(&json!({ "n": body["n"] }))));
    t.client().retry(id)?;
    sound(t.client());
    assert_eq!((t.batch(id).items.stepping, t.batch(id).items.waiting), (2, 1));
    t.drain()?;
    t.complete(600);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, t.sizes()), (Status::Completed, 3, vec![3, 1]));
    assert_eq!(batch.spent.usage.input, Some(30), "each is paid once");
    for (place, result) in t.client().batch_results(id)?.enumerate() {
        let output = result?.output.expect("an output");
        assert_eq!(output.get(), format!("{{\"n\":{place}}}"));
    }
    Ok(())
}

/// Their replies had come when the batch was cancelled, before their steps were run or after.
#[test]
fn what_was_cancelled_with_its_reply_goes_to_its_step_when_the_batch_is_retried() -> jobmill::Result<()> {
    let t = Scene::with_step(|_, _| Ok(Step::Done));
    t.fake.inside().limits.items = 2;
    t.client().pause("default")?;
    let id = t.send_as(batch().step("step"), 4);
    t.fake.inside().batches[0].state = RemoteState::Ended(RemoteEnd::Completed);
    t.pass(60);
    assert_eq!(t.batch(id).items.stepping, 2, "two are about to be decided");
    t.client().cancel(id)?;
    t.drain()?;
    t.fake.end_all(&RemoteEnd::Cancelled);
    t.pass(600);
    assert_eq!((t.status(id), t.batch(id).items.cancelled), (Status::Cancelled, 4));

    t.client().retry(id)?;
    t.client().resume("default")?;
    t.drain()?;
    sound(t.client());
    assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 4));
    assert_eq!(t.sizes(), [2, 2], "nothing is paid again");
    Ok(())
}

/// The reply in the file is that of the step before, which has been decided.
#[test]
fn what_was_about_to_be_sent_for_its_next_step_is_sent_when_the_batch_is_retried() -> jobmill::Result<()> {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = steps.clone();
    let t = Scene::with_step(move |reply, _| {
        seen.lock().push(reply.step_number);
        Ok(if reply.step_number == 0 { Step::request(json!({ "second": true })) } else { Step::Done })
    });
    let id = t.send_as(batch().step("step"), 1);
    t.fake.complete_all();
    t.fake.inside().limits.items_in_flight = Some(0);
    t.pass(60);
    assert_eq!((t.batch(id).items.waiting, steps.lock().clone()), (1, vec![0]));
    t.client().cancel(id)?;
    t.drain()?;
    assert_eq!(t.status(id), Status::Cancelled);
    t.fake.inside().limits.items_in_flight = None;
    t.client().retry(id)?;
    t.pass(30);
    assert_eq!(t.fake.inside().batches[1].requests[0].1["second"], true);
    t.complete(600);
    assert_eq!((t.status(id), steps.lock().clone()), (Status::Completed, vec![0, 1]));
    Ok(())
}

/// A retry took all items in one transaction, however many. In slices it may be cut off between two of them.
#[test]
fn a_retry_that_is_cut_off_goes_on_and_takes_each_item_once() -> jobmill::Result<()> {
    let mut t = Scene::new();
    t.fake.inside().limits.items = 10_000;
    t.fake.answer(|_, _| Some(errored(ItemError::Invalid, "no")));
    let id = t.send_as(batch(), 1200);
    t.complete(600);
    assert_eq!((t.status(id), t.sizes()), (Status::Failed, vec![1200]));

    t.client().retry(id)?;
    let begun = t.batch(id);
    assert!(begun.items.waiting > 0 && begun.items.failed > 0, "{:?}", begun.items);
    let kind = ["jobmill.batch.retry"];
    let retrier = t.client().list(jobmill::Query::new().kinds(kind))?.jobs[0].id;
    t.client().delete(retrier)?;
    t.crash()?;
    t.pass(60);
    t.engine().maintain()?;
    t.pass(60);
    t.complete(600);
    assert_eq!((t.status(id), t.batch(id).items.failed), (Status::Failed, 1200));
    assert_eq!(t.sizes().iter().sum::<usize>(), 2400, "once before, and once more");
    Ok(())
}

/// What has failed again before the next slice goes is not taken by it.
#[test]
fn no_item_goes_twice_in_one_retry() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items = 10_000;
    t.fake.answer(|_, _| Some(errored(ItemError::Invalid, "no")));
    let id = t.send_as(batch(), 1200);
    t.complete(600);
    t.client().retry(id)?;
    tamper(
        t.client(),
        "UPDATE jobmill_batch_item SET state = 4;
         UPDATE jobmill_batch SET waiting = 0, failed = 1200;",
    );
    t.drain()?;
    assert_eq!(t.sizes(), [1200, 700]);
    Ok(())
}

/// What was to go once more stays as it had ended when the batch is cancelled meanwhile.
#[test]
fn a_retried_batch_that_is_cancelled_at_once_comes_to_its_end() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.answer(|_, _| Some(errored(ItemError::Invalid, "no")));
    t.fake.inside().limits.items = 10_000;
    let id = t.send_as(batch(), 600);
    t.complete(600);
    t.client().retry(id)?;
    t.client().cancel(id)?;
    t.pass(60);
    let items = t.batch(id).items;
    assert_eq!((t.status(id), items.cancelled, items.failed), (Status::Cancelled, 500, 100));
    assert_eq!(t.sizes(), [600]);
    t.client().retry(id)?;
    t.drain()?;
    assert_eq!(t.sizes(), [600, 600]);
    Ok(())
}

/// A local provider runs its requests while their results are read, for hours if need be, and took the workers of all.
#[test]
fn what_runs_here_holds_up_nothing_that_is_elsewhere() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    let (begun, has_begun) = bounded(1);
    let (go_on, may_go_on) = bounded::<()>(0);
    let local = Local::function("local", move |_: &Outgoing<'_>| {
        begun.send(()).ok();
        may_go_on.recv().ok();
        Ok("at last")
    });
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Engine::builder(directory.path().join("jobs.db"))
        .provider(fake.clone())
        .provider(local)
        .batches(Batches::new().in_flight(1).local_in_flight(1))
        .start()?;
    let here = engine.client().submit(NewBatch::new("local"), items(1))?.id();
    has_begun.recv_timeout(PATIENCE).expect("it runs");
    engine.client().submit(batch(), items(1))?;
    until("the other goes out", || fake.count("create") == 1);
    drop(go_on);
    assert_eq!(engine.client().wait(here, PATIENCE)?.status, Status::Completed);
    Ok(())
}

/// The planner of the batch slept for as long as the one account was blocked, and the items of the other waited with it.
#[test]
fn a_blocked_account_holds_up_no_item_of_another() -> jobmill::Result<()> {
    let second = Fake::new("second");
    let t = Scene::beside(&second, |builder| {
        builder.batch_step("step", |reply, _| {
            Ok(if reply.step_number == 0 { Step::request(json!({ "n": 1 })) } else { Step::Done })
        })
    });
    let two_ways = [0, 1].map(|n| item(n).provider(if n == 0 { "fake" } else { "second" }));
    let id = t.client().submit(batch().step("step"), two_ways)?.id();
    t.drain()?;
    let account = t.requests(id)[0].account.clone();
    tamper(
        t.client(),
        &format!(
            "INSERT INTO jobmill_batch_account (account, blocked_until, reason) VALUES ('{account}', {}, 'as the test wants')
             ON CONFLICT (account) DO UPDATE SET blocked_until = excluded.blocked_until",
            now(&t).saturating_add(secs(86_400)).as_micros()
        ),
    );
    t.complete(60);
    assert_eq!(t.batch(id).items.waiting, 1, "one waits for its account");
    second.complete_all();
    t.poll_now();
    assert_eq!((t.fake.count("create"), second.count("create")), (1, 2));
    let planners = jobmill::Query::new().kinds(["jobmill.batch.plan"]).statuses([Status::Pending]);
    assert_eq!(t.client().list(planners)?.jobs.len(), 1, "and no second planner waits with the first");
    Ok(())
}

/// Those who wait for their turn asked for it twice a second, each of them.
#[test]
fn whoever_is_done_creating_calls_the_next() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items = 1;
    t.submit(30);
    let creator = |what: &str| {
        tamper(
            t.client(),
            &format!(
                "INSERT INTO jobmill_batch_account (account) VALUES ('{account}') ON CONFLICT (account) DO NOTHING;
                 UPDATE jobmill_batch_account SET {what} WHERE account = '{account}'",
                account = t.fake.account().fingerprint
            ),
        );
    };
    let snoozed = || t.client().metrics(Window::Hour).map_or(0, |metrics| metrics.total.snoozed);
    // As when another process is at it.
    creator(&format!("creator = 1, creating_until = {}", i64::MAX));
    for _ in 0..120 {
        t.drain()?;
        t.advance(Duration::from_millis(500));
    }
    assert_eq!(t.fake.count("create"), 0);
    assert!(snoozed() < 30 * 20, "{} times in a minute", snoozed());
    creator("creator = NULL");
    t.drain()?;
    assert_eq!(t.fake.count("create"), 30, "each has called the next");
    Ok(())
}

/// An item that was to be sent again waited for every step of its batch, however long one took.
#[test]
fn a_long_step_holds_up_the_other_items_for_a_while_only() -> jobmill::Result<()> {
    let t = Scene::with_step(|reply, _| match (reply.key.as_str(), reply.step_number) {
        ("key-0", 0) => Err(Failure::retry_after(secs(7200), "it takes long")),
        (_, 0) => Ok(Step::request(json!({ "n": 1 }))),
        _ => Ok(Step::Done),
    });
    let id = t.send_as(batch().step("step"), 3);
    t.fake.complete_all();
    t.poll_now();
    let items = t.batch(id).items;
    assert_eq!((items.stepping, items.waiting, t.fake.count("create")), (1, 2, 1), "those of one batch go together");
    t.pass(60);
    assert_eq!(t.sizes(), [3, 2]);
    t.complete(600);
    assert_eq!(t.batch(id).items.completed, 2);
    Ok(())
}

fn count(t: &Scene, sql: &str) -> i64 {
    t.client().connection().expect("a connection").query_row(sql, [], |row| row.get(0)).expect(sql)
}

/// Rows of requests that are at a provider, made up: one batch with so many would take a while.
fn requests_of(t: &Scene, account: &str, count: usize) {
    tamper(
        t.client(),
        &format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})
             INSERT INTO jobmill_batch_request
                 (batch, state, provider, account, base_url, endpoint, key, remote_id, next_poll_at)
             SELECT 1, 3, 'fake', '{account}', '', '', '{account}' || n, 'none-' || n, {} FROM n;",
            now(t).as_micros() + 1_000_000
        ),
    );
}

/// However many there are, no transaction holds them all, and each is reached.
#[test]
fn more_requests_than_a_slice_are_polled_in_one_cycle() -> jobmill::Result<()> {
    let t = Scene::with(Batches::new().poll_batch_size(5000));
    requests_of(&t, &t.fake.account().fingerprint, 2500);
    assert_eq!(t.engine().poll()?.total, 0, "none is due");
    assert_eq!(t.client().poll_now()?, 2500);
    assert_eq!(t.engine().poll()?.total, 2500);
    assert_eq!((t.engine().poll()?.total, t.fake.count("poll")), (0, 2500));
    Ok(())
}

#[test]
fn each_request_of_an_account_that_is_not_here_says_so() -> jobmill::Result<()> {
    let t = Scene::new();
    requests_of(&t, "elsewhere", 2500);
    t.advance(secs(900));
    t.engine().maintain()?;
    let silent = count(&t, "SELECT count(*) FROM jobmill_batch_request WHERE error IS NULL");
    assert_eq!(silent, 0);
    Ok(())
}

#[test]
fn of_a_deleted_batch_nothing_is_left_however_much_there_was() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items = 10_000;
    let id = t.send(1500);
    requests_of(&t, "elsewhere", 1500);
    tamper(
        t.client(),
        &format!(
            "UPDATE jobmill_batch_request SET batch = {};
             INSERT INTO jobmill_batch_stray (request, why, line) SELECT id, 'duplicate', key FROM jobmill_batch_request;
             DELETE FROM jobmill_job WHERE id = {0};",
            raw(id)
        ),
    );
    t.engine().maintain()?;
    for table in ["item", "body", "output", "request", "route", "stray"] {
        assert_eq!(count(&t, &format!("SELECT count(*) FROM jobmill_batch_{table}")), 0, "{table}");
    }
    assert_eq!(count(&t, "SELECT count(*) FROM jobmill_batch"), 0);
    Ok(())
}

/// The failures of a large batch were counted while everybody waited for the writer.
#[test]
fn a_batch_of_many_failures_ends_with_all_of_them_in_its_summary() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items = 10_000;
    t.fake.answer(|_, _| Some(errored(ItemError::Invalid, "no")));
    let id = t.send(1200);
    t.complete(600);
    let job = t.client().get(id)?;
    assert_eq!(job.status, Status::Failed);
    let summary: Value = job.result()?;
    assert_eq!((&summary["failed"], &summary["errors"][0]["count"]), (&json!(1200), &json!(1200)));
    let ends = t.client().list(jobmill::Query::new().kinds(["jobmill.batch.end"]))?.jobs;
    assert_eq!(ends.len(), 1, "beside the writer");
    Ok(())
}

/// The job that ends it stands in the same lists as all others, and may be deleted.
#[test]
fn a_batch_of_many_failures_ends_though_the_job_that_ends_it_is_gone() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items = 10_000;
    let id = t.send(1200);
    // As a harvest leaves it whose job to end the batch was deleted.
    tamper(
        t.client(),
        "UPDATE jobmill_batch_item SET state = 4, error_class = 'server', error = 'no';
         UPDATE jobmill_batch SET sent = 0, failed = 1200;",
    );
    t.engine().maintain()?;
    t.pass(60);
    assert_eq!(t.status(id), Status::Failed);
    Ok(())
}
