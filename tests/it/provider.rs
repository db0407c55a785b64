//! Providers of batches against a server that speaks like each, and misbehaves like each.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;

use jobmill::Timestamp;
use jobmill::provider::{
    Anthropic, AnthropicBuilder, CallClass, CallResult, Create, Key, OpenAi, Outgoing, Provider, Quirks, RefusedItem,
    RemoteBatch, RemoteEnd, RemoteState, Sought, Todo,
};
use jobmill::testing::Conformance;
use serde_json::json;

use crate::support::http::Server;
use crate::support::provider::{SHAPES, anthropic, create, ended, openai, refused, results, sought, start};
use crate::support::provider_server::script::{Fault, Outcome, Route, Shape};
use crate::support::provider_server::{KEY, ProviderServer};
use crate::support::secs;

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
    let gone = Anthropic::builder(Key::env("NO_SUCH_VARIABLE")).account("prod").build();
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
        (Anthropic::builder(Key::env("NO_SUCH_VARIABLE")).build().map(drop), "key: "),
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
