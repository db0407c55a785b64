//! Tracked jobs: their work happens elsewhere, and whoever does it tells the ledger.

use std::sync::Barrier;
use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Backoff, Cancelled, Client, Context, Deleted, Durability, Engine, ErrorKind, Failure, Job, JobId, JobType,
    JobUpdate, NewJob, Outcome, Priority, Query, Reason, Refusal, Status, StatusChange, StopReason, Unique,
};
use serde_json::{Value, json};

use crate::support::{
    Block, Echo, Hands, PATIENCE, block, echo, file, gate, idle, now, query, refused, secs, sound, with_hands,
};

const TERMINAL: [Status; 4] = [Status::Completed, Status::Failed, Status::Cancelled, Status::Expired];

fn json_of(job: &Job) -> Value {
    serde_json::to_value(job).expect("it serializes")
}

/// Records a job by each of the ways that there are.
fn by_every_way(client: &Client, job: &NewJob) -> jobmill::Result<Vec<JobId>> {
    let mut ids = vec![client.enqueue(job.clone())?.id()];
    ids.extend(client.enqueue_many([job.clone(), job.clone()])?.iter().map(|enqueued| enqueued.id()));
    let mut conn = client.connection()?;
    let tx = conn.transaction().expect("a transaction");
    ids.push(client.enqueue_in(&tx, job.clone())?.id());
    tx.commit().expect("a commit");
    let job = job.clone();
    ids.push(client.write(move |tx| tx.enqueue(job))?.id());
    Ok(ids)
}

/// A tracked job that has been brought to this status from the one it begins with.
fn standing(client: &Client, status: Status) -> jobmill::Result<JobId> {
    let id = client.enqueue(NewJob::tracked())?.id();
    if status != Status::Created {
        assert_eq!(client.update_status(id, status)?, StatusChange::Applied);
    }
    Ok(id)
}

#[test]
fn a_tracked_job_begins_in_any_status_and_has_the_times_of_it() -> jobmill::Result<()> {
    let t = idle()?;
    assert_eq!(t.client().get(t.enqueue(NewJob::tracked())?)?.status, Status::Created, "unless something else is said");
    for (nth, status) in Status::ALL.into_iter().enumerate() {
        t.advance(secs(1));
        let ids = by_every_way(t.client(), &NewJob::tracked().status(status))?;
        assert_eq!(ids.len(), 5);
        for id in ids {
            let job = t.client().get(id)?;
            assert!(job.is_tracked() && job.kind.is_none());
            assert_eq!(job.status, status);
            assert_eq!(job.started_at, (status == Status::Running).then_some(now(&t)), "{status}");
            assert_eq!(job.completed_at, status.is_terminal().then_some(now(&t)), "{status}");
            assert_eq!((job.attempt, job.updated_at, job.total_duration), (0, now(&t), None), "{status}");
            assert_eq!(t.client().wait(id, Duration::ZERO).is_ok(), status.is_terminal());
        }
        let stats = t.client().stats()?;
        for (other, seen) in Status::ALL.into_iter().enumerate() {
            let expected = if other <= nth { 5 } else { 0 } + u64::from(other == 0);
            assert_eq!(stats.total.of(seen), expected, "{seen}");
            assert_eq!(stats.kinds[""].of(seen), expected, "{seen}");
        }
    }
    sound(t.client());
    Ok(())
}

#[test]
fn a_job_that_a_handler_runs_begins_in_no_status_of_the_callers_choice() -> jobmill::Result<()> {
    let t = idle()?;
    for status in Status::ALL {
        let says = "status: must not be set for a job that a handler runs";
        refused(t.client().enqueue(Echo::job("x").status(status)), ErrorKind::Invalid, says);
    }
    assert_eq!(t.client().stats()?.total.total(), 0);
    Ok(())
}

/// What the table of DESIGN §5 says of a tracker's wish.
fn expected(from: Status, to: Status) -> StatusChange {
    let rank = |status: Status| match status {
        Status::Created => 0,
        Status::Pending => 1,
        Status::Running => 2,
        _ => 3,
    };
    if from.is_terminal() {
        return if from == to {
            StatusChange::Already
        } else {
            StatusChange::Refused { status: from, why: Refusal::Terminal }
        };
    }
    if rank(to) > rank(from) {
        StatusChange::Applied
    } else {
        StatusChange::Refused { status: from, why: Refusal::Backward }
    }
}

/// Letta's guard stood behind a flag that nobody ever set: a completed job could run again, and its `completed_at` was
/// left in place or written anew.
#[test]
fn every_pair_of_statuses_is_applied_or_refused_and_a_refusal_writes_nothing() -> jobmill::Result<()> {
    let t = idle()?;
    let tracker = t.client().acting_as("tracker")?;
    for from in Status::ALL {
        for to in Status::ALL {
            let id = standing(t.client(), from)?;
            let (before, history, counts) = (t.client().get(id)?, t.client().history(id)?, t.client().stats()?);
            t.advance(secs(1));
            let change = tracker.update_status(id, to)?;
            assert_eq!(change, expected(from, to), "{from} to {to}");
            let after = t.client().get(id)?;
            if change != StatusChange::Applied {
                assert_eq!(after, before, "{from} to {to}");
                assert_eq!(t.client().history(id)?, history, "{from} to {to}");
                assert_eq!(t.client().stats()?, counts, "{from} to {to}");
                continue;
            }
            assert_eq!((after.status, after.updated_at, after.updated_by.as_deref()), (to, now(&t), Some("tracker")));
            assert_eq!(after.completed_at, to.is_terminal().then_some(now(&t)), "{from} to {to}");
            let started_at = if to == Status::Running { Some(now(&t)) } else { before.started_at };
            assert_eq!(after.started_at, started_at, "{from} to {to}");
            let counts_after = t.client().stats()?.total;
            assert_eq!(counts_after.of(from), counts.total.of(from) - 1);
            assert_eq!(counts_after.of(to), counts.total.of(to) + 1);
            assert_eq!(t.client().history(id)?.len(), history.len() + 1);
        }
    }
    sound(t.client());
    Ok(())
}

