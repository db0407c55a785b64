//! The example `batch` as a user runs it: its results, its cost, and what a kill or Ctrl-C does to it.

#[path = "support/example.rs"]
mod example;
#[path = "it/support/http.rs"]
mod http;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use crossbeam_channel::{after, bounded};
use jobmill::rusqlite::{Connection, OpenFlags, Row};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Server;

/// How long a test waits for what must come. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The items of the sample.
const SAMPLE: usize = 1037;
/// How many requests the example has at an endpoint at a time.
const AT_ONCE: usize = 4;

/// Where the example is.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| example::build("batch"))
}

/// A directory in which the example runs.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        fs::create_dir(place.path().join("state")).expect("a directory");
        place
    }

    /// With a file of so many requests, which a chat endpoint takes.
    fn with(items: usize) -> Self {
        let place = Self::new();
        let line = |n| json!({ "key": key(n), "body": { "model": "m", "messages": [], "n": n } }).to_string() + "\n";
        place.write("items.jsonl", (0..items).map(line).collect::<String>().as_bytes());
        place
    }

    fn path(&self) -> PathBuf {
        self.directory.path().canonicalize().expect("the temporary directory is there")
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path().join(name), content).expect("a file");
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).current_dir(self.path()).env_remove("RUST_LOG");
        // Where temporary files go, on any system.
        for variable in ["TMPDIR", "TMP", "TEMP"] {
            command.env(variable, self.path().join("state"));
        }
        for variable in ["ANTHROPIC_API_KEY", "OPENAI_API_KEY"] {
            command.env(variable, "test-key");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }

    /// What it keeps while a batch lasts.
    fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path().join("state")).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    /// Of the only batch: how many items wait, how many have their result, and whether it has been let go.
    fn in_file(&self) -> Option<(usize, usize, bool)> {
        let database = self.kept().into_iter().find(|name| name.ends_with(".db"))?;
        let path = self.path().join("state").join(database);
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
        conn.busy_timeout(PATIENCE).ok()?;
        let sql = "SELECT waiting, completed, state > 0 FROM jobmill_batch JOIN jobmill_job ON id = jobmill_batch.job";
        let count = |row: &Row<'_>, column| row.get::<_, u32>(column).map(|count| count as usize);
        conn.query_row(sql, [], |row| Ok((count(row, 0)?, count(row, 1)?, row.get(2)?))).ok()
    }

    /// The results by key.
    fn results(&self, name: &str) -> BTreeMap<String, Value> {
        let text = fs::read_to_string(self.path().join(name)).expect("results");
        let mut results = BTreeMap::new();
        for line in text.lines() {
            let result: Value = serde_json::from_str(line).expect("JSON");
            let key = result["key"].as_str().expect("a key").to_owned();
            assert!(results.insert(key, result).is_none(), "a key has one result");
        }
        results
    }
}

fn key(n: usize) -> String {
    format!("item-{n:05}")
}

/// A chat endpoint that counts how often it was asked what, and answers as often as it may.
struct Chat {
    server: Server,
    state: Arc<(Mutex<Asked>, Condvar)>,
}

#[derive(Default)]
struct Asked {
    times: BTreeMap<String, usize>,
    total: usize,
    answered: usize,
    /// No answer is given beyond so many. What is asked then hangs.
    may_answer: usize,
    /// What hangs is answered when more answers may be given, and not given up.
    late: bool,
}

impl Chat {
    fn new(may_answer: usize) -> Self {
        Self::of(Asked { may_answer, ..Asked::default() })
    }

