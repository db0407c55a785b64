//! Rates: how fast the jobs of a key start, what they cost, and what becomes of that when a limit or the clock is changed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{
    Client, Clock, Context, Engine, ErrorKind, Failure, Limit, LimitUse, NewJob, Outcome, Priority, Reason, Status,
    SystemClock, Workers,
};

use crate::support::{Block, Echo, block, file, gate, query, refused, secs, sound};

/// When jobs of each name ran, in seconds since the harness was made.
#[derive(Clone, Default)]
pub(crate) struct Starts(Arc<Mutex<Vec<String>>>);

impl Starts {
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

pub(crate) fn timed(
    limits: &'static [fn() -> Limit],
    queue: Option<fn() -> Limit>,
) -> jobmill::Result<(Harness, Starts)> {
    let starts = Starts::default();
    let state = starts.clone();
    let t = Harness::new(move |builder| {
        let mut builder = builder
            .handle(|job: Echo, ctx: &Context| -> Result<Outcome<()>, Failure> {
                ctx.state::<Starts>()?.0.lock().expect("no panic").push(job.0.clone());
                match job.0.as_str() {
                    "costs 6" => ctx.spent("tokens", 6)?,
                    "costs 0" => ctx.spent("tokens", 0)?,
                    "costs 1 after all" => {
                        ctx.spent("tokens", 2)?;
                        ctx.spent("tokens", 3)?;
                        ctx.spent("tokens", 1)?;
                    }
                    "throttled" => {
                        ctx.throttled(secs(60))?;
                        return Ok(Outcome::Snooze(secs(60)));
                    }
                    _ => {}
                }
                Ok(Outcome::Done(()))
            })
            .state(state.clone());
        for limit in limits {
            builder = builder.limit(limit());
        }
        match queue {
            Some(queue) => builder.limit_queue(queue()),
            None => builder,
        }
    })?;
    Ok((t, starts))
}

pub(crate) fn three_a_second() -> Limit {
    Limit::new("tokens").rate(3, secs(1))
}

#[test]
fn jobs_start_as_fast_as_tokens_come_and_no_faster() -> jobmill::Result<()> {
    let (t, starts) = timed(&[three_a_second], None)?;
    let ids = t.client().enqueue_many((0..8).map(|n| Echo::job(n.to_string()).limit("tokens")))?;
    t.drain()?;
    assert_eq!(starts.take(), ["0", "1", "2"], "a bucket that rested is full");
    let until = t.client().explain(ids[7].id())?;
    assert!(matches!(until.reasons[..], [Reason::Limited { until: Some(_), .. }]), "{until}");
    t.advance(Duration::from_millis(333));
    t.drain()?;
    assert_eq!(starts.take(), [""; 0]);
    t.advance(Duration::from_millis(1));
    t.drain()?;
    assert_eq!(starts.take(), ["3"]);
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(starts.take(), ["4", "5", "6"]);
    t.advance(secs(3600));
    t.drain()?;
    assert_eq!(starts.take(), ["7"]);
    assert_eq!(t.client().limit_usage("tokens", "")?.tokens, Some(2));
    sound(t.client());
    Ok(())
}

#[test]
fn what_a_job_really_took_is_corrected_after_the_call() -> jobmill::Result<()> {
    let (t, starts) = timed(&[three_a_second], None)?;
    let estimated = |name: &str| Echo::job(name).limit(LimitUse::of("tokens").cost(3));
    t.client().enqueue_many([estimated("costs 6"), Echo::job("next").limit("tokens")])?;
    t.drain()?;
    assert_eq!(starts.take(), ["costs 6"]);
    assert_eq!(t.client().limit_usage("tokens", "")?.tokens, Some(-3));
    t.advance(Duration::from_millis(1300));
    t.drain()?;
    assert_eq!(starts.take(), [""; 0], "the debt is paid first");
    t.advance(Duration::from_millis(50));
    t.drain()?;
    assert_eq!(starts.take(), ["next"]);
    t.advance(secs(5));
    t.client().enqueue_many((0..4).map(|_| Echo::job("costs 0").limit("tokens")))?;
    t.drain()?;
    assert_eq!(starts.take().len(), 4, "what was not taken went back");
    t.advance(secs(5));
    t.enqueue(estimated("costs 1 after all"))?;
    t.drain()?;
    assert_eq!(t.client().limit_usage("tokens", "")?.tokens, Some(2), "the last word counts");
    sound(t.client());
    Ok(())
}

#[test]
fn who_comes_when_a_token_does_goes_behind_those_that_wait_for_it() -> jobmill::Result<()> {
    let (t, starts) = timed(&[three_a_second], None)?;
    t.client().enqueue_many((0..5).map(|n| Echo::job(n.to_string()).limit("tokens")))?;
    t.drain()?;
    t.advance(Duration::from_millis(334));
    t.enqueue(Echo::job("new").limit("tokens"))?;
    t.drain()?;
    assert_eq!(starts.take(), ["0", "1", "2", "3"]);
    sound(t.client());
    Ok(())
}

/// What a dead engine had claimed and not begun gave the tokens of its limits back, but not those of its queue.
#[test]
fn what_was_claimed_and_never_began_gives_its_tokens_back() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let builder = builder.handle(|job: Echo, ctx: &Context| -> Result<(), Failure> {
            // In the copy nothing has begun.
            let copy = std::path::Path::new(&job.0);
            if !copy.exists() {
                ctx.client().backup(copy)?;
            }
            Ok(())
        });
        let builder = builder.limit(Limit::new("tokens").rate(3, secs(3600))).workers(Workers::new(4));
        builder.limit_queue(Limit::new("mail").rate(3, secs(3600)))
    })?;
    let (_directory, path) = file();
    let job = Echo::job(path.to_str().expect("a name in UTF-8")).limit("tokens").queue("mail");
    t.client().enqueue_many(vec![job; 3])?;
    assert_eq!(t.drain()?, 3);
    assert_eq!(t.client().limit_usage("tokens", "")?.tokens, Some(0));
    let copy = Client::open(&path)?;
    let full_at: i64 =
        query(&copy, "SELECT max((SELECT full_at FROM jobmill_gate), (SELECT full_at FROM jobmill_queue))");
    assert_eq!(full_at, crate::support::now(&t).as_micros() * 1000);
    assert_eq!(copy.limit_usage("tokens", "")?.running, 0);
    sound(&copy);
    Ok(())
}

