//! One line of a file of results, in each of the shapes that it has been seen in.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::provider::http::Parsed;
use crate::provider::wire::{self, count, text};
use crate::provider::{Finish, ItemError, ItemOutcome, Usage};

#[derive(Deserialize)]
struct Line<'l> {
    #[serde(borrow)]
    custom_id: Cow<'l, str>,
    #[serde(borrow)]
    response: Option<Response<'l>>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Response<'l> {
    #[serde(default)]
    status_code: Value,
    #[serde(borrow)]
    body: Option<&'l RawValue>,
}

/// What matters in the body of an answer, whichever endpoint gave it.
#[derive(Default, Deserialize)]
struct Reply<'b> {
    #[serde(default)]
    object: Value,
    #[serde(default)]
    status: Value,
    #[serde(default)]
    error: Value,
    #[serde(default)]
    incomplete_details: Value,
    #[serde(default)]
    usage: Value,
    #[serde(borrow)]
    choices: Option<&'b RawValue>,
    #[serde(borrow)]
    output: Option<&'b RawValue>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    finish_reason: Value,
    message: Option<ChoiceMessage>,
}

#[derive(Deserialize)]
struct ChoiceMessage {
    #[serde(default)]
    refusal: Value,
}

#[derive(Deserialize)]
struct Output {
    #[serde(default, rename = "type")]
    kind: Value,
    content: Option<Vec<Content>>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default, rename = "type")]
    kind: Value,
}

pub(super) fn parse(line: &str) -> Result<Parsed<'_>, String> {
    let Line { custom_id, response, error } = serde_json::from_str(line).map_err(|error| wire::problem(&error))?;
    let error = error.filter(|error| !is_nothing(error));
    let outcome = match (response, error) {
        (Some(response), None) => answered(&response)?,
        // An answer beside an error is the error's illustration.
        (response, Some(error)) => {
            let status = response.as_ref().and_then(|response| count(&response.status_code));
            let body = response.as_ref().and_then(body_of);
            let usage = body.as_ref().map_or_else(Usage::default, |body| usage(&reply(body).usage));
            failed(&error, status, usage)
        }
        (None, None) => return Err("the line has neither an answer nor an error".to_owned()),
    };
    Ok(Parsed { custom_id, outcome })
}

/// Whether an error says nothing: some write one without a word beside each answer.
fn is_nothing(error: &Value) -> bool {
    match error {
        Value::Object(fields) => fields.values().all(is_nothing),
        Value::Null => true,
        other => other.as_str() == Some(""),
    }
}

/// The body, as JSON. Some write it as a text that holds the JSON.
fn body_of<'l>(response: &Response<'l>) -> Option<Cow<'l, RawValue>> {
    let raw = response.body?;
    if raw.get().starts_with('"') {
        let inner: String = serde_json::from_str(raw.get()).ok()?;
        return match RawValue::from_string(inner) {
            Ok(inner) => Some(Cow::Owned(inner)),
            // It is a text and nothing else.
            Err(_) => Some(Cow::Borrowed(raw)),
        };
    }
    (raw.get() != "null").then_some(Cow::Borrowed(raw))
}

fn reply(body: &RawValue) -> Reply<'_> {
    serde_json::from_str(body.get()).unwrap_or_default()
}

/// What an answer comes to that came by itself and as a success.
pub(crate) fn reply_of(body: &RawValue) -> Result<ItemOutcome, String> {
    answered(&Response { status_code: Value::Null, body: Some(body) })
}

