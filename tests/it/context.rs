//! What a handler has of its job and its engine: shared state, log, progress, saved state, completion in a transaction.

use std::collections::BTreeMap;
use std::time::Duration;

use jobmill::rusqlite::TransactionBehavior;
use jobmill::testing::Harness;
use jobmill::{Clock, Context, ErrorKind, Failure, NewJob, Outcome, Payload, Progress, Query, Status};
use serde::{Deserialize, Serialize};

use crate::support::{Echo, Hands, Other, echo, fence_off, query, secs, sound, tamper, with_hands};

#[test]
fn handlers_share_the_applications_state() -> jobmill::Result<()> {
    struct Prefix(&'static str);
    let t = Harness::new(|builder| {
        builder
            .state(Prefix("first"))
            .state(Prefix("last"))
            .state(41_u64)
            .handle(|job: Echo, ctx: &Context| -> Result<String, Failure> {
                Ok(format!("{}-{}", ctx.state::<Prefix>()?.0, job.0))
            })
            .handle(|_: Other, ctx: &Context| -> Result<i8, Failure> { Ok(*ctx.state::<i8>()?) })
    })?;
    let found = t.enqueue(Echo::job("x"))?;
    let missing = t.enqueue(&Other(0))?;
    t.drain()?;
    assert_eq!(t.client().get(found)?.result::<String>()?, "last-x", "the last value of a type counts");
    t.check(missing, "failed, attempt 1: the builder was given no state of the type i8");
    Ok(())
}

#[test]
fn a_handlers_log_is_kept_in_order_and_cut_to_its_bounds() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder
            .handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
                for n in 0..1200 {
                    ctx.log(format!("line {n}"));
                    if n % 7 == 0 {
                        ctx.state::<Hands>()?.pass(Duration::from_millis(40));
                    }
                }
                if ctx.attempt() == 1 { Err(Failure::retry_after(secs(1), "again")) } else { Ok(()) }
            })
            .handle(|_: Other, ctx: &Context| -> Result<(), Failure> {
                ctx.log("€".repeat(3000));
                ctx.log("");
                Ok(())
            })
    })?;
    let id = t.enqueue(Echo::job(""))?;
    t.drain()?;
    t.advance(secs(1));
    t.drain()?;
    let lines = t.client().log(id)?;
    assert_eq!(lines.len(), 2000, "a thousand of each attempt");
    for (at, line) in lines.iter().enumerate() {
        let (attempt, n) = (at as u32 / 1000 + 1, at % 1000);
        let expected = if n == 999 { "further lines are not kept".to_owned() } else { format!("line {n}") };
        assert_eq!((line.attempt, &line.line), (attempt, &expected));
    }
    assert!(lines.is_sorted_by_key(|line| line.at));
    assert!(lines[998].at.since(lines[0].at) > secs(5), "each line has its own time");

    let long = t.enqueue(&Other(0))?;
    t.drain()?;
    let lines = t.client().log(long)?;
    assert_eq!(lines.iter().map(|line| line.line.as_str()).collect::<Vec<_>>(), ["€".repeat(1365).as_str(), ""]);
    Ok(())
}

#[test]
fn progress_is_written_seldom_and_its_last_word_always() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<Vec<Option<u64>>, Failure> {
            let mut seen = Vec::new();
            for done in 1..=4 {
                ctx.progress(done, Some(u64::MAX));
                // Somebody else writes, so that what was handed in goes with it.
                ctx.client().enqueue(&Other(done))?;
                ctx.client().pause("elsewhere")?;
                seen.push(ctx.client().get(ctx.id())?.progress.map(|progress| progress.done));
                ctx.state::<Hands>()?.pass(Duration::from_millis(60));
            }
            ctx.progress_note(5, None, "nearly");
            Ok(seen)
        })
    })?;
    let id = t.enqueue(Echo::job(""))?;
    assert_eq!(t.client().get(id)?.progress, None);
    t.drain()?;
    t.drain()?;
    let job = t.client().get(id)?;
    assert_eq!(job.progress, Some(Progress { done: 5, total: None, note: Some("nearly".into()) }));
    Ok(())
}

