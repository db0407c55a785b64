//! Handlers and clients that talk without end: what is written of it is bounded, and the last word is kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use jobmill::rusqlite::Connection;
use jobmill::testing::{Harness, ManualClock};
use jobmill::{
    Client, Clock, Context, Durability, Engine, EngineBuilder, Failure, Job, JobId, JobUpdate, NewJob, Payload, Query,
    Status, StopReason, Timestamp, Workers,
};
use serde::{Deserialize, Serialize};

use crate::support::{Block, Hands, PATIENCE, block, file, gate, query, secs, sound, until, with_hands};

/// What a handler talks about.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Talk {
    Progress,
    Log,
    Times,
    All,
}

/// A job that talks so many times.
#[derive(Serialize, Deserialize)]
struct Chat(Talk, u64);

impl Payload for Chat {
    const KIND: &'static str = "chat";
}

fn chat(Chat(talk, times): Chat, ctx: &Context) -> Result<(), Failure> {
    let line = "x".repeat(10_000);
    for n in 1..=times {
        if matches!(talk, Talk::Progress | Talk::All) {
            ctx.progress_note(n, Some(times), format!("{n} of {times}"));
        }
        if matches!(talk, Talk::Log | Talk::All) {
            ctx.log(line.as_str());
        }
        if matches!(talk, Talk::Times | Talk::All) {
            ctx.first_token();
            ctx.total_duration(Duration::from_nanos(n));
            ctx.stop_reason(format!("reason-{n}"))?;
        }
    }
    Ok(())
}

/// The WAL file of a database, which a reader keeps from being begun anew, so that it holds all that is written.
struct Tape {
    path: PathBuf,
    page_bytes: usize,
    _reader: Connection,
}

impl Tape {
    fn begin(database: &Path) -> Self {
        let reader = Connection::open(database).expect("a reader");
        reader.execute_batch("BEGIN; SELECT count(*) FROM jobmill_job").expect("a snapshot");
        let page_bytes = reader.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0)).expect("a size");
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        Self { path: path.into(), page_bytes: page_bytes as usize, _reader: reader }
    }

    /// How many commits are on it, and how many pages they wrote.
    fn read(&self) -> (u64, u64) {
        let bytes = std::fs::read(&self.path).expect("a WAL file");
        let header = bytes.get(16..24).expect("the header with its salt");
        let frames = bytes[32..].chunks_exact(24 + self.page_bytes).take_while(|frame| frame[8..16] == *header);
        // The last frame of a commit tells how long the file is after it.
        frames.fold((0, 0), |(commits, pages), frame| (commits + u64::from(frame[4..8] != [0; 4]), pages + 1))
    }
}

fn start(path: &Path, describe: impl FnOnce(EngineBuilder) -> EngineBuilder) -> jobmill::Result<Engine> {
    describe(Engine::builder(path).durability(Durability::Normal).without_rates()).start()
}

/// How many commits these jobs may take: some for their claims and ends, and by how long they ran, ten notes a second.
fn commits_max(client: &Client, jobs: &[Job]) -> u64 {
    // A claim that no worker took in time goes back.
    let claims: i64 = query(client, "SELECT sum(claim) FROM jobmill_job");
    let notes = |job: &Job| {
        let ran = job.completed_at.expect("an end").since(job.started_at.expect("a start"));
        2 + ran.as_millis() as u64 / 100
    };
    2 + 2 * claims.cast_unsigned() + jobs.iter().map(notes).sum::<u64>()
}

/// Runs jobs that talk, all at once, and gives them with the commits and the pages that they took.
fn run(jobs: &[(Talk, u64)]) -> jobmill::Result<(tempfile::TempDir, Client, Vec<Job>, u64, u64)> {
    let (directory, path) = file();
    let engine = start(&path, |builder| builder.workers(Workers::new(jobs.len())).handle(chat))?;
    let client = Client::open(&path)?;
    let tape = Tape::begin(&path);
    let (commits_before, pages_before) = tape.read();
    let ids = engine.client().enqueue_many(jobs.iter().map(|(talk, times)| NewJob::of(&Chat(*talk, *times))))?;
    let jobs = ids.iter().map(|id| engine.client().wait(id.id(), PATIENCE)).collect::<jobmill::Result<Vec<_>>>()?;
    let (commits, pages) = tape.read();
    engine.shutdown(PATIENCE)?;
    assert!(jobs.iter().all(|job| job.status == Status::Completed), "{jobs:?}");
    sound(&client);
    Ok((directory, client, jobs, commits - commits_before, pages - pages_before))
}

#[test]
fn progress_is_written_ten_times_a_second_and_the_last_word_always() -> jobmill::Result<()> {
    let (_directory, client, jobs, commits, pages) = run(&[(Talk::Progress, 100_000)])?;
    let progress = jobs[0].progress.clone().expect("progress");
    assert_eq!((progress.done, progress.total), (100_000, Some(100_000)));
    assert_eq!(progress.note.as_deref(), Some("100000 of 100000"));
    assert!(commits <= commits_max(&client, &jobs), "{commits} commits");
    assert!(pages <= 12 * commits, "{pages} pages");
    assert_eq!(query::<i64>(&client, "SELECT count(*) FROM jobmill_progress"), 1);
    Ok(())
}

