//! Bad input: a clear error that names the field and the rule, or a defined behaviour. Nothing is written, nothing
//! panics.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{
    Backoff, Batches, Client, Context, Engine, EngineBuilder, ErrorKind, Failure, JobId, Limit, NewJob, Order, Outcome,
    Payload, Price, PriceTable, Priority, Query, Retention, Schedule, Status, Step, Timestamp, Unique, WhenUnknown,
    Workers,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::{Echo, echo, file, now, refused, secs, sound};

const CENTURY: Duration = NewJob::MAX_DURATION;
const MOMENT: Duration = Duration::from_micros(1);
const NAME_RULE: &str = "must be 1 to 128 bytes without control characters";
const DURATION_RULE: &str = "must be no longer than 100 years";

/// Serializes to no JSON.
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("no"))
    }
}

fn job() -> NewJob {
    NewJob::json("kind", &1)
}

/// Jobs that break a rule, with how the error begins.
fn bad_jobs() -> Vec<(NewJob, String)> {
    let long_name = "n".repeat(129);
    let huge = "x".repeat(NewJob::MAX_PAYLOAD_BYTES - 1);
    let wide = json!({ "a": "x".repeat(NewJob::MAX_METADATA_BYTES - 7) });
    let mut table = vec![
        (NewJob::json("kind", &huge), "payload: must be no longer than 16777216 bytes, is 16777217".to_owned()),
        (NewJob::json("kind", &Unwritable), "payload: does not serialize: no".to_owned()),
        (NewJob::json("kind", &BTreeMap::from([((1, 2), 3)])), "payload: does not serialize: key must be".to_owned()),
        (job().max_attempts(0), "max_attempts: must be from 1 to 1000000".to_owned()),
        (job().max_attempts(1_000_001), "max_attempts: must be from 1 to 1000000".to_owned()),
        (job().max_attempts(u32::MAX), "max_attempts: must be from 1 to 1000000".to_owned()),
        (job().timeout(Duration::ZERO), "timeout: must be longer than nothing".to_owned()),
        (job().timeout(Duration::from_nanos(999)), "timeout: must be longer than nothing".to_owned()),
        (job().tags((0..33).map(|n| n.to_string())), "tags: must be no more than 32".to_owned()),
        (job().metadata(&[1, 2]), "metadata: must be a JSON object".to_owned()),
        (job().metadata(&"text"), "metadata: must be a JSON object".to_owned()),
        (job().metadata(&()), "metadata: must be a JSON object".to_owned()),
        (job().metadata(&Unwritable), "metadata: does not serialize: no".to_owned()),
        (job().metadata(&wide), "metadata: must be no longer than 1048576 bytes, is 1048577".to_owned()),
        (job().unique(Unique::key("")), "unique.key: must be 1 to 1024 bytes".to_owned()),
        (job().unique(Unique::key("k".repeat(1025))), "unique.key: must be 1 to 1024 bytes".to_owned()),
        (job().unique(Unique::key("k").while_in([])), "unique.while_in: must name at least one status".to_owned()),
    ];
    for name in ["", &long_name, "new\nline", "nul\0", "unit\u{1f}", "del\u{7f}", "\u{85}"] {
        table.extend([
            (NewJob::json(name.to_owned(), &1), format!("kind: {NAME_RULE}")),
            (job().queue(name.to_owned()), format!("queue: {NAME_RULE}")),
            (job().user(name), format!("user: {NAME_RULE}")),
            (job().agent(name), format!("agent: {NAME_RULE}")),
            (job().tags(["fine", name]), format!("tags: {NAME_RULE}")),
        ]);
    }
    for long in [CENTURY + MOMENT, Duration::MAX] {
        table.extend([
            (job().delay(long), format!("delay: {DURATION_RULE}")),
            (job().expires_in(long), format!("expires_in: {DURATION_RULE}")),
            (job().timeout(long), format!("timeout: {DURATION_RULE}")),
            (job().unique(Unique::key("k").period(long)), format!("unique.period: {DURATION_RULE}")),
        ]);
    }
    for (backoff, says) in [
        (Backoff { factor: 0.99, ..Backoff::default() }, "backoff.factor: must be a number of at least 1"),
        (Backoff { factor: f64::NAN, ..Backoff::default() }, "backoff.factor: must be a number of at least 1"),
        (Backoff { factor: f64::INFINITY, ..Backoff::default() }, "backoff.factor: must be a number of at least 1"),
        (Backoff::default().jitter(1.01), "backoff.jitter: must be a number from 0 to 1"),
        (Backoff::default().jitter(f64::NAN), "backoff.jitter: must be a number from 0 to 1"),
        (Backoff::default().max(Duration::ZERO), "backoff.base: must not be longer than backoff.max"),
    ] {
        table.push((job().backoff(backoff), says.to_owned()));
    }
    table
}

