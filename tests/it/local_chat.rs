//! Batches that are run request by request at a chat endpoint: what is sent, what its answers mean, how many at a time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::unbounded;
use jobmill::provider::{
    CallClass, Fate, Finish, ItemError, ItemOutcome, Key, Local, LocalChat, OwnedOutgoing, Provider, RemoteBatch,
    RemoteEnd, RemoteState, ResultLine, Todo,
};
use jobmill::testing::{Conformance, Harness};
use jobmill::{BatchItem, Batches, ErrorKind, NewBatch, Status, Usage};
use serde_json::value::RawValue;

use crate::support::http::{CLOSED_PORT, Connection, Server};
use crate::support::{PATIENCE, secs};

const CHAT: &str = "/v1/chat/completions";
const ANSWER: &str = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],
    "usage":{"prompt_tokens":5,"completion_tokens":2}}"#;

/// The same request, so many times.
struct Same {
    left: usize,
    endpoint: &'static str,
    body: &'static str,
}

impl Same {
    fn times(left: usize) -> Self {
        Self { left, endpoint: CHAT, body: r#"{"model":"m","messages":[]}"# }
    }
}

impl Todo for Same {
    fn next(&mut self) -> Option<OwnedOutgoing> {
        self.left = self.left.checked_sub(1)?;
        Some(OwnedOutgoing {
            custom_id: self.left.to_string(),
            endpoint: self.endpoint.to_owned(),
            model: "m".to_owned(),
            body: RawValue::from_string(self.body.to_owned()).expect("JSON"),
        })
    }
}

/// What the requests came to, by their names.
fn outcomes(provider: &Local, mut todo: Same) -> BTreeMap<String, ItemOutcome> {
    let mut came = BTreeMap::new();
    let mut sink = |line: ResultLine<'_>| {
        if matches!(line, ResultLine::Lull) {
            return ControlFlow::Continue(());
        }
        let ResultLine::Result { custom_id, outcome, .. } = line else { panic!("{line:?}") };
        assert!(came.insert(custom_id.to_owned(), outcome).is_none(), "{custom_id} came twice");
        ControlFlow::Continue(())
    };
    let batch = RemoteBatch::new("b", RemoteState::Ended(RemoteEnd::Completed), "{}");
    provider.results(&batch, &mut todo, &mut sink).expect("results");
    came
}

/// What one request comes to.
fn outcome(chat: LocalChat) -> ItemOutcome {
    let provider = chat.build().expect("a provider");
    outcomes(&provider, Same::times(1)).remove("0").expect("a result")
}

#[track_caller]
fn failed(outcome: ItemOutcome) -> (ItemError, String, String) {
    let ItemOutcome::Errored { class, code, message, usage } = outcome else { panic!("{outcome:?}") };
    assert!(usage.is_unknown());
    (class, code, message)
}

fn answering(status: u16, body: &'static str) -> Server {
    Server::start(move |_, connection| connection.reply(status, &[], body))
}

#[test]
fn a_request_goes_to_openais_endpoint_as_it_is_and_its_answer_is_the_reply() {
    let server = answering(200, ANSWER);
    let chat = Local::chat_openai(server.url("/v1")).key(Key::fixed("secret-key-1")).header("x-team", "a");
    let ItemOutcome::Succeeded { reply, finish, usage } = outcome(chat) else { panic!("it succeeds") };
    assert_eq!((reply.get(), finish, usage), (ANSWER, Finish::Stop, Usage::of(5, 2)));
    let sent = server.next();
    assert_eq!(sent.line, "POST /v1/chat/completions HTTP/1.1");
    assert_eq!(sent.header("authorization"), Some("Bearer secret-key-1"));
    assert_eq!(sent.header("content-type"), Some("application/json"));
    assert_eq!(sent.header("x-team"), Some("a"));
    assert_eq!(sent.body, Same::times(1).body.as_bytes());
}

