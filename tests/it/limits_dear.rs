//! Limits: tokens that are kept for a dear job, and for whom they are not.

use std::sync::{Arc, Mutex};

use jobmill::testing::Harness;
use jobmill::{Context, EngineBuilder, Failure, Limit, LimitUse, NewJob, Priority};

use crate::support::{Echo, Other, secs, sound};

/// The names of jobs in the order in which they ran.
#[derive(Clone, Default)]
struct Ran(Arc<Mutex<Vec<String>>>);

impl Ran {
    fn note(&self, name: &str) -> Result<(), Failure> {
        self.0.lock().expect("no panic").push(name.to_owned());
        Ok(())
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

/// A bucket of ten tokens, one of which comes each second, and jobs of two kinds in one queue.
fn ten_tokens(describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static) -> jobmill::Result<(Harness, Ran)> {
    let ran = Ran::default();
    let state = ran.clone();
    let t = Harness::new(move |builder| {
        let builder = builder.limit(Limit::new("tokens").rate(1, secs(1)).burst(10)).state(state.clone());
        describe(
            builder
                .handle(|job: Echo, ctx: &Context| -> Result<(), Failure> { ctx.state::<Ran>()?.note(&job.0) })
                .handle(|_: Other, ctx: &Context| -> Result<(), Failure> { ctx.state::<Ran>()?.note("dear") }),
        )
    })?;
    // The bucket is empty from here on.
    t.enqueue(Echo::job("first").limit(LimitUse::of("tokens").cost(10)))?;
    t.drain()?;
    ran.take();
    Ok((t, ran))
}

fn dear(cost: u32) -> NewJob {
    NewJob::of(&Other(0)).limit(LimitUse::of("tokens").cost(cost))
}

/// Cheap jobs come, one for each token, for so many seconds. Tells after how many of them the dear one ran.
fn cheap_until_dear(
    t: &Harness,
    ran: &Ran,
    seconds: u64,
    cheap: impl Fn() -> NewJob,
) -> jobmill::Result<Option<usize>> {
    for _ in 0..seconds {
        t.enqueue(cheap())?;
        t.advance(secs(1));
        t.drain()?;
    }
    Ok(ran.take().iter().position(|name| name == "dear"))
}

fn cheap() -> NewJob {
    Echo::job("cheap").limit("tokens")
}

#[test]
fn cheap_jobs_of_another_kind_do_not_take_the_tokens_that_a_dear_one_waits_for() -> jobmill::Result<()> {
    let (t, ran) = ten_tokens(|builder| builder)?;
    t.enqueue(dear(8))?;
    assert_eq!(cheap_until_dear(&t, &ran, 30, cheap)?, Some(0));
    // Those that waited for it run as their tokens come.
    t.advance(secs(60));
    t.drain()?;
    assert_eq!(t.client().stats()?.depth(), 0);
    sound(t.client());
    Ok(())
}

#[test]
fn more_urgent_jobs_take_the_tokens_before_a_dear_one_until_it_has_aged() -> jobmill::Result<()> {
    for (ageing, expected) in [(false, None), (true, Some(15))] {
        let (t, ran) = ten_tokens(move |builder| if ageing { builder.ageing(secs(20)) } else { builder })?;
        t.enqueue(dear(8))?;
        let after = cheap_until_dear(&t, &ran, 60, || cheap().priority(Priority::High))?;
        match expected {
            None => assert_eq!(after, None),
            // From then on it is as urgent as those that come, and older.
            Some(least) => assert!(after.is_some_and(|after| (least..30).contains(&after)), "{after:?}"),
        }
        sound(t.client());
    }
    Ok(())
}

#[test]
fn tokens_are_not_kept_for_what_could_not_start() -> jobmill::Result<()> {
    let (t, ran) = ten_tokens(|builder| builder.limit_queue(Limit::new("busy").concurrency(1)))?;
    t.client().pause("slow")?;
    t.enqueue(dear(8).queue("slow"))?;
    t.enqueue(NewJob::json("strange", &0).limit(LimitUse::of("tokens").cost(8)))?;
    assert_eq!(cheap_until_dear(&t, &ran, 20, cheap)?, None);
    assert_eq!(t.client().limit_usage("tokens", "")?.held, 2, "the dear ones alone wait");
    t.client().resume("slow")?;
    assert!(cheap_until_dear(&t, &ran, 20, cheap)?.is_some());
    sound(t.client());
    Ok(())
}

#[test]
fn a_cheap_job_that_stands_ready_goes_behind_a_dear_one_that_was_held_before_it() -> jobmill::Result<()> {
    let ran = Ran::default();
    let state = ran.clone();
    let t = Harness::new(move |builder| {
        builder
            .limit(Limit::new("tokens").rate(1, secs(1)).burst(10))
            .state(state.clone())
            .handle(|job: Echo, ctx: &Context| -> Result<(), Failure> { ctx.state::<Ran>()?.note(&job.0) })
    })?;
    // The turn that meets the dear one has no room for the cheap one.
    t.client().limit_queue(&Limit::new("later").concurrency(1))?;
    t.client().pause("later")?;
    for (name, cost) in [("dear", 8), ("free", 0), ("cheap", 1)] {
        let job = Echo::job(name).queue("later");
        t.enqueue(if cost == 0 { job } else { job.limit(LimitUse::of("tokens").cost(cost)) })?;
    }
    // It empties the bucket while they stand ready.
    t.enqueue(Echo::job("first").limit(LimitUse::of("tokens").cost(10)))?;
    t.drain()?;
    t.advance(secs(3));
    t.client().resume("later")?;
    t.drain()?;
    assert_eq!(ran.take(), ["first", "free"]);
    t.advance(secs(60));
    t.drain()?;
    assert_eq!(ran.take(), ["dear", "cheap"]);
    sound(t.client());
    Ok(())
}

#[test]
fn who_waits_behind_a_dear_job_costs_nothing_until_it_has_its_tokens() -> jobmill::Result<()> {
    let (t, ran) = ten_tokens(|builder| builder.limit(Limit::new("other").rate(100, secs(1))))?;
    t.enqueue(dear(8))?;
    // They stand at the gate of the dear one, whichever of their limits is named first.
    for _ in 0..20 {
        t.enqueue(cheap().limit("other"))?;
        t.enqueue(Echo::job("cheap").limit("other").limit("tokens"))?;
    }
    t.drain()?;
    let before = t.client().limit_usage("tokens", "")?;
    assert_eq!(before.held, 41);
    t.advance(secs(7));
    let ran_now = t.drain()?;
    assert_eq!((ran.take().len(), ran_now), (0, 0), "no turn moves any of them");
    assert_eq!(t.client().limit_usage("tokens", "")?.held, 41);
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(ran.take(), ["dear"]);
    for _ in 0..40 {
        t.advance(secs(1));
        t.drain()?;
    }
    assert_eq!(t.client().stats()?.depth(), 0);
    sound(t.client());
    Ok(())
}
