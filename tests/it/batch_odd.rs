//! What nobody expects of providers and of requests: counts without bound, lists that are not there, replies of many lines.

use jobmill::provider::{CallClass, CallError, Fate, Finish, ItemError, ItemOutcome, Usage};
use jobmill::{BatchItem, Batches, Estimate, Price, PriceTable, RequestStatus, Status};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::fake::{Creation, succeeded};
use crate::support::scene::{Scene, batch, item};
use crate::support::{secs, sound, tamper};

fn prices(input: f64, output: f64) -> PriceTable {
    PriceTable::new("1", "EUR").model("*", Price::new(input, output))
}

/// A sum that no number holds could not be written, so that no result was ever kept, and was asked for over and over.
#[test]
fn usage_without_bound_loses_no_result() {
    let t = Scene::with(Batches::new().prices(prices(1e6, 1e6)));
    t.fake.answer(|_, body| {
        let usage = Usage::of(u64::MAX, 1 << 62).cached(Some(u64::MAX), Some(u64::MAX)).reasoning(Some(u64::MAX));
        let reply = RawValue::NULL.to_owned();
        // A failed attempt has a count too, and that of the next is added.
        Some(if body["n"] == 0 {
            ItemOutcome::Errored { class: ItemError::Server, code: "c".into(), message: "m".into(), usage }
        } else {
            ItemOutcome::Succeeded { reply, finish: Finish::Stop, usage }
        })
    });
    t.fake.inside().limits.items = 2;
    let id = t.send(6);
    for _ in 0..3 {
        t.complete(600);
    }
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 5, 1));
    let most = Some(i64::MAX as u64);
    let usage = &batch.spent.usage;
    assert_eq!([usage.input, usage.output, usage.cache_read, usage.cache_write, usage.reasoning], [most; 5]);
    assert_eq!((batch.spent.cost_nanos, batch.spent.unpriced), (i64::MAX, 0));
    assert_eq!((t.item(id, "key-0").usage.input, t.item(id, "key-0").cost_nanos), (most, Some(i64::MAX)));
    sound(t.client());
}

/// Two requests whose output had no bound came to a sum that no number holds, and their batch was never planned to its end.
#[test]
fn requests_that_may_say_anything_are_planned_to_the_last() -> jobmill::Result<()> {
    let t = Scene::with(Batches::new().prices(prices(1.0, 1e6)));
    t.fake.inside().limits.items = 1;
    let item = |n: usize| BatchItem::new(&json!({ "model": "m", "max_tokens": u64::MAX, "n": n }));
    let id = t.client().submit(batch(), (0..4).map(item))?.id();
    t.drain()?;
    assert_eq!(t.fake.count("create"), 4);
    t.complete(600);
    assert_eq!(t.batch(id).items.completed, 4);
    Ok(())
}

/// That a server has no list was taken for its word on each batch: after a day they were all given up.
#[test]
fn a_provider_without_the_list_that_it_ought_to_have_is_asked_about_each_batch() {
    for (fate, class, status) in [
        (Fate::Rejected, CallClass::NotFound, Some(404)),
        (Fate::Rejected, CallClass::Unsupported, Some(405)),
        (Fate::Rejected, CallClass::Invalid, Some(400)),
        // It has one, which nobody can read.
        (Fate::Ambiguous, CallClass::Server, None),
    ] {
        let t = Scene::with(Batches::new().lost_after(secs(60)));
        {
            let mut inside = t.fake.inside();
            (inside.limits.items, inside.limits.list_page, inside.lists) = (1, 100, true);
            let mut error = CallError::new(fate, class, "as the test wants");
            error.status = status;
            inside.list_fails = Some(error);
        }
        let id = t.send(5);
        for _ in 0..5 {
            t.advance(secs(60));
            t.poll_now();
        }
        assert_eq!(t.request_statuses(id), [RequestStatus::Running; 5], "{class:?}");
        t.complete(1200);
        assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 5));
        assert!(t.fake.count("list") > 0);
    }
}

