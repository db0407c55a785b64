//! What every provider of batches must keep to, tried on one: ours pass it, and yours should.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::model::time::Timestamp;
use crate::provider::{
    Body, CallClass, CallError, CallResult, Create, Fate, ItemOutcome, Outgoing, OwnedOutgoing, Provider, RemoteBatch,
    RemoteState, ResultLine, Sought, Todo,
};

/// How often a batch is polled until it must have ended.
const POLLS: usize = 1000;
/// How many requests a batch has here.
const ITEMS: usize = 3;

type Hook<'a> = Box<dyn FnMut(&str) + 'a>;

/// Tries on a [`Provider`] what the engine relies on. It creates two batches of three small requests each, so on a real
/// account it costs a little.
///
/// Against a server of your tests it runs at once; against a real one, let [`settle`](Self::settle) wait a while.
///
/// ```no_run
/// use jobmill::provider::{Anthropic, Key};
/// use jobmill::testing::Conformance;
///
/// # fn main() -> jobmill::Result<()> {
/// let provider = Anthropic::builder(Key::fixed("test-key")).base_url("http://127.0.0.1:8080").build()?;
/// let broken = Conformance::new(&provider).secret("test-key").model("claude-haiku-4-5").broken();
/// assert_eq!(broken, Vec::<String>::new());
/// # Ok(())
/// # }
/// ```
pub struct Conformance<'a> {
    provider: &'a dyn Provider,
    secret: Option<String>,
    model: String,
    body: String,
    settle: Hook<'a>,
    confuse: Option<Hook<'a>>,
    now: Timestamp,
    broken: Vec<String>,
}

impl fmt::Debug for Conformance<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conformance").field("model", &self.model).field("broken", &self.broken).finish_non_exhaustive()
    }
}

/// Requests of a batch that runs here; nobody else may ask for them.
struct Requests {
    left: std::vec::IntoIter<OwnedOutgoing>,
    asked: bool,
}

impl Todo for Requests {
    fn next(&mut self) -> Option<OwnedOutgoing> {
        self.asked = true;
        self.left.next()
    }
}

/// A batch that was created.
struct Made {
    batch: RemoteBatch,
    file: Option<String>,
    items: Vec<OwnedOutgoing>,
    key: String,
}

impl<'a> Conformance<'a> {
    /// Tries this provider.
    pub fn new(provider: &'a dyn Provider) -> Self {
        Self {
            provider,
            secret: None,
            model: "test-model".to_owned(),
            body: r#"{"max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}]}"#.to_owned(),
            settle: Box::new(|_| ()),
            confuse: None,
            // Providers' clocks are compared with providers' times, so a batch that has a time is looked for around it.
            now: Timestamp::EPOCH,
            broken: Vec::new(),
        }
    }

