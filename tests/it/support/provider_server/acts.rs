//! What the server does for a request, in either shape.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::http::Request;
use crate::support::provider_server::KEY;
use crate::support::provider_server::memory::{Batch, File, Item, State, is_over};
use crate::support::provider_server::script::{Route, Shape};
use crate::support::provider_server::wire::Reply;

/// What a request asks for, and of which batch or file.
pub(super) fn route(shape: Shape, method: &str, path: &str) -> (Option<Route>, String) {
    let base = match shape {
        Shape::Anthropic => "/v1/messages/batches",
        Shape::OpenAi => "/v1/batches",
    };
    let parts = |base: &str| -> Option<Vec<String>> {
        let rest = path.strip_prefix(base)?;
        Some(rest.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect())
    };
    if let Some(parts) = parts(base) {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (route, id) = match (method, parts.as_slice()) {
            ("POST", []) => (Route::Create, ""),
            ("GET", []) => (Route::List, ""),
            ("GET", [id]) => (Route::Poll, *id),
            ("POST", [id, "cancel"]) => (Route::Cancel, *id),
            ("DELETE", [id]) if shape == Shape::Anthropic => (Route::Delete, *id),
            ("GET", [id, "results"]) if shape == Shape::Anthropic => (Route::Results, *id),
            _ => return (None, String::new()),
        };
        return (Some(route), id.to_owned());
    }
    if let Some(parts) = parts("/v1/files").filter(|_| shape == Shape::OpenAi) {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (route, id) = match (method, parts.as_slice()) {
            ("POST", []) => (Route::Upload, ""),
            ("GET", []) => (Route::Files, ""),
            ("GET", [id, "content"]) => (Route::Results, *id),
            ("DELETE", [id]) => (Route::Delete, *id),
            _ => return (None, String::new()),
        };
        return (Some(route), id.to_owned());
    }
    (None, String::new())
}

pub(super) fn error(shape: Shape, kind: &str, message: &str) -> Value {
    match shape {
        Shape::Anthropic => {
            json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})
        }
        Shape::OpenAi => json!({"error": {"message": message, "type": kind, "param": null, "code": kind}}),
    }
}

pub(super) fn act(state: &mut State, route: Route, id: &str, query: &str, request: &Request) -> Reply {
    let shape = state.shape;
    let refuse = |status, kind: &str, message: &str| Reply::Json(status, error(shape, kind, message));
    let bearer = format!("Bearer {KEY}");
    let known = [request.header("x-api-key"), request.header("api-key")].contains(&Some(KEY))
        || request.header("authorization") == Some(&bearer);
    if !known {
        return refuse(401, "authentication_error", "no such key");
    }
    let not_found = || refuse(404, "not_found_error", "no such thing");
    match route {
        Route::Create => create(state, request),
        Route::Poll => {
            let ends = state.ends_after_polls;
            let Some(batch) = state.batch(id) else { return not_found() };
            batch.polls += 1;
            if ends.is_some_and(|polls| batch.polls >= polls) && !is_over(batch) {
                state.end(id);
            }
            Reply::Json(200, show(state, id))
        }
        Route::List => Reply::Json(200, list(state, query)),
        Route::Cancel => {
            let Some(batch) = state.batch(id) else { return not_found() };
            if is_over(batch) {
                return refuse(409, "invalid_request_error", "it has ended");
            }
            batch.cancelled = true;
            batch.status = if shape == Shape::Anthropic { "canceling" } else { "cancelling" }.to_owned();
            Reply::Json(200, show(state, id))
        }
        Route::Delete => {
            let before = state.batches.len() + state.files.len();
            if shape == Shape::Anthropic {
                state.batches.retain(|batch| batch.id != id);
            } else {
                state.files.retain(|file| file.id != id);
            }
            let is_result = shape == Shape::OpenAi && id.contains("_of_");
            if before == state.batches.len() + state.files.len() && (!is_result || state.deleted.contains(id)) {
                return not_found();
            }
            state.deleted.insert(id.to_owned());
            Reply::Json(200, json!({"id": id, "object": "file", "type": "message_batch_deleted", "deleted": true}))
        }
        Route::Results => {
            if let Some(stream) = &state.stream {
                return Reply::Stream(stream.clone());
            }
            let (is_error, of) = match id.split_once("_of_") {
                Some((kind, of)) => (kind == "errors", of),
                None => (false, id),
            };
            let arrange = state.arrange.clone();
            let Some(batch) = state.batch(of) else { return not_found() };
            let lines = if is_error { &batch.error_lines } else { &batch.lines };
            Reply::Results(arrange(lines.clone()))
        }
        Route::Upload => upload(state, request),
        Route::Files => {
            let mut files: Vec<Value> = state.files.iter().map(show_file).collect();
            files.reverse();
            page(state.list_ignores_cursor, files, query)
        }
    }
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(known, _)| *known == name).map(|(_, value)| value)
}

