//! Tracked jobs: their work happens elsewhere, and whoever does it tells the ledger.

use std::sync::Barrier;
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{
    Cancelled, Client, Deleted, Durability, Engine, ErrorKind, Job, JobId, JobType, JobUpdate, NewJob, Priority, Query,
    Reason, Refusal, Status, StatusChange, StopReason, Unique,
};
use serde_json::{Value, json};

use crate::support::{Block, Echo, PATIENCE, block, echo, file, gate, idle, now, query, refused, secs, sound};

const TERMINAL: [Status; 4] = [Status::Completed, Status::Failed, Status::Cancelled, Status::Expired];

pub(crate) fn json_of(job: &Job) -> Value {
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
