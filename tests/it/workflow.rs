//! Workflows: what waits for what, what becomes of it, and how it is told.

use jobmill::testing::Harness;
use jobmill::{
    Context, ErrorKind, Failure, FailureReason, JobId, NewJob, NewWorkflow, OnFailure, Order, Payload, Priority, Query,
    Reason, Status, Unique, WorkflowId, WorkflowQuery,
};
use serde::{Deserialize, Serialize};

use crate::support::work::{Do, Record, harness, harness_with, standing};
use crate::support::{Other, idle, other, query, raw, refused, secs, sound};

fn start(t: &Harness, workflow: NewWorkflow<'_>) -> WorkflowId {
    t.client().start_workflow(workflow).expect("a workflow that starts")
}

fn job(t: &Harness, id: WorkflowId, name: &str) -> JobId {
    t.client().workflow(id).expect("a workflow").job(name).expect("a job of this name")
}

fn diamond() -> NewWorkflow<'static> {
    NewWorkflow::new("diamond")
        .job("bottom", Do::job("bottom"))
        .after("left")
        .after("right")
        .job("left", Do::job("left"))
        .after("top")
        .job("right", Do::job("right"))
        .after("top")
        .job("top", Do::job("top"))
}

#[test]
fn each_job_of_a_diamond_runs_when_all_that_it_waits_for_have_ended() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let id = start(&t, diamond());
    assert_eq!(standing(&t, id), "running: bottom created, left created, right created, top pending");
    t.drain()?;
    assert_eq!(record.take(), ["top", "left", "right", "bottom"]);
    assert_eq!(standing(&t, id), "completed: bottom completed, left completed, right completed, top completed");
    let workflow = t.client().workflow(id)?;
    assert_eq!((workflow.progress().done, workflow.progress().total), (4, Some(4)));
    assert_eq!(workflow.ended_at, Some(crate::support::now(&t)));
    sound(t.client());
    Ok(())
}

#[test]
fn what_follows_a_failure_is_cancelled_or_fails_or_runs_as_it_asks() -> jobmill::Result<()> {
    for (policy, follower, whole, ran) in [
        (OnFailure::Cancel, "cancelled", "failed", false),
        (OnFailure::Fail, "failed", "failed", false),
        (OnFailure::Continue, "completed", "completed", true),
    ] {
        let (t, record) = harness()?;
        record.set_failing(["first"]);
        let workflow = NewWorkflow::new("three")
            .job("first", Do::job("first"))
            .job("second", Do::job("second"))
            .after_with("first", policy)
            .job("third", Do::job("third"))
            .after("second");
        let id = start(&t, workflow);
        t.drain()?;
        let third = if ran { "completed" } else { "cancelled" };
        assert_eq!(standing(&t, id), format!("{whole}: first failed, second {follower}, third {third}"), "{policy}");
        assert_eq!(record.take().len(), if ran { 3 } else { 1 });
        if !ran {
            let second = t.client().get(job(&t, id, "second"))?;
            let why = format!("first ({}) has failed", job(&t, id, "first"));
            assert_eq!(second.error.as_deref(), Some(&*why));
            let dead = (policy == OnFailure::Fail).then_some(FailureReason::Dependency);
            assert_eq!(second.failure_reason, dead);
            let history = t.client().history(second.id)?;
            assert!(history.iter().any(|entry| entry.note.as_deref() == Some(&*why)), "{history:?}");
            let explained = t.client().explain(second.id)?;
            assert!(explained.to_string().contains("first ("), "{explained}");
        }
        let failures = t.client().workflow(id)?.failures;
        assert_eq!((failures[0].name.as_deref(), failures[0].error.as_deref()), (Some("first"), Some("no")));
        sound(t.client());
    }
    Ok(())
}

#[test]
fn a_failure_counts_unless_all_that_follow_it_go_on() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["shaky"]);
    let workflow = |strict: bool| {
        let workflow = NewWorkflow::new("bearing")
            .job("shaky", Do::job("shaky"))
            .job("tolerant", Do::job("tolerant"))
            .after_with("shaky", OnFailure::Continue);
        if strict { workflow.job("strict", Do::job("strict")).after("shaky") } else { workflow }
    };
    let (borne, not) = (start(&t, workflow(false)), start(&t, workflow(true)));
    let nobody_follows = start(&t, NewWorkflow::new("alone").job("shaky", Do::job("shaky")));
    t.drain()?;
    assert_eq!(t.client().workflow(borne)?.status, Status::Completed);
    assert_eq!(t.client().workflow(not)?.status, Status::Failed);
    assert_eq!(t.client().workflow(nobody_follows)?.status, Status::Failed);
    Ok(())
}

