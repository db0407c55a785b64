//! Providers of batches against a server that speaks like each, and misbehaves like each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use jobmill::Timestamp;
use jobmill::provider::{
    Anthropic, AnthropicBuilder, Body, CallClass, CallError, CallResult, Create, Fate, Finish, ItemError, ItemOutcome,
    Key, OpenAi, OpenAiBuilder, Outgoing, OwnedOutgoing, Provider, Quirks, RefusedItem, RemoteBatch, RemoteEnd,
    RemoteState, ResultLine, Sought, Todo, Usage,
};
use jobmill::testing::Conformance;
use serde_json::json;
use serde_json::value::RawValue;

use crate::support::http::{CLOSED_PORT, Server};
use crate::support::provider_server::{Fault, Framing, KEY, Outcome, ProviderServer, Route, Shape};
use crate::support::{PATIENCE, secs};

const SHAPES: [Shape; 2] = [Shape::Anthropic, Shape::OpenAi];

fn anthropic(url: impl Into<String>) -> AnthropicBuilder {
    Anthropic::builder(Key::fixed(KEY)).base_url(url).call_timeout(PATIENCE).stall_timeout(PATIENCE)
}

fn openai(url: impl Into<String>) -> OpenAiBuilder {
    OpenAi::builder(Key::fixed(KEY)).base_url(url).call_timeout(PATIENCE).stall_timeout(PATIENCE)
}

fn provider(server: &ProviderServer) -> Box<dyn Provider> {
    let shape = server.state().shape;
    match shape {
        Shape::Anthropic => Box::new(anthropic(server.url()).build().expect("good settings")),
        Shape::OpenAi => Box::new(openai(server.url()).build().expect("good settings")),
    }
}

fn start(shape: Shape) -> (ProviderServer, Box<dyn Provider>) {
    let server = ProviderServer::start(shape);
    let provider = provider(&server);
    (server, provider)
}

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).expect("JSON")
}

/// The body of a batch of so many requests, whose ids are `key-0`, `key-1` and so on.
fn body(provider: &dyn Provider, key: &str, items: usize) -> Vec<u8> {
    let frame = provider.frame();
    let mut bytes = frame.open.as_bytes().to_vec();
    for number in 0..items {
        if number > 0 {
            bytes.extend_from_slice(frame.between.as_bytes());
        }
        let request = raw(&format!(r#"{{"max_tokens":9,"messages":[{{"role":"user","content":"{number}"}}]}}"#));
        let id = format!("{key}-{number}");
        provider.encode(&Outgoing::new(&id, "", "m-1", &request), &mut bytes).expect("a good request");
    }
    bytes.extend_from_slice(frame.close.as_bytes());
    bytes
}

/// Sends a batch, and tells which file it was uploaded as.
fn try_create(provider: &dyn Provider, key: &str, items: usize) -> (Option<String>, CallResult<RemoteBatch>) {
    let bytes = body(provider, key, items);
    let (length, mut reader) = (bytes.len() as u64, &bytes[..]);
    let body = Body { length, reader: &mut reader };
    if provider.limits().uploads {
        let file = provider.upload(&format!("{key}.jsonl"), body).expect("an upload");
        let created = provider.create(Create::with_file(key, "", items as u64, &file));
        (Some(file), created)
    } else {
        (None, provider.create(Create::with_body(key, "", items as u64, body)))
    }
}

#[track_caller]
fn create(provider: &dyn Provider, key: &str, items: usize) -> RemoteBatch {
    try_create(provider, key, items).1.expect("a batch")
}

#[track_caller]
fn refused(provider: &dyn Provider, key: &str) -> CallError {
    try_create(provider, key, 2).1.expect_err("no batch")
}

struct None_;

impl Todo for None_ {
    fn next(&mut self) -> Option<OwnedOutgoing> {
        panic!("nobody asks")
    }
}

/// What the results of a batch are, each in a few words, and how they end.
fn results(provider: &dyn Provider, batch: &RemoteBatch) -> (Vec<String>, CallResult<()>) {
    let mut all = Vec::new();
    let end = provider.results(batch, &mut None_, &mut |line| {
        all.push(match line {
            ResultLine::Result { custom_id, outcome, .. } => match outcome {
                ItemOutcome::Succeeded { finish: Finish::Stop, .. } => format!("{custom_id} good"),
                ItemOutcome::Succeeded { finish, .. } => format!("{custom_id} {finish:?}"),
                ItemOutcome::Errored { class, .. } => format!("{custom_id} {class:?}"),
                other => format!("{custom_id} {other:?}"),
            },
            ResultLine::Unreadable { problem, .. } => format!("({problem})"),
            other => format!("{other:?}"),
        });
        ControlFlow::Continue(())
    });
    (all, end)
}

/// A batch that has ended as decided.
fn ended(server: &ProviderServer, provider: &dyn Provider, items: usize) -> RemoteBatch {
    let batch = create(provider, "k", items);
    server.end(&batch.id);
    provider.poll(&batch.id).expect("a batch")
}

fn sought<'a>(key: &'a str, file: Option<&'a str>, items: u64) -> Sought<'a> {
    let now = Timestamp::from_micros(1_767_225_600_000_000);
    // As wide as the engine looks, which reckons with clocks that are wrong.
    Sought::new(key, file, items, now.saturating_sub(secs(305)), now.saturating_add(secs(305)))
}

#[test]
fn our_providers_conform() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        let broken = Conformance::new(&*provider)
            .secret(KEY)
            .settle(|id| server.end_once(id))
            .confuse(|id| server.set_status(id, "pondering"))
            .broken();
        assert_eq!(broken, Vec::<String>::new(), "{shape:?}");
    }
    let server = ProviderServer::start(Shape::OpenAi);
    server.state().idempotent = true;
    for quirks in [Quirks::llama_stack(), Quirks::perplexity(), Quirks::groq(), Quirks::azure()] {
        let name = quirks.name.clone();
        let provider = openai(server.url()).quirks(quirks).build().expect("good settings");
        let broken = Conformance::new(&provider).secret(KEY).settle(|id| server.end_once(id)).broken();
        assert_eq!(broken, Vec::<String>::new(), "{name}");
        server.forget();
    }
}

