//! LLM providers: who takes batches of requests and gives their results hours later.
//!
//! A [`Provider`] knows the wire and nothing else: no database, no clock, no thread that outlives a call. The engine drives
//! every step and writes down each before it takes the next, so that a crash may fall between any two.

mod anthropic;
mod chat;
pub(crate) mod http;
mod local;
mod openai;
mod setup;
mod slots;
mod wire;

use std::fmt;
use std::io::Read;
use std::ops::ControlFlow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::model::contents::{Told, debug_with_sizes};
use crate::model::time::Timestamp;
pub use crate::model::usage::Usage;
pub use crate::provider::anthropic::{Anthropic, AnthropicBuilder};
pub use crate::provider::chat::LocalChat;
pub use crate::provider::http::Key;
pub use crate::provider::local::{IntoReply, Local, LocalError, LocalReply};
pub use crate::provider::openai::{Idempotency, OpenAi, OpenAiBuilder, Quirks};

/// One account at one provider of batches.
///
/// # What is asked of an implementation
///
/// - No call is repeated below: a request that may have reached the provider is never sent a second time by it. The engine
///   does, when it knows what came of the first.
/// - Each error tells its [`Fate`]: whether the provider can have acted on the request. In doubt it is
///   [`Fate::Ambiguous`].
/// - Secrets go to the configured address alone, and into no error, `Debug` or log.
/// - Words and fields that it does not know are data, not errors: an unknown status is [`RemoteState::Running`].
///
/// `testing::conformance` tries all this on a provider of yours.
pub trait Provider: Send + Sync {
    /// Who pays, and where: what must stay the same for a batch to be found again.
    fn account(&self) -> Account;

    /// What one batch may hold, and what the provider can do.
    fn limits(&self) -> Limits;

    /// What stands before, between and after the items of a batch's body.
    fn frame(&self) -> Frame;