fn page(ignores_cursor: bool, all: Vec<Value>, query: &str) -> Reply {
    let limit = parameter(query, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(20);
    let after = parameter(query, "after_id").or(parameter(query, "after")).filter(|_| !ignores_cursor);
    let from = after.and_then(|id| all.iter().position(|one| one["id"] == id)).map_or(0, |at| at + 1);
    let data: Vec<Value> = all.iter().skip(from).take(limit).cloned().collect();
    let has_more = ignores_cursor || from + data.len() < all.len();
    let end = |one: Option<&Value>| one.map_or(Value::Null, |one| one["id"].clone());
    let (first, last) = (end(data.first()), end(data.last()));
    Reply::Json(200, json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}))
}

fn list(state: &mut State, query: &str) -> Value {
    let ids: Vec<String> = state.batches.iter().rev().map(|batch| batch.id.clone()).collect();
    let all = ids.iter().map(|id| show(state, id)).collect();
    match page(state.list_ignores_cursor, all, query) {
        Reply::Json(_, body) => body,
        _ => Value::Null,
    }
}

fn show_file(file: &File) -> Value {
    json!({"id": file.id, "object": "file", "bytes": file.bytes.len(), "filename": file.name, "purpose": "batch",
        "status": "processed"})
}

/// A batch as it is told.
fn show(state: &mut State, id: &str) -> Value {
    let (shape, url) = (state.shape, state.results_url.clone());
    let Some(batch) = state.batch(id) else { return Value::Null };
    let total = batch.items.len() as u64;
    let [succeeded, failed, cancelled, expired] = batch.counts;
    let created = batch.created_at;
    let expires = created.saturating_add(Duration::from_secs(86_400));
    match shape {
        Shape::Anthropic => {
            let ended = batch.status == "ended";
            let url = url.unwrap_or_else(|| format!("/v1/messages/batches/{id}/results"));
            // Lines that a test makes up count as succeeded, and so do those that are missing.
            let processing = if ended { 0 } else { total };
            json!({
                "id": id, "type": "message_batch", "processing_status": batch.status,
                "request_counts": {"processing": processing, "succeeded": succeeded, "errored": failed,
                    "canceled": cancelled, "expired": expired},
                "created_at": created.to_string().replace('Z', "+00:00"), "expires_at": expires,
                "ended_at": ended.then_some(created), "cancel_initiated_at": batch.cancelled.then_some(created),
                "archived_at": null, "results_url": ended.then_some(url), "new_field": {"nobody": "knows"},
            })
        }
        Shape::OpenAi => {
            let ended = ["completed", "expired", "cancelled"].contains(&batch.status.as_str());
            let file = |kind: &str, lines: &[String]| (ended && !lines.is_empty()).then(|| format!("{kind}_of_{id}"));
            json!({
                "id": id, "object": "batch", "endpoint": batch.endpoint, "input_file_id": batch.input_file,
                "completion_window": "24h", "status": batch.status, "errors": batch.errors,
                "output_file_id": file("output", &batch.lines), "error_file_id": file("errors", &batch.error_lines),
                "created_at": created.as_micros() / 1_000_000, "expires_at": expires.as_micros() / 1_000_000,
                "request_counts": {"total": total, "completed": succeeded, "failed": failed + cancelled + expired},
                "metadata": batch.key.as_ref().map(|key| json!({"key": key})), "new_field": [1],
            })
        }
    }
}

/// A short name for a body.
fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

