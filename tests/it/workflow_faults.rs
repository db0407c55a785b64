//! Workflows under crashes and failing commits, and by several processes.

use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, OnceLock};

use jobmill::testing::{Fault, FaultPlan, Harness};
use jobmill::{
    Cancelled, Cause, Client, Context, Durability, Engine, ErrorKind, Event, Failure, JobUpdate, Limit, NewJob,
    NewWorkflow, OnFailure, Payload, Priority, Query, Status, WorkflowId,
};
use serde::{Deserialize, Serialize};

use crate::support::work::{Do, Record, harness, harness_with, standing};
use crate::support::{PATIENCE, file, query, raw, refused, secs, sound, tamper, until};

/// Fails, cancels, fans out, joins, and tells of it.
fn rich() -> NewWorkflow<'static> {
    NewWorkflow::new("rich")
        .job("first", Do::job("first"))
        .jobs("parts", (0..3).map(|n| Do::job(format!("p{n}"))))
        .after("first")
        .job("bad", Do::job("bad"))
        .after("first")
        .jobs("refused", (0..3).map(|n| Do::job(format!("r{n}"))))
        .after("bad")
        .job("failed", Do::job("failed"))
        .after_with("refused", OnFailure::Fail)
        .job("join", Do::job("join"))
        .after("parts")
        .after_with("failed", OnFailure::Continue)
        .on_success(Do::job("success"))
        .on_failure(Do::job("failure"))
        .on_end(Do::job("end"))
}

const ENDED: &str = "failed: first completed, parts completed, bad failed, refused cancelled, failed failed, join completed, \
                     on_success cancelled, on_failure completed, on_end completed";
const RETRIED: &str = "completed: first completed, parts completed, bad completed, refused completed, failed completed, \
                       join completed, on_success completed, on_failure completed, on_end completed";

/// Calls until it succeeds; the process dies after each failure.
fn insist<R>(t: &mut Harness, call: impl Fn(&Harness) -> jobmill::Result<R>) -> R {
    for _ in 0..5 {
        match call(t) {
            Ok(done) => return done,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
                while t.crash().is_err() {}
            }
        }
    }
    panic!("one fault fails call after call");
}

/// Claims that went unheard are taken back when the engine is started anew.
fn drain(t: &mut Harness) {
    insist(t, Harness::drain);
    while t.crash().is_err() {}
    // Those whose process died twice over them come back one after the other.
    t.advance(secs(1));
    insist(t, Harness::drain);
}

/// What a script of starting, running, retrying comes to, with the `n`-th commit failing; false if it had none such.
fn script(n: u64, fault: Fault) -> jobmill::Result<bool> {
    let (mut t, record) = harness()?;
    record.set_failing(["bad"]);
    t.faults().fail(n, fault);
    let before = t.faults().commits();
    // A start that went unheard has happened all the same.
    let id = insist(&mut t, |t| {
        let known = t.client().workflows(Default::default())?.workflows;
        known.first().map_or_else(|| t.client().start_workflow(rich()), |known| Ok(known.id))
    });
    drain(&mut t);
    assert_eq!(standing(&t, id), ENDED, "{fault:?} {n}");
    record.set_failing([]);
    insist(&mut t, |t| match t.client().retry_workflow(id) {
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        other => other,
    });
    drain(&mut t);
    assert_eq!(standing(&t, id), RETRIED, "{fault:?} {n}");
    let jobs = t.client().workflow(id)?.jobs;
    assert_eq!((jobs.completed, jobs.total()), (10, 10), "{fault:?} {n}");
    let rest = t.client().stats()?.total;
    assert_eq!(rest.total(), 13, "{fault:?} {n}");
    sound(t.client());
    Ok(t.faults().commits() - before >= n)
}

#[test]
fn a_workflow_comes_to_its_end_whatever_commit_fails() -> jobmill::Result<()> {
    for fault in [Fault::Before, Fault::After] {
        let mut n = 1;
        while script(n, fault)? {
            n += 1;
        }
        assert!(n > 8, "the script commits a few times: {n}");
    }
    Ok(())
}

