//! A subscriber who keeps a picture of the file by what it is told, while whatever can be done is done to jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam_channel::Receiver;
use jobmill::testing::{Fault, Harness};
use jobmill::{
    Backoff, Cause, Change, Client, Context, Durability, ErrorKind, Event, Failure, Job, JobId, JobUpdate, NewJob,
    Outcome, Payload, Priority, Query, Retention, Status, Unique, Workers,
};
use serde::{Deserialize, Serialize};

use crate::support::{Dice, Echo, Hands, echo, secs, sound, with_hands};

/// A job whose name says how it ends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Act {
    Fine,
    Fails,
    FailsOnce,
    Refuses,
    Panics,
    SnoozesOnce,
    CancelsItself,
    StopsItself,
    DeletesItself,
    Completes,
    CompletesInOwnTransaction,
    Enqueues,
}

impl Act {
    pub(crate) const ALL: [Self; 12] = [
        Self::Fine,
        Self::Fails,
        Self::FailsOnce,
        Self::Refuses,
        Self::Panics,
        Self::SnoozesOnce,
        Self::CancelsItself,
        Self::StopsItself,
        Self::DeletesItself,
        Self::Completes,
        Self::CompletesInOwnTransaction,
        Self::Enqueues,
    ];
}

impl Payload for Act {
    const KIND: &'static str = "act";

    fn defaults(job: NewJob) -> NewJob {
        job.max_attempts(2).backoff(Backoff::fixed(secs(1)))
    }
}

pub(crate) fn act(act: Act, ctx: &Context) -> Result<Outcome<()>, Failure> {
    if let Ok(hands) = ctx.state::<Hands>() {
        hands.pass(Duration::from_millis(7));
    }
    match act {
        Act::Fails => return Err(Failure::retry("no")),
        Act::FailsOnce if ctx.attempt() == 1 => return Err(Failure::retry("not yet")),
        Act::Refuses => return Err(Failure::fatal("never")),
        Act::Panics => panic!("as it was told to"),
        Act::SnoozesOnce if ctx.saved::<bool>()?.is_none() => {
            ctx.save(&true)?;
            return Ok(Outcome::Snooze(secs(1)));
        }
        Act::CancelsItself => return Ok(Outcome::Cancel("of no use".into())),
        Act::StopsItself => {
            ctx.client().cancel(ctx.id())?;
            ctx.check()?;
        }
        Act::DeletesItself => {
            ctx.client().delete(ctx.id())?;
            ctx.check()?;
        }
        Act::Completes => ctx.complete(|tx| tx.enqueue(Echo::job("child")).map(drop))?,
        Act::CompletesInOwnTransaction => {
            let mut conn = ctx.client().connection()?;
            let tx = conn.transaction()?;
            ctx.complete_in(&tx, &())?;
            tx.commit()?;
        }
        Act::Enqueues => drop(ctx.client().enqueue(Echo::job("child"))?),
        _ => {}
    }
    Ok(Outcome::Done(()))
}

/// What the events have told so far of each job.
#[derive(Debug, PartialEq)]
struct Told {
    status: Status,
    attempt: u32,
    kind: String,
    queue: String,
    priority: Priority,
    user: Option<String>,
}

impl Told {
    fn of(job: &Job) -> Self {
        Self {
            status: job.status,
            attempt: job.attempt,
            kind: job.kind.clone().unwrap_or_default(),
            queue: job.queue.clone(),
            priority: job.priority,
            user: job.user_id.clone(),
        }
    }
}

/// A subscriber who keeps a picture of the file by what it is told.
pub(crate) struct Mirror {
    events: Receiver<Event>,
    jobs: BTreeMap<JobId, Told>,
    /// It was told that its picture may be old.
    doubtful: bool,
    pub(crate) heard: usize,
}

impl Mirror {
    pub(crate) fn new(client: &Client) -> jobmill::Result<Self> {
        let events = client.subscribe(65_536)?;
        Ok(Self { events, jobs: jobs(client)?, doubtful: false, heard: 0 })
    }

    /// Listens to all that was told since the last time. A step that does not go on from the one before is wrong.
    #[track_caller]
    fn listen(&mut self, context: &str) {
        let events: Vec<Event> = self.events.try_iter().collect();
        for event in events {
            match event {
                Event::Changed(change) => self.note(&change, context),
                Event::Elsewhere => self.doubtful = true,
                other => panic!("{context}: {other:?}"),
            }
        }
    }