#[test]
fn the_status_within_an_update_obeys_the_same_rules_and_nothing_is_written_of_a_refused_one() -> jobmill::Result<()> {
    let t = idle()?;
    for from in Status::ALL {
        for to in Status::ALL {
            let id = standing(t.client(), from)?;
            let before = t.client().get(id)?;
            t.advance(secs(1));
            let update = JobUpdate::new().agent("a").background(true).progress(1, None).status(to);
            match expected(from, to) {
                StatusChange::Refused { why, .. } => {
                    refused(t.client().update(id, update), ErrorKind::Conflict, &format!("{id} is {from}, and {why}"));
                    assert_eq!(t.client().get(id)?, before, "{from} to {to}");
                }
                change => {
                    let after = t.client().update(id, update)?;
                    assert_eq!(after, t.client().get(id)?);
                    assert_eq!((after.status, after.agent_id.as_deref()), (to, Some("a")));
                    assert!(after.background && after.progress.is_some());
                    if change == StatusChange::Already {
                        assert_eq!(after.completed_at, before.completed_at, "it is set once");
                    }
                }
            }
        }
    }
    sound(t.client());
    Ok(())
}

#[test]
fn of_trackers_that_race_to_different_ends_exactly_one_wins() -> jobmill::Result<()> {
    let (_directory, path) = file();
    // Two programs with two threads each.
    let clients = [Client::open_with(&path, Durability::Normal)?, Client::open_with(&path, Durability::Normal)?];
    for round in 0..40 {
        let id = standing(&clients[0], [Status::Created, Status::Pending, Status::Running][round % 3])?;
        let start = Barrier::new(4);
        let answers: Vec<(Status, StatusChange)> = std::thread::scope(|scope| {
            let trackers: Vec<_> = TERMINAL
                .into_iter()
                .enumerate()
                .map(|(nth, to)| {
                    let (client, start) = (&clients[nth % 2], &start);
                    scope.spawn(move || {
                        start.wait();
                        (to, client.update_status(id, to).expect("an answer"))
                    })
                })
                .collect();
            trackers.into_iter().map(|tracker| tracker.join().expect("no panic")).collect()
        });
        let winners: Vec<Status> =
            answers.iter().filter(|(_, change)| *change == StatusChange::Applied).map(|(to, _)| *to).collect();
        assert_eq!(winners.len(), 1, "{answers:?}");
        assert_eq!(clients[0].get(id)?.status, winners[0]);
        let too_late = StatusChange::Refused { status: winners[0], why: Refusal::Terminal };
        assert_eq!(answers.iter().filter(|(_, change)| *change == too_late).count(), 3, "{answers:?}");
    }
    sound(&clients[0]);
    Ok(())
}

#[test]
fn the_status_of_a_job_that_a_handler_runs_is_the_engines_alone() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).state(gate).handle(block).start()?;
    let client = engine.client();
    let running = client.enqueue(Block::job("runs"))?.id();
    keeper.next();
    let waits = client.enqueue(NewJob::json("nobody's", &1))?.id();
    let ended = client.enqueue(NewJob::json("nobody's", &1))?.id();
    client.cancel(ended)?;
    for (id, status) in [(running, Status::Running), (waits, Status::Pending), (ended, Status::Cancelled)] {
        let (before, history) = (client.get(id)?, client.history(id)?);
        for to in Status::ALL {
            let refusal = StatusChange::Refused { status, why: Refusal::RunByEngine };
            assert_eq!(client.update_status(id, to)?, refusal, "{status} to {to}");
        }
        for (field, update) in [
            ("status", JobUpdate::new().status(status)),
            ("status", JobUpdate::new().status(Status::Completed).agent("a")),
            ("error", JobUpdate::new().error("x").agent("a")),
            ("error", JobUpdate::new().error(None)),
            ("result", JobUpdate::new().result(&1).agent("a")),
            ("progress", JobUpdate::new().progress(1, Some(2)).agent("a")),
        ] {
            let says = format!("{field}: the engine runs {id}");
            refused(client.update(id, update), ErrorKind::Conflict, &says);
        }
        assert_eq!((client.get(id)?, client.history(id)?), (before, history));
    }
    // While it runs its claim knows its lane.
    refused(
        client.update(running, JobUpdate::new().background(true)),
        ErrorKind::Conflict,
        "background: the engine runs",
    );
    // All else that stands in its row is the application's to change, whatever the engine does.
    let update = || JobUpdate::new().agent("a").merge_metadata(&json!({"k": 1})).ttft(secs(1)).organization("o");
    for id in [running, waits, ended] {
        let job = client.update(id, update())?;
        assert_eq!((job.agent_id.as_deref(), job.ttft), (Some("a"), Some(secs(1))));
    }
    assert!(client.update(waits, JobUpdate::new().background(true))?.background);
    keeper.release();
    assert_eq!(client.wait(running, PATIENCE)?.result::<String>()?, "runs");
    sound(client);
    Ok(())
}