#[test]
fn callbacks_follow_the_end_that_they_ask_for() -> jobmill::Result<()> {
    for (failing, expected) in
        [(false, ["completed", "cancelled", "completed"]), (true, ["cancelled", "completed", "completed"])]
    {
        let (t, record) = harness()?;
        if failing {
            record.set_failing(["work"]);
        }
        let workflow = NewWorkflow::new("told")
            .job("work", Do::job("work"))
            .on_success(Do::job("success"))
            .on_failure(Do::job("failure"))
            .on_end(Do::job("end"));
        let id = start(&t, workflow);
        assert_eq!(t.client().workflow(id)?.jobs.total(), 1, "callbacks are not counted");
        t.drain()?;
        let workflow = t.client().workflow(id)?;
        let statuses: Vec<String> = workflow
            .nodes
            .iter()
            .filter(|node| node.is_callback)
            .map(|node| node.status.unwrap().to_string())
            .collect();
        assert_eq!(statuses, expected);
        assert_eq!(workflow.status, if failing { Status::Failed } else { Status::Completed });
        assert_eq!(record.take().len(), 3);
        sound(t.client());
    }
    Ok(())
}

#[test]
fn callbacks_have_a_queue_and_a_priority_of_their_own() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let busy = |name: &str| Do::job(name).queue("bulk").priority(Priority::Low);
    let workflow = NewWorkflow::new("w")
        .job("a", busy("a"))
        .user("ada")
        .on_success(Do::job("success"))
        .on_failure(Do::job("failure"))
        .on_end(Do::job("end").queue("desk").priority(Priority::High));
    let id = start(&t, workflow);
    for (name, queue, priority) in [
        ("a", "bulk", Priority::Low),
        ("on_success", "default", Priority::Default),
        ("on_failure", "default", Priority::Default),
        ("on_end", "desk", Priority::High),
    ] {
        let found = t.client().get(job(&t, id, name))?;
        let told = (&*found.queue, found.priority, found.user_id.as_deref());
        assert_eq!(told, (queue, priority, Some("ada")), "{name}");
    }
    t.drain()?;
    assert_eq!(record.take(), ["a", "end", "success"]);
    Ok(())
}

#[test]
fn a_fan_in_runs_once_after_ten_thousand_and_reads_what_each_gave() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Sum;
    impl Payload for Sum {
        const KIND: &'static str = "sum";
    }
    const PARTS: u64 = 10_000;
    let (t, record) = harness_with(|builder| {
        builder.handle(other).handle(|_: Sum, ctx: &Context| -> Result<(u64, u64), Failure> {
            ctx.state::<Record>()?.note("sum");
            let (mut count, mut sum) = (0, 0);
            for input in ctx.inputs()? {
                count += 1;
                sum += input?.result::<u64>()?;
            }
            assert_eq!(ctx.inputs_of("parts")?.count(), PARTS as usize);
            Ok((count, sum))
        })
    })?;
    let parts = (0..PARTS).map(|part| NewJob::of(&Other(part)));
    let workflow = NewWorkflow::new("fan").jobs("parts", parts).job("sum", &Sum).after("parts");
    let id = start(&t, workflow);
    t.drain()?;
    assert_eq!(record.take(), ["sum"]);
    let sum = t.client().get(job(&t, id, "sum"))?;
    assert_eq!(sum.result::<(u64, u64)>()?, (PARTS, PARTS * (PARTS - 1) / 2));
    let workflow = t.client().workflow(id)?;
    assert_eq!(workflow.stage("parts").unwrap().jobs.completed, PARTS);
    assert_eq!(workflow.jobs.completed, PARTS + 1);
    sound(t.client());
    Ok(())
}

#[test]
fn a_stage_waits_like_a_job_and_fails_if_one_of_it_does() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["b"]);
    let stage = || ["a", "b", "c"].map(Do::job);
    let workflow = NewWorkflow::new("stages")
        .job("first", Do::job("first"))
        .jobs("parts", stage())
        .after("first")
        .job("strict", Do::job("strict"))
        .after("parts")
        .jobs("tolerant", [Do::job("x"), Do::job("y")])
        .after_with("parts", OnFailure::Continue)
        .jobs("refused", [Do::job("never"), Do::job("ever")])
        .after_with("strict", OnFailure::Fail)
        .job("last", Do::job("last"))
        .after_with("refused", OnFailure::Continue);
    let id = start(&t, workflow);
    assert_eq!(
        standing(&t, id),
        "running: first pending, parts created, strict created, tolerant created, refused created, last created"
    );
    t.drain()?;
    assert_eq!(
        standing(&t, id),
        "failed: first completed, parts failed, strict cancelled, tolerant completed, refused failed, last completed"
    );
    assert_eq!(record.take(), ["first", "a", "b", "c", "x", "y", "last"]);
    sound(t.client());
    Ok(())
}

