//! Random programs of operations, held step by step against a plain model of what statuses mean.
//!
//! `PROPTEST_CASES` says how many programs are run.

mod ledger;
mod program;

use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Backoff, Bulk, Cancelled, Client, Clock, Context, Deleted, Durability, Enqueued, ErrorKind, JobId, NewJob, Order,
    Priority, Query, Retention, Status, Timestamp, Unique, UniqueScope,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::model::ledger::{Done, Known, Model, Row, moment};
use crate::model::program::{Action, BACKOFF, Ending, QUEUES, Scripted, Stage, Step, USERS, Wish, play, step};

/// The engine and its model, side by side.
struct Pair {
    t: Harness,
    model: Model,
    stage: Stage,
}

impl Pair {
    fn new() -> Self {
        let stage = Stage::default();
        let on = stage.clone();
        let t = Harness::new(move |builder| {
            let on = on.clone();
            builder
                .durability(Durability::Normal)
                .backoff(Backoff::fixed(BACKOFF))
                .retention(Retention::FOREVER)
                .handle(move |job: Scripted, ctx: &Context| play(&on, &job, ctx))
        });
        Self { t: t.expect("an engine"), model: Model::default(), stage }
    }

    fn now(&self) -> Timestamp {
        self.t.clock().now()
    }

    fn new_job(&self, wish: &Wish, number: usize) -> NewJob {
        let job = match wish.tracked {
            Some(status) => NewJob::tracked().status(status),
            None => NewJob::of(&Scripted { number, runs: wish.runs.clone() }),
        };
        let mut job = job.queue(wish.queue).priority(wish.priority).max_attempts(wish.max_attempts);
        match wish.run_in {
            Some(seconds @ ..0) => job = job.run_at(moment(seconds, self.now()).expect("a moment in the past")),
            Some(seconds) => job = job.delay(Duration::from_secs(seconds.unsigned_abs())),
            None => {}
        }
        if let Some(seconds) = wish.expires_in {
            job = job.expires_in(Duration::from_secs(seconds));
        }
        if let Some(key) = wish.key {
            // Among tracked jobs as among others.
            job = job.unique(Unique::key(format!("key {key}")).scope(UniqueScope::Everything));
        }
        match wish.user {
            Some(user) => job.user(user),
            None => job,
        }
    }

    /// Enqueues by the engine, then by the model, and compares the answers.
    fn enqueue(
        &mut self,
        wishes: &[Wish],
        call: impl FnOnce(&Harness, Vec<NewJob>) -> jobmill::Result<Vec<Enqueued>>,
    ) -> jobmill::Result<()> {
        // The model alone knows the numbers beforehand that the new jobs will have.
        let mut ahead = self.model.clone();
        let mut jobs = Vec::new();
        for wish in wishes {
            jobs.push(self.new_job(wish, ahead.jobs.len()));
            let unknown = "job-0000000000002".parse().expect("an id");
            ahead.enqueue(wish, unknown, self.now());
        }
        let enqueued = call(&self.t, jobs)?;
        for (wish, enqueued) in wishes.iter().zip(enqueued) {
            let expected = self.model.enqueue(wish, enqueued.id(), self.now());
            assert_eq!(enqueued, expected);
            if enqueued.is_new() {
                let before = self.model.jobs.iter().rev().nth(1).map(|job| job.row.id);
                assert!(before < Some(enqueued.id()), "ids grow");
            }
        }
        Ok(())
    }