/// No field could ever be cleared in Letta: an update copied what was not null.
#[test]
fn every_field_is_set_and_every_nullable_one_is_cleared() -> jobmill::Result<()> {
    let t = idle()?;
    let id = t.enqueue(NewJob::tracked())?;
    let fresh = json_of(&t.client().get(id)?);
    let url = "https://example.com/hook";
    let table: [(&str, JobUpdate, Value, JobUpdate); 9] = [
        (
            "stop_reason",
            JobUpdate::new().stop_reason(StopReason::END_TURN),
            json!("end_turn"),
            JobUpdate::new().stop_reason(None),
        ),
        ("agent_id", JobUpdate::new().agent("agent-7"), json!("agent-7"), JobUpdate::new().agent(None)),
        ("organization_id", JobUpdate::new().organization("org"), json!("org"), JobUpdate::new().organization(None)),
        ("callback_url", JobUpdate::new().callback_url(url), json!(url), JobUpdate::new().callback_url(None)),
        (
            "metadata",
            JobUpdate::new().metadata(&json!({"a": [1]})),
            json!({"a": [1]}),
            JobUpdate::new().clear_metadata(),
        ),
        (
            "request_config",
            JobUpdate::new().request_config(&json!({"use_assistant_message": true})),
            json!({"use_assistant_message": true}),
            JobUpdate::new().clear_request_config(),
        ),
        ("ttft_ns", JobUpdate::new().ttft(Duration::from_nanos(1)), json!(1), JobUpdate::new().ttft(None)),
        (
            "total_duration_ns",
            JobUpdate::new().total_duration(Duration::from_nanos(u64::from(u32::MAX) + 1)),
            json!(4_294_967_296_u64),
            JobUpdate::new().total_duration(None),
        ),
        ("error", JobUpdate::new().error("out of luck"), json!("out of luck"), JobUpdate::new().error(None)),
    ];
    for (field, set, value, clear) in table {
        assert_eq!(fresh[field], Value::Null, "{field}");
        let job = json_of(&t.client().update(id, set)?);
        let mut expected = fresh.clone();
        expected[field] = value;
        assert_eq!(job, expected, "{field} alone is set");
        assert_eq!(json_of(&t.client().update(id, JobUpdate::new())?), expected, "what is not named stays");
        assert_eq!(json_of(&t.client().update(id, clear)?), fresh, "{field} alone is cleared");
    }
    let job = t.client().update(id, JobUpdate::new().background(true).progress(3, Some(4)).result(&json!(["r"])))?;
    assert!(job.background);
    assert_eq!(job.progress.as_ref().map(|progress| (progress.done, progress.total)), Some((3, Some(4))));
    assert_eq!(job.result::<Vec<String>>()?, ["r"]);
    assert!(!t.client().update(id, JobUpdate::new().background(false))?.background);
    sound(t.client());
    Ok(())
}

#[test]
fn an_update_that_breaks_a_rule_names_its_field_and_writes_nothing() -> jobmill::Result<()> {
    let t = idle()?;
    let id = t.enqueue(NewJob::tracked().metadata(&json!({"a": "x".repeat(600_000)})))?;
    let before = t.client().get(id)?;
    t.advance(secs(1));
    let long = "n".repeat(129);
    let endless = NewJob::MAX_DURATION + secs(1);
    let table: [(&str, JobUpdate); 14] = [
        ("stop_reason: ", JobUpdate::new().stop_reason(StopReason::from(long.clone()))),
        ("stop_reason: ", JobUpdate::new().stop_reason(StopReason::from(""))),
        ("agent: ", JobUpdate::new().agent(long.as_str())),
        ("agent: ", JobUpdate::new().agent("")),
        ("organization: ", JobUpdate::new().organization("a\nb")),
        ("callback_url: ", JobUpdate::new().callback_url("ftp://example.com")),
        ("metadata: must be a JSON object", JobUpdate::new().metadata(&1)),
        ("metadata: must be a JSON object", JobUpdate::new().merge_metadata(&json!(null))),
        ("metadata: must be no longer than", JobUpdate::new().metadata(&json!({"a": "x".repeat(1 << 20)}))),
        // Each half is short enough, and both together are not.
        ("metadata: would grow too long", JobUpdate::new().merge_metadata(&json!({"b": "x".repeat(600_000)}))),
        ("metadata.source_id: ", JobUpdate::new().merge_metadata(&json!({"source_id": "x".repeat(1025)}))),
        ("request_config: ", JobUpdate::new().request_config(&"x".repeat(1 << 20))),
        ("ttft: ", JobUpdate::new().ttft(endless)),
        ("total_duration: ", JobUpdate::new().total_duration(endless)),
    ];
    for (says, update) in table {
        let update = update.progress(1, None).status(Status::Completed);
        refused(t.client().update(id, update), ErrorKind::Invalid, says);
        assert_eq!(t.client().get(id)?, before, "{says}");
    }
    let unknown: JobId = "job-0000000000002".parse()?;
    let says = "there is no job job-0000000000002";
    refused(t.client().update(unknown, JobUpdate::new()), ErrorKind::NotFound, says);
    refused(t.client().update_status(unknown, Status::Running), ErrorKind::NotFound, says);
    refused(t.client().record_ttft(unknown, secs(1)), ErrorKind::NotFound, says);
    refused(t.client().record_total_duration(unknown, secs(1)), ErrorKind::NotFound, says);
    sound(t.client());
    Ok(())
}

