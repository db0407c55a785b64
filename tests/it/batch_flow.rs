//! How batches flow: what goes once more and what does not, what goes together, and who waits for whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::bounded;
use jobmill::provider::{ItemError, Local, Outgoing, RemoteEnd, RemoteState};
use jobmill::testing::Harness;
use jobmill::{BatchReply, Batches, Context, Engine, Failure, NewBatch, Status, Step};
use parking_lot::Mutex;
use serde_json::json;

use crate::batch::{BatchClock, items, pass, status};
use crate::support::fake::{Fake, errored, succeeded};
use crate::support::{PATIENCE, sound, tamper, until};

/// An engine with a fake provider and a step.
fn with_step(step: impl Fn(BatchReply, &Context) -> Result<Step, Failure> + Send + Sync + 'static) -> (Fake, Harness) {
    let fake = Fake::new("fake");
    let (provider, step) = (fake.clone(), Arc::new(step));
    let harness = Harness::new(move |builder| {
        let step = step.clone();
        builder.provider(provider.clone()).batch_step("step", move |reply, ctx| step(reply, ctx))
    });
    let harness = harness.expect("an engine");
    fake.inside().now = harness.client().batch_clock();
    (fake, harness)
}

/// How many items each batch at the provider holds, in the order of their creation.
fn sizes(fake: &Fake) -> Vec<usize> {
    fake.inside().batches.iter().map(|held| held.requests.len()).collect()
}

/// A retry sent every item that was not completed, also those whose reply was paid and in the file.
#[test]
fn a_retry_sends_what_has_no_reply_and_gives_the_rest_to_their_steps() -> jobmill::Result<()> {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let (fake, t) = with_step(move |reply, _| match (is_well.load(Ordering::SeqCst), reply.key.as_str()) {
        (true, _) => Ok(Step::DoneWith(json!(reply.reply))),
        (false, "key-0") => Ok(Step::Fail("not yet".to_owned())),
        (false, _) => Err(Failure::fatal("not yet either")),
    });
    fake.answer(|_, body| match body["n"].as_u64() {
        Some(2) => Some(errored(ItemError::Invalid, "no")),
        _ => Some(succeeded(&json!({ "n": body["n"] }))),
    });
    let id = t.client().submit(NewBatch::new("fake").step("step"), items(3))?.id();
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    assert_eq!((status(&t, id), t.client().batch(id)?.items.failed), (Status::Failed, 3));

    well.store(true, Ordering::SeqCst);
    fake.answer(|_, body| Some(succeeded(&json!({ "n": body["n"] }))));
    t.client().retry(id)?;
    sound(t.client());
    assert_eq!((t.client().batch(id)?.items.stepping, t.client().batch(id)?.items.waiting), (2, 1));
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed, sizes(&fake)), (Status::Completed, 3, vec![3, 1]));
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
    let (fake, t) = with_step(|_, _| Ok(Step::Done));
    fake.inside().limits.items = 2;
    t.client().pause("default")?;
    let id = t.client().submit(NewBatch::new("fake").step("step"), items(4))?.id();
    t.drain()?;
    fake.inside().batches[0].state = RemoteState::Ended(RemoteEnd::Completed);
    pass(&t, 60);
    assert_eq!(t.client().batch(id)?.items.stepping, 2, "two are about to be decided");
    t.client().cancel(id)?;
    t.drain()?;
    fake.end_all(&RemoteEnd::Cancelled);
    pass(&t, 600);
    assert_eq!((status(&t, id), t.client().batch(id)?.items.cancelled), (Status::Cancelled, 4));

    t.client().retry(id)?;
    t.client().resume("default")?;
    t.drain()?;
    sound(t.client());
    assert_eq!((status(&t, id), t.client().batch(id)?.items.completed), (Status::Completed, 4));
    assert_eq!(sizes(&fake), [2, 2], "nothing is paid again");
    Ok(())
}

