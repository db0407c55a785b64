//! LLM batches, from the submission to the results, at a provider that lives in the test.

use std::collections::HashSet;

use jobmill::provider::{CallClass, CallError, Fate, ItemError, RemoteEnd, RemoteState};
use jobmill::testing::Harness;
use jobmill::{
    BatchItem, Batches, Cancelled, Engine, ErrorKind, Failure, ItemQuery, JobId, NewBatch, Price, PriceTable,
    RequestStatus, Status, Step, WhenUnknown,
};
use serde_json::{Value, json};

use crate::support::fake::{Creation, Fake, errored, succeeded};
use crate::support::{PATIENCE, secs, sound, until};

pub(crate) fn item(n: usize) -> BatchItem {
    BatchItem::new(&json!({ "model": "m", "max_tokens": 5, "n": n })).key(format!("key-{n}"))
}

pub(crate) fn items(count: usize) -> impl Iterator<Item = BatchItem> {
    (0..count).map(item)
}

/// An engine with this provider and these settings.
pub(crate) fn with(fake: &Fake, settings: Batches) -> Harness {
    let fake = fake.clone();
    let harness = Harness::new(move |builder| builder.provider(fake.clone()).batches(settings.clone()));
    harness.expect("an engine")
}

pub(crate) fn start() -> (Fake, Harness) {
    let fake = Fake::new("fake");
    let harness = with(&fake, Batches::new());
    fake.inside().now = harness.client().batch_clock();
    (fake, harness)
}

/// What the clock of the test shows, for the fake.
pub(crate) trait BatchClock {
    fn batch_clock(&self) -> jobmill::Timestamp;
}

impl BatchClock for jobmill::Client {
    fn batch_clock(&self) -> jobmill::Timestamp {
        let id = self.enqueue(jobmill::NewJob::tracked()).expect("a job").id();
        id.created_at()
    }
}

pub(crate) fn submit(t: &Harness, count: usize) -> JobId {
    t.client().submit(NewBatch::new("fake"), items(count)).expect("a batch").id()
}

/// Lets time pass until nothing changes any more, polling on the way.
pub(crate) fn pass(t: &Harness, seconds: u64) {
    let mut left = seconds;
    while left > 0 {
        let step = left.min(30);
        t.advance(secs(step));
        left -= step;
        t.drain().expect("a drain");
        t.engine().poll().expect("a poll");
        t.drain().expect("a drain");
    }
    sound(t.client());
}

pub(crate) fn status(t: &Harness, id: JobId) -> Status {
    t.client().get(id).expect("the job").status
}

/// What every item came to, by its key, as words.
fn results(t: &Harness, id: JobId) -> Vec<(String, Status)> {
    t.client()
        .batch_results(id)
        .expect("results")
        .map(|result| {
            let result = result.expect("a result");
            (result.key, result.status)
        })
        .collect()
}

#[test]
fn a_batch_goes_out_comes_back_and_is_told() -> jobmill::Result<()> {
    let (fake, t) = start();
    let id = submit(&t, 3);
    t.drain()?;
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.sent, batch.items.total()), (Status::Running, 3, 3));
    let requests = t.client().batch_requests(id, &[], None, 10)?;
    assert_eq!((requests.len(), requests[0].status, requests[0].items), (1, RequestStatus::Running, 3));
    assert_eq!(requests[0].remote_id.as_deref(), Some("remote-0"));

    pass(&t, 60);
    assert_eq!(status(&t, id), Status::Running);
    fake.complete_all();
    pass(&t, 600);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed, batch.strays), (Status::Completed, 3, 0));
    assert_eq!((batch.spent.usage.input, batch.spent.usage.output, batch.spent.unpriced), (Some(30), Some(15), 3));
    let keys: Vec<String> = results(&t, id).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["key-0", "key-1", "key-2"]);
    let first = t.client().batch_results(id)?.next().expect("a result")?;
    let output: Value = serde_json::from_str(first.output.expect("an output").get()).expect("JSON");
    assert_eq!(output["echo"]["n"], 0);
    let summary: Value = batch.job.result()?;
    assert_eq!((&summary["total"], &summary["successful"], &summary["failed"]), (&json!(3), &json!(3), &json!(0)));
    assert_eq!(fake.count("create"), 1);
    assert_eq!(t.client().verify()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_batch_is_split_by_what_its_provider_takes() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().limits.items = 4;
    let id = submit(&t, 10);
    t.drain()?;
    let sizes = |fake: &Fake| fake.inside().batches.iter().map(|held| held.requests.len()).collect::<Vec<_>>();
    assert_eq!(sizes(&fake), [4, 4, 2]);
    fake.complete_all();
    pass(&t, 600);
    assert_eq!(t.client().batch(id)?.items.completed, 10);

    // By what the batch itself wants: groups of messages, as the queue extension's.
    let grouped = t.client().submit(NewBatch::new("fake").request_items(3), items(7))?.id();
    t.drain()?;
    assert_eq!(sizes(&fake)[3..], [3, 3, 1]);
    fake.complete_all();
    pass(&t, 600);
    assert_eq!(t.client().batch(grouped)?.items.completed, 7);

    // By bytes: a line has some 90 of them.
    fake.inside().limits.bytes = 300;
    let id = submit(&t, 5);
    t.drain()?;
    assert!(sizes(&fake)[6..].iter().all(|size| *size <= 3), "{:?}", sizes(&fake));
    // By model.
    fake.inside().limits.bytes = 1 << 20;
    fake.inside().limits.one_model = true;
    let before = sizes(&fake).len();
    let mixed = (0..4).map(|n| item(n).model(if n % 2 == 0 { "even" } else { "odd" }));
    t.client().submit(NewBatch::new("fake"), mixed)?;
    t.drain()?;
    assert_eq!(sizes(&fake)[before..], [2, 2]);
    fake.complete_all();
    pass(&t, 600);
    assert_eq!(t.client().batch(id)?.items.completed, 5);
    Ok(())
}

