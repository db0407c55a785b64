//! Users who take turns.

use std::sync::{Arc, Mutex};

use jobmill::testing::Harness;
use jobmill::{Context, EngineBuilder, Failure, Limit, LimitUse, NewJob, Priority, Workers};

use crate::support::{Echo, Other, now, secs, sound};

/// Whose jobs have run, in their order.
#[derive(Clone, Default)]
struct Served(Arc<Mutex<Vec<String>>>);

impl Served {
    fn take(&self) -> String {
        std::mem::take(&mut *self.0.lock().expect("no panic")).join("")
    }
}

fn serve(text: &str, ctx: &Context) -> Result<(), Failure> {
    let user = ctx.job().user_id.clone().unwrap_or_else(|| "-".to_owned());
    ctx.state::<Served>()?.0.lock().expect("no panic").push(user + text);
    if ctx.job().tags.contains(&"fails".to_owned()) && ctx.attempt() == 1 {
        return Err(Failure::retry("no"));
    }
    Ok(())
}

fn harness(describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static) -> jobmill::Result<(Harness, Served)> {
    let served = Served::default();
    let state = served.clone();
    let t = Harness::new(move |builder| {
        let builder = builder.state(state.clone()).workers(Workers::new(1));
        describe(
            builder
                .handle(|job: Echo, ctx: &Context| serve(&job.0, ctx))
                .handle(|_: Other, ctx: &Context| serve("", ctx)),
        )
    })?;
    Ok((t, served))
}

fn jobs_of(user: &str, count: usize) -> impl Iterator<Item = NewJob> {
    std::iter::repeat_with(move || Echo::job("").user(user)).take(count)
}

#[test]
fn users_take_turns_if_that_is_asked_for() -> jobmill::Result<()> {
    for fair in [false, true] {
        let (t, served) = harness(move |builder| if fair { builder.fair_by_user() } else { builder })?;
        t.client().enqueue_many(jobs_of("a", 6).chain(jobs_of("b", 2)).chain(jobs_of("c", 3)))?;
        t.drain()?;
        assert_eq!(served.take(), if fair { "abcabcacaaa" } else { "aaaaaabbccc" });
        sound(t.client());
    }
    Ok(())
}

#[test]
fn who_comes_late_does_not_wait_for_what_another_has_piled_up() -> jobmill::Result<()> {
    let (t, served) = harness(EngineBuilder::fair_by_user)?;
    t.client().enqueue_many(jobs_of("a", 1000))?;
    t.client().enqueue_many(jobs_of("b", 1))?;
    t.client().enqueue_many(jobs_of("c", 1))?;
    t.drain()?;
    let order = served.take();
    assert!(order.find('b') < Some(5) && order.find('c') < Some(5), "{order}");
    assert_eq!(order.len(), 1002);
    Ok(())
}

#[test]
fn turns_are_kept_from_one_claim_to_the_next() -> jobmill::Result<()> {
    let (t, served) = harness(EngineBuilder::fair_by_user)?;
    t.client().enqueue_many(jobs_of("a", 1))?;
    t.drain()?;
    // The user who was served a moment ago waits for the others, though its job is the oldest.
    t.client().enqueue_many(jobs_of("a", 2).chain(jobs_of("b", 2)).chain(jobs_of("c", 2)))?;
    t.drain()?;
    assert_eq!(served.take(), "abcabca");
    Ok(())
}

#[test]
fn users_take_turns_across_kinds_and_queues() -> jobmill::Result<()> {
    let (t, served) = harness(EngineBuilder::fair_by_user)?;
    t.client().enqueue_many(jobs_of("a", 4))?;
    for n in 0..4 {
        t.enqueue(NewJob::of(&Other(n)).user("b").queue("another"))?;
    }
    t.drain()?;
    assert_eq!(served.take(), "abababab");
    Ok(())
}

#[test]
fn a_better_priority_goes_before_everybodys_turn() -> jobmill::Result<()> {
    let (t, served) = harness(EngineBuilder::fair_by_user)?;
    t.client().enqueue_many(jobs_of("a", 2).chain(jobs_of("b", 2)))?;
    t.client().enqueue_many(jobs_of("c", 3).map(|job| job.priority(Priority::High)))?;
    t.drain()?;
    assert_eq!(served.take(), "cccabab");
    Ok(())
}