#[test]
fn a_cascade_over_many_turns_goes_on_after_a_crash_in_its_midst() -> jobmill::Result<()> {
    for n in [2, 3, 5] {
        let (mut t, record) = harness()?;
        record.set_failing(["bad"]);
        let workflow = NewWorkflow::new("cascade")
            .job("bad", Do::job("bad"))
            .jobs("parts", (0..2300).map(|n| Do::job(n.to_string())))
            .after("bad")
            .job("last", Do::job("last"))
            .after("parts");
        let id = t.client().start_workflow(workflow)?;
        t.faults().fail(n, Fault::Before);
        assert!(t.drain().is_err());
        t.crash()?;
        t.drain()?;
        assert_eq!(standing(&t, id), "failed: bad failed, parts cancelled, last cancelled");
        assert_eq!(t.client().workflow(id)?.jobs.cancelled, 2301);
        record.set_failing([]);
        t.client().retry_workflow(id)?;
        t.drain()?;
        assert_eq!(standing(&t, id), "completed: bad completed, parts completed, last completed");
        sound(t.client());
    }
    Ok(())
}

#[test]
fn no_turn_of_a_cascade_does_more_than_its_slice() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["bad"]);
    let workflow = NewWorkflow::new("cascade")
        .job("bad", Do::job("bad"))
        .jobs("parts", (0..2300).map(|n| Do::job(n.to_string())))
        .after("bad");
    let id = t.client().start_workflow(workflow)?;
    t.drain()?;
    // Each turn that cancels has a commit of its own: 2300 jobs are five slices of 500.
    let moments = t.client().subscribe(10_000)?;
    let before = t.faults().commits();
    t.client().retry_workflow(id)?;
    assert!(t.faults().commits() - before >= 5, "{} commits", t.faults().commits() - before);
    drop(moments);
    Ok(())
}

/// What ends called for was done in the order in which they came, so that a long cascade held up all that came after it.
#[test]
fn workflows_take_turns_however_much_is_to_be_done_for_one() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["bad"]);
    let large = || {
        NewWorkflow::new("large")
            .job("bad", Do::job("bad"))
            .jobs("parts", (0..4000).map(|n| Do::job(n.to_string())))
            .after("bad")
    };
    let (before, after) = (t.client().start_workflow(large())?, t.client().start_workflow(large())?);
    let small = t.client().start_workflow(NewWorkflow::chain("small", ["a", "b"].map(|name| (name, Do::job(name)))))?;
    let alone = t.enqueue(Do::job("alone"))?;
    let follows = t.enqueue(Do::job("follows").after(alone))?;
    let events = t.client().subscribe(65_536)?;
    t.drain()?;
    let b = t.client().workflow(small)?.job("b").expect("a job of this name");
    let (mut refused, mut refused_before) = (0, Vec::new());
    for event in events.try_iter() {
        let Event::Changed(change) = event else { continue };
        match change.cause {
            Cause::Cancelled => refused += 1,
            Cause::Admitted if change.id == b || change.id == follows => refused_before.push(refused),
            _ => {}
        }
    }
    assert_eq!(refused, 8000);
    // Each of the large ones has two turns before them at most, and a turn goes through 500.
    assert!(refused_before.len() == 2 && refused_before.iter().all(|before| *before <= 2000), "{refused_before:?}");
    for id in [before, after] {
        assert_eq!(t.client().workflow(id)?.jobs.cancelled, 4000);
    }
    sound(t.client());
    Ok(())
}

#[test]
fn a_workflow_has_its_turn_however_many_come_after_it() -> jobmill::Result<()> {
    let (t, _record) = harness()?;
    let waiting = NewWorkflow::new("old").job("told", NewJob::tracked()).job("then", Do::job("then")).after("told");
    let old = t.client().start_workflow(waiting)?;
    let old = t.client().workflow(old)?;
    let (told, then) = (old.job("told").expect("a job"), old.job("then").expect("a job"));
    // More of them come than a turn goes through, each with a greater id.
    let mut next = raw(then) + 1_000_000;
    let mut turn_after_more = || {
        let until = next + 1200;
        tamper(
            t.client(),
            &format!(
                "WITH RECURSIVE n (id) AS (SELECT {next} UNION ALL SELECT id + 1 FROM n WHERE id + 1 < {until})
                 INSERT INTO jobmill_flow_work (whole, work, target) SELECT id, 1, id FROM n"
            ),
        );
        next = until;
        t.client().resume("default")
    };
    turn_after_more()?;
    t.client().update(told, JobUpdate::new().status(Status::Completed))?;
    t.check(then, "created");
    for _ in 0..3 {
        turn_after_more()?;
    }
    t.check(then, "pending");
    Ok(())
}

