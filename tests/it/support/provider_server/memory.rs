//! What the server knows: its files and batches, and what each request of an ended batch has come to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use jobmill::Timestamp;
use serde_json::{Value, json};

use crate::support::provider_server::script::{Fault, Framing, Outcome, Route, Shape};

/// One request of a batch, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) custom_id: String,
    pub(crate) body: Value,
}

#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) id: String,
    pub(crate) created_at: Timestamp,
    pub(crate) items: Vec<Item>,
    pub(crate) input_file: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) endpoint: String,
    /// The provider's word.
    pub(crate) status: String,
    pub(crate) cancelled: bool,
    pub(crate) polls: usize,
    /// What its body was, short.
    pub(crate) body: String,
    pub(super) errors: Value,
    pub(super) lines: Vec<String>,
    pub(super) error_lines: Vec<String>,
    pub(super) counts: [u64; 4],
}

pub(super) type Decide = Arc<dyn Fn(&Item) -> Outcome + Send + Sync>;

pub(super) type Arrange = Arc<dyn Fn(Vec<String>) -> Vec<u8> + Send + Sync>;

pub(super) type Stream = Arc<dyn Fn(&mut dyn Write) -> std::io::Result<()> + Send + Sync>;

/// Everything that it knows.
pub(crate) struct State {
    pub(crate) shape: Shape,
    pub(crate) files: Vec<File>,
    pub(crate) batches: Vec<Batch>,
    /// Everything that was asked, in order.
    pub(crate) asked: Vec<Route>,
    pub(crate) deleted: BTreeSet<String>,
    /// How many requests were swallowed, or choked on.
    pub(crate) swallowed: usize,
    /// A batch ends by itself when it has been polled so often. `None`: when the test says so.
    pub(crate) ends_after_polls: Option<usize>,
    pub(crate) list_ignores_cursor: bool,
    pub(crate) packs: bool,
    /// Poll answers ask to be left alone for so many seconds.
    pub(crate) retry_after: Option<u64>,
    pub(crate) framing: Framing,
    pub(crate) content_type: Option<&'static str>,
    /// The address of the results, if not the right one.
    pub(crate) results_url: Option<String>,
    /// Bodies of answers are texts that hold JSON.
    pub(crate) bodies_as_text: bool,
    /// Creations with the same key are the same, by this field or header.
    pub(crate) idempotent: bool,
    pub(super) clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    pub(super) decide: Decide,
    pub(super) arrange: Arrange,
    pub(super) stream: Option<Stream>,
    pub(super) faults: BTreeMap<Route, VecDeque<Fault>>,
    pub(super) delays: BTreeMap<Route, Duration>,
    pub(super) next: u64,
}

pub(super) fn is_over(batch: &Batch) -> bool {
    ["ended", "failed", "completed", "expired", "cancelled"].contains(&batch.status.as_str())
}

impl State {
    pub(super) fn batch(&mut self, id: &str) -> Option<&mut Batch> {
        self.batches.iter_mut().find(|batch| batch.id == id)
    }

    pub(super) fn id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{:06}", self.next)
    }

    pub(super) fn end(&mut self, id: &str) {
        let (shape, decide, as_text) = (self.shape, self.decide.clone(), self.bodies_as_text);
        let Some(batch) = self.batch(id) else { return };
        for item in batch.items.clone() {
            let outcome = decide(&item);
            let (count, line) = match shape {
                Shape::Anthropic => anthropic_line(&item, &outcome),
                Shape::OpenAi => openai_line(&item, &outcome, &batch.endpoint, as_text),
            };
            batch.counts[count] += 1;
            let lines = if shape == Shape::OpenAi && count > 0 { &mut batch.error_lines } else { &mut batch.lines };
            lines.extend(line);
        }
        batch.status = match shape {
            Shape::Anthropic => "ended",
            Shape::OpenAi if batch.cancelled => "cancelled",
            Shape::OpenAi if batch.counts[3] > 0 => "expired",
            Shape::OpenAi => "completed",
        }
        .to_owned();
    }
}

/// The line of a result: which of the counts (succeeded, failed, cancelled, expired) it belongs to, and its text.
fn anthropic_line(item: &Item, outcome: &Outcome) -> (usize, Option<String>) {
    let (count, result) = match outcome {
        Outcome::Say(text) => (
            0,
            json!({"type": "succeeded", "message": {
                "id": format!("msg_{}", item.custom_id), "type": "message", "role": "assistant",
                "model": item.body["model"], "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn", "stop_sequence": null,
                "usage": {"input_tokens": 10, "output_tokens": 5, "service_tier": "batch"},
            }}),
        ),
        Outcome::Fail(_, kind, message) => {
            (1, json!({"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": message}}}))
        }
        Outcome::Cancel => (2, json!({"type": "canceled"})),
        Outcome::Expire => (3, json!({"type": "expired"})),
        Outcome::Nothing => return (0, None),
        Outcome::Line(line) => return (0, Some(line.clone())),
    };
    (count, Some(json!({"custom_id": item.custom_id, "result": result}).to_string()))
}

fn openai_line(item: &Item, outcome: &Outcome, endpoint: &str, as_text: bool) -> (usize, Option<String>) {
    let model = &item.body["model"];
    let (count, response, error) = match outcome {
        Outcome::Say(text) => {
            let body = match endpoint {
                "/v1/responses" => json!({"id": "resp_1", "object": "response", "status": "completed", "model": model,
                    "error": null, "output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}],
                    "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}}),
                "/v1/embeddings" => json!({"object": "list", "model": model,
                    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
                    "usage": {"prompt_tokens": 10, "total_tokens": 10}}),
                _ => json!({"id": "chatcmpl-1", "object": "chat.completion", "model": model,
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                        "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}),
            };
            let body = if as_text { Value::String(body.to_string()) } else { body };
            (0, json!({"status_code": 200, "request_id": "req_1", "body": body}), Value::Null)
        }
        Outcome::Fail(status, code, message) => {
            let body = json!({"error": {"message": message, "type": "t", "param": null, "code": code}});
            (1, json!({"status_code": status, "request_id": "req_1", "body": body}), Value::Null)
        }
        Outcome::Cancel => (2, Value::Null, json!({"code": "batch_cancelled", "message": "cancelled"})),
        Outcome::Expire => (3, Value::Null, json!({"code": "batch_expired", "message": "expired"})),
        Outcome::Nothing => return (0, None),
        Outcome::Line(line) => return (0, Some(line.clone())),
    };
    let id = format!("batch_req_{}", item.custom_id);
    let line = json!({"id": id, "custom_id": item.custom_id, "response": response, "error": error});
    (count, Some(line.to_string()))
}
