//! A kill at each point of a submission, a harvest and a cleanup, at providers that live in the parent: afterwards one
//! batch is there, each item has one result, and nothing was paid twice.

mod support {
    //! What the provider's server is made of.

    #[path = "../it/support/http.rs"]
    pub(crate) mod http;
    #[path = "../it/support/provider_server/mod.rs"]
    pub(crate) mod provider_server;

    /// How long a test waits for what must come. Nothing is measured by it.
    pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
}

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, after, bounded};
use jobmill::provider::{Anthropic, Key, Limits, OpenAi, Provider};
use jobmill::rusqlite::{Connection, OpenFlags};
use jobmill::{BatchItem, Batches, Client, Clock, Engine, NewBatch, Query, Status, SystemClock};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::provider_server::script::{Fault, Route, Shape};
use crate::support::provider_server::{KEY, ProviderServer};

/// Where a child finds what it is to do.
const ORDERS: &str = "TEST_CRASH_ORDERS";
/// The answer to a request to delete something.
const DELETED: &str = r#"{"deleted": true}"#;

/// What a child is to do.
#[derive(Clone, Serialize, Deserialize)]
struct Orders {
    directory: PathBuf,
    url: String,
    anthropic: bool,
    items: usize,
    /// How many bytes each item has.
    bytes: usize,
    create_timeout_ms: u64,
    /// It stops for good when it reads the key to send a creation that is marked as sent.
    stops_before_sending: bool,
}

impl Orders {
    fn database(&self) -> PathBuf {
        self.directory.join("jobs.db")
    }

    fn key(&self) -> Key {
        let orders = self.clone();
        Key::from_fn(move || {
            let sent = "SELECT count(*) FROM jobmill_batch_request WHERE state = 2";
            if orders.stops_before_sending && number(&orders.database(), sent) == Some(1) {
                eprintln!("about to send");
                let (_kept, never) = bounded::<()>(0);
                let _ = never.recv();
            }
            Ok(KEY.to_owned())
        })
    }

    fn limits(&self) -> impl FnOnce(&mut Limits) + Send + use<> {
        let create_timeout = Duration::from_millis(self.create_timeout_ms);
        move |limits| (limits.create_timeout, limits.poll_min) = (create_timeout, Duration::ZERO)
    }

    fn anthropic(&self) -> Anthropic {
        let provider = Anthropic::builder(self.key()).account("a").base_url(&self.url).limits(self.limits());
        provider.build().expect("a provider")
    }

    fn openai(&self) -> OpenAi {
        let provider = OpenAi::builder(self.key()).account("a").base_url(&self.url).limits(self.limits());
        provider.build().expect("a provider")
    }

    fn account(&self) -> String {
        let account = if self.anthropic { self.anthropic().account() } else { self.openai().account() };
        account.fingerprint
    }
}

/// Runs as a child if it is told to: takes the batch to its end, which it submits if there is none.
#[test]
fn as_a_child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let orders: Orders = serde_json::from_str(&orders).expect("orders");
    env_logger::init();
    let seconds = Duration::from_secs;
    let batches = Batches::new().poll_interval(seconds(1)).unknown_grace(seconds(1)).delete_after_harvest(true);
    let builder = Engine::builder(orders.database()).batches(batches);
    let builder =
        if orders.anthropic { builder.provider(orders.anthropic()) } else { builder.provider(orders.openai()) };
    let engine = builder.start().expect("an engine");
    let client = engine.client();
    let known = client.list(Query::new().kinds(["jobmill.batch"])).expect("a list").jobs;
    let id = match known.first() {
        Some(job) => job.id,
        None => {
            let text = "x".repeat(orders.bytes);
            let item = |n| BatchItem::new(&json!({ "model": "m", "max_tokens": 5, "n": n, "text": text }));
            let batch = NewBatch::new(if orders.anthropic { "anthropic" } else { "openai" });
            client.submit(batch, (0..orders.items).map(item)).expect("a batch").id()
        }
    };
    while client.wait(id, Duration::from_millis(50)).is_err() {
        client.poll_now().expect("a poll");
    }
    // Also what comes after the last result.
    let open = "SELECT count(*) FROM jobmill_job JOIN jobmill_lane AS lane ON lane.id = lane
                WHERE state NOT BETWEEN 3 AND 6 AND lane.kind LIKE 'jobmill.batch.%'";
    wait_until(|| number(&orders.database(), open) == Some(0));
    engine.shutdown(seconds(30)).expect("a shutdown");
}