#[test]
fn metadata_is_replaced_merged_or_cleared_and_is_found_by_its_source() -> jobmill::Result<()> {
    let t = idle()?;
    let id = t.enqueue(NewJob::tracked().metadata(&json!({"source_id": "one", "a": {"deep": 1}, "b": 2})))?;
    let found = |source: &str| -> jobmill::Result<bool> {
        Ok(t.client().list(Query::new().source_id(source))?.jobs.iter().any(|job| job.id == id))
    };
    let change = |update: JobUpdate| t.client().update(id, update).map(|job| job.metadata.map(Value::Object));
    assert!(found("one")?);
    // Key by key of the top level alone; a null removes its key, one that is not there too.
    let merged =
        change(JobUpdate::new().merge_metadata(&json!({"a": {"other": null}, "b": null, "c": [1], "d": null})))?;
    assert_eq!(merged, Some(json!({"source_id": "one", "a": {"other": null}, "c": [1]})));
    assert!(found("one")?);
    change(JobUpdate::new().merge_metadata(&json!({"source_id": "two"})))?;
    assert!(!found("one")? && found("two")?);
    change(JobUpdate::new().merge_metadata(&json!({"source_id": null})))?;
    assert!(!found("two")? && !found("null")?);
    // Numbers and truth values are compared as JSON text, and what is neither text nor one of these is no source.
    for (source, text) in [(json!(7), "7"), (json!(true), "true"), (json!(1.5), "1.5")] {
        change(JobUpdate::new().metadata(&json!({"source_id": source})))?;
        assert!(found(text)?, "{text}");
    }
    let replaced = change(JobUpdate::new().metadata(&json!({"source_id": ["1.5"]})))?;
    assert_eq!(replaced, Some(json!({"source_id": ["1.5"]})), "nothing of the old is left");
    assert!(!found("1.5")?);
    change(JobUpdate::new().metadata(&json!({"source_id": "three"})))?;
    assert_eq!(change(JobUpdate::new().clear_metadata())?, None);
    assert!(!found("three")?);
    assert_eq!(change(JobUpdate::new().merge_metadata(&json!({"n": 1})))?, Some(json!({"n": 1})), "nothing is no bar");
    // Of two words in one update the last one counts.
    let last = change(JobUpdate::new().merge_metadata(&json!({"x": 1})).metadata(&json!({"y": 1})))?;
    assert_eq!(last, Some(json!({"y": 1})));
    Ok(())
}

#[test]
fn a_job_tells_who_created_it_and_who_last_changed_it() -> jobmill::Result<()> {
    let t = idle()?;
    let (ann, bob) = (t.client().acting_as("ann")?, t.client().for_user("bob")?);
    let by = |job: &Job| (job.created_by.clone(), job.updated_by.clone());
    let some = |name: &str| Some(name.to_owned());
    let id = ann.enqueue(NewJob::tracked().user("bob"))?.id();
    let job = t.client().get(id)?;
    assert_eq!((by(&job), job.updated_at), ((some("ann"), None), now(&t)));
    t.advance(secs(1));
    let job = bob.update(id, JobUpdate::new().agent("x"))?;
    assert_eq!((by(&job), job.updated_at), ((some("ann"), some("bob")), now(&t)));
    t.advance(secs(1));
    bob.acting_as("bob's phone")?.update_status(id, Status::Running)?;
    let job = t.client().get(id)?;
    assert_eq!((by(&job), job.updated_at), ((some("ann"), some("bob's phone")), now(&t)));
    t.advance(secs(1));
    ann.record_ttft(id, secs(1))?;
    let job = t.client().get(id)?;
    assert_eq!((by(&job), job.updated_at), ((some("ann"), some("ann")), now(&t)));
    let own = t.client().get(bob.enqueue(NewJob::tracked())?.id())?;
    assert_eq!((by(&own), own.user_id.as_deref()), ((some("bob"), None), Some("bob")));
    assert_eq!(by(&t.client().get(t.enqueue(NewJob::tracked())?)?), (None, None), "nobody has a name");
    Ok(())
}

#[test]
fn times_are_recorded_by_calls() -> jobmill::Result<()> {
    let t = idle()?;
    let times = |id| t.client().get(id).map(|job| (job.ttft, job.total_duration));
    let id = t.enqueue(NewJob::tracked().status(Status::Running))?;
    assert_eq!(times(id)?, (None, None));
    t.client().record_ttft(id, Duration::from_nanos(123))?;
    t.client().record_total_duration(id, Duration::ZERO)?;
    assert_eq!(times(id)?, (Some(Duration::from_nanos(123)), Some(Duration::ZERO)));
    t.client().record_ttft(id, NewJob::MAX_DURATION)?;
    t.advance(secs(5));
    t.client().update_status(id, Status::Completed)?;
    assert_eq!(times(id)?, (Some(NewJob::MAX_DURATION), Some(Duration::ZERO)), "what was recorded is not derived");
    t.client().record_total_duration(id, secs(2))?;
    assert_eq!(times(id)?.1, Some(secs(2)), "after the end too");
    t.client().update(id, JobUpdate::new().total_duration(None))?;
    assert_eq!(times(id)?.1, Some(secs(5)), "without a record it is the time from start to end");
    let unstarted = t.enqueue(NewJob::tracked())?;
    t.advance(secs(5));
    t.client().update_status(unstarted, Status::Completed)?;
    assert_eq!(times(unstarted)?.1, None, "nobody knows when it began");
    Ok(())
}

