//! Workflows are cancelled and sent again as a whole, waited for, and forgotten in the end.

use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{
    Cancelled, Context, Durability, Engine, ErrorKind, Failure, NewJob, NewWorkflow, OnFailure, Payload, Query, Reason,
    Retention, Status, Unique, Workers, WorkflowId,
};
use serde::{Deserialize, Serialize};

use crate::support::work::{Do, Record, harness, harness_with, run, standing};
use crate::support::{Block, PATIENCE, block, file, gate, now, query, refused, secs, sound};

fn start(t: &Harness, workflow: NewWorkflow<'_>) -> WorkflowId {
    t.client().start_workflow(workflow).expect("a workflow that starts")
}

#[test]
fn a_cancelled_workflow_begins_nothing_more_and_tells_it() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let workflow = NewWorkflow::new("large")
        .job("first", Do::job("first").delay(secs(10)))
        .jobs("parts", (0..1700).map(|n| Do::job(n.to_string())))
        .after_with("first", OnFailure::Continue)
        .job("last", Do::job("last"))
        .after_with("parts", OnFailure::Continue)
        .on_success(Do::job("success"))
        .on_failure(Do::job("failure"))
        .on_end(Do::job("end"));
    let id = start(&t, workflow);
    assert_eq!(t.client().acting_as("eve")?.cancel_workflow(id)?, Cancelled::Now);
    assert_eq!(t.client().cancel_workflow(id)?, Cancelled::Already);
    t.advance(secs(10));
    t.drain()?;
    assert_eq!(
        standing(&t, id),
        "cancelled: first cancelled, parts cancelled, last cancelled, on_success cancelled, on_failure completed, \
         on_end completed"
    );
    assert_eq!(record.take(), ["failure", "end"]);
    let workflow = t.client().workflow(id)?;
    assert_eq!(workflow.jobs.cancelled, 1702);
    assert!(workflow.cancel_requested_at.is_some());
    let history = t.client().history(workflow.job("first").unwrap())?;
    assert!(history.iter().any(|entry| entry.actor.as_deref() == Some("eve")), "{history:?}");
    let done = start(&t, NewWorkflow::new("done").job("a", Do::job("a")));
    t.drain()?;
    refused(t.client().cancel_workflow(done), ErrorKind::Conflict, &format!("{done} is completed and cannot"));
    sound(t.client());
    Ok(())
}

/// The callback that was not called for is cancelled. It was taken for something that could be sent again: the retry said
/// yes, opened the workflow, and told everybody that it ran and had completed once more.
#[test]
fn a_workflow_of_which_all_has_completed_is_not_retried_for_its_callbacks() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let workflow =
        NewWorkflow::new("done").job("a", Do::job("a")).on_failure(Do::job("failure")).on_end(Do::job("end"));
    let id = start(&t, workflow);
    t.drain()?;
    let all = "completed: a completed, on_failure cancelled, on_end completed";
    assert_eq!(standing(&t, id), all);
    let events = t.client().subscribe(10)?;
    refused(t.client().retry_workflow(id), ErrorKind::Conflict, &format!("{id} is completed and cannot be retried"));
    t.drain()?;
    assert_eq!(standing(&t, id), all);
    assert_eq!(record.take(), ["a", "end"]);
    assert!(events.is_empty());
    sound(t.client());
    Ok(())
}

#[test]
fn a_running_job_is_asked_to_stop_and_adds_nothing_to_a_cancelled_workflow() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Busy(String);
    impl Payload for Busy {
        const KIND: &'static str = "busy";
    }
    let (t, record) = harness_with(|builder| {
        builder.handle(|_: Busy, ctx: &Context| -> Result<(), Failure> {
            let id = ctx.workflow()?.expect("a workflow");
            assert_eq!(ctx.client().cancel_workflow(id)?, Cancelled::Requested);
            refused(ctx.enqueue_in_workflow([Do::job("late")]), ErrorKind::Conflict, "the stage has ended, or");
            ctx.check()
        })
    })?;
    let id = start(&t, NewWorkflow::new("w").job("busy", &Busy("b".into())).job("then", Do::job("then")).after("busy"));
    t.drain()?;
    assert_eq!(standing(&t, id), "cancelled: busy cancelled, then cancelled");
    assert_eq!(record.take(), Vec::<String>::new());
    sound(t.client());
    Ok(())
}