#[test]
fn a_job_that_breaks_a_rule_is_refused_by_every_way_in() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let client = t.client();
    let mut conn = client.connection()?;
    for (bad, says) in bad_jobs() {
        refused(client.enqueue(bad.clone()), ErrorKind::Invalid, &says);
        refused(client.enqueue_many([job(), bad.clone()]), ErrorKind::Invalid, &format!("jobs[1]: {says}"));
        let tx = conn.transaction().expect("a transaction");
        refused(client.enqueue_in(&tx, bad.clone()), ErrorKind::Invalid, &says);
        tx.commit().expect("a commit");
        refused(client.write(move |tx| tx.enqueue(bad)), ErrorKind::Invalid, &says);
    }
    assert_eq!(client.stats()?, jobmill::Stats::default(), "nothing was written");
    sound(client);
    Ok(())
}

#[test]
fn a_job_at_the_very_edge_of_each_rule_goes_through() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Edge, _: &Context| -> Result<(), Failure> { Err(Failure::retry("no")) })
    })?;
    #[derive(Serialize, Deserialize)]
    struct Edge;
    impl Payload for Edge {
        const KIND: &'static str = "ünïcode 'quoted' \"kind\" -- ; %";
    }
    let name = "n".repeat(128);
    let edges = [
        NewJob::of(&Edge),
        NewJob::of(&Edge).max_attempts(1_000_000),
        NewJob::of(&Edge).timeout(MOMENT),
        NewJob::of(&Edge).timeout(CENTURY).expires_in(CENTURY),
        NewJob::of(&Edge).tags((0..32).map(|n| format!("{n:0128}"))),
        NewJob::of(&Edge).tags(["twice", "twice"]),
        NewJob::of(&Edge).metadata(&json!({})),
        NewJob::of(&Edge).metadata(&json!({ "a": "x".repeat(NewJob::MAX_METADATA_BYTES - 8) })),
        NewJob::of(&Edge).unique(Unique::key("k".repeat(1024)).period(CENTURY)),
        NewJob::of(&Edge).unique(Unique::key("zero").period(Duration::ZERO)),
        NewJob::of(&Edge).queue(name.clone()).user(name.clone()).agent(name.clone()),
        NewJob::of(&Edge).run_at(Timestamp::from_micros(i64::MIN)),
        NewJob::of(&Edge).backoff(Backoff::fixed(Duration::ZERO)).max_attempts(3),
        NewJob::of(&Edge).backoff(Backoff { factor: f64::MAX, max: Duration::MAX, ..Backoff::default() }),
        NewJob::of(&Edge).backoff(Backoff::fixed(Duration::MAX)),
    ];
    let waits = [NewJob::of(&Edge).delay(CENTURY), NewJob::of(&Edge).run_at(Timestamp::from_micros(i64::MAX))];
    let count = edges.len();
    for edge in edges.into_iter().chain(waits) {
        t.enqueue(edge)?;
    }
    let expired = t.enqueue(NewJob::of(&Edge).expires_at(Timestamp::from_micros(i64::MIN)))?;
    t.check(expired, "expired");
    assert_eq!(t.drain()?, count + 2, "one has three attempts at once");
    sound(t.client());
    Ok(())
}