/// A handler that was cut off by a shutdown had called its service, and got its tokens back for another call.
#[test]
fn what_had_begun_when_it_was_cut_off_by_a_shutdown_does_not_give_its_tokens_back() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path)
        .state(gate)
        .handle(block)
        .workers(Workers::new(2))
        .limit(Limit::new("tokens").rate(3, secs(3600)))
        .limit_queue(Limit::new("mail").rate(3, secs(3600)))
        .start()?;
    engine.client().enqueue(Block::job("a").limit("tokens").queue("mail"))?;
    keeper.next();
    assert_eq!(engine.shutdown(Duration::ZERO)?.returned, 1);
    drop(keeper);
    let client = Client::open(&path)?;
    let usage = client.limit_usage("tokens", "")?;
    assert_eq!((usage.running, usage.tokens), (0, Some(2)));
    let missing_ns: i64 = query(&client, "SELECT full_at - 1000 * as_of FROM jobmill_queue WHERE name = 'mail'");
    assert_eq!(missing_ns, 1_200_000_000_000);
    sound(&client);
    Ok(())
}

#[test]
fn an_engine_rests_while_jobs_wait_for_limits() -> jobmill::Result<()> {
    let (t, _) =
        timed(&[three_a_second, || Limit::new("b").rate(1, secs(1))], Some(|| Limit::new("mail").rate(1, secs(1))))?;
    t.client().pause("resting")?;
    for n in 0..9 {
        let of = |key: &str| Echo::job("").limit(LimitUse::of("tokens").key(key));
        t.enqueue(of("a"))?;
        t.enqueue(of("a").limit("b"))?;
        t.enqueue(of("a").queue("resting"))?;
        t.enqueue(NewJob::json("strange", &n).limit("b").limit(LimitUse::of("tokens").key("a")))?;
        t.enqueue(Echo::job("").queue("mail").cost(n + 1))?;
        t.enqueue(NewJob::json("strange", &n).queue("mail"))?;
    }
    t.drain()?;
    for _ in 0..5 {
        let before = t.faults().commits();
        for _ in 0..20 {
            assert_eq!(t.drain()?, 0);
        }
        assert_eq!(t.faults().commits(), before, "nothing comes due, and nothing is written");
        t.advance(secs(2));
        let most = before + 20;
        t.drain()?;
        assert!(t.faults().commits() < most, "{} commits", t.faults().commits() - before);
    }
    sound(t.client());
    Ok(())
}