    /// Appends one item of a batch's body, without what stands between two. The same item gives the same bytes each time.
    ///
    /// # Errors
    /// A rule that the item breaks, so that it can never be sent.
    fn encode(&self, item: &Outgoing<'_>, body: &mut Vec<u8>) -> std::result::Result<(), String>;

    /// Stores a body under a name, and gives the id of the file. Only asked if [`Limits::uploads`].
    ///
    /// # Errors
    /// The call failed.
    fn upload(&self, name: &str, body: Body<'_>) -> CallResult<String> {
        let _ = (name, body);
        Err(CallError::unsupported("upload"))
    }

    /// Looks for files of this name, the newest first. Only asked if [`Limits::uploads`].
    ///
    /// # Errors
    /// The call failed.
    fn find_upload(&self, name: &str) -> CallResult<Vec<String>> {
        let _ = name;
        Err(CallError::unsupported("find_upload"))
    }

    /// Creates a batch.
    ///
    /// # Errors
    /// The call failed. Its [`Fate`] decides whether it may be sent again.
    fn create(&self, new: Create<'_>) -> CallResult<RemoteBatch>;

    /// Looks for the batch that a call of [`create`](Self::create) may have made, whose answer never came.
    ///
    /// # Errors
    /// The call failed.
    fn find(&self, sought: &Sought<'_>) -> CallResult<Vec<Candidate>>;

    /// Asks how a batch is doing.
    ///
    /// # Errors
    /// The call failed.
    fn poll(&self, id: &str) -> CallResult<RemoteBatch>;

    /// Asks how all batches are doing that were created at or after a moment: one call for up to
    /// [`Limits::list_page`] of them. `None` if the provider has no list.
    ///
    /// # Errors
    /// The call failed.
    fn list(&self, since: Timestamp) -> CallResult<Option<Vec<RemoteBatch>>> {
        let _ = since;
        Ok(None)
    }

    /// Gives each result of a batch that has ended to `sink`, as it comes, until the last or until `sink` breaks.
    ///
    /// A provider that runs the requests in this very process ([`Limits::local`]) takes them from `todo`, which holds those
    /// that have no result yet; all others leave it alone. `todo` gives no more when the engine shuts down or the batch is
    /// cancelled, and what was taken from it counts if its result is given then.
    ///
    /// # Errors
    /// The call failed, or the results were cut off. Those that were given count, and all may be given again.
    fn results(&self, batch: &RemoteBatch, todo: &mut dyn Todo, sink: &mut Sink<'_>) -> CallResult<()>;

    /// Names the items for which a batch was refused as a whole ([`RemoteEnd::Invalid`]), as far as its provider does. These
    /// fail, and the others are sent again. If none is named, the batch is sent again in halves, until what is refused
    /// stands alone.
    fn refused_items(&self, batch: &RemoteBatch) -> Vec<RefusedItem> {
        let _ = batch;
        Vec::new()
    }

    /// Asks for a batch to be cancelled. What is done already is still done, and paid.
    ///
    /// # Errors
    /// The call failed, also because the batch has ended before.
    fn cancel(&self, id: &str) -> CallResult<RemoteBatch>;

    /// The parts of a batch that are kept at the provider and can be deleted, in the order in which they should be.
    fn leftovers(&self, batch: &RemoteBatch, file: Option<&str>) -> Vec<String> {
        let _ = (batch, file);
        Vec::new()
    }

    /// Deletes one of [`leftovers`](Self::leftovers). What is gone already is no error.
    ///
    /// # Errors
    /// The call failed.
    fn delete(&self, leftover: &str) -> CallResult<()> {
        let _ = leftover;
        Ok(())
    }
}

/// An item for which a batch was refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "it is a place and a word on it")]
pub struct RefusedItem {
    /// Its place in the body: the first is 1.
    pub place: u64,
    /// What is wrong with it, as the provider says.
    pub message: String,
}

/// Takes results as they come, and breaks if no more are wanted.
pub type Sink<'s> = dyn FnMut(ResultLine<'_>) -> ControlFlow<()> + 's;

/// Gives requests that have no result yet.
pub trait Todo: Send {
    /// The next. `None`, and no other after it, when there are none or no more are wanted.
    fn next(&mut self) -> Option<OwnedOutgoing>;
}

/// Who pays, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Account {
    /// The provider's name, as batches ask for it: `anthropic`, `openai`, `local`.
    pub provider: String,
    /// Tells the account from others without telling its key: provider, address and the first 12 hexadecimal digits of the
    /// key's SHA-256.
    pub fingerprint: String,
    /// Where requests go.
    pub base_url: String,
    /// The version of the provider's interface, where there are several.
    pub api_version: Option<String>,
}

impl Account {
    /// An account of this name, told from others by its address and its key. What may be a secret in the address, its query
    /// and a password, is left out.
    pub fn new(provider: impl Into<String>, base_url: impl Into<String>, key: &str) -> Self {
        use sha2::{Digest, Sha256};

        let (provider, base_url) = (provider.into(), without_secrets(&base_url.into()));
        let digest = Sha256::digest(key.as_bytes());
        let short: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let fingerprint = format!("{provider}|{base_url}|{short}");
        Self { provider, fingerprint, base_url, api_version: None }
    }

    /// Sets the version of the provider's interface.
    pub fn api_version(mut self, version: impl Into<String>) -> Self {
        self.api_version = Some(version.into());
        self
    }
}

/// An address as it may be kept: without query, fragment, user and password.
fn without_secrets(address: &str) -> String {
    let address = address.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// What one batch may hold, and what a provider can do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most items of a batch.
    pub items: usize,
    /// The most bytes of a batch's body.
    pub bytes: u64,
    /// All items of a batch must be for one model.
    pub one_model: bool,
    /// The endpoints that items may name; the first is the default. All items of a batch are for the same.
    pub endpoints: Vec<String>,
    /// The body is uploaded as a file first.
    pub uploads: bool,
    /// A repeated creation with the same key makes no second batch.
    pub idempotent: bool,
    /// Requests run in this very process, when their results are asked for.
    pub local: bool,
    /// How many batches a call of [`Provider::list`] tells of. 0: it has no list.
    pub list_page: usize,
    /// The longest that a batch runs.
    pub window: Duration,
    /// How long results are kept after the batch was created.
    pub retention: Option<Duration>,
    /// The most estimated input tokens of one model that may be under way, over all batches of the account.
    pub tokens_in_flight: Option<u64>,
    /// The most items that may be under way, over all batches of the account.
    pub items_in_flight: Option<u64>,
    /// The longest that a creation may take, after which it counts as not made if it cannot be found.
    pub create_timeout: Duration,
    /// The least time between two polls of one batch: a day at most.
    pub poll_min: Duration,
}

impl Limits {
    /// Limits of a provider that takes so many items in so many bytes. What is not said defaults to: any model, any
    /// endpoint, no upload, not idempotent, remote, no list, 24 hours, results kept for ever, no caps, 10 min for a
    /// creation, 10 s between two polls.
    pub fn new(items: usize, bytes: u64) -> Self {
        Self {
            items,
            bytes,
            one_model: false,
            endpoints: Vec::new(),
            uploads: false,
            idempotent: false,
            local: false,
            list_page: 0,
            window: Duration::from_secs(86_400),
            retention: None,
            tokens_in_flight: None,
            items_in_flight: None,
            create_timeout: Duration::from_secs(600),
            poll_min: Duration::from_secs(10),
        }
    }
}

/// What stands before, between and after the items of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a body has a beginning, a middle and an end")]
pub struct Frame {
    /// Before the first.
    pub open: &'static str,
    /// Between two.
    pub between: &'static str,
    /// After the last.
    pub close: &'static str,
}

/// One request, ready to be sent.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Outgoing<'a> {
    /// What the result will be known by: letters, digits, `-` and `_`, at most 64, unique for all time.
    pub custom_id: &'a str,
    /// The endpoint, where the provider has several.
    pub endpoint: &'a str,
    /// The model's name.
    pub model: &'a str,
    /// The body of the request, JSON.
    pub body: &'a RawValue,
}

debug_with_sizes!(Outgoing<'a> { custom_id, endpoint, model; body });

impl<'a> Outgoing<'a> {
    /// A request.
    pub fn new(custom_id: &'a str, endpoint: &'a str, model: &'a str, body: &'a RawValue) -> Self {
        Self { custom_id, endpoint, model, body }
    }
}

/// One request that somebody is to run.
#[derive(Clone)]
#[expect(clippy::exhaustive_structs, reason = "it is what Outgoing is, owned")]
pub struct OwnedOutgoing {
    /// See [`Outgoing::custom_id`].
    pub custom_id: String,
    /// See [`Outgoing::endpoint`].
    pub endpoint: String,
    /// See [`Outgoing::model`].
    pub model: String,
    /// See [`Outgoing::body`].
    pub body: Box<RawValue>,
}

debug_with_sizes!(OwnedOutgoing { custom_id, endpoint, model; body });

impl OwnedOutgoing {
    /// The same, borrowed.
    pub fn as_outgoing(&self) -> Outgoing<'_> {
        Outgoing::new(&self.custom_id, &self.endpoint, &self.model, &self.body)
    }
}

/// The body of a batch, read as it is sent.
pub struct Body<'a> {
    /// How many bytes it has, exactly.
    pub length: u64,
    /// Gives them.
    pub reader: &'a mut dyn Read,
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("length", &self.length).finish_non_exhaustive()
    }
}