#[test]
fn stages_without_jobs_end_when_they_would_begin() -> jobmill::Result<()> {
    let none = || std::iter::empty::<NewJob>();
    let (t, record) = harness()?;
    let workflow = NewWorkflow::new("hollow")
        .jobs("none", none())
        .job("a", Do::job("a"))
        .after("none")
        .jobs("more", none())
        .after("a")
        .job("b", Do::job("b"))
        .after("more")
        .jobs("last", none())
        .after("b");
    let id = start(&t, workflow);
    t.drain()?;
    assert_eq!(record.take(), ["a", "b"]);
    assert_eq!(standing(&t, id), "completed: none completed, a completed, more completed, b completed, last completed");
    record.set_failing(["a"]);
    let workflow = NewWorkflow::new("hollow")
        .job("a", Do::job("a"))
        .jobs("none", none())
        .after("a")
        .job("b", Do::job("b"))
        .after("none");
    let id = start(&t, workflow);
    let empty = start(&t, NewWorkflow::new("empty").jobs("none", none()).on_end(Do::job("end")));
    t.drain()?;
    assert_eq!(standing(&t, id), "failed: a failed, none cancelled, b cancelled");
    assert_eq!(standing(&t, empty), "completed: none completed, on_end completed");
    sound(t.client());
    Ok(())
}

#[test]
fn a_chain_hands_each_result_to_the_next() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Length(String);
    impl Payload for Length {
        const KIND: &'static str = "length";
    }
    let (t, _) = harness_with(|builder| {
        builder.handle(|job: Length, ctx: &Context| -> Result<String, Failure> {
            assert_eq!(ctx.input::<String>()?, job.0);
            assert_eq!(ctx.input_of::<String>("shout")?, job.0);
            assert!(ctx.workflow()?.is_some());
            Ok(format!("{} has {} letters", job.0, job.0.len()))
        })
    })?;
    let long = "long".repeat(2000);
    for word in ["word", &long] {
        let chain =
            NewWorkflow::chain("count", [("shout", Do::job(word)), ("count", NewJob::from_previous::<Length>())]);
        let id = start(&t, chain);
        t.drain()?;
        let counted = t.client().get(job(&t, id, "count"))?;
        assert_eq!(counted.result::<String>()?, format!("{} has {} letters", word.to_uppercase(), word.len()));
        assert_eq!(counted.payload::<String>()?, word.to_uppercase());
    }
    Ok(())
}

#[test]
fn a_job_follows_another_without_a_workflow() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let first = t.enqueue(Do::job("first").delay(secs(10)))?;
    let second = t.enqueue(Do::job("second").after(first))?;
    let third = t.enqueue(Do::job("third").after_with(second, OnFailure::Fail).after(first))?;
    t.drain()?;
    t.check(second, "created");
    let explained = t.client().explain(second)?;
    assert_eq!(explained.reasons, [Reason::WaitsFor { id: Some(first), name: None, status: Status::Pending }]);
    t.advance(secs(10));
    t.drain()?;
    assert_eq!(record.take(), ["first", "second", "third"]);
    t.check(third, "completed, attempt 1");
    // What it waits for has ended already.
    let fourth = t.enqueue(Do::job("fourth").after(third))?;
    record.set_failing(["fifth"]);
    let fifth = t.enqueue(Do::job("fifth").after(fourth))?;
    t.drain()?;
    let sixth = t.enqueue(Do::job("sixth").after(fifth).after(fourth))?;
    t.drain()?;
    assert_eq!(record.take(), ["fourth", "fifth"]);
    t.check(sixth, "cancelled");
    sound(t.client());
    Ok(())
}

