//! LLM batches that do not come to the end that was hoped for: lost, refused as a whole, expired, cancelled too late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jobmill::provider::{
    CallClass, CallError, Fate, Key, Local, OpenAi, Provider, Quirks, RefusedItem, RemoteEnd, RemoteState,
};
use jobmill::testing::Harness;
use jobmill::{BatchItem, Batches, Failure, NewBatch, RequestStatus, Retention, Status, Step};
use serde_json::{Value, json};

use crate::support::fake::{Creation, Fake, succeeded};
use crate::support::http::Server;
use crate::support::provider_server::script::{Fault, Framing, Outcome, Route, Shape};
use crate::support::provider_server::{KEY, ProviderServer};
use crate::support::scene::{Scene, batch};
use crate::support::{now, query, raw, secs, tamper};

/// A batch that its provider had deleted, or whose results were past their time, was asked about for ever.
#[test]
fn a_batch_that_its_provider_has_not_known_for_a_day_ends_and_is_not_paid_again() -> jobmill::Result<()> {
    for ended in [false, true] {
        let t = Scene::new();
        let id = t.send(2);
        if ended {
            t.fake.complete_all();
            t.advance(secs(60));
            t.engine().poll()?;
        }
        let kept = std::mem::take(&mut t.fake.inside().batches);
        t.pass_hours(20);
        assert_eq!(t.status(id), Status::Running, "a key of another workspace is answered the same way");
        t.pass_hours(6);
        let batch = t.batch(id);
        assert_eq!((batch.job.status, batch.items.failed, t.fake.count("create")), (Status::Failed, 2, 1));
        let item = t.item(id, "key-0");
        let error = item.error.unwrap_or_default();
        assert_eq!(item.error_class.as_deref(), Some("missing"));
        assert_eq!((item.cost_nanos, batch.spent.unpriced), (None, 2), "unknown, and not nothing");
        assert!(error.contains("no such batch"), "{error}");
        assert_eq!(t.request_statuses(id), [RequestStatus::Refused]);
        // Who would rather pay twice says so.
        t.fake.inside().batches = kept;
        t.client().retry(id)?;
        t.drain()?;
        t.complete(600);
        assert_eq!((t.batch(id).items.completed, t.fake.count("create")), (2, 2));
    }
    Ok(())
}

#[test]
fn a_batch_that_its_provider_knows_again_is_not_given_up() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send(2);
    for _ in 0..3 {
        let kept = std::mem::take(&mut t.fake.inside().batches);
        t.pass_hours(20);
        t.fake.inside().batches = kept;
        t.pass_hours(1);
    }
    assert_eq!(t.status(id), Status::Running);
    t.fake.complete_all();
    t.pass_hours(1);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Completed, 1));
    Ok(())
}

/// Neither a poll nor a cancellation ever came to an end.
#[test]
fn a_cancelled_batch_that_its_provider_does_not_know_ends_soon() -> jobmill::Result<()> {
    for ended in [false, true] {
        let t = Scene::new();
        let id = t.send(2);
        if ended {
            t.fake.complete_all();
            t.advance(secs(60));
            t.engine().poll()?;
        }
        t.fake.inside().batches.clear();
        t.client().cancel(id)?;
        t.drain()?;
        assert_eq!(t.status(id), Status::Running, "one answer is not believed");
        t.pass(1200);
        assert_eq!((t.status(id), t.batch(id).items.cancelled), (Status::Cancelled, 2));
    }
    Ok(())
}

#[test]
fn a_clock_that_is_set_ahead_loses_no_batch() -> jobmill::Result<()> {
    let t = Scene::with(Batches::new().lost_after(secs(60)));
    let id = t.send(2);
    let kept = std::mem::take(&mut t.fake.inside().batches);
    for _ in 0..2 {
        t.advance(secs(30 * 86_400));
        t.engine().poll()?;
    }
    t.fake.inside().batches = kept;
    t.fake.complete_all();
    t.pass_hours(7);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Completed, 1));
    let refused = Harness::new(|builder| builder.batches(Batches::new().lost_after(secs(0))));
    assert!(refused.is_err());
    Ok(())
}

/// Ends what runs at the provider: it refuses as a whole what holds a bad item, and runs everything else.
fn validate(fake: &Fake, is_bad: impl Fn(u64) -> bool) {
    for held in &mut fake.inside().batches {
        if held.state == RemoteState::Running {
            let bad = held.requests.iter().any(|(_, body)| is_bad(body["n"].as_u64().expect("a number")));
            let refused = RemoteEnd::Invalid("invalid_json_line: as the test wants".to_owned());
            held.state = RemoteState::Ended(if bad { refused } else { RemoteEnd::Completed });
        }
    }
}

