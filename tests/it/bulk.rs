//! What operators do to many jobs at once, what becomes of deleted ones, and where moved ones run.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Action, Backoff, Cancelled, Client, Context, Deleted, Durability, Engine, ErrorKind, Failure, JobId, NewJob, Order,
    Outcome, Payload, Priority, Query, Status, Unique, UniqueScope, Workers,
};
use serde::{Deserialize, Serialize};

use crate::support::{
    Block, Echo, Other, PATIENCE, block, echo, file, gate, idle, query, raw, refused, secs, sound, until,
};

fn statuses(client: &Client, ids: &[JobId]) -> jobmill::Result<Vec<Status>> {
    ids.iter().map(|id| client.get(*id).map(|job| job.status)).collect()
}

/// Three tracked jobs in each status.
fn in_each_status(t: &Harness) -> jobmill::Result<Vec<JobId>> {
    let jobs = Status::ALL.into_iter().flat_map(|status| [status; 3]).map(|status| NewJob::tracked().status(status));
    Ok(t.client().enqueue_many(jobs)?.iter().map(|enqueued| enqueued.id()).collect())
}

#[test]
fn each_action_changes_what_its_rules_let_it_and_counts_what_they_do_not() -> jobmill::Result<()> {
    use Status::{Cancelled, Completed, Created, Expired, Failed, Pending, Running};
    type Act = fn(&jobmill::Selection) -> jobmill::Result<jobmill::Bulk>;
    // What becomes of each status; none: it is gone.
    let table: [(&str, Act, [Option<Status>; 7], usize); 5] = [
        (
            "cancel",
            |selection| selection.cancel(),
            [Cancelled, Cancelled, Cancelled, Completed, Failed, Cancelled, Expired].map(Some),
            9,
        ),
        (
            "retry",
            |selection| selection.retry(),
            [Created, Pending, Running, Completed, Pending, Pending, Pending].map(Some),
            12,
        ),
        ("delete", |selection| selection.delete(), [None; 7], 0),
        ("set_priority", |selection| selection.set_priority(Priority::High), Status::ALL.map(Some), 15),
        ("set_queue", |selection| selection.set_queue("mail"), Status::ALL.map(Some), 15),
    ];
    for (name, act, expected, refused) in table {
        let t = idle()?;
        let ids = in_each_status(&t)?;
        let bulk = act(&t.client().select(Query::new())?)?;
        assert_eq!((bulk.changed, bulk.refused), (21 - refused, refused), "{name}");
        for (nth, id) in ids.iter().enumerate() {
            let found = t.client().get(*id).ok();
            assert_eq!(found.as_ref().map(|job| job.status), expected[nth / 3], "{name}");
            let moved = found.is_some_and(|job| job.priority == Priority::High || job.queue == "mail");
            assert_eq!(moved, name.starts_with("set") && nth < 6, "{name}");
        }
        sound(t.client());
        // By one status after the other the same happens.
        let t = idle()?;
        let ids = in_each_status(&t)?;
        let (mut changed, mut refused_by_status) = (0, 0);
        for status in Status::ALL.into_iter().rev() {
            let bulk = act(&t.client().select(Query::new().statuses([status]))?)?;
            assert!(bulk.changed + bulk.refused >= 3, "{name} {status}: {bulk:?}");
            changed += bulk.changed;
            refused_by_status += bulk.refused;
        }
        assert!(changed >= 21 - refused && changed + refused_by_status >= 21, "{name}");
        for (nth, id) in ids.iter().enumerate() {
            assert_eq!(t.client().get(*id).ok().map(|job| job.status), expected[nth / 3], "{name}");
        }
        sound(t.client());
    }
    Ok(())
}

