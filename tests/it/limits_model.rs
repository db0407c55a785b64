//! Whatever is done to limited jobs, in whatever order: no limit is passed, nobody overtakes another of the same key, the
//! books are right, and each job ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Client, Clock, Context, Durability, ErrorKind, Failure, Job, JobId, Limit, LimitUse, NewJob, Outcome, Preference,
    Priority, Query, Reason, Retention, Status, SystemClock, Timestamp, Workers,
};

use crate::mirror::{Act, act};
use crate::support::{Dice, echo, now, secs, with_hands};

const QUEUES: [&str; 3] = ["default", "mail", "narrow"];
const KEYS: [&str; 2] = ["", "k"];
const NAMES: [&str; 3] = ["few", "slow", "both"];
/// The most tokens that a job takes of a limit.
const COST_MAX: usize = 4;

/// What may be done besides the common.
#[derive(Clone, Copy, Default)]
struct Rules {
    /// Limits and the bounds of queues are changed.
    changes: bool,
    /// Processes die, the clock is set, and jobs tell what they took.
    disorder: bool,
    fair: bool,
    deadlines: bool,
    /// A second client, which remembers the file by itself, does half of what is done.
    second: bool,
}

impl Rules {
    /// Whether jobs of one lane go in their order.
    fn are_in_order(self) -> bool {
        !self.disorder && !self.fair && !self.deadlines
    }
}

/// What is known of one key of a limit with a rate: tokens, and when they were counted.
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// Who sees each job run, and knows what may run.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    limits: HashMap<String, Limit>,
    buckets: HashMap<(String, String), Bucket>,
    /// Whether starts are compared with what the rates let.
    counts: bool,
    /// Whether they are compared with who waits.
    orders: bool,
    wrong: Vec<String>,
    ran: usize,
}

impl Witness {
    fn see(&self, ctx: &Context) -> Result<(), Failure> {
        let job = ctx.client().get(ctx.id())?;
        let mut seen = self.0.lock().expect("no panic");
        seen.ran += 1;
        if seen.orders {
            let waiting = Query::new().statuses([Status::Pending]).queues([&job.queue]).priorities([job.priority]);
            let waiting = ctx.client().list(waiting.limit(1000))?.jobs;
            let passed: Vec<String> =
                waiting.iter().filter(|waits| passes(&job, waits)).map(|waits| format!("{waits:?}")).collect();
            if !passed.is_empty() {
                seen.wrong.push(format!("{job:?} went before {passed:?}"));
            }
        }
        for tag in &job.tags {
            let Some((name, key, cost)) = use_of(tag) else { continue };
            let limit = seen.limits[name].clone();
            let running = ctx.client().limit_usage(name, key)?.running;
            if limit.get_concurrency().is_some_and(|most| running > u64::from(most)) {
                seen.wrong.push(format!("{running} of {tag} run"));
            }
            if let (true, Some((tokens, period, burst)), Some(at)) = (seen.counts, limit.get_rate(), job.started_at) {
                let full = Bucket { tokens: burst.into(), at };
                let bucket = seen.buckets.entry((name.to_owned(), key.to_owned())).or_insert(full);
                let came = at.since(bucket.at).as_secs_f64() * f64::from(tokens) / period.as_secs_f64();
                let tokens = (bucket.tokens + came).min(burst.into());
                bucket.tokens = tokens - f64::from(cost);
                bucket.at = bucket.at.max(at);
                if tokens < f64::from(cost.min(burst)) - 0.01 {
                    seen.wrong.push(format!("{tag} started at {at} with {tokens:.2} tokens"));
                }
            }
        }
        Ok(())
    }
}

/// What a tag tells that a job takes: of which limit, at which key, how much.
fn use_of(tag: &str) -> Option<(&str, &str, u32)> {
    let mut parts = tag.split('/');
    Some((parts.next()?, parts.next()?, parts.next()?.parse().ok()?))
}

/// The place of a job in its line.
fn place(job: &Job) -> Timestamp {
    job.run_at.max(job.id.created_at())
}

/// Whether a job of a lane that has begun has passed one that came before it and needs no key that it did not need.
fn passes(begun: &Job, waits: &Job) -> bool {
    let keys = |job: &Job| -> Vec<(String, String)> {
        let uses = job.tags.iter().filter_map(|tag| use_of(tag));
        uses.map(|(name, key, _)| (name.to_owned(), key.to_owned())).collect()
    };
    let began = begun.started_at.unwrap_or(Timestamp::EPOCH);
    let needed = keys(begun);
    // Jobs that are let go stand by their ids again. One whose own time is earlier than its id goes by that: the clock by
    // which ids are given may be another's.
    waits.id < begun.id
        && place(waits) < place(begun).min(begun.run_at)
        && place(waits) <= began
        && waits.kind == begun.kind
        && waits.user_id.is_some() == begun.user_id.is_some()
        && !keys(waits).is_empty()
        && keys(waits).iter().all(|key| needed.contains(key))
        && waits.expires_at.is_none_or(|at| at > began)
}

