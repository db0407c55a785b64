//! Jobs run, and end in every way there is.

use std::collections::BTreeSet;
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{AttemptOutcome, Backoff, Context, Engine, ErrorKind, Failure, Handler, NewJob, Outcome, Reason, Status};
use serde::Serialize;

use crate::support::{Echo, Hands, Other, PATIENCE, echo, file, now, other, secs, sound, with_hands};

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
    assert_eq!(t.client().explain(fatal.id)?.reasons, [Reason::Refused]);
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

/// What a service answered with an error, a page of HTML for example, was kept whole: in the job's row, in that of each
/// attempt, and in every page that lists the job.
#[test]
fn a_message_longer_than_is_kept_is_cut_however_the_attempt_ends() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Echo, ctx: &Context| -> Result<Outcome<()>, Failure> {
            let long = "é".repeat(Failure::MAX_MESSAGE_BYTES);
            match job.0.as_str() {
                "fatal" => Err(Failure::fatal(long)),
                "panic" => panic!("{long}"),
                "late" => {
                    let _ = ctx.client().cancel(ctx.id())?;
                    Err(Failure::retry(long))
                }
                _ => Ok(Outcome::Cancel(long)),
            }
        })
    })?;
    let names = ["fatal", "panic", "late", "cancel"];
    let jobs = names.map(|name| t.enqueue(Echo::job(name).max_attempts(1)).expect("a job"));
    t.drain()?;
    for (name, id) in names.into_iter().zip(jobs) {
        let error = t.client().get(id)?.error.unwrap_or_default();
        let bytes = Failure::MAX_MESSAGE_BYTES - 1..=Failure::MAX_MESSAGE_BYTES;
        assert!(bytes.contains(&error.len()), "{name}: {}", error.len());
        assert!(error.ends_with('é'), "{name}: no half of a letter");
    }
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
