//! Dead letters: jobs that failed for good are kept with the reason, listed by it, and tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jobmill::testing::{Fault, Harness};
use jobmill::{Backoff, Context, Failure, FailureReason, NewJob, Query, Reason, Retention, Status};

use crate::support::{Echo, Hands, echo, secs, sound, with_hands};

fn of(t: &Harness, reason: FailureReason) -> jobmill::Result<Vec<String>> {
    let page = t.client().list(Query::new().failed_by([reason]))?;
    page.jobs.into_iter().map(|job| job.payload::<Echo>().map(|echo| echo.0)).collect()
}

/// A harness whose jobs fail in the way that their names say, until they are mended.
fn harness() -> jobmill::Result<(Harness, Arc<AtomicBool>)> {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = mended.clone();
    let t = with_hands(move |builder| {
        let is_mended = is_mended.clone();
        let run = move |job: Echo, ctx: &Context| -> Result<(), Failure> {
            match job.0.as_str() {
                _ if is_mended.load(Ordering::SeqCst) => Ok(()),
                "refused" => Err(Failure::fatal("never")),
                "slow" => {
                    ctx.state::<Hands>()?.pass(secs(10));
                    Err(Failure::retry("too slow"))
                }
                _ => Err(Failure::retry("no")),
            }
        };
        builder.handle(run).backoff(Backoff::fixed(secs(1)))
    })?;
    Ok((t, mended))
}

#[test]
fn a_job_that_failed_for_good_tells_why() -> jobmill::Result<()> {
    let (t, _) = harness()?;
    let spent = t.enqueue(Echo::job("spent").max_attempts(2))?;
    t.drain()?;
    assert_eq!(t.client().get(spent)?.failure_reason, None, "it is tried again");
    let refused = t.enqueue(Echo::job("refused"))?;
    let slow = t.enqueue(Echo::job("slow").max_attempts(1).timeout(secs(5)))?;
    t.advance(secs(1));
    t.drain()?;
    for (id, reason, why) in [
        (spent, FailureReason::AttemptsSpent, Reason::AttemptsSpent { attempts: 2 }),
        (refused, FailureReason::Refused, Reason::Refused),
        (slow, FailureReason::TimedOut, Reason::AttemptsSpent { attempts: 1 }),
    ] {
        let job = t.client().get(id)?;
        assert_eq!((job.status, job.failure_reason), (Status::Failed, Some(reason)));
        let explained = t.client().explain(id)?;
        assert_eq!((&explained.ended_at, &explained.error), (&job.completed_at, &job.error));
        assert!(explained.error.is_some() && explained.ended_at.is_some());
        assert_eq!(explained.reasons, [why]);
        assert_eq!(of(&t, reason)?, [job.payload::<Echo>()?.0]);
    }
    let said = t.client().explain(slow)?.to_string();
    assert!(said.contains("Z: its one attempt is spent, with the error: "), "{said}");
    let both = Query::new().failed_by([FailureReason::Refused, FailureReason::AttemptsSpent]).queues(["default"]);
    assert_eq!(t.client().list(both)?.jobs.len(), 2);
    Ok(())
}

#[test]
fn a_job_that_kills_its_process_is_told_apart() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| builder.handle(echo))?;
    let id = t.enqueue(Echo::job("killer").max_attempts(1))?;
    // Its handler runs, and the process dies before the end is written.
    t.faults().fail(2, Fault::Before);
    assert!(t.drain().is_err());
    t.crash()?;
    t.drain()?;
    let job = t.client().get(id)?;
    assert_eq!((job.status, job.failure_reason), (Status::Failed, Some(FailureReason::CrashLoop)));
    assert_eq!(t.client().explain(id)?.reasons, [Reason::CrashLoop { attempts: 1 }]);
    assert_eq!(of(&t, FailureReason::CrashLoop)?, ["killer"]);
    sound(t.client());
    Ok(())
}

#[test]
fn dead_letters_go_again_one_by_one_or_all_of_a_reason() -> jobmill::Result<()> {
    let (t, mended) = harness()?;
    t.client().enqueue_many((0..450).map(|_| Echo::job("refused")))?;
    let spent = t.enqueue(Echo::job("spent").max_attempts(1))?;
    t.drain()?;
    mended.store(true, Ordering::SeqCst);
    let refused = Query::new().failed_by([FailureReason::Refused]);
    let bulk = t.client().select(refused.clone())?.retry()?;
    assert_eq!((bulk.changed, bulk.refused), (450, 0));
    assert_eq!(t.client().list(refused)?.jobs, [], "what goes again is no dead letter");
    t.drain()?;
    let stats = t.client().stats()?;
    assert_eq!((stats.total.completed, stats.total.failed), (450, 1));
    t.client().retry(spent)?;
    t.drain()?;
    assert_eq!(t.client().get(spent)?.failure_reason, None);
    sound(t.client());
    Ok(())
}

#[test]
fn dead_letters_are_kept_for_a_time_of_their_own() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let retention = Retention { completed: Some(secs(60)), failed: Some(secs(600)), ..Retention::default() };
        builder.retention(retention).handle(|job: Echo, _: &Context| -> Result<(), Failure> {
            if job.0 == "fails" { Err(Failure::fatal("never")) } else { Ok(()) }
        })
    })?;
    t.client().enqueue_many([Echo::job("fails"), Echo::job("")])?;
    t.drain()?;
    let left = |t: &Harness| t.client().stats().map(|stats| (stats.total.completed, stats.total.failed));
    t.advance(secs(61));
    t.engine().maintain()?;
    assert_eq!(left(&t)?, (0, 1));
    t.advance(secs(540));
    t.engine().maintain()?;
    assert_eq!(left(&t)?, (0, 0));
    Ok(())
}

#[test]
fn a_tracked_job_that_fails_elsewhere_is_no_dead_letter_of_ours() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let id = t.enqueue(NewJob::tracked().status(Status::Running))?;
    t.client().update_status(id, Status::Failed)?;
    assert_eq!(t.client().get(id)?.failure_reason, None);
    assert_eq!(t.client().explain(id)?.reasons, [Reason::Ended { status: Status::Failed }]);
    Ok(())
}
