//! OpenAI's files and batches, and the many who speak like them.

pub(super) mod line;
mod quirks;

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use ::http::HeaderName;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::model::time::Timestamp;
use crate::provider::http::{Answer, Auth, Explained, Http, Key, Place, Told, give, segment, unreadable};
pub use crate::provider::openai::quirks::{Idempotency, Quirks};
use crate::provider::setup::{Setup, setters};
use crate::provider::wire::{self, ListPage, Shape, count, moment, pages, text};
use crate::provider::{
    Account, Body, CallClass, CallError, CallResult, Candidate, Create, Fate, Frame, Limits, Outgoing, Provider,
    RefusedItem, RemoteBatch, RemoteCounts, RemoteEnd, RemoteState, Sink, Sought, Todo,
};

/// The fields of a batch that name its files of results.
const OUTPUT: &str = "output_file_id";
const ERRORS: &str = "error_file_id";
/// How many files a page of their list holds.
const FILES_PAGE: usize = 1000;
/// How many errors of an input that did not validate are told.
const TOLD_ERRORS: usize = 3;

/// Batches of OpenAI, and of all who took over its interface: where they differ, [`Quirks`] say how.
///
/// ```
/// use jobmill::provider::{Key, OpenAi};
///
/// # fn main() -> jobmill::Result<()> {
/// let openai = OpenAi::builder(Key::fixed("sk-...")).build()?;
/// let groq = OpenAi::builder(Key::fixed("gsk_...")).base_url("https://api.groq.com/openai/v1").build()?;
/// let at_home = OpenAi::builder(Key::none()).base_url("http://127.0.0.1:8321/v1").name("home").build()?;
/// # let _ = (openai, groq, at_home);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct OpenAi {
    http: Http,
    account: Account,
    limits: Limits,
    quirks: Quirks,
}

/// Makes an [`OpenAi`].
#[derive(Debug)]
pub struct OpenAiBuilder {
    setup: Setup,
    quirks: Option<Quirks>,
    organization: Option<String>,
    project: Option<String>,
}

impl OpenAiBuilder {
    setters!();

    /// Sets how this provider differs from OpenAI. Defaults to what is known of the host, or to [`Quirks::gateway`].
    pub fn quirks(mut self, quirks: Quirks) -> Self {
        self.quirks = Some(quirks);
        self
    }

    /// Sets the organization that pays.
    pub fn organization(mut self, id: impl Into<String>) -> Self {
        self.organization = Some(id.into());
        self
    }

    /// Sets the project that pays.
    pub fn project(mut self, id: impl Into<String>) -> Self {
        self.project = Some(id.into());
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// `Invalid` if a setting breaks its rule, or there is no key and the account has no name.
    pub fn build(self) -> Result<OpenAi> {
        let place = Place::parse(&self.setup.base_url)?;
        let quirks = self.quirks.unwrap_or_else(|| Quirks::of_host(place.authority()));
        quirks.check()?;
        let auth = match &quirks.key_header {
            None => Auth::Bearer,
            Some(name) => Auth::Header(
                name.parse::<HeaderName>()
                    .map_err(|_| Error::invalid("quirks.key_header", "must be a header's name"))?,
            ),
        };
        let mut headers = Vec::new();
        headers.extend(self.organization.map(|id| ("openai-organization".to_owned(), id)));
        headers.extend(self.project.map(|id| ("openai-project".to_owned(), id)));
        let limits = quirks.limits();
        let (http, account, limits) = self.setup.build(&quirks.name, auth, quirks.announce, headers, limits)?;
        Ok(OpenAi { http, account, limits, quirks })
    }
}

impl OpenAi {
    /// The account that this key opens, at `https://api.openai.com/v1` unless another address is set.
    pub fn builder(key: Key) -> OpenAiBuilder {
        OpenAiBuilder {
            setup: Setup::new(key, "https://api.openai.com/v1"),
            quirks: None,
            organization: None,
            project: None,
        }
    }

    fn endpoint<'e>(&'e self, asked: &'e str) -> &'e str {
        let first = || self.limits.endpoints.first().map_or("/v1/chat/completions", String::as_str);
        if asked.is_empty() { first() } else { asked }
    }

