//! Durable steps: what a handler has done it does not do again.

use std::sync::{Arc, Mutex};

use jobmill::testing::{Fault, Harness};
use jobmill::{Backoff, Context, Durability, Failure, NewJob, Outcome, Payload};
use serde::{Deserialize, Serialize};

use crate::support::work::Record;
use crate::support::{Echo, fence_off, query, secs, sound};

#[derive(Serialize, Deserialize)]
struct Order(u32);

impl Payload for Order {
    const KIND: &'static str = "order";

    fn defaults(job: NewJob) -> NewJob {
        job.backoff(Backoff::fixed(secs(1))).max_attempts(50)
    }
}

/// Charges, packs in three steps, fails as often as it says in between, and snoozes once.
fn order(job: Order, ctx: &Context) -> Result<Outcome<Vec<String>>, Failure> {
    let record = ctx.state::<Record>()?;
    let receipt: String = ctx.step("charge", || {
        record.note("charge");
        Ok::<_, Failure>("receipt 7".to_owned())
    })?;
    let mut packed = vec![receipt];
    for part in 0..3 {
        packed.push(ctx.step(&format!("pack {part}"), || {
            record.note(format!("pack {part}"));
            if part == 1 && ctx.attempt() <= job.0 { Err(Failure::retry("no box")) } else { Ok(part.to_string()) }
        })?);
    }
    if ctx.step("was put off", || Ok::<_, Failure>(ctx.attempt()))? == ctx.attempt() && job.0 > 0 {
        let first: bool = ctx.saved()?.unwrap_or(true);
        ctx.save(&false)?;
        if first {
            return Ok(Outcome::Snooze(secs(1)));
        }
    }
    Ok(Outcome::Done(packed))
}

fn harness() -> jobmill::Result<(Harness, Record)> {
    let record = Record::default();
    let state = record.clone();
    let t = Harness::new(move |builder| builder.durability(Durability::Normal).handle(order).state(state.clone()))?;
    Ok((t, record))
}

#[test]
fn a_step_that_is_done_is_not_done_again_and_one_that_failed_is() -> jobmill::Result<()> {
    let (t, record) = harness()?;
    let id = t.enqueue(&Order(2))?;
    for _ in 0..5 {
        t.drain()?;
        t.advance(secs(1));
    }
    assert_eq!(record.take(), ["charge", "pack 0", "pack 1", "pack 1", "pack 1", "pack 2"]);
    assert_eq!(t.client().get(id)?.result::<Vec<String>>()?, ["receipt 7", "0", "1", "2"]);
    assert_eq!(query::<i64>(t.client(), "SELECT count(*) FROM jobmill_journal"), 5);
    t.client().delete(id)?;
    assert_eq!(query::<i64>(t.client(), "SELECT count(*) FROM jobmill_journal"), 0);
    sound(t.client());
    Ok(())
}

/// Every commit fails once, written or not, and the process dies with it.
#[test]
fn each_step_is_kept_or_done_again_whatever_commit_a_crash_cuts_off() -> jobmill::Result<()> {
    for fault in [Fault::Before, Fault::After] {
        for n in 1..12 {
            let (mut t, record) = harness()?;
            let id = t.enqueue(&Order(0))?;
            t.faults().fail(n, fault);
            let crashed = t.drain().is_err();
            for _ in 0..2 {
                // The fault may come upon the start of the next engine.
                while t.crash().is_err() {}
                for _ in 0..3 {
                    let _ = t.drain();
                    t.advance(secs(1));
                }
            }
            assert_eq!(t.client().get(id)?.result::<Vec<String>>()?, ["receipt 7", "0", "1", "2"], "{fault:?} {n}");
            let mut ran = record.take();
            let times = ran.len();
            ran.sort();
            ran.dedup();
            assert_eq!(ran, ["charge", "pack 0", "pack 1", "pack 2"], "{fault:?} {n}");
            // The one whose keeping was cut off is done once more, and no other.
            assert!(times <= 5, "{fault:?} {n}, {crashed}: {times}");
            if fault == Fault::After {
                assert_eq!(times, 4, "{n}: what is kept is not done again");
            }
        }
    }
    Ok(())
}

#[test]
fn a_step_whose_value_is_too_long_is_told_how_long_it_may_be() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, ctx: &Context| ctx.step("big", || Ok::<_, Failure>("x".repeat(16 << 20))))
    })?;
    let id = t.enqueue(Echo::job("x"))?;
    t.drain()?;
    let says = "failed, attempt 1: step: the value of \"big\": must be no longer than 16777216 bytes, is 16777218";
    t.check(id, says);
    Ok(())
}

#[test]
fn a_step_must_have_a_name_of_its_own() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Twice(String, String);
    impl Payload for Twice {
        const KIND: &'static str = "twice";
    }
    let t = Harness::new(|builder| {
        builder.durability(Durability::Normal).handle(|job: Twice, ctx: &Context| -> Result<(), Failure> {
            ctx.step(&job.0, || Ok::<_, Failure>(()))?;
            ctx.step(&job.1, || Ok::<_, Failure>(()))
        })
    })?;
    let same = t.enqueue(&Twice("a".into(), "a".into()))?;
    let empty = t.enqueue(&Twice("a".into(), String::new()))?;
    t.drain()?;
    t.check(same, "failed, attempt 1: step: \"a\" must be done once in an attempt");
    t.check(empty, "failed, attempt 1: step: must be 1 to 128 bytes without control characters");
    Ok(())
}

#[test]
fn an_attempt_that_does_not_count_keeps_no_step() -> jobmill::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Late;
    impl Payload for Late {
        const KIND: &'static str = "late";
    }
    let errors: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = errors.clone();
    let t = Harness::new(move |builder| {
        let seen = seen.clone();
        builder.durability(Durability::Normal).handle(move |_: Late, ctx: &Context| -> Result<u8, Failure> {
            fence_off(ctx.client(), ctx.id());
            let step = ctx.step("late", || Ok::<_, Failure>(1));
            seen.lock().unwrap().push(step.as_ref().map_or_else(ToString::to_string, ToString::to_string));
            step
        })
    })?;
    t.enqueue(&Late)?;
    t.drain()?;
    let errors = errors.lock().unwrap();
    assert!(errors[0].ends_with("does not count any more"), "{errors:?}");
    assert_eq!(query::<i64>(t.client(), "SELECT count(*) FROM jobmill_journal"), 0);
    Ok(())
}
