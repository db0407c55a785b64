//! LLM batches when things happen at the worst moment: between two steps, in another process, to the engine's own jobs.

use jobmill::provider::{CallClass, CallError, Fate, RemoteEnd};
use jobmill::{Batches, ErrorKind, ItemQuery, NewJob, Price, PriceTable, Query, RequestStatus, Status, Step, Unique};
use serde_json::{Value, json};

use crate::support::fake::{Creation, errored, succeeded};
use crate::support::scene::{Scene, batch, item, items};
use crate::support::{raw, secs, sound, tamper};

/// A result that comes late takes an item from under a planner that has read it already.
#[test]
fn a_planner_that_loses_an_item_to_another_leaves_the_counts_right() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.submit(4);
    let client = t.client().clone();
    t.fake.inside().on_encode = Some(Box::new(move || {
        tamper(
            &client,
            "UPDATE jobmill_batch_item SET state = 3 WHERE key = 'key-2';
             UPDATE jobmill_batch SET waiting = waiting - 1, completed = completed + 1;",
        );
    }));
    t.drain()?;
    sound(t.client());
    t.complete(600);
    assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 4));
    Ok(())
}

#[test]
fn a_cancelled_batch_that_was_never_created_comes_to_its_end() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().creations.push_back(Creation::Fails(Fate::Ambiguous, CallClass::Transport));
    let id = t.send(2);
    t.client().cancel(id)?;
    t.pass(1200);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Cancelled, 1));
    Ok(())
}

/// A repetition under the same key is a way to find out, not a sign that nothing was sent.
#[test]
fn a_cancelled_batch_that_may_be_at_a_provider_which_knows_keys_is_cancelled_there() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.idempotent = true;
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    let id = t.send(2);
    t.client().cancel(id)?;
    t.pass(600);
    assert!(t.fake.inside().batches[0].cancelled, "it is paid, so it is not forgotten");
    t.fake.end_all(&RemoteEnd::Cancelled);
    t.pass(1200);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, t.fake.inside().batches.len()), (Status::Cancelled, 2, 1));
    Ok(())
}

/// The engine's own jobs stand in the same lists as all others: an operator may cancel or delete them.
#[test]
fn what_a_planner_left_half_done_is_taken_up_when_its_job_is_gone() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.submit(2);
    let planner = t.client().list(Query::new().queues(["system"]))?.jobs[0].id;
    // As a shutdown leaves it that comes between the binding and the end of the plan.
    tamper(
        t.client(),
        &format!(
            "INSERT INTO jobmill_batch_request (id, batch, state, provider, account, base_url, endpoint, key, poll_owner)
             VALUES (77, {}, 0, 'fake', 'a', 'b', '', 'k', {});
             UPDATE jobmill_batch_item SET state = 1, request = 77, sends = 1, attempt = 1;
             UPDATE jobmill_batch SET waiting = 0, sent = 2;",
            raw(id),
            raw(planner)
        ),
    );
    t.client().delete(planner)?;
    t.engine().maintain()?;
    t.pass(60);
    t.complete(600);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Completed, 1));
    Ok(())
}

#[test]
fn a_cancelled_batch_ends_though_the_job_that_cancels_is_gone() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().creations.push_back(Creation::Fails(Fate::Rejected, CallClass::RateLimited));
    let id = t.send(2);
    t.client().cancel(id)?;
    for job in t.client().list(Query::new().queues(["system"]))?.jobs {
        if job.kind.as_deref() == Some("jobmill.batch.cancel") {
            t.client().delete(job.id)?;
        }
    }
    t.engine().maintain()?;
    t.pass(600);
    assert_eq!((t.status(id), t.fake.inside().batches.len()), (Status::Cancelled, 0));
    Ok(())
}

/// The job that cancels may come late, when the batch has ended and goes once more.
#[test]
fn a_late_cancellation_does_not_reach_a_batch_that_was_retried() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.answer(|_, _| Some(errored(jobmill::provider::ItemError::Invalid, "bad")));
    let id = t.send(2);
    t.fake.inside().cancels.push_back(CallError::new(Fate::Rejected, CallClass::Server, "503"));
    t.fake.inside().polls.push_back(CallError::new(Fate::Rejected, CallClass::Server, "503"));
    t.client().cancel(id)?;
    t.drain()?;
    t.fake.complete_all();
    t.fake.inside().polls.clear();
    t.poll_now();
    assert_eq!((t.status(id), t.fake.count("cancel")), (Status::Cancelled, 1));
    t.fake.answer(|_, _| Some(succeeded(&Value::Null)));
    t.client().retry(id)?;
    t.advance(secs(600));
    t.drain()?;
    assert_eq!(t.batch(id).items.cancelled, 0);
    t.complete(600);
    assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 2));
    Ok(())
}