#[test]
fn a_job_that_is_to_be_followed_must_be_there() -> jobmill::Result<()> {
    let (t, _) = harness()?;
    let ada = t.client().for_user("ada")?;
    let (hers, his) = (ada.enqueue(Do::job("hers"))?.id(), t.enqueue(Do::job("his").user("bob"))?);
    let nowhere: JobId = "job-0000000000g00".parse()?;
    refused(t.client().enqueue(Do::job("x").after(nowhere)), ErrorKind::NotFound, "there is no job");
    refused(ada.enqueue(Do::job("x").after(hers).after(his)), ErrorKind::NotFound, "there is no job");
    let many = [Do::job("x"), Do::job("y").after(nowhere)];
    refused(t.client().enqueue_many(many), ErrorKind::NotFound, "jobs[1]: there is no job");
    refused(t.client().enqueue(Do::job("x").after(hers).after(hers)), ErrorKind::Invalid, "after: must name");
    refused(t.client().enqueue(NewJob::tracked().after(hers)), ErrorKind::Invalid, "after: must not be set");
    refused(t.client().enqueue(NewJob::from_previous::<Do>()), ErrorKind::Invalid, "from_previous: must follow one");
    let mut conn = t.client().connection()?;
    let tx = conn.transaction().expect("a transaction");
    refused(t.client().enqueue_in(&tx, Do::job("x").after(nowhere)), ErrorKind::NotFound, "there is no job");
    drop(tx);
    assert_eq!(t.client().stats()?.total.total(), 2, "nothing was written");
    Ok(())
}

#[test]
fn followers_of_deleted_cancelled_and_expired_jobs_are_judged() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let needed: Vec<JobId> = (0..3)
        .map(|n| t.enqueue(Do::job(format!("needed {n}")).delay(secs(100)).expires_in(secs(50))))
        .collect::<jobmill::Result<_>>()?;
    let strict: Vec<JobId> =
        needed.iter().map(|id| t.enqueue(Do::job("strict").after(*id))).collect::<jobmill::Result<_>>()?;
    let lax: Vec<JobId> = needed
        .iter()
        .map(|id| t.enqueue(Do::job("lax").after_with(*id, OnFailure::Continue)))
        .collect::<jobmill::Result<_>>()?;
    t.client().delete(needed[0])?;
    t.client().cancel(needed[1])?;
    t.advance(secs(60));
    t.drain()?;
    for (at, ending) in ["was deleted", "was cancelled", "has expired"].into_iter().enumerate() {
        let job = t.client().get(strict[at])?;
        assert_eq!((job.status, job.error), (Status::Cancelled, Some(format!("{} {ending}", needed[at]))));
        assert_eq!(t.client().get(lax[at])?.status, Status::Completed);
    }
    assert_eq!(record.take(), ["lax"; 3]);
    sound(t.client());
    Ok(())
}

#[test]
fn jobs_that_end_in_the_applications_own_transaction_have_their_followers_judged() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Own;
    impl Payload for Own {
        const KIND: &'static str = "own";
    }
    let (t, record) = harness_with(|builder| {
        builder.handle(|_: Own, ctx: &Context| -> Result<u8, Failure> {
            let mut conn = ctx.client().connection()?;
            let tx = conn.transaction()?;
            ctx.complete_in(&tx, &7)?;
            tx.commit()?;
            Ok(9)
        })
    })?;
    let workflow = NewWorkflow::new("own")
        .job("own", &Own)
        .job("then", Do::job("then"))
        .after("own")
        .jobs("stage", [NewJob::of(&Own), NewJob::of(&Own)])
        .after("then")
        .job("last", Do::job("last"))
        .after("stage")
        .on_success(Do::job("success"));
    let id = start(&t, workflow);
    // So does one that is enqueued there.
    let mut conn = t.client().connection()?;
    let tx = conn.transaction().expect("a transaction");
    let after = t.client().enqueue_in(&tx, Do::job("beside").after(job(&t, id, "own")))?.id();
    tx.commit().expect("a commit");
    t.drain()?;
    t.drain()?;
    assert_eq!(t.client().workflow(id)?.status, Status::Completed);
    let mut ran = record.take();
    ran.sort();
    assert_eq!(ran, ["beside", "last", "success", "then"]);
    t.check(after, "completed, attempt 1");
    sound(t.client());
    Ok(())
}

