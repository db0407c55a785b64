//! LLM batches, from the submission to the results, at a provider that lives in the test.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use jobmill::provider::{CallClass, CallError, Fate, ItemError, RemoteEnd, RemoteState};
use jobmill::{
    BatchItem, Batches, Cancelled, Engine, ErrorKind, Failure, JobId, NewBatch, Price, PriceTable, RequestStatus,
    Status, Step, Unique,
};
use serde_json::{Value, json};

use crate::support::fake::{Creation, Fake, errored, succeeded};
use crate::support::scene::{Scene, batch, item, items};
use crate::support::{PATIENCE, secs, sound, until};

/// What every item came to, by its key, as words.
fn results(t: &Scene, id: JobId) -> Vec<(String, Status)> {
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
    let t = Scene::new();
    let id = t.send(3);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.sent, batch.items.total()), (Status::Running, 3, 3));
    let requests = t.requests(id);
    assert_eq!((requests.len(), requests[0].status, requests[0].items), (1, RequestStatus::Running, 3));
    assert_eq!(requests[0].remote_id.as_deref(), Some("remote-0"));

    t.pass(60);
    assert_eq!(t.status(id), Status::Running);
    t.complete(600);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.strays), (Status::Completed, 3, 0));
    assert_eq!((batch.spent.usage.input, batch.spent.usage.output, batch.spent.unpriced), (Some(30), Some(15), 3));
    let keys: Vec<String> = results(&t, id).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["key-0", "key-1", "key-2"]);
    let first = t.client().batch_results(id)?.next().expect("a result")?;
    let output: Value = serde_json::from_str(first.output.expect("an output").get()).expect("JSON");
    assert_eq!(output["echo"]["n"], 0);
    let summary: Value = batch.job.result()?;
    assert_eq!((&summary["total"], &summary["successful"], &summary["failed"]), (&json!(3), &json!(3), &json!(0)));
    assert_eq!(t.fake.count("create"), 1);
    assert_eq!(t.client().verify()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_batch_is_split_by_what_its_provider_takes() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items = 4;
    let id = t.send(10);
    assert_eq!(t.sizes(), [4, 4, 2]);
    t.complete(600);
    assert_eq!(t.batch(id).items.completed, 10);

    // By what the batch itself wants: groups of messages, as the queue extension's.
    let grouped = t.send_as(batch().request_items(3), 7);
    assert_eq!(t.sizes()[3..], [3, 3, 1]);
    t.complete(600);
    assert_eq!(t.batch(grouped).items.completed, 7);

    // By bytes: a line has some 90 of them.
    t.fake.inside().limits.bytes = 300;
    let id = t.send(5);
    assert!(t.sizes()[6..].iter().all(|size| *size <= 3), "{:?}", t.sizes());
    // By model.
    t.fake.inside().limits.bytes = 1 << 20;
    t.fake.inside().limits.one_model = true;
    let before = t.sizes().len();
    let mixed = (0..4).map(|n| item(n).model(if n % 2 == 0 { "even" } else { "odd" }));
    t.client().submit(batch(), mixed)?;
    t.drain()?;
    assert_eq!(t.sizes()[before..], [2, 2]);
    t.complete(600);
    assert_eq!(t.batch(id).items.completed, 5);
    Ok(())
}

#[test]
fn an_item_that_cannot_be_sent_fails_alone() -> jobmill::Result<()> {
    let t = Scene::new();
    let bad = BatchItem::new(&json!({ "text": "unsendable" })).key("bad");
    let large = BatchItem::new(&json!({ "text": "x".repeat(2000) })).key("large");
    t.fake.inside().limits.bytes = 1000;
    let id = t.client().submit(batch(), [item(0), bad, large, item(1)])?.id();
    t.drain()?;
    t.complete(600);
    let expected = [
        ("key-0", Status::Completed),
        ("bad", Status::Failed),
        ("large", Status::Failed),
        ("key-1", Status::Completed),
    ];
    assert_eq!(results(&t, id), expected.map(|(key, status)| (key.to_owned(), status)));
    assert_eq!(t.item(id, "bad").error.as_deref(), Some("must not be unsendable"));
    assert_eq!(t.status(id), Status::Completed);
    Ok(())
}

