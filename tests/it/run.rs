//! Jobs run, and end in every way there is.

use std::collections::BTreeSet;
use std::time::Duration;

use jobmill::rusqlite::TransactionBehavior;
use jobmill::testing::Harness;
use jobmill::{
    AttemptOutcome, Backoff, Clock, Context, Engine, ErrorKind, Failure, Handler, NewJob, Outcome, Payload, Progress,
    Reason, Status,
};
use serde::{Deserialize, Serialize};

use crate::support::{
    Echo, Hands, Other, PATIENCE, echo, fence_off, file, now, other, query, secs, sound, tamper, with_hands,
};

#[test]
fn a_job_runs_and_its_result_is_kept() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let id = t.enqueue(&Echo("hello".into()))?;
    t.check(id, "pending");
    t.advance(secs(3));
    assert_eq!(t.drain()?, 1);
    t.check(id, "completed, attempt 1");
    let job = t.client().get(id)?;
    assert_eq!(job.result::<String>()?, "hello");
    assert_eq!((job.started_at, job.completed_at, job.error), (Some(now(&t)), Some(now(&t)), None));
    assert_eq!(t.drain()?, 0, "once is enough");
    sound(t.client());
    Ok(())
}

#[test]
fn threads_run_jobs() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(path).handle(echo).start()?;
    let ids = engine.client().enqueue_many((0..1000).map(|n| Echo::job(n.to_string())))?;
    for (n, id) in ids.into_iter().enumerate() {
        let job = engine.client().wait(id.id(), PATIENCE)?;
        assert_eq!(job.status, Status::Completed);
        assert_eq!(job.result::<String>()?, n.to_string());
    }
    engine.shutdown(secs(5))?;
    sound(engine.client());
    Ok(())
}

#[test]
fn an_error_is_tried_again_after_growing_waits_until_the_attempts_are_spent() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder
            .handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
                assert_eq!(ctx.is_last_attempt(), ctx.attempt() == 4);
                Err(Failure::retry(format!("no {}", ctx.attempt())))
            })
            .backoff(Backoff::exponential(secs(5)).max(secs(12)).jitter(0.0))
    })?;
    let id = t.enqueue(Echo::job("").max_attempts(4))?;
    for (attempt, wait_s) in [(1, 5), (2, 10), (3, 12)] {
        assert_eq!(t.drain()?, 1);
        t.check(id, &format!("pending, attempt {attempt} failed: no {attempt}, due in {wait_s}s"));
        t.advance(secs(wait_s) - Duration::from_micros(1));
        assert_eq!(t.drain()?, 0, "its time has not come");
        t.advance(Duration::from_micros(1));
    }
    t.drain()?;
    t.check(id, "failed, attempt 4: no 4");
    let job = t.client().get(id)?;
    assert_eq!(job.completed_at, Some(now(&t)));
    assert_eq!(job.result::<()>().map_err(|error| error.kind()), Err(ErrorKind::Conflict));
    t.advance(secs(99_999));
    assert_eq!(t.drain()?, 0);
    sound(t.client());
    Ok(())
}

#[test]
fn the_waits_of_jobs_that_fail_together_are_spread_within_the_jitter() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, _: &Context| -> Result<(), Failure> { Err(Failure::retry("no")) })
    })?;
    let backoff = Backoff::exponential(secs(100)).jitter(0.5);
    let jobs = (0..50).map(|_| Echo::job("").backoff(backoff));
    let ids: Vec<_> = t.client().enqueue_many(jobs)?.into_iter().map(|enqueued| enqueued.id()).collect();
    t.drain()?;
    let mut waits = BTreeSet::new();
    for id in ids {
        let wait = t.client().get(id)?.run_at.since(now(&t));
        assert!((secs(50)..=secs(150)).contains(&wait), "{wait:?}");
        waits.insert(wait);
    }
    assert!(waits.len() > 45, "chance moves each by itself");
    assert!(waits.first() < Some(&secs(70)) && waits.last() > Some(&secs(130)), "{waits:?}");
    Ok(())
}

#[test]
fn a_jobs_own_backoff_goes_before_the_engines() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder
            .handle(|_: Echo, _: &Context| -> Result<(), Failure> { Err(Failure::retry("no")) })
            .backoff(Backoff::fixed(secs(7)))
    })?;
    let plain = t.enqueue(Echo::job(""))?;
    let own = t.enqueue(Echo::job("").backoff(Backoff::fixed(secs(3))))?;
    t.drain()?;
    t.check(plain, "pending, attempt 1 failed: no, due in 7s");
    t.check(own, "pending, attempt 1 failed: no, due in 3s");
    Ok(())
}

