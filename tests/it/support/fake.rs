//! A provider that lives in the test: it keeps files and batches in memory, ends them when it is told to, and fails as it
//! is told to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jobmill::Timestamp;
use jobmill::provider::{
    Account, CallClass, CallError, CallResult, Candidate, Create, Fate, Finish, Frame, ItemError, ItemOutcome, Limits,
    Outgoing, Provider, RefusedItem, RemoteBatch, RemoteEnd, RemoteState, ResultLine, Sink, Sought, Todo, Usage,
};
use serde_json::Value;
use serde_json::value::RawValue;

/// What a creation does instead of answering.
#[derive(Clone, Debug)]
pub(crate) enum Creation {
    /// It fails before it is sent, or is refused.
    Fails(Fate, CallClass),
    /// The batch is made, and the answer is lost.
    AnswerLost,
}

/// One batch at the fake.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) created_at: Timestamp,
    /// The requests, by their custom_id.
    pub(crate) requests: Vec<(String, Value)>,
    pub(crate) state: RemoteState,
    pub(crate) cancelled: bool,
}

type Answer = dyn Fn(&str, &Value) -> Option<ItemOutcome> + Send + Sync;

/// What the fake holds and how it behaves.
pub(crate) struct Inside {
    pub(crate) now: Timestamp,
    pub(crate) limits: Limits,
    /// Whether a batch bears the engine's key, so that it can be found for certain.
    pub(crate) keeps_keys: bool,
    pub(crate) batches: Vec<Held>,
    pub(crate) files: BTreeMap<String, (String, Vec<u8>)>,
    pub(crate) creations: VecDeque<Creation>,
    pub(crate) polls: VecDeque<CallError>,
    pub(crate) finds: VecDeque<CallError>,
    /// After how many lines results are cut off, once each.
    pub(crate) cuts: VecDeque<usize>,
    /// Lines that come before the results.
    pub(crate) strays: Vec<String>,
    pub(crate) answer: Box<Answer>,
    /// Every call, by its name.
    pub(crate) calls: Vec<&'static str>,
    pub(crate) deleted: Vec<String>,
    pub(crate) lists: bool,
    /// What its list answers instead.
    pub(crate) list_fails: Option<CallError>,
    /// The number of an item for which each creation is refused.
    pub(crate) refuses: Option<u64>,
    /// After how many deletions one fails, once. 0: none does.
    pub(crate) deletions: usize,
    /// Lists lag: what was made is not found yet.
    pub(crate) lags: bool,
    /// What happens while a poll is under way.
    pub(crate) on_poll: Option<Box<dyn FnOnce() + Send>>,
    /// What happens when results are about to be read.
    pub(crate) on_results: Option<Box<dyn FnOnce() + Send>>,
    /// What happens while an item is encoded.
    pub(crate) on_encode: Option<Box<dyn FnOnce() + Send>>,
    pub(crate) cancels: VecDeque<CallError>,
    /// What happens while a cancellation is under way.
    pub(crate) on_cancel: Option<Box<dyn FnOnce() + Send>>,
    /// What happens when its limits are asked for.
    pub(crate) on_limits: Option<Box<dyn FnOnce() + Send>>,
    /// The items that it names when it refuses a batch as a whole.
    pub(crate) refused: Vec<RefusedItem>,
}

/// The fake provider. It clones.
#[derive(Clone)]
pub(crate) struct Fake {
    name: String,
    key: &'static str,
    inside: Arc<Mutex<Inside>>,
}

pub(crate) fn succeeded(reply: &Value) -> ItemOutcome {
    ItemOutcome::Succeeded {
        reply: serde_json::value::to_raw_value(reply).expect("JSON"),
        finish: Finish::Stop,
        usage: Usage::of(10, 5),
    }
}

pub(crate) fn errored(class: ItemError, code: &str) -> ItemOutcome {
    let message = "as the test wants".to_owned();
    ItemOutcome::Errored { class, code: code.to_owned(), message, usage: Usage::default() }
}

impl Fake {
    pub(crate) fn new(name: &str) -> Self {
        let mut limits = Limits::new(100, 1 << 20);
        limits.create_timeout = Duration::from_secs(60);
        limits.poll_min = Duration::from_secs(1);
        let inside = Inside {
            now: Timestamp::from_micros(1_790_000_000_000_000),
            limits,
            keeps_keys: true,
            batches: Vec::new(),
            files: BTreeMap::new(),
            creations: VecDeque::new(),
            polls: VecDeque::new(),
            finds: VecDeque::new(),
            cuts: VecDeque::new(),
            strays: Vec::new(),
            answer: Box::new(|_, body| Some(succeeded(&serde_json::json!({ "echo": body })))),
            calls: Vec::new(),
            deleted: Vec::new(),
            lists: false,
            list_fails: None,
            refuses: None,
            deletions: 0,
            lags: false,
            on_poll: None,
            on_results: None,
            on_encode: None,
            cancels: VecDeque::new(),
            on_cancel: None,
            on_limits: None,
            refused: Vec::new(),
        };
        Self { name: name.to_owned(), key: "secret", inside: Arc::new(Mutex::new(inside)) }
    }