#[test]
fn bad_batches_are_refused_with_the_place_and_the_rule_and_leave_nothing() -> jobmill::Result<()> {
    let t = Scene::new();
    let refused = |batch: NewBatch, items: Vec<BatchItem>| {
        let error = t.client().submit(batch, items).expect_err("a refusal");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    };
    let batch = || batch();
    for (error, part) in [
        (refused(batch(), Vec::new()), "items: must be at least one"),
        (refused(batch(), vec![item(0), item(1).key("")]), "items[1].key"),
        (refused(batch(), vec![BatchItem::new(&[1, 2])]), "items[0].body: must be a JSON object"),
        (refused(batch(), vec![BatchItem::new(&["m"])]), "items[0].body: must be a JSON object"),
        (refused(batch(), vec![item(0), item(0)]), "two of them have the key \"key-0\""),
        (refused(batch().max_steps(0), vec![item(0)]), "max_steps"),
        (refused(batch().max_attempts(101), vec![item(0)]), "max_attempts"),
        (refused(batch().budget(-1.0), vec![item(0)]), "budget"),
        (refused(NewBatch::new(""), vec![item(0)]), "provider"),
        (refused(batch().queue("system"), vec![item(0)]), "queue"),
    ] {
        assert!(error.contains(part), "{error} names {part}");
    }
    for third in ["nonsense", "[null, null, null, null, null, {}, null]", "{\"key\": \"no body\"}"] {
        let lines = format!("{{\"body\": {{\"n\": 1}}}}\n\n{third}\n");
        let error = t.client().submit_jsonl(batch(), lines.as_bytes()).expect_err("a refusal");
        assert!(error.to_string().starts_with("line 3: "), "{error}");
    }
    t.engine().maintain()?;
    assert_eq!(t.client().list(jobmill::Query::new().kinds(["jobmill.batch"]))?.jobs, []);
    Ok(())
}

#[test]
fn a_batch_whose_items_break_off_leaves_nothing() -> jobmill::Result<()> {
    let t = Scene::new();
    let panics = (0..5000).map(|n| if n < 3500 { item(n) } else { panic!("no more items") });
    let submit = || t.client().submit(batch().unique(Unique::key("one")), panics);
    assert!(catch_unwind(AssertUnwindSafe(submit)).is_err());
    let lines: String = (0..3500).map(|n| format!("{{\"body\": {{\"n\": {n}}}}}\n")).collect();
    let error = t.client().submit_jsonl(batch(), (lines + "nonsense").as_bytes()).expect_err("a refusal");
    assert!(error.to_string().starts_with("line 3501: "), "{error}");
    assert_eq!(t.client().list(jobmill::Query::new())?.jobs, []);
    assert!(t.client().submit(batch().unique(Unique::key("one")), items(1))?.is_new(), "its key is free");
    sound(t.client());
    Ok(())
}

#[test]
fn a_file_of_lines_is_read_in_the_shapes_of_the_providers() -> jobmill::Result<()> {
    let t = Scene::new();
    let lines = concat!(
        "\u{feff}{\"key\": \"a\", \"body\": {\"model\": \"m\", \"n\": 1}, \"agent_id\": \"agent-1\"}\n",
        "{\"custom_id\": \"b\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {\"n\": 2}}\n",
        "\n",
        "{\"custom_id\": \"c\", \"params\": {\"n\": 3}}",
    );
    let id = t.client().submit_jsonl(batch(), lines.as_bytes())?.id();
    t.drain()?;
    t.complete(600);
    let mut written = Vec::new();
    assert_eq!(t.client().write_batch_results(id, &mut written)?, 3);
    let keys: Vec<Value> = String::from_utf8(written)
        .expect("UTF-8")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["key"].clone())
        .collect();
    assert_eq!(keys, ["a", "b", "c"]);
    assert_eq!(t.item(id, "a").agent_id.as_deref(), Some("agent-1"));
    Ok(())
}

#[test]
fn items_that_fail_are_sent_again_as_often_as_they_may_and_no_others() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.answer(|_, body| match body["n"].as_u64() {
        Some(0) => Some(succeeded(&json!("good"))),
        Some(1) => Some(errored(ItemError::Server, "overloaded_error")),
        Some(2) => Some(errored(ItemError::Invalid, "invalid_request_error")),
        // Number 3 has no result at all.
        _ => None,
    });
    let id = t.send_as(batch().max_attempts(2), 4);
    t.complete(600);
    assert_eq!(t.status(id), Status::Running);
    assert_eq!(t.sizes(), [4, 2], "number 1 and number 3");
    t.complete(600);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 1, 3));
    let class = |key: &str| {
        let item = t.item(id, key);
        (item.error_class, item.attempt)
    };
    assert_eq!(class("key-1"), (Some("server".to_owned()), 2));
    assert_eq!(class("key-2"), (Some("invalid".to_owned()), 1));
    assert_eq!(class("key-3"), (Some("missing".to_owned()), 2));
    Ok(())
}

