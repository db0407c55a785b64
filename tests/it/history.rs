//! Who did what to a job, and when: one list for each life, and the audit that outlives the job.

use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Action, Backoff, Client, Clock, Context, Deleted, Durability, Engine, ErrorKind, Failure, HistoryEntry, JobId,
    JobUpdate, NewJob, Outcome, Payload, Priority, Query, Retention, Status, Timestamp, Unique,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::{Block, Hands, PATIENCE, block, file, gate, query, refused, secs, sound, until, with_hands};

/// What a handler does in its attempts, one after another, a second each. The last goes on and on.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Life(Vec<String>);

impl Payload for Life {
    const KIND: &'static str = "life";
}

fn live(life: Life, ctx: &Context) -> Result<Outcome<String>, Failure> {
    let runs: usize = ctx.saved()?.unwrap_or(0);
    ctx.save(&(runs + 1))?;
    let hands = ctx.state::<Hands>()?;
    hands.pass(secs(1));
    match life.0[runs.min(life.0.len() - 1)].as_str() {
        "fails" => Err(Failure::retry("no luck")),
        "fails for a moment" => Err(Failure::retry_after(Duration::ZERO, "no luck")),
        "refuses" => Err(Failure::fatal("never")),
        "panics" => panic!("oh no"),
        "snoozes" => Ok(Outcome::Snooze(secs(10))),
        "cancels" => Ok(Outcome::Cancel("of no use".to_owned())),
        "overstays" => {
            hands.pass(secs(60));
            ctx.check()?;
            Ok(Outcome::Done("too late".to_owned()))
        }
        "is asked to stop" | "is asked to stop and does not" => {
            ctx.client().acting_as("ann")?.cancel(ctx.id())?;
            hands.pass(secs(1));
            if !life.0[0].ends_with("not") {
                ctx.check()?;
            }
            Ok(Outcome::Done("done".to_owned()))
        }
        "is deleted" => {
            assert_eq!(ctx.client().acting_as("ann")?.delete(ctx.id())?, Deleted::Requested);
            assert_eq!(ctx.client().acting_as("bob")?.delete(ctx.id())?, Deleted::Requested);
            hands.pass(secs(1));
            ctx.check()?;
            Ok(Outcome::Done("done".to_owned()))
        }
        "is updated" => {
            ctx.client().acting_as("ann")?.update(ctx.id(), JobUpdate::new().agent("a"))?;
            Ok(Outcome::Done("done".to_owned()))
        }
        _ => Ok(Outcome::Done("done".to_owned())),
    }
}

fn life<const N: usize>(attempts: [&str; N]) -> NewJob {
    NewJob::of(&Life(attempts.map(str::to_owned).to_vec()))
}

fn world() -> jobmill::Result<Harness> {
    with_hands(|builder| {
        builder
            .durability(Durability::Normal)
            .backoff(Backoff::fixed(secs(10)))
            .retention(Retention::FOREVER)
            .handle(live)
    })
}

/// A change in a few words: seconds since the start, action, statuses, attempt, actor and note.
fn words(change: &HistoryEntry) -> String {
    let start = Timestamp::from_micros(1_767_225_600_000_000);
    let status = |status: Option<Status>| status.map_or("-", Status::as_str);
    let mut words = format!("{} {}", change.at.since(start).as_secs(), change.action);
    if change.job.is_some() {
        words += &format!(" {}>{}", status(change.from), status(change.to));
    }
    if let Some(attempt) = change.attempt {
        words += &format!(" #{attempt}");
    }
    match change.actor.as_deref() {
        // The host and the process are those of this run.
        Some(worker) if worker.contains('/') => words += " by worker",
        Some(actor) => words += &format!(" by {actor}"),
        None => {}
    }
    match change.note.as_deref() {
        Some(panic) if panic.ends_with(": oh no") => words += ": oh no",
        Some(note) => words += &format!(": {note}"),
        None => {}
    }
    words
}

