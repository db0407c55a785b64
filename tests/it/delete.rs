//! What becomes of deleted jobs: nothing of them is left, and one that runs is asked to stop first.

use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Action, Client, Context, Deleted, Durability, Engine, ErrorKind, Failure, JobId, NewJob, Outcome, Payload, Query,
    Status, Unique, Workers,
};
use serde::{Deserialize, Serialize};

use crate::bulk::statuses;
use crate::support::{Block, Echo, PATIENCE, block, echo, file, gate, idle, raw, refused, secs, sound, until};

/// What stands in any table of ours beside the audit about a job.
fn traces(client: &Client, id: JobId) -> Vec<String> {
    let conn = client.connection().expect("a connection");
    let mut tables = conn
        .prepare(
            "SELECT name FROM sqlite_schema AS t WHERE type = 'table' AND name LIKE 'jobmill\\_%' ESCAPE '\\'
                 AND name <> 'jobmill_audit' AND EXISTS (SELECT 1 FROM pragma_table_info(t.name) WHERE name = 'job')",
        )
        .expect("the tables");
    let names: Vec<String> =
        tables.query_map([], |row| row.get(0)).expect("names").collect::<Result<_, _>>().expect("names");
    assert!(names.len() >= 9, "{names:?}");
    let there = |table: &String| {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE job = {})", raw(id));
        conn.query_row(&sql, [], |row| row.get::<_, bool>(0)).expect("an answer")
    };
    let own = conn
        .query_row("SELECT EXISTS (SELECT 1 FROM jobmill_job WHERE id = ?1)", [raw(id)], |row| row.get::<_, bool>(0));
    let mut traces: Vec<String> = names.into_iter().filter(there).collect();
    traces.extend(own.expect("an answer").then(|| "jobmill_job".to_owned()));
    traces
}

/// A job that leaves something in each table there is, in its first attempt, and whose second attempt ends it.
#[derive(Serialize, Deserialize)]
struct Messy(String);

impl Payload for Messy {
    const KIND: &'static str = "messy";
}

fn messy(job: Messy, ctx: &Context) -> Result<Outcome<()>, Failure> {
    ctx.log("a line");
    ctx.progress(1, Some(2));
    ctx.save(&job.0.len())?;
    if ctx.attempt() == 1 { Err(Failure::retry_after(secs(10), "again")) } else { Ok(Outcome::Done(())) }
}

#[test]
fn a_deleted_job_leaves_nothing_but_its_audit_and_frees_its_key() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.durability(Durability::Normal).handle(messy))?;
    let job = || {
        NewJob::of(&Messy("x".repeat(5000)))
            .unique(Unique::key("k").while_in(Status::ALL))
            .tags(["a", "b"])
            .user("u")
            .metadata(&serde_json::json!({"source_id": "s"}))
    };
    for attempts in 0..=2 {
        let id = t.enqueue(job())?;
        for _ in 0..attempts {
            t.drain()?;
            t.advance(secs(10));
        }
        assert!(traces(t.client(), id).len() >= if attempts == 0 { 4 } else { 7 }, "{:?}", traces(t.client(), id));
        assert_eq!(t.enqueue(job())?, id, "it holds its key in every status");
        assert_eq!(t.client().delete(id)?, Deleted::Now);
        assert_eq!(traces(t.client(), id), Vec::<String>::new());
        assert!(t.client().list(Query::new().tags(["a"]))?.jobs.is_empty());
        assert_eq!(t.client().history(id)?.last().map(|change| change.action), Some(Action::Deleted));
        sound(t.client());
    }
    // A key that another job has taken over since stays with that.
    let keyed = || Echo::job("x").unique(Unique::key("other"));
    let first = t.enqueue(keyed())?;
    t.client().cancel(first)?;
    let second = t.enqueue(keyed())?;
    t.client().delete(first)?;
    assert_eq!(t.enqueue(keyed())?, second);
    Ok(())
}

#[test]
fn the_id_of_a_deleted_job_is_never_given_again() -> jobmill::Result<()> {
    let mut t = idle()?;
    let mut newest = t.enqueue(NewJob::tracked())?;
    for round in 0..12 {
        t.client().delete(newest)?;
        assert_eq!(t.client().stats()?.total.total(), 0);
        match round % 4 {
            1 => t.crash()?,
            2 => t.restart()?,
            _ => {}
        }
        // The clock stands still or falls back, so that nothing but memory keeps the ids apart.
        if round % 5 == 4 {
            t.clock().jump(newest.created_at().saturating_sub(secs(100)));
        }
        let next = if round % 3 == 0 {
            let mut conn = t.client().connection()?;
            let tx = conn.transaction().expect("a transaction");
            let id = t.client().enqueue_in(&tx, NewJob::tracked())?.id();
            tx.commit().expect("a commit");
            id
        } else if round % 3 == 1 {
            Client::open_with(t.path(), Durability::Normal)?.enqueue(NewJob::tracked())?.id()
        } else {
            t.enqueue(NewJob::tracked())?
        };
        assert!(next > newest, "{next} comes after {newest}");
        newest = next;
    }
    Ok(())
}