#[test]
fn a_handler_decides_the_fan_out_while_it_runs() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Split(u32);
    impl Payload for Split {
        const KIND: &'static str = "split";
    }
    #[derive(Serialize, Deserialize)]
    struct Grow(u32);
    impl Payload for Grow {
        const KIND: &'static str = "grow";
    }
    let (t, record) = harness_with(|builder| {
        builder
            .handle(|job: Split, ctx: &Context| -> Result<usize, Failure> {
                let added = ctx.enqueue_in_stage("parts", (0..job.0).map(|part| NewJob::of(&Grow(part))))?;
                refused(
                    ctx.enqueue_in_stage("nowhere", [Do::job("x")]),
                    ErrorKind::NotFound,
                    "the workflow has no stage \"nowhere\"",
                );
                Ok(added.len())
            })
            .handle(|job: Grow, ctx: &Context| -> Result<(), Failure> {
                if job.0 == 1 {
                    ctx.enqueue_in_workflow([Do::job("grown")])?;
                }
                Ok(())
            })
    })?;
    let workflow = NewWorkflow::new("dynamic")
        .job("split", &Split(3))
        .jobs("parts", std::iter::empty::<NewJob>())
        .after("split")
        .job("join", Do::job("join"))
        .after("parts");
    let id = start(&t, workflow);
    t.drain()?;
    assert_eq!(record.take(), ["grown", "join"]);
    let workflow = t.client().workflow(id)?;
    assert_eq!((workflow.status, workflow.stage("parts").unwrap().jobs.completed), (Status::Completed, 4));
    let alone = t.enqueue(&Split(1))?;
    t.drain()?;
    let failed = t.client().get(alone)?;
    assert!(failed.error.unwrap().contains("is of no workflow"));
    sound(t.client());
    Ok(())
}

/// They were tried again with all attempts that the jobs had, over hours.
#[test]
fn adding_to_what_is_closed_or_not_there_fails_for_good() -> jobmill::Result<()> {
    #[derive(Debug)]
    struct Wrapped(jobmill::Error);
    impl std::fmt::Display for Wrapped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("cannot go on")
        }
    }
    impl std::error::Error for Wrapped {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    #[derive(Serialize, Deserialize)]
    struct Add(String);
    impl Payload for Add {
        const KIND: &'static str = "add";
    }
    let (t, _) = harness_with(|builder| {
        builder.handle(|job: Add, ctx: &Context| -> Result<(), Failure> {
            if job.0 == "own" {
                ctx.enqueue_in_workflow([Do::job("x")])?;
            } else if job.0 == "wrapped" {
                ctx.enqueue_in_stage("parts", [Do::job("x")]).map_err(Wrapped)?;
            } else {
                let error = ctx.enqueue_in_stage(&job.0, [Do::job("x")]).expect_err("a refusal");
                assert!(error.is_permanent() && !error.to_string().contains("again"), "{error}");
                return Err(error.into());
            }
            Ok(())
        })
    })?;
    let add = |to: &str| NewJob::of(&Add(to.to_owned()));
    let workflow = NewWorkflow::new("w")
        .jobs("parts", [Do::job("a")])
        .job("late", add("parts"))
        .after("parts")
        .job("later", add("wrapped"))
        .after("parts")
        .job("lost", add("nowhere"));
    let id = start(&t, workflow);
    let alone = t.enqueue(add("own"))?;
    t.drain()?;
    for (name, error) in [
        ("late", "the stage has ended, or the workflow was cancelled"),
        ("later", "cannot go on: the stage has ended, or the workflow was cancelled"),
        ("lost", "the workflow has no stage \"nowhere\""),
    ] {
        t.check(job(&t, id, name), &format!("failed, attempt 1: {error}"));
        assert_eq!(t.client().get(job(&t, id, name))?.failure_reason, Some(FailureReason::Refused));
    }
    t.check(alone, &format!("failed, attempt 1: {alone} is of no workflow"));
    Ok(())
}