fn answered(response: &Response<'_>) -> Result<ItemOutcome, String> {
    let body = body_of(response);
    let status = count(&response.status_code);
    let Some(body) = body else {
        return match status {
            Some(status) if status >= 300 => Ok(failed(&Value::Null, Some(status), Usage::default())),
            _ => Err("the answer has no body".to_owned()),
        };
    };
    let said = reply(&body);
    let used = usage(&said.usage);
    let is_good = status.is_none_or(|status| (200..300).contains(&status));
    // Some answer with an error and the status of success, or with no status.
    let has_error = !is_nothing(&said.error) && said.choices.is_none() && said.output.is_none();
    let ended_badly = text(&said.object) == Some("response")
        && matches!(text(&said.status), Some("failed" | "cancelled" | "queued" | "in_progress"));
    if !is_good || has_error || ended_badly {
        let status = if is_good { None } else { status };
        return Ok(match text(&said.status) {
            Some(word) if ended_badly && is_nothing(&said.error) => ItemOutcome::Errored {
                class: ItemError::Unknown,
                code: word.to_owned(),
                message: "the answer was not finished".to_owned(),
                usage: used,
            },
            _ => failed(&said.error, status, used),
        });
    }
    let finish = finish(&said);
    Ok(ItemOutcome::Succeeded { finish, usage: used, reply: body.into_owned() })
}

fn failed(error: &Value, status: Option<u64>, usage: Usage) -> ItemOutcome {
    let code = wire::code(&error["code"]).or_else(|| wire::code(&error["type"]));
    match code.as_deref() {
        Some("batch_expired") => return ItemOutcome::Expired,
        Some("batch_cancelled" | "batch_canceled") => return ItemOutcome::Cancelled,
        _ => {}
    }
    let words = [&error["code"], &error["type"]].map(|word| word.as_str().unwrap_or_default());
    // Some write the status where others write their word.
    let status = status.filter(|status| *status >= 300).or_else(|| count(&error["code"]));
    let message = text(&error["message"]).or(text(error)).unwrap_or("the provider does not say why").to_owned();
    ItemOutcome::Errored {
        class: class(words, status),
        code: wire::short(&code.or_else(|| status.map(|status| status.to_string())).unwrap_or_default()),
        message,
        usage,
    }
}