fn create(state: &mut State, request: &Request) -> Reply {
    let shape = state.shape;
    let refuse = |status, message: &str| Reply::Json(status, error(shape, "invalid_request_error", message));
    let Ok(said) = serde_json::from_slice::<Value>(&request.body) else { return refuse(400, "not JSON") };
    let mut items = Vec::new();
    let (body, input_file, key, endpoint, status) = match shape {
        Shape::Anthropic => {
            for (index, one) in said["requests"].as_array().into_iter().flatten().enumerate() {
                let Some(custom_id) = one["custom_id"].as_str().filter(|_| one["params"].is_object()) else {
                    return refuse(400, &format!("requests.{index}.params: Field required"));
                };
                items.push(Item { custom_id: custom_id.to_owned(), body: one["params"].clone() });
            }
            (digest(&request.body), None, None, String::new(), "in_progress")
        }
        Shape::OpenAi => {
            let id = said["input_file_id"].as_str().unwrap_or_default();
            let Some(file) = state.files.iter().find(|file| file.id == id) else { return refuse(400, "no such file") };
            for line in String::from_utf8_lossy(&file.bytes).split_terminator('\n') {
                let Ok(one) = serde_json::from_str::<Value>(line) else { return refuse(400, "not JSON lines") };
                if one["url"] != said["endpoint"] || one["method"] != "POST" {
                    return refuse(400, "url_mismatch");
                }
                let custom_id = one["custom_id"].as_str().unwrap_or_default().to_owned();
                items.push(Item { custom_id, body: one["body"].clone() });
            }
            let key = said["metadata"]["key"].as_str().map(str::to_owned);
            let endpoint = said["endpoint"].as_str().unwrap_or_default().to_owned();
            (digest(&file.bytes), Some(id.to_owned()), key, endpoint, "validating")
        }
    };
    let ids: BTreeSet<&str> = items.iter().map(|item| item.custom_id.as_str()).collect();
    if items.is_empty() || ids.len() != items.len() || ids.contains("") {
        return refuse(400, "custom ids must be unique");
    }
    let token = request.header("idempotency-key").or(said["idempotency_key"].as_str()).map(str::to_owned);
    if state.idempotent && token.is_some() {
        let same = state.batches.iter().find(|batch| batch.key == token).map(|batch| batch.id.clone());
        if let Some(id) = same {
            return Reply::Json(200, show(state, &id));
        }
    }
    let id = state.id(if shape == Shape::Anthropic { "msgbatch_" } else { "batch_" });
    let created_at = (state.clock)();
    state.batches.push(Batch {
        id: id.clone(),
        created_at,
        items,
        input_file,
        key: key.or(token),
        endpoint,
        status: status.to_owned(),
        cancelled: false,
        polls: 0,
        body,
        errors: Value::Null,
        lines: Vec::new(),
        error_lines: Vec::new(),
        counts: [0; 4],
    });
    Reply::Json(200, show(state, &id))
}

/// Takes a form of two or more parts apart, strictly.
fn upload(state: &mut State, request: &Request) -> Reply {
    let refuse = |message: &str| Reply::Json(400, error(Shape::OpenAi, "invalid_request_error", message));
    let kind = request.header("content-type").unwrap_or_default();
    let Some(boundary) = kind.strip_prefix("multipart/form-data; boundary=") else { return refuse("no form") };
    let find = |bytes: &[u8], sought: &[u8]| bytes.windows(sought.len()).position(|window| window == sought);
    let (delimiter, mut rest) = (format!("\r\n--{boundary}"), &request.body[..]);
    let Some(begun) = rest.strip_prefix(format!("--{boundary}\r\n").as_bytes()) else { return refuse("no part") };
    rest = begun;
    let mut fields = BTreeMap::new();
    let mut file = None;
    loop {
        let Some(at) = find(rest, b"\r\n\r\n") else { return refuse("a part without an end") };
        let head = String::from_utf8_lossy(&rest[..at]).into_owned();
        let content = &rest[at + 4..];
        let end = if head.contains("filename=") {
            // The file is the last part, and it is long.
            content.len().checked_sub(delimiter.len() + 4)
        } else {
            find(content, delimiter.as_bytes())
        };
        let Some(end) = end else { return refuse("a part without an end") };
        let value = |name: &str| {
            let (_, rest) = head.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        match value("filename") {
            Some(name) => file = Some((name, content[..end].to_vec())),
            None => {
                let text = String::from_utf8_lossy(&content[..end]).into_owned();
                fields.insert(value(" name").unwrap_or_default(), text);
            }
        }
        let Some(behind) = content[end..].strip_prefix(delimiter.as_bytes()) else { return refuse("no boundary") };
        match behind.strip_prefix(b"\r\n") {
            Some(next) if !next.is_empty() => rest = next,
            _ if behind == b"--\r\n" => break,
            _ => return refuse("no end"),
        }
    }
    let Some((name, bytes)) = file else { return refuse("no file") };
    if fields.get("purpose").map(String::as_str) != Some("batch") {
        return refuse("no purpose");
    }
    let file = File { id: state.id("file-"), name, bytes };
    let shown = show_file(&file);
    state.files.push(file);
    Reply::Json(200, shown)
}
