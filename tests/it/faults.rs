//! Commits that fail, one after another, and disks that are full.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use jobmill::testing::{Fault, Harness};
use jobmill::{
    Backoff, Client, Context, Durability, Engine, ErrorKind, Failure, JobId, NewJob, Outcome, Payload, Retention,
    Status, Unique,
};
use serde::{Deserialize, Serialize};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Act {
    Fine,
    FailsFirst,
    PanicsFirst,
    RefusesFirst,
    Refuses,
    SnoozesFirst,
    CancelsItself,
    TellsAndSaves,
    Completes,
    CompletesInOwnTransaction,
}

impl Payload for Act {
    const KIND: &'static str = "act";

    fn defaults(job: NewJob) -> NewJob {
        job.backoff(Backoff::fixed(SECOND)).max_attempts(5)
    }
}

fn act(act: Act, ctx: &Context) -> Result<Outcome<String>, Failure> {
    let first = ctx.attempt() == 1;
    match act {
        Act::FailsFirst if first => Err(Failure::retry("not yet")),
        Act::PanicsFirst if first => panic!("not yet"),
        Act::RefusesFirst if first => Err(Failure::fatal("not so")),
        Act::Refuses => Err(Failure::fatal("never")),
        Act::SnoozesFirst if ctx.saved::<bool>()?.is_none() => {
            ctx.save(&true)?;
            Ok(Outcome::Snooze(SECOND))
        }
        Act::CancelsItself => Ok(Outcome::Cancel("of no use".into())),
        Act::TellsAndSaves => {
            ctx.progress(1, Some(2));
            ctx.log("half way");
            ctx.first_token();
            let turns: u32 = ctx.saved()?.unwrap_or(0);
            ctx.save(&(turns + 1))?;
            Ok(Outcome::Done("told".into()))
        }
        Act::Completes => {
            let id = ctx.id().to_string();
            ctx.complete(move |tx| -> Result<String, BoxError> {
                tx.execute("INSERT INTO effect VALUES (?1)", [id])?;
                Ok("with its effect".into())
            })
            .map_err(Failure::retry)?;
            Ok(Outcome::Done("of no account".into()))
        }
        Act::CompletesInOwnTransaction => {
            let mut conn = ctx.client().connection()?;
            let tx = conn.transaction()?;
            tx.execute("INSERT INTO effect VALUES (?1)", [ctx.id().to_string()])?;
            ctx.complete_in(&tx, &"with its effect")?;
            tx.commit()?;
            Ok(Outcome::Done("of no account".into()))
        }
        _ => Ok(Outcome::Done("done".into())),
    }
}

/// What is done when a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GoOn {
    /// It is called again.
    Again,
    /// The process dies, and another one calls again.
    Crash,
}

/// A run of the script that touches every operation.
struct Script {
    t: Harness,
    go_on: GoOn,
    jobs: BTreeMap<&'static str, JobId>,
    /// How each job ended that bears a name: its status and its result.
    ends: BTreeMap<&'static str, String>,
    /// How many attempts it took.
    attempts: BTreeMap<&'static str, u32>,
    /// Claims went unheard, and the engine had to be started anew to take them back.
    took_back: bool,
}

impl Script {
    fn new(go_on: GoOn) -> Self {
        let t = Harness::new(|builder| {
            let retention = Retention { cancelled: Some(Duration::from_secs(3600)), ..Retention::FOREVER };
            builder.durability(Durability::Normal).retention(retention).handle(act)
        });
        let t = t.expect("an engine");
        let conn = t.client().connection().expect("a connection");
        conn.execute_batch("CREATE TABLE effect (job TEXT PRIMARY KEY); CREATE TABLE companion (job TEXT PRIMARY KEY)")
            .expect("the application's tables");
        let (jobs, ends, attempts) = Default::default();
        Self { t, go_on, jobs, ends, attempts, took_back: false }
    }