fn told(client: &Client, id: JobId) -> jobmill::Result<Vec<String>> {
    let history = client.history(id)?;
    assert!(history.iter().all(|change| change.job == Some(id)));
    Ok(history.iter().map(words).collect())
}

/// Rows that the audit and the attempts have.
fn rows(client: &Client) -> (i64, i64) {
    (query(client, "SELECT count(*) FROM jobmill_audit"), query(client, "SELECT count(*) FROM jobmill_attempt"))
}

/// Lets a job live until it has ended, and gives its history.
fn lived(t: &Harness, job: NewJob) -> jobmill::Result<Vec<String>> {
    let id = t.enqueue(job)?;
    for _ in 0..10 {
        t.advance(secs(1));
        t.drain()?;
        if t.client().get(id)?.status.is_terminal() {
            break;
        }
        t.advance(secs(9));
    }
    sound(t.client());
    told(t.client(), id)
}

#[test]
fn the_ordinary_life_is_told_without_a_row_of_its_own() -> jobmill::Result<()> {
    let t = world()?;
    assert_eq!(
        lived(&t, life(["completes"]))?,
        ["0 created ->pending", "1 started pending>running #1 by worker", "2 ended running>completed #1 by worker"]
    );
    let t = world()?;
    assert_eq!(
        lived(&t, life(["refuses"]))?,
        ["0 created ->pending", "1 started pending>running #1 by worker", "2 ended running>failed #1 by worker: never"]
    );
    assert_eq!(rows(t.client()), (0, 0));
    // What is recorded at once, and while it waits and runs.
    let id = t.client().acting_as("ann")?.enqueue(life(["completes"]))?.id();
    assert_eq!(told(t.client(), id)?, ["2 created ->pending by ann"]);
    for status in Status::ALL {
        let id = t.client().for_user("bob")?.enqueue(NewJob::tracked().status(status))?.id();
        assert_eq!(told(t.client(), id)?, [format!("2 created ->{status} by bob")]);
    }
    assert_eq!(rows(t.client()), (0, 0));
    refused(t.client().history("job-0000000000002".parse()?), ErrorKind::NotFound, "there is no job job-0000000000002");
    Ok(())
}

#[test]
fn the_ordinary_life_under_threads_writes_no_row_either() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path).durability(Durability::Normal).state(gate).handle(block).start()?;
    let ids: Vec<JobId> = engine
        .client()
        .enqueue_many((0..20).map(|n| Block::job(n.to_string()).user("u")))?
        .iter()
        .map(|enqueued| enqueued.id())
        .collect();
    keeper.next();
    let actions = |id| -> jobmill::Result<Vec<Action>> {
        Ok(engine.client().history(id)?.iter().map(|change| change.action).collect())
    };
    until("a job starts", || actions(ids[0]).is_ok_and(|told| told == [Action::Created, Action::Started]));
    ids.iter().for_each(|_| keeper.release());
    for id in &ids {
        engine.client().wait(*id, PATIENCE)?;
        assert_eq!(actions(*id)?, [Action::Created, Action::Started, Action::Ended]);
    }
    assert_eq!(rows(engine.client()), (0, 0));
    Ok(())
}

#[test]
fn a_life_with_failures_tells_each_of_them() -> jobmill::Result<()> {
    let t = world()?;
    assert_eq!(
        lived(&t, life(["fails", "panics", "completes"]))?,
        [
            "0 created ->pending",
            "1 started pending>running #1 by worker",
            "2 retried running>pending #1: no luck",
            "12 started pending>running #2 by worker",
            "13 retried running>pending #2: oh no",
            "23 started pending>running #3 by worker",
            "24 ended running>completed #3 by worker",
        ]
    );
    assert_eq!(rows(t.client()), (2, 2));
    let t = world()?;
    assert_eq!(
        lived(&t, life(["overstays", "overstays"]).timeout(secs(5)).max_attempts(2))?,
        [
            "0 created ->pending",
            "1 started pending>running #1 by worker",
            "62 retried running>pending #1: the time of the attempt is up",
            "72 started pending>running #2 by worker",
            "133 ended running>failed #2 by worker: the time of the attempt is up",
        ]
    );
    // A snooze is no attempt, and no news.
    let t = world()?;
    assert_eq!(
        lived(&t, life(["snoozes", "fails", "snoozes", "completes"]))?,
        [
            "0 created ->pending",
            "12 started pending>running #1 by worker",
            "13 retried running>pending #1: no luck",
            "34 started pending>running #2 by worker",
            "35 ended running>completed #2 by worker",
        ]
    );
    let t = world()?;
    let id = t.enqueue(life(["snoozes"]))?;
    t.drain()?;
    assert_eq!(told(t.client(), id)?, ["0 created ->pending"]);
    Ok(())
}