/// One bad line made a whole file fail, of which nothing had been run.
#[test]
fn an_item_that_its_provider_names_when_it_refuses_a_batch_fails_alone() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send(8);
    let named = |place| RefusedItem { place, message: format!("invalid_json_line: number {place}") };
    t.fake.inside().refused = vec![named(3), named(7)];
    validate(&t.fake, |_| true);
    t.pass(60);
    assert_eq!(t.sizes(), [8, 6]);
    validate(&t.fake, |_| false);
    t.pass(600);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 6, 2));
    for (key, error) in [("key-2", "invalid_json_line: number 3"), ("key-6", "invalid_json_line: number 7")] {
        let item = t.item(id, key);
        assert_eq!((item.error_class.as_deref(), item.error.as_deref()), (Some("invalid"), Some(error)));
    }
    assert_eq!(t.item(id, "key-0").attempt, 1, "what was not run is no attempt");
    Ok(())
}

#[test]
fn a_bad_item_that_nobody_names_is_found_by_halves() -> jobmill::Result<()> {
    let t = Scene::new();
    // A place that is not in the body names nobody.
    t.fake.inside().refused = vec![RefusedItem { place: 0, message: "m".to_owned() }];
    let id = t.send_as(batch().max_attempts(1), 16);
    for _ in 0..8 {
        validate(&t.fake, |n| n == 11);
        t.pass(60);
    }
    assert_eq!(t.sizes(), [16, 8, 8, 4, 4, 2, 2, 1, 1]);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 15, 1));
    let item = t.item(id, "key-11");
    assert_eq!(item.error.as_deref(), Some("invalid_json_line: as the test wants"));
    assert_eq!(t.item(id, "key-10").attempt, 1);
    Ok(())
}

/// The items are not to blame one by one for what is wrong with all of them.
#[test]
fn a_batch_that_is_refused_whatever_it_holds_is_not_sent_for_ever() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items = 1000;
    t.fake.inside().limits.bytes = 1 << 30;
    let id = t.send(1000);
    for _ in 0..12 {
        validate(&t.fake, |_| true);
        t.pass(60);
    }
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.failed), (Status::Failed, 1000));
    assert!((64..=200).contains(&t.fake.count("create")), "{}", t.fake.count("create"));
    // Whoever has mended it is given as many tries again.
    t.client().retry(id)?;
    t.drain()?;
    for _ in 0..12 {
        validate(&t.fake, |n| n == 700);
        t.pass(60);
    }
    assert_eq!(t.batch(id).items.completed, 999);
    Ok(())
}

/// What did not get done in its time did not get done the next time either, for it was as large again.
#[test]
fn what_expires_goes_again_in_smaller_requests() -> jobmill::Result<()> {
    for told in [false, true] {
        let t = Scene::new();
        t.fake.answer(move |_, body| match (body["n"] == 0, told) {
            (true, _) => Some(succeeded(&Value::Null)),
            (false, true) => Some(jobmill::provider::ItemOutcome::Expired),
            (false, false) => None,
        });
        let id = t.send(9);
        for _ in 0..2 {
            t.fake.end_all(&RemoteEnd::Expired);
            t.pass(60);
        }
        assert_eq!(t.sizes(), [9, 5, 3, 3, 2, 2, 1], "told {told}");
        t.fake.answer(|_, _| Some(succeeded(&Value::Null)));
        t.complete(600);
        assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 9));
    }
    Ok(())
}

/// A refusal and a batch that runs on counted as a cancellation that was made.
#[test]
fn a_cancellation_that_is_refused_is_asked_for_again() -> jobmill::Result<()> {
    for (class, again) in [(CallClass::Invalid, true), (CallClass::Unsupported, false)] {
        let t = Scene::new();
        let id = t.send(2);
        t.fake.inside().cancels.push_back(CallError::new(Fate::Rejected, class, "not while it is validated"));
        t.client().cancel(id)?;
        t.pass(600);
        let cancelled = t.fake.inside().batches[0].cancelled;
        assert_eq!((cancelled, t.fake.count("cancel")), (again, 1 + usize::from(again)));
        t.fake.end_all(&RemoteEnd::Cancelled);
        t.pass(600);
        assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Cancelled, 2));
    }
    Ok(())
}