#[test]
fn a_retry_runs_what_did_not_end_well_in_its_order_and_nothing_else() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let workflow = NewWorkflow::new("again")
        .job("top", Do::job("top"))
        .job("left", Do::job("left"))
        .after("top")
        .job("right", Do::job("right"))
        .after("top")
        .jobs("parts", (0..1200).map(|n| Do::job(format!("p{n}"))))
        .after("right")
        .job("lax", Do::job("lax"))
        .after_with("left", OnFailure::Continue)
        .job("bottom", Do::job("bottom"))
        .after("left")
        .after("parts")
        .on_success(Do::job("success"))
        .on_failure(Do::job("failure"));
    record.set_failing(["left", "p7"]);
    let id = start(&t, workflow);
    refused(t.client().retry_workflow(id), ErrorKind::Conflict, &format!("{id} is running and cannot be retried"));
    t.drain()?;
    assert_eq!(
        standing(&t, id),
        "failed: top completed, left failed, right completed, parts failed, lax completed, bottom cancelled, \
         on_success cancelled, on_failure completed"
    );
    record.take();
    record.set_failing(["left"]);
    t.client().retry_workflow(id)?;
    assert!(standing(&t, id).starts_with("running: top completed, left pending, right completed, parts running"));
    t.drain()?;
    let mut ran = record.take();
    ran.sort();
    assert_eq!(ran, ["left", "p7"]);
    assert!(standing(&t, id).ends_with("bottom cancelled, on_success cancelled, on_failure completed"));
    record.set_failing([]);
    t.client().retry_workflow(id)?;
    t.drain()?;
    assert_eq!(record.take(), ["left", "bottom", "success"]);
    assert!(standing(&t, id).starts_with("completed: "), "{}", standing(&t, id));
    refused(t.client().retry_workflow(id), ErrorKind::Conflict, &format!("{id} is completed"));
    sound(t.client());
    Ok(())
}

#[test]
fn a_running_workflow_is_sent_again_once_it_has_ended_and_a_job_of_it_at_once() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["bad"]);
    let late = Do::job("late").delay(secs(10));
    let id = start(&t, NewWorkflow::new("w").job("bad", Do::job("bad")).job("late", late));
    t.drain()?;
    let running = format!("{id} is running and cannot be retried");
    refused(t.client().retry_workflow(id), ErrorKind::Conflict, &running);
    let bad = t.client().workflow(id)?.job("bad").expect("a job");
    t.client().retry(bad)?;
    t.drain()?;
    assert_eq!(record.take(), ["bad", "bad"]);
    refused(t.client().retry_workflow(id), ErrorKind::Conflict, &running);
    record.set_failing([]);
    assert_eq!(t.client().cancel_workflow(id)?, Cancelled::Now);
    t.client().retry_workflow(id)?;
    t.drain()?;
    assert_eq!(record.take(), ["bad", "late"]);
    assert_eq!(standing(&t, id), "completed: bad completed, late completed");
    sound(t.client());
    Ok(())
}

#[test]
fn a_stage_that_was_refused_waits_again_after_a_retry() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["first"]);
    let workflow = NewWorkflow::new("w")
        .job("first", Do::job("first"))
        .jobs("parts", ["a", "b"].map(Do::job))
        .after("first")
        .jobs("none", std::iter::empty::<NewJob>())
        .after("parts")
        .job("last", Do::job("last"))
        .after("none");
    let id = start(&t, workflow);
    t.drain()?;
    assert_eq!(standing(&t, id), "failed: first failed, parts cancelled, none cancelled, last cancelled");
    record.set_failing([]);
    record.take();
    t.client().retry_workflow(id)?;
    assert_eq!(standing(&t, id), "running: first pending, parts created, none created, last created");
    let last = t.client().workflow(id)?.job("last").unwrap();
    let reasons = t.client().explain(last)?.reasons;
    assert_eq!(reasons, [Reason::WaitsFor { id: None, name: Some("none".into()), status: Status::Created }]);
    t.drain()?;
    assert_eq!(record.take(), ["first", "a", "b", "last"]);
    assert_eq!(standing(&t, id), "completed: first completed, parts completed, none completed, last completed");
    sound(t.client());
    Ok(())
}

