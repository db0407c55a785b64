//! A provider of batches that is not one: both shapes on the wire, its memory of files and batches, and every misdeed that
//! a test asks it for.
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam_channel::Receiver;
use flate2::Compression;
use flate2::write::GzEncoder;
use jobmill::Timestamp;
use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::http::{Connection, Request, Server};

/// The key that it knows.
pub(crate) const KEY: &str = "test-key-0123456789";

/// How it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Anthropic,
    OpenAi,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Route {
    Create,
    Poll,
    List,
    Cancel,
    Delete,
    Results,
    Upload,
    Files,
}

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection is closed; nothing is done.
    DropBefore,
    /// What was asked is done; then the connection is closed without an answer.
    DropAfter,
    /// This answer; nothing is done. Status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// What was asked is done; then this answer.
    AnswerAfter(u16, Vec<(&'static str, String)>, String),
    /// What was asked is done, and the answer comes when the test sends something or hangs up.
    Hold(Receiver<()>),
    /// Nothing is done, and no answer comes. The connection is closed when the test hangs up.
    Swallow(Receiver<()>),
    /// So much of the body is read and no more. The connection is closed when the test hangs up.
    Choke(usize, Receiver<()>),
    /// A redirect to there.
    Redirect(u16, String),
    /// What was asked is done; then bytes that are no HTTP.
    Garbage,
}

impl Fault {
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), String::new())
    }

    pub(crate) fn status_after(status: u16) -> Self {
        Self::AnswerAfter(status, Vec::new(), String::new())
    }
}

/// What a request of a batch comes to.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The model says this.
    Say(String),
    /// It fails: status, code, message.
    Fail(u16, String, String),
    Expire,
    Cancel,
    /// There is no line for it.
    Nothing,
    /// This line.
    Line(String),
}

/// How the results are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Chunked,
    Length,
    /// In chunks, the last of which never comes.
    NoLastChunk,
    /// More bytes are promised than come.
    ShortLength,
    /// Until the connection is closed.
    Close,
}

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
    errors: Value,
    lines: Vec<String>,
    error_lines: Vec<String>,
    counts: [u64; 4],
}

type Decide = Arc<dyn Fn(&Item) -> Outcome + Send + Sync>;
type Arrange = Arc<dyn Fn(Vec<String>) -> Vec<u8> + Send + Sync>;
type Stream = Arc<dyn Fn(&mut dyn Write) -> std::io::Result<()> + Send + Sync>;

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
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    decide: Decide,
    arrange: Arrange,
    stream: Option<Stream>,
    faults: BTreeMap<Route, VecDeque<Fault>>,
    delays: BTreeMap<Route, Duration>,
    next: u64,
}

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

fn is_over(batch: &Batch) -> bool {
    ["ended", "failed", "completed", "expired", "cancelled"].contains(&batch.status.as_str())
}

impl State {
    fn batch(&mut self, id: &str) -> Option<&mut Batch> {
        self.batches.iter_mut().find(|batch| batch.id == id)
    }

    fn id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{:06}", self.next)
    }

    fn end(&mut self, id: &str) {
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

/// Reads the head of a request, in the form that `Connection::request` does not know: with an announced body.
fn read_head(connection: &mut Connection) -> Option<Request> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        connection.stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.trim_end().lines();
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let request = Request { line, headers, body: Vec::new() };
    if request.header("expect") == Some("100-continue") {
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    Some(request)
}

fn read_body(connection: &mut Connection, request: &mut Request, most: usize) -> Option<()> {
    let length: usize = request.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    request.body = vec![0; length.min(most)];
    connection.stream.read_exact(&mut request.body).ok()
}

/// An answer that is made.
enum Reply {
    Json(u16, Value),
    Results(Vec<u8>),
    Stream(Stream),
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

/// What goes with an answer.
struct Meta {
    date: String,
    retry_after: Option<u64>,
    packs: bool,
    framing: Framing,
    content_type: Option<&'static str>,
}

impl Meta {
    fn plain() -> Self {
        Self { date: String::new(), retry_after: None, packs: false, framing: Framing::Length, content_type: None }
    }

    fn of(state: &State, route: Route, request: &Request) -> Self {
        let accepts = request.header("accept-encoding").is_some_and(|value| value.contains("gzip"));
        Self {
            date: http_date((state.clock)()),
            retry_after: state.retry_after.filter(|_| route == Route::Poll),
            packs: state.packs && accepts,
            framing: state.framing,
            content_type: state.content_type,
        }
    }
}

fn http_date(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_microsecond(at.as_micros()).expect("a moment");
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).expect("a date")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).expect("memory");
    packer.finish().expect("memory")
}

/// Writes each piece as a chunk.
struct Chunks<'s>(&'s mut TcpStream);

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if !bytes.is_empty() {
            write!(self.0, "{:x}\r\n", bytes.len())?;
            self.0.write_all(bytes)?;
            self.0.write_all(b"\r\n")?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Sends an answer. False if the connection cannot be used for another.
fn send(connection: &mut Connection, reply: &Reply, meta: &Meta, headers: &[(&str, &str)]) -> bool {
    let mut head = String::new();
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let status = match reply {
        Reply::Json(status, _) => *status,
        _ => 200,
    };
    let mut body = match reply {
        Reply::Json(_, body) => {
            head += "Content-Type: application/json\r\n";
            body.to_string().into_bytes()
        }
        Reply::Results(bytes) => bytes.clone(),
        Reply::Stream(_) => Vec::new(),
    };
    if meta.packs && !matches!(reply, Reply::Stream(_)) {
        head += "Content-Encoding: gzip\r\n";
        body = gzip(&body);
    }
    let framing = if matches!(reply, Reply::Json(..)) { Framing::Length } else { meta.framing };
    if !matches!(reply, Reply::Json(..)) {
        head += &meta.content_type.map_or_else(String::new, |kind| format!("Content-Type: {kind}\r\n"));
    }
    head += &match framing {
        Framing::Chunked | Framing::NoLastChunk => "Transfer-Encoding: chunked\r\n".to_owned(),
        Framing::Length => format!("Content-Length: {}\r\n", body.len()),
        Framing::ShortLength => format!("Content-Length: {}\r\n", body.len() + 10),
        Framing::Close => "Connection: close\r\n".to_owned(),
    };
    if !connection.send(format!("HTTP/1.1 {status} Something\r\n{head}\r\n").as_bytes()) {
        return false;
    }
    let chunked = matches!(framing, Framing::Chunked | Framing::NoLastChunk);
    let sent = if let Reply::Stream(stream) = reply {
        let mut pieces = std::io::BufWriter::with_capacity(64 << 10, Chunks(&mut connection.stream));
        stream(&mut pieces).is_ok() && pieces.flush().is_ok()
    } else if chunked {
        // In small pieces, for lines are torn by them.
        body.chunks(1000).all(|piece| Chunks(&mut connection.stream).write(piece).is_ok())
    } else {
        connection.send(&body)
    };
    match framing {
        Framing::Chunked => sent && connection.send(b"0\r\n\r\n"),
        Framing::Length => sent,
        _ => false,
    }
}

/// What a request asks for, and of which batch or file.
fn route(shape: Shape, method: &str, path: &str) -> (Option<Route>, String) {
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

fn error(shape: Shape, kind: &str, message: &str) -> Value {
    match shape {
        Shape::Anthropic => {
            json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})
        }
        Shape::OpenAi => json!({"error": {"message": message, "type": kind, "param": null, "code": kind}}),
    }
}

fn act(state: &mut State, route: Route, id: &str, query: &str, request: &Request) -> Reply {
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