/// What kind of failure of a request it is.
pub(crate) fn class(words: [&str; 2], status: Option<u64>) -> ItemError {
    let any = |known: &[&str]| words.iter().any(|word| known.contains(word));
    if any(&["insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "invalid_api_key"]) {
        return ItemError::Account;
    }
    if any(&["content_filter", "content_policy_violation", "moderation_blocked", "invalid_prompt"]) {
        return ItemError::Content;
    }
    if any(&["rate_limit_exceeded", "rate_limit_error", "token_limit_exceeded", "tokens", "requests"]) {
        return ItemError::RateLimited;
    }
    if any(&["server_error", "internal_error", "internal_server_error", "service_unavailable", "overloaded"]) {
        return ItemError::Server;
    }
    match status {
        Some(429) => ItemError::RateLimited,
        Some(401..=403) => ItemError::Account,
        Some(408 | 409 | 425 | 500..=599) => ItemError::Server,
        Some(400..=499) => ItemError::Invalid,
        _ if any(&["invalid_request_error", "invalid_request", "invalid_value", "model_not_found"]) => {
            ItemError::Invalid
        }
        _ => ItemError::Unknown,
    }
}

fn finish(said: &Reply<'_>) -> Finish {
    if let Some(choices) = said.choices {
        let choices: Vec<Choice> = serde_json::from_str(choices.get()).unwrap_or_default();
        let Some(first) = choices.first() else { return Finish::Other };
        let refuses = first.message.as_ref().is_some_and(|message| text(&message.refusal).is_some());
        return match text(&first.finish_reason) {
            Some("content_filter") => Finish::Refusal,
            _ if refuses => Finish::Refusal,
            Some("stop") => Finish::Stop,
            Some("length") => Finish::Length,
            Some("tool_calls" | "function_call") => Finish::ToolUse,
            _ => Finish::Other,
        };
    }
    if let Some(output) = said.output {
        match text(&said.status) {
            Some("incomplete") => {
                return match text(&said.incomplete_details["reason"]) {
                    Some("max_output_tokens") => Finish::Length,
                    Some("content_filter") => Finish::Refusal,
                    _ => Finish::Other,
                };
            }
            Some("completed") | None => {}
            Some(_) => return Finish::Other,
        }
        let output: Vec<Output> = serde_json::from_str(output.get()).unwrap_or_default();
        let calls = |part: &Output| matches!(text(&part.kind), Some("function_call" | "custom_tool_call"));
        let refuses =
            |part: &Output| part.content.iter().flatten().any(|content| text(&content.kind) == Some("refusal"));
        return if output.iter().any(refuses) {
            Finish::Refusal
        } else if output.iter().any(calls) {
            Finish::ToolUse
        } else {
            Finish::Stop
        };
    }
    // Embeddings have said all.
    if text(&said.object) == Some("list") { Finish::Stop } else { Finish::Other }
}

/// Usage under the names of `/v1/chat/completions` or under those of `/v1/responses`. Embeddings have an input alone.
pub(crate) fn usage(said: &Value) -> Usage {
    let input = count(&said["prompt_tokens"]).or_else(|| count(&said["input_tokens"]));
    let output = count(&said["completion_tokens"]).or_else(|| count(&said["output_tokens"]));
    let either =
        |first: &str, second: &str, name: &str| count(&said[first][name]).or_else(|| count(&said[second][name]));
    let of_input = |name: &str| either("prompt_tokens_details", "input_tokens_details", name);
    let mut usage = Usage::default()
        .cached(of_input("cached_tokens"), of_input("cache_write_tokens"))
        .reasoning(either("completion_tokens_details", "output_tokens_details", "reasoning_tokens"));
    (usage.input, usage.output) = (input, output);
    usage
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a line comes to, in a few words.
    fn read(line: &Value) -> String {
        let line = line.to_string();
        match parse(&line) {
            Err(problem) => problem,
            Ok(Parsed { custom_id, outcome }) => {
                assert_eq!(custom_id, "a");
                match outcome {
                    ItemOutcome::Succeeded { reply, finish, usage } => {
                        assert!(reply.get().starts_with('{'), "{reply}");
                        format!("{finish:?} {:?}/{:?}", usage.input, usage.output)
                    }
                    ItemOutcome::Errored { class, code, message, usage } => {
                        format!("{class:?} {code}: {message} {:?}", usage.input)
                    }
                    other => format!("{other:?}"),
                }
            }
        }
    }

    fn chat(finish: &str) -> Value {
        json!({"object": "chat.completion", "choices": [{"message": {"content": "x"}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    }

    fn line(status: u64, body: &Value) -> Value {
        json!({"id": "batch_req_1", "custom_id": "a", "response": {"status_code": status, "body": body}, "error": null})
    }

    #[test]
    fn each_shape_of_a_line_is_read() {
        let error = |code: &str| json!({"error": {"message": "m", "type": "t", "param": null, "code": code}});
        let plain = |error: Value| json!({"custom_id": "a", "response": null, "error": error});
        let refusing = json!({"choices": [{"message": {"refusal": "no"}, "finish_reason": "stop"}]});
        let text = chat("stop").to_string();
        let table = [
            (line(200, &chat("stop")), "Stop Some(3)/Some(2)"),
            (line(200, &chat("length")), "Length Some(3)/Some(2)"),
            (line(200, &chat("tool_calls")), "ToolUse Some(3)/Some(2)"),
            (line(200, &chat("content_filter")), "Refusal Some(3)/Some(2)"),
            (line(200, &chat("new_reason")), "Other Some(3)/Some(2)"),
            (line(200, &refusing), "Refusal None/None"),
            // The body as a text, and an error that says nothing.
            (line(200, &json!(text)), "Stop Some(3)/Some(2)"),
            (json!({"custom_id": "a", "response": {"body": chat("stop")}}), "Stop Some(3)/Some(2)"),
            (
                json!({"custom_id": "a", "response": {"status_code": "200", "body": chat("stop")}, "error": {}}),
                "Stop Some(3)/Some(2)",
            ),
            (
                json!({"custom_id": "a", "response": {"status_code": 200, "body": chat("stop")},
                "error": {"code": null, "message": ""}}),
                "Stop Some(3)/Some(2)",
            ),
            // The ordinary failure of an item: no error beside the answer.
            (line(400, &error("c")), "Invalid c: m None"),
            (line(429, &error("rate_limit_exceeded")), "RateLimited rate_limit_exceeded: m None"),
            (line(429, &error("insufficient_quota")), "Account insufficient_quota: m None"),
            (line(401, &error("c")), "Account c: m None"),
            (line(500, &error("c")), "Server c: m None"),
            (line(400, &error("content_policy_violation")), "Content content_policy_violation: m None"),
            (line(400, &json!("not JSON")), "Invalid 400: the provider does not say why None"),
            (line(503, &Value::Null), "Server 503: the provider does not say why None"),
            (line(200, &error("server_error")), "Server server_error: m None"),
            (plain(json!({"code": "batch_expired", "message": "m"})), "Expired"),
            (plain(json!({"code": "batch_cancelled", "message": "m"})), "Cancelled"),
            (plain(json!({"code": "x", "message": "m"})), "Unknown x: m None"),
            (plain(json!({"code": 500, "message": "m"})), "Server 500: m None"),
            (plain(json!("m")), "Unknown : m None"),
            // Without a response, and with the word under another name.
            (
                json!({"custom_id": "a", "error": {"type": "invalid_request_error", "message": "m"}}),
                "Invalid invalid_request_error: m None",
            ),
            (line(200, &Value::Null), "the answer has no body"),
            (plain(Value::Null), "the line has neither an answer nor an error"),
            (json!({"custom_id": null}), "the line is not what was promised"),
            (json!({"custom_id": 7, "response": {}}), "the line is not what was promised"),
            (json!([]), "the line is not what was promised"),
        ];
        for (line, expected) in table {
            assert_eq!(read(&line), expected, "{line}");
        }
        assert_eq!(parse("{").err().as_deref(), Some("the line is not JSON"));
    }

    #[test]
    fn responses_end_in_their_own_ways() {
        let body = |status: &str, more: Value| {
            let mut body = json!({"object": "response", "status": status, "error": null, "output": [],
                "usage": {"input_tokens": 5, "output_tokens": 1}});
            for (name, value) in more.as_object().expect("fields") {
                body[name] = value.clone();
            }
            line(200, &body)
        };
        let call = json!({"output": [{"type": "reasoning"}, {"type": "function_call", "name": "f"}]});
        let refusal = json!({"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]});
        let table = [
            (body("completed", json!({})), "Stop Some(5)/Some(1)"),
            (body("completed", call), "ToolUse Some(5)/Some(1)"),
            (body("completed", refusal), "Refusal Some(5)/Some(1)"),
            (
                body("incomplete", json!({"incomplete_details": {"reason": "max_output_tokens"}})),
                "Length Some(5)/Some(1)",
            ),
            (
                body("incomplete", json!({"incomplete_details": {"reason": "content_filter"}})),
                "Refusal Some(5)/Some(1)",
            ),
            // The status of the line is 200, and what it used up counts.
            (
                body("failed", json!({"error": {"code": "server_error", "message": "m"}})),
                "Server server_error: m Some(5)",
            ),
            (body("cancelled", json!({})), "Unknown cancelled: the answer was not finished Some(5)"),
            (body("new_status", json!({})), "Other Some(5)/Some(1)"),
        ];
        for (line, expected) in table {
            assert_eq!(read(&line), expected, "{line}");
        }
    }

    #[test]
    fn usage_is_read_for_each_endpoint() {
        let chat = usage(&json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 3}}));
        assert_eq!(chat, Usage::of(10, 5).cached(Some(4), Some(1)).reasoning(Some(3)));
        let responses = usage(&json!({"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 3}}));
        assert_eq!(responses, Usage::of(10, 5).cached(Some(4), None).reasoning(Some(3)));
        let embeddings = usage(&json!({"prompt_tokens": 8, "total_tokens": 8}));
        assert_eq!((embeddings.input, embeddings.output), (Some(8), None));
        assert!(usage(&Value::Null).is_unknown());
        let list = line(200, &json!({"object": "list", "data": [], "usage": {"prompt_tokens": 8}}));
        assert_eq!(read(&list), "Stop Some(8)/None");
    }
}