#[test]
fn the_log_of_an_attempt_has_a_thousand_lines_of_four_kilobytes_at_most() -> jobmill::Result<()> {
    let (_directory, client, jobs, commits, pages) = run(&[(Talk::Log, 100_000)])?;
    let log = client.log(jobs[0].id)?;
    assert_eq!(log.len(), 1000);
    assert!(log[..999].iter().all(|line| line.line == "x".repeat(4096)));
    assert_eq!(log[999].line, "further lines are not kept");
    assert!(log.iter().map(|line| line.at).is_sorted());
    assert!(commits <= commits_max(&client, &jobs), "{commits} commits");
    // Two pages for each line, and the pages above them.
    assert!(pages <= 4 * 1000 + 12 * commits, "{pages} pages");
    Ok(())
}

#[test]
fn marks_of_times_are_gathered_and_the_right_ones_are_kept() -> jobmill::Result<()> {
    let (_directory, client, jobs, commits, pages) = run(&[(Talk::Times, 100_000)])?;
    let job = client.get(jobs[0].id)?;
    let ran = job.completed_at.expect("an end").since(job.started_at.expect("a start"));
    assert!(job.ttft.is_some_and(|ttft| ttft <= ran), "the first token is marked once: {:?}", job.ttft);
    assert_eq!(job.total_duration, Some(Duration::from_nanos(100_000)), "the last word");
    assert_eq!(job.stop_reason.as_ref().map(StopReason::as_str), Some("reason-100000"));
    assert!(commits <= commits_max(&client, &jobs), "{commits} commits");
    assert!(pages <= 12 * commits, "{pages} pages");
    assert_eq!(client.audit(None, 10)?, [], "and nothing of it is audited");
    Ok(())
}

#[test]
fn many_handlers_that_talk_at_once_are_each_heard_to_the_end() -> jobmill::Result<()> {
    const HANDLERS: usize = 16;
    let (_directory, client, jobs, commits, pages) = run(&[(Talk::All, 3_000); HANDLERS])?;
    for job in &jobs {
        assert_eq!(job.progress.as_ref().map(|progress| progress.done), Some(3_000));
        assert_eq!(job.total_duration, Some(Duration::from_nanos(3_000)));
        assert_eq!(job.stop_reason.as_ref().map(StopReason::as_str), Some("reason-3000"));
        assert_eq!(client.log(job.id)?.len(), 1000);
    }
    assert!(commits <= commits_max(&client, &jobs), "{commits} commits");
    assert!(pages <= HANDLERS as u64 * 4 * 1000 + 40 * commits, "{pages} pages");
    Ok(())
}

/// What a handler told between two writings was kept until it said something again or ended, be it an hour later.
#[test]
fn what_a_handler_told_last_is_written_even_if_it_says_nothing_more() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = start(&path, |builder| {
        builder.state(gate).handle(|_: Block, ctx: &Context| -> Result<(), Failure> {
            ctx.progress(1, Some(3));
            ctx.progress(2, Some(3));
            ctx.log("asking the model, which takes its time");
            ctx.first_token();
            block(Block("asks".into()), ctx).map(drop)
        })
    })?;
    let client = engine.client();
    let id = client.enqueue(Block::job("asks"))?.id();
    keeper.next();
    until("the last words are written while it runs", || {
        let job = client.get(id).expect("the job");
        let told = job.progress.is_some_and(|progress| progress.done == 2) && job.ttft.is_some();
        told && job.status == Status::Running && client.log(id).expect("a log").len() == 1
    });
    drop(keeper);
    engine.shutdown(PATIENCE)?;
    Ok(())
}

/// The time by hand, which the dispatcher is kept from when a test wants.
#[derive(Clone)]
struct Toll {
    time: ManualClock,
    shut: Arc<AtomicBool>,
    held: Sender<()>,
    go: Receiver<()>,
}

impl Clock for Toll {
    fn now(&self) -> Timestamp {
        self.time.now()
    }

    fn monotonic(&self) -> Duration {
        if std::thread::current().name() == Some("jobmill-dispatcher") && self.shut.swap(false, Ordering::SeqCst) {
            let _ = self.held.send(());
            let _ = self.go.recv();
        }
        self.time.monotonic()
    }
}