#[test]
fn a_setting_that_breaks_a_rule_stops_the_start() -> jobmill::Result<()> {
    type Setting = fn(EngineBuilder) -> EngineBuilder;
    let table: [(Setting, &str); 35] = [
        (|b| b.workers(Workers::new(0)), "workers: must be from 1 to 1024"),
        (|b| b.workers(Workers::new(1025)), "workers: must be from 1 to 1024"),
        (|b| b.workers(Workers::new(usize::MAX)), "workers: must be from 1 to 1024"),
        (|b| b.workers(Workers::new(2).min(3)), "workers.min: must not be more than"),
        (|b| b.workers(Workers::new(2).reserve(Priority::High, 2)), "workers.reserved: must leave"),
        (|b| b.workers(Workers::new(2).reserve(Priority::Critical, usize::MAX)), "workers.reserved: must leave"),
        (|b| b.workers(Workers::new(2).reserve(Priority::Low, 3)), "workers.reserved: must leave"),
        (|b| b.workers(Workers::new(2).keep_alive(Duration::MAX)), "workers.keep_alive: must be no longer"),
        (|b| b.queue("mail", 0), "queue: the limit of mail must be at least 1"),
        (|b| b.queue("", 1), "queue: must be 1 to 128 bytes"),
        (|b| b.queue("a\nb", 1), "queue: must be 1 to 128 bytes"),
        (|b| b.ageing(Duration::ZERO), "ageing: must be from 1ms to 100 years"),
        (|b| b.max_abandoned(usize::MAX), "max_abandoned: must be from 0 to 1024"),
        (|b| b.capacity(u32::MAX), "capacity: must be from 1 to 1000000000"),
        (|b| b.backoff(Backoff::default().max(Duration::MAX)), "backoff.max: must be no longer than 100 years"),
        (
            |b| b.batches(Batches::new().items_in_flight(u64::MAX)),
            "batches.items_in_flight: must be from 1 to 1000000000",
        ),
        (
            |b| b.batches(Batches::new().when_unknown(WhenUnknown::ResubmitAfter(Duration::ZERO))),
            "batches.when_unknown: must be from 1s to 100 years",
        ),
        (|b| b.batches(Batches::new().lost_after(Duration::ZERO)), "batches.lost_after: must be from 1s to 366 days"),
        (|b| b.ageing(Duration::MAX), "ageing: must be from 1ms to 100 years"),
        (|b| b.busy_timeout(Duration::MAX), "busy_timeout: must be no longer than 100 years"),
        (|b| b.timeout_grace(Duration::MAX), "timeout_grace: must be no longer than 100 years"),
        (|b| b.shutdown_timeout(Duration::MAX), "shutdown_timeout: must be no longer than 100 years"),
        (|b| b.backoff(Backoff::default().jitter(-1.0)), "backoff.jitter: must be a number from 0 to 1"),
        (
            |b| b.backoff(Backoff { factor: 0.0, ..Backoff::default() }),
            "backoff.factor: must be a number of at least 1",
        ),
        (
            |b| b.retention(Retention { completed: Some(Duration::MAX), ..Retention::FOREVER }),
            "retention.completed: must",
        ),
        (|b| b.retention(Retention { failed: Some(Duration::MAX), ..Retention::FOREVER }), "retention.failed: must"),
        (
            |b| b.retention(Retention { cancelled: Some(Duration::MAX), ..Retention::FOREVER }),
            "retention.cancelled: must",
        ),
        (|b| b.retention(Retention { expired: Some(Duration::MAX), ..Retention::FOREVER }), "retention.expired: must"),
        (|b| b.handle(echo).handle(echo), "handle: the kind echo has a handler already"),
        (|b| b.handle(|_: Nameless, _: &Context| Ok(())), "kind: must be 1 to 128 bytes"),
        (|b| b.batch_step("", |_, _| Ok(Step::Done)), "batch_step: kind: must be 1 to 128 bytes"),
        (|b| b.schedule(Schedule::every("", Duration::from_secs(1), job())), "schedule.name: must be 1 to 128 bytes"),
        (
            |b| b.limit(Limit::new("a").concurrency(1)).limit(Limit::new("a").concurrency(2)),
            "limit: must not be two of the name \"a\"",
        ),
        (
            |b| b.limit_queue(Limit::new("a").concurrency(1)).limit_queue(Limit::new("a").concurrency(2)),
            "limit_queue: must not be two of the name \"a\"",
        ),
        // The first problem is told, whatever is put right later.
        (|b| b.handle(|_: Nameless, _: &Context| Ok(())).workers(Workers::new(0)), "kind: must be 1 to 128 bytes"),
    ];
    #[derive(Serialize, Deserialize)]
    struct Nameless;
    impl Payload for Nameless {
        const KIND: &'static str = "";
    }
    let (directory, path) = file();
    for (setting, says) in table {
        for threads in [true, false] {
            let builder = setting(Engine::builder(&path));
            let result = if threads { builder.start() } else { builder.inline() };
            refused(result.map(drop), ErrorKind::Invalid, says);
        }
    }
    assert_eq!(names(directory.path()), Vec::<String>::new(), "no file was made");
    let edges = Engine::builder(&path).workers(Workers::new(1024)).max_abandoned(0).ageing(Duration::from_millis(1));
    edges.start()?.shutdown(secs(1))?;
    Ok(())
}

