//! LLM batches: how fast their results go into the file, and how well polls share their time.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use jobmill::provider::{
    Account, CallClass, CallError, CallResult, Candidate, Create, Fate, Finish, Frame, ItemOutcome, Limits, Outgoing,
    Provider, RemoteBatch, RemoteEnd, RemoteState, ResultLine, Sink, Sought, Todo, Usage,
};
use jobmill::rusqlite::{Connection, params};
use jobmill::{BatchItem, Batches, Client, Durability, Engine, JobId, NewBatch, RequestStatus};
use serde_json::value::RawValue;
use std::sync::Mutex;

use crate::floor;
use crate::report::{Report, Target, median, now, rest, rounds};

const BATCHES: usize = 200;
const ITEMS: usize = 100;
const LATENCY: Duration = Duration::from_millis(50);
const IN_FLIGHT: usize = 8;
const LINES: usize = 100_000;
/// How many results the engine writes in one transaction.
const CHUNK: usize = 500;
const REPLY: &str = "{\"id\":\"msg_0123456789abcdef\",\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"Yes.\"}],\
     \"stop_reason\":\"end_turn\",\"usage\":{\"input_tokens\":10,\"output_tokens\":5}}";

/// A provider that holds its batches in memory and takes its time to tell of them.
#[derive(Default)]
struct Canned {
    latency: Duration,
    ids: Mutex<Vec<Vec<String>>>,
    ended: AtomicBool,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

#[derive(Clone)]
struct Shared(Arc<Canned>);

impl Shared {
    fn remote(&self, id: &str) -> RemoteBatch {
        let ended = self.0.ended.load(Ordering::SeqCst);
        let state = if ended { RemoteState::Ended(RemoteEnd::Completed) } else { RemoteState::Running };
        RemoteBatch::new(id, state, "{}")
    }
}

impl Provider for Shared {
    fn account(&self) -> Account {
        Account::new("canned", "canned://here", "")
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::new(LINES, 1 << 40);
        limits.poll_min = Duration::from_secs(3600);
        limits
    }

    fn frame(&self) -> Frame {
        Frame { open: "", between: "\n", close: "\n" }
    }

    fn encode(&self, item: &Outgoing<'_>, body: &mut Vec<u8>) -> Result<(), String> {
        body.extend_from_slice(item.custom_id.as_bytes());
        Ok(())
    }

    fn create(&self, new: Create<'_>) -> CallResult<RemoteBatch> {
        let mut text = String::new();
        let body = new.body.expect("a body");
        std::io::Read::read_to_string(body.reader, &mut text).expect("a body");
        let mut ids = self.0.ids.lock().expect("no panic");
        ids.push(text.lines().map(str::to_owned).collect());
        Ok(self.remote(&(ids.len() - 1).to_string()))
    }

    fn find(&self, _: &Sought<'_>) -> CallResult<Vec<Candidate>> {
        Err(CallError::new(Fate::Rejected, CallClass::Unsupported, "nothing is lost here"))
    }

    fn poll(&self, id: &str) -> CallResult<RemoteBatch> {
        let at_once = self.0.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        rest(self.0.latency);
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
        Ok(self.remote(id))
    }