#[test]
fn a_selection_is_the_jobs_of_its_query_the_oldest_first_whatever_its_order_and_limit() -> jobmill::Result<()> {
    let t = idle()?;
    let mut ids = Vec::new();
    for n in 0..12 {
        t.advance(secs(1));
        ids.push(t.enqueue(NewJob::tracked().tags(if n % 2 == 0 { vec!["even"] } else { vec![] }).agent("a"))?);
    }
    let query = || Query::new().tags(["even"]).agents(["a"]).limit(1);
    let bulk = t.client().select(query().after(ids[1]).before(ids[10]))?.set_priority(Priority::High)?;
    assert_eq!((bulk.changed, bulk.refused), (4, 0));
    let of = |action: Action| -> jobmill::Result<Vec<JobId>> {
        let mut lines = t.client().audit(None, 1000)?;
        lines.reverse();
        Ok(lines.iter().filter(|line| line.action == action).filter_map(|line| line.job).collect())
    };
    assert_eq!(of(Action::Moved)?, [ids[2], ids[4], ids[6], ids[8]]);
    let from = ids[5].created_at();
    for order in [Order::Descending, Order::Ascending] {
        t.client().acting_as("ann")?.select(query().created_from(from).order(order))?.cancel()?;
    }
    assert_eq!(of(Action::Cancelled)?, [ids[6], ids[8], ids[10]], "cancelled ones are not cancelled once more");
    let lines = t.client().audit(None, 1000)?;
    let cancelled = lines.iter().filter(|line| line.action == Action::Cancelled);
    assert!(cancelled.clone().all(|line| line.actor.as_deref() == Some("ann")) && cancelled.count() == 3);
    let nothing = t.client().select(Query::new().tags(["odd"]))?.delete()?;
    assert_eq!((nothing.changed, nothing.refused), (0, 0));
    for queue in ["", "a\nb", "system"] {
        refused(t.client().select(Query::new())?.set_queue(queue), ErrorKind::Invalid, "queue: ");
        refused(t.client().set_queue(ids[0], queue), ErrorKind::Invalid, "queue: ");
    }
    Ok(())
}

#[test]
fn many_jobs_are_changed_in_slices_of_two_hundred() -> jobmill::Result<()> {
    let t = idle()?;
    t.client().enqueue_many((0..450).map(|_| NewJob::tracked()))?;
    let commits = |work: &dyn Fn() -> jobmill::Result<jobmill::Bulk>| -> jobmill::Result<u64> {
        let before = t.faults().commits();
        let bulk = work()?;
        assert_eq!((bulk.changed, bulk.refused), (450, 0));
        Ok(t.faults().commits() - before)
    };
    let all = t.client().select(Query::new())?;
    assert_eq!(commits(&|| all.set_priority(Priority::High))?, 3);
    assert_eq!(commits(&|| all.set_queue("mail"))?, 3);
    assert_eq!(commits(&|| all.cancel())?, 3);
    assert_eq!(commits(&|| all.retry())?, 3);
    // What was done before one fails stays done, and a second call does the rest.
    t.faults().fail(2, Fault::Before);
    refused(t.client().select(Query::new())?.cancel(), ErrorKind::Storage, "injected");
    t.faults().heal();
    let stats = t.client().stats()?.total;
    assert_eq!((stats.cancelled, stats.pending), (200, 250));
    let rest = t.client().select(Query::new().statuses([Status::Pending]))?.cancel()?;
    assert_eq!(rest.changed, 250);
    assert_eq!(commits(&|| all.delete())?, 3);
    assert_eq!(t.client().stats()?.total.total(), 0);
    sound(t.client());
    Ok(())
}

