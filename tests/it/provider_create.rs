//! How a batch comes to its provider: as it was encoded, once, and found again if nobody knows.

use std::collections::BTreeSet;

use jobmill::Timestamp;
use jobmill::provider::{Body, CallClass, Create, Fate, Provider, Quirks, RemoteState, Sought};
use serde_json::json;

use crate::support::http::{CLOSED_PORT, Server};
use crate::support::provider::{SHAPES, anthropic, create, openai, refused, sought, start, try_create};
use crate::support::provider_server::ProviderServer;
use crate::support::provider_server::script::{Fault, Route, Shape};
use crate::support::secs;

/// The moment about which batches are sought.
const NOW: &str = "2026-01-01T00:00:00Z";

#[test]
fn a_batch_arrives_as_it_was_encoded() {
    let (server, provider) = start(Shape::Anthropic);
    let batch = create(&*provider, "k", 2);
    let made = server.last();
    assert_eq!(made.id, batch.id);
    let ids: Vec<&str> = made.items.iter().map(|item| item.custom_id.as_str()).collect();
    assert_eq!(ids, ["k-0", "k-1"]);
    let expected = json!({"model": "m-1", "max_tokens": 9, "messages": [{"role": "user", "content": "1"}]});
    assert_eq!(made.items[1].body, expected);
    assert_eq!((batch.state, batch.raw_status.as_str()), (RemoteState::Running, "in_progress"));
    assert_eq!((batch.counts.total, batch.created_at), (Some(2), Some(made.created_at)));
    assert_eq!(batch.expires_at, Some(made.created_at.saturating_add(secs(86_400))));
    assert_eq!(batch.server_now, Some(made.created_at));

    let (server, provider) = start(Shape::OpenAi);
    let batch = create(&*provider, "k", 2);
    let (made, file) = (server.last(), server.state().files[0].clone());
    assert_eq!((made.key.as_deref(), made.input_file.as_deref()), (Some("k"), Some(&*file.id)));
    assert_eq!((file.name.as_str(), made.endpoint.as_str()), ("k.jsonl", "/v1/chat/completions"));
    let text = String::from_utf8(file.bytes).expect("UTF-8");
    let first = text.lines().next().expect("a line");
    assert_eq!(
        first,
        r#"{"custom_id":"k-0","method":"POST","url":"/v1/chat/completions","body":{"model":"m-1","max_tokens":9,"messages":[{"role":"user","content":"0"}]}}"#
    );
    assert!(text.ends_with("}}\n") && text.lines().count() == 2);
    assert_eq!((batch.state, batch.created_at), (RemoteState::Validating, Some(made.created_at)));
}

#[test]
fn a_creation_without_an_answer_is_ambiguous_and_found_by_looking() {
    let faults = [
        Fault::DropAfter,
        Fault::status_after(500),
        Fault::status_after(503),
        Fault::status_after(529),
        Fault::status_after(408),
        Fault::status_after(409),
        Fault::Garbage,
        Fault::AnswerAfter(200, Vec::new(), "{\"id\":".to_owned()),
        Fault::AnswerAfter(200, Vec::new(), "[]".to_owned()),
        Fault::AnswerAfter(200, Vec::new(), String::new()),
    ];
    for shape in SHAPES {
        for (number, fault) in faults.iter().enumerate() {
            let (server, provider) = start(shape);
            create(&*provider, "another", 3);
            server.fault(Route::Create, fault.clone());
            let (file, created) = try_create(&*provider, "k", 2);
            let error = created.expect_err("no answer");
            assert_eq!(error.fate, Fate::Ambiguous, "{shape:?} {number}: {error:?}");
            // It was made, once, and nothing was sent a second time.
            assert_eq!((server.asked(Route::Create), server.state().batches.len()), (2, 2));
            let found = provider.find(&sought("k", file.as_deref(), 2)).expect("a list");
            let ids: Vec<(&str, bool)> = found.iter().map(|one| (one.batch.id.as_str(), one.certain)).collect();
            assert_eq!(ids, [(server.last().id.as_str(), shape == Shape::OpenAi)], "{shape:?} {number}");
        }
    }
}