/// How a handler goes on whose job is deleted while it runs.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) enum Then {
    Stops,
    Completes,
    Fails,
    FailsForGood,
    Snoozes,
    Cancels,
    Panics,
    CompletesInATurn,
    CompletesInItsOwnTransaction,
}

impl Payload for Then {
    const KIND: &'static str = "then";
}

const THENS: [Then; 9] = [
    Then::Stops,
    Then::Completes,
    Then::Fails,
    Then::FailsForGood,
    Then::Snoozes,
    Then::Cancels,
    Then::Panics,
    Then::CompletesInATurn,
    Then::CompletesInItsOwnTransaction,
];

/// Runs until somebody asks it to stop.
pub(crate) fn then(then: Then, ctx: &Context) -> Result<Outcome<()>, Failure> {
    let begun = ctx.state::<crossbeam_channel::Sender<JobId>>()?;
    begun.send(ctx.id()).expect("somebody listens");
    until("the handler is asked to stop", || ctx.is_cancelled());
    match then {
        Then::Stops => ctx.check()?,
        Then::Completes => {}
        Then::Fails => return Err(Failure::retry("no luck")),
        Then::FailsForGood => return Err(Failure::fatal("never")),
        Then::Snoozes => return Ok(Outcome::Snooze(Duration::ZERO)),
        Then::Cancels => return Ok(Outcome::Cancel("no".to_owned())),
        Then::Panics => panic!("oh no"),
        Then::CompletesInATurn => ctx.complete(|_| -> Result<(), Failure> { Ok(()) })?,
        Then::CompletesInItsOwnTransaction => {
            let mut conn = ctx.client().connection()?;
            let tx = conn.transaction()?;
            ctx.complete_in(&tx, &())?;
            tx.commit()?;
        }
    }
    Ok(Outcome::Done(()))
}

#[test]
fn a_running_job_that_is_deleted_is_asked_to_stop_and_goes_however_it_ends() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (begun, begins) = crossbeam_channel::unbounded::<JobId>();
    let engine = Engine::builder(&path).durability(Durability::Normal).state(begun).handle(then).start()?;
    let stranger = Client::open_with(&path, Durability::Normal)?;
    for (nth, how) in THENS.iter().enumerate() {
        let job = || NewJob::of(how).unique(Unique::key(format!("{how:?}"))).tags(["x"]).user("u");
        let id = engine.client().enqueue(job())?.id();
        assert_eq!(begins.recv_timeout(PATIENCE), Ok(id));
        // By its own client, and by another program.
        let deletes = if nth % 2 == 0 { engine.client() } else { &stranger };
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| engine.client().wait(id, PATIENCE));
            assert_eq!(deletes.delete(id).ok(), Some(Deleted::Requested));
            // Who waits for its end learns of that, or that it is gone.
            match waiter.join().expect("no panic") {
                Ok(job) => assert!(job.status.is_terminal()),
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            }
        });
        until("the job is gone", || stranger.get(id).is_err_and(|error| error.kind() == ErrorKind::NotFound));
        assert_eq!(traces(&stranger, id), Vec::<String>::new(), "{how:?}");
        refused(engine.client().delete(id), ErrorKind::NotFound, "there is no job");
        let again = stranger.enqueue(job().delay(secs(60)))?;
        assert!(again.is_new(), "{how:?}: its key is free");
        assert_eq!(stranger.delete(again.id())?, Deleted::Now);
        let told = stranger.history(id)?;
        let actions: Vec<Action> = told.iter().map(|change| change.action).collect();
        assert_eq!((actions.first(), actions.last()), (Some(&Action::DeleteRequested), Some(&Action::Deleted)));
    }
    // As part of a selection that has waiting ones too.
    let ids: Vec<JobId> = [Then::Stops, Then::Completes]
        .iter()
        .map(|how| engine.client().enqueue(NewJob::of(how)).map(|enqueued| enqueued.id()))
        .collect::<jobmill::Result<_>>()?;
    for _ in &ids {
        begins.recv_timeout(PATIENCE).expect("both begin");
    }
    engine.client().enqueue(NewJob::of(&Then::Stops).delay(secs(60)))?;
    let bulk = stranger.select(Query::new())?.delete()?;
    assert_eq!((bulk.changed, bulk.refused), (3, 0));
    until("all are gone", || stranger.stats().is_ok_and(|stats| stats.total.total() == 0));
    sound(&stranger);
    engine.shutdown(PATIENCE)?;
    Ok(())
}