#[test]
fn a_cancel_in_the_midst_of_a_settling_lets_nobody_begin_who_is_judged_after_it() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let followers = (0..900).map(|n| format!("f{n}"));
    let workflow = followers.fold(NewWorkflow::new("w").job("first", NewJob::tracked()), |workflow, name| {
        workflow.job(&name, Do::job(&name)).after("first")
    });
    let id = t.client().start_workflow(workflow)?;
    let first = t.client().workflow(id)?.job("first").expect("a job of this name");
    t.client().update(first, JobUpdate::new().status(Status::Completed))?;
    let jobs = t.client().workflow(id)?.jobs;
    assert_eq!((jobs.completed, jobs.pending, jobs.created), (1, 500, 400), "a turn judges 500");
    let events = t.client().subscribe(10_000)?;
    assert_eq!(t.client().cancel_workflow(id)?, Cancelled::Now);
    let admitted = |event: &Event| matches!(event, Event::Changed(change) if change.cause == Cause::Admitted);
    assert_eq!(events.try_iter().filter(admitted).count(), 0);
    t.drain()?;
    assert_eq!(record.take(), Vec::<String>::new());
    assert_eq!(t.client().workflow(id)?.jobs.cancelled, 900);
    sound(t.client());
    Ok(())
}

#[test]
fn a_crash_while_a_workflow_is_written_leaves_one_that_never_runs_and_can_be_cancelled() -> jobmill::Result<()> {
    let (mut t, record) = harness()?;
    t.faults().fail_from(3, Fault::Before);
    let jobs = (0..5000).map(|n| Do::job(n.to_string()));
    let large = NewWorkflow::new("large").jobs("parts", jobs).on_end(Do::job("end"));
    assert_eq!(t.client().start_workflow(large).unwrap_err().kind(), ErrorKind::Storage);
    t.faults().heal();
    t.crash()?;
    t.drain()?;
    let known = t.client().workflows(Default::default())?.workflows;
    assert_eq!((known.len(), known[0].status, known[0].jobs.created), (1, Status::Created, 2000));
    t.client().cancel_workflow(known[0].id)?;
    t.drain()?;
    assert!(record.take().is_empty());
    let ended = t.client().workflow(known[0].id)?;
    assert_eq!((ended.status, ended.jobs.cancelled), (Status::Cancelled, 2000));
    sound(t.client());
    Ok(())
}

#[test]
fn a_workflow_that_nobody_writes_any_more_is_cancelled_after_an_hour() -> jobmill::Result<()> {
    let (mut t, record) = harness()?;
    t.faults().fail_from(3, Fault::Before);
    let large =
        NewWorkflow::new("large").jobs("parts", (0..5000).map(|n| Do::job(n.to_string()))).on_end(Do::job("end"));
    assert_eq!(t.client().start_workflow(large).unwrap_err().kind(), ErrorKind::Storage);
    t.faults().heal();
    t.crash()?;
    let id = t.client().workflows(Default::default())?.workflows[0].id;
    // One that is written slowly is left alone.
    let (clock, engine) = (t.clock(), t.engine());
    let slow = (0..2500).map(|n| {
        if n == 1500 || n == 2400 {
            clock.advance(secs(2000));
            engine.maintain().expect("maintenance");
        }
        Do::job(n.to_string())
    });
    let other = t.client().start_workflow(NewWorkflow::new("slow").jobs("parts", slow))?;
    t.drain()?;
    assert_eq!(t.client().workflow(other)?.status, Status::Completed);
    let abandoned = t.client().workflow(id)?;
    assert_eq!((abandoned.status, abandoned.jobs.cancelled), (Status::Cancelled, 2000));
    assert_eq!(record.take().len(), 2500);
    sound(t.client());
    Ok(())
}