/// What lies in a directory.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Tries a path by every way in, none of which may leave a trace.
#[track_caller]
fn refused_path(path: &Path, kind: ErrorKind, says: &str) {
    let directory = path.parent().filter(|parent| parent.is_dir()).unwrap_or(Path::new(".")).to_owned();
    let before = names(&directory);
    refused(Client::open(path).map(drop), kind, says);
    refused(Engine::builder(path).start().map(drop), kind, says);
    refused(Engine::builder(path).inline().map(drop), kind, says);
    assert_eq!(names(&directory), before, "nothing is left behind");
}

#[test]
fn a_path_that_names_no_file_is_refused() {
    let (directory, path) = file();
    let inside = |name: &str| directory.path().join(name);
    refused_path(Path::new(""), ErrorKind::Invalid, "path: must name a file");
    refused_path(Path::new(":memory:"), ErrorKind::Invalid, "path: must name a file");
    refused_path(Path::new("a\0b.db"), ErrorKind::Invalid, "path: must not contain a NUL byte");
    refused_path(&inside("a\0b.db"), ErrorKind::Invalid, "path: must not contain a NUL byte");
    // Not the test's own directory: others come and go beside that.
    let below = inside("below");
    std::fs::create_dir(&below).expect("a directory");
    refused_path(&below, ErrorKind::Invalid, &format!("path: {} is a directory", below.display()));
    refused_path(Path::new("/"), ErrorKind::Invalid, "path: / is a directory");
    for end in ["/", "//", "/."] {
        let named = format!("{}{end}", path.display());
        let says = format!("path: {named} names a directory by its end, and must name a file");
        refused_path(Path::new(&named), ErrorKind::Invalid, &says);
    }
    refused_path(&inside("..").join("nowhere").join(".."), ErrorKind::Invalid, "path: ");
    refused_path(&inside("nowhere").join("jobs.db"), ErrorKind::Storage, "cannot reach the directory of ");
    std::fs::write(inside("plain"), "text").expect("a file");
    refused_path(&inside("plain").join("jobs.db"), ErrorKind::Storage, "cannot open ");
    refused_path(&inside(&"n".repeat(300)), ErrorKind::Storage, "cannot open ");
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
    let (directory, path) = file();
    // A file of one byte counts as empty: SQLite itself writes one on some systems.
    for content in [
        "xy".to_owned(),
        "a text file\n".to_owned(),
        "text ".repeat(1000),
        "SQLite format 3\0".to_owned() + &"x".repeat(5000),
    ] {
        std::fs::write(&path, &content).expect("a file");
        refused(Client::open(&path).map(drop), ErrorKind::Storage, "cannot open ");
        refused(Engine::builder(&path).start().map(drop), ErrorKind::Storage, "cannot open ");
        assert!(std::fs::read_to_string(&path).is_ok_and(|found| found == content), "it is as it was");
        assert_eq!(names(directory.path()), ["jobs.db"]);
    }
    std::fs::write(&path, "").expect("a file");
    assert!(Client::open(&path).is_ok(), "an empty file is an empty database");
}