#[test]
fn the_suite_sees_what_is_broken() {
    /// A provider that does everything a little wrong.
    struct Careless(Box<dyn Provider>);
    impl Provider for Careless {
        fn account(&self) -> jobmill::provider::Account {
            jobmill::provider::Account::new(KEY, "", "")
        }
        fn limits(&self) -> jobmill::provider::Limits {
            self.0.limits()
        }
        fn frame(&self) -> jobmill::provider::Frame {
            self.0.frame()
        }
        fn encode(&self, item: &Outgoing<'_>, body: &mut Vec<u8>) -> Result<(), String> {
            let result = self.0.encode(item, body);
            if result.is_err() {
                body.push(b'x');
            }
            result
        }
        fn create(&self, new: Create<'_>) -> CallResult<RemoteBatch> {
            self.0.create(new)
        }
        fn find(&self, sought: &Sought<'_>) -> CallResult<Vec<jobmill::provider::Candidate>> {
            let mut found = self.0.find(&Sought::new("", None, 3, sought.since, sought.until))?;
            found.iter_mut().for_each(|candidate| candidate.certain = true);
            Ok(found)
        }
        fn poll(&self, id: &str) -> CallResult<RemoteBatch> {
            let mut batch = self.0.poll(id)?;
            if batch.raw_status == "pondering" {
                batch.state = RemoteState::Ended(RemoteEnd::Completed);
            }
            Ok(batch)
        }
        fn list(&self, since: Timestamp) -> CallResult<Option<Vec<RemoteBatch>>> {
            let mut list = self.0.list(since)?.unwrap_or_default();
            list.extend(list.clone());
            Ok(Some(list))
        }
        fn results(
            &self,
            batch: &RemoteBatch,
            todo: &mut dyn Todo,
            sink: &mut jobmill::provider::Sink<'_>,
        ) -> CallResult<()> {
            self.0.results(batch, todo, &mut |line| {
                let _ = sink(line);
                ControlFlow::Continue(())
            })
        }
        fn cancel(&self, id: &str) -> CallResult<RemoteBatch> {
            self.0.poll(id)
        }
        fn delete(&self, leftover: &str) -> CallResult<()> {
            self.0.delete(leftover)
        }
    }
    let (server, provider) = start(Shape::Anthropic);
    let careless = Careless(provider);
    let broken: BTreeSet<String> = Conformance::new(&careless)
        .secret(KEY)
        .settle(|id| server.end_once(id))
        .confuse(|id| server.set_status(id, "pondering"))
        .broken()
        .into_iter()
        .collect();
    for rule in [
        "account: does not show the key",
        "encode: a refusal leaves the body as it was",
        "find: is certain of nothing that is not there",
        "list: holds each batch once",
        "poll: a batch whose status nobody has heard of is running",
        "results: stop when the sink breaks",
        "cancel: the batch is being cancelled, or has ended",
    ] {
        assert!(broken.contains(rule), "{rule}: {broken:?}");
    }
}

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
fn no_redirect_is_followed_by_any_call() {
    for shape in SHAPES {
        let trap = Server::answering(200);
        let (server, provider) = start(shape);
        let batch = ended(&server, &*provider, 1);
        let to = |route| {
            for status in [302, 307] {
                server.fault(route, Fault::Redirect(status, trap.url("/trap")));
            }
        };
        for route in [Route::Create, Route::Poll, Route::List, Route::Results, Route::Delete] {
            to(route);
        }
        for _ in 0..2 {
            assert_eq!(refused(&*provider, "r").class, CallClass::Server);
            assert!(provider.poll(&batch.id).is_err());
            assert!(provider.find(&sought("r", None, 1)).is_err());
            assert!(results(&*provider, &batch).1.is_err());
            for leftover in provider.leftovers(&batch, None).into_iter().take(1) {
                assert!(provider.delete(&leftover).is_err());
            }
        }
        trap.is_untouched();
    }
}