#[test]
fn a_cancelled_workflow_can_be_sent_again() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let id =
        start(&t, NewWorkflow::chain("c", ["a", "b", "c"].map(|name| (name, Do::job(name)))).on_end(Do::job("end")));
    t.client().cancel_workflow(id)?;
    t.drain()?;
    assert_eq!(record.take(), ["end"]);
    t.client().retry_workflow(id)?;
    t.drain()?;
    assert_eq!(record.take(), ["a", "b", "c"], "a callback that has completed is not run again");
    assert_eq!(t.client().workflow(id)?.cancel_requested_at, None);
    sound(t.client());
    Ok(())
}

/// It said that it had completed, and was closed to those who were to fill it once all was sent again.
#[test]
fn a_stage_without_jobs_that_has_not_begun_is_cancelled_with_its_workflow_and_sent_again_with_it() -> jobmill::Result<()>
{
    #[derive(Serialize, Deserialize)]
    struct Split;
    impl Payload for Split {
        const KIND: &'static str = "split";
    }
    let (t, record) = harness_with(|builder| {
        builder.handle(|_: Split, ctx: &Context| -> Result<(), Failure> {
            ctx.enqueue_in_stage("parts", ["x", "y"].map(Do::job))?;
            Ok(())
        })
    })?;
    let workflow = NewWorkflow::new("w")
        .job("split", NewJob::of(&Split).delay(secs(10)))
        .jobs("parts", std::iter::empty::<NewJob>())
        .after("split")
        .job("join", Do::job("join"))
        .after("parts");
    let id = start(&t, workflow);
    t.client().cancel_workflow(id)?;
    t.drain()?;
    assert_eq!(standing(&t, id), "cancelled: split cancelled, parts cancelled, join cancelled");
    t.client().retry_workflow(id)?;
    assert_eq!(standing(&t, id), "running: split pending, parts created, join created");
    t.drain()?;
    assert_eq!(record.take(), ["x", "y", "join"]);
    assert_eq!(standing(&t, id), "completed: split completed, parts completed, join completed");
    sound(t.client());
    Ok(())
}

/// Each was sent again as if it followed nobody, so that it ran beside what it followed, and without what that would give.
#[test]
fn jobs_that_are_sent_again_one_by_one_wait_for_those_that_they_follow() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["a"]);
    let id = start(
        &t,
        NewWorkflow::new("w")
            .job("a", Do::job("a"))
            .job("b", NewJob::from_previous::<Do>())
            .after("a")
            .jobs("parts", [Do::job("p"), Do::job("bad")])
            .job("c", Do::job("c"))
            .after("b")
            .after("parts"),
    );
    let first = t.enqueue(Do::job("a"))?;
    let then = t.enqueue(Do::job("then").after(first))?;
    let last = t.enqueue(Do::job("last").after_with(then, OnFailure::Fail).after_with(first, OnFailure::Continue))?;
    t.drain()?;
    assert_eq!(standing(&t, id), "failed: a failed, b cancelled, parts completed, c cancelled");
    record.set_failing([]);
    record.take();
    let workflow = t.client().workflow(id)?;
    for name in ["a", "b", "c"] {
        t.client().retry(workflow.job(name).unwrap())?;
    }
    assert_eq!(standing(&t, id), "running: a pending, b created, parts completed, c created");
    let ended = Query::new().statuses([Status::Failed, Status::Cancelled]);
    assert_eq!(t.client().select(ended)?.retry()?.changed, 3);
    t.check(then, "created");
    t.check(last, "created");
    t.drain()?;
    assert_eq!(standing(&t, id), "completed: a completed, b completed, parts completed, c completed");
    assert_eq!(record.take(), ["a", "a", "A", "then", "c", "last"]);
    // If it fails again, so do they.
    record.set_failing(["a"]);
    let first = t.enqueue(Do::job("a"))?;
    let then = t.enqueue(Do::job("then").after_with(first, OnFailure::Fail))?;
    t.drain()?;
    t.client().retry(first)?;
    t.client().retry(then)?;
    t.drain()?;
    assert_eq!(t.client().get(then)?.status, Status::Failed);
    // One that was sent again alone runs whatever it follows.
    t.client().retry(then)?;
    t.drain()?;
    t.check(then, "completed, attempt 1");
    sound(t.client());
    Ok(())
}