#[test]
fn a_batch_of_which_nothing_succeeds_fails_with_a_summary() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.answer(|_, _| Some(errored(ItemError::Content, "content_policy")));
    let id = t.send(2);
    t.complete(600);
    let job = t.client().get(id)?;
    assert_eq!(job.status, Status::Failed);
    let error = job.error.expect("an error");
    assert!(error.starts_with("none of 2 items succeeded, mostly: content_policy"), "{error}");
    // An operator may let it go once more.
    t.fake.answer(|_, _| Some(succeeded(&Value::Null)));
    t.client().retry(id)?;
    t.drain()?;
    t.complete(600);
    assert_eq!(t.batch(id).items.completed, 2);
    Ok(())
}

#[test]
fn results_that_are_cut_off_are_read_again_and_none_counts_twice() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().cuts.extend([0, 2, 3]);
    t.fake.inside().strays = vec!["not json at all".to_owned(), "unknown-id stray".to_owned()];
    let id = t.send(4);
    t.complete(1200);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed), (Status::Completed, 4));
    assert_eq!(batch.strays, 2, "however often they are read");
    assert_eq!(batch.spent.usage.input, Some(4 * 10 + 10), "and the one that was paid counts once");
    assert_eq!(t.fake.count("results"), 4);
    Ok(())
}

#[test]
fn a_poll_that_fails_wipes_nothing_and_is_made_again() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.submit(2);
    t.pass(60);
    let latest = || t.requests(id)[0].latest.clone();
    let known = latest();
    assert!(known.is_some());
    let failed = || CallError::new(Fate::Rejected, CallClass::Server, "503");
    t.fake.inside().polls.extend([failed(), failed(), CallError::new(Fate::Rejected, CallClass::NotFound, "404")]);
    t.pass(600);
    assert_eq!(latest(), known);
    t.complete(1200);
    assert_eq!(t.status(id), Status::Completed);
    let cycles = t.client().poll_cycles(100)?;
    assert!(cycles.iter().any(|cycle| cycle.failed == 1) && cycles.iter().any(|cycle| cycle.completed == 1));
    assert!(cycles.iter().all(|cycle| cycle.providers["fake"] == cycle.total));
    Ok(())
}

#[test]
fn a_cancelled_batch_keeps_what_was_done_and_submits_no_more() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items_in_flight = Some(2);
    let id = t.send(4);
    assert_eq!(t.fake.count("create"), 1);
    assert_eq!(t.client().cancel(id)?, Cancelled::Requested);
    t.drain()?;
    assert!(t.fake.inside().batches[0].cancelled);
    assert_eq!(t.status(id), Status::Running, "until its provider has come to an end");
    t.fake.answer(|_, body| (body["n"] == 0).then(|| succeeded(&Value::Null)));
    t.fake.end_all(&RemoteEnd::Cancelled);
    t.pass(1200);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.items.cancelled), (Status::Cancelled, 1, 3));
    assert_eq!(t.fake.count("create"), 1);
    assert_eq!(t.client().cancel(id)?, Cancelled::Already);
    Ok(())
}

#[test]
fn items_that_come_back_to_a_cancelled_batch_are_cancelled_too() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send(2);
    t.client().cancel(id)?;
    t.drain()?;
    t.fake.end_all(&RemoteEnd::Quota("token_limit_exceeded".to_owned()));
    t.pass(1200);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.cancelled, t.fake.count("create")), (Status::Cancelled, 2, 1));
    Ok(())
}

#[test]
fn a_cancel_of_a_batch_that_may_have_been_sent_is_remembered() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    t.fake.inside().finds.push_back(CallError::new(Fate::Rejected, CallClass::Server, "503"));
    let id = t.send(2);
    t.client().cancel(id)?;
    t.pass(120);
    assert!(t.fake.inside().batches[0].cancelled, "as soon as it was found");
    t.fake.end_all(&RemoteEnd::Cancelled);
    t.pass(1200);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Cancelled, 1));
    Ok(())
}