    fn of(asked: Asked) -> Self {
        let state = Arc::new((Mutex::new(asked), Condvar::new()));
        let shared = state.clone();
        let server = Server::start(move |_, connection| {
            let (asked, changed) = &*shared;
            while let Some(request) = connection.request() {
                let body: Value = serde_json::from_slice(&request.body).expect("JSON");
                let mut asked = asked.lock().expect("asked");
                *asked.times.entry(body["n"].to_string()).or_default() += 1;
                asked.total += 1;
                changed.notify_all();
                if asked.late {
                    asked = changed.wait_while(asked, |asked| asked.answered >= asked.may_answer).expect("asked");
                } else if asked.answered >= asked.may_answer {
                    drop(asked);
                    return connection.hang();
                }
                asked.answered += 1;
                drop(asked);
                let answer = json!({
                    "choices": [{ "message": { "content": body["n"] }, "finish_reason": "stop" }],
                    "usage": { "prompt_tokens": 1000, "completion_tokens": 100 },
                });
                connection.answer(200, &[], &answer.to_string());
            }
        });
        Self { server, state }
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.state.0.lock().expect("asked")
    }

    fn arguments(&self) -> Vec<String> {
        ["items.jsonl", "--provider", "local", "--base-url", &self.server.url("/v1")].map(str::to_owned).to_vec()
    }

    /// Lets it give so many answers more, and tells of how many requests that makes.
    fn allow(&self, answers: usize) {
        self.asked().may_answer += answers;
        self.state.1.notify_all();
    }

    /// Waits until as many requests hang as there can be.
    #[track_caller]
    fn wait_until_it_hangs(&self, before: usize) {
        let (asked, changed) = &*self.state;
        let hangs = |asked: &mut Asked| asked.total < before + AT_ONCE + asked.answered;
        let waited = changed.wait_timeout_while(asked.lock().expect("asked"), PATIENCE, hangs).expect("asked");
        assert!(!waited.1.timed_out(), "it is asked for more");
    }
}

/// Waits until something that the test cannot be told of holds.
#[track_caller]
fn wait_until(holds: impl Fn() -> bool) {
    let patience = after(PATIENCE);
    while !holds() {
        crossbeam_channel::select! {
            recv(patience) -> _ => panic!("it never came so far"),
            recv(after(Duration::from_millis(5))) -> _ => {}
        }
    }
}

#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[track_caller]
fn refusal(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).expect("an error is text")
}

fn kill(mut run: Child) {
    run.kill().expect("it runs");
    run.wait().expect("it has ended");
}

#[test]
fn without_arguments_it_computes_the_sample_and_leaves_nothing_but_the_results() {
    let place = Place::new();
    let report = said(&place.run::<&str>(&[]));
    let expected =
        format!("{SAMPLE} results in sample.results.jsonl: {SAMPLE} completed, 0 failed, 0 expired, 0 cancelled\n");
    assert_eq!(report, expected + "cost: nothing, for it was computed here\n");
    assert_eq!(place.kept(), Vec::<String>::new());
    let first = fs::read(place.path().join("sample.results.jsonl")).expect("results");
    let results = place.results("sample.results.jsonl");
    assert_eq!(results.len(), SAMPLE);
    assert_eq!((&results["01-01"]["status"], &results["01-01"]["output"]["words"]), (&json!("completed"), &json!(23)));

    said(&place.run(&["--out", "again.jsonl"]));
    assert!(first == fs::read(place.path().join("again.jsonl")).expect("results"), "the same results, twice");
}