#[test]
fn what_breaks_a_rule_writes_nothing() -> jobmill::Result<()> {
    let t = idle()?;
    let one = || NewWorkflow::new("w").job("a", Do::job("a"));
    for (workflow, begins) in [
        (NewWorkflow::new("w"), "workflow: must have at least one"),
        (NewWorkflow::new("").job("a", Do::job("a")), "workflow: must be 1 to 128 bytes"),
        (one().job("a", Do::job("b")), "name: \"a\" must be given once"),
        (one().job("", Do::job("b")), "name: must be 1 to 128"),
        (one().job("on_end", Do::job("b")), "name: must not be on_end"),
        (one().after("b"), "after: \"a\" waits for \"b\", and nothing"),
        (one().after("a"), "after: goes in a circle: a after a"),
        (NewWorkflow::new("w").after("a").job("a", Do::job("a")), "after: must follow the job"),
        (NewWorkflow::new("w").job("a", Do::job("a")).on_end(Do::job("end")).after("a"), "after: must follow the job"),
        (one().job("b", Do::job("b")).after("a").after("a"), "after: \"b\" waits for \"a\" twice"),
        (
            NewWorkflow::new("w")
                .job("root", Do::job("x"))
                .job("a", Do::job("a"))
                .after("root")
                .after("c")
                .job("b", Do::job("b"))
                .after("a")
                .job("c", Do::job("c"))
                .after("b"),
            "after: goes in a circle: a after c after b after a",
        ),
        (one().job("b", Do::job("b").max_attempts(0)), "b: max_attempts: must be"),
        (one().jobs("b", [Do::job("b"), Do::job("b").max_attempts(0)]), "b[1]: max_attempts: must be"),
        (one().on_end(Do::job("b").max_attempts(0)), "on_end: max_attempts: must be"),
        (one().on_end(Do::job("b")).on_end(Do::job("c")), "on_end: must be given once"),
        (one().job("b", NewJob::from_previous::<Do>()), "from_previous: \"b\" must wait for one job"),
        (
            one().jobs("s", [Do::job("s")]).job("b", NewJob::from_previous::<Do>()).after("s"),
            "from_previous: \"b\" must wait for one job",
        ),
        (one().jobs("s", [NewJob::from_previous::<Do>()]).after("a"), "s[0]: from_previous: must not be set"),
        (one().job("b", Do::job("b").after("job-0000000000g00".parse()?)), "b: after: must be said of the names"),
        (one().user("ada").job("b", Do::job("b").user("bob")), "b: user: must be that of the workflow"),
    ] {
        refused(t.client().start_workflow(workflow), ErrorKind::Invalid, begins);
    }
    let needy = (0..=NewWorkflow::MAX_NEEDS).fold(NewWorkflow::new("w"), |w, n| w.job(n.to_string(), Do::job("x")));
    let needy = (0..=NewWorkflow::MAX_NEEDS).fold(needy.job("last", Do::job("x")), |w, n| w.after(n.to_string()));
    refused(t.client().start_workflow(needy), ErrorKind::Invalid, "after: \"last\" must wait for no more than 1000");
    let crowd = (0..=NewWorkflow::MAX_NODES).fold(NewWorkflow::new("w"), |w, n| w.job(n.to_string(), Do::job("x")));
    refused(t.client().start_workflow(crowd), ErrorKind::Invalid, "workflow: must have no more than 10000");
    // The rule is broken in the third slice, when two are in the file.
    let late = (0..2500).map(|n| if n == 2400 { Do::job("x").max_attempts(0) } else { Do::job("x") });
    refused(t.client().start_workflow(NewWorkflow::new("w").jobs("s", late)), ErrorKind::Invalid, "s[2400]: max_att");
    let holder = t.enqueue(Do::job("holder").user("ada").unique(Unique::key("k")))?;
    let keyed = || Do::job("x").unique(Unique::key("k"));
    refused(
        t.client().start_workflow(one().job("b", keyed()).after("a")),
        ErrorKind::Conflict,
        &format!("b: unique: {holder} holds the key \"k\""),
    );
    for (user, says) in [("ada", &*holder.to_string()), ("bob", "a job of another user")] {
        let begins = format!("b: unique: {says} holds the key \"k\"");
        refused(t.client().for_user(user)?.start_workflow(one().job("b", keyed())), ErrorKind::Conflict, &begins);
    }
    let own = || Do::job("x").unique(Unique::key("own"));
    for (workflow, name) in [
        (one().job("b", own()).job("c", own()), "c"),
        (one().jobs("s", [own(), own()]), "s[1]"),
        (one().jobs("s", (0..2500).map(|n| if n % 2400 == 0 { own() } else { Do::job("x") })), "s[2400]"),
        (one().on_end(own()).on_success(own()), "on_success"),
    ] {
        let begins = format!("{name}: unique: another job of the workflow holds the key \"own\"");
        refused(t.client().start_workflow(workflow), ErrorKind::Conflict, &begins);
    }
    let late = (0..2500).map(|n| if n == 2400 { keyed() } else { Do::job("x") });
    refused(
        t.client().start_workflow(NewWorkflow::new("w").jobs("s", late)),
        ErrorKind::Conflict,
        "s[2400]: unique: job-",
    );
    // Which limits there are is known to the transaction alone.
    let lost = || Do::job("x").limit("lost");
    for (workflow, begins) in [
        (one().job("b", lost()), "b: limit: there is no limit \"lost\""),
        (one().jobs("s", [Do::job("x"), lost()]), "s[1]: limit: there is no limit \"lost\""),
        (one().jobs("s", (0..2500).map(|n| if n == 2400 { lost() } else { Do::job("x") })), "s[2400]: limit: there"),
        (one().on_end(lost()), "on_end: limit: there is no limit \"lost\""),
    ] {
        refused(t.client().start_workflow(workflow), ErrorKind::Invalid, begins);
    }
    assert_eq!(t.client().stats()?.total.total(), 1);
    assert_eq!(query::<i64>(t.client(), "SELECT count(*) FROM jobmill_flow"), 0);
    sound(t.client());
    Ok(())
}