/// The dispatcher looked for what is told last by a way that was shorter than that of what was told first, which was then
/// written over it. It takes a dispatcher that is held up for a tenth of a second, as by a slow disk.
#[test]
fn what_a_handler_told_last_is_not_overtaken_by_what_it_told_before() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let ((held, is_held), (go_on, go)) = (bounded(1), bounded(1));
    let clock = Toll { time: ManualClock::default(), shut: Arc::default(), held, go };
    let (state, keeper) = gate();
    let engine = start(&path, |builder| {
        builder.clock(clock.clone()).state(state).handle(|_: Block, ctx: &Context| -> Result<(), Failure> {
            for n in 0..3 {
                block(Block("asks".into()), ctx)?;
                ctx.progress(2 * n + 1, None);
                ctx.progress(2 * n + 2, None);
            }
            block(Block("has told".into()), ctx).map(drop)
        })
    })?;
    let client = engine.client();
    let id = client.enqueue(Block::job("asks"))?.id();
    keeper.next();
    for n in 0..3 {
        clock.time.advance(Duration::from_millis(150));
        clock.shut.store(true, Ordering::SeqCst);
        is_held.recv_timeout(PATIENCE).expect("a dispatcher");
        keeper.release();
        keeper.next();
        clock.time.advance(Duration::from_millis(150));
        go_on.send(()).expect("a dispatcher");
        until("the last word is written", || {
            clock.time.advance(Duration::from_millis(50));
            client.get(id).is_ok_and(|job| job.progress.is_some_and(|progress| progress.done == 2 * n + 2))
        });
    }
    keeper.release();
    assert_eq!(client.wait(id, PATIENCE)?.progress.map(|progress| progress.done), Some(6));
    engine.shutdown(PATIENCE)?;
    sound(client);
    Ok(())
}

#[test]
fn what_is_told_by_the_clock_is_written_once_in_a_tenth_of_a_second() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder.handle(|_: Chat, ctx: &Context| -> Result<(), Failure> {
            for n in 0..10_000 {
                ctx.log(format!("{n}"));
                ctx.state::<Hands>()?.pass(Duration::from_millis(1));
            }
            Ok(())
        })
    })?;
    let before = t.faults().commits();
    let id = t.enqueue(&Chat(Talk::Log, 0))?;
    t.drain()?;
    assert!(t.faults().commits() - before <= 6, "ten seconds of talk in a few commits");
    let log = t.client().log(id)?;
    assert_eq!(log.len(), 1000);
    assert_eq!(log[998].at.since(log[0].at), Duration::from_millis(998), "each line with its own moment");
    Ok(())
}

/// A job that was retried for ever filled the file, a thousand lines at a time.
#[test]
fn of_all_attempts_together_the_newest_ten_thousand_lines_are_kept() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Chat, ctx: &Context| -> Result<(), Failure> {
            for n in 1..=900 {
                ctx.log(format!("{n} of {}", ctx.attempt()));
            }
            Err(Failure::retry_after(secs(1), "again"))
        })
    })?;
    let id = t.enqueue(NewJob::of(&Chat(Talk::Log, 0)).max_attempts(12))?;
    for _ in 0..12 {
        t.drain()?;
        t.advance(secs(2));
    }
    let log = t.client().log(id)?;
    assert_eq!(log.len(), 10_000);
    assert_eq!((log[0].line.as_str(), log[0].attempt), ("801 of 1", 1));
    assert_eq!(log[9_999].line, "900 of 12");
    Ok(())
}

/// What a table takes in the file, and how many rows it has.
fn size(client: &Client, table: &str) -> (i64, i64) {
    let bytes = format!("SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE name = '{table}'");
    let rows = query(client, &format!("SELECT count(*) FROM {table}"));
    let conn = client.connection().expect("a connection");
    (rows, conn.query_row(&bytes, [], |row| row.get(0)).unwrap_or(0))
}

fn tracked(t: &Harness) -> jobmill::Result<JobId> {
    t.enqueue(NewJob::tracked().status(Status::Running))
}

#[test]
fn times_and_progress_of_a_tracked_job_write_no_audit_and_its_fields_a_line_each() -> jobmill::Result<()> {
    const TIMES: u64 = 10_000;
    let t = Harness::new(|builder| builder.durability(Durability::Normal))?;
    let client = t.client();
    let id = tracked(&t)?;
    let before = size(client, "jobmill_audit");
    for n in 0..TIMES {
        let update = JobUpdate::new().progress(n, Some(TIMES));
        client.update(id, update.ttft(Duration::from_nanos(n)).total_duration(Duration::from_micros(n)))?;
    }
    client.record_ttft(id, secs(1))?;
    client.record_total_duration(id, secs(2))?;
    assert_eq!(size(client, "jobmill_audit"), before, "ten thousand updates, and not a line");
    assert_eq!(query::<i64>(client, "SELECT count(*) FROM jobmill_job"), 1);
    assert_eq!(query::<i64>(client, "SELECT count(*) FROM jobmill_progress"), 1);
    let job = client.get(id)?;
    assert_eq!((job.progress.map(|progress| progress.done), job.ttft), (Some(TIMES - 1), Some(secs(1))));
    assert_eq!(client.history(id)?.len(), 1, "that it was created");

    for n in 0..100 {
        client.update(id, JobUpdate::new().merge_metadata(&serde_json::json!({"page": n})))?;
    }
    assert_eq!(size(client, "jobmill_audit").0, 100, "a line for each");
    assert_eq!(client.select(Query::new())?.delete()?.changed, 1);
    assert_eq!(query::<i64>(client, "SELECT count(*) FROM jobmill_progress"), 0);
    Ok(())
}