fn set_read_only(path: &Path, read_only: bool) {
    let mut permissions = std::fs::metadata(path).expect("a file").permissions();
    permissions.set_readonly(read_only);
    std::fs::set_permissions(path, permissions).expect("permissions");
}

#[test]
fn a_file_that_may_only_be_read_is_refused() -> jobmill::Result<()> {
    let (_directory, path) = file();
    Client::open(&path)?.enqueue(Echo::job("x"))?;
    set_read_only(&path, true);
    // Whoever may write everything, as root may, is kept by nothing from writing this.
    let may_write = std::fs::OpenOptions::new().write(true).open(&path).is_ok();
    for result in [Client::open(&path).map(drop), Engine::builder(&path).start().map(drop)] {
        if may_write {
            result?;
        } else {
            refused(result, ErrorKind::Storage, "cannot open ");
        }
    }
    set_read_only(&path, false);
    Ok(())
}

/// It was said of the file that it is read-only, which it was not.
#[cfg(unix)]
#[test]
fn a_directory_that_may_only_be_read_is_told_from_such_a_file() -> jobmill::Result<()> {
    let (directory, path) = file();
    Client::open(&path)?.enqueue(Echo::job("x"))?;
    set_read_only(directory.path(), true);
    // Whoever may write everything, as root may, is kept by nothing from writing here.
    let probe = directory.path().join("probe");
    let may_write = std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe)).is_ok();
    let results = [Client::open(&path).map(drop), Engine::builder(&path).start().map(drop)];
    set_read_only(directory.path(), false);
    for result in results {
        if may_write {
            result?;
        } else {
            let says = format!("cannot open {}: the directory of the database cannot be written", path.display());
            refused(result, ErrorKind::Storage, &says);
        }
    }
    Ok(())
}

#[test]
fn a_queue_of_no_name_is_not_paused() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    for name in ["", "a\tb", &"n".repeat(129)] {
        refused(t.client().pause(name), ErrorKind::Invalid, &format!("queue: {NAME_RULE}"));
        refused(t.client().resume(name), ErrorKind::Invalid, &format!("queue: {NAME_RULE}"));
    }
    assert_eq!(t.client().stats()?.paused, Vec::<String>::new());
    Ok(())
}

#[test]
fn words_that_mean_nothing_are_refused() {
    let malformed = "id: must be job- or run- and 13 characters of Crockford base32";
    for text in [
        "",
        "job-",
        "job",
        "1",
        "job-0000000000000",
        "job-000000000002",
        "job-00000000000002",
        "job-000000000000i",
        "job-000000000000l",
        "job-000000000000o",
        "job-000000000000u",
        "job-8000000000000",
        "job-zzzzzzzzzzzzz",
        "job--000000000002",
        "job- 000000000002",
        "job-0000000000002 ",
        " job-0000000000002",
        "JOB-0000000000002",
        "job-0000000000001",
        "run-0000000000002",
        "job-00000000000é",
        "job-000000000\u{0}001",
        "job-٠٠٠٠٠٠",
        &"job-".repeat(100_000),
    ] {
        refused(text.parse::<JobId>(), ErrorKind::Invalid, malformed);
        assert!(serde_json::from_value::<JobId>(json!(text)).is_err(), "{text}");
    }
    assert!(serde_json::from_value::<JobId>(json!(1)).is_err());
    for text in ["", "Pending", "pending ", "done"] {
        refused(text.parse::<Status>(), ErrorKind::Invalid, "status: must be one of created, pending,");
    }
    for text in ["", "High", "urgent", "0"] {
        refused(text.parse::<Priority>(), ErrorKind::Invalid, "priority: must be one of critical, high,");
    }
    for text in ["", "now", "2026-01-31", "2026-13-01T00:00:00Z", "2026-01-31T00:00:00"] {
        refused(text.parse::<Timestamp>(), ErrorKind::Invalid, "timestamp: must be RFC 3339");
    }
    for text in ["1969-12-31T23:59:59Z", "2256-01-01T00:00:00Z"] {
        refused(text.parse::<Timestamp>(), ErrorKind::Invalid, "timestamp: must lie between 1970 and 2255");
    }
}