/// A provider that is overwhelmed is not asked for each of a thousand batches instead of for all.
#[test]
fn a_list_that_fails_for_now_is_asked_for_again() {
    let t = Scene::new();
    {
        let mut inside = t.fake.inside();
        (inside.limits.items, inside.limits.list_page, inside.lists) = (1, 100, true);
        inside.list_fails = Some(CallError::new(Fate::Rejected, CallClass::RateLimited, "slowly"));
    }
    let id = t.send(5);
    for _ in 0..5 {
        t.advance(secs(60));
        t.poll_now();
    }
    assert_eq!((t.fake.count("list"), t.fake.count("poll")), (5, 0));
    t.fake.inside().list_fails = None;
    t.complete(1200);
    assert_eq!(t.batch(id).items.completed, 5);
}

/// JSON may be written on many lines, and some servers do.
#[test]
fn each_result_is_one_line_however_its_reply_was_written() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.answer(|_, _| {
        let reply = RawValue::from_string("{\r\n  \"text\": \"a\\nb\"\n}".to_owned()).expect("JSON");
        Some(ItemOutcome::Succeeded { reply, finish: Finish::Stop, usage: Usage::default() })
    });
    let id = t.send(2);
    t.complete(60);
    let mut file = Vec::new();
    assert_eq!(t.client().write_batch_results(id, &mut file)?, 2);
    let text = String::from_utf8(file).expect("UTF-8");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a result")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["output"], json!({ "text": "a\nb" }));
    Ok(())
}

/// The repetition alone was refused, and all items paid for it with their results, or were sent once more.
#[test]
fn a_repetition_that_will_never_be_taken_leaves_the_first_sending_to_be_found() {
    for class in [CallClass::Invalid, CallClass::TooLarge, CallClass::NotFound, CallClass::Unsupported] {
        let t = Scene::new();
        t.fake.inside().limits.idempotent = true;
        t.fake.inside().creations.extend([Creation::AnswerLost, Creation::Fails(Fate::Rejected, class)]);
        let id = t.submit(2);
        t.pass(600);
        t.complete(600);
        assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 2), "{class:?}");
        assert_eq!(t.sizes(), [2], "{class:?}");
    }
}

/// A provider may look at the items at once, and refuse them all for one.
#[test]
fn an_item_for_which_a_creation_is_refused_fails_alone() {
    let t = Scene::new();
    t.fake.inside().refuses = Some(11);
    let id = t.send_as(batch().max_attempts(1), 16);
    t.complete(600);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 15, 1));
    let failed = t.item(id, "key-11");
    assert_eq!((failed.error_class.as_deref(), failed.error.as_deref()), (Some("invalid"), Some("not that one")));
    assert_eq!(t.item(id, "key-10").attempt, 1, "what was not run is no attempt");
    sound(t.client());
}

/// The items are not to blame one by one for what is wrong with all of them.
#[test]
fn creations_that_are_refused_whatever_they_hold_are_not_sent_for_ever() {
    let t = Scene::new();
    (t.fake.inside().limits.items, t.fake.inside().limits.bytes) = (1000, 1 << 30);
    t.fake.inside().creations.extend(vec![Creation::Fails(Fate::Rejected, CallClass::Invalid); 2000]);
    let id = t.send(1000);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.failed), (Status::Failed, 1000));
    assert!((64..=200).contains(&t.fake.count("create")), "{}", t.fake.count("create"));
}

/// It was taken for one of which nothing waits, and lay there until somebody tidied up.
#[test]
fn an_item_for_which_there_is_too_little_room_waits_for_it() -> jobmill::Result<()> {
    let t = Scene::with(Batches::new().tokens_in_flight(15));
    let first = t.send(1);
    let second = t.send(1);
    assert_eq!((t.fake.count("create"), t.batch(second).items.waiting), (1, 1));
    let why = format!("{:?}", t.client().explain(second)?);
    assert!(why.contains("as much as is allowed is under way"), "{why}");
    t.complete(60);
    assert_eq!((t.status(first), t.fake.count("create")), (Status::Completed, 2));
    t.complete(60);
    assert_eq!(t.status(second), Status::Completed);
    Ok(())
}