/// What a query gives, if the file is there and has it.
fn number(database: &Path, query: &str) -> Option<i64> {
    let conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    conn.busy_timeout(PATIENCE).ok()?;
    conn.query_row(query, [], |row| row.get(0)).ok()
}

/// Waits until something holds of which no event tells.
#[track_caller]
fn wait_until(holds: impl Fn() -> bool) {
    let patience = after(PATIENCE);
    while !holds() {
        crossbeam_channel::select! {
            recv(patience) -> _ => panic!("it never came so far"),
            recv(after(Duration::from_millis(2))) -> _ => {}
        }
    }
}

/// A child, killed at the latest when it is dropped.
struct Victim {
    process: Child,
    log: Option<BufReader<std::process::ChildStderr>>,
}

impl Victim {
    /// Reads its log until a line holds the word.
    #[track_caller]
    fn tells(&mut self, word: &str) {
        let log = self.log.as_mut().expect("a log");
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(log.read_line(&mut line).expect("text"), 0, "it ended before it told");
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A provider, and the file of who uses it.
struct Scene {
    _directory: TempDir,
    server: ProviderServer,
    orders: Orders,
    /// What ends the holds when the test does.
    holds: Mutex<Vec<Sender<()>>>,
}

impl Scene {
    fn new(shape: Shape) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let server = ProviderServer::start(shape);
        server.clock(|| SystemClock.now());
        let orders = Orders {
            directory: directory.path().to_owned(),
            url: server.url(),
            anthropic: shape == Shape::Anthropic,
            items: 40,
            bytes: 10,
            // Whoever is to be killed does not give up before.
            create_timeout_ms: 60_000,
            stops_before_sending: false,
        };
        Self { _directory: directory, server, orders, holds: Mutex::default() }
    }

    fn start(&self, orders: &Orders) -> Victim {
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command
            .args(["--exact", "as_a_child", "--nocapture"])
            .env(ORDERS, serde_json::to_string(orders).expect("JSON"));
        command.env("RUST_LOG", "jobmill=info").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("a child");
        let log = process.stderr.take().map(BufReader::new);
        Victim { process, log }
    }

    fn number(&self, query: &str) -> Option<i64> {
        number(&self.orders.database(), query)
    }

    fn execute(&self, statement: &str) {
        let conn = Connection::open(self.orders.database()).expect("the file");
        conn.busy_timeout(PATIENCE).expect("a timeout");
        conn.execute_batch(statement).expect(statement);
    }

    /// Holds one request of this kind, by a fault that is made of what ends it.
    fn hold(&self, route: Route, fault: impl Fn(crossbeam_channel::Receiver<()>) -> Fault) {
        let (end, until) = bounded(0);
        self.holds.lock().expect("holds").push(end);
        self.server.fault(route, fault(until));
    }

    fn let_go(&self) {
        self.holds.lock().expect("holds").clear();
    }

    fn states(&self, state: u32) -> bool {
        self.number("SELECT state FROM jobmill_batch_request") == Some(state.into())
    }

    /// Keeps creations at the account away, as another would that is under way.
    fn occupy(&self, occupied: bool) {
        let conn = Connection::open(self.orders.database()).expect("the file");
        conn.busy_timeout(PATIENCE).expect("a timeout");
        let account = self.orders.account();
        let until = if occupied { i64::MAX } else { 0 };
        let set = "INSERT INTO jobmill_batch_account (account, creator, creating_until) VALUES (?1, -1, ?2)
                   ON CONFLICT (account) DO UPDATE SET creator = -1, creating_until = ?2";
        conn.execute(set, (account, until)).expect("a row");
    }

    /// Lets another process take the batch to its end, and looks at everything.
    #[track_caller]
    fn end(&self, creates: usize) {
        self.let_go();
        self.server.state().ends_after_polls = Some(2);
        let lists = self.server.asked(Route::List);
        let orders = Orders { create_timeout_ms: 3000, stops_before_sending: false, ..self.orders.clone() };
        let mut second = self.start(&orders);
        let log = second.log.take().expect("a log");
        let reader = std::thread::Builder::new().spawn(move || log.lines().map_while(Result::ok).collect::<Vec<_>>());
        let (mut ended, patience) = (None, after(PATIENCE));
        while ended.is_none() {
            if self.server.asked(Route::List) >= lists + 2 {
                // It has looked twice, and waits for proof.
                let ids: Vec<String> = self.server.state().batches.iter().map(|batch| batch.id.clone()).collect();
                ids.iter().for_each(|id| self.server.end_once(id));
            }
            ended = second.process.try_wait().expect("a status");
            crossbeam_channel::select! {
                recv(patience) -> _ => break,
                recv(after(Duration::from_millis(5))) -> _ => {}
            }
        }
        drop(second);
        let log = reader.expect("a thread").join().expect("a log").join("\n");
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}\n{log}");

        let client = Client::open(self.orders.database()).expect("a client");
        let id = client.list(Query::new().kinds(["jobmill.batch"])).expect("a list").jobs[0].id;
        let batch = client.batch(id).expect("the batch");
        let items = self.orders.items as u64;
        assert_eq!((batch.job.status, batch.items.completed, batch.strays), (Status::Completed, items, 0), "{log}");
        assert_eq!(batch.spent.usage.input, Some(items * 10), "each is paid once\n{log}");
        let results: Vec<_> = client.batch_results(id).expect("results").collect();
        assert_eq!(results.len(), self.orders.items);
        assert!(results.iter().all(|result| result.as_ref().is_ok_and(|result| result.attempts == 1)), "{log}");
        assert_eq!(client.verify().expect("a check"), Vec::<String>::new());
        assert_eq!(self.number("SELECT count(*) FROM jobmill_batch_request WHERE state <> 6"), Some(1), "{log}");
        let made = self.server.state().asked.iter().filter(|route| **route == Route::Create).count();
        assert_eq!(made, creates, "creations that arrived\n{log}");
        // What is kept at the provider is deleted.
        assert!(self.server.state().files.is_empty(), "{log}");
        assert_eq!(self.server.state().deleted.len(), self.leftovers(), "what is deleted at the provider\n{log}");
    }

