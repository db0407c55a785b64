//! What a random program may ask for: jobs whose attempts are scripted, and what is done to them from outside.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::{Cancelled, Context, Failure, JobId, Order, Outcome, Payload, Priority, Status};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

pub(crate) const QUEUES: [&str; 2] = ["left", "right"];

pub(crate) const USERS: [&str; 2] = ["ann", "bob"];

pub(crate) const BACKOFF: Duration = Duration::from_secs(10);

/// How one attempt ends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
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
pub(crate) struct Run {
    pub(crate) asked_to_stop: bool,
    pub(crate) ending: Ending,
}

/// A job whose attempts end as its payload says, the last of them again and again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Scripted {
    pub(crate) number: usize,
    pub(crate) runs: Vec<Run>,
}

impl Payload for Scripted {
    const KIND: &'static str = "scripted";
}

/// How often each job has run, and in which order since the order was last asked for.
#[derive(Clone, Default)]
pub(crate) struct Stage(pub(crate) Arc<Mutex<Played>>);

#[derive(Default)]
pub(crate) struct Played {
    pub(crate) runs: BTreeMap<usize, usize>,
    pub(crate) order: Vec<JobId>,
}

impl Stage {
    pub(crate) fn enter(&self, job: usize, id: JobId) -> usize {
        let mut stage = self.0.lock().expect("nobody panics with the lock");
        stage.order.push(id);
        let runs = stage.runs.entry(job).or_default();
        *runs += 1;
        *runs - 1
    }

    pub(crate) fn take_order(&self) -> Vec<JobId> {
        std::mem::take(&mut self.0.lock().expect("nobody panics with the lock").order)
    }
}

pub(crate) fn play(stage: &Stage, job: &Scripted, ctx: &Context) -> Result<Outcome<usize>, Failure> {
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
pub(crate) struct Wish {
    pub(crate) user: Option<&'static str>,
    /// It is tracked, and begins with this status.
    pub(crate) tracked: Option<Status>,
    pub(crate) queue: &'static str,
    pub(crate) priority: Priority,
    /// Seconds from now; below 0 in the past.
    pub(crate) run_in: Option<i64>,
    pub(crate) expires_in: Option<u64>,
    pub(crate) max_attempts: u32,
    pub(crate) key: Option<u8>,
    pub(crate) runs: Vec<Run>,
}

/// What is done to a job from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Cancel,
    Retry,
    Delete,
    SetQueue(&'static str),
    SetPriority(Priority),
    /// Of a single job only.
    SetStatus(Status),
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
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
    /// The clock is set back by more than the engine takes for a correction.
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

pub(crate) fn wish() -> impl Strategy<Value = Wish> {
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

pub(crate) fn step() -> impl Strategy<Value = Step> {
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
        1 => (4..7200u64).prop_map(Step::SetBack),
        1 => Just(Step::Crash),
        1 => Just(Step::Restart),
        2 => list,
    ]
}