    /// Reads the list, the newest first, back to a moment.
    fn list_since(&self, since: impl Fn(&RemoteBatch) -> Timestamp) -> CallResult<Vec<RemoteBatch>> {
        let page = |from: Option<&str>| {
            let path = match from {
                _ if !self.quirks.paging => "/batches".to_owned(),
                None => format!("/batches?limit={}", self.limits.list_page.clamp(1, 100)),
                Some(id) => format!("/batches?limit={}&after={}", self.limits.list_page.clamp(1, 100), segment(id)?),
            };
            let told = self.http.get(&path).send()?.success(explain)?.whole()?;
            let list = List::read(&told)?;
            // One that cannot be read hides no other.
            let entries: Vec<RemoteBatch> =
                list.entries().into_iter().filter_map(|raw| batch(raw.get(), None, &told).ok()).collect();
            let next = if self.quirks.paging { list.next(entries.last().map(|batch| batch.id.as_str())) } else { None };
            Ok(ListPage { entries, next })
        };
        pages(page, |batch: &RemoteBatch| &batch.id, |page| wire::all_before(page, &since))
    }
}

impl Provider for OpenAi {
    fn account(&self) -> Account {
        self.account.clone()
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn frame(&self) -> Frame {
        Frame { open: "", between: "\n", close: "\n" }
    }

    fn encode(&self, item: &Outgoing<'_>, body: &mut Vec<u8>) -> std::result::Result<(), String> {
        wire::check_custom_id(item.custom_id)?;
        let endpoint = self.endpoint(item.endpoint);
        if !self.limits.endpoints.is_empty() && !self.limits.endpoints.iter().any(|known| known == endpoint) {
            return Err(format!("endpoint: must be one of {}", self.limits.endpoints.join(", ")));
        }
        let begin = body.len();
        let head =
            format!("{{\"custom_id\":\"{}\",\"method\":\"POST\",\"url\":{},\"body\":", item.custom_id, json!(endpoint));
        body.extend_from_slice(head.as_bytes());
        if let Err(rule) = wire::push_body(item, Shape::OpenAi, body) {
            body.truncate(begin);
            return Err(rule);
        }
        body.push(b'}');
        Ok(())
    }

    fn upload(&self, name: &str, body: Body<'_>) -> CallResult<String> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_plain) {
            return Err(CallError::new(Fate::NotSent, CallClass::Invalid, "a file's name that no form can hold"));
        }
        // No line of the body begins with it: each begins with a brace. No boundary is longer than 70.
        let boundary = format!("jobmill-{}", &name[..name.len().min(60)]);
        let field = |name: &str, value: &str| {
            format!("--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let mut head = field("purpose", &self.quirks.purpose);
        if let Some(time) = self.quirks.expires_after {
            head += &field("expires_after[anchor]", "created_at");
            head += &field("expires_after[seconds]", &time.as_secs().to_string());
        }
        head += &format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             content-type: application/jsonl\r\n\r\n"
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let length = head.len() as u64 + body.length + tail.len() as u64;
        // What the body's reader has beyond its length would push the tail away.
        let mut exact = Exact { reader: body.reader, left: body.length };
        let mut whole = head.as_bytes().chain(&mut exact).chain(tail.as_bytes());
        let ask = self.http.post("/files").uploading(self.limits.create_timeout);
        let ask = ask.body(&format!("multipart/form-data; boundary={boundary}"), length, &mut whole);
        let told = ask.send()?.success(explain)?.whole()?;
        let said: Value = serde_json::from_str(&told.text).map_err(|_| unreadable("the answer is not JSON"))?;
        if count(&said["bytes"]).is_some_and(|bytes| bytes != body.length) {
            return Err(unreadable("the file did not arrive as it was sent"));
        }
        text(&said["id"]).map(str::to_owned).ok_or_else(|| unreadable("the answer is not a file"))
    }

    fn find_upload(&self, name: &str) -> CallResult<Vec<String>> {
        let page = |from: Option<&str>| {
            let mut path = "/files".to_owned();
            if self.quirks.paging {
                path = format!("/files?purpose={}&order=desc&limit={FILES_PAGE}", segment(&self.quirks.purpose)?);
            }
            if let Some(from) = from {
                path = format!("{path}&after={}", segment(from)?);
            }
            let told = self.http.get(&path).send()?.success(explain)?.whole()?;
            let list = List::read(&told)?;
            let entries: Vec<(String, bool)> = list
                .entries()
                .into_iter()
                .filter_map(|raw| {
                    let said: Value = serde_json::from_str(raw.get()).ok()?;
                    let is_it = text(&said["filename"]) == Some(name) && text(&said["status"]) != Some("error");
                    Some((text(&said["id"])?.to_owned(), is_it))
                })
                .collect();
            let next = if self.quirks.paging { list.next(entries.last().map(|(id, _)| id.as_str())) } else { None };
            Ok(ListPage { entries, next })
        };
        let all = pages(page, |(id, _)| id, |page| page.iter().any(|(_, is_it)| *is_it))?;
        Ok(all.into_iter().filter(|(_, is_it)| *is_it).map(|(id, _)| id).collect())
    }

    fn create(&self, new: Create<'_>) -> CallResult<RemoteBatch> {
        let Some(file) = new.file else {
            return Err(CallError::new(Fate::NotSent, CallClass::Invalid, "a batch needs a file"));
        };
        let mut said = Map::new();
        said.insert("input_file_id".to_owned(), file.into());
        said.insert("endpoint".to_owned(), self.endpoint(new.endpoint).into());
        said.insert("completion_window".to_owned(), self.quirks.completion_window.clone().into());
        if self.quirks.metadata {
            said.insert("metadata".to_owned(), json!({ "key": new.key }));
        }
        if let Some(time) = self.quirks.expires_after.filter(|_| self.quirks.output_expires) {
            let after = json!({ "anchor": "created_at", "seconds": time.as_secs() });
            said.insert("output_expires_after".to_owned(), after);
        }
        let mut ask = self.http.post("/batches").within(self.limits.create_timeout);
        match &self.quirks.idempotency {
            Idempotency::None => {}
            Idempotency::Header(name) => {
                let name: HeaderName = name.parse().map_err(|_| {
                    CallError::new(Fate::NotSent, CallClass::Invalid, "quirks.idempotency: must be a header's name")
                })?;
                ask = ask.header(name, new.key);
            }
            Idempotency::Field(name) => {
                said.insert(name.clone(), new.key.into());
            }
        }
        let bytes = Value::Object(said).to_string().into_bytes();
        let mut reader = bytes.as_slice();
        let answer = ask.body("application/json", bytes.len() as u64, &mut reader).send()?.success(explain)?;
        read(answer)
    }

    fn find(&self, sought: &Sought<'_>) -> CallResult<Vec<Candidate>> {
        let is_it = |batch: &RemoteBatch| {
            let said: Value = serde_json::from_str(&batch.raw).unwrap_or_default();
            let holds = sought.file.is_some_and(|file| said["input_file_id"].as_str() == Some(file));
            holds || said["metadata"]["key"].as_str() == Some(sought.key)
        };
        let all = self.list_since(|batch| sought.by_clock_of(batch, sought.since))?;
        Ok(all.into_iter().filter(is_it).map(|batch| Candidate { batch, certain: true }).collect())
    }

    fn poll(&self, id: &str) -> CallResult<RemoteBatch> {
        read(self.http.get(&format!("/batches/{}", segment(id)?)).send()?.success(explain)?)
    }

    fn list(&self, since: Timestamp) -> CallResult<Option<Vec<RemoteBatch>>> {
        self.list_since(|_| since).map(Some)
    }

    fn results(&self, batch: &RemoteBatch, _: &mut dyn Todo, sink: &mut Sink<'_>) -> CallResult<()> {
        let mut known = Cow::Borrowed(batch);
        if files(&batch.raw).is_empty() || lacks_output(batch) {
            // Lists, and what is known from before the end, may name none, or one of two.
            known = Cow::Owned(self.poll(&batch.id)?);
        }
        let mut gone = None;
        for (name, id) in files(&known.raw) {
            // Of the other file's lines, not all count as failed everywhere.
            let least = known.counts.succeeded.filter(|_| name == OUTPUT);
            let ask = self.http.get(&format!("/files/{}/content", segment(&id)?)).streaming();
            let answer = match ask.send()?.success(explain) {
                // What one file holds is not lost with the other.
                Err(error) if error.is_not_found() => {
                    gone = Some(error);
                    continue;
                }
                answer => answer?,
            };
            if give(answer.lines(), least, sink, line::parse)?.is_break() {
                return Ok(());
            }
        }
        if lacks_output(&known) {
            return Err(unreadable("the provider has results and names no file of them"));
        }
        gone.map_or(Ok(()), Err)
    }

    fn refused_items(&self, batch: &RemoteBatch) -> Vec<RefusedItem> {
        let said: Value = serde_json::from_str(&batch.raw).unwrap_or_default();
        let named = |error: &Value| Some(RefusedItem { place: count(&error["line"])?, message: what_failed(error) });
        why(&said["errors"]).iter().filter_map(named).collect()
    }

    fn cancel(&self, id: &str) -> CallResult<RemoteBatch> {
        let path = format!("/batches/{}/cancel", segment(id)?);
        let asked = self.http.post(&path).send().and_then(|answer| read(answer.success(explain)?));
        asked.or_else(|error| {
            // One that has ended cannot be cancelled, and what became of an answer that never came, the batch tells.
            match self.poll(id) {
                Ok(batch) if matches!(batch.state, RemoteState::Cancelling | RemoteState::Ended(_)) => Ok(batch),
                _ => Err(error),
            }
        })
    }

    fn leftovers(&self, batch: &RemoteBatch, file: Option<&str>) -> Vec<String> {
        if !matches!(batch.state, RemoteState::Ended(_)) {
            return Vec::new();
        }
        let said: Value = serde_json::from_str(&batch.raw).unwrap_or_default();
        let input = text(&said["input_file_id"]).or(file).map(str::to_owned);
        // The input last: as long as it is there, it tells whose batch this was.
        let mut all: Vec<String> = files(&batch.raw).into_iter().map(|(_, id)| id).collect();
        all.extend(input);
        all.dedup();
        all
    }

    fn delete(&self, leftover: &str) -> CallResult<()> {
        match self.http.delete(&format!("/files/{}", segment(leftover)?)).send()?.success(explain) {
            Err(error) if error.class == CallClass::NotFound => Ok(()),
            other => other.map(drop),
        }
    }
}

/// A part of a form: as many bytes as it is said to have, or an error.
struct Exact<'r> {
    reader: &'r mut dyn Read,
    left: u64,
}

impl Read for Exact<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = usize::try_from(self.left).map_or(buffer.len(), |left| buffer.len().min(left));
        if room == 0 {
            return match self.reader.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(std::io::Error::other("the body is longer than was said")),
            };
        }
        let count = self.reader.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(std::io::Error::other("the body is shorter than was said"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// A list, as most write it: some name its entries otherwise, some give nothing but them.
#[derive(Default, Deserialize)]
struct List<'l> {
    #[serde(borrow)]
    data: Option<Vec<&'l RawValue>>,
    #[serde(borrow)]
    value: Option<Vec<&'l RawValue>>,
    has_more: Option<bool>,
    #[serde(borrow)]
    last_id: Option<Cow<'l, str>>,
}

impl<'l> List<'l> {
    fn read(told: &'l Told) -> CallResult<Self> {
        let promised = || unreadable("the list is not what was promised");
        if told.text.trim_start().starts_with('[') {
            let data = serde_json::from_str(&told.text).map_err(|_| promised())?;
            return Ok(Self { data: Some(data), ..Self::default() });
        }
        let list: Self = serde_json::from_str(&told.text).map_err(|_| promised())?;
        if list.data.is_none() && list.value.is_none() { Err(promised()) } else { Ok(list) }
    }

    fn entries(&self) -> Vec<&'l RawValue> {
        self.data.as_ref().or(self.value.as_ref()).cloned().unwrap_or_default()
    }

    fn next(&self, last: Option<&str>) -> Option<String> {
        let last = self.last_id.as_deref().or(last).map(str::to_owned);
        last.filter(|_| self.has_more.unwrap_or(false))
    }
}

/// The files of results that a batch names, what succeeded first.
fn files(raw: &str) -> Vec<(&'static str, String)> {
    let said: Value = serde_json::from_str(raw).unwrap_or_default();
    let mut files: Vec<_> =
        [OUTPUT, ERRORS].into_iter().filter_map(|name| Some((name, text(&said[name])?.to_owned()))).collect();
    files.dedup_by(|one, other| one.1 == other.1);
    files
}

/// Whether requests have succeeded and no file of what they came to is named.
fn lacks_output(batch: &RemoteBatch) -> bool {
    let RemoteCounts { total, succeeded, failed } = batch.counts;
    // Some count what has failed among what is completed.
    let at_most = total.zip(failed).map_or(u64::MAX, |(total, failed)| total.saturating_sub(failed));
    succeeded.is_some_and(|succeeded| succeeded.min(at_most) > 0)
        && !files(&batch.raw).iter().any(|(name, _)| *name == OUTPUT)
}

fn read(answer: Answer) -> CallResult<RemoteBatch> {
    let told = answer.whole()?;
    batch(&told.text, told.retry_after, &told)
}

fn batch(raw: &str, retry_after: Option<Duration>, told: &Told) -> CallResult<RemoteBatch> {
    let said: Value = serde_json::from_str(raw).map_err(|_| unreadable("the answer is not JSON"))?;
    let Some(id) = text(&said["id"]) else { return Err(unreadable("the answer is not a batch")) };
    let counted = |name: &str| count(&said["request_counts"][name]);
    let (total, completed, failed) = (counted("total"), counted("completed"), counted("failed"));
    let status = text(&said["status"]).unwrap_or_default();
    let state = match status.to_ascii_lowercase().as_str() {
        "validating" => RemoteState::Validating,
        "in_progress" => RemoteState::Running,
        "finalizing" => RemoteState::Finalizing,
        "cancelling" | "canceling" => RemoteState::Cancelling,
        "completed" => RemoteState::Ended(RemoteEnd::Completed),
        "expired" => RemoteState::Ended(RemoteEnd::Expired),
        "cancelled" | "canceled" => RemoteState::Ended(RemoteEnd::Cancelled),
        // What has results did run, whatever it is called.
        "failed" if text(&said["output_file_id"]).is_some() || completed.is_some_and(|completed| completed > 0) => {
            RemoteState::Ended(RemoteEnd::Completed)
        }
        "failed" => RemoteState::Ended(why_failed(&said["errors"])),
        unknown => {
            log::warn!("a batch has the unknown status {:?}", wire::short(unknown));
            RemoteState::Running
        }
    };
    Ok(RemoteBatch {
        id: id.to_owned(),
        state,
        raw_status: status.to_owned(),
        // While the input is being checked, nothing has been counted.
        counts: RemoteCounts::new(total.filter(|total| *total > 0), completed, failed),
        created_at: moment(&said["created_at"]),
        expires_at: moment(&said["expires_at"]),
        retry_after,
        server_now: told.server_now,
        raw: raw.to_owned(),
    })
}

/// The errors of an input that did not validate.
fn why(errors: &Value) -> &[Value] {
    errors["data"].as_array().or_else(|| errors.as_array()).map_or(&[][..], Vec::as_slice)
}

fn what_failed(error: &Value) -> String {
    let message: String = text(&error["message"]).unwrap_or_default().chars().take(200).collect();
    format!("{}: {message}", wire::short(&wire::code(&error["code"]).unwrap_or_default()))
}

/// Why nothing of a batch was run.
fn why_failed(errors: &Value) -> RemoteEnd {
    let list = why(errors);
    let code = |error: &Value| wire::code(&error["code"]).unwrap_or_default();
    let mut told = list.iter().take(TOLD_ERRORS).map(|error| {
        let line = count(&error["line"]).map_or_else(String::new, |line| format!(" (line {line})"));
        format!("{}{line}", what_failed(error))
    });
    let mut message: Vec<String> = told.by_ref().collect();
    if list.len() > TOLD_ERRORS {
        message.push(format!("and {} more", list.len() - TOLD_ERRORS));
    }
    let message = message.join("; ");
    let any = |codes: &[&str]| list.iter().any(|error| codes.contains(&code(error).as_str()));
    if any(&["token_limit_exceeded", "enqueued_token_limit_exceeded", "rate_limit_exceeded"]) {
        RemoteEnd::Quota(message)
    } else if list.is_empty() {
        RemoteEnd::Broken("the provider does not say why".to_owned())
    } else if list
        .iter()
        .all(|error| ["server_error", "internal_error", "internal_server_error"].contains(&code(error).as_str()))
    {
        RemoteEnd::Broken(message)
    } else {
        RemoteEnd::Invalid(message)
    }
}

/// What a refusal says.
pub(super) fn explain(said: &Value, _: &Answer) -> Explained {
    let error = &said["error"];
    // Some give the message alone.
    let message = text(&error["message"]).or(text(error)).or(text(&said["message"])).or(text(&said["detail"]));
    let code = wire::code(&error["code"]).or_else(|| wire::code(&error["type"]));
    let any = |words: &[&str]| {
        [&error["code"], &error["type"]].iter().any(|word| word.as_str().is_some_and(|word| words.contains(&word)))
    };
    let class =
        if any(&["insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated"]) {
            Some(CallClass::Account)
        } else if any(&["token_limit_exceeded", "rate_limit_exceeded"]) {
            Some(CallClass::RateLimited)
        } else {
            None
        };
    Explained { class, code, message: message.map(str::to_owned) }
}
