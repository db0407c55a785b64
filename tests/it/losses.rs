//! Every way in which the batch jobs that jobmill follows were lost without a word, and that none of them loses one here.
//! The numbers are those of the list of losses in our notes on that system.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jobmill::provider::{CallClass, Fate, ItemError, RemoteEnd};
use jobmill::testing::Fault;
use jobmill::{BatchItem, Batches, Status, Step};
use serde_json::json;

use crate::support::fake::{Creation, Fake, errored, succeeded};
use crate::support::scene::{Scene, batch, item};
use crate::support::secs;

/// 1: it was stored as completed before its results were, and nobody asked again when that failed.
#[test]
fn a_batch_whose_results_could_not_be_stored_is_harvested_again() -> jobmill::Result<()> {
    let mut t = Scene::new();
    let id = t.send(3);
    t.fake.complete_all();
    t.advance(secs(60));
    t.engine().poll()?;
    assert_eq!(t.batch(id).items.completed, 0, "ended is not harvested");
    t.faults().fail_from(1, Fault::Before);
    assert!(t.drain().is_err(), "the results cannot be written");
    t.faults().heal();
    t.crash()?;
    t.pass(600);
    assert_eq!(t.batch(id).items.completed, 3);
    Ok(())
}

/// 2: results that were fetched and held nothing ended nothing.
#[test]
fn a_batch_without_any_result_comes_to_an_end() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.answer(|_, _| None);
    let id = t.send_as(batch().max_attempts(1), 2);
    t.complete(600);
    assert_eq!((t.status(id), t.batch(id).items.failed), (Status::Failed, 2));
    Ok(())
}

/// 3: one result of an unknown id kept every batch of the cycle from being written.
#[test]
fn a_stray_result_holds_up_nobody() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().strays = vec!["nobody's stray".to_owned()];
    let ids = [t.submit(2), t.submit(2)];
    t.drain()?;
    t.complete(600);
    for id in ids {
        let batch = t.batch(id);
        assert_eq!((batch.job.status, batch.items.completed, batch.strays), (Status::Completed, 2, 1));
    }
    Ok(())
}

/// 4: a batch whose items had all failed broke the step after it.
#[test]
fn a_batch_whose_items_all_failed_ends_as_failed() -> jobmill::Result<()> {
    let t = Scene::with_step(|_, _| Ok(Step::Done));
    t.fake.answer(|_, _| Some(errored(ItemError::Invalid, "no")));
    let id = t.send_as(batch().step("step"), 2);
    t.complete(600);
    assert_eq!(t.status(id), Status::Failed);
    Ok(())
}

/// 5: what went wrong while a batch went on became a value at which nobody looked.
#[test]
fn a_step_that_panics_fails_its_item_and_says_so() -> jobmill::Result<()> {
    let t = Scene::of(|builder| {
        builder.batch_step("step", |reply, _| match reply.key.as_str() {
            "key-0" => panic!("as the test wants"),
            _ => Ok(Step::Done),
        })
    });
    let id = t.send_as(batch().step("step"), 2);
    t.complete(1800);
    t.engine().maintain()?;
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 1, 1));
    let error = t.item(id, "key-0").error.unwrap_or_default();
    assert!(error.contains("as the test wants"), "{error}");
    Ok(())
}

/// The job of a step may be cancelled or deleted by whoever sees it.
#[test]
fn an_item_whose_step_was_cancelled_does_not_wait_for_ever() -> jobmill::Result<()> {
    let t = Scene::with_step(|_, _| Ok(Step::Done));
    t.client().pause("default")?;
    let id = t.send_as(batch().step("step"), 2);
    t.complete(60);
    let steps = t.client().list(jobmill::Query::new().kinds(["step"]))?.jobs;
    t.client().cancel(steps[0].id)?;
    t.client().delete(steps[1].id)?;
    t.engine().maintain()?;
    assert_eq!((t.status(id), t.batch(id).items.failed), (Status::Failed, 2));
    Ok(())
}