#[test]
fn an_item_that_cannot_be_sent_fails_alone() -> jobmill::Result<()> {
    let (fake, t) = start();
    let bad = BatchItem::new(&json!({ "text": "unsendable" })).key("bad");
    let large = BatchItem::new(&json!({ "text": "x".repeat(2000) })).key("large");
    fake.inside().limits.bytes = 1000;
    let id = t.client().submit(NewBatch::new("fake"), [item(0), bad, large, item(1)])?.id();
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    let expected = [
        ("key-0", Status::Completed),
        ("bad", Status::Failed),
        ("large", Status::Failed),
        ("key-1", Status::Completed),
    ];
    assert_eq!(results(&t, id), expected.map(|(key, status)| (key.to_owned(), status)));
    assert_eq!(t.client().batch_item(id, "bad")?.error.as_deref(), Some("must not be unsendable"));
    assert_eq!(status(&t, id), Status::Completed);
    Ok(())
}

#[test]
fn bad_batches_are_refused_with_the_place_and_the_rule_and_leave_nothing() -> jobmill::Result<()> {
    let (_, t) = start();
    let refused = |batch: NewBatch, items: Vec<BatchItem>| {
        let error = t.client().submit(batch, items).expect_err("a refusal");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    };
    let batch = || NewBatch::new("fake");
    for (error, part) in [
        (refused(batch(), Vec::new()), "items: must be at least one"),
        (refused(batch(), vec![item(0), item(1).key("")]), "items[1].key"),
        (refused(batch(), vec![BatchItem::new(&[1, 2])]), "items[0].body: must be a JSON object"),
        (refused(batch(), vec![item(0), item(0)]), "two of them have the key \"key-0\""),
        (refused(batch().max_steps(0), vec![item(0)]), "max_steps"),
        (refused(batch().max_attempts(101), vec![item(0)]), "max_attempts"),
        (refused(batch().budget(-1.0), vec![item(0)]), "budget"),
        (refused(NewBatch::new(""), vec![item(0)]), "provider"),
        (refused(batch().queue("system"), vec![item(0)]), "queue"),
    ] {
        assert!(error.contains(part), "{error} names {part}");
    }
    let lines = "{\"body\": {\"n\": 1}}\n\nnonsense\n";
    let error = t.client().submit_jsonl(batch(), lines.as_bytes()).expect_err("a refusal");
    assert!(error.to_string().starts_with("line 3: "), "{error}");
    t.engine().maintain()?;
    assert_eq!(t.client().list(jobmill::Query::new().kinds(["jobmill.batch"]))?.jobs, []);
    Ok(())
}