#[test]
fn results_on_another_host_are_not_asked_for() {
    let (server, provider) = start(Shape::Anthropic);
    let batch = ended(&server, &*provider, 2);
    let trap = Server::answering(200);
    let port = server.http().address.port();
    for url in [
        trap.url("/v1/messages/batches/x/results"),
        format!("//{}/x", trap.address),
        format!("http://127.0.0.1:{port}@{}/x", trap.address),
        format!("https://127.0.0.1:{port}/x"),
        format!("http://localhost:{port}/x"),
    ] {
        server.state().results_url = Some(url.clone());
        let batch = provider.poll(&batch.id).expect("a batch");
        let asked = server.asked(Route::Results);
        let (lines, end) = results(&*provider, &batch);
        let error = end.expect_err(&url);
        assert_eq!((lines.len(), error.fate, server.asked(Route::Results)), (0, Fate::NotSent, asked), "{url}");
        assert!(!error.message.contains("127.0.0.1"), "{error}");
    }
    trap.is_untouched();
    for url in [server.http().url(&format!("/v1/x/../messages/batches/{}/results", batch.id)), "/nowhere".to_owned()] {
        server.state().results_url = Some(url.clone());
        let batch = provider.poll(&batch.id).expect("a batch");
        let (lines, end) = results(&*provider, &batch);
        assert_eq!((lines.len(), end.is_ok()), if url == "/nowhere" { (0, false) } else { (2, true) }, "{url}");
    }
}

#[test]
fn results_that_are_not_kept_any_more_are_not_found() {
    let (server, provider) = start(Shape::Anthropic);
    let mut batch = ended(&server, &*provider, 1);
    let told = |archived: serde_json::Value| {
        json!({"id": batch.id, "processing_status": "ended", "results_url": null, "archived_at": archived}).to_string()
    };
    batch.raw = told(json!(null));
    // It is asked once more, for what is known may be older than the end.
    assert_eq!(results(&*provider, &batch), (vec!["k-0 good".to_owned()], Ok(())));
    server.fault(Route::Poll, Fault::Answer(200, Vec::new(), told(json!("2026-01-31T00:00:00Z"))));
    assert_eq!(results(&*provider, &batch).1.expect_err("gone").class, CallClass::NotFound);
    server.fault(Route::Poll, Fault::Answer(200, Vec::new(), told(json!(null))));
    assert_eq!(results(&*provider, &batch).1.expect_err("no address").class, CallClass::Server);
}

#[test]
fn results_come_in_any_order_and_form() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        let batch = ended(&server, &*provider, 3);
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        let all = ["k-0 good", "k-1 good", "k-2 good"];
        assert_eq!(results(&*provider, &batch), (all.map(str::to_owned).to_vec(), Ok(())));

        // Backwards, the last line without an end.
        server.arrange(|mut lines| {
            lines.reverse();
            lines.join("\n").into_bytes()
        });
        let (lines, end) = results(&*provider, &batch);
        assert_eq!((lines, end), (vec!["k-2 good".to_owned(), "k-1 good".to_owned(), "k-0 good".to_owned()], Ok(())));

        // One twice, one missing, one that nobody sent, blank lines and a broken one.
        server.arrange(|lines| {
            let stray = lines[0].replace("k-0", "stray");
            format!("\n{0}\r\n\n{0}\n  \n{{\"custom_id\":\n{stray}\n{1}\n", lines[0], lines[1]).into_bytes()
        });
        let (lines, end) = results(&*provider, &batch);
        let expected = ["(the line is not JSON)", "k-0 good", "k-0 good", "k-1 good", "stray good"];
        assert_eq!((sorted(lines), end), (expected.map(str::to_owned).to_vec(), Ok(())), "{shape:?}");

        server.arrange(|lines| lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>().into());
        for framing in [Framing::Chunked, Framing::Length, Framing::Close] {
            for (packs, kind) in
                [(false, None), (true, None), (true, Some("application/binary")), (false, Some("text/html"))]
            {
                {
                    let mut state = server.state();
                    (state.framing, state.packs, state.content_type) = (framing, packs, kind);
                }
                let found = results(&*provider, &batch);
                assert_eq!(found, (all.map(str::to_owned).to_vec(), Ok(())), "{shape:?} {framing:?} {packs}");
            }
        }
    }
}