#[test]
fn a_creation_that_takes_too_long_is_ambiguous() {
    let server = ProviderServer::start(Shape::Anthropic);
    let provider = anthropic(server.url()).limits(|limits| limits.create_timeout = secs(1)).build();
    let provider = provider.expect("good settings");
    let (release, held) = crossbeam_channel::bounded(0);
    server.fault(Route::Create, Fault::Hold(held));
    let error = refused(&provider, "k");
    assert_eq!((error.fate, error.class, &*error.message), (Fate::Ambiguous, CallClass::Transport, "timed out"));
    // What was sent is read some time, and then it is made.
    server.wait_until(|state| state.batches.len() == 1);
    drop(release);
    assert_eq!(provider.find(&sought("k", None, 2)).expect("a list").len(), 1);
}

#[test]
fn a_creation_that_was_refused_may_be_sent_again() {
    let error = |shape: Shape, kind: &str| match shape {
        Shape::Anthropic => json!({"type": "error", "error": {"type": kind, "message": "m"}}).to_string(),
        Shape::OpenAi => json!({"error": {"message": "m", "type": kind, "code": kind}}).to_string(),
    };
    let table = [
        (400, "invalid_request_error", CallClass::Invalid),
        (401, "authentication_error", CallClass::Account),
        (402, "billing_error", CallClass::Account),
        (403, "permission_error", CallClass::Account),
        (404, "not_found_error", CallClass::NotFound),
        (413, "request_too_large", CallClass::TooLarge),
        (429, "rate_limit_error", CallClass::RateLimited),
    ];
    for shape in SHAPES {
        let (server, provider) = start(shape);
        for (status, kind, class) in table {
            server
                .fault(Route::Create, Fault::Answer(status, vec![("Retry-After", "7".to_owned())], error(shape, kind)));
            let refused = refused(&*provider, "k");
            assert_eq!((refused.fate, refused.class), (Fate::Rejected, class), "{shape:?} {status}");
            assert_eq!((refused.status, refused.code.as_deref()), (Some(status), Some(kind)));
            assert_eq!((refused.message.as_str(), refused.retry_after), ("m", Some(secs(7))));
        }
        assert!(server.state().batches.is_empty());
    }
    // Nobody is there.
    let url = format!("http://{CLOSED_PORT}");
    let nobody = anthropic(url).build().expect("good settings");
    assert_eq!(refused(&nobody, "k").fate, Fate::NotSent);
}

#[test]
fn a_limit_of_spending_is_the_accounts_and_asks_for_no_loop() {
    let (server, provider) = start(Shape::Anthropic);
    let body = |code: &str| {
        let error = json!({"type": "rate_limit_error", "message": "m", "details": {"error_code": code}});
        json!({"type": "error", "error": error}).to_string()
    };
    let ask = |status: u16, headers: Vec<(&'static str, String)>, body: String| {
        server.fault(Route::Create, Fault::Answer(status, headers, body));
        let error = refused(&*provider, "k");
        (error.class, error.code.unwrap_or_default(), error.retry_after)
    };
    for code in ["enforced_spend_limit_reached", "contract_spend_limit_reached"] {
        assert_eq!(ask(429, Vec::new(), body(code)), (CallClass::Account, code.to_owned(), None));
    }
    let slow = "ramp_limit_exceeded";
    assert_eq!(ask(429, Vec::new(), body(slow)), (CallClass::RateLimited, slow.to_owned(), None));
    let wait = vec![("Retry-After", "2".to_owned())];
    assert_eq!(ask(429, wait, body("x")), (CallClass::RateLimited, "x".to_owned(), Some(secs(2))));
    // The organization's own limit comes as an invalid request.
    let text = "You have reached your specified API usage limits.";
    let own = json!({"type": "error", "error": {"type": "invalid_request_error", "message": text}}).to_string();
    assert_eq!(ask(400, Vec::new(), own).0, CallClass::Account);

    let (server, provider) = start(Shape::OpenAi);
    for (code, class) in [("insufficient_quota", CallClass::Account), ("rate_limit_exceeded", CallClass::RateLimited)] {
        let body = json!({"error": {"message": "m", "type": "requests", "code": code}}).to_string();
        server.fault(Route::Create, Fault::Answer(429, Vec::new(), body));
        assert_eq!(refused(&*provider, "k").class, class, "{code}");
    }
}