#[test]
fn a_file_of_lines_is_read_in_the_shapes_of_the_providers() -> jobmill::Result<()> {
    let (fake, t) = start();
    let lines = concat!(
        "{\"key\": \"a\", \"body\": {\"model\": \"m\", \"n\": 1}, \"agent_id\": \"agent-1\"}\n",
        "{\"custom_id\": \"b\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {\"n\": 2}}\n",
        "\n",
        "{\"custom_id\": \"c\", \"params\": {\"n\": 3}}",
    );
    let id = t.client().submit_jsonl(NewBatch::new("fake"), lines.as_bytes())?.id();
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    let mut written = Vec::new();
    assert_eq!(t.client().write_batch_results(id, &mut written)?, 3);
    let keys: Vec<Value> = String::from_utf8(written)
        .expect("UTF-8")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["key"].clone())
        .collect();
    assert_eq!(keys, ["a", "b", "c"]);
    assert_eq!(t.client().batch_item(id, "a")?.agent_id.as_deref(), Some("agent-1"));
    Ok(())
}

/// An answer that was lost made other tools send the batch again and pay twice.
#[test]
fn a_batch_whose_answer_was_lost_is_found_by_its_key_and_not_sent_again() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().creations.push_back(Creation::AnswerLost);
    let id = submit(&t, 3);
    t.drain()?;
    assert_eq!(t.client().batch_requests(id, &[RequestStatus::Unknown], None, 10)?.len(), 1);
    pass(&t, 60);
    assert_eq!((fake.count("create"), fake.count("find")), (1, 1));
    fake.complete_all();
    pass(&t, 600);
    assert_eq!(t.client().batch(id)?.items.completed, 3);
    Ok(())
}

#[test]
fn a_batch_that_was_lost_on_its_way_is_sent_again_once_that_is_sure() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().creations.push_back(Creation::Fails(Fate::Ambiguous, CallClass::Transport));
    let id = submit(&t, 3);
    pass(&t, 240);
    assert_eq!(fake.count("create"), 1, "lists may lag");
    pass(&t, 240);
    assert_eq!(fake.count("create"), 2);
    fake.complete_all();
    pass(&t, 600);
    assert_eq!(t.client().batch(id)?.items.completed, 3);
    Ok(())
}

#[test]
fn without_a_key_only_the_results_prove_which_batch_is_ours() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().keeps_keys = false;
    fake.inside().creations.push_back(Creation::AnswerLost);
    let id = submit(&t, 3);
    t.drain()?;
    // Somebody else's batch of the same size lies beside it.
    let mut other = fake.inside().batches[0].clone();
    other.id = "somebody's".to_owned();
    other.requests.iter_mut().for_each(|(custom_id, _)| *custom_id = format!("x{custom_id}"));
    fake.inside().batches.insert(0, other);
    pass(&t, 1200);
    assert_eq!((fake.count("create"), status(&t, id)), (1, Status::Running), "it waits for proof");
    fake.complete_all();
    pass(&t, 1200);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.items.completed, batch.strays, fake.count("create")), (3, 0, 1));
    Ok(())
}

#[test]
fn who_would_rather_pay_twice_gets_each_item_once() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    let t = with(&fake, Batches::new().when_unknown(WhenUnknown::ResubmitAfter(secs(600))));
    fake.inside().now = t.client().batch_clock();
    fake.inside().keeps_keys = false;
    fake.inside().creations.push_back(Creation::AnswerLost);
    let id = submit(&t, 3);
    pass(&t, 300);
    assert_eq!(fake.count("create"), 1);
    pass(&t, 600);
    assert_eq!(fake.count("create"), 2);
    fake.complete_all();
    pass(&t, 1200);
    assert_eq!(t.client().batch(id)?.items.completed, 3);
    Ok(())
}

/// A list that lags for longer than anybody waits makes a twin: it costs money, and never correctness.
#[test]
fn a_batch_that_was_made_twice_is_paid_twice_and_counts_once() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().lags = true;
    fake.inside().creations.extend([Creation::AnswerLost, Creation::AnswerLost]);
    let id = submit(&t, 3);
    pass(&t, 420);
    assert_eq!(fake.count("create"), 2);
    fake.inside().lags = false;
    pass(&t, 120);
    let requests = t.client().batch_requests(id, &[], None, 10)?;
    assert_eq!((requests.len(), requests[0].remote_id.as_deref()), (2, Some("remote-0")), "the oldest is ours");
    assert!(fake.inside().batches[1].cancelled && !fake.inside().batches[0].cancelled);
    fake.complete_all();
    pass(&t, 1200);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed, batch.strays), (Status::Completed, 3, 3));
    assert_eq!(batch.spent.usage.input, Some(60), "it was paid twice");
    assert_eq!(t.client().batch_item(id, "key-0")?.usage.input, Some(10), "and each item has its own");
    Ok(())
}