#[test]
fn others_write_between_two_slices() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let clients = [Client::open_with(&path, Durability::Normal)?, Client::open_with(&path, Durability::Normal)?];
    clients[0].enqueue_many((0..600).map(|_| NewJob::tracked()))?;
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    std::thread::scope(|scope| {
        let other = &clients[1];
        scope.spawn(move || {
            while stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Empty) {
                other.pause("mail").expect("a pause");
            }
        });
        let mut priorities = Priority::ALL.iter().cycle();
        until("somebody writes between two slices", || {
            let newest: i64 = query(&clients[0], "SELECT coalesce(max(id), 0) FROM jobmill_audit");
            let priority = *priorities.next().expect("one after another");
            let moved = clients[0].select(Query::new()).and_then(|all| all.set_priority(priority)).expect("a move");
            assert_eq!(moved.changed, 600);
            // Between the first and the last line of the move there are lines of the other, and never within a slice.
            let conn = clients[0].connection().expect("a connection");
            let mut statement = conn
                .prepare("SELECT action = 'moved' FROM jobmill_audit WHERE id > ?1 ORDER BY id")
                .expect("a statement");
            let lines: Vec<bool> = statement
                .query_map([newest], |row| row.get(0))
                .expect("lines")
                .collect::<jobmill::rusqlite::Result<_>>()
                .expect("lines");
            let (mut done, mut between) = (0, false);
            for moved in lines {
                if moved {
                    done += 1;
                } else {
                    assert_eq!(done % 200, 0, "a slice is whole");
                    between |= done > 0 && done < 600;
                }
            }
            between
        });
        drop(stop);
    });
    sound(&clients[0]);
    Ok(())
}

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
enum Then {
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
fn then(then: Then, ctx: &Context) -> Result<Outcome<()>, Failure> {
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

/// The order in which handlers ran.
#[derive(Clone, Default)]
struct Ran(Arc<Mutex<Vec<String>>>);

impl Ran {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("nobody panics with the lock"))
    }
}

fn noting() -> jobmill::Result<(Harness, Ran)> {
    let ran = Ran::default();
    let on = ran.clone();
    let t = Harness::new(move |builder| {
        builder.durability(Durability::Normal).backoff(Backoff::fixed(secs(10))).state(on.clone()).handle(
            |job: Echo, ctx: &Context| -> Result<(), Failure> {
                ctx.state::<Ran>()?.0.lock().expect("nobody panics with the lock").push(job.0);
                Ok(())
            },
        )
    })?;
    Ok((t, ran))
}

#[test]
fn moved_jobs_run_in_their_new_place_in_the_order_of_their_coming() -> jobmill::Result<()> {
    let (t, ran) = noting()?;
    let mut ids = Vec::new();
    for n in 0..8 {
        let queue = if n % 2 == 0 { "left" } else { "right" };
        ids.push(t.enqueue(Echo::job(n.to_string()).queue(queue).user(if n % 3 == 0 { "u" } else { "v" }))?);
        t.advance(secs(1));
    }
    t.client().pause("left")?;
    t.client().pause("right")?;
    // From one paused queue into another, and from there into one that has not been before.
    assert_eq!(t.client().select(Query::new().queues(["left"]))?.set_queue("right")?.changed, 4);
    assert_eq!(t.drain()?, 0);
    assert_eq!(t.client().select(Query::new().queues(["right"]))?.set_queue("new")?.changed, 8);
    t.client().set_priority(ids[5], Priority::High)?;
    t.client().set_priority(ids[1], Priority::Low)?;
    sound(t.client());
    t.drain()?;
    assert_eq!(ran.take(), ["5", "0", "2", "3", "4", "6", "7", "1"]);
    let stats = t.client().stats()?;
    assert_eq!((stats.queues["new"].completed, stats.queues["left"].total(), stats.queues["right"].total()), (8, 0, 0));
    for id in &ids {
        refused(t.client().set_queue(*id, "left"), ErrorKind::Conflict, &format!("{id} is completed already"));
    }
    sound(t.client());
    Ok(())
}