/// What was reserved when a plan began may be free again when it ends.
#[test]
fn nothing_fails_for_a_budget_that_has_become_free_meanwhile() -> jobmill::Result<()> {
    let t = Scene::with(Batches::new().prices(prices(0.0, 1000.0)));
    t.fake.inside().limits.items = 1;
    // 5 tokens each: 2.5 thousandths, and room for one at a time.
    let id = t.send_as(batch().budget(0.004), 2);
    assert_eq!((t.fake.count("create"), t.batch(id).items.waiting), (1, 1));
    let client = t.client().clone();
    t.fake.inside().on_encode = Some(Box::new(move || {
        tamper(&client, "UPDATE jobmill_batch_request SET state = 5, reserved_nanos = 0 WHERE state = 3");
        tamper(&client, "UPDATE jobmill_batch_item SET state = 3 WHERE state = 1");
        tamper(&client, "UPDATE jobmill_batch SET sent = 0, completed = 1");
    }));
    t.advance(secs(10));
    t.drain()?;
    assert_eq!((t.fake.count("create"), t.batch(id).items.failed), (2, 0));
    Ok(())
}

/// The cycles between, which had nothing to ask, had taken the count with them.
#[test]
fn every_item_that_is_updated_is_told_by_a_cycle() -> jobmill::Result<()> {
    let t = Scene::new();
    t.send(3);
    t.complete(120);
    t.send(1);
    t.complete(60);
    t.send(1);
    t.complete(60);
    let told: Vec<u64> = t.client().poll_cycles(100)?.iter().map(|cycle| cycle.items_updated).collect();
    assert_eq!(told, [1, 3, 0]);
    Ok(())
}

/// Some endpoints write no bound as a negative number, and a function takes what it likes.
#[test]
fn a_request_may_say_what_it_will_of_its_output() -> jobmill::Result<()> {
    let most = |body: Value| Estimate::of([BatchItem::new(&body)], None).map(|estimate| estimate.output);
    for (body, expected) in [
        (json!({ "max_tokens": -1 }), 4096),
        (json!({ "max_tokens": "many" }), 4096),
        (json!({ "max_tokens": null }), 4096),
        (json!({ "max_tokens": 100.0 }), 100),
        (json!({ "max_output_tokens": 7 }), 7),
        // Whichever counts, it is no more than that.
        (json!({ "max_tokens": 10, "max_completion_tokens": 200 }), 200),
        // So many answers to one question, each as long.
        (json!({ "messages": [], "max_tokens": 10, "n": 3 }), 30),
        (json!({ "messages": [], "n": 2 }), 8192),
        (json!({ "messages": [], "max_tokens": 10, "n": "a" }), 10),
        (json!({ "messages": [], "max_tokens": u64::MAX, "n": u64::MAX }), u64::MAX),
        (json!({ "max_tokens": 10, "n": 3 }), 10),
    ] {
        assert_eq!(most(body.clone())?, expected, "{body}");
    }
    let twice = BatchItem::new(&RawValue::from_string(r#"{"model":"m","model":"n"}"#.to_owned()).expect("JSON"));
    let error = Estimate::of([twice], None).expect_err("a refusal").to_string();
    assert!(error.ends_with("items[0].body: must name each field once"), "{error}");
    Ok(())
}

/// Two hundred of them at a time would have been more than a small machine has.
#[test]
fn requests_and_results_of_megabytes_go_their_way() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.bytes = 64 << 20;
    let long = "x".repeat(1 << 20);
    let item = |n: usize| item(n).state(&json!(n));
    let big = |n: usize| BatchItem::new(&json!({ "model": "m", "n": n, "long": long })).key(format!("big-{n}"));
    t.fake.answer(|_, body| Some(succeeded(body)));
    let id = t.client().submit(batch(), (0..30).map(big).chain((0..30).map(item)))?.id();
    t.drain()?;
    t.complete(60);
    assert_eq!((t.status(id), t.sizes()), (Status::Completed, vec![60]));
    let results = t.client().batch_results(id)?.collect::<jobmill::Result<Vec<_>>>()?;
    assert_eq!((results.len(), results[59].key.as_str()), (60, "key-29"));
    Ok(())
}