    /// Does a step on both sides. An error says that a commit failed, and nothing should have changed.
    fn step(&mut self, step: &Step) -> jobmill::Result<()> {
        let now = self.now();
        let count = self.model.jobs.len();
        match step {
            Step::Enqueue(wish) => {
                self.enqueue(std::slice::from_ref(wish), |t, jobs| {
                    jobs.into_iter().map(|job| t.client().enqueue(job)).collect()
                })?;
                self.model.expire(now);
            }
            Step::EnqueueMany(wishes) => {
                self.enqueue(wishes, |t, jobs| t.client().enqueue_many(jobs))?;
                self.model.expire(now);
            }
            Step::EnqueueIn(wish, committed) => {
                let before = self.model.clone();
                self.enqueue(std::slice::from_ref(wish), |t, jobs| {
                    let mut conn = t.client().connection()?;
                    let tx = conn.transaction().expect("a transaction");
                    let enqueued = jobs.into_iter().map(|job| t.client().enqueue_in(&tx, job)).collect();
                    if *committed {
                        tx.commit().expect("a commit")
                    } else {
                        tx.rollback().expect("a rollback")
                    };
                    enqueued
                })?;
                if !committed {
                    self.model = before;
                }
            }
            Step::Drain => {
                let order = self.model.drain(now);
                assert_eq!(self.t.drain()?, order.len());
                assert_eq!(self.stage.take_order(), order);
            }
            Step::Do(..) if count == 0 => {}
            Step::Do(action, job, by) => {
                let number = job % count;
                let answer = refusal(act(&self.client(*by)?, *action, self.model.jobs[number].row.id))?;
                if self.model.exists_for(number, *by) {
                    assert_eq!(answer, self.model.act(*action, number, now));
                } else {
                    assert_eq!(answer, Err(ErrorKind::NotFound));
                }
                self.model.expire(now);
            }
            Step::DoAll(action, statuses, by) => {
                let bulk = act_on_all(&self.client(*by)?, *action, statuses)?;
                let (mut changed, mut refused) = (0, 0);
                for number in 0..count {
                    let status = self.model.jobs[number].row.status;
                    if self.model.exists_for(number, *by) && (statuses.is_empty() || statuses.contains(&status)) {
                        match self.model.act(*action, number, now) {
                            Ok(_) => changed += 1,
                            Err(_) => refused += 1,
                        }
                    }
                }
                assert_eq!((bulk.changed, bulk.refused), (changed, refused));
                if changed + refused > 0 {
                    self.model.expire(now);
                }
            }
            Step::Pause(queue) => {
                self.t.client().pause(queue)?;
                self.model.paused.insert(queue);
                self.model.expire(now);
            }
            Step::Resume(queue) => {
                self.t.client().resume(queue)?;
                self.model.paused.remove(queue);
                self.model.expire(now);
            }
            Step::Advance(seconds) => self.t.advance(Duration::from_secs(*seconds)),
            Step::SetBack(seconds) => {
                let by = Duration::from_secs(*seconds);
                self.t.clock().jump(now.saturating_sub(by));
                self.t.engine().maintain()?;
                self.model.set_back(by, self.now());
                self.model.expire(self.now());
            }
            Step::Crash => {
                self.t.crash()?;
                self.model.expire(now);
            }
            Step::Restart => {
                self.t.restart()?;
                self.model.expire(now);
            }
            Step::Failing(step) => {
                let before = self.model.clone();
                self.t.faults().fail(1, Fault::Before);
                match self.step(step) {
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Storage, "{error}"),
                    // Nothing is done without a commit but to no job.
                    Ok(()) => assert!(count == 0 || matches!(**step, Step::DoAll(..))),
                }
                self.t.faults().heal();
                self.model = before;
            }
            Step::List { statuses, queue, priority, order, limit } => {
                self.list(statuses, *queue, *priority, *order, *limit)?;
            }
        }
        Ok(())
    }

    fn client(&self, user: Option<&str>) -> jobmill::Result<Client> {
        match user {
            Some(user) => self.t.client().for_user(user),
            None => Ok(self.t.client().clone()),
        }
    }

    fn list(
        &self,
        statuses: &[Status],
        queue: Option<&str>,
        priority: Option<Priority>,
        order: Order,
        limit: usize,
    ) -> jobmill::Result<()> {
        let passes = |row: &&Row| {
            (statuses.is_empty() || statuses.contains(&row.status))
                && queue.is_none_or(|queue| queue == row.queue)
                && priority.is_none_or(|priority| priority == row.priority)
        };
        let mut expected: Vec<JobId> = self.rows().iter().filter(passes).map(|row| row.id).collect();
        if order == Order::Descending {
            expected.reverse();
        }
        let query = Query::new().statuses(statuses.iter().copied()).queues(queue).priorities(priority);
        let mut found = Vec::new();
        let mut next = Some(query.order(order).limit(limit));
        while let Some(query) = next {
            let page = self.t.client().list(query)?;
            assert!(page.jobs.len() <= limit);
            found.extend(page.jobs.iter().map(|job| job.id));
            next = page.next;
        }
        assert_eq!(found, expected);
        Ok(())
    }

    /// The rows that should be there.
    fn rows(&self) -> Vec<Row> {
        self.model.jobs.iter().filter(|job| !job.gone).map(|job| job.row.clone()).collect()
    }

    /// Compares everything that both sides know.
    fn compare(&self) -> jobmill::Result<()> {
        let mut next = Some(Query::new().order(Order::Ascending).limit(1000));
        let mut rows = Vec::new();
        while let Some(query) = next {
            let page = self.t.client().list(query)?;
            rows.extend(page.jobs.iter().map(Row::of));
            next = page.next;
        }
        let expected = self.rows();
        assert_eq!(rows, expected);

        let stats = self.t.client().stats()?;
        assert_eq!(stats.paused, self.model.paused.iter().map(ToString::to_string).collect::<Vec<_>>());
        for status in Status::ALL {
            let count = |queue: Option<&str>| {
                let rows = expected.iter().filter(|row| row.status == status);
                rows.filter(|row| queue.is_none_or(|queue| queue == row.queue)).count() as u64
            };
            assert_eq!(stats.total.of(status), count(None));
            for queue in QUEUES {
                assert_eq!(stats.queues.get(queue).map_or(0, |counts| counts.of(status)), count(Some(queue)));
            }
        }
        let users = self.t.client().users(None, 10)?;
        for user in USERS {
            let counts = users.iter().find(|(name, _)| name == user).map(|(_, counts)| *counts).unwrap_or_default();
            assert_eq!(self.t.client().for_user(user)?.stats()?.total, counts);
            for status in Status::ALL {
                let own = |row: &&Row| row.user.as_deref() == Some(user) && row.status == status;
                assert_eq!(counts.of(status), expected.iter().filter(own).count() as u64);
            }
        }
        Ok(())
    }
}