#[test]
fn an_operator_decides_about_a_batch_that_nobody_knows_of() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    let t = with(&fake, Batches::new().when_unknown(WhenUnknown::Ask));
    fake.inside().now = t.client().batch_clock();
    fake.inside().keeps_keys = false;
    fake.inside().creations.push_back(Creation::AnswerLost);
    let id = submit(&t, 2);
    pass(&t, 1200);
    let request = t.client().batch_requests(id, &[RequestStatus::Unknown], None, 1)?[0].id;
    t.client().adopt_request(request, "remote-0")?;
    let again = t.client().abandon_request(request).expect_err("it is known now");
    assert_eq!(again.kind(), ErrorKind::Conflict);
    fake.complete_all();
    pass(&t, 600);
    assert_eq!((t.client().batch(id)?.items.completed, fake.count("create")), (2, 1));
    Ok(())
}

#[test]
fn items_that_fail_are_sent_again_as_often_as_they_may_and_no_others() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.answer(|_, body| match body["n"].as_u64() {
        Some(0) => Some(succeeded(&json!("good"))),
        Some(1) => Some(errored(ItemError::Server, "overloaded_error")),
        Some(2) => Some(errored(ItemError::Invalid, "invalid_request_error")),
        // Number 3 has no result at all.
        _ => None,
    });
    let id = t.client().submit(NewBatch::new("fake").max_attempts(2), items(4))?.id();
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    assert_eq!(status(&t, id), Status::Running);
    let held = fake.inside().batches.iter().map(|held| held.requests.len()).collect::<Vec<_>>();
    assert_eq!(held, [4, 2], "number 1 and number 3");
    fake.complete_all();
    pass(&t, 600);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 1, 3));
    let class = |key: &str| t.client().batch_item(id, key).map(|item| (item.error_class, item.attempt));
    assert_eq!(class("key-1")?, (Some("server".to_owned()), 2));
    assert_eq!(class("key-2")?, (Some("invalid".to_owned()), 1));
    assert_eq!(class("key-3")?, (Some("missing".to_owned()), 2));
    Ok(())
}

#[test]
fn a_batch_of_which_nothing_succeeds_fails_with_a_summary() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.answer(|_, _| Some(errored(ItemError::Content, "content_policy")));
    let id = submit(&t, 2);
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    let job = t.client().get(id)?;
    assert_eq!(job.status, Status::Failed);
    let error = job.error.expect("an error");
    assert!(error.starts_with("none of 2 items succeeded, mostly: content_policy"), "{error}");
    // An operator may let it go once more.
    fake.answer(|_, _| Some(succeeded(&Value::Null)));
    t.client().retry(id)?;
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    assert_eq!(t.client().batch(id)?.items.completed, 2);
    Ok(())
}

#[test]
fn results_that_are_cut_off_are_read_again_and_none_counts_twice() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().cuts.extend([0, 2, 3]);
    fake.inside().strays = vec!["not json at all".to_owned(), "unknown-id stray".to_owned()];
    let id = submit(&t, 4);
    t.drain()?;
    fake.complete_all();
    pass(&t, 1200);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed), (Status::Completed, 4));
    assert_eq!(batch.strays, 2, "however often they are read");
    assert_eq!(batch.spent.usage.input, Some(4 * 10 + 10), "and the one that was paid counts once");
    assert_eq!(fake.count("results"), 4);
    Ok(())
}

#[test]
fn a_poll_that_fails_wipes_nothing_and_is_made_again() -> jobmill::Result<()> {
    let (fake, t) = start();
    let id = submit(&t, 2);
    pass(&t, 60);
    let latest = |t: &Harness| t.client().batch_requests(id, &[], None, 1).expect("requests")[0].latest.clone();
    let known = latest(&t);
    assert!(known.is_some());
    let failed = || CallError::new(Fate::Rejected, CallClass::Server, "503");
    fake.inside().polls.extend([failed(), failed(), CallError::new(Fate::Rejected, CallClass::NotFound, "404")]);
    pass(&t, 600);
    assert_eq!(latest(&t), known);
    fake.complete_all();
    pass(&t, 1200);
    assert_eq!(status(&t, id), Status::Completed);
    let cycles = t.client().poll_cycles(100)?;
    assert!(cycles.iter().any(|cycle| cycle.failed == 1) && cycles.iter().any(|cycle| cycle.completed == 1));
    assert!(cycles.iter().all(|cycle| cycle.providers["fake"] == cycle.total));
    Ok(())
}