#[test]
fn moved_jobs_keep_their_time() -> jobmill::Result<()> {
    let (t, ran) = noting()?;
    let delayed = |name: &str, wait: u64| t.enqueue(Echo::job(name).queue("left").delay(secs(wait)));
    let (late, soon, sooner) = (delayed("late", 30)?, delayed("soon", 20)?, delayed("sooner", 10)?);
    let native = t.enqueue(Echo::job("native").queue("right").delay(secs(25)))?;
    t.drain()?;
    // A lane that is known to have nothing to do for long gets a job that is due before.
    t.client().select(Query::new().queues(["left"]))?.set_queue("right")?;
    t.client().set_priority(late, Priority::Critical)?;
    sound(t.client());
    for (seconds, expected) in
        [(9, vec![]), (1, vec!["sooner"]), (10, vec!["soon"]), (5, vec!["native"]), (5, vec!["late"])]
    {
        t.advance(secs(seconds));
        t.drain()?;
        assert_eq!(ran.take(), expected);
    }
    // All due at once: by priority, then by their times.
    let ids = [delayed("a", 30)?, delayed("b", 20)?, delayed("c", 10)?];
    let plain = t.enqueue(Echo::job("plain").queue("left"))?;
    t.client().pause("left")?;
    t.advance(secs(60));
    assert_eq!(t.drain()?, 0);
    t.client().set_priority(ids[0], Priority::High)?;
    t.client().select(Query::new().queues(["left"]))?.set_queue("elsewhere")?;
    t.drain()?;
    assert_eq!(ran.take(), ["a", "plain", "c", "b"]);
    // One that waits for its next attempt is moved as any other.
    for id in [late, soon, sooner, native, plain] {
        assert_eq!(t.client().get(id)?.status, Status::Completed);
    }
    Ok(())
}

#[test]
fn a_job_that_waits_for_its_next_attempt_is_moved_with_its_attempts() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.durability(Durability::Normal).handle(|job: Other, ctx: &Context| -> Result<u64, Failure> {
            if ctx.attempt() == 1 { Err(Failure::retry_after(secs(10), "again")) } else { Ok(job.0) }
        })
    })?;
    let id = t.enqueue(NewJob::of(&Other(1)))?;
    t.drain()?;
    t.client().set_queue(id, "mail")?;
    t.client().set_priority(id, Priority::Low)?;
    t.check(id, "pending, attempt 1 failed: again, due in 10s");
    t.advance(secs(10));
    t.drain()?;
    t.check(id, "completed, attempt 2");
    assert_eq!(t.client().attempts(id)?.len(), 2);
    Ok(())
}

#[test]
fn another_programs_move_is_noticed_by_an_engine_that_rests() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).durability(Durability::Normal).handle(echo).start()?;
    let stranger = Client::open_with(&path, Durability::Normal)?;
    stranger.pause("held")?;
    let jobs = (0..5).map(|n| Echo::job(n.to_string()).queue("held"));
    let ids: Vec<JobId> = stranger.enqueue_many(jobs)?.iter().map(|enqueued| enqueued.id()).collect();
    let tracked = stranger.enqueue(NewJob::tracked().queue("held"))?.id();
    assert_eq!(stranger.select(Query::new().queues(["held"]))?.set_queue("open")?.changed, 6);
    for id in &ids {
        assert_eq!(engine.client().wait(*id, PATIENCE)?.queue, "open");
    }
    assert_eq!(stranger.get(tracked)?.status, Status::Created);
    sound(&stranger);
    Ok(())
}

#[test]
fn a_running_job_is_not_moved() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).durability(Durability::Normal).state(gate).handle(block).start()?;
    let id = engine.client().enqueue(Block::job("x"))?.id();
    keeper.next();
    let says = format!("{id} is running and cannot be moved");
    refused(engine.client().set_queue(id, "mail"), ErrorKind::Conflict, &says);
    refused(engine.client().set_priority(id, Priority::High), ErrorKind::Conflict, &says);
    let bulk = engine.client().select(Query::new())?.set_queue("mail")?;
    assert_eq!((bulk.changed, bulk.refused), (0, 1));
    keeper.release();
    assert_eq!(engine.client().wait(id, PATIENCE)?.queue, "default");
    Ok(())
}