    /// The same provider, by another key.
    pub(crate) fn with_key(&self, key: &'static str) -> Self {
        Self { key, ..self.clone() }
    }

    pub(crate) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("no panic while it was held")
    }

    pub(crate) fn answer(&self, answer: impl Fn(&str, &Value) -> Option<ItemOutcome> + Send + Sync + 'static) {
        self.inside().answer = Box::new(answer);
    }

    /// Ends every batch that runs.
    pub(crate) fn end_all(&self, end: &RemoteEnd) {
        for batch in &mut self.inside().batches {
            if !matches!(batch.state, RemoteState::Ended(_)) {
                batch.state = RemoteState::Ended(end.clone());
            }
        }
    }

    pub(crate) fn complete_all(&self) {
        self.end_all(&RemoteEnd::Completed);
    }

    pub(crate) fn count(&self, call: &str) -> usize {
        self.inside().calls.iter().filter(|made| **made == call).count()
    }

    fn lines(body: &[u8]) -> Vec<(String, Value)> {
        let text = std::str::from_utf8(body).expect("UTF-8");
        let read = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("a JSON line");
            (line["custom_id"].as_str().expect("an id").to_owned(), line["body"].clone())
        };
        text.lines().map(read).collect()
    }
}

impl Held {
    fn remote(&self) -> RemoteBatch {
        let mut remote =
            RemoteBatch::new(&self.id, self.state.clone(), serde_json::json!({ "id": self.id }).to_string());
        remote.raw_status = format!("{:?}", self.state);
        remote.created_at = Some(self.created_at);
        remote
    }
}

fn missing() -> CallError {
    CallError::new(Fate::Rejected, CallClass::NotFound, "no such batch")
}

impl Provider for Fake {
    fn account(&self) -> Account {
        Account::new(self.name.as_str(), "fake://test", self.key)
    }

    fn limits(&self) -> Limits {
        if let Some(meanwhile) = { self.inside().on_limits.take() } {
            meanwhile();
        }
        self.inside().limits.clone()
    }

    fn frame(&self) -> Frame {
        Frame { open: "", between: "\n", close: "\n" }
    }

    fn encode(&self, item: &Outgoing<'_>, body: &mut Vec<u8>) -> Result<(), String> {
        if let Some(meanwhile) = { self.inside().on_encode.take() } {
            meanwhile();
        }
        if item.body.get().contains("unsendable") {
            return Err("must not be unsendable".to_owned());
        }
        let line = serde_json::json!({ "custom_id": item.custom_id, "model": item.model, "body": item.body });
        body.extend(line.to_string().into_bytes());
        Ok(())
    }

    fn upload(&self, name: &str, body: jobmill::provider::Body<'_>) -> CallResult<String> {
        let mut bytes = Vec::new();
        body.reader.read_to_end(&mut bytes).expect("a body");
        assert_eq!(bytes.len() as u64, body.length, "the length is exact");
        let mut inside = self.inside();
        inside.calls.push("upload");
        let id = format!("file-{}", inside.files.len());
        inside.files.insert(id.clone(), (name.to_owned(), bytes));
        Ok(id)
    }

    fn find_upload(&self, name: &str) -> CallResult<Vec<String>> {
        let mut inside = self.inside();
        inside.calls.push("find_upload");
        Ok(inside.files.iter().rev().filter(|(_, (known, _))| known == name).map(|(id, _)| id.clone()).collect())
    }

    fn create(&self, new: Create<'_>) -> CallResult<RemoteBatch> {
        let mut bytes = Vec::new();
        if let Some(body) = new.body {
            if body.reader.read_to_end(&mut bytes).is_err() {
                return Err(CallError::new(Fate::Ambiguous, CallClass::Transport, "the body broke off"));
            }
            assert_eq!(bytes.len() as u64, body.length, "the length is exact");
        }
        let mut inside = self.inside();
        inside.calls.push("create");
        let creation = inside.creations.pop_front();
        if let Some(Creation::Fails(fate, class)) = creation {
            return Err(CallError::new(fate, class, "as the test wants"));
        }
        if let Some(file) = new.file {
            bytes.clone_from(&inside.files[file].1);
        }
        let same = inside.batches.iter().find(|held| inside.limits.idempotent && held.key == new.key);
        if let Some(same) = same {
            return Ok(same.remote());
        }
        let held = Held {
            id: format!("remote-{}", inside.batches.len()),
            key: new.key.to_owned(),
            created_at: inside.now,
            requests: Self::lines(&bytes),
            state: RemoteState::Running,
            cancelled: false,
        };
        assert_eq!(held.requests.len() as u64, new.items);
        if held.requests.iter().any(|(_, body)| inside.refuses.is_some() && body["n"].as_u64() == inside.refuses) {
            return Err(CallError::new(Fate::Rejected, CallClass::Invalid, "not that one"));
        }
        let remote = held.remote();
        inside.batches.push(held);
        match creation {
            Some(Creation::AnswerLost) => {
                Err(CallError::new(Fate::Ambiguous, CallClass::Transport, "the connection broke"))
            }
            _ => Ok(remote),
        }
    }