#[test]
fn a_cancelled_batch_keeps_what_was_done_and_submits_no_more() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().limits.items_in_flight = Some(2);
    let id = submit(&t, 4);
    t.drain()?;
    assert_eq!(fake.count("create"), 1);
    assert_eq!(t.client().cancel(id)?, Cancelled::Requested);
    t.drain()?;
    assert!(fake.inside().batches[0].cancelled);
    assert_eq!(status(&t, id), Status::Running, "until its provider has come to an end");
    fake.answer(|_, body| (body["n"] == 0).then(|| succeeded(&Value::Null)));
    fake.end_all(&RemoteEnd::Cancelled);
    pass(&t, 1200);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed, batch.items.cancelled), (Status::Cancelled, 1, 3));
    assert_eq!(fake.count("create"), 1);
    assert_eq!(t.client().cancel(id)?, Cancelled::Already);
    Ok(())
}

#[test]
fn items_that_come_back_to_a_cancelled_batch_are_cancelled_too() -> jobmill::Result<()> {
    let (fake, t) = start();
    let id = submit(&t, 2);
    t.drain()?;
    t.client().cancel(id)?;
    t.drain()?;
    fake.end_all(&RemoteEnd::Quota("token_limit_exceeded".to_owned()));
    pass(&t, 1200);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.cancelled, fake.count("create")), (Status::Cancelled, 2, 1));
    Ok(())
}

#[test]
fn a_cancel_of_a_batch_that_may_have_been_sent_is_remembered() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().creations.push_back(Creation::AnswerLost);
    fake.inside().finds.push_back(CallError::new(Fate::Rejected, CallClass::Server, "503"));
    let id = submit(&t, 2);
    t.drain()?;
    t.client().cancel(id)?;
    pass(&t, 120);
    assert!(fake.inside().batches[0].cancelled, "as soon as it was found");
    fake.end_all(&RemoteEnd::Cancelled);
    pass(&t, 1200);
    assert_eq!((status(&t, id), fake.count("create")), (Status::Cancelled, 1));
    Ok(())
}

#[test]
fn each_reply_is_given_to_the_step_until_it_is_done() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    let provider = fake.clone();
    let t = Harness::new(move |builder| {
        builder.provider(provider.clone()).batch_step("converse", |reply, _| {
            let said: Vec<u64> = reply.state()?.unwrap_or_default();
            let n = reply.reply::<Value>()?["echo"]["n"].as_u64().unwrap_or(0);
            if n == 7 {
                return Err(Failure::fatal("seven is not liked"));
            }
            let said: Vec<u64> = said.into_iter().chain([n]).collect();
            Ok(if said.len() as u64 > n % 3 {
                Step::DoneWith(json!(said))
            } else {
                Step::Continue { request: json!({ "model": "m", "n": n }), state: Some(json!(said)) }
            })
        })
    })?;
    fake.inside().now = t.client().batch_clock();
    let id = t.client().submit(NewBatch::new("fake").step("converse"), items(8))?.id();
    for _ in 0..6 {
        t.drain()?;
        fake.complete_all();
        pass(&t, 600);
    }
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 7, 1));
    let outputs: Vec<Value> = t
        .client()
        .batch_results(id)?
        .map(|result| result.expect("a result"))
        .filter(|result| result.status == Status::Completed)
        .map(|result| serde_json::from_str(result.output.expect("an output").get()).expect("JSON"))
        .collect();
    let expected: Vec<Value> = (0..7_u64).map(|n| json!(vec![n; (n % 3 + 1) as usize])).collect();
    assert_eq!(outputs, expected);
    let sizes: Vec<usize> = fake.inside().batches.iter().map(|held| held.requests.len()).collect();
    assert_eq!(sizes, [8, 4, 2], "all that go on go together");
    let failed = t.client().batch_item(id, "key-7")?;
    assert_eq!((failed.error_class.as_deref(), failed.error.as_deref()), (Some("step"), Some("seven is not liked")));
    Ok(())
}