#[test]
fn times_and_the_reason_are_recorded_by_the_handlers_context() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder.handle(|job: Echo, ctx: &Context| -> Result<Outcome<()>, Failure> {
            let hands = ctx.state::<Hands>()?;
            hands.pass(Duration::from_millis(30));
            ctx.first_token();
            hands.pass(Duration::from_millis(30));
            ctx.first_token();
            assert!(ctx.stop_reason("").is_err() && ctx.stop_reason("x".repeat(129)).is_err());
            ctx.stop_reason(StopReason::MAX_STEPS)?;
            ctx.stop_reason("timeout")?;
            hands.pass(Duration::from_millis(40));
            match job.0.as_str() {
                "recorded" => {
                    ctx.total_duration(secs(9));
                    ctx.total_duration(secs(7));
                    Ok(Outcome::Done(()))
                }
                "in a turn" => {
                    ctx.complete(|_| -> Result<(), Failure> { Ok(()) })?;
                    Ok(Outcome::Done(()))
                }
                "fails" => Err(Failure::fatal("no")),
                "cancels" => Ok(Outcome::Cancel("no".to_owned())),
                _ => Ok(Outcome::Done(())),
            }
        })
    })?;
    for how in ["plain", "recorded", "in a turn", "fails", "cancels"] {
        let id = t.enqueue(Echo::job(how))?;
        assert_eq!(t.drain()?, 1);
        let job = t.client().get(id)?;
        assert_eq!(job.ttft, Some(Duration::from_millis(30)), "{how}: the first mark counts");
        assert_eq!(job.stop_reason, Some(StopReason::from("timeout")), "{how}: the last word counts");
        let took = if how == "recorded" { secs(7) } else { Duration::from_millis(100) };
        assert_eq!(job.total_duration, Some(took), "{how}");
        assert!(t.client().list(Query::new().stop_reason("timeout"))?.jobs.iter().any(|found| found.id == id));
    }
    sound(t.client());
    Ok(())
}

#[test]
fn a_tracked_job_is_cancelled_retried_and_deleted_at_once() -> jobmill::Result<()> {
    let t = idle()?;
    for status in Status::ALL {
        let id = t.enqueue(NewJob::tracked().status(status).tags(["x"]))?;
        t.advance(secs(1));
        let says = |what: &str| {
            format!("{id} is {status} {}cannot be {what}", if status.is_terminal() { "already and " } else { "and " })
        };
        match status {
            Status::Created | Status::Pending | Status::Running => {
                refused(t.client().retry(id), ErrorKind::Conflict, &says("retried"));
                assert_eq!(t.client().cancel(id)?, Cancelled::Now, "nobody here runs it");
                let job = t.client().get(id)?;
                assert_eq!((job.status, job.completed_at), (Status::Cancelled, Some(now(&t))));
                assert_eq!(t.client().cancel(id)?, Cancelled::Already);
                let too_late = StatusChange::Refused { status: Status::Cancelled, why: Refusal::Terminal };
                assert_eq!(t.client().update_status(id, Status::Completed)?, too_late);
            }
            Status::Cancelled => assert_eq!(t.client().cancel(id)?, Cancelled::Already),
            _ => refused(t.client().cancel(id), ErrorKind::Conflict, &says("cancelled")),
        }
        if status == Status::Completed {
            refused(t.client().retry(id), ErrorKind::Conflict, &says("retried"));
        } else {
            t.client().retry(id)?;
            let job = t.client().get(id)?;
            assert_eq!((job.status, job.completed_at, job.cancel_requested_at), (Status::Pending, None, None));
            assert_eq!(t.drain()?, 0);
            assert_eq!(
                t.client().update_status(id, Status::Running)?,
                StatusChange::Applied,
                "it goes its way once more"
            );
        }
        assert_eq!(t.client().delete(id)?, Deleted::Now);
        refused(t.client().get(id), ErrorKind::NotFound, "there is no job");
        refused(t.client().delete(id), ErrorKind::NotFound, "there is no job");
    }
    assert_eq!(t.client().stats()?.total.total(), 0);
    assert_eq!(query::<i64>(t.client(), "SELECT count(*) FROM jobmill_tag"), 0);
    sound(t.client());
    Ok(())
}

