//! Anthropic's Message Batches, and whoever speaks like them.

use std::borrow::Cow;
use std::time::Duration;

use ::http::HeaderName;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::model::time::Timestamp;
use crate::provider::http::{Answer, Auth, Explained, Http, Key, Parsed, Told, give, segment, unreadable};
use crate::provider::setup::{Setup, setters};
use crate::provider::wire::{self, ListPage, Shape, count, moment, pages, text};
use crate::provider::{
    Account, CallClass, CallError, CallResult, Candidate, Create, Fate, Finish, Frame, ItemError, ItemOutcome, Limits,
    Outgoing, Provider, RemoteBatch, RemoteCounts, RemoteEnd, RemoteState, Sink, Sought, Todo, Usage,
};

const BATCHES: &str = "/v1/messages/batches";

/// Message Batches of Anthropic.
///
/// It gives a batch no name, and its list tells nothing of what is in one. So a batch whose creation had no answer is known
/// for certain only by its results: use a workspace for nothing else, and hardly any other will be taken for it.
///
/// ```
/// use jobmill::provider::{Anthropic, Key};
///
/// # fn main() -> jobmill::Result<()> {
/// let anthropic = Anthropic::builder(Key::fixed("sk-ant-...")).version("2026-10-21").build()?;
/// # let _ = anthropic;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Anthropic {
    http: Http,
    account: Account,
    limits: Limits,
}

/// Makes an [`Anthropic`].
#[derive(Debug)]
pub struct AnthropicBuilder {
    setup: Setup,
    version: String,
    betas: Vec<String>,
    bearer: bool,
}

impl AnthropicBuilder {
    setters!();

    /// Sets the version of the interface. Defaults to `2023-06-01`, which takes most. The newer `2026-10-21` refuses
    /// `temperature` and others, item by item.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Asks for a feature that is in its trial, for all items.
    pub fn beta(mut self, name: impl Into<String>) -> Self {
        self.betas.push(name.into());
        self
    }

    /// Sends the key as `authorization: Bearer`, and not as `x-api-key`.
    pub fn bearer(mut self) -> Self {
        self.bearer = true;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// `Invalid` if a setting breaks its rule, or there is no key and the account has no name.
    pub fn build(self) -> Result<Anthropic> {
        let auth = if self.bearer { Auth::Bearer } else { Auth::Header(HeaderName::from_static("x-api-key")) };
        let mut headers = vec![("anthropic-version".to_owned(), self.version.clone())];
        if !self.betas.is_empty() {
            headers.push(("anthropic-beta".to_owned(), self.betas.join(",")));
        }
        if self.version.is_empty() {
            return Err(Error::invalid("version", "must not be empty"));
        }
        let mut limits = Limits::new(100_000, 256_000_000);
        limits.list_page = 100;
        limits.retention = Some(Duration::from_secs(29 * 86_400));
        limits.items_in_flight = Some(200_000);
        let (http, account, limits) = self.setup.build("anthropic", auth, true, headers, limits)?;
        Ok(Anthropic { http, account: account.api_version(self.version), limits })
    }
}

impl Anthropic {
    /// The account that this key opens, at `https://api.anthropic.com` unless another address is set.
    pub fn builder(key: Key) -> AnthropicBuilder {
        AnthropicBuilder {
            setup: Setup::new(key, "https://api.anthropic.com"),
            version: "2023-06-01".to_owned(),
            betas: Vec::new(),
            bearer: false,
        }
    }

    fn path(id: &str) -> CallResult<String> {
        Ok(format!("{BATCHES}/{}", segment(id)?))
    }