#[test]
fn an_item_makes_no_more_requests_than_its_batch_lets_it() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    let provider = fake.clone();
    let t = Harness::new(move |builder| {
        builder.provider(provider.clone()).batch_step("on and on", |_, _| Ok(Step::request(json!({ "n": 1 }))))
    })?;
    fake.inside().now = t.client().batch_clock();
    let id = t.client().submit(NewBatch::new("fake").step("on and on").max_steps(3), items(1))?.id();
    for _ in 0..5 {
        t.drain()?;
        fake.complete_all();
        pass(&t, 600);
    }
    assert_eq!((fake.count("create"), status(&t, id)), (3, Status::Completed));
    Ok(())
}

#[test]
fn what_a_batch_costs_is_reckoned_by_the_users_prices_and_bounded_by_its_budget() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    let prices = PriceTable::new("7", "EUR").model("m", Price::new(100.0, 200.0));
    let t = with(&fake, Batches::new().prices(prices));
    fake.inside().now = t.client().batch_clock();
    let id = submit(&t, 2);
    let stranger = t.client().submit(NewBatch::new("fake"), [item(0).model("unknown")])?.id();
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    let spent = t.client().batch(id)?.spent;
    // 10 in and 5 out, twice, halved: 1000 + 1000 millionths of a euro.
    assert_eq!((spent.cost_nanos, spent.unpriced), (2_000_000, 0));
    assert_eq!((spent.currency.as_deref(), spent.prices.as_deref()), (Some("EUR"), Some("7")));
    let spent = t.client().batch(stranger)?.spent;
    assert_eq!((spent.cost_nanos, spent.unpriced), (0, 1), "unknown, and not nothing");
    assert_eq!(t.client().batch_item(stranger, "key-0")?.cost_nanos, None);

    // About 9 tokens in and 5 out at most: 950 millionths for each item.
    let before = fake.count("create");
    let tight = t.client().submit(NewBatch::new("fake").budget(0.002), items(5))?.id();
    t.drain()?;
    assert_eq!(t.client().batch(tight)?.items.sent, 2);
    fake.complete_all();
    pass(&t, 1200);
    let batch = t.client().batch(tight)?;
    assert!(batch.spent.cost_nanos <= 2_000_000, "{:?}", batch.spent);
    assert_eq!((batch.job.status, batch.items.failed), (Status::Completed, 3));
    assert_eq!(t.client().batch_item(tight, "key-4")?.error_class.as_deref(), Some("budget"));
    assert_eq!(fake.count("create"), before + 1);
    Ok(())
}

#[test]
fn no_more_is_at_an_account_than_is_allowed() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().limits.items_in_flight = Some(3);
    let id = submit(&t, 8);
    for round in 1..=3 {
        t.drain()?;
        pass(&t, 30);
        let open = fake.inside().batches.iter().filter(|held| held.state == RemoteState::Running).count();
        assert_eq!((fake.count("create"), open), (round, 1));
        fake.complete_all();
        pass(&t, 600);
    }
    assert_eq!(t.client().batch(id)?.items.completed, 8);
    Ok(())
}

#[test]
fn a_quota_that_is_reached_halves_what_is_sent_and_costs_no_attempt() -> jobmill::Result<()> {
    let (fake, t) = start();
    let id = submit(&t, 8);
    t.drain()?;
    fake.end_all(&RemoteEnd::Quota("token_limit_exceeded".to_owned()));
    pass(&t, 600);
    fake.complete_all();
    pass(&t, 1200);
    fake.complete_all();
    pass(&t, 1200);
    let sizes: Vec<usize> = fake.inside().batches.iter().map(|held| held.requests.len()).collect();
    assert_eq!(sizes, [8, 4, 4]);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed), (Status::Completed, 8));
    assert_eq!(t.client().batch_item(id, "key-0")?.attempt, 1);
    Ok(())
}

#[test]
fn an_account_that_is_refused_is_left_alone_and_no_item_pays_for_it() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().creations.extend([
        Creation::Fails(Fate::Rejected, CallClass::Account),
        Creation::Fails(Fate::Rejected, CallClass::Account),
    ]);
    let id = submit(&t, 2);
    let second = submit(&t, 2);
    t.drain()?;
    assert_eq!(fake.count("create"), 1, "the second does not even try");
    pass(&t, 90);
    assert_eq!(fake.count("create"), 2);
    pass(&t, 600);
    fake.complete_all();
    pass(&t, 600);
    for id in [id, second] {
        assert_eq!(t.client().batch(id)?.items.completed, 2);
    }
    assert_eq!(t.client().batch_item(id, "key-0")?.attempt, 1);
    Ok(())
}

