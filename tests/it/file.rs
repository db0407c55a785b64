//! The file: in an application's own database, copied, checked, pruned, kept small.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;
use jobmill::rusqlite::{Connection, OpenFlags, TransactionBehavior};
use jobmill::testing::Harness;
use jobmill::{
    Client, Clock, Context, Durability, Engine, ErrorKind, Failure, NewJob, Outcome, Query, Retention, Status, Unique,
};

use crate::support::{
    Block, Echo, Other, PATIENCE, block, echo, file, gate, now, other, query, refused, secs, sound, tamper, until,
};

/// A file of an application with tables, a version and an id of its own.
fn application(path: &Path) -> Connection {
    let conn = Connection::open(path).expect("a database");
    conn.execute_batch(
        "PRAGMA user_version = 7;
         PRAGMA application_id = 42;
         CREATE TABLE job (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
         CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
         CREATE VIEW jobs AS SELECT * FROM job;
         CREATE TRIGGER job_named AFTER INSERT ON job BEGIN INSERT INTO meta VALUES (NEW.name, 'named'); END;
         INSERT INTO job (name) VALUES ('theirs');",
    )
    .expect("tables");
    conn
}

fn schema(conn: &Connection, ours: bool) -> Vec<String> {
    let sql = "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema
               WHERE (tbl_name LIKE 'jobmill\\_%' ESCAPE '\\') = ?1 ORDER BY type, name";
    let mut statement = conn.prepare(sql).expect(sql);
    let rows = statement.query_map([ours], |row| row.get(0)).expect(sql);
    rows.collect::<Result<_, _>>().expect(sql)
}

#[test]
fn an_applications_own_database_keeps_its_tables_its_version_and_its_id() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let conn = application(&path);
    let theirs = schema(&conn, false);
    drop(conn);
    let engine = Engine::builder(&path).handle(echo).handle(other).start()?;
    let client = engine.client();
    let mut conn = client.connection()?;
    let mut ids = Vec::new();
    for n in 0..20 {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).expect("a transaction");
        tx.execute("INSERT INTO job (name) VALUES (?1)", [n.to_string()]).expect("a row");
        ids.push(client.enqueue_in(&tx, &Other(n))?.id());
        tx.commit().expect("a commit");
        conn.execute("UPDATE meta SET value = 'seen' WHERE key = ?1", [n.to_string()]).expect("a write without jobs");
        ids.push(client.enqueue(Echo::job("between"))?.id());
    }
    for id in ids {
        assert_eq!(client.wait(id, PATIENCE)?.status, Status::Completed);
    }
    engine.shutdown(secs(5))?;
    sound(client);
    let conn = Connection::open(&path).expect("a database");
    assert_eq!(schema(&conn, false), theirs);
    let ours = schema(&conn, true);
    let named_ours = |line: &String| {
        line.split(' ')
            .nth(1)
            .is_some_and(|name| name.starts_with("jobmill_") || name.starts_with("sqlite_autoindex_jobmill_"))
    };
    assert!(ours.len() > 10 && ours.iter().all(named_ours), "{ours:?}");
    for (pragma, value) in [("user_version", 7), ("application_id", 42), ("auto_vacuum", 0)] {
        assert_eq!(conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)), Ok(value), "{pragma}");
    }
    assert_eq!(query::<i64>(client, "SELECT count(*) FROM jobs"), 21);
    assert_eq!(query::<i64>(client, "SELECT count(*) FROM meta WHERE value = 'seen'"), 20);
    Ok(())
}

#[test]
fn the_applications_connections_are_as_durable_as_the_engine() -> jobmill::Result<()> {
    for (durability, synchronous) in [(Durability::Full, 2), (Durability::Normal, 1)] {
        let (_directory, path) = file();
        let client = Client::open_with(&path, durability)?;
        assert_eq!(query::<i64>(&client, "PRAGMA synchronous"), synchronous);
        assert_eq!(query::<String>(&client, "PRAGMA journal_mode"), "wal");
        let engine = Engine::builder(&path).durability(durability).inline()?;
        assert_eq!(query::<i64>(engine.client(), "PRAGMA synchronous"), synchronous);
    }
    Ok(())
}