    /// Calls until it succeeds.
    #[track_caller]
    fn insist<R>(&mut self, call: impl Fn(&Harness) -> jobmill::Result<R>) -> R {
        for _ in 0..5 {
            match call(&self.t) {
                Ok(done) => return done,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
                    if self.go_on == GoOn::Crash {
                        self.reopen(Harness::crash);
                    }
                }
            }
        }
        panic!("one fault fails call after call");
    }

    /// Ends the engine and starts another, which may take several tries.
    fn reopen(&mut self, mut end: impl FnMut(&mut Harness) -> jobmill::Result<()>) {
        for _ in 0..5 {
            match end(&mut self.t) {
                Ok(()) => return,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Storage, "{error}"),
            }
        }
        panic!("one fault fails start after start");
    }

    fn enqueue(&mut self, name: &'static str, job: NewJob) {
        let id = self.insist(|t| t.enqueue(job.clone()));
        self.jobs.insert(name, id);
    }

    fn drain(&mut self) {
        self.insist(Harness::drain);
    }

    fn run(&mut self) {
        self.enqueue("fine", NewJob::of(&Act::Fine).tags(["a", "b"]));
        let many = [Act::FailsFirst, Act::PanicsFirst, Act::SnoozesFirst, Act::Refuses, Act::CancelsItself];
        let many = self.insist(|t| t.client().enqueue_many(&many));
        for (name, enqueued) in ["fails", "panics", "snoozes", "refuses", "cancels itself"].into_iter().zip(many) {
            self.jobs.insert(name, enqueued.id());
        }
        let written = self.insist(|t| {
            t.client().write(|tx| -> jobmill::Result<JobId> {
                let id = tx.enqueue(&Act::Fine)?.id();
                tx.execute("INSERT INTO companion VALUES (?1)", [id.to_string()]).expect("a row");
                Ok(id)
            })
        });
        self.jobs.insert("written", written);
        let own = self.insist(|t| {
            let mut conn = t.client().connection()?;
            let tx = conn.transaction().expect("a transaction");
            let id = t.client().enqueue_in(&tx, &Act::Fine)?.id();
            tx.execute("INSERT INTO companion VALUES (?1)", [id.to_string()]).expect("a row");
            tx.commit().expect("a commit");
            Ok(id)
        });
        self.jobs.insert("in own transaction", own);
        self.enqueue("unique", NewJob::of(&Act::Fine).delay(SECOND).unique(Unique::key("only")));
        let second = self.insist(|t| t.enqueue(NewJob::of(&Act::Fine).unique(Unique::key("only"))));
        assert_eq!(second, self.jobs["unique"], "the key holds a second one away");

        self.insist(|t| t.client().pause("slow"));
        self.enqueue("paused", NewJob::of(&Act::Fine).queue("slow"));
        self.enqueue("expires", NewJob::of(&Act::Fine).delay(100 * SECOND).expires_in(SECOND / 2));
        self.enqueue("is cancelled", NewJob::of(&Act::Fine).delay(100 * SECOND));
        self.drain();
        let cancelled = self.jobs["is cancelled"];
        self.insist(|t| t.client().cancel(cancelled));
        let paused = self.jobs["paused"];
        assert_eq!(self.insist(|t| t.client().get(paused)).status, Status::Pending);

        self.enqueue("tells", NewJob::of(&Act::TellsAndSaves));
        self.enqueue("completes", NewJob::of(&Act::Completes));
        self.enqueue("completes in own transaction", NewJob::of(&Act::CompletesInOwnTransaction));
        self.enqueue("is retried", NewJob::of(&Act::RefusesFirst));
        self.drain();
        self.insist(|t| t.client().resume("slow"));
        self.retry();
        self.t.advance(SECOND);
        self.drain();

        self.enqueue("before the crash", NewJob::of(&Act::Fine));
        self.reopen(Harness::crash);
        self.drain();
        self.enqueue("before the restart", NewJob::of(&Act::Fine));
        self.reopen(Harness::restart);
        self.end();
        self.retry();
        self.end();
        self.t.advance(Duration::from_secs(2 * 3600));
        self.drain();
        self.insist(|t| t.engine().maintain());
    }

    /// Retries the job that refused its first attempt. It may be too early: a claim that went unheard is taken back
    /// when the engine ends. It may be too late: an attempt that a crash cut off was its first.
    fn retry(&mut self) {
        let id = self.jobs["is retried"];
        self.insist(|t| match t.client().retry(id) {
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
            other => other,
        });
    }

    /// Lets every job end that has not.
    fn end(&mut self) {
        for _ in 0..20 {
            self.t.advance(SECOND);
            self.drain();
        }
        if self.t.client().stats().expect("the counts").total.running > 0 {
            self.took_back = true;
            self.reopen(Harness::restart);
            self.drain();
        }
        for (name, id) in self.jobs.clone() {
            let job = self.insist(|t| t.client().get(id));
            let result = job.result::<String>().unwrap_or_default();
            self.ends.insert(name, format!("{} {result}", job.status));
            self.attempts.insert(name, job.attempt);
        }
    }

    fn column(&self, query: &str) -> Vec<String> {
        let conn = self.t.client().connection().expect("a connection");
        let mut statement = conn.prepare(query).expect("a table of the application's");
        let rows = statement.query_map([], |row| row.get(0)).expect("rows");
        rows.collect::<Result<_, _>>().expect("rows")
    }

    /// What must hold however the script went.
    fn check(&self, context: &str, unheard: bool) {
        assert_eq!(self.t.client().verify().expect("the file reads"), Vec::<String>::new(), "{context}");
        let stats = self.t.client().stats().expect("the counts").total;
        assert_eq!((stats.pending, stats.running), (0, 0), "{context}");
        assert_eq!(stats.cancelled, 0, "{context}: they have been pruned");
        for id in self.column("SELECT job FROM companion").into_iter().chain(self.column("SELECT job FROM effect")) {
            let id: JobId = id.parse().expect("an id");
            let job = self.t.client().get(id).expect("the job that was written together with this row");
            assert_eq!(job.status, Status::Completed, "{context}");
        }
        let effects = self.column("SELECT job FROM effect");
        for name in ["completes", "completes in own transaction"] {
            assert!(effects.contains(&self.jobs[name].to_string()), "{context}: {name}");
        }
        // One more is left if the rescue that should have removed it went unheard.
        let files = lock_files(self.t.path().as_ref());
        assert!(files == 1 || files == 2 && unheard, "{context}: {files} lock files");
    }
}