    /// Reads the list, the newest first, back to a moment.
    fn list_since(&self, since: impl Fn(&RemoteBatch) -> Timestamp) -> CallResult<Vec<RemoteBatch>> {
        let page = |from: Option<&str>| {
            let mut path = format!("{BATCHES}?limit={}", self.limits.list_page.clamp(1, 1000));
            if let Some(from) = from {
                path = format!("{path}&after_id={}", segment(from)?);
            }
            let told = self.http.get(&path).send()?.success(explain)?.whole()?;
            let list: List<'_> =
                serde_json::from_str(&told.text).map_err(|_| unreadable("the list is not what was promised"))?;
            // One that cannot be read hides no other.
            let entries: Vec<RemoteBatch> =
                list.data.into_iter().filter_map(|raw| batch(raw.get(), None, &told).ok()).collect();
            let last = list.last_id.map(Cow::into_owned).or_else(|| entries.last().map(|batch| batch.id.clone()));
            let next = last.filter(|_| list.has_more.unwrap_or(false));
            Ok(ListPage { entries, next })
        };
        pages(page, |batch: &RemoteBatch| &batch.id, |page| wire::all_before(page, &since))
    }
}

impl Provider for Anthropic {
    fn account(&self) -> Account {
        self.account.clone()
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn frame(&self) -> Frame {
        Frame { open: "{\"requests\":[", between: ",", close: "]}" }
    }

    fn encode(&self, item: &Outgoing<'_>, body: &mut Vec<u8>) -> std::result::Result<(), String> {
        wire::check_custom_id(item.custom_id)?;
        let begin = body.len();
        body.extend_from_slice(format!("{{\"custom_id\":\"{}\",\"params\":", item.custom_id).as_bytes());
        if let Err(rule) = wire::push_body(item, Shape::Anthropic, body) {
            body.truncate(begin);
            return Err(rule);
        }
        body.push(b'}');
        Ok(())
    }

    fn create(&self, new: Create<'_>) -> CallResult<RemoteBatch> {
        let Some(body) = new.body else {
            return Err(CallError::new(Fate::NotSent, CallClass::Invalid, "a batch goes with its body"));
        };
        let ask = self.http.post(BATCHES).within(self.limits.create_timeout);
        let answer = ask.body("application/json", body.length, body.reader).send()?.success(explain)?;
        read(answer)
    }

    fn find(&self, sought: &Sought<'_>) -> CallResult<Vec<Candidate>> {
        let since = |batch: &RemoteBatch| sought.by_clock_of(batch, sought.since);
        let until = |batch: &RemoteBatch| sought.by_clock_of(batch, sought.until);
        let may_be = |batch: &RemoteBatch| {
            batch.counts.total.is_none_or(|total| total == sought.items)
                && batch.created_at.is_none_or(|at| (since(batch)..=until(batch)).contains(&at))
        };
        let all = self.list_since(since)?;
        Ok(all.into_iter().filter(may_be).map(|batch| Candidate { batch, certain: false }).collect())
    }

    fn poll(&self, id: &str) -> CallResult<RemoteBatch> {
        read(self.http.get(&Self::path(id)?).send()?.success(explain)?)
    }

    fn list(&self, since: Timestamp) -> CallResult<Option<Vec<RemoteBatch>>> {
        self.list_since(|_| since).map(Some)
    }

    fn results(&self, batch: &RemoteBatch, _: &mut dyn Todo, sink: &mut Sink<'_>) -> CallResult<()> {
        let place = |raw: &str| {
            let said: Value = serde_json::from_str(raw).unwrap_or_default();
            let is_gone = text(&said["archived_at"]).is_some();
            (text(&said["results_url"]).map(str::to_owned), is_gone)
        };
        let (mut url, mut is_gone) = place(&batch.raw);
        let mut total = batch.counts.total;
        if url.is_none() {
            // What is known of the batch may be older than its end.
            let now = self.poll(&batch.id)?;
            (url, is_gone) = place(&now.raw);
            total = now.counts.total.or(total);
        }
        let Some(url) = url else {
            return Err(if is_gone {
                CallError::new(Fate::Rejected, CallClass::NotFound, "the results are not kept any more")
            } else {
                unreadable("the provider names no address of the results")
            });
        };
        let ask = self.http.get_at(&url)?.streaming();
        give(ask.send()?.success(explain)?.lines(), total, sink, parse).map(drop)
    }

    fn cancel(&self, id: &str) -> CallResult<RemoteBatch> {
        let path = format!("{}/cancel", Self::path(id)?);
        let asked = self.http.post(&path).send().and_then(|answer| read(answer.success(explain)?));
        asked.or_else(|error| {
            // One that has ended cannot be cancelled, and what became of an answer that never came, the batch tells.
            match self.poll(id) {
                Ok(batch) if matches!(batch.state, RemoteState::Cancelling | RemoteState::Ended(_)) => Ok(batch),
                _ => Err(error),
            }
        })
    }

    fn leftovers(&self, batch: &RemoteBatch, _: Option<&str>) -> Vec<String> {
        match batch.state {
            RemoteState::Ended(_) => vec![batch.id.clone()],
            // It would have to be cancelled first.
            _ => Vec::new(),
        }
    }

    fn delete(&self, leftover: &str) -> CallResult<()> {
        match self.http.delete(&Self::path(leftover)?).send()?.success(explain) {
            Err(error) if error.class == CallClass::NotFound => Ok(()),
            other => other.map(drop),
        }
    }
}

#[derive(Deserialize)]
struct List<'l> {
    #[serde(borrow)]
    data: Vec<&'l RawValue>,
    has_more: Option<bool>,
    #[serde(borrow)]
    last_id: Option<Cow<'l, str>>,
}

fn read(answer: Answer) -> CallResult<RemoteBatch> {
    let told = answer.whole()?;
    batch(&told.text, told.retry_after, &told)
}

fn batch(raw: &str, retry_after: Option<Duration>, told: &Told) -> CallResult<RemoteBatch> {
    let said: Value = serde_json::from_str(raw).map_err(|_| unreadable("the answer is not JSON"))?;
    let Some(id) = text(&said["id"]) else { return Err(unreadable("the answer is not a batch")) };
    let counted = |name: &str| count(&said["request_counts"][name]);
    let all = ["processing", "succeeded", "errored", "canceled", "expired"].map(counted);
    let total = all.iter().copied().try_fold(0_u64, |sum, count| sum.checked_add(count?));
    let status = text(&said["processing_status"]).unwrap_or_default();
    let state = match status {
        "in_progress" => RemoteState::Running,
        "canceling" | "cancelling" => RemoteState::Cancelling,
        "ended" if text(&said["cancel_initiated_at"]).is_some() => RemoteState::Ended(RemoteEnd::Cancelled),
        "ended" if counted("expired").is_some_and(|expired| expired > 0) => RemoteState::Ended(RemoteEnd::Expired),
        "ended" => RemoteState::Ended(RemoteEnd::Completed),
        unknown => {
            log::warn!("a batch of anthropic has the unknown status {:.40}", format_args!("{unknown:?}").to_string());
            RemoteState::Running
        }
    };
    Ok(RemoteBatch {
        id: id.to_owned(),
        state,
        raw_status: status.to_owned(),
        counts: RemoteCounts::new(total, counted("succeeded"), counted("errored")),
        created_at: moment(&said["created_at"]),
        expires_at: moment(&said["expires_at"]),
        retry_after,
        server_now: told.server_now,
        raw: raw.to_owned(),
    })
}

/// Whether a failure is the account's, though it looks like the request's: low credit has been seen as an invalid request.
fn is_of_account(code: &str, message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["enforced_spend_limit_reached", "contract_spend_limit_reached"].contains(&code)
        || ["credit balance", "spend limit", "api usage limits"].iter().any(|words| message.contains(words))
}

/// What a refusal says.
pub(super) fn explain(said: &Value, answer: &Answer) -> Explained {
    let error = &said["error"];
    let kind = text(&error["type"]);
    let code = wire::code(&error["details"]["error_code"]);
    let message = text(&error["message"]);
    let of_account = is_of_account(code.as_deref().unwrap_or_default(), message.unwrap_or_default());
    let class = match kind {
        Some("rate_limit_error") if of_account && answer.retry_after().is_none() => Some(CallClass::Account),
        Some("rate_limit_error") => Some(CallClass::RateLimited),
        Some("invalid_request_error") if of_account => Some(CallClass::Account),
        Some("authentication_error" | "billing_error" | "permission_error") => Some(CallClass::Account),
        Some("request_too_large") => Some(CallClass::TooLarge),
        Some("not_found_error") => Some(CallClass::NotFound),
        Some("conflict_error" | "api_error" | "timeout_error" | "overloaded_error") => Some(CallClass::Server),
        _ => None,
    };
    Explained { class, code: code.or_else(|| kind.map(str::to_owned)), message: message.map(str::to_owned) }
}

#[derive(Deserialize)]
struct Line<'l> {
    #[serde(borrow)]
    custom_id: Cow<'l, str>,
    #[serde(borrow)]
    result: Outcome<'l>,
}