#[test]
fn results_that_are_cut_off_are_an_error_and_not_the_end() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        let batch = ended(&server, &*provider, 3);
        for framing in [Framing::NoLastChunk, Framing::ShortLength] {
            for packs in [false, true] {
                {
                    let mut state = server.state();
                    (state.framing, state.packs) = (framing, packs);
                }
                let error = results(&*provider, &batch).1.expect_err("cut off");
                assert_eq!(error.class, CallClass::Transport, "{shape:?} {framing:?} {packs}: {error:?}");
            }
        }
        server.state().packs = false;
        // Within a line.
        server.arrange(|lines| {
            let text = lines.join("\n");
            text.as_bytes()[..text.len() - 9].to_vec()
        });
        for framing in [Framing::Chunked, Framing::Length, Framing::Close] {
            server.state().framing = framing;
            let (lines, end) = results(&*provider, &batch);
            assert_eq!((lines.len(), end.expect_err("torn").class), (2, CallClass::Transport), "{shape:?} {framing:?}");
        }
        // Between two lines, where nothing but the count tells it.
        server.arrange(|lines| (lines[..2].join("\n") + "\n").into_bytes());
        let (lines, end) = results(&*provider, &batch);
        assert_eq!((lines.len(), end.expect_err("cut").class), (2, CallClass::Transport), "{shape:?}");
        // An answer that says where it ends may hold fewer lines.
        server.state().framing = Framing::Length;
        assert_eq!(results(&*provider, &batch).1, Ok(()));
    }
}

#[test]
fn what_ends_lines_in_texts_ends_none_in_results() {
    let nasty = "a\u{2028}b\u{2029}c\u{85}d\u{b}\u{c}e";
    for shape in SHAPES {
        let (server, provider) = start(shape);
        server.decide(move |_| Outcome::Say(nasty.to_owned()));
        let batch = ended(&server, &*provider, 2);
        let mut replies = Vec::new();
        let end = provider.results(&batch, &mut None_, &mut |line| {
            if let ResultLine::Result { outcome: ItemOutcome::Succeeded { reply, .. }, .. } = line {
                let said: serde_json::Value = serde_json::from_str(reply.get()).expect("JSON");
                let text = said.pointer("/content/0/text").or(said.pointer("/choices/0/message/content"));
                replies.push(text.and_then(|text| text.as_str()).expect("a text").to_owned());
            }
            ControlFlow::Continue(())
        });
        assert_eq!((end, replies), (Ok(()), vec![nasty.to_owned(); 2]), "{shape:?}");
    }
}

#[test]
fn a_line_of_64_mb_is_read_and_a_longer_one_is_passed_over() {
    let (server, provider) = start(Shape::Anthropic);
    let batch = ended(&server, &*provider, 1);
    server.stream(|out| {
        let piece = "x".repeat(1 << 20);
        let mut line = |id: &str, mb: usize| {
            let head = r#","result":{"type":"succeeded","message":{"stop_reason":"end_turn","content":[{"text":""#;
            write!(out, "{{\"custom_id\":\"{id}\"{head}")?;
            for _ in 0..mb {
                out.write_all(piece.as_bytes())?;
            }
            out.write_all(b"\"}]}}}\n")
        };
        line("long", 63)?;
        line("too-long", 65)?;
        line("short", 0)
    });
    let (lines, end) = results(&*provider, &batch);
    let expected = ["long good", "(the line is longer than a line may be)", "short good"].map(str::to_owned);
    assert_eq!((lines, end), (expected.to_vec(), Ok(())));
}