/// Whoever cancels reads first what there is, and does then what follows from it.
#[test]
fn a_request_that_is_found_at_its_provider_while_it_is_cancelled_is_not_refused() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items = 1;
    let id = t.send(2);
    let late = "(SELECT max(id) FROM jobmill_batch_request)";
    tamper(t.client(), &format!("UPDATE jobmill_batch_request SET state = 1, remote_id = NULL WHERE id = {late}"));
    let (client, adopt) = (t.client().clone(), format!("state = 3, remote_id = 'remote-1' WHERE id = {late}"));
    t.fake.inside().on_cancel =
        Some(Box::new(move || tamper(&client, &format!("UPDATE jobmill_batch_request SET {adopt}"))));
    t.client().cancel(id)?;
    t.drain()?;
    t.engine().maintain()?;
    t.drain()?;
    assert!(t.fake.inside().batches.iter().all(|held| held.cancelled), "it is paid, so it is not forgotten");
    t.fake.end_all(&RemoteEnd::Cancelled);
    t.pass(1200);
    assert_eq!(t.request_statuses(id), [RequestStatus::Harvested; 2]);
    assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Cancelled, 2));
    Ok(())
}

/// What was due by the old clock was due years hence by the new one.
#[test]
fn a_clock_that_is_set_back_holds_up_no_poll() -> jobmill::Result<()> {
    for claimed in [false, true] {
        let t = Scene::new();
        let right = now(&t);
        t.advance(secs(365 * 86_400));
        let id = t.send(2);
        if claimed {
            // As a process leaves it that dies while it asks.
            tamper(t.client(), &format!("UPDATE jobmill_batch_request SET poll_until = {}", now(&t).as_micros()));
        }
        t.clock().jump(right);
        t.complete(60);
        assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 2), "{claimed}");
    }
    Ok(())
}

/// An account stayed blocked for as long as the clock was set back by.
#[test]
fn a_clock_that_is_set_back_blocks_no_account_for_years() -> jobmill::Result<()> {
    let t = Scene::new();
    let right = now(&t);
    t.advance(secs(365 * 86_400));
    t.fake.inside().creations.push_back(Creation::Fails(Fate::Rejected, CallClass::Account));
    let id = t.send(2);
    assert!(t.client().explain(id)?.to_string().contains("nothing is sent to fake|"));
    t.clock().jump(right);
    assert!(!t.client().explain(id)?.to_string().contains("nothing is sent to fake|"));
    t.pass(600);
    assert_eq!(t.fake.count("create"), 2);
    t.complete(60);
    assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 2));
    Ok(())
}

/// What waits for others that go with it waits for a minute, and waited for as long as the clock was set back by.
#[test]
fn a_clock_that_is_set_back_holds_up_no_plan() -> jobmill::Result<()> {
    let t = Scene::with_step(|reply, _| match (reply.key.as_str(), reply.step_number) {
        ("key-0", 0) => Err(Failure::retry_after(secs(7200), "it takes long")),
        (_, 0) => Ok(Step::request(json!({ "n": 1 }))),
        _ => Ok(Step::Done),
    });
    let right = now(&t);
    t.advance(secs(365 * 86_400));
    t.send_as(batch().step("step"), 3);
    t.fake.complete_all();
    t.poll_now();
    assert_eq!(t.sizes(), [3]);
    t.clock().jump(right);
    t.pass(60);
    assert_eq!(t.sizes(), [3, 2]);
    Ok(())
}

/// A plan that began before the cancellation left a request without items, which stood there for ever.
#[test]
fn a_plan_that_a_cancellation_overtakes_leaves_no_empty_request() -> jobmill::Result<()> {
    for opened in [false, true] {
        let t = Scene::new();
        let id = t.submit(2);
        let client = t.client().clone();
        let meanwhile = move || assert!(client.cancel(id).is_ok());
        if opened {
            t.fake.inside().on_encode = Some(Box::new(meanwhile));
        } else {
            t.fake.inside().on_limits = Some(Box::new(meanwhile));
        }
        t.drain()?;
        assert_eq!((t.status(id), t.request_statuses(id)), (Status::Cancelled, Vec::new()), "opened {opened}");
    }
    // One that a crash has left, of a batch that has ended meanwhile.
    let t = Scene::new();
    let id = t.submit(2);
    t.client().cancel(id)?;
    t.drain()?;
    tamper(
        t.client(),
        "INSERT INTO jobmill_batch_request (id, batch, state, provider, account, base_url, endpoint, key)
         SELECT 77, job, 0, 'fake', 'a', 'b', '', 'k' FROM jobmill_batch",
    );
    assert_eq!(t.request_statuses(id), [RequestStatus::Planning]);
    t.engine().maintain()?;
    assert_eq!(t.request_statuses(id), []);
    Ok(())
}