#[test]
fn a_body_goes_as_a_file_where_the_provider_wants_one_and_is_found_again() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().limits.uploads = true;
    fake.inside().creations.push_back(Creation::Fails(Fate::NotSent, CallClass::Transport));
    let id = submit(&t, 2);
    pass(&t, 60);
    assert_eq!((fake.count("upload"), fake.count("create")), (1, 2));
    fake.complete_all();
    pass(&t, 600);
    assert_eq!(t.client().batch(id)?.items.completed, 2);
    Ok(())
}

#[test]
fn a_crash_at_any_commit_loses_no_item_and_pays_for_none_twice() -> jobmill::Result<()> {
    use jobmill::testing::Fault;

    // One commit fails, or is not heard of; or nothing is written any more from there on, as if the process had died.
    for (fault, dead) in [(Fault::Before, false), (Fault::After, false), (Fault::Before, true)] {
        let mut last = None;
        for n in 1..200 {
            let fake = Fake::new("fake");
            fake.inside().limits.uploads = true;
            let mut t = with(&fake, Batches::new());
            fake.inside().now = t.client().batch_clock();
            let id = submit(&t, 3);
            let before = t.faults().commits();
            if dead {
                t.faults().fail_from(n, fault)
            } else {
                t.faults().fail(n, fault)
            }
            let mut crashed = false;
            for _ in 0..40 {
                t.advance(secs(30));
                let ok = t.drain().is_ok() && t.engine().poll().is_ok() && t.drain().is_ok();
                if !ok || (!crashed && t.faults().commits() >= before + n) {
                    crashed = true;
                    t.faults().heal();
                    t.crash()?;
                }
                fake.complete_all();
                if status(&t, id).is_terminal() {
                    break;
                }
            }
            let batch = t.client().batch(id)?;
            assert_eq!((batch.job.status, batch.items.completed), (Status::Completed, 3), "{fault:?}, {dead}, at {n}");
            assert_eq!(batch.spent.usage.input, Some(30), "{fault:?}, {dead}, at {n}");
            let keys: HashSet<String> = fake.inside().batches.iter().map(|held| held.key.clone()).collect();
            assert_eq!((fake.inside().batches.len(), keys.len()), (1, 1), "{fault:?}, {dead}, at {n}: made once");
            if !crashed {
                last = Some(n);
                break;
            }
        }
        assert!(last.is_some_and(|n| n > 10), "{last:?}");
    }
    Ok(())
}

#[test]
fn items_are_listed_by_status_and_cursor() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().limits.items_in_flight = Some(4);
    let id = submit(&t, 10);
    t.drain()?;
    let keys = |query: ItemQuery| -> Vec<String> {
        let page = t.client().batch_items(id, &query).expect("a page");
        page.items.into_iter().map(|item| item.key).collect()
    };
    assert_eq!(keys(ItemQuery::new().statuses([Status::Running])).len(), 4);
    assert_eq!(keys(ItemQuery::new().statuses([Status::Created])).len(), 6);
    let page = t.client().batch_items(id, &ItemQuery::new().limit(3))?;
    assert!(page.has_more);
    let next = ItemQuery::new().limit(3).after(page.items[2].id);
    assert_eq!(keys(next), ["key-3", "key-4", "key-5"]);
    let wrong = ItemQuery::new().after(page.items[2].id).before(page.items[1].id);
    assert_eq!(t.client().batch_items(id, &wrong).expect_err("a refusal").kind(), ErrorKind::Invalid);
    let bound = t.client().for_user("ada")?;
    assert_eq!(bound.batch(id).expect_err("a refusal").kind(), ErrorKind::NotFound);
    Ok(())
}

#[test]
fn a_deleted_batch_leaves_nothing_behind() -> jobmill::Result<()> {
    let (fake, t) = start();
    let id = submit(&t, 3);
    t.drain()?;
    fake.complete_all();
    pass(&t, 600);
    t.client().delete(id)?;
    t.engine().maintain()?;
    let conn = t.client().connection()?;
    for table in ["", "_item", "_body", "_output", "_request", "_route", "_stray"] {
        let rows: i64 = conn
            .query_row(&format!("SELECT count(*) FROM jobmill_batch{table}"), [], |row| row.get(0))
            .expect("a count");
        assert_eq!(rows, 0, "jobmill_batch{table}");
    }
    Ok(())
}