#[test]
fn a_life_that_is_cancelled_tells_who_asked_and_how_it_went() -> jobmill::Result<()> {
    let t = world()?;
    let id = t.enqueue(life(["completes"]).user("bob"))?;
    t.advance(secs(1));
    t.client().for_user("bob")?.cancel(id)?;
    assert_eq!(told(t.client(), id)?, ["0 created ->pending", "1 cancelled pending>cancelled by bob"]);
    let t = world()?;
    assert_eq!(
        lived(&t, life(["is asked to stop"]))?,
        [
            "0 created ->pending",
            "1 started pending>running #1 by worker",
            "2 cancel_requested running>running #1 by ann",
            "3 cancelled running>cancelled #1: the job was cancelled",
        ]
    );
    let t = world()?;
    assert_eq!(
        lived(&t, life(["is asked to stop and does not"]))?,
        [
            "0 created ->pending",
            "1 started pending>running #1 by worker",
            "2 cancel_requested running>running #1 by ann",
            "3 ended running>completed #1 by worker",
        ]
    );
    let t = world()?;
    assert_eq!(
        lived(&t, life(["cancels"]))?,
        [
            "0 created ->pending",
            "1 started pending>running #1 by worker",
            "2 cancelled running>cancelled #1: of no use",
        ]
    );
    let t = world()?;
    let id = t.enqueue(life(["fails"]))?;
    t.drain()?;
    t.advance(secs(1));
    t.client().cancel(id)?;
    assert_eq!(
        told(t.client(), id)?,
        [
            "0 created ->pending",
            "0 started pending>running #1 by worker",
            "1 retried running>pending #1: no luck",
            "2 cancelled pending>cancelled",
        ]
    );
    Ok(())
}

#[test]
fn a_life_that_expires_says_so() -> jobmill::Result<()> {
    let t = world()?;
    let id = t.enqueue(life(["completes"]).delay(secs(20)).expires_in(secs(10)))?;
    t.advance(secs(10));
    t.drain()?;
    assert_eq!(told(t.client(), id)?, ["0 created ->pending", "10 expired pending>expired"]);
    let tracked = t.enqueue(NewJob::tracked().expires_in(secs(1)))?;
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(told(t.client(), tracked)?, ["10 created ->created", "11 expired created>expired"]);
    Ok(())
}

#[test]
fn a_life_that_a_crash_cut_tells_of_the_rescue() -> jobmill::Result<()> {
    let mut t = world()?;
    let again = t.enqueue(life(["completes"]))?;
    let last = t.enqueue(life(["completes"]).max_attempts(1))?;
    // The claims are written, and nothing that follows.
    t.faults().fail_from(2, Fault::Before);
    assert!(t.drain().is_err());
    t.faults().heal();
    t.advance(secs(12));
    t.crash()?;
    assert_eq!(
        told(t.client(), again)?,
        [
            "0 created ->pending",
            "0 started pending>running #1 by worker",
            "12 rescued running>pending #1: the process died while the handler ran",
        ]
    );
    assert_eq!(
        told(t.client(), last)?,
        [
            "0 created ->pending",
            "0 started pending>running #1 by worker",
            "12 rescued running>failed #1: the process died while the handler ran",
        ]
    );
    t.drain()?;
    assert_eq!(
        told(t.client(), again)?[2..],
        [
            "12 rescued running>pending #1: the process died while the handler ran",
            "12 started pending>running #2 by worker",
            "13 ended running>completed #2 by worker",
        ]
    );
    sound(t.client());
    Ok(())
}