/// A key is compared within the queue into which its job was enqueued, wherever the job is moved.
#[test]
fn a_moved_job_keeps_its_key_as_it_was_given() -> jobmill::Result<()> {
    let t = idle()?;
    let keyed = |queue: &'static str| {
        Echo::job("x").queue(queue).delay(secs(60)).unique(Unique::key("k").scope(UniqueScope::Queue))
    };
    let first = t.enqueue(keyed("left"))?;
    t.client().set_queue(first, "right")?;
    assert_eq!(t.enqueue(keyed("left"))?, first);
    let second = t.client().enqueue(keyed("right"))?;
    assert!(second.is_new());
    // Moves never fail for a key, and each is freed when its own job ends.
    t.client().set_queue(second.id(), "left")?;
    t.client().cancel(first)?;
    assert_eq!(t.enqueue(keyed("right"))?, second.id());
    let third = t.client().enqueue(keyed("left"))?;
    assert!(third.is_new());
    refused(t.client().retry(first), ErrorKind::Conflict, &format!("{first} cannot be retried, for {}", third.id()));
    sound(t.client());
    Ok(())
}

#[test]
fn a_retry_of_many_counts_those_whose_keys_are_taken() -> jobmill::Result<()> {
    let t = idle()?;
    let keyed = |n: usize| Echo::job("x").unique(Unique::key(format!("key {}", n % 5)));
    let mut ids = Vec::new();
    for n in 0..15 {
        let id = t.enqueue(keyed(n))?;
        t.client().cancel(id)?;
        ids.push(id);
    }
    let bulk = t.client().select(Query::new())?.retry()?;
    assert_eq!((bulk.changed, bulk.refused), (5, 10), "the first of each key gets it");
    assert_eq!(statuses(t.client(), &ids[..6])?, [&[Status::Pending; 5][..], &[Status::Cancelled]].concat());
    sound(t.client());
    Ok(())
}

#[test]
fn running_jobs_of_a_selection_are_asked_to_stop() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (begun, begins) = crossbeam_channel::unbounded::<JobId>();
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .workers(Workers::new(3))
        .state(begun)
        .handle(then)
        .start()?;
    let ids: Vec<JobId> = engine
        .client()
        .enqueue_many((0..5).map(|_| NewJob::of(&Then::Stops)))?
        .iter()
        .map(|enqueued| enqueued.id())
        .collect();
    for _ in 0..3 {
        begins.recv_timeout(PATIENCE).expect("three begin");
    }
    let stranger = Client::open_with(&path, Durability::Normal)?;
    let bulk = stranger.select(Query::new())?.cancel()?;
    assert_eq!((bulk.changed, bulk.refused), (5, 0));
    for id in &ids {
        assert_eq!(engine.client().wait(*id, PATIENCE)?.status, Status::Cancelled);
        assert_eq!(stranger.cancel(*id)?, Cancelled::Already);
    }
    sound(&stranger);
    Ok(())
}

/// A selection went on to jobs that came after it had begun, if they came in the microsecond in which it began or if the
/// clock was set back: here the callbacks of the jobs that it cancelled.
#[test]
fn a_job_that_comes_after_the_beginning_is_not_touched() -> jobmill::Result<()> {
    let t = idle()?;
    t.client().enqueue_many((0..201).map(|_| NewJob::tracked().callback_url("https://example.com/")))?;
    t.advance(secs(1));
    let bulk = t.client().select(Query::new())?.cancel()?;
    assert_eq!((bulk.changed, bulk.refused), (201, 0));
    let stats = t.client().stats()?.total;
    assert_eq!((stats.cancelled, stats.pending), (201, 201), "each has its callback still");
    // With a clock that has been set back all that comes later has been there before, as its time tells.
    t.clock().jump(t.client().list(Query::new().limit(1))?.jobs[0].created_at().saturating_sub(secs(100)));
    let bulk = t.client().select(Query::new().tracked(true))?.retry()?;
    assert_eq!(bulk.changed, 201);
    Ok(())
}