#[test]
fn what_cannot_be_sent_again_keeps_nobody_waiting() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["keyed"]);
    let workflow = NewWorkflow::new("w")
        .job("keyed", Do::job("keyed").unique(Unique::key("k")))
        .job("then", Do::job("then"))
        .after("keyed");
    let id = start(&t, workflow);
    t.drain()?;
    let holder = t.enqueue(Do::job("holder").unique(Unique::key("k")).delay(secs(10)))?;
    t.client().retry_workflow(id)?;
    t.drain()?;
    assert_eq!(standing(&t, id), "failed: keyed failed, then cancelled");
    t.client().delete(holder)?;
    record.set_failing([]);
    t.client().retry_workflow(id)?;
    t.drain()?;
    assert_eq!(standing(&t, id), "completed: keyed completed, then completed");
    sound(t.client());
    Ok(())
}

#[test]
fn single_jobs_of_a_workflow_are_retried_cancelled_and_deleted_and_it_keeps_count() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["a"]);
    let workflow = NewWorkflow::new("w")
        .job("a", Do::job("a"))
        .jobs("parts", (0..5).map(|n| Do::job(n.to_string()).delay(secs(10))))
        .job("join", Do::job("join"))
        .after("parts");
    let id = start(&t, workflow);
    t.drain()?;
    let parts = t.client().list(Query::new().workflow(id).statuses([Status::Pending]))?.jobs;
    t.client().cancel(parts[0].id)?;
    t.client().delete(parts[1].id)?;
    let a = t.client().workflow(id)?.job("a").unwrap();
    record.set_failing([]);
    t.client().retry(a)?;
    t.advance(secs(10));
    t.drain()?;
    assert_eq!(standing(&t, id), "cancelled: a completed, parts cancelled, join cancelled");
    assert_eq!(t.client().workflow(id)?.jobs.total(), 6);
    // It goes on when one of it does, and ends anew.
    t.client().retry(parts[0].id)?;
    assert_eq!(t.client().workflow(id)?.status, Status::Running);
    t.drain()?;
    assert_eq!(standing(&t, id), "cancelled: a completed, parts completed, join cancelled");
    t.client().retry_workflow(id)?;
    t.drain()?;
    assert_eq!(standing(&t, id), "completed: a completed, parts completed, join completed");
    t.client().delete(a)?;
    assert!(standing(&t, id).contains("a gone"));
    sound(t.client());
    Ok(())
}

/// The job that was to be fed was judged when the one before it had failed. Sent again after that one had been mended by
/// itself, it ran without a payload.
#[test]
fn a_job_that_is_sent_again_is_fed_with_what_the_one_before_it_has_given_since() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["a"]);
    let chain = NewWorkflow::chain("c", [("a", Do::job("a")), ("b", NewJob::from_previous::<Do>())]);
    let id = start(&t, chain);
    let alone = t.enqueue(Do::job("a"))?;
    let fed = t.enqueue(NewJob::from_previous::<Do>().after(alone))?;
    t.drain()?;
    record.set_failing([]);
    t.client().retry(t.client().workflow(id)?.job("a").unwrap())?;
    t.client().retry(alone)?;
    t.drain()?;
    assert_eq!(standing(&t, id), "cancelled: a completed, b cancelled");
    record.take();
    t.client().retry_workflow(id)?;
    t.client().retry(fed)?;
    t.drain()?;
    assert_eq!(record.take(), ["A", "A"]);
    assert_eq!(standing(&t, id), "completed: a completed, b completed");
    t.check(fed, "completed, attempt 1");
    sound(t.client());
    Ok(())
}

