//! What a model's reply says of itself, in each shape: why it ends, and what it used up.

use serde_json::Value;

use crate::model::usage::Usage;
use crate::provider::{Finish, ItemError};

/// The shapes of replies that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// OpenAI's `/v1/chat/completions`.
    Chat,
    /// OpenAI's `/v1/responses`.
    Responses,
    /// OpenAI's `/v1/embeddings`.
    Embeddings,
    /// Anthropic's `/v1/messages`.
    Messages,
}

/// What a reply says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The model answered.
    Answer(Finish, Usage),
    /// The reply tells of a failure, though it came as a success.
    Failure { class: ItemError, code: String, message: String, usage: Usage },
    /// It is no reply of this shape.
    Nothing,
}

impl Shape {
    /// Reads a reply. What is missing, `null` or of another type than expected is unknown.
    pub(crate) fn read(self, reply: &Value) -> Said {
        match self {
            Self::Chat => chat(reply),
            Self::Responses => responses(reply),
            Self::Embeddings => embeddings(reply),
            Self::Messages => messages(reply),
        }
    }
}

fn chat(reply: &Value) -> Said {
    let usage = openai_usage(&reply["usage"], "prompt", "completion");
    let choice = &reply["choices"][0];
    if !choice.is_object() {
        return failure(&reply["error"], usage);
    }
    let finish = match choice["finish_reason"].as_str() {
        _ if choice["message"]["refusal"].is_string() => Finish::Refusal,
        Some("stop") => Finish::Stop,
        Some("length") => Finish::Length,
        Some("tool_calls" | "function_call") => Finish::ToolUse,
        Some("content_filter") => Finish::Refusal,
        _ => Finish::Other,
    };
    Said::Answer(finish, usage)
}

fn responses(reply: &Value) -> Said {
    let usage = openai_usage(&reply["usage"], "input", "output");
    let output = reply["output"].as_array();
    let holds = |kind: &str| output.is_some_and(|output| output.iter().any(|part| part["type"] == kind));
    let refuses = || {
        let mut parts = output.into_iter().flatten().filter_map(|part| part["content"].as_array()).flatten();
        parts.any(|part| part["type"] == "refusal")
    };
    match (reply["status"].as_str(), reply["incomplete_details"]["reason"].as_str()) {
        (Some("failed" | "cancelled"), _) => failure(&reply["error"], usage),
        (Some("incomplete"), Some("max_output_tokens")) => Said::Answer(Finish::Length, usage),
        (Some("incomplete"), Some("content_filter")) => Said::Answer(Finish::Refusal, usage),
        (Some("completed"), _) if holds("function_call") || holds("custom_tool_call") => {
            Said::Answer(Finish::ToolUse, usage)
        }
        (Some("completed"), _) if refuses() => Said::Answer(Finish::Refusal, usage),
        (Some("completed"), _) => Said::Answer(Finish::Stop, usage),
        // A status that nobody has heard of may be an answer nevertheless.
        _ if output.is_some() => Said::Answer(Finish::Other, usage),
        _ => failure(&reply["error"], usage),
    }
}

fn embeddings(reply: &Value) -> Said {
    let usage = openai_usage(&reply["usage"], "prompt", "completion");
    if reply["data"].is_array() { Said::Answer(Finish::Stop, usage) } else { failure(&reply["error"], usage) }
}

fn messages(reply: &Value) -> Said {
    let told = &reply["usage"];
    let (read, write) = (told["cache_read_input_tokens"].as_u64(), told["cache_creation_input_tokens"].as_u64());
    // Anthropic counts what a cache knew apart.
    let input = told["input_tokens"].as_u64();
    let input = input.map(|input| input.saturating_add(read.unwrap_or(0)).saturating_add(write.unwrap_or(0)));
    let reasoning = told["output_tokens_details"]["thinking_tokens"].as_u64();
    let usage = Usage { input, output: told["output_tokens"].as_u64(), ..Usage::default() };
    let usage = usage.cached(read, write).reasoning(reasoning);
    if !reply["content"].is_array() {
        return failure(&reply["error"], usage);
    }
    let finish = match reply["stop_reason"].as_str() {
        Some("end_turn" | "stop_sequence") => Finish::Stop,
        Some("max_tokens" | "model_context_window_exceeded") => Finish::Length,
        Some("tool_use") => Finish::ToolUse,
        Some("refusal") => Finish::Refusal,
        _ => Finish::Other,
    };
    Said::Answer(finish, usage)
}