#[test]
fn a_tracked_job_that_has_not_begun_in_time_expires() -> jobmill::Result<()> {
    let t = idle()?;
    let mut ids = Vec::new();
    for status in Status::ALL {
        ids.push(t.enqueue(NewJob::tracked().status(status).expires_in(secs(10)))?);
    }
    // One whose own time has not come, and one that has begun by then.
    ids.push(t.enqueue(NewJob::tracked().status(Status::Pending).delay(secs(60)).expires_in(secs(10)))?);
    let begun = t.enqueue(NewJob::tracked().expires_in(secs(10)))?;
    t.client().update_status(begun, Status::Running)?;
    t.advance(secs(9));
    t.drain()?;
    assert_eq!(t.client().stats()?.total.expired, 1, "the one that was recorded so");
    t.advance(secs(1));
    t.drain()?;
    let statuses: Vec<Status> =
        ids.iter().map(|id| t.client().get(*id).map(|job| job.status)).collect::<jobmill::Result<_>>()?;
    use Status::{Cancelled, Completed, Expired, Failed, Running};
    assert_eq!(statuses, [Expired, Expired, Running, Completed, Failed, Cancelled, Expired, Expired]);
    assert_eq!(t.client().get(ids[0])?.completed_at, Some(now(&t)));
    assert_eq!(t.client().get(begun)?.status, Running);
    let too_late = StatusChange::Refused { status: Expired, why: Refusal::Terminal };
    assert_eq!(t.client().update_status(ids[0], Running)?, too_late);
    sound(t.client());
    Ok(())
}

#[test]
fn the_type_is_kept_by_every_way_in_and_the_id_of_a_run_says_so() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let mut last = None;
    for job in [NewJob::tracked(), Echo::job("x")] {
        for job_type in JobType::ALL {
            for id in by_every_way(t.client(), &job.clone().job_type(job_type))? {
                assert!(Some(id) > last, "ids grow");
                last = Some(id);
                let text = id.to_string();
                assert!(text.starts_with(if job_type == JobType::Run { "run-" } else { "job-" }), "{text}");
                assert_eq!(text.parse::<JobId>()?, id);
                let job = t.client().get(id)?;
                assert_eq!((job.job_type, job.id, job.created_at()), (job_type, id, now(&t)));
                let other = if text.starts_with("run-") { "job-" } else { "run-" };
                assert!(text.replace(&text[..4], other).parse::<JobId>().is_err(), "the prefix is part of the id");
            }
        }
    }
    assert_eq!(t.drain()?, 15, "a handler runs a job of any type");
    let stats = t.client().stats()?;
    for job_type in JobType::ALL {
        assert_eq!((stats.job_types[&job_type].created, stats.job_types[&job_type].completed), (5, 5));
        let page = t.client().list(Query::new().job_types([job_type]))?;
        assert!(page.jobs.len() == 10 && page.jobs.iter().all(|job| job.job_type == job_type));
    }
    sound(t.client());
    Ok(())
}

#[test]
fn a_job_may_come_into_the_background_and_out_of_it_while_it_waits_and_runs_then() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let now_or_later = [Echo::job("now").user("u"), Echo::job("later").delay(secs(5)), Echo::job("x").background(true)];
    let ids: Vec<JobId> = now_or_later.into_iter().map(|job| t.enqueue(job)).collect::<jobmill::Result<_>>()?;
    let tracked = t.enqueue(NewJob::tracked().status(Status::Running).user("u"))?;
    let in_background = || -> jobmill::Result<Vec<JobId>> {
        let page = t.client().list(Query::new().background(true).order(jobmill::Order::Ascending))?;
        assert!(page.jobs.iter().all(|job| job.background));
        Ok(page.jobs.iter().map(|job| job.id).collect())
    };
    assert_eq!(in_background()?, [ids[2]]);
    for id in [ids[0], ids[1], tracked] {
        assert!(t.client().update(id, JobUpdate::new().background(true))?.background);
    }
    t.client().update(ids[2], JobUpdate::new().background(false))?;
    assert_eq!(in_background()?, [ids[0], ids[1], tracked]);
    sound(t.client());
    assert_eq!(t.drain()?, 2);
    t.advance(secs(5));
    assert_eq!(t.drain()?, 1, "a delayed one keeps its time");
    assert_eq!(in_background()?, [ids[0], ids[1], tracked]);
    let job = t.client().update(tracked, JobUpdate::new().background(false).status(Status::Completed))?;
    assert_eq!((job.background, job.status), (false, Status::Completed));
    assert_eq!(t.client().update(ids[0], JobUpdate::new().background(false))?.user_id.as_deref(), Some("u"));
    assert_eq!(in_background()?, [ids[1]]);
    sound(t.client());
    Ok(())
}

#[test]
fn a_tracked_job_never_runs_and_costs_the_claim_nothing() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.durability(Durability::Normal).handle(echo))?;
    for n in 0..100 {
        let job = NewJob::tracked().status(if n % 2 == 0 { Status::Pending } else { Status::Created });
        t.enqueue(if n % 3 == 0 { job.delay(secs(1)) } else { job }.priority(Priority::Critical))?;
    }
    t.advance(secs(2));
    assert_eq!(t.drain()?, 0);
    let commits = t.faults().commits();
    assert_eq!(t.drain()?, 0);
    assert_eq!(t.faults().commits(), commits, "nothing was to be done");
    let id = t.enqueue(Echo::job("x").priority(Priority::Low))?;
    assert_eq!(t.drain()?, 1, "they stand in nobody's way");
    assert_eq!(t.client().get(id)?.status, Status::Completed);
    let stats = t.client().stats()?;
    assert_eq!((stats.total.pending, stats.total.created, stats.total.running), (50, 50, 0));
    Ok(())
}