/// The most memory that this process has ever had, in KiB, where the system tells.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[test]
fn results_of_any_size_need_little_memory() {
    const CHILD: &str = "JOBMILL_TEST_CHILD";
    if std::env::var_os(CHILD).is_none() {
        // Alone in a process, for the memory of other tests would count.
        let this = std::env::current_exe().expect("the program of this test");
        let name = "provider::results_of_any_size_need_little_memory";
        let output = std::process::Command::new(this).env(CHILD, "1").args([name, "--exact"]).output();
        let output = output.expect("a child");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let (server, provider) = start(Shape::Anthropic);
    let batch = ended(&server, &*provider, 1);
    let before = peak_kib();
    const LINES: usize = 10_000;
    server.stream(|out| {
        let text = "0123456789abcdef".repeat(1280);
        for number in 0..LINES {
            let head = r#","result":{"type":"succeeded","message":{"stop_reason":"end_turn","content":[{"text":""#;
            writeln!(out, "{{\"custom_id\":\"{number}\"{head}{text}\"}}]}}}}}}")?;
        }
        Ok(())
    });
    let (mut count, mut bytes) = (0, 0);
    let end = provider.results(&batch, &mut None_, &mut |line| {
        if let ResultLine::Result { raw, .. } = line {
            count += 1;
            bytes += raw.len();
        }
        ControlFlow::Continue(())
    });
    assert_eq!((end, count), (Ok(()), LINES));
    assert!(bytes > 200_000_000);
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        assert!(after - before < 16 << 10, "{before} KiB before, {after} KiB at most");
    }
}

#[test]
fn a_sink_that_wants_no_more_gets_no_more() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        server.decide(|item| match item.custom_id.as_str() {
            "k-1" => Outcome::Fail(400, "invalid_request_error".to_owned(), "m".to_owned()),
            _ => Outcome::Say("x".to_owned()),
        });
        let batch = ended(&server, &*provider, 3);
        let mut count = 0;
        let end = provider.results(&batch, &mut None_, &mut |_| {
            count += 1;
            ControlFlow::Break(())
        });
        assert_eq!((end, count), (Ok(()), 1), "{shape:?}");
    }
}

#[test]
fn each_outcome_of_a_request_is_told() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        server.decide(|item| match item.custom_id.as_str() {
            "k-0" => Outcome::Say("x".to_owned()),
            "k-1" => Outcome::Fail(400, "invalid_request_error".to_owned(), format!("m {KEY}")),
            "k-2" => Outcome::Expire,
            "k-3" => Outcome::Cancel,
            _ => Outcome::Nothing,
        });
        let batch = ended(&server, &*provider, 5);
        assert_eq!(batch.state, RemoteState::Ended(RemoteEnd::Expired));
        let mut found = BTreeMap::new();
        let end = provider.results(&batch, &mut None_, &mut |line| {
            if let ResultLine::Result { custom_id, outcome, raw } = line {
                assert!(raw.starts_with('{') && raw.contains(custom_id));
                found.insert(custom_id.to_owned(), outcome);
            }
            ControlFlow::Continue(())
        });
        assert_eq!((end, found.len()), (Ok(()), 4));
        assert!(
            matches!(&found["k-0"], ItemOutcome::Succeeded { finish: Finish::Stop, usage, .. } if *usage == Usage::of(10, 5))
        );
        assert!(matches!(
            &found["k-1"],
            ItemOutcome::Errored { class: ItemError::Invalid, message, .. } if message == "m [redacted]"
        ));
        assert!(matches!(found["k-2"], ItemOutcome::Expired));
        assert!(matches!(found["k-3"], ItemOutcome::Cancelled));
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
fn a_poll_tells_what_the_provider_asks_for() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        let batch = create(&*provider, "k", 1);
        {
            let mut state = server.state();
            (state.retry_after, state.packs) = (Some(10), true);
        }
        let polled = provider.poll(&batch.id).expect("a batch");
        assert_eq!((polled.retry_after, polled.server_now), (Some(secs(10)), batch.server_now));
        let error = provider.poll("../../evil?x=1").expect_err("no such batch");
        assert_eq!(error.class, CallClass::NotFound);
        server.fault(Route::Poll, Fault::DropBefore);
        assert_eq!(provider.poll(&batch.id).expect_err("no answer").class, CallClass::Transport);
        server.fault(Route::Poll, Fault::Answer(429, Vec::new(), String::new()));
        let error = provider.poll(&batch.id).expect_err("too many");
        assert_eq!((error.class, error.retry_after), (CallClass::RateLimited, None));
    }
}