#[test]
fn a_workflow_whose_iterator_panics_leaves_nothing() -> jobmill::Result<()> {
    let (t, _record) = harness()?;
    let client = t.client().clone();
    let panics = (0..5000).map(|n| if n < 3500 { Do::job(n.to_string()) } else { panic!("no more jobs") });
    let workflow = NewWorkflow::new("large").jobs("parts", panics).on_end(Do::job("end"));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client.start_workflow(workflow)));
    assert!(result.is_err());
    for table in ["flow", "job"] {
        assert_eq!(query::<i64>(t.client(), &format!("SELECT count(*) FROM jobmill_{table}")), 0, "{table}");
    }
    sound(t.client());
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Part(u32);

impl Payload for Part {
    const KIND: &'static str = "part";
}

fn part(job: Part, _: &Context) -> Result<u32, Failure> {
    Ok(job.0)
}

/// Set for the process that a test starts, to the file on which it runs an engine.
const CHILD: &str = "TEST_WORKFLOW_FILE";

/// A process that runs jobs of the kind `part` until its input is closed, or it is killed.
struct Other(Child, Option<ChildStdin>);

impl Other {
    fn start(path: &std::path::Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("the path of this executable"))
            .args(["--exact", "workflow_faults::a_process_that_runs_parts"])
            .env(CHILD, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("a child process");
        let stdin = child.stdin.take();
        Self(child, stdin)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.1.take();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_that_runs_parts() -> jobmill::Result<()> {
    let Some(path) = std::env::var_os(CHILD) else { return Ok(()) };
    let engine = Engine::builder(path).durability(Durability::Normal).handle(part).start()?;
    let _ = std::io::read_to_string(std::io::stdin());
    engine.shutdown(PATIENCE)?;
    Ok(())
}

fn fan() -> NewWorkflow<'static> {
    let parts = (0..1500).map(|n| NewJob::of(&Part(n)));
    NewWorkflow::new("fan")
        .job("first", Do::job("first"))
        .jobs("parts", parts)
        .after("first")
        .job("join", Do::job("join"))
        .after("parts")
        .jobs("more", [NewJob::of(&Part(7)), Do::job("more")])
        .after("join")
}

fn wait(client: &Client, id: WorkflowId) -> jobmill::Result<()> {
    let workflow = client.wait_workflow(id, PATIENCE)?;
    assert_eq!((workflow.status, workflow.jobs.completed), (Status::Completed, 1504));
    sound(client);
    Ok(())
}

#[test]
fn two_processes_share_the_work_of_a_workflow() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .handle(crate::support::work::run)
        .state(Record::default())
        .start()?;
    let _other = Other::start(&path);
    let id = engine.client().start_workflow(fan())?;
    wait(engine.client(), id)?;
    engine.shutdown(PATIENCE)?;
    Ok(())
}

#[test]
fn a_workflow_goes_on_when_the_process_is_killed_that_worked_on_it() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let client = Client::open_with(&path, Durability::Normal)?;
    let mut other = Other::start(&path);
    let parts = || (0..3000).map(|n| NewJob::of(&Part(n)));
    let workflow = NewWorkflow::new("w").jobs("a", parts()).jobs("b", parts()).after("a").jobs("c", parts()).after("b");
    let id = client.start_workflow(workflow)?;
    until("the second stage to begin", || {
        client.workflow(id).is_ok_and(|workflow| workflow.stage("b").is_some_and(|b| b.jobs.completed > 100))
    });
    other.0.kill().expect("a child that can be killed");
    drop(other);
    let engine = Engine::builder(&path).durability(Durability::Normal).handle(part).start()?;
    let workflow = client.wait_workflow(id, secs(60))?;
    assert_eq!((workflow.status, workflow.jobs.completed), (Status::Completed, 9000));
    sound(&client);
    engine.shutdown(PATIENCE)?;
    Ok(())
}