#[test]
fn a_request_goes_to_anthropics_endpoint_as_it_is_and_its_answer_is_the_reply() {
    let body = r#"{"type":"message","content":[],"stop_reason":"max_tokens",
        "usage":{"input_tokens":5,"cache_read_input_tokens":3,"output_tokens":2}}"#;
    let server = answering(200, body);
    let provider = Local::chat_anthropic(server.url("")).key(Key::fixed("secret-key-1")).build().expect("a provider");
    let todo = Same { endpoint: "/v1/messages", ..Same::times(1) };
    let outcome = outcomes(&provider, todo).remove("0").expect("a result");
    let ItemOutcome::Succeeded { finish, usage, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((finish, usage), (Finish::Length, Usage::of(8, 2).cached(Some(3), None)));
    let sent = server.next();
    assert_eq!(sent.line, "POST /v1/messages HTTP/1.1");
    assert_eq!(sent.header("x-api-key"), Some("secret-key-1"));
    assert_eq!(sent.header("anthropic-version"), Some("2023-06-01"));
    assert_eq!(sent.header("authorization"), None);
}

#[test]
fn a_key_is_sent_only_if_there_is_one_and_a_header_that_is_set_again_counts_once() {
    let server = answering(200, r#"{"content":[]}"#);
    let chat =
        Local::chat_anthropic(server.url("/v1")).header("Anthropic-Version", "1").header("anthropic-version", "2");
    let provider = chat.build().expect("a provider");
    outcomes(&provider, Same { endpoint: "", ..Same::times(1) });
    let sent = server.next();
    assert_eq!(sent.header("x-api-key"), None);
    assert_eq!(sent.header("anthropic-version"), Some("2"));
}

#[test]
fn the_version_stands_in_the_address_once() {
    let server = answering(200, ANSWER);
    let openai = |path: &str| Local::chat_openai(server.url(path));
    let anthropic = |path: &str| Local::chat_anthropic(server.url(path));
    let table = [
        (openai(""), "", "/v1/chat/completions"),
        (openai("/"), "/v1/embeddings", "/v1/embeddings"),
        (openai("/v1"), "/v1/responses", "/v1/responses"),
        (openai("/openai/v1/"), "", "/openai/v1/chat/completions"),
        (openai("/v1beta/openai"), CHAT, "/v1beta/openai/chat/completions"),
        (openai("/v1?api-version=2"), CHAT, "/v1/chat/completions?api-version=2"),
        (anthropic(""), "", "/v1/messages"),
        (anthropic("/v1"), "", "/v1/messages"),
        (anthropic("/anthropic"), "/v1/messages", "/anthropic/v1/messages"),
    ];
    for (chat, endpoint, path) in table {
        outcomes(&chat.build().expect("a provider"), Same { endpoint, ..Same::times(1) });
        assert_eq!(server.next().line, format!("POST {path} HTTP/1.1"));
    }
}

#[test]
fn an_answer_that_is_no_success_says_what_kind_of_failure_it_is() {
    let error = r#"{"error":{"type":"t","code":null,"message":"said so"}}"#;
    let table = [
        (302, "", ItemError::Server, "302"),
        (400, error, ItemError::Invalid, "t"),
        (400, r#"{"error":{"code":"content_filter"}}"#, ItemError::Content, "content_filter"),
        (401, r#"{"error":{"type":"invalid_request_error"}}"#, ItemError::Account, "invalid_request_error"),
        (403, "", ItemError::Account, "403"),
        (404, r#"{"error":"model 'm' not found"}"#, ItemError::Invalid, "404"),
        (413, "", ItemError::Invalid, "413"),
        (422, r#"{"detail":[]}"#, ItemError::Invalid, "422"),
        (429, error, ItemError::RateLimited, "t"),
        (429, r#"{"error":{"code":"insufficient_quota"}}"#, ItemError::Account, "insufficient_quota"),
        (500, "no JSON", ItemError::Server, "500"),
        (500, r#"{"object":"error","type":"invalid_request_error"}"#, ItemError::Server, "500"),
        (503, "", ItemError::Server, "503"),
        (529, r#"{"type":"error","error":{"type":"overloaded_error"}}"#, ItemError::Server, "overloaded_error"),
    ];
    for (status, body, class, code) in table {
        let server = answering(status, body);
        let (was, word, message) = failed(outcome(Local::chat_openai(server.url("/v1"))));
        assert_eq!((was, word.as_str()), (class, code), "{status} {body}");
        assert_eq!(message == "said so", body == error, "{message}");
        assert_eq!(server.connections(), 1, "no request is made again");
    }
}

#[test]
fn an_answer_that_cannot_be_read_is_the_servers_failure() {
    for body in ["", "hi", "{", "[]", r#"{"choices":[]}"#, "data: {}\n\n"] {
        let server = answering(200, body);
        let (class, code, _) = failed(outcome(Local::chat_openai(server.url("/v1"))));
        assert_eq!((class, code.as_str()), (ItemError::Server, "unreadable"), "{body:?}");
    }
    let server = answering(200, r#"{"error":{"code":"server_error","message":"out of memory"}}"#);
    let expected = (ItemError::Server, "server_error".to_owned(), "out of memory".to_owned());
    assert_eq!(failed(outcome(Local::chat_openai(server.url("/v1")))), expected);
}

#[test]
fn where_nobody_answers_no_request_fails() {
    let batch = RemoteBatch::new("b", RemoteState::Ended(RemoteEnd::Completed), "{}");
    for (place, problem) in [
        (format!("http://{CLOSED_PORT}/v1"), "the connection was refused"),
        ("http://no-such-host.invalid/v1".to_owned(), "the host was not found"),
    ] {
        let provider = Local::chat_openai(place).concurrency(3).build().expect("a provider");
        let mut todo = Same::times(1000);
        let mut sink = |line: ResultLine<'_>| panic!("{line:?}");
        let error = provider.results(&batch, &mut todo, &mut sink).expect_err("nobody is there");
        assert_eq!((error.fate, error.class, &*error.message), (Fate::NotSent, CallClass::Transport, problem));
        assert!(todo.left >= 997, "it is not tried with each request");
    }
}

#[test]
fn a_batch_waits_for_an_endpoint_that_is_not_there_and_spends_no_attempts() -> jobmill::Result<()> {
    let place = Arc::new(Mutex::new(format!("http://{CLOSED_PORT}/v1")));
    let at = place.clone();
    let mut t = Harness::new(move |builder| {
        let provider = Local::chat_openai(at.lock().expect("a place").clone()).build().expect("a provider");
        // The same endpoint, for a port that was closed cannot be opened at will.
        let old = format!("local|http://{CLOSED_PORT}/v1|e3b0c44298fc");
        builder.provider(provider).batches(Batches::new().renewed_key(old, "local"))
    })?;
    let item = |n| BatchItem::new(&serde_json::json!({ "model": "m", "messages": [], "n": n }));
    let id = t.client().submit(NewBatch::new("local").max_attempts(1), (0..30).map(item))?.id();
    for _ in 0..100 {
        t.drain()?;
        t.advance(secs(60));
    }
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.sent), (Status::Running, 30));
    let request = t.client().batch_requests(id, &[], None, 10)?.remove(0);
    assert_eq!(request.error.as_deref(), Some("the connection was refused"));
    assert!(request.account.ends_with("|e3b0c44298fc"), "{}", request.account);

    let server = Server::start(|_, connection| {
        while connection.request().is_some() {
            connection.answer(200, &[], ANSWER);
        }
    });
    *place.lock().expect("a place") = server.url("/v1");
    t.restart()?;
    t.advance(secs(600));
    t.drain()?;
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed), (Status::Completed, 30));
    assert!(t.client().batch_results(id)?.all(|result| result.is_ok_and(|result| result.attempts == 1)));
    Ok(())
}

#[test]
fn a_server_that_breaks_off_or_is_silent_is_the_servers_failure() {
    let ends: [fn(&mut Connection); 3] = [
        |_| {},
        |connection| {
            connection.request();
        },
        |connection| {
            connection.request();
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{");
        },
    ];
    for end in ends {
        let server = Server::start(move |_, connection| end(connection));
        let (class, code, _) = failed(outcome(Local::chat_openai(server.url("/v1"))));
        assert_eq!((class, code.as_str()), (ItemError::Server, "transport"));
        assert_eq!(server.connections(), 1, "no request is made again");
    }

    let silent = Server::start(|_, connection| {
        connection.request();
        // Who waits longer sees the connection end.
        connection.pause(PATIENCE);
    });
    let chat = Local::chat_openai(silent.url("/v1")).timeout(Duration::from_millis(100));
    let (class, code, message) = failed(outcome(chat));
    assert_eq!((class, code.as_str()), (ItemError::Server, "transport"));
    assert!(message.contains("timed out"), "{message}");
}

#[test]
fn one_request_that_fails_is_no_other_requests_failure() {
    let server = Server::start(|number, connection| match number % 3 {
        0 => connection.reply(200, &[], ANSWER),
        1 => connection.reply(500, &[], ""),
        _ => {}
    });
    let provider = Local::chat_openai(server.url("/v1")).build().expect("a provider");
    let came = outcomes(&provider, Same::times(30));
    let succeeded = came.values().filter(|outcome| matches!(outcome, ItemOutcome::Succeeded { .. })).count();
    assert_eq!((came.len(), succeeded), (30, 10));
}

#[test]
fn four_requests_are_under_way_at_a_time_unless_said_otherwise() {
    for (asked, expected) in [(None, 4), (Some(2), 2)] {
        let (arrive, arrivals) = unbounded();
        let (open, opened) = unbounded::<()>();
        let server = Server::start(move |_, connection| {
            if connection.request().is_some() {
                arrive.send(()).expect("a receiver");
                let _ = opened.recv_timeout(PATIENCE);
                connection.answer(200, &[], ANSWER);
            }
        });
        let chat = Local::chat_openai(server.url("/v1"));
        let chat = asked.map_or(chat.clone(), |asked| chat.concurrency(asked));
        let provider = chat.build().expect("a provider");
        assert!(format!("{provider:?}").contains(&format!("concurrency: {expected},")), "{provider:?}");
        std::thread::scope(|scope| {
            let came = scope.spawn(|| outcomes(&provider, Same::times(20)));
            for _ in 0..expected {
                arrivals.recv_timeout(PATIENCE).expect("a request");
            }
            drop(open);
            assert_eq!(came.join().expect("no panic").len(), 20);
        });
        // A connection that has been answered may be seen to end after the next has come.
        assert!(server.most_at_once() >= expected);
        assert_eq!(server.connections(), 20);
    }
}

#[test]
fn what_can_never_be_sent_is_refused_before_and_sends_nothing() {
    let server = answering(200, ANSWER);
    let provider = Local::chat_openai(server.url("/v1")).build().expect("a provider");
    let table = [
        (CHAT, r#"{"stream":true}"#, "body.stream: a batch does not stream"),
        (CHAT, "3", "body: must be a JSON object"),
        (CHAT, r#"{"model":"other"}"#, "body.model: must be the item's model"),
        ("/v1/other", "{}", "the endpoint \"/v1/other\" is none of those that are known"),
    ];
    for (endpoint, body, problem) in table {
        let same = || Same { endpoint, body, left: 1 };
        let item = same().next().expect("a request");
        assert_eq!(provider.encode(&item.as_outgoing(), &mut Vec::new()), Err(problem.to_owned()));
        let (class, _, message) = failed(outcomes(&provider, same()).remove("0").expect("a result"));
        assert_eq!((class, message.as_str()), (ItemError::Invalid, problem));
    }
    assert_eq!(server.connections(), 0);
    let item = Same { body: r#"{"stream":false}"#, ..Same::times(1) }.next().expect("a request");
    assert_eq!(provider.encode(&item.as_outgoing(), &mut Vec::new()), Ok(()));
}

#[test]
fn a_key_shows_nowhere() {
    const SECRET: &str = "very-secret-value";
    let server = answering(401, r#"{"error":{"code":"very-secret-value","message":"bad key very-secret-value"}}"#);
    let chat = Local::chat_openai(server.url("/v1")).key(Key::fixed(SECRET)).header("x-other", SECRET);
    let provider = chat.clone().build().expect("a provider");
    let account = provider.account();
    let (class, code, message) = failed(outcome(chat.clone()));
    assert_eq!(class, ItemError::Account);
    for text in [code, message, format!("{chat:?}"), format!("{provider:?}"), format!("{account:?}")] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[test]
fn a_key_that_cannot_be_had_is_the_accounts_failure_and_sends_nothing() {
    let server = answering(200, ANSWER);
    for key in [Key::env("TEST_NO_SUCH_KEY"), Key::from_fn(|| Err("locked".into()))] {
        let provider = Local::chat_openai(server.url("/v1")).key(key).build().expect("a provider");
        let batch = RemoteBatch::new("b", RemoteState::Ended(RemoteEnd::Completed), "{}");
        let mut sink = |line: ResultLine<'_>| match line {
            ResultLine::Lull => ControlFlow::Continue(()),
            line => panic!("no item is to blame: {line:?}"),
        };
        let error = provider.results(&batch, &mut Same::times(3), &mut sink).expect_err("no key");
        assert_eq!((error.fate, error.class), (Fate::NotSent, CallClass::Account));
    }
    let panics = Key::from_fn(|| panic!("the keychain"));
    let (class, code, message) = failed(outcome(Local::chat_openai(server.url("/v1")).key(panics)));
    assert_eq!((class, code.as_str()), (ItemError::Unknown, "panic"));
    assert!(message.ends_with(": the keychain"), "{message}");
    assert_eq!(server.connections(), 0);
}

#[test]
fn settings_that_break_their_rule_are_named() {
    let good = || Local::chat_openai("http://127.0.0.1:1/v1");
    let table = [
        (Local::chat_openai("ftp://x"), "base_url"),
        (Local::chat_anthropic(""), "base_url"),
        (good().timeout(Duration::ZERO), "timeout"),
        (good().timeout(Duration::MAX), "timeout"),
        (good().header("a b", "x"), "header"),
        (good().header("authorization", "x"), "header"),
    ];
    for (chat, field) in table {
        let error = chat.build().expect_err("a rule is broken");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn an_endpoint_is_an_account_of_its_own_whatever_its_key() {
    let account = |chat: LocalChat| chat.build().expect("a provider").account();
    let one = account(Local::chat_openai("http://127.0.0.1:1/v1"));
    assert_eq!((one.provider.as_str(), one.base_url.as_str()), ("local", "http://127.0.0.1:1/v1"));
    let other_key = account(Local::chat_openai("http://127.0.0.1:1/v1").key(Key::fixed("k")));
    assert_eq!(one, other_key);
    assert_ne!(one, account(Local::chat_openai("http://127.0.0.1:2/v1")));
    assert_ne!(one, account(Local::chat_openai("http://127.0.0.1:1/v1").name("other")));
}

#[test]
fn a_request_that_names_no_model_is_sent_with_its_items() {
    let server = answering(200, ANSWER);
    let provider = Local::chat_openai(server.url("/v1")).build().expect("a provider");
    outcomes(&provider, Same { body: r#"{"messages":[]}"#, ..Same::times(1) });
    assert_eq!(server.next().body, br#"{"model":"m","messages":[]}"#);
}

#[test]
fn anthropics_failures_are_known_by_their_words() {
    let credit =
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low"}}"#;
    let filter = r#"{"error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"}}"#;
    let table = [
        (200, r#"{"type":"error","error":{"type":"overloaded_error"}}"#, ItemError::Server, "overloaded_error"),
        (200, r#"{"type":"message"}"#, ItemError::Server, "unreadable"),
        (400, r#"{"error":{"type":"invalid_request_error"}}"#, ItemError::Invalid, "invalid_request_error"),
        (400, credit, ItemError::Account, "invalid_request_error"),
        (400, filter, ItemError::Content, "invalid_request_error"),
        (401, r#"{"error":{"type":"authentication_error"}}"#, ItemError::Account, "authentication_error"),
        (404, r#"{"error":{"type":"not_found_error"}}"#, ItemError::Invalid, "not_found_error"),
        (429, r#"{"error":{"type":"rate_limit_error"}}"#, ItemError::RateLimited, "rate_limit_error"),
        (529, r#"{"error":{"type":"overloaded_error"}}"#, ItemError::Server, "overloaded_error"),
    ];
    for (status, body, class, code) in table {
        let server = answering(status, body);
        let provider = Local::chat_anthropic(server.url("")).build().expect("a provider");
        let outcome = outcomes(&provider, Same { endpoint: "", ..Same::times(1) }).remove("0").expect("a result");
        let (was, word, _) = failed(outcome);
        assert_eq!((was, word.as_str()), (class, code), "{status} {body}");
    }
}

#[test]
fn responses_and_embeddings_are_read_as_such() {
    let response = r#"{"object":"response","status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},
        "output":[],"usage":{"input_tokens":3,"output_tokens":4}}"#;
    let unfinished =
        r#"{"object":"response","status":"failed","error":{"code":"server_error","message":"m"},"output":[]}"#;
    let embedding = r#"{"object":"list","data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":3,"total_tokens":3}}"#;
    let came = |endpoint: &'static str, body: &'static str| {
        let server = answering(200, body);
        let provider = Local::chat_openai(server.url("/v1")).build().expect("a provider");
        outcomes(&provider, Same { endpoint, ..Same::times(1) }).remove("0").expect("a result")
    };
    let ItemOutcome::Succeeded { finish, usage, .. } = came("/v1/responses", response) else { panic!("it succeeds") };
    assert_eq!((finish, usage), (Finish::Length, Usage::of(3, 4)));
    let (class, code, _) = failed(came("/v1/responses", unfinished));
    assert_eq!((class, code.as_str()), (ItemError::Server, "server_error"));
    let ItemOutcome::Succeeded { finish, usage, .. } = came("/v1/embeddings", embedding) else { panic!("it succeeds") };
    assert_eq!((finish, usage.input, usage.output), (Finish::Stop, Some(3), None));
    // One is not taken for the other.
    let (_, code, _) = failed(came(CHAT, embedding));
    assert_eq!(code, "unreadable");
}

#[test]
fn the_suite_for_providers_finds_nothing_wrong() {
    const SECRET: &str = "sk-of-the-suite-0123456789";
    let server = Server::start(|_, connection| {
        let Some(request) = connection.request() else { return };
        let body = if request.line.contains("/messages") { r#"{"content":[]}"# } else { ANSWER };
        connection.answer(200, &[], body);
    });
    let chats = [Local::chat_openai(server.url("/v1")), Local::chat_anthropic(server.url(""))];
    for chat in chats {
        let provider = chat.key(Key::fixed(SECRET)).build().expect("a provider");
        assert_eq!(Conformance::new(&provider).secret(SECRET).broken(), Vec::<String>::new());
    }
    // All results twice, at least one once, and all of the batch that was not cancelled before it had ended.
    assert!(server.connections() >= 2 * (3 + 3 + 1 + 3));
}