#[test]
fn each_reply_is_given_to_the_step_until_it_is_done() -> jobmill::Result<()> {
    let t = Scene::of(|builder| {
        builder.batch_step("converse", |reply, _| {
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
    });
    let id = t.submit_as(batch().step("converse"), 8);
    for _ in 0..6 {
        t.drain()?;
        t.complete(600);
    }
    let batch = t.batch(id);
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
    assert_eq!(t.sizes(), [8, 4, 2], "all that go on go together");
    let failed = t.item(id, "key-7");
    assert_eq!((failed.error_class.as_deref(), failed.error.as_deref()), (Some("step"), Some("seven is not liked")));
    Ok(())
}

#[test]
fn an_item_makes_no_more_requests_than_its_batch_lets_it() -> jobmill::Result<()> {
    let t = Scene::of(|builder| builder.batch_step("on and on", |_, _| Ok(Step::request(json!({ "n": 1 })))));
    let id = t.submit_as(batch().step("on and on").max_steps(3), 1);
    for _ in 0..5 {
        t.drain()?;
        t.complete(600);
    }
    assert_eq!((t.fake.count("create"), t.status(id)), (3, Status::Completed));
    Ok(())
}

#[test]
fn what_a_batch_costs_is_reckoned_by_the_users_prices_and_bounded_by_its_budget() -> jobmill::Result<()> {
    let prices = PriceTable::new("7", "EUR").model("m", Price::new(100.0, 200.0));
    let t = Scene::with(Batches::new().prices(prices));
    let id = t.submit(2);
    let stranger = t.client().submit(batch(), [item(0).model("unknown")])?.id();
    t.drain()?;
    t.complete(600);
    let spent = t.batch(id).spent;
    // 10 in and 5 out, twice, halved: 1000 + 1000 millionths of a euro.
    assert_eq!((spent.cost_nanos, spent.unpriced), (2_000_000, 0));
    assert_eq!((spent.currency.as_deref(), spent.prices.as_deref()), (Some("EUR"), Some("7")));
    let spent = t.batch(stranger).spent;
    assert_eq!((spent.cost_nanos, spent.unpriced), (0, 1), "unknown, and not nothing");
    assert_eq!(t.item(stranger, "key-0").cost_nanos, None);

    // About 9 tokens in and 5 out at most: 950 millionths for each item.
    let before = t.fake.count("create");
    let tight = t.send_as(batch().budget(0.002), 5);
    assert_eq!(t.batch(tight).items.sent, 2);
    t.complete(1200);
    let batch = t.batch(tight);
    assert!(batch.spent.cost_nanos <= 2_000_000, "{:?}", batch.spent);
    assert_eq!((batch.job.status, batch.items.failed), (Status::Completed, 3));
    assert_eq!(t.item(tight, "key-4").error_class.as_deref(), Some("budget"));
    assert_eq!(t.fake.count("create"), before + 1);
    Ok(())
}

#[test]
fn no_more_is_at_an_account_than_is_allowed() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items_in_flight = Some(3);
    let id = t.submit(8);
    for round in 1..=3 {
        t.drain()?;
        t.pass(30);
        let open = t.fake.inside().batches.iter().filter(|held| held.state == RemoteState::Running).count();
        assert_eq!((t.fake.count("create"), open), (round, 1));
        t.complete(600);
    }
    assert_eq!(t.batch(id).items.completed, 8);
    Ok(())
}

#[test]
fn a_quota_that_is_reached_halves_what_is_sent_and_costs_no_attempt() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send(8);
    t.fake.end_all(&RemoteEnd::Quota("token_limit_exceeded".to_owned()));
    t.pass(600);
    t.complete(1200);
    t.complete(1200);
    assert_eq!(t.sizes(), [8, 4, 4]);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed), (Status::Completed, 8));
    assert_eq!(t.item(id, "key-0").attempt, 1);
    Ok(())
}

#[test]
fn an_account_that_is_refused_is_left_alone_and_no_item_pays_for_it() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().creations.extend([
        Creation::Fails(Fate::Rejected, CallClass::Account),
        Creation::Fails(Fate::Rejected, CallClass::Account),
    ]);
    let id = t.submit(2);
    let second = t.send(2);
    assert_eq!(t.fake.count("create"), 1, "the second does not even try");
    t.pass(90);
    assert_eq!(t.fake.count("create"), 2);
    t.pass(600);
    t.complete(600);
    for id in [id, second] {
        assert_eq!(t.batch(id).items.completed, 2);
    }
    assert_eq!(t.item(id, "key-0").attempt, 1);
    Ok(())
}