#[test]
fn our_writers_wait_for_the_applications_and_say_busy_in_the_end() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).busy_timeout(Duration::from_millis(20)).inline()?;
    let mut conn = engine.client().connection()?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).expect("a transaction");
    refused(
        engine.client().enqueue(Echo::job("x")),
        ErrorKind::Busy,
        "cannot begin to write: the database stayed locked",
    );
    drop(tx);
    assert!(engine.client().enqueue(Echo::job("x"))?.is_new());

    // With the patience that it has by default, a writer outlasts the application's transaction.
    let patient = Client::open(&path)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).expect("a transaction");
    let begun = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            begun.store(true, Ordering::SeqCst);
            patient.enqueue(Echo::job("y")).map(|enqueued| enqueued.is_new()).ok()
        });
        until("the other writes", || begun.load(Ordering::SeqCst));
        tx.commit().expect("a commit");
        assert_eq!(writer.join().expect("no panic"), Some(true));
    });
    sound(&patient);
    Ok(())
}

/// A file as the engine's first tables left it: jobs in every state, of users and of nobody.
#[test]
fn tables_of_an_older_release_are_brought_up_to_date_with_all_that_they_hold() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let conn = Connection::open(&path).expect("a file");
    conn.execute_batch(include_str!("../../src/store/migrations/0001_engine.sql")).expect("the first tables");
    conn.execute_batch(
        r#"INSERT INTO jobmill_meta VALUES ('version', 1);
           INSERT INTO jobmill_lane (id, queue, kind, priority, pending, completed, failed, delayed)
               VALUES (1, 'default', 'echo', 2, 2, 1, 0, 0), (2, 'mail', 'other', 0, 0, 0, 1, 1);
           INSERT INTO jobmill_job (id, lane, state, attempt, claim, max_attempts, run_at, started_at, completed_at,
                   ttft_ns, user_id, agent_id, tags, metadata, error, payload, result) VALUES
               (1024 << 10, 1, 1, 0, 0, 10, NULL, NULL, NULL, NULL, NULL, 'a', NULL, NULL, NULL, CAST('"one"' AS BLOB), NULL),
               (2048 << 10, 1, 1, 0, 0, 10, NULL, NULL, NULL, NULL, 'ada', NULL, '["t"]', '{"source_id":"s"}', NULL,
                   CAST('"two"' AS BLOB), NULL),
               (3072 << 10, 1, 3, 1, 1, 10, NULL, 3100, 3200, 50, 'ada', NULL, NULL, NULL, NULL, CAST('"three"' AS BLOB), CAST('"3"' AS BLOB)),
               (4096 << 10, 2, 4, 10, 10, 10, NULL, 4100, 4200, NULL, 'bob', NULL, NULL, NULL, 'no', CAST('4' AS BLOB), NULL),
               (5120 << 10, 2, 7, 1, 1, 10, 9000, 5100, NULL, NULL, NULL, NULL, NULL, NULL, 'once', CAST('5' AS BLOB), NULL);
           INSERT INTO jobmill_tag VALUES ('t', 2048 << 10);"#,
    )
    .expect("what it holds");
    drop(conn);

    let client = Client::open(&path)?;
    sound(&client);
    let ada = client.for_user("ada")?;
    let of_ada = ada.jobs(Query::new())?.collect::<jobmill::Result<Vec<_>>>()?;
    let statuses: Vec<Status> = of_ada.iter().map(|job| job.status).collect();
    assert_eq!(statuses, [Status::Completed, Status::Pending]);
    assert_eq!((of_ada[0].result::<String>()?, of_ada[0].ttft), ("3".to_owned(), Some(Duration::from_nanos(50))));
    let by_source = client.list(Query::new().source_id("s").tags(["t"]))?;
    assert_eq!(by_source.jobs, [of_ada[1].clone()]);
    assert_eq!(client.stats()?.total.total(), 5);
    assert_eq!(client.list(Query::new().agents(["a"]))?.jobs[0].payload::<String>()?, "one");

    let engine = Engine::builder(&path).handle(echo).handle(other).inline()?;
    engine.drain()?;
    let counts = engine.client().stats()?.total;
    assert_eq!((counts.completed, counts.failed), (4, 1));
    sound(engine.client());
    Ok(())
}