#[test]
fn a_cancel_tells_the_truth_whatever_became_of_its_answer() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        let batch = create(&*provider, "k", 2);
        // It was done, and nobody said so.
        server.fault(Route::Cancel, Fault::DropAfter);
        assert_eq!(provider.cancel(&batch.id).expect("a batch").state, RemoteState::Cancelling);
        server.decide(|_| Outcome::Cancel);
        server.end(&batch.id);
        let ended = provider.cancel(&batch.id).expect("a batch");
        assert_eq!(ended.state, RemoteState::Ended(RemoteEnd::Cancelled), "{shape:?}");
        assert_eq!(results(&*provider, &ended).0, ["k-0 Cancelled", "k-1 Cancelled"]);
        // It was not done.
        let batch = create(&*provider, "l", 2);
        server.fault(Route::Cancel, Fault::DropBefore);
        assert_eq!(provider.cancel(&batch.id).expect_err("no answer").class, CallClass::Transport);
        assert_eq!(provider.cancel("none").expect_err("none").class, CallClass::NotFound);
    }
}

#[test]
fn no_error_shows_the_key() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        let text = format!("Incorrect API key provided: {KEY}. Or was it sk-ab***********yz?");
        let body = match shape {
            Shape::Anthropic => json!({"error": {"type": KEY, "message": text}}),
            Shape::OpenAi => json!({"error": {"code": KEY, "message": text}}),
        };
        server.fault(Route::Poll, Fault::Answer(401, Vec::new(), body.to_string()));
        let error = provider.poll("x").expect_err("no such key");
        assert_eq!(error.class, CallClass::Account);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(KEY) && !shown.contains("sk-ab") && shown.contains("Incorrect API key"), "{shown}");
    }
    let (one, two) = (anthropic("http://127.0.0.1").build(), openai("http://127.0.0.1").build());
    let shown = format!("{one:?} {two:?} {:?}", anthropic("http://127.0.0.1"));
    assert!(!shown.contains(KEY), "{shown}");
}

#[test]
fn an_account_is_known_by_its_key_its_address_or_its_name() {
    let of = |builder: AnthropicBuilder| builder.build().expect("good settings").account();
    let one = of(anthropic("https://api.anthropic.com/"));
    assert_eq!(one.provider, "anthropic");
    assert_eq!(one.base_url, "https://api.anthropic.com");
    assert_eq!(one.api_version.as_deref(), Some("2023-06-01"));
    assert_eq!(one.fingerprint, of(anthropic("HTTPS://API.anthropic.com:443")).fingerprint);
    assert_ne!(one.fingerprint, of(anthropic("https://eu.anthropic.com")).fingerprint);
    let other = Anthropic::builder(Key::fixed("other-key")).build().expect("good settings").account();
    assert_ne!(one.fingerprint, other.fingerprint);
    // A name stays when the key changes, and needs no key to be there.
    let named = of(anthropic("https://api.anthropic.com").account("prod"));
    let gone = Anthropic::builder(Key::env("JOBMILL_NO_SUCH_VARIABLE")).account("prod").build();
    assert_eq!(named, gone.expect("good settings").account());
    assert!(!named.fingerprint.contains(KEY) && named.fingerprint != one.fingerprint);
    let groq = OpenAi::builder(Key::fixed(KEY)).base_url("https://api.groq.com/openai/v1").build();
    assert_eq!(groq.expect("good settings").account().provider, "groq");
}

#[test]
fn bad_settings_are_refused_by_name() {
    let bad = [
        (anthropic("nowhere").build().map(drop), "base_url: "),
        (anthropic("http://h").version("").build().map(drop), "version: "),
        (anthropic("http://h").version("a\nb").build().map(drop), "header: "),
        (anthropic("http://h").name("a|b").build().map(drop), "name: "),
        (anthropic("http://h").account("").build().map(drop), "account: "),
        (anthropic("http://h").header("X-Api-Key", "k").build().map(drop), "header: "),
        (anthropic("http://h").call_timeout(Duration::ZERO).build().map(drop), "call_timeout: "),
        (anthropic("http://h").limits(|limits| limits.items = 0).build().map(drop), "limits: "),
        (Anthropic::builder(Key::env("JOBMILL_NO_SUCH_VARIABLE")).build().map(drop), "key: "),
        (openai("http://h").limits(|limits| limits.endpoints = vec!["chat".to_owned()]).build().map(drop), "limits"),
    ];
    for (result, begin) in bad {
        let error = result.expect_err(begin);
        assert_eq!(error.kind(), jobmill::ErrorKind::Invalid);
        assert!(error.to_string().starts_with(begin), "{error}");
    }
}

