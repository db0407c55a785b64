//! A provider of batches that is not one: both shapes on the wire, its memory of files and batches, and every misdeed that
//! a test asks it for.
#![allow(dead_code, reason = "each test uses a part")]

mod acts;
mod memory;
pub(crate) mod script;
mod wire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use jobmill::Timestamp;
use serde_json::json;

use crate::support::PATIENCE;
use crate::support::http::{Connection, Request, Server};
use crate::support::provider_server::acts::{act, error, route};
use crate::support::provider_server::memory::{Batch, Item, State, is_over};
use crate::support::provider_server::script::{Fault, Framing, Outcome, Route, Shape};
use crate::support::provider_server::wire::{Meta, Reply, read_body, read_head, send};

/// The key that it knows.
pub(crate) const KEY: &str = "test-key-0123456789";

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The server, until it is dropped.
pub(crate) struct ProviderServer {
    server: Server,
    shared: Arc<Shared>,
}

impl ProviderServer {
    pub(crate) fn start(shape: Shape) -> Self {
        let state = State {
            shape,
            files: Vec::new(),
            batches: Vec::new(),
            asked: Vec::new(),
            deleted: BTreeSet::new(),
            swallowed: 0,
            ends_after_polls: None,
            list_ignores_cursor: false,
            packs: false,
            retry_after: None,
            framing: Framing::Chunked,
            content_type: None,
            results_url: None,
            bodies_as_text: false,
            idempotent: false,
            // Where a manual clock stands at first.
            clock: Arc::new(|| Timestamp::from_micros(1_767_225_600_000_000)),
            decide: Arc::new(|item| Outcome::Say(format!("you said {}", item.custom_id))),
            arrange: Arc::new(|lines| lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>().into()),
            stream: None,
            faults: BTreeMap::new(),
            delays: BTreeMap::new(),
            next: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let served = shared.clone();
        let server = Server::start(move |_, connection| while serve(&served, connection) {});
        Self { server, shared }
    }

    /// The base address that a client of this shape is given.
    pub(crate) fn url(&self) -> String {
        self.server.url(match self.state().shape {
            Shape::Anthropic => "",
            Shape::OpenAi => "/v1",
        })
    }

    pub(crate) fn http(&self) -> &Server {
        &self.server
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("state")
    }

    /// Waits until something holds.
    #[track_caller]
    pub(crate) fn wait_until(&self, holds: impl Fn(&State) -> bool) {
        let guard = self.state();
        let waited = self.shared.changed.wait_timeout_while(guard, PATIENCE, |state| !holds(state)).expect("state");
        assert!(!waited.1.timed_out(), "it never came so far");
    }

    /// The next request of this kind goes wrong so. Several stand in line.
    pub(crate) fn fault(&self, route: Route, fault: Fault) {
        self.state().faults.entry(route).or_default().push_back(fault);
    }

    /// Every request of this kind is answered so much later.
    pub(crate) fn delay(&self, route: Route, time: Duration) {
        self.state().delays.insert(route, time);
    }

    /// Decides what becomes of each request.
    pub(crate) fn decide(&self, decide: impl Fn(&Item) -> Outcome + Send + Sync + 'static) {
        self.state().decide = Arc::new(decide);
    }

    /// Decides which bytes the lines of results become: out of order, twice, torn.
    pub(crate) fn arrange(&self, arrange: impl Fn(Vec<String>) -> Vec<u8> + Send + Sync + 'static) {
        self.state().arrange = Arc::new(arrange);
    }

    /// Sends these results, whatever was asked for, as they are made.
    pub(crate) fn stream(&self, stream: impl Fn(&mut dyn Write) -> std::io::Result<()> + Send + Sync + 'static) {
        self.state().stream = Some(Arc::new(stream));
    }

    /// Sets its clock.
    pub(crate) fn clock(&self, clock: impl Fn() -> Timestamp + Send + Sync + 'static) {
        self.state().clock = Arc::new(clock);
    }

    /// How often each kind of request came.
    pub(crate) fn asked(&self, route: Route) -> usize {
        self.state().asked.iter().filter(|asked| **asked == route).count()
    }

    /// How many batches were made of each body.
    pub(crate) fn creates_by_body(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for batch in &self.state().batches {
            *counts.entry(batch.body.clone()).or_default() += 1;
        }
        counts
    }

    /// The batch that was made last.
    #[track_caller]
    pub(crate) fn last(&self) -> Batch {
        self.state().batches.last().cloned().expect("a batch")
    }

    /// Ends a batch: each of its requests comes to what was decided.
    pub(crate) fn end(&self, id: &str) {
        let mut state = self.state();
        state.end(id);
        self.shared.changed.notify_all();
    }

    /// Ends a batch, unless it has ended.
    pub(crate) fn end_once(&self, id: &str) {
        let is_over = self.state().batch(id).is_none_or(|batch| is_over(batch));
        if !is_over {
            self.end(id);
        }
    }

    /// Forgets all batches and files.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        state.batches.clear();
        state.files.clear();
    }

