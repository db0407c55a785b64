//! Random programs of operations, held step by step against a plain model of what statuses mean.
//!
//! `PROPTEST_CASES` says how many programs are run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Backoff, Bulk, Cancelled, Client, Clock, Context, Deleted, Durability, Enqueued, ErrorKind, Failure, Job, JobId,
    NewJob, Order, Outcome, Payload, Priority, Query, Refusal, Retention, Status, StatusChange, Timestamp, Unique,
    UniqueScope,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde::{Deserialize, Serialize};

const QUEUES: [&str; 2] = ["left", "right"];
const USERS: [&str; 2] = ["ann", "bob"];
const BACKOFF: Duration = Duration::from_secs(10);

/// How one attempt ends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Ending {
    Done,
    Fails,
    FailsFor(u64),
    Refuses,
    Panics,
    Snoozes(u64),
    Cancels,
}

/// One attempt: whether somebody asks for the cancellation meanwhile, and how it ends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Run {
    asked_to_stop: bool,
    ending: Ending,
}

/// A job whose attempts end as its payload says, the last of them again and again.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Scripted {
    number: usize,
    runs: Vec<Run>,
}

impl Payload for Scripted {
    const KIND: &'static str = "scripted";
}

/// How often each job has run, and in which order since the order was last asked for.
#[derive(Clone, Default)]
struct Stage(Arc<Mutex<Played>>);

#[derive(Default)]
struct Played {
    runs: BTreeMap<usize, usize>,
    order: Vec<JobId>,
}

impl Stage {
    fn enter(&self, job: usize, id: JobId) -> usize {
        let mut stage = self.0.lock().expect("nobody panics with the lock");
        stage.order.push(id);
        let runs = stage.runs.entry(job).or_default();
        *runs += 1;
        *runs - 1
    }

    fn take_order(&self) -> Vec<JobId> {
        std::mem::take(&mut self.0.lock().expect("nobody panics with the lock").order)
    }
}

fn play(stage: &Stage, job: &Scripted, ctx: &Context) -> Result<Outcome<usize>, Failure> {
    let run = job.runs[stage.enter(job.number, ctx.id()).min(job.runs.len() - 1)];
    if run.asked_to_stop {
        assert_eq!(ctx.client().cancel(ctx.id())?, Cancelled::Requested);
        assert!(ctx.is_cancelled());
    }
    match run.ending {
        Ending::Done => Ok(Outcome::Done(job.number)),
        Ending::Fails => Err(Failure::retry("fails")),
        Ending::FailsFor(seconds) => Err(Failure::retry_after(Duration::from_secs(seconds), "fails")),
        Ending::Refuses => Err(Failure::fatal("refuses")),
        Ending::Panics => panic!("panics"),
        Ending::Snoozes(seconds) => Ok(Outcome::Snooze(Duration::from_secs(seconds))),
        Ending::Cancels => Ok(Outcome::Cancel("cancels".into())),
    }
}

/// What is asked for with a new job.
#[derive(Clone, Debug)]
struct Wish {
    user: Option<&'static str>,
    /// It is tracked, and begins with this status.
    tracked: Option<Status>,
    queue: &'static str,
    priority: Priority,
    /// Seconds from now; below 0 in the past.
    run_in: Option<i64>,
    expires_in: Option<u64>,
    max_attempts: u32,
    key: Option<u8>,
    runs: Vec<Run>,
}