#[test]
fn tables_of_a_newer_release_are_refused_and_left_as_they_are() -> jobmill::Result<()> {
    let (directory, path) = file();
    let client = Client::open(&path)?;
    client.enqueue(Echo::job("x"))?;
    let version: i64 = query(&client, "SELECT value FROM jobmill_meta WHERE key = 'version'");
    tamper(&client, "UPDATE jobmill_meta SET value = 999 WHERE key = 'version'; PRAGMA wal_checkpoint(TRUNCATE)");
    drop(client);
    let before = std::fs::read(&path).expect("a file");
    let says = format!("the tables have version 999, and this jobmill knows no newer one than {version}");
    refused(Client::open(&path).map(drop), ErrorKind::Storage, &says);
    refused(Engine::builder(&path).start().map(drop), ErrorKind::Storage, &says);
    refused(Engine::builder(&path).inline().map(drop), ErrorKind::Storage, &says);
    assert!(std::fs::read(&path).expect("a file") == before, "not a byte has changed");
    let left = std::fs::read_dir(directory.path()).expect("a directory").count();
    assert_eq!(left, 1, "nothing is left beside it");
    Ok(())
}

#[test]
fn a_table_of_another_programs_that_bears_our_name_is_told_of_in_one_line() {
    for theirs in ["CREATE TABLE jobmill_job (name TEXT)", "CREATE TABLE jobmill_meta (name TEXT)"] {
        let (_directory, path) = file();
        let conn = Connection::open(&path).expect("a database");
        conn.execute_batch(theirs).expect("a table");
        let before = schema(&conn, true);
        let error = Client::open(&path).map(drop).expect_err("their table stands in the way");
        let table = theirs.split(' ').nth(2).expect("a name");
        let file = path.canonicalize().expect("a file");
        let says = format!("cannot prepare the tables ({}): table {table} already exists", file.display());
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::Storage, says));
        refused(Engine::builder(&path).start().map(drop), ErrorKind::Storage, "cannot prepare the tables");
        assert_eq!(schema(&conn, true), before, "nothing of it was changed");
    }
}

#[test]
fn many_may_open_a_new_file_at_the_same_time() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let start = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (start, path) = (&start, &path);
            scope.spawn(move || {
                start.wait();
                let client = Client::open(path).expect("it opens");
                client.enqueue(&Other(n)).expect("it is enqueued");
            });
        }
    });
    let client = Client::open(&path)?;
    assert_eq!(client.stats()?.total.pending, 8);
    sound(&client);
    Ok(())
}

#[test]
fn a_client_names_its_file_by_its_absolute_path() -> jobmill::Result<()> {
    let (directory, path) = file();
    std::fs::create_dir(directory.path().join("sub")).expect("a directory");
    let client = Client::open(directory.path().join("sub").join("..").join("jobs.db"))?;
    assert_eq!(client.path(), path.canonicalize().expect("a file"));
    Ok(())
}