fn lock_files(database: &Path) -> usize {
    let directory = std::fs::read_dir(database.parent().expect("a directory")).expect("a directory");
    let names = directory.map(|entry| entry.expect("a name").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("-jobmill-")).count()
}

fn every_commit_fails_once(fault: Fault, go_on: GoOn) {
    let mut undisturbed = Script::new(go_on);
    undisturbed.run();
    undisturbed.check("undisturbed", false);
    for n in 1.. {
        let mut script = Script::new(go_on);
        let before = script.t.faults().commits();
        script.t.faults().fail(n, fault);
        script.run();
        let context = format!("{fault:?} the commit {n}, then {go_on:?}");
        if script.t.faults().commits() < before + n {
            assert!(n > 35, "the script commits far more often than {n} times");
            return;
        }
        script.check(&context, fault == Fault::After);
        assert_eq!(script.ends, undisturbed.ends, "{context}");
        if go_on == GoOn::Again && fault == Fault::Before {
            for (name, attempts) in &script.attempts {
                // A handler that writes by itself learns of the failure, and fails with it.
                let writes = matches!(*name, "snoozes" | "tells" | "completes");
                let more = attempts - undisturbed.attempts[name];
                assert!(more <= u32::from(writes), "{context}: {name} took {more} attempts more");
            }
        }
        assert!(!script.took_back, "{context}: no job is left running");
    }
}

#[test]
fn every_commit_fails_once_and_is_tried_again() {
    every_commit_fails_once(Fault::Before, GoOn::Again);
}

#[test]
fn every_commit_fails_once_and_the_process_dies() {
    every_commit_fails_once(Fault::Before, GoOn::Crash);
}