/// Each item failed for itself for want of a key, and went round and round.
#[test]
fn a_local_batch_waits_for_the_key_of_its_endpoint() -> jobmill::Result<()> {
    let server = Server::start(|_, connection| {
        while connection.request().is_some() {
            connection.answer(200, &[], "{\"choices\":[{\"message\":{},\"finish_reason\":\"stop\"}]}");
        }
    });
    let (here, url) = (Arc::new(AtomicBool::new(false)), server.url("/v1"));
    let is_here = here.clone();
    let t = Scene::of(move |builder| {
        let is_here = is_here.clone();
        let key = Key::from_fn(move || match is_here.load(Ordering::SeqCst) {
            true => Ok("a key".to_owned()),
            false => Err("the vault is locked".into()),
        });
        builder.provider(Local::chat_openai(url.clone()).key(key).build().expect("a provider"))
    });
    let item = |n| BatchItem::new(&json!({ "model": "m", "messages": [], "n": n }));
    let batch = || NewBatch::new("local").max_attempts(1);
    let first = t.client().submit(batch(), (0..20).map(item))?.id();
    t.drain()?;
    let second = t.client().submit(batch(), (0..2).map(item))?.id();
    for _ in 0..10 {
        t.advance(secs(60));
        t.drain()?;
    }
    assert_eq!((t.batch(first).items.sent, server.connections()), (20, 0));
    for id in [first, second] {
        let explained = t.client().explain(id)?.to_string();
        assert!(explained.contains("the function that gives the key failed"), "{explained}");
    }
    here.store(true, Ordering::SeqCst);
    for _ in 0..25 {
        t.advance(secs(60));
        t.drain()?;
    }
    for (id, items) in [(first, 20), (second, 2)] {
        assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, items));
    }
    assert_eq!(t.item(first, &t.client().batch_results(first)?.next().expect("one")?.key).attempt, 1);
    Ok(())
}

/// The twin of a request runs on when the batch has ended, and is paid.
#[test]
fn a_batch_is_kept_until_its_twin_is_done() -> jobmill::Result<()> {
    let t = Scene::of(|builder| builder.retention(Retention { completed: Some(secs(3600)), ..Retention::FOREVER }));
    let id = t.send_twice(3);
    t.fake.inside().batches[0].state = RemoteState::Ended(RemoteEnd::Completed);
    t.pass(600);
    assert_eq!((t.status(id), t.batch(id).spent.usage.input), (Status::Completed, Some(30)));
    t.pass_hours(2);
    t.engine().maintain()?;
    t.fake.complete_all();
    t.pass_hours(2);
    assert_eq!(t.batch(id).spent.usage.input, Some(60), "it was paid twice");
    t.engine().maintain()?;
    assert!(t.client().batch(id).is_err(), "it is kept no longer than need be");
    Ok(())
}

/// Between the look whether a batch is cancelled and the word that it is sent lies an upload, which takes its time.
#[test]
fn a_batch_that_is_cancelled_while_its_body_is_uploaded_is_not_created() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.uploads = true;
    let id = t.submit(1);
    let (client, later) = (t.client().clone(), t.fake.clone());
    let uploading = move || assert!(client.cancel(id).is_ok());
    t.fake.inside().on_encode = Some(Box::new(move || later.inside().on_encode = Some(Box::new(uploading))));
    t.drain()?;
    assert_eq!((t.status(id), t.fake.count("upload"), t.fake.count("create")), (Status::Cancelled, 1, 0));
    Ok(())
}

/// An operator gives a request up while its provider is asked about it once more.
#[test]
fn what_a_poll_tells_too_late_changes_nothing() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send_as(batch().max_attempts(1), 2);
    t.fake.inside().polls.push_back(CallError::new(Fate::Rejected, CallClass::Server, "503"));
    t.advance(secs(60));
    t.engine().poll()?;
    let request = t.requests(id)[0].id;
    let client = t.client().clone();
    t.fake.inside().on_poll = Some(Box::new(move || client.abandon_request(request).expect("it is not known")));
    t.advance(secs(60));
    t.engine().poll()?;
    assert_eq!(t.request_statuses(id), [RequestStatus::Ended]);
    let due = "SELECT count(*) FROM jobmill_batch_request WHERE next_poll_at IS NOT NULL";
    assert_eq!(query::<i64>(t.client(), due), 0, "it is not asked about any more");
    t.pass(60);
    assert_eq!((t.status(id), t.batch(id).items.failed), (Status::Failed, 2));
    Ok(())
}