/// 6: the next submission failed when tools had run already, and was not made again.
#[test]
fn a_next_request_that_cannot_be_sent_is_sent_later_and_its_step_is_not_run_again() -> jobmill::Result<()> {
    let steps = Arc::new(AtomicU32::new(0));
    let counted = steps.clone();
    let t = Scene::with_step(move |reply, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(if reply.step_number == 0 { Step::request(json!({ "n": 1 })) } else { Step::Done })
    });
    let id = t.send_as(batch().step("step"), 2);
    t.fake.inside().creations.extend([
        Creation::Fails(Fate::NotSent, CallClass::Transport),
        Creation::Fails(Fate::Rejected, CallClass::Server),
    ]);
    t.complete(600);
    t.complete(1200);
    assert_eq!((t.status(id), steps.load(Ordering::SeqCst)), (Status::Completed, 4));
    assert_eq!(t.item(id, "key-0").attempt, 1, "and it costs no attempt");
    Ok(())
}

/// 7: one that was being cancelled counted as ended, and what it gave later was never fetched.
#[test]
fn a_batch_that_is_being_cancelled_is_asked_about_until_it_has_ended() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send(2);
    t.client().cancel(id)?;
    t.drain()?;
    t.pass(600);
    assert_eq!(t.status(id), Status::Running);
    t.fake.end_all(&RemoteEnd::Cancelled);
    t.pass(1200);
    assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Cancelled, 2));
    Ok(())
}

/// 8: what was older than the lookback was never asked about again.
#[test]
fn a_batch_is_asked_about_however_old_it_is() -> jobmill::Result<()> {
    let t = Scene::with(Batches::new().lookback_weeks(1));
    let id = t.send(2);
    let polls = |days: u64| {
        let before = t.fake.count("poll");
        for _ in 0..days * 24 * 4 {
            t.advance(secs(900));
            t.drain().expect("a drain");
            t.engine().poll().expect("a poll");
        }
        t.fake.count("poll") - before
    };
    assert!(polls(1) > 80, "every five minutes, or as often as this looks");
    polls(7);
    let old = polls(2);
    assert!((6..=9).contains(&old), "four times a day: {old}");
    t.fake.complete_all();
    polls(1);
    assert_eq!(t.status(id), Status::Completed);
    Ok(())
}

/// 10: a cancel that came during a poll was overwritten by it, and the batch went on.
#[test]
fn a_cancel_during_a_poll_stays_and_nothing_more_is_submitted() -> jobmill::Result<()> {
    let t = Scene::of(|builder| builder.batch_step("on and on", |_, _| Ok(Step::request(json!({ "n": 1 })))));
    let id = t.send_as(batch().step("on and on"), 2);
    t.fake.complete_all();
    let client = t.client().clone();
    t.fake.inside().on_poll = Some(Box::new(move || assert!(client.cancel(id).is_ok())));
    t.pass(1200);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Cancelled, 1));
    assert_eq!(t.batch(id).items.cancelled, 2, "their replies are kept, and their steps not run");
    assert_eq!(
        t.client().batch_results(id)?.filter(|result| result.as_ref().is_ok_and(|it| it.output.is_some())).count(),
        2
    );
    Ok(())
}

/// The same agent twice in a batch collapsed into one, and failed after the provider had been called.
#[test]
fn an_agent_may_stand_twice_in_a_batch_and_providers_beside_each_other() -> jobmill::Result<()> {
    let second = Fake::new("second");
    let t = Scene::beside(&second, |builder| builder);
    let agents: [BatchItem; 4] =
        [0, 1, 2, 3].map(|n| item(n).agent("agent-7").provider(if n % 2 == 0 { "fake" } else { "second" }));
    let id = t.client().submit(batch(), agents)?.id();
    t.drain()?;
    assert_eq!((t.fake.count("create"), second.count("create")), (1, 1));
    second.answer(|_, _| Some(succeeded(&json!("from the second"))));
    second.complete_all();
    t.complete(600);
    assert_eq!(t.batch(id).items.completed, 4);
    assert_eq!(t.item(id, "key-1").provider, "second");
    Ok(())
}
