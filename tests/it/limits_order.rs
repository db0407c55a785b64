//! Limits: those of one key go in their order, and none of them waits while its gates have room.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{Context, Failure, Limit, LimitUse, NewJob, Priority, Workers};

use crate::support::{Dice, Echo, Hands, secs, sound, with_hands};

/// The names of jobs in the order in which they ran.
#[derive(Clone, Default)]
struct Starts(Arc<Mutex<Vec<String>>>);

impl Starts {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

/// A harness with these limits, whose handler notes the name of its job and finds the books right.
fn noting(limits: Vec<Limit>, workers: usize) -> jobmill::Result<(Harness, Starts)> {
    let starts = Starts::default();
    let state = starts.clone();
    let t = Harness::new(move |builder| {
        let run = |job: Echo, ctx: &Context| -> Result<(), Failure> {
            let mut starts = ctx.state::<Starts>()?.0.lock().expect("no panic");
            starts.push(job.0);
            starts.extend(ctx.client().verify()?);
            Ok(())
        };
        let builder = builder.handle(run).state(state.clone()).workers(Workers::new(workers));
        limits.iter().cloned().fold(builder, |builder, limit| builder.limit(limit))
    })?;
    Ok((t, starts))
}

fn ten_a_second() -> Vec<Limit> {
    vec![Limit::new("tokens").rate(10, secs(1))]
}

/// A job that takes so many tokens.
fn of_cost(name: &str, cost: u32) -> NewJob {
    Echo::job(name).limit(LimitUse::of("tokens").cost(cost))
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Jobs that were enqueued within one microsecond went by which limits they have, and not in their order.
#[test]
fn those_of_a_key_that_came_together_go_in_their_order_whatever_else_limits_them() -> jobmill::Result<()> {
    let limits = vec![Limit::new("a").concurrency(1), Limit::new("wide").concurrency(100)];
    let (t, starts) = noting(limits, 4)?;
    t.client().enqueue_many((0..40).map(|n| {
        let job = Echo::job(n.to_string()).limit("a");
        if n % 2 == 0 { job } else { job.limit("wide") }
    }))?;
    t.drain()?;
    assert_eq!(starts.take(), (0..40).map(|n| n.to_string()).collect::<Vec<_>>());
    sound(t.client());
    Ok(())
}

/// One that needed two keys passed those that waited for one of them, whenever both came free together: in a steady stream
/// of its like those others waited for ever.
#[test]
fn one_that_needs_two_keys_goes_behind_those_that_came_before_it_at_either() -> jobmill::Result<()> {
    let limits = || ["a", "b"].map(|name| Limit::new(name).concurrency(1)).to_vec();
    for (first, second) in [("a", "b"), ("b", "a")] {
        let (t, starts) = noting(limits(), 4)?;
        let both = |name: &str| Echo::job(name).limit(first).limit(second);
        for job in [both("1"), both("2"), Echo::job("3").limit("a"), both("4"), Echo::job("5").limit("b"), both("6")] {
            t.enqueue(job)?;
        }
        t.drain()?;
        let order = starts.take();
        assert_eq!(order[..3], ["1", "2", "3"], "{order:?}");
        assert!(order.iter().position(|name| name == "5") < order.iter().position(|name| name == "6"), "{order:?}");
        sound(t.client());
    }
    Ok(())
}

/// Whatever limits jobs of one priority have, of those that go by one key each goes before those that came after it and need
/// all that it needs.
#[test]
fn nobody_is_overtaken_by_one_that_needs_as_much_and_came_later() -> jobmill::Result<()> {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let names = ["a", "b", "c"];
        let limits = names.map(|name| Limit::new(name).concurrency(1 + dice.below(2) as u32)).to_vec();
        let (t, starts) = noting(limits, 4)?;
        let needs: Vec<Vec<&str>> = (0..60)
            .map(|_| {
                let mut needs = dice.some(&names);
                if dice.percent(50) {
                    needs.reverse();
                }
                needs
            })
            .collect();
        for (n, needs) in needs.iter().enumerate() {
            t.enqueue(needs.iter().fold(Echo::job(n.to_string()), |job, name| job.limit(*name)))?;
        }
        t.drain()?;
        let order: Vec<usize> = starts.take().iter().map(|name| name.parse().expect("a number")).collect();
        assert_eq!(order.len(), 60);
        for (at, later) in order.iter().enumerate() {
            for earlier in order[at..].iter().filter(|earlier| *earlier < later) {
                let needs_more = needs[*earlier].iter().any(|name| !needs[*later].contains(name));
                assert!(needs_more, "seed {seed}: {later} went before {earlier}: {order:?}");
            }
        }
        sound(t.client());
    }
    Ok(())
}

/// A job that took no tokens told nobody when it had begun, and the one behind it waited until it had ended.
#[test]
fn one_that_takes_nothing_keeps_nobody_waiting_while_it_runs() -> jobmill::Result<()> {
    let (t, starts) = noting(ten_a_second(), 1)?;
    t.client().enqueue_many([of_cost("spends", 10), of_cost("next", 1), of_cost("free", 0), of_cost("dear", 10)])?;
    for _ in 0..4 {
        t.drain()?;
        t.advance(secs(1));
    }
    assert_eq!(starts.take(), ["spends", "next", "free", "dear"]);
    t.advance(secs(1));
    // As the first of these runs, the books would tell that the other is held by a gate that has room.
    t.client().enqueue_many([of_cost("free", 0), of_cost("dear", 10)])?;
    assert_eq!(t.client().limit_usage("tokens", "")?.held, 1);
    t.drain()?;
    assert_eq!(starts.take(), ["free", "dear"]);
    sound(t.client());
    Ok(())
}

/// A cheap job stood behind a dear one. When that was cancelled, the cheap one waited until the dear one's tokens had come.
#[test]
fn who_stands_behind_one_that_goes_away_is_looked_at_anew() -> jobmill::Result<()> {
    for way in ["cancel", "delete", "expire", "move", "reprioritise"] {
        let (t, starts) = noting(ten_a_second(), 4)?;
        t.enqueue(of_cost("spends", 5))?;
        let dear = of_cost("dear", 10);
        let dear = t.enqueue(if way == "expire" { dear.expires_in(millis(1)) } else { dear })?;
        t.enqueue(of_cost("cheap", 4))?;
        t.drain()?;
        assert_eq!(starts.take(), ["spends"], "{way}");
        match way {
            "cancel" => drop(t.client().cancel(dear)?),
            "delete" => drop(t.client().delete(dear)?),
            // Where it cannot start, no tokens are kept for it.
            "move" => t.client().pause("aside").and_then(|()| t.client().set_queue(dear, "aside"))?,
            "reprioritise" => t.client().set_priority(dear, Priority::Low)?,
            _ => t.advance(millis(1)),
        }
        t.drain()?;
        assert_eq!(starts.take(), ["cheap"], "{way}");
        sound(t.client());
    }
    Ok(())
}

/// One whose time had come joined a line whose first job was cancelled. It was taken for one that others stand before, and
/// waited for as long as the dear one behind it.
#[test]
fn who_comes_to_stand_first_in_a_line_is_looked_at() -> jobmill::Result<()> {
    let (t, starts) = noting(ten_a_second(), 4)?;
    t.enqueue(of_cost("spends", 10))?;
    t.drain()?;
    let first = t.enqueue(of_cost("first", 10))?;
    t.client().pause("default")?;
    t.enqueue(of_cost("delayed", 5).delay(millis(10)))?;
    t.advance(millis(20));
    t.enqueue(of_cost("dear", 10))?;
    t.client().cancel(first)?;
    t.client().resume("default")?;
    t.drain()?;
    t.advance(millis(500));
    t.drain()?;
    assert_eq!(starts.take(), ["spends", "delayed"]);
    t.advance(millis(980));
    t.drain()?;
    assert_eq!(starts.take(), ["dear"]);
    sound(t.client());
    Ok(())
}

/// One that came in the same turn as a token was claimed as it was written, before a more urgent one that waited for it.
#[test]
fn who_comes_with_a_token_takes_it_from_nobody_who_goes_before() -> jobmill::Result<()> {
    let starts = Starts::default();
    let state = starts.clone();
    let t = with_hands(move |builder| {
        let run = |job: Echo, ctx: &Context| -> Result<(), Failure> {
            if job.0 == "comes with a token" {
                ctx.state::<Hands>()?.pass(secs(1));
                ctx.client().enqueue(Echo::job("new").limit("slow").priority(Priority::Low))?;
            }
            ctx.state::<Starts>()?.0.lock().expect("no panic").push(job.0);
            Ok(())
        };
        builder.handle(run).state(state.clone()).limit(Limit::new("slow").rate(1, secs(1)))
    })?;
    t.enqueue(Echo::job("first").limit("slow"))?;
    t.drain()?;
    t.enqueue(Echo::job("urgent").limit("slow").priority(Priority::Critical))?;
    t.enqueue(Echo::job("comes with a token"))?;
    t.drain()?;
    assert_eq!(starts.take(), ["first", "comes with a token", "urgent"]);
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(starts.take(), ["new"]);
    sound(t.client());
    Ok(())
}

/// Cheap jobs that were tried again took each token before a dear one had gathered its own.
#[test]
fn one_whose_own_time_has_come_goes_behind_a_dear_one_that_waits_for_longer() -> jobmill::Result<()> {
    let (t, starts) = noting(ten_a_second(), 4)?;
    t.enqueue(of_cost("spends", 10))?;
    t.enqueue(of_cost("dear", 10))?;
    for n in 1..20 {
        t.enqueue(of_cost(&format!("{n}"), 1).delay(millis(100 * n)))?;
    }
    for _ in 0..10 {
        t.drain()?;
        t.advance(millis(100));
    }
    assert_eq!(starts.take(), ["spends"]);
    t.drain()?;
    assert_eq!(starts.take(), ["dear"]);
    for n in 1..20 {
        t.advance(millis(100));
        t.drain()?;
        assert_eq!(starts.take(), [n.to_string()]);
    }
    sound(t.client());
    Ok(())
}

/// What stands ready in one lane keeps room for itself there. Nobody looked at the gate when it was moved to another.
#[test]
fn who_stands_behind_one_that_is_moved_while_it_is_ready_is_looked_at_anew() -> jobmill::Result<()> {
    let (t, starts) = noting(ten_a_second(), 4)?;
    // The gate has let it go, and nobody claims it before the drain.
    let ready = t.enqueue(of_cost("ready", 10))?;
    t.enqueue(of_cost("behind", 10))?;
    assert_eq!(t.client().limit_usage("tokens", "")?.held, 1);
    t.client().pause("aside")?;
    t.client().set_queue(ready, "aside")?;
    sound(t.client());
    t.drain()?;
    assert_eq!(starts.take(), ["behind"]);
    sound(t.client());
    Ok(())
}

/// The second word about what a job took was reckoned from its estimate, as if there had been no first.
#[test]
fn each_word_about_what_a_job_takes_is_reckoned_from_the_last() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let run = |_: Echo, ctx: &Context| -> Result<(), Failure> {
            let mut tokens = Vec::new();
            for spent in [4, 9, 7] {
                ctx.spent("tokens", spent)?;
                tokens.push(ctx.client().limit_usage("tokens", "")?.tokens);
            }
            assert_eq!(tokens, [Some(6), Some(1), Some(3)]);
            Ok(())
        };
        ten_a_second().into_iter().fold(builder.handle(run), |builder, limit| builder.limit(limit))
    })?;
    let id = t.enqueue(of_cost("", 2))?;
    t.drain()?;
    t.check(id, "completed, attempt 1");
    assert_eq!(t.client().limit_usage("tokens", "")?.tokens, Some(3));
    Ok(())
}