/// What the retry had not come to was sent again after the cancel, and could begin.
#[test]
fn a_cancel_in_the_midst_of_a_retry_has_nothing_more_sent_again() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let workflow = NewWorkflow::new("w")
        .jobs("parts", (0..900).map(|n| Do::job(n.to_string())))
        .job("join", Do::job("join"))
        .after("parts")
        .job("alone", Do::job("alone"))
        .job("follows", Do::job("follows"))
        .after("alone");
    let id = t.client().start_workflow(workflow)?;
    t.client().cancel_workflow(id)?;
    t.faults().fail(2, Fault::Before);
    assert_eq!(t.client().retry_workflow(id).unwrap_err().kind(), ErrorKind::Storage);
    assert_eq!(t.client().workflow(id)?.jobs.pending, 498, "a turn goes through 500, of which two wait");
    let events = t.client().subscribe(10_000)?;
    assert_eq!(t.client().cancel_workflow(id)?, Cancelled::Now);
    let pending = |event: &Event| matches!(event, Event::Changed(change) if change.to == Some(Status::Pending));
    assert_eq!(events.try_iter().filter(pending).count(), 0);
    t.drain()?;
    assert_eq!(record.take(), Vec::<String>::new());
    assert_eq!(standing(&t, id), "cancelled: parts cancelled, join cancelled, alone cancelled, follows cancelled");
    sound(t.client());
    t.client().retry_workflow(id)?;
    t.drain()?;
    assert_eq!(record.take().len(), 903);
    assert_eq!(standing(&t, id), "completed: parts completed, join completed, alone completed, follows completed");
    sound(t.client());
    Ok(())
}

/// The first jobs that a retry sends may have ended before it comes to the last.
#[test]
fn a_stage_that_is_being_sent_again_does_not_end_with_the_first_of_it() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    record.set_failing(["0", "2900"]);
    let workflow = NewWorkflow::new("w")
        .jobs("parts", (0..3000).map(|n| Do::job(n.to_string())))
        .job("join", Do::job("join"))
        .after("parts")
        .on_success(Do::job("success"));
    let id = t.client().start_workflow(workflow)?;
    t.drain()?;
    record.set_failing([]);
    record.take();
    t.faults().fail(2, Fault::Before);
    assert_eq!(t.client().retry_workflow(id).unwrap_err().kind(), ErrorKind::Storage);
    t.drain()?;
    assert_eq!(record.take(), ["0", "2900", "join", "success"]);
    assert_eq!(standing(&t, id), "completed: parts completed, join completed, on_success completed");
    sound(t.client());
    Ok(())
}

/// More jobs than a turn of the cascade goes through: pending, due in a second, held by a limit.
fn wide(t: &Harness) -> jobmill::Result<WorkflowId> {
    t.client().set_limit(&Limit::new("narrow").concurrency(1))?;
    let named = |name: &'static str| (0..700).map(move |n| Do::job(format!("{name}{n}")));
    let workflow = NewWorkflow::new("wide")
        .jobs("now", named("n"))
        .jobs("soon", named("s").map(|job| job.delay(secs(1))))
        .jobs("held", named("h").map(|job| job.limit("narrow")))
        .job("last", Do::job("last"))
        .after_with("now", OnFailure::Continue)
        .on_end(Do::job("end"));
    start_and_admit(t, workflow)
}

/// Starts a workflow and lets all of it become pending that waits for nothing.
fn start_and_admit(t: &Harness, workflow: NewWorkflow<'_>) -> jobmill::Result<WorkflowId> {
    t.client().pause("default")?;
    let id = t.client().start_workflow(workflow)?;
    assert_eq!(t.drain()?, 0);
    t.client().resume("default")?;
    Ok(id)
}

/// Jobs that were pending went on beginning while the cascade was at others, and all of them when a crash had cut it off.
#[test]
fn nothing_of_a_cancelled_workflow_begins_where_the_cascade_was_cut_off() -> jobmill::Result<()> {
    for crashes in [true, false] {
        let (mut t, record) = harness()?;
        let id = wide(&t)?;
        let other = t.enqueue(Do::job("other"))?;
        t.faults().fail(2, Fault::Before);
        refused(t.client().acting_as("eve")?.cancel_workflow(id), ErrorKind::Storage, "injected");
        let jobs = t.client().workflow(id)?.jobs;
        assert_eq!((jobs.cancelled, jobs.created, jobs.pending), (500, 1, 1600), "the cascade has more to do");
        t.advance(secs(1));
        if crashes {
            t.crash()?;
        }
        let events = t.client().subscribe(10_000)?;
        let untold = t.client().workflow(id)?.jobs.cancelled;
        t.drain()?;
        assert_eq!(record.take(), ["other", "end"]);
        t.check(other, "completed, attempt 1");
        let expected = "cancelled: now cancelled, soon cancelled, held cancelled, last cancelled, on_end completed";
        assert_eq!(standing(&t, id), expected);
        assert_eq!(t.client().workflow(id)?.jobs.cancelled, 2101);
        let cancelled = |event: &Event| matches!(event, Event::Changed(change) if change.cause == Cause::Cancelled);
        assert_eq!(untold + events.try_iter().filter(cancelled).count() as u64, 2101);
        for job in t.client().jobs(Query::new().workflow(id).statuses([Status::Cancelled]))?.step_by(97) {
            let history = t.client().history(job?.id)?;
            let by_eve = history.iter().filter(|entry| entry.actor.as_deref() == Some("eve")).count();
            assert_eq!(by_eve, 1, "{history:?}");
        }
        sound(t.client());
    }
    Ok(())
}