#[test]
fn a_costly_job_waits_for_its_tokens_and_one_that_costs_more_than_all_for_a_full_bucket() -> jobmill::Result<()> {
    let (t, starts) = timed(&[three_a_second], None)?;
    let cost = |name: &str, cost| Echo::job(name).limit(LimitUse::of("tokens").cost(cost));
    t.client().enqueue_many([cost("1", 2), cost("2", 2), cost("3", 100), cost("4", 1)])?;
    t.drain()?;
    assert_eq!(starts.take(), ["1"]);
    t.advance(Duration::from_millis(334));
    t.drain()?;
    assert_eq!(starts.take(), ["2"]);
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(starts.take(), ["3"]);
    t.advance(secs(32));
    t.drain()?;
    assert_eq!(starts.take(), [""; 0], "97 tokens are owed");
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(starts.take(), ["4"]);
    Ok(())
}

#[test]
fn a_service_that_asks_to_be_left_alone_is_left_alone_by_all() -> jobmill::Result<()> {
    let (t, starts) = timed(&[three_a_second], Some(|| Limit::new("mail").rate(100, secs(1))))?;
    let of = |name: &str, key: &str| Echo::job(name).limit(LimitUse::of("tokens").key(key));
    t.client().enqueue(of("throttled", "a"))?;
    t.drain()?;
    t.client().enqueue_many([of("same", "a"), of("other", "b")])?;
    t.drain()?;
    assert_eq!(starts.take(), ["throttled", "other"]);
    let usage = t.client().limit_usage("tokens", "a")?;
    assert_eq!(usage.blocked_until, Some(crate::support::now(&t).saturating_add(secs(60))));
    t.advance(secs(59));
    t.drain()?;
    assert_eq!(starts.take(), [""; 0]);
    t.advance(secs(1));
    t.drain()?;
    assert!(starts.take().contains(&"same".to_owned()));
    // A queue with a rate is left alone too.
    let (t, starts) = timed(&[], Some(|| Limit::new("mail").rate(100, secs(1))))?;
    t.client().enqueue(Echo::job("throttled").queue("mail"))?;
    t.drain()?;
    let waits = t.enqueue(Echo::job("mail").queue("mail"))?;
    t.enqueue(Echo::job("elsewhere"))?;
    t.drain()?;
    assert_eq!(starts.take(), ["throttled", "elsewhere"]);
    let why = t.client().explain(waits)?;
    assert!(matches!(&why.reasons[..], [Reason::QueueLimited { until: Some(_), .. }]), "{why}");
    t.advance(secs(60));
    t.drain()?;
    assert_eq!(starts.take().len(), 2);
    Ok(())
}