#[test]
fn the_next_attempt_gets_the_state_that_the_last_one_saved() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| {
        builder.handle(|job: Echo, ctx: &Context| -> Result<Vec<u32>, Failure> {
            let mut steps: Vec<u32> = ctx.saved()?.unwrap_or_default();
            steps.push(ctx.attempt());
            ctx.save(&steps)?;
            assert_eq!(ctx.saved::<Vec<u32>>()?, Some(steps.clone()), "it is durable at once");
            if steps.len() < 3 { Err(Failure::retry_after(secs(1), job.0)) } else { Ok(steps) }
        })
    })?;
    let id = t.enqueue(Echo::job("again"))?;
    let stranger = t.enqueue(Echo::job("stranger").delay(secs(1000)))?;
    t.drain()?;
    t.crash()?;
    t.advance(secs(1));
    t.drain()?;
    t.restart()?;
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(t.client().get(id)?.result::<Vec<u32>>()?, [1, 2, 3]);
    t.check(stranger, "pending, due in 998s");
    Ok(())
}

#[test]
fn a_state_that_cannot_be_saved_or_read_is_an_error() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Echo, ctx: &Context| -> Result<(), Failure> {
            match job.0.as_str() {
                "long" => ctx.save(&"x".repeat(NewJob::MAX_PAYLOAD_BYTES)),
                "strange" => ctx.save(&BTreeMap::from([((1, 2), 3)])),
                _ => {
                    ctx.save(&"text")?;
                    ctx.saved::<u64>().map(drop)
                }
            }
        })
    })?;
    let long = t.enqueue(Echo::job("long"))?;
    let strange = t.enqueue(Echo::job("strange"))?;
    let shape = t.enqueue(Echo::job("shape").max_attempts(1))?;
    t.drain()?;
    t.check(long, "failed, attempt 1: save: the state: must be no longer than 16777216 bytes, is 16777218");
    t.check(strange, "failed, attempt 1: save: the state does not serialize: key must be a string");
    let says = "failed, attempt 1: saved: the state is no u64: invalid type: string";
    assert!(t.describe(shape)?.starts_with(says), "{}", t.describe(shape)?);
    Ok(())
}

/// A second mark in the same attempt took the place of the first, once the first had been written.
#[test]
fn the_first_token_of_an_attempt_counts() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
            let hands = ctx.state::<Hands>()?;
            hands.pass(Duration::from_millis(250 * u64::from(ctx.attempt())));
            ctx.first_token();
            hands.pass(secs(1));
            ctx.first_token();
            hands.pass(secs(1));
            if ctx.attempt() == 1 { Err(Failure::retry_after(secs(1), "again")) } else { Ok(()) }
        })
    })?;
    let id = t.enqueue(Echo::job(""))?;
    assert_eq!(t.client().get(id)?.ttft, None);
    t.drain()?;
    assert_eq!(t.client().get(id)?.ttft, Some(Duration::from_millis(250)));
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(t.client().get(id)?.ttft, Some(Duration::from_millis(500)), "each attempt has its own");
    Ok(())
}

#[test]
fn a_handler_enqueues_children() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Other, ctx: &Context| -> Result<u64, Failure> {
            if job.0 > 0 {
                let children = ctx.client().enqueue_many([&Other(job.0 - 1), &Other(job.0 - 1)])?;
                assert!(children.iter().all(|child| child.id() > ctx.id()));
            }
            Ok(job.0)
        })
    })?;
    t.enqueue(&Other(5))?;
    assert_eq!(t.drain()?, 63, "they run in the same drain");
    assert_eq!(t.client().stats()?.total.completed, 63);
    sound(t.client());
    Ok(())
}