#[test]
fn nothing_begins_of_a_workflow_that_another_process_has_begun_to_cancel() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let id = wide(&t)?;
    t.advance(secs(1));
    // As one leaves it that dies after its first commit.
    let number = query::<i64>(t.client(), "SELECT id FROM jobmill_flow WHERE parent IS NULL");
    tamper(t.client(), &format!("UPDATE jobmill_flow SET cancel_requested_at = 1 WHERE id = {number}"));
    tamper(
        t.client(),
        &format!(
            "INSERT INTO jobmill_flow_work (whole, work, target) SELECT {number}, 3, id FROM jobmill_flow
             WHERE (id = {number} OR parent = {number}) AND role < 2 ORDER BY role DESC, id"
        ),
    );
    t.drain()?;
    assert_eq!(record.take(), ["end"]);
    assert_eq!(t.client().workflow(id)?.jobs.cancelled, 2101);
    sound(t.client());
    Ok(())
}

/// Jobs are claimed ahead, and those that the cascade had not come to began.
#[test]
fn what_was_claimed_ahead_of_a_cancelled_workflow_does_not_begin() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Cancels;
    impl Payload for Cancels {
        const KIND: &'static str = "cancels";
    }
    let plan: Arc<OnceLock<FaultPlan>> = Arc::default();
    let plan_in_handler = plan.clone();
    let (t, record) = harness_with(move |builder| {
        let plan = plan_in_handler.clone();
        builder.workers(jobmill::Workers::new(4)).handle(move |_: Cancels, ctx: &Context| -> Result<(), Failure> {
            plan.get().expect("a plan").fail_from(2, Fault::Before);
            let id = ctx.workflow()?.expect("a workflow");
            refused(ctx.client().cancel_workflow(id), ErrorKind::Storage, "injected");
            ctx.state::<Record>()?.take();
            Ok(())
        })
    })?;
    assert!(plan.set(t.faults().clone()).is_ok());
    let urgent = std::iter::once(NewJob::of(&Cancels)).chain((0..20).map(|n| Do::job(format!("u{n}"))));
    let workflow = NewWorkflow::new("w")
        .jobs("parts", (0..1700).map(|n| Do::job(n.to_string())))
        .jobs("urgent", urgent.map(|job| job.priority(Priority::Critical)));
    let id = t.client().start_workflow(workflow)?;
    let _ = t.drain();
    assert!(t.client().workflow(id)?.jobs.running > 1, "some are claimed ahead");
    t.faults().heal();
    t.drain()?;
    assert_eq!(record.take(), Vec::<String>::new());
    assert_eq!(t.client().workflow(id)?.status, Status::Cancelled);
    sound(t.client());
    Ok(())
}

/// The workflow had ended before the cascade had, and what was left of that cancelled what came after.
#[test]
fn a_job_that_is_sent_again_after_a_cancelled_workflow_has_ended_runs() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let parts = (0..1700).map(|n| Do::job(n.to_string()));
    let id = start_and_admit(&t, NewWorkflow::new("w").jobs("parts", parts))?;
    t.faults().fail(2, Fault::Before);
    refused(t.client().cancel_workflow(id), ErrorKind::Storage, "injected");
    // The next turn goes through 500 more and cancels the others as it meets them.
    t.faults().fail(2, Fault::Before);
    let _ = t.drain();
    assert_eq!(t.client().workflow(id)?.status, Status::Cancelled);
    let last = t.client().jobs(Query::new().workflow(id).limit(1))?.next().expect("a job")?.id;
    t.client().retry(last)?;
    t.drain()?;
    assert_eq!(record.take().len(), 1);
    t.check(last, "completed, attempt 1");
    sound(t.client());
    Ok(())
}
