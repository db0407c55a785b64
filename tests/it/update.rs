//! What is changed of a job besides its status: fields, metadata, times, and the word of who did it.

use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Backoff, Client, Context, Durability, ErrorKind, Failure, Job, JobId, JobUpdate, NewJob, Outcome, Priority, Query,
    Status, StopReason,
};
use serde_json::{Value, json};

use crate::support::{Echo, Hands, file, idle, now, refused, secs, sound, with_hands};
use crate::tracked::json_of;

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