    fn results(&self, batch: &RemoteBatch, _: &mut dyn Todo, sink: &mut Sink<'_>) -> CallResult<()> {
        let ids = self.0.ids.lock().expect("no panic")[batch.id.parse::<usize>().expect("a number")].clone();
        for custom_id in &ids {
            let reply: Box<RawValue> = serde_json::from_str(REPLY).expect("JSON");
            let outcome = ItemOutcome::Succeeded { reply, finish: Finish::Stop, usage: Usage::of(10, 5) };
            if sink(ResultLine::result(custom_id, outcome, REPLY)) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn cancel(&self, _: &str) -> CallResult<RemoteBatch> {
        Err(CallError::new(Fate::Rejected, CallClass::Unsupported, "nothing is cancelled here"))
    }
}

fn item() -> BatchItem {
    BatchItem::new(&serde_json::json!({ "model": "m", "max_tokens": 5 }))
}

fn running(client: &Client, id: JobId) -> bool {
    !client.batch_requests(id, &[RequestStatus::Running], None, 1).expect("requests").is_empty()
}

pub fn batches(report: &mut Report) {
    polls(report);
    harvest(report);
}

fn polls(report: &mut Report) {
    let directory = floor::directory();
    let (mut parts, mut most) = (Vec::new(), 0);
    for _ in 0..rounds() {
        let canned = Shared(Arc::new(Canned { latency: LATENCY, ..Canned::default() }));
        let engine = Engine::builder(floor::fresh(&directory, "polls"))
            .durability(Durability::Normal)
            .provider(canned.clone())
            .batches(Batches::new().polls_in_flight(IN_FLIGHT))
            .start()
            .expect("an engine");
        let client = engine.client();
        let submit = |_| client.submit(NewBatch::new("canned"), (0..ITEMS).map(|_| item())).expect("a batch").id();
        let ids: Vec<JobId> = (0..BATCHES).map(submit).collect();
        while !ids.iter().all(|id| running(client, *id)) {
            rest(Duration::from_millis(10));
        }
        client.poll_now().expect("a poll");
        let cycle = loop {
            let whole = client.poll_cycles(10).expect("cycles").into_iter().find(|cycle| cycle.total == BATCHES as u64);
            match whole {
                Some(cycle) => break cycle,
                None => rest(Duration::from_millis(10)),
            }
        };
        assert_eq!((cycle.running, cycle.failed), (BATCHES as u64, 0));
        let ideal = LATENCY.as_secs_f64() * BATCHES as f64 / IN_FLIGHT as f64;
        parts.push(ideal / (cycle.elapsed_us as f64 / 1e6));
        most = most.max(canned.0.most_at_once.load(Ordering::SeqCst));
    }
    let title = format!("a cycle of {BATCHES} polls of {LATENCY:?}, {IN_FLIGHT} at once, part of the ideal");
    report.value(&title, median(parts.into_iter()), "", Target::AtLeast(0.8));
    report.value("the most polls at once", most as f64, "", Target::AtMost(IN_FLIGHT as f64));
}

fn harvest(report: &mut Report) {
    let directory = floor::directory();
    let mut series = Vec::new();
    for _ in 0..rounds() {
        let canned = Shared(Arc::new(Canned::default()));
        let path = floor::fresh(&directory, "harvest");
        let engine =
            Engine::builder(&path).durability(Durability::Normal).provider(canned.clone()).start().expect("an engine");
        let client = engine.client();
        let id = client.submit(NewBatch::new("canned"), (0..LINES).map(|_| item())).expect("a batch").id();
        while !running(client, id) {
            rest(Duration::from_millis(10));
        }
        canned.0.ended.store(true, Ordering::SeqCst);
        let began = now();
        client.poll_now().expect("a poll");
        let job = client.wait(id, Duration::from_secs(600)).expect("an end");
        let ours = LINES as f64 / began.elapsed().as_secs_f64();
        let batch = client.batch(job.id).expect("a batch");
        assert_eq!((batch.items.completed, batch.spent.usage.input), (LINES as u64, Some(10 * LINES as u64)));
        drop(engine);
        series.push((ours, bare(&floor::fresh(&directory, "bare"))));
    }
    let title = format!("results harvested, of {LINES}");
    report.value(&title, median(series.iter().map(|(ours, _)| *ours)), "a second", Target::AtLeast(50_000.0));
    report.ratio("the same against bare statements", &series, Target::None);
}

/// The same rows by bare SQL: an item changes its state and its sums, and its reply is kept.
fn bare(path: &std::path::Path) -> f64 {
    let conn = Connection::open(path).expect("a file");
    conn.execute_batch(
        "PRAGMA synchronous = NORMAL;
         INSERT INTO jobmill_batch_item (id, batch, state, route, request, sends, attempt, tokens, key)
             WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100000)
             SELECT n, 1, 1, 1, 1, 1, 1, 10, n FROM n;",
    )
    .expect("items");
    let began = now();
    for chunk in 0..LINES / CHUNK {
        conn.execute_batch("BEGIN IMMEDIATE").expect("a transaction");
        for n in 0..CHUNK {
            let id = (chunk * CHUNK + n + 1) as i64;
            conn.prepare_cached("SELECT state, request, sends FROM jobmill_batch_item WHERE id = ?1")
                .and_then(|mut find| find.query_row([id], |row| row.get::<_, i64>(0)))
                .expect("an item");
            conn.prepare_cached(
                "UPDATE jobmill_batch_item SET state = 3, finish = 'stop', input = 10, output = 5 WHERE id = ?1",
            )
            .and_then(|mut apply| apply.execute([id]))
            .expect("an item");
            conn.prepare_cached("INSERT INTO jobmill_batch_output (item, output) VALUES (?1, ?2)")
                .and_then(|mut keep| keep.execute(params![id, REPLY]))
                .expect("a reply");
        }
        conn.execute_batch("COMMIT").expect("a commit");
    }
    LINES as f64 / began.elapsed().as_secs_f64()
}