#[test]
fn a_tracked_job_explains_itself() -> jobmill::Result<()> {
    let t = idle()?;
    for status in Status::ALL {
        let id = t.enqueue(NewJob::tracked().status(status))?;
        let told = t.client().explain(id)?;
        let reason = if status.is_terminal() { Reason::Ended { status } } else { Reason::Tracked };
        assert_eq!((told.status, told.reasons), (status, vec![reason]));
        assert_eq!(t.client().attempts(id)?, [], "no handler ran");
        assert_eq!(t.client().log(id)?, []);
    }
    let id = t.enqueue(NewJob::tracked())?;
    assert_eq!(t.client().explain(id)?.to_string(), "created: its work happens elsewhere");
    let job = t.client().get(id)?;
    refused(job.payload::<Value>(), ErrorKind::Invalid, "payload: ");
    refused(job.result::<Value>(), ErrorKind::Conflict, &format!("{id} is created and has no result"));
    Ok(())
}

#[test]
fn a_tracked_job_holds_its_unique_key_until_its_tracker_ends_it() -> jobmill::Result<()> {
    let t = idle()?;
    let keyed = || NewJob::tracked().unique(Unique::key("k"));
    let first = t.enqueue(keyed())?;
    for status in [Status::Pending, Status::Running] {
        assert_eq!(t.enqueue(keyed())?, first);
        t.client().update_status(first, status)?;
    }
    assert_eq!(t.enqueue(keyed())?, first);
    t.client().update_status(first, Status::Failed)?;
    let second = t.client().enqueue(keyed().status(Status::Running))?;
    assert!(second.is_new());
    let says = format!("{first} cannot be retried, for {} holds its unique key", second.id());
    refused(t.client().retry(first), ErrorKind::Conflict, &says);
    // One that is over when it is recorded keeps nobody away.
    t.client().update_status(second.id(), Status::Completed)?;
    assert!(t.client().enqueue(keyed().status(Status::Completed))?.is_new());
    assert!(t.client().enqueue(keyed())?.is_new());
    Ok(())
}

#[test]
fn a_tracked_job_outlives_crashes_and_restarts_as_it_stands() -> jobmill::Result<()> {
    let mut t = idle()?;
    let ids: Vec<JobId> = Status::ALL
        .into_iter()
        .map(|status| t.enqueue(NewJob::tracked().status(status).user("u")))
        .collect::<jobmill::Result<_>>()?;
    let all = |t: &Harness| ids.iter().map(|id| t.client().get(*id)).collect::<jobmill::Result<Vec<Job>>>();
    let before = all(&t)?;
    t.crash()?;
    t.drain()?;
    assert_eq!(all(&t)?, before, "nobody is rescued who was not ours");
    t.restart()?;
    t.drain()?;
    assert_eq!(all(&t)?, before);
    sound(t.client());
    Ok(())
}

#[test]
fn a_job_in_json_bears_the_documented_names() -> jobmill::Result<()> {
    let t = idle()?;
    let ann = t.client().acting_as("ann")?;
    let id = ann
        .enqueue(
            NewJob::tracked()
                .job_type(JobType::Run)
                .status(Status::Running)
                .background(true)
                .user("u")
                .organization("o")
                .agent("a")
                .metadata(&json!({"source_id": "s"}))
                .request_config(&json!({"include_return_message_types": null}))
                .callback_url("https://example.com/hook")
                .tags(["t"]),
        )?
        .id();
    t.advance(Duration::from_micros(1_500_000));
    let update = JobUpdate::new()
        .status(Status::Completed)
        .stop_reason(StopReason::END_TURN)
        .ttft(Duration::from_nanos(5))
        .error("e")
        .progress(1, Some(2));
    ann.acting_as("bob")?.update(id, update)?;
    let mut found = json_of(&t.client().get(id)?);
    let documented = json!({
        "id": id.to_string(),
        "created_at": "2026-01-01T00:00:00.000000Z",
        "job_type": "run",
        "status": "completed",
        "stop_reason": "end_turn",
        "background": true,
        "metadata": {"source_id": "s"},
        "request_config": {"include_return_message_types": null},
        "callback_url": "https://example.com/hook",
        "callback_sent_at": null,
        "callback_status_code": null,
        "callback_error": null,
        "ttft_ns": 5,
        "total_duration_ns": 1_500_000_000_u64,
        "completed_at": "2026-01-01T00:00:01.500000Z",
        "updated_at": "2026-01-01T00:00:01.500000Z",
        "user_id": "u",
        "organization_id": "o",
        "agent_id": "a",
        "created_by": "ann",
        "updated_by": "bob",
    });
    let own = json!({
        "kind": null,
        "queue": "default",
        "priority": "default",
        "attempt": 0,
        "max_attempts": 10,
        "run_at": "2026-01-01T00:00:00.000000Z",
        "started_at": "2026-01-01T00:00:00.000000Z",
        "expires_at": null,
        "timeout": null,
        "cancel_requested_at": null,
        "unique_key": null,
        "failure_reason": null,
        "schedule": null,
        "scheduled_for": null,
        "workflow_id": null,
        "tags": ["t"],
        "error": "e",
        "progress": {"done": 1, "total": 2, "note": null},
    });
    for expected in [documented, own] {
        for (name, value) in expected.as_object().expect("an object") {
            assert_eq!(found.as_object_mut().and_then(|found| found.remove(name)).as_ref(), Some(value), "{name}");
        }
    }
    assert_eq!(found, json!({}), "and no others");
    Ok(())
}