#[test]
fn a_failure_may_say_itself_when_to_come_back() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, _: &Context| -> Result<(), Failure> { Err(Failure::retry_after(secs(77), "busy")) })
    })?;
    let id = t.enqueue(Echo::job("").max_attempts(2))?;
    t.drain()?;
    t.check(id, "pending, attempt 1 failed: busy, due in 77s");
    t.advance(secs(77));
    t.drain()?;
    t.check(id, "failed, attempt 2: busy");
    Ok(())
}

#[test]
fn a_wait_beyond_all_time_ends_at_its_end() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Echo, _: &Context| match job.0.as_str() {
            "snooze" => Ok(Outcome::<()>::Snooze(Duration::MAX)),
            _ => Err(Failure::retry_after(Duration::MAX, "never")),
        })
    })?;
    for name in ["snooze", "retry"] {
        let id = t.enqueue(Echo::job(name))?;
        t.drain()?;
        let job = t.client().get(id)?;
        assert_eq!((job.status, job.run_at), (Status::Pending, jobmill::Timestamp::MAX), "{name}");
    }
    Ok(())
}

#[test]
fn a_snooze_spends_no_attempt() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<Outcome<u32>, Failure> {
            let snoozed = ctx.saved::<u32>()?.unwrap_or(0);
            ctx.save(&(snoozed + 1))?;
            if snoozed == 20 { Ok(Outcome::Done(ctx.attempt())) } else { Ok(Outcome::Snooze(secs(9))) }
        })
    })?;
    let id = t.enqueue(Echo::job("").max_attempts(1))?;
    for _ in 0..20 {
        assert_eq!(t.drain()?, 1);
        t.check(id, "pending, due in 9s");
        assert_eq!(t.client().attempts(id)?, [], "a snoozed attempt is none");
        t.advance(secs(9));
    }
    t.drain()?;
    t.check(id, "completed, attempt 1");
    assert_eq!(t.client().get(id)?.result::<u32>()?, 1);
    assert_eq!(t.client().attempts(id)?.len(), 1);
    Ok(())
}

/// A job that had snoozed and was then cancelled, or expired and was retried, told of an attempt number 0.
#[test]
fn a_snooze_leaves_no_attempt_behind_however_the_job_ends() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, _: &Context| -> Result<Outcome<()>, Failure> { Ok(Outcome::Snooze(secs(9))) })
    })?;
    let cancelled = t.enqueue(Echo::job(""))?;
    let expired = t.enqueue(Echo::job("").expires_in(secs(5)))?;
    t.drain()?;
    t.client().cancel(cancelled)?;
    t.advance(secs(6));
    t.drain()?;
    t.check(cancelled, "cancelled");
    t.check(expired, "expired");
    assert_eq!(t.client().attempts(cancelled)?, []);
    assert_eq!(t.client().attempts(expired)?, []);
    t.client().retry(cancelled)?;
    t.client().retry(expired)?;
    assert_eq!(t.client().attempts(cancelled)?, []);
    assert_eq!(t.client().attempts(expired)?, []);
    Ok(())
}

#[test]
fn a_handler_may_cancel_its_job_or_fail_it_for_good() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Echo, _: &Context| -> Result<Outcome<()>, Failure> {
            match job.0.as_str() {
                "cancel" => Ok(Outcome::Cancel("no use".into())),
                _ => Err(Failure::fatal("never")),
            }
        })
    })?;
    let cancel = t.enqueue(Echo::job("cancel"))?;
    let fatal = t.enqueue(Echo::job("fatal"))?;
    t.drain()?;
    t.check(cancel, "cancelled");
    t.check(fatal, "failed, attempt 1: never");
    let (cancel, fatal) = (t.client().get(cancel)?, t.client().get(fatal)?);
    assert_eq!((cancel.error.as_deref(), cancel.completed_at), (Some("no use"), Some(now(&t))));
    assert_eq!(fatal.max_attempts, 10, "attempts were left");
    assert_eq!(t.client().explain(fatal.id)?.reasons, [Reason::Ended { status: Status::Failed }]);
    let attempts = [t.client().attempts(cancel.id)?.remove(0), t.client().attempts(fatal.id)?.remove(0)];
    assert_eq!(attempts.map(|attempt| attempt.outcome), [AttemptOutcome::Cancelled, AttemptOutcome::Failed]);
    Ok(())
}