#[test]
fn a_page_out_of_bounds_is_refused() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let (early, late): (JobId, JobId) = ("job-0000000000002".parse()?, "job-7zzzzzzzzzzzy".parse()?);
    for (query, says) in [
        (Query::new().limit(0), "limit: must be from 1 to 1000"),
        (Query::new().limit(1001), "limit: must be from 1 to 1000"),
        (Query::new().limit(usize::MAX), "limit: must be from 1 to 1000"),
        (Query::new().before(early).after(early), "before: must be newer than after"),
        (Query::new().before(early).after(late).order(Order::Ascending), "before: must be newer than after"),
    ] {
        refused(t.client().list(query), ErrorKind::Invalid, says);
    }
    Ok(())
}

/// Snoozes once, then is done.
fn snooze_once(_: Echo, ctx: &Context) -> Result<Outcome<()>, Failure> {
    match ctx.saved::<()>()? {
        Some(()) => Ok(Outcome::Done(())),
        None => {
            ctx.save(&())?;
            Ok(Outcome::Snooze(secs(60)))
        }
    }
}

#[test]
fn a_clock_that_jumps_back_an_hour_changes_no_order_and_loses_nothing() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(snooze_once))?;
    let first = t.enqueue(Echo::job("first"))?;
    t.drain()?;
    let delayed = t.enqueue(Echo::job("delayed").delay(secs(60)))?;
    let before = now(&t);
    t.clock().jump(before.saturating_sub(secs(3600)));
    let after = t.enqueue(Echo::job("after").expires_in(secs(10)))?;
    assert!(after > delayed, "ids grow all the same");
    assert_eq!(after.created_at(), before, "by the least step");
    assert_eq!(t.client().explain(after)?.reasons.len(), 2);
    assert_eq!(t.drain()?, 1, "a job without a delay runs at once, though its id lies in the future");
    t.check(after, "pending, due in 60s");
    t.check(first, "pending, due in 60s");
    t.check(delayed, "pending, due in 3660s");
    t.advance(secs(9));
    t.check(after, "pending, due in 51s");
    t.advance(secs(1));
    t.drain()?;
    t.check(after, "expired");
    t.advance(secs(50));
    assert_eq!(t.drain()?, 1);
    t.check(first, "completed, attempt 1");
    t.advance(secs(3600));
    assert_eq!(t.drain()?, 1);
    t.check(delayed, "pending, due in 60s");
    let listed: Vec<JobId> =
        t.client().list(Query::new().order(Order::Ascending))?.jobs.iter().map(|job| job.id).collect();
    assert_eq!(listed, [first, delayed, after]);
    sound(t.client());
    Ok(())
}

#[test]
fn a_clock_that_jumps_a_year_ahead_and_back_does_what_the_year_would() -> jobmill::Result<()> {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let t = Harness::new(|builder| builder.handle(echo))?;
    let delayed = t.enqueue(Echo::job("").delay(secs(86_400)))?;
    let mortal = t.enqueue(Echo::job("").delay(YEAR + YEAR).expires_in(YEAR))?;
    let start = now(&t);
    t.clock().jump(start.saturating_add(YEAR));
    assert_eq!(t.drain()?, 1);
    t.check(delayed, "completed, attempt 1");
    t.check(mortal, "expired");
    let ahead = t.enqueue(Echo::job(""))?;
    t.clock().jump(start);
    // What ended stays so; ids go on behind the newest, and jobs run as ever.
    let back = t.enqueue(Echo::job(""))?;
    assert!(back > ahead);
    assert_eq!(t.drain()?, 2);
    let unique = || Echo::job("").unique(Unique::key("k").period(secs(60)));
    assert!(t.client().enqueue(unique())?.is_new());
    assert!(!t.client().enqueue(unique())?.is_new());
    t.check(mortal, "expired");
    sound(t.client());
    Ok(())
}