/// What an operator does and the claim that follows it in the same turn have the same moment.
#[test]
fn what_happens_in_one_turn_keeps_its_order() -> jobmill::Result<()> {
    let t = world()?;
    let id = t.enqueue(life(["fails for a moment", "refuses", "completes"]))?;
    t.client().set_priority(id, Priority::High)?;
    t.client().set_queue(id, "mail")?;
    t.drain()?;
    t.client().acting_as("ann")?.retry(id)?;
    t.drain()?;
    assert_eq!(
        told(t.client(), id)?,
        [
            "0 created ->pending",
            "0 moved pending>pending: default/default to default/high",
            "0 moved pending>pending: default/high to mail/high",
            "0 started pending>running #1 by worker",
            "1 retried running>pending #1: no luck",
            "1 started pending>running #2 by worker",
            "2 ended running>failed #2 by worker: never",
            "2 requeued failed>pending #2 by ann",
            "2 started pending>running #3 by worker",
            "3 ended running>completed #3 by worker",
        ]
    );
    let id = t.enqueue(life(["is updated"]))?;
    t.client().cancel(id)?;
    t.client().retry(id)?;
    t.client().update(id, JobUpdate::new().background(true))?;
    t.drain()?;
    assert_eq!(
        told(t.client(), id)?,
        [
            "3 created ->pending",
            "3 cancelled pending>cancelled",
            "3 requeued cancelled>pending",
            "3 updated pending>pending: background",
            "3 started pending>running #1 by worker",
            "4 updated running>running by ann: agent",
            "4 ended running>completed #1 by worker",
        ]
    );
    Ok(())
}

#[test]
fn what_trackers_and_operators_do_is_told_with_their_names() -> jobmill::Result<()> {
    let t = world()?;
    let (ann, bob) = (t.client().acting_as("ann")?, t.client().for_user("bob")?);
    let id = bob.enqueue(NewJob::tracked())?.id();
    let step = |work: &dyn Fn() -> jobmill::Result<()>| -> jobmill::Result<()> {
        t.advance(secs(1));
        work()
    };
    step(&|| ann.update_status(id, Status::Pending).map(drop))?;
    step(&|| ann.set_queue(id, "mail"))?;
    step(&|| bob.update(id, JobUpdate::new().status(Status::Running).agent("a").metadata(&json!({}))).map(drop))?;
    // Times and progress change often, and are no news.
    step(&|| bob.record_ttft(id, secs(1)))?;
    step(&|| bob.update(id, JobUpdate::new().progress(1, None).total_duration(secs(1))).map(drop))?;
    step(&|| bob.update(id, JobUpdate::new().callback_url(None).request_config(&1)).map(drop))?;
    step(&|| bob.acting_as("bob's phone")?.update_status(id, Status::Failed).map(drop))?;
    step(&|| bob.update_status(id, Status::Failed).map(drop))?;
    step(&|| bob.update_status(id, Status::Completed).map(drop))?;
    step(&|| ann.retry(id))?;
    step(&|| ann.cancel(id).map(drop))?;
    step(&|| ann.cancel(id).map(drop))?;
    let expected = [
        "0 created ->created by bob",
        "1 updated created>pending by ann",
        "2 moved pending>pending by ann: default/default to mail/default",
        "3 updated pending>running by bob: agent, metadata",
        "6 updated running>running by bob: callback_url, request_config",
        "7 updated running>failed by bob's phone",
        "10 requeued failed>pending by ann",
        "11 cancelled pending>cancelled by ann",
    ];
    assert_eq!(told(t.client(), id)?, expected);
    assert_eq!(told(&bob, id)?, expected);
    t.advance(secs(1));
    bob.delete(id)?;
    // Its own row is gone, and with it what was ordinary.
    let mut left = expected[1..].to_vec();
    left.push("13 deleted cancelled>- by bob");
    assert_eq!(told(t.client(), id)?, left);
    Ok(())
}