    /// The key, which must show nowhere.
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secret = Some(secret.into());
        self
    }

    /// The model that requests are for. Defaults to `test-model`.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = model.into();
        self
    }

    /// The body of each request, JSON. Defaults to a short chat.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }

    /// What is done with a batch's id before each poll, until it has ended: a server of your tests lets it end, and a test
    /// on a real account waits.
    pub fn settle(mut self, settle: impl FnMut(&str) + 'a) -> Self {
        self.settle = Box::new(settle);
        self
    }

    /// What makes the server give a batch a status that nobody has ever heard of. Defaults to leaving that untried.
    pub fn confuse(mut self, confuse: impl FnMut(&str) + 'a) -> Self {
        self.confuse = Some(Box::new(confuse));
        self
    }

    /// Tries everything, and gives the rules that are broken. None: it is good.
    pub fn broken(mut self) -> Vec<String> {
        self.account();
        self.encoding();
        if let Some(made) = self.create("conformance-1") {
            self.looking(&made);
            self.confusion(&made);
            if let Some(ended) = self.ended(&made) {
                self.results(&made, &ended);
                self.leftovers(&made, &ended);
            }
        }
        if let Some(made) = self.create("conformance-2") {
            self.cancelling(&made);
        }
        self.nothing();
        self.broken
    }

    fn breaks(&mut self, rule: impl Into<String>) {
        self.broken.push(rule.into());
    }

    fn must(&mut self, holds: bool, rule: &str) {
        if !holds {
            self.breaks(rule);
        }
    }

    fn shows_secret(&self, text: &str) -> bool {
        self.secret.as_deref().is_some_and(|secret| text.contains(secret))
    }

    /// What a call gave, unless it failed.
    fn good<T>(&mut self, call: &str, result: CallResult<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(call, &error);
                self.breaks(format!("{call} failed: {error}"));
                None
            }
        }
    }

    fn error(&mut self, call: &str, error: &CallError) {
        if self.shows_secret(&format!("{error} {error:?}")) {
            self.breaks(format!("{call}: the error shows the key"));
        }
    }

    fn account(&mut self) {
        let (one, two) = (self.provider.account(), self.provider.account());
        self.must(one == two, "account: is the same each time");
        self.must(!one.provider.is_empty() && !one.fingerprint.is_empty(), "account: has a name and a fingerprint");
        let shows = self.shows_secret(&format!("{one:?}"));
        self.must(!shows, "account: does not show the key");
        let limits = self.provider.limits();
        self.must(limits.items > 0 && limits.bytes > 0, "limits: a batch has room for an item");
        self.must(limits == self.provider.limits(), "limits: are the same each time");
        self.must(!limits.window.is_zero(), "limits: a batch has time to run");
        self.must(!limits.create_timeout.is_zero(), "limits: a creation has time");
    }

    fn item(&self, custom_id: &str) -> CallResult<OwnedOutgoing> {
        let body = RawValue::from_string(self.body.clone()).map_err(|_| {
            CallError::new(
                Fate::NotSent,
                CallClass::Invalid,
                "the body that the conformance suite was given is not JSON",
            )
        })?;
        let endpoint = self.provider.limits().endpoints.first().cloned().unwrap_or_default();
        Ok(OwnedOutgoing { custom_id: custom_id.to_owned(), endpoint, model: self.model.clone(), body })
    }

    fn encoding(&mut self) {
        let Some(item) = self.good("encode", self.item("conformance-encode")) else { return };
        let mut alone = Vec::new();
        if let Err(rule) = self.provider.encode(&item.as_outgoing(), &mut alone) {
            return self.breaks(format!("encode: refuses a plain request: {rule}"));
        }
        let mut behind = b"before".to_vec();
        let again = self.provider.encode(&item.as_outgoing(), &mut behind).is_ok();
        let same = again && behind.strip_prefix(b"before") == Some(&alone[..]);
        self.must(same, "encode: appends the same bytes each time, and leaves alone what stands before");
        let frame = self.provider.frame();
        self.must(frame == self.provider.frame(), "frame: is the same each time");
        let in_lines = frame.between.contains('\n');
        self.must(!(in_lines && alone.contains(&b'\n')), "encode: an item of lines is one line");
        let shows = self.shows_secret(&String::from_utf8_lossy(&alone));
        self.must(!shows, "encode: does not hold the key");

        let spread = RawValue::from_string(self.body.replacen('{', "{\n  ", 1).replace(", ", ",\n  "));
        if let Ok(spread) = spread {
            let mut lines = Vec::new();
            let outgoing = Outgoing { body: &spread, ..item.as_outgoing() };
            let kept = self.provider.encode(&outgoing, &mut lines).is_ok() && !(in_lines && lines.contains(&b'\n'));
            self.must(kept, "encode: takes a body that is spread over lines");
        }
        // Whether these are refused is the provider's own affair; what a refusal leaves behind is not.
        let long = "x".repeat(65);
        for custom_id in ["", "a b", "a\"b", "a\nb", &long] {
            self.refusal(&Outgoing { custom_id, ..item.as_outgoing() });
        }
        for body in ["[]", "3", "\"text\"", "{}", r#"{"stream":true}"#, r#"{"model":"another"}"#] {
            if let Ok(body) = RawValue::from_string(body.to_owned()) {
                self.refusal(&Outgoing { body: &body, ..item.as_outgoing() });
            }
        }
    }

    fn refusal(&mut self, item: &Outgoing<'_>) {
        let mut body = b"before".to_vec();
        match self.provider.encode(item, &mut body) {
            Err(rule) => {
                self.must(body == b"before", "encode: a refusal leaves the body as it was");
                self.must(!rule.is_empty(), "encode: a refusal names the rule");
            }
            Ok(()) => self.must(body.starts_with(b"before"), "encode: leaves alone what stands before"),
        }
    }

    fn create(&mut self, key: &str) -> Option<Made> {
        let limits = self.provider.limits();
        let mut items = Vec::new();
        let frame = self.provider.frame();
        let mut bytes = frame.open.as_bytes().to_vec();
        for number in 0..ITEMS {
            let item = self.item(&format!("{key}-{number}"));
            let item = self.good("encode", item)?;
            if number > 0 {
                bytes.extend_from_slice(frame.between.as_bytes());
            }
            // What is wrong with it has been told.
            self.provider.encode(&item.as_outgoing(), &mut bytes).ok()?;
            items.push(item);
        }
        bytes.extend_from_slice(frame.close.as_bytes());
        let endpoint = items[0].endpoint.clone();
        let mut file = None;
        if limits.uploads {
            let name = format!("{key}.jsonl");
            let (length, mut reader) = (bytes.len() as u64, &bytes[..]);
            let uploaded = self.provider.upload(&name, Body { length, reader: &mut reader });
            let id = self.good("upload", uploaded)?;
            let found = self.provider.find_upload(&name);
            let found = self.good("find_upload", found)?;
            self.must(found.contains(&id), "find_upload: finds what was uploaded");
            file = Some(id);
        }
        let send = |provider: &dyn Provider, file: Option<&str>| {
            let (length, mut reader) = (bytes.len() as u64, &bytes[..]);
            provider.create(match file {
                Some(file) => Create::with_file(key, &endpoint, ITEMS as u64, file),
                None => Create::with_body(key, &endpoint, ITEMS as u64, Body { length, reader: &mut reader }),
            })
        };
        let created = send(self.provider, file.as_deref());
        let batch = self.good("create", created)?;
        self.must(!batch.id.is_empty(), "create: a batch has an id");
        if limits.idempotent {
            let again = send(self.provider, file.as_deref());
            let again = self.good("create, once more", again)?;
            self.must(again.id == batch.id, "create: with the same key it makes no second batch");
        }
        let shows = self.shows_secret(&format!("{batch:?}"));
        self.must(!shows, "create: the batch does not show the key");
        self.now = batch.created_at.or(batch.server_now).unwrap_or(self.now);
        Some(Made { batch, file, items, key: key.to_owned() })
    }

    fn looking(&mut self, made: &Made) {
        let id = made.batch.id.as_str();
        let polled = self.provider.poll(id);
        if let Some(polled) = self.good("poll", polled) {
            self.must(polled.id == id, "poll: tells of the batch that was asked for");
            let counted = polled.counts.total.is_none_or(|total| total == ITEMS as u64);
            self.must(counted, "poll: counts the requests that were sent, or none");
        }
        let hour = Duration::from_secs(3600);
        let (since, until) = (self.now.saturating_sub(hour), self.now.saturating_add(hour));
        let listed = self.provider.list(since);
        match self.good("list", listed) {
            Some(Some(list)) => {
                let count = list.iter().filter(|batch| batch.id == id).count();
                self.must(count == 1, "list: holds each batch once");
                self.must(self.provider.limits().list_page > 0, "limits: tell that there is a list");
            }
            Some(None) => self.must(self.provider.limits().list_page == 0, "limits: tell that there is no list"),
            None => {}
        }
        if self.provider.limits().local {
            return;
        }
        let items = ITEMS as u64;
        let found = self.provider.find(&Sought::new(&made.key, made.file.as_deref(), items, since, until));
        if let Some(found) = self.good("find", found) {
            self.must(found.iter().any(|candidate| candidate.batch.id == id), "find: finds a batch that was created");
            let wrong = found.iter().any(|candidate| candidate.certain && candidate.batch.id != id);
            self.must(!wrong, "find: is certain of no other batch");
        }
        let found = self.provider.find(&Sought::new("conformance-none", Some("no-such-file"), items + 1, since, until));
        if let Some(found) = self.good("find", found) {
            self.must(
                !found.iter().any(|candidate| candidate.certain),
                "find: is certain of nothing that is not there",
            );
            let wrong = found.iter().any(|candidate| candidate.batch.id == id);
            self.must(!wrong, "find: takes no batch with another number of requests for the one that is sought");
        }
    }

    fn confusion(&mut self, made: &Made) {
        let Some(mut confuse) = self.confuse.take() else { return };
        confuse(&made.batch.id);
        let polled = self.provider.poll(&made.batch.id);
        if let Some(polled) = self.good("poll", polled) {
            let runs = polled.state == RemoteState::Running;
            self.must(runs, "poll: a batch whose status nobody has heard of is running");
            self.must(!polled.raw_status.is_empty(), "poll: keeps the provider's own word");
        }
    }

    fn ended(&mut self, made: &Made) -> Option<RemoteBatch> {
        for _ in 0..POLLS {
            (self.settle)(&made.batch.id);
            let polled = self.provider.poll(&made.batch.id);
            let polled = self.good("poll", polled)?;
            if matches!(polled.state, RemoteState::Ended(_)) {
                return Some(polled);
            }
        }
        self.breaks("poll: a batch ends at some time");
        None
    }

    /// What the results of a batch come to: each custom id with the number of its lines, and what is wrong.
    fn read(&mut self, made: &Made, batch: &RemoteBatch, most: usize) -> Option<BTreeMap<String, usize>> {
        let mut todo = Requests { left: made.items.clone().into_iter(), asked: false };
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let (mut given, mut unreadable, mut empty) = (0, false, false);
        let result = self.provider.results(batch, &mut todo, &mut |line| {
            given += 1;
            match line {
                ResultLine::Result { custom_id, outcome, raw } => {
                    *seen.entry(custom_id.to_owned()).or_default() += 1;
                    empty |= raw.is_empty();
                    if let ItemOutcome::Succeeded { reply, .. } = outcome {
                        empty |= reply.get().is_empty();
                    }
                }
                ResultLine::Unreadable { .. } => unreadable = true,
                ResultLine::Lull => {}
            }
            if given >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.good("results", result)?;
        self.must(given <= most, "results: stop when the sink breaks");
        self.must(!unreadable, "results: can be read");
        self.must(!empty, "results: hold what came");
        self.must(self.provider.limits().local || !todo.asked, "results: only a local provider runs requests");
        Some(seen)
    }

    fn results(&mut self, made: &Made, ended: &RemoteBatch) {
        let Some(first) = self.read(made, ended, usize::MAX) else { return };
        let expected: BTreeSet<&str> = made.items.iter().map(|item| item.custom_id.as_str()).collect();
        let found: BTreeSet<&str> = first.keys().map(String::as_str).collect();
        self.must(found == expected, "results: there is one for each request, and no other");
        let kept = serde_json::to_string(ended).ok().and_then(|text| serde_json::from_str::<RemoteBatch>(&text).ok());
        match kept {
            Some(kept) => {
                let again = self.read(made, &kept, usize::MAX);
                self.must(
                    again.as_ref() == Some(&first),
                    "results: read again, of a batch that was stored, are the same",
                );
            }
            None => self.breaks("poll: a batch can be stored"),
        }
        let one = self.read(made, ended, 1);
        self.must(one.is_some_and(|seen| seen.len() == 1), "results: a sink that breaks is no error");
    }

    fn leftovers(&mut self, made: &Made, ended: &RemoteBatch) {
        for leftover in self.provider.leftovers(ended, made.file.as_deref()) {
            for time in ["delete", "delete, once more"] {
                let deleted = self.provider.delete(&leftover);
                self.good(time, deleted);
            }
        }
    }

    fn cancelling(&mut self, made: &Made) {
        let cancelled = self.provider.cancel(&made.batch.id);
        if let Some(batch) = self.good("cancel", cancelled) {
            self.must(batch.id == made.batch.id, "cancel: tells of the batch that was asked for");
            let stops = matches!(batch.state, RemoteState::Cancelling | RemoteState::Ended(_));
            self.must(stops, "cancel: the batch is being cancelled, or has ended");
        }
        let Some(ended) = self.ended(made) else { return };
        self.read(made, &ended, usize::MAX);
        match self.provider.cancel(&made.batch.id) {
            Ok(batch) => {
                self.must(matches!(batch.state, RemoteState::Ended(_)), "cancel: a batch that has ended stays so");
            }
            Err(error) => self.error("cancel", &error),
        }
        self.leftovers(made, &ended);
    }

    fn nothing(&mut self) {
        if self.provider.limits().local {
            // It remembers none, so that it knows each after a restart.
            return;
        }
        match self.provider.poll("no-such-batch") {
            Ok(_) => self.breaks("poll: there is no such batch"),
            Err(error) => {
                self.error("poll", &error);
                self.must(error.class == CallClass::NotFound, "poll: what is not there is not found");
                self.must(error.fate == Fate::Rejected, "poll: what is not there was refused");
            }
        }
    }
}