#[test]
fn both_versions_and_both_ways_of_authentication_are_spoken() {
    let server = ProviderServer::start(Shape::Anthropic);
    let old = anthropic(server.url()).build().expect("good settings");
    create(&old, "k", 1);
    let came = server.http().next();
    assert_eq!((came.header("x-api-key"), came.header("authorization")), (Some(KEY), None));
    assert_eq!((came.header("anthropic-version"), came.header("anthropic-beta")), (Some("2023-06-01"), None));
    assert_eq!((came.header("connection"), came.header("transfer-encoding")), (Some("close"), None));

    let new = anthropic(server.url())
        .version("2026-10-21")
        .bearer()
        .beta("a")
        .beta("b")
        .header("anthropic-workspace-id", "w");
    let new = new.build().expect("good settings");
    create(&new, "k", 1);
    let came = server.http().next();
    assert_eq!((came.header("x-api-key"), came.header("authorization")), (None, Some(&*format!("Bearer {KEY}"))));
    assert_eq!((came.header("anthropic-version"), came.header("anthropic-beta")), (Some("2026-10-21"), Some("a,b")));
    assert_eq!(came.header("anthropic-workspace-id"), Some("w"));
    assert_eq!(new.account().api_version.as_deref(), Some("2026-10-21"));
}

#[test]
fn a_batch_of_openai_that_fails_says_what_may_be_done() {
    let (server, provider) = start(Shape::OpenAi);
    let failed = |code: &str, message: &str| {
        let batch = create(&*provider, "k", 1);
        server.fail(&batch.id, code, message);
        provider.poll(&batch.id).expect("a batch").state
    };
    let limit = "Enqueued token limit reached";
    assert_eq!(
        failed("token_limit_exceeded", limit),
        RemoteState::Ended(RemoteEnd::Quota(format!("token_limit_exceeded: {limit} (line 1)")))
    );
    assert_eq!(
        failed("invalid_json_line", "m"),
        RemoteState::Ended(RemoteEnd::Invalid("invalid_json_line: m (line 1)".to_owned()))
    );
    let named = RefusedItem { place: 1, message: "invalid_json_line: m".to_owned() };
    assert_eq!(provider.refused_items(&provider.poll(&server.last().id).expect("a batch")), [named]);
    assert!(matches!(failed("server_error", "m"), RemoteState::Ended(RemoteEnd::Broken(_))));
    let batch = create(&*provider, "k", 1);
    server.set_status(&batch.id, "failed");
    let state = provider.poll(&batch.id).expect("a batch").state;
    assert_eq!(state, RemoteState::Ended(RemoteEnd::Broken("the provider does not say why".to_owned())));
    // Nothing was run, so there are no results, which is no error.
    assert_eq!(results(&*provider, &provider.poll(&batch.id).expect("a batch")), (vec![], Ok(())));
}

#[test]
fn both_files_of_results_are_read_however_a_batch_ended() {
    let (server, provider) = start(Shape::OpenAi);
    for (status, end) in [
        ("completed", RemoteEnd::Completed),
        ("expired", RemoteEnd::Expired),
        ("cancelled", RemoteEnd::Cancelled),
        ("Completed", RemoteEnd::Completed),
    ] {
        server.decide(|item| match item.custom_id.as_str() {
            "k-0" => Outcome::Say("x".to_owned()),
            _ => Outcome::Fail(500, "server_error".to_owned(), "m".to_owned()),
        });
        let batch = create(&*provider, "k", 2);
        server.end(&batch.id);
        let completed = provider.poll(&batch.id).expect("a batch");
        server.set_status(&batch.id, status);
        let polled = provider.poll(&batch.id).expect("a batch");
        assert_eq!(polled.state, RemoteState::Ended(end), "{status}");
        // What is known may name no files: older than the end, or from a list.
        let known = if status == "Completed" { completed } else { polled };
        assert_eq!(results(&*provider, &known), (vec!["k-0 good".to_owned(), "k-1 Server".to_owned()], Ok(())));
        let mut known = known;
        known.raw = "{}".to_owned();
        if status != "Completed" {
            assert_eq!(results(&*provider, &known).0.len(), 2, "{status}");
        }
    }
    // Completed, and all of it failed.
    server.decide(|_| Outcome::Fail(400, "invalid_value".to_owned(), "m".to_owned()));
    let batch = ended(&server, &*provider, 2);
    assert!(batch.raw.contains("\"output_file_id\":null"));
    assert_eq!(results(&*provider, &batch), (vec!["k-0 Invalid".to_owned(), "k-1 Invalid".to_owned()], Ok(())));
    // One of the two files cannot be had: that is an error, not the end.
    server.fault(Route::Results, Fault::status(500));
    assert!(results(&*provider, &batch).1.is_err());
    // What the other holds is not lost with the one that is not kept any more.
    server.decide(|item| match item.custom_id.as_str() {
        "k-0" => Outcome::Say("x".to_owned()),
        _ => Outcome::Fail(400, "invalid_value".to_owned(), "m".to_owned()),
    });
    let batch = ended(&server, &*provider, 2);
    server.fault(Route::Results, Fault::status(404));
    let (told, end) = results(&*provider, &batch);
    assert_eq!((told, end.is_err()), (vec!["k-1 Invalid".to_owned()], true));
}