#[test]
fn a_clock_at_either_end_of_time_does_no_harm() -> jobmill::Result<()> {
    for end in [Timestamp::EPOCH, Timestamp::MAX] {
        let t = Harness::new(|builder| builder.handle(snooze_once))?;
        t.clock().jump(end);
        for _ in 0..10 {
            let plain = t.enqueue(Echo::job(""))?;
            t.enqueue(Echo::job("").delay(secs(1)).timeout(secs(1)).unique(Unique::key("k").period(CENTURY)))?;
            assert_eq!(plain.created_at(), end);
        }
        t.drain()?;
        t.engine().maintain()?;
        let explained = t.client().list(Query::new())?.jobs.into_iter().map(|job| t.client().explain(job.id));
        assert!(explained.collect::<jobmill::Result<Vec<_>>>().is_ok());
        sound(t.client());
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_path_that_is_not_utf_8_is_refused_before_a_file_is_made() {
    use std::os::unix::ffi::OsStrExt;
    let (directory, _) = file();
    let name = std::ffi::OsStr::from_bytes(b"jobs\xff.db");
    refused_path(&directory.path().join(name), ErrorKind::Invalid, "path: must be UTF-8");
    let inner = directory.path().join(std::ffi::OsStr::from_bytes(b"dir\xff"));
    std::fs::create_dir(&inner).expect("a directory");
    refused_path(&inner.join("jobs.db"), ErrorKind::Invalid, "path: must be UTF-8");
}

/// The id behind the last one was a panic, or a negative number.
#[test]
fn ids_that_are_used_up_are_an_error() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    t.clock().jump(Timestamp::MAX);
    t.client().enqueue_many((0..512).map(|_| Echo::job("")))?;
    refused(t.client().enqueue(Echo::job("")), ErrorKind::Storage, "cannot enqueue: UNIQUE constraint failed");
    assert_eq!(t.drain()?, 512);
    sound(t.client());
    Ok(())
}

#[test]
fn a_backup_goes_to_a_new_file_only() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let own: PathBuf = t.path().as_ref().to_owned();
    let directory = own.parent().expect("a directory").to_owned();
    refused(t.client().backup(&own), ErrorKind::Invalid, &format!("path: {} exists already", own.display()));
    refused(
        t.client().backup(&directory),
        ErrorKind::Invalid,
        &format!("path: {} is a directory", directory.display()),
    );
    let before = names(&directory);
    refused(t.client().backup(""), ErrorKind::Invalid, "path: must name a file");
    refused(t.client().backup(":memory:"), ErrorKind::Invalid, "path: must name a file");
    refused(t.client().backup("a\0b"), ErrorKind::Invalid, "path: must not contain a NUL byte");
    refused(
        t.client().backup(directory.join("nowhere").join("copy.db")),
        ErrorKind::Storage,
        "cannot reach the directory of ",
    );
    assert_eq!(names(&directory), before);
    sound(t.client());
    Ok(())
}

/// An engine whose prices were bad left the file by which others know that it lives, for nobody to remove.
#[test]
fn an_engine_that_is_refused_leaves_nothing_behind() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let start = |batches: Batches| {
        let started = Engine::builder(directory.path().join("jobs.db")).batches(batches).start();
        assert_eq!(started.err().map(|error| error.kind()), Some(ErrorKind::Invalid));
    };
    start(Batches::new().prices(PriceTable::new("1", "EUR").model("m", Price::new(-1.0, 0.0))));
    start(Batches::new().polls_in_flight(0));
    start(Batches::new().local_in_flight(65));
    assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 0);
}
