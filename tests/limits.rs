//! Two processes on one file keep one limit together, whichever of them is killed.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::after;
use jobmill::{Client, Context, Engine, Failure, Limit, LimitUse, NewJob, Payload, Query, Status, Workers};
use serde::{Deserialize, Serialize};

/// Where a child finds the directory that it is to work in.
const DIRECTORY: &str = "TEST_LIMITS_DIRECTORY";
/// How long the test waits for what must come. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many may run at a time.
const MOST: usize = 2;
const WORKERS: usize = 6;
const JOBS: u64 = 400;
/// A file that is there when nobody is killed any more. Jobs beyond those many wait for it.
const OVER: &str = "over";

#[derive(Serialize, Deserialize)]
struct Visit(u64);

impl Payload for Visit {
    const KIND: &'static str = "visit";
}

/// As many files as jobs may run at a time. Who runs holds the lock of one, which the operating system takes from the dead.
#[derive(Clone)]
struct Seats {
    directory: PathBuf,
    /// Files that no handler of this process uses. They are opened before the engine is, so that at a kill their locks are
    /// gone when others learn that the process is.
    idle: Arc<Mutex<Vec<[File; MOST]>>>,
}

impl Seats {
    fn open(directory: &Path) -> Self {
        let seat = |n: usize| {
            let path = directory.join(format!("seat-{n}"));
            OpenOptions::new().create(true).append(true).open(path).expect("a seat")
        };
        let idle = (0..WORKERS).map(|_| std::array::from_fn(seat)).collect();
        Self { directory: directory.to_owned(), idle: Arc::new(Mutex::new(idle)) }
    }

    fn note(&self, line: &str) {
        let path = self.directory.join("passed");
        let mut notes = OpenOptions::new().create(true).append(true).open(path).expect("a file of notes");
        writeln!(notes, "{line}").expect("a note");
    }
}

fn visit(job: Visit, ctx: &Context) -> Result<(), Failure> {
    let seats = ctx.state::<Seats>()?;
    let files = seats.idle.lock().expect("no panic").pop().expect("files for each worker");
    match files.iter().find(|file| file.try_lock().is_ok()) {
        Some(taken) => {
            // Long enough for others to come in meanwhile, if they are let.
            let _ = after(Duration::from_micros(500 + 100 * (job.0 % 10))).recv();
            while job.0 >= JOBS && !seats.directory.join(OVER).exists() {
                let _ = after(Duration::from_millis(1)).recv();
            }
            taken.unlock()?;
        }
        None => seats.note(&format!("{} ran as one too many", job.0)),
    }
    seats.idle.lock().expect("no panic").push(files);
    Ok(())
}

/// Runs as a child if it is told to: an engine, until its input ends.
#[test]
fn as_a_child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let directory = PathBuf::from(directory);
    let seats = Seats::open(&directory);
    let builder = Engine::builder(directory.join("jobs.db")).handle(visit).state(seats);
    let engine = builder.workers(Workers::new(WORKERS)).start().expect("an engine");
    let _ = std::io::read_to_string(std::io::stdin());
    engine.shutdown(PATIENCE).expect("a shutdown");
}

/// A child, killed at the latest when it is dropped.
struct Process(Child);

impl Process {
    fn start(directory: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command.args(["--exact", "as_a_child"]).env(DIRECTORY, directory);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.expect("a child"))
    }

    /// Lets it end in peace.
    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("a status").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    let patience = after(PATIENCE);
    while !holds() {
        crossbeam_channel::select! {
            recv(patience) -> _ => panic!("it never came: {what}"),
            recv(after(Duration::from_millis(1))) -> _ => {}
        }
    }
}

#[test]
fn processes_that_are_killed_pass_no_limit_that_they_share_and_leave_nobody_waiting() -> jobmill::Result<()> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let client = Client::open(directory.path().join("jobs.db"))?;
    client.set_limit(&Limit::new("seats").concurrency(MOST as u32))?;
    let job = |n| NewJob::of(&Visit(n)).limit(LimitUse::of("seats").key("k")).max_attempts(100);
    client.enqueue_many((0..JOBS / 2).map(job))?;
    let start = || Process::start(directory.path());
    let mut processes = [start(), start()];
    for n in JOBS / 2..JOBS {
        client.enqueue(job(n))?;
    }
    let last = Cell::new(JOBS);
    let completed = || client.stats().map_or(0, |stats| stats.total.completed);
    let running = || client.limit_usage("seats", "k").is_ok_and(|usage| usage.running > 0);
    for kill in 1..=4 {
        until("some are done, and one runs", || {
            // If nobody looked while the others ran, there is one that runs until somebody does.
            if completed() == last.get() {
                client.enqueue(job(last.replace(last.get() + 1))).expect("a job");
            }
            completed() >= kill * JOBS / 6 && running()
        });
        // The one that is killed is the older.
        processes.swap(0, 1);
        processes[1] = start();
    }
    File::create(directory.path().join(OVER)).expect("a file");
    until("all are done", || completed() == last.get());
    processes.into_iter().for_each(Process::end);
    let passed = std::fs::read_to_string(directory.path().join("passed")).unwrap_or_default();
    assert_eq!(passed, "");
    let usage = client.limit_usage("seats", "k")?;
    assert_eq!((usage.running, usage.held), (0, 0));
    assert_eq!(client.verify()?, Vec::<String>::new());
    let failed = client.list(Query::new().statuses([Status::Failed]))?;
    assert!(failed.jobs.is_empty());
    Ok(())
}