    #[track_caller]
    fn note(&mut self, change: &Change, context: &str) {
        self.heard += 1;
        let known = self.jobs.get(&change.id).map(|told| told.status);
        if !self.doubtful {
            assert_eq!(change.from, known, "{context}: {change:?}");
            assert_eq!(change.from.is_none(), change.cause == Cause::Enqueued, "{context}: {change:?}");
            assert_eq!(change.to.is_none(), change.cause == Cause::Deleted, "{context}: {change:?}");
        }
        let Some(status) = change.to else {
            let gone = self.jobs.remove(&change.id);
            assert!(self.doubtful || gone.is_some_and(|told| told.attempt == change.attempt), "{context}: {change:?}");
            return;
        };
        // An attempt that was not spent will be counted again.
        let unspent = matches!(change.cause, Cause::Snoozed | Cause::Returned);
        let told = Told {
            status,
            attempt: change.attempt - u32::from(unspent),
            kind: change.kind.to_string(),
            queue: change.queue.to_string(),
            priority: change.priority,
            user: change.user.as_deref().map(str::to_owned),
        };
        self.jobs.insert(change.id, told);
    }

    /// Asserts that the picture is what the file shows. One who was told that it may be old looks at the file.
    #[track_caller]
    pub(crate) fn check(&mut self, client: &Client, context: &str) {
        self.listen(context);
        let there = jobs(client).expect("the jobs");
        if std::mem::take(&mut self.doubtful) {
            self.jobs = there;
            return;
        }
        for (id, told) in &self.jobs {
            assert_eq!(Some(told), there.get(id), "{context}: {id} was told to be on the left");
        }
        let untold: Vec<_> = there.keys().filter(|id| !self.jobs.contains_key(id)).collect();
        assert!(untold.is_empty(), "{context}: nobody was told of {untold:?}");
    }
}

fn jobs(client: &Client) -> jobmill::Result<BTreeMap<JobId, Told>> {
    client.jobs(Query::new().limit(1000))?.map(|job| job.map(|job| (job.id, Told::of(&job)))).collect()
}

const QUEUES: [&str; 3] = ["default", "mail", "ü"];
pub(crate) const USERS: [&str; 4] = ["ann", "O'Brien; --", "%_\\\"", "\u{1f600} z\u{0301}"];

/// Does at random whatever can be done to jobs.
pub(crate) struct Program {
    pub(crate) t: Harness,
    /// How its jobs may end.
    pub(crate) acts: Vec<Act>,
    dice: Dice,
    ids: Vec<JobId>,
}

impl Program {
    pub(crate) fn new(seed: u64) -> jobmill::Result<Self> {
        let t = with_hands(|builder| {
            builder
                .handle(act)
                .handle(echo)
                .durability(Durability::Normal)
                .workers(Workers::new(3))
                .retention(Retention::FOREVER)
                .without_callbacks()
        })?;
        Ok(Self { t, acts: Act::ALL.into(), dice: Dice(seed), ids: Vec::new() })
    }

    fn job(&mut self) -> NewJob {
        let dice = &mut self.dice;
        let mut job = NewJob::of(&dice.pick(&self.acts)).queue(dice.pick(&QUEUES)).priority(dice.pick(&Priority::ALL));
        if dice.below(2) == 0 {
            job = job.user(dice.pick(&USERS));
        }
        if dice.below(3) == 0 {
            job = job.delay(secs(dice.below(5) as u64));
        }
        if dice.below(5) == 0 {
            job = job.expires_in(secs(dice.below(3) as u64));
        }
        if dice.below(5) == 0 {
            job = job.unique(Unique::key(dice.below(3).to_string()));
        }
        if dice.below(4) == 0 {
            job = job.callback_url("https://example.com/told");
        }
        job
    }

    fn tracked(&mut self) -> NewJob {
        let job = NewJob::tracked().status(self.dice.pick(&Status::ALL)).background(self.dice.below(2) == 0);
        if self.dice.below(2) == 0 { job.user(self.dice.pick(&USERS)) } else { job }
    }

    fn keep<R>(&mut self, enqueued: jobmill::Result<R>, ids: impl Fn(R) -> Vec<JobId>) -> jobmill::Result<()> {
        self.ids.extend(ids(enqueued?));
        Ok(())
    }

    /// Does one thing. The file may have failed.
    pub(crate) fn step(&mut self) -> jobmill::Result<()> {
        let done = self.act();
        match done {
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(()),
            done => done,
        }
    }