/// A batch to be created.
#[derive(Debug)]
#[non_exhaustive]
pub struct Create<'a> {
    /// The engine's key of this batch: letters, digits and `-`, at most 36. Sent wherever the provider keeps or honours one.
    pub key: &'a str,
    /// The endpoint of all its items.
    pub endpoint: &'a str,
    /// The file that holds the body, if the provider takes one.
    pub file: Option<&'a str>,
    /// The body, if it takes no file.
    pub body: Option<Body<'a>>,
    /// How many items it holds.
    pub items: u64,
}

impl<'a> Create<'a> {
    /// A batch whose body goes with it.
    pub fn with_body(key: &'a str, endpoint: &'a str, items: u64, body: Body<'a>) -> Self {
        Self { key, endpoint, file: None, body: Some(body), items }
    }

    /// A batch whose body has been uploaded.
    pub fn with_file(key: &'a str, endpoint: &'a str, items: u64, file: &'a str) -> Self {
        Self { key, endpoint, file: Some(file), body: None, items }
    }
}

/// A batch whose creation had no answer.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Sought<'a> {
    /// See [`Create::key`].
    pub key: &'a str,
    /// See [`Create::file`].
    pub file: Option<&'a str>,
    /// How many items it holds.
    pub items: u64,
    /// It was not created before this moment, by this machine's clock. That clocks are some minutes wrong is reckoned with,
    /// so that a provider need not.
    pub since: Timestamp,
    /// It was not created after this moment.
    pub until: Timestamp,
    /// What this machine's clock shows now, to be held against the provider's, which may lie hours from it. `None`: they
    /// agree.
    pub now: Option<Timestamp>,
}