/// Two plans may see the same room at an account. The second to be frozen finds it taken.
#[test]
fn a_plan_that_others_have_overtaken_goes_not_beyond_the_room_at_the_account() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items_in_flight = Some(3);
    let id = t.submit(2);
    let (client, account) = (t.client().clone(), t.fake.account().fingerprint);
    t.fake.inside().on_encode = Some(Box::new(move || {
        let other = format!("77, 1, 3, 'fake', '{account}', 'b', '', 'k', 2");
        let columns = "id, batch, state, provider, account, base_url, endpoint, key, items";
        tamper(&client, &format!("INSERT INTO jobmill_batch_request ({columns}) VALUES ({other})"));
    }));
    t.drain()?;
    let batch = t.batch(id);
    assert_eq!((t.fake.count("create"), batch.items.waiting), (0, 2));
    assert_eq!(t.item(id, "key-0").attempt, 0, "what was not sent is no attempt");
    tamper(t.client(), &format!("DELETE FROM jobmill_batch_request WHERE batch <> {}", raw(id)));
    t.pass(60);
    t.complete(600);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Completed, 1));
    Ok(())
}

/// The server dies in the middle of a file, and so do we; then it is away, and in the end it has all of it.
#[test]
fn a_server_of_openais_shape_that_dies_while_it_gives_results_loses_none() -> jobmill::Result<()> {
    let server = ProviderServer::start(Shape::OpenAi);
    let url = server.url();
    let mut t = Scene::of(move |builder| {
        let provider = OpenAi::builder(Key::fixed(KEY)).base_url(url.clone()).quirks(Quirks::openai());
        builder.provider(provider.build().expect("good settings"))
    });
    let clock = now(&t);
    server.clock(move || clock);
    let item = |n| BatchItem::new(&json!({ "model": "m", "messages": [], "n": n })).key(format!("key-{n}"));
    let id = t.client().submit(NewBatch::new("openai").max_attempts(1), (0..1200).map(item))?.id();
    t.drain()?;
    server.decide(|item| match item.body["n"].as_u64() {
        Some(n) if n % 10 == 0 => Outcome::Fail(400, "invalid_value".to_owned(), "m".to_owned()),
        _ => Outcome::Say("x".to_owned()),
    });
    server.end(&server.last().id);
    // It breaks off in the midst of a file, then at its end, where more was promised.
    server.state().framing = Framing::NoLastChunk;
    server.arrange(|lines| lines[..700].iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>().into());
    t.poll_now();
    let batch = t.batch(id);
    assert_eq!((batch.items.completed, batch.items.failed), (700, 0));
    t.crash()?;
    server.state().framing = Framing::ShortLength;
    server.arrange(|lines| lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>().into());
    t.advance(secs(60));
    t.drain()?;
    t.crash()?;
    server.fault(Route::Results, Fault::DropBefore);
    server.fault(Route::Results, Fault::status(503));
    server.state().framing = Framing::Chunked;
    for _ in 0..20 {
        t.advance(secs(60));
        t.drain()?;
    }
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 1080, 120));
    assert_eq!((batch.spent.usage.input, batch.strays), (Some(1080 * 10), 0), "each counts once");
    assert_eq!(server.state().batches.len(), 1);
    Ok(())
}

/// The provider did not find the file yet, or not any more, and all items paid for it.
#[test]
fn a_body_that_its_provider_does_not_find_is_uploaded_anew() -> jobmill::Result<()> {
    for times in [2, 10] {
        let t = Scene::new();
        t.fake.inside().limits.uploads = true;
        t.fake.inside().creations.extend(vec![Creation::Fails(Fate::Rejected, CallClass::NotFound); times]);
        let id = t.submit(2);
        t.pass(600);
        t.complete(600);
        let expected = if times == 2 { (Status::Completed, 3) } else { (Status::Failed, 4) };
        assert_eq!((t.status(id), t.fake.count("upload")), expected);
    }
    Ok(())
}