#[test]
fn a_panic_is_a_failed_attempt_with_its_message_and_place() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder
            .handle(|job: Echo, ctx: &Context| -> Result<(), Failure> {
                match job.0.as_str() {
                    _ if ctx.attempt() == 2 => Ok(()),
                    "text" => panic!("plain"),
                    "format" => panic!("oh {}", "no"),
                    "number" => std::panic::panic_any(7),
                    _ => Err(Failure::retry([1][usize::from(job.0.is_ascii()) + 8])),
                }
            })
            .backoff(Backoff::fixed(secs(1)))
    })?;
    let mut ids = Vec::new();
    for (name, says) in [
        ("text", ": plain"),
        ("format", ": oh no"),
        ("number", ": without a message"),
        ("index", ": index out of bounds: the len is 1 but the index is 9"),
    ] {
        let id = t.enqueue(Echo::job(name))?;
        t.drain()?;
        let error = t.client().get(id)?.error.unwrap_or_default();
        assert!(error.starts_with("panicked at tests/it/run.rs:") && error.ends_with(says), "{error}");
        ids.push(id);
    }
    t.advance(secs(1));
    t.drain()?;
    for id in ids {
        t.check(id, "completed, attempt 2");
    }
    sound(t.client());
    Ok(())
}

#[test]
fn an_error_tells_its_sources() -> jobmill::Result<()> {
    #[derive(Debug)]
    struct Outer(std::num::ParseIntError);
    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("no port")
        }
    }
    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    let t = Harness::new(|builder| {
        builder.handle(|job: Echo, _: &Context| -> Result<u16, Failure> { Ok(job.0.parse::<u16>().map_err(Outer)?) })
    })?;
    let id = t.enqueue(Echo::job("x").max_attempts(1))?;
    t.drain()?;
    t.check(id, "failed, attempt 1: no port: invalid digit found in string");
    Ok(())
}

#[test]
fn a_payload_of_another_shape_fails_the_attempt_and_says_so() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(other))?;
    let id = t.enqueue(NewJob::json("other", &"text").max_attempts(1))?;
    t.drain()?;
    let error = t.client().get(id)?.error.unwrap_or_default();
    assert!(error.starts_with("payload: is no ") && error.contains("invalid type: string"), "{error}");
    Ok(())
}

/// Serializes to no JSON.
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it will not be written"))
    }
}

#[test]
fn a_result_that_cannot_be_stored_fails_the_job_for_good() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder
            .handle(|_: Echo, _: &Context| -> Result<Unwritable, Failure> { Ok(Unwritable) })
            .handle(|job: Other, _: &Context| -> Result<String, Failure> { Ok("x".repeat(job.0 as usize)) })
    })?;
    let unwritable = t.enqueue(Echo::job(""))?;
    let fits = t.enqueue(&Other(NewJob::MAX_PAYLOAD_BYTES as u64 - 2))?;
    let too_long = t.enqueue(&Other(NewJob::MAX_PAYLOAD_BYTES as u64 - 1))?;
    t.drain()?;
    t.check(unwritable, "failed, attempt 1: the result does not serialize: it will not be written");
    t.check(fits, "completed, attempt 1");
    t.check(too_long, "failed, attempt 1: the result has 16777217 bytes, and no more than 16777216 are stored");
    assert_eq!(t.client().get(fits)?.result::<String>()?.len(), NewJob::MAX_PAYLOAD_BYTES - 2);
    Ok(())
}

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
fn a_handler_may_be_a_type_of_its_own() -> jobmill::Result<()> {
    struct Doubler {
        by: u64,
    }
    impl Handler for Doubler {
        type Payload = Other;
        type Output = u64;

        fn run(&self, job: Other, ctx: &Context) -> Result<Outcome<u64>, Failure> {
            assert_eq!((ctx.job().kind.as_deref(), ctx.job().status), (Some("other"), Status::Running));
            match job.0 {
                0 => Ok(Outcome::Snooze(secs(4))),
                1 => Ok(Outcome::Cancel("one".into())),
                n => Ok(Outcome::Done(n * self.by)),
            }
        }
    }
    let t = Harness::new(|builder| builder.handler(Doubler { by: 3 }))?;
    let ids = [0, 1, 2].map(|n| t.enqueue(&Other(n)));
    t.drain()?;
    let [snoozed, cancelled, done] = ids;
    t.check(snoozed?, "pending, due in 4s");
    t.check(cancelled?, "cancelled");
    assert_eq!(t.client().get(done?)?.result::<u64>()?, 6);
    Ok(())
}

