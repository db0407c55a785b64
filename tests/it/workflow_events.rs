//! Subscribers are told when workflows begin and end, in their place among what becomes of jobs.

use jobmill::crossbeam_channel::Receiver;
use jobmill::testing::{Fault, Harness};
use jobmill::{Cause, Context, ErrorKind, Event, Failure, NewJob, NewWorkflow, Payload, Status, Unique, WorkflowId};
use serde::{Deserialize, Serialize};

use crate::support::work::{Do, harness, harness_with};
use crate::support::{refused, secs, sound};

fn start(t: &Harness, workflow: NewWorkflow<'_>) -> WorkflowId {
    t.client().start_workflow(workflow).expect("a workflow that starts")
}

/// What was told of workflows, and of jobs that were enqueued, admitted or ended.
fn told(events: &Receiver<Event>) -> String {
    let words = events.try_iter().filter_map(|event| match event {
        Event::Workflow(change) => Some(format!("{} {}-{}", change.name, change.from, change.to)),
        Event::Changed(change) if change.from.is_none() => Some("new".to_owned()),
        Event::Changed(change) if change.cause == Cause::Admitted => Some("admitted".to_owned()),
        Event::Changed(change) => change.to.filter(|to| to.is_terminal()).map(|to| to.to_string()),
        other => Some(format!("{other:?}")),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[test]
fn the_end_of_a_workflow_is_told_after_that_of_its_last_job_and_before_its_callbacks() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let events = t.client().subscribe(1000)?;
    let workflow = || {
        NewWorkflow::new("w")
            .jobs("parts", ["a", "b"].map(Do::job))
            .job("c", Do::job("c"))
            .after("parts")
            .on_end(Do::job("end"))
    };
    let id = start(&t, workflow());
    assert_eq!(told(&events), "new, new, new, new, w created-running");
    t.drain()?;
    assert_eq!(told(&events), "completed, completed, admitted, completed, w running-completed, admitted, completed");
    record.set_failing(["b"]);
    start(&t, workflow());
    t.drain()?;
    assert_eq!(
        told(&events),
        "new, new, new, new, w created-running, completed, failed, cancelled, w running-failed, admitted, completed"
    );
    let named = start(&t, NewWorkflow::new("named").user("ann").job("a", Do::job("a")));
    let change = events.try_iter().find_map(|event| match event {
        Event::Workflow(change) => Some(change),
        _ => None,
    });
    let change = change.expect("an event of a workflow");
    assert_eq!((change.id, change.user.as_deref()), (named, Some("ann")));
    assert_eq!(change.at, t.client().workflow(named)?.created_at);
    assert_eq!(t.client().workflow(id)?.status, Status::Completed);
    Ok(())
}

#[test]
fn a_workflow_without_jobs_begins_and_ends_at_once() -> jobmill::Result<()> {
    let (t, _) = harness()?;
    let events = t.client().subscribe(1000)?;
    start(&t, NewWorkflow::new("w").jobs("none", std::iter::empty::<NewJob>()));
    assert_eq!(told(&events), "w created-running, w running-completed");
    start(&t, NewWorkflow::new("told").job("done", NewJob::tracked().status(Status::Completed)));
    assert_eq!(told(&events), "new, told created-running, told running-completed");
    Ok(())
}

#[test]
fn a_large_workflow_begins_when_it_is_let_go_and_one_that_is_refused_never_does() -> jobmill::Result<()> {
    let (t, _) = harness()?;
    t.enqueue(Do::job("holder").unique(Unique::key("k")).delay(secs(10)))?;
    let events = t.client().subscribe(10_000)?;
    let large = |last: NewJob| {
        NewWorkflow::new("large")
            .jobs("parts", (0..1500).map(|n| Do::job(n.to_string())))
            .job("last", last)
            .after("parts")
    };
    refused(
        t.client().start_workflow(large(Do::job("x").unique(Unique::key("k")))),
        ErrorKind::Conflict,
        "last: unique: job-",
    );
    let small = NewWorkflow::new("small").job("last", Do::job("x").unique(Unique::key("k")));
    refused(t.client().start_workflow(small), ErrorKind::Conflict, "last: unique: job-");
    assert!(!told(&events).contains('-'), "nothing has begun");
    start(&t, large(Do::job("last")));
    assert!(told(&events).contains("new, large created-running, admitted"));
    t.drain()?;
    assert!(told(&events).ends_with("completed, large running-completed"));
    Ok(())
}

#[test]
fn a_cancelled_workflow_tells_its_end_when_its_last_job_has_ended() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Busy;
    impl Payload for Busy {
        const KIND: &'static str = "busy";
    }
    let (mut t, _) = harness_with(|builder| {
        builder.handle(|_: Busy, ctx: &Context| -> Result<(), Failure> {
            ctx.client().cancel_workflow(ctx.workflow()?.expect("a workflow"))?;
            ctx.check()
        })
    })?;
    let events = t.client().subscribe(10_000)?;
    let waits = start(&t, NewWorkflow::new("waits").job("a", Do::job("a").delay(secs(10))).on_failure(Do::job("f")));
    t.client().cancel_workflow(waits)?;
    t.drain()?;
    assert_eq!(
        told(&events),
        "new, new, waits created-running, cancelled, waits running-cancelled, admitted, completed"
    );
    start(&t, NewWorkflow::new("busy").job("a", &Busy).job("b", Do::job("b")).after("a"));
    t.drain()?;
    assert_eq!(told(&events), "new, new, busy created-running, cancelled, cancelled, busy running-cancelled");
    // One that was never let go.
    t.faults().fail_from(3, Fault::Before);
    let large = NewWorkflow::new("large").jobs("parts", (0..3000).map(|n| Do::job(n.to_string())));
    assert_eq!(t.client().start_workflow(large).expect_err("a fault").kind(), ErrorKind::Storage);
    t.faults().heal();
    t.crash()?;
    let events = t.client().subscribe(10_000)?;
    let large = t.client().workflows(Default::default())?.workflows[0].id;
    t.client().cancel_workflow(large)?;
    t.drain()?;
    let told = told(&events);
    assert!(told.ends_with("cancelled, large created-running, large running-cancelled"), "{told}");
    sound(t.client());
    Ok(())
}

#[test]
fn a_workflow_that_is_sent_again_goes_on_and_ends_once_more() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["a"]);
    let events = t.client().subscribe(1000)?;
    let id = start(&t, NewWorkflow::chain("w", ["a", "b"].map(|name| (name, Do::job(name)))));
    t.drain()?;
    assert_eq!(told(&events), "new, new, w created-running, failed, cancelled, w running-failed");
    t.client().retry(t.client().workflow(id)?.job("a").expect("a job"))?;
    assert_eq!(told(&events), "w failed-running");
    t.drain()?;
    assert_eq!(told(&events), "failed, w running-failed");
    record.set_failing([]);
    t.client().retry_workflow(id)?;
    assert_eq!(told(&events), "w failed-running");
    t.drain()?;
    assert_eq!(told(&events), "completed, admitted, completed, w running-completed");
    Ok(())
}