#[test]
fn a_body_goes_as_a_file_where_the_provider_wants_one_and_is_found_again() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.uploads = true;
    t.fake.inside().creations.push_back(Creation::Fails(Fate::NotSent, CallClass::Transport));
    let id = t.submit(2);
    t.pass(60);
    assert_eq!((t.fake.count("upload"), t.fake.count("create")), (1, 2));
    t.complete(600);
    assert_eq!(t.batch(id).items.completed, 2);
    Ok(())
}

#[test]
fn a_crash_at_any_commit_loses_no_item_and_pays_for_none_twice() -> jobmill::Result<()> {
    use jobmill::testing::Fault;

    // One commit fails, or is not heard of; or nothing is written any more from there on, as if the process had died.
    for (fault, dead) in [(Fault::Before, false), (Fault::After, false), (Fault::Before, true)] {
        let mut last = None;
        for n in 1..200 {
            let mut t = Scene::new();
            t.fake.inside().limits.uploads = true;
            let id = t.submit(3);
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
                t.fake.complete_all();
                if t.status(id).is_terminal() {
                    break;
                }
            }
            let batch = t.batch(id);
            assert_eq!((batch.job.status, batch.items.completed), (Status::Completed, 3), "{fault:?}, {dead}, at {n}");
            assert_eq!(batch.spent.usage.input, Some(30), "{fault:?}, {dead}, at {n}");
            let keys: HashSet<String> = t.fake.inside().batches.iter().map(|held| held.key.clone()).collect();
            assert_eq!((t.fake.inside().batches.len(), keys.len()), (1, 1), "{fault:?}, {dead}, at {n}: made once");
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
fn a_deleted_batch_leaves_nothing_behind() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send(3);
    t.complete(600);
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
    let first = client.submit(batch(), items(2))?.id();
    let sent = |id| {
        until("the batch is at its provider", || {
            !client.batch_requests(id, &[RequestStatus::Running], None, 1).expect("requests").is_empty()
        });
    };
    sent(first);
    fake.complete_all();
    assert_eq!(client.wait(first, PATIENCE)?.status, Status::Completed, "within a second or two");

    fake.inside().limits.poll_min = secs(3600);
    let second = client.submit(batch(), items(2))?.id();
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
    let t = Scene::new();
    t.fake.inside().lists = true;
    t.fake.inside().limits.list_page = 100;
    let ids: Vec<JobId> = (0..10).map(|_| t.submit(1)).collect();
    t.drain()?;
    // One of them the list does not tell of.
    let hidden = t.fake.inside().batches[3].created_at;
    t.fake.inside().batches[3].created_at = jobmill::Timestamp::from_micros(0);
    t.advance(secs(60));
    let cycle = t.engine().poll()?;
    assert_eq!((cycle.total, cycle.running, cycle.calls), (10, 10, 2), "a list, and one by itself");
    t.fake.inside().batches[3].created_at = hidden;
    t.complete(600);
    assert!(ids.iter().all(|id| t.status(*id) == Status::Completed));
    Ok(())
}

#[test]
fn what_holds_up_a_batch_is_explained() -> jobmill::Result<()> {
    let t = Scene::new();
    let strange = t.client().submit(NewBatch::new("nobody"), items(1))?.id();
    t.drain()?;
    let explained = t.client().explain(strange)?.to_string();
    assert!(explained.contains("1 of its items wait") && explained.contains("no provider named nobody"), "{explained}");
    t.fake.inside().creations.push_back(Creation::Fails(Fate::Rejected, CallClass::Account));
    let id = t.send(2);
    let explained = t.client().explain(id)?.to_string();
    assert!(explained.contains("2 are at a provider") && explained.contains("nothing is sent to fake|"), "{explained}");
    Ok(())
}

#[test]
fn a_key_that_was_renewed_must_be_said_to_be() -> jobmill::Result<()> {
    let (old, directory) = (Fake::new("fake"), tempfile::tempdir().expect("a directory"));
    let path = directory.path().join("jobs.db");
    let engine = Engine::builder(&path).provider(old.clone()).inline()?;
    let id = engine.client().submit(batch(), items(1))?.id();
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
    let mut t = Scene::with(Batches::new().delete_after_harvest(true));
    t.fake.inside().limits.uploads = true;
    t.fake.inside().deletions = 1;
    let id = t.send(2);
    t.complete(30);
    assert_eq!(t.status(id), Status::Completed);
    assert_eq!(t.fake.inside().deleted, ["remote-0"], "the second failed");
    t.crash()?;
    t.pass(60);
    assert_eq!(t.fake.inside().deleted, ["remote-0", "remote-0", "file-0"]);
    Ok(())
}
