//! What limits cost those that they let through, when a million jobs wait for others.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jobmill::{
    Clock, Context, Durability, Engine, Failure, Limit, LimitUse, NewJob, Payload, Retention, SystemClock, Workers,
};
use serde::{Deserialize, Serialize};

use crate::floor;
use crate::ours::{self, Nothing};
use crate::report::{Report, Target, now, percentile, rest, rounds};

/// How many jobs wait, for how many keys.
const WAITING: usize = 1_000_000;
const KEYS: usize = 10_000;
/// What a key can gather: one job that waits takes all of it.
const TOKENS: u32 = 1_000_000;
/// How many jobs are run in a round, and how many are timed.
const RUN: usize = 10_000;
const TIMED: usize = 300;

/// A job that carries the moment of its enqueueing, in microseconds since the epoch.
#[derive(Serialize, Deserialize)]
struct Stamp(i64);

impl Payload for Stamp {
    const KIND: &'static str = "stamp";
}

fn limit() -> Limit {
    Limit::new("keyed").rate(TOKENS, Duration::from_secs(365 * 86_400)).concurrency(1000)
}

/// Fills a file with jobs whose keys have no token left.
fn fill(path: &Path) {
    let engine = Engine::builder(path).durability(Durability::Normal).limit(limit());
    let engine = engine.handle(|_: Nothing, _: &Context| Ok(())).start().expect("an engine");
    let full =
        |key: usize| NewJob::of(&Nothing::new()).limit(LimitUse::of("keyed").key(format!("key-{key}")).cost(TOKENS));
    for keys in (0..KEYS).collect::<Vec<_>>().chunks(1000) {
        engine.client().enqueue_many(keys.iter().map(|key| full(*key))).expect("an enqueueing");
    }
    ours::wait_until_done(engine.client());
    for part in 0..WAITING / 5000 {
        let jobs = (0..5000).map(|n| full((part * 5000 + n) % KEYS));
        engine.client().enqueue_many(jobs).expect("an enqueueing");
    }
    let usage = engine.client().limit_usage("keyed", "key-7").expect("a usage");
    assert_eq!((usage.held, usage.running), ((WAITING / KEYS) as u64, 0));
    engine.shutdown(Duration::from_secs(60)).expect("a shutdown");
}

/// Jobs a second while the next `RUN` of those are run that may.
fn run_rate(path: &Path, job: &NewJob) -> f64 {
    let storage = Engine::builder(path).durability(Durability::Normal).limit(limit()).start().expect("an engine");
    for _ in 0..RUN / 5000 {
        storage.client().enqueue_many((0..5000).map(|_| job.clone())).expect("an enqueueing");
    }
    storage.shutdown(Duration::from_secs(60)).expect("a shutdown");
    let (sender, receiver) = crossbeam_channel::bounded::<()>(1);
    let ran = AtomicUsize::new(0);
    let engine = Engine::builder(path)
        .durability(Durability::Normal)
        .workers(Workers::new(4))
        .retention(Retention::FOREVER)
        .handle(move |job: Nothing, _: &Context| -> Result<(), Failure> {
            std::hint::black_box(job);
            if ran.fetch_add(1, Ordering::Relaxed) + 1 == RUN {
                let _ = sender.try_send(());
            }
            Ok(())
        });
    let began = now();
    let engine = engine.start().expect("an engine");
    receiver.recv().expect("the last job");
    let rate = RUN as f64 / began.elapsed().as_secs_f64();
    engine.shutdown(Duration::from_secs(60)).expect("a shutdown");
    rate
}

/// From the enqueueing of jobs of the key that has room to their start, in milliseconds.
fn latencies(path: &Path) -> Vec<f64> {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let engine = Engine::builder(path)
        .durability(Durability::Normal)
        .workers(Workers::new(4))
        .handle(move |job: Stamp, _: &Context| -> Result<(), Failure> {
            let _ = sender.send((SystemClock.now().as_micros() - job.0) as f64 / 1000.0);
            Ok(())
        })
        .start()
        .expect("an engine");
    (0..TIMED)
        .map(|_| {
            rest(Duration::from_millis(3));
            let stamp = NewJob::of(&Stamp(SystemClock.now().as_micros()));
            engine.client().enqueue(stamp.limit(LimitUse::of("keyed").key("free"))).expect("an enqueueing");
            receiver.recv().expect("a start")
        })
        .collect()
}

pub fn limits(report: &mut Report) {
    let directory = floor::directory();
    let many = floor::fresh(&directory, "many");
    fill(&many);
    let free = NewJob::of(&Nothing::new()).limit(LimitUse::of("keyed").key("free"));
    let mut series = Vec::new();
    for _ in 0..rounds() {
        let unlimited = run_rate(&floor::fresh(&directory, "few"), &NewJob::of(&Nothing::new()));
        series.push((run_rate(&many, &free), unlimited));
    }
    let name = "claim and finish, 1,000,000 held under 10,000 full keys";
    report.ratio(name, &series, Target::AtLeast(0.5));
    let mut latencies = latencies(&many);
    for (part, name) in [(0.5, "p50"), (0.99, "p99")] {
        let name = format!("enqueue to start of the free key, {name}");
        report.value(&name, percentile(&mut latencies, part), "ms", Target::AtMost(5.0));
    }
}