    fn leftovers(&self) -> usize {
        if self.orders.anthropic { 1 } else { 2 }
    }
}

const SHAPES: [Shape; 2] = [Shape::Anthropic, Shape::OpenAi];

#[test]
fn before_anything_is_planned() {
    for shape in SHAPES {
        let mut scene = Scene::new(shape);
        scene.orders.items = 3000;
        drop(Client::open(scene.orders.database()).expect("a client"));
        // However late the kill comes, it comes no further.
        scene.execute(
            "CREATE TRIGGER test_stops BEFORE UPDATE ON jobmill_batch_request WHEN OLD.state = 0 AND NEW.state = 1
             BEGIN SELECT RAISE(ABORT, 'as the test wants'); END",
        );
        let victim = scene.start(&scene.orders);
        wait_until(|| scene.number("SELECT count(*) FROM jobmill_batch_request WHERE state = 0") == Some(1));
        drop(victim);
        scene.execute("DROP TRIGGER test_stops");
        assert_eq!(scene.server.state().asked, []);
        scene.end(1);
    }
}

#[test]
fn after_it_is_frozen() {
    let scene = Scene::new(Shape::Anthropic);
    drop(Client::open(scene.orders.database()).expect("a client"));
    scene.occupy(true);
    let victim = scene.start(&scene.orders);
    wait_until(|| scene.states(1));
    drop(victim);
    scene.occupy(false);
    scene.end(1);

    let scene = Scene::new(Shape::OpenAi);
    scene.hold(Route::Upload, Fault::Swallow);
    let victim = scene.start(&scene.orders);
    scene.server.wait_until(|state| state.swallowed == 1);
    assert!(scene.states(1));
    drop(victim);
    scene.end(1);
    assert_eq!(scene.server.asked(Route::Upload), 2);
}