#[test]
fn a_running_job_that_is_deleted_leaves_its_audit() -> jobmill::Result<()> {
    let t = world()?;
    let id = t.enqueue(life(["is deleted"]))?;
    t.advance(secs(1));
    t.drain()?;
    refused(t.client().get(id), ErrorKind::NotFound, "there is no job");
    assert_eq!(
        told(t.client(), id)?,
        [
            "2 delete_requested running>running #1 by ann",
            "3 cancelled running>cancelled #1: the job was cancelled",
            "3 deleted cancelled>-",
        ]
    );
    sound(t.client());
    Ok(())
}

#[test]
fn one_life_with_everything_in_it_is_told_from_beginning_to_end() -> jobmill::Result<()> {
    let mut t = world()?;
    let ann = t.client().acting_as("ann")?;
    let id =
        ann.enqueue(life(["fails", "completes", "refuses", "is asked to stop", "completes"]).delay(secs(10)))?.id();
    t.advance(secs(1));
    ann.set_priority(id, Priority::Low)?;
    t.client().pause("default")?;
    t.advance(secs(9));
    assert_eq!(t.drain()?, 0);
    t.client().resume("default")?;
    t.drain()?; // 10: fails, 11
    t.advance(secs(10));
    t.faults().fail(3, Fault::Before);
    assert!(t.drain().is_err()); // 21: its end at 22 is not written
    t.crash()?;
    // Whose process has died twice comes back within half a second.
    t.advance(secs(1));
    t.drain()?; // 23: refuses, 24
    t.client().acting_as("bob")?.retry(id)?;
    t.restart()?;
    t.drain()?; // 24: is asked to stop, 26
    t.advance(secs(4));
    t.client().retry(id)?;
    t.drain()?; // 30: completes, 31
    assert_eq!(
        told(t.client(), id)?,
        [
            "0 created ->pending by ann",
            "1 moved pending>pending by ann: default/default to default/low",
            "10 started pending>running #1 by worker",
            "11 retried running>pending #1: no luck",
            "21 started pending>running #2 by worker",
            "22 rescued running>pending #2: the process died while the handler ran",
            "23 started pending>running #3 by worker",
            "24 ended running>failed #3 by worker: never",
            "24 requeued failed>pending #3 by bob",
            "24 started pending>running #4 by worker",
            "25 cancel_requested running>running #4 by ann",
            "26 cancelled running>cancelled #4: the job was cancelled",
            "30 requeued cancelled>pending #4",
            "30 started pending>running #5 by worker",
            "31 ended running>completed #5 by worker",
        ]
    );
    sound(t.client());
    Ok(())
}

#[test]
fn the_audit_outlives_its_job_and_goes_in_its_own_time() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder
            .durability(Durability::Normal)
            .backoff(Backoff::fixed(secs(10)))
            .retention(Retention { completed: Some(secs(100)), audit: Some(secs(1000)), ..Retention::FOREVER })
            .handle(live)
    })?;
    let ordinary = t.enqueue(life(["completes"]))?;
    let retried = t.enqueue(life(["fails", "completes"]))?;
    let failed = t.enqueue(life(["fails", "refuses"]))?;
    let cancelled = t.enqueue(life(["completes"]).delay(secs(50)))?;
    let tracked = t.enqueue(NewJob::tracked())?;
    t.drain()?;
    t.client().cancel(cancelled)?;
    t.client().update_status(tracked, Status::Failed)?;
    t.client().pause("mail")?;
    t.advance(secs(10));
    t.drain()?;
    let (whole, of_tracked) = (told(t.client(), failed)?, told(t.client(), tracked)?);
    t.advance(secs(120));
    t.engine().maintain()?;
    // Jobs that have been pruned: nothing is known of the ordinary one, and of the other what was out of the ordinary.
    refused(t.client().history(ordinary), ErrorKind::NotFound, "there is no job");
    assert_eq!(t.client().history(retried)?.iter().map(|change| change.action).collect::<Vec<_>>(), [Action::Retried]);
    assert_eq!(told(t.client(), failed)?, whole);
    assert_eq!(rows(t.client()).0, 5);
    t.advance(secs(1000));
    t.engine().maintain()?;
    assert_eq!(rows(t.client()).0, 0);
    refused(t.client().history(retried), ErrorKind::NotFound, "there is no job");
    // Jobs that are there still tell the ordinary part, which is whole without the audit.
    let told_without = told(t.client(), failed)?;
    let end = |told: &[String]| told.last().cloned();
    assert_eq!((told_without.len(), end(&told_without)), (whole.len(), end(&whole)), "{told_without:?}");
    assert_eq!(told(t.client(), cancelled)?.last().map(|line| line.contains(">cancelled")), Some(true));
    assert_eq!(told(t.client(), tracked)?.len(), of_tracked.len());
    sound(t.client());
    Ok(())
}