#[test]
fn what_is_told_of_workflows_was_committed_and_is_told_once() -> jobmill::Result<()> {
    for n in 1..6 {
        let (t, _) = harness()?;
        let id = start(&t, NewWorkflow::chain("w", ["a", "b"].map(|name| (name, Do::job(name)))));
        let events = t.client().subscribe(1000)?;
        t.faults().fail(n, Fault::Before);
        let failed = t.drain().is_err();
        let ended = t.client().workflow(id)?.status == Status::Completed;
        let before: Vec<Event> = events.try_iter().collect();
        let tells = before.iter().filter(|event| matches!(event, Event::Workflow(_))).count();
        assert_eq!(tells, usize::from(ended), "{n}: {before:?}");
        t.drain()?;
        let after = events.try_iter().filter(|event| matches!(event, Event::Workflow(_))).count();
        assert_eq!(tells + after, 1, "{n}, {failed}");
    }
    Ok(())
}

#[test]
fn one_who_is_bound_to_a_user_is_told_of_that_users_workflows() -> jobmill::Result<()> {
    let (t, _) = harness()?;
    let events = t.client().for_user("ann")?.subscribe(1000)?;
    for (name, user) in [("hers", Some("ann")), ("his", Some("bob")), ("nobodys", None)] {
        let workflow = NewWorkflow::new(name).job("a", Do::job("a"));
        start(&t, if let Some(user) = user { workflow.user(user) } else { workflow });
    }
    t.drain()?;
    assert_eq!(told(&events), "new, hers created-running, completed, hers running-completed");
    Ok(())
}