fn first_limits() -> [Limit; 3] {
    [
        Limit::new("few").concurrency(2),
        Limit::new("slow").rate(2, secs(1)),
        Limit::new("both").concurrency(1).rate(3, secs(2)),
    ]
}

struct Model {
    t: Harness,
    second: Option<Client>,
    dice: Dice,
    rules: Rules,
    witness: Witness,
    ids: Vec<JobId>,
}

impl Model {
    fn new(seed: u64, rules: Rules) -> jobmill::Result<Self> {
        let witness = Witness::default();
        {
            let mut seen = witness.0.lock().expect("no panic");
            seen.limits = first_limits().into_iter().map(|limit| (limit.name().to_owned(), limit)).collect();
            seen.counts = !rules.changes && !rules.disorder;
            seen.orders = rules.are_in_order();
        }
        let watching = witness.clone();
        let t = with_hands(move |builder| {
            let watching = watching.clone();
            let builder = builder
                .handle(move |job: Act, ctx: &Context| -> Result<Outcome<()>, Failure> {
                    watching.see(ctx)?;
                    if rules.disorder {
                        let job = ctx.client().get(ctx.id())?;
                        for name in job.tags.iter().filter_map(|tag| use_of(tag)).map(|(name, ..)| name) {
                            ctx.spent(name, job.attempt * 2)?;
                        }
                        if job.tags.len() == 3 {
                            ctx.throttled(secs(2))?;
                        }
                    }
                    act(job, ctx)
                })
                .handle(echo)
                .durability(Durability::Normal)
                .workers(Workers::new(4))
                .retention(Retention { cancelled: Some(secs(30)), ..Retention::FOREVER })
                .without_callbacks();
            let builder = if rules.fair { builder.fair_by_user().ageing(secs(3)) } else { builder };
            if rules.deadlines { builder.prefer(Preference::EarliestDeadline { patience: secs(5) }) } else { builder }
        })?;
        for limit in first_limits() {
            t.client().set_limit(&limit)?;
        }
        t.client().limit_queue(&Limit::new("narrow").concurrency(2).rate(5, secs(1)))?;
        let second = if rules.second {
            // It goes by the true time, which stays behind that of the harness.
            t.clock().jump(SystemClock.now().saturating_add(secs(60)));
            Some(Client::open_with(t.path(), Durability::Normal)?)
        } else {
            None
        };
        Ok(Self { t, second, dice: Dice(seed), rules, witness, ids: Vec::new() })
    }

    fn job(&mut self) -> NewJob {
        let dice = &mut self.dice;
        let mut job = NewJob::of(&dice.pick(&Act::ALL)).queue(dice.pick(&QUEUES));
        job = job.priority(dice.pick(&[Priority::High, Priority::Low]));
        let mut tags = Vec::new();
        for name in dice.some(&NAMES) {
            let key = dice.pick(&KEYS);
            let cost = if dice.percent(50) { 1 } else { dice.below(COST_MAX + 1) };
            job = job.limit(LimitUse::of(name).key(key).cost(cost as u32));
            tags.push(format!("{name}/{key}/{cost}"));
        }
        job = job.tags(tags);
        if dice.percent(40) {
            job = job.user(dice.pick(&["ann", "bob"]));
        }
        if dice.percent(25) {
            job = job.delay(secs(dice.below(4) as u64));
        }
        if dice.percent(30) {
            job = job.expires_in(secs(1 + dice.below(6) as u64));
        }
        job.cost(1 + dice.below(3) as u32).weight(1 + dice.below(3) as u32)
    }

    fn jobs(&mut self, most: usize) -> Vec<NewJob> {
        (0..self.dice.below(most)).map(|_| self.job()).collect()
    }

    /// Does one thing. What the state of a job forbids is no error.
    fn step(&mut self) -> jobmill::Result<()> {
        match self.act() {
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(()),
            done => done,
        }
    }