#[test]
fn lists_are_read_to_their_end_even_if_they_have_none() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        for number in 0..250 {
            create(&*provider, &format!("k{number}"), 1);
        }
        let asked = server.asked(Route::List);
        let all = provider.list(Timestamp::EPOCH).expect("a list").expect("a list");
        let ids: BTreeSet<&str> = all.iter().map(|batch| batch.id.as_str()).collect();
        assert_eq!((all.len(), ids.len(), server.asked(Route::List) - asked), (250, 250, 3), "{shape:?}");
        server.state().list_ignores_cursor = true;
        let all = provider.list(Timestamp::EPOCH).expect("a list").expect("a list");
        assert_eq!((all.len(), server.asked(Route::List) - asked), (100, 5), "{shape:?}");
    }
}

#[test]
fn a_list_is_read_no_further_back_than_is_asked_for() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        let day = |number: u64| Timestamp::from_micros(1_767_225_600_000_000).saturating_add(secs(86_400 * number));
        for number in 0..3 {
            server.clock(move || day(number));
            for one in 0..100 {
                create(&*provider, &format!("k{number}-{one}"), 1);
            }
        }
        let asked = server.asked(Route::List);
        let found = provider.list(day(2)).expect("a list").expect("a list");
        // The second page lies before it as a whole, so there is no third.
        assert_eq!((found.len(), server.asked(Route::List) - asked), (200, 2), "{shape:?}");
    }
}

#[test]
fn a_clock_that_is_wrong_by_minutes_hides_no_batch() {
    for shape in SHAPES {
        for minutes in [-4_i64, 4] {
            let (server, provider) = start(shape);
            let now = 1_767_225_600_000_000 + minutes * 60_000_000;
            server.clock(move || Timestamp::from_micros(now));
            server.fault(Route::Create, Fault::DropAfter);
            let (file, _) = try_create(&*provider, "k", 2);
            let found = provider.find(&sought("k", file.as_deref(), 2)).expect("a list");
            assert_eq!(found.len(), 1, "{shape:?} {minutes}");
            assert_eq!(found[0].batch.created_at, Some(Timestamp::from_micros(now)));
        }
    }
}

/// A machine whose clock is a day ahead looked for its batch in the future, found none, and paid for another.
#[test]
fn a_clock_that_is_wrong_by_a_day_hides_no_batch_and_finds_none_of_another_day() {
    for shape in SHAPES {
        for hours in [-24_i64, 24] {
            let (server, provider) = start(shape);
            let here = Timestamp::from_micros(1_767_225_600_000_000);
            let there = Timestamp::from_micros(here.as_micros() + hours * 3_600_000_000);
            server.clock(move || there);
            server.fault(Route::Create, Fault::DropAfter);
            let (file, _) = try_create(&*provider, "k", 2);
            let found = provider.find(&sought("k", file.as_deref(), 2).now(here)).expect("a list");
            assert_eq!(found.len(), 1, "{shape:?} {hours}");
            // By the clock there, that was two days ago.
            let later = Timestamp::from_micros(here.as_micros() + 48 * 3_600_000_000);
            let missed = provider.find(&Sought::new("l", None, 2, later, later).now(here)).expect("a list");
            assert_eq!(missed.len(), 0, "{shape:?} {hours}");
        }
    }
}