/// Does something to a job.
fn act(client: &Client, action: Action, id: JobId) -> jobmill::Result<Done> {
    match action {
        Action::Cancel => Ok(match client.cancel(id)? {
            Cancelled::Now => Done::Now,
            Cancelled::Already => Done::Already,
            other => panic!("{other:?} where nothing runs"),
        }),
        Action::Retry => client.retry(id).map(|()| Done::Now),
        Action::Delete => {
            assert_eq!(client.delete(id)?, Deleted::Now);
            Ok(Done::Now)
        }
        Action::SetQueue(queue) => client.set_queue(id, queue).map(|()| Done::Now),
        Action::SetPriority(priority) => client.set_priority(id, priority).map(|()| Done::Now),
        Action::SetStatus(to) => client.update_status(id, to).map(Done::Status),
    }
}

fn act_on_all(client: &Client, action: Action, statuses: &[Status]) -> jobmill::Result<Bulk> {
    let selection = client.select(Query::new().statuses(statuses.iter().copied()))?;
    match action {
        Action::Cancel => selection.cancel(),
        Action::Retry => selection.retry(),
        Action::Delete => selection.delete(),
        Action::SetQueue(queue) => selection.set_queue(queue),
        Action::SetPriority(priority) => selection.set_priority(priority),
        Action::SetStatus(_) => unreachable!("no status is set of many jobs"),
    }
}

/// Whether the rules refused it. What is left is a failure of the commit.
fn refusal<T>(answer: jobmill::Result<T>) -> jobmill::Result<Result<T, ErrorKind>> {
    match answer {
        Ok(done) => Ok(Ok(done)),
        Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(Err(error.kind())),
        Err(error) => Err(error),
    }
}

fn follow(program: &[Step]) -> jobmill::Result<()> {
    let mut pair = Pair::new();
    for step in program {
        pair.step(step)?;
        pair.compare()?;
    }
    assert_eq!(pair.t.client().verify()?, Vec::<String>::new());
    // With time enough, nothing but a pause keeps a job from its end.
    for queue in QUEUES {
        pair.step(&Step::Resume(queue))?;
    }
    for _ in 0..40 {
        pair.step(&Step::Advance(7300))?;
        pair.step(&Step::Drain)?;
    }
    pair.compare()?;
    let endless = |job: &&Known| {
        job.is_open() && !job.row.tracked && !matches!(job.runs.last().map(|run| run.ending), Some(Ending::Snoozes(_)))
    };
    assert_eq!(pair.model.jobs.iter().filter(endless).count(), 0);
    Ok(())
}

#[test]
fn random_programs_do_what_the_model_does() {
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 64;
    }
    let programs = prop::collection::vec(step(), 1..60);
    let outcome = TestRunner::new(config)
        .run(&programs, |program| follow(&program).map_err(|error| TestCaseError::fail(error.to_string())));
    if let Err(failed) = outcome {
        panic!("{failed}");
    }
}