#[test]
fn the_deadline_is_told_while_time_passes() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
            let hands = ctx.state::<Hands>()?;
            let Some(deadline) = ctx.deadline() else {
                return Err(Failure::fatal(format!("none, {:?} left", ctx.remaining())));
            };
            assert_eq!(deadline, hands.clock().now().saturating_add(secs(10)));
            assert_eq!(ctx.remaining(), Some(secs(10)));
            hands.pass(secs(4));
            assert_eq!((ctx.deadline(), ctx.remaining()), (Some(deadline), Some(secs(6))));
            // The wall clock is set back. What is left is measured by the other one.
            hands.clock().jump(hands.clock().now().saturating_sub(secs(3600)));
            assert_eq!(ctx.remaining(), Some(secs(6)));
            hands.pass(secs(7));
            assert_eq!(ctx.remaining(), Some(Duration::ZERO));
            Ok(())
        })
    })?;
    let timed = t.enqueue(Echo::job("").timeout(secs(10)).max_attempts(1))?;
    let untimed = t.enqueue(Echo::job(""))?;
    t.drain()?;
    t.check(untimed, "failed, attempt 1: none, None left");
    assert_eq!(t.client().get(timed)?.status, Status::Completed, "a value that comes late is a value");
    assert_eq!(t.client().get(timed)?.timeout, Some(secs(10)));
    Ok(())
}

/// Sends money: what must happen once.
#[derive(Serialize, Deserialize)]
struct Pay {
    how: String,
}

impl Payload for Pay {
    const KIND: &'static str = "pay";
}

type Uncertain = Box<dyn std::error::Error + Send + Sync>;

fn paid(t: &Harness) -> i64 {
    query(t.client(), "SELECT count(*) FROM payment")
}

fn pay(job: Pay, ctx: &Context) -> Result<Outcome<&'static str>, Failure> {
    let how = job.how.clone();
    if how == "fenced" {
        fence_off(ctx.client(), ctx.id());
    }
    let completed = ctx.complete(move |tx| -> Result<&'static str, Uncertain> {
        tx.execute("INSERT INTO payment (amount) VALUES (7)", [])?;
        tx.enqueue(Echo::job("receipt"))?;
        match how.as_str() {
            "fail" => Err("the account is closed".into()),
            "panic" => panic!("in the closure"),
            _ => Ok("paid"),
        }
    });
    match (job.how.as_str(), completed) {
        ("twice", Ok("paid")) => {
            let again = ctx.complete(|tx| -> Result<(), Uncertain> {
                tx.execute("INSERT INTO payment (amount) VALUES (8)", [])?;
                Ok(())
            });
            assert!(again.is_err_and(|error| error.to_string().contains("does not count any more")));
            Ok(Outcome::Done("after"))
        }
        ("error", Ok("paid")) => Err(Failure::fatal("after")),
        ("snooze", Ok("paid")) => Ok(Outcome::Snooze(secs(1))),
        (_, Ok(paid)) => {
            assert_eq!(paid, "paid");
            Ok(Outcome::Done("after"))
        }
        (_, Err(error)) => Err(Failure::retry_after(secs(5), error)),
    }
}

fn payments() -> jobmill::Result<Harness> {
    let t = Harness::new(|builder| builder.handle(pay).handle(echo))?;
    tamper(t.client(), "CREATE TABLE payment (amount INTEGER)");
    Ok(t)
}

#[test]
fn a_job_completes_in_the_transaction_of_its_effects() -> jobmill::Result<()> {
    for how in ["plainly", "twice", "error", "snooze"] {
        let t = payments()?;
        let id = t.enqueue(&Pay { how: how.into() })?;
        t.drain()?;
        t.check(id, "completed, attempt 1");
        assert_eq!(t.client().get(id)?.result::<String>()?, "paid", "what comes after that changes nothing: {how}");
        assert_eq!(paid(&t), 1, "{how}");
        assert_eq!(t.client().stats()?.kinds["echo"].completed, 1, "the receipt: {how}");
        let attempts = t.client().attempts(id)?;
        assert_eq!(attempts.len(), 1, "{how}");
        assert!(attempts[0].worker.as_ref().is_some_and(|worker| worker.ends_with("/0")), "{attempts:?}");
        sound(t.client());
    }
    Ok(())
}