    fn find(&self, sought: &Sought<'_>) -> CallResult<Vec<Candidate>> {
        let mut inside = self.inside();
        inside.calls.push("find");
        if let Some(error) = inside.finds.pop_front() {
            return Err(error);
        }
        if inside.lags {
            return Ok(Vec::new());
        }
        let certain = |held: &Held| inside.keeps_keys && held.key == sought.key;
        let may_be = |held: &&Held| {
            certain(held)
                || !inside.keeps_keys
                    && held.requests.len() as u64 == sought.items
                    && (sought.since..=sought.until).contains(&held.created_at)
        };
        let candidate = |held: &Held| Candidate { batch: held.remote(), certain: certain(held) };
        Ok(inside.batches.iter().filter(may_be).map(candidate).collect())
    }

    fn poll(&self, id: &str) -> CallResult<RemoteBatch> {
        let mut inside = self.inside();
        inside.calls.push("poll");
        if let Some(meanwhile) = inside.on_poll.take() {
            drop(inside);
            meanwhile();
            inside = self.inside();
        }
        if let Some(error) = inside.polls.pop_front() {
            return Err(error);
        }
        inside.batches.iter().find(|held| held.id == id).map(Held::remote).ok_or_else(missing)
    }

    fn list(&self, since: Timestamp) -> CallResult<Option<Vec<RemoteBatch>>> {
        let mut inside = self.inside();
        if !inside.lists {
            return Ok(None);
        }
        inside.calls.push("list");
        if let Some(error) = inside.list_fails.clone() {
            return Err(error);
        }
        Ok(Some(inside.batches.iter().filter(|held| held.created_at >= since).map(Held::remote).collect()))
    }

    fn results(&self, batch: &RemoteBatch, _: &mut dyn Todo, sink: &mut Sink<'_>) -> CallResult<()> {
        if let Some(meanwhile) = { self.inside().on_results.take() } {
            meanwhile();
        }
        let (held, cut, strays) = {
            let mut inside = self.inside();
            inside.calls.push("results");
            let cut = inside.cuts.pop_front();
            let held = inside.batches.iter().find(|held| held.id == batch.id).cloned().ok_or_else(missing)?;
            (held, cut, inside.strays.clone())
        };
        for stray in &strays {
            let line = match stray.split_once(' ') {
                Some((custom_id, "stray")) => ResultLine::result(custom_id, succeeded(&Value::Null), stray),
                _ => ResultLine::unreadable(stray, "not JSON"),
            };
            if sink(line).is_break() {
                return Ok(());
            }
        }
        for (place, (custom_id, body)) in held.requests.iter().enumerate() {
            if cut == Some(place) {
                return Err(CallError::new(Fate::Ambiguous, CallClass::Transport, "the results were cut off"));
            }
            let outcome = (self.inside().answer)(custom_id, body);
            let raw = RawValue::from_string(format!("{{\"custom_id\":\"{custom_id}\"}}")).expect("JSON");
            if let Some(outcome) = outcome
                && sink(ResultLine::result(custom_id, outcome, raw.get())).is_break()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn refused_items(&self, _: &RemoteBatch) -> Vec<RefusedItem> {
        self.inside().refused.clone()
    }

    fn cancel(&self, id: &str) -> CallResult<RemoteBatch> {
        let mut inside = self.inside();
        inside.calls.push("cancel");
        if let Some(meanwhile) = inside.on_cancel.take() {
            drop(inside);
            meanwhile();
            inside = self.inside();
        }
        if let Some(error) = inside.cancels.pop_front() {
            return Err(error);
        }
        let held = inside.batches.iter_mut().find(|held| held.id == id).ok_or_else(missing)?;
        if matches!(held.state, RemoteState::Ended(_)) {
            return Err(CallError::new(Fate::Rejected, CallClass::Invalid, "it has ended"));
        }
        (held.cancelled, held.state) = (true, RemoteState::Cancelling);
        Ok(held.remote())
    }

    fn leftovers(&self, batch: &RemoteBatch, file: Option<&str>) -> Vec<String> {
        [Some(batch.id.as_str()), file].into_iter().flatten().map(str::to_owned).collect()
    }

    fn delete(&self, leftover: &str) -> CallResult<()> {
        let mut inside = self.inside();
        if inside.deletions > 0 && inside.deleted.len() == inside.deletions {
            inside.deletions = 0;
            return Err(CallError::new(Fate::Rejected, CallClass::Server, "503"));
        }
        inside.deleted.push(leftover.to_owned());
        Ok(())
    }
}