#[test]
fn nothing_runs_before_all_of_it_is_written() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let (client, seen) = (t.client().clone(), &record);
    let jobs = (0..2500).map(|n| {
        if n == 2200 {
            assert_eq!(client.stats().expect("counts").total.created, 2000, "two slices are in the file");
            t.drain().expect("a drain");
            assert!(seen.take().is_empty());
        }
        Do::job(n.to_string())
    });
    let id = start(&t, NewWorkflow::new("large").jobs("s", jobs).job("last", Do::job("last")).after("s"));
    t.drain()?;
    let ran = record.take();
    assert_eq!((ran.len(), ran.last().map(String::as_str)), (2501, Some("last")));
    assert_eq!(t.client().workflow(id)?.status, Status::Completed);
    sound(t.client());
    Ok(())
}

#[test]
fn workflows_are_listed_by_the_rule_of_cursors_and_to_their_users_alone() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["bad"]);
    let (ada, bob) = (t.client().for_user("ada")?, t.client().for_user("bob")?);
    let mut ids = Vec::new();
    for n in 0..6 {
        let client = if n % 2 == 0 { &ada } else { &bob };
        let work = if n == 3 { "bad" } else { "good" };
        ids.push(client.start_workflow(NewWorkflow::new(format!("w{n}")).job("a", Do::job(work)))?);
        if n == 4 {
            t.drain()?;
        }
    }
    let all = |query: WorkflowQuery| -> jobmill::Result<Vec<WorkflowId>> {
        let (mut all, mut next) = (Vec::new(), Some(query));
        while let Some(query) = next {
            let page = t.client().workflows(query)?;
            all.extend(page.workflows.iter().map(|workflow| workflow.id));
            next = page.next;
        }
        Ok(all)
    };
    let reversed: Vec<WorkflowId> = ids.iter().rev().copied().collect();
    for limit in 1..8 {
        assert_eq!(all(WorkflowQuery::new().limit(limit))?, reversed);
        assert_eq!(all(WorkflowQuery::new().limit(limit).order(Order::Ascending))?, ids);
    }
    assert_eq!(all(WorkflowQuery::new().after(ids[1]).before(ids[4]))?, [ids[3], ids[2]]);
    assert_eq!(all(WorkflowQuery::new().statuses([Status::Failed]))?, [ids[3]]);
    assert_eq!(all(WorkflowQuery::new().statuses([Status::Running]))?, [ids[5]]);
    assert_eq!(all(WorkflowQuery::new().user("ada"))?, [ids[4], ids[2], ids[0]]);
    refused(t.client().workflows(WorkflowQuery::new().limit(0)), ErrorKind::Invalid, "limit");
    refused(t.client().workflows(WorkflowQuery::new().before(ids[0]).after(ids[1])), ErrorKind::Invalid, "before");

    assert_eq!(ada.workflows(WorkflowQuery::new())?.workflows.len(), 3);
    refused(ada.workflows(WorkflowQuery::new().user("bob")), ErrorKind::Invalid, "user");
    refused(ada.workflow(ids[1]), ErrorKind::NotFound, "there is no workflow");
    refused(ada.cancel_workflow(ids[5]), ErrorKind::NotFound, "there is no workflow");
    refused(ada.retry_workflow(ids[3]), ErrorKind::NotFound, "there is no workflow");
    refused(ada.wait_workflow(ids[1], secs(1)), ErrorKind::NotFound, "there is no workflow");
    assert!(ada.list(Query::new().workflow(ids[1]))?.jobs.is_empty());
    let hers = ada.workflow(ids[0])?;
    assert_eq!((hers.user_id.as_deref(), hers.jobs.completed), (Some("ada"), 1));
    assert_eq!(ada.get(hers.job("a").unwrap())?.user_id.as_deref(), Some("ada"));
    Ok(())
}