#[test]
fn jobs_without_a_user_have_one_turn_among_the_users() -> jobmill::Result<()> {
    let (t, served) = harness(EngineBuilder::fair_by_user)?;
    t.client().enqueue_many((0..4).map(|_| Echo::job("")))?;
    t.client().enqueue_many(jobs_of("a", 4).chain(jobs_of("b", 2)))?;
    t.drain()?;
    let order = served.take();
    for (user, count) in [("-", 2), ("a", 2), ("b", 2)] {
        assert_eq!(order[..6].matches(user).count(), count, "{order}");
    }
    Ok(())
}

#[test]
fn delayed_and_retried_jobs_take_their_users_turn() -> jobmill::Result<()> {
    let (t, served) = harness(EngineBuilder::fair_by_user)?;
    t.client().enqueue_many(jobs_of("a", 5).map(|job| job.tags(["fails"])))?;
    t.client().enqueue_many(jobs_of("b", 2).map(|job| job.delay(secs(60))))?;
    t.drain()?;
    assert_eq!(served.take(), "aaaaa", "nobody waits for what is not due");
    t.advance(secs(60));
    t.client().enqueue_many(jobs_of("c", 2))?;
    t.drain()?;
    let order = served.take();
    assert_eq!(order.len(), 9);
    for user in ["a", "b", "c"] {
        assert_eq!(order[..6].matches(user).count(), 2, "{order}");
    }
    Ok(())
}

#[test]
fn a_user_whose_job_a_limit_holds_does_not_lose_the_turn() -> jobmill::Result<()> {
    let (t, served) = harness(|builder| builder.fair_by_user().limit(Limit::new("slow").rate(1, secs(60))))?;
    // Both may go as they come, for nobody waits yet, and only one gets the token.
    let slow = |user: &str| Echo::job("s").user(user).limit(LimitUse::of("slow")).delay(secs(1));
    t.client().enqueue_many([slow("a"), slow("b"), Echo::job("").user("b").delay(secs(1))])?;
    t.client().enqueue_many((0..2).map(|_| Echo::job("").user("c").delay(secs(1))))?;
    t.advance(secs(2));
    t.drain()?;
    assert_eq!(served.take(), "asbcc", "b has another job, which goes in its turn");
    sound(t.client());
    Ok(())
}

#[test]
fn a_users_jobs_keep_their_order_among_each_other() -> jobmill::Result<()> {
    let (t, served) = harness(EngineBuilder::fair_by_user)?;
    let start = now(&t);
    t.enqueue(Echo::job("2").user("a"))?;
    t.enqueue(Echo::job("3").user("a"))?;
    t.enqueue(Echo::job("1").user("a").run_at(start.saturating_sub(secs(9))))?;
    t.enqueue(Echo::job("1").user("b"))?;
    t.drain()?;
    assert_eq!(served.take(), "a1b1a2a3");
    Ok(())
}

#[test]
fn who_has_waited_long_goes_first_whosever_turn_it_is() -> jobmill::Result<()> {
    let (t, served) = harness(|builder| builder.fair_by_user().ageing(secs(10)))?;
    t.client().enqueue_many(jobs_of("a", 3).map(|job| job.priority(Priority::Low)))?;
    t.advance(secs(31));
    t.client().enqueue_many(jobs_of("b", 2).map(|job| job.priority(Priority::High)))?;
    t.client().enqueue_many(jobs_of("c", 2))?;
    t.drain()?;
    assert_eq!(served.take(), "aaabbcc");
    sound(t.client());
    Ok(())
}

#[test]
fn a_user_with_a_job_of_a_strange_kind_holds_up_nobody() -> jobmill::Result<()> {
    let (t, served) = harness(EngineBuilder::fair_by_user)?;
    for n in 0..3 {
        t.enqueue(NewJob::json("strange", &n).user("s"))?;
    }
    t.client().enqueue_many(jobs_of("a", 2).chain(jobs_of("b", 2)))?;
    t.drain()?;
    assert_eq!(served.take(), "abab");
    Ok(())
}