#[test]
fn every_commit_goes_unheard_once_and_is_tried_again() {
    every_commit_fails_once(Fault::After, GoOn::Again);
}

#[test]
fn every_commit_goes_unheard_once_and_the_process_dies() {
    every_commit_fails_once(Fault::After, GoOn::Crash);
}

/// A job that waits to be released, with a payload that takes room.
#[derive(Serialize, Deserialize)]
struct Bulky(String);

impl Payload for Bulky {
    const KIND: &'static str = "bulky";

    fn defaults(job: NewJob) -> NewJob {
        job.backoff(Backoff::fixed(Duration::from_millis(1)))
    }
}

fn bulky() -> Bulky {
    Bulky("x".repeat(2000))
}

/// Leaves the file room for so many more pages.
fn disk_of(pages: u32) -> impl FnOnce(&mut jobmill::Transaction<'_>) -> Result<(), BoxError> {
    move |tx| {
        // The limit holds for our writer, for this closure runs on its connection.
        let now: u32 = tx.pragma_query_value(None, "page_count", |row| row.get(0))?;
        tx.pragma_update(None, "max_page_count", now.saturating_add(pages))?;
        Ok(())
    }
}

/// Enqueues until it fails, and gives what was acknowledged, and the error.
fn fill(client: &Client) -> (Vec<JobId>, jobmill::Error) {
    let mut acknowledged = Vec::new();
    loop {
        match client.enqueue(&bulky()) {
            Ok(enqueued) => acknowledged.push(enqueued.id()),
            Err(error) => return (acknowledged, error),
        }
    }
}

/// An end that could not be written was tried again with every operation that came after, and failed them all.
#[test]
fn an_end_that_does_not_fit_fails_nobody_else() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Bulky, _: &Context| -> Result<String, Failure> { Ok("z".repeat(1 << 20)) })
    })?;
    let big = t.enqueue(&bulky())?;
    t.client().write(disk_of(60)).expect("a limit");
    for _ in 0..2 {
        assert_eq!(t.drain().map_err(|error| error.kind()), Err(ErrorKind::Storage));
        t.enqueue(NewJob::json("small", &1))?;
    }
    assert_eq!(t.client().get(big)?.status, Status::Running, "its end waits for room");
    t.client().write(disk_of(u32::MAX)).expect("no limit");
    t.drain()?;
    assert_eq!(t.client().get(big)?.attempt, 1);
    t.check(big, "completed, attempt 1");
    Ok(())
}

#[test]
fn a_full_disk_is_named_and_the_engine_goes_on_when_there_is_room() -> jobmill::Result<()> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("jobs.db");
    let (release, released): (Sender<()>, Receiver<()>) = bounded(0);
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .handle(move |_: Bulky, ctx: &Context| -> Result<String, Failure> {
            let _ = released.recv();
            ctx.log("y".repeat(4000));
            Ok("z".repeat(4000))
        })
        .start()?;
    let client = engine.client();
    client.write(disk_of(40)).expect("a limit");
    let (acknowledged, error) = fill(client);
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert!(acknowledged.len() > 20);

    // All handlers end now, and nothing of that can be written.
    drop(release);
    let (more, error) = fill(client);
    assert!(error.to_string().contains("the disk is full"), "{error}");
    let refused = client.write(|tx| -> Result<(), BoxError> {
        tx.execute("CREATE TABLE t (x BLOB)", [])?;
        tx.execute("INSERT INTO t VALUES (zeroblob(1000000))", [])?;
        Ok(())
    });
    let refused = refused.expect_err("there is no room").to_string();
    assert!(refused.contains("full"), "{refused}");

    // Whoever rides in a turn with what cannot be written shares its fate, so this may take several tries.
    while client.write(disk_of(1_000_000)).is_err() {}
    for id in acknowledged.into_iter().chain(more) {
        let job = client.wait(id, Duration::from_secs(60))?;
        assert_eq!(job.status, Status::Completed, "{:?}", job.error);
        assert_eq!(job.attempt, 1);
    }
    assert_eq!(client.verify()?, Vec::<String>::new());
    engine.shutdown(Duration::from_secs(10))?;
    Ok(())
}