/// A workflow whose last failure was mended by hand said that it had completed, and its callback stayed cancelled.
#[test]
fn callbacks_that_have_not_run_are_judged_again_when_a_single_job_is_sent_again() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["a"]);
    let workflow = NewWorkflow::new("w")
        .job("a", Do::job("a"))
        .on_success(Do::job("success"))
        .on_failure(Do::job("failure"))
        .on_end(Do::job("end"));
    let id = start(&t, workflow);
    t.drain()?;
    assert_eq!(record.take(), ["a", "failure", "end"]);
    let a = t.client().workflow(id)?.job("a").unwrap();
    t.client().retry(a)?;
    t.drain()?;
    assert_eq!(record.take(), ["a"]);
    assert!(standing(&t, id).ends_with("on_success cancelled, on_failure completed, on_end completed"));
    record.set_failing([]);
    t.client().retry(a)?;
    t.drain()?;
    assert_eq!(record.take(), ["a", "success"]);
    assert_eq!(
        standing(&t, id),
        "completed: a completed, on_success completed, on_failure completed, on_end completed"
    );
    sound(t.client());
    Ok(())
}

/// The delay went by from the creation on, so that a job behind a long one was not delayed at all.
#[test]
fn a_delay_goes_by_from_the_end_of_what_a_job_waits_for() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let workflow = NewWorkflow::new("w")
        .job("a", Do::job("a").delay(secs(100)))
        .job("b", Do::job("b").delay(secs(60)))
        .after("a")
        .jobs("parts", [Do::job("p").delay(secs(30)), Do::job("q")])
        .after("a")
        .on_end(Do::job("end").delay(secs(5)));
    let id = start(&t, workflow);
    let b = t.client().workflow(id)?.job("b").unwrap();
    let created = now(&t);
    let follows = t.client().enqueue_many([Do::job("f").delay(secs(10)).after(b), Do::job("g").after(b)])?;
    assert_eq!(t.client().get(b)?.run_at, created.saturating_add(secs(60)), "no sooner than that, as far as one knows");
    let mut ran = Vec::new();
    for second in 1..=200 {
        t.advance(secs(1));
        t.drain()?;
        ran.extend(record.take().into_iter().map(|name| format!("{name} {second}")));
        if second == 100 {
            assert_eq!(t.client().get(b)?.run_at, created.saturating_add(secs(160)));
        }
    }
    assert_eq!(ran, ["a 100", "q 100", "p 130", "b 160", "g 160", "end 165", "f 170"]);
    assert_eq!(follows.len(), 2);
    // One of a large workflow waits from when that is let go.
    let (clock, parts) = (t.clock(), (0..1500).map(|n| Do::job(format!("{n}")).delay(secs(10))));
    let slow = parts.inspect(|_| clock.advance(Duration::from_millis(10)));
    start(&t, NewWorkflow::new("large").jobs("parts", slow));
    t.drain()?;
    t.advance(secs(9));
    t.drain()?;
    assert_eq!(record.take().len(), 0);
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(record.take().len(), 1500);
    sound(t.client());
    Ok(())
}

#[test]
fn jobs_tell_their_workflow_and_keep_their_delay_through_a_retry_of_it() -> jobmill::Result<()> {
    let (t, record) = harness_with(|builder| {
        #[derive(Serialize, Deserialize)]
        struct Ask;
        impl Payload for Ask {
            const KIND: &'static str = "ask";
        }
        builder.handle(|_: Ask, ctx: &Context| -> Result<(), Failure> {
            let own = ctx.job().workflow_id;
            assert_eq!(own, ctx.workflow()?);
            ctx.state::<Record>()?.note(own.expect("a workflow").to_string());
            Ok(())
        })
    })?;
    record.set_failing(["a"]);
    let workflow = NewWorkflow::new("w")
        .job("a", Do::job("a"))
        .job("b", Do::job("b").delay(secs(60)))
        .after("a")
        .jobs("asks", [NewJob::json("ask", &())])
        .on_end(NewJob::json("ask", &()));
    let id = start(&t, workflow);
    t.drain()?;
    assert_eq!(record.take(), ["a".to_owned(), id.to_string(), id.to_string()]);
    for node in t.client().workflow(id)?.nodes {
        assert!(
            node.job.is_none_or(|job| t.client().get(job).expect("a job").workflow_id == Some(id)),
            "{}",
            node.name
        );
    }
    for job in t.client().list(Query::new())?.jobs {
        assert_eq!(job.workflow_id, Some(id));
    }
    let alone = t.enqueue(Do::job("alone"))?;
    assert_eq!(t.client().get(alone)?.workflow_id, None);
    record.set_failing([]);
    t.client().retry_workflow(id)?;
    t.drain()?;
    t.advance(secs(59));
    t.drain()?;
    assert_eq!(record.take(), ["a", "alone"]);
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(record.take(), ["b"]);
    sound(t.client());
    Ok(())
}