#[test]
fn after_the_upload_before_it_is_known() {
    let scene = Scene::new(Shape::OpenAi);
    scene.hold(Route::Upload, Fault::Hold);
    let victim = scene.start(&scene.orders);
    scene.server.wait_until(|state| state.files.len() == 1);
    drop(victim);
    scene.end(1);
    assert_eq!(scene.server.asked(Route::Upload), 1, "the file is found by its name");
}

#[test]
fn after_the_upload_is_known() {
    let scene = Scene::new(Shape::OpenAi);
    drop(Client::open(scene.orders.database()).expect("a client"));
    scene.occupy(true);
    let victim = scene.start(&scene.orders);
    wait_until(|| scene.number("SELECT count(*) FROM jobmill_batch_request WHERE file IS NOT NULL") == Some(1));
    assert!(scene.states(1));
    drop(victim);
    scene.occupy(false);
    scene.end(1);
    assert_eq!(scene.server.asked(Route::Upload), 1);
}

#[test]
fn after_it_is_marked_as_sent_before_it_is() {
    for shape in SHAPES {
        let scene = Scene::new(shape);
        let mut victim = scene.start(&Orders { stops_before_sending: true, ..scene.orders.clone() });
        victim.tells("about to send");
        drop(victim);
        assert!(scene.states(2));
        assert_eq!(scene.server.asked(Route::Create), 0);
        scene.end(1);
    }
}

#[test]
fn in_the_middle_of_its_body() {
    let mut scene = Scene::new(Shape::Anthropic);
    scene.orders.bytes = 200_000;
    scene.hold(Route::Create, |until| Fault::Choke(1 << 20, until));
    let victim = scene.start(&scene.orders);
    scene.server.wait_until(|state| state.swallowed == 1);
    assert!(scene.states(2));
    drop(victim);
    scene.end(1);

    let mut scene = Scene::new(Shape::OpenAi);
    scene.orders.bytes = 200_000;
    scene.hold(Route::Upload, |until| Fault::Choke(1 << 20, until));
    let victim = scene.start(&scene.orders);
    scene.server.wait_until(|state| state.swallowed == 1);
    drop(victim);
    scene.end(1);
}

#[test]
fn after_it_is_created_before_the_answer() {
    for shape in SHAPES {
        let scene = Scene::new(shape);
        scene.hold(Route::Create, Fault::Hold);
        let victim = scene.start(&scene.orders);
        scene.server.wait_until(|state| state.batches.len() == 1);
        drop(victim);
        assert!(scene.states(2));
        scene.end(1);
        assert!(scene.server.asked(Route::List) > 0, "it is looked for");
    }
}

#[test]
fn after_the_answer_before_it_is_known() {
    for shape in SHAPES {
        let scene = Scene::new(shape);
        scene.hold(Route::Create, Fault::Hold);
        let mut victim = scene.start(&scene.orders);
        scene.server.wait_until(|state| state.batches.len() == 1);
        let conn = Connection::open(scene.orders.database()).expect("the file");
        conn.busy_timeout(PATIENCE).expect("a timeout");
        conn.execute_batch("BEGIN IMMEDIATE").expect("the lock");
        scene.let_go();
        victim.tells("40 items are at ");
        drop(victim);
        conn.execute_batch("ROLLBACK").expect("an end");
        drop(conn);
        assert!(scene.states(2));
        scene.end(1);
    }
}