    fn act(&mut self) -> jobmill::Result<()> {
        let client = match &self.second {
            Some(second) if self.dice.percent(50) => second.clone(),
            _ => self.t.client().clone(),
        };
        let id = self.ids.get(self.dice.below(self.ids.len() + 1)).copied();
        match (self.dice.below(20), id) {
            (0..=2, _) => {
                let jobs = self.jobs(8);
                self.ids.extend(client.enqueue_many(jobs)?.iter().map(|enqueued| enqueued.id()));
            }
            (3, _) => self.write(&client)?,
            (4, _) => self.write_by_own_connection(&client)?,
            (5, Some(id)) => drop(client.cancel(id)?),
            (6, Some(id)) => client.retry(id)?,
            (7, Some(id)) => drop(client.delete(id)?),
            (8, Some(id)) => client.set_priority(id, self.dice.pick(&Priority::ALL))?,
            (9, Some(id)) => client.set_queue(id, self.dice.pick(&QUEUES))?,
            (10, _) => {
                let queue = self.dice.pick(&QUEUES);
                if self.dice.percent(40) { client.pause(queue)? } else { client.resume(queue)? }
            }
            (11, _) if self.rules.changes => self.change_a_limit(&client)?,
            (12, _) if self.rules.disorder => self.disturb()?,
            (13, _) => self.t.engine().maintain()?,
            (14..=16, _) => self.t.advance(Duration::from_millis(self.dice.below(2500) as u64)),
            _ => drop(self.t.drain()?),
        }
        Ok(())
    }

    /// Enqueues within a closure, which may fail or panic after it.
    fn write(&mut self, client: &Client) -> jobmill::Result<()> {
        let (jobs, end) = (self.jobs(6), self.dice.below(3));
        let write = || {
            client.write(move |tx| -> jobmill::Result<Vec<JobId>> {
                let ids = jobs.into_iter().map(|job| Ok(tx.enqueue(job)?.id())).collect::<jobmill::Result<_>>()?;
                match end {
                    0 => Ok(ids),
                    1 => Err("no id".parse::<JobId>().expect_err("no id")),
                    _ => std::panic::resume_unwind(Box::new("on purpose")),
                }
            })
        };
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(write)) {
            Ok(Ok(ids)) => self.ids.extend(ids),
            Ok(Err(error)) if error.kind() != ErrorKind::Invalid => return Err(error),
            _ => {}
        }
        Ok(())
    }

    fn write_by_own_connection(&mut self, client: &Client) -> jobmill::Result<()> {
        let mut own = client.connection()?;
        let tx = own.transaction().expect("a transaction");
        let ids = self.jobs(6).into_iter().map(|job| Ok(client.enqueue_in(&tx, job)?.id()));
        let ids: Vec<JobId> = ids.collect::<jobmill::Result<_>>()?;
        if self.dice.percent(70) {
            tx.commit().expect("a commit");
            self.ids.extend(ids);
        }
        Ok(())
    }

    fn change_a_limit(&mut self, client: &Client) -> jobmill::Result<()> {
        // What runs goes on when a limit is lowered, so nothing must.
        self.t.drain()?;
        let mut limit = Limit::new(self.dice.pick(&NAMES));
        if self.dice.percent(60) {
            limit = limit.concurrency(1 + self.dice.below(3) as u32);
        }
        if self.dice.percent(60) {
            let period = self.dice.pick(&[Duration::from_millis(1), secs(1), secs(20)]);
            limit = limit.rate(1 + self.dice.below(4) as u32, period).burst(1 + self.dice.below(4) as u32);
        }
        if self.dice.percent(30) {
            let queue = Limit::new(self.dice.pick(&QUEUES));
            let queue = if self.dice.percent(50) { queue.concurrency(1) } else { queue.rate(2, secs(1)) };
            return client.limit_queue(&queue);
        }
        client.set_limit(&limit)?;
        self.witness.0.lock().expect("no panic").limits.insert(limit.name().to_owned(), limit);
        Ok(())
    }

    fn disturb(&mut self) -> jobmill::Result<()> {
        match self.dice.below(5) {
            0 => self.t.crash(),
            1 => self.t.restart(),
            2 => {
                self.t.faults().fail(1 + self.dice.below(3) as u64, Fault::Before);
                // An engine that cannot start would be none.
                let rules = std::mem::take(&mut self.rules);
                for _ in 0..4 {
                    drop(self.step());
                }
                self.rules = rules;
                self.t.faults().heal();
                Ok(())
            }
            3 => {
                self.t.clock().jump(now(&self.t).saturating_sub(secs(1 + self.dice.below(100_000) as u64)));
                Ok(())
            }
            _ => {
                self.t.clock().jump(now(&self.t).saturating_add(secs(self.dice.below(100_000) as u64)));
                Ok(())
            }
        }
    }

    /// Asserts that the books are right and no limit was passed.
    #[track_caller]
    fn check(&self, context: &str) {
        let books = self.t.client().verify().expect("a readable file");
        assert_eq!(books, Vec::<String>::new(), "{context}");
        let seen = self.witness.0.lock().expect("no panic");
        assert_eq!(seen.wrong, Vec::<String>::new(), "{context}");
    }

    /// Asserts that nobody waits but for his time or for a limit that is shut.
    #[track_caller]
    fn check_who_waits(&self, context: &str) {
        let (client, now) = (self.t.client(), now(&self.t));
        let waiting = client.list(Query::new().statuses([Status::Pending]).limit(1000)).expect("a list").jobs;
        for job in waiting.iter().filter(|job| job.run_at <= now) {
            let why = client.explain(job.id).expect("a reason");
            let limited = why.reasons.iter().find_map(|reason| match reason {
                Reason::Limited { limit, key, until, .. } => Some((limit, key, until)),
                _ => None,
            });
            let Some((limit, key, until)) = limited else { panic!("{context}: {} waits for no limit: {why}", job.id) };
            let usage = client.limit_usage(limit, key).expect("a usage");
            let shut = usage.blocked_until.is_some() || usage.tokens.is_some_and(|tokens| tokens < COST_MAX as i64);
            assert!(shut && until.is_some_and(|until| until > now), "{context}: {} waits: {why}, {usage:?}", job.id);
        }
    }

    /// Lets everything come to its end.
    #[track_caller]
    fn end(self, context: &str) -> usize {
        let client = self.t.client().clone();
        for queue in QUEUES {
            client.resume(queue).expect("a resume");
        }
        if self.rules.disorder {
            // Delayed jobs wait for their time, wherever the clock was set meanwhile.
            self.t.clock().jump(now(&self.t).saturating_add(secs(10_000_000)));
        }
        let queues_are_free = self.ids.len().is_multiple_of(2);
        if queues_are_free {
            for queue in QUEUES {
                client.limit_queue(&Limit::new(queue)).expect("a queue without bounds");
            }
        }
        for _ in 0..3000 {
            self.t.drain().expect("a drain");
            self.check(context);
            if queues_are_free {
                self.check_who_waits(context);
            }
            let open = client.list(Query::new().statuses([Status::Pending, Status::Running]).limit(1)).expect("a list");
            if open.jobs.is_empty() {
                let usages = NAMES.into_iter().flat_map(|name| KEYS.map(|key| client.limit_usage(name, key)));
                for usage in usages {
                    let usage = usage.expect("a usage");
                    assert_eq!((usage.running, usage.held), (0, 0), "{context}: {usage:?}");
                }
                return std::mem::take(&mut self.witness.0.lock().expect("no panic").ran);
            }
            self.t.advance(Duration::from_millis(500));
        }
        let waits = client.list(Query::new().statuses([Status::Pending, Status::Running]).limit(1)).expect("a list");
        let why = client.explain(waits.jobs[0].id).expect("a reason");
        panic!("{context}: {} waits for ever: {why}", waits.jobs[0].id);
    }
}

