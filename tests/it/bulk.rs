//! What operators do to many jobs at once.

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Action, Cancelled, Client, Durability, Engine, ErrorKind, JobId, NewJob, Order, Priority, Query, Status, Unique,
    Workers,
};

use crate::delete::{Then, then};
use crate::support::{Echo, PATIENCE, file, idle, query, raw, refused, secs, sound, until};

pub(crate) fn statuses(client: &Client, ids: &[JobId]) -> jobmill::Result<Vec<Status>> {
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