#[test]
fn the_jobs_of_a_workflow_are_listed_with_other_filters() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["7"]);
    let with = |name: &str| {
        NewWorkflow::new(name)
            .jobs("parts", (0..30).map(|n| Do::job(n.to_string())))
            .job("last", Do::job("last").queue("slow"))
            .after("parts")
            .on_failure(Do::job("alarm"))
    };
    let (id, other) = (start(&t, with("one")), start(&t, with("other")));
    t.enqueue(Do::job("7"))?;
    t.drain()?;
    let count = |query: Query| t.client().list(query.workflow(id).limit(100)).map(|page| page.jobs.len());
    assert_eq!(count(Query::new())?, 32);
    assert_eq!(count(Query::new().statuses([Status::Failed]))?, 1);
    assert_eq!(count(Query::new().queues(["slow"]))?, 1);
    assert_eq!(count(Query::new().kinds(["nothing"]))?, 0);
    let cancelled = t.client().list(Query::new().workflow(other).statuses([Status::Cancelled]))?;
    assert_eq!(cancelled.jobs.len(), 1);
    let changed = t.client().select(Query::new().workflow(id).statuses([Status::Failed]))?.delete()?;
    assert_eq!((changed.changed, count(Query::new())?), (1, 31));
    assert_eq!(t.client().stats()?.total.failed, 2);
    sound(t.client());
    Ok(())
}

#[test]
fn drawings_show_where_each_stands_and_names_cannot_break_them() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["bad"]);
    let evil = "a\"]; click \\ <b>#\nend";
    let workflow = || {
        NewWorkflow::new(evil)
            .job(evil.replace('\n', ""), Do::job("bad"))
            .jobs("parts", [Do::job("x"), Do::job("y")])
            .after_with(evil.replace('\n', ""), OnFailure::Continue)
            .job("sum", Do::job("sum"))
            .after("parts")
            .on_end(Do::job("end"))
    };
    refused(t.client().start_workflow(workflow()), ErrorKind::Invalid, "workflow: must be 1 to 128 bytes");
    let mermaid = workflow().to_mermaid();
    assert!(mermaid.starts_with("flowchart TD\n    n0[\"a#34;]#59; click #92; #60;b#62;#35;end\"]\n"), "{mermaid}");
    assert!(mermaid.contains("n0 -->|at any end| n1") && mermaid.contains("n1[[\"parts\"]]"), "{mermaid}");
    assert!(mermaid.contains("n2 -.-> end_of_all\n    end_of_all -.-> n3"), "{mermaid}");
    let dot = workflow().to_dot();
    assert!(dot.starts_with("digraph \"a\\\"]; click \\\\ <b># end\" {"), "{dot}");
    assert!(dot.contains("n1 -> n2;") && dot.ends_with("}\n"), "{dot}");

    let plain = NewWorkflow::new("drawn")
        .job("bad", Do::job("bad"))
        .jobs("parts", [Do::job("x"), Do::job("y")])
        .after_with("bad", OnFailure::Continue)
        .job("never", Do::job("never"))
        .after("bad");
    let id = start(&t, plain);
    t.drain()?;
    let drawn = t.client().workflow(id)?;
    let mermaid = drawn.to_mermaid();
    for line in
        ["n0[\"bad\"]:::failed", "n1[[\"parts 2/2\"]]:::completed", "n2[\"never\"]:::cancelled", "classDef failed"]
    {
        assert!(mermaid.contains(line), "{line} is not in {mermaid}");
    }
    assert!(drawn.to_dot().contains("n0 [label=\"bad\", fillcolor=\"#f5b7b1\", class=\"failed\"];"));
    Ok(())
}

#[test]
fn ids_of_workflows_are_of_the_sequence_of_jobs() -> jobmill::Result<()> {
    let (t, _) = harness()?;
    let before = t.enqueue(Do::job("before"))?;
    let id = start(&t, NewWorkflow::new("w").job("a", Do::job("a")));
    let after = t.enqueue(Do::job("after"))?;
    let text = id.to_string();
    assert!(text.starts_with("workflow-"));
    assert_eq!(text.parse::<WorkflowId>()?, id);
    let number = raw(format!("job-{}", &text["workflow-".len()..]).parse()?);
    assert!(raw(before) < number && number < raw(job(&t, id, "a")) && number < raw(after));
    refused("job-0000000000g00".parse::<WorkflowId>(), ErrorKind::Invalid, "id: must be workflow-");
    Ok(())
}

#[test]
fn more_may_follow_one_job_than_a_turn_judges() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let first = t.enqueue(Do::job("first"))?;
    let many = (0..1300).map(|n| Do::job(n.to_string()).after(first));
    t.client().enqueue_many(many)?;
    t.drain()?;
    assert_eq!(record.take().len(), 1301);
    assert_eq!(t.client().stats()?.total.completed, 1301);
    sound(t.client());
    Ok(())
}