#[test]
fn a_queue_starts_its_jobs_as_fast_as_its_rate_lets_and_counts_their_cost() -> jobmill::Result<()> {
    let (t, starts) = timed(&[], Some(|| Limit::new("mail").rate(2, secs(1))))?;
    t.client().enqueue_many((0..5).map(|n| Echo::job(n.to_string()).queue("mail")))?;
    t.enqueue(Echo::job("elsewhere"))?;
    t.drain()?;
    assert_eq!(starts.take(), ["0", "1", "elsewhere"]);
    t.advance(Duration::from_millis(500));
    t.drain()?;
    assert_eq!(starts.take(), ["2"]);
    t.advance(secs(10));
    t.drain()?;
    assert_eq!(starts.take(), ["3", "4"]);
    t.advance(secs(10));
    t.client().enqueue_many([Echo::job("dear").queue("mail").cost(4), Echo::job("next").queue("mail")])?;
    t.drain()?;
    assert_eq!(starts.take(), ["dear"]);
    t.advance(Duration::from_millis(1499));
    t.drain()?;
    assert_eq!(starts.take(), [""; 0]);
    t.advance(Duration::from_millis(1));
    t.drain()?;
    assert_eq!(starts.take(), ["next"]);
    sound(t.client());
    Ok(())
}

/// Jobs that waited for an hour's token waited for all of it, though the rate had been raised meanwhile.
#[test]
fn a_rate_that_is_changed_counts_the_tokens_that_are_there_and_not_their_time() -> jobmill::Result<()> {
    fn hourly() -> Limit {
        Limit::new("tokens").rate(1, secs(3600))
    }
    let (t, starts) = timed(&[hourly], Some(|| Limit::new("mail").rate(1, secs(3600))))?;
    t.client().enqueue_many((0..3).map(|n| Echo::job(n.to_string()).limit("tokens")))?;
    t.client().enqueue_many((0..3).map(|n| Echo::job(format!("mail{n}")).queue("mail")))?;
    t.drain()?;
    assert_eq!(starts.take(), ["0", "mail0"]);
    t.client().set_limit(&Limit::new("tokens").rate(1, secs(1)))?;
    t.client().limit_queue(&Limit::new("mail").rate(1, secs(1)))?;
    t.drain()?;
    assert_eq!(starts.take(), [""; 0], "the token that was spent is spent");
    for n in 1..3 {
        t.advance(secs(1));
        t.drain()?;
        assert_eq!(starts.take(), [n.to_string(), format!("mail{n}")]);
    }
    // The other way round, what was there a moment ago is not paid for with hours.
    t.client().set_limit(&hourly().burst(2))?;
    t.client().enqueue_many((3..6).map(|n| Echo::job(n.to_string()).limit("tokens")))?;
    t.drain()?;
    assert_eq!(starts.take(), ["3"]);
    t.advance(secs(3600));
    t.drain()?;
    assert_eq!(starts.take(), ["4"]);
    sound(t.client());
    Ok(())
}

/// A limit that had no rate any more shut its keys for a day still, for a service had once asked for it.
/// Each change of how many jobs of a queue may run began the wait for its next token anew, though its rate stayed.
#[test]
fn what_a_rate_has_gathered_of_a_token_stays_when_the_concurrency_is_changed() -> jobmill::Result<()> {
    let (t, starts) =
        timed(&[|| Limit::new("tokens").rate(1, secs(60))], Some(|| Limit::new("mail").rate(1, secs(60))))?;
    for job in [Echo::job("key").limit("tokens"), Echo::job("mail").queue("mail")] {
        t.client().enqueue_many(vec![job; 2])?;
    }
    t.drain()?;
    assert_eq!(starts.take(), ["key", "mail"]);
    for concurrency in 1..4 {
        t.advance(secs(20));
        t.client().set_limit(&Limit::new("tokens").rate(1, secs(60)).concurrency(concurrency))?;
        t.client().limit_queue(&Limit::new("mail").rate(1, secs(60)).concurrency(concurrency))?;
    }
    t.drain()?;
    assert_eq!(starts.take(), ["key", "mail"]);
    sound(t.client());
    Ok(())
}