#[test]
fn an_engine_closes_on_a_full_disk_and_the_next_one_loses_nothing() -> jobmill::Result<()> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("jobs.db");
    let (began, begun) = bounded(100);
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .handle(move |_: Bulky, ctx: &Context| -> Result<String, Failure> {
            let _ = began.send(ctx.id());
            Ok("z".repeat(100_000))
        })
        .start()?;
    engine.client().write(disk_of(40)).expect("a limit");
    let (acknowledged, _) = fill(engine.client());
    let _ = begun.recv();
    // Whether the last words could be written or not: it comes back, and says so.
    match engine.shutdown(Duration::from_secs(1)) {
        Ok(_) => {}
        Err(error) => assert!(error.to_string().contains("full") || error.kind() == ErrorKind::Storage, "{error}"),
    }
    drop(engine);
    let engine = Engine::builder(&path).handle(|_: Bulky, _: &Context| Ok("done")).start()?;
    for id in acknowledged {
        assert_eq!(engine.client().wait(id, Duration::from_secs(60))?.status, Status::Completed);
    }
    assert_eq!(engine.client().verify()?, Vec::<String>::new());
    engine.shutdown(Duration::from_secs(10))?;
    Ok(())
}

/// It said only that the last turn had failed, and a program that ends had nothing else to log.
#[test]
fn a_shutdown_that_cannot_write_says_why() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.durability(Durability::Normal))?;
    t.faults().fail_from(1, Fault::Before);
    let error = t.engine().shutdown(Duration::ZERO).expect_err("nothing can be written");
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::Storage, "the last turn failed: injected fault".to_owned())
    );
    t.faults().heal();
    Ok(())
}

/// Set for the process that this test starts, to the directory in which it works.
#[cfg(unix)]
const CHILD: &str = "TEST_SMALL_FILES";

/// Runs this test once more in a process of its own whose files cannot grow beyond a limit: each write beyond fails, as
/// on a broken disk.
#[cfg(unix)]
#[test]
fn writes_that_fail_are_named_and_lose_nothing() -> jobmill::Result<()> {
    if let Some(directory) = std::env::var_os(CHILD) {
        return in_small_files(Path::new(&directory));
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let child = std::process::Command::new("sh")
        .args(["-c", "ulimit -f 4000; trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("the path of this executable"))
        .args(["--exact", "faults::writes_that_fail_are_named_and_lose_nothing"])
        .env(CHILD, directory.path())
        .output()
        .expect("a shell");
    assert!(
        child.status.success(),
        "{}{}",
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );

    let acknowledged = std::fs::read_to_string(directory.path().join("acknowledged")).expect("what was acknowledged");
    let engine =
        Engine::builder(directory.path().join("jobs.db")).handle(|_: Bulky, _: &Context| Ok("done")).start()?;
    assert!(acknowledged.lines().count() > 20);
    for id in acknowledged.lines() {
        let job = engine.client().wait(id.parse()?, Duration::from_secs(60))?;
        assert_eq!(job.status, Status::Completed, "{:?}", job.error);
    }
    assert_eq!(engine.client().verify()?, Vec::<String>::new());
    engine.shutdown(Duration::from_secs(10))?;
    Ok(())
}

#[cfg(unix)]
fn in_small_files(directory: &Path) -> jobmill::Result<()> {
    let engine = Engine::builder(directory.join("jobs.db"))
        .durability(Durability::Normal)
        .handle(|_: Bulky, _: &Context| Ok("z".repeat(1000)))
        .start()?;
    let (acknowledged, error) = fill(engine.client());
    assert_eq!(error.kind(), ErrorKind::Storage);
    let text = error.to_string();
    assert!(text.contains("I/O error") || text.contains("full"), "{text}");
    let ids: Vec<String> = acknowledged.iter().map(JobId::to_string).collect();
    std::fs::write(directory.join("acknowledged"), ids.join("\n")).expect("a small file");
    if let Err(error) = engine.shutdown(Duration::from_secs(1)) {
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    }
    Ok(())
}