#[derive(Deserialize)]
struct Outcome<'l> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'l, str>,
    #[serde(borrow)]
    message: Option<&'l RawValue>,
    error: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Message {
    #[serde(default)]
    stop_reason: Value,
    #[serde(default)]
    usage: Value,
}

fn parse(line: &str) -> std::result::Result<Parsed<'_>, String> {
    let line: Line<'_> = serde_json::from_str(line).map_err(|error| wire::problem(&error))?;
    let outcome = match &*line.result.kind {
        "succeeded" => {
            let message = line.result.message.ok_or("a success without a message")?;
            let read: Message = serde_json::from_str(message.get()).unwrap_or_default();
            ItemOutcome::Succeeded {
                reply: message.to_owned(),
                finish: finish(text(&read.stop_reason).unwrap_or_default()),
                usage: usage(&read.usage),
            }
        }
        "errored" => {
            let outer = line.result.error.unwrap_or_default();
            // It is nested twice, but for those who nest it once.
            let error = if outer["error"].is_object() { &outer["error"] } else { &outer };
            let kind = text(&error["type"]).unwrap_or_default();
            let message = text(&error["message"]).unwrap_or_default();
            let detail = wire::code(&error["details"]["error_code"]).unwrap_or_default();
            ItemOutcome::Errored {
                class: class(kind, &detail, message),
                code: if detail.is_empty() { kind.to_owned() } else { detail },
                message: message.to_owned(),
                usage: Usage::default(),
            }
        }
        "canceled" | "cancelled" => ItemOutcome::Cancelled,
        "expired" => ItemOutcome::Expired,
        unknown => ItemOutcome::Errored {
            class: ItemError::Unknown,
            code: wire::short(unknown),
            message: "a result of a kind that is not known".to_owned(),
            usage: Usage::default(),
        },
    };
    Ok(Parsed { custom_id: line.custom_id, outcome })
}