#[test]
fn killed_at_any_moment_it_goes_on_and_asks_for_nothing_twice_that_it_had_an_answer_to() {
    const ITEMS: usize = 3000;
    let place = Place::with(ITEMS);
    let chat = Chat::new(0);
    let mut deaths = 0;
    // The first dies before there is an answer, the others with what was answered in the file.
    for answers in [0, 1, 150, 700, 3] {
        chat.allow(answers);
        let run = place.command(&chat.arguments()).spawn().expect("the program starts");
        chat.wait_until_it_hangs(deaths * AT_ONCE);
        let answered = chat.asked().answered;
        wait_until(|| place.in_file().is_some_and(|(_, completed, _)| completed == answered));
        kill(run);
        deaths += 1;
        assert!(!place.path().join("items.results.jsonl").exists(), "there are no half results");
    }
    chat.allow(usize::MAX / 2);
    let output = place.run(&chat.arguments());
    assert!(said(&output).starts_with("3000 results in items.results.jsonl: 3000 completed, 0 failed"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("Going on with a batch that was interrupted."));
    let results = place.results("items.results.jsonl");
    assert!(results.keys().cloned().eq((0..ITEMS).map(key)));
    assert!(results.values().all(|result| result["attempts"] == 1), "a kill is no attempt of an item");
    let asked = chat.asked();
    assert_eq!(asked.times.len(), ITEMS);
    assert_eq!(asked.total, ITEMS + deaths * AT_ONCE, "what hung at each death, and nothing else, was asked for again");
    assert_eq!(place.kept(), Vec::<String>::new());
}

#[cfg(unix)]
#[test]
fn killed_while_it_reads_the_file_it_begins_anew() {
    const ITEMS: usize = 6000;
    let place = Place::with(ITEMS);
    let chat = Chat::new(usize::MAX / 2);
    let at = |name: &str| place.path().join(name);
    let items = fs::read(at("items.jsonl")).expect("a file");
    fs::rename(at("items.jsonl"), at("whole.jsonl")).expect("another name");
    // In its place are pipes: one that gives all, for it reads the file twice, and then one that stops half way.
    let pipes = Command::new("mkfifo").args([at("items.jsonl"), at("half.jsonl")]).status().expect("mkfifo runs");
    assert!(pipes.success());
    let (pipe, half) = (at("items.jsonl"), at("half.jsonl"));
    let (stop, stopped) = bounded::<()>(0);
    let write = move || {
        let open = || File::options().write(true).open(&pipe).expect("somebody who reads");
        let mut first = open();
        first.write_all(&items).expect("it reads");
        fs::rename(&half, &pipe).expect("the pipe that comes next");
        drop(first);
        let mut second = open();
        // The kill may come before it has read so much.
        let _ = second.write_all(&items[..items.len() / 2]);
        let _ = stopped.recv();
    };
    let writer = std::thread::Builder::new().spawn(write).expect("a thread");
    let run = place.command(&chat.arguments()).spawn().expect("the program starts");
    wait_until(|| place.in_file().is_some_and(|(waiting, ..)| waiting > 0));
    kill(run);
    drop(stop);
    writer.join().expect("no panic");
    fs::rename(at("whole.jsonl"), at("items.jsonl")).expect("the file is back");
    let (waiting, _, goes) = place.in_file().expect("a batch");
    assert!(waiting < ITEMS && !goes, "{waiting} items are written of half a file");
    assert_eq!(chat.asked().total, 0, "nothing of half a file is sent");
    said(&place.run(&chat.arguments()));
    assert_eq!(place.results("items.results.jsonl").len(), ITEMS);
    assert_eq!(chat.asked().total, ITEMS);
}

#[cfg(unix)]
#[test]
fn stopped_by_ctrl_c_it_says_how_to_go_on_and_does() {
    const ITEMS: usize = 500;
    let place = Place::with(ITEMS);
    let chat = Chat::of(Asked { may_answer: 100, late: true, ..Asked::default() });
    let run = place.command(&chat.arguments()).spawn().expect("the program starts");
    chat.wait_until_it_hangs(0);
    let interrupt = Command::new("kill").args(["-INT", &run.id().to_string()]).status().expect("kill runs");
    assert!(interrupt.success());
    // The answers that it waits for come, and what it has begun is kept.
    chat.allow(AT_ONCE);
    let output = run.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(output.stdout.is_empty() && !place.path().join("items.results.jsonl").exists(), "no half results");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "Stopped. The same command goes on.\n");
    // It may have begun others before it heard the signal.
    let hung = {
        let asked = chat.asked();
        asked.total - asked.answered
    };

    chat.allow(usize::MAX / 2);
    said(&place.run(&chat.arguments()));
    assert_eq!(place.results("items.results.jsonl").len(), ITEMS);
    assert_eq!(chat.asked().total, ITEMS + hung, "nothing that was answered was asked for again");
}