fn openai_usage(told: &Value, input: &str, output: &str) -> Usage {
    let tokens = |name: &str| told[format!("{name}_tokens")].as_u64();
    let details = |name: &str| &told[format!("{name}_tokens_details")];
    let usage = Usage { input: tokens(input), output: tokens(output), ..Usage::default() };
    usage
        .cached(details(input)["cached_tokens"].as_u64(), details(input)["cache_write_tokens"].as_u64())
        .reasoning(details(output)["reasoning_tokens"].as_u64())
}

fn failure(error: &Value, usage: Usage) -> Said {
    let (code, message) = words(error);
    if code.is_none() && message.is_none() {
        return Said::Nothing;
    }
    let code = code.unwrap_or_else(|| "unknown".to_owned());
    let class = class_of_code(&code).unwrap_or(ItemError::Unknown);
    Said::Failure { class, code, message: message.unwrap_or_default(), usage }
}

/// The code and the message of an error, as the servers that speak these shapes write it: an object with `code` or `type`
/// and `message`, or a bare text.
pub(crate) fn words(error: &Value) -> (Option<String>, Option<String>) {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let code = text(&error["code"]).or_else(|| text(&error["type"]));
    (code, text(&error["message"]).or_else(|| text(error)))
}

/// What kind of failure a code means, where the status of the answer does not tell or tells otherwise.
pub(crate) fn class_of_code(code: &str) -> Option<ItemError> {
    Some(match code {
        "content_filter" | "content_policy_violation" => ItemError::Content,
        "insufficient_quota"
        | "billing_hard_limit_reached"
        | "billing_error"
        | "authentication_error"
        | "permission_error"
        | "invalid_api_key" => ItemError::Account,
        "rate_limit_exceeded" | "rate_limit_error" => ItemError::RateLimited,
        "server_error" | "api_error" | "overloaded_error" | "timeout_error" => ItemError::Server,
        "invalid_request_error"
        | "invalid_prompt"
        | "context_length_exceeded"
        | "model_not_found"
        | "not_found_error"
        | "request_too_large" => ItemError::Invalid,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(finish: Finish, usage: Usage) -> Said {
        Said::Answer(finish, usage)
    }

    #[test]
    fn a_chat_tells_why_it_ends() {
        let table = [
            (json!("stop"), Finish::Stop),
            (json!("length"), Finish::Length),
            (json!("tool_calls"), Finish::ToolUse),
            (json!("function_call"), Finish::ToolUse),
            (json!("content_filter"), Finish::Refusal),
            (json!("never_heard_of"), Finish::Other),
            (json!(null), Finish::Other),
            (json!(1), Finish::Other),
        ];
        for (reason, finish) in table {
            let reply = json!({"choices": [{"message": {"content": "x", "refusal": null}, "finish_reason": reason}]});
            assert_eq!(Shape::Chat.read(&reply), answer(finish, Usage::default()), "{reason}");
        }
        let refusal = json!({"choices": [{"message": {"refusal": "no"}, "finish_reason": "stop"}]});
        assert_eq!(Shape::Chat.read(&refusal), answer(Finish::Refusal, Usage::default()));
    }

    #[test]
    fn a_message_tells_why_it_ends() {
        let table = [
            ("end_turn", Finish::Stop),
            ("stop_sequence", Finish::Stop),
            ("max_tokens", Finish::Length),
            ("model_context_window_exceeded", Finish::Length),
            ("tool_use", Finish::ToolUse),
            ("refusal", Finish::Refusal),
            ("pause_turn", Finish::Other),
            ("never_heard_of", Finish::Other),
        ];
        for (reason, finish) in table {
            let reply = json!({"type": "message", "content": [], "stop_reason": reason});
            assert_eq!(Shape::Messages.read(&reply), answer(finish, Usage::default()), "{reason}");
        }
    }

    #[test]
    fn a_response_tells_why_it_ends() {
        let reply = |status: &str, reason: Option<&str>, output: Value| json!({"status": status, "incomplete_details": {"reason": reason}, "output": output});
        let table = [
            (reply("completed", None, json!([{"type": "message", "content": []}])), Finish::Stop),
            (reply("completed", None, json!([{"type": "function_call"}])), Finish::ToolUse),
            (reply("completed", None, json!([{"type": "message", "content": [{"type": "refusal"}]}])), Finish::Refusal),
            (reply("incomplete", Some("max_output_tokens"), json!([])), Finish::Length),
            (reply("incomplete", Some("content_filter"), json!([])), Finish::Refusal),
            (reply("incomplete", Some("never_heard_of"), json!([])), Finish::Other),
            (reply("never_heard_of", None, json!([])), Finish::Other),
        ];
        for (reply, finish) in table {
            assert_eq!(Shape::Responses.read(&reply), answer(finish, Usage::default()), "{reply}");
        }
        let failed = json!({"status": "failed", "error": {"code": "server_error", "message": "oh"}, "output": []});
        let Said::Failure { class: ItemError::Server, code, message, .. } = Shape::Responses.read(&failed) else {
            panic!("it failed");
        };
        assert_eq!((code.as_str(), message.as_str()), ("server_error", "oh"));
    }

    #[test]
    fn tokens_mean_the_same_in_each_shape() {
        let expected = Usage::of(100, 30).cached(Some(60), Some(10)).reasoning(Some(20));
        let chat = json!({"choices": [{"finish_reason": "stop"}], "usage": {
            "prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 20},
        }});
        assert_eq!(Shape::Chat.read(&chat), answer(Finish::Stop, expected));
        let responses = json!({"status": "completed", "output": [], "usage": {
            "input_tokens": 100, "output_tokens": 30,
            "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
            "output_tokens_details": {"reasoning_tokens": 20},
        }});
        assert_eq!(Shape::Responses.read(&responses), answer(Finish::Stop, expected));
        let messages = json!({"content": [], "stop_reason": "end_turn", "usage": {
            "input_tokens": 30, "output_tokens": 30, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 10,
            "output_tokens_details": {"thinking_tokens": 20},
        }});
        assert_eq!(Shape::Messages.read(&messages), answer(Finish::Stop, expected));
        let embeddings = json!({"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}});
        let expected = Usage { input: Some(7), ..Usage::default() };
        assert_eq!(Shape::Embeddings.read(&embeddings), answer(Finish::Stop, expected));
    }

    #[test]
    fn what_is_not_told_is_unknown_and_never_nothing() {
        let usages = [json!(null), json!({}), json!("x"), json!({"prompt_tokens": null, "input_tokens": -1})];
        for usage in usages {
            let chat = json!({"choices": [{"finish_reason": "stop"}], "usage": usage});
            assert_eq!(Shape::Chat.read(&chat), answer(Finish::Stop, Usage::default()));
            let messages = json!({"content": [], "stop_reason": "end_turn", "usage": usage});
            assert_eq!(Shape::Messages.read(&messages), answer(Finish::Stop, Usage::default()));
        }
    }

    #[test]
    fn what_is_no_reply_is_none_or_tells_of_a_failure() {
        for shape in [Shape::Chat, Shape::Responses, Shape::Embeddings, Shape::Messages] {
            for other in
                [json!(null), json!([]), json!({}), json!("text"), json!({"choices": []}), json!({"error": {}})]
            {
                assert_eq!(shape.read(&other), Said::Nothing, "{shape:?} {other}");
            }
            let object = json!({"error": {"type": "overloaded_error", "message": "full"}});
            let Said::Failure { class: ItemError::Server, code, message, .. } = shape.read(&object) else {
                panic!("{shape:?}");
            };
            assert_eq!((code.as_str(), message.as_str()), ("overloaded_error", "full"));
            let Said::Failure { class: ItemError::Unknown, code, message, .. } = shape.read(&json!({"error": "out"}))
            else {
                panic!("{shape:?}");
            };
            assert_eq!((code.as_str(), message.as_str()), ("unknown", "out"));
        }
    }
}