impl<'a> Sought<'a> {
    /// A batch that was sent between two moments.
    pub fn new(key: &'a str, file: Option<&'a str>, items: u64, since: Timestamp, until: Timestamp) -> Self {
        Self { key, file, items, since, until, now: None }
    }

    /// Sets what this machine's clock shows.
    pub fn now(mut self, now: Timestamp) -> Self {
        self.now = Some(now);
        self
    }

    /// A moment of this machine's clock, by that of the provider who has told of a batch just now.
    pub fn by_clock_of(&self, batch: &RemoteBatch, at: Timestamp) -> Timestamp {
        match (self.now, batch.server_now) {
            (Some(here), Some(there)) if there > here => at.saturating_add(there.since(here)),
            (Some(here), Some(there)) => at.saturating_sub(here.since(there)),
            _ => at,
        }
    }
}

/// A batch that may be the one that is sought.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "it is a batch and how sure we are")]
pub struct Candidate {
    /// The batch.
    pub batch: RemoteBatch,
    /// Whether it is the one for certain: it bears the key, or holds the file. If not, only its results can tell.
    pub certain: bool,
}

/// Where a batch stands at its provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RemoteState {
    /// Its input is being checked.
    Validating,
    /// It runs. So does one whose status has never been heard of.
    Running,
    /// It is being cancelled.
    Cancelling,
    /// Its results are being gathered.
    Finalizing,
    /// It has come to its end. What its requests came to, the results tell.
    Ended(RemoteEnd),
}

/// How a batch ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RemoteEnd {
    /// It ran to its end, whatever its requests came to.
    Completed,
    /// It was cancelled. Some of its requests may have been run.
    Cancelled,
    /// Its time was up. Some of its requests may have been run.
    Expired,
    /// Nothing was run: the input did not validate.
    Invalid(String),
    /// Nothing was run: too much is under way. The same batch may be sent again later.
    Quota(String),
    /// Nothing was run, and it is the provider's fault. The same batch may be sent again.
    Broken(String),
    /// Nobody can tell any more what of it was run: the provider does not know it, or keeps its results no more. Providers
    /// do not say so; the engine does, when one has said long enough that it finds nothing.
    Lost(String),
}

/// How many requests of a batch stand where, as far as the provider tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemoteCounts {
    /// All.
    pub total: Option<u64>,
    /// Those that succeeded so far.
    pub succeeded: Option<u64>,
    /// Those that failed so far.
    pub failed: Option<u64>,
}