/// What is done to a job from outside.
#[derive(Clone, Copy, Debug)]
enum Action {
    Cancel,
    Retry,
    Delete,
    SetQueue(&'static str),
    SetPriority(Priority),
    /// Of a single job only.
    SetStatus(Status),
}

#[derive(Clone, Debug)]
enum Step {
    Enqueue(Wish),
    EnqueueMany(Vec<Wish>),
    /// In a transaction of the application's own, which is committed or not.
    EnqueueIn(Wish, bool),
    Drain,
    /// To one job, by the administrator or by a client that is bound to a user.
    Do(Action, usize, Option<&'static str>),
    /// To all jobs in these statuses.
    DoAll(Action, Vec<Status>, Option<&'static str>),
    Pause(&'static str),
    Resume(&'static str),
    Advance(u64),
    /// The clock is set back.
    SetBack(u64),
    Crash,
    Restart,
    /// The commit of the step fails.
    Failing(Box<Step>),
    List {
        statuses: Vec<Status>,
        queue: Option<&'static str>,
        priority: Option<Priority>,
        order: Order,
        limit: usize,
    },
}

fn wish() -> impl Strategy<Value = Wish> {
    let ending = prop_oneof![
        4 => Just(Ending::Done),
        3 => Just(Ending::Fails),
        2 => (1..60u64).prop_map(Ending::FailsFor),
        1 => Just(Ending::Refuses),
        1 => Just(Ending::Panics),
        2 => (1..60u64).prop_map(Ending::Snoozes),
        1 => Just(Ending::Cancels),
    ];
    let run = (prop::bool::weighted(0.1), ending).prop_map(|(asked_to_stop, ending)| Run { asked_to_stop, ending });
    (
        prop::option::of(prop::sample::select(&USERS[..])),
        prop::option::weighted(0.2, prop::sample::select(&Status::ALL[..])),
        prop::sample::select(&QUEUES[..]),
        prop::sample::select(&Priority::ALL[..]),
        prop::option::weighted(0.4, -50..100i64),
        prop::option::weighted(0.3, 1..60u64),
        1..4u32,
        prop::option::weighted(0.3, 0..3u8),
        prop::collection::vec(run, 1..4),
    )
        .prop_map(|(user, tracked, queue, priority, run_in, expires_in, max_attempts, key, runs)| Wish {
            user,
            tracked,
            queue,
            priority,
            run_in,
            expires_in,
            max_attempts,
            key,
            runs,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let any_job = 0..64usize;
    let by = prop::option::weighted(0.3, prop::sample::select(&USERS[..]));
    let of_many = prop_oneof![
        2 => Just(Action::Cancel),
        3 => Just(Action::Retry),
        1 => Just(Action::Delete),
        1 => prop::sample::select(&QUEUES[..]).prop_map(Action::SetQueue),
        1 => prop::sample::select(&Priority::ALL[..]).prop_map(Action::SetPriority),
    ]
    .boxed();
    let action = prop_oneof![
        8 => of_many.clone(),
        3 => prop::sample::select(&Status::ALL[..]).prop_map(Action::SetStatus),
    ];
    let writing = prop_oneof![
        6 => wish().prop_map(Step::Enqueue),
        1 => prop::collection::vec(wish(), 1..5).prop_map(Step::EnqueueMany),
        8 => (action, any_job, by.clone()).prop_map(|(action, job, by)| Step::Do(action, job, by)),
        1 => (of_many, prop::collection::vec(prop::sample::select(&Status::ALL[..]), 0..3), by)
            .prop_map(|(action, statuses, by)| Step::DoAll(action, statuses, by)),
        1 => prop::sample::select(&QUEUES[..]).prop_map(Step::Pause),
        1 => prop::sample::select(&QUEUES[..]).prop_map(Step::Resume),
    ];
    let list = (
        prop::collection::vec(prop::sample::select(&Status::ALL[..]), 0..4),
        prop::option::of(prop::sample::select(&QUEUES[..])),
        prop::option::of(prop::sample::select(&Priority::ALL[..])),
        prop::sample::select(&[Order::Ascending, Order::Descending][..]),
        1..8usize,
    )
        .prop_map(|(statuses, queue, priority, order, limit)| Step::List {
            statuses,
            queue,
            priority,
            order,
            limit,
        });
    let writing = writing.boxed();
    prop_oneof![
        14 => writing.clone(),
        2 => writing.prop_map(|step| Step::Failing(Box::new(step))),
        2 => (wish(), prop::bool::weighted(0.7)).prop_map(|(wish, committed)| Step::EnqueueIn(wish, committed)),
        8 => Just(Step::Drain),
        5 => (1..120u64).prop_map(Step::Advance),
        1 => (1..7200u64).prop_map(Step::SetBack),
        1 => Just(Step::Crash),
        1 => Just(Step::Restart),
        2 => list,
    ]
}

/// What the row of a job says, as far as the model has an opinion.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    id: JobId,
    user: Option<String>,
    tracked: bool,
    queue: String,
    priority: Priority,
    status: Status,
    attempt: u32,
    max_attempts: u32,
    run_at: Timestamp,
    expires_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    error: Option<String>,
    result: Option<usize>,
}

impl Row {
    fn of(job: &Job) -> Self {
        // A panic tells its place, which is none of the model's business.
        let told = |error: &String| error.rsplit_once(": ").map_or(error.clone(), |(_, message)| message.to_owned());
        Self {
            id: job.id,
            user: job.user_id.clone(),
            tracked: job.is_tracked(),
            queue: job.queue.clone(),
            priority: job.priority,
            status: job.status,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            run_at: job.run_at,
            expires_at: job.expires_at,
            completed_at: job.completed_at,
            error: job.error.as_ref().map(told),
            result: job.result().ok(),
        }
    }
}

/// A job of the model.
#[derive(Clone, Debug)]
struct Known {
    row: Row,
    /// It has been deleted.
    gone: bool,
    /// Its `run_at` is a moment of its own. Otherwise it may run since it was created, whatever the clock says.
    timed: bool,
    key: Option<u8>,
    runs: Vec<Run>,
    ran: usize,
}

impl Known {
    fn is_open(&self) -> bool {
        !self.gone && !self.row.status.is_terminal()
    }

    fn end(&mut self, status: Status, now: Timestamp) {
        self.row.status = status;
        self.row.completed_at = Some(now);
    }

    fn wait(&mut self, until: Timestamp) {
        self.row.status = Status::Pending;
        self.row.run_at = until;
        self.timed = true;
    }

    /// Runs one attempt.
    fn run(&mut self, number: usize, now: Timestamp) {
        let run = self.runs[self.ran.min(self.runs.len() - 1)];
        self.ran += 1;
        self.row.attempt += 1;
        let error = |ending| match ending {
            Ending::Fails | Ending::FailsFor(_) => Some("fails"),
            Ending::Refuses => Some("refuses"),
            Ending::Panics => Some("panics"),
            Ending::Cancels => Some("cancels"),
            Ending::Done | Ending::Snoozes(_) => None,
        };
        if let Some(error) = error(run.ending) {
            self.row.error = Some(error.to_owned());
        }
        let left = self.row.attempt < self.row.max_attempts;
        match run.ending {
            Ending::Done => {
                self.row.result = Some(number);
                self.end(Status::Completed, now);
            }
            Ending::Cancels => self.end(Status::Cancelled, now),
            _ if run.asked_to_stop => self.end(Status::Cancelled, now),
            Ending::Snoozes(seconds) => {
                self.row.attempt -= 1;
                self.wait(now.saturating_add(Duration::from_secs(seconds)));
            }
            Ending::Fails | Ending::Panics if left => self.wait(now.saturating_add(BACKOFF)),
            Ending::FailsFor(seconds) if left => self.wait(now.saturating_add(Duration::from_secs(seconds))),
            Ending::Fails | Ending::FailsFor(_) | Ending::Panics | Ending::Refuses => self.end(Status::Failed, now),
        }
    }
}

/// The ledger as it should be: DESIGN §5 in plain words.
#[derive(Clone, Default)]
struct Model {
    jobs: Vec<Known>,
    /// Who got a key last.
    keys: BTreeMap<u8, usize>,
    paused: BTreeSet<&'static str>,
}

impl Model {
    /// Who keeps a job with this key away.
    fn holder(&self, key: Option<u8>) -> Option<usize> {
        self.keys.get(&key?).copied().filter(|holder| self.jobs[*holder].is_open())
    }

    /// What an enqueueing should answer: the job that holds the key, or none for a new one, which is then known by `id`.
    fn enqueue(&mut self, wish: &Wish, id: JobId, now: Timestamp) -> Enqueued {
        if let Some(holder) = self.holder(wish.key) {
            return Enqueued::Existing(self.jobs[holder].row.id);
        }
        if let Some(key) = wish.key {
            self.keys.insert(key, self.jobs.len());
        }
        let status = wish.tracked.unwrap_or(Status::Pending);
        let run_at = wish.run_in.and_then(|seconds| moment(seconds, now));
        self.jobs.push(Known {
            row: Row {
                id,
                user: wish.user.map(str::to_owned),
                tracked: wish.tracked.is_some(),
                queue: wish.queue.to_owned(),
                priority: wish.priority,
                status,
                attempt: 0,
                max_attempts: wish.max_attempts,
                run_at: run_at.unwrap_or(id.created_at()),
                expires_at: wish.expires_in.map(|seconds| now.saturating_add(Duration::from_secs(seconds))),
                completed_at: status.is_terminal().then_some(now),
                error: None,
                result: None,
            },
            gone: false,
            timed: run_at.is_some(),
            key: wish.key,
            runs: wish.runs.clone(),
            ran: 0,
        });
        Enqueued::New(id)
    }

    /// Does something to a job that exists for whoever does it, and says what that comes to.
    fn act(&mut self, action: Action, number: usize, now: Timestamp) -> Answer {
        let key_is_taken = self.holder(self.jobs[number].key).is_some();
        let job = &mut self.jobs[number];
        let status = job.row.status;
        match action {
            Action::Cancel => match status {
                Status::Cancelled => Ok(Done::Already),
                _ if status.is_terminal() => Err(ErrorKind::Conflict),
                _ => {
                    job.end(Status::Cancelled, now);
                    Ok(Done::Now)
                }
            },
            Action::Retry => {
                let ended_badly = matches!(status, Status::Failed | Status::Cancelled | Status::Expired);
                if !ended_badly || key_is_taken {
                    return Err(ErrorKind::Conflict);
                }
                job.wait(now);
                job.row.completed_at = None;
                job.row.max_attempts = job.row.max_attempts.max(job.row.attempt + 1);
                job.row.expires_at = job.row.expires_at.filter(|at| *at > now);
                if let Some(key) = job.key {
                    self.keys.insert(key, number);
                }
                Ok(Done::Now)
            }
            Action::Delete => {
                job.gone = true;
                Ok(Done::Now)
            }
            Action::SetQueue(_) | Action::SetPriority(_) if !matches!(status, Status::Created | Status::Pending) => {
                Err(ErrorKind::Conflict)
            }
            Action::SetQueue(queue) => {
                job.row.queue = queue.to_owned();
                Ok(Done::Now)
            }
            Action::SetPriority(priority) => {
                job.row.priority = priority;
                Ok(Done::Now)
            }
            Action::SetStatus(_) if !job.row.tracked => {
                Ok(Done::Status(StatusChange::Refused { status, why: Refusal::RunByEngine }))
            }
            Action::SetStatus(to) if status.is_terminal() => Ok(Done::Status(match to == status {
                true => StatusChange::Already,
                false => StatusChange::Refused { status, why: Refusal::Terminal },
            })),
            // The first three statuses stand in their order.
            Action::SetStatus(to) if !to.is_terminal() && to <= status => {
                Ok(Done::Status(StatusChange::Refused { status, why: Refusal::Backward }))
            }
            Action::SetStatus(to) => {
                job.row.status = to;
                job.row.completed_at = to.is_terminal().then_some(now);
                Ok(Done::Status(StatusChange::Applied))
            }
        }
    }

    /// Whether a job exists for this user, or for the administrator.
    fn exists_for(&self, number: usize, user: Option<&str>) -> bool {
        let job = &self.jobs[number];
        !job.gone && (user.is_none() || job.row.user.as_deref() == user)
    }

    /// What every turn does.
    fn expire(&mut self, now: Timestamp) {
        for job in &mut self.jobs {
            let waits = !job.gone && matches!(job.row.status, Status::Created | Status::Pending);
            if waits && job.row.expires_at.is_some_and(|at| at <= now) {
                job.end(Status::Expired, now);
            }
        }
    }

    /// Runs what is due, and gives it in its order. Nothing that runs makes anything due at once.
    fn drain(&mut self, now: Timestamp) -> Vec<JobId> {
        self.expire(now);
        let due = |job: &Known| {
            !job.gone
                && !job.row.tracked
                && job.row.status == Status::Pending
                && !self.paused.contains(job.row.queue.as_str())
                && (!job.timed || job.row.run_at <= now)
        };
        let mut order: Vec<usize> = (0..self.jobs.len()).filter(|job| due(&self.jobs[*job])).collect();
        order.sort_by_key(|job| {
            let row = &self.jobs[*job].row;
            (row.priority, row.run_at, row.id)
        });
        for number in &order {
            self.jobs[*number].run(*number, now);
        }
        order.into_iter().map(|job| self.jobs[job].row.id).collect()
    }
}

/// What an action came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Now,
    Already,
    Status(StatusChange),
}

type Answer = Result<Done, ErrorKind>;

fn moment(seconds: i64, now: Timestamp) -> Option<Timestamp> {
    match u64::try_from(seconds) {
        Ok(0) => None,
        Ok(seconds) => Some(now.saturating_add(Duration::from_secs(seconds))),
        Err(_) => Some(now.saturating_sub(Duration::from_secs(seconds.unsigned_abs()))),
    }
}

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
            Step::SetBack(seconds) => self.t.clock().jump(now.saturating_sub(Duration::from_secs(*seconds))),
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
