//! The providers of batches that speak HTTP, each with the server that speaks like it.

use std::ops::ControlFlow;

use jobmill::Timestamp;
use jobmill::provider::{
    Anthropic, AnthropicBuilder, Body, CallError, CallResult, Create, Finish, ItemOutcome, Key, OpenAi, OpenAiBuilder,
    Outgoing, OwnedOutgoing, Provider, RemoteBatch, ResultLine, Sought, Todo,
};
use serde_json::value::RawValue;

use crate::support::provider_server::script::Shape;
use crate::support::provider_server::{KEY, ProviderServer};
use crate::support::{PATIENCE, secs};

pub(crate) const SHAPES: [Shape; 2] = [Shape::Anthropic, Shape::OpenAi];

pub(crate) fn anthropic(url: impl Into<String>) -> AnthropicBuilder {
    Anthropic::builder(Key::fixed(KEY)).base_url(url).call_timeout(PATIENCE).stall_timeout(PATIENCE)
}

pub(crate) fn openai(url: impl Into<String>) -> OpenAiBuilder {
    OpenAi::builder(Key::fixed(KEY)).base_url(url).call_timeout(PATIENCE).stall_timeout(PATIENCE)
}

pub(crate) fn provider(server: &ProviderServer) -> Box<dyn Provider> {
    let shape = server.state().shape;
    match shape {
        Shape::Anthropic => Box::new(anthropic(server.url()).build().expect("good settings")),
        Shape::OpenAi => Box::new(openai(server.url()).build().expect("good settings")),
    }
}

pub(crate) fn start(shape: Shape) -> (ProviderServer, Box<dyn Provider>) {
    let server = ProviderServer::start(shape);
    let provider = provider(&server);
    (server, provider)
}

pub(crate) fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).expect("JSON")
}

/// The body of a batch of so many requests, whose ids are `key-0`, `key-1` and so on.
pub(crate) fn body(provider: &dyn Provider, key: &str, items: usize) -> Vec<u8> {
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
pub(crate) fn try_create(
    provider: &dyn Provider,
    key: &str,
    items: usize,
) -> (Option<String>, CallResult<RemoteBatch>) {
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
pub(crate) fn create(provider: &dyn Provider, key: &str, items: usize) -> RemoteBatch {
    try_create(provider, key, items).1.expect("a batch")
}

#[track_caller]
pub(crate) fn refused(provider: &dyn Provider, key: &str) -> CallError {
    try_create(provider, key, 2).1.expect_err("no batch")
}

pub(crate) struct None_;

impl Todo for None_ {
    fn next(&mut self) -> Option<OwnedOutgoing> {
        panic!("nobody asks")
    }
}

/// What the results of a batch are, each in a few words, and how they end.
pub(crate) fn results(provider: &dyn Provider, batch: &RemoteBatch) -> (Vec<String>, CallResult<()>) {
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
pub(crate) fn ended(server: &ProviderServer, provider: &dyn Provider, items: usize) -> RemoteBatch {
    let batch = create(provider, "k", items);
    server.end(&batch.id);
    provider.poll(&batch.id).expect("a batch")
}

pub(crate) fn sought<'a>(key: &'a str, file: Option<&'a str>, items: u64) -> Sought<'a> {
    let now = Timestamp::from_micros(1_767_225_600_000_000);
    // As wide as the engine looks, which reckons with clocks that are wrong.
    Sought::new(key, file, items, now.saturating_sub(secs(305)), now.saturating_add(secs(305)))
}