#[test]
fn effects_that_fail_are_undone_with_the_completion() -> jobmill::Result<()> {
    for (how, says) in [("fail", "the account is closed"), ("panic", "panicked at")] {
        let t = payments()?;
        let id = t.enqueue(&Pay { how: how.into() })?;
        t.drain()?;
        let stands = t.describe(id)?;
        assert!(stands.starts_with(&format!("pending, attempt 1 failed: {says}")), "{stands}");
        assert_eq!(paid(&t), 0);
        assert!(!t.client().stats()?.kinds.contains_key("echo"), "no receipt");
        sound(t.client());
    }
    Ok(())
}

#[test]
fn effects_of_a_fenced_attempt_are_undone() -> jobmill::Result<()> {
    let t = payments()?;
    let id = t.enqueue(&Pay { how: "fenced".into() })?;
    t.drain()?;
    t.check(id, "running, attempt 1");
    assert_eq!(paid(&t), 0);
    assert!(!t.client().stats()?.kinds.contains_key("echo"), "no receipt");
    assert_eq!(t.client().get(id)?.error, None, "nor does its error count");
    sound(t.client());
    Ok(())
}

#[test]
fn a_commit_that_fails_undoes_the_effects_and_the_next_attempt_makes_them_once() -> jobmill::Result<()> {
    use jobmill::testing::Fault;
    for fault in [Fault::Before, Fault::After] {
        let t = payments()?;
        let id = t.enqueue(&Pay { how: "plainly".into() })?;
        // The claim is the first commit from now, the completion is the second.
        t.faults().fail(2, fault);
        t.drain()?;
        t.advance(secs(5));
        t.drain()?;
        let attempts = if fault == Fault::Before { 2 } else { 1 };
        t.check(id, &format!("completed, attempt {attempts}"));
        assert_eq!(paid(&t), 1, "{fault:?}");
        sound(t.client());
    }
    Ok(())
}

/// What a handler told in the last tenth of a second before `complete` was lost, for the job had ended.
#[test]
fn the_last_words_before_a_completion_are_kept() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder.handle(|job: Echo, ctx: &Context| -> Result<(), Failure> {
            ctx.log("first");
            ctx.log("last");
            ctx.progress(2, Some(2));
            ctx.state::<Hands>()?.pass(Duration::from_millis(30));
            ctx.first_token();
            match job.0.as_str() {
                "ours" => ctx.complete(|_| -> jobmill::Result<()> { Ok(()) })?,
                _ => {
                    let mut conn = ctx.client().connection()?;
                    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
                    ctx.complete_in(&tx, &())?;
                    tx.commit()?;
                }
            }
            Ok(())
        })
    })?;
    for name in ["ours", "theirs"] {
        let id = t.enqueue(Echo::job(name))?;
        t.drain()?;
        t.check(id, "completed, attempt 1");
        let lines: Vec<_> = t.client().log(id)?.into_iter().map(|line| line.line).collect();
        assert_eq!(lines, ["first", "last"], "{name}");
        let job = t.client().get(id)?;
        assert_eq!(job.progress, Some(Progress { done: 2, total: Some(2), note: None }), "{name}");
        assert_eq!(job.ttft, Some(Duration::from_millis(30)), "{name}");
    }
    sound(t.client());
    Ok(())
}

