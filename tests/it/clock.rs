//! The clock is set back while jobs wait: what was to wait for so long waits for no longer, and what was to come at a moment
//! comes then.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{Context, Failure, NewWorkflow, Outcome};

use crate::support::{Echo, now, secs, sound};

/// What ran.
#[derive(Clone, Default)]
struct Ran(Arc<Mutex<Vec<String>>>);

impl Ran {
    /// The names of what has run since the last time, each once.
    fn take(&self) -> Vec<String> {
        let mut ran = std::mem::take(&mut *self.0.lock().expect("no panic"));
        ran.sort();
        ran.dedup();
        ran
    }
}

fn run(job: Echo, ctx: &Context) -> Result<Outcome<()>, Failure> {
    ctx.state::<Ran>()?.0.lock().expect("no panic").push(job.0.clone());
    match job.0.as_str() {
        "retried" if ctx.attempt() == 1 => Err(Failure::retry_after(secs(10), "not yet")),
        "snoozed" if ctx.saved::<bool>()?.is_none() => {
            ctx.save(&true)?;
            Ok(Outcome::Snooze(secs(10)))
        }
        _ => Ok(Outcome::Done(())),
    }
}

/// Retries, snoozes and jobs of workflows waited for as long as the clock was set back by, although nobody had asked for that.
#[test]
fn nobody_waits_for_a_clock_that_was_set_back() -> jobmill::Result<()> {
    for (back, restarts) in [60, 3600, 365 * 86_400].into_iter().flat_map(|back| [(back, false), (back, true)]) {
        let context = format!("by {back} s, after a restart: {restarts}");
        let ran = Ran::default();
        let state = ran.clone();
        let mut t = Harness::new(move |builder| builder.handle(run).state(state.clone()))?;
        let client = || t.client().clone();
        client().pause("mail")?;
        // So many that they are not put right in one turn.
        let crowd = if back == 60 { 1100 } else { 1 };
        client().enqueue_many((0..crowd).map(|_| Echo::job("retried")).chain([Echo::job("snoozed")]))?;
        let follower = |name: &str| Echo::job(name).queue("mail");
        client().start_workflow(
            NewWorkflow::new("flow")
                .job("first", Echo::job("first"))
                .job("second", follower("second"))
                .after("first")
                .jobs("stage", (0..3).map(|n| follower(&format!("stage {n}"))))
                .after("first"),
        )?;
        let moment = now(&t).saturating_add(secs(7200));
        let at = t.enqueue(Echo::job("at").run_at(moment))?;
        let soon = now(&t).saturating_add(secs(5));
        let asked = t.enqueue(Echo::job("asked").run_at(soon))?;
        t.drain()?;
        assert_eq!(ran.take(), ["first", "retried", "snoozed"], "{context}");

        t.clock().jump(now(&t).saturating_sub(secs(back)));
        if restarts {
            t.restart()?;
        }
        t.drain()?;
        assert_eq!(ran.take(), [""; 0], "{context}: no time has passed");
        t.client().resume("mail")?;
        t.drain()?;
        assert_eq!(ran.take(), ["second", "stage 0", "stage 1", "stage 2"], "{context}");
        t.advance(secs(10) - Duration::from_micros(1));
        t.drain()?;
        assert_eq!(ran.take(), [""; 0], "{context}: they wait for as long as they were to");
        t.advance(Duration::from_micros(1));
        t.drain()?;
        assert_eq!(ran.take(), ["retried", "snoozed"], "{context}");

        assert_eq!((t.client().get(at)?.run_at, t.client().get(asked)?.run_at), (moment, soon), "{context}");
        t.clock().jump(moment);
        t.drain()?;
        assert_eq!(ran.take(), ["asked", "at"], "{context}");
        assert_eq!(t.client().stats()?.total.completed, crowd + 8, "{context}");
        sound(t.client());
    }
    Ok(())
}

/// What had been claimed when the clock was set back, and whose run never began, waited for the clock when it went back.
#[test]
fn what_goes_back_unbegun_does_not_wait_for_a_clock_that_was_set_back() -> jobmill::Result<()> {
    for crashes in [false, true] {
        let ran = Ran::default();
        let state = ran.clone();
        let mut t = Harness::new(move |builder| builder.handle(run).state(state.clone()))?;
        let right = now(&t);
        t.advance(secs(3600));
        t.client().pause("mail")?;
        t.enqueue(Echo::job("retried"))?;
        t.client().start_workflow(
            NewWorkflow::new("flow")
                .job("first", Echo::job("first"))
                .job("second", Echo::job("second").queue("mail"))
                .after("first"),
        )?;
        let moment = now(&t).saturating_add(secs(10));
        let at = t.enqueue(Echo::job("at").run_at(moment))?;
        t.drain()?;
        assert_eq!(ran.take(), ["first", "retried"], "crashes: {crashes}");
        t.advance(secs(10));
        t.client().resume("mail")?;

        // The claim is written, and its engine does not learn of it.
        t.faults().fail(1, Fault::After);
        assert!(t.drain().is_err());
        t.faults().heal();
        assert_eq!(t.client().stats()?.total.running, 3, "crashes: {crashes}");
        t.clock().jump(right);
        if crashes {
            t.crash()?;
        }
        t.drain()?;
        assert_eq!(ran.take(), ["retried", "second"], "crashes: {crashes}");
        assert_eq!(t.client().get(at)?.run_at, moment, "crashes: {crashes}");
        t.clock().jump(moment);
        t.drain()?;
        assert_eq!(ran.take(), ["at"], "crashes: {crashes}");
        sound(t.client());
    }
    Ok(())
}

/// An engine that was not there when the clock was set back saw it by the ids alone, and none is given to what runs
/// again; then by when engines came and went, too, and one may die as it was before the clock ran ahead.
#[test]
fn a_clock_that_ran_ahead_shows_though_nothing_was_enqueued_under_it() -> jobmill::Result<()> {
    for starts_ahead in [true, false] {
        let ran = Ran::default();
        let state = ran.clone();
        let mut t = Harness::new(move |builder| builder.handle(run).state(state.clone()))?;
        let right = now(&t);
        t.client().enqueue_many(["retried", "snoozed"].map(Echo::job))?;
        t.clock().jump(right.saturating_add(secs(365 * 86_400)));
        if starts_ahead {
            t.restart()?;
        }
        t.drain()?;
        t.clock().jump(right);
        t.crash()?;
        t.drain()?;
        assert_eq!(ran.take(), ["retried", "snoozed"], "{starts_ahead}");
        t.advance(secs(10));
        t.drain()?;
        assert_eq!(ran.take(), ["retried", "snoozed"], "{starts_ahead}");
    }
    Ok(())
}