#[test]
fn each_endpoint_has_its_usage() {
    let (server, provider) = start(Shape::OpenAi);
    for (endpoint, usage) in [
        ("/v1/chat/completions", Usage::of(10, 5)),
        ("/v1/responses", Usage::of(10, 5)),
        ("/v1/embeddings", {
            let mut usage = Usage::default();
            usage.input = Some(10);
            usage
        }),
    ] {
        for as_text in [false, true] {
            server.state().bodies_as_text = as_text;
            let mut bytes = Vec::new();
            let request = raw(r#"{"input":"hello"}"#);
            provider.encode(&Outgoing::new("a", endpoint, "m", &request), &mut bytes).expect("a good request");
            let (length, mut reader) = (bytes.len() as u64, &bytes[..]);
            let file = provider.upload("k.jsonl", Body { length, reader: &mut reader }).expect("a file");
            let batch = provider.create(Create::with_file("k", endpoint, 1, &file)).expect("a batch");
            server.end(&batch.id);
            let batch = provider.poll(&batch.id).expect("a batch");
            let mut found = None;
            let end = provider.results(&batch, &mut None_, &mut |line| {
                if let ResultLine::Result { outcome: ItemOutcome::Succeeded { finish, usage, .. }, .. } = line {
                    found = Some((finish, usage));
                }
                ControlFlow::Continue(())
            });
            assert_eq!((end, found), (Ok(()), Some((Finish::Stop, usage))), "{endpoint} {as_text}");
        }
    }
    let request = raw("{}");
    let error = provider.encode(&Outgoing::new("a", "chat", "m", &request), &mut Vec::new());
    // Any endpoint is good for a server that nothing is known of.
    assert!(error.is_ok());
    let known = openai(server.url()).quirks(Quirks::groq()).build().expect("good settings");
    let error = known.encode(&Outgoing::new("a", "/v1/responses", "m", &request), &mut Vec::new());
    assert_eq!(error, Err("endpoint: must be one of /v1/chat/completions".to_owned()));
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

#[test]
fn azure_is_spoken_to_as_it_likes() {
    let server = ProviderServer::start(Shape::OpenAi);
    let provider = openai(format!("{}?api-version=v1", server.url())).quirks(Quirks::azure()).build();
    let provider = provider.expect("good settings");
    create(&provider, "k", 1);
    let came = server.http().next();
    assert_eq!((came.header("api-key"), came.header("authorization")), (Some(KEY), None));
    assert!(came.line.starts_with("POST /v1/files?api-version=v1 "), "{}", came.line);
    // Its list names the entries otherwise, and its times and words are others.
    let entry = json!({"id": "b", "status": "Validating", "created_at": "2026-01-01T00:00:00Z",
        "request_counts": {"total": null}, "input_file_id": "f"});
    let body = json!({"value": [entry], "has_more": false}).to_string();
    server.fault(Route::List, Fault::Answer(200, Vec::new(), body));
    let found = provider.find(&sought("k", Some("f"), 1)).expect("a list");
    assert_eq!(found[0].batch.state, RemoteState::Validating);
    assert_eq!(
        (found[0].batch.created_at, found[0].batch.counts.total),
        (Some(Timestamp::from_micros(1_767_225_600_000_000)), None)
    );
}

#[test]
fn what_is_left_over_can_be_deleted_and_no_error_if_it_is_gone() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        server.decide(|item| match item.custom_id.as_str() {
            "k-0" => Outcome::Say("x".to_owned()),
            _ => Outcome::Fail(400, "x".to_owned(), "m".to_owned()),
        });
        let running = create(&*provider, "k", 2);
        assert!(provider.leftovers(&running, None).is_empty(), "it runs");
        let batch = ended(&server, &*provider, 2);
        let leftovers = provider.leftovers(&batch, None);
        assert_eq!(leftovers.len(), if shape == Shape::OpenAi { 3 } else { 1 });
        for leftover in leftovers.iter().chain(&leftovers) {
            assert_eq!(provider.delete(leftover), Ok(()), "{shape:?} {leftover}");
            assert!(server.state().deleted.contains(leftover));
        }
        server.fault(Route::Delete, Fault::status(500));
        assert!(provider.delete(&leftovers[0]).is_err());
    }
}