#[test]
fn a_backup_is_made_while_others_go_on_writing() -> jobmill::Result<()> {
    let (directory, path) = file();
    let engine = Engine::builder(&path).durability(Durability::Normal).handle(echo).start()?;
    let client = engine.client();
    client.enqueue_many((0..40).map(|n| NewJob::json("kept", &"x".repeat(300_000 + n)).tags(["kept"])))?;
    let (copy, done) = (directory.path().join("copy.db"), AtomicBool::new(false));
    let (begins, begun) = bounded(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                client.enqueue(Echo::job("meanwhile")).expect("it is enqueued");
                let _ = begins.try_send(());
            }
        });
        begun.recv_timeout(PATIENCE).expect("somebody who writes");
        let made = client.backup(&copy);
        done.store(true, Ordering::SeqCst);
        made.expect("a copy");
    });
    let restored = Client::open(&copy)?;
    assert_eq!(restored.stats()?.kinds["kept"].pending, 40);
    let page = restored.list(Query::new().tags(["kept"]))?;
    assert!(page.jobs.iter().all(|job| job.payload.len() >= 300_002));
    assert_eq!(restored.verify()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_backup_goes_on_where_the_file_was() -> jobmill::Result<()> {
    let (directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).inline()?;
    let done = engine.client().enqueue(Echo::job("done"))?.id();
    engine.drain()?;
    let due = engine.client().enqueue(Echo::job("due").unique(Unique::key("k")))?.id();
    let copy = directory.path().join("copy.db");
    engine.client().backup(&copy)?;
    engine.drain()?;
    engine.shutdown(secs(1))?;
    let restored = Engine::builder(&copy).handle(echo).inline()?;
    let client = restored.client();
    assert_eq!((client.get(done)?.status, client.get(due)?.status), (Status::Completed, Status::Pending));
    assert!(!client.enqueue(Echo::job("again").unique(Unique::key("k")))?.is_new());
    assert_eq!(restored.drain()?, 1);
    sound(client);
    Ok(())
}

/// Jobs that ran while the copy was made stayed running in it for as long as the engine of the original lived.
#[test]
fn jobs_that_run_are_pending_in_a_backup() -> jobmill::Result<()> {
    let (directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).state(gate).handle(block).start()?;
    let id = engine.client().enqueue(Block::job("x"))?.id();
    keeper.next();
    let copy = directory.path().join("copy.db");
    engine.client().backup(&copy)?;
    let restored = Client::open(&copy)?;
    let job = restored.get(id)?;
    assert_eq!((job.status, job.attempt), (Status::Pending, 0));
    sound(&restored);
    assert_eq!(engine.client().get(id)?.status, Status::Running);
    drop(keeper);
    engine.client().wait(id, PATIENCE)?;
    Ok(())
}

#[test]
fn a_check_finds_what_is_wrong_with_the_books() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    t.client().enqueue_many((0..3).map(|n| Echo::job(n.to_string())))?;
    sound(t.client());
    for (wrong, right, says) in [
        (
            "UPDATE jobmill_lane SET pending = pending + 1",
            "UPDATE jobmill_lane SET pending = pending - 1",
            "lane default/echo/default counts [0, 4, 0, 0, 0, 0, 0, 0, 0], its rows are [0, 3, 0, 0, 0, 0, 0, 0, 0]",
        ),
        (
            "UPDATE jobmill_job SET lane = lane + 7",
            "UPDATE jobmill_job SET lane = lane - 7",
            "lane default/echo/default counts [0, 3, 0, 0, 0, 0, 0, 0, 0], its rows are [0, 0, 0, 0, 0, 0, 0, 0, 0]",
        ),
        (
            "UPDATE jobmill_job SET state = 2, owner = 99; UPDATE jobmill_lane SET running = 3, pending = 0",
            "UPDATE jobmill_job SET state = 1, owner = NULL; UPDATE jobmill_lane SET running = 0, pending = 3",
            "3 running jobs belong to no open instance",
        ),
        (
            "UPDATE jobmill_job SET state = 2, owner = NULL; UPDATE jobmill_lane SET running = 3, pending = 0",
            "UPDATE jobmill_job SET state = 1, owner = NULL; UPDATE jobmill_lane SET running = 0, pending = 3",
            "3 running jobs belong to no open instance",
        ),
    ] {
        tamper(t.client(), wrong);
        let found = t.client().verify()?;
        assert!(found.iter().any(|line| line == says), "{found:?}");
        tamper(t.client(), right);
        sound(t.client());
    }
    Ok(())
}

#[test]
fn a_check_finds_a_damaged_page() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let client = Client::open(&path)?;
    client.enqueue_many((0..20_000).map(|n| NewJob::json("kind", &n).tags([format!("tag {n}")])))?;
    tamper(&client, "PRAGMA wal_checkpoint(TRUNCATE)");
    drop(client);
    let mut bytes = std::fs::read(&path).expect("a file");
    // Every fourth page is wiped, but for the first ones, which hold the schema.
    for page in bytes.chunks_exact_mut(4096).skip(200).step_by(4) {
        page.fill(0xA5);
    }
    std::fs::write(&path, bytes).expect("a file");
    let found = Client::open(&path)?.verify();
    match found {
        Ok(lines) => assert!(!lines.is_empty()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Storage, "{error}"),
    }
    Ok(())
}

/// Leaves something in every table and ends as its text says.
fn leaves_traces(job: Echo, ctx: &Context) -> Result<Outcome<()>, Failure> {
    if ctx.attempt() == 1 {
        return Err(Failure::retry_after(Duration::ZERO, "once"));
    }
    ctx.log("a line");
    ctx.progress(1, None);
    ctx.save(&1)?;
    match &job.0[..2] {
        "co" => Ok(Outcome::Done(())),
        "fa" => Err(Failure::fatal("no")),
        _ => Ok(Outcome::Cancel("no".into())),
    }
}

const BESIDE: [&str; 7] = ["payload", "tag", "unique", "attempt", "progress", "saved", "log"];

fn rows(client: &Client, table: &str) -> i64 {
    query(client, &format!("SELECT count(*) FROM jobmill_{table}"))
}