/// Two were let go together. The first was met when its token had been taken and was held, the other when there was one
/// again, and went before it.
#[test]
fn of_two_that_were_let_go_together_none_passes_the_one_that_is_held_again() -> jobmill::Result<()> {
    let starts = Starts::default();
    let state = starts.clone();
    let t = with_hands(move |builder| {
        let run = |job: Echo, ctx: &Context| -> Result<(), Failure> {
            if job.0 == "free" {
                ctx.state::<Hands>()?.pass(secs(1));
            }
            ctx.state::<Starts>()?.0.lock().expect("no panic").push(job.0);
            Ok(())
        };
        let slow = Limit::new("slow").rate(1, secs(1)).burst(2);
        builder.handle(run).state(state.clone()).limit(slow).limit_queue(Limit::new("later").concurrency(1))
    })?;
    t.client().pause("later")?;
    for (name, limited) in [("a", true), ("free", false), ("b", true)] {
        let job = Echo::job(name).queue("later");
        t.enqueue(if limited { job.limit("slow") } else { job })?;
    }
    t.enqueue(Echo::job("first").limit(LimitUse::of("slow").cost(2)))?;
    t.drain()?;
    t.client().resume("later")?;
    t.drain()?;
    assert_eq!(starts.take(), ["first", "free", "a"]);
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(starts.take(), ["b"]);
    sound(t.client());
    Ok(())
}