#[test]
fn the_audit_is_kept_for_ninety_days_unless_somebody_says_otherwise() -> jobmill::Result<()> {
    const DAY: u64 = 86_400;
    let t = Harness::new(|builder| builder.durability(Durability::Normal))?;
    t.client().pause("mail")?;
    t.advance(secs(90 * DAY));
    t.engine().maintain()?;
    assert_eq!(rows(t.client()).0, 1);
    t.advance(secs(1));
    t.engine().maintain()?;
    assert_eq!(rows(t.client()).0, 0);
    // More than one slice of a pruning.
    for _ in 0..450 {
        t.client().pause("mail")?;
    }
    t.advance(secs(91 * DAY));
    t.client().pause("mail")?;
    t.engine().maintain()?;
    assert_eq!(rows(t.client()).0, 1);
    Ok(())
}

#[test]
fn the_audit_tells_of_all_jobs_and_queues_the_newest_first() -> jobmill::Result<()> {
    let t = world()?;
    let ann = t.client().acting_as("ann")?;
    let mut expected = Vec::new();
    for n in 0..6 {
        t.advance(secs(1));
        let id = t.enqueue(life(["completes"]).delay(secs(60)))?;
        ann.cancel(id)?;
        expected.push((Action::Cancelled, Some(id)));
        t.advance(secs(1));
        if n % 2 == 0 {
            ann.pause("mail")?
        } else {
            ann.resume("mail")?
        }
        expected.push((if n % 2 == 0 { Action::Paused } else { Action::Resumed }, None));
    }
    expected.reverse();
    let lines =
        |changes: &[HistoryEntry]| -> Vec<_> { changes.iter().map(|change| (change.action, change.job)).collect() };
    let all = t.client().audit(None, 1000)?;
    assert_eq!(lines(&all), expected);
    assert!(all.iter().all(|change| change.actor.as_deref() == Some("ann")));
    assert_eq!(words(&all[0]), "12 resumed by ann: mail");
    for limit in [1, 5, 11, 12, 13] {
        let (mut before, mut found) = (None, Vec::new());
        loop {
            let page = t.client().audit(before, limit)?;
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            before = Some(last.at);
            found.extend(page);
        }
        assert_eq!(found, all, "pages of {limit}");
    }
    assert_eq!(t.client().audit(Some(Timestamp::EPOCH), 10)?, []);
    for limit in [0, 1001] {
        refused(t.client().audit(None, limit), ErrorKind::Invalid, "limit: must be from 1 to 1000");
    }
    Ok(())
}