#[test]
fn a_running_job_that_is_deleted_goes_though_its_process_dies_first() -> jobmill::Result<()> {
    for by_another_program in [false, true] {
        let mut t = Harness::new(move |builder| {
            builder.durability(Durability::Normal).handle(move |_: Echo, ctx: &Context| -> Result<(), Failure> {
                if by_another_program {
                    let stranger = Client::open_with(ctx.client().path(), Durability::Normal)?;
                    assert_eq!(stranger.delete(ctx.id())?, Deleted::Requested);
                } else {
                    assert_eq!(ctx.client().delete(ctx.id())?, Deleted::Requested);
                }
                Ok(())
            })
        })?;
        let id = t.enqueue(Echo::job("x").unique(Unique::key("k")).user("u"))?;
        // The claim and the wish are written, and the end is not.
        t.faults().fail_from(if by_another_program { 2 } else { 3 }, Fault::Before);
        assert!(t.drain().is_err());
        t.faults().heal();
        assert_eq!(t.client().get(id)?.status, Status::Running);
        t.crash()?;
        refused(t.client().get(id), ErrorKind::NotFound, "there is no job");
        assert_eq!(traces(t.client(), id), Vec::<String>::new());
        assert_eq!(t.drain()?, 0);
        assert_eq!(t.client().stats()?.total.total(), 0);
        sound(t.client());
    }
    Ok(())
}

#[test]
fn a_job_of_a_dead_engine_is_deleted_by_the_next_one() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| builder.durability(Durability::Normal).handle(echo))?;
    let id = t.enqueue(Echo::job("x"))?;
    t.faults().fail_from(2, Fault::Before);
    assert!(t.drain().is_err());
    t.faults().heal();
    // Nobody runs it any more, and nobody has found out yet.
    let stranger = Client::open_with(t.path(), Durability::Normal)?;
    assert_eq!(stranger.delete(id)?, Deleted::Requested);
    assert_eq!(stranger.delete(id)?, Deleted::Requested);
    assert_eq!(stranger.get(id)?.status, Status::Running);
    t.crash()?;
    refused(stranger.get(id), ErrorKind::NotFound, "there is no job");
    assert_eq!(traces(&stranger, id), Vec::<String>::new());
    sound(&stranger);
    Ok(())
}

#[test]
fn a_shutdown_that_cannot_wait_deletes_what_was_to_be_deleted() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .workers(Workers::new(1))
        .state(gate)
        .handle(block)
        .start()?;
    let ids: Vec<JobId> = engine
        .client()
        .enqueue_many((0..3).map(|n| Block::job(n.to_string())))?
        .iter()
        .map(|enqueued| enqueued.id())
        .collect();
    keeper.next();
    assert_eq!(engine.client().delete(ids[0])?, Deleted::Requested);
    engine.shutdown(Duration::ZERO)?;
    drop(keeper);
    let stranger = Client::open_with(&path, Durability::Normal)?;
    refused(stranger.get(ids[0]), ErrorKind::NotFound, "there is no job");
    assert_eq!(statuses(&stranger, &ids[1..])?, [Status::Pending; 2]);
    assert_eq!(traces(&stranger, ids[0]), Vec::<String>::new());
    sound(&stranger);
    Ok(())
}

/// The engine went on looking for a job that was to be deleted after its end, and that somebody had deleted meanwhile: it
/// took a turn for it five times a second.
#[test]
fn who_is_deleted_twice_is_looked_for_no_more() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.durability(Durability::Normal).handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
            assert_eq!(ctx.client().delete(ctx.id())?, Deleted::Requested);
            let mut conn = ctx.client().connection()?;
            let tx = conn.transaction()?;
            ctx.complete_in(&tx, &())?;
            tx.commit()?;
            assert_eq!(ctx.client().delete(ctx.id())?, Deleted::Now);
            Ok(())
        })
    })?;
    let id = t.enqueue(Echo::job("x"))?;
    t.drain()?;
    refused(t.client().get(id), ErrorKind::NotFound, "there is no job");
    assert_eq!(traces(t.client(), id), Vec::<String>::new());
    let commits = t.faults().commits();
    t.drain()?;
    t.drain()?;
    assert_eq!(t.faults().commits(), commits);
    sound(t.client());
    Ok(())
}