#[test]
fn a_rate_that_is_lifted_leaves_nothing_behind() -> jobmill::Result<()> {
    let (t, starts) = timed(&[three_a_second], Some(|| Limit::new("mail").rate(100, secs(1))))?;
    t.client().enqueue(Echo::job("throttled").limit("tokens").queue("mail"))?;
    t.drain()?;
    t.client().enqueue_many([Echo::job("held").limit("tokens"), Echo::job("mail").queue("mail")])?;
    t.drain()?;
    assert_eq!(starts.take(), ["throttled"]);
    t.client().set_limit(&Limit::new("tokens").concurrency(5))?;
    t.client().limit_queue(&Limit::new("mail").concurrency(5))?;
    t.drain()?;
    assert_eq!(starts.take(), ["held", "mail"]);
    t.client().set_limit(&three_a_second())?;
    t.client().limit_queue(&Limit::new("mail").rate(100, secs(1)))?;
    t.client().enqueue_many([Echo::job("later").limit("tokens"), Echo::job("mail later").queue("mail")])?;
    t.drain()?;
    assert_eq!(starts.take(), ["later", "mail later"]);
    sound(t.client());
    Ok(())
}

/// When the clock was set back for a year, held jobs waited for a year: the moment at which to look was of the old clock,
/// and so were the tokens and the word of a service. When it was set back for an hour, they waited for that hour.
#[test]
fn a_clock_that_is_set_back_holds_nobody_up() -> jobmill::Result<()> {
    for (back, restarts) in [10, 3600, 365 * 86_400].into_iter().flat_map(|back| [(back, false), (back, true)]) {
        let context = format!("by {back} s, after a restart: {restarts}");
        let (mut t, starts) = timed(&[three_a_second], Some(|| Limit::new("mail").rate(1, secs(1))))?;
        t.client().limit_queue(&Limit::new("plain").rate(1, secs(1)))?;
        let of = |name: &str, key: &str| Echo::job(name).limit(LimitUse::of("tokens").key(key));
        t.client().enqueue_many((0..6).map(|n| of(&n.to_string(), "a")))?;
        t.client().enqueue_many(["plain", "plain 2"].map(|name| Echo::job(name).queue("plain")))?;
        let throttled = [of("throttled", "b"), Echo::job("throttled").queue("mail")];
        let throttled = t.client().enqueue_many(throttled)?;
        t.enqueue(Echo::job("mail").queue("mail"))?;
        t.drain()?;
        // They have said it, and are not to say it again.
        throttled.into_iter().try_for_each(|job| t.client().cancel(job.id()).map(drop))?;
        t.client().enqueue(of("c", "b"))?;
        t.drain()?;
        starts.take();
        t.clock().jump(crate::support::now(&t).saturating_sub(secs(back)));
        if restarts {
            t.restart()?;
        }
        t.drain()?;
        assert_eq!(starts.take(), [""; 0], "{context}: no time has passed");
        let after = |time| -> jobmill::Result<Vec<String>> {
            t.advance(time);
            t.drain()?;
            let mut names = starts.take();
            names.sort();
            Ok(names)
        };
        assert_eq!(after(secs(1))?, ["3", "4", "5", "plain 2"], "{context}");
        assert_eq!(after(secs(58))?, [""; 0], "{context}");
        assert_eq!(after(secs(1))?, ["c", "mail"], "{context}");
        sound(t.client());
    }
    Ok(())
}