/// What kind of failure of a request it is.
pub(super) fn class(kind: &str, code: &str, message: &str) -> ItemError {
    match kind {
        _ if is_of_account(code, message) => ItemError::Account,
        "authentication_error" | "billing_error" | "permission_error" => ItemError::Account,
        "invalid_request_error" if message.to_ascii_lowercase().contains("content filtering policy") => {
            ItemError::Content
        }
        "invalid_request_error" | "not_found_error" | "request_too_large" => ItemError::Invalid,
        "rate_limit_error" => ItemError::RateLimited,
        "api_error" | "overloaded_error" | "timeout_error" | "conflict_error" => ItemError::Server,
        _ => ItemError::Unknown,
    }
}

/// Why a model stopped.
pub(super) fn finish(reason: &str) -> Finish {
    match reason {
        "end_turn" | "stop_sequence" => Finish::Stop,
        "max_tokens" | "model_context_window_exceeded" => Finish::Length,
        "tool_use" => Finish::ToolUse,
        "refusal" => Finish::Refusal,
        _ => Finish::Other,
    }
}

/// What Anthropic calls input excludes what came from a cache or went into one.
pub(crate) fn usage(said: &Value) -> Usage {
    let (read, write) = (count(&said["cache_read_input_tokens"]), count(&said["cache_creation_input_tokens"]));
    let input = count(&said["input_tokens"])
        .map(|plain| plain.saturating_add(read.unwrap_or(0)).saturating_add(write.unwrap_or(0)));
    let mut usage = Usage::default().cached(read, write);
    usage = usage.reasoning(count(&said["output_tokens_details"]["thinking_tokens"]));
    (usage.input, usage.output) = (input, count(&said["output_tokens"]));
    usage
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(line: &Value) -> String {
        let line = line.to_string();
        match parse(&line).map(|parsed| parsed.outcome) {
            Err(problem) => problem,
            Ok(ItemOutcome::Succeeded { finish, usage, .. }) => {
                format!("{finish:?} {:?}/{:?}", usage.input, usage.output)
            }
            Ok(ItemOutcome::Errored { class, code, message, .. }) => format!("{class:?} {code}: {message}"),
            Ok(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn each_kind_of_result_is_read() {
        let line = |result: Value| json!({"custom_id": "a", "result": result});
        let good = |reason: Value| {
            line(json!({"type": "succeeded", "message": {"id": "msg_1", "content": [], "stop_reason": reason,
                "usage": {"input_tokens": 1, "output_tokens": 2}}}))
        };
        let bad = |kind: &str, message: &str| {
            line(json!({"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": message}}}))
        };
        let low = "Your credit balance is too low to access the Anthropic API.";
        let table = [
            (good(json!("end_turn")), "Stop Some(1)/Some(2)".to_owned()),
            (good(json!("stop_sequence")), "Stop Some(1)/Some(2)".to_owned()),
            (good(json!("max_tokens")), "Length Some(1)/Some(2)".to_owned()),
            (good(json!("model_context_window_exceeded")), "Length Some(1)/Some(2)".to_owned()),
            (good(json!("tool_use")), "ToolUse Some(1)/Some(2)".to_owned()),
            (good(json!("refusal")), "Refusal Some(1)/Some(2)".to_owned()),
            (good(json!("pause_turn")), "Other Some(1)/Some(2)".to_owned()),
            (good(json!(null)), "Other Some(1)/Some(2)".to_owned()),
            (bad("invalid_request_error", "m"), "Invalid invalid_request_error: m".to_owned()),
            // Seen in the wild: a whole batch of these, for want of money.
            (bad("invalid_request_error", low), format!("Account invalid_request_error: {low}")),
            (
                bad("invalid_request_error", "Output blocked by content filtering policy"),
                "Content invalid_request_error: Output blocked by content filtering policy".to_owned(),
            ),
            (bad("billing_error", "m"), "Account billing_error: m".to_owned()),
            (bad("permission_error", "m"), "Account permission_error: m".to_owned()),
            (bad("rate_limit_error", "m"), "RateLimited rate_limit_error: m".to_owned()),
            (bad("overloaded_error", "m"), "Server overloaded_error: m".to_owned()),
            (bad("api_error", "m"), "Server api_error: m".to_owned()),
            (bad("new_error", "m"), "Unknown new_error: m".to_owned()),
            (
                line(json!({"type": "errored", "error": {"type": "api_error", "message": "m"}})),
                "Server api_error: m".to_owned(),
            ),
            (line(json!({"type": "errored"})), "Unknown : ".to_owned()),
            (line(json!({"type": "canceled"})), "Cancelled".to_owned()),
            (line(json!({"type": "expired"})), "Expired".to_owned()),
            (line(json!({"type": "paused"})), "Unknown paused: a result of a kind that is not known".to_owned()),
            (line(json!({"type": "succeeded"})), "a success without a message".to_owned()),
            (json!({"result": {"type": "expired"}}), "the line is not what was promised".to_owned()),
        ];
        for (line, expected) in table {
            assert_eq!(read(&line), expected, "{line}");
        }
    }

    #[test]
    fn the_input_includes_what_was_cached() {
        let usage =
            usage(&json!({"input_tokens": 3, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20,
            "cache_creation": {"ephemeral_5m_input_tokens": 20}, "output_tokens": 7, "service_tier": "batch",
            "output_tokens_details": {"thinking_tokens": 5}}));
        assert_eq!(usage, Usage::of(123, 7).cached(Some(100), Some(20)).reasoning(Some(5)));
        let bare = super::usage(&json!({"input_tokens": 3, "cache_read_input_tokens": null, "output_tokens": 7}));
        assert_eq!(bare, Usage::of(3, 7));
        assert!(super::usage(&Value::Null).is_unknown());
    }
}