impl RemoteCounts {
    /// So many in all, and of these so many that succeeded and failed so far.
    pub fn new(total: Option<u64>, succeeded: Option<u64>, failed: Option<u64>) -> Self {
        Self { total, succeeded, failed }
    }
}

/// A batch, as its provider tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemoteBatch {
    /// The provider's id. Opaque.
    pub id: String,
    /// Where it stands.
    pub state: RemoteState,
    /// The provider's own word for that.
    pub raw_status: String,
    /// How its requests are doing.
    pub counts: RemoteCounts,
    /// When it was created, by the provider's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When its time is up, by the provider's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// What the provider asks to be left alone for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Duration>,
    /// The provider's clock at the time of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_now: Option<Timestamp>,
    /// The answer as it came, JSON: [`Provider::results`] finds in it where the results are.
    pub raw: String,
}

impl RemoteBatch {
    /// A batch of which only this is known.
    pub fn new(id: impl Into<String>, state: RemoteState, raw: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            state,
            raw_status: String::new(),
            counts: RemoteCounts::default(),
            created_at: None,
            expires_at: None,
            retry_after: None,
            server_now: None,
            raw: raw.into(),
        }
    }
}

/// One line of a batch's results.
#[non_exhaustive]
pub enum ResultLine<'a> {
    /// The result of a request.
    Result {
        /// What the request was sent under.
        custom_id: &'a str,
        /// What it came to.
        outcome: ItemOutcome,
        /// The line as it came.
        raw: &'a str,
    },
    /// A line that is not what the provider promises. The others count nevertheless.
    Unreadable {
        /// The beginning of the line, as far as it is UTF-8.
        raw: &'a str,
        /// What is wrong with it.
        problem: &'a str,
    },
    /// No line: none is ready now, and what was given so far should not wait for the next to be written down. It is told
    /// by providers whose results come one by one as they are made.
    Lull,
}

impl fmt::Debug for ResultLine<'_> {
    /// A line is a reply of a model, even one that cannot be read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Result { custom_id, outcome, raw } => f
                .debug_struct("Result")
                .field("custom_id", custom_id)
                .field("outcome", outcome)
                .field("raw", &Told(raw))
                .finish(),
            Self::Unreadable { raw, problem } => {
                f.debug_struct("Unreadable").field("raw", &Told(raw)).field("problem", problem).finish()
            }
            Self::Lull => f.write_str("Lull"),
        }
    }
}

impl<'a> ResultLine<'a> {
    /// The result of a request, with the line as it came.
    pub fn result(custom_id: &'a str, outcome: ItemOutcome, raw: &'a str) -> Self {
        Self::Result { custom_id, outcome, raw }
    }

    /// A line that cannot be read.
    pub fn unreadable(raw: &'a str, problem: &'a str) -> Self {
        Self::Unreadable { raw, problem }
    }
}

/// What a request came to.
#[derive(Clone)]
#[non_exhaustive]
pub enum ItemOutcome {
    /// The model answered, though the answer may be a refusal or cut short.
    Succeeded {
        /// The answer, as JSON: the provider's object for it.
        reply: Box<RawValue>,
        /// Why the model stopped.
        finish: Finish,
        /// What it used up.
        usage: Usage,
    },
    /// It failed.
    Errored {
        /// What kind of failure it is.
        class: ItemError,
        /// The provider's word for it.
        code: String,
        /// What the provider says, without secrets.
        message: String,
        /// What it used up nevertheless.
        usage: Usage,
    },
    /// It was not run, for the batch was cancelled.
    Cancelled,
    /// It was not run, for the batch's time was up.
    Expired,
}

impl fmt::Debug for ItemOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded { reply, finish, usage } => f
                .debug_struct("Succeeded")
                .field("reply", &Told(reply))
                .field("finish", finish)
                .field("usage", usage)
                .finish(),
            Self::Errored { class, code, message, usage } => f
                .debug_struct("Errored")
                .field("class", class)
                .field("code", code)
                .field("message", message)
                .field("usage", usage)
                .finish(),
            Self::Cancelled => f.write_str("Cancelled"),
            Self::Expired => f.write_str("Expired"),
        }
    }
}