fn run(seeds: impl IntoIterator<Item = u64>, steps: usize, rules: Rules) -> jobmill::Result<()> {
    let (mut count, mut ran) = (0, 0);
    for seed in seeds {
        count += 1;
        let mut model = Model::new(seed, rules)?;
        for step in 0..steps {
            model.step()?;
            model.check(&format!("seed {seed}, step {step}"));
        }
        ran += model.end(&format!("seed {seed}, at the end"));
    }
    assert!(ran > count * steps / 4, "{ran} attempts say little");
    Ok(())
}

#[test]
fn no_limit_is_passed_and_every_job_ends() -> jobmill::Result<()> {
    run(0..3, 120, Rules::default())
}

#[test]
fn limits_may_be_changed_at_any_time() -> jobmill::Result<()> {
    // In the last one a limit let a job go after the turn had made its choice, and nobody took another.
    run((10..13).chain([2133]), 120, Rules { changes: true, ..Rules::default() })
}

#[test]
fn neither_deaths_nor_faults_nor_clocks_that_are_set_lose_a_limited_job() -> jobmill::Result<()> {
    run(20..24, 120, Rules { changes: true, disorder: true, ..Rules::default() })
}

#[test]
fn limits_hold_when_users_take_turns_and_the_aged_go_first() -> jobmill::Result<()> {
    run(30..32, 120, Rules { fair: true, changes: true, ..Rules::default() })
}

#[test]
fn two_who_remember_one_file_keep_its_limits_together() -> jobmill::Result<()> {
    // In the last one a rate was lowered by the client whose clock is behind.
    run((50..52).chain([5008]), 120, Rules { second: true, changes: true, ..Rules::default() })
}

#[test]
fn limits_hold_when_deadlines_come_first() -> jobmill::Result<()> {
    run(40..42, 120, Rules { deadlines: true, changes: true, ..Rules::default() })
}