/// A start saw by the newest id alone that the clock had been set back, and none is given to jobs that were there
/// before.
#[test]
fn a_clock_that_ran_ahead_while_nothing_was_enqueued_holds_nobody_up_after_a_start() -> jobmill::Result<()> {
    for starts_ahead in [true, false] {
        let context = format!("an engine started under that clock: {starts_ahead}");
        let (mut t, starts) =
            timed(&[|| Limit::new("tokens").rate(1, secs(60))], Some(|| Limit::new("mail").rate(1, secs(60))))?;
        for job in [Echo::job("key").limit("tokens"), Echo::job("mail").queue("mail")] {
            t.client().enqueue_many(vec![job; 2])?;
        }
        let right = crate::support::now(&t);
        t.clock().jump(right.saturating_add(secs(3600)));
        if starts_ahead {
            t.restart()?;
        }
        t.drain()?;
        assert_eq!(starts.take(), ["key", "mail"], "{context}");
        // What ran is counted within a second.
        t.advance(secs(1));
        t.engine().maintain()?;

        t.clock().jump(right);
        t.crash()?;
        t.drain()?;
        assert_eq!(starts.take(), [""; 0], "{context}: no time has passed");
        t.advance(secs(60));
        t.drain()?;
        assert_eq!(starts.take(), ["key", "mail"], "{context}");
        sound(t.client());
    }
    Ok(())
}

/// A rate that was lowered by somebody whose clock was behind took the time between the clocks for tokens that were missing,
/// and had the keys of the others wait for a day.
#[test]
fn a_rate_that_is_lowered_under_a_clock_that_is_behind_leaves_each_key_its_tokens() -> jobmill::Result<()> {
    let (t, starts) = timed(
        &[|| Limit::new("tokens").rate(1000, secs(1)).burst(3)],
        Some(|| Limit::new("mail").rate(1000, secs(1)).burst(3)),
    )?;
    t.clock().jump(SystemClock.now().saturating_add(secs(3600)));
    let behind = Client::open(t.path())?;
    let jobs = |name: &'static str| (0..4).map(move |n| Echo::job(format!("{name} {n}")));
    t.client().enqueue_many(jobs("key").map(|job| job.limit("tokens")))?;
    t.client().enqueue_many(jobs("mail").map(|job| job.queue("mail")))?;
    t.drain()?;
    assert_eq!(starts.take().len(), 6);
    behind.set_limit(&Limit::new("tokens").rate(1, secs(1)).burst(3))?;
    behind.limit_queue(&Limit::new("mail").rate(1, secs(1)).burst(3))?;
    t.drain()?;
    assert_eq!(starts.take(), [""; 0], "the lower rate holds");
    t.advance(secs(1));
    t.drain()?;
    assert_eq!(starts.take(), ["key 3", "mail 3"]);
    sound(t.client());
    Ok(())
}

/// A dear job that nobody was in a hurry for kept urgent ones waiting until its own tokens had come.
#[test]
fn a_dear_job_keeps_its_queue_from_those_behind_it_and_from_no_others() -> jobmill::Result<()> {
    let (t, starts) = timed(&[], Some(|| Limit::new("mail").rate(10, secs(10))))?;
    let mail = |name: &str, priority| Echo::job(name).queue("mail").priority(priority);
    t.enqueue(mail("first", Priority::Default).cost(5))?;
    t.drain()?;
    // A kind that nobody here handles takes no part.
    t.enqueue(NewJob::json("strange", &1).queue("mail").cost(10).priority(Priority::Critical))?;
    t.enqueue(mail("dear", Priority::Default).cost(8))?;
    t.enqueue(mail("low", Priority::Low))?;
    t.drain()?;
    assert_eq!(starts.take(), ["first"]);
    t.enqueue(mail("urgent", Priority::High))?;
    t.enqueue(mail("behind", Priority::Default))?;
    t.drain()?;
    assert_eq!(starts.take(), ["urgent"]);
    t.advance(Duration::from_millis(3999));
    t.drain()?;
    assert_eq!(starts.take(), [""; 0]);
    t.advance(Duration::from_millis(1));
    t.drain()?;
    assert_eq!(starts.take(), ["dear"]);
    t.advance(secs(2));
    t.drain()?;
    assert_eq!(starts.take(), ["behind", "low"]);
    sound(t.client());
    Ok(())
}