/// A retry took the moment of the end away, so that a job seemed to have changed last when it had begun; a move and a
/// failed attempt left no trace at all, and who had cancelled, retried or moved it was not told.
#[test]
fn every_change_from_outside_says_when_it_was_and_by_whom() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder
            .durability(Durability::Normal)
            .handle(|_: Echo, _: &Context| -> Result<(), Failure> { Err(Failure::fatal("no")) })
    })?;
    type Change = fn(&Client, JobId) -> jobmill::Result<()>;
    let table: [(&str, Change); 8] = [
        ("set_priority", |client, id| client.set_priority(id, Priority::High)),
        ("set_queue", |client, id| client.set_queue(id, "mail")),
        ("update", |client, id| client.update(id, JobUpdate::new().agent("a")).map(drop)),
        ("background", |client, id| client.update(id, JobUpdate::new().background(true)).map(drop)),
        ("cancel", |client, id| client.cancel(id).map(drop)),
        ("retry", |client, id| client.retry(id)),
        ("select", |client, _| client.select(Query::new())?.set_priority(Priority::Low).map(drop)),
        ("cancel once more", |client, id| client.cancel(id).map(drop)),
    ];
    let id = t.enqueue(Echo::job("x").delay(secs(3600)))?;
    for (name, change) in table {
        t.advance(secs(1));
        change(&t.client().acting_as(name)?, id)?;
        let job = t.client().get(id)?;
        assert_eq!((job.updated_at, job.updated_by.as_deref()), (now(&t), Some(name)));
    }
    // What the engine does is told by its moment alone.
    t.client().acting_as("retry")?.retry(id)?;
    t.advance(secs(1));
    t.drain()?;
    let job = t.client().get(id)?;
    assert_eq!((job.status, job.updated_at, job.updated_by.as_deref()), (Status::Failed, now(&t), Some("retry")));
    t.advance(secs(1));
    t.client().acting_as("again")?.retry(id)?;
    let job = t.client().get(id)?;
    assert_eq!((job.status, job.updated_at, job.updated_by.as_deref()), (Status::Pending, now(&t), Some("again")));
    Ok(())
}

#[test]
fn each_step_back_to_waiting_is_a_change() -> jobmill::Result<()> {
    let mut t = with_hands(|builder| {
        builder.backoff(Backoff::fixed(secs(3600))).handle(|job: Echo, ctx: &Context| -> Result<Outcome<()>, Failure> {
            let hands = ctx.state::<Hands>()?;
            hands.pass(secs(3));
            match job.0.as_str() {
                "fails" => Err(Failure::retry("no")),
                _ => Ok(Outcome::Snooze(secs(60))),
            }
        })
    })?;
    for how in ["fails", "snoozes"] {
        let id = t.enqueue(Echo::job(how))?;
        t.drain()?;
        let job = t.client().get(id)?;
        assert_eq!((job.status, job.updated_at), (Status::Pending, now(&t)), "{how}");
        assert_eq!(job.started_at, Some(now(&t).saturating_sub(secs(3))));
    }
    // One that was claimed and goes back by a rescue.
    let id = t.enqueue(Echo::job("fails"))?;
    t.faults().fail(2, Fault::Before);
    assert!(t.drain().is_err(), "its claim is written, and its end is not");
    t.advance(secs(1));
    t.crash()?;
    let job = t.client().get(id)?;
    assert_eq!((job.status, job.updated_at), (Status::Pending, now(&t)));
    Ok(())
}

/// Letta read the metadata, merged, and wrote them back: of two merges at once one was lost.
#[test]
fn merges_that_race_lose_nothing() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let clients = [Client::open_with(&path, Durability::Normal)?, Client::open_with(&path, Durability::Normal)?];
    let id = clients[0].enqueue(NewJob::tracked())?.id();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let client = &clients[thread % 2];
            scope.spawn(move || {
                for n in 0..25 {
                    let key = format!("{thread} {n}");
                    client.update(id, JobUpdate::new().merge_metadata(&json!({key: n}))).expect("a merge");
                }
            });
        }
    });
    assert_eq!(clients[0].get(id)?.metadata.map(|metadata| metadata.len()), Some(100));
    Ok(())
}

#[test]
fn the_result_and_the_progress_of_a_tracked_job_can_be_cleared() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let id = t.enqueue(NewJob::tracked().status(Status::Running))?;
    let job = t.client().update(id, JobUpdate::new().result(&"half").progress(1, Some(2)))?;
    assert_eq!((job.result::<String>()?, job.progress.map(|progress| progress.done)), ("half".to_owned(), Some(1)));
    let job = t.client().update(id, JobUpdate::new().clear_result().clear_progress())?;
    assert_eq!((job.result, job.progress), (None, None));
    // A retry begins with neither an old result nor an old reason.
    t.client().update(id, JobUpdate::new().status(Status::Failed).result(&1).stop_reason(StopReason::ERROR))?;
    t.client().retry(id)?;
    let job = t.client().get(id)?;
    assert_eq!((job.status, job.result, job.stop_reason), (Status::Pending, None, None));
    sound(t.client());
    Ok(())
}