#[test]
fn a_bad_line_is_named_and_leaves_nothing() {
    let place = Place::new();
    place.write(
        "bad.jsonl",
        b"{\"body\": {\"text\": \"fine\"}}\n\n{\"key\": \"a\", \"body\": {\"text\": \"never ends\n",
    );
    let error = refusal(place.run(&["bad.jsonl"]));
    assert!(error.starts_with("batch: bad.jsonl: line 3: "), "{error}");
    place.write("twice.jsonl", b"{\"key\": \"a\", \"body\": {}}\n{\"key\": \"a\", \"body\": {}}\n");
    let error = refusal(place.run(&["twice.jsonl"]));
    assert!(error.contains("two of them have the key \"a\""), "{error}");
    place.write("empty.jsonl", b"\n");
    let error = refusal(place.run(&["empty.jsonl"]));
    assert!(error.contains("must be at least one"), "{error}");
    let error = refusal(place.run(&["nowhere.jsonl"]));
    assert!(error.starts_with("batch: nowhere.jsonl: "), "{error}");
    assert_eq!(place.kept(), Vec::<String>::new());
}

#[test]
fn an_item_that_cannot_be_computed_fails_alone_and_one_that_nobody_can_is_said() {
    let place = Place::new();
    place.write("some.jsonl", b"{\"body\": {\"text\": \"A mill.\"}}\n{\"body\": {\"no text\": 1}}\n");
    let report = said(&place.run(&["some.jsonl"]));
    assert!(report.starts_with("2 results in some.results.jsonl: 1 completed, 1 failed"), "{report}");
    assert_eq!(place.results("some.results.jsonl")["1"]["error_class"], "invalid");

    place.write("none.jsonl", b"{\"body\": {\"no text\": 1}}\n");
    let output = place.run(&["none.jsonl"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.contains("none of 1 items succeeded, mostly: invalid: the body: "), "{report}");
    assert_eq!(place.results("none.results.jsonl").len(), 1);
    assert_eq!(place.kept(), Vec::<String>::new());
}

#[test]
fn a_second_run_at_once_is_refused_and_one_of_another_endpoint_is_another_batch() {
    let place = Place::with(20);
    let (chat, other) = (Chat::new(5), Chat::new(usize::MAX));
    let run = place.command(&chat.arguments()).spawn().expect("the program starts");
    chat.wait_until_it_hangs(0);
    assert_eq!(refusal(place.run(&chat.arguments())), "batch: another run is at this batch already\n");
    // Which would wait for ever for the account of the first.
    said(&place.run(&other.arguments()));
    assert_eq!(other.asked().total, 20);
    kill(run);
}

#[test]
fn what_is_asked_for_wrongly_is_refused_before_anything_is_kept() {
    let place = Place::with(1);
    let error = refusal(place.run(&["items.jsonl", "--provider", "nobody"]));
    assert_eq!(error, "batch: --provider: nobody is none of local, anthropic and openai\n");
    let error = refusal(place.run(&["items.jsonl", "--prices", "nowhere.json"]));
    assert!(error.starts_with("batch: nowhere.json: "), "{error}");
    place.write("prices.json", b"{\"version\": 1}");
    let error = refusal(place.run(&["items.jsonl", "--prices", "prices.json"]));
    assert!(error.starts_with("batch: --prices: "), "{error}");
    place.write("prices.json", br#"{"version": "1", "currency": "EUR", "models": {"m": {"input": -1, "output": 1}}}"#);
    let error = refusal(place.run(&["items.jsonl", "--prices", "prices.json"]));
    assert!(error.contains("must be from 0 to 1000000"), "{error}");
    let error = refusal(place.run(&["items.jsonl", "--what"]));
    assert!(error.contains("--what"), "{error}");
    let error = refusal(place.run(&["items.jsonl", "--provider", "anthropic", "--base-url", "nonsense"]));
    assert!(error.contains("base_url"), "{error}");
    let mut without_key = place.command(&["items.jsonl", "--provider", "openai"]);
    let error = refusal(without_key.env_remove("OPENAI_API_KEY").output().expect("the program runs"));
    assert!(error.contains("OPENAI_API_KEY"), "{error}");
    assert_eq!(place.kept(), Vec::<String>::new());
}

#[test]
fn the_cost_is_told_by_the_prices_that_are_given() {
    let place = Place::with(10);
    let chat = Chat::new(usize::MAX);
    let cost = |more: &[&str]| {
        let arguments: Vec<String> =
            chat.arguments().into_iter().chain(more.iter().map(|more| (*more).to_owned())).collect();
        said(&place.run(&arguments)).lines().nth(1).expect("a second line").to_owned()
    };
    assert_eq!(cost(&[]), "cost: unknown without --prices, 10000 tokens in, 1000 out");
    let prices = |model: &str| {
        json!({ "version": "1", "currency": "EUR", "models": { model: { "input": 2.0, "output": 10.0 } } }).to_string()
    };
    place.write("prices.json", prices("m").as_bytes());
    // A hundredth of a million in for 2, a thousandth out for 10, at half the price.
    assert_eq!(cost(&["--prices", "prices.json"]), "cost: 0.0150 EUR, 10000 tokens in, 1000 out");
    place.write("prices.json", prices("another").as_bytes());
    let unknown = "cost: 0.0000 EUR and 10 results of unknown cost, 10000 tokens in, 1000 out";
    assert_eq!(cost(&["--prices", "prices.json"]), unknown);
}

#[test]
fn a_file_goes_to_a_provider_of_batches_and_its_cost_is_told() {
    let place = Place::with(3);
    place.write(
        "prices.json",
        br#"{"version": "1", "currency": "USD", "models": {"m*": {"input": 4.0, "output": 8.0}}}"#,
    );
    // A provider that is ready at once, so that nobody waits for a poll.
    let ids: Arc<Mutex<Vec<String>>> = Arc::default();
    let server = Server::start(move |_, connection| {
        while let Some(request) = connection.request() {
            assert_eq!(request.header("x-api-key"), Some("test-key"));
            let mut ids = ids.lock().expect("ids");
            if request.line.starts_with("POST /v1/messages/batches ") {
                let body: Value = serde_json::from_slice(&request.body).expect("JSON");
                let requests = body["requests"].as_array().expect("requests");
                *ids = requests.iter().map(|one| one["custom_id"].as_str().expect("an id").to_owned()).collect();
                let counts = json!({
                    "processing": 0, "succeeded": ids.len(), "errored": 0, "canceled": 0, "expired": 0,
                });
                let batch = json!({
                    "id": "msgbatch_1", "type": "message_batch", "processing_status": "ended",
                    "request_counts": counts, "results_url": "/v1/messages/batches/msgbatch_1/results",
                });
                connection.answer(200, &[], &batch.to_string());
            } else {
                let line = |id: &String| {
                    let message = json!({
                        "type": "message", "content": [], "stop_reason": "end_turn",
                        "usage": { "input_tokens": 500, "output_tokens": 250 },
                    });
                    json!({ "custom_id": id, "result": { "type": "succeeded", "message": message } }).to_string() + "\n"
                };
                connection.answer(200, &[], &ids.iter().map(line).collect::<String>());
            }
        }
    });
    let url = server.url("");
    let arguments = ["items.jsonl", "--provider", "anthropic", "--base-url", &url, "--prices", "prices.json"];
    let report = said(&place.run(&arguments));
    let expected = "3 results in items.results.jsonl: 3 completed, 0 failed, 0 expired, 0 cancelled\n\
                    cost: 0.0060 USD, 1500 tokens in, 750 out\n";
    assert_eq!(report, expected);
    assert_eq!(place.results("items.results.jsonl").len(), 3);
    assert_eq!(place.kept(), Vec::<String>::new());
    drop(File::open(place.path().join("prices.json")).expect("the user's files stay"));
}