#[test]
fn what_a_job_really_took_of_its_queue_is_corrected_after_the_call() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.limit_queue(Limit::new("mail").rate(1, secs(1)).burst(10)).handle(
            |job: Echo, ctx: &Context| -> Result<(), Failure> {
                for tokens in job.0.split_whitespace() {
                    ctx.spent_in_queue(tokens.parse().map_err(Failure::fatal)?)?;
                }
                Ok(())
            },
        )
    })?;
    let tokens = || t.client().queue_usage("mail").map(|usage| usage.tokens);
    for (said, left) in [("", 8), ("5", 5), ("9 0 3", 7), ("0", 10), ("15", -5)] {
        t.advance(secs(60));
        t.enqueue(Echo::job(said).queue("mail").cost(2))?;
        t.drain()?;
        assert_eq!(tokens()?, Some(left), "{said}");
    }
    // A rate may be lifted at any time, and no handler fails for that.
    t.client().limit_queue(&Limit::new("mail"))?;
    let id = t.enqueue(Echo::job("1").queue("mail").max_attempts(1))?;
    t.drain()?;
    t.check(id, "completed, attempt 1");
    sound(t.client());
    Ok(())
}

#[test]
fn who_is_asked_to_leave_a_service_alone_shuts_limits_without_a_rate_if_there_are_no_others() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder
            .limit(Limit::new("few").concurrency(1))
            .limit(Limit::new("slow").rate(9, secs(1)))
            .limit_queue(Limit::new("mail").rate(9, secs(1)))
            .handle(|_: Echo, ctx: &Context| -> Result<bool, Failure> { Ok(ctx.throttled(secs(9))?) })
    })?;
    let few = || Echo::job("").limit(LimitUse::of("few").key("a"));
    let waits = |job: NewJob| -> jobmill::Result<Option<i64>> {
        let id = t.enqueue(job)?;
        t.drain()?;
        let job = t.client().get(id)?;
        assert!(job.status == Status::Pending || job.result::<bool>()?);
        let waits = t.client().explain(id)?.reasons.into_iter().find_map(|reason| match reason {
            Reason::Limited { until, .. } | Reason::QueueLimited { until, .. } => until,
            _ => None,
        });
        Ok(waits.map(|until| until.since(t.clock().now()).as_secs() as i64))
    };
    assert_eq!(waits(few().limit("slow"))?, None);
    assert_eq!(waits(Echo::job("").limit("slow"))?, Some(9), "it has a rate");
    assert_eq!(waits(few().queue("mail"))?, None, "the first has a rate to shut, and leaves the other alone");
    assert_eq!(waits(Echo::job("").queue("mail"))?, Some(9));
    assert_eq!(waits(few())?, None);
    assert_eq!(waits(few())?, Some(9), "nothing else was to be shut");
    assert_eq!(waits(Echo::job("").limit(LimitUse::of("few").key("b")))?, None, "another key");
    t.advance(secs(9));
    t.drain()?;
    assert_eq!(t.client().stats()?.depth(), 0);
    sound(t.client());
    Ok(())
}

#[test]
fn who_has_no_limit_to_shut_is_told() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|_: Echo, ctx: &Context| -> Result<bool, Failure> { Ok(ctx.throttled(secs(9))?) })
    })?;
    let ids = [t.enqueue(Echo::job("1"))?, t.enqueue(Echo::job("2"))?];
    t.drain()?;
    for id in ids {
        assert!(!t.client().get(id)?.result::<bool>()?);
    }
    Ok(())
}

#[test]
fn a_burst_may_be_set_before_its_rate_and_not_without_one() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    assert_eq!(Limit::new("a").burst(5).rate(10, secs(1)), Limit::new("a").rate(10, secs(1)).burst(5));
    refused(t.client().set_limit(&Limit::new("a").burst(5)), ErrorKind::Invalid, "limit.burst: needs a rate");
    Ok(())
}