#[test]
fn a_job_completes_in_a_transaction_of_the_applications_own() -> jobmill::Result<()> {
    for (how, stands, rows) in [
        ("commit", "completed, attempt 1", 1),
        ("error after", "completed, attempt 1", 1),
        ("roll back", "completed, attempt 1", 0),
        ("error", "failed, attempt 1: after", 0),
        ("fenced", "running, attempt 1", 0),
    ] {
        let t = Harness::new(|builder| {
            builder.handle(|job: Echo, ctx: &Context| -> Result<&str, Failure> {
                if job.0 == "fenced" {
                    fence_off(ctx.client(), ctx.id());
                }
                let mut conn = ctx.client().connection()?;
                let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
                tx.execute("INSERT INTO payment (amount) VALUES (7)", [])?;
                let completed = ctx.complete_in(&tx, &"theirs");
                assert_eq!(
                    completed.map_err(|error| error.kind()),
                    match job.0.as_str() {
                        "fenced" => Err(ErrorKind::Conflict),
                        _ => Ok(()),
                    }
                );
                if job.0 == "commit" || job.0 == "error after" {
                    tx.commit()?
                } else {
                    tx.rollback()?
                }
                if job.0.starts_with("error") { Err(Failure::fatal("after")) } else { Ok("ours") }
            })
        })?;
        tamper(t.client(), "CREATE TABLE payment (amount INTEGER)");
        let id = t.enqueue(Echo::job(how))?;
        t.drain()?;
        t.check(id, stands);
        assert_eq!(paid(&t), rows, "{how}");
        if stands.starts_with("completed") {
            let result = if rows == 1 { "theirs" } else { "ours" };
            assert_eq!(t.client().get(id)?.result::<String>()?, result, "{how}");
        }
        sound(t.client());
    }
    Ok(())
}

#[test]
fn nothing_that_a_fenced_attempt_does_changes_its_job() -> jobmill::Result<()> {
    for how in ["value", "error", "fatal", "snooze", "cancel", "panic"] {
        let t = Harness::new(|builder| {
            builder.handle(|job: Echo, ctx: &Context| -> Result<Outcome<&str>, Failure> {
                fence_off(ctx.client(), ctx.id());
                ctx.log("late");
                ctx.progress(1, None);
                ctx.first_token();
                let saved = ctx.save(&1);
                assert!(saved.is_err_and(|error| error.to_string().contains("does not count any more")));
                match job.0.as_str() {
                    "value" => Ok(Outcome::Done("late")),
                    "error" => Err(Failure::retry("late")),
                    "fatal" => Err(Failure::fatal("late")),
                    "snooze" => Ok(Outcome::Snooze(secs(1))),
                    "cancel" => Ok(Outcome::Cancel("late".into())),
                    _ => panic!("late"),
                }
            })
        })?;
        let id = t.enqueue(Echo::job(how))?;
        t.drain()?;
        t.check(id, "running, attempt 1");
        let job = t.client().get(id)?;
        assert_eq!((job.error, job.result, job.progress, job.ttft, job.completed_at), (None, None, None, None, None));
        assert_eq!(t.client().log(id)?, []);
        sound(t.client());
    }
    Ok(())
}

/// A job that failed and then completed had stopped for the reason "error", after the time of the attempt that failed.
#[test]
fn what_an_attempt_told_of_itself_goes_when_the_next_begins() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
            if ctx.attempt() == 2 {
                let job = ctx.client().get(ctx.id())?;
                assert_eq!((job.stop_reason, job.ttft, job.total_duration), (None, None, None));
                assert_eq!(ctx.job().stop_reason, None);
                return Ok(());
            }
            ctx.first_token();
            ctx.total_duration(secs(77));
            ctx.stop_reason("error")?;
            Err(Failure::retry_after(secs(1), "no"))
        })
    })?;
    let id = t.enqueue(Echo::job(""))?;
    t.drain()?;
    let job = t.client().get(id)?;
    assert_eq!(
        (job.stop_reason.as_ref().map(|reason| reason.as_str()), job.total_duration),
        (Some("error"), Some(secs(77)))
    );
    t.advance(secs(1));
    t.drain()?;
    let job = t.client().get(id)?;
    assert_eq!((job.status, job.stop_reason, job.ttft), (Status::Completed, None, None));
    assert!(t.client().list(Query::new().stop_reason("error"))?.jobs.is_empty());
    sound(t.client());
    Ok(())
}