#[test]
fn ended_jobs_go_when_their_time_is_over_with_all_that_stands_beside_them() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let retention = Retention {
            completed: Some(secs(100)),
            failed: Some(secs(200)),
            cancelled: Some(secs(300)),
            expired: Some(secs(400)),
            ..Retention::default()
        };
        builder.retention(retention).handle(leaves_traces)
    })?;
    let client = t.client();
    let long = |name: &str| {
        let job = Echo::job(format!("{name}{}", "x".repeat(5000)));
        job.tags(["a", "b"]).unique(Unique::key(name).while_in(Status::ALL))
    };
    let jobs = [long("completed"), long("failed"), long("cancelled"), long("expired").queue("paused")];
    client.pause("paused")?;
    let ended = jobs.map(|job| t.enqueue(job));
    let mut left: Vec<_> = ended.into_iter().collect::<jobmill::Result<_>>()?;
    let waits = t.enqueue(Echo::job("waits").queue("paused"))?;
    let delayed = t.enqueue(Echo::job("delayed").delay(secs(1_000_000)))?;
    let expired = t.enqueue(long("brief").queue("paused").expires_in(Duration::ZERO))?;
    t.drain()?;
    client.cancel(left[3])?;
    assert_eq!(client.get(expired)?.status, Status::Expired);
    left[3] = expired;
    let end = now(&t);
    assert!(BESIDE.iter().all(|table| rows(client, table) > 0));
    for (n, after_s) in [100, 200, 300, 400].into_iter().enumerate() {
        t.advance(end.saturating_add(secs(after_s)).since(now(&t)));
        t.engine().maintain()?;
        assert!(client.get(left[n]).is_ok(), "not yet");
        t.advance(Duration::from_micros(1));
        t.engine().maintain()?;
        refused(client.get(left[n]), ErrorKind::NotFound, "there is no job");
        assert!(left[n + 1..].iter().all(|id| client.get(*id).is_ok()));
        assert_eq!(client.stats()?.total.total(), query::<i64>(client, "SELECT count(*) FROM jobmill_job") as u64);
        sound(client);
    }
    for table in BESIDE {
        assert_eq!(rows(client, table), 0, "{table}");
    }
    t.check(waits, "pending");
    assert!(client.get(delayed).is_ok());
    assert!(client.enqueue(long("completed"))?.is_new(), "its key is free");
    Ok(())
}

#[test]
fn what_is_kept_for_ever_is_kept_and_a_great_many_go_at_once() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.retention(Retention { cancelled: Some(Duration::ZERO), ..Retention::FOREVER }).handle(echo)
    })?;
    let kept = t.enqueue(Echo::job("kept"))?;
    t.drain()?;
    let many = t.client().enqueue_many((0..1500).map(|n| Echo::job(n.to_string())))?;
    t.clock().jump(jobmill::SystemClock.now().saturating_add(secs(3600)));
    let stranger = Client::open_with(t.path(), Durability::Normal)?;
    for id in &many {
        stranger.cancel(id.id())?;
    }
    t.engine().maintain()?;
    assert!(t.client().get(kept).is_ok());
    assert!(many.iter().all(|id| t.client().get(id.id()).is_err()));
    sound(t.client());
    Ok(())
}