/// Providers are brought by users too, and the one thread asks for all.
#[test]
fn a_provider_that_panics_when_it_is_asked_is_asked_again() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send(2);
    t.fake.complete_all();
    t.fake.inside().on_poll = Some(Box::new(|| panic!("as the test wants")));
    t.pass(900);
    assert_eq!(t.status(id), Status::Completed);
    Ok(())
}

/// A batch's rows go some time after its job.
#[test]
fn a_deleted_batch_is_seen_by_nobody() -> jobmill::Result<()> {
    let t = Scene::new();
    let ada = t.client().for_user("ada")?;
    let id = ada.submit(batch(), items(2))?.id();
    t.drain()?;
    t.complete(600);
    assert_eq!(ada.batch_results(id)?.count(), 2);
    ada.delete(id)?;
    for client in [&ada, &t.client().for_user("bob")?, t.client()] {
        let gone = [
            client.batch(id).err(),
            client.batch_items(id, &ItemQuery::new()).err(),
            client.batch_item(id, "key-0").err(),
            client.batch_requests(id, &[], None, 10).err(),
            client.batch_results(id).err(),
        ];
        assert_eq!(gone.map(|error| error.map(|error| error.kind())), [Some(ErrorKind::NotFound); 5]);
    }
    Ok(())
}

/// A step's kind is a kind like any other, which everybody may enqueue.
#[test]
fn only_the_job_of_its_own_step_takes_an_item_further() -> jobmill::Result<()> {
    let (told, heard) = crossbeam_channel::unbounded();
    let t = Scene::with_step(move |reply, ctx| {
        told.send((reply.key, ctx.id())).expect("a test");
        Ok(Step::Done)
    });
    t.client().pause("default")?;
    let ada = t.client().for_user("ada")?;
    let id = ada.submit(batch().step("step"), items(1))?.id();
    t.drain()?;
    t.complete(60);
    let own = ada.list(Query::new().kinds(["step"]))?.jobs[0].id;
    let item = ada.batch_item(id, "key-0")?.id;
    let forged = NewJob::json("step", &json!({ "item": item, "step_number": 0 })).queue("other");
    let other = t.client().for_user("bob")?.enqueue(forged)?.id();
    t.drain()?;
    assert_eq!(t.client().get(other)?.status, Status::Completed);
    assert!(heard.try_recv().is_err(), "bob's job was given ada's reply");
    t.client().resume("default")?;
    t.drain()?;
    assert_eq!(heard.try_recv(), Ok(("key-0".to_owned(), own)));
    assert_eq!(t.status(id), Status::Completed);
    Ok(())
}

/// An older sending may succeed when the item has been frozen into another request.
#[test]
fn a_request_that_loses_an_item_before_it_is_sent_is_made_anew() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send_twice(3);
    assert_eq!(t.requests(id).len(), 2, "a twin");
    // One expires in both. The others expire in the first, and succeed in the second when they are on their way again.
    let expired = || Some(jobmill::provider::ItemOutcome::Expired);
    t.fake.answer(move |_, _| expired());
    t.fake.inside().creations.push_back(Creation::Fails(Fate::Rejected, CallClass::Account));
    t.fake.inside().batches[0].state = jobmill::provider::RemoteState::Ended(RemoteEnd::Expired);
    t.poll_now();
    assert_eq!(t.client().batch_requests(id, &[RequestStatus::Submitting], None, 10)?.len(), 2, "of half the size");
    t.fake.answer(move |_, body| if body["n"] == 0 { expired() } else { Some(succeeded(&Value::Null)) });
    t.fake.complete_all();
    t.poll_now();
    assert_eq!(t.batch(id).items.completed, 2);
    t.fake.answer(|_, _| Some(succeeded(&Value::Null)));
    for _ in 0..20 {
        t.pass(60);
        t.fake.complete_all();
    }
    assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 3));
    assert_eq!(
        t.fake.inside().batches.last().map(|held| held.requests.len()),
        Some(1),
        "what succeeded is not paid again"
    );
    Ok(())
}