#[test]
fn the_history_tells_each_attempt_with_its_error_and_worker() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        builder
            .handle(|_: Echo, ctx: &Context| -> Result<&str, Failure> {
                ctx.state::<Hands>()?.pass(secs(3));
                match ctx.attempt() {
                    1 => Err(Failure::retry("first")),
                    2 => panic!("second"),
                    3 => {
                        ctx.state::<Hands>()?.pass(secs(60));
                        Err(Failure::retry("third"))
                    }
                    _ => Ok("fourth"),
                }
            })
            .backoff(Backoff::fixed(secs(10)))
    })?;
    let id = t.enqueue(Echo::job("").timeout(secs(30)))?;
    let began = now(&t);
    for _ in 0..4 {
        assert_eq!(t.drain()?, 1);
        t.advance(secs(10));
    }
    t.check(id, "completed, attempt 4");
    let attempts = t.client().attempts(id)?;
    let told: Vec<_> = attempts.iter().map(|attempt| (attempt.number, attempt.outcome)).collect();
    let outcomes =
        [AttemptOutcome::Failed, AttemptOutcome::Failed, AttemptOutcome::TimedOut, AttemptOutcome::Completed];
    assert_eq!(told, (1..).zip(outcomes).collect::<Vec<_>>());
    assert_eq!(attempts[0].error.as_deref(), Some("first"));
    assert!(attempts[1].error.as_deref().is_some_and(|error| error.ends_with(": second")), "{attempts:?}");
    assert_eq!(attempts[2].error.as_deref(), Some("third"));
    assert_eq!(attempts[3].error, None);
    let times: Vec<_> = attempts.iter().map(|a| (a.started_at, a.ended_at)).collect();
    let at = |s| began.saturating_add(secs(s));
    assert_eq!(times, [(0, 3), (13, 16), (26, 89), (99, 102)].map(|(from, to)| (at(from), Some(at(to)))));
    let process = format!("/{}/0", std::process::id());
    assert!(
        attempts.iter().all(|a| a.worker.as_ref().is_some_and(|worker| worker.ends_with(&process))),
        "{attempts:?}"
    );
    Ok(())
}

#[test]
fn a_running_attempt_is_told_of_too() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<bool, Failure> {
            let attempts = ctx.client().attempts(ctx.id())?;
            let running = ctx.client().get(ctx.id())?;
            Ok(attempts.len() == 1
                && attempts[0].outcome == AttemptOutcome::Running
                && attempts[0].ended_at.is_none()
                && running.status == Status::Running
                && running.started_at == Some(attempts[0].started_at)
                && running.completed_at.is_none())
        })
    })?;
    let id = t.enqueue(Echo::job(""))?;
    t.drain()?;
    assert!(t.client().get(id)?.result::<bool>()?);
    Ok(())
}

#[test]
fn a_retry_by_hand_goes_on_in_the_same_history() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<(), Failure> {
            if ctx.attempt() < 3 { Err(Failure::fatal(format!("no {}", ctx.attempt()))) } else { Ok(()) }
        })
    })?;
    let id = t.enqueue(Echo::job("").max_attempts(1))?;
    t.drain()?;
    t.check(id, "failed, attempt 1: no 1");
    t.client().retry(id)?;
    let job = t.client().get(id)?;
    assert_eq!((job.status, job.completed_at, job.max_attempts), (Status::Pending, None, 2));
    t.drain()?;
    t.check(id, "failed, attempt 2: no 2");
    t.client().retry(id)?;
    t.drain()?;
    t.check(id, "completed, attempt 3");
    let told: Vec<_> =
        t.client().attempts(id)?.into_iter().map(|attempt| (attempt.number, attempt.outcome, attempt.error)).collect();
    assert_eq!(
        told,
        [
            (1, AttemptOutcome::Failed, Some("no 1".into())),
            (2, AttemptOutcome::Failed, Some("no 2".into())),
            (3, AttemptOutcome::Completed, None),
        ]
    );
    assert_eq!(t.client().retry(id).map_err(|error| error.kind()), Err(ErrorKind::Conflict));
    sound(t.client());
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
                _ => {
                    ctx.save(&"text")?;
                    ctx.saved::<u64>().map(drop)
                }
            }
        })
    })?;
    let long = t.enqueue(Echo::job("long"))?;
    let shape = t.enqueue(Echo::job("shape").max_attempts(1))?;
    t.drain()?;
    t.check(long, "failed, attempt 1: the state to save is too long");
    assert!(t.describe(shape)?.starts_with("failed, attempt 1: invalid type: string"), "{}", t.describe(shape)?);
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

#[test]
fn two_handlers_of_one_kind_are_refused() {
    let refused = Harness::new(|builder| builder.handle(echo).handle(echo)).err().map(|error| error.to_string());
    assert_eq!(refused.as_deref(), Some("handle: the kind echo has a handler already"));
}

#[test]
fn an_engine_with_threads_drains_by_itself() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(path).handle(echo).start()?;
    assert_eq!(engine.drain().map_err(|error| error.kind()), Err(ErrorKind::Conflict));
    assert_eq!(engine.maintain().map_err(|error| error.kind()), Err(ErrorKind::Conflict));
    Ok(())
}