#[test]
fn an_id_is_never_given_twice_though_its_row_is_gone_and_the_clock_falls_back() -> jobmill::Result<()> {
    let mut t =
        Harness::new(|builder| builder.retention(Retention { cancelled: Some(secs(1)), ..Retention::FOREVER }))?;
    let start = now(&t);
    let mut newest = t.enqueue(Echo::job("first"))?;
    for round in 0..6 {
        let id = t.enqueue(Echo::job("x"))?;
        assert!(id > newest, "round {round}");
        newest = id;
        t.client().cancel(newest)?;
        // What looks newer than the time is kept until that has come.
        t.clock().jump(start.saturating_add(secs(9)));
        t.engine().maintain()?;
        refused(t.client().get(newest), ErrorKind::NotFound, "there is no job");
        t.clock().jump(start.saturating_sub(secs(3600 * round)));
        // Whoever gives the next id: this engine, the next one, another client, the application's own transaction.
        match round {
            0 => {}
            1 => t.restart()?,
            2 => t.crash()?,
            _ => {
                let client = Client::open(t.path())?;
                let mut conn = client.connection()?;
                let tx = conn.transaction().expect("a transaction");
                let own = t.client().enqueue_in(&tx, Echo::job("own"))?.id();
                assert!(own > newest, "round {round}");
                newest = own;
                tx.commit().expect("a commit");
            }
        }
    }
    sound(t.client());
    Ok(())
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

/// Fills a file with jobs that are kept for a second, and prunes them.
fn filled_and_pruned(t: &Harness) -> jobmill::Result<(u64, u64)> {
    let path: PathBuf = t.path().as_ref().to_owned();
    let settled = || {
        tamper(t.client(), "PRAGMA wal_checkpoint(TRUNCATE)");
        size(&path)
    };
    t.client().enqueue_many((0..1500).map(|n| Echo::job(format!("{n:010000}"))))?;
    t.drain()?;
    let full = settled();
    t.advance(secs(2));
    for _ in 0..3 {
        t.engine().maintain()?;
    }
    assert_eq!(t.client().stats()?.total.total(), 0);
    sound(t.client());
    Ok((full, settled()))
}

fn brief(builder: jobmill::EngineBuilder) -> jobmill::EngineBuilder {
    let retention = Retention { completed: Some(secs(1)), ..Retention::FOREVER };
    builder.durability(Durability::Normal).retention(retention).handle(|_: Echo, _: &Context| Ok(()))
}

/// One free page was given back where 256 were meant.
#[test]
fn space_that_is_free_goes_back_to_the_file_system() -> jobmill::Result<()> {
    let t = Harness::new(brief)?;
    let (full, pruned) = filled_and_pruned(&t)?;
    assert!(full > 14 << 20, "{full}");
    // Four megabytes of free pages are kept for the jobs to come.
    assert!(pruned < 6 << 20, "{full} became {pruned}");
    Ok(())
}

#[test]
fn an_applications_file_that_is_not_made_for_it_keeps_its_size() -> jobmill::Result<()> {
    let (directory, path) = file();
    drop(application(&path));
    let own = directory.path().join("jobs.db");
    let engine = brief(Engine::builder(&own)).inline()?;
    engine.client().enqueue_many((0..1500).map(|n| Echo::job(format!("{n:010000}"))))?;
    engine.drain()?;
    engine.maintain()?;
    assert_eq!(query::<i64>(engine.client(), "PRAGMA auto_vacuum"), 0);
    sound(engine.client());
    Ok(())
}

/// Keeps the warnings of this process.
struct Warnings(Mutex<Vec<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().expect("no panic").push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_long_reader_holds_the_wal_file_not_unnoticed_and_not_for_ever() -> jobmill::Result<()> {
    const BOUND: u64 = 64 << 20;
    log::set_logger(&WARNINGS).map(|()| log::set_max_level(log::LevelFilter::Warn)).expect("the first logger");
    let (_directory, path) = file();
    let engine = Engine::builder(&path).durability(Durability::Normal).handle(other).start()?;
    let wal = path.with_file_name("jobs.db-wal");
    let client = engine.client();
    tamper(client, "CREATE TABLE bulk (bytes BLOB)");
    let write = |count: u64| {
        for _ in 0..count {
            let written = client.write(|tx| -> jobmill::Result<_> {
                Ok(tx.execute("INSERT INTO bulk VALUES (zeroblob(8000000))", []).expect("a row"))
            });
            assert_eq!(written.ok(), Some(1));
        }
    };
    write(12);
    assert!(size(&wal) <= BOUND, "with nobody in the way: {}", size(&wal));

    let reader = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("a reader");
    reader.execute_batch("BEGIN; SELECT count(*) FROM jobmill_job").expect("a snapshot");
    write(12);
    assert!(size(&wal) > BOUND, "{}", size(&wal));
    let says = "bytes and cannot be cut: somebody has been reading for long";
    until("a warning", || WARNINGS.0.lock().expect("no panic").iter().any(|line| line.contains(says)));
    let id = client.enqueue(&Other(7))?.id();
    assert_eq!(client.wait(id, PATIENCE)?.result::<u64>()?, 7, "work goes on");

    reader.execute_batch("COMMIT").expect("the end");
    until("the file is cut", || size(&wal) <= BOUND);
    engine.shutdown(secs(5))?;
    assert_eq!(size(&wal), 0);
    sound(client);
    Ok(())
}