    /// Ends a batch of the OpenAI shape before anything was run.
    pub(crate) fn fail(&self, id: &str, code: &str, message: &str) {
        let mut state = self.state();
        let batch = state.batch(id).expect("a batch");
        batch.status = "failed".to_owned();
        batch.errors = json!({"object": "list", "data": [{"code": code, "message": message, "line": 1}]});
    }

    /// Sets the provider's word for where a batch stands.
    pub(crate) fn set_status(&self, id: &str, status: &str) {
        self.state().batch(id).expect("a batch").status = status.to_owned();
    }
}

/// Takes the fault of a request whose body is not to be read.
fn choke(shared: &Shared, request: &Request) -> Option<Fault> {
    let mut words = request.line.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let mut state = shared.state.lock().expect("state");
    let (route, _) = route(state.shape, method, target.split('?').next()?);
    state.faults.get_mut(&route?)?.pop_front_if(|fault| matches!(fault, Fault::Choke(..)))
}

/// Serves one request. False if the connection is to be closed.
fn serve(shared: &Shared, connection: &mut Connection) -> bool {
    let Some(mut request) = read_head(connection) else { return false };
    if let Some(choke) = choke(shared, &request) {
        let Fault::Choke(most, until) = choke else { return false };
        if read_body(connection, &mut request, most).is_some() {
            shared.state.lock().expect("state").swallowed += 1;
            shared.changed.notify_all();
            let _ = until.recv_timeout(PATIENCE);
        }
        return false;
    }
    if read_body(connection, &mut request, usize::MAX).is_none() {
        return false;
    }
    connection.record(Request { body: Vec::new(), ..request.clone() });
    let closes = request.header("connection") == Some("close");
    let mut words = request.line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (fault, delay, reply, meta) = {
        let mut state = shared.state.lock().expect("state");
        let (route, id) = route(state.shape, method, path);
        let Some(route) = route else {
            let reply = Reply::Json(404, error(state.shape, "not_found_error", "no such route"));
            drop(state);
            return send(connection, &reply, &Meta::plain(), &[]) && !closes;
        };
        state.asked.push(route);
        let fault = state.faults.get_mut(&route).and_then(VecDeque::pop_front);
        let delay = state.delays.get(&route).copied();
        let idle =
            matches!(fault, Some(Fault::DropBefore | Fault::Answer(..) | Fault::Redirect(..) | Fault::Swallow(_)));
        state.swallowed += usize::from(matches!(fault, Some(Fault::Swallow(_))));
        let does = !idle;
        let reply = if does { Some(act(&mut state, route, &id, query, &request)) } else { None };
        let meta = Meta::of(&state, route, &request);
        shared.changed.notify_all();
        (fault, delay, reply, meta)
    };
    if delay.is_some_and(|delay| !connection.pause(delay)) {
        return false;
    }
    match fault {
        Some(Fault::DropBefore | Fault::DropAfter) => return false,
        Some(Fault::Answer(status, headers, body) | Fault::AnswerAfter(status, headers, body)) => {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            connection.answer(status, &headers, &body);
            return !closes;
        }
        Some(Fault::Redirect(status, to)) => {
            connection.answer(status, &[("Location", &to)], "");
            return !closes;
        }
        Some(Fault::Garbage) => {
            connection.send(b"SSH-2.0-what\r\n\r\n");
            return false;
        }
        Some(Fault::Swallow(until)) => {
            let _ = until.recv_timeout(PATIENCE);
            return false;
        }
        Some(Fault::Choke(..)) => return false,
        Some(Fault::Hold(until)) => {
            let _ = until.recv_timeout(PATIENCE);
        }
        None => {}
    }
    let Some(reply) = reply else { return false };
    let retry = meta.retry_after.map(|seconds| seconds.to_string());
    let mut headers = vec![("Date", meta.date.as_str())];
    headers.extend(retry.as_deref().map(|seconds| ("Retry-After", seconds)));
    send(connection, &reply, &meta, &headers) && !closes
}