#[test]
fn what_jobs_carry_is_in_no_history() -> jobmill::Result<()> {
    let t = world()?;
    let ann = t.client().acting_as("ann")?;
    let secret = json!({"source_id": "SECRET", "k": "SECRET"});
    let tracked =
        || NewJob::tracked().metadata(&secret).request_config(&secret).callback_url("https://SECRET/").tags(["SECRET"]);
    let update =
        || JobUpdate::new().metadata(&secret).request_config(&secret).callback_url("https://SECRET/").result(&"SECRET");
    let id = ann.enqueue(tracked().unique(Unique::key("SECRET")))?.id();
    ann.update(id, update().merge_metadata(&json!({"more": "SECRET"})))?;
    ann.update(id, update().status(Status::Failed))?;
    ann.retry(id)?;
    ann.cancel(id)?;
    let engines = ann
        .enqueue(NewJob::json("life", &json!(["fails", "SECRET"])).metadata(&secret).unique(Unique::key("SECRET 2")))?;
    t.drain()?;
    t.advance(secs(10));
    t.drain()?;
    assert_eq!(t.client().get(engines.id())?.status, Status::Completed);
    ann.select(Query::new().source_id("SECRET").tags(["SECRET"]))?.delete()?;
    assert!(t.client().audit(None, 1000)?.len() > 5);
    let columns = "id || at || coalesce(user_id, '') || action || coalesce(actor, '') || coalesce(note, '')";
    let all: String = query(t.client(), &format!("SELECT group_concat({columns}) FROM jobmill_audit"));
    assert!(all.contains("metadata") && !all.contains("SECRET"), "{all}");
    for id in [id, engines.id()] {
        assert!(!format!("{:?}", t.client().history(id)?).contains("SECRET"));
    }
    Ok(())
}

/// A page ended in the middle of a moment, and the next one began before it: what lay between was in neither.
#[test]
fn pages_of_the_audit_leave_nothing_out_of_what_was_done_in_one_turn() -> jobmill::Result<()> {
    let t = world()?;
    for turn in 0..3 {
        t.client().enqueue_many((0..15).map(|_| life(["completes"]).delay(secs(60))))?;
        t.advance(secs(1));
        let queue = format!("queue {turn}");
        assert_eq!(t.client().select(Query::new())?.set_queue(&queue)?.changed, 15 * (turn + 1));
    }
    let all = t.client().audit(None, 1000)?;
    assert_eq!(all.len(), 90);
    for limit in [1, 10, 45, 46, 89, 1000] {
        let (mut before, mut found) = (None, Vec::new());
        loop {
            let page = t.client().audit(before, limit)?;
            let Some(last) = page.last() else { break };
            before = Some(last.at);
            found.extend(page);
        }
        assert!(found == all, "pages of {limit}: {} of {}", found.len(), all.len());
    }
    Ok(())
}

#[test]
fn a_move_to_where_the_job_is_is_none() -> jobmill::Result<()> {
    let t = world()?;
    let id = t.enqueue(life(["completes"]).delay(secs(60)))?;
    let before = t.client().get(id)?;
    t.advance(secs(1));
    t.client().acting_as("ann")?.set_priority(id, Priority::Default)?;
    t.client().acting_as("ann")?.set_queue(id, "default")?;
    assert_eq!(t.client().select(Query::new())?.set_queue("default")?.changed, 1, "it is where it was to be");
    assert_eq!((t.client().get(id)?, rows(t.client()).0), (before, 0));
    Ok(())
}

/// What came before the clock was set back stood behind what came after, the creation at the end of all.
#[test]
fn a_clock_that_is_set_back_turns_no_history_round() -> jobmill::Result<()> {
    let t = world()?;
    let start = t.clock().now();
    let at = |seconds: u64| t.clock().jump(start.saturating_add(secs(seconds)));
    at(100);
    let (tracked, id) = (t.enqueue(NewJob::tracked())?, t.enqueue(life(["fails", "completes"]))?);
    at(50);
    t.client().update_status(tracked, Status::Running)?;
    t.drain()?;
    at(20);
    t.client().update_status(tracked, Status::Failed)?;
    at(70);
    t.drain()?;
    assert_eq!(
        told(t.client(), tracked)?,
        ["100 created ->created", "50 updated created>running", "20 updated running>failed"]
    );
    assert_eq!(
        told(t.client(), id)?,
        [
            "100 created ->pending",
            "50 started pending>running #1 by worker",
            "51 retried running>pending #1: no luck",
            "70 started pending>running #2 by worker",
            "71 ended running>completed #2 by worker",
        ]
    );
    Ok(())
}