/// The reply in the file is that of the step before, which has been decided.
#[test]
fn what_was_about_to_be_sent_for_its_next_step_is_sent_when_the_batch_is_retried() -> jobmill::Result<()> {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = steps.clone();
    let (fake, t) = with_step(move |reply, _| {
        seen.lock().push(reply.step_number);
        Ok(if reply.step_number == 0 { Step::request(json!({ "second": true })) } else { Step::Done })
    });
    let id = t.client().submit(NewBatch::new("fake").step("step"), items(1))?.id();
    t.drain()?;
    fake.complete_all();
    fake.inside().limits.items_in_flight = Some(0);
    pass(&t, 60);
    assert_eq!((t.client().batch(id)?.items.waiting, steps.lock().clone()), (1, vec![0]));
    t.client().cancel(id)?;
    t.drain()?;
    assert_eq!(status(&t, id), Status::Cancelled);
    fake.inside().limits.items_in_flight = None;
    t.client().retry(id)?;
    pass(&t, 30);
    assert_eq!(fake.inside().batches[1].requests[0].1["second"], true);
    fake.complete_all();
    pass(&t, 600);
    assert_eq!((status(&t, id), steps.lock().clone()), (Status::Completed, vec![0, 1]));
    Ok(())
}

/// A retry took all items in one transaction, however many. In slices it may be cut off between two of them.
#[test]
fn a_retry_that_is_cut_off_goes_on_and_takes_each_item_once() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    fake.inside().limits.items = 10_000;
    fake.answer(|_, _| Some(errored(ItemError::Invalid, "no")));
    let provider = fake.clone();
    let mut t = Harness::new(move |builder| builder.provider(provider.clone()))?;
    fake.inside().now = t.client().batch_clock();
    let id = t.client().submit(NewBatch::new("fake"), items(1200))?.id();
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    assert_eq!((status(&t, id), sizes(&fake)), (Status::Failed, vec![1200]));

    t.client().retry(id)?;
    let begun = t.client().batch(id)?;
    assert!(begun.items.waiting > 0 && begun.items.failed > 0, "{:?}", begun.items);
    let kind = ["jobmill.batch.retry"];
    let retrier = t.client().list(jobmill::Query::new().kinds(kind))?.jobs[0].id;
    t.client().delete(retrier)?;
    t.crash()?;
    pass(&t, 60);
    t.engine().maintain()?;
    pass(&t, 60);
    fake.complete_all();
    pass(&t, 600);
    assert_eq!((status(&t, id), t.client().batch(id)?.items.failed), (Status::Failed, 1200));
    assert_eq!(sizes(&fake).iter().sum::<usize>(), 2400, "once before, and once more");
    Ok(())
}

/// What has failed again before the next slice goes is not taken by it.
#[test]
fn no_item_goes_twice_in_one_retry() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    fake.inside().limits.items = 10_000;
    fake.answer(|_, _| Some(errored(ItemError::Invalid, "no")));
    let provider = fake.clone();
    let t = Harness::new(move |builder| builder.provider(provider.clone()))?;
    fake.inside().now = t.client().batch_clock();
    let id = t.client().submit(NewBatch::new("fake"), items(1200))?.id();
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    t.client().retry(id)?;
    tamper(
        t.client(),
        "UPDATE jobmill_batch_item SET state = 4;
         UPDATE jobmill_batch SET waiting = 0, failed = 1200;",
    );
    t.drain()?;
    assert_eq!(sizes(&fake), [1200, 700]);
    Ok(())
}

/// What was to go once more stays as it had ended when the batch is cancelled meanwhile.
#[test]
fn a_retried_batch_that_is_cancelled_at_once_comes_to_its_end() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    fake.answer(|_, _| Some(errored(ItemError::Invalid, "no")));
    fake.inside().limits.items = 10_000;
    let provider = fake.clone();
    let t = Harness::new(move |builder| builder.provider(provider.clone()))?;
    fake.inside().now = t.client().batch_clock();
    let id = t.client().submit(NewBatch::new("fake"), items(600))?.id();
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    t.client().retry(id)?;
    t.client().cancel(id)?;
    pass(&t, 60);
    let items = t.client().batch(id)?.items;
    assert_eq!((status(&t, id), items.cancelled, items.failed), (Status::Cancelled, 500, 100));
    assert_eq!(sizes(&fake), [600]);
    t.client().retry(id)?;
    t.drain()?;
    assert_eq!(sizes(&fake), [600, 600]);
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
    engine.client().submit(NewBatch::new("fake"), items(1))?;
    until("the other goes out", || fake.count("create") == 1);
    drop(go_on);
    assert_eq!(engine.client().wait(here, PATIENCE)?.status, Status::Completed);
    Ok(())
}