/// What kind of failure of a request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ItemError {
    /// The request is not valid, and never will be.
    Invalid,
    /// The provider refuses what it says.
    Content,
    /// Too many requests. It may be sent again.
    RateLimited,
    /// The provider failed. It may be sent again.
    Server,
    /// The account is at fault: no credit, no permission. It may be sent again when that is mended.
    Account,
    /// Nobody knows. It may be sent again.
    Unknown,
    /// The batch ended without a result for it. It may be sent again.
    Missing,
}

impl ItemError {
    /// Whether another attempt may do better.
    pub fn is_retryable(self) -> bool {
        !matches!(self, Self::Invalid | Self::Content)
    }
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finish {
    /// It had said all.
    Stop,
    /// It reached the most that it may say.
    Length,
    /// It calls a tool.
    ToolUse,
    /// It refused, or was stopped by a filter.
    Refusal,
    /// Something else.
    Other,
}

/// What became of a request to the provider that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth")]
pub enum Fate {
    /// It cannot have reached the provider.
    NotSent,
    /// The provider refused it, and did nothing.
    Rejected,
    /// The provider may have acted on it.
    Ambiguous,
}

/// What kind of failure of a call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallClass {
    /// The request is not valid, and never will be.
    Invalid,
    /// There is nothing of that name, or it is another account's.
    NotFound,
    /// It is larger than the provider takes.
    TooLarge,
    /// The account is at fault: key, permission, credit, a spending limit.
    Account,
    /// Too many requests, or too much under way.
    RateLimited,
    /// The provider failed, or its answer cannot be read.
    Server,
    /// The connection failed.
    Transport,
    /// The provider cannot do that.
    Unsupported,
}

/// A call to a provider that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallError {
    /// Whether the provider can have acted on it.
    pub fate: Fate,
    /// What kind of failure it is.
    pub class: CallClass,
    /// The status of the answer, if one came.
    pub status: Option<u16>,
    /// The provider's word for it.
    pub code: Option<String>,
    /// What went wrong, without secrets and without what was asked.
    pub message: String,
    /// How long the provider asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// What a call to a provider gives.
pub type CallResult<T> = std::result::Result<T, CallError>;

impl CallError {
    /// A failure.
    pub fn new(fate: Fate, class: CallClass, message: impl Into<String>) -> Self {
        Self { fate, class, status: None, code: None, message: message.into(), retry_after: None }
    }

    fn unsupported(what: &str) -> Self {
        Self::new(Fate::NotSent, CallClass::Unsupported, format!("the provider has no {what}"))
    }

    /// Whether the provider says for certain that there is nothing of that name.
    pub(crate) fn is_not_found(&self) -> bool {
        self.fate == Fate::Rejected && self.class == CallClass::NotFound
    }

    /// Whether the same call may do better later, if nothing else changes.
    pub fn is_retryable(&self) -> bool {
        matches!(self.class, CallClass::RateLimited | CallClass::Server | CallClass::Transport)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match (&self.status, &self.code) {
            (Some(status), Some(code)) => write!(f, " ({status} {code})"),
            (Some(status), None) => write!(f, " ({status})"),
            (None, Some(code)) => write!(f, " ({code})"),
            (None, None) => Ok(()),
        }
    }
}

impl std::error::Error for CallError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_tells_no_secret_of_its_address_or_key() {
        let account = Account::new("p", "https://user:word@host:8/v1?key=hidden&x#y", "sk-secret");
        assert_eq!(account.base_url, "https://host:8/v1");
        let shown = format!("{account:?}");
        for secret in ["word", "hidden", "sk-secret", "user"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert_ne!(account.fingerprint, Account::new("p", "https://host:8/v1", "another").fingerprint);
        assert_eq!(Account::new("p", "in-process", "").base_url, "in-process");
    }
}