/// A submission that is cut off leaves a part of a batch, which nobody has asked to be sent.
#[test]
fn a_batch_that_was_never_complete_cannot_be_retried() -> jobmill::Result<()> {
    let t = Scene::new();
    let client = t.client().clone();
    let mut retried = None;
    let meddling = (0..4000).map(|n| {
        if n == 2500 {
            let id = client.list(Query::new().kinds(["jobmill.batch"])).expect("a list").jobs[0].id;
            client.cancel(id).expect("a cancellation");
            retried = Some(client.retry(id).map(drop));
        }
        item(n)
    });
    let refused = t.client().submit(batch(), meddling).expect_err("it was ended meanwhile");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(retried.expect("a retry").map_err(|error| error.kind()), Err(ErrorKind::Conflict));
    t.pass(60);
    assert_eq!(t.fake.count("create"), 0);
    Ok(())
}

/// The key under which an engine's job would be unique is one that others may hold.
#[test]
fn nobody_else_can_stand_in_for_the_job_of_a_step() -> jobmill::Result<()> {
    let t = Scene::with_step(|_, _| Ok(Step::Done));
    let ada = t.client().for_user("ada")?;
    let id = ada.submit(batch().step("step"), items(1))?.id();
    t.drain()?;
    let item = ada.batch_item(id, "key-0")?.id;
    let forged = NewJob::json("step", &json!({ "item": item, "step_number": 0 })).delay(secs(1_000_000));
    t.client().for_user("bob")?.enqueue(forged.unique(Unique::key(format!("{item}/0"))))?;
    t.complete(60);
    assert_eq!(t.status(id), Status::Completed);
    Ok(())
}

/// Two planners may be at one batch, each with what it knew of the budget when it began.
#[test]
fn a_plan_that_others_have_overtaken_goes_not_beyond_the_budget() -> jobmill::Result<()> {
    let prices = PriceTable::new("1", "EUR").model("m", Price::new(1000.0, 1000.0).batch_factor(1.0));
    let t = Scene::with(Batches::new().prices(prices));
    t.fake.inside().limits.items = 1;
    let id = t.submit_as(batch().budget(1.0), 2);
    let client = t.client().clone();
    t.fake.inside().on_encode = Some(Box::new(move || {
        tamper(&client, "UPDATE jobmill_batch SET cost_nanos = budget_nanos - 1000");
    }));
    t.pass(60);
    assert_eq!(t.fake.count("create"), 0);
    assert_eq!(t.batch(id).items.failed, 2);
    Ok(())
}

/// A planner that was thought dead, or whose batch was cancelled and retried while it reckoned, binds to what is no more.
#[test]
fn a_planner_whose_request_was_taken_from_it_binds_nothing_to_it() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.submit(3);
    let client = t.client().clone();
    let meddling = move || tamper(&client, "UPDATE jobmill_batch_request SET state = 6");
    t.fake.inside().on_encode = Some(Box::new(meddling));
    t.pass(60);
    t.complete(600);
    assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 3));
    Ok(())
}

/// A batch that its provider had deleted, or whose results were past their time, was asked about for ever.
#[test]
fn a_batch_that_its_provider_knows_no_more_can_be_given_up() -> jobmill::Result<()> {
    for ended in [false, true] {
        let t = Scene::new();
        let id = t.send_as(batch().max_attempts(1), 2);
        let request = t.requests(id)[0].id;
        let early = t.client().abandon_request(request).expect_err("its provider tells of it");
        assert_eq!(early.kind(), ErrorKind::Conflict);
        if ended {
            t.fake.complete_all();
            t.advance(secs(60));
            t.engine().poll()?;
        }
        t.fake.inside().batches.clear();
        t.pass(600);
        assert_eq!(t.status(id), Status::Running, "nobody knows what became of it");
        t.client().abandon_request(request)?;
        t.pass(1200);
        let batch = t.batch(id);
        assert_eq!((batch.job.status, batch.items.failed, t.fake.count("create")), (Status::Failed, 2, 1));
    }
    Ok(())
}