#[test]
fn an_upload_is_exact_and_found_again_by_its_name() {
    let (server, provider) = start(Shape::OpenAi);
    // Longer than what is announced first, so both ways are gone.
    for length in [1_usize, 1000, 3 << 20] {
        let bytes = vec![b'x'; length];
        let name = format!("k{length}.jsonl");
        let mut reader = &bytes[..];
        let id = provider.upload(&name, Body { length: length as u64, reader: &mut reader }).expect("a file");
        let file = server.state().files.last().cloned().expect("a file");
        assert_eq!((file.id, file.name, file.bytes == bytes), (id.clone(), name.clone(), true));
        assert_eq!(provider.find_upload(&name), Ok(vec![id]));
    }
    assert_eq!(provider.find_upload("none.jsonl"), Ok(vec![]));
    // The answer to an upload is lost: the file is there, and the newest comes first.
    server.fault(Route::Upload, Fault::DropAfter);
    let send = |length: u64, mut bytes: &[u8]| provider.upload("k1.jsonl", Body { length, reader: &mut bytes });
    assert_eq!(send(2, b"xx").expect_err("no answer").fate, Fate::Ambiguous);
    assert_eq!(provider.find_upload("k1.jsonl").expect("a list").len(), 2);
    // What is not as long as was said never becomes a file.
    let files = server.state().files.len();
    assert!(send(3, b"xx").is_err() && send(1, b"xx").is_err());
    assert!(provider.upload("a\"b", Body { length: 0, reader: &mut std::io::empty() }).is_err());
    assert_eq!(server.state().files.len(), files);
    // A server that cut it off is found out.
    let body = json!({"id": "file-1", "bytes": 1}).to_string();
    server.fault(Route::Upload, Fault::Answer(200, Vec::new(), body));
    assert_eq!(send(2, b"xx").expect_err("cut").message, "the file did not arrive as it was sent");
}

#[test]
fn two_batches_of_one_file_are_both_found() {
    let (server, provider) = start(Shape::OpenAi);
    let (file, created) = try_create(&*provider, "k", 2);
    let file = file.expect("a file");
    provider.create(Create::with_file("k", "", 2, &file)).expect("a second");
    create(&*provider, "other", 2);
    let found = provider.find(&sought("k", Some(&file), 2)).expect("a list");
    assert_eq!((found.len(), found.iter().all(|one| one.certain)), (2, true));
    assert!(found.iter().any(|one| one.batch.id == created.as_ref().expect("a batch").id));
    // The key alone is enough, and so is the file where nothing else is kept.
    assert_eq!(provider.find(&sought("k", None, 2)).expect("a list").len(), 2);
    assert_eq!(provider.find(&sought("x", Some(&file), 2)).expect("a list").len(), 2);
    assert_eq!(provider.find(&sought("x", None, 2)).expect("a list").len(), 0);
    drop(server);
}

#[test]
fn a_repeated_creation_makes_no_second_batch_where_that_is_honoured() {
    let server = ProviderServer::start(Shape::OpenAi);
    server.state().idempotent = true;
    for (quirks, batches) in [(Quirks::llama_stack(), 1), (Quirks::perplexity(), 1), (Quirks::gateway(), 2)] {
        let name = quirks.name.clone();
        let provider = openai(server.url()).quirks(quirks).build().expect("good settings");
        assert_eq!(provider.limits().idempotent, batches == 1);
        server.fault(Route::Create, Fault::DropAfter);
        let (file, _) = try_create(&provider, &format!("k-{name}"), 1);
        let file = file.expect("a file");
        provider.create(Create::with_file(&format!("k-{name}"), "", 1, &file)).expect("a batch");
        assert_eq!(server.state().batches.len(), batches, "{name}");
        server.forget();
    }
}

/// What lies behind the first page was not found, and would have been sent again.
#[test]
fn a_list_that_says_that_it_goes_on_and_not_where_goes_on_behind_its_last() {
    let server = Server::start(|_, connection| {
        let Some(request) = connection.request() else { return };
        let entry = |id: &str| json!({ "id": id, "processing_status": "in_progress", "created_at": NOW });
        let page = match request.line.contains("after_id=b-2") {
            false => json!({ "data": [entry("b-1"), entry("b-2")], "has_more": true, "last_id": null }),
            true => json!({ "data": [entry("b-3")], "has_more": false, "last_id": "b-3" }),
        };
        connection.answer(200, &[("Connection", "close")], &page.to_string());
    });
    let provider = anthropic(server.url("")).build().expect("good settings");
    let found = provider.find(&sought("k", None, 1)).expect("a list");
    let ids: Vec<&str> = found.iter().map(|candidate| candidate.batch.id.as_str()).collect();
    assert_eq!(ids, ["b-1", "b-2", "b-3"]);
}