#[test]
fn an_engine_with_threads_polls_by_itself_and_when_it_is_asked_to() -> jobmill::Result<()> {
    let (fake, directory) = (Fake::new("fake"), tempfile::tempdir().expect("a directory"));
    fake.inside().limits.poll_min = secs(0);
    let engine = Engine::builder(directory.path().join("jobs.db"))
        .provider(fake.clone())
        .batches(Batches::new().poll_interval(secs(1)))
        .start()?;
    let client = engine.client();
    let first = client.submit(NewBatch::new("fake"), items(2))?.id();
    let sent = |id| {
        until("the batch is at its provider", || {
            !client.batch_requests(id, &[RequestStatus::Running], None, 1).expect("requests").is_empty()
        });
    };
    sent(first);
    fake.complete_all();
    assert_eq!(client.wait(first, PATIENCE)?.status, Status::Completed, "within a second or two");

    fake.inside().limits.poll_min = secs(3600);
    let second = client.submit(NewBatch::new("fake"), items(2))?.id();
    sent(second);
    fake.complete_all();
    assert!(client.poll_now()? <= 1);
    assert_eq!(client.wait(second, PATIENCE)?.status, Status::Completed);
    engine.shutdown(PATIENCE)?;
    assert_eq!(fake.count("create"), 2);
    Ok(())
}

#[test]
fn many_batches_of_an_account_are_asked_about_by_one_list() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().lists = true;
    fake.inside().limits.list_page = 100;
    let ids: Vec<JobId> = (0..10).map(|_| submit(&t, 1)).collect();
    t.drain()?;
    // One of them the list does not tell of.
    let hidden = fake.inside().batches[3].created_at;
    fake.inside().batches[3].created_at = jobmill::Timestamp::from_micros(0);
    t.advance(secs(60));
    let cycle = t.engine().poll()?;
    assert_eq!((cycle.total, cycle.running, cycle.calls), (10, 10, 2), "a list, and one by itself");
    fake.inside().batches[3].created_at = hidden;
    fake.complete_all();
    pass(&t, 600);
    assert!(ids.iter().all(|id| status(&t, *id) == Status::Completed));
    Ok(())
}

#[test]
fn what_holds_up_a_batch_is_explained() -> jobmill::Result<()> {
    let (fake, t) = start();
    let strange = t.client().submit(NewBatch::new("nobody"), items(1))?.id();
    t.drain()?;
    let explained = t.client().explain(strange)?.to_string();
    assert!(explained.contains("1 of its items wait") && explained.contains("no provider named nobody"), "{explained}");
    fake.inside().creations.push_back(Creation::Fails(Fate::Rejected, CallClass::Account));
    let id = submit(&t, 2);
    t.drain()?;
    let explained = t.client().explain(id)?.to_string();
    assert!(explained.contains("2 are at a provider") && explained.contains("nothing is sent to fake|"), "{explained}");
    Ok(())
}

#[test]
fn a_key_that_was_renewed_must_be_said_to_be() -> jobmill::Result<()> {
    let (old, directory) = (Fake::new("fake"), tempfile::tempdir().expect("a directory"));
    let path = directory.path().join("jobs.db");
    let engine = Engine::builder(&path).provider(old.clone()).inline()?;
    let id = engine.client().submit(NewBatch::new("fake"), items(1))?.id();
    engine.drain()?;
    let account = engine.client().batch_requests(id, &[], None, 1)?[0].account.clone();
    old.complete_all();
    drop(engine);
    for (settings, expected) in
        [(Batches::new(), Status::Running), (Batches::new().renewed_key(account, "fake"), Status::Completed)]
    {
        let fake = old.with_key("another");
        let engine = Engine::builder(&path).provider(fake).batches(settings).inline()?;
        for _ in 0..3 {
            engine.client().poll_now()?;
            engine.poll()?;
            engine.drain()?;
        }
        assert_eq!(engine.client().get(id)?.status, expected);
    }
    Ok(())
}

#[test]
fn what_the_provider_keeps_is_deleted_if_that_is_wanted_and_again_after_a_crash() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    fake.inside().limits.uploads = true;
    let mut t = with(&fake, Batches::new().delete_after_harvest(true));
    fake.inside().now = t.client().batch_clock();
    fake.inside().deletions = 1;
    let id = submit(&t, 2);
    t.drain()?;
    fake.complete_all();
    pass(&t, 30);
    assert_eq!(status(&t, id), Status::Completed);
    assert_eq!(fake.inside().deleted, ["remote-0"], "the second failed");
    t.crash()?;
    pass(&t, 60);
    assert_eq!(fake.inside().deleted, ["remote-0", "remote-0", "file-0"]);
    Ok(())
}