/// A job that was made pending once more between the look at the file and the turn was deleted as one that had failed.
#[test]
fn a_job_that_has_changed_meanwhile_and_passes_no_more_is_not_touched() -> jobmill::Result<()> {
    let t = idle()?;
    let failed = || NewJob::tracked().status(Status::Failed);
    until("a selection looks before a change is written and writes after it", || {
        let (keeps, gone) = (t.enqueue(failed()).expect("a job"), t.enqueue(failed()).expect("a job"));
        let mut conn = t.client().connection().expect("a connection");
        let tx = conn
            .transaction_with_behavior(jobmill::rusqlite::TransactionBehavior::Immediate)
            .expect("the lock of the writer");
        // What a retry by another program would write.
        let job = raw(keeps);
        tx.execute_batch(&format!(
            "UPDATE jobmill_job SET state = 1, completed_at = NULL WHERE id = {job};
             UPDATE jobmill_lane SET failed = failed - 1, pending = pending + 1
             WHERE id = (SELECT lane FROM jobmill_job WHERE id = {job})"
        ))
        .expect("a change");
        let selection = t.client().select(Query::new().statuses([Status::Failed])).expect("a selection");
        let bulk = std::thread::scope(|scope| {
            let deletes = scope.spawn(|| selection.delete());
            // It looks, and waits for the lock, if it comes so far within this time.
            for _ in 0..50 {
                t.client().stats().expect("the counts");
            }
            tx.commit().expect("a commit");
            deletes.join().expect("no panic").expect("a deletion")
        });
        assert_eq!(bulk.changed, 1);
        assert_eq!(statuses(t.client(), &[keeps]).expect("it is there"), [Status::Pending]);
        refused(t.client().get(gone), ErrorKind::NotFound, "there is no job");
        bulk.refused == 1
    });
    sound(t.client());
    Ok(())
}

#[test]
fn a_selection_by_any_filter_changes_what_passes_it() -> jobmill::Result<()> {
    let t = idle()?;
    let other = Client::open_with(t.path(), Durability::Normal)?;
    type Filter = fn(Query) -> Query;
    let filters: [Filter; 9] = [
        |query| query.user("u"),
        |query| query.agents(["a", "b"]),
        |query| query.tags(["x", "y"]),
        |query| query.source_id("7"),
        |query| query.stop_reason("end_turn"),
        |query| query.queues(["mail", "default"]).priorities([Priority::High]),
        |query| query.background(true).tracked(true).job_types([jobmill::JobType::Run]),
        |query| query.statuses([Status::Pending, Status::Running]),
        |query| query.user("u").agents(["a"]).tags(["x"]).source_id("7").stop_reason("end_turn").background(true),
    ];
    let passes = || {
        NewJob::tracked()
            .status(Status::Pending)
            .user("u")
            .agent("a")
            .tags(["x", "y", "z"])
            .metadata(&serde_json::json!({"source_id": 7}))
            .stop_reason("end_turn")
            .queue("mail")
            .priority(Priority::High)
            .background(true)
            .job_type(jobmill::JobType::Run)
    };
    // What passes is changed in its turn as it was found: delayed or not, of whichever program.
    for (nth, filter) in filters.into_iter().enumerate() {
        let job = if nth % 2 == 0 { passes().delay(secs(60)) } else { passes() };
        let id = other.enqueue(job)?.id();
        other.enqueue(NewJob::tracked().user("u"))?;
        let bulk = t.client().select(filter(Query::new()).before(id).after("job-0000000000002".parse()?))?.delete()?;
        assert_eq!((bulk.changed, bulk.refused), (0, 0));
        let bulk = t.client().select(filter(Query::new()))?.set_priority(Priority::Critical)?;
        let expected = if nth == 0 { 2 } else { 1 };
        assert_eq!((bulk.changed, bulk.refused), (expected, 0), "filter {nth}");
        assert_eq!(other.get(id)?.priority, Priority::Critical, "filter {nth}");
        t.client().select(Query::new())?.delete()?;
    }
    sound(t.client());
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