#[test]
fn more_old_workflows_than_a_slice_are_forgotten_at_once() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let retention = Retention { completed: Some(secs(60)), ..Retention::default() };
        builder.durability(Durability::Normal).retention(retention)
    })?;
    for _ in 0..450 {
        start(&t, NewWorkflow::new("empty").jobs("none", Vec::<NewJob>::new()));
    }
    t.drain()?;
    t.advance(secs(61));
    t.engine().maintain()?;
    assert_eq!(query::<i64>(t.client(), "SELECT count(*) FROM jobmill_flow"), 0);
    Ok(())
}

#[test]
fn jobs_of_a_workflow_stay_until_it_has_ended_and_it_goes_with_the_last() -> jobmill::Result<()> {
    let record = Record::default();
    let state = record.clone();
    let t = Harness::new(move |builder| {
        let retention = Retention { completed: Some(secs(60)), failed: None, ..Retention::default() };
        builder.durability(Durability::Normal).retention(retention).handle(run).state(state.clone())
    })?;
    record.set_failing(["bad"]);
    let chain = |last: &str| {
        NewWorkflow::chain("c", [("a", Do::job("a")), ("b", Do::job(last).delay(secs(1000)))]).on_end(Do::job("end"))
    };
    let (good, bad) = (start(&t, chain("good")), start(&t, chain("bad")));
    t.drain()?;
    t.advance(secs(500));
    t.engine().maintain()?;
    assert_eq!(t.client().stats()?.total.completed, 2, "what has ended is older than its time");
    t.advance(secs(500));
    t.drain()?;
    t.engine().maintain()?;
    assert_eq!(t.client().workflow(good)?.status, Status::Completed);
    t.advance(secs(61));
    t.engine().maintain()?;
    t.engine().maintain()?;
    refused(t.client().workflow(good), ErrorKind::NotFound, "there is no workflow");
    assert_eq!(standing(&t, bad), "failed: a gone, b failed, on_end gone");
    t.client().delete(t.client().workflow(bad)?.job("b").unwrap())?;
    t.engine().maintain()?;
    for table in ["flow", "node", "edge", "flow_work", "journal", "job"] {
        assert_eq!(query::<i64>(t.client(), &format!("SELECT count(*) FROM jobmill_{table}")), 0, "{table}");
    }
    sound(t.client());
    Ok(())
}

#[test]
fn whoever_waits_for_a_workflow_hears_of_its_end() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (state, keeper) = gate();
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .workers(Workers::new(2))
        .handle(block)
        .handle(run)
        .state(state)
        .state(Record::default())
        .start()?;
    let client = engine.client().clone();
    let workflow =
        NewWorkflow::new("w").jobs("s", [Block::job("x"), Block::job("y")]).job("z", Do::job("z")).after("s");
    let id = client.start_workflow(workflow)?;
    keeper.next_of(2);
    refused(client.wait_workflow(id, Duration::ZERO), ErrorKind::Timeout, &format!("{id} has not ended in time"));
    let workflow = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.wait_workflow(id, PATIENCE));
        keeper.release();
        keeper.release();
        waiting.join().expect("a wait")
    })?;
    assert_eq!((workflow.status, workflow.jobs.completed), (Status::Completed, 3));
    engine.shutdown(PATIENCE)?;
    Ok(())
}