/// Sends so many results the first time, and holds then. The next time all of them come.
fn stop_after(scene: &Scene, lines: usize) {
    scene.server.state().ends_after_polls = Some(1);
    scene.server.wait_until(|state| state.batches.len() == 1);
    let ids: Vec<String> = scene.server.last().items.into_iter().map(|item| item.custom_id).collect();
    let line = |id: &String| {
        let message =
            json!({ "content": [], "stop_reason": "end_turn", "usage": { "input_tokens": 10, "output_tokens": 5 } });
        json!({ "custom_id": id, "result": { "type": "succeeded", "message": message } }).to_string() + "\n"
    };
    let all: Vec<String> = ids.iter().map(line).collect();
    let (end, until) = bounded::<()>(0);
    scene.holds.lock().expect("holds").push(end);
    let times = AtomicUsize::new(0);
    scene.server.stream(move |to| {
        let first = times.fetch_add(1, Ordering::SeqCst) == 0;
        for line in all.iter().take(if first { lines } else { usize::MAX }) {
            to.write_all(line.as_bytes())?;
        }
        to.flush()?;
        if first {
            let _ = until.recv_timeout(PATIENCE);
            return Err(std::io::Error::other("cut off"));
        }
        Ok(())
    });
}

#[test]
fn in_the_middle_of_the_results_and_after_the_last_of_them() {
    for (lines, known) in [(700, 500), (1000, 1000)] {
        let mut scene = Scene::new(Shape::Anthropic);
        scene.orders.items = 1000;
        scene.hold(Route::Create, Fault::Hold);
        let victim = scene.start(&scene.orders);
        stop_after(&scene, lines);
        scene.holds.lock().expect("holds").remove(0);
        wait_until(|| scene.number("SELECT completed FROM jobmill_batch") == Some(known));
        assert!(scene.states(4), "not harvested yet");
        drop(victim);
        scene.end(1);
    }
}

#[test]
fn between_two_calls_that_clean_up() {
    let scene = Scene::new(Shape::OpenAi);
    scene.server.state().ends_after_polls = Some(1);
    scene.server.fault(Route::Delete, Fault::AnswerAfter(200, Vec::new(), DELETED.to_owned()));
    scene.hold(Route::Delete, Fault::Swallow);
    let victim = scene.start(&scene.orders);
    scene.server.wait_until(|state| state.swallowed == 1);
    drop(victim);
    scene.end(1);
}

#[test]
fn processes_that_share_the_file_send_and_harvest_a_batch_once() {
    for shape in SHAPES {
        let mut scene = Scene::new(shape);
        scene.orders.items = 500;
        // The first one submits, and holds its creation up until the others are at it too.
        scene.hold(Route::Create, Fault::Hold);
        let first = scene.start(&scene.orders);
        scene.server.wait_until(|state| state.asked.contains(&Route::Create));
        let others = [scene.start(&scene.orders), scene.start(&scene.orders)];
        wait_until(|| scene.number("SELECT count(*) FROM jobmill_instance WHERE ended_at IS NULL") == Some(3));
        scene.let_go();
        scene.server.state().ends_after_polls = Some(20);
        for mut process in others.into_iter().chain([first]) {
            let log = process.log.take().expect("a log");
            let read = move || log.lines().map_while(Result::ok).collect::<Vec<_>>();
            let reader = std::thread::Builder::new().spawn(read).expect("a thread");
            let status = process.process.wait().expect("a status");
            let log = reader.join().expect("a log").join("\n");
            assert!(status.success(), "{status:?}\n{log}");
        }
        // It finds nothing left to do, and looks at everything.
        scene.end(1);
    }
}
