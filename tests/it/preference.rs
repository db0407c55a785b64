//! What goes first among jobs of one priority.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{Context, EngineBuilder, ErrorKind, Failure, NewJob, Preference, Priority, Workers};

use crate::support::{Echo, Hands, Other, refused, secs, sound, with_hands};

#[derive(Clone, Default)]
struct Ran(Arc<Mutex<Vec<String>>>);

impl Ran {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

/// One worker. Jobs of the kind `echo` take a second, those of the kind `other` a minute.
fn harness(describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static) -> jobmill::Result<(Harness, Ran)> {
    let ran = Ran::default();
    let state = ran.clone();
    let run = |name: String, time, ctx: &Context| -> Result<(), Failure> {
        ctx.state::<Hands>()?.pass(time);
        ctx.state::<Ran>()?.0.lock().expect("no panic").push(name);
        Ok(())
    };
    let t = with_hands(move |builder| {
        let builder = builder.state(state.clone()).workers(Workers::new(1));
        describe(
            builder
                .handle(move |job: Echo, ctx: &Context| run(job.0, secs(1), ctx))
                .handle(move |job: Other, ctx: &Context| run(job.0.to_string(), secs(60), ctx)),
        )
    })?;
    Ok((t, ran))
}

#[test]
fn short_jobs_go_first_once_it_is_learnt_which_are_short() -> jobmill::Result<()> {
    let (mut t, ran) = harness(|builder| builder.prefer(Preference::ShortestFirst { weight: 10 }))?;
    let mix = |t: &Harness| -> jobmill::Result<()> {
        for n in 0..3 {
            t.enqueue(&Other(n))?;
            t.enqueue(Echo::job(format!("short{n}")))?;
        }
        t.drain().map(drop)
    };
    mix(&t)?;
    assert_eq!(ran.take()[..2], ["0", "short0"], "nothing is known yet");
    mix(&t)?;
    assert_eq!(ran.take(), ["short0", "short1", "short2", "0", "1", "2"]);
    // Another engine on the file knows it from the start.
    t.restart()?;
    mix(&t)?;
    assert_eq!(ran.take(), ["short0", "short1", "short2", "0", "1", "2"]);
    sound(t.client());
    Ok(())
}

#[test]
fn a_long_job_lets_no_more_pass_than_its_weight() -> jobmill::Result<()> {
    let (t, ran) = harness(|builder| builder.prefer(Preference::ShortestFirst { weight: 2 }))?;
    t.enqueue(&Other(0))?;
    t.enqueue(Echo::job(""))?;
    t.drain()?;
    ran.take();
    t.enqueue(&Other(7))?;
    // Short ones come without an end, one each second: the long one goes after two of its minutes.
    for _ in 0..200 {
        t.enqueue(Echo::job(""))?;
        t.advance(secs(1));
    }
    t.drain()?;
    let before = ran.take().iter().position(|name| name == "7");
    assert!((115..=121).contains(&before.expect("it ran")), "{before:?} went before it");
    Ok(())
}

#[test]
fn a_priority_counts_for_more_than_a_preference() -> jobmill::Result<()> {
    let (t, ran) = harness(|builder| builder.prefer(Preference::ShortestFirst { weight: 10 }))?;
    t.enqueue(&Other(0))?;
    t.drain()?;
    ran.take();
    t.enqueue(Echo::job("short"))?;
    t.enqueue(NewJob::of(&Other(1)).priority(Priority::High))?;
    t.drain()?;
    assert_eq!(ran.take(), ["1", "short"]);
    Ok(())
}

#[test]
fn what_must_start_first_to_be_done_in_time_goes_first() -> jobmill::Result<()> {
    let (t, ran) = harness(|builder| builder.prefer(Preference::EarliestDeadline { patience: secs(1000) }))?;
    t.enqueue(&Other(0))?;
    t.enqueue(Echo::job(""))?;
    t.drain()?;
    ran.take();
    t.enqueue(Echo::job("no deadline"))?;
    t.enqueue(Echo::job("in 2000 s").expires_in(secs(2000)))?;
    t.enqueue(Echo::job("in 900 s").expires_in(secs(900)))?;
    t.enqueue(Echo::job("in 500 s").expires_in(secs(500)))?;
    // It is due later and takes longer.
    t.enqueue(NewJob::of(&Other(520)).expires_in(secs(520)))?;
    t.drain()?;
    assert_eq!(ran.take(), ["520", "in 500 s", "in 900 s", "no deadline", "in 2000 s"]);
    sound(t.client());
    Ok(())
}

#[test]
fn the_deadlines_of_jobs_that_waited_for_their_time_or_failed_once_count_too() -> jobmill::Result<()> {
    let (t, ran) = harness(|builder| builder.prefer(Preference::EarliestDeadline { patience: secs(5000) }))?;
    t.enqueue(Echo::job("delayed, in 900 s").delay(secs(10)).expires_in(secs(900)))?;
    t.enqueue(Echo::job("delayed, no deadline").delay(secs(5)))?;
    t.enqueue(Echo::job("delayed, in 300 s").delay(secs(20)).expires_in(secs(300)))?;
    t.advance(secs(30));
    t.enqueue(Echo::job("in 500 s").expires_in(secs(500)))?;
    t.enqueue(Echo::job("in 100 s").expires_in(secs(100)))?;
    t.drain()?;
    let order = ["in 100 s", "delayed, in 300 s", "in 500 s", "delayed, in 900 s", "delayed, no deadline"];
    assert_eq!(ran.take(), order);
    sound(t.client());
    Ok(())
}

#[test]
fn of_those_that_have_come_due_the_first_256_are_compared_by_their_deadlines() -> jobmill::Result<()> {
    let (t, ran) = harness(|builder| builder.prefer(Preference::EarliestDeadline { patience: secs(50_000) }))?;
    let job = |n: u64| Echo::job(n.to_string()).delay(secs(1 + n)).expires_in(secs(9000 - n));
    t.client().enqueue_many((0..700).map(job))?;
    t.advance(secs(1000));
    t.drain()?;
    let order: Vec<u64> = ran.take().iter().map(|name| name.parse().expect("a number")).collect();
    // The later one came due, the tighter is its deadline.
    let expected: Vec<u64> = (255..700).chain((0..255).rev()).collect();
    assert_eq!(order, expected);
    sound(t.client());
    Ok(())
}

#[test]
fn without_a_preference_jobs_run_as_they_come() -> jobmill::Result<()> {
    let (t, ran) = harness(|builder| builder)?;
    for _ in 0..2 {
        t.enqueue(NewJob::of(&Other(1)))?;
        t.enqueue(Echo::job("due").expires_in(secs(100_000)))?;
        t.drain()?;
        assert_eq!(ran.take(), ["1", "due"]);
    }
    Ok(())
}

#[test]
fn a_preference_beyond_its_bounds_is_refused() {
    for (preference, begins) in [
        (Preference::ShortestFirst { weight: 0 }, "prefer.weight: must be from 1 to 1000"),
        (Preference::EarliestDeadline { patience: Duration::MAX }, "prefer.patience: "),
    ] {
        refused(Harness::new(move |builder| builder.prefer(preference)).map(drop), ErrorKind::Invalid, begins);
    }
}