    fn act(&mut self) -> jobmill::Result<()> {
        let client = self.t.client().clone();
        let id = self.ids.get(self.dice.below(self.ids.len() + 1)).copied();
        let choice = self.dice.below(20);
        match (choice, id) {
            (0..=3, _) => {
                let job = self.job();
                self.keep(client.enqueue(job), |enqueued| vec![enqueued.id()])
            }
            (4, _) => {
                let count = self.dice.below(5);
                let jobs: Vec<NewJob> = (0..count).map(|_| self.job()).collect();
                self.keep(client.enqueue_many(jobs), |all| all.iter().map(|enqueued| enqueued.id()).collect())
            }
            (5, _) => {
                let (jobs, fails) = ([self.job(), self.tracked()], self.dice.below(2) == 0);
                let written = client.write(move |tx| -> jobmill::Result<Vec<JobId>> {
                    let mut ids = Vec::new();
                    for job in jobs {
                        ids.push(tx.enqueue(job)?.id());
                    }
                    if fails { Err("no id".parse::<JobId>().expect_err("no id")) } else { Ok(ids) }
                });
                match written {
                    Err(error) if error.kind() == ErrorKind::Invalid => Ok(()),
                    written => self.keep(written, |ids| ids),
                }
            }
            (6, _) => {
                let job = self.tracked();
                self.keep(client.enqueue(job), |enqueued| vec![enqueued.id()])
            }
            (7, Some(id)) => client.update_status(id, self.dice.pick(&Status::ALL)).map(drop),
            (8, Some(id)) => {
                let update = JobUpdate::new().background(self.dice.below(2) == 0);
                let update = if self.dice.below(2) == 0 { update.status(self.dice.pick(&Status::ALL)) } else { update };
                client.update(id, update.agent("a")).map(drop)
            }
            (9, Some(id)) => client.cancel(id).map(drop),
            (10, Some(id)) => client.retry(id),
            (11, Some(id)) => client.delete(id).map(drop),
            (12, Some(id)) => client.set_priority(id, self.dice.pick(&Priority::ALL)),
            (13, Some(id)) => client.set_queue(id, self.dice.pick(&QUEUES)),
            (14, _) => {
                let some = client.select(Query::new().queues([self.dice.pick(&QUEUES)]))?;
                match self.dice.below(10) {
                    0 => some.delete(),
                    1..=3 => some.cancel(),
                    4..=6 => some.retry(),
                    _ => some.set_priority(self.dice.pick(&Priority::ALL)),
                }
                .map(drop)
            }
            (15, _) => {
                self.t.advance(secs(self.dice.below(3) as u64));
                Ok(())
            }
            (16, _) => self.t.engine().maintain(),
            (17, _) => {
                let queue = self.dice.pick(&QUEUES);
                if self.dice.below(3) == 0 { client.pause(queue) } else { client.resume(queue) }
            }
            _ => self.t.drain().map(drop),
        }
    }
}

#[test]
fn what_is_told_is_what_the_file_shows_whatever_is_done() -> jobmill::Result<()> {
    let mut heard = 0;
    for seed in 0..4 {
        let mut program = Program::new(seed)?;
        let mut mirror = Mirror::new(program.t.client())?;
        for step in 0..200 {
            program.step()?;
            mirror.check(program.t.client(), &format!("seed {seed}, step {step}"));
        }
        sound(program.t.client());
        heard += mirror.heard;
    }
    assert!(heard > 1000, "there was much to tell: {heard}");
    Ok(())
}

/// Runs a program whose `n`-th commit fails. False once it commits less often than that.
fn with_a_fault(seed: u64, n: u64, fault: Fault) -> jobmill::Result<bool> {
    let mut program = Program::new(seed)?;
    let mut mirror = Mirror::new(program.t.client())?;
    let before = program.t.faults().commits();
    program.t.faults().fail(n, fault);
    for step in 0..36 {
        let context = format!("seed {seed}, {fault:?} commit {n}, step {step}");
        let failed = program.step().is_err();
        if failed && fault == Fault::After {
            // Who does not know what was written looks around, and finds out.
            program.t.drain()?;
        }
        mirror.listen(&context);
        if fault == Fault::Before {
            // Nothing was written, so nothing is missing either.
            mirror.doubtful = false;
        }
        if failed || step % 6 == 5 {
            mirror.check(program.t.client(), &context);
        }
    }
    Ok(program.t.faults().commits() >= before + n)
}

#[test]
fn a_turn_that_fails_is_not_told_and_what_is_done_again_is_told_once() -> jobmill::Result<()> {
    let mut n = 1;
    while with_a_fault(11, n, Fault::Before)? {
        n += 1;
    }
    assert!(n > 30, "the program commits far more often than {n} times");
    Ok(())
}

/// A commit that was reported to have failed and was written after all was never told, and nobody was told so.
#[test]
fn a_commit_that_went_unheard_makes_what_was_told_doubtful() -> jobmill::Result<()> {
    let mut n = 1;
    while with_a_fault(12, n, Fault::After)? {
        n += 1;
    }
    assert!(n > 30, "the program commits far more often than {n} times");
    Ok(())
}
